//! A connection that asks and hears answers: RESP, version 2, as every server speaks it.
//!
//! It blocks, and belongs where that is allowed. It never blocks for longer than it is patient, and ends within a
//! moment when its context is cancelled.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use snapkit_core::context::{Context, Timestamp};
use snapkit_core::secret::SecretString;
use snapkit_core::{Error, Reason, Result};

use crate::server::is_forbidden;

/// How often is looked whether to go on.
const TICK: Duration = Duration::from_millis(200);

/// The longest line of an answer.
const MAX_LINE: u64 = 64 << 10;

/// The longest string of an answer: no command that is sent here has a longer one.
const MAX_STRING: usize = 64 << 20;

/// The largest answer, with what each of its parts costs.
const MAX_REPLY: usize = 128 << 20;

/// What a part of an answer costs besides its bytes.
const PART: usize = 64;

/// The deepest answer.
const MAX_DEPTH: u32 = 16;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host and a port, such as `127.0.0.1:6379`.
    Tcp(String),
    /// The same, with TLS.
    Tls(String, Trust),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// What makes two ends of a TLS connection trust each other: files in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Certificates of authorities that sign servers'; those that the system trusts unless given.
    pub ca: Option<PathBuf>,
    /// Our own certificate, and its key, for servers that ask for one (`tls-auth-clients`, which is the default).
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) | Self::Tls(address, _) => f.write_str(address),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Login {
    /// A user of the server's access list (Redis 6); none is the default user.
    pub user: Option<String>,
    /// The password.
    pub password: SecretString,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Text: a status, or a string.
    Text(Vec<u8>),
    /// A number.
    Number(i64),
    /// Nothing is there.
    Nothing,
    /// Several.
    Many(Vec<Self>),
    /// The server refuses, and why.
    Refused(String),
}

trait Duplex: Read + Write + Send {}

impl<T: Read + Write + Send> Duplex for T {}

/// The bytes of a connection, with patience.
pub(crate) struct Wire {
    stream: Box<dyn Duplex>,
    cx: Context,
    patience: Duration,
}

