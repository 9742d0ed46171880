//! `snapkit find`: in which snapshots something is.

use std::collections::HashMap;

use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use snapkit_core::artifact::Shape;
use snapkit_core::context::Timestamp;
use snapkit_core::engine::Repository;
use snapkit_core::entries::StoredEntry;
use snapkit_core::error::{Reason, Result};
use snapkit_core::globs::PathGlobs;
use snapkit_core::id::SnapshotId;
use snapkit_core::manifest::{ArtifactRecord, ContentRef};
use snapkit_core::tree::TreeEntry;

use crate::app::App;
use crate::exit::Exit;
use crate::filter::FilterArgs;
use crate::format::{count, size, time};

/// Find entries of trees, and artifacts, across snapshots
///
/// A GLOB without a slash is a name, one with a slash a whole path from the root directory. Each version is told once,
/// with the newest and the oldest snapshot that hold it, the newest version first. Exits with 1 if nothing is found.
#[derive(Debug, Args)]
pub(crate) struct FindArgs {
    /// What to look for
    #[arg(value_name = "GLOB", required = true)]
    globs: Vec<String>,
    /// Ignore upper and lower case
    #[arg(short = 'I', long)]
    ignore_case: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

/// One version of something.
#[derive(Debug, Serialize)]
struct Version {
    /// What stands behind `SNAPSHOT:` to name it.
    path: String,
    kind: char,
    bytes: u64,
    mtime: Option<Timestamp>,
    /// The newest snapshot that holds it.
    newest: SnapshotId,
    /// The oldest of those in a row.
    oldest: SnapshotId,
    /// How many in a row hold it.
    snapshots: u64,
    #[serde(skip)]
    identity: Vec<u8>,
}

pub(crate) async fn run(app: &App, args: FindArgs) -> Result<Exit> {
    let globs = PathGlobs::new(&args.globs, args.ignore_case)?;
    let repository = app.open_repository().await?;
    let ledger = app.ledger(&repository).await?;
    let chosen = args.filter.choose(&ledger)?;
    // The versions of each path, the newest first. Only what was found is held.
    let mut found: HashMap<String, Vec<Version>> = HashMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut last_tree: HashMap<String, (ContentRef, Vec<String>)> = HashMap::new();
    let mut snapshots = repository.snapshots(&app.cx, &chosen);
    while let Some((_, snapshot)) = snapshots.next().await {
        app.cx.check()?;
        let snapshot = match snapshot {
            // It was forgotten meanwhile.
            Err(e) if e.reason() == Reason::NoSnapshot => continue,
            other => other?,
        };
        for source in &snapshot.sources {
            for artifact in &source.artifacts {
                let place = format!("{}/{}", source.name, artifact.meta.name);
                let of = format!("{}@{}:{place}", snapshot.stack, snapshot.host);
                let id = &snapshot.id;
                if artifact.meta.shape != Shape::Tree {
                    if globs.is_name(artifact.meta.name.as_str()) {
                        let identity = format!("{:?}", artifact.content).into_bytes();
                        let version =
                            version(&place, 'b', artifact.content.bytes(), None, id, identity);
                        note(&mut found, &mut order, of, version);
                    }
                    continue;
                }
                // The same tree as in the snapshot after it holds the same.
                if let Some((content, keys)) = last_tree.get(&of)
                    && *content == artifact.content
                {
                    for key in keys {
                        if let Some(newest) = found.get_mut(key).and_then(|v| v.last_mut()) {
                            newest.oldest.clone_from(id);
                            newest.snapshots += 1;
                        }
                    }
                    continue;
                }
                let mut keys = Vec::new();
                search(app, &repository, artifact, &globs, |entry| {
                    let path = format!("{place}/{}", entry.path.display());
                    let key = format!("{of}/{}", entry.path.display());
                    let bytes = entry.kind.content_len();
                    let identity = identity(entry);
                    let letter = entry.kind.letter();
                    let version = version(&path, letter, bytes, Some(entry.mtime), id, identity);
                    note(&mut found, &mut order, key.clone(), version);
                    keys.push(key);
                })
                .await?;
                last_tree.insert(of, (artifact.content.clone(), keys));
            }
        }
    }
    order.sort();
    for key in &order {
        for version in &found[key] {
            app.output.item(version)?;
            app.output.line(line(version));
        }
    }
    app.output.end_list();
    if order.is_empty() {
        let snapshots = count(chosen.len() as u64, "snapshot", "snapshots");
        app.output.note(format!("nothing in {snapshots} matches"));
        return Ok(Exit::Nothing);
    }
    Ok(Exit::Done)
}

async fn search(
    app: &App,
    repository: &Repository,
    artifact: &ArtifactRecord,
    globs: &PathGlobs,
    mut on_entry: impl FnMut(&TreeEntry),
) -> Result<()> {
    let mut entries = repository.entries(&app.cx, artifact).await?;
    loop {
        match app.cx.run(entries.try_next()).await {
            Ok(Some(StoredEntry { entry, .. })) => {
                if globs.is_path(&entry.path) {
                    on_entry(&entry);
                }
            }
            Ok(None) => return Ok(()),
            // The rest of the snapshots may hold what is looked for.
            Err(e) if e.is_damage() => app.output.warn(format!("damaged: {}", e.chain())),
            Err(e) => return Err(e),
        }
    }
}

/// What is the same in two versions that are one.
fn identity(entry: &TreeEntry) -> Vec<u8> {
    format!("{:?} {:?} {:?}", entry.kind, entry.mtime, entry.mode).into_bytes()
}

fn version(
    path: &str,
    kind: char,
    bytes: u64,
    mtime: Option<Timestamp>,
    snapshot: &SnapshotId,
    identity: Vec<u8>,
) -> Version {
    Version {
        path: path.to_owned(),
        kind,
        bytes,
        mtime,
        newest: snapshot.clone(),
        oldest: snapshot.clone(),
        snapshots: 1,
        identity,
    }
}

fn note(
    found: &mut HashMap<String, Vec<Version>>,
    order: &mut Vec<String>,
    key: String,
    version: Version,
) {
    let versions = found.entry(key.clone()).or_insert_with(|| {
        order.push(key);
        Vec::new()
    });
    match versions.last_mut() {
        Some(last) if last.identity == version.identity => {
            last.oldest = version.newest;
            last.snapshots += 1;
        }
        _ => versions.push(version),
    }
}

fn line(version: &Version) -> String {
    let when = version.mtime.map(time).unwrap_or_default();
    let snapshots = match version.snapshots {
        1 => version.newest.short().to_owned(),
        n => format!("{} … {} ({n})", version.newest.short(), version.oldest.short()),
    };
    format!("{}  {:>9}  {when:<20}  {}", snapshots, size(version.bytes), version.path)
}
