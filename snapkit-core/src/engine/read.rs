//! Reading chunks: from their names back to their bytes. Every chunk is compared with its name before a byte
//! of it is handed on.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::sync::{OnceCell, OwnedSemaphorePermit};

use crate::chunk::ChunkKey;
use crate::context::Context;
use crate::credential::Credential;
use crate::engine::ahead::{Budget, Turn, Turns};
use crate::engine::proven::Proven;
use crate::error::{Error, Reason, Result};
use crate::frame::{FRAME_TARGET, FrameCodec};
use crate::id::PackId;
use crate::index::{Index, Place};
use crate::manifest::ChunkRef;
use crate::pack::pack_key;
use crate::seal::{FrameSealer, Header, ReaderKey, WriterKeys};
use crate::sink::Sink;

/// Frames that are fetched ahead.
const FRAMES_AHEAD: usize = 8;

/// Decoded frames that are remembered.
const FRAMES_KEPT: usize = 32;

/// Packs whose keys are remembered.
const SEALERS_KEPT: usize = 1024;

/// Chunks whose places are looked up at once.
const LOOKUP: usize = 256;

/// Reads chunks of one repository.
#[derive(Debug)]
pub(crate) struct ChunkReader {
    sink: Arc<dyn Sink>,
    index: Arc<Index>,
    reader: ReaderKey,
    keys: WriterKeys,
    chunk_key: ChunkKey,
    codec: FrameCodec,
    budget: Budget,
    sealers: Mutex<HashMap<PackId, Arc<FrameSealer>>>,
    frames: Mutex<VecDeque<((PackId, u32), Bytes)>>,
    /// The index was read again because something was missing.
    refreshed: OnceCell<()>,
    /// Frames that were read whole, if they are remembered.
    proven: Option<Proven>,
}

/// Chunks that lie in one frame, in order.
struct FrameRead {
    chunks: Vec<(ChunkRef, Vec<Place>)>,
}

/// Where the raw bytes of a frame come from.
enum FrameSource {
    /// They were read before.
    Kept(Bytes),
    /// As they are stored, with a share of the budget for what they become.
    Sealed(Bytes, Option<OwnedSemaphorePermit>),
}

/// A decoded frame with its share of the budget.
struct Held {
    bytes: Vec<u8>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl ChunkReader {
    /// A reader that holds at most `memory` bytes of frames that are read ahead.
    pub(crate) fn new(
        sink: Arc<dyn Sink>,
        index: Arc<Index>,
        credential: &Credential,
        chunk_key: ChunkKey,
        memory: u64,
    ) -> Result<Self> {
        Ok(Self {
            sink,
            index,
            reader: credential.reader()?.clone(),
            keys: credential.writer.clone(),
            chunk_key,
            codec: FrameCodec::new(false),
            budget: Budget::new(memory),
            sealers: Mutex::default(),
            frames: Mutex::default(),
            refreshed: OnceCell::new(),
            proven: None,
        })
    }

    /// The same, and it remembers which frames it has read whole: see [`Proven`].
    pub(crate) fn that_remembers(mut self) -> Self {
        self.proven = Some(Proven::default());
        self
    }

    /// The frames that were read whole, if they are remembered.
    pub(crate) fn proven(&self) -> Option<&Proven> {
        self.proven.as_ref()
    }

    pub(crate) fn index(&self) -> &Arc<Index> {
        &self.index
    }

    pub(crate) fn keys(&self) -> &WriterKeys {
        &self.keys
    }

    pub(crate) fn chunk_key(&self) -> &ChunkKey {
        &self.chunk_key
    }

    pub(crate) fn codec(&self) -> &FrameCodec {
        &self.codec
    }

    pub(crate) fn sink(&self) -> &Arc<dyn Sink> {
        &self.sink
    }

    /// What opens the frames of a pack with this header.
    pub(crate) fn open_header(&self, header: &Header) -> Result<FrameSealer> {
        self.reader.open(header, "")
    }

    /// A chunk from one home, and no other.
    pub(crate) async fn chunk_at(
        self: &Arc<Self>,
        cx: &Context,
        chunk: ChunkRef,
        home: &Place,
    ) -> Result<()> {
        let chunks = [(chunk, vec![home.clone()])];
        Arc::clone(self).read_from(cx, home, &chunks, None).await.map(drop)
    }

    /// The homes of chunks; a chunk without one has been looked for everywhere.
    async fn places(
        self: &Arc<Self>,
        cx: &Context,
        chunks: Vec<ChunkRef>,
    ) -> Result<Vec<(ChunkRef, Vec<Place>)>> {
        let lookup = |this: Arc<Self>, chunks: Vec<ChunkRef>| {
            cx.compute(move || {
                chunks
                    .into_iter()
                    .map(|chunk| {
                        let mut homes = this.index.homes(&chunk.id)?;
                        homes.retain(|p| p.len == chunk.len);
                        Ok((chunk, homes))
                    })
                    .collect::<Result<Vec<_>>>()
            })
        };
        let found = lookup(Arc::clone(self), chunks).await?;
        if found.iter().all(|(_, homes)| !homes.is_empty()) {
            return Ok(found);
        }
        // Somebody may have moved it since the index was read; or its segment is damaged, and its pack's
        // trailer knows.
        self.refresh(cx).await?;
        lookup(Arc::clone(self), found.into_iter().map(|(c, _)| c).collect()).await
    }

    async fn refresh(&self, cx: &Context) -> Result<()> {
        self.refreshed
            .get_or_try_init(|| async {
                self.index.refresh(cx, &self.sink).await?;
                self.index.adopt(cx, &self.sink).await?;
                Ok(())
            })
            .await
            .copied()
    }

    fn sealer(&self, place: &Place) -> Result<Arc<FrameSealer>> {
        let lock = || self.sealers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sealer) = lock().get(&place.pack) {
            return Ok(Arc::clone(sealer));
        }
        let sealer = Arc::new(self.reader.open(&place.header, "")?);
        let mut sealers = lock();
        if sealers.len() >= SEALERS_KEPT {
            sealers.clear();
        }
        sealers.insert(place.pack, Arc::clone(&sealer));
        Ok(sealer)
    }

