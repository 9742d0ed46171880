//! What a walk is to do.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use snapkit_core::error::Error;
use snapkit_core::tree::EntryPath;

use crate::dirs::Dirs;
use crate::pattern::Filter;
use crate::roots::Roots;
use crate::walked::Walked;

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
    /// Directories that were replaced while they were walked.
    replaced: Mutex<Vec<(Vec<u8>, Error)>>,
    /// The directories that were walked.
    walked: Mutex<Walked>,
    /// Databases with several names, and how many those are: the first of them.
    linked_databases: Mutex<Vec<(EntryPath, u64)>>,
}

/// Things about the whole that are told one by one.
const TOLD: usize = 1000;

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
            linked_databases: Mutex::default(),
            replaced: Mutex::default(),
            walked: Mutex::default(),
        }
    }

    /// The directories that were walked, where that matters.
    pub(crate) fn walked(&self) -> MutexGuard<'_, Walked> {
        self.walked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note_linked(&self, inode: u64) {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner).insert(inode);
    }

    pub(crate) fn note_replaced(&self, path: Vec<u8>, error: Error) {
        let mut all = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < TOLD {
            all.push((path, error));
        }
    }

    pub(crate) fn replaced(&self) -> Vec<(Vec<u8>, Error)> {
        std::mem::take(&mut *self.replaced.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn note_linked_database(&self, path: EntryPath, names: u64) {
        let mut all = self.linked_databases.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < TOLD {
            all.push((path, names));
        }
    }

    pub(crate) fn linked_databases(&self) -> Vec<(EntryPath, u64)> {
        std::mem::take(&mut *self.linked_databases.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn is_linked(&self, inode: u64) -> bool {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner).contains(&inode)
    }
}
