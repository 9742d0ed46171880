//! The life of a restore: examine all targets, put, make visible, read back, compare.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::artifact::{Body, Shape};
use crate::context::Context;
use crate::engine::Repository;
use crate::engine::cut::{CLEANUP_LIMIT, ending, guarded, orderly};
use crate::engine::hooks::{Attendance, Moment, Occasion, Operation, Probe};
use crate::engine::options::RestoreOptions;
use crate::engine::read::ChunkReader;
use crate::engine::records::StoredRecords;
use crate::engine::report::{Probed, RestoreSummary, SourceRestored, seconds};
use crate::engine::select::{Chosen, Skipped, StoredTreeReader};
use crate::error::{Error, Reason, Result};
use crate::facts::{Comparison, Facts, RestoreVerdict};
use crate::manifest::{ArtifactRecord, CaptureVerdict, ContentRef, Snapshot, SourceRecord};
use crate::own::create_private_dir;
use crate::progress::{Counter, Phase};
use crate::records::{StoredRecord, StoredValue};
use crate::registry::Registry;
use crate::source::{Restore, RestoreRequest, Target};

/// How many targets are filled at once: what one spends waiting or examining, the other reads.
const PUTS_AT_ONCE: usize = 2;

/// One source on its way back.
struct Plan<'a> {
    /// The stack of the snapshot.
    stack: &'a str,
    record: &'a SourceRecord,
    artifacts: Vec<&'a ArtifactRecord>,
    request: RestoreRequest,
    target: String,
    session: Option<Box<dyn Restore>>,
    skipped: Arc<Mutex<Skipped>>,
    /// Artifacts of which nothing could be had, and why.
    left_out: Vec<String>,
    /// Whether anything was put.
    any: bool,
    /// Bytes that were handed over.
    handed: Arc<AtomicU64>,
}

/// All sources on their way back. If this is dropped, what was not finished is aborted all the same.
struct Plans<'a> {
    cx: &'a Context,
    list: Vec<Plan<'a>>,
    /// Directories that were made for targets, the outer ones first.
    made: Vec<PathBuf>,
}

impl Plans<'_> {
    /// Leave the targets that are not finished as they were found.
    async fn abort(&mut self) {
        abort_all(self.cx, self.sessions()).await;
        let made = std::mem::take(&mut self.made);
        let cx = self.cx.for_cleanup(CLEANUP_LIMIT);
        // One that holds something stays.
        let removed = cx.blocking(move || {
            made.iter().rev().for_each(|dir| drop(std::fs::remove_dir(dir)));
            Ok(())
        });
        drop(removed.await);
    }

    /// The directories of targets, and those that keep old states.
    async fn make_directories(&mut self) -> Result<()> {
        for plan in &self.list {
            let target = match &plan.request.target {
                Target::Directory(dir) => Some(dir.clone()),
                _ => None,
            };
            for dir in target.into_iter().chain(plan.request.recovery.clone()) {
                let made = self.cx.blocking(move || {
                    if dir.exists() && !dir.is_dir() {
                        let what = "this is a file, and has to be a directory";
                        return Err(Error::invalid(what).with("path", dir.display()));
                    }
                    let missing = dir.ancestors().take_while(|d| !d.exists());
                    let missing: Vec<_> = missing.map(Path::to_owned).collect();
                    create_private_dir(&dir)?;
                    Ok(missing)
                });
                self.made.extend(made.await?.into_iter().rev());
            }
        }
        Ok(())
    }

    fn sessions(&mut self) -> Vec<(String, Box<dyn Restore>)> {
        let open = |p: &mut Plan<'_>| Some((p.record.name.to_string(), p.session.take()?));
        self.list.iter_mut().filter_map(open).collect()
    }
}

impl Drop for Plans<'_> {
    fn drop(&mut self) {
        let sessions = self.sessions();
        if !sessions.is_empty() {
            let cx = self.cx.clone();
            self.cx.spawn_detached(async move { abort_all(&cx, sessions).await });
        }
    }
}

