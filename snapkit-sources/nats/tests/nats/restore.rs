//! Restores that meet something, beside what is lost in simpler ways.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use insta::assert_snapshot;
use serde_json::{Value, json};
use snapkit_core::context::Context;
use snapkit_core::error::Reason;
use snapkit_core::source::{RestoreRequest, Source as _, Target};
use snapkit_source_nats::NatsConfig;
use snapkit_testkit::server::NatsServer;

use crate::client::{Client, carry, carry_within, nats, proven, source, without_places};

/// The newest server, or none.
fn newest() -> Option<NatsServer> {
    NatsServer::programs().last().map(|program| NatsServer::start(program, ""))
}

/// The newest one that gives and takes files.
fn with_files() -> Option<NatsServer> {
    let programs = NatsServer::programs();
    let older = programs.iter().rev().find(|program| !program.to_string_lossy().contains("2.15"));
    older.map(|program| NatsServer::start(program, ""))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_replaced_is_kept() {
    for (from, to) in [(newest(), newest()), (with_files(), with_files())] {
        let (Some(from), Some(to)) = (from, to) else { return };
        Client::of(&from).await.fill().await;
        let there = Client::of(&to).await;
        there.stream("ORDERS", json!({})).await;
        there.publish("orders.x", b"the old one").await;
        there.stream("OTHER", json!({})).await;
        there.publish("other.x", b"stays").await;
        let e = carry(&source(&from), Target::Url(to.url()), |_| ()).await.map(drop).unwrap_err();
        let said = without_places(&e, &[&from, &to]);
        assert_eq!(said, "the target holds data (target=URL, stream=ORDERS) (target-not-empty)");
        assert_eq!(there.state("ORDERS").await["messages"], 1);
        let recovery = tempfile::tempdir().unwrap();
        let (capture, report) = carry(&source(&from), Target::Url(to.url()), |request| {
            request.overwrite = true;
            request.recovery = Some(recovery.path().to_owned());
        })
        .await
        .unwrap();
        proven(&capture.facts, &report);
        assert_eq!(there.state("ORDERS").await["messages"], 294);
        assert_eq!(there.state("OTHER").await["messages"], 1);
        let kept = recovery.path().join("ORDERS");
        assert_eq!(report.undo[0], "nats stream rm -f ORDERS");
        assert_eq!(report.undo[1], format!("nats stream restore '{}'", kept.display()));
        // What was kept stays when it is done again.
        let (_, again) = carry(&source(&from), Target::Url(to.url()), |request| {
            request.overwrite = true;
            request.recovery = Some(recovery.path().to_owned());
        })
        .await
        .unwrap();
        assert!(
            again.undo.contains(&format!("nats stream restore '{}.2'", kept.display())),
            "{again:?}"
        );
        // Which brings it back.
        there.must("STREAM.DELETE.ORDERS", json!({})).await;
        let answer = there.restore("ORDERS", &kept).await;
        assert_eq!(answer["state"]["messages"], 1, "{answer}");
        assert_eq!(there.get("ORDERS", 1).await.unwrap()["data"], "dGhlIG9sZCBvbmU=");
    }
}

/// A restore that fails half-way leaves what was there.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_comes_back() {
    let (Some(from), Some(program)) = (newest(), NatsServer::programs().pop()) else { return };
    // It has no room for all of it.
    let to = NatsServer::start(
        &program,
        "accounts { A { jetstream: { max_file: 3MB }, users: [ { user: u, password: p } ] } }\nno_auth_user: u",
    );
    let (here, there) = (Client::of(&from).await, Client::of(&to).await);
    for name in ["A", "B", "C"] {
        here.stream(name, json!({})).await;
        for _ in 0..if name == "C" { 60 } else { 2 } {
            here.publish(&format!("{}.x", name.to_lowercase()), &[7; 100_000]).await;
        }
        if name != "B" {
            there.stream(name, json!({})).await;
            there.publish(&format!("{}.x", name.to_lowercase()), name.as_bytes()).await;
        }
    }
    let recovery = tempfile::tempdir().unwrap();
    let e = carry(&source(&from), Target::Url(to.url()), |request| {
        request.overwrite = true;
        request.recovery = Some(recovery.path().to_owned());
    })
    .await
    .map(drop)
    .unwrap_err();
    let said = without_places(&e, &[&from, &to]);
    assert!(said.contains("target=as it was"), "{said}");
    assert_eq!(e.reason(), Reason::NoSpace, "{said}");
    for name in ["A", "C"] {
        assert_eq!(there.state(name).await["messages"], 1, "{name}");
    }
    let names = there.must("STREAM.NAMES", json!({})).await;
    assert_eq!(names["streams"], json!(["A", "C"]));
}

