//! `snapkit restore`: a snapshot, or a part of it, put back and proven.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use snapkit_core::artifact::SourceName;
use snapkit_core::engine::{
    Occasion, Operation, RestoreOptions, RestoreSummary, RestoreTo, Selection, SourceRestored,
};
use snapkit_core::error::{Error, Result};
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::manifest::{CaptureVerdict, Snapshot, SourceRecord};
use snapkit_core::tree::escape;

use crate::app::App;
use crate::args::ScopeArgs;
use crate::exit::Exit;
use crate::format::{count, seconds, size, time};
use crate::own::Own;
use crate::snapshot::origin;
use crate::spec::{Named, Spec};
use crate::wanted::Wanted;
use crate::{paths, preflight};

/// How many places of a source are said.
const PLACES_SAID: usize = 3;

/// Below the directory of local state: what restores have replaced.
const RECOVERY: &str = "recovery";

/// Restore a snapshot or a part of it, and prove it
///
/// Without --target everything goes back to where it was captured, which must hold nothing unless
/// --overwrite is given; then the old state is kept, and how to bring it back is said. What was restored
/// is read back and compared with what was captured: `match`, `differs` (exit 4), or `unproven` where not
/// everything could be compared. A part of a tree is always `unproven`: facts speak of the whole, so that of
/// a part each file is compared, and nothing else.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// A snapshot, or a part of one
    #[arg(value_name = "SNAPSHOT[:SOURCE[/ARTIFACT[/PATH]]]")]
    place: String,
    /// Restore to DIR/SOURCE/… instead of the original places; of a snapshot of one server, or with a source
    /// named, also to another server
    #[arg(long, value_name = "DIR|URL")]
    target: Option<PathBuf>,
    /// Restore a source to another server; may be given several times
    #[arg(long, value_name = "SOURCE=URL")]
    map: Vec<String>,
    /// Only what matches in trees, and what is in it; may be given several times. A glob without a slash is a
    /// name, one with a slash a whole path. Artifacts that are no trees, such as databases, are left out unless
    /// they are named
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Replace what is there; the old state is kept
    #[arg(long)]
    overwrite: bool,
    /// Say what would be restored to where, or what is in the way there, and change nothing; content is not read
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
    /// Run the hooks and probes of the stack file although it goes elsewhere than to the original places
    #[arg(long, requires = "target")]
    hooks: bool,
    /// Run neither the hooks nor the probes of the stack file
    #[arg(long, conflicts_with = "hooks")]
    no_hooks: bool,
    #[command(flatten)]
    scope: ScopeArgs,
}

impl RestoreArgs {
    /// Whether nothing is changed.
    pub(crate) fn is_dry(&self) -> bool {
        self.dry_run
    }
}

