//! Other programs: started for a hook or a probe, limited in time, ended with all that they started.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use snapkit_core::context::{Context, Task};
use snapkit_core::error::{Error, IoContext as _, Reason, Result};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

use crate::env::{self, Env};
use crate::output::Output;

/// The longest line that is taken from a program; what follows is a line of its own.
const MAX_LINE: u64 = 4096;

/// The last lines of a program are told with its failure.
const LAST_LINES: usize = 5;

/// How long a program that was asked to end may take.
const GRACE: Duration = Duration::from_secs(5);

/// How long is listened to what a program leaves behind: a service that it started may hold its output open.
const LEFT_BEHIND: Duration = Duration::from_millis(500);

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
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for kept in env::withheld() {
            command.env_remove(kept);
        }
        let mut child = command.spawn().map_err(|e| {
            let reason = match e.kind() {
                std::io::ErrorKind::NotFound => Reason::NotFound,
                std::io::ErrorKind::PermissionDenied => Reason::PermissionDenied,
                _ => Reason::Io,
            };
            Error::new(reason, format!("{} cannot be started", self.what))
                .with("program", name)
                .caused_by(e)
        })?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let last = Arc::<Mutex<VecDeque<String>>>::default();
        let mut ears = Vec::new();
        ears.extend(child.stdout.take().map(|pipe| self.listen(cx, pipe, output, &last)));
        ears.extend(child.stderr.take().map(|pipe| self.listen(cx, pipe, output, &last)));

        let limited = cx.within(self.timeout);
        let waited = limited
            .run(async { child.wait().await.doing(|| format!("cannot wait for {}", self.what)) })
            .await;
        let status = match waited {
            Ok(status) => status,
            Err(e) => {
                group.signal(Signal::TERM);
                let patient = cx.for_cleanup(GRACE);
                let ended = async { child.wait().await.doing(|| "cannot wait".to_owned()) };
                if patient.run(ended).await.is_err() {
                    group.signal(Signal::KILL);
                    drop(child.wait().await);
                }
                return Err(match e.reason() {
                    Reason::TimedOut if cx.check().is_ok() => Error::new(
                        Reason::TimedOut,
                        format!(
                            "{} did not end within {:?} and was ended",
                            self.what, self.timeout
                        ),
                    )
                    .with("program", name),
                    _ => e,
                });
            }
        };
        // It has ended by itself, and what it started lives on.
        group.forget();
        let patient = cx.for_cleanup(LEFT_BEHIND);
        for ear in ears {
            drop(patient.run(ear).await);
        }
        let last = last.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Ended { status, last: last.iter().cloned().collect::<Vec<_>>().join(" | ") })
    }

    /// Hand on what comes out of a pipe.
    fn listen(
        &self,
        cx: &Context,
        pipe: impl AsyncRead + Unpin + Send + 'static,
        output: &Arc<Output>,
        last: &Arc<Mutex<VecDeque<String>>>,
    ) -> Task<()> {
        let (output, last) = (Arc::clone(output), Arc::clone(last));
        let what = self.what.clone();
        cx.spawn(async move {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            loop {
                line.clear();
                let read = (&mut pipe).take(MAX_LINE).read_until(b'\n', &mut line).await;
                if !matches!(read, Ok(n) if n > 0) {
                    return Ok(());
                }
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if text.is_empty() {
                    continue;
                }
                output.note(format!("{what}: {text}"));
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.len() == LAST_LINES {
                    last.pop_front();
                }
                last.push_back(text);
            }
        })
    }
}

/// All processes that a program has started, ended with it when nobody waits for it any more.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // Whoever is gone needs no signal.
            let _ = kill_process_group(group, signal);
        }
    }

    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
