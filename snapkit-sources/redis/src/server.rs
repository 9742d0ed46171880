//! What a server says of itself.

use std::collections::BTreeMap;

use snapkit_core::facts::Facts;
use snapkit_core::{Error, Reason, Result};

use crate::connection::{Connection, Reply};

/// What `INFO` says, as far as it may be asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct About {
    fields: BTreeMap<String, String>,
    /// What the server is, to be kept beside the snapshot: what does not change while it runs.
    pub(crate) text: Vec<u8>,
}

/// Fields of the section `Server` that differ each time.
const PASSING: [&str; 6] = [
    "process_id",
    "run_id",
    "uptime_in_seconds",
    "uptime_in_days",
    "lru_clock",
    "server_time_usec",
];

impl About {
    /// Ask. A user who may not gets nothing, which is no error.
    pub(crate) fn ask(connection: &mut Connection) -> Result<Self> {
        let text = match connection.ask(&[b"INFO"])? {
            Reply::Text(text) => text,
            Reply::Refused(why) if is_forbidden(&why) => return Ok(Self::default()),
            Reply::Refused(why) => return Err(connection.refused(b"INFO", &why)),
            _ => return Err(connection.strange()),
        };
        let lines = String::from_utf8_lossy(&text).into_owned();
        let server = lines.lines().map(str::trim_end).skip_while(|line| *line != "# Server");
        let server = server.skip(1).take_while(|line| line.contains(':'));
        let stays =
            |line: &&str| !PASSING.iter().any(|field| line.split(':').next() == Some(field));
        let text = self::lines(server.filter(stays).map(|line| line.as_bytes().to_vec()));
        let fields = lines.lines().filter_map(|line| line.trim_end().split_once(':'));
        let fields = fields.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Ok(Self { fields, text })
    }

    pub(crate) fn get(&self, field: &str) -> Option<&str> {
        self.fields.get(field).map(String::as_str)
    }

    fn number(&self, field: &str) -> Option<i64> {
        self.get(field)?.parse().ok()
    }

    /// What it is, such as `redis 7.0.15` or `valkey 8.1.0`.
    pub(crate) fn version(&self) -> Option<String> {
        match (self.get("valkey_version"), self.get("redis_version")) {
            (Some(version), _) => Some(format!("valkey {version}")),
            (None, Some(version)) => Some(format!("redis {version}")),
            (None, None) => None,
        }
    }

    /// The newest version of the format that it reads, where that is known (`src/redisver.h` of redis/librdb).
    pub(crate) fn format(&self) -> Option<u32> {
        let numbers = |text: &str| -> Option<(u32, u32)> {
            let mut parts = text.split('.').map(|part| part.parse().ok());
            Some((parts.next()??, parts.next()??))
        };
        if let Some(version) = self.get("valkey_version") {
            return numbers(version).map(|_| 11);
        }
        Some(match numbers(self.get("redis_version")?)? {
            (..5, _) => 8,
            (5 | 6, _) => 9,
            (7, 0 | 1) => 10,
            (7, 2 | 3) => 11,
            _ => 12,
        })
    }

    /// Whether there is no key in any database.
    pub(crate) fn is_empty(&self) -> bool {
        let is_database = |field: &str| {
            field
                .strip_prefix("db")
                .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        !self.fields.keys().any(|field| is_database(field))
    }

    /// An error if the server is one of which nothing whole can be had.
    pub(crate) fn check(&self, connection: &Connection) -> Result<()> {
        let error =
            |reason, what: &str| Err(Error::new(reason, what).with("server", connection.address()));
        if self.get("redis_mode") == Some("sentinel") {
            return error(
                Reason::InvalidConfig,
                "this is a sentinel, which holds no data: name the server that it watches",
            );
        }
        if self.get("loading").is_some_and(|loading| loading != "0") {
            return error(
                Reason::Unavailable,
                "the server is still loading its data: try again later",
            );
        }
        Ok(())
    }

    /// How the server is doing.
    pub(crate) fn observe(&self, facts: &mut Facts) {
        let Some(version) = self.version() else {
            facts.unknown("server.version", "this user may not use INFO");
            return;
        };
        facts.observe("server.version", version);
        for (name, field) in [
            ("server.memory", "used_memory"),
            ("server.memory.most", "maxmemory"),
            ("server.evicted_keys", "evicted_keys"),
            ("server.aof", "aof_enabled"),
            ("server.aof.delayed_fsync", "aof_delayed_fsync"),
            ("server.unsaved_changes", "rdb_changes_since_last_save"),
        ] {
            // Servers without an append-only file do not say how it is.
            if let Some(number) = self.number(field) {
                facts.observe(name, number);
            }
        }
        for (name, field) in [
            ("server.role", "role"),
            ("server.aof.rewrite", "aof_last_bgrewrite_status"),
            ("server.aof.write", "aof_last_write_status"),
            ("server.last_save", "rdb_last_bgsave_status"),
        ] {
            if let Some(text) = self.get(field) {
                facts.observe(name, text);
            }
        }
    }
}

/// What belongs to a server and is in no snapshot of it.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    /// `ACL LIST`: one line for each user. It holds digests of passwords.
    pub(crate) acl: Option<Vec<u8>>,
    /// `CONFIG GET *`: a line for each parameter, but for those that are secrets.
    pub(crate) config: Option<Vec<u8>>,
    /// `MODULE LIST`, one name and version a line.
    pub(crate) modules: Option<Vec<u8>>,
    /// What could not be asked, because this user may not.
    pub(crate) denied: Vec<&'static str>,
}