/// So it does when a restore is cancelled while the server is being given a stream.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_comes_back_after_a_cancelled_restore() {
    for (from, to) in [(newest(), newest()), (with_files(), with_files())] {
        let (Some(from), Some(to)) = (from, to) else { return };
        let (here, there) = (Client::of(&from).await, Client::of(&to).await);
        for name in ["A", "B"] {
            here.stream(name, json!({})).await;
            for n in 0..300_u32 {
                let body: Vec<u8> = (0..25_000_u32)
                    .flat_map(|i| (i * n).wrapping_mul(2_654_435_761).to_le_bytes())
                    .collect();
                here.publish(&format!("{}.x", name.to_lowercase()), &body).await;
            }
        }
        there.stream("A", json!({})).await;
        there.publish("a.x", b"the old one").await;
        let cx = Context::system();
        let recovery = tempfile::tempdir().unwrap();
        let watched = cx.clone();
        let place = recovery.path().join("A/backup.json");
        // When the old stream is kept, the new one is about to be made.
        let watching = tokio::spawn(async move {
            while !place.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
            watched.cancel();
        });
        let e = carry_within(&cx, &source(&from), Target::Url(to.url()), |request| {
            request.overwrite = true;
            request.recovery = Some(recovery.path().to_owned());
        })
        .await
        .map(drop)
        .unwrap_err();
        watching.await.unwrap();
        let said = without_places(&e, &[&from, &to]);
        assert!(e.is_cancelled() && said.contains("target=as it was"), "{said}");
        // And stays, when the server has given up on what it was being given.
        for wait in [0, 8] {
            std::thread::sleep(Duration::from_secs(wait));
            let names = there.must("STREAM.NAMES", json!({})).await;
            assert_eq!(names["streams"], json!(["A"]), "{said}");
            assert_eq!(there.state("A").await["messages"], 1, "{said}");
        }
    }
}

/// What a server would refuse at the end, or take and lose, is refused before.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_restored_is_refused_before() {
    let (Some(from), Some(to), Some(older)) = (newest(), newest(), with_files()) else { return };
    let (here, there) = (Client::of(&from).await, Client::of(&to).await);
    here.stream("ORDERS", json!({})).await;
    here.publish("orders.x", b"1").await;
    there.stream("THEIRS", json!({ "subjects": ["orders.*"] })).await;
    let mut said = String::new();
    let e = carry(&source(&from), Target::Url(to.url()), |_| ()).await.map(drop).unwrap_err();
    said += &format!("a subject is taken: {}\n", without_places(&e, &[&from, &to]));
    let lie = |request: &mut RestoreRequest| {
        request.record.facts.pin("messages", 7_u64);
    };
    there.must("STREAM.DELETE.THEIRS", json!({})).await;
    let e = carry(&source(&from), Target::Url(to.url()), lie).await.map(drop).unwrap_err();
    said += &format!("less was stored: {}\n", without_places(&e, &[&from, &to]));
    here.stream("FAST", json!({ "storage": "memory" })).await;
    here.publish("fast.x", b"1").await;
    let e = carry(&source(&from), Target::Url(older.url()), |_| ()).await.map(drop).unwrap_err();
    said += &format!("a stream in memory: {}\n", without_places(&e, &[&from, &older]));
    for (server, client) in [(&to, &there), (&older, &Client::of(&older).await)] {
        let names = client.must("STREAM.NAMES", json!({})).await;
        assert_eq!(names["total"], 0, "{}", server.url());
    }
    assert_snapshot!(said, @"
    a subject is taken: a subject of a stream belongs to another stream in the target (stream=ORDERS, subject=orders.>, other=THEIRS) (invalid-config)
    less was stored: what is stored is not what was captured, so the target was left as it is (fact=messages, captured=7, stored=1) (corrupt)
    a stream in memory: a server before NATS 2.15 takes no archive of a stream in memory (stream=FAST) (unsupported)
    ");
    // It takes it where it can be.
    let (capture, report) = carry(&source(&from), Target::Url(to.url()), |_| ()).await.unwrap();
    proven(&capture.facts, &report);
}

