//! A repository to try things on: a memory sink, a key, private directories and scripted sources.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use snapkit_core::artifact::SourceName;
use snapkit_core::context::{Context, Timestamp};
use snapkit_core::credential::{Unlock, generate_key_file};
use snapkit_core::engine::{
    CreateOptions, CreateReport, OpenOptions, Repository, RestoreOptions, RestoreSummary, RestoreTo,
    Stack, VerifyOptions, VerifyReport,
};
use snapkit_core::error::Result;
use snapkit_core::manifest::Snapshot;
use snapkit_core::memory::MemorySink;
use snapkit_core::registry::Registry;
use snapkit_core::sink::Sink;
use snapkit_core::source::{Source, Target};
use snapkit_testkit::double::{ScriptedContent, ScriptedFile, ScriptedSource};

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
        let memory = Arc::new(MemorySink::new());
        let sink: Arc<dyn Sink> = Arc::clone(&memory) as _;
        Self { memory, ..Self::on(Context::system(), sink, sources).await }
    }

    pub(crate) async fn on(
        cx: Context,
        sink: Arc<dyn Sink>,
        sources: impl IntoIterator<Item = ScriptedSource>,
    ) -> Self {
        let unlock = Unlock::KeyFile(generate_key_file());
        Repository::init(&cx, &sink, &unlock).await.unwrap();
        Self {
            cx,
            memory: Arc::new(MemorySink::new()),
            sink,
            unlock,
            dir: tempfile::tempdir().unwrap(),
            sources: sources.into_iter().map(Arc::new).collect(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions::new(self.path("cache"), self.path("state"))
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

    pub(crate) fn target(&self) -> PathBuf {
        self.path("target")
    }

    pub(crate) async fn restore(&self, snapshot: &Snapshot) -> Result<RestoreSummary> {
        self.restore_with(snapshot, |_| {}).await
    }

    pub(crate) async fn restore_with(
        &self,
        snapshot: &Snapshot,
        adjust: impl FnOnce(&mut RestoreOptions),
    ) -> Result<RestoreSummary> {
        let to = RestoreTo::Directory(self.target());
        let mut options = RestoreOptions::new(to, self.path("recovery"));
        adjust(&mut options);
        self.open().await?.restore(&self.cx, &self.registry(), snapshot, &options).await
    }

    /// What was restored of a source.
    pub(crate) fn restored(&self, source: usize) -> BTreeMap<String, ScriptedContent> {
        let source = &self.sources[source];
        let dir = self.target().join(source.info().name.as_str());
        let contents = source.contents(&Target::Directory(dir));
        contents.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
    }

    pub(crate) fn live(&self, source: usize) -> BTreeMap<String, ScriptedContent> {
        let contents = self.sources[source].contents(&Target::Original);
        contents.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
    }
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
        _ => false,
    }
}
