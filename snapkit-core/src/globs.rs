//! Globs over the paths of a tree, as people write them for `--include` and `find`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::{Error, Result};
use crate::tree::EntryPath;

/// A set of globs. One without a slash is a name, anywhere; one with a slash is a whole path from the root
/// directory, in which `*` and `?` match no slash.
#[derive(Clone, Debug)]
pub struct PathGlobs(GlobSet);

impl PathGlobs {
    /// Understand globs. `invalid-argument` for one that is empty or malformed, and for too many.
    pub fn new(globs: &[String], ignore_case: bool) -> Result<Self> {
        let mut set = GlobSetBuilder::new();
        for glob in globs {
            if glob.is_empty() {
                return Err(Error::invalid("an empty glob would match everything"));
            }
            let full = match glob.contains('/') {
                true => glob.trim_start_matches('/').to_owned(),
                false => format!("**/{glob}"),
            };
            let built = GlobBuilder::new(&full)
                .literal_separator(true)
                .case_insensitive(ignore_case)
                .build()
                .map_err(|e| Error::invalid(format!("not a glob: {glob:?}")).caused_by(e))?;
            set.add(built);
        }
        let set = set.build();
        Ok(Self(
            set.map_err(|e| Error::invalid("the globs are too many or too long").caused_by(e))?,
        ))
    }

    /// Whether a name that is no path matches.
    #[must_use]
    pub fn is_name(&self, name: &str) -> bool {
        self.0.is_match(name)
    }

    /// Whether a path matches.
    #[must_use]
    pub fn is_path(&self, path: &EntryPath) -> bool {
        self.is_match(path.as_bytes())
    }

    /// Whether a path or a directory that it lies in matches.
    #[must_use]
    pub fn covers(&self, path: &EntryPath) -> bool {
        let bytes = path.as_bytes();
        let slashes = bytes.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
        let mut ends = slashes.chain([bytes.len()]);
        ends.any(|end| self.is_match(&bytes[..end]))
    }

    fn is_match(&self, path: &[u8]) -> bool {
        self.0.is_match(Path::new(OsStr::from_bytes(path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_paths_and_what_lies_in_them() {
        let path = |text: &str| EntryPath::new(text.as_bytes().to_vec()).unwrap();
        let globs =
            |text: &str, ignore_case| PathGlobs::new(&[text.to_owned()], ignore_case).unwrap();
        let name = globs("*.log", false);
        assert!(name.is_path(&path("var/a.log")) && name.is_path(&path("a.log")));
        assert!(!name.is_path(&path("var/a.log/x")) && name.covers(&path("var/a.log/x")));
        assert!(name.is_name("app.log") && !name.is_name("app.LOG"));
        assert!(globs("*.log", true).is_path(&path("A.LOG")));
        let whole = globs("/var/*", false);
        assert!(whole.is_path(&path("var/a")) && !whole.is_path(&path("var/a/b")));
        assert!(whole.covers(&path("var/a/b")) && !whole.covers(&path("srv/var/a")));
        for (bad, why) in [("", "empty glob"), ("[", "not a glob")] {
            let e = PathGlobs::new(&[bad.to_owned()], false).unwrap_err();
            assert!(e.to_string().contains(why), "{e}");
        }
    }
}
