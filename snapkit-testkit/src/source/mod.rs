//! Conformance of sources: what [`Source`], `Capture` and `Restore` promise, sentence by
//! sentence, with no engine between capture and restore.
//!
//! An author implements [`Harness`] for the system at hand and calls [`all`], or the functions that
//! apply. Each panics when a sentence does not hold.

mod damage;
mod stage;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use snapkit_core::artifact::Shape;
use snapkit_core::context::Context;
use snapkit_core::error::{ErrorKind, Reason, Result};
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::source::{Consistency, RestoreRequest, Source, Target};

use crate::verdict::{hold, must, must_fail};
use damage::{Damage, damage};
use stage::{Stage, Taken, begin_to_read};
use watch::read;

/// What a system holds, as names and values that must be equal after a restore. Whatever a restore
/// cannot bring back (inode numbers, server ids) does not belong here.
pub type State = BTreeMap<String, String>;

/// What the suite needs to know of the system that a source captures.
#[async_trait]
pub trait Harness: Send + Sync {
    /// A live system: a server, a scratch directory. Its value dropped, it is gone.
    type System: Send + Sync;

    /// A system that holds something of every sort: at least two things, so that they can be
    /// confused, and content that is no text.
    async fn populated(&self, cx: &Context) -> Result<Self::System>;

    /// A system that a restore accepts as empty.
    async fn empty(&self, cx: &Context) -> Result<Self::System>;

    /// Change some of what a system holds, and leave some as it is.
    async fn mutate(&self, cx: &Context, system: &Self::System) -> Result<()>;

    /// What a system holds.
    async fn state(&self, cx: &Context, system: &Self::System) -> Result<State>;

    /// What captures and restores hold in and beside a system at this time, named for people: locks,
    /// spools, snapshots on the server, staging directories. Empty when all are released.
    async fn held(&self, cx: &Context, system: &Self::System) -> Result<Vec<String>>;

    /// A source that captures this system.
    fn source(&self, system: &Self::System) -> Arc<dyn Source>;

    /// The source, and the target to give it, that put what was captured from `origin` into `target`.
    fn restorer(&self, origin: &Self::System, target: &Self::System) -> (Arc<dyn Source>, Target);

    /// Passwords, tokens and the like that the source was built with; none may be seen anywhere.
    fn secrets(&self) -> Vec<String>;
}

/// Run the whole suite.
pub async fn all<H: Harness>(cx: &Context, harness: &H) {
    what_is_captured_comes_back(cx, harness).await;
    what_is_pinned_stays_pinned(cx, harness).await;
    names_are_unique_and_stable(cx, harness).await;
    bodies_can_be_read_side_by_side(cx, harness).await;
    equal_fingerprints_mean_equal_content(cx, harness).await;
    an_aborted_capture_releases_everything(cx, harness).await;
    an_aborted_restore_leaves_the_target(cx, harness).await;
    damage_is_refused(cx, harness).await;
    checks_tell_good_from_damaged(cx, harness).await;
    a_target_that_holds_something_is_refused(cx, harness).await;
    secrets_are_not_shown(cx, harness).await;
}

/// Captured, passed straight into a restore and read back, everything is as it was, and the facts
/// prove it. Capturing changed nothing, and nothing is held afterwards.
pub async fn what_is_captured_comes_back<H: Harness>(cx: &Context, harness: &H) {
    let stage = Stage::new(cx, harness).await;
    let before = stage.state(&stage.origin).await;
    hold!(!before.is_empty(), "a populated system holds something");
    let taken = stage.take().await;
    let live = must("facts of the live system are told", stage.source.facts(cx).await);
    let comparison = taken.record.facts.compare(&live);
    hold!(
        comparison.verdict != RestoreVerdict::Differs,
        "facts of a quiet system do not differ from those of its capture: {comparison:?}"
    );
    let report = stage.restore_into(&stage.target, &taken).await;
    hold!(
        report.problems.is_empty() && report.problem_count == 0 && report.differences.is_empty(),
        "a restore of everything has no problems: {report:?}"
    );
    let comparison = taken.record.facts.compare(&report.facts);
    hold!(
        comparison.verdict == RestoreVerdict::Match,
        "the facts of a restored target match: {comparison:?}"
    );
    stage.same("a restored target holds what was captured", &before, &stage.target).await;
    stage.same("a capture leaves the system as it is", &before, &stage.origin).await;
    stage.nothing_held("after finish").await;
}

