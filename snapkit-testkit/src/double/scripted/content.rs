//! What a scripted source holds: artifacts in memory.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape};
use snapkit_core::context::{Context, Timestamp};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::facts::{Fact, Facts, Standing};
use snapkit_core::record::{Record, RecordValue};
use snapkit_core::tree::{
    Content, EntryKind, EntryPath, SMALL_FILE, TreeDigest, TreeEntry, TreeItem,
};

/// One entry of a scripted tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptedFile {
    /// The entry.
    pub entry: TreeEntry,
    /// Its content, without holes; empty for what is no file.
    pub content: Bytes,
}

impl ScriptedFile {
    /// A regular file. Its times and its inode follow from path and content, so that changed content
    /// shows as a changed file. Panics if `path` is no path inside a tree.
    #[must_use]
    pub fn file(path: &str, content: impl Into<Bytes>) -> Self {
        let content = content.into();
        let size = content.len() as u64;
        let mut entry = TreeEntry::new(entry_path(path), EntryKind::File { size, extents: None });
        entry.inode = digest_u64(path.as_bytes());
        let nanos = i64::try_from(digest_u64(&content) >> 4).unwrap_or(0);
        (entry.mtime, entry.ctime) = (Timestamp(nanos), Timestamp(nanos));
        Self { entry, content }
    }

    /// A directory. Panics if `path` is no path inside a tree.
    #[must_use]
    pub fn directory(path: &str) -> Self {
        let mut entry = TreeEntry::new(entry_path(path), EntryKind::Directory);
        entry.inode = digest_u64(path.as_bytes());
        Self { entry, content: Bytes::new() }
    }

    /// Any entry that has no content.
    #[must_use]
    pub fn special(entry: TreeEntry) -> Self {
        Self { entry, content: Bytes::new() }
    }
}

fn entry_path(path: &str) -> EntryPath {
    match EntryPath::new(path.as_bytes()) {
        Ok(path) => path,
        Err(e) => panic!("{e}"),
    }
}

fn digest_u64(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// The content of a scripted artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScriptedContent {
    /// Bytes.
    Bytes(Bytes),
    /// A tree, sorted by path.
    Tree(Vec<ScriptedFile>),
    /// Records with places on so many axes, in order.
    Records(Vec<String>, Vec<ScriptedRecord>),
}

/// One record of a scripted sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptedRecord {
    /// Its place on each axis.
    pub positions: Vec<Bytes>,
    /// Its value.
    pub value: Bytes,
}

impl ScriptedRecord {
    /// A record of one axis.
    #[must_use]
    pub fn new(place: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self { positions: vec![place.into()], value: value.into() }
    }
}

impl ScriptedContent {
    pub(super) fn facts(&self, name: &str, standing: Standing, facts: &mut Facts) {
        let mut put = |what: &str, value: snapkit_core::facts::FactValue| {
            facts.0.insert(format!("{name}.{what}"), Fact { standing, value });
        };
        match self {
            Self::Bytes(bytes) => {
                put("bytes", (bytes.len() as u64).into());
                put("blake3", blake3::hash(bytes).to_hex().as_str().into());
            }
            Self::Tree(files) => {
                let (mut digest, mut content) = (TreeDigest::default(), blake3::Hasher::new());
                for file in files {
                    digest.add(&file.entry);
                    content.update(&(file.content.len() as u64).to_le_bytes());
                    content.update(&file.content);
                }
                put("content", content.finalize().to_hex().as_str().into());
                digest.write(name, standing, facts);
            }
            Self::Records(axes, records) => {
                let mut content = blake3::Hasher::new();
                let fields = records.iter().flat_map(|r| r.positions.iter().chain([&r.value]));
                for field in axes.iter().map(String::as_bytes).chain(fields.map(|f| &f[..])) {
                    content.update(&(field.len() as u64).to_le_bytes());
                    content.update(field);
                }
                put("records", (records.len() as u64).into());
                put("content", content.finalize().to_hex().as_str().into());
            }
        }
    }

    /// Read a body to its end. What only says "unchanged" (ctime, inode) is dropped from trees.
    pub(super) async fn collect(cx: &Context, body: Body) -> Result<Self> {
        match body {
            Body::Bytes(stream) => Ok(Self::Bytes(gather(stream).await?)),
            Body::Tree(mut tree) => {
                let mut files: Vec<ScriptedFile> = Vec::new();
                while let Some(items) = tree.next_batch(cx).await? {
                    for item in items {
                        let (entry, content) = match item {
                            TreeItem::Entry(entry, content) => (entry, content),
                            TreeItem::Problem(_, error) => return Err(error),
                        };
                        let (mut entry, content) = match content {
                            // Only a check meets these, and it has nothing to compare.
                            Content::Verified => continue,
                            Content::None => (entry, Bytes::new()),
                            Content::Inline(bytes) => (entry, bytes),
                            Content::Deferred if entry.kind.content_len() <= SMALL_FILE => {
                                let mut loaded = tree.load(cx, std::slice::from_ref(&entry)).await;
                                let file = loaded.pop().unwrap_or_else(|| {
                                    Err(Error::internal("a tree answered no entry for one"))
                                })?;
                                (file.entry, file.bytes)
                            }
                            Content::Deferred => {
                                let file = tree.open(cx, &entry).await?;
                                (file.entry, gather(file.body).await?)
                            }
                        };
                        (entry.ctime, entry.inode) = (Timestamp(0), 0);
                        if entry.kind.content_len() != content.len() as u64 {
                            return Err(Error::corrupt(
                                "a file has another length than its entry says",
                            )
                            .with("path", &entry.path)
                            .with("expected", entry.kind.content_len())
                            .with("found", content.len()));
                        }
                        files.push(ScriptedFile { entry, content });
                    }
                }
                Ok(Self::Tree(files))
            }
            Body::Records(mut reader) => {
                let mut records = Vec::new();
                while let Some(batch) = reader.next_batch(cx).await? {
                    for Record { positions, value } in batch {
                        let value = match value {
                            RecordValue::Inline(value) => value,
                            RecordValue::Parts(parts) => gather(parts).await?,
                        };
                        records.push(ScriptedRecord { positions, value });
                    }
                }
                Ok(Self::Records(reader.axes().to_vec(), records))
            }
        }
    }
}

