//! Moving what was put together into its place, and what was there out of the way.
//!
//! Every step is a rename. If one fails, those before it are taken back, so that the target is as it
//! was found.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;
use snapkit_core::error::{Error, Result};
use snapkit_core::tree::{EntryPath, TreeEntry};

use super::apply;
use super::left;
use super::mover::{Dir, Mover, below};
use super::place::{Place, join, occupied, relative};
use super::put::Taken;
use super::script;
use super::shell;
use crate::attributes;
use crate::database;
use crate::dirs;
use crate::error;
use crate::names::Names;

/// What is put behind the name of an old state for what takes its place when it is brought back.
const UNDONE: &str = "-undone";

/// What to know before any of the commands.
const ASIDE: &str = "# what was restored is moved aside, to names that end in -undone; commands that ran change nothing if they \
     run again";

/// What moving into place leaves behind.
#[derive(Debug, Default)]
pub(super) struct Swapped {
    /// How to bring the old state back, if there was one.
    pub(super) undo: Vec<String>,
    /// Where old state is kept inside of the target.
    pub(super) hidden: Vec<EntryPath>,
    /// Directories that old state is kept as, each with the root that it was.
    pub(super) kept: Vec<(Dir, Vec<u8>)>,
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
            replaced |= replace(mover, number, place, &mut swapped)?;
        }
    }
    // From here on nothing is taken back: all is in its place.
    settle(mover, taken, |entry| !entry.ancestor);
    left::tell(mover, &swapped.kept);
    for entry in made.iter().rev() {
        match open_dir(mover, &Dir::Base(entry.path.as_bytes().to_vec())) {
            Ok(dir) => apply::to_file(&dir, entry, mover.writer.rights, &mover.writer.told),
            Err(e) => mover.writer.told.problem(&entry.path, &e),
        }
        let path = layout.path(entry.path.as_bytes());
        let path = shell::path(&path);
        swapped.undo.push(format!("[ ! -d {path} ] || rmdir -- {path}"));
    }
    if !replaced {
        mover.unsay();
    }
    if replaced {
        swapped.undo.insert(0, ASIDE.to_owned());
    } else {
        swapped.undo.clear();
    }
    Ok(swapped)
}

/// Remove the stages, and then give the roots that are directories their attributes: a directory that
/// its owner may not write to could not have been renamed, and a stage may lie in a root.
pub(super) fn settle(mover: &Mover<'_>, taken: &Taken, wanted: impl Fn(&TreeEntry) -> bool) {
    if let Err(e) = mover.layout().remove_stages(mover.cx) {
        mover.writer.told.trouble("not tidied up", &e);
    }
    for entry in taken.roots.iter().filter(|e| wanted(e)) {
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
fn replace(
    mover: &mut Mover<'_>,
    number: usize,
    place: &Place,
    swapped: &mut Swapped,
) -> Result<bool> {
    let root = place.bytes();
    let layout = mover.layout();
    let cannot = |e: Errno| {
        Error::io("cannot move into its place", e.into()).with("path", layout.show(root))
    };
    let (parent, name) = dirs::split(root);
    let to = (Dir::Base(parent.to_vec()), name.to_vec());
    let stage_at = &layout.stages[place.stage].at;
    let (stage_parent, _) = dirs::split(relative(stage_at, root));
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
    let moved = sidecars_aside(mover, number, root, swapped)?;
    let old = match rustix::fs::statat(&*there, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if !mover.writer.overwrite => {
            // It was examined, but that is a while ago.
            if !is_dir(&stat) || !mover.remove_hollow(root).map_err(cannot)? {
                return Err(occupied(&layout.path(root)));
            }
            None
        }
        Ok(stat) if is_dir(&stat) && mover.remove_empty(parent, name, &stat).map_err(cannot)? => {
            None
        }
        Ok(stat) => Some(stat),
        Err(Errno::NOENT) => None,
        Err(e) => return Err(cannot(e)),
    };
    let Some(stat) = old else {
        // Not below directories that were made for it, which are to go too.
        let mut aside = mover.kept_name(name, true);
        aside.extend_from_slice(format!("-{number}{UNDONE}").as_bytes());
        let aside = mover.path(&Dir::Base(stage_at.clone()), &aside);
        let away = shell::away(&shown, &shell::path(&aside));
        mover.say(&away)?;
        mover.step(from, to).map_err(|e| match e {
            // Since it was looked for.
            Errno::EXIST => occupied(&layout.path(root)),
            e => cannot(e),
        })?;
        swapped.undo.push(away);
        return Ok(moved);
    };
    mover.may_move(root)?;
    let back = |mover: &Mover<'_>, (dir, kept): &(Dir, Vec<u8>)| {
        let aside = mover.path(dir, &[kept.as_slice(), UNDONE.as_bytes()].concat());
        let (old, aside) = (shell::path(&mover.path(dir, kept)), shell::path(&aside));
        shell::back(&shown, &old, &aside, locked_mode(&stat), is_ordinary())
    };
    let guarded = |mover: &Mover<'_>, at: &(Dir, Vec<u8>)| {
        script::unless_back(&shown, &stat, &back(mover, at))
    };
    let at = mover.put_over(&from, &to, guarded)?;
    swapped.undo.push(back(mover, &at));
    if is_dir(&stat) {
        swapped.kept.push((below(&at.0, &at.1), root.to_vec()));
    }
    Ok(true)
}

