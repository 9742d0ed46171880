//! Programs in the surroundings that they are promised: few variables, no secret in what they say, and an end.

use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use snapkit_core::artifact::ByteStream;
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::process::{Hear, Process};
use snapkit_core::{Error, Reason, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdout, Command};

use crate::config::CommandConfig;

/// Variables that every program is given.
const HANDED_ON: [&str; 10] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"];

/// Where programs are looked for if nobody says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The exit code that asks to be tried again later (`EX_TEMPFAIL` of `sysexits.h`).
const NOT_NOW: i32 = 75;

/// The longest answer that can be a fact.
const MAX_ANSWER: u64 = 4096;

/// The shortest value of a variable that is looked for in what programs say.
const MIN_SECRET: usize = 4;

/// Bytes that are taken from a program at once.
const READ: usize = 256 << 10;

/// A program that is given or asked something.
pub(crate) struct Running {
    /// Which setting names it.
    what: &'static str,
    process: Process,
    /// When it must have ended, on the context's clock.
    end: Duration,
    timeout: Duration,
}

impl Running {
    /// Start the program that a setting names. `invalid-config` if it names none.
    pub(crate) fn start(
        cx: &Context,
        config: &CommandConfig,
        (what, words): (&'static str, &[String]),
        stdin: Stdio,
    ) -> Result<Self> {
        let (name, arguments) = words.split_first().ok_or_else(|| {
            Error::new(Reason::InvalidConfig, format!("{what} names no program"))
                .with_hint("programs stand in the stack file, and are in no snapshot")
        })?;
        let mut command = Command::new(name);
        command.args(arguments).stdin(stdin).stdout(Stdio::piped()).env_clear().env("PATH", PATH);
        let handed_on = HANDED_ON.into_iter().chain(config.env.iter().map(String::as_str));
        for name in handed_on {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.envs(config.variables.iter().map(|(name, value)| (name, value.expose())));
        if let Some(directory) = &config.directory {
            command.current_dir(directory);
        }
        let secrets: Vec<_> = config.variables.values().cloned().collect();
        let hear: Hear = Arc::new(move |mut line| {
            for secret in secrets.iter().filter(|secret| secret.expose().len() >= MIN_SECRET) {
                line = line.replace(secret.expose(), "…");
            }
            tracing::info!("{what}: {line}");
            line
        });
        let process = Process::start(cx, what, command, hear)?;
        let (timeout, end) = (config.timeout, cx.monotonic().saturating_add(config.timeout));
        Ok(Self { what, process, end, timeout })
    }

    /// What it writes.
    pub(crate) fn output(&mut self) -> Result<ChildStdout> {
        self.process.stdout().ok_or_else(|| Error::internal("a program has no standard output"))
    }

    /// The next that it writes, or `None` at the end of its output. It may write nothing for `idle`.
    pub(crate) async fn read(
        &mut self,
        cx: &Context,
        output: &mut ChildStdout,
        idle: Duration,
    ) -> Result<Option<Bytes>> {
        let mut bytes = BytesMut::with_capacity(READ);
        let what = self.what;
        let read = async {
            let read = output.read_buf(&mut bytes).await;
            read.doing(|| format!("cannot read what {what} writes"))
        };
        let left = self.end.saturating_sub(cx.monotonic());
        match cx.within(idle.min(left)).run(read).await {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(bytes.freeze())),
            Err(e) => {
                self.process.end(cx).await;
                if e.reason() != Reason::TimedOut || cx.check().is_err() {
                    return Err(e);
                }
                let late = match left > idle {
                    true => format!("{what} has written nothing for {idle:?} and was ended"),
                    false => self.late(),
                };
                Err(self.tell(Error::new(Reason::TimedOut, late)))
            }
        }
    }

    /// It is not wanted any more.
    pub(crate) async fn end(&mut self, cx: &Context) {
        self.process.end(cx).await;
    }

    /// Wait for its end.
    pub(crate) async fn wait(&mut self, cx: &Context) -> Result<ExitStatus> {
        let left = self.end.saturating_sub(cx.monotonic());
        match self.process.wait(&cx.within(left)).await {
            Err(e) if e.reason() == Reason::TimedOut && cx.check().is_ok() => {
                Err(self.tell(Error::new(Reason::TimedOut, self.late())))
            }
            ended => ended,
        }
    }

    /// Wait for its end, which must be a success.
    pub(crate) async fn succeed(&mut self, cx: &Context) -> Result<()> {
        let status = self.wait(cx).await?;
        if status.success() {
            return Ok(());
        }
        Err(self.failure(status))
    }

    fn failure(&self, status: ExitStatus) -> Error {
        let what = self.what;
        self.tell(match status.code() {
            Some(NOT_NOW) => Error::new(Reason::NotNow, format!("{what} asks to be tried later")),
            _ => Error::new(Reason::ProgramFailed, format!("{what} failed: {status}")),
        })
    }

    fn late(&self) -> String {
        format!("{} did not end within {:?} and was ended", self.what, self.timeout)
    }

    fn tell(&self, e: Error) -> Error {
        let e = e.with("program", self.process.name());
        match self.process.last() {
            last if last.is_empty() => e,
            last => e.with("said", last),
        }
    }
}

/// What a program answers: how it ended, and the text that it wrote, without what stands around it.
pub(crate) async fn ask(
    cx: &Context,
    config: &CommandConfig,
    program: (&'static str, &[String]),
) -> Result<(ExitStatus, String)> {
    let mut running = Running::start(cx, config, program, Stdio::null())?;
    let mut output = running.output()?;
    let mut answer = Vec::new();
    while let Some(piece) = running.read(cx, &mut output, config.idle).await? {
        if (answer.len() + piece.len()) as u64 > MAX_ANSWER {
            running.process.end(cx).await;
            let what = format!("an answer has more than {MAX_ANSWER} bytes");
            return Err(running.tell(Error::new(Reason::LimitExceeded, what)));
        }
        answer.extend_from_slice(&piece);
    }
    let status = running.wait(cx).await?;
    Ok((status, String::from_utf8_lossy(&answer).trim().to_owned()))
}

/// The same, of a program whose answer counts only if it ends with a success.
pub(crate) async fn answer(
    cx: &Context,
    config: &CommandConfig,
    (what, words): (&'static str, &[String]),
) -> Result<String> {
    let (status, answer) = ask(cx, config, (what, words)).await?;
    if status.success() {
        return Ok(answer);
    }
    let name = words.first().map_or("", String::as_str);
    let e = Error::new(Reason::ProgramFailed, format!("{what} failed: {status}"));
    Err(e.with("program", name))
}

/// Give content to a program, and wait for its success. Whether it took all of it. The content is read to its end however
/// little of it the program wants: who reads it may have to know that it is whole.
pub(crate) async fn feed(
    cx: &Context,
    config: &CommandConfig,
    program: (&'static str, &[String]),
    mut content: ByteStream,
) -> Result<bool> {
    let mut running = Running::start(cx, config, program, Stdio::piped())?;
    running.process.hear_output(cx);
    let mut input = running.process.stdin();
    let mut took_all = true;
    while let Some(piece) = cx.run(content.try_next()).await? {
        let Some(pipe) = &mut input else { continue };
        let write = async { Ok(pipe.write_all(&piece).await) };
        let left = running.end.saturating_sub(cx.monotonic());
        match cx.within(left).run(write).await {
            Ok(Ok(())) => {}
            // It wants no more. How it ends says why.
            Ok(Err(_)) => (input, took_all) = (None, false),
            Err(e) => {
                running.process.end(cx).await;
                return Err(match e.reason() {
                    Reason::TimedOut if cx.check().is_ok() => {
                        running.tell(Error::new(Reason::TimedOut, running.late()))
                    }
                    _ => e,
                });
            }
        }
    }
    drop(input);
    running.succeed(cx).await?;
    Ok(took_all)
}
