//! Limits: memory on the way in and out is bounded, and nothing waits for ever.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod lab;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use lab::{Lab, noise};
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape, SourceName};
use snapkit_core::context::Context;
use snapkit_core::engine::{
    CreateOptions, MIN_MEMORY, Repository, RestoreOptions, RestoreTo, Stack, VerifyOptions,
};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::facts::{Facts, RestoreVerdict};
use snapkit_core::key::Key;
use snapkit_core::manifest::SourceRecord;
use snapkit_core::memory::MemorySink;
use snapkit_core::sink::{ObjectStream, Put, PutMode, Sink, SinkInfo};
use snapkit_core::source::{
    Capture, CaptureReport, Consistency, Cut, Findings, FreezeSpeed, Restore, RestoreRequest,
    Source, SourceInfo,
};
use snapkit_core::tree::{
    Content, EntryKind, EntryPath, LoadedFile, OpenedFile, TreeEntry, TreeItem, TreeReader,
};
use snapkit_testkit::double::{ScriptedArtifact, ScriptedFile, ScriptedSource};

const MIB: u64 = 1 << 20;

// --- on the way in

/// Bytes that left the source, and bytes that are durable.
#[derive(Debug, Default)]
struct Flow {
    pulled: AtomicU64,
    stored: AtomicU64,
    most: AtomicU64,
}

impl Flow {
    fn pull(&self, bytes: u64) {
        let pulled = self.pulled.fetch_add(bytes, Ordering::SeqCst) + bytes;
        let in_flight = pulled.saturating_sub(self.stored.load(Ordering::SeqCst));
        self.most.fetch_max(in_flight, Ordering::SeqCst);
    }
}

/// A source of noise that is made as it is asked for.
#[derive(Debug, Clone)]
struct Flood {
    info: SourceInfo,
    flow: Arc<Flow>,
    mib: u64,
    /// As a tree of files of this length, if not as one stream.
    files_of: Option<u64>,
    named: bool,
}

impl Flood {
    fn new(flow: &Arc<Flow>, mib: u64, files_of: Option<u64>) -> Self {
        let info = SourceInfo {
            name: SourceName::new("flood").unwrap(),
            kind: "flood".to_owned(),
            settings: serde_json::Value::Null,
            concurrency: 1,
            freeze: FreezeSpeed::Instant,
        };
        Self { info, flow: Arc::clone(flow), mib, files_of, named: false }
    }

    fn noise(&self, len: u64, seed: u64) -> Bytes {
        self.flow.pull(len);
        noise(usize::try_from(len).unwrap(), seed)
    }
}

#[async_trait]
impl Source for Flood {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    async fn capture(&self, _: &Context, _: Option<&SourceRecord>) -> Result<Box<dyn Capture>> {
        Ok(Box::new(self.clone()))
    }

    async fn restore(&self, _: &Context, _: &RestoreRequest) -> Result<Box<dyn Restore>> {
        Err(Error::internal("a flood does not go back"))
    }

    async fn facts(&self, _: &Context) -> Result<Facts> {
        Ok(Facts::new())
    }

    async fn check(&self, _: &Context, _: &ArtifactMeta, _: Body) -> Result<Findings> {
        Ok(Findings::default())
    }
}

#[async_trait]
impl Capture for Flood {
    async fn freeze(&mut self, cx: &Context) -> Result<Cut> {
        let (begin, end) = (cx.now(), cx.now());
        Ok(Cut { begin, end, consistency: Consistency::Point, position: None })
    }

