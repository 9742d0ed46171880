//! Restores into live servers and into the files of one that is stopped, beside what is lost in simpler ways.

use std::fs;
use std::path::{Path, PathBuf};

use futures_util::stream;
use insta::assert_snapshot;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape, SourceName};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::facts::{Facts, RestoreVerdict};
use snapkit_core::manifest::{ArtifactRecord, ChunkList, ContentRef, SourceRecord};
use snapkit_core::record::{Record, RecordReader};
use snapkit_core::source::{RestoreReport, RestoreRequest, Source as _, Target};
use snapkit_source_redis::connection::Reply;
use snapkit_source_redis::{Redis, RedisConfig};

use crate::conformance::state_of;
use crate::rdb::fill;
use crate::server::Server;

pub(crate) const AT_ONCE: [&str; 2] = ["--repl-diskless-sync-delay", "0"];

pub(crate) fn source(server: &Server) -> Redis {
    Redis::new(SourceName::new("cache").unwrap(), RedisConfig::new(server.url())).unwrap()
}

/// Capture one server straight into another place.
pub(crate) async fn carry(
    from: &Redis,
    target: Target,
    ask: impl FnOnce(&mut RestoreRequest),
) -> Result<(Facts, RestoreReport)> {
    let cx = Context::system();
    let mut capture = from.capture(&cx, None).await?;
    let cut = capture.freeze(&cx).await?;
    capture.thaw(&cx).await?;
    let mut metas = Vec::new();
    while let Some(meta) = capture.next(&cx).await? {
        metas.push(meta);
    }
    let mut record = SourceRecord::new(from.info());
    record.cut = Some(cut);
    // What is said before the content is read.
    record.artifacts = metas
        .iter()
        .map(|meta| {
            let content = ContentRef::Bytes { content: ChunkList::default() };
            ArtifactRecord::new(meta.clone(), content)
        })
        .collect();
    // The facts are known at the end, and a restore asks for them before: two captures of the same state.
    let mut again = from.capture(&cx, None).await?;
    again.freeze(&cx).await?;
    while again.next(&cx).await?.is_some() {}
    record.facts = again.finish(&cx).await?.facts;
    let mut request = RestoreRequest::new(target, record);
    ask(&mut request);
    let mut restore = from.restore(&cx, &request).await?;
    for meta in &metas {
        let body = capture.open(&cx, &meta.name).await?;
        if let Err(e) = restore.put(&cx, meta, body).await {
            restore.abort(&cx).await?;
            return Err(e);
        }
    }
    let facts = capture.finish(&cx).await?.facts;
    Ok((facts, restore.finish(&cx).await?))
}

pub(crate) fn proven(facts: &Facts, report: &RestoreReport) {
    let comparison = facts.compare(&report.facts);
    assert_eq!(comparison.verdict, RestoreVerdict::Match, "{comparison:#?}");
}

fn filled() -> Option<Server> {
    let server = Server::start(&AT_ONCE)?;
    fill(&mut server.client());
    Some(server)
}

/// What was there goes, functions, groups and all, and is kept; nothing is merged.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_server_is_replaced_and_its_old_state_kept() {
    let Some(from) = filled() else { return };
    let to = Server::start(&AT_ONCE).unwrap();
    let mut client = to.client();
    client.say("SET other 1");
    client.say("SET text old");
    client.ask(&[
        b"FUNCTION",
        b"LOAD",
        b"#!lua name=old\nredis.register_function('old', function() return 1 end)",
    ]);
    let (expected, before) = (state_of(&from), state_of(&to));
    let recovery = tempfile::tempdir().unwrap();
    let ask = |request: &mut RestoreRequest| {
        (request.overwrite, request.recovery) = (true, Some(recovery.path().to_owned()));
    };
    let (facts, report) = carry(&source(&from), Target::Url(to.url()), ask).await.unwrap();
    proven(&facts, &report);
    assert_eq!(state_of(&to), expected);
    // The old state is a file that a server loads.
    let old = Server::with_files(recovery.path(), &[]).unwrap();
    assert_eq!(state_of(&old), before);
}

