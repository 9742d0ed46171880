//! The basis: what the last snapshot of a stack left in local state, so that the next one reads only
//! what changed.
//!
//! `<repository>/basis/<stack and host>/<source>/record.json` names the snapshot, the source's record and
//! the files beside it, all zstd streams. For each tree: encoded entries, each followed by the number and
//! the references of its parts where the entry itself holds only the root of a long list. For each byte
//! stream whose list is long: the references of its parts. A file is used only if its hash is the one in
//! the record. Everything here may be deleted; then more is read.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::artifact::SourceName;
use crate::codec::WriteExt;
use crate::context::{Context, Timestamp};
use crate::entries::{REF_LEN, StoredEntry, decode_entry, decode_node, encode_entry};
use crate::error::{Error, IoContext as _, Result};
use crate::id::{SnapshotId, to_hex};
use crate::ledger::MAX_SNAPSHOT;
use crate::manifest::{ChunkRef, SourceRecord};
use crate::own::{create_private_dir, open_file, private_options, read_file, write_file};
use crate::tree::{EntryKind, EntryPath, TreeEntry};

/// Of contents with more parts than this nothing is remembered: 4 TiB at a mebibyte each, 144 MiB of
/// references.
pub(crate) const MAX_REMEMBERED: usize = 4 << 20;

/// A longer record is not read: what a snapshot says of all its sources fits in.
const LONGEST_RECORD: u64 = 2 * MAX_SNAPSHOT as u64;

/// References that are read and written at once: as many as a list's node may have.
const PARTS_AT_ONCE: usize = 8192;

/// Where the basis of a stack is kept.
#[derive(Clone, Debug)]
pub(crate) struct BasisStore {
    dir: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    snapshot: SnapshotId,
    record: SourceRecord,
    files: BTreeMap<String, FileRef>,
}

/// A file beside the record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FileRef {
    name: String,
    hash: String,
}

/// The basis of one source.
#[derive(Debug)]
pub(crate) struct SourceBasis {
    dir: PathBuf,
    /// The snapshot that left it.
    pub(crate) snapshot: SnapshotId,
    /// What that snapshot says about the source.
    pub(crate) record: SourceRecord,
    files: BTreeMap<String, FileRef>,
}

impl BasisStore {
    pub(crate) fn new(repository_state: &Path, stack: &str, host: &str) -> Self {
        let mut h = blake3::Hasher::new();
        h.update(&(stack.len() as u64).to_le_bytes());
        h.update(stack.as_bytes());
        h.update(host.as_bytes());
        let name = &h.finalize().to_hex()[..32];
        Self { dir: repository_state.join("basis").join(name) }
    }

    fn source_dir(&self, source: &SourceName) -> PathBuf {
        self.dir.join(source.as_str())
    }

    /// The basis of a source, if there is a usable one. Blocks.
    pub(crate) fn load(&self, source: &SourceName) -> Option<SourceBasis> {
        let dir = self.source_dir(source);
        let json = read_file(&dir.join("record.json"), LONGEST_RECORD).ok()?;
        let document: Document = serde_json::from_slice(&json).ok()?;
        let Document { snapshot, record, files } = document;
        Some(SourceBasis { dir, snapshot, record, files })
    }

    /// Begin a new file for a tree of a source. Blocks.
    pub(crate) fn writer(&self, cx: &Context, source: &SourceName) -> BasisWriter {
        BasisWriter { file: self.file(cx, source), scratch: Vec::new(), buffer: Vec::new() }
    }

    /// Write a file of the parts of a byte stream of a source. Blocks.
    pub(crate) fn write_parts(
        &self,
        cx: &Context,
        source: &SourceName,
        parts: &[ChunkRef],
    ) -> Result<FileRef> {
        let mut file = self.file(cx, source)?;
        let mut buffer = Vec::new();
        for some in parts.chunks(PARTS_AT_ONCE) {
            buffer.clear();
            put_refs(&mut buffer, some);
            file.write(&buffer)?;
        }
        file.finish()
    }

    fn file(&self, cx: &Context, source: &SourceName) -> Result<BasisFile> {
        let dir = self.source_dir(source);
        create_private_dir(&dir)?;
        BasisFile::create(&dir, format!("{}.basis", to_hex(&cx.random::<12>()?)))
    }

