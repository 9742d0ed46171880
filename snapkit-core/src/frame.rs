//! Frames: runs of chunks, compressed together. The unit of reading.
//!
//! A frame's plain text is `method:u8 raw_len:u32` and the payload: the raw bytes (method 0) or a
//! zstd frame of them (method 1). It is authenticated before its lengths are believed.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

use crate::chunk::MAX_CHUNK;
use crate::codec::{Reader, WriteExt, len32};
use crate::error::{Error, Result};
use crate::seal::TAG_LEN;

/// Frames are filled up to this many raw bytes: 512 KiB. A larger chunk is a frame of its own.
pub const FRAME_TARGET: usize = 512 << 10;

/// Bytes before the payload.
const PREFIX: usize = 5;

/// The longest stored frame.
pub const MAX_STORED_FRAME: usize = MAX_CHUNK + PREFIX + TAG_LEN;

/// The longest that a frame of so many raw bytes is when it is stored: what does not shrink is stored as it is.
#[must_use]
pub fn longest_stored(raw: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "21")]
    const MORE: u32 = (PREFIX + TAG_LEN) as u32;
    raw.saturating_add(MORE)
}

/// zstd's level where nobody asks for another.
pub const DEFAULT_LEVEL: i32 = 3;

/// How hard a frame is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// A zstd level, 1 to 19. At the usual one the tables of matches are small enough for a core's own cache:
    /// a tenth to a third faster than zstd's own choice, and hardly larger.
    Level(i32),
    /// For pages of a database, of which only what changes is stored again: it pays to compress them well once.
    /// Level 6 with tables that fit a core's own cache, and without matches of less than six bytes, of which rows
    /// are full: to name one costs as much as it saves. It is smaller than level 6 itself, and twice as
    /// quick as level 8.
    Pages,
}

impl Effort {
    /// For pages, where content is compressed at a level.
    pub(crate) fn of_pages(level: i32) -> Self {
        if level == DEFAULT_LEVEL { Self::Pages } else { Self::Level(level.saturating_add(3)) }
    }

    /// Tell a compressor. What is 0 is as the level has it.
    fn apply(self, compressor: &mut Compressor<'static>) -> Result<()> {
        let (level, hash_log, chain_log, search_log, min_match) = match self {
            Self::Level(DEFAULT_LEVEL) => (DEFAULT_LEVEL, 15, 14, 0, 0),
            Self::Level(level) => (level.clamp(1, 19), 0, 0, 0, 0),
            Self::Pages => (6, 15, 15, 3, 6),
        };
        compressor
            .set_compression_level(level)
            .and_then(|()| compressor.set_parameter(CParameter::HashLog(hash_log)))
            .and_then(|()| compressor.set_parameter(CParameter::ChainLog(chain_log)))
            .and_then(|()| compressor.set_parameter(CParameter::SearchLog(search_log)))
            .and_then(|()| compressor.set_parameter(CParameter::MinMatch(min_match)))
            .map_err(zstd_error)
    }
}

/// Compresses and decompresses, with contexts that are reused.
pub struct FrameCodec {
    /// Whether each compressed frame is decompressed and compared before it is sealed.
    verify: bool,
    compressors: Mutex<Vec<Compressor<'static>>>,
    decompressors: Mutex<Vec<Decompressor<'static>>>,
}

impl std::fmt::Debug for FrameCodec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrameCodec(verify {})", self.verify)
    }
}

/// The plain text of a frame that is not compressed.
fn as_it_is(pieces: &[impl AsRef<[u8]>], len: usize) -> Result<Vec<u8>> {
    let mut plain = Vec::with_capacity(PREFIX + len + TAG_LEN);
    plain.push(0);
    plain.put_u32(len32(len)?);
    pieces.iter().for_each(|piece| plain.extend_from_slice(piece.as_ref()));
    Ok(plain)
}

fn zstd_error(e: std::io::Error) -> Error {
    Error::internal("zstd failed").caused_by(e)
}

impl FrameCodec {
    /// A codec. `verify`: decompress and compare what was compressed.
    #[must_use]
    pub fn new(verify: bool) -> Self {
        Self { verify, compressors: Mutex::default(), decompressors: Mutex::default() }
    }

