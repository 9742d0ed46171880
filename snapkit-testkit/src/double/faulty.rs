//! A sink that fails when it is told to.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::key::Key;
use snapkit_core::sink::{ObjectStream, Put, PutMode, Sink, SinkInfo};

use crate::double::Verb;
use crate::random::Seeded;

/// Whether an operation that fails was done nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timing {
    /// It was not.
    Before,
    /// It was: only its answer was lost.
    After,
    /// The seed decides, each time.
    Either,
}

#[derive(Clone, Copy, Debug)]
enum When {
    Nth(u64),
    From(u64),
    Chance(f64),
}

/// When to fail, and how.
#[derive(Clone, Debug)]
pub struct Fault {
    when: When,
    verb: Option<Verb>,
    prefix: String,
    timing: Timing,
    reason: Reason,
    seed: u64,
}

impl Fault {
    fn new(when: When, seed: u64) -> Self {
        Self {
            when,
            verb: None,
            prefix: String::new(),
            timing: Timing::Before,
            reason: Reason::Unavailable,
            seed,
        }
    }

    /// Fail exactly the `k`-th operation, counted from 1, once.
    #[must_use]
    pub fn nth(k: u64) -> Self {
        Self::new(When::Nth(k), k)
    }

    /// Fail the `k`-th operation, counted from 1, and all that follow, as if the connection or the
    /// process was gone. With [`Fault::timing`] only the first of them may have been done.
    #[must_use]
    pub fn from(k: u64) -> Self {
        Self::new(When::From(k), k)
    }

    /// Fail each operation with this probability, the same ones for the same seed and order.
    #[must_use]
    pub fn random(seed: u64, probability: f64) -> Self {
        Self::new(When::Chance(probability), seed)
    }

    /// Count and fail only operations of this verb.
    #[must_use]
    pub fn of(mut self, verb: Verb) -> Self {
        self.verb = Some(verb);
        self
    }

    /// Count and fail only operations whose key begins with this text.
    #[must_use]
    pub fn under(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Whether the operation is done before it fails. [`Timing::Before`] unless said otherwise.
    #[must_use]
    pub fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// Do the operation, then fail: a time-out after success.
    #[must_use]
    pub fn after(self) -> Self {
        self.timing(Timing::After)
    }

    /// Fail with this reason. `unavailable` unless said otherwise.
    #[must_use]
    pub fn reason(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }

    fn counts(&self, verb: Verb, key: &str) -> bool {
        self.verb.is_none_or(|v| v == verb) && key.starts_with(&self.prefix)
    }

    /// Whether the `n`-th counted operation fails, and whether it is done first.
    fn strikes(&self, n: u64) -> Option<bool> {
        let mut random = Seeded::new(self.seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (strikes, may_be_done) = match self.when {
            When::Nth(k) => (n == k, true),
            When::From(k) => (n >= k, n == k),
            When::Chance(p) => (random.chance(p), true),
        };
        let done = match self.timing {
            Timing::Before => false,
            Timing::After => true,
            Timing::Either => random.chance(0.5),
        };
        strikes.then_some(may_be_done && done)
    }
}

#[derive(Debug, Default)]
struct Counts {
    fault: Option<Fault>,
    /// Operations since the beginning.
    all: u64,
    /// Operations that count for the fault, since it was set.
    counted: u64,
    failed: u64,
}

/// Passes everything on, and fails what its [`Fault`] says.
#[derive(Debug)]
pub struct FaultySink {
    inner: Arc<dyn Sink>,
    counts: Mutex<Counts>,
}

impl FaultySink {
    /// One that does not fail yet, and counts.
    #[must_use]
    pub fn new(inner: Arc<dyn Sink>) -> Self {
        Self { inner, counts: Mutex::default() }
    }

    /// One that fails as told.
    #[must_use]
    pub fn with(inner: Arc<dyn Sink>, fault: Fault) -> Self {
        let sink = Self::new(inner);
        sink.fail(fault);
        sink
    }

    /// From now on fail as told; operations are counted from here. Replaces an earlier fault.
    pub fn fail(&self, fault: Fault) {
        let mut counts = self.lock();
        counts.fault = Some(fault);
        counts.counted = 0;
    }

    /// From now on fail no more.
    pub fn heal(&self) {
        self.lock().fault = None;
    }

    /// How many operations there were since the beginning, failed ones included.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().all
    }

    /// How many were made to fail since the beginning.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.lock().failed
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plan(&self, verb: Verb, key: Option<&Key>) -> Plan {
        let key = key.map_or("", Key::as_str);
        let mut counts = self.lock();
        counts.all += 1;
        let all = counts.all;
        let Some(fault) = counts.fault.clone().filter(|f| f.counts(verb, key)) else {
            return Plan::Pass;
        };
        counts.counted += 1;
        let Some(done) = fault.strikes(counts.counted) else { return Plan::Pass };
        counts.failed += 1;
        let error = Error::new(fault.reason, "injected fault")
            .with("operation", all)
            .with("verb", format_args!("{verb:?}"))
            .with("key", key);
        if done { Plan::DoAndFail(error) } else { Plan::Fail(error) }
    }
}

enum Plan {
    Pass,
    Fail(Error),
    DoAndFail(Error),
}

impl Plan {
    async fn carry_out<T>(self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self {
            Self::Pass => work.await,
            Self::Fail(e) => Err(e),
            Self::DoAndFail(e) => match work.await {
                Ok(_) => Err(e),
                Err(real) => Err(real),
            },
        }
    }
}

#[async_trait]
impl Sink for FaultySink {
    fn info(&self) -> &SinkInfo {
        self.inner.info()
    }

    async fn put(&self, cx: &Context, key: &Key, data: Bytes, mode: PutMode) -> Result<Put> {
        self.plan(Verb::Put, Some(key)).carry_out(self.inner.put(cx, key, data, mode)).await
    }

    async fn get(&self, cx: &Context, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        self.plan(Verb::Get, Some(key)).carry_out(self.inner.get(cx, key, range)).await
    }

    /// A listing that fails after it was done fails as its last item.
    fn list(&self, cx: &Context, prefix: Option<&Key>) -> ObjectStream {
        match self.plan(Verb::List, prefix) {
            Plan::Pass => self.inner.list(cx, prefix),
            Plan::Fail(e) => stream::once(async { Err(e) }).boxed(),
            Plan::DoAndFail(e) => {
                self.inner.list(cx, prefix).chain(stream::once(async { Err(e) })).boxed()
            }
        }
    }

    async fn delete(&self, cx: &Context, key: &Key) -> Result<()> {
        self.plan(Verb::Delete, Some(key)).carry_out(self.inner.delete(cx, key)).await
    }
}
