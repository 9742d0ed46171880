//! Taking a tree in: entries in their order, contents several at a time.
//!
//! Directories are made when they come, since what is in them follows. Files and links do not wait
//! for each other, except hard links, which wait for all files before them. A directory gets its
//! attributes when nothing more comes for it and all that was under way is done.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use snapkit_core::artifact::MAX_PIECE;
use snapkit_core::context::{Context, Task};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::progress::Counter;
use snapkit_core::tree::{
    Content, EntryKind, EntryPath, SMALL_FILE, TreeEntry, TreeItem, TreeReader,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ledger::{Ledger, Slot};
use super::write::{LargeFile, Ready, Writer};
use crate::check::{self, Order, corrupt, length};

/// How many small things, and how many bytes of them, are made in one piece of work.
const GROUP_ITEMS: usize = 512;
const GROUP_BYTES: u64 = 4 << 20;

/// Bytes of paths of directories that one batch may lack: 4 MiB.
const MAX_INVENTED: usize = 4 << 20;

/// How many finished directories may wait for their attributes.
const WAITING: usize = 4096;

/// What a restore has learnt from its tree, for the time when it is moved into place.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Directories that lead to the roots.
    pub(super) ancestors: Vec<TreeEntry>,
    /// Roots that are directories: they get their attributes in their place.
    pub(super) roots: Vec<TreeEntry>,
    /// Which places have something to be put there, by their numbers.
    pub(super) places: HashSet<usize>,
    /// Directories below roots that only lead to what was asked for.
    pub(super) leading: HashSet<EntryPath>,
    /// How long the ledger is.
    pub(super) ledger: u64,
    /// Files that came.
    pub(super) files: u64,
}

/// One tree on its way in.
pub(super) struct Put<'a> {
    cx: &'a Context,
    writer: &'a Arc<Writer>,
    workers: &'a Arc<Semaphore>,
    taken: &'a mut Taken,
    partial: bool,
    order: Order,
    /// The directories that the tree is in, outermost first.
    open: Vec<Open>,
    /// Directories that nothing more comes for, deepest first.
    left: Vec<TreeEntry>,
    writing: FuturesUnordered<Task<()>>,
}

struct Open {
    entry: TreeEntry,
    /// Whether its attributes are to be set below the stage.
    closes: bool,
}

/// What a batch asks to be done.
#[derive(Default)]
struct Todo {
    dirs: Vec<EntryPath>,
    /// What must not be there yet, and whether it is a directory, which may.
    claims: Vec<(EntryPath, bool)>,
    ready: Vec<Ready>,
    small: Vec<(TreeEntry, Option<Slot>)>,
    large: Vec<(TreeEntry, Option<Slot>)>,
    links: Vec<TreeEntry>,
    ledger: Vec<u8>,
    /// Bytes of paths of directories that did not come.
    invented: usize,
}

impl<'a> Put<'a> {
    pub(super) fn new(
        cx: &'a Context,
        writer: &'a Arc<Writer>,
        workers: &'a Arc<Semaphore>,
        taken: &'a mut Taken,
        partial: bool,
    ) -> Self {
        Self {
            cx,
            writer,
            workers,
            taken,
            partial,
            order: Order::default(),
            open: Vec::new(),
            left: Vec::new(),
            writing: FuturesUnordered::new(),
        }
    }

    /// Take a whole tree.
    pub(super) async fn run(mut self, tree: &mut dyn TreeReader) -> Result<()> {
        while let Some(batch) = self.cx.run(tree.next_batch(self.cx)).await? {
            let mut todo = Todo::default();
            for item in batch {
                self.item(item, &mut todo)?;
            }
            self.carry_out(&*tree, todo).await?;
        }
        self.leave(None);
        self.finish_writing().await?;
        self.close_left().await?;
        let writer = Arc::clone(self.writer);
        self.cx.blocking(move || writer.layout.sync()).await
    }

