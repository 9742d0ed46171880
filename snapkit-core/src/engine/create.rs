//! The life of a create: prepare, cut, stream, make durable, commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;

use crate::context::Context;
use crate::engine::Repository;
use crate::engine::basis::{BasisStore, SourceBasis};
use crate::engine::cut::{CLEANUP_LIMIT, Cutting, Participant, guarded};
use crate::engine::dry::DrySink;
use crate::engine::find::check_text;
use crate::engine::hooks::{Attendance, Moment, Occasion, Operation};
use crate::engine::local::Seen;
use crate::engine::options::{CreateOptions, Stack};
use crate::engine::report::{CreateReport, seconds};
use crate::engine::store::StoreStats;
use crate::engine::stream::{Captured, Run};
use crate::engine::write::{Writer, WriterSetup};
use crate::error::{Error, IoContext as _, Reason, Result};
use crate::id::{PackId, SnapshotId};
use crate::manifest::{
    CaptureStats, CaptureVerdict, ContentRef, End, LineState, Manifest, Outcome, Session, Snapshot,
};
use crate::pack::pack_key;
use crate::progress::Phase;

/// How often a session shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(600);

/// How long a run that was cancelled may take to say that it ended: somebody is waiting.
const HURRIED: Duration = Duration::from_millis(1500);

/// Packs that are named one by one.
const PACKS_SAID: usize = 10;

/// A session that was announced and has not ended. If it is dropped, it is ended all the same. Best
/// effort: a session without an end is fenced by the next collection.
struct OpenSession {
    cx: Context,
    manifest: Arc<dyn Manifest>,
    id: SnapshotId,
    open: bool,
}

impl OpenSession {
    /// End it without a snapshot. `Lost` if it had ended before.
    async fn abort(&mut self, why: &Error) -> Result<Outcome> {
        if !self.open {
            return Ok(Outcome::Won);
        }
        let limit = if why.is_cancelled() { HURRIED } else { CLEANUP_LIMIT };
        let cx = self.cx.for_cleanup(limit);
        let ended = self.manifest.end(&cx, &self.id, End::Abort(why.reason().code())).await;
        self.open = false;
        if let Err(e) = &ended {
            tracing::warn!(error = %e.chain(), session = %self.id, "the session could not be ended");
        }
        ended
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        if self.open {
            let (cx, manifest, id) =
                (self.cx.for_cleanup(CLEANUP_LIMIT), Arc::clone(&self.manifest), self.id.clone());
            self.cx.spawn_detached(async move {
                drop(manifest.end(&cx, &id, End::Abort(Reason::Cancelled.code())).await);
            });
        }
    }
}

/// What a session has brought.
struct Created {
    snapshot: Snapshot,
    warnings: Vec<String>,
    hooks_failed: Vec<Error>,
}

impl Repository {
    /// Capture a stack and commit the snapshot.
    pub async fn create(
        &self,
        cx: &Context,
        stack: &Stack,
        options: &CreateOptions,
    ) -> Result<CreateReport> {
        if stack.sources.is_empty() {
            return Err(Error::invalid("there is nothing to capture: the set has no sources"));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) =
            stack.sources.iter().map(|s| &s.source.info().name).find(|n| !names.insert(*n))
        {
            // They would overwrite each other when they are put back.
            return Err(Error::invalid(format!("two sources have the name {twice}")));
        }
        let named = [&stack.name, &stack.host, &stack.set].into_iter().chain(&options.name);
        let tags = options.tags.iter().flat_map(|(key, value)| [key, value]);
        let sources = names.iter().map(|name| name.as_str().len());
        check_text(named.chain(tags).map(String::len).chain(sources).sum())?;
        cx.progress().phase(Phase::Prepare);
        let begun = cx.monotonic();
        let started = cx.now();
        let session = Session {
            id: SnapshotId::new(started, cx.random()?)?,
            started,
            host: stack.host.clone(),
        };
        let mut open = OpenSession {
            cx: cx.clone(),
            manifest: Arc::clone(&self.manifest),
            id: session.id.clone(),
            open: !options.dry_run,
        };
        let occasion = Occasion::of(Operation::Create, &session.id, &stack.name, &stack.set);
        let hooks = stack.hooks.clone().filter(|_| !options.dry_run);
        let mut attendance = Attendance::new(cx, hooks, occasion);
        // A panic is an error here, so that the session ends on every path.
        let work = self.run_session(cx, &session, &mut open, &mut attendance, stack, options);
        let result = guarded(work).await;
        if let Err(e) = &result {
            // It was told what there is to tell.
            drop(open.abort(e).await);
        }
        open.open = false;
        let mut created = match result {
            Ok(created) => created,
            Err(e) => {
                for hook in attendance.end(Some(&e)).await {
                    cx.progress().warn(&hook.chain());
                }
                return Err(e);
            }
        };
        created.hooks_failed.extend(attendance.end(None).await);
        Ok(CreateReport {
            snapshot: created.snapshot,
            seconds: seconds(cx.monotonic().saturating_sub(begun)),
            warnings: created.warnings,
            hooks_failed: created.hooks_failed,
            dry_run: options.dry_run,
        })
    }

