//! Bytes, numbers and strings, with the checksum of all that was read.

use std::fmt;
use std::io::{self, Read};

use crc::{CRC_64_REDIS, Crc, Digest, Table};
use snapkit_core::{Error, Result};

use super::lzf;

/// The checksum of the format: CRC-64 of Jones.
pub(crate) const CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_REDIS);

static SHARED: Crc<u64, Table<16>> = CRC;

/// The longest name of a key: 512 MiB, as for any string of a server with the usual `proto-max-bulk-len`.
pub const MAX_KEY: u64 = 512 << 20;

/// The longest string that many small values are packed into, or that is an element of a larger value: 64 MiB. Servers
/// make packed ones of some KiB unless they are told otherwise.
pub const MAX_PACKED: u64 = 64 << 20;

/// Bytes that are read, or taken from a compressed string, at once.
const PIECE: usize = 64 << 10;

/// Takes what is read, as it is.
pub(super) type Raw<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// A length, or what stands where one is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    /// So many.
    Plain(u64),
    /// A string that is the number that follows, of so many bytes.
    Integer(usize),
    /// A compressed string.
    Compressed,
}

/// What a snapshot is read from.
pub(super) struct Input<R> {
    inner: R,
    crc: Digest<'static, u64, Table<16>>,
    position: u64,
}

impl<R> fmt::Debug for Input<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input").field("position", &self.position).finish_non_exhaustive()
    }
}

impl<R: Read> Input<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, crc: SHARED.digest(), position: 0 }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn into_inner(self) -> R {
        self.inner
    }

    /// Of all that was read.
    pub(super) fn checksum(&self) -> u64 {
        self.crc.clone().finalize()
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.inner.read_exact(buffer).map_err(|e| match e.downcast::<Error>() {
            // Who reads for us knows better what it means.
            Ok(own) => own,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Error::corrupt("the snapshot ends early").with("at", self.position)
            }
            Err(e) => Error::io("cannot read the snapshot", e).with("at", self.position),
        })?;
        self.crc.update(buffer);
        self.position += buffer.len() as u64;
        Ok(())
    }

    /// Whether nothing more comes.
    pub(super) fn is_at_end(&mut self) -> Result<bool> {
        let read = self.inner.read(&mut [0]);
        read.map(|n| n == 0).map_err(|e| match e.downcast::<Error>() {
            Ok(own) => own,
            Err(e) => Error::io("cannot read the value", e),
        })
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Bytes that are handed on as they are, too.
    pub(super) fn array_raw<const N: usize>(&mut self, raw: Raw<'_>) -> Result<[u8; N]> {
        let bytes = self.array::<N>()?;
        raw(&bytes)?;
        Ok(bytes)
    }

    /// A length that is no string.
    pub(super) fn length(&mut self) -> Result<u64> {
        self.length_raw(&mut |_| Ok(()))
    }

    pub(super) fn length_raw(&mut self, raw: Raw<'_>) -> Result<u64> {
        match self.read_length(raw)? {
            Length::Plain(length) => Ok(length),
            Length::Integer(_) | Length::Compressed => {
                Err(self.broken("a string stands where a length has to be"))
            }
        }
    }

    fn read_length(&mut self, raw: Raw<'_>) -> Result<Length> {
        let [first] = self.array_raw(raw)?;
        let low = first & 0x3f;
        Ok(match (first >> 6, low) {
            (0, low) => Length::Plain(low.into()),
            (1, low) => {
                let [second] = self.array_raw(raw)?;
                Length::Plain(u64::from(low) << 8 | u64::from(second))
            }
            (2, 0) => Length::Plain(u32::from_be_bytes(self.array_raw(raw)?).into()),
            (2, 1) => Length::Plain(u64::from_be_bytes(self.array_raw(raw)?)),
            (3, low @ 0..=2) => Length::Integer(1 << low),
            (3, 3) => Length::Compressed,
            _ => return Err(self.broken("a length is of an unknown form")),
        })
    }

    /// A string of at most so many bytes.
    pub(super) fn string(&mut self, most: u64) -> Result<Vec<u8>> {
        self.string_raw(most, &mut |_| Ok(()))
    }

    /// A string that is held as a whole.
    pub(super) fn string_raw(&mut self, most: u64, raw: Raw<'_>) -> Result<Vec<u8>> {
        let mut string = Vec::new();
        self.pieces(most, raw, &mut |piece| {
            string.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(string)
    }

    /// A string of any length, piece by piece.
    pub(super) fn pieces(&mut self, most: u64, raw: Raw<'_>, text: Raw<'_>) -> Result<()> {
        match self.read_length(raw)? {
            Length::Plain(length) => {
                self.check(length, most)?;
                self.copy(length, &mut |piece| {
                    raw(piece)?;
                    text(piece)
                })
            }
            Length::Integer(bytes) => {
                let mut number = [0; 8];
                self.fill(&mut number[..bytes])?;
                raw(&number[..bytes])?;
                // The sign is in the last byte that is there.
                let shift = 64 - 8 * bytes;
                let number = (u64::from_le_bytes(number) << shift).cast_signed() >> shift;
                text(number.to_string().as_bytes())
            }
            Length::Compressed => {
                let (compressed, length) = (self.length_raw(raw)?, self.length_raw(raw)?);
                self.check(compressed, most)?;
                self.check(length, most)?;
                let mut lzf = lzf::Decoder::new(length);
                self.copy(compressed, &mut |piece| {
                    raw(piece)?;
                    lzf.push(piece, text)
                })?;
                lzf.finish(text)
            }
        }
    }

    /// Bytes as they are.
    fn copy(&mut self, mut left: u64, to: Raw<'_>) -> Result<()> {
        let mut buffer = vec![0; usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            self.fill(&mut buffer[..n])?;
            to(&buffer[..n])?;
            left -= n as u64;
        }
        Ok(())
    }

    fn check(&self, length: u64, most: u64) -> Result<()> {
        if length <= most {
            return Ok(());
        }
        let what = format!("a string has {length} bytes, the limit is {most}");
        Err(Error::new(snapkit_core::Reason::LimitExceeded, what).with("at", self.position))
    }

    pub(super) fn broken(&self, why: &str) -> Error {
        Error::corrupt(format!("the snapshot is malformed: {why}")).with("at", self.position)
    }
}