/// Move aside what lies beside the place of a database, and would be taken for a part of the one that comes. Whether
/// there was anything.
fn sidecars_aside(
    mover: &mut Mover<'_>,
    number: usize,
    root: &[u8],
    swapped: &mut Swapped,
) -> Result<bool> {
    let layout = mover.layout();
    let cannot = |e: Errno| {
        let what = "cannot move aside what lies beside the database";
        Error::io(what, e.into()).with("path", layout.show(root))
    };
    let (parent, _) = dirs::split(root);
    let live = Dir::Base(parent.to_vec());
    let there = mover.open(&live).map_err(cannot)?;
    let found = stale_beside(mover, &there, root);
    for (sidecar, stat) in &found {
        let shown = layout.path(&join(parent, sidecar));
        if !mover.writer.overwrite {
            return Err(occupied(&shown));
        }
        let hidden = |mover: &Mover<'_>| {
            let mut kept = mover.kept_name(sidecar, true);
            kept.extend_from_slice(format!("-{number}").as_bytes());
            (live.clone(), kept)
        };
        let mut places = vec![hidden(mover)];
        if mover.recovery.is_some() {
            places.insert(0, mover.free_in_recovery(sidecar).map_err(cannot)?);
        }
        let shown = shell::path(&shown);
        let mut moved = Err(Errno::XDEV);
        for to in places {
            let aside = mover.path(&to.0, &[to.1.as_slice(), UNDONE.as_bytes()].concat());
            let old = shell::path(&mover.path(&to.0, &to.1));
            let back = shell::back(&shown, &old, &shell::path(&aside), None, is_ordinary());
            mover.say(&script::unless_back(&shown, stat, &back))?;
            moved = mover.step((live.clone(), sidecar.clone()), to);
            if moved.is_ok() {
                swapped.undo.push(back);
            }
            if moved != Err(Errno::XDEV) {
                break;
            }
        }
        moved.map_err(cannot)?;
    }
    Ok(!found.is_empty())
}

