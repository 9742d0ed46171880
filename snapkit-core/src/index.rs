//! The index: which chunk is where.
//!
//! In the sink it is a set of immutable segments ([`segment`]). Locally each is kept as a run
//! ([`run`]): the same table, with a fan-out, read by position, so that an index of any size costs
//! little memory and a damaged or truncated file is an error and not a crash. Many small runs are merged
//! into one; that is the local cache's affair alone. Without segments the index can be rebuilt from the
//! packs' trailers.

pub(crate) mod rows;
pub mod run;
pub mod segment;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::context::Context;
use crate::error::{Error, Reason, Result};
use crate::id::{ChunkId, PackId, SegmentId, to_hex};
use crate::index::rows::{RowSum, RowSummer};
use crate::index::run::Run;
use crate::index::segment::{Table, TableBuilder};
use crate::key::Key;
use crate::own::create_private_dir;
use crate::pack::{FOOTER_LEN, PackContents, pack_key, parse_pack_key, read_trailer, trailer_len};
use crate::progress::Counter;
use crate::seal::{Header, WriterKeys};
use crate::sink::{ObjectEntry, Sink};

/// Runs are merged when there are more than this.
const MAX_RUNS: usize = 6;

/// So few entries are merged into one run whenever the index is loaded: 44 MiB, a moment's work. Each run costs
/// every lookup a read.
const MERGED_AT_ONCE: u64 = 1 << 20;

/// Where a chunk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The pack.
    pub pack: PackId,
    /// The pack's header, which opens its frames.
    pub header: Header,
    /// Number of the frame in the pack.
    pub frame: u32,
    /// Where the frame begins in the pack.
    pub offset: u32,
    /// Sealed length of the frame.
    pub stored: u32,
    /// Raw length of the frame.
    pub raw: u32,
    /// Where the chunk begins in the raw frame.
    pub start: u32,
    /// Length of the chunk.
    pub len: u32,
}

/// The chunks of a repository and where they are.
#[derive(Debug)]
pub struct Index {
    dir: PathBuf,
    keys: WriterKeys,
    state: RwLock<State>,
    /// Packs that a collector has doomed: no home.
    doomed: HashSet<PackId>,
}

#[derive(Debug, Default)]
struct State {
    runs: Vec<Arc<Run>>,
    packs: HashMap<PackId, u32>,
    /// Packs that are listed here and were not found in the sink as they should be: no home for what is
    /// new, so that it is stored again.
    lost: HashSet<PackId>,
}

/// What loading the index came upon.
#[derive(Debug, Default)]
pub struct LoadReport {
    /// Segments that are damaged, with what is wrong.
    pub damaged: Vec<(Key, Error)>,
}

/// The key of a segment.
pub fn segment_key(id: SegmentId) -> Result<Key> {
    Key::new(format!("index/{id}"))
}

impl Index {
    /// Load the index: what the cache directory `dir` has, and what is new in the sink. Damaged
    /// segments are reported and left out. `doomed` are the packs that tombstones name, read before.
    pub async fn load(
        cx: &Context,
        sink: &Arc<dyn Sink>,
        dir: PathBuf,
        keys: WriterKeys,
        doomed: HashSet<PackId>,
    ) -> Result<(Self, LoadReport)> {
        let found = {
            let dir = dir.clone();
            cx.blocking(move || {
                create_private_dir(&dir)?;
                Ok(Run::open_all(&dir))
            })
            .await?
        };
        let index = Self { dir, keys, state: RwLock::default(), doomed };
        let listed = index.list_segments(cx, sink).await?;
        for run in found? {
            // A run that covers something that is gone may name packs that are gone.
            if run.covers().iter().all(|id| listed.contains_key(id)) {
                index.install(run)?;
            } else {
                run.delete();
            }
        }
        let report = index.fetch_new(cx, sink, &listed).await?;
        Ok((index, report))
    }

    /// Look for segments that others have written meanwhile.
    pub async fn refresh(&self, cx: &Context, sink: &Arc<dyn Sink>) -> Result<LoadReport> {
        let listed = self.list_segments(cx, sink).await?;
        self.fetch_new(cx, sink, &listed).await
    }

    async fn list_segments(
        &self,
        cx: &Context,
        sink: &Arc<dyn Sink>,
    ) -> Result<HashMap<SegmentId, ObjectEntry>> {
        let listing = sink.list(cx, Some(&Key::new("index")?));
        cx.run(
            listing
                .try_filter_map(async |entry| {
                    let id = entry.key.last_segment().parse::<SegmentId>().ok();
                    let id = id.filter(|id| segment_key(*id).is_ok_and(|key| key == entry.key));
                    Ok(id.map(|id| (id, entry)))
                })
                .try_collect(),
        )
        .await
    }

