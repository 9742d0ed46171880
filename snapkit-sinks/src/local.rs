//! A directory as a flat store of objects: an object is a file of its key's name.
//!
//! A put writes a hidden temporary file beside the object's place, makes its content durable, gives
//! it its name in one step, and makes the names durable, those of all directories above it included.
//! So an object is there whole or not at all, whenever the machine stops. Hidden names are no keys:
//! a temporary file is never listed, and one left behind is removed when it is a day old.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use rustix::io::Errno;
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::id::to_hex;
use snapkit_core::key::Key;
use snapkit_core::sink::{MAX_OBJECT, ObjectStream, Put, PutMode, Sink, SinkInfo};

use crate::disk::{Disk, DiskKind, DiskStat};
use crate::real::{RealDisk, existing_part};
use crate::walk::Walk;

/// What the names of temporary files begin with; 32 hexadecimal digits follow.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// A temporary file this old belongs to no writer that still lives.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// How many names are looked at for stale temporary files when a sink is opened.
const SWEEP_NAMES: u32 = 100_000;

/// How often a put begins again when the directory is removed under its hands.
const ATTEMPTS: u32 = 32;

/// Requests that a disk is given at once.
const CONCURRENCY: usize = 4;

/// A local directory as a sink.
///
/// Directories are made with mode 0700 and files with 0600, whatever the umask. Symbolic links below
/// the directory are not followed, and a listing that meets one fails. Directories that a delete
/// leaves empty are removed.
pub struct LocalSink<D: Disk = RealDisk> {
    root: Arc<Root<D>>,
    info: SinkInfo,
}

/// The directory, and what to call it in errors.
pub(crate) struct Root<D> {
    pub(crate) disk: D,
    path: PathBuf,
}

impl LocalSink {
    /// Open a directory that exists.
    ///
    /// `no-repository` if it does not exist, `invalid-argument` if it is something else,
    /// `permission-denied` if it may not be read.
    pub async fn open(cx: &Context, path: impl Into<PathBuf>) -> Result<Self> {
        let path = absolute(&path.into())?;
        let opened = path.clone();
        let disk = cx.run(cx.blocking(move || open_root(&opened))).await?;
        Self::with_disk(cx, disk, path).await
    }

    /// Open a directory, and make it first where it is missing, with the directories above it: all of
    /// them private (mode 0700), and durable when this returns. One that exists is left as it is.
    pub async fn create(cx: &Context, path: impl Into<PathBuf>) -> Result<Self> {
        let path = absolute(&path.into())?;
        let made = path.clone();
        let disk = cx.run(cx.blocking(move || create_root(&made))).await?;
        Self::with_disk(cx, disk, path).await
    }
}

impl<D: Disk> LocalSink<D> {
    /// Use a disk of one's own. `path` only says where it is, in errors and in [`SinkInfo`].
    pub async fn with_disk(cx: &Context, disk: D, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let info = SinkInfo { location: path.display().to_string(), concurrency: CONCURRENCY };
        let root = Arc::new(Root { disk, path });
        let (sweeper, clock) = (Arc::clone(&root), cx.clone());
        cx.run(cx.blocking(move || {
            // A courtesy: whatever prevents it prevents nothing else.
            if let Err(e) = sweep(&sweeper, &clock) {
                tracing::debug!("cannot look for stale temporary files: {}", e.chain());
            }
            Ok(())
        }))
        .await?;
        Ok(Self { root, info })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        cx: &Context,
        work: impl FnOnce(&Root<D>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let root = Arc::clone(&self.root);
        cx.run(cx.blocking(move || work(&root))).await
    }
}

impl<D: Disk> fmt::Debug for LocalSink<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalSink").field(&self.root.path).finish()
    }
}

#[async_trait]
impl<D: Disk> Sink for LocalSink<D> {
    fn info(&self) -> &SinkInfo {
        &self.info
    }

    async fn put(&self, cx: &Context, key: &Key, data: Bytes, mode: PutMode) -> Result<Put> {
        let (key, inner) = (key.clone(), cx.clone());
        self.blocking(cx, move |root| root.put(&inner, &key, &data, mode)).await
    }

