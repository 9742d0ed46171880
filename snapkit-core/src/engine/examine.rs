//! Examining: object by object and chunk by chunk, with what is lost by each damage.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::artifact::Body;
use crate::context::Context;
use crate::engine::cut::guarded;
use crate::engine::read::ChunkReader;
use crate::engine::report::{Damage, VerifyReport};
use crate::engine::select::StoredTreeReader;
use crate::entries::decode_entry;
use crate::error::{Error, Reason, Result};
use crate::id::{ChunkId, PackId};
use crate::index::Place;
use crate::manifest::{ArtifactRecord, ChunkList, ChunkRef, ContentRef, Snapshot, SourceRecord};
use crate::pack::{MAX_PACK, PackContents, PackedFrame, pack_key, read_pack};
use crate::progress::Counter;
use crate::registry::Registry;
use crate::seal::FrameSealer;
use crate::source;

/// How many lost things are named for each damage.
const NAMED: usize = 100;

/// How many artifacts are checked by their sources at once: what one spends examining, the other reads.
const CHECKS_AT_ONCE: usize = 2;

/// Damages by object, with what is lost.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) by_object: BTreeMap<String, Damage>,
    /// How many things are lost by all of them.
    pub(crate) lost: u64,
}

impl Findings {
    pub(crate) fn add(
        &mut self,
        object: impl Into<String>,
        what: impl Into<String>,
    ) -> &mut Damage {
        let object = object.into();
        self.by_object.entry(object.clone()).or_insert_with(|| Damage {
            object,
            what: what.into(),
            lost: Vec::new(),
            lost_count: 0,
        })
    }

    pub(crate) fn lose(&mut self, object: &str, what: &str, lost: String) {
        let damage = self.add(object, what);
        if damage.lost.last() == Some(&lost) {
            return;
        }
        damage.lost_count += 1;
        if damage.lost.len() < NAMED {
            damage.lost.push(lost);
        }
        self.lost += 1;
    }
}

/// What is wrong with a chunk.
#[derive(Clone)]
pub(crate) struct Fault {
    pub(crate) object: String,
    pub(crate) what: String,
}

/// One examination.
pub(crate) struct Examination<'a> {
    pub(crate) cx: &'a Context,
    pub(crate) reader: Arc<ChunkReader>,
    /// Packs that are in the sink, and their lengths.
    pub(crate) stored: HashMap<PackId, u64>,
    /// Chunks that were read and are bad in a pack.
    pub(crate) bad: HashMap<(PackId, ChunkId), String>,
    /// Packs that cannot say themselves what is whole in them.
    pub(crate) opaque: HashMap<PackId, String>,
    /// Packs that were read, and whether they are sound.
    pub(crate) read: HashMap<PackId, bool>,
    /// Packs that hold what was examined.
    pub(crate) needed: HashSet<PackId>,
    /// Packs that no segment lists.
    pub(crate) unlisted: HashSet<PackId>,
    /// Something that was examined is in such packs only.
    pub(crate) needed_unlisted: bool,
    /// Artifacts that are known not to be whole: snapshot, source and artifact.
    pub(crate) broken: HashSet<String>,
    pub(crate) findings: Findings,
    pub(crate) report: VerifyReport,
}

