//! Whatever a local sink reported as stored is there, whole, after the power failed at any step; and
//! a disk that skips any of the steps is found out.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use snapkit_core::Context;
use snapkit_core::context::{Simulated, Timestamp};
use snapkit_core::error::{Reason, Result};
use snapkit_core::key::Key;
use snapkit_core::progress::Silent;
use snapkit_core::sink::{Put, PutMode, Sink};
use snapkit_sinks::{Disk, DiskEntries, DiskStat, LocalSink};
use snapkit_testkit::double::{ForgetfulDisk, ForgetfulFile};
use snapkit_testkit::random::Seeded;

/// Power failures tried at each step.
const SEEDS: u64 = 24;

fn simulated(seed: u64) -> Context {
    Context::new(Arc::new(Simulated::new(seed, Timestamp(0))), Arc::new(Silent))
}

/// A careless disk: what it leaves out is what the test must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Omits {
    Nothing,
    FsyncFile,
    FsyncDir,
    FsyncOfUpperDirs,
    AtomicPublish,
}

#[derive(Clone, Debug)]
struct Careless {
    inner: ForgetfulDisk,
    omits: Omits,
}

impl Disk for Careless {
    type File = ForgetfulFile;

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir(path)
    }
    fn create_file(&self, path: &Path, data: &[u8]) -> io::Result<Self::File> {
        self.inner.create_file(path, data)
    }
    fn fsync_file(&self, file: &Self::File) -> io::Result<()> {
        if self.omits == Omits::FsyncFile { Ok(()) } else { self.inner.fsync_file(file) }
    }
    fn fsync_dir(&self, path: &Path) -> io::Result<()> {
        match self.omits {
            Omits::FsyncDir => Ok(()),
            Omits::FsyncOfUpperDirs if path.iter().count() < 2 => Ok(()),
            _ => self.inner.fsync_dir(path),
        }
    }
    fn publish(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        if self.omits != Omits::AtomicPublish {
            return self.inner.publish(from, to, replace);
        }
        let (file, stat) = self.inner.open(from)?;
        let data = self.inner.read(&file, 0..stat.size)?;
        if replace {
            drop(self.inner.remove_file(to));
        }
        let copy = self.inner.create_file(to, &data)?;
        self.inner.fsync_file(&copy)?;
        self.inner.remove_file(from)
    }
    fn open(&self, path: &Path) -> io::Result<(Self::File, DiskStat)> {
        self.inner.open(path)
    }
    fn read(&self, file: &Self::File, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.inner.read(file, range)
    }
    fn stat(&self, path: &Path) -> io::Result<DiskStat> {
        self.inner.stat(path)
    }
    fn list(&self, path: &Path) -> io::Result<DiskEntries> {
        self.inner.list(path)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir(path)
    }
}

/// One step of a history, and what it leaves under its key.
#[derive(Clone, Debug)]
enum Step {
    Put(Key, Bytes, PutMode),
    Delete(Key),
}

fn history() -> Vec<Step> {
    let key = |name: &str| Key::new(name).unwrap();
    let data = |seed| {
        let mut random = Seeded::new(seed);
        let len = 200 + random.index(1000);
        Bytes::from(random.bytes(len))
    };
    let create = |name, seed| Step::Put(key(name), data(seed), PutMode::Create);
    let overwrite = |name, seed| Step::Put(key(name), data(seed), PutMode::Overwrite);
    vec![
        create("config", 1),
        create("packs/aa/one", 2),
        create("packs/aa/two", 3),
        create("packs/aa/one", 4),
        create("packs/bb/three", 5),
        overwrite("state/x", 6),
        overwrite("state/x", 7),
        overwrite("state/x", 8),
        create("sessions/s/1", 9),
        Step::Delete(key("sessions/s/1")),
        create("sessions/s/1", 10),
        Step::Delete(key("packs/aa/two")),
        Step::Delete(key("packs/bb/three")),
        create("packs/bb/four", 11),
    ]
}

/// What may be found under each key: exactly one possibility, unless the last step failed.
type Allowed = BTreeMap<Key, BTreeSet<Option<Bytes>>>;

/// Live through the history until a step fails.
async fn live(cx: &Context, sink: &dyn Sink, allowed: &mut Allowed) -> Result<()> {
    for step in history() {
        let (key, new) = match &step {
            Step::Put(key, data, _) => (key, Some(data.clone())),
            Step::Delete(key) => (key, None),
        };
        let before = allowed.entry(key.clone()).or_insert_with(|| BTreeSet::from([None]));
        let result = match &step {
            Step::Put(key, data, mode) => sink.put(cx, key, data.clone(), *mode).await.map(Some),
            Step::Delete(key) => sink.delete(cx, key).await.map(|()| None),
        };
        match result {
            Ok(Some(Put::AlreadyThere)) => {}
            Ok(_) => *before = BTreeSet::from([new]),
            Err(e) => {
                before.insert(new);
                return Err(e);
            }
        }
    }
    Ok(())
}

