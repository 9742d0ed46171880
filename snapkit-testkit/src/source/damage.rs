//! Bodies that turn out to be damaged on their way, as stored content does: the error comes instead
//! of the wrong byte.

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use snapkit_core::artifact::{Body, ByteStream};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Result};
use snapkit_core::record::{Record, RecordReader};
use snapkit_core::tree::{LoadedFile, OpenedFile, TreeEntry, TreeItem, TreeReader};

/// Where a body is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// After so many bytes, entries or records.
    After(u64),
    /// In the content of every file of a tree, which can itself be walked.
    Files,
}

fn damaged() -> Error {
    Error::corrupt("damage put there by the conformance suite")
}

pub(super) fn damage(body: Body, at: Damage) -> Body {
    let left = match at {
        Damage::After(left) => Some(left),
        Damage::Files => None,
    };
    match body {
        Body::Bytes(stream) => Body::Bytes(cut_short(stream, left.unwrap_or(0))),
        Body::Tree(inner) => Body::Tree(Box::new(DamagedTree { inner, left })),
        Body::Records(inner) => {
            Body::Records(Box::new(DamagedRecords { inner, left: left.unwrap_or(0) }))
        }
    }
}

/// So many bytes, and then the error.
fn cut_short(stream: ByteStream, left: u64) -> ByteStream {
    stream
        .map(Some)
        .chain(stream::once(async { None }))
        .scan((left, false), |(left, over), item| {
            let item = match item {
                _ if *over => None,
                Some(Ok(piece)) if piece.len() as u64 <= *left => {
                    *left -= piece.len() as u64;
                    Some(Ok(piece))
                }
                Some(Ok(mut piece)) if *left > 0 => {
                    piece.truncate(usize::try_from(*left).unwrap_or(0));
                    *left = 0;
                    Some(Ok(piece))
                }
                Some(Err(e)) => {
                    *over = true;
                    Some(Err(e))
                }
                Some(Ok(_)) | None => {
                    *over = true;
                    Some(Err(damaged()))
                }
            };
            async { item }
        })
        .boxed()
}

struct DamagedTree {
    inner: Box<dyn TreeReader>,
    left: Option<u64>,
}

#[async_trait]
impl TreeReader for DamagedTree {
    async fn next_batch(&mut self, cx: &Context) -> Result<Option<Vec<TreeItem>>> {
        let Some(left) = &mut self.left else { return self.inner.next_batch(cx).await };
        if *left == 0 {
            return Err(damaged());
        }
        let mut items = self.inner.next_batch(cx).await?.ok_or_else(damaged)?;
        items.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= items.len() as u64;
        Ok(Some(items))
    }

    async fn open(&self, cx: &Context, entry: &TreeEntry) -> Result<OpenedFile> {
        let mut file = self.inner.open(cx, entry).await?;
        if self.left.is_none() {
            file.body = cut_short(file.body, file.entry.kind.content_len() / 2);
        }
        Ok(file)
    }

    async fn load(&self, cx: &Context, entries: &[TreeEntry]) -> Vec<Result<LoadedFile>> {
        match self.left {
            None => entries.iter().map(|_| Err(damaged())).collect(),
            Some(_) => self.inner.load(cx, entries).await,
        }
    }
}

struct DamagedRecords {
    inner: Box<dyn RecordReader>,
    left: u64,
}

#[async_trait]
impl RecordReader for DamagedRecords {
    fn axes(&self) -> &[String] {
        self.inner.axes()
    }

    async fn next_batch(&mut self, cx: &Context) -> Result<Option<Vec<Record>>> {
        if self.left == 0 {
            return Err(damaged());
        }
        let mut records = self.inner.next_batch(cx).await?.ok_or_else(damaged)?;
        records.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= records.len() as u64;
        Ok(Some(records))
    }
}
