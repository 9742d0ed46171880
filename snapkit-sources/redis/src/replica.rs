//! All that a server holds at one moment, as it gives it to a replica.
//!
//! The server forks, and writes a snapshot of the moment of the fork to the connection (`src/replication.c` of Redis 7.0:
//! `syncCommand`, `replconfCommand`). It comes in one of two frames: with its length before it, from a file, or with 40
//! bytes before it that stand behind it again, straight from memory. These are the same each time, so that they may stand
//! anywhere in the data: the end is where the snapshot ends, and nowhere else.
//!
//! The server takes this for a replica that wants no more than the snapshot (`rdb-only`, since Redis 7.0): it keeps
//! nothing for it. It is never named as one that could be promoted.

use std::io::Read;
use std::time::Duration;

use snapkit_core::context::Timestamp;
use snapkit_core::{Error, Reason, Result};

use crate::connection::{Connection, Reply};
use crate::rdb::{Item, Snapshot};

/// How long a server may say that it is at work on a snapshot: it waits for other children of its own.
const BUSY: Duration = Duration::from_secs(3600);

/// How long the mark behind a snapshot is.
const MARK: usize = 40;

/// A moment in a server's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Which history: 40 hexadecimal digits. It begins anew when a master starts.
    pub history: String,
    /// How many bytes of commands it had then.
    pub offset: u64,
}

/// A server that was asked for everything, and has fixed the moment.
#[derive(Debug)]
pub struct Pinned {
    connection: Connection,
    /// The moment.
    pub position: Position,
    /// When the server had certainly not forked yet, unless it takes more than a second for its bytes to arrive.
    pub before: Timestamp,
    /// Whether the server keeps nothing more for us, which servers before Redis 7.0 do.
    pub is_alone: bool,
}

