//! Captures beside writers, and what they leave alone.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use rusqlite::Connection;
use snapkit_core::Reason;
use snapkit_core::artifact::{Chunking, Shape};
use snapkit_core::context::Context;
use snapkit_core::facts::{FactValue, Standing};
use snapkit_core::source::{Consistency, Source as _};

use crate::child::{Other, can_write};
use crate::support::{
    ACCOUNTS, assert_bank, bank, capture, capture_with, count, long, names, number, patient, run,
    source, sum, text,
};

async fn captures_beside_a_writer(mode: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    drop(bank(&path, mode));
    let _writer = Other::start("transfer", &path);
    let mut last = 0;
    for i in 0..100 {
        let captured = capture(&path).await.unwrap();
        let copy = dir.path().join("copy.db");
        captured.write_to(&copy);
        let db = assert_bank(&copy);
        let n = number(&db, "SELECT n FROM transfers");
        assert!(n >= last, "capture {i} is older than the one before it");
        assert_eq!(captured.facts.0["rows.accounts"].value, FactValue::from(ACCOUNTS));
        last = n;
        drop(db);
        for suffix in ["", "-wal", "-shm"] {
            drop(std::fs::remove_file(format!("{}{suffix}", copy.display())));
        }
    }
    assert!(last > 20, "the writer stood still");
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_writer_in_wal_mode() {
    captures_beside_a_writer("WAL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_writer_in_rollback_mode() {
    captures_beside_a_writer("DELETE").await;
}

/// The naive way: `cp` of a WAL database loses what is committed and not yet in the file.
#[tokio::test(flavor = "multi_thread")]
async fn cp_loses_commits_in_wal_mode() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("app.db"), dir.path().join("copy.db"));
    let db = bank(&path, "WAL");
    db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let _writer = Other::start("add", &path);
    assert_eq!(count(&db), ACCOUNTS + 2000);
    run("cp", &[&path, &copy]);
    let naive = assert_bank(&copy);
    assert_eq!(count(&naive), ACCOUNTS, "cp is expected to lose the rows");
    drop(naive);

    capture(&path).await.unwrap().write_to(&copy);
    assert_eq!(count(&assert_bank(&copy)), ACCOUNTS + 2000);
}

/// The naive way: `cp` of a database with a rollback journal sees half a transaction.
#[tokio::test(flavor = "multi_thread")]
async fn cp_sees_half_a_transaction_in_rollback_mode() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("app.db"), dir.path().join("copy.db"));
    drop(bank(&path, "DELETE"));
    let writer = Other::start("write-much", &path);
    run("cp", &[&path, &copy]);
    let naive = Connection::open(&copy).unwrap();
    let broken = text(&naive, "PRAGMA integrity_check") != "ok" || sum(&naive) != ACCOUNTS * 1000;
    assert!(broken, "cp is expected to copy half a transaction");

    let e = capture_with(&Context::system(), &patient(&path, Duration::from_millis(200))).await;
    let e = e.err().unwrap();
    assert_eq!(e.reason(), Reason::Busy, "{e}");
    assert!(e.context().iter().any(|(k, v)| *k == "held_by" && v.contains("process")), "{e}");
    drop(writer);
    let captured = capture(&path).await.unwrap();
    run("rm", &[&copy]);
    captured.write_to(&copy);
    assert_bank(&copy);
}

