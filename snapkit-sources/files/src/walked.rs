//! The directories that a walk has gone through, for whoever reads what is in them a little later: a path may lead
//! elsewhere by then, and what is not there may only be away.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use snapkit_core::tree::EntryPath;

use crate::attributes::{self, Identity};

/// How many directories are held, so that their numbers are not given to others and it can be told whether they were
/// removed. What was listed is read soon: a batch of the walk has a thousand entries.
const HELD: usize = 128;

/// Of how many it is known which they were.
const KNOWN: usize = 1 << 16;

/// How many things that were not there are looked for again at the end.
const LOST: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Walked {
    held: VecDeque<(Vec<u8>, Arc<OwnedFd>)>,
    known: HashMap<u64, Identity>,
    order: VecDeque<u64>,
    hasher: RandomState,
    lost: Vec<(EntryPath, Option<u64>)>,
}

impl Walked {
    pub(crate) fn note(&mut self, path: &[u8], dir: &Arc<OwnedFd>, identity: Identity) {
        if self.held.len() >= HELD {
            self.held.pop_front();
        }
        self.held.push_back((path.to_vec(), Arc::clone(dir)));
        if self.order.len() >= KNOWN
            && let Some(first) = self.order.pop_front()
        {
            self.known.remove(&first);
        }
        let name = self.hasher.hash_one(path);
        if self.known.insert(name, identity).is_none() {
            self.order.push_back(name);
        }
    }

    /// Whether a directory is the one that was walked at this path; of one that nobody knows any more it is taken to be.
    pub(crate) fn is_same(&self, path: &[u8], identity: Identity) -> bool {
        self.known.get(&self.hasher.hash_one(path)).is_none_or(|known| *known == identity)
    }

    /// Whether the directory that was walked at this path has been removed, and not only moved. No, if nobody knows.
    pub(crate) fn is_removed(&self, path: &[u8]) -> bool {
        let held = self.held.iter().rev().find(|(held, _)| held == path);
        held.is_some_and(|(_, dir)| rustix::fs::fstat(&**dir).is_ok_and(|stat| stat.st_nlink == 0))
    }

    /// Something was not there: a directory that had been listed, or the file of this inode.
    pub(crate) fn note_lost(&mut self, path: EntryPath, inode: Option<u64>) {
        if self.lost.len() < LOST {
            self.lost.push((path, inode));
        }
    }

    pub(crate) fn lost(&mut self) -> Vec<(EntryPath, Option<u64>)> {
        std::mem::take(&mut self.lost)
    }
}

/// What a directory is, by its handle.
pub(crate) fn identity(dir: &OwnedFd) -> Option<Identity> {
    rustix::fs::fstat(dir).ok().map(|stat| attributes::identity(&stat))
}
