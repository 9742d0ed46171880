//! What a run tells while it goes on.

use std::fmt::Debug;

/// The part of a run that is under way.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Open the repository, connect, check.
    Prepare,
    /// Pin one moment over all sources.
    Freeze,
    /// Read sources, store content.
    Stream,
    /// Make packs and index durable.
    Index,
    /// Make the snapshot exist.
    Commit,
    /// Put content back.
    Restore,
    /// Examine stored or restored data.
    Verify,
}

impl Phase {
    /// One lower-case word, the same in text and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Freeze => "freeze",
            Self::Stream => "stream",
            Self::Index => "index",
            Self::Commit => "commit",
            Self::Restore => "restore",
            Self::Verify => "verify",
        }
    }
}

/// What is counted while a run goes on. Counters only grow.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counter {
    /// Entries of trees seen.
    Entries,
    /// Files whose content was opened and read.
    FilesRead,
    /// Files taken over from the last snapshot without being opened.
    FilesUnchanged,
    /// Bytes read from sources (create) or handed to targets (restore) or checked (verify).
    Bytes,
    /// Bytes known to be unchanged without being read.
    BytesUnchanged,
    /// Chunks that were new to the repository.
    ChunksNew,
    /// Chunks that the repository had.
    ChunksKnown,
    /// Bytes handed to the sink.
    BytesStored,
    /// Objects handed to the sink.
    ObjectsStored,
    /// Packs of an interrupted run that were found and taken over.
    PacksAdopted,
    /// Single things that could not be captured, restored or verified.
    Problems,
}

/// Receives what a run tells. Methods are called often and from several threads: they must be
/// quick and must not block.
pub trait Progress: Debug + Send + Sync + 'static {
    /// A phase begins.
    fn phase(&self, phase: Phase);
    /// A counter grows by `n`.
    fn add(&self, counter: Counter, n: u64);
    /// So many more bytes are expected in all. May be called again as more is known.
    fn expect_bytes(&self, n: u64);
    /// Something that a person should know, and that will also be in the report.
    fn warn(&self, text: &str);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _: Phase) {}
    fn add(&self, _: Counter, _: u64) {}
    fn expect_bytes(&self, _: u64) {}
    fn warn(&self, _: &str) {}
}
