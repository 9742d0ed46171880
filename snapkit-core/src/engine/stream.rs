//! Streaming: artifact by artifact from the captures into the store.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt as _;

use crate::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, SourceName};
use crate::context::Context;
use crate::engine::basis::{BasisStore, FileRef, SourceBasis};
use crate::engine::cut::{CLEANUP_LIMIT, Participant, guarded};
use crate::engine::records::RecordStore;
use crate::engine::store::{StoreStats, StreamPlan, TreeStore, store_stream};
use crate::engine::write::{Account, Writer};
use crate::error::{Error, Result};
use crate::facts::{Facts, Standing};
use crate::frame::Effort;
use crate::manifest::{ArtifactRecord, CaptureVerdict, ChunkRef, ContentRef, SourceRecord};
use crate::progress::Counter;
use crate::source::Consistency;

/// A source that was streamed.
pub(crate) struct Captured {
    pub(crate) record: SourceRecord,
    /// Facts of its trees, as they were stored.
    pub(crate) tree_facts: Facts,
    pub(crate) files: BTreeMap<String, FileRef>,
    /// Why a file for the next run is not among them.
    pub(crate) unsaved: Option<Error>,
    account: Arc<Account>,
}

impl Captured {
    /// A file for the next run, which is slower without it.
    fn leave(&mut self, artifact: &ArtifactName, file: Result<FileRef>) {
        match file {
            Ok(file) => drop(self.files.insert(artifact.to_string(), file)),
            Err(e) => drop(self.unsaved.get_or_insert(e)),
        }
    }

    /// Take over what it has cost, once the writer has finished.
    pub(crate) fn settle(&mut self) {
        self.record.stats.bytes_new = self.account.bytes_new.load(Ordering::Relaxed);
        self.record.stats.bytes_stored = self.account.bytes_stored.load(Ordering::Relaxed);
    }
}

/// The streaming of all sources.
pub(crate) struct Run<'a> {
    pub(crate) cx: &'a Context,
    pub(crate) store: &'a BasisStore,
    pub(crate) read_all: bool,
    pub(crate) level: i32,
    pub(crate) sha256: bool,
    pub(crate) stats: StoreStats,
    pub(crate) sources: Vec<Captured>,
}

