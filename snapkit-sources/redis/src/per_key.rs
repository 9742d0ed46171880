//! Keys into a live server, one by one: `RESTORE` with the bytes that `DUMP` would give (`src/cluster.c`).

use std::collections::{BTreeSet, VecDeque};
use std::io::Read;

use snapkit_core::context::Context;
use snapkit_core::scratch::{Room, ScratchWriter};
use snapkit_core::tree::escape;
use snapkit_core::{Error, Reason, Result};

use crate::assemble::unreadable;
use crate::connection::{Connection, Reply};
use crate::functions;
use crate::rdb::{CRC, Item, Key, Snapshot, footer_of};

/// Bytes of requests that wait for their answers.
const UNANSWERED: usize = 512 << 10;

/// Requests that wait for their answers.
const REQUESTS: usize = 1000;

/// The longest value that is held in memory; a longer one goes through scratch space.
const IN_MEMORY: usize = 4 << 20;

/// The longest string that a server takes unless it is told otherwise (`proto-max-bulk-len`).
const LONGEST_STRING: u64 = 512 << 20;

/// The longest string that a server takes, as far as it says.
pub(crate) fn longest_string(connection: &mut Connection) -> Result<u64> {
    let said = match connection.ask(&[b"CONFIG", b"GET", b"proto-max-bulk-len"])? {
        Reply::Many(pair) => match pair.get(1) {
            Some(Reply::Text(text)) => {
                std::str::from_utf8(text).ok().and_then(|text| text.parse().ok())
            }
            _ => None,
        },
        _ => None,
    };
    Ok(said.unwrap_or(LONGEST_STRING))
}

/// Puts keys into a server.
#[derive(Debug)]
pub(crate) struct Loader<'a> {
    cx: &'a Context,
    room: &'a Room,
    connection: &'a mut Connection,
    /// Whether what is there with the same name is replaced, or is an error.
    replace: bool,
    database: Option<u64>,
    /// What was asked and not answered yet: keys, or none.
    asked: VecDeque<Option<Name>>,
    /// Bytes that were sent since the last answer.
    sent: usize,
    done: Done,
}

/// A database, and a key in it.
type Name = (u64, Vec<u8>);

/// What a server has of what it was sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    /// How many keys, from the first on, it was sent.
    keys: u64,
    /// Those of them that it has refused. They are few: the first of them ends the restore.
    refused: BTreeSet<Name>,
    /// Names of the functions' libraries that it has been sent, and has not refused.
    libraries: Vec<Vec<u8>>,
}

impl<'a> Loader<'a> {
    /// Into a server that is empty (what somebody else puts there meanwhile is an error), or where everything is replaced.
    pub(crate) fn new(
        cx: &'a Context,
        room: &'a Room,
        connection: &'a mut Connection,
        replace: bool,
    ) -> Self {
        Self {
            cx,
            room,
            connection,
            replace,
            database: None,
            asked: VecDeque::new(),
            sent: 0,
            done: Done::default(),
        }
    }

    /// Put all that is in a snapshot into the server.
    pub(crate) fn load(&mut self, snapshot: &mut Snapshot<impl Read>) -> Result<()> {
        loop {
            self.cx.check()?;
            match snapshot.item()? {
                Item::Aux { .. } => {}
                Item::Function(source) => self.library(&source)?,
                Item::Key(key) => {
                    self.select(key.database)?;
                    self.restore(snapshot, key)?;
                }
                Item::End { .. } => return self.hear_all(),
            }
        }
    }

    fn library(&mut self, source: &[u8]) -> Result<()> {
        let name = functions::name(source).unwrap_or_default().to_vec();
        self.done.libraries.push(name);
        let words: &[&[u8]] = match self.replace {
            true => &[b"FUNCTION", b"LOAD", b"REPLACE", source],
            false => &[b"FUNCTION", b"LOAD", source],
        };
        if let Reply::Refused(why) = self.connection.ask(words)? {
            self.done.libraries.pop();
            return Err(self.connection.refused(b"FUNCTION", &why));
        }
        Ok(())
    }