/// Where a cut claims one moment, what changes after the thaw is not in the capture.
pub async fn what_is_pinned_stays_pinned<H: Harness>(cx: &Context, harness: &H) {
    let stage = Stage::new(cx, harness).await;
    let before = stage.state(&stage.origin).await;
    let taken = stage.take().await;
    if taken.cut.consistency != Consistency::Point {
        return;
    }
    let mut capture = stage.capture().await;
    must("a freeze succeeds", capture.freeze(cx).await);
    must("a thaw succeeds", capture.thaw(cx).await);
    must("the harness changes its system", harness.mutate(cx, &stage.origin).await);
    hold!(stage.state(&stage.origin).await != before, "the harness really changes its system");
    let report = stage.pass(capture, &stage.target, &taken).await;
    stage.same("what changes after the thaw is not captured", &before, &stage.target).await;
    let comparison = taken.record.facts.compare(&report.facts);
    hold!(comparison.verdict == RestoreVerdict::Match, "pinned facts are pinned: {comparison:?}");
    stage.nothing_held("after finish").await;
}

/// No two artifacts have one name, and two captures of an unchanged system name the same ones in the
/// same order.
pub async fn names_are_unique_and_stable<H: Harness>(cx: &Context, harness: &H) {
    let stage = Stage::new(cx, harness).await;
    let (first, second) = (stage.take().await, stage.take().await);
    let names = |t: &Taken| t.metas().map(|m| m.name.clone()).collect::<Vec<_>>();
    let unique: BTreeSet<_> = names(&first).into_iter().collect();
    hold!(unique.len() == names(&first).len(), "names are unique: {:?}", names(&first));
    hold!(names(&first) == names(&second), "the order of artifacts is stable");
    hold!(!unique.is_empty(), "a populated system has artifacts");
    for meta in first.metas() {
        if let Some(fingerprint) = &meta.fingerprint {
            hold!(fingerprint.0.len() <= 1024, "a fingerprint has at most 1 KiB");
        }
    }
}

/// As many bodies as the source allows are read in turns, and carry the same as one by one.
pub async fn bodies_can_be_read_side_by_side<H: Harness>(cx: &Context, harness: &H) {
    let stage = Stage::new(cx, harness).await;
    let taken = stage.take().await;
    let concurrency = stage.source.info().concurrency;
    hold!(concurrency >= 1, "at least one body can be read");
    let (mut capture, metas) = stage.named().await;
    for group in metas.chunks(concurrency) {
        let mut bodies = Vec::new();
        for meta in group {
            bodies.push((meta, must("an artifact opens", capture.open(cx, &meta.name).await)));
        }
        let reads = bodies.into_iter().map(|(meta, body)| async move {
            (meta, must("bodies are read side by side", read(cx, &meta.name, body).await))
        });
        for (meta, carried) in futures_util::future::join_all(reads).await {
            if taken.cut.consistency == Consistency::Point {
                let alone = &taken.carried[meta.name.as_str()];
                hold!(carried == *alone, "{} carries the same, however it is read", meta.name);
            }
        }
    }
    must("a second thaw does nothing", capture.thaw(cx).await);
    must("a finish succeeds", capture.finish(cx).await);
    stage.nothing_held("after finish").await;
}

/// Artifacts with equal fingerprints carry equal content, before and after the system changed.
pub async fn equal_fingerprints_mean_equal_content<H: Harness>(cx: &Context, harness: &H) {
    let stage = Stage::new(cx, harness).await;
    let mut known: BTreeMap<(String, String), blake3::Hash> = BTreeMap::new();
    for round in 0..3 {
        if round == 2 {
            must("the harness changes its system", harness.mutate(cx, &stage.origin).await);
        }
        let taken = stage.take().await;
        for meta in taken.metas() {
            let Some(fingerprint) = &meta.fingerprint else { continue };
            let digest = taken.carried[meta.name.as_str()].digest;
            let place = (meta.name.to_string(), fingerprint.0.clone());
            hold!(
                *known.entry(place).or_insert(digest) == digest,
                "{} has an unchanged fingerprint and other content",
                meta.name
            );
        }
    }
}