/// What is there after power came back is what may be there; and the sink works.
async fn verify(seed: u64, disk: Careless, allowed: &Allowed) -> Result<(), String> {
    let cx = simulated(1000 + seed);
    let sink = LocalSink::with_disk(&cx, disk, "/x").await.unwrap();
    let mut found = BTreeMap::new();
    for (key, allowed) in allowed {
        let data = match sink.get(&cx, key, None).await {
            Ok(data) => Some(data),
            Err(e) if e.reason() == Reason::NotFound => None,
            Err(e) => return Err(format!("{key}: {e:?}")),
        };
        if !allowed.contains(&data) {
            let len = data.map(|d| d.len());
            return Err(format!("{key} has {len:?} bytes, which is nothing that was put there"));
        }
        found.extend(data.map(|d| (key.clone(), d.len() as u64)));
    }
    let listed: Vec<_> = sink.list(&cx, None).try_collect().await.map_err(|e| format!("{e:?}"))?;
    let listed: BTreeMap<_, _> = listed.into_iter().map(|o| (o.key, o.size)).collect();
    if listed != found {
        return Err(format!("listed are {listed:?}, and there are {found:?}"));
    }
    for key in allowed.keys() {
        let data = Bytes::from_static(b"later");
        sink.put(&cx, key, data.clone(), PutMode::Overwrite).await.map_err(|e| format!("{e:?}"))?;
        assert_eq!(sink.get(&cx, key, None).await.unwrap(), data);
    }
    Ok(())
}

/// The history on a disk that dies at its `k`-th step; then, if the machine lives on, the same history
/// again by a second process, which must not promise what only the first one did.
async fn crash_at(k: u64, omits: Omits, second_process: bool) -> Result<bool, String> {
    let disk = ForgetfulDisk::new();
    disk.die_at(k);
    let careless = |inner: &ForgetfulDisk| Careless { inner: inner.clone(), omits };
    let (cx, mut allowed) = (simulated(k), Allowed::new());
    let lived = match LocalSink::with_disk(&cx, careless(&disk), "/x").await {
        Ok(sink) => live(&cx, &sink, &mut allowed).await.is_ok(),
        Err(_) => false,
    };
    if second_process {
        disk.revive();
        let cx = simulated(k + 1_000_000);
        let sink = LocalSink::with_disk(&cx, careless(&disk), "/x").await.unwrap();
        // Reading does not flush, so only what is promised anew is promised by this process.
        for step in history() {
            let Step::Put(key, data, _) = step else { continue };
            match sink.put(&cx, &key, data.clone(), PutMode::Create).await {
                Ok(Put::Stored) => drop(allowed.insert(key, BTreeSet::from([Some(data)]))),
                Ok(Put::AlreadyThere) => {
                    let there = sink.get(&cx, &key, None).await.unwrap();
                    allowed.insert(key, BTreeSet::from([Some(there)]));
                }
                Err(e) => return Err(format!("{e:?}")),
            }
        }
    }
    for seed in 0..SEEDS {
        let fork = disk.fork();
        fork.crash(seed);
        verify(seed, careless(&fork), &allowed)
            .await
            .map_err(|e| format!("power failed at step {k}, seed {seed}: {e}"))?;
    }
    Ok(lived)
}

/// Crash at every step until one is beyond the end. The number of steps, or the first loss.
async fn crash_everywhere(omits: Omits, second_process: bool) -> Result<u64, String> {
    for k in 1.. {
        if crash_at(k, omits, second_process).await? {
            return Ok(k);
        }
    }
    unreachable!()
}

#[tokio::test]
async fn what_was_reported_as_stored_survives_a_crash_at_every_step() {
    let steps = crash_everywhere(Omits::Nothing, false).await.unwrap();
    assert!(steps > 80, "only {steps} steps");
}

#[tokio::test]
async fn what_a_killed_process_left_is_promised_only_when_it_lasts() {
    crash_everywhere(Omits::Nothing, true).await.unwrap();
}

#[tokio::test]
async fn every_omission_is_noticed() {
    use Omits::*;
    for omits in [FsyncFile, FsyncDir, FsyncOfUpperDirs, AtomicPublish] {
        let lost = crash_everywhere(omits, false).await;
        assert!(lost.is_err(), "a disk that omits {omits:?} passes: {lost:?}");
    }
}

#[tokio::test]
async fn a_full_disk_keeps_what_it_has_and_nothing_incomplete() {
    let cx = simulated(1);
    let disk = ForgetfulDisk::new();
    disk.set_capacity(10_000);
    let sink = LocalSink::with_disk(&cx, disk.clone(), "/full").await.unwrap();
    let (first, second) = (Key::new("packs/aa/1").unwrap(), Key::new("packs/aa/2").unwrap());
    let data = Bytes::from(vec![1; 6000]);
    sink.put(&cx, &first, data.clone(), PutMode::Create).await.unwrap();
    for mode in [PutMode::Create, PutMode::Overwrite] {
        let e = sink.put(&cx, &second, data.clone(), mode).await.unwrap_err();
        assert_eq!(e.reason(), Reason::NoSpace);
        assert!(e.to_string().contains("path=/full/packs/aa/"), "{e}");
    }
    assert_eq!(disk.contents().len(), 1, "no incomplete file is left");
    sink.delete(&cx, &first).await.unwrap();
    sink.put(&cx, &second, data, PutMode::Create).await.unwrap();
}
