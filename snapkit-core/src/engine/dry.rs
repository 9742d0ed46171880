//! A sink to which nothing is written: for runs of which nothing is kept.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::sink::{ObjectStream, Put, PutMode, Sink, SinkInfo};

/// Reads from another sink, and takes what is put for stored.
#[derive(Debug)]
pub(crate) struct DrySink(pub(crate) Arc<dyn Sink>);

#[async_trait]
impl Sink for DrySink {
    fn info(&self) -> &SinkInfo {
        self.0.info()
    }

    async fn put(&self, _: &Context, _: &Key, _: Bytes, _: PutMode) -> Result<Put> {
        Ok(Put::Stored)
    }

    async fn get(&self, cx: &Context, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        self.0.get(cx, key, range).await
    }

    fn list(&self, cx: &Context, prefix: Option<&Key>) -> ObjectStream {
        self.0.list(cx, prefix)
    }

    async fn delete(&self, _: &Context, _: &Key) -> Result<()> {
        Err(Error::internal("a run of which nothing is kept deletes nothing"))
    }
}
