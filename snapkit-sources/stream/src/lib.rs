//! One stream of bytes that somebody hands over, such as the output of a dump on standard input.
//!
//! The stream is there once, so nothing pins it: its cut is as wide as it was read. An empty one is refused,
//! because a program that fails often says nothing. It is restored as a file of its name in a directory; there
//! is no original place that it could go back to.

mod capture;
mod restore;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, ByteStream, SourceName};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::facts::Facts;
use snapkit_core::manifest::SourceRecord;
use snapkit_core::registry::{self, Registry};
use snapkit_core::source::{
    Capture, Findings, FreezeSpeed, Restore, RestoreRequest, Source, SourceInfo, Target,
};

pub use crate::capture::{DIGEST, Tally, tally};
pub use crate::restore::FileRestore;

use crate::capture::StreamCapture;

/// What sources of this kind are called.
pub const KIND: &str = "stream";

/// The settings of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// What it is called in the snapshot, and the file that it is restored to.
    pub file: ArtifactName,
}

/// A stream of bytes.
pub struct Stream {
    info: SourceInfo,
    config: StreamConfig,
    /// What is captured; taken by the first capture.
    input: Mutex<Option<ByteStream>>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Stream {
    /// A stream that is captured once.
    pub fn new(name: SourceName, config: StreamConfig, input: ByteStream) -> Result<Self> {
        Self::with(name, config, Some(input))
    }

    /// A stream that was captured and can be restored.
    pub fn captured(name: SourceName, config: StreamConfig) -> Result<Self> {
        Self::with(name, config, None)
    }

    fn with(name: SourceName, config: StreamConfig, input: Option<ByteStream>) -> Result<Self> {
        let settings = serde_json::to_value(&config)
            .map_err(|e| Error::internal("settings cannot be written").caused_by(e))?;
        let info = SourceInfo {
            name,
            kind: KIND.to_owned(),
            settings,
            concurrency: 1,
            freeze: FreezeSpeed::Instant,
        };
        Ok(Self { info, config, input: Mutex::new(input) })
    }
}

/// Teach a registry this kind: what it builds can be restored, not captured.
pub fn register(registry: &mut Registry) {
    registry.register(KIND, |name, settings| {
        let config = registry::settings(&name, settings)?;
        Ok(Arc::new(Stream::captured(name, config)?))
    });
}

#[async_trait]
impl Source for Stream {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    async fn capture(&self, _: &Context, _: Option<&SourceRecord>) -> Result<Box<dyn Capture>> {
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        let input = input.ok_or_else(|| {
            Error::new(
                Reason::Unsupported,
                "a stream is captured while it is handed over, as `snapkit create --stdin` does: it cannot be \
                 opened again",
            )
        })?;
        Ok(Box::new(StreamCapture::new(&self.config, input)))
    }

    async fn restore(&self, cx: &Context, request: &RestoreRequest) -> Result<Box<dyn Restore>> {
        let Target::Directory(directory) = request.target.clone() else {
            return Err(Error::new(
                Reason::Unsupported,
                "a stream has no original place: restore it with --target, or have it with `snapkit dump`",
            ));
        };
        Ok(Box::new(FileRestore::prepare(cx, &self.config.file, directory, request).await?))
    }

    async fn facts(&self, _: &Context) -> Result<Facts> {
        let what = "a stream is gone once it was read: there is nothing to examine";
        Err(Error::new(Reason::Unsupported, what).with("source", &self.info.name))
    }

    async fn check(&self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<Findings> {
        let mut findings = Findings::default();
        let tally = tally(cx, body.into_bytes()?).await?;
        if tally.bytes == 0 {
            findings.add(meta.name.as_str(), "it is empty");
        }
        Ok(findings)
    }
}
