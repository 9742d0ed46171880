//! How errors of the operating system become snapkit's, with the place where they happened.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use snapkit_core::error::{Error, Reason};
use snapkit_core::tree::escape;

use crate::dirs;

/// A path, of a tree or of the machine, as an absolute path, for people.
pub(crate) fn show(path: &[u8]) -> String {
    let path = escape(path);
    if path.starts_with('/') { path } else { format!("/{path}") }
}

/// An error of the operating system at a place of the tree.
pub(crate) fn at(what: &str, path: &[u8], errno: Errno) -> Error {
    Error::io(format!("cannot {what}"), errno.into()).with("path", show(path))
}

/// A file that kept changing while it was read.
pub(crate) fn changed(path: &[u8]) -> Error {
    Error::new(
        Reason::SourceChanged,
        "the file changed while it was read; run it again when it is quiet",
    )
    .with("path", show(path))
}

/// A file that was there when its directory was listed, and is gone.
pub(crate) fn vanished(path: &[u8]) -> Error {
    Error::new(Reason::NotFound, "the file vanished").with("path", show(path))
}

/// A path that was named, and at which nothing is.
pub(crate) fn missing(path: &[u8]) -> Error {
    Error::new(Reason::SourceMissing, "what is to be captured does not exist")
        .with("path", show(path))
}

/// A path that was named, and at which a symbolic link stands, in an open directory.
pub(crate) fn link(parent: &OwnedFd, path: &[u8]) -> Error {
    let target = rustix::fs::readlinkat(parent, dirs::split(path).1, Vec::new());
    let target = target.map_or_else(|_| "another place".to_owned(), |t| escape(t.as_bytes()));
    Error::new(
        Reason::InvalidConfig,
        format!(
            "{} is a symbolic link to {target}: name the directory or file itself, or the \
             directory that holds both",
            show(path)
        ),
    )
    .with("path", show(path))
}
