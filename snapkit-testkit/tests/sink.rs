//! The suite for sinks accepts a sink in memory, and refuses each that is wrong in one way.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future};
use snapkit_core::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::key::Key;
use snapkit_core::memory::MemorySink;
use snapkit_core::sink::{ObjectStream, Put, PutMode, Sink, SinkInfo};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    CreateReplaces,
    CreateLooksThenWrites,
    OverwriteSaysItWasThere,
    OverwriteIsNotAtomic,
    RangesAreClamped,
    MissingIsIo,
    PrefixIsText,
    PrefixIsIgnored,
    ListsOnePage,
    ListsHalfOfAllTwice,
    DeletingTheMissingFails,
    DeleteDoesNothing,
    EmptyObjectsAreLost,
    TakesAnything,
    DroppedPutsAreTorn,
    CancellationIsIo,
}

#[derive(Debug)]
struct Wrong {
    inner: MemorySink,
    defect: Defect,
}

#[async_trait]
impl Sink for Wrong {
    fn info(&self) -> &SinkInfo {
        self.inner.info()
    }

    async fn put(&self, cx: &Context, key: &Key, data: Bytes, mode: PutMode) -> Result<Put> {
        let inner = &self.inner;
        match self.defect {
            Defect::CreateReplaces => {
                inner.put(cx, key, data, PutMode::Overwrite).await?;
                return Ok(Put::Stored);
            }
            Defect::CreateLooksThenWrites if mode == PutMode::Create => {
                if inner.get(cx, key, Some(0..0)).await.is_ok() {
                    return Ok(Put::AlreadyThere);
                }
                tokio::task::yield_now().await;
                return inner.put(cx, key, data, PutMode::Overwrite).await;
            }
            Defect::OverwriteSaysItWasThere => {
                let there = inner.get(cx, key, None).await.is_ok();
                let put = inner.put(cx, key, data, mode).await?;
                return Ok(if there { Put::AlreadyThere } else { put });
            }
            Defect::OverwriteIsNotAtomic if mode == PutMode::Overwrite && data.len() > 10 => {
                inner.put(cx, key, data.slice(..data.len() / 2), mode).await?;
                tokio::task::yield_now().await;
            }
            Defect::DroppedPutsAreTorn
                if data.len() > 10 && inner.get(cx, key, Some(0..0)).await.is_err() =>
            {
                inner.put(cx, key, data.slice(..10), mode).await?;
                tokio::task::yield_now().await;
                return inner.put(cx, key, data, PutMode::Overwrite).await;
            }
            Defect::EmptyObjectsAreLost if data.is_empty() => return Ok(Put::Stored),
            Defect::TakesAnything if data.len() > 64 << 20 => return Ok(Put::Stored),
            Defect::CancellationIsIo if cx.check().is_err() => {
                return Err(Error::new(Reason::Io, "connection reset"));
            }
            _ => {}
        }
        inner.put(cx, key, data, mode).await
    }

    async fn get(&self, cx: &Context, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        let result = self.inner.get(cx, key, range.clone()).await;
        match (self.defect, range, result) {
            (Defect::RangesAreClamped, Some(range), Err(e)) if e.reason() == Reason::Corrupt => {
                let all = self.inner.get(cx, key, None).await?;
                let end = all.len().min(usize::try_from(range.end).unwrap_or(usize::MAX));
                let start = end.min(usize::try_from(range.start).unwrap());
                Ok(all.slice(start..end))
            }
            (Defect::MissingIsIo, _, Err(e)) if e.reason() == Reason::NotFound => {
                Err(Error::new(Reason::Io, "404"))
            }
            (_, _, result) => result,
        }
    }

    fn list(&self, cx: &Context, prefix: Option<&Key>) -> ObjectStream {
        match (self.defect, prefix.cloned()) {
            (Defect::PrefixIsText, Some(prefix)) => self
                .inner
                .list(cx, None)
                .filter(move |item| {
                    let fits = item.as_ref().unwrap().key.as_str().starts_with(prefix.as_str());
                    future::ready(fits)
                })
                .boxed(),
            (Defect::PrefixIsIgnored, _) => self.inner.list(cx, None),
            (Defect::ListsOnePage, prefix) => {
                self.inner.list(cx, prefix.as_ref()).take(1000).boxed()
            }
            (Defect::ListsHalfOfAllTwice, None) => {
                self.inner.list(cx, None).chain(self.inner.list(cx, None).skip(1)).boxed()
            }
            (_, prefix) => self.inner.list(cx, prefix.as_ref()),
        }
    }

    async fn delete(&self, cx: &Context, key: &Key) -> Result<()> {
        match self.defect {
            Defect::DeleteDoesNothing => return Ok(()),
            Defect::DeletingTheMissingFails => drop(self.inner.get(cx, key, None).await?),
            _ => {}
        }
        self.inner.delete(cx, key).await
    }
}

async fn run(defect: Defect) -> std::thread::Result<()> {
    let cx = Context::system();
    let make = async || Arc::new(Wrong { inner: MemorySink::new(), defect }) as Arc<dyn Sink>;
    AssertUnwindSafe(snapkit_testkit::sink::all(&cx, make)).catch_unwind().await
}

#[tokio::test]
async fn a_sink_in_memory_passes() {
    assert!(run(Defect::None).await.is_ok());
}

#[tokio::test]
async fn every_defect_is_seen() {
    use Defect::*;
    for defect in [
        CreateReplaces,
        CreateLooksThenWrites,
        OverwriteSaysItWasThere,
        OverwriteIsNotAtomic,
        RangesAreClamped,
        MissingIsIo,
        PrefixIsText,
        PrefixIsIgnored,
        ListsOnePage,
        ListsHalfOfAllTwice,
        DeletingTheMissingFails,
        DeleteDoesNothing,
        EmptyObjectsAreLost,
        TakesAnything,
        DroppedPutsAreTorn,
        CancellationIsIo,
    ] {
        assert!(run(defect).await.is_err(), "{defect:?} passes the suite");
    }
}
