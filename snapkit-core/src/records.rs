//! Records as bytes.
//!
//! A sequence of records is a sequence of encoded ones, cut into chunks between records: a chunk has at least
//! [`MIN_RECORD_CHUNK`] bytes, and is [`MEAN_RECORD_CHUNK`] longer on average. It ends where the keyed hash of the
//! last record's place on the first axis, as a fraction, is less than the record's share of that mean, so that what is
//! inserted, deleted or changed moves no other cut. A value above [`MAX_VALUE_IN_CHUNK`] is content of its own.

use bytes::Bytes;

use crate::chunk::ChunkKey;
use crate::codec::{Reader, WriteExt};
use crate::entries::{INLINE_REFS, REF_LEN, decode_list, encode_list};
use crate::error::{Error, Result};
use crate::manifest::ChunkList;
use crate::record::{MAX_AXES, MAX_POSITION};

/// Chunks of records are not shorter, but for the last: 2 KiB.
pub const MIN_RECORD_CHUNK: usize = 2 << 10;

/// By how much they are longer on average: 6 KiB.
pub const MEAN_RECORD_CHUNK: usize = 6 << 10;

/// They are not longer, but for a single record: 64 KiB.
pub const MAX_RECORD_CHUNK: usize = 64 << 10;

/// A longer value is not in the chunk: 16 KiB.
pub const MAX_VALUE_IN_CHUNK: usize = 16 << 10;

/// No chunk of records is longer: one record may be, which has long positions.
pub const LONGEST_RECORD_CHUNK: usize = MAX_RECORD_CHUNK + LONGEST_RECORD;

/// No encoded record is longer.
const LONGEST_RECORD: usize =
    MAX_AXES * (MAX_POSITION + 4) + MAX_VALUE_IN_CHUNK + 2 * INLINE_REFS * REF_LEN + 64;

/// A value as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredValue {
    /// At most [`MAX_VALUE_IN_CHUNK`] bytes.
    Inline(Bytes),
    /// Content of its own.
    Content(ChunkList),
}

impl StoredValue {
    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Inline(value) => value.len() as u64,
            Self::Content(list) => list.size,
        }
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its place on each axis.
    pub positions: Vec<Bytes>,
    /// Its value.
    pub value: StoredValue,
}

const INLINE: u64 = 0;
const CONTENT: u64 = 1;

/// Append a record: a varint length, then the place on each axis, each with a varint length, then 0 and the value, or 1
/// and the list of its content.
pub fn encode_record(record: &StoredRecord, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    scratch.clear();
    for position in &record.positions {
        scratch.put_bytes(position);
    }
    match &record.value {
        StoredValue::Inline(value) => {
            scratch.put_varint(INLINE);
            scratch.extend_from_slice(value);
        }
        StoredValue::Content(list) => {
            scratch.put_varint(CONTENT);
            encode_list(list, scratch);
        }
    }
    out.put_bytes(scratch);
}

/// Read the records of a chunk, which have so many axes.
pub fn decode_records(chunk: &Bytes, axes: usize) -> Result<Vec<StoredRecord>> {
    if !(1..=MAX_AXES).contains(&axes) {
        return Err(Error::corrupt("a sequence of records has impossible axes"));
    }
    let mut outer = Reader::new(chunk, "a record");
    if chunk.len() > LONGEST_RECORD_CHUNK {
        return Err(outer.broken("its chunk is too long"));
    }
    let mut records = Vec::new();
    while !outer.is_empty() {
        let body = outer.bytes(LONGEST_RECORD, "its length")?;
        let mut r = Reader::new(body, "a record");
        let mut positions = Vec::with_capacity(axes);
        for _ in 0..axes {
            positions.push(chunk.slice_ref(r.bytes(MAX_POSITION, "a place")?));
        }
        let value = match r.varint()? {
            INLINE if r.rest().len() <= MAX_VALUE_IN_CHUNK => {
                StoredValue::Inline(chunk.slice_ref(r.rest()))
            }
            INLINE => return Err(r.broken("its value is too long")),
            CONTENT => {
                let list = decode_list(&mut r)?;
                r.end()?;
                StoredValue::Content(list)
            }
            _ => return Err(r.broken("its value is of an unknown kind")),
        };
        records.push(StoredRecord { positions, value });
    }
    if records.is_empty() {
        return Err(Error::corrupt("a chunk of records is empty"));
    }
    Ok(records)
}

/// Gathers encoded records into chunks.
#[derive(Debug, Default)]
pub struct RecordChunker {
    buffer: Vec<u8>,
    scratch: Vec<u8>,
}

