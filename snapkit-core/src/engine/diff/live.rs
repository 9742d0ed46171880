//! The live system beside a snapshot. Of trees only what does not look unchanged is read.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::records::{self, Side};
use super::{Change, Cursor, OnChange, SourceDiff, Tally, alone, known};
use crate::artifact::{Body, ByteStream, Chunking};
use crate::chunk::Cutter;
use crate::codec::len32;
use crate::context::Context;
use crate::engine::cut::{CLEANUP_LIMIT, guarded};
use crate::engine::read::ChunkReader;
use crate::engine::records::StoredRecords;
use crate::entries::StoredEntry;
use crate::error::Result;
use crate::id::ChunkId;
use crate::manifest::{ChunkList, ChunkRef, ContentRef, SourceRecord};
use crate::source::Capture;
use crate::tree::{EntryKind, EntryPath, SMALL_FILE, TreeEntry, TreeItem, TreeReader};

/// Compare what a capture hands out, artifact by artifact.
pub(super) async fn compare(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    capture: &mut dyn Capture,
    before: &SourceRecord,
    below: Option<&EntryPath>,
    on_change: &mut OnChange<'_>,
    diff: &mut SourceDiff,
) -> Result<()> {
    let frozen = guarded(cx.run(capture.freeze(cx))).await;
    let cleanup = cx.for_cleanup(CLEANUP_LIMIT);
    let thawed = guarded(cleanup.run(capture.thaw(&cleanup))).await;
    frozen?;
    thawed?;
    let mut seen = BTreeSet::new();
    while let Some(meta) = guarded(cx.run(capture.next(cx))).await? {
        seen.insert(meta.name.clone());
        let old = before.artifacts.iter().find(|a| a.meta.name == meta.name);
        let body = guarded(cx.run(capture.open(cx, &meta.name))).await?;
        let mut found = alone(&meta.name, old, None);
        match (body, old.map(|a| &a.content)) {
            (Body::Bytes(body), old) => {
                let content = match old {
                    Some(ContentRef::Bytes { content }) => content.clone(),
                    _ => ChunkList::default(),
                };
                let known = known(cx, reader, &content).await?;
                let live =
                    read_live(cx, reader, body, meta.chunking, meta.size_hint, known).await?;
                found.after = Some(live.bytes);
                found.bytes_new = live.bytes_new;
                found.differs = old.is_none()
                    || live.bytes != content.size
                    || live.digest != digest_of(cx, reader, &content).await?;
            }
            (Body::Tree(tree), Some(ContentRef::Tree { entries, .. })) => {
                let mut tally = Tally::new(&meta.name, &mut found, below, on_change);
                let mut old = Cursor::new(reader.entries(cx, entries));
                let after = live_tree(
                    cx,
                    reader,
                    tree,
                    meta.chunking,
                    &mut old,
                    &mut tally,
                    &mut diff.problems,
                )
                .await?;
                old.finish(cx, &mut tally).await?;
                tally.check()?;
                found.after = Some(after);
                found.settle();
            }
            (Body::Records(live), Some(ContentRef::Records { records, axes, count, .. })) => {
                let stored = StoredRecords::new(reader, cx, records, axes, *count)?;
                let sides = (Side::stored(stored), Side::live(live));
                let after =
                    records::compare(cx, reader, &meta.name, sides, &mut found, on_change).await?;
                found.after = Some(after);
                found.settle();
            }
            // It was not there, or was something else: all of it is new.
            (_, _) => {}
        }
        diff.artifacts.push(found);
    }
    for old in before.artifacts.iter().filter(|a| !seen.contains(&a.meta.name)) {
        diff.artifacts.push(alone(&old.meta.name, Some(old), None));
    }
    Ok(())
}

