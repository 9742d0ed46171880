//! Moving the files of an old state out of the way, and putting a new file in their place.

use std::fs::DirBuilder;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use snapkit_core::artifact::ArtifactMeta;
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::{Error, Reason, Result};

use crate::error::shown;
use crate::holders::beside;
use crate::scratch::{Draft, rename_to_nothing, sync_directory, token};

/// What belongs to a database, the database itself first.
const FILES: [&str; 4] = ["", "-wal", "-journal", "-shm"];

/// Where old states are kept.
#[derive(Debug)]
pub(crate) struct Recovery {
    given: Option<PathBuf>,
    target: PathBuf,
    made: Option<PathBuf>,
}

impl Recovery {
    /// In the given directory, or in one beside the target that is made when it is needed.
    pub(crate) fn new(given: Option<PathBuf>, target: PathBuf) -> Self {
        Self { given, target, made: None }
    }

    /// The directory for a copy of the target, and a name in it that nothing has yet.
    pub(crate) fn name_for_copy(&mut self, cx: &Context) -> Result<(PathBuf, PathBuf)> {
        let dir = match &self.given {
            Some(dir) => dir.clone(),
            None => self.beside_target(cx)?,
        };
        let name = free_name(&dir, &self.target)?;
        Ok((dir, name))
    }

    /// A private directory beside the target, on the same file system.
    fn beside_target(&mut self, cx: &Context) -> Result<PathBuf> {
        if let Some(dir) = &self.made {
            return Ok(dir.clone());
        }
        let dir = hidden_beside(&self.target, "snapkit-old", cx)?;
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .doing(|| format!("cannot make a directory for the old state: {}", shown(&dir)))?;
        self.made = Some(dir.clone());
        Ok(dir)
    }

    /// Move the database and what belongs to it away; answers what went where. If it fails, all is
    /// where it was. The files are not opened.
    pub(crate) fn take(&mut self, cx: &Context) -> Result<Vec<(PathBuf, PathBuf)>> {
        let there: Vec<&str> = FILES
            .into_iter()
            .filter(|suffix| std::fs::symlink_metadata(beside(&self.target, suffix)).is_ok())
            .collect();
        if there.is_empty() {
            return Ok(Vec::new());
        }
        let first = match &self.given {
            Some(dir) => move_all(&self.target, dir, &there),
            None => Err(Errno::XDEV.into()),
        };
        let moved = match first {
            Err(e) if e.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => {
                let dir = self.beside_target(cx)?;
                move_all(&self.target, &dir, &there)
            }
            other => other,
        };
        moved.doing(|| format!("cannot move the old files away: {}", shown(&self.target)))
    }
}

/// Move files back to where they were; for when what should replace them does not come.
pub(crate) fn put_back(moved: &[(PathBuf, PathBuf)]) {
    for (from, to) in moved.iter().rev() {
        if let Err(e) = std::fs::rename(to, from) {
            tracing::error!(from = %shown(to), to = %shown(from), error = %e, "an old file was not moved back");
        }
    }
}

fn move_all(target: &Path, dir: &Path, there: &[&str]) -> std::io::Result<Vec<(PathBuf, PathBuf)>> {
    let base = free_name(dir, target).map_err(std::io::Error::other)?;
    let mut moved = Vec::new();
    for suffix in there {
        let (from, to) = (beside(target, suffix), beside(&base, suffix));
        if let Err(e) = std::fs::rename(&from, &to) {
            put_back(&moved);
            return Err(e);
        }
        moved.push((from, to));
    }
    for dir in [Some(dir), target.parent()].into_iter().flatten() {
        if let Err(e) = sync_directory(dir) {
            tracing::warn!(error = %e, "moving the old files away may not be durable");
        }
    }
    Ok(moved)
}

