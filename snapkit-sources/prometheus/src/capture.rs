//! A capture: the server makes a snapshot, and its blocks are read from there, without those that have not changed since.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::io::Read as _;
use std::path::Path;
use std::pin::Pin as Pinned;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, ByteStream, Chunking, Shape};
use snapkit_core::context::{Context, Timestamp};
use snapkit_core::error::IoContext as _;
use snapkit_core::facts::{Fact, Facts, Standing};
use snapkit_core::manifest::SourceRecord;
use snapkit_core::source::{Capture, CaptureReport, Consistency, Cut};
use snapkit_core::{Error, Reason, Result};

use crate::block::{self, Block, BlockFile, FileKind};
use crate::config::PrometheusConfig;
use crate::examine::{Examined, Examiner};
use crate::pin::Pin;
use crate::server::{self, Server};
use crate::tally::{self, ANSWER, BLOCK};

/// Bytes that are read at once.
const READ: usize = 256 << 10;

/// The longest answer that is a fact as it is; of a longer one the digest is.
const MAX_ANSWER: usize = 1024;

/// How long before a cut its queries are answered for: a scrape that began before may still be under way, for ten seconds
/// unless configured.
const AT_REST: Duration = Duration::from_secs(10);

/// What every file of a block is.
const MEDIA_TYPE: &str = "application/vnd.prometheus.block";

/// A request whose answer is awaited, whoever still waits for it.
type Asked = Pinned<Box<dyn Future<Output = Result<String>> + Send>>;

/// The files that were read to their end.
type Seen = Arc<Mutex<BTreeMap<BlockFile, Examined>>>;

/// Blocks on their way into a snapshot.
pub(crate) struct PrometheusCapture {
    config: Arc<PrometheusConfig>,
    server: Server,
    /// Digests of blocks as they were captured before, by the fingerprint of their files.
    known: BTreeMap<String, (String, Fact)>,
    asked: Mutex<Option<Asked>>,
    pin: Option<Pin>,
    blocks: Vec<Block>,
    files: std::vec::IntoIter<(BlockFile, u64, String)>,
    lengths: BTreeMap<ArtifactName, (BlockFile, u64)>,
    cut: Timestamp,
    seen: Seen,
}

impl PrometheusCapture {
    /// Ask whether the server is one, and allows what is to be done.
    pub(crate) async fn prepare(
        cx: &Context,
        config: Arc<PrometheusConfig>,
        basis: Option<&SourceRecord>,
    ) -> Result<Self> {
        let server = Server::new(&config)?;
        server.version(cx).await?;
        if server.is_admin_enabled(cx).await? == Some(false) {
            return Err(server::not_enabled().with("url", &config.url));
        }
        let data_dir = config.data_dir.clone();
        cx.blocking(move || check_data_dir(&data_dir)).await?;
        Ok(Self {
            known: basis.map(known).unwrap_or_default(),
            config,
            server,
            asked: Mutex::default(),
            pin: None,
            blocks: Vec::new(),
            files: Vec::new().into_iter(),
            lengths: BTreeMap::new(),
            cut: Timestamp(0),
            seen: Seen::default(),
        })
    }

    /// Have the server make a snapshot, and take it over. Who is cancelled meanwhile takes it over in `abort`.
    async fn pin(&mut self, cx: &Context) -> Result<()> {
        let asked = self.asked.get_mut().unwrap_or_else(PoisonError::into_inner);
        let request = asked.get_or_insert_with(|| {
            let (server, cx) = (self.server.clone(), cx.unhurried());
            Box::pin(async move { server.snapshot(&cx).await })
        });
        let mut answered = false;
        let named = cx.run(async { Ok(request.as_mut().await) }).await.and_then(|answer| {
            answered = true;
            answer
        });
        if answered {
            *asked = None;
        }
        let data_dir = self.config.data_dir.clone();
        let name = match named {
            Ok(name) => name,
            Err(e) => {
                if let Some(begun) = server::snapshot_in(&e) {
                    drop(cx.blocking(move || Pin::take(&data_dir, &begun)?.remove()).await);
                }
                return Err(e);
            }
        };
        self.pin = Some(cx.blocking(move || Pin::take(&data_dir, &name)).await?);
        Ok(())
    }
}

