//! A restore: everything is read and looked at before the first collection is touched. A collection that is replaced is
//! kept first; what comes in its place is built under another name and counted before the old one goes; and the old one
//! comes back if anything fails.

mod live;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use snapkit_core::artifact::{ArtifactMeta, Body};
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::facts::{Difference, FactValue, Facts, Standing};
use snapkit_core::scratch::Room;
use snapkit_core::source::{Restore, RestoreReport, RestoreRequest, Target};
use snapkit_core::{Error, Reason, Result};

use self::live::Live;
use crate::archive::{Archive, from_file};
use crate::config::QdrantConfig;
use crate::document::{CollectionDocument, MAX_DOCUMENT, Part, Shard};
use crate::look::Nodes;
use crate::points;

/// How long the documents of all collections together may be, in bytes: they are held in memory.
const MAX_DOCUMENTS: usize = 4 * MAX_DOCUMENT;

/// A collection on its way back.
#[derive(Debug)]
struct Taken {
    document: CollectionDocument,
    shards: BTreeMap<u32, Archive>,
}

/// Where collections go.
enum Place {
    /// Their parts as files, which a server takes.
    Directory(PathBuf),
    /// Into a server.
    Server(Box<Live>),
}

/// A restore into one server.
pub(crate) struct QdrantRestore {
    place: Place,
    captured: Facts,
    allow_damage: bool,
    read_back: bool,
    room: Room,
    documents: BTreeMap<String, CollectionDocument>,
    shards: BTreeMap<(String, u32), Archive>,
    /// How long all documents are, in bytes.
    documented: usize,
    /// What was written, and the digest of it once it is whole.
    written: Vec<(PathBuf, Option<blake3::Hash>)>,
}

fn not_empty(place: impl std::fmt::Display) -> Error {
    Error::new(Reason::TargetNotEmpty, "the target holds data").with("target", place)
}

impl QdrantRestore {
    /// Examine the target.
    pub(crate) async fn prepare(
        cx: &Context,
        config: &QdrantConfig,
        request: &RestoreRequest,
    ) -> Result<Self> {
        let place = match &request.target {
            Target::Directory(directory) => {
                let looked = directory.clone();
                let is_taken = cx.blocking(move || {
                    let what = || format!("cannot examine {}", looked.display());
                    Ok(fs::read_dir(&looked).doing(what)?.next().is_some())
                });
                if is_taken.await? {
                    return Err(not_empty(directory.display()));
                }
                Place::Directory(directory.clone())
            }
            target => {
                let config = match target {
                    Target::Url(url) => config.at(url)?,
                    _ => config.clone(),
                };
                let nodes = Nodes::new(&config)?;
                let first = nodes.first()?;
                let version = first.version(cx).await?;
                let there = first.collections(cx).await?;
                let parts = request.record.artifacts.iter();
                let named = parts.filter_map(|artifact| match Part::parse(&artifact.meta.name)? {
                    Part::Document(name) => Some(name),
                    Part::Shard(..) => None,
                });
                for name in named {
                    if there.iter().any(|there| there == name) && !request.overwrite {
                        return Err(not_empty(&config.url).with("collection", name));
                    }
                }
                Place::Server(Box::new(Live {
                    nodes,
                    version,
                    config,
                    overwrite: request.overwrite,
                    recovery: request.recovery.clone(),
                    read_back: request.read_back,
                }))
            }
        };
        Ok(Self {
            place,
            captured: request.record.facts.clone(),
            allow_damage: request.allow_damage,
            read_back: request.read_back,
            room: Room::new(config.scratch.unwrap_or(u64::MAX)),
            documents: BTreeMap::new(),
            shards: BTreeMap::new(),
            documented: 0,
            written: Vec::new(),
        })
    }

    /// All collections of which everything has come, and what is wrong with others.
    fn gather(
        documents: BTreeMap<String, CollectionDocument>,
        mut shards: BTreeMap<(String, u32), Archive>,
    ) -> (BTreeMap<String, Taken>, Vec<Error>) {
        let mut all = BTreeMap::new();
        let mut lacking = Vec::new();
        for (name, document) in documents {
            let mut own = BTreeMap::new();
            for Shard { id, .. } in &document.shards {
                own.extend(shards.remove(&(name.clone(), *id)).map(|archive| (*id, archive)));
            }
            match document.shards.iter().find(|shard| !own.contains_key(&shard.id)) {
                Some(shard) => {
                    let what = "a collection is restored whole: one of its shards did not come";
                    let e = Error::invalid(what).with("shard", shard.id);
                    lacking.push(e.with("collection", name));
                }
                None => drop(all.insert(name, Taken { document, shards: own })),
            }
        }
        for (name, shard) in shards.into_keys() {
            let what = "a collection is restored whole: its description did not come";
            lacking.push(Error::invalid(what).with("collection", name).with("shard", shard));
        }
        (all, lacking)
    }

