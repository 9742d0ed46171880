//! The walk: from the roots down, in the order of entries, by directory handles.
//!
//! No regular file is opened, except the ignore files. The names of a directory are read and sorted
//! as a whole, so the memory needed is that of the largest directories on the way down. A directory
//! that cannot be listed is a problem in place of its entry.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::tree::{Content, EntryKind, EntryPath, TreeEntry, TreeItem};

use self::links::Links;
use crate::attributes::{self, Identity, XattrReader};
use crate::dirs;
use crate::names::{self, Kind, Names};
use crate::pattern::Ignore;
use crate::plan::{Databases, Plan};
use crate::{database, error, ignore};

mod leaf;
mod links;
mod unsized_files;

/// How many directories on the way down are open at once.
const OPEN: usize = 32;

/// How many items, and how many bytes of them, a batch holds at most.
const BATCH_ITEMS: usize = 1024;
const BATCH_BYTES: usize = 4 << 20;

/// A walk under way.
#[derive(Debug)]
pub(crate) struct Walker {
    plan: Arc<Plan>,
    stack: Vec<Frame>,
    /// The directory that the walk is in.
    path: Vec<u8>,
    /// First names of files that have others, which may still come.
    links: Links,
    xattrs: XattrReader,
    out: Vec<TreeItem>,
    bytes: usize,
}

/// A directory on the way down.
#[derive(Debug)]
struct Frame {
    dir: Option<Arc<OwnedFd>>,
    identity: Identity,
    /// Length of the path of its parent.
    parent_len: usize,
    names: Names,
    next: usize,
    /// Whether there are roots below it.
    leads: bool,
    rules: Inherited,
    /// An entry that is only given out if something in it is.
    held: Option<TreeEntry>,
    ignore_problem: Option<Error>,
    /// Whether a name in it was not there any more when it was looked at.
    lost_one: bool,
}

/// What holds for everything in a directory.
#[derive(Clone, Debug, Default)]
struct Inherited {
    /// Whether it lies in a root.
    inside: bool,
    /// Whether everything in it is looked at, not only what leads to roots.
    open: bool,
    /// Where paths below the root begin.
    root: usize,
    /// The root's device.
    device: u64,
    /// Whether a pattern asked for it, or none is needed.
    included: bool,
    ignore: Option<Arc<Ignore>>,
}

impl Walker {
    pub(crate) fn new(cx: &Context, plan: Arc<Plan>) -> Result<Self> {
        let base = Arc::clone(plan.dirs.base());
        let stat = rustix::fs::fstat(&*base).map_err(|e| error::at("examine", b"", e))?;
        let everything = plan.roots.everything();
        let names = if everything {
            let mut names = Names::read(cx, &*base, b"")?;
            names.add(&plan.roots.leads(b""));
            names
        } else {
            Names::from_sorted(&plan.roots.leads(b""))
        };
        let rules = Inherited {
            inside: everything,
            open: everything,
            root: 0,
            device: attributes::identity(&stat).0,
            included: !plan.filter.selects(),
            ignore: None,
        };
        let mut frame = Frame {
            dir: Some(base),
            identity: attributes::identity(&stat),
            parent_len: 0,
            names,
            next: 0,
            leads: true,
            rules,
            held: None,
            ignore_problem: None,
            lost_one: false,
        };
        if everything {
            read_ignore_file(&plan, &mut frame, b"");
        }
        Ok(Self {
            plan,
            stack: vec![frame],
            path: Vec::new(),
            links: Links::new(cx),
            xattrs: XattrReader::new(),
            out: Vec::new(),
            bytes: 0,
        })
    }

    /// The next items; none at the end.
    pub(crate) fn batch(&mut self, cx: &Context) -> Result<Vec<TreeItem>> {
        self.bytes = 0;
        let mut steps = 0u32;
        while self.out.len() < BATCH_ITEMS && self.bytes < BATCH_BYTES && !self.stack.is_empty() {
            steps += 1;
            if steps.is_multiple_of(4096) {
                cx.check()?;
            }
            self.step(cx)?;
        }
        Ok(std::mem::take(&mut self.out))
    }

