//! Settings of a source, in the stack file and in a snapshot.

use std::time::Duration;

use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use snapkit_core::globs::PathGlobs;
use snapkit_core::registry::wait;
use snapkit_core::secret::{self, SecretString};
use snapkit_core::{Error, Reason, Result};

/// How long a server may say nothing unless configured: 60 s.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long a server may take to make or to take a snapshot of a shard unless configured: 1 h. It copies all of the shard
/// meanwhile, and says nothing.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3600);

/// How many points of a collection are read for its digest unless configured.
const DIGEST_POINTS: u64 = 100_000;

/// How a snapshot of a shard comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The server makes a file with a SHA-256, which is read and then removed. It needs as much room on the server's disk
    /// as the largest collections take together.
    #[default]
    Stored,
    /// The server streams it (Qdrant 1.12 and newer): no room on its disk, and no checksum of its own. It waits here, in
    /// scratch space, because the server holds the shard for as long as somebody reads.
    Streamed,
}

/// Settings of a source of kind `qdrant`.
#[non_exhaustive]
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QdrantConfig {
    /// Where the server is: `http://HOST:PORT`, with the prefix of a proxy if it has one.
    pub url: String,
    /// The addresses of the other nodes of a cluster, likewise: a node gives and takes only the shards that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// An API key that may manage, the same on all nodes. It is in no snapshot, and is told to no other address than those of
    /// the stack file.
    #[serde(default, skip_serializing, deserialize_with = "secret::optional")]
    pub api_key: Option<SecretString>,
    /// The names of the collections, in which `*` stands for anything; all unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collections: Vec<String>,
    /// How snapshots come.
    #[serde(default)]
    pub method: Method,
    /// How many points of a collection are read for its digest, which proves a restore: 100,000 unless given. Of a larger
    /// one only the count is known. 0 for no digests.
    #[serde(default = "default_digest_points")]
    pub digest_points: u64,
    /// How long a server may say nothing: 60 s unless given, at most a day.
    #[serde(default = "default_timeout", with = "wait")]
    pub timeout: Duration,
    /// How long it may take to make or to take a snapshot of a shard: 1 h unless given, at most a day.
    #[serde(default = "default_snapshot_timeout", with = "wait")]
    pub snapshot_timeout: Duration,
    /// The most bytes of scratch space that a capture of streamed snapshots or a restore takes; unless given, all that is
    /// free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<u64>,
}

fn default_timeout() -> Duration {
    TIMEOUT
}

fn default_snapshot_timeout() -> Duration {
    SNAPSHOT_TIMEOUT
}

fn default_digest_points() -> u64 {
    DIGEST_POINTS
}

fn bad(what: &str) -> Error {
    Error::new(Reason::InvalidConfig, what.to_owned())
}

/// An address without what may stand at its end, or `invalid-config`.
fn plain(url: &str) -> Result<String> {
    // What is refused may hold a password: it is not repeated.
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let rest = rest.ok_or_else(|| bad("`url`: write http://HOST:PORT"))?;
    if rest.split('/').next().is_some_and(|host| host.is_empty() || host.contains('@')) {
        return Err(bad("`url`: it names no host, or holds a password: a key is `api_key`"));
    }
    if rest.contains(['?', '#']) || Url::parse(url).is_err() {
        return Err(bad("`url`: write http://HOST:PORT, and nothing behind the path"));
    }
    if url.starts_with("https://") && cfg!(not(feature = "tls")) {
        return Err(bad("this program was built without TLS: its feature `tls`"));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

impl QdrantConfig {
    /// A server with everything else as usual.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            nodes: Vec::new(),
            api_key: None,
            collections: Vec::new(),
            method: Method::default(),
            digest_points: DIGEST_POINTS,
            timeout: TIMEOUT,
            snapshot_timeout: SNAPSHOT_TIMEOUT,
            scratch: None,
        }
    }

    /// The same with plain addresses, or `invalid-config`.
    pub(crate) fn checked(mut self) -> Result<Self> {
        self.url = plain(&self.url)?;
        for node in &mut self.nodes {
            *node = plain(node)?;
        }
        self.globs()?;
        Ok(self)
    }

    /// The collections that are asked for; `None` for all.
    pub(crate) fn globs(&self) -> Result<Option<PathGlobs>> {
        if self.collections.is_empty() {
            return Ok(None);
        }
        let wrong = |e: Error| bad("`collections`: not a glob").caused_by(e);
        Ok(Some(PathGlobs::new(&self.collections, false).map_err(wrong)?))
    }

    /// Another server, asked with the same key: whoever names it may be told the key there.
    pub(crate) fn at(&self, url: &str) -> Result<Self> {
        Self { url: url.to_owned(), nodes: Vec::new(), ..self.clone() }.checked()
    }
}

/// Add to settings that come from a snapshot what is in none, from those that were declared: the key, if all addresses are
/// those that were declared, and none otherwise.
pub fn add_secrets(settings: &mut Value, declared: &Value) {
    let addresses = |value: &Value| {
        let config = serde_json::from_value::<QdrantConfig>(value.clone()).ok()?.checked().ok()?;
        Some((config.url, config.nodes))
    };
    let Some(((url, nodes), declared_at)) = addresses(settings).zip(addresses(declared)) else {
        return;
    };
    let is_declared = |node: &String| *node == declared_at.0 || declared_at.1.contains(node);
    if !is_declared(&url) || !nodes.iter().all(is_declared) {
        return;
    }
    let Some(settings) = settings.as_object_mut() else { return };
    match declared.get("api_key") {
        Some(key) => drop(settings.insert("api_key".to_owned(), key.clone())),
        None => drop(settings.remove("api_key")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let told = |url: &str| match QdrantConfig::new(url).checked() {
            Ok(config) => config.url,
            Err(e) => e.message().to_owned(),
        };
        let all = [
            "http://127.0.0.1:6333",
            "http://vectors/qdrant/",
            "http://me:x@vectors",
            "http://",
            "vectors:6333",
            "http://vectors?x=1",
            "http://[::1",
        ]
        .map(|url| format!("{url} => {}", told(url)));
        insta::assert_snapshot!(all.join("\n"), @"
        http://127.0.0.1:6333 => http://127.0.0.1:6333
        http://vectors/qdrant/ => http://vectors/qdrant
        http://me:x@vectors => `url`: it names no host, or holds a password: a key is `api_key`
        http:// => `url`: it names no host, or holds a password: a key is `api_key`
        vectors:6333 => `url`: write http://HOST:PORT
        http://vectors?x=1 => `url`: write http://HOST:PORT, and nothing behind the path
        http://[::1 => `url`: write http://HOST:PORT, and nothing behind the path
        ");
    }

    #[test]
    fn the_key_is_for_the_addresses_that_were_declared() {
        let declared =
            serde_json::json!({ "url": "http://a/", "nodes": ["http://b"], "api_key": "hush" });
        for (url, nodes, expected) in [
            ("http://a", vec![], true),
            ("http://b/", vec!["http://a"], true),
            ("http://thief", vec![], false),
            ("http://a", vec!["http://thief"], false),
        ] {
            let mut settings = serde_json::json!({ "url": url, "nodes": nodes });
            add_secrets(&mut settings, &declared);
            let config: QdrantConfig = serde_json::from_value(settings).unwrap();
            assert_eq!(config.api_key.is_some(), expected, "{url}");
            let written = serde_json::to_string(&config).unwrap() + &format!("{config:?}");
            assert!(!written.contains("hush"), "{written}");
        }
    }
}
