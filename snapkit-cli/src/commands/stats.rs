//! `snapkit stats`: what each source costs, and how it grows.

use std::collections::BTreeMap;

use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use snapkit_core::context::Timestamp;
use snapkit_core::engine::Repository;
use snapkit_core::error::{Reason, Result};
use snapkit_core::manifest::Head;

use crate::app::App;
use crate::exit::Exit;
use crate::filter::FilterArgs;
use crate::format::{count, size, table};
use crate::snapshot::origin;

/// Seconds of a day.
const DAY: f64 = 86_400.0;

/// Show what each source costs, and how it grows
///
/// RAW is the content of the newest snapshot, ALL that of all of them, NEW what was new to the repository when it was
/// captured, STORED that as it was stored. RATIO is ALL by STORED. GROWTH is what each snapshot but the first stored on
/// average, and PER DAY the same by the time between them. What several sources share counts for the one that was
/// captured first.
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    filter: FilterArgs,
}

/// What is known of one source over several snapshots.
#[derive(Debug, Default, Serialize)]
struct Line {
    stack: String,
    source: String,
    kind: String,
    snapshots: u64,
    raw: u64,
    all: u64,
    read: u64,
    new: u64,
    stored: u64,
    /// `all` by `stored`.
    ratio: Option<f64>,
    /// Stored by each snapshot but the first, on average.
    growth: Option<u64>,
    growth_per_day: Option<u64>,
    #[serde(skip)]
    first: (Timestamp, u64),
    #[serde(skip)]
    newest: Timestamp,
}

/// Objects of one class in the repository.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Objects {
    objects: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Document {
    sources: Vec<Line>,
    repository: BTreeMap<String, Objects>,
}

pub(crate) async fn run(app: &App, args: StatsArgs) -> Result<Exit> {
    let repository = app.open_repository().await?;
    let ledger = app.ledger(&repository).await?;
    let chosen = args.filter.choose(&ledger)?;
    let sources = lines(app, &repository, &chosen).await?;
    let objects = objects(app, &repository).await?;
    let rows: Vec<_> = sources.iter().map(row).collect();
    let head = ["SOURCE", "SNAPSHOTS", "RAW", "ALL", "NEW", "STORED", "RATIO", "GROWTH", "PER DAY"];
    for line in table(head, &rows) {
        app.output.line(line);
    }
    if sources.is_empty() {
        app.output.note("there are no snapshots");
    }
    let total: u64 = objects.values().map(|o| o.bytes).sum();
    let number: u64 = objects.values().map(|o| o.objects).sum();
    app.output.line(format!(
        "repository: {} in {}",
        size(total),
        count(number, "object", "objects")
    ));
    for (class, o) in &objects {
        app.output.line(format!(
            "  {class}: {} in {}",
            size(o.bytes),
            count(o.objects, "object", "objects")
        ));
    }
    app.output.document(&Document { sources, repository: objects })?;
    Ok(Exit::Done)
}

async fn lines(app: &App, repository: &Repository, newest_first: &[&Head]) -> Result<Vec<Line>> {
    let mut lines: BTreeMap<(String, String), Line> = BTreeMap::new();
    let mut snapshots = repository.snapshots(&app.cx, newest_first);
    while let Some((_, snapshot)) = snapshots.next().await {
        let snapshot = match snapshot {
            // It was forgotten meanwhile.
            Err(e) if e.reason() == Reason::NoSnapshot => continue,
            other => other?,
        };
        let stack = origin(&snapshot.stack, &snapshot.host);
        for source in &snapshot.sources {
            let key = (stack.clone(), source.name.to_string());
            let bytes = source.bytes();
            let line = lines.entry(key).or_insert_with(|| Line {
                stack: stack.clone(),
                source: source.name.to_string(),
                kind: source.kind.clone(),
                raw: bytes,
                newest: snapshot.started,
                ..Line::default()
            });
            line.snapshots += 1;
            let of = &source.stats;
            for (sum, more) in [
                (&mut line.all, bytes),
                (&mut line.read, of.bytes_read),
                (&mut line.new, of.bytes_new),
                (&mut line.stored, of.bytes_stored),
            ] {
                *sum = sum.saturating_add(more);
            }
            line.first = (snapshot.started, source.stats.bytes_stored);
        }
    }
    Ok(lines.into_values().map(Line::settle).collect())
}

impl Line {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "for people, and never negative"
    )]
    fn settle(mut self) -> Self {
        self.ratio = (self.stored > 0).then(|| self.all as f64 / self.stored as f64);
        let grown = self.stored.saturating_sub(self.first.1);
        self.growth = (self.snapshots > 1).then(|| grown / (self.snapshots - 1));
        let days = self.newest.since(self.first.0).as_secs_f64() / DAY;
        // Over less than an hour nothing can be said of a day.
        self.growth_per_day = (days > 1.0 / 24.0).then(|| (grown as f64 / days) as u64);
        self
    }
}

fn row(line: &Line) -> [String; 9] {
    let of = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), size);
    [
        format!("{}:{}", line.stack, line.source),
        line.snapshots.to_string(),
        size(line.raw),
        size(line.all),
        size(line.new),
        size(line.stored),
        line.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}")),
        of(line.growth),
        of(line.growth_per_day),
    ]
}

async fn objects(app: &App, repository: &Repository) -> Result<BTreeMap<String, Objects>> {
    let mut classes: BTreeMap<String, Objects> = BTreeMap::new();
    let mut listing = repository.sink().list(&app.cx, None);
    while let Some(entry) = app.cx.run(listing.try_next()).await? {
        let class = entry.key.as_str().split('/').next().unwrap_or_default().to_owned();
        let of = classes.entry(class).or_default();
        of.objects += 1;
        of.bytes += entry.size;
    }
    Ok(classes)
}
