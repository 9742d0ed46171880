//! A key as a record: where it stands, what is known before its value, and the bytes of the value as the server has
//! written them.
//!
//! The place is the number of the database in five decimal digits, a colon, and the name: `00000:user:17`. (A number that
//! is longer has 20 digits and stands behind `~`, after all others.) The value is the encoding, a byte of flags, then for
//! each flag what it says: when the key expires (8 bytes, milliseconds since 1970), when somebody last asked for it (8
//! bytes, seconds since 1970, to the minute), how often it is asked for (1 byte), and what of its name is not in the place
//! (8 bytes of length, and that). Numbers are little-endian. All the rest is the value.

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use snapkit_core::artifact::ByteStream;
use snapkit_core::record::{MAX_POSITION, Record, RecordValue};
use snapkit_core::{Error, Result};

use crate::rdb::{Key, MAX_KEY};

/// The name of the only axis.
pub(crate) const AXIS: &str = "key";

const EXPIRES: u8 = 1;
const ACCESSED: u8 = 2;
const FREQUENCY: u8 = 4;
const LONG_NAME: u8 = 8;

/// The longest name that is in the place as a whole.
const NAME_IN_PLACE: usize = MAX_POSITION - 22;

/// Times at which somebody asked for a key are kept to this many seconds: they are only as good as the server's clock for
/// that, and would make records differ each time.
const ACCESS_GRAIN: u64 = 60;

/// Where a key stands.
pub(crate) fn place(key: &Key) -> Vec<u8> {
    let name = &key.name[..key.name.len().min(NAME_IN_PLACE)];
    let database = match key.database {
        database @ 0..=99_999 => format!("{database:05}:"),
        database => format!("~{database:020}:"),
    };
    [database.as_bytes(), name].concat()
}

/// What stands before the value. `now` is when the snapshot was taken, in seconds since 1970.
pub(crate) fn head(key: &Key, now: u64) -> Vec<u8> {
    let mut head = vec![key.encoding, 0];
    if let Some(expires) = key.expires {
        head[1] |= EXPIRES;
        head.extend_from_slice(&expires.to_le_bytes());
    }
    if let Some(idle) = key.idle {
        head[1] |= ACCESSED;
        let accessed = now.saturating_sub(idle);
        head.extend_from_slice(&(accessed - accessed % ACCESS_GRAIN).to_le_bytes());
    }
    if let Some(frequency) = key.frequency {
        head[1] |= FREQUENCY;
        head.push(frequency);
    }
    if let Some(rest) = key.name.get(NAME_IN_PLACE..).filter(|rest| !rest.is_empty()) {
        head[1] |= LONG_NAME;
        head.extend_from_slice(&(rest.len() as u64).to_le_bytes());
        head.extend_from_slice(rest);
    }
    head
}

/// A key that was stored.
#[derive(Debug)]
pub(crate) struct StoredKey {
    /// The key. For how long nobody had asked for it is as of now.
    pub(crate) key: Key,
    /// Its value.
    pub(crate) value: RecordValue,
}

/// Take a record apart. `now` is in seconds since 1970.
pub(crate) async fn read(record: Record, now: u64) -> Result<StoredKey> {
    let broken = |why: &str| Error::corrupt(format!("a key is malformed: {why}"));
    let [place] = &record.positions[..] else {
        return Err(broken("it has not one place"));
    };
    let parts = place.iter().position(|byte| *byte == b':').map(|colon| place.split_at(colon));
    let parts = parts.and_then(|(database, name)| {
        let digits = std::str::from_utf8(database).ok()?.trim_start_matches('~');
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        Some((digits.parse::<u64>().ok().filter(|_| is_number)?, &name[1..]))
    });
    let Some((database, name)) = parts else {
        return Err(broken("its place names no database"));
    };
    let mut value = Value::from(record.value);
    let [encoding, flags] = value.array(&broken).await?;
    if flags & !(EXPIRES | ACCESSED | FREQUENCY | LONG_NAME) != 0 {
        return Err(broken("something unknown is said of it"));
    }
    let mut key =
        Key { database, name: name.to_vec(), expires: None, idle: None, frequency: None, encoding };
    if flags & EXPIRES != 0 {
        key.expires = Some(u64::from_le_bytes(value.array(&broken).await?));
    }
    if flags & ACCESSED != 0 {
        key.idle = Some(now.saturating_sub(u64::from_le_bytes(value.array(&broken).await?)));
    }
    if flags & FREQUENCY != 0 {
        key.frequency = Some(value.array::<1>(&broken).await?[0]);
    }
    if flags & LONG_NAME != 0 {
        let len = u64::from_le_bytes(value.array(&broken).await?);
        if len > MAX_KEY {
            return Err(broken("its name is too long"));
        }
        while ((key.name.len() - name.len()) as u64) < len {
            let left = len - (key.name.len() - name.len()) as u64;
            key.name.extend_from_slice(
                &value.some(left).await?.ok_or_else(|| broken("it ends early"))?,
            );
        }
    }
    Ok(StoredKey { key, value: value.rest() })
}

/// A value whose beginning is taken off.
struct Value {
    head: BytesMut,
    rest: Option<ByteStream>,
}