pub(crate) async fn run(app: &App, args: RestoreArgs) -> Result<Exit> {
    let spec = Spec::parse(&args.place)?;
    let scope = app.scope(&args.scope)?;
    let url = app.repository_url()?;
    let own = Own::of(&url, &app.places)?;
    let server = args.target.as_deref().and_then(server_url);
    let to = match &args.target {
        Some(dir) if server.is_none() => RestoreTo::Directory(app.places.absolute(dir)),
        _ => RestoreTo::Original,
    };
    let mut urls = args.map.iter().map(|text| mapped(text)).collect::<Result<BTreeMap<_, _>>>()?;
    if let RestoreTo::Directory(dir) = &to {
        own.check_target(dir)?;
    }
    // What stops and starts services is for the places where these look.
    let (hooks, probes) = match (args.target.is_none() || args.hooks) && !args.no_hooks {
        true => (app.hooks()?, app.probes()?),
        false => (None, Vec::new()),
    };
    let found = async {
        let repository = app.open_repository().await?;
        let ledger = app.ledger(&repository).await?;
        let snapshot = app.snapshot(&repository, &ledger, &spec.snapshot, &scope).await?;
        Result::Ok((repository, snapshot))
    };
    let (repository, snapshot) = match found.await {
        Ok(found) => found,
        Err(e) => {
            let stack = scope.stack.as_deref().unwrap_or_default();
            let set = scope.set.as_deref().unwrap_or_default();
            let hooks = hooks.filter(|_| !args.dry_run);
            app.give_up(hooks, Occasion::new(Operation::Restore, stack, set), &e).await;
            return Err(e);
        }
    };
    let snapshot = &snapshot;

    if let Some(url) = server {
        urls.insert(only_source(&spec, snapshot)?, url.to_owned());
    }
    let mut options = RestoreOptions::new(to, app.places.state()?.join(RECOVERY));
    options.urls = urls;
    let named = spec.find(snapshot)?;
    let place = named.as_ref().map(Named::place).unwrap_or_default();
    options.selection = match named {
        Some(named) => named.selection(args.include),
        None => Selection { include: args.include, ..Selection::default() },
    };
    options.overwrite = args.overwrite;
    options.dry_run = args.dry_run;
    options.read_back = !args.no_verify;
    options.trusted = args.trusted;
    options.allow_damage = args.allow_damage;

    options.hooks = hooks;
    options.probes = probes;
    app.note_run(|run| {
        run.stack = Some(snapshot.stack.clone());
        run.set = Some(snapshot.set.clone());
        run.snapshot = Some(snapshot.id.to_string());
    });

    // What is half restored is not to be captured, nor restored by two at once.
    let is_in_place = args.target.is_none() && !args.dry_run;
    let _running = if is_in_place { app.only_run_of(&snapshot.stack)? } else { None };

    app.output.note(format!(
        "snapshot {} of {}, {}",
        snapshot.id,
        origin(&snapshot.stack, &snapshot.host),
        time(snapshot.started)
    ));
    if snapshot.verdict != CaptureVerdict::Complete {
        warn_of_gaps(app, snapshot);
    }
    let selection = options.selection.clone();
    let wanted = Wanted::new(&selection, &place)?;
    let in_trees = selection.path.is_some() || !selection.include.is_empty();
    let (part, bytes) = if in_trees {
        wanted.part_of(app, &repository, snapshot, args.dry_run).await?
    } else {
        (snapshot.clone(), Vec::new())
    };
    if args.overwrite {
        check_replaced(&own, &part, &options)?;
    }
    if args.overwrite && !args.dry_run {
        let place = options.recovery.join(format!("before-{}", snapshot.id.short()));
        let place = escape(place.as_os_str().as_bytes());
        app.output.note(format!("what is replaced is kept in {place}"));
    }
    let registry = app.registry();
    if args.dry_run {
        preflight::examine(&app.cx, &registry, &part, &options).await?;
    }
    let work = repository.restore(&app.cx, &registry, &part, &options);
    let mut summary = app.with_progress(work).await?;
    if args.target.is_none() {
        name_places(&mut summary, &part, &selection);
    }
    for (source, bytes) in summary.sources.iter_mut().zip(bytes).filter(|_| args.dry_run) {
        source.bytes = bytes;
    }
    tell(app, &summary, &options);
    app.output.document(&summary)?;
    app.note_run(|run| {
        summary.verdict.as_str().clone_into(&mut run.outcome);
        run.error = why(&summary);
    });
    let failed = summary.failed.iter().chain(&summary.hooks_failed);
    failed.clone().for_each(|e| app.output.failure_after(e));
    if let Some(e) = failed.clone().next() {
        app.note_run(|run| run.error = Some(e.chain()));
        return Ok(Exit::Unfinished(e.reason()));
    }
    // To be asked for a proof and to have none is no success; a part has none to give.
    let is_unproven = summary.sources.iter().any(|s| {
        s.verdict == RestoreVerdict::Unproven
            && (s.problem_count > 0 || !options.selection.is_partial())
    });
    Ok(if summary.damaged || (is_unproven && options.read_back && !options.dry_run) {
        Exit::Damage
    } else {
        summary.verdict.into()
    })
}

/// The target as a server's URL, if it is one and no directory.
fn server_url(target: &Path) -> Option<&str> {
    target.to_str().filter(|text| text.contains("://") && !target.exists())
}

/// `SOURCE=URL`.
fn mapped(text: &str) -> Result<(SourceName, String)> {
    let wrong = || Error::invalid("--map is SOURCE=URL, such as cache=redis://127.0.0.1:6379");
    let (source, url) = text.split_once('=').ok_or_else(wrong)?;
    if !url.contains("://") {
        return Err(wrong());
    }
    Ok((SourceName::new(source)?, url.to_owned()))
}

/// The source that is restored, if there is only one.
fn only_source(spec: &Spec, snapshot: &Snapshot) -> Result<SourceName> {
    if let Some(source) = &spec.source {
        return Ok(source.clone());
    }
    match &snapshot.sources[..] {
        [only] => Ok(only.name.clone()),
        sources => {
            let names: Vec<_> = sources.iter().map(|source| source.name.as_str()).collect();
            Err(Error::invalid(format!(
                "--target is a server, and there are several sources: use --map SOURCE=URL, with one of: {}",
                names.join(", ")
            )))
        }
    }
}

