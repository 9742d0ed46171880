//! `snapkit doctor`: reaches everything that a run would need, and names what is wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rustix::fs::Access;
use serde::Serialize;
use snapkit_core::engine::{Ledger, Repository};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::manifest::{CaptureVerdict, Head};
use snapkit_core::sign::Role;

use crate::app::App;
use crate::exit::Exit;
use crate::format::{count, parse_duration, seconds, size, time};
use crate::history::{Run, runs};
use crate::own::Own;
use crate::stack::FULL;

/// How long a source may take to say that it could be captured.
const SOURCE_LIMIT: Duration = Duration::from_secs(60);

/// Less room than this where things are kept is told: 1 GiB.
const LITTLE_ROOM: u64 = 1 << 30;

/// Check that everything is reachable and as it should be
///
/// Examines the stack file, the local directories, the repository, the key, the ledger, whether the packs are
/// there, the age and growth of the newest snapshots and, of a stack file, each source as a `create` would prepare
/// it, and the programs of its hooks. Changes nothing and reads no content: `verify --read-data` does. Exits with 4
/// if something is wrong; with -q only problems and warnings are said.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The newest snapshot must not be older, such as 26h or 2d
    #[arg(long, value_name = "TIME")]
    max_age: Option<String>,
    /// The newest snapshot must not hold so much more, or less, than the one before it, such as 50%
    #[arg(long, value_name = "PERCENT")]
    max_growth: Option<String>,
    /// Only snapshots of this set count; else all sets that were ever captured do
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
    /// Do not reach the sources
    #[arg(long)]
    no_sources: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warning,
    Problem,
}

/// Something that was examined.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    state: State,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, state: State, what: impl Into<String>, text: impl Into<String>) {
        self.0.push(Finding { what: what.into(), state, text: text.into(), reason: None });
    }

    fn fail(&mut self, what: impl Into<String>, error: &Error) {
        let text = match error.hint() {
            "" => error.chain(),
            hint => format!("{}; {hint}", error.chain()),
        };
        let reason = Some(error.reason().code());
        self.0.push(Finding { what: what.into(), state: State::Problem, text, reason });
    }
}

pub(crate) async fn run(app: &App, args: DoctorArgs) -> Result<Exit> {
    let max_age = args.max_age.as_deref().map(parse_duration).transpose();
    let max_age = max_age.map_err(|e| e.with("option", "--max-age"))?;
    let max_growth = args.max_growth.as_deref().map(parse_percent).transpose()?;
    let mut findings = Findings::default();
    local(app, &mut findings);
    let opened = app.open_repository().await;
    match opened {
        Ok(repository) => {
            of_repository(app, &repository, &mut findings);
            match app.ledger_unsaid(&repository).await {
                Ok(ledger) => {
                    of_ledger(&ledger, &mut findings);
                    of_snapshots(
                        app,
                        &ledger,
                        args.set.as_deref(),
                        (max_age, max_growth),
                        &mut findings,
                    )?;
                }
                Err(e) if e.is_cancelled() => return Err(e),
                Err(e) => findings.fail("ledger", &e),
            }
            match repository.lost_packs(&app.cx).await {
                Ok((packs, lost)) => of_packs(packs, &lost, &mut findings),
                Err(e) if e.is_cancelled() => return Err(e),
                Err(e) => findings.fail("stored data", &e),
            }
            match repository.damaged_packs(&app.cx).await {
                Ok(damaged) => of_damage(&damaged, &mut findings),
                Err(e) if e.is_cancelled() => return Err(e),
                Err(e) => findings.fail("stored data", &e),
            }
        }
        Err(e) if e.is_cancelled() => return Err(e),
        Err(e) => findings.fail("repository", &e),
    }
    of_stack(app, &args, &mut findings).await?;
    of_history(app, &mut findings);

    for Finding { what, state, text, .. } in &findings.0 {
        let word = match state {
            State::Ok if app.output.is_quiet() => continue,
            State::Ok => "ok",
            State::Warning => "warning",
            State::Problem => "problem",
        };
        app.output.line(format!("{word:<8} {what}: {text}"));
    }
    app.output.document(&findings.0)?;
    let of = |state| findings.0.iter().filter(|f| f.state == state).count() as u64;
    let (problems, warnings) = (of(State::Problem), of(State::Warning));
    app.output.note(match (problems, warnings) {
        (0, 0) => "nothing is wrong".to_owned(),
        (0, n) => {
            format!("no problems, but {} should be looked at", count(n, "warning", "warnings"))
        }
        (n, _) => format!("{} found", count(n, "problem", "problems")),
    });
    Ok(if problems == 0 { Exit::Done } else { Exit::Damage })
}

