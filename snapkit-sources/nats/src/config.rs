//! Settings of a source, in the stack file and in a snapshot.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::ServerAddr;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use snapkit_core::registry::{percent_decode, wait};
use snapkit_core::secret::{self, Secret, SecretString};
use snapkit_core::{Error, Reason, Result};

/// How long a server may say nothing unless configured: 60 s.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Settings of a source of kind `nats`.
#[non_exhaustive]
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatsConfig {
    /// Where the server is: `nats://HOST:PORT`, or `tls://HOST:PORT`. A user and a password in it are taken out: they are in
    /// no snapshot.
    pub url: String,
    /// A user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's password. It is in no snapshot: a restore takes it from the stack file, too.
    #[serde(default, skip_serializing, deserialize_with = "secret::optional")]
    pub password: Option<SecretString>,
    /// A token in the place of user and password. It is in no snapshot either.
    #[serde(default, skip_serializing, deserialize_with = "secret::optional")]
    pub token: Option<SecretString>,
    /// The server that password and token are for, where settings come from a snapshot: see [`add_secrets`].
    #[serde(default, skip_serializing)]
    pub(crate) secrets_of: Option<String>,
    /// A file of credentials, as `nsc` writes it: a JWT and the seed of its NKey.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creds: Option<PathBuf>,
    /// A file with the seed of an NKey.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nkey: Option<PathBuf>,
    /// A file of certificates (PEM) of the authorities that the server's may be signed by, besides those that the system
    /// trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// A file with our own certificate (PEM), for servers that ask for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// A file with the key of that certificate (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The JetStream domain, where the server is a leaf of another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The names of the streams, in which `*` stands for anything; all unless given. A bucket NAME of keys is the stream
    /// `KV_NAME`, one of objects is `OBJ_NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<String>,
    /// How long the server may say nothing, each time: 60 s unless given, at most a day.
    #[serde(default = "default_timeout", with = "wait")]
    pub timeout: Duration,
    /// The most bytes of scratch space that a capture or a restore takes; unless given, all that is free. The content waits
    /// there, encrypted, so that the server never waits for the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<u64>,
}

fn default_timeout() -> Duration {
    TIMEOUT
}

