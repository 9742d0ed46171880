//! Whether the files of a block are what they claim, piece by piece: the checksum of every chunk of samples, and those of
//! an index's table of contents and symbols.

use crc::{CRC_32_ISCSI, Crc, Digest, Table};

use crate::block::{BlockMeta, FileKind};

/// Castagnoli's polynomial, in all files of a block.
static CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// How a file of samples begins (`tsdb/docs/format/chunks.md`).
const CHUNKS_MAGIC: [u8; 4] = 0x85BD_40DD_u32.to_be_bytes();

/// How an index begins (`tsdb/docs/format/index.md`).
const INDEX_MAGIC: [u8; 4] = 0xBAAA_D700_u32.to_be_bytes();

/// How a file of deletions begins (`tsdb/docs/format/tombstones.md`).
const TOMBSTONES_MAGIC: [u8; 4] = 0x0130_BA30_u32.to_be_bytes();

/// Bytes of an index's table of contents: six offsets and a checksum.
const TOC: usize = 6 * 8 + 4;

/// The longest description that is kept to be read.
const MAX_META: usize = 4 << 20;

/// Takes a file piece by piece, and says in the end what is wrong with it.
pub(crate) struct Examiner {
    block: String,
    kind: FileKind,
    bytes: u64,
    hasher: blake3::Hasher,
    state: State,
    wrong: Option<String>,
}

enum State {
    /// A description, all of it.
    Meta(Vec<u8>),
    Chunks(Chunks),
    /// The first bytes and the last ones.
    Ends {
        first: Vec<u8>,
        last: Vec<u8>,
    },
}

/// What a file amounts to.
pub(crate) struct Examined {
    pub(crate) digest: blake3::Hash,
    pub(crate) bytes: u64,
    /// What is wrong with it.
    pub(crate) wrong: Option<String>,
}

impl Examiner {
    pub(crate) fn new(block: &str, kind: FileKind) -> Self {
        let state = match kind {
            FileKind::Meta => State::Meta(Vec::new()),
            FileKind::Chunks(_) => State::Chunks(Chunks::default()),
            FileKind::Index | FileKind::Tombstones => {
                State::Ends { first: Vec::new(), last: Vec::new() }
            }
        };
        let (block, hasher) = (block.to_owned(), blake3::Hasher::new());
        Self { block, kind, bytes: 0, hasher, state, wrong: None }
    }

    pub(crate) fn take_in(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.hasher.update(piece);
        if self.wrong.is_some() {
            return;
        }
        match &mut self.state {
            State::Meta(all) if all.len() + piece.len() <= MAX_META => all.extend_from_slice(piece),
            State::Meta(_) => self.wrong = Some("a block's description is too long".to_owned()),
            State::Chunks(chunks) => self.wrong = chunks.take_in(piece).err().map(str::to_owned),
            State::Ends { first, last } => {
                first.extend_from_slice(&piece[..piece.len().min(8 - first.len())]);
                last.extend_from_slice(&piece[piece.len().saturating_sub(TOC)..]);
                last.drain(..last.len().saturating_sub(TOC));
            }
        }
    }

    pub(crate) fn finish(self) -> Examined {
        let wrong = self.wrong.or_else(|| match (self.state, self.kind) {
            (State::Meta(all), _) => BlockMeta::parse(&all, &self.block).err().map(|e| e.chain()),
            (State::Chunks(chunks), _) => chunks.finish().err().map(str::to_owned),
            (State::Ends { first, last }, FileKind::Index) => {
                index(&first, &last, self.bytes).err().map(str::to_owned)
            }
            (State::Ends { first, last }, _) => tombstones(&first, &last).err().map(str::to_owned),
        });
        Examined { digest: self.hasher.finalize(), bytes: self.bytes, wrong }
    }
}

/// An index ends with a table of contents, whose offsets lie before it.
fn index(first: &[u8], last: &[u8], bytes: u64) -> Result<(), &'static str> {
    if first.get(..4) != Some(&INDEX_MAGIC) || !matches!(first.get(4), Some(1..=3)) {
        return Err("it is no index that is known here");
    }
    let Some((table, sum)) = last.split_last_chunk::<4>().filter(|_| last.len() == TOC) else {
        return Err("an index is cut short");
    };
    if CRC.checksum(table) != u32::from_be_bytes(*sum) {
        return Err("the checksum of an index's table of contents is wrong");
    }
    let end = bytes - TOC as u64;
    let offsets = table
        .chunks_exact(8)
        .map(|offset| offset.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)));
    match offsets.max().is_some_and(|offset| offset < end) {
        true => Ok(()),
        false => Err("an index's table of contents leads nowhere"),
    }
}

fn tombstones(first: &[u8], last: &[u8]) -> Result<(), &'static str> {
    match first.get(..4) == Some(&TOMBSTONES_MAGIC) && first.get(4) == Some(&1) && last.len() >= 9 {
        true => Ok(()),
        false => Err("it is no list of deletions that is known here"),
    }
}

/// Reads a file of samples: after eight bytes, chunks of `length (varint), encoding, data, checksum`.
#[derive(Default)]
struct Chunks {
    part: Part,
    /// What has come of a part that is awaited.
    got: Vec<u8>,
}