/// Packs that are named one by one.
const PACKS_SAID: usize = 10;

fn of_packs(packs: u64, lost: &[String], findings: &mut Findings) {
    if lost.is_empty() {
        let listed = count(packs, "pack", "packs");
        let text =
            format!("{listed} listed, and all of them there; `verify` examines what is in them");
        findings.add(State::Ok, "stored data", text);
    }
    for key in lost.iter().take(PACKS_SAID) {
        let text = "it is gone or cut short; `snapkit verify` says what is lost by it";
        findings.add(State::Problem, key, text);
    }
    if let Some(more) = lost.len().checked_sub(PACKS_SAID).filter(|more| *more > 0) {
        findings.add(State::Problem, "stored data", format!("and {more} more packs are gone"));
    }
}

/// It stays damaged until it is read and found whole.
fn of_damage(damaged: &[String], findings: &mut Findings) {
    for key in damaged.iter().take(PACKS_SAID) {
        let text = "a verify has found it damaged; `snapkit verify` says what is lost by it";
        findings.add(State::Problem, key, text);
    }
    if let Some(more) = damaged.len().checked_sub(PACKS_SAID).filter(|more| *more > 0) {
        findings.add(State::Problem, "stored data", format!("and {more} more packs are damaged"));
    }
}

fn parse_percent(text: &str) -> Result<u64> {
    text.strip_suffix('%').unwrap_or(text).parse().map_err(|_| {
        Error::invalid(format!("--max-growth is a number of per cent such as 50%, not {text:?}"))
    })
}

/// The directories of this machine.
fn local(app: &App, findings: &mut Findings) {
    let places = [("local state", app.places.state()), ("cache", app.places.cache())];
    for (what, place) in places {
        match place {
            Ok(path) => writable(what, &path, findings),
            Err(e) => findings.fail(what, &e),
        }
    }
    match app.repository_url().and_then(|url| snapkit_sinks::directory(&url)) {
        Ok(Some(directory)) if directory.exists() => writable("repository", &directory, findings),
        _ => {}
    }
}

fn writable(what: &str, path: &Path, findings: &mut Findings) {
    let there = path.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
    if !there.is_dir() {
        let e = Error::invalid("a file stands where a directory has to be");
        findings.fail(what, &e.with("path", there.display()));
        return;
    }
    if let Err(e) = rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK) {
        let e = Error::io("it cannot be written to", e.into()).with("path", there.display());
        findings.fail(what, &e);
        return;
    }
    match rustix::fs::statvfs(there) {
        Ok(stat) => {
            let room = stat.f_bavail.saturating_mul(stat.f_frsize);
            let state = if room < LITTLE_ROOM { State::Warning } else { State::Ok };
            findings.add(state, what, format!("{}, {} are free", path.display(), size(room)));
        }
        Err(e) => findings.fail(what, &Error::io("cannot examine the file system", e.into())),
    }
}

fn of_repository(app: &App, repository: &Repository, findings: &mut Findings) {
    let config = repository.config();
    let location = app.repository_url().unwrap_or_default();
    findings.add(State::Ok, "repository", format!("{} at {location}", config.repository));
    if config.create_only {
        findings.add(
            State::Ok,
            "create-only puts",
            "honoured by the store, which `init` has tried",
        );
    } else {
        let what = "the store does not honour them: two writers may overwrite each other's commit";
        findings.add(State::Warning, "create-only puts", what);
    }
    let role = match repository.credential().role {
        Role::Full => "full: it can add and read",
        Role::Writer => "writer: it can add, and cannot read",
    };
    findings.add(State::Ok, "credential", role);
    for warning in repository.warnings() {
        findings.add(State::Warning, "repository", warning);
    }
}

fn of_ledger(ledger: &Ledger, findings: &mut Findings) {
    let lines = ledger.snapshots.len() + ledger.sealed.len();
    findings.add(State::Ok, "ledger", count(lines as u64, "snapshot", "snapshots"));
    for (id, e) in &ledger.damaged {
        findings.fail(format!("snapshot {id}"), e);
    }
    for (key, e) in &ledger.damaged_notes {
        findings.fail(key, e);
    }
    let lost = [
        (&ledger.gone, "it was here and is gone without a trace"),
        (&ledger.missing, "it is gone without a trace, and another one came after it"),
        (&ledger.returned, "it stands where there was none any more: an old version was put back"),
    ];
    for (ids, what) in lost {
        for id in ids {
            findings.add(State::Problem, format!("snapshot {id}"), what);
        }
    }
}

