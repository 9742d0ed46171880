//! Every environment variable that the command line reads, and where their values come from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use snapkit_core::error::{Error, IoContext as _, Reason, Result};
use snapkit_core::secret::{Secret, SecretString};
use snapkit_sinks::Settings;

/// Where the repository is, unless `--repo` says so: a path or a URL.
pub(crate) const REPO: &str = "SNAPKIT_REPO";
/// The stack file, unless `--stack` names one.
pub(crate) const STACK: &str = "SNAPKIT_STACK";
/// The host's name as it stands in snapshots. The system's name unless given; worth setting where
/// that is made up anew each time, as in containers.
pub(crate) const HOST: &str = "SNAPKIT_HOST";
/// A key file that opens the repository.
pub(crate) const KEY_FILE: &str = "SNAPKIT_KEY_FILE";
/// A passphrase that opens the repository.
pub(crate) const PASSPHRASE: &str = "SNAPKIT_PASSPHRASE";
/// A file whose first line is a passphrase that opens the repository.
pub(crate) const PASSPHRASE_FILE: &str = "SNAPKIT_PASSPHRASE_FILE";
/// A shell command whose first line of output is a passphrase that opens the repository.
pub(crate) const PASSPHRASE_COMMAND: &str = "SNAPKIT_PASSPHRASE_COMMAND";
/// Directory of caches, which may be deleted at any time, unless `--cache-dir` names one.
pub(crate) const CACHE_DIR: &str = "SNAPKIT_CACHE_DIR";
/// Directory of local state, unless `--state-dir` names one.
pub(crate) const STATE_DIR: &str = "SNAPKIT_STATE_DIR";
/// What is logged, in the words of `tracing`, such as `snapkit_core=debug`. Wins over `-v`.
pub(crate) const LOG: &str = "SNAPKIT_LOG";
/// The home directory; that of the password file if it is not set.
pub(crate) const HOME: &str = "HOME";
/// Where caches are kept, `$HOME/.cache` unless set.
pub(crate) const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
/// Where local state is kept, `$HOME/.local/state` unless set.
pub(crate) const XDG_STATE_HOME: &str = "XDG_STATE_HOME";
/// Where new key files are kept, `$HOME/.config` unless set.
pub(crate) const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";

// What glibc's allocator is told: how many arenas it makes, and to keep what was freed for what comes next,
// up to 64 MiB an arena.
pub(crate) const ALLOCATOR: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "2"),
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "67108864"),
];
/// That this program has started itself anew, with `MALLOC_ARENA_MAX` and two more of glibc.
pub(crate) const STARTED: &str = "SNAPKIT_STARTED";

/// The largest file of variables: 1 MiB.
const MAX_FILE: u64 = 1 << 20;

/// The variables of the process, and below them those of `--env-file`.
#[derive(Debug, Default)]
pub(crate) struct Env {
    /// What stands in such files is mostly secret.
    file: BTreeMap<String, SecretString>,
}

impl Env {
    /// The process's variables, and those of a file where the process has none.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self> {
        match file {
            Some(path) => Ok(Self { file: parse(path, &read_small(path, MAX_FILE)?)? }),
            None => Ok(Self::default()),
        }
    }

    /// A variable that is set and not empty, as the system has it.
    pub(crate) fn raw(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
            .or_else(|| self.file.get(name).map(|value| OsString::from(value.expose())))
            .filter(|value| !value.is_empty())
    }

    /// A variable that is set and not empty, as text.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>> {
        let Some(value) = self.raw(name) else { return Ok(None) };
        // The value may be a secret: it is not repeated.
        value.into_string().map(Some).map_err(|_| {
            Error::new(Reason::InvalidConfig, format!("the variable {name} is not valid UTF-8"))
        })
    }

    /// A variable that is set and not empty, as a path.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.raw(name).map(PathBuf::from)
    }

    /// What stores need to know beside their URLs.
    pub(crate) fn of_stores(&self) -> Settings {
        let text = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let of_file = self.of_file().map(|(name, value)| (name.clone(), value.clone()));
        Settings::new(std::env::vars_os().filter_map(text).chain(of_file), self.path(HOME))
    }

    /// The variables of the file, for programs that are started.
    pub(crate) fn of_file(&self) -> impl Iterator<Item = (&String, &String)> {
        let unset = self.file.iter().filter(|(name, _)| std::env::var_os(name).is_none());
        unset.map(|(name, value)| (name, value.expose()))
    }
}

