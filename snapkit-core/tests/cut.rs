//! The cut: in which order sources are called, and that nothing stays held on any path.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "some waits here must not end with the context")]

mod lab;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lab::{Lab, noise};
use snapkit_core::context::Context;
use snapkit_core::engine::{
    CreateOptions, CreateReport, Gate, RestoreOptions, RestoreTo, Stack, StackSource,
};
use snapkit_core::error::{Error, ErrorKind, Reason, Result};
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::manifest::CaptureVerdict;
use snapkit_core::sink::Sink;
use snapkit_core::source::FreezeSpeed;
use snapkit_testkit::double::{
    CallLog, ScriptedArtifact, ScriptedFile, ScriptedSource, SlowSink, Stage, Trouble,
};

const STAGES: [Stage; 7] = [
    Stage::Capture,
    Stage::Freeze,
    Stage::Thaw,
    Stage::Next,
    Stage::Open,
    Stage::Read,
    Stage::Finish,
];

/// Longer than any cleaning up may take.
const LONG: Duration = Duration::from_secs(120);

/// A gate that notes when it was closed and opened: how many calls the sources had seen by then.
#[derive(Debug)]
struct Door {
    log: CallLog,
    closed: Mutex<Vec<usize>>,
    opened: Mutex<Vec<usize>>,
    trouble: Option<(&'static str, Trouble)>,
}

impl Door {
    fn new(log: &CallLog, trouble: Option<(&'static str, Trouble)>) -> Arc<Self> {
        let (closed, opened) = (Mutex::default(), Mutex::default());
        Arc::new(Self { log: log.clone(), closed, opened, trouble })
    }

    async fn suffer(&self, cx: &Context, at: &str) -> Result<()> {
        match self.trouble.filter(|(when, _)| *when == at) {
            None => Ok(()),
            Some((_, Trouble::Fail(reason))) => Err(Error::new(reason, "the door is stuck")),
            Some((_, Trouble::Panic)) => panic!("the door fell off"),
            Some((_, Trouble::Hang)) => cx.run(std::future::pending()).await,
        }
    }

    fn closed(&self) -> Vec<usize> {
        self.closed.lock().unwrap().clone()
    }

    fn opened(&self) -> Vec<usize> {
        self.opened.lock().unwrap().clone()
    }

    #[track_caller]
    fn assert_open(&self) {
        let (closed, opened) = (self.closed(), self.opened());
        assert_eq!(closed.len(), opened.len(), "closed {closed:?}, opened {opened:?}");
    }
}

#[async_trait]
impl Gate for Door {
    async fn close(&self, cx: &Context) -> Result<()> {
        self.closed.lock().unwrap().push(self.log.calls().len());
        self.suffer(cx, "close").await
    }

