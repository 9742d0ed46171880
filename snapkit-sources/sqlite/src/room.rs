//! Directories around a target: the nearest one that is there, where to stage, and those that have to be
//! made.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use snapkit_core::{Error, Result};

use crate::error::shown;
use crate::scratch::sync_directory;

/// Of a directory and those above it, the nearest that is there.
pub(crate) fn nearest(dir: &Path) -> Result<&Path> {
    for dir in dir.ancestors() {
        match std::fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => return Ok(dir),
            Ok(_) => {
                let what = "a file stands where the directory of the target has to be";
                return Err(Error::invalid(what).with("path", shown(dir)));
            }
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(e) => {
                let what = "cannot examine the directory of the target";
                return Err(Error::io(what, e).with("path", shown(dir)));
            }
        }
    }
    Ok(Path::new("/"))
}

/// Where to stage what goes below a directory that is there: in it, or above it for as long as there is
/// nothing in it. Another source may have to find it as empty as it is, or put its own in its place.
pub(crate) fn staging(dir: &Path) -> PathBuf {
    let device = |dir: &Path| std::fs::metadata(dir).map(|m| m.dev()).ok();
    let may = |dir: &Path| rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    let Ok(mut place) = std::fs::canonicalize(dir) else { return dir.to_owned() };
    while let Some(above) = place.parent()
        && device(above) == device(&place)
        && may(above)
        && !holds_anything(&place)
    {
        place = above.to_owned();
    }
    place
}

/// Whether there is anything but directories below a directory, as far as one may look.
fn holds_anything(dir: &Path) -> bool {
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        let Ok(items) = std::fs::read_dir(dir) else { return true };
        for item in items {
            match item.and_then(|i| Ok((i.path(), i.file_type()?))) {
                Ok((path, kind)) if kind.is_dir() => todo.push(path),
                _ => return true,
            }
        }
    }
    false
}

/// Directories that were made. Removed again, if nothing is in them, unless they are kept.
#[derive(Debug, Default)]
pub(crate) struct Made(Vec<PathBuf>);

impl Made {
    /// Make a directory and those that lead to it, for their owner only: what they were like is not known.
    pub(crate) fn make(dir: &Path) -> Result<Self> {
        let there = nearest(dir)?.to_owned();
        let mut missing: Vec<&Path> = dir.ancestors().take_while(|d| *d != there).collect();
        missing.reverse();
        let mut made = Self::default();
        for dir in missing {
            match DirBuilder::new().mode(0o700).create(dir) {
                Ok(()) => made.0.push(dir.to_owned()),
                // Somebody else made it just now.
                Err(e) if e.kind() == ErrorKind::AlreadyExists && dir.is_dir() => continue,
                Err(e) => {
                    let what = "cannot make the directory of the target";
                    return Err(Error::io(what, e).with("path", shown(dir)));
                }
            }
            sync_directory(dir.parent().unwrap_or(Path::new("/")))?;
        }
        Ok(made)
    }

    /// They stay; what to say of them.
    pub(crate) fn keep(mut self) -> Option<String> {
        let made = std::mem::take(&mut self.0);
        let last = made.last()?;
        Some(match made.len() {
            1 => format!("the directory {} was made, for its owner only", shown(last)),
            n => format!(
                "the directory {} and {} above it were made, for their owner only",
                shown(last),
                n - 1
            ),
        })
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            if let Err(e) = std::fs::remove_dir(dir) {
                tracing::debug!(path = %shown(dir), error = %e, "a directory that was made stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_is_where_something_is() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().canonicalize().unwrap();
        std::fs::write(top.join("file"), "").unwrap();
        std::fs::create_dir_all(top.join("srv/app/data/deep")).unwrap();
        std::fs::create_dir_all(top.join("srv/app/logs")).unwrap();
        assert_eq!(staging(&top.join("srv/app/data")), top);
        std::fs::write(top.join("srv/app/logs/1"), "").unwrap();
        assert_eq!(staging(&top.join("srv/app/data")), top.join("srv/app"));
        assert_eq!(nearest(&top.join("srv/x/y")).unwrap(), top.join("srv"));
        let e = nearest(&top.join("file/x")).unwrap_err();
        assert!(e.to_string().contains("a file stands where"), "{e}");
    }

    #[test]
    fn what_was_made_goes_unless_it_is_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("a/b/c");
        drop(Made::make(&dir).unwrap());
        assert!(!scratch.path().join("a").exists());
        let note = Made::make(&dir).unwrap().keep().unwrap();
        assert!(dir.is_dir() && note.contains("2 above it"), "{note}");
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(Made::make(&dir).unwrap().keep(), None);
    }
}
