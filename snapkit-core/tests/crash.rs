//! Crashes: a create that dies at any operation of its sink or of its disk loses nothing that was
//! committed, and what it had stored is of use to the next.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::type_complexity, reason = "a table of functions is clearest spelt out")]

mod lab;

use std::collections::BTreeMap;
use std::sync::Arc;

use lab::{Lab, chunks_in, listed_in, noise, packs_in, same_all};
use snapkit_core::context::Context;
use snapkit_core::credential::{Unlock, generate_key_file};
use snapkit_core::engine::{CreateOptions, CreateReport, Repository, VerifyOptions};
use snapkit_core::error::{ErrorKind, Reason, Result};
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::manifest::Snapshot;
use snapkit_core::sink::Sink;
use snapkit_sinks::LocalSink;
use snapkit_testkit::double::{
    Fault, FaultySink, ForgetfulDisk, RecordingSink, ScriptedArtifact, ScriptedContent,
    ScriptedFile, ScriptedSource, Timing, Verb,
};

type Contents = BTreeMap<String, ScriptedContent>;

/// What the sources hold in a generation: half of the files change from one to the next, and the noise.
fn tree(generation: u64) -> ScriptedArtifact {
    let files = (0..40u64).map(|i| {
        let seed = if i % 2 == 0 { i } else { i + 1000 * generation };
        ScriptedFile::file(
            &format!("d{}/f{i}", i % 3),
            noise(500 + usize::try_from(i).unwrap() * 97, seed),
        )
    });
    ScriptedArtifact::tree("tree", files)
}

fn advance(lab: &Lab, generation: u64, noise_len: usize) {
    lab.sources[0].set(tree(generation));
    lab.sources[1].set(ScriptedArtifact::bytes("noise", noise(noise_len, generation)));
}

/// A repository with a snapshot of the first generation; the sources are now at the second.
struct Stage {
    lab: Lab,
    first: Snapshot,
    was: [Contents; 2],
    is: [Contents; 2],
}

impl Stage {
    async fn new(lab: Lab, noise_len: usize) -> Self {
        advance(&lab, 1, noise_len);
        let first = lab.create().await.unwrap().snapshot;
        let was = [lab.live(0), lab.live(1)];
        advance(&lab, 2, noise_len);
        let is = [lab.live(0), lab.live(1)];
        Self { lab, first, was, is }
    }

    fn sources() -> [ScriptedSource; 2] {
        [ScriptedSource::new("a"), ScriptedSource::new("b")]
    }

    /// Every snapshot is whole and comes back as it was; `created` is among them.
    async fn assert_whole(&self, lab: &Lab, created: Option<&CreateReport>) {
        lab.assert_sound().await;
        let ledger = lab.open().await.unwrap().ledger(&lab.cx).await.unwrap();
        assert!(ledger.damaged.is_empty() && ledger.gone.is_empty());
        assert!(ledger.snapshots.iter().any(|s| s.id == self.first.id));
        if let Some(report) = created {
            assert!(ledger.snapshots.iter().any(|s| s.id == report.snapshot.id), "it is not there");
        }
        for snapshot in &lab.snapshots().await {
            let expected = if snapshot.id == self.first.id { &self.was } else { &self.is };
            let summary = lab.restore_with(snapshot, |o| o.overwrite = true).await.unwrap();
            assert_eq!(summary.verdict, RestoreVerdict::Match);
            for (source, expected) in expected.iter().enumerate() {
                assert!(same_all(&lab.restored(source), expected), "{}", snapshot.id);
            }
        }
    }
}

async fn create_on(lab: &Lab, sink: Arc<dyn Sink>) -> Result<CreateReport> {
    lab.open_on(sink).await?.create(&lab.cx, &lab.stack(), &CreateOptions::default()).await
}

