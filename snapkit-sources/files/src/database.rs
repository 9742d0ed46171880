//! Databases among the files: they are read by somebody who knows them, never as plain files.
//!
//! Closing any descriptor of a file drops all POSIX locks that the process holds on it. A program
//! that embeds snapkit and has a SQLite database open would lose its locks, and then its data, if a
//! file walk opened that database and closed it again. So a file that may be a database is known by
//! its name, and opened by a [`DatabaseReader`], which knows how.

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::path::Path;

use async_trait::async_trait;
use rustix::fs::{AtFlags, FileType, Stat};
use snapkit_core::artifact::ByteStream;
use snapkit_core::context::{Context, Timestamp};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::tree::{EntryPath, escape};

use crate::attributes;
use crate::error;
use crate::names::{Kind, Names};

/// Reads the databases that a walk comes upon.
#[async_trait]
pub trait DatabaseReader: Debug + Send + Sync {
    /// One consistent image of the database at an absolute path, or `None` if it is not a database,
    /// and may be read as a plain file.
    async fn read(&self, cx: &Context, path: &Path) -> Result<Option<DatabaseImage>>;
}

/// One consistent image of a database, as the bytes of a file.
pub struct DatabaseImage {
    /// Its length in bytes.
    pub size: u64,
    /// Its bytes, as many as `size` says.
    pub body: ByteStream,
}

impl Debug for DatabaseImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DatabaseImage({} bytes)", self.size)
    }
}

/// What SQLite puts beside a database: parts of its content, and its locks.
pub(crate) const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Those of them that hold content.
const CONTENT: [&str; 2] = ["-wal", "-journal"];

/// The name of the database that a file of this name would belong to.
pub(crate) fn owner_of(name: &[u8]) -> Option<&[u8]> {
    SIDECARS.iter().find_map(|s| name.strip_suffix(s.as_bytes())).filter(|n| !n.is_empty())
}

/// Whether a name in a directory belongs to a database beside it: both are files.
pub(crate) fn is_sidecar(
    name: &[u8],
    siblings: &Names,
    directory: &OwnedFd,
    is_database: impl Fn(&[u8]) -> bool,
) -> bool {
    let is_file = |name: &[u8]| match siblings.find(name) {
        Some(Kind::File) => true,
        Some(Kind::Unknown) => rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|s| attributes::file_type(&s) == FileType::RegularFile),
        _ => false,
    };
    owner_of(name).is_some_and(|owner| is_database(owner) && is_file(owner) && is_file(name))
}

/// Files beside a database that SQLite would take for parts of it, with what `stat` says of them.
pub(crate) fn files_beside(directory: &OwnedFd, name: &[u8]) -> Vec<(Vec<u8>, Stat)> {
    beside(directory, name, &SIDECARS, |stat| attributes::file_type(stat) == FileType::RegularFile)
}

fn beside(
    directory: &OwnedFd,
    name: &[u8],
    suffixes: &[&str],
    counts: impl Fn(&Stat) -> bool,
) -> Vec<(Vec<u8>, Stat)> {
    let look = |suffix: &&str| {
        let sidecar = [name, suffix.as_bytes()].concat();
        let stat = rustix::fs::statat(directory, &sidecar, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        counts(&stat).then_some((sidecar, stat))
    };
    suffixes.iter().filter_map(look).collect()
}

/// Names of the sidecars that hold content beside a database, with what `stat` says of them.
pub(crate) fn content_beside(directory: &OwnedFd, name: &[u8]) -> Vec<(Vec<u8>, Stat)> {
    beside(directory, name, &CONTENT, |stat| attributes::size(stat) > 0)
}

/// Files that the walk leaves out beside what turns out to be no database, and that are not empty.
pub(crate) fn left_out_beside(directory: &OwnedFd, name: &[u8]) -> Vec<(Vec<u8>, Stat)> {
    let mut files = files_beside(directory, name);
    files.retain(|(_, stat)| attributes::size(stat) > 0);
    files
}

/// An error if a database is empty and what holds content of it lies beside it. Nobody is asked to read
/// what is empty, so that the walk, which leaves out what lies beside, would lose it without a word.
pub(crate) fn refuse_emptied(directory: &OwnedFd, path: &EntryPath) -> Result<()> {
    let beside = left_out_beside(directory, path.file_name());
    let Some((sidecar, _)) = beside.first() else { return Ok(()) };
    Err(Error::new(
        Reason::Unsupported,
        format!(
            "the database is empty, but `{}` with content lies beside it and was left out as a part of it; \
             move it away, or change `databases` so that both are plain files",
            escape(sidecar)
        ),
    )
    .with("path", error::show(path.as_bytes())))
}

/// The `ctime` of a database, which must differ whenever its content may. New content goes to the
/// write-ahead log first and leaves the database file alone, so the log has to count too.
pub(crate) fn ctime(directory: &OwnedFd, name: &[u8], stat: &Stat) -> Timestamp {
    let own = attributes::ctime(stat);
    let beside = content_beside(directory, name);
    if beside.is_empty() {
        return own;
    }
    let mut hasher = blake3::Hasher::new_derive_key("snapkit files state of a database");
    hasher.update(&own.0.to_le_bytes());
    for (sidecar, stat) in &beside {
        hasher.update(&(sidecar.len() as u64).to_le_bytes());
        hasher.update(sidecar);
        hasher.update(&attributes::identity(stat).1.to_le_bytes());
        hasher.update(&attributes::size(stat).to_le_bytes());
        hasher.update(&attributes::mtime(stat).0.to_le_bytes());
        hasher.update(&attributes::ctime(stat).0.to_le_bytes());
    }
    let mut state = [0; 8];
    state.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    Timestamp(i64::from_le_bytes(state) & i64::MAX)
}
