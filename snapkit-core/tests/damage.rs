//! Damage of every class of object, and what each operation makes of it. The table is in
//! `docs/format.md`; each of its rows names a test here.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use lab::keeper::keepers;
use lab::truth::Truth;
use lab::{Lab, Objects, Shifted, files_of, noise, same, same_all};
use snapkit_core::artifact::Chunking;
use snapkit_core::context::Context;
use snapkit_core::credential::{Unlock, generate_key_file};
use snapkit_core::engine::{OpenOptions, Repository, Scope, VerifyOptions, VerifyReport};
use snapkit_core::error::{ErrorKind, Reason, Result};
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::key::Key;
use snapkit_core::manifest::Snapshot;
use snapkit_core::pack::{FOOTER_LEN, pack_key, trailer_len};
use snapkit_core::progress::Silent;
use snapkit_core::seal::Header;
use snapkit_core::sign::Role;
use snapkit_core::sink::{ObjectStream, Put, PutMode, Sink, SinkInfo};
use snapkit_core::tree::{EntryKind, EntryPath, TreeEntry};
use snapkit_testkit::double::{
    ScriptedArtifact, ScriptedContent, ScriptedFile, ScriptedRecord, ScriptedSource,
};

type Contents = BTreeMap<String, ScriptedContent>;

fn advance(lab: &Lab, generation: u64) {
    let seed = |i: u64| if i.is_multiple_of(2) { i } else { i + 10_000 * generation };
    let mut files: Vec<_> = (0..300u64)
        .map(|i| {
            let len = usize::try_from(200 + i * 7 % 700).unwrap();
            ScriptedFile::file(&format!("d{}/f{i}", i % 5), noise(len, seed(i)))
        })
        .collect();
    files.push(ScriptedFile::file("large", noise(600_000, 5 + generation)));
    let link = EntryKind::HardLink { target: EntryPath::new("d0/f0").unwrap() };
    files.push(ScriptedFile::special(TreeEntry::new(EntryPath::new("d1/link").unwrap(), link)));
    lab.sources[0].set(ScriptedArtifact::tree("tree", files));
    let mut pages = noise(1_100_000, 6).to_vec();
    pages[..100_000].copy_from_slice(&noise(100_000, 7 + generation));
    lab.sources[1]
        .set(ScriptedArtifact::bytes("pages", pages).chunking(Chunking::Pages { page_size: 4096 }));
    lab.sources[1].set(ScriptedArtifact::bytes("noise", noise(300_000, 8 + generation)));
    lab.sources[1].set(ScriptedArtifact::bytes("same", noise(100_000, 9)));
    let records = (0..200u64).map(|i| {
        let len = if i == 77 { 40_000 } else { usize::try_from(100 + i * 3).unwrap() };
        ScriptedRecord::new(format!("key {i}"), noise(len, 50_000 + seed(i)))
    });
    lab.sources[1].set(ScriptedArtifact::records("records", records));
}

/// A repository with two snapshots and two credentials, and another like it.
struct Scene {
    lab: Lab,
    snapshots: Vec<Snapshot>,
    contents: Vec<[Contents; 2]>,
    second_key: Unlock,
    second_file: Key,
    truth: Truth,
    /// The repository as it was after the first snapshot.
    early: Objects,
}

impl Scene {
    async fn new() -> Self {
        let clock = Arc::new(Shifted::default());
        let cx = Context::new(Arc::clone(&clock) as _, Arc::new(Silent));
        let lab = Lab::with(cx, [ScriptedSource::new("a"), ScriptedSource::new("b")]).await;
        let second_key = Unlock::KeyFile(generate_key_file());
        let credential =
            lab.open().await.unwrap().credential().derive(&lab.cx, Role::Full).unwrap();
        let second_file = credential.key().unwrap();
        put(&lab, &second_file, credential.encode(&second_key).unwrap().into()).await;
        let (mut snapshots, mut contents, mut early) = (Vec::new(), Vec::new(), Objects::new());
        for generation in [1, 2] {
            advance(&lab, generation);
            // Not in the same second, so that the order of ids is the order of snapshots.
            clock.forward(60);
            snapshots.push(lab.create().await.unwrap().snapshot);
            contents.push([lab.live(0), lab.live(1)]);
            clock.forward(60);
            if generation == 1 {
                early = lab.memory.contents();
            }
        }
        let credential = lab.open().await.unwrap().credential().clone();
        let truth = Truth::of(&lab.memory.contents(), &credential);
        Self { lab, snapshots, contents, second_key, second_file, truth, early }
    }

