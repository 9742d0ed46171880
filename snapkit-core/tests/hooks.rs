//! Hooks run on every path, in their order, and probes count.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod lab;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lab::Lab;
use snapkit_core::context::Context;
use snapkit_core::engine::{CreateOptions, Hooks, Moment, Occasion, Probe, Stack};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::facts::RestoreVerdict;
use snapkit_testkit::double::{ScriptedArtifact, ScriptedSource, Stage, Trouble};

#[derive(Debug, Default)]
struct Noting {
    seen: Mutex<Vec<String>>,
    /// What goes wrong, and how.
    wrong: Mutex<Option<(Moment, Reason)>>,
    /// What was told of the failure last.
    told: Mutex<Option<String>>,
    /// When it is never done.
    hangs: Mutex<Option<Moment>>,
}

#[async_trait]
impl Hooks for Noting {
    async fn run(&self, cx: &Context, occasion: &Occasion) -> Result<()> {
        let moment = occasion.moment;
        let verdict = occasion.verdict.map(|v| format!(" {v}")).unwrap_or_default();
        let failure = occasion.failure.as_ref().map(|(r, _)| format!(" {r}")).unwrap_or_default();
        self.seen.lock().unwrap().push(format!("{}{verdict}{failure}", moment.as_str()));
        *self.told.lock().unwrap() = occasion.failure.as_ref().map(|(_, text)| text.clone());
        if *self.hangs.lock().unwrap() == Some(moment) {
            cx.run(std::future::pending()).await?;
        }
        let wrong = *self.wrong.lock().unwrap();
        match wrong {
            Some((at, Reason::Panicked)) if at == moment => panic!("a hook that panics"),
            Some((at, reason)) if at == moment => Err(Error::new(reason, "wrong")),
            _ => Ok(()),
        }
    }
}

impl Noting {
    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    fn go_wrong(&self, at: Moment, reason: Reason) {
        *self.wrong.lock().unwrap() = Some((at, reason));
    }
}

async fn scene() -> (Lab, Arc<Noting>, Stack) {
    let source = ScriptedSource::new("a").with(ScriptedArtifact::bytes("x", vec![1; 1000]));
    let lab = Lab::new([source]).await;
    let hooks = Arc::<Noting>::default();
    let stack = Stack { hooks: Some(Arc::clone(&hooks) as _), ..lab.stack() };
    (lab, hooks, stack)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_has_its_moments() {
    let (lab, hooks, stack) = scene().await;
    let repository = lab.open().await.unwrap();
    let create = async || repository.create(&lab.cx, &stack, &CreateOptions::default()).await;
    create().await.unwrap();
    assert_eq!(hooks.taken(), ["before:freeze", "after:thaw", "finally complete"]);

    for (reason, failed) in
        [(Reason::HookFailed, true), (Reason::NotNow, false), (Reason::Panicked, true)]
    {
        hooks.go_wrong(Moment::BeforeFreeze, reason);
        assert_eq!(create().await.unwrap_err().reason(), reason);
        let mut expected = vec!["before:freeze".to_owned(), format!("after:thaw {reason}")];
        expected.extend(failed.then(|| format!("failed {reason}")));
        expected.push(format!("finally {reason}"));
        assert_eq!(hooks.taken(), expected);
    }
    // What fails afterwards is told, and the snapshot is there.
    for moment in [Moment::AfterThaw, Moment::Finally] {
        hooks.go_wrong(moment, Reason::HookFailed);
        let report = create().await.unwrap();
        assert_eq!(report.hooks_failed.len(), 1);
        repository.manifest().get(&lab.cx, &report.snapshot.id).await.unwrap();
        hooks.taken();
    }
    // A source that fails between the two.
    hooks.wrong.lock().unwrap().take();
    lab.sources[0].make_trouble(Stage::Freeze, None, Trouble::Fail(Reason::Unavailable));
    assert!(create().await.is_err());
    let expected = ["before:freeze", "after:thaw", "failed unavailable", "finally unavailable"];
    assert_eq!(hooks.taken(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_or_dropped_is_tidied_up() {
    let (lab, hooks, stack) = scene().await;
    let repository = lab.open().await.unwrap();
    *hooks.hangs.lock().unwrap() = Some(Moment::BeforeFreeze);
    let cx = lab.cx.child();
    let options = CreateOptions::default();
    let cancelling = async {
        lab.cx.sleep(Duration::from_millis(50)).await.unwrap();
        cx.cancel();
    };
    let (created, ()) = futures_util::join!(repository.create(&cx, &stack, &options), cancelling);
    assert_eq!(created.unwrap_err().reason(), Reason::Cancelled);
    let expected =
        ["before:freeze", "after:thaw cancelled", "failed cancelled", "finally cancelled"];
    assert_eq!(hooks.taken(), expected);
    // Nobody waits for it any more.
    let waited = tokio::time::timeout(
        Duration::from_millis(50),
        repository.create(&lab.cx, &stack, &options),
    );
    assert!(waited.await.is_err());
    for _ in 0..100 {
        if hooks.seen.lock().unwrap().len() == 4 {
            break;
        }
        lab.cx.sleep(Duration::from_millis(20)).await.unwrap();
    }
    assert_eq!(hooks.taken(), expected);
    assert_eq!(hooks.told.lock().unwrap().as_deref(), Some("the run was given up"));
}

#[derive(Debug)]
struct Asked(Result<(), Reason>);

#[async_trait]
impl Probe for Asked {
    fn name(&self) -> &str {
        "asked"
    }

    async fn probe(&self, _: &Context) -> Result<()> {
        self.0.map_err(|reason| Error::new(reason, "it does not work"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_has_its_moments_and_its_probes() {
    let (lab, hooks, _) = scene().await;
    let snapshot = lab.create().await.unwrap().snapshot;
    let restore = async |probe: Result<(), Reason>| {
        let hooks = Arc::clone(&hooks);
        lab.restore_with(&snapshot, |options| {
            options.overwrite = true;
            options.hooks = Some(hooks);
            options.probes = vec![Arc::new(Asked(probe))];
        })
        .await
    };
    let summary = restore(Ok(())).await.unwrap();
    assert_eq!((summary.verdict, summary.probes.len()), (RestoreVerdict::Match, 1));
    let expected = ["before:restore", "after:restore match", "finally match"];
    assert_eq!(hooks.taken(), expected);
    let summary = restore(Err(Reason::Unavailable)).await.unwrap();
    assert_eq!(summary.verdict, RestoreVerdict::Differs);
    assert_eq!(summary.sources[0].verdict, RestoreVerdict::Match);
    assert!(summary.probes[0].failure.as_ref().unwrap().contains("does not work"));
    hooks.taken();
    hooks.go_wrong(Moment::BeforeRestore, Reason::HookFailed);
    assert!(restore(Ok(())).await.is_err());
    let expected = ["before:restore", "failed hook-failed", "finally hook-failed"];
    assert_eq!(hooks.taken(), expected);
    hooks.go_wrong(Moment::AfterRestore, Reason::HookFailed);
    let summary = restore(Ok(())).await.unwrap();
    assert_eq!((summary.hooks_failed.len(), summary.verdict), (1, RestoreVerdict::Match));
}
