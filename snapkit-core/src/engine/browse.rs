//! Browsing: what a snapshot holds, entry by entry and byte by byte.

use std::sync::Arc;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::artifact::{Body, ByteStream};
use crate::context::Context;
use crate::engine::Repository;
use crate::engine::basis::MAX_REMEMBERED;
use crate::engine::read::ChunkReader;
use crate::engine::records::StoredRecords;
use crate::entries::StoredEntry;
use crate::error::{Error, Reason, Result};
use crate::index::Index;
use crate::manifest::{ArtifactRecord, ChunkList, ChunkRef, ContentRef};
use crate::tree::{EntryKind, EntryPath, TreeEntry};

impl Repository {
    /// What reads this repository's content. Loads the index.
    pub(crate) async fn reader(&self, cx: &Context) -> Result<Arc<ChunkReader>> {
        let (index, _) = self.load_index(cx).await?;
        self.reader_with(index).map(Arc::new)
    }

    pub(crate) fn reader_with(&self, index: Index) -> Result<ChunkReader> {
        ChunkReader::new(
            Arc::clone(&self.sink),
            Arc::new(index),
            &self.credential,
            self.chunk_key.clone(),
            self.options.memory / 4,
        )
    }

    /// The entries of a tree artifact, in order, each with its content's list.
    pub async fn entries(
        &self,
        cx: &Context,
        artifact: &ArtifactRecord,
    ) -> Result<BoxStream<'static, Result<StoredEntry>>> {
        let ContentRef::Tree { entries, .. } = &artifact.content else {
            return Err(Error::invalid(format!("artifact {} is no tree", artifact.meta.name)));
        };
        Ok(self.reader(cx).await?.entries(cx, entries))
    }

    /// All that a list with depth refers to, unless it is too much to be remembered: then nothing.
    pub(crate) async fn parts(&self, cx: &Context, list: &ChunkList) -> Result<Vec<ChunkRef>> {
        if list.depth == 0 {
            return Ok(Vec::new());
        }
        let parts = self.reader(cx).await?.parts(cx, list).map_ok(|(_, part)| part);
        let parts: Vec<_> = parts.take(MAX_REMEMBERED + 1).try_collect().await?;
        Ok(if parts.len() > MAX_REMEMBERED { Vec::new() } else { parts })
    }

    /// The content of an artifact.
    pub async fn open_artifact(&self, cx: &Context, artifact: &ArtifactRecord) -> Result<Body> {
        let reader = self.reader(cx).await?;
        Ok(match &artifact.content {
            ContentRef::Bytes { content } => Body::Bytes(reader.bytes(cx, content)),
            ContentRef::Tree { entries, .. } => {
                let tree = super::select::StoredTreeReader::whole(&reader, cx, entries);
                Body::Tree(Box::new(tree))
            }
            ContentRef::Records { records, axes, count, .. } => {
                let records = StoredRecords::new(&reader, cx, records, axes, *count)?;
                Body::Records(Box::new(records))
            }
        })
    }

    /// One file of a tree artifact, whole: holes are zeros, and a hard link is the file that it names.
    pub async fn open_file(
        &self,
        cx: &Context,
        artifact: &ArtifactRecord,
        path: &EntryPath,
    ) -> Result<ByteStream> {
        let mut wanted = path.clone();
        // A hard link names an earlier entry, which is no hard link.
        for _ in 0..2 {
            let ContentRef::Tree { entries, .. } = &artifact.content else {
                return Err(Error::invalid(format!("artifact {} is no tree", artifact.meta.name)));
            };
            let reader = self.reader(cx).await?;
            let mut entries = reader.entries(cx, entries);
            let mut damage = None;
            let found = loop {
                match entries.next().await {
                    Some(Ok(e)) if e.entry.path == wanted => break Some(e),
                    Some(Ok(e)) if e.entry.path > wanted => break None,
                    Some(Ok(_)) => {}
                    Some(Err(e)) => damage = Some(e),
                    None => break None,
                }
            };
            match found {
                Some(StoredEntry {
                    entry: TreeEntry { kind: EntryKind::HardLink { target }, .. },
                    ..
                }) => {
                    wanted = target;
                }
                Some(StoredEntry {
                    entry: TreeEntry { kind: EntryKind::File { size, extents }, .. },
                    content,
                }) => {
                    let body = reader.bytes(cx, &content);
                    return Ok(match extents {
                        None => body,
                        Some(extents) => super::select::with_holes(body, size, extents),
                    });
                }
                Some(other) => {
                    return Err(Error::invalid(format!("{path} is no file"))
                        .with("kind", other.entry.kind.letter()));
                }
                None => {
                    return Err(damage.unwrap_or_else(|| {
                        Error::new(Reason::NotFound, format!("there is no {path} in this artifact"))
                    }));
                }
            }
        }
        Err(Error::corrupt(format!("{path} is a link to a link")))
    }
}
