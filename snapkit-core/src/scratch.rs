//! Scratch space for content that waits: a file without a name, encrypted with a key that is nowhere but in memory.
//!
//! A source whose server gives up on slow readers puts there what it is given, whatever the repository is doing. What is
//! left of it on the disk when the process has ended, however it ended, is of no use to anybody.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::context::Context;
use crate::error::{Error, IoContext as _, Reason, Result};
use crate::seal::TAG_LEN;

/// Plain bytes of a block.
const BLOCK: usize = 64 << 10;

/// Bytes of a block on the disk.
const SEALED: u64 = (BLOCK + TAG_LEN) as u64;

/// Scratch space that grows at its end.
#[derive(Debug)]
pub struct ScratchWriter {
    shared: Arc<Shared>,
    /// What does not fill a block yet.
    tail: Vec<u8>,
    blocks: u64,
    /// How many bytes there may be.
    most: u64,
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
    /// Begin in the directory for temporary files (`TMPDIR`, or `/tmp`), for at most so many bytes.
    pub fn begin(cx: &Context, most: u64) -> Result<Self> {
        Self::begin_in(cx, &std::env::temp_dir(), most)
    }

    /// Begin in a directory.
    pub fn begin_in(cx: &Context, directory: &Path, most: u64) -> Result<Self> {
        let what = || format!("cannot make scratch space in {}", directory.display());
        let file = tempfile::tempfile_in(directory).doing(what)?;
        let key = zeroize::Zeroizing::new(cx.random::<32>()?);
        let cipher = UnboundKey::new(&AES_256_GCM, &*key)
            .map_err(|_| Error::internal("scratch space cannot be encrypted"))?;
        let cipher = LessSafeKey::new(cipher);
        let shared = Arc::new(Shared { file, cipher, directory: directory.to_owned() });
        Ok(Self { shared, tail: Vec::with_capacity(BLOCK + TAG_LEN), blocks: 0, most })
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
        if self.len() + bytes.len() as u64 > self.most {
            let what = format!("scratch space of {} bytes is not enough", self.most);
            return Err(Error::new(Reason::NoSpace, what)
                .with("directory", self.shared.directory.display()));
        }
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
        let mut writer = ScratchWriter::begin(&Context::system(), 1 << 30).unwrap();
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
        let mut writer = ScratchWriter::begin_in(&Context::system(), dir.path(), 1 << 20).unwrap();
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
        assert_eq!(e.downcast::<Error>().unwrap().reason(), Reason::Io);
    }

    #[test]
    fn it_has_an_end() {
        let mut writer = ScratchWriter::begin(&Context::system(), 100).unwrap();
        writer.write(&[1; 100]).unwrap();
        assert_eq!(writer.write(&[1]).unwrap_err().reason(), Reason::NoSpace);
        let nowhere = ScratchWriter::begin_in(&Context::system(), Path::new("/nowhere"), 100);
        assert_eq!(nowhere.unwrap_err().reason(), Reason::NotFound);
    }
}
