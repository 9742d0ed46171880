//! `snapkit restore`: a snapshot, or a part of it, put back and proven.

use std::path::PathBuf;

use clap::Args;
use futures_util::TryStreamExt as _;
use snapkit_core::engine::{Repository, RestoreOptions, RestoreSummary, RestoreTo, SourceRestored};
use snapkit_core::entries::StoredEntry;
use snapkit_core::error::Result;
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::manifest::{CaptureVerdict, Snapshot};

use crate::app::App;
use crate::args::ScopeArgs;
use crate::exit::Exit;
use crate::format::{count, seconds, size, time};
use crate::snapshot::origin;
use crate::spec::{Spec, missing};

/// Below the directory of local state: what restores have replaced.
const RECOVERY: &str = "recovery";

/// Restore a snapshot or a part of it, and prove it
///
/// Without --target everything goes back to where it was captured, which must hold nothing unless
/// --overwrite is given; then the old state is kept, and how to bring it back is said. What was restored
/// is read back and compared with what was captured: `match`, `differs` (exit 4), or `unproven` where not
/// everything could be compared.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// A snapshot, or a part of one
    #[arg(value_name = "SNAPSHOT[:SOURCE[/ARTIFACT[/PATH]]]")]
    place: String,
    /// Restore to DIR/SOURCE/… instead of the original places
    #[arg(long, value_name = "DIR")]
    target: Option<PathBuf>,
    /// In trees, only what matches, and what is in it; may be given several times
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Replace what is there; the old state is kept
    #[arg(long)]
    overwrite: bool,
    /// Say what would be restored to where, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not read back what was restored: quicker, and nothing is proven
    #[arg(long)]
    no_verify: bool,
    /// Set what lets others act as somebody else: setuid bits, file capabilities, devices
    #[arg(long)]
    trusted: bool,
    /// Leave out what is damaged in the repository and restore the rest; exits with 4 then
    #[arg(long)]
    allow_damage: bool,
    #[command(flatten)]
    scope: ScopeArgs,
}

pub(crate) async fn run(app: &App, args: RestoreArgs) -> Result<Exit> {
    let spec = Spec::parse(&args.place)?;
    let scope = app.scope(&args.scope)?;
    let repository = app.open_repository().await?;
    let ledger = app.ledger(&repository).await?;
    let snapshot = app.resolve(&ledger, &spec.snapshot, &scope)?;

    let to = match &args.target {
        Some(dir) => RestoreTo::Directory(app.places.absolute(dir)),
        None => RestoreTo::Original,
    };
    check_path(app, &repository, &spec, snapshot).await?;
    let mut options = RestoreOptions::new(to, app.places.state()?.join(RECOVERY));
    options.selection = spec.selection(snapshot, args.include)?;
    options.overwrite = args.overwrite;
    options.dry_run = args.dry_run;
    options.read_back = !args.no_verify;
    options.trusted = args.trusted;
    options.allow_damage = args.allow_damage;

    app.output.note(format!(
        "snapshot {} of {}, {}",
        snapshot.id,
        origin(snapshot),
        time(snapshot.started)
    ));
    if snapshot.verdict != CaptureVerdict::Complete {
        warn_of_gaps(app, snapshot);
    }
    let registry = app.registry();
    let work = repository.restore(&app.cx, &registry, snapshot, &options);
    let summary = app.with_progress(work).await?;
    tell(app, &summary);
    app.output.document(&summary)?;
    Ok(if summary.damaged { Exit::Damage } else { summary.verdict.into() })
}

/// That the path that is asked for is there: to restore nothing is no success.
async fn check_path(
    app: &App,
    repository: &Repository,
    spec: &Spec,
    snapshot: &Snapshot,
) -> Result<()> {
    let (Some(source), Some(path)) = (spec.source(snapshot)?, &spec.path) else { return Ok(()) };
    let Some(artifact) = spec.artifact(source)? else { return Ok(()) };
    let mut entries = repository.entries(&app.cx, artifact).await?;
    while let Some(StoredEntry { entry, .. }) = app.cx.run(entries.try_next()).await? {
        if entry.path >= *path {
            if entry.path == *path {
                return Ok(());
            }
            break;
        }
    }
    Err(missing(format!("there is no \"{path}\" in {}/{}", source.name, artifact.meta.name)))
}

fn warn_of_gaps(app: &App, snapshot: &Snapshot) {
    let gaps = snapshot.sources.iter().filter(|s| s.verdict != CaptureVerdict::Complete);
    for source in gaps {
        app.output.warn(format!(
            "the snapshot is {}: of the source {}, {}",
            snapshot.verdict.as_str(),
            source.name,
            count(source.problems.count, "thing was not captured", "things were not captured")
        ));
    }
}

fn tell(app: &App, summary: &RestoreSummary) {
    for source in &summary.sources {
        // With -q a source is spoken of if something is wrong with it, or to be known for ever.
        let lines = if summary.dry_run { vec![planned(source)] } else { restored(source) };
        let is_well = source.verdict != RestoreVerdict::Differs
            && source.damaged.is_empty()
            && source.problem_count == 0;
        if !app.output.is_quiet() || !is_well || summary.dry_run {
            lines.iter().for_each(|line| app.output.line(line));
        } else {
            undo(source).iter().for_each(|line| app.output.line(line));
        }
    }
    if summary.dry_run {
        app.output.note("nothing was changed");
    } else {
        app.output.note(format!("{} in {}", summary.verdict.as_str(), seconds(summary.seconds)));
    }
}

fn planned(source: &SourceRestored) -> String {
    format!(
        "{} ({}) would go to {}, {}",
        source.source,
        source.kind,
        source.target,
        size(source.bytes)
    )
}

fn restored(source: &SourceRestored) -> Vec<String> {
    let proven = source.comparison.proven.into();
    let mut lines = vec![format!(
        "{} ({}): {}, {}, {} to {}",
        source.source,
        source.kind,
        source.verdict.as_str(),
        count(proven, "fact holds", "facts hold"),
        size(source.bytes),
        source.target
    )];
    for d in &source.comparison.differences {
        lines.push(format!("  differs: {} was {}, is {}", d.fact, d.expected, d.found));
    }
    if !source.comparison.unproven.is_empty() {
        lines.push(format!("  unproven: {}", source.comparison.unproven.join(", ")));
    }
    lines.extend(source.damaged.iter().map(|d| format!("  damaged, left out: {d}")));
    // A restore that allows damage reports it in both lists.
    let others = source.problems.iter().filter(|p| !source.damaged.contains(p));
    lines.extend(others.map(|p| format!("  problem: {p}")));
    let unlisted = source.problem_count.saturating_sub(source.problems.len() as u64);
    if unlisted > 0 {
        lines.push(format!("  and {}", count(unlisted, "more problem", "more problems")));
    }
    lines.extend(source.notes.iter().map(|n| format!("  note: {n}")));
    lines.extend(undo(source));
    lines
}

fn undo(source: &SourceRestored) -> Vec<String> {
    if source.undo.is_empty() {
        return Vec::new();
    }
    let head = format!("  to bring back what {} held before:", source.source);
    std::iter::once(head).chain(source.undo.iter().map(|step| format!("    {step}"))).collect()
}
