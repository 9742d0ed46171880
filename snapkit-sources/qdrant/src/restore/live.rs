//! A restore into a server.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::shell;
use snapkit_core::source::RestoreReport;
use snapkit_core::{Error, Reason, Result};

use super::{Taken, expected};
use crate::archive::{Archive, examined};
use crate::config::QdrantConfig;
use crate::document::{CollectionDocument, Limits, Part};
use crate::look::{Nodes, Placed};
use crate::points::{self, Points};
use crate::server::REMOVAL_PAUSES;

/// How long a server may take until all shards that it was given are active.
const READY: Duration = Duration::from_secs(60);

/// How often it is looked at meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long a collection that was there may take to come back.
const BRING_BACK: Duration = Duration::from_secs(3600);

/// What the settings are called that make a collection that was kept, and the script that brings it back.
const CREATE: &str = "create.json";
const UNDO: &str = "undo.sh";

/// The server, and what may be done there.
pub(super) struct Live {
    pub(super) nodes: Nodes,
    pub(super) version: String,
    pub(super) config: QdrantConfig,
    pub(super) overwrite: bool,
    pub(super) recovery: Option<PathBuf>,
    pub(super) read_back: bool,
}

/// What was done to the target.
#[derive(Default)]
struct Progress {
    done: Vec<Done>,
    /// Aliases that led elsewhere, and where.
    led: Vec<(String, String)>,
    /// Collections that were only to try something, and are still there.
    left: Vec<String>,
}

/// A collection that was touched.
struct Done {
    name: String,
    is_replaced: bool,
    /// What was there before, if there was a place for it.
    kept: Option<Kept>,
    /// The server was told to make it: until then, and if it says that it has one, one of its name is somebody else's.
    is_made: bool,
}

/// The old state of a collection.
struct Kept {
    taken: Taken,
    directory: PathBuf,
}

impl Live {
    /// Put collections, all or none.
    pub(super) async fn restore(
        &self,
        cx: &Context,
        collections: BTreeMap<String, Taken>,
        captured: &Facts,
    ) -> Result<RestoreReport> {
        let mut report = RestoreReport::default();
        let mut progress = Progress::default();
        match self.put_all(cx, &collections, captured, &mut progress, &mut report).await {
            Ok(()) => {
                for kept in progress.done.iter().filter_map(|done| done.kept.as_ref()) {
                    let script = kept.directory.join(UNDO);
                    report.undo.push(format!("sh {}", shell::path(&script)));
                }
                Ok(report)
            }
            Err(e) => Err(self.take_back(cx, progress, e).await),
        }
    }

