//! Real servers in scratch directories, started by a test and ended when it is done with them.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use snapkit_core::context::{Environment as _, System};

/// How long a server may take to start.
const START: Duration = Duration::from_secs(20);

/// A Redis server that listens at a socket in a directory of its own and writes nothing by itself.
#[derive(Debug)]
pub struct RedisServer {
    /// Its process.
    pub process: Child,
    dir: tempfile::TempDir,
}

impl RedisServer {
    /// Start one with such arguments of `redis-server`. None where there is no such program, which is a failure where
    /// `CI` is set. Panics if it does not start.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Option<Self> {
        Self::start_in(tempfile::tempdir(), arguments)
    }

    /// The same, with a copy of what is in a directory.
    #[must_use]
    pub fn start_with(files: &Path, arguments: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir();
        if let Ok(dir) = &dir {
            let copy = Command::new("cp").arg("-a").arg(files.join(".")).arg(dir.path()).status();
            assert!(copy.is_ok_and(|status| status.success()), "{} is not copied", files.display());
        }
        Self::start_in(dir, arguments)
    }

    fn start_in(dir: std::io::Result<tempfile::TempDir>, arguments: &[&str]) -> Option<Self> {
        let Ok(dir) = dir else { panic!("there is no scratch directory") };
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(dir.path().join("socket"));
        command.arg("--dir").arg(dir.path()).args(arguments);
        let Ok(process) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
            assert!(std::env::var_os("CI").is_none(), "redis-server must not be missing in CI");
            return None;
        };
        let server = Self { process, dir };
        let clock = System::new();
        while UnixStream::connect(server.socket()).is_err() {
            assert!(clock.monotonic() < START, "redis-server does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(server)
    }

    /// A place in its directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have been killed already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
