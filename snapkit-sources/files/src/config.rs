//! What a stack file says about a source of files.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use snapkit_core::error::{Error, IoContext as _, Reason, Result};
use snapkit_core::tree::{EntryPath, escape, unescape};

/// The settings of a source of files.
///
/// Patterns are those of `.gitignore`: without a slash one is compared with the last component of a
/// path, with a slash with the path relative to the root that it lies in, and with the absolute path.
/// A slash at the end limits it to directories, `**` stands for any number of directories, and a `!`
/// in front takes back what an earlier pattern said. The last pattern that matches decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesConfig {
    /// What is captured: directories, with everything in them, or single files. Relative paths are
    /// taken from the current directory. They must not be symbolic links, nor lead through them. In documents a
    /// path that is not UTF-8 is written `{ escaped = "/srv/caf\\xe9" }`.
    #[serde(with = "paths")]
    pub paths: Vec<PathBuf>,
    /// If it is not empty, only what matches one of these patterns is captured, with everything in
    /// it, and the directories that lead there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// What matches one of these patterns is left out. A directory that is left out is not looked
    /// into, except for what `paths` names in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Whether files named `.snapkitignore` are honoured: lines of patterns of what to leave out, for
    /// their directory and below. On by default.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub ignore_file: bool,
    /// Whether to stay on the file systems that `paths` are on. The directory on which another file
    /// system is mounted is captured, and what is in it is not. Off by default.
    #[serde(default, skip_serializing_if = "is_no")]
    pub one_file_system: bool,
    /// Patterns, by file name, of databases that are never read as plain files. By default `*.db`,
    /// `*.sqlite`, `*.sqlite3` and `*.db3`.
    #[serde(default = "databases", skip_serializing_if = "is_databases")]
    pub databases: Vec<String>,
}

impl FilesConfig {
    /// Capture these paths, with everything in them.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            include: Vec::new(),
            exclude: Vec::new(),
            ignore_file: true,
            one_file_system: false,
            databases: databases(),
        }
    }
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_yes(value: &bool) -> bool {
    *value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_no(value: &bool) -> bool {
    !*value
}

fn databases() -> Vec<String> {
    ["*.db", "*.sqlite", "*.sqlite3", "*.db3"].map(str::to_owned).to_vec()
}

fn is_databases(value: &[String]) -> bool {
    value == databases()
}

/// A path from the root directory, without `.`, `..` and doubled slashes; symbolic links are not
/// looked at. `..` is only taken at the beginning of a relative path, where it cannot cross one.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    let refuse = |why: &str| {
        let shown = escape(path.as_os_str().as_bytes());
        Error::new(Reason::InvalidConfig, why.to_owned()).with("path", shown)
    };
    if path.as_os_str().is_empty() {
        return Err(refuse("a path is empty"));
    }
    let mut whole = if path.is_absolute() {
        PathBuf::from("/")
    } else {
        std::env::current_dir().doing(|| "cannot tell the current directory".to_owned())?
    };
    let mut named = path.is_absolute();
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                named = true;
                whole.push(name);
            }
            Component::ParentDir if named => {
                return Err(refuse("a path holds `..`; name the place that it leads to"));
            }
            Component::ParentDir => {
                whole.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(whole)
}

/// The place in a tree that stands for an absolute path; `None` for the root directory.
pub(crate) fn entry_path(path: &Path) -> Result<Option<EntryPath>> {
    let bytes = path.as_os_str().as_bytes();
    match bytes.strip_prefix(b"/").unwrap_or(bytes) {
        b"" => Ok(None),
        rest => EntryPath::new(rest).map(Some),
    }
}

/// Paths in documents: text if they are UTF-8, else escaped text.
mod paths {
    use super::{OsStrExt, OsString, OsStringExt, PathBuf, escape, unescape};
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged, expecting = "each path is text, or `{ escaped = \"…\" }`")]
    enum Written {
        Plain(String),
        Escaped { escaped: String },
    }

    pub(super) fn serialize<S: Serializer>(paths: &[PathBuf], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(paths.iter().map(|path| match path.to_str() {
            Some(text) => Written::Plain(text.to_owned()),
            None => Written::Escaped { escaped: escape(path.as_os_str().as_bytes()) },
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<PathBuf>, D::Error> {
        let written = Vec::<Written>::deserialize(d)?;
        let path = |w| match w {
            Written::Plain(text) => Ok(PathBuf::from(text)),
            Written::Escaped { escaped } => unescape(&escaped)
                .map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
                .ok_or_else(|| D::Error::custom(format!("not an escaped path: {escaped:?}"))),
        };
        written.into_iter().map(path).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn settings_are_short_and_complete() {
        let config: FilesConfig =
            serde_json::from_value(serde_json::json!({"paths": ["/etc/shop"]})).unwrap();
        assert_eq!(config, FilesConfig::new(vec!["/etc/shop".into()]));
        assert_eq!(
            serde_json::to_value(&config).unwrap(),
            serde_json::json!({"paths": ["/etc/shop"]})
        );
        let unknown = serde_json::json!({"paths": [], "exlude": []});
        assert!(serde_json::from_value::<FilesConfig>(unknown).is_err());
    }

    proptest! {
        #[test]
        fn every_path_survives_a_document(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut config = FilesConfig::new(vec![OsString::from_vec(bytes).into()]);
            config.one_file_system = true;
            config.ignore_file = false;
            config.databases = vec![];
            let text = serde_json::to_string(&config).unwrap();
            prop_assert_eq!(serde_json::from_str::<FilesConfig>(&text).unwrap(), config);
        }
    }

    #[test]
    fn paths_are_made_absolute() {
        let here = std::env::current_dir().unwrap();
        let cases: [(&str, PathBuf); 5] = [
            ("/a//b/./c/", "/a/b/c".into()),
            ("/", "/".into()),
            ("x", here.join("x")),
            (".", here.clone()),
            ("../x", here.parent().unwrap().join("x")),
        ];
        for (given, expected) in cases {
            assert_eq!(absolute(Path::new(given)).unwrap(), expected, "{given}");
        }
        for bad in ["", "/a/../b", "x/.."] {
            let e = absolute(Path::new(bad)).unwrap_err();
            assert_eq!(e.reason(), Reason::InvalidConfig, "{bad}");
        }
    }
}
