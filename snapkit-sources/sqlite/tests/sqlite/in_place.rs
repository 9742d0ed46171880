//! Restores to where a database was: directories that are missing, others that move what is around it,
//! locks, and a way back that may be taken twice.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rusqlite::Connection;
use snapkit_core::Reason;
use snapkit_core::context::Context;
use snapkit_core::source::{RestoreRequest, Source as _, Target};

use crate::child::Other;
use crate::support::{
    ACCOUNTS, assert_bank, assert_match, bank, capture, count, names, overwrite, patient, place,
    restore_with, source, undo,
};

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_are_missing_are_made_at_the_end() {
    let (dir, _, recovery) = place();
    std::fs::write(dir.path().join("other"), "").unwrap();
    let path = dir.path().join("srv/app/data/app.db");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(bank(&path, "WAL"));
    let captured = capture(&path).await.unwrap();
    let (cx, source) = (Context::system(), source(&path));
    for (overwrite, left) in [(false, "srv"), (true, "srv"), (false, "srv/app/data/app.db")] {
        let gone = dir.path().join(left);
        if gone.is_dir() {
            std::fs::remove_dir_all(&gone).unwrap();
        } else {
            std::fs::remove_file(&gone).unwrap();
        }
        let before = names(dir.path());
        let mut request = RestoreRequest::new(Target::Original, captured.record(&source));
        request.overwrite = overwrite;
        request.recovery = overwrite.then(|| recovery.clone());
        // Until the end nothing is where it goes, and nothing stays of what does not end.
        let mut restore = source.restore(&cx, &request).await.unwrap();
        restore.put(&cx, &captured.meta, captured.body()).await.unwrap();
        assert_eq!(dir.path().join("srv").exists(), left != "srv");
        assert_eq!(path.parent().unwrap().exists(), left != "srv");
        if left != "srv" {
            assert!(names(path.parent().unwrap()).is_empty());
        }
        restore.abort(&cx).await.unwrap();
        assert_eq!(names(dir.path()), before);
        assert!(names(&recovery).is_empty());

        let report = restore_with(&source, &captured, request).await.unwrap();
        assert_match(&captured, &report);
        assert_eq!(count(&assert_bank(&path)), ACCOUNTS);
        assert_eq!(names(path.parent().unwrap()), ["app.db"]);
        let made = report.notes.iter().any(|n| n.contains("2 above it were made, for their owner"));
        assert_eq!(made, left == "srv", "{report:?}");
        if made {
            let mode = std::fs::metadata(dir.path().join("srv")).unwrap().mode();
            assert_eq!(mode & 0o7777, 0o700);
        }
        assert!(report.undo.is_empty());
    }
    // A file where a directory has to be, and a directory of its own that is none.
    std::fs::remove_dir_all(dir.path().join("srv")).unwrap();
    std::fs::write(dir.path().join("srv"), "").unwrap();
    for target in [Target::Original, Target::Directory(dir.path().join("srv"))] {
        let request = RestoreRequest::new(target, captured.record(&source));
        let e = restore_with(&source, &captured, request).await.unwrap_err();
        assert_eq!(e.reason(), Reason::InvalidArgument, "{e:?}");
        assert!(e.to_string().contains("a file stands where"), "{e}");
    }
}

/// A source of files may put the whole tree that the database lies in into its place.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_around_it_may_move_before_the_end() {
    for keeps_directory in [false, true] {
        let (dir, _, recovery) = place();
        let path = dir.path().join("app/data/app.db");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(bank(&path, "WAL"));
        let captured = capture(&path).await.unwrap();
        let (cx, source) = (Context::system(), source(&path));
        let mut request = RestoreRequest::new(Target::Original, captured.record(&source));
        request.overwrite = true;
        request.recovery = Some(recovery.clone());
        let mut restore = source.restore(&cx, &request).await.unwrap();
        restore.put(&cx, &captured.meta, captured.body()).await.unwrap();
        std::fs::rename(dir.path().join("app"), dir.path().join("old")).unwrap();
        if keeps_directory {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        let report = restore.finish(&cx).await.unwrap();
        assert_match(&captured, &report);
        assert_eq!(count(&assert_bank(&path)), ACCOUNTS);
        assert_eq!(names(&dir.path().join("old/data")), ["app.db"]);
        assert!(names(&recovery).is_empty());
    }
}

