//! What a cluster has: which collections, and which node gives which shard.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use snapkit_core::context::Context;
use snapkit_core::{Error, Reason, Result};

use crate::config::QdrantConfig;
use crate::document::{CollectionDocument, Shard, check_name};
use crate::server::{Server, ShardInfo};

/// The nodes that are known; the first is the one that is asked for what they all know.
#[derive(Clone, Debug)]
pub(crate) struct Nodes {
    nodes: Vec<Server>,
}

/// A shard, and a node that has it.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) shard: Shard,
    pub(crate) node: Server,
}

impl Nodes {
    pub(crate) fn new(config: &QdrantConfig) -> Result<Self> {
        let addresses = std::iter::once(&config.url).chain(&config.nodes);
        let nodes: Result<_> = addresses.map(|url| Server::new(config, url)).collect();
        Ok(Self { nodes: nodes? })
    }

    /// The one that is asked for what all know.
    pub(crate) fn first(&self) -> Result<&Server> {
        self.nodes.first().ok_or_else(|| Error::internal("no node is known"))
    }

    /// The collections that are asked for, by name.
    pub(crate) async fn collections(
        &self,
        cx: &Context,
        config: &QdrantConfig,
    ) -> Result<Vec<String>> {
        let globs = config.globs()?;
        let mut names = self.first()?.collections(cx).await?;
        names.retain(|name| globs.as_ref().is_none_or(|globs| globs.is_name(name)));
        names.iter().try_for_each(|name| check_name(name))?;
        Ok(names)
    }

    /// A collection without its points, for each of its shards a node that has all of it, and what the server is doing with it.
    pub(crate) async fn collection(
        &self,
        cx: &Context,
        name: &str,
        version: &str,
        aliases: &[(String, String)],
    ) -> Result<(CollectionDocument, Vec<Placed>, Activity)> {
        let about = self.first()?.collection(cx, name).await?;
        let placed = self.place(cx, name).await.map_err(|e| e.with("collection", name))?;
        let of_it = aliases.iter().filter(|(collection, _)| collection == name);
        let mut aliases: Vec<_> = of_it.map(|(_, alias)| alias.clone()).collect();
        aliases.sort();
        let mut payload_schema = about["payload_schema"].as_object().cloned().unwrap_or_default();
        // How many points are in an index is no part of it.
        for field in payload_schema.values_mut().filter_map(Value::as_object_mut) {
            field.retain(|what, _| what != "points");
        }
        let document = CollectionDocument {
            name: name.to_owned(),
            version: version.to_owned(),
            config: about["config"].clone(),
            payload_schema,
            shards: placed.iter().map(|placed| placed.shard.clone()).collect(),
            aliases,
        };
        Ok((document, placed, Activity::of(&about)))
    }

    /// What the server is doing with a collection.
    pub(crate) async fn activity(&self, cx: &Context, name: &str) -> Result<Activity> {
        Ok(Activity::of(&self.first()?.collection(cx, name).await?))
    }

    /// For each shard of a collection a node that has all of it, in the order of their numbers.
    pub(crate) async fn place(&self, cx: &Context, name: &str) -> Result<Vec<Placed>> {
        let mut known = BTreeSet::new();
        let mut placed: BTreeMap<u32, Placed> = BTreeMap::new();
        for node in &self.nodes {
            let placement = node.placement(cx, name).await?;
            if !placement.resharding_operations.is_empty() {
                let what = "points of the collection are on their way from one shard to another";
                return Err(Error::new(Reason::Unavailable, what).with("url", &node.url).with_hint(
                    "wait until the cluster is done with it: GET /collections/NAME/cluster says when",
                ));
            }
            let all = placement.local_shards.iter().chain(&placement.remote_shards);
            known.extend(all.map(|shard| shard.shard_id));
            for ShardInfo { shard_id, shard_key, .. } in
                placement.local_shards.into_iter().filter(ShardInfo::is_active)
            {
                let shard = Shard { id: shard_id, key: shard_key };
                placed.entry(shard_id).or_insert_with(|| Placed { shard, node: node.clone() });
            }
        }
        if let Some(missing) = known.iter().find(|id| !placed.contains_key(id)) {
            let what = "no node that is known has all of a shard";
            return Err(Error::new(Reason::Unavailable, what).with("shard", missing).with_hint(
                "name the other nodes of the cluster in `nodes`, and wait until all shards are active",
            ));
        }
        Ok(placed.into_values().collect())
    }

    /// How many copies of shards are on their way to where they have to be.
    pub(crate) async fn behind(&self, cx: &Context, name: &str) -> Result<usize> {
        let placement = self.first()?.placement(cx, name).await?;
        let all = placement.local_shards.iter().chain(&placement.remote_shards);
        Ok(all.filter(|shard| !shard.is_active() && !shard.is_listener()).count())
    }

    /// Whether a node that is asked may ask another one.
    pub(crate) async fn is_spread(&self, cx: &Context, name: &str) -> Result<bool> {
        Ok(!self.first()?.placement(cx, name).await?.remote_shards.is_empty())
    }
}

/// What a server is doing with a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Activity {
    /// `green`, `yellow` while it puts segments together, `grey` if it has not begun to, or `red`.
    pub(crate) status: String,
    /// Writes that it has taken and not done, and points that it does not show yet.
    waiting: u64,
}

impl Activity {
    fn of(about: &Value) -> Self {
        let queue = &about["update_queue"];
        let of = |name: &str| queue[name].as_u64().unwrap_or(0);
        let status = about["status"].as_str().unwrap_or_default().to_owned();
        Self { status, waiting: of("length").saturating_add(of("deferred_points")) }
    }

    /// Whether a snapshot of a shard has everything. While segments are put together, what is deleted from them is remembered
    /// beside them, where no snapshot looks.
    pub(crate) fn is_settled(&self) -> bool {
        self.waiting == 0 && (self.status == "green" || self.status == "grey")
    }
}
