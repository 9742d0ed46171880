//! The suite for sources accepts the scripted source, and refuses sources that are wrong in one way.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future, stream};
use snapkit_core::Context;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, MAX_PIECE};
use snapkit_core::error::{Reason, Result};
use snapkit_core::facts::Facts;
use snapkit_core::manifest::SourceRecord;
use snapkit_core::source::{
    Capture, CaptureReport, Consistency, Cut, Findings, Restore, RestoreReport, RestoreRequest,
    Source, SourceInfo, Target,
};
use snapkit_testkit::double::{
    ScriptedArtifact, ScriptedContent, ScriptedFile, ScriptedSource, Stage, Trouble,
};
use snapkit_testkit::random::Seeded;
use snapkit_testkit::source::{self, Harness, State};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    LargePieces,
    ShowsItsSecret,
    HoldsOn,
    AbortFails,
    CheckCannotBeDone,
    EmptyIsNotEmpty,
    NamesOneTwice,
    ForgetsAnArtifact,
    OrderChanges,
    FreezesLate,
    FingerprintsNeverChange,
    StatesAWrongFact,
    StatesNoFacts,
    SwallowsDamage,
    AbortCommits,
    ReplacesWithoutAsking,
    CheckSeesNothing,
    RestoreChangesBytes,
}

struct Scripted(Defect);

const SECRET: &str = "hunter2";

#[async_trait]
impl Harness for Scripted {
    type System = Arc<ScriptedSource>;

    async fn populated(&self, _: &Context) -> Result<Self::System> {
        let mut random = Seeded::new(1);
        let shown = if self.0 == Defect::ShowsItsSecret { SECRET } else { "***" };
        let piece = if self.0 == Defect::LargePieces { MAX_PIECE + 1 } else { MAX_PIECE };
        let files = (0..100).map(|i| {
            let len = if i == 50 { 700_000 } else { random.index(3000) };
            ScriptedFile::file(&format!("d{}/f{i}", i % 7), random.bytes(len))
        });
        let tree = ScriptedArtifact::tree("files", files);
        let large = Seeded::new(2).bytes(5 << 20);
        let source = ScriptedSource::new("s")
            .settings(serde_json::json!({ "password": shown }))
            .with(ScriptedArtifact::bytes("large", large).fingerprinted().piece(piece))
            .with(ScriptedArtifact::bytes("small", "x").fingerprinted())
            .with(ScriptedArtifact::bytes("empty", ""))
            .with(tree);
        if self.0 == Defect::AbortFails {
            source.make_trouble(Stage::Abort, None, Trouble::Fail(Reason::Io));
        }
        if self.0 == Defect::CheckCannotBeDone {
            source.make_trouble(Stage::Check, None, Trouble::Fail(Reason::Io));
        }
        Ok(Arc::new(source))
    }

    async fn empty(&self, _: &Context) -> Result<Self::System> {
        let source = ScriptedSource::new("t");
        Ok(Arc::new(match self.0 {
            Defect::EmptyIsNotEmpty => source.with(ScriptedArtifact::bytes("old", "x")),
            _ => source,
        }))
    }

    async fn mutate(&self, _: &Context, system: &Self::System) -> Result<()> {
        system.set(ScriptedArtifact::bytes("small", "changed").fingerprinted());
        system.remove("empty");
        Ok(())
    }

    async fn state(&self, _: &Context, system: &Self::System) -> Result<State> {
        let mut state = BTreeMap::new();
        for (name, content) in system.contents(&Target::Original) {
            match content {
                ScriptedContent::Bytes(bytes) => {
                    drop(state.insert(name.to_string(), blake3::hash(&bytes).to_string()));
                }
                ScriptedContent::Tree(files) => state.extend(files.into_iter().map(|f| {
                    let text = format!("{:?} {:?}", f.entry.kind, blake3::hash(&f.content));
                    (format!("{name}:{}", f.entry.path), text)
                })),
                ScriptedContent::Records(_, records) => {
                    state.extend(records.into_iter().map(|record| {
                        let text = format!("{:?}", blake3::hash(&record.value));
                        (format!("{name}:{:?}", record.positions), text)
                    }));
                }
            }
        }
        Ok(state)
    }

    async fn held(&self, _: &Context, system: &Self::System) -> Result<Vec<String>> {
        if self.0 == Defect::HoldsOn && system.log().count("s", Stage::Freeze) > 0 {
            return Ok(vec!["a lock".to_owned()]);
        }
        system.log().assert_released();
        Ok(Vec::new())
    }