impl From<RecordValue> for Value {
    fn from(value: RecordValue) -> Self {
        match value {
            RecordValue::Inline(bytes) => Self { head: bytes.into(), rest: None },
            RecordValue::Parts(rest) => Self { head: BytesMut::new(), rest: Some(rest) },
        }
    }
}

impl Value {
    async fn array<const N: usize>(&mut self, broken: &impl Fn(&str) -> Error) -> Result<[u8; N]> {
        while self.head.len() < N {
            let piece = match &mut self.rest {
                Some(rest) => rest.try_next().await?,
                None => None,
            };
            self.head.extend_from_slice(&piece.ok_or_else(|| broken("it ends early"))?);
        }
        let mut array = [0; N];
        self.head.copy_to_slice(&mut array);
        Ok(array)
    }

    /// Some of the bytes that come next, at most so many.
    async fn some(&mut self, most: u64) -> Result<Option<Bytes>> {
        if self.head.is_empty() {
            let piece = match &mut self.rest {
                Some(rest) => rest.try_next().await?,
                None => None,
            };
            let Some(piece) = piece else { return Ok(None) };
            self.head = piece.into();
        }
        let len = usize::try_from(most).unwrap_or(usize::MAX).min(self.head.len());
        Ok(Some(self.head.split_to(len).freeze()))
    }

    fn rest(self) -> RecordValue {
        let head = self.head.freeze();
        match self.rest {
            None => RecordValue::Inline(head),
            Some(rest) => {
                let first = stream::iter((!head.is_empty()).then_some(Ok(head)));
                RecordValue::Parts(Box::pin(first.chain(rest)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_key_is_refused() {
        let told = |positions: &[&str], value: &[u8]| {
            let record = Record {
                positions: positions.iter().map(|p| Bytes::copy_from_slice(p.as_bytes())).collect(),
                value: RecordValue::Inline(Bytes::copy_from_slice(value)),
            };
            let e = futures_util::FutureExt::now_or_never(read(record, 0)).unwrap().unwrap_err();
            format!("{e} ({})", e.reason())
        };
        let long = [&[0, LONG_NAME][..], &u64::MAX.to_le_bytes()].concat();
        let ends = [&[0, LONG_NAME][..], &9_u64.to_le_bytes(), b"abc"].concat();
        let all = [
            told(&[], b""),
            told(&["0:a", "0:b"], b""),
            told(&["a"], b""),
            told(&["x:a"], b""),
            told(&["0:a"], b""),
            told(&["0:a"], &[0, 0x80]),
            told(&["0:a"], &[0, EXPIRES, 1, 2]),
            told(&["0:a"], &long),
            told(&["0:a"], &ends),
        ];
        insta::assert_snapshot!(all.join("\n"), @"
        a key is malformed: it has not one place (corrupt)
        a key is malformed: it has not one place (corrupt)
        a key is malformed: its place names no database (corrupt)
        a key is malformed: its place names no database (corrupt)
        a key is malformed: it ends early (corrupt)
        a key is malformed: something unknown is said of it (corrupt)
        a key is malformed: it ends early (corrupt)
        a key is malformed: its name is too long (corrupt)
        a key is malformed: it ends early (corrupt)
        ");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_written_is_read(
            database in prop_oneof![0..20_u64, any::<u64>()],
            len in prop_oneof![0..50_usize, NAME_IN_PLACE - 2..NAME_IN_PLACE + 70_000],
            expires in proptest::option::of(any::<u64>()),
            idle in proptest::option::of(0..1000_u64),
            frequency in proptest::option::of(any::<u8>()),
            pieces in proptest::collection::vec(0..40_usize, 0..5),
            inline in any::<bool>(),
        ) {
            let now = 1_000_000_020;
            let name = (0..len).map(|n| n.to_le_bytes()[0]).collect();
            let key = Key { database, name, expires, idle, frequency, encoding: 14 };
            let value: Vec<u8> = pieces.iter().flat_map(|len| vec![7; *len]).collect();
            let all = [head(&key, now), value.clone()].concat();
            let record = Record {
                positions: vec![place(&key).into()],
                value: match inline {
                    true => RecordValue::Inline(all.into()),
                    false => {
                        let parts: Vec<_> =
                            all.chunks(1 + len / 3).map(|p| Ok(Bytes::copy_from_slice(p))).collect();
                        RecordValue::Parts(stream::iter(parts).boxed())
                    }
                },
            };
            let read = futures_util::FutureExt::now_or_never(read(record, now)).unwrap().unwrap();
            // To the minute.
            prop_assert!(read.key.idle.is_some() == idle.is_some());
            prop_assert!(read.key.idle.unwrap_or(0) - idle.unwrap_or(0) < ACCESS_GRAIN);
            prop_assert_eq!(Key { idle, ..read.key }, key);
            let found = match read.value {
                RecordValue::Inline(bytes) => bytes.to_vec(),
                RecordValue::Parts(parts) => {
                    let parts = parts.try_collect::<Vec<_>>();
                    futures_util::FutureExt::now_or_never(parts).unwrap().unwrap().concat()
                }
            };
            prop_assert_eq!(found, value);
        }
    }
}