impl Repository {
    /// Put a snapshot, or a part of it, back. Sources are built through `registry` from what the
    /// snapshot says of them. All targets are examined, and everything is read, before the first is touched.
    /// If then one fails, those that are not finished are left as they were, and the summary tells of the
    /// others: see [`RestoreSummary::failed`].
    pub async fn restore(
        &self,
        cx: &Context,
        registry: &Registry,
        snapshot: &Snapshot,
        options: &RestoreOptions,
    ) -> Result<RestoreSummary> {
        let mut occasion =
            Occasion::of(Operation::Restore, &snapshot.id, &snapshot.stack, &snapshot.set);
        occasion.learn(snapshot.sources.iter());
        let hooks = options.hooks.clone().filter(|_| !options.dry_run);
        let mut attendance = Attendance::new(cx, hooks, occasion);
        let work = self.run_restore(cx, registry, snapshot, options, &mut attendance);
        // A panic is an error here, so that the hooks run on every path.
        match guarded(work).await {
            Ok(mut summary) => {
                attendance.occasion.verdict = Some(summary.verdict.as_str());
                let failed = attendance.end(summary.failed.as_ref()).await;
                summary.hooks_failed.extend(failed);
                Ok(summary)
            }
            Err(e) => {
                for hook in attendance.end(Some(&e)).await {
                    cx.progress().warn(&hook.chain());
                }
                Err(e)
            }
        }
    }

    async fn run_restore(
        &self,
        cx: &Context,
        registry: &Registry,
        snapshot: &Snapshot,
        options: &RestoreOptions,
        attendance: &mut Attendance,
    ) -> Result<RestoreSummary> {
        let begun = cx.monotonic();
        cx.progress().phase(Phase::Prepare);
        let chosen = Chosen::new(&options.selection)?;
        let reader = self.reader(cx).await?;
        let mut plans = Plans { cx, list: Vec::new(), made: Vec::new() };
        if let Some(name) =
            options.urls.keys().find(|name| snapshot.source(name.as_str()).is_none())
        {
            let what =
                format!("the snapshot has no source {name}, which was to go to another server");
            return Err(Error::new(Reason::NotFound, what));
        }
        for record in selected(snapshot, options)? {
            let plan = self.plan(snapshot, record, options)?;
            plans.list.push(plan);
        }
        attendance.before(Moment::BeforeRestore).await?;
        let done = async {
            if !options.dry_run {
                plans.make_directories().await?;
            }
            put_back(cx, registry, &reader, &mut plans.list, options, &chosen).await
        };
        let (sources, mut failed) = match done.await {
            Ok((sources, None)) => (sources, None),
            Ok((sources, failed)) => {
                plans.abort().await;
                (sources, failed)
            }
            Err(e) => {
                plans.abort().await;
                return Err(e);
            }
        };
        let begin = if failed.is_some() { RestoreVerdict::Differs } else { RestoreVerdict::Match };
        let mut verdict = sources.iter().fold(begin, |v, s| v.worst(s.verdict));
        let mut hooks_failed = Vec::new();
        let mut probes = Vec::new();
        // The state is compared before anything that is started now may change it.
        if failed.is_none() && !options.dry_run {
            attendance.occasion.verdict = Some(verdict.as_str());
            hooks_failed.extend(attendance.after(Moment::AfterRestore).await.err());
            probes = examine(cx, &options.probes).await;
            // What was cut short says nothing, and what was restored must be told all the same.
            failed = cx.check().err();
            if probes.iter().any(|probe| probe.failure.is_some()) {
                verdict = RestoreVerdict::Differs;
            }
        }
        Ok(RestoreSummary {
            snapshot: snapshot.id.clone(),
            captured: snapshot.verdict,
            damaged: sources.iter().any(|s| !s.damaged.is_empty()),
            sources,
            verdict,
            failed,
            probes,
            hooks_failed,
            dry_run: options.dry_run,
            seconds: seconds(cx.monotonic().saturating_sub(begun)),
        })
    }

