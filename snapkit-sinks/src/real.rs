//! The disk of the operating system.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use snapkit_core::context::Timestamp;

use crate::disk::{Disk, DiskEntries, DiskEntry, DiskKind, DiskStat};

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// How a directory is opened that is only passed through: searching it must be enough.
#[cfg(any(target_os = "linux", target_os = "android"))]
const PASS: OFlags = OFlags::PATH;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const PASS: OFlags = OFlags::RDONLY;

/// A directory of the operating system, held open: every step starts at its handle, so that renaming
/// or replacing what leads there changes nothing.
#[derive(Debug)]
pub struct RealDisk {
    root: OwnedFd,
}

impl RealDisk {
    /// Open a directory. A symbolic link that is `path` itself is followed, as for any program.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: fs::openat(CWD, path, flags, Mode::empty())? })
    }

    /// The directory that holds `path`, and the last component of it.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(Handle<'_>, &'a OsStr)> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        Ok((self.enter(path.parent().unwrap_or(Path::new("")), PASS)?, name))
    }

    /// Open a directory, component by component and never through a symbolic link.
    fn enter(&self, path: &Path, last: OFlags) -> io::Result<Handle<'_>> {
        let common = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = Handle::Root(self.root.as_fd());
        let mut components = path.iter().peekable();
        if components.peek().is_none() && last != PASS {
            return Ok(Handle::Below(fs::openat(&self.root, ".", last | common, Mode::empty())?));
        }
        while let Some(name) = components.next() {
            let flags = if components.peek().is_some() { PASS } else { last };
            let next = fs::openat(&at, name, flags | common, Mode::empty());
            at = Handle::Below(next.map_err(|e| self.explain(e, &at, name))?);
        }
        Ok(at)
    }

    /// The kernel's answers for "a link is in the way" and "the whole directory was deleted" depend on
    /// the call; make them tell from a missing name.
    fn explain(&self, error: Errno, at: &Handle<'_>, name: &OsStr) -> io::Error {
        let is_link = |s: fs::Stat| FileType::from_raw_mode(s.st_mode) == FileType::Symlink;
        let error = match error {
            Errno::NOTDIR | Errno::LOOP
                if fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(is_link) =>
            {
                Errno::LOOP
            }
            Errno::NOENT if self.is_gone() => Errno::STALE,
            other => other,
        };
        error.into()
    }

    fn is_gone(&self) -> bool {
        fs::fstat(&self.root).is_ok_and(|s| s.st_nlink == 0)
    }

    /// The umask, or a file system that keeps no modes, may have given other bits than were asked for.
    fn ensure_mode(fd: impl AsFd, wanted: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(fs::fstat(&fd)?.st_mode);
        if mode & (Mode::RWXU | Mode::RWXG | Mode::RWXO) == Mode::from_raw_mode(wanted) {
            return Ok(());
        }
        match fs::fchmod(&fd, Mode::from_raw_mode(wanted)) {
            Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }
}

enum Handle<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl AsFd for Handle<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Below(fd) => fd.as_fd(),
        }
    }
}

fn kind(file_type: FileType) -> DiskKind {
    match file_type {
        FileType::RegularFile => DiskKind::File,
        FileType::Directory => DiskKind::Directory,
        FileType::Symlink => DiskKind::Symlink,
        _ => DiskKind::Other,
    }
}

fn disk_stat(stat: &fs::Stat) -> DiskStat {
    // The types of these fields differ between systems.
    #[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions)]
    let modified = i64::try_from(
        i128::from(stat.st_mtime) * 1_000_000_000 + i128::try_from(stat.st_mtime_nsec).unwrap_or(0),
    );
    DiskStat {
        kind: kind(FileType::from_raw_mode(stat.st_mode)),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: Timestamp(modified.unwrap_or(0)),
    }
}

