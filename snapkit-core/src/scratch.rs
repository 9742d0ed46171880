//! Scratch space for content that waits: a file without a name, encrypted with a key that is nowhere but in memory.
//!
//! A source whose server gives up on slow readers puts there what it is given, whatever the repository is doing. What is
//! left of it on the disk when the process has ended, however it ended, is of no use to anybody.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::Bytes;
use futures_util::stream;

use crate::artifact::ByteStream;
use crate::context::Context;
use crate::error::{Error, IoContext as _, Reason, Result};
use crate::seal::TAG_LEN;

/// Plain bytes of a block.
const BLOCK: usize = 64 << 10;

/// Bytes of a block on the disk.
const SEALED: u64 = (BLOCK + TAG_LEN) as u64;

/// Bytes that a stream yields at once.
const PIECE: u64 = 256 << 10;

/// How much scratch space there may be, for all that is done together.
#[derive(Clone, Debug)]
pub struct Room(Arc<Bounds>);

#[derive(Debug)]
struct Bounds {
    most: u64,
    taken: AtomicU64,
}

impl Room {
    /// At most so many bytes.
    #[must_use]
    pub fn new(most: u64) -> Self {
        Self(Arc::new(Bounds { most, taken: AtomicU64::new(0) }))
    }

    fn take(&self, bytes: u64) -> Result<()> {
        let grow = |taken: u64| taken.checked_add(bytes).filter(|taken| *taken <= self.0.most);
        if self.0.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_ok() {
            return Ok(());
        }
        let what = format!("scratch space of {} bytes is not enough", self.0.most);
        Err(Error::new(Reason::NoSpace, what))
    }

    fn give_back(&self, bytes: u64) {
        self.0.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Scratch space that grows at its end.
#[derive(Debug)]
pub struct ScratchWriter {
    shared: Arc<Shared>,
    /// What does not fill a block yet.
    tail: Vec<u8>,
    blocks: u64,
    /// The block that was read last.
    read: Option<(u64, Vec<u8>)>,
}

/// Scratch space to which nothing more is added.
#[derive(Clone, Debug)]
pub struct Scratch {
    shared: Arc<Shared>,
    len: u64,
}

struct Shared {
    file: File,
    cipher: LessSafeKey,
    directory: PathBuf,
    room: Room,
    /// How much of it this takes.
    taken: AtomicU64,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.room.give_back(*self.taken.get_mut());
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Scratch").field(&self.directory).finish()
    }
}

impl Shared {
    fn nonce(block: u64) -> Nonce {
        // No key is used for a second file.
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&block.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    fn write(&self, block: u64, mut plain: Vec<u8>) -> Result<()> {
        let sealed =
            self.cipher.seal_in_place_append_tag(Self::nonce(block), Aad::empty(), &mut plain);
        sealed.map_err(|_| Error::internal("scratch space cannot be encrypted"))?;
        self.file
            .write_all_at(&plain, block * SEALED)
            .doing(|| format!("cannot write scratch space in {}", self.directory.display()))
    }

    /// A block, of so many plain bytes.
    fn read(&self, block: u64, len: usize) -> Result<Vec<u8>> {
        let mut sealed = vec![0; len + TAG_LEN];
        self.file
            .read_exact_at(&mut sealed, block * SEALED)
            .doing(|| format!("cannot read scratch space in {}", self.directory.display()))?;
        let opened = self.cipher.open_in_place(Self::nonce(block), Aad::empty(), &mut sealed);
        opened.map_err(|_| {
            let what = format!(
                "scratch space in {} is not what was written there",
                self.directory.display()
            );
            Error::new(Reason::Io, what)
        })?;
        sealed.truncate(len);
        Ok(sealed)
    }
}

impl ScratchWriter {
    /// Begin in the directory for temporary files (`TMPDIR`, or `/tmp`).
    pub fn begin(cx: &Context, room: &Room) -> Result<Self> {
        Self::begin_in(cx, &std::env::temp_dir(), room)
    }

