//! The messages of a stream in scratch space, in their order, so that a server never waits for the repository, nor the
//! repository for a server.

use std::io::{BufReader, Read};
use std::ops::RangeInclusive;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use snapkit_core::context::Context;
use snapkit_core::record::{Record, RecordReader};
use snapkit_core::scratch::{Room, Scratch, ScratchReader, ScratchWriter};
use snapkit_core::sort::{Settled, Sorted, Sorter};
use snapkit_core::{Error, Result};

use crate::message::{AXES, MAX_MESSAGE, Message};
use crate::tally::Tally;

/// How many bytes a batch of records has, about.
const BATCH: usize = 1 << 20;

/// Takes messages whose numbers grow, and which of them were deleted.
#[derive(Debug)]
pub(crate) struct SpoolWriter {
    messages: ScratchWriter,
    deleted: Sorter,
    last: u64,
}

impl SpoolWriter {
    pub(crate) fn begin(cx: &Context, room: &Room) -> Result<Self> {
        Ok(Self {
            messages: ScratchWriter::begin(cx, room)?,
            deleted: Sorter::new(cx, room),
            last: 0,
        })
    }

    /// Add a message. `corrupt` if its number is not higher than that of the one before.
    pub(crate) fn add(&mut self, message: &Message) -> Result<()> {
        if message.sequence <= self.last {
            let what = "the messages of a stream are not in their order";
            return Err(Error::corrupt(what).with("sequence", message.sequence));
        }
        self.last = message.sequence;
        let value = message.value()?;
        self.messages.write(&message.sequence.to_le_bytes())?;
        self.messages.write(&message.time.to_le_bytes())?;
        self.messages.write(&(value.len() as u64).to_le_bytes())?;
        self.messages.write(&value)
    }

    /// Messages of these numbers do not count, whether they were added or not.
    pub(crate) fn delete(&mut self, sequences: RangeInclusive<u64>) -> Result<()> {
        if sequences.is_empty() {
            return Ok(());
        }
        let (first, last) = (sequences.start().to_be_bytes(), sequences.end().to_be_bytes());
        self.deleted.add(first.to_vec(), last.to_vec())
    }

    /// All of them, without those that are outside of `first..=last`.
    pub(crate) fn finish(self, first: u64, last: u64) -> Result<Spool> {
        let mut spool = Spool {
            messages: self.messages.finish()?,
            deleted: self.deleted.settle()?,
            first,
            last,
            tally: Tally::default(),
        };
        let mut tally = Tally::default();
        for message in spool.read()? {
            tally.add(&message?);
        }
        spool.tally = tally;
        Ok(spool)
    }
}

/// The messages of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Spool {
    messages: Scratch,
    deleted: Settled,
    first: u64,
    last: u64,
    pub(crate) tally: Tally,
}

impl Spool {
    /// Read them from the first on.
    pub(crate) fn read(&self) -> Result<Messages> {
        Ok(Messages {
            reader: BufReader::new(self.messages.reader(0, u64::MAX)),
            left: self.messages.len(),
            deleted: self.deleted.read()?,
            next_deleted: None,
            deleted_until: 0,
            first: self.first,
            last: self.last,
        })
    }

    /// The same as records.
    pub(crate) fn records(&self) -> Result<Records> {
        let axes = AXES.map(str::to_owned);
        let reading = Reading { messages: self.read()?, held: None };
        Ok(Records { axes, reading: Mutex::new(Some(reading)) })
    }
}

/// The first eight bytes as a number.
fn number(bytes: &[u8], of: impl Fn([u8; 8]) -> u64) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| of(*bytes))
}

/// Reads messages in their order.
#[derive(Debug)]
pub(crate) struct Messages {
    reader: BufReader<ScratchReader>,
    left: u64,
    deleted: Sorted,
    /// The next range, and up to where those before it reach.
    next_deleted: Option<(u64, u64)>,
    deleted_until: u64,
    first: u64,
    last: u64,
}

impl Messages {
    fn stored(&mut self) -> Result<Option<Message>> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut head = [0; 24];
        self.fill(&mut head)?;
        let [sequence, time, len] = [0, 8, 16].map(|at| number(&head[at..], u64::from_le_bytes));
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > MAX_MESSAGE + (2 << 16) {
            return Err(Error::internal("a message in scratch space is too long"));
        }
        let mut value = vec![0; len];
        self.fill(&mut value)?;
        Message::of(sequence, time.cast_signed(), Bytes::from(value)).map(Some)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.left = self.left.saturating_sub(buffer.len() as u64);
        self.reader.read_exact(buffer).map_err(|e| match e.downcast::<Error>() {
            Ok(own) => own,
            Err(e) => Error::io("cannot read scratch space", e),
        })
    }

    fn is_deleted(&mut self, sequence: u64) -> Result<bool> {
        loop {
            let range = match self.next_deleted.take() {
                Some(range) => range,
                None => match self.deleted.next().transpose()? {
                    Some((first, last)) => {
                        (number(&first, u64::from_be_bytes), number(&last, u64::from_be_bytes))
                    }
                    None => break,
                },
            };
            if range.0 > sequence {
                self.next_deleted = Some(range);
                break;
            }
            self.deleted_until = self.deleted_until.max(range.1);
        }
        Ok(sequence <= self.deleted_until)
    }

    fn advance(&mut self) -> Result<Option<Message>> {
        while let Some(message) = self.stored()? {
            let is_inside = (self.first..=self.last).contains(&message.sequence);
            if is_inside && !self.is_deleted(message.sequence)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }
}

impl Iterator for Messages {
    type Item = Result<Message>;

    fn next(&mut self) -> Option<Result<Message>> {
        self.advance().transpose()
    }
}

/// Messages as records.
#[derive(Debug)]
pub(crate) struct Records {
    axes: [String; 2],
    /// None while they are being read, and after an error.
    reading: Mutex<Option<Reading>>,
}

#[derive(Debug)]
struct Reading {
    messages: Messages,
    /// A message that did not go with those before it.
    held: Option<Message>,
}

impl Reading {
    fn batch(&mut self) -> Result<Vec<Record>> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(message) = self.held.take().map(Ok).or_else(|| self.messages.next()) {
            let message = message?;
            bytes += message.body.len() + message.headers.len() + message.subject.len() + 64;
            if bytes > BATCH && !records.is_empty() {
                self.held = Some(message);
                break;
            }
            records.push(message.to_record()?);
        }
        Ok(records)
    }
}

#[async_trait]
impl RecordReader for Records {
    fn axes(&self) -> &[String] {
        &self.axes
    }

    async fn next_batch(&mut self, cx: &Context) -> Result<Option<Vec<Record>>> {
        let reading = self.reading.get_mut().ok().and_then(Option::take);
        let Some(mut reading) = reading else {
            return Err(Error::internal("the messages could not be read before"));
        };
        let read = cx.blocking(move || Ok((reading.batch()?, reading)));
        let (records, reading) = read.await?;
        self.reading = Mutex::new(Some(reading));
        Ok((!records.is_empty()).then_some(records))
    }
}
