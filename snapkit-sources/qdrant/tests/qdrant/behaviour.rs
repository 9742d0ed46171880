//! What goes into a server and comes out of it, and what is said when it does not.

use std::fs;
use std::time::Duration;

use insta::assert_snapshot;
use serde_json::{Value, json};
use snapkit_core::context::Context;
use snapkit_core::source::{Source as _, Target};
use snapkit_source_qdrant::Method;
use snapkit_testkit::qdrant::{QdrantDouble, QdrantTrouble};

use crate::stage::{Server, carry, compared, proven, qdrant, said};

/// All of it comes back in the place of something else, and what was there before is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_replaced_is_kept() {
    let server = Server::start();
    server.fill("snapkit-docs", 300).await;
    let config = server.with(|config| config.collections = vec!["snapkit-*".to_owned()]);
    let source = qdrant(config);
    let before = server.points("snapkit-docs").await;
    let e = carry(&source, &source, Target::Original, |_| ()).await.map(drop).unwrap_err();
    assert_eq!(
        said(&e, &[&server]),
        "the target holds data (target=URL, collection=snapkit-docs) (target-not-empty)"
    );
    let recovery = tempfile::tempdir().unwrap();
    let (capture, report) = carry(&source, &source, Target::Original, |request| {
        request.overwrite = true;
        request.recovery = Some(recovery.path().to_owned());
    })
    .await
    .unwrap();
    assert_ne!(compared(&capture, &report).verdict, snapkit_core::facts::RestoreVerdict::Differs);
    assert_eq!(server.points("snapkit-docs").await, before);
    let kept = recovery.path().join("snapkit-docs");
    let mut files: Vec<_> = fs::read_dir(&kept)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(
        files,
        [
            "create.json",
            "snapkit-docs.collection.json",
            "snapkit-docs.shard-0.snapshot",
            "snapkit-docs.shard-1.snapshot",
            "undo.sh"
        ]
    );
    // And the steps that are printed bring it back.
    server.must("DELETE", "/collections/snapkit-docs", Value::Null).await;
    let steps = report.undo.join("\n");
    let done = std::process::Command::new("sh")
        .args(["-ec", &steps])
        .env("QDRANT_API_KEY", server.key.clone().unwrap_or_default())
        .output()
        .unwrap();
    assert!(done.status.success(), "{steps}\n{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(server.points("snapkit-docs").await, before);
    server.must("DELETE", "/collections/snapkit-docs", Value::Null).await;
    server.assert_clean();
}

/// A server that fails at any request leaves nothing behind, and what was there stays there.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_the_target_is_as_it_was() {
    let (from, to) = (Server::start(), Server::start());
    let (Some(_), Some(double)) = (&from.double, &to.double) else { return };
    from.fill("docs", 120).await;
    to.fill("docs", 50).await;
    let before = to.points("docs").await;
    let source = qdrant(from.config());
    for k in 0.. {
        drop(double.requests());
        let count = std::sync::atomic::AtomicU32::new(0);
        double.trouble(move |_, _| {
            let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            (n == k).then_some(QdrantTrouble::Refuse(500, "Service internal error: it fails here"))
        });
        let recovery = tempfile::tempdir().unwrap();
        let result = carry(&source, &source, Target::Url(to.url.clone()), |request| {
            request.overwrite = true;
            request.recovery = Some(recovery.path().to_owned());
        })
        .await;
        let asked = u32::try_from(double.requests().len()).unwrap();
        double.heal();
        match result {
            Err(e) => {
                assert_eq!(to.points("docs").await, before, "{k}: {e:?}");
                to.assert_clean();
            }
            Ok((capture, report)) => {
                assert_eq!(to.count("docs").await, 120);
                if asked <= k {
                    proven(&capture, &report);
                    break;
                }
                // A request whose failure costs only proof.
                to.fill("docs", 50).await;
            }
        }
    }
}

