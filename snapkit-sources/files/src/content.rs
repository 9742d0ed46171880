//! Reading files that the walk came upon.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;
use snapkit_core::artifact::{ByteStream, MAX_PIECE};
use snapkit_core::context::{Context, Task, Timestamp};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::tree::{
    EntryKind, EntryPath, Extent, LoadedFile, OpenedFile, SMALL_FILE, TreeEntry,
};

use crate::attributes::{self, XattrReader};
use crate::database::{self, DatabaseImage, DatabaseReader};
use crate::plan::{Databases, Plan};
use crate::{dirs, error, sparse, walked};

/// How often a file that changes is read again.
const RETRIES: u32 = 3;

/// How often it is looked for a directory that is not where it was.
const LOOKS: u32 = 3;

/// How many pieces of a large file are read ahead.
const AHEAD: usize = 2;

/// The longest tick of the clock that file systems stamp changes with. A file that changed less than
/// this ago may change once more under the same stamp.
const TICK: Duration = Duration::from_millis(12);

/// How far a file system's clock may be ahead of ours for a stamp to count as fresh.
const SKEW: Duration = Duration::from_secs(1);

/// Reads files of a plan.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) plan: Arc<Plan>,
    pub(crate) reader: Option<Arc<dyn DatabaseReader>>,
    pub(crate) opened: Arc<AtomicU64>,
}

/// What came of an attempt to read a file.
enum Attempt<T> {
    Done(T),
    /// It changed meanwhile, or so shortly before that a later change could not be told.
    Changed,
}

/// An open file with what it was like when it was opened.
struct Opened {
    file: OwnedFd,
    stat: Stat,
    entry: TreeEntry,
}

impl Contents {
    /// Read small files: all of a call in one piece of blocking work, and once more those that
    /// changed under it.
    pub(crate) async fn load(
        self: &Arc<Self>,
        cx: &Context,
        entries: &[TreeEntry],
    ) -> Vec<Result<LoadedFile>> {
        let mut answers: Vec<Option<Result<LoadedFile>>> = entries.iter().map(|_| None).collect();
        let mut todo = Vec::with_capacity(entries.len());
        for (i, entry) in entries.iter().enumerate() {
            if self.is_routed(entry) {
                match self.load_database(cx, entry).await {
                    Ok(Some(loaded)) => answers[i] = Some(Ok(loaded)),
                    Ok(None) => todo.push((i, entry.clone())),
                    Err(e) => answers[i] = Some(Err(e)),
                }
            } else {
                todo.push((i, entry.clone()));
            }
        }
        for attempt in 0..=RETRIES {
            if todo.is_empty() {
                break;
            }
            let newest = todo.iter().map(|(_, e)| e.ctime).max().unwrap_or_default();
            if attempt > 0 || is_fresh(newest, cx.now()) {
                // Cancellation is noticed by the work below.
                cx.sleep(TICK).await.unwrap_or_default();
            }
            let (this, files, now, work_cx) =
                (Arc::clone(self), std::mem::take(&mut todo), cx.now(), cx.clone());
            let work = move || Ok(this.load_all(&work_cx, files, now, attempt == RETRIES));
            match cx.blocking(work).await {
                Ok(results) => {
                    for (i, entry, result) in results {
                        match result {
                            Ok(Attempt::Done(loaded)) => answers[i] = Some(Ok(loaded)),
                            Ok(Attempt::Changed) => todo.push((i, entry)),
                            Err(e) => answers[i] = Some(Err(e)),
                        }
                    }
                }
                Err(e) => {
                    for answer in answers.iter_mut().filter(|a| a.is_none()) {
                        *answer = Some(Err(Error::new(e.reason(), e.chain())));
                    }
                    break;
                }
            }
        }
        let late = |(entry, answer): (&TreeEntry, Option<_>)| {
            answer.unwrap_or_else(|| Err(error::changed(entry.path.as_bytes())))
        };
        entries.iter().zip(answers).map(late).collect()
    }

    fn load_all(
        &self,
        cx: &Context,
        files: Vec<(usize, TreeEntry)>,
        now: Timestamp,
        last: bool,
    ) -> Vec<(usize, TreeEntry, Result<Attempt<LoadedFile>>)> {
        let mut xattrs = None;
        let mut parent: Option<(Vec<u8>, Arc<OwnedFd>)> = None;
        let each = |(i, entry): (usize, TreeEntry)| {
            let result = cx
                .check()
                .and_then(|()| self.open_entry(&entry, &mut parent, &mut xattrs))
                .and_then(|opened| match opened {
                    Some(opened) if last || !touched(&entry, &opened, now) => read_small(opened),
                    _ => Ok(Attempt::Changed),
                });
            (i, entry, result)
        };
        files.into_iter().map(each).collect()
    }

