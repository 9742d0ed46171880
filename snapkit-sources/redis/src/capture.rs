//! A capture: the server fixes the moment, what it held then is taken at its own pace, and handed out in order.

use std::collections::VecDeque;
use std::io::{Cursor, Read as _};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape, in_pieces};
use snapkit_core::context::{Context, Task};
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::scratch::{Room, Scratch};
use snapkit_core::source::{Capture, CaptureReport, Consistency, Cut};
use snapkit_core::{Error, Reason, Result};

use crate::assemble::unreadable;
use crate::config::RedisConfig;
use crate::connection::Connection;
use crate::functions;
use crate::rdb::{self, Snapshot};
use crate::replica::{Pinned, Position};
use crate::server::{About, Beside};
use crate::spool::{self, Spool};
use crate::tally::Tally;

/// The artifact of all keys.
pub(crate) const KEYS: &str = "keys";
/// The artifact of all functions.
pub(crate) const FUNCTIONS: &str = "functions";
/// The artifact of everything, as the server gave it.
pub(crate) const RAW: &str = "dump.rdb";

/// What a server needs to know: the version of the format that knows all values.
pub(crate) const VERSION: &str = "rdb_version";

/// What the server held.
#[derive(Debug)]
enum Content {
    /// Key by key.
    Keys(Box<Spool>),
    /// As one piece, which nobody here can take apart.
    Raw(Scratch),
}

/// An artifact that can be opened.
#[derive(Debug)]
enum Ready {
    Text(Bytes),
    Raw(Scratch),
    Keys(Box<Spool>),
}

#[derive(Debug)]
enum Stage {
    /// Connected twice: one becomes the replica, the other asks.
    Ready(Box<Mutex<(Connection, Connection)>>),
    /// Pinned, and on its way into scratch space.
    Coming(Task<Content>),
    Nothing,
}

/// A capture of one server.
#[derive(Debug)]
pub(crate) struct RedisCapture {
    /// Of all that this capture does: cancelled when it ends.
    own: Context,
    config: RedisConfig,
    about: About,
    beside: Beside,
    stage: Stage,
    position: Option<Position>,
    tally: Option<Tally>,
    functions: Option<Facts>,
    /// What is still to be named.
    named: VecDeque<ArtifactMeta>,
    /// What was named.
    ready: Vec<(ArtifactName, Ready)>,
    has_content: bool,
}

impl RedisCapture {
    /// Connect, and see whether the server can be captured.
    pub(crate) async fn prepare(cx: &Context, config: &RedisConfig) -> Result<Self> {
        let own = cx.child();
        let (inner, plain) = (own.clone(), config.clone());
        let prepared = own.run(own.blocking(move || {
            let open = || {
                Connection::open(&inner, &plain.address(), plain.login().as_ref(), plain.timeout)
            };
            let (replica, mut asking) = (open()?, open()?);
            let about = About::ask(&mut asking)?;
            about.check(&asking)?;
            let beside = Beside::ask(&mut asking)?;
            Ok((about, beside, (replica, asking)))
        }));
        let (about, beside, connections) = prepared.await?;
        Ok(Self {
            own,
            config: config.clone(),
            about,
            beside,
            stage: Stage::Ready(Box::new(Mutex::new(connections))),
            position: None,
            tally: None,
            functions: None,
            named: VecDeque::new(),
            ready: Vec::new(),
            has_content: false,
        })
    }

    fn name(&mut self, meta: ArtifactMeta, ready: Ready) {
        self.ready.push((meta.name.clone(), ready));
        self.named.push_back(meta);
    }

    fn name_text(&mut self, name: &str, text: Option<Vec<u8>>) -> Result<()> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(()) };
        let meta = ArtifactMeta::new(
            ArtifactName::new(name)?,
            Shape::Bytes,
            "text/plain",
            Chunking::Whole,
        )
        .size(text.len() as u64);
        self.name(meta, Ready::Text(text.into()));
        Ok(())
    }

    /// Name what the server held, once all of it has come.
    async fn name_content(&mut self) -> Result<()> {
        let Stage::Coming(coming) = std::mem::replace(&mut self.stage, Stage::Nothing) else {
            return Err(Error::invalid("the capture has not been frozen"));
        };
        match coming.await? {
            Content::Raw(scratch) => {
                let meta = ArtifactMeta::new(
                    ArtifactName::new(RAW)?,
                    Shape::Bytes,
                    "application/vnd.redis.rdb",
                    Chunking::Content,
                );
                self.name(meta.size(scratch.len()), Ready::Raw(scratch));
            }
            Content::Keys(mut spool) => {
                let sources = std::mem::take(&mut spool.functions);
                self.functions = Some(functions::facts(&sources, Standing::Pinned));
                self.tally = Some(spool.tally.clone());
                if !sources.is_empty() {
                    let meta = ArtifactMeta::new(
                        ArtifactName::new(FUNCTIONS)?,
                        Shape::Bytes,
                        functions::MEDIA_TYPE,
                        Chunking::Whole,
                    );
                    let text = functions::join(&sources);
                    self.name(meta.size(text.len() as u64), Ready::Text(text.into()));
                }
                let meta = ArtifactMeta::new(
                    ArtifactName::new(KEYS)?,
                    Shape::Records,
                    "application/vnd.snapkit.redis-keys",
                    Chunking::Records,
                )
                .attribute(VERSION, spool.version.to_string());
                self.name(meta, Ready::Keys(spool));
            }
        }
        Ok(())
    }
}

