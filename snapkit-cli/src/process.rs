//! The process around a command: its runtime, its signals, its end.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use rustix::process::Signal;
use snapkit_core::context::{Context, System, Task};
use snapkit_core::error::{Error, IoContext as _, Reason, Result};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::app::App;
use crate::args::{Command, Common, EntryPoint};
use crate::commands;
use crate::env::{self, Env};
use crate::exit::{self, Exit};
use crate::output::{LogWriter, Manner, Output};
use crate::progress::Meter;

/// How long a command that changes nothing may take to end once it was asked to.
const READER_GRACE: Duration = Duration::from_millis(1500);
/// How long a command that may have to tidy up has. The engine's own limits are shorter, and hooks have theirs: each of
/// them runs, for as long as it was given.
const WRITER_GRACE: Duration = RESTORER_GRACE;
/// A target that was half changed gets its old state back.
const RESTORER_GRACE: Duration = Duration::from_secs(3600);
/// How long blocking work that nobody waits for any more may go on.
const LEFTOVER_GRACE: Duration = Duration::from_millis(100);
/// Signals that come within this time are one wish: `timeout` sends each of its own twice, to the program and to
/// its group.
const ONE_WISH: Duration = Duration::from_millis(500);

/// Keep what is in memory, keys above all, out of core dumps and debuggers.
pub(crate) fn harden() {
    // Where it can't be done, things are as they are for every other program.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    #[cfg(not(target_os = "linux"))]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::Core).maximum;
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum });
    }
}

/// Start anew with two allocation arenas that keep what is freed, if this is the first start.
///
/// glibc gives every thread an arena and keeps what is freed in each: with the large buffers that come and
/// go here that is more than the memory budget again, and a third of the time. What is at the end of an arena
/// it gives back to the kernel, which has to clear it before it is used a moment later: in a virtual machine
/// that takes a tenth of the time. Both can only be said in the environment. Where this cannot be done the
/// program just needs more memory and time.
pub(crate) fn tame_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::os::unix::process::CommandExt as _;
        // The last is of its own, because a loader that distrusts the environment removes the others.
        use crate::env::{ALLOCATOR, STARTED};
        let is_set = |name| std::env::var_os(name).is_some();
        if !is_set(STARTED) && !ALLOCATOR.into_iter().any(|(name, _)| is_set(name)) {
            let mut args = std::env::args_os();
            let mut again = std::process::Command::new("/proc/self/exe");
            if let Some(name) = args.next() {
                again.arg0(name);
            }
            drop(again.args(args).envs(ALLOCATOR).env(STARTED, "1").exec());
        }
    }
}

/// Run what the arguments ask for.
pub(crate) fn run(entry: EntryPoint) -> ExitCode {
    let common = &entry.common;
    let output = Output::new(Manner { json: common.json, quiet: common.quiet });
    let result = runtime().and_then(|runtime| {
        let result = runtime.block_on(supervise(entry, &output));
        runtime.shutdown_timeout(LEFTOVER_GRACE);
        result
    });
    if let Err(error) = &result {
        output.show_bar(None);
        output.failure(error);
    }
    match (result, output.finish()) {
        (Ok(exit), Ok(())) => exit.into(),
        (Err(error), _) => exit::failed(&error),
        (Ok(_), Err(error)) => {
            output.failure(&error);
            exit::failed(&error)
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let what = || "cannot start the threads of this program".to_owned();
    can_start_threads().doing(what).map_err(|e| {
        e.with_hint(
            "a limit on processes stands in the way (`ulimit -u`, TasksMax= of systemd, a container's)",
        )
    })?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build().doing(what)
}

/// Whether as many threads can be had as there are going to be workers. tokio panics when it does not get
/// one, and then waits for ever for those that it has.
fn can_start_threads() -> std::io::Result<()> {
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let gate = std::sync::Mutex::new(());
    std::thread::scope(|scope| {
        let _closed = gate.lock();
        let wait = || drop(gate.lock());
        (0..workers)
            .try_for_each(|_| std::thread::Builder::new().spawn_scoped(scope, wait).map(drop))
    })
}

/// Run a command, and end it when a signal asks for that.
async fn supervise(entry: EntryPoint, output: &Arc<Output>) -> Result<Exit> {
    let EntryPoint { common, command } = entry;
    let env = Arc::new(Env::load(common.env_file.as_deref())?);
    start_log(&common, &env, output)?;
    let meter = Meter::new(output, !common.no_progress);
    let cx = Context::new(Arc::new(System::new()), Arc::clone(&meter) as _);
    let grace = match &command {
        Command::Restore(_) => RESTORER_GRACE,
        command if command.only_reads() => READER_GRACE,
        _ => WRITER_GRACE,
    };
    let app = App::new(cx.clone(), common, env, Arc::clone(output), meter)?;

    // A file that may not grow any more is an error where it is written, and no sudden death.
    let _too_large = signal(SignalKind::from_raw(Signal::XFSZ.as_raw()))
        .doing(|| "cannot listen for signals".to_owned())?;
    let _signals = watch_signals(&cx, output, grace)?;
    // Not a task: what writes to standard output may have to wait for whoever reads it.
    match AssertUnwindSafe(commands::run(app, command)).catch_unwind().await {
        Ok(result) => result,
        Err(panic) => Err(Error::panicked(&*panic)),
    }
}

/// The first signal asks the work to stop. The second one ends the process, and so does the end of the
/// time that tidying up may take.
fn watch_signals(cx: &Context, output: &Arc<Output>, grace: Duration) -> Result<Task<()>> {
    let listen = |kind| signal(kind).doing(|| "cannot listen for signals".to_owned());
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let (inner, output) = (cx.clone(), Arc::clone(output));
    Ok(cx.spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            Ok(())
        };
        next().await?;
        inner.cancel();
        // Apart, so that a standard error that nobody reads does not keep the next signal from being heard.
        let _telling = inner.spawn(async move {
            output.show_bar(None);
            output.note("stopping; a second signal ends at once");
            Ok(())
        });
        let second = async {
            let first = inner.monotonic();
            loop {
                next().await?;
                if inner.monotonic().saturating_sub(first) >= ONE_WISH {
                    return Ok(());
                }
            }
        };
        // Either way there is no waiting any more.
        drop(inner.for_cleanup(grace).run(second).await);
        end_at_once()
    }))
}

#[expect(clippy::exit, reason = "somebody who asks twice does not want to wait")]
fn end_at_once() -> ! {
    std::process::exit(Reason::Cancelled.row().exit.into())
}

/// Log to standard error what `-v` or the environment asks for; nothing otherwise.
fn start_log(common: &Common, env: &Env, output: &Arc<Output>) -> Result<()> {
    let filter = match (env.text(env::LOG)?, common.verbose) {
        (Some(text), _) => text,
        (None, 0) => return Ok(()),
        (None, 1) => "info".to_owned(),
        (None, 2) => "debug".to_owned(),
        (None, _) => "trace".to_owned(),
    };
    let filter = EnvFilter::try_new(&filter).map_err(|e| {
        Error::new(Reason::InvalidConfig, format!("{} says {filter:?}", env::LOG)).caused_by(e)
    })?;
    let writer = LogWriter(Arc::clone(output));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .try_init()
        .map_err(|e| Error::internal("the log is started twice").caused_by(e))
}
