//! Restores that go wrong: no target is left open, and none is changed in part.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod lab;

use std::sync::Arc;
use std::time::Duration;

use lab::{Lab, noise};
use snapkit_core::context::Context;
use snapkit_core::engine::{RestoreOptions, RestoreSummary, RestoreTo};
use snapkit_core::error::{Reason, Result};
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::manifest::Snapshot;
use snapkit_core::sink::Sink;
use snapkit_testkit::double::{
    CallLog, ScriptedArtifact, ScriptedFile, ScriptedSource, SlowSink, Stage, Trouble,
};

const STAGES: [Stage; 3] = [Stage::Restore, Stage::Put, Stage::RestoreFinish];

/// Longer than any cleaning up may take.
const LONG: Duration = Duration::from_secs(120);

fn pair(log: &CallLog) -> [ScriptedSource; 2] {
    let files = (0..40).map(|i| ScriptedFile::file(&format!("f{i}"), noise(1000, i)));
    [
        ScriptedSource::logged("a", log.clone()).with(ScriptedArtifact::tree("tree", files)),
        ScriptedSource::logged("b", log.clone())
            .with(ScriptedArtifact::bytes("x", noise(300_000, 1)))
            .with(ScriptedArtifact::bytes("y", noise(1000, 2))),
    ]
}

async fn restore(lab: &Lab, cx: &Context, snapshot: &Snapshot) -> Result<RestoreSummary> {
    let to = RestoreTo::Directory(lab.target());
    let options = RestoreOptions::new(to, lab.path("recovery"));
    lab.open().await?.restore(cx, &lab.registry(), snapshot, &options).await
}

async fn assert_clean(lab: &Lab, log: &CallLog, snapshot: &Snapshot) {
    log.assert_released();
    for source in 0..2 {
        // All of a source is there, or nothing.
        let restored = lab.restored(source);
        assert!(restored.is_empty() || lab.is_restored(source), "{:?}", restored.keys());
    }
    lab.sources.iter().for_each(|s| s.heal());
    let again = lab.restore_with(snapshot, |o| o.overwrite = true).await.unwrap();
    assert_eq!(again.verdict, RestoreVerdict::Match);
    log.assert_released();
}

#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_every_target_is_released() {
    for stage in STAGES {
        for trouble in [Trouble::Fail(Reason::Busy), Trouble::Panic, Trouble::Hang] {
            for culprit in [0, 1] {
                let log = CallLog::new();
                let lab = Lab::simulated(pair(&log)).await;
                let snapshot = lab.create().await.unwrap().snapshot;
                lab.sources[culprit].make_trouble(stage, None, trouble);
                let result = restore(&lab, &lab.cx.within(LONG), &snapshot).await;
                // All is put before anything is made visible: only the end of the second can fail after
                // the target of the first has changed, and then both are told.
                let first_stands = culprit == 1 && stage == Stage::RestoreFinish;
                let e = match result {
                    Ok(summary) if first_stands => {
                        assert_eq!(summary.verdict, RestoreVerdict::Differs);
                        assert_eq!(summary.sources.len(), 1);
                        summary.failed.unwrap()
                    }
                    result => result.unwrap_err(),
                };
                let reason = match trouble {
                    Trouble::Fail(reason) => reason,
                    Trouble::Panic => Reason::Panicked,
                    Trouble::Hang => Reason::TimedOut,
                };
                assert_eq!(e.reason(), reason, "{stage:?} {trouble:?}: {e:?}");
                let name = ["a", "b"][culprit];
                assert!(e.to_string().contains(&format!("source={name}")), "{e}");
                assert!(lab.restored(1).is_empty());
                assert_eq!(lab.is_restored(0), first_stands);
                assert_clean(&lab, &log, &snapshot).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_that_goes_wrong_holds_up_no_other() {
    for trouble in [Trouble::Fail(Reason::Busy), Trouble::Panic, Trouble::Hang] {
        let log = CallLog::new();
        let lab = Lab::simulated(pair(&log)).await;
        let snapshot = lab.create().await.unwrap().snapshot;
        lab.sources[0].make_trouble(Stage::Put, None, Trouble::Fail(Reason::NoSpace));
        lab.sources[0].make_trouble(Stage::RestoreAbort, None, trouble);
        let e = restore(&lab, &lab.cx.within(LONG), &snapshot).await.unwrap_err();
        assert_eq!(e.reason(), Reason::NoSpace);
        assert_clean(&lab, &log, &snapshot).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_is_cancelled_or_dropped_at_any_moment_lets_go() {
    for dropped in [false, true] {
        let mut done = 0;
        for millis in 0.. {
            let log = CallLog::new();
            let mut sources = pair(&log);
            for stage in STAGES.into_iter().chain([Stage::RestoreAbort]) {
                sources = sources.map(|s| s.delay(stage, Duration::from_millis(2)));
            }
            let lab = Lab::simulated(sources).await;
            let snapshot = lab.create().await.unwrap().snapshot;
            let slow = Arc::new(SlowSink::new(Arc::clone(&lab.sink), Duration::from_millis(2)));
            let repository = lab.open_on(slow as Arc<dyn Sink>).await.unwrap();
            let (cx, registry) = (lab.cx.child(), lab.registry());
            let to = RestoreTo::Directory(lab.target());
            let options = RestoreOptions::new(to, lab.path("recovery"));
            let restore = repository.restore(&cx, &registry, &snapshot, &options);
            let limit = Duration::from_millis(millis);
            let result = if dropped {
                tokio::time::timeout(limit, restore).await.ok()
            } else {
                let cancel = async {
                    lab.cx.sleep(limit).await.unwrap();
                    cx.cancel();
                };
                Some(tokio::join!(restore, cancel).0)
            };
            if dropped {
                // What is dropped cannot wait: it tidies up behind its back.
                lab.cx.sleep(Duration::from_secs(1)).await.unwrap();
            }
            match result {
                Some(Ok(RestoreSummary { failed: Some(e), sources, .. })) => {
                    assert_eq!((e.reason(), sources.len()), (Reason::Cancelled, 1));
                }
                Some(Ok(summary)) => {
                    assert_eq!(summary.verdict, RestoreVerdict::Match);
                    done += 1;
                }
                Some(Err(e)) => assert_eq!(e.reason(), Reason::Cancelled),
                None => {}
            }
            assert_clean(&lab, &log, &snapshot).await;
            if done > 2 {
                assert!(millis > 20, "too little was seen");
                break;
            }
        }
    }
}
