//! Settings of the engine: plain data. Components (sinks, sources, manifests) are handed over apart.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::artifact::{ArtifactName, SourceName};
use crate::context::Context;
use crate::engine::hooks::{Hooks, Probe};
use crate::error::{Error, Result};
use crate::id::RepositoryFingerprint;
use crate::manifest::Head;
use crate::source::{Source, Target};

/// The bytes that all work in flight may hold: 256 MiB for the whole process by default. The engine
/// takes half of it for content; the rest is room for the index, compression and the sources.
pub const DEFAULT_MEMORY: u64 = 256 << 20;

/// The least memory budget: 128 MiB.
pub const MIN_MEMORY: u64 = 128 << 20;

/// How a repository is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Directory of the caches, which may be deleted at any time. One subdirectory per repository.
    pub cache: PathBuf,
    /// Directory of the local state: what pins repositories, and what makes the next create quick.
    pub state: PathBuf,
    /// The memory budget in bytes.
    pub memory: u64,
    /// What the repository must be, if it is known from elsewhere than the local state.
    pub fingerprint: Option<RepositoryFingerprint>,
    /// Take another repository at the same place for a new one instead of an attack.
    pub accept_new_repository: bool,
}

impl OpenOptions {
    /// With caches and local state below two directories.
    #[must_use]
    pub fn new(cache: PathBuf, state: PathBuf) -> Self {
        Self {
            cache,
            state,
            memory: DEFAULT_MEMORY,
            fingerprint: None,
            accept_new_repository: false,
        }
    }
}

/// A source of a stack.
#[derive(Clone, Debug)]
pub struct StackSource {
    /// The source.
    pub source: Arc<dyn Source>,
    /// Whether a snapshot may be committed without it.
    pub may_fail: bool,
}

/// Pauses the writers of an embedding program while the cut is taken.
#[async_trait]
pub trait Gate: std::fmt::Debug + Send + Sync {
    /// Writers are quiet when this returns.
    async fn close(&self, cx: &Context) -> Result<()>;
    /// Writers go on. Called on every path after `close` was attempted.
    async fn open(&self, cx: &Context) -> Result<()>;
}

/// What is captured together.
#[derive(Clone, Debug)]
pub struct Stack {
    /// Its name. Snapshots of one stack, host and set follow each other.
    pub name: String,
    /// The host, as it shall stand in the snapshot.
    pub host: String,
    /// Which set of its sources this is; `full` is all.
    pub set: String,
    /// The sources of that set.
    pub sources: Vec<StackSource>,
    /// Pauses writers during the cut.
    pub gate: Option<Arc<dyn Gate>>,
    /// What is done around the run.
    pub hooks: Option<Arc<dyn Hooks>>,
    /// All sources must have pinned within this time, or nothing is committed.
    pub window: Duration,
}

impl Stack {
    /// A stack of all its sources, without a gate, with a window of ten seconds.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        host: impl Into<String>,
        sources: Vec<Arc<dyn Source>>,
    ) -> Self {
        let sources =
            sources.into_iter().map(|source| StackSource { source, may_fail: false }).collect();
        Self {
            name: name.into(),
            host: host.into(),
            set: "full".to_owned(),
            sources,
            gate: None,
            hooks: None,
            window: Duration::from_secs(10),
        }
    }
}