    fn kept(&self, place: &Place) -> Option<Bytes> {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().find(|(k, _)| *k == (place.pack, place.frame)).map(|(_, b)| b.clone())
    }

    fn keep(&self, place: &Place, bytes: &[u8]) {
        // Copied, so that what is remembered holds no share of the budget. Large frames are read once.
        if bytes.len() > FRAME_TARGET {
            return;
        }
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        while frames.len() >= FRAMES_KEPT {
            frames.pop_front();
        }
        frames.push_back(((place.pack, place.frame), Bytes::copy_from_slice(bytes)));
    }

    /// The chunks of a frame, each compared with its name.
    async fn read_frame(
        self: Arc<Self>,
        cx: &Context,
        read: FrameRead,
        turn: Option<&Turn>,
    ) -> Result<Vec<Bytes>> {
        let place = match read.chunks.first() {
            Some((chunk, homes)) => match homes.first() {
                Some(place) => place.clone(),
                None => return Err(missing(chunk)),
            },
            None => return Ok(Vec::new()),
        };
        match Arc::clone(&self).read_from(cx, &place, &read.chunks, turn).await {
            Ok(chunks) => Ok(chunks),
            Err(e) if !e.is_damage() => Err(e),
            // Another home, chunk by chunk; and if there is none, the first complaint.
            Err(e) => {
                let mut out = Vec::with_capacity(read.chunks.len());
                for (chunk, homes) in &read.chunks {
                    let mut found = None;
                    for home in homes {
                        let one = [(*chunk, vec![home.clone()])];
                        match Arc::clone(&self).read_from(cx, home, &one, turn).await {
                            Ok(mut bytes) => {
                                found = bytes.pop();
                                break;
                            }
                            Err(e) if e.is_passing() => return Err(e),
                            Err(_) => {}
                        }
                    }
                    match found {
                        Some(bytes) => out.push(bytes),
                        None => return Err(e),
                    }
                }
                Ok(out)
            }
        }
    }

