//! What a collection is besides its points: settings, shards, payload indexes and aliases. None of them is in the snapshot
//! of a shard, and aliases are in no snapshot of a collection either.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use snapkit_core::artifact::ArtifactName;
use snapkit_core::{Error, Reason, Result};

/// How the artifacts of collections are called: behind the collection's name.
pub(crate) const COLLECTION: &str = ".collection.json";
const SHARD: &str = ".shard-";
const SNAPSHOT: &str = ".snapshot";

/// The longest document that is taken, in bytes.
pub(crate) const MAX_DOCUMENT: usize = 8 << 20;

/// A shard of a collection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shard {
    pub(crate) id: u32,
    /// What it is for, where sharding is up to the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<Value>,
}

/// A collection without its points.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CollectionDocument {
    pub(crate) name: String,
    /// Of the server that it is from.
    pub(crate) version: String,
    /// As the server says it.
    pub(crate) config: Value,
    /// Of each field that has an index, as the server says it.
    #[serde(default)]
    pub(crate) payload_schema: Map<String, Value>,
    /// In the order of their numbers.
    pub(crate) shards: Vec<Shard>,
    /// Sorted.
    #[serde(default)]
    pub(crate) aliases: Vec<String>,
}

/// How much may be asked for at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// Points.
    pub(crate) page: Option<u64>,
    /// How long the server may work on it.
    pub(crate) seconds: Option<u64>,
}

/// Which artifact a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    Document(&'a str),
    Shard(&'a str, u32),
}

impl<'a> Part<'a> {
    pub(crate) fn parse(name: &'a ArtifactName) -> Option<Self> {
        let name = name.as_str();
        if let Some(collection) = name.strip_suffix(COLLECTION) {
            return Some(Self::Document(collection));
        }
        let (collection, shard) = name.strip_suffix(SNAPSHOT)?.rsplit_once(SHARD)?;
        Some(Self::Shard(collection, shard.parse().ok()?))
    }

    pub(crate) fn artifact(&self) -> Result<ArtifactName> {
        let name = match self {
            Self::Document(collection) => format!("{collection}{COLLECTION}"),
            Self::Shard(collection, shard) => format!("{collection}{SHARD}{shard}{SNAPSHOT}"),
        };
        ArtifactName::new(name)
    }
}

impl CollectionDocument {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let document: Self = serde_json::from_slice(bytes).map_err(|e| {
            Error::corrupt("the description of a collection is malformed").caused_by(e)
        })?;
        check_name(&document.name)
            .map_err(|e| Error::corrupt("a collection has an impossible name").caused_by(e))?;
        Ok(document)
    }

    /// What the server has to be told to make such a collection. It says it in one form and takes it in another.
    pub(crate) fn settings(&self) -> Value {
        let mut settings = Map::new();
        let params = self.config["params"].as_object();
        let top = [
            "vectors",
            "sparse_vectors",
            "shard_number",
            "sharding_method",
            "replication_factor",
            "write_consistency_factor",
            "on_disk_payload",
            "payload",
        ];
        for name in top {
            if let Some(value) = params.and_then(|params| params.get(name)) {
                settings.insert(name.to_owned(), value.clone());
            }
        }
        for (theirs, ours) in [
            ("hnsw_config", "hnsw_config"),
            ("optimizer_config", "optimizers_config"),
            ("wal_config", "wal_config"),
            ("quantization_config", "quantization_config"),
        ] {
            if let Some(value) = self.config.get(theirs) {
                settings.insert(ours.to_owned(), value.clone());
            }
        }
        if self.shards.iter().all(|shard| shard.key.is_none()) {
            // Whatever it says of itself.
            settings.insert("shard_number".to_owned(), self.shards.len().into());
        }
        let mut settings = Value::Object(settings);
        without_nulls(&mut settings);
        // What is in there is the users', nothings included.
        if let Some(metadata) = self.config.get("metadata").filter(|value| !value.is_null()) {
            settings["metadata"] = metadata.clone();
        }
        settings
    }

    /// What the server has to be told when everything is there: what it takes of an existing collection only, and limits that
    /// would be in the way before. `None` if that is nothing.
    pub(crate) fn tuning(&self) -> Option<Value> {
        let mut params = Map::new();
        for name in ["read_fan_out_factor", "read_fan_out_delay_ms"] {
            if let Some(value) = self.config["params"].get(name) {
                params.insert(name.to_owned(), value.clone());
            }
        }
        let mut tuning =
            json!({ "params": params, "strict_mode_config": self.config["strict_mode_config"] });
        without_nulls(&mut tuning);
        if let Some(tuning) = tuning.as_object_mut() {
            tuning.retain(|_, value| value.as_object().is_some_and(|value| !value.is_empty()));
        }
        tuning.as_object().is_some_and(|tuning| !tuning.is_empty()).then_some(tuning)
    }

    /// How much may be asked for at once where the collection has limits.
    pub(crate) fn limits(&self) -> Limits {
        let strict = &self.config["strict_mode_config"];
        let of = |name: &str| strict[name].as_u64().filter(|_| strict["enabled"] == true);
        Limits { page: of("max_query_limit"), seconds: of("max_timeout") }
    }

    /// The fields that have an index, and what kind of one.
    pub(crate) fn indexes(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.payload_schema
            .iter()
            .map(|(field, about)| (field, about.get("params").unwrap_or(&about["data_type"])))
    }

    /// The indexes as a text, without how many points are in them.
    pub(crate) fn schema(&self) -> String {
        let lines: Vec<_> = self.indexes().map(|(field, kind)| format!("{field} {kind}")).collect();
        lines.join("; ")
    }

    /// For each key of shards its shards, in the order in which they were made. One without a key for those of others.
    pub(crate) fn keys(&self) -> Vec<(&Value, Vec<u32>)> {
        let mut keys: Vec<(&Value, Vec<u32>)> = Vec::new();
        for shard in &self.shards {
            let Some(key) = &shard.key else { continue };
            match keys.iter_mut().find(|(known, _)| *known == key) {
                Some((_, shards)) => shards.push(shard.id),
                None => keys.push((key, vec![shard.id])),
            }
        }
        keys
    }

    /// Whether a shard is the only one of its key, so that all points of that key are in it whatever its number is.
    pub(crate) fn is_alone(&self, id: u32) -> bool {
        let key =
            self.shards.iter().find(|shard| shard.id == id).and_then(|shard| shard.key.as_ref());
        key.is_some() && self.shards.iter().filter(|shard| shard.key.as_ref() == key).count() == 1
    }

    /// Whether the points of a collection of one version can be taken by a server of another: the same minor one, or the next.
    pub(crate) fn check_version(&self, target: &str) -> Result<()> {
        let numbers = |version: &str| -> Option<(u32, u32)> {
            let mut parts = version.split(['.', '-']).map(|part| part.parse().ok());
            Some((parts.next()??, parts.next()??))
        };
        let (from, to) = (numbers(&self.version), numbers(target));
        let Some((from, to)) = from.zip(to) else { return Ok(()) };
        if to.0 == from.0 && (to.1 == from.1 || to.1 == from.1 + 1) {
            return Ok(());
        }
        let what = "the server cannot take snapshots of such a version";
        Err(Error::new(Reason::Unsupported, what)
            .with("snapshot", &self.version)
            .with("server", target)
            .with_hint("restore into a server of the same version, and bring that up one minor version at a time"))
    }
}

