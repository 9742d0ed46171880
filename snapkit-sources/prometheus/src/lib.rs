//! The blocks of a Prometheus server: captured from a snapshot that it makes of all that it has, memory included, and put
//! back into a data directory.
//!
//! The server's interface gives only the name of a snapshot; its files are read where it makes them, below its data
//! directory. They are hard links to blocks that never change, so that a block that was captured before is not read
//! again. Every checksum in files of samples is tried on the way.
//!
//! Formats: <https://github.com/prometheus/prometheus/tree/main/tsdb/docs/format>. Tried with Prometheus 2.42.

mod block;
mod capture;
mod config;
mod examine;
mod pin;
mod restore;
mod retention;
mod server;
mod tally;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use snapkit_core::artifact::{ArtifactMeta, Body, SourceName};
use snapkit_core::context::Context;
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::manifest::SourceRecord;
use snapkit_core::registry::{self, Registry};
use snapkit_core::source::{
    Capture, Findings, FreezeSpeed, Restore, RestoreRequest, Source, SourceInfo,
};
use snapkit_core::{Error, Result};

use crate::block::BlockFile;
use crate::capture::PrometheusCapture;
pub use crate::config::{PrometheusConfig, add_secrets};
use crate::examine::Examiner;
use crate::restore::PrometheusRestore;

/// What sources of this kind are called.
pub const KIND: &str = "prometheus";

/// How many files are read at once.
const CONCURRENCY: usize = 2;

/// A server whose blocks are captured.
#[derive(Debug)]
pub struct Prometheus {
    info: SourceInfo,
    config: Arc<PrometheusConfig>,
}

impl Prometheus {
    /// A source of this name. `invalid-config` if its settings make no sense.
    pub fn new(name: SourceName, config: PrometheusConfig) -> Result<Self> {
        let config = config.checked().map_err(|e| e.with("source", &name))?;
        let settings = serde_json::to_value(&config)
            .map_err(|e| Error::internal("settings cannot be written").caused_by(e))?;
        let info = SourceInfo {
            name,
            kind: KIND.to_owned(),
            settings,
            concurrency: CONCURRENCY,
            // What it has in memory is written to the disk.
            freeze: FreezeSpeed::Slow,
        };
        Ok(Self { info, config: Arc::new(config) })
    }
}

/// Teach a registry this kind.
pub fn register(registry: &mut Registry) {
    registry.register(KIND, |name, settings| {
        let config = registry::settings(&name, settings)?;
        Ok(Arc::new(Prometheus::new(name, config)?))
    });
}

#[async_trait]
impl Source for Prometheus {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    async fn capture(
        &self,
        cx: &Context,
        basis: Option<&SourceRecord>,
    ) -> Result<Box<dyn Capture>> {
        let config = Arc::clone(&self.config);
        Ok(Box::new(PrometheusCapture::prepare(cx, config, basis).await?))
    }

    async fn restore(&self, cx: &Context, request: &RestoreRequest) -> Result<Box<dyn Restore>> {
        let config = Arc::clone(&self.config);
        Ok(Box::new(PrometheusRestore::prepare(cx, config, request).await?))
    }

    /// Counts of what the server has, without reading it.
    async fn facts(&self, cx: &Context) -> Result<Facts> {
        let config = Arc::clone(&self.config);
        let mut capture: Box<dyn Capture> =
            Box::new(PrometheusCapture::prepare(cx, config, None).await?);
        let frozen = capture.freeze(cx).await;
        let thawed = capture.thaw(cx).await;
        match frozen.and(thawed) {
            Ok(()) => Ok(capture.finish(cx).await?.facts),
            Err(e) => capture.abort(cx).await.and(Err(e)),
        }
        .map(|mut facts| {
            let pinned = facts.0.values_mut().filter(|fact| fact.standing == Standing::Pinned);
            pinned.for_each(|fact| fact.standing = Standing::Observed);
            facts
        })
    }

    async fn check(&self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<Findings> {
        let mut findings = Findings::default();
        let mut body = body.into_bytes()?;
        let examined = match BlockFile::parse(&meta.name) {
            Ok(file) => {
                let mut examiner = Examiner::new(&file.block, file.kind);
                while let Some(piece) = cx.run(body.try_next()).await? {
                    examiner.take_in(&piece);
                }
                examiner.finish().wrong
            }
            Err(e) => {
                while cx.run(body.try_next()).await?.is_some() {}
                Some(e.message().to_owned())
            }
        };
        if let Some(wrong) = examined {
            findings.add(meta.name.as_str(), wrong);
        }
        Ok(findings)
    }
}