impl RecordChunker {
    /// Add a record; what it closes is added to `chunks`.
    pub fn add(&mut self, key: &ChunkKey, record: &StoredRecord, chunks: &mut Vec<Bytes>) {
        let before = self.buffer.len();
        encode_record(record, &mut self.scratch, &mut self.buffer);
        if before > 0 && self.buffer.len() > MAX_RECORD_CHUNK {
            let rest = self.buffer.split_off(before);
            chunks.push(std::mem::replace(&mut self.buffer, rest).into());
        }
        let len = self.scratch.len() as u64;
        let place = record.positions.first().map_or(&[][..], |place| &place[..]);
        if self.buffer.len() >= MIN_RECORD_CHUNK && ends_chunk(key.boundary_hash(place), len) {
            chunks.push(std::mem::take(&mut self.buffer).into());
        }
    }

    /// The last chunk, if there is one.
    #[must_use]
    pub fn finish(self) -> Option<Bytes> {
        (!self.buffer.is_empty()).then(|| self.buffer.into())
    }
}

/// Whether a record of so many bytes is the last of a chunk.
fn ends_chunk(hash: u64, len: u64) -> bool {
    (hash >> 32) < (len << 32) / MEAN_RECORD_CHUNK as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::id::ChunkId;
    use crate::manifest::ChunkRef;
    use crate::secret::Secret;

    fn key() -> ChunkKey {
        ChunkKey::new(&Secret::new([7; 32]))
    }

    fn any_value() -> impl Strategy<Value = StoredValue> {
        let inline = proptest::collection::vec(any::<u8>(), 0..300);
        let content = (1..1000_u32, any::<[u8; 32]>()).prop_map(|(len, id)| ChunkList {
            size: len.into(),
            depth: 0,
            chunks: vec![ChunkRef { id: ChunkId(id), len }],
        });
        prop_oneof![
            inline.prop_map(|value| StoredValue::Inline(value.into())),
            content.prop_map(StoredValue::Content),
        ]
    }

    fn any_record(axes: usize) -> impl Strategy<Value = StoredRecord> {
        let place = proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let places = proptest::collection::vec(place, axes);
        (places, any_value()).prop_map(|(positions, value)| StoredRecord { positions, value })
    }

    fn chunks_of(records: &[StoredRecord]) -> Vec<Bytes> {
        let (key, mut chunker, mut chunks) = (key(), RecordChunker::default(), Vec::new());
        for record in records {
            chunker.add(&key, record, &mut chunks);
        }
        chunks.extend(chunker.finish());
        chunks
    }

    proptest! {
        #[test]
        fn records_read_back(
            (axes, records) in (1..=MAX_AXES).prop_flat_map(|axes| {
                (Just(axes), proptest::collection::vec(any_record(axes), 0..200))
            }),
        ) {
            let mut back = Vec::new();
            for chunk in chunks_of(&records) {
                prop_assert!(chunk.len() <= LONGEST_RECORD_CHUNK);
                back.extend(decode_records(&chunk, axes).unwrap());
            }
            prop_assert_eq!(back, records);
        }

        #[test]
        fn bytes_that_are_no_records_are_refused(bytes: Vec<u8>, axes in 1..=MAX_AXES) {
            if let Ok(records) = decode_records(&bytes.clone().into(), axes) {
                let (mut scratch, mut again) = (Vec::new(), Vec::new());
                for record in &records {
                    encode_record(record, &mut scratch, &mut again);
                }
                prop_assert_eq!(again, bytes);
            }
        }
    }

    fn numbered(n: u32, value: &str) -> StoredRecord {
        let value = format!("{value} of the record with the number {n}: {}", "x".repeat(60));
        let positions = vec![Bytes::from(format!("key:{n:08}"))];
        StoredRecord { positions, value: StoredValue::Inline(value.into()) }
    }

    /// What changes costs the chunk that it is in.
    #[test]
    fn a_change_moves_no_other_cut() {
        let before: Vec<_> = (0..20_000).map(|n| numbered(n * 2, "first")).collect();
        let known: HashSet<Bytes> = chunks_of(&before).into_iter().collect();
        let mean = before.len() * 115 / known.len();
        assert!((4 << 10..12 << 10).contains(&mean), "{mean}");
        let new = |records: &[StoredRecord]| {
            chunks_of(records).into_iter().filter(|chunk| !known.contains(chunk)).count()
        };
        assert_eq!(new(&before), 0);
        let mut changed = before.clone();
        changed[777] = numbered(1554, "another, much longer value");
        assert_eq!(new(&changed), 1);
        let mut more = before.clone();
        more.insert(10_000, numbered(19_999, "new"));
        assert!(new(&more) <= 2, "{}", new(&more));
        let mut less = before;
        less.remove(5000);
        assert!(new(&less) <= 2, "{}", new(&less));
    }
}
