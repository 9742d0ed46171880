//! Servers, what is in them, and a capture that goes straight into a restore.

use serde_json::{Value, json};
use snapkit_core::artifact::SourceName;
use snapkit_core::context::Context;
use snapkit_core::facts::{Comparison, RestoreVerdict};
use snapkit_core::manifest::{ArtifactRecord, ChunkList, ContentRef, SourceRecord};
use snapkit_core::source::{CaptureReport, RestoreReport, RestoreRequest, Source as _, Target};
use snapkit_core::{Error, Result};
use snapkit_source_qdrant::{Qdrant, QdrantConfig};
use snapkit_testkit::qdrant::QdrantDouble;

/// A server, and how to ask it.
pub(crate) struct Server {
    pub(crate) double: Option<QdrantDouble>,
    pub(crate) url: String,
    pub(crate) key: Option<String>,
    client: reqwest::Client,
}

impl Server {
    /// A fresh double, or the real server.
    pub(crate) fn start() -> Self {
        let Ok(url) = std::env::var("SNAPKIT_TEST_QDRANT_URL") else {
            return Self::of(QdrantDouble::start());
        };
        let key = std::env::var("SNAPKIT_TEST_QDRANT_API_KEY").ok();
        Self { double: None, url, key, client: reqwest::Client::new() }
    }

    pub(crate) fn of(double: QdrantDouble) -> Self {
        let url = double.url(0).to_owned();
        Self { double: Some(double), url, key: None, client: reqwest::Client::new() }
    }