/// Closing any descriptor of a file drops the locks that its process holds on it.
#[tokio::test(flavor = "multi_thread")]
async fn locks_of_the_host_survive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let host = bank(&path, "DELETE");
    host.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert!(!can_write(&path));
    let cx = Context::system();
    let start = cx.monotonic();
    let e = capture_with(&cx, &patient(&path, Duration::from_millis(300))).await.err().unwrap();
    assert_eq!(e.reason(), Reason::Busy, "{e}");
    assert!(cx.monotonic() - start < Duration::from_secs(5));
    assert!(!can_write(&path), "the capture dropped the host's lock");

    drop(std::fs::File::open(&path).unwrap());
    assert!(can_write(&path), "opening and closing is expected to drop the host's lock");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_transaction_of_the_host_survives_in_wal_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let host = bank(&path, "WAL");
    host.execute_batch("BEGIN IMMEDIATE; INSERT INTO accounts VALUES (NULL, 0)").unwrap();
    let captured = capture(&path).await.unwrap();
    assert!(!can_write(&path));
    assert_eq!(captured.facts.0["rows.accounts"].value, FactValue::from(ACCOUNTS));
    host.execute_batch("COMMIT").unwrap();
    assert!(can_write(&path));
    assert_eq!(count(&host), ACCOUNTS + 1);
}