    fn source(&self, system: &Self::System) -> Arc<dyn Source> {
        let captures = AtomicUsize::new(0);
        Arc::new(Wrong { inner: Arc::clone(system), defect: self.0, captures })
    }

    fn restorer(&self, _: &Self::System, target: &Self::System) -> (Arc<dyn Source>, Target) {
        (self.source(target), Target::Original)
    }

    fn secrets(&self) -> Vec<String> {
        vec![SECRET.to_owned()]
    }
}

/// The scripted source, wrong in one way.
#[derive(Debug)]
struct Wrong {
    inner: Arc<ScriptedSource>,
    defect: Defect,
    captures: AtomicUsize,
}

#[async_trait]
impl Source for Wrong {
    fn info(&self) -> &SourceInfo {
        self.inner.info()
    }

    async fn capture(
        &self,
        cx: &Context,
        basis: Option<&SourceRecord>,
    ) -> Result<Box<dyn Capture>> {
        let inner = self.inner.capture(cx, basis).await?;
        let odd = self.captures.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        Ok(Box::new(WrongCapture { inner, defect: self.defect, odd, held: None, late: false }))
    }

    async fn restore(&self, cx: &Context, request: &RestoreRequest) -> Result<Box<dyn Restore>> {
        let mut request = request.clone();
        request.overwrite |= self.defect == Defect::ReplacesWithoutAsking;
        let inner = self.inner.restore(cx, &request).await?;
        Ok(Box::new(WrongRestore { inner, defect: self.defect }))
    }

    async fn facts(&self, cx: &Context) -> Result<Facts> {
        self.inner.facts(cx).await
    }

    async fn check(&self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<Findings> {
        if self.defect == Defect::CheckSeesNothing {
            return Ok(Findings::default());
        }
        self.inner.check(cx, meta, body).await
    }
}

struct WrongCapture {
    inner: Box<dyn Capture>,
    defect: Defect,
    odd: bool,
    /// To be named next, before the inner one is asked.
    held: Option<ArtifactMeta>,
    /// The inner one is not frozen yet.
    late: bool,
}

#[async_trait]
impl Capture for WrongCapture {
    async fn freeze(&mut self, cx: &Context) -> Result<Cut> {
        if self.defect != Defect::FreezesLate {
            return self.inner.freeze(cx).await;
        }
        self.late = true;
        let (begin, end) = (cx.now(), cx.now());
        Ok(Cut { begin, end, consistency: Consistency::Point, position: None })
    }

    async fn thaw(&mut self, cx: &Context) -> Result<()> {
        self.inner.thaw(cx).await
    }

    async fn next(&mut self, cx: &Context) -> Result<Option<ArtifactMeta>> {
        if std::mem::take(&mut self.late) {
            self.inner.freeze(cx).await?;
            self.inner.thaw(cx).await?;
        }
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let mut meta = self.inner.next(cx).await?;
        let name = meta.as_ref().map(|m| m.name.to_string()).unwrap_or_default();
        match (self.defect, name.as_str()) {
            (Defect::NamesOneTwice, "small") => self.held = meta.clone(),
            (Defect::ForgetsAnArtifact, "small") => return self.inner.next(cx).await,
            (Defect::OrderChanges, "large") if self.odd => {
                self.held = std::mem::replace(&mut meta, self.inner.next(cx).await?);
            }
            (Defect::FingerprintsNeverChange, "small") => {
                meta = meta.map(|m| m.fingerprint("always the same"));
            }
            _ => {}
        }
        Ok(meta)
    }

    async fn open(&self, cx: &Context, name: &ArtifactName) -> Result<Body> {
        self.inner.open(cx, name).await
    }

    async fn finish(self: Box<Self>, cx: &Context) -> Result<CaptureReport> {
        let mut report = self.inner.finish(cx).await?;
        match self.defect {
            Defect::StatesAWrongFact => report.facts.pin("small.bytes", 4711u64),
            Defect::StatesNoFacts => report.facts = Facts::new(),
            _ => {}
        }
        Ok(report)
    }

