//! Other processes: this test program, started again in a role.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;

use crate::support::{ACCOUNTS, count, sum};

/// Another process in a role. Killed when dropped.
pub struct Other {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

fn command(role: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["child::role", "--exact", "--nocapture", "--test-threads=1"])
        .env("SNAPKIT_TEST_ROLE", role)
        .env("SNAPKIT_TEST_PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

impl Other {
    /// Start it, and wait until it is in its role.
    pub fn start(role: &str, path: &Path) -> Self {
        let mut child = command(role, path).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut other = Self { child, stdin, stdout };
        assert_eq!(other.hear(), "ready");
        other
    }

    /// What it says next.
    pub fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "the other process has ended");
            // The test program says things of its own, on the same line too.
            if let Some((_, said)) = line.trim_end().rsplit_once("@@") {
                return said.to_owned();
            }
        }
    }

    /// Tell it to go on, and hear what it says then.
    pub fn go(&mut self) -> String {
        writeln!(self.stdin).unwrap();
        self.hear()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Whether another process can get the write lock at once.
pub fn can_write(path: &Path) -> bool {
    let output = command("try-write", path).stderr(Stdio::piped()).output().unwrap();
    match output.status.code() {
        Some(0) => true,
        Some(101) => false,
        other => panic!("{other:?}: {output:?}"),
    }
}

/// Run a role as the user `nobody`; what it said.
pub fn as_nobody(role: &str, path: &Path) -> String {
    said(command(role, path).uid(65_534).gid(65_534))
}

/// Run a role with temporary files elsewhere; what it said.
pub fn with_scratch(role: &str, path: &Path, scratch: &Path) -> String {
    said(command(role, path).env("TMPDIR", scratch))
}

fn said(command: &mut Command) -> String {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines()
        .filter_map(|l| l.rsplit_once("@@"))
        .map(|(_, said)| said)
        .collect::<Vec<_>>()
        .join("\n")
}

fn say(text: impl std::fmt::Display) {
    println!("@@{text}");
}

fn wait_for_word() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

/// Not a test: what the other processes run.
#[test]
fn role() {
    let Ok(role) = std::env::var("SNAPKIT_TEST_ROLE") else { return };
    let path = std::path::PathBuf::from(std::env::var_os("SNAPKIT_TEST_PATH").unwrap());
    match role.as_str() {
        "transfer" => transfer(&path, Duration::from_millis(5)),
        "transfer-fast" => transfer(&path, Duration::from_millis(2)),
        "try-write" => {
            let db = Connection::open(&path).unwrap();
            db.busy_timeout(Duration::ZERO).unwrap();
            db.execute_batch("BEGIN IMMEDIATE; ROLLBACK").unwrap();
        }
        "write" => {
            let db = Connection::open(&path).unwrap();
            db.execute_batch("BEGIN IMMEDIATE; INSERT INTO accounts VALUES (NULL, 0)").unwrap();
            say("ready");
            wait_for_word();
            let outcome = db.execute_batch("COMMIT");
            say(if outcome.is_ok() { "committed" } else { "refused" });
            wait_for_word();
        }
        "write-much" => {
            // Pages go to the file before the commit, because the cache has no room for them.
            let db = Connection::open(&path).unwrap();
            db.execute_batch(&format!(
                "PRAGMA cache_size = 5; BEGIN; UPDATE accounts SET amount = amount - 1 WHERE id < {}",
                ACCOUNTS / 2
            ))
            .unwrap();
            say("ready");
            wait_for_word();
        }
        "read" => {
            let db = Connection::open(&path).unwrap();
            db.execute_batch("BEGIN").unwrap();
            let before = count(&db);
            say("ready");
            wait_for_word();
            let same = count(&db) == before;
            say(if same { "same" } else { "changed" });
            wait_for_word();
            db.execute_batch("COMMIT").unwrap();
            say(count(&db));
            wait_for_word();
        }
        "add" => {
            let db = Connection::open(&path).unwrap();
            db.execute_batch("PRAGMA wal_autocheckpoint = 0; BEGIN").unwrap();
            for _ in 0..2000 {
                db.execute("INSERT INTO accounts VALUES (NULL, 0)", []).unwrap();
            }
            db.execute_batch("COMMIT; CREATE TABLE newer (x)").unwrap();
            say("ready");
            wait_for_word();
        }
        "capture" => crate::rights::say_capture(&path, say),
        "check" => crate::rights::say_check(&path, say),
        "restore" => crate::rights::say_restore(&path, say),
        other => panic!("no such role: {other}"),
    }
}

/// Move money about until told to stop, each time in one transaction that also counts; then say how
/// many commits there were.
fn transfer(path: &Path, pause: Duration) {
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = std::sync::Arc::clone(&stop);
    std::thread::spawn(move || {
        wait_for_word();
        told.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let db = Connection::open(path).unwrap();
    db.busy_timeout(Duration::from_secs(60)).unwrap();
    db.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = OFF").unwrap();
    let total = sum(&db);
    for i in 0i64.. {
        let (from, to) = (i * 7 % ACCOUNTS + 1, i * 13 % ACCOUNTS + 1);
        db.execute_batch(&format!(
            "BEGIN IMMEDIATE;
             UPDATE accounts SET amount = amount - 5 WHERE id = {from};
             UPDATE accounts SET amount = amount + 5 WHERE id = {to};
             UPDATE transfers SET n = n + 1;
             COMMIT"
        ))
        .unwrap();
        if i == 20 {
            assert_eq!(sum(&db), total);
            say("ready");
        }
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            say(i + 1);
            break;
        }
        std::thread::sleep(pause);
    }
}
