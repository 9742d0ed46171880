//! A database that nobody has written to is known again without being read, and no other.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use snapkit_core::artifact::{ArtifactMeta, Fingerprint};
use snapkit_core::context::Context;
use snapkit_core::facts::Facts;
use snapkit_core::manifest::{CaptureVerdict, SourceRecord};
use snapkit_core::source::Source as _;

use crate::child::{Other, can_write};
use crate::support::{bank, capture, run, source, sum};

/// Until a further change of the files would show.
async fn rest() {
    Context::system().sleep(Duration::from_millis(80)).await.unwrap();
}

/// What a capture says that has a basis and is not read.
async fn unread(path: &Path, basis: &SourceRecord) -> (ArtifactMeta, Facts) {
    let cx = Context::system();
    let mut capture = source(path).capture(&cx, Some(basis)).await.unwrap();
    capture.freeze(&cx).await.unwrap();
    capture.thaw(&cx).await.unwrap();
    let meta = capture.next(&cx).await.unwrap().unwrap();
    (meta, capture.finish(&cx).await.unwrap().facts)
}

async fn fingerprint(path: &Path) -> Option<Fingerprint> {
    capture(path).await.unwrap().meta.fingerprint
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

async fn is_known_again(path: &Path, change: impl Fn()) {
    rest().await;
    let first = capture(path).await.unwrap();
    let record = first.record(&source(path));
    assert!(first.meta.fingerprint.is_some());
    let (again, facts) = unread(path, &record).await;
    assert_eq!((&again, &facts), (&first.meta, &first.facts));
    assert_eq!(fingerprint(path).await, first.meta.fingerprint);

    change();
    rest().await;
    let (other, facts) = unread(path, &record).await;
    assert!(other.fingerprint.is_some() && other.fingerprint != first.meta.fingerprint);
    assert!(
        facts.0["pages"] != first.facts.0["pages"],
        "it was not read, and yet something is known"
    );
}

const CHANGE: &str = "UPDATE accounts SET amount = amount + id % 2 * 2 - 1 WHERE id < 3";

#[tokio::test]
async fn at_rest_without_a_log() {
    for mode in ["DELETE", "PERSIST", "WAL"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        drop(bank(&path, mode));
        is_known_again(&path, || {
            Connection::open(&path).unwrap().execute_batch(CHANGE).unwrap();
        })
        .await;
    }
}

/// The usual state of an application: it keeps its connection, and has something in its log.
#[tokio::test]
async fn at_rest_with_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link) = (dir.path().join("app.db"), dir.path().join("link.db"));
    std::os::unix::fs::symlink("app.db", &link).unwrap();
    drop(bank(&path, "WAL"));
    let _application = Other::start("add", &path);
    assert!(std::fs::metadata(beside(&path, "-wal")).unwrap().len() > 0);
    is_known_again(&path, || run("sqlite3", &[&path, CHANGE.as_ref()])).await;
    is_known_again(&link, || run("sqlite3", &[&path, CHANGE.as_ref()])).await;
}

/// A writer has put its commit into the log and is held up, maybe by its disk, before it makes it known. No
/// file's time tells the two states apart.
#[tokio::test]
async fn a_commit_that_is_not_known_yet_makes_another_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let (index, before, after) =
        (beside(&path, "-shm"), dir.path().join("before"), dir.path().join("after"));
    drop(bank(&path, "WAL"));
    let _application = Other::start("add", &path);
    let header = |from: &Path, to: &Path| {
        let arg = |name: &str, path: &Path| PathBuf::from(format!("{name}={}", path.display()));
        let (from, to) = (arg("if", from), arg("of", to));
        run(
            "dd",
            &[
                &from,
                &to,
                "bs=96".as_ref(),
                "count=1".as_ref(),
                "conv=notrunc".as_ref(),
                "status=none".as_ref(),
            ],
        );
    };
    header(&index, &before);
    run("sqlite3", &[&path, "UPDATE accounts SET amount = 4711 WHERE id = 77".as_ref()]);
    header(&index, &after);
    header(&before, &index);
    rest().await;
    let times = || {
        let of = |path: &Path| {
            let meta = std::fs::metadata(path).unwrap();
            (meta.len(), meta.mtime_nsec(), meta.ino())
        };
        (of(&path), of(&beside(&path, "-wal")))
    };
    let (first, seen) = (capture(&path).await.unwrap(), times());
    header(&after, &index);
    let second = capture(&path).await.unwrap();
    assert_eq!(times(), seen, "the files are expected not to tell");
    assert!(first.bytes != second.bytes, "the commit is expected to appear");
    assert!(first.meta.fingerprint.is_some() && second.meta.fingerprint.is_some());
    assert!(first.meta.fingerprint != second.meta.fingerprint);
}

#[tokio::test]
async fn what_has_just_changed_or_has_much_in_its_log_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let db = bank(&path, "WAL");
    let mut without = 0;
    // On a machine that is very busy some captures begin late.
    for _ in 0..20 {
        db.execute_batch(CHANGE).unwrap();
        without += usize::from(fingerprint(&path).await.is_none());
    }
    assert!(without > 0);
    run("truncate", &["--size=65M".as_ref(), &beside(&path, "-wal")]);
    rest().await;
    assert!(fingerprint(&path).await.is_none());
}

/// The log is opened and closed by other hands than SQLite's.
#[tokio::test]
async fn locks_of_the_host_survive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let host = bank(&path, "WAL");
    host.execute_batch("BEGIN IMMEDIATE").unwrap();
    rest().await;
    assert!(fingerprint(&path).await.is_some());
    assert!(!can_write(&path));
    host.execute_batch("UPDATE accounts SET amount = 1000; COMMIT").unwrap();
    assert!(can_write(&path));
}

/// What was opened is another file than what has the name when it is asked for.
#[tokio::test]
async fn a_file_that_was_replaced_meanwhile_has_none() {
    let cx = Context::system();
    let dir = tempfile::tempdir().unwrap();
    let (path, newer) = (dir.path().join("app.db"), dir.path().join("newer.db"));
    drop(bank(&path, "DELETE"));
    let db = bank(&newer, "DELETE");
    db.execute_batch("UPDATE accounts SET amount = 0").unwrap();
    assert_eq!(sum(&db), 0);
    drop(db);
    rest().await;
    let mut capture = source(&path).capture(&cx, None).await.unwrap();
    run("mv", &[&newer, &path]);
    rest().await;
    capture.freeze(&cx).await.unwrap();
    assert!(capture.next(&cx).await.unwrap().unwrap().fingerprint.is_none());
    capture.abort(&cx).await.unwrap();
}

/// Damage is found by reading, and each snapshot is to say it.
#[tokio::test]
async fn what_was_damaged_is_read_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    drop(bank(&path, "WAL"));
    rest().await;
    let first = capture(&path).await.unwrap();
    let mut record = first.record(&source(&path));
    record.verdict = CaptureVerdict::Partial;
    let (meta, facts) = unread(&path, &record).await;
    assert!(meta.fingerprint.is_none() && facts.0["pages"] != first.facts.0["pages"]);
}
