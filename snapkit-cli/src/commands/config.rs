//! `snapkit config`: what the stack file says, and whether it makes sense.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use snapkit_core::error::{Error, Result};

use crate::app::App;
use crate::exit::Exit;
use crate::format::count;
use crate::location::without_credentials;
use crate::stack::{FULL, StackFile};

/// Check the stack file, or show what it amounts to
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Check everything in the stack file that can be checked without touching a source or the repository
    ///
    /// Variables and files that values come from must be there. `snapkit doctor` also reaches the sources.
    Check,
    /// Show what the stack file says, key by key
    ///
    /// Of values from elsewhere it is shown where they come from and whether they are there, never what they are.
    Show,
}

pub(crate) fn run(app: &App, args: &ConfigArgs) -> Result<Exit> {
    let Some(file) = &app.stack else {
        return Err(Error::invalid(
            "there is no stack file: name one with --stack, or make a snapkit.toml here",
        ));
    };
    match args.action {
        Action::Check => check(app, file),
        Action::Show => show(app, file),
    }
}

fn check(app: &App, file: &StackFile) -> Result<Exit> {
    let stack = file.build(&app.registry(), &app.env, FULL, app.host()?, |_, _| Ok(()))?;
    let sets = file.set_names(&app.env)?;
    for set in &sets {
        file.build(&app.registry(), &app.env, set, app.host()?, |_, _| Ok(()))?;
    }
    let (hooks, probes) = (file.hooks(&app.env)?, file.probes(&app.env)?);
    let repository = app.repository_url().ok();
    drop(file.key(&app.env)?);
    let n = |n: usize, one: &str, many: &str| count(n as u64, one, many);
    app.output.line(format!(
        "{}: stack {}, {}, {}, {}, {}",
        file.path().display(),
        stack.name,
        n(stack.sources.len(), "source", "sources"),
        n(sets.len(), "set", "sets"),
        n(hooks.len(), "hook", "hooks"),
        n(probes.len(), "probe", "probes"),
    ));
    if repository.is_none() {
        app.output.warn("no repository is named: `[repo] url`, --repo or SNAPKIT_REPO does that");
    }
    app.output.document(&json!({
        "file": file.path().display().to_string(),
        "stack": stack.name,
        "sources": stack.sources.iter().map(|s| s.source.info().name.as_str()).collect::<Vec<_>>(),
        "sets": sets,
        "hooks": hooks.len(),
        "probes": probes.len(),
        "repository": repository,
    }))?;
    Ok(Exit::Done)
}

fn show(app: &App, file: &StackFile) -> Result<Exit> {
    let mut described = file.describe(&app.env)?;
    redact(&mut described);
    let mut lines = Vec::new();
    flatten("", &described, &mut lines);
    lines.iter().for_each(|line| app.output.line(line));
    app.output.document(&described)?;
    Ok(Exit::Done)
}

/// Take out the credentials that somebody has put into URLs.
fn redact(value: &mut Value) {
    match value {
        Value::String(text) => *text = without_credentials(text),
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(table) => table.values_mut().for_each(redact),
        _ => {}
    }
}

/// Lines `a.b.c = value`.
fn flatten(prefix: &str, value: &Value, lines: &mut Vec<String>) {
    let inner =
        |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
    match value {
        Value::Object(table) if !is_elsewhere(table) => {
            table.iter().for_each(|(key, value)| flatten(&inner(key), value, lines));
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (i, value) in items.iter().enumerate() {
                flatten(&format!("{prefix}[{i}]"), value, lines);
            }
        }
        Value::Object(table) => {
            let text = |key: &str| table.get(key).and_then(Value::as_str).unwrap_or_default();
            lines.push(format!("{prefix} = from {} ({})", text("from"), text("state")));
        }
        other => lines.push(format!("{prefix} = {other}")),
    }
}

fn is_elsewhere(table: &Map<String, Value>) -> bool {
    table.len() == 2 && table.contains_key("from") && table.contains_key("state")
}
