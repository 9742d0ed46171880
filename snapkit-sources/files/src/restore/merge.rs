//! Putting a part back: what was put replaces what stands at its place, one by one, and everything
//! else is left alone. What was replaced is kept, with a script that brings it back.

use std::collections::HashSet;
use std::io::Write as _;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use snapkit_core::error::{Error, Result};
use snapkit_core::tree::{EntryKind, EntryPath};

use super::apply;
use super::mover::{Dir, Mover, below};
use super::place::{Place, join, occupied, relative};
use super::put::Taken;
use super::shell;
use super::swap::{Swapped, is_dir, open_dir, settle, stale_beside, time_of};
use crate::attributes::{self, XattrReader};
use crate::dirs;
use crate::error;
use crate::names::Names;

/// Below the directory for old state: what was replaced, and the script.
const TREE: &[u8] = b"tree";
const SCRIPT: &[u8] = b"undo.sh";

/// How the script begins, after it has said where it is. It may be cut off and run again: each step is
/// done only while what it brings back is at hand, and nothing is deleted.
const BEGIN: &str = r#"if [ -e "$kept/done" ]; then
    echo 'it was brought back before; nothing is changed' >&2
    exit 0
fi
mkdir -p -- "$kept/undone"
there() { [ -e "$1" ] || [ -L "$1" ]; }
# What is at $1 goes to undone/$2, once.
away() {
    if there "$1" && ! there "$kept/undone/$2"; then mv -f -- "$1" "$kept/undone/$2"; fi
}
# What is kept at $3 comes back to $1, once; what is there goes to undone/$2.
back() {
    if there "$3"; then
        if there "$1"; then mv -f -- "$1" "$kept/undone/$2"; fi
        mv -f -- "$3" "$1"
    fi
}
# A directory was like this: owner $2, mode $3, time $4.
was() {
    chown "$2" -- "$1" && chmod "$3" -- "$1" && touch -d "$4" -- "$1" ||
        echo "$1 may not be as it was in its owner, mode and time" >&2
}
"#;

/// How it ends.
const END: &str = ": > \"$kept/done\"";

/// Merge everything that was put into its place.
pub(super) fn into_place(mover: &mut Mover<'_>, taken: &Taken) -> Result<Swapped> {
    let mut swapped = Swapped::default();
    let layout = mover.layout();
    let (mut made_roots, mut left_as_it_was) = (Vec::new(), 0);
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
            root_made: false,
            steps: 0,
            left_as_it_was: 0,
            made: HashSet::new(),
            mover,
            place,
            taken,
        };
        let merged = merge.run();
        merge.say(END)?;
        left_as_it_was += merge.left_as_it_was;
        if merge.root_made {
            made_roots.extend(place.root.clone());
        }
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
            // Nobody misses it, and everything is in its place.
            if let Err(e) = remove {
                let place = shell::path(&mover.path(&kept, b""));
                mover.writer.told.note(format!("an empty directory was left: {place} ({e})"));
            }
        }
    }
    // A root that was there stays as it is, unless it was asked for and may be replaced.
    let overwrite = mover.writer.overwrite;
    settle(mover, taken, |e| made_roots.contains(&e.path) || (overwrite && !e.ancestor));
    let used = |stage| {
        let of = |number: &usize| layout.places.get(*number).is_some_and(|p| p.stage == stage);
        taken.places.iter().any(of)
    };
    layout.restore_times(|stage| !used(stage));
    if left_as_it_was > 0 {
        mover.writer.told.note(format!(
            "directories that were there keep their attributes: {left_as_it_was}; with overwriting they \
             get those of the snapshot"
        ));
    }
    Ok(swapped)
}

