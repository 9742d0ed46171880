//! Identifiers. Each is a type of its own, so that a pack cannot be taken for a chunk.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::context::Timestamp;
use crate::error::{Error, Reason, Result};

/// Lower-case hexadecimal of bytes.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

/// Bytes of lower-case hexadecimal, or `None`.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks_exact(2).map(|p| Some((digit(p[0])? << 4) | digit(p[1])?)).collect()
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), to_hex(&self.0))
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                from_hex(text).and_then(|b| b.try_into().ok()).map(Self).ok_or_else(|| {
                    Error::new(
                        Reason::InvalidName,
                        format!(concat!("not ", $len, " bytes of lower-case hexadecimal: {:?}"), text),
                    )
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(
    /// Name of a piece of content: BLAKE3-256 of it, keyed with the repository's id key.
    ChunkId, 32
);
hex_id!(
    /// Name of a pack: BLAKE3-256 of its stored bytes.
    PackId, 32
);
hex_id!(
    /// Name of an index segment: BLAKE3-256 of its stored bytes.
    SegmentId, 32
);
hex_id!(
    /// Identity of a repository, random.
    RepositoryId, 16
);
hex_id!(
    /// Identity of a credential, random.
    CredentialId, 16
);
hex_id!(
    /// What pins a repository: a hash over its id and public keys.
    RepositoryFingerprint, 32
);

/// Identity of a snapshot, and of the session that makes it: `20260115T143000Z-9f2c41ab7d03e586`.
///
/// The time is the writer's clock, to sort by and to read; only the random part makes it unique.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(String);

impl SnapshotId {
    /// Length in characters, always.
    pub const LEN: usize = 33;

    /// A new id from a time and eight random bytes.
    pub fn new(at: Timestamp, random: [u8; 8]) -> Result<Self> {
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0))
            .ok()
            .filter(|t| (1970..=9999).contains(&t.year()))
            .ok_or_else(|| Error::invalid("the clock is not between the years 1970 and 9999"))?;
        let text =
            at.format(&format).map_err(|e| Error::internal("cannot format a time").caused_by(e))?;
        Ok(Self(format!("{text}-{}", to_hex(&random))))
    }

    /// When it was made, to the second, by its writer's clock: `20260115T143000Z`.
    #[must_use]
    pub fn second(&self) -> &str {
        self.0.split('-').next().unwrap_or_default()
    }

    /// The whole id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first eight characters of the random part, what people type.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[17..25]
    }

    /// Whether `prefix` is a prefix of the whole id or of its random part.
    #[must_use]
    pub fn has_prefix(&self, prefix: &str) -> bool {
        !prefix.is_empty() && (self.0.starts_with(prefix) || self.0[17..].starts_with(prefix))
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let b = text.as_bytes();
        let digits = |r: std::ops::Range<usize>| b[r].iter().all(u8::is_ascii_digit);
        let ok = b.len() == Self::LEN
            && digits(0..8)
            && b[8] == b'T'
            && digits(9..15)
            && &b[15..17] == b"Z-"
            && b[17..].iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        if ok {
            Ok(Self(text))
        } else {
            Err(Error::new(Reason::InvalidName, format!("not a snapshot id: {text:?}")))
        }
    }
}

impl FromStr for SnapshotId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.to_owned().try_into()
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotId({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_ids_read_back_and_match_prefixes() {
        let id =
            SnapshotId::new(Timestamp(1_768_487_400_000_000_000), [0x9f, 0x2c, 1, 2, 3, 4, 5, 6])
                .unwrap();
        assert_eq!(id.as_str(), "20260115T143000Z-9f2c010203040506");
        assert_eq!(id.as_str().parse::<SnapshotId>().unwrap(), id);
        assert!(id.has_prefix("9f2c") && id.has_prefix("20260115") && !id.has_prefix("2c"));
        for bad in
            ["", "x", "20260115T143000Z-9F2c010203040506", "20260115T143000Z-9f2c01020304050é"]
        {
            assert!(bad.parse::<SnapshotId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hex_ids_read_back() {
        let id = ChunkId([7; 32]);
        assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
        assert!("07".parse::<ChunkId>().is_err());
        assert!("é".repeat(32).parse::<ChunkId>().is_err());
    }
}
