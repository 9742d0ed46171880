//! The contract of a manifest, the ledger of a repository's snapshots, and the document that is a
//! snapshot. A snapshot exists if and only if its line is in the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::pin::Pin;

use async_trait::async_trait;
use futures_core::Stream;
use serde::{Deserialize, Serialize};

use crate::artifact::{ArtifactMeta, SourceName};
use crate::context::{Context, Timestamp};
use crate::error::Result;
use crate::facts::Facts;
use crate::id::{ChunkId, CredentialId, SnapshotId};
use crate::source::{Cut, SourceInfo};

/// What a capture amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureVerdict {
    /// Everything asked for is in it.
    Complete,
    /// Something listed is missing.
    Partial,
    /// A source that the stack allows to fail is missing.
    Failed,
}

impl CaptureVerdict {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
            Self::Failed => "failed",
        }
    }
}

/// A piece of content: which chunk, and how long it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ChunkRef {
    /// Its name.
    pub id: ChunkId,
    /// Its length in bytes, 1 to 8 MiB.
    pub len: u32,
}

/// Content as a list of chunks. A long list is itself content: at depth `n` the chunks, put together,
/// are the encoded list of depth `n - 1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkList {
    /// Length of the content in bytes.
    pub size: u64,
    /// How often the list was itself stored as content. At most 8.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub depth: u8,
    /// The chunks of the outermost list.
    pub chunks: Vec<ChunkRef>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(n: &u8) -> bool {
    *n == 0
}

/// Where an artifact's content is.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "shape")]
pub enum ContentRef {
    /// A byte stream.
    Bytes {
        /// Its bytes.
        content: ChunkList,
    },
    /// A tree.
    Tree {
        /// Its encoded entries; a chunk holds whole entries.
        entries: ChunkList,
        /// How many entries there are.
        count: u64,
        /// How many of them are files with content.
        files: u64,
        /// Bytes of content in all files.
        bytes: u64,
    },
    /// A sequence of records.
    Records {
        /// The encoded records; a chunk holds whole ones.
        records: ChunkList,
        /// The names of the axes on which each has a place.
        axes: Vec<String>,
        /// How many there are.
        count: u64,
        /// Bytes of all values.
        bytes: u64,
    },
}

impl ContentRef {
    /// Bytes of content.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Bytes { content } => content.size,
            Self::Tree { bytes, .. } | Self::Records { bytes, .. } => *bytes,
        }
    }

    /// The outermost list: of the bytes, the entries or the records.
    #[must_use]
    pub fn list(&self) -> &ChunkList {
        match self {
            Self::Bytes { content } => content,
            Self::Tree { entries, .. } => entries,
            Self::Records { records, .. } => records,
        }
    }
}

/// An artifact in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRecord {
    /// What the source said about it.
    pub meta: ArtifactMeta,
    /// Where its content is.
    pub content: ContentRef,
    /// SHA-256 of a byte stream, in hexadecimal, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl ArtifactRecord {
    /// An artifact whose digest was not asked for.
    #[must_use]
    pub fn new(meta: ArtifactMeta, content: ContentRef) -> Self {
        Self { meta, content, sha256: None }
    }
}

/// One thing that could not be captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where, for people.
    pub place: String,
    /// The reason code.
    pub reason: String,
    /// What happened, with its causes.
    pub text: String,
}

/// What could not be captured: a count, and the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problems {
    /// How many there were.
    pub count: u64,
    /// The first [`Problems::LISTED`] of them.
    pub listed: Vec<Problem>,
}

impl Problems {
    /// How many are listed at most.
    pub const LISTED: usize = 1000;

    /// Count one, and list it if there is room.
    pub fn add(&mut self, place: impl Into<String>, error: &crate::error::Error) {
        self.count += 1;
        if self.listed.len() < Self::LISTED {
            self.listed.push(Problem {
                place: place.into(),
                reason: error.reason().code().to_owned(),
                text: error.chain(),
            });
        }
    }
}

/// A source in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Its name in the stack.
    pub name: SourceName,
    /// Its kind.
    pub kind: String,
    /// Settings without secrets, enough to restore.
    #[serde(default)]
    pub settings: serde_json::Value,
    /// The moment that it pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
    /// Its artifacts, in the order in which the source named them.
    pub artifacts: Vec<ArtifactRecord>,
    /// What it said about the state.
    pub facts: Facts,
    /// What its capture amounts to.
    pub verdict: CaptureVerdict,
    /// What could not be captured.
    #[serde(default)]
    pub problems: Problems,
    /// What its capture cost.
    #[serde(default)]
    pub stats: SourceStats,
}

