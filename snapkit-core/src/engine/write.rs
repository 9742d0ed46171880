//! The write pipeline: chunks in, durable packs and index out.
//!
//! ```text
//!   put ─▶ frame ─▶ compress (all cores) ─▶ seal, pack ─▶ upload ─▶ index segment
//! ```
//!
//! Every byte that is on its way holds a permit of one budget, from the moment a new chunk is accepted
//! to the moment its pack is durable; `put` waits for permits, which is the backpressure. A chunk counts
//! as known to this run as soon as it is accepted, and is listed in the index only when its pack is
//! durable.

use std::collections::HashSet;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::chunk::ChunkKey;
use crate::context::{Context, Task};
use crate::error::{Error, Result};
use crate::frame::{DEFAULT_LEVEL, Effort, FRAME_TARGET, FrameCodec};
use crate::id::ChunkId;
use crate::index::segment::TableBuilder;
use crate::index::{Index, segment_key};
use crate::manifest::ChunkRef;
use crate::pack::{PACK_TARGET, PackBuilder, PackContents, pack_key};
use crate::progress::Counter;
use crate::seal::{ObjectType, TAG_LEN, WriterKeys};
use crate::sink::{PutMode, Sink};

/// A segment is written after so many packs, or …
const SEGMENT_PACKS: usize = 8;
/// … so many chunks, or …
const SEGMENT_CHUNKS: usize = 200_000;
/// … so much time.
const SEGMENT_TIME: Duration = Duration::from_secs(60);

/// Where a chunk goes: content and metadata are packed apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Data,
    Meta,
}

/// What a run has written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WriteStats {
    pub(crate) chunks_new: u64,
    pub(crate) bytes_new: u64,
    pub(crate) bytes_stored: u64,
}

/// What all parts of the pipeline share.
#[derive(Debug)]
pub(crate) struct Shared {
    sink: Arc<dyn Sink>,
    keys: WriterKeys,
    pub(crate) chunk_key: ChunkKey,
    pub(crate) index: Arc<Index>,
    codec: FrameCodec,
    budget: Arc<Semaphore>,
    /// Accepted in this run and not yet listed in the index.
    pending: Mutex<HashSet<ChunkId>>,
    /// Durable packs that no segment lists yet.
    unlisted: tokio::sync::Mutex<Unlisted>,
    bytes_stored: AtomicU64,
}

#[derive(Debug, Default)]
struct Unlisted {
    packs: Vec<PackContents>,
    since: Duration,
}

impl Shared {
    fn pending(&self) -> std::sync::MutexGuard<'_, HashSet<ChunkId>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a chunk need not be stored. A blocking call of microseconds.
    pub(crate) fn is_known(&self, id: &ChunkId, len: u32) -> Result<bool> {
        Ok(self.pending().contains(id) || self.index.contains(id, len)?)
    }

    /// Take note of a durable pack; write a segment when there is enough for one.
    async fn list_pack(&self, cx: &Context, pack: PackContents) -> Result<()> {
        let mut unlisted = self.unlisted.lock().await;
        if unlisted.packs.is_empty() {
            unlisted.since = cx.monotonic();
        }
        unlisted.packs.push(pack);
        let chunks: usize =
            unlisted.packs.iter().flat_map(|p| &p.frames).map(|f| f.chunks.len()).sum();
        let due = unlisted.packs.len() >= SEGMENT_PACKS
            || chunks >= SEGMENT_CHUNKS
            || cx.monotonic().saturating_sub(unlisted.since) >= SEGMENT_TIME;
        if due { self.write_segment(cx, &mut unlisted).await } else { Ok(()) }
    }

    async fn write_segment(&self, cx: &Context, unlisted: &mut Unlisted) -> Result<()> {
        let packs = std::mem::take(&mut unlisted.packs);
        if packs.is_empty() {
            return Ok(());
        }
        let mut builder = TableBuilder::default();
        for pack in &packs {
            builder.add(pack)?;
        }
        let (id, object) = builder.finish().seal(cx, &self.keys)?;
        self.upload(cx, &segment_key(id)?, object).await?;
        self.index.add_packs(cx, &packs, Some(id)).await?;
        let mut pending = self.pending();
        for chunk in packs.iter().flat_map(|p| &p.frames).flat_map(|f| &f.chunks) {
            pending.remove(&chunk.id);
        }
        Ok(())
    }

