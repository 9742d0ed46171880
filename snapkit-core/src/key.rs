//! Names of objects in a sink.

use std::fmt;

use crate::error::{Error, Reason, Result};

/// A validated relative object name: segments of `a-z 0-9 A-Z . _ -` joined by `/`, none of them
/// empty or beginning with a dot; at most 255 bytes. No key can leave a sink's root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Longest key in bytes.
    pub const MAX_LEN: usize = 255;

    /// Check a name.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let segment = |s: &str| {
            !s.is_empty()
                && !s.starts_with('.')
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if name.len() <= Self::MAX_LEN && name.split('/').all(segment) {
            Ok(Self(name))
        } else {
            Err(Error::new(Reason::InvalidName, format!("not an object name: {name:?}")))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows the last `/`.
    #[must_use]
    pub fn last_segment(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_root_are_refused() {
        for good in ["config", "packs/aa/bb", "keys/x.age", "sessions/a-b/0"] {
            assert_eq!(Key::new(good).unwrap().as_str(), good);
        }
        for bad in
            ["", "/", "/x", "x/", "a//b", "..", "a/../b", "a/.tmp", "a b", "ä", "a\\b", "a\0"]
        {
            assert!(Key::new(bad).is_err(), "{bad:?}");
        }
        assert!(Key::new("x".repeat(256)).is_err());
    }
}
