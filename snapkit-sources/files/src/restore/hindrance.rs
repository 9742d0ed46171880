//! What must not be moved: directories in which something is mounted, which would go away with them, and
//! those that hold the place to which old states go.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::tree::escape;

/// What the kernel says is mounted where, as this process sees it.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Refuse a place that cannot be moved out of the way as a whole.
pub(super) fn refuse(place: &Path, recovery: Option<&Path>) -> Result<()> {
    // What is no directory, a link to one among that, holds nothing. What else is wrong with it is found out
    // by who looks for it.
    if !std::fs::symlink_metadata(place).is_ok_and(|m| m.is_dir()) {
        return Ok(());
    }
    let Ok(real) = std::fs::canonicalize(place) else { return Ok(()) };
    let holds = |inner: &PathBuf| inner.starts_with(&real);
    if recovery.and_then(|r| std::fs::canonicalize(r).ok()).as_ref().is_some_and(holds) {
        return Err(Error::invalid(
            "the place for old states lies in what is to be replaced; give another one with --state-dir, or \
             restore parts",
        )
        .with("path", show(place))
        .with("old_states", show(recovery.unwrap_or(place))));
    }
    match mounts()?.into_iter().find(|mount| *mount != real && holds(mount)) {
        None => Ok(()),
        Some(mount) => Err(mounted(place, &mount)),
    }
}

fn mounted(place: &Path, mount: &Path) -> Error {
    Error::new(
        Reason::AlreadyExists,
        "a file system is mounted in what is to be replaced, and would be moved away with it; unmount it, or \
         restore parts",
    )
    .with("path", show(place))
    .with("mount", show(mount))
}

fn show(path: &Path) -> String {
    escape(path.as_os_str().as_bytes())
}

/// Where something is mounted.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn mounts() -> Result<Vec<PathBuf>> {
    let lines = std::fs::read(MOUNTS)
        .map_err(|e| Error::io("cannot read what is mounted", e).with("path", MOUNTS))?;
    Ok(parse(&lines))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn mounts() -> Result<Vec<PathBuf>> {
    Ok(Vec::new())
}

/// The fifth word of each line, in which blanks and backslashes are octal.
fn parse(lines: &[u8]) -> Vec<PathBuf> {
    let path = |line: &[u8]| line.split(|b| *b == b' ').nth(4).map(unescape);
    lines.split(|b| *b == b'\n').filter_map(path).collect()
}

fn unescape(mut word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    while let Some((first, rest)) = word.split_first() {
        let octal = rest.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                word = &rest[3..];
            }
            None => {
                bytes.push(*first);
                word = rest;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let lines = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      40 22 0:35 / /srv/a\\040b\\134c rw - tmpfs tmpfs rw\n\nodd\n\
                      41 22 8:1 /f /x\\9y\\1 rw - ext4 /dev/sda1 rw";
        let expected = ["/", "/srv/a b\\c", "/x\\9y\\1"].map(PathBuf::from);
        assert_eq!(parse(lines), expected);
    }

    proptest::proptest! {
        #[test]
        fn anything_is_read(bytes: Vec<u8>) {
            assert!(parse(&bytes).iter().all(|path| path.as_os_str().len() <= bytes.len()));
        }
    }
}
