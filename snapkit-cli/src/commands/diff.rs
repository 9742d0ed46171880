//! `snapkit diff`: what differs between two snapshots, or between one and the live system.

use clap::Args;
use serde::Serialize;
use snapkit_core::engine::{ArtifactDiff, Change, EntryChange, SourceDiff};
use snapkit_core::error::{Error, Result};
use snapkit_core::manifest::{CaptureVerdict, Snapshot, SourceRecord};
use snapkit_core::tree::EntryPath;

use crate::app::App;
use crate::args::ScopeArgs;
use crate::exit::Exit;
use crate::format::{count, size};
use crate::spec::{Spec, missing};

/// Show what differs between two snapshots, or between one and the live system
///
/// With one SNAPSHOT its sources are compared with what is there now, as a `create` would read it; nothing is kept.
/// Lines begin with `+` for what is new, `-` for what is gone, `M` for other content, `U` for another mode, owner,
/// time or attribute only, and `T` for what is of another kind now. A part of a snapshot limits what is compared.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A snapshot, or a part of one
    #[arg(value_name = "SNAPSHOT[:SOURCE[/PATH]]")]
    before: String,
    /// A later snapshot [default: the live system]
    #[arg(value_name = "SNAPSHOT")]
    after: Option<String>,
    /// Only sums, not each entry
    #[arg(long)]
    summary: bool,
    /// Exit with 4 if anything differs
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    scope: ScopeArgs,
}

/// One entry that differs, for `--json`.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    source: &'a str,
    artifact: &'a str,
    #[serde(flatten)]
    change: &'a EntryChange,
}

/// The end of the list, for `--json`.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    summary: &'a [SourceDiff],
}

pub(crate) async fn run(app: &App, args: DiffArgs) -> Result<Exit> {
    let spec = Spec::parse(&args.before)?;
    let scope = app.scope(&args.scope)?;
    let repository = app.open_repository().await?;
    let ledger = app.ledger(&repository).await?;
    let before = &app.snapshot(&repository, &ledger, &spec.snapshot, &scope).await?;
    let after = match &args.after {
        Some(word) => {
            let spec = Spec::parse(word)?;
            if spec.source.is_some() {
                return Err(Error::invalid("the second snapshot is named without a source")
                    .with("given", word));
            }
            Some(app.snapshot(&repository, &ledger, &spec.snapshot, &scope).await?)
        }
        None => None,
    };
    if let Some(partial) = after.as_ref().filter(|after| after.verdict != CaptureVerdict::Complete)
    {
        app.output.warn(format!(
            "the snapshot {} is {}: what it lacks is told as gone; `snapkit show` lists it",
            partial.id.short(),
            partial.verdict.as_str()
        ));
    }
    let named = spec.find(before)?;
    let (only, below) = match &named {
        Some(named) => (Some(named.source), named.path.as_ref()),
        None => (None, None),
    };
    let sources = before.sources.iter().filter(|s| only.is_none_or(|only| only.name == s.name));
    let registry = app.registry();
    let mut diffs = Vec::new();
    for source in sources.filter(|s| s.verdict != CaptureVerdict::Failed) {
        let mut tell = |artifact: &snapkit_core::artifact::ArtifactName, change: &EntryChange| {
            if !args.summary {
                app.output.line(line(source, change));
                app.output.item(&Entry {
                    source: source.name.as_str(),
                    artifact: artifact.as_str(),
                    change,
                })?;
            }
            Ok(())
        };
        let diff = match &after {
            Some(after) => {
                let Some(record) = after.source(source.name.as_str()) else {
                    app.output.line(format!("- {} (the whole source)", source.name));
                    diffs.push(gone(source));
                    continue;
                };
                app.with_progress(repository.diff(&app.cx, source, record, below, &mut tell))
                    .await?
            }
            None => {
                let live = registry.build_captured(&before.stack, source)?;
                let work = repository.diff_live(&app.cx, source, &live, below, &mut tell);
                app.with_progress(work).await.map_err(|e| e.with("source", &source.name))?
            }
        };
        tell_source(app, &diff, below);
        diffs.push(diff);
    }
    if let (Some(after), None) = (after, only) {
        for source in after.sources.iter().filter(|s| before.source(s.name.as_str()).is_none()) {
            app.output.line(format!("+ {} (the whole source)", source.name));
            diffs.push(SourceDiff { source: source.name.to_string(), ..gone(source) });
        }
    }
    finish(app, &args, before, &diffs)
}

fn finish(app: &App, args: &DiffArgs, before: &Snapshot, diffs: &[SourceDiff]) -> Result<Exit> {
    if diffs.is_empty() {
        return Err(missing("the snapshot holds nothing that could be compared".to_owned())
            .with("snapshot", &before.id));
    }
    app.output.item(&Summary { summary: diffs })?;
    app.output.end_list();
    let differs = diffs.iter().any(SourceDiff::differs);
    if !differs {
        app.output.note("nothing differs");
    }
    let has_problems = diffs.iter().any(|diff| !diff.problems.is_empty());
    Ok(match (has_problems, differs && args.exit_code) {
        (_, true) => Exit::Damage,
        (true, _) => Exit::Partial,
        _ => Exit::Done,
    })
}

/// A source that only one of the two has.
fn gone(source: &SourceRecord) -> SourceDiff {
    let artifact = ArtifactDiff { differs: true, ..ArtifactDiff::default() };
    SourceDiff {
        source: source.name.to_string(),
        artifacts: vec![artifact],
        ..SourceDiff::default()
    }
}

fn line(source: &SourceRecord, change: &EntryChange) -> String {
    let letter = match change.change {
        Change::Added => '+',
        Change::Removed => '-',
        Change::Kind => 'T',
        Change::Content => 'M',
        Change::Attributes => 'U',
    };
    format!("{letter} {}/{}", source.name, change.path)
}

fn tell_source(app: &App, diff: &SourceDiff, below: Option<&EntryPath>) {
    for problem in &diff.problems {
        app.output.warn(format!("{}: {problem}", diff.source));
    }
    for artifact in diff.artifacts.iter().filter(|a| a.differs) {
        let name = format!("{}/{}", diff.source, artifact.artifact);
        let entries = artifact.added + artifact.removed + artifact.changed;
        let what = match (artifact.before, artifact.after) {
            _ if entries > 0 => format!(
                "{}: {} new, {} gone, {} changed",
                match below {
                    Some(below) => format!("{name} below {below}"),
                    None => name.clone(),
                },
                artifact.added,
                artifact.removed,
                artifact.changed
            ),
            (Some(before), Some(after)) => {
                let new = match artifact.bytes_new {
                    Some(new) => format!(", {} of it new", size(new)),
                    None => String::new(),
                };
                format!("M {name}: was {}, is {}{new}", size(before), size(after))
            }
            (None, Some(after)) => format!("+ {name}: {}", size(after)),
            _ => format!("- {name}"),
        };
        app.output.line(what);
    }
    // What trees count is told already.
    for fact in diff
        .facts
        .iter()
        .filter(|_| diff.artifacts.iter().all(|a| a.added + a.removed + a.changed == 0))
    {
        app.output.line(format!("  {} was {}, is {}", fact.fact, fact.expected, fact.found));
    }
    if !diff.differs() && diff.problems.is_empty() {
        let artifacts = count(diff.artifacts.len() as u64, "artifact is", "artifacts are");
        app.output.note(format!("{}: {artifacts} the same", diff.source));
    }
}
