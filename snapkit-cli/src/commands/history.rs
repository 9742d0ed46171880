//! `snapkit history`: what was run on this machine, and how it ended.

use clap::Args;
use snapkit_core::error::{Error, Result};

use crate::app::App;
use crate::exit::Exit;
use crate::format::{seconds, table, time};
use crate::history::{Run, bury, runs};
use crate::location::without_credentials;

/// Show the creates, restores and verifies that were run here, and how they ended
///
/// The newest comes first; what goes on is `running`, what did not live to its end is `killed`. It is this machine's
/// memory, of this user: what others ran is not in it.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Only runs that failed, or ended with another exit code than 0
    #[arg(long)]
    failed: bool,
    /// Only runs of this command: create, restore or verify
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
    /// Runs on any repository, not only on the one that is named
    #[arg(long)]
    all: bool,
    /// Only the newest so many [default: 20]
    #[arg(long, value_name = "N", default_value_t = 20, hide_default_value = true)]
    last: usize,
}

pub(crate) fn run(app: &App, args: &HistoryArgs) -> Result<Exit> {
    let commands = ["create", "restore", "verify"];
    if let Some(other) = args.command.as_deref().filter(|c| !commands.contains(c)) {
        return Err(Error::invalid(format!(
            "--command is create, restore or verify, not {other:?}"
        )));
    }
    let repository = app.repository_url().ok().filter(|_| !args.all);
    let repository = repository.as_deref().map(without_credentials);
    let wants = |run: &Run| {
        (!args.failed || run.exit != 0)
            && args.command.as_ref().is_none_or(|command| *command == run.command)
            && repository.as_ref().is_none_or(|url| *url == run.repository)
    };
    let state = app.places.state()?;
    // What has ended is told all the same.
    let running = bury(&state).unwrap_or_else(|e| {
        app.output.warn(format!("runs that go on or were killed are not told: {}", e.chain()));
        Vec::new()
    });
    let runs: Vec<Run> =
        running.into_iter().chain(runs(&state)?).filter(wants).take(args.last).collect();
    if runs.is_empty() {
        app.output.note("no such run is remembered here");
    } else {
        let rows: Vec<_> = runs.iter().map(row).collect();
        let head = ["TIME", "COMMAND", "STACK", "SNAPSHOT", "OUTCOME", "EXIT", "TOOK", "WHY"];
        for line in table(head, &rows) {
            app.output.line(line);
        }
    }
    app.output.document(&runs)?;
    Ok(Exit::Done)
}

fn row(run: &Run) -> [String; 8] {
    let stack = match (&run.stack, &run.set) {
        (Some(stack), Some(set)) if set != crate::stack::FULL => format!("{stack} ({set})"),
        (Some(stack), _) => stack.clone(),
        (None, _) => String::new(),
    };
    let snapshot =
        run.snapshot.as_deref().map(|id| id.get(17..25).unwrap_or(id)).unwrap_or_default();
    [
        time(run.started),
        run.command.clone(),
        stack,
        snapshot.to_owned(),
        run.outcome.clone(),
        if run.is_running() { String::new() } else { run.exit.to_string() },
        // Nobody knows when it was killed.
        if run.seconds > 0.0 { seconds(run.seconds) } else { String::new() },
        run.error.clone().unwrap_or_default(),
    ]
}
