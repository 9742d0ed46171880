//! What of the trees of a snapshot is asked for: to restore nothing is no success.

use futures_util::TryStreamExt as _;
use snapkit_core::artifact::Shape;
use snapkit_core::engine::{Repository, Selection};
use snapkit_core::entries::StoredEntry;
use snapkit_core::error::{Error, Result};
use snapkit_core::globs::PathGlobs;
use snapkit_core::manifest::{ArtifactRecord, Snapshot};
use snapkit_core::tree::{EntryKind, EntryPath};

use crate::app::App;
use crate::spec::{missing, no_entry};

/// The entries of trees that are asked for, as the engine chooses them.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    selection: &'a Selection,
    globs: Option<PathGlobs>,
    /// The artifact that is named, for people.
    place: &'a str,
}

impl<'a> Wanted<'a> {
    pub(crate) fn new(selection: &'a Selection, place: &'a str) -> Result<Self> {
        let globs = match selection.include.is_empty() {
            true => None,
            false => Some(PathGlobs::new(&selection.include, false)?),
        };
        Ok(Self { selection, globs, place })
    }

    /// An entry is wanted if it, or a directory that it lies in, is.
    fn wants(&self, path: &EntryPath) -> bool {
        self.globs.as_ref().is_none_or(|globs| globs.covers(path))
    }

    /// The bytes that are asked for of a tree, or `None` if nothing is. Unless all of them are to be counted
    /// the first entry is enough.
    async fn survey(
        &self,
        app: &App,
        repository: &Repository,
        tree: &ArtifactRecord,
        count_all: bool,
    ) -> Result<Option<u64>> {
        let below = self.selection.path.as_ref();
        let mut found = None;
        let mut entries = repository.entries(&app.cx, tree).await?;
        while let Some(StoredEntry { entry, .. }) = app.cx.run(entries.try_next()).await? {
            if let Some(below) = below
                && !entry.path.starts_with(below)
            {
                // Entries come in order: all that is below has been.
                if entry.path > *below {
                    break;
                }
                continue;
            }
            if self.wants(&entry.path) {
                let bytes = match entry.kind {
                    EntryKind::File { .. } => entry.kind.content_len(),
                    _ => 0,
                };
                *found.get_or_insert(0) += bytes;
                if !count_all {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The snapshot without what is not asked for: sources and artifacts that have none of it, with what
    /// each source hands over if that is counted.
    pub(crate) async fn part_of(
        &self,
        app: &App,
        repository: &Repository,
        snapshot: &Snapshot,
        count_all: bool,
    ) -> Result<(Snapshot, Vec<u64>)> {
        let mut part = snapshot.clone();
        let mut sources = Vec::new();
        let mut bytes = Vec::new();
        for mut source in std::mem::take(&mut part.sources) {
            if self.selection.source.as_ref().is_some_and(|name| *name != source.name) {
                continue;
            }
            let mut artifacts = Vec::new();
            let mut sum = 0_u64;
            for artifact in std::mem::take(&mut source.artifacts) {
                let name = &artifact.meta.name;
                if self.selection.artifact.as_ref().is_some_and(|wanted| wanted != name) {
                    continue;
                }
                let found = if artifact.meta.shape == Shape::Tree {
                    self.survey(app, repository, &artifact, count_all).await?
                } else if self.globs.is_none() {
                    Some(artifact.content.bytes())
                } else {
                    app.output.note(format!(
                        "left out: {}/{name}, as --include speaks of trees",
                        source.name
                    ));
                    None
                };
                if let Some(found) = found {
                    sum = sum.saturating_add(found);
                    artifacts.push(artifact);
                }
            }
            if !artifacts.is_empty() {
                source.artifacts = artifacts;
                sources.push(source);
                bytes.push(sum);
            }
        }
        part.sources = sources;
        if part.sources.is_empty() {
            return Err(self.nothing());
        }
        Ok((part, bytes))
    }

    fn nothing(&self) -> Error {
        match (&self.selection.path, self.selection.include.as_slice()) {
            (Some(path), []) => no_entry(path, self.place),
            (_, globs) => missing(format!(
                "nothing in the snapshot matches {}",
                globs.iter().map(|g| format!("--include {g:?}")).collect::<Vec<_>>().join(" or ")
            ))
            .with_hint(
                "a glob without a slash is a whole name; one with a slash is a whole path, as \
                 `snapkit ls -R` shows it",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_speak_of_names_or_of_paths() {
        let path = |text: &str| EntryPath::new(text).unwrap();
        for (glob, entry, wanted) in [
            ("*.txt", "a/b.txt", true),
            ("*.txt", "a/b.txt/c", true),
            ("*.txt", "a/b.bin", false),
            ("b", "a/b/c", true),
            ("/a/*", "a/b", true),
            ("a/*", "x/a/b", false),
            ("**/a/*", "x/a/b", true),
        ] {
            let selection = Selection { include: vec![glob.to_owned()], ..Selection::default() };
            let is = Wanted::new(&selection, "").unwrap().wants(&path(entry));
            assert_eq!(is, wanted, "{glob} {entry}");
        }
    }
}
