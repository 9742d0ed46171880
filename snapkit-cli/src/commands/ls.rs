//! `snapkit ls`: what is in a snapshot.

use std::collections::BTreeMap;

use clap::Args;
use futures_util::TryStreamExt as _;
use serde::Serialize;
use snapkit_core::artifact::Shape;
use snapkit_core::context::Timestamp;
use snapkit_core::engine::Repository;
use snapkit_core::entries::StoredEntry;
use snapkit_core::error::Result;
use snapkit_core::manifest::{ArtifactRecord, Snapshot, SourceRecord};
use snapkit_core::tree::{EntryKind, EntryPath, TreeEntry, escape};

use crate::app::App;
use crate::args::ScopeArgs;
use crate::exit::Exit;
use crate::format::time;
use crate::snapshot::Artifact;
use crate::spec::{Named, Spec, missing, no_entry};

/// List what is in a snapshot
///
/// Lists what is directly in the place that is named: the sources of a snapshot, the artifacts of a
/// source, the entries of a tree or of a directory. In a source that has one tree the path may follow at once:
/// `latest:uploads/srv` is `latest:uploads/tree/srv`. Bytes of names that are not UTF-8 are shown as \xNN, and
/// taken so.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// A snapshot, or a place in one
    #[arg(value_name = "SNAPSHOT[:SOURCE[/ARTIFACT[/PATH]]]")]
    place: String,
    /// Show kind, mode, owner, size and time too
    #[arg(short, long)]
    long: bool,
    /// List all that is below, with paths from the place that is named
    #[arg(short = 'R', long)]
    recursive: bool,
    #[command(flatten)]
    scope: ScopeArgs,
}

/// One thing in a list, for `--json`.
#[derive(Debug, Serialize)]
struct Item {
    /// What stands behind `SNAPSHOT:` to name it.
    path: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<EntryItem>,
}

/// What is known of an entry of a tree.
#[derive(Debug, Serialize)]
struct EntryItem {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    device: BTreeMap<&'static str, u32>,
}

/// Lists in one of two forms.
struct Lister<'a> {
    app: &'a App,
    args: &'a LsArgs,
}

pub(crate) async fn run(app: &App, args: LsArgs) -> Result<Exit> {
    let spec = Spec::parse(&args.place)?;
    let scope = app.scope(&args.scope)?;
    let repository = app.open_repository().await?;
    let ledger = app.ledger(&repository).await?;
    let snapshot = app.snapshot(&repository, &ledger, &spec.snapshot, &scope).await?;
    let lister = Lister { app, args: &args };
    match spec.find(&snapshot)? {
        None => lister.snapshot(&repository, &snapshot).await?,
        Some(Named { source, artifact: None, .. }) => {
            lister.source(&repository, source, "").await?;
        }
        Some(Named { source, artifact: Some(artifact), path }) => {
            lister.artifact(&repository, source, artifact, "", path.as_ref()).await?;
        }
    }
    app.output.end_list();
    Ok(Exit::Done)
}

