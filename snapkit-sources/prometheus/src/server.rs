//! The server's HTTP interface (<https://prometheus.io/docs/prometheus/latest/querying/api/>).

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use snapkit_core::context::{Context, Timestamp};
use snapkit_core::{Error, Reason, Result};

use crate::config::PrometheusConfig;

/// The longest answer, in bytes. The server's own metrics are some hundred KiB.
const MAX_ANSWER: usize = 8 << 20;

/// The longest error text of a server that is told.
const MAX_TOLD: usize = 1000;

/// A server that is asked.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    config: PrometheusConfig,
    client: reqwest::Client,
}

/// What every answer of the interface looks like.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<T> {
    data: Option<T>,
    error_type: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct BuildInfo {
    version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeInfo {
    #[serde(default)]
    storage_retention: String,
}

#[derive(Deserialize)]
struct SnapshotName {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct QueryResult {
    result_type: String,
    result: serde_json::Value,
}

impl Server {
    pub(crate) fn new(config: &PrometheusConfig) -> Result<Self> {
        // Where it leads to is another address, which nobody has named.
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10));
        // A proxy would read the password.
        let client = if config.url.starts_with("http://") { client.no_proxy() } else { client };
        let client = client.build().map_err(|e| {
            Error::new(Reason::Unavailable, "no HTTP client can be made").caused_by(e)
        })?;
        Ok(Self { config: config.clone(), client })
    }

    /// Its version, such as `2.42.0`.
    pub(crate) async fn version(&self, cx: &Context) -> Result<String> {
        Ok(self.ask::<BuildInfo>(cx, "api/v1/status/buildinfo", &[]).await?.version)
    }

    /// Whether snapshots are allowed. `None` if the server does not say.
    pub(crate) async fn is_admin_enabled(&self, cx: &Context) -> Result<Option<bool>> {
        let flags: serde_json::Value = self.ask(cx, "api/v1/status/flags", &[]).await?;
        Ok(flags.get("web.enable-admin-api").and_then(|flag| flag.as_str()?.parse().ok()))
    }

    /// How long it keeps blocks, as it says it: `15d`, or `15d or 10GiB`.
    pub(crate) async fn retention(&self, cx: &Context) -> Result<String> {
        Ok(self.ask::<RuntimeInfo>(cx, "api/v1/status/runtimeinfo", &[]).await?.storage_retention)
    }

    /// Have it make a snapshot, with what it has in memory. Its name below `snapshots`.
    pub(crate) async fn snapshot(&self, cx: &Context) -> Result<String> {
        let request = self.request(Method::POST, "api/v1/admin/tsdb/snapshot");
        let made: SnapshotName = self.answer(cx, request, &[("skip_head", "false")]).await?;
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if made.name.is_empty() || !made.name.chars().all(fits) {
            return Err(self.misunderstood("a snapshot has an impossible name"));
        }
        Ok(made.name)
    }

    /// The answer to a query at a moment, in a form of its own: the result without its time.
    pub(crate) async fn query(&self, cx: &Context, query: &str, at: Timestamp) -> Result<String> {
        let at = format!("{:.3}", at.0 as f64 / 1e9);
        let parameters = [("query", query), ("time", at.as_str())];
        let found: QueryResult = self.ask(cx, "api/v1/query", &parameters).await?;
        Ok(canonical(&found))
    }

    /// How many blocks it has loaded, as its own metrics say. `None` if they do not.
    pub(crate) async fn blocks_loaded(&self, cx: &Context) -> Result<Option<u64>> {
        let (status, body) = self.send(cx, self.request(Method::GET, "metrics"), &[]).await?;
        if status != StatusCode::OK {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&body);
        let line =
            text.lines().find_map(|line| line.strip_prefix("prometheus_tsdb_blocks_loaded "));
        Ok(line.and_then(|number| number.trim().parse().ok()))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        cx: &Context,
        path: &str,
        parameters: &[(&str, &str)],
    ) -> Result<T> {
        self.answer(cx, self.request(Method::GET, path), parameters).await
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}/{path}", self.config.url));
        match (&self.config.user, &self.config.password, &self.config.token) {
            (Some(user), Some(password), _) => request.basic_auth(user, Some(password.expose())),
            (_, _, Some(token)) => request.bearer_auth(token.expose()),
            _ => request,
        }
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        cx: &Context,
        request: reqwest::RequestBuilder,
        parameters: &[(&str, &str)],
    ) -> Result<T> {
        let (status, body) = self.send(cx, request, parameters).await?;
        let envelope = serde_json::from_slice::<Envelope<T>>(&body);
        if status.is_success() {
            return match envelope {
                Ok(Envelope { data: Some(data), .. }) => Ok(data),
                _ => Err(self.misunderstood("the server's answer is not that of a Prometheus")),
            };
        }
        let told = envelope.ok().and_then(|e| Some((e.error_type?, e.error?)));
        let tell = |e: Error| {
            match &told {
                Some((_, text)) => e.with("said", text.chars().take(MAX_TOLD).collect::<String>()),
                None => e,
            }
            .with("url", &self.config.url)
        };
        let is = |kind: &str| told.as_ref().is_some_and(|(found, _)| found == kind);
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => tell(Error::new(
                Reason::PermissionDenied,
                "the server does not let us in: check `user` and `password`, or `token`",
            )),
            // 500 in all versions, and it stays so.
            _ if is("unavailable") => tell(not_enabled()),
            StatusCode::NOT_FOUND => tell(Error::new(
                Reason::Unsupported,
                "the server does not know what it is asked: is `url` that of a Prometheus, with its prefix?",
            )),
            StatusCode::SERVICE_UNAVAILABLE => {
                tell(Error::new(Reason::Unavailable, "the server is not ready"))
            }
            status => tell(Error::new(
                Reason::Unavailable,
                format!("the server cannot do that: {status}"),
            )),
        })
    }

    async fn send(
        &self,
        cx: &Context,
        request: reqwest::RequestBuilder,
        parameters: &[(&str, &str)],
    ) -> Result<(StatusCode, Vec<u8>)> {
        let failed = |e: reqwest::Error| {
            let reason = if e.is_timeout() { Reason::TimedOut } else { Reason::Unavailable };
            Error::new(reason, "the server does not answer")
                .with("url", &self.config.url)
                .caused_by(e.without_url())
        };
        let asked = async {
            let answer = request.query(parameters).send().await.map_err(failed)?;
            let status = answer.status();
            let mut body = Vec::new();
            let mut pieces = answer.bytes_stream();
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(failed)?;
                if body.len() + piece.len() > MAX_ANSWER {
                    return Err(self.misunderstood("the server's answer is too long"));
                }
                body.extend_from_slice(&piece);
            }
            Ok((status, body))
        };
        cx.within(self.config.timeout).run(asked).await.map_err(|e| match e.reason() {
            Reason::TimedOut if cx.check().is_ok() => {
                let what = format!("the server has not answered within {:?}", self.config.timeout);
                Error::new(Reason::TimedOut, what).with("url", &self.config.url)
            }
            _ => e,
        })
    }

    fn misunderstood(&self, what: &str) -> Error {
        Error::new(Reason::Unsupported, what.to_owned()).with("url", &self.config.url)
    }
}

