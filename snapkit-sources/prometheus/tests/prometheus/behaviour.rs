//! What is refused, what is noticed, and what is kept.

use std::fs;
use std::path::Path;
use std::process::Command;

use insta::assert_snapshot;
use snapkit_core::context::Context;
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::secret::Secret;
use snapkit_core::source::{Source as _, Target};
use snapkit_core::{Error, Reason};
use snapkit_source_prometheus::PrometheusConfig;
use snapkit_testkit::server::PrometheusServer;

use crate::{
    ADMIN, NOWHERE, add_blocks, ask, blocks, capture, config, left_in, prometheus, restore,
};

/// Samples of two blocks.
const SAMPLES: [(&str, f64, i64); 3] = [
    ("a{b=\"c\"}", 1.0, 1_795_600_000),
    ("a{b=\"c\"}", 2.0, 1_795_600_015),
    ("a", 5.0, 1_795_610_000),
];

fn told(server: &PrometheusServer, e: &Error) -> String {
    let text = e.chain().replace(&server.url(), "URL");
    let text = text.replace(server.data().parent().unwrap().to_str().unwrap(), "DIR");
    let hint = match e.hint() {
        "" => String::new(),
        hint => format!("    hint: {hint}\n"),
    };
    format!("{text} ({}, exit {})\n{hint}", e.reason(), e.reason().row().exit)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_cannot_be_captured() {
    let cx = Context::system();
    let data = blocks(&SAMPLES);
    let Some(server) = PrometheusServer::start(Some(data.path()), &[ADMIN]) else { return };
    let closed = PrometheusServer::start(Some(data.path()), &[]).unwrap();
    let empty = PrometheusServer::start(None, &[ADMIN]).unwrap();
    // The example of its documentation: `test`.
    let web = tempfile::NamedTempFile::new().unwrap();
    let users =
        "basic_auth_users: { me: $2b$12$hNf2lSsxfm0.i4a.1kVpSOVyBCfIB51VRjgBUyv6kdnyTlgWj81Ay }\n";
    fs::write(web.path(), users).unwrap();
    let web = format!("--web.config.file={}", web.path().display());
    let locked = PrometheusServer::start(Some(data.path()), &[ADMIN, &web]).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::create_dir(elsewhere.path().join("wal")).unwrap();
    let mut all = String::new();
    let mut hear = async |server: &PrometheusServer, change: &dyn Fn(&mut PrometheusConfig)| {
        let mut config = config(server);
        change(&mut config);
        let e = capture(&cx, &prometheus(config)).await.err().unwrap();
        let text = told(server, &e).replace(elsewhere.path().to_str().unwrap(), "ELSEWHERE");
        all += &snapshot_named(&text);
        assert!(left_in(&empty.data()).is_empty());
    };
    hear(&closed, &|_| ()).await;
    hear(&empty, &|_| ()).await;
    hear(&locked, &|_| ()).await;
    hear(&locked, &|c| {
        (c.user, c.password) = (Some("me".to_owned()), Some(Secret::new("wrong".to_owned())));
    })
    .await;
    hear(&server, &|c| c.url = NOWHERE.to_owned()).await;
    hear(&server, &|c| c.url += "/graph").await;
    hear(&server, &|c| c.data_dir = "/nowhere".into()).await;
    hear(&server, &|c| c.data_dir = c.data_dir.parent().unwrap().to_owned()).await;
    hear(&server, &|c| c.data_dir = elsewhere.path().to_owned()).await;
    assert_snapshot!(all, @"
    the server makes no snapshots: its admin interface is off (url=URL) (unsupported, exit 1)
        hint: start it with --web.enable-admin-api, and let nobody else reach that address
    the server's snapshot has no blocks: it has no samples yet (url=URL) (source-missing, exit 1)
    the server does not let us in: check `user` and `password`, or `token` (url=URL) (permission-denied, exit 1)
    the server does not let us in: check `user` and `password`, or `token` (url=URL) (permission-denied, exit 1)
    the server does not answer (url=http://127.0.0.1:1): error sending request: client error (Connect): tcp connect error: Connection refused (os error 111) (unavailable, exit 75)
    the server does not know what it is asked: is `url` that of a Prometheus, with its prefix? (url=URL/graph) (unsupported, exit 1)
    cannot examine it (data_dir=/nowhere): No such file or directory (os error 2) (not-found, exit 1)
    this is not the data directory of a Prometheus (--storage.tsdb.path): it has no `wal` (data_dir=DIR) (invalid-config, exit 2)
    the server has made a snapshot, and it is not below `data_dir`: is that the server's --storage.tsdb.path, on this machine? What it has made takes space there until somebody removes it (path=ELSEWHERE/snapshots/NAME) (invalid-config, exit 2)
    ");
    let mut config = config(&locked);
    (config.user, config.password) = (Some("me".to_owned()), Some(Secret::new("test".to_owned())));
    capture(&cx, &prometheus(config)).await.unwrap();
}

/// Names of snapshots are of their time.
fn snapshot_named(text: &str) -> String {
    match text.find("/snapshots/") {
        Some(at) => {
            let (before, name) = text.split_at(at + "/snapshots/".len());
            let end = name.find(')').unwrap();
            format!("{before}NAME{}", &name[end..])
        }
        None => text.to_owned(),
    }
}

/// A block that was captured is known again, and one that is new is not.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_known_again() {
    let cx = Context::system();
    let data = blocks(&SAMPLES);
    let Some(server) = PrometheusServer::start(Some(data.path()), &[ADMIN]) else { return };
    let source = prometheus(config(&server));
    let first = capture(&cx, &source).await.unwrap();
    // The server takes up what lies there when it starts.
    add_blocks(&server.data(), &[("new", 1.0, 1_795_800_000)]);
    let dir = server.stop();
    let server = PrometheusServer::start(Some(&dir.path().join("data")), &[ADMIN]).unwrap();
    let second = capture(&cx, &prometheus(config(&server))).await.unwrap();
    let again = capture(&cx, &prometheus(config(&server))).await.unwrap();
    let prints = |taken: &crate::Taken| {
        let all = taken.content.values();
        all.map(|(meta, _)| (meta.name.to_string(), meta.fingerprint.clone())).collect::<Vec<_>>()
    };
    assert_eq!(prints(&second), prints(&again));
    assert_eq!((first.content.len(), second.content.len()), (8, 12));
    assert_eq!(second.record.facts, again.record.facts);
    assert!(second.cut.position.as_ref().unwrap().starts_with("until 2026-"), "{:?}", second.cut);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_noticed() {
    let cx = Context::system();
    let data = blocks(&SAMPLES);
    let Some(server) = PrometheusServer::start(Some(data.path()), &[ADMIN]) else { return };
    let names: Vec<_> = fs::read_dir(server.data()).unwrap().flatten().collect();
    let block = names.iter().find(|e| e.path().join("chunks").is_dir()).unwrap().path();
    let samples = block.join("chunks/000001");
    let mut bytes = fs::read(&samples).unwrap();
    let last = bytes.len() - 6;
    bytes[last] ^= 1;
    fs::write(&samples, bytes).unwrap();
    let taken = capture(&cx, &prometheus(config(&server))).await.unwrap();
    let problems: Vec<_> = taken.problems.iter().map(|(_, e)| e.chain()).collect();
    assert_eq!(problems, ["the checksum of a chunk of samples is wrong"]);

    let place = tempfile::tempdir().unwrap();
    let there = prometheus(PrometheusConfig::new(NOWHERE, place.path()));
    let refused = restore(&cx, &there, &taken, |_| ()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Corrupt);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    let report = restore(&cx, &there, &taken, |r| r.allow_damage = true).await.unwrap();
    assert_eq!(report.problem_count, 1, "{report:?}");
    assert_eq!(taken.record.facts.compare(&report.facts).verdict, RestoreVerdict::Match);
    // A part of a block is missing.
    fs::remove_file(block.join("index")).unwrap();
    let e = capture(&cx, &prometheus(config(&server))).await.err().unwrap();
    assert_eq!(e.reason(), Reason::Unavailable, "{}", e.chain());
    assert!(e.chain().contains("no such file"), "{}", e.chain());
    // What the server had begun is not left there.
    assert!(left_in(&server.data()).is_empty());
}

fn list(data: &Path) -> String {
    let listed = Command::new("promtool").args(["tsdb", "list"]).arg(data).output().unwrap();
    assert!(listed.status.success());
    String::from_utf8(listed.stdout).unwrap()
}

/// What was there is kept, and comes back by what is told; the vendor's tools take what was restored.
#[tokio::test(flavor = "multi_thread")]
async fn data_that_are_there_are_kept() {
    let cx = Context::system();
    let data = blocks(&SAMPLES);
    let Some(server) = PrometheusServer::start(Some(data.path()), &[ADMIN]) else { return };
    let mut with_query = config(&server);
    with_query.queries.insert("a".to_owned(), "count_over_time(a[9000d])".to_owned());
    let taken = capture(&cx, &prometheus(with_query)).await.unwrap();

    let other = blocks(&[("other", 9.0, 1_795_650_000)]);
    let target = PrometheusServer::start(Some(other.path()), &[ADMIN]).unwrap();
    let mut all = String::new();
    let there = prometheus(PrometheusConfig::new(target.url(), target.data()));
    all += &told(&target, &restore(&cx, &there, &taken, |_| ()).await.unwrap_err());
    all += &told(&target, &restore(&cx, &there, &taken, |r| r.overwrite = true).await.unwrap_err());
    let blind = prometheus(PrometheusConfig::new(NOWHERE, target.data()));
    all += &told(&target, &restore(&cx, &blind, &taken, |r| r.overwrite = true).await.unwrap_err());
    let url = Target::Url("http://metrics".to_owned());
    all += &told(&target, &restore(&cx, &there, &taken, |r| r.target = url).await.unwrap_err());
    let data = Target::Directory(target.data());
    all += &told(&target, &restore(&cx, &there, &taken, |r| r.target = data).await.unwrap_err());
    let dir = target.stop();
    let place = dir.path().join("data");
    let stopped = prometheus(PrometheusConfig::new(NOWHERE, &place));
    let e = restore(&cx, &stopped, &taken, |_| ()).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TargetNotEmpty);
    assert_snapshot!(all.replace(NOWHERE, "NOWHERE"), @"
    the server has blocks already, and runs: they cannot be replaced under it (data_dir=DIR/data) (target-not-empty, exit 11)
        hint: stop the server and restore with --overwrite (the old state is kept), or restore elsewhere with --target
    the server has blocks already, and runs: they cannot be replaced under it (data_dir=DIR/data) (target-not-empty, exit 11)
        hint: stop the server and restore with --overwrite (the old state is kept), or restore elsewhere with --target
    a server works in the data directory, and does not answer (data_dir=DIR/data): the server does not answer (url=NOWHERE): error sending request: client error (Connect): tcp connect error: Connection refused (os error 111) (busy, exit 75)
        hint: stop it, or name its address as `url`
    a server takes no blocks over the network: restore to its data directory, or to another with --target DIR (unsupported, exit 1)
    a server works in the directory: stop it, or restore to its own data directory (path=DIR/data) (busy, exit 75)
    ");

    let before = list(&place);
    let recovery = tempfile::tempdir().unwrap();
    let report = restore(&cx, &stopped, &taken, |r| {
        (r.overwrite, r.recovery) = (true, Some(recovery.path().to_owned()));
    })
    .await
    .unwrap();
    // Nobody was there to be asked.
    assert_eq!(report.beside.iter().collect::<Vec<_>>(), ["answer.a"]);
    let mut captured = taken.record.facts.clone();
    captured.0.retain(|name, _| !report.beside.contains(name));
    let comparison = captured.compare(&report.facts);
    assert_eq!(comparison.verdict, RestoreVerdict::Match, "{comparison:?}");
    assert!(recovery.path().join("wal").is_dir());
    let listed = list(&place);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    let restored = PrometheusServer::start(Some(&place), &[]).unwrap();
    let at = 1_795_620_000;
    assert_eq!(
        ask(&restored, "count_over_time(a[9000d])", at),
        ask(&server, "count_over_time(a[9000d])", at)
    );
    assert!(!ask(&restored, "other", 1_795_650_001).contains("=> 9"));
    let undo = report.undo.join("\n");
    // Also when somebody runs it once more.
    for _ in 0..2 {
        assert!(Command::new("sh").args(["-ec", &undo]).status().unwrap().success(), "{undo}");
    }
    assert!(place.join("wal").is_dir() && recovery.path().join("undone").is_dir());
    assert_eq!(list(&place), before);
    assert!(left_in(&place).is_empty());
}

/// Live facts cost no reading, and are those of a capture.
#[tokio::test(flavor = "multi_thread")]
async fn live_facts() {
    let cx = Context::system();
    let data = blocks(&SAMPLES);
    let Some(server) = PrometheusServer::start(Some(data.path()), &[ADMIN]) else { return };
    let source = prometheus(config(&server));
    let taken = capture(&cx, &source).await.unwrap();
    let live = source.facts(&cx).await.unwrap();
    for name in ["blocks", "samples", "series", "chunks", "from", "until"] {
        assert_eq!(live.0[name].value, taken.record.facts.0[name].value, "{name}");
    }
    assert!(left_in(&server.data()).is_empty());
}
