//! A sink that is used no quicker than it may be.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use snapkit_core::context::Context;
use snapkit_core::error::Result;
use snapkit_core::key::Key;
use snapkit_core::sink::{ObjectStream, Put, PutMode, Sink, SinkInfo};

use crate::settings::Rates;

/// Another sink, with pauses.
#[derive(Debug)]
pub(crate) struct Limited {
    inner: Arc<dyn Sink>,
    upload: Option<Pace>,
    download: Option<Pace>,
}

/// When the next bytes are due, in one direction.
#[derive(Debug)]
struct Pace {
    rate: NonZeroU64,
    /// On the monotonic clock.
    free: Mutex<Duration>,
}

impl Pace {
    fn new(rate: NonZeroU64) -> Self {
        Self { rate, free: Mutex::default() }
    }

    /// Take a turn of so many bytes: waits until those before it have had their time.
    async fn turn(&self, cx: &Context, bytes: u64) -> Result<()> {
        let wait = {
            let now = cx.monotonic();
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = now.max(*free);
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.get());
            *free = begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            begin.saturating_sub(now)
        };
        if wait.is_zero() { Ok(()) } else { cx.sleep(wait).await }
    }
}

impl Limited {
    /// The sink itself, if nothing limits it.
    pub(crate) fn wrap(inner: Arc<dyn Sink>, rates: Rates) -> Arc<dyn Sink> {
        if rates == Rates::default() {
            return inner;
        }
        Arc::new(Self {
            inner,
            upload: rates.upload.map(Pace::new),
            download: rates.download.map(Pace::new),
        })
    }
}

#[async_trait]
impl Sink for Limited {
    fn info(&self) -> &SinkInfo {
        self.inner.info()
    }

    async fn put(&self, cx: &Context, key: &Key, data: Bytes, mode: PutMode) -> Result<Put> {
        if let Some(pace) = &self.upload {
            pace.turn(cx, data.len() as u64).await?;
        }
        self.inner.put(cx, key, data, mode).await
    }

    async fn get(&self, cx: &Context, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        let bytes = self.inner.get(cx, key, range).await?;
        if let Some(pace) = &self.download {
            pace.turn(cx, bytes.len() as u64).await?;
        }
        Ok(bytes)
    }

    fn list(&self, cx: &Context, prefix: Option<&Key>) -> ObjectStream {
        self.inner.list(cx, prefix)
    }

    async fn delete(&self, cx: &Context, key: &Key) -> Result<()> {
        self.inner.delete(cx, key).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use snapkit_core::context::{Simulated, Timestamp};
    use snapkit_core::memory::MemorySink;
    use snapkit_core::progress::Silent;

    #[tokio::test(start_paused = true)]
    async fn it_takes_the_time_that_it_should() {
        let cx = Context::new(Arc::new(Simulated::new(1, Timestamp(0))), Arc::new(Silent));
        let rates = Rates { upload: NonZeroU64::new(1000), download: NonZeroU64::new(4000) };
        let sink = Limited::wrap(Arc::new(MemorySink::new()), rates);
        for n in 0..5 {
            let key = Key::new(format!("a/{n}")).unwrap();
            sink.put(&cx, &key, Bytes::from(vec![0; 2000]), PutMode::Create).await.unwrap();
        }
        // The last one need not be waited for.
        assert_eq!(cx.monotonic(), Duration::from_secs(8));
        let begun = cx.monotonic();
        for n in 0..5 {
            sink.get(&cx, &Key::new(format!("a/{n}")).unwrap(), None).await.unwrap();
        }
        assert_eq!(cx.monotonic() - begun, Duration::from_secs(2));
        // What waits can be cancelled.
        cx.cancel();
        let key = Key::new("b").unwrap();
        assert!(sink.put(&cx, &key, Bytes::from(vec![0; 9000]), PutMode::Create).await.is_err());
    }
}