    fn item(&mut self, item: TreeItem, todo: &mut Todo) -> Result<()> {
        let (entry, content) = match item {
            TreeItem::Entry(entry, content) => (entry, content),
            TreeItem::Problem(path, e) => {
                self.writer.told.problem(&path, &e);
                return Ok(());
            }
        };
        self.order.next(&entry.path)?;
        check::impossible(&entry)?;
        self.order.is(&entry);
        self.cx.progress().add(Counter::Entries, 1);
        let Some(place) = self.writer.layout.find(&entry.path) else {
            let directory = matches!(entry.kind, EntryKind::Directory);
            if !self.writer.layout.leads(&entry.path)
                && let Some(e) = self.writer.layout.refused(&entry.path)
            {
                return Err(e);
            }
            if !directory || !self.writer.layout.leads(&entry.path) {
                return Err(corrupt("an entry lies outside of the roots", &entry.path));
            }
            self.taken.ancestors.push(entry);
            return Ok(());
        };
        if self.partial && !self.writer.overwrite {
            todo.claims.push((entry.path.clone(), entry.kind == EntryKind::Directory));
        }
        self.taken.places.insert(place);
        self.leave(Some(&entry.path));
        self.make_parents(place, &entry.path, todo)?;
        match entry.kind {
            EntryKind::Directory => self.directory(place, entry, todo),
            _ if self.writer.layout.places[place].within
                && self.writer.layout.places[place].is_root(&entry.path) =>
            {
                Err(Error::new(
                    Reason::AlreadyExists,
                    "a directory that cannot be replaced stands where something else has to be",
                )
                .with("path", self.writer.layout.show(entry.path.as_bytes())))
            }
            EntryKind::File { .. } => self.file(entry, content, todo),
            EntryKind::HardLink { .. } => {
                todo.links.push(entry);
                Ok(())
            }
            _ => {
                todo.ready.push(Ready { entry, bytes: Bytes::new(), slot: None });
                Ok(())
            }
        }
    }

    /// Leave the directories that a path does not lie in.
    fn leave(&mut self, path: Option<&EntryPath>) {
        let outside = |open: &mut Open| !path.is_some_and(|p| p.starts_with(&open.entry.path));
        while let Some(open) = self.open.pop_if(outside) {
            if open.closes {
                self.left.push(open.entry);
            }
        }
    }

    /// Make the directories of a path that did not come in the tree.
    fn make_parents(&mut self, place: usize, path: &EntryPath, todo: &mut Todo) -> Result<()> {
        let place = &self.writer.layout.places[place];
        let mut missing = Vec::new();
        let mut above = path.parent();
        while let Some(dir) = above {
            let known = self.open.last().is_some_and(|open| open.entry.path == dir);
            if known || place.is_root(path) || !place.holds(&dir) {
                break;
            }
            above = dir.parent();
            // Each is a path of its own: what a damaged tree lacks is little, and more wants our memory.
            todo.invented += dir.as_bytes().len();
            if todo.invented > MAX_INVENTED {
                return Err(corrupt("too many directories that lead there did not come", path));
            }
            missing.push(dir);
        }
        for path in missing.into_iter().rev() {
            if !self.partial {
                let e = corrupt("the directory did not come; it is made for its owner only", &path);
                self.writer.told.problem(&path, &e);
            }
            todo.dirs.push(path.clone());
            self.taken.leading.insert(path.clone());
            let entry = TreeEntry::new(path, EntryKind::Directory);
            self.open.push(Open { entry, closes: false });
        }
        Ok(())
    }

    fn directory(&mut self, place: usize, entry: TreeEntry, todo: &mut Todo) -> Result<()> {
        let is_root = self.writer.layout.places[place].is_root(&entry.path);
        todo.dirs.push(entry.path.clone());
        if entry.ancestor {
            self.taken.leading.insert(entry.path.clone());
        }
        if is_root {
            self.taken.roots.push(entry.clone());
        }
        self.open.push(Open { entry, closes: !is_root });
        Ok(())
    }

