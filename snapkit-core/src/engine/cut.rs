//! The cut: prepare all sources, pin one moment over them, let all go on.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;

use crate::context::Context;
use crate::engine::options::{Gate, Stack, StackSource};
use crate::error::{Error, Reason, Result};
use crate::manifest::SourceRecord;
use crate::source::{Capture, Cut, FreezeSpeed, Source};

/// How long a thaw, an abort or the opening of a gate may take.
pub(crate) const CLEANUP_LIMIT: Duration = Duration::from_secs(30);

/// A source that takes part.
pub(crate) struct Participant {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) may_fail: bool,
    pub(crate) capture: Option<Box<dyn Capture>>,
    pub(crate) cut: Option<Cut>,
    /// Why it takes no further part.
    pub(crate) failure: Option<Error>,
}

/// All sources of a run. If it is dropped with captures in it, they are thawed and aborted all the same.
pub(crate) struct Cutting {
    cx: Context,
    pub(crate) participants: Vec<Participant>,
    /// From the first pin to the last.
    pub(crate) width: Duration,
}

/// A panic of a source is an error of that source.
pub(crate) async fn guarded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|p| Err(Error::panicked(&*p)))
}

impl Cutting {
    /// Do all slow preparation, on all sources at once. Every foreseeable error appears here.
    pub(crate) async fn prepare(
        cx: &Context,
        stack: &Stack,
        basis: &[Option<SourceRecord>],
    ) -> Result<Self> {
        let prepared = join_all(stack.sources.iter().zip(basis).map(|(s, basis)| async move {
            guarded(cx.run(s.source.capture(cx, basis.as_ref()))).await
        }))
        .await;
        let mut cutting = Self { cx: cx.clone(), participants: Vec::new(), width: Duration::ZERO };
        for (StackSource { source, may_fail }, result) in stack.sources.iter().zip(prepared) {
            let (capture, failure) = match result {
                Ok(capture) => (Some(capture), None),
                Err(e) => (None, Some(e.with("source", &source.info().name))),
            };
            cutting.participants.push(Participant {
                source: Arc::clone(source),
                may_fail: *may_fail,
                capture,
                cut: None,
                failure,
            });
        }
        cutting.check().await
    }

    /// End the run if a source has failed that may not.
    async fn check(mut self) -> Result<Self> {
        let fatal = self
            .participants
            .iter_mut()
            .find(|p| p.failure.as_ref().is_some_and(|e| !p.may_fail || e.is_cancelled()))
            .and_then(|p| p.failure.take());
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
        gate: Option<&dyn Gate>,
        window: Duration,
    ) -> Result<Self> {
        let cx = self.cx.within(window);
        let mut closed = Ok(());
        if let Some(gate) = gate {
            closed = guarded(cx.run(gate.close(&cx))).await;
        }
        if closed.is_ok() {
            for speed in [FreezeSpeed::Slow, FreezeSpeed::Instant] {
                self.freeze(&cx, speed).await;
            }
        }
        let cleanup = self.cx.for_cleanup(CLEANUP_LIMIT);
        self.thaw(&cleanup).await;
        let mut opened = Ok(());
        if let Some(gate) = gate {
            opened = guarded(cleanup.run(gate.open(&cleanup))).await;
        }
        if let Err(e) = closed.and(opened) {
            self.abort().await;
            return Err(e);
        }
        let cuts = self.participants.iter().filter_map(|p| p.cut.as_ref());
        let first = cuts.clone().map(|c| c.begin).min();
        let last = cuts.map(|c| c.end).max();
        self.width = first.zip(last).map_or(Duration::ZERO, |(a, b)| b.since(a));
        if self.width > window {
            self.abort().await;
            return Err(Error::new(
                Reason::TimedOut,
                format!("the cut took {:?}, the window is {window:?}", self.width),
            ));
        }
        self.check().await
    }

    async fn freeze(&mut self, cx: &Context, speed: FreezeSpeed) {
        let freezing = self
            .participants
            .iter_mut()
            .filter(|p| p.source.info().freeze == speed)
            .map(|p| async {
                let Some(capture) = p.capture.as_mut() else { return };
                match guarded(cx.run(capture.freeze(cx))).await {
                    Ok(cut) => p.cut = Some(cut),
                    Err(e) => p.failure = Some(e.with("source", &p.source.info().name)),
                }
            });
        join_all(freezing).await;
    }

    async fn thaw(&mut self, cx: &Context) {
        let thawing = self.participants.iter_mut().map(|p| async {
            let Some(capture) = p.capture.as_mut() else { return };
            if let Err(e) = guarded(cx.run(capture.thaw(cx))).await {
                p.failure.get_or_insert(e.with("source", &p.source.info().name));
            }
        });
        join_all(thawing).await;
    }

    /// Release everything.
    pub(crate) async fn abort(&mut self) {
        let cx = self.cx.for_cleanup(CLEANUP_LIMIT);
        abort_all(&cx, self.participants.iter_mut().filter_map(|p| p.capture.take()).collect()).await;
    }
}

async fn abort_all(cx: &Context, captures: Vec<Box<dyn Capture>>) {
    join_all(captures.into_iter().map(|capture| async move {
        if let Err(e) = guarded(cx.run(capture.abort(cx))).await {
            tracing::warn!(error = %e.chain(), "a capture could not be released");
        }
    }))
    .await;
}

impl Drop for Cutting {
    fn drop(&mut self) {
        let captures: Vec<_> = self.participants.iter_mut().filter_map(|p| p.capture.take()).collect();
        if !captures.is_empty() {
            let cx = self.cx.for_cleanup(CLEANUP_LIMIT);
            cx.clone().spawn_detached(async move {
                let mut captures = captures;
                for capture in &mut captures {
                    drop(guarded(cx.run(capture.thaw(&cx))).await);
                }
                abort_all(&cx, captures).await;
            });
        }
    }
}
