//! Cutting content into chunks, and naming them.
//!
//! A cutter is pushed bytes and gives chunks back. Where it cuts depends on the content and the
//! repository's key only, never on how the bytes arrived.

use bytes::{Bytes, BytesMut};
use fastcdc::v2020::{Normalization, cut_gear, select_masks};
use zeroize::Zeroizing;

use crate::artifact::Chunking;
use crate::id::ChunkId;
use crate::secret::SecretKey;
use crate::tree::SMALL_FILE;

/// No chunk is longer: 8 MiB.
pub const MAX_CHUNK: usize = 8 << 20;

/// Content-defined chunks: least, average and largest length.
const CONTENT: (usize, usize, usize) = (256 << 10, 1 << 20, 4 << 20);

/// The most room that a cutter takes at once.
const ROOM: usize = 8 << 20;

/// The smallest chunk of pages.
const MIN_PAGES: u64 = 8 << 10;

/// An artifact of pages has fewer chunks than this.
const MAX_PAGE_CHUNKS: u64 = 2_000_000;

/// A tar entry of at least this many bytes begins a chunk, and so does one that follows as many bytes
/// of smaller entries.
const TAR_CUT: u64 = 64 << 10;

/// Names and boundaries of content: what the id key is for.
#[derive(Clone)]
pub struct ChunkKey {
    id_key: SecretKey,
    gear: std::sync::Arc<Zeroizing<Vec<u64>>>,
}

impl std::fmt::Debug for ChunkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChunkKey(…)")
    }
}

impl ChunkKey {
    /// From the repository's id key. The gear table is 256 pseudo-random 64-bit numbers drawn from it.
    #[must_use]
    pub fn new(id_key: &SecretKey) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("snapkit 1-draft gear table");
        hasher.update(id_key.expose());
        let mut bytes = Zeroizing::new([0u8; 2048]);
        hasher.finalize_xof().fill(&mut bytes[..]);
        let mut gear = Zeroizing::new(Vec::with_capacity(512));
        for number in bytes.chunks_exact(8) {
            let mut n = [0; 8];
            n.copy_from_slice(number);
            gear.push(u64::from_le_bytes(n));
        }
        // The second half holds the same, shifted: the scan takes two bytes at a time.
        for i in 0..256 {
            let shifted = gear[i] << 1;
            gear.push(shifted);
        }
        Self { id_key: id_key.clone(), gear: std::sync::Arc::new(gear) }
    }

    /// The name of a chunk.
    #[must_use]
    pub fn name(&self, content: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(self.id_key.expose(), content).as_bytes())
    }

    /// Eight bytes that depend on `bytes` and the key, for boundaries between entries.
    #[must_use]
    pub fn boundary_hash(&self, bytes: &[u8]) -> u64 {
        let hash = blake3::keyed_hash(self.id_key.expose(), bytes);
        let mut n = [0; 8];
        n.copy_from_slice(&hash.as_bytes()[24..]);
        u64::from_le_bytes(n)
    }

    /// Length of the first content-defined chunk of `data`, which is all that is left or at least the
    /// largest length.
    fn cut(&self, data: &[u8]) -> usize {
        let (min, average, max) = CONTENT;
        let (mask_s, mask_l) = select_masks(average, Normalization::Level1);
        let (gear, shifted) = self.gear.split_at(256);
        cut_gear(data, min, average, max, mask_s, mask_l, mask_s << 1, mask_l << 1, gear, shifted).1
    }
}

/// Cuts one stream.
#[derive(Debug)]
pub struct Cutter {
    key: ChunkKey,
    rule: Rule,
    buffer: BytesMut,
    /// Bytes of the stream so far.
    taken: usize,
}

#[derive(Debug)]
enum Rule {
    Content,
    Pages(usize),
    Whole,
    Tar(TarScan),
}

impl Cutter {
    /// A cutter for a chunking; `size` is the stream's length, as far as it is known.
    #[must_use]
    pub fn new(key: ChunkKey, chunking: Chunking, size: Option<u64>) -> Self {
        let rule = match chunking {
            Chunking::Content | Chunking::Records => Rule::Content,
            Chunking::Whole => Rule::Whole,
            Chunking::Tar => Rule::Tar(TarScan::default()),
            Chunking::Pages { page_size } => Rule::Pages(page_chunk(page_size, size.unwrap_or(0))),
        };
        Self { key, rule, buffer: BytesMut::new(), taken: 0 }
    }

