//! What the author of a source is told when it breaks its contract.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use insta::assert_snapshot;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape, SourceName};
use snapkit_core::context::{Context, Timestamp};
use snapkit_core::engine::{CreateOptions, Stack};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::facts::Facts;
use snapkit_core::manifest::SourceRecord;
use snapkit_core::record::MAX_POSITION;
use snapkit_core::source::{
    Capture, CaptureReport, Consistency, Cut, Findings, FreezeSpeed, Restore, RestoreRequest,
    Source, SourceInfo,
};
use snapkit_core::tree::{
    Content, EntryKind, EntryPath, LoadedFile, OpenedFile, SMALL_FILE, TreeEntry, TreeItem,
    TreeReader,
};
use snapkit_testkit::double::{ScriptedArtifact, ScriptedRecord, ScriptedSource};

use crate::decoders::without_numbers;
use crate::lab::Lab;

/// A source that gives these artifacts, whatever it said of them.
#[derive(Debug)]
struct Crooked {
    info: SourceInfo,
    /// How long it says that its freeze has taken.
    cut: Duration,
    artifacts: Mutex<Vec<(ArtifactMeta, Option<Body>)>>,
}

impl Crooked {
    fn new(artifacts: impl IntoIterator<Item = (&'static str, Shape, Body)>) -> Self {
        let info = SourceInfo {
            name: SourceName::new("app").unwrap(),
            kind: "crooked".to_owned(),
            settings: serde_json::json!({}),
            concurrency: 1,
            freeze: FreezeSpeed::Instant,
        };
        let artifacts = artifacts.into_iter().map(|(name, shape, body)| {
            let name = ArtifactName::new(name).unwrap();
            (ArtifactMeta::new(name, shape, "x", Chunking::Content), Some(body))
        });
        Self { info, cut: Duration::ZERO, artifacts: Mutex::new(artifacts.collect()) }
    }
}

#[async_trait]
impl Source for Crooked {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    async fn capture(&self, _: &Context, _: Option<&SourceRecord>) -> Result<Box<dyn Capture>> {
        let artifacts = std::mem::take(&mut *self.artifacts.lock().unwrap());
        Ok(Box::new(CrookedCapture { next: 0, cut: self.cut, artifacts: Mutex::new(artifacts) }))
    }

    async fn restore(&self, _: &Context, _: &RestoreRequest) -> Result<Box<dyn Restore>> {
        Err(Error::invalid("nothing was captured"))
    }

    async fn facts(&self, _: &Context) -> Result<Facts> {
        Ok(Facts::new())
    }

    async fn check(&self, _: &Context, _: &ArtifactMeta, _: Body) -> Result<Findings> {
        Ok(Findings::default())
    }
}

struct CrookedCapture {
    next: usize,
    cut: Duration,
    artifacts: Mutex<Vec<(ArtifactMeta, Option<Body>)>>,
}

#[async_trait]
impl Capture for CrookedCapture {
    async fn freeze(&mut self, cx: &Context) -> Result<Cut> {
        let end = cx.now();
        let begin = Timestamp(end.0 - i64::try_from(self.cut.as_nanos()).unwrap());
        Ok(Cut { begin, end, consistency: Consistency::Point, position: None })
    }

