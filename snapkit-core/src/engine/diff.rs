//! Differences: between two snapshots of a source, or between one and the live system.
//!
//! Trees are merged entry by entry as they are read, so that trees of any size take little memory. Contents are
//! told apart by the names of their chunks.

mod live;
mod records;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;
use serde::Serialize;

use self::records::Side;
use crate::artifact::ArtifactName;
use crate::context::Context;
use crate::engine::Repository;
use crate::engine::cut::{CLEANUP_LIMIT, ending, guarded};
use crate::engine::read::ChunkReader;
use crate::engine::records::StoredRecords;
use crate::entries::StoredEntry;
use crate::error::{Error, Reason, Result};
use crate::facts::Difference;
use crate::id::ChunkId;
use crate::manifest::{ArtifactRecord, ChunkList, ChunkRef, ContentRef, SourceRecord};
use crate::source::Source;
use crate::tree::{EntryKind, EntryPath, TreeEntry};

/// Chunks of a stream that are remembered to tell how much of another is new: 70 MiB of them. Of longer streams
/// it is told only that they differ.
const REMEMBERED: usize = 900_000;

/// How an entry differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It is something else now, such as a link instead of a file.
    Kind,
    /// Its content, or what a link names, is another.
    Content,
    /// Only its mode, owner, time or extended attributes are others.
    Attributes,
}

/// An entry of a tree that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EntryChange {
    /// Where, as it is shown.
    pub path: String,
    /// How.
    pub change: Change,
    /// Bytes of content before.
    pub before: u64,
    /// Bytes of content after.
    pub after: u64,
}

/// How an artifact differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ArtifactDiff {
    /// Its name.
    pub artifact: String,
    /// Bytes of content before; none if it was not there.
    pub before: Option<u64>,
    /// Bytes of content after; none if it is not there.
    pub after: Option<u64>,
    /// Whether anything differs.
    pub differs: bool,
    /// Bytes of a stream that are in pieces that were not there before, if that can be told.
    pub bytes_new: Option<u64>,
    /// Entries of a tree that are new, gone, and others.
    pub added: u64,
    /// Entries that are gone.
    pub removed: u64,
    /// Entries that are others.
    pub changed: u64,
}

/// How a source differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceDiff {
    /// Its name.
    pub source: String,
    /// Its artifacts, those that are the same included.
    pub artifacts: Vec<ArtifactDiff>,
    /// Facts that differ.
    pub facts: Vec<Difference>,
    /// What could not be compared, each in a line.
    pub problems: Vec<String>,
}

impl SourceDiff {
    /// Whether anything differs.
    #[must_use]
    pub fn differs(&self) -> bool {
        !self.facts.is_empty() || self.artifacts.iter().any(|a| a.differs)
    }
}

/// Told of each entry that differs, in order.
pub type OnChange<'a> = dyn FnMut(&ArtifactName, &EntryChange) -> Result<()> + Send + 'a;

impl Repository {
    /// How a source differs between two snapshots, in trees only below `below` if that is given.
    pub async fn diff(
        &self,
        cx: &Context,
        before: &SourceRecord,
        after: &SourceRecord,
        below: Option<&EntryPath>,
        on_change: &mut OnChange<'_>,
    ) -> Result<SourceDiff> {
        let reader = self.reader(cx).await?;
        let mut diff = begin(before);
        for name in names(&before.artifacts, &after.artifacts) {
            let of = |record: &SourceRecord| -> Option<ArtifactRecord> {
                record.artifacts.iter().find(|a| a.meta.name == name).cloned()
            };
            let (old, new) = (of(before), of(after));
            let found = match (&old, &new) {
                (Some(old), Some(new)) => stored(cx, &reader, old, new, below, on_change).await?,
                _ => alone(&name, old.as_ref(), new.as_ref()),
            };
            diff.artifacts.push(found);
        }
        // Facts speak of the whole.
        if below.is_none() {
            diff.facts = before.facts.compare(&after.facts).differences;
        }
        Ok(diff)
    }

    /// How the live system differs from a snapshot of it. It is captured as for a snapshot, and nothing is kept.
    pub async fn diff_live(
        &self,
        cx: &Context,
        before: &SourceRecord,
        source: &Arc<dyn Source>,
        below: Option<&EntryPath>,
        on_change: &mut OnChange<'_>,
    ) -> Result<SourceDiff> {
        let reader = self.reader(cx).await?;
        let mut capture = guarded(cx.run(source.capture(cx, Some(before)))).await?;
        let mut diff = begin(before);
        let compared =
            live::compare(cx, &reader, &mut *capture, before, below, on_change, &mut diff).await;
        match compared {
            Ok(()) => {
                let report = ending(cx, capture.finish(cx)).await?;
                if below.is_none() {
                    diff.facts = before.facts.compare(&report.facts).differences;
                }
                Ok(diff)
            }
            Err(e) => {
                let cx = cx.for_cleanup(CLEANUP_LIMIT);
                drop(ending(&cx, capture.abort(&cx)).await);
                Err(e)
            }
        }
    }
}

