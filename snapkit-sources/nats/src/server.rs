//! A server: how it is reached, asked, and what its refusals mean (ADR-1 of NATS; `server/jetstream_api.go`).

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, RequestErrorKind};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use snapkit_core::context::Context;
use snapkit_core::secret::{Secret, SecretString};
use snapkit_core::{Error, Reason, Result};

use crate::config::NatsConfig;

/// The most streams of an account that are taken note of.
const MAX_STREAMS: usize = 20_000;

/// Messages that wait to be looked at, of a subscription: with the size of chunks it bounds memory.
const WAITING: usize = 512;

/// The largest file of credentials.
const MAX_SECRET: u64 = 64 << 10;

/// No answer to a question is longer.
const MAX_ANSWER: usize = 64 << 20;

/// A version of a server, such as 2.10.26.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(['.', '-', '+']).map(str::parse);
        let mut next = || parts.next()?.ok();
        Some(Self(next()?, next()?, next().unwrap_or(0)))
    }

    /// Whether the server gives lists of messages, and takes them.
    pub(crate) fn has_lists(self) -> bool {
        self >= Self(2, 15, 0)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The part of a stream's state that counts here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct StreamState {
    #[serde(default)]
    pub(crate) messages: u64,
    #[serde(default)]
    pub(crate) bytes: u64,
    #[serde(default)]
    pub(crate) first_seq: u64,
    #[serde(default)]
    pub(crate) last_seq: u64,
    #[serde(default)]
    pub(crate) consumer_count: u64,
}

/// A stream as the server tells of it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct StreamInfo {
    pub(crate) config: Value,
    #[serde(default)]
    pub(crate) created: String,
    pub(crate) state: StreamState,
    #[serde(default)]
    pub(crate) cluster: Option<Value>,
}

impl StreamInfo {
    pub(crate) fn name(&self) -> &str {
        self.config["name"].as_str().unwrap_or_default()
    }
}

/// What a refusal says.
#[derive(Clone, Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

/// What a server said.
#[derive(Debug)]
struct Said(String);

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Said {}

/// A connection to a server.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) client: Client,
    pub(crate) version: Version,
    pub(crate) url: String,
    prefix: String,
    timeout: Duration,
}

impl Server {
    /// Connect. Ends within the time-out.
    pub(crate) async fn connect(cx: &Context, config: &NatsConfig) -> Result<Self> {
        let mut options = ConnectOptions::new()
            .name("snapkit")
            .connection_timeout(config.timeout)
            .request_timeout(None)
            .subscription_capacity(WAITING)
            .max_reconnects(4)
            .ignore_discovered_servers();
        if let Some((user, password)) = config.user.clone().zip(config.password.as_ref()) {
            options = options.user_and_password(user, password.expose().clone());
        }
        if let Some(token) = &config.token {
            options = options.token(token.expose().clone());
        }
        if let Some(path) = &config.creds {
            let text = secret_file(cx, "credentials", path).await?;
            options = options.credentials(text.expose()).map_err(|_| {
                let why = "it holds no JWT with the seed of its NKey";
                unusable("credentials", path).caused_by(Said(why.to_owned()))
            })?;
        }
        if let Some(path) = &config.nkey {
            let text = secret_file(cx, "an NKey", path).await?;
            options = options.nkey(text.expose().trim().to_owned());
        }
        if let Some(ca) = &config.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let Some((cert, key)) = config.cert.clone().zip(config.key.clone()) {
            options = options.add_client_certificate(cert, key);
        }
        let url = config.url.clone();
        let limited = cx.within(config.timeout);
        let connecting = async { options.connect(&url).await.map_err(|e| unreachable(&e, &url)) };
        let client = limited.run(connecting).await?;
        let info = client.server_info();
        let version = Version::parse(&info.version).ok_or_else(|| {
            Error::new(Reason::Unsupported, "the server does not say its version")
                .with("server", &url)
                .with("version", &info.version)
        })?;
        if version < Version(2, 9, 0) {
            let what =
                format!("the server is NATS {version}: 2.9 is the oldest that is known here");
            return Err(Error::new(Reason::Unsupported, what).with("server", &url));
        }
        let prefix = match &config.domain {
            Some(domain) => format!("$JS.{domain}.API"),
            None => "$JS.API".to_owned(),
        };
        Ok(Self { client, version, url, prefix, timeout: config.timeout })
    }