fn script(mover: &Mover<'_>, kept: &Dir) -> Result<std::fs::File> {
    let cannot = |e: Errno| Error::io("cannot make the script that undoes", e.into());
    let dir = mover.open(kept).map_err(cannot)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&*dir, SCRIPT, flags, Mode::RUSR | Mode::WUSR).map_err(cannot)?;
    let mut script = std::fs::File::from(file);
    let place = shell::path(&mover.path(kept, b""));
    let first = "# Brings back what a partial restore replaced. It can be run again, also when it was cut off.";
    write!(script, "{first}\nset -eu\nkept={place}\n{BEGIN}")
        .map_err(|e| Error::io("cannot write the script that undoes", e))?;
    Ok(script)
}

struct Merge<'m, 'a> {
    mover: &'m Mover<'a>,
    place: &'m Place,
    taken: &'m Taken,
    kept: Dir,
    script: std::fs::File,
    xattrs: XattrReader,
    replaced: bool,
    /// Whether the root was put as a whole.
    root_made: bool,
    /// How many steps the script has.
    steps: u64,
    /// Directories that were asked for and left as they were.
    left_as_it_was: u64,
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
            let Some(before) = self.one(&root)? else {
                self.root_made = true;
                return Ok(());
            };
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
        if attributes::file_type(&new) == FileType::RegularFile {
            self.sidecars_aside(path, &live_dir, &stage_dir)?;
        }
        let shown = shell::path(&self.mover.layout().path(path));
        let step = self.steps;
        self.steps += 1;
        if let Some(old) = old {
            if is_dir(&old) && is_dir(&new) {
                return Ok(Some(old));
            }
            if !self.mover.writer.overwrite {
                // It was not there when its entry came.
                return Err(occupied(&self.mover.layout().path(path)));
            }
            if is_dir(&old) {
                self.mover.may_move(path)?;
            }
            self.replaced = true;
            let kept = self.make_room(parent)?;
            let there = shell::path(&self.mover.path(&kept, &name));
            self.say(&format!("back {shown} {step} {there}"))?;
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
            self.say(&format!("away {shown} {step}"))?;
        }
        self.mover.rename((&stage, &name), (&live, &name)).map_err(cannot)?;
        Ok(None)
    }

    /// Move aside what lies beside the place of a database, and would be taken for a part of the one that comes.
    fn sidecars_aside(&mut self, path: &[u8], live: &OwnedFd, staged: &OwnedFd) -> Result<()> {
        let cannot = |e| error::at("move aside what lies beside", path, e);
        let (parent, _) = dirs::split(path);
        for (name, _) in stale_beside(self.mover, live, path) {
            let comes = rustix::fs::statat(staged, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            if comes {
                continue;
            }
            let shown = self.mover.layout().path(&join(parent, &name));
            if !self.mover.writer.overwrite {
                return Err(occupied(&shown));
            }
            self.replaced = true;
            let kept = self.make_room(parent)?;
            let there = shell::path(&self.mover.path(&kept, &name));
            let step = self.steps;
            self.steps += 1;
            self.say(&format!("back {} {step} {there}", shell::path(&shown)))?;
            let at = Dir::Base(parent.to_vec());
            self.mover.rename((&at, &name), (&kept, &name)).map_err(cannot)?;
        }
        Ok(())
    }

    /// A directory of the old state for what was in a directory.
    fn make_room(&mut self, parent: &[u8]) -> Result<Dir> {
        let cannot = |e| error::at("make a directory for the old state", parent, e);
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
        let time = time_of(before);
        let (uid, gid, mode) = (before.st_uid, before.st_gid, before.st_mode & 0o7777);
        self.say(&format!("was {shown} {uid}:{gid} {mode:04o} {time}"))?;
        let Ok(entry_path) = EntryPath::new(path) else { return Ok(()) };
        if self.place.is_root(&entry_path) {
            return Ok(());
        }
        let live = open_dir(self.mover, &Dir::Base(path.to_vec()))?;
        let (rights, told) = (self.mover.writer.rights, &self.mover.writer.told);
        let mut entry;
        let leading = self.taken.leading.contains(&entry_path);
        if leading || !self.mover.writer.overwrite {
            self.left_as_it_was += u64::from(!leading);
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