    async fn thaw(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn next(&mut self, _: &Context) -> Result<Option<ArtifactMeta>> {
        let shape = if self.files_of.is_some() { Shape::Tree } else { Shape::Bytes };
        let name = ArtifactName::new("noise").unwrap();
        let meta = ArtifactMeta::new(name, shape, "application/octet-stream", Chunking::Content);
        Ok((!std::mem::replace(&mut self.named, true)).then_some(meta))
    }

    async fn open(&self, _: &Context, _: &ArtifactName) -> Result<Body> {
        let this = self.clone();
        Ok(match self.files_of {
            None => Body::Bytes(
                stream::iter((0..self.mib).map(move |i| Ok(this.noise(MIB, i)))).boxed(),
            ),
            Some(len) => {
                let left = (0..self.mib * MIB / len).collect();
                Body::Tree(Box::new(FloodTree { flood: this, left, len }))
            }
        })
    }

    async fn finish(self: Box<Self>, _: &Context) -> Result<CaptureReport> {
        Ok(CaptureReport::default())
    }

    async fn abort(self: Box<Self>, _: &Context) -> Result<()> {
        Ok(())
    }
}

struct FloodTree {
    flood: Flood,
    left: VecDeque<u64>,
    len: u64,
}

impl FloodTree {
    fn seed(entry: &TreeEntry) -> u64 {
        1_000_000 + entry.path.display().parse::<u64>().unwrap()
    }
}

#[async_trait]
impl TreeReader for FloodTree {
    async fn next_batch(&mut self, _: &Context) -> Result<Option<Vec<TreeItem>>> {
        let n = self.left.len().min(500);
        let kind = EntryKind::File { size: self.len, extents: None };
        let entry = |i| TreeEntry::new(EntryPath::new(format!("{i:08}")).unwrap(), kind.clone());
        let items: Vec<_> =
            self.left.drain(..n).map(|i| TreeItem::Entry(entry(i), Content::Deferred)).collect();
        Ok((!items.is_empty()).then_some(items))
    }

    async fn open(&self, _: &Context, entry: &TreeEntry) -> Result<OpenedFile> {
        let (flood, seed, len) = (self.flood.clone(), Self::seed(entry), self.len);
        let pieces = (0..len.div_ceil(MIB))
            .map(move |i| Ok(flood.noise((len - i * MIB).min(MIB), seed * 1000 + i)));
        Ok(OpenedFile { entry: entry.clone(), body: stream::iter(pieces).boxed() })
    }

    async fn load(&self, _: &Context, entries: &[TreeEntry]) -> Vec<Result<LoadedFile>> {
        let load = |e: &TreeEntry| {
            Ok(LoadedFile { entry: e.clone(), bytes: self.flood.noise(self.len, Self::seed(e)) })
        };
        entries.iter().map(load).collect()
    }
}

/// Takes packs only once the gate is open, counts them, and keeps none.
#[derive(Debug)]
struct Drain {
    inner: MemorySink,
    flow: Arc<Flow>,
    open: tokio::sync::watch::Sender<bool>,
}

#[async_trait]
impl Sink for Drain {
    fn info(&self) -> &SinkInfo {
        self.inner.info()
    }

    async fn put(&self, cx: &Context, key: &Key, data: Bytes, mode: PutMode) -> Result<Put> {
        if !key.as_str().starts_with("packs/") {
            return self.inner.put(cx, key, data, mode).await;
        }
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        cx.sleep(Duration::from_millis(10)).await?;
        self.flow.stored.fetch_add(data.len() as u64, Ordering::SeqCst);
        Ok(Put::Stored)
    }

    async fn get(&self, cx: &Context, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        self.inner.get(cx, key, range).await
    }

    fn list(&self, cx: &Context, prefix: Option<&Key>) -> ObjectStream {
        self.inner.list(cx, prefix)
    }