    /// How long it may say nothing.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Ask JetStream something, such as `STREAM.INFO.ORDERS`.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        cx: &Context,
        what: &str,
        body: &Value,
    ) -> Result<T> {
        let body = serde_json::to_vec(body)
            .map_err(|e| Error::internal("cannot encode a question").caused_by(e))?;
        let answer = self.request(cx, format!("{}.{what}", self.prefix), body.into(), self.timeout);
        self.understood(what, &answer.await?)
    }

    /// Send something and wait for the answer.
    pub(crate) async fn request(
        &self,
        cx: &Context,
        subject: String,
        body: Bytes,
        limit: Duration,
    ) -> Result<Bytes> {
        let told = |reason: Reason, what: &str| {
            Error::new(reason, what.to_owned()).with("server", &self.url)
        };
        let limited = cx.within(limit);
        let asked = limited.run(async {
            self.client.request(subject.clone(), body).await.map_err(|e| match e.kind() {
                RequestErrorKind::NoResponders => told(
                    Reason::Unavailable,
                    "nobody answers for JetStream there: it is not enabled for this account, the `domain` is another, or the stream has no leader",
                ),
                RequestErrorKind::TimedOut => told(Reason::TimedOut, "the server has not answered in time"),
                _ => told(Reason::Unavailable, "the server cannot be asked").caused_by(e),
            })
        });
        let answer = asked.await.map_err(|e| match e.reason() {
            Reason::TimedOut if cx.check().is_ok() => told(
                Reason::TimedOut,
                "the server has not answered in time: it may not be allowed to this user, or the stream has no leader",
            )
            .with("subject", &subject),
            _ => e,
        })?;
        Ok(answer.payload)
    }

    /// What an answer says, or the error that it is.
    pub(crate) fn understood<T: DeserializeOwned>(&self, what: &str, answer: &[u8]) -> Result<T> {
        let strange = |e: serde_json::Error| {
            Error::new(Reason::Unsupported, "the server's answer is not understood")
                .with("question", what)
                .with("server", &self.url)
                .caused_by(e)
        };
        if answer.len() > MAX_ANSWER {
            return Err(Error::new(Reason::LimitExceeded, "the server's answer is too long")
                .with("question", what));
        }
        let answer: Value = serde_json::from_slice(answer).map_err(strange)?;
        match answer.get("error") {
            Some(refusal) => {
                let refusal = Refusal::deserialize(refusal).map_err(strange)?;
                Err(self.refused(what, &refusal))
            }
            None => T::deserialize(answer).map_err(strange),
        }
    }

    fn refused(&self, what: &str, refusal: &Refusal) -> Error {
        let (reason, text) = match refusal.err_code {
            10059 => (Reason::NotFound, "there is no such stream"),
            10039 | 10076 => (Reason::Unavailable, "JetStream is not enabled there"),
            10008 | 10023 => (Reason::Unavailable, "the cluster is not ready"),
            10002 | 10028 | 10047 => {
                (Reason::NoSpace, "the server or the account has no room for the stream")
            }
            10064 if refusal.description.contains("no impl") => (
                Reason::Unsupported,
                "a stream in memory cannot be captured from a server before NATS 2.15",
            ),
            10064 if refusal.description.contains("in progress") => {
                (Reason::Busy, "somebody else makes a snapshot of this stream: try again later")
            }
            10065 => (Reason::InvalidConfig, "its subjects belong to another stream there"),
            10074 => (Reason::InvalidConfig, "it wants more replicas than there are servers"),
            10130 | 10058 => (Reason::TargetNotEmpty, "a stream of this name is there already"),
            10062 => (Reason::Corrupt, "the server does not take the archive of the stream"),
            _ if refusal.code == 503 => (Reason::Unavailable, "the server cannot do that now"),
            _ => (Reason::Unsupported, "the server refuses that"),
        };
        Error::new(reason, text)
            .with("question", what)
            .with("server", &self.url)
            .caused_by(Said(format!("{} ({})", refusal.description, refusal.err_code)))
    }

    /// All streams of the account that are wanted, by their names.
    pub(crate) async fn streams(
        &self,
        cx: &Context,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, StreamInfo>> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            total: usize,
            #[serde(default)]
            streams: Option<Vec<StreamInfo>>,
        }
        let (mut found, mut offset) = (BTreeMap::new(), 0);
        loop {
            let page: Page = self.ask(cx, "STREAM.LIST", &json!({ "offset": offset })).await?;
            let streams = page.streams.unwrap_or_default();
            let count = streams.len();
            offset += count;
            let wanted = streams.into_iter().filter(|stream| is_wanted(stream.name()));
            found.extend(wanted.map(|stream| (stream.name().to_owned(), stream)));
            if found.len() > MAX_STREAMS {
                let what = format!(
                    "the account has more than {MAX_STREAMS} streams: choose some with `streams`"
                );
                return Err(Error::new(Reason::LimitExceeded, what));
            }
            if count == 0 || offset >= page.total {
                return Ok(found);
            }
        }
    }

    /// One stream.
    pub(crate) async fn stream(&self, cx: &Context, name: &str) -> Result<StreamInfo> {
        self.ask(cx, &format!("STREAM.INFO.{name}"), &json!({})).await
    }

    /// Remove a stream with all that it holds.
    pub(crate) async fn delete(&self, cx: &Context, name: &str) -> Result<()> {
        self.ask(cx, &format!("STREAM.DELETE.{name}"), &json!({})).await.map(|_: Value| ())
    }
}

