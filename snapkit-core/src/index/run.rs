//! Runs: the index on the local disk, read by position.
//!
//! A run is a file of the local cache, not of the repository: `magic[8] checksum[32]`, counts, the
//! segments it covers, packs, frames, a fan-out and sorted entries. The checksum covers everything after
//! it and is compared when the file is opened: a writer must never take a chunk for known because a disk
//! forgot a bit.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::codec::{Reader, WriteExt, len32};
use crate::error::{Error, IoContext as _, Result};
use crate::id::{ChunkId, PackId, RepositoryId, SegmentId};
use crate::index::Place;
use crate::index::rows::{RowSum, RowSummer};
use crate::index::segment::{ENTRY_LEN, EntryRow, FRAME_LEN, FrameRow, PACK_LEN, PackRow, Table};
use crate::manifest::ChunkRef;
use crate::own::open_file;

const MAGIC: [u8; 8] = *b"snaprun2";
/// Bytes before the variable parts: magic, checksum, repository, four counts.
const HEAD_LEN: usize = 8 + 32 + 16 + 16;

/// A run, open for lookups.
#[derive(Debug)]
pub struct Run {
    path: PathBuf,
    file: File,
    repository: RepositoryId,
    covers: Vec<SegmentId>,
    /// Whether the file stays when this process ends.
    keep: bool,
    counts: Counts,
    /// Entry ordinals where ids with the given first bits begin.
    fanout: Vec<u32>,
    /// The frames that were looked up last, each with its pack: neighbours are looked up together.
    recent: Mutex<VecDeque<(u32, FrameRow, PackRow)>>,
}

/// So many homes of one chunk are known in one run; more help nobody.
const MAX_HOMES: usize = 8;

/// The most rows that are read at once.
const READ_AT_ONCE: u32 = 1024;

/// As many rows as most buckets have at most: no memory is asked for to read them.
const FEW: usize = 24;

/// Frames that are remembered.
const RECENT: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Counts {
    covers: u32,
    packs: u32,
    frames: u32,
    entries: u32,
}

impl Counts {
    /// Bits of the fan-out: 8 to 16 entries a bucket, at most 2^20 buckets (4 MiB).
    fn fanout_bits(self) -> u32 {
        (self.entries / 8).max(1).ilog2().min(20)
    }

    fn fanout_len(self) -> usize {
        (1 << self.fanout_bits()) + 1
    }

    fn packs_at(self) -> u64 {
        HEAD_LEN as u64 + u64::from(self.covers) * 32
    }

    fn frames_at(self) -> u64 {
        self.packs_at() + u64::from(self.packs) * PACK_LEN as u64
    }

    fn fanout_at(self) -> u64 {
        self.frames_at() + u64::from(self.frames) * FRAME_LEN as u64
    }

    fn entries_at(self) -> u64 {
        self.fanout_at() + self.fanout_len() as u64 * 4
    }

    fn end(self) -> u64 {
        self.entries_at() + u64::from(self.entries) * ENTRY_LEN as u64
    }
}

#[expect(clippy::cast_possible_truncation, reason = "at most 20 bits are left")]
fn bucket(id: &ChunkId, bits: u32) -> usize {
    let top = u32::from_be_bytes([id.0[0], id.0[1], id.0[2], id.0[3]]);
    (u64::from(top) >> (32 - bits)) as usize
}

fn broken(path: &Path, why: &str) -> Error {
    Error::corrupt(format!("a file of the local index cache is damaged: {why}"))
        .with("path", path.display())
}

fn unreadable(path: &Path) -> String {
    format!("cannot read the index cache {}", path.display())
}

