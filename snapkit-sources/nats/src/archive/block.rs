//! The server's files of messages, `N.blk` (`server/filestore.go`): records one after the other, each with a hash that is
//! keyed by the names of stream and file.
//!
//! A record: its length in 4 bytes, with the highest bit set if it has headers; the message's number and time in 8 bytes
//! each; the length of the subject in 2 bytes; the subject; with headers, their length in 4 bytes and they; the body; and
//! the hash in 8 bytes. All little-endian.

use std::io::{ErrorKind, Read};

use bytes::Bytes;
use highway::{HighwayHash as _, HighwayHasher, Key};
use sha2::{Digest as _, Sha256};
use snapkit_core::{Error, Result};

use super::unreadable;
use crate::message::{MAX_MESSAGE, Message};

/// What stands before the subject.
const HEAD: usize = 22;
/// The hash at the end.
const HASH: usize = 8;
/// In a length: it has headers.
const HEADERS: u32 = 1 << 31;
/// In a number: the message was erased.
const ERASED: u64 = 1 << 63;
/// In a number: the message with it was deleted.
const TOMBSTONE: u64 = 1 << 62;

/// The hash of a name in a server's files.
#[derive(Clone, Debug)]
pub(crate) struct Hasher(Key);

impl Hasher {
    pub(crate) fn of(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        let word =
            |n: usize| digest[n * 8..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Self(Key([word(0), word(1), word(2), word(3)]))
    }

    /// The hash of a file of messages.
    pub(crate) fn of_block(stream: &str, number: u64) -> Self {
        Self::of(&format!("{stream}-{number}"))
    }

    pub(crate) fn begin(&self) -> HighwayHasher {
        HighwayHasher::new(self.0)
    }

    /// The hash of several pieces, as it is written.
    pub(crate) fn hash(&self, pieces: &[&[u8]]) -> [u8; HASH] {
        let mut hasher = self.begin();
        pieces.iter().for_each(|piece| hasher.append(piece));
        hasher.finalize64().to_le_bytes()
    }
}

/// What a record says.
#[derive(Debug)]
pub(crate) enum Item {
    /// There is this message.
    Message(Message),
    /// There was one of this number.
    Deleted(u64),
}

/// The next record, or None at the end of the file.
pub(crate) fn next(input: &mut impl Read, hasher: &Hasher) -> Result<Option<Item>> {
    let mut head = [0; HEAD];
    let mut filled = 0;
    while filled < HEAD {
        match input.read(&mut head[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(broken("a record is cut off")),
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(unreadable(e)),
        }
    }
    let number = |at: usize| {
        head[at..].first_chunk().map_or(0, |bytes: &[u8; 8]| u64::from_le_bytes(*bytes))
    };
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let (sequence, time) = (number(4), number(12).cast_signed());
    let has_headers = len & HEADERS != 0;
    let len = usize::try_from(len & !HEADERS).unwrap_or(usize::MAX);
    let subject = usize::from(u16::from_le_bytes([head[20], head[21]]));
    let lengths = if has_headers { subject + 4 } else { subject };
    if len < HEAD + lengths + HASH || len > MAX_MESSAGE {
        return Err(broken("a record has an impossible length"));
    }
    let mut rest = vec![0; len - HEAD];
    input.read_exact(&mut rest).map_err(unreadable)?;
    let (content, hash) = rest.split_at(rest.len() - HASH);
    let (name, behind) = content.split_at(subject);
    let text = if has_headers { &behind[4..] } else { behind };
    if hasher.hash(&[&head[4..20], name, text]) != hash {
        let e = broken("the hash of a message is wrong: the server's disk is damaged");
        return Err(e.with("sequence", sequence & !(ERASED | TOMBSTONE)));
    }
    if sequence & TOMBSTONE != 0 {
        return Ok(Some(Item::Deleted(sequence & !TOMBSTONE)));
    }
    if sequence == 0 || sequence & ERASED != 0 {
        return Ok(Some(Item::Deleted(sequence & !ERASED)));
    }
    let headers = match behind.first_chunk::<4>().filter(|_| has_headers) {
        Some(len) => usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX),
        None => 0,
    };
    if headers > text.len() {
        return Err(broken("headers have an impossible length").with("sequence", sequence));
    }
    let (headers, body) = text.split_at(headers);
    Ok(Some(Item::Message(Message {
        sequence,
        time,
        subject: name.to_vec(),
        headers: headers.to_vec(),
        body: Bytes::copy_from_slice(body),
    })))
}

fn broken(why: &str) -> Error {
    Error::corrupt(format!("a file of messages is malformed: {why}"))
}

/// How long the record of a message is.
pub(crate) fn len(message: &Message) -> usize {
    let headers = if message.headers.is_empty() { 0 } else { 4 + message.headers.len() };
    HEAD + message.subject.len() + headers + message.body.len() + HASH
}

/// Add the record of a message to a file.
pub(crate) fn put(file: &mut Vec<u8>, hasher: &Hasher, message: &Message) -> Result<()> {
    let flag = if message.headers.is_empty() { 0 } else { HEADERS };
    let subject = u16::try_from(message.subject.len());
    let (Ok(len), Ok(subject)) = (u32::try_from(len(message)), subject) else {
        return Err(Error::corrupt("a message is too long").with("sequence", message.sequence));
    };
    if len & HEADERS != 0 {
        return Err(Error::corrupt("a message is too long").with("sequence", message.sequence));
    }
    file.extend_from_slice(&(len | flag).to_le_bytes());
    let numbers = file.len();
    file.extend_from_slice(&message.sequence.to_le_bytes());
    file.extend_from_slice(&message.time.to_le_bytes());
    let hash = hasher.hash(&[&file[numbers..], &message.subject, &message.headers, &message.body]);
    file.extend_from_slice(&subject.to_le_bytes());
    file.extend_from_slice(&message.subject);
    if flag != 0 {
        // It was no longer than the record.
        file.extend_from_slice(&u32::try_from(message.headers.len()).unwrap_or(0).to_le_bytes());
        file.extend_from_slice(&message.headers);
    }
    file.extend_from_slice(&message.body);
    file.extend_from_slice(&hash);
    Ok(())
}

/// Add that there is no message of this number, but was one.
pub(crate) fn put_erased(file: &mut Vec<u8>, hasher: &Hasher, sequence: u64, time: i64) {
    let len = u32::try_from(HEAD + HASH).unwrap_or(0);
    file.extend_from_slice(&len.to_le_bytes());
    let numbers = file.len();
    file.extend_from_slice(&(sequence | ERASED).to_le_bytes());
    file.extend_from_slice(&time.to_le_bytes());
    let hash = hasher.hash(&[&file[numbers..]]);
    file.extend_from_slice(&[0; 2]);
    file.extend_from_slice(&hash);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Hasher, Vec<u8>) {
        let hasher = Hasher::of_block("ORDERS", 1);
        let mut file = Vec::new();
        for (sequence, headers) in [(5, &b""[..]), (7, b"NATS/1.0\r\nA: b\r\n\r\n")] {
            let message = Message {
                sequence,
                time: 17,
                subject: b"orders.new".to_vec(),
                headers: headers.to_vec(),
                body: Bytes::from_static(b"a body"),
            };
            put(&mut file, &hasher, &message).unwrap();
        }
        put_erased(&mut file, &hasher, 9, 18);
        (hasher, file)
    }

