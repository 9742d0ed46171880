//! The archives in which servers give and take streams: S2 around a tar of the server's own files until 2.14
//! ([`files`]), or around a list of messages since 2.15 ([`list`]). What is read of either is the same.

pub(crate) mod block;
pub(crate) mod files;
pub(crate) mod index;
pub(crate) mod list;
pub(crate) mod numbers;

use std::io::{self, BufRead as _, BufReader, Read, Write};

use snapkit_core::context::Context;
use snapkit_core::{Error, Result};

use crate::consumer::Consumer;
use crate::spool::SpoolWriter;

/// The largest block of compressed content: 4 MiB, the most that S2 has.
const MAX_BLOCK: usize = 4 << 20;

/// The largest document in an archive.
pub(crate) const MAX_DOCUMENT: u64 = 64 << 20;

/// Which of the two an archive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The server's files in a tar.
    Files,
    /// A list of messages.
    List,
}

/// What an archive holds besides messages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    pub(crate) consumers: Vec<Consumer>,
}

/// Read an archive to its end; its messages go into a spool.
///
/// `corrupt` for what is damaged, cut off or no archive, and for what a server says went wrong when it made it.
pub(crate) fn read(
    cx: &Context,
    stream: &str,
    input: impl Read,
    spool: &mut SpoolWriter,
) -> Result<Contents> {
    let plain = minlz::Reader::with_max_block_size(Watched { cx, input }, MAX_BLOCK);
    let mut plain = BufReader::with_capacity(64 << 10, plain);
    let is_list = plain.fill_buf().map_err(unreadable)?.starts_with(list::MAGIC);
    let contents = match is_list {
        true => list::read(&mut plain, spool)?,
        false => files::read(stream, &mut plain, spool)?,
    };
    // Of a tar, padding may follow.
    if io::copy(&mut plain, &mut io::sink()).map_err(unreadable)? > 0 && is_list {
        return Err(Error::corrupt("something follows the end of the archive"));
    }
    Ok(contents)
}

/// What is written to it goes into an archive.
pub(crate) fn compressed<W: Write>(output: W) -> minlz::Writer<W> {
    minlz::Writer::new(output)
}

/// Ends when the run does.
struct Watched<'a, R> {
    cx: &'a Context,
    input: R,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cx.check().map_err(io::Error::other)?;
        self.input.read(buffer)
    }
}

