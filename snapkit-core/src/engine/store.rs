//! Storing content: an artifact's body through the write pipeline.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};

use crate::artifact::{ByteStream, Chunking, MAX_PIECE};
use crate::chunk::Cutter;
use crate::codec::len32;
use crate::context::Context;
use crate::engine::basis::{BasisReader, BasisWriter, FileRef, MAX_REMEMBERED};
use crate::engine::cut::guarded;
use crate::engine::write::{Lane, Shared, Writer};
use crate::entries::{ListBuilder, Node, StoredEntry, TreeChunker};
use crate::error::{Error, Reason, Result};
use crate::frame::FRAME_TARGET;
use crate::id::to_hex;
use crate::manifest::{ChunkList, ChunkRef, ContentRef, Problems};
use crate::progress::Counter;
use crate::tree::{
    Content, EntryKind, EntryPath, LoadedFile, SMALL_FILE, TreeDigest, TreeEntry, TreeItem,
    TreeReader,
};

/// Bytes of a stream that are cut and named at once.
const CUT_AT_ONCE: usize = 4 << 20;

/// Small files are read in groups of so many …
const GROUP_FILES: usize = 128;
/// … or so many bytes.
const GROUP_BYTES: u64 = 1 << 20;

/// Groups of small files that are read at once.
const GROUPS_AT_ONCE: usize = 4;

/// A file that changes while it is read is tried so often.
const ATTEMPTS: u32 = 3;

/// What storing came upon.
#[derive(Debug, Default)]
pub(crate) struct StoreStats {
    pub(crate) entries: u64,
    pub(crate) files_read: u64,
    pub(crate) files_unchanged: u64,
    pub(crate) bytes_read: u64,
}

/// A chunk, cut, named and looked up.
pub(crate) struct Named {
    pub(crate) chunk: ChunkRef,
    pub(crate) content: Bytes,
    pub(crate) known: bool,
}

/// Name chunks, and look them up.
pub(crate) fn name_all(shared: &Shared, contents: Vec<Bytes>) -> Result<Vec<Named>> {
    let name = |content: Bytes| {
        let chunk = ChunkRef { id: shared.chunk_key.name(&content), len: len32(content.len())? };
        let known = shared.is_known(&chunk.id, chunk.len)?;
        // What is known is not kept waiting, and must not be kept in memory either.
        let content = if known { Bytes::new() } else { content };
        Ok(Named { chunk, content, known })
    };
    contents.into_iter().map(name).collect()
}

/// The same for chunks of one stream. They are slices of the memory that it was read into, of which each keeps all
/// alive: what waits for others, or is little of it, gets memory of its own.
fn name_slices(shared: &Shared, contents: Vec<Bytes>) -> Result<Vec<Named>> {
    let mut named = name_all(shared, contents)?;
    set_apart(&mut named);
    Ok(named)
}

fn set_apart(named: &mut [Named]) {
    let (mut all, mut new) = (0, 0);
    for named in &*named {
        all += u64::from(named.chunk.len);
        new += named.content.len() as u64;
    }
    let is_little = new < all / 2;
    for named in named.iter_mut().filter(|n| !n.known) {
        if is_little || named.content.len() < FRAME_TARGET {
            named.content = Bytes::copy_from_slice(&named.content);
        }
    }
}

/// A chunk list on its way into the repository.
#[derive(Debug, Default)]
pub(crate) struct GrowingList {
    list: ListBuilder,
    parts: Vec<ChunkRef>,
}

impl GrowingList {
    /// Add the next chunk, storing the nodes that become full.
    pub(crate) async fn push(&mut self, writer: &mut Writer, chunk: ChunkRef) -> Result<()> {
        self.remember(chunk);
        let full = self.list.push(chunk);
        self.store(writer, full).await
    }

    /// Store a full node, and those that become full by it.
    async fn store(&mut self, writer: &mut Writer, mut full: Option<Node>) -> Result<()> {
        while let Some(node) = full {
            let chunk = writer.put_meta(node.bytes.clone()).await?;
            self.remember(chunk);
            full = self.list.stored(&node, chunk.id);
        }
        Ok(())
    }

    fn remember(&mut self, chunk: ChunkRef) {
        if self.parts.len() <= MAX_REMEMBERED {
            self.parts.push(chunk);
        }
    }

    /// The list, and all that belongs to it if it has depth and not too much of it.
    pub(crate) async fn close(mut self, writer: &mut Writer) -> Result<(ChunkList, Vec<ChunkRef>)> {
        while let Some(node) = self.list.close() {
            self.store(writer, Some(node)).await?;
        }
        let list = self.list.finish();
        if list.depth == 0 || self.parts.len() > MAX_REMEMBERED {
            self.parts.clear();
        }
        Ok((list, self.parts))
    }
}