fn unusable(what: &str, path: &Path) -> Error {
    let what = format!("the file of {what} cannot be used");
    Error::new(Reason::InvalidConfig, what).with("path", path.display())
}

async fn secret_file(cx: &Context, what: &'static str, path: &Path) -> Result<SecretString> {
    let path = path.to_owned();
    cx.blocking(move || {
        let mut text = String::new();
        let read = std::fs::File::open(&path)
            .and_then(|file| file.take(MAX_SECRET).read_to_string(&mut text));
        read.map_err(|e| unusable(what, &path).caused_by(e))?;
        Ok(Secret::new(text))
    })
    .await
}

fn unreachable(e: &async_nats::ConnectError, url: &str) -> Error {
    let (reason, what) = match e.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => (
            Reason::PermissionDenied,
            "the server does not let this user in: check `user`, `token`, `creds` or `nkey`",
        ),
        ConnectErrorKind::Tls => (
            Reason::InvalidConfig,
            "TLS with the server is not possible: check `ca`, `cert` and `key`, and that it speaks TLS there",
        ),
        ConnectErrorKind::ServerParse => (Reason::InvalidConfig, "`url` is not understood"),
        ConnectErrorKind::TimedOut => (Reason::TimedOut, "the server has not answered in time"),
        _ => (Reason::Unavailable, "the server cannot be reached"),
    };
    // What it says may hold the address, but no secret: those are not in it.
    Error::new(reason, what).with("server", url).caused_by(Said(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared() {
        let version = |text| Version::parse(text).unwrap();
        assert!(version("2.9.10") < version("2.10.0"));
        assert_eq!(version("2.15.1-beta.2"), Version(2, 15, 1));
        assert!(version("2.15.0").has_lists() && !version("2.14.6").has_lists());
        assert!(Version::parse("dev").is_none());
    }
}
