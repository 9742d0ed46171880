//! What every function of the suite does: make systems, capture, pass bodies on, compare.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::StreamExt as _;
use snapkit_core::artifact::{ArtifactMeta, Body, Shape};
use snapkit_core::context::Context;
use snapkit_core::error::Result;
use snapkit_core::facts::Standing;
use snapkit_core::manifest::{ArtifactRecord, ChunkList, ContentRef, SourceRecord};
use snapkit_core::source::{Capture, Cut, Restore, RestoreReport, RestoreRequest, Source};

use super::damage::{Damage, damage};
use super::watch::{Broken, Carried, read, watch};
use super::{Harness, State};
use crate::verdict::{hold, must};

/// A populated system with its source, and an empty one to restore into.
pub(super) struct Stage<'a, H: Harness> {
    pub(super) cx: &'a Context,
    pub(super) harness: &'a H,
    pub(super) origin: H::System,
    pub(super) target: H::System,
    pub(super) source: Arc<dyn Source>,
}

/// A whole capture, with its bodies read.
pub(super) struct Taken {
    pub(super) cut: Cut,
    pub(super) record: SourceRecord,
    pub(super) carried: BTreeMap<String, Carried>,
}

impl Taken {
    pub(super) fn metas(&self) -> impl Iterator<Item = &ArtifactMeta> {
        self.record.artifacts.iter().map(|a| &a.meta)
    }
}

impl<'a, H: Harness> Stage<'a, H> {
    pub(super) async fn new(cx: &'a Context, harness: &'a H) -> Self {
        let origin = must("the harness makes a populated system", harness.populated(cx).await);
        let target = must("the harness makes an empty system", harness.empty(cx).await);
        let source = harness.source(&origin);
        Self { cx, harness, origin, target, source }
    }

    pub(super) async fn state(&self, system: &H::System) -> State {
        must("the harness looks at a system", self.harness.state(self.cx, system).await)
    }

    pub(super) async fn same(&self, sentence: &str, before: &State, system: &H::System) {
        let now = self.state(system).await;
        let names: BTreeSet<_> = before.keys().chain(now.keys()).collect();
        let differs = names.into_iter().filter(|n| before.get(*n) != now.get(*n));
        let differences: Vec<_> =
            differs.take(20).map(|n| (n, before.get(n), now.get(n))).collect();
        hold!(differences.is_empty(), "{sentence}; (name, was, is): {differences:#?}");
    }

    pub(super) async fn nothing_held(&self, when: &str) {
        for system in [&self.origin, &self.target] {
            let held =
                must("the harness looks at a system", self.harness.held(self.cx, system).await);
            hold!(held.is_empty(), "nothing is held {when}: {held:?}");
        }
    }

    pub(super) async fn capture(&self) -> Box<dyn Capture> {
        must("a capture begins", self.source.capture(self.cx, None).await)
    }

    /// A capture that is thawed, with all that it named.
    pub(super) async fn named(&self) -> (Box<dyn Capture>, Vec<ArtifactMeta>) {
        let mut capture = self.capture().await;
        let cut = must("a freeze succeeds", capture.freeze(self.cx).await);
        hold!(cut.begin <= cut.end, "a cut begins before it ends: {cut:?}");
        must("a thaw succeeds", capture.thaw(self.cx).await);
        let mut metas = Vec::new();
        while let Some(meta) = must("an artifact is named", capture.next(self.cx).await) {
            metas.push(meta);
        }
        (capture, metas)
    }