/// A data directory has what a server writes there, and is writable.
fn check_data_dir(data_dir: &Path) -> Result<()> {
    let tell = |e: Error| e.with("data_dir", data_dir.display());
    let found = std::fs::metadata(data_dir).map_err(|e| tell(Error::io("cannot examine it", e)))?;
    if !found.is_dir() || !data_dir.join("wal").is_dir() {
        let what =
            "this is not the data directory of a Prometheus (--storage.tsdb.path): it has no `wal`";
        return Err(tell(Error::new(Reason::InvalidConfig, what)));
    }
    rustix::fs::access(data_dir, rustix::fs::Access::WRITE_OK).map_err(|e| {
        let what =
            "this user must be able to write there, to remove the snapshots that the server makes";
        tell(Error::io(what, e.into()))
    })?;
    crate::pin::remove_leftovers(data_dir)
}

/// The digests of blocks in a record, with what says that their files are the same.
fn known(basis: &SourceRecord) -> BTreeMap<String, (String, Fact)> {
    let mut known = BTreeMap::new();
    for artifact in &basis.artifacts {
        let Ok(file) = BlockFile::parse(&artifact.meta.name) else { continue };
        let fact = basis.facts.0.get(&format!("{BLOCK}{}", file.block));
        let fact = fact.filter(|fact| fact.standing == Standing::Pinned);
        if let Some((fingerprint, fact)) = artifact.meta.fingerprint.as_ref().zip(fact) {
            known.insert(file.block, (fingerprint.0.clone(), fact.clone()));
        }
    }
    known
}

/// Read a directory of blocks. `corrupt` if one is not whole.
pub(crate) fn open_all(directory: &Path) -> Result<Vec<Block>> {
    let names = block::names(directory)?;
    names.iter().map(|name| Block::open(directory, name)).collect()
}

/// A file, piece by piece, examined on the way.
fn read(cx: &Context, path: &Path, file: BlockFile, length: u64, seen: Seen) -> ByteStream {
    let (cx, path) = (cx.clone(), path.to_owned());
    let examiner = Examiner::new(&file.block, file.kind);
    Box::pin(stream::try_unfold((None, examiner), move |(open, examiner)| {
        let (cx, path, seen, file) = (cx.clone(), path.clone(), Arc::clone(&seen), file.clone());
        async move {
            cx.blocking(move || {
                let what = || format!("cannot read {}", path.display());
                let mut open: File = open.map_or_else(|| File::open(&path), Ok).doing(what)?;
                let mut examiner: Examiner = examiner;
                let mut bytes = Vec::with_capacity(READ);
                (&mut open).take(READ as u64).read_to_end(&mut bytes).doing(what)?;
                if !bytes.is_empty() {
                    examiner.take_in(&bytes);
                    return Ok(Some((Bytes::from(bytes), (Some(open), examiner))));
                }
                let examined = examiner.finish();
                if examined.bytes != length {
                    let what = "a file of a block has changed while it was read";
                    let e = Error::new(Reason::SourceChanged, what);
                    return Err(e.with("path", path.display()));
                }
                seen.lock().unwrap_or_else(PoisonError::into_inner).insert(file, examined);
                Ok(None)
            })
            .await
        }
    }))
}

/// The answers to what is asked of a moment shortly before a cut.
pub(crate) async fn answers(
    cx: &Context,
    config: &PrometheusConfig,
    server: &Server,
    cut: Timestamp,
) -> Result<Facts> {
    let before = i64::try_from(AT_REST.as_nanos()).unwrap_or(0);
    let at = Timestamp(cut.0.saturating_sub(before));
    let mut facts = Facts::new();
    for (name, query) in &config.queries {
        let name = format!("{ANSWER}{name}");
        match server.query(cx, query, at).await {
            Ok(answer) if answer.len() > MAX_ANSWER => {
                facts.pin(name, blake3::hash(answer.as_bytes()).to_hex().to_string());
            }
            Ok(answer) => facts.pin(name, answer),
            Err(e) => {
                cx.check()?;
                facts.unknown(name, e.chain());
            }
        }
    }
    Ok(facts)
}

