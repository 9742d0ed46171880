//! Directories by handle: every step goes from an open directory to a name in it and follows no
//! symbolic link, so that nobody can lead a walk elsewhere by swapping a directory for a link.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, Result};

/// How many directories are kept open for the next file.
const RECENT: usize = 64;

/// Open a directory to go through it. Needs no right to list it.
pub(crate) fn enter(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let how = OFlags::PATH;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let how = OFlags::RDONLY;
    let flags = how | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Open a directory to list it, without leaving a trace in its access time where that is allowed.
pub(crate) fn list(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    quietly(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Open a file to read it, in the same way. Never waits for the other end of a pipe.
pub(crate) fn read(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    quietly(parent, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
}

fn quietly(parent: impl AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    match rustix::fs::openat(parent.as_fd(), name, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner of a file may read it without a trace.
        Err(Errno::PERM) => {}
        result => return result,
    }
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Open a directory by its path, following symbolic links: where a walk or a restore begins.
pub(crate) fn begin(path: &std::path::Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

/// A path's directory (empty at the top) and its last component.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// Directories below one that is open. Those used last stay open, at most [`RECENT`] of them.
#[derive(Debug)]
pub(crate) struct Dirs {
    base: Arc<OwnedFd>,
    recent: Mutex<Vec<Recent>>,
}

#[derive(Debug)]
struct Recent {
    path: Vec<u8>,
    dir: Arc<OwnedFd>,
}

impl Dirs {
    pub(crate) fn new(base: OwnedFd) -> Self {
        Self { base: Arc::new(base), recent: Mutex::new(Vec::new()) }
    }

    pub(crate) fn base(&self) -> &Arc<OwnedFd> {
        &self.base
    }

    /// Open the directory at a path; the empty path is the base. `ENOTDIR` where something else
    /// stands in the way, a symbolic link among them.
    pub(crate) fn open(&self, path: &[u8]) -> Result<Arc<OwnedFd>> {
        if path.is_empty() {
            return Ok(Arc::clone(&self.base));
        }
        let (mut dir, mut at) = self.nearest(path);
        while at < path.len() {
            let start = if at == 0 { 0 } else { at + 1 };
            let end =
                path[start..].iter().position(|b| *b == b'/').map_or(path.len(), |i| start + i);
            dir = Arc::new(enter(&*dir, &path[start..end]).map_err(|e| match e {
                Errno::LOOP => Errno::NOTDIR,
                e => e,
            })?);
            at = end;
            self.keep(&path[..end], &dir);
        }
        Ok(dir)
    }

    /// Forget what is open, after directories were moved.
    pub(crate) fn forget(&self) {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The open directory that is nearest above a path, and how much of the path it is.
    fn nearest(&self, path: &[u8]) -> (Arc<OwnedFd>, usize) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let above = |r: &Recent| {
            path.strip_prefix(r.path.as_slice())
                .is_some_and(|rest| rest.first().is_none_or(|b| *b == b'/'))
        };
        let found =
            (0..recent.len()).filter(|i| above(&recent[*i])).max_by_key(|i| recent[*i].path.len());
        match found {
            Some(i) => {
                recent[i..].rotate_left(1);
                recent.last().map_or_else(
                    || (Arc::clone(&self.base), 0),
                    |r| (Arc::clone(&r.dir), r.path.len()),
                )
            }
            None => (Arc::clone(&self.base), 0),
        }
    }

    fn keep(&self, path: &[u8], dir: &Arc<OwnedFd>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= RECENT {
            recent.remove(0);
        }
        recent.push(Recent { path: path.to_vec(), dir: Arc::clone(dir) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn links_are_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir_all(scratch.path().join("a/b/c")).unwrap();
        std::os::unix::fs::symlink("a", scratch.path().join("l")).unwrap();
        let dirs = Dirs::new(begin(scratch.path()).unwrap());
        dirs.open(b"a/b/c").unwrap();
        dirs.open(b"a/b").unwrap();
        assert_eq!(dirs.open(b"l").unwrap_err(), Errno::NOTDIR);
        assert_eq!(dirs.open(b"l/b").unwrap_err(), Errno::NOTDIR);
        assert_eq!(dirs.open(b"a/x").unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn few_stay_open() {
        let scratch = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(begin(scratch.path()).unwrap());
        for i in 0..3 * RECENT {
            fs::create_dir_all(scratch.path().join(format!("{i}/x"))).unwrap();
            dirs.open(format!("{i}/x").as_bytes()).unwrap();
        }
        assert_eq!(dirs.recent.lock().unwrap().len(), RECENT);
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
    }
}