impl Wire {
    /// What to do when nothing has come for a moment.
    fn wait(&self, since: Duration) -> io::Result<()> {
        self.cx.check().map_err(io::Error::other)?;
        if self.cx.monotonic().saturating_sub(since) > self.patience {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

fn is_tick(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let since = self.cx.monotonic();
        loop {
            match self.stream.read(buffer) {
                Err(e) if is_tick(&e) => self.wait(since)?,
                result => return result,
            }
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let since = self.cx.monotonic();
        loop {
            match self.stream.write(buffer) {
                Err(e) if is_tick(&e) => self.wait(since)?,
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A connection to a server.
pub struct Connection {
    pub(crate) wire: BufReader<Wire>,
    address: Address,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Connection").field(&self.address).finish()
    }
}

impl Connection {
    /// Connect, and log in if that is needed. `patience` is how long the server may take to answer, each time.
    pub fn open(
        cx: &Context,
        address: &Address,
        login: Option<&Login>,
        patience: Duration,
    ) -> Result<Self> {
        let stream = connect(address, patience)?;
        let wire = Wire { stream, cx: cx.clone(), patience };
        let mut this =
            Self { wire: BufReader::with_capacity(256 << 10, wire), address: address.clone() };
        if let Some(Login { user, password }) = login {
            let user = user.as_deref().map(str::as_bytes);
            let words = [Some(&b"AUTH"[..]), user, Some(password.expose().as_bytes())];
            let words: Vec<_> = words.into_iter().flatten().collect();
            this.must(&words)?;
        }
        Ok(this)
    }

    pub(crate) fn context(&self) -> &Context {
        &self.wire.get_ref().cx
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.wire.get_ref().cx.now()
    }

    /// Where the server is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Ask, and hear the answer. A refusal is an answer.
    pub fn ask(&mut self, words: &[&[u8]]) -> Result<Reply> {
        self.send(words)?;
        self.hear()
    }

    /// Ask; a refusal is an error.
    pub fn must(&mut self, words: &[&[u8]]) -> Result<Reply> {
        match self.ask(words)? {
            Reply::Refused(why) => Err(self.refused(words[0], &why)),
            reply => Ok(reply),
        }
    }

    /// Ask for something that is refused, if not because of who asks or because the server does not know the command.
    pub(crate) fn allowed(&mut self, words: &[&[u8]]) -> Result<()> {
        match self.ask(words)? {
            Reply::Refused(why) if is_forbidden(&why) || why.contains("unknown command") => {
                Err(self.refused(words[0], &why))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn send(&mut self, words: &[&[u8]]) -> Result<()> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.write(&request)?;
        self.flush()
    }

    /// Send a part of a request.
    pub(crate) fn write(&mut self, part: &[u8]) -> Result<()> {
        self.wire.get_mut().write_all(part).map_err(|e| self.lost(e))
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        self.wire.get_mut().flush().map_err(|e| self.lost(e))
    }

    /// Hear the answer to what was sent.
    pub(crate) fn hear(&mut self) -> Result<Reply> {
        self.reply(0, &mut MAX_REPLY.clone())
    }

    /// `room` is how many bytes it may still have.
    fn reply(&mut self, depth: u32, room: &mut usize) -> Result<Reply> {
        let line = self.line()?;
        let take = |room: &mut usize, bytes: usize| {
            *room = room.checked_sub(bytes).ok_or_else(|| self.strange())?;
            Ok(())
        };
        take(room, PART + line.len())?;
        let text = String::from_utf8_lossy(line.get(1..).unwrap_or_default()).into_owned();
        let number = || text.parse::<i64>().map_err(|_| self.strange());
        Ok(match line.first() {
            Some(b'+') => Reply::Text(line[1..].to_vec()),
            Some(b'-') => Reply::Refused(text),
            Some(b':') => Reply::Number(number()?),
            Some(b'$' | b'*') if text == "-1" => Reply::Nothing,
            Some(b'$') => {
                let len = usize::try_from(number()?).ok().filter(|len| *len <= MAX_STRING);
                let len = len.ok_or_else(|| self.strange())?;
                take(room, len)?;
                Reply::Text(self.string(len)?)
            }
            Some(b'*') if depth < MAX_DEPTH => {
                let mut many = Vec::new();
                for _ in 0..number()? {
                    many.push(self.reply(depth + 1, room)?);
                }
                Reply::Many(many)
            }
            _ => return Err(self.strange()),
        })
    }

    /// A line without its end.
    pub(crate) fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        let read = (&mut self.wire).take(MAX_LINE).read_until(b'\n', &mut line);
        read.map_err(|e| self.lost(e))?;
        match line.as_slice() {
            [] => Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
            [text @ .., b'\n'] => Ok(text.strip_suffix(b"\r").unwrap_or(text).to_vec()),
            _ => Err(self.strange()),
        }
    }

    fn string(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut string = Vec::new();
        let read = (&mut self.wire).take(len as u64 + 2).read_to_end(&mut string);
        read.map_err(|e| self.lost(e))?;
        if string.len() < len + 2 {
            return Err(self.lost(io::ErrorKind::UnexpectedEof.into()));
        }
        string.truncate(len);
        Ok(string)
    }

    /// What it means that bytes do not come or go.
    pub(crate) fn lost(&self, e: io::Error) -> Error {
        lost(&self.address, self.wire.get_ref().patience, e)
    }

    pub(crate) fn strange(&self) -> Error {
        let what = "what answers there does not speak as Redis does: check the address";
        Error::new(Reason::InvalidConfig, what).with("server", &self.address)
    }

    /// What a refusal means.
    pub(crate) fn refused(&self, command: &[u8], why: &str) -> Error {
        let command = String::from_utf8_lossy(command);
        let code = why.split(' ').next().unwrap_or_default();
        let (reason, what) = match code {
            "NOAUTH" => (Reason::PermissionDenied, "the server asks for a password".to_owned()),
            "WRONGPASS" => (Reason::PermissionDenied, "the user or the password is wrong".to_owned()),
            "NOPERM" if why.contains("access") && why.contains("key") => (
                Reason::PermissionDenied,
                "this user may not use all keys: `ACL SETUSER NAME ~*` allows it".to_owned(),
            ),
            "NOPERM" => (
                Reason::PermissionDenied,
                format!("this user may not use {command}: `ACL SETUSER NAME +{}` allows it", command.to_lowercase()),
            ),
            "LOADING" => (Reason::Unavailable, "the server is still loading its data: try again later".to_owned()),
            "NOMASTERLINK" | "MASTERDOWN" => (
                Reason::Unavailable,
                "this is a replica that has lost its master, and what it has may be old: ask another one, or wait"
                    .to_owned(),
            ),
            "ERR" if why.contains("invalid password") || why.contains("without any password configured") => {
                (Reason::PermissionDenied, "the password is wrong, or the server has none".to_owned())
            }
            "ERR" if why.contains("DB index is out of range") => (
                Reason::InvalidConfig,
                "the server has too few databases: raise `databases` in its configuration".to_owned(),
            ),
            "ERR" if why.contains("unknown command") => {
                (Reason::Unsupported, format!("the server does not know {command}, or hides it"))
            }
            _ => (Reason::Unavailable, format!("the server refuses {command}")),
        };
        // What it says may hold what was said to it.
        let why: String = why.chars().take(200).collect();
        let mut told = Error::new(reason, what).with("server", &self.address);
        if code == "NOAUTH" {
            told = told.with_hint(
                "snapshots hold no passwords: give it as `password` of the source of this name in the stack file",
            );
        }
        if command == "AUTH" { told } else { told.caused_by(io::Error::other(why)) }
    }
}

/// What it means that bytes do not come or go.
pub(crate) fn lost(address: &Address, patience: Duration, e: io::Error) -> Error {
    // Our own, such as that the run is cancelled.
    let e = match e.downcast::<Error>() {
        Ok(own) => return own,
        Err(e) => e,
    };
    let told = match e.kind() {
        io::ErrorKind::TimedOut => {
            let what = format!("the server has said nothing for {} seconds", patience.as_secs());
            Error::new(Reason::TimedOut, what)
        }
        // So TLS says that it cannot be, or that a certificate is not accepted.
        io::ErrorKind::InvalidData if matches!(address, Address::Tls(..)) => {
            let what = "TLS with the server is not possible: check `ca`, `cert` and `key`, and that it speaks TLS there";
            Error::new(Reason::InvalidConfig, what).caused_by(e)
        }
        _ => Error::new(Reason::Unavailable, "the server has closed the connection").caused_by(e),
    };
    told.with("server", address)
}

fn unreachable(address: &Address, e: io::Error) -> Error {
    let reason = match e.kind() {
        io::ErrorKind::PermissionDenied => Reason::PermissionDenied,
        io::ErrorKind::InvalidInput => Reason::InvalidConfig,
        _ => Reason::Unavailable,
    };
    Error::new(reason, "the server cannot be reached").with("server", address).caused_by(e)
}

fn connect(address: &Address, patience: Duration) -> Result<Box<dyn Duplex>> {
    let failed = |e| unreachable(address, e);
    match address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).map_err(failed)?;
            let ticking = stream.set_read_timeout(Some(TICK));
            ticking.and_then(|()| stream.set_write_timeout(Some(TICK))).map_err(failed)?;
            Ok(Box::new(stream))
        }
        Address::Tcp(place) => Ok(Box::new(connect_tcp(place, patience).map_err(failed)?)),
        #[cfg(feature = "tls")]
        Address::Tls(place, trust) => {
            let host = place.rsplit_once(':').map_or(place.as_str(), |(host, _)| host);
            let client = crate::tls::client(host.trim_matches(['[', ']']), trust)?;
            let stream = connect_tcp(place, patience).map_err(failed)?;
            Ok(Box::new(rustls::StreamOwned::new(client, stream)))
        }
        #[cfg(not(feature = "tls"))]
        Address::Tls(..) => Err(Error::new(
            Reason::Unsupported,
            "this program was built without TLS: its feature `tls`",
        )),
    }
}

fn connect_tcp(place: &str, patience: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in place.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => {
                stream.set_read_timeout(Some(TICK))?;
                stream.set_write_timeout(Some(TICK))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}
