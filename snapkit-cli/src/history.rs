//! What was run here, and how it ended: a line of JSON per run in the local state, and a file for each
//! run that has not ended.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use snapkit_core::context::Timestamp;
use snapkit_core::error::{Error, IoContext as _, Result};

use crate::location::without_credentials;

/// Below the directory of local state.
const FILE: &str = "history";

/// When the file is longer it is cut to the half: 1 MiB, some thousand runs.
const MAX_FILE: u64 = 1 << 20;

/// Below the directory of local state: the runs that have not ended.
const UNDER_WAY: &str = "runs";

/// The most that is read of such a file.
const MAX_BEGUN: u64 = 1 << 16;

/// The outcome of a run that did not live to say how it ended.
const KILLED: &str = "killed";
/// The outcome of a run that goes on.
const RUNNING: &str = "running";

/// The most of an error that is remembered.
const MAX_MESSAGE: usize = 1000;

/// A run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Run {
    pub(crate) started: Timestamp,
    pub(crate) seconds: f64,
    /// `create`, `restore` or `verify`.
    pub(crate) command: String,
    /// Which repository, as it was named.
    pub(crate) repository: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stack: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) set: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<String>,
    /// What it amounts to, in one word: a verdict, `sound`, `damage`, `failed`.
    pub(crate) outcome: String,
    pub(crate) exit: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl Run {
    pub(crate) fn begun(started: Timestamp, command: &str, repository: &str) -> Self {
        Self {
            started,
            seconds: 0.0,
            command: command.to_owned(),
            repository: without_credentials(repository),
            stack: None,
            set: None,
            snapshot: None,
            outcome: String::new(),
            exit: 0,
            reason: None,
            error: None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.outcome == RUNNING
    }

    /// Note why it failed.
    pub(crate) fn fail(&mut self, error: &Error) {
        self.outcome = "failed".to_owned();
        self.exit = error.reason().row().exit;
        self.reason = Some(error.reason().code().to_owned());
        let mut text = without_said(error);
        let cut = (0..=MAX_MESSAGE.min(text.len())).rev().find(|i| text.is_char_boundary(*i));
        text.truncate(cut.unwrap_or(0));
        self.error = Some(text);
    }
}

/// An error and its causes without what a program of the user's has said, which may be anything.
fn without_said(error: &Error) -> String {
    let said = error.context().iter().find(|(key, _)| *key == "said");
    let text = error.chain();
    match said {
        Some((_, said)) => text.replace(said.as_str(), "…"),
        None => text,
    }
}

/// A run that goes on: a file that is locked until it ends, however it ends.
#[derive(Debug)]
pub(crate) struct UnderWay {
    path: PathBuf,
    file: File,
}

impl UnderWay {
    /// A run begins.
    pub(crate) fn begin(state: &Path, run: &Run) -> Result<Self> {
        let directory = state.join(UNDER_WAY);
        let what = || format!("cannot write in {}", directory.display());
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
        builder.create(&directory).doing(what)?;
        let name = format!("{}-{}", run.started.0, std::process::id());
        // Nobody looks at it before it is locked.
        let draft = directory.join(format!(".{name}"));
        let path = directory.join(name);
        let mut file =
            File::options().write(true).create_new(true).mode(0o600).open(&draft).doing(what)?;
        let line = encode(run)?;
        let written = file
            .lock()
            .and_then(|()| file.write_all(&line))
            .and_then(|()| std::fs::rename(&draft, &path));
        if let Err(e) = written {
            drop(std::fs::remove_file(&draft));
            return Err(Error::io(what(), e));
        }
        Ok(Self { path, file })
    }

    /// More is known about it.
    pub(crate) fn tell(&mut self, run: &Run) {
        // Nothing hangs on it.
        drop(encode(run).map(|line| {
            self.file
                .rewind()
                .and_then(|()| self.file.write_all(&line))
                .and_then(|()| self.file.set_len(line.len() as u64))
        }));
    }

    /// It has ended, and how it ended is remembered.
    pub(crate) fn end(self) {
        // What stays there is taken for a run that was killed, which is wrong but not harmful.
        drop(std::fs::remove_file(&self.path));
        drop(self.file);
    }
}

/// Remember the runs that were killed, and give those that go on.
pub(crate) fn bury(state: &Path) -> Result<Vec<Run>> {
    let mut running = Vec::new();
    let directory = state.join(UNDER_WAY);
    let what = || format!("cannot read {}", directory.display());
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(running),
        Err(e) => return Err(Error::io(what(), e)),
    };
    // Whoever put a link there did not mean us to tidy up behind it.
    if std::fs::symlink_metadata(&directory).doing(what)?.is_symlink() {
        return Err(Error::io(what(), std::io::Error::other("it is a symbolic link")));
    }
    for entry in entries {
        let entry = entry.doing(what)?;
        if !entry.file_type().doing(what)?.is_file() || !is_run(&entry.file_name()) {
            continue;
        }
        let Ok(mut file) = File::open(entry.path()) else { continue };
        let is_dead = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(e)) => return Err(Error::io(what(), e)),
        };
        let mut text = Vec::new();
        (&mut file).take(MAX_BEGUN).read_to_end(&mut text).doing(what)?;
        let Ok(run) = serde_json::from_slice::<Run>(&text) else { continue };
        if !is_dead {
            running.push(Run { outcome: RUNNING.to_owned(), ..run });
        // Otherwise it ended between the listing and the lock, or somebody else has just remembered it.
        } else if file.metadata().doing(what)?.nlink() > 0 {
            // First, so that it is not told again and again where it cannot be removed.
            std::fs::remove_file(entry.path()).doing(what)?;
            let why = "it did not live to its end: killed, or the machine stopped";
            let run = Run {
                outcome: KILLED.to_owned(),
                // As a shell tells of SIGKILL.
                exit: 137,
                error: Some(why.to_owned()),
                ..run
            };
            note(state, &run)?;
        }
    }
    running.sort_by_key(|run| std::cmp::Reverse(run.started));
    Ok(running)
}