/// A stored stream.
pub(crate) struct StoredStream {
    pub(crate) content: ChunkList,
    /// See [`BasisEntry::parts`](crate::engine::basis::BasisEntry).
    pub(crate) parts: Vec<ChunkRef>,
    /// In hexadecimal, if it was asked for.
    pub(crate) sha256: Option<String>,
}

/// What is known of a stream before it is read.
pub(crate) struct StreamPlan {
    pub(crate) chunking: Chunking,
    /// Bytes to expect.
    pub(crate) size: Option<u64>,
    /// Whether its SHA-256 is taken.
    pub(crate) sha256: bool,
}

/// Store a byte stream. Reading goes on while what was read is cut and named. The inner error is the
/// body's: the repository is well, and other content may follow.
pub(crate) async fn store_stream(
    cx: &Context,
    writer: &mut Writer,
    body: ByteStream,
    plan: StreamPlan,
    stats: &mut StoreStats,
) -> Result<Result<StoredStream>> {
    // A stream must not be asked again after its end.
    let mut body = body.fuse();
    let shared = Arc::clone(writer.shared());
    let mut cutter = Cutter::new(shared.chunk_key.clone(), plan.chunking, plan.size);
    let mut digest = plan.sha256.then(Sha256::new);
    let mut list = GrowingList::default();
    let mut pieces = match read_some(cx, &mut body).await {
        Ok(pieces) => pieces,
        Err(e) => return Ok(Err(e)),
    };
    loop {
        let read: u64 = pieces.iter().map(|p| p.len() as u64).sum();
        stats.bytes_read += read;
        cx.progress().add(Counter::Bytes, read);
        let last = pieces.is_empty();
        let cut = {
            let (shared, mut digest) = (Arc::clone(&shared), digest.take());
            cx.compute(move || {
                let mut chunks = Vec::new();
                if last {
                    cutter.finish(&mut chunks);
                    return Ok((None, digest, name_slices(&shared, chunks)?));
                }
                for piece in pieces {
                    if let Some(digest) = &mut digest {
                        digest.update(&piece);
                    }
                    cutter.push(&piece, &mut chunks);
                }
                Ok((Some(cutter), digest, name_slices(&shared, chunks)?))
            })
        };
        let next = async { if last { Ok(Vec::new()) } else { read_some(cx, &mut body).await } };
        let (cut, next) = futures_util::join!(cut, next);
        let (back, digest_back, named) = cut?;
        digest = digest_back;
        for Named { chunk, content, known } in named {
            writer.put(Lane::Data, chunk, content, known).await?;
            list.push(writer, chunk).await?;
        }
        let Some(back) = back else { break };
        cutter = back;
        pieces = match next {
            Ok(pieces) => pieces,
            Err(e) => return Ok(Err(e)),
        };
    }
    let (content, parts) = list.close(writer).await?;
    let sha256 = digest.map(|digest| to_hex(&digest.finalize()));
    Ok(Ok(StoredStream { content, parts, sha256 }))
}

/// The next pieces of a stream, until there is enough to cut; none at its end.
async fn read_some(cx: &Context, body: &mut stream::Fuse<ByteStream>) -> Result<Vec<Bytes>> {
    let mut pieces = Vec::new();
    let mut len = 0;
    while len < CUT_AT_ONCE {
        match guarded(cx.run(body.try_next())).await? {
            None => break,
            Some(piece) if piece.is_empty() => {}
            Some(piece) if piece.len() > MAX_PIECE => {
                return Err(Error::internal(format!(
                    "a source gave a piece of {} bytes, the limit is {MAX_PIECE}",
                    piece.len()
                )));
            }
            Some(piece) => {
                len += piece.len();
                pieces.push(piece);
            }
        }
    }
    Ok(pieces)
}

/// What is to be done with an item of a tree.
enum Step {
    /// Nothing is to be read.
    Ready(StoredEntry, Vec<ChunkRef>),
    /// Its small content is read with others.
    Small(TreeEntry),
    /// Its content came with it.
    Inline(TreeEntry, Bytes),
    /// It is streamed.
    Large(TreeEntry),
    /// It could not be examined.
    Problem(EntryPath, Error),
}

/// A stored tree.
pub(crate) struct StoredTree {
    pub(crate) content: ContentRef,
    pub(crate) digest: TreeDigest,
    /// Without it, only time is lost.
    pub(crate) basis: Result<FileRef>,
}