    async fn thaw(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn next(&mut self, _: &Context) -> Result<Option<ArtifactMeta>> {
        self.next += 1;
        Ok(self.artifacts.lock().unwrap().get(self.next - 1).map(|(meta, _)| meta.clone()))
    }

    async fn open(&self, _: &Context, name: &ArtifactName) -> Result<Body> {
        let mut artifacts = self.artifacts.lock().unwrap();
        let found = artifacts.iter_mut().find(|(meta, body)| meta.name == *name && body.is_some());
        Ok(found.and_then(|(_, body)| body.take()).unwrap())
    }

    async fn finish(self: Box<Self>, _: &Context) -> Result<CaptureReport> {
        Ok(Facts::new().into())
    }

    async fn abort(self: Box<Self>, _: &Context) -> Result<()> {
        Ok(())
    }
}

/// A tree with these items, that answers with these files whatever it is asked for.
#[derive(Debug)]
struct CrookedTree {
    items: Vec<TreeItem>,
    answers: Mutex<Vec<LoadedFile>>,
}

impl CrookedTree {
    fn body(items: Vec<TreeItem>, answers: Vec<LoadedFile>) -> Body {
        Body::Tree(Box::new(Self { items, answers: Mutex::new(answers) }))
    }
}

#[async_trait]
impl TreeReader for CrookedTree {
    async fn next_batch(&mut self, _: &Context) -> Result<Option<Vec<TreeItem>>> {
        Ok((!self.items.is_empty()).then(|| std::mem::take(&mut self.items)))
    }

    async fn open(&self, _: &Context, entry: &TreeEntry) -> Result<OpenedFile> {
        let bytes = self.answers.lock().unwrap().pop().unwrap().bytes;
        Ok(OpenedFile { entry: entry.clone(), body: stream::iter([Ok(bytes)]).boxed() })
    }

