//! The snapkit command line: parse, run, exit.

mod app;
mod args;
mod commands;
mod env;
mod exit;
mod filter;
mod format;
mod history;
mod hooks;
mod http;
mod key;
mod location;
mod output;
mod own;
mod paths;
mod place;
mod preflight;
mod process;
mod program;
mod progress;
mod prompt;
mod running;
mod scope;
mod snapshot;
mod spec;
mod stack;
mod stdin;
mod tags;
mod values;
mod wanted;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    process::tame_allocator();
    process::harden();
    match args::EntryPoint::try_parse() {
        Ok(entry) => process::run(entry),
        Err(error) => output::usage(&error),
    }
}
