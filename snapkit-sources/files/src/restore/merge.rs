//! Putting a part back: what was put replaces what stands at its place, one by one, and everything
//! else is left alone. What was replaced is kept, with a script that brings it back.

use std::collections::HashSet;
use std::io::Write as _;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use snapkit_core::error::{Error, Result};
use snapkit_core::tree::{EntryKind, EntryPath};

use super::apply;
use super::place::{Place, join, relative};
use super::put::Taken;
use super::shell;
use super::swap::{Dir, Mover, Swapped, attributes_back, below, is_dir, open_dir, settle};
use crate::attributes::{self, XattrReader};
use crate::dirs;
use crate::error;
use crate::names::Names;

/// Below the directory for old state: what was replaced, and the script.
const TREE: &[u8] = b"tree";
const SCRIPT: &[u8] = b"undo.sh";

/// Merge everything that was put into its place.
pub(super) fn into_place(mover: &mut Mover<'_>, taken: &Taken) -> Result<Swapped> {
    let mut swapped = Swapped::default();
    let layout = mover.layout();
    for (number, place) in layout.places.iter().enumerate() {
        if !taken.places.contains(&number) {
            continue;
        }
        let made = mover
            .make_ancestors(if place.within { b"" } else { place.bytes() }, &taken.ancestors)?;
        let (keeper, name) = mover.keeper(place.stage, number, dirs::split(place.bytes()).1)?;
        let kept = below(&keeper, &name);
        let mut merge = Merge {
            script: script(mover, &kept)?,
            xattrs: XattrReader::new(),
            kept,
            replaced: false,
            made: HashSet::new(),
            mover,
            place,
            taken,
        };
        let merged = merge.run();
        merge.script.flush().map_err(|e| Error::io("cannot write the script that undoes", e))?;
        if let Err(e) = merged {
            // What was replaced so far stays replaced, and can be brought back.
            let script = merge.mover.path(&merge.kept, SCRIPT);
            return Err(e.with("undo", format!("sh {}", shell::path(&script))));
        }
        let (replaced, kept) = (merge.replaced, merge.kept.clone());
        for entry in made.iter().rev() {
            let dir = open_dir(mover, &Dir::Base(entry.path.as_bytes().to_vec()))?;
            apply::to_file(&dir, entry, mover.writer.rights, &mover.writer.told);
        }
        if replaced {
            let script = mover.path(&kept, SCRIPT);
            swapped.undo.push(format!("sh {}", shell::path(&script)));
            if let Dir::Base(path) = &kept {
                swapped.hidden.push(EntryPath::new(path.as_slice())?);
            }
        } else {
            let remove = mover.open(&kept).and_then(|dir| {
                rustix::fs::unlinkat(&*dir, SCRIPT, AtFlags::empty())?;
                let holder = mover.open(&keeper)?;
                rustix::fs::unlinkat(&*holder, name.as_slice(), AtFlags::REMOVEDIR)
            });
            remove.map_err(|e| Error::io("cannot remove an empty directory", e.into()))?;
        }
    }
    settle(mover, taken);
    Ok(swapped)
}

fn script(mover: &Mover<'_>, kept: &Dir) -> Result<std::io::BufWriter<std::fs::File>> {
    let cannot = |e: Errno| Error::io("cannot make the script that undoes", e.into());
    let dir = mover.open(kept).map_err(cannot)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&*dir, SCRIPT, flags, Mode::RUSR | Mode::WUSR).map_err(cannot)?;
    let mut script = std::io::BufWriter::new(std::fs::File::from(file));
    writeln!(script, "# Brings back what a partial restore replaced.\nset -e")
        .map_err(|e| Error::io("cannot write the script that undoes", e))?;
    Ok(script)
}

struct Merge<'m, 'a> {
    mover: &'m Mover<'a>,
    place: &'m Place,
    taken: &'m Taken,
    kept: Dir,
    script: std::io::BufWriter<std::fs::File>,
    xattrs: XattrReader,
    replaced: bool,
    /// Directories made for old state.
    made: HashSet<Vec<u8>>,
}

impl Merge<'_, '_> {
    /// Go through what was put together, directory by directory.
    fn run(&mut self) -> Result<()> {
        let root = self.place.bytes().to_vec();
        let before = if self.place.within {
            self.mover.layout().stages[self.place.stage].before
        } else {
            let Some(before) = self.one(&root)? else { return Ok(()) };
            before
        };
        let mut stack = vec![(root.clone(), before, self.names(&root)?, 0)];
        while let Some((path, _, names, next)) = stack.last_mut() {
            self.mover.cx.check()?;
            let Some((name, _)) = names.get(*next) else {
                if let Some((path, before, ..)) = stack.pop() {
                    self.close(&path, &before)?;
                }
                continue;
            };
            *next += 1;
            let path = join(path, name);
            if let Some(before) = self.one(&path)? {
                let names = self.names(&path)?;
                stack.push((path, before, names, 0));
            }
        }
        Ok(())
    }