/// An older server gives no streams in memory: the others come, and it is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_cannot_be_captured_is_told() {
    let Some(from) = with_files() else { return };
    let client = Client::of(&from).await;
    client.stream("FAST", json!({ "storage": "memory" })).await;
    client.publish("fast.x", b"1").await;
    client.stream("ORDERS", json!({})).await;
    client.publish("orders.x", b"1").await;
    let to = with_files().unwrap();
    let (capture, report) = carry(&source(&from), Target::Url(to.url()), |_| ()).await.unwrap();
    proven(&capture.facts, &report);
    let [(place, e)] = &capture.problems[..] else { panic!("{capture:?}") };
    assert_snapshot!(format!("{place}: {}", without_places(e, &[&from])), @"FAST: a stream in memory cannot be captured from a server before NATS 2.15 (question=STREAM.SNAPSHOT.FAST, server=URL, stream=FAST): snapshot failed: no impl (10064) (unsupported)");
}

/// Messages that are older than the stream keeps them are not lost by being restored.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_vanishes_after_a_restore() {
    let second = 1_000_000_000_u64;
    for (from, to) in [(newest(), newest()), (with_files(), with_files())] {
        let (Some(from), Some(to)) = (from, to) else { return };
        let here = Client::of(&from).await;
        let limits = |age: u64| json!({ "max_age": age * second, "duplicate_window": second });
        here.stream("SHORT", limits(4)).await;
        here.stream("LONG", limits(3600)).await;
        for n in 0..50_u8 {
            here.publish("short.x", &[n]).await;
            here.publish("long.x", &[n]).await;
        }
        let there = Client::of(&to).await;
        // Taken in time, and put back too late.
        let too_late = |_: &mut RestoreRequest| std::thread::sleep(Duration::from_secs(5));
        let (capture, report) =
            carry(&source(&from), Target::Url(to.url()), too_late).await.unwrap();
        proven(&capture.facts, &report);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(there.state("SHORT").await["messages"], 50);
        assert_eq!(there.state("LONG").await["messages"], 50);
        let max_age = async |name: &str| {
            there.must(&format!("STREAM.INFO.{name}"), json!({})).await["config"]["max_age"].clone()
        };
        assert_eq!(
            (max_age("SHORT").await, max_age("LONG").await),
            (json!(0), json!(3600 * second))
        );
        assert_eq!(
            report.notes,
            [
                "SHORT: `max_age` is left out, because some messages are older and would be gone at once; \
              `nats stream edit SHORT --max-age=…` sets it"
            ]
        );
        // The naive way: the server says that all is well.
        here.must("STREAM.DELETE.SHORT", json!({})).await;
        here.stream("SHORT", limits(4)).await;
        here.publish("short.x", b"1").await;
        let scratch = tempfile::tempdir().unwrap();
        let directory = Target::Directory(scratch.path().to_owned());
        carry(&source(&from), directory, |_| ()).await.unwrap();
        std::thread::sleep(Duration::from_secs(5));
        there.must("STREAM.DELETE.SHORT", json!({})).await;
        let answer = there.restore("SHORT", &scratch.path().join("SHORT")).await;
        assert!(answer.get("error").is_none(), "{answer}");
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(there.state("SHORT").await["messages"], 0, "the naive way loses data");
    }
}

/// What one flipped byte on a server's disk does: the server gives what it has and says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn damage_on_a_servers_disk_is_found() {
    let Some(from) = with_files() else { return };
    let client = Client::of(&from).await;
    client.stream("ORDERS", json!({})).await;
    for n in 0..200_u8 {
        client.publish("orders.x", &[n; 500]).await;
    }
    let scratch = tempfile::tempdir().unwrap();
    carry(&source(&from), Target::Directory(scratch.path().to_owned()), |_| ()).await.unwrap();
    let block = find(&from.path("store"), "1.blk");
    let mut bytes = fs::read(&block).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&block, bytes).unwrap();
    let e = carry(&source(&from), Target::Directory(scratch.path().join("none")), |_| ()).await;
    let e = e.map(drop).unwrap_err();
    let said = without_places(&e, &[&from]);
    assert!(e.is_damage(), "{said}");
    assert_snapshot!(said, @"a file of messages is malformed: the hash of a message is wrong: the server's disk is damaged (sequence=101, stream=ORDERS) (corrupt)");
}

/// A file of this name, somewhere below.
fn find(dir: &Path, name: &str) -> PathBuf {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with(name) {
                return path;
            }
            if path.is_dir() {
                dirs.push(path);
            }
        }
    }
    panic!("no {name}");
}