fn state(dir: &Path) -> Vec<(String, u64, std::time::SystemTime)> {
    names(dir)
        .into_iter()
        .map(|name| {
            let meta = std::fs::metadata(dir.join(&name)).unwrap();
            (name, meta.len(), meta.modified().unwrap())
        })
        .filter(|(name, ..)| !name.ends_with("-shm"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_database_gives_the_same_bytes_and_is_left_alone() {
    for (mode, open) in [("WAL", true), ("WAL", false), ("DELETE", true), ("TRUNCATE", false)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let host = bank(&path, mode);
        let host = open.then_some(host);
        let before = state(dir.path());
        let first = capture(&path).await.unwrap();
        let second = capture(&path).await.unwrap();
        assert_eq!(state(dir.path()), before, "{mode} {open}");
        assert!(first.bytes == second.bytes && first.facts == second.facts, "{mode} {open}");
        assert!(
            first.facts.0.values().all(|f| f.standing == Standing::Pinned),
            "{:?}",
            first.facts
        );
        drop(host);

        let found = source(&path).facts(&Context::system()).await.unwrap();
        assert_eq!(first.facts.compare(&found).verdict.as_str(), "match");
        Connection::open(&path).unwrap().execute_batch("UPDATE transfers SET n = 1").unwrap();
        let found = source(&path).facts(&Context::system()).await.unwrap();
        let compared = first.facts.compare(&found);
        assert_eq!(compared.differences.len(), 1, "{compared:?}");
        assert_eq!(compared.differences[0].fact, "pages");
    }
}

/// A log that a crash left behind is the user's: it is read, and stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_left_by_a_crash_is_read_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    drop(bank(&path, "WAL"));
    drop(Other::start("add", &path));
    let before = state(dir.path());
    assert_eq!(before.len(), 2, "{before:?}");
    let captured = capture(&path).await.unwrap();
    assert_eq!(captured.facts.0["rows.accounts"].value, FactValue::from(ACCOUNTS + 2000));
    assert_eq!(state(dir.path()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_a_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let db = bank(&path, "WAL");
    db.execute_batch(
        "CREATE TABLE \"odd \"\" name\n\" (x); CREATE VIRTUAL TABLE words USING fts5 (body);
         INSERT INTO words VALUES ('hello')",
    )
    .unwrap();
    run("chmod", &[Path::new("640"), &path]);
    let c = capture(&path).await.unwrap();
    assert_eq!(c.meta.name.as_str(), "app.db");
    assert_eq!(
        (c.meta.shape, c.meta.media_type.as_str()),
        (Shape::Bytes, "application/vnd.sqlite3")
    );
    assert_eq!(c.meta.chunking, Chunking::Pages { page_size: 4096 });
    assert_eq!(c.cut.consistency, Consistency::Point);
    assert!(c.cut.begin <= c.cut.end);
    let attribute = |k: &str| c.meta.attributes[k].as_str();
    assert_eq!((attribute("page_size"), attribute("journal_mode")), ("4096", "wal"));
    assert_eq!((attribute("user_version"), attribute("application_id")), ("7", "1234"));
    assert_eq!(attribute("mode"), "0640");
    assert!(c.facts.0.contains_key("rows.odd \" name\\x0a"), "{:?}", c.facts);
    assert!(c.facts.0.contains_key("rows.words_data"), "{:?}", c.facts);
    assert!(!c.facts.0.contains_key("rows.words"), "{:?}", c.facts);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_size_and_an_empty_database() {
    let dir = tempfile::tempdir().unwrap();
    for page_size in [512, 1024, 65_536] {
        for mode in ["WAL", "DELETE"] {
            let path = dir.path().join(format!("{page_size}{mode}.db"));
            let db = Connection::open(&path).unwrap();
            db.execute_batch(&format!("PRAGMA page_size = {page_size}")).unwrap();
            drop((bank(&path, "DELETE"), db));
            let db = Connection::open(&path).unwrap();
            db.execute_batch(&format!("PRAGMA journal_mode = DELETE; PRAGMA page_size = {page_size}; VACUUM; PRAGMA journal_mode = {mode}"))
                .unwrap();
            let captured = capture(&path).await.unwrap();
            assert_eq!(captured.facts.0["page_size"].value, FactValue::from(page_size));
            let copy = dir.path().join(format!("{page_size}{mode}.copy"));
            captured.write_to(&copy);
            let copy = assert_bank(&copy);
            assert_eq!(text(&copy, "PRAGMA journal_mode"), mode.to_lowercase());
        }
    }
    let path = dir.path().join("empty.db");
    std::fs::write(&path, b"").unwrap();
    let captured = capture(&path).await.unwrap();
    assert_eq!(captured.facts.0["tables"].value, FactValue::from(0u64));
    assert_eq!(captured.facts, capture(&path).await.unwrap().facts);
}

/// SQLite deletes a log beside an empty file. It may be all that is left of a database.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_beside_an_emptied_database_is_not_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    drop(bank(&path, "WAL"));
    drop(Other::start("add", &path));
    run("truncate", &[Path::new("-s0"), &path]);
    let log = std::fs::metadata(dir.path().join("app.db-wal")).unwrap().len();
    let e = capture(&path).await.err().unwrap();
    assert_eq!(e.reason(), Reason::Corrupt, "{e}");
    let reader = snapkit_source_sqlite::ImageReader::default();
    assert!(reader.image(&Context::system(), &path).await.unwrap().is_none());
    assert_eq!(std::fs::metadata(dir.path().join("app.db-wal")).unwrap().len(), log);

    // The naive way.
    drop(Connection::open(&path).unwrap().execute_batch("SELECT * FROM sqlite_schema"));
    assert!(!dir.path().join("app.db-wal").exists(), "opening is expected to delete the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_captured() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let reason = async |path: &Path| capture(path).await.err().unwrap();
    assert_eq!(reason(&path).await.reason(), Reason::SourceMissing);
    assert!(names(dir.path()).is_empty(), "a capture must not make a database");
    assert_eq!(reason(dir.path()).await.reason(), Reason::InvalidArgument);
    for content in [vec![7u8; 9000], b"hello".to_vec()] {
        std::fs::write(&path, content).unwrap();
        let e = reason(&path).await;
        assert_eq!(e.reason(), Reason::InvalidArgument);
        assert!(e.message().contains("not a SQLite database, or an encrypted one"), "{e}");
    }
    assert_eq!(names(dir.path()), ["app.db"]);
}

/// The naive way: small steps begin again whenever somebody writes.
#[tokio::test(flavor = "multi_thread")]
async fn small_steps_never_end_beside_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("app.db"), dir.path().join("copy.db"));
    let db = bank(&path, "WAL");
    db.execute_batch(
        "CREATE TABLE filler (x); WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < 6000)
         INSERT INTO filler SELECT randomblob(3000) FROM i",
    )
    .unwrap();
    let _writer = Other::start("transfer-fast", &path);
    let cx = Context::system();
    let naive = {
        let mut to = Connection::open(&copy).unwrap();
        let backup = rusqlite::backup::Backup::new(&db, &mut to).unwrap();
        let start = cx.monotonic();
        let (mut done, mut restarts, mut left) = (false, 0, i32::MAX);
        while !done && cx.monotonic() - start < Duration::from_secs(2) {
            done = backup.step(100).unwrap() == rusqlite::backup::StepResult::Done;
            let now = backup.progress().remaining;
            restarts += i32::from(now >= left);
            left = now;
            std::thread::sleep(Duration::from_millis(3));
        }
        (done, restarts)
    };
    assert!(!naive.0 && naive.1 > 10, "small steps are expected to begin again: {naive:?}");
    let start = cx.monotonic();
    capture(&path).await.unwrap().write_to(&copy);
    assert!(cx.monotonic() - start < Duration::from_secs(10));
    drop(std::fs::remove_file(dir.path().join("copy.db-journal")));
    assert_bank(&copy);
}

/// Whoever stops waiting, or is told to stop, holds nothing any more.
/// Calls that an engine does not make, and another program may.
#[tokio::test(flavor = "multi_thread")]
async fn calls_in_another_order_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    drop(bank(&path, "WAL"));
    let cx = Context::system();
    let mut capture = source(&path).capture(&cx, None).await.unwrap();
    let mut said = String::new();
    said += &format!("{}\n", capture.next(&cx).await.unwrap_err());
    capture.freeze(&cx).await.unwrap();
    said += &format!("{}\n", capture.freeze(&cx).await.unwrap_err());
    let mut capture = source(&path).capture(&cx, None).await.unwrap();
    capture.freeze(&cx).await.unwrap();
    let other = snapkit_core::artifact::ArtifactName::new("other").unwrap();
    said += &format!("{}\n", capture.open(&cx, &other).await.unwrap_err());
    let meta = capture.next(&cx).await.unwrap().unwrap();
    let mut body = capture.open(&cx, &meta.name).await.unwrap().into_bytes().unwrap();
    capture.abort(&cx).await.unwrap();
    said += &format!("{}\n", body.next().await.unwrap().unwrap_err());
    insta::assert_snapshot!(said, @"
    the capture has not been frozen
    the capture has been frozen already
    no such artifact (artifact=other)
    the capture has ended, and its content can no longer be read
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_held_after_an_abort_a_drop_or_a_cancellation() {
    for mode in ["WAL", "DELETE"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let db = bank(&path, mode);
        db.busy_timeout(Duration::from_secs(2)).unwrap();
        let cx = Context::system();
        for end in ["abort", "drop", "finish", "hold the body"] {
            let mut capture = source(&path).capture(&cx, None).await.unwrap();
            capture.freeze(&cx).await.unwrap();
            let meta = capture.next(&cx).await.unwrap().unwrap();
            let mut body = capture.open(&cx, &meta.name).await.unwrap().into_bytes().unwrap();
            match end {
                "abort" => capture.abort(&cx).await.unwrap(),
                "drop" => drop((
                    capture,
                    std::mem::replace(&mut body, futures_util::stream::empty().boxed()),
                )),
                "finish" => {
                    let facts = capture.finish(&cx).await.unwrap();
                    assert_eq!(facts.facts.0["pages"].standing, Standing::Unknown);
                }
                _ => {
                    capture.abort(&cx).await.unwrap();
                    assert!(body.next().await.unwrap().is_err(), "read after the end");
                }
            }
            let busy: i64 = number(&db, "PRAGMA wal_checkpoint(TRUNCATE)");
            assert_eq!(busy, 0, "{mode} {end}");
            db.execute_batch("BEGIN EXCLUSIVE; COMMIT").unwrap();
        }
    }

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let host = bank(&path, "DELETE");
    host.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let (cx, patience) = (Context::system().child(), Duration::from_secs(600));
    let start = cx.monotonic();
    let (stop, waiting) = (cx.clone(), patient(&path, patience));
    let (outcome, ()) = tokio::join!(capture_with(&cx, &waiting), async {
        Context::system().sleep(Duration::from_millis(100)).await.unwrap();
        stop.cancel();
    });
    assert_eq!(outcome.err().unwrap().reason(), Reason::Cancelled);
    let cx = Context::system();
    let short = cx.within(Duration::from_millis(100));
    let e = short.run(capture_with(&cx, &patient(&path, patience))).await.err().unwrap();
    assert_eq!(e.reason(), Reason::TimedOut, "dropped while it waited");
    host.execute_batch("COMMIT").unwrap();
    host.busy_timeout(Duration::from_secs(2)).unwrap();
    host.execute_batch("BEGIN EXCLUSIVE; COMMIT").unwrap();
    assert!(cx.monotonic() < Duration::from_secs(30) && start < Duration::from_secs(30));
}

/// The page at 1 GiB is never used. Long: it takes a database of more than that.
#[tokio::test(flavor = "multi_thread")]
async fn the_lock_page_is_zeros() {
    if !long() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for mode in ["WAL", "DELETE"] {
        let path = dir.path().join(format!("{mode}.db"));
        let db = Connection::open(&path).unwrap();
        db.execute_batch(&format!(
            "PRAGMA page_size = 65536; PRAGMA journal_mode = {mode}; PRAGMA synchronous = OFF;
             CREATE TABLE t (x);
             WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < 1100)
             INSERT INTO t SELECT randomblob(1000000) FROM i"
        ))
        .unwrap();
        let captured = capture(&path).await.unwrap();
        let at = 1 << 30;
        assert!(captured.bytes.len() > at + 65_536);
        assert!(captured.bytes[at..at + 65_536].iter().all(|b| *b == 0));
        let target = dir.path().join("new");
        std::fs::create_dir(&target).unwrap();
        let source = source(&path);
        let request = snapkit_core::source::RestoreRequest::new(
            snapkit_core::source::Target::Directory(target.clone()),
            captured.record(&source),
        );
        let report = crate::support::restore_with(&source, &captured, request).await.unwrap();
        assert_eq!(captured.facts.compare(&report.facts).verdict.as_str(), "match");
        std::fs::remove_dir_all(target).unwrap();
        let recovery = dir.path().join("old");
        std::fs::create_dir(&recovery).unwrap();
        db.execute_batch("DELETE FROM t WHERE rowid % 2 = 0").unwrap();
        drop(db);
        let report = crate::support::overwrite(&source, &captured, &recovery).await.unwrap();
        assert_eq!(captured.facts.compare(&report.facts).verdict.as_str(), "match");
        std::fs::remove_dir_all(recovery).unwrap();
        std::fs::remove_file(path).unwrap();
    }
}

/// How fast a database is read. Long, and it only prints.
#[tokio::test(flavor = "multi_thread")]
async fn how_fast() {
    if !long() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for mode in ["WAL", "DELETE"] {
        let path = dir.path().join(mode);
        let db = bank(&path, mode);
        db.execute_batch(
            "PRAGMA synchronous = OFF; CREATE TABLE filler (x); WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < 300000)
             INSERT INTO filler SELECT randomblob(1000) FROM i",
        )
        .unwrap();
        let (cx, source) = (Context::system(), source(&path));
        let start = cx.monotonic();
        let mut capture = source.capture(&cx, None).await.unwrap();
        capture.freeze(&cx).await.unwrap();
        let frozen = cx.monotonic();
        let meta = capture.next(&cx).await.unwrap().unwrap();
        let mut body = capture.open(&cx, &meta.name).await.unwrap().into_bytes().unwrap();
        let mut bytes = 0;
        while let Some(piece) = body.next().await {
            bytes += piece.unwrap().len();
        }
        let read = cx.monotonic();
        capture.finish(&cx).await.unwrap();
        let end = cx.monotonic();
        println!(
            "{mode}: {} MiB, frozen {:?}, read {:?}, facts {:?}",
            bytes >> 20,
            frozen - start,
            read - frozen,
            end - read
        );
    }
}