    /// Begin in a directory.
    pub fn begin_in(cx: &Context, directory: &Path, room: &Room) -> Result<Self> {
        let what = || format!("cannot make scratch space in {}", directory.display());
        let file = tempfile::tempfile_in(directory).doing(what)?;
        let key = zeroize::Zeroizing::new(cx.random::<32>()?);
        let cipher = UnboundKey::new(&AES_256_GCM, &*key)
            .map_err(|_| Error::internal("scratch space cannot be encrypted"))?;
        let cipher = LessSafeKey::new(cipher);
        let (directory, room, taken) = (directory.to_owned(), room.clone(), AtomicU64::new(0));
        let shared = Arc::new(Shared { file, cipher, directory, room, taken });
        Ok(Self { shared, tail: Vec::with_capacity(BLOCK + TAG_LEN), blocks: 0, read: None })
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.blocks * BLOCK as u64 + self.tail.len() as u64
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Add bytes at the end. `no-space` on a full disk, and beyond what was allowed.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        let taken = self.shared.room.take(len);
        taken.map_err(|e| e.with("directory", self.shared.directory.display()))?;
        self.shared.taken.fetch_add(len, Ordering::Relaxed);
        while !bytes.is_empty() {
            let n = bytes.len().min(BLOCK - self.tail.len());
            self.tail.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.tail.len() == BLOCK {
                let full = std::mem::replace(&mut self.tail, Vec::with_capacity(BLOCK + TAG_LEN));
                self.shared.write(self.blocks, full)?;
                self.blocks += 1;
            }
        }
        Ok(())
    }

    /// Read again what was written. What lies near to what was read before is read quickest.
    pub fn read(&mut self, from: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = from + bytes.len() as u64;
            let (number, start) =
                (at / BLOCK as u64, usize::try_from(at % BLOCK as u64).unwrap_or(0));
            let block = if number == self.blocks {
                &self.tail
            } else {
                if self.read.as_ref().is_none_or(|(read, _)| *read != number) {
                    self.read = Some((number, self.shared.read(number, BLOCK)?));
                }
                self.read.as_ref().map_or(&self.tail, |(_, block)| block)
            };
            let piece = block.get(start..).unwrap_or_default();
            if piece.is_empty() {
                return Err(Error::internal("scratch space is shorter than it was"));
            }
            bytes.extend_from_slice(&piece[..piece.len().min(len - bytes.len())]);
        }
        Ok(bytes)
    }

    /// Nothing more is added.
    pub fn finish(mut self) -> Result<Scratch> {
        let len = self.len();
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.shared.write(self.blocks, tail)?;
        }
        Ok(Scratch { shared: self.shared, len })
    }
}

impl Scratch {
    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// So many bytes from a place on, in pieces of 256 KiB.
    #[must_use]
    pub fn stream(&self, cx: &Context, from: u64, len: u64) -> ByteStream {
        let (scratch, cx, end) = (self.clone(), cx.clone(), from.saturating_add(len));
        Box::pin(stream::try_unfold(from, move |at| {
            let (scratch, cx) = (scratch.clone(), cx.clone());
            async move {
                if at >= end {
                    return Ok(None);
                }
                let piece = cx.blocking(move || {
                    let mut piece = Vec::new();
                    let mut reader = scratch.reader(at, PIECE.min(end - at));
                    reader.read_to_end(&mut piece).map_err(|e| match e.downcast::<Error>() {
                        Ok(own) => own,
                        Err(e) => Error::io("cannot read scratch space", e),
                    })?;
                    Ok(Bytes::from(piece))
                });
                let piece = piece.await?;
                let next = at + piece.len() as u64;
                // It would never end.
                if piece.is_empty() {
                    return Err(Error::internal("scratch space is shorter than it was"));
                }
                Ok(Some((piece, next)))
            }
        }))
    }

    /// Read from a place on, at most so many bytes.
    #[must_use]
    pub fn reader(&self, from: u64, most: u64) -> ScratchReader {
        let end = from.saturating_add(most).min(self.len);
        ScratchReader { scratch: self.clone(), at: from.min(end), end, block: None }
    }
}

/// Reads a part of scratch space from front to back.
#[derive(Debug)]
pub struct ScratchReader {
    scratch: Scratch,
    at: u64,
    end: u64,
    /// The block that was read last.
    block: Option<(u64, Vec<u8>)>,
}

impl ScratchReader {
    /// The bytes that come next, as many as lie together.
    fn next(&mut self) -> Result<&[u8]> {
        if self.at == self.end {
            return Ok(&[]);
        }
        let number = self.at / BLOCK as u64;
        let start = number * BLOCK as u64;
        if self.block.as_ref().is_none_or(|(read, _)| *read != number) {
            let len = (self.scratch.len - start).min(BLOCK as u64);
            let len = usize::try_from(len).unwrap_or(BLOCK);
            self.block = Some((number, self.scratch.shared.read(number, len)?));
        }
        let block = self.block.as_ref().map_or(&[][..], |(_, block)| block);
        let until = usize::try_from(self.end - start).unwrap_or(BLOCK).min(block.len());
        let from = usize::try_from(self.at - start).unwrap_or(until).min(until);
        Ok(&block[from..until])
    }
}

