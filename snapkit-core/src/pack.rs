//! Packs: objects that hold many sealed frames.
//!
//! `header[144] ‖ frames ‖ padding ‖ trailer ‖ footer[12]`. The trailer lists frames and chunks, is
//! sealed under the index key, and is enough to rebuild the index. The footer is `trailer_len:u32` and
//! the bytes `snapend\0`. The whole has a Padmé length; a pack's name is the BLAKE3 hash of its bytes.

use bytes::Bytes;

use crate::chunk::MAX_CHUNK;
use crate::codec::{Reader, WriteExt, len32};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::frame::{MAX_STORED_FRAME, longest_stored};
use crate::id::{ChunkId, PackId, RepositoryId};
use crate::key::Key;
use crate::manifest::ChunkRef;
use crate::seal::{FrameSealer, Header, ObjectType, TAG_LEN, TRAILER_FRAME, WriterKeys, padme};

/// A pack is closed when its frames reach this: 16 MiB.
pub const PACK_TARGET: usize = 16 << 20;

/// No pack is longer: 32 MiB.
pub const MAX_PACK: u64 = 32 << 20;

/// Length of the footer.
pub const FOOTER_LEN: usize = 12;

const FOOTER_MAGIC: [u8; 8] = *b"snapend\0";

/// The most chunks that a pack holds.
pub const MAX_PACK_CHUNKS: usize = 200_000;

/// The key under which a pack is stored.
pub fn pack_key(id: PackId) -> Result<Key> {
    let name = id.to_string();
    Key::new(format!("packs/{}/{name}", &name[..2]))
}

/// A frame in a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedFrame {
    /// Where it begins in the pack.
    pub offset: u32,
    /// Its sealed length.
    pub stored: u32,
    /// Its raw length.
    pub raw: u32,
    /// Its chunks, in order. They fill it.
    pub chunks: Vec<ChunkRef>,
}

/// What a pack holds: its header, and its frames by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackContents {
    /// Its name.
    pub id: PackId,
    /// Its length.
    pub size: u32,
    /// Its header.
    pub header: Header,
    /// Its frames.
    pub frames: Vec<PackedFrame>,
}

/// A pack that is being filled.
#[derive(Debug)]
pub struct PackBuilder {
    header: Header,
    sealer: FrameSealer,
    trailer_sealer: FrameSealer,
    buffer: Vec<u8>,
    frames: Vec<PackedFrame>,
    chunks: usize,
}

impl PackBuilder {
    /// An empty pack for data or metadata, with room for `target` bytes of frames and what comes with them.
    pub fn new(cx: &Context, keys: &WriterKeys, object: ObjectType, target: usize) -> Result<Self> {
        let (header, sealer) = keys.begin(cx, object, "")?;
        let trailer_sealer = keys.shared(&header, "");
        // The last frame, the trailer and the padding are less than an eighth; memory is taken when it is filled.
        let mut buffer = Vec::with_capacity(target + target / 8);
        buffer.extend_from_slice(&header.encode());
        Ok(Self { header, sealer, trailer_sealer, buffer, frames: Vec::new(), chunks: 0 })
    }

    /// Seal a frame's plain text and append it. The chunks are those whose raw bytes it holds.
    pub fn append(&mut self, mut plain: Vec<u8>, chunks: Vec<ChunkRef>) -> Result<()> {
        let raw = chunks.iter().map(|c| u64::from(c.len)).sum::<u64>();
        let raw = u32::try_from(raw).map_err(|_| Error::internal("a frame is too long"))?;
        self.sealer.seal(self.frames.len() as u64, &mut plain)?;
        let offset = len32(self.buffer.len())?;
        self.buffer.extend_from_slice(&plain);
        self.chunks += chunks.len();
        self.frames.push(PackedFrame { offset, stored: len32(plain.len())?, raw, chunks });
        Ok(())
    }