    async fn put_all(
        &self,
        cx: &Context,
        collections: &BTreeMap<String, Taken>,
        captured: &Facts,
        Progress { done, led, left }: &mut Progress,
        report: &mut RestoreReport,
    ) -> Result<()> {
        let first = self.nodes.first()?;
        let there = first.collections(cx).await?;
        let aliases = first.aliases(cx).await?;
        for (name, taken) in collections {
            let is_there = there.contains(name);
            if is_there && !self.overwrite {
                return Err(super::not_empty(&first.url).with("collection", name));
            }
            self.check_aliases(taken, collections, &there, &aliases)?;
        }
        for (name, taken) in collections {
            let mut kept = None;
            let is_replaced = there.contains(name);
            if is_replaced {
                // Nothing is touched before it is known that there is something to come in its place.
                self.rehearse(cx, taken, captured, left).await?;
                if let Some(recovery) = &self.recovery {
                    kept = Some(self.keep(cx, name, recovery, &aliases).await?);
                }
                if let Err(e) = self.discard(cx, name).await {
                    // It may be gone all the same.
                    if self.is_there(&cx.for_cleanup(READY), name).await.unwrap_or_default() {
                        return Err(e.with("collection", name));
                    }
                    done.push(Done { name: name.clone(), is_replaced, kept, is_made: false });
                    return Err(e.with("collection", name));
                }
            }
            let tell = |e: Error| e.with("collection", name);
            let looked = self.look_for_none(cx, name).await;
            done.push(Done { name: name.clone(), is_replaced, kept, is_made: looked.is_ok() });
            looked.map_err(tell)?;
            let made = first.create(cx, name, &taken.document.settings()).await;
            if let (Err(e), Some(done)) = (&made, done.last_mut()) {
                done.is_made = e.reason() != Reason::AlreadyExists;
            }
            made.map_err(tell)?;
            self.fill(cx, name, taken).await.map_err(tell)?;
            self.count(cx, name, name, captured).await?;
            let behind = self.nodes.behind(cx, name).await?;
            if behind > 0 {
                report.notes.push(format!(
                    "{name}: {behind} copies of shards on other nodes are not active yet; the cluster brings them up by itself"
                ));
            }
        }
        // With all collections there, whatever they point to.
        for (name, taken) in collections {
            for alias in &taken.document.aliases {
                let elsewhere = aliases
                    .iter()
                    .find(|(to, other)| other == alias && !collections.contains_key(to));
                if let Some((to, _)) = elsewhere {
                    report
                        .notes
                        .push(format!("the alias {alias} led to {to}, and leads to {name} now"));
                    led.push((alias.clone(), to.clone()));
                }
                first.alias(cx, name, alias).await.map_err(|e| e.with("alias", alias))?;
            }
        }
        let points =
            if self.read_back { self.read_points(cx, collections).await? } else { Vec::new() };
        // Limits come last: they are for others.
        for (name, taken) in collections {
            self.tune(cx, name, &taken.document).await?;
        }
        if self.read_back
            && let Err(e) = self.read(cx, collections, points, captured, report).await
        {
            // Everything is there and counted: what fails from here on is told, and does not undo that.
            cx.check()?;
            report.problems.push(format!("not read back: {}", e.chain()));
        }
        Ok(())
    }

    /// Give a collection that has everything the settings that come last.
    async fn tune(&self, cx: &Context, name: &str, document: &CollectionDocument) -> Result<()> {
        match document.tuning() {
            Some(tuning) => {
                let tuned = self.nodes.first()?.tune(cx, name, &tuning).await;
                tuned.map_err(|e| e.with("collection", name))
            }
            None => Ok(()),
        }
    }

    /// That no alias is taken from somebody.
    fn check_aliases(
        &self,
        taken: &Taken,
        collections: &BTreeMap<String, Taken>,
        there: &[String],
        aliases: &[(String, String)],
    ) -> Result<()> {
        let name = &taken.document.name;
        if aliases.iter().any(|(_, alias)| alias == name) {
            let what = "a collection has the name of an alias in the target";
            return Err(Error::new(Reason::TargetNotEmpty, what)
                .with("collection", name)
                .with_hint("remove the alias in the target, or give it another name there"));
        }
        for alias in &taken.document.aliases {
            let elsewhere =
                aliases.iter().find(|(to, name)| name == alias && !collections.contains_key(to));
            let is_collection = there.contains(alias) && !collections.contains_key(alias);
            if is_collection || (elsewhere.is_some() && !self.overwrite) {
                let what = "an alias of a collection is the name of something else in the target";
                let e = Error::new(Reason::TargetNotEmpty, what).with("alias", alias);
                return Err(e.with("collection", name));
            }
        }
        Ok(())
    }

    /// Build a collection under another name, count it, and take it away again.
    async fn rehearse(
        &self,
        cx: &Context,
        taken: &Taken,
        captured: &Facts,
        left: &mut Vec<String>,
    ) -> Result<()> {
        let tag: String = cx.random::<4>()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let fresh = format!("snapkit-{tag}");
        let name = &taken.document.name;
        let tell = |e: Error| e.with("collection", name);
        self.look_for_none(cx, &fresh).await.map_err(|e| tell(e.with("name", &fresh)))?;
        left.push(fresh.clone());
        let made = async {
            self.nodes.first()?.create(cx, &fresh, &taken.document.settings()).await?;
            self.fill(cx, &fresh, taken).await?;
            self.count(cx, &fresh, name, captured).await
        };
        let made = made.await;
        let removed = self.discard(&cx.for_cleanup(BRING_BACK), &fresh).await;
        if removed.is_ok() {
            left.clear();
        }
        made.and(removed).map_err(tell)
    }

