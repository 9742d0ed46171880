//! Settings of a source, in the stack file and in a snapshot.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use snapkit_core::registry::{percent_decode, wait};
use snapkit_core::secret::{self, Secret, SecretString};
use snapkit_core::{Error, Reason, Result};

use crate::connection::{Address, Login, Trust};

/// The port of a server unless the address names one.
const PORT: u16 = 6379;

/// How long a server may say nothing unless configured: 60 s.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Settings of a source of kind `redis`.
#[non_exhaustive]
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// Where the server is: `redis://HOST:PORT`, `rediss://HOST:PORT` with TLS, or `unix:///PATH` for a socket in the file system. A user and a
    /// password in it are taken out: they are in no snapshot.
    pub url: String,
    /// A user of the server's access list; the default user unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The password. It is in no snapshot: a restore takes it from the stack file, too.
    #[serde(default, skip_serializing, deserialize_with = "secret::optional")]
    pub password: Option<SecretString>,
    /// The server that the password is for, where settings come from a snapshot: see [`add_secrets`].
    #[serde(default, skip_serializing)]
    pub(crate) password_of: Option<String>,
    /// A file of certificates (PEM) of the authorities that the server's may be signed by; those that the system trusts
    /// unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// A file with our own certificate (PEM), for servers that ask for one, which they do unless told otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// A file with the key of that certificate (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// How long the server may say nothing, each time: 60 s unless given, at most a day.
    #[serde(default = "default_timeout", with = "wait")]
    pub timeout: Duration,
    /// The most bytes of scratch space that a capture or a restore takes; unless given, all that is free. The
    /// content waits there, encrypted, so that the server never waits for the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<u64>,
    /// Whether to keep the server's snapshot as one piece instead of key by key. What this program cannot read is
    /// kept like this without being asked, where it can be known before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub raw: bool,
}

fn default_timeout() -> Duration {
    TIMEOUT
}

