//! A real server, started and ended by the test.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use snapkit_core::context::Context;
use snapkit_source_redis::connection::{Address, Connection, Login, Reply};

/// A server in a directory of its own, which is gone when this is dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    dir: tempfile::TempDir,
}

impl Server {
    /// None where there is no such program; in continuous integration that is a failure.
    pub(crate) fn start(settings: &[&str]) -> Option<Self> {
        Self::in_directory(tempfile::tempdir().unwrap(), settings)
    }

    /// With a copy of what is in a directory.
    pub(crate) fn with_files(files: &std::path::Path, settings: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let copied = Command::new("cp").arg("-a").arg(files.join(".")).arg(dir.path()).status();
        assert!(copied.unwrap().success());
        Self::in_directory(dir, settings)
    }

    fn in_directory(dir: tempfile::TempDir, settings: &[&str]) -> Option<Self> {
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(dir.path().join("socket"));
        command.arg("--dir").arg(dir.path()).args(settings);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(child) = child else {
            assert!(std::env::var_os("CI").is_none(), "redis-server must not be missing in CI");
            return None;
        };
        let server = Self { child, dir };
        for _ in 0..1000 {
            if UnixStream::connect(server.path("socket")).is_ok() {
                return Some(server);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the server does not start");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
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

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed already.
        drop(self.child.kill());
        self.child.wait().unwrap();
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
