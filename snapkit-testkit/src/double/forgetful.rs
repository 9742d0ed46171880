//! A disk in memory that forgets what was not flushed, as strictly as file systems are allowed to.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use snapkit_core::context::Timestamp;
use snapkit_sinks::{Disk, DiskEntries, DiskEntry, DiskKind, DiskStat};

use crate::random::Seeded;

/// A disk whose power can fail.
///
/// The content of a file is volatile until [`Disk::fsync_file`], and every creation, renaming and
/// removal of a name until [`Disk::fsync_dir`] of the directory that it is in; that a file was
/// flushed says nothing of its name. [`ForgetfulDisk::crash`] drops what is volatile, or a part of
/// it that a seed chooses: un-flushed changes of names survive independently of each other, in any
/// selection (a renaming as one), and un-flushed content is whole, empty, cut or partly zero.
///
/// Clones are handles of the same disk; [`ForgetfulDisk::fork`] is a copy.
#[derive(Clone, Debug)]
pub struct ForgetfulDisk(Arc<Mutex<State>>);

#[derive(Clone, Debug)]
struct State {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    now: Timestamp,
    operations: u64,
    dies_at: Option<u64>,
    capacity: Option<u64>,
    /// Handles of before a crash are of no use after it.
    epoch: u64,
}

#[derive(Clone, Debug)]
enum Node {
    File { content: Bytes, durable: Option<Bytes>, modified: Timestamp },
    Directory { names: Names, durable: Names, pending: Vec<Change> },
}

type Names = BTreeMap<OsString, u64>;

/// What one operation did to the names of a directory: all of it survives, or nothing.
type Change = Vec<(OsString, Option<u64>)>;

const ROOT: u64 = 0;

/// An open file of a [`ForgetfulDisk`].
#[derive(Debug)]
pub struct ForgetfulFile {
    node: u64,
    epoch: u64,
}

impl Default for ForgetfulDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl ForgetfulDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            nodes: BTreeMap::from([(ROOT, Node::directory())]),
            next: ROOT + 1,
            now: Timestamp(0),
            operations: 0,
            dies_at: None,
            capacity: None,
            epoch: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A disk of its own with the same state, volatile parts included: to try several crashes of one
    /// history.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.state().clone())))
    }

    /// How many operations there were since the beginning, the last crash or the last
    /// [`ForgetfulDisk::revive`], failed ones included.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Let the `k`-th operation, counted from 1 as by [`ForgetfulDisk::operations`], and all later ones
    /// fail without effect, until the next [`ForgetfulDisk::crash`] or [`ForgetfulDisk::revive`].
    pub fn die_at(&self, k: u64) {
        self.state().dies_at = Some(k);
    }

    /// Let operations succeed again, with everything volatile still there: a process died and the
    /// machine did not. Operations are counted anew.
    pub fn revive(&self) {
        let mut state = self.state();
        state.dies_at = None;
        state.operations = 0;
    }

    /// Set the clock that times of modification are taken from.
    pub fn set_now(&self, now: Timestamp) {
        self.state().now = now;
    }

    /// Hold so many bytes of content at most; a file that does not fit is left incomplete.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = Some(bytes);
    }

    /// Lose power and come back. What was durable is as it was; of the rest the seed chooses.
    /// Seed 0 loses all that is volatile, seed 1 keeps it all.
    pub fn crash(&self, seed: u64) {
        self.state().crash(seed);
    }

    /// All files with their content, hidden ones too, as a program would see them now.
    #[must_use]
    pub fn contents(&self) -> BTreeMap<PathBuf, Bytes> {
        let state = self.state();
        let mut found = BTreeMap::new();
        let mut open = vec![(PathBuf::new(), ROOT)];
        while let Some((path, node)) = open.pop() {
            match state.nodes.get(&node) {
                Some(Node::File { content, .. }) => drop(found.insert(path, content.clone())),
                Some(Node::Directory { names, .. }) => {
                    open.extend(names.iter().map(|(name, node)| (path.join(name), *node)));
                }
                None => {}
            }
        }
        found
    }
}

impl Node {
    fn directory() -> Self {
        Self::Directory { names: Names::new(), durable: Names::new(), pending: Vec::new() }
    }
}

fn error(kind: io::ErrorKind) -> io::Error {
    kind.into()
}

impl State {
    fn begin(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.dies_at {
            Some(k) if self.operations >= k => Err(io::Error::other("the disk is dead")),
            _ => Ok(()),
        }
    }