    async fn abort(self: Box<Self>, cx: &Context) -> Result<()> {
        self.inner.abort(cx).await
    }
}

struct WrongRestore {
    inner: Box<dyn Restore>,
    defect: Defect,
}

#[async_trait]
impl Restore for WrongRestore {
    async fn put(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()> {
        let body = match (self.defect, body) {
            (Defect::SwallowsDamage, Body::Bytes(stream)) => {
                Body::Bytes(stream.take_while(|item| future::ready(item.is_ok())).boxed())
            }
            (Defect::RestoreChangesBytes, Body::Bytes(stream)) if meta.name.as_str() == "small" => {
                drop(stream);
                Body::Bytes(stream::iter([Ok(Bytes::from_static(b"y"))]).boxed())
            }
            (_, body) => body,
        };
        self.inner.put(cx, meta, body).await
    }

    async fn finish(self: Box<Self>, cx: &Context) -> Result<RestoreReport> {
        self.inner.finish(cx).await
    }

    async fn abort(self: Box<Self>, cx: &Context) -> Result<()> {
        if self.defect == Defect::AbortCommits {
            return self.inner.finish(cx).await.map(drop);
        }
        self.inner.abort(cx).await
    }
}

async fn run(defect: Defect) -> std::thread::Result<()> {
    let cx = Context::system();
    AssertUnwindSafe(source::all(&cx, &Scripted(defect))).catch_unwind().await
}

#[tokio::test]
async fn the_scripted_source_passes() {
    assert!(run(Defect::None).await.is_ok());
}

#[tokio::test]
async fn every_defect_is_seen() {
    use Defect::*;
    for defect in [
        LargePieces,
        ShowsItsSecret,
        HoldsOn,
        AbortFails,
        CheckCannotBeDone,
        EmptyIsNotEmpty,
        NamesOneTwice,
        ForgetsAnArtifact,
        OrderChanges,
        FreezesLate,
        FingerprintsNeverChange,
        StatesAWrongFact,
        StatesNoFacts,
        SwallowsDamage,
        AbortCommits,
        ReplacesWithoutAsking,
        CheckSeesNothing,
        RestoreChangesBytes,
    ] {
        assert!(run(defect).await.is_err(), "{defect:?} passes the suite");
    }
}

#[tokio::test]
async fn scripted_trouble_comes_at_its_stage_and_the_log_shows_it() {
    let cx = Context::system();
    let source = Scripted(Defect::None).populated(&cx).await.unwrap();
    source.make_trouble(Stage::Freeze, None, Trouble::Fail(Reason::Busy));
    let mut capture = source.capture(&cx, None).await.unwrap();
    assert_eq!(capture.freeze(&cx).await.unwrap_err().reason(), Reason::Busy);
    let log = source.log().clone();
    let released = || std::panic::catch_unwind(AssertUnwindSafe(|| log.assert_released())).is_ok();
    assert!(!released(), "it was not thawed and not ended");
    capture.thaw(&cx).await.unwrap();
    assert!(!released(), "it was not ended");
    capture.abort(&cx).await.unwrap();
    assert!(released());
    assert_eq!(
        source.log().stages("s"),
        [Stage::Capture, Stage::Freeze, Stage::Thaw, Stage::Abort]
    );
    source.log().assert_before(("s", Stage::Freeze), ("s", Stage::Thaw));

    source.heal();
    drop(source.capture(&cx, None).await.unwrap());
    assert!(!released(), "it was dropped");

    source.make_trouble(Stage::Thaw, None, Trouble::Panic);
    let mut capture = source.capture(&cx, None).await.unwrap();
    capture.freeze(&cx).await.unwrap();
    assert!(AssertUnwindSafe(capture.thaw(&cx)).catch_unwind().await.is_err());

    source.make_trouble(Stage::Finish, None, Trouble::Hang);
    let short = cx.within(std::time::Duration::from_millis(20));
    assert_eq!(capture.finish(&short).await.unwrap_err().reason(), Reason::TimedOut);
}

#[tokio::test]
async fn scripted_restores_elsewhere_are_kept_apart() {
    let cx = Context::system();
    let source = Scripted(Defect::None).populated(&cx).await.unwrap();
    let mut capture = source.capture(&cx, None).await.unwrap();
    capture.freeze(&cx).await.unwrap();
    capture.thaw(&cx).await.unwrap();
    let record = snapkit_testkit::manifest::snapshot(1).sources.remove(0);
    let target = Target::Directory("/scratch".into());
    let request = RestoreRequest::new(target.clone(), record);
    let mut restore = source.restore(&cx, &request).await.unwrap();
    while let Some(meta) = capture.next(&cx).await.unwrap() {
        let body = capture.open(&cx, &meta.name).await.unwrap();
        restore.put(&cx, &meta, body).await.unwrap();
    }
    assert!(source.contents(&target).is_empty(), "invisible before the end");
    let pinned = capture.finish(&cx).await.unwrap();
    let report = restore.finish(&cx).await.unwrap();
    assert_eq!(source.contents(&target).len(), 4);
    assert_eq!(pinned.facts.compare(&report.facts).differences, []);
    assert_eq!(
        source.restore(&cx, &request).await.map(drop).unwrap_err().reason(),
        Reason::TargetNotEmpty
    );
}