impl Run {
    /// Open every run in a directory. Damaged files and leftovers are removed: everything in the cache
    /// can be had again.
    pub fn open_all(dir: &Path) -> Result<Vec<Self>> {
        let mut runs = Vec::new();
        let entries = std::fs::read_dir(dir).doing(|| unreadable(dir))?;
        for entry in entries {
            let path = entry.doing(|| unreadable(dir))?.path();
            if path.extension().is_some_and(|e| e == "run") {
                match Self::open(&path) {
                    Ok(run) => runs.push(run),
                    // It may be whole, and the machine short of something.
                    Err(e) if e.is_passing() => {
                        tracing::warn!(error = %e.chain(), "a file of the index cache is not used");
                    }
                    Err(e) => {
                        tracing::warn!(error = %e.chain(), "a file of the index cache is removed");
                        drop(std::fs::remove_file(&path));
                    }
                }
            }
        }
        Ok(runs)
    }

    fn open(path: &Path) -> Result<Self> {
        let mut file = open_file(path).doing(|| unreadable(path))?;
        let io = |e| Error::io(unreadable(path), e);
        let mut head = [0; HEAD_LEN];
        file.read_exact(&mut head).map_err(io)?;
        let mut r = Reader::new(&head, "a run");
        if r.array()? != MAGIC {
            return Err(broken(path, "it is none"));
        }
        let checksum: [u8; 32] = r.array()?;
        let repository = RepositoryId(r.array()?);
        let counts =
            Counts { covers: r.u32()?, packs: r.u32()?, frames: r.u32()?, entries: r.u32()? };
        let len = file.metadata().map_err(io)?.len();
        if counts.end() != len {
            return Err(broken(path, "its length is wrong"));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&head[40..]);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = file.read(&mut buffer).map_err(io)?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
        }
        if hasher.finalize().as_bytes() != &checksum {
            return Err(broken(path, "its checksum is wrong"));
        }
        Self::assemble(path.to_owned(), file, repository, counts, true)
    }

    fn assemble(
        path: PathBuf,
        file: File,
        repository: RepositoryId,
        counts: Counts,
        keep: bool,
    ) -> Result<Self> {
        let read = |at: u64, len: usize| -> Result<Vec<u8>> {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, at).doing(|| unreadable(&path))?;
            Ok(bytes)
        };
        let covers = read(HEAD_LEN as u64, counts.covers as usize * 32)?;
        let covers = covers.as_chunks().0.iter().copied().map(SegmentId).collect();
        let fanout = read(counts.fanout_at(), counts.fanout_len() * 4)?;
        let fanout: Vec<u32> =
            fanout.as_chunks().0.iter().copied().map(u32::from_le_bytes).collect();
        if !fanout.is_sorted() || fanout.last() != Some(&counts.entries) {
            return Err(broken(&path, "its fan-out is wrong"));
        }
        Ok(Self { path, file, repository, covers, keep, counts, fanout, recent: Mutex::default() })
    }

    /// Write a table as a run. With `keep` the file stays, else it is unlinked at once.
    pub fn write(
        path: &Path,
        table: &Table,
        covers: &[SegmentId],
        keep: bool,
        repository: RepositoryId,
    ) -> Result<Self> {
        let counts = Counts {
            covers: len32(covers.len())?,
            packs: len32(table.packs.len())?,
            frames: len32(table.frames.len())?,
            entries: len32(table.entries.len())?,
        };
        let mut writer = RunWriter::create(path, repository, counts, covers)?;
        for pack in &table.packs {
            pack.encode(&mut writer.scratch);
            writer.flush()?;
        }
        for frame in &table.frames {
            frame.encode(&mut writer.scratch);
            writer.flush()?;
        }
        writer.begin_entries()?;
        for entry in &table.entries {
            writer.entry(entry)?;
        }
        writer.finish(keep)
    }

    /// Merge runs into one. Memory does not depend on their size.
    pub fn merge(path: &Path, runs: &[Arc<Self>], repository: RepositoryId) -> Result<Self> {
        let sum = |f: fn(&Counts) -> u32| -> Result<u32> {
            let n: u64 = runs.iter().map(|r| u64::from(f(&r.counts))).sum();
            u32::try_from(n).map_err(|_| Error::internal("the index exceeds four billion entries"))
        };
        let counts = Counts {
            covers: sum(|c| c.covers)?,
            packs: sum(|c| c.packs)?,
            frames: sum(|c| c.frames)?,
            entries: sum(|c| c.entries)?,
        };
        let covers: Vec<SegmentId> = runs.iter().flat_map(|r| r.covers.iter().copied()).collect();
        let mut writer = RunWriter::create(path, repository, counts, &covers)?;
        for run in runs {
            let mut packs = run.section(run.counts.packs_at())?;
            for _ in 0..run.counts.packs {
                writer.scratch.resize(PACK_LEN, 0);
                packs.read_exact(&mut writer.scratch).doing(|| run.unreadable())?;
                writer.flush()?;
            }
        }
        let (mut pack_base, mut frame_base) = (0, 0);
        let mut sources = Vec::new();
        for run in runs {
            let mut frames = run.section(run.counts.frames_at())?;
            for _ in 0..run.counts.frames {
                let mut bytes = [0; FRAME_LEN];
                frames.read_exact(&mut bytes).doing(|| run.unreadable())?;
                let mut frame = FrameRow::decode(&mut Reader::new(&bytes, "a run"))?;
                frame.pack += pack_base;
                frame.encode(&mut writer.scratch);
                writer.flush()?;
            }
            let mut source = MergeSource {
                run,
                entries: run.section(run.counts.entries_at())?,
                left: run.counts.entries,
                frame_base,
                head: None,
            };
            source.advance()?;
            sources.push(source);
            pack_base += run.counts.packs;
            frame_base += run.counts.frames;
        }
        writer.begin_entries()?;
        loop {
            let least = sources.iter_mut().filter(|s| s.head.is_some()).min_by_key(|s| s.head);
            let Some(source) = least else { break };
            if let Some(entry) = source.head {
                writer.entry(&entry)?;
            }
            source.advance()?;
        }
        writer.finish(true)
    }

    fn section(&self, at: u64) -> Result<BufReader<PositionedFile<'_>>> {
        Ok(BufReader::with_capacity(64 << 10, PositionedFile { file: &self.file, at }))
    }

    fn unreadable(&self) -> String {
        unreadable(&self.path)
    }

    /// The segments that it covers.
    #[must_use]
    pub fn covers(&self) -> &[SegmentId] {
        &self.covers
    }

    /// Whether it stays when this process ends.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.keep
    }

    /// How many entries it has.
    #[must_use]
    pub fn len(&self) -> u64 {
        u64::from(self.counts.entries)
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.entries == 0
    }

    /// Remove its file; lookups go on.
    pub fn delete(&self) {
        if self.keep {
            // If it cannot be removed it is found again, and dropped again, by the next load.
            drop(std::fs::remove_file(&self.path));
        }
    }

    /// Its packs and their lengths.
    pub fn packs(&self) -> Result<HashMap<PackId, u32>> {
        let mut section = self.section(self.counts.packs_at())?;
        let mut packs = HashMap::with_capacity(self.counts.packs as usize);
        let mut bytes = [0; PACK_LEN];
        for _ in 0..self.counts.packs {
            section.read_exact(&mut bytes).doing(|| self.unreadable())?;
            let pack = PackRow::decode(&mut Reader::new(&bytes, "a run"), self.repository)?;
            packs.insert(pack.id, pack.size);
        }
        Ok(packs)
    }

    /// The rows of an id, the first [`MAX_HOMES`] of them.
    fn entries(&self, id: &ChunkId) -> Result<Vec<EntryRow>> {
        let bucket = bucket(id, self.counts.fanout_bits());
        let (mut from, to) = (self.fanout[bucket], self.fanout[bucket + 1]);
        // Ids are evenly spread, unless somebody has chosen them.
        if to - from > READ_AT_ONCE {
            from = self.first_row(id, from, to)?;
        }
        let len = (to - from).min(READ_AT_ONCE) as usize * ENTRY_LEN;
        let (mut few, mut many) = ([0; FEW * ENTRY_LEN], Vec::new());
        let bytes = match few.get_mut(..len) {
            Some(few) => few,
            None => {
                many.resize(len, 0);
                &mut many[..]
            }
        };
        self.file.read_exact_at(bytes, self.row_at(from)).doing(|| self.unreadable())?;
        let rows = bytes.chunks_exact(ENTRY_LEN);
        rows.filter(|row| row[..32] == id.0)
            .take(MAX_HOMES)
            .map(|row| EntryRow::decode(&mut Reader::new(row, "a run")))
            .collect()
    }

    fn row_at(&self, row: u32) -> u64 {
        self.counts.entries_at() + u64::from(row) * ENTRY_LEN as u64
    }

    /// The first row between two whose id is not below this one.
    fn first_row(&self, id: &ChunkId, mut from: u32, mut to: u32) -> Result<u32> {
        while from < to {
            let middle = from + (to - from) / 2;
            let mut found = [0; 32];
            self.file.read_exact_at(&mut found, self.row_at(middle)).doing(|| self.unreadable())?;
            if found < id.0 { from = middle + 1 } else { to = middle }
        }
        Ok(from)
    }

    /// Add up the rows of each pack.
    pub(super) fn sum_rows(
        &self,
        summer: &RowSummer,
        sums: &mut HashMap<PackId, RowSum>,
    ) -> Result<()> {
        let mut packs = Vec::with_capacity(self.counts.packs as usize);
        let mut section = self.section(self.counts.packs_at())?;
        let mut bytes = [0; PACK_LEN];
        for _ in 0..self.counts.packs {
            section.read_exact(&mut bytes).doing(|| self.unreadable())?;
            packs.push(PackRow::decode(&mut Reader::new(&bytes, "a run"), self.repository)?.id);
        }
        let mut frames = Vec::with_capacity(self.counts.frames as usize);
        let mut section = self.section(self.counts.frames_at())?;
        let mut bytes = [0; FRAME_LEN];
        for _ in 0..self.counts.frames {
            section.read_exact(&mut bytes).doing(|| self.unreadable())?;
            frames.push(FrameRow::decode(&mut Reader::new(&bytes, "a run"))?);
        }
        let mut section = self.section(self.counts.entries_at())?;
        let mut bytes = [0; ENTRY_LEN];
        for _ in 0..self.counts.entries {
            section.read_exact(&mut bytes).doing(|| self.unreadable())?;
            let row = EntryRow::decode(&mut Reader::new(&bytes, "a run"))?;
            let frame = frames.get(row.frame as usize);
            let pack = frame.and_then(|frame| packs.get(frame.pack as usize));
            let (Some(frame), Some(pack)) = (frame, pack) else {
                return Err(broken(&self.path, "a row leads nowhere"));
            };
            let place = (frame.number, frame.offset, frame.stored, frame.raw);
            let chunk = ChunkRef { id: row.id, len: row.len };
            sums.entry(*pack).or_default().add(summer.digest(place, row.start, &chunk));
        }
        Ok(())
    }

    /// Whether it knows a chunk of this name and length.
    pub fn has(&self, id: &ChunkId, len: u32) -> Result<bool> {
        Ok(self.entries(id)?.iter().any(|e| e.len == len))
    }

    /// The homes that it knows of a chunk.
    pub fn find(&self, id: &ChunkId) -> Result<Vec<Place>> {
        self.entries(id)?
            .into_iter()
            .map(|e| {
                let (frame, pack) = self.frame(e.frame)?;
                Ok(Place {
                    pack: pack.id,
                    header: pack.header,
                    frame: frame.number,
                    offset: frame.offset,
                    stored: frame.stored,
                    raw: frame.raw,
                    start: e.start,
                    len: e.len,
                })
            })
            .collect()
    }

    /// A frame of the table and the pack that it is in.
    fn frame(&self, number: u32) -> Result<(FrameRow, PackRow)> {
        let recent = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, frame, pack)) = recent().iter().find(|(n, ..)| *n == number) {
            return Ok((*frame, pack.clone()));
        }
        let row = |at: u64, bytes: &mut [u8]| {
            self.file.read_exact_at(bytes, at).doing(|| self.unreadable())
        };
        let mut bytes = [0; FRAME_LEN];
        row(self.counts.frames_at() + u64::from(number) * FRAME_LEN as u64, &mut bytes)?;
        let frame = FrameRow::decode(&mut Reader::new(&bytes, "a run"))?;
        let mut bytes = [0; PACK_LEN];
        row(self.counts.packs_at() + u64::from(frame.pack) * PACK_LEN as u64, &mut bytes)?;
        let pack = PackRow::decode(&mut Reader::new(&bytes, "a run"), self.repository)?;
        let mut recent = recent();
        recent.truncate(RECENT - 1);
        recent.push_front((number, frame, pack.clone()));
        Ok((frame, pack))
    }
}