/// Take everything that the server held, at its own pace.
fn take(cx: &Context, pinned: Pinned, room: &Room, raw: bool) -> Result<Content> {
    let now = u64::try_from(cx.now().0 / 1_000_000_000).unwrap_or(0);
    let is_alone = pinned.is_alone;
    let mut transfer = pinned.transfer()?;
    let mut head = [0; rdb::HEAD];
    transfer.read_exact(&mut head).map_err(unreadable)?;
    let version = rdb::version(&head);
    let unreadable = version.as_ref().is_err_and(|e| e.reason() == Reason::Unsupported);
    if (raw && version.is_ok()) || unreadable {
        if !is_alone {
            let what = "a server before Redis 7.0 cannot be kept as one piece, because it does not say where that ends";
            return Err(Error::new(Reason::Unsupported, what));
        }
        let mut all = Cursor::new(head).chain(transfer.until_closed());
        let kept = spool::keep(cx, room, &mut all)?;
        all.into_inner().1.finish()?;
        return Ok(Content::Raw(kept));
    }
    let snapshot = Snapshot::begin(Cursor::new(head).chain(transfer))?;
    let (spool, all) = Spool::fill(cx, room, snapshot, now)?;
    all.into_inner().1.finish()?;
    Ok(Content::Keys(Box::new(spool)))
}

#[async_trait]
impl Capture for RedisCapture {
    async fn freeze(&mut self, cx: &Context) -> Result<Cut> {
        let Stage::Ready(connections) = std::mem::replace(&mut self.stage, Stage::Nothing) else {
            return Err(Error::invalid("the capture has been frozen already"));
        };
        let (replica, mut asking) =
            connections.into_inner().unwrap_or_else(PoisonError::into_inner);
        let pinning = cx.blocking(move || {
            let pinned = Pinned::begin(replica)?;
            // The server has only one thread: when it answers, it has forked.
            asking.must(&[b"PING"])?;
            Ok((pinned, asking.now()))
        });
        let (pinned, end) = match cx.run(pinning).await {
            Ok(pinned) => pinned,
            Err(e) => {
                self.own.cancel();
                return Err(e);
            }
        };
        let (begin, position) = (pinned.before, pinned.position.clone());
        let raw = self.config.raw || self.beside.has_modules();
        let (inner, room) = (self.own.clone(), Room::new(self.config.scratch.unwrap_or(u64::MAX)));
        let reading = self.own.clone();
        self.stage = Stage::Coming(self.own.spawn(async move {
            reading.blocking(move || take(&inner, pinned, &room, raw)).await
        }));
        let text = format!("{}:{}", position.history, position.offset);
        self.position = Some(position);
        Ok(Cut { begin, end, consistency: Consistency::Point, position: Some(text) })
    }

    /// Nobody was stopped.
    async fn thaw(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn next(&mut self, cx: &Context) -> Result<Option<ArtifactMeta>> {
        if !std::mem::replace(&mut self.has_content, true) {
            cx.run(self.name_content()).await?;
            let (about, beside) = (self.about.text.clone(), std::mem::take(&mut self.beside));
            self.name_text("info", Some(about))?;
            self.name_text("acl", beside.acl)?;
            self.name_text("config", beside.config)?;
            self.name_text("modules", beside.modules)?;
            self.beside.denied = beside.denied;
        }
        Ok(self.named.pop_front())
    }

    async fn open(&self, cx: &Context, name: &ArtifactName) -> Result<Body> {
        let ready = self.ready.iter().find(|(ready, _)| ready == name).ok_or_else(|| {
            Error::new(Reason::NotFound, "no such artifact").with("artifact", name)
        })?;
        Ok(match &ready.1 {
            Ready::Text(text) => Body::Bytes(in_pieces(text)),
            Ready::Raw(scratch) => Body::Bytes(scratch.stream(cx, 0, scratch.len())),
            Ready::Keys(spool) => Body::Records(Box::new(spool.records()?)),
        })
    }

    async fn finish(self: Box<Self>, _: &Context) -> Result<CaptureReport> {
        let mut facts = Facts::new();
        self.about.observe(&mut facts);
        for right in &self.beside.denied {
            facts.unknown(
                *right,
                format!("this user may not: `ACL SETUSER NAME +{right}` allows it"),
            );
        }
        if let Some(tally) = &self.tally {
            tally.write(Standing::Pinned, &mut facts);
        }
        facts.0.extend(self.functions.iter().flat_map(|facts| facts.0.clone()));
        self.own.cancel();
        Ok(facts.into())
    }

    async fn abort(self: Box<Self>, _: &Context) -> Result<()> {
        self.own.cancel();
        Ok(())
    }
}

impl Drop for RedisCapture {
    fn drop(&mut self) {
        // What reads ends within a moment.
        self.own.cancel();
    }
}