    async fn get(&self, cx: &Context, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        let key = key.clone();
        self.blocking(cx, move |root| root.get(&key, range)).await
    }

    fn list(&self, cx: &Context, prefix: Option<&Key>) -> ObjectStream {
        let start = prefix.map(|p| PathBuf::from(p.as_str())).unwrap_or_default();
        let walk = Walk::new(Arc::clone(&self.root), start);
        let cx = cx.clone();
        stream::unfold(Some(walk), move |walk| {
            let cx = cx.clone();
            async move {
                let mut walk = walk?;
                let step = cx.blocking(move || {
                    let (found, more) = walk.batch();
                    Ok((found, more.then_some(walk)))
                });
                Some(cx.run(step).await.unwrap_or_else(|e| (vec![Err(e)], None)))
            }
        })
        .flat_map(stream::iter)
        .boxed()
    }

    async fn delete(&self, cx: &Context, key: &Key) -> Result<()> {
        let key = key.clone();
        self.blocking(cx, move |root| root.delete(&key)).await
    }
}

impl<D: Disk> Root<D> {
    fn put(&self, cx: &Context, key: &Key, data: &[u8], mode: PutMode) -> Result<Put> {
        if data.len() as u64 > MAX_OBJECT {
            return Err(Error::new(
                Reason::LimitExceeded,
                format!("an object has at most {MAX_OBJECT} bytes, not {}", data.len()),
            )
            .with("key", key));
        }
        let place = Path::new(key.as_str());
        let directory = place.parent().unwrap_or(Path::new(""));
        for _ in 0..ATTEMPTS {
            cx.check()?;
            if mode == PutMode::Create
                && let Some(outcome) = self.already_there(place)?
            {
                return Ok(outcome);
            }
            let temporary = directory.join(format!("{TEMPORARY}{}", to_hex(&cx.random::<16>()?)));
            let Some(file) = self.write_temporary(directory, &temporary, data)? else { continue };
            match self.publish(&file, &temporary, place, mode) {
                Ok(()) => {
                    self.fsync_names(directory)?;
                    return Ok(Put::Stored);
                }
                Err(e) => {
                    // The error that matters is the first one.
                    drop(self.disk.remove_file(&temporary));
                    // Another put was quicker: begin again, which makes sure that its object lasts.
                    if !(mode == PutMode::Create && e.reason() == Reason::AlreadyExists) {
                        return Err(e);
                    }
                }
            }
        }
        Err(Error::new(
            Reason::Unavailable,
            "cannot store the object: its directory keeps vanishing",
        )
        .with("path", self.path.join(directory).display()))
    }