fn begin(before: &SourceRecord) -> SourceDiff {
    SourceDiff { source: before.name.to_string(), ..SourceDiff::default() }
}

/// The names of all artifacts, those of the first in their order.
fn names(before: &[ArtifactRecord], after: &[ArtifactRecord]) -> Vec<ArtifactName> {
    let mut seen = BTreeSet::new();
    let all = before.iter().chain(after).map(|a| a.meta.name.clone());
    all.filter(|name| seen.insert(name.clone())).collect()
}

/// An artifact that only one of the two has.
fn alone(
    name: &ArtifactName,
    before: Option<&ArtifactRecord>,
    after: Option<&ArtifactRecord>,
) -> ArtifactDiff {
    ArtifactDiff {
        artifact: name.to_string(),
        before: before.map(|a| a.content.bytes()),
        after: after.map(|a| a.content.bytes()),
        differs: true,
        ..ArtifactDiff::default()
    }
}

async fn stored(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    before: &ArtifactRecord,
    after: &ArtifactRecord,
    below: Option<&EntryPath>,
    on_change: &mut OnChange<'_>,
) -> Result<ArtifactDiff> {
    let name = &before.meta.name;
    let mut diff = alone(name, Some(before), Some(after));
    match (&before.content, &after.content) {
        (ContentRef::Bytes { content: old }, ContentRef::Bytes { content: new }) => {
            diff.differs = old != new;
            if diff.differs {
                let known = known(cx, reader, old).await?;
                let refs = reader.refs(cx, new);
                diff.bytes_new = new_bytes(cx, known, refs).await?;
            }
        }
        (ContentRef::Tree { entries: old, .. }, ContentRef::Tree { entries: new, .. }) => {
            // Equal names of chunks are equal trees.
            if old == new && below.is_none() {
                diff.differs = false;
                return Ok(diff);
            }
            let mut tally = Tally::new(name, &mut diff, below, on_change);
            let mut old = Cursor::new(reader.entries(cx, old));
            let mut new = reader.entries(cx, new);
            while let Some(entry) = cx.run(new.try_next()).await? {
                let twin = old.advance(cx, &entry.entry.path, &mut tally).await?;
                match twin {
                    None => tally.add(Change::Added, None, Some(&entry.entry))?,
                    Some(twin) => {
                        let same = twin.content == entry.content;
                        tally.compare(&twin.entry, &entry.entry, same)?;
                    }
                }
            }
            old.finish(cx, &mut tally).await?;
            tally.check()?;
            diff.settle();
        }
        // Chunks hold whole records, and equal ones have equal names.
        (
            ContentRef::Records { records: old, axes, count, .. },
            ContentRef::Records { records: new, axes: new_axes, count: new_count, .. },
        ) => {
            diff.differs = before.content != after.content;
            if diff.differs {
                let first = known(cx, reader, old).await?;
                diff.bytes_new = new_bytes(cx, first, reader.refs(cx, new)).await?;
                let sides = (
                    Side::stored(StoredRecords::new(reader, cx, old, axes, *count)?),
                    Side::stored(StoredRecords::new(reader, cx, new, new_axes, *new_count)?),
                );
                records::compare(cx, reader, name, sides, &mut diff, on_change).await?;
            }
        }
        // A stream is a tree now, or the other way round.
        _ => {}
    }
    Ok(diff)
}

impl ArtifactDiff {
    fn settle(&mut self) {
        self.differs = self.added + self.removed + self.changed > 0;
    }
}

/// Counts and tells what differs in one tree.
struct Tally<'a, 'b> {
    name: &'a ArtifactName,
    diff: &'a mut ArtifactDiff,
    below: Option<&'a EntryPath>,
    on_change: &'a mut OnChange<'b>,
    /// Whether anything lies below, on either side.
    seen: bool,
    /// The last place that could not be looked into: what it holds is not gone.
    closed: Option<EntryPath>,
}

impl<'a, 'b> Tally<'a, 'b> {
    fn new(
        name: &'a ArtifactName,
        diff: &'a mut ArtifactDiff,
        below: Option<&'a EntryPath>,
        on_change: &'a mut OnChange<'b>,
    ) -> Self {
        Self { name, diff, below, on_change, seen: false, closed: None }
    }

    fn is_outside(&mut self, path: &EntryPath) -> bool {
        let is_outside = self.below.is_some_and(|below| !path.starts_with(below));
        self.seen |= !is_outside;
        is_outside
    }

    /// That there is what was asked about.
    fn check(&self) -> Result<()> {
        match self.below.filter(|_| !self.seen) {
            Some(below) => {
                let what = format!("there is no {below} on either side");
                Err(Error::new(Reason::NotFound, what).with("artifact", self.name))
            }
            None => Ok(()),
        }
    }

