//! A snapshot on its way into a repository: taken from the server at the server's pace, into scratch space, and sorted
//! there.
//!
//! The server keeps a child for as long as this takes, whose memory grows with what is written meanwhile, and drops a
//! replica that does not read. So nothing here waits for the repository.

use std::io::Read;

use async_trait::async_trait;
use bytes::Bytes;
use snapkit_core::context::Context;
use snapkit_core::record::{Record, RecordReader, RecordValue};
use snapkit_core::scratch::{Room, Scratch, ScratchWriter};
use snapkit_core::sort::{Settled, Sorted, Sorter};
use snapkit_core::{Error, Result};

use crate::assemble::unreadable;
use crate::key::{self, AXIS};
use crate::rdb::{CRC, Item, Snapshot};
use crate::tally::{Part, Tally};

/// The longest value, with what stands before it, that is sorted with its key.
const WITH_KEY: usize = 16 << 10;

/// The most bytes of functions: they are source text.
const MAX_FUNCTIONS: usize = 64 << 20;

/// Bytes of records that are handed out at once, at most by one record more.
const BATCH: usize = 1 << 20;

/// Bytes of a snapshot that are read at once.
const PIECE: usize = 64 << 10;

/// How many keys are read before it is looked whether to go on.
const KEYS_AT_ONCE: u64 = 1024;

/// All that a server held.
#[derive(Debug)]
pub(crate) struct Spool {
    keys: Settled,
    large: Scratch,
    /// The source texts of its functions, sorted.
    pub(crate) functions: Vec<Vec<u8>>,
    pub(crate) tally: Tally,
    /// The lowest version of the format that knows all values.
    pub(crate) version: u32,
}

impl Spool {
    /// Read a snapshot to its end. `now` is when it was taken, in seconds since 1970, unless it says so itself. What
    /// follows its end has not been read.
    pub(crate) fn fill<R: Read>(
        cx: &Context,
        room: &Room,
        mut snapshot: Snapshot<R>,
        mut now: u64,
    ) -> Result<(Self, R)> {
        let (mut sorter, mut large) = (Sorter::new(cx, room), ScratchWriter::begin(cx, room)?);
        let mut functions = Vec::new();
        let (mut tally, mut count, mut functions_len) = (Tally::default(), 0_u64, 0);
        let mut version = 0;
        loop {
            if count.is_multiple_of(KEYS_AT_ONCE) {
                cx.check()?;
            }
            match snapshot.item()? {
                Item::Aux { key, value } => {
                    if key == b"ctime" {
                        let time = std::str::from_utf8(&value).ok().and_then(|t| t.parse().ok());
                        now = time.unwrap_or(now);
                    }
                }
                Item::Function(source) => {
                    functions_len += source.len();
                    if functions_len > MAX_FUNCTIONS {
                        return Err(Error::corrupt("the functions of the server are too long"));
                    }
                    functions.push(source);
                }
                Item::Key(found) => {
                    count += 1;
                    version = version.max(found.version());
                    // What of the value is not in the large scratch space.
                    let mut entry = vec![0];
                    entry.extend_from_slice(&key::head(&found, now));
                    let mut begun = None;
                    let digest = snapshot.sorted_value(cx, room, |piece| {
                        if begun.is_none() && entry.len() + piece.len() > WITH_KEY {
                            begun = Some(large.len());
                            large.write(&entry[1..])?;
                        }
                        match begun {
                            Some(_) => large.write(piece),
                            None => {
                                entry.extend_from_slice(piece);
                                Ok(())
                            }
                        }
                    })?;
                    if let Some(from) = begun {
                        entry = vec![1];
                        entry.extend_from_slice(&from.to_le_bytes());
                        entry.extend_from_slice(&(large.len() - from).to_le_bytes());
                    }
                    sorter.add(key::place(&found), entry)?;
                    tally.add(&Part::of(&found, &digest));
                }
                Item::End { .. } => break,
            }
        }
        functions.sort();
        let (keys, large) = (sorter.settle()?, large.finish()?);
        Ok((Self { keys, large, functions, tally, version }, snapshot.into_inner()))
    }