/// Files that a server takes.
#[tokio::test(flavor = "multi_thread")]
async fn into_a_directory() {
    let server = Server::start();
    server.fill("snapkit-docs", 30).await;
    let config = server.with(|config| config.collections = vec!["snapkit-docs".to_owned()]);
    let (source, place) = (qdrant(config), tempfile::tempdir().unwrap());
    let target = Target::Directory(place.path().to_owned());
    let (capture, report) = carry(&source, &source, target, |_| ()).await.unwrap();
    assert!(report.differences.is_empty());
    let comparison = compared(&capture, &report);
    assert_eq!(comparison.differences, []);
    assert!(place.path().join("snapkit-docs.shard-0.snapshot").is_file());
    server.must("DELETE", "/collections/snapkit-docs", Value::Null).await;
}

/// Collections of all sorts come back to where they were, in both ways.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_collection_is() {
    let server = Server::start();
    for seed in 0..12 {
        let name = format!("snapkit-any-{seed}");
        server.fill_at_random(&name, seed).await;
        let method = if seed % 2 == 0 { Method::Stored } else { Method::Streamed };
        let source = qdrant(server.with(|config| {
            (config.method, config.collections) = (method, vec![name.clone()]);
        }));
        let before = server.state(&name).await;
        let whole = source.facts(&Context::system()).await.unwrap();
        let recovery = tempfile::tempdir().unwrap();
        let (capture, report) = carry(&source, &source, Target::Original, |request| {
            request.overwrite = true;
            request.recovery = Some(recovery.path().to_owned());
        })
        .await
        .unwrap();
        proven(&capture, &report);
        assert_eq!(capture.facts.compare(&whole).differences, [], "{seed}");
        assert_eq!(server.state(&name).await, before, "{seed}");
        server.assert_clean();
        server.must("DELETE", &format!("/collections/{name}"), Value::Null).await;
    }
}

/// The copies of a shard on other nodes come after it, which is told.
#[tokio::test(flavor = "multi_thread")]
async fn copies_on_other_nodes_are_told() {
    let (from, to) = (Server::of(QdrantDouble::start()), Server::of(QdrantDouble::cluster(2)));
    let settings = json!({ "vectors": { "size": 4, "distance": "Dot" }, "replication_factor": 2 });
    from.must("PUT", "/collections/docs", settings).await;
    from.put("docs", 0..20).await;
    let source = qdrant(from.config());
    let target = Target::Url(to.url.clone());
    let (capture, report) = carry(&source, &source, target, |_| ()).await.unwrap();
    proven(&capture, &report);
    assert_eq!(
        report.notes,
        [
            "docs: 1 copies of shards on other nodes are not active yet; the cluster brings them up by itself"
        ]
    );
}

