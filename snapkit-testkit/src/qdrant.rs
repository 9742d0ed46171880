//! A Qdrant that is none: it answers as Qdrant 1.18.2 was seen to, refusals included, keeps what it is given, and goes wrong
//! as it is told. What nobody was seen to be asked it does not answer, and remembers ([`QdrantDouble::unknown`]); settings that
//! are changed (`PATCH /collections/NAME`) it takes as the server's documentation says.
//!
//! Its snapshots have the outer form of real ones, with the points in a file of its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// A block of a tar.
const BLOCK: usize = 512;

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum QdrantTrouble {
    /// It fails with this status and this text.
    Refuse(u16, &'static str),
    /// Only so many bytes of the body are sent, and it ends like a whole one: what a streaming server does that fails.
    EndEarly(usize),
    /// Only so many bytes of the body are sent, and the connection is lost.
    Cut(usize),
    /// A bit of the body is another one.
    Flip(usize),
    /// It is done, and the answer comes late.
    Delay(Duration),
    /// It is done, and the connection is lost before the answer.
    DropAnswer,
    /// It succeeds, and nothing is done: snapshots that are taken without their points.
    Pretend,
}

/// What goes wrong with which method and path.
type Plan = Box<dyn Fn(&str, &str) -> Option<QdrantTrouble> + Send>;

#[derive(Clone, Debug, Default)]
struct Shard {
    key: Option<Value>,
    points: BTreeMap<String, Value>,
    version: u64,
    /// Files that lie on a node.
    files: BTreeMap<String, Vec<u8>>,
    /// Which nodes have it.
    nodes: Vec<usize>,
    /// How often it will still be said that only the first of them has all of it.
    behind: u32,
}

#[derive(Clone, Debug, Default)]
struct Collection {
    config: Value,
    schema: Map<String, Value>,
    shards: BTreeMap<u32, Shard>,
    next: u32,
    files: BTreeMap<String, Vec<u8>>,
}

#[derive(Default)]
struct State {
    nodes: usize,
    keys: Option<(String, String)>,
    collections: BTreeMap<String, Collection>,
    aliases: BTreeMap<String, String>,
    /// Snapshots of shards stay where they are when the collection goes, and belong to the next of that name.
    attic: BTreeMap<(String, u32), BTreeMap<String, Vec<u8>>>,
    /// How often it will still say that it is busy with its collections.
    busy: u32,
    plan: Option<Plan>,
    unknown: Vec<String>,
    requests: Vec<String>,
    made: u64,
    /// What the name of the last snapshot ends with.
    named: u64,
    repeats: bool,
}

/// A server, or the nodes of a cluster, for as long as this lives and longer.
pub struct QdrantDouble {
    state: Arc<Mutex<State>>,
    urls: Vec<String>,
}

impl std::fmt::Debug for QdrantDouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QdrantDouble({:?})", self.urls)
    }
}

/// A request, and the node that is asked.
struct Request {
    node: usize,
    method: String,
    path: Vec<String>,
    query: BTreeMap<String, String>,
    key: Option<String>,
    content_type: String,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    content_type: &'static str,
    body: Vec<u8>,
    chunked: bool,
}

impl Answer {
    fn json(status: u16, body: &Value) -> Self {
        let body = body.to_string().into_bytes();
        Self { status, content_type: "application/json", body, chunked: false }
    }

    fn ok(result: impl Into<Value>) -> Self {
        Self::json(200, &json!({ "result": result.into(), "status": "ok", "time": 0.001 }))
    }

    fn error(status: u16, text: &str) -> Self {
        Self::json(status, &json!({ "status": { "error": text }, "time": 0.001 }))
    }

    /// Some errors come as text.
    fn plain(status: u16, text: &str) -> Self {
        let body = text.as_bytes().to_vec();
        Self { status, content_type: "text/plain; charset=utf-8", body, chunked: false }
    }
}

impl QdrantDouble {
    /// One server, without a key.
    #[must_use]
    pub fn start() -> Self {
        Self::cluster(1)
    }

