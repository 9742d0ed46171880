//! What every operation is given from above: cancellation, deadline, clock, randomness, progress,
//! and the only ways to start work on the side.
//!
//! Nothing in this crate reads a clock, draws a random number or starts a task in any other way.
//! With a [`Simulated`] environment on a single-threaded runtime a run therefore repeats exactly.

use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::ops::Add;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Reason, Result};
use crate::progress::{Progress, Silent};

/// Nanoseconds since 1970-01-01T00:00:00Z, by a wall clock. In documents it is RFC 3339 text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The time between `earlier` and this; zero if the clock went back.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    fn calendar(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0))
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// Read RFC 3339 text.
    pub fn parse(text: &str) -> Result<Self> {
        OffsetDateTime::parse(text, &Rfc3339)
            .ok()
            .and_then(|t| i64::try_from(t.unix_timestamp_nanos()).ok())
            .map(Self)
            .ok_or_else(|| {
                Error::invalid(format!("not a time such as 2026-01-15T14:30:00Z: {text:?}"))
            })
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.calendar().format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Where time and randomness come from, and whether work may leave the thread.
pub trait Environment: fmt::Debug + Send + Sync + 'static {
    /// The wall clock. It may jump.
    fn now(&self) -> Timestamp;
    /// A clock that only goes forward, from an arbitrary start.
    fn monotonic(&self) -> Duration;
    /// Fill with random bytes fit for keys.
    fn fill_random(&self, buffer: &mut [u8]) -> Result<()>;
    /// How many cores may compute at once; one computation more may be begun. `None` means that work stays on
    /// the caller's thread, in order.
    fn parallelism(&self) -> Option<NonZeroUsize>;
}

/// The real machine.
#[derive(Debug)]
pub struct System {
    start: tokio::time::Instant,
    parallelism: NonZeroUsize,
}

impl System {
    /// As many computing threads as the machine has cores.
    #[must_use]
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { start: tokio::time::Instant::now(), parallelism: cores }
    }
}

impl Default for System {
    fn default() -> Self {
        Self::new()
    }
}

impl Environment for System {
    #[expect(clippy::disallowed_methods, reason = "the one place where the wall clock is read")]
    fn now(&self) -> Timestamp {
        let nanos = match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            Ok(d) => i64::try_from(d.as_nanos()).unwrap_or(i64::MAX),
            Err(e) => i64::try_from(e.duration().as_nanos()).map_or(i64::MIN, |n| -n),
        };
        Timestamp(nanos)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn fill_random(&self, buffer: &mut [u8]) -> Result<()> {
        getrandom::fill(buffer).map_err(|e| {
            Error::new(Reason::Unavailable, "the operating system gives no randomness").caused_by(e)
        })
    }

    fn parallelism(&self) -> Option<NonZeroUsize> {
        Some(self.parallelism)
    }
}

/// A repeatable environment: randomness from a seed, time from tokio's clock (which tests pause),
/// all work on the caller's thread. For tests and simulations, never for real keys.
#[derive(Debug)]
pub struct Simulated {
    start: tokio::time::Instant,
    epoch: Timestamp,
    random: Mutex<blake3::OutputReader>,
}

impl Simulated {
    /// An environment that repeats for the same seed.
    #[must_use]
    pub fn new(seed: u64, epoch: Timestamp) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("snapkit simulated randomness");
        hasher.update(&seed.to_le_bytes());
        Self {
            start: tokio::time::Instant::now(),
            epoch,
            random: Mutex::new(hasher.finalize_xof()),
        }
    }
}

impl Environment for Simulated {
    fn now(&self) -> Timestamp {
        self.epoch + self.start.elapsed()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn fill_random(&self, buffer: &mut [u8]) -> Result<()> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).fill(buffer);
        Ok(())
    }

    fn parallelism(&self) -> Option<NonZeroUsize> {
        None
    }
}