/// The place for old states may be on another file system.
#[tokio::test(flavor = "multi_thread")]
async fn staging_elsewhere_is_copied() {
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else { return };
    let (dir, path, _) = place();
    let device = |p: &Path| std::fs::metadata(p).unwrap().dev();
    if device(elsewhere.path()) == device(dir.path()) {
        return;
    }
    drop(bank(&path, "DELETE"));
    let captured = capture(&path).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let report = overwrite(&source(&path), &captured, elsewhere.path()).await.unwrap();
    assert_match(&captured, &report);
    assert_bank(&path);
    assert_eq!(names(dir.path()), ["app.db", "recovery"]);
    assert!(names(elsewhere.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_the_target_is_said_to_be_one() {
    let (_dir, path, recovery) = place();
    let host = bank(&path, "DELETE");
    let captured = capture(&path).await.unwrap();
    host.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let source = patient(&path, Duration::from_millis(100));
    let e = overwrite(&source, &captured, &recovery).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Busy);
    assert!(e.message().starts_with("cannot write the database: another connection holds"), "{e}");
}

/// Run commands, the n-th of some programs of which never comes to run. Whether they came to their end.
fn run_until(commands: &[String], scratch: &Path, stop: u32) -> bool {
    let bin = scratch.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let count = scratch.join("count");
    std::fs::write(&count, "0").unwrap();
    for program in ["/bin/mv", "/usr/bin/sqlite3"] {
        let wrapper = bin.join(Path::new(program).file_name().unwrap());
        let text = format!(
            "#!/bin/sh\nn=$(cat '{0}')\necho $((n + 1)) > '{0}'\n[ $n -lt {stop} ] || exit 1\nexec {program} \"$@\"\n",
            count.display()
        );
        std::fs::write(&wrapper, text).unwrap();
        crate::support::run("chmod", &[Path::new("755"), &wrapper]);
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let script = commands.join("\n");
    Command::new("bash").args(["-c", &script]).env("PATH", path).output().unwrap();
    std::fs::read_to_string(&count).unwrap().trim().parse::<u32>().unwrap() <= stop
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_of_a_copy_may_be_taken_twice() {
    for (mode, page_size) in [("WAL", 4096), ("DELETE", 4096), ("WAL", 8192)] {
        let mut stop = 0;
        loop {
            let what = format!("{mode} {page_size}, cut off after {stop}");
            let (dir, path, recovery) = place();
            drop(bank(&path, mode));
            let captured = capture(&path).await.unwrap();
            let db = Connection::open(&path).unwrap();
            db.execute_batch(&format!(
                "DELETE FROM accounts WHERE id > 10; PRAGMA journal_mode = DELETE;
                 PRAGMA page_size = {page_size}; VACUUM; PRAGMA journal_mode = {mode}"
            ))
            .unwrap();
            drop(db);
            let report = overwrite(&source(&path), &captured, &recovery).await.unwrap();
            assert_match(&captured, &report);
            let ended = run_until(&report.undo, dir.path(), stop);
            undo(&report);
            let db = Connection::open(&path).unwrap();
            assert_eq!(count(&db), 10, "{what}");
            // Life goes on, and somebody runs it again.
            db.execute_batch("DELETE FROM accounts WHERE id > 5").unwrap();
            undo(&report);
            assert_eq!(count(&db), 5, "{what}");
            if ended {
                assert!(stop > 1, "{what}");
                break;
            }
            stop += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_of_what_was_moved_may_be_taken_twice() {
    for recovery_given in [true, false] {
        let mut stop = 0;
        loop {
            let what = format!("recovery {recovery_given}, cut off after {stop}");
            let (dir, path, recovery) = place();
            drop(bank(&path, "WAL"));
            let captured = capture(&path).await.unwrap();
            std::fs::write(&path, b"a letter").unwrap();
            let beside = dir.path().join("app.db-journal");
            std::fs::write(&beside, b"more").unwrap();
            let source = source(&path);
            let mut request = RestoreRequest::new(Target::Original, captured.record(&source));
            request.overwrite = true;
            request.recovery = recovery_given.then(|| recovery.clone());
            let report = restore_with(&source, &captured, request).await.unwrap();
            assert_match(&captured, &report);
            let ended = run_until(&report.undo, dir.path(), stop);
            undo(&report);
            assert_eq!(std::fs::read(&path).unwrap(), b"a letter", "{what}");
            assert_eq!(std::fs::read(&beside).unwrap(), b"more", "{what}");
            std::fs::write(&path, b"another letter").unwrap();
            undo(&report);
            assert_eq!(std::fs::read(&path).unwrap(), b"another letter", "{what}");
            if ended {
                assert!(stop > 1, "{what}");
                break;
            }
            stop += 1;
        }
    }
}

/// Somebody goes on writing while a restore is read back: that is no fault of what was restored.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_goes_on_is_not_counted() {
    let (_dir, path, recovery) = place();
    drop(bank(&path, "WAL"));
    let captured = capture(&path).await.unwrap();
    let _writer = Other::start("transfer-fast", &path);
    for _ in 0..20 {
        let report = overwrite(&source(&path), &captured, &recovery).await.unwrap();
        assert!(captured.facts.compare(&report.facts).differences.is_empty(), "{report:?}");
    }
}