    fn read(hasher: &Hasher, mut file: &[u8]) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        while let Some(item) = next(&mut file, hasher)? {
            items.push(item);
        }
        Ok(items)
    }

    #[test]
    fn records_are_read_as_they_are_written() {
        let (hasher, file) = sample();
        let items = read(&hasher, &file).unwrap();
        let [Item::Message(first), Item::Message(second), Item::Deleted(9)] = &items[..] else {
            panic!("{items:?}");
        };
        assert_eq!((first.sequence, first.headers.len(), &first.body[..]), (5, 0, &b"a body"[..]));
        assert_eq!((second.sequence, second.headers.len()), (7, 18));
    }

    /// Every byte counts, but for those that only say where subject, headers and body meet: no hash is over them.
    #[test]
    fn damage_is_found() {
        let (hasher, file) = sample();
        let mut said = std::collections::BTreeSet::new();
        let first = HEAD + 10 + 6 + HASH;
        let limits =
            [20, 21, first + HEAD + 10, first + HEAD + 11, first + HEAD + 12, first + HEAD + 13];
        for at in (0..file.len()).filter(|at| !limits.contains(at)) {
            for flip in [1, 0x80] {
                let mut changed = file.clone();
                changed[at] ^= flip;
                let e = read(&hasher, &changed).map(drop).expect_err(&format!("{at} {flip}"));
                let text = e.to_string();
                said.insert(text.split(" (").next().unwrap_or_default().to_owned());
            }
            if let Err(e) = read(&hasher, &file[..at]) {
                said.insert(e.to_string());
            }
        }
        assert!(read(&Hasher::of_block("OTHER", 1), &file).is_err());
        insta::assert_snapshot!(said.into_iter().collect::<Vec<_>>().join("\n"), @"
        a file of messages is malformed: a record has an impossible length
        a file of messages is malformed: a record is cut off
        a file of messages is malformed: the hash of a message is wrong: the server's disk is damaged
        the archive of a stream is damaged or cut off
        ");
    }
}
