//! Where a restore goes: for each root the place, and beside it the directory that it is put
//! together in.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, FileType, Mode, Stat};
use rustix::io::Errno;
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::tree::{EntryPath, escape};

use super::apply;
use crate::attributes;
use crate::dirs::{self, Dirs};
use crate::error;
use crate::names::{Kind, Names};
use crate::roots::Roots;

/// All places of one restore.
#[derive(Debug)]
pub(super) struct Layout {
    /// The directory that entry paths are relative to.
    pub(super) base: Dirs,
    pub(super) base_path: PathBuf,
    pub(super) stages: Vec<Stage>,
    /// Sorted by root; none lies in another.
    pub(super) places: Vec<Place>,
    /// Roots that nothing can be restored to, and why, where only a part is restored: it may have
    /// nothing to do with them.
    refused: Vec<(EntryPath, Reason, String)>,
    /// What makes the names of this restore unique.
    pub(super) tag: String,
}

/// A directory that things are put together in, on the file system of their place.
#[derive(Debug)]
pub(super) struct Stage {
    /// The directory that holds it, as an entry path; empty for the base. Paths in the stage are
    /// relative to it.
    pub(super) at: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) dirs: Dirs,
    /// What the directory that holds it was like before.
    pub(super) before: Stat,
}

/// Where one root goes.
#[derive(Debug)]
pub(super) struct Place {
    /// `None` is everything.
    pub(super) root: Option<EntryPath>,
    pub(super) stage: usize,
    /// Whether the root is a directory that stays, such as one that a file system is mounted on, so
    /// that what is in it is moved and not itself.
    pub(super) within: bool,
}

impl Place {
    pub(super) fn holds(&self, path: &EntryPath) -> bool {
        self.root.as_ref().is_none_or(|root| path.starts_with(root))
    }

    pub(super) fn is_root(&self, path: &EntryPath) -> bool {
        self.root.as_ref() == Some(path)
    }

    /// The root's path; empty for everything.
    pub(super) fn bytes(&self) -> &[u8] {
        self.root.as_ref().map_or(&[], EntryPath::as_bytes)
    }
}

impl Layout {
    /// Find the places and make the directories beside them.
    pub(super) fn new(
        cx: &Context,
        base_path: PathBuf,
        roots: &Roots,
        tag: String,
        partial: bool,
    ) -> Result<Self> {
        let mut layout = Self {
            base: Dirs::new(open_target(&base_path)?),
            base_path,
            stages: Vec::new(),
            places: Vec::new(),
            refused: Vec::new(),
            tag,
        };
        let made = layout.lay_out(roots, partial);
        if let Err(e) = made {
            // The first error is the one to tell.
            layout.remove_stages(cx).unwrap_or_default();
            return Err(e);
        }
        Ok(layout)
    }