#[async_trait]
impl Capture for PrometheusCapture {
    async fn freeze(&mut self, cx: &Context) -> Result<Cut> {
        let begin = cx.now();
        self.pin(cx).await?;
        let end = cx.now();
        let directory = self.pin.as_ref().map(|pin| pin.directory().to_owned());
        let directory = directory.ok_or_else(|| Error::internal("nothing is pinned"))?;
        self.blocks = cx.blocking(move || open_all(&directory)).await?;
        let Some(until) = self.blocks.iter().map(|block| block.meta.max_time).max() else {
            let what = "the server's snapshot has no blocks: it has no samples yet";
            return Err(Error::new(Reason::SourceMissing, what).with("url", &self.config.url));
        };
        let mut files = Vec::new();
        for block in &self.blocks {
            for (kind, length) in &block.files {
                let file = BlockFile { block: block.meta.ulid.clone(), kind: *kind };
                self.lengths.insert(file.artifact()?, (file.clone(), *length));
                files.push((file, *length, block.fingerprint.clone()));
            }
        }
        self.files = files.into_iter();
        self.cut = begin;
        let position = Some(format!("until {}", block::time(until)));
        Ok(Cut { begin, end, consistency: Consistency::Point, position })
    }

    async fn thaw(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn next(&mut self, _: &Context) -> Result<Option<ArtifactMeta>> {
        let Some((file, length, fingerprint)) = self.files.next() else { return Ok(None) };
        let chunking = match file.kind {
            FileKind::Meta | FileKind::Tombstones => Chunking::Whole,
            FileKind::Index | FileKind::Chunks(_) => Chunking::Content,
        };
        let meta = ArtifactMeta::new(file.artifact()?, Shape::Bytes, MEDIA_TYPE, chunking);
        Ok(Some(meta.size(length).fingerprint(fingerprint)))
    }

    async fn open(&self, cx: &Context, name: &ArtifactName) -> Result<Body> {
        let found = self.pin.as_ref().zip(self.lengths.get(name));
        let (pin, (file, length)) = found.ok_or_else(|| {
            Error::new(Reason::NotFound, "no block has such a file").with("artifact", name)
        })?;
        let path = file.path(pin.directory());
        let seen = Arc::clone(&self.seen);
        Ok(Body::Bytes(read(cx, &path, file.clone(), *length, seen)))
    }

    async fn finish(mut self: Box<Self>, cx: &Context) -> Result<CaptureReport> {
        let answers = answers(cx, &self.config, &self.server, self.cut).await?;
        if let Some(pin) = self.pin.take() {
            cx.blocking(move || pin.remove()).await?;
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut problems = Vec::new();
        for (file, examined) in seen.iter() {
            if let Some(wrong) = &examined.wrong {
                problems.push((file.artifact()?.to_string(), Error::corrupt(wrong.clone())));
            }
        }
        let digest = |block: &Block| {
            let file = |kind: &FileKind| {
                let name = BlockFile { block: block.meta.ulid.clone(), kind: *kind };
                Some((*kind, seen.get(&name)?))
            };
            let read: Option<Vec<_>> = block.files.keys().map(file).collect();
            let known = self.known.get(&block.meta.ulid);
            read.map(tally::digest).or_else(|| {
                let (_, fact) = known.filter(|(same, _)| *same == block.fingerprint)?;
                Some(fact.value.to_string())
            })
        };
        let blocks = self.blocks.iter().map(|block| (&block.meta, digest(block)));
        let mut facts = tally::facts(blocks, Standing::Pinned);
        facts.0.extend(answers.0);
        let mut report = CaptureReport::from(facts);
        report.problems = problems;
        Ok(report)
    }

    async fn abort(mut self: Box<Self>, cx: &Context) -> Result<()> {
        // What the server still makes is ours to remove.
        let is_asked = self.asked.get_mut().unwrap_or_else(PoisonError::into_inner).is_some();
        if is_asked {
            self.pin(cx).await?;
        }
        match self.pin.take() {
            Some(pin) => cx.blocking(move || pin.remove()).await,
            None => Ok(()),
        }
    }
}