/// Rename without replacing, for file systems that cannot: a second name fails if it is taken.
fn publish_by_link(dir: &Handle<'_>, from: &OsStr, to: &OsStr) -> io::Result<()> {
    match fs::linkat(dir, from, dir, to, AtFlags::empty()) {
        Ok(()) => {}
        // NFS repeats a request whose answer was lost: the second name may be our own doing.
        Err(Errno::EXIST)
            if fs::statat(dir, from, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|s| s.st_nlink == 2) => {}
        Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::MLINK) => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this file system can neither rename without replacing nor make hard links",
            ));
        }
        Err(e) => return Err(e.into()),
    }
    // The object is there; a temporary name that stays is removed when it is a day old.
    let _ = fs::unlinkat(dir, from, AtFlags::empty());
    Ok(())
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn publish_new(dir: &Handle<'_>, from: &OsStr, to: &OsStr) -> io::Result<()> {
    match fs::renameat_with(dir, from, dir, to, fs::RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => publish_by_link(dir, from, to),
        other => Ok(other?),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn publish_new(dir: &Handle<'_>, from: &OsStr, to: &OsStr) -> io::Result<()> {
    publish_by_link(dir, from, to)
}

impl Disk for RealDisk {
    type File = File;

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let mode = Mode::from_raw_mode(DIRECTORY_MODE);
        fs::mkdirat(&dir, name, mode).map_err(|e| self.explain(e, &dir, name))?;
        // Whoever removes empty directories may have been here already.
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        match fs::openat(&dir, name, flags, Mode::empty()) {
            Ok(made) => Self::ensure_mode(made, DIRECTORY_MODE),
            // A umask that takes the owner's rights: a handle cannot be had, the name must do.
            Err(Errno::ACCESS) => Ok(fs::chmodat(&dir, name, mode, AtFlags::empty())?),
            Err(e) => Err(self.explain(e, &dir, name)),
        }
    }

    fn create_file(&self, path: &Path, data: &[u8]) -> io::Result<File> {
        let (dir, name) = self.parent(path)?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(&dir, name, flags, Mode::from_raw_mode(FILE_MODE))
            .map_err(|e| self.explain(e, &dir, name))?;
        Self::ensure_mode(&file, FILE_MODE)?;
        let file = File::from(file);
        file.write_all_at(data, 0)?;
        Ok(file)
    }

    fn fsync_file(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn fsync_dir(&self, path: &Path) -> io::Result<()> {
        match fs::fsync(self.enter(path, OFlags::RDONLY)?) {
            // Some network and user-space file systems have no such thing for directories.
            Err(Errno::INVAL | Errno::NOTSUP | Errno::BADF) => Ok(()),
            other => Ok(other?),
        }
    }

    fn publish(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        if from.parent() != to.parent() {
            return Err(Errno::XDEV.into());
        }
        let (dir, to) = self.parent(to)?;
        let from = from.file_name().ok_or(Errno::INVAL)?;
        if replace { Ok(fs::renameat(&dir, from, &dir, to)?) } else { publish_new(&dir, from, to) }
    }

    fn open(&self, path: &Path) -> io::Result<(File, DiskStat)> {
        let (dir, name) = self.parent(path)?;
        // Opening a pipe must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = fs::openat(&dir, name, flags, Mode::empty())
            .map_err(|e| self.explain(e, &dir, name))?;
        let stat = disk_stat(&fs::fstat(&file)?);
        Ok((File::from(file), stat))
    }

    fn read(&self, file: &File, range: Range<u64>) -> io::Result<Vec<u8>> {
        let len = range.end.saturating_sub(range.start);
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| Errno::OVERFLOW)?];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    fn stat(&self, path: &Path) -> io::Result<DiskStat> {
        if path.as_os_str().is_empty() {
            return Ok(disk_stat(&fs::fstat(&self.root)?));
        }
        let (dir, name) = self.parent(path)?;
        let stat = fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.explain(e, &dir, name))?;
        Ok(disk_stat(&stat))
    }

    fn list(&self, path: &Path) -> io::Result<DiskEntries> {
        // A deleted directory lists as empty.
        if path.as_os_str().is_empty() && self.is_gone() {
            return Err(Errno::STALE.into());
        }
        let handle = match self.enter(path, OFlags::RDONLY)? {
            Handle::Below(fd) => fd,
            Handle::Root(_) => return Err(Errno::INVAL.into()),
        };
        Ok(Box::new(Entries { dir: fs::Dir::new(handle)? }))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        fs::unlinkat(&dir, name, AtFlags::empty()).map_err(|e| self.explain(e, &dir, name))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        fs::unlinkat(&dir, name, AtFlags::REMOVEDIR).map_err(|e| self.explain(e, &dir, name))
    }
}

struct Entries {
    dir: fs::Dir,
}

impl Entries {
    fn entry(&self, name: &CStr, file_type: FileType) -> io::Result<Option<DiskEntry>> {
        let kind = if file_type == FileType::Unknown {
            match fs::statat(self.dir.fd()?, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => disk_stat(&stat).kind,
                Err(Errno::NOENT) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        } else {
            kind(file_type)
        };
        let name: OsString = OsStr::from_bytes(name.to_bytes()).to_owned();
        Ok(Some(DiskEntry { name, kind }))
    }
}

impl Iterator for Entries {
    type Item = io::Result<DiskEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.dir.read()? {
                Ok(entry) => entry,
                Err(e) => return Some(Err(e.into())),
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if let Some(item) = self.entry(name, entry.file_type()).transpose() {
                return Some(item);
            }
        }
    }
}

/// The deepest part of a path that exists and is a directory, and what is missing below it.
pub(crate) fn existing_part(path: &Path) -> (PathBuf, PathBuf) {
    let mut missing = Vec::new();
    let mut at = path;
    while !at.is_dir() {
        let (Some(name), Some(parent)) = (at.file_name(), at.parent()) else { break };
        missing.push(name);
        at = parent;
    }
    (at.to_owned(), missing.iter().rev().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishing_by_link_takes_no_name_that_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        let root = Handle::Root(disk.root.as_fd());
        let names = || {
            let mut names: Vec<_> =
                disk.list(Path::new("")).unwrap().map(|e| e.unwrap().name).collect();
            names.sort();
            names
        };
        disk.create_file(Path::new("one"), b"1").unwrap();
        disk.create_file(Path::new("two"), b"2").unwrap();
        publish_by_link(&root, OsStr::new("one"), OsStr::new("object")).unwrap();
        assert_eq!(names(), ["object", "two"]);
        let taken = publish_by_link(&root, OsStr::new("two"), OsStr::new("object"));
        assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(names(), ["object", "two"]);
        assert_eq!(std::fs::read(dir.path().join("object")).unwrap(), b"1");

        // The answer to a link that was made got lost, and it is made again.
        std::fs::hard_link(dir.path().join("two"), dir.path().join("again")).unwrap();
        publish_by_link(&root, OsStr::new("two"), OsStr::new("again")).unwrap();
        assert_eq!(names(), ["again", "object"]);
    }
}
