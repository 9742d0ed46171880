//! What is said of the messages of a stream: how many there are, from which to which, and one digest of all.

/// A sum over messages in their order.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) messages: u64,
    /// The number of the first, 0 if there is none.
    pub(crate) first: u64,
    /// The number of the last, 0 if there is none.
    pub(crate) last: u64,
    /// When the oldest was stored, in nanoseconds since 1970.
    pub(crate) oldest: i64,
    hasher: blake3::Hasher,
}

impl Default for Tally {
    fn default() -> Self {
        let hasher = blake3::Hasher::new_derive_key("snapkit 1-draft nats messages");
        Self { messages: 0, first: 0, last: 0, oldest: i64::MAX, hasher }
    }
}

impl Tally {
    pub(crate) fn add(&mut self, message: &crate::message::Message) {
        if self.messages == 0 {
            self.first = message.sequence;
        }
        self.messages += 1;
        self.last = message.sequence;
        self.oldest = self.oldest.min(message.time);
        message.digest(&mut self.hasher);
    }

    /// A digest of all, in their order.
    pub(crate) fn digest(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}
