//! Packs read whole: what is wrong with them.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::context::Context;
use crate::engine::check::Awaited;
use crate::engine::read::ChunkReader;
use crate::error::Result;
use crate::id::{ChunkId, PackId};
use crate::index::Place;
use crate::index::rows::{RowSum, RowSummer};
use crate::pack::{MAX_PACK, PackContents, PackedFrame, pack_key, read_pack};
use crate::progress::Counter;
use crate::seal::FrameSealer;

/// A pack that was read whole.
pub(crate) struct PackRead {
    pub(super) id: PackId,
    pub(super) len: u64,
    pub(super) found: PackFindings,
    /// The index says that more is in it than its trailer does.
    pub(super) surplus: bool,
}

/// Read packs whole, several at once, and compare every chunk with its name. One at a time as long as checks
/// wait for contents.
pub(crate) async fn read_packs(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    mut packs: Vec<(PackId, u64)>,
    awaited: &Awaited,
) -> Result<Vec<PackRead>> {
    packs.sort_unstable();
    let (index, summer) = (Arc::clone(reader.index()), Arc::new(RowSummer::new(cx)?));
    let rows = {
        let summer = Arc::clone(&summer);
        &cx.blocking(move || index.sum_rows(&summer)).await?
    };
    cx.progress().expect_bytes(packs.iter().map(|(_, size)| size).sum());
    // Each holds a pack, one opened frame and its raw bytes: see the memory budget. One more than computes is
    // fetched meanwhile.
    let concurrency = reader.sink().info().concurrency;
    let at_once = concurrency.clamp(1, cx.parallelism().clamp(1, 2) + 1);
    let turn = &tokio::sync::Mutex::new(());
    stream::iter(packs)
        .map(|(id, size)| {
            let (reader, summer) = (Arc::clone(reader), Arc::clone(&summer));
            async move {
                let _alone = cx.run(async { Ok(awaited.turn(turn).await) }).await?;
                let key = pack_key(id)?;
                if size > MAX_PACK {
                    let whole = Some("it is longer than a pack may be".to_owned());
                    let found = PackFindings { whole, opaque: true, ..Default::default() };
                    return Ok(PackRead { id, len: 0, found, surplus: false });
                }
                let bytes = match cx.run(reader.sink().get(cx, &key, None)).await {
                    Ok(bytes) => bytes,
                    Err(e) if e.is_passing() => return Err(e),
                    Err(e) => {
                        let whole = Some(e.chain());
                        let found = PackFindings { whole, opaque: true, ..Default::default() };
                        return Ok(PackRead { id, len: 0, found, surplus: false });
                    }
                };
                cx.progress().add(Counter::Bytes, size);
                let len = bytes.len() as u64;
                let listed = Listed { sum: rows.get(&id).copied().unwrap_or_default(), summer };
                let (found, surplus) = examine_pack(cx, &reader, listed, id, bytes).await?;
                Ok(PackRead { id, len, found, surplus })
            }
        })
        .buffer_unordered(at_once)
        .try_collect()
        .await
}

/// What is wrong with a pack.
#[derive(Default)]
pub(crate) struct PackFindings {
    /// As a whole.
    pub(super) whole: Option<String>,
    /// Its chunks that cannot be had.
    pub(super) bad: Vec<(ChunkId, String)>,
    /// What it holds could not be read from it: each chunk has to be tried.
    pub(super) opaque: bool,
}

/// What the index says of a pack.
struct Listed {
    sum: RowSum,
    summer: Arc<RowSummer>,
}

impl Listed {
    /// Whether it says more of a pack than the pack's trailer: that has to be tried.
    fn exceeds(&self, reader: &ChunkReader, contents: &PackContents) -> Result<bool> {
        if self.sum.repeats(&self.summer.of_pack(contents)) {
            return Ok(false);
        }
        // Some of it may be missing, and the rest right.
        Ok(self.sum.rows() > count_rows(reader, contents)?)
    }
}

/// Stored bytes of frames that are examined in one piece of work: others who compute get their turn between.
const SLICE: u64 = 2 << 20;

