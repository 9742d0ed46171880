//! The commands: each has its arguments and its story.

pub(crate) mod create;
pub(crate) mod dump;
pub(crate) mod init;
pub(crate) mod list;
pub(crate) mod ls;
pub(crate) mod restore;
pub(crate) mod show;
pub(crate) mod verify;

use snapkit_core::error::Result;

use crate::app::App;
use crate::args::Command;
use crate::exit::Exit;

/// Run a command to its end.
pub(crate) async fn run(app: App, command: Command) -> Result<Exit> {
    let ended = match command {
        Command::Init(args) => init::run(&app, args).await,
        Command::Create(args) => create::run(&app, args).await,
        Command::List(args) => list::run(&app, args).await,
        Command::Show(args) => show::run(&app, args).await,
        Command::Ls(args) => ls::run(&app, args).await,
        Command::Restore(args) => restore::run(&app, args).await,
        Command::Dump(args) => dump::run(&app, args).await,
        Command::Verify(args) => verify::run(&app, args).await,
    };
    ended.map_err(|e| app.places.explain(e))
}
