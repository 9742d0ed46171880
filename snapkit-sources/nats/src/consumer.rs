//! A consumer, and its state as a server keeps it in `o.dat` (`server/store.go`, `encodeConsumerState`, version 2).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use snapkit_core::{Error, Reason, Result};

use crate::archive::numbers::{Numbers, WriteNumbers as _};

const MAGIC: u8 = 22;
const VERSION: u8 = 2;
const SECOND: i64 = 1_000_000_000;

/// A place in the consumer's own count, and in the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pair {
    /// How many the consumer has delivered.
    pub(crate) consumer_seq: u64,
    /// The number of the message in the stream.
    pub(crate) stream_seq: u64,
}

/// A message that was delivered and not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    /// Its number in the consumer's own count.
    #[serde(rename = "Sequence")]
    pub(crate) sequence: u64,
    /// When it was delivered, in nanoseconds since 1970.
    #[serde(rename = "Timestamp")]
    pub(crate) timestamp: i64,
}

/// How far a consumer is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConsumerState {
    /// The last that was delivered.
    #[serde(default)]
    pub(crate) delivered: Pair,
    /// All up to this were acknowledged.
    #[serde(default)]
    pub(crate) ack_floor: Pair,
    /// What was delivered and is not acknowledged, by its number in the stream.
    #[serde(default, deserialize_with = "or_nothing", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) pending: BTreeMap<u64, Pending>,
    /// How often what was delivered more than once was, by its number in the stream.
    #[serde(default, deserialize_with = "or_nothing", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) redelivered: BTreeMap<u64, u64>,
}

/// A map, of which `null` is an empty one.
fn or_nothing<'de, D: Deserializer<'de>, V: Deserialize<'de>>(
    d: D,
) -> std::result::Result<BTreeMap<u64, V>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// A consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Consumer {
    /// Its name.
    pub(crate) name: String,
    /// Its configuration, as the server says it.
    pub(crate) config: Value,
    /// How far it is.
    pub(crate) state: ConsumerState,
}

impl Consumer {
    /// Let nothing in the state be behind the last message of the stream: a server would deliver none of those that
    /// come next.
    pub(crate) fn clamp(&mut self, last: u64) {
        let state = &mut self.state;
        state.delivered.stream_seq = state.delivered.stream_seq.min(last);
        state.ack_floor.stream_seq = state.ack_floor.stream_seq.min(last);
        state.pending.retain(|sequence, _| *sequence <= last);
        state.redelivered.retain(|sequence, _| *sequence <= last);
    }

    /// The last message that was delivered, and the one up to which all were acknowledged, in a stream that begins with
    /// `first`: what was there before counts as done, and some servers write it down so.
    pub(crate) fn floors(&self, first: u64) -> [u64; 2] {
        let done = first.saturating_sub(1);
        [self.state.delivered, self.state.ack_floor].map(|pair| pair.stream_seq.max(done))
    }

    /// What it adds to the digest of a stream's consumers: which it is, and how far. Times are left out: a server keeps
    /// them to the second only.
    pub(crate) fn digest(&self, first: u64, hasher: &mut blake3::Hasher) {
        hasher.update(&(self.name.len() as u64).to_le_bytes());
        hasher.update(self.name.as_bytes());
        for number in self.floors(first) {
            hasher.update(&number.to_le_bytes());
        }
        for sequence in self.state.pending.keys() {
            hasher.update(&sequence.to_le_bytes());
        }
    }
}