    async fn is_there(&self, cx: &Context, name: &str) -> Result<bool> {
        Ok(self.nodes.first()?.collections(cx).await?.iter().any(|there| there == name))
    }

    /// Delete a collection, in several attempts.
    async fn discard(&self, cx: &Context, name: &str) -> Result<()> {
        for pause in REMOVAL_PAUSES {
            match self.nodes.first()?.delete(cx, name).await {
                Err(e) if e.reason() == Reason::NotFound => return Ok(()),
                Err(e) if pause.is_zero() => return Err(e),
                Err(_) => cx.sleep(pause).await?,
                Ok(()) => return Ok(()),
            }
        }
        Ok(())
    }

    /// That there is no collection of this name: `already-exists` if there is.
    async fn look_for_none(&self, cx: &Context, name: &str) -> Result<()> {
        match self.is_there(cx, name).await? {
            true => Err(Error::new(Reason::AlreadyExists, "somebody else has just made it")),
            false => Ok(()),
        }
    }

    /// Give a collection that was just made its shards, and them what they had.
    async fn fill(&self, cx: &Context, name: &str, taken: &Taken) -> Result<()> {
        let first = self.nodes.first()?;
        let document = &taken.document;
        for (key, shards) in document.keys() {
            first.create_shards(cx, name, key, shards.len()).await?;
        }
        for (field, schema) in document.indexes() {
            first
                .create_index(cx, name, field, schema)
                .await
                .map_err(|e| e.with("field", field))?;
        }
        let placed = self.placed(cx, name, document).await?;
        for (shard, placed) in counterparts(document, &placed)? {
            let archive =
                taken.shards.get(&shard).ok_or_else(|| Error::internal("a shard is gone"))?;
            let number = placed.shard.id;
            let tell = |e: Error| e.with("shard", shard);
            placed.node.upload(cx, name, number, archive).await.map_err(tell)?;
        }
        self.placed(cx, name, document).await.map(drop)
    }

    /// Where its shards are, once all are active.
    async fn placed(
        &self,
        cx: &Context,
        name: &str,
        document: &CollectionDocument,
    ) -> Result<Vec<Placed>> {
        let limit = cx.within(READY);
        loop {
            let placed = self.nodes.place(cx, name).await;
            let is_all = |placed: &Vec<Placed>| placed.len() == document.shards.len();
            if placed.as_ref().is_ok_and(is_all) {
                return placed;
            }
            if limit.sleep(LOOK_AGAIN).await.is_err() {
                cx.check()?;
                return placed;
            }
        }
    }

    /// That as many points are there as have to be. A server may take a snapshot with success, and have nothing.
    async fn count(&self, cx: &Context, there: &str, name: &str, captured: &Facts) -> Result<()> {
        let Some((count, is_certain)) = expected(captured, name) else { return Ok(()) };
        let limit = cx.within(READY);
        loop {
            let found = self.nodes.first()?.count(cx, there, Limits::default()).await?;
            let found = i64::try_from(found).unwrap_or(i64::MAX);
            if !((is_certain && found != count) || (count > 0 && found == 0)) {
                return Ok(());
            }
            // A node that has no part of it asks others, of which some may not know yet that they have nothing.
            if !self.nodes.is_spread(cx, there).await? || limit.sleep(LOOK_AGAIN).await.is_err() {
                cx.check()?;
                let what = "the server has taken everything, and does not have all points";
                return Err(Error::new(Reason::Unavailable, what)
                    .with("points", found)
                    .with("expected", count));
            }
        }
    }

    /// The points that are there now.
    async fn read_points(
        &self,
        cx: &Context,
        collections: &BTreeMap<String, Taken>,
    ) -> Result<Vec<Result<Points>>> {
        let (first, most) = (self.nodes.first()?, self.config.digest_points);
        let mut all = Vec::new();
        for name in collections.keys() {
            all.push(points::read(cx, first, name, most, Limits::default()).await);
            cx.check()?;
        }
        Ok(all)
    }