    /// Open one file for reading as a stream.
    pub(crate) async fn open(
        self: &Arc<Self>,
        cx: &Context,
        entry: &TreeEntry,
    ) -> Result<OpenedFile> {
        if self.is_routed(entry)
            && let Some((entry, image)) = self.read_database(cx, entry).await?
        {
            let body = checked(image, entry.path.as_bytes().to_vec());
            return Ok(OpenedFile { entry, body });
        }
        for attempt in 0..=RETRIES {
            if attempt > 0 || is_fresh(entry.ctime, cx.now()) {
                cx.sleep(TICK).await?;
            }
            let (this, wanted, now) = (Arc::clone(self), entry.clone(), cx.now());
            let work = move || {
                let opened = this.open_entry(&wanted, &mut None, &mut None)?;
                let Some(mut opened) = opened else { return Ok(None) };
                if attempt < RETRIES && touched(&wanted, &opened, now) {
                    return Ok(None);
                }
                find_extents(&mut opened)?;
                // Only advice: without it the file is read all the same.
                #[cfg(any(target_os = "linux", target_os = "android"))]
                let _ = rustix::fs::fadvise(&opened.file, 0, None, rustix::fs::Advice::Sequential);
                Ok(Some(opened))
            };
            if let Some(opened) = cx.blocking(work).await? {
                let entry = opened.entry.clone();
                return Ok(OpenedFile { entry, body: stream(cx.clone(), opened) });
            }
        }
        Err(error::changed(entry.path.as_bytes()))
    }

    /// Open a file and bring its entry up to date. `None` if another file stands at one of the names
    /// of a file that has several.
    fn open_entry(
        &self,
        entry: &TreeEntry,
        last_parent: &mut Option<(Vec<u8>, Arc<OwnedFd>)>,
        xattrs: &mut Option<XattrReader>,
    ) -> Result<Option<Opened>> {
        let place = entry.path.as_bytes();
        let (parent, name) = dirs::split(place);
        let directory = match last_parent {
            Some((path, dir)) if path == parent => Arc::clone(dir),
            _ => {
                let dir = self.directory(entry)?;
                *last_parent = Some((parent.to_vec(), Arc::clone(&dir)));
                dir
            }
        };
        let file = match dirs::read(&*directory, name) {
            // The directory may have been replaced as a whole, and be open still.
            Err(Errno::NOENT) => {
                self.plan.dirs.forget();
                *last_parent = None;
                let directory = self.directory(entry)?;
                let again = dirs::read(&*directory, name);
                again.map_err(|e| self.gone("open", entry, e))?
            }
            opened => opened.map_err(|e| self.gone("open", entry, e))?,
        };
        self.opened.fetch_add(1, Ordering::Relaxed);
        let stat = rustix::fs::fstat(&file).map_err(|e| error::at("examine", place, e))?;
        if attributes::file_type(&stat) != FileType::RegularFile {
            return Err(error::changed(place));
        }
        if attributes::identity(&stat).1 != entry.inode && self.plan.is_linked(entry.inode) {
            return Ok(None);
        }
        let mut fresh = entry.clone();
        attributes::refresh(&mut fresh, &stat);
        fresh.kind = EntryKind::File { size: attributes::size(&stat), extents: None };
        if fresh.ctime != entry.ctime || fresh.inode != entry.inode {
            let xattrs = xattrs.get_or_insert_with(XattrReader::new);
            fresh.xattrs = xattrs.of_file(&file, place)?;
        }
        Ok(Some(Opened { file, stat, entry: fresh }))
    }

