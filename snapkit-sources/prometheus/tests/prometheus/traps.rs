//! Ways in which others have lost data, each shown first.

use std::fs;
use std::time::Duration;

use snapkit_core::context::Context;
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::source::Target;
use snapkit_core::{Reason, Result};
use snapkit_source_prometheus::PrometheusConfig;
use snapkit_testkit::server::PrometheusServer;

use crate::remote_write::write;
use crate::{ADMIN, NOWHERE, ask, blocks, capture, config, left_in, pinned, prometheus, restore};

/// Takes samples that are sent.
const TAKES: &str = "--web.enable-remote-write-receiver";

/// A moment in seconds, and a server's in milliseconds.
fn now(cx: &Context) -> (i64, i64) {
    let nanos = cx.now().0;
    (nanos / 1_000_000_000, nanos / 1_000_000)
}

async fn post(server: &PrometheusServer, path: &str) -> String {
    let client = reqwest::Client::new();
    client.post(format!("{}/{path}", server.url())).send().await.unwrap().text().await.unwrap()
}

/// A snapshot without what is in memory is empty on a young server, and called a success.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_memory_counts() {
    let cx = Context::system();
    let Some(server) = PrometheusServer::start(None, &[ADMIN, TAKES]) else { return };
    let (seconds, millis) = now(&cx);
    write(&server, "orders", &[(1.0, millis - 20_000), (2.0, millis - 15_000)]);

    let answer = post(&server, "api/v1/admin/tsdb/snapshot?skip_head=true").await;
    assert!(answer.contains("success"), "{answer}");
    let naive = server.data().join("snapshots").join(left_in(&server.data()).remove(0));
    assert_eq!(fs::read_dir(&naive).map_or(0, Iterator::count), 0, "the naive way lost nothing");
    fs::remove_dir_all(&naive).unwrap();

    let mut config = config(&server);
    config.queries.insert("orders".to_owned(), "sum(orders)".to_owned());
    let taken = capture(&cx, &prometheus(config.clone())).await.unwrap();
    assert_eq!(pinned(&taken.record.facts, "samples"), "2");
    assert_eq!(pinned(&taken.record.facts, "answer.orders"), "{} \"2\"");

    // Onto a running server that has nothing but its own memory.
    let target = PrometheusServer::start(None, &[ADMIN, TAKES]).unwrap();
    write(&target, "orders", &[(7.0, millis)]);
    let mut there = PrometheusConfig::new(target.url(), target.data());
    there.queries = config.queries;
    let report = restore(&cx, &prometheus(there), &taken, |_| ()).await.unwrap();
    assert!(report.problems.is_empty(), "{report:?}");
    let comparison = taken.record.facts.compare(&report.facts);
    assert_eq!(comparison.verdict, RestoreVerdict::Match, "{comparison:?}");
    assert!(ask(&target, "orders", seconds - 12).contains("=> 2 @"));
    assert!(ask(&target, "orders", seconds + 1).contains("=> 7 @"));
}

/// Nobody but us removes what the server makes, however a run ends.
#[tokio::test(flavor = "multi_thread")]
async fn no_snapshot_of_the_server_is_left() {
    let cx = Context::system();
    let data = blocks(&[("a", 1.0, 1_795_600_000), ("a", 2.0, 1_795_610_000)]);
    let Some(server) = PrometheusServer::start(Some(data.path()), &[ADMIN]) else { return };
    post(&server, "api/v1/admin/tsdb/snapshot").await;
    let foreign = left_in(&server.data());
    assert_eq!(foreign.len(), 1, "the naive way leaves it");

    let source = prometheus(config(&server));
    capture(&cx, &source).await.unwrap();
    // Given up before, while and after the server makes it.
    for limit in [0, 1, 3, 10, 30] {
        let limited = cx.within(Duration::from_millis(limit));
        let result: Result<()> = async {
            let mut capture = snapkit_core::source::Source::capture(&source, &cx, None).await?;
            let frozen = capture.freeze(&limited).await;
            capture.abort(&cx).await?;
            frozen.map(drop)
        }
        .await;
        assert!(result.is_ok() || result.unwrap_err().reason() == Reason::TimedOut);
    }
    // Dropped, as by a panic.
    let mut capture = snapkit_core::source::Source::capture(&source, &cx, None).await.unwrap();
    capture.freeze(&cx).await.unwrap();
    drop(capture);
    assert_eq!(left_in(&server.data()), foreign);

    // Of a run that was killed: ours, and nobody's lock is on it.
    let killed = server.data().join("snapshots/20261127T220924Z-1e92ed00cc4116c3");
    fs::create_dir(&killed).unwrap();
    fs::write(killed.join(".snapkit"), "").unwrap();
    crate::capture(&cx, &source).await.unwrap();
    assert_eq!(left_in(&server.data()), foreign);
}

/// Old blocks look well after a start, and are deleted when the first new block is cut.
#[tokio::test(flavor = "multi_thread")]
async fn retention_is_warned_of() {
    let cx = Context::system();
    let (seconds, millis) = now(&cx);
    let old = seconds - 3 * 86_400;
    let data = blocks(&[("old", 42.0, old)]);
    let Some(server) = PrometheusServer::start(Some(data.path()), &[ADMIN]) else { return };
    let taken = capture(&cx, &prometheus(config(&server))).await.unwrap();

    let short = ["--storage.tsdb.retention.time=2d", "--storage.tsdb.min-block-duration=1m", TAKES];
    let target = PrometheusServer::start(None, &short).unwrap();
    let there = prometheus(PrometheusConfig::new(target.url(), target.data()));
    let report = restore(&cx, &there, &taken, |_| ()).await.unwrap();
    let notes = report.notes.join("\n");
    assert!(notes.contains("1 of 1 blocks") && notes.contains("(2d)"), "{notes}");
    assert!(ask(&target, "old", old + 1).contains("=> 42 @"), "it looks well");
    // Enough samples to have the server cut a block.
    let new: Vec<_> = (0..30).map(|n| (1.0, millis - 300_000 + n * 10_000)).collect();
    write(&target, "new", &new);
    let begun = cx.monotonic();
    while ask(&target, "old", old + 1).contains("=> 42 @") {
        assert!(cx.monotonic() - begun < Duration::from_secs(300), "the trap is none");
        cx.sleep(Duration::from_secs(1)).await.unwrap();
    }
    assert!(ask(&target, "new", seconds).contains("=> 1 @"));

    // Into files there is no server that could be asked.
    let place = tempfile::tempdir().unwrap();
    let to_files = prometheus(PrometheusConfig::new(NOWHERE, place.path()));
    let target = Target::Directory(place.path().to_owned());
    let report = restore(&cx, &to_files, &taken, |r| r.target = target).await.unwrap();
    assert!(report.notes.join("\n").contains("15d unless given"), "{report:?}");
}
