//! Databases that cannot be captured or put back, and what is said of each.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use insta::assert_snapshot;

use crate::support::{TestEnv, is_root, said};

fn in_wal_mode(env: &TestEnv, path: &str) {
    env.database(path, 10);
    let db = rusqlite::Connection::open(env.path(path)).unwrap();
    db.pragma_update(None, "journal_mode", "wal").unwrap();
}

/// A file system with next to no room. Gone when dropped.
struct Tiny(PathBuf);

impl Tiny {
    fn mount(path: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=777"), "tmpfs"]).arg(&path);
        let mounted = is_root() && mount.status().is_ok_and(|s| s.success());
        assert!(mounted || std::env::var_os("CI").is_none(), "this must not be skipped in CI");
        mounted.then_some(Self(path))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("-l").arg(&self.0).status().unwrap().success());
    }
}

#[test]
fn that_are_none() {
    let env = TestEnv::with_repository();
    env.write(
        "work/stack/snapkit.toml",
        "name = \"shop\"\n[sources.app]\nkind = \"sqlite\"\npath = \"app.db\"\n",
    );
    let mut all = String::new();
    let app = env.path("work/stack/app.db");
    let mut told = |what: &str| {
        all += &format!(
            "=== {what}\n{}\n",
            env.run(["create", "-q", "--stack", "stack/snapkit.toml"])
        );
        drop(fs::remove_file(&app));
        drop(fs::remove_file(env.path("work/stack/app.db-wal")));
    };
    told("not there");
    fs::write(&app, "a letter\n".repeat(100)).unwrap();
    told("a letter");
    fs::write(&app, "").unwrap();
    told("empty");
    fs::write(&app, "").unwrap();
    env.write("work/stack/app.db-wal", "what was written last".repeat(10));
    told("emptied, and its log is there");
    symlink("nowhere", &app).unwrap();
    told("a link that leads nowhere");
    symlink("app.db", &app).unwrap();
    told("a link to itself");
    assert!(Command::new("mkfifo").arg(&app).status().unwrap().success());
    told("a pipe");
    assert_snapshot!(all, @"
    === not there
    --- stderr
    error: there is no database; check its path (path=[DIR]/work/stack/app.db, source=app)
    --- exit 1
    === a letter
    --- stderr
    error: not a SQLite database, or an encrypted one (path=[DIR]/work/stack/app.db, source=app)
    --- exit 2
    === empty
    --- exit 0
    === emptied, and its log is there
    --- stderr
    error: the database is empty, but a log with content lies beside it, which SQLite would delete; move the log away, or bring the database back (path=[DIR]/work/stack/app.db, source=app)
    --- exit 4
    === a link that leads nowhere
    --- stderr
    error: there is no database; check its path (path=[DIR]/work/stack/app.db, source=app)
    --- exit 1
    === a link to itself
    --- stderr
    error: cannot examine the database (path=[DIR]/work/stack/app.db, source=app)
      caused by: Too many levels of symbolic links (os error 40)
    --- exit 1
    === a pipe
    --- stderr
    error: not a SQLite database: it is not a file (path=[DIR]/work/stack/app.db, source=app)
    --- exit 2
    ");
}

/// A database among files is captured as one, or it is said why not.
#[test]
fn among_files() {
    let env = TestEnv::with_repository();
    env.write("work/data/letter.db", "a letter\n".repeat(100));
    env.write("work/data/letter.db-wal", "not a log");
    env.write("work/data/emptied.db", "");
    env.write("work/data/emptied.db-journal", "what was there before");
    assert_snapshot!(said(&env, &["create -q data"]), @"
    $ snapkit create -q data
    --- stderr
    warning: files: [DIR-IN-TREE]/work/data/emptied.db: the database is empty, but `emptied.db-journal` with content lies beside it and was left out as a part of it; move it away, or change `databases` so that both are plain files (path=[DIR]/work/data/emptied.db)
    warning: files: [DIR-IN-TREE]/work/data/letter.db: this is not a database, but `letter.db-wal` beside it was left out as a part of one; change `databases` so that it does not match (path=[DIR]/work/data/letter.db)
    warning: 2 things were not captured; `snapkit show [HEX]` lists them
    --- exit 3
    ");
}

/// As somebody who may not do with it what has to be done.
#[test]
fn that_rights_keep_away() {
    if !is_root() {
        return;
    }
    let env = TestEnv::with_repository();
    in_wal_mode(&env, "work/closed/app.db");
    in_wal_mode(&env, "work/hidden/app.db");
    let run =
        |args: &[&str]| format!("$ snapkit {}\n{}\n", args.join(" "), env.run_as_nobody(args));
    let mut all = run(&["create", "closed/app.db", "--name", "first", "-q"]);
    env.permit("work/closed", 0o555);
    env.permit("work/hidden/app.db", 0);
    all += &run(&["create", "closed/app.db"]);
    all += &run(&["create", "hidden/app.db"]);
    all += &run(&["restore", "first", "--overwrite"]);
    env.permit("work/hidden", 0);
    all += &run(&["create", "hidden/app.db"]);
    fs::create_dir(env.path("work/out")).unwrap();
    env.permit("work/out", 0o555);
    all += &run(&["restore", "first", "--target", "out"]);
    env.permit("work/hidden", 0o755);
    env.permit("work/out", 0o755);
    assert_snapshot!(all, @"
    $ snapkit create closed/app.db --name first -q
    --- exit 0
    $ snapkit create closed/app.db
    --- stderr
    error: cannot read the database: SQLite must make or update the files NAME-shm, NAME-wal or NAME-journal beside the database, and its directory may not be written to; allow that, or copy the database together with those files to a place that may be written to (path=[DIR]/work/closed/app.db, source=app)
      caused by: attempt to write a readonly database
      caused by: Error code 1544: attempt to write a readonly database
    --- exit 1
    $ snapkit create hidden/app.db
    --- stderr
    error: cannot open the database: the file may not be read (path=[DIR]/work/hidden/app.db, source=app)
      caused by: unable to open database file: [DIR]/work/hidden/app.db
      caused by: Error code 14: unable to open database file
    --- exit 1
    $ snapkit restore first --overwrite
    --- stderr
    snapshot [SNAPSHOT] of app.db-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    error: the directory of the target may not be written to (path=[DIR]/work/closed, source=app)
      caused by: Permission denied (os error 13)
    --- exit 1
    $ snapkit create hidden/app.db
    --- stderr
    error: cannot examine a path (path=hidden/app.db)
      caused by: Permission denied (os error 13)
    --- exit 1
    $ snapkit restore first --target out
    --- stderr
    snapshot [SNAPSHOT] of app.db-[HEX]@box, [TIME]
    error: cannot create the directory [DIR]/work/out/app
      caused by: Permission denied (os error 13)
    --- exit 1
    ");
}

/// With too little room for a copy, for what is put back, and for what was there before.
#[test]
fn without_room() {
    let mut env = TestEnv::with_repository();
    env.database("work/app.db", 8000);
    env.sample();
    env.write("work/data/sub/large", vec![7; 300_000]);
    assert!(env.run(["create", "-q", "data", "app.db", "--name", "first"]).is_success());
    let Some(tiny) = Tiny::mount(env.path("tiny"), "64k") else { return };
    let db = rusqlite::Connection::open(env.path("work/app.db")).unwrap();
    db.execute("INSERT INTO t VALUES (-1)", []).unwrap();
    let mut all = said(
        &env,
        &[
            "restore first:app --target ../tiny",
            "restore first:files --target ../tiny",
            "create --state-dir ../tiny -q data",
            "restore first:app --overwrite --state-dir ../tiny",
        ],
    );
    drop(db);
    let count = |path: &str| {
        let db = rusqlite::Connection::open(env.path(path)).unwrap();
        db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, u32>(0)).unwrap()
    };
    assert_eq!(count("work/app.db"), 8001);
    env.set("TMPDIR", tiny.0.to_str().unwrap());
    all += &said(&env, &["create --dry-run data", "create -q app.db", "verify -q --read-data"]);
    env.set("SNAPKIT_REPO", tiny.0.join("repo").to_str().unwrap());
    env.unset("TMPDIR");
    all += &said(&env, &["init -q", "create -q app.db", "list"]);
    assert_snapshot!(all, @"
    $ snapkit restore first:app --target ../tiny
    --- stderr
    snapshot [SNAPSHOT] of app.db+data-[HEX]@box, [TIME]
    error: the restored database needs 81920 bytes, and 65536 are free (path=[DIR]/tiny/app, source=app)
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    $ snapkit restore first:files --target ../tiny
    --- stderr
    snapshot [SNAPSHOT] of app.db+data-[HEX]@box, [TIME]
    error: cannot write (path=[DIR-IN-TREE]/work/data/sub/large, artifact=tree, source=files)
      caused by: No space left on device (os error 28)
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    $ snapkit create --state-dir ../tiny -q data
    --- exit 0
    $ snapkit restore first:app --overwrite --state-dir ../tiny
    --- stderr
    snapshot [SNAPSHOT] of app.db+data-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/tiny/recovery/before-[HEX]
    error: a copy of the old state needs 163840 bytes, and 32768 are free (path=[DIR]/tiny/recovery/before-[HEX]/app, source=app)
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    $ snapkit create --dry-run data
    --- stderr
    it would be complete: 293.0 KiB in [DURATION]
      files (files): 1 artifact, 9 entries, 293.0 KiB
      read [SIZES]
    nothing was kept
    --- exit 0
    $ snapkit create -q app.db
    --- stderr
    error: a scratch copy of the database needs 81920 bytes, and 36864 are free (path=[DIR]/tiny, source=app)
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    $ snapkit verify -q --read-data
    --- exit 0
    $ snapkit init -q
    --- exit 0
    $ snapkit create -q app.db
    --- stderr
    error: cannot write a new file (path=[DIR]/tiny/repo/packs/[XX]/.tmp-[HEX])
      caused by: No space left on device (os error 28)
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    $ snapkit list
    --- stderr
    there are no snapshots
    --- exit 0
    ");
}

/// Nothing that is mounted is moved away, nor the place to which things are moved.
#[test]
fn targets_that_cannot_be_moved() {
    let env = TestEnv::with_repository();
    env.sample();
    assert!(env.run(["create", "-q", "data", "--name", "first"]).is_success());
    let Some(_tiny) = Tiny::mount(env.path("work/data/tiny"), "64k") else { return };
    assert_snapshot!(said(&env, &[
        "restore first --overwrite",
        "restore first --overwrite --state-dir data/state",
    ]), @"
    $ snapkit restore first --overwrite
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    error: a file system is mounted in what is to be replaced, and would be moved away with it; unmount it, or restore parts (path=[DIR]/work/data, mount=[DIR]/work/data/tiny, source=files)
    --- exit 11
    $ snapkit restore first --overwrite --state-dir data/state
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/work/data/state/recovery/before-[HEX]
    error: the place for old states lies in what is to be replaced; give another one with --state-dir, or restore parts (path=[DIR]/work/data, old_states=[DIR]/work/data/state/recovery/before-[HEX]/files, source=files)
    --- exit 2
    ");
}

/// A restore in place that is killed while it copies the old state leaves nothing that looks like that state.
#[test]
fn half_a_copy_has_no_name() {
    let env = TestEnv::with_repository();
    let live = env.path("work/app.db");
    let count = |path: &std::path::Path| {
        let db = rusqlite::Connection::open(path).unwrap();
        let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok", "{path:?}");
        db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, u32>(0)).unwrap()
    };
    let db = rusqlite::Connection::open(&live).unwrap();
    db.execute_batch(
        "CREATE TABLE t (x); WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 20000)
         INSERT INTO t SELECT randomblob(3000) FROM i",
    )
    .unwrap();
    assert!(env.run(["create", "-q", "app.db"]).is_success());
    db.execute("INSERT INTO t VALUES (1)", []).unwrap();
    drop(db);
    for _ in 0..4 {
        let mut child = env.command(["restore", "-q", "latest", "--overwrite"]).spawn().unwrap();
        // What is put is there first, then the copy of what was there.
        let is_copying = || {
            let kept = env.files("home/.local/state/snapkit/recovery", "");
            let is_named = |path: &PathBuf| path.ends_with("app.db");
            kept.iter().any(is_named)
                || kept.iter().filter(|p| !p.ends_with("-journal")).count() > 1
        };
        while child.try_wait().unwrap().is_none() && !is_copying() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for kept in env.files("home/.local/state/snapkit/recovery", "/app.db") {
            assert_eq!(count(&kept), 20_001);
        }
        fs::remove_dir_all(env.path("home/.local/state/snapkit/recovery")).unwrap();
        assert!(matches!(count(&live), 20_000 | 20_001));
    }
}
