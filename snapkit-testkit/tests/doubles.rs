//! The doubles do what they say.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use snapkit_core::Context;
use snapkit_core::context::{Simulated, Timestamp};
use snapkit_core::error::{Reason, Result};
use snapkit_core::key::Key;
use snapkit_core::memory::MemorySink;
use snapkit_core::progress::{Counter, Phase, Silent};
use snapkit_core::sink::{Put, PutMode, Sink};
use snapkit_testkit::double::{
    Fault, FaultySink, RecordingProgress, RecordingSink, SlowSink, Timing, Verb,
};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

async fn put(cx: &Context, sink: &dyn Sink, name: &str) -> Result<Put> {
    sink.put(cx, &key(name), Bytes::from_static(b"12345"), PutMode::Create).await
}

#[tokio::test]
async fn wrappers_that_do_nothing_pass_the_suite() {
    let cx = Context::system();
    snapkit_testkit::sink::all(&cx, async || {
        let recording = RecordingSink::new(Arc::new(MemorySink::new()));
        let slow = SlowSink::new(Arc::new(recording), Duration::ZERO);
        Arc::new(FaultySink::new(Arc::new(slow))) as Arc<dyn Sink>
    })
    .await;
}

#[tokio::test]
async fn operations_are_recorded() {
    let cx = Context::system();
    let sink = RecordingSink::new(Arc::new(MemorySink::new()));
    put(&cx, &sink, "packs/a").await.unwrap();
    put(&cx, &sink, "packs/a").await.unwrap();
    sink.get(&cx, &key("packs/a"), Some(1..3)).await.unwrap();
    sink.get(&cx, &key("config"), None).await.unwrap_err();
    sink.list(&cx, Some(&key("packs"))).try_collect::<Vec<_>>().await.unwrap();
    sink.delete(&cx, &key("packs/a")).await.unwrap();

    sink.assert_count(Verb::Put, "packs/", 2);
    sink.assert_at_most(Verb::Get, "", 2);
    sink.assert_none(Verb::Delete, "config");
    assert_eq!((sink.bytes(Verb::Put, ""), sink.bytes(Verb::Get, "")), (10, 2));
    let seen = sink.operations();
    assert_eq!((seen[0].put, seen[1].put), (Some(Put::Stored), Some(Put::AlreadyThere)));
    assert_eq!((seen[2].error, seen[3].error), (None, Some(Reason::NotFound)));
    assert_eq!((seen[4].verb, seen[4].size, seen[4].error), (Verb::List, 1, None));
    sink.clear();
    assert!(sink.operations().is_empty());
}

#[tokio::test]
async fn faults_strike_where_they_are_told_to() {
    let cx = Context::system();
    let sink = FaultySink::with(Arc::new(MemorySink::new()), Fault::nth(2));
    assert!(put(&cx, &sink, "a").await.is_ok());
    assert_eq!(put(&cx, &sink, "b").await.unwrap_err().reason(), Reason::Unavailable);
    assert_eq!(put(&cx, &sink, "b").await.unwrap(), Put::Stored, "it was not done the first time");

    sink.fail(Fault::nth(1).of(Verb::Put).under("packs/").after().reason(Reason::TimedOut));
    assert!(sink.get(&cx, &key("a"), None).await.is_ok());
    assert!(put(&cx, &sink, "c").await.is_ok());
    assert_eq!(put(&cx, &sink, "packs/a").await.unwrap_err().reason(), Reason::TimedOut);
    assert_eq!(put(&cx, &sink, "packs/a").await.unwrap(), Put::AlreadyThere, "it was done");

    sink.fail(Fault::from(2).timing(Timing::After));
    assert!(put(&cx, &sink, "d").await.is_ok());
    assert!(put(&cx, &sink, "e").await.is_err());
    assert!(put(&cx, &sink, "f").await.is_err());
    assert!(sink.list(&cx, None).try_collect::<Vec<_>>().await.is_err());
    assert_eq!((sink.operations(), sink.failures()), (11, 5));
    sink.heal();
    assert!(sink.get(&cx, &key("e"), None).await.is_ok(), "the first of them was done");
    assert!(sink.get(&cx, &key("f"), None).await.is_err(), "and no other");
}

#[tokio::test]
async fn random_faults_repeat() {
    let cx = Context::system();
    let run = async |seed| {
        let fault = Fault::random(seed, 0.3).timing(Timing::Either);
        let sink = FaultySink::with(Arc::new(MemorySink::new()), fault);
        let mut failed = Vec::new();
        for i in 0..200 {
            let first = put(&cx, &sink, &format!("k{i}")).await;
            sink.heal();
            let done = sink.get(&cx, &key(&format!("k{i}")), None).await.is_ok();
            failed.push((first.is_ok(), done));
            sink.fail(Fault::random(seed + i, 0.3).timing(Timing::Either));
        }
        failed
    };
    let first = run(1).await;
    assert_eq!(first, run(1).await);
    let count = |ok, done| first.iter().filter(|f| **f == (ok, done)).count();
    assert!(count(true, true) > 100 && count(false, true) > 10 && count(false, false) > 10);
    assert_eq!(count(true, false), 0);
}

#[tokio::test(start_paused = true)]
async fn slow_sinks_take_their_time() {
    let cx = Context::new(Arc::new(Simulated::new(1, Timestamp(0))), Arc::new(Silent));
    let sink = SlowSink::new(Arc::new(MemorySink::new()), Duration::from_secs(2)).bandwidth(1);
    put(&cx, &sink, "a").await.unwrap();
    assert_eq!(cx.monotonic(), Duration::from_secs(7));
    sink.get(&cx, &key("a"), Some(0..1)).await.unwrap();
    sink.list(&cx, None).try_collect::<Vec<_>>().await.unwrap();
    sink.delete(&cx, &key("a")).await.unwrap();
    assert_eq!(cx.monotonic(), Duration::from_secs(14));
    let short = cx.within(Duration::from_secs(1));
    assert_eq!(put(&short, &sink, "b").await.unwrap_err().reason(), Reason::TimedOut);
}

#[test]
fn progress_is_kept() {
    let progress = Arc::new(RecordingProgress::new());
    let cx = Context::system().with_progress(Arc::clone(&progress) as _);
    cx.progress().phase(Phase::Stream);
    cx.progress().add(Counter::Bytes, 3);
    cx.progress().add(Counter::Bytes, 4);
    cx.progress().expect_bytes(9);
    cx.progress().warn("w");
    assert_eq!(progress.phases(), [Phase::Stream]);
    assert_eq!((progress.count(Counter::Bytes), progress.count(Counter::Entries)), (7, 0));
    assert_eq!((progress.expected_bytes(), progress.warnings()), (9, vec!["w".to_owned()]));
}
