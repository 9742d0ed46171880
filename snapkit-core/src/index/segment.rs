//! Index segments: the table of packs, frames and chunks, as it is stored under `index/<id>`.
//!
//! A stored segment is a short header, the table sealed as frame 0 under the index key, and named by the
//! BLAKE3 hash of these bytes. The table is `pack_count:u32 frame_count:u32 entry_count:u32`, then packs
//! of 152 bytes (`id[32] size:u32 type:u8 0[3] salt[32] encapsulated[32] sealed_key[48]`), frames of 20
//! bytes (`pack:u32 number:u32 offset:u32 stored:u32 raw:u32`), and entries of 44 bytes sorted by id
//! (`id[32] frame:u32 start:u32 len:u32`).

use bytes::Bytes;

use crate::chunk::MAX_CHUNK;
use crate::codec::{Reader, WriteExt, len32};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::frame::longest_stored;
use crate::id::{ChunkId, PackId, RepositoryId, SegmentId};
use crate::pack::{MAX_PACK, PackContents};
use crate::seal::{Header, ObjectType, SealedKey, WriterKeys};

/// Bytes of a pack in a table.
pub const PACK_LEN: usize = 152;
/// Bytes of a frame in a table.
pub const FRAME_LEN: usize = 20;
/// Bytes of an entry in a table.
pub const ENTRY_LEN: usize = 44;

/// The most entries of a stored segment: half a million, 22 MB.
pub const MAX_SEGMENT_ENTRIES: usize = 500_000;

/// No stored segment is longer: 32 MiB, the most entries with their frames and packs.
pub const MAX_SEGMENT: usize = 32 << 20;

/// A frame of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRow {
    /// Ordinal of its pack in the table.
    pub pack: u32,
    /// Its number in the pack.
    pub number: u32,
    /// Where it begins in the pack.
    pub offset: u32,
    /// Its sealed length.
    pub stored: u32,
    /// Its raw length.
    pub raw: u32,
}

/// An entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryRow {
    /// The chunk.
    pub id: ChunkId,
    /// Ordinal of its frame in the table.
    pub frame: u32,
    /// Where it begins in the raw frame.
    pub start: u32,
    /// Its length.
    pub len: u32,
}

/// A pack of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackRow {
    /// Its name.
    pub id: PackId,
    /// Its length.
    pub size: u32,
    /// Its header.
    pub header: Header,
}

impl PackRow {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0);
        out.put_u32(self.size);
        out.push(self.header.object as u8);
        out.extend_from_slice(&[0; 3]);
        out.extend_from_slice(&self.header.salt);
        let key = self.header.sealed_key;
        out.extend_from_slice(&key.map_or([0; 32], |k| k.encapsulated));
        out.extend_from_slice(&key.map_or([0; 48], |k| k.ciphertext));
    }

    pub(crate) fn decode(r: &mut Reader<'_>, repository: RepositoryId) -> Result<Self> {
        let id = PackId(r.array()?);
        let size = r.u32()?;
        let object = match r.u8()? {
            1 => ObjectType::DataPack,
            2 => ObjectType::MetaPack,
            _ => return Err(r.broken("unknown type of pack")),
        };
        if r.take(3)? != [0; 3] || u64::from(size) > MAX_PACK {
            return Err(r.broken("a pack is impossible"));
        }
        let salt = r.array()?;
        let sealed_key = Some(SealedKey { encapsulated: r.array()?, ciphertext: r.array()? });
        Ok(Self { id, size, header: Header { object, epoch: 0, repository, salt, sealed_key } })
    }
}

impl FrameRow {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for n in [self.pack, self.number, self.offset, self.stored, self.raw] {
            out.put_u32(n);
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            pack: r.u32()?,
            number: r.u32()?,
            offset: r.u32()?,
            stored: r.u32()?,
            raw: r.u32()?,
        })
    }
}

impl EntryRow {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0);
        for n in [self.frame, self.start, self.len] {
            out.put_u32(n);
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { id: ChunkId(r.array()?), frame: r.u32()?, start: r.u32()?, len: r.u32()? })
    }
}

/// A table in memory: what one segment lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Packs.
    pub packs: Vec<PackRow>,
    /// Frames.
    pub frames: Vec<FrameRow>,
    /// Entries, sorted.
    pub entries: Vec<EntryRow>,
}

/// Makes a table from packs.
#[derive(Debug, Default)]
pub struct TableBuilder(Table);