    fn file(&mut self, entry: TreeEntry, content: Content, todo: &mut Todo) -> Result<()> {
        self.taken.files += 1;
        let slot = self
            .writer
            .ledger
            .as_ref()
            .map(|_| Ledger::note(&mut todo.ledger, self.taken.ledger, &entry.path));
        let expected = entry.kind.content_len();
        match content {
            Content::Inline(bytes) => {
                length(&entry, bytes.len() as u64)?;
                todo.ready.push(Ready { entry, bytes, slot });
            }
            Content::None | Content::Verified if expected > 0 => {
                return Err(corrupt("a file comes without content", &entry.path));
            }
            Content::None | Content::Verified => {
                todo.ready.push(Ready { entry, bytes: Bytes::new(), slot });
            }
            Content::Deferred if expected <= SMALL_FILE => todo.small.push((entry, slot)),
            Content::Deferred => todo.large.push((entry, slot)),
        }
        Ok(())
    }

    async fn carry_out(&mut self, tree: &dyn TreeReader, todo: Todo) -> Result<()> {
        let Todo { dirs, claims, ready, small, large, links, ledger, .. } = todo;
        let start = self.taken.ledger;
        self.taken.ledger += ledger.len() as u64;
        if !dirs.is_empty() || !claims.is_empty() || !ledger.is_empty() {
            let writer = Arc::clone(self.writer);
            let make = move || {
                writer.refuse_occupied(&claims)?;
                if let Some(kept) = &writer.ledger {
                    kept.append(start, &ledger)?;
                }
                writer.make_dirs(&dirs)
            };
            self.cx.blocking(make).await?;
        }
        for group in groups(ready, |r| r.bytes.len() as u64) {
            let permit = permit(self.workers).await?;
            self.writing.push(write_group(self.cx, self.writer, group, permit));
        }
        let mut arriving: FuturesUnordered<BoxFuture<'_, Result<Option<Task<()>>>>> =
            FuturesUnordered::new();
        for (entry, slot) in large {
            let arrive = Arrive { cx: self.cx, writer: self.writer, workers: self.workers, tree };
            arriving.push(async move { arrive.large(entry, slot).await.map(|()| None) }.boxed());
        }
        for group in groups(small, |(e, _)| e.kind.content_len()) {
            let arrive = Arrive { cx: self.cx, writer: self.writer, workers: self.workers, tree };
            arriving.push(arrive.small(group).boxed());
        }
        while let Some(arrived) = arriving.next().await {
            self.writing.extend(arrived?);
        }
        // Notice early what failed, without waiting for what goes on.
        while let Some(Some(written)) = self.writing.next().now_or_never() {
            written?;
        }
        if !links.is_empty() {
            self.finish_writing().await?;
            let writer = Arc::clone(self.writer);
            self.cx.blocking(move || writer.link_all(&links)).await?;
        }
        if self.left.len() >= WAITING {
            self.finish_writing().await?;
            self.close_left().await?;
        }
        Ok(())
    }

    async fn finish_writing(&mut self) -> Result<()> {
        while let Some(written) = self.writing.next().await {
            written?;
        }
        Ok(())
    }

    async fn close_left(&mut self) -> Result<()> {
        let (writer, left) = (Arc::clone(self.writer), std::mem::take(&mut self.left));
        self.cx.blocking(move || writer.close_dirs(&left)).await
    }
}

