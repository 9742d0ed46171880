//! A stack made of the paths on the command line: databases as databases, everything else as files.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use snapkit_core::artifact::SourceName;
use snapkit_core::engine::Stack;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::registry::Registry;
use snapkit_core::tree::escape;

/// The name of a stack of paths.
pub(crate) const STACK_NAME: &str = "paths";

/// The source of everything that is no database.
const FILES: &str = "files";

/// How files that are SQLite databases are named. Nothing is opened to find out: closing a
/// database's file would drop the locks that this process holds on it.
const DATABASES: [&str; 4] = ["db", "sqlite", "sqlite3", "db3"];

/// The stack of some paths.
pub(crate) fn stack(
    registry: &Registry,
    paths: &[PathBuf],
    exclude: &[String],
    name: Option<&str>,
    host: String,
) -> Result<Stack> {
    let mut files = Vec::new();
    let mut databases = Vec::new();
    for path in paths {
        let metadata = std::fs::symlink_metadata(path).map_err(|e| missing(path, e))?;
        if metadata.is_file() && has_database_name(path) {
            databases.push(path);
        } else {
            files.push(path);
        }
    }
    let mut sources = Vec::new();
    if !files.is_empty() {
        let paths: Vec<Value> = files.into_iter().map(|path| document(path)).collect();
        let settings = json!({ "paths": paths, "exclude": exclude });
        sources.push(registry.build("files", SourceName::new(FILES)?, settings)?);
    } else if !exclude.is_empty() {
        return Err(Error::invalid(
            "--exclude is for directories, and there is none among the paths",
        ));
    }
    let mut taken = BTreeSet::from([FILES.to_owned()]);
    for path in databases {
        let name = unique(path, &mut taken);
        sources.push(registry.build(
            "sqlite",
            SourceName::new(name)?,
            json!({ "path": document(path) }),
        )?);
    }
    Ok(Stack::new(name.unwrap_or(STACK_NAME), host, sources))
}

fn missing(path: &Path, error: std::io::Error) -> Error {
    let shown = escape(path.as_os_str().as_bytes());
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::new(Reason::SourceMissing, "there is nothing at this path").with("path", shown)
        }
        _ => Error::io("cannot examine a path", error).with("path", shown),
    }
}

fn has_database_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| DATABASES.contains(&e.to_ascii_lowercase().as_str()))
}

/// A path in a document: text, or escaped text if it is not UTF-8.
fn document(path: &Path) -> Value {
    match path.to_str() {
        Some(text) => json!(text),
        None => json!({ "escaped": escape(path.as_os_str().as_bytes()) }),
    }
}

/// A source name after a file's name, with a number if that is taken.
fn unique(path: &Path, taken: &mut BTreeSet<String>) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut base: String = stem
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' })
        .take(200)
        .collect();
    if SourceName::new(base.as_str()).is_err() {
        "database".clone_into(&mut base);
    }
    let numbered = (2_u64..).map(|n| format!("{base}-{n}"));
    let free = std::iter::once(base.clone()).chain(numbered).find(|name| !taken.contains(name));
    let name = free.unwrap_or(base);
    taken.insert(name.clone());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_are_told_by_their_names() {
        for (path, is) in [("a.db", true), ("x/b.SQLite3", true), ("a.dbx", false), ("db", false)] {
            assert_eq!(has_database_name(Path::new(path)), is, "{path}");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut taken = BTreeSet::from([FILES.to_owned()]);
        let names: Vec<_> = ["a/app.db", "b/app.db", "c/app.sqlite", "files.db", "ä b.db", "...db"]
            .map(|path| unique(Path::new(path), &mut taken))
            .into();
        assert_eq!(names, ["app", "app-2", "app-3", "files-2", "__b", "database"]);
    }
}