    /// Take more of the stream; finished chunks go to `out`.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<Bytes>) {
        // Chunks that were cut hold on to the memory that they were cut from, so what is left over is copied
        // whenever there is more: room is taken for as much as there was, not for a piece at a time.
        if self.buffer.capacity() - self.buffer.len() < piece.len() {
            self.buffer.reserve(self.taken.min(ROOM).max(piece.len()));
        }
        self.taken = self.taken.saturating_add(piece.len());
        self.buffer.extend_from_slice(piece);
        match &mut self.rule {
            Rule::Content => drain_content(&self.key, &mut self.buffer, out),
            Rule::Pages(size) => {
                while self.buffer.len() >= *size {
                    out.push(self.buffer.split_to(*size).freeze());
                }
            }
            Rule::Whole => {
                // Once it is known not to be small, it is cut by content from its beginning.
                if self.buffer.len() as u64 > SMALL_FILE {
                    self.rule = Rule::Content;
                    drain_content(&self.key, &mut self.buffer, out);
                }
            }
            Rule::Tar(scan) => {
                // Only what was scanned is cut, so that an entry start is never overlooked because
                // its header came in two pieces.
                loop {
                    let forced = scan.next_cut(&self.buffer);
                    let limit = forced.unwrap_or(scan.scanned);
                    while limit - scan.dropped >= CONTENT.2 {
                        let open = &self.buffer[..limit - scan.dropped];
                        let len = self.key.cut(open);
                        out.push(self.buffer.split_to(len).freeze());
                        scan.dropped += len;
                    }
                    let Some(at) = forced else { break };
                    let mut head = self.buffer.split_to(at - scan.dropped);
                    drain_all(&self.key, &mut head, out);
                    scan.rebase(at);
                }
                let dropped = std::mem::take(&mut scan.dropped);
                scan.scanned -= dropped;
            }
        }
    }

    /// The stream has ended; the last chunks go to `out`.
    pub fn finish(mut self, out: &mut Vec<Bytes>) {
        match self.rule {
            Rule::Content | Rule::Tar(_) => drain_all(&self.key, &mut self.buffer, out),
            Rule::Pages(_) | Rule::Whole => {
                if !self.buffer.is_empty() {
                    out.push(self.buffer.freeze());
                }
            }
        }
    }
}

/// Cut what can be cut by content whatever follows.
fn drain_content(key: &ChunkKey, buffer: &mut BytesMut, out: &mut Vec<Bytes>) {
    while buffer.len() >= CONTENT.2 {
        let len = key.cut(buffer);
        out.push(buffer.split_to(len).freeze());
    }
}

/// Cut all of it: nothing more belongs to it.
fn drain_all(key: &ChunkKey, buffer: &mut BytesMut, out: &mut Vec<Bytes>) {
    while !buffer.is_empty() {
        let len = key.cut(buffer);
        out.push(buffer.split_to(len).freeze());
    }
}

/// Length of a chunk of pages: a power of two times the page, at least 8 KiB, doubled until there are
/// fewer than two million.
fn page_chunk(page_size: u32, size: u64) -> usize {
    let page = u64::from(page_size.clamp(512, 64 << 10).next_power_of_two());
    let mut chunk = page.max(MIN_PAGES);
    while size / chunk >= MAX_PAGE_CHUNKS && chunk < MAX_CHUNK as u64 {
        chunk *= 2;
    }
    usize::try_from(chunk).unwrap_or(MAX_CHUNK)
}

/// Finds entry starts in a tar stream (POSIX.1-1988 ustar, GNU), nested ones too. A stream that is no
/// tar after all has no entry starts, and is cut by content alone.
#[derive(Debug, Default)]
struct TarScan {
    /// How far the open buffer was scanned. All but the end of a stream is scanned in whole blocks.
    scanned: usize,
    /// How much of the front of the buffer was cut off since the scan of this piece began.
    dropped: usize,
    /// Bytes to pass over before the next block of interest.
    skip: u64,
    /// For each archive that encloses the current place: bytes left in its entry, padding included.
    inside: Vec<u64>,
    /// Whether the next block is the first of an entry's content, which may be an archive: the
    /// entry's padded length.
    content: Option<u64>,
    /// Whether the stream turned out to be no tar.
    lost: bool,
    /// Bytes since the last forced cut.
    since_cut: u64,
}

/// Deepest nesting of archives that is followed.
const TAR_DEPTH: usize = 4;