/// How a snapshot is created.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// A name for the snapshot.
    pub name: Option<String>,
    /// Keys and values for the snapshot.
    pub tags: BTreeMap<String, String>,
    /// zstd level, 1 to 19.
    pub level: i32,
    /// Decompress and compare each frame before it is sealed.
    pub verify_compression: bool,
    /// Read everything, even what looks unchanged.
    pub read_all: bool,
    /// Take the SHA-256 of every artifact that is a byte stream, as `sha256sum` would of what is dumped of it.
    pub sha256: bool,
    /// Do everything but keep it: nothing is stored or remembered, and no hook runs. The sources are read as
    /// for a snapshot.
    pub dry_run: bool,
    /// What made the snapshot, with its version.
    pub program: String,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            name: None,
            tags: BTreeMap::new(),
            level: 3,
            verify_compression: true,
            read_all: false,
            sha256: false,
            dry_run: false,
            program: concat!("snapkit ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Where a restore goes.
#[derive(Clone, Debug)]
pub enum RestoreTo {
    /// `DIR/SOURCE/…` for each source.
    Directory(PathBuf),
    /// Where it was captured.
    Original,
}

/// Which part of a snapshot: nothing is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// One source.
    pub source: Option<SourceName>,
    /// One of its artifacts.
    pub artifact: Option<ArtifactName>,
    /// In a tree, this entry and what lies in it: a path in bytes.
    pub path: Option<crate::tree::EntryPath>,
    /// In trees, entries that match one of these globs, and what lies in them.
    pub include: Vec<String>,
}

impl Selection {
    /// Whether it leaves out a part of a source.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.artifact.is_some() || self.path.is_some() || !self.include.is_empty()
    }
}

/// How a snapshot is restored.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// Where to.
    pub to: RestoreTo,
    /// Sources that go to another server instead, by its URL.
    pub urls: BTreeMap<SourceName, String>,
    /// What of it.
    pub selection: Selection,
    /// Replace what is there; the old state is kept.
    pub overwrite: bool,
    /// Set what lets others act as somebody else: setuid bits, file capabilities, devices.
    pub trusted: bool,
    /// Leave out what is damaged and restore the rest, instead of refusing.
    pub allow_damage: bool,
    /// Read the target back and compare.
    pub read_back: bool,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// Where the old state is kept when something is replaced: a subdirectory is made below it.
    pub recovery: PathBuf,
    /// What is done around the run.
    pub hooks: Option<Arc<dyn Hooks>>,
    /// What examines whether the restored system works, once the hooks after the restore have run. One that
    /// fails makes the verdict `differs`.
    pub probes: Vec<Arc<dyn Probe>>,
}

impl RestoreOptions {
    /// Everything, to a place that holds nothing, read back.
    #[must_use]
    pub fn new(to: RestoreTo, recovery: PathBuf) -> Self {
        Self {
            to,
            urls: BTreeMap::new(),
            selection: Selection::default(),
            overwrite: false,
            trusted: false,
            allow_damage: false,
            read_back: true,
            dry_run: false,
            recovery,
            hooks: None,
            probes: Vec::new(),
        }
    }

    /// Where a source goes.
    #[must_use]
    pub fn target(&self, source: &SourceName) -> Target {
        match (self.urls.get(source), &self.to) {
            (Some(url), _) => Target::Url(url.clone()),
            (None, RestoreTo::Original) => Target::Original,
            (None, RestoreTo::Directory(dir)) => Target::Directory(dir.join(source.as_str())),
        }
    }
}

/// How a repository is verified.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// Only these snapshots; empty is all. Packs that no snapshot needs are examined only with all.
    pub snapshots: Vec<crate::id::SnapshotId>,
    /// Only this source of them.
    pub source: Option<SourceName>,
    /// Read, decrypt and check every byte that the snapshots need, and ask the sources whether it
    /// would restore.
    pub read_data: bool,
}

/// Check a memory budget.
pub(crate) fn check_memory(bytes: u64) -> Result<()> {
    if bytes >= MIN_MEMORY {
        Ok(())
    } else {
        Err(Error::invalid(format!("the memory budget must be at least {MIN_MEMORY} bytes")))
    }
}

/// Which snapshots `latest` and times speak of: what is `None` may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Of this stack.
    pub stack: Option<String>,
    /// Of this host.
    pub host: Option<String>,
    /// Of this set.
    pub set: Option<String>,
}

impl Scope {
    /// Whether a snapshot is one of them.
    #[must_use]
    pub fn holds(&self, snapshot: &Head) -> bool {
        let fits = |want: &Option<String>, is: &str| want.as_deref().is_none_or(|w| w == is);
        fits(&self.stack, &snapshot.stack)
            && fits(&self.host, &snapshot.host)
            && fits(&self.set, &snapshot.set)
    }
}