    fn objects(&self) -> Objects {
        self.lab.memory.contents()
    }

    fn under(&self, prefix: &str) -> Vec<Key> {
        self.objects().into_keys().filter(|k| k.as_str().starts_with(prefix)).collect()
    }

    /// Restore a snapshot, whole and what is left of it. Nothing wrong comes out, what is missing is
    /// said, and nothing is missing but what is returned.
    async fn missing(
        &self,
        lab: &Lab,
        snapshot: &Snapshot,
        contents: &[Contents; 2],
    ) -> BTreeSet<String> {
        let whole = lab.restore_with(snapshot, |o| o.overwrite = true).await;
        let (registry, kept) = keepers();
        let summary = lab
            .restore_to(&lab.open().await.unwrap(), &registry, snapshot, |o| {
                (o.overwrite, o.allow_damage) = (true, true);
            })
            .await
            .unwrap();
        let kept = kept.lock().unwrap();
        let mut missing = BTreeSet::new();
        for ((source, expected), restored) in ["a", "b"].iter().zip(contents).zip(&summary.sources)
        {
            let said = restored.damaged.join("\n");
            for (name, expected) in expected {
                let place = format!("{source}/{name}");
                let Some(found) = kept.get(*source).and_then(|k| k.get(name)) else {
                    assert!(
                        said.contains(name.as_str()),
                        "{place} is not there, and it is not said: {said}"
                    );
                    missing.insert(place);
                    continue;
                };
                if let ScriptedContent::Tree(_) = expected {
                    let (expected, mut found) = (files_of(expected), files_of(found));
                    for (path, file) in &expected {
                        if let Some(found) = found.remove(path) {
                            assert_eq!(found, *file, "a wrong byte in {path}");
                        } else {
                            let is_said =
                                said.contains(path) || said.contains("entries that cannot be read");
                            assert!(is_said, "{path} is not there, and it is not said: {said}");
                            missing.insert(format!("{place}/{path}"));
                        }
                    }
                    assert!(found.is_empty(), "entries from nowhere: {found:?}");
                } else {
                    assert!(same(found, expected), "a wrong byte in {place}");
                }
            }
            let is_whole = said.is_empty();
            assert_eq!(restored.verdict == RestoreVerdict::Differs, !is_whole);
        }
        assert_eq!(summary.damaged, !missing.is_empty());
        match whole {
            Ok(summary) => {
                assert!(
                    missing.is_empty()
                        && summary.verdict == RestoreVerdict::Match
                        && !summary.damaged
                );
                assert!((0..2).all(|i| same_all(&lab.restored(i), &contents[i])));
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Corrupt, "{e:?}");
                assert!(!missing.is_empty(), "nothing is missing, and yet: {e:?}");
            }
        }
        missing
    }

    /// What verify says fits what a restore misses.
    fn assert_verified(&self, report: &VerifyReport, missing: &[BTreeSet<String>]) {
        let said: Vec<&String> = report.damage.iter().flat_map(|d| &d.lost).collect();
        let count: u64 = report.damage.iter().map(|d| d.lost_count).sum();
        let total: usize = missing.iter().map(BTreeSet::len).sum();
        if total == 0 {
            assert_eq!(count, 0, "nothing is lost, and yet: {said:?}");
        }
        for (snapshot, missing) in self.snapshots.iter().zip(missing) {
            for place in missing {
                let full = format!("{}:{place}", snapshot.id);
                let artifact = full.splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
                let named = said.iter().any(|s| **s == full)
                    || said
                        .iter()
                        .any(|s| **s == artifact || s.starts_with(&format!("{artifact}, entries")));
                // Only the first hundred of an object are named.
                assert!(named || count > 100, "{full} is lost, and only this is said: {said:?}");
            }
        }
        if total > 0 {
            assert!(count > 0 && !report.is_sound());
        }
    }

    /// Examine a damaged repository with and without what this machine remembers: what verify says, and
    /// what each snapshot misses.
    async fn examine(&self, lab: &Lab) -> (VerifyReport, Vec<BTreeSet<String>>) {
        let warm = self.examine_once(lab).await;
        drop(std::fs::remove_dir_all(lab.path("cache")));
        let cold = self.examine_once(lab).await;
        let objects =
            |r: &VerifyReport| r.damage.iter().map(|d| d.object.clone()).collect::<Vec<_>>();
        assert_eq!(objects(&cold.0), objects(&warm.0), "the cache must not hide anything");
        assert_eq!(cold.1, warm.1);
        warm
    }

    async fn examine_once(&self, lab: &Lab) -> (VerifyReport, Vec<BTreeSet<String>>) {
        let report = lab.verify(true).await.unwrap();
        let mut missing = Vec::new();
        for (snapshot, contents) in self.snapshots.iter().zip(&self.contents) {
            missing.push(self.missing(lab, snapshot, contents).await);
        }
        self.assert_verified(&report, &missing);
        (report, missing)
    }

    /// The next create: it works, and everything that the sources hold now is whole again.
    async fn assert_heals(&self, lab: &Lab) -> Vec<String> {
        let report = lab.create().await.unwrap();
        let missing = self.missing(lab, &report.snapshot, &self.contents[1]).await;
        assert!(missing.is_empty(), "it was committed without {missing:?}");
        // And so is the older snapshot of the same content.
        let missing = self.missing(lab, &self.snapshots[1], &self.contents[1]).await;
        assert!(missing.is_empty(), "{missing:?}");
        report.warnings
    }
}