/// What to do where snapshots are not allowed.
pub(crate) fn not_enabled() -> Error {
    Error::new(Reason::Unsupported, "the server makes no snapshots: its admin interface is off")
        .with_hint("start it with --web.enable-admin-api, and let nobody else reach that address")
}

/// The snapshot that an error speaks of: what the server had begun of it stays in its directory.
pub(crate) fn snapshot_in(e: &Error) -> Option<String> {
    let text = e.chain();
    let (_, rest) = text.split_once("/snapshots/")?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-')?;
    (end > 0).then(|| rest[..end].to_owned())
}

/// A result that is the same for the same content: sorted, without the times of an instant query.
fn canonical(found: &QueryResult) -> String {
    let value = |entry: &serde_json::Value| {
        entry.get("value").or_else(|| entry.get("histogram")).map_or_else(
            || entry.get("values").map(ToString::to_string).unwrap_or_default(),
            |pair| pair.get(1).map(ToString::to_string).unwrap_or_default(),
        )
    };
    match (found.result_type.as_str(), &found.result) {
        ("vector" | "matrix", serde_json::Value::Array(entries)) => {
            let mut lines: Vec<_> = entries
                .iter()
                .map(|entry| {
                    let metric = entry.get("metric").map(ToString::to_string).unwrap_or_default();
                    format!("{metric} {}", value(entry))
                })
                .collect();
            lines.sort_unstable();
            lines.join("; ")
        }
        (_, pair) => pair.get(1).map(ToString::to_string).unwrap_or_default(),
    }
}
