//! The places that a tree is gathered from.

use std::path::PathBuf;

use snapkit_core::error::Result;
use snapkit_core::tree::EntryPath;

use crate::config;

/// Places, sorted, each once. They may lie in one another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roots {
    /// Whether everything is asked for, from the root directory on.
    everything: bool,
    paths: Vec<EntryPath>,
}

impl Roots {
    /// From absolute paths.
    pub(crate) fn new(paths: &[PathBuf]) -> Result<Self> {
        let mut roots = Self::default();
        for path in paths {
            match config::entry_path(path)? {
                Some(path) => roots.paths.push(path),
                None => roots.everything = true,
            }
        }
        roots.paths.sort();
        roots.paths.dedup();
        Ok(roots)
    }

    pub(crate) fn everything(&self) -> bool {
        self.everything
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &EntryPath> {
        self.paths.iter()
    }

    /// Those that do not lie in another one.
    pub(crate) fn outermost(&self) -> Vec<EntryPath> {
        let mut outermost: Vec<EntryPath> = Vec::new();
        for path in &self.paths {
            if !outermost.last().is_some_and(|o| path.starts_with(o)) {
                outermost.push(path.clone());
            }
        }
        outermost
    }

    pub(crate) fn contains(&self, path: &EntryPath) -> bool {
        self.paths.binary_search(path).is_ok()
    }

    /// The names in a directory that lead to roots below it, sorted. An empty path is the top.
    pub(crate) fn leads<'a>(&'a self, directory: &'a [u8]) -> Vec<&'a [u8]> {
        let mut names: Vec<&[u8]> = self
            .below(directory)
            .filter_map(|p| {
                let rest = p.as_bytes().get(directory.len()..)?;
                let rest = rest.strip_prefix(b"/").unwrap_or(rest);
                rest.split(|b| *b == b'/').next().filter(|n| !n.is_empty())
            })
            .collect();
        names.dedup();
        names
    }

    /// Whether there are roots below a directory.
    pub(crate) fn leads_on(&self, directory: &EntryPath) -> bool {
        self.below(directory.as_bytes()).any(|p| p != directory)
    }

    /// The roots at a path and below it.
    pub(crate) fn at(&self, path: &EntryPath) -> Vec<EntryPath> {
        self.below(path.as_bytes()).cloned().collect()
    }

    /// Those that `keep` wants, and whether everything is asked for as before.
    pub(crate) fn only(&self, keep: impl Fn(&EntryPath) -> bool) -> Self {
        let paths = self.paths.iter().filter(|p| keep(p)).cloned().collect();
        Self { everything: self.everything, paths }
    }

    /// The roots at a directory and below it.
    fn below<'a>(&'a self, directory: &'a [u8]) -> impl Iterator<Item = &'a EntryPath> {
        let inside = move |p: &&EntryPath| {
            directory.is_empty()
                || p.as_bytes()
                    .strip_prefix(directory)
                    .is_some_and(|rest| rest.first().is_none_or(|b| *b == b'/'))
        };
        // They stand together in the order of entries, so that one search finds where they begin.
        let start = match EntryPath::new(directory) {
            Ok(path) => self.paths.partition_point(|p| *p < path),
            Err(_) => 0,
        };
        self.paths[start..].iter().take_while(inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_in_one_another() {
        let paths = ["/srv/app", "/etc", "/srv/app/x/y", "/srv/app", "/srv/app-2"];
        let roots = Roots::new(&paths.map(PathBuf::from)).unwrap();
        let shown: Vec<_> = roots.outermost().iter().map(EntryPath::display).collect();
        assert_eq!(shown, ["etc", "srv/app", "srv/app-2"]);
        assert_eq!(roots.leads(b""), [b"etc", b"srv"]);
        assert_eq!(roots.leads(b"srv"), [&b"app"[..], b"app-2"]);
        assert_eq!(roots.leads(b"srv/app"), [b"x"]);
        assert!(roots.leads(b"etc").is_empty());
        let p = |s: &str| EntryPath::new(s).unwrap();
        assert!(roots.leads_on(&p("srv/app")) && !roots.leads_on(&p("srv/app/x/y")));
        assert!(roots.contains(&p("etc")) && !roots.contains(&p("srv")));
        assert_eq!(roots.at(&p("srv/app")), [p("srv/app"), p("srv/app/x/y")]);
        assert_eq!(roots.only(|r| *r == p("etc")).outermost(), [p("etc")]);
        assert!(Roots::new(&["/".into()]).unwrap().everything());
    }
}