    async fn upload(&self, cx: &Context, key: &crate::key::Key, object: Bytes) -> Result<()> {
        let len = object.len() as u64;
        // Named by its content: an object that is there already is this one.
        cx.run(self.sink.put(cx, key, object, PutMode::Create)).await?;
        self.bytes_stored.fetch_add(len, Ordering::Relaxed);
        cx.progress().add(Counter::BytesStored, len);
        cx.progress().add(Counter::ObjectsStored, 1);
        Ok(())
    }
}

/// Takes chunks and makes them durable.
#[derive(Debug)]
pub(crate) struct Writer {
    cx: Context,
    shared: Arc<Shared>,
    data: LaneWriter,
    meta: LaneWriter,
    chunks_new: u64,
    bytes_new: u64,
    effort: Effort,
}

/// What one source has cost so far.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) bytes_new: AtomicU64,
    /// Complete when the writer has finished.
    pub(crate) bytes_stored: AtomicU64,
}

/// What a [`Writer`] works with.
pub(crate) struct WriterSetup {
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) keys: WriterKeys,
    pub(crate) chunk_key: ChunkKey,
    pub(crate) index: Arc<Index>,
    pub(crate) level: i32,
    pub(crate) verify_compression: bool,
    /// Bytes of content that may be on their way.
    pub(crate) budget: u64,
}