/// What it means that an archive cannot be read.
pub(crate) fn unreadable(e: io::Error) -> Error {
    match e.downcast::<Error>() {
        Ok(own) => own,
        Err(e) => Error::corrupt("the archive of a stream is damaged or cut off").caused_by(e),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write as _;

    use bytes::Bytes;
    use serde_json::json;
    use snapkit_core::scratch::Room;

    use super::*;
    use crate::consumer::ConsumerState;
    use crate::message::Message;

    fn messages() -> Vec<Message> {
        let message = |sequence: u64| Message {
            sequence,
            time: 1_700_000_000_000_000_000,
            subject: b"orders.new".to_vec(),
            headers: if sequence == 2 { b"NATS/1.0\r\nA: b\r\n\r\n".to_vec() } else { Vec::new() },
            body: Bytes::from_static(b"a body"),
        };
        [2, 3, 7, 5000].map(message).into()
    }

    fn consumers() -> Vec<Consumer> {
        let config = json!({ "durable_name": "workers" });
        vec![Consumer { name: "workers".to_owned(), config, state: ConsumerState::default() }]
    }

    /// Both forms, not compressed.
    fn samples() -> [Vec<u8>; 2] {
        let config = json!({ "name": "ORDERS" });
        let mut files = files::Writer::begin(Vec::new(), "ORDERS", &config, "").unwrap();
        let mut list = list::Writer::begin(Vec::new(), (2, 5001), 4, &consumers(), 0).unwrap();
        for message in messages() {
            files.add(&message).unwrap();
            list.add(&message).unwrap();
        }
        [files.finish(5001, &consumers(), "").unwrap(), list.finish().unwrap()]
    }

    fn read_plain(plain: &[u8]) -> Result<(Contents, Vec<Message>)> {
        let mut archive = compressed(Vec::new());
        archive.write_all(plain).unwrap();
        archive.flush().unwrap();
        let archive = archive.get_ref().clone();
        let (cx, room) = (Context::system(), Room::new(1 << 30));
        let mut spool = SpoolWriter::begin(&cx, &room)?;
        let contents = read(&cx, "ORDERS", &archive[..], &mut spool)?;
        let messages = spool.finish(1, 5001)?.read()?.collect::<Result<_>>()?;
        Ok((contents, messages))
    }

    #[test]
    fn what_is_written_is_read() {
        for sample in samples() {
            let (contents, found) = read_plain(&sample).unwrap();
            assert_eq!((found, contents.consumers), (messages(), consumers()));
        }
    }

    /// All that is said of archives that are cut and changed, each sentence once and without its figures; and nothing that
    /// is cut off is taken for whole.
    #[test]
    fn what_is_damaged_is_refused() {
        let mut said = BTreeSet::new();
        let mut hear = |e: &Error| {
            let text = e.to_string();
            let parts: Vec<_> =
                text.split(|c: char| c.is_ascii_digit()).filter(|t| !t.is_empty()).collect();
            said.insert(format!("{} ({})", parts.join("N"), e.reason()));
        };
        for sample in samples() {
            for at in (0..sample.len()).step_by(if sample.len() > 2000 { 7 } else { 1 }) {
                match read_plain(&sample[..at]) {
                    Err(e) => hear(&e),
                    // Of the zeros at the end some may be missing.
                    Ok((contents, found)) => {
                        assert_eq!((found, contents.consumers), (messages(), consumers()), "{at}");
                    }
                }
                for flip in [1, 0x80, 0xff] {
                    let mut changed = sample.clone();
                    changed[at] ^= flip;
                    // Not all of a tar means something, and a list has no hashes: the transport of it has.
                    if let Err(e) = read_plain(&changed) {
                        hear(&e);
                    }
                }
            }
        }
        let [_, list] = samples();
        hear(&read_plain(&[&list[..], b"x"].concat()).map(drop).unwrap_err());
        insta::assert_snapshot!(said.into_iter().collect::<Vec<_>>().join("\n"), @"
        a file of messages is malformed: a record has an impossible length (corrupt)
        a file of messages is malformed: a record is cut off (corrupt)
        a file of messages is malformed: the hash of a message is wrong: the server's disk is damaged (sequence=N) (corrupt)
        something follows the end of the archive (corrupt)
        the archive of a stream is damaged or cut off (corrupt)
        the archive of a stream is malformed: a document in it is another (corrupt)
        the archive of a stream is malformed: an entry is too long (corrupt)
        the archive of a stream is malformed: it does not begin with its state (corrupt)
        the archive of a stream is malformed: it ends early (corrupt)
        the archive of a stream is malformed: it has a message behind its last one (corrupt)
        the archive of a stream is malformed: it has an entry of an unknown kind (corrupt)
        the archive of a stream is malformed: its end is missing (corrupt)
        the archive of a stream is malformed: the hash of a configuration is wrong (corrupt)
        the messages of a stream are not in their order (sequence=N) (corrupt)
        the state of a consumer has version N, which is not known here (unsupported)
        ");
    }

    /// The hashes of S2 are over what a list holds.
    #[test]
    fn a_flipped_bit_on_the_way_is_found() {
        for sample in samples() {
            let mut archive = compressed(Vec::new());
            archive.write_all(&sample).unwrap();
            archive.flush().unwrap();
            let archive = archive.get_ref().clone();
            let (cx, room) = (Context::system(), Room::new(1 << 30));
            for at in (0..archive.len()).step_by(3) {
                let mut changed = archive.clone();
                changed[at] ^= 4;
                let mut spool = SpoolWriter::begin(&cx, &room).unwrap();
                let read = read(&cx, "ORDERS", &changed[..], &mut spool);
                let found: Vec<_> =
                    spool.finish(1, 5001).unwrap().read().unwrap().map(Result::unwrap).collect();
                assert!(read.is_err() || found == messages(), "{at} of {}", archive.len());
            }
        }
    }
}
