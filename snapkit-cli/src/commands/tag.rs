//! `snapkit tag`: keys and values that a person gives a snapshot afterwards.

use std::collections::BTreeSet;

use clap::Args;
use serde_json::json;
use snapkit_core::error::{Error, Result};

use crate::app::App;
use crate::args::ScopeArgs;
use crate::exit::Exit;
use crate::spec::Spec;
use crate::tags;

/// Set tags of a snapshot, and remove others
///
/// The snapshot itself stays as it is: a note beside it says what was changed, and when. Without a change its tags
/// are shown.
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// A snapshot
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// A key and a value to be set
    #[arg(value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// A key to be removed; may be given several times
    #[arg(long, value_name = "KEY")]
    remove: Vec<String>,
    #[command(flatten)]
    scope: ScopeArgs,
}

pub(crate) async fn run(app: &App, args: TagArgs) -> Result<Exit> {
    let spec = Spec::parse(&args.snapshot)?;
    if spec.source.is_some() {
        return Err(Error::invalid("whole snapshots have tags: name it without a source"));
    }
    let set = tags::parse(&args.changes)?;
    let unset: BTreeSet<String> = args.remove.into_iter().collect();
    if let Some(both) = set.keys().find(|key| unset.contains(*key)) {
        return Err(Error::invalid(format!("the tag {both} is to be set and removed at once")));
    }
    let scope = app.scope(&args.scope)?;
    let repository = app.open_repository().await?;
    let ledger = app.ledger(&repository).await?;
    let snapshot = app.resolve(&ledger, &spec.snapshot, &scope)?;
    if let Some(strange) = unset.iter().find(|key| !snapshot.tags.contains_key(*key)) {
        return Err(Error::invalid(format!("the snapshot has no tag {strange}"))
            .with("snapshot", &snapshot.id));
    }
    let mut tags = snapshot.tags.clone();
    tags.retain(|key, _| !unset.contains(key));
    tags.extend(set.clone());
    if tags != snapshot.tags {
        repository.tag(&app.cx, &snapshot.id, set, unset).await?;
    }
    for (key, value) in &tags {
        app.output.line(format!("{key}={value}"));
    }
    app.output.document(&json!({ "snapshot": snapshot.id, "tags": tags }))?;
    Ok(Exit::Done)
}
