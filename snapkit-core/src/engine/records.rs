//! Sequences of records: into the repository and out of it again.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::artifact::{ByteStream, Chunking, MAX_PIECE};
use crate::context::Context;
use crate::engine::cut::guarded;
use crate::engine::read::ChunkReader;
use crate::engine::store::{GrowingList, Named, StoreStats, StreamPlan, name_all, store_stream};
use crate::engine::write::{Lane, Writer};
use crate::error::{Error, Result};
use crate::manifest::{ChunkList, ContentRef};
use crate::progress::Counter;
use crate::record::{MAX_AXES, MAX_INLINE_VALUE, MAX_POSITION, Record, RecordReader, RecordValue};
use crate::records::{
    MAX_VALUE_IN_CHUNK, RecordChunker, StoredRecord, StoredValue, decode_records,
};

/// Bytes of chunks that are named at once.
const NAMED_AT_ONCE: usize = 2 << 20;

/// Bytes of chunks that are handed out at once, at most by one chunk more.
const BATCH: usize = 256 << 10;

/// Stores one sequence of records.
pub(crate) struct RecordStore<'a> {
    pub(crate) cx: &'a Context,
    pub(crate) writer: &'a mut Writer,
    pub(crate) stats: &'a mut StoreStats,
}

/// The sequence as it takes shape.
#[derive(Default)]
struct Growing {
    chunker: RecordChunker,
    /// Finished, and not yet named.
    chunks: Vec<Bytes>,
    /// How many bytes they have.
    waiting: usize,
    list: GrowingList,
    count: u64,
    bytes: u64,
    last: Option<Bytes>,
}

impl RecordStore<'_> {
    /// Store a sequence. The inner error is the source's: the repository is well, and other content may follow.
    pub(crate) async fn store(
        mut self,
        mut records: Box<dyn RecordReader>,
    ) -> Result<Result<ContentRef>> {
        let axes = records.axes().to_vec();
        if axes.is_empty() || axes.len() > MAX_AXES || axes.iter().any(|axis| axis.len() > 64) {
            let e = Error::internal("a source gave records with impossible axes");
            return Ok(Err(e.with("axes", axes.len())));
        }
        let mut growing = Growing::default();
        loop {
            let batch = match guarded(self.cx.run(records.next_batch(self.cx))).await {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                Err(e) => return Ok(Err(e)),
            };
            for record in batch {
                if let Err(e) = check(&record, axes.len(), growing.last.as_ref()) {
                    return Ok(Err(e));
                }
                let stored = match self.value(record.value).await? {
                    Ok(value) => StoredRecord { positions: record.positions, value },
                    Err(e) => return Ok(Err(e)),
                };
                growing.count += 1;
                growing.bytes += stored.value.len();
                growing.last = stored.positions.first().cloned();
                let key = &self.writer.shared().chunk_key;
                let before = growing.chunks.len();
                growing.chunker.add(key, &stored, &mut growing.chunks);
                growing.waiting += growing.chunks[before..].iter().map(Bytes::len).sum::<usize>();
                if growing.waiting >= NAMED_AT_ONCE {
                    self.put(&mut growing).await?;
                }
            }
        }
        let chunker = std::mem::take(&mut growing.chunker);
        growing.chunks.extend(chunker.finish());
        self.put(&mut growing).await?;
        let Growing { list, count, bytes, .. } = growing;
        let (records, _) = list.close(self.writer).await?;
        Ok(Ok(ContentRef::Records { records, axes, count, bytes }))
    }

    /// A value: in its record if it is short, else stored for itself.
    async fn value(&mut self, value: RecordValue) -> Result<Result<StoredValue>> {
        let body: ByteStream = match value {
            RecordValue::Inline(value) if value.len() <= MAX_VALUE_IN_CHUNK => {
                self.read(value.len() as u64);
                return Ok(Ok(StoredValue::Inline(value)));
            }
            RecordValue::Inline(value) => Box::pin(stream::iter(in_pieces(value).map(Ok))),
            RecordValue::Parts(parts) => parts,
        };
        let plan = StreamPlan { chunking: Chunking::Content, size: None, sha256: false };
        let stored = store_stream(self.cx, self.writer, body, plan, self.stats).await?;
        Ok(stored.map(|stored| StoredValue::Content(stored.content)))
    }

    fn read(&mut self, bytes: u64) {
        self.stats.bytes_read += bytes;
        self.cx.progress().add(Counter::Bytes, bytes);
    }

    /// Name the finished chunks, and store those that are new.
    async fn put(&mut self, growing: &mut Growing) -> Result<()> {
        let (shared, chunks) =
            (Arc::clone(self.writer.shared()), std::mem::take(&mut growing.chunks));
        growing.waiting = 0;
        let named = self.cx.compute(move || name_all(&shared, chunks)).await?;
        for Named { chunk, content, known } in named {
            self.writer.put(Lane::Data, chunk, content, known).await?;
            growing.list.push(self.writer, chunk).await?;
        }
        Ok(())
    }
}

