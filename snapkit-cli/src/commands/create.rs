//! `snapkit create`: a snapshot of a stack, or of paths.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use snapkit_core::engine::{CreateOptions, CreateReport, Occasion, Operation, Stack};
use snapkit_core::error::{Error, IoContext as _, Result};
use snapkit_core::manifest::{CaptureVerdict, Snapshot, SourceRecord};

use crate::app::App;
use crate::exit::Exit;
use crate::format::{count, micros, seconds, size};
use crate::own::Own;
use crate::snapshot::{self, Full};
use crate::stack::FULL;
use crate::{paths, spec, stdin, tags};

/// How many problems are said; all that are recorded are in `snapkit show`.
const PROBLEMS_SAID: usize = 20;

/// Create a snapshot of a stack, or of paths
///
/// Prints the snapshot's id, unless -q is given. Without PATH the sources of the stack file are captured together; with
/// PATH these are, and of the stack file only the repository counts: files named *.db, *.sqlite,
/// *.sqlite3 or *.db3 as databases, everything else as files. The stack is then named after the paths, so that
/// `latest` of these is not that of others. What snapkit keeps itself (a repository in a local directory, local
/// state, caches) is left out of files. Exits with 3 if the snapshot lacks something.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Directories and files to capture instead of a stack
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Which set of the stack's sources [default: full, which is all]
    #[arg(long, value_name = "NAME", conflicts_with = "paths")]
    set: Option<String>,
    /// A name for the snapshot
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// A key and a value to remember; may be given several times
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    tags: Vec<String>,
    /// Leave out what matches, with patterns as in .gitignore; may be given several times. Of a stack it counts
    /// for every source of files
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// More paths: one in a line, or ended by NULs if there is one, as `find -print0` gives them; - is standard
    /// input. All of them are captured as files, databases among them as those of one moment; one that is gone by now
    /// is told as a thing that was not captured (exit 3)
    #[arg(long, value_name = "FILE", conflicts_with = "set")]
    files_from: Option<PathBuf>,
    /// Capture standard input as a file of this name. Nothing on it is an error; but whether the program that
    /// writes it succeeds is not seen here: in a pipe use `set -o pipefail`
    #[arg(long, value_name = "NAME", conflicts_with_all = ["set", "files_from"])]
    stdin: Option<String>,
    /// The stack's name in the snapshot [default: names of the paths, and a digest of where they are]
    #[arg(long, value_name = "NAME")]
    stack_name: Option<String>,
    /// Read everything, even what looks unchanged
    #[arg(long)]
    read_all: bool,
    /// Take the SHA-256 of each artifact that is a byte stream; `snapkit show` tells it
    #[arg(long)]
    sha256: bool,
    /// Read everything that a snapshot would need, say what would be new, and keep nothing. Hooks do not run
    #[arg(long)]
    dry_run: bool,
}

impl CreateArgs {
    /// Whether nothing is kept.
    pub(crate) fn is_dry(&self) -> bool {
        self.dry_run
    }
}

/// The result, for `--json`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    snapshot: Full<'a>,
    seconds: f64,
    warnings: &'a [String],
    hooks_failed: Vec<String>,
    dry_run: bool,
}

pub(crate) async fn run(app: &App, args: CreateArgs) -> Result<Exit> {
    let options = CreateOptions {
        name: args.name.clone(),
        tags: tags::parse(&args.tags)?,
        read_all: args.read_all,
        sha256: args.sha256,
        dry_run: args.dry_run,
        ..CreateOptions::default()
    };
    if let Some(name) = &args.name {
        spec::check_name(name)?;
    }
    let url = app.repository_url()?;
    let own = Own::of(&url, &app.places)?;
    // Everything that is wrong with the stack shows before a repository is opened.
    let mut paths = args.paths.clone();
    if let Some(file) = &args.files_from {
        paths.extend(paths::listed(&app.cx, file).await?);
    }
    let stack = build_stack(app, &args, &paths, &own)?;
    app.note_run(|run| {
        run.stack = Some(stack.name.clone());
        run.set = Some(stack.set.clone());
    });
    // What a restore will need is looked at while there is time to mend it.
    if let (Some(_), true, Err(e)) = (&app.stack, paths.is_empty(), app.probes()) {
        app.output
            .warn(format!("a restore would be refused because of the stack file: {}", e.chain()));
    }
    let _running = if args.dry_run { None } else { app.only_run_of(&stack.name)? };
    let repository = match app.open_repository().await {
        Ok(repository) => repository,
        Err(e) => {
            let hooks = stack.hooks.filter(|_| !args.dry_run);
            app.give_up(hooks, Occasion::new(Operation::Create, &stack.name, &stack.set), &e).await;
            return Err(e);
        }
    };
    let report = app.with_progress(repository.create(&app.cx, &stack, &options)).await?;
    tell(app, &report);
    if !report.dry_run {
        app.output.stands(&report.snapshot.id);
    }
    // What cron is told nothing of, it does not mail.
    if !report.dry_run && !app.output.is_quiet() {
        app.output.line(&report.snapshot.id);
    }
    app.output.document(&Document {
        snapshot: Full::from(&report.snapshot),
        seconds: report.seconds,
        warnings: &report.warnings,
        hooks_failed: report.hooks_failed.iter().map(Error::chain).collect(),
        dry_run: report.dry_run,
    })?;
    app.note_run(|run| {
        run.snapshot = Some(report.snapshot.id.to_string());
        report.snapshot.verdict.as_str().clone_into(&mut run.outcome);
    });
    // The snapshot stands; what a hook should have done has not been done.
    if let Some(e) = report.hooks_failed.first() {
        app.note_run(|run| run.error = Some(e.chain()));
        report.hooks_failed.iter().for_each(|e| app.output.failure_after(e));
        return Ok(Exit::Unfinished(e.reason()));
    }
    Ok(report.snapshot.verdict.into())
}

