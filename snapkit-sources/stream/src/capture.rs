//! Taking a stream in, with its length and digest on the way.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, ByteStream, Chunking, Shape};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::source::{Capture, CaptureReport, Consistency, Cut};

use crate::StreamConfig;

/// The fact that is the digest of a stream.
pub const DIGEST: &str = "digest";

/// What is known of a stream that was read.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How long it is.
    pub bytes: u64,
    hasher: blake3::Hasher,
}

impl Tally {
    /// Read on.
    pub fn take_in(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.hasher.update(piece);
    }

    /// Its length and digest as facts, which are `pinned` or `observed`.
    #[must_use]
    pub fn facts(&self, standing: Standing) -> Facts {
        let mut facts = Facts::new();
        let mut add = |name: &str, value: snapkit_core::facts::FactValue| match standing {
            Standing::Pinned => facts.pin(name, value),
            _ => facts.observe(name, value),
        };
        add("bytes", self.bytes.into());
        add(DIGEST, self.hasher.finalize().to_hex().to_string().into());
        facts
    }
}

/// Read a stream to its end.
pub async fn tally(cx: &Context, mut body: ByteStream) -> Result<Tally> {
    let mut tally = Tally::default();
    while let Some(piece) = cx.run(body.try_next()).await? {
        tally.take_in(&piece);
    }
    Ok(tally)
}

/// A stream on its way into a snapshot.
pub(crate) struct StreamCapture {
    meta: ArtifactMeta,
    input: Mutex<Option<ByteStream>>,
    named: bool,
    /// What has come, and whether it came to its end.
    tally: Arc<Mutex<(Tally, bool)>>,
}

impl StreamCapture {
    pub(crate) fn new(config: &StreamConfig, input: ByteStream) -> Self {
        // An archive has places where it is cut best.
        let chunking =
            if config.file.as_str().ends_with(".tar") { Chunking::Tar } else { Chunking::Content };
        let media_type = "application/octet-stream";
        Self {
            meta: ArtifactMeta::new(config.file.clone(), Shape::Bytes, media_type, chunking),
            input: Mutex::new(Some(input)),
            named: false,
            tally: Arc::default(),
        }
    }
}

#[async_trait]
impl Capture for StreamCapture {
    async fn freeze(&mut self, cx: &Context) -> Result<Cut> {
        let now = cx.now();
        Ok(Cut { begin: now, end: now, consistency: Consistency::Fuzzy, position: None })
    }

    async fn thaw(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn next(&mut self, _: &Context) -> Result<Option<ArtifactMeta>> {
        Ok((!std::mem::replace(&mut self.named, true)).then(|| self.meta.clone()))
    }

    async fn open(&self, cx: &Context, name: &ArtifactName) -> Result<Body> {
        let cx = cx.clone();
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        let input = input.filter(|_| *name == self.meta.name).ok_or_else(|| {
            Error::new(Reason::NotFound, "a stream can be read once").with("artifact", name)
        })?;
        let (tally, at_end) = (Arc::clone(&self.tally), Arc::clone(&self.tally));
        let counted = input.inspect_ok(move |piece| {
            tally.lock().unwrap_or_else(PoisonError::into_inner).0.take_in(piece);
        });
        let end = stream::once(async move {
            // Who is told to stop is often told together with the program that writes the stream.
            // What came until then is not all of it.
            if let Err(e) = cx.check() {
                return Some(Err(e));
            }
            let mut tally = at_end.lock().unwrap_or_else(PoisonError::into_inner);
            tally.1 = true;
            let what = "the stream is empty: whatever should have written it has written nothing";
            (tally.0.bytes == 0).then(|| Err(Error::new(Reason::SourceMissing, what)))
        });
        Ok(Body::Bytes(Box::pin(counted.chain(end.filter_map(std::future::ready)))))
    }

    async fn finish(self: Box<Self>, _: &Context) -> Result<CaptureReport> {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        match &*tally {
            (tally, true) => Ok(tally.facts(Standing::Pinned).into()),
            (_, false) => Err(Error::internal("the stream was not read to its end")),
        }
    }

    async fn abort(self: Box<Self>, _: &Context) -> Result<()> {
        Ok(())
    }
}