    /// Facts of what is there now.
    async fn read(
        &self,
        cx: &Context,
        collections: &BTreeMap<String, Taken>,
        points: Vec<Result<Points>>,
        captured: &Facts,
        report: &mut RestoreReport,
    ) -> Result<()> {
        let first = self.nodes.first()?;
        let aliases = first.aliases(cx).await?;
        report.facts.observe("server.version", self.version.clone());
        for ((name, taken), points) in collections.iter().zip(points) {
            let (now, ..) = self.nodes.collection(cx, name, &self.version, &aliases).await?;
            let told = points.as_ref().ok().map(|points| (points, Standing::Observed));
            points::tell(&mut report.facts, &now, Standing::Observed, told);
            if let Err(e) = points {
                report.facts.unknown(format!("{name}.points"), e.chain());
            }
            if !expected(captured, name).is_some_and(|(_, is_certain)| is_certain) {
                // Nobody can say that all points are there, whatever else is as it was.
                let why = "somebody wrote while it was captured: how many points it has to have is not known";
                report.facts.unknown(format!("{name}.config"), why);
            } else if taken.document.version != self.version {
                // Settings have other names, and more of them, in another version.
                report.beside.insert(format!("{name}.config"));
            }
        }
        // A collection that is read in part says nothing of its digest.
        let cut = captured.0.iter().filter(|(_, fact)| fact.standing == Standing::Unknown);
        report.beside.extend(cut.map(|(name, _)| name.clone()));
        Ok(())
    }

    /// Keep a collection in files, and make sure that what was kept is all of it.
    async fn keep(
        &self,
        cx: &Context,
        name: &str,
        recovery: &Path,
        aliases: &[(String, String)],
    ) -> Result<Kept> {
        let (document, placed, _) = self.nodes.collection(cx, name, &self.version, aliases).await?;
        let other = numbers_anew(&document).into_iter().find(|(number, shard)| number != shard);
        if let Some((number, shard)) = other.filter(|(_, shard)| !document.is_alone(*shard)) {
            let what = "the collection could not be brought back if something went wrong: its shards would get other numbers";
            return Err(Error::new(Reason::Unsupported, what)
                .with("collection", name)
                .with("shard", shard)
                .with("new", number)
                .with_hint("delete it yourself, or restore elsewhere with --target"));
        }
        let (recovery, own) = (recovery.to_owned(), name.to_owned());
        let directory = cx.blocking(move || room_for(&recovery, &own)).await?;
        let mut shards = BTreeMap::new();
        for Placed { shard, node } in placed {
            let before = node.snapshots(cx, name, shard.id).await?;
            let file = node.make_snapshot(cx, name, shard.id, before).await?;
            let path = directory.join(Part::Shard(name, shard.id).artifact()?.as_str());
            let fetched = async {
                let body = examined(node.download(cx, name, shard.id, &file).await?);
                Archive::write(cx, path, body).await
            };
            let fetched = fetched.await;
            let removed =
                node.remove_snapshot(&cx.for_cleanup(READY), name, shard.id, &file.name).await;
            // Of two errors the first is told, and what stays on the server in any case.
            let fetched = match &removed {
                Ok(()) => fetched,
                Err(_) => fetched.map_err(|e| e.with("left", &file.name)),
            };
            shards.insert(shard.id, fetched?);
            removed?;
        }
        let script = self.way_back(&document, &shards)?;
        let files = [
            (Part::Document(name).artifact()?.to_string(), serde_json::to_vec_pretty(&document)),
            (CREATE.to_owned(), serde_json::to_vec_pretty(&document.settings())),
            (UNDO.to_owned(), Ok(script.into_bytes())),
        ];
        let place = directory.clone();
        cx.blocking(move || {
            for (file, text) in files {
                let path = place.join(file);
                let text =
                    text.map_err(|e| Error::internal("a document cannot be written").caused_by(e))?;
                let what = || format!("cannot write {}", path.display());
                let mut file = fs::File::create_new(&path).doing(what)?;
                file.write_all(&text).and_then(|()| file.sync_all()).doing(what)?;
            }
            // What is deleted next is nowhere else.
            for directory in [Some(place.as_path()), place.parent()].into_iter().flatten() {
                let what = || format!("cannot write {}", directory.display());
                fs::File::open(directory).and_then(|directory| directory.sync_all()).doing(what)?;
            }
            Ok(())
        })
        .await?;
        Ok(Kept { taken: Taken { document, shards }, directory })
    }

