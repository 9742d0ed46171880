//! The archive of servers since 2.15: entries one after the other (`server/archive/archive.go`, `server/stream_backup.go`).
//!
//! An entry: the length of its name, a time (signed), a number, the lengths of headers and body, the name, headers and body.
//! First comes `state.json`, then each consumer as `consumers/NAME`, then each message under its subject, and at last an entry
//! of which all is zero.

use std::io::{Read, Write};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use snapkit_core::{Error, Result};

use super::numbers::{Numbers as _, WriteNumbers as _};
use super::{Contents, MAX_DOCUMENT, unreadable};
use crate::consumer::{Consumer, ConsumerState};
use crate::message::{MAX_MESSAGE, MAX_SUBJECT, Message};
use crate::spool::SpoolWriter;

/// How such an archive begins.
pub(crate) const MAGIC: &[u8] = b"NATSARC1";

const CONSUMERS: &[u8] = b"consumers/";

/// What `state.json` says that is wanted here.
#[derive(Debug, Deserialize)]
struct State {
    last_seq: u64,
}

/// A consumer as it is written there.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    config: Value,
    state: ConsumerState,
}

struct Entry {
    name: Vec<u8>,
    time: i64,
    sequence: u64,
    headers: Vec<u8>,
    body: Vec<u8>,
}

fn broken(why: &str) -> Error {
    Error::corrupt(format!("the archive of a stream is malformed: {why}"))
}

fn entry(input: &mut impl Read) -> Result<Entry> {
    let name = input.number().map_err(unreadable)?;
    let time = input.signed().map_err(unreadable)?;
    let mut next = || input.number().map_err(unreadable);
    let (sequence, headers, body) = (next()?, next()?, next()?);
    let is_document = sequence == 0;
    let limit = if is_document { MAX_DOCUMENT } else { MAX_MESSAGE as u64 };
    if name > MAX_SUBJECT as u64 || headers.saturating_add(body) > limit {
        return Err(broken("an entry is too long"));
    }
    let mut part = |len: u64| {
        let mut part = Vec::new();
        let read = input.by_ref().take(len).read_to_end(&mut part).map_err(unreadable)?;
        if (read as u64) < len {
            return Err(unreadable(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(part)
    };
    let (name, headers, body) = (part(name)?, part(headers)?, part(body)?);
    Ok(Entry { name, time, sequence, headers, body })
}

/// Read an archive up to its end, which it must have.
pub(crate) fn read(input: &mut impl Read, spool: &mut SpoolWriter) -> Result<Contents> {
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic).map_err(unreadable)?;
    let first = entry(input)?;
    if first.name != b"state.json" {
        return Err(broken("it does not begin with its state"));
    }
    let state: State = document(&first.body)?;
    let mut contents = Contents::default();
    loop {
        let entry = entry(input)?;
        match entry.name.strip_prefix(CONSUMERS) {
            _ if entry.sequence > state.last_seq => {
                return Err(broken("it has a message behind its last one"));
            }
            _ if entry.sequence > 0 => spool.add(&Message {
                sequence: entry.sequence,
                time: entry.time,
                subject: entry.name,
                headers: entry.headers,
                body: Bytes::from(entry.body),
            })?,
            _ if entry.name.is_empty() && entry.headers.is_empty() && entry.body.is_empty() => {
                return Ok(contents);
            }
            Some(name) => {
                let Stored { config, state } = document(&entry.body)?;
                let name = String::from_utf8_lossy(name).into_owned();
                contents.consumers.push(Consumer { name, config, state });
            }
            None => return Err(broken("it has an entry of an unknown kind")),
        }
    }
}

fn document<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|e| broken("a document in it is another").caused_by(e))
}

/// Writes such an archive.
pub(crate) struct Writer<W>(W);

impl<W: Write> Writer<W> {
    /// Begin one, of messages from `first` to `last` and these consumers. Times that are asked for are `now`.
    pub(crate) fn begin(
        mut output: W,
        (first, last): (u64, u64),
        messages: u64,
        consumers: &[Consumer],
        now: i64,
    ) -> Result<Self> {
        output.write_all(MAGIC).map_err(unwritable)?;
        let mut this = Self(output);
        let state = json!({
            "messages": messages,
            "bytes": 0,
            "first_seq": first,
            "last_seq": last,
            "consumer_count": consumers.len(),
        });
        this.document(b"state.json", now, &state)?;
        for consumer in consumers {
            let stored = json!({ "config": consumer.config, "state": consumer.state });
            this.document(&[CONSUMERS, consumer.name.as_bytes()].concat(), now, &stored)?;
        }
        Ok(this)
    }

    fn document(&mut self, name: &[u8], time: i64, document: &Value) -> Result<()> {
        let body = serde_json::to_vec(document)
            .map_err(|e| Error::internal("cannot encode a document").caused_by(e))?;
        self.entry(name, time, 0, [&[], &body])
    }

    fn entry(&mut self, name: &[u8], time: i64, sequence: u64, parts: [&[u8]; 2]) -> Result<()> {
        let mut head = Vec::with_capacity(64);
        head.put_number(name.len() as u64);
        head.put_signed(time);
        head.put_number(sequence);
        parts.iter().for_each(|part| head.put_number(part.len() as u64));
        for part in [&head[..], name, parts[0], parts[1]] {
            self.0.write_all(part).map_err(unwritable)?;
        }
        Ok(())
    }

    /// Add the next message.
    pub(crate) fn add(&mut self, message: &Message) -> Result<()> {
        let parts = [&message.headers[..], &message.body[..]];
        self.entry(&message.subject, message.time, message.sequence, parts)
    }

    /// Write the end.
    pub(crate) fn finish(mut self) -> Result<W> {
        self.entry(b"", 0, 0, [&[], &[]])?;
        Ok(self.0)
    }
}

/// What it means that an archive cannot be written.
pub(crate) fn unwritable(e: std::io::Error) -> Error {
    match e.downcast::<Error>() {
        Ok(own) => own,
        Err(e) => Error::io("cannot write the archive of a stream", e),
    }
}