impl Examination<'_> {
    /// Packs that the index lists and the sink does not have whole.
    pub(crate) fn packs_in_index(&mut self) -> Result<()> {
        for (id, size) in self.reader.index().packs() {
            let what = match self.stored.get(&id) {
                Some(stored) if *stored == u64::from(size) => continue,
                Some(stored) => format!("it has {stored} bytes instead of {size}"),
                None => "it is gone".to_owned(),
            };
            self.findings.add(pack_key(id)?.as_str(), what);
        }
        Ok(())
    }

    /// A pack that is gone and that nothing misses, because all that is needed of it is elsewhere too, is
    /// no damage any more. Only to be asked when everything that was to be examined was.
    pub(crate) fn forgive(&mut self, everything: bool) {
        let all = if everything { "" } else { " of what was examined" };
        for id in self.reader.index().packs().into_keys().filter(|id| !self.stored.contains_key(id))
        {
            let Ok(key) = pack_key(id) else { continue };
            if self.findings.by_object.get(key.as_str()).is_some_and(|d| d.lost_count == 0) {
                self.findings.by_object.remove(key.as_str());
                self.report
                    .notes
                    .push(format!("pack {key} is gone, and nothing{all} is missing by it"));
            }
        }
    }

    /// What is wrong with a chunk, if no home has it whole.
    pub(crate) async fn fault(&mut self, chunk: &ChunkRef, count: bool) -> Result<Option<Fault>> {
        let mut homes = self.reader.index().homes(&chunk.id)?;
        homes.retain(|p| p.len == chunk.len);
        if count {
            self.report.chunks += 1;
            self.needed.extend(homes.iter().map(|p| p.pack));
            self.needed_unlisted |=
                !homes.is_empty() && homes.iter().all(|p| self.unlisted.contains(&p.pack));
        }
        let mut fault = Fault {
            object: "index".to_owned(),
            what: "no index segment and no pack knows it".to_owned(),
        };
        for home in homes {
            match self.home_fault(&home, chunk).await? {
                None => return Ok(None),
                Some(f) => fault = f,
            }
        }
        Ok(Some(fault))
    }

    pub(crate) async fn home_fault(&self, home: &Place, chunk: &ChunkRef) -> Result<Option<Fault>> {
        let object = pack_key(home.pack)?.to_string();
        let end = u64::from(home.offset) + u64::from(home.stored);
        let what = match self.stored.get(&home.pack) {
            None => "it is gone".to_owned(),
            Some(size) if *size < end => "it is too short".to_owned(),
            Some(_) if self.opaque.contains_key(&home.pack) => {
                match self.reader.chunk_at(self.cx, *chunk, home).await {
                    Ok(()) => return Ok(None),
                    Err(e) if e.is_passing() => return Err(e),
                    Err(_) => self.opaque[&home.pack].clone(),
                }
            }
            Some(_) => match self.bad.get(&(home.pack, chunk.id)) {
                Some(what) => what.clone(),
                None => return Ok(None),
            },
        };
        Ok(Some(Fault { object, what }))
    }

    pub(crate) async fn source(
        &mut self,
        snapshot: &Snapshot,
        record: &SourceRecord,
        count: bool,
    ) -> Result<()> {
        for artifact in &record.artifacts {
            let place = format!("{}:{}/{}", snapshot.id, record.name, artifact.meta.name);
            let lost = self.findings.lost;
            match &artifact.content {
                ContentRef::Bytes { content } => self.list(content, &place, count).await?,
                ContentRef::Tree { entries, .. } => self.tree(entries, &place, count).await?,
            }
            if self.findings.lost > lost {
                self.broken.insert(place);
            }
        }
        Ok(())
    }

    /// A content: its list, and that every chunk is there.
    pub(crate) async fn list(&mut self, list: &ChunkList, place: &str, count: bool) -> Result<()> {
        let mut refs = self.reader.refs(self.cx, list);
        while let Some(chunk) = refs.next().await {
            self.cx.check()?;
            match chunk {
                Ok(chunk) => {
                    if let Some(f) = self.fault(&chunk, count).await? {
                        self.findings.lose(&f.object, &f.what, place.to_owned());
                    }
                }
                Err(e) => self.unreadable(e, place.to_owned())?,
            }
        }
        if list.depth > 0 && count {
            for node in &list.chunks {
                drop(self.fault(node, true).await?);
            }
        }
        Ok(())
    }

    /// Metadata that could not be read.
    pub(crate) fn unreadable(&mut self, e: Error, place: String) -> Result<()> {
        if e.is_passing() {
            return Err(e);
        }
        let object = e.context().iter().find(|(k, _)| *k == "object").map_or("index", |(_, v)| v);
        let object = object.to_owned();
        self.findings.lose(&object, &e.chain(), place);
        Ok(())
    }

    /// A tree: its entries, chunk by chunk, and the content of each.
    pub(crate) async fn tree(
        &mut self,
        entries: &ChunkList,
        place: &str,
        count: bool,
    ) -> Result<()> {
        let mut refs = self.reader.refs(self.cx, entries);
        let mut last = String::new();
        while let Some(chunk) = refs.next().await {
            let behind = || {
                if last.is_empty() {
                    place.to_owned()
                } else {
                    format!("{place}, entries behind {last}")
                }
            };
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(e) => {
                    let lost = behind();
                    self.unreadable(e, lost)?;
                    continue;
                }
            };
            if let Some(f) = self.fault(&chunk, count).await? {
                let lost = behind();
                self.findings.lose(&f.object, &f.what, lost);
                continue;
            }
            let bytes = match self.reader.chunk(self.cx, chunk).await {
                Ok(bytes) => bytes,
                Err(e) => {
                    let lost = behind();
                    self.unreadable(e, lost)?;
                    continue;
                }
            };
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (stored, after) = match decode_entry(rest) {
                    Ok(decoded) => decoded,
                    Err(e) => {
                        self.unreadable(e, place.to_owned())?;
                        break;
                    }
                };
                rest = after;
                last = stored.entry.path.display();
                self.list(&stored.content, &format!("{place}/{last}"), count).await?;
            }
        }
        Ok(())
    }

    /// Take over what reading packs has brought.
    pub(crate) fn take_over(&mut self, packs: Vec<PackRead>) -> Result<()> {
        for PackRead { id, len, found, surplus } in packs {
            if surplus && !found.opaque {
                let what = "the index says that it holds what it does not hold";
                self.opaque.insert(id, what.to_owned());
            }
            self.report.packs += 1;
            self.report.bytes_read += len;
            self.read.insert(id, found.whole.is_none());
            if let Some(what) = found.whole {
                self.findings.add(pack_key(id)?.as_str(), what.clone());
                if found.opaque {
                    self.opaque.insert(id, what);
                }
            }
            self.bad.extend(found.bad.into_iter().map(|(chunk, what)| ((id, chunk), what)));
        }
        Ok(())
    }

    /// All artifacts of some sources: see [`Examination::source`].
    pub(crate) async fn sources(
        &mut self,
        sources: &[(&Snapshot, &SourceRecord)],
        count: bool,
    ) -> Result<()> {
        for (snapshot, record) in sources {
            self.source(snapshot, record, count).await?;
        }
        Ok(())
    }

    /// What the sources say. Of what is known not to be whole they say nothing new.
    pub(crate) fn hear(&mut self, answers: Vec<Answer>) -> Result<()> {
        for Answer { place, checked } in answers {
            if self.broken.contains(&place) {
                continue;
            }
            match checked {
                Ok(found) => {
                    for finding in found.0 {
                        self.findings.lose(
                            &place,
                            "the source says that it would not restore as it was",
                            format!("{}: {}", finding.place, finding.what),
                        );
                    }
                }
                // That there is no room for a check, or that this program does not know the kind, says nothing
                // about what is stored.
                Err(e) if !matches!(e.reason(), Reason::NoSpace | Reason::Unsupported) => {
                    self.unreadable(e, place)?;
                }
                Err(e) => {
                    let note = format!("{place} was not checked by its source: {}", e.chain());
                    self.report.notes.push(note);
                }
            }
        }
        Ok(())
    }
}