    /// `AlreadyThere` is a promise like `Stored`: whoever put the object may have died between giving
    /// it its name and making that last.
    fn already_there(&self, place: &Path) -> Result<Option<Put>> {
        match self.disk.stat(place) {
            Ok(DiskStat { kind: DiskKind::File, .. }) => {}
            Ok(DiskStat { kind: DiskKind::Symlink, .. }) => return Err(self.is_symlink(place)),
            Ok(_) => return Err(self.in_the_way(place)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Ok(None),
            Err(e) => return Err(self.fail("examine the object", place, e)),
        }
        match self.fsync_names(place.parent().unwrap_or(Path::new(""))) {
            Ok(()) => Ok(Some(Put::AlreadyThere)),
            // Deleted in the meantime, with its directory.
            Err(e) if e.reason() == Reason::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Write a new file, and its directories where they are missing. `None`: begin again.
    fn write_temporary(
        &self,
        directory: &Path,
        temporary: &Path,
        data: &[u8],
    ) -> Result<Option<D::File>> {
        match make_dirs(&self.disk, directory) {
            Ok(()) => {}
            Err((_, e)) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err((path, e)) => return Err(self.fail("create the directory", &path, e)),
        }
        match self.disk.create_file(temporary, data) {
            Ok(file) => Ok(Some(file)),
            // Between making the directory and using it a delete found it empty; or the name is taken.
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) =>
            {
                Ok(None)
            }
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => Err(self.in_the_way(directory)),
            Err(e) => {
                drop(self.disk.remove_file(temporary));
                Err(self.fail("write a new file", temporary, e))
            }
        }
    }

    fn publish(&self, file: &D::File, temporary: &Path, place: &Path, mode: PutMode) -> Result<()> {
        self.disk.fsync_file(file).map_err(|e| self.fail("flush the new file", temporary, e))?;
        let replace = mode == PutMode::Overwrite;
        self.disk.publish(temporary, place, replace).map_err(|e| match e.kind() {
            io::ErrorKind::IsADirectory => self.in_the_way(place),
            _ => self.fail("give the new file its name", place, e),
        })
    }

    /// Make the names in a directory last, and those of it and of all directories above it: any of
    /// them may be new, made by this put or by a writer that died.
    fn fsync_names(&self, directory: &Path) -> Result<()> {
        directory.ancestors().try_for_each(|dir| {
            self.disk.fsync_dir(dir).map_err(|e| self.fail("flush the directory", dir, e))
        })
    }

    fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        let place = Path::new(key.as_str());
        let (file, stat) = self.disk.open(place).map_err(|e| match e.kind() {
            // A shorter key is an object: then there are no longer ones.
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Error::new(Reason::NotFound, "there is no such object")
                    .with("path", self.path.join(place).display())
            }
            // A directory that is one is a mistake of whoever set this up; an object is damage.
            _ if place.components().count() > 1
                && self.disk.stat(place).is_ok_and(|s| matches!(s.kind, DiskKind::Symlink)) =>
            {
                Error::corrupt("a symbolic link stands in its place, and none is followed here")
                    .with("path", self.path.join(place).display())
            }
            _ => self.fail("open the object", place, e),
        })?;
        match stat.kind {
            DiskKind::File => {}
            DiskKind::Directory => {
                return Err(Error::new(
                    Reason::NotFound,
                    "there is no such object, but a directory",
                )
                .with("path", self.path.join(place).display()));
            }
            DiskKind::Symlink | DiskKind::Other => {
                return Err(Error::corrupt("something that is no object stands in its place")
                    .with("path", self.path.join(place).display()));
            }
        }
        let whole = range.is_none();
        let range = range.unwrap_or(0..stat.size);
        let describe = |e: Error| {
            e.with("path", self.path.join(place).display())
                .with("range", format_args!("{}..{}", range.start, range.end))
        };
        if range.start > range.end {
            return Err(describe(Error::invalid("the range ends before it begins")));
        }
        if range.end > stat.size {
            return Err(describe(Error::corrupt(format!(
                "the object has only {} bytes",
                stat.size
            ))));
        }
        if whole && stat.size > MAX_OBJECT {
            return Err(describe(Error::corrupt("the object is larger than any that is written")));
        }
        if range.end - range.start > MAX_OBJECT {
            return Err(describe(Error::new(
                Reason::LimitExceeded,
                format!("at most {MAX_OBJECT} bytes are read at once"),
            )));
        }
        match self.disk.read(&file, range.clone()) {
            Ok(bytes) => Ok(bytes.into()),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(describe(Error::corrupt("the object was cut short while it was read")))
            }
            Err(e) => Err(self.fail("read the object", place, e)),
        }
    }

    fn delete(&self, key: &Key) -> Result<()> {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
        let place = Path::new(key.as_str());
        let directory = place.parent().unwrap_or(Path::new(""));
        match self.disk.remove_file(place) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), NotFound | NotADirectory | IsADirectory) => {}
            Err(e) => return Err(self.fail("delete the object", place, e)),
        }
        // Also when it was gone before: a delete that failed at this point is being repeated.
        match self.disk.fsync_dir(directory) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), NotFound | NotADirectory) => return Ok(()),
            Err(e) => return Err(self.fail("flush the directory", directory, e)),
        }
        for dir in directory.ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
            if self.disk.remove_dir(dir).is_err() {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn fail(&self, doing: &str, path: &Path, error: io::Error) -> Error {
        let at = self.path.join(path);
        if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
            return self.is_symlink(path);
        }
        if error.raw_os_error() == Some(Errno::STALE.raw_os_error()) {
            return Error::new(Reason::Unavailable, "the directory of the repository is gone")
                .with("path", self.path.display())
                .caused_by(error);
        }
        if error.kind() == io::ErrorKind::NotADirectory {
            return self.in_the_way(path);
        }
        Error::io(format!("cannot {doing}"), error).with("path", at.display())
    }

    pub(crate) fn is_symlink(&self, path: &Path) -> Error {
        Error::new(
            Reason::Unsupported,
            "a symbolic link is in the way, and none is followed inside a repository; \
             move the files in its place, or mount them there",
        )
        .with("path", self.path.join(path).display())
    }

    fn in_the_way(&self, path: &Path) -> Error {
        Error::new(Reason::AlreadyExists, "something that is no object is in the way")
            .with("path", self.path.join(path).display())
    }
}

