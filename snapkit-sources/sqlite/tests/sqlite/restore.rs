//! Restores to where nothing is, and what is refused.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use insta::assert_snapshot;
use rusqlite::Connection;
use snapkit_core::Reason;
use snapkit_core::artifact::{ArtifactName, SourceName};
use snapkit_core::context::Context;
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::registry::Registry;
use snapkit_core::source::{RestoreRequest, Source as _, Target};

use crate::child::Other;
use crate::support::{
    ACCOUNTS, Captured, assert_bank, assert_match, bank, capture, count, names, overwrite, place,
    restore_with, run, source, text, undo,
};

#[tokio::test(flavor = "multi_thread")]
async fn to_a_new_directory() {
    for mode in ["WAL", "DELETE"] {
        let (dir, path, _) = place();
        let host = bank(&path, mode);
        run("chmod", &[Path::new("640"), &path]);
        let captured = capture(&path).await.unwrap();
        let target = dir.path().join("new");
        std::fs::create_dir(&target).unwrap();
        let source = source(&path);
        let request =
            RestoreRequest::new(Target::Directory(target.clone()), captured.record(&source));
        let report = restore_with(&source, &captured, request).await.unwrap();
        assert_match(&captured, &report);
        assert!(report.undo.is_empty());
        assert_eq!(names(&target), ["app.db"], "nothing is left behind");
        let meta = std::fs::metadata(target.join("app.db")).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o640);
        let db = assert_bank(&target.join("app.db"));
        assert_eq!(text(&db, "PRAGMA journal_mode"), mode.to_lowercase());
        drop(host);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_not_replaced_unasked() {
    let (_dir, path, recovery) = place();
    let host = bank(&path, "WAL");
    let captured = capture(&path).await.unwrap();
    let source = source(&path);
    let request = RestoreRequest::new(Target::Original, captured.record(&source));
    let e = restore_with(&source, &captured, request).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TargetNotEmpty);
    let request = RestoreRequest::new(Target::Url("http://x".into()), captured.record(&source));
    let e = restore_with(&source, &captured, request).await.unwrap_err();
    assert_eq!(e.reason(), Reason::InvalidArgument);
    // It appears between the examination and the end.
    let target = recovery.join("app.db");
    let request =
        RestoreRequest::new(Target::Directory(recovery.clone()), captured.record(&source));
    let cx = Context::system();
    let mut restore = source.restore(&cx, &request).await.unwrap();
    restore.put(&cx, &captured.meta, captured.body()).await.unwrap();
    std::fs::write(&target, b"mine").unwrap();
    let e = restore.finish(&cx).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TargetNotEmpty);
    assert_eq!(std::fs::read(&target).unwrap(), b"mine");
    assert_eq!(names(&recovery), ["app.db"]);
    drop(host);
}

/// A log without its database would be replayed into the restored one.
#[tokio::test(flavor = "multi_thread")]
async fn files_left_beside_a_missing_database_are_moved_away() {
    let (dir, path, recovery) = place();
    drop(bank(&path, "WAL"));
    let captured = capture(&path).await.unwrap();
    drop(Other::start("add", &path));
    run("rm", &[&path]);
    let left = names(dir.path());
    assert_eq!(left, ["app.db-shm", "app.db-wal", "recovery"]);

    // The naive way, elsewhere.
    let naive = dir.path().join("naive");
    std::fs::create_dir(&naive).unwrap();
    for suffix in ["-wal", "-shm"] {
        run("cp", &[&dir.path().join(format!("app.db{suffix}")), &naive]);
    }
    captured.write_to(&naive.join("app.db"));
    assert_eq!(count(&Connection::open(naive.join("app.db")).unwrap()), ACCOUNTS + 2000);

    let source = source(&path);
    let mut request = RestoreRequest::new(Target::Original, captured.record(&source));
    request.recovery = Some(recovery.clone());
    let report = restore_with(&source, &captured, request).await.unwrap();
    assert_match(&captured, &report);
    assert_eq!(count(&assert_bank(&path)), ACCOUNTS);
    assert_eq!(names(&recovery), ["app.db-shm", "app.db-wal"]);
    undo(&report);
    assert_eq!(names(dir.path()), ["app.db-shm", "app.db-wal", "naive", "recovery"]);
}