impl Lister<'_> {
    async fn snapshot(&self, repository: &Repository, snapshot: &Snapshot) -> Result<()> {
        for source in &snapshot.sources {
            let name = source.name.as_str();
            self.named(
                name,
                &format!("source {}", source.kind),
                "source",
                source.bytes(),
                name.to_owned(),
            )?;
            if self.args.recursive {
                self.source(repository, source, &format!("{name}/")).await?;
            }
        }
        Ok(())
    }

    async fn source(
        &self,
        repository: &Repository,
        source: &SourceRecord,
        prefix: &str,
    ) -> Result<()> {
        for artifact in &source.artifacts {
            let view = Artifact::from(artifact);
            let shape = shape(view.shape);
            let name = escape(view.name.as_bytes());
            let path = format!("{}/{name}", source.name);
            self.named(&format!("{prefix}{name}"), shape, shape, view.bytes, path)?;
            if self.args.recursive && view.shape == Shape::Tree {
                self.artifact(repository, source, artifact, &format!("{prefix}{name}/"), None)
                    .await?;
            }
        }
        Ok(())
    }

    /// Entries of a tree, below a path if there is one. Of something else, the artifact itself.
    async fn artifact(
        &self,
        repository: &Repository,
        source: &SourceRecord,
        artifact: &ArtifactRecord,
        prefix: &str,
        below: Option<&EntryPath>,
    ) -> Result<()> {
        let name = escape(artifact.meta.name.as_str().as_bytes());
        let place = format!("{}/{name}", source.name);
        if artifact.meta.shape != Shape::Tree {
            if below.is_some() {
                return Err(missing(format!(
                    "the artifact {name} is no tree, it has nothing inside"
                )));
            }
            let shape = shape(artifact.meta.shape);
            self.named(&name, shape, shape, artifact.content.bytes(), place)?;
            return Ok(());
        }
        let cx = &self.app.cx;
        let mut entries = repository.entries(cx, artifact).await?;
        let mut found = below.is_none();
        while let Some(StoredEntry { entry, .. }) = cx.run(entries.try_next()).await? {
            if self.app.output.is_closed() {
                break;
            }
            let inside = match below {
                None => true,
                Some(below) if entry.path == *below => {
                    found = true;
                    // A directory stands for what is in it, anything else for itself.
                    !matches!(entry.kind, EntryKind::Directory)
                }
                Some(below) if entry.path.starts_with(below) => true,
                // Entries come in order: all that is below has been.
                Some(_) if found => break,
                Some(_) => false,
            };
            let direct = entry.path.parent().as_ref() == below || Some(&entry.path) == below;
            if inside && (self.args.recursive || direct) {
                self.entry(&entry, prefix, below, &place)?;
            }
        }
        match below {
            Some(below) if !found => Err(no_entry(below, &place)),
            _ => Ok(()),
        }
    }

    fn entry(
        &self,
        entry: &TreeEntry,
        prefix: &str,
        below: Option<&EntryPath>,
        place: &str,
    ) -> Result<()> {
        let full = entry.path.display();
        if self.app.output.is_json() {
            return self.app.output.item(&Item {
                path: format!("{place}/{full}"),
                kind: kind(&entry.kind),
                bytes: match entry.kind {
                    EntryKind::File { size, .. } => Some(size),
                    _ => None,
                },
                entry: Some(entry_item(entry)),
            });
        }
        let bytes = entry.path.as_bytes();
        let inside = below.and_then(|b| bytes.strip_prefix(b.as_bytes())?.strip_prefix(b"/"));
        let name = match inside {
            Some(inside) => escape(inside),
            None if below.is_some() => escape(entry.path.file_name()),
            None => format!("{prefix}{full}"),
        };
        if self.args.long {
            self.app.output.line(long(entry, &name));
        } else {
            self.app.output.line(name);
        }
        Ok(())
    }

    /// A source or an artifact.
    fn named(
        &self,
        name: &str,
        what: &str,
        kind: &'static str,
        bytes: u64,
        path: String,
    ) -> Result<()> {
        if self.app.output.is_json() {
            return self.app.output.item(&Item { path, kind, bytes: Some(bytes), entry: None });
        }
        if self.args.long {
            self.app.output.line(format!("{what:<14} {bytes:>14}  {name}"));
        } else {
            self.app.output.line(name);
        }
        Ok(())
    }
}

fn kind(kind: &EntryKind) -> &'static str {
    match kind {
        EntryKind::Directory => "directory",
        EntryKind::File { .. } => "file",
        EntryKind::Symlink { .. } => "symlink",
        EntryKind::HardLink { .. } => "hard-link",
        EntryKind::Fifo => "fifo",
        EntryKind::Socket => "socket",
        EntryKind::CharDevice { .. } => "char-device",
        EntryKind::BlockDevice { .. } => "block-device",
        _ => "other",
    }
}

fn entry_item(entry: &TreeEntry) -> EntryItem {
    let target = match &entry.kind {
        EntryKind::Symlink { target } => Some(escape(target)),
        EntryKind::HardLink { target } => Some(target.display()),
        _ => None,
    };
    let device = match entry.kind {
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            BTreeMap::from([("major", major), ("minor", minor)])
        }
        _ => BTreeMap::new(),
    };
    let TreeEntry { mode, uid, gid, mtime, .. } = *entry;
    EntryItem { mode, uid, gid, mtime, target, device }
}

/// As `ls -l` shows it.
fn long(entry: &TreeEntry, name: &str) -> String {
    let size = match entry.kind {
        EntryKind::File { size, .. } => size.to_string(),
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            format!("{major}, {minor}")
        }
        _ => "-".to_owned(),
    };
    let arrow = match &entry.kind {
        EntryKind::Symlink { target } => format!(" -> {}", escape(target)),
        EntryKind::HardLink { target } => format!(" => {target}"),
        _ => String::new(),
    };
    format!(
        "{}{} {:>5} {:>5} {size:>12} {} {name}{arrow}",
        entry.kind.letter(),
        mode(entry.mode),
        entry.uid,
        entry.gid,
        time(entry.mtime),
    )
}

/// `rwxr-x--T`
fn mode(bits: u32) -> String {
    let triple = |shift: u32, special: u32, letters: [char; 2]| {
        let bit = |mask: u32| bits >> shift & mask != 0;
        let last = match (bits & special != 0, bit(1)) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => letters[0],
            (true, false) => letters[1],
        };
        [if bit(4) { 'r' } else { '-' }, if bit(2) { 'w' } else { '-' }, last]
    };
    [triple(6, 0o4000, ['s', 'S']), triple(3, 0o2000, ['s', 'S']), triple(0, 0o1000, ['t', 'T'])]
        .concat()
        .iter()
        .collect()
}

fn shape(shape: Shape) -> &'static str {
    match shape {
        Shape::Tree => "tree",
        Shape::Bytes => "bytes",
        _ => "records",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_shown_as_usual() {
        for (bits, text) in [
            (0o755, "rwxr-xr-x"),
            (0o4750, "rwsr-x---"),
            (0o2640, "rw-r-S---"),
            (0o1777, "rwxrwxrwt"),
        ] {
            assert_eq!(mode(bits), text);
        }
    }
}