    /// Look at the next name, or leave the directory.
    fn step(&mut self, cx: &Context) -> Result<()> {
        let Some(frame) = self.stack.last_mut() else { return Ok(()) };
        let Some((name, kind)) = frame.names.get(frame.next) else {
            self.confirm()?;
            let Some(frame) = self.stack.pop() else { return Ok(()) };
            self.path.truncate(frame.parent_len);
            return self.reopen();
        };
        frame.next += 1;
        let Some(dir) = frame.dir.clone() else { return Ok(()) };
        let joined = if self.path.is_empty() {
            name.to_vec()
        } else {
            [&self.path, &b"/"[..], name].concat()
        };
        // Names that do not fit are refused when the directory is entered.
        let path = EntryPath::new(joined)?;
        let name = path.file_name();
        if name == ignore::NAME
            && let Some(problem) = frame.ignore_problem.take()
        {
            self.problem(path, problem);
            return Ok(());
        }
        if self.plan.hidden.contains(&path) {
            return Ok(());
        }
        let is_root = frame.leads && self.plan.roots.contains(&path);
        if self.plan.capturing && !is_root && names::is_leftover(name) {
            return Ok(());
        }
        let leads_on = frame.leads && self.plan.roots.leads_on(&path);
        if frame.rules.inside
            && !is_root
            && self.plan.databases != Databases::Plain
            && database::is_sidecar(name, &frame.names, &dir, |n| self.plan.filter.is_database(n))
        {
            return Ok(());
        }
        // The directory often knows what is a directory, so that what is left out costs nothing.
        let mut stat = None;
        if !frame.rules.inside || is_root || leads_on || kind == Kind::Unknown {
            match rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(s) => stat = Some(s),
                Err(e) => {
                    self.missing(path, is_root, e);
                    return Ok(());
                }
            }
        }
        let is_directory = match &stat {
            Some(s) => attributes::file_type(s) == FileType::Directory,
            None => kind == Kind::Directory,
        };
        let mut rules = frame.rules.clone();
        if is_root {
            rules.root = path.as_bytes().len() + 1;
            rules.included = !self.plan.filter.selects();
            if !rules.inside {
                rules.ignore = None;
            }
            rules.inside = true;
            rules.open = true;
        } else if rules.inside {
            let bytes = path.as_bytes();
            let filter = &self.plan.filter;
            if filter.excluded(bytes, rules.root, rules.ignore.as_ref(), is_directory) {
                if !(leads_on && is_directory) {
                    return Ok(());
                }
                rules.open = false;
            }
            if !rules.included {
                rules.included = filter.included(bytes, rules.root, is_directory);
                if !rules.included && !is_directory {
                    return Ok(());
                }
            }
        }
        let stat = match stat {
            Some(stat) => stat,
            None => match rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(e) => {
                    self.missing(path, is_root, e);
                    return Ok(());
                }
            },
        };
        if is_root {
            rules.device = attributes::identity(&stat).0;
        }
        if attributes::file_type(&stat) == FileType::Directory {
            self.directory(cx, &dir, path, &stat, rules, is_root)
        } else if is_root
            && self.plan.capturing
            && attributes::file_type(&stat) == FileType::Symlink
        {
            // Since the roots were examined. Stored alone it would look as if all was captured.
            let e = error::link(&dir, path.as_bytes());
            self.problem(path, e);
            Ok(())
        } else if rules.inside {
            if is_root
                && self.plan.capturing
                && let Err(e) = unsized_files::refuse(&dir, path.as_bytes())
            {
                self.problem(path, e);
                return Ok(());
            }
            self.leaf(&dir, path, &stat);
            Ok(())
        } else {
            let e = Error::new(Reason::SourceMissing, "what leads to this is not a directory");
            self.problem(path, e);
            Ok(())
        }
    }

    /// Something that could be listed, and of which something is said not to be there. Where it is there all the
    /// same, that is a problem.
    fn vanished(&mut self, dir: &OwnedFd, path: EntryPath, error: Error) {
        match rustix::fs::statat(dir, path.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => self.lost_one(),
            _ => self.problem(path, error),
        }
    }

    /// A name of the directory that is walked is not there any more.
    fn lost_one(&mut self) {
        if let Some(frame) = self.stack.last_mut() {
            frame.lost_one = true;
        }
    }

    /// Of a directory in which names have vanished, that it still is what its path leads to: if it was replaced, what
    /// is there now has not been looked at.
    fn confirm(&mut self) -> Result<()> {
        let Some(frame) = self.stack.last().filter(|frame| frame.lost_one) else { return Ok(()) };
        let identity = frame.identity;
        if !self.plan.capturing || self.path.is_empty() {
            return Ok(());
        }
        let base = self.plan.dirs.base();
        let now = rustix::fs::statat(&**base, self.path.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
        let is_same = match now {
            Ok(now) => attributes::identity(&now) == identity,
            // It went with all that was in it. What is above it is confirmed in its turn.
            Err(Errno::NOENT) => {
                if let Some(above) =
                    self.stack.len().checked_sub(2).and_then(|i| self.stack.get_mut(i))
                {
                    above.lost_one = true;
                }
                true
            }
            Err(_) => false,
        };
        if !is_same {
            let what =
                "the directory was replaced while it was walked; what is in it now may be missing";
            let e = Error::new(Reason::SourceChanged, what);
            // Its own entry was given before; the name is that of nothing.
            self.plan.note_replaced(self.path.clone(), e);
        }
        Ok(())
    }

    /// Something that a directory or the configuration named, and that cannot be examined.
    fn missing(&mut self, path: EntryPath, is_root: bool, errno: Errno) {
        let named = is_root || self.plan.roots.leads_on(&path);
        match errno {
            Errno::NOENT if named => {
                // What is told is what was named, also where the way there is missing already.
                for root in self.plan.roots.at(&path) {
                    let e = error::missing(root.as_bytes());
                    self.problem(root, e);
                }
            }
            // It vanished between listing and looking, or all that is around it did.
            Errno::NOENT => self.lost_one(),
            e => {
                let e = error::at("examine", path.as_bytes(), e);
                self.problem(path, e);
            }
        }
    }

    fn directory(
        &mut self,
        cx: &Context,
        parent: &OwnedFd,
        path: EntryPath,
        stat: &Stat,
        rules: Inherited,
        is_root: bool,
    ) -> Result<()> {
        let elsewhere = self.plan.one_file_system
            && rules.inside
            && attributes::identity(stat).0 != rules.device;
        let listed = rules.open && !elsewhere;
        let entered = if listed {
            self.list(cx, parent, &path)
        } else {
            dirs::enter(parent, path.file_name())
                .map(|dir| {
                    let leads = self.plan.roots.leads(path.as_bytes());
                    (dir, Names::from_sorted(&leads))
                })
                .map_err(|e| (e, error::at("enter the directory", path.as_bytes(), e)))
        };
        let (dir, names) = match entered {
            Ok(entered) => entered,
            Err((errno, error)) => {
                match errno {
                    Errno::NOENT if !is_there(parent, &path) => {
                        if self.plan.capturing {
                            self.plan.walked().note_lost(path.clone(), None);
                        }
                        self.missing(path, is_root, errno);
                    }
                    // A link or a file stands there now, or another directory.
                    Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
                        let e = error::changed(path.as_bytes());
                        self.problem(path, e);
                    }
                    _ if error.is_cancelled() => return Err(error),
                    _ => self.problem(path, error),
                }
                return Ok(());
            }
        };
        let stat = rustix::fs::fstat(&dir).unwrap_or(*stat);
        if listed
            && self.plan.capturing
            && (is_root || self.enters_another(&stat))
            && let Err(e) = unsized_files::refuse(&dir, path.as_bytes())
        {
            self.problem(path, e);
            return Ok(());
        }
        let mut entry = attributes::entry(path, EntryKind::Directory, &stat);
        let place = entry.path.as_bytes();
        let mut examined = true;
        let xattrs = if listed {
            self.xattrs.of_file(&dir, place)
        } else {
            self.xattrs.of_name(&dir, b".", place)
        };
        match xattrs {
            Ok(xattrs) => entry.xattrs = xattrs,
            Err(_) if !rules.inside => {}
            Err(e) => {
                examined = false;
                self.problem(entry.path.clone(), e);
            }
        }
        entry.ancestor = !rules.inside;
        let path = entry.path.as_bytes().to_vec();
        let leads = self.plan.roots.leads_on(&entry.path);
        let (dir, identity) = (Arc::new(dir), attributes::identity(&stat));
        if self.plan.capturing {
            self.plan.walked().note(&path, &dir, identity);
        }
        let mut frame = Frame {
            dir: Some(dir),
            identity,
            parent_len: self.path.len(),
            names,
            next: 0,
            leads,
            rules,
            held: None,
            ignore_problem: None,
            lost_one: false,
        };
        if listed {
            read_ignore_file(&self.plan, &mut frame, &path);
        }
        if examined {
            if frame.rules.included || is_root || entry.ancestor {
                self.give(TreeItem::Entry(entry, Content::None));
            } else {
                frame.held = Some(entry);
            }
        }
        self.path = path;
        self.stack.push(frame);
        // Too deep for all to stay open: those far above are opened again on the way back.
        if let Some(above) = self.stack.len().checked_sub(OPEN + 1).filter(|i| *i > 0) {
            self.stack[above].dir = None;
        }
        Ok(())
    }

    /// Whether a directory is on another file system than the one that it is in.
    fn enters_another(&self, stat: &Stat) -> bool {
        let device = attributes::identity(stat).0;
        self.stack.last().is_some_and(|above| above.identity.0 != device)
    }

    /// Open a directory and read its names, with those that lead to roots.
    fn list(
        &self,
        cx: &Context,
        parent: &OwnedFd,
        path: &EntryPath,
    ) -> Result<(OwnedFd, Names), (Errno, Error)> {
        let place = path.as_bytes();
        let dir = dirs::list(parent, path.file_name())
            .map_err(|e| (e, error::at("open the directory", place, e)))?;
        let mut names = Names::read(cx, &dir, place).map_err(|e| (Errno::IO, e))?;
        names.add(&self.plan.roots.leads(place));
        let deepest = path.components().count() >= 1024 && !names.is_empty();
        if deepest
            || place.len() + 1 + names.longest() > EntryPath::MAX_LEN
            || names.longest() > 255
        {
            let e = Error::new(Reason::LimitExceeded, "a path in this directory is too long")
                .with("path", error::show(place));
            return Err((Errno::NAMETOOLONG, e));
        }
        Ok((dir, names))
    }

    /// Make sure that the directory to go on with is open.
    fn reopen(&mut self) -> Result<()> {
        let Some(frame) = self.stack.last_mut() else { return Ok(()) };
        if frame.dir.is_some() {
            return Ok(());
        }
        let same = |dir: &Arc<OwnedFd>| {
            rustix::fs::fstat(&**dir).is_ok_and(|s| attributes::identity(&s) == frame.identity)
        };
        match self.plan.dirs.open(&self.path) {
            Ok(dir) if same(&dir) => frame.dir = Some(dir),
            // It was moved while the walk was deep in it: what is left of it is out of reach.
            _ => {
                if let Some((name, _)) = frame.names.get(frame.next) {
                    let path = EntryPath::new([&self.path, &b"/"[..], name].concat())?;
                    frame.next = frame.names.len();
                    let e = Error::new(
                        Reason::SourceChanged,
                        "the directory was moved while it was walked; this and what follows in it is missing",
                    )
                    .with("path", error::show(path.as_bytes()));
                    self.problem(path, e);
                }
            }
        }
        Ok(())
    }

    /// Something is there and cannot be had. What is not there is no problem, and is not told like one.
    fn problem(&mut self, path: EntryPath, error: Error) {
        let error = match error.reason() {
            Reason::NotFound => {
                let what = "it is there, and the system says that it is not";
                let place = error::show(path.as_bytes());
                Error::new(Reason::Io, what).with("path", place).caused_by(error)
            }
            _ => error,
        };
        self.give(TreeItem::Problem(path, error));
    }

    /// Give an item out, after the directories that were held back until something in them is.
    fn give(&mut self, item: TreeItem) {
        for frame in &mut self.stack {
            if let Some(entry) = frame.held.take() {
                self.bytes += weight(&entry);
                self.out.push(TreeItem::Entry(entry, Content::None));
            }
        }
        self.bytes += match &item {
            TreeItem::Entry(entry, _) => weight(entry),
            TreeItem::Problem(path, _) => 256 + path.as_bytes().len(),
        };
        self.out.push(item);
    }
}