/// Reads a shared file from a place of its own.
struct PositionedFile<'a> {
    file: &'a File,
    at: u64,
}

impl std::io::Read for PositionedFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

struct MergeSource<'a> {
    run: &'a Run,
    entries: BufReader<PositionedFile<'a>>,
    left: u32,
    frame_base: u32,
    head: Option<EntryRow>,
}

impl MergeSource<'_> {
    fn advance(&mut self) -> Result<()> {
        self.head = None;
        if self.left > 0 {
            self.left -= 1;
            let mut bytes = [0; ENTRY_LEN];
            self.entries.read_exact(&mut bytes).doing(|| self.run.unreadable())?;
            let mut entry = EntryRow::decode(&mut Reader::new(&bytes, "a run"))?;
            entry.frame += self.frame_base;
            self.head = Some(entry);
        }
        Ok(())
    }
}

/// Writes a run front to back; the fan-out and the checksum are filled in at the end.
struct RunWriter {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    repository: RepositoryId,
    counts: Counts,
    fanout: Vec<u32>,
    written: u32,
    scratch: Vec<u8>,
}

impl RunWriter {
    fn create(
        path: &Path,
        repository: RepositoryId,
        counts: Counts,
        covers: &[SegmentId],
    ) -> Result<Self> {
        let temporary = path.with_extension("tmp");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .doing(|| format!("cannot write the index cache {}", temporary.display()))?;
        let mut writer = Self {
            path: path.to_owned(),
            temporary,
            file: BufWriter::with_capacity(256 << 10, file),
            repository,
            counts,
            fanout: vec![0; counts.fanout_len()],
            written: 0,
            scratch: Vec::new(),
        };
        writer.scratch.extend_from_slice(&MAGIC);
        writer.scratch.extend_from_slice(&[0; 32]);
        writer.scratch.extend_from_slice(&repository.0);
        for n in [counts.covers, counts.packs, counts.frames, counts.entries] {
            writer.scratch.put_u32(n);
        }
        for id in covers {
            writer.scratch.extend_from_slice(&id.0);
        }
        writer.flush()?;
        Ok(writer)
    }

