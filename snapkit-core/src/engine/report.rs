//! What happened: the results of the engine's operations, ready for `--json`.

use std::time::Duration;

use serde::Serialize;

use crate::error::Error;
use crate::facts::{Comparison, RestoreVerdict};
use crate::id::{RepositoryFingerprint, RepositoryId, SnapshotId};
use crate::manifest::{CaptureVerdict, Head, Marker, Snapshot};

/// A repository was made.
#[derive(Clone, Debug, Serialize)]
pub struct InitReport {
    /// Where.
    pub location: String,
    /// Its identity.
    pub repository: RepositoryId,
    /// What pins it.
    pub fingerprint: RepositoryFingerprint,
    /// Whether the sink honours create-only puts.
    pub create_only: bool,
}

/// A snapshot was created.
#[derive(Debug, Serialize)]
pub struct CreateReport {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// Hooks that failed although the snapshot was committed.
    #[serde(serialize_with = "in_lines")]
    pub hooks_failed: Vec<Error>,
    /// Whether nothing was kept.
    pub dry_run: bool,
}

/// What the ledger holds.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Snapshots, newest first. See [`Repository::snapshot`](crate::engine::Repository::snapshot) for all that
    /// one says.
    pub snapshots: Vec<Head>,
    /// Snapshots that this credential cannot read, newest first.
    pub sealed: Vec<SnapshotId>,
    /// What stands where snapshots stood.
    pub markers: Vec<Marker>,
    /// Lines that are damaged.
    pub damaged: Vec<(SnapshotId, Error)>,
    /// Notes that are damaged: tags that were changed later may be missing.
    pub damaged_notes: Vec<(String, Error)>,
    /// Snapshots that this machine has seen and that have no line any more: never by snapkit's doing.
    /// What was accepted with [`Repository::accept_loss`](crate::engine::Repository::accept_loss) is not in
    /// this nor in the two lists that follow.
    pub gone: Vec<SnapshotId>,
    /// Snapshots that other snapshots name as the one before, and that have no line.
    pub missing: Vec<SnapshotId>,
    /// Snapshots that stand where this machine has seen a marker: somebody put an old version back, and
    /// what they need may have been removed since.
    pub returned: Vec<SnapshotId>,
}

/// A source was restored.
#[derive(Clone, Debug, Serialize)]
pub struct SourceRestored {
    /// Its name.
    pub source: String,
    /// Its kind.
    pub kind: String,
    /// Where to, for people.
    pub target: String,
    /// What it amounts to.
    pub verdict: RestoreVerdict,
    /// The facts compared.
    pub comparison: Comparison,
    /// What was found different beyond facts, and what could not be set, each in a line.
    pub problems: Vec<String>,
    /// How many problems there were.
    pub problem_count: u64,
    /// What was deliberately done or left out.
    pub notes: Vec<String>,
    /// What is damaged in the repository and was left out.
    pub damaged: Vec<String>,
    /// What brings the old state back.
    pub undo: Vec<String>,
    /// Bytes of content handed to the target.
    pub bytes: u64,
}

/// A snapshot was restored.
#[derive(Debug, Serialize)]
pub struct RestoreSummary {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// What its capture amounted to.
    pub captured: CaptureVerdict,
    /// Its sources, in the order in which their targets changed. To undo it, begin with the last.
    pub sources: Vec<SourceRestored>,
    /// The worst of their verdicts.
    pub verdict: RestoreVerdict,
    /// Whether something damaged was left out.
    pub damaged: bool,
    /// What went wrong after the targets of `sources` had been changed. Those of the other sources are as
    /// they were.
    #[serde(serialize_with = "in_a_line")]
    pub failed: Option<Error>,
    /// What the probes said, in their order.
    pub probes: Vec<Probed>,
    /// Hooks that failed although the targets were restored.
    #[serde(serialize_with = "in_lines")]
    pub hooks_failed: Vec<Error>,
    /// Whether nothing was done, only said.
    pub dry_run: bool,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// What a probe said of a restored system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probed {
    /// Its name.
    pub name: String,
    /// What does not work, if anything does not.
    pub failure: Option<String>,
}

/// One thing found wrong in a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The object: its key.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// What is lost by it: snapshots, sources, artifacts and paths, the first hundred.
    pub lost: Vec<String>,
    /// How many things are lost by it.
    pub lost_count: u64,
}

/// A repository was verified.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VerifyReport {
    /// What is wrong.
    pub damage: Vec<Damage>,
    /// What is odd but costs nothing, such as packs of interrupted runs.
    pub notes: Vec<String>,
    /// Snapshots examined.
    pub snapshots: u64,
    /// Chunks examined, each once.
    pub chunks: u64,
    /// Packs examined.
    pub packs: u64,
    /// Bytes read from the sink.
    pub bytes_read: u64,
    /// Whether all content was read.
    pub read_data: bool,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
}

pub(crate) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

fn in_lines<S: serde::Serializer>(errors: &[Error], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(errors.iter().map(Error::chain))
}

fn in_a_line<S: serde::Serializer>(e: &Option<Error>, s: S) -> Result<S::Ok, S::Error> {
    e.as_ref().map(Error::chain).serialize(s)
}