    fn names(&self, node: u64) -> io::Result<&Names> {
        match self.nodes.get(&node) {
            Some(Node::Directory { names, .. }) => Ok(names),
            _ => Err(error(io::ErrorKind::NotADirectory)),
        }
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        path.iter().try_fold(ROOT, |at, name| {
            self.names(at)?.get(name).copied().ok_or_else(|| error(io::ErrorKind::NotFound))
        })
    }

    fn parent<'a>(&self, path: &'a Path) -> io::Result<(u64, &'a OsStr)> {
        let name = path.file_name().ok_or_else(|| error(io::ErrorKind::InvalidInput))?;
        let parent = self.find(path.parent().unwrap_or(Path::new("")))?;
        self.names(parent)?;
        Ok((parent, name))
    }

    fn change(&mut self, directory: u64, change: Change) {
        if let Some(Node::Directory { names, pending, .. }) = self.nodes.get_mut(&directory) {
            apply(names, &change);
            pending.push(change);
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<u64> {
        let (parent, name) = self.parent(path)?;
        if self.names(parent)?.contains_key(name) {
            return Err(error(io::ErrorKind::AlreadyExists));
        }
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, node);
        self.change(parent, vec![(name.to_owned(), Some(id))]);
        Ok(id)
    }

    fn reachable(&self) -> BTreeSet<u64> {
        let mut seen = BTreeSet::from([ROOT]);
        let mut open = vec![ROOT];
        while let Some(node) = open.pop() {
            if let Some(Node::Directory { names, .. }) = self.nodes.get(&node) {
                open.extend(names.values().copied().filter(|n| seen.insert(*n)));
            }
        }
        seen
    }

    fn used(&self) -> u64 {
        let size = |node| match self.nodes.get(&node) {
            Some(Node::File { content, .. }) => content.len() as u64,
            _ => 0,
        };
        self.reachable().into_iter().map(size).sum()
    }

    fn crash(&mut self, seed: u64) {
        let mut random = Seeded::new(seed);
        let survival = match seed {
            0 => 0.0,
            1 => 1.0,
            _ => random.fraction(),
        };
        for node in self.nodes.values_mut() {
            match node {
                Node::Directory { names, durable, pending } => {
                    for change in pending.drain(..) {
                        if random.chance(survival) {
                            apply(durable, &change);
                        }
                    }
                    names.clone_from(durable);
                }
                Node::File { content, durable, .. } => {
                    let left = match durable.take() {
                        Some(flushed) => flushed,
                        None if random.chance(survival) => content.clone(),
                        None => tear(content, &mut random),
                    };
                    *content = left.clone();
                    *durable = Some(left);
                }
            }
        }
        let reachable = self.reachable();
        self.nodes.retain(|node, _| reachable.contains(node));
        self.operations = 0;
        self.dies_at = None;
        self.epoch += 1;
    }

    fn stat(&self, node: u64) -> io::Result<DiskStat> {
        match self.nodes.get(&node) {
            Some(Node::File { content, modified, .. }) => Ok(DiskStat {
                kind: DiskKind::File,
                size: content.len() as u64,
                modified: *modified,
            }),
            Some(Node::Directory { .. }) => {
                Ok(DiskStat { kind: DiskKind::Directory, size: 0, modified: self.now })
            }
            None => Err(error(io::ErrorKind::NotFound)),
        }
    }

    fn opened(&mut self, file: &ForgetfulFile) -> io::Result<(&mut Bytes, &mut Option<Bytes>)> {
        match self.nodes.get_mut(&file.node) {
            Some(Node::File { content, durable, .. }) if file.epoch == self.epoch => {
                Ok((content, durable))
            }
            _ => Err(io::Error::other("the handle is of before a crash, or of no file")),
        }
    }
}

fn apply(names: &mut Names, change: &Change) {
    for (name, node) in change {
        match node {
            Some(node) => drop(names.insert(name.clone(), *node)),
            None => drop(names.remove(name)),
        }
    }
}

/// What may be left of content that was not flushed.
fn tear(content: &Bytes, random: &mut Seeded) -> Bytes {
    match random.below(3) {
        0 => Bytes::new(),
        1 => content.slice(..random.index(content.len())),
        _ => {
            let mut torn = content.to_vec();
            let from = random.index(torn.len());
            let to = from + random.index(torn.len() - from) + 1;
            let to = to.min(torn.len());
            torn[from..to].fill(0);
            torn.into()
        }
    }
}

