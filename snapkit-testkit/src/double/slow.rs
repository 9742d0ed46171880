//! A sink that takes its time.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use snapkit_core::context::Context;
use snapkit_core::error::Result;
use snapkit_core::key::Key;
use snapkit_core::sink::{ObjectStream, Put, PutMode, Sink, SinkInfo};

/// Pauses before every operation. With a paused clock it costs no real time.
#[derive(Debug)]
pub struct SlowSink {
    inner: Arc<dyn Sink>,
    latency: Duration,
    bytes_per_second: Option<u64>,
}

impl SlowSink {
    /// Pause so long before each operation.
    #[must_use]
    pub fn new(inner: Arc<dyn Sink>, latency: Duration) -> Self {
        Self { inner, latency, bytes_per_second: None }
    }

    /// And take as long for the bytes of puts and gets as this many per second would. Several
    /// operations at once do not slow each other down.
    #[must_use]
    pub fn bandwidth(mut self, bytes_per_second: u64) -> Self {
        self.bytes_per_second = Some(bytes_per_second.max(1));
        self
    }

    fn transfer(&self, bytes: usize) -> Duration {
        match self.bytes_per_second {
            Some(rate) => Duration::from_secs_f64(bytes as f64 / rate as f64),
            None => Duration::ZERO,
        }
    }
}

#[async_trait]
impl Sink for SlowSink {
    fn info(&self) -> &SinkInfo {
        self.inner.info()
    }

    async fn put(&self, cx: &Context, key: &Key, data: Bytes, mode: PutMode) -> Result<Put> {
        cx.sleep(self.latency + self.transfer(data.len())).await?;
        self.inner.put(cx, key, data, mode).await
    }

    async fn get(&self, cx: &Context, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        cx.sleep(self.latency).await?;
        let data = self.inner.get(cx, key, range).await?;
        cx.sleep(self.transfer(data.len())).await?;
        Ok(data)
    }

    fn list(&self, cx: &Context, prefix: Option<&Key>) -> ObjectStream {
        let (cx, latency) = (cx.clone(), self.latency);
        let listing = self.inner.list(&cx, prefix);
        stream::once(async move {
            match cx.sleep(latency).await {
                Ok(()) => listing,
                Err(e) => stream::once(async { Err(e) }).boxed(),
            }
        })
        .flatten()
        .boxed()
    }

    async fn delete(&self, cx: &Context, key: &Key) -> Result<()> {
        cx.sleep(self.latency).await?;
        self.inner.delete(cx, key).await
    }
}
