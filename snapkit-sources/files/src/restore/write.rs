//! Making what a tree holds, below a stage. Everything here blocks, and runs away from the tasks.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Result};
use snapkit_core::tree::{EntryKind, EntryPath, Extent, TreeEntry};

use super::apply::{self, Rights};
use super::ledger::{Ledger, Slot};
use super::place::{Layout, occupied};
use super::told::{Right, Told};
use crate::attributes;
use crate::check::{corrupt, length};
use crate::content::stretches;
use crate::dirs;
use crate::pattern::Filter;
use crate::sparse::ContentHasher;

/// Writes below the stages of a layout. Shared by all that write at once.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) layout: Layout,
    pub(super) told: Told,
    pub(super) rights: Rights,
    /// Whether what is there may be replaced.
    pub(super) overwrite: bool,
    /// What is damaged does not come.
    pub(super) allow_damage: bool,
    /// Where the digests of what is put are kept, if it is to be read back.
    pub(super) ledger: Option<Ledger>,
    /// Which names are those of databases.
    pub(super) filter: Filter,
}

/// Something small that can be made at once.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) entry: TreeEntry,
    pub(super) bytes: Bytes,
    pub(super) slot: Option<Slot>,
}

/// Why something was not made.
enum Fault {
    /// This one thing cannot be had here; the rest goes on.
    Single(Error),
    /// The restore cannot go on.
    Fatal(Error),
}

/// The directory that was written to last.
#[derive(Debug, Default)]
struct Cursor {
    place: usize,
    parent: Vec<u8>,
    dir: Option<Arc<OwnedFd>>,
}

fn cannot(what: &str, path: &EntryPath, errno: Errno) -> Error {
    Error::io(format!("cannot {what}"), errno.into()).with("path", path)
}

/// Sort out what a failure to make something means.
fn judge(what: &str, path: &EntryPath, errno: Errno) -> Fault {
    let e = cannot(what, path, errno);
    match errno {
        // The target's file system cannot hold such a thing, or such a name, or takes two names for
        // one; or the directory could not be made for one of these reasons.
        Errno::EXIST
        | Errno::ILSEQ
        | Errno::INVAL
        | Errno::NAMETOOLONG
        | Errno::PERM
        | Errno::NOTSUP
        | Errno::NOENT
        | Errno::MLINK
        | Errno::FBIG => Fault::Single(e),
        Errno::NOTDIR | Errno::LOOP => {
            Fault::Fatal(corrupt("an entry lies in something that is not a directory", path))
        }
        _ => Fault::Fatal(e),
    }
}

