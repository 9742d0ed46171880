//! What is no directory, as an entry. Nothing is opened.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Stat};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::tree::{Content, EntryKind, EntryPath, TreeEntry, TreeItem};

use super::Walker;
use crate::plan::Databases;
use crate::{attributes, database, error};

impl Walker {
    /// Anything but a directory.
    pub(super) fn leaf(&mut self, dir: &OwnedFd, path: EntryPath, stat: &Stat) {
        match self.examine(dir, &path, stat) {
            Ok((entry, content)) => self.give(TreeItem::Entry(entry, content)),
            Err(e) if e.reason() == Reason::NotFound => self.vanished(dir, path, e),
            Err(e) => self.problem(path, e),
        }
    }

    fn examine(
        &mut self,
        dir: &OwnedFd,
        path: &EntryPath,
        stat: &Stat,
    ) -> Result<(TreeEntry, Content)> {
        let place = path.as_bytes();
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match attributes::file_type(stat) {
            FileType::RegularFile => return self.file(dir, path, stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, path.file_name(), Vec::new())
                    .map_err(|e| error::at("read the symbolic link", place, e))?;
                EntryKind::Symlink { target: target.into_bytes() }
            }
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket => EntryKind::Socket,
            FileType::CharacterDevice => EntryKind::CharDevice { major, minor },
            FileType::BlockDevice => EntryKind::BlockDevice { major, minor },
            _ => {
                return Err(Error::new(Reason::Unsupported, "an unknown kind of file")
                    .with("path", error::show(place)));
            }
        };
        let mut entry = attributes::entry(path.clone(), kind, stat);
        entry.xattrs = self.xattrs.of_name(dir, path.file_name(), place)?;
        Ok((entry, Content::None))
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        path: &EntryPath,
        stat: &Stat,
    ) -> Result<(TreeEntry, Content)> {
        let place = path.as_bytes();
        let identity = attributes::identity(stat);
        let several = attributes::links(stat) > 1;
        if several
            && self.plan.capturing
            && self.plan.databases == Databases::Routed
            && self.plan.filter.is_database(path.file_name())
        {
            self.plan.note_linked_database(path.clone(), attributes::links(stat));
        }
        if several && let Some(target) = self.links.first(identity)? {
            let kind = EntryKind::HardLink { target };
            return Ok((attributes::entry(path.clone(), kind, stat), Content::None));
        }
        let size = attributes::size(stat);
        let kind = EntryKind::File { size, extents: None };
        let mut entry = attributes::entry(path.clone(), kind, stat);
        if self.plan.databases != Databases::Plain && self.plan.filter.is_database(path.file_name())
        {
            if self.plan.databases == Databases::Refused {
                return Err(Error::new(
                    Reason::Unsupported,
                    "by its name this is a database, and nothing that reads databases is at hand; \
                     exclude it, or change `databases`",
                )
                .with("path", error::show(place)));
            }
            if size == 0 {
                database::refuse_emptied(dir, path)?;
            }
            entry.ctime = database::ctime(dir, path.file_name(), stat);
        }
        entry.xattrs = self.xattrs.of_name(dir, path.file_name(), place)?;
        if several {
            let left = attributes::links(stat).saturating_sub(1);
            self.links.add(identity, path, left)?;
            self.plan.note_linked(identity.1);
        }
        Ok((entry, if size > 0 { Content::Deferred } else { Content::None }))
    }
}