impl ConsumerState {
    /// Read the content of `o.dat`.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let broken = || Error::corrupt("the state of a consumer is malformed");
        let Some(([MAGIC, version], mut rest)) = bytes.split_first_chunk::<2>() else {
            return Err(broken());
        };
        if *version != VERSION {
            let what =
                format!("the state of a consumer has version {version}, which is not known here");
            return Err(Error::new(Reason::Unsupported, what));
        }
        let mut state = Self::default();
        let mut next = || rest.number().map_err(|_| broken());
        state.ack_floor.consumer_seq = next()?;
        state.ack_floor.stream_seq = next()?;
        state.delivered.consumer_seq = next()?;
        state.delivered.stream_seq = next()?;
        let floor = state.ack_floor;
        let pending = next()?;
        if pending > 0 {
            let base = rest.signed().map_err(|_| broken())?;
            for _ in 0..pending {
                let mut next = || rest.number().map_err(|_| broken());
                let (stream, consumer) = (next()?, next()?);
                let ago = rest.signed().map_err(|_| broken())?;
                let sequence = consumer.wrapping_add(floor.consumer_seq);
                let timestamp = base.wrapping_sub(ago).wrapping_mul(SECOND);
                let stream = stream.wrapping_add(floor.stream_seq);
                state.pending.insert(stream, Pending { sequence, timestamp });
            }
        }
        let mut next = || rest.number().map_err(|_| broken());
        for _ in 0..next()? {
            let (stream, times) = (next()?, next()?);
            state.redelivered.insert(stream.wrapping_add(floor.stream_seq), times);
        }
        Ok(state)
    }

    /// The content of `o.dat`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![MAGIC, VERSION];
        let floor = self.ack_floor;
        for number in [
            floor.consumer_seq,
            floor.stream_seq,
            self.delivered.consumer_seq,
            self.delivered.stream_seq,
            self.pending.len() as u64,
        ] {
            bytes.put_number(number);
        }
        // Delivered before they were acknowledged up to there would make no sense: it is left out below.
        let newest = self.pending.values().map(|pending| pending.timestamp / SECOND).max();
        if let Some(base) = newest {
            bytes.put_signed(base);
            for (stream, pending) in &self.pending {
                bytes.put_number(stream.wrapping_sub(floor.stream_seq));
                bytes.put_number(pending.sequence.wrapping_sub(floor.consumer_seq));
                bytes.put_signed(base - pending.timestamp / SECOND);
            }
        }
        bytes.put_number(self.redelivered.len() as u64);
        for (stream, times) in &self.redelivered {
            bytes.put_number(stream.wrapping_sub(floor.stream_seq));
            bytes.put_number(*times);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_as_they_are_written() {
        let state = ConsumerState {
            delivered: Pair { consumer_seq: 40, stream_seq: 90 },
            ack_floor: Pair { consumer_seq: 20, stream_seq: 50 },
            pending: [(60, 30), (90, 40)]
                .map(|(stream, sequence)| {
                    (stream, Pending { sequence, timestamp: 1_700_000_000 * SECOND })
                })
                .into(),
            redelivered: [(60, 2)].into(),
        };
        for state in [ConsumerState::default(), state] {
            let bytes = state.encode();
            assert_eq!(ConsumerState::decode(&bytes).unwrap(), state);
            for len in 0..bytes.len() {
                let e = ConsumerState::decode(&bytes[..len]).unwrap_err();
                assert_eq!(e.message(), "the state of a consumer is malformed");
            }
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<ConsumerState>(&json).unwrap(), state);
        }
        let e = ConsumerState::decode(&[MAGIC, 3]).unwrap_err();
        assert_eq!(e.message(), "the state of a consumer has version 3, which is not known here");
        let null = r#"{"delivered":{"consumer_seq":1,"stream_seq":2},"pending":null}"#;
        assert_eq!(serde_json::from_str::<ConsumerState>(null).unwrap().delivered.stream_seq, 2);
    }

    #[test]
    fn nothing_is_ahead_of_the_stream() {
        let mut consumer = Consumer {
            name: "c".to_owned(),
            config: Value::Null,
            state: ConsumerState {
                delivered: Pair { consumer_seq: 9, stream_seq: 450 },
                ack_floor: Pair { consumer_seq: 3, stream_seq: 290 },
                pending: [(295, Pending::default()), (400, Pending::default())].into(),
                redelivered: [(400, 2)].into(),
            },
        };
        consumer.clamp(300);
        assert_eq!(consumer.state.delivered.stream_seq, 300);
        assert_eq!(consumer.state.ack_floor.stream_seq, 290);
        assert_eq!(consumer.state.pending.keys().collect::<Vec<_>>(), [&295]);
        assert!(consumer.state.redelivered.is_empty());
    }
}
