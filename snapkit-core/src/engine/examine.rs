//! Examining: object by object and chunk by chunk, with what is lost by each damage.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;

use crate::artifact::SourceName;
use crate::context::Context;
use crate::engine::Repository;
use crate::engine::check::Answer;
use crate::engine::packs::PackRead;
use crate::engine::read::ChunkReader;
use crate::engine::report::{Damage, VerifyReport};
use crate::entries::decode_entry;
use crate::error::{Error, Reason, Result};
use crate::id::{ChunkId, PackId};
use crate::index::Place;
use crate::ledger::line_key;
use crate::manifest::{
    CaptureVerdict, ChunkList, ChunkRef, ContentRef, Head, Snapshot, SourceRecord,
};
use crate::pack::pack_key;
use crate::records::{StoredValue, decode_records};

/// How many lost things are named for each damage.
const NAMED: usize = 100;

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
        if damage.lost.contains(&lost) {
            return;
        }
        damage.lost_count += 1;
        if damage.lost.len() < NAMED {
            damage.lost.push(lost);
        }
        self.lost += 1;
    }
}

/// What is examined: snapshots, or one source of them.
pub(crate) struct Chosen<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) heads: Vec<&'a Head>,
    pub(crate) source: Option<&'a SourceName>,
}

impl Chosen<'_> {
    /// The snapshots, each read when it is its turn.
    pub(crate) fn snapshots<'s>(
        &'s self,
        cx: &'s Context,
    ) -> BoxStream<'s, (&'s Head, Result<Snapshot>)> {
        self.repository.snapshots(cx, &self.heads)
    }

    /// What of a snapshot was chosen and is in it.
    pub(crate) fn records<'s>(
        &self,
        snapshot: &'s Snapshot,
    ) -> impl Iterator<Item = &'s SourceRecord> {
        snapshot.sources.iter().filter(|record| self.wants(record))
    }

    /// Whether a source of a snapshot was chosen and is in it.
    pub(crate) fn wants(&self, record: &SourceRecord) -> bool {
        record.verdict != CaptureVerdict::Failed
            && self.source.is_none_or(|name| record.name == *name)
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
                ContentRef::Records { records, axes, count: expected, .. } => {
                    let found = self.records(records, axes.len(), &place, count).await?;
                    if found.is_some_and(|found| found != *expected) {
                        let e = Error::corrupt("there are not as many records as there should be");
                        self.unreadable(e, place.clone())?;
                    }
                }
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

    /// A sequence of records, chunk by chunk, and the values that are content of their own. Gives how many there are, if
    /// none is lost.
    async fn records(
        &mut self,
        records: &ChunkList,
        axes: usize,
        place: &str,
        count: bool,
    ) -> Result<Option<u64>> {
        let mut found = Some(0);
        let mut refs = self.reader.refs(self.cx, records);
        while let Some(chunk) = refs.next().await {
            self.cx.check()?;
            let read = async {
                let chunk = chunk?;
                if let Some(f) = self.fault(&chunk, count).await? {
                    self.findings.lose(&f.object, &f.what, place.to_owned());
                    return Ok(None);
                }
                let bytes = self.reader.chunk(self.cx, chunk).await?;
                decode_records(&bytes, axes).map(Some)
            };
            let records = match read.await {
                Ok(records) => records,
                Err(e) => {
                    self.unreadable(e, place.to_owned())?;
                    None
                }
            };
            let Some(records) = records else {
                found = None;
                continue;
            };
            found = found.map(|found| found + records.len() as u64);
            for record in records {
                if let StoredValue::Content(list) = &record.value {
                    self.list(list, place, count).await?;
                }
            }
        }
        Ok(found)
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

    /// All artifacts of what was chosen: see [`Examination::source`].
    pub(crate) async fn snapshots(&mut self, chosen: &Chosen<'_>, count: bool) -> Result<()> {
        let mut snapshots = chosen.snapshots(self.cx);
        while let Some((head, snapshot)) = snapshots.next().await {
            match snapshot {
                Ok(snapshot) => {
                    for record in chosen.records(&snapshot) {
                        self.source(&snapshot, record, count).await?;
                    }
                }
                Err(e) if e.is_passing() => return Err(e),
                // It was forgotten meanwhile.
                Err(e) if e.reason() == Reason::NoSnapshot => {}
                Err(e) => {
                    let key = line_key(&head.id)?;
                    self.findings.lose(key.as_str(), &e.chain(), head.id.to_string());
                }
            }
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
