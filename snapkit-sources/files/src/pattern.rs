//! Patterns of what to capture and what to leave out, in the manner of `.gitignore`.

use std::sync::Arc;

use globset::{Candidate, GlobBuilder, GlobSet, GlobSetBuilder};
use snapkit_core::error::{Error, Reason, Result};

use crate::config::FilesConfig;

/// An ordered list of patterns; the last one that matches decides.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    set: GlobSet,
    rules: Vec<Rule>,
    /// Whether any pattern depends on more than the last component.
    deep: bool,
}

#[derive(Clone, Copy, Debug)]
struct Rule {
    negated: bool,
    directories_only: bool,
}

/// The longest pattern, in bytes.
const MAX_PATTERN: usize = 16 << 10;

/// The most braces in one.
const MAX_CHOICES: usize = 64;

/// Patterns may come out of a repository, and nested braces are read by recursion.
fn is_too_much(pattern: &str) -> bool {
    pattern.len() > MAX_PATTERN || pattern.matches('{').count() > MAX_CHOICES
}

impl Rules {
    /// Patterns from a configuration: each must make sense.
    pub(crate) fn new(patterns: &[String]) -> Result<Self> {
        let mut builder = Builder::new();
        for pattern in patterns {
            if is_too_much(pattern) {
                let what = "a pattern is too long, or has too many choices in braces";
                return Err(Error::new(Reason::InvalidConfig, what));
            }
            builder.add(pattern).map_err(|e| {
                Error::new(Reason::InvalidConfig, format!("not a pattern: {pattern:?}"))
                    .caused_by(e)
            })?;
        }
        builder.build()
    }

    /// The lines of an ignore file. As in git, a line that is no pattern matches nothing.
    pub(crate) fn from_lines(text: &[u8]) -> Result<Self> {
        let mut builder = Builder::new();
        for line in text.split(|b| *b == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            // A pattern must be text; a name that is not can still be matched with `?` and `*`.
            let Ok(line) = std::str::from_utf8(line) else { continue };
            let bare = line.trim_end_matches(' ');
            // A backslash keeps one space at the end.
            let line = match line.strip_prefix(bare) {
                Some(spaces) if bare.ends_with('\\') && !spaces.is_empty() => &line[..=bare.len()],
                _ => bare,
            };
            if !line.is_empty() && !line.starts_with('#') && !is_too_much(line) {
                builder.add(line).unwrap_or_default();
            }
        }
        builder.build()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What the last matching pattern says of a path: yes, no, or nothing.
    fn decide(&self, path: &[u8], directory: bool) -> Option<(usize, bool)> {
        if self.is_empty() {
            return None;
        }
        let matches = self.set.matches_candidate(&Candidate::from_bytes(path));
        let last =
            matches.into_iter().filter(|i| directory || !self.rules[*i].directories_only).max()?;
        Some((last, !self.rules[last].negated))
    }

    /// The same of a path that may be given relative to a root or from the root directory.
    fn decide_either(&self, relative: &[u8], whole: &[u8], directory: bool) -> Option<bool> {
        let first = self.decide(relative, directory);
        let second = if self.deep { self.decide(whole, directory) } else { None };
        first.max(second).map(|(_, yes)| yes)
    }
}

#[derive(Debug)]
struct Builder {
    set: GlobSetBuilder,
    rules: Vec<Rule>,
    deep: bool,
}

impl Builder {
    fn new() -> Self {
        Self { set: GlobSetBuilder::new(), rules: Vec::new(), deep: false }
    }

    fn add(&mut self, pattern: &str) -> Result<(), globset::Error> {
        let (negated, rest) = match pattern.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, pattern),
        };
        let (directories_only, rest) = match rest.strip_suffix('/') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        // As in .gitignore what is blank matches nothing, and must not leave out everything.
        if rest.trim_start_matches('/').is_empty() {
            return Ok(());
        }
        let anchored = rest.contains('/');
        let glob = match rest.strip_prefix('/') {
            Some(rest) => rest.to_owned(),
            None if anchored => rest.to_owned(),
            None => format!("**/{rest}"),
        };
        let glob =
            GlobBuilder::new(&glob).literal_separator(true).backslash_escape(true).build()?;
        self.set.add(glob);
        self.rules.push(Rule { negated, directories_only });
        self.deep |= anchored;
        Ok(())
    }

    fn build(self) -> Result<Rules> {
        let set = self.set.build().map_err(|e| {
            Error::new(Reason::InvalidConfig, "these patterns are too large together").caused_by(e)
        })?;
        Ok(Rules { set, rules: self.rules, deep: self.deep })
    }
}

/// The rules of an ignore file, over those of the directories above.
#[derive(Debug)]
pub(crate) struct Ignore {
    pub(crate) rules: Rules,
    /// Where paths below the file's directory begin.
    pub(crate) from: usize,
    pub(crate) above: Option<Arc<Self>>,
}

