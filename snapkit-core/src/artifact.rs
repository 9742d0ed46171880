//! Artifacts: the named things in a source's capture, and the form in which content travels.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use futures_core::Stream;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Reason, Result};
use crate::record::RecordReader;
use crate::tree::TreeReader;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Check a name.
            pub fn new(name: impl Into<String>) -> Result<Self> {
                let name = name.into();
                let allowed: fn(char) -> bool = $allowed;
                let ok = (1..=255).contains(&name.len())
                    && name != "."
                    && name != ".."
                    && name.chars().all(allowed);
                if ok {
                    Ok(Self(name))
                } else {
                    Err(Error::new(Reason::InvalidName, format!(concat!("not a name for ", $what, ": {:?}"), name)))
                }
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(name: String) -> Result<Self> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self> {
                Self::new(name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name_type!(
    /// Name of a source in a stack: 1 to 255 of `A-Z a-z 0-9 . _ -`. It is a directory name on restore.
    SourceName, "a source", |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
);
name_type!(
    /// Name of an artifact, unique and stable within its source: 1 to 255 bytes of UTF-8 without `/`
    /// and control characters, and neither `.` nor `..`. It is a file name on restore.
    ArtifactName, "an artifact", |c| c != '/' && !c.is_control()
);

/// The form of an artifact's content.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// A byte stream.
    Bytes,
    /// A tree of files.
    Tree,
    /// A sequence of records.
    Records,
}

/// How the engine cuts an artifact's content into chunks. A tree's chunking is that of its files.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Chunking {
    /// By content: byte streams and large files.
    Content,
    /// At multiples of a page: databases. Chunks are a power of two times the page size, at least
    /// 8 KiB, grown until there are fewer than two million.
    Pages {
        /// The page size in bytes, a power of two.
        page_size: u32,
    },
    /// Between records.
    Records,
    /// At entry starts of a tar stream, and by content within entries.
    Tar,
    /// One chunk up to 512 KiB, by content beyond.
    Whole,
}

/// Equal fingerprints promise equal content. Opaque to the engine; at most 1 KiB.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Fingerprint(pub String);

/// What is known of an artifact before its content is read.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactMeta {
    /// Its name.
    pub name: ArtifactName,
    /// Its form.
    pub shape: Shape,
    /// A media type, such as `application/vnd.sqlite3`.
    pub media_type: String,
    /// How to cut it.
    pub chunking: Chunking,
    /// What says that it is unchanged, if anything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// Bytes to expect, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_hint: Option<u64>,
    /// What the source needs to put it back, in its own words.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

impl ArtifactMeta {
    /// An artifact without fingerprint, size or attributes.
    pub fn new(
        name: ArtifactName,
        shape: Shape,
        media_type: impl Into<String>,
        chunking: Chunking,
    ) -> Self {
        Self {
            name,
            shape,
            media_type: media_type.into(),
            chunking,
            fingerprint: None,
            size_hint: None,
            attributes: BTreeMap::new(),
        }
    }

    /// Add an attribute.
    #[must_use]
    pub fn attribute(mut self, key: &str, value: impl Into<String>) -> Self {
        self.attributes.insert(key.to_owned(), value.into());
        self
    }

    /// Expect so many bytes.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        self.size_hint = Some(bytes);
        self
    }

    /// Promise that equal fingerprints mean equal content.
    #[must_use]
    pub fn fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = Some(Fingerprint(fingerprint.into()));
        self
    }
}

/// Bytes on their way, in pieces of at most [`MAX_PIECE`].
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send + 'static>>;

/// The largest piece that a byte stream may yield: 1 MiB. Larger ones are an error of the producer.
pub const MAX_PIECE: usize = 1 << 20;

/// Bytes that are in memory, in pieces that may travel.
#[must_use]
pub fn in_pieces(bytes: &Bytes) -> ByteStream {
    let pieces: Vec<_> = (0..bytes.len())
        .step_by(MAX_PIECE)
        .map(|at| Ok(bytes.slice(at..bytes.len().min(at + MAX_PIECE))))
        .collect();
    Box::pin(futures_util::stream::iter(pieces))
}

/// Content of an artifact, on its way out of a capture or into a restore or a check: the same in
/// both directions, so that a source can be tested without an engine.
pub enum Body {
    /// A byte stream.
    Bytes(ByteStream),
    /// A tree of files.
    Tree(Box<dyn TreeReader>),
    /// A sequence of records.
    Records(Box<dyn RecordReader>),
}

impl Body {
    /// Its form.
    #[must_use]
    pub fn shape(&self) -> Shape {
        match self {
            Self::Bytes(_) => Shape::Bytes,
            Self::Tree(_) => Shape::Tree,
            Self::Records(_) => Shape::Records,
        }
    }

    /// The byte stream, or an error that says what it is instead.
    pub fn into_bytes(self) -> Result<ByteStream> {
        match self {
            Self::Bytes(stream) => Ok(stream),
            other => Err(other.unexpected(Shape::Bytes)),
        }
    }

    /// The tree, or an error that says what it is instead.
    pub fn into_tree(self) -> Result<Box<dyn TreeReader>> {
        match self {
            Self::Tree(tree) => Ok(tree),
            other => Err(other.unexpected(Shape::Tree)),
        }
    }

    /// The records, or an error that says what it is instead.
    pub fn into_records(self) -> Result<Box<dyn RecordReader>> {
        match self {
            Self::Records(records) => Ok(records),
            other => Err(other.unexpected(Shape::Records)),
        }
    }

    fn unexpected(&self, wanted: Shape) -> Error {
        Error::invalid(format!("expected an artifact of shape {wanted:?}, got {:?}", self.shape()))
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body::{:?}", self.shape())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_names() {
        assert!(SourceName::new("app-1.db").is_ok());
        assert!(ArtifactName::new("stream ÄÖ").is_ok());
        for bad in ["", ".", "..", "a/b", "a\0", "a\nb"] {
            assert!(ArtifactName::new(bad).is_err(), "{bad:?}");
            assert!(SourceName::new(bad).is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<ArtifactName>("\"../x\"").is_err());
    }
}
