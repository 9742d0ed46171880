//! Where things are: the repository, and the directories of this program.

use std::path::{Component, Path, PathBuf};

use snapkit_core::error::{Error, IoContext as _, Reason, Result};

use crate::env::{self, Env};

/// Below the directories that programs share.
const PROGRAM: &str = "snapkit";

/// The directories of this program.
#[derive(Debug)]
pub(crate) struct Places {
    /// The working directory when the program started.
    cwd: PathBuf,
    home: Option<PathBuf>,
    cache: Option<PathBuf>,
    state: Option<PathBuf>,
    config: Option<PathBuf>,
}

impl Places {
    /// From what was given, the environment and the password file.
    pub(crate) fn find(env: &Env, cache: Option<&Path>, state: Option<&Path>) -> Result<Self> {
        let cwd =
            std::env::current_dir().doing(|| "cannot tell the working directory".to_owned())?;
        // Jobs of cron and services may have no HOME.
        let home = env.path(env::HOME).filter(|p| p.is_absolute()).or_else(home_of_user);
        let given = |path: Option<&Path>, variable: &str| {
            let path = path.map(Path::to_owned).or_else(|| env.path(variable));
            path.map(|path| without_parents(cwd.join(path)))
        };
        // A relative path in an XDG variable is to be ignored.
        let usual = |variable: &str, below_home: &str| {
            let base = env.path(variable).filter(|p| p.is_absolute());
            base.or_else(|| home.as_ref().map(|h| h.join(below_home))).map(|b| b.join(PROGRAM))
        };
        let cache = given(cache, env::CACHE_DIR).or_else(|| usual(env::XDG_CACHE_HOME, ".cache"));
        let state =
            given(state, env::STATE_DIR).or_else(|| usual(env::XDG_STATE_HOME, ".local/state"));
        let config = usual(env::XDG_CONFIG_HOME, ".config");
        Ok(Self { cwd, home, cache, state, config })
    }

    /// A path as it was meant when the program started.
    pub(crate) fn absolute(&self, path: &Path) -> PathBuf {
        without_parents(self.cwd.join(path))
    }

    /// The directory of caches.
    pub(crate) fn cache(&self) -> Result<PathBuf> {
        self.cache.clone().ok_or_else(|| homeless("caches", "--cache-dir", env::CACHE_DIR))
    }

    /// The directory of local state.
    pub(crate) fn state(&self) -> Result<PathBuf> {
        self.state.clone().ok_or_else(|| homeless("local state", "--state-dir", env::STATE_DIR))
    }

    /// Where key files are kept, if there is such a place.
    pub(crate) fn keys(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// An error with a hint, if it comes from a home directory that this user cannot write to.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let said = error.chain();
        let is_below = |dir: &Option<PathBuf>| {
            dir.as_ref().is_some_and(|dir| said.contains(&dir.display().to_string()))
        };
        let is_refusal = matches!(error.reason(), Reason::PermissionDenied | Reason::NotFound);
        if error.has_own_hint()
            || !is_refusal
            || ![&self.cache, &self.state, &self.config].into_iter().any(is_below)
        {
            return error;
        }
        error.with_hint(
            "set HOME to a directory that you may write to, or name directories with --state-dir \
             and --cache-dir, and a key file with --key-file",
        )
    }

    /// The repository as a URL, or as an absolute path.
    pub(crate) fn repository(&self, given: &str) -> String {
        let is_url = given.split_once(':').is_some_and(|(scheme, rest)| {
            rest.starts_with('/') && !scheme.is_empty() && !scheme.contains('/')
        });
        if is_url || given.is_empty() {
            return given.to_owned();
        }
        // A shell does this, a stack file and a variable do not.
        let expanded = match (given.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(given),
        };
        match self.cwd.join(expanded).into_os_string().into_string() {
            Ok(path) => path,
            // A working directory that is not UTF-8: relative to it is as good.
            Err(_) => given.to_owned(),
        }
    }
}