/// `<microseconds>-<process>`: what else lies there is not ours.
fn is_run(name: &OsStr) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.to_str()
        .and_then(|name| name.split_once('-'))
        .is_some_and(|(started, process)| is_number(started) && is_number(process))
}

fn encode(run: &Run) -> Result<Vec<u8>> {
    serde_json::to_vec(run).map_err(|e| Error::internal("cannot encode a run").caused_by(e))
}

fn path(state: &Path) -> PathBuf {
    state.join(FILE)
}

/// Remember a run.
pub(crate) fn note(state: &Path, run: &Run) -> Result<()> {
    let path = path(state);
    let what = || format!("cannot write {}", path.display());
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
    builder.create(state).doing(what)?;
    let mut line = encode(run)?;
    line.push(b'\n');
    let mut file = File::options();
    file.read(true).append(true).create(true).mode(0o600);
    // In a directory of several users a link may lead to a file that is not ours to write.
    file.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let mut file = file.open(&path).doing(what)?;
    // Whoever cuts the file meanwhile loses no line.
    file.lock().doing(what)?;
    if file.metadata().doing(what)?.len() > MAX_FILE {
        let text = read(&path)?;
        let kept = cut(&text);
        file.set_len(0).and_then(|()| file.write_all(kept.as_bytes())).doing(what)?;
    }
    file.write_all(&line).doing(what)
}

/// The newer half of the lines.
fn cut(text: &str) -> &str {
    let half = (text.len() / 2..text.len()).find(|i| text.is_char_boundary(*i));
    let rest = &text[half.unwrap_or(text.len())..];
    rest.split_once('\n').map_or("", |(_, rest)| rest)
}

fn read(path: &Path) -> Result<String> {
    let what = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    match std::fs::metadata(path) {
        // A pipe would keep us waiting.
        Ok(found) if !found.is_file() => {
            return Err(Error::io(what(), std::io::Error::other("it is no file")));
        }
        _ => {}
    }
    match File::open(path) {
        Ok(file) => {
            file.take(2 * MAX_FILE).read_to_end(&mut bytes).doing(what)?;
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(what(), e)),
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The runs that have ended and are remembered, the newest first. What is no run is passed over.
pub(crate) fn runs(state: &Path) -> Result<Vec<Run>> {
    let text = read(&path(state))?;
    Ok(text.lines().rev().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(n: u32) -> Run {
        Run {
            started: Timestamp(i64::from(n)),
            seconds: 1.5,
            command: "create".to_owned(),
            repository: "/r".to_owned(),
            stack: Some("shop".to_owned()),
            set: None,
            snapshot: None,
            outcome: "complete".to_owned(),
            exit: 0,
            reason: None,
            error: Some("x".repeat(900)),
        }
    }

    #[test]
    fn the_newest_are_kept() {
        let state = tempfile::tempdir().unwrap();
        for n in 0..2500 {
            note(state.path(), &run(n)).unwrap();
        }
        let all = runs(state.path()).unwrap();
        assert!(all.len() > 400 && all.len() < 1200, "{}", all.len());
        for (run, n) in all.iter().zip((0..2500).rev()) {
            assert_eq!(run.started.0, n);
        }
        std::fs::write(path(state.path()), "torn\n{\"half").unwrap();
        assert!(runs(state.path()).unwrap().is_empty());
    }

    #[test]
    fn a_run_that_was_killed_is_remembered_once() {
        let state = tempfile::tempdir().unwrap();
        let alive = UnderWay::begin(state.path(), &run(1)).unwrap();
        let ended = UnderWay::begin(state.path(), &run(2)).unwrap();
        let killed = UnderWay::begin(state.path(), &run(3)).unwrap();
        ended.end();
        // As the kernel does it.
        drop(killed.file);
        let others: Vec<_> = ["junk", "1-2", ".3-4"]
            .iter()
            .map(|name| state.path().join(UNDER_WAY).join(name))
            .collect();
        others.iter().for_each(|path| std::fs::write(path, "no run").unwrap());
        // Whatever it says: it has not the name of a run.
        std::fs::write(&others[0], encode(&run(4)).unwrap()).unwrap();
        for _ in 0..2 {
            let running = bury(state.path()).unwrap();
            assert_eq!(running.len(), 1);
            assert_eq!((running[0].started.0, running[0].outcome.as_str()), (1, RUNNING));
            let remembered = runs(state.path()).unwrap();
            assert_eq!(remembered.len(), 1);
            assert_eq!((remembered[0].started.0, remembered[0].exit), (3, 137));
        }
        alive.end();
        assert!(bury(state.path()).unwrap().is_empty());
        assert!(others.iter().all(|path| path.exists()), "what is not ours is left alone");
        assert_eq!(runs(state.path()).unwrap().len(), 1);
    }

    #[test]
    fn what_lies_behind_a_link_is_left_alone() {
        let state = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        drop(UnderWay::begin(elsewhere.path(), &run(1)).unwrap().file);
        let there = elsewhere.path().join(UNDER_WAY);
        std::os::unix::fs::symlink(&there, state.path().join(UNDER_WAY)).unwrap();
        assert!(bury(state.path()).is_err());
        assert_eq!(std::fs::read_dir(there).unwrap().count(), 1);
    }

    #[test]
    fn errors_are_cut_at_characters() {
        let mut one = run(1);
        one.fail(&Error::invalid("ä".repeat(2000)));
        assert_eq!((one.error.unwrap().len(), one.exit), (MAX_MESSAGE, 2));
    }
}
