//! `SNAPSHOT[:SOURCE[/ARTIFACT[/PATH]]]`: a snapshot, or something in it.

use snapkit_core::artifact::{Shape, SourceName};
use snapkit_core::engine::Selection;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::manifest::{ArtifactRecord, Head, Snapshot, SourceRecord};
use snapkit_core::tree::{EntryPath, escape, unescape};

/// A place as a person writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    /// An id, a prefix of one, a name, `latest`, or a time.
    pub(crate) snapshot: String,
    pub(crate) source: Option<SourceName>,
    /// What stands behind the source: an artifact, a path in one, or a path in the only tree.
    pub(crate) inside: Option<EntryPath>,
}

/// What a spec names in a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Named<'s> {
    pub(crate) source: &'s SourceRecord,
    pub(crate) artifact: Option<&'s ArtifactRecord>,
    /// In an artifact that is a tree.
    pub(crate) path: Option<EntryPath>,
}

impl Spec {
    /// Read a place. In names and paths `\xNN` is a byte and `\\` a backslash, as in what is shown.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::invalid(why).with("given", text);
        let (snapshot, rest) = text.split_at(snapshot_len(text));
        if snapshot.is_empty() {
            return Err(bad("a snapshot must be named: SNAPSHOT[:SOURCE[/ARTIFACT[/PATH]]]"));
        }
        let mut spec = Self { snapshot: snapshot.to_owned(), source: None, inside: None };
        let Some(rest) = rest.strip_prefix(':') else { return Ok(spec) };
        let rest = rest.trim_end_matches('/');
        let (source, inside) = match rest.split_once('/') {
            Some((source, inside)) => (source, Some(inside)),
            None => (rest, None),
        };
        let plain = |t| unescape(t).ok_or_else(|| bad("a backslash begins \\xNN or \\\\"));
        let source = String::from_utf8(plain(source)?)
            .map_err(|_| bad("the name of a source is not valid UTF-8"))?;
        spec.source = Some(source_name(&source)?);
        spec.inside = inside.map(plain).transpose()?.map(EntryPath::new).transpose()?;
        Ok(spec)
    }

    /// The source that it names, if it names one.
    fn source<'s>(&self, snapshot: &'s Snapshot) -> Result<Option<&'s SourceRecord>> {
        self.check_source(&Head::from(snapshot))?;
        Ok(self.source.as_ref().and_then(|name| snapshot.source(name.as_str())))
    }

    /// An error if it names a source that a snapshot does not have.
    pub(crate) fn check_source(&self, snapshot: &Head) -> Result<()> {
        let Some(name) = self.source.as_ref().filter(|name| !snapshot.sources.contains(name))
        else {
            return Ok(());
        };
        let names: Vec<_> = snapshot.sources.iter().map(SourceName::as_str).collect();
        let what = format!("the snapshot has no source {name}; it has: {}", names.join(", "));
        Err(missing(what).with("snapshot", &snapshot.id))
    }

    /// What it names, if it names more than a snapshot. Behind a source that has one tree, a path in that
    /// may follow at once.
    pub(crate) fn find<'s>(&self, snapshot: &'s Snapshot) -> Result<Option<Named<'s>>> {
        let Some(source) = self.source(snapshot)? else { return Ok(None) };
        let Some(inside) = &self.inside else {
            return Ok(Some(Named { source, artifact: None, path: None }));
        };
        let bytes = inside.as_bytes();
        let end = bytes.iter().position(|b| *b == b'/').unwrap_or(bytes.len());
        let (name, rest) = bytes.split_at(end);
        let named = source.artifacts.iter().find(|a| a.meta.name.as_str().as_bytes() == name);
        if let Some(artifact) = named {
            let path = rest.strip_prefix(b"/").map(EntryPath::new).transpose()?;
            return Ok(Some(Named { source, artifact: Some(artifact), path }));
        }
        let mut trees = source.artifacts.iter().filter(|a| a.meta.shape == Shape::Tree);
        match (trees.next(), trees.next()) {
            (Some(tree), None) => {
                Ok(Some(Named { source, artifact: Some(tree), path: Some(inside.clone()) }))
            }
            _ => Err(missing(format!(
                "the source {} has no artifact {}; it has: {}",
                source.name,
                escape(name),
                artifact_names(source)
            ))),
        }
    }
}

impl Named<'_> {
    /// `uploads/tree`
    pub(crate) fn place(&self) -> String {
        match self.artifact {
            Some(a) => format!("{}/{}", self.source.name, escape(a.meta.name.as_str().as_bytes())),
            None => self.source.name.to_string(),
        }
    }

    /// The part of the snapshot that this is.
    pub(crate) fn selection(&self, include: Vec<String>) -> Selection {
        let is_stream = self.artifact.is_some_and(|a| a.meta.shape != Shape::Tree);
        // A source that is one stream is no part of itself: all its facts can be compared.
        let is_all = is_stream && self.path.is_none() && self.source.artifacts.len() == 1;
        let artifact = self.artifact.filter(|_| !is_all);
        Selection {
            source: Some(self.source.name.clone()),
            artifact: artifact.map(|a| a.meta.name.clone()),
            path: self.path.clone(),
            // What is named is meant, and patterns speak of trees.
            include: if is_stream { Vec::new() } else { include },
        }
    }
}