/// A journal without its database would be rolled back into the restored one.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_left_beside_a_missing_database_is_moved_away() {
    let (dir, path, recovery) = place();
    drop(bank(&path, "DELETE"));
    let captured = capture(&path).await.unwrap();
    drop(Other::start("write-much", &path));
    run("rm", &[&path]);
    assert_eq!(names(dir.path()), ["app.db-journal", "recovery"]);
    let source = source(&path);
    let mut request = RestoreRequest::new(Target::Original, captured.record(&source));
    request.recovery = Some(recovery.clone());
    let report = restore_with(&source, &captured, request).await.unwrap();
    assert_match(&captured, &report);
    assert_eq!(names(&recovery), ["app.db-journal"]);
}

fn damaged(captured: &Captured) -> Vec<(&'static str, Captured)> {
    let with = |f: &dyn Fn(&mut Vec<u8>)| {
        let mut other = captured.clone();
        f(&mut other.bytes);
        other
    };
    vec![
        ("a changed byte", with(&|b| b[20_000] ^= 1)),
        ("a wiped page", with(&|b| b[4096..8192].fill(0))),
        ("half", with(&|b| b.truncate(b.len() / 2))),
        ("half a page more", with(&|b| b.extend([0; 2048]))),
        ("another header", with(&|b| b[..16].fill(b'x'))),
        ("a short one", with(&|b| b.truncate(50))),
        ("nothing", with(&|b| b.clear())),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_refused_before_anything_is_touched() {
    let (dir, path, recovery) = place();
    let host = bank(&path, "WAL");
    let captured = capture(&path).await.unwrap();
    host.execute_batch("INSERT INTO accounts VALUES (NULL, 0)").unwrap();
    let source = source(&path);
    let before = source.facts(&Context::system()).await.unwrap();
    let mut said = String::new();
    for (what, other) in damaged(&captured) {
        let e = overwrite(&source, &other, &recovery).await.unwrap_err();
        assert_eq!(e.reason(), Reason::Corrupt, "{what}: {e}");
        said += &format!("{what}: {}\n", e.chain());
        assert_eq!(source.facts(&Context::system()).await.unwrap(), before, "{what}");
        assert!(names(&recovery).is_empty(), "{what}");
    }
    // Damage that no digest shows, because none was pinned: SQLite finds it.
    for (what, mut other) in damaged(&captured).into_iter().skip(1) {
        other.facts.0.remove("pages");
        let e = overwrite(&source, &other, &recovery).await.unwrap_err();
        assert_eq!(e.reason(), Reason::Corrupt, "{what}: {e}");
        said += &format!("{what}, without a digest: {}\n", e.chain());
    }
    assert_snapshot!(said.replace(dir.path().to_str().unwrap(), "[DIR]"), @"
    a changed byte: what is to be restored is not what was captured (target=[DIR]/app.db)
    a wiped page: what is to be restored is not what was captured (target=[DIR]/app.db)
    half: what is to be restored is not what was captured (target=[DIR]/app.db)
    half a page more: what is to be restored is not what was captured (target=[DIR]/app.db)
    another header: what is to be restored is not a SQLite database (target=[DIR]/app.db)
    a short one: what is to be restored is not a SQLite database (target=[DIR]/app.db)
    nothing: what is to be restored is not a SQLite database (target=[DIR]/app.db)
    a wiped page, without a digest: the database was damaged when it was captured; --allow-damage puts it back as it is: Tree 2 page 2: btreeInitPage() returns error code 11 (findings=8, target=[DIR]/app.db)
    half, without a digest: the database was damaged when it was captured; --allow-damage puts it back as it is: cannot read the database: the database is damaged (findings=1, target=[DIR]/app.db)
    half a page more, without a digest: the database was damaged when it was captured; --allow-damage puts it back as it is: the database says that it has 61440 bytes, and 63488 are there (findings=1, target=[DIR]/app.db)
    another header, without a digest: what is to be restored is not a SQLite database (target=[DIR]/app.db)
    a short one, without a digest: what is to be restored is not a SQLite database (target=[DIR]/app.db)
    nothing, without a digest: what is to be restored is not a SQLite database (target=[DIR]/app.db)
    ");
    // A body that ends in an error.
    let cx = Context::system();
    let mut request = RestoreRequest::new(Target::Original, captured.record(&source));
    request.overwrite = true;
    let mut restore = source.restore(&cx, &request).await.unwrap();
    let pieces = vec![
        Ok(bytes::Bytes::copy_from_slice(&captured.bytes[..9000])),
        Err(snapkit_core::Error::corrupt("damage")),
    ];
    let body = snapkit_core::artifact::Body::Bytes(Box::pin(futures_util::stream::iter(pieces)));
    assert_eq!(restore.put(&cx, &captured.meta, body).await.unwrap_err().reason(), Reason::Corrupt);
    restore.abort(&cx).await.unwrap();
    assert_eq!(names(dir.path()), ["app.db", "app.db-shm", "app.db-wal", "recovery"]);
    drop(host);
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_find_what_would_not_restore() {
    let (dir, path, _) = place();
    let db = bank(&path, "WAL");
    let captured = capture(&path).await.unwrap();
    let (cx, source) = (Context::system(), source(&path));
    let sound = source.check(&cx, &captured.meta, captured.body()).await.unwrap();
    assert!(sound.0.is_empty(), "{sound:?}");
    for (what, other) in damaged(&captured).into_iter().skip(1) {
        let found = source.check(&cx, &other.meta, other.body()).await.unwrap();
        assert!(!found.0.is_empty(), "{what}");
    }
    db.execute_batch(
        "PRAGMA foreign_keys = OFF; CREATE TABLE p (id INTEGER PRIMARY KEY);
         CREATE TABLE c (p REFERENCES p); INSERT INTO c VALUES (7)",
    )
    .unwrap();
    let orphans = capture(&path).await.unwrap();
    let found = source.check(&cx, &orphans.meta, orphans.body()).await.unwrap();
    assert_eq!(found.0.len(), 1, "{found:?}");
    assert_eq!(found.0[0].what, "row 1 of c has no parent in p");
    drop(dir);
}

/// Not everything that SQLite remarks on is damage.
#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_only_its_own_rules_is_restored() {
    let (dir, path, _) = place();
    let db = bank(&path, "DELETE");
    db.execute_batch(
        "CREATE TABLE t (a TEXT COLLATE BINARY); CREATE INDEX t_a ON t (a); INSERT INTO t VALUES ('x'), ('y');
         CREATE TABLE strict_one (a INTEGER CHECK (a > 0), b);
         PRAGMA ignore_check_constraints = ON; INSERT INTO strict_one VALUES (-1, NULL);
         PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = replace(sql, 'COLLATE BINARY', 'COLLATE ours') WHERE name = 't';
         UPDATE sqlite_schema SET sql = replace(sql, ', b)', ', b NOT NULL)') WHERE name = 'strict_one'",
    )
    .unwrap();
    drop(db);
    let captured = capture(&path).await.unwrap();
    let target = dir.path().join("new");
    std::fs::create_dir(&target).unwrap();
    let source = source(&path);
    let request = RestoreRequest::new(Target::Directory(target), captured.record(&source));
    let report = restore_with(&source, &captured, request).await.unwrap();
    assert_match(&captured, &report);
    assert!(report.notes.iter().any(|n| n.contains("table t could not be examined")), "{report:?}");
    assert!(report.notes.iter().any(|n| n.contains("NULL value in strict_one.b")), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_alone_is_enough_whatever_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(OsStr::from_bytes(b"caf\xe9 'x\" \\y\n.db"));
    let db = bank(&path, "WAL");
    let captured = capture(&path).await.unwrap();
    let record = captured.record(&source(&path));
    let record = serde_json::from_str::<snapkit_core::manifest::SourceRecord>(
        &serde_json::to_string(&record).unwrap(),
    )
    .unwrap();
    db.execute_batch("DELETE FROM accounts").unwrap();
    drop(db);
    let mut registry = Registry::new();
    snapkit_source_sqlite::register(&mut registry);
    let name = SourceName::new("again").unwrap();
    let source = registry.build(&record.kind, name, record.settings.clone()).unwrap();
    let cx = Context::system();
    let mut request = RestoreRequest::new(Target::Original, record);
    request.overwrite = true;
    let mut restore = source.restore(&cx, &request).await.unwrap();
    restore.put(&cx, &captured.meta, captured.body()).await.unwrap();
    let report = restore.finish(&cx).await.unwrap();
    assert_match(&captured, &report);
    assert_bank(&path);
    // No place for the old state was given: it is beside the target.
    undo(&report);
    assert_eq!(count(&Connection::open(&path).unwrap()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_followed() {
    let (dir, path, recovery) = place();
    let real = dir.path().join("real.db");
    let host = bank(&real, "WAL");
    std::os::unix::fs::symlink(&real, &path).unwrap();
    let captured = capture(&path).await.unwrap();
    assert_eq!(captured.meta.name.as_str(), "app.db");
    host.execute_batch("DELETE FROM accounts").unwrap();
    let report = overwrite(&source(&path), &captured, &recovery).await.unwrap();
    assert_match(&captured, &report);
    assert!(std::fs::symlink_metadata(&path).unwrap().is_symlink());
    assert_eq!(count(&host), ACCOUNTS);
    drop(host);
    run("rm", &[&real]);
    let e = overwrite(&source(&path), &captured, &recovery).await.unwrap_err();
    assert_eq!(e.reason(), Reason::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_database_is_moved_away_and_can_come_back() {
    let (dir, path, recovery) = place();
    drop(bank(&path, "WAL"));
    let captured = capture(&path).await.unwrap();
    run("rm", &[&path]);
    std::fs::write(&path, b"a letter").unwrap();
    std::fs::write(dir.path().join("app.db-wal"), b"more").unwrap();
    let report = overwrite(&source(&path), &captured, &recovery).await.unwrap();
    assert_match(&captured, &report);
    assert_bank(&path);
    assert_eq!(names(&recovery), ["app.db", "app.db-wal"], "as it was");
    undo(&report);
    assert_eq!(std::fs::read(&path).unwrap(), b"a letter");
    assert_eq!(std::fs::read(dir.path().join("app.db-wal")).unwrap(), b"more");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_reading_back_nothing_is_proven() {
    let (dir, path, _) = place();
    drop(bank(&path, "WAL"));
    let captured = capture(&path).await.unwrap();
    let target = dir.path().join("new");
    std::fs::create_dir(&target).unwrap();
    let source = source(&path);
    let mut request = RestoreRequest::new(Target::Directory(target), captured.record(&source));
    request.read_back = false;
    let report = restore_with(&source, &captured, request).await.unwrap();
    assert!(report.facts.0.is_empty());
    assert_eq!(captured.facts.compare(&report.facts).verdict, RestoreVerdict::Unproven);
}

/// What a program hears that uses a session in a way in which it cannot be used.
#[tokio::test(flavor = "multi_thread")]
async fn calls_in_another_order_are_refused() {
    let (dir, path, _) = place();
    drop(bank(&path, "WAL"));
    let captured = capture(&path).await.unwrap();
    let (cx, source) = (Context::system(), source(&path));
    let mut said = String::new();
    let mut hear = |e: snapkit_core::Error| {
        let text = e.chain().replace(dir.path().to_str().unwrap(), "[DIR]");
        said += &format!("{text} ({}, exit {})\n", e.reason(), e.reason().row().exit);
    };
    let mut session = source.capture(&cx, None).await.unwrap();
    hear(session.next(&cx).await.err().unwrap());
    session.freeze(&cx).await.unwrap();
    hear(session.freeze(&cx).await.err().unwrap());
    let other = ArtifactName::new("other").unwrap();
    hear(session.open(&cx, &other).await.err().unwrap());
    session.abort(&cx).await.unwrap();

    let target = dir.path().join("new");
    std::fs::create_dir(&target).unwrap();
    let begin = async || {
        let to = Target::Directory(target.clone());
        source.restore(&cx, &RestoreRequest::new(to, captured.record(&source))).await.unwrap()
    };
    hear(begin().await.finish(&cx).await.err().unwrap());
    let mut session = begin().await;
    session.put(&cx, &captured.meta, captured.body()).await.unwrap();
    hear(session.put(&cx, &captured.meta, captured.body()).await.err().unwrap());
    session.abort(&cx).await.unwrap();
    let to = Target::Url("http://x".into());
    hear(
        source
            .restore(&cx, &RestoreRequest::new(to, captured.record(&source)))
            .await
            .err()
            .unwrap(),
    );
    std::os::unix::fs::symlink("elsewhere", target.join("app.db")).unwrap();
    let to = Target::Directory(target.clone());
    hear(
        source
            .restore(&cx, &RestoreRequest::new(to, captured.record(&source)))
            .await
            .err()
            .unwrap(),
    );
    assert_snapshot!(said, @"
    the capture has not been frozen (invalid-argument, exit 2)
    the capture has been frozen already (invalid-argument, exit 2)
    the capture has not been frozen (invalid-argument, exit 2)
    nothing was put to be restored (invalid-argument, exit 2)
    a SQLite source has one artifact (artifact=app.db) (invalid-argument, exit 2)
    a SQLite database is restored to a file, not to a URL (target=http://x) (invalid-argument, exit 2)
    the target is a symbolic link, which is not followed out of the directory of a restore (path=[DIR]/new/app.db) (already-exists, exit 11)
    ");
    assert_eq!(names(&target), ["app.db"]);
}
