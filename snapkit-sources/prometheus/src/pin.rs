//! A snapshot that the server has made in its data directory: hard links to its blocks, and a block of what it had in
//! memory. The server never removes it, so that what is linked there goes on to take space until we do.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use snapkit_core::error::IoContext as _;
use snapkit_core::{Error, Reason, Result};

/// Where the server makes its snapshots.
const SNAPSHOTS: &str = "snapshots";

/// Beside the blocks of a snapshot: that it is ours, locked while somebody uses it.
const OURS: &str = ".snapkit";

/// A snapshot of the server's, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    directory: PathBuf,
    _lock: File,
    is_there: bool,
}

impl Pin {
    /// Take over a snapshot of this name. `invalid-config` if it is not there.
    pub(crate) fn take(data_dir: &Path, name: &str) -> Result<Self> {
        let directory = data_dir.join(SNAPSHOTS).join(name);
        if !directory.is_dir() {
            let what = "the server has made a snapshot, and it is not below `data_dir`: is that the server's --storage.tsdb.path, on this machine? What it has made takes space there until somebody removes it";
            return Err(Error::new(Reason::InvalidConfig, what).with("path", directory.display()));
        }
        let marker = directory.join(OURS);
        let lock = File::create(&marker).and_then(|file| file.lock().map(|()| file));
        match lock {
            Ok(lock) => Ok(Self { directory, _lock: lock, is_there: true }),
            Err(e) => {
                let what = "the server's snapshot cannot be removed afterwards: this user must be able to write to it";
                let e = Error::io(what, e).with("path", directory.display());
                drop(fs::remove_dir_all(&directory));
                Err(e)
            }
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Give the space back.
    pub(crate) fn remove(mut self) -> Result<()> {
        self.is_there = false;
        fs::remove_dir_all(&self.directory)
            .doing(|| format!("cannot remove the server's snapshot {}", self.directory.display()))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.is_there {
            drop(fs::remove_dir_all(&self.directory));
        }
    }
}

/// Remove what runs have left behind that were killed.
pub(crate) fn remove_leftovers(data_dir: &Path) -> Result<()> {
    let snapshots = data_dir.join(SNAPSHOTS);
    let what = || format!("cannot read the directory {}", snapshots.display());
    let entries = match fs::read_dir(&snapshots) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.doing(what)?,
    };
    for entry in entries {
        let directory = entry.doing(what)?.path();
        let Ok(marker) = File::open(directory.join(OURS)) else { continue };
        match marker.try_lock() {
            Ok(()) => {
                tracing::info!(path = %directory.display(), "removing a snapshot that an earlier run has left");
                fs::remove_dir_all(&directory)
                    .doing(|| format!("cannot remove {}", directory.display()))?;
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => {
                let what = format!("cannot lock {}", directory.display());
                return Err(Error::io(what, e));
            }
        }
    }
    Ok(())
}