impl Run<'_> {
    pub(crate) async fn sources(
        &mut self,
        writer: &mut Writer,
        participants: &mut [Participant],
        bases: Vec<Option<SourceBasis>>,
    ) -> Result<()> {
        for (participant, basis) in participants.iter_mut().zip(bases) {
            self.source(writer, participant, basis.map(Arc::new)).await?;
        }
        Ok(())
    }

    async fn source(
        &mut self,
        writer: &mut Writer,
        participant: &mut Participant,
        basis: Option<Arc<SourceBasis>>,
    ) -> Result<()> {
        let info = participant.source.info().clone();
        let mut captured = Captured {
            record: SourceRecord { cut: participant.cut.clone(), ..SourceRecord::new(&info) },
            tree_facts: Facts::new(),
            files: BTreeMap::new(),
            unsaved: None,
            account: writer.open_account().await.map_err(|e| e.with("source", &info.name))?,
        };
        let read_before = self.stats.bytes_read;
        let result = match (participant.failure.take(), participant.capture.as_mut()) {
            (Some(e), _) => Err(Failure::Source(e)),
            (None, None) => Err(Failure::Source(Error::internal("a source has no capture"))),
            (None, Some(capture)) => {
                let work = self.artifacts(writer, &mut **capture, &mut captured, basis.as_ref());
                // A panic that was not caught nearer may have left the pipeline in any state.
                let result = AssertUnwindSafe(work).catch_unwind().await;
                result.unwrap_or_else(|p| Err(Failure::Repository(Error::panicked(&*p))))
            }
        };
        let result = match result {
            Ok(()) => match participant.finish(self.cx).await {
                Ok(report) => {
                    captured.record.facts = report.facts;
                    for (place, e) in report.problems {
                        self.cx.progress().warn(&format!("{}: {}", info.name, e.chain()));
                        captured.record.problems.add(place, &e);
                    }
                    Ok(())
                }
                Err(e) => Err(Failure::Source(e)),
            },
            Err(e) => Err(e),
        };
        match result {
            Ok(()) if captured.record.problems.count > 0 => {
                captured.record.verdict = CaptureVerdict::Partial;
            }
            Ok(()) => {}
            Err(Failure::Source(e)) if participant.may_fail && self.cx.check().is_ok() => {
                participant.abort(&self.cx.for_cleanup(CLEANUP_LIMIT)).await;
                self.cx.progress().warn(&format!("source {}: {}", info.name, e.chain()));
                captured.record.problems.add(info.name.as_str(), &e);
                captured.record.verdict = CaptureVerdict::Failed;
                captured.record.artifacts.clear();
                captured.record.facts = Facts::new();
                captured.tree_facts = Facts::new();
            }
            Err(Failure::Source(e) | Failure::Repository(e)) => {
                return Err(e.with("source", &info.name));
            }
        }
        // Nothing pins what a fuzzy source reads: its moment may be any until its last byte.
        if let Some(cut) = &mut captured.record.cut
            && cut.consistency == Consistency::Fuzzy
        {
            cut.end = cut.end.max(self.cx.now());
        }
        captured.record.stats.bytes_read = self.stats.bytes_read - read_before;
        let tree_facts = std::mem::take(&mut captured.tree_facts);
        captured.record.facts.0.extend(tree_facts.0);
        self.sources.push(captured);
        Ok(())
    }

    async fn artifacts(
        &mut self,
        writer: &mut Writer,
        capture: &mut dyn crate::source::Capture,
        captured: &mut Captured,
        basis: Option<&Arc<SourceBasis>>,
    ) -> Result<(), Failure> {
        let cx = self.cx;
        let mut names = std::collections::HashSet::new();
        while let Some(mut meta) =
            guarded(cx.run(capture.next(cx))).await.map_err(Failure::Source)?
        {
            if !names.insert(meta.name.clone()) {
                let e = Error::internal("a source named an artifact twice")
                    .with("artifact", &meta.name);
                return Err(Failure::Source(e));
            }
            if let Some(unchanged) =
                self.unchanged(writer, &meta, basis).await.map_err(Failure::Repository)?
            {
                let size = unchanged.record.content.bytes();
                cx.progress().add(Counter::BytesUnchanged, size);
                captured.record.artifacts.push(unchanged.record);
                captured.files.extend(unchanged.parts.map(|file| (meta.name.to_string(), file)));
                continue;
            }
            if let Some(size) = meta.size_hint {
                cx.progress().expect_bytes(size);
            }
            let body =
                guarded(cx.run(capture.open(cx, &meta.name))).await.map_err(Failure::Source)?;
            if body.shape() != meta.shape {
                // No target would take it back.
                let e = Error::internal("a source gave an artifact of another shape than it said")
                    .with("artifact", &meta.name);
                return Err(Failure::Source(e));
            }
            writer.set_effort(match meta.chunking {
                Chunking::Pages { .. } => Effort::of_pages(self.level),
                _ => Effort::Level(self.level),
            });
            let mut sha256 = None;
            let content = match body {
                Body::Bytes(stream) => {
                    let plan = StreamPlan {
                        chunking: meta.chunking,
                        size: meta.size_hint,
                        sha256: self.sha256,
                    };
                    let stored = store_stream(cx, writer, stream, plan, &mut self.stats)
                        .await
                        .map_err(Failure::Repository)?
                        .map_err(|e| Failure::Source(e.with("artifact", &meta.name)))?;
                    sha256 = stored.sha256;
                    if meta.fingerprint.is_some() && !stored.parts.is_empty() {
                        let file = self.keep_parts(&captured.record.name, stored.parts).await;
                        captured.leave(&meta.name, file);
                    }
                    ContentRef::Bytes { content: stored.content }
                }
                Body::Tree(tree) => {
                    let old =
                        basis.filter(|_| !self.read_all).and_then(|b| b.tree(meta.name.as_str()));
                    let new = self.store.writer(cx, &captured.record.name);
                    let store = TreeStore {
                        cx,
                        writer,
                        stats: &mut self.stats,
                        problems: &mut captured.record.problems,
                        chunking: meta.chunking,
                    };
                    let stored = store
                        .store(tree, old, new)
                        .await
                        .map_err(Failure::Repository)?
                        .map_err(|e| Failure::Source(e.with("artifact", &meta.name)))?;
                    stored.digest.write(
                        meta.name.as_str(),
                        Standing::Pinned,
                        &mut captured.tree_facts,
                    );
                    captured.leave(&meta.name, stored.basis);
                    stored.content
                }
                Body::Records(records) => {
                    let store = RecordStore { cx, writer, stats: &mut self.stats };
                    store
                        .store(records)
                        .await
                        .map_err(Failure::Repository)?
                        .map_err(|e| Failure::Source(e.with("artifact", &meta.name)))?
                }
            };
            meta.size_hint = None;
            captured.record.artifacts.push(ArtifactRecord { meta, content, sha256 });
        }
        Ok(())
    }

    /// An artifact whose fingerprint says that it is unchanged, if all that it consists of is still there.
    async fn unchanged(
        &self,
        writer: &Writer,
        meta: &ArtifactMeta,
        basis: Option<&Arc<SourceBasis>>,
    ) -> Result<Option<Unchanged>> {
        let Some(basis) = basis.filter(|_| !self.read_all && meta.fingerprint.is_some()) else {
            return Ok(None);
        };
        let old = basis.record.artifacts.iter().find(|a| a.meta.name == meta.name);
        let Some(ArtifactRecord { meta: was, content: ContentRef::Bytes { content }, sha256 }) =
            old
        else {
            return Ok(None);
        };
        // It is read again for a digest that was not taken.
        if was.fingerprint != meta.fingerprint || (self.sha256 && sha256.is_none()) {
            return Ok(None);
        }
        let parts = {
            let (basis, shared) = (Arc::clone(basis), Arc::clone(writer.shared()));
            let (name, content) = (meta.name.clone(), content.clone());
            let look_up = move || {
                for chunk in &content.chunks {
                    if !shared.is_known(&chunk.id, chunk.len)? {
                        return Ok(None);
                    }
                }
                if content.depth == 0 {
                    return Ok(Some(None));
                }
                let is_there = |part: &ChunkRef| shared.is_known(&part.id, part.len);
                Ok(basis.parts(name.as_str(), is_there)?.map(Some))
            };
            self.cx.blocking(look_up).await?
        };
        Ok(parts.map(|parts| {
            let meta = ArtifactMeta { size_hint: None, ..meta.clone() };
            let content = ContentRef::Bytes { content: content.clone() };
            Unchanged { record: ArtifactRecord { meta, content, sha256: sha256.clone() }, parts }
        }))
    }

    /// Leave the parts of a list for the next run.
    async fn keep_parts(&self, source: &SourceName, parts: Vec<ChunkRef>) -> Result<FileRef> {
        let (cx, store, source) = (self.cx.clone(), self.store.clone(), source.clone());
        self.cx.blocking(move || store.write_parts(&cx, &source, &parts)).await
    }
}

/// An artifact that is as it was.
struct Unchanged {
    record: ArtifactRecord,
    /// What the basis has of its list, if that has depth.
    parts: Option<FileRef>,
}

/// Whose fault it is: a source's failure may be allowed, the repository's may not.
enum Failure {
    Source(Error),
    Repository(Error),
}