/// Make a directory and those above it where they are missing. On an error, where it happened.
fn make_dirs<D: Disk>(disk: &D, path: &Path) -> Result<(), (PathBuf, io::Error)> {
    let mut at = PathBuf::new();
    for name in path {
        at.push(name);
        match disk.create_dir(&at) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err((at, e)),
        }
    }
    Ok(())
}

/// Remove temporary files that writers left behind a day ago or longer, and nothing else.
fn sweep<D: Disk>(root: &Arc<Root<D>>, cx: &Context) -> Result<()> {
    let mut walk = Walk::new(Arc::clone(root), PathBuf::new());
    let mut budget = SWEEP_NAMES;
    while let Some(path) = walk.next_temporary(&mut budget)? {
        cx.check()?;
        let stale = |stat: DiskStat| cx.now().since(stat.modified) > STALE;
        if root.disk.stat(&path).is_ok_and(stale)
            && let Err(e) = root.disk.remove_file(&path)
        {
            tracing::debug!("cannot remove a stale temporary file: {e}");
        }
    }
    Ok(())
}

pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).map_err(|e| {
        Error::new(Reason::InvalidArgument, "not a path").with("path", path.display()).caused_by(e)
    })?;
    // With a slash at its end it is the same place, of which the same is remembered.
    Ok(path.components().collect())
}

fn open_root(path: &Path) -> Result<RealDisk> {
    RealDisk::open(path).map_err(|e| {
        let error = match e.kind() {
            io::ErrorKind::NotFound => {
                let (exists, missing) = existing_part(path);
                let first = exists.join(missing.iter().next().unwrap_or_default());
                let error = Error::new(Reason::NoRepository, "there is no such directory");
                if first == path { error } else { error.with("missing", first.display()) }
            }
            io::ErrorKind::NotADirectory => Error::invalid("this is not a directory"),
            _ => return Error::io("cannot read the directory", e).with("path", path.display()),
        };
        error.with("path", path.display()).caused_by(e)
    })
}

fn create_root(path: &Path) -> Result<RealDisk> {
    let (base, missing) = existing_part(path);
    let cannot = |doing: &str, at: &Path, e: io::Error| {
        let error = match e.kind() {
            io::ErrorKind::NotADirectory => Error::invalid("this is not a directory").caused_by(e),
            _ => Error::io(format!("cannot {doing}"), e),
        };
        error.with("path", at.display())
    };
    if !missing.as_os_str().is_empty() {
        let disk = RealDisk::open(&base).map_err(|e| cannot("read the directory", &base, e))?;
        make_dirs(&disk, &missing)
            .map_err(|(at, e)| cannot("create the directory", &base.join(at), e))?;
        for dir in missing.ancestors().skip(1) {
            disk.fsync_dir(dir).map_err(|e| cannot("flush the directory", &base.join(dir), e))?;
        }
    }
    // An earlier attempt may have been cut off before it came to this. What is above was there before,
    // and may belong to somebody who lets nobody read it.
    for dir in base.ancestors().skip(1) {
        if let Ok(disk) = RealDisk::open(dir) {
            drop(disk.fsync_dir(Path::new("")));
        }
    }
    open_root(path)
}
