//! A real server, started and ended by the test.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use snapkit_core::context::Context;
use snapkit_source_redis::connection::{Address, Connection, Login, Reply};
use snapkit_testkit::server::RedisServer;

/// A server in a directory of its own, which is gone when this is dropped.
pub(crate) struct Server(RedisServer);

impl Deref for Server {
    type Target = RedisServer;

    fn deref(&self) -> &RedisServer {
        &self.0
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut RedisServer {
        &mut self.0
    }
}

impl Server {
    /// None where there is no such program.
    pub(crate) fn start(settings: &[&str]) -> Option<Self> {
        RedisServer::start(settings).map(Self)
    }

    /// With a copy of what is in a directory.
    pub(crate) fn with_files(files: &Path, settings: &[&str]) -> Option<Self> {
        RedisServer::start_with(files, settings).map(Self)
    }

    pub(crate) fn client(&self) -> Client {
        Client(self.connect(None).unwrap())
    }

    pub(crate) fn address(&self) -> Address {
        Address::Unix(self.path("socket"))
    }

    pub(crate) fn connect(&self, login: Option<&Login>) -> snapkit_core::Result<Connection> {
        Connection::open(&Context::system(), &self.address(), login, Duration::from_secs(20))
    }

    /// Let it write a snapshot, and read that.
    pub(crate) fn saved(&self) -> Vec<u8> {
        let mut client = self.client();
        // What wrote for a replica may still be ending.
        while client.ask(&[b"SAVE"])
            == Reply::Refused("ERR Background save already in progress".to_owned())
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::fs::read(self.path("dump.rdb")).unwrap()
    }
}

/// Asks, and expects an answer.
pub(crate) struct Client(Connection);

impl Client {
    pub(crate) fn ask(&mut self, words: &[&[u8]]) -> Reply {
        self.0.ask(words).unwrap()
    }

    /// A command as one would type it.
    pub(crate) fn say(&mut self, command: &str) -> Reply {
        let words: Vec<_> = command.split(' ').map(str::as_bytes).collect();
        let reply = self.ask(&words);
        assert!(!matches!(reply, Reply::Refused(_)), "{command}: {reply:?}");
        reply
    }
}