    fn lay_out(&mut self, roots: &Roots, partial: bool) -> Result<()> {
        let mut known = HashMap::new();
        if roots.everything() {
            let stage = self.stage(&mut known, Vec::new())?;
            self.places.push(Place { root: None, stage, within: true });
            return Ok(());
        }
        for root in roots.outermost() {
            match self.lay(&mut known, &root) {
                Ok((stage, within)) => {
                    self.places.push(Place { root: Some(root), stage, within });
                }
                Err(e) if partial => self.refused.push((root, e.reason(), e.chain())),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn lay(
        &mut self,
        known: &mut HashMap<Vec<u8>, usize>,
        root: &EntryPath,
    ) -> Result<(usize, bool)> {
        let (at, within) = self.nearest(root)?;
        let stage = self.stage(known, at)?;
        if !within {
            self.make_holders(stage, root)?;
        }
        Ok((stage, within))
    }

    /// Why nothing can be restored to a path, if that is so.
    pub(super) fn refused(&self, path: &EntryPath) -> Option<Error> {
        let concerns = |root: &EntryPath| path.starts_with(root) || root.starts_with(path);
        let (_, reason, why) = self.refused.iter().find(|(root, ..)| concerns(root))?;
        Some(Error::new(*reason, why.clone()))
    }

    /// The directory that a root's stage goes into, and whether that is the root itself.
    fn nearest(&self, root: &EntryPath) -> Result<(Vec<u8>, bool)> {
        let place = root.as_bytes();
        let mut at = dirs::split(place).0;
        let mut missing = false;
        let parent = loop {
            match self.base.open(at) {
                Ok(dir) => break dir,
                Err(Errno::NOENT) => {
                    missing = true;
                    at = dirs::split(at).0;
                }
                Err(Errno::NOTDIR) => {
                    let what = "a symbolic link or a file stands where a directory has to be";
                    return Err(Error::new(Reason::AlreadyExists, what).with("path", self.show(at)));
                }
                Err(e) => return Err(error::at("open", at, e)),
            }
        };
        if missing {
            return Ok((at.to_vec(), false));
        }
        let name = root.file_name();
        let within = rustix::fs::statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|s| attributes::file_type(&s) == FileType::Directory)
            && (is_mounted(&parent, name)
                || rustix::fs::accessat(&*parent, ".", Access::WRITE_OK, AtFlags::empty())
                    .is_err());
        Ok((if within { place } else { at }.to_vec(), within))
    }

    fn stage(&mut self, known: &mut HashMap<Vec<u8>, usize>, at: Vec<u8>) -> Result<usize> {
        if let Some(stage) = known.get(&at) {
            return Ok(*stage);
        }
        let name = format!(".snapkit-restore-{}", self.tag).into_bytes();
        let cannot = |e| {
            error::at("make a directory to restore in", &at, e)
                .with("target", self.base_path.display())
        };
        let holder = self.base.open(&at).map_err(cannot)?;
        let before = rustix::fs::fstat(&*holder).map_err(cannot)?;
        rustix::fs::mkdirat(&*holder, name.as_slice(), Mode::RWXU).map_err(cannot)?;
        let dir = dirs::list(&*holder, &name).map_err(cannot)?;
        // What would be handed down to everything made in it.
        for acl in ["system.posix_acl_default", "system.posix_acl_access"] {
            let _ = rustix::fs::fremovexattr(&dir, acl);
        }
        rustix::fs::fchmod(&dir, Mode::RWXU).map_err(cannot)?;
        self.stages.push(Stage { at: at.clone(), name, dirs: Dirs::new(dir), before });
        known.insert(at, self.stages.len() - 1);
        Ok(self.stages.len() - 1)
    }

    /// Make the directories in a stage that lead to a root.
    fn make_holders(&self, stage: usize, root: &EntryPath) -> Result<()> {
        let stage = &self.stages[stage];
        let rel = relative(&stage.at, root.as_bytes());
        let slashes = rel.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
        for end in slashes {
            let (parent, name) = dirs::split(&rel[..end]);
            let made = stage
                .dirs
                .open(parent)
                .and_then(|dir| rustix::fs::mkdirat(&*dir, name, Mode::RWXU));
            match made {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(error::at("make the directories above", root.as_bytes(), e)),
            }
        }
        Ok(())
    }

    /// The place that a path belongs to.
    pub(super) fn find(&self, path: &EntryPath) -> Option<usize> {
        let after = self.places.partition_point(|p| p.root.as_ref().is_none_or(|r| r <= path));
        let last = after.checked_sub(1)?;
        self.places[last].holds(path).then_some(last)
    }

    /// Whether a directory leads to a place.
    pub(super) fn leads(&self, path: &EntryPath) -> bool {
        let after = self.places.partition_point(|p| p.root.as_ref().is_none_or(|r| r <= path));
        self.places.get(after).is_some_and(|p| p.root.as_ref().is_some_and(|r| r.starts_with(path)))
    }

    /// Where a path of a place is put together: the stage and the path in it.
    pub(super) fn staged<'a>(&'a self, place: usize, path: &'a [u8]) -> (&'a Stage, &'a [u8]) {
        let stage = &self.stages[self.places[place].stage];
        (stage, relative(&stage.at, path))
    }

    /// An entry path as a path of the file system.
    pub(super) fn path(&self, entry: &[u8]) -> PathBuf {
        self.base_path.join(std::ffi::OsStr::from_bytes(entry))
    }

    /// The same, for people.
    pub(super) fn show(&self, entry: &[u8]) -> String {
        escape(self.path(entry).as_os_str().as_bytes())
    }

    /// Remove the stages with everything that is in them.
    pub(super) fn remove_stages(&self, cx: &Context) -> Result<()> {
        let mut result = Ok(());
        for stage in &self.stages {
            stage.dirs.forget();
            self.base.forget();
            let removed = match self.base.open(&stage.at) {
                Ok(holder) => remove_tree(cx, &holder, &stage.name),
                Err(e) => Err(error::at("open", &stage.at, e)),
            };
            if let Err(e) = removed {
                let path = join(&stage.at, &stage.name);
                result = Err(e.with("directory", self.show(&path)));
            }
        }
        result
    }

    /// Give the directories that held stages the times that they had.
    pub(super) fn restore_times(&self, of: impl Fn(usize) -> bool) {
        for (_, stage) in self.stages.iter().enumerate().filter(|(i, _)| of(*i)) {
            let times = apply::times(attributes::mtime(&stage.before));
            if let Ok(holder) = self.base.open(&stage.at)
                && let Ok(holder) = dirs::list(&*holder, b".")
            {
                // As far as we may.
                let _ = rustix::fs::futimens(&holder, &times);
            }
        }
    }

    /// Make everything that was written durable.
    pub(super) fn sync(&self) -> Result<()> {
        for stage in &self.stages {
            sync(stage.dirs.base())
                .map_err(|e| Error::io("cannot make durable what was restored", e.into()))
                .map_err(|e| e.with("path", self.show(&stage.at)))?;
        }
        Ok(())
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn sync(dir: &OwnedFd) -> rustix::io::Result<()> {
    rustix::fs::syncfs(dir)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn sync(_: &OwnedFd) -> rustix::io::Result<()> {
    rustix::fs::sync();
    Ok(())
}

/// A path relative to a directory that it lies in, or is.
pub(super) fn relative<'a>(directory: &[u8], path: &'a [u8]) -> &'a [u8] {
    let rest = path.get(directory.len()..).unwrap_or_default();
    rest.strip_prefix(b"/").unwrap_or(rest)
}

/// Put a name behind a path that may be empty.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match (directory, name) {
        (b"", _) => name.to_vec(),
        (_, b"") => directory.to_vec(),
        _ => [directory, b"/", name].concat(),
    }
}

