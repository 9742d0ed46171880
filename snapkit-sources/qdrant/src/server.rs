//! The server's HTTP interface (<https://api.qdrant.tech/api-reference>), as Qdrant 1.18 answers it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use snapkit_core::artifact::ByteStream;
use snapkit_core::context::Context;
use snapkit_core::{Error, Reason, Result};

use crate::archive::{Archive, hex};
use crate::config::QdrantConfig;
use crate::document::Limits;

/// The longest answer, in bytes: some hundred points with long vectors and payloads.
const MAX_ANSWER: usize = 64 << 20;

/// The longest error text of a server that is told.
const MAX_TOLD: usize = 1000;

/// What lies between attempts to remove something; nothing behind the last.
pub(crate) const REMOVAL_PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::ZERO,
];

/// A node that is asked.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) url: String,
    config: QdrantConfig,
    client: reqwest::Client,
    key: Option<HeaderValue>,
}

/// A shard as a node speaks of it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ShardInfo {
    pub(crate) shard_id: u32,
    /// What it is for, where sharding is up to the user: text, or a number.
    #[serde(default)]
    pub(crate) shard_key: Option<Value>,
    #[serde(default)]
    pub(crate) state: String,
}

impl ShardInfo {
    pub(crate) fn is_active(&self) -> bool {
        self.state == "Active"
    }

    /// Whether it only hears what is written, and is never asked.
    pub(crate) fn is_listener(&self) -> bool {
        self.state == "Listener"
    }
}

/// Where the shards of a collection are.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Placement {
    #[serde(default)]
    pub(crate) local_shards: Vec<ShardInfo>,
    #[serde(default)]
    pub(crate) remote_shards: Vec<ShardInfo>,
    /// Points that are on their way from one shard to another.
    #[serde(default)]
    pub(crate) resharding_operations: Vec<Value>,
}

/// A snapshot that lies on a node.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SnapshotFile {
    pub(crate) name: String,
    pub(crate) size: u64,
    /// SHA-256 in hexadecimal digits.
    #[serde(default)]
    pub(crate) checksum: Option<String>,
}

/// One page of the points of a collection.
#[derive(Debug, Deserialize)]
pub(crate) struct Page {
    pub(crate) points: Vec<Value>,
    #[serde(default)]
    pub(crate) next_page_offset: Option<Value>,
}

#[derive(Deserialize)]
struct Envelope<T> {
    result: T,
}

#[derive(Deserialize)]
struct Version {
    title: String,
    version: String,
}

#[derive(Deserialize)]
struct Count {
    count: u64,
}