    /// Bring back what was there, as far as possible. The error that led here, and what has become of the target.
    async fn take_back(&self, cx: &Context, progress: Progress, mut e: Error) -> Error {
        let Progress { done, led, left } = progress;
        let mut is_whole = left.is_empty();
        for name in left {
            e = e.with("left", name).with_hint("delete what is left on the server");
        }
        for Done { name, is_replaced, kept, is_made } in done.into_iter().rev() {
            // The restore may have been cancelled.
            let cx = cx.for_cleanup(BRING_BACK);
            let taken_back = async {
                if is_made {
                    self.discard(&cx, &name).await?;
                }
                let Some(kept) = &kept else {
                    let gone = Error::new(Reason::Unsupported, "its old state was not kept");
                    return if is_replaced { Err(gone) } else { Ok(()) };
                };
                self.look_for_none(&cx, &name).await?;
                self.nodes.first()?.create(&cx, &name, &kept.taken.document.settings()).await?;
                self.fill(&cx, &name, &kept.taken).await?;
                for alias in &kept.taken.document.aliases {
                    self.nodes.first()?.alias(&cx, &name, alias).await?;
                }
                self.tune(&cx, &name, &kept.taken.document).await
            };
            if let Err(failed) = taken_back.await {
                is_whole = false;
                e = e.with("not_taken_back", format!("{name}: {}", failed.chain()));
                if let Some(kept) = &kept {
                    e = e.with("old_state", kept.directory.display());
                }
            }
        }
        for (alias, to) in led {
            let cx = cx.for_cleanup(BRING_BACK);
            let led_back = async { self.nodes.first()?.alias(&cx, &to, &alias).await };
            if let Err(failed) = led_back.await {
                is_whole = false;
                e = e.with("not_taken_back", format!("alias {alias} of {to}: {}", failed.chain()));
            }
        }
        if is_whole { e.with("target", "as it was") } else { e }
    }

