//! Renaming between the target, the stages and the places for old states, with a way back.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Mode, RenameFlags, Stat, Uid};
use rustix::io::Errno;
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Result};
use snapkit_core::tree::{EntryKind, EntryPath, TreeEntry};

use super::hindrance;
use super::place::{Layout, join};
use super::script::Script;
use super::shell;
use super::swap::is_dir;
use super::write::Writer;
use crate::dirs;
use crate::error;
use crate::names::Names;

/// A directory where things are kept or come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dir {
    /// Below the target.
    Base(Vec<u8>),
    /// Below a stage, by its number.
    Stage(usize, Vec<u8>),
    /// Below the recovery directory.
    Recovery(Vec<u8>),
}

/// The directory that old state goes to, if the caller named one.
pub(super) struct Recovery {
    pub(super) dirs: dirs::Dirs,
    pub(super) path: PathBuf,
}

impl Recovery {
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let dir = dirs::begin(&path).map_err(|e| {
            Error::io("cannot open the recovery directory", e.into()).with("path", path.display())
        })?;
        Ok(Self { dirs: dirs::Dirs::new(dir), path })
    }
}

/// Renames, and remembers how to take them back.
pub(super) struct Mover<'a> {
    pub(super) cx: &'a Context,
    pub(super) writer: &'a Writer,
    pub(super) recovery: Option<&'a Recovery>,
    journal: Vec<Step>,
    script: Option<Script<'a>>,
}

enum Step {
    Renamed {
        from: (Dir, Vec<u8>),
        to: (Dir, Vec<u8>),
    },
    /// Each is now where the other was.
    Exchanged((Dir, Vec<u8>), (Dir, Vec<u8>)),
    Made {
        parent: Vec<u8>,
        name: Vec<u8>,
    },
    MadeKept(Dir, Vec<u8>),
    /// An empty directory.
    Removed {
        parent: Vec<u8>,
        name: Vec<u8>,
        stat: Stat,
    },
}

impl<'a> Mover<'a> {
    pub(super) fn new(cx: &'a Context, writer: &'a Writer, recovery: Option<&'a Recovery>) -> Self {
        Self { cx, writer, recovery, journal: Vec::new(), script: None }
    }

