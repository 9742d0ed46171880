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

/// A NATS server with JetStream, on a free port, with a directory of its own.
#[derive(Debug)]
pub struct NatsServer {
    /// Its process.
    pub process: Child,
    dir: tempfile::TempDir,
    url: String,
}

impl NatsServer {
    /// The programs of all versions that are there: below the directory that `SNAPKIT_NATS` names, each `VERSION/nats-server`,
    /// oldest first; or the one that is installed. Panics if there is none and `CI` is set.
    #[must_use]
    pub fn programs() -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = match std::env::var_os("SNAPKIT_NATS") {
            Some(dir) => std::fs::read_dir(dir)
                .into_iter()
                .flatten()
                .filter_map(|entry| Some(entry.ok()?.path().join("nats-server")))
                .filter(|program| program.exists())
                .collect(),
            None => Vec::new(),
        };
        let number = |path: &PathBuf| -> Vec<u32> {
            let version = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
            version.unwrap_or_default().split('.').filter_map(|part| part.parse().ok()).collect()
        };
        found.sort_by_key(number);
        if found.is_empty() && Command::new("nats-server").arg("--version").output().is_ok() {
            found.push("nats-server".into());
        }
        let is_enough = std::env::var_os("CI").is_none() || found.len() > 1;
        assert!(is_enough, "servers of several versions must not be missing in CI: {found:?}");
        found
    }

    /// Start one with such lines of configuration. Panics if it does not start.
    #[must_use]
    pub fn start(program: &Path, settings: &str) -> Self {
        let Ok(dir) = tempfile::tempdir() else { panic!("there is no scratch directory") };
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "listen: \"127.0.0.1:-1\"\nports_file_dir: \"{}\"\njetstream {{ store_dir: \"{}\" }}\n{settings}\n",
            path(""),
            path("store"),
        );
        let written = std::fs::write(path("nats.conf"), config);
        assert!(written.is_ok(), "the configuration is not written: {written:?}");
        let mut command = Command::new(program);
        command.args(["--config", &path("nats.conf"), "--log", &path("log")]);
        let started = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(mut process) = started else { panic!("{} does not start", program.display()) };
        let ports = dir.path().join(format!("nats-server_{}.ports", process.id()));
        let clock = System::new();
        let url = loop {
            let text = std::fs::read_to_string(&ports).unwrap_or_default();
            let at = |text: &str| Some(text.split("nats://").nth(1)?.split('"').next()?.to_owned());
            if let Some(place) = at(&text) {
                break format!("nats://{place}");
            }
            let is_over = clock.monotonic() > START || !matches!(process.try_wait(), Ok(None));
            let log = std::fs::read_to_string(path("log")).unwrap_or_default();
            assert!(!is_over, "{} does not start: {log}", program.display());
            std::thread::sleep(Duration::from_millis(10));
        };
        Self { process, dir, url }
    }

    /// A place in its directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // It may have been killed already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A Prometheus server on a free port, with a data directory of its own, that scrapes nothing by itself.
#[derive(Debug)]
pub struct PrometheusServer {
    /// Its process.
    pub process: Child,
    dir: tempfile::TempDir,
    url: String,
}

impl PrometheusServer {
    /// Where it keeps its data, in its directory.
    const DATA: &str = "data";

    /// Start one with such arguments, on a copy of what is in a directory. None where there is no such
    /// program, which is a failure where `CI` is set. Panics if it does not start.
    #[must_use]
    pub fn start(data: Option<&Path>, arguments: &[&str]) -> Option<Self> {
        let Ok(dir) = tempfile::tempdir() else { panic!("there is no scratch directory") };
        if let Some(data) = data {
            let mut copy = Command::new("cp");
            let status = copy.arg("-a").arg(data).arg(dir.path().join(Self::DATA)).status();
            assert!(status.is_ok_and(|s| s.success()), "{} is not copied", data.display());
        }
        let (config, log) = (dir.path().join("prometheus.yml"), dir.path().join("log"));
        let files = std::fs::write(&config, "{}\n").and_then(|()| std::fs::File::create(&log));
        let Ok(output) = files else { panic!("the configuration is not written") };
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.path().join(Self::DATA).display()));
        command.arg("--web.listen-address=127.0.0.1:0").args(arguments);
        let Ok(mut process) = command.stdout(Stdio::null()).stderr(output).spawn() else {
            assert!(std::env::var_os("CI").is_none(), "prometheus must not be missing in CI");
            return None;
        };
        let clock = System::new();
        let url = loop {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let port = text
                .split("\"Listening on\" address=")
                .nth(1)
                .and_then(|rest| rest.split_whitespace().next());
            // It says that before it has read its data.
            if let Some(place) = port.filter(|_| text.contains("Server is ready")) {
                break format!("http://{place}");
            }
            let is_over = clock.monotonic() > START || !matches!(process.try_wait(), Ok(None));
            assert!(!is_over, "prometheus does not start: {text}");
            std::thread::sleep(Duration::from_millis(10));
        };
        Some(Self { process, dir, url })
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.path().join(Self::DATA)
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// End it, and have its data directory, which is gone with the value.
    #[must_use]
    pub fn stop(mut self) -> tempfile::TempDir {
        drop(Command::new("kill").arg(self.process.id().to_string()).status());
        drop(self.process.wait());
        let Ok(empty) = tempfile::tempdir() else { panic!("there is no scratch directory") };
        std::mem::replace(&mut self.dir, empty)
    }
}

impl Drop for PrometheusServer {
    fn drop(&mut self) {
        // It may have been killed already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