    /// So many nodes that know each other.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test that finds no port has failed")]
    pub fn cluster(nodes: usize) -> Self {
        let state = Arc::new(Mutex::new(State { nodes, ..State::default() }));
        let urls = (0..nodes)
            .map(|node| {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
                let url = format!("http://{}", listener.local_addr().expect("an address"));
                let state = Arc::clone(&state);
                std::thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        let state = Arc::clone(&state);
                        std::thread::spawn(move || serve(&state, node, stream));
                    }
                });
                url
            })
            .collect();
        Self { state, urls }
    }

    /// Ask for keys: one that may everything, and one that may only read.
    #[must_use]
    pub fn with_keys(self, full: &str, read_only: &str) -> Self {
        self.state().keys = Some((full.to_owned(), read_only.to_owned()));
        self
    }

    /// The address of a node.
    #[must_use]
    pub fn url(&self, node: usize) -> &str {
        &self.urls[node]
    }

    /// What goes wrong from now on.
    pub fn trouble(&self, plan: impl Fn(&str, &str) -> Option<QdrantTrouble> + Send + 'static) {
        self.state().plan = Some(Box::new(plan));
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.state().plan = None;
    }

    /// What it was asked and does not know.
    #[must_use]
    pub fn unknown(&self) -> Vec<String> {
        self.state().unknown.clone()
    }

    /// All that it was asked since it was last asked for that.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    /// The snapshots that lie on its nodes.
    #[must_use]
    pub fn left_behind(&self) -> Vec<String> {
        let state = self.state();
        let of = |collection: &Collection| {
            let shards = collection.shards.values().flat_map(|shard| shard.files.keys());
            collection.files.keys().chain(shards).cloned().collect::<Vec<_>>()
        };
        let gone = state.attic.values().flat_map(BTreeMap::keys).cloned();
        state.collections.values().flat_map(of).chain(gone).collect()
    }

    /// From now on snapshots are named like the one that was made before: all is done in the same second.
    pub fn repeat_names(&self) {
        self.state().repeats = true;
    }

    /// From now on it says so many times that it is busy with a collection.
    pub fn be_busy(&self, times: u32) {
        self.state().busy = times;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(state: &Mutex<State>, node: usize, stream: TcpStream) {
    let Ok(mut output) = stream.try_clone() else { return };
    // An answer goes out in parts, none of which waits for the other to arrive.
    if output.set_nodelay(true).is_err() {
        return;
    }
    let mut input = BufReader::new(stream);
    while let Some(request) = read_request(&mut input, node) {
        let line = format!("{} /{}", request.method, request.path.join("/"));
        let trouble = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.requests.push(line.clone());
            state
                .plan
                .as_ref()
                .and_then(|plan| plan(&request.method, &format!("/{}", request.path.join("/"))))
        };
        let pretend = matches!(trouble, Some(QdrantTrouble::Pretend));
        let mut answer = match trouble {
            Some(QdrantTrouble::Refuse(status, text)) => Answer::error(status, text),
            _ => {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                state.answer(&request, pretend)
            }
        };
        match trouble {
            Some(QdrantTrouble::Delay(time)) => std::thread::sleep(time),
            Some(QdrantTrouble::DropAnswer) => return,
            Some(QdrantTrouble::EndEarly(len)) => {
                answer.body.truncate(len);
                answer.chunked = true;
            }
            Some(QdrantTrouble::Flip(at)) => {
                answer.body.get_mut(at).into_iter().for_each(|byte| *byte ^= 1);
            }
            _ => {}
        }
        let cut = match trouble {
            Some(QdrantTrouble::Cut(len)) => Some(len),
            _ => None,
        };
        if write_answer(&mut output, &answer, cut).is_err() || cut.is_some() {
            return;
        }
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn read_request(input: &mut BufReader<TcpStream>, node: usize) -> Option<Request> {
    let mut line = String::new();
    input.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut parts = line.split_whitespace();
    let (method, target) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok().filter(|n| *n > 0)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
            None => break,
        }
    }
    let len: usize = headers.get("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    let mut body = vec![0; len];
    input.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = path.split('/').filter(|part| !part.is_empty()).map(decode).collect();
    let query = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect();
    Some(Request {
        node,
        method,
        path,
        query,
        key: headers.get("api-key").cloned(),
        content_type: headers.get("content-type").cloned().unwrap_or_default(),
        body,
    })
}

fn write_answer(
    output: &mut TcpStream,
    answer: &Answer,
    cut: Option<usize>,
) -> std::io::Result<()> {
    let mut head =
        format!("HTTP/1.1 {} x\r\ncontent-type: {}\r\n", answer.status, answer.content_type);
    let body = &answer.body[..cut.unwrap_or(usize::MAX).min(answer.body.len())];
    if answer.chunked {
        head += "transfer-encoding: chunked\r\n\r\n";
        output.write_all(head.as_bytes())?;
        for piece in body.chunks(8192) {
            write!(output, "{:x}\r\n", piece.len())?;
            output.write_all(piece)?;
            output.write_all(b"\r\n")?;
        }
        if cut.is_none() {
            output.write_all(b"0\r\n\r\n")?;
        }
    } else {
        let _ = write!(head, "content-length: {}\r\n\r\n", answer.body.len());
        output.write_all(head.as_bytes())?;
        output.write_all(body)?;
    }
    output.flush()
}

impl State {
    fn answer(&mut self, request: &Request, pretend: bool) -> Answer {
        let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
        let method = request.method.as_str();
        let is_full = match &self.keys {
            None => true,
            Some((full, read_only)) => match &request.key {
                Some(key) if key == full => true,
                Some(key) if key == read_only => false,
                _ if path == ["readyz"] => false,
                _ => {
                    let text = "Must provide an API key or an Authorization bearer token";
                    return Answer::plain(401, text);
                }
            },
        };
        let json = || serde_json::from_slice::<Value>(&request.body).unwrap_or(Value::Null);
        let forbidden = "Forbidden: Global manage access is required";
        let waits = request.query.get("wait").is_none_or(|wait| wait == "true");
        match (method, path.as_slice()) {
            ("GET", []) => Answer::json(
                200,
                &json!({ "title": "qdrant - vector search engine", "version": "1.18.2", "commit": "none" }),
            ),
            ("GET", ["readyz"]) => Answer::plain(200, "all shards are ready"),
            ("GET", ["collections"]) => {
                let names: Vec<_> =
                    self.collections.keys().map(|name| json!({ "name": name })).collect();
                Answer::ok(json!({ "collections": names }))
            }
            ("GET", ["aliases"]) => {
                let aliases: Vec<_> = self
                    .aliases
                    .iter()
                    .map(|(alias, name)| json!({ "alias_name": alias, "collection_name": name }))
                    .collect();
                Answer::ok(json!({ "aliases": aliases }))
            }
            (_, _)
                if method != "GET"
                    && !is_full
                    && !matches!(path.last(), Some(&("count" | "scroll"))) =>
            {
                Answer::error(403, forbidden)
            }
            ("GET", ["collections", _, "shards", _, "snapshot"]) if !is_full => {
                Answer::plain(403, forbidden)
            }
            ("POST", ["collections", "aliases"]) => self.change_aliases(&json()),
            ("PUT", ["collections", name]) => self.create(name, &json()),
            ("DELETE", ["collections", name]) => {
                self.aliases.retain(|_, to| to != name);
                let gone = self.collections.remove(*name);
                let is_gone = gone.is_some();
                for (id, shard) in gone.into_iter().flat_map(|gone| gone.shards) {
                    self.attic.insert(((*name).to_owned(), id), shard.files);
                }
                Answer::ok(Value::Bool(is_gone))
            }
            ("PATCH", ["collections", name]) if self.collections.contains_key(*name) => {
                let change = json();
                let config = &mut self.collections.entry((*name).to_owned()).or_default().config;
                merge(&mut config["params"], change.get("params"));
                if let Some(strict) = change.get("strict_mode_config") {
                    config["strict_mode_config"] = strict.clone();
                }
                Answer::ok(Value::Bool(true))
            }
            ("POST", ["collections", name, "snapshots", "upload"]) => {
                self.upload_collection(name, request)
            }
            (_, ["collections", name, rest @ ..]) => {
                let name = &self.aliases.get(*name).cloned().unwrap_or_else(|| (*name).to_owned());
                if !self.collections.contains_key(name) {
                    return Answer::error(
                        404,
                        &format!("Not found: Collection `{name}` doesn't exist!"),
                    );
                }
                let answer =
                    self.of_collection(request, method, name, rest, &json(), waits, pretend);
                answer.unwrap_or_else(|| self.not_known(method, &path))
            }
            _ => self.not_known(method, &path),
        }
    }

    fn not_known(&mut self, method: &str, path: &[&str]) -> Answer {
        self.unknown.push(format!("{method} /{}", path.join("/")));
        Answer::plain(501, "nobody has recorded what a server says to that")
    }

    fn change_aliases(&mut self, body: &Value) -> Answer {
        for action in body["actions"].as_array().into_iter().flatten() {
            let create = &action["create_alias"];
            let (Some(name), Some(alias)) =
                (create["collection_name"].as_str(), create["alias_name"].as_str())
            else {
                return Answer::error(400, "Format error in JSON body");
            };
            if !self.collections.contains_key(name) {
                return Answer::error(
                    404,
                    &format!("Not found: Collection `{name}` doesn't exist!"),
                );
            }
            self.aliases.insert(alias.to_owned(), name.to_owned());
        }
        Answer::ok(Value::Bool(true))
    }

    fn create(&mut self, name: &str, body: &Value) -> Answer {
        if self.collections.contains_key(name) {
            return Answer::error(
                409,
                &format!("Wrong input: Collection `{name}` already exists!"),
            );
        }
        let known = [
            "vectors",
            "sparse_vectors",
            "shard_number",
            "sharding_method",
            "replication_factor",
            "write_consistency_factor",
            "on_disk_payload",
            "hnsw_config",
            "optimizers_config",
            "wal_config",
            "quantization_config",
            "strict_mode_config",
            "metadata",
            "payload",
        ];
        let Some(fields) = body.as_object() else {
            return Answer::error(400, "Format error in JSON body");
        };
        if let Some(odd) = fields.keys().find(|field| !known.contains(&field.as_str())) {
            self.unknown.push(format!("a collection with {odd}"));
        }
        let set = |field: &str, default: Value| fields.get(field).cloned().unwrap_or(default);
        let is_custom = fields.get("sharding_method") == Some(&json!("custom"));
        let mut params = json!({
            "vectors": set("vectors", json!({})),
            "shard_number": set("shard_number", json!(1)),
            "replication_factor": set("replication_factor", json!(1)),
            "write_consistency_factor": set("write_consistency_factor", json!(1)),
            "on_disk_payload": set("on_disk_payload", json!(true)),
        });
        for field in ["sparse_vectors", "sharding_method"] {
            if let Some(value) = fields.get(field) {
                params[field] = value.clone();
            }
        }
        let mut hnsw = json!({ "m": 16, "ef_construct": 100, "full_scan_threshold": 10000, "max_indexing_threads": 0, "on_disk": false });
        merge(&mut hnsw, fields.get("hnsw_config"));
        let mut optimizer = json!({ "deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0, "max_segment_size": null, "memmap_threshold": null, "indexing_threshold": 10000, "flush_interval_sec": 5, "max_optimization_threads": null, "prevent_unoptimized": null });
        merge(&mut optimizer, fields.get("optimizers_config"));
        let mut wal =
            json!({ "wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1 });
        merge(&mut wal, fields.get("wal_config"));
        let config = json!({
            "params": params, "hnsw_config": hnsw, "optimizer_config": optimizer, "wal_config": wal,
            "quantization_config": set("quantization_config", Value::Null),
        });
        let mut collection = Collection { config, next: 1, ..Collection::default() };
        if !is_custom {
            let count =
                u32::try_from(set("shard_number", json!(1)).as_u64().unwrap_or(1)).unwrap_or(1);
            let nodes = self.nodes;
            let replicas = set("replication_factor", json!(1)).as_u64().unwrap_or(1);
            for id in 0..count {
                let files = self.attic.remove(&(name.to_owned(), id)).unwrap_or_default();
                let shard = Shard { nodes: homes(id, replicas, nodes), files, ..Shard::default() };
                collection.shards.insert(id, shard);
            }
        }
        self.collections.insert(name.to_owned(), collection);
        Answer::ok(Value::Bool(true))
    }

    #[expect(clippy::too_many_arguments, reason = "all that a request is")]
    fn of_collection(
        &mut self,
        request: &Request,
        method: &str,
        name: &str,
        path: &[&str],
        body: &Value,
        waits: bool,
        pretend: bool,
    ) -> Option<Answer> {
        let node = request.node;
        let is_snapshot = method == "POST" && path.last() == Some(&"snapshots");
        self.made += 1;
        if is_snapshot && !self.repeats {
            self.named = self.made;
        }
        let number = if is_snapshot { self.named } else { self.made };
        let is_awaited = request.query.get("wait").is_some_and(|wait| wait == "true");
        let written = if is_awaited { "completed" } else { "acknowledged" };
        let status = if self.busy > 0 { "yellow" } else { "green" };
        if (method, path) == ("GET", &[]) {
            self.busy = self.busy.saturating_sub(1);
        }
        let collection = self.collections.get_mut(name)?;
        Some(match (method, path) {
            ("GET", []) => {
                let points: usize =
                    collection.shards.values().map(|shard| shard.points.len()).sum();
                let schema: Map<String, Value> = collection
                    .schema
                    .iter()
                    .map(|(field, kind)| {
                        let about = match kind {
                            Value::Object(params) => json!({ "data_type": params["type"], "params": params, "points": points }),
                            kind => json!({ "data_type": kind, "points": points }),
                        };
                        (field.clone(), about)
                    })
                    .collect();
                Answer::ok(json!({
                    "status": status, "optimizer_status": "ok", "indexed_vectors_count": 0, "points_count": points, "segments_count": 2,
                    "config": collection.config, "payload_schema": schema, "update_queue": { "length": 0 },
                }))
            }
            ("GET", ["cluster"]) => {
                let (mut local, mut remote) = (Vec::new(), Vec::new());
                for (id, shard) in &mut collection.shards {
                    let mut about = json!({ "shard_id": id });
                    if let Some(key) = &shard.key {
                        about["shard_key"] = key.clone();
                    }
                    let is_behind = shard.behind > 0;
                    shard.behind = shard.behind.saturating_sub(1);
                    for (n, home) in shard.nodes.iter().enumerate() {
                        let mut about = about.clone();
                        about["state"] = json!(if n > 0 && is_behind { "Dead" } else { "Active" });
                        if *home == node {
                            about["points_count"] = json!(shard.points.len());
                            local.push(about);
                        } else {
                            about["peer_id"] = json!(home + 1);
                            remote.push(about);
                        }
                    }
                }
                Answer::ok(json!({
                    "peer_id": node + 1, "shard_count": collection.shards.len(), "local_shards": local,
                    "remote_shards": remote, "shard_transfers": [],
                }))
            }
            ("PUT", ["index"]) => {
                let field = body["field_name"].as_str()?.to_owned();
                collection.schema.insert(field, body["field_schema"].clone());
                Answer::ok(json!({ "operation_id": number, "status": written }))
            }
            ("PUT", ["shards"]) => {
                let count = body["shards_number"].as_u64().unwrap_or(1);
                let is_there = collection
                    .shards
                    .values()
                    .any(|shard| shard.key.as_ref() == Some(&body["shard_key"]));
                if is_there {
                    return Some(Answer::error(400, "Wrong input: Sharding key already exists"));
                }
                for _ in 0..count {
                    let shard = Shard {
                        key: Some(body["shard_key"].clone()),
                        nodes: vec![node],
                        ..Shard::default()
                    };
                    collection.shards.insert(collection.next, shard);
                    collection.next += 1;
                }
                Answer::ok(Value::Bool(true))
            }
            ("PUT", ["points"]) => {
                for point in body["points"].as_array()? {
                    collection.put(point, &body["shard_key"], number)?;
                }
                Answer::ok(json!({ "operation_id": number, "status": written }))
            }
            ("POST", ["points", "count"]) => {
                let count: usize = collection.shards.values().map(|shard| shard.points.len()).sum();
                Answer::ok(json!({ "count": count }))
            }
            ("POST", ["points", "scroll"]) => {
                let limit = usize::try_from(body["limit"].as_u64()?).ok()?;
                let mut all: Vec<_> =
                    collection.shards.values().flat_map(|shard| &shard.points).collect();
                all.sort_by(|a, b| a.0.cmp(b.0));
                let from = body.get("offset").map(place_of).unwrap_or_default();
                let mut rest = all.into_iter().filter(|(id, _)| **id >= from);
                let points: Vec<_> =
                    rest.by_ref().take(limit).map(|(_, point)| point.clone()).collect();
                let next = rest.next().map(|(_, point)| point["id"].clone());
                Answer::ok(json!({ "points": points, "next_page_offset": next }))
            }
            ("POST", ["snapshots"]) => {
                let archive = collection.archive();
                let file = format!("{name}-{}-2026-11-21-02-09-{number:02}.snapshot", node + 1);
                let about = about(&file, &archive);
                collection.files.insert(file, archive);
                accepted(waits).unwrap_or_else(|| Answer::ok(about))
            }
            ("GET", ["snapshots"]) => Answer::ok(
                collection.files.iter().map(|(file, bytes)| about(file, bytes)).collect::<Value>(),
            ),
            ("GET", ["snapshots", file]) => match collection.files.get(*file) {
                Some(bytes) => raw(bytes, false),
                None => missing_snapshot(file),
            },
            ("DELETE", ["snapshots", file]) => match collection.files.remove(*file) {
                Some(_) => Answer::ok(Value::Bool(true)),
                None => missing_snapshot(file),
            },
            (_, ["shards", shard, rest @ ..]) => {
                let id: u32 = shard.parse().ok()?;
                let found =
                    collection.shards.get_mut(&id).filter(|shard| shard.nodes.contains(&node));
                let Some(shard) = found else {
                    return Some(Answer::plain(404, &format!("Not found: shard {id} not found")));
                };
                return of_shard(request, method, name, id, shard, rest, waits, pretend, number);
            }
            _ => return None,
        })
    }

    /// Of shards that are made with keys nothing comes back: they are not there yet.
    fn upload_collection(&mut self, name: &str, request: &Request) -> Answer {
        let bytes = match uploaded(request) {
            Ok(bytes) => bytes,
            Err(refused) => return refused,
        };
        let Some(files) = untar(&bytes).filter(|files| files.contains_key("config.json")) else {
            return not_unpacked(&bytes);
        };
        let document: Value = serde_json::from_slice(&files["config.json"]).unwrap_or(Value::Null);
        if !self.collections.contains_key(name) {
            let made = self.create(name, &document);
            if made.status != 200 {
                return made;
            }
        }
        let Some(collection) = self.collections.get_mut(name) else {
            return Answer::error(500, "gone");
        };
        if let Some(schema) = files.get("payload_index.json") {
            collection.schema = serde_json::from_slice(schema).unwrap_or_default();
        }
        for (id, shard) in &mut collection.shards {
            let own = files
                .iter()
                .filter_map(|(path, bytes)| Some((path.strip_prefix(&format!("{id}/"))?, bytes)));
            shard.take(own);
        }
        Answer::ok(Value::Bool(true))
    }
}

/// Which nodes have a shard.
fn homes(id: u32, replicas: u64, nodes: usize) -> Vec<usize> {
    let replicas = usize::try_from(replicas).unwrap_or(1).clamp(1, nodes);
    (0..replicas).map(|n| (id as usize + n) % nodes).collect()
}

fn merge(into: &mut Value, from: Option<&Value>) {
    for (name, value) in from.and_then(Value::as_object).into_iter().flatten() {
        into[name] = value.clone();
    }
}

fn accepted(waits: bool) -> Option<Answer> {
    (!waits).then(|| Answer::json(202, &json!({ "status": "accepted", "time": 0.001 })))
}

fn missing_snapshot(file: &str) -> Answer {
    Answer::error(404, &format!("Not found: Snapshot {file} not found"))
}

fn not_unpacked(bytes: &[u8]) -> Answer {
    let why = match bytes.get(257..262) {
        Some(b"ustar") => "failed to unpack `/qdrant/storage/tmp/x`",
        _ => "Malformed tar archive, reached unknown entry",
    };
    Answer::error(500, &format!("Service internal error: File IO error: {why}"))
}

fn raw(bytes: &[u8], chunked: bool) -> Answer {
    Answer { status: 200, content_type: "application/octet-stream", body: bytes.to_vec(), chunked }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn about(name: &str, bytes: &[u8]) -> Value {
    json!({ "name": name, "creation_time": "2026-11-21T02:09:40", "size": bytes.len(), "checksum": hex(bytes) })
}

/// Where a point stands among others: numbers come before UUIDs.
fn place_of(id: &Value) -> String {
    match id.as_u64() {
        Some(number) => format!("0{number:020}"),
        None => format!("1{}", id.as_str().unwrap_or_default()),
    }
}

/// What was uploaded, if its checksum is right.
fn uploaded(request: &Request) -> Result<Vec<u8>, Answer> {
    let bad = || Answer::error(400, "Multipart error");
    let (_, boundary) = request.content_type.split_once("boundary=").ok_or_else(bad)?;
    let find = |what: &[u8], from: usize| {
        request.body[from..]
            .windows(what.len())
            .position(|window| window == what)
            .map(|at| at + from)
    };
    let begin = find(b"\r\n\r\n", 0).ok_or_else(bad)? + 4;
    let end = find(format!("\r\n--{boundary}--").as_bytes(), begin).ok_or_else(bad)?;
    let bytes = request.body[begin..end].to_vec();
    match request.query.get("checksum") {
        Some(sum) if *sum != hex(&bytes) => {
            // It says which is which the wrong way round.
            let text = format!("Checksum mismatch: expected {}, actual {sum}", hex(&bytes));
            Err(Answer::error(400, &text))
        }
        _ => Ok(bytes),
    }
}

#[expect(clippy::too_many_arguments, reason = "all that a request is")]
fn of_shard(
    request: &Request,
    method: &str,
    name: &str,
    id: u32,
    shard: &mut Shard,
    path: &[&str],
    waits: bool,
    pretend: bool,
    number: u64,
) -> Option<Answer> {
    Some(match (method, path) {
        ("POST", ["snapshots"]) => {
            let archive = shard.archive(false);
            let file = format!("{name}-shard-{id}-2026-11-21-02-09-{number:02}.snapshot");
            let about = about(&file, &archive);
            shard.files.insert(file, archive);
            accepted(waits).unwrap_or_else(|| Answer::ok(about))
        }
        ("GET", ["snapshots"]) => Answer::ok(
            shard.files.iter().map(|(file, bytes)| about(file, bytes)).collect::<Value>(),
        ),
        ("GET", ["snapshots", file]) => match shard.files.get(*file) {
            Some(bytes) => raw(bytes, false),
            None => missing_snapshot(file),
        },
        ("DELETE", ["snapshots", file]) => match shard.files.remove(*file) {
            Some(_) => Answer::ok(Value::Bool(true)),
            None => missing_snapshot(file),
        },
        ("GET", ["snapshot"]) => raw(&shard.archive(true), true),
        ("GET", ["snapshot", "partial", "manifest"]) => Answer::ok(json!({
            "segment": { "segment_id": "segment", "segment_version": shard.version, "file_versions": {} },
        })),
        ("POST", ["snapshots", "upload"]) => {
            let bytes = match uploaded(request) {
                Ok(bytes) => bytes,
                Err(refused) => return Some(refused),
            };
            let Some(files) =
                untar(&bytes).filter(|files| files.contains_key("replica_state.json"))
            else {
                return Some(not_unpacked(&bytes));
            };
            if pretend {
                shard.points.clear();
            } else {
                shard.take(files.iter().map(|(path, bytes)| (path.as_str(), bytes)));
            }
            shard.version += 1;
            // Others that have it are brought up to it later.
            shard.behind = 2;
            Answer::ok(Value::Null)
        }
        _ => return None,
    })
}

impl Collection {
    fn put(&mut self, point: &Value, key: &Value, version: u64) -> Option<()> {
        let id = place_of(&point["id"]);
        let mut fitting: Vec<_> = self
            .shards
            .values_mut()
            .filter(|shard| shard.key.as_ref().unwrap_or(&Value::Null) == key)
            .collect();
        let count = fitting.len();
        let n = Sha256::digest(id.as_bytes())[0] as usize % count.max(1);
        let shard = fitting.get_mut(n)?;
        let payload = point.get("payload").cloned().unwrap_or_else(|| json!({}));
        let stored = json!({ "id": point["id"], "payload": payload, "vector": point["vector"] });
        shard.points.insert(id, stored);
        shard.version = version;
        Some(())
    }

    /// What a snapshot of a collection holds: its settings in the form in which they are taken, and its shards.
    fn archive(&self) -> Vec<u8> {
        let mut tar = Vec::new();
        for (id, shard) in &self.shards {
            for (path, bytes) in untar(&shard.archive(false)).into_iter().flatten() {
                entry(&mut tar, &format!("{id}/{path}"), &bytes);
            }
        }
        let mut settings = self.config["params"].clone();
        settings["hnsw_config"] = self.config["hnsw_config"].clone();
        entry(&mut tar, "config.json", settings.to_string().as_bytes());
        entry(
            &mut tar,
            "payload_index.json",
            Value::from(self.schema.clone()).to_string().as_bytes(),
        );
        tar.extend([0; 2 * BLOCK]);
        tar
    }
}

impl Shard {
    /// A snapshot of it, as it is streamed or as it is stored.
    fn archive(&self, streamed: bool) -> Vec<u8> {
        let mut tar = Vec::new();
        let all: Vec<_> = self.points.iter().collect();
        // Also one without points has a segment to write to.
        let halves =
            all.chunks(all.len().div_ceil(2).max(1)).chain(all.is_empty().then_some(&all[..]));
        for (n, half) in halves.enumerate() {
            let id = format!("00000000-0000-4000-8000-{n:012}");
            let points: Map<String, Value> =
                half.iter().map(|(id, point)| ((*id).clone(), (*point).clone())).collect();
            let files = [
                ("points.json", Value::Object(points).to_string()),
                ("segment.json", "{}".to_owned()),
                ("version.info", "0.6.0".to_owned()),
            ];
            if streamed {
                for (file, text) in files {
                    entry(&mut tar, &format!("segments/{id}/files/{file}"), text.as_bytes());
                }
            } else {
                let mut inner = Vec::new();
                for (file, text) in files {
                    entry(&mut inner, &format!("snapshot/files/{file}"), text.as_bytes());
                }
                entry(&mut tar, &format!("segments/{id}.tar"), &inner);
            }
        }
        entry(&mut tar, "replica_state.json", b"{}");
        entry(&mut tar, "shard_config.json", b"{}");
        tar.extend([0; 2 * BLOCK]);
        tar
    }

    /// Take over the points of a snapshot.
    fn take<'f>(&mut self, files: impl Iterator<Item = (&'f str, &'f Vec<u8>)>) {
        self.points.clear();
        for (path, bytes) in files {
            let texts: Vec<Vec<u8>> = match path {
                path if path.ends_with("points.json") => vec![bytes.clone()],
                path if path.ends_with(".tar") => {
                    // It has no end of its own.
                    let inner = untar(&[&bytes[..], &[0; 2 * BLOCK]].concat());
                    let inner = inner.into_iter().flatten();
                    inner
                        .filter(|(path, _)| path.ends_with("points.json"))
                        .map(|(_, bytes)| bytes)
                        .collect()
                }
                _ => Vec::new(),
            };
            for text in texts {
                let points: BTreeMap<String, Value> =
                    serde_json::from_slice(&text).unwrap_or_default();
                self.points.extend(points);
            }
        }
    }
}

/// Add an entry to a tar.
fn entry(tar: &mut Vec<u8>, name: &str, content: &[u8]) {
    let mut header = [0; BLOCK];
    header[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar  \0");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&header);
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

/// The files of a tar of [`entry`], if it is whole.
fn untar(bytes: &[u8]) -> Option<BTreeMap<String, Vec<u8>>> {
    let (mut files, mut at) = (BTreeMap::new(), 0);
    loop {
        let header = bytes.get(at..at + BLOCK)?;
        if header.iter().all(|byte| *byte == 0) {
            return bytes.get(at + BLOCK..at + 2 * BLOCK).map(|_| files);
        }
        let text = |range: std::ops::Range<usize>| {
            String::from_utf8_lossy(&header[range]).trim_end_matches('\0').to_owned()
        };
        let size = usize::from_str_radix(text(124..136).trim(), 8).ok()?;
        at += BLOCK;
        files.insert(text(0..100), bytes.get(at..at.checked_add(size)?)?.to_vec());
        at += size.next_multiple_of(BLOCK);
    }
}
