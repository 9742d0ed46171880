//! What an old state has and the snapshot has not: it was set aside with the rest, and is missed.

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use snapkit_core::error::Result;

use super::mover::{Dir, Mover, below};
use super::place::join;
use super::shell;
use super::swap::open_dir;
use crate::attributes;
use crate::error;
use crate::names::{Kind, Names};

/// How many of them are named.
const NAMED: usize = 5;

/// Look through directories that are kept, each with the root that it was, and tell what of them is
/// not at its place any more.
pub(super) fn tell(mover: &Mover<'_>, kept: &[(Dir, Vec<u8>)]) {
    for (old, root) in kept {
        let mut left = Left::default();
        let looked = look(mover, old, root, &mut left);
        if left.count > 0 {
            let more = if left.count > left.named.len() as u64 { ", …" } else { "" };
            mover.writer.told.note(format!(
                "{} that {} went away with the old state, to {}: {}{more}",
                if left.count == 1 {
                    "1 entry".to_owned()
                } else {
                    format!("{} entries", left.count)
                },
                if mover.writer.allow_damage {
                    "the snapshot does not have, or not whole,"
                } else {
                    "the snapshot does not have"
                },
                shell::path(&mover.path(old, b"")),
                left.named.join(", ")
            ));
        }
        if let Err(e) = looked {
            let root = mover.layout().show(root);
            mover.writer.told.note(format!(
                "what the old state of {root} has besides could not all be told: {}",
                e.chain()
            ));
        }
    }
}

#[derive(Default)]
struct Left {
    count: u64,
    named: Vec<String>,
}

/// Directories that are there in both are looked into; one that is not there any more counts as one.
fn look(mover: &Mover<'_>, old: &Dir, root: &[u8], left: &mut Left) -> Result<()> {
    let mut todo = vec![Vec::new()];
    while let Some(rel) = todo.pop() {
        mover.cx.check()?;
        let place = join(root, &rel);
        let cannot = |e| error::at("examine", &place, e);
        let dir = open_dir(mover, &if rel.is_empty() { old.clone() } else { below(old, &rel) })?;
        let live = match mover.open(&Dir::Base(place.clone())) {
            Ok(live) => live,
            // Something else is there now.
            Err(Errno::NOTDIR) => continue,
            Err(e) => return Err(cannot(e)),
        };
        let names = Names::read(mover.cx, &dir, &place)?;
        let mut deeper = Vec::new();
        for (name, kind) in (0..names.len()).filter_map(|i| names.get(i)) {
            match rustix::fs::statat(&*live, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if attributes::file_type(&stat) == FileType::Directory => {
                    let was = match kind {
                        Kind::Unknown => rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
                            .is_ok_and(|s| attributes::file_type(&s) == FileType::Directory),
                        kind => kind == Kind::Directory,
                    };
                    if was {
                        deeper.push(join(&rel, name));
                    }
                }
                Ok(_) => {}
                Err(Errno::NOENT) => {
                    left.count += 1;
                    if left.named.len() < NAMED {
                        left.named.push(mover.layout().show(&join(&place, name)));
                    }
                }
                Err(e) => return Err(cannot(e)),
            }
        }
        todo.extend(deeper.into_iter().rev());
    }
    Ok(())
}
