//! Two sequences of records side by side, both in order.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;

use super::live::{digest_of, read_live};
use super::{ArtifactDiff, Change, EntryChange, OnChange};
use crate::artifact::{ArtifactName, ByteStream, Chunking};
use crate::context::Context;
use crate::engine::cut::guarded;
use crate::engine::read::ChunkReader;
use crate::engine::records::StoredRecords;
use crate::error::Result;
use crate::record::{Record, RecordReader, RecordValue};
use crate::records::{MAX_VALUE_IN_CHUNK, StoredRecord, StoredValue};
use crate::tree::escape;

/// A sequence, from its beginning.
pub(super) enum Side {
    Stored(StoredRecords, VecDeque<StoredRecord>),
    Live(Box<dyn RecordReader>, VecDeque<Record>),
}

/// A record of either.
enum One {
    Stored(StoredRecord),
    Live(Record),
}

impl One {
    fn positions(&self) -> &[Bytes] {
        match self {
            Self::Stored(record) => &record.positions,
            Self::Live(record) => &record.positions,
        }
    }

    fn place(&self) -> &[u8] {
        self.positions().first().map_or(&[], |place| place)
    }
}

impl Side {
    pub(super) fn stored(records: StoredRecords) -> Self {
        Self::Stored(records, VecDeque::new())
    }

    pub(super) fn live(records: Box<dyn RecordReader>) -> Self {
        Self::Live(records, VecDeque::new())
    }

    async fn next(&mut self, cx: &Context) -> Result<Option<One>> {
        match self {
            Self::Stored(records, batch) => {
                while batch.is_empty() {
                    match cx.run(records.next_stored()).await? {
                        Some((_, more)) => batch.extend(more),
                        None => return Ok(None),
                    }
                }
                Ok(batch.pop_front().map(One::Stored))
            }
            Self::Live(records, batch) => {
                while batch.is_empty() {
                    match guarded(cx.run(records.next_batch(cx))).await? {
                        Some(more) => batch.extend(more),
                        None => return Ok(None),
                    }
                }
                Ok(batch.pop_front().map(One::Live))
            }
        }
    }
}

/// How a value is told from others: what is short by itself, what is long by the names of its chunks.
#[derive(PartialEq, Eq)]
enum Known {
    Short(Bytes),
    Long(u64, [u8; 32]),
}

impl Known {
    fn len(&self) -> u64 {
        match self {
            Self::Short(value) => value.len() as u64,
            Self::Long(len, _) => *len,
        }
    }
}

async fn know(cx: &Context, reader: &Arc<ChunkReader>, one: One) -> Result<Known> {
    let body: ByteStream = match one {
        One::Stored(StoredRecord { value: StoredValue::Inline(value), .. }) => {
            return Ok(Known::Short(value));
        }
        One::Stored(StoredRecord { value: StoredValue::Content(list), .. }) => {
            return Ok(Known::Long(list.size, digest_of(cx, reader, &list).await?));
        }
        One::Live(Record { value: RecordValue::Inline(value), .. }) => {
            if value.len() <= MAX_VALUE_IN_CHUNK {
                return Ok(Known::Short(value));
            }
            Box::pin(stream::iter([Ok(value)]))
        }
        One::Live(Record { value: RecordValue::Parts(parts), .. }) => parts,
    };
    let live = read_live(cx, reader, body, Chunking::Content, None, None).await?;
    Ok(Known::Long(live.bytes, live.digest))
}

/// Compare two sequences, telling each record that is new, gone or another. Gives the bytes of the values of the second.
pub(super) async fn compare(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    name: &ArtifactName,
    (mut before, mut after): (Side, Side),
    diff: &mut ArtifactDiff,
    on_change: &mut OnChange<'_>,
) -> Result<u64> {
    let (mut old, mut new) = (before.next(cx).await?, after.next(cx).await?);
    let mut bytes = 0;
    loop {
        let order = match (&old, &new) {
            (None, None) => return Ok(bytes),
            (Some(old), Some(new)) => old.place().cmp(new.place()),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
        };
        let taken = (
            if order.is_le() { old.take() } else { None },
            if order.is_ge() { new.take() } else { None },
        );
        if taken.0.is_some() {
            old = before.next(cx).await?;
        }
        let place = taken.0.as_ref().or(taken.1.as_ref()).map(|one| escape(one.place()));
        let same_places = match &taken {
            (Some(a), Some(b)) => a.positions() == b.positions(),
            _ => false,
        };
        let was = match taken.0 {
            Some(one) => Some(know(cx, reader, one).await?),
            None => None,
        };
        let is_new = taken.1.is_some();
        let is = match taken.1 {
            Some(one) => Some(know(cx, reader, one).await?),
            None => None,
        };
        // Only now: a long value is read to its end before the next record is looked at.
        if is_new {
            new = after.next(cx).await?;
        }
        bytes += is.as_ref().map_or(0, Known::len);
        let change = match (&was, &is) {
            (Some(was), Some(is)) if same_places && was == is => continue,
            (Some(_), Some(_)) => {
                diff.changed += 1;
                Change::Content
            }
            (Some(_), None) => {
                diff.removed += 1;
                Change::Removed
            }
            (None, _) => {
                diff.added += 1;
                Change::Added
            }
        };
        let len = |known: Option<Known>| known.map_or(0, |known| known.len());
        let told = EntryChange {
            path: place.unwrap_or_default(),
            change,
            before: len(was),
            after: len(is),
        };
        on_change(name, &told)?;
    }
}