    async fn delete(&self, cx: &Context, key: &Key) -> Result<()> {
        self.inner.delete(cx, key).await
    }
}

/// Create from a flood into a sink that takes nothing at first: what is in flight at most.
async fn flood(mib: u64, files_of: Option<u64>) {
    let flow = Arc::new(Flow::default());
    let drain = Arc::new(Drain {
        inner: MemorySink::new(),
        flow: Arc::clone(&flow),
        open: tokio::sync::watch::channel(false).0,
    });
    let lab = Lab::on(Context::system(), Arc::clone(&drain) as _, []).await;
    let repository = lab.open().await.unwrap();
    let stack = Stack::new("test", "host", vec![Arc::new(Flood::new(&flow, mib, files_of))]);
    let release = async {
        // Until the source is asked for no more.
        let (mut seen, mut quiet) = (0, 0);
        while quiet < 10 {
            lab.cx.sleep(Duration::from_millis(50)).await.unwrap();
            let pulled = flow.pulled.load(Ordering::SeqCst);
            quiet = if pulled == seen { quiet + 1 } else { 0 };
            seen = pulled;
        }
        drain.open.send_replace(true);
        seen
    };
    let options = CreateOptions::default();
    let create = repository.create(&lab.cx, &stack, &options);
    let (report, stalled_at) = tokio::join!(create, release);
    let report = report.unwrap();
    let all = files_of.map_or(mib * MIB, |len| mib * MIB / len * len);
    assert_eq!((report.snapshot.stats.bytes, flow.pulled.load(Ordering::SeqCst)), (all, all));
    // A quarter of the memory is for content on its way; before it is accepted, a stream is read and cut
    // in steps of 4 MiB, and small files in groups.
    let (budget, room) = (MIN_MEMORY / 4, 20 * MIB);
    let most = flow.most.load(Ordering::SeqCst);
    assert!(most <= budget + room, "{} MiB in flight", most / MIB);
    assert!(stalled_at >= budget / 2 && stalled_at <= most, "stalled at {} MiB", stalled_at / MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_never_has_more_in_flight_than_its_budget() {
    flood(300, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_never_has_more_in_flight_than_its_budget() {
    flood(100, Some(20_000)).await;
    flood(100, Some(3_000_000)).await;
}

// --- on the way out

async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => panic!("{what} hangs"),
    }
}

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_lie_far_apart_come_back() {
    // Each kept file lies in a frame of its own among others that are gone: more frames than the
    // reader's memory holds at once, and all are in one batch of the tree.
    let kept = |dir: u64| ScriptedFile::file(&format!("d{dir:03}/a"), noise(8000, dir));
    let filler = |dir: u64, i: u64| {
        ScriptedFile::file(&format!("d{dir:03}/f{i:02}"), noise(8000, 1000 * (dir + 1) + i))
    };
    let all =
        (0..110).flat_map(|d| (0..64).map(move |i| if i == 0 { kept(d) } else { filler(d, i) }));
    let lab = Lab::new([ScriptedSource::new("a").with(ScriptedArtifact::tree("tree", all))]).await;
    lab.create().await.unwrap();
    lab.sources[0].set(ScriptedArtifact::tree("tree", (0..110).map(kept)));
    let snapshot = lab.create().await.unwrap().snapshot;
    assert!(snapshot.stats.chunks_new < 5, "the files were stored before");
    let summary = within(PATIENCE, "the restore", lab.restore(&snapshot)).await.unwrap();
    assert_eq!(summary.verdict, RestoreVerdict::Match);
    within(PATIENCE, "the verify", lab.assert_sound()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_takes_its_time_holds_up_nothing() {
    // More than the reader's memory, in files small and large, by a target that keeps all it is given.
    let file = |i: u64| {
        let len = if i.is_multiple_of(20) { 4_500_000 } else { 300_000 };
        ScriptedFile::file(&format!("f{i:03}"), noise(len, i))
    };
    let tree = ScriptedArtifact::tree("tree", (0..160).map(file));
    let lab = Lab::new([ScriptedSource::new("a").with(tree)]).await;
    let snapshot = lab.create().await.unwrap().snapshot;
    for allow_damage in [false, true] {
        let restore =
            lab.restore_with(&snapshot, |o| (o.overwrite, o.allow_damage) = (true, allow_damage));
        let summary = within(PATIENCE, "the restore", restore).await.unwrap();
        assert_eq!(summary.verdict, RestoreVerdict::Match);
    }
    within(PATIENCE, "the verify", lab.assert_sound()).await;
    // Two streams, and only one of them is read while the other is open.
    let repository = lab.open().await.unwrap();
    let artifact = &snapshot.sources[0].artifacts[0];
    let Body::Tree(mut tree) = repository.open_artifact(&lab.cx, artifact).await.unwrap() else {
        panic!("no tree")
    };
    let mut opened = Vec::new();
    let first = within(PATIENCE, "the tree", tree.next_batch(&lab.cx)).await.unwrap().unwrap();
    for item in first {
        if let TreeItem::Entry(entry, Content::Deferred) = item {
            let mut file = tree.open(&lab.cx, &entry).await.unwrap();
            let begun = within(PATIENCE, "a file", file.body.next()).await.unwrap().unwrap();
            opened.push((entry, begun.len(), file.body));
        }
    }
    while within(PATIENCE, "the tree", tree.next_batch(&lab.cx)).await.unwrap().is_some() {}
    for (entry, mut len, mut body) in opened.into_iter().rev() {
        while let Some(piece) = within(PATIENCE, "a file", body.next()).await {
            len += piece.unwrap().len();
        }
        assert_eq!(len as u64, entry.kind.content_len());
    }
}

// --- a sink that never answers

/// Answers so many operations, and no more.
#[derive(Debug)]
struct Stalling {
    inner: Arc<dyn Sink>,
    answers: AtomicU64,
    asked: AtomicBool,
}

impl Stalling {
    fn new(inner: Arc<dyn Sink>, answers: u64) -> Self {
        Self { inner, answers: AtomicU64::new(answers), asked: AtomicBool::new(false) }
    }

    async fn turn(&self) {
        let left =
            self.answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if left.is_err() {
            self.asked.store(true, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Sink for Stalling {
    fn info(&self) -> &SinkInfo {
        self.inner.info()
    }

    async fn put(&self, cx: &Context, key: &Key, data: Bytes, mode: PutMode) -> Result<Put> {
        self.turn().await;
        self.inner.put(cx, key, data, mode).await
    }

    async fn get(&self, cx: &Context, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        self.turn().await;
        self.inner.get(cx, key, range).await
    }

    fn list(&self, cx: &Context, prefix: Option<&Key>) -> ObjectStream {
        let left =
            self.answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if left.is_err() {
            self.asked.store(true, Ordering::SeqCst);
            return stream::pending().boxed();
        }
        self.inner.list(cx, prefix)
    }

    async fn delete(&self, cx: &Context, key: &Key) -> Result<()> {
        self.turn().await;
        self.inner.delete(cx, key).await
    }
}

fn sources(len: usize) -> [ScriptedSource; 2] {
    let files = (0..50).map(|i| ScriptedFile::file(&format!("f{i}"), noise(3000, i)));
    [
        ScriptedSource::new("a").with(ScriptedArtifact::tree("tree", files)),
        ScriptedSource::new("b").with(ScriptedArtifact::bytes("noise", noise(len, 99))),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Work {
    Create,
    Restore,
    Verify,
}

/// Do the work on a sink that answers so many operations, and stop it once it waits for the next: how
/// it ended, and how long it took to. `None` if all was answered.
async fn stalled(
    base: &Lab,
    work: Work,
    answers: u64,
    by_deadline: bool,
) -> Option<(Error, Duration)> {
    let lab = base.fork().await;
    lab.forget_local();
    let sink = Arc::new(Stalling::new(Arc::clone(&lab.sink), u64::MAX));
    let repository = lab.open_on(Arc::clone(&sink) as _).await.unwrap();
    let limit = Duration::from_secs(5);
    let cx = if by_deadline { lab.cx.within(limit) } else { lab.cx.child() };
    let begun = cx.monotonic();
    sink.answers.store(answers, Ordering::SeqCst);
    let done = AtomicBool::new(false);
    let stop = async {
        while !sink.asked.load(Ordering::SeqCst) && !done.load(Ordering::SeqCst) {
            lab.cx.sleep(Duration::from_millis(1)).await.unwrap();
        }
        if by_deadline {
            return begun + limit;
        }
        // Let everything come to a stop that will.
        lab.cx.sleep(Duration::from_millis(50)).await.unwrap();
        cx.cancel();
        cx.monotonic()
    };
    let run = async {
        let result = run(&lab, &repository, &cx, work).await;
        done.store(true, Ordering::SeqCst);
        (result, cx.monotonic())
    };
    let (stopped, (result, ended)) = tokio::join!(stop, run);
    lab.sources.iter().for_each(|s| s.log().assert_released());
    if sink.asked.load(Ordering::SeqCst) {
        Some((result.unwrap_err(), ended.saturating_sub(stopped)))
    } else {
        result.unwrap();
        None
    }
}

async fn run(lab: &Lab, repository: &Repository, cx: &Context, work: Work) -> Result<()> {
    match work {
        Work::Create => {
            repository.create(cx, &lab.stack(), &CreateOptions::default()).await.map(drop)
        }
        Work::Verify => {
            let options = VerifyOptions { read_data: true, ..VerifyOptions::default() };
            repository.verify(cx, &lab.registry(), &options).await.map(drop)
        }
        Work::Restore => {
            let to = RestoreTo::Directory(lab.target());
            let options = RestoreOptions::new(to, lab.path("recovery"));
            let snapshot = lab.snapshots().await.remove(0);
            repository.restore(cx, &lab.registry(), &snapshot, &options).await.map(drop)
        }
    }
}

async fn stalls(lab: &Lab, work: Work, by_deadline: bool) -> u64 {
    let reason = if by_deadline { Reason::TimedOut } else { Reason::Cancelled };
    for answers in 0.. {
        let Some((e, took)) = stalled(lab, work, answers, by_deadline).await else {
            return answers;
        };
        assert_eq!(e.reason(), reason, "{work:?} after {answers}: {e:?}");
        assert!(took < Duration::from_secs(2), "{work:?} after {answers} takes {took:?} to end");
    }
    unreachable!()
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_never_answers_can_be_left_at_any_operation() {
    for by_deadline in [false, true] {
        let lab = Lab::simulated(sources(7_000_000)).await;
        lab.create().await.unwrap();
        lab.sources[1].set(ScriptedArtifact::bytes("noise", noise(7_000_000, 100)));
        assert!(stalls(&lab, Work::Create, by_deadline).await > 10);
        assert!(stalls(&lab, Work::Restore, by_deadline).await > 10);
        assert!(stalls(&lab, Work::Verify, by_deadline).await > 10);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_pipeline_before_a_sink_that_never_answers_can_be_left() {
    // Much more than fits: every stage waits for the next.
    let flow = Arc::new(Flow::default());
    for work in ["cancel", "deadline"] {
        let lab = Lab::new([]).await;
        let sink = Arc::new(Stalling::new(Arc::clone(&lab.sink), u64::MAX));
        let repository = lab.open_on(Arc::clone(&sink) as _).await.unwrap();
        let stack = Stack::new("test", "host", vec![Arc::new(Flood::new(&flow, 200, None))]);
        // The session, the listings; then no pack is ever taken.
        sink.answers.store(5, Ordering::SeqCst);
        let limit = Duration::from_secs(3);
        let cx = if work == "cancel" { lab.cx.child() } else { lab.cx.within(limit) };
        let begun = cx.monotonic();
        let stop = async {
            lab.cx.sleep(limit).await.unwrap();
            if work == "cancel" {
                cx.cancel();
            }
        };
        let options = CreateOptions::default();
        let (result, ()) = tokio::join!(repository.create(&cx, &stack, &options), stop);
        let took = cx.monotonic().saturating_sub(begun + limit);
        let e = result.unwrap_err();
        assert!(took < Duration::from_secs(2), "{work}: {took:?} to end");
        let expected = if work == "cancel" { Reason::Cancelled } else { Reason::TimedOut };
        assert_eq!(e.reason(), expected, "{e:?}");
        assert!(sink.asked.load(Ordering::SeqCst) && flow.pulled.load(Ordering::SeqCst) > 20 * MIB);
    }
}