impl Server {
    pub(crate) fn new(config: &QdrantConfig, url: &str) -> Result<Self> {
        // Where it leads to is another address, which nobody has named.
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10));
        // A proxy would read the key.
        let client = if url.starts_with("http://") { client.no_proxy() } else { client };
        let client = client.build().map_err(|e| {
            Error::new(Reason::Unavailable, "no HTTP client can be made").caused_by(e)
        })?;
        let key = config.api_key.as_ref().map(|key| {
            let mut value = HeaderValue::from_str(key.expose())
                .map_err(|_| Error::new(Reason::InvalidConfig, "`api_key`: no key is like that"))?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        });
        Ok(Self { url: url.to_owned(), config: config.clone(), client, key: key.transpose()? })
    }

    /// Its version, such as `1.18.2`.
    pub(crate) async fn version(&self, cx: &Context) -> Result<String> {
        let request = self.request(Method::GET, &[])?;
        let (_, body) = self.send(cx, request, self.config.timeout).await?;
        let about: Version = serde_json::from_slice(&body)
            .map_err(|_| self.misunderstood("the server is no Qdrant"))?;
        if !about.title.starts_with("qdrant") {
            return Err(self.misunderstood("the server is no Qdrant"));
        }
        Ok(about.version)
    }

    /// The names of all collections, sorted.
    pub(crate) async fn collections(&self, cx: &Context) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        #[derive(Deserialize)]
        struct List {
            collections: Vec<Named>,
        }
        let list: List = self.get(cx, &["collections"]).await?;
        let mut names: Vec<_> = list.collections.into_iter().map(|named| named.name).collect();
        names.sort();
        Ok(names)
    }

    /// What it says of a collection: its settings, its payload indexes.
    pub(crate) async fn collection(&self, cx: &Context, name: &str) -> Result<Value> {
        self.get(cx, &["collections", name]).await
    }

    /// Pairs of a collection and an alias of it.
    pub(crate) async fn aliases(&self, cx: &Context) -> Result<Vec<(String, String)>> {
        #[derive(Deserialize)]
        struct Alias {
            alias_name: String,
            collection_name: String,
        }
        #[derive(Deserialize)]
        struct List {
            aliases: Vec<Alias>,
        }
        let list: List = self.get(cx, &["aliases"]).await?;
        Ok(list.aliases.into_iter().map(|a| (a.collection_name, a.alias_name)).collect())
    }

    pub(crate) async fn placement(&self, cx: &Context, name: &str) -> Result<Placement> {
        self.get(cx, &["collections", name, "cluster"]).await
    }

    /// What the files of a shard are, by version (Qdrant 1.14.1 and newer); `None` if it does not say.
    pub(crate) async fn manifest(&self, cx: &Context, name: &str, shard: u32) -> Option<Value> {
        let shard = shard.to_string();
        let path = ["collections", name, "shards", &shard, "snapshot", "partial", "manifest"];
        self.get(cx, &path).await.ok()
    }

    /// How many points there are, exactly.
    pub(crate) async fn count(&self, cx: &Context, name: &str, limits: Limits) -> Result<u64> {
        let path = ["collections", name, "points", "count"];
        // Its own patience is a minute, which is not enough for many points.
        let longest = self.config.snapshot_timeout.as_secs().max(1);
        let seconds = limits.seconds.map_or(longest, |seconds| seconds.min(longest));
        let request = self.request(Method::POST, &path)?.query(&[("timeout", seconds)]);
        let request = with_json(request, &json!({ "exact": true }));
        let patience = self.config.timeout.max(Duration::from_secs(seconds));
        Ok(self.answer::<Count>(cx, request, patience).await?.count)
    }

    /// Points with everything that they have, in the order of their ids.
    pub(crate) async fn scroll(
        &self,
        cx: &Context,
        name: &str,
        limit: u64,
        offset: Option<&Value>,
    ) -> Result<Page> {
        let mut question = json!({ "limit": limit, "with_payload": true, "with_vector": true });
        if let (Some(offset), Some(question)) = (offset, question.as_object_mut()) {
            question.insert("offset".to_owned(), offset.clone());
        }
        self.post(cx, &["collections", name, "points", "scroll"], &question).await
    }

    /// Have it make a snapshot of a shard, which has these already.
    pub(crate) async fn make_snapshot(
        &self,
        cx: &Context,
        name: &str,
        shard: u32,
        before: Vec<SnapshotFile>,
    ) -> Result<SnapshotFile> {
        let number = shard.to_string();
        let path = ["collections", name, "shards", &number, "snapshots"];
        // Without it an error is told to nobody.
        let request = self.request(Method::POST, &path)?.query(&[("wait", "true")]);
        let file =
            match self.answer::<SnapshotFile>(cx, request, self.config.snapshot_timeout).await {
                Err(e) if e.is_passing() || e.is_cancelled() => {
                    // Whether it was made nobody has said. What has come since may be somebody else's: it is named, and stays.
                    let cx = cx.for_cleanup(self.config.timeout);
                    let mut now = self.snapshots(&cx, name, shard).await.unwrap_or_default();
                    now.retain(|file| !before.iter().any(|before| before.name == file.name));
                    return Err(now.into_iter().fold(e, |e, file| {
                        e.with("left", file.name)
                            .with_hint("remove what is left of it on the server")
                    }));
                }
                other => other?,
            };
        if before.iter().any(|before| before.name == file.name) {
            // They are named after the second in which they are made, and somebody has made one in the same: whose it is now
            // nobody can say.
            let what = "the server has given a snapshot a name that another one had";
            let e = Error::new(Reason::Unavailable, what).with("snapshot", file.name);
            return Err(e.with_hint("try again: somebody else makes snapshots of the same shard"));
        }
        if file.name.contains('/') || file.name.chars().all(|c| c == '.') {
            return Err(self.misunderstood("a snapshot has an impossible name"));
        }
        Ok(file)
    }

    /// The snapshots of a shard that lie on the node.
    pub(crate) async fn snapshots(
        &self,
        cx: &Context,
        name: &str,
        shard: u32,
    ) -> Result<Vec<SnapshotFile>> {
        self.get(cx, &["collections", name, "shards", &shard.to_string(), "snapshots"]).await
    }

    /// Remove a snapshot of a shard; that it is gone already is no error.
    pub(crate) async fn remove_snapshot(
        &self,
        cx: &Context,
        name: &str,
        shard: u32,
        file: &str,
    ) -> Result<()> {
        let shard = shard.to_string();
        let path = ["collections", name, "shards", &shard, "snapshots", file];
        for pause in REMOVAL_PAUSES {
            let request = self.request(Method::DELETE, &path)?.query(&[("wait", "true")]);
            match self.answer::<Value>(cx, request, self.config.timeout).await {
                // One may outlive its collection, and belongs to the next of that name.
                Err(e)
                    if e.reason() == Reason::NotFound && !e.to_string().contains("Collection") =>
                {
                    return Ok(());
                }
                Err(e) if pause.is_zero() => {
                    return Err(e
                        .with("snapshot", file)
                        .with_hint("it still lies on the server: remove it there"));
                }
                Err(_) => cx.sleep(pause).await?,
                Ok(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// The bytes of a snapshot that lies on the node, compared with its length and its checksum at the end.
    pub(crate) async fn download(
        &self,
        cx: &Context,
        name: &str,
        shard: u32,
        file: &SnapshotFile,
    ) -> Result<ByteStream> {
        let number = shard.to_string();
        let path = ["collections", name, "shards", &number, "snapshots", &file.name];
        let body = self.stream(cx, &path, self.config.timeout).await?;
        let (cx, this, file) = (cx.clone(), self.clone(), file.clone());
        let begun = (body, Sha256::new(), 0_u64);
        Ok(Box::pin(futures_util::stream::try_unfold(begun, move |(mut body, mut hasher, len)| {
            let (cx, this, file) = (cx.clone(), this.clone(), file.clone());
            async move {
                if let Some(piece) = this.next(&cx, &mut body, this.config.timeout).await? {
                    hasher.update(&piece);
                    let len = len + piece.len() as u64;
                    return Ok(Some((piece, (body, hasher, len))));
                }
                let found = hex(hasher);
                let is_right =
                    file.checksum.as_ref().is_none_or(|sum| sum.eq_ignore_ascii_case(&found));
                if len != file.size || !is_right {
                    let what = "the server gave another snapshot than it had made";
                    let e = Error::new(Reason::SourceChanged, what).with("snapshot", &file.name);
                    return Err(e.with("bytes", len).with("expected", file.size));
                }
                Ok(None)
            }
        })))
    }

    /// A snapshot of a shard as the server makes it. It ends like a whole one when the server has failed: what it is must be
    /// looked at.
    pub(crate) async fn streamed(
        &self,
        cx: &Context,
        name: &str,
        shard: u32,
    ) -> Result<ByteStream> {
        let path = ["collections", name, "shards", &shard.to_string(), "snapshot"];
        // It does what it has still to do before it sends the first piece.
        let patience = self.config.snapshot_timeout;
        let body = self.stream(cx, &path, patience).await?;
        let (cx, this) = (cx.clone(), self.clone());
        Ok(Box::pin(futures_util::stream::try_unfold(
            (body, patience),
            move |(mut body, patience)| {
                let (cx, this) = (cx.clone(), this.clone());
                async move {
                    let piece = this.next(&cx, &mut body, patience).await?;
                    Ok(piece.map(|piece| (piece, (body, this.config.timeout))))
                }
            },
        )))
    }

    pub(crate) async fn create(&self, cx: &Context, name: &str, settings: &Value) -> Result<()> {
        self.put(cx, &["collections", name], settings).await
    }

    /// Change settings of a collection that is there.
    pub(crate) async fn tune(&self, cx: &Context, name: &str, settings: &Value) -> Result<()> {
        let request = self.request(Method::PATCH, &["collections", name])?;
        self.agreed(cx, with_json(request, settings)).await
    }

    pub(crate) async fn delete(&self, cx: &Context, name: &str) -> Result<()> {
        let request = self.request(Method::DELETE, &["collections", name])?;
        self.agreed(cx, request).await
    }

    /// Make the shards for a key.
    pub(crate) async fn create_shards(
        &self,
        cx: &Context,
        name: &str,
        key: &Value,
        count: usize,
    ) -> Result<()> {
        let shards = json!({ "shard_key": key, "shards_number": count });
        self.put(cx, &["collections", name, "shards"], &shards).await
    }

    pub(crate) async fn create_index(
        &self,
        cx: &Context,
        name: &str,
        field: &str,
        schema: &Value,
    ) -> Result<()> {
        let request = self.request(Method::PUT, &["collections", name, "index"])?;
        let index = json!({ "field_name": field, "field_schema": schema });
        let request = with_json(request.query(&[("wait", "true")]), &index);
        self.answer::<Value>(cx, request, self.config.snapshot_timeout).await.map(drop)
    }

    /// Point an alias to a collection, wherever it points now.
    pub(crate) async fn alias(&self, cx: &Context, name: &str, alias: &str) -> Result<()> {
        let actions = json!({ "actions": [
            { "create_alias": { "collection_name": name, "alias_name": alias } },
        ] });
        let request = self.request(Method::POST, &["collections", "aliases"])?;
        self.agreed(cx, with_json(request, &actions)).await
    }

    /// Give a shard this content in the place of its own. The server compares the SHA-256 before it changes anything.
    pub(crate) async fn upload(
        &self,
        cx: &Context,
        name: &str,
        shard: u32,
        archive: &Archive,
    ) -> Result<()> {
        let number = shard.to_string();
        let path = ["collections", name, "shards", &number, "snapshots", "upload"];
        let boundary: String =
            cx.random::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"snapshot\"; filename=\"shard.snapshot\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let tail = format!("\r\n--{boundary}--\r\n");
        let len = head.len() as u64 + archive.len + tail.len() as u64;
        let once = |text: String| futures_util::stream::iter([Ok::<_, Error>(Bytes::from(text))]);
        let content = archive.stream(&cx.unhurried());
        let body = once(head).chain(content).chain(once(tail)).map_err(std::io::Error::other);
        let request = self
            .request(Method::POST, &path)?
            // Others would write their own content over it.
            .query(&[("wait", "true"), ("priority", "snapshot"), ("checksum", &archive.sha256)])
            .header(CONTENT_TYPE, format!("multipart/form-data; boundary={boundary}"))
            .header(reqwest::header::CONTENT_LENGTH, len)
            .body(reqwest::Body::wrap_stream(body));
        self.answer::<Value>(cx, request, self.config.snapshot_timeout).await.map(drop)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, cx: &Context, path: &[&str]) -> Result<T> {
        self.answer(cx, self.request(Method::GET, path)?, self.config.timeout).await
    }

    async fn post<T: serde::de::DeserializeOwned>(
        &self,
        cx: &Context,
        path: &[&str],
        question: &Value,
    ) -> Result<T> {
        let request = with_json(self.request(Method::POST, path)?, question);
        self.answer(cx, request, self.config.timeout).await
    }

    async fn put(&self, cx: &Context, path: &[&str], what: &Value) -> Result<()> {
        self.agreed(cx, with_json(self.request(Method::PUT, path)?, what)).await
    }

    /// What all nodes have to agree on. Unless told, a server waits no longer than ten seconds for that, and says that it has
    /// failed though it goes on.
    async fn agreed(&self, cx: &Context, request: reqwest::RequestBuilder) -> Result<()> {
        let seconds = self.config.timeout.as_secs().max(1);
        let request = request.query(&[("timeout", seconds)]);
        self.answer::<Value>(cx, request, self.config.snapshot_timeout).await.map(drop)
    }

    fn request(&self, method: Method, path: &[&str]) -> Result<reqwest::RequestBuilder> {
        let mut url = Url::parse(&self.url)
            .map_err(|e| Error::new(Reason::InvalidConfig, "`url` is none").caused_by(e))?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let request = self.client.request(method, url);
        Ok(match &self.key {
            Some(key) => request.header("api-key", key),
            None => request,
        })
    }

    async fn answer<T: serde::de::DeserializeOwned>(
        &self,
        cx: &Context,
        request: reqwest::RequestBuilder,
        patience: Duration,
    ) -> Result<T> {
        let (status, body) = self.send(cx, request, patience).await?;
        if status == StatusCode::ACCEPTED {
            // It goes on, and says to nobody how it ends.
            return Err(self.misunderstood("the server does not wait for what it does"));
        }
        let envelope = serde_json::from_slice::<Envelope<T>>(&body);
        Ok(envelope
            .map_err(|_| self.misunderstood("the server's answer is not that of a Qdrant"))?
            .result)
    }

    /// The status and the body of an answer that is none of an error.
    async fn send(
        &self,
        cx: &Context,
        request: reqwest::RequestBuilder,
        patience: Duration,
    ) -> Result<(StatusCode, Vec<u8>)> {
        let asked = async {
            let answer = request.send().await.map_err(|e| self.failed(e))?;
            self.read(answer).await
        };
        let (status, body) =
            cx.within(patience).run(asked).await.map_err(|e| self.late(cx, patience, e))?;
        if status.is_success() { Ok((status, body)) } else { Err(self.refused(status, &body)) }
    }

    async fn read(&self, answer: Response) -> Result<(StatusCode, Vec<u8>)> {
        let status = answer.status();
        let mut body = Vec::new();
        let mut pieces = answer.bytes_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|e| self.failed(e))?;
            if body.len() + piece.len() > MAX_ANSWER {
                return Err(self.misunderstood("the server's answer is too long"));
            }
            body.extend_from_slice(&piece);
        }
        Ok((status, body))
    }

    /// A body that is not looked at here.
    async fn stream(&self, cx: &Context, path: &[&str], patience: Duration) -> Result<Response> {
        let request = self.request(Method::GET, path)?;
        let asked = async {
            let answer = request.send().await.map_err(|e| self.failed(e))?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            let (status, body) = self.read(answer).await?;
            Err(self.refused(status, &body))
        };
        cx.within(patience).run(asked).await.map_err(|e| self.late(cx, patience, e))
    }

    async fn next(
        &self,
        cx: &Context,
        body: &mut Response,
        patience: Duration,
    ) -> Result<Option<Bytes>> {
        let next = async { body.chunk().await.map_err(|e| self.failed(e)) };
        cx.within(patience).run(next).await.map_err(|e| self.late(cx, patience, e))
    }

    fn failed(&self, e: reqwest::Error) -> Error {
        let reason = if e.is_timeout() { Reason::TimedOut } else { Reason::Unavailable };
        Error::new(reason, "the server does not answer")
            .with("url", &self.url)
            .caused_by(e.without_url())
    }

    fn late(&self, cx: &Context, patience: Duration, e: Error) -> Error {
        if e.reason() == Reason::TimedOut && cx.check().is_ok() {
            let what = format!("the server has not answered within {patience:?}");
            return Error::new(Reason::TimedOut, what).with("url", &self.url);
        }
        e
    }

    /// What a status means, and what the server says of it.
    fn refused(&self, status: StatusCode, body: &[u8]) -> Error {
        let told = serde_json::from_slice::<Value>(body)
            .ok()
            .and_then(|told| told["status"]["error"].as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
        let (reason, what) = match status {
            StatusCode::UNAUTHORIZED => {
                (Reason::PermissionDenied, "the server wants a key: it is `api_key`")
            }
            StatusCode::FORBIDDEN => (
                Reason::PermissionDenied,
                "the server does not allow that: snapshots need a key with the right to manage",
            ),
            StatusCode::NOT_FOUND => (Reason::NotFound, "the server does not have that"),
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                (Reason::Unsupported, "the server does not accept that")
            }
            StatusCode::CONFLICT => (Reason::AlreadyExists, "the server has that already"),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                (Reason::Unavailable, "the server cannot do that now")
            }
            _ => (Reason::Unavailable, "the server has failed"),
        };
        let e = Error::new(reason, what).with("url", &self.url).with("status", status.as_u16());
        match told.trim() {
            "" => e,
            told => {
                e.with("said", self.without_key(told).chars().take(MAX_TOLD).collect::<String>())
            }
        }
    }

    /// A server may repeat what it was sent.
    fn without_key(&self, told: &str) -> String {
        match &self.config.api_key {
            Some(key) if !key.expose().is_empty() => told.replace(key.expose(), "…"),
            _ => told.to_owned(),
        }
    }

    fn misunderstood(&self, what: &str) -> Error {
        Error::new(Reason::Unsupported, what.to_owned()).with("url", &self.url)
    }
}

fn with_json(request: reqwest::RequestBuilder, value: &Value) -> reqwest::RequestBuilder {
    request.header(CONTENT_TYPE, "application/json").body(value.to_string())
}