    pub(super) fn layout(&self) -> &'a Layout {
        &self.writer.layout
    }

    pub(super) fn open(&self, dir: &Dir) -> rustix::io::Result<Arc<OwnedFd>> {
        match dir {
            Dir::Base(path) => self.layout().base.open(path),
            Dir::Stage(stage, path) => self.layout().stages[*stage].dirs.open(path),
            Dir::Recovery(path) => match self.recovery {
                Some(recovery) => recovery.dirs.open(path),
                None => Err(Errno::NOENT),
            },
        }
    }

    /// A path for a shell and for people.
    pub(super) fn path(&self, dir: &Dir, name: &[u8]) -> PathBuf {
        let rel = |path: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(&join(path, name)));
        match dir {
            Dir::Base(path) => self.layout().base_path.join(rel(path)),
            Dir::Stage(stage, path) => {
                let stage = &self.layout().stages[*stage];
                let inside = join(&stage.name, &join(path, name));
                self.layout().path(&join(&stage.at, &inside))
            }
            Dir::Recovery(path) => {
                self.recovery.map(|r| r.path.join(rel(path))).unwrap_or_default()
            }
        }
    }

    /// Rename without replacing anything, and without a note of it.
    pub(super) fn rename(&self, from: (&Dir, &[u8]), to: (&Dir, &[u8])) -> rustix::io::Result<()> {
        let (from_dir, to_dir) = (self.open(from.0)?, self.open(to.0)?);
        let renamed = rename_exclusively(&from_dir, from.1, &to_dir, to.1);
        if renamed.is_ok() {
            // Handles below what was moved would now lead elsewhere.
            self.layout().base.forget();
        }
        renamed
    }

    pub(super) fn step(
        &mut self,
        from: (Dir, Vec<u8>),
        to: (Dir, Vec<u8>),
    ) -> rustix::io::Result<()> {
        self.rename((&from.0, &from.1), (&to.0, &to.1))?;
        self.journal.push(Step::Renamed { from, to });
        Ok(())
    }

    /// Write down how to take back what is about to be done, if there is a place for that.
    pub(super) fn say(&mut self, command: &str) -> Result<()> {
        let script = match (&mut self.script, self.recovery) {
            (Some(script), _) => script,
            (none, Some(recovery)) => {
                none.insert(Script::begin(recovery, &self.writer.layout.tag)?)
            }
            (None, None) => return Ok(()),
        };
        script.say(command)
    }

    /// There is nothing that what was written down could bring back.
    pub(super) fn unsay(&mut self) {
        if let Some(script) = self.script.take() {
            script.remove();
        }
    }

    /// Refuse to move away what holds more than its own.
    pub(super) fn may_move(&self, path: &[u8]) -> Result<()> {
        hindrance::refuse(&self.layout().path(path), self.recovery.map(|r| r.path.as_path()))
    }

    /// Put what is staged at the place of something that is kept from now on, without a moment in which
    /// nothing is there, if the file system can do that.
    fn exchange(
        &mut self,
        staged: &(Dir, Vec<u8>),
        live: &(Dir, Vec<u8>),
        kept: &(Dir, Vec<u8>),
    ) -> rustix::io::Result<()> {
        self.step(staged.clone(), kept.clone())?;
        let exchanged = self.swap(live, kept);
        match exchanged {
            Ok(()) => self.journal.push(Step::Exchanged(live.clone(), kept.clone())),
            Err(_) => {
                self.rename((&kept.0, &kept.1), (&staged.0, &staged.1))?;
                self.journal.pop();
            }
        }
        exchanged
    }

    fn swap(&self, a: &(Dir, Vec<u8>), b: &(Dir, Vec<u8>)) -> rustix::io::Result<()> {
        let (a_dir, b_dir) = (self.open(&a.0)?, self.open(&b.0)?);
        rustix::fs::renameat_with(&*a_dir, &a.1, &*b_dir, &b.1, RenameFlags::EXCHANGE)?;
        self.layout().base.forget();
        Ok(())
    }

    /// Take everything back, last first.
    pub(super) fn take_back(&mut self) {
        let mut whole = true;
        while let Some(step) = self.journal.pop() {
            let undone = match &step {
                Step::Renamed { from, to } => self.rename((&to.0, &to.1), (&from.0, &from.1)),
                Step::Exchanged(a, b) => self.swap(a, b),
                Step::Made { parent, name } => {
                    self.layout().base.forget();
                    self.open(&Dir::Base(parent.clone())).and_then(|dir| {
                        rustix::fs::unlinkat(&*dir, name.as_slice(), AtFlags::REMOVEDIR)
                    })
                }
                Step::MadeKept(dir, name) => self.open(dir).and_then(|dir| {
                    rustix::fs::unlinkat(&*dir, name.as_slice(), AtFlags::REMOVEDIR)
                }),
                Step::Removed { parent, name, stat } => self.make_again(parent, name, stat),
            };
            if let Err(e) = undone
                && let Step::Renamed { from, to } | Step::Exchanged(from, to) = &step
            {
                whole = false;
                let note = format!(
                    "taking the restore back failed ({e}); {} is now at {}",
                    shell::path(&self.path(&from.0, &from.1)),
                    shell::path(&self.path(&to.0, &to.1)),
                );
                self.cx.progress().warn(&note);
                self.writer.told.note(note);
            }
        }
        if whole {
            self.unsay();
        }
    }

    /// Remove a directory if it is empty. Whether it was.
    pub(super) fn remove_empty(
        &mut self,
        parent: &[u8],
        name: &[u8],
        stat: &Stat,
    ) -> rustix::io::Result<bool> {
        let dir = self.layout().base.open(parent)?;
        match rustix::fs::unlinkat(&*dir, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                let (parent, name) = (parent.to_vec(), name.to_vec());
                self.journal.push(Step::Removed { parent, name, stat: *stat });
                Ok(true)
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Remove a directory in which there is nothing but directories. Whether it was one; if not, some of
    /// them may be gone, and come back when everything is taken back.
    pub(super) fn remove_hollow(&mut self, path: &[u8]) -> rustix::io::Result<bool> {
        let mut found = vec![path.to_vec()];
        let mut next = 0;
        while let Some(path) = found.get(next).cloned() {
            next += 1;
            let dir = self.layout().base.open(&path)?;
            let dir = dirs::list(&*dir, b".")?;
            let Ok(names) = Names::read(self.cx, &dir, &path) else { return Ok(false) };
            for name in names.iter() {
                let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if !is_dir(&stat) {
                    return Ok(false);
                }
                found.push(join(&path, name));
            }
        }
        // Those that are deeper were found later.
        for path in found.iter().rev() {
            let (parent, name) = dirs::split(path);
            let dir = self.layout().base.open(parent)?;
            let stat = rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            self.layout().base.forget();
            match self.remove_empty(parent, name, &stat) {
                Ok(true) => {}
                // Something has come into it, or is mounted on it.
                Ok(false) | Err(Errno::BUSY) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn make_again(&self, parent: &[u8], name: &[u8], stat: &Stat) -> rustix::io::Result<()> {
        let dir = self.layout().base.open(parent)?;
        rustix::fs::mkdirat(&*dir, name, Mode::RWXU)?;
        let made = dirs::list(&*dir, name)?;
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(&made, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(stat.st_mode & 0o7777))
    }

    /// The name under which the old state of something is kept.
    pub(super) fn kept_name(&self, name: &[u8], hidden: bool) -> Vec<u8> {
        let tail = format!(".snapkit-old-{}", self.layout().tag);
        // With room for a dot in front and a number behind.
        let room = 255usize.saturating_sub(tail.len() + 24);
        let name = if name.is_empty() { b"all" } else { name };
        let dot: &[u8] = if hidden { b"." } else { b"" };
        [dot, &name[..name.len().min(room)], tail.as_bytes()].concat()
    }

    /// Put what is staged at the place of something, which is kept: in the recovery directory if that is on
    /// the same file system, else beside it. Where it is now. `back` says how to bring it back from there.
    pub(super) fn put_over(
        &mut self,
        staged: &(Dir, Vec<u8>),
        live: &(Dir, Vec<u8>),
        back: impl Fn(&Self, &(Dir, Vec<u8>)) -> String,
    ) -> Result<(Dir, Vec<u8>)> {
        let (layout, Dir::Base(parent)) = (self.layout(), &live.0) else {
            return Err(Error::internal("what is replaced is in the target"));
        };
        let place = join(parent, &live.1);
        let cannot = |e: Errno| {
            Error::io("cannot move into its place", e.into()).with("path", layout.show(&place))
        };
        let beside = (live.0.clone(), self.kept_name(&live.1, true));
        let mut places = vec![beside];
        if self.recovery.is_some() {
            places.insert(0, self.free_in_recovery(&live.1).map_err(cannot)?);
        }
        for to in places {
            let command = back(self, &to);
            self.say(&command)?;
            if self.exchange(staged, live, &to).is_ok() {
                return Ok(to);
            }
            match self.step(live.clone(), to.clone()) {
                Ok(()) => {
                    self.step(staged.clone(), live.clone()).map_err(cannot)?;
                    return Ok(to);
                }
                Err(Errno::XDEV) if matches!(to.0, Dir::Recovery(_)) => {}
                Err(e) => return Err(cannot(e)),
            }
        }
        Err(cannot(Errno::XDEV))
    }

    /// A name for an old state that no other root has.
    pub(super) fn free_in_recovery(&self, name: &[u8]) -> rustix::io::Result<(Dir, Vec<u8>)> {
        let at = Dir::Recovery(Vec::new());
        let dir = self.open(&at)?;
        for n in 0..1000 {
            let mut kept = self.kept_name(name, false);
            if n > 0 {
                kept.extend_from_slice(format!("-{n}").as_bytes());
            }
            match rustix::fs::statat(&*dir, &kept, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => return Ok((at, kept)),
                found => found.map(drop)?,
            }
        }
        Err(Errno::EXIST)
    }

    /// Make a directory for old state on the file system of a stage, by renaming it out of the
    /// stage: to the recovery directory, else beside the stage.
    pub(super) fn keeper(
        &mut self,
        stage: usize,
        number: usize,
        name: &[u8],
    ) -> Result<(Dir, Vec<u8>)> {
        let at = self.layout().stages[stage].at.clone();
        let cannot = |e| error::at("make a directory for the old state", &at, e);
        let fresh = format!("old-{}", self.layout().tag).into_bytes();
        let from = Dir::Stage(stage, Vec::new());
        let dir = self.open(&from).map_err(cannot)?;
        // The name is unique among those of this restore, and roots are not named like it.
        rustix::fs::mkdirat(&*dir, fresh.as_slice(), Mode::RWXU).map_err(cannot)?;
        let numbered = |hidden| {
            let mut kept = self.kept_name(name, hidden);
            kept.extend_from_slice(format!("-{number}").as_bytes());
            kept
        };
        let mut places = Vec::new();
        if self.recovery.is_some() {
            places.push((Dir::Recovery(Vec::new()), numbered(false)));
        }
        places.push((Dir::Base(at.clone()), numbered(true)));
        let mut last = Errno::XDEV;
        for to in places {
            match self.rename((&from, &fresh), (&to.0, &to.1)) {
                Ok(()) => {
                    self.journal.push(Step::MadeKept(to.0.clone(), to.1.clone()));
                    return Ok(to);
                }
                Err(e) => last = e,
            }
        }
        let _ = rustix::fs::unlinkat(&*dir, fresh.as_slice(), AtFlags::REMOVEDIR);
        Err(cannot(last))
    }

    /// Make the directories that lead to a root, as they were if the tree says so. Which were made,
    /// outermost first.
    pub(super) fn make_ancestors(
        &mut self,
        root: &[u8],
        ancestors: &[TreeEntry],
    ) -> Result<Vec<TreeEntry>> {
        let mut made = Vec::new();
        let ends = root.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
        for end in ends {
            let path = &root[..end];
            let (parent, name) = dirs::split(path);
            let dir = self.layout().base.open(parent);
            match dir.and_then(|dir| rustix::fs::mkdirat(&*dir, name, Mode::RWXU)) {
                Ok(()) => {
                    let step = Step::Made { parent: parent.to_vec(), name: name.to_vec() };
                    self.journal.push(step);
                    let entry = ancestors.iter().find(|a| a.path.as_bytes() == path);
                    made.push(match entry {
                        Some(entry) => entry.clone(),
                        None => {
                            let path = EntryPath::new(path)?;
                            let mut entry = TreeEntry::new(path, EntryKind::Directory);
                            entry.mode = 0o755;
                            entry.ancestor = true;
                            entry.uid = u32::MAX;
                            entry.gid = u32::MAX;
                            entry.mtime = self.cx.now();
                            entry
                        }
                    });
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(error::at("make the directory", path, e)),
            }
        }
        Ok(made)
    }
}

fn rename_exclusively(
    from: &OwnedFd,
    old: &[u8],
    to: &OwnedFd,
    new: &[u8],
) -> rustix::io::Result<()> {
    match rename_new(from, old, to, new) {
        // Moving a directory to another one writes to it too, which its owner may have forbidden.
        Err(Errno::ACCESS) => {
            let dir = dirs::list(from, old)?;
            let mode = Mode::from_raw_mode(rustix::fs::fstat(&dir)?.st_mode & 0o7777);
            if mode.contains(Mode::WUSR) {
                return Err(Errno::ACCESS);
            }
            rustix::fs::fchmod(&dir, mode | Mode::WUSR)?;
            let renamed = rename_new(from, old, to, new);
            rustix::fs::fchmod(&dir, mode)?;
            renamed
        }
        result => result,
    }
}

fn rename_new(from: &OwnedFd, old: &[u8], to: &OwnedFd, new: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::renameat_with(from, old, to, new, RenameFlags::NOREPLACE) {
        // The file system does not know how to; look first.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            match rustix::fs::statat(to, new, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => rustix::fs::renameat(from, old, to, new),
                Ok(_) => Err(Errno::EXIST),
                Err(e) => Err(e),
            }
        }
        result => result,
    }
}

/// The directory that a name in a directory is.
pub(super) fn below(dir: &Dir, name: &[u8]) -> Dir {
    match dir {
        Dir::Base(path) => Dir::Base(join(path, name)),
        Dir::Stage(stage, path) => Dir::Stage(*stage, join(path, name)),
        Dir::Recovery(path) => Dir::Recovery(join(path, name)),
    }
}