    /// Ask it for something; the status and the answer.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let method = method.parse().unwrap();
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            request = request.header("api-key", key);
        }
        if !body.is_null() {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    pub(crate) async fn must(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask(method, path, body).await;
        assert_eq!(status, 200, "{method} {path}: {answer}");
        answer["result"].clone()
    }

    /// A collection of so many points, with an index and an alias.
    pub(crate) async fn fill(&self, name: &str, points: u64) {
        self.must("DELETE", &format!("/collections/{name}"), Value::Null).await;
        let settings = json!({ "vectors": { "size": 4, "distance": "Dot" }, "shard_number": 2 });
        self.must("PUT", &format!("/collections/{name}"), settings).await;
        let index = json!({ "field_name": "city", "field_schema": "keyword" });
        self.must("PUT", &format!("/collections/{name}/index?wait=true"), index).await;
        self.put(name, 0..points).await;
        let alias = json!({ "actions": [{ "create_alias": { "collection_name": name, "alias_name": format!("{name}-live") } }] });
        self.must("POST", "/collections/aliases", alias).await;
    }

    /// Points by their numbers.
    pub(crate) async fn put(&self, name: &str, numbers: std::ops::Range<u64>) {
        for some in numbers.collect::<Vec<_>>().chunks(100) {
            let points: Vec<_> = some.iter().map(|n| point(*n)).collect();
            let path = format!("/collections/{name}/points?wait=true");
            self.must("PUT", &path, json!({ "points": points })).await;
        }
    }

    /// A collection of any sort.
    pub(crate) async fn fill_at_random(&self, name: &str, seed: u64) {
        let dice = |n: u64, sides: u64| {
            let hash = blake3::hash(format!("{seed} {n}").as_bytes());
            u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap()) % sides
        };
        let metric = ["Dot", "Euclid", "Manhattan"][usize::try_from(dice(0, 3)).unwrap()];
        let size = 1 + dice(1, 20);
        let is_named = dice(2, 2) == 0;
        let one = json!({ "size": size, "distance": metric, "on_disk": dice(3, 2) == 0 });
        let mut settings = json!({
            "vectors": if is_named { json!({ "text": one, "image": one }) } else { one },
            "shard_number": 1 + dice(4, 4), "on_disk_payload": dice(5, 2) == 0,
            "hnsw_config": { "m": 8 + dice(6, 20) }, "optimizers_config": { "flush_interval_sec": 1 + dice(7, 9) },
        });
        if is_named {
            settings["sparse_vectors"] = json!({ "words": {} });
        }
        if dice(8, 3) == 0 {
            settings["quantization_config"] = json!({ "scalar": { "type": "int8" } });
        }
        self.must("DELETE", &format!("/collections/{name}"), Value::Null).await;
        self.must("PUT", &format!("/collections/{name}"), settings).await;
        let kinds =
            [json!("keyword"), json!("integer"), json!({ "type": "text", "tokenizer": "word" })];
        for (n, kind) in kinds.iter().enumerate().take(usize::try_from(dice(9, 4)).unwrap()) {
            let index = json!({ "field_name": format!("f{n}"), "field_schema": kind });
            self.must("PUT", &format!("/collections/{name}/index?wait=true"), index).await;
        }
        let vector = |n: u64| (0..size).map(|i| json!((n * 7 + i) % 100)).collect::<Value>();
        let points: Vec<_> = (0..dice(10, 300))
            .map(|n| {
                let vectors = match is_named {
                    true => json!({ "text": vector(n), "image": vector(n + 1), "words": { "indices": [1, n + 2], "values": [0.5, 0.25] } }),
                    false => vector(n),
                };
                let payload = json!({ "f0": format!("k{}", n % 7), "f1": n, "f2": "two words", "\u{fc}": null });
                json!({ "id": n * (1 + dice(11, 1 << 40)), "vector": vectors, "payload": payload })
            })
            .collect();
        if !points.is_empty() {
            let path = format!("/collections/{name}/points?wait=true");
            self.must("PUT", &path, json!({ "points": points })).await;
        }
        for n in 0..dice(12, 3) {
            let alias =
                json!({ "collection_name": name, "alias_name": format!("{name}-alias-{n}") });
            let actions = json!({ "actions": [{ "create_alias": alias }] });
            self.must("POST", "/collections/aliases", actions).await;
        }
    }

    /// All of a collection that has to come back.
    pub(crate) async fn state(&self, name: &str) -> Value {
        let about = self.must("GET", &format!("/collections/{name}"), Value::Null).await;
        let all = self.must("GET", "/aliases", Value::Null).await;
        let of_it = |alias: &&Value| alias["collection_name"] == name;
        let mut aliases: Vec<_> =
            all["aliases"].as_array().unwrap().iter().filter(of_it).map(Value::to_string).collect();
        aliases.sort();
        json!([about["config"], about["payload_schema"], aliases, self.points(name).await])
    }

    pub(crate) async fn count(&self, name: &str) -> u64 {
        let path = format!("/collections/{name}/points/count");
        self.must("POST", &path, json!({ "exact": true })).await["count"].as_u64().unwrap()
    }

    /// All points of a collection, as the server gives them.
    pub(crate) async fn points(&self, name: &str) -> Vec<Value> {
        let path = format!("/collections/{name}/points/scroll");
        let all = json!({ "limit": 100_000, "with_payload": true, "with_vector": true });
        self.must("POST", &path, all).await["points"].as_array().unwrap().clone()
    }

    pub(crate) fn config(&self) -> QdrantConfig {
        let mut settings = json!({ "url": self.url });
        if let Some(key) = &self.key {
            settings["api_key"] = json!(key);
        }
        serde_json::from_value(settings).unwrap()
    }

    /// The settings of a source of it, with something else.
    pub(crate) fn with(&self, change: impl FnOnce(&mut QdrantConfig)) -> QdrantConfig {
        let mut config = self.config();
        change(&mut config);
        config
    }

    /// The names of its collections.
    pub(crate) async fn collections(&self) -> Vec<String> {
        let all = self.must("GET", "/collections", Value::Null).await;
        let names = all["collections"].as_array().unwrap().iter();
        names.map(|named| named["name"].as_str().unwrap().to_owned()).collect()
    }

    /// A double was asked nothing that nobody has recorded, and nothing lies on it.
    pub(crate) fn assert_clean(&self) {
        let Some(double) = &self.double else { return };
        assert_eq!(double.unknown(), Vec::<String>::new());
        assert_eq!(double.left_behind(), Vec::<String>::new(), "snapshots are removed");
    }
}

