//! A repository to try things on: a memory sink, a key, private directories and scripted sources.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

pub(crate) mod keeper;
pub(crate) mod truth;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use snapkit_core::artifact::SourceName;
use snapkit_core::context::{Context, Environment, Simulated, System, Timestamp};
use snapkit_core::credential::{Unlock, generate_key_file};
use snapkit_core::engine::{
    CreateOptions, CreateReport, MIN_MEMORY, OpenOptions, Repository, RestoreOptions,
    RestoreSummary, RestoreTo, Stack, VerifyOptions, VerifyReport,
};
use snapkit_core::error::Result;
use snapkit_core::frame::{Effort, FrameCodec};
use snapkit_core::id::{ChunkId, PackId};
use snapkit_core::index::segment;
use snapkit_core::key::Key;
use snapkit_core::ledger::line_key;
use snapkit_core::manifest::{Head, Snapshot};
use snapkit_core::memory::MemorySink;
use snapkit_core::pack::{PackContents, parse_pack_key, read_pack};
use snapkit_core::progress::Silent;
use snapkit_core::registry::Registry;
use snapkit_core::seal::{ObjectType, WriterKeys};
use snapkit_core::sink::{PutMode, Sink};
use snapkit_core::source::{Source, Target};
use snapkit_testkit::double::{ScriptedContent, ScriptedFile, ScriptedSource};

/// Everything in a sink.
pub(crate) type Objects = BTreeMap<Key, Bytes>;

pub(crate) struct Lab {
    pub(crate) cx: Context,
    pub(crate) memory: Arc<MemorySink>,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) unlock: Unlock,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) sources: Vec<Arc<ScriptedSource>>,
}

impl Lab {
    pub(crate) async fn new(sources: impl IntoIterator<Item = ScriptedSource>) -> Self {
        Self::with(Context::system(), sources).await
    }

    /// In a context in which everything repeats; with a paused clock waiting costs no time.
    pub(crate) async fn simulated(sources: impl IntoIterator<Item = ScriptedSource>) -> Self {
        Self::with(simulated(1), sources).await
    }

    pub(crate) async fn with(
        cx: Context,
        sources: impl IntoIterator<Item = ScriptedSource>,
    ) -> Self {
        let memory = Arc::new(MemorySink::new());
        let sink: Arc<dyn Sink> = Arc::clone(&memory) as _;
        Self { memory, ..Self::on(cx, sink, sources).await }
    }

    pub(crate) async fn on(
        cx: Context,
        sink: Arc<dyn Sink>,
        sources: impl IntoIterator<Item = ScriptedSource>,
    ) -> Self {
        let lab = Self::bare(&cx, sink);
        Repository::init(&cx, &lab.sink, &lab.unlock).await.unwrap();
        Self { sources: sources.into_iter().map(Arc::new).collect(), ..lab }
    }

    /// Without a repository and without sources.
    pub(crate) fn bare(cx: &Context, sink: Arc<dyn Sink>) -> Self {
        Self {
            cx: cx.clone(),
            memory: Arc::new(MemorySink::new()),
            sink,
            unlock: Unlock::KeyFile(generate_key_file()),
            dir: tempfile::tempdir().unwrap(),
            sources: Vec::new(),
        }
    }

    /// The same repository as it is now, apart: its objects in a sink of their own, a copy of the local
    /// state, and the same sources.
    pub(crate) async fn fork(&self) -> Self {
        let memory = memory_of(&self.cx, self.memory.contents()).await;
        Self { memory: Arc::clone(&memory), ..self.fork_on(memory) }
    }

    /// A copy of the local state, the same sources, and another sink.
    pub(crate) fn fork_on(&self, sink: Arc<dyn Sink>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(self.dir.path(), dir.path());
        let (cx, unlock, sources) = (self.cx.clone(), self.unlock.clone(), self.sources.clone());
        Self { cx, memory: Arc::new(MemorySink::new()), sink, unlock, dir, sources }
    }