/// Lines `NAME=VALUE`, as for systemd and Docker: comments with `#`, an `export` in front and one pair
/// of quotes around the value are allowed, nothing is expanded. A comment that would become a part of a value is refused, and
/// so is what stands behind quotes, or a backslash between double ones: a shell makes something else of them.
fn parse(path: &Path, text: &str) -> Result<BTreeMap<String, SecretString>> {
    let mut variables = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let assignment = line.strip_prefix("export ").unwrap_or(line);
        let name = assignment.split_once('=').map(|(name, value)| (name.trim(), value));
        let Some((name, value)) = name.filter(|(name, _)| is_name(name)) else {
            // The line may hold a secret: it is not repeated.
            return Err(Error::new(Reason::InvalidConfig, "a line is not NAME=VALUE")
                .with("file", format!("{}:{}", path.display(), number + 1)));
        };
        let value = unquoted(value).map_err(|what| {
            Error::new(Reason::InvalidConfig, format!("the value of {name} {what}"))
                .with("file", format!("{}:{}", path.display(), number + 1))
        })?;
        variables.insert(name.to_owned(), Secret::new(value.to_owned()));
    }
    Ok(variables)
}

/// A value without its quotes and without a comment behind it; or what is wrong with it. It may be a secret.
fn unquoted(value: &str) -> Result<&str, &'static str> {
    let is_comment = |rest: &str| {
        rest.is_empty() || (rest.starts_with([' ', '\t']) && rest.trim_start().starts_with('#'))
    };
    let (with_space, value) = (value, value.trim());
    let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
        return match with_space.find(" #").or_else(|| with_space.find("\t#")) {
            Some(_) => Err(
                "has a `#` behind a space: quote the value, or put the comment on a line of its own",
            ),
            None => Ok(value),
        };
    };
    let inner = &value[1..];
    let end = inner.find(quote).ok_or("has a quote that does not end")?;
    let (text, rest) = (&inner[..end], &inner[end + 1..]);
    if quote == '"' && text.contains('\\') {
        return Err(
            "has a backslash between double quotes: use single quotes, nothing is expanded",
        );
    }
    if is_comment(rest) { Ok(text) } else { Err("goes on behind its quotes") }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The variables that are not handed on to programs that are started: what opens the repository, and what this
/// program has set for itself.
pub(crate) fn withheld() -> impl Iterator<Item = &'static str> {
    // Where this is not there, somebody else has set the others.
    let is_ours = std::env::var_os(STARTED).is_some();
    let own = ALLOCATOR.into_iter().map(|(name, _)| name).chain([STARTED]);
    [PASSPHRASE].into_iter().chain(own.filter(move |_| is_ours))
}

/// The text of a file that should be short.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<String> {
    use std::io::Read as _;
    let what = || format!("cannot read {}", path.display());
    let file = std::fs::File::open(path).doing(what)?;
    let mut text = String::new();
    file.take(limit + 1).read_to_string(&mut text).doing(what)?;
    if text.len() as u64 > limit {
        return Err(Error::new(
            Reason::LimitExceeded,
            format!("the file has more than {limit} bytes"),
        )
        .with("file", path.display()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_variables_are_read() {
        let text = "# a comment\nA=1\n\nexport B = \"two words\" # told\nC='x\\y'\nD=a=b#c\nE=\n";
        let read = parse(Path::new("x"), text).unwrap();
        let expected = [("A", "1"), ("B", "two words"), ("C", "x\\y"), ("D", "a=b#c"), ("E", "")];
        assert!(read.iter().map(|(k, v)| (k.as_str(), v.expose().as_str())).eq(expected));
    }

    /// A passphrase that is read in another way than its owner wrote it down opens nothing on the day of need.
    #[test]
    fn what_a_shell_reads_in_another_way_is_refused() {
        for bad in ["'x'y", "\"a\\\"b\"", "'x", "x # y", "\"x\"#y", " # y"] {
            let e = parse(Path::new("x"), &format!("A={bad}\n")).unwrap_err();
            assert!(
                e.to_string().starts_with("the value of A ") && !e.to_string().contains(bad),
                "{e}"
            );
        }
    }

    #[test]
    fn a_bad_line_is_named_and_not_repeated() {
        for bad in ["hunter2", "1A=hunter2", "a b=hunter2", "=hunter2"] {
            let e = parse(Path::new("x"), &format!("A=1\n{bad}\n")).unwrap_err();
            assert_eq!(e.to_string(), "a line is not NAME=VALUE (file=x:2)");
        }
    }
}
