//! The source.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::BytesMut;
use futures_util::TryStreamExt as _;
use snapkit_core::artifact::{ArtifactMeta, Body, ByteStream, SourceName};
use snapkit_core::context::Context;
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::manifest::SourceRecord;
use snapkit_core::registry::{Registry, settings};
use snapkit_core::scratch::Room;
use snapkit_core::source::{
    Capture, Findings, FreezeSpeed, Restore, RestoreRequest, Source, SourceInfo,
};
use snapkit_core::{Error, Result};

use crate::archive::MAX_DOCUMENT;
use crate::capture::NatsCapture;
use crate::config::NatsConfig;
use crate::document::{SUFFIX, StreamDocument};
use crate::look::{Summary, take};
use crate::message::Message;
use crate::restore::NatsRestore;
use crate::server::Server;

/// The word for this kind of source in a stack file.
const KIND: &str = "nats";

/// Teach a registry the kind `nats`.
pub fn register(registry: &mut Registry) {
    registry.register(KIND, |name, value| {
        let config = settings(&name, value)?;
        Ok(Arc::new(Nats::new(name, config)?))
    });
}

/// The streams of one account of NATS JetStream, with their consumers; buckets of keys and of objects are streams.
///
/// A capture fixes the last message of each stream within one or two questions, and takes the streams one after the other into
/// encrypted scratch space (`TMPDIR`), at the server's pace. Each is two artifacts: its configuration and its consumers as
/// `NAME.json`, and its messages as `NAME`, each with number, time, subject, headers and body. What is removed from a stream
/// after the cut, and before the stream is taken, is not captured; nor are consumers without a name of their own.
///
/// Facts: `streams`, `messages`, `consumers` and a digest of all; and of up to 64 streams `NAME.messages`, `NAME.first_seq`,
/// `NAME.last_seq`, `NAME.digest`, `NAME.consumers`, `NAME.consumers.digest`, and how far each consumer is behind.
#[derive(Debug)]
pub struct Nats {
    info: SourceInfo,
    config: NatsConfig,
}

impl Nats {
    /// A source for a server. No I/O.
    ///
    /// # Errors
    ///
    /// `invalid-config` for what is no address, and for settings that do not go together.
    pub fn new(name: SourceName, config: NatsConfig) -> Result<Self> {
        let config = config.plain().map_err(|e| e.with("source", &name))?;
        let settings = serde_json::to_value(&config)
            .map_err(|e| Error::internal("settings cannot be written").caused_by(e))?;
        let info = SourceInfo {
            name,
            kind: KIND.to_owned(),
            settings,
            concurrency: 1,
            freeze: FreezeSpeed::Instant,
        };
        Ok(Self { info, config })
    }
}

#[async_trait]
impl Source for Nats {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    async fn capture(&self, cx: &Context, _: Option<&SourceRecord>) -> Result<Box<dyn Capture>> {
        self.config.check_secrets()?;
        Ok(Box::new(NatsCapture::prepare(cx, &self.config).await?))
    }

    async fn restore(&self, cx: &Context, request: &RestoreRequest) -> Result<Box<dyn Restore>> {
        Ok(Box::new(NatsRestore::prepare(cx, &self.config, request).await?))
    }

    async fn facts(&self, cx: &Context) -> Result<Facts> {
        self.config.check_secrets()?;
        let server = Server::connect(cx, &self.config).await?;
        let room = Room::new(self.config.scratch.unwrap_or(u64::MAX));
        let mut summary = Summary::new(Standing::Observed);
        for name in server.streams(cx, |name| self.config.has(name)).await?.into_keys() {
            let taken = take(cx, &server, &name, &room, None).await?;
            summary.add(&taken.document, &taken.messages.tally);
        }
        let mut facts = summary.facts();
        facts.observe("server.version", server.version.to_string());
        Ok(facts)
    }

    async fn check(&self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<Findings> {
        let mut findings = Findings::default();
        let place = meta.name.as_str();
        match (place.strip_suffix(SUFFIX), body) {
            (Some(stream), Body::Bytes(bytes)) => {
                let json = gather(bytes).await?;
                if let Err(e) = StreamDocument::decode(stream, &json) {
                    findings.add(place, e.chain());
                }
            }
            (None, Body::Records(mut records)) => {
                let mut last = 0;
                while let Some(batch) = records.next_batch(cx).await? {
                    for record in batch {
                        match Message::from_record(record).await {
                            Ok(message) if message.sequence > last => last = message.sequence,
                            Ok(message) => findings.add(
                                place,
                                format!("message {} does not come behind {last}", message.sequence),
                            ),
                            Err(e) if e.is_damage() => findings.add(place, e.chain()),
                            Err(e) => return Err(e),
                        }
                    }
                }
            }
            _ => findings.add(place, "it is of another shape than such an artifact has"),
        }
        Ok(findings)
    }
}

/// A document as a whole.
pub(crate) async fn gather(mut bytes: ByteStream) -> Result<Vec<u8>> {
    let mut text = BytesMut::new();
    while let Some(piece) = bytes.try_next().await? {
        if (text.len() + piece.len()) as u64 > MAX_DOCUMENT {
            return Err(Error::corrupt("a document is longer than it may be"));
        }
        text.extend_from_slice(&piece);
    }
    Ok(text.into())
}