    /// The keys, in order.
    pub(crate) fn records(&self) -> Result<Keys> {
        let state = State { keys: self.keys.read()?, large: self.large.clone(), next: None };
        Ok(Keys { axes: [AXIS.to_owned()], state: Some(state) })
    }
}

/// Keep a snapshot as it comes, of which nothing but its checksum is looked at.
pub(crate) fn keep(cx: &Context, room: &Room, snapshot: &mut impl Read) -> Result<Scratch> {
    let mut kept = ScratchWriter::begin(cx, room)?;
    let mut buffer = vec![0; PIECE];
    // The checksum is of all but itself.
    let (mut crc, mut tail) = (CRC.digest(), Vec::new());
    loop {
        cx.check()?;
        let n = snapshot.read(&mut buffer).map_err(unreadable)?;
        if n == 0 {
            break;
        }
        kept.write(&buffer[..n])?;
        tail.extend_from_slice(&buffer[..n]);
        let sure = tail.len().saturating_sub(8);
        crc.update(&tail[..sure]);
        tail.drain(..sure);
    }
    let found = tail.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    match found.ok_or_else(|| Error::corrupt("the snapshot ends early"))? {
        // `rdbchecksum no` writes none.
        0 => {}
        found if found == crc.finalize() => {}
        _ => return Err(Error::corrupt("the checksum of the snapshot is wrong")),
    }
    kept.finish()
}

/// Keys as records.
#[derive(Debug)]
pub(crate) struct Keys {
    axes: [String; 1],
    /// None while it is being read, and after an error.
    state: Option<State>,
}

#[derive(Debug)]
struct State {
    keys: Sorted,
    large: Scratch,
    /// A record that did not go with those before it.
    next: Option<Record>,
}

impl State {
    fn batch(&mut self, cx: &Context) -> Result<Vec<Record>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH {
            let record = match self.next.take() {
                Some(record) => record,
                None => match self.keys.next() {
                    Some(entry) => self.record(cx, entry?)?,
                    None => break,
                },
            };
            match &record.value {
                RecordValue::Inline(value) => {
                    bytes += value.len() + record.positions[0].len();
                    batch.push(record);
                }
                // What comes in parts comes alone.
                RecordValue::Parts(_) if batch.is_empty() => return Ok(vec![record]),
                RecordValue::Parts(_) => {
                    self.next = Some(record);
                    break;
                }
            }
        }
        Ok(batch)
    }

    fn record(&self, cx: &Context, (place, entry): (Vec<u8>, Vec<u8>)) -> Result<Record> {
        let entry = Bytes::from(entry);
        let value = match entry.first() {
            Some(0) => RecordValue::Inline(entry.slice(1..)),
            _ => {
                let number = |at: usize| {
                    entry
                        .get(at..)
                        .and_then(|rest| rest.first_chunk().copied())
                        .map(u64::from_le_bytes)
                };
                let (Some(from), Some(len)) = (number(1), number(9)) else {
                    return Err(Error::internal("a large value was lost"));
                };
                RecordValue::Parts(self.large.stream(cx, from, len))
            }
        };
        Ok(Record { positions: vec![place.into()], value })
    }
}

#[async_trait]
impl RecordReader for Keys {
    fn axes(&self) -> &[String] {
        &self.axes
    }

    async fn next_batch(&mut self, cx: &Context) -> Result<Option<Vec<Record>>> {
        let Some(mut state) = self.state.take() else {
            return Err(Error::internal("the keys could not be read before"));
        };
        let inner = cx.clone();
        let read = cx.blocking(move || Ok((state.batch(&inner)?, state)));
        let (batch, state) = read.await?;
        self.state = Some(state);
        Ok((!batch.is_empty()).then_some(batch))
    }
}