    fn with_compressor<T>(
        &self,
        f: impl FnOnce(&mut Compressor<'static>) -> Result<T>,
    ) -> Result<T> {
        let pool = || self.compressors.lock().unwrap_or_else(PoisonError::into_inner);
        let pooled = pool().pop();
        let mut c = match pooled {
            Some(c) => c,
            None => Compressor::new(DEFAULT_LEVEL).map_err(zstd_error)?,
        };
        let result = f(&mut c);
        pool().push(c);
        result
    }

    fn with_decompressor<T>(
        &self,
        f: impl FnOnce(&mut Decompressor<'static>) -> Result<T>,
    ) -> Result<T> {
        let pool = || self.decompressors.lock().unwrap_or_else(PoisonError::into_inner);
        let pooled = pool().pop();
        let mut d = match pooled {
            Some(d) => d,
            None => Decompressor::new().map_err(zstd_error)?,
        };
        let result = f(&mut d);
        pool().push(d);
        result
    }

    /// The plain text of a frame for these raw bytes, ready to be sealed, with room for the tag.
    pub fn encode(&self, raw: &[u8], effort: Effort) -> Result<Vec<u8>> {
        match self.compress(raw, effort)? {
            Some(plain) => Ok(plain),
            None => as_it_is(&[raw], raw.len()),
        }
    }

    /// The same for raw bytes in several pieces. What does not shrink is copied once.
    pub fn encode_pieces(&self, pieces: &[Bytes], effort: Effort) -> Result<Vec<u8>> {
        if let [one] = pieces {
            return self.encode(one, effort);
        }
        let plain = as_it_is(pieces, pieces.iter().map(Bytes::len).sum())?;
        Ok(self.compress(&plain[PREFIX..], effort)?.unwrap_or(plain))
    }

    /// The plain text if it is shorter than the raw bytes as they are.
    fn compress(&self, raw: &[u8], effort: Effort) -> Result<Option<Vec<u8>>> {
        if raw.len() > MAX_CHUNK {
            return Err(Error::internal("a frame is too long"));
        }
        if !self.shrinks(raw)? {
            return Ok(None);
        }
        let longest = PREFIX + zstd::zstd_safe::compress_bound(raw.len()) + TAG_LEN;
        let mut out = Vec::with_capacity(longest);
        out.push(1);
        out.put_u32(len32(raw.len())?);
        self.with_compressor(|c| {
            let mut payload = std::io::Cursor::new(&mut out);
            payload.set_position(PREFIX as u64);
            effort.apply(c)?;
            c.compress_to_buffer(raw, &mut payload).map_err(zstd_error)?;
            Ok(())
        })?;
        if out.len() >= PREFIX + raw.len() {
            return Ok(None);
        }
        if self.verify {
            self.compare(&out, raw)?;
        }
        out.shrink_to(out.len() + TAG_LEN);
        Ok(Some(out))
    }

    /// Whether three samples of the bytes, compressed quickly, lose more than a thirtieth.
    fn shrinks(&self, raw: &[u8]) -> Result<bool> {
        const SAMPLE: usize = 4 << 10;
        if raw.len() < 8 * SAMPLE {
            return Ok(true);
        }
        let middle = raw.len() / 2;
        let mut sample = Vec::with_capacity(3 * SAMPLE);
        sample.extend_from_slice(&raw[..SAMPLE]);
        sample.extend_from_slice(&raw[middle..middle + SAMPLE]);
        sample.extend_from_slice(&raw[raw.len() - SAMPLE..]);
        let small = self.with_compressor(|c| {
            Effort::Level(1).apply(c)?;
            c.compress(&sample).map_err(zstd_error)
        })?;
        Ok(small.len() + sample.len() / 30 < sample.len())
    }

    /// A compressor may be wrong, and memory too: what cannot be read back is never stored.
    fn compare(&self, encoded: &[u8], raw: &[u8]) -> Result<()> {
        if self.decode(encoded, raw.len())? == raw {
            Ok(())
        } else {
            Err(Error::internal("a compressed frame does not decompress to what it was made of"))
        }
    }

    /// The raw bytes of an opened frame, which must have the length that the index states. Those that were
    /// stored as they are stand at its end.
    pub fn decode<'p>(&self, plain: &'p [u8], raw_len: usize) -> Result<Cow<'p, [u8]>> {
        let mut r = Reader::new(plain, "a frame");
        let method = r.u8()?;
        let stated = r.u32()? as usize;
        if stated != raw_len || raw_len > MAX_CHUNK {
            return Err(r.broken("its length is not what the index says"));
        }
        let payload = r.rest();
        let raw = match method {
            0 => Cow::Borrowed(payload),
            1 => self.with_decompressor(|d| {
                d.decompress(payload, raw_len)
                    .map(Cow::Owned)
                    .map_err(|e| Error::corrupt("a frame does not decompress").caused_by(e))
            })?,
            _ => return Err(r.broken("unknown compression method")),
        };
        if raw.len() == raw_len { Ok(raw) } else { Err(r.broken("its content is too short")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_does_not_shrink_is_stored_as_it_is() {
        let codec = FrameCodec::new(true);
        let mut noise = vec![0; 300_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let stored = codec.encode(&noise, Effort::Level(3)).unwrap();
        assert_eq!((stored[0], stored.len()), (0, noise.len() + PREFIX));
        let text = b"all work and no play ".repeat(10_000);
        let packed = codec.encode(&text, Effort::Level(3)).unwrap();
        assert!(packed[0] == 1 && packed.len() < text.len() / 50);
        assert_eq!(codec.decode(&packed, text.len()).unwrap(), text);
        assert!(codec.decode(&packed, text.len() - 1).is_err());
        // However many pieces it comes in.
        for raw in [Bytes::from(noise), Bytes::from(text)] {
            let whole = codec.encode(&raw, Effort::Level(3)).unwrap();
            let (half, len) = (raw.len() / 2, raw.len());
            for pieces in [vec![raw.clone()], vec![raw.slice(..half), raw.slice(half..len)]] {
                assert_eq!(codec.encode_pieces(&pieces, Effort::Level(3)).unwrap(), whole);
            }
        }
        assert!(codec.encode_pieces(&[], Effort::Level(3)).unwrap().len() == PREFIX);
    }

    #[test]
    fn one_effort_leaves_nothing_to_the_next() {
        let text: Vec<u8> = (0..40_000_u32).flat_map(|n| (n * n % 9973).to_be_bytes()).collect();
        let efforts =
            [Effort::Level(3), Effort::Pages, Effort::Level(9), Effort::Pages, Effort::Level(3)];
        let used = FrameCodec::new(true);
        for effort in efforts {
            let stored = used.encode(&text, effort).unwrap();
            assert_eq!(stored[0], 1, "it was compressed");
            assert_eq!(stored, FrameCodec::new(true).encode(&text, effort).unwrap(), "{effort:?}");
            assert_eq!(used.decode(&stored, text.len()).unwrap(), text);
        }
    }

    #[test]
    fn a_bomb_does_not_exceed_its_stated_length() {
        let codec = FrameCodec::new(true);
        let mut bomb = codec.encode(&vec![0; 4 << 20], Effort::Level(3)).unwrap();
        bomb[1..5].copy_from_slice(&1000u32.to_le_bytes());
        assert!(codec.decode(&bomb, 1000).is_err());
    }

    proptest! {
        #[test]
        fn frames_read_back(raw in proptest::collection::vec(any::<u8>(), 1..5000), n in 1usize..20) {
            let codec = FrameCodec::new(true);
            let raw = raw.repeat(n);
            let plain = codec.encode(&raw, Effort::Level(3)).unwrap();
            prop_assert_eq!(codec.decode(&plain, raw.len()).unwrap(), raw);
        }

        #[test]
        fn arbitrary_frames_are_refused_or_read(plain in proptest::collection::vec(any::<u8>(), 0..300), n in 0usize..10_000) {
            if let Ok(raw) = FrameCodec::new(false).decode(&plain, n) {
                prop_assert_eq!(raw.len(), n);
            }
        }
    }
}