async fn put(lab: &Lab, key: &Key, object: Bytes) {
    lab.sink.put(&lab.cx, key, object, PutMode::Overwrite).await.unwrap();
}

async fn remove(lab: &Lab, key: &Key) {
    lab.sink.delete(&lab.cx, key).await.unwrap();
}

fn flipped(object: &Bytes, at: usize) -> Bytes {
    let mut bytes = object.to_vec();
    bytes[at] ^= 0x40;
    bytes.into()
}

/// Some positions of an object, the first and the last among them.
fn positions(len: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |i| i * (len - 1) / (count - 1))
}

#[track_caller]
fn assert_named(report: &VerifyReport, key: &str) {
    assert!(
        report.damage.iter().any(|d| d.object == key),
        "{key} is not named: {:#?}",
        report.damage
    );
}

fn is_sound_otherwise(report: &VerifyReport, keys: &[&str]) -> bool {
    report.damage.iter().all(|d| keys.contains(&d.object.as_str()))
}

/// A memory sink at a place that this machine remembers.
#[derive(Debug)]
struct Placed(Arc<dyn Sink>, SinkInfo);

impl Placed {
    fn at(sink: Arc<dyn Sink>) -> Arc<dyn Sink> {
        let info = SinkInfo { location: "test://place".to_owned(), ..sink.info().clone() };
        Arc::new(Self(sink, info))
    }
}

#[async_trait]
impl Sink for Placed {
    fn info(&self) -> &SinkInfo {
        &self.1
    }

    async fn put(&self, cx: &Context, key: &Key, data: Bytes, mode: PutMode) -> Result<Put> {
        self.0.put(cx, key, data, mode).await
    }

    async fn get(&self, cx: &Context, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        self.0.get(cx, key, range).await
    }

    fn list(&self, cx: &Context, prefix: Option<&Key>) -> ObjectStream {
        self.0.list(cx, prefix)
    }

    async fn delete(&self, cx: &Context, key: &Key) -> Result<()> {
        self.0.delete(cx, key).await
    }
}