fn build_stack(app: &App, args: &CreateArgs, paths: &[PathBuf], own: &Own) -> Result<Stack> {
    let registry = app.registry();
    let host = app.host()?;
    let amend = |kind: &str, settings: &mut Value| {
        for what in own.leave_out(kind, settings)? {
            app.output.note(format!("left out: the {what}"));
        }
        Ok(())
    };
    let name = args.stack_name.as_deref();
    if let Some(file) = &args.stdin {
        let name = name.map_or_else(|| format!("stdin-{file}"), str::to_owned);
        if !paths.is_empty() || !args.exclude.is_empty() {
            return Err(Error::invalid("--stdin captures standard input, and no paths"));
        }
        return stdin::stack(&name, file, host);
    }
    if !paths.is_empty() {
        let named = args.paths.len();
        return paths::stack(&registry, paths, named, &args.exclude, name, host, amend);
    }
    let Some(file) = &app.stack else {
        return Err(Error::invalid(
            "there is nothing to capture: name paths, or a stack file with --stack",
        ));
    };
    if name.is_some() {
        return Err(Error::invalid(
            "--stack-name is for paths: a stack file names its stack with `name`",
        ));
    }
    // Sources take relative paths from the working directory, a stack file means them from its own
    // place. Every other path was made absolute when the program started.
    let directory = file.directory();
    std::env::set_current_dir(directory)
        .doing(|| format!("cannot enter the stack file's directory {}", directory.display()))?;
    let exclude = |kind: &str, settings: &mut Value| {
        if kind == "files" && !args.exclude.is_empty() {
            paths::exclude(settings, &args.exclude);
        }
        amend(kind, settings)
    };
    let set = args.set.as_deref().unwrap_or(FULL);
    let mut stack = file.build(&registry, &app.env, set, host, exclude)?;
    stack.hooks = app.hooks()?;
    Ok(stack)
}

fn tell(app: &App, report: &CreateReport) {
    let Snapshot { stats, verdict, sources, cut_micros, .. } = &report.snapshot;
    let output = &app.output;
    output.note(format!(
        "{}{}: {} in {}",
        if report.dry_run { "it would be " } else { "" },
        verdict.as_str(),
        size(stats.bytes),
        seconds(report.seconds)
    ));
    for source in sources {
        output.note(format!("  {}", describe(source)));
    }
    output.note(format!(
        "  read {}, {} new, {} {}stored",
        size(stats.bytes_read),
        size(stats.bytes_new),
        size(stats.bytes_stored),
        if report.dry_run { "would be " } else { "" }
    ));
    if sources.len() > 1 {
        output.note(format!("  the cut is {} wide", micros(*cut_micros)));
    }
    for warning in &report.warnings {
        output.warn(warning);
    }
    tell_problems(app, &report.snapshot);
    if report.dry_run {
        output.note("nothing was kept");
    }
}

/// `app (sqlite): 1 artifact, 1.2 MiB`
fn describe(source: &SourceRecord) -> String {
    let bytes = source.bytes();
    let artifacts = count(source.artifacts.len() as u64, "artifact", "artifacts");
    let entries: u64 =
        source.artifacts.iter().filter_map(|a| snapshot::Artifact::from(a).entries).sum();
    let mut text = format!("{} ({}): {artifacts}", source.name, source.kind);
    if entries > 0 {
        text.push_str(&format!(", {}", count(entries, "entry", "entries")));
    }
    text.push_str(&format!(", {}", size(bytes)));
    if source.verdict != CaptureVerdict::Complete {
        text.push_str(&format!(", {}", source.verdict.as_str()));
    }
    text
}

fn tell_problems(app: &App, snapshot: &Snapshot) {
    let all = snapshot.sources.iter().flat_map(|s| s.problems.listed.iter().map(move |p| (s, p)));
    for (source, problem) in all.take(PROBLEMS_SAID) {
        if problem.place == source.name.as_str() {
            app.output.warn(format!("{}: {}", source.name, problem.text));
        } else {
            app.output.warn(format!("{}: {}: {}", source.name, problem.place, problem.text));
        }
    }
    let problems = snapshot.problem_count();
    if problems > 0 {
        app.output.warn(format!(
            "{} not captured; `snapkit show {}` lists {}",
            count(problems, "thing was", "things were"),
            snapshot.id.short(),
            if problems == 1 { "it" } else { "them" }
        ));
    }
}
