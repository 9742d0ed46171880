//! `kill -9` in every phase of a create: what was committed stands, and what was uploaded is reused.
//!
//! The victim is this test binary, started again: it captures a directory and a database into a repository,
//! on the local disk or on S3, and kills itself some time after the chosen phase has begun, or when it has stored
//! so many objects.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use snapkit_core::artifact::SourceName;
use snapkit_core::context::{Context, System};
use snapkit_core::credential::{Unlock, generate_key_file};
use snapkit_core::engine::{
    CreateOptions, OpenOptions, Repository, RestoreOptions, RestoreTo, Stack, VerifyOptions,
};
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::progress::{Counter, Phase, Progress};
use snapkit_core::registry::Registry;
use snapkit_core::secret::Secret;
use snapkit_sinks::Settings;
use snapkit_testkit::s3::{BUCKET, S3Server};

const PHASES: [Phase; 5] =
    [Phase::Prepare, Phase::Freeze, Phase::Stream, Phase::Index, Phase::Commit];

/// Kills in each phase.
const KILLS: u64 = 20;

/// Where everything is.
struct Place {
    dir: PathBuf,
    /// Of the repository.
    url: String,
    settings: Settings,
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn unlock(&self) -> Unlock {
        Unlock::KeyFile(Secret::new(std::fs::read_to_string(self.path("key")).unwrap()))
    }

    fn registry() -> Registry {
        let mut registry = Registry::new();
        snapkit_sources::register_all(&mut registry);
        registry
    }

    fn stack(&self) -> Stack {
        let registry = Self::registry();
        let source = |kind: &str, name: &str, settings| {
            registry.build(kind, SourceName::new(name).unwrap(), settings).unwrap()
        };
        let files = source("files", "files", serde_json::json!({ "paths": [self.path("data")] }));
        let app = source("sqlite", "app", serde_json::json!({ "path": self.path("app.db") }));
        Stack::new("kill", "host", vec![files, app])
    }

    async fn open(&self, cx: &Context) -> Repository {
        let sink = snapkit_sinks::open_with(cx, &self.url, &self.settings).await.unwrap();
        let options = OpenOptions::new(self.path("cache"), self.path("state"));
        Repository::open(cx, sink, &[self.unlock()], options).await.unwrap()
    }
}

/// Kills this process a while after a phase began, or when the repository has taken so many objects.
#[derive(Debug)]
struct Killer {
    phase: Phase,
    after: Duration,
    objects: Option<u64>,
    stored: AtomicU64,
}

fn kill_myself() {
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
}

impl Progress for Killer {
    fn phase(&self, phase: Phase) {
        if phase == self.phase && self.objects.is_none() {
            let after = self.after;
            std::thread::spawn(move || {
                std::thread::sleep(after);
                kill_myself();
            });
        }
    }
    fn add(&self, counter: Counter, n: u64) {
        if counter == Counter::ObjectsStored {
            let stored = self.stored.fetch_add(n, Ordering::Relaxed) + n;
            if self.objects.is_some_and(|objects| stored >= objects) {
                kill_myself();
            }
        }
    }
    fn expect_bytes(&self, _: u64) {}
    fn warn(&self, _: &str) {}
}

/// Not a test by itself: what the other one starts and kills.
#[tokio::test]
async fn victim() {
    let Ok(dir) = std::env::var("SNAPKIT_TEST_VICTIM") else { return };
    let phase = std::env::var("SNAPKIT_TEST_PHASE").unwrap();
    let phase = *PHASES.iter().find(|p| p.as_str() == phase).unwrap();
    let micros = std::env::var("SNAPKIT_TEST_MICROS").unwrap().parse().unwrap();
    let objects = std::env::var("SNAPKIT_TEST_OBJECTS").ok().map(|n| n.parse().unwrap());
    let after = Duration::from_micros(micros);
    let killer = Killer { phase, after, objects, stored: AtomicU64::new(0) };
    let cx = Context::new(Arc::new(System::new()), Arc::new(killer));
    let url = std::env::var("SNAPKIT_TEST_URL").unwrap();
    let place = Place { dir: dir.into(), url, settings: Settings::of_process() };
    place.open(&cx).await.create(&cx, &place.stack(), &CreateOptions::default()).await.unwrap();
}

fn populate(place: &Place, round: u64) {
    // Changed content in every round, so that there is something to upload.
    let data = place.path("data");
    std::fs::create_dir_all(&data).unwrap();
    let mut noise = vec![0; 700_000];
    for i in 0..12u64 {
        let mut hasher = bytes_of(round * 1000 + i);
        noise.iter_mut().for_each(|b| *b = hasher());
        std::fs::write(data.join(format!("file{i}")), &noise).unwrap();
    }
}

/// A small generator of bytes that do not compress.
fn bytes_of(seed: u64) -> impl FnMut() -> u8 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    }
}