    /// Whether it should be closed.
    #[must_use]
    pub fn is_full(&self, target: usize) -> bool {
        self.buffer.len() >= target || self.chunks >= MAX_PACK_CHUNKS / 2
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Close it: the object to be stored, and what it holds.
    pub fn finish(self) -> Result<(Bytes, PackContents)> {
        let mut trailer = Vec::new();
        trailer.put_u32(len32(self.frames.len())?);
        for frame in &self.frames {
            trailer.put_u32(frame.offset);
            trailer.put_u32(frame.stored);
            trailer.put_u32(frame.raw);
            trailer.put_u32(len32(frame.chunks.len())?);
            for chunk in &frame.chunks {
                trailer.extend_from_slice(&chunk.id.0);
                trailer.put_u32(chunk.len);
            }
        }
        // The trailer's length would tell the number of chunks.
        let padded = usize::try_from(padme(trailer.len() as u64))
            .map_err(|_| Error::internal("a trailer is too long"))?;
        trailer.resize(padded, 0);
        self.trailer_sealer.seal(TRAILER_FRAME, &mut trailer)?;

        let mut buffer = self.buffer;
        let bare = buffer.len() + trailer.len() + FOOTER_LEN;
        let total = usize::try_from(padme(bare as u64))
            .map_err(|_| Error::internal("a pack is too long"))?;
        buffer.reserve_exact(total - buffer.len());
        buffer.extend_from_slice(&self.sealer.padding(total - bare));
        buffer.extend_from_slice(&trailer);
        buffer.put_u32(len32(trailer.len())?);
        buffer.extend_from_slice(&FOOTER_MAGIC);
        if buffer.len() as u64 > MAX_PACK {
            return Err(Error::internal("a pack is too long"));
        }
        let id = PackId(*blake3::hash(&buffer).as_bytes());
        let size = len32(buffer.len())?;
        let contents = PackContents { id, size, header: self.header, frames: self.frames };
        Ok((Bytes::from(buffer), contents))
    }
}

/// The length of the trailer that a footer states, checked against the pack's length.
pub fn trailer_len(footer: &[u8], pack_size: u64) -> Result<u32> {
    let mut r = Reader::new(footer, "a pack's footer");
    let len = r.u32()?;
    if r.array()? != FOOTER_MAGIC {
        return Err(r.broken("its last bytes are not a pack's"));
    }
    let room = pack_size.saturating_sub((Header::LONG + FOOTER_LEN) as u64);
    if pack_size > MAX_PACK || u64::from(len) > room || (len as usize) < TAG_LEN {
        return Err(r.broken("the trailer's length is impossible"));
    }
    Ok(len)
}

/// Read a pack's header and sealed trailer.
pub fn read_trailer(
    id: PackId,
    size: u64,
    header: &[u8],
    trailer: &[u8],
    keys: &WriterKeys,
) -> Result<PackContents> {
    let (header, _) =
        Header::decode(header, &[ObjectType::DataPack, ObjectType::MetaPack], keys.repository)?;
    let mut plain = trailer.to_vec();
    keys.shared(&header, "").open(TRAILER_FRAME, &mut plain)?;
    let frames_end = size.saturating_sub((trailer.len() + FOOTER_LEN) as u64);
    let frames = parse_trailer(&plain, frames_end)?;
    let size = u32::try_from(size).map_err(|_| Error::corrupt("a pack is too long"))?;
    Ok(PackContents { id, size, header, frames })
}

fn parse_trailer(plain: &[u8], frames_end: u64) -> Result<Vec<PackedFrame>> {
    let mut r = Reader::new(plain, "a pack's trailer");
    let count = r.u32()? as usize;
    let mut frames = Vec::with_capacity(count.min(r.rest().len() / 16));
    let mut end = Header::LONG as u64;
    let mut chunk_count = 0;
    for _ in 0..count {
        let (offset, stored, raw, n) = (r.u32()?, r.u32()?, r.u32()?, r.u32()? as usize);
        if u64::from(offset) != end || stored as usize > MAX_STORED_FRAME || n == 0 {
            return Err(r.broken("a frame is out of place"));
        }
        end += u64::from(stored);
        chunk_count += n;
        if end > frames_end || chunk_count > MAX_PACK_CHUNKS {
            return Err(r.broken("frames or chunks exceed the pack"));
        }
        let mut chunks = Vec::with_capacity(n.min(r.rest().len() / 36));
        let mut total = 0u64;
        for _ in 0..n {
            let chunk = ChunkRef { id: ChunkId(r.array()?), len: r.u32()? };
            if chunk.len == 0 || chunk.len as usize > MAX_CHUNK {
                return Err(r.broken("a chunk's length is impossible"));
            }
            total += u64::from(chunk.len);
            chunks.push(chunk);
        }
        if total != u64::from(raw) || raw as usize > MAX_CHUNK || stored > longest_stored(raw) {
            return Err(r.broken("a frame's chunks do not fill it"));
        }
        frames.push(PackedFrame { offset, stored, raw, chunks });
    }
    if r.rest().iter().any(|b| *b != 0) {
        return Err(r.broken("something follows its end"));
    }
    Ok(frames)
}

/// Read what a whole pack holds, after checking its name: every damage is found.
pub fn read_pack(id: PackId, bytes: &[u8], keys: &WriterKeys) -> Result<PackContents> {
    check_name(id, bytes)?;
    read_contents(id, bytes, keys)
}

/// Read what a whole pack holds without checking its name: what is left of a damaged one.
pub fn read_contents(id: PackId, bytes: &[u8], keys: &WriterKeys) -> Result<PackContents> {
    let size = bytes.len() as u64;
    let split =
        bytes.len().checked_sub(FOOTER_LEN).ok_or_else(|| Error::corrupt("a pack is too short"))?;
    let trailer_at = split - trailer_len(&bytes[split..], size)? as usize;
    read_trailer(id, size, bytes, &bytes[trailer_at..split], keys)
}

/// Whether a pack's bytes are those that its name says. Needs no key.
pub fn check_name(id: PackId, bytes: &[u8]) -> Result<()> {
    if blake3::hash(bytes).as_bytes() == &id.0 {
        Ok(())
    } else {
        Err(Error::corrupt("a pack's content does not fit its name"))
    }
}

/// Whether an object under `packs/` has a pack's name, and which.
#[must_use]
pub fn parse_pack_key(key: &Key) -> Option<PackId> {
    let id: PackId = key.last_segment().parse().ok()?;
    (pack_key(id).ok()? == *key).then_some(id)
}

/// The repository that a pack's header names, for messages.
#[must_use]
pub fn pack_repository(bytes: &[u8]) -> Option<RepositoryId> {
    bytes.get(16..32)?.try_into().ok().map(RepositoryId)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{Effort, FrameCodec};
    use crate::seal::{ReaderKey, generate_key_pair};
    use crate::secret::Secret;

    fn keys(cx: &Context) -> (WriterKeys, ReaderKey) {
        let (private, public) = generate_key_pair(cx).unwrap();
        let writer = WriterKeys {
            repository: RepositoryId([1; 16]),
            public,
            id_key: Secret::new([2; 32]),
            index_key: Secret::new([3; 32]),
        };
        (writer, ReaderKey::new(private))
    }

    #[tokio::test]
    async fn a_pack_reads_back_and_every_byte_counts() {
        let cx = Context::system();
        let (writer, reader) = keys(&cx);
        let codec = FrameCodec::new(true);
        let mut builder = PackBuilder::new(&cx, &writer, ObjectType::DataPack, 4000).unwrap();
        for n in 1..4u8 {
            let raw = vec![n; 1000];
            let chunk = ChunkRef { id: ChunkId([n; 32]), len: 500 };
            builder
                .append(codec.encode(&raw, Effort::Level(3)).unwrap(), vec![chunk, chunk])
                .unwrap();
        }
        let (bytes, contents) = builder.finish().unwrap();
        assert_eq!(padme(bytes.len() as u64), bytes.len() as u64);
        assert_eq!(read_pack(contents.id, &bytes, &writer).unwrap(), contents);
        assert_eq!(parse_pack_key(&pack_key(contents.id).unwrap()), Some(contents.id));

        let frame = &contents.frames[2];
        let at = frame.offset as usize;
        let mut sealed = bytes[at..at + frame.stored as usize].to_vec();
        reader.open(&contents.header, "").unwrap().open(2, &mut sealed).unwrap();
        assert_eq!(codec.decode(&sealed, 1000).unwrap(), &[3; 1000][..]);

        for i in 0..bytes.len() {
            let mut bad = bytes.to_vec();
            bad[i] ^= 0x40;
            assert!(read_pack(contents.id, &bad, &writer).is_err(), "byte {i}");
            // With the name of the damaged bytes, a header, trailer or footer is still refused.
            let renamed = PackId(*blake3::hash(&bad).as_bytes());
            let frames_end = (frame.offset + frame.stored) as usize;
            let trailer =
                trailer_len(&bytes[bytes.len() - FOOTER_LEN..], bytes.len() as u64).unwrap();
            let in_padding = (frames_end..bytes.len() - FOOTER_LEN - trailer as usize).contains(&i);
            let in_frames = (Header::LONG..frames_end).contains(&i);
            if !in_padding && !in_frames {
                assert!(read_pack(renamed, &bad, &writer).is_err(), "renamed, byte {i}");
            }
        }
        for cut in [0, 5, 143, 144, bytes.len() - 1] {
            assert!(read_pack(contents.id, &bytes[..cut], &writer).is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_trailers_are_refused_or_read(
            plain in proptest::collection::vec(any::<u8>(), 0..400), end: u32
        ) {
            if let Ok(frames) = parse_trailer(&plain, u64::from(end)) {
                for f in frames {
                    prop_assert_eq!(u64::from(f.raw), f.chunks.iter().map(|c| u64::from(c.len)).sum::<u64>());
                }
            }
        }
    }
}