/// Files beside the place of a database that SQLite would take for parts of it, and that no other root puts there.
pub(super) fn stale_beside(
    mover: &Mover<'_>,
    directory: &OwnedFd,
    path: &[u8],
) -> Vec<(Vec<u8>, Stat)> {
    let (parent, name) = dirs::split(path);
    if !mover.writer.filter.is_database(name) {
        return Vec::new();
    }
    let mut found = database::files_beside(directory, name);
    let is_root = |name: &[u8]| {
        let path = join(parent, name);
        mover.layout().places.iter().any(|place| !place.within && place.bytes() == path.as_slice())
    };
    found.retain(|(name, _)| !is_root(name));
    found
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
    if mover.writer.overwrite {
        mover.may_move(root)?;
    }
    let mut kept = None;
    let mut moves = Vec::new();
    let (mut unlock, mut lock) = (Vec::new(), Vec::new());
    for name in old.iter().filter(|n| *n != stage.name) {
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(cannot)?;
        if !mover.writer.overwrite {
            let path = join(root, name);
            if !is_dir(&stat) || !mover.remove_hollow(&path).map_err(cannot)? {
                return Err(occupied(&layout.path(&path)));
            }
            continue;
        }
        if kept.is_none() {
            kept = Some(mover.keeper(place.stage, number, dirs::split(root).1)?);
        }
        let Some((keeper, keeper_name)) = &kept else { break };
        let to = (below(keeper, keeper_name), name.to_vec());
        if let Some(mode) = locked_mode(&stat) {
            let [was, is] = [mover.path(&to.0, name), mover.path(&live, name)];
            let was = shell::path(&was);
            unlock.push(format!("{{ [ ! -e {was} ] || chmod u+w -- {was}; }}"));
            lock.push(format!("chmod {mode:04o} -- {}", shell::path(&is)));
        }
        moves.push((to, stat));
    }
    let staged = Dir::Stage(place.stage, Vec::new());
    let new = Names::read(mover.cx, stage.dirs.base(), root)?;
    if let Some((keeper, keeper_name)) = &kept {
        let aside = [keeper_name.as_slice(), UNDONE.as_bytes()].concat();
        let aside = mover.path(keeper, &aside);
        say_fill(mover, &live, &moves, &aside, new.iter().filter(|n| old.find(n).is_none()))?;
    }
    for (to, _) in moves {
        mover.step((live.clone(), to.1.clone()), to).map_err(cannot)?;
    }
    for name in new.iter() {
        let from = (staged.clone(), name.to_vec());
        mover.step(from, (live.clone(), name.to_vec())).map_err(cannot)?;
    }
    let Some((keeper, name)) = kept else { return Ok(false) };
    let aside = [name.as_slice(), UNDONE.as_bytes()].concat();
    let mut spare = Vec::new();
    if let Dir::Base(path) = &keeper {
        swapped.hidden.push(EntryPath::new(join(path, &name))?);
        let part = [aside.as_slice(), shell::PART.as_bytes()].concat();
        spare = vec![name.clone(), aside.clone(), part];
    }
    let content = shell::Content {
        live: shell::path(&layout.path(root)),
        old: shell::path(&mover.path(&keeper, &name)),
        aside: mover.path(&keeper, &aside),
        spare,
        unlock,
        lock,
        ordinary: is_ordinary(),
    };
    let attributes = attributes_back(&content.live, &stage.before);
    swapped.undo.push(content.back(&attributes));
    swapped.kept.push((below(&keeper, &name), root.to_vec()));
    Ok(true)
}

/// Write down how to take back that what is in a directory is moved, name by name: wherever it is cut off,
/// some are still there.
fn say_fill<'n>(
    mover: &mut Mover<'_>,
    live: &Dir,
    moves: &[((Dir, Vec<u8>), Stat)],
    aside: &Path,
    added: impl Iterator<Item = &'n [u8]>,
) -> Result<()> {
    let word = |dir: &Dir, name: &[u8]| shell::path(&mover.path(dir, name));
    let away = |name: &[u8]| shell::path(&aside.join(OsStr::from_bytes(name)));
    let mut lines = vec![format!("mkdir -p -- {}", shell::path(aside))];
    for ((dir, name), stat) in moves {
        let at = word(live, name);
        let back =
            shell::back(&at, &word(dir, name), &away(name), locked_mode(stat), is_ordinary());
        lines.push(script::unless_back(&at, stat, &back));
    }
    lines.extend(added.map(|name| shell::away(&word(live, name), &away(name))));
    let Some(((dir, _), _)) = moves.first() else { return Ok(()) };
    let old = word(dir, b"");
    lines.push(format!("rmdir -- {old}"));
    mover.say(&format!("if [ -d {old} ]; then\n{}\nfi", lines.join("\n")))
}

/// The mode of a directory that an ordinary owner cannot move as it is.
fn locked_mode(stat: &Stat) -> Option<u32> {
    let locked = is_dir(stat) && stat.st_mode & 0o200 == 0;
    (locked && is_ordinary()).then_some(stat.st_mode & 0o7777)
}

fn is_ordinary() -> bool {
    !rustix::process::geteuid().is_root()
}

/// Commands that give a directory the owner, mode and time that it had.
fn attributes_back(shown: &str, stat: &Stat) -> [String; 3] {
    [
        format!("chown {}:{} -- {shown}", stat.st_uid, stat.st_gid),
        format!("chmod {:04o} -- {shown}", stat.st_mode & 0o7777),
        format!("touch -d {} -- {shown}", time_of(stat)),
    ]
}

/// The time of a directory, as `touch -d` takes it.
pub(super) fn time_of(stat: &Stat) -> String {
    let mtime = attributes::mtime(stat).0;
    format!("@{}.{:09}", mtime.div_euclid(1_000_000_000), mtime.rem_euclid(1_000_000_000))
}

/// Whether `stat` is that of a directory.
pub(super) fn is_dir(stat: &Stat) -> bool {
    attributes::file_type(stat) == FileType::Directory
}