    /// Replace a source's basis. Blocks.
    pub(crate) fn save(
        &self,
        snapshot: &SnapshotId,
        record: &SourceRecord,
        files: BTreeMap<String, FileRef>,
    ) -> Result<()> {
        let dir = self.source_dir(&record.name);
        let used: HashSet<String> = files.values().map(|f| f.name.clone()).collect();
        let document = Document { snapshot: snapshot.clone(), record: record.clone(), files };
        let json = serde_json::to_vec(&document)
            .map_err(|e| Error::internal("cannot encode the basis").caused_by(e))?;
        write_file(&dir.join("record.json"), &json)?;
        // Files of earlier runs, finished or not.
        if let Ok(entries) = fs::read_dir(&dir) {
            for entry in entries.flatten() {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if name.ends_with(".basis") && !used.contains(&*name) {
                    // What stays is removed by the next run.
                    drop(fs::remove_file(entry.path()));
                }
            }
        }
        Ok(())
    }
}

impl SourceBasis {
    /// The tree that was left for an artifact, if it is whole. Blocks.
    pub(crate) fn tree(&self, artifact: &str) -> Option<BasisReader> {
        let input = self.open(artifact)?;
        let trusted_before = self.record.cut.as_ref().map_or(Timestamp(i64::MIN), |c| c.begin);
        Some(BasisReader { input, head: None, ended: false, trusted_before })
    }

    /// The file that was left for an artifact, and whether it names all parts of a list, each of which
    /// `is_there`. Blocks.
    pub(crate) fn parts(
        &self,
        artifact: &str,
        mut is_there: impl FnMut(&ChunkRef) -> Result<bool>,
    ) -> Result<Option<FileRef>> {
        let (Some(file), Some(mut input)) = (self.files.get(artifact), self.open(artifact)) else {
            return Ok(None);
        };
        let mut some = Vec::new();
        loop {
            some.clear();
            let most = (PARTS_AT_ONCE * REF_LEN) as u64;
            match Read::by_ref(&mut input).take(most).read_to_end(&mut some) {
                Ok(0) => return Ok(Some(file.clone())),
                Ok(_) => {}
                Err(_) => return Ok(None),
            }
            let Ok(parts) = decode_node(&some) else { return Ok(None) };
            for part in &parts {
                if !is_there(part)? {
                    return Ok(None);
                }
            }
        }
    }

    /// A file that was left for an artifact, if it is whole. Blocks.
    fn open(&self, artifact: &str) -> Option<BasisInput> {
        let file = self.files.get(artifact)?;
        let path = self.dir.join(&file.name);
        let mut hasher = blake3::Hasher::new();
        let mut reader = open_file(&path).ok()?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match reader.read(&mut buffer).ok()? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            };
        }
        (hasher.finalize().to_hex().as_str() == file.hash).then_some(())?;
        let decoder = zstd::stream::read::Decoder::new(open_file(&path).ok()?).ok()?;
        Some(BufReader::with_capacity(256 << 10, decoder))
    }
}

type BasisInput = BufReader<zstd::stream::read::Decoder<'static, BufReader<File>>>;

/// An entry of the basis, with all that belongs to it.
#[derive(Clone, Debug)]
pub(crate) struct BasisEntry {
    pub(crate) stored: StoredEntry,
    /// Where the stored list is a longer one's root: the chunks of the content and the nodes of the list,
    /// all of them or none.
    pub(crate) parts: Vec<ChunkRef>,
}

impl BasisEntry {
    /// Every chunk that must still be there for the content to be taken over.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &ChunkRef> {
        self.stored.content.chunks.iter().chain(&self.parts)
    }
}

/// Reads a basis tree in order.
pub(crate) struct BasisReader {
    input: BasisInput,
    head: Option<BasisEntry>,
    ended: bool,
    trusted_before: Timestamp,
}

impl std::fmt::Debug for BasisReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BasisReader")
    }
}

impl BasisReader {
    /// The file of this entry, if it is as it was. Entries must be asked for in order. Blocks.
    pub(crate) fn unchanged(&mut self, entry: &TreeEntry) -> Option<BasisEntry> {
        let found = self.find(&entry.path)?;
        (same_file(&found.stored.entry, entry) && self.is_settled(&found.stored.entry))
            .then_some(found)
    }

    /// A file whose last change is too close to when it was looked at may have changed once more
    /// within the same tick of the file system's clock.
    fn is_settled(&self, entry: &TreeEntry) -> bool {
        let tick = if entry.ctime.0 % 1_000_000_000 == 0 { 2_000_000_000 } else { 50_000_000 };
        entry.ctime.0.saturating_add(tick) < self.trusted_before.0
    }

