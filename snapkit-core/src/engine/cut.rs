//! The cut: prepare all sources, pin one moment over them, let all go on.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;

use crate::context::Context;
use crate::engine::options::{Gate, Stack, StackSource};
use crate::error::{Error, Reason, Result};
use crate::manifest::SourceRecord;
use crate::source::{Capture, CaptureReport, Cut, FreezeSpeed, Source};

/// How long a thaw, an abort or the opening of a gate may take.
pub(crate) const CLEANUP_LIMIT: Duration = Duration::from_secs(30);

/// How long a target may take to be put right after the run was given up: an old state may have to be read back.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A source that takes part.
pub(crate) struct Participant {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) may_fail: bool,
    pub(crate) capture: Option<Box<dyn Capture>>,
    pub(crate) cut: Option<Cut>,
    /// Why it takes no further part.
    pub(crate) failure: Option<Error>,
    /// A freeze was tried: it has to be thawed.
    frozen: bool,
}

/// All sources of a run. If it is dropped with captures in it, they are thawed and aborted all the same,
/// and a gate that was closed is opened.
pub(crate) struct Cutting {
    cx: Context,
    pub(crate) participants: Vec<Participant>,
    /// The gate, while it may be closed.
    gate: Option<Arc<dyn Gate>>,
}

/// A panic of a source is an error of that source.
pub(crate) async fn guarded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|p| Err(Error::panicked(&*p)))
}

/// [`guarded`] work that ends what it consumes: it is begun even if the context ends at this very
/// moment, for what is dropped before it has begun is neither finished nor aborted.
pub(crate) async fn ending<T>(cx: &Context, work: impl Future<Output = Result<T>>) -> Result<T> {
    guarded(async {
        let mut work = std::pin::pin!(work);
        match futures_util::poll!(work.as_mut()) {
            Poll::Ready(result) => result,
            Poll::Pending => cx.run(work).await,
        }
    })
    .await
}

/// [`guarded`] work that, when the context ends, puts right by itself what it has begun: it is waited for then, and given
/// up only when it takes far too long for that.
pub(crate) async fn orderly<T>(cx: &Context, work: impl Future<Output = Result<T>>) -> Result<T> {
    let patience = async {
        let ended = cx.run(std::future::pending::<Result<()>>()).await;
        drop(cx.unhurried().sleep(PATIENCE).await);
        ended
    };
    guarded(async {
        tokio::select! {
            biased;
            result = work => result,
            ended = patience => Err(ended.err().unwrap_or_else(|| {
                Error::new(Reason::Cancelled, "cancelled")
            })),
        }
    })
    .await
}

impl Participant {
    /// Why the run must end, if this source is a reason.
    fn is_fatal(&self) -> bool {
        // One that was late for the cut has spoilt it for all. One that was late before can be left out.
        let ends = |e: &Error| match e.reason() {
            Reason::TimedOut => self.frozen,
            _ => e.is_cancelled(),
        };
        self.failure.as_ref().is_some_and(|e| !self.may_fail || ends(e))
    }

    /// Its name, and the position that it pinned.
    pub(crate) fn position(&self) -> Option<(String, String)> {
        let position = self.cut.as_ref()?.position.clone()?;
        Some((self.source.info().name.to_string(), position))
    }

    /// Release the source and learn what only the end knows.
    pub(crate) async fn finish(&mut self, cx: &Context) -> Result<CaptureReport> {
        // While it has not begun, an abort is still possible.
        cx.check()?;
        match self.capture.take() {
            Some(capture) => ending(cx, capture.finish(cx)).await,
            None => Err(Error::internal("a source has no capture")),
        }
    }

    /// Release the source without a result.
    pub(crate) async fn abort(&mut self, cx: &Context) {
        if let Some(capture) = self.capture.take()
            && let Err(e) = ending(cx, capture.abort(cx)).await
        {
            tracing::warn!(
                error = %e.chain(), source = %self.source.info().name, "a capture could not be released"
            );
        }
    }

    async fn thaw(&mut self, cx: &Context) {
        if !self.frozen {
            return;
        }
        let Some(capture) = self.capture.as_mut() else { return };
        if let Err(e) = guarded(cx.run(capture.thaw(cx))).await {
            self.failure.get_or_insert(e.with("source", &self.source.info().name));
        }
    }
}

impl Cutting {
    /// Do all slow preparation, on all sources at once. Every foreseeable error appears here.
    pub(crate) async fn prepare(
        cx: &Context,
        stack: &Stack,
        basis: &[Option<SourceRecord>],
    ) -> Result<Self> {
        let participants =
            stack.sources.iter().map(|StackSource { source, may_fail }| Participant {
                source: Arc::clone(source),
                may_fail: *may_fail,
                capture: None,
                cut: None,
                failure: None,
                frozen: false,
            });
        let mut cutting = Self { cx: cx.clone(), participants: participants.collect(), gate: None };
        // Each capture is in its place as soon as there is one: none is lost when this is dropped while
        // others are still preparing.
        let preparing = cutting.participants.iter_mut().zip(basis).map(|(p, basis)| async move {
            match guarded(cx.run(p.source.capture(cx, basis.as_ref()))).await {
                Ok(capture) => p.capture = Some(capture),
                Err(e) => p.failure = Some(e.with("source", &p.source.info().name)),
            }
        });
        join_all(preparing).await;
        cutting.check().await
    }

