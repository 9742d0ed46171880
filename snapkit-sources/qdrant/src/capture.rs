//! A capture: a snapshot of each shard, and with it what is in none.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape, in_pieces};
use snapkit_core::context::Context;
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::scratch::Room;
use snapkit_core::source::{Capture, CaptureReport, Consistency, Cut};
use snapkit_core::{Error, Reason, Result};

use crate::archive::{Archive, examined};
use crate::config::{Method, QdrantConfig};
use crate::document::{CollectionDocument, MAX_DOCUMENT, Part, Shard};
use crate::look::{Activity, Nodes, Placed};
use crate::points;
use crate::server::{Server, SnapshotFile};

/// What a document is, and what a snapshot of a shard is.
const DOCUMENT: &str = "application/json";
pub(crate) const SNAPSHOT: &str = "application/vnd.qdrant.snapshot";

/// How long a capture waits for a server that is busy with a collection.
const SETTLE: Duration = Duration::from_secs(30);

/// How often it looks meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long the removal of snapshots may take.
const RELEASE: Duration = Duration::from_secs(30);

/// A request whose answer is awaited, whoever still waits for it.
type Asked = Pin<Box<dyn Future<Output = Result<SnapshotFile>> + Send>>;

/// A snapshot of a shard that a node has made.
#[derive(Clone, Debug)]
struct Pinned {
    collection: String,
    placed: Placed,
    held: Held,
}

#[derive(Clone, Debug)]
enum Held {
    /// On the node, until it is removed.
    There(SnapshotFile),
    /// Here.
    Here(Archive),
}

/// A collection as it was when it was pinned.
#[derive(Debug)]
struct Collection {
    document: CollectionDocument,
    /// What its shards consisted of before, where the server says that.
    before: Option<Vec<Value>>,
    activity: Activity,
    placed: Vec<Placed>,
}

/// Collections on their way into a snapshot.
pub(crate) struct QdrantCapture {
    config: Arc<QdrantConfig>,
    nodes: Nodes,
    version: String,
    room: Room,
    asked: Mutex<Option<(String, Placed, Asked)>>,
    collections: Vec<Collection>,
    pinned: Vec<Pinned>,
    artifacts: std::vec::IntoIter<ArtifactMeta>,
    content: BTreeMap<ArtifactName, Content>,
}

#[derive(Clone, Debug)]
enum Content {
    Document(Bytes),
    Shard(Box<Pinned>),
}

impl QdrantCapture {
    /// Ask whether the server is one, and has what is asked for.
    pub(crate) async fn prepare(cx: &Context, config: Arc<QdrantConfig>) -> Result<Self> {
        let nodes = Nodes::new(&config)?;
        let version = nodes.first()?.version(cx).await?;
        let names = nodes.collections(cx, &config).await?;
        if names.is_empty() {
            let what = "the server has no collection that is asked for";
            return Err(Error::new(Reason::SourceMissing, what).with("url", &config.url));
        }
        for name in &names {
            nodes.place(cx, name).await.map_err(|e| e.with("collection", name))?;
            // The name of an artifact has an end.
            Part::Shard(name, u32::MAX).artifact()?;
        }
        settle(cx, &nodes, &names).await?;
        Ok(Self {
            room: Room::new(config.scratch.unwrap_or(u64::MAX)),
            config,
            nodes,
            version,
            asked: Mutex::default(),
            collections: Vec::new(),
            pinned: Vec::new(),
            artifacts: Vec::new().into_iter(),
            content: BTreeMap::new(),
        })
    }

    /// What collections are, and what their shards consist of.
    async fn look(&self, cx: &Context) -> Result<Vec<Collection>> {
        let first = self.nodes.first()?;
        let aliases = first.aliases(cx).await?;
        let mut collections = Vec::new();
        for name in self.nodes.collections(cx, &self.config).await? {
            let (document, placed, activity) =
                self.nodes.collection(cx, &name, &self.version, &aliases).await?;
            let before = manifests(cx, &name, &placed).await;
            collections.push(Collection { document, before, activity, placed });
        }
        Ok(collections)
    }

    /// Have the nodes pin a shard. Who is cancelled meanwhile takes over in `abort` what is made.
    async fn pin(&mut self, cx: &Context, collection: &str, placed: &Placed) -> Result<()> {
        let shard = placed.shard.id;
        let held = match self.config.method {
            Method::Stored => {
                let (node, name, inner) =
                    (placed.node.clone(), collection.to_owned(), cx.unhurried());
                let before = node.snapshots(cx, &name, shard).await?;
                cx.check()?;
                let asked: Asked =
                    Box::pin(async move { node.make_snapshot(&inner, &name, shard, before).await });
                let awaited = (collection.to_owned(), placed.clone(), asked);
                *self.asked.get_mut().unwrap_or_else(PoisonError::into_inner) = Some(awaited);
                return self.take_over(cx).await;
            }
            Method::Streamed => Held::Here(self.fetch(cx, collection, placed).await?),
        };
        self.pinned.push(Pinned {
            collection: collection.to_owned(),
            placed: placed.clone(),
            held,
        });
        Ok(())
    }

