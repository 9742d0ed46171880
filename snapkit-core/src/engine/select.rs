//! Choosing: which part of a tree, read back as a source would give it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::artifact::ByteStream;
use crate::context::Context;
use crate::engine::options::Selection;
use crate::engine::read::ChunkReader;
use crate::entries::StoredEntry;
use crate::error::{Error, Reason, Result};
use crate::globs::PathGlobs;
use crate::manifest::ChunkList;
use crate::progress::Counter;
use crate::tree::{
    Content, EntryKind, EntryPath, Extent, LoadedFile, OpenedFile, SMALL_FILE, TreeEntry, TreeItem,
    TreeReader,
};

/// So many zeros, in pieces.
fn zeros(mut len: u64) -> impl Iterator<Item = Result<Bytes>> + Send {
    const ZEROS: Bytes = Bytes::from_static(&[0; 64 << 10]);
    std::iter::from_fn(move || {
        let n = len.min(ZEROS.len() as u64);
        len -= n;
        (n > 0).then(|| Ok(ZEROS.slice(..usize::try_from(n).unwrap_or(0))))
    })
}

/// The whole of a sparse file: its data with zeros where it has holes.
pub(crate) fn with_holes(body: ByteStream, size: u64, extents: Vec<Extent>) -> ByteStream {
    if extents.is_empty() {
        return Box::pin(stream::iter(zeros(size)));
    }
    let state = (body, VecDeque::from(extents), 0u64);
    // For each piece of data: the holes before it, then its parts.
    let data = stream::try_unfold(state, move |(mut body, mut extents, mut at)| async move {
        if extents.is_empty() {
            return Ok::<_, Error>(None);
        }
        let Some(mut piece) = body.try_next().await? else {
            return Err(Error::corrupt("a sparse file's content is too short"));
        };
        let mut out: Vec<Result<Bytes>> = Vec::new();
        while let Some(extent) = extents.front_mut().filter(|_| !piece.is_empty()) {
            out.extend(zeros(extent.offset.saturating_sub(at)));
            let n = usize::try_from(extent.len).unwrap_or(usize::MAX).min(piece.len());
            out.push(Ok(piece.split_to(n)));
            extent.offset += n as u64;
            extent.len -= n as u64;
            at = extent.offset;
            if extent.len == 0 {
                extents.pop_front();
            }
        }
        if extents.is_empty() {
            out.extend(zeros(size.saturating_sub(at)));
        }
        Ok(Some((stream::iter(out), (body, extents, at))))
    });
    Box::pin(data.try_flatten())
}

/// Which entries of a tree are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chosen {
    path: Option<EntryPath>,
    globs: Option<PathGlobs>,
}

impl Chosen {
    pub(crate) fn new(selection: &Selection) -> Result<Self> {
        let globs = match selection.include.is_empty() {
            true => None,
            false => Some(PathGlobs::new(&selection.include, false)?),
        };
        Ok(Self { path: selection.path.clone(), globs })
    }

    fn is_all(&self) -> bool {
        self.path.is_none() && self.globs.is_none()
    }

    /// An entry is wanted if it, or a directory that it lies in, is.
    fn wants(&self, path: &EntryPath) -> bool {
        self.path.as_ref().is_none_or(|p| path.starts_with(p))
            && self.globs.as_ref().is_none_or(|globs| globs.covers(path))
    }
}

/// What a tree reader had to leave out.
#[derive(Debug, Default)]
pub(crate) struct Skipped {
    pub(crate) places: Vec<String>,
    pub(crate) count: u64,
}

impl Skipped {
    fn add(&mut self, place: String) {
        self.count += 1;
        if self.places.len() < 1000 {
            self.places.push(place);
        }
    }
}

/// A batch of wanted entries whose small contents are to be read.
type Batch = Vec<Result<StoredEntry>>;

/// The most entries and inline bytes of a batch.
const BATCH: (usize, u64) = (1024, 1 << 20);

/// Batches that are read ahead.
const BATCHES_AHEAD: usize = 4;

/// A stored tree, as a restore or a check reads it. Small contents come inline.
pub(crate) struct StoredTreeReader {
    batches: Mutex<BoxStream<'static, Result<Vec<TreeItem>>>>,
    shared: Arc<SharedTree>,
}

struct SharedTree {
    reader: Arc<ChunkReader>,
    /// The contents of large files that were handed out and not opened yet.
    large: Mutex<HashMap<EntryPath, ChunkList>>,
    /// Damage is left out and noted here, instead of ending the tree.
    skipped: Option<Arc<Mutex<Skipped>>>,
    /// Bytes of content handed out.
    handed: Arc<AtomicU64>,
    /// Contents were read and found whole: they are not read again.
    is_verified: bool,
}

