//! Putting a stream back as a file: beside its place, durable, then moved there in one step.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, IoContext as _, Reason, Result};
use snapkit_core::facts::Standing;
use snapkit_core::shell;
use snapkit_core::source::{Restore, RestoreReport, RestoreRequest};
use tempfile::NamedTempFile;

use crate::capture::Tally;

/// Bytes that are read back at once.
const READ: usize = 256 << 10;

/// A stream on its way into a file. The file that was there before, if it may be replaced, is kept.
#[derive(Debug)]
pub struct FileRestore {
    place: PathBuf,
    directory: PathBuf,
    overwrite: bool,
    recovery: Option<PathBuf>,
    read_back: bool,
    staged: Option<NamedTempFile>,
}

impl FileRestore {
    /// Examine the directory. `target-not-empty` if the file is there and may not be replaced.
    pub async fn prepare(
        cx: &Context,
        file: &ArtifactName,
        directory: PathBuf,
        request: &RestoreRequest,
    ) -> Result<Self> {
        let this = Self {
            place: directory.join(file.as_str()),
            directory,
            overwrite: request.overwrite,
            recovery: request.recovery.clone(),
            read_back: request.read_back,
            staged: None,
        };
        let (place, directory, overwrite) =
            (this.place.clone(), this.directory.clone(), this.overwrite);
        cx.blocking(move || {
            let what = || format!("cannot examine {}", place.display());
            fs::metadata(&directory).doing(|| format!("cannot examine {}", directory.display()))?;
            match fs::symlink_metadata(&place) {
                Ok(meta) if meta.is_dir() => {
                    let e = Error::new(
                        Reason::AlreadyExists,
                        "a directory stands where a file has to be",
                    );
                    Err(e.with("path", place.display()))
                }
                Ok(_) if !overwrite => Err(occupied(&place)),
                Ok(_) => Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Err(e) => Err(Error::io(what(), e)),
            }
        })
        .await?;
        Ok(this)
    }

    /// Move what was staged to its place; what was there is kept, and how it comes back is told.
    fn place(&self, staged: NamedTempFile) -> Result<Vec<String>> {
        let what = || format!("cannot put {} in its place", self.place.display());
        let mut undo = Vec::new();
        if self.overwrite && fs::symlink_metadata(&self.place).is_ok() {
            let name = self.place.file_name().unwrap_or_default();
            let kept = match &self.recovery {
                Some(recovery) => recovery.join(name),
                None => self.directory.join(format!("{}.before", name.to_string_lossy())),
            };
            keep(&self.place, &kept)?;
            undo.push(format!("mv -f -- {} {}", shell::path(&kept), shell::path(&self.place)));
        }
        let (_, path) = staged.keep().map_err(|e| Error::io(what(), e.error))?;
        let flags = if self.overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let moved = renameat_with(CWD, &path, CWD, &self.place, flags).map_err(|errno| {
            drop(fs::remove_file(&path));
            match errno {
                rustix::io::Errno::EXIST => occupied(&self.place),
                errno => Error::io(what(), errno.into()),
            }
        });
        moved?;
        File::open(&self.directory).and_then(|dir| dir.sync_all()).doing(what)?;
        Ok(undo)
    }
}

fn occupied(place: &Path) -> Error {
    Error::new(Reason::TargetNotEmpty, "something is there already").with("path", place.display())
}

/// A second name for what is replaced, or a copy of it where the file system has none.
fn keep(place: &Path, kept: &Path) -> Result<()> {
    let what = || format!("cannot keep {} as {}", place.display(), kept.display());
    if fs::symlink_metadata(kept).is_ok() {
        let e = Error::new(Reason::AlreadyExists, "an old state is kept there already");
        return Err(e.with("path", kept.display()));
    }
    match fs::hard_link(place, kept) {
        Ok(()) => {}
        Err(_) => {
            fs::copy(place, kept).and_then(|_| File::open(kept)?.sync_all()).doing(what)?;
        }
    }
    Ok(())
}

fn read_back(place: &Path, cx: &Context) -> Result<Tally> {
    let what = || format!("cannot read back {}", place.display());
    let mut file = File::open(place).doing(what)?;
    let (mut tally, mut buffer) = (Tally::default(), vec![0; READ]);
    loop {
        cx.check()?;
        match file.read(&mut buffer).doing(what)? {
            0 => return Ok(tally),
            n => tally.take_in(&buffer[..n]),
        }
    }
}

#[async_trait]
impl Restore for FileRestore {
    async fn put(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()> {
        if self.staged.is_some() {
            return Err(Error::invalid("a stream is one artifact").with("artifact", &meta.name));
        }
        let mut body = body.into_bytes()?;
        let directory = self.directory.clone();
        let what = format!("cannot write in {}", directory.display());
        let mut staged = cx
            .blocking(move || {
                tempfile::Builder::new()
                    .prefix(".snapkit-")
                    .tempfile_in(&directory)
                    .doing(|| format!("cannot write in {}", directory.display()))
            })
            .await?;
        while let Some(piece) = cx.run(body.try_next()).await? {
            let what = what.clone();
            staged = cx
                .blocking(move || staged.write_all(&piece).doing(|| what).map(|()| staged))
                .await?;
        }
        staged = cx
            .blocking(move || staged.as_file().sync_all().doing(|| what).map(|()| staged))
            .await?;
        self.staged = Some(staged);
        Ok(())
    }

    async fn finish(mut self: Box<Self>, cx: &Context) -> Result<RestoreReport> {
        let staged =
            self.staged.take().ok_or_else(|| Error::invalid("nothing was put to be restored"))?;
        let inner = cx.clone();
        cx.blocking(move || {
            let mut report = RestoreReport::default();
            report.undo = self.place(staged)?;
            if self.read_back {
                match read_back(&self.place, &inner) {
                    Ok(tally) => report.facts = tally.facts(Standing::Observed),
                    // The restore is done, and how to undo it must be told.
                    Err(e) => {
                        report.problems.push(format!("it could not be read back: {}", e.chain()));
                    }
                }
            }
            report.problem_count = report.problems.len() as u64;
            Ok(report)
        })
        .await
    }

    async fn abort(mut self: Box<Self>, cx: &Context) -> Result<()> {
        let staged = self.staged.take();
        cx.blocking(move || {
            drop(staged);
            Ok(())
        })
        .await
    }
}