    /// Put a part into a file.
    async fn write(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()> {
        let Place::Directory(directory) = &self.place else { return Ok(()) };
        let path = directory.join(meta.name.as_str());
        let hashed = std::sync::Arc::new(std::sync::Mutex::new(blake3::Hasher::new()));
        let hasher = std::sync::Arc::clone(&hashed);
        let body = Box::pin(body.into_bytes()?.inspect_ok(move |piece| {
            hasher.lock().unwrap_or_else(std::sync::PoisonError::into_inner).update(piece);
        }));
        self.written.push((path.clone(), None));
        if let Err(e) = Archive::write(cx, path.clone(), body).await {
            if e.reason() == Reason::AlreadyExists {
                // It is somebody else's.
                self.written.pop();
            }
            return Err(e);
        }
        let hash = hashed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).finalize();
        self.written.pop();
        self.written.push((path, Some(hash)));
        Ok(())
    }

    /// What was written, read back.
    async fn read_files(self, cx: &Context) -> Result<RestoreReport> {
        let mut report = RestoreReport::default();
        report.notes.push(
            "each file is what `POST /collections/NAME/shards/ID/snapshots/upload` takes, once the collection is there"
                .to_owned(),
        );
        if !self.read_back {
            return Ok(report);
        }
        let whole = self.written.iter().filter_map(|(path, hash)| Some((path, (*hash)?)));
        for (path, expected) in whole {
            let mut hasher = blake3::Hasher::new();
            let mut body = from_file(cx, path.clone());
            let mut document = Vec::new();
            let is_document = path.to_string_lossy().ends_with(crate::document::COLLECTION);
            while let Some(piece) = cx.run(body.try_next()).await? {
                hasher.update(&piece);
                if is_document && document.len() < MAX_DOCUMENT {
                    document.extend_from_slice(&piece);
                }
            }
            let found = hasher.finalize();
            if found != expected {
                report.differences.push(Difference {
                    fact: format!("content of {}", path.display()),
                    expected: expected.to_hex().to_string(),
                    found: found.to_hex().to_string(),
                });
            } else if is_document {
                let document = CollectionDocument::parse(&document)?;
                points::tell(&mut report.facts, &document, Standing::Observed, None);
            }
        }
        // Files have no points to be counted; their content is proven byte by byte.
        let of_points = |name: &&String| name.ends_with(".points") || name.ends_with(".digest");
        report.beside = self.captured.0.keys().filter(of_points).cloned().collect();
        Ok(report)
    }
}

/// How many points a collection had when it was captured, and whether that is certain.
fn expected(captured: &Facts, name: &str) -> Option<(i64, bool)> {
    let fact = captured.0.get(&format!("{name}.points"))?;
    match (&fact.value, fact.standing) {
        (FactValue::Number(count), Standing::Pinned) => Some((*count, true)),
        (FactValue::Number(count), Standing::Observed) => Some((*count, false)),
        _ => None,
    }
}

#[async_trait]
impl Restore for QdrantRestore {
    async fn put(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()> {
        let tell = |e: Error| e.with("artifact", &meta.name);
        let part = Part::parse(&meta.name)
            .ok_or_else(|| tell(Error::corrupt("no part of a collection is called so")))?;
        if matches!(self.place, Place::Directory(_)) {
            return self.write(cx, meta, body).await;
        }
        match part {
            Part::Document(name) => {
                let mut body = body.into_bytes()?;
                let mut text = Vec::new();
                while let Some(piece) = cx.run(body.try_next()).await? {
                    if text.len() + piece.len() > MAX_DOCUMENT {
                        return Err(tell(Error::corrupt(
                            "the description of a collection is too long",
                        )));
                    }
                    text.extend_from_slice(&piece);
                }
                self.documented += text.len();
                if self.documented > MAX_DOCUMENTS {
                    let what = "the descriptions of all collections are too long";
                    return Err(tell(Error::corrupt(what)));
                }
                let document = CollectionDocument::parse(&text).map_err(tell)?;
                if document.name != name {
                    return Err(tell(Error::corrupt("the description is of another collection")));
                }
                if let Place::Server(live) = &self.place {
                    document.check_version(&live.version).map_err(tell)?;
                }
                self.documents.insert(name.to_owned(), document);
            }
            Part::Shard(name, shard) => {
                let (archive, wrong) = Archive::spool(cx, &self.room, body.into_bytes()?).await?;
                if let Some(what) = wrong.filter(|_| !self.allow_damage) {
                    return Err(tell(Error::corrupt(what)));
                }
                self.shards.insert((name.to_owned(), shard), archive);
            }
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>, cx: &Context) -> Result<RestoreReport> {
        let documents = std::mem::take(&mut self.documents);
        let shards = std::mem::take(&mut self.shards);
        match self.place {
            Place::Directory(_) => self.read_files(cx).await,
            Place::Server(live) => {
                let (collections, lacking) = Self::gather(documents, shards);
                let may_lack = self.allow_damage && !collections.is_empty();
                let mut problems = Vec::new();
                for e in lacking {
                    if !may_lack {
                        return Err(e);
                    }
                    problems.push(format!("left out: {}", e.chain()));
                }
                let mut report = live.restore(cx, collections, &self.captured).await?;
                report.problems.append(&mut problems);
                Ok(report)
            }
        }
    }

    async fn abort(self: Box<Self>, cx: &Context) -> Result<()> {
        let written = self.written;
        cx.blocking(move || {
            written.iter().for_each(|(path, _)| drop(fs::remove_file(path)));
            Ok(())
        })
        .await
    }
}
