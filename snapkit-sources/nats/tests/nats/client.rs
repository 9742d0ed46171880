//! What a program does with a server.

use std::path::Path;
use std::time::Duration;

use async_nats::HeaderMap;
use serde_json::{Value, json};
use snapkit_core::artifact::SourceName;
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Result};
use snapkit_core::facts::Facts;
use snapkit_core::manifest::{ArtifactRecord, ChunkList, ContentRef, SourceRecord};
use snapkit_core::source::{CaptureReport, RestoreReport, RestoreRequest, Source as _, Target};
use snapkit_source_nats::{Nats, NatsConfig};
use snapkit_testkit::server::NatsServer;

pub(crate) struct Client(async_nats::Client);

impl Client {
    pub(crate) async fn of(server: &NatsServer) -> Self {
        Self(async_nats::connect(server.url()).await.unwrap())
    }

    /// Ask JetStream.
    pub(crate) async fn api(&self, subject: &str, body: Value) -> Value {
        let subject = format!("$JS.API.{subject}");
        let answer = self.0.request(subject, body.to_string().into()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }

    /// The same, and it must not refuse.
    pub(crate) async fn must(&self, subject: &str, body: Value) -> Value {
        let answer = self.api(subject, body).await;
        assert!(answer.get("error").is_none(), "{subject}: {answer}");
        answer
    }

    /// Make a stream of subjects `NAME.>`, with more settings.
    pub(crate) async fn stream(&self, name: &str, more: Value) {
        let mut config = json!({
            "name": name,
            "subjects": [format!("{}.>", name.to_lowercase())],
            "storage": "file",
            "retention": "limits",
            "num_replicas": 1,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.must(&format!("STREAM.CREATE.{name}"), config).await;
    }

    /// Publish, and wait until it is stored. The number of the message.
    pub(crate) async fn publish(&self, subject: &str, body: &[u8]) -> u64 {
        let answer = self.0.request(subject.to_owned(), body.to_vec().into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        answer["seq"].as_u64().unwrap_or_else(|| panic!("{answer}"))
    }

    pub(crate) async fn publish_with(&self, subject: &str, header: (&str, &str), body: &[u8]) {
        let mut headers = HeaderMap::new();
        headers.insert(header.0, header.1);
        let body = body.to_vec().into();
        self.0.request_with_headers(subject.to_owned(), headers, body).await.unwrap();
    }

    /// Make a consumer that is asked for messages, and acknowledges each.
    pub(crate) async fn consumer(&self, stream: &str, name: &str) {
        let config = json!({
            "stream_name": stream,
            "config": {
                "durable_name": name,
                "deliver_policy": "all",
                "ack_policy": "explicit",
                "ack_wait": 3_600_000_000_000_u64,
                "max_ack_pending": 1000,
            },
        });
        self.must(&format!("CONSUMER.DURABLE.CREATE.{stream}.{name}"), config).await;
    }

    /// Fetch so many messages and acknowledge those of these places. The numbers that came.
    pub(crate) async fn fetch(&self, consumer: &str, count: u64, acks: &[usize]) -> Vec<u64> {
        use futures_util::StreamExt as _;
        let inbox = self.0.new_inbox();
        let mut messages = self.0.subscribe(inbox.clone()).await.unwrap();
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{consumer}");
        let question = json!({ "batch": count, "no_wait": true }).to_string();
        self.0.publish_with_reply(subject, inbox, question.into()).await.unwrap();
        let mut came = Vec::new();
        while let Ok(Some(message)) =
            tokio::time::timeout(Duration::from_secs(5), messages.next()).await
        {
            if message.status.is_some() {
                break;
            }
            let reply = message.reply.unwrap();
            let number = reply.split('.').nth(5).unwrap().parse().unwrap();
            if acks.contains(&came.len()) {
                self.0.request(reply, "+ACK".into()).await.unwrap();
            }
            came.push(number);
            if came.len() as u64 == count {
                break;
            }
        }
        came
    }

    pub(crate) async fn state(&self, stream: &str) -> Value {
        self.must(&format!("STREAM.INFO.{stream}"), json!({})).await["state"].clone()
    }

    /// The body of a message, in base64, or nothing.
    pub(crate) async fn get(&self, stream: &str, sequence: u64) -> Option<Value> {
        let answer =
            self.api(&format!("STREAM.MSG.GET.{stream}"), json!({ "seq": sequence })).await;
        answer.get("message").cloned()
    }

    pub(crate) async fn delete(&self, stream: &str, sequence: u64, erase: bool) {
        let body = json!({ "seq": sequence, "no_erase": !erase });
        self.must(&format!("STREAM.MSG.DELETE.{stream}"), body).await;
    }

    /// What NATS' own tool does with a directory of a backup: give the server the archive and believe its answer.
    pub(crate) async fn restore(&self, stream: &str, backup: &Path) -> Value {
        let told = std::fs::read_to_string(backup.join("backup.json")).unwrap();
        let told = serde_json::from_str(&told).unwrap();
        let begun = self.must(&format!("STREAM.RESTORE.{stream}"), told).await;
        let subject = begun["deliver_subject"].as_str().unwrap().to_owned();
        let archive = std::fs::read(backup.join("stream.tar.s2")).unwrap();
        for piece in archive.chunks(100_000) {
            let piece = piece.to_vec().into();
            let answer = self.0.request(subject.clone(), piece).await.unwrap();
            assert!(answer.payload.is_empty(), "{answer:?}");
        }
        let answer = self.0.request(subject, "".into()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }

    /// Something of every kind.
    pub(crate) async fn fill(&self) {
        self.stream("ORDERS", json!({})).await;
        for n in 0..300_u32 {
            let subject = format!("orders.{}", n % 7);
            let body = vec![u8::try_from(n % 251).unwrap(); 100 + n as usize % 300];
            if n % 3 == 0 {
                self.publish_with(&subject, ("Kind", "odd"), &body).await;
            } else {
                self.publish(&subject, &body).await;
            }
        }
        for (sequence, erase) in [(1, true), (2, false), (50, true), (51, false), (52, false)] {
            self.delete("ORDERS", sequence, erase).await;
        }
        self.delete("ORDERS", 300, false).await;
        self.consumer("ORDERS", "workers").await;
        assert_eq!(self.fetch("ORDERS.workers", 20, &[0, 1, 2, 5, 7]).await.len(), 20);
        self.consumer("ORDERS", "idlers").await;
        // A bucket of keys, of which each keeps only its last value.
        let bucket = json!({ "subjects": ["$KV.users.>"], "max_msgs_per_subject": 1, "discard": "new", "allow_rollup_hdrs": true, "deny_delete": true });
        self.stream("KV_users", bucket).await;
        for n in 0..200_u32 {
            self.publish(&format!("$KV.users.{}", n * 7 % 60), n.to_string().as_bytes()).await;
        }
        // Of which the first are gone.
        self.stream("EVENTS", json!({ "max_msgs": 50 })).await;
        for n in 0..120_u32 {
            self.publish("events.x", n.to_string().as_bytes()).await;
        }
        // Nothing is left but the number of the next.
        self.stream("EMPTIED", json!({})).await;
        for _ in 0..9 {
            self.publish("emptied.x", b"").await;
        }
        self.must("STREAM.PURGE.EMPTIED", json!({})).await;
        self.stream("NEW", json!({})).await;
    }
}

pub(crate) fn source(server: &NatsServer) -> Nats {
    nats(NatsConfig::new(server.url()))
}

pub(crate) fn nats(config: NatsConfig) -> Nats {
    Nats::new(SourceName::new("queue").unwrap(), config).unwrap()
}

/// Capture one server straight into another place. All that was captured, with what the end knows, and what came of it.
pub(crate) async fn carry(
    from: &Nats,
    target: Target,
    ask: impl FnOnce(&mut RestoreRequest),
) -> Result<(CaptureReport, RestoreReport)> {
    carry_within(&Context::system(), from, target, ask).await
}

/// The same, as a part of a run.
pub(crate) async fn carry_within(
    cx: &Context,
    from: &Nats,
    target: Target,
    ask: impl FnOnce(&mut RestoreRequest),
) -> Result<(CaptureReport, RestoreReport)> {
    let mut capture = from.capture(cx, None).await?;
    let cut = capture.freeze(cx).await?;
    capture.thaw(cx).await?;
    let mut record = SourceRecord::new(from.info());
    record.cut = Some(cut);
    let mut stored = Vec::new();
    // A body is asked for before the next artifact is.
    while let Some(meta) = capture.next(cx).await? {
        let body = capture.open(cx, &meta.name).await?;
        let content = ContentRef::Bytes { content: ChunkList::default() };
        record.artifacts.push(ArtifactRecord::new(meta.clone(), content));
        stored.push((meta, body));
    }
    let report = capture.finish(cx).await?;
    record.facts = report.facts.clone();
    let mut request = RestoreRequest::new(target, record);
    ask(&mut request);
    let mut restore = from.restore(cx, &request).await?;
    for (meta, body) in stored {
        if let Err(e) = restore.put(cx, &meta, body).await {
            restore.abort(cx).await?;
            return Err(e);
        }
    }
    Ok((report, restore.finish(cx).await?))
}

pub(crate) fn proven(facts: &Facts, report: &RestoreReport) {
    let comparison = facts.compare(&report.facts);
    let verdict = comparison.verdict;
    assert_eq!(verdict, snapkit_core::facts::RestoreVerdict::Match, "{comparison:#?}");
}

pub(crate) fn without_places(e: &Error, servers: &[&NatsServer]) -> String {
    let mut text = e.chain();
    for server in servers {
        text = text.replace(&server.url(), "URL");
        text = text.replace(server.path("").to_str().unwrap(), "DIR/");
    }
    format!("{text} ({})", e.reason())
}