impl StoredTreeReader {
    /// All of a tree; damage ends it.
    pub(crate) fn whole(reader: &Arc<ChunkReader>, cx: &Context, entries: &ChunkList) -> Self {
        let shared = SharedTree::new(reader, None, Arc::default());
        Self::from_entries(cx, reader.entries(cx, entries), shared)
    }

    /// All of a tree whose contents were verified; damage ends it.
    pub(crate) fn verified(reader: &Arc<ChunkReader>, cx: &Context, entries: &ChunkList) -> Self {
        let shared =
            SharedTree { is_verified: true, ..SharedTree::new(reader, None, Arc::default()) };
        Self::from_entries(cx, reader.entries(cx, entries), shared)
    }

    /// The chosen part of a tree.
    pub(crate) async fn chosen(
        reader: &Arc<ChunkReader>,
        cx: &Context,
        entries: &ChunkList,
        chosen: &Chosen,
        skipped: Option<Arc<Mutex<Skipped>>>,
        handed: Arc<AtomicU64>,
    ) -> Result<Self> {
        let all = reader.entries(cx, entries);
        let shared = SharedTree::new(reader, skipped, handed);
        if chosen.is_all() {
            return Ok(Self::from_entries(cx, all, shared));
        }
        let relink = relinked(reader, cx, entries, chosen).await?;
        let part = filter(all, chosen.clone(), relink);
        Ok(Self::from_entries(cx, part, shared))
    }

    fn from_entries(
        cx: &Context,
        entries: BoxStream<'static, Result<StoredEntry>>,
        shared: SharedTree,
    ) -> Self {
        let shared = Arc::new(shared);
        let (this, cx) = (Arc::clone(&shared), cx.clone());
        let (ordered, mut left_out) = (Arc::clone(&shared), HashSet::new());
        let batches = into_batches(entries)
            .map(move |batch| {
                let (this, cx) = (Arc::clone(&this), cx.clone());
                async move { this.load(&cx, batch).await }
            })
            .buffered(BATCHES_AHEAD)
            .map(move |items| ordered.leave_out_links(&mut left_out, items?))
            .try_filter(|items| std::future::ready(!items.is_empty()))
            .boxed();
        Self { batches: Mutex::new(batches), shared }
    }
}

