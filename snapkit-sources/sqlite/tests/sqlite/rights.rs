//! Missing rights and full disks.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use futures_util::{StreamExt as _, stream};
use snapkit_core::Reason;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape};
use snapkit_core::context::Context;
use snapkit_core::source::{RestoreRequest, Source as _, Target};

use crate::child::{as_nobody, with_scratch};
use crate::support::{
    ACCOUNTS, assert_bank, bank, capture, count, names, overwrite, place, restore_with, source,
};

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(future)
}

/// A role: what a capture says.
pub fn say_capture(path: &Path, say: impl Fn(String)) {
    match block(capture(path)) {
        Ok(_) => say("captured".to_owned()),
        Err(e) => say(format!("{} {}", e.reason(), e.chain().replace('\n', " "))),
    }
}

/// A role: what a restore beside the database says.
pub fn say_restore(path: &Path, say: impl Fn(String)) {
    let captured = block(capture(path)).unwrap();
    let source = source(path);
    let target = path.with_file_name("target");
    let request = RestoreRequest::new(Target::Directory(target), captured.record(&source));
    match block(restore_with(&source, &captured, request)) {
        Ok(report) => say(format!("restored {:?}", report.problems)),
        Err(e) => say(format!("{} {}", e.reason(), e.chain().replace('\n', " "))),
    }
}