impl TableBuilder {
    /// Add a pack.
    pub fn add(&mut self, pack: &PackContents) -> Result<()> {
        let t = &mut self.0;
        let ordinal = len32(t.packs.len())?;
        t.packs.push(PackRow { id: pack.id, size: pack.size, header: pack.header.clone() });
        for (number, f) in pack.frames.iter().enumerate() {
            let frame = len32(t.frames.len())?;
            t.frames.push(FrameRow {
                pack: ordinal,
                number: len32(number)?,
                offset: f.offset,
                stored: f.stored,
                raw: f.raw,
            });
            let mut start = 0;
            for chunk in &f.chunks {
                t.entries.push(EntryRow { id: chunk.id, frame, start, len: chunk.len });
                start += chunk.len;
            }
        }
        Ok(())
    }

    /// How many entries it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.entries.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.packs.is_empty()
    }

    /// The table, sorted.
    #[must_use]
    pub fn finish(mut self) -> Table {
        self.0.entries.sort_unstable();
        self.0
    }
}

impl Table {
    fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(
            12 + self.packs.len() * PACK_LEN
                + self.frames.len() * FRAME_LEN
                + self.entries.len() * ENTRY_LEN
                + 16,
        );
        out.put_u32(len32(self.packs.len())?);
        out.put_u32(len32(self.frames.len())?);
        out.put_u32(len32(self.entries.len())?);
        self.packs.iter().for_each(|p| p.encode(&mut out));
        self.frames.iter().for_each(|f| f.encode(&mut out));
        self.entries.iter().for_each(|e| e.encode(&mut out));
        Ok(out)
    }

    /// Read a table and check that it is one: every reference leads somewhere, every length fits.
    pub fn decode(bytes: &[u8], repository: RepositoryId) -> Result<Self> {
        let mut r = Reader::new(bytes, "an index segment");
        let (packs, frames, entries) = (r.u32()? as usize, r.u32()? as usize, r.u32()? as usize);
        let need = [(packs, PACK_LEN), (frames, FRAME_LEN), (entries, ENTRY_LEN)]
            .iter()
            .try_fold(0usize, |sum, (n, len)| sum.checked_add(n.checked_mul(*len)?));
        if need != Some(r.rest().len()) {
            return Err(r.broken("its counts do not fit its length"));
        }
        let mut t = Self {
            packs: Vec::with_capacity(packs),
            frames: Vec::with_capacity(frames),
            entries: Vec::with_capacity(entries),
        };
        for _ in 0..packs {
            t.packs.push(PackRow::decode(&mut r, repository)?);
        }
        for _ in 0..frames {
            let f = FrameRow::decode(&mut r)?;
            let pack = t.packs.get(f.pack as usize);
            let fits = pack
                .is_some_and(|p| u64::from(f.offset) + u64::from(f.stored) <= u64::from(p.size));
            if !fits || f.raw as usize > MAX_CHUNK || f.stored > longest_stored(f.raw) {
                return Err(r.broken("a frame is impossible"));
            }
            t.frames.push(f);
        }
        for _ in 0..entries {
            let e = EntryRow::decode(&mut r)?;
            let frame = t.frames.get(e.frame as usize);
            let fits =
                frame.is_some_and(|f| u64::from(e.start) + u64::from(e.len) <= u64::from(f.raw));
            if !fits || e.len == 0 || t.entries.last().is_some_and(|last| *last > e) {
                return Err(r.broken("an entry is impossible or out of order"));
            }
            t.entries.push(e);
        }
        r.end()?;
        Ok(t)
    }

    /// The stored segment and its name.
    pub fn seal(&self, cx: &Context, keys: &WriterKeys) -> Result<(SegmentId, Bytes)> {
        let (header, sealer) = keys.begin_shared(cx, ObjectType::Index, "")?;
        let mut table = self.encode()?;
        sealer.seal(0, &mut table)?;
        let mut object = header.encode();
        object.extend_from_slice(&table);
        Ok((SegmentId(*blake3::hash(&object).as_bytes()), Bytes::from(object)))
    }
}

/// Open a stored segment.
pub fn open(id: SegmentId, object: &[u8], keys: &WriterKeys) -> Result<Table> {
    if blake3::hash(object).as_bytes() != &id.0 {
        return Err(Error::corrupt("an index segment's content does not fit its name"));
    }
    let (header, sealed) = Header::decode(object, &[ObjectType::Index], keys.repository)?;
    let mut table = sealed.to_vec();
    keys.shared(&header, "").open(0, &mut table)?;
    Table::decode(&table, keys.repository)
}