impl Read for ScratchReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.next().map_err(io::Error::other)?;
        let n = bytes.len().min(buffer.len());
        buffer[..n].copy_from_slice(&bytes[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(pieces: &[Vec<u8>]) -> Scratch {
        let mut writer = ScratchWriter::begin(&Context::system(), &Room::new(1 << 30)).unwrap();
        pieces.iter().for_each(|piece| writer.write(piece).unwrap());
        writer.finish().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_written_is_read(
            sizes in proptest::collection::vec(0..150_000_usize, 0..6),
            from in 0..400_000_u64,
            most in 0..400_000_u64,
        ) {
            let pieces: Vec<Vec<u8>> = sizes
                .into_iter()
                .enumerate()
                .map(|(n, size)| (0..size).map(|i| ((i * 31 + n) % 251).to_le_bytes()[0]).collect())
                .collect();
            let all = pieces.concat();
            let mut writer = ScratchWriter::begin(&Context::system(), &Room::new(1 << 30)).unwrap();
            let mut written = 0;
            for piece in &pieces {
                writer.write(piece).unwrap();
                written += piece.len();
                // What was written is there, wherever it is.
                let from = usize::try_from(from).unwrap() % (written + 1);
                let len = (written - from).min(100_000);
                prop_assert_eq!(&writer.read(from as u64, len).unwrap()[..], &all[from..from + len]);
            }
            prop_assert!(writer.read(written as u64, 1).is_err());
            let scratch = filled(&pieces);
            prop_assert_eq!(scratch.len(), all.len() as u64);
            let mut read = Vec::new();
            scratch.reader(from, most).read_to_end(&mut read).unwrap();
            let from = usize::try_from(from).unwrap().min(all.len());
            let until = (from + usize::try_from(most).unwrap()).min(all.len());
            prop_assert_eq!(&read[..], &all[from..until]);
        }
    }

    /// Nothing of it has a name, and what is on the disk is not what was written.
    #[test]
    fn nothing_is_left_that_could_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer =
            ScratchWriter::begin_in(&Context::system(), dir.path(), &Room::new(1 << 20)).unwrap();
        let secret = b"the secret of the source ".repeat(10_000);
        writer.write(&secret).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let scratch = writer.finish().unwrap();
        let mut disk = vec![0; secret.len() + 4 * TAG_LEN];
        scratch.shared.file.read_exact_at(&mut disk, 0).unwrap();
        assert!(!disk.windows(10).any(|bytes| bytes == b"the secret"));
        // What is changed there is noticed.
        scratch.shared.file.write_all_at(b"x", SEALED + 5).unwrap();
        let mut read = Vec::new();
        let e = scratch.reader(0, u64::MAX).read_to_end(&mut read).unwrap_err();
        assert_eq!(read.len(), BLOCK);
        let e = e.downcast::<Error>().unwrap();
        assert_eq!(e.reason(), Reason::Io);
        let said = e.chain().replace(dir.path().to_str().unwrap(), "DIR");
        insta::assert_snapshot!(said, @"scratch space in DIR is not what was written there");
        scratch.shared.file.set_len(100).unwrap();
        let e = scratch.reader(0, u64::MAX).read_to_end(&mut Vec::new()).unwrap_err();
        let said =
            e.downcast::<Error>().unwrap().chain().replace(dir.path().to_str().unwrap(), "DIR");
        insta::assert_snapshot!(said, @"cannot read scratch space in DIR: failed to fill whole buffer");
    }

    #[test]
    fn it_has_an_end() {
        let (cx, room) = (Context::system(), Room::new(100));
        let mut writer = ScratchWriter::begin(&cx, &room).unwrap();
        let mut other = ScratchWriter::begin(&cx, &room).unwrap();
        writer.write(&[1; 90]).unwrap();
        other.write(&[1; 10]).unwrap();
        let refused = [&mut writer, &mut other].map(|writer| writer.write(&[1]).unwrap_err());
        assert!(refused.iter().all(|e| e.reason() == Reason::NoSpace));
        insta::assert_snapshot!(refused[0].message(), @"scratch space of 100 bytes is not enough");
        drop(writer);
        other.write(&[1; 90]).unwrap();
        assert_eq!(other.write(&[1]).unwrap_err().reason(), Reason::NoSpace);
        let nowhere = ScratchWriter::begin_in(&cx, Path::new("/nowhere"), &room);
        let e = nowhere.unwrap_err();
        assert_eq!(e.reason(), Reason::NotFound);
        insta::assert_snapshot!(e.chain(), @"cannot make scratch space in /nowhere: No such file or directory (os error 2)");
    }

    #[tokio::test]
    async fn it_can_be_read_as_a_stream() {
        use futures_util::TryStreamExt as _;
        let all: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
        let scratch = filled(std::slice::from_ref(&all));
        let stream = scratch.stream(&Context::system(), 100, 1_000_000);
        let pieces: Vec<_> = stream.try_collect().await.unwrap();
        assert_eq!(pieces.concat(), all[100..1_000_100]);
    }
}
