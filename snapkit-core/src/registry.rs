//! Where the names of kinds meet the sources that implement them. Registration is explicit: no
//! constructors before `main`, no global state.

pub mod wait;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::artifact::SourceName;
use crate::error::{Error, Reason, Result};
use crate::manifest::SourceRecord;
use crate::source::Source;

/// Makes a source of one kind from its name and settings. No I/O.
pub type BuildSource =
    Arc<dyn Fn(SourceName, serde_json::Value) -> Result<Arc<dyn Source>> + Send + Sync>;

/// Makes a source of one kind from what a snapshot of a stack, whose name this is, says of it.
pub type BuildCaptured = Arc<dyn Fn(&str, &SourceRecord) -> Result<Arc<dyn Source>> + Send + Sync>;

/// The kinds of source that a program knows.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: BTreeMap<String, BuildSource>,
    /// How sources of a kind are made from what a snapshot says, where that is not to be trusted with everything.
    captured: BTreeMap<String, BuildCaptured>,
}

impl Registry {
    /// One that knows nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Teach it a kind. The last registration of a name counts.
    pub fn register(
        &mut self,
        kind: &str,
        build: impl Fn(SourceName, serde_json::Value) -> Result<Arc<dyn Source>> + Send + Sync + 'static,
    ) {
        self.kinds.insert(kind.to_owned(), Arc::new(build));
    }

    /// Teach it how to make sources of a kind from the settings in a snapshot, where these may not say all that settings
    /// may: which program is started, for one. Whoever can write to a repository can write them.
    pub fn register_captured(
        &mut self,
        kind: &str,
        build: impl Fn(&str, &SourceRecord) -> Result<Arc<dyn Source>> + Send + Sync + 'static,
    ) {
        self.captured.insert(kind.to_owned(), Arc::new(build));
    }

    /// Make a source from what a snapshot of a stack says of it.
    pub fn build_captured(&self, stack: &str, record: &SourceRecord) -> Result<Arc<dyn Source>> {
        match self.captured.get(&record.kind) {
            Some(build) => build(stack, record),
            None => self.build(&record.kind, record.name.clone(), record.settings.clone()),
        }
    }

    /// The kinds that it knows, sorted.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.kinds.keys().map(String::as_str)
    }

    /// Make a source.
    pub fn build(
        &self,
        kind: &str,
        name: SourceName,
        settings: serde_json::Value,
    ) -> Result<Arc<dyn Source>> {
        let build = self.kinds.get(kind).ok_or_else(|| {
            let known: Vec<_> = self.kinds().collect();
            Error::new(
                Reason::InvalidConfig,
                format!("unknown kind of source {kind:?}; known are: {}", known.join(", ")),
            )
            .with("source", &name)
        })?;
        build(name, settings)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.kinds()).finish()
    }
}

/// Settings of a source from a document. An unknown key is an error that names the nearest known
/// one.
pub fn settings<T: DeserializeOwned>(source: &SourceName, value: serde_json::Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| {
        let text = explain_unknown_key(&without_value(&e.to_string()));
        Error::new(Reason::InvalidConfig, text).with("source", source)
    })
}

/// Serde's messages quote the value that does not fit; it may be a secret.
fn without_value(message: &str) -> String {
    match (message.find(": string \""), message.rfind("\", expected ")) {
        (Some(start), Some(end)) if start < end => {
            format!("{}: a text{}", &message[..start], &message[end + 1..])
        }
        _ => message.to_owned(),
    }
}

/// Turn serde's "unknown field `x`, expected one of `a`, `b`" into a sentence that names the nearest
/// key; leave other messages alone.
#[must_use]
pub fn explain_unknown_key(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else { return message.to_owned() };
    let mut quoted = rest.split('`');
    let unknown = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
    let near = known.iter().min_by_key(|k| distance(unknown, k));
    match near {
        Some(near) if distance(unknown, near) <= unknown.len().max(3) / 2 => {
            format!("unknown key `{unknown}`; did you mean `{near}`?")
        }
        _ if known.is_empty() => format!("unknown key `{unknown}`"),
        _ => format!("unknown key `{unknown}`; known are: {}", known.join(", ")),
    }
}

/// Levenshtein distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = (corner + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[b.len()]
}

/// What stands in a part of an address, in which `%NN` is a byte. None if it is badly encoded or no UTF-8.
#[must_use]
pub fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(behind.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &behind[2..];
        } else {
            bytes.push(*first);
            rest = behind;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its field names matter")]
    struct Sample {
        exclude: Option<String>,
        paths: Option<String>,
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let name = SourceName::new("x").unwrap();
        let e = settings::<Sample>(&name, serde_json::json!({"exlude": "a"})).unwrap_err();
        assert_eq!(e.to_string(), "unknown key `exlude`; did you mean `exclude`? (source=x)");
        let e = settings::<Sample>(&name, serde_json::json!({"zzzzzz": 1})).unwrap_err();
        assert!(e.message().contains("known are: exclude, paths"), "{e}");
    }

    #[test]
    fn values_are_not_repeated() {
        #[derive(serde::Deserialize, Debug)]
        struct Number {
            #[expect(dead_code, reason = "only its type matters")]
            port: u16,
        }
        let name = SourceName::new("x").unwrap();
        let e = settings::<Number>(&name, serde_json::json!({"port": "hunter2\", expected"}))
            .unwrap_err();
        assert_eq!(e.message(), "invalid type: a text, expected u16");
    }

    #[test]
    fn unknown_kinds_list_the_known() {
        let e =
            Registry::new().build("redsi", SourceName::new("x").unwrap(), serde_json::Value::Null);
        assert_eq!(e.unwrap_err().reason(), Reason::InvalidConfig);
    }
}
