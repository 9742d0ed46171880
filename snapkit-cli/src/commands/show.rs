//! `snapkit show`: all that a snapshot says about itself.

use clap::Args;
use snapkit_core::error::{Error, Result};
use snapkit_core::facts::{Fact, Standing};
use snapkit_core::manifest::{Snapshot, SourceRecord};
use snapkit_core::source::Consistency;

use crate::app::App;
use crate::args::ScopeArgs;
use crate::exit::Exit;
use crate::format::{count, micros, size, time};
use crate::snapshot::{Artifact, Full, origin};
use crate::spec::Spec;

/// Show all that a snapshot says about itself
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A snapshot: an id or a prefix of one, a name, `latest`, `latest~N`, or `@TIME` for the newest
    /// that is not after it, such as @2026-01-15T14:30Z; without a zone it is UTC
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    #[command(flatten)]
    scope: ScopeArgs,
}

pub(crate) async fn run(app: &App, args: ShowArgs) -> Result<Exit> {
    let spec = Spec::parse(&args.snapshot)?;
    if spec.source.is_some() {
        return Err(Error::invalid("a whole snapshot is shown: name it without a source")
            .with("given", &args.snapshot));
    }
    let scope = app.scope(&args.scope)?;
    let repository = app.open_repository().await?;
    let ledger = app.ledger(&repository).await?;
    let snapshot = app.snapshot(&repository, &ledger, &spec.snapshot, &scope).await?;
    for line in describe(&snapshot) {
        app.output.line(line);
    }
    app.output.document(&Full::from(&snapshot))?;
    Ok(Exit::Done)
}

fn describe(s: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    let mut field = |name: &str, value: String| lines.push(format!("{name:<9}{value}"));
    field("snapshot", s.id.to_string());
    if let Some(name) = &s.name {
        field("name", name.clone());
    }
    field("stack", origin(&s.stack, &s.host));
    field("set", s.set.clone());
    field("started", time(s.started));
    field("finished", time(s.finished));
    field("verdict", s.verdict.as_str().to_owned());
    field("cut", format!("{} wide", micros(s.cut_micros)));
    field("size", format!("{} ({} bytes)", size(s.stats.bytes), s.stats.bytes));
    field("new", format!("{}, {} stored", size(s.stats.bytes_new), size(s.stats.bytes_stored)));
    for (key, value) in &s.tags {
        field("tag", format!("{key}={value}"));
    }
    if let Some(previous) = &s.previous {
        field("previous", previous.to_string());
    }
    field("program", s.program.clone());
    for source in &s.sources {
        describe_source(source, &mut lines);
    }
    lines
}

fn describe_source(source: &SourceRecord, lines: &mut Vec<String>) {
    lines.push(String::new());
    lines.push(format!("source {} ({}): {}", source.name, source.kind, source.verdict.as_str()));
    if let Some(cut) = &source.cut {
        let consistency = match cut.consistency {
            Consistency::Point => "one moment",
            Consistency::Fuzzy => "each part whole, of different moments",
        };
        lines.push(format!("  cut {} to {}: {consistency}", cut.begin, cut.end));
        if let Some(position) = &cut.position {
            lines.push(format!("  position {position}"));
        }
    }
    for artifact in &source.artifacts {
        let artifact = Artifact::from(artifact);
        let entries = artifact.entries.map(|n| format!(", {}", count(n, "entry", "entries")));
        lines.push(format!(
            "  artifact {}: {}{}, {}",
            artifact.name,
            size(artifact.bytes),
            entries.unwrap_or_default(),
            artifact.media_type
        ));
    }
    let digests = source.artifacts.iter().filter_map(|a| Some((&a.meta.name, a.sha256.as_ref()?)));
    lines.extend(digests.map(|(name, sha256)| format!("  sha256 {name} = {sha256}")));
    lines.push(format!(
        "  read {}, {} new, {} stored",
        size(source.stats.bytes_read),
        size(source.stats.bytes_new),
        size(source.stats.bytes_stored)
    ));
    lines.extend(source.facts.0.iter().map(|(name, value)| fact(name, value)));
    for problem in &source.problems.listed {
        lines.push(format!("  problem {}: {} [{}]", problem.place, problem.text, problem.reason));
    }
    let unlisted = source.problems.count.saturating_sub(source.problems.listed.len() as u64);
    if unlisted > 0 {
        lines.push(format!("  and {}", count(unlisted, "more problem", "more problems")));
    }
}

/// A fact, for people.
pub(crate) fn fact(name: &str, fact: &Fact) -> String {
    let standing = match fact.standing {
        Standing::Pinned => "",
        Standing::Observed => " (observed)",
        Standing::Unknown => " (unknown)",
    };
    format!("  fact {name} = {}{standing}", fact.value)
}
