//! Databases among other files.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use snapkit_core::context::Context;
use snapkit_core::{Reason, Result};
use snapkit_source_sqlite::ImageReader;

use snapkit_core::source::{RestoreRequest, Source as _, Target};

use crate::support::{
    Captured, assert_bank, bank, capture, names, number, restore_with, source, undo,
};

#[tokio::test(flavor = "multi_thread")]
async fn images_of_databases_and_of_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (cx, reader) = (Context::system(), ImageReader::default());
    for mode in ["WAL", "DELETE"] {
        let path = dir.path().join(OsStr::from_bytes(b"caf\xe9 \\x?#%41.db")).join("..").join(mode);
        std::fs::create_dir_all(path.parent().unwrap().parent().unwrap()).unwrap();
        let path = path.with_file_name(OsStr::from_bytes(format!("{mode}\n?#%41").as_bytes()));
        let db = bank(&path, mode);
        let image = reader.image(&cx, &path).await.unwrap().unwrap();
        db.execute_batch("UPDATE transfers SET n = 5").unwrap();
        let pieces: Vec<_> = image.body.try_collect().await.unwrap();
        let bytes = pieces.concat();
        assert_eq!(bytes.len() as u64, image.size);
        let copy = dir.path().join("copy.db");
        std::fs::write(&copy, bytes).unwrap();
        assert_eq!(number(&assert_bank(&copy), "SELECT n FROM transfers"), 0);
        assert_eq!(number(&db, "PRAGMA wal_checkpoint(TRUNCATE)"), 0, "the image was let go");
    }
    for (name, content) in [("empty", &b""[..]), ("text", b"hello"), ("noise", &[9; 70_000])] {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        assert!(reader.image(&cx, &path).await.unwrap().is_none(), "{name}");
    }
    assert!(reader.image(&cx, dir.path()).await.unwrap().is_none());
    let missing: Result<_> = reader.image(&cx, &dir.path().join("missing")).await;
    assert_eq!(missing.unwrap_err().reason(), Reason::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_database_is_busy_and_not_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let db = bank(&path, "DELETE");
    db.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let reader = ImageReader::new(Duration::from_millis(100));
    let e = reader.image(&Context::system(), &path).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Busy);
}

/// What SQLite would take for a hot journal: it deletes or plays one back when it opens what is beside it.
fn journal() -> Vec<u8> {
    let mut journal = vec![0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    for number in [0xffff_ffff_u32, 0, 2, 512, 4096] {
        journal.extend(number.to_be_bytes());
    }
    journal.resize(512, 0);
    journal
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_beside_a_file_that_is_no_database_is_left_alone() {
    for content in [&b"my notes"[..], &[7; 16 << 10]] {
        for (suffix, beside) in [
            ("-journal", b"important".to_vec()),
            ("-journal", journal()),
            ("-wal", vec![1; 40_000]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("notes.db");
            std::fs::write(&path, content).unwrap();
            let journal = dir.path().join(format!("notes.db{suffix}"));
            std::fs::write(&journal, &beside).unwrap();
            let before = names(dir.path());
            let image = ImageReader::default().image(&Context::system(), &path).await.unwrap();
            assert!(image.is_none());
            let e = capture(&path).await.err().unwrap();
            assert_eq!(e.reason(), Reason::InvalidArgument, "{e:?}");
            assert_eq!(std::fs::read(&path).unwrap(), content);
            assert_eq!(std::fs::read(&journal).unwrap(), beside);
            assert_eq!(names(dir.path()), before);
        }
    }
    // The naive way: SQLite itself, only asked what is in it.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.db");
    std::fs::write(&path, "my notes").unwrap();
    std::fs::write(dir.path().join("notes.db-journal"), "important").unwrap();
    let db = rusqlite::Connection::open(&path).unwrap();
    assert!(db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).is_err());
    assert_eq!(names(dir.path()), ["notes.db"], "it deletes the other file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_is_captured_and_it_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let db = bank(&path, "DELETE");
    let pages = number(&db, "PRAGMA page_count");
    drop(db);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for page in 2..u64::try_from(pages).unwrap() {
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 4096], page * 4096).unwrap();
    }
    let source = source(&path);
    let cx = Context::system();
    let mut capture = source.capture(&cx, None).await.unwrap();
    let cut = capture.freeze(&cx).await.unwrap();
    capture.thaw(&cx).await.unwrap();
    let meta = capture.next(&cx).await.unwrap().unwrap();
    let body = capture.open(&cx, &meta.name).await.unwrap().into_bytes().unwrap();
    let bytes = body.try_collect::<Vec<_>>().await.unwrap().concat();
    let there = std::fs::read(&path).unwrap();
    assert!(bytes[4096..] == there[4096..], "all of it that there is");
    let report = capture.finish(&cx).await.unwrap();
    let (place, e) = &report.problems[0];
    assert_eq!((place.as_str(), e.reason()), ("app.db", Reason::Corrupt), "{e}");

    // It is put back as it is for who asks for that, wherever it goes, and is no match then.
    let captured = Captured { meta, bytes: bytes.clone(), facts: report.facts, cut };
    let target = dir.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let mut request =
        RestoreRequest::new(Target::Directory(target.clone()), captured.record(&source));
    let e = restore_with(&source, &captured, request.clone()).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Corrupt);
    let told = e.to_string();
    assert!(told.contains("when it was captured; --allow-damage puts it back as it is"), "{told}");
    assert!(names(&target).is_empty());
    request.allow_damage = true;
    for (before, read_back) in
        [(None, false), (None, true), (Some("DELETE"), true), (Some("WAL"), true)]
    {
        let path = target.join("app.db");
        request.overwrite = before.is_some();
        request.read_back = read_back;
        let old = before.map(|mode| bank(&path, mode));
        drop(old);
        let report = restore_with(&source, &captured, request.clone()).await.unwrap();
        let there = capture_bytes(&cx, &path).await;
        assert!(there[4096..] == bytes[4096..], "{before:?}");
        assert!(!report.differences.is_empty() && report.problems.is_empty(), "{report:?}");
        assert!(report.differences.iter().all(|d| d.fact == "integrity"), "{report:?}");
        assert!(
            report.notes.iter().any(|n| n.contains("damaged when it was captured")),
            "{report:?}"
        );
        if before.is_some() {
            undo(&report);
            assert_bank(&path);
        }
        for name in names(&target) {
            let path = target.join(name);
            std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path)).unwrap();
        }
    }
    // What is damaged since then, or no database at all, is never put back.
    for change in [20_000, 0] {
        let mut other = captured.clone();
        other.bytes[change] ^= 1;
        let e = restore_with(&source, &other, request.clone()).await.unwrap_err();
        assert_eq!(e.reason(), Reason::Corrupt);
        assert!(names(&target).is_empty());
    }
}

/// The image of a database of which not all can be read.
async fn capture_bytes(cx: &Context, path: &std::path::Path) -> Vec<u8> {
    let image = ImageReader::default().image(cx, path).await.unwrap().unwrap();
    image.body.try_collect::<Vec<_>>().await.unwrap().concat()
}
