//! What the file system says about a file, as an entry of a tree.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use snapkit_core::context::Timestamp;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::tree::{EntryKind, EntryPath, TreeEntry};

use crate::error;

/// The largest list of names, and the largest value, of extended attributes on Linux.
const XATTR_MAX: usize = 64 << 10;

/// A file's device and inode.
pub(crate) type Identity = (u64, u64);

/// Seconds and nanoseconds as one number; times outside 1678 to 2262 are cut to that.
fn timestamp(seconds: i64, nanos: u64) -> Timestamp {
    let nanos = i64::try_from(nanos).unwrap_or(0);
    Timestamp(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

#[expect(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
pub(crate) fn identity(stat: &Stat) -> Identity {
    (stat.st_dev as u64, stat.st_ino as u64)
}

#[expect(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
pub(crate) fn links(stat: &Stat) -> u64 {
    stat.st_nlink as u64
}

pub(crate) fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

#[expect(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
pub(crate) fn mtime(stat: &Stat) -> Timestamp {
    timestamp(stat.st_mtime as i64, stat.st_mtime_nsec as u64)
}

#[expect(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
pub(crate) fn ctime(stat: &Stat) -> Timestamp {
    timestamp(stat.st_ctime as i64, stat.st_ctime_nsec as u64)
}

pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether fewer blocks are allocated than the size asks for: there may be holes.
pub(crate) fn may_have_holes(stat: &Stat) -> bool {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < size(stat)
}

/// Whether a file's content cannot have changed between two looks at it.
pub(crate) fn same_content(a: &Stat, b: &Stat) -> bool {
    identity(a) == identity(b) && size(a) == size(b) && mtime(a) == mtime(b) && ctime(a) == ctime(b)
}

/// An entry with everything that `stat` tells.
pub(crate) fn entry(path: EntryPath, kind: EntryKind, stat: &Stat) -> TreeEntry {
    let mut entry = TreeEntry::new(path, kind);
    refresh(&mut entry, stat);
    entry
}

/// Take over what `stat` tells, except for the kind.
pub(crate) fn refresh(entry: &mut TreeEntry, stat: &Stat) {
    entry.mode = stat.st_mode & 0o7777;
    entry.uid = stat.st_uid;
    entry.gid = stat.st_gid;
    entry.mtime = mtime(stat);
    entry.ctime = ctime(stat);
    entry.inode = identity(stat).1;
}

/// Names and values of extended attributes, sorted by name.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads extended attributes, with buffers that are used again.
#[derive(Debug)]
pub(crate) struct XattrReader {
    path: Vec<u8>,
    names: Vec<u8>,
    value: Vec<u8>,
}

/// Nearly all lists and values fit into this. The kernel clears a buffer of the size that it is
/// offered, which takes longer than all the rest.
const USUAL: usize = 512;

/// Let the kernel fill a buffer, which grows if it has to.
fn fill(
    buffer: &mut Vec<u8>,
    call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<usize> {
    if buffer.len() < USUAL {
        buffer.resize(USUAL, 0);
    }
    match call(&mut buffer[..USUAL]) {
        Err(Errno::RANGE) => {
            buffer.resize(XATTR_MAX, 0);
            call(buffer)
        }
        result => result,
    }
}

impl XattrReader {
    pub(crate) fn new() -> Self {
        Self { path: Vec::new(), names: Vec::new(), value: Vec::new() }
    }

    /// Those of a name in a directory. Nothing is opened, and no link followed.
    pub(crate) fn of_name(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        place: &[u8],
    ) -> Result<Xattrs> {
        let mut path = std::mem::take(&mut self.path);
        path.clear();
        write_through(&mut path, directory, name);
        path.push(0);
        let result = match CStr::from_bytes_with_nul(&path) {
            Ok(file) => self.gather(
                place,
                |list| rustix::fs::llistxattr(file, list),
                |name, value| rustix::fs::lgetxattr(file, name, value),
            ),
            Err(_) => Ok(Vec::new()),
        };
        self.path = path;
        result
    }

    /// Those of an open file.
    pub(crate) fn of_file(&mut self, file: impl AsFd, place: &[u8]) -> Result<Xattrs> {
        let file = file.as_fd();
        self.gather(
            place,
            |list| rustix::fs::flistxattr(file, list),
            |name, value| rustix::fs::fgetxattr(file, name, value),
        )
    }

    fn gather(
        &mut self,
        place: &[u8],
        list: impl Fn(&mut [u8]) -> rustix::io::Result<usize> + Copy,
        get: impl Fn(&CStr, &mut [u8]) -> rustix::io::Result<usize>,
    ) -> Result<Xattrs> {
        let names = match fill(&mut self.names, list) {
            Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Ok(len) => &self.names[..len],
            Err(Errno::RANGE | Errno::TOOBIG) => return Err(too_large(place)),
            Err(Errno::NOENT) => return Err(error::vanished(place)),
            Err(e) => return Err(error::at("list the extended attributes", place, e)),
        };
        let mut found = Vec::new();
        let mut total = 0;
        let mut without_value = Vec::new();
        for name in names.split_inclusive(|b| *b == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            let value = match fill(&mut self.value, |buffer| get(name, buffer)) {
                Ok(len) => &self.value[..len],
                // Some that the kernel lists are not for reading in this way.
                Err(Errno::NOTSUP) if !name.to_bytes().starts_with(b"user.") => continue,
                // It was removed meanwhile, if it is not listed any more.
                Err(e @ (Errno::NODATA | Errno::NOTSUP)) => {
                    without_value.push((name.to_bytes().to_vec(), e));
                    continue;
                }
                Err(Errno::RANGE | Errno::TOOBIG) => return Err(too_large(place)),
                Err(Errno::NOENT) => return Err(error::vanished(place)),
                Err(e) => return Err(error::at("read the extended attributes", place, e)),
            };
            total += name.to_bytes().len() + value.len();
            if total > TreeEntry::MAX_XATTRS {
                return Err(too_large(place));
            }
            found.push((name.to_bytes().to_vec(), value.to_vec()));
        }
        if !without_value.is_empty() {
            let len = fill(&mut self.names, list).unwrap_or(0);
            let mut listed = self.names[..len].split(|b| *b == 0);
            let still = |(name, _): &&(Vec<u8>, Errno)| listed.any(|n| n == name.as_slice());
            if let Some((_, e)) = without_value.iter().find(still) {
                return Err(error::at("read the extended attributes", place, *e));
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

fn too_large(place: &[u8]) -> Error {
    let limit = TreeEntry::MAX_XATTRS;
    Error::new(Reason::LimitExceeded, format!("extended attributes of more than {limit} bytes"))
        .with("path", error::show(place))
}

/// A path that leads to a name in an open directory, for the calls that take no directory handle.
pub(crate) fn through(directory: &OwnedFd, name: &[u8]) -> Vec<u8> {
    let mut path = Vec::new();
    write_through(&mut path, directory, name);
    path
}

fn write_through(path: &mut Vec<u8>, directory: &OwnedFd, name: &[u8]) {
    path.extend_from_slice(format!("{DESCRIPTORS}/{}/", directory.as_raw_fd()).as_bytes());
    path.extend_from_slice(name);
}

/// Where the open descriptors of this process appear as paths.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) const DESCRIPTORS: &str = "/proc/self/fd";
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) const DESCRIPTORS: &str = "/dev/fd";