    async fn run_session(
        &self,
        cx: &Context,
        session: &Session,
        open: &mut OpenSession,
        attendance: &mut Attendance,
        stack: &Stack,
        options: &CreateOptions,
    ) -> Result<Created> {
        let mut heartbeat = None;
        if !options.dry_run {
            // The session is announced first, then tombstones and index are read: so a collector either
            // sees the session or is seen by it.
            if let Err(e) = self.manifest.begin(cx, session).await {
                // A session of this id that is somebody else's is theirs to end.
                open.open = e.reason() != Reason::AlreadyExists;
                return Err(e);
            }
            heartbeat = Some(self.start_heartbeat(cx, &session.id));
        }
        let mut warnings = self.warnings.clone();
        let (mut index, loaded) = self.load_index(cx).await?;
        for (key, e) in loaded.damaged {
            warnings
                .push(format!("index segment {key} is damaged and was left out: {}", e.chain()));
        }
        let (adopted, damaged) = index.adopt(cx, &self.sink).await?;
        for (key, e) in damaged {
            warnings.push(format!("pack {key} belongs to no index and is damaged: {}", e.chain()));
        }
        let (listed, lost) = (index.packs(), index.lost_packs());
        let mut damaged = self.local.damaged_packs(cx).await?;
        damaged.retain(|id| listed.contains_key(id) && !lost.contains(id));
        damaged.iter().for_each(|id| index.distrust(*id));
        warn_of(&mut warnings, damaged, "was found damaged by a verify")?;
        warn_of(&mut warnings, lost, "is gone or cut short")?;
        let store = BasisStore::new(&self.basis, &stack.name, &stack.host);
        let (bases, previous) = self.bases(cx, &store, stack, &mut warnings).await?;
        let records: Vec<_> = bases.iter().map(|b| b.as_ref().map(|b| b.record.clone())).collect();

        let mut cutting = Cutting::prepare(cx, stack, &records).await?;
        cx.progress().phase(Phase::Freeze);
        if let Err(e) = attendance.before(Moment::BeforeFreeze).await {
            cutting.abort().await;
            return Err(e);
        }
        let taken = cutting.take(stack.gate.as_ref(), stack.window).await;
        let positions = taken.iter().flat_map(|cutting| &cutting.participants);
        attendance.occasion.positions.extend(positions.filter_map(Participant::position));
        // What failed here must be known, and is no reason to throw the snapshot away.
        let hooks_failed = Vec::from_iter(attendance.after_thaw().await.err());
        let mut cutting = taken?;

        cx.progress().phase(Phase::Stream);
        let sink = Arc::clone(&self.sink);
        let mut writer = Writer::new(
            cx,
            WriterSetup {
                sink: if options.dry_run { Arc::new(DrySink(sink)) } else { sink },
                keys: self.credential.writer.clone(),
                chunk_key: self.chunk_key.clone(),
                index: Arc::new(index),
                level: options.level,
                verify_compression: options.verify_compression,
                budget: self.options.memory / 4,
            },
        )?;
        // What a run of which nothing is kept would leave for the next goes away with it.
        let scratch = if options.dry_run { Some(scratch_dir(cx).await?) } else { None };
        let kept =
            scratch.as_ref().map(|dir| BasisStore::new(dir.path(), &stack.name, &stack.host));
        let mut run = Run {
            cx,
            store: kept.as_ref().unwrap_or(&store),
            read_all: options.read_all,
            level: options.level,
            sha256: options.sha256,
            stats: StoreStats::default(),
            sources: Vec::new(),
        };
        let streamed = run.sources(&mut writer, &mut cutting.participants, bases).await;
        // Nothing is held when this returns, whatever it returns.
        cutting.abort().await;
        streamed?;

        cx.progress().phase(Phase::Index);
        // Packs taken over from an interrupted run are listed with this run's.
        writer.list_adopted(adopted.clone()).await?;
        let written = writer.finish().await?;

        cx.progress().phase(Phase::Commit);
        let Run { stats, mut sources, .. } = run;
        sources.iter_mut().for_each(Captured::settle);
        let snapshot = Snapshot {
            id: session.id.clone(),
            previous,
            stack: stack.name.clone(),
            host: stack.host.clone(),
            set: stack.set.clone(),
            name: options.name.clone(),
            tags: options.tags.clone(),
            started: session.started,
            finished: cx.now(),
            cut_micros: u64::try_from(width(&sources).as_micros()).unwrap_or(u64::MAX),
            verdict: verdict(&sources),
            stats: CaptureStats {
                entries: stats.entries,
                files_read: stats.files_read,
                files_unchanged: stats.files_unchanged,
                bytes: sources.iter().map(|s| s.record.bytes()).sum(),
                bytes_read: stats.bytes_read,
                chunks_new: written.chunks_new,
                bytes_new: written.bytes_new,
                bytes_stored: written.bytes_stored,
                packs_adopted: adopted.len() as u64,
            },
            sources: sources.iter().map(|s| s.record.clone()).collect(),
            program: options.program.clone(),
        };
        attendance.occasion.verdict = Some(snapshot.verdict.as_str());
        if options.dry_run {
            return Ok(Created { snapshot, warnings, hooks_failed });
        }
        let commit = End::Commit(&snapshot);
        let outcome = match self.manifest.end(cx, &session.id, commit).await {
            Ok(outcome) => outcome,
            // Nobody answered whether there is a snapshot now. After an abort there is none and never
            // will be, unless there was one before.
            Err(e) => match open.abort(&e).await {
                Ok(Outcome::Lost) => {
                    let cx = cx.for_cleanup(HURRIED);
                    self.manifest.end(&cx, &session.id, commit).await.map_err(|_| e)?
                }
                Ok(Outcome::Won) | Err(_) => return Err(e),
            },
        };
        open.open = false;
        drop(heartbeat);
        if outcome == Outcome::Lost {
            return Err(Error::new(Reason::SessionLost, "the session was ended by somebody else")
                .with("session", &session.id));
        }
        self.keep(cx, &store, &snapshot, sources, &mut warnings).await;
        Ok(Created { snapshot, warnings, hooks_failed })
    }