/// Cancellation, deadline, clock, randomness, progress and tasks. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    environment: Arc<dyn Environment>,
    cancel: CancellationToken,
    deadline: Option<Duration>,
    progress: Arc<dyn Progress>,
    compute: Arc<Semaphore>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("environment", &self.environment)
            .field("cancelled", &self.cancel.is_cancelled())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl Context {
    /// A context on the real machine that tells nobody its progress.
    #[must_use]
    pub fn system() -> Self {
        Self::new(Arc::new(System::new()), Arc::new(Silent))
    }

    /// A context from its parts.
    #[must_use]
    pub fn new(environment: Arc<dyn Environment>, progress: Arc<dyn Progress>) -> Self {
        // One more than there are cores: it begins while another's thread is being put to sleep or woken.
        let threads = environment.parallelism().map_or(1, |n| n.get() + 1);
        Self {
            environment,
            cancel: CancellationToken::new(),
            deadline: None,
            progress,
            compute: Arc::new(Semaphore::new(threads)),
        }
    }

    /// The same, with another receiver of progress.
    #[must_use]
    pub fn with_progress(&self, progress: Arc<dyn Progress>) -> Self {
        Self { progress, ..self.clone() }
    }

    /// A context that is cancelled with this one and can be cancelled alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { cancel: self.cancel.child_token(), ..self.clone() }
    }

    /// A child that also ends when `limit` has passed, or earlier if this one does.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        let end = self.monotonic().saturating_add(limit);
        Self { deadline: Some(self.deadline.map_or(end, |d| d.min(end))), ..self.child() }
    }

    /// A context for tidying up: not cancelled with this one, but limited in time, so that a thaw or
    /// an abort runs on every path and still cannot hang.
    #[must_use]
    pub fn for_cleanup(&self, limit: Duration) -> Self {
        let end = self.monotonic().saturating_add(limit);
        Self { cancel: CancellationToken::new(), deadline: Some(end), ..self.clone() }
    }

    /// A context for what must be done however the rest ends, and that limits its own time: not cancelled with
    /// this one, and without its deadline.
    #[must_use]
    pub fn unhurried(&self) -> Self {
        Self { cancel: CancellationToken::new(), deadline: None, ..self.clone() }
    }

    /// Ask everything under this context to stop.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// The token behind [`Context::cancel`].
    #[must_use]
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancel
    }

    /// An error if the work should stop.
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(Reason::Cancelled, "cancelled"));
        }
        match self.deadline {
            Some(d) if self.monotonic() >= d => {
                Err(Error::new(Reason::TimedOut, "the time limit has passed"))
            }
            _ => Ok(()),
        }
    }

    /// Drive a future until it is done, the context is cancelled or its deadline passes. The future
    /// is dropped in the latter cases.
    pub async fn run<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        self.check()?;
        let late = async {
            match self.deadline {
                Some(d) => tokio::time::sleep_until(self.instant(d)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::new(Reason::Cancelled, "cancelled")),
            result = future => result,
            () = late => Err(Error::new(Reason::TimedOut, "the time limit has passed")),
        }
    }

    fn instant(&self, at: Duration) -> tokio::time::Instant {
        tokio::time::Instant::now() + at.saturating_sub(self.monotonic())
    }

    /// Wait, unless the context ends first.
    pub async fn sleep(&self, time: Duration) -> Result<()> {
        let until = tokio::time::Instant::now() + time;
        self.run(async {
            tokio::time::sleep_until(until).await;
            Ok(())
        })
        .await
    }

    /// The wall clock. It may jump: never measure with it.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.environment.now()
    }

    /// A clock that only goes forward.
    #[must_use]
    pub fn monotonic(&self) -> Duration {
        self.environment.monotonic()
    }

    /// Fill with random bytes fit for keys.
    pub fn fill_random(&self, buffer: &mut [u8]) -> Result<()> {
        self.environment.fill_random(buffer)
    }

    /// Random bytes fit for keys.
    pub fn random<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill_random(&mut bytes)?;
        Ok(bytes)
    }

    /// Receiver of progress.
    #[must_use]
    pub fn progress(&self) -> &dyn Progress {
        &*self.progress
    }

    /// How many cores compute at once.
    #[must_use]
    pub fn parallelism(&self) -> usize {
        self.environment.parallelism().map_or(1, NonZeroUsize::get)
    }

    /// Start a task. It is aborted when the returned handle is dropped.
    #[expect(clippy::disallowed_methods, reason = "the one place where tasks are started")]
    pub fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Task<T> {
        Task(tokio::spawn(future))
    }

    /// Start tidying up from a place that cannot wait, such as a `Drop`. Without a runtime nothing is
    /// started.
    pub(crate) fn spawn_detached(&self, future: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(future));
        }
    }

    /// Run a computation on another thread, at most one more than [`Context::parallelism`] at once; in a
    /// simulated environment here and now. Once begun it runs to its end.
    pub async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if self.environment.parallelism().is_none() {
            return work();
        }
        // The wait for a thread is a task of its own: a future that is not being polled must not sit on a
        // permit that others need.
        let (this, compute) = (self.clone(), Arc::clone(&self.compute));
        self.spawn(async move {
            let permit = compute
                .acquire_owned()
                .await
                .map_err(|_| Error::internal("the computing threads are gone"))?;
            this.blocking(move || {
                let result = work();
                drop(permit);
                result
            })
            .await
        })
        .await
    }

    /// Run work that blocks on the operating system away from the tasks; in a simulated environment
    /// here and now. Once begun it runs to its end.
    #[expect(clippy::disallowed_methods, reason = "the one place where blocking work is started")]
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if self.environment.parallelism().is_none() {
            return work();
        }
        Task(tokio::task::spawn_blocking(work)).await
    }
}