/// A live tree beside a stored one. Gives the bytes of its content.
async fn live_tree(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    mut tree: Box<dyn TreeReader>,
    chunking: Chunking,
    old: &mut Cursor,
    tally: &mut Tally<'_, '_>,
    problems: &mut Vec<String>,
) -> Result<u64> {
    let mut bytes = 0;
    while let Some(batch) = guarded(cx.run(tree.next_batch(cx))).await? {
        for item in batch {
            let entry = match item {
                TreeItem::Entry(entry, _) => entry,
                TreeItem::Problem(path, e) => {
                    // It is there, and how it is cannot be told.
                    drop(old.advance(cx, &path, tally).await?);
                    tally.closed = Some(path.clone());
                    problems.push(format!("{path}: {}", e.chain()));
                    continue;
                }
            };
            bytes += entry.kind.content_len();
            let Some(twin) = old.advance(cx, &entry.path, tally).await? else {
                tally.add(Change::Added, None, Some(&entry))?;
                continue;
            };
            let same = match content_of_live(cx, reader, &*tree, chunking, &twin, &entry).await {
                Ok(same) => same,
                Err(e) if e.is_cancelled() => return Err(e),
                Err(e) => {
                    problems.push(format!("{}: {}", entry.path, e.chain()));
                    continue;
                }
            };
            // What was captured of a sparse file knows its holes; what is listed of it does not.
            let mut entry = entry;
            let are_files = [&entry, &twin.entry]
                .iter()
                .all(|entry| matches!(entry.kind, EntryKind::File { .. }));
            if same && are_files {
                entry.kind = twin.entry.kind.clone();
            }
            tally.compare(&twin.entry, &entry, same)?;
        }
    }
    Ok(bytes)
}

/// Whether the content of a live file is that of a stored one.
async fn content_of_live(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    tree: &dyn TreeReader,
    chunking: Chunking,
    stored: &StoredEntry,
    entry: &TreeEntry,
) -> Result<bool> {
    let (EntryKind::File { size: was, .. }, EntryKind::File { size, .. }) =
        (&stored.entry.kind, &entry.kind)
    else {
        return Ok(true);
    };
    let unchanged = was == size
        && stored.entry.mtime == entry.mtime
        && stored.entry.ctime == entry.ctime
        && stored.entry.inode == entry.inode;
    if unchanged || was != size {
        return Ok(unchanged);
    }
    let opened = guarded(cx.run(tree.open(cx, entry))).await?;
    let size = opened.entry.kind.content_len();
    if size != stored.content.size {
        return Ok(false);
    }
    // Small files of trees are one chunk, whatever larger ones are.
    let chunking = if size <= SMALL_FILE { Chunking::Whole } else { chunking };
    let live = read_live(cx, reader, opened.body, chunking, Some(size), None).await?;
    Ok(live.digest == digest_of(cx, reader, &stored.content).await?)
}

/// What was read of a live stream.
pub(super) struct Live {
    pub(super) bytes: u64,
    bytes_new: Option<u64>,
    /// Of the names of its chunks.
    pub(super) digest: [u8; 32],
}

/// A digest of the names of the chunks of a stored content.
pub(super) async fn digest_of(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    list: &ChunkList,
) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut refs = reader.refs(cx, list);
    while let Some(chunk) = cx.run(refs.try_next()).await? {
        hasher.update(&chunk.id.0);
    }
    Ok(hasher.finalize().into())
}

/// Cut and name a live stream as it would be for a snapshot.
pub(super) async fn read_live(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    body: ByteStream,
    chunking: Chunking,
    size: Option<u64>,
    known: Option<HashSet<ChunkId>>,
) -> Result<Live> {
    let mut cutter = Some(Cutter::new(reader.chunk_key().clone(), chunking, size));
    let mut body = body.fuse();
    let mut hasher = blake3::Hasher::new();
    let (mut bytes, mut new) = (0, 0);
    while let Some(mut current) = cutter.take() {
        let piece = guarded(cx.run(body.try_next())).await?;
        let key = reader.chunk_key().clone();
        let named = cx.compute(move || {
            let mut chunks: Vec<Bytes> = Vec::new();
            let back = match piece {
                Some(piece) => {
                    current.push(&piece, &mut chunks);
                    Some(current)
                }
                None => {
                    current.finish(&mut chunks);
                    None
                }
            };
            let name =
                |chunk: &Bytes| Ok(ChunkRef { id: key.name(chunk), len: len32(chunk.len())? });
            Ok((back, chunks.iter().map(name).collect::<Result<Vec<_>>>()?))
        });
        let (back, chunks) = named.await?;
        cutter = back;
        for chunk in chunks {
            hasher.update(&chunk.id.0);
            bytes += u64::from(chunk.len);
            if known.as_ref().is_some_and(|known| !known.contains(&chunk.id)) {
                new += u64::from(chunk.len);
            }
        }
    }
    Ok(Live { bytes, bytes_new: known.is_some().then_some(new), digest: hasher.finalize().into() })
}