async fn open(lab: &Lab, unlock: &Unlock) -> Result<Repository> {
    let options: OpenOptions = lab.options();
    Repository::open(
        &lab.cx,
        Placed::at(Arc::clone(&lab.sink)),
        std::slice::from_ref(unlock),
        options,
    )
    .await
}

async fn refusal(lab: &Lab, unlock: &Unlock) -> Reason {
    open(lab, unlock).await.unwrap_err().reason()
}

#[tokio::test]
async fn a_damaged_config_opens_nothing() {
    let scene = Scene::new().await;
    let lab = scene.lab.fork().await;
    open(&lab, &lab.unlock).await.unwrap();
    let key = Key::new("config").unwrap();
    let config = scene.objects()[&key].clone();
    for at in 0..config.len() {
        put(&lab, &key, flipped(&config, at)).await;
        let reason = refusal(&lab, &lab.unlock).await;
        // A changed format cannot be told from another format.
        assert!(matches!(reason, Reason::Corrupt | Reason::FormatMismatch), "byte {at}: {reason}");
    }
    for len in positions(config.len(), 20) {
        put(&lab, &key, config.slice(..len)).await;
        assert_eq!(refusal(&lab, &lab.unlock).await, Reason::Corrupt);
    }
    remove(&lab, &key).await;
    assert_eq!(refusal(&lab, &lab.unlock).await, Reason::NoRepository);
    put(&lab, &key, config).await;
    open(&lab, &lab.unlock).await.unwrap();
}

#[tokio::test]
async fn another_repository_is_not_taken_for_this_one() {
    let (scene, other) = (Scene::new().await, Scene::new().await);
    let lab = scene.lab.fork().await;
    open(&lab, &lab.unlock).await.unwrap();
    // Its config alone: the credentials do not belong to it.
    let key = Key::new("config").unwrap();
    put(&lab, &key, other.objects()[&key].clone()).await;
    assert_eq!(refusal(&lab, &lab.unlock).await, Reason::RepositoryReplaced);
    // All of it, and its key: this machine knew another one here.
    let lab = other.lab.fork_on(Arc::clone(&lab.sink));
    for (key, object) in other.objects() {
        put(&lab, &key, object).await;
    }
    open(&scene.lab.fork().await, &scene.lab.unlock).await.unwrap();
    let mut options = scene.lab.options();
    open(&scene.lab, &scene.lab.unlock).await.unwrap();
    let unlock = [other.lab.unlock.clone()];
    let sink = || Placed::at(Arc::clone(&lab.sink));
    let e = Repository::open(&lab.cx, sink(), &unlock, options.clone()).await.unwrap_err();
    assert_eq!(e.reason(), Reason::RepositoryReplaced);
    options.accept_new_repository = true;
    Repository::open(&lab.cx, sink(), &unlock, options).await.unwrap();
}