    /// The directory that a file was listed in, by its path. Where that leads elsewhere for a moment, it is the other
    /// names in it that would be missing without a word.
    fn directory(&self, entry: &TreeEntry) -> Result<Arc<OwnedFd>> {
        let place = entry.path.as_bytes();
        let (parent, _) = dirs::split(place);
        let mut fault = None;
        for attempt in 0..LOOKS {
            if attempt > 0 {
                self.plan.dirs.forget();
            }
            fault = match self.plan.dirs.open(parent) {
                Ok(dir) => {
                    let found = walked::identity(&dir);
                    if found.is_none_or(|found| self.plan.walked().is_same(parent, found)) {
                        return Ok(dir);
                    }
                    None
                }
                Err(e) => Some(e),
            };
        }
        match fault {
            // It was moved, or something else stands in its place.
            None => Err(error::changed(place)),
            Some(Errno::NOENT) if self.plan.capturing && !self.plan.walked().is_removed(parent) => {
                Err(error::changed(place))
            }
            Some(e) => Err(self.gone("open", entry, e)),
        }
    }

    /// A file or a directory above it that is no longer there is one that vanished; but where other
    /// names refer to it, their content would be missing without a word.
    fn gone(&self, what: &str, entry: &TreeEntry, errno: Errno) -> Error {
        let place = entry.path.as_bytes();
        match errno {
            Errno::NOENT if !self.plan.is_linked(entry.inode) => {
                if self.plan.capturing {
                    self.plan.walked().note_lost(entry.path.clone(), Some(entry.inode));
                }
                error::vanished(place)
            }
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO => error::changed(place),
            e => error::at(what, place, e),
        }
    }

    fn is_routed(&self, entry: &TreeEntry) -> bool {
        self.plan.databases != Databases::Plain
            && self.plan.filter.is_database(entry.path.file_name())
    }

    /// The image of a database, or `None` if it is a plain file after all.
    async fn read_database(
        self: &Arc<Self>,
        cx: &Context,
        entry: &TreeEntry,
    ) -> Result<Option<(TreeEntry, DatabaseImage)>> {
        let place = entry.path.as_bytes();
        let Some(reader) = &self.reader else {
            return Err(Error::new(Reason::Unsupported, "nothing that reads databases is at hand")
                .with("path", error::show(place)));
        };
        // Its state is taken before it is read: what changes later then differs from it.
        let (this, wanted) = (Arc::clone(self), entry.clone());
        let fresh = cx.blocking(move || this.examine_database(&wanted)).await?;
        let mut path = b"/".to_vec();
        path.extend_from_slice(place);
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        self.opened.fetch_add(1, Ordering::Relaxed);
        match reader.read(cx, &path).await? {
            Some(image) => {
                let mut fresh = fresh;
                fresh.kind = EntryKind::File { size: image.size, extents: None };
                Ok(Some((fresh, image)))
            }
            None => {
                let (this, wanted) = (Arc::clone(self), entry.clone());
                cx.blocking(move || this.refuse_sidecars(&wanted)).await?;
                Ok(None)
            }
        }
    }

    /// What is known only when all has been walked.
    pub(crate) fn about_the_whole(&self) -> Vec<(String, Error)> {
        let replaced = self.plan.replaced().into_iter();
        let place = |(path, e): (Vec<u8>, Error)| {
            let place = error::show(&path);
            (snapkit_core::tree::escape(&path), e.with("path", place))
        };
        replaced.map(place).chain(self.returned()).chain(self.linked_databases()).collect()
    }