    fn plan<'a>(
        &self,
        snapshot: &'a Snapshot,
        record: &'a SourceRecord,
        options: &RestoreOptions,
    ) -> Result<Plan<'a>> {
        let wanted = options.selection.artifact.as_ref();
        let artifacts: Vec<_> =
            record.artifacts.iter().filter(|a| wanted.is_none_or(|w| a.meta.name == *w)).collect();
        if let (Some(wanted), true) = (wanted, artifacts.is_empty()) {
            return Err(Error::new(
                Reason::NotFound,
                format!("source {} has no artifact {wanted}", record.name),
            ));
        }
        let (target, place) = match options.target(&record.name) {
            Target::Directory(dir) => {
                let dir = absolute(&dir)?;
                let place = dir.display().to_string();
                (Target::Directory(dir), place)
            }
            Target::Url(url) => {
                let place = without_login(&url);
                (Target::Url(url), place)
            }
            Target::Original => (Target::Original, "its original place".to_owned()),
        };
        let mut request = RestoreRequest::new(target, record.clone());
        request.overwrite = options.overwrite;
        request.allow_damage = options.allow_damage;
        request.trusted = options.trusted;
        request.partial = options.selection.is_partial();
        request.read_back = options.read_back;
        if options.overwrite {
            request.recovery = Some(recovery_dir(&options.recovery, snapshot, record)?);
        }
        Ok(Plan {
            stack: &snapshot.stack,
            record,
            artifacts,
            request,
            target: place,
            session: None,
            skipped: Arc::default(),
            left_out: Vec::new(),
            any: false,
            handed: Arc::default(),
        })
    }
}

/// A URL as it may be told.
fn without_login(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://{place}"),
        _ => url.to_owned(),
    }
}

/// What the probes say, all at once.
async fn examine(cx: &Context, probes: &[Arc<dyn Probe>]) -> Vec<Probed> {
    let asked = probes.iter().map(|probe| async move {
        let failure = guarded(cx.run(probe.probe(cx))).await.err();
        Probed { name: probe.name().to_owned(), failure: failure.map(|e| e.chain()) }
    });
    join_all(asked).await
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|e| Error::io(format!("cannot make {} absolute", path.display()), e))
}

fn recovery_dir(root: &Path, snapshot: &Snapshot, record: &SourceRecord) -> Result<PathBuf> {
    Ok(absolute(root)?.join(format!("before-{}", snapshot.id.short())).join(record.name.as_str()))
}

fn selected<'a>(snapshot: &'a Snapshot, options: &RestoreOptions) -> Result<Vec<&'a SourceRecord>> {
    let records: Vec<_> = match &options.selection.source {
        None => snapshot.sources.iter().collect(),
        Some(name) => vec![snapshot.source(name.as_str()).ok_or_else(|| {
            let known: Vec<_> = snapshot.sources.iter().map(|s| s.name.as_str()).collect();
            Error::new(
                Reason::NotFound,
                format!("the snapshot has no source {name}; it has: {}", known.join(", ")),
            )
        })?],
    };
    let mut names = HashSet::new();
    for record in &records {
        let mut artifacts = HashSet::new();
        let is_twice = !names.insert(&record.name)
            || record.artifacts.iter().any(|a| !artifacts.insert(&a.meta.name));
        if is_twice {
            // Nobody captures such a one, and the second would be put over the first.
            let what = "the snapshot holds a source, or an artifact of one, twice";
            return Err(Error::corrupt(what).with("source", &record.name));
        }
    }
    let whole: Vec<_> =
        records.iter().copied().filter(|r| r.verdict != CaptureVerdict::Failed).collect();
    if whole.is_empty() && !records.is_empty() {
        return Err(Error::new(
            Reason::NotFound,
            "the capture of this source had failed: there is nothing to restore",
        ));
    }
    Ok(whole)
}

async fn prepare(cx: &Context, registry: &Registry, plan: &mut Plan<'_>) -> Result<()> {
    let source = registry.build_captured(plan.stack, plan.record)?;
    let session = guarded(cx.run(source.restore(cx, &plan.request))).await?;
    plan.session = Some(session);
    Ok(())
}

async fn abort_all(cx: &Context, sessions: Vec<(String, Box<dyn Restore>)>) {
    let cx = &cx.for_cleanup(CLEANUP_LIMIT);
    join_all(sessions.into_iter().map(|(name, session)| async move {
        if let Err(e) = ending(cx, session.abort(cx)).await {
            tracing::warn!(error = %e.chain(), source = %name, "a target could not be put back");
            cx.progress()
                .warn(&format!("{name}: the target could not be left as it was: {}", e.chain()));
        }
    }))
    .await;
}

