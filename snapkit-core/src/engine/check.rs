//! Asking the sources whether what is stored would restore.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::future::ready;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{Mutex, MutexGuard, watch};

use crate::artifact::{Body, ByteStream};
use crate::context::Context;
use crate::engine::cut::guarded;
use crate::engine::examine::Chosen;
use crate::engine::read::ChunkReader;
use crate::engine::records::StoredRecords;
use crate::engine::select::StoredTreeReader;
use crate::error::{Error, Reason, Result};
use crate::manifest::{ArtifactRecord, ChunkList, ContentRef, Snapshot, SourceRecord};
use crate::registry::Registry;
use crate::source;

/// How many artifacts are checked by their sources at once: what one spends examining, the other reads.
const CHECKS_AT_ONCE: usize = 2;

/// Contents that checks are reading. What a check then does with one, such as examining a database, keeps one
/// core busy for long: it is to begin early, so that other work goes on beside it.
pub(crate) struct Awaited(watch::Sender<usize>);

/// A content that is being read.
struct Reading(watch::Sender<usize>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

impl Awaited {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    /// The stream counts as being read until it has been, or is dropped.
    fn until_its_end(&self, stream: ByteStream) -> ByteStream {
        self.0.send_modify(|n| *n += 1);
        let reading = Reading(self.0.clone());
        let end = stream::once(async move {
            drop(reading);
            None
        });
        Box::pin(stream.chain(end.filter_map(ready)))
    }

    /// Wait until no content is being read any more, or there is nobody else who goes on nevertheless.
    pub(crate) async fn turn<'t>(&self, alone: &'t Mutex<()>) -> Option<MutexGuard<'t, ()>> {
        let mut count = self.0.subscribe();
        tokio::select! {
            biased;
            _ = count.wait_for(|n| *n == 0) => None,
            guard = alone.lock() => Some(guard),
        }
    }
}

/// What a source says about an artifact that is not as it should be, or could not be checked.
pub(crate) struct Answer {
    /// Which: snapshot, source and artifact.
    pub(super) place: String,
    pub(super) checked: Result<source::Findings>,
}

/// An artifact that its source is asked about.
struct Question {
    snapshot: Arc<Snapshot>,
    source: usize,
    artifact: usize,
}

impl Question {
    fn source(&self) -> &SourceRecord {
        &self.snapshot.sources[self.source]
    }

    fn artifact(&self) -> &ArtifactRecord {
        &self.source().artifacts[self.artifact]
    }

    fn list(&self) -> &ChunkList {
        self.artifact().content.list()
    }

    /// How long a content is that one core is busy with.
    fn weight(&self) -> u64 {
        match &self.artifact().content {
            ContentRef::Bytes { content } => content.size,
            ContentRef::Tree { .. } | ContentRef::Records { .. } => 0,
        }
    }
}

/// Ask the sources whether artifacts would restore; the same content once. Contents of files are not read for
/// it: their packs are read meanwhile, and what is found bad there counts.
pub(crate) async fn ask(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    registry: &Registry,
    chosen: &Chosen<'_>,
    awaited: &Awaited,
) -> Result<Vec<Answer>> {
    let mut asked = HashSet::new();
    chosen
        .snapshots(cx)
        .flat_map(|(_, snapshot)| {
            stream::iter(match snapshot {
                Ok(snapshot) => questions(chosen, snapshot, &mut asked),
                Err(e) if e.is_passing() => vec![Err(e)],
                // That it is damaged, or was forgotten meanwhile, is seen by who examines it.
                Err(_) => Vec::new(),
            })
        })
        .map(async |question: Result<Question>| {
            answer(cx, reader, registry, &question?, awaited).await
        })
        .buffered(CHECKS_AT_ONCE)
        .try_filter_map(|answer| ready(Ok(answer)))
        .try_collect()
        .await
}

