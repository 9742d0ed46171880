//! The file-system steps that a local sink takes, each one whose order matters for durability.

use std::ffi::OsString;
use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::path::Path;

use snapkit_core::context::Timestamp;

/// What is found under a name. Symbolic links are never followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else: a pipe, a socket, a device.
    Other,
}

/// What is known of a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskStat {
    /// What it is.
    pub kind: DiskKind,
    /// Its length in bytes.
    pub size: u64,
    /// When its content was last changed.
    pub modified: Timestamp,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskEntry {
    /// The name, without its directory.
    pub name: OsString,
    /// What it is.
    pub kind: DiskKind,
}

/// The names in a directory, on their way, in any order, without `.` and `..`.
pub type DiskEntries = Box<dyn Iterator<Item = io::Result<DiskEntry>> + Send>;

/// A directory on a file system, as a local sink uses it.
///
/// Paths are relative to that directory and have no `.` and `..`; the empty path is the directory
/// itself. No operation follows a symbolic link below it: one that meets one answers `ELOOP`.
/// What is missing is [`io::ErrorKind::NotFound`]. Nothing is durable before its `fsync`: the content
/// of a file before [`Disk::fsync_file`], the coming, going and renaming of a name before
/// [`Disk::fsync_dir`] of the directory that it is in.
pub trait Disk: Debug + Send + Sync + 'static {
    /// An open file.
    type File: Send;

    /// Create a directory that only its owner can enter (0700), whatever the umask.
    /// [`io::ErrorKind::AlreadyExists`] if anything has this name.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Create a file that only its owner can read and write (0600), whatever the umask, and write all
    /// of `data`. [`io::ErrorKind::AlreadyExists`] if anything has this name, and then nothing is
    /// changed; after any other error an incomplete file may be left.
    fn create_file(&self, path: &Path, data: &[u8]) -> io::Result<Self::File>;

    /// Make the content of a file durable.
    fn fsync_file(&self, file: &Self::File) -> io::Result<()>;

    /// Make the names in a directory durable.
    fn fsync_dir(&self, path: &Path) -> io::Result<()>;

    /// Give a file another name in the same directory, in one step. If the new name is taken, the
    /// file there is replaced if `replace` is set; otherwise it is
    /// [`io::ErrorKind::AlreadyExists`], and both stay as they are. Of several that publish under one
    /// name without `replace` exactly one succeeds.
    fn publish(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()>;

    /// Open a regular file for reading. Anything else is opened as little as possible, and its
    /// [`DiskStat::kind`] says what it is.
    fn open(&self, path: &Path) -> io::Result<(Self::File, DiskStat)>;

    /// Read a range of a file. [`io::ErrorKind::UnexpectedEof`] if it ends before.
    fn read(&self, file: &Self::File, range: Range<u64>) -> io::Result<Vec<u8>>;

    /// Look at a name.
    fn stat(&self, path: &Path) -> io::Result<DiskStat>;

    /// The names in a directory.
    fn list(&self, path: &Path) -> io::Result<DiskEntries>;

    /// Remove a file, or any other name that is no directory.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Remove a directory if it is empty.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
}