/// Parameters that are secrets: they are kept in no snapshot.
const SECRETS: [&str; 6] = [
    "requirepass",
    "masterauth",
    "primaryauth",
    "tls-key-file-pass",
    "tls-client-key-file-pass",
    "masteruser",
];

impl Beside {
    pub(crate) fn ask(connection: &mut Connection) -> Result<Self> {
        let mut beside = Self::default();
        if let Some(users) = beside.list(connection, &[b"ACL", b"LIST"], "acl|list")? {
            beside.acl = Some(lines(users.into_iter().map(text)));
        }
        if let Some(all) = beside.list(connection, &[b"CONFIG", b"GET", b"*"], "config|get")? {
            let all: Vec<_> = all.into_iter().map(text).collect();
            let mut parameters: Vec<_> = all
                .chunks_exact(2)
                .filter(|pair| !SECRETS.iter().any(|secret| pair[0] == secret.as_bytes()))
                .map(|pair| [&pair[0], &b" "[..], &pair[1]].concat())
                .collect();
            parameters.sort();
            beside.config = Some(lines(parameters.into_iter()));
        }
        if let Some(modules) = beside.list(connection, &[b"MODULE", b"LIST"], "module|list")? {
            beside.modules = Some(lines(modules.into_iter().map(module)));
        }
        Ok(beside)
    }

    fn list(
        &mut self,
        connection: &mut Connection,
        words: &[&[u8]],
        right: &'static str,
    ) -> Result<Option<Vec<Reply>>> {
        match connection.ask(words)? {
            Reply::Many(list) => Ok(Some(list)),
            Reply::Refused(why) if is_forbidden(&why) => {
                self.denied.push(right);
                Ok(None)
            }
            // Before Redis 6 there are no access lists, and managed servers hide commands.
            Reply::Refused(why) if why.contains("unknown") => Ok(None),
            Reply::Refused(why) => Err(connection.refused(words[0], &why)),
            _ => Err(connection.strange()),
        }
    }

    /// Whether modules are loaded, as far as that is known.
    pub(crate) fn has_modules(&self) -> bool {
        self.modules.as_ref().is_some_and(|modules| !modules.is_empty())
    }
}

/// Whether a refusal is about who asks, and not about what.
pub(crate) fn is_forbidden(why: &str) -> bool {
    why.starts_with("NOPERM")
}

fn text(reply: Reply) -> Vec<u8> {
    match reply {
        Reply::Text(text) => text,
        Reply::Number(number) => number.to_string().into_bytes(),
        _ => Vec::new(),
    }
}

/// `name NAME ver NUMBER …`, of which the first two pairs are on a line.
fn module(reply: Reply) -> Vec<u8> {
    let Reply::Many(fields) = reply else { return Vec::new() };
    let fields: Vec<_> = fields.into_iter().map(text).collect();
    let value = |name: &[u8]| {
        fields.chunks(2).find(|pair| pair[0] == name).and_then(|pair| pair.get(1)).cloned()
    };
    [value(b"name").unwrap_or_default(), value(b"ver").unwrap_or_default()].join(&b' ')
}

fn lines(lines: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut text = Vec::new();
    for line in lines {
        text.extend_from_slice(&line);
        text.push(b'\n');
    }
    text
}
