//! What was put, file by file, for reading it back: paths and digests in a scratch file without a
//! name, so that memory stays small whatever the number of files.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::FileType;
use snapkit_core::context::{Context, Task};
use snapkit_core::error::{Error, IoContext as _, Result};
use snapkit_core::facts::Difference;
use snapkit_core::tree::{EntryPath, Extent};

use super::write::Writer;
use crate::capture::ARTIFACT;
use crate::dirs::Dirs;
use crate::sparse::{self, ContentHasher};
use crate::{attributes, content, dirs};

/// Where the digest of a file goes.
pub(super) type Slot = u64;

/// The digest of a file that was not put.
const NOT_PUT: [u8; 32] = [0; 32];

/// A record is the digest, the path's length, and the path.
const HEAD: usize = 34;

/// How many differences are named.
const NAMED: usize = 100;

/// How much of the ledger is looked at in one piece of work.
const GROUP: usize = 32 << 10;

/// Paths and digests, in the order in which they were put.
#[derive(Debug)]
pub(super) struct Ledger {
    file: File,
}

impl Ledger {
    pub(super) fn new() -> Result<Self> {
        let file = tempfile::tempfile().doing(|| "cannot make a scratch file".to_owned())?;
        Ok(Self { file })
    }

    /// Put a record down in `buffer`, which will be written at `start`.
    pub(super) fn note(buffer: &mut Vec<u8>, start: u64, path: &EntryPath) -> Slot {
        let slot = start + buffer.len() as u64;
        buffer.extend_from_slice(&NOT_PUT);
        // A path has at most 4096 bytes.
        let len = u16::try_from(path.as_bytes().len()).unwrap_or(u16::MAX);
        buffer.extend_from_slice(&len.to_le_bytes());
        buffer.extend_from_slice(path.as_bytes());
        slot
    }

    pub(super) fn append(&self, start: u64, records: &[u8]) -> Result<()> {
        self.file.write_all_at(records, start).doing(|| "cannot write to a scratch file".to_owned())
    }

    /// The file was put, with this digest.
    pub(super) fn fill(&self, slot: Slot, digest: [u8; 32]) -> Result<()> {
        self.file.write_all_at(&digest, slot).doing(|| "cannot write to a scratch file".to_owned())
    }

    /// The records from an offset on, up to about [`GROUP`] bytes, and where the next ones begin.
    fn read(&self, start: u64, end: u64) -> Result<(Vec<Record>, u64)> {
        let len = usize::try_from(end - start).unwrap_or(usize::MAX).min(GROUP + 8192);
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, start)
            .doing(|| "cannot read a scratch file".to_owned())?;
        let mut records = Vec::new();
        let mut at = 0;
        while at < GROUP {
            let Some(head) = bytes.get(at..at + HEAD) else { break };
            let (digest, len) = head.split_at(32);
            let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
            let Some(path) = bytes.get(at + HEAD..at + HEAD + len) else { break };
            let mut expected = NOT_PUT;
            expected.copy_from_slice(digest);
            records.push(Record { path: EntryPath::new(path)?, expected });
            at += HEAD + len;
        }
        if records.is_empty() && start < end {
            return Err(Error::internal("the ledger of a restore cannot be read"));
        }
        Ok((records, start + at as u64))
    }
}

#[derive(Debug)]
struct Record {
    path: EntryPath,
    expected: [u8; 32],
}

/// Read every file that was put from its place, and say which are not what was put.
pub(super) async fn prove(
    cx: &Context,
    writer: &Arc<Writer>,
    end: u64,
    differences: &mut Vec<Difference>,
) -> Result<u64> {
    let mut work: VecDeque<Task<Vec<Difference>>> = VecDeque::new();
    let workers = cx.parallelism().clamp(2, 8);
    let mut start = 0;
    let mut count = 0;
    loop {
        while start < end && work.len() < workers {
            let reader = Arc::clone(writer);
            let (records, next) = cx
                .blocking(move || match &reader.ledger {
                    Some(ledger) => ledger.read(start, end),
                    None => Ok((Vec::new(), end)),
                })
                .await?;
            start = next;
            let (task_cx, writer) = (cx.clone(), Arc::clone(writer));
            work.push_back(cx.spawn(async move {
                let work_cx = task_cx.clone();
                task_cx.blocking(move || compare(&work_cx, &writer.layout.base, &records)).await
            }));
        }
        let Some(task) = work.pop_front() else { return Ok(count) };
        let found = cx.run(task).await?;
        count += found.len() as u64;
        let room = NAMED.saturating_sub(differences.len());
        differences.extend(found.into_iter().take(room));
    }
}

fn compare(cx: &Context, base: &Dirs, records: &[Record]) -> Result<Vec<Difference>> {
    let mut different = Vec::new();
    let mut buffer = Vec::new();
    for record in records.iter().filter(|r| r.expected != NOT_PUT) {
        let found = digest(cx, base, &record.path, &mut buffer);
        let found = match found {
            Ok(found) if found == record.expected => continue,
            Ok(found) => blake3::Hash::from(found).to_hex().to_string(),
            Err(e) if e.is_cancelled() => return Err(e),
            Err(e) => format!("unknown ({})", e.chain()),
        };
        different.push(Difference {
            fact: format!("{ARTIFACT}.content {}", record.path),
            expected: blake3::Hash::from(record.expected).to_hex().to_string(),
            found,
        });
    }
    Ok(different)
}

/// The digest of a file as it is found.
fn digest(cx: &Context, base: &Dirs, path: &EntryPath, buffer: &mut Vec<u8>) -> Result<[u8; 32]> {
    let place = path.as_bytes();
    let cannot = |e: rustix::io::Errno| Error::io("cannot read it back", e.into());
    let (parent, name) = dirs::split(place);
    let dir = base.open(parent).map_err(cannot)?;
    let file: OwnedFd = dirs::read(&*dir, name).map_err(cannot)?;
    let stat = rustix::fs::fstat(&file).map_err(cannot)?;
    if attributes::file_type(&stat) != FileType::RegularFile {
        return Err(Error::corrupt("not a file"));
    }
    let size = attributes::size(&stat);
    let mut extents = None;
    if attributes::may_have_holes(&stat) {
        extents = sparse::extents(&file, size).map_err(cannot)?;
    }
    let mut hasher = ContentHasher::new();
    for extent in extents.unwrap_or_else(|| vec![Extent { offset: 0, len: size }]) {
        let (mut offset, end) = (extent.offset, extent.offset + extent.len);
        while offset < end {
            cx.check()?;
            let len = (end - offset).min(1 << 20);
            buffer.clear();
            if !content::read_at(&file, Extent { offset, len }, buffer, place)? {
                return Err(Error::corrupt("it is shorter than it was a moment ago"));
            }
            hasher.update(offset, buffer);
            offset += len;
        }
    }
    Ok(hasher.finish(size))
}