impl TarScan {
    /// Scan on. The place of the next forced cut, counted like `scanned`, or `None` when all whole
    /// blocks of `buffer` are scanned. Places count from where the buffer began before `dropped`.
    fn next_cut(&mut self, buffer: &[u8]) -> Option<usize> {
        let end = self.dropped + buffer.len();
        while self.scanned < end {
            if self.lost {
                self.scanned = end;
                break;
            }
            let left = end - self.scanned;
            if self.skip > 0 {
                let step = usize::try_from(self.skip).map_or(left, |s| s.min(left));
                self.skip -= step as u64;
                self.pass(step);
                continue;
            }
            if left < 512 {
                break;
            }
            let at = self.scanned - self.dropped;
            let block = &buffer[at..at + 512];
            let size = tar_entry(block);
            let entry = size.filter(|_| self.content.is_none() || self.inside.len() < TAR_DEPTH);
            if let Some(size) = entry
                && self.since_cut > 0
                && (size >= TAR_CUT || self.since_cut >= TAR_CUT)
            {
                self.since_cut = 0;
                return Some(self.scanned);
            }
            if let Some(padded) = self.content.take() {
                if entry.is_none() {
                    self.skip = padded;
                    continue;
                }
                self.inside.push(padded);
            }
            match size {
                Some(size) => {
                    self.pass(512);
                    let padded = size.div_ceil(512).saturating_mul(512);
                    self.content = (padded > 0).then_some(padded);
                }
                None if block.iter().all(|b| *b == 0) => self.pass(512),
                None => match self.inside.pop() {
                    Some(rest) => self.skip = rest,
                    None => self.lost = true,
                },
            }
        }
        None
    }

    /// Bytes were passed: they count in every enclosing entry, and an entry may end here.
    fn pass(&mut self, n: usize) {
        self.scanned += n;
        self.since_cut += n as u64;
        for left in &mut self.inside {
            *left = left.saturating_sub(n as u64);
        }
        while self.inside.last() == Some(&0) {
            self.inside.pop();
        }
    }

    /// The buffer was cut at `at`: it begins there now.
    fn rebase(&mut self, at: usize) {
        self.scanned -= at;
        self.dropped = 0;
    }
}