impl Writer {
    /// The open directory that a path lies in, below its stage, and the name in it.
    fn parent<'a>(
        &'a self,
        cursor: &mut Cursor,
        path: &'a EntryPath,
    ) -> Result<(Arc<OwnedFd>, &'a [u8]), Fault> {
        let outside = || Fault::Fatal(corrupt("an entry lies outside of the roots", path));
        let place = self.layout.find(path).ok_or_else(outside)?;
        let (stage, rel) = self.layout.staged(place, path.as_bytes());
        let (parent, name) = dirs::split(rel);
        if let Some(dir) = &cursor.dir
            && cursor.place == place
            && cursor.parent == parent
        {
            return Ok((Arc::clone(dir), name));
        }
        let dir =
            stage.dirs.open(parent).map_err(|e| judge("open the directory above", path, e))?;
        *cursor = Cursor { place, parent: parent.to_vec(), dir: Some(Arc::clone(&dir)) };
        Ok((dir, name))
    }

    /// Count what could not be made, or pass on what ends the restore.
    fn settle(&self, path: &EntryPath, result: Result<(), Fault>) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(Fault::Single(e)) => {
                self.told.problem(path, &e);
                Ok(())
            }
            Err(Fault::Fatal(e)) => Err(e),
        }
    }

    /// Refuse what would have to replace something. Each path comes with whether a directory goes
    /// there, which may be there already.
    pub(super) fn refuse_occupied(&self, wanted: &[(EntryPath, bool)]) -> Result<()> {
        for (path, directory) in wanted {
            let (parent, name) = dirs::split(path.as_bytes());
            let found =
                self.layout.base.open(parent).and_then(|parent| {
                    rustix::fs::statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW)
                });
            match found {
                Err(Errno::NOENT) => {}
                Ok(stat) if *directory && attributes::file_type(&stat) == FileType::Directory => {}
                Ok(_) | Err(Errno::NOTDIR) => {
                    return Err(occupied(&self.layout.path(path.as_bytes())));
                }
                Err(e) => return Err(cannot("examine what is at", path, e)),
            }
        }
        Ok(())
    }

    /// Make directories, in their order, for their owner only until they are closed.
    pub(super) fn make_dirs(&self, paths: &[EntryPath]) -> Result<()> {
        let mut cursor = Cursor::default();
        for path in paths {
            let made = self.parent(&mut cursor, path).and_then(|(dir, name)| {
                // Without a name it is a root that stays in its place, or the top.
                if name.is_empty() {
                    return Ok(());
                }
                rustix::fs::mkdirat(&*dir, name, Mode::RWXU)
                    .map_err(|e| judge("make the directory", path, e))
            });
            self.settle(path, made)?;
        }
        Ok(())
    }

    /// Make small things.
    pub(super) fn write_group(&self, cx: &Context, group: Vec<Ready>) -> Result<()> {
        let mut cursor = Cursor::default();
        for ready in group {
            cx.check()?;
            let made = self.write_one(&mut cursor, &ready);
            self.settle(&ready.entry.path, made)?;
        }
        Ok(())
    }

    fn write_one(&self, cursor: &mut Cursor, ready: &Ready) -> Result<(), Fault> {
        let entry = &ready.entry;
        let (dir, name) = self.parent(cursor, &entry.path)?;
        match &entry.kind {
            EntryKind::File { .. } => {
                let file = create(&dir, name, entry)?;
                let written = LargeFile::new(file, ready.slot, entry.clone())
                    .and_then(|mut file| {
                        file.write(&ready.bytes)?;
                        file.close(self)
                    })
                    .map_err(Fault::Fatal);
                if written.is_err() {
                    // Never leave a part of a file.
                    let _ = rustix::fs::unlinkat(&*dir, name, AtFlags::empty());
                }
                return written;
            }
            EntryKind::Symlink { target } => {
                rustix::fs::symlinkat(target.as_slice(), &*dir, name)
                    .map_err(|e| judge("make the symbolic link", &entry.path, e))?;
            }
            EntryKind::Fifo => make_node(&dir, name, entry, FileType::Fifo, 0)?,
            EntryKind::Socket => make_node(&dir, name, entry, FileType::Socket, 0)?,
            EntryKind::CharDevice { major, minor } => {
                let device = rustix::fs::makedev(*major, *minor);
                if !self.device(&dir, name, entry, FileType::CharacterDevice, device)? {
                    return Ok(());
                }
            }
            EntryKind::BlockDevice { major, minor } => {
                let device = rustix::fs::makedev(*major, *minor);
                if !self.device(&dir, name, entry, FileType::BlockDevice, device)? {
                    return Ok(());
                }
            }
            _ => {
                let e = Error::internal("an entry of this kind is not made here");
                return Err(Fault::Fatal(e.with("path", &entry.path)));
            }
        }
        apply::to_name(&dir, name, entry, self.rights, &self.told);
        Ok(())
    }

    /// Make a device, if it may be made.
    fn device(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        entry: &TreeEntry,
        kind: FileType,
        device: rustix::fs::Dev,
    ) -> Result<bool, Fault> {
        self.told.right(Right::Device, self.rights.given, &entry.path);
        if self.rights.given {
            make_node(dir, name, entry, kind, device)?;
        }
        Ok(self.rights.given)
    }

    /// Make further names of files that were made before.
    pub(super) fn link_all(&self, links: &[TreeEntry]) -> Result<()> {
        let (mut from, mut to) = (Cursor::default(), Cursor::default());
        for entry in links {
            let linked = self.link(&mut from, &mut to, entry);
            self.settle(&entry.path, linked)?;
        }
        Ok(())
    }

    fn link(&self, from: &mut Cursor, to: &mut Cursor, entry: &TreeEntry) -> Result<(), Fault> {
        let EntryKind::HardLink { target } = &entry.kind else { return Ok(()) };
        let (dir, name) = self.parent(to, &entry.path)?;
        let (target_dir, target_name) = self.parent(from, target)?;
        let stat = rustix::fs::statat(&*target_dir, target_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| judge("find the file that has this other name", target, e))?;
        if attributes::file_type(&stat) != FileType::RegularFile {
            let what = "a hard link names something that is not a file";
            return Err(Fault::Fatal(corrupt(what, &entry.path)));
        }
        match rustix::fs::linkat(&*target_dir, target_name, &*dir, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(e @ (Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::NOTSUP)) => {
                self.copy(&target_dir, target_name, &dir, name, entry, target)?;
                let e = cannot("make a second name, so it is a copy", target, e);
                Err(Fault::Single(e))
            }
            Err(e) => Err(judge("make a second name", &entry.path, e)),
        }
    }

    /// Where no second name is possible, the content is there twice.
    fn copy(
        &self,
        from_dir: &OwnedFd,
        from: &[u8],
        to_dir: &OwnedFd,
        to: &[u8],
        entry: &TreeEntry,
        target: &EntryPath,
    ) -> Result<(), Fault> {
        let fatal = |e: std::io::Error| {
            Fault::Fatal(Error::io("cannot copy a file", e).with("path", &entry.path))
        };
        let file = dirs::read(from_dir, from).map_err(|e| judge("open", target, e))?;
        let stat = rustix::fs::fstat(&file).map_err(|e| judge("examine", target, e))?;
        let kind = EntryKind::File { size: attributes::size(&stat), extents: None };
        let mut like = attributes::entry(entry.path.clone(), kind, &stat);
        if let Ok(xattrs) = attributes::XattrReader::new().of_file(&file, target.as_bytes()) {
            like.xattrs = xattrs;
        }
        let made = create(to_dir, to, &like)?;
        let mut made = std::fs::File::from(made);
        std::io::copy(&mut std::fs::File::from(file), &mut made).map_err(fatal)?;
        apply::to_file(&made, &like, self.rights, &self.told);
        Ok(())
    }

    /// Give directories their attributes, once nothing more is put into them: deepest first.
    pub(super) fn close_dirs(&self, entries: &[TreeEntry]) -> Result<()> {
        let mut cursor = Cursor::default();
        for entry in entries {
            let closed = self.parent(&mut cursor, &entry.path).and_then(|(dir, name)| {
                let opened = dirs::list(&*dir, name)
                    .map_err(|e| judge("open the directory", &entry.path, e))?;
                apply::to_file(&opened, entry, self.rights, &self.told);
                Ok(())
            });
            self.settle(&entry.path, closed)?;
        }
        Ok(())
    }

    /// Create a file that will be written piece by piece. `None` if there can be no such file here.
    pub(super) fn begin_large(
        &self,
        entry: TreeEntry,
        slot: Option<Slot>,
    ) -> Result<Option<LargeFile>> {
        let mut cursor = Cursor::default();
        let created = self
            .parent(&mut cursor, &entry.path)
            .and_then(|(dir, name)| create(&dir, name, &entry));
        match created {
            Ok(file) => LargeFile::new(file, slot, entry).map(Some),
            Err(fault) => self.settle(&entry.path, Err(fault)).map(|()| None),
        }
    }

    /// Remove a file whose content did not arrive whole.
    pub(super) fn discard(&self, path: &EntryPath) {
        if let Ok((dir, name)) = self.parent(&mut Cursor::default(), path) {
            let _ = rustix::fs::unlinkat(&*dir, name, AtFlags::empty());
        }
    }
}