/// A pack that was read whole.
pub(crate) struct PackRead {
    id: PackId,
    len: u64,
    found: PackFindings,
    /// The index says that more is in it than its trailer does.
    surplus: bool,
}

/// Read packs whole, several at once, and compare every chunk with its name.
pub(crate) async fn read_packs(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    mut packs: Vec<(PackId, u64)>,
) -> Result<Vec<PackRead>> {
    packs.sort_unstable();
    let index = Arc::clone(reader.index());
    let rows = &cx.blocking(move || index.rows_by_pack()).await?;
    cx.progress().expect_bytes(packs.iter().map(|(_, size)| size).sum());
    // Each holds a pack, one opened frame and its raw bytes: see the memory budget. One more than computes is
    // fetched meanwhile.
    let concurrency = reader.sink().info().concurrency;
    let at_once = concurrency.clamp(1, cx.parallelism().clamp(1, 2) + 1);
    stream::iter(packs)
        .map(|(id, size)| {
            let reader = Arc::clone(reader);
            async move {
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
                let found = examine_pack(cx, &reader, id, bytes).await?;
                // What the index says beyond that has to be tried.
                let surplus = rows.get(&id).is_some_and(|rows| *rows > found.rows);
                Ok(PackRead { id, len, found, surplus })
            }
        })
        .buffer_unordered(at_once)
        .try_collect()
        .await
}

/// What a source says about an artifact.
pub(crate) struct Answer {
    /// Which: snapshot, source and artifact.
    place: String,
    checked: Result<source::Findings>,
}

