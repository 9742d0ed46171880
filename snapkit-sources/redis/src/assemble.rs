//! A snapshot for a server, put together from keys and functions: what `src/rdb.c` loads.

use std::io::{self, Read};

use bytes::Bytes;
use crc::{Digest, Table};
use futures_util::TryStreamExt as _;
use snapkit_core::context::Context;
use snapkit_core::record::RecordValue;
use snapkit_core::scratch::{Room, Scratch, ScratchReader, ScratchWriter};
use snapkit_core::{Error, Result};

use crate::key::StoredKey;
use crate::rdb::{CRC, END, EXPIRES_MS, FREQUENCY, FUNCTION, IDLE, SELECT};

/// The lowest version that is written. Every server that anybody runs reads it.
const LOWEST: u32 = 9;

/// The version that knows functions.
const WITH_FUNCTIONS: u32 = 10;

/// A snapshot that grows in scratch space, key by key.
#[derive(Debug)]
pub(crate) struct Assembly {
    keys: ScratchWriter,
    database: Option<u64>,
    version: u32,
}

impl Assembly {
    pub(crate) fn begin(cx: &Context, room: &Room) -> Result<Self> {
        Ok(Self { keys: ScratchWriter::begin(cx, room)?, database: None, version: LOWEST })
    }

    /// Add a key.
    pub(crate) async fn add(&mut self, stored: StoredKey) -> Result<()> {
        let StoredKey { key, value } = stored;
        self.version = self.version.max(key.version());
        let mut head = Vec::with_capacity(key.name.len() + 40);
        if self.database != Some(key.database) {
            self.database = Some(key.database);
            head.push(SELECT);
            put_length(&mut head, key.database);
        }
        if let Some(expires) = key.expires {
            head.push(EXPIRES_MS);
            head.extend_from_slice(&expires.to_le_bytes());
        }
        if let Some(idle) = key.idle {
            head.push(IDLE);
            put_length(&mut head, idle);
        }
        if let Some(frequency) = key.frequency {
            head.extend_from_slice(&[FREQUENCY, frequency]);
        }
        head.push(key.encoding);
        put_length(&mut head, key.name.len() as u64);
        head.extend_from_slice(&key.name);
        self.keys.write(&head)?;
        match value {
            RecordValue::Inline(value) => self.keys.write(&value),
            RecordValue::Parts(mut parts) => {
                while let Some(part) = parts.try_next().await? {
                    self.keys.write(&part)?;
                }
                Ok(())
            }
        }
    }

    /// No key is added any more.
    pub(crate) fn finish(self, functions: &[Vec<u8>]) -> Result<Assembled> {
        let version =
            if functions.is_empty() { self.version } else { self.version.max(WITH_FUNCTIONS) };
        let mut front = format!("REDIS{version:04}").into_bytes();
        for source in functions {
            front.push(FUNCTION);
            put_length(&mut front, source.len() as u64);
            front.extend_from_slice(source);
        }
        Ok(Assembled { front: front.into(), keys: self.keys.finish()? })
    }
}

/// A length as the format writes it.
fn put_length(out: &mut Vec<u8>, length: u64) {
    match (u32::try_from(length), length) {
        (_, 0..=0x3f) => out.push(length.to_le_bytes()[0]),
        (_, 0x40..=0x3fff) => {
            let [low, high, ..] = length.to_le_bytes();
            out.extend_from_slice(&[0x40 | high, low]);
        }
        (Ok(length), _) => {
            out.push(0x80);
            out.extend_from_slice(&length.to_be_bytes());
        }
        (Err(_), _) => {
            out.push(0x81);
            out.extend_from_slice(&length.to_be_bytes());
        }
    }
}

/// A whole snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Assembled {
    front: Bytes,
    keys: Scratch,
}

impl Assembled {
    /// Read it from the beginning.
    pub(crate) fn reader(&self) -> AssembledReader {
        AssembledReader {
            front: self.front.clone(),
            keys: self.keys.reader(0, u64::MAX),
            crc: SHARED.digest(),
            end: None,
        }
    }
}

static SHARED: crc::Crc<u64, Table<16>> = CRC;

/// Reads a snapshot, and makes its checksum on the way.
pub(crate) struct AssembledReader {
    front: Bytes,
    keys: ScratchReader,
    crc: Digest<'static, u64, Table<16>>,
    /// What comes after the keys, once they have been read.
    end: Option<Bytes>,
}

impl Read for AssembledReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let take = |from: &mut Bytes, buffer: &mut [u8]| {
            let piece = from.split_to(from.len().min(buffer.len()));
            buffer[..piece.len()].copy_from_slice(&piece);
            piece.len()
        };
        if let Some(end) = &mut self.end {
            return Ok(take(end, buffer));
        }
        let n = match self.front.is_empty() {
            false => take(&mut self.front, buffer),
            true => self.keys.read(buffer)?,
        };
        self.crc.update(&buffer[..n]);
        if n > 0 {
            return Ok(n);
        }
        self.crc.update(&[END]);
        let checksum = self.crc.clone().finalize().to_le_bytes();
        let mut end = Bytes::from([&[END], &checksum[..]].concat());
        let n = take(&mut end, buffer);
        self.end = Some(end);
        Ok(n)
    }
}

/// What a read failed with.
pub(crate) fn unreadable(e: io::Error) -> Error {
    match e.downcast::<Error>() {
        Ok(own) => own,
        Err(e) => Error::io("cannot read the snapshot", e),
    }
}