    /// A script that brings a collection back from what was kept of it: also for whoever finds it after a restore that was
    /// killed, wherever the directory is then.
    fn way_back(
        &self,
        document: &CollectionDocument,
        shards: &BTreeMap<u32, Archive>,
    ) -> Result<String> {
        let name = &document.name;
        let quote = |text: &str| shell::quote(text.as_bytes());
        let at = |rest: &str| {
            quote(&format!("{}/collections/{}{rest}", self.config.url, percent_encode(name)))
        };
        let send = |method: &str, url: String, body: &str| {
            format!("ask -X {method} -H 'content-type: application/json' {url} -d {}", quote(body))
        };
        // A key in arguments is seen by everybody on the machine.
        let ask = match self.config.api_key {
            Some(_) => {
                "printf 'api-key: %s\\n' \"${QDRANT_API_KEY:?set it to the key of the server}\" | curl -gfsS -o /dev/null -H @- \"$@\""
            }
            None => "curl -gfsS -o /dev/null \"$@\"",
        };
        let mut kept = Vec::new();
        for (number, shard) in numbers_anew(document) {
            let archive = shards.get(&shard).ok_or_else(|| Error::internal("a shard is gone"))?;
            let file = format!("./{}", Part::Shard(name, shard).artifact()?);
            kept.push((number, file, &archive.sha256));
        }
        let mut lines = vec![
            "#!/bin/sh".to_owned(),
            format!("# Brings back the collection {} as it was.", quote(name).replace('\n', " ")),
            "set -eu".to_owned(),
            "cd \"$(dirname \"$0\")\"".to_owned(),
            "# Nothing is deleted unless everything is here.".to_owned(),
            format!("test -r ./{CREATE}"),
        ];
        for (_, file, sha256) in &kept {
            let file = quote(file);
            lines.push(format!("test \"$(sha256sum <{file} | cut -c1-64)\" = {sha256}"));
        }
        lines.push(format!("ask() {{ {ask}; }}"));
        lines.push(format!("ask -X DELETE {}", at("")));
        lines.push(send("PUT", at(""), &format!("@./{CREATE}")));
        for (shard_key, shards) in document.keys() {
            let body = json!({ "shard_key": shard_key, "shards_number": shards.len() });
            lines.push(send("PUT", at("/shards"), &body.to_string()));
        }
        for (field, schema) in document.indexes() {
            let body = json!({ "field_name": field, "field_schema": schema });
            lines.push(send("PUT", at("/index?wait=true"), &body.to_string()));
        }
        if !self.config.nodes.is_empty() {
            let what =
                "# A node takes only shards that it has: GET /collections/NAME/cluster says which.";
            lines.push(what.to_owned());
        }
        for (number, file, sha256) in kept {
            let file = file.replace('\\', "\\\\").replace('"', "\\\"");
            let upload = format!(
                "/shards/{number}/snapshots/upload?wait=true&priority=snapshot&checksum={sha256}"
            );
            let file = quote(&format!("snapshot=@\"{file}\""));
            lines.push(format!("ask -X POST {} -F {file}", at(&upload)));
        }
        for alias in &document.aliases {
            let body = json!({ "actions": [{ "create_alias": { "collection_name": name, "alias_name": alias } }] });
            let url = quote(&format!("{}/collections/aliases", self.config.url));
            lines.push(send("POST", url, &body.to_string()));
        }
        if let Some(tuning) = document.tuning() {
            lines.push(send("PATCH", at(""), &tuning.to_string()));
        }
        lines.push(String::new());
        Ok(lines.join("\n"))
    }
}

/// For each shard the number that it gets in a new collection. A server numbers those that are made for keys from 1 on.
fn numbers_anew(document: &CollectionDocument) -> Vec<(u32, u32)> {
    if document.keys().is_empty() {
        return document.shards.iter().map(|shard| (shard.id, shard.id)).collect();
    }
    let in_order = document.keys().into_iter().flat_map(|(_, shards)| shards);
    (1..).zip(in_order).collect()
}

/// Which shard of a new collection stands for which of an old one. Which points go to which shard follows from their
/// numbers: only a shard that is alone with its key may have another one.
fn counterparts<'p>(
    document: &CollectionDocument,
    placed: &'p [Placed],
) -> Result<Vec<(u32, &'p Placed)>> {
    let mut pairs = Vec::new();
    for shard in &document.shards {
        let is_alone = document.is_alone(shard.id);
        let found = placed.iter().find(|placed| {
            placed.shard.key == shard.key && (is_alone || placed.shard.id == shard.id)
        });
        let found = found.ok_or_else(|| {
            let what = "the server has made other shards than the collection had";
            Error::new(Reason::Unsupported, what).with("shard", shard.id)
        })?;
        pairs.push((shard.id, found));
    }
    if pairs.len() != placed.len() {
        let what = "the server has made more shards than the collection had";
        return Err(Error::new(Reason::Unsupported, what).with("shards", placed.len()));
    }
    Ok(pairs)
}

/// A new directory for a collection: what was kept before stays.
fn room_for(recovery: &Path, name: &str) -> Result<PathBuf> {
    let mut directory = recovery.join(name);
    for number in 2.. {
        match fs::create_dir(&directory) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => {
                made.doing(|| format!("cannot create the directory {}", directory.display()))?;
                break;
            }
        }
        directory = recovery.join(format!("{name}.{number}"));
    }
    Ok(directory)
}

/// A name in a path of an address.
fn percent_encode(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
