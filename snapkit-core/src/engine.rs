//! The engine: create, restore, read and verify over any sources and any sink.

pub mod diff;
pub mod hooks;
pub mod options;
pub mod report;

mod ahead;
mod basis;
mod browse;
mod check;
mod create;
mod cut;
mod dry;
mod examine;
mod find;
mod lists;
mod local;
mod open;
mod packs;
mod proven;
mod read;
mod records;
mod restore;
mod select;
mod store;
mod stream;
mod verify;
mod write;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::TryStreamExt as _;

use crate::chunk::ChunkKey;
use crate::config::RepositoryConfig;
use crate::context::Context;
use crate::credential::Credential;
use crate::engine::local::Local;
use crate::error::{Error, Reason, Result};
use crate::id::PackId;
use crate::index::{Index, LoadReport};
use crate::key::Key;
use crate::manifest::Manifest;
use crate::sink::Sink;

pub use diff::{ArtifactDiff, Change, EntryChange, OnChange, SourceDiff};
pub use find::{MAX_LEDGER, parse_time};
pub use hooks::{Hooks, Moment, Occasion, Operation, Probe};
pub use options::*;
pub use report::*;

/// An open repository.
#[derive(Debug)]
pub struct Repository {
    sink: Arc<dyn Sink>,
    config: RepositoryConfig,
    credential: Arc<Credential>,
    manifest: Arc<dyn Manifest>,
    chunk_key: ChunkKey,
    options: OpenOptions,
    local: Local,
    /// Where bases are kept.
    basis: PathBuf,
    /// Directories that stand in for ones that cannot be written to.
    #[expect(dead_code, reason = "they are gone with the repository")]
    spare: Vec<Arc<tempfile::TempDir>>,
    warnings: Vec<String>,
}

impl Repository {
    /// What the repository is.
    #[must_use]
    pub fn config(&self) -> &RepositoryConfig {
        &self.config
    }

    /// What it was opened with.
    #[must_use]
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// Where its objects are.
    #[must_use]
    pub fn sink(&self) -> &Arc<dyn Sink> {
        &self.sink
    }

    /// Where its ledger is.
    #[must_use]
    pub fn manifest(&self) -> &Arc<dyn Manifest> {
        &self.manifest
    }

    /// What a person should know about it.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn index_dir(&self) -> PathBuf {
        self.options.cache.join(self.config.repository.to_string()).join("index")
    }

    /// The packs that collectors have doomed. To be read before the index.
    async fn doomed(&self, cx: &Context) -> Result<HashSet<PackId>> {
        let mut tombstones = self.sink.list(cx, Some(&Key::new("tombstones")?));
        match cx.run(tombstones.try_next()).await? {
            None => Ok(HashSet::new()),
            // This program collects nothing, so it must not guess what a newer one has doomed.
            Some(entry) => Err(Error::new(
                Reason::FormatMismatch,
                "the repository was collected by a newer program, which this one does not understand",
            )
            .with("key", entry.key)),
        }
    }

    /// How many packs the index lists, and the keys of those that are gone or cut short. Nothing is read of them.
    ///
    /// # Errors
    ///
    /// Whatever the store says, and a damaged index.
    pub async fn lost_packs(&self, cx: &Context) -> Result<(u64, Vec<String>)> {
        let (index, _) = self.load_index(cx).await?;
        index.unlisted_packs(cx, &self.sink).await?;
        let lost = index.lost_packs().into_iter();
        let lost =
            lost.map(|id| Ok(crate::pack::pack_key(id)?.to_string())).collect::<Result<_>>()?;
        Ok((index.packs().len() as u64, lost))
    }

    /// Packs that are there, and that a verify on this machine has read and found damaged.
    pub async fn damaged_packs(&self, cx: &Context) -> Result<Vec<String>> {
        let mut damaged = Vec::new();
        for id in self.local.damaged_packs(cx).await? {
            let key = crate::pack::pack_key(id)?;
            match cx.run(self.sink.get(cx, &key, Some(0..1))).await {
                Ok(_) => damaged.push(key.to_string()),
                // Where it is gone, that is told elsewhere.
                Err(e) if e.reason() == Reason::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(damaged)
    }

    /// Load the index.
    async fn load_index(&self, cx: &Context) -> Result<(Index, LoadReport)> {
        self.load_index_in(cx, self.index_dir()).await
    }

    /// Load the index through another cache directory.
    async fn load_index_in(&self, cx: &Context, dir: PathBuf) -> Result<(Index, LoadReport)> {
        let doomed = self.doomed(cx).await?;
        Index::load(cx, &self.sink, dir, self.credential.writer.clone(), doomed).await
    }
}