impl SourceRecord {
    /// A source of which nothing has been captured yet.
    #[must_use]
    pub fn new(info: &SourceInfo) -> Self {
        Self {
            name: info.name.clone(),
            kind: info.kind.clone(),
            settings: info.settings.clone(),
            cut: None,
            artifacts: Vec::new(),
            facts: Facts::new(),
            verdict: CaptureVerdict::Complete,
            problems: Problems::default(),
            stats: SourceStats::default(),
        }
    }

    /// Bytes of content in all its artifacts.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.artifacts.iter().fold(0, |sum, a| sum.saturating_add(a.content.bytes()))
    }
}

/// What the capture of one source cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStats {
    /// Bytes read from it.
    pub bytes_read: u64,
    /// Bytes of chunks that were new to the repository, before compression.
    pub bytes_new: u64,
    /// Bytes of these as they are stored, without what packs and index add.
    pub bytes_stored: u64,
}

/// What a capture cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStats {
    /// Entries of all trees.
    pub entries: u64,
    /// Files opened and read.
    pub files_read: u64,
    /// Files taken over unread.
    pub files_unchanged: u64,
    /// Bytes of content in the snapshot.
    pub bytes: u64,
    /// Bytes read from the sources.
    pub bytes_read: u64,
    /// Chunks new to the repository.
    pub chunks_new: u64,
    /// Bytes of new chunks, before compression.
    pub bytes_new: u64,
    /// Bytes handed to the sink, everything included, up to the commit.
    pub bytes_stored: u64,
    /// Packs of interrupted runs that were taken over.
    pub packs_adopted: u64,
}

/// The document that is a snapshot. Immutable once committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id, and that of the session that made it.
    pub id: SnapshotId,
    /// The newest snapshot that its writer saw in the ledger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<SnapshotId>,
    /// The stack's name.
    pub stack: String,
    /// The host that captured it.
    pub host: String,
    /// Which set of the stack's sources; `full` is all.
    pub set: String,
    /// A name that a person gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Keys and values that a person gave.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// When the run began.
    pub started: Timestamp,
    /// When it was ready to commit.
    pub finished: Timestamp,
    /// From the first moment of a source to the last, in microseconds: how wide the cut is. A source that
    /// is fuzzy counts until its last byte was read.
    pub cut_micros: u64,
    /// The sources.
    pub sources: Vec<SourceRecord>,
    /// What the capture amounts to.
    pub verdict: CaptureVerdict,
    /// What it cost.
    pub stats: CaptureStats,
    /// The program that made it.
    pub program: String,
}

impl Snapshot {
    /// The source of this name.
    #[must_use]
    pub fn source(&self, name: &str) -> Option<&SourceRecord> {
        self.sources.iter().find(|s| s.name.as_str() == name)
    }

    /// How many things could not be captured.
    #[must_use]
    pub fn problem_count(&self) -> u64 {
        self.sources.iter().fold(0, |sum, s| sum.saturating_add(s.problems.count))
    }
}

/// What a list tells of a snapshot: enough to choose it. The rest is read when it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The snapshot's id.
    pub id: SnapshotId,
    /// The newest snapshot that its writer saw in the ledger.
    pub previous: Option<SnapshotId>,
    /// The stack's name.
    pub stack: String,
    /// The host that captured it.
    pub host: String,
    /// Which set of the stack's sources; `full` is all.
    pub set: String,
    /// A name that a person gave.
    pub name: Option<String>,
    /// Keys and values that people gave, then and since.
    pub tags: BTreeMap<String, String>,
    /// When the run began.
    pub started: Timestamp,
    /// When it was ready to commit.
    pub finished: Timestamp,
    /// What the capture amounts to.
    pub verdict: CaptureVerdict,
    /// Bytes of content in it.
    pub bytes: u64,
    /// How many things could not be captured.
    pub problems: u64,
    /// The names of its sources.
    pub sources: Vec<SourceName>,
}

impl Head {
    /// The most bytes of names and tags that a snapshot may have: 64 KiB.
    pub const MAX_TEXT: usize = 64 << 10;

    /// The bytes that its names and tags take.
    #[must_use]
    pub fn text_len(&self) -> usize {
        let Self { stack, host, set, name, tags, sources, .. } = self;
        let tags: usize = tags.iter().map(|(key, value)| key.len() + value.len()).sum();
        let sources: usize = sources.iter().map(|name| name.as_str().len()).sum();
        stack.len() + host.len() + set.len() + name.as_ref().map_or(0, String::len) + tags + sources
    }
}

