//! Which messages of a server's files are deleted, without a word of it in those: `N.idx` until 2.9, `index.db` since 2.10
//! (`server/filestore.go`, `readIndexInfo` and `recoverFullState`; `server/avl`).

use std::io::Read;
use std::ops::RangeInclusive;

use highway::HighwayHash as _;
use snapkit_core::{Error, Reason, Result};

use super::block::Hasher;
use super::numbers::{Numbers as _, WriteNumbers as _};
use super::unreadable;

const IDX_MAGIC: u8 = 22;
const DB_MAGIC: u8 = 11;
/// The newest version of `index.db` that is known here (2.14).
const DB_NEWEST: u8 = 4;
const SET_MAGIC: u8 = 22;
/// The hash at the end.
const HASH: u64 = 8;

/// Hears of ranges of numbers whose messages do not count.
pub(crate) trait Deletions {
    /// These do not.
    fn delete(&mut self, sequences: RangeInclusive<u64>) -> Result<()>;
}

fn broken(what: &str) -> Error {
    Error::corrupt(format!("a server's index of a stream is malformed: {what}"))
}

/// Read `N.idx`. `last` is the last number of the file before it, and becomes that of this one.
pub(crate) fn of_block(
    input: &mut impl Read,
    last: &mut u64,
    deletions: &mut impl Deletions,
) -> Result<()> {
    let mut head = [0; 2];
    input.read_exact(&mut head).map_err(unreadable)?;
    if head != [IDX_MAGIC, 1] {
        return Err(broken("its beginning is another"));
    }
    let mut next = || input.number().map_err(unreadable);
    let (_, _) = (next()?, next()?);
    let first = next()?;
    input.signed().map_err(unreadable)?;
    let end = input.number().map_err(unreadable)?;
    input.signed().map_err(unreadable)?;
    let count = input.number().map_err(unreadable)?;
    input.read_exact(&mut [0; 8]).map_err(unreadable)?;
    deletions.delete(*last + 1..=first.saturating_sub(1))?;
    *last = end.max(*last);
    for _ in 0..count {
        let sequence = input.number().map_err(unreadable)?.wrapping_add(first);
        deletions.delete(sequence..=sequence)?;
    }
    Ok(())
}

/// The content of `N.idx` for a file without messages, whose last had this number. `file` is that file.
pub(crate) fn empty(last: u64, file: &[u8]) -> Vec<u8> {
    let mut index = vec![IDX_MAGIC, 1];
    // Messages, bytes, the first and its time, the last and its time, how many are deleted.
    for number in [0, 0, last.saturating_add(1), 0, last, 0, 0] {
        index.put_number(number);
    }
    index.extend_from_slice(file.last_chunk::<8>().unwrap_or(&[0; 8]));
    index
}

/// Read `index.db`, of this length.
pub(crate) fn of_stream(
    input: &mut impl Read,
    len: u64,
    hasher: &Hasher,
    deletions: &mut impl Deletions,
) -> Result<()> {
    let content = len.checked_sub(HASH).ok_or_else(|| broken("it is too short"))?;
    let mut hashed = Hashed { input: input.take(content), hasher: hasher.begin() };
    read_stream(&mut hashed, deletions)?;
    std::io::copy(&mut hashed, &mut std::io::sink()).map_err(unreadable)?;
    let found = hashed.hasher.finalize64().to_le_bytes();
    let mut hash = [0; 8];
    input.read_exact(&mut hash).map_err(unreadable)?;
    if found == hash { Ok(()) } else { Err(broken("its hash is wrong")) }
}

fn read_stream(input: &mut impl Read, deletions: &mut impl Deletions) -> Result<()> {
    let mut head = [0; 2];
    input.read_exact(&mut head).map_err(unreadable)?;
    let version = head[1];
    if head[0] != DB_MAGIC || version == 0 {
        return Err(broken("its beginning is another"));
    }
    if version > DB_NEWEST {
        let what = format!(
            "the server's index of a stream has version {version}, and {DB_NEWEST} is the newest that is known here"
        );
        return Err(Error::new(Reason::Unsupported, what));
    }
    // Messages, bytes, the first and its time, the last and its time.
    for _ in 0..6 {
        input.number().map_err(unreadable)?;
    }
    for _ in 0..input.number().map_err(unreadable)? {
        let len = input.number().map_err(unreadable)?;
        if len == 0 {
            continue;
        }
        let skipped = std::io::copy(&mut input.by_ref().take(len), &mut std::io::sink());
        if skipped.map_err(unreadable)? < len {
            return Err(broken("it ends early"));
        }
        let mut next = || input.number().map_err(unreadable);
        let (total, _) = (next()?, next()?);
        if total > 1 || version >= 4 {
            next()?;
        }
    }
    let mut last = 0;
    for _ in 0..input.number().map_err(unreadable)? {
        let mut next = || input.number().map_err(unreadable);
        let (_, _, first, _, end, _, deleted) =
            (next()?, next()?, next()?, next()?, next()?, next()?, next()?);
        // Those with a time to live, and those that are scheduled.
        for _ in 1..version.min(3) {
            next()?;
        }
        deletions.delete(last + 1..=first.saturating_sub(1))?;
        last = end.max(last);
        if deleted > 0 {
            read_set(input, deletions)?;
        }
    }
    Ok(())
}

/// A set of numbers: nodes of a tree, each with a bit for each number from its base on.
fn read_set(input: &mut impl Read, deletions: &mut impl Deletions) -> Result<()> {
    let mut head = [0; 10];
    input.read_exact(&mut head).map_err(unreadable)?;
    let words = match head {
        [SET_MAGIC, 1, ..] => 64,
        [SET_MAGIC, 2, ..] => 32,
        _ => return Err(broken("a set of numbers begins in another way")),
    };
    let nodes = u32::from_le_bytes([head[2], head[3], head[4], head[5]]);
    for _ in 0..nodes {
        let mut word = || {
            let mut word = [0; 8];
            input.read_exact(&mut word).map_err(unreadable)?;
            Ok::<_, Error>(u64::from_le_bytes(word))
        };
        let base = word()?;
        for at in 0..words {
            let mut bits = word()?;
            while bits != 0 {
                let bit = u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                let sequence = base.wrapping_add(at * 64 + bit);
                deletions.delete(sequence..=sequence)?;
            }
        }
        let mut height = [0; 2];
        input.read_exact(&mut height).map_err(unreadable)?;
    }
    Ok(())
}

/// Hashes what is read.
struct Hashed<R> {
    input: R,
    hasher: highway::HighwayHasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.hasher.append(&buffer[..n]);
        Ok(n)
    }
}