    pub(super) async fn take(&self) -> Taken {
        let mut capture = self.capture().await;
        let cut = must("a freeze succeeds", capture.freeze(self.cx).await);
        must("a thaw succeeds", capture.thaw(self.cx).await);
        let (mut artifacts, mut carried) = (Vec::new(), BTreeMap::new());
        while let Some(meta) = must("an artifact is named", capture.next(self.cx).await) {
            let body = self.open(&*capture, &meta).await;
            let broken = Broken::default();
            let what = must(
                "a body is read to its end",
                read(self.cx, &meta.name, watch(body, &broken)).await,
            );
            broken.assert_none(meta.name.as_str());
            let content = content_ref(meta.shape, &what);
            carried.insert(meta.name.to_string(), what);
            artifacts.push(ArtifactRecord::new(meta, content));
        }
        let report = must("a finish succeeds", capture.finish(self.cx).await);
        hold!(report.problems.is_empty(), "nothing is wrong with the system: {report:?}");
        let mut facts = report.facts;
        hold!(
            artifacts.iter().all(|a| a.meta.shape == Shape::Tree)
                || facts.0.values().any(|f| f.standing == Standing::Pinned),
            "facts about what was captured are pinned: {facts:?}"
        );
        // As the engine does: it knows what of a tree was stored.
        carried.values().for_each(|what: &Carried| facts.0.extend(what.facts.0.clone()));
        let record = SourceRecord {
            cut: Some(cut.clone()),
            artifacts,
            facts,
            ..SourceRecord::new(self.source.info())
        };
        Taken { cut, record, carried }
    }

    pub(super) async fn open(&self, capture: &dyn Capture, meta: &ArtifactMeta) -> Body {
        let body = must("an artifact opens", capture.open(self.cx, &meta.name).await);
        hold!(body.shape() == meta.shape, "{} has the shape that was announced", meta.name);
        body
    }

    pub(super) async fn restore(&self, target: &H::System, taken: &Taken) -> Box<dyn Restore> {
        let (restorer, target) = self.harness.restorer(&self.origin, target);
        let request = RestoreRequest::new(target, taken.record.clone());
        must("a restore into an empty target begins", restorer.restore(self.cx, &request).await)
    }

    pub(super) async fn restore_into(&self, target: &H::System, taken: &Taken) -> RestoreReport {
        let mut capture = self.capture().await;
        must("a freeze succeeds", capture.freeze(self.cx).await);
        must("a thaw succeeds", capture.thaw(self.cx).await);
        self.pass(capture, target, taken).await
    }

    /// Pass all bodies of a capture straight into a restore, and end both.
    pub(super) async fn pass(
        &self,
        mut capture: Box<dyn Capture>,
        target: &H::System,
        taken: &Taken,
    ) -> RestoreReport {
        let mut restore = self.restore(target, taken).await;
        while let Some(meta) = must("an artifact is named", capture.next(self.cx).await) {
            let broken = Broken::default();
            let body = watch(self.open(&*capture, &meta).await, &broken);
            must("a put succeeds", restore.put(self.cx, &meta, body).await);
            broken.assert_none(meta.name.as_str());
        }
        must("a finish succeeds", capture.finish(self.cx).await);
        must("a restore ends", restore.finish(self.cx).await)
    }

    /// Put everything up to a damaged artifact; the result is that of its put.
    pub(super) async fn put_damaged(
        &self,
        target: &H::System,
        taken: &Taken,
        damaged: &ArtifactMeta,
        at: Damage,
    ) -> (Box<dyn Capture>, Box<dyn Restore>, Result<()>) {
        let (capture, metas) = self.named().await;
        let mut restore = self.restore(target, taken).await;
        let mut result = Ok(());
        for meta in metas {
            let body = self.open(&*capture, &meta).await;
            if meta.name == damaged.name {
                result = restore.put(self.cx, &meta, damage(body, at)).await;
                break;
            }
            must("a put succeeds", restore.put(self.cx, &meta, body).await);
        }
        (capture, restore, result)
    }
}

fn content_ref(shape: Shape, carried: &Carried) -> ContentRef {
    let list = |size| ChunkList { size, depth: 0, chunks: Vec::new() };
    match shape {
        Shape::Tree => ContentRef::Tree {
            entries: list(0),
            count: carried.items,
            files: carried.files,
            bytes: carried.bytes,
        },
        _ => ContentRef::Bytes { content: list(carried.bytes) },
    }
}

/// Read the first piece, batch or record, and give the rest back.
pub(super) async fn begin_to_read(cx: &Context, body: Body) -> Body {
    match body {
        Body::Bytes(mut stream) => {
            drop(stream.next().await);
            Body::Bytes(stream)
        }
        Body::Tree(mut tree) => {
            drop(tree.next_batch(cx).await);
            Body::Tree(tree)
        }
        Body::Records(mut records) => {
            drop(records.next_batch(cx).await);
            Body::Records(records)
        }
    }
}