    async fn open(&self, cx: &Context) -> Result<()> {
        self.opened.lock().unwrap().push(self.log.calls().len());
        self.suffer(cx, "open").await
    }
}

/// A slow and an instant source with one log.
fn pair(log: &CallLog) -> [ScriptedSource; 2] {
    let files = (0..40).map(|i| ScriptedFile::file(&format!("f{i}"), noise(1000, i)));
    [
        ScriptedSource::logged("slow", log.clone())
            .speed(FreezeSpeed::Slow)
            .with(ScriptedArtifact::tree("tree", files)),
        ScriptedSource::logged("quick", log.clone())
            .with(ScriptedArtifact::bytes("x", noise(300_000, 1)))
            .with(ScriptedArtifact::bytes("y", noise(1000, 2))),
    ]
}

fn gated(lab: &Lab, door: &Arc<Door>) -> Stack {
    Stack { gate: Some(Arc::clone(door) as _), ..lab.stack() }
}

async fn create(lab: &Lab, cx: &Context, stack: &Stack) -> Result<CreateReport> {
    lab.open().await?.create(cx, stack, &CreateOptions::default()).await
}

/// Nothing is held, nothing was committed, and the next run is not in the way of anything.
async fn assert_clean(lab: &Lab, log: &CallLog, door: &Door, reason: Reason) {
    log.assert_released();
    door.assert_open();
    assert_eq!(lab.aborted().await, [reason.code()]);
    let ledger = lab.open().await.unwrap().ledger(&lab.cx).await.unwrap();
    assert!(ledger.snapshots.is_empty() && ledger.damaged.is_empty());
    lab.sources.iter().for_each(|s| s.heal());
    create(lab, &lab.cx, &lab.stack()).await.unwrap();
    log.assert_released();
}

fn index_of(log: &CallLog, source: &str, stage: Stage) -> usize {
    log.calls().iter().position(|c| c.source.as_str() == source && c.stage == stage).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_order_is_prepare_close_slow_quick_thaw_open_stream() {
    let log = CallLog::new();
    let door = Door::new(&log, None);
    let [slow, quick] = pair(&log);
    let second = Duration::from_secs(1);
    let lab = Lab::simulated([
        slow.delay(Stage::Freeze, 3 * second).delay(Stage::Thaw, second),
        quick.delay(Stage::Capture, 20 * second),
        ScriptedSource::logged("other", log.clone())
            .speed(FreezeSpeed::Slow)
            .delay(Stage::Freeze, 5 * second)
            .with(ScriptedArtifact::bytes("z", noise(10, 3))),
    ])
    .await;
    let report = create(&lab, &lab.cx, &gated(&lab, &door)).await.unwrap();
    assert_eq!(report.snapshot.verdict, CaptureVerdict::Complete);
    log.assert_released();

    // Nobody is frozen before everybody is prepared, and preparing is done side by side.
    let begun = log.calls()[index_of(&log, "quick", Stage::Capture)].at;
    for slow in ["slow", "other"] {
        let frozen = &log.calls()[index_of(&log, slow, Stage::Freeze)];
        assert_eq!(frozen.at, begun + 20 * second);
        log.assert_before((slow, Stage::Frozen), ("quick", Stage::Freeze));
    }
    for held in ["slow", "other", "quick"] {
        log.assert_before(("quick", Stage::Frozen), (held, Stage::Thaw));
        for streamed in ["slow", "other", "quick"] {
            log.assert_before((held, Stage::Thaw), (streamed, Stage::Next));
        }
    }
    // The gate is closed before the first freeze, and opened after the last thaw.
    let first_freeze = log.calls().iter().position(|c| c.stage == Stage::Freeze).unwrap();
    let last_thaw = log.calls().iter().rposition(|c| c.stage == Stage::Thaw).unwrap();
    let first_next = log.calls().iter().position(|c| c.stage == Stage::Next).unwrap();
    assert!(matches!(door.closed()[..], [n] if n <= first_freeze));
    assert!(matches!(door.opened()[..], [n] if n > last_thaw && n <= first_next));
    // Five seconds: both slow ones at once, and the quick one when the slower of them was done.
    assert_eq!(report.snapshot.cut_micros, 5_000_000);
}

#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_nothing_stays_held() {
    let troubles = [Trouble::Fail(Reason::Busy), Trouble::Panic, Trouble::Hang];
    for stage in STAGES {
        for trouble in troubles {
            for culprit in [0, 1] {
                let log = CallLog::new();
                let door = Door::new(&log, None);
                let mut sources = pair(&log);
                let [slow, quick] = sources;
                sources = match culprit {
                    0 => [slow.trouble(stage, trouble), quick],
                    _ => [slow, quick.trouble(stage, trouble)],
                };
                let lab = Lab::simulated(sources).await;
                let e = create(&lab, &lab.cx.within(LONG), &gated(&lab, &door)).await.unwrap_err();
                let reason = match trouble {
                    Trouble::Fail(reason) => reason,
                    Trouble::Panic => Reason::Panicked,
                    Trouble::Hang => Reason::TimedOut,
                };
                assert_eq!(e.reason(), reason, "{stage:?} {trouble:?} {culprit}: {e:?}");
                let name = ["slow", "quick"][culprit];
                assert!(
                    e.to_string().contains(&format!("source={name}")),
                    "{stage:?} {trouble:?}: {e}"
                );
                assert_clean(&lab, &log, &door, reason).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_that_goes_wrong_holds_up_no_other() {
    let troubles = [Trouble::Fail(Reason::Busy), Trouble::Panic, Trouble::Hang];
    for trouble in troubles {
        for culprit in [0, 1] {
            // Thaw and abort of one, after the other has failed while streaming.
            for stage in [Stage::Thaw, Stage::Abort] {
                let log = CallLog::new();
                let door = Door::new(&log, None);
                let sources = pair(&log);
                sources[culprit].make_trouble(stage, None, trouble);
                sources[1 - culprit].make_trouble(Stage::Next, None, Trouble::Fail(Reason::Io));
                let lab = Lab::simulated(sources).await;
                let cx = lab.cx.within(LONG);
                let e = create(&lab, &cx, &gated(&lab, &door)).await.unwrap_err();
                assert_clean(&lab, &log, &door, e.reason()).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_goes_wrong_leaves_nothing_frozen() {
    for trouble in [Trouble::Fail(Reason::Busy), Trouble::Panic, Trouble::Hang] {
        for at in ["close", "open"] {
            let log = CallLog::new();
            let door = Door::new(&log, Some((at, trouble)));
            let lab = Lab::simulated(pair(&log)).await;
            let e = create(&lab, &lab.cx.within(LONG), &gated(&lab, &door)).await.unwrap_err();
            let frozen = log.count("slow", Stage::Freeze);
            assert_eq!(frozen, usize::from(at == "open"), "nobody is frozen behind an open gate");
            assert_clean(&lab, &log, &door, e.reason()).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hanging_thaw_does_not_keep_the_gate_closed() {
    let log = CallLog::new();
    let door = Door::new(&log, None);
    let [slow, quick] = pair(&log);
    let lab = Lab::simulated([slow, quick.trouble(Stage::Thaw, Trouble::Hang)]).await;
    let e = create(&lab, &lab.cx, &gated(&lab, &door)).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TimedOut);
    assert_eq!(door.opened().len(), 1);
    assert_clean(&lab, &log, &door, Reason::TimedOut).await;
}

#[tokio::test(start_paused = true)]
async fn a_cut_that_takes_too_long_is_no_cut() {
    let seconds = Duration::from_secs;
    let mut said = String::new();
    // Each alone would be quick enough; and one alone is not.
    for (slow_takes, quick_takes) in [(6, 6), (11, 0), (0, 11)] {
        let log = CallLog::new();
        let door = Door::new(&log, None);
        let [slow, quick] = pair(&log);
        let lab = Lab::simulated([
            slow.delay(Stage::Freeze, seconds(slow_takes)),
            quick.delay(Stage::Freeze, seconds(quick_takes)),
        ])
        .await;
        let begun = lab.cx.monotonic();
        let e = create(&lab, &lab.cx, &gated(&lab, &door)).await.unwrap_err();
        said += &format!("{slow_takes} and {quick_takes}: {}\n", e.chain());
        assert_eq!(e.reason(), Reason::TimedOut);
        let took = lab.cx.monotonic().saturating_sub(begun);
        assert!(took >= seconds(10) && took < seconds(11), "{took:?}");
        log.assert_released();
        door.assert_open();
        assert_eq!(lab.aborted().await, ["timed-out"]);
        assert_eq!(log.count("slow", Stage::Next) + log.count("quick", Stage::Next), 0);
    }
    insta::assert_snapshot!(said, @"
    6 and 6: the window of 10s in which all are to be frozen has passed (source=quick): the time limit has passed
    11 and 0: the window of 10s in which all are to be frozen has passed (source=slow): the time limit has passed
    0 and 11: the window of 10s in which all are to be frozen has passed (source=quick): the time limit has passed
    ");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_create_lets_go_at_every_stage() {
    for stage in STAGES {
        for culprit in [0, 1] {
            let log = CallLog::new();
            let door = Door::new(&log, None);
            let sources = pair(&log);
            sources[culprit].make_trouble(stage, None, Trouble::Hang);
            let lab = Lab::simulated(sources).await;
            let cx = lab.cx.child();
            let stack = gated(&lab, &door);
            let cancel = async {
                reached(&log, ["slow", "quick"][culprit], stage).await;
                cx.cancel();
                cx.monotonic()
            };
            let (result, cancelled) = tokio::join!(create(&lab, &cx, &stack), cancel);
            let e = result.unwrap_err();
            let took = cx.monotonic().saturating_sub(cancelled);
            if stage == Stage::Thaw {
                // A thaw is not given up because somebody is in a hurry, only when it takes too long.
                assert_eq!(e.reason(), Reason::TimedOut);
            } else {
                assert_eq!(e.reason(), Reason::Cancelled, "{stage:?}");
                assert!(took < Duration::from_secs(1), "{stage:?} {took:?}");
            }
            assert_clean(&lab, &log, &door, e.reason()).await;
        }
    }
}

async fn reached(log: &CallLog, source: &str, stage: Stage) {
    while log.count(source, stage) == 0 {
        tokio::time::advance(Duration::from_millis(1)).await;
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_create_that_is_cancelled_or_dropped_at_any_moment_lets_go() {
    for dropped in [false, true] {
        let mut committed = 0;
        for millis in 0.. {
            let log = CallLog::new();
            let door = Door::new(&log, None);
            let mut sources = pair(&log);
            for stage in STAGES.into_iter().chain([Stage::Abort]) {
                sources = sources.map(|s| s.delay(stage, Duration::from_millis(2)));
            }
            let lab = Lab::simulated(sources).await;
            let slow = Arc::new(SlowSink::new(Arc::clone(&lab.sink), Duration::from_millis(2)));
            let repository = lab.open_on(slow as Arc<dyn Sink>).await.unwrap();
            let cx = lab.cx.child();
            let (stack, options) = (gated(&lab, &door), CreateOptions::default());
            let limit = Duration::from_millis(millis);
            let create = repository.create(&cx, &stack, &options);
            let result = if dropped {
                tokio::time::timeout(limit, create).await.ok()
            } else {
                let cancel = async {
                    tokio::time::sleep(limit).await;
                    cx.cancel();
                };
                Some(tokio::join!(create, cancel).0)
            };
            if dropped {
                // What is dropped cannot wait: it tidies up behind its back.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            log.assert_released();
            door.assert_open();
            let aborted = lab.aborted().await;
            let ledger = lab.open().await.unwrap().ledger(&lab.cx).await.unwrap();
            // One end for the session; also for one that was perhaps not announced.
            assert_eq!(ledger.snapshots.len() + aborted.len(), 1, "{millis} ms: {aborted:?}");
            match result {
                Some(Ok(report)) => {
                    assert_eq!(ledger.snapshots[0].id, report.snapshot.id);
                    committed += 1;
                }
                Some(Err(e)) => {
                    assert_eq!(e.reason(), Reason::Cancelled);
                    assert!(ledger.snapshots.is_empty(), "{millis} ms: it was committed after all");
                }
                None => {}
            }
            if committed > 2 {
                assert!(millis > 20, "too little was seen");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_may_fail_is_let_go_before_the_create_returns() {
    for stage in STAGES {
        for trouble in [Trouble::Fail(Reason::Busy), Trouble::Panic] {
            let log = CallLog::new();
            let sources = pair(&log);
            sources[0].make_trouble(stage, None, trouble);
            let lab = Lab::simulated(sources).await;
            let mut stack = lab.stack();
            stack.sources[0] = StackSource { may_fail: true, ..stack.sources[0].clone() };
            let report = create(&lab, &lab.cx, &stack).await.unwrap();
            log.assert_released();
            assert_eq!(report.snapshot.verdict, CaptureVerdict::Partial, "{stage:?} {trouble:?}");
            assert_eq!(report.snapshot.sources[0].verdict, CaptureVerdict::Failed);
            assert_eq!(report.snapshot.sources[0].problems.count, 1);
            lab.assert_sound().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_nothing_pins_widens_the_cut_until_it_was_read() {
    let slow = |name| {
        let source = ScriptedSource::new(name).with(ScriptedArtifact::bytes("a", vec![1; 1000]));
        source.delay(Stage::Read, Duration::from_secs(5))
    };
    for (sources, width) in
        [([slow("a"), slow("b")], 0..1), ([slow("a"), slow("b").fuzzy()], 10..11)]
    {
        let lab = Lab::simulated(sources).await;
        let snapshot = lab.create().await.unwrap().snapshot;
        let seconds = snapshot.cut_micros / 1_000_000;
        assert!(width.contains(&seconds), "{seconds} s, not {width:?}");
        let ends = snapshot.sources.iter().map(|s| s.cut.as_ref().unwrap().end);
        assert!(ends.max().unwrap() <= snapshot.finished);
    }
}

#[tokio::test]
async fn a_restore_that_is_refused_leaves_no_directories() {
    let lab =
        Lab::new([ScriptedSource::new("a").with(ScriptedArtifact::bytes("a", vec![1; 9]))]).await;
    let snapshot = lab.create().await.unwrap().snapshot;
    let packs: Vec<_> =
        lab.memory.contents().into_keys().filter(|k| k.as_str().starts_with("packs/")).collect();
    for key in packs {
        lab.sink.delete(&lab.cx, &key).await.unwrap();
    }
    let target = lab.path("new/deep");
    let repeat = async |allow: bool| {
        let to = |o: &mut RestoreOptions| {
            (o.to, o.allow_damage) = (RestoreTo::Directory(target.clone()), allow);
        };
        lab.restore_with(&snapshot, to).await
    };
    assert_eq!(repeat(false).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(!lab.path("new").exists());
    let summary = repeat(true).await.unwrap();
    assert_eq!(summary.verdict, RestoreVerdict::Differs);
    assert!(summary.damaged && summary.sources[0].damaged[0].starts_with("a: "), "{summary:?}");
}
