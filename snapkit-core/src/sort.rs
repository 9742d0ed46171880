//! Sorting more than there is memory for: a server gives its keys in any order, and another one each time; in their own
//! order what has not changed is where it was.
//!
//! Entries are gathered, sorted in memory and put into scratch space as runs, which are merged when they are read. Two
//! entries with the same place keep the order in which they came.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{BufReader, Read};
use std::sync::Arc;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::scratch::{Room, Scratch, ScratchReader, ScratchWriter};

/// Bytes that are sorted in memory.
const RUN: usize = 16 << 20;

/// What an entry costs besides its bytes.
const OVERHEAD: usize = 64;

/// Runs that are merged at once: each is read through a buffer.
const AT_ONCE: usize = 128;

/// Bytes of a run that are read at once.
const BUFFER: usize = 32 << 10;

/// An entry: its place, by which it is sorted, and what belongs to it.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Takes entries in any order, and holds at most about 16 MiB of them.
#[derive(Debug)]
pub struct Sorter {
    cx: Context,
    entries: Vec<Entry>,
    bytes: usize,
    run: usize,
    runs: Vec<Scratch>,
    room: Room,
}

impl Sorter {
    /// With some room in scratch space.
    #[must_use]
    pub fn new(cx: &Context, room: &Room) -> Self {
        Self {
            cx: cx.clone(),
            entries: Vec::new(),
            bytes: 0,
            run: RUN,
            runs: Vec::new(),
            room: room.clone(),
        }
    }

    /// Add an entry. It has to be small: it is held as a whole.
    ///
    /// `no-space` on a full disk, and beyond what was allowed.
    pub fn add(&mut self, place: Vec<u8>, value: Vec<u8>) -> Result<()> {
        self.bytes += place.len() + value.len() + OVERHEAD;
        self.entries.push((place, value));
        if self.bytes >= self.run {
            self.spill()?;
        }
        Ok(())
    }

    /// All entries, sorted by their places, to be read once.
    pub fn finish(self) -> Result<Sorted> {
        self.settle()?.read()
    }

    /// No entry is added any more.
    pub fn settle(mut self) -> Result<Settled> {
        self.entries.sort_by(|a, b| a.0.cmp(&b.0));
        while self.runs.len() > AT_ONCE {
            let first: Vec<_> = self.runs.drain(..AT_ONCE).collect();
            let merged = Sorted::merge(&first, Arc::default())?;
            let run = self.write(merged)?;
            // The oldest stay the first.
            self.runs.insert(0, run);
        }
        Ok(Settled { runs: self.runs, rest: Arc::new(self.entries) })
    }

    fn spill(&mut self) -> Result<()> {
        let mut entries = std::mem::take(&mut self.entries);
        self.bytes = 0;
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        let run = self.write(entries.into_iter().map(Ok))?;
        self.runs.push(run);
        Ok(())
    }

    fn write(&mut self, entries: impl Iterator<Item = Result<Entry>>) -> Result<Scratch> {
        let mut writer = ScratchWriter::begin(&self.cx, &self.room)?;
        for entry in entries {
            let (place, value) = entry?;
            for part in [place, value] {
                writer.write(&(part.len() as u64).to_le_bytes())?;
                writer.write(&part)?;
            }
        }
        writer.finish()
    }
}

/// Entries that can be read in their order, as often as somebody wants to.
#[derive(Clone, Debug)]
pub struct Settled {
    runs: Vec<Scratch>,
    /// What never left memory.
    rest: Arc<Vec<Entry>>,
}

impl Settled {
    /// Read them from the beginning.
    pub fn read(&self) -> Result<Sorted> {
        Sorted::merge(&self.runs, Arc::clone(&self.rest))
    }
}

/// A run that is being read, and its next entry.
#[derive(Debug)]
struct Run {
    reader: BufReader<ScratchReader>,
    left: u64,
}

impl Run {
    fn next(&mut self) -> Result<Option<Entry>> {
        if self.left == 0 {
            return Ok(None);
        }
        Ok(Some((self.part()?, self.part()?)))
    }