/// Cut a list into groups that are one piece of work each.
fn groups<T>(items: Vec<T>, bytes: impl Fn(&T) -> u64) -> Vec<Vec<T>> {
    let mut groups = Vec::new();
    let mut group = Vec::new();
    let mut size = 0;
    for item in items {
        size += bytes(&item);
        group.push(item);
        if group.len() >= GROUP_ITEMS || size >= GROUP_BYTES {
            groups.push(std::mem::take(&mut group));
            size = 0;
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

async fn permit(workers: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
    let permit = Arc::clone(workers).acquire_owned().await;
    permit.map_err(|_| Error::internal("the writers of a restore are gone"))
}

/// Start to make a group of small things. The permit is held until the work has really ended, also
/// when nobody waits for it any more.
fn write_group(
    cx: &Context,
    writer: &Arc<Writer>,
    group: Vec<Ready>,
    permit: OwnedSemaphorePermit,
) -> Task<()> {
    let (task_cx, writer) = (cx.clone(), Arc::clone(writer));
    cx.spawn(async move {
        let work_cx = task_cx.clone();
        let work = move || {
            let bytes: u64 = group.iter().map(|r| r.bytes.len() as u64).sum();
            writer.write_group(&work_cx, group)?;
            work_cx.progress().add(Counter::Bytes, bytes);
            drop(permit);
            Ok(())
        };
        task_cx.blocking(work).await
    })
}

/// Fetches content that did not come with its entry.
struct Arrive<'a> {
    cx: &'a Context,
    writer: &'a Arc<Writer>,
    workers: &'a Arc<Semaphore>,
    tree: &'a dyn TreeReader,
}

impl Arrive<'_> {
    async fn small(self, group: Vec<(TreeEntry, Option<Slot>)>) -> Result<Option<Task<()>>> {
        let held = permit(self.workers).await?;
        let (entries, slots): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let load = async { Ok(self.tree.load(self.cx, &entries).await) };
        let loaded = self.cx.run(load).await?;
        let mut ready = Vec::with_capacity(loaded.len());
        let mut grown = Vec::new();
        for ((entry, slot), answer) in entries.into_iter().zip(slots).zip(loaded) {
            match answer {
                Ok(file) => {
                    same_file(&entry, &file.entry)?;
                    length(&file.entry, file.bytes.len() as u64)?;
                    ready.push(Ready { entry: file.entry, bytes: file.bytes, slot });
                }
                Err(e) if e.reason() == Reason::LimitExceeded => grown.push((entry, slot)),
                Err(e) => return Err(e),
            }
        }
        let task = write_group(self.cx, self.writer, ready, held);
        for (entry, slot) in grown {
            self.large(entry, slot).await?;
        }
        Ok(Some(task))
    }

    async fn large(&self, entry: TreeEntry, slot: Option<Slot>) -> Result<()> {
        let held = Arc::new(permit(self.workers).await?);
        let mut opened = self.cx.run(self.tree.open(self.cx, &entry)).await?;
        same_file(&entry, &opened.entry)?;
        let path = entry.path;
        let (writer, permit) = (Arc::clone(self.writer), Arc::clone(&held));
        let entry = opened.entry;
        let begin = move || {
            let file = writer.begin_large(entry, slot);
            drop(permit);
            file
        };
        let Some(file) = self.cx.blocking(begin).await? else { return Ok(()) };
        let mut file = Some(file);
        let mut writing: Option<Task<LargeFile>> = None;
        let result = async {
            loop {
                let next = async { opened.body.next().await.transpose() };
                let piece = self.cx.run(next).await?;
                if let Some(task) = writing.take() {
                    file = Some(task.await?);
                }
                let Some(mut current) = file.take() else {
                    return Err(Error::internal("a file that is written was lost"));
                };
                let Some(piece) = piece else {
                    let writer = Arc::clone(self.writer);
                    return self.cx.blocking(move || current.close(&writer)).await;
                };
                if piece.len() > MAX_PIECE {
                    return Err(Error::internal("a piece of content is larger than it may be")
                        .with("path", current.path()));
                }
                let (cx, permit) = (self.cx.clone(), Arc::clone(&held));
                writing = Some(self.cx.spawn(async move {
                    let work_cx = cx.clone();
                    let write = move || {
                        work_cx.check()?;
                        current.write(&piece)?;
                        work_cx.progress().add(Counter::Bytes, piece.len() as u64);
                        drop(permit);
                        Ok(current)
                    };
                    cx.blocking(write).await
                }));
            }
        }
        .await;
        if result.is_err() {
            let writer = Arc::clone(self.writer);
            let discard = move || {
                writer.discard(&path);
                Ok(())
            };
            self.cx.blocking(discard).await?;
        }
        result
    }
}

/// An answer must be about the file that was asked for, and possible.
fn same_file(asked: &TreeEntry, given: &TreeEntry) -> Result<()> {
    if asked.path != given.path || !matches!(given.kind, EntryKind::File { .. }) {
        return Err(corrupt("the content of another file was given for", &asked.path));
    }
    check::impossible(given)
}
