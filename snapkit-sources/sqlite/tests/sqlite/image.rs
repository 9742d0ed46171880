//! Databases among other files.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use snapkit_core::context::Context;
use snapkit_core::{Reason, Result};
use snapkit_source_sqlite::ImageReader;

use crate::support::{assert_bank, bank, number};

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