/// How old the newest snapshots are, and how they have grown: of this stack on this host; without a stack file of
/// every stack.
fn of_snapshots(
    app: &App,
    ledger: &Ledger,
    set: Option<&str>,
    (max_age, max_growth): (Option<Duration>, Option<u64>),
    findings: &mut Findings,
) -> Result<()> {
    let mut lines: BTreeMap<String, Vec<&Head>> = BTreeMap::new();
    let wanted = match &app.stack {
        Some(file) => {
            let (name, host) = (file.name(&app.env)?, app.host()?);
            lines.insert(format!("{name}@{host} ({})", set.unwrap_or(FULL)), Vec::new());
            Some((name, host))
        }
        None => None,
    };
    for s in &ledger.snapshots {
        let is_of_stack =
            wanted.as_ref().is_none_or(|(name, host)| s.stack == *name && s.host == *host);
        if is_of_stack && set.is_none_or(|set| s.set == set) {
            lines.entry(format!("{}@{} ({})", s.stack, s.host, s.set)).or_default().push(s);
        }
    }
    // A stack of which only other sets are captured has no full one.
    if lines.len() > 1 {
        lines.retain(|_, snapshots| !snapshots.is_empty());
    }
    let now = app.cx.now();
    if lines.is_empty() && max_age.is_some() {
        let what = set.map_or_else(String::new, |set| format!(" of set {set}"));
        findings.add(State::Problem, "snapshots", format!("there is no snapshot{what} yet"));
    }
    for (what, snapshots) in &lines {
        let Some(newest) = snapshots.first() else {
            let state = if max_age.is_some() { State::Problem } else { State::Warning };
            findings.add(state, what, "there is no snapshot yet");
            continue;
        };
        let age = now.since(newest.started);
        let text = format!(
            "the newest snapshot is {} old, of {}, {}",
            seconds(age.as_secs_f64()),
            time(newest.started),
            newest.verdict.as_str()
        );
        if newest.started > now {
            let what = format!(
                "the newest snapshot is of {}, which is yet to come: is a clock wrong?",
                time(newest.started)
            );
            findings.add(State::Problem, "clock", what);
        }
        match max_age {
            Some(max) if age > max => {
                let text =
                    format!("{text}; it must not be older than {}", seconds(max.as_secs_f64()));
                findings.add(State::Problem, what, text);
            }
            // A monitor that only looks at ages would take it for whole.
            _ if newest.verdict != CaptureVerdict::Complete => {
                findings.add(State::Warning, what, text);
            }
            _ => findings.add(State::Ok, what, text),
        }
        if let Some(before) = snapshots.get(1) {
            let gone = before.sources.iter().filter(|name| !newest.sources.contains(name));
            for name in gone {
                let text = format!(
                    "source {name} was in the snapshot before the newest, and is not in that"
                );
                findings.add(State::Warning, what, text);
            }
        }
        if let (Some(max), Some(before)) = (max_growth, snapshots.get(1)) {
            let (is, was) = (newest.bytes, before.bytes);
            let change = is.abs_diff(was).saturating_mul(100) / was.max(1);
            let state = if change > max { State::Problem } else { State::Ok };
            let text = format!(
                "it holds {}, the one before it {}: {}{change} %",
                size(is),
                size(was),
                if is < was { "-" } else { "+" }
            );
            findings.add(state, what, text);
        }
    }
    Ok(())
}