    /// The answer that is awaited.
    async fn take_over(&mut self, cx: &Context) -> Result<()> {
        let asked = self.asked.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some((_, _, request)) = asked.as_mut() else { return Ok(()) };
        // A wait that is given up leaves it as it is.
        let answer = cx.run(async { Ok(request.as_mut().await) }).await?;
        let Some((collection, placed, _)) = asked.take() else { return Ok(()) };
        let held = Held::There(answer.map_err(|e| e.with("collection", &collection))?);
        self.pinned.push(Pinned { collection, placed, held });
        Ok(())
    }

    /// All of a shard that the node streams, looked at on the way.
    async fn fetch(&self, cx: &Context, collection: &str, placed: &Placed) -> Result<Archive> {
        let body = placed.node.streamed(cx, collection, placed.shard.id).await;
        let tell = |e: Error| e.with("collection", collection).with("shard", placed.shard.id);
        match Archive::spool(cx, &self.room, body.map_err(tell)?).await.map_err(tell)? {
            (archive, None) => Ok(archive),
            (_, Some(what)) => Err(tell(
                Error::new(Reason::SourceChanged, what)
                    .with_hint("the server has failed while it sent this: its log says why"),
            )),
        }
    }

    /// Remove what was made. For each that stays, its collection and why.
    async fn release(&mut self, cx: &Context) -> Vec<(String, Error)> {
        let mut stay = Vec::new();
        for Pinned { collection, placed, held } in std::mem::take(&mut self.pinned) {
            if let Held::There(file) = held {
                let (node, shard) = (&placed.node, placed.shard.id);
                let removed = node.remove_snapshot(cx, &collection, shard, &file.name).await;
                stay.extend(removed.err().map(|e| (collection, e)));
            }
        }
        stay
    }
}

/// Wait a while until the server is done with what it does with collections.
async fn settle(cx: &Context, nodes: &Nodes, names: &[String]) -> Result<()> {
    let limit = cx.within(SETTLE);
    for name in names {
        while !nodes.activity(cx, name).await?.is_settled() {
            if limit.sleep(LOOK_AGAIN).await.is_err() {
                return cx.check();
            }
        }
    }
    Ok(())
}

/// What the shards of a collection consist of, if their nodes say that of all.
async fn manifests(cx: &Context, name: &str, placed: &[Placed]) -> Option<Vec<Value>> {
    let mut all = Vec::new();
    for Placed { shard, node } in placed {
        all.push(node.manifest(cx, name, shard.id).await?);
    }
    Some(all)
}

#[async_trait]
impl Capture for QdrantCapture {
    async fn freeze(&mut self, cx: &Context) -> Result<Cut> {
        let collections = self.look(cx).await?;
        let begin = cx.now();
        let mut shards = 0;
        for Collection { document, placed, .. } in &collections {
            for placed in placed {
                self.pin(cx, &document.name, placed).await?;
                shards += 1;
            }
        }
        let end = cx.now();
        let mut artifacts = Vec::new();
        let of = |pinned: &Pinned| (pinned.collection.clone(), pinned.placed.shard.id);
        let pinned: BTreeMap<_, _> = self.pinned.iter().map(|p| (of(p), p.clone())).collect();
        for Collection { document, .. } in &collections {
            let text = serde_json::to_vec_pretty(document)
                .map_err(|e| Error::internal("a document cannot be written").caused_by(e))?;
            if text.len() > MAX_DOCUMENT {
                let what = "what the server says of a collection is too long to be restored";
                let e = Error::new(Reason::LimitExceeded, what).with("collection", &document.name);
                return Err(e.with("bytes", text.len()).with("limit", MAX_DOCUMENT));
            }
            let name = Part::Document(&document.name).artifact()?;
            let meta = ArtifactMeta::new(name.clone(), Shape::Bytes, DOCUMENT, Chunking::Whole);
            artifacts.push(meta.size(text.len() as u64));
            self.content.insert(name, Content::Document(text.into()));
            for Shard { id, .. } in &document.shards {
                let Some(pinned) = pinned.get(&(document.name.clone(), *id)) else { continue };
                let name = Part::Shard(&document.name, *id).artifact()?;
                let meta = ArtifactMeta::new(name.clone(), Shape::Bytes, SNAPSHOT, Chunking::Tar);
                artifacts.push(meta.size(match &pinned.held {
                    Held::There(file) => file.size,
                    Held::Here(archive) => archive.len,
                }));
                self.content.insert(name, Content::Shard(Box::new(pinned.clone())));
            }
        }
        self.artifacts = artifacts.into_iter();
        self.collections = collections;
        // Each shard is of a moment of its own.
        let consistency = if shards == 1 { Consistency::Point } else { Consistency::Fuzzy };
        Ok(Cut { begin, end, consistency, position: None })
    }