/// How many packs are in the directory that a repository's objects are in.
fn packs(objects: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(objects.join("packs")) else { return 0 };
    entries.map(|e| std::fs::read_dir(e.unwrap().path()).unwrap().count()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_create_loses_nothing_and_its_packs_are_reused() {
    let dir = tempfile::tempdir().unwrap();
    let objects = dir.path().join("repo");
    let url = objects.to_str().unwrap().to_owned();
    let settings = Settings::of_process();
    kill_and_restore(Place { dir: dir.path().to_owned(), url, settings }, &[], &objects).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_one_that_was_killed_while_it_wrote_to_s3() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start().await.unwrap();
    let settings = Settings::new(server.variables(), None);
    let place =
        Place { dir: dir.path().to_owned(), url: format!("s3://{BUCKET}/killed"), settings };
    let objects = server.directory().join("killed");
    kill_and_restore(place, &server.variables(), &objects).await;
}

/// Kill creates in every phase; `variables` is what a victim needs to know, `objects` where to count packs.
async fn kill_and_restore(place: Place, variables: &[(String, String)], objects: &Path) {
    let cx = Context::system();
    std::fs::write(place.path("key"), generate_key_file().expose()).unwrap();
    let db = Command::new("sqlite3")
        .arg(place.path("app.db"))
        .arg("pragma journal_mode=wal; create table t(a, b); insert into t values (1, 2);")
        .status()
        .unwrap();
    assert!(db.success());
    populate(&place, 0);
    let sink = snapkit_sinks::create_with(&cx, &place.url, &place.settings).await.unwrap();
    Repository::init(&cx, &sink, &place.unlock()).await.unwrap();
    let first =
        place.open(&cx).await.create(&cx, &place.stack(), &CreateOptions::default()).await.unwrap();

    let (mut committed, mut killed, mut adopted) = (vec![first.snapshot.id], 0, 0);
    for (i, phase) in PHASES.into_iter().enumerate() {
        for kill in 0..KILLS {
            let round = 1 + i as u64 * KILLS + kill;
            populate(&place, round);
            // From at once to as long as the phase takes.
            let longest = if phase == Phase::Stream { 60_000 } else { 8_000 };
            let micros = longest * kill / KILLS;
            let mut victim = Command::new(std::env::current_exe().unwrap());
            // How fast a machine is must not decide whether a pack was there already.
            if phase == Phase::Stream && kill % 2 == 1 {
                victim.env("SNAPKIT_TEST_OBJECTS", (1 + kill % 3).to_string());
            }
            // What the machine says of stores is not meant for this one.
            for (name, _) in std::env::vars_os() {
                if name.to_string_lossy().starts_with("AWS_") {
                    victim.env_remove(name);
                }
            }
            let status = victim
                .args(["--exact", "victim"])
                .envs(variables.iter().map(|(name, value)| (name, value)))
                .env("SNAPKIT_TEST_VICTIM", &place.dir)
                .env("SNAPKIT_TEST_URL", &place.url)
                .env("SNAPKIT_TEST_PHASE", phase.as_str())
                .env("SNAPKIT_TEST_MICROS", micros.to_string())
                .stdout(std::process::Stdio::null())
                .status()
                .unwrap();
            killed += u64::from(status.signal() == Some(9));
            // Every fourth time somebody runs it again, and it must work and waste nothing.
            if kill % 4 == 3 {
                let left = packs(objects);
                let repository = place.open(&cx).await;
                let report = repository
                    .create(&cx, &place.stack(), &CreateOptions::default())
                    .await
                    .unwrap();
                adopted += report.snapshot.stats.packs_adopted;
                assert!(packs(objects) >= left);
                committed.push(report.snapshot.id);
            }
        }
    }
    assert!(killed >= 80, "only {killed} of 100 were killed in time");
    assert!(adopted > 0, "no pack of a killed run was found and reused");

    let repository = place.open(&cx).await;
    let options = VerifyOptions { read_data: true, ..VerifyOptions::default() };
    let report = repository.verify(&cx, &Place::registry(), &options).await.unwrap();
    assert!(report.is_sound(), "{:#?}", report.damage);
    let ledger = repository.ledger(&cx).await.unwrap();
    for id in &committed {
        assert!(ledger.snapshots.iter().any(|s| s.id == *id), "{id} is gone");
    }
    for (n, snapshot) in ledger.snapshots.iter().enumerate() {
        let to = RestoreTo::Directory(place.path(&format!("out{n}")));
        let options = RestoreOptions::new(to, place.path("recovery"));
        let snapshot = repository.snapshot(&cx, snapshot).await.unwrap();
        let summary =
            repository.restore(&cx, &Place::registry(), &snapshot, &options).await.unwrap();
        assert_eq!(summary.verdict, RestoreVerdict::Match, "{:#?}", summary.sources);
        std::fs::remove_dir_all(place.path(&format!("out{n}"))).unwrap();
    }
}
