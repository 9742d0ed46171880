//! Looks at bodies on their way: whether they keep the rules of bodies, and what they carry.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _};
use snapkit_core::artifact::{ArtifactName, Body, ByteStream, MAX_PIECE, Shape};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Result};
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::record::{Record, RecordPosition, RecordReader, RecordValue};
use snapkit_core::tree::{
    Content, EntryPath, LoadedFile, OpenedFile, SMALL_FILE, TreeDigest, TreeEntry, TreeItem,
    TreeReader,
};

/// The rules that a body broke.
#[derive(Clone, Debug, Default)]
pub(super) struct Broken(Arc<Mutex<Vec<String>>>);

impl Broken {
    fn unless(&self, holds: bool, rule: &str) {
        if !holds {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(rule.to_owned());
        }
    }

    /// Panics if there are any.
    pub(super) fn assert_none(&self, artifact: &str) {
        let broken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(broken.is_empty(), "contract broken: the body of {artifact}: {broken:?}");
    }
}

/// Pass a body on, and note the rules that it breaks.
pub(super) fn watch(body: Body, broken: &Broken) -> Body {
    let broken = broken.clone();
    match body {
        Body::Bytes(stream) => Body::Bytes(watch_stream(stream, broken)),
        Body::Tree(inner) => Body::Tree(Box::new(WatchedTree { inner, broken, last: None })),
        Body::Records(inner) => {
            Body::Records(Box::new(WatchedRecords { inner, broken, last: None }))
        }
    }
}

fn watch_stream(stream: ByteStream, broken: Broken) -> ByteStream {
    stream
        .inspect_ok(move |piece| {
            broken.unless(piece.len() <= MAX_PIECE, "a piece has at most 1 MiB");
        })
        .boxed()
}

struct WatchedTree {
    inner: Box<dyn TreeReader>,
    broken: Broken,
    last: Option<EntryPath>,
}

#[async_trait]
impl TreeReader for WatchedTree {
    async fn next_batch(&mut self, cx: &Context) -> Result<Option<Vec<TreeItem>>> {
        let batch = self.inner.next_batch(cx).await?;
        let Some(items) = &batch else { return Ok(None) };
        let rule = |holds, rule| self.broken.unless(holds, rule);
        rule(!items.is_empty(), "a batch is not empty");
        rule(items.len() <= 4096, "a batch has at most 4096 items");
        let mut inline = 0;
        for item in items {
            rule(
                self.last.as_ref().is_none_or(|last| last < item.path()),
                "a tree is sorted by path, each path once",
            );
            self.last = Some(item.path().clone());
            if let TreeItem::Entry(entry, content) = item {
                let len = entry.kind.content_len();
                let carried = if let Content::Inline(bytes) = content { bytes.len() } else { 0 };
                inline += carried;
                let fits = match content {
                    Content::None => len == 0,
                    Content::Inline(bytes) => bytes.len() as u64 == len && len <= SMALL_FILE,
                    Content::Deferred | Content::Verified => true,
                };
                rule(fits, "an entry has as much content as its size says");
                let xattrs: usize = entry.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
                rule(xattrs <= TreeEntry::MAX_XATTRS, "extended attributes have at most 1 MiB");
                rule(entry.xattrs.is_sorted(), "extended attributes are sorted");
            }
        }
        rule(inline <= 1 << 20, "a batch has at most 1 MiB of inline content");
        Ok(batch)
    }

    async fn open(&self, cx: &Context, entry: &TreeEntry) -> Result<OpenedFile> {
        let mut file = self.inner.open(cx, entry).await?;
        self.broken.unless(file.entry.path == entry.path, "an opened file is the one asked for");
        file.body = watch_stream(file.body, self.broken.clone());
        Ok(file)
    }

    async fn load(&self, cx: &Context, entries: &[TreeEntry]) -> Vec<Result<LoadedFile>> {
        let files = self.inner.load(cx, entries).await;
        let rule = |holds, rule| self.broken.unless(holds, rule);
        rule(files.len() == entries.len(), "a load answers once for each entry");
        for (entry, file) in entries.iter().zip(&files) {
            if let Ok(file) = file {
                rule(file.entry.path == entry.path, "a load answers in the order of the entries");
                rule(
                    file.bytes.len() as u64 == file.entry.kind.content_len(),
                    "a loaded file has as much content as its size says",
                );
            }
        }
        files
    }
}

struct WatchedRecords {
    inner: Box<dyn RecordReader>,
    broken: Broken,
    last: Option<RecordPosition>,
}

#[async_trait]
impl RecordReader for WatchedRecords {
    fn axes(&self) -> &[String] {
        self.inner.axes()
    }

