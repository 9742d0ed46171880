//! The contract of a source: capture, restore and examine one live system.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::artifact::{ArtifactMeta, ArtifactName, Body, SourceName};
use crate::context::{Context, Timestamp};
use crate::error::{Error, Result};
use crate::facts::{Difference, Facts};
use crate::manifest::SourceRecord;

/// How long a source takes to pin a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FreezeSpeed {
    /// Milliseconds: it is frozen last.
    Instant,
    /// Seconds: it is frozen first, and the instant ones wait for it.
    Slow,
}

/// Identity and limits of a source. Free to ask for, no I/O.
#[derive(Clone, Debug)]
pub struct SourceInfo {
    /// Its name in the stack.
    pub name: SourceName,
    /// Its kind, such as `sqlite`: what the registry builds it from.
    pub kind: String,
    /// Settings without secrets, enough to build a source that can restore: written into the
    /// snapshot, so that a restore needs no stack file.
    pub settings: serde_json::Value,
    /// How many bodies of one capture may be read at once. At least 1.
    pub concurrency: usize,
    /// How long it takes to pin a moment.
    pub freeze: FreezeSpeed,
}

/// What a capture is a capture of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// One moment.
    Point,
    /// Each part is whole, but parts may be of different moments within the run.
    Fuzzy,
}

/// The moment that a source pinned, in its own terms: evidence, written into the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The moment is not before this.
    pub begin: Timestamp,
    /// The moment is not after this.
    pub end: Timestamp,
    /// What was achieved, not what was hoped for.
    pub consistency: Consistency,
    /// A replication offset, a sequence number, …, in the source's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
}

/// Where a restore goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Where it was captured.
    Original,
    /// Files below this directory, which exists and is this source's own.
    Directory(PathBuf),
    /// Another server.
    Url(String),
}

/// What a restore is asked to do.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// Where it goes.
    pub target: Target,
    /// What the snapshot says about this source.
    pub record: SourceRecord,
    /// Whether what was damaged when it was captured is put back as it is.
    pub allow_damage: bool,
    /// Whether a target that holds something may be replaced. The old state is kept in `recovery`.
    pub overwrite: bool,
    /// Where a source that replaces something keeps the old state: an existing private directory.
    pub recovery: Option<PathBuf>,
    /// Whether the repository's content is trusted to set rights that let others act as somebody
    /// else: setuid and setgid bits, file capabilities, devices.
    pub trusted: bool,
    /// Whether only a part is being restored, so that what is not put must be left alone and facts
    /// of the whole prove nothing.
    pub partial: bool,
    /// Whether the target is read back when everything is in place. Costs one read of it.
    pub read_back: bool,
}

impl RestoreRequest {
    /// Restore everything to an empty place, trusting nothing.
    #[must_use]
    pub fn new(target: Target, record: SourceRecord) -> Self {
        Self {
            target,
            record,
            allow_damage: false,
            overwrite: false,
            recovery: None,
            trusted: false,
            partial: false,
            read_back: true,
        }
    }
}

/// What only the end of a capture knows.
#[non_exhaustive]
#[derive(Debug, Default)]
pub struct CaptureReport {
    /// Facts of exactly what was captured, and of the live system about then.
    pub facts: Facts,
    /// What is wrong with the system itself, although it was captured as it is: a place, in the source's
    /// terms, and why. The snapshot is `partial` then.
    pub problems: Vec<(String, Error)>,
}

impl From<Facts> for CaptureReport {
    fn from(facts: Facts) -> Self {
        Self { facts, problems: Vec::new() }
    }
}

/// What a restore did.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Facts of what now lives in the target: read back from it, not remembered. Empty if no
    /// reading back was asked for.
    pub facts: Facts,
    /// Facts of what was captured that such a target cannot answer for, because they are of a live system, while the content
    /// is proven by the others.
    pub beside: BTreeSet<String>,
    /// What reading back found that is not what was put, beyond what facts say.
    pub differences: Vec<Difference>,
    /// What could not be set or put, each in a line.
    pub problems: Vec<String>,
    /// How many problems there were; more than are listed, if there are too many.
    pub problem_count: u64,
    /// What was deliberately done or left out, each in a line, such as setuid bits not set.
    pub notes: Vec<String>,
    /// The command or steps that bring the old state back, if something was replaced.
    pub undo: Vec<String>,
}

/// One thing found wrong by a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Where, in the source's terms.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

/// What a check found. Empty: it would restore.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// Add one.
    pub fn add(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.0.push(Finding { place: place.into(), what: what.into() });
    }
}

/// A system whose state can be captured, restored and examined.
///
/// Dropping any returned future must be safe at every await point: that is how work is cancelled.
#[async_trait]
pub trait Source: Debug + Send + Sync + 'static {
    /// Identity and limits. No I/O.
    fn info(&self) -> &SourceInfo;

    /// Do all slow preparation (connect, check rights, versions and space) and return a session.
    /// Every foreseeable error appears here, before anything is held.
    ///
    /// `basis` is what this source recorded last time: a hint, which may be ignored.
    async fn capture(&self, cx: &Context, basis: Option<&SourceRecord>)
    -> Result<Box<dyn Capture>>;

    /// Examine the target and open it for a restore. Nothing visible changes before
    /// [`Restore::finish`], where the system allows that. A target that holds something is refused
    /// with `target-not-empty` unless the request says otherwise.
    async fn restore(&self, cx: &Context, request: &RestoreRequest) -> Result<Box<dyn Restore>>;

    /// Facts of the live system, now.
    async fn facts(&self, cx: &Context) -> Result<Facts>;

    /// Examine whether `body` would restore, without touching the live system. The body is read to
    /// its end. An `Err` means that the check could not be done.
    async fn check(&self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<Findings>;
}

/// One capture: `freeze → thaw → (next → open)* → finish`, or `abort` at any point.
#[async_trait]
pub trait Capture: Send + Sync {
    /// Pin one moment. Quick: other sources wait until all have pinned.
    async fn freeze(&mut self, cx: &Context) -> Result<Cut>;

    /// Let the system go on; what was pinned stays readable. Called after `freeze` was attempted,
    /// whether it succeeded or not, on every path; calling it again does nothing.
    async fn thaw(&mut self, cx: &Context) -> Result<()>;

    /// The next artifact, in a stable order, or `None` at the end. No content is read for it.
    async fn next(&mut self, cx: &Context) -> Result<Option<ArtifactMeta>>;

    /// The content of an artifact that `next` returned. Not called for one found unchanged, and a second time
    /// for none: what a program writes is there once. The body owns what it needs; up to [`SourceInfo::concurrency`] are read at once.
    async fn open(&self, cx: &Context, name: &ArtifactName) -> Result<Body>;

    /// Release everything and say what only the end knows.
    async fn finish(self: Box<Self>, cx: &Context) -> Result<CaptureReport>;

    /// Release everything after a failure or a cancellation.
    async fn abort(self: Box<Self>, cx: &Context) -> Result<()>;
}

/// One restore: `put* → finish`, or `abort` at any point.
#[async_trait]
pub trait Restore: Send {
    /// Take one artifact. Its body was verified piece by piece: damage appears as an error of the
    /// body before any wrong byte does. An error of `put` ends the restore with `abort`.
    async fn put(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()>;

    /// Make what was put visible, all or nothing where the system allows, and read it back.
    async fn finish(self: Box<Self>, cx: &Context) -> Result<RestoreReport>;

    /// Leave the target as it was found, as far as the system allows.
    async fn abort(self: Box<Self>, cx: &Context) -> Result<()>;
}
