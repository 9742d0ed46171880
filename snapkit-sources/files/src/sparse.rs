//! Where a sparse file holds data, and a digest of content that does not depend on it.

use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::{Errno, Result};
use snapkit_core::tree::{EntryKind, Extent};

/// The data stretches of an open file, or `None` if it has no holes. Moves the file's position.
/// Beyond [`EntryKind::MAX_EXTENTS`] stretches, those that are closest together are joined.
pub(crate) fn extents(file: impl AsFd, size: u64) -> Result<Option<Vec<Extent>>> {
    let file = file.as_fd();
    let mut found: Vec<Extent> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            // No more data.
            Ok(_) | Err(Errno::NXIO) => break,
            // The file system does not tell.
            Err(Errno::INVAL | Errno::NOTSUP) => return Ok(None),
            Err(e) => return Err(e),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
        if end <= start {
            break;
        }
        found.push(Extent { offset: start, len: end - start });
        if found.len() >= 2 * EntryKind::MAX_EXTENTS {
            join_closest(&mut found);
        }
        at = end;
    }
    if found.len() > EntryKind::MAX_EXTENTS {
        join_closest(&mut found);
    }
    match found.as_slice() {
        [Extent { offset: 0, len }] if *len == size => Ok(None),
        _ => Ok(Some(found)),
    }
}

/// Join the closest neighbours until no more than the limit are left.
fn join_closest(extents: &mut Vec<Extent>) {
    let surplus = extents.len().saturating_sub(EntryKind::MAX_EXTENTS);
    if surplus == 0 {
        return;
    }
    let gap = |pair: &[Extent]| pair[1].offset - (pair[0].offset + pair[0].len);
    let mut gaps: Vec<u64> = extents.windows(2).map(gap).collect();
    let (_, widest, _) = gaps.select_nth_unstable(surplus - 1);
    let widest = *widest;
    let mut left = surplus;
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents.drain(..) {
        match joined.last_mut() {
            Some(last) if left > 0 && extent.offset - (last.offset + last.len) <= widest => {
                last.len = extent.offset + extent.len - last.offset;
                left -= 1;
            }
            _ => joined.push(extent),
        }
    }
    *extents = joined;
}

/// How finely content is told from holes.
const BLOCK: usize = 64 << 10;

/// A digest of a file's bytes that costs nothing for holes and is the same for zeros and for holes:
/// BLAKE3 over the blocks of 64 KiB that are not all zero, each after its number, and the size.
#[derive(Debug)]
pub(crate) struct ContentHasher {
    hasher: blake3::Hasher,
    /// Bytes of the block that `at` lies in, up to `at`.
    block: Vec<u8>,
    at: u64,
}

impl ContentHasher {
    pub(crate) fn new() -> Self {
        Self {
            hasher: blake3::Hasher::new_derive_key("snapkit files content"),
            block: Vec::new(),
            at: 0,
        }
    }

    /// Take in bytes at an offset, which must not go back. What is passed over is a hole.
    pub(crate) fn update(&mut self, offset: u64, mut bytes: &[u8]) {
        if offset > self.at {
            self.skip_to(offset);
        }
        while !bytes.is_empty() {
            let room = BLOCK - self.block.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            if self.block.is_empty() && now.len() == BLOCK {
                hash_block(&mut self.hasher, self.at, now);
            } else {
                self.block.extend_from_slice(now);
                if self.block.len() == BLOCK {
                    self.flush();
                }
            }
            self.at += now.len() as u64;
            bytes = later;
        }
    }

    fn skip_to(&mut self, offset: u64) {
        let block = BLOCK as u64;
        if offset / block != self.at / block {
            if !self.block.is_empty() {
                self.block.resize(BLOCK, 0);
                self.flush();
            }
            self.at = offset - offset % block;
        }
        let missing = usize::try_from(offset - self.at).unwrap_or(0);
        self.block.resize(self.block.len() + missing, 0);
        self.at = offset;
    }

    fn flush(&mut self) {
        hash_block(&mut self.hasher, self.at, &self.block);
        self.block.clear();
    }

    /// The digest of a file of this size.
    pub(crate) fn finish(mut self, size: u64) -> [u8; 32] {
        if !self.block.is_empty() {
            // The last block ends with the file.
            let start = self.at - self.at % BLOCK as u64;
            let len = usize::try_from(size.saturating_sub(start)).unwrap_or(BLOCK).min(BLOCK);
            self.block.resize(len.max(self.block.len()), 0);
            self.flush();
        }
        self.hasher.update(&u64::MAX.to_le_bytes());
        self.hasher.update(&size.to_le_bytes());
        self.hasher.finalize().into()
    }
}

/// `at` is anywhere in the block.
fn hash_block(hasher: &mut blake3::Hasher, at: u64, block: &[u8]) {
    if block.iter().any(|b| *b != 0) {
        hasher.update(&(at / BLOCK as u64).to_le_bytes());
        hasher.update(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn extents_are_found_and_joined() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(extents(&file, 1 << 20).unwrap(), Some(vec![]));
        file.write_all_at(&[1; 4096], 64 << 10).unwrap();
        let expected = vec![Extent { offset: 64 << 10, len: 4096 }];
        assert_eq!(extents(&file, 1 << 20).unwrap(), Some(expected));
        file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
        assert_eq!(extents(&file, 1 << 20).unwrap(), None);

        let many = EntryKind::MAX_EXTENTS as u64 + 10;
        let file = tempfile::tempfile().unwrap();
        for i in 0..many {
            file.write_all_at(&[1], i * 8192 + if i > 100 { 1 << 20 } else { 0 }).unwrap();
        }
        let size = file.metadata().unwrap().len();
        let found = extents(&file, size).unwrap().unwrap();
        assert_eq!(found.len(), EntryKind::MAX_EXTENTS);
        assert!(found.windows(2).all(|p| p[0].offset + p[0].len < p[1].offset));
        // The widest gap stays a hole.
        assert!(found.windows(2).any(|p| p[1].offset - p[0].offset > 1 << 20));
    }

    proptest! {
        #[test]
        fn the_digest_depends_on_bytes_and_not_on_holes(
            stretches in proptest::collection::vec((0u32..200_000, 1u32..100_000, 0u8..3), 1..6),
            cut in 1usize..90_000,
        ) {
            let mut whole = Vec::new();
            let mut sparse = ContentHasher::new();
            for (gap, len, byte) in stretches {
                whole.resize(whole.len() + gap as usize, 0);
                let data = vec![byte; len as usize];
                for (i, piece) in data.chunks(cut).enumerate() {
                    sparse.update((whole.len() + i * cut) as u64, piece);
                }
                whole.extend_from_slice(&data);
            }
            let size = whole.len() as u64;
            let mut dense = ContentHasher::new();
            dense.update(0, &whole);
            let dense = dense.finish(size);
            prop_assert_eq!(sparse.finish(size), dense);
            whole[0] ^= 1;
            let mut other = ContentHasher::new();
            other.update(0, &whole);
            prop_assert_ne!(other.finish(size), dense);
        }
    }
}