    fn start_heartbeat(&self, cx: &Context, session: &SnapshotId) -> crate::context::Task<()> {
        let (cx, manifest, session) = (cx.clone(), Arc::clone(&self.manifest), session.clone());
        cx.clone().spawn(async move {
            for beat in 1.. {
                cx.sleep(HEARTBEAT).await?;
                if let Err(e) = manifest.heartbeat(&cx, &session, beat).await {
                    tracing::warn!(error = %e.chain(), "a heartbeat was lost");
                }
            }
            Ok(())
        })
    }

    /// What is known of each source from before, and the newest snapshot seen. From local state; where
    /// that is missing, from the repository, if the credential can read it.
    async fn bases(
        &self,
        cx: &Context,
        store: &BasisStore,
        stack: &Stack,
        warnings: &mut Vec<String>,
    ) -> Result<(Vec<Option<SourceBasis>>, Option<SnapshotId>)> {
        let names: Vec<_> = stack.sources.iter().map(|s| s.source.info().name.clone()).collect();
        let load = |cx: Context, store: BasisStore, names: Vec<_>| async move {
            cx.blocking(move || Ok(names.iter().map(|n| store.load(n)).collect::<Vec<_>>())).await
        };
        let mut bases = load(cx.clone(), store.clone(), names.clone()).await?;
        let mut known: BTreeSet<_> = bases.iter().flatten().map(|b| b.snapshot.clone()).collect();
        let seen = self.local.seen(cx).await?;
        known.extend(seen.newest());
        for id in known.difference(&seen.accepted) {
            let line = self.manifest.get(cx, id).await;
            if line.is_err_and(|e| e.reason() == Reason::NoSnapshot) {
                warnings.push(format!(
                    "snapshot {id}, which this machine has seen, is gone: somebody may have put an old copy of the repository back"
                ));
            }
        }
        let mut previous = known.pop_last();
        if bases.iter().any(Option::is_none) || previous.is_none() {
            let mut newest: Vec<Option<Arc<Snapshot>>> = names.iter().map(|_| None).collect();
            let mut lines = self.manifest.list(cx).await?;
            while let Some((id, line)) = lines.next().await {
                let line = match line {
                    Ok(line) => line,
                    Err(e) if e.is_cancelled() => return Err(e),
                    Err(e) => {
                        warnings.push(format!("snapshot {id} cannot be read: {}", e.chain()));
                        continue;
                    }
                };
                if !matches!(line.state, LineState::Marker(_)) {
                    previous = previous.max(Some(id));
                }
                let LineState::Snapshot(s) = line.state else { continue };
                if s.stack != stack.name || s.host != stack.host {
                    continue;
                }
                let s = Arc::new(*s);
                for (name, newest) in names.iter().zip(&mut newest) {
                    let newer = newest.as_ref().is_none_or(|n| n.id < s.id);
                    if newer && s.source(name.as_str()).is_some() {
                        *newest = Some(Arc::clone(&s));
                    }
                }
            }
            let mut rebuilt = false;
            for ((basis, snapshot), name) in bases.iter().zip(newest).zip(&names) {
                if let (None, Some(snapshot)) = (basis, snapshot) {
                    // Only speed is lost without it.
                    match self.rebuild_basis(cx, store, &snapshot, name).await {
                        Ok(()) => rebuilt = true,
                        Err(e) if e.is_cancelled() => return Err(e),
                        Err(e) => warnings.push(format!(
                            "what was captured of {name} before could not be read, so all of it is: {}",
                            e.chain()
                        )),
                    }
                }
            }
            if rebuilt {
                bases = load(cx.clone(), store.clone(), names).await?;
            }
        }
        Ok((bases, previous))
    }