#[tokio::test]
async fn a_damaged_credential_opens_nothing_and_the_others_still_do() {
    let (scene, other) = (Scene::new().await, Scene::new().await);
    let lab = scene.lab.fork().await;
    let file = scene.objects()[&scene.second_file].clone();
    let first_file = scene.under("keys/").into_iter().find(|k| *k != scene.second_file).unwrap();
    let others_file = other.objects()[&other.second_file].clone();
    let refused = [Reason::Corrupt, Reason::WrongKey];
    for at in positions(file.len(), 120) {
        put(&lab, &scene.second_file, flipped(&file, at)).await;
        let reason = refusal(&lab, &scene.second_key).await;
        assert!(refused.contains(&reason), "byte {at}: {reason}");
        open(&lab, &lab.unlock).await.unwrap();
    }
    for len in positions(file.len(), 20) {
        put(&lab, &scene.second_file, file.slice(..len)).await;
        let reason = refusal(&lab, &scene.second_key).await;
        assert!(refused.contains(&reason), "length {len}: {reason}");
        open(&lab, &lab.unlock).await.unwrap();
        if len < 22 {
            assert_named(&lab.verify(false).await.unwrap(), scene.second_file.as_str());
        }
    }
    // Another's file of the same repository, and one of another repository.
    put(&lab, &scene.second_file, scene.objects()[&first_file].clone()).await;
    assert_eq!(refusal(&lab, &scene.second_key).await, Reason::WrongKey);
    open(&lab, &lab.unlock).await.unwrap();
    put(&lab, &scene.second_file, others_file).await;
    assert_eq!(refusal(&lab, &scene.second_key).await, Reason::WrongKey);
    assert_eq!(refusal(&lab, &other.second_key).await, Reason::Corrupt);
    open(&lab, &lab.unlock).await.unwrap();
    // Gone, and then all of them.
    remove(&lab, &scene.second_file).await;
    assert_eq!(refusal(&lab, &scene.second_key).await, Reason::WrongKey);
    open(&lab, &lab.unlock).await.unwrap();
    remove(&lab, &first_file).await;
    assert_eq!(refusal(&lab, &lab.unlock).await, Reason::ObjectMissing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_a_pack_costs_its_frame_and_no_more() {
    let scene = Scene::new().await;
    let mut hits = 0;
    for (id, pack) in &scene.truth.packs {
        let key = pack_key(*id).unwrap();
        let object = scene.objects()[&key].clone();
        let frames_end =
            pack.frames.last().map_or(Header::LONG, |f| (f.offset + f.stored) as usize);
        let footer = object.len() - FOOTER_LEN;
        let trailer =
            footer - trailer_len(&object[footer..], object.len() as u64).unwrap() as usize;
        let mut places = vec![9, 40, 100, (trailer + footer) / 2, footer + 1];
        places.extend((frames_end < trailer).then_some(frames_end));
        for frame in
            [pack.frames.first(), pack.frames.get(pack.frames.len() / 2)].into_iter().flatten()
        {
            places.push((frame.offset + frame.stored / 2) as usize);
        }
        // And all of it, as by another object of the same length.
        let mut versions: Vec<(Bytes, Range<usize>)> =
            places.into_iter().map(|at| (flipped(&object, at), at..at + 1)).collect();
        versions.push((noise(object.len(), 77), 0..object.len()));
        for (i, (version, hit)) in versions.into_iter().enumerate() {
            let lab = scene.lab.fork().await;
            put(&lab, &key, version).await;
            let (report, missing) =
                if i == 0 { scene.examine(&lab).await } else { scene.examine_once(&lab).await };
            assert_named(&report, key.as_str());
            let bad = scene.truth.only_in(|pack, start, end| {
                pack == *id && (start as usize) < hit.end && hit.start < end as usize
            });
            for (snapshot, missing) in scene.snapshots.iter().zip(&missing) {
                assert_eq!(*missing, scene.truth.lost(snapshot, &bad), "{key} bytes {hit:?}");
            }
            hits += missing.iter().map(BTreeSet::len).sum::<usize>();
            if i > 0 && missing.iter().all(BTreeSet::is_empty) {
                continue;
            }
            // A create does not read what is stored: it knows what the verify saw. Where no verify was run
            // it cannot know, and stores again what is missing once the object is taken away.
            if i % 2 == 0 {
                let warnings = scene.assert_heals(&lab).await;
                assert!(warnings.iter().any(|w| w.contains(key.as_str())), "{warnings:?}");
                let report = lab.verify(true).await.unwrap();
                assert!(is_sound_otherwise(&report, &[key.as_str()]), "{:#?}", report.damage);
            } else {
                lab.forget_local();
                lab.create().await.unwrap();
                remove(&lab, &key).await;
                scene.assert_heals(&lab).await;
            }
        }
    }
    assert!(hits > 20, "{hits}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_that_is_cut_gone_or_another_is_stored_again() {
    let (scene, other) = (Scene::new().await, Scene::new().await);
    let objects = scene.objects();
    let foreign: Vec<Bytes> =
        other.under("packs/").iter().map(|k| other.objects()[k].clone()).collect();
    let mut hits = 0;
    for id in scene.truth.packs.keys() {
        let key = pack_key(*id).unwrap();
        let object = &objects[&key];
        // Of another length: one of the same length is found like a flipped byte.
        let own = scene.under("packs/").into_iter().map(|k| objects[&k].clone());
        let another = own.clone().find(|o| o.len() != object.len()).unwrap();
        let foreign = foreign.iter().find(|o| o.len() != object.len()).unwrap();
        let cuts = [0, 1, Header::LONG, object.len() / 2, object.len() - 1];
        let mut versions: Vec<(Option<Bytes>, usize)> =
            cuts.into_iter().map(|len| (Some(object.slice(..len)), len)).collect();
        versions.push((None, 0));
        versions.extend([(Some(foreign.clone()), 0), (Some(another), 0)]);
        for (version, intact) in versions {
            let lab = scene.lab.fork().await;
            match version {
                Some(version) => put(&lab, &key, version).await,
                None => remove(&lab, &key).await,
            }
            let (report, missing) = scene.examine(&lab).await;
            assert_named(&report, key.as_str());
            assert!(is_sound_otherwise(&report, &[key.as_str()]), "{:#?}", report.damage);
            let bad = scene.truth.only_in(|pack, _, end| pack == *id && end as usize > intact);
            for (snapshot, missing) in scene.snapshots.iter().zip(&missing) {
                assert_eq!(*missing, scene.truth.lost(snapshot, &bad), "{key} {intact}");
            }
            hits += missing.iter().map(BTreeSet::len).sum::<usize>();
            let warnings = scene.assert_heals(&lab).await;
            assert!(warnings.iter().any(|w| w.contains(key.as_str())), "{warnings:?}");
        }
    }
    assert!(hits > 100, "{hits}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_that_is_gone_and_stored_again_is_no_damage_any_more() {
    let scene = Scene::new().await;
    let lab = scene.lab.fork().await;
    // Only one generation is left, and that is the one that the sources hold.
    let repository = lab.open().await.unwrap();
    repository.manifest().forget(&lab.cx, &scene.snapshots[0].id, "test").await.unwrap();
    for key in scene.under("packs/") {
        remove(&lab, &key).await;
    }
    assert!(!lab.verify(false).await.unwrap().is_sound());
    scene.assert_heals(&lab).await;
    let report = lab.verify(true).await.unwrap();
    assert!(report.is_sound(), "{:#?}", report.damage);
    assert_eq!(report.notes.len(), scene.truth.packs.len(), "{:?}", report.notes);
    // And so if only a part is asked for.
    let latest = lab.open().await.unwrap().ledger(&lab.cx).await.unwrap().snapshots[0].id.clone();
    let options = VerifyOptions { snapshots: vec![latest], ..VerifyOptions::default() };
    let repository = lab.open().await.unwrap();
    let report = repository.verify(&lab.cx, &lab.registry(), &options).await.unwrap();
    assert!(report.is_sound(), "{:#?}", report.damage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_segment_costs_nothing_and_the_next_create_makes_up_for_it() {
    let (scene, other) = (Scene::new().await, Scene::new().await);
    let objects = scene.objects();
    let segments = scene.under("index/");
    let foreign = other.under("index/").remove(0);
    let foreign_object = other.objects()[&foreign].clone();
    for key in &segments {
        let object = &objects[key];
        let another = &objects[segments.iter().find(|k| *k != key).unwrap()];
        let mut versions: Vec<Option<Bytes>> =
            positions(object.len(), 7).map(|at| Some(flipped(object, at))).collect();
        versions.extend([0, 30, object.len() - 1].map(|len| Some(object.slice(..len))));
        versions.extend([None, Some(another.clone()), Some(foreign_object.clone())]);
        for version in versions {
            let lab = scene.lab.fork().await;
            let gone = version.is_none();
            match version {
                Some(version) => put(&lab, key, version).await,
                None => remove(&lab, key).await,
            }
            let (report, missing) = scene.examine(&lab).await;
            assert!(!report.is_sound() && missing.iter().all(BTreeSet::is_empty));
            assert_named(&report, if gone { "index" } else { key.as_str() });
            drop(std::fs::remove_dir_all(lab.path("cache")));
            let next = lab.create().await.unwrap();
            assert_eq!(next.snapshot.stats.chunks_new, 0, "everything is still there");
            assert_eq!(next.warnings.iter().any(|w| w.contains(key.as_str())), !gone);
            // Its packs are listed again: without the damaged object all is well.
            remove(&lab, key).await;
            assert!(lab.verify(true).await.unwrap().is_sound());
            scene.assert_heals(&lab).await;
        }
    }
    // One that belongs to another repository, under its own name.
    let lab = scene.lab.fork().await;
    put(&lab, &foreign, foreign_object).await;
    let (report, missing) = scene.examine(&lab).await;
    assert_named(&report, foreign.as_str());
    assert!(missing.iter().all(BTreeSet::is_empty));
    scene.assert_heals(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_costs_itself_and_is_named() {
    let (scene, other) = (Scene::new().await, Scene::new().await);
    let objects = scene.objects();
    let line = |i: usize| Key::new(format!("snapshots/{}", scene.snapshots[i].id)).unwrap();
    let lines = [line(0), line(1)];
    let foreign = other.objects()[&other.under("snapshots/")[0]].clone();
    for (i, key) in lines.iter().enumerate() {
        let object = &objects[key];
        let mut versions: Vec<Option<Bytes>> =
            positions(object.len(), 40).map(|at| Some(flipped(object, at))).collect();
        versions.extend(positions(object.len(), 6).map(|len| Some(object.slice(..len))));
        versions.extend([None, Some(objects[&lines[1 - i]].clone()), Some(foreign.clone())]);
        let lab = scene.lab.fork().await;
        for version in versions {
            let gone = version.is_none();
            match version {
                Some(version) => put(&lab, key, version).await,
                None => remove(&lab, key).await,
            }
            for cold in [false, true] {
                if cold {
                    lab.forget_local();
                }
                let report = lab.verify(false).await.unwrap();
                if gone && cold && i == 1 {
                    // Nobody has seen the newest one, and nothing came after it.
                    assert!(report.is_sound());
                } else {
                    assert_named(&report, key.as_str());
                    assert!(is_sound_otherwise(&report, &[key.as_str()]), "{:#?}", report.damage);
                    assert!(report.damage[0].lost[0].contains(scene.snapshots[i].id.as_str()));
                }
                let ledger = lab.open().await.unwrap().ledger(&lab.cx).await.unwrap();
                let scope = Scope::default();
                let e = ledger.resolve(scene.snapshots[i].id.as_str(), &scope).unwrap_err();
                let expected = if gone { ErrorKind::NotFound } else { ErrorKind::Corrupt };
                assert!(e.kind() == expected || e.reason() == Reason::FormatMismatch, "{e:?}");
                match ledger.resolve("latest", &scope) {
                    Ok(left) => assert_eq!(left.id, scene.snapshots[1 - i].id),
                    // The one that cannot be read may be the one that is meant.
                    Err(e) => assert!(i == 1 && e.kind() != ErrorKind::NotFound, "{e:?}"),
                }
                let left = ledger.resolve(scene.snapshots[1 - i].id.as_str(), &scope).unwrap();
                assert_eq!(left.id, scene.snapshots[1 - i].id);
            }
            put(&lab, key, object.clone()).await;
            assert!(lab.verify(false).await.unwrap().is_sound());
        }
        // The other one is as it was, and a create goes on.
        put(&lab, key, flipped(object, 200)).await;
        let missing = scene.missing(&lab, &scene.snapshots[1 - i], &scene.contents[1 - i]).await;
        assert!(missing.is_empty());
        lab.forget_local();
        let warnings = scene.assert_heals(&lab).await;
        assert!(
            warnings.iter().any(|w| w.contains(scene.snapshots[i].id.as_str())),
            "{warnings:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_session_is_named_and_costs_nothing() {
    let (scene, other) = (Scene::new().await, Scene::new().await);
    let objects = scene.objects();
    let sessions = scene.under("sessions/");
    let foreign = other.objects()[&other.under("sessions/")[0]].clone();
    let (key, another) = (&sessions[0], &sessions[1]);
    let object = &objects[key];
    let mut versions: Vec<Bytes> =
        positions(object.len(), 60).map(|at| flipped(object, at)).collect();
    versions.extend(positions(object.len(), 6).map(|len| object.slice(..len)));
    versions.extend([objects[another].clone(), foreign]);
    let lab = scene.lab.fork().await;
    for version in versions {
        put(&lab, key, version).await;
        let report = lab.verify(false).await.unwrap();
        assert_named(&report, key.as_str());
        assert!(is_sound_otherwise(&report, &[key.as_str()]) && report.damage[0].lost_count == 0);
    }
    let (_, missing) = scene.examine(&lab).await;
    assert!(missing.iter().all(BTreeSet::is_empty));
    scene.assert_heals(&lab).await;
    // Sessions that have ended may go.
    remove(&lab, key).await;
    assert!(lab.verify(true).await.unwrap().is_sound());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_snapshot_that_is_put_back_is_noticed() {
    let scene = Scene::new().await;
    let lab = scene.lab.fork().await;
    let key = Key::new(format!("snapshots/{}", scene.snapshots[0].id)).unwrap();
    let repository = lab.open().await.unwrap();
    repository.manifest().forget(&lab.cx, &scene.snapshots[0].id, "test").await.unwrap();
    assert!(repository.ledger(&lab.cx).await.unwrap().returned.is_empty());
    assert!(lab.verify(true).await.unwrap().is_sound());
    put(&lab, &key, scene.objects()[&key].clone()).await;
    let ledger = repository.ledger(&lab.cx).await.unwrap();
    assert_eq!(ledger.returned, [scene.snapshots[0].id.clone()]);
    let (report, missing) = scene.examine(&lab).await;
    assert_named(&report, key.as_str());
    assert!(missing.iter().all(BTreeSet::is_empty), "nothing was collected yet");
    scene.assert_heals(&lab).await;
    // A machine that never saw the marker cannot know.
    lab.forget_local();
    assert!(lab.verify(true).await.unwrap().is_sound());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_is_rolled_back_is_noticed() {
    let scene = Scene::new().await;
    let lab = scene.lab.fork().await;
    for key in scene.objects().into_keys().filter(|k| !scene.early.contains_key(k)) {
        remove(&lab, &key).await;
    }
    let ledger = lab.open().await.unwrap().ledger(&lab.cx).await.unwrap();
    assert_eq!(ledger.gone, [scene.snapshots[1].id.clone()]);
    // A machine that knew nothing cannot tell: the repository was like this once.
    let stranger = lab.fork().await;
    stranger.forget_local();
    assert!(stranger.verify(true).await.unwrap().is_sound());
    let report = lab.verify(true).await.unwrap();
    let line = format!("snapshots/{}", scene.snapshots[1].id);
    assert_named(&report, &line);
    assert!(is_sound_otherwise(&report, &[&line]));
    assert!(scene.missing(&lab, &scene.snapshots[0], &scene.contents[0]).await.is_empty());
    // What was stored since is stored again, whatever the basis says, and somebody is told.
    let next = lab.create().await.unwrap();
    assert!(
        next.warnings.iter().any(|w| w.contains(scene.snapshots[1].id.as_str())),
        "{:?}",
        next.warnings
    );
    assert!(scene.missing(&lab, &next.snapshot, &scene.contents[1]).await.is_empty());
    // Now everybody can see it: the new snapshot names the one that is gone.
    lab.forget_local();
    assert_named(&lab.verify(true).await.unwrap(), &line);
    // Until somebody says that it is known.
    let repository = lab.open().await.unwrap();
    assert_eq!(repository.ledger(&lab.cx).await.unwrap().missing, [scene.snapshots[1].id.clone()]);
    let accepted = repository.accept_loss(&lab.cx).await.unwrap();
    assert_eq!(accepted, [scene.snapshots[1].id.clone()]);
    assert!(lab.verify(true).await.unwrap().is_sound());
    assert!(repository.accept_loss(&lab.cx).await.unwrap().is_empty());
}
