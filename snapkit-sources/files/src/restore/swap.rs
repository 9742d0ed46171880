//! Moving what was put together into its place, and what was there out of the way.
//!
//! Every step is a rename. If one fails, those before it are taken back, so that the target is as it
//! was found.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, RenameFlags, Stat, Uid};
use rustix::io::Errno;
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Result};
use snapkit_core::tree::{EntryKind, EntryPath, TreeEntry};

use super::apply;
use super::place::{Layout, Place, join};
use super::put::Taken;
use super::shell;
use super::write::Writer;
use crate::attributes;
use crate::dirs;
use crate::error;
use crate::names::Names;

/// What moving into place leaves behind.
#[derive(Debug, Default)]
pub(super) struct Swapped {
    /// How to bring the old state back, if there was one.
    pub(super) undo: Vec<String>,
    /// Where old state is kept inside of the target.
    pub(super) hidden: Vec<EntryPath>,
}

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
}

enum Step {
    Renamed {
        from: (Dir, Vec<u8>),
        to: (Dir, Vec<u8>),
    },
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
        Self { cx, writer, recovery, journal: Vec::new() }
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

    fn step(&mut self, from: (Dir, Vec<u8>), to: (Dir, Vec<u8>)) -> rustix::io::Result<()> {
        self.rename((&from.0, &from.1), (&to.0, &to.1))?;
        self.journal.push(Step::Renamed { from, to });
        Ok(())
    }