    fn staged(&self, path: &[u8]) -> (Dir, Vec<u8>) {
        let stage = &self.mover.layout().stages[self.place.stage];
        let (parent, name) = dirs::split(relative(&stage.at, path));
        (Dir::Stage(self.place.stage, parent.to_vec()), name.to_vec())
    }

    fn names(&self, path: &[u8]) -> Result<Names> {
        let (parent, name) = self.staged(path);
        let dir = open_dir(self.mover, &below(&parent, &name))?;
        Names::read(self.mover.cx, &dir, path)
    }

    /// Put one thing into its place. If it and what stands there are directories, so that what is in
    /// them is to be looked at, what stands there.
    fn one(&mut self, path: &[u8]) -> Result<Option<Stat>> {
        let cannot = |e| error::at("put into its place", path, e);
        let (stage, name) = self.staged(path);
        let (parent, _) = dirs::split(path);
        let live = Dir::Base(parent.to_vec());
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let stage_dir = self.mover.open(&stage).map_err(cannot)?;
        let new = match rustix::fs::statat(&*stage_dir, &name, nofollow) {
            Ok(new) => new,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(cannot(e)),
        };
        let live_dir = self.mover.open(&live).map_err(cannot)?;
        let old = match rustix::fs::statat(&*live_dir, &name, nofollow) {
            Ok(old) => Some(old),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(cannot(e)),
        };
        let shown = shell::path(&self.mover.layout().path(path));
        if let Some(old) = old {
            if is_dir(&old) && is_dir(&new) {
                return Ok(Some(old));
            }
            self.replaced = true;
            let kept = self.make_room(parent)?;
            let there = shell::path(&self.mover.path(&kept, &name));
            self.say(&format!("rm -rf -- {shown}\nmv -- {there} {shown}"))?;
            let kept_dir = self.mover.open(&kept).map_err(cannot)?;
            // With a second name for the old file the new one replaces it in one step, and there is
            // no moment without either.
            let both = attributes::file_type(&old) == FileType::RegularFile && !is_dir(&new);
            if both
                && rustix::fs::linkat(&*live_dir, &name, &*kept_dir, &name, AtFlags::empty())
                    .is_ok()
            {
                rustix::fs::renameat(&*stage_dir, &name, &*live_dir, &name).map_err(cannot)?;
                return Ok(None);
            }
            self.mover.rename((&live, &name), (&kept, &name)).map_err(cannot)?;
        } else {
            self.say(&format!("rm -rf -- {shown}"))?;
        }
        self.mover.rename((&stage, &name), (&live, &name)).map_err(cannot)?;
        Ok(None)
    }

    /// A directory of the old state for what was in a directory.
    fn make_room(&mut self, parent: &[u8]) -> Result<Dir> {
        let cannot = |e| error::at("make a directory for the old state of", parent, e);
        let rel = join(TREE, parent);
        let ends = rel.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
        for end in ends.chain([rel.len()]) {
            if self.made.contains(&rel[..end]) {
                continue;
            }
            let (above, name) = dirs::split(&rel[..end]);
            let dir = self.mover.open(&below(&self.kept, above)).map_err(cannot)?;
            match rustix::fs::mkdirat(&*dir, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(cannot(e)),
            }
            self.made.insert(rel[..end].to_vec());
        }
        Ok(below(&self.kept, &rel))
    }

    /// Give a directory that was there the attributes that were put, unless it only leads on. A root
    /// gets them when nothing more is done in it.
    fn close(&mut self, path: &[u8], before: &Stat) -> Result<()> {
        let shown = shell::path(&self.mover.layout().path(path));
        self.say(&attributes_back(&shown, before).join("\n"))?;
        let Ok(entry_path) = EntryPath::new(path) else { return Ok(()) };
        if self.place.is_root(&entry_path) {
            return Ok(());
        }
        let live = open_dir(self.mover, &Dir::Base(path.to_vec()))?;
        let (rights, told) = (self.mover.writer.rights, &self.mover.writer.told);
        let mut entry;
        if self.taken.leading.contains(&entry_path) {
            // Only what is in it changed: not even its time tells.
            entry = attributes::entry(entry_path, EntryKind::Directory, before);
            entry.ancestor = true;
        } else {
            let (parent, name) = self.staged(path);
            let staged = open_dir(self.mover, &below(&parent, &name))?;
            let stat = rustix::fs::fstat(&staged).map_err(|e| error::at("examine", path, e))?;
            entry = attributes::entry(entry_path, EntryKind::Directory, &stat);
            entry.xattrs = self.xattrs.of_file(&staged, path)?;
        }
        apply::to_file(&live, &entry, rights, told);
        Ok(())
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.script, "{line}")
            .map_err(|e| Error::io("cannot write the script that undoes", e))
    }
}