/// What is to be asked about a snapshot and was not asked about another. What takes one core for long begins
/// first.
fn questions(
    chosen: &Chosen<'_>,
    snapshot: Snapshot,
    asked: &mut HashSet<[u8; 32]>,
) -> Vec<Result<Question>> {
    let snapshot = Arc::new(snapshot);
    let mut questions = Vec::new();
    for (source, record) in snapshot.sources.iter().enumerate() {
        if !chosen.wants(record) {
            continue;
        }
        for artifact in 0..record.artifacts.len() {
            let question = Question { snapshot: Arc::clone(&snapshot), source, artifact };
            if asked.insert(digest(question.list())) {
                questions.push(question);
            }
        }
    }
    questions.sort_by_key(|question| Reverse(question.weight()));
    questions.into_iter().map(Ok).collect()
}

/// What tells a content from every other.
fn digest(list: &ChunkList) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&list.size.to_le_bytes()).update(&[list.depth]);
    for chunk in &list.chunks {
        hasher.update(&chunk.id.0).update(&chunk.len.to_le_bytes());
    }
    hasher.finalize().into()
}

/// What the source says, if there is anything to be said.
async fn answer(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    registry: &Registry,
    question: &Question,
    awaited: &Awaited,
) -> Result<Option<Answer>> {
    let (record, artifact) = (question.source(), question.artifact());
    let place = format!("{}:{}/{}", question.snapshot.id, record.name, artifact.meta.name);
    let built = registry.build_captured(&question.snapshot.stack, record);
    let checked = match built {
        Ok(source) => match body(cx, reader, artifact, awaited) {
            Ok(body) => guarded(cx.run(source.check(cx, &artifact.meta, body))).await,
            Err(e) => Err(e),
        },
        Err(e) if !registry.kinds().any(|kind| kind == record.kind) => {
            Err(Error::new(Reason::Unsupported, e.chain()))
        }
        Err(e) => Err(e),
    };
    match checked {
        Err(e) if e.is_cancelled() => Err(e),
        Ok(found) if found.0.is_empty() => Ok(None),
        checked => Ok(Some(Answer { place, checked })),
    }
}

fn body(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    artifact: &ArtifactRecord,
    awaited: &Awaited,
) -> Result<Body> {
    Ok(match &artifact.content {
        ContentRef::Bytes { content } => {
            Body::Bytes(awaited.until_its_end(reader.bytes(cx, content)))
        }
        ContentRef::Tree { entries, .. } => {
            Body::Tree(Box::new(StoredTreeReader::verified(reader, cx, entries)))
        }
        ContentRef::Records { records, axes, count, .. } => {
            Body::Records(Box::new(StoredRecords::new(reader, cx, records, axes, *count)?))
        }
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_goes_on_while_a_content_is_being_read_and_all_after_its_end() {
        let awaited = Awaited::new();
        let alone = Mutex::new(());
        assert!(awaited.turn(&alone).await.is_none());

        let pieces = [Ok(Bytes::from_static(b"one")), Ok(Bytes::from_static(b"two"))];
        let mut content = awaited.until_its_end(Box::pin(stream::iter(pieces)));
        let first = awaited.turn(&alone).await;
        assert!(first.is_some(), "somebody has to go on");
        assert!(awaited.turn(&alone).now_or_never().is_none(), "and nobody else");
        assert_eq!(content.next().await.unwrap().unwrap(), "one");
        assert_eq!(content.next().await.unwrap().unwrap(), "two");
        assert!(awaited.turn(&alone).now_or_never().is_none(), "its end has not been seen");
        assert!(content.next().await.is_none());
        assert!(
            awaited.turn(&alone).await.is_none(),
            "it counts no more, although it is still there"
        );

        drop(awaited.until_its_end(Box::pin(stream::pending())));
        assert!(awaited.turn(&alone).now_or_never().is_some(), "what is dropped counts no more");
        drop((first, content));
    }
}