/// The naive way: `dump.rdb` beside a server with an append-only file, which does not look at it.
#[tokio::test(flavor = "multi_thread")]
async fn the_files_are_good_for_servers_with_an_append_only_file_and_without() {
    let Some(from) = filled() else { return };
    let expected = state_of(&from);
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("cache");
    fs::create_dir(&dir).unwrap();
    let to = Target::Directory(dir.clone());
    let (facts, report) = carry(&source(&from), to, |_| ()).await.unwrap();
    proven(&facts, &report);
    for append_only in ["yes", "no"] {
        let server = Server::with_files(&dir, &["--appendonly", append_only]).unwrap();
        assert_eq!(state_of(&server), expected, "appendonly {append_only}");
    }
    let naive = tempfile::tempdir().unwrap();
    fs::copy(dir.join("dump.rdb"), naive.path().join("dump.rdb")).unwrap();
    let server = Server::with_files(naive.path(), &["--appendonly", "yes"]).unwrap();
    assert_eq!(server.client().say("DBSIZE"), Reply::Number(0));
    // Again is refused, and replaces what is there when that is asked for.
    let to = || Target::Directory(dir.clone());
    let refused = carry(&source(&from), to(), |_| ()).await.map(drop).unwrap_err();
    assert_eq!(refused.reason(), Reason::TargetNotEmpty);
    let recovery = tempfile::tempdir().unwrap();
    let ask = |request: &mut RestoreRequest| {
        (request.overwrite, request.recovery) = (true, Some(recovery.path().to_owned()));
    };
    let (_, first) = carry(&source(&from), to(), ask).await.unwrap();
    // A second time what was kept before stays, and nothing depends on one file system for all.
    from.client().say("SET second 2");
    let second_state = state_of(&from);
    let (_, second) = carry(&source(&from), to(), ask).await.unwrap();
    from.client().say("SET third 3");
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let apart = |request: &mut RestoreRequest| {
        (request.overwrite, request.recovery) = (true, Some(elsewhere.path().to_owned()));
    };
    let (_, third) = carry(&source(&from), to(), apart).await.unwrap();
    assert_eq!(state_of(&Server::with_files(&dir, &[]).unwrap()), state_of(&from));
    // And the ways back, one after another.
    for (report, before) in [(third, &second_state), (second, &expected), (first, &expected)] {
        let script = report.undo.join("\n");
        let back = std::process::Command::new("sh").arg("-c").arg(&script).output().unwrap();
        assert!(back.status.success(), "{script}\n{back:?}");
        for append_only in ["yes", "no"] {
            let server = Server::with_files(&dir, &["--appendonly", append_only]).unwrap();
            assert_eq!(state_of(&server), *before, "{script}");
        }
    }
}

/// A server that takes no more half-way is left as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_full_is_left_as_it_was() {
    let Some(from) = Server::start(&AT_ONCE) else { return };
    let mut client = from.client();
    for n in 0..3000_u32 {
        let noise: Vec<u8> =
            (0..1000_u32).flat_map(|i| (i.wrapping_mul(n + 7) >> 3).to_le_bytes()).collect();
        client.ask(&[b"SET", format!("key:{n}").as_bytes(), &noise]);
    }
    let to = Server::start(&["--repl-diskless-sync-delay", "0", "--maxmemory", "6mb"]).unwrap();
    let empty = carry(&source(&from), Target::Url(to.url()), |_| ()).await.map(drop).unwrap_err();
    assert_eq!(empty.reason(), Reason::NoSpace);
    assert_eq!(to.client().say("DBSIZE"), Reply::Number(0));
    // With something in it, that comes back.
    to.client().say("SET mine 1");
    let before = state_of(&to);
    let recovery = tempfile::tempdir().unwrap();
    let ask = |request: &mut RestoreRequest| {
        (request.overwrite, request.recovery) = (true, Some(recovery.path().to_owned()));
    };
    let full = carry(&source(&from), Target::Url(to.url()), ask).await.map(drop).unwrap_err();
    assert_eq!(full.reason(), Reason::NoSpace);
    assert_eq!(state_of(&to), before);
    assert_snapshot!(without_places(&full, &to), @"the server has reached its limit of memory (`maxmemory`) (key=key:, target=as it was): OOM command not allowed when used memory > 'maxmemory'.");
}

