//! The log of how scripted sources are called.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use snapkit_core::artifact::{ArtifactName, SourceName};
use snapkit_core::context::Context;

/// What a source was called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// `Source::capture`.
    Capture,
    /// `Capture::freeze`.
    Freeze,
    /// The freeze was done: what is pinned stays pinned.
    Frozen,
    /// `Capture::thaw`.
    Thaw,
    /// `Capture::next`.
    Next,
    /// `Capture::open`.
    Open,
    /// The middle of a body: of a byte stream's bytes, or of a tree's entries.
    Read,
    /// `Capture::finish`.
    Finish,
    /// `Capture::abort`.
    Abort,
    /// A capture was dropped without `finish` or `abort`.
    Dropped,
    /// `Source::restore`.
    Restore,
    /// A restore was opened, and has to be ended.
    RestoreOpened,
    /// `Restore::put`.
    Put,
    /// `Restore::finish`.
    RestoreFinish,
    /// `Restore::abort`.
    RestoreAbort,
    /// A restore was dropped without `finish` or `abort`.
    RestoreDropped,
    /// `Source::facts`.
    Facts,
    /// `Source::check`.
    Check,
}

/// One call to a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which source.
    pub source: SourceName,
    /// Which capture or restore of that source, counted from 1; 0 for calls outside of one.
    pub session: u64,
    /// What for.
    pub stage: Stage,
    /// About which artifact.
    pub artifact: Option<ArtifactName>,
    /// When, by the context's monotonic clock.
    pub at: Duration,
}

/// The calls to one source, or to several that share it, in order. Clones are the same log.
#[derive(Clone, Debug, Default)]
pub struct CallLog(Arc<Mutex<Vec<Call>>>);

impl CallLog {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(
        &self,
        cx: &Context,
        source: &SourceName,
        session: u64,
        stage: Stage,
        artifact: Option<&ArtifactName>,
    ) {
        self.push(source, session, stage, artifact, cx.monotonic());
    }

    pub(super) fn push(
        &self,
        source: &SourceName,
        session: u64,
        stage: Stage,
        artifact: Option<&ArtifactName>,
        at: Duration,
    ) {
        let (source, artifact) = (source.clone(), artifact.cloned());
        self.lock().push(Call { source, session, stage, artifact, at });
    }

    /// All calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.lock().clone()
    }

    /// What a source was called for, in order.
    #[must_use]
    pub fn stages(&self, source: &str) -> Vec<Stage> {
        self.lock().iter().filter(|c| c.source.as_str() == source).map(|c| c.stage).collect()
    }

    /// How often a source was called for this.
    #[must_use]
    pub fn count(&self, source: &str, stage: Stage) -> usize {
        self.stages(source).iter().filter(|s| **s == stage).count()
    }

    /// Panics unless both calls happened and the last of the first kind came before the first of the
    /// second.
    #[track_caller]
    pub fn assert_before(&self, first: (&str, Stage), second: (&str, Stage)) {
        let calls = self.lock();
        let is = |c: &Call, (source, stage): (&str, Stage)| {
            c.source.as_str() == source && c.stage == stage
        };
        let a = calls.iter().rposition(|c| is(c, first));
        let b = calls.iter().position(|c| is(c, second));
        assert!(
            matches!((a, b), (Some(a), Some(b)) if a < b),
            "{first:?} does not come before {second:?}: {calls:#?}"
        );
    }

    /// Panics unless every capture and restore that was opened was ended by `finish` or `abort`, once
    /// and as its last call, and every freeze that was tried was followed by a thaw.
    #[track_caller]
    pub fn assert_released(&self) {
        let mut sessions: BTreeMap<(SourceName, u64), Vec<Stage>> = BTreeMap::new();
        for call in self.calls().into_iter().filter(|c| c.session > 0) {
            sessions.entry((call.source, call.session)).or_default().push(call.stage);
        }
        for ((source, session), stages) in sessions {
            let at = |stage| stages.iter().rposition(|s| *s == stage);
            let ends = [Stage::Finish, Stage::Abort, Stage::RestoreFinish, Stage::RestoreAbort];
            let ended = stages.iter().filter(|s| ends.contains(s)).count();
            let opened = at(Stage::RestoreOpened).is_some()
                || stages.first() == Some(&Stage::Capture) && stages.len() > 1;
            let last = stages.last().is_some_and(|s| ends.contains(s));
            assert!(
                !opened || (ended == 1 && last),
                "session {session} of {source} was not ended by finish or abort: {stages:?}"
            );
            if let Some(freeze) = at(Stage::Freeze) {
                assert!(
                    at(Stage::Thaw).is_some_and(|thaw| thaw > freeze),
                    "session {session} of {source} was frozen and not thawed: {stages:?}"
                );
            }
        }
    }
}