impl NatsConfig {
    /// A server with everything else as usual.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: None,
            password: None,
            token: None,
            secrets_of: None,
            creds: None,
            nkey: None,
            ca: None,
            cert: None,
            key: None,
            domain: None,
            streams: Vec::new(),
            timeout: TIMEOUT,
            scratch: None,
        }
    }

    /// The same with user and password apart from the address, or `invalid-config`.
    pub(crate) fn plain(mut self) -> Result<Self> {
        let files = [&mut self.creds, &mut self.nkey, &mut self.ca, &mut self.cert, &mut self.key];
        for file in files.into_iter().flatten() {
            *file = std::path::absolute(&*file).map_err(|e| {
                let what = "not a usable path";
                Error::new(Reason::InvalidConfig, what).with("path", file.display()).caused_by(e)
            })?;
        }
        // What is refused may hold a password: it is not repeated.
        let bad = |what: &str| Error::new(Reason::InvalidConfig, what.to_owned());
        let wrong = || bad("`url`: write nats://HOST:PORT or tls://HOST:PORT");
        if !self.url.starts_with("nats://") && !self.url.starts_with("tls://") {
            return Err(wrong());
        }
        let address: ServerAddr = self.url.parse().map_err(|_| wrong())?;
        let url = address.clone().into_inner();
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(bad("`url`: nothing may stand behind the port"));
        }
        let decoded = |text: &str| {
            percent_decode(text)
                .ok_or_else(|| bad("`url`: user or password is badly encoded: write %NN"))
        };
        if let Some(user) = address.username().map(decoded).transpose()? {
            match address.password().map(decoded).transpose()? {
                Some(password) => {
                    (self.user, self.password) = (Some(user), Some(Secret::new(password)));
                }
                // As other programs take it.
                None => self.token = Some(Secret::new(user)),
            }
        }
        let host = match address.host() {
            host if host.contains(':') && !host.starts_with('[') => format!("[{host}]"),
            host => host.to_owned(),
        };
        if host.is_empty() {
            return Err(bad("`url`: it names no host"));
        }
        self.url = format!("{}://{host}:{}", address.scheme(), address.port());
        if self.cert.is_some() != self.key.is_some() {
            return Err(bad("`cert` and `key` belong together"));
        }
        if self.password.is_some() != self.user.is_some() {
            return Err(bad("`user` and `password` belong together"));
        }
        let ways =
            [self.user.is_some(), self.token.is_some(), self.creds.is_some(), self.nkey.is_some()];
        if ways.iter().filter(|is_given| **is_given).count() > 1 {
            return Err(bad("only one of `user`, `token`, `creds` and `nkey` can be used"));
        }
        if self.domain.as_ref().is_some_and(|domain| !is_token(domain)) {
            return Err(bad(
                "`domain`: it is the name of a JetStream domain, without dots and spaces",
            ));
        }
        Ok(self)
    }

    /// Whether a stream is one of those that are asked for.
    pub(crate) fn has(&self, stream: &str) -> bool {
        self.streams.is_empty() || self.streams.iter().any(|pattern| fits(pattern, stream))
    }

    /// An error if the secrets are for another server. Where a snapshot says that one is, is what somebody could have
    /// written there who wants to be told them.
    pub(crate) fn check_secrets(&self) -> Result<()> {
        match &self.secrets_of {
            Some(of) if *of != self.url => {
                let what = "the password or token in the stack file is for another server than the snapshot is of: name one with --target URL or --map SOURCE=URL";
                let e = Error::new(Reason::InvalidConfig, what).with("snapshot_of", &self.url);
                Err(e.with("stack_file", of))
            }
            _ => Ok(()),
        }
    }

    /// Another server, asked by the same user. Whoever names it may be told the secrets there.
    pub(crate) fn at(&self, url: &str) -> Result<Self> {
        let there = Self { url: url.to_owned(), secrets_of: None, ..self.clone() };
        // Whoever names another login there means it.
        let there = match url.contains('@') {
            true => {
                Self { user: None, password: None, token: None, creds: None, nkey: None, ..there }
            }
            false => there,
        };
        there.plain()
    }
}

/// Add to settings that come from a snapshot what is in none, from those that were declared: the password or the token, whose
/// it is, who asks, and which certificates count here. They are sent to the server that was declared and to those that
/// somebody names, and to no other that a snapshot may speak of.
pub fn add_secrets(settings: &mut Value, declared: &Value) {
    let plain =
        |value: &Value| serde_json::from_value::<NatsConfig>(value.clone()).ok()?.plain().ok();
    let Some((own, declared)) = plain(settings).zip(plain(declared)) else { return };
    let has_secrets = |config: &NatsConfig| config.password.is_some() || config.token.is_some();
    if !has_secrets(&declared) || has_secrets(&own) {
        return;
    }
    let Some(settings) = settings.as_object_mut() else { return };
    let secret = |secret: Option<SecretString>| secret.map(|secret| secret.expose().clone());
    let path = |path: Option<PathBuf>| path.map(|path| path.display().to_string());
    for (name, value) in [
        ("user", declared.user),
        ("password", secret(declared.password)),
        ("token", secret(declared.token)),
        ("secrets_of", Some(declared.url)),
        ("creds", path(declared.creds)),
        ("nkey", path(declared.nkey)),
        ("ca", path(declared.ca)),
        ("cert", path(declared.cert)),
        ("key", path(declared.key)),
    ] {
        match value {
            Some(value) => drop(settings.insert(name.to_owned(), value.into())),
            None => drop(settings.remove(name)),
        }
    }
}