/// A setting that only newer servers have is left out where it is not known.
#[tokio::test(flavor = "multi_thread")]
async fn settings_of_newer_servers_are_left_out() {
    let programs = NatsServer::programs();
    let (Some(oldest), Some(from)) = (programs.first(), newest()) else { return };
    if programs.len() < 2 {
        return;
    }
    let to = NatsServer::start(oldest, "");
    let client = Client::of(&from).await;
    client.stream("TTL", json!({ "allow_msg_ttl": true, "metadata": { "owner": "me" } })).await;
    client.publish("ttl.x", b"1").await;
    let (capture, report) = carry(&source(&from), Target::Url(to.url()), |_| ()).await.unwrap();
    proven(&capture.facts, &report);
    let notes = report.notes.join("\n");
    assert!(
        notes.contains("`allow_msg_ttl` is left out, because the target does not know it"),
        "{notes}"
    );
}

/// Servers up to 2.9 look for a file that they have just removed, or not yet made: once more, it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_misses_a_file_for_a_moment_is_asked_again() {
    let Some(program) = NatsServer::programs().into_iter().next() else { return };
    let server = NatsServer::start(&program, "");
    let client = Client::of(&server).await;
    client.fill().await;
    let index = server.path("store/jetstream/$G/streams/ORDERS/msgs/1.idx");
    if !index.exists() {
        let has_old_one = std::env::var_os("CI").is_some();
        assert!(!has_old_one, "the oldest version must have such files in CI");
        return;
    }
    let aside = server.path("aside.idx");
    fs::rename(&index, &aside).unwrap();
    let back = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        fs::rename(&aside, &index).unwrap();
    });
    let cx = Context::system().within(Duration::from_secs(60));
    let mut capture = source(&server).capture(&cx, None).await.unwrap();
    capture.freeze(&cx).await.unwrap();
    capture.thaw(&cx).await.unwrap();
    while let Some(meta) = capture.next(&cx).await.unwrap() {
        drop(capture.open(&cx, &meta.name).await.unwrap());
    }
    back.await.unwrap();
    let report = capture.finish(&cx).await.unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_understood() {
    let Some(program) = NatsServer::programs().pop() else { return };
    let server = NatsServer::start(
        &program,
        "accounts { A { jetstream: enabled, users: [ { user: u, password: pw } ] }, B { users: [ { user: none, password: pw } ] } }",
    );
    let cx = Context::system().within(Duration::from_secs(60));
    let mut said = String::new();
    let with = |more: Value| -> NatsConfig {
        let mut json = json!({ "url": server.url(), "timeout": "2s" });
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(json).unwrap()
    };
    for (what, more) in [
        ("no password", json!({})),
        ("a wrong one", json!({ "user": "u", "password": "hunter2" })),
        ("no JetStream", json!({ "user": "none", "password": "pw" })),
        ("another domain", json!({ "user": "u", "password": "pw", "domain": "elsewhere" })),
        ("no such stream", json!({ "user": "u", "password": "pw", "streams": ["NONE"] })),
        ("no such file", json!({ "creds": "/nowhere/me.creds" })),
        ("no credentials", json!({ "creds": "/etc/hostname" })),
        ("nobody there", json!({ "url": "nats://127.0.0.1:1" })),
        (
            "no TLS",
            json!({ "url": server.url().replace("nats", "tls"), "user": "u", "password": "pw" }),
        ),
    ] {
        let e = nats(with(more)).capture(&cx, None).await.map(drop).unwrap_err();
        let text =
            without_places(&e, &[&server]).replace(&server.url().replace("nats", "tls"), "TLS-URL");
        assert!(!format!("{text} {e:?}").contains("hunter2"), "{e:?}");
        said += &format!("{what}: {text}\n");
    }
    assert_snapshot!(said, @"
    no password: the server does not let this user in: check `user`, `token`, `creds` or `nkey` (server=URL): authorization violation: nats: authorization violation (permission-denied)
    a wrong one: the server does not let this user in: check `user`, `token`, `creds` or `nkey` (server=URL): authorization violation: nats: authorization violation (permission-denied)
    no JetStream: JetStream is not enabled there (question=STREAM.LIST, server=URL): JetStream not enabled for account (10039) (unavailable)
    another domain: nobody answers for JetStream there: it is not enabled for this account, the `domain` is another, or the stream has no leader (server=URL) (unavailable)
    no such stream: there is no such stream (stream=NONE, server=URL) (not-found)
    no such file: the file of credentials cannot be used (path=/nowhere/me.creds): No such file or directory (os error 2) (invalid-config)
    no credentials: the file of credentials cannot be used (path=/etc/hostname): it holds no JWT with the seed of its NKey (invalid-config)
    nobody there: the server cannot be reached (server=nats://127.0.0.1:1): IO error: Connection refused (os error 111) (unavailable)
    no TLS: the server cannot be reached (server=TLS-URL): IO error: received corrupt message of type InvalidContentType (unavailable)
    ");
}