/// What differs, in a line, if something does.
fn why(summary: &RestoreSummary) -> Option<String> {
    let sources = summary.sources.iter().flat_map(|source| {
        source
            .comparison
            .differences
            .iter()
            .map(|d| format!("{}: {} differs", source.source, d.fact))
    });
    let probes = summary.probes.iter().filter_map(|probe| {
        probe.failure.as_ref().map(|failure| format!("probe {} failed: {failure}", probe.name))
    });
    let all: Vec<_> = sources.chain(probes).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// The places that a source is put back to, if that can be told.
fn places(source: &SourceRecord, selection: &Selection) -> Vec<PathBuf> {
    match &selection.path {
        // In a tree of files paths begin at the root directory.
        Some(path) if source.kind == "files" => {
            vec![Path::new("/").join(OsStr::from_bytes(path.as_bytes()))]
        }
        Some(_) => Vec::new(),
        None => paths::of_settings(&source.settings),
    }
}

/// That the repository itself is not replaced, by nothing or by an older state of it.
fn check_replaced(own: &Own, snapshot: &Snapshot, options: &RestoreOptions) -> Result<()> {
    let selection = &options.selection;
    let chosen =
        |source: &&SourceRecord| selection.source.as_ref().is_none_or(|name| *name == source.name);
    for source in snapshot.sources.iter().filter(chosen) {
        for place in places(source, selection) {
            let place = match &options.to {
                RestoreTo::Original => place,
                RestoreTo::Directory(dir) => {
                    let below = place.strip_prefix("/").unwrap_or(&place);
                    dir.join(source.name.as_str()).join(below)
                }
            };
            own.check_replaced(&place)?;
            own.check_target(&place)?;
        }
    }
    Ok(())
}

/// Say where the original places are.
fn name_places(summary: &mut RestoreSummary, snapshot: &Snapshot, selection: &Selection) {
    for restored in &mut summary.sources {
        let Some(source) = snapshot.source(&restored.source) else { continue };
        let places = places(source, selection);
        if places.is_empty() {
            continue;
        }
        let mut names: Vec<_> = places
            .iter()
            .take(PLACES_SAID)
            .map(|place| escape(place.as_os_str().as_bytes()))
            .collect();
        if places.len() > PLACES_SAID {
            names.push(format!("{} more", places.len() - PLACES_SAID));
        }
        restored.target = names.join(", ");
    }
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

fn tell(app: &App, summary: &RestoreSummary, options: &RestoreOptions) {
    for source in &summary.sources {
        // With -q a source is spoken of if something is wrong with it, or to be known for ever.
        let lines = if summary.dry_run { vec![planned(source)] } else { restored(source, options) };
        let is_well = source.verdict != RestoreVerdict::Differs
            && source.damaged.is_empty()
            && source.problem_count == 0;
        if !app.output.is_quiet() || !is_well || summary.dry_run {
            lines.iter().for_each(|line| app.output.line(line));
        }
    }
    for probe in &summary.probes {
        match &probe.failure {
            None if app.output.is_quiet() => {}
            None => app.output.line(format!("probe {}: passed", probe.name)),
            Some(why) => app.output.line(format!("probe {}: failed: {why}", probe.name)),
        }
    }
    // What was changed last is brought back first: it may lie within what was changed before.
    for source in summary.sources.iter().rev().filter(|s| !s.undo.is_empty()) {
        app.output.line(format!("to bring back what {} held before:", source.source));
        source.undo.iter().for_each(|step| app.output.step(&format!("    {step}")));
    }
    if summary.dry_run {
        app.output.note("nothing was changed");
    } else {
        let verdict = if summary.failed.is_some() { "failed" } else { summary.verdict.as_str() };
        app.output.note(format!("{verdict} in {}", seconds(summary.seconds)));
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

fn restored(source: &SourceRestored, options: &RestoreOptions) -> Vec<String> {
    let why = unproven(source, options);
    let proven = match why {
        Some(_) => String::new(),
        None => count(source.comparison.proven.into(), "fact holds", "facts hold") + ", ",
    };
    let mut lines = vec![format!(
        "{} ({}): {}, {proven}{} to {}",
        source.source,
        source.kind,
        source.verdict.as_str(),
        size(source.bytes),
        source.target
    )];
    lines.extend(why.map(|why| format!("  unproven: {why}")));
    for d in &source.comparison.differences {
        lines.push(format!("  differs: {} was {}, is {}", d.fact, d.expected, d.found));
    }
    if !source.comparison.unproven.is_empty() {
        lines.push(format!("  unproven: {}", source.comparison.unproven.join(", ")));
    }
    lines.extend(source.damaged.iter().map(|d| format!("  damaged, left out: {}", once(d))));
    // A restore that allows damage reports it in both lists.
    let others = source.problems.iter().filter(|p| !source.damaged.contains(p));
    lines.extend(others.map(|p| format!("  problem: {p}")));
    let unlisted = source.problem_count.saturating_sub(source.problems.len() as u64);
    if unlisted > 0 {
        lines.push(format!("  and {}", count(unlisted, "more problem", "more problems")));
    }
    lines.extend(source.notes.iter().map(|n| format!("  note: {n}")));
    lines
}

/// `PATH: what is wrong` without the path a second time.
fn once(damage: &str) -> String {
    let Some((path, what)) = damage.split_once(": ") else { return damage.to_owned() };
    let what = what.replace(&format!(" (path={path})"), "");
    format!("{path}: {}", what.replace(&format!(", path={path})"), ")"))
}

/// Why no fact was compared, if that was to be expected.
fn unproven(source: &SourceRestored, options: &RestoreOptions) -> Option<&'static str> {
    let is_expected = source.verdict == RestoreVerdict::Unproven
        && source.comparison.proven == 0
        && source.comparison.unproven.is_empty();
    match (is_expected, options.read_back, source.kind.as_str()) {
        (false, ..) => None,
        (true, false, _) => Some("--no-verify was given, so nothing was read back"),
        // A trouble while reading back is among the problems.
        (true, true, "files") if source.problem_count == 0 => Some(
            "a part of a snapshot has no facts of its own; every file was read back and is as stored",
        ),
        (true, true, _) => Some("a part of a snapshot has no facts of its own"),
    }
}
