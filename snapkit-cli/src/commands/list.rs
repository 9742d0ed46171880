//! `snapkit list`: the snapshots there are.

use clap::Args;
use serde_json::json;
use snapkit_core::engine::Ledger;
use snapkit_core::error::Result;
use snapkit_core::manifest::Head;

use crate::app::App;
use crate::exit::Exit;
use crate::filter::FilterArgs;
use crate::format::{count, size, table, time};
use crate::snapshot::{Row, origin};

/// List the snapshots
///
/// The newest snapshot comes first. Exits with 4 if a line of the ledger is damaged or gone.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
}

pub(crate) async fn run(app: &App, args: ListArgs) -> Result<Exit> {
    let repository = app.open_repository().await?;
    let ledger = app.ledger(&repository).await?;
    let snapshots = args.filter.choose(&ledger)?;
    if !snapshots.is_empty() {
        let rows: Vec<_> = snapshots.iter().map(|s| row(s)).collect();
        for line in table(["ID", "TIME", "SET", "STACK@HOST", "NAME", "SIZE", "VERDICT"], &rows) {
            app.output.line(line);
        }
    } else if ledger.snapshots.is_empty() && ledger.sealed.is_empty() {
        app.output.note("there are no snapshots");
    } else if !ledger.snapshots.is_empty() {
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
        && ledger.damaged_notes.is_empty()
        && [&ledger.gone, &ledger.missing, &ledger.returned].iter().all(|ids| ids.is_empty());
    Ok(if is_whole { Exit::Done } else { Exit::Damage })
}

fn row(s: &Head) -> [String; 7] {
    [
        s.id.short().to_owned(),
        time(s.started),
        s.set.clone(),
        origin(&s.stack, &s.host),
        s.name.clone().unwrap_or_default(),
        size(s.bytes),
        s.verdict.as_str().to_owned(),
    ]
}

fn document(ledger: &Ledger, snapshots: &[&Head]) -> serde_json::Value {
    let damaged: Vec<_> = ledger
        .damaged
        .iter()
        .map(|(id, e)| json!({ "id": id, "reason": e.reason().code(), "what": e.chain() }))
        .collect();
    let notes: Vec<_> = ledger
        .damaged_notes
        .iter()
        .map(|(key, e)| json!({ "key": key, "reason": e.reason().code(), "what": e.chain() }))
        .collect();
    json!({
        "snapshots": snapshots.iter().map(|s| Row::from(*s)).collect::<Vec<_>>(),
        "sealed": ledger.sealed,
        "damaged": damaged,
        "damaged_notes": notes,
        "gone": ledger.gone,
        "missing": ledger.missing,
        "returned": ledger.returned,
    })
}
