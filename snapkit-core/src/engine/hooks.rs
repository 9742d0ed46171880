//! Hooks: what an embedding program does around a run, such as pausing an application or telling somebody.
//!
//! A hook that was due runs on every path: when the run fails, is cancelled, panics or is dropped.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

use crate::context::Context;
use crate::engine::cut::guarded;
use crate::error::{Error, Reason, Result};
use crate::id::SnapshotId;
use crate::manifest::SourceRecord;

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Moment {
    /// All sources are prepared, and are about to be pinned. An error ends the run.
    BeforeFreeze,
    /// All sources are pinned and thawed, or the cut was given up: whatever the other hook paused goes on.
    AfterThaw,
    /// A restore is about to examine its targets. An error ends it before anything has changed.
    BeforeRestore,
    /// All targets are restored and compared. Not after a restore that failed.
    AfterRestore,
    /// The run has failed.
    Failed,
    /// The run has ended, however.
    Finally,
}

impl Moment {
    /// Every moment there is.
    pub const ALL: [Self; 6] = [
        Self::BeforeFreeze,
        Self::AfterThaw,
        Self::BeforeRestore,
        Self::AfterRestore,
        Self::Failed,
        Self::Finally,
    ];

    /// The word for it, such as `before:freeze`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BeforeFreeze => "before:freeze",
            Self::AfterThaw => "after:thaw",
            Self::BeforeRestore => "before:restore",
            Self::AfterRestore => "after:restore",
            Self::Failed => "failed",
            Self::Finally => "finally",
        }
    }
}

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// It creates a snapshot.
    Create,
    /// It restores one.
    Restore,
}

impl Operation {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Restore => "restore",
        }
    }
}

/// What a hook is told.
#[derive(Clone, Debug)]
pub struct Occasion {
    /// When it runs.
    pub moment: Moment,
    /// What the run does.
    pub operation: Operation,
    /// The snapshot that is being created or restored, unless the run failed before it had one. One that is being
    /// created may never come to be.
    pub snapshot: Option<SnapshotId>,
    /// The stack's name.
    pub stack: String,
    /// Which set of its sources.
    pub set: String,
    /// What is known of the positions that sources pinned, by the sources' names.
    pub positions: BTreeMap<String, String>,
    /// What the run amounts to, once that is known.
    pub verdict: Option<&'static str>,
    /// Why the run failed, if it did: the reason, and the error with its causes in a line.
    pub failure: Option<(Reason, String)>,
}

impl Occasion {
    /// Of a run of a stack and a set, of which nothing more is known.
    #[must_use]
    pub fn new(operation: Operation, stack: &str, set: &str) -> Self {
        Self {
            moment: Moment::Finally,
            operation,
            snapshot: None,
            stack: stack.to_owned(),
            set: set.to_owned(),
            positions: BTreeMap::new(),
            verdict: None,
            failure: None,
        }
    }

    pub(crate) fn of(operation: Operation, snapshot: &SnapshotId, stack: &str, set: &str) -> Self {
        Self { snapshot: Some(snapshot.clone()), ..Self::new(operation, stack, set) }
    }

    /// Take over the positions that sources pinned.
    pub(crate) fn learn<'a>(&mut self, records: impl Iterator<Item = &'a SourceRecord>) {
        for record in records {
            if let Some(position) = record.cut.as_ref().and_then(|cut| cut.position.clone()) {
                self.positions.insert(record.name.to_string(), position);
            }
        }
    }
}

/// What an embedding program does around a run.
#[async_trait]
pub trait Hooks: Debug + Send + Sync + 'static {
    /// Do what is due. [`Reason::NotNow`] before a freeze or a restore means that the run should be tried again
    /// later, which is no failure. Limits its own time: the context has no deadline when a run is tidied up.
    async fn run(&self, cx: &Context, occasion: &Occasion) -> Result<()>;
}