/// Stores one tree.
pub(crate) struct TreeStore<'a> {
    pub(crate) cx: &'a Context,
    pub(crate) writer: &'a mut Writer,
    pub(crate) stats: &'a mut StoreStats,
    pub(crate) problems: &'a mut Problems,
    /// How files above [`SMALL_FILE`] are cut.
    pub(crate) chunking: Chunking,
}

/// The tree as it takes shape.
struct Growing {
    chunker: TreeChunker,
    list: GrowingList,
    digest: TreeDigest,
    basis: BasisWriter,
    count: u64,
    files: u64,
    bytes: u64,
    last: Option<EntryPath>,
    /// What is not in the tree although it was named, and why: other names of it cannot be either.
    missing: HashMap<EntryPath, Reason>,
}

impl Growing {
    /// Whether an entry can be put back from what is stored of it.
    fn check(&mut self, stored: &StoredEntry) -> Result<()> {
        if let EntryKind::HardLink { target } = &stored.entry.kind
            && let Some(reason) = self.missing.get(target)
        {
            let what = "the file that this is another name of could not be read";
            return Err(Error::new(*reason, what).with("file", target));
        }
        self.chunker.check(stored)
    }
}

impl TreeStore<'_> {
    /// Store a tree, taking over what the basis says is unchanged. The inner error is the walk's.
    pub(crate) async fn store(
        mut self,
        mut tree: Box<dyn TreeReader>,
        mut basis: Option<BasisReader>,
        new_basis: BasisWriter,
    ) -> Result<Result<StoredTree>> {
        let mut growing = Growing {
            chunker: TreeChunker::default(),
            list: GrowingList::default(),
            digest: TreeDigest::default(),
            basis: new_basis,
            count: 0,
            files: 0,
            bytes: 0,
            last: None,
            missing: HashMap::new(),
        };
        loop {
            let batch = match guarded(self.cx.run(tree.next_batch(self.cx))).await {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                Err(e) => return Ok(Err(e)),
            };
            let (steps, back) = self.decide(batch, basis).await?;
            basis = back;
            self.store_batch(&*tree, steps, &mut growing).await?;
        }
        let Growing { chunker, mut list, digest, basis, count, files, bytes, .. } = growing;
        if let Some(chunk) = chunker.finish() {
            let chunk = self.writer.put_meta(chunk).await?;
            list.push(self.writer, chunk).await?;
        }
        let (entries, _) = list.close(self.writer).await?;
        let basis = self.cx.blocking(move || Ok(basis.finish())).await?;
        let content = ContentRef::Tree { entries, count, files, bytes };
        Ok(Ok(StoredTree { content, digest, basis }))
    }

    /// Compare a batch with the basis: a merge of two sorted sequences.
    async fn decide(
        &self,
        batch: Vec<TreeItem>,
        mut basis: Option<BasisReader>,
    ) -> Result<(Vec<Step>, Option<BasisReader>)> {
        let shared = Arc::clone(self.writer.shared());
        self.cx
            .compute(move || {
                let decide = |item| {
                    let (entry, content) = match item {
                        TreeItem::Entry(entry, content) => (entry, content),
                        TreeItem::Problem(path, error) => {
                            return Ok(Step::Problem(path, error));
                        }
                    };
                    let EntryKind::File { size, .. } = entry.kind else {
                        let stored = StoredEntry { entry, content: ChunkList::default() };
                        return Ok(Step::Ready(stored, Vec::new()));
                    };
                    match content {
                        Content::Inline(bytes) => return Ok(Step::Inline(entry, bytes)),
                        Content::None => {
                            let stored = StoredEntry { entry, content: ChunkList::default() };
                            return Ok(Step::Ready(stored, Vec::new()));
                        }
                        Content::Deferred => {}
                        Content::Verified => {
                            let e =
                                Error::internal("a tree to be stored keeps its content to itself");
                            return Ok(Step::Problem(entry.path, e));
                        }
                    }
                    if let Some(was) = basis.as_mut().and_then(|b| b.unchanged(&entry)) {
                        let mut there = was.stored.content.depth == 0 || !was.parts.is_empty();
                        for chunk in was.chunks() {
                            there = there && shared.is_known(&chunk.id, chunk.len)?;
                        }
                        if there {
                            // Attributes may have changed without the file; the extents are the old ones.
                            let kind = was.stored.entry.kind;
                            let entry = TreeEntry { kind, ..entry };
                            let stored = StoredEntry { entry, content: was.stored.content };
                            return Ok(Step::Ready(stored, was.parts));
                        }
                    }
                    Ok(if size <= SMALL_FILE { Step::Small(entry) } else { Step::Large(entry) })
                };
                let steps = batch.into_iter().map(decide).collect::<Result<Vec<_>>>()?;
                Ok((steps, basis))
            })
            .await
    }

    async fn store_batch(
        &mut self,
        tree: &dyn TreeReader,
        steps: Vec<Step>,
        growing: &mut Growing,
    ) -> Result<()> {
        let mut groups: Vec<Vec<TreeEntry>> = Vec::new();
        let mut group_bytes = 0;
        for step in &steps {
            if let Step::Small(entry) = step {
                let size = entry.kind.content_len();
                let full =
                    |g: &Vec<TreeEntry>| g.len() >= GROUP_FILES || group_bytes + size > GROUP_BYTES;
                if groups.last().is_none_or(full) {
                    groups.push(Vec::new());
                    group_bytes = 0;
                }
                group_bytes += size;
                if let Some(group) = groups.last_mut() {
                    group.push(entry.clone());
                }
            }
        }
        let (cx, shared) = (self.cx, Arc::clone(self.writer.shared()));
        let mut loaded = stream::iter(groups)
            .map(|group| {
                let shared = Arc::clone(&shared);
                async move {
                    let files = cx.run(async { Ok(tree.load(cx, &group).await) }).await?;
                    if files.len() != group.len() {
                        return Err(Error::internal("a tree did not answer for each file"));
                    }
                    cx.compute(move || {
                        files
                            .into_iter()
                            .map(|f| Ok(f.map(|f| name_file(&shared, f))))
                            .collect::<Result<Vec<_>>>()
                    })
                    .await
                }
            })
            .buffered(GROUPS_AT_ONCE)
            .map_ok(|files| stream::iter(files.into_iter().map(Ok::<_, Error>)))
            .try_flatten();
        for step in steps {
            match step {
                Step::Ready(stored, parts) => {
                    if matches!(stored.entry.kind, EntryKind::File { .. })
                        && stored.content.size > 0
                    {
                        self.stats.files_unchanged += 1;
                        cx.progress().add(Counter::FilesUnchanged, 1);
                        cx.progress().add(Counter::BytesUnchanged, stored.content.size);
                    }
                    self.grow(growing, stored, &parts).await?;
                }
                Step::Problem(path, error) => self.problem(growing, path, error)?,
                Step::Inline(entry, bytes) => {
                    let named = name_file(&shared, LoadedFile { entry, bytes });
                    self.put_file(growing, named?).await?;
                }
                Step::Small(entry) => {
                    let file = loaded.try_next().await?;
                    let file = file.ok_or_else(|| Error::internal("a tree lost a file"))?;
                    match file {
                        Ok(named) => self.put_file(growing, named?).await?,
                        // It has grown since it was listed.
                        Err(e) if e.reason() == Reason::LimitExceeded => {
                            self.put_large(tree, growing, entry).await?;
                        }
                        Err(e) => self.problem(growing, entry.path, e)?,
                    }
                }
                Step::Large(entry) => self.put_large(tree, growing, entry).await?,
            }
        }
        Ok(())
    }

    /// A problem of one entry does not stop the rest. A cancellation does, and so does what is no problem of the
    /// entry: without memory or file descriptors the next one would fare no better.
    fn problem(&mut self, growing: &mut Growing, path: EntryPath, error: Error) -> Result<()> {
        if matches!(error.reason(), Reason::Cancelled | Reason::Unavailable) {
            return Err(error);
        }
        if error.reason() == Reason::NotFound {
            // It was removed between listing and reading: it is simply not there.
            growing.missing.insert(path, Reason::SourceChanged);
            return Ok(());
        }
        let place = path.display();
        growing.missing.insert(path, error.reason());
        self.cx.progress().add(Counter::Problems, 1);
        self.cx.progress().warn(&format!("{place}: {}", error.chain()));
        self.problems.add(place, &error);
        Ok(())
    }

    async fn put_file(&mut self, growing: &mut Growing, file: NamedFile) -> Result<()> {
        self.stats.files_read += 1;
        self.stats.bytes_read += file.size;
        self.cx.progress().add(Counter::FilesRead, 1);
        self.cx.progress().add(Counter::Bytes, file.size);
        let mut list = GrowingList::default();
        for Named { chunk, content, known } in file.chunks {
            self.writer.put(Lane::Data, chunk, content, known).await?;
            list.push(self.writer, chunk).await?;
        }
        let (content, parts) = list.close(self.writer).await?;
        self.grow(growing, StoredEntry { entry: file.entry, content }, &parts).await
    }

    async fn put_large(
        &mut self,
        tree: &dyn TreeReader,
        growing: &mut Growing,
        entry: TreeEntry,
    ) -> Result<()> {
        let mut attempt = 1;
        let problem = loop {
            let opened = match self.cx.run(tree.open(self.cx, &entry)).await {
                Ok(opened) => opened,
                Err(e) => break e,
            };
            let size = opened.entry.kind.content_len();
            let plan = StreamPlan { chunking: self.chunking, size: Some(size), sha256: false };
            let stored = store_stream(self.cx, self.writer, opened.body, plan, self.stats).await?;
            match stored {
                Ok(stored) if stored.content.size == size => {
                    self.stats.files_read += 1;
                    self.cx.progress().add(Counter::FilesRead, 1);
                    let entry = StoredEntry { entry: opened.entry, content: stored.content };
                    return self.grow(growing, entry, &stored.parts).await;
                }
                Ok(_) => {
                    break Error::internal("a file's content has another length than its entry");
                }
                Err(e) if e.reason() == Reason::SourceChanged && attempt < ATTEMPTS => attempt += 1,
                Err(e) => break e,
            }
        };
        self.problem(growing, entry.path, problem)
    }

    async fn grow(
        &mut self,
        growing: &mut Growing,
        stored: StoredEntry,
        parts: &[ChunkRef],
    ) -> Result<()> {
        if growing.last.as_ref().is_some_and(|last| *last >= stored.entry.path) {
            return Err(Error::internal("a tree's entries are out of order")
                .with("path", &stored.entry.path));
        }
        if let Err(e) = growing.check(&stored) {
            return self.problem(growing, stored.entry.path, e);
        }
        growing.last = Some(stored.entry.path.clone());
        growing.count += 1;
        if matches!(stored.entry.kind, EntryKind::File { .. }) {
            growing.files += 1;
            growing.bytes += stored.content.size;
        }
        self.stats.entries += 1;
        self.cx.progress().add(Counter::Entries, 1);
        growing.digest.add(&stored.entry);
        growing.basis.add(&stored, parts);
        if let Some(chunk) = growing.chunker.add(&self.writer.shared().chunk_key, &stored) {
            let chunk = self.writer.put_meta(chunk).await?;
            growing.list.push(self.writer, chunk).await?;
        }
        Ok(())
    }
}