fn point(n: u64) -> Value {
    let city = ["Berlin", "Paris", "Lima"][usize::try_from(n % 3).unwrap()];
    let id = if n % 5 == 4 { json!(format!("00000000-0000-4000-8000-{n:012}")) } else { json!(n) };
    json!({ "id": id, "vector": [n, n + 1, 0.5, -1], "payload": { "city": city, "n": n, "deep": { "z": [n], "a": null } } })
}

pub(crate) fn qdrant(config: QdrantConfig) -> Qdrant {
    Qdrant::new(SourceName::new("vectors").unwrap(), config).unwrap()
}

/// Capture one server straight into another place. All that was captured, with what the end knows, and what came of it.
pub(crate) async fn carry(
    from: &Qdrant,
    to: &Qdrant,
    target: Target,
    ask: impl FnOnce(&mut RestoreRequest),
) -> Result<(CaptureReport, RestoreReport)> {
    carry_some(from, to, target, ask, |_| true).await
}

/// The same, but only artifacts of some names arrive.
pub(crate) async fn carry_some(
    from: &Qdrant,
    to: &Qdrant,
    target: Target,
    ask: impl FnOnce(&mut RestoreRequest),
    arrives: impl Fn(&str) -> bool,
) -> Result<(CaptureReport, RestoreReport)> {
    let cx = &Context::system();
    let mut capture = from.capture(cx, None).await?;
    let mut record = SourceRecord::new(from.info());
    let frozen = capture.freeze(cx).await;
    capture.thaw(cx).await?;
    record.cut = match frozen {
        Ok(cut) => Some(cut),
        Err(e) => {
            capture.abort(cx).await?;
            return Err(e);
        }
    };
    let mut stored = Vec::new();
    while let Some(meta) = capture.next(cx).await? {
        let body = match capture.open(cx, &meta.name).await {
            Ok(body) => collected(body).await,
            Err(e) => Err(e),
        };
        match body {
            Ok(bytes) => stored.push((meta.clone(), bytes)),
            Err(e) => {
                capture.abort(cx).await?;
                return Err(e);
            }
        }
        let content = ContentRef::Bytes { content: ChunkList::default() };
        record.artifacts.push(ArtifactRecord::new(meta, content));
    }
    let report = capture.finish(cx).await?;
    record.facts = report.facts.clone();
    let mut request = RestoreRequest::new(target, record);
    ask(&mut request);
    let mut restore = to.restore(cx, &request).await?;
    for (meta, bytes) in stored.into_iter().filter(|(meta, _)| arrives(meta.name.as_str())) {
        let body = futures_util::stream::iter(bytes.into_iter().map(Ok));
        let body = snapkit_core::artifact::Body::Bytes(Box::pin(body));
        if let Err(e) = restore.put(cx, &meta, body).await {
            restore.abort(cx).await?;
            return Err(e);
        }
    }
    Ok((report, restore.finish(cx).await?))
}

async fn collected(body: snapkit_core::artifact::Body) -> Result<Vec<bytes::Bytes>> {
    use futures_util::TryStreamExt as _;
    body.into_bytes()?.try_collect().await
}

/// What the facts prove.
pub(crate) fn compared(capture: &CaptureReport, report: &RestoreReport) -> Comparison {
    capture.facts.compare(&report.facts)
}

pub(crate) fn proven(capture: &CaptureReport, report: &RestoreReport) {
    let comparison = compared(capture, report);
    assert_eq!(comparison.verdict, RestoreVerdict::Match, "{comparison:#?}");
}

/// What is said, without addresses.
pub(crate) fn said(e: &Error, servers: &[&Server]) -> String {
    let text = servers.iter().fold(e.chain(), |text, server| text.replace(&server.url, "URL"));
    format!("{text} ({})", e.reason())
}