    async fn thaw(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn next(&mut self, _: &Context) -> Result<Option<ArtifactMeta>> {
        Ok(self.artifacts.next())
    }

    async fn open(&self, cx: &Context, name: &ArtifactName) -> Result<Body> {
        let content = self.content.get(name).ok_or_else(|| {
            Error::new(Reason::NotFound, "no collection has such a part").with("artifact", name)
        })?;
        Ok(Body::Bytes(match content {
            Content::Document(text) => in_pieces(text),
            Content::Shard(pinned) => match &pinned.held {
                Held::Here(archive) => archive.stream(cx),
                Held::There(file) => {
                    let Placed { shard, node } = &pinned.placed;
                    examined(node.download(cx, &pinned.collection, shard.id, file).await?)
                }
            },
        }))
    }

    async fn finish(mut self: Box<Self>, cx: &Context) -> Result<CaptureReport> {
        // Everything was read; what follows may take long, and may be given up.
        let problems = self.release(&cx.for_cleanup(RELEASE)).await;
        let mut facts = Facts::new();
        facts.observe("server.version", self.version.clone());
        let most = self.config.digest_points;
        for Collection { document, before, activity, placed } in &self.collections {
            let first = self.nodes.first()?;
            let name = &document.name;
            let points = points::read(cx, first, name, most, document.limits()).await;
            // What its files were before it was captured they are after it was counted: nothing was written meanwhile, and
            // nothing is remembered beside them.
            let after = manifests(cx, name, placed).await;
            let is_settled = activity.is_settled()
                && self.nodes.activity(cx, name).await.is_ok_and(|now| now.is_settled());
            let quiet = is_settled && before.is_some() && *before == after;
            if !activity.is_settled() {
                let told = format!(
                    "{} when it was captured: points that had just been deleted may come back",
                    activity.status
                );
                facts.observe(format!("{name}.status"), told);
            }
            let standing = if quiet { Standing::Pinned } else { Standing::Observed };
            let points = points.map(|points| (points, standing));
            let told = points.as_ref().ok().map(|(points, standing)| (points, *standing));
            points::tell(&mut facts, document, Standing::Pinned, told);
            if let Err(e) = points {
                cx.check()?;
                facts.unknown(format!("{name}.points"), e.chain());
            }
        }
        let mut report = CaptureReport::from(facts);
        report.problems = problems;
        Ok(report)
    }

    async fn abort(mut self: Box<Self>, cx: &Context) -> Result<()> {
        let mut stay = self.release(cx).await;
        // What a node still makes is ours to remove, if it is done in the time that there is.
        let awaited = self.take_over(cx).await;
        stay.extend(self.release(&cx.for_cleanup(RELEASE)).await);
        let asked = self.asked.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some((collection, placed, _)), Err(e)) = (asked, awaited) {
            let e = e.with("shard", placed.shard.id).with("url", &placed.node.url);
            let hint =
                "the server still makes a snapshot of the shard: remove it there when it is done";
            stay.push((collection, e.with_hint(hint)));
        }
        match stay.into_iter().next() {
            Some((collection, e)) => Err(e.with("collection", collection)),
            None => Ok(()),
        }
    }
}

/// Counts of what a server has now.
pub(crate) async fn facts(cx: &Context, config: &QdrantConfig) -> Result<Facts> {
    let nodes = Nodes::new(config)?;
    let first: &Server = nodes.first()?;
    let version = first.version(cx).await?;
    let mut facts = Facts::new();
    facts.observe("server.version", version.clone());
    let aliases = first.aliases(cx).await?;
    for name in nodes.collections(cx, config).await? {
        let (document, ..) = nodes.collection(cx, &name, &version, &aliases).await?;
        let points = points::read(cx, first, &name, config.digest_points, document.limits()).await;
        let told = points.as_ref().ok().map(|points| (points, Standing::Observed));
        points::tell(&mut facts, &document, Standing::Observed, told);
        if let Err(e) = points {
            cx.check()?;
            facts.unknown(format!("{name}.points"), e.chain());
        }
    }
    Ok(facts)
}
