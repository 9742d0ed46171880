//! Setting what an entry says about a file: owner, then extended attributes, then mode, then times.
//!
//! The order matters. A change of owner clears setuid bits and file capabilities; extended
//! attributes hold the ACL, whose mask the mode sets again; and all of it changes times.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;
use snapkit_core::context::Timestamp;
use snapkit_core::error::Error;
use snapkit_core::tree::{EntryKind, TreeEntry, escape};

use super::told::{Right, Told};
use crate::attributes;

/// Whether rights may be given that let others act as somebody else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rights {
    pub(super) given: bool,
}

impl Rights {
    pub(super) fn new(trusted: bool) -> Self {
        Self { given: trusted || rustix::process::geteuid().is_root() }
    }
}

/// What was being set, for a problem.
fn cannot(told: &Told, entry: &TreeEntry, what: &str, errno: Errno) {
    if entry.ancestor {
        // It was not asked for, and often belongs to somebody else.
        told.lesser();
    } else {
        told.problem(&entry.path, &Error::io(format!("cannot set {what}"), errno.into()));
    }
}

fn ids(entry: &TreeEntry) -> (Option<Uid>, Option<Gid>) {
    // The highest number stands for "leave it".
    let uid = (entry.uid != u32::MAX).then(|| Uid::from_raw(entry.uid));
    let gid = (entry.gid != u32::MAX).then(|| Gid::from_raw(entry.gid));
    (uid, gid)
}

pub(super) fn times(mtime: Timestamp) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: mtime.0.div_euclid(1_000_000_000),
            tv_nsec: mtime.0.rem_euclid(1_000_000_000),
        },
    }
}

/// Set everything on an open file or directory.
pub(super) fn to_file(file: impl AsFd, entry: &TreeEntry, rights: Rights, told: &Told) {
    let file = file.as_fd();
    let (uid, gid) = ids(entry);
    let owned = owner(
        entry,
        told,
        || rustix::fs::fchown(file, uid, gid),
        || rustix::fs::fchown(file, None, gid),
    );
    set_xattrs(entry, rights, told, |name, value| {
        rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())
    });
    let mode = mode(entry, owned, rights, told);
    if let Err(e) = rustix::fs::fchmod(file, mode) {
        cannot(told, entry, "the mode", e);
    }
    if let Err(e) = rustix::fs::futimens(file, &times(entry.mtime)) {
        cannot(told, entry, "the time", e);
    }
}

/// Set everything on a name in a directory that holds only what this restore made: what cannot be
/// opened, such as a link, a pipe or a device.
pub(super) fn to_name(
    directory: &OwnedFd,
    name: &[u8],
    entry: &TreeEntry,
    rights: Rights,
    told: &Told,
) {
    let (uid, gid) = ids(entry);
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let owned = owner(
        entry,
        told,
        || rustix::fs::chownat(directory, name, uid, gid, nofollow),
        || rustix::fs::chownat(directory, name, None, gid, nofollow),
    );
    if !entry.xattrs.is_empty() {
        let path = attributes::through(directory, name);
        set_xattrs(entry, rights, told, |name, value| {
            rustix::fs::lsetxattr(path.as_slice(), name, value, XattrFlags::empty())
        });
    }
    if !matches!(entry.kind, EntryKind::Symlink { .. }) {
        let mode = mode(entry, owned, rights, told);
        if let Err(e) = rustix::fs::chmodat(directory, name, mode, AtFlags::empty()) {
            cannot(told, entry, "the mode", e);
        }
    }
    if let Err(e) = rustix::fs::utimensat(directory, name, &times(entry.mtime), nofollow) {
        cannot(told, entry, "the time", e);
    }
}

/// Give a file its owner, or at least its group. Whether it has both.
fn owner(
    entry: &TreeEntry,
    told: &Told,
    both: impl FnOnce() -> rustix::io::Result<()>,
    group: impl FnOnce() -> rustix::io::Result<()>,
) -> bool {
    let Err(e) = both() else { return true };
    let what = format!("the owner {}:{}", entry.uid, entry.gid);
    cannot(told, entry, &what, e);
    // The group may be one of ours.
    let _ = group();
    false
}

fn set_xattrs(
    entry: &TreeEntry,
    rights: Rights,
    told: &Told,
    set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>,
) {
    for (name, value) in &entry.xattrs {
        let special = name.starts_with(b"security.");
        if special {
            told.right(Right::Security, rights.given, &entry.path);
            if !rights.given {
                continue;
            }
        }
        if let Err(e) = set(name, value) {
            let what = format!("the extended attribute {}", escape(name));
            cannot(told, entry, &what, e);
        }
    }
}

/// The mode to set. On a file, setuid and setgid bits count only for the owner and group that they
/// were meant for, and only where such rights may be given.
fn mode(entry: &TreeEntry, owned: bool, rights: Rights, told: &Told) -> Mode {
    let mut bits = entry.mode & 0o7777;
    if bits & 0o6000 != 0 && !matches!(entry.kind, EntryKind::Directory) {
        let given = rights.given && owned;
        told.right(Right::Setuid, given, &entry.path);
        if !given {
            bits &= 0o1777;
        }
    }
    Mode::from_raw_mode(bits)
}