async fn gather(stream: snapkit_core::artifact::ByteStream) -> Result<Bytes> {
    let gathered: BytesMut = stream
        .try_fold(BytesMut::new(), |mut all, piece| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        })
        .await?;
    Ok(gathered.freeze())
}

/// One artifact of a scripted source.
#[derive(Clone, Debug)]
pub struct ScriptedArtifact {
    pub(super) name: ArtifactName,
    pub(super) content: ScriptedContent,
    pub(super) piece: usize,
    /// Files whose content cannot be read.
    pub(super) unreadable: BTreeMap<EntryPath, Reason>,
    /// Entries that cannot even be examined.
    pub(super) hidden: BTreeMap<EntryPath, Reason>,
    chunking: Chunking,
    fingerprint: bool,
}

impl ScriptedArtifact {
    /// An artifact that is a byte stream. Panics if `name` is not an artifact's name.
    #[must_use]
    pub fn bytes(name: &str, content: impl Into<Bytes>) -> Self {
        Self::new(artifact_name(name), ScriptedContent::Bytes(content.into()))
    }

    /// An artifact that is a tree; entries are sorted, and directories that are missing are added.
    /// Panics if `name` is not an artifact's name.
    #[must_use]
    pub fn tree(name: &str, files: impl IntoIterator<Item = ScriptedFile>) -> Self {
        let mut sorted = BTreeMap::new();
        for file in files {
            let mut above = file.entry.path.parent();
            while let Some(path) = above {
                above = path.parent();
                sorted
                    .entry(path.clone())
                    .or_insert_with(|| ScriptedFile::directory(&path.display()));
            }
            sorted.insert(file.entry.path.clone(), file);
        }
        Self::new(artifact_name(name), ScriptedContent::Tree(sorted.into_values().collect()))
    }

    /// An artifact that is a sequence of records with one axis, `key`, by which they are sorted. Panics if
    /// `name` is not an artifact's name.
    #[must_use]
    pub fn records(name: &str, records: impl IntoIterator<Item = ScriptedRecord>) -> Self {
        let mut records: Vec<_> = records.into_iter().collect();
        records.sort_by(|a, b| a.positions.cmp(&b.positions));
        Self::sequence(name, &["key"], records)
    }

    /// An artifact that is a sequence of records as they are. Panics if `name` is not an artifact's name.
    #[must_use]
    pub fn sequence(name: &str, axes: &[&str], records: Vec<ScriptedRecord>) -> Self {
        let axes = axes.iter().map(|axis| (*axis).to_owned()).collect();
        let content = ScriptedContent::Records(axes, records);
        Self::new(artifact_name(name), content).chunking(Chunking::Records)
    }

    pub(super) fn new(name: ArtifactName, content: ScriptedContent) -> Self {
        Self {
            name,
            content,
            piece: 64 << 10,
            unreadable: BTreeMap::new(),
            hidden: BTreeMap::new(),
            chunking: Chunking::Content,
            fingerprint: false,
        }
    }

    /// Cut it this way.
    #[must_use]
    pub fn chunking(mut self, chunking: Chunking) -> Self {
        self.chunking = chunking;
        self
    }

    /// Give it a fingerprint, which follows from its content.
    #[must_use]
    pub fn fingerprinted(mut self) -> Self {
        self.fingerprint = true;
        self
    }

    /// Yield byte streams in pieces of this many bytes. Not limited, so that a consumer can be given
    /// pieces that are too large.
    #[must_use]
    pub fn piece(mut self, bytes: usize) -> Self {
        self.piece = bytes.max(1);
        self
    }

    /// Let reading a file's content fail. Panics if `path` is no path inside a tree.
    #[must_use]
    pub fn unreadable(mut self, path: &str, reason: Reason) -> Self {
        self.unreadable.insert(entry_path(path), reason);
        self
    }

    /// Let an entry appear only as a problem. Panics if `path` is no path inside a tree.
    #[must_use]
    pub fn hidden(mut self, path: &str, reason: Reason) -> Self {
        self.hidden.insert(entry_path(path), reason);
        self
    }

    pub(super) fn meta(&self) -> ArtifactMeta {
        let (shape, media_type) = match &self.content {
            ScriptedContent::Bytes(_) => (Shape::Bytes, "application/octet-stream"),
            ScriptedContent::Tree(_) => (Shape::Tree, "application/x-tree"),
            ScriptedContent::Records(..) => (Shape::Records, "application/x-records"),
        };
        let meta = ArtifactMeta::new(self.name.clone(), shape, media_type, self.chunking);
        if self.fingerprint { meta.fingerprint(self.digest()) } else { meta }
    }

    fn digest(&self) -> String {
        let mut facts = Facts::new();
        self.content.facts("", Standing::Pinned, &mut facts);
        let text = serde_json::to_vec(&facts).unwrap_or_default();
        blake3::hash(&text).to_hex().to_string()
    }
}

fn artifact_name(name: &str) -> ArtifactName {
    match ArtifactName::new(name) {
        Ok(name) => name,
        Err(e) => panic!("{e}"),
    }
}