impl Pinned {
    /// Ask a server for all that it holds. Returns when it has forked: that is the moment.
    ///
    /// `permission-denied` where `PSYNC` or `REPLCONF` are not allowed, `unavailable` from a replica without a master and
    /// from a server that is loading. A server whose `repl-diskless-sync-delay` is not 0 waits so many seconds first.
    pub fn begin(mut connection: Connection) -> Result<Self> {
        connection.must(&[b"PING"])?;
        connection.must(&[b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"])?;
        let is_alone = match connection.ask(&[b"REPLCONF", b"rdb-only", b"1"])? {
            Reply::Refused(why) if why.contains("Unrecognized REPLCONF option") => false,
            Reply::Refused(why) => return Err(connection.refused(b"REPLCONF", &why)),
            _ => true,
        };
        let (mut before, mut heard) = (connection.now(), connection.now());
        connection.send(&[b"PSYNC", b"?", b"-1"])?;
        // It says nothing once in a second while it waits for others that may want the same.
        let line = after_newlines(&mut connection, |connection| {
            before = std::mem::replace(&mut heard, connection.now());
        })?;
        if let Some(why) = line.strip_prefix("-") {
            return Err(connection.refused(b"PSYNC", why));
        }
        let mut words = line.split(' ');
        let position = match (words.next(), words.next(), words.next(), words.next()) {
            (Some("+FULLRESYNC"), Some(history), Some(offset), None) => {
                offset.parse().ok().map(|offset| Position { history: history.to_owned(), offset })
            }
            _ => None,
        };
        let position = position.ok_or_else(|| connection.strange())?;
        Ok(Self { connection, position, before, is_alone })
    }

    /// The snapshot, as it comes.
    pub fn snapshot(self) -> Result<Snapshot<Transfer>> {
        Snapshot::begin(self.transfer()?)
    }

    /// The bytes of the snapshot, as they come.
    pub fn transfer(mut self) -> Result<Transfer> {
        let line = after_newlines(&mut self.connection, |_| ())?;
        if let Some(why) = line.strip_prefix("-") {
            return Err(self.connection.refused(b"PSYNC", why));
        }
        let frame = match line.strip_prefix("$EOF:") {
            Some(mark) => mark.as_bytes().try_into().ok().map(Frame::Marked),
            None => line.strip_prefix('$').and_then(|len| len.parse().ok()).map(Frame::Long),
        };
        let frame = frame.ok_or_else(|| self.connection.strange())?;
        Ok(Transfer { connection: self.connection, frame })
    }
}

/// The next line that says something: empty ones say that the server is still at work.
fn after_newlines(
    connection: &mut Connection,
    mut at_each: impl FnMut(&Connection),
) -> Result<String> {
    let patient = connection.context().within(BUSY);
    loop {
        let line = connection.line()?;
        if !line.is_empty() {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        at_each(connection);
        patient.check().map_err(|e| {
            if e.reason() != Reason::TimedOut {
                return e;
            }
            let what = "the server says that it is at work, and has not begun in an hour";
            Error::new(Reason::TimedOut, what).with("server", connection.address())
        })?;
    }
}

/// How a snapshot is framed.
#[derive(Debug)]
enum Frame {
    /// So many bytes are to come.
    Long(u64),
    /// These stand behind it.
    Marked([u8; MARK]),
}

/// A snapshot on its way.
#[derive(Debug)]
pub struct Transfer {
    connection: Connection,
    frame: Frame,
}

impl Read for Transfer {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = match &self.frame {
            Frame::Long(left) => usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len()),
            Frame::Marked(_) => buffer.len(),
        };
        if most == 0 {
            return Ok(0);
        }
        let n = match self.connection.wire.read(&mut buffer[..most]) {
            // It is not at its end, or nobody would ask.
            Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => read,
        };
        let n = n.map_err(|e| std::io::Error::other(self.connection.lost(e)))?;
        if let Frame::Long(left) = &mut self.frame {
            *left -= n as u64;
        }
        Ok(n)
    }
}

/// What a transfer brings until the server closes the connection: of a snapshot that nobody can read, only that says
/// where it ends. The mark behind it is held back.
#[derive(Debug)]
pub struct UntilClosed {
    transfer: Transfer,
    held: Vec<u8>,
}

impl Read for UntilClosed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Frame::Marked(_) = self.transfer.frame else { return self.transfer.read(buffer) };
        let wire = &mut self.transfer.connection.wire;
        // All but the last bytes may be given out.
        while self.held.len() <= MARK {
            let mut piece = vec![0; buffer.len().max(1)];
            let n = wire.read(&mut piece)?;
            if n == 0 {
                return Ok(0);
            }
            self.held.extend_from_slice(&piece[..n]);
        }
        let n = (self.held.len() - MARK).min(buffer.len());
        buffer[..n].copy_from_slice(&self.held[..n]);
        self.held.drain(..n);
        Ok(n)
    }
}

impl UntilClosed {
    /// That all of it has come.
    pub fn finish(self) -> Result<()> {
        match self.transfer.frame {
            Frame::Marked(mark) if self.held != mark => Err(not_whole()),
            Frame::Marked(_) => Ok(()),
            Frame::Long(_) => self.transfer.finish(),
        }
    }
}

fn not_whole() -> Error {
    Error::corrupt("the server did not bring the snapshot to its end")
}

impl Transfer {
    /// Read it until the server closes the connection, which it does if it keeps nothing more for us.
    #[must_use]
    pub fn until_closed(self) -> UntilClosed {
        UntilClosed { transfer: self, held: Vec::new() }
    }

    /// That the snapshot was all of it, once its end has been read. What breaks off has another end, or none: the
    /// process that wrote it may have died.
    pub fn finish(mut self) -> Result<()> {
        match self.frame {
            Frame::Long(0) => Ok(()),
            Frame::Long(left) => {
                let what = "the server says that more belongs to the snapshot than there is";
                Err(Error::corrupt(what).with("bytes", left))
            }
            Frame::Marked(mark) => {
                let mut found = [0; MARK];
                let read = self.connection.wire.read_exact(&mut found);
                read.map_err(|e| self.connection.lost(e))?;
                if found == mark {
                    return Ok(());
                }
                Err(not_whole())
            }
        }
    }
}

/// Read the rest of a snapshot that is not wanted, item by item, to know that it was whole.
pub fn drain(mut snapshot: Snapshot<Transfer>) -> Result<()> {
    loop {
        match snapshot.item()? {
            Item::Key(_) => drop(snapshot.value(|_| Ok(()))?),
            Item::End { .. } => return snapshot.into_inner().finish(),
            _ => {}
        }
    }
}