impl Disk for ForgetfulDisk {
    type File = ForgetfulFile;

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin()?;
        state.add(path, Node::directory()).map(drop)
    }

    fn create_file(&self, path: &Path, data: &[u8]) -> io::Result<ForgetfulFile> {
        let mut state = self.state();
        state.begin()?;
        let free = state.capacity.map(|capacity| capacity.saturating_sub(state.used()));
        let fits = free.and_then(|f| usize::try_from(f).ok()).unwrap_or(usize::MAX);
        let content = Bytes::copy_from_slice(&data[..data.len().min(fits)]);
        let modified = state.now;
        let node = state.add(path, Node::File { content, durable: None, modified })?;
        if fits < data.len() {
            return Err(error(io::ErrorKind::StorageFull));
        }
        Ok(ForgetfulFile { node, epoch: state.epoch })
    }

    fn fsync_file(&self, file: &ForgetfulFile) -> io::Result<()> {
        let mut state = self.state();
        state.begin()?;
        let (content, durable) = state.opened(file)?;
        *durable = Some(content.clone());
        Ok(())
    }

    fn fsync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin()?;
        let node = state.find(path)?;
        match state.nodes.get_mut(&node) {
            Some(Node::Directory { names, durable, pending }) => {
                durable.clone_from(names);
                pending.clear();
                Ok(())
            }
            _ => Err(error(io::ErrorKind::NotADirectory)),
        }
    }

    fn publish(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        let mut state = self.state();
        state.begin()?;
        let (directory, from) = state.parent(from)?;
        let (target, to) = state.parent(to)?;
        if directory != target {
            return Err(error(io::ErrorKind::CrossesDevices));
        }
        let names = state.names(directory)?;
        let node = *names.get(from).ok_or_else(|| error(io::ErrorKind::NotFound))?;
        if let Some(taken) = names.get(to) {
            if !replace {
                return Err(error(io::ErrorKind::AlreadyExists));
            }
            if matches!(state.nodes.get(taken), Some(Node::Directory { .. })) {
                return Err(error(io::ErrorKind::IsADirectory));
            }
        }
        state.change(directory, vec![(from.to_owned(), None), (to.to_owned(), Some(node))]);
        Ok(())
    }

    fn open(&self, path: &Path) -> io::Result<(ForgetfulFile, DiskStat)> {
        let mut state = self.state();
        state.begin()?;
        let node = state.find(path)?;
        Ok((ForgetfulFile { node, epoch: state.epoch }, state.stat(node)?))
    }

    fn read(&self, file: &ForgetfulFile, range: Range<u64>) -> io::Result<Vec<u8>> {
        let mut state = self.state();
        state.begin()?;
        let (content, _) = state.opened(file)?;
        let bounds = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        bounds
            .and_then(|(start, end)| content.get(start..end))
            .map(<[u8]>::to_vec)
            .ok_or_else(|| error(io::ErrorKind::UnexpectedEof))
    }

    fn stat(&self, path: &Path) -> io::Result<DiskStat> {
        let mut state = self.state();
        state.begin()?;
        let node = state.find(path)?;
        state.stat(node)
    }

    fn list(&self, path: &Path) -> io::Result<DiskEntries> {
        let mut state = self.state();
        state.begin()?;
        let node = state.find(path)?;
        let entries: Vec<_> = state
            .names(node)?
            .iter()
            .map(|(name, node)| Ok(DiskEntry { name: name.clone(), kind: state.stat(*node)?.kind }))
            .collect();
        Ok(Box::new(entries.into_iter()))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin()?;
        let (directory, name) = state.parent(path)?;
        let node = state.names(directory)?.get(name).copied();
        match node.and_then(|n| state.nodes.get(&n)) {
            None => return Err(error(io::ErrorKind::NotFound)),
            Some(Node::Directory { .. }) => return Err(error(io::ErrorKind::IsADirectory)),
            Some(Node::File { .. }) => {}
        }
        state.change(directory, vec![(name.to_owned(), None)]);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin()?;
        let (directory, name) = state.parent(path)?;
        let node =
            *state.names(directory)?.get(name).ok_or_else(|| error(io::ErrorKind::NotFound))?;
        if !state.names(node)?.is_empty() {
            return Err(error(io::ErrorKind::DirectoryNotEmpty));
        }
        state.change(directory, vec![(name.to_owned(), None)]);
        Ok(())
    }
}

#[cfg(test)]
#[path = "forgetful_tests.rs"]
mod tests;