    /// What was not there when it was to be read, and is there again.
    fn returned(&self) -> Vec<(String, Error)> {
        self.plan.dirs.forget();
        let lost = self.plan.walked().lost();
        let is_back = |(path, inode): &(EntryPath, Option<u64>)| {
            let (parent, name) = dirs::split(path.as_bytes());
            let found = self
                .plan
                .dirs
                .open(parent)
                .and_then(|dir| rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW));
            found.is_ok_and(|stat| match inode {
                // A file of the same name may be another, and younger.
                Some(inode) => attributes::identity(&stat).1 == *inode,
                None => attributes::file_type(&stat) == FileType::Directory,
            })
        };
        let away = "it was away while it was to be read, and is missing although it is there";
        let problem = |(path, _): (EntryPath, Option<u64>)| {
            let e = Error::new(Reason::SourceChanged, away);
            (path.display(), e.with("path", error::show(path.as_bytes())))
        };
        lost.into_iter().filter(is_back).map(problem).collect()
    }

    /// Databases that have several names. SQLite keeps beside the name by which it opened one what it has not
    /// written into it yet, and nobody can see from another name that there is something.
    fn linked_databases(&self) -> Vec<(String, Error)> {
        let problem = |(path, names): (EntryPath, u64)| {
            let what = format!(
                "this database has {names} names (hard links): what a program has written by another one may be missing; \
                 give it one name, or exclude it"
            );
            let e = Error::new(Reason::Unsupported, what);
            (path.display(), e.with("path", error::show(path.as_bytes())))
        };
        self.plan.linked_databases().into_iter().map(problem).collect()
    }

    fn examine_database(&self, entry: &TreeEntry) -> Result<TreeEntry> {
        let place = entry.path.as_bytes();
        let name = entry.path.file_name();
        let directory = self.directory(entry)?;
        let stat = rustix::fs::statat(&*directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.gone("examine", entry, e))?;
        if attributes::file_type(&stat) != FileType::RegularFile {
            return Err(error::changed(place));
        }
        let mut fresh = entry.clone();
        attributes::refresh(&mut fresh, &stat);
        fresh.ctime = database::ctime(&directory, name, &stat);
        if fresh.ctime != entry.ctime {
            fresh.xattrs = XattrReader::new().of_name(&directory, name, place)?;
        }
        Ok(fresh)
    }

    /// The walk left out what looked like parts of this database; now that it is none, something
    /// would be missing without a word.
    fn refuse_sidecars(&self, entry: &TreeEntry) -> Result<()> {
        let place = entry.path.as_bytes();
        let name = entry.path.file_name();
        let directory = self.directory(entry)?;
        match database::left_out_beside(&directory, name).first() {
            None => Ok(()),
            Some((sidecar, _)) => Err(Error::new(
                Reason::Unsupported,
                format!(
                    "this is not a database, but `{}` beside it was left out as a part of one; \
                     change `databases` so that it does not match",
                    snapkit_core::tree::escape(sidecar)
                ),
            )
            .with("path", error::show(place))),
        }
    }

    async fn load_database(
        self: &Arc<Self>,
        cx: &Context,
        entry: &TreeEntry,
    ) -> Result<Option<LoadedFile>> {
        let Some((entry, image)) = self.read_database(cx, entry).await? else { return Ok(None) };
        if image.size > SMALL_FILE {
            return Err(grown(entry.path.as_bytes()));
        }
        let mut bytes = Vec::new();
        let mut body = checked(image, entry.path.as_bytes().to_vec());
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(Some(LoadedFile { entry, bytes: bytes.into() }))
    }
}

fn grown(place: &[u8]) -> Error {
    Error::new(Reason::LimitExceeded, "the file is no longer small")
        .with("path", error::show(place))
}

fn is_fresh(ctime: Timestamp, now: Timestamp) -> bool {
    ctime <= now + SKEW && now < ctime + TICK
}

/// Whether a file changed after the walk, and so recently that one more change might not show.
fn touched(entry: &TreeEntry, opened: &Opened, now: Timestamp) -> bool {
    let ctime = attributes::ctime(&opened.stat);
    ctime != entry.ctime && is_fresh(ctime, now)
}

fn find_extents(opened: &mut Opened) -> Result<()> {
    if !attributes::may_have_holes(&opened.stat) {
        return Ok(());
    }
    let size = attributes::size(&opened.stat);
    let extents = sparse::extents(&opened.file, size)
        .map_err(|e| error::at("find the holes", opened.entry.path.as_bytes(), e))?;
    opened.entry.kind = EntryKind::File { size, extents };
    Ok(())
}

/// Whether the file is still as it was when it was opened.
fn is_unchanged(file: &OwnedFd, stat: &Stat, place: &[u8]) -> Result<bool> {
    let now = rustix::fs::fstat(file).map_err(|e| error::at("examine", place, e))?;
    Ok(attributes::same_content(stat, &now))
}

fn read_small(mut opened: Opened) -> Result<Attempt<LoadedFile>> {
    if attributes::size(&opened.stat) > SMALL_FILE {
        return Err(grown(opened.entry.path.as_bytes()));
    }
    find_extents(&mut opened)?;
    let place = opened.entry.path.as_bytes();
    let mut bytes =
        Vec::with_capacity(usize::try_from(opened.entry.kind.content_len()).unwrap_or(0));
    for extent in stretches(&opened.entry.kind) {
        if !read_at(&opened.file, extent, &mut bytes, place)? {
            return Ok(Attempt::Changed);
        }
    }
    if !is_unchanged(&opened.file, &opened.stat, place)? {
        return Ok(Attempt::Changed);
    }
    Ok(Attempt::Done(LoadedFile { entry: opened.entry, bytes: bytes.into() }))
}