/// Ask the sources whether artifacts would restore; the same content once. Contents of files are not read for
/// it: their packs are read meanwhile, and what is found bad there counts.
pub(crate) async fn ask(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    registry: &Registry,
    sources: &[(&Snapshot, &SourceRecord)],
) -> Result<Vec<Answer>> {
    let mut asked = HashSet::new();
    let mut questions = Vec::new();
    for (snapshot, record) in sources {
        for artifact in &record.artifacts {
            let list = match &artifact.content {
                ContentRef::Bytes { content } => content,
                ContentRef::Tree { entries, .. } => entries,
            };
            if asked.insert(list) {
                let place = format!("{}:{}/{}", snapshot.id, record.name, artifact.meta.name);
                questions.push((place, *record, artifact));
            }
        }
    }
    stream::iter(questions)
        .map(async |(place, record, artifact)| {
            let source =
                match registry.build(&record.kind, record.name.clone(), record.settings.clone()) {
                    Ok(source) => source,
                    Err(e) if !registry.kinds().any(|kind| kind == record.kind) => {
                        let checked = Err(Error::new(Reason::Unsupported, e.chain()));
                        return Ok(Answer { place, checked });
                    }
                    Err(e) => return Ok(Answer { place, checked: Err(e) }),
                };
            let body = body(cx, reader, artifact);
            match guarded(cx.run(source.check(cx, &artifact.meta, body))).await {
                Err(e) if e.is_cancelled() => Err(e),
                checked => Ok(Answer { place, checked }),
            }
        })
        .buffered(CHECKS_AT_ONCE)
        .try_collect()
        .await
}

fn body(cx: &Context, reader: &Arc<ChunkReader>, artifact: &ArtifactRecord) -> Body {
    match &artifact.content {
        ContentRef::Bytes { content } => Body::Bytes(reader.bytes(cx, content)),
        ContentRef::Tree { entries, .. } => {
            Body::Tree(Box::new(StoredTreeReader::verified(reader, cx, entries)))
        }
    }
}

/// What is wrong with a pack.
#[derive(Default)]
struct PackFindings {
    /// As a whole.
    whole: Option<String>,
    /// Its chunks that cannot be had.
    bad: Vec<(ChunkId, String)>,
    /// What it holds could not be read from it: each chunk has to be tried.
    opaque: bool,
    /// Rows of the index that are what its trailer says.
    rows: u64,
}

/// Stored bytes of frames that are examined in one piece of work: others who compute get their turn between.
const SLICE: u64 = 2 << 20;

async fn examine_pack(
    cx: &Context,
    reader: &Arc<ChunkReader>,
    id: PackId,
    bytes: Bytes,
) -> Result<PackFindings> {
    let mut findings = PackFindings::default();
    let this = Arc::clone(reader);
    let opened = cx.compute(move || {
        let contents = read_pack(id, &bytes, this.keys());
        let opened = match contents {
            Ok(contents) => {
                let rows = count_rows(&this, &contents)?;
                let sealer = this.open_header(&contents.header).map_err(|e| e.chain());
                Ok((contents.frames, sealer, rows))
            }
            Err(e) => Err(e),
        };
        Ok((Vec::from(bytes), opened))
    });
    let (mut pack, opened) = opened.await?;
    let (frames, sealer) = match opened {
        Ok((frames, sealer, rows)) => {
            findings.rows = rows;
            (Arc::new(frames), Arc::new(sealer))
        }
        // What its own trailer says counts no more: another pack may stand here.
        Err(e) => {
            return Ok(PackFindings { whole: Some(e.chain()), opaque: true, ..findings });
        }
    };
    let mut from = 0;
    while from < frames.len() {
        let mut len = 0;
        let mut to = from;
        while to < frames.len() && (to == from || len < SLICE) {
            len += u64::from(frames[to].stored);
            to += 1;
        }
        let (this, frames, sealer) = (Arc::clone(reader), Arc::clone(&frames), Arc::clone(&sealer));
        let work = cx.compute(move || {
            let mut bad = Vec::new();
            for (number, frame) in frames.iter().enumerate().take(to).skip(from) {
                let raw = sealer.as_ref().as_ref().map_err(String::clone).and_then(|sealer| {
                    open_frame(&this, sealer, number as u64, frame, &mut pack)
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
    Ok(findings)
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