    /// Lose what this machine remembers.
    pub(crate) fn forget_local(&self) {
        for name in ["state", "cache"] {
            drop(std::fs::remove_dir_all(self.path(name)));
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// With the least memory, so that packs are small.
    pub(crate) fn options(&self) -> OpenOptions {
        let options = OpenOptions::new(self.path("cache"), self.path("state"));
        OpenOptions { memory: MIN_MEMORY, ..options }
    }

    pub(crate) async fn open(&self) -> Result<Repository> {
        self.open_on(Arc::clone(&self.sink)).await
    }

    pub(crate) async fn open_on(&self, sink: Arc<dyn Sink>) -> Result<Repository> {
        Repository::open(&self.cx, sink, std::slice::from_ref(&self.unlock), self.options()).await
    }

    pub(crate) fn stack(&self) -> Stack {
        let sources = self.sources.iter().map(|s| Arc::clone(s) as Arc<dyn Source>).collect();
        Stack::new("test", "host", sources)
    }

    pub(crate) fn registry(&self) -> Registry {
        let mut registry = Registry::new();
        let sources = self.sources.clone();
        registry.register(ScriptedSource::KIND, move |name: SourceName, _| {
            let found = sources.iter().find(|s| s.info().name == name).unwrap();
            Ok(Arc::clone(found) as _)
        });
        registry
    }

    pub(crate) async fn create(&self) -> Result<CreateReport> {
        self.open().await?.create(&self.cx, &self.stack(), &CreateOptions::default()).await
    }

    pub(crate) async fn verify(&self, read_data: bool) -> Result<VerifyReport> {
        let options = VerifyOptions { read_data, ..VerifyOptions::default() };
        self.open().await?.verify(&self.cx, &self.registry(), &options).await
    }

    pub(crate) async fn assert_sound(&self) {
        let report = self.verify(true).await.unwrap();
        assert!(report.is_sound(), "{:#?}", report.damage);
    }

    /// Every session that was announced has a line in the ledger; the reasons of those that were aborted.
    pub(crate) async fn aborted(&self) -> Vec<String> {
        let ledger = self.open().await.unwrap().ledger(&self.cx).await.unwrap();
        let lines: Vec<String> = ledger.ids().map(ToString::to_string).collect();
        for key in self.memory.contents().keys() {
            if let Some(session) = key.as_str().strip_prefix("sessions/") {
                let id = session.split('/').next().unwrap();
                assert!(lines.iter().any(|l| l == id), "session {id} has no end");
            }
        }
        ledger.markers.into_iter().map(|m| m.reason).collect()
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.path("target")
    }

    pub(crate) async fn restore(&self, snapshot: &Snapshot) -> Result<RestoreSummary> {
        self.restore_with(snapshot, |_| {}).await
    }

    /// Put a snapshot's document into the ledger as whoever has a key can.
    pub(crate) async fn commit(&self, snapshot: &Snapshot, document: &[u8]) {
        let repository = self.open().await.unwrap();
        let credential = repository.credential();
        let key = line_key(&snapshot.id).unwrap();
        let (header, sealer) =
            credential.writer.begin(&self.cx, ObjectType::Snapshot, key.as_str()).unwrap();
        let (mut table, mut frames) = (Vec::new(), Vec::new());
        for (number, raw) in document.chunks(4 << 20).enumerate() {
            let mut frame = FrameCodec::new(false).encode(raw, Effort::Level(3)).unwrap();
            sealer.seal(number as u64, &mut frame).unwrap();
            table.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_le_bytes());
            table.extend_from_slice(&u32::try_from(raw.len()).unwrap().to_le_bytes());
            frames.extend_from_slice(&frame);
        }
        let mut object = header.encode();
        object.extend_from_slice(&u32::try_from(table.len() / 8).unwrap().to_le_bytes());
        object.extend_from_slice(&table);
        object.extend_from_slice(&frames);
        credential.signer.sign(key.as_str(), &mut object);
        self.sink.put(&self.cx, &key, object.into(), PutMode::Overwrite).await.unwrap();
    }

    /// All snapshots of the ledger, the newest first.
    pub(crate) async fn snapshots(&self) -> Vec<Snapshot> {
        let repository = self.open().await.unwrap();
        let ledger = repository.ledger(&self.cx).await.unwrap();
        let mut snapshots = Vec::new();
        for head in &ledger.snapshots {
            let snapshot = repository.snapshot(&self.cx, head).await.unwrap();
            assert_eq!(Head::from(&snapshot), *head);
            snapshots.push(snapshot);
        }
        snapshots
    }

    pub(crate) async fn restore_with(
        &self,
        snapshot: &Snapshot,
        adjust: impl FnOnce(&mut RestoreOptions),
    ) -> Result<RestoreSummary> {
        self.restore_by(&self.open().await?, snapshot, adjust).await
    }

    pub(crate) async fn restore_by(
        &self,
        repository: &Repository,
        snapshot: &Snapshot,
        adjust: impl FnOnce(&mut RestoreOptions),
    ) -> Result<RestoreSummary> {
        self.restore_to(repository, &self.registry(), snapshot, adjust).await
    }

    pub(crate) async fn restore_to(
        &self,
        repository: &Repository,
        registry: &Registry,
        snapshot: &Snapshot,
        adjust: impl FnOnce(&mut RestoreOptions),
    ) -> Result<RestoreSummary> {
        let to = RestoreTo::Directory(self.target());
        let mut options = RestoreOptions::new(to, self.path("recovery"));
        adjust(&mut options);
        repository.restore(&self.cx, registry, snapshot, &options).await
    }

    /// What was restored of a source.
    pub(crate) fn restored(&self, source: usize) -> BTreeMap<String, ScriptedContent> {
        let source = &self.sources[source];
        let dir = self.target().join(source.info().name.as_str());
        let contents = source.contents(&Target::Directory(dir));
        contents.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
    }

    /// Whether what was restored of a source is what is live.
    pub(crate) fn is_restored(&self, source: usize) -> bool {
        same_all(&self.restored(source), &self.live(source))
    }

    pub(crate) fn live(&self, source: usize) -> BTreeMap<String, ScriptedContent> {
        let contents = self.sources[source].contents(&Target::Original);
        contents.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
    }
}

/// Randomness from a seed, time from tokio's clock, all work on the caller's thread.
pub(crate) fn simulated(seed: u64) -> Context {
    let epoch = Timestamp::parse("2026-01-15T14:30:00Z").unwrap();
    Context::new(Arc::new(Simulated::new(seed, epoch)), Arc::new(Silent))
}

/// The real machine, with a wall clock that can be put forward.
#[derive(Debug, Default)]
pub(crate) struct Shifted(System, AtomicI64);

impl Shifted {
    pub(crate) fn forward(&self, seconds: i64) {
        self.1.fetch_add(seconds * 1_000_000_000, Ordering::Relaxed);
    }
}

impl Environment for Shifted {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.now().0 + self.1.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn fill_random(&self, buffer: &mut [u8]) -> Result<()> {
        self.0.fill_random(buffer)
    }