/// The content length that a tar header states, or `None` if the block is no tar header.
fn tar_entry(block: &[u8]) -> Option<u64> {
    let octal = |field: &[u8]| -> Option<u64> {
        let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
        if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
    };
    if &block[257..262] != b"ustar" {
        return None;
    }
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) })
        .sum();
    if octal(&block[148..156])? != sum {
        return None;
    }
    let size = &block[124..136];
    if size[0] & 0x80 != 0 {
        // GNU: base 256 in the last eight bytes.
        let mut n = [0; 8];
        n.copy_from_slice(&size[4..]);
        Some(u64::from_be_bytes(n))
    } else {
        octal(size)
    }
    .filter(|n| *n < 1 << 60)
    // Links, directories and devices state sizes that no content follows.
    .map(|n| if matches!(block[156], b'1'..=b'6') { 0 } else { n })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::Secret;

    fn key() -> ChunkKey {
        ChunkKey::new(&Secret::new([7; 32]))
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    fn cut(chunking: Chunking, data: &[u8], pieces: &[usize]) -> Vec<Bytes> {
        let mut cutter = Cutter::new(key(), chunking, Some(data.len() as u64));
        let (mut out, mut at, mut i) = (Vec::new(), 0, 0);
        while at < data.len() {
            let n = pieces.get(i % pieces.len().max(1)).copied().unwrap_or(1 << 20).max(1);
            let end = (at + n).min(data.len());
            cutter.push(&data[at..end], &mut out);
            (at, i) = (end, i + 1);
        }
        cutter.finish(&mut out);
        assert_eq!(out.concat(), data);
        assert!(out.iter().all(|c| !c.is_empty() && c.len() <= MAX_CHUNK));
        out
    }

    /// A tar archive with one entry for each length.
    fn tar(lengths: &[usize], seed: u64) -> Vec<u8> {
        let mut out = Vec::new();
        for (i, len) in lengths.iter().enumerate() {
            out.extend(tar_member(&noise(*len, seed + i as u64)));
        }
        out.extend([0; 1024]);
        out
    }

    fn tar_member(content: &[u8]) -> Vec<u8> {
        let mut h = vec![0u8; 512];
        h[..4].copy_from_slice(b"name");
        h[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        h[156] = b'0';
        h[257..263].copy_from_slice(b"ustar\0");
        h[148..156].fill(b' ');
        let sum: u64 = h.iter().map(|b| u64::from(*b)).sum();
        h[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        h.extend(content);
        h.resize(h.len().div_ceil(512) * 512, 0);
        h
    }

    #[test]
    fn an_insertion_moves_few_boundaries() {
        let old = noise(24 << 20, 1);
        let mut new = old.clone();
        new.splice(10_000_000..10_000_000, *b"inserted");
        let a = cut(Chunking::Content, &old, &[1 << 20]);
        let b = cut(Chunking::Content, &new, &[1 << 20]);
        let fresh = b.iter().filter(|c| !a.contains(c)).count();
        assert!(a.len() > 10 && fresh <= 2, "{} chunks, {fresh} fresh", a.len());
    }

    #[test]
    fn boundaries_depend_on_the_key() {
        let data = noise(8 << 20, 1);
        let mut out = Vec::new();
        let mut other = Cutter::new(ChunkKey::new(&Secret::new([8; 32])), Chunking::Content, None);
        other.push(&data, &mut out);
        other.finish(&mut out);
        assert_ne!(cut(Chunking::Content, &data, &[1 << 20]), out);
    }

    #[test]
    fn pages_are_aligned_and_bounded_in_number() {
        let data = noise(100_000, 2);
        let chunks = cut(Chunking::Pages { page_size: 4096 }, &data, &[1000, 5000]);
        assert!(chunks[..chunks.len() - 1].iter().all(|c| c.len() == 8192));
        assert_eq!(page_chunk(65536, 0), 65536);
        assert_eq!(page_chunk(4096, 8192 * 1_999_999), 8192);
        assert_eq!(page_chunk(4096, 8192 * 2_000_000), 16384);
        assert!(page_chunk(4096, u64::MAX) <= MAX_CHUNK);
    }

    #[test]
    fn small_files_are_one_chunk() {
        assert_eq!(cut(Chunking::Whole, &noise(512 << 10, 3), &[7000]).len(), 1);
        assert!(cut(Chunking::Whole, &noise(8 << 20, 3), &[7000]).len() > 1);
        assert!(cut(Chunking::Whole, &[], &[1]).is_empty());
    }

    #[test]
    fn tar_entries_begin_chunks_and_inner_archives_are_followed() {
        let big = 300 << 10;
        let inner = tar(&[big, 10, big], 50);
        let mut outer = tar(&[big, big], 10);
        outer.truncate(outer.len() - 1024);
        outer.extend(tar_member(&inner));
        outer.extend([0; 1024]);
        let chunks = cut(Chunking::Tar, &outer, &[4096]);
        let starts: Vec<usize> = chunks
            .iter()
            .scan(0, |at, c| {
                let start = *at;
                *at += c.len();
                Some(start)
            })
            .collect();
        let member = 512 + big;
        for expected in [0, member, 2 * member, 2 * member + 512 + member] {
            assert!(starts.contains(&expected), "{expected} not in {starts:?}");
        }
        // An entry that is replaced leaves the chunks of its neighbours alone.
        let mut other = tar(&[big, big], 10);
        other.truncate(other.len() - 1024);
        other.splice(0..member, tar_member(&noise(big + 999, 99)));
        other.extend(tar_member(&inner));
        other.extend([0; 1024]);
        let again = cut(Chunking::Tar, &other, &[1 << 20]);
        let bytes = |cs: &[&Bytes]| cs.iter().map(|c| c.len()).sum::<usize>();
        let fresh: Vec<&Bytes> = again.iter().filter(|c| !chunks.contains(c)).collect();
        assert!(bytes(&fresh) <= big + 2048, "{} fresh bytes", bytes(&fresh));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn cuts_do_not_depend_on_how_bytes_arrive(
            seed: u64,
            len in 0usize..6_000_000,
            pieces in proptest::collection::vec(1usize..2_000_000, 1..6),
            kind in 0..4,
        ) {
            let (chunking, data) = match kind {
                0 => (Chunking::Content, noise(len, seed)),
                1 => (Chunking::Pages { page_size: 4096 }, noise(len % 600_000, seed)),
                2 => (Chunking::Whole, noise(len, seed)),
                _ => (Chunking::Tar, tar(&[len % 70_000, len, 3, len % 200_000], seed)),
            };
            prop_assert_eq!(cut(chunking, &data, &pieces), cut(chunking, &data, &[1 << 20]));
        }

        #[test]
        fn arbitrary_blocks_never_break_the_tar_scan(
            blocks in proptest::collection::vec((0u8..3, any::<u64>()), 0..40),
            pieces in proptest::collection::vec(1usize..3000, 1..5),
        ) {
            let data: Vec<u8> = blocks.iter().flat_map(|(kind, seed)| match kind {
                0 => vec![0; 512],
                1 => noise(512, *seed),
                _ => {
                    let mut h = tar_member(b"");
                    h[124..136].copy_from_slice(&noise(12, *seed));
                    h[148..156].fill(b' ');
                    let sum: u64 = h.iter().map(|b| u64::from(*b)).sum();
                    h[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
                    h
                }
            }).collect();
            cut(Chunking::Tar, &data, &pieces);
        }
    }
}
