//! `snapkit completions` and `snapkit man`: what shells and `man` show, made from the arguments themselves.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use snapkit_core::error::{IoContext as _, Result};

use crate::app::App;
use crate::args::EntryPoint;
use crate::exit::Exit;

/// Print a script that completes snapkit's arguments in a shell
///
/// For bash: `snapkit completions bash > /etc/bash_completion.d/snapkit`; for zsh into a directory of $fpath as
/// _snapkit; for fish into ~/.config/fish/completions/snapkit.fish.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Write the manual pages into a directory
///
/// One page for the program and one for each command, for section 1: snapkit.1, snapkit-create.1, …
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// A directory that exists
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(crate) fn completions(app: &App, args: &CompletionsArgs) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut EntryPoint::command(), "snapkit", &mut script);
    app.output.bytes(&script);
    Exit::Done
}

pub(crate) fn man(app: &App, args: &ManArgs) -> Result<Exit> {
    let mut command = EntryPoint::command().disable_help_subcommand(true);
    // The options that all commands have stand on the page of each.
    command.build();
    page(&args.directory, "snapkit.1", command.clone())?;
    let mut pages = 1;
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        let name = format!("snapkit-{}", inner.get_name());
        page(&args.directory, &format!("{name}.1"), inner.clone().display_name(name))?;
        pages += 1;
    }
    app.output.note(format!("{pages} pages in {}", args.directory.display()));
    Ok(Exit::Done)
}

fn page(directory: &Path, file: &str, command: clap::Command) -> Result<()> {
    let path = directory.join(file);
    let what = || format!("cannot write {}", path.display());
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text).doing(what)?;
    std::fs::write(&path, text).doing(what)
}
