//! What goes into a server and comes out of it, and what is said when it does not.

use std::fs;
use std::time::Duration;

use insta::assert_snapshot;
use serde_json::{Value, json};
use snapkit_core::context::Context;
use snapkit_core::facts::{RestoreVerdict, Standing};
use snapkit_core::source::{Source as _, Target};
use snapkit_source_qdrant::Method;
use snapkit_testkit::qdrant::{QdrantDouble, QdrantTrouble};

use crate::stage::{Server, carry, carry_some, compared, proven, qdrant, said};

/// All of it comes back in the place of something else, and what was there before is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_replaced_is_kept() {
    let server = Server::start();
    server.fill("snapkit-docs", 300).await;
    let config = server.with(|config| config.collections = vec!["snapkit-*".to_owned()]);
    let source = qdrant(config);
    let before = server.points("snapkit-docs").await;
    // Somebody else's.
    let theirs = "/collections/snapkit-docs/shards/0/snapshots";
    let theirs = server.must("POST", &format!("{theirs}?wait=true"), Value::Null).await;
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
    proven(&capture, &report);
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
    let file = theirs["name"].as_str().unwrap();
    let file = format!("/collections/snapkit-docs/shards/0/snapshots/{file}?wait=true");
    server.must("DELETE", &file, Value::Null).await;
    server.must("DELETE", "/collections/snapkit-docs", Value::Null).await;
    server.assert_clean();
}

/// While a server puts segments together, what is deleted from them is in no snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_busy_is_waited_for() {
    let server = Server::start();
    let Some(double) = &server.double else { return };
    server.fill("docs", 20).await;
    let source = qdrant(server.config());
    let cx = Context::system();
    double.be_busy(3);
    let mut capture = source.capture(&cx, None).await.unwrap();
    capture.freeze(&cx).await.unwrap();
    let facts = capture.finish(&cx).await.unwrap().facts;
    assert_eq!(facts.0["docs.points"].standing, Standing::Pinned);
    // It is busy again when it is too late to wait.
    let mut capture = source.capture(&cx, None).await.unwrap();
    double.be_busy(1);
    capture.freeze(&cx).await.unwrap();
    let facts = capture.finish(&cx).await.unwrap().facts;
    assert_eq!(facts.0["docs.points"].standing, Standing::Observed);
    assert_eq!(
        facts.0["docs.status"].value.to_string(),
        "yellow when it was captured: points that had just been deleted may come back"
    );
    server.assert_clean();
}

/// Limits for others are set when everything is there, and kept to.
#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_collection() {
    let (from, to) = (Server::start(), Server::start());
    let (Some(asked), Some(_)) = (&from.double, &to.double) else { return };
    from.fill("docs", 120).await;
    let strict = json!({ "enabled": true, "max_query_limit": 50, "max_timeout": 7 });
    let tuning = json!({ "strict_mode_config": strict, "params": { "read_fan_out_factor": 2 } });
    from.must("PATCH", "/collections/docs", tuning).await;
    drop(asked.requests());
    let source = qdrant(from.config());
    let (capture, report) =
        carry(&source, &source, Target::Url(to.url.clone()), |_| ()).await.unwrap();
    proven(&capture, &report);
    let pages = asked.requests().iter().filter(|line| line.ends_with("/scroll")).count();
    assert_eq!(pages, 3, "and no more than are allowed at once");
    assert_eq!(to.state("docs").await, from.state("docs").await);
    from.must("PATCH", "/collections/docs", json!({ "params": { "read_fan_out_factor": 3 } }))
        .await;
    let now = source.facts(&Context::system()).await.unwrap();
    let differs: Vec<_> =
        capture.facts.compare(&now).differences.into_iter().map(|d| d.fact).collect();
    assert_eq!(differs, ["docs.config"]);
}