impl RedisConfig {
    /// A server with everything else as usual.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: None,
            password: None,
            password_of: None,
            ca: None,
            cert: None,
            key: None,
            timeout: TIMEOUT,
            scratch: None,
            raw: false,
        }
    }

    /// The same with user and password apart from the address, or `invalid-config`.
    pub(crate) fn plain(mut self) -> Result<Self> {
        for file in [&mut self.ca, &mut self.cert, &mut self.key].into_iter().flatten() {
            *file = std::path::absolute(&*file).map_err(|e| {
                let what = "not a usable path";
                Error::new(Reason::InvalidConfig, what).with("path", file.display()).caused_by(e)
            })?;
        }
        // What is refused may hold a password: it is not repeated.
        let bad = |what: &str| Error::new(Reason::InvalidConfig, format!("`url`: {what}"));
        let (scheme, rest) = self
            .url
            .split_once("://")
            .ok_or_else(|| bad("write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH"))?;
        match scheme {
            "redis" | "rediss" => {}
            "unix" if rest.starts_with('/') && rest.len() > 1 => return Ok(self),
            "unix" => return Err(bad("write unix:///PATH, with the whole path of the socket")),
            _ => return Err(bad("write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH")),
        }
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, rest),
        };
        let (place, database) = place.split_once('/').unwrap_or((place, ""));
        if !matches!(database, "" | "0") {
            return Err(bad(
                "all databases are captured: write it without what stands behind the port",
            ));
        }
        let (host, port) = split_port(place).ok_or_else(|| bad("the port is no number"))?;
        if host.is_empty() {
            return Err(bad("it names no host"));
        }
        if self.cert.is_some() != self.key.is_some() {
            let what = "`cert` and `key` belong together";
            return Err(Error::new(Reason::InvalidConfig, what));
        }
        let url = format!("{scheme}://{host}:{}", port.unwrap_or(PORT));
        if let Some(login) = login {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            let decode = |text: &str| {
                percent_decode(text).ok_or_else(|| bad("the password is badly encoded: write %NN"))
            };
            let (user, password) = (decode(user)?, decode(password)?);
            if !password.is_empty() {
                if self.password.is_some() {
                    return Err(bad(
                        "there is a password in it, and one beside it: which of them?",
                    ));
                }
                self.password = Some(Secret::new(password));
            }
            if !user.is_empty() {
                if self.user.as_ref().is_some_and(|other| *other != user) {
                    return Err(bad(
                        "there is a user in it, and another beside it: which of them?",
                    ));
                }
                self.user = Some(user);
            }
        }
        self.url = url;
        Ok(self)
    }

    /// Where the server is. The settings are plain.
    pub(crate) fn address(&self) -> Address {
        match self.url.split_once("://") {
            Some(("unix", path)) => Address::Unix(PathBuf::from(path)),
            Some(("rediss", place)) => {
                let identity = self.cert.clone().zip(self.key.clone());
                Address::Tls(place.to_owned(), Trust { ca: self.ca.clone(), identity })
            }
            Some((_, place)) => Address::Tcp(place.to_owned()),
            None => Address::Tcp(self.url.clone()),
        }
    }

    /// Who asks.
    pub(crate) fn login(&self) -> Option<Login> {
        let password = self.password.clone()?;
        Some(Login { user: self.user.clone(), password })
    }

    /// An error if the password is for another server. Where a snapshot says that one is, is what somebody could have
    /// written there who wants to be told the password.
    pub(crate) fn check_password(&self) -> Result<()> {
        match &self.password_of {
            Some(of) if *of != self.url => {
                let what = "the password in the stack file is for another server than the snapshot is of: name one with --target URL or --map SOURCE=URL";
                let e = Error::new(Reason::InvalidConfig, what).with("snapshot_of", &self.url);
                Err(e.with("stack_file", of))
            }
            _ => Ok(()),
        }
    }

    /// Another server, asked by the same user. Whoever names it may be told the password there.
    pub(crate) fn at(&self, url: &str) -> Result<Self> {
        let there = Self { url: url.to_owned(), password_of: None, ..self.clone() };
        // Whoever names another login there means it.
        let there = match url.contains('@') {
            true => Self { user: None, password: None, ..there },
            false => there,
        };
        there.plain()
    }
}

/// Add to settings that come from a snapshot what is in none, from those that were declared: the password, whose it is,
/// and which certificates count here. It is sent to the server that was declared and to those that somebody names, and to
/// no other that a snapshot may speak of.
pub fn add_secrets(settings: &mut serde_json::Value, declared: &serde_json::Value) {
    let plain = |value: &serde_json::Value| {
        serde_json::from_value::<RedisConfig>(value.clone()).ok()?.plain().ok()
    };
    let Some((own, declared)) = plain(settings).zip(plain(declared)) else { return };
    let Some(login) = declared.login().filter(|_| own.password.is_none()) else { return };
    let Some(settings) = settings.as_object_mut() else { return };
    let mut set = |name: &str, value: Option<String>| match value {
        Some(value) => drop(settings.insert(name.to_owned(), value.into())),
        None => drop(settings.remove(name)),
    };
    set("password", Some(login.password.expose().clone()));
    set("password_of", Some(declared.url));
    set("user", login.user);
    for (name, path) in [("ca", declared.ca), ("cert", declared.cert), ("key", declared.key)] {
        set(name, path.map(|path| path.display().to_string()));
    }
}