/// Whether a record can be put back from what is stored of it.
fn check(record: &Record, axes: usize, last: Option<&Bytes>) -> Result<()> {
    let wrong = |what: &str| Err(Error::internal(format!("a source gave a record {what}")));
    if record.positions.len() != axes {
        return wrong("without a place on each axis");
    }
    if record.positions.iter().any(|place| place.len() > MAX_POSITION) {
        return wrong("whose place is too long");
    }
    if last.is_some_and(|last| *last > record.positions[0]) {
        return wrong("that comes before the one before it");
    }
    match &record.value {
        RecordValue::Inline(value) if value.len() > MAX_INLINE_VALUE => {
            wrong("with a long value in one piece")
        }
        _ => Ok(()),
    }
}

fn in_pieces(value: Bytes) -> impl Iterator<Item = Bytes> + Send {
    let count = value.len().div_ceil(MAX_PIECE);
    (0..count).map(move |i| value.slice(i * MAX_PIECE..value.len().min((i + 1) * MAX_PIECE)))
}

/// The records of a snapshot, in order.
pub(crate) struct StoredRecords {
    reader: Arc<ChunkReader>,
    cx: Context,
    axes: Vec<String>,
    /// Chunks of whole records. It ends with the first error: nobody could say what is missing.
    chunks: BoxStream<'static, Result<Bytes>>,
    last: Option<Bytes>,
    left: u64,
    /// Is told what is handed out.
    tell: Option<Tell>,
}

type Tell = Box<dyn Fn(&[StoredRecord], &Context) + Send + Sync>;

impl StoredRecords {
    /// So many records of a list.
    pub(crate) fn new(
        reader: &Arc<ChunkReader>,
        cx: &Context,
        records: &ChunkList,
        axes: &[String],
        count: u64,
    ) -> Result<Self> {
        if axes.is_empty() || axes.len() > MAX_AXES {
            return Err(Error::corrupt("a sequence of records has impossible axes"));
        }
        let chunks = reader.chunks(cx, reader.refs(cx, records));
        let chunks = chunks.scan(false, |failed, chunk| {
            let next = (!*failed).then_some(chunk);
            *failed = matches!(next, Some(Err(_)));
            std::future::ready(next)
        });
        Ok(Self {
            reader: Arc::clone(reader),
            cx: cx.clone(),
            axes: axes.to_vec(),
            chunks: chunks.boxed(),
            last: None,
            left: count,
            tell: None,
        })
    }

    /// Tell what is handed out.
    pub(crate) fn telling(
        mut self,
        tell: impl Fn(&[StoredRecord], &Context) + Send + Sync + 'static,
    ) -> Self {
        self.tell = Some(Box::new(tell));
        self
    }

    /// The next chunk's records, as they are stored.
    pub(crate) async fn next_stored(&mut self) -> Result<Option<(usize, Vec<StoredRecord>)>> {
        let Some(chunk) = self.chunks.try_next().await? else {
            return match self.left {
                0 => Ok(None),
                _ => Err(Error::corrupt("a sequence of records is shorter than it should be")),
            };
        };
        let records = decode_records(&chunk, self.axes.len())?;
        let too_many = || Error::corrupt("a sequence of records is longer than it should be");
        self.left = self.left.checked_sub(records.len() as u64).ok_or_else(too_many)?;
        for record in &records {
            let place = &record.positions[0];
            if self.last.as_ref().is_some_and(|last| last > place) {
                return Err(Error::corrupt("records are out of order"));
            }
            self.last = Some(place.clone());
        }
        Ok(Some((chunk.len(), records)))
    }
}

#[async_trait]
impl RecordReader for StoredRecords {
    fn axes(&self) -> &[String] {
        &self.axes
    }

    async fn next_batch(&mut self, cx: &Context) -> Result<Option<Vec<Record>>> {
        let (mut batch, mut len) = (Vec::new(), 0);
        while len < BATCH
            && let Some((read, records)) = cx.run(self.next_stored()).await?
        {
            len += read;
            if let Some(tell) = &self.tell {
                tell(&records, cx);
            }
            batch.extend(records.into_iter().map(|StoredRecord { positions, value }| Record {
                positions,
                value: match value {
                    StoredValue::Inline(value) => RecordValue::Inline(value),
                    StoredValue::Content(list) => {
                        RecordValue::Parts(self.reader.bytes(&self.cx, &list))
                    }
                },
            }));
        }
        Ok((!batch.is_empty()).then_some(batch))
    }
}