    async fn rebuild_basis(
        &self,
        cx: &Context,
        store: &BasisStore,
        snapshot: &Snapshot,
        name: &crate::artifact::SourceName,
    ) -> Result<()> {
        let Some(record) = snapshot.source(name.as_str()) else { return Ok(()) };
        let mut files = BTreeMap::new();
        for artifact in &record.artifacts {
            let file = match &artifact.content {
                ContentRef::Bytes { content } if artifact.meta.fingerprint.is_some() => {
                    let parts = self.parts(cx, content).await?;
                    if parts.is_empty() {
                        continue;
                    }
                    store.write_parts(cx, name, &parts)?
                }
                ContentRef::Tree { .. } => {
                    let mut writer = store.writer(cx, name);
                    let mut entries = self.entries(cx, artifact).await?;
                    while let Some(stored) = entries.next().await {
                        let stored = stored?;
                        let parts = self.parts(cx, &stored.content).await?;
                        writer.add(&stored, &parts);
                    }
                    writer.finish()?
                }
                _ => continue,
            };
            files.insert(artifact.meta.name.to_string(), file);
        }
        store.save(&snapshot.id, record, files)
    }

    /// Leave what the next run needs. The snapshot stands, whatever happens here.
    async fn keep(
        &self,
        cx: &Context,
        store: &BasisStore,
        snapshot: &Snapshot,
        sources: Vec<Captured>,
        warnings: &mut Vec<String>,
    ) {
        let (store, id) = (store.clone(), snapshot.id.clone());
        let cleanup = cx.for_cleanup(CLEANUP_LIMIT);
        let seen = Seen { snapshots: [snapshot.id.clone()].into(), ..Seen::default() };
        let saved = cleanup
            .blocking(move || {
                sources.into_iter().try_for_each(|s| {
                    store.save(&id, &s.record, s.files)?;
                    s.unsaved.map_or(Ok(()), Err)
                })
            })
            .await;
        let remembered = self.local.remember(&cleanup, seen).await;
        if let Err(e) = saved.and(remembered) {
            warnings.push(format!(
                "local state was not saved, so the next run reads more: {}",
                e.chain()
            ));
        }
    }
}

/// Say of packs that they are no good, of the first few by name.
fn warn_of(
    warnings: &mut Vec<String>,
    packs: impl IntoIterator<Item = PackId>,
    state: &str,
) -> Result<()> {
    let mut packs = packs.into_iter();
    for id in packs.by_ref().take(PACKS_SAID) {
        let key = pack_key(id)?;
        warnings.push(format!("pack {key} {state}: what this run needs of it is stored again"));
    }
    match packs.count() {
        0 => {}
        more => warnings.push(format!("the same is true of {more} more packs")),
    }
    Ok(())
}

async fn scratch_dir(cx: &Context) -> Result<tempfile::TempDir> {
    cx.blocking(|| tempfile::tempdir().doing(|| "cannot make a directory for a dry run".to_owned()))
        .await
}

/// From the first moment of a source to the last. Those that nothing pins count until they were read.
fn width(sources: &[Captured]) -> Duration {
    let cuts = sources.iter().filter_map(|s| s.record.cut.as_ref());
    let first = cuts.clone().map(|c| c.begin).min();
    let last = cuts.map(|c| c.end).max();
    first.zip(last).map_or(Duration::ZERO, |(a, b)| b.since(a))
}

fn verdict(sources: &[Captured]) -> CaptureVerdict {
    if sources.iter().all(|s| s.record.verdict == CaptureVerdict::Complete) {
        CaptureVerdict::Complete
    } else {
        CaptureVerdict::Partial
    }
}
