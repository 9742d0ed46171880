//! Settings of a source, in the stack file and in a snapshot.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use snapkit_core::registry::wait;
use snapkit_core::secret::{self, SecretString};
use snapkit_core::{Error, Reason, Result};

/// How long a server may take to answer unless configured: 2 min. It writes what it has in memory to the disk meanwhile.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Settings of a source of kind `prometheus`.
#[non_exhaustive]
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrometheusConfig {
    /// Where the server is, with its prefix if it has one: `http://HOST:PORT/PREFIX`.
    pub url: String,
    /// Its data directory (`--storage.tsdb.path`), on this machine and writable for us.
    pub data_dir: PathBuf,
    /// A user, for servers that ask for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's password. It is in no snapshot, and is told to no other address than that of the stack file.
    #[serde(default, skip_serializing, deserialize_with = "secret::optional")]
    pub password: Option<SecretString>,
    /// A bearer token in the place of user and password. Likewise.
    #[serde(default, skip_serializing, deserialize_with = "secret::optional")]
    pub token: Option<SecretString>,
    /// Queries whose answers at the moment of the capture are facts of that name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub queries: BTreeMap<String, String>,
    /// How long the server may take to answer: 2 min unless given, at most a day.
    #[serde(default = "default_timeout", with = "wait")]
    pub timeout: Duration,
}

fn default_timeout() -> Duration {
    TIMEOUT
}

impl PrometheusConfig {
    /// A server with everything else as usual.
    pub fn new(url: impl Into<String>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            url: url.into(),
            data_dir: data_dir.into(),
            user: None,
            password: None,
            token: None,
            queries: BTreeMap::new(),
            timeout: TIMEOUT,
        }
    }

    /// The same with an absolute directory and a plain address, or `invalid-config`.
    pub(crate) fn checked(mut self) -> Result<Self> {
        let bad = |what: &str| Err(Error::new(Reason::InvalidConfig, what.to_owned()));
        let rest = self.url.strip_prefix("http://").or_else(|| self.url.strip_prefix("https://"));
        let Some(rest) = rest else { return bad("`url`: write http://HOST:PORT") };
        // What is refused may hold a password: it is not repeated.
        if rest.split('/').next().is_some_and(|host| host.is_empty() || host.contains('@')) {
            return bad(
                "`url`: it names no host, or holds a password: that is `user` and `password`",
            );
        }
        if rest.contains(['?', '#']) {
            return bad("`url`: nothing may stand behind the path");
        }
        if self.url.starts_with("https://") && cfg!(not(feature = "tls")) {
            return bad("this program was built without TLS: its feature `tls`");
        }
        self.url.truncate(self.url.trim_end_matches('/').len());
        if self.password.is_some() != self.user.is_some() {
            return bad("`user` and `password` belong together");
        }
        if self.password.is_some() && self.token.is_some() {
            return bad("only one of `password` and `token` can be used");
        }
        self.data_dir = std::path::absolute(&self.data_dir).map_err(|e| {
            Error::new(Reason::InvalidConfig, "`data_dir`: not a usable path").caused_by(e)
        })?;
        Ok(self)
    }
}

/// Add to settings that come from a snapshot what is in none, from those that were declared: a password or a token, if the
/// address is the one that was declared, and none otherwise.
pub fn add_secrets(settings: &mut Value, declared: &Value) {
    let plain = |url: Option<&Value>| Some(url?.as_str()?.trim_end_matches('/').to_owned());
    if plain(settings.get("url")) != plain(declared.get("url")) {
        return;
    }
    let Some(settings) = settings.as_object_mut() else { return };
    for name in ["user", "password", "token"] {
        match declared.get(name) {
            Some(value) => drop(settings.insert(name.to_owned(), value.clone())),
            None => drop(settings.remove(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let told = |url: &str| match PrometheusConfig::new(url, "/data").checked() {
            Ok(config) => config.url,
            Err(e) => e.message().to_owned(),
        };
        let all = [
            "http://127.0.0.1:9090",
            "http://metrics/prometheus/",
            "http://me:x@metrics",
            "http://",
            "metrics:9090",
            "http://metrics?x=1",
        ]
        .map(|url| format!("{url} => {}", told(url)));
        insta::assert_snapshot!(all.join("\n"), @"
        http://127.0.0.1:9090 => http://127.0.0.1:9090
        http://metrics/prometheus/ => http://metrics/prometheus
        http://me:x@metrics => `url`: it names no host, or holds a password: that is `user` and `password`
        http:// => `url`: it names no host, or holds a password: that is `user` and `password`
        metrics:9090 => `url`: write http://HOST:PORT
        http://metrics?x=1 => `url`: nothing may stand behind the path
        ");
    }

    #[test]
    fn secrets_are_for_the_address_that_was_declared() {
        let declared =
            serde_json::json!({ "url": "http://metrics/", "data_dir": "/x", "token": "hush" });
        for (url, expected) in [("http://metrics", true), ("http://thief", false)] {
            let mut settings = serde_json::json!({ "url": url, "data_dir": "/data" });
            add_secrets(&mut settings, &declared);
            let config: PrometheusConfig = serde_json::from_value(settings).unwrap();
            assert_eq!(config.token.is_some(), expected);
            let written = serde_json::to_string(&config).unwrap() + &format!("{config:?}");
            assert!(!written.contains("hush"), "{written}");
        }
    }
}