/// An alias that leads elsewhere is taken only from whom that may be done to, and given back if it comes to nothing.
#[tokio::test(flavor = "multi_thread")]
async fn aliases_that_lead_elsewhere() {
    let (from, to) = (Server::start(), Server::start());
    let (Some(_), Some(double)) = (&from.double, &to.double) else { return };
    from.fill("docs", 20).await;
    to.fill("others", 5).await;
    let alias = json!({ "collection_name": "others", "alias_name": "docs-live" });
    let actions = json!({ "actions": [{ "create_alias": alias }] });
    to.must("POST", "/collections/aliases", actions.clone()).await;
    let source = qdrant(from.config());
    let target = || Target::Url(to.url.clone());
    let e = carry(&source, &source, target(), |_| ()).await.map(drop).unwrap_err();
    let mut all = said(&e, &[&to]) + "\n";
    assert_eq!(to.count("docs-live").await, 5);
    // The second of two fails.
    let second = json!({ "collection_name": "docs", "alias_name": "docs-second" });
    let second = json!({ "actions": [{ "create_alias": second }] });
    from.must("POST", "/collections/aliases", second).await;
    let count = std::sync::atomic::AtomicU32::new(0);
    double.trouble(move |_, path| {
        let is_alias = path == "/collections/aliases";
        let is_second = is_alias && count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1;
        is_second.then_some(QdrantTrouble::Refuse(500, "it fails here"))
    });
    let e = carry(&source, &source, target(), |request| request.overwrite = true)
        .await
        .map(drop)
        .unwrap_err();
    all += &(said(&e, &[&to]) + "\n");
    double.heal();
    assert_eq!(to.count("docs-live").await, 5, "it leads where it led");
    carry(&source, &source, target(), |request| request.overwrite = true).await.unwrap();
    assert_eq!(to.count("docs-live").await, 20);
    // What is to be a collection is an alias.
    to.must("DELETE", "/collections/docs", Value::Null).await;
    let alias = json!({ "collection_name": "others", "alias_name": "docs" });
    to.must("POST", "/collections/aliases", json!({ "actions": [{ "create_alias": alias }] }))
        .await;
    let e = carry(&source, &source, target(), |request| request.overwrite = true)
        .await
        .map(drop)
        .unwrap_err();
    all += &(said(&e, &[&to]) + "\n");
    assert_snapshot!(all, @"
    an alias of a collection is the name of something else in the target (alias=docs-live, collection=docs, target=as it was) (target-not-empty)
    the server has failed (url=URL, status=500, said=it fails here, alias=docs-second, target=as it was) (unavailable)
    a collection has the name of an alias in the target (collection=docs, target=as it was) (target-not-empty)
    ");
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
                assert_eq!(to.collections().await, ["docs"], "{k}: {e:?}");
                assert!(said(&e, &[&to]).contains("target=as it was") || asked < 10, "{k}: {e:?}");
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

/// What is not known of the origin is not proven of the target.
#[tokio::test(flavor = "multi_thread")]
async fn a_count_that_is_not_certain_proves_nothing() {
    let (from, to) = (Server::start(), Server::start());
    let (Some(double), Some(_)) = (&from.double, &to.double) else { return };
    from.fill("docs", 20).await;
    double.trouble(|_, path| {
        path.ends_with("/manifest").then_some(QdrantTrouble::Refuse(404, "an older server"))
    });
    let source = qdrant(from.config());
    let target = Target::Url(to.url.clone());
    let (capture, report) = carry(&source, &source, target, |_| ()).await.unwrap();
    let comparison = compared(&capture, &report);
    assert_eq!(comparison.verdict, RestoreVerdict::Unproven, "{comparison:#?}");
    assert_eq!(
        report.beside.iter().filter(|fact| *fact == "docs.config").count(),
        0,
        "nor is it exempt"
    );
    assert_eq!(to.count("docs").await, 20);
}

/// Where the old state cannot be brought back, nobody says that it was.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_brought_back_is_told() {
    let (from, to) = (Server::start(), Server::start());
    let (Some(_), Some(double)) = (&from.double, &to.double) else { return };
    from.fill("docs", 20).await;
    to.fill("docs", 7).await;
    let source = qdrant(from.config());
    let target = || Target::Url(to.url.clone());
    // Somebody else makes one of its name at once.
    double.trouble(|method, path| {
        let is_create = method == "PUT" && path == "/collections/docs";
        is_create.then_some(QdrantTrouble::Refuse(409, "already exists"))
    });
    let recovery = tempfile::tempdir().unwrap();
    let e = carry(&source, &source, target(), |request| {
        request.overwrite = true;
        request.recovery = Some(recovery.path().to_owned());
    });
    let e = e.await.map(drop).unwrap_err();
    let mut all = said(&e, &[&to]).replace(recovery.path().to_str().unwrap(), "RECOVERY") + "\n";
    double.heal();
    let undo = recovery.path().join("docs/undo.sh");
    // Not without all that is needed.
    let first = recovery.path().join("docs/docs.shard-0.snapshot");
    let kept = fs::read(&first).unwrap();
    fs::write(&first, &kept[1..]).unwrap();
    to.fill("docs", 1).await;
    assert!(!std::process::Command::new("sh").arg(&undo).status().unwrap().success());
    assert_eq!(to.count("docs").await, 1);
    fs::write(&first, &kept).unwrap();
    assert!(std::process::Command::new("sh").arg(&undo).status().unwrap().success());
    assert_eq!(to.count("docs").await, 7);
    // And without a place to keep it in.
    double.trouble(|method, path| {
        let is_upload =
            method == "POST" && path.starts_with("/collections/docs/") && path.ends_with("/upload");
        is_upload.then_some(QdrantTrouble::Refuse(500, "no space left"))
    });
    let e = carry(&source, &source, target(), |request| request.overwrite = true);
    all += &(said(&e.await.map(drop).unwrap_err(), &[&to]) + "\n");
    double.heal();
    // The collection that was only to try something stays where it cannot be removed.
    to.fill("docs", 7).await;
    double.trouble(|method, path| {
        (method == "DELETE" && path.starts_with("/collections/snapkit-"))
            .then_some(QdrantTrouble::Refuse(503, "busy"))
    });
    let e = carry(&source, &source, target(), |request| request.overwrite = true);
    all += &(said(&e.await.map(drop).unwrap_err(), &[&to]) + "\n");
    assert_eq!(to.count("docs").await, 7, "untouched");
    let (before, after) = all.split_once("left=snapkit-").unwrap();
    assert_snapshot!(format!("{before}left=snapkit-HEX{}", &after[8..]), @"
    the server has that already (url=URL, status=409, said=already exists, collection=docs, not_taken_back=docs: the server has that already (url=URL, status=409, said=already exists), old_state=RECOVERY/docs) (already-exists)
    the server has failed (url=URL, status=500, said=no space left, shard=0, collection=docs, not_taken_back=docs: its old state was not kept) (unavailable)
    the server cannot do that now (url=URL, status=503, said=busy, collection=docs, left=snapkit-HEX) (unavailable)
    ");
}

/// What somebody makes while a restore is on its way is never taken away, whatever fails just then.
#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_makes_meanwhile_is_theirs() {
    let (from, to) = (Server::start(), Server::start());
    let (Some(_), Some(double)) = (&from.double, &to.double) else { return };
    from.fill("docs", 20).await;
    let source = qdrant(from.config());
    let looks = std::sync::atomic::AtomicU32::new(0);
    let (late, is_late) = tokio::sync::oneshot::channel();
    let late = std::sync::Mutex::new(Some(late));
    double.trouble(move |method, path| match (method, path) {
        ("GET", "/aliases") => {
            late.lock().unwrap().take().into_iter().for_each(|late| late.send(()).unwrap());
            Some(QdrantTrouble::Delay(Duration::from_secs(1)))
        }
        // Before anything is made it looks once more, and is not answered.
        ("GET", "/collections") => {
            let is_last = looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 2;
            is_last.then_some(QdrantTrouble::Refuse(503, "busy"))
        }
        _ => None,
    });
    let restored = carry(&source, &source, Target::Url(to.url.clone()), |_| ());
    let theirs = async {
        is_late.await.unwrap();
        let settings = json!({ "vectors": { "size": 4, "distance": "Dot" } });
        to.must("PUT", "/collections/docs", settings).await;
        to.put("docs", 0..3).await;
    };
    let (restored, ()) = tokio::join!(restored, theirs);
    let said = said(&restored.map(drop).unwrap_err(), &[&to]);
    double.heal();
    assert!(said.contains("busy") && said.contains("target=as it was"), "{said}");
    assert_eq!(to.count("docs").await, 3);
}

/// With damage left out, the collections that are whole come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_does_not_come() {
    let (from, to) = (Server::start(), Server::start());
    let (Some(_), Some(_)) = (&from.double, &to.double) else { return };
    from.fill("docs", 20).await;
    from.fill("images", 10).await;
    let source = qdrant(from.config());
    let mut all = String::new();
    for (allow_damage, lost) in
        [(false, "docs.shard-1.snapshot"), (true, "docs.shard-1.snapshot"), (true, "shard")]
    {
        let target = Target::Url(to.url.clone());
        let carried = carry_some(
            &source,
            &source,
            target,
            |request| request.allow_damage = allow_damage,
            |name| !name.contains(lost),
        );
        all += &match carried.await {
            Ok((_, report)) => format!("{}\n", report.problems.join("\n")),
            Err(e) => format!("{}\n", said(&e, &[&to])),
        };
        assert_eq!(
            to.collections().await.len(),
            usize::from(allow_damage && lost != "shard"),
            "{lost}"
        );
        to.must("DELETE", "/collections/images", Value::Null).await;
    }
    assert_snapshot!(all, @"
    a collection is restored whole: one of its shards did not come (shard=1, collection=docs) (invalid-argument)
    left out: a collection is restored whole: one of its shards did not come (shard=1, collection=docs)
    a collection is restored whole: one of its shards did not come (shard=0, collection=docs) (invalid-argument)
    ");
}

/// Snapshots are named after the second in which they are made.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_somebody_else_has_is_not_ours() {
    let server = Server::start();
    let Some(double) = &server.double else { return };
    server.fill("docs", 20).await;
    server.must("POST", "/collections/docs/shards/0/snapshots?wait=true", Value::Null).await;
    let theirs = double.left_behind();
    double.repeat_names();
    let cx = Context::system();
    let mut capture = qdrant(server.config()).capture(&cx, None).await.unwrap();
    let e = capture.freeze(&cx).await.unwrap_err();
    capture.abort(&cx).await.unwrap();
    assert!(
        e.to_string().starts_with("the server has given a snapshot a name that another one had"),
        "{e}"
    );
    assert_eq!(double.left_behind(), theirs);
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
    // Whoever looks after the server may say what it was sent.
    let double = closed.double.as_ref().unwrap();
    double.trouble(|_, _| Some(QdrantTrouble::Refuse(403, "the key full is not allowed that")));
    let e = qdrant(closed.config()).capture(&Context::system(), None).await.map(drop).unwrap_err();
    all += &format!("repeated: {}\n", said(&e, &[&closed]));
    assert_snapshot!(all, @r#"
    no node that is known has all of a shard (shard=1, collection=docs) (unavailable)
    None: the server wants a key: it is `api_key` (url=URL, status=401, said=Must provide an API key or an Authorization bearer token) (permission-denied)
    Some("wrong"): the server wants a key: it is `api_key` (url=URL, status=401, said=Must provide an API key or an Authorization bearer token) (permission-denied)
    Some("reads"): the server does not allow that: snapshots need a key with the right to manage (url=URL, status=403, said=Forbidden: Global manage access is required, collection=docs) (permission-denied)
    repeated: the server does not allow that: snapshots need a key with the right to manage (url=URL, status=403, said=the key … is not allowed that) (permission-denied)
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
        assert!(frozen.is_err() || wait == 200, "{wait}");
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
    DropAnswer: the server does not answer (url=URL, left=docs-shard-0-2026-11-21-02-09-10.snapshot, collection=docs): error sending request: client error (SendRequest): connection closed before message completed (unavailable)
    Refuse(500, "disk full"): the server has failed (url=URL, status=500, said=disk full, collection=docs) (unavailable)
    no scratch space: scratch space of 1000 bytes is not enough
    "#);
}