    async fn load(&self, _: &Context, _: &[TreeEntry]) -> Vec<Result<LoadedFile>> {
        self.answers.lock().unwrap().drain(..).map(Ok).collect()
    }
}

fn file(path: &str, size: u64) -> TreeEntry {
    TreeEntry::new(EntryPath::new(path).unwrap(), EntryKind::File { size, extents: None })
}

fn loaded(path: &str, size: u64, len: usize) -> LoadedFile {
    LoadedFile { entry: file(path, size), bytes: vec![7; len].into() }
}

/// What a create of a source with these artifacts ends with. Nothing is stored that is not what it says.
async fn told(lab: &Lab, source: Crooked) -> String {
    let stack = Stack::new("test", "host", vec![std::sync::Arc::new(source)]);
    let repository = lab.open().await.unwrap();
    match repository.create(&lab.cx, &stack, &CreateOptions::default()).await {
        Err(e) => without_numbers(&format!("error: {} ({})", e.chain(), e.reason())),
        Ok(report) => {
            let record = &report.snapshot.sources[0];
            let problems: Vec<_> = record.problems.listed.iter().map(|p| p.text.as_str()).collect();
            without_numbers(&format!("{:?}: {}", record.verdict, problems.join("; ")))
        }
    }
}

/// A clock that jumps, or a source that has begun before it was asked: each alone was in time.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_cut_that_is_too_wide() {
    let lab = Lab::new([]).await;
    let source = Crooked { cut: Duration::from_secs(11), ..Crooked::new([]) };
    let said = told(&lab, source).await;
    assert_snapshot!(said, @"
    error: the cut took N.N ms, the window is N.N ms (timed-out)
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_artifacts() {
    let lab = Lab::new([]).await;
    let bytes = |len| Body::Bytes(stream::iter([Ok(Bytes::from(vec![0; len]))]).boxed());
    let mut all = String::new();
    for (what, artifacts) in [
        ("twice", vec![("a", Shape::Bytes, bytes(1)), ("a", Shape::Bytes, bytes(1))]),
        ("another shape", vec![("a", Shape::Tree, bytes(1))]),
        ("a long piece", vec![("a", Shape::Bytes, bytes((8 << 20) + 1))]),
    ] {
        all += &format!("{what}: {}\n", told(&lab, Crooked::new(artifacts)).await);
    }
    assert!(lab.snapshots().await.is_empty());
    assert_snapshot!(all, @"
    twice: error: a source named an artifact twice (artifact=a, source=app) (internal)
    another shape: error: a source gave an artifact of another shape than it said (artifact=a, source=app) (internal)
    a long piece: error: a source gave a piece of N bytes, the limit is N (artifact=a, source=app) (internal)
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_trees() {
    let lab = Lab::new([]).await;
    let large = usize::try_from(SMALL_FILE).unwrap() + 1;
    let item = |entry, content| TreeItem::Entry(entry, content);
    let deferred = |size| vec![item(file("a", size), Content::Deferred)];
    let mut attributes = file("a", 0);
    attributes.xattrs = (0..100_u8).map(|n| (vec![n], vec![0; 65_000])).collect();
    let mut all = String::new();
    for (what, items, answers) in [
        ("keeps its content", vec![item(file("a", 1), Content::Verified)], vec![]),
        ("no answer", deferred(1), vec![]),
        ("two answers", deferred(1), vec![loaded("a", 1, 1), loaded("a", 1, 1)]),
        ("another length", deferred(1), vec![loaded("a", 1, 2)]),
        ("another length of a large one", deferred(large as u64), vec![loaded("a", 1, 2)]),
        ("not small any more", deferred(1), vec![loaded("a", large as u64, large)]),
        (
            "more inline",
            vec![item(file("a", 1), Content::Inline(Bytes::from_static(b"xx")))],
            vec![],
        ),
        (
            "out of order",
            vec![item(file("b", 0), Content::None), item(file("a", 0), Content::None)],
            vec![],
        ),
        ("many attributes", vec![item(attributes, Content::None)], vec![]),
    ] {
        let body = CrookedTree::body(items, answers);
        let source = Crooked::new([("tree", Shape::Tree, body)]);
        all += &format!("{what}: {}\n", told(&lab, source).await);
    }
    lab.assert_sound().await;
    assert_snapshot!(all, @"
    keeps its content: Partial: a tree to be stored keeps its content to itself
    no answer: error: a tree did not answer for each file (source=app) (internal)
    two answers: error: a tree did not answer for each file (source=app) (internal)
    another length: error: a file's content has another length than its entry (path=a, source=app) (internal)
    another length of a large one: Partial: a file's content has another length than its entry
    not small any more: error: a small file is too long (path=a, source=app) (internal)
    more inline: error: a file's content has another length than its entry (path=a, source=app) (internal)
    out of order: error: a tree's entries are out of order (path=a, source=app) (internal)
    many attributes: Partial: the source gave an entry that cannot be stored (path=a): a tree entry is malformed: its attributes are impossible
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_records() {
    let record = |place: &str| ScriptedRecord::new(place.to_owned(), "x");
    let long = ScriptedRecord::new(vec![b'x'; MAX_POSITION + 1], "x");
    let mut all = String::new();
    for (what, artifact) in [
        ("out of order", ScriptedArtifact::sequence("x", &["key"], vec![record("b"), record("a")])),
        ("no axes", ScriptedArtifact::sequence("x", &[], vec![])),
        ("too many axes", ScriptedArtifact::sequence("x", &["a"; 5], vec![])),
        ("a place too few", ScriptedArtifact::sequence("x", &["a", "b"], vec![record("a")])),
        ("a long place", ScriptedArtifact::sequence("x", &["key"], vec![long])),
    ] {
        let lab = Lab::new([ScriptedSource::new("app").with(artifact)]).await;
        let e = lab.create().await.unwrap_err();
        assert_eq!(e.reason(), Reason::Internal, "{what}: {e}");
        assert!(lab.snapshots().await.is_empty(), "{what}");
        lab.sources[0].log().assert_released();
        all += &format!("{what}: {}\n", without_numbers(&e.chain()));
    }
    assert_snapshot!(all, @"
    out of order: a source gave a record that comes before the one before it (artifact=x, source=app)
    no axes: a source gave records with impossible axes (axes=N, artifact=x, source=app)
    too many axes: a source gave records with impossible axes (axes=N, artifact=x, source=app)
    a place too few: a source gave a record without a place on each axis (artifact=x, source=app)
    a long place: a source gave a record whose place is too long (artifact=x, source=app)
    ");
}
