//! What a value means, in 32 bytes, however the server has encoded it.

use std::fmt;

/// A digest of a value: equal for values that a client cannot tell apart, whatever their encoding and, in sets, hashes
/// and sorted sets, the order in which the server keeps them.
///
/// Not of it: when the key expires, and how often it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ValueDigest {
    /// BLAKE3.
    pub hash: [u8; 32],
    /// How many elements it has: one for a string, messages for a stream.
    pub elements: u64,
    /// How many consumer groups a stream has.
    pub groups: u64,
    /// How many messages were given to consumers of a stream, and not acknowledged.
    pub pending: u64,
}

impl fmt::Debug for ValueDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} elements", blake3::Hash::from_bytes(self.hash), self.elements)
    }
}

/// A value of which the digest is taken, element by element.
#[derive(Debug)]
pub(super) struct Elements {
    kind: &'static str,
    order: Order,
    count: u64,
}

#[derive(Debug)]
enum Order {
    /// As they come.
    Kept(Box<blake3::Hasher>),
    /// None: the sum of what each is.
    Free([u64; 4]),
}

impl Elements {
    /// Of a value whose elements have an order.
    pub(super) fn in_order(kind: &'static str) -> Self {
        Self { kind, order: Order::Kept(Box::default()), count: 0 }
    }

    /// Of a value whose elements have none.
    pub(super) fn in_any_order(kind: &'static str) -> Self {
        Self { kind, order: Order::Free([0; 4]), count: 0 }
    }

    /// The next element, in its parts.
    pub(super) fn add(&mut self, parts: &[&[u8]]) {
        self.count += 1;
        self.note(parts);
    }

    /// Something that belongs to the value and is no element.
    pub(super) fn note(&mut self, parts: &[&[u8]]) {
        match &mut self.order {
            Order::Kept(hasher) => write(hasher, parts),
            Order::Free(sum) => {
                let mut hasher = blake3::Hasher::new();
                write(&mut hasher, parts);
                let hash = hasher.finalize();
                for (lane, word) in sum.iter_mut().zip(hash.as_bytes().chunks_exact(8)) {
                    let word = word.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
                    *lane = lane.wrapping_add(word);
                }
            }
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn finish(self) -> ValueDigest {
        let mut hasher = blake3::Hasher::new();
        write(&mut hasher, &[self.kind.as_bytes(), &self.count.to_le_bytes()]);
        match self.order {
            Order::Kept(elements) => hasher.update(elements.finalize().as_bytes()),
            Order::Free(sum) => {
                for lane in sum {
                    hasher.update(&lane.to_le_bytes());
                }
                &mut hasher
            }
        };
        ValueDigest {
            hash: *hasher.finalize().as_bytes(),
            elements: self.count,
            groups: 0,
            pending: 0,
        }
    }
}

fn write(hasher: &mut blake3::Hasher, parts: &[&[u8]]) {
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
}