    fn part(&mut self) -> Result<Vec<u8>> {
        let mut len = [0; 8];
        self.fill(&mut len)?;
        let len = u64::from_le_bytes(len);
        // It was written by us, and has been authenticated.
        let mut part = vec![0; usize::try_from(len.min(self.left)).unwrap_or(0)];
        self.fill(&mut part)?;
        Ok(part)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.left = self.left.saturating_sub(buffer.len() as u64);
        self.reader.read_exact(buffer).map_err(|e| match e.downcast::<Error>() {
            Ok(own) => own,
            Err(e) => Error::io("cannot read scratch space", e),
        })
    }
}

/// The place of an entry, the number of its run, and what belongs to it.
type Head = (Vec<u8>, usize, Vec<u8>);

/// Entries in their order.
#[derive(Debug)]
pub struct Sorted {
    runs: Vec<Run>,
    /// The next entry of each run, with its number: the least comes first.
    heads: BinaryHeap<Reverse<Head>>,
    /// What never left memory, the youngest of all, and how much of it has been read.
    rest: Arc<Vec<Entry>>,
    next: usize,
}

impl Sorted {
    fn merge(runs: &[Scratch], rest: Arc<Vec<Entry>>) -> Result<Self> {
        let open = |run: &Scratch| Run {
            reader: BufReader::with_capacity(BUFFER, run.reader(0, run.len())),
            left: run.len(),
        };
        let mut this =
            Self { runs: runs.iter().map(open).collect(), heads: BinaryHeap::new(), rest, next: 0 };
        for number in 0..this.runs.len() {
            this.advance(number)?;
        }
        Ok(this)
    }

    fn advance(&mut self, number: usize) -> Result<()> {
        if let Some((place, value)) = self.runs[number].next()? {
            self.heads.push(Reverse((place, number, value)));
        }
        Ok(())
    }
}

impl Iterator for Sorted {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        match (self.heads.peek(), self.rest.get(self.next)) {
            (Some(Reverse((place, ..))), Some((other, _))) if other >= place => {}
            (_, Some(entry)) => {
                self.next += 1;
                return Some(Ok(entry.clone()));
            }
            (_, None) => {}
        }
        let Reverse((place, number, value)) = self.heads.pop()?;
        match self.advance(number) {
            Ok(()) => Some(Ok((place, value))),
            Err(e) => {
                self.heads.clear();
                self.next = self.rest.len();
                Some(Err(e))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorted(entries: &[Entry], run: usize) -> Vec<Entry> {
        let mut sorter = Sorter { run, ..Sorter::new(&Context::system(), &Room::new(1 << 30)) };
        for (place, value) in entries {
            sorter.add(place.clone(), value.clone()).unwrap();
        }
        let settled = sorter.settle().unwrap();
        let read = || settled.read().unwrap().collect::<Result<Vec<_>>>().unwrap();
        let first = read();
        assert_eq!(first, read());
        first
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_is_a_stable_sort(
            places in proptest::collection::vec(proptest::collection::vec(0..4_u8, 0..5), 0..400),
            run in 100..20_000_usize,
        ) {
            let entries: Vec<Entry> = places
                .into_iter()
                .enumerate()
                .map(|(n, place)| (place, n.to_le_bytes().to_vec()))
                .collect();
            let mut expected = entries.clone();
            expected.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(sorted(&entries, run), expected);
        }
    }

    /// More runs than are merged at once.
    #[test]
    fn many_runs_are_merged_in_turns() {
        let entries: Vec<Entry> = (0..2000_u32)
            .map(|n| {
                (
                    (n.wrapping_mul(2_654_435_761) % 97).to_be_bytes().to_vec(),
                    n.to_le_bytes().to_vec(),
                )
            })
            .collect();
        let mut expected = entries.clone();
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(sorted(&entries, 400), expected);
    }

    #[test]
    fn scratch_space_has_an_end() {
        let mut sorter = Sorter { run: 1000, ..Sorter::new(&Context::system(), &Room::new(5000)) };
        let filled =
            (0..1000_u32).try_for_each(|n| sorter.add(n.to_le_bytes().to_vec(), vec![0; 50]));
        assert_eq!(filled.unwrap_err().reason(), crate::error::Reason::NoSpace);
    }
}
