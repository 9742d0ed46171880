//! `snapkit inspect`: what live systems hold.

use clap::Args;
use serde_json::json;
use snapkit_core::error::{Error, IoContext as _, Result};

use crate::app::App;
use crate::commands::show;
use crate::exit::Exit;
use crate::own::Own;
use crate::stack::FULL;

/// What the live systems of a stack hold, now
///
/// Facts as a restore would be compared by, of the sources of the stack file. No repository is needed, and nothing of what is
/// found is kept. A source that cannot say is told, and the others go on.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Sources [default: all of the set]
    #[arg(value_name = "SOURCE")]
    sources: Vec<String>,
    /// A set of sources of the stack file
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
}

pub(crate) async fn run(app: &App, args: InspectArgs) -> Result<Exit> {
    let Some(file) = &app.stack else {
        return Err(Error::invalid("there is nothing to inspect: name a stack file with --stack"));
    };
    let directory = file.directory();
    std::env::set_current_dir(directory)
        .doing(|| format!("cannot enter the stack file's directory {}", directory.display()))?;
    // As a create would leave it out, if there is a repository.
    let own = app.repository_url().ok().map(|url| Own::of(&url, &app.places)).transpose()?;
    let amend = |kind: &str, settings: &mut serde_json::Value| match &own {
        Some(own) => own.leave_out(kind, settings).map(drop),
        None => Ok(()),
    };
    let set = args.set.as_deref().unwrap_or(FULL);
    let stack = file.build(&app.registry(), &app.env, set, app.host()?, amend)?;
    let mut sources: Vec<_> = stack.sources.into_iter().map(|declared| declared.source).collect();
    if !args.sources.is_empty() {
        let names: Vec<_> = sources.iter().map(|source| source.info().name.to_string()).collect();
        if let Some(strange) = args.sources.iter().find(|name| !names.contains(name)) {
            let what = format!("there is no source {strange}; sources are: {}", names.join(", "));
            return Err(Error::invalid(what));
        }
        sources
            .retain(|source| args.sources.iter().any(|name| source.info().name.as_str() == name));
    }
    let mut documents = Vec::new();
    let mut failure = None;
    for source in sources {
        let info = source.info();
        let (name, kind) = (&info.name, &info.kind);
        match app.with_progress(app.cx.run(source.facts(&app.cx))).await {
            Ok(facts) => {
                app.output.line(format!("source {name} ({kind})"));
                for (fact, value) in &facts.0 {
                    app.output.line(show::fact(fact, value));
                }
                documents.push(json!({ "source": name, "kind": kind, "facts": facts }));
            }
            Err(e) if app.cx.check().is_err() => return Err(e),
            Err(e) => {
                let e = e.with("source", name);
                documents.push(json!({ "source": name, "kind": kind, "error": e.chain() }));
                if failure.is_none() {
                    failure = Some(e.reason());
                }
                app.output.failure_after(&e);
            }
        }
    }
    app.output.document(&documents)?;
    Ok(failure.map_or(Exit::Done, Exit::Unfinished))
}