/// Examine all targets, then fill them, several at once, then make what was put visible: whatever is
/// wrong with what is stored is known before the first target changes.
async fn put_back(
    cx: &Context,
    registry: &Registry,
    reader: &Arc<ChunkReader>,
    plans: &mut [Plan<'_>],
    options: &RestoreOptions,
    chosen: &Chosen,
) -> Result<(Vec<SourceRestored>, Option<Error>)> {
    if options.dry_run {
        return Ok((plans.iter().map(planned).collect(), None));
    }
    for plan in &mut *plans {
        prepare(cx, registry, plan).await.map_err(|e| e.with("source", &plan.record.name))?;
    }
    cx.progress().phase(Phase::Restore);
    let puts = plans.iter_mut().map(|plan| async move {
        let name = plan.record.name.clone();
        put(cx, reader, plan, options, chosen).await.map_err(|e| e.with("source", name))
    });
    stream::iter(puts).buffer_unordered(PUTS_AT_ONCE).try_collect::<()>().await?;
    // What lies in a restored tree must not be set aside with the tree that was there before. To go back,
    // the last is undone first.
    let is_tree = |p: &&mut Plan<'_>| p.artifacts.iter().any(|a| a.meta.shape == Shape::Tree);
    let (trees, others): (Vec<_>, Vec<_>) = plans.iter_mut().partition(is_tree);
    let mut sources = Vec::new();
    for plan in trees.into_iter().chain(others) {
        match finish(cx, plan, options).await {
            Ok(restored) => sources.push(restored),
            Err(e) => {
                let e = e.with("source", &plan.record.name);
                // What was changed already must be told, with the way back.
                return if sources.is_empty() { Err(e) } else { Ok((sources, Some(e))) };
            }
        }
    }
    Ok((sources, None))
}

fn unprepared() -> Error {
    Error::internal("a source was not prepared")
}

/// Hand all artifacts of a source over.
async fn put(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    plan: &mut Plan<'_>,
    options: &RestoreOptions,
    chosen: &Chosen,
) -> Result<()> {
    for artifact in &plan.artifacts {
        cx.progress().expect_bytes(artifact.content.bytes());
        let handed = Arc::clone(&plan.handed);
        let body = match &artifact.content {
            ContentRef::Bytes { content } => {
                // A damaged stream cannot be put in part: know before the target is touched.
                if options.allow_damage
                    && let Err(e) = probe(cx, reader, content).await
                {
                    if !e.is_damage() {
                        return Err(e.with("artifact", &artifact.meta.name));
                    }
                    plan.left_out.push(format!("{}: {}", artifact.meta.name, e.chain()));
                    continue;
                }
                let progress = cx.clone();
                let stream = reader.bytes(cx, content).inspect(move |piece| {
                    if let Ok(piece) = piece {
                        progress.progress().add(Counter::Bytes, piece.len() as u64);
                        handed.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    }
                });
                Ok(Body::Bytes(Box::pin(stream)))
            }
            ContentRef::Tree { entries, .. } => {
                let skipped = options.allow_damage.then(|| Arc::clone(&plan.skipped));
                StoredTreeReader::chosen(reader, cx, entries, chosen, skipped, handed)
                    .await
                    .map(|tree| Body::Tree(Box::new(tree)))
            }
            ContentRef::Records { records, axes, count, .. } => {
                let open = || StoredRecords::new(reader, cx, records, axes, *count);
                // What lacks some of its records is no sequence any more, and a target cannot give back a part.
                if options.allow_damage
                    && let Err(e) = probe_records(cx, reader, open()).await
                {
                    if !e.is_damage() {
                        return Err(e.with("artifact", &artifact.meta.name));
                    }
                    plan.left_out.push(format!("{}: {}", artifact.meta.name, e.chain()));
                    continue;
                }
                let counted = move |batch: &[StoredRecord], progress: &Context| {
                    let bytes = batch.iter().map(|record| record.value.len()).sum();
                    progress.progress().add(Counter::Bytes, bytes);
                    handed.fetch_add(bytes, Ordering::Relaxed);
                };
                open().map(|records| Body::Records(Box::new(records.telling(counted))))
            }
        };
        let session = plan.session.as_mut().ok_or_else(unprepared)?;
        let put = match body {
            Ok(body) => guarded(cx.run(session.put(cx, &artifact.meta, body))).await,
            Err(e) if options.allow_damage && e.is_damage() => {
                plan.left_out.push(format!("{}: {}", artifact.meta.name, e.chain()));
                continue;
            }
            Err(e) => Err(e),
        };
        put.map_err(|e| e.with("artifact", &artifact.meta.name))?;
        plan.any = true;
    }
    if !plan.any && !plan.left_out.is_empty() {
        // Nothing of this source can be had: its target stays as it was, and the others are served.
        let session = plan.session.take().map(|s| (plan.record.name.to_string(), s));
        abort_all(cx, session.into_iter().collect()).await;
    }
    Ok(())
}

/// Make visible what was put, and compare.
async fn finish(
    cx: &Context,
    plan: &mut Plan<'_>,
    options: &RestoreOptions,
) -> Result<SourceRestored> {
    let mut left_out = std::mem::take(&mut plan.left_out);
    if !plan.any && !left_out.is_empty() {
        let verdict = RestoreVerdict::Differs;
        return Ok(SourceRestored { verdict, damaged: left_out, bytes: 0, ..planned(plan) });
    }
    // While its end has not begun, an abort is still possible.
    cx.check()?;
    let session = plan.session.take().ok_or_else(unprepared)?;
    let report = orderly(cx, session.finish(cx)).await?;
    {
        let skipped = plan.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        left_out.extend(skipped.places.iter().cloned());
        if skipped.count > skipped.places.len() as u64 {
            left_out.push(format!("… {} in all", skipped.count));
        }
    }
    let mut comparison = if options.selection.is_partial() || !options.read_back {
        Facts::new().compare(&report.facts)
    } else {
        let mut captured = plan.record.facts.clone();
        captured.0.retain(|name, _| !report.beside.contains(name));
        captured.compare(&report.facts)
    };
    comparison.differences.extend(report.differences);
    if !comparison.differences.is_empty() || !left_out.is_empty() {
        comparison.verdict = RestoreVerdict::Differs;
    }
    Ok(SourceRestored {
        verdict: comparison.verdict,
        comparison,
        problem_count: report.problem_count.max(report.problems.len() as u64),
        problems: report.problems,
        notes: report.notes,
        damaged: left_out,
        undo: report.undo,
        bytes: plan.handed.load(Ordering::Relaxed),
        ..planned(plan)
    })
}

/// Read all records, and all values that are content of their own.
async fn probe_records(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    records: Result<StoredRecords>,
) -> Result<()> {
    let mut records = records?;
    while let Some((_, batch)) = cx.run(records.next_stored()).await? {
        for record in batch {
            if let StoredValue::Content(list) = &record.value {
                probe(cx, reader, list).await?;
            }
        }
    }
    Ok(())
}

async fn probe(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    content: &crate::manifest::ChunkList,
) -> Result<()> {
    let mut bytes = reader.bytes(cx, content);
    while bytes.try_next().await?.is_some() {}
    Ok(())
}

/// What is to be restored, as it is before anything was.
fn planned(plan: &Plan<'_>) -> SourceRestored {
    let comparison = Comparison {
        verdict: RestoreVerdict::Unproven,
        proven: 0,
        differences: Vec::new(),
        unproven: Vec::new(),
    };
    SourceRestored {
        source: plan.record.name.to_string(),
        kind: plan.record.kind.clone(),
        target: plan.target.clone(),
        verdict: comparison.verdict,
        comparison,
        problems: Vec::new(),
        problem_count: 0,
        notes: Vec::new(),
        damaged: Vec::new(),
        undo: Vec::new(),
        bytes: plan.artifacts.iter().fold(0, |sum, a| sum.saturating_add(a.content.bytes())),
    }
}
