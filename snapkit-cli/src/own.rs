//! What snapkit keeps itself: its repository, its local state and its caches. They are no part of what is
//! captured, and nothing is restored over them.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::tree::escape;

use crate::location::{Places, lexical, resolve};
use crate::paths;

/// The directories that are snapkit's own, without symbolic links in their paths.
#[derive(Debug)]
pub(crate) struct Own {
    repository: Option<PathBuf>,
    others: Vec<(&'static str, PathBuf)>,
}

impl Own {
    /// Those of a run.
    pub(crate) fn of(url: &str, places: &Places) -> Result<Self> {
        let others = [("local state", places.state().ok()), ("cache", places.cache().ok())];
        Ok(Self {
            repository: snapkit_sinks::directory(url)?.map(|path| resolve(&path)),
            others: others.into_iter().filter_map(|(what, p)| Some((what, resolve(&p?)))).collect(),
        })
    }

    /// Exclude what lies in the paths of a source of files, and say what that is. Relative paths are taken
    /// from the working directory, as the source takes them.
    pub(crate) fn leave_out(&self, kind: &str, settings: &mut Value) -> Result<Vec<String>> {
        let mut left_out = Vec::new();
        if kind != "files" {
            return Ok(left_out);
        }
        let mut patterns = Vec::new();
        for root in paths::of_settings(settings) {
            let root = lexical(&root);
            let real = resolve_parent(&root);
            if let Some(repository) = self.repository.as_ref().filter(|r| real.starts_with(r)) {
                return Err(Error::invalid(
                    "this path lies in the repository, which is not captured into itself",
                )
                .with("path", escape(root.as_os_str().as_bytes()))
                .with("repository", repository.display()));
            }
            let repository = self.repository.iter().map(|path| ("repository", path));
            for (what, path) in repository.chain(self.others.iter().map(|(what, p)| (*what, p))) {
                // Whoever names the directory itself wants it.
                let Some(below) = path.strip_prefix(&real).ok().filter(|p| *p != Path::new(""))
                else {
                    continue;
                };
                let place = root.join(below);
                let pattern = pattern(&place);
                if !patterns.contains(&pattern) {
                    patterns.push(pattern);
                    left_out.push(format!("{what} {}", escape(place.as_os_str().as_bytes())));
                }
            }
        }
        if patterns.is_empty() {
            return Ok(left_out);
        }
        // The last pattern that matches decides.
        paths::exclude(settings, &patterns);
        Ok(left_out)
    }

    /// That a restore puts nothing into the repository.
    pub(crate) fn check_target(&self, target: &Path) -> Result<()> {
        match &self.repository {
            Some(repository) if resolve(target).starts_with(repository) => {
                Err(Error::invalid("the target lies in the repository: restore elsewhere")
                    .with("target", target.display())
                    .with("repository", repository.display()))
            }
            _ => Ok(()),
        }
    }

    /// That the repository does not lie in what a restore replaces.
    pub(crate) fn check_replaced(&self, root: &Path) -> Result<()> {
        match &self.repository {
            Some(repository) if repository.starts_with(resolve(root)) => Err(Error::new(
                Reason::AlreadyExists,
                "the repository lies in what would be replaced, and would be moved away with it",
            )
            .with("path", root.display())
            .with("repository", repository.display())
            .with_hint("restore with --target, or name a part of the snapshot")),
            _ => Ok(()),
        }
    }
}

/// A path in which a link at the end is not followed.
fn resolve_parent(path: &Path) -> PathBuf {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => resolve(parent).join(name),
        _ => resolve(path),
    }
}

/// An absolute path as a pattern that matches it.
fn pattern(path: &Path) -> String {
    let mut pattern = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '\\') {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        // A pattern is text: a byte that is none is any byte.
        pattern.extend(chunk.invalid().iter().map(|_| '?'));
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn own() -> Own {
        let repository = Some("/nowhere/app/back ups/[1]".into());
        Own { repository, others: vec![("cache", "/nowhere/home/.cache/snapkit".into())] }
    }

    #[test]
    fn what_lies_in_a_source_is_excluded_from_it() {
        let mut settings = json!({ "paths": ["/nowhere/app", "/nowhere/x"], "exclude": ["*.tmp"] });
        let said = own().leave_out("files", &mut settings).unwrap();
        assert_eq!(said, ["repository /nowhere/app/back ups/[1]"]);
        assert_eq!(settings["exclude"], json!(["*.tmp", r"/nowhere/app/back ups/\[1\]"]));

        let mut settings = json!({ "paths": ["/"] });
        assert_eq!(own().leave_out("files", &mut settings).unwrap().len(), 2);
        assert_eq!(settings["exclude"][1], "/nowhere/home/.cache/snapkit");
    }

    #[test]
    fn what_lies_elsewhere_is_left_alone() {
        for (kind, paths) in [("files", "/nowhere/ap"), ("files", "/else"), ("sqlite", "/nowhere")]
        {
            let mut settings = json!({ "paths": [paths] });
            assert!(own().leave_out(kind, &mut settings).unwrap().is_empty());
            assert_eq!(settings, json!({ "paths": [paths] }));
        }
        // A cache that is asked for is wanted.
        let mut settings = json!({ "paths": ["/nowhere/home/.cache/snapkit"] });
        assert!(own().leave_out("files", &mut settings).unwrap().is_empty());
        let mut settings = json!({ "paths": ["/nowhere/app/back ups/[1]/packs"] });
        assert!(own().leave_out("files", &mut settings).is_err());
    }

    #[test]
    fn bytes_that_are_no_text_are_matched() {
        use std::ffi::OsStr;
        assert_eq!(pattern(Path::new(OsStr::from_bytes(b"/a\xff*"))), r"/a?\*");
    }
}
