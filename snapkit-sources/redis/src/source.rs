//! The source.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use snapkit_core::artifact::{ArtifactMeta, Body, SourceName};
use snapkit_core::context::Context;
use snapkit_core::facts::Facts;
use snapkit_core::manifest::SourceRecord;
use snapkit_core::record::RecordValue;
use snapkit_core::registry::{Registry, settings};
use snapkit_core::scratch::{Room, ScratchWriter};
use snapkit_core::source::{
    Capture, Findings, FreezeSpeed, Restore, RestoreRequest, Source, SourceInfo,
};
use snapkit_core::{Error, Result};

use crate::capture::{FUNCTIONS, KEYS, RedisCapture};
use crate::config::RedisConfig;
use crate::facts::{Expired, look};
use crate::functions;
use crate::key;
use crate::rdb;
use crate::restore::RedisRestore;

/// The word for this kind of source in a stack file.
const KIND: &str = "redis";

/// The most bytes of functions that are held to be looked at.
pub(crate) const MAX_TEXT: usize = 80 << 20;

/// Teach a registry the kind `redis`.
pub fn register(registry: &mut Registry) {
    registry.register(KIND, |name, value| {
        let config = settings(&name, value)?;
        Ok(Arc::new(Redis::new(name, config)?))
    });
}

/// One Redis server, or one that speaks its language.
///
/// A capture asks for everything as a replica would, so that it is of one moment, and takes it into encrypted scratch
/// space (`TMPDIR`) at the server's pace. Its artifacts are the keys of all databases, sorted, each with the value as the
/// server wrote it; the functions; and, where this user may ask, access list, configuration without its secrets, modules
/// and what `INFO` says. Of a server whose snapshot cannot be read here, or that has modules, it is one piece.
///
/// A user needs `+ping +psync +replconf`, for all that it says of itself `+info +acl|list +config|get +module|list`,
/// and in a server that is restored into `+@all`.
///
/// Facts: `keys`, `keys.dbN` for up to 64 databases, `expires`, `streams`, `streams.groups`, `streams.pending`,
/// `functions`, and digests of all keys and functions. A digest is of what a value means, not of how the server keeps
/// it. Keys that have expired since do not count.
#[derive(Debug)]
pub struct Redis {
    info: SourceInfo,
    config: RedisConfig,
}

impl Redis {
    /// A source for a server. No I/O.
    ///
    /// # Errors
    ///
    /// `invalid-config` for what is no address.
    pub fn new(name: SourceName, config: RedisConfig) -> Result<Self> {
        let config = config.plain().map_err(|e| e.with("source", &name))?;
        let settings = serde_json::to_value(&config)
            .map_err(|e| Error::internal("settings cannot be written").caused_by(e))?;
        let info = SourceInfo {
            name,
            kind: KIND.to_owned(),
            settings,
            concurrency: 1,
            freeze: FreezeSpeed::Slow,
        };
        Ok(Self { info, config })
    }
}

#[async_trait]
impl Source for Redis {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    async fn capture(&self, cx: &Context, _: Option<&SourceRecord>) -> Result<Box<dyn Capture>> {
        self.config.check_password()?;
        Ok(Box::new(RedisCapture::prepare(cx, &self.config).await?))
    }

    async fn restore(&self, cx: &Context, request: &RestoreRequest) -> Result<Box<dyn Restore>> {
        Ok(Box::new(RedisRestore::prepare(cx, &self.config, request).await?))
    }

    async fn facts(&self, cx: &Context) -> Result<Facts> {
        self.config.check_password()?;
        let own = cx.child();
        let (inner, config) = (own.clone(), self.config.clone());
        let looking = own.blocking(move || Ok(look(&inner, &config, Expired::Counts)?.facts()));
        let looked = cx.run(looking).await;
        own.cancel();
        looked
    }

    async fn check(&self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<Findings> {
        let mut findings = Findings::default();
        let place = meta.name.as_str();
        match (place, body) {
            (KEYS, Body::Records(mut records)) => {
                let room = Room::new(self.config.scratch.unwrap_or(u64::MAX));
                while let Some(batch) = records.next_batch(cx).await? {
                    let mut small = Vec::new();
                    for record in batch {
                        let stored = key::read(record, 0).await?;
                        let encoding = stored.key.encoding;
                        match stored.value {
                            RecordValue::Inline(value) => small.push((encoding, value)),
                            RecordValue::Parts(mut parts) => {
                                let mut writer = ScratchWriter::begin(cx, &room)?;
                                while let Some(part) = parts.try_next().await? {
                                    writer.write(&part)?;
                                }
                                let scratch = writer.finish()?;
                                let read = cx.blocking(move || {
                                    rdb::digest(encoding, scratch.reader(0, u64::MAX)).map(drop)
                                });
                                note(&mut findings, place, read.await)?;
                            }
                        }
                    }
                    let read = cx.blocking(move || {
                        small.iter().try_for_each(|(encoding, value)| {
                            rdb::digest(*encoding, &value[..]).map(drop)
                        })
                    });
                    note(&mut findings, place, read.await)?;
                }
            }
            (FUNCTIONS, Body::Bytes(bytes)) => {
                let text = gather(bytes).await?;
                note(&mut findings, place, functions::split(&text).map(drop))?;
            }
            (_, Body::Bytes(mut bytes)) => while bytes.try_next().await?.is_some() {},
            _ => findings.add(place, "it is of another shape than such an artifact has"),
        }
        Ok(findings)
    }
}

/// Damage is a finding; whatever else went wrong is not about what is stored.
fn note(findings: &mut Findings, place: &str, result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.is_damage() => {
            findings.add(place, e.chain());
            Ok(())
        }
        other => other,
    }
}

/// A text as a whole.
pub(crate) async fn gather(mut bytes: snapkit_core::artifact::ByteStream) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    while let Some(piece) = bytes.try_next().await? {
        if text.len() + piece.len() > MAX_TEXT {
            return Err(Error::corrupt("a text is longer than it may be"));
        }
        text.extend_from_slice(&piece);
    }
    Ok(text)
}