/// The names of the artifacts of a source, for people.
pub(crate) fn artifact_names(source: &SourceRecord) -> String {
    let names = source.artifacts.iter().map(|a| escape(a.meta.name.as_str().as_bytes()));
    names.collect::<Vec<_>>().join(", ")
}

/// That a tree has no such entry.
pub(crate) fn no_entry(path: &EntryPath, place: &str) -> Error {
    missing(format!("there is no \"{path}\" in {place}"))
        .with_hint("paths are whole, from the root directory on: `snapkit ls -R` shows them")
}

/// A name for a source, or what a name may be.
pub(crate) fn source_name(name: &str) -> Result<SourceName> {
    SourceName::new(name).map_err(|e| {
        Error::new(
            e.reason(),
            format!(
                "{}; it may have letters and digits of ASCII, `.`, `_` and `-`, at most 255",
                e.message()
            ),
        )
    })
}

/// Something that a snapshot does not hold.
pub(crate) fn missing(what: String) -> Error {
    Error::new(Reason::NotFound, what)
}

/// How much of a text names the snapshot: up to the first colon, but for those of a time.
fn snapshot_len(text: &str) -> usize {
    let Some(time) = text.strip_prefix('@') else { return text.find(':').unwrap_or(text.len()) };
    let date = time.bytes().take_while(|b| b.is_ascii_digit() || *b == b'-').count();
    let Some(clock) = time[date..].starts_with(['T', 't', ' ']).then_some(date + 1) else {
        return 1 + time.find(':').unwrap_or(time.len());
    };
    1 + clock + clock_len(&time.as_bytes()[clock..])
}

/// How much of a text is a time of day with its zone: `HH:MM[:SS[.FRACTION]][Z|±HH:MM]`.
fn clock_len(text: &[u8]) -> usize {
    let digits = |from: usize| text[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let pair_after_colon = |at: usize| text.get(at) == Some(&b':') && digits(at + 1) == 2;
    let mut len = digits(0);
    // Seconds end as a time ends; else it is a source whose name begins with two digits.
    let ends =
        |at: usize| matches!(text.get(at), None | Some(b':' | b'.' | b'Z' | b'z' | b'+' | b'-'));
    for _ in 0..2 {
        if pair_after_colon(len) && ends(len + 3) {
            len += 3;
        }
    }
    if text.get(len) == Some(&b'.') {
        len += 1 + digits(len + 1);
    }
    match text.get(len) {
        Some(b'Z' | b'z') => len + 1,
        Some(b'+' | b'-') if digits(len + 1) == 2 && pair_after_colon(len + 3) => len + 6,
        _ => len,
    }
}

/// The most that a snapshot's name may have, in bytes.
const LONGEST_NAME: usize = 255;

/// Check a name for a snapshot: one that is told apart from everything else that names one.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.len() > LONGEST_NAME {
        let what =
            format!("a snapshot's name has at most {LONGEST_NAME} bytes, not {}", name.len());
        return Err(Error::new(Reason::InvalidName, what));
    }
    let ok = !name.is_empty()
        && !name.starts_with('@')
        && name != "latest"
        && !name.starts_with("latest~")
        && !name.contains([':', '/', '\\'])
        && !name.chars().any(char::is_control);
    if ok {
        Ok(())
    } else {
        Err(Error::new(
            Reason::InvalidName,
            format!(
                "not a name for a snapshot: {name:?}; it may not be `latest`, begin with `@` \
                 or hold `:`, `/`, `\\` or control characters"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, String, String) {
        let spec = Spec::parse(text).unwrap();
        let shown = |part: Option<String>| part.unwrap_or_default();
        (
            spec.snapshot,
            shown(spec.source.map(String::from)),
            shown(spec.inside.map(|p| p.display())),
        )
    }

    #[test]
    fn places_are_read() {
        for (text, expected) in [
            ("latest", ("latest", "", "")),
            ("latest~2:app", ("latest~2", "app", "")),
            ("9f2c:files/tree/etc/a:b", ("9f2c", "files", "tree/etc/a:b")),
            ("x:files/tree/", ("x", "files", "tree")),
            ("x:files/tree/a\\xff\\\\", ("x", "files", "tree/a\\xff\\\\")),
            ("@2026-01-15", ("@2026-01-15", "", "")),
            ("@yesterday", ("@yesterday", "", "")),
            ("@2026-01-15:app", ("@2026-01-15", "app", "")),
            ("@2026-01-15T14:30", ("@2026-01-15T14:30", "", "")),
            ("@2026-01-15 14:30", ("@2026-01-15 14:30", "", "")),
            ("@2026-01-15T14:30Z:app/x", ("@2026-01-15T14:30Z", "app", "x")),
            ("@2026-01-15T14:30:app", ("@2026-01-15T14:30", "app", "")),
            ("@2026-01-15T14:30:12a", ("@2026-01-15T14:30", "12a", "")),
            ("@2026-01-15T14:30:59.5+01:00:app", ("@2026-01-15T14:30:59.5+01:00", "app", "")),
        ] {
            let (a, b, c) = parts(text);
            assert_eq!((a.as_str(), b.as_str(), c.as_str()), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for bad in
            ["", ":app", "x:", "x:a b", "x:app//y", "x:app/t/../y", "x:app/t/\\q", "x:\\xff/t"]
        {
            assert!(Spec::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_told_apart() {
        for good in ["before the migration", "v1.2", "latest-1"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "latest", "latest~1", "@x", "a:b", "a/b", "a\nb", "a\\b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