/// Aborted at any stage, a capture releases everything, leaves the system as it is, and the next
/// capture works.
pub async fn an_aborted_capture_releases_everything<H: Harness>(cx: &Context, harness: &H) {
    let stage = Stage::new(cx, harness).await;
    let before = stage.state(&stage.origin).await;
    for point in 0..8 {
        let mut capture = stage.capture().await;
        let mut body = None;
        if point >= 1 {
            if point == 7 {
                let stopped = cx.child();
                stopped.cancel();
                // Whether it notices in time is its own affair; that it can be ended is not.
                drop(capture.freeze(&stopped).await);
            } else {
                must("a freeze succeeds", capture.freeze(cx).await);
            }
            must("a thaw succeeds", capture.thaw(cx).await);
        }
        if point >= 2 {
            must("a second thaw does nothing", capture.thaw(cx).await);
        }
        if (3..7).contains(&point) {
            let meta = must("an artifact is named", capture.next(cx).await);
            let Some(meta) = meta else {
                panic!("contract broken: a populated system has artifacts")
            };
            if point >= 4 {
                body = Some(must("an artifact opens", capture.open(cx, &meta.name).await));
            }
        }
        if point >= 5 {
            body = match body {
                Some(body) => Some(begin_to_read(cx, body).await),
                None => None,
            };
        }
        if point != 6 {
            body = None;
        }
        let cleanup = cx.for_cleanup(Duration::from_secs(30));
        must("an abort succeeds", capture.abort(&cleanup).await);
        drop(body);
        stage.nothing_held(&format!("after abort at point {point}")).await;
        stage.same("an aborted capture leaves the system as it is", &before, &stage.origin).await;
    }
    stage.take().await;
}

/// Aborted before or after puts, a restore leaves the target as it was found, and the next restore
/// works.
pub async fn an_aborted_restore_leaves_the_target<H: Harness>(cx: &Context, harness: &H) {
    let stage = Stage::new(cx, harness).await;
    let taken = stage.take().await;
    let before = stage.state(&stage.target).await;
    for puts in [0, 1, usize::MAX] {
        let (capture, metas) = stage.named().await;
        let mut restore = stage.restore(&stage.target, &taken).await;
        for meta in metas.iter().take(puts) {
            let body = must("an artifact opens", capture.open(cx, &meta.name).await);
            must("a put succeeds", restore.put(cx, meta, body).await);
        }
        must("an abort succeeds", restore.abort(cx).await);
        must("a finish succeeds", capture.finish(cx).await);
        stage.same("an aborted restore leaves the target as it was", &before, &stage.target).await;
        stage.nothing_held("after an aborted restore").await;
    }
    stage.restore_into(&stage.target, &taken).await;
}