    fn failed(&self, e: std::io::Error) -> Error {
        Error::io(format!("cannot write the index cache {}", self.path.display()), e)
    }

    fn flush(&mut self) -> Result<()> {
        let result = self.file.write_all(&self.scratch);
        self.scratch.clear();
        result.map_err(|e| self.failed(e))
    }

    fn begin_entries(&mut self) -> Result<()> {
        self.scratch.resize(self.counts.fanout_len() * 4, 0);
        self.flush()
    }

    fn entry(&mut self, entry: &EntryRow) -> Result<()> {
        self.fanout[bucket(&entry.id, self.counts.fanout_bits()) + 1] += 1;
        self.written += 1;
        entry.encode(&mut self.scratch);
        self.flush()
    }

    fn finish(mut self, keep: bool) -> Result<Run> {
        if self.written != self.counts.entries {
            return Err(Error::internal("a run has another number of entries than it states"));
        }
        for i in 1..self.fanout.len() {
            self.fanout[i] += self.fanout[i - 1];
        }
        let fanout: Vec<u8> = self.fanout.iter().flat_map(|n| n.to_le_bytes()).collect();
        let complete = |w: &mut Self| -> std::io::Result<()> {
            w.file.flush()?;
            let file = w.file.get_ref();
            file.write_all_at(&fanout, w.counts.fanout_at())?;
            let mut hasher = blake3::Hasher::new();
            let mut buffer = vec![0; 256 << 10];
            let mut reader = file;
            reader.seek(SeekFrom::Start(40))?;
            loop {
                let n = reader.read(&mut buffer)?;
                if n == 0 {
                    break;
                }
                hasher.update(&buffer[..n]);
            }
            file.write_all_at(hasher.finalize().as_bytes(), 8)?;
            if keep {
                std::fs::rename(&w.temporary, &w.path)
            } else {
                std::fs::remove_file(&w.temporary)
            }
        };
        complete(&mut self).map_err(|e| self.failed(e))?;
        let Self { path, file, repository, counts, .. } = self;
        let file = file
            .into_inner()
            .map_err(|e| Error::io("cannot write the index cache", e.into_error()))?;
        Run::assemble(path, file, repository, counts, keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_run_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.run");
        let mut head = vec![0; HEAD_LEN];
        head[..MAGIC.len()].copy_from_slice(&MAGIC);
        let counts = Counts { covers: 0, packs: 0, frames: 0, entries: 0 };
        let mut long = head.clone();
        long.resize(usize::try_from(counts.end()).unwrap(), 0);
        let mut said = Vec::new();
        for bytes in [&[0; 10][..], &[0; 500], &head[..], &long] {
            std::fs::write(&path, bytes).unwrap();
            let e = Run::open(&path).unwrap_err();
            said.push(e.chain().replace(dir.path().to_str().unwrap(), "DIR"));
        }
        insta::assert_snapshot!(said.join("\n"), @"
        cannot read the index cache DIR/x.run: failed to fill whole buffer
        a file of the local index cache is damaged: it is none (path=DIR/x.run)
        a file of the local index cache is damaged: its length is wrong (path=DIR/x.run)
        a file of the local index cache is damaged: its checksum is wrong (path=DIR/x.run)
        ");
        assert!(Run::open_all(dir.path()).unwrap().is_empty());
        assert!(!path.exists());
        // With a checksum that is right.
        let put = |counts: Counts, fanout: [u32; 2]| {
            let mut rest = vec![1; 16];
            for n in [counts.covers, counts.packs, counts.frames, counts.entries] {
                rest.extend(n.to_le_bytes());
            }
            rest.resize(HEAD_LEN - 40, 0);
            rest.extend(fanout.map(u32::to_le_bytes).concat());
            rest.resize(usize::try_from(counts.end()).unwrap() - 40, 0);
            let sum = *blake3::hash(&rest).as_bytes();
            std::fs::write(&path, [&MAGIC[..], &sum, &rest].concat()).unwrap();
        };
        let mut said = Vec::new();
        put(counts, [0, 7]);
        said.push(Run::open(&path).map(drop).unwrap_err());
        put(Counts { entries: 1, ..counts }, [0, 1]);
        let run = Run::open(&path).unwrap();
        let summer = RowSummer::new(&crate::context::Context::system()).unwrap();
        said.push(run.sum_rows(&summer, &mut HashMap::new()).unwrap_err());
        let said = said.iter().map(Error::chain).collect::<Vec<_>>().join("\n");
        insta::assert_snapshot!(said.replace(dir.path().to_str().unwrap(), "DIR"), @"
        a file of the local index cache is damaged: its fan-out is wrong (path=DIR/x.run)
        a file of the local index cache is damaged: a row leads nowhere (path=DIR/x.run)
        ");
    }
}