/// Whether a name can be a part of a subject.
pub(crate) fn is_token(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(|c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c))
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, behind)) => name.strip_prefix(before).is_some_and(|rest| {
            let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            ends.into_iter().any(|at| fits(behind, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let told = |config: NatsConfig| match config.plain() {
            Ok(config) => format!("{} {:?} {}", config.url, config.user, config.token.is_some()),
            Err(e) => e.message().to_owned(),
        };
        let urls = [
            "nats://127.0.0.1:4222",
            "nats://queue",
            "tls://queue:4443/",
            "nats://[::1]:7000",
            "nats://me:p%40ss@queue:1",
            "nats://a-token@queue",
            "nats://queue:port",
            "nats://queue/stream",
            "nats://",
            "queue:4222",
            "http://queue",
        ];
        let mut all: Vec<_> =
            urls.iter().map(|url| format!("{url} => {}", told(NatsConfig::new(*url)))).collect();
        let with = |change: fn(&mut NatsConfig)| {
            let mut config = NatsConfig::new("nats://queue");
            change(&mut config);
            told(config)
        };
        all.push(with(|config| config.cert = Some("cert.pem".into())));
        all.push(with(|config| config.user = Some("me".to_owned())));
        all.push(with(|config| {
            config.token = Some(Secret::new("t".to_owned()));
            config.creds = Some("me.creds".into());
        }));
        all.push(with(|config| config.domain = Some("a.b".to_owned())));
        insta::assert_snapshot!(all.join("\n"), @r#"
        nats://127.0.0.1:4222 => nats://127.0.0.1:4222 None false
        nats://queue => nats://queue:4222 None false
        tls://queue:4443/ => tls://queue:4443 None false
        nats://[::1]:7000 => nats://[::1]:7000 None false
        nats://me:p%40ss@queue:1 => nats://queue:1 Some("me") false
        nats://a-token@queue => nats://queue:4222 None true
        nats://queue:port => `url`: write nats://HOST:PORT or tls://HOST:PORT
        nats://queue/stream => `url`: nothing may stand behind the port
        nats:// => `url`: it names no host
        queue:4222 => `url`: write nats://HOST:PORT or tls://HOST:PORT
        http://queue => `url`: write nats://HOST:PORT or tls://HOST:PORT
        `cert` and `key` belong together
        `user` and `password` belong together
        only one of `user`, `token`, `creds` and `nkey` can be used
        `domain`: it is the name of a JetStream domain, without dots and spaces
        "#);
        let config = NatsConfig::new("nats://me:p%40ss@queue:1").plain().unwrap();
        assert_eq!(config.password.as_ref().unwrap().expose(), "p@ss");
        let written = serde_json::to_string(&config).unwrap() + &format!("{config:?}");
        assert!(!written.contains("p@ss") && !written.contains("p%40ss"), "{written}");
    }

    /// Secrets go to the server that was declared, and to those that somebody names.
    #[test]
    fn secrets_are_added() {
        let declared = serde_json::json!({ "url": "nats://queue", "token": "hush" });
        let with = |url: &str| {
            let mut settings = serde_json::json!({ "url": url });
            add_secrets(&mut settings, &declared);
            serde_json::from_value::<NatsConfig>(settings).unwrap().plain().unwrap()
        };
        let own = with("nats://queue:4222");
        own.check_secrets().unwrap();
        assert_eq!(own.token.unwrap().expose(), "hush");
        let thief = with("nats://thief");
        assert_eq!(thief.check_secrets().unwrap_err().reason(), Reason::InvalidConfig);
        thief.at("nats://named").unwrap().check_secrets().unwrap();
        assert!(thief.at("nats://you:x@named").unwrap().token.is_none());
    }

    #[test]
    fn names_fit_patterns() {
        for (pattern, name, expected) in [
            ("ORDERS", "ORDERS", true),
            ("ORDERS", "ORDERS2", false),
            ("KV_*", "KV_users", true),
            ("KV_*", "OBJ_users", false),
            ("*_log", "a_log", true),
            ("*a*b", "xaxb", true),
            ("*", "", true),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