/// A path as the sources of files take it: absolute, without `.` and `..`, links left alone.
pub(crate) fn lexical(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut plain = PathBuf::new();
    for component in absolute.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

/// A path without symbolic links, as far as it exists.
pub(crate) fn resolve(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    let mut exists = path;
    loop {
        if let Ok(real) = std::fs::canonicalize(exists) {
            return missing.into_iter().rev().fold(real, |path, name| path.join(name));
        }
        match (exists.parent(), exists.file_name()) {
            (Some(parent), Some(name)) => {
                missing.push(name);
                exists = parent;
            }
            _ => return path.to_owned(),
        }
    }
}

fn homeless(what: &str, flag: &str, variable: &str) -> Error {
    Error::invalid(format!(
        "there is no home directory for {what}: name a directory with {flag} or {variable}"
    ))
}

/// The home directory of the user that this process runs as, by the password file.
fn home_of_user() -> Option<PathBuf> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    home_in(&users, rustix::process::geteuid().as_raw())
}

/// `name:password:uid:gid:comment:home:shell`
fn home_in(users: &str, uid: u32) -> Option<PathBuf> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found = fields.next()?.parse() == Ok(uid);
        let home = PathBuf::from(fields.nth(2)?);
        (found && home.is_absolute()).then_some(home)
    })
}

/// A URL without the credentials that somebody has put into it, for what is told and remembered.
pub(crate) fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://…@{host}{path}"),
        None => url.to_owned(),
    }
}

/// The same place without `..` in its path, as the kernel goes there: up from where a link leads. Of what does
/// not exist nobody can say that, and it stays as it is.
fn without_parents(path: PathBuf) -> PathBuf {
    let components: Vec<_> = path.components().collect();
    let Some(last) = components.iter().rposition(|c| *c == Component::ParentDir) else {
        return path;
    };
    let above: PathBuf = components[..=last].iter().collect();
    match std::fs::canonicalize(above) {
        Ok(real) => real.join(components[last + 1..].iter().collect::<PathBuf>()),
        Err(_) => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(home: Option<&str>) -> Places {
        let home = home.map(PathBuf::from);
        Places { cwd: "/work".into(), home, cache: None, state: None, config: None }
    }

    #[test]
    fn homes_are_found() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\nbroken\nx:x:7:7::none:/bin/sh\ny:x:8:8::/home/y:/x\n";
        assert_eq!(home_in(users, 0), Some("/root".into()));
        assert_eq!(home_in(users, 8), Some("/home/y".into()));
        assert_eq!(home_in(users, 7), None);
        assert_eq!(home_in(users, 9), None);
    }

    #[test]
    fn repositories_are_urls_or_absolute() {
        let places = places(Some("/home/y"));
        for (given, expected) in [
            ("backups", "/work/backups"),
            ("./a:b", "/work/./a:b"),
            ("/srv/x", "/srv/x"),
            ("~/x", "/home/y/x"),
            ("file:///srv/x", "file:///srv/x"),
            ("s3://bucket/x", "s3://bucket/x"),
            ("", ""),
        ] {
            assert_eq!(places.repository(given), expected);
        }
    }

    #[test]
    fn paths_are_made_plain() {
        assert_eq!(lexical(Path::new("/a/./b/../c/")), Path::new("/a/c"));
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        assert_eq!(resolve(&real.join("link/x/y")), real.join("x/y"));
        assert_eq!(resolve(Path::new("/nowhere/x")), Path::new("/nowhere/x"));
    }

    #[test]
    fn who_has_no_home_is_told_what_to_give() {
        let e = places(None).state().unwrap_err();
        assert!(e.message().contains("--state-dir") && e.message().contains("SNAPKIT_STATE_DIR"));
        assert!(places(None).cache().unwrap_err().message().contains("SNAPKIT_CACHE_DIR"));
    }
}
