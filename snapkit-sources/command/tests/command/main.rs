//! Programs as sources: shells that stand for dump and restore programs, good ones and bad ones.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod behaviour;
mod conformance;
mod databases;

use std::path::Path;

use snapkit_core::artifact::SourceName;
use snapkit_core::secret::Secret;
use snapkit_source_command::{Command, CommandConfig};

/// What the programs must be told to do anything.
const TOKEN: &str = "a-token-of-the-system";

/// Words that have a shell do something.
fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

/// The source of a system that is the file `state` in a directory.
fn config(directory: &Path) -> CommandConfig {
    let mut config = CommandConfig::new(shell("test \"$TOKEN\" && cat state"));
    config.restore = shell("test \"$TOKEN\" && cat > new && mv new state");
    config.check = shell("head -n 1 | grep -q '^state of'");
    config.empty = shell("test ! -e state");
    config.directory = Some(directory.to_owned());
    config.variables.insert("TOKEN".to_owned(), Secret::new(TOKEN.to_owned()));
    config.repeatable = true;
    config
}

fn command(config: CommandConfig) -> Command {
    Command::new(SourceName::new("app").unwrap(), config).unwrap()
}

/// The processes that run in a directory.
fn processes_in(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == directory) {
            let words = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            found.push(format!("{:?}: {words}", entry.file_name()));
        }
    }
    found
}
