//! The arguments, and with them the help and the reference. Nothing is resolved here.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::commands::{
    completions, config, create, diff, doctor, dump, find, history, init, inspect, list, ls,
    restore, show, stats, tag, verify,
};

/// One consistent, deduplicated, encrypted, verifiable snapshot of a whole stack, and its restore with
/// proof.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 3 committed but partial, 4 damage or a difference found, or another
/// repository than the known one, 10 no repository, 11 something is in the way, 12 wrong key, 75 try later, 130
/// cancelled.
///
/// Keys never stand on the command line. Tried are: the key files of --key-file, SNAPKIT_KEY_FILE, the
/// stack file and the usual place ($XDG_CONFIG_HOME/snapkit/REPOSITORY-ID.key), and the passphrases of
/// SNAPKIT_PASSPHRASE, SNAPKIT_PASSPHRASE_FILE and SNAPKIT_PASSPHRASE_COMMAND.
#[derive(Debug, Parser)]
#[command(name = "snapkit", version, max_term_width = 100, infer_long_args = false)]
pub(crate) struct EntryPoint {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Common {
    /// The repository: a path, or a URL such as file:///srv/backups [env: SNAPKIT_REPO]
    #[arg(short, long, global = true, value_name = "URL|PATH")]
    pub(crate) repo: Option<String>,
    /// The stack file [env: SNAPKIT_STACK] [default: ./snapkit.toml if it is there]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) stack: Option<PathBuf>,
    /// A key file that opens the repository [env: SNAPKIT_KEY_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Lines NAME=VALUE of variables (comments, `export` and quotes; nothing is expanded), which count where the environment has none of that name
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) env_file: Option<PathBuf>,
    /// Give the result as one JSON document on standard output, and progress and warnings as lines of
    /// JSON on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say only what was asked for and what is wrong
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Log what is done; twice and thrice for more [env: SNAPKIT_LOG]
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,
    /// Show no progress
    #[arg(long, global = true)]
    pub(crate) no_progress: bool,
    /// Directory of caches, which may be deleted at any time [env: SNAPKIT_CACHE_DIR] [default:
    /// $XDG_CACHE_HOME/snapkit]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Directory of local state: what pins repositories and makes the next create quick [env:
    /// SNAPKIT_STATE_DIR] [default: $XDG_STATE_HOME/snapkit]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// The memory that may be used, at least 128MiB [default: 256MiB]
    #[arg(long, global = true, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Write to the repository at most so quickly, such as 10MiB: bytes per second, averaged over objects of up to
    /// 16 MiB
    #[arg(long, global = true, value_name = "SIZE")]
    pub(crate) limit_upload: Option<String>,
    /// Read from the repository at most so quickly
    #[arg(long, global = true, value_name = "SIZE")]
    pub(crate) limit_download: Option<String>,
    /// Requests that a store is given at once [default: 8]
    #[arg(long, global = true, value_name = "N")]
    pub(crate) requests: Option<usize>,
    /// Take another repository at the same place for a new one instead of an attack; `init` makes one where the
    /// one that was known is gone
    #[arg(long, global = true)]
    pub(crate) accept_new_repository: bool,
}

/// The commands. What each is for stands with its arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(init::InitArgs),
    Create(create::CreateArgs),
    List(list::ListArgs),
    Show(show::ShowArgs),
    Ls(ls::LsArgs),
    Find(find::FindArgs),
    Diff(diff::DiffArgs),
    Restore(restore::RestoreArgs),
    Dump(dump::DumpArgs),
    Verify(verify::VerifyArgs),
    Tag(tag::TagArgs),
    Stats(stats::StatsArgs),
    Inspect(inspect::InspectArgs),
    Doctor(doctor::DoctorArgs),
    History(history::HistoryArgs),
    Config(config::ConfigArgs),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

impl Command {
    /// Its name, if it is a run to be remembered.
    pub(crate) fn remembered(&self) -> Option<&'static str> {
        match self {
            Self::Create(args) if !args.is_dry() => Some("create"),
            Self::Restore(args) if !args.is_dry() => Some("restore"),
            Self::Verify(_) => Some("verify"),
            _ => None,
        }
    }

    /// Whether it changes nothing that would have to be tidied up.
    pub(crate) fn only_reads(&self) -> bool {
        // What looks at live systems may have to let go of them.
        !matches!(
            self,
            Self::Init(_)
                | Self::Create(_)
                | Self::Restore(_)
                | Self::Diff(_)
                | Self::Inspect(_)
                | Self::Doctor(_)
        )
    }
}

/// Which snapshots `latest` and times speak of.
#[derive(Debug, Args)]
pub(crate) struct ScopeArgs {
    /// `latest` and times speak of this stack [default: the stack file's, else the only one there is]
    #[arg(long, value_name = "NAME")]
    pub(crate) stack_name: Option<String>,
    /// `latest` and times speak of this host [default: this one]
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Option<String>,
    /// `latest` and times speak of any host
    #[arg(long, conflicts_with = "host")]
    pub(crate) any_host: bool,
    /// `latest` and times speak of this set [default: full]
    #[arg(long, value_name = "NAME")]
    pub(crate) set: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn arguments_are_consistent() {
        EntryPoint::command().debug_assert();
    }

    #[test]
    fn every_option_has_help() {
        for command in EntryPoint::command().get_subcommands() {
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }
}
