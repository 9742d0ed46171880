//! A database as a sequence of pages, and the digest that says whether two are the same.

use std::ops::Range;

/// Bytes at and after this offset are for locks: the page that holds it is never used.
const LOCK_BYTE: u64 = 1 << 30;

/// Length of the header at the start of the first page.
pub(crate) const HEADER: usize = 100;

/// Where the header says which journal the database uses: 1 rollback, 2 WAL.
pub(crate) const VERSIONS: Range<usize> = 18..20;

/// Parts of the header that change although the content does not: the journal mode, the change
/// counter, the schema's counter (a restore into a live database must move it on), and what says to
/// which change the header belongs and who wrote it.
const VOLATILE: [Range<usize>; 4] = [VERSIONS, 24..28, 40..44, 92..100];

/// Where the lock page is.
pub(crate) fn lock_page(page_size: u32) -> Range<u64> {
    LOCK_BYTE..LOCK_BYTE + u64::from(page_size)
}

/// The page size that a header tells, if it is one.
pub(crate) fn page_size_of(header: &[u8]) -> Option<u32> {
    let size = match u16::from_be_bytes([*header.get(16)?, *header.get(17)?]) {
        1 => 65_536,
        size => u32::from(size),
    };
    (header.starts_with(b"SQLite format 3\0") && size.is_power_of_two() && size >= 512)
        .then_some(size)
}

/// Digest of a page image, without what changes although the content does not.
#[derive(Debug)]
pub(crate) struct PageDigest {
    hasher: blake3::Hasher,
    offset: u64,
    lock: Range<u64>,
}

impl PageDigest {
    /// Of a database with pages of this size.
    pub(crate) fn new(page_size: u32) -> Self {
        Self {
            hasher: blake3::Hasher::new_derive_key("snapkit 1-draft sqlite pages"),
            offset: 0,
            lock: lock_page(page_size),
        }
    }

    /// Take in what comes next.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(self.stretch(bytes.len()));
            if let Ok(at) = usize::try_from(self.offset).map(|at| at..at + piece.len())
                && at.start < HEADER
            {
                let mut header = piece.to_vec();
                for (byte, at) in header.iter_mut().zip(at) {
                    if VOLATILE.iter().any(|v| v.contains(&at)) {
                        *byte = 0;
                    }
                }
                self.hasher.update(&header);
            } else if self.lock.contains(&self.offset) {
                self.hasher.update(&vec![0; piece.len()]);
            } else {
                self.hasher.update(piece);
            }
            self.offset += piece.len() as u64;
            bytes = rest;
        }
    }

    /// How many of the next bytes are of one kind: header, lock page, or the rest.
    fn stretch(&self, len: usize) -> usize {
        [HEADER as u64, self.lock.start, self.lock.end]
            .into_iter()
            .filter_map(|edge| edge.checked_sub(self.offset).filter(|d| *d > 0))
            .filter_map(|distance| usize::try_from(distance).ok())
            .fold(len, usize::min)
    }

    /// The digest, in hexadecimal.
    pub(crate) fn finish(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(pieces: &[&[u8]]) -> String {
        let mut d = PageDigest::new(512);
        pieces.iter().for_each(|p| d.update(p));
        d.finish()
    }

    #[test]
    fn only_volatile_bytes_do_not_count() {
        let image: Vec<u8> = (0..2048u32).map(|i| (i % 251) as u8).collect();
        let whole = digest(&[&image]);
        assert_eq!(whole, digest(&[&image[..1], &image[1..19], &image[19..99], &image[99..]]));
        for at in 0..image.len() {
            let mut other = image.clone();
            other[at] ^= 0x55;
            let counts = !VOLATILE.iter().any(|v| v.contains(&at));
            assert_eq!(digest(&[&other]) != whole, counts, "byte {at}");
        }
    }

    #[test]
    fn the_lock_page_does_not_count() {
        let piece = vec![7u8; 1 << 20];
        let digest = |lock: u8| {
            let mut d = PageDigest::new(4096);
            for _ in 0..1024 {
                d.update(&piece);
            }
            d.update(&vec![lock; 4096]);
            d.update(&[9; 4096]);
            d.finish()
        };
        assert_eq!(digest(0), digest(3));
    }

    #[test]
    fn headers_tell_page_sizes() {
        let mut header = b"SQLite format 3\0\x10\x00".to_vec();
        assert_eq!(page_size_of(&header), Some(4096));
        header[16..].copy_from_slice(&[0, 1]);
        assert_eq!(page_size_of(&header), Some(65_536));
        for bad in [[0, 0], [1, 0], [3, 0], [0x10, 1]] {
            header[16..].copy_from_slice(&bad);
            assert_eq!(page_size_of(&header), None, "{bad:?}");
        }
        assert_eq!(page_size_of(b"SQLite format 3\0"), None);
    }
}