    fn add(
        &mut self,
        change: Change,
        before: Option<&TreeEntry>,
        after: Option<&TreeEntry>,
    ) -> Result<()> {
        let Some(entry) = before.or(after) else { return Ok(()) };
        let is_closed = self.closed.as_ref().is_some_and(|closed| entry.path.starts_with(closed));
        if self.is_outside(&entry.path) || (change == Change::Removed && is_closed) {
            return Ok(());
        }
        match change {
            Change::Added => self.diff.added += 1,
            Change::Removed => self.diff.removed += 1,
            _ => self.diff.changed += 1,
        }
        let len = |entry: Option<&TreeEntry>| match entry.map(|e| &e.kind) {
            Some(EntryKind::File { size, .. }) => *size,
            _ => 0,
        };
        let told = EntryChange {
            path: entry.path.display(),
            change,
            before: len(before),
            after: len(after),
        };
        (self.on_change)(self.name, &told)
    }

    fn compare(&mut self, before: &TreeEntry, after: &TreeEntry, same: bool) -> Result<()> {
        self.is_outside(&after.path);
        match difference(before, after, same) {
            Some(change) => self.add(change, Some(before), Some(after)),
            None => Ok(()),
        }
    }
}

/// How two entries of one path differ. Inode numbers and change times say nothing about what a person sees, nor do
/// times of directories.
fn difference(before: &TreeEntry, after: &TreeEntry, same_content: bool) -> Option<Change> {
    use EntryKind as K;
    match (&before.kind, &after.kind) {
        (K::File { .. }, K::File { .. }) if !same_content => return Some(Change::Content),
        (K::File { size: a, extents: x }, K::File { size: b, extents: y }) if (a, x) != (b, y) => {
            return Some(Change::Content);
        }
        (K::Symlink { target: a }, K::Symlink { target: b }) if a != b => {
            return Some(Change::Content);
        }
        (K::HardLink { target: a }, K::HardLink { target: b }) if a != b => {
            return Some(Change::Content);
        }
        (a, b) if std::mem::discriminant(a) != std::mem::discriminant(b) => {
            return Some(Change::Kind);
        }
        (a, b) if a != b => return Some(Change::Kind),
        _ => {}
    }
    let is_directory = matches!(after.kind, K::Directory);
    let differs = before.mode != after.mode
        || (before.uid, before.gid) != (after.uid, after.gid)
        || before.xattrs != after.xattrs
        || (before.mtime != after.mtime && !is_directory);
    differs.then_some(Change::Attributes)
}

/// The entries of the older tree, as far as they have been looked at.
struct Cursor {
    entries: BoxStream<'static, Result<StoredEntry>>,
    held: Option<StoredEntry>,
}

impl Cursor {
    fn new(entries: BoxStream<'static, Result<StoredEntry>>) -> Self {
        Self { entries, held: None }
    }

    /// The entry of a path. Those before it are gone.
    async fn advance(
        &mut self,
        cx: &Context,
        path: &EntryPath,
        tally: &mut Tally<'_, '_>,
    ) -> Result<Option<StoredEntry>> {
        loop {
            let next = match self.held.take() {
                Some(held) => Some(held),
                None => cx.run(self.entries.try_next()).await?,
            };
            match next {
                None => return Ok(None),
                Some(entry) if entry.entry.path == *path => return Ok(Some(entry)),
                Some(entry) if entry.entry.path > *path => {
                    self.held = Some(entry);
                    return Ok(None);
                }
                Some(entry) => tally.add(Change::Removed, Some(&entry.entry), None)?,
            }
        }
    }

    async fn finish(&mut self, cx: &Context, tally: &mut Tally<'_, '_>) -> Result<()> {
        loop {
            let next = match self.held.take() {
                Some(held) => Some(held),
                None => cx.run(self.entries.try_next()).await?,
            };
            match next {
                None => return Ok(()),
                Some(entry) => tally.add(Change::Removed, Some(&entry.entry), None)?,
            }
        }
    }
}

/// The chunks of a content, unless they are too many.
async fn known(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    list: &ChunkList,
) -> Result<Option<HashSet<ChunkId>>> {
    let mut known = HashSet::new();
    let mut refs = reader.refs(cx, list);
    while let Some(chunk) = cx.run(refs.try_next()).await? {
        if known.len() >= REMEMBERED {
            return Ok(None);
        }
        known.insert(chunk.id);
    }
    Ok(Some(known))
}

async fn new_bytes(
    cx: &Context,
    known: Option<HashSet<ChunkId>>,
    mut refs: BoxStream<'_, Result<ChunkRef>>,
) -> Result<Option<u64>> {
    let Some(known) = known else { return Ok(None) };
    let mut sum = 0;
    while let Some(chunk) = cx.run(refs.try_next()).await? {
        if !known.contains(&chunk.id) {
            sum += u64::from(chunk.len);
        }
    }
    Ok(Some(sum))
}