    async fn fetch_new(
        &self,
        cx: &Context,
        sink: &Arc<dyn Sink>,
        listed: &HashMap<SegmentId, ObjectEntry>,
    ) -> Result<LoadReport> {
        let covered: HashSet<SegmentId> = {
            let state = self.read();
            state.runs.iter().flat_map(|r| r.covers().iter().copied()).collect()
        };
        let missing = listed.iter().filter(|(id, _)| !covered.contains(*id));
        let mut missing: Vec<_> = missing.map(|(id, entry)| (*id, entry.clone())).collect();
        missing.sort_unstable_by_key(|(id, _)| *id);
        let mut report = LoadReport::default();
        let mut fetched = stream::iter(missing.into_iter().map(|(id, entry)| async move {
            let key = entry.key.clone();
            let bytes = match entry.get(cx, &**sink, segment::MAX_SEGMENT as u64).await {
                // A collector replaced it since it was listed.
                Err(e) if e.reason() == Reason::NotFound => return Ok(None),
                Err(e) if e.is_damage() => return Ok(Some((id, key, Err(e)))),
                other => other?,
            };
            let keys = self.keys.clone();
            let table = cx.compute(move || segment::open(id, &bytes, &keys)).await;
            Ok::<_, Error>(Some((id, key, table)))
        }))
        .buffered(sink.info().concurrency.clamp(1, 2));
        while let Some(next) = fetched.next().await {
            match next? {
                Some((id, _, Ok(table))) => self.add_table(cx, table, vec![id]).await?,
                Some((_, key, Err(e))) => report.damaged.push((key, e)),
                None => {}
            }
        }
        drop(fetched);
        let most = if self.len() <= MERGED_AT_ONCE { 1 } else { MAX_RUNS };
        self.merge_if_more(cx, most).await?;
        Ok(report)
    }

    /// Take in the contents of packs that are durable, and the segment that lists them, if one does.
    pub async fn add_packs(
        &self,
        cx: &Context,
        packs: &[PackContents],
        segment: Option<SegmentId>,
    ) -> Result<()> {
        let mut builder = TableBuilder::default();
        for pack in packs {
            builder.add(pack)?;
        }
        let table = builder.finish();
        self.add_table(cx, table, segment.into_iter().collect()).await?;
        self.merge_if_more(cx, MAX_RUNS).await
    }

    async fn add_table(&self, cx: &Context, table: Table, covers: Vec<SegmentId>) -> Result<()> {
        let path = self.new_run_path(cx)?;
        let repository = self.keys.repository;
        // What no segment lists yet must not outlive this process.
        let keep = !covers.is_empty();
        let run = cx.blocking(move || Run::write(&path, &table, &covers, keep, repository)).await?;
        self.install(run)
    }

    fn new_run_path(&self, cx: &Context) -> Result<PathBuf> {
        Ok(self.dir.join(format!("{}.run", to_hex(&cx.random::<12>()?))))
    }

    fn install(&self, run: Run) -> Result<()> {
        let packs = run.packs()?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.packs.extend(packs);
        state.runs.push(Arc::new(run));
        Ok(())
    }

