//! Settings of a source, in the stack file and in a snapshot.

use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use snapkit_core::registry::wait;
use snapkit_core::tree::{escape, unescape};
use snapkit_core::{Error, Reason, Result};

/// How long to wait for locks unless configured: 10 s.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of a source of kind `sqlite`.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqliteConfig {
    /// The database file. A relative path is taken from the working directory when the source is
    /// made. In documents it is text, or `{ "escaped": TEXT }` with `\xNN` for bytes that are not
    /// UTF-8 and `\\` for a backslash.
    #[serde(serialize_with = "path_to_document", deserialize_with = "path_from_document")]
    pub path: PathBuf,
    /// How long to wait for a lock that another program holds, each time one is needed: seconds, or
    /// text such as `500ms`, `10s` or `2m`; at most a day. 10 s unless given.
    #[serde(default = "default_busy_timeout", with = "wait")]
    pub busy_timeout: Duration,
}

impl SqliteConfig {
    /// A database with everything else as usual.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), busy_timeout: BUSY_TIMEOUT }
    }

    /// The same with an absolute path that names a file, or `invalid-config`.
    pub(crate) fn absolute(self) -> Result<Self> {
        let bad = |what: &str| {
            Error::new(Reason::InvalidConfig, what)
                .with("path", escape(self.path.as_os_str().as_bytes()))
        };
        if self.path.as_os_str().as_bytes().contains(&0) {
            return Err(bad("the path holds a NUL byte"));
        }
        let path = std::path::absolute(&self.path)
            .map_err(|e| bad("the path of the database cannot be made absolute").caused_by(e))?;
        if path.file_name().is_none() {
            return Err(bad("the path does not name a database file"));
        }
        if self.busy_timeout.as_secs_f64() > wait::LONGEST {
            return Err(Error::new(Reason::InvalidConfig, "`busy_timeout` is longer than a day"));
        }
        Ok(Self { path, ..self })
    }
}

fn default_busy_timeout() -> Duration {
    BUSY_TIMEOUT
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PathText {
    Plain(String),
    Escaped { escaped: String },
}

fn path_to_document<S: Serializer>(path: &Path, s: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => PathText::Plain(text.to_owned()),
        None => PathText::Escaped { escaped: escape(path.as_os_str().as_bytes()) },
    }
    .serialize(s)
}

fn path_from_document<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    let text = PathText::deserialize(d)
        .map_err(|_| serde::de::Error::custom("`path` must be text or { escaped = TEXT }"))?;
    match text {
        PathText::Plain(text) => Ok(PathBuf::from(text)),
        PathText::Escaped { escaped } => unescape(&escaped)
            .map(|bytes| PathBuf::from(std::ffi::OsString::from_vec(bytes)))
            .ok_or_else(|| serde::de::Error::custom(format!("not an escaped path: {escaped:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SqliteConfig, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn waits_are_seconds_or_text() {
        for (text, millis) in [
            ("2", 2000),
            ("0.5", 500),
            ("\"10s\"", 10_000),
            ("\"250ms\"", 250),
            ("\"2m\"", 120_000),
            ("\"3\"", 3000),
        ] {
            let config = parse(&format!(r#"{{"path": "/x", "busy_timeout": {text}}}"#)).unwrap();
            assert_eq!(config.busy_timeout.as_millis(), millis, "{text}");
            let again = serde_json::to_string(&config).unwrap();
            assert_eq!(parse(&again).unwrap(), config);
        }
        for bad in ["-1", "\"10 years\"", "1e300", "\"\"", "\"NaN\"", "[1]", "100000"] {
            assert!(
                parse(&format!(r#"{{"path": "/x", "busy_timeout": {bad}}}"#)).is_err(),
                "{bad}"
            );
        }
        assert_eq!(parse(r#"{"path": "/x"}"#).unwrap().busy_timeout, BUSY_TIMEOUT);
        assert!(parse(r#"{"path": "/x", "pth": 1}"#).is_err());
    }

    #[test]
    fn any_path_survives_a_document() {
        for bytes in [&b"/a/b.db"[..], b"/a/caf\xe9 \\x41\n.db", b"/back\\slash.db", b"/\xff\\\\"] {
            let config = SqliteConfig::new(std::ffi::OsString::from_vec(bytes.to_vec()));
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(parse(&text).unwrap(), config, "{text}");
        }
        assert!(parse(r#"{"path": {"escaped": "\\q"}}"#).is_err());
        assert!(parse(r#"{"path": {"escaped": "\\x4"}}"#).is_err());
    }

    #[test]
    fn a_path_must_name_a_file() {
        for bad in ["/", "", "/a/.."] {
            let e = SqliteConfig::new(bad).absolute().unwrap_err();
            assert_eq!(e.reason(), Reason::InvalidConfig, "{bad:?}");
        }
        assert!(SqliteConfig::new("x.db").absolute().unwrap().path.is_absolute());
    }
}