pub(crate) fn without_places(e: &Error, server: &Server) -> String {
    let text = e.chain().replace(server.path("").to_str().unwrap().trim_end_matches('/'), "DIR");
    let key = text.find("key=key:").map_or(text.len(), |at| at + 8);
    let digits = text[key..].find(|c: char| !c.is_ascii_digit()).unwrap_or(0);
    text[..key].to_owned() + &text[key + digits..]
}

/// What has expired since is no difference.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_expire_meanwhile_do_not_count() {
    let Some(from) = Server::start(&AT_ONCE) else { return };
    let mut client = from.client();
    for n in 0..200 {
        client.say(&format!("SET short:{n} x PX {}", 1 + n * 20));
        client.say(&format!("SET long:{n} x PX 1000000"));
    }
    let to = Server::start(&AT_ONCE).unwrap();
    let cx = Context::system();
    let source = source(&from);
    let mut capture = source.capture(&cx, None).await.unwrap();
    capture.freeze(&cx).await.unwrap();
    let mut metas = Vec::new();
    while let Some(meta) = capture.next(&cx).await.unwrap() {
        metas.push(meta);
    }
    let request = RestoreRequest::new(Target::Url(to.url()), SourceRecord::new(source.info()));
    let mut restore = source.restore(&cx, &request).await.unwrap();
    for meta in &metas {
        let body = capture.open(&cx, &meta.name).await.unwrap();
        restore.put(&cx, meta, body).await.unwrap();
    }
    cx.sleep(std::time::Duration::from_millis(1500)).await.unwrap();
    let report = restore.finish(&cx).await.unwrap();
    proven(&capture.finish(&cx).await.unwrap().facts, &report);
    assert!(report.notes.iter().any(|note| note.contains("have expired")), "{report:?}");
}

/// What a server refuses is said before anything is changed.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_restored_is_refused_before() {
    let Some(from) = filled() else { return };
    let small =
        Server::start(&["--repl-diskless-sync-delay", "0", "--proto-max-bulk-len", "1mb"]).unwrap();
    from.client().ask(&[b"SET", b"huge", &vec![b'x'; 700_000].repeat(3)]);
    from.client().say("CONFIG SET rdbcompression no");
    let mut said = String::new();
    let mut hear = |what: &str, server: &Server, e: Error| {
        assert_eq!(server.client().say("DBSIZE"), Reply::Number(0), "{what}");
        said += &format!("{what}: {} ({})\n", without_places(&e, server), e.reason());
    };
    let e = carry(&source(&from), Target::Url(small.url()), |_| ()).await.map(drop).unwrap_err();
    hear("a long value", &small, e);
    let replica = Server::start(&AT_ONCE).unwrap();
    replica.client().say("REPLICAOF 127.0.0.1 1");
    let e = carry(&source(&from), Target::Url(replica.url()), |_| ()).await.map(drop).unwrap_err();
    hear("a replica", &replica, e);
    // What is stored is not what was captured.
    let empty = Server::start(&AT_ONCE).unwrap();
    let lie = |request: &mut RestoreRequest| request.record.facts.pin("keys", 1_u64);
    let e = carry(&source(&from), Target::Url(empty.url()), lie).await.map(drop).unwrap_err();
    hear("another number of keys", &empty, e);
    let newer = |request: &mut RestoreRequest| {
        for artifact in &mut request.record.artifacts {
            if artifact.meta.name.as_str() == "keys" {
                artifact.meta.attributes.insert("rdb_version".to_owned(), "99".to_owned());
            }
        }
    };
    let e = carry(&source(&from), Target::Url(empty.url()), newer).await.map(drop).unwrap_err();
    hear("values of the future", &empty, e);
    assert_snapshot!(said, @"
    a long value: a value has 2100016 bytes, and the server takes 1048576 at once (`proto-max-bulk-len`); restore to a directory, or raise that (key=huge) (limit-exceeded)
    a replica: the server is a replica, which takes nothing: name its master (server=DIR/socket) (invalid-config)
    another number of keys: what is stored is not what was captured, so the target was left as it is (fact=keys, captured=1, stored=26) (corrupt)
    values of the future: the snapshot has values that redis 7.0.15 does not know: it reads version 10 of the format, and they need 99 (server=DIR/socket) (unsupported)
    ");
}

