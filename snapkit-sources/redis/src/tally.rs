//! What is said of a set of keys: how many there are, and one digest of all.
//!
//! Everything here is a sum, so that the order of keys does not matter, and what expires can be taken out of it.

use std::collections::BTreeMap;

use snapkit_core::facts::{Fact, FactValue, Facts, Standing};

use crate::rdb::{Key, ValueDigest};

/// Databases of which the number of keys is a fact of its own.
const DATABASES: usize = 64;

/// What one key adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    database: u64,
    expires: bool,
    is_stream: bool,
    groups: u64,
    pending: u64,
    hash: [u8; 32],
}

impl Part {
    pub(crate) fn of(key: &Key, value: &ValueDigest) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("snapkit 1-draft redis key");
        hasher.update(&key.database.to_le_bytes());
        hasher.update(&(key.name.len() as u64).to_le_bytes());
        hasher.update(&key.name);
        // 0 is the beginning of 1970: what expires then is not there.
        hasher.update(&key.expires.unwrap_or(0).to_le_bytes());
        hasher.update(&value.hash);
        Self {
            database: key.database,
            expires: key.expires.is_some(),
            is_stream: key.kind() == "stream",
            groups: value.groups,
            pending: value.pending,
            hash: *hasher.finalize().as_bytes(),
        }
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(58);
        for number in [self.database, self.groups, self.pending] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&[self.expires.into(), self.is_stream.into()]);
        bytes.extend_from_slice(&self.hash);
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let number =
            |n: usize| Some(u64::from_le_bytes(bytes.get(n * 8..)?.first_chunk().copied()?));
        Some(Self {
            database: number(0)?,
            groups: number(1)?,
            pending: number(2)?,
            expires: *bytes.get(24)? != 0,
            is_stream: *bytes.get(25)? != 0,
            hash: bytes.get(26..)?.try_into().ok()?,
        })
    }
}

/// The sum over keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    keys: BTreeMap<u64, u64>,
    expires: u64,
    streams: u64,
    groups: u64,
    pending: u64,
    digest: [u64; 4],
}

impl Tally {
    pub(crate) fn add(&mut self, part: &Part) {
        *self.keys.entry(part.database).or_default() += 1;
        self.expires += u64::from(part.expires);
        self.streams += u64::from(part.is_stream);
        self.groups = self.groups.saturating_add(part.groups);
        self.pending = self.pending.saturating_add(part.pending);
        for (lane, word) in self.digest.iter_mut().zip(part.hash.chunks_exact(8)) {
            let word = word.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
            *lane = lane.wrapping_add(word);
        }
    }

    /// How many keys there are.
    pub(crate) fn keys(&self) -> u64 {
        self.keys.values().sum()
    }

    /// Write them down.
    pub(crate) fn write(&self, standing: Standing, facts: &mut Facts) {
        let mut put = |name: String, value: FactValue| {
            facts.0.insert(name, Fact { standing, value });
        };
        put("keys".to_owned(), self.keys().into());
        for (database, keys) in self.keys.iter().take(DATABASES) {
            put(format!("keys.db{database}"), (*keys).into());
        }
        put("expires".to_owned(), self.expires.into());
        put("streams".to_owned(), self.streams.into());
        put("streams.groups".to_owned(), self.groups.into());
        put("streams.pending".to_owned(), self.pending.into());
        let bytes = self.digest.map(u64::to_le_bytes).concat();
        let digest: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        put("digest".to_owned(), digest.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(n: u8) -> Part {
        Part {
            database: n.into(),
            expires: n.is_multiple_of(2),
            is_stream: n.is_multiple_of(3),
            groups: 1,
            pending: u64::from(n) << 33,
            hash: [n; 32],
        }
    }

    #[test]
    fn parts_read_back_and_have_no_order() {
        let parts: Vec<_> = (0..200).map(part).collect();
        for part in &parts {
            assert_eq!(Part::from_bytes(&part.to_bytes()), Some(*part));
        }
        assert_eq!(Part::from_bytes(&parts[0].to_bytes()[1..]), None);
        let (mut one, mut other) = (Tally::default(), Tally::default());
        parts.iter().for_each(|part| one.add(part));
        parts.iter().rev().for_each(|part| other.add(part));
        assert_eq!((one.keys(), &one), (200, &other));
    }
}
