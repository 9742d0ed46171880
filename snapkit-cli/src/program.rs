//! Programs of hooks and probes, in the surroundings that they are promised.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::process::{Hear, Process};

use crate::env::{self, Env};
use crate::output::Output;

/// A program to be run.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// What it is run for, for people.
    pub(crate) what: String,
    /// Its name and arguments.
    pub(crate) words: &'a [String],
    /// From where.
    pub(crate) directory: PathBuf,
    pub(crate) timeout: Duration,
    /// Variables beside those of this program and of `--env-file`.
    pub(crate) variables: Vec<(String, String)>,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The last that it said.
    pub(crate) last: String,
}

impl Program<'_> {
    /// Run it to its end. What it says goes to standard error, line by line.
    pub(crate) async fn run(&self, cx: &Context, env: &Env, output: &Arc<Output>) -> Result<Ended> {
        let (name, arguments) = self
            .words
            .split_first()
            .ok_or_else(|| Error::new(Reason::InvalidConfig, "`run` names no program"))?;
        let mut command = tokio::process::Command::new(name);
        command
            .args(arguments)
            .envs(env.of_file())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        for kept in env::withheld() {
            command.env_remove(kept);
        }
        let (what, output) = (self.what.clone(), Arc::clone(output));
        let hear: Hear = Arc::new(move |line| {
            let line = line.trim_end().to_owned();
            if !line.is_empty() {
                output.note(format!("{what}: {line}"));
            }
            line
        });
        let mut process = Process::start(cx, &self.what, command, hear)?;
        process.hear_output(cx);
        let status =
            process.wait(&cx.within(self.timeout)).await.map_err(|e| match e.reason() {
                Reason::TimedOut if cx.check().is_ok() => {
                    let (what, limit) = (&self.what, self.timeout);
                    let what = format!("{what} did not end within {limit:?} and was ended");
                    Error::new(Reason::TimedOut, what).with("program", name)
                }
                _ => e,
            })?;
        Ok(Ended { status, last: process.last() })
    }
}