async fn of_stack(app: &App, args: &DoctorArgs, findings: &mut Findings) -> Result<()> {
    let Some(file) = &app.stack else { return Ok(()) };
    match (file.hooks(&app.env), file.probes(&app.env)) {
        (Ok(hooks), Ok(probes)) => {
            let programs = hooks.iter().map(|hook| &hook.run).chain(probes.iter().filter_map(
                |p| match &p.ask {
                    crate::hooks::Ask::Run(run) => Some(run),
                    crate::hooks::Ask::Http { .. } => None,
                },
            ));
            for name in programs.filter_map(|words| words.first()) {
                match program(app, file.directory(), name) {
                    Some(path) => findings.add(State::Ok, "program", path.display().to_string()),
                    None => findings.add(State::Problem, "program", format!("{name} is not found")),
                }
            }
        }
        (Err(e), _) | (_, Err(e)) => findings.fail("stack file", &e),
    }
    if args.no_sources {
        return Ok(());
    }
    let own = app.repository_url().and_then(|url| Own::of(&url, &app.places));
    let built = own.and_then(|own| {
        std::env::set_current_dir(file.directory())
            .map_err(|e| Error::io("cannot enter the stack file's directory", e))?;
        file.build(&app.registry(), &app.env, FULL, app.host()?, |kind, settings| {
            own.leave_out(kind, settings).map(drop)
        })
    });
    let stack = match built {
        Ok(stack) => stack,
        Err(e) => {
            findings.fail("stack file", &e);
            return Ok(());
        }
    };
    for source in stack.sources {
        let what = format!("source {}", source.source.info().name);
        let cx = app.cx.within(SOURCE_LIMIT);
        let prepared = async {
            let capture = source.source.capture(&cx, None).await?;
            capture.abort(&cx).await
        };
        match cx.run(prepared).await {
            Ok(()) => {
                // Where others are there, a create only says so.
                let settings = &source.source.info().settings;
                let gone = |path: &PathBuf| std::fs::symlink_metadata(path).is_err();
                if let Some(path) = crate::paths::of_settings(settings).iter().find(|p| gone(p)) {
                    let e =
                        Error::new(Reason::SourceMissing, "what is to be captured does not exist");
                    findings.fail(what, &e.with("path", path.display()));
                    continue;
                }
                let kind = &source.source.info().kind;
                findings.add(State::Ok, what, format!("{kind}, ready to be captured"));
            }
            Err(e) if app.cx.check().is_err() => return Err(e),
            Err(e) => findings.fail(what, &e),
        }
    }
    Ok(())
}

/// Where a program is that would be started by this name.
fn program(app: &App, directory: &Path, name: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        path.is_file() && rustix::fs::access(path.as_path(), Access::EXEC_OK).is_ok()
    };
    if name.contains('/') {
        return Some(directory.join(name)).filter(is_program);
    }
    let path = app.env.raw("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(is_program)
}

/// Exit codes of restores that did nothing: the arguments made no sense, or something was in the way. A create that
/// did nothing is missing, whatever the reason.
const REFUSED: [u8; 2] = [2, 11];

/// How the last runs here ended.
fn of_history(app: &App, findings: &mut Findings) {
    let Ok(state) = app.places.state() else { return };
    let Ok(all) = runs(&state) else { return };
    let repository = app.repository_url().unwrap_or_default();
    let stack = app.stack.as_ref().and_then(|file| file.name(&app.env).ok());
    for command in ["create", "restore", "verify"] {
        // What was refused before it did anything tells nothing of how well things are, nor does another stack.
        let counts = |run: &&Run| {
            let is_refused = command == "restore" && REFUSED.contains(&run.exit);
            let is_other = stack.as_ref().zip(run.stack.as_ref()).is_some_and(|(a, b)| a != b);
            run.command == command
                && run.repository == repository
                && !is_refused
                && (command == "verify" || !is_other)
        };
        // Sets are captured apart: that one goes well says nothing of another, which may fail each time.
        let mut sets: Vec<Option<&String>> = Vec::new();
        for run in all.iter().filter(counts) {
            let set = run.set.as_ref().filter(|_| command == "create");
            if !sets.contains(&set) {
                sets.push(set);
                of_run(run, command, findings);
            }
        }
        if sets.is_empty() {
            findings.add(State::Ok, format!("last {command}"), "none is remembered here");
        }
    }
}

fn of_run(run: &Run, command: &str, findings: &mut Findings) {
    let Run { started, outcome, exit, error, set, .. } = run;
    let of_set = set.as_ref().filter(|set| command == "create" && *set != FULL);
    let of_set = of_set.map(|set| format!(" of set {set}")).unwrap_or_default();
    let state = match (*exit, command) {
        (0, _) => State::Ok,
        // It stays damaged until a later one finds nothing.
        (4, "verify") => State::Problem,
        _ => State::Warning,
    };
    let why = error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    findings.add(
        state,
        format!("last {command}{of_set}"),
        format!("{}, {outcome}{why}", time(*started)),
    );
}