/// About how much memory an entry takes.
fn weight(entry: &TreeEntry) -> usize {
    let extra = match &entry.kind {
        EntryKind::Symlink { target } => target.len(),
        EntryKind::HardLink { target } => target.as_bytes().len(),
        _ => 0,
    };
    let xattrs: usize = entry.xattrs.iter().map(|(n, v)| 48 + n.len() + v.len()).sum();
    size_of::<TreeItem>() + entry.path.as_bytes().len() + extra + xattrs
}

/// Whether anything stands at a path, in its directory.
fn is_there(parent: &OwnedFd, path: &EntryPath) -> bool {
    rustix::fs::statat(parent, path.file_name(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Read a directory's ignore file, if it has one and it counts.
fn read_ignore_file(plan: &Plan, frame: &mut Frame, path: &[u8]) {
    if !plan.filter.ignore_file || !frame.rules.inside || frame.names.find(ignore::NAME).is_none() {
        return;
    }
    let Some(dir) = frame.dir.as_deref() else { return };
    match ignore::read(dir, path) {
        Ok(Some(rules)) => {
            let from = if path.is_empty() { 0 } else { path.len() + 1 };
            let above = frame.rules.ignore.take();
            frame.rules.ignore = Some(Arc::new(Ignore { rules, from, above }));
        }
        Ok(None) => {}
        Err(e) => frame.ignore_problem = Some(e),
    }
}
