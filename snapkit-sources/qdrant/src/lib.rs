//! The collections of a Qdrant: a snapshot of every shard, whichever node of a cluster has it, with the settings, payload
//! indexes, shard keys and aliases that no such snapshot holds.
//!
//! Per shard, because a snapshot of a whole collection holds only what one node has, and brings back nothing where sharding
//! is up to the user and the collection is not there.
//!
//! Interface: <https://api.qdrant.tech/api-reference>. Tried against what Qdrant 1.18.2 was seen to answer.

mod archive;
mod capture;
mod config;
mod document;
mod look;
mod points;
mod restore;
mod server;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use snapkit_core::artifact::{ArtifactMeta, Body, SourceName};
use snapkit_core::context::Context;
use snapkit_core::facts::Facts;
use snapkit_core::manifest::SourceRecord;
use snapkit_core::registry::{self, Registry};
use snapkit_core::source::{
    Capture, Findings, FreezeSpeed, Restore, RestoreRequest, Source, SourceInfo,
};
use snapkit_core::{Error, Result};

use crate::archive::Examiner;
use crate::capture::QdrantCapture;
pub use crate::config::{Method, QdrantConfig, add_secrets};
use crate::document::{CollectionDocument, MAX_DOCUMENT, Part};
use crate::restore::QdrantRestore;

/// What sources of this kind are called.
pub const KIND: &str = "qdrant";

/// How many snapshots are read at once.
const CONCURRENCY: usize = 2;

/// A server whose collections are captured.
#[derive(Debug)]
pub struct Qdrant {
    info: SourceInfo,
    config: Arc<QdrantConfig>,
}

impl Qdrant {
    /// A source of this name. `invalid-config` if its settings make no sense.
    pub fn new(name: SourceName, config: QdrantConfig) -> Result<Self> {
        let config = config.checked().map_err(|e| e.with("source", &name))?;
        let settings = serde_json::to_value(&config)
            .map_err(|e| Error::internal("settings cannot be written").caused_by(e))?;
        let info = SourceInfo {
            name,
            kind: KIND.to_owned(),
            settings,
            concurrency: CONCURRENCY,
            // A server copies all of a shard before it says that it has a snapshot.
            freeze: FreezeSpeed::Slow,
        };
        Ok(Self { info, config: Arc::new(config) })
    }
}

/// Teach a registry this kind.
pub fn register(registry: &mut Registry) {
    registry.register(KIND, |name, settings| {
        let config = registry::settings(&name, settings)?;
        Ok(Arc::new(Qdrant::new(name, config)?))
    });
}

#[async_trait]
impl Source for Qdrant {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    async fn capture(&self, cx: &Context, _: Option<&SourceRecord>) -> Result<Box<dyn Capture>> {
        Ok(Box::new(QdrantCapture::prepare(cx, Arc::clone(&self.config)).await?))
    }

    async fn restore(&self, cx: &Context, request: &RestoreRequest) -> Result<Box<dyn Restore>> {
        Ok(Box::new(QdrantRestore::prepare(cx, &self.config, request).await?))
    }

    async fn facts(&self, cx: &Context) -> Result<Facts> {
        capture::facts(cx, &self.config).await
    }

    async fn check(&self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<Findings> {
        let mut findings = Findings::default();
        let mut body = body.into_bytes()?;
        let wrong = match Part::parse(&meta.name) {
            Some(Part::Shard(..)) => {
                let mut examiner = Examiner::default();
                while let Some(piece) = cx.run(body.try_next()).await? {
                    examiner.take_in(&piece);
                }
                examiner.finish()
            }
            Some(Part::Document(_)) => {
                let mut text = Vec::new();
                while let Some(piece) = cx.run(body.try_next()).await? {
                    if text.len() < MAX_DOCUMENT {
                        text.extend_from_slice(&piece);
                    }
                }
                CollectionDocument::parse(&text).err().map(|e| e.chain())
            }
            None => {
                while cx.run(body.try_next()).await?.is_some() {}
                Some("no part of a collection is called so".to_owned())
            }
        };
        if let Some(wrong) = wrong {
            findings.add(meta.name.as_str(), wrong);
        }
        Ok(findings)
    }
}
