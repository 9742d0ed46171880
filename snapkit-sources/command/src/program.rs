//! Programs in the surroundings that they are promised: few variables, no secret in what they say, and an end.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use snapkit_core::artifact::ByteStream;
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::process::{Hear, Process};
use snapkit_core::secret::{Secret, SecretString};
use snapkit_core::{Error, Reason, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdin, ChildStdout, Command};

use crate::config::CommandConfig;

/// Variables that every program is given.
const HANDED_ON: [&str; 10] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"];

/// Variables that are known to be no secrets, so that messages may speak of servers and users.
const NO_SECRETS: [&str; 12] = [
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGUSER",
    "PGDATABASE",
    "PGSSLMODE",
    "PGSERVICE",
    "MYSQL_HOST",
    "MYSQL_TCP_PORT",
    "HOME",
    "PATH",
    "TZ",
];

/// Where programs are looked for if nobody says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The exit code that asks to be tried again later (`EX_TEMPFAIL` of `sysexits.h`).
const NOT_NOW: i32 = 75;

/// The longest answer that can be a fact.
const MAX_ANSWER: u64 = 4096;

/// The shortest value of a variable that is looked for in what programs say.
const MIN_SECRET: usize = 4;

/// How often is looked whether a program has read what it was given.
const DRAINING: Duration = Duration::from_millis(5);

/// Bytes that are taken from a program at once.
const READ: usize = 256 << 10;

/// What is taken out of what programs say.
struct Secrets(Vec<SecretString>);

impl Secrets {
    /// The values of variables, line by line, without what stands around them. The longest comes first: it may hold others.
    fn of(config: &CommandConfig) -> Self {
        let is_secret = |name: &String| !NO_SECRETS.contains(&name.as_str());
        let values = config.variables.iter().filter(|(name, _)| is_secret(name));
        let mut lines: Vec<_> = values
            .flat_map(|(_, value)| value.expose().lines())
            .map(|line| line.replace('\t', " ").trim().to_owned())
            .filter(|line| line.len() >= MIN_SECRET)
            .collect();
        lines.sort_by_key(|line| std::cmp::Reverse(line.len()));
        Self(lines.into_iter().map(Secret::new).collect())
    }

    fn hide(&self, text: String) -> String {
        self.0.iter().fold(text, |text, secret| text.replace(secret.expose(), "…"))
    }
}

/// Why a program was ended that took too long. The time that a run has is another thing.
const LATE: Reason = Reason::Unavailable;

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
        let secrets = Secrets::of(config);
        let hear: Hear = Arc::new(move |line| {
            let line = secrets.hide(line.replace('\t', " ")).trim_end().to_owned();
            if !line.is_empty() {
                tracing::info!("{what}: {line}");
            }
            line
        });
        let process = Process::start(cx, what, command, hear)?;
        let (timeout, end) = (config.timeout, cx.monotonic().saturating_add(config.timeout));
        Ok(Self { what, process, end, timeout })
    }

    /// That a program can be started at all. Nothing is.
    pub(crate) fn find(
        config: &CommandConfig,
        (what, words): (&'static str, &[String]),
    ) -> Result<()> {
        let Some(name) = words.first() else { return Ok(()) };
        let is_program = |path: &Path| {
            let found = std::fs::metadata(path);
            found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        };
        let is_there = if name.contains('/') {
            let base = config.directory.as_deref().unwrap_or(Path::new("."));
            is_program(&base.join(name))
        } else {
            let own = config.variables.get("PATH").map(|path| path.expose().into());
            let path = own.or_else(|| std::env::var_os("PATH")).unwrap_or_else(|| PATH.into());
            std::env::split_paths(&path).any(|directory| is_program(&directory.join(name)))
        };
        match is_there {
            true => Ok(()),
            false => {
                let e = Error::new(Reason::NotFound, format!("{what}: there is no such program"));
                Err(e.with("program", name))
            }
        }
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
                Err(self.tell(Error::new(LATE, late)))
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
                Err(self.tell(Error::new(LATE, self.late())))
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

/// What a program has answered.
pub(crate) struct Answer {
    pub(crate) status: ExitStatus,
    /// What it wrote, without what stands around it.
    pub(crate) text: String,
    name: String,
    said: String,
}

impl Answer {
    /// That it failed, in the place of a setting.
    pub(crate) fn failure(&self, what: &str, more: &str) -> Error {
        let e = Error::new(Reason::ProgramFailed, format!("{what} failed: {}{more}", self.status));
        let e = e.with("program", &self.name);
        if self.said.is_empty() { e } else { e.with("said", &self.said) }
    }
}

/// Have a program answer.
pub(crate) async fn ask(
    cx: &Context,
    config: &CommandConfig,
    program: (&'static str, &[String]),
) -> Result<Answer> {
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
    let text = Secrets::of(config).hide(String::from_utf8_lossy(&answer).into_owned());
    let text = text.trim().to_owned();
    let (name, said) = (running.process.name().to_owned(), running.process.last());
    Ok(Answer { status, text, name, said })
}

/// The same, of a program whose answer counts only if it ends with a success.
pub(crate) async fn answer(
    cx: &Context,
    config: &CommandConfig,
    (what, words): (&'static str, &[String]),
) -> Result<String> {
    let answer = ask(cx, config, (what, words)).await?;
    if answer.status.success() { Ok(answer.text) } else { Err(answer.failure(what, "")) }
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
    let fed = running.feed(cx, &mut content, &mut input, &mut took_all).await;
    if let Err(e) = fed {
        // It must not take for the end that nothing more comes.
        running.process.end(cx).await;
        return Err(e);
    }
    drop(input);
    running.succeed(cx).await?;
    Ok(took_all)
}

impl Running {
    /// Write all of the content, and wait until it was read.
    async fn feed(
        &mut self,
        cx: &Context,
        content: &mut ByteStream,
        input: &mut Option<ChildStdin>,
        took_all: &mut bool,
    ) -> Result<()> {
        while let Some(piece) = cx.run(content.try_next()).await? {
            let Some(pipe) = input.as_mut() else { continue };
            let write = async { Ok(pipe.write_all(&piece).await) };
            match self.in_time(cx, write).await? {
                Ok(()) => {}
                // It wants no more. How it ends says why.
                Err(_) => (*input, *took_all) = (None, false),
            }
        }
        // What still waits in the pipe was taken by nobody.
        while let Some(pipe) = input.as_ref() {
            if rustix::io::ioctl_fionread(pipe).unwrap_or(0) == 0 {
                break;
            }
            if self.process.has_ended() {
                *took_all = false;
                break;
            }
            self.in_time(cx, cx.sleep(DRAINING)).await?;
        }
        Ok(())
    }

    /// What is done for as long as the program may take.
    async fn in_time<T>(&self, cx: &Context, work: impl Future<Output = Result<T>>) -> Result<T> {
        let left = self.end.saturating_sub(cx.monotonic());
        cx.within(left).run(work).await.map_err(|e| match e.reason() {
            Reason::TimedOut if cx.check().is_ok() => self.tell(Error::new(LATE, self.late())),
            _ => e,
        })
    }
}
