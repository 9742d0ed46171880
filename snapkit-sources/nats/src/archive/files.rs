//! The archive of servers until 2.14, which newer ones take, too: a tar of the files in which a server keeps a stream
//! (`server/filestore.go`, `streamSnapshot`).
//!
//! `meta.inf` is the configuration and `meta.sum` its hash; `msgs/N.blk` are messages, and `msgs/N.idx` or `msgs/index.db`
//! say which of them are deleted; each consumer has `obs/NAME/meta.inf`, `meta.sum` and `o.dat`. What went wrong stands in
//! `errors.txt`.

use std::io::{Read, Write};
use std::ops::RangeInclusive;

use serde_json::{Map, Value};
use snapkit_core::{Error, Reason, Result};

use super::block::{self, Hasher, Item};
use super::index::{self, Deletions};
use super::list::unwritable;
use super::{Contents, MAX_DOCUMENT, unreadable};
use crate::consumer::{Consumer, ConsumerState};
use crate::message::Message;
use crate::spool::SpoolWriter;

/// A file of messages is begun anew where it would be longer.
const MAX_FILE: usize = 8 << 20;

/// And where more messages than these are missing between two: each that is missing takes 30 bytes.
const MAX_GAP: u64 = 1000;

/// The zeros at the end of a tar.
const END: u64 = 1024;

impl Deletions for SpoolWriter {
    fn delete(&mut self, sequences: RangeInclusive<u64>) -> Result<()> {
        Self::delete(self, sequences)
    }
}

fn broken(why: &str) -> Error {
    Error::corrupt(format!("the archive of a stream is malformed: {why}"))
}

/// A consumer of which not all may have come.
#[derive(Default)]
struct Begun {
    name: String,
    meta: Option<Vec<u8>>,
    state: Option<Vec<u8>>,
}

/// Read an archive up to its end.
pub(crate) fn read(
    stream: &str,
    input: &mut impl Read,
    spool: &mut SpoolWriter,
) -> Result<Contents> {
    let (mut consumers, mut begun): (Vec<Consumer>, Option<Begun>) = (Vec::new(), None);
    let (mut meta, mut last) = (None, 0);
    let mut input = Tail { input, zeros: 0 };
    let mut archive = tar::Archive::new(&mut input);
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let len = entry.size();
        let whole = |entry: &mut dyn Read| {
            if len > MAX_DOCUMENT {
                return Err(broken("a document in it is too long").with("entry", &path));
            }
            let mut whole = Vec::new();
            entry.read_to_end(&mut whole).map_err(unreadable)?;
            if whole.len() as u64 == len { Ok(whole) } else { Err(broken("it ends early")) }
        };
        match path.split('/').collect::<Vec<_>>()[..] {
            ["errors.txt"] => {
                let why = String::from_utf8_lossy(&whole(&mut entry)?).into_owned();
                let what = "the server could not read all of the stream";
                return Err(Error::corrupt(what).with("stream", stream).with("server_says", why));
            }
            ["meta.inf"] => meta = Some(whole(&mut entry)?),
            ["meta.sum"] => {
                let sum = whole(&mut entry)?;
                check(&Hasher::of(stream), meta.as_deref(), &sum)?;
            }
            ["msgs", "index.db"] => {
                index::of_stream(&mut entry, len, &Hasher::of(stream), spool)?;
            }
            ["msgs", file] => match file.split_once('.') {
                Some((number, "blk")) => {
                    let number = number.parse().map_err(|_| broken("a file has no number"))?;
                    read_block(&mut entry, &Hasher::of_block(stream, number), spool)?;
                }
                Some((_, "idx")) => index::of_block(&mut entry, &mut last, spool)?,
                // Which subjects are in a file: the messages say so, too.
                _ => {}
            },
            ["obs", name, file] => {
                if begun.as_ref().is_none_or(|begun| begun.name != name) {
                    consumers.extend(begun.take().map(finish).transpose()?);
                }
                let begun = begun
                    .get_or_insert_with(|| Begun { name: name.to_owned(), ..Begun::default() });
                let content = whole(&mut entry)?;
                match file {
                    "meta.inf" => begun.meta = Some(content),
                    "meta.sum" => {
                        let hasher = Hasher::of(&format!("{stream}/{name}"));
                        check(&hasher, begun.meta.as_deref(), &content)?;
                    }
                    "o.dat" => begun.state = Some(content),
                    _ => {}
                }
            }
            _ => return Err(broken("it has a file of an unknown kind").with("entry", path)),
        }
    }
    consumers.extend(begun.take().map(finish).transpose()?);
    if meta.is_none() {
        return Err(broken("it has no configuration"));
    }
    std::io::copy(&mut input, &mut std::io::sink()).map_err(unreadable)?;
    // Whoever reads a tar takes its being cut off between two files for its end.
    if input.zeros < END {
        return Err(broken("its end is missing"));
    }
    Ok(Contents { consumers })
}

/// Counts the zeros that were read last.
struct Tail<R> {
    input: R,
    zeros: u64,
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.input.read(buffer)?;
        let zeros = buffer[..n].iter().rev().take_while(|byte| **byte == 0).count();
        self.zeros = if zeros == n { self.zeros + n as u64 } else { zeros as u64 };
        Ok(n)
    }
}