    /// End the run if a source has failed that may not.
    async fn check(mut self) -> Result<Self> {
        let fatal =
            self.participants.iter_mut().find(|p| p.is_fatal()).and_then(|p| p.failure.take());
        match fatal {
            Some(e) => {
                self.abort().await;
                Err(e)
            }
            None => Ok(self),
        }
    }

    /// Pin one moment over all sources: the slow ones first, then the instant ones, then thaw all. On
    /// every path all are thawed and the gate is opened.
    pub(crate) async fn take(
        mut self,
        gate: Option<&Arc<dyn Gate>>,
        window: Duration,
    ) -> Result<Self> {
        let cx = self.cx.within(window);
        let mut closed = Ok(());
        if let Some(gate) = gate {
            self.gate = Some(Arc::clone(gate));
            closed =
                guarded(cx.run(gate.close(&cx))).await.map_err(|e| late(&self.cx, &cx, window, e));
        }
        if closed.is_ok() {
            for speed in [FreezeSpeed::Slow, FreezeSpeed::Instant] {
                // Nobody is disturbed for a cut that is lost.
                if !self.participants.iter().any(Participant::is_fatal) {
                    self.freeze(&cx, window, speed).await;
                }
            }
        }
        thaw_all(&self.cx, &mut self.participants).await;
        let opened = self.open_gate().await;
        if let Err(e) = closed.and(opened) {
            self.abort().await;
            return Err(e);
        }
        let mut this = self.check().await?;
        let cuts = this.participants.iter().filter_map(|p| p.cut.as_ref());
        let first = cuts.clone().map(|c| c.begin).min();
        let last = cuts.map(|c| c.end).max();
        let width = first.zip(last).map_or(Duration::ZERO, |(a, b)| b.since(a));
        if width > window {
            this.abort().await;
            let millis = |time: Duration| time.as_secs_f64() * 1e3;
            return Err(Error::new(
                Reason::TimedOut,
                format!(
                    "the cut took {:.1} ms, the window is {:.1} ms",
                    millis(width),
                    millis(window)
                ),
            ));
        }
        Ok(this)
    }

    async fn freeze(&mut self, cx: &Context, window: Duration, speed: FreezeSpeed) {
        let outer = self.cx.clone();
        let freezing =
            self.participants.iter_mut().filter(|p| p.source.info().freeze == speed).map(
                |p| async {
                    let Some(capture) = p.capture.as_mut() else { return };
                    p.frozen = true;
                    match guarded(cx.run(capture.freeze(cx))).await {
                        Ok(cut) => p.cut = Some(cut),
                        Err(e) => {
                            let e = late(&outer, cx, window, e);
                            p.failure = Some(e.with("source", &p.source.info().name));
                        }
                    }
                },
            );
        join_all(freezing).await;
    }

    async fn open_gate(&mut self) -> Result<()> {
        let Some(gate) = &self.gate else { return Ok(()) };
        let opened = open(&self.cx, gate).await;
        self.gate = None;
        opened
    }

    /// Release every source that is not released yet.
    pub(crate) async fn abort(&mut self) {
        abort_all(&self.cx, &mut self.participants).await;
    }
}

/// What is to be said when a window was too short, in the place of a limit that nobody knows.
fn late(outer: &Context, cx: &Context, window: Duration, e: Error) -> Error {
    // Not when the whole run is ending.
    if e.reason() != Reason::TimedOut || outer.check().is_err() || cx.check().is_ok() {
        return e;
    }
    let what = format!("the window of {window:?} in which all are to be frozen has passed");
    Error::new(Reason::TimedOut, what).caused_by(e).with_hint(
        "try again when less is going on, or make `window` in `[consistency]` of the stack file longer",
    )
}

async fn thaw_all(cx: &Context, participants: &mut [Participant]) {
    let cx = cx.for_cleanup(CLEANUP_LIMIT);
    join_all(participants.iter_mut().map(|p| p.thaw(&cx))).await;
}

/// Open a gate, with time of its own: a thaw that hung must not keep it closed.
async fn open(cx: &Context, gate: &Arc<dyn Gate>) -> Result<()> {
    let cx = cx.for_cleanup(CLEANUP_LIMIT);
    guarded(cx.run(gate.open(&cx))).await
}

async fn abort_all(cx: &Context, participants: &mut [Participant]) {
    let cx = cx.for_cleanup(CLEANUP_LIMIT);
    join_all(participants.iter_mut().map(|p| p.abort(&cx))).await;
}

impl Drop for Cutting {
    fn drop(&mut self) {
        let gate = self.gate.take();
        let mut participants = std::mem::take(&mut self.participants);
        if gate.is_none() && participants.iter().all(|p| p.capture.is_none()) {
            return;
        }
        // Not a `Cutting` again: a runtime that is shutting down drops what is given to it at once.
        let cx = self.cx.clone();
        self.cx.spawn_detached(async move {
            thaw_all(&cx, &mut participants).await;
            if let Some(gate) = gate {
                drop(open(&cx, &gate).await);
            }
            abort_all(&cx, &mut participants).await;
        });
    }
}