fn create(dir: &OwnedFd, name: &[u8], entry: &TreeEntry) -> Result<OwnedFd, Fault> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| judge("make the file", &entry.path, e))
}

fn make_node(
    dir: &OwnedFd,
    name: &[u8],
    entry: &TreeEntry,
    kind: FileType,
    device: rustix::fs::Dev,
) -> Result<(), Fault> {
    rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, device)
        .map_err(|e| judge("make the special file", &entry.path, e))
}

/// A file being written.
#[derive(Debug)]
pub(super) struct LargeFile {
    file: OwnedFd,
    entry: TreeEntry,
    slot: Option<(Slot, ContentHasher)>,
    /// The stretches that are still to be written, the next one last.
    left: Vec<Extent>,
    written: u64,
}

impl LargeFile {
    fn new(file: OwnedFd, slot: Option<Slot>, entry: TreeEntry) -> Result<Self> {
        let mut left = stretches(&entry.kind);
        left.reverse();
        if let EntryKind::File { size, extents: Some(_) } = entry.kind {
            rustix::fs::ftruncate(&file, size)
                .map_err(|e| cannot("set the length", &entry.path, e))?;
        }
        let slot = slot.map(|slot| (slot, ContentHasher::new()));
        Ok(Self { file, entry, slot, left, written: 0 })
    }

    pub(super) fn path(&self) -> &EntryPath {
        &self.entry.path
    }

    /// Write the next bytes of its content.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let Some(extent) = self.left.last_mut() else {
                return length(&self.entry, self.written + bytes.len() as u64);
            };
            let len = usize::try_from(extent.len).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(len);
            if let Some((_, hasher)) = &mut self.slot {
                hasher.update(extent.offset, now);
            }
            write_at(&self.file, now, extent.offset)
                .map_err(|e| cannot("write", &self.entry.path, e))?;
            extent.offset += len as u64;
            extent.len -= len as u64;
            if extent.len == 0 {
                self.left.pop();
            }
            self.written += len as u64;
            bytes = later;
        }
        Ok(())
    }

    /// The content is complete: give the file its attributes.
    pub(super) fn close(self, writer: &Writer) -> Result<()> {
        length(&self.entry, self.written)?;
        if let Some((slot, hasher)) = self.slot
            && let Some(ledger) = &writer.ledger
            && let EntryKind::File { size, .. } = self.entry.kind
        {
            ledger.fill(slot, hasher.finish(size))?;
        }
        apply::to_file(&self.file, &self.entry, writer.rights, &writer.told);
        Ok(())
    }
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