impl From<&Snapshot> for Head {
    fn from(s: &Snapshot) -> Self {
        Self {
            id: s.id.clone(),
            previous: s.previous.clone(),
            stack: s.stack.clone(),
            host: s.host.clone(),
            set: s.set.clone(),
            name: s.name.clone(),
            tags: s.tags.clone(),
            started: s.started,
            finished: s.finished,
            verdict: s.verdict,
            bytes: s.stats.bytes,
            problems: s.problem_count(),
            sources: s.sources.iter().map(|s| s.name.clone()).collect(),
        }
    }
}

/// One writer's run, as the ledger sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id, and that of the snapshot it will commit.
    pub id: SnapshotId,
    /// When it began, by its own clock.
    pub started: Timestamp,
    /// The host it runs on.
    pub host: String,
}

/// How a session ends.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    /// The snapshot comes into being.
    Commit(&'a Snapshot),
    /// No snapshot will ever exist under this id; with the reason, for people.
    Abort(&'a str),
}

/// Who ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This call did; a repeated call of the same end says so too.
    Won,
    /// Somebody else had ended it before, and that stands.
    Lost,
}

/// What stands where an aborted or forgotten snapshot stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Whose place it is.
    pub id: SnapshotId,
    /// Why there is no snapshot.
    pub state: MarkerState,
    /// When, by the clock of whoever put it.
    pub at: Timestamp,
    /// The reason, for people.
    pub reason: String,
}

/// Why there is no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarkerState {
    /// Its session ended without one.
    Aborted,
    /// It was there and was forgotten.
    Forgotten,
}

/// What somebody has added to a snapshot since it was committed: it stays as it is, and its notes are read with it.
/// Of two that speak of one tag the later counts, by the clocks of those who wrote them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Note {
    /// When, by the clock of whoever wrote it.
    pub at: Timestamp,
    /// Whose it is.
    pub id: SnapshotId,
    /// Tags to be set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// Tags to be taken away.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unset: BTreeSet<String>,
}

impl Note {
    /// Change the tags as it says.
    pub fn apply(&self, tags: &mut BTreeMap<String, String>) {
        tags.retain(|key, _| !self.unset.contains(key));
        tags.extend(self.set.clone());
    }
}

/// One line of the ledger.
#[derive(Clone, Debug)]
pub struct Line {
    /// Whose line it is.
    pub id: SnapshotId,
    /// Who signed it.
    pub signer: Option<CredentialId>,
    /// What it says.
    pub state: LineState,
}

/// What a line of the ledger says.
#[derive(Clone, Debug)]
pub enum LineState {
    /// There is a snapshot.
    Snapshot(Box<Snapshot>),
    /// There is a snapshot, which this credential cannot read.
    Sealed,
    /// There is none.
    Marker(Marker),
}

/// A ledger on its way.
pub type LineStream = Pin<Box<dyn Stream<Item = (SnapshotId, Result<Line>)> + Send + 'static>>;

/// Notes on their way, each with a name for people.
pub type NoteStream = Pin<Box<dyn Stream<Item = (String, Result<Note>)> + Send + 'static>>;

/// The ledger of a repository's snapshots.
#[async_trait]
pub trait Manifest: Debug + Send + Sync + 'static {
    /// Announce a session. Durable when this returns: whoever lists sessions afterwards sees it.
    async fn begin(&self, cx: &Context, session: &Session) -> Result<()>;

    /// Show that a session lives. `beat` counts from 1.
    async fn heartbeat(&self, cx: &Context, session: &SnapshotId, beat: u64) -> Result<()>;

    /// End a session: the only commit point. Of all calls for one session exactly one end wins.
    async fn end(&self, cx: &Context, session: &SnapshotId, end: End<'_>) -> Result<Outcome>;

    /// One line. `no-snapshot` if there is none; damage is an error.
    async fn get(&self, cx: &Context, id: &SnapshotId) -> Result<Line>;

    /// All lines, in any order. A damaged line is an error beside its id, and the rest goes on.
    async fn list(&self, cx: &Context) -> Result<LineStream>;

    /// Add a note to a snapshot. Durable when this returns. The snapshot need not be there.
    async fn note(&self, cx: &Context, note: &Note) -> Result<()>;

    /// All notes that this credential can read, in any order. A damaged one is an error, and the rest goes on.
    async fn notes(&self, cx: &Context) -> Result<NoteStream>;

    /// Replace a snapshot by a marker that stays for ever. Forgetting what is forgotten succeeds.
    async fn forget(&self, cx: &Context, id: &SnapshotId, reason: &str) -> Result<()>;
}
