//! Private files of our own: scratch for a copy, staging beside a target.

use std::fmt::Write as _;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, RenameFlags};
use rustix::io::Errno;
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::{Error, Reason, Result};

use crate::error::shown;

/// A directory for one file, which only its owner may enter. Gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Make one where temporary files go.
    pub(crate) fn new(cx: &Context) -> Result<Self> {
        let dir = place().join(format!("snapkit-{}", token(cx)?));
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .doing(|| format!("cannot make a scratch directory: {}", shown(&dir)))?;
        Ok(Self(dir))
    }

    /// The file.
    pub(crate) fn file(&self) -> PathBuf {
        self.0.join("copy.db")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %shown(&self.0), error = %e, "a scratch directory was left behind");
        }
    }
}

/// Where temporary files go: `TMPDIR`, or `/tmp`.
pub(crate) fn place() -> PathBuf {
    std::env::temp_dir()
}

/// A file that is removed unless it is kept.
#[derive(Debug)]
pub(crate) struct Draft {
    path: PathBuf,
    kept: bool,
}

impl Draft {
    /// Make an empty file that only its owner may read. It must not exist.
    pub(crate) fn create(path: PathBuf) -> Result<(Self, File)> {
        let file = create_private(&path)?;
        Ok((Self { path, kept: false }, file))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Give it its name, which nothing may have, once its content is durable. It is still removed unless it is kept.
    pub(crate) fn publish(mut self, name: PathBuf) -> Result<Self> {
        let what = || format!("cannot keep what was written: {}", shown(&name));
        File::open(&self.path).and_then(|file| file.sync_all()).doing(what)?;
        rename_to_nothing(&self.path, &name).map_err(std::io::Error::from).doing(what)?;
        sync_directory(name.parent().unwrap_or(Path::new("/")))?;
        self.path = name;
        Ok(self)
    }

    /// It has become something else, or is to stay.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let path = crate::holders::beside(&self.path, suffix);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %shown(&path), error = %e, "a staging file was left behind");
                }
                _ => {}
            }
        }
    }
}

/// Rename a file, and replace nothing.
pub(crate) fn rename_to_nothing(from: &Path, to: &Path) -> Result<(), Errno> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can. A second name is as good; that the first one stays does no harm.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty())?;
            drop(std::fs::remove_file(from));
            Ok(())
        }
        renamed => renamed,
    }
}

/// A new file that only its owner may read and write.
pub(crate) fn create_private(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .doing(|| format!("cannot make a file: {}", shown(path)))
}

/// Text for a name that nobody else uses.
pub(crate) fn token(cx: &Context) -> Result<String> {
    let mut text = String::new();
    for byte in cx.random::<8>()? {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// An error unless so many bytes are free there.
pub(crate) fn require_space(place: &Path, bytes: u64, what: &str) -> Result<()> {
    let room = rustix::fs::statvfs(place)
        .map_err(std::io::Error::from)
        .doing(|| format!("cannot examine the file system: {}", shown(place)))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if free >= bytes {
        return Ok(());
    }
    Err(Error::new(Reason::NoSpace, format!("{what} needs {bytes} bytes, and {free} are free"))
        .with("path", shown(place)))
}

/// Make names in a directory durable.
pub(crate) fn sync_directory(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .doing(|| format!("cannot make a directory durable: {}", shown(dir)))
}