struct NoRecords;

#[async_trait::async_trait]
impl RecordReader for NoRecords {
    fn axes(&self) -> &[String] {
        &[]
    }

    async fn next_batch(&mut self, _: &Context) -> Result<Option<Vec<Record>>> {
        Ok(None)
    }
}

/// What is stored is not what a capture of this source stores.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_capture_of_a_server_is_refused() {
    let Some(to) = Server::start(&AT_ONCE) else { return };
    let cx = Context::system();
    let source = source(&to);
    let mut said = String::new();
    let mut hear = |what: &str, result: Result<()>| {
        let e = result.unwrap_err();
        said += &format!("{what}: {} ({})\n", without_places(&e, &to), e.reason());
    };
    let begin = async || {
        let request = RestoreRequest::new(Target::Url(to.url()), SourceRecord::new(source.info()));
        source.restore(&cx, &request).await.unwrap()
    };
    let meta = |name: &str| {
        let name = ArtifactName::new(name).unwrap();
        ArtifactMeta::new(name, Shape::Bytes, "text/plain", Chunking::Content)
    };
    let short = Body::Bytes(Box::pin(stream::once(async { Ok("short".into()) })));
    hear("nothing", begin().await.finish(&cx).await.map(drop));
    hear("functions", begin().await.put(&cx, &meta("functions"), short).await);
    let none = Body::Records(Box::new(NoRecords));
    hear("a text in records", begin().await.put(&cx, &meta("config"), none).await);
    assert_snapshot!(said, @"
    nothing: neither keys nor a whole snapshot were put (corrupt)
    functions: the functions are cut short (corrupt)
    a text in records: an artifact has an unknown form (artifact=config) (corrupt)
    ");
}

/// With the least rights, and with a snapshot that is kept as one piece.
#[tokio::test(flavor = "multi_thread")]
async fn the_least_rights_and_one_piece() {
    let Some(from) = filled() else { return };
    let expected = state_of(&from);
    from.client().say("ACL SETUSER snap on >pw +ping +psync +replconf");
    let json =
        serde_json::json!({ "url": from.url(), "user": "snap", "password": "pw", "raw": true });
    let config: RedisConfig = serde_json::from_value(json).unwrap();
    let least = Redis::new(SourceName::new("cache").unwrap(), config).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let dir: PathBuf = scratch.path().join("cache");
    fs::create_dir(&dir).unwrap();
    let (facts, report) = carry(&least, Target::Directory(dir.clone()), |_| ()).await.unwrap();
    assert!(facts.0["server.version"].value.to_string().contains("may not"), "{facts:?}");
    assert!(report.facts.0.is_empty() && !report.notes.is_empty());
    let live = Server::start(&AT_ONCE).unwrap();
    let e = carry(&least, Target::Url(live.url()), |_| ()).await.map(drop).unwrap_err();
    assert_snapshot!(without_places(&e, &live), @"what was kept as one piece can only be put into the files of a server that is stopped: restore it to a directory");
    let server = Server::with_files(Path::new(&dir), &[]).unwrap();
    assert_eq!(state_of(&server), expected);
}