fn root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "this must not be skipped in CI: run it as root");
    false
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// As another user: the test program must be where that user may run it.
#[test]
fn as_a_user_without_rights() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    mode(dir.path(), 0o755);
    let wal = dir.path().join("wal.db");
    drop(bank(&wal, "WAL"));
    let rollback = dir.path().join("rollback.db");
    drop(bank(&rollback, "DELETE"));
    mode(&wal, 0o644);
    mode(&rollback, 0o644);

    assert_eq!(as_nobody("capture", &rollback), "captured", "reading is enough in rollback mode");
    let said = as_nobody("capture", &wal);
    assert!(said.starts_with("permission-denied") && said.contains("-shm"), "{said}");
    let host = rusqlite::Connection::open(&wal).unwrap();
    assert_eq!(count(&host), ACCOUNTS);
    let said = as_nobody("capture", &wal);
    assert!(said == "captured" || said.starts_with("permission-denied"), "{said}");
    assert_eq!(count(&host), ACCOUNTS);
    mode(&rollback, 0o600);
    let said = as_nobody("capture", &rollback);
    assert!(said.starts_with("permission-denied") && said.contains("may not be read"), "{said}");
    mode(&rollback, 0o644);

    let target = dir.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let said = as_nobody("restore", &rollback);
    assert!(said.starts_with("permission-denied"), "{said}");
    assert!(names(&target).is_empty());
    mode(&target, 0o777);
    let said = as_nobody("restore", &rollback);
    assert!(said.starts_with("restored") && said.contains("owner 0:0 could not be set"), "{said}");
    assert_bank(&target.join("rollback.db"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_comes_back() {
    if !root() {
        return;
    }
    let (dir, path, _) = place();
    drop(bank(&path, "DELETE"));
    chown(&path, Some(12), Some(34)).unwrap();
    let captured = capture(&path).await.unwrap();
    let target = dir.path().join("new");
    std::fs::create_dir(&target).unwrap();
    let source = source(&path);
    let request = RestoreRequest::new(Target::Directory(target.clone()), captured.record(&source));
    restore_with(&source, &captured, request).await.unwrap();
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(target.join("app.db")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (12, 34));
}

/// A file system with next to no room. Gone when dropped.
struct Tiny(PathBuf);

impl Tiny {
    fn mount(path: PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "tmpfs"]).arg(&path);
        let mounted = root() && mount.status().is_ok_and(|s| s.success());
        assert!(mounted || std::env::var_os("CI").is_none(), "this must not be skipped in CI");
        mounted.then_some(Self(path))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk() {
    let (dir, path, recovery) = place();
    let Some(tiny) = Tiny::mount(dir.path().join("tiny"), "32k") else { return };
    let host = bank(&path, "DELETE");
    let captured = capture(&path).await.unwrap();
    assert!(captured.bytes.len() > 32 << 10);
    let source_here = source(&path);

    // Seen beforehand, and found out on the way.
    for known in [true, false] {
        let mut record = captured.record(&source_here);
        if !known {
            record.artifacts.clear();
        }
        let request = RestoreRequest::new(Target::Directory(tiny.0.clone()), record);
        let e = restore_with(&source_here, &captured, request).await.unwrap_err();
        assert_eq!(e.reason(), Reason::NoSpace, "{known}: {e}");
        assert!(names(&tiny.0).is_empty(), "{known}");
    }

    // No room for a scratch copy.
    let said = with_scratch("capture", &path, &tiny.0);
    assert!(said.starts_with("no-space"), "{said}");
    assert!(names(&tiny.0).is_empty());
    let stored = dir.path().join("stored");
    captured.write_to(&stored);
    let said = with_scratch("check", &stored, &tiny.0);
    assert!(said.contains("no-space: could not be checked: a copy of it cannot"), "{said}");
    assert!(said.contains(&*tiny.0.to_string_lossy()) && names(&tiny.0).is_empty(), "{said}");

    // No room for the old state: what is there stays.
    host.execute_batch("UPDATE transfers SET n = 3").unwrap();
    drop(host);
    let e = overwrite(&source_here, &captured, &tiny.0).await.unwrap_err();
    assert_eq!(e.reason(), Reason::NoSpace, "{e}");
    assert!(names(&tiny.0).is_empty());
    let db = assert_bank(&path);
    assert_eq!(crate::support::number(&db, "SELECT n FROM transfers"), 3);
    drop(db);
    overwrite(&source_here, &captured, &recovery).await.unwrap();
}

/// A database on a file system that fills up while it is overwritten is what it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_whose_disk_fills_up_is_unchanged() {
    for mode in ["WAL", "DELETE"] {
        let (dir, path, recovery) = place();
        let Some(tiny) = Tiny::mount(dir.path().join("tiny"), "400k") else { return };
        let db = bank(&path, mode);
        db.execute_batch(
            "CREATE TABLE filler (x); WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < 95)
             INSERT INTO filler SELECT randomblob(4000) FROM i",
        )
        .unwrap();
        drop(db);
        let captured = capture(&path).await.unwrap();
        let small = tiny.0.join("app.db");
        drop(bank(&small, mode));
        let source = source(&small);
        let before = capture(&small).await.unwrap();
        let mut request = RestoreRequest::new(Target::Original, captured.record(&source));
        request.record.artifacts.clear();
        request.overwrite = true;
        request.recovery = Some(recovery.clone());
        let e = restore_with(&source, &captured, request).await.unwrap_err();
        assert_eq!(e.reason(), Reason::NoSpace, "{mode}: {e}");
        let after = capture(&small).await.unwrap();
        assert_eq!(before.facts, after.facts, "{mode}");
        assert!(names(&recovery).is_empty(), "{mode}");
        assert!(!names(&tiny.0).iter().any(|n| n.contains("snapkit")), "{:?}", names(&tiny.0));
        assert_bank(&small);
    }
}

/// Check a stored image, and say what lies in the place for temporary files when half of it is there.
pub fn say_check(stored: &Path, say: impl Fn(String)) {
    let bytes = bytes::Bytes::from(std::fs::read(stored).unwrap());
    let (cx, source) = (Context::system(), source(Path::new("/nowhere/app.db")));
    let meta = ArtifactMeta::new(
        ArtifactName::new("app.db").unwrap(),
        Shape::Bytes,
        "application/vnd.sqlite3",
        Chunking::Content,
    );
    let half = bytes.len() / 2;
    let (there, seen) = std::sync::mpsc::channel();
    let pieces =
        stream::iter([bytes.slice(..half), bytes.slice(half..)]).enumerate().map(move |(i, b)| {
            if i == 1 {
                there.send(names(&std::env::temp_dir()).join(" ")).unwrap();
            }
            Ok(b)
        });
    let checked = block(source.check(&cx, &meta, Body::Bytes(pieces.boxed())));
    seen.iter().for_each(|names| say(format!("there: {names}")));
    say(match checked {
        Ok(found) => format!("found: {:?}", found.0),
        Err(e) => format!("{}: {}", e.reason(), e.chain()),
    });
}

/// A check that is killed at any moment leaves no copy of anybody's data behind.
#[tokio::test(flavor = "multi_thread")]
async fn the_copy_of_a_check_has_no_name() {
    for mode in ["WAL", "DELETE"] {
        let (dir, path, scratch) = place();
        let db = bank(&path, mode);
        // More than is gathered before it is written.
        db.execute_batch("CREATE TABLE large (x); INSERT INTO large VALUES (randomblob(4000000))")
            .unwrap();
        let stored = dir.path().join("stored");
        capture(&path).await.unwrap().write_to(&stored);
        let said = with_scratch("check", &stored, &scratch);
        assert_eq!(said, "there: \nfound: []", "{mode}");
        assert!(names(&scratch).is_empty());
    }
}