/// What is captured and what is left out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    include: Rules,
    exclude: Rules,
    databases: Rules,
    pub(crate) ignore_file: bool,
}

impl Filter {
    pub(crate) fn new(config: &FilesConfig) -> Result<Self> {
        Ok(Self {
            include: Rules::new(&config.include)?,
            exclude: Rules::new(&config.exclude)?,
            databases: Rules::new(&config.databases)?,
            ignore_file: config.ignore_file,
        })
    }

    /// Whether only some things are asked for.
    pub(crate) fn selects(&self) -> bool {
        !self.include.is_empty()
    }

    /// Whether a pattern asks for this path. `root` is where paths below its root begin.
    pub(crate) fn included(&self, path: &[u8], root: usize, directory: bool) -> bool {
        self.include.decide_either(below(path, root), path, directory).unwrap_or(false)
    }

    /// Whether a pattern leaves this path out.
    pub(crate) fn excluded(
        &self,
        path: &[u8],
        root: usize,
        ignore: Option<&Arc<Ignore>>,
        directory: bool,
    ) -> bool {
        if self.exclude.decide_either(below(path, root), path, directory).unwrap_or(false) {
            return true;
        }
        let mut ignore = ignore;
        while let Some(file) = ignore {
            if let Some((_, yes)) = file.rules.decide(below(path, file.from), directory) {
                return yes;
            }
            ignore = file.above.as_ref();
        }
        false
    }

    /// Whether a file of this name is a database.
    pub(crate) fn is_database(&self, name: &[u8]) -> bool {
        self.databases.decide(name, false).is_some_and(|(_, yes)| yes)
    }
}

fn below(path: &[u8], from: usize) -> &[u8] {
    path.get(from..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(exclude: &[&str]) -> Filter {
        let exclude: Vec<String> = exclude.iter().map(|s| (*s).to_owned()).collect();
        Filter { exclude: Rules::new(&exclude).unwrap(), ..Filter::default() }
    }

    #[test]
    fn patterns_match_as_gitignore_does() {
        let root = "srv/app/".len();
        let cases: &[(&str, &str, bool, bool)] = &[
            ("*.tmp", "srv/app/a/b.tmp", false, true),
            ("*.tmp", "srv/app/a/b.tmp.c", false, false),
            ("cache", "srv/app/x/cache", true, true),
            ("cache/", "srv/app/x/cache", true, true),
            ("cache/", "srv/app/x/cache", false, false),
            ("a/b", "srv/app/a/b", false, true),
            ("a/b", "srv/app/x/a/b", false, false),
            ("/a", "srv/app/a", false, true),
            ("/a", "srv/app/b/a", false, false),
            ("/srv/app/b", "srv/app/b", false, true),
            ("a/*/c", "srv/app/a/b/c", false, true),
            ("a/*/c", "srv/app/a/b/b/c", false, false),
            ("a/**/c", "srv/app/a/b/b/c", false, true),
            ("**/c", "srv/app/a/b/c", false, true),
            ("[ab].log", "srv/app/a.log", false, true),
            ("\\!odd", "srv/app/!odd", false, true),
        ];
        for (pattern, path, directory, expected) in cases {
            let found = filter(&[pattern]).excluded(path.as_bytes(), root, None, *directory);
            assert_eq!(found, *expected, "{pattern} {path}");
        }
        assert!(filter(&["f?g"]).excluded(b"srv/app/f\xffg", root, None, false));
        assert!(Rules::new(&["a[".to_owned()]).is_err());
        let many: Vec<_> =
            (0..20_000).map(|n| format!("{n}-{{a,b,c,d,e,f,g,h}}?{{a,b,c,d}}")).collect();
        let e = Rules::new(&many).unwrap_err();
        assert_eq!(e.to_string(), "these patterns are too large together");
    }

    #[test]
    fn the_last_match_decides_and_the_deeper_file_wins() {
        let f = filter(&["*.log", "!keep.log"]);
        assert!(f.excluded(b"r/a.log", 2, None, false));
        assert!(!f.excluded(b"r/keep.log", 2, None, false));

        let top = Arc::new(Ignore {
            rules: Rules::from_lines(b"# comment\n\n*.o\r\nspace\\ \n/only-here\n\xff\nbad[\n")
                .unwrap(),
            from: 2,
            above: None,
        });
        let deep =
            Ignore { rules: Rules::from_lines(b"!good.o\n").unwrap(), from: 4, above: Some(top) };
        let deep = Arc::new(deep);
        let none = Filter::default();
        for (path, expected) in [
            (&b"r/d/bad.o"[..], true),
            (b"r/d/good.o", false),
            (b"r/d/space ", true),
            (b"r/d/space", false),
            (b"r/d/only-here", false),
            (b"r/only-here", true),
        ] {
            assert_eq!(none.excluded(path, 2, Some(&deep), false), expected, "{path:?}");
        }
    }
}