    /// Merge the runs that stay into one if there are more than `most` of them.
    async fn merge_if_more(&self, cx: &Context, most: usize) -> Result<()> {
        let runs: Vec<Arc<Run>> = {
            let state = self.read();
            let kept: Vec<_> = state.runs.iter().filter(|r| r.is_kept()).map(Arc::clone).collect();
            if kept.len() <= most {
                return Ok(());
            }
            kept
        };
        let path = self.new_run_path(cx)?;
        let repository = self.keys.repository;
        let inputs = runs.clone();
        let merged = cx.blocking(move || Run::merge(&path, &inputs, repository)).await?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.runs.retain(|r| !runs.iter().any(|m| Arc::ptr_eq(m, r)));
        state.runs.push(Arc::new(merged));
        drop(state);
        for run in runs {
            run.delete();
        }
        Ok(())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn runs(&self) -> Vec<Arc<Run>> {
        self.read().runs.clone()
    }

    /// Whether a chunk of this name and length has a home that is neither doomed nor lost. Reads from the local
    /// cache: a blocking call of microseconds.
    pub fn contains(&self, id: &ChunkId, len: u32) -> Result<bool> {
        for run in self.runs() {
            if run.has(id, len)? && self.has_home(&run, id, len)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a chunk that a run has is in a pack that is neither doomed nor lost.
    fn has_home(&self, run: &Run, id: &ChunkId, len: u32) -> Result<bool> {
        let all_good = |lost: &HashSet<PackId>| self.doomed.is_empty() && lost.is_empty();
        if all_good(&self.read().lost) {
            return Ok(true);
        }
        let places = run.find(id)?;
        let lost = &self.read().lost;
        let good =
            |p: &Place| p.len == len && !self.doomed.contains(&p.pack) && !lost.contains(&p.pack);
        Ok(places.iter().any(good))
    }

    /// All homes of a chunk. A blocking call of microseconds.
    pub fn homes(&self, id: &ChunkId) -> Result<Vec<Place>> {
        let mut homes = Vec::new();
        for run in self.runs() {
            homes.extend(run.find(id)?);
        }
        Ok(homes)
    }

    /// The rows of each pack, added up. Reads all of the index.
    pub(crate) fn sum_rows(&self, summer: &RowSummer) -> Result<HashMap<PackId, RowSum>> {
        let mut sums = HashMap::new();
        for run in self.runs() {
            run.sum_rows(summer, &mut sums)?;
        }
        Ok(sums)
    }

    /// The packs that the index knows, and their lengths.
    #[must_use]
    pub fn packs(&self) -> HashMap<PackId, u32> {
        self.read().packs.clone()
    }

    /// Have a pack be no home for what [`Index::contains`] is asked about: it is there, and damaged.
    pub fn distrust(&mut self, pack: PackId) {
        self.doomed.insert(pack);
    }

    /// The packs that are listed and that the sink did not have whole when it was last looked at by
    /// [`Index::unlisted_packs`].
    #[must_use]
    pub fn lost_packs(&self) -> Vec<PackId> {
        let mut lost: Vec<_> = self.read().lost.iter().copied().collect();
        lost.sort_unstable();
        lost
    }

    /// How many entries there are, homes counted one by one.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.read().runs.iter().map(|r| r.len()).sum()
    }

    /// Whether it knows nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Packs in the sink that no segment lists: those of interrupted runs, or of a damaged index. Their
    /// trailers are read; damaged ones are left out. On the way packs are noticed that are listed and not
    /// there: they are no home for what [`Index::contains`] is asked about from then on.
    pub async fn unlisted_packs(
        &self,
        cx: &Context,
        sink: &Arc<dyn Sink>,
    ) -> Result<(Vec<PackContents>, Vec<(Key, Error)>)> {
        // Whatever a segment lists was durable before it: a pack that is not listed now is lost.
        let mut lost = self.packs();
        let mut listing = sink.list(cx, Some(&Key::new("packs")?));
        let mut unlisted = Vec::new();
        while let Some(entry) = cx.run(listing.try_next()).await? {
            let Some(id) = parse_pack_key(&entry.key) else { continue };
            let known = self.read().packs.get(&id).copied();
            if known.is_some() || self.doomed.contains(&id) {
                if known.is_some_and(|size| u64::from(size) == entry.size) {
                    lost.remove(&id);
                }
                continue;
            }
            unlisted.push((id, entry));
        }
        drop(listing);
        let mut found = Vec::new();
        let mut damaged = Vec::new();
        let mut trailers = stream::iter(unlisted)
            .map(async |(id, entry)| {
                (fetch_trailer(cx, sink, id, entry.size, &self.keys).await, entry.key)
            })
            .buffered(sink.info().concurrency.max(1));
        while let Some((trailer, key)) = trailers.next().await {
            match trailer {
                Ok(contents) => found.push(contents),
                // What cannot be reached now must not be taken for lost.
                Err(e) if e.is_passing() => return Err(e),
                Err(e) => damaged.push((key, e)),
            }
        }
        drop(trailers);
        self.state.write().unwrap_or_else(PoisonError::into_inner).lost =
            lost.into_keys().collect();
        Ok((found, damaged))
    }

    /// Make packs that no segment lists readable and reusable: see [`Index::unlisted_packs`].
    pub async fn adopt(
        &self,
        cx: &Context,
        sink: &Arc<dyn Sink>,
    ) -> Result<(Vec<PackContents>, Vec<(Key, Error)>)> {
        let (found, damaged) = self.unlisted_packs(cx, sink).await?;
        if !found.is_empty() {
            self.add_packs(cx, &found, None).await?;
            cx.progress().add(Counter::PacksAdopted, found.len() as u64);
        }
        Ok((found, damaged))
    }
}

/// Read a pack's header and trailer, not its frames.
pub async fn fetch_trailer(
    cx: &Context,
    sink: &Arc<dyn Sink>,
    id: PackId,
    size: u64,
    keys: &WriterKeys,
) -> Result<PackContents> {
    let key = pack_key(id)?;
    let smallest = (Header::LONG + FOOTER_LEN) as u64;
    if size < smallest {
        return Err(Error::corrupt("a pack is too short").with("key", &key));
    }
    let get = async |range| cx.run(sink.get(cx, &key, Some(range))).await;
    let footer = get(size - FOOTER_LEN as u64..size).await?;
    let len = u64::from(trailer_len(&footer, size)?);
    let end = size - FOOTER_LEN as u64;
    let trailer = get(end - len..end).await?;
    let header = get(0..Header::LONG as u64).await?;
    let contents =
        read_trailer(id, size, &header, &trailer, keys).map_err(|e| e.with("key", &key))?;
    Ok(contents)
}

#[cfg(test)]
mod tests;
