//! A value that must not be seen.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

/// Holds a secret: `Debug` shows nothing of it, it has no `Display` and no serde, and it is wiped
/// when dropped.
#[derive(Clone)]
pub struct Secret<T: Zeroize>(Zeroizing<T>);

impl<T: Zeroize> Secret<T> {
    /// Take a value into custody.
    pub fn new(value: T) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The value itself. Every call is a place to look at in a review.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A passphrase or another secret text.
pub type SecretString = Secret<String>;

/// Reads a setting that may be left out, for serde's `deserialize_with`: secrets have no serde of their own, so that none is
/// written by accident.
pub fn optional<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<SecretString>, D::Error> {
    Ok(<Option<String> as serde::Deserialize>::deserialize(d)?.map(Secret::new))
}

/// A 256-bit key.
pub type SecretKey = Secret<[u8; 32]>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        let s = SecretString::new("hunter2".to_owned());
        assert!(!format!("{s:?} {s:#?}").contains("hunter2"));
    }
}