    fn find(&mut self, path: &EntryPath) -> Option<BasisEntry> {
        loop {
            if self.head.is_none() && !self.ended {
                self.head = self.read().ok().flatten();
                self.ended = self.head.is_none();
            }
            let head = self.head.as_ref()?;
            match head.stored.entry.path.cmp(path) {
                std::cmp::Ordering::Less => self.head = None,
                std::cmp::Ordering::Equal => return self.head.take(),
                std::cmp::Ordering::Greater => return None,
            }
        }
    }

    fn varint(&mut self) -> std::io::Result<Option<u64>> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let mut byte = [0];
            if self.input.read(&mut byte)? == 0 {
                return if shift == 0 {
                    Ok(None)
                } else {
                    Err(std::io::ErrorKind::UnexpectedEof.into())
                };
            }
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(Some(value));
            }
        }
        Err(std::io::ErrorKind::InvalidData.into())
    }

    fn read(&mut self) -> Result<Option<BasisEntry>> {
        let failed = || "cannot read the basis".to_owned();
        let Some(len) = self.varint().doing(failed)? else { return Ok(None) };
        let mut bytes = Vec::new();
        bytes.put_varint(len);
        let at = bytes.len();
        bytes.resize(at + usize::try_from(len).unwrap_or(0), 0);
        self.input.read_exact(&mut bytes[at..]).doing(failed)?;
        let (stored, _) = decode_entry(&bytes)?;
        let count = self.varint().doing(failed)?.unwrap_or(0);
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(MAX_REMEMBERED);
        let mut parts = Vec::new();
        let mut left = count * REF_LEN;
        while left > 0 {
            let mut some = vec![0; left.min(PARTS_AT_ONCE * REF_LEN)];
            self.input.read_exact(&mut some).doing(failed)?;
            parts.extend(decode_node(&some)?);
            left -= some.len();
        }
        Ok(Some(BasisEntry { stored, parts }))
    }
}

/// The one rule of "unchanged": size, modification, change and inode are the same.
fn same_file(was: &TreeEntry, is: &TreeEntry) -> bool {
    match (&was.kind, &is.kind) {
        (EntryKind::File { size: a, .. }, EntryKind::File { size: b, .. }) => {
            a == b && was.mtime == is.mtime && was.ctime == is.ctime && was.inode == is.inode
        }
        _ => false,
    }
}

fn put_refs(buffer: &mut Vec<u8>, refs: &[ChunkRef]) {
    for chunk in refs {
        buffer.extend_from_slice(&chunk.id.0);
        buffer.put_u32(chunk.len);
    }
}

/// Writes a basis tree. That it cannot be written costs the next run time and this one nothing, so it is said at the end.
pub(crate) struct BasisWriter {
    file: Result<BasisFile>,
    scratch: Vec<u8>,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for BasisWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BasisWriter({:?})", self.file.as_ref().map(|file| &file.path))
    }
}

impl BasisWriter {
    /// Add the next entry, with the parts of a content whose list has depth.
    pub(crate) fn add(&mut self, stored: &StoredEntry, parts: &[ChunkRef]) {
        let Ok(file) = &mut self.file else { return };
        self.buffer.clear();
        encode_entry(stored, &mut self.scratch, &mut self.buffer);
        self.buffer.put_varint(parts.len() as u64);
        put_refs(&mut self.buffer, parts);
        if let Err(e) = file.write(&self.buffer) {
            // A disk that is full gets back what is of no use any more.
            drop(fs::remove_file(&file.path));
            self.file = Err(e);
        }
    }

    /// The finished file.
    pub(crate) fn finish(self) -> Result<FileRef> {
        self.file?.finish()
    }
}

/// A file beside the record while it is written.
struct BasisFile {
    path: PathBuf,
    name: String,
    output: zstd::stream::write::Encoder<'static, HashingFile>,
}

struct HashingFile {
    file: File,
    hasher: blake3::Hasher,
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl BasisFile {
    fn create(dir: &Path, name: String) -> Result<Self> {
        let path = dir.join(&name);
        let what = || format!("cannot write the basis {}", path.display());
        let file = private_options().write(true).create_new(true).open(&path).doing(what)?;
        let output = HashingFile { file, hasher: blake3::Hasher::new() };
        let output = zstd::stream::write::Encoder::new(output, 1).doing(what)?;
        Ok(Self { path, name, output })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let result = self.output.write_all(bytes);
        result.doing(|| format!("cannot write the basis {}", self.path.display()))
    }

    fn finish(self) -> Result<FileRef> {
        let what = || format!("cannot write the basis {}", self.path.display());
        let output = self.output.finish().doing(what)?;
        Ok(FileRef { name: self.name, hash: output.hasher.finalize().to_hex().to_string() })
    }
}