    /// The chunks of a frame, each on its own account: one bad chunk must not take its neighbours along.
    async fn read_each(
        self: Arc<Self>,
        cx: &Context,
        read: FrameRead,
        turn: &Turn,
    ) -> Vec<Result<Bytes>> {
        let singles = read.chunks.clone();
        match Arc::clone(&self).read_frame(cx, read, Some(turn)).await {
            Ok(chunks) => chunks.into_iter().map(Ok).collect(),
            Err(e) if singles.len() == 1 || !e.is_damage() => each(singles.len(), &e),
            Err(_) => {
                let mut out = Vec::with_capacity(singles.len());
                for chunk in singles {
                    let read = FrameRead { chunks: vec![chunk] };
                    let bytes = Arc::clone(&self).read_frame(cx, read, Some(turn)).await;
                    out.push(
                        bytes.and_then(|mut b| b.pop().ok_or_else(|| Error::internal("no chunk"))),
                    );
                }
                out
            }
        }
    }

    async fn read_from(
        self: Arc<Self>,
        cx: &Context,
        place: &Place,
        chunks: &[(ChunkRef, Vec<Place>)],
        turn: Option<&Turn>,
    ) -> Result<Vec<Bytes>> {
        let wanted: Vec<(ChunkRef, u32)> = chunks
            .iter()
            .filter_map(|(c, homes)| {
                homes.iter().find(|h| same_frame(h, place)).map(|h| (*c, h.start))
            })
            .collect();
        let key = pack_key(place.pack)?;
        let source = match self.kept(place) {
            Some(frame) => FrameSource::Kept(frame),
            None => {
                let permit = self.budget.share(place.raw.max(1), turn).await;
                let range =
                    u64::from(place.offset)..u64::from(place.offset) + u64::from(place.stored);
                let sealed = cx.run(self.sink.get(cx, &key, Some(range))).await.map_err(|e| {
                    if e.reason() == Reason::NotFound {
                        Error::new(Reason::ObjectMissing, "a pack is gone").with("object", &key)
                    } else {
                        e.with("object", &key)
                    }
                })?;
                FrameSource::Sealed(sealed, permit)
            }
        };
        // One trip to a computing thread for all that is to be done with a frame.
        let (this, at) = (Arc::clone(&self), place.clone());
        cx.compute(move || {
            let is_fresh = matches!(source, FrameSource::Sealed(..));
            let frame = this.open_frame(&at, source, &wanted)?;
            let chunks =
                wanted
                    .iter()
                    .map(|(chunk, start)| {
                        let (start, len) = (*start as usize, chunk.len as usize);
                        let found = frame.get(start..start.saturating_add(len));
                        match found {
                            Some(bytes) if this.chunk_key.name(bytes) == chunk.id => {
                                // A small part must not hold on to all of the frame.
                                Ok(if len * 4 < frame.len() {
                                    Bytes::copy_from_slice(bytes)
                                } else {
                                    frame.slice(start..start + len)
                                })
                            }
                            _ => Err(Error::corrupt("content does not fit its name")
                                .with("chunk", chunk.id)),
                        }
                    })
                    .collect::<Result<Vec<Bytes>>>()?;
            if let Some(proven) = this.proven.as_ref().filter(|_| is_fresh) {
                proven.add(&at, &wanted);
            }
            Ok(chunks)
        })
        .await
        .map_err(|e| e.with("object", &key))
    }

    /// The raw bytes of a frame. They are kept if more is in it than is wanted now: the rest is likely to be
    /// wanted next.
    fn open_frame(
        &self,
        at: &Place,
        source: FrameSource,
        wanted: &[(ChunkRef, u32)],
    ) -> Result<Bytes> {
        // Only a chunk that is a frame of its own is longer: whoever says otherwise wants our memory.
        let alone = |(chunk, start): &(ChunkRef, u32)| *start == 0 && chunk.len == at.raw;
        if at.raw as usize > FRAME_TARGET && !wanted.iter().all(alone) {
            return Err(Error::corrupt("a frame is longer than a frame of several chunks may be"));
        }
        let (sealed, permit) = match source {
            FrameSource::Kept(frame) => return Ok(frame),
            FrameSource::Sealed(sealed, permit) => (sealed, permit),
        };
        let mut frame = Vec::from(sealed);
        self.sealer(at)?.open(u64::from(at.frame), &mut frame)?;
        let raw = at.raw as usize;
        // What was stored as it is stays where it lies.
        let (bytes, from) = match self.codec.decode(&frame, raw)? {
            Cow::Owned(bytes) => (bytes, 0),
            Cow::Borrowed(bytes) => {
                let from = frame.len() - bytes.len();
                (frame, from)
            }
        };
        let wanted: u64 = wanted.iter().map(|(chunk, _)| u64::from(chunk.len)).sum();
        if wanted < u64::from(at.raw) {
            self.keep(at, &bytes[from..]);
        }
        Ok(Bytes::from_owner(Held { bytes, _permit: permit }).slice(from..))
    }

