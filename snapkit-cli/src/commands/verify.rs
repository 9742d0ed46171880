//! `snapkit verify`: is the repository whole?

use clap::Args;
use snapkit_core::artifact::SourceName;
use snapkit_core::engine::{Damage, VerifyOptions, VerifyReport};
use snapkit_core::error::{Error, Result};

use crate::app::App;
use crate::args::ScopeArgs;
use crate::exit::Exit;
use crate::format::{count, seconds, size};
use crate::spec::Spec;

/// How much of what a damage has cost is said; all that is known is in `--json`.
const LOST_SAID: usize = 10;

/// Examine the repository for damage
///
/// Without arguments all snapshots are examined, and packs that none of them needs. Exits with 4 if
/// anything is damaged.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Only these snapshots, or one source of them
    #[arg(value_name = "SNAPSHOT[:SOURCE]")]
    places: Vec<String>,
    /// Read and check every byte, and ask the sources whether they would take it back
    #[arg(long)]
    read_data: bool,
    /// Afterwards take it as it is that snapshots are gone, or are back: on this machine they are not reported
    /// any more
    #[arg(long)]
    accept_loss: bool,
    #[command(flatten)]
    scope: ScopeArgs,
}

pub(crate) async fn run(app: &App, args: VerifyArgs) -> Result<Exit> {
    let specs = args.places.iter().map(|place| Spec::parse(place)).collect::<Result<Vec<_>>>()?;
    let source = common_source(&specs)?;
    let scope = app.scope(&args.scope)?;
    let repository = app.open_repository().await?;
    let mut options =
        VerifyOptions { source, read_data: args.read_data, ..VerifyOptions::default() };
    if !specs.is_empty() {
        // What is wrong with it is said with everything else that is wrong.
        let ledger = app.ledger_unsaid(&repository).await?;
        for spec in &specs {
            let snapshot = app.resolve(&ledger, &spec.snapshot, &scope)?;
            spec.check_source(snapshot)?;
            if !options.snapshots.contains(&snapshot.id) {
                options.snapshots.push(snapshot.id.clone());
            }
        }
    }
    // A check of ours says nothing about what others mean by the same name.
    let registry = app.registry_of_stack()?;
    let report = app.with_progress(repository.verify(&app.cx, &registry, &options)).await?;
    tell(app, &report, &options);
    if args.accept_loss {
        for id in repository.accept_loss(&app.cx).await? {
            app.output.note(format!("{id} is not reported any more"));
        }
    }
    app.output.document(&report)?;
    let outcome = if report.is_sound() { "sound" } else { "damage" };
    app.note_run(|run| outcome.clone_into(&mut run.outcome));
    Ok(if report.is_sound() { Exit::Done } else { Exit::Damage })
}

/// The source that all places name, or none.
fn common_source(specs: &[Spec]) -> Result<Option<SourceName>> {
    if let Some(spec) = specs.iter().find(|spec| spec.inside.is_some()) {
        return Err(Error::invalid("whole sources are verified: name no artifact")
            .with("snapshot", &spec.snapshot));
    }
    let Some((first, rest)) = specs.split_first() else { return Ok(None) };
    if rest.iter().all(|spec| spec.source == first.source) {
        Ok(first.source.clone())
    } else {
        Err(Error::invalid("in one run either one and the same source is verified, or all of them"))
    }
}

fn tell(app: &App, report: &VerifyReport, options: &VerifyOptions) {
    let output = &app.output;
    for damage in &report.damage {
        describe(damage).iter().for_each(|line| output.line(line));
    }
    for note in &report.notes {
        output.note(format!("note: {note}"));
    }
    // Whether packs are there is looked at in any case; those that are counted were read.
    let packs = match report.read_data {
        true => format!(", {}", count(report.packs, "pack", "packs")),
        false => String::new(),
    };
    output.note(format!(
        "examined {}, {}{packs}; {} read in {}",
        count(report.snapshots, "snapshot", "snapshots"),
        count(report.chunks, "chunk", "chunks"),
        size(report.bytes_read),
        seconds(report.seconds)
    ));
    let verdict = match (report.damage.len() as u64, report.read_data) {
        (0, true) => format!("no damage: every byte {} was read and checked", extent(options)),
        (0, false) => "no damage; contents were not read, `--read-data` does that".to_owned(),
        (n, _) => format!("{} found", count(n, "damaged object", "damaged objects")),
    };
    output.note(verdict);
    if !report.is_sound() {
        output.note(
            "a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged",
        );
    }
}

/// What was examined.
fn extent(options: &VerifyOptions) -> String {
    let snapshots = options.snapshots.len() as u64;
    match (&options.source, snapshots) {
        (None, 0) => "of all snapshots and packs".to_owned(),
        (None, n) => format!("of {}", count(n, "snapshot", "snapshots")),
        (Some(source), n) => {
            format!("of the source {source} in {}", count(n, "snapshot", "snapshots"))
        }
    }
}

fn describe(damage: &Damage) -> Vec<String> {
    let Damage { object, what, .. } = damage;
    // An error may name the object too.
    let named = [format!(" (key={object})"), format!(" (object={object})")];
    let what = named.iter().fold(what.clone(), |what, again| what.replace(again, ""));
    let mut lines = vec![format!("damaged: {object}: {what}")];
    let said = damage.lost.iter().take(LOST_SAID);
    lines.extend(said.map(|lost| format!("  lost: {lost}")));
    let unsaid = damage.lost_count.saturating_sub(damage.lost.len().min(LOST_SAID) as u64);
    if unsaid > 0 {
        lines.push(format!("  and {unsaid} more"));
    }
    lines
}