/// A running task. Await it for its result; drop it to abort it. A panic in it is an error here.
#[derive(Debug)]
pub struct Task<T>(tokio::task::JoinHandle<Result<T>>);

impl<T> Future for Task<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|joined| match joined {
            Ok(result) => result,
            Err(e) if e.is_panic() => Err(Error::panicked(&*e.into_panic())),
            Err(_) => Err(Error::new(Reason::Cancelled, "cancelled")),
        })
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deadlines_and_cancellation_end_a_run() {
        let cx = Context::new(Arc::new(Simulated::new(1, Timestamp(0))), Arc::new(Silent));
        let short = cx.within(Duration::from_secs(2));
        let e = short.run(std::future::pending::<Result<()>>()).await.unwrap_err();
        assert_eq!(e.reason(), Reason::TimedOut);
        assert_eq!(cx.monotonic(), Duration::from_secs(2));

        let child = cx.child();
        cx.cancel();
        assert_eq!(child.check().unwrap_err().reason(), Reason::Cancelled);
        assert!(child.for_cleanup(Duration::from_secs(1)).check().is_ok());
    }

    #[tokio::test]
    async fn a_panicking_task_is_an_error() {
        let cx = Context::system();
        let e = cx.compute(|| -> Result<()> { panic!("boom") }).await.unwrap_err();
        assert_eq!(e.reason(), Reason::Panicked);
        assert!(e.to_string().contains("boom"));
    }

    #[test]
    fn times_read_back() {
        let t = Timestamp(1_768_487_400_123_456_789);
        assert_eq!(t.to_string(), "2026-01-15T14:30:00.123456789Z");
        assert_eq!(Timestamp::parse(&t.to_string()).unwrap(), t);
        assert!(Timestamp::parse("yesterday").is_err());
    }

    #[tokio::test]
    async fn simulated_randomness_repeats() {
        let draw = || {
            let cx = Context::new(Arc::new(Simulated::new(9, Timestamp(0))), Arc::new(Silent));
            (cx.random::<16>().unwrap(), cx.random::<16>().unwrap())
        };
        assert_eq!(draw(), draw());
        assert_ne!(draw().0, draw().1);
    }
}
