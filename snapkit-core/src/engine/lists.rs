//! Walking chunk lists: to what they refer to, the bytes of a content and the entries of a tree.

use std::sync::Arc;

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::artifact::{ByteStream, MAX_PIECE};
use crate::context::Context;
use crate::engine::read::ChunkReader;
use crate::entries::{LONGEST_TREE_CHUNK, StoredEntry, check_list, decode_entry, decode_node};
use crate::error::{Error, Result};
use crate::manifest::{ChunkList, ChunkRef};
use crate::tree::EntryPath;

impl ChunkReader {
    /// The references of a content's chunks, in order. A node that cannot be read is an error in its place.
    pub(crate) fn refs(
        self: &Arc<Self>,
        cx: &Context,
        list: &ChunkList,
    ) -> BoxStream<'static, Result<ChunkRef>> {
        let chunks = self
            .parts(cx, list)
            .try_filter_map(|(depth, chunk)| async move { Ok((depth == 0).then_some(chunk)) });
        chunks.boxed()
    }

    /// All that a list refers to, nested or not, each with its depth: the chunks of the content have none,
    /// a node comes before what it refers to.
    pub(crate) fn parts(
        self: &Arc<Self>,
        cx: &Context,
        list: &ChunkList,
    ) -> BoxStream<'static, Result<(u8, ChunkRef)>> {
        if let Err(why) = check_list(list) {
            return stream::iter([Err(Error::corrupt(format!(
                "a chunk list is malformed: {why}"
            )))])
            .boxed();
        }
        if list.depth == 0 {
            return stream::iter(list.chunks.clone().into_iter().map(|c| Ok((0, c)))).boxed();
        }
        let stack = vec![(list.depth, list.chunks.clone().into_iter())];
        // Bytes still to come; unknown once a part is missing.
        let state = (Arc::clone(self), cx.clone(), stack, Some(list.size));
        stream::unfold(state, |(this, cx, mut stack, mut left)| async move {
            loop {
                let Some((depth, refs)) = stack.last_mut() else {
                    let short = left.is_some_and(|n| n > 0);
                    let error = || Error::corrupt("a chunk list is shorter than its content");
                    return short.then(|| (Err(error()), (this, cx, stack, None)));
                };
                let depth = *depth;
                let Some(next) = refs.next() else {
                    stack.pop();
                    continue;
                };
                if depth == 0 {
                    if let Some(n) = left {
                        let Some(rest) = n.checked_sub(u64::from(next.len)) else {
                            let e = Error::corrupt("a chunk list is longer than its content");
                            return Some((Err(e), (this, cx, Vec::new(), None)));
                        };
                        left = Some(rest);
                    }
                    return Some((Ok((0, next)), (this, cx, stack, left)));
                }
                match this.chunk(&cx, next).await.and_then(|b| decode_node(&b)) {
                    Ok(refs) => stack.push((depth - 1, refs.into_iter())),
                    Err(e) => return Some((Err(e), (this, cx, stack, None))),
                }
                return Some((Ok((depth, next)), (this, cx, stack, left)));
            }
        })
        .boxed()
    }

    /// The bytes of a content, in pieces; it ends with the first error.
    pub(crate) fn bytes(self: &Arc<Self>, cx: &Context, list: &ChunkList) -> ByteStream {
        let chunks = self.chunks(cx, self.refs(cx, list));
        let pieces = chunks.map_ok(|chunk| {
            let n = chunk.len().div_ceil(MAX_PIECE);
            stream::iter((0..n).map(move |i| {
                Ok::<_, Error>(chunk.slice(i * MAX_PIECE..chunk.len().min((i + 1) * MAX_PIECE)))
            }))
        });
        // What follows a gap is not what comes next.
        Box::pin(pieces.try_flatten().scan(false, |failed, piece| {
            let next = (!*failed).then_some(piece);
            *failed = matches!(next, Some(Err(_)));
            std::future::ready(next)
        }))
    }

    /// The entries of a tree, in order. A part that cannot be read is an error in its place, and the
    /// stream goes on behind it.
    pub(crate) fn entries(
        self: &Arc<Self>,
        cx: &Context,
        list: &ChunkList,
    ) -> BoxStream<'static, Result<StoredEntry>> {
        let mut last: Option<EntryPath> = None;
        self.chunks(cx, self.refs(cx, list))
            .flat_map(|chunk| {
                let mut entries = Vec::new();
                match chunk {
                    Err(e) => entries.push(Err(e)),
                    Ok(chunk) if chunk.len() > LONGEST_TREE_CHUNK => {
                        entries.push(Err(Error::corrupt("a piece of a tree is too long")));
                    }
                    Ok(chunk) => {
                        let mut rest = &chunk[..];
                        while !rest.is_empty() {
                            match decode_entry(rest) {
                                Ok((entry, after)) => {
                                    entries.push(Ok(entry));
                                    rest = after;
                                }
                                Err(e) => {
                                    entries.push(Err(e));
                                    break;
                                }
                            }
                        }
                    }
                }
                stream::iter(entries)
            })
            .map(move |entry| {
                let entry: StoredEntry = entry?;
                if last.as_ref().is_some_and(|l| *l >= entry.entry.path) {
                    return Err(Error::corrupt("a tree's entries are out of order")
                        .with("path", &entry.entry.path));
                }
                last = Some(entry.entry.path.clone());
                Ok(entry)
            })
            .boxed()
    }
}
