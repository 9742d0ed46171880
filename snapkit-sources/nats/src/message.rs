//! A message of a stream, and its form as a record.
//!
//! A record's places are the sequence number and the time, each in 8 bytes that sort as they do. Its value is the length of
//! the subject (2 bytes) and of the headers (4 bytes), both little-endian, then subject, headers and body.

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use snapkit_core::record::{MAX_INLINE_VALUE, Record, RecordValue};
use snapkit_core::{Error, Result};

/// The axes of the records.
pub(crate) const AXES: [&str; 2] = ["sequence", "time"];

/// The longest subject that the format of a stream's files has room for.
pub(crate) const MAX_SUBJECT: usize = u16::MAX as usize;

/// The largest message that is read: 128 MiB. A server takes at most 64 MiB.
pub(crate) const MAX_MESSAGE: usize = 128 << 20;

/// The longest parts of a record that travel at once.
const PIECE: usize = 1 << 20;

/// What stands before subject, headers and body.
const LENGTHS: usize = 6;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its number in the stream, from 1 on.
    pub(crate) sequence: u64,
    /// When it was stored, in nanoseconds since 1970.
    pub(crate) time: i64,
    /// Where it was published to.
    pub(crate) subject: Vec<u8>,
    /// Its headers as they travel, with `NATS/1.0` first, or nothing.
    pub(crate) headers: Vec<u8>,
    /// Its body.
    pub(crate) body: Bytes,
}

impl Message {
    /// What a message adds to the digest of a stream.
    pub(crate) fn digest(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&self.sequence.to_le_bytes());
        hasher.update(&self.time.to_le_bytes());
        for part in [&self.subject[..], &self.headers, &self.body] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }

    /// All but number and time.
    pub(crate) fn value(&self) -> Result<Vec<u8>> {
        let subject = u16::try_from(self.subject.len());
        let headers = u32::try_from(self.headers.len());
        let (Ok(subject), Ok(headers)) = (subject, headers) else {
            return Err(broken("it is too long").with("sequence", self.sequence));
        };
        let len = LENGTHS + self.subject.len() + self.headers.len() + self.body.len();
        let mut value = Vec::with_capacity(len);
        value.extend_from_slice(&subject.to_le_bytes());
        value.extend_from_slice(&headers.to_le_bytes());
        value.extend_from_slice(&self.subject);
        value.extend_from_slice(&self.headers);
        value.extend_from_slice(&self.body);
        Ok(value)
    }

    /// The message of such a value.
    pub(crate) fn of(sequence: u64, time: i64, mut value: Bytes) -> Result<Self> {
        let broken = |why: &str| broken(why).with("sequence", sequence);
        if value.len() < LENGTHS {
            return Err(broken("it ends early"));
        }
        let subject = usize::from(value.get_u16_le());
        let headers = usize::try_from(value.get_u32_le()).unwrap_or(usize::MAX);
        if value.len() < subject.saturating_add(headers) {
            return Err(broken("it ends early"));
        }
        let (subject, headers) = (value.split_to(subject), value.split_to(headers));
        Ok(Self {
            sequence,
            time,
            subject: subject.to_vec(),
            headers: headers.to_vec(),
            body: value,
        })
    }

    /// The record of it.
    pub(crate) fn to_record(&self) -> Result<Record> {
        let value = Bytes::from(self.value()?);
        let positions = vec![
            Bytes::copy_from_slice(&self.sequence.to_be_bytes()),
            Bytes::copy_from_slice(&sortable(self.time).to_be_bytes()),
        ];
        if value.len() <= MAX_INLINE_VALUE {
            return Ok(Record { positions, value: RecordValue::Inline(value) });
        }
        let pieces = (0..value.len())
            .step_by(PIECE)
            .map(move |at| Ok(value.slice(at..value.len().min(at + PIECE))));
        Ok(Record { positions, value: RecordValue::Parts(stream::iter(pieces).boxed()) })
    }

    /// The message of a record.
    pub(crate) async fn from_record(record: Record) -> Result<Self> {
        let number = |place: &Bytes| place.as_ref().try_into().map(u64::from_be_bytes).ok();
        let [sequence, time] = &record.positions[..] else {
            return Err(broken("it has not two places"));
        };
        let (Some(sequence), Some(time)) = (number(sequence), number(time)) else {
            return Err(broken("its places are no numbers"));
        };
        let value = match record.value {
            RecordValue::Inline(value) => value,
            RecordValue::Parts(mut parts) => {
                let mut value = BytesMut::new();
                while let Some(part) = parts.try_next().await? {
                    if value.len() + part.len() > MAX_MESSAGE {
                        return Err(broken("it is too long").with("sequence", sequence));
                    }
                    value.extend_from_slice(&part);
                }
                value.freeze()
            }
        };
        Self::of(sequence, unsortable(time), value)
    }
}

fn broken(why: &str) -> Error {
    Error::corrupt(format!("a message is malformed: {why}"))
}

/// A time as a number that sorts as it does.
fn sortable(time: i64) -> u64 {
    time.cast_unsigned() ^ (1 << 63)
}

fn unsortable(time: u64) -> i64 {
    (time ^ (1 << 63)).cast_signed()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    fn read(record: Record) -> Result<Message> {
        Message::from_record(record).now_or_never().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_written_is_read(
            sequence: u64,
            times: [i64; 2],
            subject in proptest::collection::vec(any::<u8>(), 0..300),
            headers in proptest::collection::vec(any::<u8>(), 0..300),
            len in prop_oneof![0..2000_usize, MAX_INLINE_VALUE - 300..MAX_INLINE_VALUE + 300],
        ) {
            let body = Bytes::from(vec![7; len]);
            let message = Message { sequence, time: times[0], subject, headers, body };
            let record = message.to_record().unwrap();
            prop_assert_eq!(read(record).unwrap(), message);
            let [a, b] = times.map(|t| sortable(t).to_be_bytes());
            prop_assert_eq!(a.cmp(&b), times[0].cmp(&times[1]));
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let told = |positions: &[&'static [u8]], value: &'static [u8]| {
            let positions = positions.iter().map(|p| Bytes::from_static(p)).collect();
            let value = RecordValue::Inline(Bytes::from_static(value));
            let e = read(Record { positions, value }).unwrap_err();
            format!("{e} ({})", e.reason())
        };
        const ONE: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 1];
        let one = ONE;
        let all = [
            told(&[], b""),
            told(&[one], b""),
            told(&[one, b"now"], b""),
            told(&[one, one], b"\x01\0\0"),
            told(&[one, one], b"\x01\0\0\0\0\0"),
            told(&[one, one], b"\x01\0\xff\xff\xff\xffa"),
        ];
        insta::assert_snapshot!(all.join("\n"), @"
        a message is malformed: it has not two places (corrupt)
        a message is malformed: it has not two places (corrupt)
        a message is malformed: its places are no numbers (corrupt)
        a message is malformed: it ends early (sequence=1) (corrupt)
        a message is malformed: it ends early (sequence=1) (corrupt)
        a message is malformed: it ends early (sequence=1) (corrupt)
        ");
    }
}