    async fn next_batch(&mut self, cx: &Context) -> Result<Option<Vec<Record>>> {
        let Some(mut records) = self.inner.next_batch(cx).await? else { return Ok(None) };
        let axes = self.inner.axes().len();
        let rule = |holds, rule| self.broken.unless(holds, rule);
        rule(!records.is_empty(), "a batch is not empty");
        rule(axes > 0, "records have at least one axis");
        let mut bytes = 0;
        let count = records.len();
        for record in &mut records {
            rule(record.positions.len() == axes, "a record has a place on each axis");
            if let Some(position) = record.positions.first() {
                rule(
                    self.last.as_ref().is_none_or(|last| last <= position),
                    "places on the first axis never go back",
                );
                self.last = Some(position.clone());
            }
            match &mut record.value {
                RecordValue::Inline(value) => bytes += value.len(),
                RecordValue::Parts(parts) => {
                    let inner = std::mem::replace(parts, futures_util::stream::empty().boxed());
                    *parts = watch_stream(inner, self.broken.clone());
                }
            }
        }
        rule(count == 1 || bytes <= 8 << 20, "a batch has at most 8 MiB or one record");
        Ok(Some(records))
    }
}

/// What a body carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Carried {
    /// Digest of all of it but what only says "unchanged".
    pub(super) digest: blake3::Hash,
    /// Bytes of content.
    pub(super) bytes: u64,
    /// Entries that are files with content.
    pub(super) files: u64,
    /// Entries, records or pieces.
    pub(super) items: u64,
    /// What the engine would pin of it: the facts of a tree.
    pub(super) facts: Facts,
}

/// Read the body of an artifact to its end.
pub(super) async fn read(cx: &Context, artifact: &ArtifactName, body: Body) -> Result<Carried> {
    let mut reading = Reading::default();
    let is_tree = body.shape() == Shape::Tree;
    match body {
        Body::Bytes(stream) => reading.stream(stream).await?,
        Body::Tree(tree) => reading.tree(cx, tree).await?,
        Body::Records(records) => reading.records(cx, records).await?,
    }
    let mut facts = Facts::new();
    if is_tree {
        reading.entries.write(artifact.as_str(), Standing::Pinned, &mut facts);
    }
    Ok(Carried {
        facts,
        digest: reading.hash.finalize(),
        bytes: reading.bytes,
        files: reading.files,
        items: reading.items,
    })
}

#[derive(Default)]
struct Reading {
    hash: blake3::Hasher,
    entries: TreeDigest,
    bytes: u64,
    files: u64,
    items: u64,
}

impl Reading {
    fn field(&mut self, bytes: &[u8]) {
        self.hash.update(&(bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
    }

    async fn stream(&mut self, mut stream: ByteStream) -> Result<()> {
        // Where pieces end means nothing.
        while let Some(piece) = stream.next().await {
            let piece = piece?;
            self.hash.update(&piece);
            self.bytes += piece.len() as u64;
            self.items += 1;
        }
        Ok(())
    }

    async fn tree(&mut self, cx: &Context, mut tree: Box<dyn TreeReader>) -> Result<()> {
        while let Some(items) = tree.next_batch(cx).await? {
            for item in items {
                self.items += 1;
                let (entry, content) = match item {
                    TreeItem::Entry(entry, content) => (entry, content),
                    TreeItem::Problem(_, error) => return Err(error),
                };
                self.files += u64::from(entry.kind.content_len() > 0);
                match content {
                    Content::None | Content::Verified => self.entry(&entry),
                    Content::Inline(bytes) => {
                        self.entry(&entry);
                        self.field(&bytes);
                        self.bytes += bytes.len() as u64;
                    }
                    Content::Deferred if entry.kind.content_len() <= SMALL_FILE => {
                        let mut loaded = tree.load(cx, std::slice::from_ref(&entry)).await;
                        let no_answer = || Error::internal("a load answers once for each entry");
                        let file = loaded.pop().ok_or_else(no_answer)??;
                        self.entry(&file.entry);
                        self.field(&file.bytes);
                        self.bytes += file.bytes.len() as u64;
                    }
                    Content::Deferred => {
                        let file = tree.open(cx, &entry).await?;
                        self.entry(&file.entry);
                        let len = file.entry.kind.content_len();
                        self.hash.update(&len.to_le_bytes());
                        let before = self.bytes;
                        self.stream(file.body).await?;
                        if self.bytes - before != len {
                            return Err(Error::corrupt(
                                "a file has another length than its entry says",
                            )
                            .with("path", &entry.path));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &TreeEntry) {
        self.entries.add(entry);
        let TreeEntry { path, kind, mode, uid, gid, mtime, xattrs, ancestor, .. } = entry;
        self.field(path.as_bytes());
        let rest = format!("{kind:?} {mode:o} {uid} {gid} {} {xattrs:?} {ancestor}", mtime.0);
        self.field(rest.as_bytes());
    }

    async fn records(&mut self, cx: &Context, mut records: Box<dyn RecordReader>) -> Result<()> {
        while let Some(batch) = records.next_batch(cx).await? {
            for record in batch {
                self.items += 1;
                for position in &record.positions {
                    self.field(position);
                }
                match record.value {
                    RecordValue::Inline(value) => {
                        self.field(&value);
                        self.bytes += value.len() as u64;
                    }
                    RecordValue::Parts(parts) => self.stream(parts).await?,
                }
            }
        }
        Ok(())
    }
}
