//! Programs that are started for a source, a hook or a probe: limited in time, ended with all that they started, and
//! heard when they complain.

use std::collections::VecDeque;
use std::fmt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::context::{Context, Task};
use crate::error::{Error, IoContext as _, Reason, Result};

/// The longest line that is taken from a program; what follows is a line of its own.
const MAX_LINE: u64 = 4096;

/// How many lines are remembered, to be told with a failure.
const LAST_LINES: usize = 5;

/// How long a program that was asked to end may take.
const GRACE: Duration = Duration::from_secs(5);

/// How long is listened to what a program leaves behind: a service that it started may hold its output open.
const LEFT_BEHIND: Duration = Duration::from_millis(500);

/// What becomes of a line that a program says: it is given the line, and gives what is remembered of it.
pub type Hear = Arc<dyn Fn(String) -> String + Send + Sync>;

/// A program that runs. When this is dropped, it and all that it started is killed.
pub struct Process {
    what: String,
    name: String,
    child: Child,
    group: Group,
    hear: Hear,
    last: Arc<Mutex<VecDeque<String>>>,
    ears: Vec<Task<()>>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("what", &self.what).finish_non_exhaustive()
    }
}

impl Process {
    /// Start a program in a process group of its own, and hear what it says on standard error. `what` is what it is
    /// called in messages. `not-found`, `permission-denied` or `io` if it cannot be started.
    pub fn start(cx: &Context, what: &str, mut command: Command, hear: Hear) -> Result<Self> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        command.stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| {
            let reason = match e.kind() {
                std::io::ErrorKind::NotFound => Reason::NotFound,
                std::io::ErrorKind::PermissionDenied => Reason::PermissionDenied,
                _ => Reason::Io,
            };
            Error::new(reason, format!("{what} cannot be started"))
                .with("program", &name)
                .caused_by(e)
        })?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let stderr = child.stderr.take();
        let what = what.to_owned();
        let (last, ears) = (Arc::default(), Vec::new());
        let mut this = Self { what, name, child, group, hear, last, ears };
        this.ears.extend(stderr.map(|pipe| this.listen(cx, pipe)));
        Ok(this)
    }

    /// Its standard input, if it is a pipe and was not taken.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its standard output, if it is a pipe and was not taken.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Hear also what it says on standard output.
    pub fn hear_output(&mut self, cx: &Context) {
        let stdout = self.stdout();
        self.ears.extend(stdout.map(|pipe| self.listen(cx, pipe)));
    }

    /// Wait for its end. If the context ends before, so does the program: `timed-out` or `cancelled`.
    pub async fn wait(&mut self, cx: &Context) -> Result<ExitStatus> {
        let (child, what) = (&mut self.child, &self.what);
        let ended = async { child.wait().await.doing(|| format!("cannot wait for {what}")) };
        let status = match cx.run(ended).await {
            Ok(status) => status,
            Err(e) => {
                self.end(cx).await;
                return Err(e);
            }
        };
        // It has ended by itself, and what it started lives on.
        self.group.forget();
        let patient = cx.for_cleanup(LEFT_BEHIND);
        for ear in self.ears.drain(..) {
            drop(patient.run(ear).await);
        }
        Ok(status)
    }

    /// Ask it to end, and kill it with all that it started if it has not within five seconds.
    pub async fn end(&mut self, cx: &Context) {
        self.group.signal(Signal::TERM);
        let child = &mut self.child;
        let patient = cx.for_cleanup(GRACE);
        let ended = async { child.wait().await.doing(|| "cannot wait".to_owned()) };
        let has_ended = patient.run(ended).await.is_ok();
        // Also what it has left behind.
        self.group.signal(Signal::KILL);
        if !has_ended {
            drop(self.child.wait().await);
        }
        // Its number may soon be another's.
        self.group.forget();
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// What it was started as.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The last lines that it said.
    #[must_use]
    pub fn last(&self) -> String {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.iter().cloned().collect::<Vec<_>>().join(" | ")
    }

    fn listen(&self, cx: &Context, pipe: impl AsyncRead + Unpin + Send + 'static) -> Task<()> {
        let (hear, last) = (Arc::clone(&self.hear), Arc::clone(&self.last));
        cx.spawn(async move {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            loop {
                line.clear();
                let read = (&mut pipe).take(MAX_LINE).read_until(b'\n', &mut line).await;
                if !matches!(read, Ok(n) if n > 0) {
                    return Ok(());
                }
                let text = String::from_utf8_lossy(&line);
                let text = hear(text.trim_end_matches(['\n', '\r']).to_owned());
                if text.trim().is_empty() {
                    continue;
                }
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

    fn forget(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