    /// Take everything back, last first.
    fn take_back(&mut self) {
        while let Some(step) = self.journal.pop() {
            let undone = match &step {
                Step::Renamed { from, to } => self.rename((&to.0, &to.1), (&from.0, &from.1)),
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
                && let Step::Renamed { from, to } = &step
            {
                let note = format!(
                    "taking the restore back failed ({e}); {} is now at {}",
                    shell::path(&self.path(&from.0, &from.1)),
                    shell::path(&self.path(&to.0, &to.1)),
                );
                self.cx.progress().warn(&note);
                self.writer.told.note(note);
            }
        }
    }

    /// Remove a directory if it is empty. Whether it was.
    fn remove_empty(
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

    /// Move something out of the way: to the recovery directory if that is on the same file system,
    /// else beside it. Where it is now.
    fn keep(&mut self, parent: &[u8], name: &[u8]) -> rustix::io::Result<(Dir, Vec<u8>)> {
        let from = (Dir::Base(parent.to_vec()), name.to_vec());
        if self.recovery.is_some() {
            for n in 0..1000 {
                let mut kept = self.kept_name(name, false);
                if n > 0 {
                    kept.extend_from_slice(format!("-{n}").as_bytes());
                }
                let to = (Dir::Recovery(Vec::new()), kept);
                match self.step(from.clone(), to.clone()) {
                    Ok(()) => return Ok(to),
                    // Another root of the same name is kept there.
                    Err(Errno::EXIST) => {}
                    Err(Errno::XDEV) => break,
                    Err(e) => return Err(e),
                }
            }
        }
        let to = (from.0.clone(), self.kept_name(name, true));
        self.step(from, to.clone())?;
        Ok(to)
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
        let cannot = |e| error::at("make a directory for the old state, in", &at, e);
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

/// Move everything that was put into its place.
pub(super) fn into_place(mover: &mut Mover<'_>, taken: &Taken) -> Result<Swapped> {
    let moved = try_into_place(mover, taken);
    if moved.is_err() {
        mover.take_back();
    }
    moved
}

fn try_into_place(mover: &mut Mover<'_>, taken: &Taken) -> Result<Swapped> {
    let mut swapped = Swapped::default();
    let mut replaced = false;
    let mut made = Vec::new();
    let layout = mover.layout();
    for (number, place) in layout.places.iter().enumerate() {
        if !taken.places.contains(&number) {
            let path = layout.show(place.bytes());
            mover
                .writer
                .told
                .note(format!("the snapshot holds nothing of {path}; it is left alone"));
            continue;
        }
        mover.cx.check()?;
        if place.within {
            replaced |= fill(mover, number, place, &mut swapped)?;
        } else {
            made.extend(mover.make_ancestors(place.bytes(), &taken.ancestors)?);
            replaced |= replace(mover, place, &mut swapped)?;
        }
    }
    // From here on nothing is taken back: all is in its place.
    settle(mover, taken);
    for entry in made.iter().rev() {
        match open_dir(mover, &Dir::Base(entry.path.as_bytes().to_vec())) {
            Ok(dir) => apply::to_file(&dir, entry, mover.writer.rights, &mover.writer.told),
            Err(e) => mover.writer.told.problem(&entry.path, &e),
        }
        let path = layout.path(entry.path.as_bytes());
        swapped.undo.push(format!("rmdir -- {}", shell::path(&path)));
    }
    if !replaced {
        swapped.undo.clear();
    }
    Ok(swapped)
}

/// Remove the stages, and then give the roots that are directories their attributes: a directory that
/// its owner may not write to could not have been renamed, and a stage may lie in a root.
pub(super) fn settle(mover: &Mover<'_>, taken: &Taken) {
    if let Err(e) = mover.layout().remove_stages(mover.cx) {
        mover.writer.told.trouble("not tidied up", &e);
    }
    for entry in taken.roots.iter().filter(|e| !e.ancestor) {
        match open_dir(mover, &Dir::Base(entry.path.as_bytes().to_vec())) {
            Ok(dir) => apply::to_file(&dir, entry, mover.writer.rights, &mover.writer.told),
            Err(e) => mover.writer.told.problem(&entry.path, &e),
        }
    }
}

pub(super) fn open_dir(mover: &Mover<'_>, dir: &Dir) -> Result<OwnedFd> {
    let opened = mover.open(dir).and_then(|dir| dirs::list(&*dir, b"."));
    opened.map_err(|e| {
        Error::io("cannot open the directory", e.into())
            .with("path", mover.path(dir, b"").display())
    })
}

/// Put a root into its place as a whole. Whether something was there.
fn replace(mover: &mut Mover<'_>, place: &Place, swapped: &mut Swapped) -> Result<bool> {
    let root = place.bytes();
    let layout = mover.layout();
    let cannot = |e| error::at("move into its place", root, e).with("path", layout.show(root));
    let (parent, name) = dirs::split(root);
    let to = (Dir::Base(parent.to_vec()), name.to_vec());
    let (stage_parent, _) =
        dirs::split(super::place::relative(&layout.stages[place.stage].at, root));
    let from = (Dir::Stage(place.stage, stage_parent.to_vec()), name.to_vec());
    let shown = shell::path(&layout.path(root));
    // It may have come as a problem only, or be what this file system cannot hold.
    let staged = mover.open(&from.0).map_err(cannot)?;
    match rustix::fs::statat(&*staged, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => {}
        Err(Errno::NOENT) => return Ok(false),
        Err(e) => return Err(cannot(e)),
    }
    let there = mover.open(&to.0).map_err(cannot)?;
    let mut locked = None;
    let old = match rustix::fs::statat(&*there, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_dir(&stat) && mover.remove_empty(parent, name, &stat).map_err(cannot)? => {
            None
        }
        Ok(stat) => {
            locked = locked_mode(&stat);
            Some(mover.keep(parent, name).map_err(cannot)?)
        }
        Err(Errno::NOENT) => None,
        Err(e) => return Err(cannot(e)),
    };
    mover.step(from, to).map_err(cannot)?;
    swapped.undo.extend(unlock_all(&shown));
    swapped.undo.push(format!("rm -rf -- {shown}"));
    let Some((dir, kept)) = old else { return Ok(false) };
    let kept = shell::path(&mover.path(&dir, &kept));
    swapped.undo.extend(locked.map(|_| format!("chmod u+w -- {kept}")));
    swapped.undo.push(format!("mv -- {kept} {shown}"));
    swapped.undo.extend(locked.map(|mode| format!("chmod {mode:04o} -- {shown}")));
    Ok(true)
}

/// Put what is in a root into the directory that stays. Whether something was in it.
fn fill(
    mover: &mut Mover<'_>,
    number: usize,
    place: &Place,
    swapped: &mut Swapped,
) -> Result<bool> {
    let root = place.bytes();
    let layout = mover.layout();
    let cannot = |e| error::at("move into", root, e).with("path", layout.show(root));
    let live = Dir::Base(root.to_vec());
    let dir = open_dir(mover, &live)?;
    let stage = &layout.stages[place.stage];
    let old = Names::read(mover.cx, &dir, root)?;
    let mut kept = None;
    let (mut unlock, mut lock) = (Vec::new(), Vec::new());
    for name in old.iter().filter(|n| *n != stage.name) {
        if kept.is_none() {
            kept = Some(mover.keeper(place.stage, number, dirs::split(root).1)?);
        }
        let Some((keeper, keeper_name)) = &kept else { break };
        let to = (below(keeper, keeper_name), name.to_vec());
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(cannot)?;
        if let Some(mode) = locked_mode(&stat) {
            let [was, is] = [mover.path(&to.0, name), mover.path(&live, name)];
            unlock.push(format!("chmod u+w -- {}", shell::path(&was)));
            lock.push(format!("chmod {mode:04o} -- {}", shell::path(&is)));
        }
        mover.step((live.clone(), name.to_vec()), to).map_err(cannot)?;
    }
    let staged = Dir::Stage(place.stage, Vec::new());
    let new = Names::read(mover.cx, stage.dirs.base(), root)?;
    for name in new.iter() {
        let from = (staged.clone(), name.to_vec());
        mover.step(from, (live.clone(), name.to_vec())).map_err(cannot)?;
    }
    let Some((keeper, name)) = kept else { return Ok(false) };
    let mut spare = String::new();
    if let Dir::Base(path) = &keeper {
        swapped.hidden.push(EntryPath::new(join(path, &name))?);
        spare = format!(" ! -name {}", shell::exact_pattern(&name));
    }
    let old = shell::path(&mover.path(&keeper, &name));
    let shown = shell::path(&layout.path(root));
    swapped.undo.extend(unlock_all(&shown));
    swapped.undo.extend(unlock);
    swapped.undo.extend([
        format!("find {shown} -mindepth 1 -maxdepth 1{spare} -exec rm -rf -- {{}} +"),
        format!("find {old} -mindepth 1 -maxdepth 1 -exec mv -- {{}} {shown}/ \\;"),
        format!("rmdir -- {old}"),
    ]);
    swapped.undo.extend(lock);
    swapped.undo.extend(attributes_back(&shown, &stage.before));
    Ok(true)
}

/// The mode of a directory that an ordinary owner cannot move as it is.
fn locked_mode(stat: &Stat) -> Option<u32> {
    let locked = is_dir(stat) && stat.st_mode & 0o200 == 0;
    (locked && !rustix::process::geteuid().is_root()).then_some(stat.st_mode & 0o7777)
}

/// What an ordinary user has to do before removing directories that forbid it.
fn unlock_all(shown: &str) -> Option<String> {
    let ordinary = !rustix::process::geteuid().is_root();
    ordinary.then(|| format!("find {shown} -type d ! -perm -u+w -exec chmod u+w -- {{}} +"))
}

/// The directory that a name in a directory is.
pub(super) fn below(dir: &Dir, name: &[u8]) -> Dir {
    match dir {
        Dir::Base(path) => Dir::Base(join(path, name)),
        Dir::Stage(stage, path) => Dir::Stage(*stage, join(path, name)),
        Dir::Recovery(path) => Dir::Recovery(join(path, name)),
    }
}

/// Commands that give a directory the owner, mode and time that it had.
pub(super) fn attributes_back(shown: &str, stat: &Stat) -> [String; 3] {
    let mtime = attributes::mtime(stat).0;
    let (seconds, nanos) = (mtime.div_euclid(1_000_000_000), mtime.rem_euclid(1_000_000_000));
    [
        format!("chown {}:{} -- {shown}", stat.st_uid, stat.st_gid),
        format!("chmod {:04o} -- {shown}", stat.st_mode & 0o7777),
        format!("touch -d @{seconds}.{nanos:09} -- {shown}"),
    ]
}

/// Whether `stat` is that of a directory.
pub(super) fn is_dir(stat: &Stat) -> bool {
    attributes::file_type(stat) == FileType::Directory
}
