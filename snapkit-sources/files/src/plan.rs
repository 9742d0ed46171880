//! What a walk is to do.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use snapkit_core::tree::EntryPath;

use crate::dirs::Dirs;
use crate::pattern::Filter;
use crate::roots::Roots;

/// What the walk does with files whose names are those of databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Databases {
    /// They are files like others.
    Plain,
    /// Somebody reads them; what belongs to them is left out.
    Routed,
    /// Nobody reads them; each is a problem.
    Refused,
}

/// What to walk.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) dirs: Dirs,
    pub(crate) roots: Roots,
    pub(crate) filter: Filter,
    pub(crate) one_file_system: bool,
    pub(crate) databases: Databases,
    /// Whether this is a system to be captured, not what was restored: what restores that were cut
    /// off left is passed over, and a root that has become a link is a problem.
    pub(crate) capturing: bool,
    /// Paths that are not there for this walk.
    pub(crate) hidden: HashSet<EntryPath>,
    /// Inodes that have several names. What stands at one of those names must still be that inode
    /// when it is read, since other names refer to it.
    linked: Mutex<HashSet<u64>>,
}

impl Plan {
    /// Everything at these roots, as it is.
    pub(crate) fn plain(dirs: Dirs, roots: Roots) -> Self {
        Self {
            dirs,
            roots,
            filter: Filter::default(),
            one_file_system: false,
            databases: Databases::Plain,
            capturing: false,
            hidden: HashSet::new(),
            linked: Mutex::default(),
        }
    }

    pub(crate) fn note_linked(&self, inode: u64) {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner).insert(inode);
    }

    pub(crate) fn is_linked(&self, inode: u64) -> bool {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner).contains(&inode)
    }
}