/// Examines whether what was restored works.
#[async_trait]
pub trait Probe: Debug + Send + Sync + 'static {
    /// Its name, for people.
    fn name(&self) -> &str;

    /// An error says what does not work. Limits its own time.
    async fn probe(&self, cx: &Context) -> Result<()>;
}

/// Run what is due after a run that failed before the engine had anything to do with it, because there is no
/// repository or no key. Gives what the hooks did not manage.
pub async fn give_up(
    cx: &Context,
    hooks: Arc<dyn Hooks>,
    occasion: Occasion,
    failure: &Error,
) -> Vec<Error> {
    Attendance::new(cx, Some(hooks), occasion).end(Some(failure)).await
}

/// The hooks of one run, with what is still due.
pub(crate) struct Attendance {
    cx: Context,
    hooks: Option<Arc<dyn Hooks>>,
    pub(crate) occasion: Occasion,
    /// Something was paused before the freeze.
    is_paused: bool,
    /// The run has not been told to have ended.
    is_running: bool,
}

impl Attendance {
    pub(crate) fn new(cx: &Context, hooks: Option<Arc<dyn Hooks>>, occasion: Occasion) -> Self {
        let is_running = hooks.is_some();
        Self { cx: cx.clone(), hooks, occasion, is_paused: false, is_running }
    }

    /// Run what is due at a moment from which the run can still go either way.
    pub(crate) async fn before(&mut self, moment: Moment) -> Result<()> {
        let Some(hooks) = self.hooks.clone() else { return Ok(()) };
        self.is_paused = moment == Moment::BeforeFreeze;
        self.occasion.moment = moment;
        let cx = self.cx.clone();
        guarded(cx.run(hooks.run(&cx, &self.occasion))).await
    }

    /// What was paused before the freeze goes on, whatever has become of the run.
    pub(crate) async fn after_thaw(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.is_paused) {
            return Ok(());
        }
        self.after(Moment::AfterThaw).await
    }

    /// Run what is due at a moment that is reached for good: a cancellation does not keep it from running.
    pub(crate) async fn after(&mut self, moment: Moment) -> Result<()> {
        let Some(hooks) = &self.hooks else { return Ok(()) };
        self.occasion.moment = moment;
        attend(&self.cx, hooks, &self.occasion).await
    }

    /// The run has ended. Gives what the hooks did not manage.
    pub(crate) async fn end(mut self, failure: Option<&Error>) -> Vec<Error> {
        self.occasion.failure = failure.map(|e| (e.reason(), e.chain()));
        let mut failed = Vec::new();
        failed.extend(self.after_thaw().await.err());
        if failure.is_some_and(|e| e.reason() != Reason::NotNow) {
            failed.extend(self.after(Moment::Failed).await.err());
        }
        self.is_running = false;
        failed.extend(self.after(Moment::Finally).await.err());
        failed
    }
}

async fn attend(cx: &Context, hooks: &Arc<dyn Hooks>, occasion: &Occasion) -> Result<()> {
    let cx = cx.unhurried();
    guarded(hooks.run(&cx, occasion)).await
}

impl Drop for Attendance {
    fn drop(&mut self) {
        let Some(hooks) = self.hooks.take().filter(|_| self.is_running) else { return };
        let (cx, mut occasion, is_paused) =
            (self.cx.clone(), self.occasion.clone(), self.is_paused);
        occasion
            .failure
            .get_or_insert_with(|| (Reason::Cancelled, "the run was given up".to_owned()));
        self.cx.spawn_detached(async move {
            let paused = is_paused.then_some(Moment::AfterThaw);
            for moment in paused.into_iter().chain([Moment::Failed, Moment::Finally]) {
                occasion.moment = moment;
                if let Err(e) = attend(&cx, &hooks, &occasion).await {
                    tracing::warn!(error = %e.chain(), hook = moment.as_str(), "a hook failed");
                }
            }
        });
    }
}