async fn examine_pack(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    listed: Listed,
    id: PackId,
    bytes: Bytes,
) -> Result<(PackFindings, bool)> {
    let mut findings = PackFindings::default();
    let this = Arc::clone(reader);
    let opened = cx.compute(move || {
        let contents = read_pack(id, &bytes, this.keys());
        let opened = match contents {
            Ok(contents) => {
                let surplus = listed.exceeds(&this, &contents)?;
                let sealer = this.open_header(&contents.header).map_err(|e| e.chain());
                Ok((contents, sealer, surplus))
            }
            Err(e) => Err(e),
        };
        Ok((Vec::from(bytes), opened))
    });
    let (mut pack, opened) = opened.await?;
    let (contents, sealer, surplus) = match opened {
        Ok((contents, sealer, surplus)) => (Arc::new(contents), Arc::new(sealer), surplus),
        // What its own trailer says counts no more: another pack may stand here.
        Err(e) => {
            let found = PackFindings { whole: Some(e.chain()), opaque: true, ..findings };
            return Ok((found, false));
        }
    };
    let mut from = 0;
    while from < contents.frames.len() {
        let mut len = 0;
        let mut to = from;
        while to < contents.frames.len() && (to == from || len < SLICE) {
            len += u64::from(contents.frames[to].stored);
            to += 1;
        }
        let (this, contents, sealer) =
            (Arc::clone(reader), Arc::clone(&contents), Arc::clone(&sealer));
        let work = cx.compute(move || {
            let mut bad = Vec::new();
            for (number, frame) in (0u32..).zip(&contents.frames).take(to).skip(from) {
                // A check has read it.
                if this.proven().is_some_and(|proven| proven.has(&contents, number)) {
                    continue;
                }
                let raw = sealer.as_ref().as_ref().map_err(String::clone).and_then(|sealer| {
                    open_frame(&this, sealer, u64::from(number), frame, &mut pack)
                        .map_err(|e| e.chain())
                });
                examine_frame(&this, frame, &raw, &mut bad);
            }
            Ok((pack, bad))
        });
        let bad;
        (pack, bad) = work.await?;
        findings.bad.extend(bad);
        from = to;
    }
    findings.whole = findings.bad.first().map(|(_, what)| what.clone());
    Ok((findings, surplus))
}

/// How many rows of the index say of this pack what its trailer says.
fn count_rows(reader: &ChunkReader, contents: &PackContents) -> Result<u64> {
    let mut rows = 0;
    for (number, frame) in contents.frames.iter().enumerate() {
        let mut start = 0;
        for chunk in &frame.chunks {
            let is_this = |home: &&Place| {
                (home.pack, u64::from(home.frame)) == (contents.id, number as u64)
                    && (home.offset, home.stored, home.raw)
                        == (frame.offset, frame.stored, frame.raw)
                    && (home.start, home.len) == (start, chunk.len)
            };
            rows += reader.index().homes(&chunk.id)?.iter().filter(is_this).count() as u64;
            start += chunk.len;
        }
    }
    Ok(rows)
}

/// The raw bytes of a frame in a pack. It is opened where it lies.
fn open_frame<'p>(
    reader: &ChunkReader,
    sealer: &FrameSealer,
    number: u64,
    frame: &PackedFrame,
    pack: &'p mut [u8],
) -> Result<Cow<'p, [u8]>> {
    let (start, len) = (frame.offset as usize, frame.stored as usize);
    let sealed = pack.get_mut(start..start + len).unwrap_or_default();
    let plain = sealer.open_slice(number, sealed)?;
    reader.codec().decode(plain, frame.raw as usize)
}

/// Compare the chunks of a frame with their names.
fn examine_frame(
    reader: &ChunkReader,
    frame: &PackedFrame,
    raw: &Result<Cow<'_, [u8]>, String>,
    bad: &mut Vec<(ChunkId, String)>,
) {
    let mut at = 0;
    for chunk in &frame.chunks {
        let end = at + chunk.len as usize;
        let what = match raw {
            Ok(raw) if reader.chunk_key().name(&raw[at..end]) == chunk.id => None,
            Ok(_) => Some("content does not fit its name".to_owned()),
            Err(e) => Some(e.clone()),
        };
        bad.extend(what.map(|w| (chunk.id, w)));
        at = end;
    }
}