/// What of a file is to be read.
pub(crate) fn stretches(kind: &EntryKind) -> Vec<Extent> {
    match kind {
        EntryKind::File { extents: Some(extents), .. } => extents.clone(),
        EntryKind::File { size: 1.., extents: None } => {
            vec![Extent { offset: 0, len: kind.content_len() }]
        }
        _ => Vec::new(),
    }
}

/// Append a stretch of a file. `false` if the file ends before it does.
pub(crate) fn read_at(
    file: &OwnedFd,
    extent: Extent,
    bytes: &mut Vec<u8>,
    place: &[u8],
) -> Result<bool> {
    let len = usize::try_from(extent.len).map_err(|_| grown(place))?;
    let start = bytes.len();
    let end = start + len;
    bytes.reserve_exact(len);
    while bytes.len() < end {
        let offset = extent.offset + (bytes.len() - start) as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(bytes), offset) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(error::at("read", place, e)),
        }
    }
    // There was room for more.
    bytes.truncate(end);
    Ok(true)
}

/// A file on its way, read a little ahead.
struct Reading {
    cx: Context,
    file: Arc<OwnedFd>,
    stat: Stat,
    place: Vec<u8>,
    /// What is still to be read, in order.
    left: VecDeque<Extent>,
    ahead: VecDeque<Task<Bytes>>,
    ended: bool,
}

fn stream(cx: Context, opened: Opened) -> ByteStream {
    let reading = Reading {
        cx,
        left: stretches(&opened.entry.kind).into(),
        file: Arc::new(opened.file),
        stat: opened.stat,
        place: opened.entry.path.as_bytes().to_vec(),
        ahead: VecDeque::new(),
        ended: false,
    };
    Box::pin(futures_util::stream::unfold(reading, |mut reading| async move {
        let item = reading.next().await?;
        Some((item, reading))
    }))
}

impl Reading {
    async fn next(&mut self) -> Option<Result<Bytes>> {
        if self.ended {
            return None;
        }
        while self.ahead.len() < AHEAD && self.read_on() {}
        let Some(piece) = self.ahead.pop_front() else {
            self.ended = true;
            let (file, stat, place) = (Arc::clone(&self.file), self.stat, self.place.clone());
            let unchanged = move || is_unchanged(&file, &stat, &place);
            return match self.cx.blocking(unchanged).await {
                Ok(true) => None,
                Ok(false) => Some(Err(error::changed(&self.place))),
                Err(e) => Some(Err(e)),
            };
        };
        self.read_on();
        let piece = piece.await;
        self.ended = piece.is_err();
        Some(piece)
    }

    /// Begin to read one more piece, if there is one.
    fn read_on(&mut self) -> bool {
        let Some(first) = self.left.front_mut() else { return false };
        let extent = Extent { offset: first.offset, len: first.len.min(MAX_PIECE as u64) };
        first.offset += extent.len;
        first.len -= extent.len;
        if first.len == 0 {
            self.left.pop_front();
        }
        let (cx, file, place) = (self.cx.clone(), Arc::clone(&self.file), self.place.clone());
        self.ahead.push_back(self.cx.spawn(async move {
            cx.check()?;
            cx.blocking(move || {
                let mut bytes = Vec::new();
                match read_at(&file, extent, &mut bytes, &place)? {
                    true => Ok(bytes.into()),
                    false => Err(error::changed(&place)),
                }
            })
            .await
        }));
        true
    }
}

/// The bytes of an image, which must be as many as it says.
fn checked(image: DatabaseImage, place: Vec<u8>) -> ByteStream {
    let state = (image.body, image.size, place, false);
    Box::pin(futures_util::stream::unfold(state, |(mut body, left, place, ended)| async move {
        if ended {
            return None;
        }
        let wrong = || {
            Error::internal("the reader of databases gave another length than it said")
                .with("path", error::show(&place))
        };
        match body.next().await {
            Some(Ok(piece)) => match left.checked_sub(piece.len() as u64) {
                Some(left) => Some((Ok(piece), (body, left, place, false))),
                None => Some((Err(wrong()), (body, 0, place, true))),
            },
            Some(Err(e)) => Some((Err(e), (body, left, place, true))),
            None if left > 0 => Some((Err(wrong()), (body, 0, place, true))),
            None => None,
        }
    }))
}