impl Writer {
    pub(crate) fn new(cx: &Context, setup: WriterSetup) -> Result<Self> {
        let permits =
            usize::try_from(setup.budget).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let shared = Arc::new(Shared {
            sink: setup.sink,
            keys: setup.keys,
            chunk_key: setup.chunk_key,
            index: setup.index,
            codec: FrameCodec::new(setup.verify_compression),
            budget: Arc::new(Semaphore::new(permits)),
            pending: Mutex::default(),
            unlisted: tokio::sync::Mutex::default(),
            bytes_stored: AtomicU64::new(0),
        });
        // Four packs may be open, and as much again is on its way to the sink.
        let pack_target = (permits / 10).min(PACK_TARGET);
        let data = LaneWriter::start(cx, &shared, ObjectType::DataPack, pack_target);
        let meta = LaneWriter::start(cx, &shared, ObjectType::MetaPack, pack_target);
        Ok(Self {
            cx: cx.clone(),
            shared,
            data,
            meta,
            chunks_new: 0,
            bytes_new: 0,
            effort: Effort::Level(setup.level),
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What follows is on another account. Frames are not shared between accounts.
    pub(crate) async fn open_account(&mut self) -> Result<Arc<Account>> {
        let account = Arc::<Account>::default();
        for lane in [&mut self.data, &mut self.meta] {
            lane.flush(&self.cx, &self.shared).await?;
            lane.account = Arc::clone(&account);
        }
        Ok(account)
    }

    /// Compress what follows otherwise.
    pub(crate) fn set_effort(&mut self, effort: Effort) {
        self.effort = effort;
    }

    /// Take a chunk that was named; `known` if it was found to need no storing.
    pub(crate) async fn put(
        &mut self,
        lane: Lane,
        chunk: ChunkRef,
        content: Bytes,
        known: bool,
    ) -> Result<()> {
        if known || !self.shared.pending().insert(chunk.id) {
            self.cx.progress().add(Counter::ChunksKnown, 1);
            return Ok(());
        }
        self.cx.progress().add(Counter::ChunksNew, 1);
        self.chunks_new += 1;
        self.bytes_new += u64::from(chunk.len);
        let acquire = Arc::clone(&self.shared.budget).acquire_many_owned(chunk.len);
        let permit = self
            .cx
            .run(async { acquire.await.map_err(|_| Error::internal("the memory budget is gone")) })
            .await?;
        let lane = match lane {
            Lane::Data => &mut self.data,
            Lane::Meta => &mut self.meta,
        };
        lane.effort = self.effort;
        lane.account.bytes_new.fetch_add(u64::from(chunk.len), Ordering::Relaxed);
        lane.put(&self.cx, &self.shared, chunk, content, permit).await
    }

    /// Name and put a piece of metadata.
    pub(crate) async fn put_meta(&mut self, content: Vec<u8>) -> Result<ChunkRef> {
        let id = self.shared.chunk_key.name(&content);
        let chunk = ChunkRef { id, len: crate::codec::len32(content.len())? };
        let known = self.shared.is_known(&id, chunk.len)?;
        self.put(Lane::Meta, chunk, content.into(), known).await?;
        Ok(chunk)
    }

    /// List packs that an interrupted run left, together with this run's.
    pub(crate) async fn list_adopted(&self, packs: Vec<PackContents>) -> Result<()> {
        for pack in packs {
            self.shared.list_pack(&self.cx, pack).await?;
        }
        Ok(())
    }

    /// Make everything durable and listed.
    pub(crate) async fn finish(self) -> Result<WriteStats> {
        let Self { cx, shared, data, meta, chunks_new, bytes_new, .. } = self;
        data.finish(&cx, &shared).await?;
        meta.finish(&cx, &shared).await?;
        let mut unlisted = shared.unlisted.lock().await;
        shared.write_segment(&cx, &mut unlisted).await?;
        let bytes_stored = shared.bytes_stored.load(Ordering::Relaxed);
        Ok(WriteStats { chunks_new, bytes_new, bytes_stored })
    }
}

/// A frame on its way: being compressed, in order.
struct FrameJob {
    encoded: Task<Vec<u8>>,
    chunks: Vec<ChunkRef>,
    permit: OwnedSemaphorePermit,
    account: Arc<Account>,
}

/// Gathers chunks into frames and hands them to the lane's packer.
#[derive(Debug)]
struct LaneWriter {
    pieces: Vec<Bytes>,
    chunks: Vec<ChunkRef>,
    permit: Option<OwnedSemaphorePermit>,
    len: usize,
    effort: Effort,
    account: Arc<Account>,
    frames: Option<mpsc::UnboundedSender<FrameJob>>,
    packer: Option<Task<()>>,
}

impl LaneWriter {
    fn start(cx: &Context, shared: &Arc<Shared>, object: ObjectType, pack_target: usize) -> Self {
        // Unbounded in number: the permits bound the bytes.
        let (sender, receiver) = mpsc::unbounded_channel();
        let packer = Packer {
            cx: cx.clone(),
            shared: Arc::clone(shared),
            object,
            pack_target,
            open: [None, None],
            uploads: FuturesUnordered::new(),
        };
        Self {
            pieces: Vec::new(),
            chunks: Vec::new(),
            permit: None,
            len: 0,
            effort: Effort::Level(DEFAULT_LEVEL),
            account: Arc::default(),
            frames: Some(sender),
            packer: Some(cx.spawn(packer.run(receiver))),
        }
    }

    async fn put(
        &mut self,
        cx: &Context,
        shared: &Arc<Shared>,
        chunk: ChunkRef,
        content: Bytes,
        permit: OwnedSemaphorePermit,
    ) -> Result<()> {
        if self.len > 0 && self.len + content.len() > FRAME_TARGET {
            self.flush(cx, shared).await?;
        }
        self.len += content.len();
        self.pieces.push(content);
        self.chunks.push(chunk);
        match &mut self.permit {
            Some(held) => held.merge(permit),
            None => self.permit = Some(permit),
        }
        if self.len >= FRAME_TARGET { self.flush(cx, shared).await } else { Ok(()) }
    }

    async fn flush(&mut self, cx: &Context, shared: &Arc<Shared>) -> Result<()> {
        let Some(permit) = self.permit.take() else { return Ok(()) };
        let pieces = std::mem::take(&mut self.pieces);
        let chunks = std::mem::take(&mut self.chunks);
        self.len = 0;
        let effort = self.effort;
        let account = Arc::clone(&self.account);
        let encoded = {
            let (cx, shared) = (cx.clone(), Arc::clone(shared));
            let task_cx = cx.clone();
            cx.spawn(async move {
                task_cx.compute(move || shared.codec.encode_pieces(&pieces, effort)).await
            })
        };
        let sent = self
            .frames
            .as_ref()
            .is_some_and(|f| f.send(FrameJob { encoded, chunks, permit, account }).is_ok());
        if sent { Ok(()) } else { Err(self.failure(cx).await) }
    }

    /// Why the packer has stopped.
    async fn failure(&mut self, cx: &Context) -> Error {
        match self.packer.take() {
            Some(packer) => match cx.run(packer).await {
                Err(e) => e,
                Ok(()) => Error::internal("the packer has stopped early"),
            },
            None => Error::internal("the packer has stopped before"),
        }
    }

    async fn finish(mut self, cx: &Context, shared: &Arc<Shared>) -> Result<()> {
        self.flush(cx, shared).await?;
        self.frames = None;
        match self.packer.take() {
            Some(packer) => cx.run(packer).await,
            None => Err(Error::internal("the packer has stopped before")),
        }
    }
}

/// A pack being filled, with the permits of what is in it.
struct OpenPack {
    builder: PackBuilder,
    permit: Option<OwnedSemaphorePermit>,
}

/// Seals frames into packs and uploads these: one per lane, in order.
struct Packer {
    cx: Context,
    shared: Arc<Shared>,
    object: ObjectType,
    pack_target: usize,
    /// Frames of one stream are spread over two packs, so that lengths on the wire say less.
    open: [Option<OpenPack>; 2],
    uploads: FuturesUnordered<Task<()>>,
}

impl Packer {
    async fn run(mut self, mut frames: mpsc::UnboundedReceiver<FrameJob>) -> Result<()> {
        let mut bits = BitSource::default();
        loop {
            // Failed uploads end the run early; finished ones make room.
            let job = tokio::select! {
                biased;
                Some(done) = self.uploads.next(), if !self.uploads.is_empty() => {
                    done?;
                    continue;
                }
                job = frames.recv() => job,
            };
            let Some(job) = job else { break };
            let slot = usize::from(bits.next(&self.cx)?);
            self.append(slot, job).await?;
        }
        for slot in 0..2 {
            if let Some(pack) = self.open[slot].take() {
                self.close(pack).await?;
            }
        }
        while let Some(done) = self.uploads.next().await {
            done?;
        }
        Ok(())
    }

    async fn append(&mut self, slot: usize, job: FrameJob) -> Result<()> {
        let plain = job.encoded.await?;
        job.account.bytes_stored.fetch_add((plain.len() + TAG_LEN) as u64, Ordering::Relaxed);
        let mut permit = job.permit;
        // What compression saved goes back to the budget.
        let excess = permit.num_permits().saturating_sub(plain.len());
        drop(permit.split(excess));
        let mut pack = match self.open[slot].take() {
            Some(pack) => pack,
            None => OpenPack {
                builder: PackBuilder::new(
                    &self.cx,
                    &self.shared.keys,
                    self.object,
                    self.pack_target,
                )?,
                permit: None,
            },
        };
        let chunks = job.chunks;
        let target = self.pack_target;
        let (builder, full) = self
            .cx
            .compute(move || {
                let mut builder = pack.builder;
                builder.append(plain, chunks)?;
                let full = builder.is_full(target);
                Ok((builder, full))
            })
            .await?;
        match &mut pack.permit {
            Some(held) => held.merge(permit),
            None => pack.permit = Some(permit),
        }
        let pack = OpenPack { builder, permit: pack.permit };
        if full {
            self.close(pack).await
        } else {
            self.open[slot] = Some(pack);
            Ok(())
        }
    }

    async fn close(&mut self, pack: OpenPack) -> Result<()> {
        while self.uploads.len() >= self.shared.sink.info().concurrency.max(1) {
            if let Some(done) = self.uploads.next().await {
                done?;
            }
        }
        let OpenPack { builder, permit } = pack;
        let (object, contents) = self.cx.compute(move || builder.finish()).await?;
        let (cx, shared) = (self.cx.clone(), Arc::clone(&self.shared));
        self.uploads.push(self.cx.spawn(async move {
            shared.upload(&cx, &pack_key(contents.id)?, object).await?;
            drop(permit);
            shared.list_pack(&cx, contents).await
        }));
        Ok(())
    }
}

/// Random bits, drawn a few at a time.
#[derive(Default)]
struct BitSource(VecDeque<bool>);

impl BitSource {
    fn next(&mut self, cx: &Context) -> Result<bool> {
        if self.0.is_empty() {
            let bytes = cx.random::<16>()?;
            self.0.extend(bytes.iter().flat_map(|b| (0..8).map(move |i| b >> i & 1 == 1)));
        }
        self.0.pop_front().ok_or_else(|| Error::internal("no random bits"))
    }
}
