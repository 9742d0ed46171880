//! A walk through the directories of a local sink that holds one open directory per level.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use snapkit_core::error::Result;
use snapkit_core::key::Key;
use snapkit_core::sink::ObjectEntry;

use crate::disk::{Disk, DiskEntries, DiskKind};
use crate::local::{Root, TEMPORARY};

/// Objects are handed out in batches, so that a thread is borrowed once per batch.
const BATCH: usize = 512;

pub(crate) struct Walk<D: Disk> {
    root: Arc<Root<D>>,
    start: Option<PathBuf>,
    levels: Vec<(PathBuf, DiskEntries)>,
}

impl<D: Disk> Walk<D> {
    /// Begin at a directory; one that is not there is empty.
    pub(crate) fn new(root: Arc<Root<D>>, start: PathBuf) -> Self {
        Self { root, start: Some(start), levels: Vec::new() }
    }

    /// The next objects, and whether there may be more. An error is the last item.
    pub(crate) fn batch(&mut self) -> (Vec<Result<ObjectEntry>>, bool) {
        let mut found = Vec::new();
        while found.len() < BATCH {
            match self.next_object() {
                Ok(Some(object)) => found.push(Ok(object)),
                Ok(None) => return (found, false),
                Err(e) => {
                    found.push(Err(e));
                    return (found, false);
                }
            }
        }
        (found, true)
    }

    fn next_object(&mut self) -> Result<Option<ObjectEntry>> {
        while let Some((path, kind)) = self.next_name()? {
            let Some(key) = path.to_str().and_then(|p| Key::new(p).ok()) else { continue };
            match kind {
                DiskKind::Directory => self.descend(path)?,
                DiskKind::File => match self.root.disk.stat(&path) {
                    Ok(stat) => {
                        let modified = Some(stat.modified);
                        return Ok(Some(ObjectEntry { key, size: stat.size, modified }));
                    }
                    // Deleted since its name was read.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(self.root.fail("examine the object", &path, e)),
                },
                // It may stand for a directory full of objects: silence would hide them.
                DiskKind::Symlink if path.components().count() == 1 => {
                    return Err(self.root.is_symlink(&path));
                }
                // Whoever asks for it is told what it is.
                DiskKind::Symlink | DiskKind::Other => {
                    return Ok(Some(ObjectEntry { key, size: 0, modified: None }));
                }
            }
        }
        Ok(None)
    }

    /// The next temporary file, whoever it belongs to, among the next `budget` names.
    pub(crate) fn next_temporary(&mut self, budget: &mut u32) -> Result<Option<PathBuf>> {
        let is_temporary = |name: &OsStr| {
            name.as_encoded_bytes().strip_prefix(TEMPORARY.as_bytes()).is_some_and(|hex| {
                hex.len() == 32 && hex.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            })
        };
        while *budget > 0
            && let Some((path, kind)) = self.next_name()?
        {
            *budget -= 1;
            match kind {
                DiskKind::File if path.file_name().is_some_and(is_temporary) => {
                    return Ok(Some(path));
                }
                DiskKind::Directory if path.to_str().is_some_and(|p| Key::new(p).is_ok()) => {
                    self.descend(path)?;
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn next_name(&mut self) -> Result<Option<(PathBuf, DiskKind)>> {
        if let Some(start) = self.start.take() {
            self.descend(start)?;
        }
        while let Some((path, entries)) = self.levels.last_mut() {
            match entries.next() {
                Some(Ok(entry)) => return Ok(Some((path.join(&entry.name), entry.kind))),
                Some(Err(e)) => return Err(self.root.fail("list the directory", path, e)),
                None => drop(self.levels.pop()),
            }
        }
        Ok(None)
    }

    fn descend(&mut self, path: PathBuf) -> Result<()> {
        match self.root.disk.list(&path) {
            Ok(entries) => self.levels.push((path, entries)),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(self.root.fail("list the directory", &path, e)),
        }
        Ok(())
    }
}
