//! Files with several names: which of them came first, until the others have come.
//!
//! A tree of backups may have millions of them whose other names come much later. So of each only numbers are held, and
//! the paths lie one after another, in memory as long as they are few, and then in scratch space.

use std::collections::HashMap;

use snapkit_core::context::Context;
use snapkit_core::error::Result;
use snapkit_core::scratch::{Room, ScratchWriter};
use snapkit_core::tree::EntryPath;

use crate::attributes::Identity;

/// Bytes of paths that are held in memory: 16 MiB.
const IN_MEMORY: usize = 16 << 20;

/// The first name of a file.
#[derive(Clone, Copy, Debug)]
struct First {
    /// Where its path is: among those in memory, or behind them in scratch space.
    at: u64,
    len: u32,
    /// How many names are still to come.
    left: u32,
}

/// The first names of files that have others.
#[derive(Debug)]
pub(super) struct Links {
    cx: Context,
    firsts: HashMap<Identity, First>,
    paths: Vec<u8>,
    more: Option<ScratchWriter>,
    most: usize,
}

impl Links {
    pub(super) fn new(cx: &Context) -> Self {
        Self {
            cx: cx.clone(),
            firsts: HashMap::new(),
            paths: Vec::new(),
            more: None,
            most: IN_MEMORY,
        }
    }

    /// A file has been met for the first time, and so many names of it may follow.
    pub(super) fn add(&mut self, file: Identity, path: &EntryPath, left: u64) -> Result<()> {
        let bytes = path.as_bytes();
        let at = match &mut self.more {
            None if self.paths.len() + bytes.len() <= self.most => {
                self.paths.extend_from_slice(bytes);
                (self.paths.len() - bytes.len()) as u64
            }
            more => {
                let writer = match more {
                    Some(writer) => writer,
                    None => more.insert(ScratchWriter::begin(&self.cx, &Room::new(u64::MAX))?),
                };
                let at = self.paths.len() as u64 + writer.len();
                writer.write(bytes)?;
                at
            }
        };
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.firsts.insert(file, First { at, len, left: u32::try_from(left).unwrap_or(u32::MAX) });
        Ok(())
    }

    /// The first name of a file of which another one has been met.
    pub(super) fn first(&mut self, file: Identity) -> Result<Option<EntryPath>> {
        let Some(first) = self.firsts.get_mut(&file) else { return Ok(None) };
        first.left = first.left.saturating_sub(1);
        let First { at, len, left } = *first;
        if left == 0 {
            self.firsts.remove(&file);
        }
        let in_memory = usize::try_from(at).unwrap_or(usize::MAX);
        let path = match (self.paths.get(in_memory..), &mut self.more) {
            (Some(rest), _) if !rest.is_empty() => {
                rest.get(..len as usize).unwrap_or_default().to_vec()
            }
            (_, Some(more)) => more.read(at - self.paths.len() as u64, len as usize)?,
            (_, None) => Vec::new(),
        };
        EntryPath::new(path).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_names_are_found_wherever_they_lie() {
        let mut links = Links { most: 5000, ..Links::new(&Context::system()) };
        let path = |n: u64| {
            EntryPath::new(format!(
                "a directory/{n}/x{}",
                "x".repeat(usize::try_from(n % 90).unwrap())
            ))
            .unwrap()
        };
        for n in 0..3000 {
            assert_eq!(links.first((1, n)).unwrap(), None);
            links.add((1, n), &path(n), 2).unwrap();
        }
        assert!(links.more.is_some());
        // Twice, in their order and in another.
        for n in (0..3000).chain((0..3000).rev()) {
            assert_eq!(links.first((1, n)).unwrap(), Some(path(n)));
        }
        assert!(links.firsts.is_empty() && links.first((1, 7)).unwrap().is_none());
    }
}