/// Shards that only one node has, and keys that may not do everything.
#[tokio::test(flavor = "multi_thread")]
async fn of_clusters_and_keys() {
    let cluster = QdrantDouble::cluster(2);
    let second = cluster.url(1).to_owned();
    let server = Server::of(cluster);
    server.fill("docs", 60).await;
    let alone = qdrant(server.config());
    let e = alone.capture(&Context::system(), None).await.map(drop).unwrap_err();
    let mut all = format!("{}\n", said(&e, &[&server]));
    let both = server.with(|config| config.nodes = vec![second]);
    let target = Server::start();
    let (capture, report) =
        carry(&qdrant(both), &qdrant(server.config()), Target::Url(target.url.clone()), |_| ())
            .await
            .unwrap();
    if target.double.is_some() {
        proven(&capture, &report);
        assert_eq!(target.count("docs").await, 60);
    }
    let mut closed = Server::of(QdrantDouble::start().with_keys("full", "reads"));
    closed.key = Some("full".to_owned());
    closed.fill("docs", 5).await;
    for key in [None, Some("wrong"), Some("reads")] {
        let mut settings = json!({ "url": closed.url });
        if let Some(key) = key {
            settings["api_key"] = json!(key);
        }
        let source = qdrant(serde_json::from_value(settings).unwrap());
        let e = carry(&source, &source, Target::Original, |_| ()).await.map(drop).unwrap_err();
        all += &format!("{key:?}: {}\n", said(&e, &[&closed]));
    }
    assert_snapshot!(all, @r#"
    no node that is known has all of a shard (shard=1, collection=docs) (unavailable)
    None: the server wants a key: it is `api_key` (url=URL, status=401, said=Must provide an API key or an Authorization bearer token) (permission-denied)
    Some("wrong"): the server wants a key: it is `api_key` (url=URL, status=401, said=Must provide an API key or an Authorization bearer token) (permission-denied)
    Some("reads"): the server does not allow that: snapshots need a key with the right to manage (url=URL, status=403, said=Forbidden: Global manage access is required, collection=docs) (permission-denied)
    "#);
}

/// Nothing is waited for longer than was said, and what a server still makes is removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_is_given_up_leaves_nothing() {
    let server = Server::start();
    let Some(double) = &server.double else { return };
    server.fill("docs", 30).await;
    for wait in [5, 50, 200] {
        double.trouble(|method, path| {
            let is_make = method == "POST" && path.ends_with("/snapshots");
            is_make.then_some(QdrantTrouble::Delay(Duration::from_millis(100)))
        });
        let cx = Context::system();
        let mut capture = qdrant(server.config()).capture(&cx, None).await.unwrap();
        let frozen = capture.freeze(&cx.within(Duration::from_millis(wait))).await;
        capture.thaw(&cx).await.unwrap();
        assert_eq!(frozen.is_ok(), wait == 200 && frozen.is_ok());
        capture.abort(&cx).await.unwrap();
        double.heal();
        server.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_server_is_told() {
    let server = Server::start();
    let Some(double) = &server.double else { return };
    let mut all = String::new();
    let cx = Context::system();
    let e = qdrant(server.config()).capture(&cx, None).await.map(drop).unwrap_err();
    all += &format!("empty: {}\n", said(&e, &[&server]));
    server.fill("docs", 10).await;
    for (what, trouble) in [
        ("busy", QdrantTrouble::Refuse(503, "try later")),
        ("gone", QdrantTrouble::Refuse(404, "Not found")),
        ("cut", QdrantTrouble::Cut(10)),
        ("lost", QdrantTrouble::DropAnswer),
    ] {
        double.trouble(move |_, _| Some(trouble.clone()));
        let e = qdrant(server.config()).capture(&cx, None).await.map(drop).unwrap_err();
        all += &format!("{what}: {}\n", said(&e, &[&server]));
    }
    for trouble in [QdrantTrouble::DropAnswer, QdrantTrouble::Refuse(500, "disk full")] {
        let what = format!("{trouble:?}");
        double.trouble(move |method, path| {
            let is_make = method == "POST" && path.ends_with("/snapshots");
            is_make.then(|| trouble.clone())
        });
        let source = qdrant(server.config());
        let e = carry(&source, &source, Target::Original, |_| ()).await.map(drop).unwrap_err();
        all += &format!("{what}: {}\n", said(&e, &[&server]));
    }
    double.heal();
    let config =
        server.with(|config| (config.method, config.scratch) = (Method::Streamed, Some(1000)));
    let source = qdrant(config);
    let e = carry(&source, &source, Target::Original, |_| ()).await.map(drop).unwrap_err();
    all += &format!(
        "no scratch space: {}\n",
        said(&e, &[&server]).split(" (directory").next().unwrap()
    );
    assert_snapshot!(all, @r#"
    empty: the server has no collection that is asked for (url=URL) (source-missing)
    busy: the server cannot do that now (url=URL, status=503, said=try later) (unavailable)
    gone: the server does not have that (url=URL, status=404, said=Not found) (not-found)
    cut: the server does not answer (url=URL): error decoding response body: error reading a body from connection: end of file before message length reached (unavailable)
    lost: the server does not answer (url=URL): error sending request: client error (SendRequest): connection closed before message completed (unavailable)
    DropAnswer: the server does not answer (url=URL, left=docs-shard-0-2026-11-21-02-09-09.snapshot, collection=docs): error sending request: client error (SendRequest): connection closed before message completed (unavailable)
    Refuse(500, "disk full"): the server has failed (url=URL, status=500, said=disk full, collection=docs) (unavailable)
    no scratch space: scratch space of 1000 bytes is not enough
    "#);
}