/// Whether a file system is mounted on a name: it cannot be renamed then.
fn is_mounted(parent: &Arc<OwnedFd>, name: &[u8]) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use rustix::fs::{StatxAttributes, StatxFlags};
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if let Ok(found) = rustix::fs::statx(&**parent, name, flags, StatxFlags::TYPE)
            && found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
        {
            return found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        }
    }
    let device = |stat: rustix::io::Result<Stat>| stat.ok().map(|s| s.st_dev);
    device(rustix::fs::fstat(&**parent))
        != device(rustix::fs::statat(&**parent, name, AtFlags::SYMLINK_NOFOLLOW))
}

/// What a restore that may not replace anything says of what it finds.
pub(super) fn occupied(path: &Path) -> Error {
    Error::new(Reason::TargetNotEmpty, "there is something where the restore goes")
        .with("path", escape(path.as_os_str().as_bytes()))
}

/// What stands in the way at a path below a directory, if anything does: the first thing there that is
/// no directory. Directories in which nothing is but directories are in nobody's way.
pub(super) fn in_the_way(cx: &Context, dirs: &Dirs, path: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut todo = vec![path.to_vec()];
    while let Some(path) = todo.pop() {
        let (parent, name) = dirs::split(&path);
        let found = dirs.open(parent).and_then(|parent| {
            let stat = rustix::fs::statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok((parent, stat))
        });
        match found {
            Ok((parent, stat)) if attributes::file_type(&stat) == FileType::Directory => {
                let dir = dirs::list(&*parent, name).map_err(|e| error::at("open", &path, e))?;
                let names = Names::read(cx, &dir, &path)?;
                todo.extend(names.iter().map(|name| join(&path, name)));
            }
            Ok(_) => return Ok(Some(path)),
            // Where a file stands instead of a directory is found out, and said, when the place is
            // looked for.
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(e) => return Err(error::at("examine", &path, e)),
        }
    }
    Ok(None)
}

/// Open the directory of a target.
pub(super) fn open_target(path: &Path) -> Result<OwnedFd> {
    dirs::begin(path).map_err(|e| {
        let e = match e {
            Errno::NOTDIR => Error::invalid("the target is a file, and has to be a directory"),
            e => Error::io("cannot open the target", e.into()),
        };
        e.with("path", path.display())
    })
}

/// Whether a directory holds anything.
pub(super) fn holds_anything(cx: &Context, path: &Path) -> Result<bool> {
    let dir = open_target(path)?;
    Ok(!Names::read(cx, &dir, path.as_os_str().as_bytes())?.is_empty())
}

/// Remove a directory with everything in it, following no link and with few open directories.
pub(super) fn remove_tree(cx: &Context, holder: &OwnedFd, name: &[u8]) -> Result<()> {
    let cannot = |e: Errno| Error::io("cannot remove", e.into());
    match rustix::fs::statat(holder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        found => found.map_err(cannot)?,
    };
    let enter = |parent: &OwnedFd, name: &[u8]| -> Result<Names> {
        // A directory that was finished may not even let its owner in.
        let _ = rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty());
        let dir = dirs::list(parent, name).map_err(cannot)?;
        Names::read(cx, &dir, name)
    };
    let mut stack = vec![(Vec::new(), enter(holder, name)?, 0)];
    let dirs = Dirs::new(dirs::enter(holder, name).map_err(cannot)?);
    while let Some((path, names, next)) = stack.last_mut() {
        let Some((name, kind)) = names.get(*next) else {
            let Some((path, ..)) = stack.pop() else { break };
            if !path.is_empty() {
                let (parent, name) = dirs::split(&path);
                let parent = dirs.open(parent).map_err(cannot)?;
                rustix::fs::unlinkat(&*parent, name, AtFlags::REMOVEDIR).map_err(cannot)?;
            }
            continue;
        };
        *next += 1;
        let dir = dirs.open(path).map_err(cannot)?;
        let is_directory = match kind {
            Kind::Unknown => rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|s| attributes::file_type(&s) == FileType::Directory),
            kind => kind == Kind::Directory,
        };
        if is_directory {
            let names = enter(&dir, name)?;
            let path = join(path, name);
            stack.push((path, names, 0));
        } else {
            match rustix::fs::unlinkat(&*dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(cannot(e)),
            }
        }
    }
    rustix::fs::unlinkat(holder, name, AtFlags::REMOVEDIR).map_err(cannot)
}
