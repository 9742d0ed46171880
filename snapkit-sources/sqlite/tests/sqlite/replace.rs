//! Restores over databases that are in use, or were.

use std::path::Path;
use std::time::Duration;

use insta::assert_snapshot;
use rusqlite::Connection;
use snapkit_core::Reason;
use snapkit_core::context::Context;
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::source::Source as _;

use crate::child::Other;
use crate::support::{
    ACCOUNTS, Captured, assert_bank, assert_match, bank, capture, count, long, names, number,
    overwrite, patient, place, run, source, text, undo,
};

/// The naive way: put the file there by renaming.
fn rename_over(captured: &Captured, path: &Path) {
    let staged = path.with_extension("new");
    captured.write_to(&staged);
    run("mv", &[&staged, path]);
}

/// The old log makes the restored file look as it did before the restore.
#[tokio::test(flavor = "multi_thread")]
async fn over_a_log_that_a_killed_program_left() {
    let (dir, path, recovery) = place();
    drop(bank(&path, "WAL"));
    let captured = capture(&path).await.unwrap();
    drop(Other::start("add", &path));
    assert!(names(dir.path()).contains(&"app.db-wal".to_owned()));

    let naive = dir.path().join("naive.db");
    for suffix in ["", "-wal", "-shm"] {
        run(
            "cp",
            &[
                &dir.path().join(format!("app.db{suffix}")),
                &dir.path().join(format!("naive.db{suffix}")),
            ],
        );
    }
    rename_over(&captured, &naive);
    let db = assert_bank(&naive);
    assert_eq!(count(&db), ACCOUNTS + 2000, "renaming is expected to restore nothing");
    drop(db);

    let report = overwrite(&source(&path), &captured, &recovery).await.unwrap();
    assert_match(&captured, &report);
    let db = assert_bank(&path);
    assert_eq!(count(&db), ACCOUNTS);
    assert_eq!(number(&db, "SELECT count(*) FROM sqlite_schema WHERE name = 'newer'"), 0);
    assert_eq!(text(&db, "PRAGMA journal_mode"), "wal");
    drop(db);
    assert_eq!(names(&recovery), ["app.db"]);
    undo(&report);
    let db = assert_bank(&path);
    assert_eq!(count(&db), ACCOUNTS + 2000);
    assert_eq!(number(&db, "SELECT count(*) FROM newer"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_wal_database_with_a_reader() {
    let (_dir, path, recovery) = place();
    let host = bank(&path, "WAL");
    let captured = capture(&path).await.unwrap();
    host.execute_batch("DELETE FROM accounts WHERE id > 10").unwrap();
    let mut reader = Other::start("read", &path);
    let report = overwrite(&source(&path), &captured, &recovery).await.unwrap();
    assert_match(&captured, &report);
    assert_eq!(report.notes.len(), 1, "nobody else wrote: {report:?}");
    assert_eq!(reader.go(), "same", "the reader keeps what it sees");
    assert_eq!(reader.go(), ACCOUNTS.to_string(), "and then sees what was restored");
    assert_eq!(count(&host), ACCOUNTS);
    assert_eq!(text(&host, "PRAGMA journal_mode"), "wal");
    host.execute_batch("INSERT INTO accounts VALUES (NULL, 0)").unwrap();
    drop((reader, host));
    assert_eq!(count(&assert_bank(&path)), ACCOUNTS + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_database_that_is_being_written() {
    for mode in ["WAL", "DELETE"] {
        let (dir, path, recovery) = place();
        drop(bank(&path, mode));
        let captured = capture(&path).await.unwrap();
        Connection::open(&path)
            .unwrap()
            .execute_batch("DELETE FROM accounts WHERE id > 10")
            .unwrap();
        let mut writer = Other::start("write", &path);
        let source = patient(&path, Duration::from_millis(300));
        let cx = Context::system();
        let start = cx.monotonic();
        let e = overwrite(&source, &captured, &recovery).await.unwrap_err();
        assert_eq!(e.reason(), Reason::Busy, "{mode}: {e}");
        assert!(e.message().starts_with("cannot write the database: another"), "{e}");
        assert!(e.message().contains("stop that program"), "{e}");
        assert!(e.context().iter().any(|(k, v)| *k == "held_by" && v.contains("process")), "{e}");
        assert!(cx.monotonic() - start < Duration::from_secs(10));
        assert!(names(&recovery).is_empty(), "{mode}");
        assert!(
            !names(dir.path()).iter().any(|n| n.contains("snapkit")),
            "{:?}",
            names(dir.path())
        );
        assert_eq!(writer.go(), "committed", "{mode}");
        assert_eq!(count(&Connection::open(&path).unwrap()), 11, "{mode}");
        drop(writer);
        let report = overwrite(&source, &captured, &recovery).await.unwrap();
        assert_match(&captured, &report);
        assert_eq!(text(&assert_bank(&path), "PRAGMA journal_mode"), mode.to_lowercase());
    }
}

/// The naive way: a writer that has the old file open goes on in it, or in its log.
#[tokio::test(flavor = "multi_thread")]
async fn renaming_under_a_writer_loses_or_mixes() {
    let (_dir, path, _) = place();
    drop(bank(&path, "WAL"));
    let captured = capture(&path).await.unwrap();
    Connection::open(&path).unwrap().execute_batch("DELETE FROM accounts WHERE id > 10").unwrap();
    let mut writer = Other::start("write", &path);
    rename_over(&captured, &path);
    assert_eq!(writer.go(), "committed");
    let db = Connection::open(&path).unwrap();
    let rows = db.query_row("SELECT count(*) FROM accounts", [], |row| row.get::<_, i64>(0));
    let as_serial =
        rows.is_ok_and(|n| n == ACCOUNTS + 1) && text(&db, "PRAGMA integrity_check") == "ok";
    assert!(!as_serial, "a commit that was confirmed is expected to vanish or to mix");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_rollback_database_with_a_reader() {
    let (_dir, path, recovery) = place();
    drop(bank(&path, "DELETE"));
    let captured = capture(&path).await.unwrap();
    let reader = Other::start("read", &path);
    let source = patient(&path, Duration::from_millis(300));
    let e = overwrite(&source, &captured, &recovery).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Busy, "{e}");
    assert!(names(&recovery).is_empty());
    drop(reader);
    assert_match(&captured, &overwrite(&source, &captured, &recovery).await.unwrap());
}

/// No commit may slip in between the copy of the old state and the new one: each is in one of them.
#[tokio::test(flavor = "multi_thread")]
async fn beside_a_busy_writer_nothing_that_was_committed_is_lost() {
    for mode in ["WAL", "DELETE"] {
        let (_dir, path, recovery) = place();
        drop(bank(&path, mode));
        let captured = capture(&path).await.unwrap();
        let mut writer = Other::start("transfer-fast", &path);
        let (mut kept, mut done) = (0, 0);
        for i in 0..if long() { 100 } else { 10 } {
            let report = overwrite(&source(&path), &captured, &recovery).await.unwrap();
            // The writer goes on, and what it writes is not held against what was restored.
            assert!(report.differences.is_empty(), "{mode} {report:?}");
            match captured.facts.compare(&report.facts).verdict {
                RestoreVerdict::Match => {}
                // It was quicker than the reading back.
                RestoreVerdict::Unproven => {
                    assert!(
                        report.notes.iter().any(|n| n.contains("written to before")),
                        "{report:?}"
                    );
                }
                verdict => panic!("{mode} {verdict:?} {report:?}"),
            }
            let name = if i == 0 { "app.db".to_owned() } else { format!("app.db.{i}") };
            kept += number(&assert_bank(&recovery.join(name)), "SELECT n FROM transfers");
            done = i;
        }
        let commits: i64 = writer.go().parse().unwrap();
        let now = number(&assert_bank(&path), "SELECT n FROM transfers");
        assert_eq!(kept + now, commits, "{mode}, {done} restores");
        assert!(commits > 20);
    }
}

async fn with_another_page_size(mode: &str, page_sizes: (i64, i64)) {
    let (dir, path, recovery) = place();
    let make = |name: &str, page_size: i64| {
        let path = dir.path().join(name);
        let db = bank(&path, "DELETE");
        db.execute_batch(&format!(
            "PRAGMA page_size = {page_size}; VACUUM; PRAGMA journal_mode = {mode}"
        ))
        .unwrap();
        path
    };
    let captured = capture(&make("other.db", page_sizes.0)).await.unwrap();
    make("app.db", page_sizes.1);
    let user = Connection::open(&path).unwrap();
    user.execute_batch("DELETE FROM accounts WHERE id > 10").unwrap();
    let source = patient(&path, Duration::from_millis(300));
    if mode == "WAL" {
        let e = overwrite(&source, &captured, &recovery).await.unwrap_err();
        assert_eq!(e.reason(), Reason::Busy, "{e}");
        assert!(names(&recovery).is_empty());
        assert_eq!((count(&user), text(&user, "PRAGMA journal_mode")), (10, "wal".into()));
    }
    drop(user);
    let report = overwrite(&source, &captured, &recovery).await.unwrap();
    assert_match(&captured, &report);
    let db = assert_bank(&path);
    assert_eq!(number(&db, "PRAGMA page_size"), page_sizes.0);
    assert_eq!(text(&db, "PRAGMA journal_mode"), mode.to_lowercase());
    drop(db);
    undo(&report);
    let db = Connection::open(&path).unwrap();
    assert_eq!((count(&db), text(&db, "PRAGMA integrity_check")), (10, "ok".into()));
    assert_eq!(text(&db, "PRAGMA journal_mode"), mode.to_lowercase());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_other_page_sizes() {
    with_another_page_size("WAL", (8192, 1024)).await;
    with_another_page_size("WAL", (1024, 8192)).await;
    with_another_page_size("DELETE", (8192, 1024)).await;
    with_another_page_size("DELETE", (1024, 8192)).await;
}

/// The journal mode is the target's, not the snapshot's.
#[tokio::test(flavor = "multi_thread")]
async fn the_journal_mode_stays() {
    for (captured_mode, target_mode) in [("WAL", "DELETE"), ("DELETE", "WAL")] {
        let (dir, path, recovery) = place();
        let other = dir.path().join("other.db");
        drop(bank(&other, captured_mode));
        let captured = capture(&other).await.unwrap();
        let db = bank(&path, target_mode);
        db.execute_batch("DELETE FROM accounts; CREATE TABLE extra (x)").unwrap();
        drop(db);
        let report = overwrite(&source(&path), &captured, &recovery).await.unwrap();
        assert_match(&captured, &report);
        assert_eq!(text(&assert_bank(&path), "PRAGMA journal_mode"), target_mode.to_lowercase());
        undo(&report);
        let db = Connection::open(&path).unwrap();
        assert_eq!(number(&db, "SELECT count(*) FROM extra"), 0);
        assert_eq!(text(&db, "PRAGMA journal_mode"), target_mode.to_lowercase());
    }
}

/// A connection of the host itself sees the restored state, and its own locks stay its own.
#[tokio::test(flavor = "multi_thread")]
async fn under_a_connection_of_the_host() {
    let (_dir, path, recovery) = place();
    let host = bank(&path, "WAL");
    let captured = capture(&path).await.unwrap();
    host.execute_batch("DELETE FROM accounts; BEGIN IMMEDIATE").unwrap();
    let source = patient(&path, Duration::from_millis(200));
    let e = overwrite(&source, &captured, &recovery).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Busy);
    assert!(!crate::child::can_write(&path), "the host's lock is gone");
    host.execute_batch("COMMIT").unwrap();
    overwrite(&source, &captured, &recovery).await.unwrap();
    assert_eq!(count(&host), ACCOUNTS);
    let found = source.facts(&Context::system()).await.unwrap();
    assert_eq!(captured.facts.compare(&found).verdict.as_str(), "match");
}

/// Over an empty file, and twice into the same place for old states.
#[tokio::test(flavor = "multi_thread")]
async fn over_an_empty_file_and_again() {
    let (_dir, path, recovery) = place();
    drop(bank(&path, "DELETE"));
    let captured = capture(&path).await.unwrap();
    run("truncate", &[Path::new("-s0"), &path]);
    for names_then in [vec!["app.db"], vec!["app.db", "app.db.1"]] {
        let report = overwrite(&source(&path), &captured, &recovery).await.unwrap();
        assert_match(&captured, &report);
        assert_eq!(names(&recovery), names_then);
    }
    assert_bank(&path);
}

/// Old states pile up where nobody takes them away.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_old_states_are_too_many() {
    let (dir, path, recovery) = place();
    drop(bank(&path, "DELETE"));
    let captured = capture(&path).await.unwrap();
    run("rm", &[&path]);
    std::fs::write(&path, b"a letter").unwrap();
    for n in 0..1000 {
        let name = if n == 0 { "app.db".to_owned() } else { format!("app.db.{n}") };
        std::fs::write(recovery.join(name), "").unwrap();
    }
    let e = overwrite(&source(&path), &captured, &recovery).await.unwrap_err();
    let said = format!("{} ({})", e.chain(), e.reason());
    assert_snapshot!(said.replace(dir.path().to_str().unwrap(), "[DIR]"), @"cannot move the old files away: [DIR]/app.db: a thousand old states are kept there: take some away (path=[DIR]/recovery/app.db) (io)");
    assert_eq!(std::fs::read(&path).unwrap(), b"a letter");
}