/// A small file, cut and named.
struct NamedFile {
    entry: TreeEntry,
    size: u64,
    chunks: Vec<Named>,
}

fn name_file(shared: &Shared, file: LoadedFile) -> Result<NamedFile> {
    let size = file.bytes.len() as u64;
    if size != file.entry.kind.content_len() {
        return Err(Error::internal("a file's content has another length than its entry")
            .with("path", &file.entry.path));
    }
    let contents = if file.bytes.is_empty() {
        Vec::new()
    } else if size <= SMALL_FILE {
        vec![file.bytes]
    } else {
        return Err(Error::internal("a small file is too long").with("path", &file.entry.path));
    };
    Ok(NamedFile { entry: file.entry, size, chunks: name_all(shared, contents)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ChunkId;

    #[test]
    fn what_waits_keeps_no_more_than_itself_in_memory() {
        let block = Bytes::from(vec![7; 4 << 20]);
        let is_slice = |named: &Named| block.as_ptr_range().contains(&named.content.as_ptr());
        let chunk = |from: usize, len: usize, known| Named {
            chunk: ChunkRef { id: ChunkId([1; 32]), len: u32::try_from(len).unwrap() },
            content: if known { Bytes::new() } else { block.slice(from..from + len) },
            known,
        };
        let mib = 1 << 20;
        // All is new, and large: it goes on its way at once.
        let mut all = vec![chunk(0, mib, false), chunk(mib, 3 * mib, false)];
        set_apart(&mut all);
        assert!(all.iter().all(is_slice));
        // What is small waits for others, and what is little would keep much alive.
        let mut mixed = vec![chunk(0, 8192, false), chunk(8192, 4 * mib - 8192, false)];
        set_apart(&mut mixed);
        assert_eq!(mixed.iter().map(is_slice).collect::<Vec<_>>(), [false, true]);
        let mut little = vec![chunk(0, mib, false), chunk(mib, 3 * mib, true)];
        set_apart(&mut little);
        assert!(!is_slice(&little[0]) && little[0].content == block.slice(..mib));
    }
}
