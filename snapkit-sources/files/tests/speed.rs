//! How long it takes, for people: `cargo test -p snapkit-source-files --release --test speed -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(clippy::cast_possible_truncation, reason = "sizes of tests are small")]

mod support;

use std::path::Path;

use snapkit_core::context::Context;
use snapkit_core::source::Source as _;
use snapkit_core::tree::{Content, SMALL_FILE, TreeEntry, TreeItem};
use support::*;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes gigabytes and says only how long it took"]
async fn many_files() {
    let cx = Context::system();
    let count: usize = std::env::var("FILES").map_or(47_000, |n| n.parse().unwrap());
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    for i in 0..count {
        let size = (i * 7919) % 54_000;
        write(&root.join(format!("{}/{}/f{i}", i % 37, i % 601)), bytes(i as u64, size));
    }
    let source = files(&[&root]);
    let time = |what: &str, start: std::time::Duration, bytes: u64| {
        let took = (cx.monotonic() - start).as_secs_f64();
        println!("{what}: {took:.3} s, {:.0} MB/s", bytes as f64 / took / 1e6);
    };
    for _ in 0..3 {
        let start = cx.monotonic();
        let found = walk(&cx, &mut *live(&cx, &source).await.unwrap()).await;
        time(&format!("walk of {} entries", found.len()), start, 0);
    }
    let start = cx.monotonic();
    source.facts(&cx).await.unwrap();
    time("facts", start, 0);

    let start = cx.monotonic();
    let mut tree = live(&cx, &source).await.unwrap();
    let mut total = 0;
    while let Some(batch) = tree.next_batch(&cx).await.unwrap() {
        let entries: Vec<TreeEntry> = batch
            .into_iter()
            .filter_map(|i| match i {
                TreeItem::Entry(e, Content::Deferred) => Some(e),
                _ => None,
            })
            .collect();
        assert!(entries.iter().all(|e| e.kind.content_len() <= SMALL_FILE));
        let (a, b) = entries.split_at(entries.len() / 2);
        let (a, b) = futures_util::join!(tree.load(&cx, a), tree.load(&cx, b));
        total += a.into_iter().chain(b).map(|l| l.unwrap().bytes.len() as u64).sum::<u64>();
    }
    time("load", start, total);

    for read_back in [false, true] {
        let target = scratch.path().join(format!("target-{read_back}"));
        std::fs::create_dir(&target).unwrap();
        let mut asked = request(&target, &source);
        asked.read_back = read_back;
        let tree = live(&cx, &source).await.unwrap();
        let start = cx.monotonic();
        let mut restore = source.restore(&cx, &asked).await.unwrap();
        let body = snapkit_core::artifact::Body::Tree(tree);
        restore.put(&cx, &meta(), body).await.unwrap();
        time("put, synced", start, total);
        let report = restore.finish(&cx).await.unwrap();
        assert!(report.problems.is_empty() && report.differences.is_empty());
        time(&format!("and finished, read back: {read_back}"), start, total);
    }
    let copy = scratch.path().join("cp");
    let start = cx.monotonic();
    run("cp", &["-a".as_ref(), root.as_os_str(), copy.as_os_str()]);
    time("cp -a", start, total);
    run("sync", &["-f".as_ref(), Path::new(&copy).as_os_str()]);
    time("cp -a, synced", start, total);
}