#[derive(Default)]
enum Part {
    #[default]
    Head,
    /// The length, seven bits at a time.
    Length(u64, u32),
    /// Encoding and data: how many bytes are left of them.
    Data(u64, Digest<'static, u32, Table<16>>),
    Sum(u32),
}

impl Chunks {
    fn take_in(&mut self, mut piece: &[u8]) -> Result<(), &'static str> {
        while let Some((first, rest)) = piece.split_first() {
            match &mut self.part {
                Part::Head => {
                    self.got.push(*first);
                    piece = rest;
                    if self.got.len() == 8 {
                        if self.got[..4] != CHUNKS_MAGIC || self.got[4] != 1 {
                            return Err("it holds no samples in a form that is known here");
                        }
                        (self.part, self.got) = (Part::Length(0, 0), Vec::new());
                    }
                }
                Part::Length(length, bits) => {
                    piece = rest;
                    *length |= u64::from(first & 0x7f) << *bits;
                    *bits += 7;
                    if first & 0x80 == 0 {
                        // The encoding is one byte more.
                        self.part = Part::Data(*length + 1, CRC.digest());
                    } else if *bits > 28 {
                        return Err("a chunk of samples has an impossible length");
                    }
                }
                Part::Data(left, digest) => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                    digest.update(&piece[..n]);
                    (*left, piece) = (*left - n as u64, &piece[n..]);
                    if *left == 0 {
                        self.part = Part::Sum(digest.clone().finalize());
                    }
                }
                Part::Sum(expected) => {
                    self.got.push(*first);
                    piece = rest;
                    if let Ok(sum) = <[u8; 4]>::try_from(&self.got[..]) {
                        if u32::from_be_bytes(sum) != *expected {
                            return Err("the checksum of a chunk of samples is wrong");
                        }
                        (self.part, self.got) = (Part::Length(0, 0), Vec::new());
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(), &'static str> {
        match self.part {
            Part::Length(0, 0) => Ok(()),
            _ => Err("a file of samples is cut short"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::cast_possible_truncation, reason = "seven bits at a time is the encoding")]
    fn samples(chunks: &[&[u8]]) -> Vec<u8> {
        let mut bytes = [&CHUNKS_MAGIC[..], &[1, 0, 0, 0]].concat();
        for chunk in chunks {
            let mut length = chunk.len() - 1;
            while length > 0x7f {
                bytes.push(length as u8 | 0x80);
                length >>= 7;
            }
            bytes.push(length as u8);
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(&CRC.checksum(chunk).to_be_bytes());
        }
        bytes
    }

    fn wrong(kind: FileKind, bytes: &[u8], at_once: usize) -> Option<String> {
        let mut examiner = Examiner::new("01M8FGWPSDKKYRP24FTK5H3F6M", kind);
        bytes.chunks(at_once).for_each(|piece| examiner.take_in(piece));
        examiner.finish().wrong
    }

    /// However it is cut, every byte of a file of samples counts.
    #[test]
    fn every_byte_of_samples_counts() {
        let long = vec![7; 300];
        let good = samples(&[b"\x01ab", &long, b"\x01"]);
        for at_once in [1, 2, 7, 1000] {
            assert_eq!(wrong(FileKind::Chunks(1), &good, at_once), None, "{at_once}");
        }
        let padding = 5..8;
        for at in (0..good.len()).filter(|at| !padding.contains(at)) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(wrong(FileKind::Chunks(1), &bad, 64).is_some(), "{at}");
        }
        let ends = [8, 8 + 8, good.len() - 6];
        for len in (0..good.len()).filter(|len| !ends.contains(len)) {
            assert!(wrong(FileKind::Chunks(1), &good[..len], 64).is_some(), "{len}");
        }
    }

    #[test]
    fn what_is_no_part_of_a_block() {
        let mut table = vec![0; 48];
        table[7] = 20;
        let index = |table: &[u8]| {
            let sum = CRC.checksum(table).to_be_bytes();
            [&INDEX_MAGIC[..], &[2], &[0; 40], table, &sum].concat()
        };
        let good = index(&table);
        let mut far = table.clone();
        far[6] = 1;
        let told = |kind, bytes: &[u8]| wrong(kind, bytes, 5).unwrap_or_else(|| "fine".to_owned());
        let all = [
            told(FileKind::Index, &good),
            told(FileKind::Index, &good[..good.len() - 1]),
            told(FileKind::Index, &good[..20]),
            told(FileKind::Index, &index(&far)),
            told(FileKind::Index, b"something else"),
            told(FileKind::Tombstones, b"\x01\x30\xba\x30\x01\0\0\0\0"),
            told(FileKind::Tombstones, b"\x01\x30\xba\x30\x02\0\0\0\0"),
            told(FileKind::Meta, b"{}"),
            told(FileKind::Chunks(1), b"something else"),
            told(FileKind::Chunks(1), &[&samples(&[])[..], &[0xff; 9]].concat()),
            told(FileKind::Chunks(1), b"\x85\xbd"),
        ];
        insta::assert_snapshot!(all.join("\n"), @"
        fine
        the checksum of an index's table of contents is wrong
        an index is cut short
        an index's table of contents leads nowhere
        it is no index that is known here
        fine
        it is no list of deletions that is known here
        a block's description is malformed (block=01M8FGWPSDKKYRP24FTK5H3F6M): missing field `ulid` at line 1 column 2
        it holds no samples in a form that is known here
        a chunk of samples has an impossible length
        a file of samples is cut short
        ");
    }
}