fn check(hasher: &Hasher, meta: Option<&[u8]>, sum: &[u8]) -> Result<()> {
    let meta = meta.ok_or_else(|| broken("a hash comes before what it is of"))?;
    if hex(hasher.hash(&[meta])).as_bytes() == sum {
        Ok(())
    } else {
        Err(broken("the hash of a configuration is wrong"))
    }
}

fn hex(hash: [u8; 8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_block(input: &mut impl Read, hasher: &Hasher, spool: &mut SpoolWriter) -> Result<()> {
    let mut input = std::io::BufReader::with_capacity(64 << 10, input);
    while let Some(item) = block::next(&mut input, hasher)? {
        match item {
            Item::Message(message) => spool.add(&message)?,
            Item::Deleted(sequence) => spool.delete(sequence..=sequence)?,
        }
    }
    Ok(())
}

fn finish(begun: Begun) -> Result<Consumer> {
    let Begun { name, meta, state } = begun;
    let meta = meta.ok_or_else(|| broken("a consumer has no configuration"))?;
    let mut config: Map<String, Value> = serde_json::from_slice(&meta)
        .map_err(|e| broken("the configuration of a consumer is another").caused_by(e))?;
    config.remove("Created");
    config.remove("Name");
    let state = match state {
        Some(state) => ConsumerState::decode(&state)?,
        None => ConsumerState::default(),
    };
    Ok(Consumer { name, config: Value::Object(config), state })
}

/// Writes such an archive.
pub(crate) struct Writer<W: Write> {
    tar: tar::Builder<W>,
    stream: String,
    file: Vec<u8>,
    number: u64,
    /// The number of the last message, and when it was stored.
    last: (u64, i64),
}

impl<W: Write> Writer<W> {
    /// Begin one, of a stream of this name and configuration. `created` is a time of RFC 3339.
    pub(crate) fn begin(output: W, stream: &str, config: &Value, created: &str) -> Result<Self> {
        let mut this = Self {
            tar: tar::Builder::new(output),
            stream: stream.to_owned(),
            file: Vec::new(),
            number: 1,
            last: (0, 0),
        };
        this.document("", &Hasher::of(stream), config, [("Created", created)])?;
        Ok(this)
    }

    fn document<const N: usize>(
        &mut self,
        place: &str,
        hasher: &Hasher,
        config: &Value,
        more: [(&str, &str); N],
    ) -> Result<()> {
        let mut meta = config.as_object().cloned().unwrap_or_default();
        for (name, value) in more {
            meta.insert(name.to_owned(), value.into());
        }
        let meta = serde_json::to_vec(&meta)
            .map_err(|e| Error::internal("cannot encode a document").caused_by(e))?;
        self.append(&format!("{place}meta.inf"), &meta)?;
        self.append(&format!("{place}meta.sum"), hex(hasher.hash(&[&meta])).as_bytes())
    }

    fn append(&mut self, path: &str, content: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(0);
        self.tar.append_data(&mut header, path, content).map_err(unwritable)
    }

    fn hasher(&self) -> Hasher {
        Hasher::of_block(&self.stream, self.number)
    }

    /// Add the next message.
    pub(crate) fn add(&mut self, message: &Message) -> Result<()> {
        let (last, time) = self.last;
        let missing = message.sequence - last - 1;
        let mut hasher = self.hasher();
        let is_full = self.file.len() + block::len(message) > MAX_FILE;
        if !self.file.is_empty() && (is_full || missing > MAX_GAP) {
            self.flush()?;
            hasher = self.hasher();
        } else if !self.file.is_empty() {
            for sequence in last + 1..message.sequence {
                block::put_erased(&mut self.file, &hasher, sequence, time);
            }
        }
        block::put(&mut self.file, &hasher, message)?;
        self.last = (message.sequence, message.time);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let file = std::mem::take(&mut self.file);
        self.append(&format!("msgs/{}.blk", self.number), &file)?;
        self.number += 1;
        Ok(())
    }

    /// Write the end, of a stream whose last message had this number, whether it is still there or not.
    pub(crate) fn finish(mut self, last: u64, consumers: &[Consumer], created: &str) -> Result<W> {
        if last > self.last.0 {
            let hasher = self.hasher();
            block::put_erased(&mut self.file, &hasher, last, self.last.1);
        }
        // Without a message, servers until 2.9 would not know where the stream goes on.
        if last > 0 && self.last.0 == 0 {
            let index = index::empty(last, &self.file);
            self.append(&format!("msgs/{}.idx", self.number), &index)?;
        }
        if !self.file.is_empty() {
            self.flush()?;
        }
        for consumer in consumers {
            let name = &consumer.name;
            if name.is_empty() || name.contains('/') || name.starts_with('.') {
                let what = "the name of a consumer is impossible";
                return Err(Error::new(Reason::Corrupt, what).with("consumer", name));
            }
            let place = format!("obs/{name}/");
            let hasher = Hasher::of(&format!("{}/{name}", self.stream));
            let more = [("Created", created), ("Name", name)];
            self.document(&place, &hasher, &consumer.config, more)?;
            self.append(&format!("{place}o.dat"), &consumer.state.encode())?;
        }
        self.tar.into_inner().map_err(unwritable)
    }
}
