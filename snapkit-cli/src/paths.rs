//! A stack made of the paths on the command line: databases as databases, everything else as files.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use snapkit_core::artifact::SourceName;
use snapkit_core::context::Context;
use snapkit_core::engine::Stack;
use snapkit_core::error::{Error, IoContext as _, Reason, Result};
use snapkit_core::registry::Registry;
use snapkit_core::tree::{escape, unescape};

use crate::location::{lexical, resolve};

/// How much of the name of a stack of paths is made of their names.
const NAME_LEN: usize = 40;

/// The source of everything that is no database.
const FILES: &str = "files";

/// How files that are SQLite databases are named. Nothing is opened to find out: closing a
/// database's file would drop the locks that this process holds on it.
const DATABASES: [&str; 4] = ["db", "sqlite", "sqlite3", "db3"];

/// The stack of some paths. The first `named` of them have to be there; of the others, which are from a list that
/// was made earlier, one may be gone by now, and is then a thing that could not be captured. `amend` may change
/// the settings of a source of a kind.
pub(crate) fn stack(
    registry: &Registry,
    paths: &[PathBuf],
    named: usize,
    exclude: &[String],
    name: Option<&str>,
    host: String,
    mut amend: impl FnMut(&str, &mut Value) -> Result<()>,
) -> Result<Stack> {
    let name = name.map_or_else(|| stack_name(paths), str::to_owned);
    let mut files = Vec::new();
    let mut databases = Vec::new();
    let all: BTreeSet<PathBuf> = paths.iter().map(|path| lexical(path)).collect();
    for (number, path) in paths.iter().enumerate() {
        let metadata = match std::fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(e) if number >= named && e.kind() == std::io::ErrorKind::NotFound => {
                files.push(path);
                continue;
            }
            Err(e) => return Err(missing(path, e)),
        };
        let is_listed = number >= named;
        // As `find` lists it, it comes with the directory that it is in, as the link that it is.
        if is_listed
            && metadata.is_symlink()
            && lexical(path).ancestors().skip(1).any(|a| all.contains(a))
        {
            continue;
        }
        // Of many, one that is called like a database and is none is a file.
        if !is_listed && metadata.is_file() && has_database_name(path) {
            databases.push(path);
        } else {
            files.push(path);
        }
    }
    let mut sources = Vec::new();
    if !files.is_empty() {
        let paths: Vec<Value> = files.into_iter().map(|path| document(path)).collect();
        let mut settings = json!({ "paths": paths, "exclude": exclude });
        amend("files", &mut settings)?;
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
    Ok(Stack::new(name, host, sources))
}

/// The most that a list of paths may have: 64 MiB.
const MAX_LIST: u64 = 64 << 20;

/// The paths that a file lists, or standard input for `-`: one in a line, or ended by NULs if there is one.
/// Waiting for it ends when the run is to end.
pub(crate) async fn listed(cx: &Context, file: &Path) -> Result<Vec<PathBuf>> {
    let place = file.to_owned();
    let reading = cx.blocking(move || {
        let what = || format!("cannot read the list of paths {}", place.display());
        let mut bytes = Vec::new();
        let read: Box<dyn std::io::Read> = if place == Path::new("-") {
            Box::new(std::io::stdin())
        } else {
            Box::new(std::fs::File::open(&place).doing(what)?)
        };
        read.take(MAX_LIST + 1).read_to_end(&mut bytes).doing(what)?;
        Ok(bytes)
    });
    let bytes = cx.run(reading).await?;
    if bytes.len() as u64 > MAX_LIST {
        let e = Error::new(Reason::LimitExceeded, "a list of paths has at most 64 MiB");
        return Err(e.with("file", file.display()));
    }
    let separator = if bytes.contains(&0) { 0 } else { b'\n' };
    let paths = bytes.split(|b| *b == separator).filter(|path| !path.is_empty());
    let paths: Vec<_> =
        paths.map(|path| PathBuf::from(OsString::from_vec(path.to_vec()))).collect();
    if paths.is_empty() {
        return Err(Error::invalid("the list names no paths").with("file", file.display()));
    }
    Ok(paths)
}

/// Add patterns of what is left out to the settings of a source of files.
pub(crate) fn exclude(settings: &mut Value, patterns: &[String]) {
    let Some(settings) = settings.as_object_mut() else { return };
    let exclude = settings.entry("exclude").or_insert_with(|| Value::Array(Vec::new()));
    // What is no list is refused by the source, with better words.
    if let Some(exclude) = exclude.as_array_mut() {
        exclude.extend(patterns.iter().map(|pattern| json!(pattern)));
    }
}

/// The name of a stack of paths: the same for the same paths, and another for others, so that `latest` of one is
/// never taken for that of the other.
fn stack_name(paths: &[PathBuf]) -> String {
    let places: BTreeSet<PathBuf> = paths
        .iter()
        .map(|path| {
            let path = lexical(path);
            // A link at the end is captured as a link.
            match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => resolve(parent).join(name),
                _ => path,
            }
        })
        .collect();
    let mut hasher = blake3::Hasher::new();
    let mut names: Vec<String> = Vec::new();
    for place in &places {
        hasher.update(place.as_os_str().as_bytes()).update(&[0]);
        names.push(place.file_name().map_or_else(|| "root".to_owned(), plain));
    }
    let mut name: String = names.join("+").chars().take(NAME_LEN).collect();
    name.push('-');
    name.push_str(&hasher.finalize().to_hex()[..8]);
    name
}

/// The paths in the settings of a source, as [`document`] writes them.
pub(crate) fn of_settings(settings: &Value) -> Vec<PathBuf> {
    let path = settings.get("path").into_iter();
    let paths = settings.get("paths").and_then(Value::as_array).into_iter().flatten();
    path.chain(paths).filter_map(written).collect()
}

fn written(value: &Value) -> Option<PathBuf> {
    match value {
        Value::String(text) => Some(text.into()),
        other => unescape(other.get("escaped")?.as_str()?).map(|b| OsString::from_vec(b).into()),
    }
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

/// A name in the letters that names of sources have.
fn plain(name: &OsStr) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name = name.to_string_lossy();
    name.chars().map(|c| if allowed(c) { c } else { '_' }).take(200).collect()
}

/// A source name after a file's name, with a number if that is taken.
fn unique(path: &Path, taken: &mut BTreeSet<String>) -> String {
    let mut base = plain(path.file_stem().unwrap_or_default());
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
    fn a_stack_is_named_after_its_paths() {
        let name =
            |paths: &[&str]| stack_name(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(name(&["/nowhere/b/x", "/nowhere/a"]), name(&["/nowhere/a/", "/nowhere/b/./x"]));
        assert_ne!(name(&["/nowhere/a/x"]), name(&["/nowhere/b/x"]));
        assert_ne!(name(&["/nowhere/a", "/nowhere/b"]), name(&["/nowhere/a"]));
        assert!(name(&["/nowhere/up loads", "/nowhere/app.db"]).starts_with("app.db+up_loads-"));
        assert!(name(&["/"]).starts_with("root-"));
    }

    #[test]
    fn paths_are_read_as_they_are_written() {
        let odd = PathBuf::from(OsString::from_vec(b"/a\xff".to_vec()));
        let settings = json!({ "paths": [document(&odd), "/b"] });
        assert_eq!(of_settings(&settings), [odd, "/b".into()]);
        assert_eq!(of_settings(&json!({ "path": "/c" })), [PathBuf::from("/c")]);
        assert!(of_settings(&json!({ "url": "x" })).is_empty());
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