/// A body that turns out to be damaged makes its put fail with `corrupt`, and the abort that follows
/// leaves the target as it was. Damage in single files of a tree may also be reported by the end.
pub async fn damage_is_refused<H: Harness>(cx: &Context, harness: &H) {
    let stage = Stage::new(cx, harness).await;
    let taken = stage.take().await;
    let before = stage.state(&stage.target).await;
    for damaged in taken.metas().take(8) {
        let carried = &taken.carried[damaged.name.as_str()];
        let whole = match damaged.shape {
            Shape::Bytes => carried.bytes,
            _ => carried.items,
        };
        for at in BTreeSet::from([0, whole / 2, whole]) {
            let (capture, restore, result) =
                stage.put_damaged(&stage.target, &taken, damaged, Damage::After(at)).await;
            let Err(error) = result else {
                panic!("contract broken: {} damaged after {at} of {whole} is refused", damaged.name)
            };
            hold!(error.kind() == ErrorKind::Corrupt, "damage stays `corrupt`: {error:?}");
            must("an abort after a failed put succeeds", restore.abort(cx).await);
            must("a finish succeeds", capture.finish(cx).await);
            stage.same("damage leaves the target as it was", &before, &stage.target).await;
            stage.nothing_held("after a damaged restore").await;
        }
        if damaged.shape == Shape::Tree && carried.files > 0 {
            let target = must("the harness makes an empty system", harness.empty(cx).await);
            let (capture, restore, result) =
                stage.put_damaged(&target, &taken, damaged, Damage::Files).await;
            match result {
                Err(error) => {
                    hold!(error.kind() == ErrorKind::Corrupt, "damage stays `corrupt`: {error:?}");
                    must("an abort after a failed put succeeds", restore.abort(cx).await);
                    stage.same("damage leaves the target as it was", &before, &target).await;
                }
                Ok(()) => {
                    if let Ok(report) = restore.finish(cx).await {
                        hold!(report.problem_count > 0, "damaged files are reported: {report:?}");
                    }
                }
            }
            must("a finish succeeds", capture.finish(cx).await);
        }
    }
}

/// `check` finds nothing in what was captured, something in what is damaged, and touches nothing.
pub async fn checks_tell_good_from_damaged<H: Harness>(cx: &Context, harness: &H) {
    let stage = Stage::new(cx, harness).await;
    let taken = stage.take().await;
    let before = stage.state(&stage.origin).await;
    let (good, metas) = stage.named().await;
    let (bad, _) = stage.named().await;
    for meta in &metas {
        let body = must("an artifact opens", good.open(cx, &meta.name).await);
        let findings = must("a check is done", stage.source.check(cx, meta, body).await);
        hold!(findings.0.is_empty(), "nothing is wrong with {}: {findings:?}", meta.name);
        let carried = &taken.carried[meta.name.as_str()];
        let half = if meta.shape == Shape::Bytes { carried.bytes } else { carried.items } / 2;
        let body = must("an artifact opens", bad.open(cx, &meta.name).await);
        let body = damage(body, Damage::After(half));
        let checked = stage.source.check(cx, meta, body).await;
        hold!(
            checked.as_ref().map_or(true, |f| !f.0.is_empty()),
            "a check of damaged {} fails or finds something: {checked:?}",
            meta.name
        );
    }
    must("a finish succeeds", good.finish(cx).await);
    must("a finish succeeds", bad.finish(cx).await);
    stage.same("a check leaves the system as it is", &before, &stage.origin).await;
    stage.nothing_held("after checks").await;
}

/// A restore into a target that holds something is refused with `target-not-empty`, and the target
/// stays as it is.
pub async fn a_target_that_holds_something_is_refused<H: Harness>(cx: &Context, harness: &H) {
    let stage = Stage::new(cx, harness).await;
    let taken = stage.take().await;
    let full = must("the harness makes a populated system", harness.populated(cx).await);
    must("the harness changes its system", harness.mutate(cx, &full).await);
    let before = stage.state(&full).await;
    let (restorer, target) = harness.restorer(&stage.origin, &full);
    let request = RestoreRequest::new(target, taken.record.clone());
    let refused = restorer.restore(cx, &request).await.map(drop);
    must_fail("a target that holds something is refused", Reason::TargetNotEmpty, refused);
    stage.same("a refused target stays as it is", &before, &full).await;
}

/// No secret shows in what a source prints, states or writes into a snapshot.
pub async fn secrets_are_not_shown<H: Harness>(cx: &Context, harness: &H) {
    let stage = Stage::new(cx, harness).await;
    let taken = stage.take().await;
    let (restorer, _) = harness.restorer(&stage.origin, &stage.target);
    let shown = [
        ("Debug", format!("{:?} {:#?}", stage.source, restorer)),
        ("info", format!("{:?}", stage.source.info())),
        ("settings", stage.source.info().settings.to_string()),
        ("its record", must("a record is written", serde_json::to_string(&taken.record))),
    ];
    for secret in harness.secrets() {
        for (place, text) in &shown {
            hold!(!text.contains(&secret), "no secret shows in {place}");
        }
    }
}
