//! Databases among files, and what lies beside them: the log of another state, other names, things that are no logs.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use insta::assert_snapshot;
use snapkit_core::context::{Environment as _, System};

use crate::support::{TestEnv, is_root, said};

/// A connection whose log stays when the test wants it to.
fn open(env: &TestEnv, path: &str, mode: &str) -> rusqlite::Connection {
    let path = env.path(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let db = rusqlite::Connection::open(path).unwrap();
    db.pragma_update(None, "journal_mode", mode).unwrap();
    db.execute_batch("PRAGMA wal_autocheckpoint = 0; CREATE TABLE IF NOT EXISTS t (x)").unwrap();
    db
}

fn insert(db: &rusqlite::Connection, rows: u32) {
    let sql = "WITH RECURSIVE i (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < ?1) INSERT INTO t SELECT x FROM i";
    db.execute(sql, [rows]).unwrap();
}

/// How many rows there are, in a database that is sound.
fn rows(env: &TestEnv, path: &str) -> u32 {
    let db = rusqlite::Connection::open(env.path(path)).unwrap();
    let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

/// Leave the log of `rows` more rows beside a database, as a killed program does.
fn leave_log(env: &TestEnv, path: &str, more: u32) {
    let db = open(env, path, "wal");
    insert(&db, more);
    let log = env.path(path).with_extension("db-wal");
    let kept = fs::read(&log).unwrap();
    let image = fs::read(env.path(path)).unwrap();
    drop(db);
    fs::write(env.path(path), image).unwrap();
    fs::write(log, kept).unwrap();
    assert_eq!(rows_in_copy(env, path), 5 + more);
}

/// The rows that a program would find, without touching anything.
fn rows_in_copy(env: &TestEnv, path: &str) -> u32 {
    let copy = env.path("copy");
    drop(fs::remove_dir_all(&copy));
    fs::create_dir(&copy).unwrap();
    for suffix in ["", "-wal"] {
        let from = env.path(format!("{path}{suffix}"));
        if from.exists() {
            fs::copy(from, copy.join(format!("x.db{suffix}"))).unwrap();
        }
    }
    rows(env, "copy/x.db")
}

/// The log of what was there is not that of what comes.
#[test]
fn the_log_of_the_old_state_goes_with_it() {
    let env = TestEnv::with_repository();
    env.write("work/b/conf", "c");
    insert(&open(&env, "work/b/z.db", "wal"), 5);
    env.write(
        "work/snapkit.toml",
        "[sources.f]\nkind = \"files\"\npaths = [\"b/z.db\", \"b/conf\"]\n",
    );
    assert!(env.run(["create", "-q"]).is_success());
    leave_log(&env, "work/b/z.db", 300);
    // A root that is a file, in place; and a part of a tree.
    for (n, args) in [
        "restore -q latest --overwrite".to_owned(),
        format!("restore -q latest:f{} --overwrite", env.path("work/b/z.db").display()),
    ]
    .into_iter()
    .enumerate()
    {
        let restored = env.run(args.split(' '));
        assert!(restored.code() == Some(0), "{restored}");
        assert!(!env.path("work/b/z.db-wal").exists());
        assert_eq!(rows(&env, "work/b/z.db"), 5);
        // And the way back brings back all of the old state.
        let text = restored.text();
        let undo: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("    ")).collect();
        let script = undo.join("\n");
        let back = Command::new("sh").arg("-c").arg(&script).output().unwrap();
        assert!(back.status.success(), "{n}: {script}\n{back:?}");
        assert_eq!(rows_in_copy(&env, "work/b/z.db"), 305, "{n}: {script}");
    }
    // Without overwriting it is in the way.
    fs::remove_file(env.path("work/b/z.db")).unwrap();
    fs::remove_file(env.path("work/b/conf")).unwrap();
    assert_snapshot!(env.run(["restore", "latest"]), @"
    --- stderr
    snapshot [SNAPSHOT] of work@box, [TIME]
    error: there is something where the restore goes (path=[DIR]/work/b/z.db-wal, source=f)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    ");
    assert!(env.path("work/b/z.db-wal").exists() && !env.path("work/b/z.db").exists());
}

/// What a program writes by one name is not seen by another one.
#[test]
fn a_database_with_two_names_is_not_called_whole() {
    let env = TestEnv::with_repository();
    let live = open(&env, "work/f/live/app.db", "wal");
    drop(live);
    fs::create_dir(env.path("work/f/backup")).unwrap();
    fs::hard_link(env.path("work/f/live/app.db"), env.path("work/f/backup/app.db")).unwrap();
    let live = open(&env, "work/f/live/app.db", "wal");
    insert(&live, 1000);
    assert_snapshot!(said(&env, &["create f", "create f", "create f/backup/app.db"]), @"
    $ snapkit create f
    --- stdout
    [SNAPSHOT]
    --- stderr
    partial: 8.0 KiB in [DURATION]
      files (files): 1 artifact, 8 entries, 8.0 KiB, partial
      read [SIZES]
    warning: files: [DIR-IN-TREE]/work/f/backup/app.db: this database has 2 names (hard links): what a program has written by another one may be missing; give it one name, or exclude it (path=[DIR]/work/f/backup/app.db)
    warning: files: [DIR-IN-TREE]/work/f/live/app.db: this database has 2 names (hard links): what a program has written by another one may be missing; give it one name, or exclude it (path=[DIR]/work/f/live/app.db)
    warning: 2 things were not captured; `snapkit show [HEX]` lists them
    --- exit 3
    $ snapkit create f
    --- stdout
    [SNAPSHOT]
    --- stderr
    partial: 8.0 KiB in [DURATION]
      files (files): 1 artifact, 8 entries, 8.0 KiB, partial
      read [SIZES]
    warning: files: [DIR-IN-TREE]/work/f/backup/app.db: this database has 2 names (hard links): what a program has written by another one may be missing; give it one name, or exclude it (path=[DIR]/work/f/backup/app.db)
    warning: files: [DIR-IN-TREE]/work/f/live/app.db: this database has 2 names (hard links): what a program has written by another one may be missing; give it one name, or exclude it (path=[DIR]/work/f/live/app.db)
    warning: 2 things were not captured; `snapkit show [HEX]` lists them
    --- exit 3
    $ snapkit create f/backup/app.db
    --- stdout
    [SNAPSHOT]
    --- stderr
    partial: 8.0 KiB in [DURATION]
      app (sqlite): 1 artifact, 8.0 KiB, partial
      read [SIZES]
    warning: app: app.db: the database has 2 names (hard links): what a program has written by another one may be missing; give it one name (path=[DIR]/work/f/backup/app.db)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    ");
    drop(live);
}

/// Only files that SQLite would take for its own are left out.
#[test]
fn what_is_no_log_is_captured() {
    let env = TestEnv::with_repository();
    drop(open(&env, "work/g/z.db", "delete"));
    env.write("work/g/z.db-shm/file", "important");
    drop(open(&env, "work/g/y.db", "delete"));
    symlink("nowhere", env.path("work/g/y.db-wal")).unwrap();
    env.write("work/g/text.db", "no database");
    env.write("work/g/text.db-shm", "important");
    assert_snapshot!(said(&env, &["create g"]), @"
    $ snapkit create g
    --- stdout
    [SNAPSHOT]
    --- stderr
    partial: 9 B in [DURATION]
      files (files): 1 artifact, 7 entries, 9 B, partial
      read [SIZES]
    warning: files: [DIR-IN-TREE]/work/g/text.db: this is not a database, but `text.db-shm` beside it was left out as a part of one; change `databases` so that it does not match (path=[DIR]/work/g/text.db)
    warning: files: [DIR-IN-TREE]/work/g/y.db: what stands where the database keeps its log is no file: move it away (path=[DIR]/work/g/y.db, in_the_way=[DIR]/work/g/y.db-wal)
    warning: files: [DIR-IN-TREE]/work/g/z.db: what stands where the database keeps its log is no file: move it away (path=[DIR]/work/g/z.db, in_the_way=[DIR]/work/g/z.db-shm)
    warning: 3 things were not captured; `snapkit show [HEX]` lists them
    --- exit 3
    ");
    let listed = env.run(["ls", "-R", "latest:files"]).text();
    for name in ["g/z.db-shm/file", "g/y.db-wal", "g/text.db-shm"] {
        assert_eq!(listed.contains(name), name != "g/text.db-shm", "{name}: {listed}");
    }
}

/// A pipe in the place of a log would be waited for, for ever.
#[test]
fn a_pipe_beside_a_database_stops_nobody() {
    let env = TestEnv::with_repository();
    drop(open(&env, "work/h/x.db", "delete"));
    let pipe = env.path("work/h/x.db-journal");
    assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    let clock = System::new();
    let begun = clock.monotonic();
    assert_snapshot!(said(&env, &["create h", "create h/x.db"]), @"
    $ snapkit create h
    --- stdout
    [SNAPSHOT]
    --- stderr
    partial: 0 B in [DURATION]
      files (files): 1 artifact, 5 entries, 0 B, partial
      read [SIZES]
    warning: files: [DIR-IN-TREE]/work/h/x.db: what stands where the database keeps its log is no file: move it away (path=[DIR]/work/h/x.db, in_the_way=[DIR]/work/h/x.db-journal)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    $ snapkit create h/x.db
    --- stderr
    error: what stands where the database keeps its log is no file: move it away (path=[DIR]/work/h/x.db, in_the_way=[DIR]/work/h/x.db-journal, source=x)
    --- exit 2
    ");
    assert!(clock.monotonic().saturating_sub(begun) < Duration::from_secs(20));
}

/// What the system says is not there, and is, is a problem and no absence.
#[test]
fn what_is_there_is_not_taken_for_gone() {
    if !is_root() {
        return;
    }
    let env = TestEnv::with_repository();
    for n in 0..5 {
        env.write(&format!("work/x/f{n}"), "x");
    }
    let program = env!("CARGO_BIN_EXE_snapkit");
    let script = format!(
        "mount -t tmpfs none /proc && mkdir -p /proc/self/fd && {program} create --read-all x"
    );
    let told = env.through("unshare", ["-m", "sh", "-c", &script]).output().unwrap();
    assert_snapshot!(crate::support::CommandOutput::from(told), @"
    --- stderr
    error: /proc/self/fd does not work; extended attributes are read through it (source=files)
    --- exit 1
    ");
}
