//! The names in a directory, sorted, in as little memory as they need.

use std::os::fd::AsFd;

use rustix::fs::{Dir, FileType};

use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};

use crate::error;

/// A sorted list of names. A million names of 20 bytes take about 36 MB.
#[derive(Debug, Default)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    list: Vec<Name>,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    start: u32,
    len: u16,
    kind: Kind,
}

/// What a directory says about a name, if it says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    Other,
    Unknown,
}

impl Names {
    /// The names in an open directory, but for `.` and `..`.
    pub(crate) fn read(cx: &Context, directory: impl AsFd, place: &[u8]) -> Result<Self> {
        let cannot = |e| error::at("list the directory", place, e);
        let mut names = Self::default();
        for (i, item) in Dir::read_from(directory).map_err(cannot)?.enumerate() {
            if i % 4096 == 4095 {
                cx.check()?;
            }
            let item = item.map_err(cannot)?;
            let name = item.file_name().to_bytes();
            if name != b"." && name != b".." {
                let kind = match item.file_type() {
                    FileType::Directory => Kind::Directory,
                    FileType::RegularFile => Kind::File,
                    FileType::Unknown => Kind::Unknown,
                    _ => Kind::Other,
                };
                names.push(name, kind).ok_or_else(|| {
                    Error::new(Reason::LimitExceeded, "the directory holds too many names")
                        .with("path", error::show(place))
                })?;
            }
        }
        let bytes = &names.bytes;
        names.list.sort_unstable_by(|a, b| slice(bytes, *a).cmp(slice(bytes, *b)));
        // A directory that changes while it is listed may give a name twice.
        names.list.dedup_by(|a, b| slice(bytes, *a) == slice(bytes, *b));
        Ok(names)
    }

    /// From sorted names.
    pub(crate) fn from_sorted(sorted: &[&[u8]]) -> Self {
        let mut names = Self::default();
        for name in sorted {
            let _ = names.push(name, Kind::Unknown);
        }
        names
    }

    /// Add names that it may hold already.
    pub(crate) fn add(&mut self, more: &[&[u8]]) {
        let missing: Vec<_> = more.iter().filter(|n| self.find(n).is_none()).collect();
        if missing.is_empty() {
            return;
        }
        for name in missing {
            let _ = self.push(name, Kind::Unknown);
        }
        let bytes = &self.bytes;
        self.list.sort_unstable_by(|a, b| slice(bytes, *a).cmp(slice(bytes, *b)));
    }

    fn push(&mut self, name: &[u8], kind: Kind) -> Option<()> {
        let start = u32::try_from(self.bytes.len()).ok()?;
        let len = u16::try_from(name.len()).ok()?;
        self.bytes.extend_from_slice(name);
        self.list.push(Name { start, len, kind });
        Some(())
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.list.iter().map(|n| slice(&self.bytes, *n))
    }

    pub(crate) fn get(&self, i: usize) -> Option<(&[u8], Kind)> {
        self.list.get(i).map(|n| (slice(&self.bytes, *n), n.kind))
    }

    pub(crate) fn find(&self, name: &[u8]) -> Option<Kind> {
        let found = self.list.binary_search_by(|n| slice(&self.bytes, *n).cmp(name)).ok()?;
        Some(self.list[found].kind)
    }

    pub(crate) fn longest(&self) -> usize {
        self.list.iter().map(|n| usize::from(n.len)).max().unwrap_or(0)
    }
}

fn slice(bytes: &[u8], name: Name) -> &[u8] {
    let start = name.start as usize;
    &bytes[start..start + usize::from(name.len)]
}

/// Whether a name is that of what a restore puts together before it moves it into place, and leaves
/// behind only if it is killed: `.snapkit-restore-HEX`, or `.NAME.snapkit-HEX` beside a database.
pub(crate) fn is_leftover(name: &[u8]) -> bool {
    let Some(cut) = name.iter().rposition(|b| *b == b'-') else { return false };
    let (head, tail) = (&name[..cut], &name[cut + 1..]);
    let token = tail.len() == 16 && tail.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    token
        && (head == b".snapkit-restore"
            || (head.starts_with(b".") && head.len() > 9 && head.ends_with(b".snapkit")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_known_by_their_names() {
        for name in [".snapkit-restore-0123456789abcdef", ".app.db.snapkit-0123456789abcdef"] {
            assert!(is_leftover(name.as_bytes()), "{name}");
        }
        // Old states are somebody's data, and other names are not ours.
        for name in [
            ".app.snapkit-old-0123456789abcdef",
            ".snapkit-restore-0123456789abcdeg",
            ".snapkit-restore-0123",
            "snapkit-restore-0123456789abcdef",
            ".snapkit-0123456789abcdef",
            ".snapkitignore",
            "",
        ] {
            assert!(!is_leftover(name.as_bytes()), "{name}");
        }
    }
}