/// A host and a port, if one is given; none if it is no number. An IPv6 address stands in brackets.
fn split_port(place: &str) -> Option<(&str, Option<u16>)> {
    match place.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            Some((host, Some(port.parse().ok()?)))
        }
        _ => Some((place, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let plain = |url: &str| RedisConfig::new(url).plain();
        let told = |url: &str| match plain(url) {
            Ok(config) => format!("{} {:?}", config.url, config.user),
            Err(e) => e.message().to_owned(),
        };
        let urls = [
            "redis://127.0.0.1:6379",
            "redis://cache",
            "redis://cache/0",
            "redis://cache/3",
            "redis://[::1]:7000",
            "redis://[::1]",
            "redis://me:p%40ss@cache:1",
            "redis://:p%4@cache",
            "redis://cache:port",
            "redis://",
            "unix:///run/redis.sock",
            "unix://run/redis.sock",
            "rediss://cache",
            "cache:6379",
            "http://cache",
        ];
        let all: Vec<_> = urls.iter().map(|url| format!("{url} => {}", told(url))).collect();
        insta::assert_snapshot!(all.join("\n"), @r#"
        redis://127.0.0.1:6379 => redis://127.0.0.1:6379 None
        redis://cache => redis://cache:6379 None
        redis://cache/0 => redis://cache:6379 None
        redis://cache/3 => `url`: all databases are captured: write it without what stands behind the port
        redis://[::1]:7000 => redis://[::1]:7000 None
        redis://[::1] => redis://[::1]:6379 None
        redis://me:p%40ss@cache:1 => redis://cache:1 Some("me")
        redis://:p%4@cache => `url`: the password is badly encoded: write %NN
        redis://cache:port => `url`: the port is no number
        redis:// => `url`: it names no host
        unix:///run/redis.sock => unix:///run/redis.sock None
        unix://run/redis.sock => `url`: write unix:///PATH, with the whole path of the socket
        rediss://cache => rediss://cache:6379 None
        cache:6379 => `url`: write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH
        http://cache => `url`: write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH
        "#);
        let config = plain("redis://me:p%40ss@cache:1").unwrap();
        assert_eq!(config.password.as_ref().unwrap().expose(), "p@ss");
        let written = serde_json::to_string(&config).unwrap() + &format!("{config:?}");
        assert!(!written.contains("p@ss") && !written.contains("p%40ss"), "{written}");
        let elsewhere = config.at("redis://other").unwrap();
        assert_eq!(elsewhere.password.unwrap().expose(), "p@ss");
        assert!(config.at("redis://you:x@other").unwrap().user.unwrap() == "you");
    }

    /// Settings get the password that was declared, unless they have one: the same, when they are the declared ones.
    #[test]
    fn passwords_are_added() {
        let with = |settings: serde_json::Value, declared: serde_json::Value| {
            let mut settings = settings;
            add_secrets(&mut settings, &declared);
            let config: RedisConfig = serde_json::from_value(settings).unwrap();
            let config = config.plain().unwrap();
            config.check_password().unwrap();
            config.password.unwrap().expose().to_owned()
        };
        let stored = serde_json::json!({ "url": "redis://cache:6379" });
        let in_url = serde_json::json!({ "url": "redis://:in-url@cache" });
        let beside = serde_json::json!({ "url": "redis://cache", "password": "beside" });
        assert_eq!(with(stored.clone(), in_url.clone()), "in-url");
        assert_eq!(with(stored, beside.clone()), "beside");
        assert_eq!(with(in_url.clone(), in_url.clone()), "in-url");
        assert_eq!(with(in_url, beside.clone()), "in-url");
        // A snapshot may speak of a server that wants to be told.
        for url in ["redis://thief", "rediss://cache", "redis://cache:1", "unix:///cache"] {
            let mut settings = serde_json::json!({ "url": url, "ca": "/theirs" });
            add_secrets(&mut settings, &beside);
            let config: RedisConfig = serde_json::from_value(settings).unwrap();
            let config = config.plain().unwrap();
            assert_eq!(config.check_password().unwrap_err().reason(), Reason::InvalidConfig);
            assert_eq!(config.ca, None);
            let named = config.at("redis://named").unwrap();
            named.check_password().unwrap();
            assert_eq!(named.login().unwrap().password.expose(), "beside");
        }
    }
}