    fn parallelism(&self) -> Option<NonZeroUsize> {
        self.0.parallelism()
    }
}

/// A sink in memory that holds these objects.
pub(crate) async fn memory_of(cx: &Context, objects: Objects) -> Arc<MemorySink> {
    let memory = Arc::new(MemorySink::new());
    for (key, object) in objects {
        memory.put(cx, &key, object, PutMode::Create).await.unwrap();
    }
    memory
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// What the packs in a sink hold, each read whole and checked.
pub(crate) fn packs_in(objects: &Objects, keys: &WriterKeys) -> BTreeMap<PackId, PackContents> {
    let packs = objects.iter().filter_map(|(key, object)| Some((parse_pack_key(key)?, object)));
    packs.map(|(id, object)| (id, read_pack(id, object, keys).unwrap())).collect()
}

/// The chunks of packs.
pub(crate) fn chunks_in<'a>(
    packs: impl IntoIterator<Item = &'a PackContents>,
) -> BTreeSet<ChunkId> {
    let frames = packs.into_iter().flat_map(|p| &p.frames);
    frames.flat_map(|f| &f.chunks).map(|c| c.id).collect()
}

/// The packs that the segments in a sink list.
pub(crate) fn listed_in(objects: &Objects, keys: &WriterKeys) -> BTreeSet<PackId> {
    let segment = |(key, object): (&Key, &Bytes)| {
        let id = key.as_str().strip_prefix("index/")?.parse().unwrap();
        Some(segment::open(id, object, keys).unwrap())
    };
    objects.iter().filter_map(segment).flat_map(|t| t.packs).map(|p| p.id).collect()
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(len: usize, seed: u64) -> Bytes {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out.into()
}

/// The entries of a tree by path, without what is not restored.
pub(crate) fn files_of(content: &ScriptedContent) -> BTreeMap<String, ScriptedFile> {
    let ScriptedContent::Tree(files) = content else { panic!("no tree") };
    files
        .iter()
        .map(|f| {
            let mut f = f.clone();
            (f.entry.ctime, f.entry.inode) = (Timestamp(0), 0);
            (f.entry.path.display(), f)
        })
        .collect()
}

/// Whether two contents are the same, but for what is not restored.
pub(crate) fn same(a: &ScriptedContent, b: &ScriptedContent) -> bool {
    match (a, b) {
        (ScriptedContent::Bytes(a), ScriptedContent::Bytes(b)) => a == b,
        (ScriptedContent::Tree(_), ScriptedContent::Tree(_)) => files_of(a) == files_of(b),
        (ScriptedContent::Records(..), ScriptedContent::Records(..)) => a == b,
        _ => false,
    }
}

/// Whether all contents are the same, but for what is not restored.
pub(crate) fn same_all(
    a: &BTreeMap<String, ScriptedContent>,
    b: &BTreeMap<String, ScriptedContent>,
) -> bool {
    a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
}