    /// The content of chunks, in order, read ahead. A chunk that cannot be read is an error in its place,
    /// and the stream goes on with the next.
    pub(crate) fn chunks(
        self: &Arc<Self>,
        cx: &Context,
        refs: BoxStream<'static, Result<ChunkRef>>,
    ) -> BoxStream<'static, Result<Bytes>> {
        let (this, cx) = (Arc::clone(self), cx.clone());
        let lookup = (Arc::clone(&this), cx.clone());
        let turns = Arc::<Turns>::default();
        let (taken, mut number) = (Arc::clone(&turns), 0);
        refs.ready_chunks(LOOKUP)
            .map(move |refs| {
                let (this, cx) = lookup.clone();
                async move {
                    let good = refs.iter().filter_map(|r| r.as_ref().ok().copied()).collect();
                    let reads: Vec<Result<FrameRead>> = match this.places(&cx, good).await {
                        Ok(places) => group(refs, places),
                        Err(e) => each(refs.len(), &e),
                    };
                    stream::iter(reads)
                }
            })
            .buffered(1)
            .flatten()
            .map(move |read| {
                let (this, task_cx) = (Arc::clone(&this), cx.clone());
                let turn = Turn::new(&turns, number);
                number += 1;
                // A task, so that reading goes on while the consumer is busy elsewhere.
                let task = read.map(|read| {
                    let n = read.chunks.len();
                    (n, cx.spawn(async move { Ok(this.read_each(&task_cx, read, &turn).await) }))
                });
                async move {
                    match task {
                        Ok((n, task)) => task.await.unwrap_or_else(|e| each(n, &e)),
                        Err(e) => vec![Err(e)],
                    }
                }
            })
            .buffered(FRAMES_AHEAD)
            .inspect(move |_| taken.advance())
            .flat_map(stream::iter)
            .boxed()
    }

    /// One chunk.
    pub(crate) async fn chunk(self: &Arc<Self>, cx: &Context, chunk: ChunkRef) -> Result<Bytes> {
        let places = self.places(cx, vec![chunk]).await?;
        let read = FrameRead { chunks: places };
        let mut bytes = Arc::clone(self).read_frame(cx, read, None).await?;
        bytes.pop().ok_or_else(|| missing(&chunk))
    }
}

fn same_frame(a: &Place, b: &Place) -> bool {
    a.pack == b.pack && a.frame == b.frame
}

/// An error in each of so many places: whoever takes chunks one by one must not take one for another.
fn each<T>(n: usize, e: &Error) -> Vec<Result<T>> {
    (0..n).map(|_| Err(Error::new(e.reason(), e.chain()))).collect()
}

fn missing(chunk: &ChunkRef) -> Error {
    Error::new(Reason::ObjectMissing, "no pack holds this content any more").with("chunk", chunk.id)
}

/// Neighbours that lie in one frame are read together. A reference that could not be read stays where it
/// is: nothing behind it may come before it.
fn group(
    refs: Vec<Result<ChunkRef>>,
    places: Vec<(ChunkRef, Vec<Place>)>,
) -> Vec<Result<FrameRead>> {
    let mut reads: Vec<Result<FrameRead>> = Vec::new();
    let mut places = places.into_iter();
    for r in refs {
        let (chunk, homes) = match r {
            Ok(_) => match places.next() {
                Some(place) => place,
                None => break,
            },
            Err(e) => {
                reads.push(Err(e));
                continue;
            }
        };
        let joined = reads.last_mut().and_then(|r| r.as_mut().ok()).filter(|read| {
            let first = read.chunks.first().and_then(|(_, h)| h.first());
            first.is_some_and(|f| homes.iter().any(|h| same_frame(h, f)))
        });
        match joined {
            Some(read) => read.chunks.push((chunk, homes)),
            None => reads.push(Ok(FrameRead { chunks: vec![(chunk, homes)] })),
        }
    }
    reads
}
