//! `snapkit list`: the snapshots there are.

use clap::Args;
use serde_json::json;
use snapkit_core::engine::Ledger;
use snapkit_core::error::{Error, Result};
use snapkit_core::manifest::Snapshot;

use crate::app::App;
use crate::exit::Exit;
use crate::format::{count, size, table, time};
use crate::snapshot::{Head, origin};

/// List the snapshots
///
/// The newest snapshot comes first. Exits with 4 if a line of the ledger is damaged or gone.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only those of this stack
    #[arg(long, value_name = "NAME")]
    stack_name: Option<String>,
    /// Only those of this host
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Only those of this set
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
    /// Only those that have this tag, or this value of it; may be given several times
    #[arg(long = "tag", value_name = "KEY[=VALUE]")]
    tags: Vec<String>,
    /// Only the newest so many
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

impl ListArgs {
    fn wants(&self, s: &Snapshot) -> bool {
        let fits = |want: &Option<String>, is: &str| want.as_deref().is_none_or(|w| w == is);
        let has = |tag: &String| match tag.split_once('=') {
            Some((key, value)) => s.tags.get(key).is_some_and(|v| v == value),
            None => s.tags.contains_key(tag),
        };
        fits(&self.stack_name, &s.stack)
            && fits(&self.host, &s.host)
            && fits(&self.set, &s.set)
            && self.tags.iter().all(has)
    }
}

pub(crate) async fn run(app: &App, args: ListArgs) -> Result<Exit> {
    if args.last == Some(0) {
        return Err(Error::invalid("--last 0 would list nothing"));
    }
    let repository = app.open_repository().await?;
    let ledger = app.ledger(&repository).await?;
    let wanted = ledger.snapshots.iter().filter(|s| args.wants(s));
    let snapshots: Vec<&Snapshot> = wanted.take(args.last.unwrap_or(usize::MAX)).collect();
    if !snapshots.is_empty() {
        let rows: Vec<_> = snapshots.iter().map(|s| row(s)).collect();
        for line in table(["ID", "TIME", "SET", "STACK@HOST", "NAME", "SIZE", "VERDICT"], &rows) {
            app.output.line(line);
        }
    } else if ledger.snapshots.is_empty() {
        app.output.note("there are no snapshots");
    } else {
        app.output.note("none of the snapshots fits");
    }
    if !ledger.sealed.is_empty() {
        app.output.note(format!(
            "{} cannot be read with this credential",
            count(ledger.sealed.len() as u64, "snapshot", "snapshots")
        ));
    }
    app.output.document(&document(&ledger, &snapshots))?;
    let is_whole = ledger.damaged.is_empty()
        && [&ledger.gone, &ledger.missing, &ledger.returned].iter().all(|ids| ids.is_empty());
    Ok(if is_whole { Exit::Done } else { Exit::Damage })
}

fn row(s: &Snapshot) -> [String; 7] {
    [
        s.id.short().to_owned(),
        time(s.started),
        s.set.clone(),
        origin(s),
        s.name.clone().unwrap_or_default(),
        size(s.stats.bytes),
        s.verdict.as_str().to_owned(),
    ]
}

fn document(ledger: &Ledger, snapshots: &[&Snapshot]) -> serde_json::Value {
    let damaged: Vec<_> = ledger
        .damaged
        .iter()
        .map(|(id, e)| json!({ "id": id, "reason": e.reason().code(), "what": e.chain() }))
        .collect();
    json!({
        "snapshots": snapshots.iter().map(|s| Head::from(*s)).collect::<Vec<_>>(),
        "sealed": ledger.sealed,
        "damaged": damaged,
        "gone": ledger.gone,
        "missing": ledger.missing,
        "returned": ledger.returned,
    })
}
