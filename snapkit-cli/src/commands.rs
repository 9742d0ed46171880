//! The commands: each has its arguments and its story.

pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod create;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod dump;
pub(crate) mod find;
pub(crate) mod history;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod list;
pub(crate) mod ls;
pub(crate) mod restore;
pub(crate) mod show;
pub(crate) mod stats;
pub(crate) mod tag;
pub(crate) mod verify;

use snapkit_core::error::Result;

use crate::app::App;
use crate::args::Command;
use crate::exit::Exit;

/// Run a command to its end.
pub(crate) async fn run(app: App, command: Command) -> Result<Exit> {
    if let Some(name) = command.remembered() {
        app.begin_run(name);
    }
    let ended = match command {
        Command::Init(args) => init::run(&app, args).await,
        Command::Create(args) => create::run(&app, args).await,
        Command::List(args) => list::run(&app, args).await,
        Command::Show(args) => show::run(&app, args).await,
        Command::Ls(args) => ls::run(&app, args).await,
        Command::Find(args) => find::run(&app, args).await,
        Command::Diff(args) => diff::run(&app, args).await,
        Command::Restore(args) => restore::run(&app, args).await,
        Command::Dump(args) => dump::run(&app, args).await,
        Command::Verify(args) => verify::run(&app, args).await,
        Command::Tag(args) => tag::run(&app, args).await,
        Command::Stats(args) => stats::run(&app, args).await,
        Command::Inspect(args) => inspect::run(&app, args).await,
        Command::Doctor(args) => doctor::run(&app, args).await,
        Command::History(args) => history::run(&app, &args),
        Command::Config(args) => config::run(&app, &args),
        Command::Completions(args) => Ok(completions::completions(&app, &args)),
        Command::Man(args) => completions::man(&app, &args),
    };
    app.end_run(&ended);
    ended.map_err(|e| app.places.explain(e))
}