fn into_batches(entries: BoxStream<'static, Result<StoredEntry>>) -> BoxStream<'static, Batch> {
    let state = (entries, None);
    stream::unfold(state, |(mut entries, mut held)| async move {
        let mut batch: Batch = Vec::new();
        let mut bytes = 0;
        loop {
            let next = match held.take() {
                Some(entry) => Some(entry),
                None => entries.next().await,
            };
            let Some(next) = next else { break };
            let inline = match &next {
                Ok(e) if e.content.size <= SMALL_FILE => e.content.size + weight(e),
                Ok(e) => weight(e),
                Err(_) => 0,
            };
            if !batch.is_empty() && bytes + inline > BATCH.1 {
                held = Some(next);
                break;
            }
            bytes += inline;
            batch.push(next);
            if batch.len() >= BATCH.0 {
                break;
            }
        }
        (!batch.is_empty()).then_some((batch, (entries, held)))
    })
    .boxed()
}

/// The memory that an entry itself takes, in bytes.
fn weight(stored: &StoredEntry) -> u64 {
    let entry = &stored.entry;
    let xattrs: usize = entry.xattrs.iter().map(|(n, v)| n.len() + v.len() + 64).sum();
    let extents = match &entry.kind {
        EntryKind::File { extents: Some(extents), .. } => extents.len() * size_of::<Extent>(),
        EntryKind::Symlink { target } => target.len(),
        _ => 0,
    };
    let refs = stored.content.chunks.len() * size_of::<crate::manifest::ChunkRef>();
    (entry.path.as_bytes().len() + xattrs + extents + refs) as u64
}

impl SharedTree {
    fn new(
        reader: &Arc<ChunkReader>,
        skipped: Option<Arc<Mutex<Skipped>>>,
        handed: Arc<AtomicU64>,
    ) -> Self {
        Self {
            reader: Arc::clone(reader),
            large: Mutex::default(),
            skipped,
            handed,
            is_verified: false,
        }
    }

    async fn load(&self, cx: &Context, batch: Batch) -> Result<Vec<TreeItem>> {
        let refs: Vec<_> = batch
            .iter()
            .flatten()
            .filter(|e| !self.is_verified && is_inline(e))
            .flat_map(|e| e.content.chunks.iter().copied().map(Ok))
            .collect();
        let mut chunks = self.reader.chunks(cx, stream::iter(refs).boxed());
        let mut items = Vec::with_capacity(batch.len());
        for stored in batch {
            let stored = match stored {
                Ok(stored) => stored,
                Err(e) => {
                    self.skip("entries that cannot be read", e)?;
                    continue;
                }
            };
            let StoredEntry { entry, content } = stored;
            if content.size == 0 {
                items.push(TreeItem::Entry(entry, Content::None));
            } else if self.is_verified {
                items.push(TreeItem::Entry(entry, Content::Verified));
            } else if content.size <= SMALL_FILE && content.depth == 0 {
                let mut parts = Vec::with_capacity(1);
                let mut damage = None;
                for _ in &content.chunks {
                    match chunks.next().await {
                        Some(Ok(bytes)) => parts.push(bytes),
                        Some(Err(e)) => damage = Some(e),
                        None => damage = Some(Error::internal("content is missing from a batch")),
                    }
                }
                match damage {
                    None => {
                        let bytes = match parts.pop() {
                            // Copied: a small file must not hold on to the frame that it lies in.
                            Some(one) if parts.is_empty() => Bytes::copy_from_slice(&one),
                            last => {
                                parts.into_iter().chain(last).collect::<Vec<_>>().concat().into()
                            }
                        };
                        cx.progress().add(Counter::Bytes, content.size);
                        self.handed.fetch_add(content.size, Ordering::Relaxed);
                        items.push(TreeItem::Entry(entry, Content::Inline(bytes)));
                    }
                    Some(e) => items.push(self.skip_entry(entry, e)?),
                }
            } else {
                if self.skipped.is_some()
                    && let Err(e) = self.probe(cx, &content).await
                {
                    items.push(self.skip_entry(entry, e)?);
                    continue;
                }
                self.large().insert(entry.path.clone(), content);
                items.push(TreeItem::Entry(entry, Content::Deferred));
            }
        }
        Ok(items)
    }

    /// Read a content to its end, to know that it is whole.
    async fn probe(&self, cx: &Context, content: &ChunkList) -> Result<()> {
        let mut bytes = self.reader.bytes(cx, content);
        while bytes.try_next().await?.is_some() {}
        Ok(())
    }

    fn skip_entry(&self, entry: TreeEntry, error: Error) -> Result<TreeItem> {
        let error = error.with("path", &entry.path);
        let text = error.chain();
        let reason = error.reason();
        self.skip(&entry.path.display(), error)?;
        Ok(TreeItem::Problem(entry.path, Error::new(reason, text)))
    }

    /// What is left out has no other names either.
    fn leave_out_links(
        &self,
        left_out: &mut HashSet<EntryPath>,
        items: Vec<TreeItem>,
    ) -> Result<Vec<TreeItem>> {
        let decide = |item| match item {
            TreeItem::Entry(entry, content) => match &entry.kind {
                EntryKind::HardLink { target } if left_out.contains(target) => {
                    let what = "the file that this is another name of is damaged";
                    let e = Error::new(Reason::ObjectMissing, what).with("file", target);
                    self.skip_entry(entry, e)
                }
                _ => Ok(TreeItem::Entry(entry, content)),
            },
            TreeItem::Problem(path, e) => {
                left_out.insert(path.clone());
                Ok(TreeItem::Problem(path, e))
            }
        };
        items.into_iter().map(decide).collect()
    }

    /// Note what is left out, or end the tree.
    fn skip(&self, place: &str, error: Error) -> Result<()> {
        match &self.skipped {
            Some(skipped) if error.is_damage() => {
                let mut skipped = skipped.lock().unwrap_or_else(PoisonError::into_inner);
                skipped.add(format!("{place}: {}", error.chain()));
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn large(&self) -> std::sync::MutexGuard<'_, HashMap<EntryPath, ChunkList>> {
        self.large.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_inline(stored: &StoredEntry) -> bool {
    stored.content.size > 0 && stored.content.size <= SMALL_FILE && stored.content.depth == 0
}

#[async_trait]
impl TreeReader for StoredTreeReader {
    async fn next_batch(&mut self, cx: &Context) -> Result<Option<Vec<TreeItem>>> {
        let batches = self.batches.get_mut().unwrap_or_else(PoisonError::into_inner);
        cx.run(batches.try_next()).await
    }

    async fn open(&self, cx: &Context, entry: &TreeEntry) -> Result<OpenedFile> {
        let content = self.shared.large().remove(&entry.path);
        let content = content.ok_or_else(|| {
            Error::internal("a file was opened that was not deferred").with("path", &entry.path)
        })?;
        let progress = cx.clone();
        let path = entry.path.clone();
        let handed = Arc::clone(&self.shared.handed);
        let body = self.shared.reader.bytes(cx, &content).map(move |piece| match piece {
            Ok(piece) => {
                progress.progress().add(Counter::Bytes, piece.len() as u64);
                handed.fetch_add(piece.len() as u64, Ordering::Relaxed);
                Ok(piece)
            }
            Err(e) => Err(e.with("path", &path)),
        });
        Ok(OpenedFile { entry: entry.clone(), body: Box::pin(body) })
    }

    async fn load(&self, _: &Context, entries: &[TreeEntry]) -> Vec<Result<LoadedFile>> {
        let too_large = |_| {
            Err(Error::new(
                Reason::LimitExceeded,
                "small content of a stored tree comes with its entry",
            ))
        };
        entries.iter().map(too_large).collect()
    }
}

/// Hard links whose target is not chosen: the first of them gets the target's content, and later ones
/// are links to it.
type Relink = HashMap<EntryPath, Option<StoredEntry>>;

async fn relinked(
    reader: &Arc<ChunkReader>,
    cx: &Context,
    list: &ChunkList,
    chosen: &Chosen,
) -> Result<Relink> {
    let mut relink = Relink::new();
    let mut found = false;
    let mut entries = reader.entries(cx, list);
    while let Some(stored) = entries.next().await {
        // Damage is met again, and answered, when the tree itself is read.
        let Ok(stored) = stored else { continue };
        found = found || chosen.wants(&stored.entry.path);
        if let EntryKind::HardLink { target } = &stored.entry.kind
            && chosen.wants(&stored.entry.path)
            && !chosen.wants(target)
        {
            relink.insert(target.clone(), None);
        }
    }
    if let (Some(path), false) = (&chosen.path, found) {
        return Err(Error::new(Reason::NotFound, format!("there is no {path} in this artifact")));
    }
    if !relink.is_empty() {
        let mut entries = reader.entries(cx, list);
        while let Some(stored) = entries.next().await {
            let Ok(stored) = stored else { continue };
            if let Some(slot) = relink.get_mut(&stored.entry.path) {
                *slot = Some(stored);
            }
        }
    }
    Ok(relink)
}

/// The chosen entries, each after the directories that lead to it.
fn filter(
    entries: BoxStream<'static, Result<StoredEntry>>,
    chosen: Chosen,
    mut relink: Relink,
) -> BoxStream<'static, Result<StoredEntry>> {
    let mut leading: Vec<StoredEntry> = Vec::new();
    let mut moved: HashMap<EntryPath, EntryPath> = HashMap::new();
    entries
        .flat_map(move |stored| {
            let mut out = Vec::new();
            match stored {
                Err(e) => out.push(Err(e)),
                Ok(mut stored) => {
                    let path = stored.entry.path.clone();
                    leading.retain(|d| path.starts_with(&d.entry.path));
                    if chosen.wants(&path) {
                        out.extend(leading.drain(..).map(Ok));
                        if let EntryKind::HardLink { target } = &stored.entry.kind {
                            let target = target.clone();
                            if let Some(first) = moved.get(&target) {
                                stored.entry.kind = EntryKind::HardLink { target: first.clone() };
                            } else if let Some(Some(original)) = relink.remove(&target) {
                                moved.insert(target, path.clone());
                                stored = original;
                                stored.entry.path = path;
                            }
                        }
                        out.push(Ok(stored));
                    } else if stored.entry.kind == EntryKind::Directory {
                        stored.entry.ancestor = true;
                        leading.push(stored);
                    }
                }
            }
            stream::iter(out)
        })
        .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_missing_of_a_sparse_file_is_no_hole() {
        let extents = vec![Extent { offset: 10, len: 5 }];
        let whole: ByteStream = Box::pin(stream::once(async { Ok(Bytes::from_static(b"hello")) }));
        let pieces: Vec<Bytes> =
            with_holes(whole, 20, extents.clone()).try_collect().await.unwrap();
        assert_eq!(pieces.concat(), *b"\0\0\0\0\0\0\0\0\0\0hello\0\0\0\0\0");
        let short: ByteStream = Box::pin(stream::once(async { Ok(Bytes::from_static(b"hell")) }));
        let e = with_holes(short, 20, extents).try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(e.to_string(), "a sparse file's content is too short");
    }
}