/// How a sink fails.
const WAYS: [(fn(u64) -> Fault, Timing); 4] = [
    (Fault::nth, Timing::Before),
    (Fault::nth, Timing::After),
    (Fault::from, Timing::Before),
    (Fault::from, Timing::After),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_loses_its_sink_at_any_operation_loses_nothing() {
    let stage = Stage::new(Lab::new(Stage::sources()).await, 7_000_000).await;
    let keys = stage.lab.open().await.unwrap().credential().writer.clone();
    let (mut operations, mut reused, mut failed) = (0, 0, 0);
    for k in 1.. {
        if k > 1 && k > operations {
            break;
        }
        for (fault, timing) in WAYS {
            let lab = stage.lab.fork().await;
            let sink = Arc::new(FaultySink::new(Arc::clone(&lab.sink)));
            let repository = lab.open_on(Arc::clone(&sink) as _).await.unwrap();
            let opened = sink.operations();
            sink.fail(fault(k).timing(timing));
            let result = repository.create(&lab.cx, &lab.stack(), &CreateOptions::default()).await;
            operations = operations.max(sink.operations() - opened);
            failed += usize::from(result.is_err());
            if k % 3 == 0 {
                lab.forget_local();
            }

            // Each pack that is there is whole, and what it holds need not be stored again.
            let before = lab.memory.contents();
            let (packs, listed) = (packs_in(&before, &keys), listed_in(&before, &keys));
            let unlisted = packs.keys().filter(|id| !listed.contains(id)).count();
            stage.assert_whole(&lab, result.as_ref().ok()).await;

            let recording = Arc::new(RecordingSink::new(Arc::clone(&lab.sink)));
            let again = create_on(&lab, Arc::clone(&recording) as _).await.unwrap();
            assert_eq!(again.warnings, [""; 0], "{k} {timing:?}");
            assert_eq!(again.snapshot.stats.packs_adopted, unlisted as u64);
            let mut stored = packs_in(&lab.memory.contents(), &keys);
            stored.retain(|id, _| !packs.contains_key(id));
            assert_eq!(recording.count(Verb::Put, "packs/"), stored.len(), "a pack was put twice");
            let twice: Vec<_> = chunks_in(stored.values())
                .intersection(&chunks_in(packs.values()))
                .copied()
                .collect();
            assert!(twice.is_empty(), "{k} {timing:?}: stored again: {twice:?}");
            reused += unlisted;
            stage.assert_whole(&lab, Some(&again)).await;
            assert!(
                packs_in(&lab.memory.contents(), &keys).len()
                    == listed_in(&lab.memory.contents(), &keys).len()
            );
        }
    }
    assert!(operations >= 8 && failed > 20 && reused > 5, "{operations} {failed} {reused}");
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_a_commit() {
    let stage = Stage::new(Lab::new(Stage::sources()).await, 10_000).await;
    let line = || Fault::nth(1).under("snapshots/");
    // The answer is lost; and so is the first question whether it was carried out.
    for questions_fail in [false, true] {
        let lab = stage.lab.fork().await;
        let mut sink: Arc<dyn Sink> = Arc::clone(&lab.sink);
        if questions_fail {
            sink = Arc::new(FaultySink::with(sink, line().of(Verb::Get)));
        }
        let sink = FaultySink::with(sink, line().of(Verb::Put).after());
        let report = create_on(&lab, Arc::new(sink)).await.unwrap();
        stage.assert_whole(&lab, Some(&report)).await;
        assert!(lab.aborted().await.is_empty());
    }
    // It was not carried out: then it never will be.
    let lab = stage.lab.fork().await;
    let sink = FaultySink::with(Arc::clone(&lab.sink), line().of(Verb::Put));
    let e = create_on(&lab, Arc::new(sink)).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Unavailable);
    assert_eq!(lab.aborted().await, ["unavailable"]);
    stage.assert_whole(&lab, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_loses_its_sink_is_an_error_and_never_a_wrong_byte() {
    let stage = Stage::new(Lab::new(Stage::sources()).await, 7_000_000).await;
    let snapshot = stage.lab.create().await.unwrap().snapshot;
    for allow_damage in [false, true] {
        for cold in [false, true] {
            for (fault, timing) in WAYS {
                let mut failed = 0;
                for k in 1.. {
                    let lab = stage.lab.fork().await;
                    if cold {
                        lab.forget_local();
                    }
                    let sink = Arc::new(FaultySink::new(Arc::clone(&lab.sink)));
                    let repository = lab.open_on(Arc::clone(&sink) as _).await.unwrap();
                    sink.fail(fault(k).timing(timing));
                    let result = lab
                        .restore_by(&repository, &snapshot, |o| o.allow_damage = allow_damage)
                        .await;
                    match &result {
                        Ok(summary) => {
                            assert_eq!(
                                summary.verdict,
                                RestoreVerdict::Match,
                                "{k} {:#?}",
                                summary.sources
                            );
                            assert!(!summary.damaged && lab.is_restored(0) && lab.is_restored(1));
                        }
                        // The network is not the repository: nothing is said to be damaged.
                        Err(e) => {
                            assert_eq!(e.kind(), ErrorKind::Unavailable, "{k} {timing:?}: {e:?}");
                            failed += 1;
                            assert!(lab.restored(1).is_empty(), "it is there in part");
                            assert!(lab.restored(0).is_empty() || lab.is_restored(0));
                        }
                    }
                    lab.sources.iter().for_each(|s| s.log().assert_released());
                    if sink.failures() == 0 {
                        break;
                    }
                }
                assert!(failed >= 5, "{failed}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verify_that_loses_its_sink_is_an_error_and_no_damage() {
    let stage = Stage::new(Lab::new(Stage::sources()).await, 4_000_000).await;
    stage.lab.create().await.unwrap();
    let options = VerifyOptions { read_data: true, ..VerifyOptions::default() };
    for cold in [false, true] {
        for (fault, timing) in WAYS {
            let mut failed = 0;
            for k in 1.. {
                let lab = stage.lab.fork().await;
                if cold {
                    lab.forget_local();
                }
                let sink = Arc::new(FaultySink::new(Arc::clone(&lab.sink)));
                let repository = lab.open_on(Arc::clone(&sink) as _).await.unwrap();
                sink.fail(fault(k).timing(timing));
                match repository.verify(&lab.cx, &lab.registry(), &options).await {
                    Ok(report) => {
                        assert!(report.is_sound(), "{k} {timing:?}: {:#?}", report.damage);
                    }
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::Unavailable, "{k} {timing:?}: {e:?}");
                        failed += 1;
                    }
                }
                if sink.failures() == 0 {
                    break;
                }
            }
            assert!(failed >= 10, "{failed}");
        }
    }
}

async fn local(cx: &Context, disk: &ForgetfulDisk) -> Arc<dyn Sink> {
    Arc::new(LocalSink::with_disk(cx, disk.clone(), "/forgetful").await.unwrap())
}

/// What may be left by a loss of power: nothing that was not flushed, all of it, and something between.
fn seeds(k: u64) -> [u64; 3] {
    [0, 1, k + 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_whose_disk_loses_power_at_any_operation_loses_nothing() {
    let cx = Context::system();
    let disk = ForgetfulDisk::new();
    let lab = Lab::on(cx.clone(), local(&cx, &disk).await, Stage::sources()).await;
    let stage = Stage::new(lab, 50_000).await;
    let count = {
        let disk = disk.fork();
        let lab = stage.lab.fork_on(local(&cx, &disk).await);
        disk.revive();
        lab.create().await.unwrap();
        disk.operations()
    };
    // Every other operation of the run, and moments after its end: frames are spread over packs at random, so that a
    // run may have a few operations more.
    let (mut committed, mut died) = (0, 0);
    for k in (1..=count).step_by(2).chain([count + 50, count + 100]) {
        let dying = disk.fork();
        let lab = stage.lab.fork_on(local(&cx, &dying).await);
        let repository = lab.open().await.unwrap();
        dying.revive();
        dying.die_at(k);
        let result = repository.create(&cx, &lab.stack(), &CreateOptions::default()).await;
        committed += usize::from(result.is_ok());
        died += usize::from(result.is_err());
        for seed in seeds(k) {
            let back = dying.fork();
            back.crash(seed);
            let lab = lab.fork_on(local(&cx, &back).await);
            if seed > 1 {
                lab.forget_local();
            }
            stage.assert_whole(&lab, result.as_ref().ok()).await;
            let again = lab.create().await.unwrap();
            assert_eq!(again.warnings, [""; 0]);
            stage.assert_whole(&lab, Some(&again)).await;
        }
    }
    assert!(count > 40 && committed >= 2 && died > 20, "{count} {committed} {died}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_is_left_on_a_real_disk_is_committed_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let cx = Context::system();
    let sink: Arc<dyn Sink> = Arc::new(LocalSink::create(&cx, dir.path()).await.unwrap());
    let lab = Lab::on(cx, sink, Stage::sources()).await;
    let repository = lab.open().await.unwrap();
    let (mut committed, mut left, mut ended) = (0, 0, 0);
    for generation in 0..60 {
        advance(&lab, generation, 300_000);
        let cx = lab.cx.child();
        let (stack, options) = (lab.stack(), CreateOptions::default());
        let limit = std::time::Duration::from_micros(200 * generation);
        let create = repository.create(&cx, &stack, &options);
        let result = if generation >= 56 {
            Some(create.await)
        } else if generation % 2 == 0 {
            let cancel = async {
                lab.cx.sleep(limit).await.unwrap();
                cx.cancel();
            };
            Some(tokio::join!(create, cancel).0)
        } else {
            tokio::time::timeout(limit, create).await.ok()
        };
        // What was under way on the disk comes to its end; then everything is decided.
        // A create that was left before it began has no session, so the wait has an end.
        let mut ledger = repository.ledger(&lab.cx).await.unwrap();
        for _ in 0..20 {
            lab.cx.sleep(std::time::Duration::from_millis(30)).await.unwrap();
            let seen = std::mem::replace(&mut ledger, repository.ledger(&lab.cx).await.unwrap());
            if ended < ledger.ids().count() && seen.ids().eq(ledger.ids()) {
                break;
            }
        }
        ended = ledger.ids().count();
        let new = ledger.snapshots.len() - committed;
        match result {
            Some(Ok(report)) => {
                assert!(new == 1 && ledger.snapshots.iter().any(|s| s.id == report.snapshot.id));
                let summary =
                    lab.restore_with(&report.snapshot, |o| o.overwrite = true).await.unwrap();
                assert_eq!(summary.verdict, RestoreVerdict::Match);
            }
            Some(Err(e)) => {
                assert_eq!(e.reason(), Reason::Cancelled, "{e:?}");
                assert_eq!(new, 0, "it was committed after all");
                left += 1;
            }
            None => left += 1,
        }
        committed += new;
        lab.sources.iter().for_each(|s| s.log().assert_released());
    }
    assert!(committed > 3 && left > 10, "{committed} {left}");
    lab.assert_sound().await;
}

#[tokio::test]
async fn an_init_whose_disk_loses_power_leaves_a_repository_or_none() {
    let cx = Context::system();
    let unlock = Unlock::KeyFile(generate_key_file());
    let (mut there, mut not_there) = (0, 0);
    for k in 1.. {
        let disk = ForgetfulDisk::new();
        let sink = local(&cx, &disk).await;
        disk.revive();
        disk.die_at(k);
        let result = Repository::init(&cx, &sink, &unlock).await;
        for seed in seeds(k) {
            let back = disk.fork();
            back.crash(seed);
            let sink = local(&cx, &back).await;
            match Repository::peek(&cx, &sink).await {
                Ok(_) => there += 1,
                Err(e) => {
                    assert!(result.is_err(), "{k} {seed}: {e}");
                    assert_eq!(e.reason(), Reason::NoRepository, "{k} {seed}");
                    Repository::init(&cx, &sink, &unlock).await.unwrap();
                    not_there += 1;
                }
            }
            let lab = Lab { unlock: unlock.clone(), ..Lab::bare(&cx, sink) };
            lab.open().await.unwrap();
        }
        if result.is_ok() {
            break;
        }
    }
    assert!(there > 3 && not_there > 20, "{there} {not_there}");
}
