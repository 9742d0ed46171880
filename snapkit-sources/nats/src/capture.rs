//! A capture: the last message of each stream is fixed, and one stream after the other is taken up to there.

use std::collections::{BTreeMap, VecDeque};

use async_trait::async_trait;
use bytes::Bytes;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape, in_pieces};
use snapkit_core::context::Context;
use snapkit_core::facts::Standing;
use snapkit_core::scratch::Room;
use snapkit_core::source::{Capture, CaptureReport, Consistency, Cut};
use snapkit_core::{Error, Reason, Result};

use crate::config::NatsConfig;
use crate::document::SUFFIX;
use crate::look::{Summary, take};
use crate::server::{Server, StreamState};
use crate::spool::Spool;

/// Streams whose last numbers are told as the position of a cut.
const TOLD: usize = 16;

/// An artifact that can be opened.
#[derive(Debug)]
enum Ready {
    Document(Bytes),
    Messages(Box<Spool>),
}

/// A capture of one account.
#[derive(Debug)]
pub(crate) struct NatsCapture {
    config: NatsConfig,
    server: Server,
    room: Room,
    /// What is still to be taken, as it was when it was frozen.
    streams: VecDeque<(String, StreamState)>,
    /// What is still to be named, of the stream that was taken last.
    named: VecDeque<ArtifactMeta>,
    /// What can be opened of it.
    ready: Vec<(ArtifactName, Ready)>,
    /// What was taken before, by its name: the document, and the state and the digest of the messages.
    taken: BTreeMap<String, (Bytes, StreamState, String)>,
    summary: Summary,
    problems: Vec<(String, Error)>,
}

impl NatsCapture {
    /// Connect, and see whether the account can be captured.
    pub(crate) async fn prepare(cx: &Context, config: &NatsConfig) -> Result<Self> {
        let server = Server::connect(cx, config).await?;
        let found = server.streams(cx, |name| config.has(name)).await?;
        // Whoever names one means that it is there.
        let missing =
            config.streams.iter().find(|name| !name.contains('*') && !found.contains_key(*name));
        if let Some(name) = missing {
            let what = "there is no such stream";
            let e = Error::new(Reason::NotFound, what).with("stream", name);
            return Err(e.with("server", &server.url));
        }
        Ok(Self {
            room: Room::new(config.scratch.unwrap_or(u64::MAX)),
            config: config.clone(),
            server,
            streams: VecDeque::new(),
            named: VecDeque::new(),
            ready: Vec::new(),
            taken: BTreeMap::new(),
            summary: Summary::new(Standing::Pinned),
            problems: Vec::new(),
        })
    }

    async fn take_next(&mut self, cx: &Context) -> Result<()> {
        // There is scratch space for one at a time.
        self.ready.clear();
        let Some((name, state)) = self.streams.pop_front() else { return Ok(()) };
        let taken = match take(cx, &self.server, &name, &self.room, Some(state)).await {
            Ok(taken) => taken,
            // The others can be captured all the same.
            Err(e) if matches!(e.reason(), Reason::Unsupported | Reason::NotFound) => {
                self.problems.push((name, e));
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let tally = &taken.messages.tally;
        self.summary.add(&taken.document, tally);
        let document = Bytes::from(taken.document.encode()?);
        self.taken.insert(name.clone(), (document.clone(), state, tally.digest()));
        let meta = ArtifactMeta::new(
            ArtifactName::new(format!("{name}{SUFFIX}"))?,
            Shape::Bytes,
            "application/json",
            Chunking::Whole,
        );
        let meta = meta.size(document.len() as u64);
        self.ready.push((meta.name.clone(), Ready::Document(document)));
        self.named.push_back(meta);
        let meta = ArtifactMeta::new(
            ArtifactName::new(name)?,
            Shape::Records,
            "application/vnd.snapkit.nats-messages",
            Chunking::Records,
        );
        self.ready.push((meta.name.clone(), Ready::Messages(Box::new(taken.messages))));
        self.named.push_back(meta);
        Ok(())
    }
}

impl NatsCapture {
    /// What was named before the stream that was taken last: its messages have to come once more.
    async fn open_again(&self, cx: &Context, name: &ArtifactName) -> Result<Body> {
        let stream = name.as_str();
        let of_document = stream.strip_suffix(SUFFIX).and_then(|stream| self.taken.get(stream));
        if let Some((document, ..)) = of_document {
            return Ok(Body::Bytes(in_pieces(document)));
        }
        let (_, state, digest) = self.taken.get(stream).ok_or_else(|| {
            Error::new(Reason::NotFound, "no such artifact").with("artifact", name)
        })?;
        let again = take(cx, &self.server, stream, &self.room, Some(*state)).await?;
        if again.messages.tally.digest() != *digest {
            let what = "messages were removed from the stream between two times that it was read";
            return Err(Error::new(Reason::Unavailable, what).with("stream", stream));
        }
        Ok(Body::Records(Box::new(again.messages.records()?)))
    }
}

#[async_trait]
impl Capture for NatsCapture {
    async fn freeze(&mut self, cx: &Context) -> Result<Cut> {
        let begin = cx.now();
        let config = &self.config;
        let found: BTreeMap<_, _> = self.server.streams(cx, |name| config.has(name)).await?;
        let end = cx.now();
        let position = found
            .values()
            .take(TOLD)
            .map(|stream| format!("{}:{}", stream.name(), stream.state.last_seq))
            .collect::<Vec<_>>()
            .join(" ");
        self.streams = found.into_iter().map(|(name, stream)| (name, stream.state)).collect();
        let position = Some(position).filter(|position| !position.is_empty());
        // What is removed from now on is not there any more when its stream is taken.
        Ok(Cut { begin, end, consistency: Consistency::Fuzzy, position })
    }

    /// Nobody was stopped.
    async fn thaw(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn next(&mut self, cx: &Context) -> Result<Option<ArtifactMeta>> {
        while self.named.is_empty() && !self.streams.is_empty() {
            self.take_next(cx).await?;
        }
        Ok(self.named.pop_front())
    }

    async fn open(&self, cx: &Context, name: &ArtifactName) -> Result<Body> {
        match self.ready.iter().find(|(ready, _)| ready == name) {
            Some((_, Ready::Document(document))) => Ok(Body::Bytes(in_pieces(document))),
            Some((_, Ready::Messages(spool))) => Ok(Body::Records(Box::new(spool.records()?))),
            None => self.open_again(cx, name).await,
        }
    }

    async fn finish(self: Box<Self>, _: &Context) -> Result<CaptureReport> {
        let mut facts = self.summary.facts();
        facts.observe("server.version", self.server.version.to_string());
        let mut report = CaptureReport::from(facts);
        report.problems = self.problems;
        Ok(report)
    }

    async fn abort(self: Box<Self>, _: &Context) -> Result<()> {
        Ok(())
    }
}
