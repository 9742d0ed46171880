//! What says that a database is as it was, without reading it.
//!
//! What a reader sees is the file, overlaid with those pages of its log that are committed. No file's time tells
//! how much of the log that is, for writers make it known through shared memory. So every page of which the log
//! has anything is taken as it is pinned; all others are those of the file, whose state does tell. Whenever the
//! meaning of the source's facts changes, the hash's context must: they are taken over with the content.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use snapkit_core::Result;
use snapkit_core::context::Timestamp;

use crate::client::Job;
use crate::error::shown;
use crate::pin::Pin;

/// A longer log is no sign of a database at rest: 64 MiB. SQLite begins to empty it at 4 MiB.
const LONGEST_LOG: u64 = 64 << 20;

/// Of the log's header and of that of each page in it (<https://sqlite.org/fileformat2.html#walformat>).
const LOG_HEADER: u64 = 32;
const FRAME_HEADER: u64 = 24;

/// Within a tick of the file system's clock a file may change twice and show it once: 50 ms, and 2 s where
/// times are whole seconds.
const TICK: i64 = 50_000_000;
const COARSE_TICK: i64 = 2_000_000_000;

/// The state of a file, as its file system tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    size: u64,
    modified: i64,
    changed: i64,
}

impl State {
    /// `None` if there is nothing in it or no file at all.
    fn look(path: &Path) -> io::Result<Option<Self>> {
        let meta = match std::fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000) + nanos;
        Ok((meta.len() > 0).then(|| Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: nanos(meta.mtime(), meta.mtime_nsec()),
            changed: nanos(meta.ctime(), meta.ctime_nsec()),
        }))
    }

    /// Whether a further change would show.
    fn is_settled(&self, now: Timestamp) -> bool {
        let tick = if self.changed % 1_000_000_000 == 0 { COARSE_TICK } else { TICK };
        self.changed.saturating_add(tick) < now.0
    }

    /// How often this process has the file open, if the system tells.
    fn times_open(&self) -> Option<usize> {
        let open = std::fs::read_dir("/dev/fd").ok()?.flatten();
        let is_it = |meta: &Metadata| (meta.dev(), meta.ino()) == (self.device, self.inode);
        Some(open.filter(|fd| std::fs::metadata(fd.path()).is_ok_and(|meta| is_it(&meta))).count())
    }

    fn add_to(&self, hasher: &mut blake3::Hasher) {
        for number in [self.device, self.inode, self.size] {
            hasher.update(&number.to_le_bytes());
        }
        for time in [self.modified, self.changed] {
            hasher.update(&time.to_le_bytes());
        }
    }
}

/// The files of a database before it was opened.
#[derive(Clone, Debug)]
pub(crate) struct Before {
    /// Without symbolic links, as SQLite itself finds the log.
    database: PathBuf,
    log: PathBuf,
    states: (Option<State>, Option<State>),
}

impl Before {
    /// Look at the files of a database, then open it. Nothing is said of the files if nothing can be, or if this
    /// process does not have the file open once more than before: a link on the way to it may have pointed
    /// elsewhere for a moment. (SQLite takes a descriptor that it has left over where a program keeps connections
    /// of its own to the database; then nothing is said either.)
    pub(crate) fn and_open<T>(
        path: &Path,
        now: Timestamp,
        open: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Option<Self>)> {
        // The database that another capture opens meanwhile is not to be taken for this one's.
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = Self::look(path, now);
        let count = || before.as_ref().and_then(|b| b.states.0.as_ref()?.times_open());
        let (were, opened, are) = (count(), open()?, count());
        let is_open = were.zip(are).is_some_and(|(were, are)| were < are);
        Ok((opened, before.filter(|_| is_open)))
    }

    fn look(path: &Path, now: Timestamp) -> Option<Self> {
        let database = path.canonicalize().ok()?;
        let mut log = database.clone().into_os_string();
        log.push("-wal");
        let log = PathBuf::from(log);
        let states = states(&database, &log).ok()?;
        let settled = |s: &Option<State>| s.as_ref().is_none_or(|s| s.is_settled(now));
        (states.0.is_some() && settled(&states.0) && settled(&states.1)).then_some(Self {
            database,
            log,
            states,
        })
    }

    /// The fingerprint of what is pinned, if it has been at rest since the look. It is of no use where the
    /// database cannot be read: its reader will say why.
    pub(crate) fn fingerprint(&self, pin: &Pin, job: &Job) -> Result<Option<String>> {
        let about = pin.about();
        let mut hasher = blake3::Hasher::new_derive_key("snapkit 1-draft sqlite fingerprint");
        hasher.update(&about.page_size.to_le_bytes());
        hasher.update(&about.page_count.to_le_bytes());
        let (database, log) = &self.states;
        if let Some(database) = database {
            database.add_to(&mut hasher);
        }
        if let Some(state) = log {
            let Some(pages) = self.logged_pages(state, about.page_size, job)? else {
                return Ok(None);
            };
            for page in pages.range(1..=about.page_count) {
                job.check()?;
                let Ok(image) = pin.read(job, *page, 1) else { return Ok(None) };
                hasher.update(&page.to_le_bytes());
                hasher.update(&image);
            }
        }
        let at_rest = states(&self.database, &self.log).is_ok_and(|now| now == self.states);
        Ok(at_rest.then(|| hasher.finalize().to_hex().to_string()))
    }

    /// Every page that the log has anything of, committed or not, of this round or an older one; `None` if
    /// that is too much or unreadable.
    fn logged_pages(
        &self,
        state: &State,
        page_size: u32,
        job: &Job,
    ) -> Result<Option<BTreeSet<u32>>> {
        if state.size > LONGEST_LOG {
            return Ok(None);
        }
        // SQLite locks nothing of this file, so that closing it again drops no lock of anybody.
        let Ok(log) = File::open(&self.log) else { return Ok(None) };
        let mut pages = BTreeSet::new();
        let mut at = LOG_HEADER;
        while at + FRAME_HEADER <= state.size {
            job.check()?;
            let mut number = [0; 4];
            if let Err(e) = log.read_exact_at(&mut number, at) {
                tracing::debug!(path = %shown(&self.log), error = %e, "the log cannot be read");
                return Ok(None);
            }
            pages.insert(u32::from_be_bytes(number));
            at += FRAME_HEADER + u64::from(page_size);
        }
        Ok(Some(pages))
    }
}

/// Of the database and its log.
fn states(database: &Path, log: &Path) -> io::Result<(Option<State>, Option<State>)> {
    // SQLite running as root gives the log to the database's owner whenever it opens it: a change, not of content.
    let log = State::look(log)?.map(|s| State { changed: s.modified, ..s });
    Ok((State::look(database)?, log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_that_was_opened_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, link) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("link"));
        std::fs::write(&a, "a").unwrap();
        std::fs::write(&b, "b").unwrap();
        std::os::unix::fs::symlink(&a, &link).unwrap();
        let later = Timestamp(i64::MAX);
        let opening = |path: &Path| {
            let (_file, before) =
                Before::and_open(&link, later, || Ok(File::open(path).unwrap())).unwrap();
            before.is_some()
        };
        assert!(opening(&link) && opening(&a));
        assert!(!opening(&b), "the link is expected to have been switched");
        let _held = File::open(&a).unwrap();
        assert!(opening(&link) && !opening(&b));
    }
}