/// The target's name in a directory, with a number if that or a file beside it exists.
fn free_name(dir: &Path, target: &Path) -> Result<PathBuf> {
    let base = dir.join(target.file_name().unwrap_or(target.as_os_str()));
    let is_free = |base: &Path| {
        FILES.iter().all(|suffix| std::fs::symlink_metadata(beside(base, suffix)).is_err())
    };
    std::iter::once(base.clone())
        .chain((1..1000).map(|n| beside(&base, &format!(".{n}"))))
        .find(|base| is_free(base))
        .ok_or_else(|| {
            Error::new(
                Reason::AlreadyExists,
                "a thousand old states are kept there: take some away",
            )
            .with("path", shown(&base))
        })
}

/// `.NAME.WHAT-RANDOM` in the directory of `target`; of a very long name only the start.
pub(crate) fn hidden_beside(target: &Path, what: &str, cx: &Context) -> Result<PathBuf> {
    hidden_in(target.parent().unwrap_or(Path::new("/")), target, what, cx)
}

/// The same in another directory.
pub(crate) fn hidden_in(dir: &Path, target: &Path, what: &str, cx: &Context) -> Result<PathBuf> {
    let name = target.file_name().unwrap_or_default().as_bytes();
    let mut hidden = b".".to_vec();
    hidden.extend_from_slice(&name[..name.len().min(180)]);
    hidden.extend_from_slice(format!(".{what}-{}", token(cx)?).as_bytes());
    Ok(dir.join(std::ffi::OsString::from_vec(hidden)))
}

/// Make a staged file the database at `target`, where nothing may be.
pub(crate) fn install(
    staged: Draft,
    target: &Path,
    meta: &ArtifactMeta,
    cx: &Context,
) -> Result<Vec<String>> {
    let problems = dress(staged.path(), meta)?;
    let fail = |e: std::io::Error| {
        Error::io("cannot put the database into place", e).with("path", shown(target))
    };
    match rename_to_nothing(staged.path(), target) {
        Ok(()) => staged.keep(),
        // It was staged elsewhere.
        Err(Errno::XDEV) => {
            let (near, mut file) = Draft::create(hidden_beside(target, "snapkit", cx)?)?;
            let mut from = std::fs::File::open(staged.path()).map_err(fail)?;
            std::io::copy(&mut from, &mut file).and_then(|_| file.sync_all()).map_err(fail)?;
            drop(staged);
            // Beside the target it is not elsewhere.
            return install(near, target, meta, cx);
        }
        Err(e) => return Err(appeared_or(e, target)),
    }
    sync_directory(target.parent().unwrap_or(Path::new("/")))?;
    Ok(problems)
}

fn appeared_or(errno: Errno, target: &Path) -> Error {
    let e = std::io::Error::from(errno);
    if errno == Errno::EXIST {
        let what = "a database has appeared while it was being restored";
        return Error::new(Reason::TargetNotEmpty, what).with("path", shown(target)).caused_by(e);
    }
    Error::io("cannot put the database into place", e).with("path", shown(target))
}

/// Give a file the owner and the permissions that the database had.
fn dress(path: &Path, meta: &ArtifactMeta) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let number = |key: &str, radix| {
        meta.attributes.get(key).and_then(|text| u32::from_str_radix(text, radix).ok())
    };
    let now = std::fs::metadata(path).doing(|| format!("cannot examine: {}", shown(path)))?;
    if let (Some(uid), Some(gid)) = (number("uid", 10), number("gid", 10))
        && (now.uid(), now.gid()) != (uid, gid)
        && let Err(e) = std::os::unix::fs::chown(path, Some(uid), Some(gid))
    {
        problems.push(format!("the owner {uid}:{gid} could not be set: {e}"));
    }
    if let Some(mode) = number("mode", 8) {
        let mode = std::fs::Permissions::from_mode(mode & 0o777);
        if let Err(e) = std::fs::set_permissions(path, mode) {
            problems.push(format!("the permissions could not be set: {e}"));
        }
    }
    Ok(problems)
}