    /// Hear what the server still says, whatever it is, so that nothing of what was asked is done later. What it has.
    pub(crate) fn settle(mut self) -> Done {
        while let Some(asked) = self.asked.pop_front() {
            match self.connection.hear() {
                Ok(Reply::Refused(_)) => self.done.refused.extend(asked),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.done
    }

    /// Take out of a server again what it has of a snapshot.
    pub(crate) fn unload(
        cx: &Context,
        connection: &mut Connection,
        snapshot: &mut Snapshot<impl Read>,
        done: &Done,
    ) -> Result<()> {
        for name in &done.libraries {
            match connection.ask(&[b"FUNCTION", b"DELETE", name])? {
                // It may not have come to it.
                Reply::Refused(why) if !why.contains("not found") => {
                    return Err(connection.refused(b"FUNCTION", &why));
                }
                _ => {}
            }
        }
        let (mut left, mut database) = (done.keys, None);
        while left > 0 {
            cx.check()?;
            match snapshot.item()? {
                Item::Key(key) => {
                    snapshot.value(|_| Ok(()))?;
                    left -= 1;
                    let name = (key.database, key.name);
                    if done.refused.contains(&name) {
                        continue;
                    }
                    if database != Some(key.database) {
                        database = Some(key.database);
                        connection.must(&[b"SELECT", key.database.to_string().as_bytes()])?;
                    }
                    connection.must(&[b"DEL", &name.1])?;
                }
                Item::End { .. } => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    }

    fn select(&mut self, database: u64) -> Result<()> {
        if self.database != Some(database) {
            self.database = Some(database);
            self.connection.send(&[b"SELECT", database.to_string().as_bytes()])?;
            self.asked.push_back(None);
        }
        Ok(())
    }

    fn restore(&mut self, snapshot: &mut Snapshot<impl Read>, key: Key) -> Result<()> {
        let mut value = vec![key.encoding];
        let mut long: Option<ScratchWriter> = None;
        let mut crc = CRC.digest();
        let (cx, room) = (self.cx, self.room);
        snapshot.value(|piece| {
            if long.is_none() && value.len() + piece.len() > IN_MEMORY {
                let mut writer = ScratchWriter::begin(cx, room)?;
                writer.write(&value)?;
                long = Some(writer);
                value.clear();
            }
            match &mut long {
                Some(writer) => writer.write(piece),
                None => {
                    value.extend_from_slice(piece);
                    Ok(())
                }
            }
        })?;
        let version = u16::try_from(key.version()).unwrap_or(u16::MAX);
        let mut words: Vec<Vec<u8>> = vec![b"RESTORE".to_vec(), key.name.clone()];
        words.push(key.expires.unwrap_or(0).to_string().into_bytes());
        let mut behind: Vec<Vec<u8>> = vec![b"ABSTTL".to_vec()];
        if self.replace {
            behind.push(b"REPLACE".to_vec());
        }
        if let Some(idle) = key.idle {
            behind.extend([b"IDLETIME".to_vec(), idle.to_string().into_bytes()]);
        }
        if let Some(frequency) = key.frequency {
            behind.extend([b"FREQ".to_vec(), frequency.to_string().into_bytes()]);
        }
        let len = long.as_ref().map_or(value.len() as u64, ScratchWriter::len) + 10;
        let mut request = format!("*{}\r\n", words.len() + 1 + behind.len()).into_bytes();
        let put = |request: &mut Vec<u8>, word: &[u8]| {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        };
        words.iter().for_each(|word| put(&mut request, word));
        request.extend_from_slice(format!("${len}\r\n").as_bytes());
        match long {
            None => {
                crc.update(&value);
                request.extend_from_slice(&value);
            }
            Some(writer) => {
                self.connection.write(&request)?;
                request.clear();
                let mut reader = writer.finish()?.reader(0, u64::MAX);
                let mut piece = vec![0; 256 << 10];
                loop {
                    let n = reader.read(&mut piece).map_err(unreadable)?;
                    if n == 0 {
                        break;
                    }
                    crc.update(&piece[..n]);
                    self.connection.write(&piece[..n])?;
                }
            }
        }
        request.extend_from_slice(&footer_of(crc, version));
        request.extend_from_slice(b"\r\n");
        behind.iter().for_each(|word| put(&mut request, word));
        self.connection.write(&request)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.sent = self.sent.saturating_add(len).saturating_add(key.name.len());
        self.done.keys += 1;
        self.asked.push_back(Some((key.database, key.name)));
        if self.sent > UNANSWERED || self.asked.len() > REQUESTS {
            self.hear_all()?;
        }
        Ok(())
    }

    /// Hear what the server says to all that it was asked.
    fn hear_all(&mut self) -> Result<()> {
        self.connection.flush()?;
        self.sent = 0;
        while let Some(asked) = self.asked.pop_front() {
            match (self.connection.hear()?, asked) {
                (Reply::Refused(why), Some(name)) => {
                    let refused = self.refused(&why, &name.1);
                    self.done.refused.insert(name);
                    return Err(refused);
                }
                (Reply::Refused(why), None) => {
                    return Err(self.connection.refused(b"SELECT", &why));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn refused(&self, why: &str, name: &[u8]) -> Error {
        let name = escape(&name[..name.len().min(100)]);
        let known = [
            ("OOM", Reason::NoSpace, "the server has reached its limit of memory (`maxmemory`)"),
            (
                "BUSYKEY",
                Reason::TargetNotEmpty,
                "somebody else writes to the server, which was empty before: stop them",
            ),
            (
                "ERR DUMP payload version",
                Reason::Unsupported,
                "the server is too old for a value: restore into one at least as new as it came from",
            ),
            (
                "ERR Bad data format",
                Reason::Unsupported,
                "the server does not know a kind of value: restore into one at least as new as it came from",
            ),
            (
                "READONLY",
                Reason::InvalidConfig,
                "the server is a replica, which takes nothing: name its master",
            ),
            (
                "MOVED",
                Reason::Unsupported,
                "a cluster takes keys only where their slots are: restore into its files",
            ),
            (
                "MISCONF",
                Reason::Unavailable,
                "the server takes nothing because it could not save its data",
            ),
        ];
        let known = known.into_iter().find(|(code, ..)| why.starts_with(code));
        let e = match known {
            Some((_, reason, what)) => Error::new(reason, what)
                .caused_by(std::io::Error::other(why.chars().take(200).collect::<String>())),
            None => self.connection.refused(b"RESTORE", why),
        };
        e.with("key", name)
    }
}