/// That a name can be a part of an address, and the name of a directory. Old servers have allowed all others.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.chars().all(|c| c == '.') || name.contains(['/', '\0']) {
        let what = "no collection can be called so";
        return Err(Error::new(Reason::Unsupported, what).with("collection", format!("{name:?}")));
    }
    Ok(())
}

/// Take out what is not set, at any depth.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(values) => values.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> CollectionDocument {
        let document = serde_json::json!({
            "name": "docs", "version": "1.18.2", "shards": [{ "id": 1, "key": "eu" }, { "id": 2, "key": "us" }, { "id": 3, "key": "eu" }],
            "config": {
                "params": { "vectors": { "size": 8, "distance": "Cosine" }, "shard_number": 1, "sharding_method": "custom", "read_fan_out_factor": 2, "on_disk_payload": true },
                "hnsw_config": { "m": 16 },
                "optimizer_config": { "flush_interval_sec": 5, "max_segment_size": null },
                "quantization_config": null,
                "strict_mode_config": { "enabled": true, "max_query_limit": 50, "max_timeout": null },
                "metadata": { "owner": null },
            },
            "payload_schema": {
                "city": { "data_type": "keyword", "points": 200 },
                "text": { "data_type": "text", "params": { "type": "text", "tokenizer": "word" }, "points": 1 },
            },
        });
        CollectionDocument::parse(document.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn settings_are_what_a_server_takes() {
        let document = recorded();
        insta::assert_snapshot!(document.settings().to_string(), @r#"
        {"hnsw_config":{"m":16},"metadata":{"owner":null},"on_disk_payload":true,"optimizers_config":{"flush_interval_sec":5},"shard_number":1,"sharding_method":"custom","vectors":{"distance":"Cosine","size":8}}
        "#);
        insta::assert_snapshot!(document.tuning().unwrap().to_string(), @r#"
        {"params":{"read_fan_out_factor":2},"strict_mode_config":{"enabled":true,"max_query_limit":50}}
        "#);
        assert_eq!((document.limits().page, document.limits().seconds), (Some(50), None));
        insta::assert_snapshot!(document.schema(), @r#"
        city "keyword"; text {"tokenizer":"word","type":"text"}
        "#);
        assert_eq!(
            document.keys(),
            [(&Value::from("eu"), vec![1, 3]), (&Value::from("us"), vec![2])]
        );
    }

    #[test]
    fn names_of_artifacts() {
        for part in [
            Part::Document("a.shard-1.snapshot"),
            Part::Shard("a.collection.json", 7),
            Part::Shard("a.shard-2", 0),
        ] {
            assert_eq!(Part::parse(&part.artifact().unwrap()), Some(part.clone()));
        }
        assert_eq!(Part::parse(&ArtifactName::new("a.shard-x.snapshot").unwrap()), None);
    }

    #[test]
    fn names_of_collections() {
        for name in ["docs", "a.b", "..a", "Bücher & more;", "a?", "a\nb"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "...", "a/b", "../a", "a\0"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        let text = r#"{ "name": "..", "version": "1.18.2", "config": {}, "shards": [] }"#;
        assert!(CollectionDocument::parse(text.as_bytes()).is_err());
    }

    #[test]
    fn versions() {
        let document = recorded();
        for (target, takes) in [
            ("1.18.2", true),
            ("1.18.1", true),
            ("1.19.0", true),
            ("1.20.0", false),
            ("1.17.9", false),
            ("2.0.0", false),
            ("dev", true),
        ] {
            assert_eq!(document.check_version(target).is_ok(), takes, "{target}");
        }
    }
}
