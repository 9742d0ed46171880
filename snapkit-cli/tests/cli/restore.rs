//! `snapkit restore`.

use std::fs;

use insta::assert_snapshot;

use crate::support::TestEnv;

#[test]
fn a_snapshot_comes_back_and_is_proven() {
    let env = TestEnv::with_snapshot();
    assert_snapshot!(env.run(["restore", "first", "--target", "out"]), @"
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/out/files
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    match in [DURATION]
    --- exit 0
    ");
    let restored = |path: &str| format!("work/out/files/{}", env.in_tree(path));
    assert_eq!(env.read(&restored("data/a.txt")), "hello\n");
    assert_eq!(fs::read_link(env.path(restored("data/link"))).unwrap().to_str(), Some("a.txt"));
    assert_eq!(fs::read(env.path(restored("data/sub/b.bin"))).unwrap(), [0, 1, 2, 255]);
}

#[test]
fn quiet_says_nothing_if_all_is_well() {
    let env = TestEnv::with_snapshot();
    assert_snapshot!(env.run(["restore", "-q", "first", "--target", "out"]), @"--- exit 0");
}

#[test]
fn what_is_there_is_not_replaced_unless_asked_for() {
    let env = TestEnv::with_snapshot();
    env.write("work/data/a.txt", "changed since\n");
    assert_snapshot!(env.run(["restore", "first"]), @"
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: there is something where the restore goes (path=[DIR]/work/data, source=files)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    ");
    assert_eq!(env.read("work/data/a.txt"), "changed since\n");

    let restored = env.run(["restore", "first", "--overwrite"]);
    assert_snapshot!(restored, @"
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/data
    to bring back what files held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    ");
    assert_eq!(env.read("work/data/a.txt"), "hello\n");

    // What it says to do brings the old state back.
    let undo = restored
        .text()
        .lines()
        .filter(|l| l.starts_with("    "))
        .fold(String::new(), |script, line| script + line.trim() + "\n");
    let undone = env.through("sh", ["-e", "-c", &undo]).status().unwrap();
    assert!(undone.success(), "{undo}");
    assert_eq!(env.read("work/data/a.txt"), "changed since\n");
}

#[test]
fn the_original_place_is_used_if_it_is_empty() {
    let env = TestEnv::with_snapshot();
    fs::remove_dir_all(env.path("work/data")).unwrap();
    assert_snapshot!(env.run(["restore", "latest"]), @"
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/data
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    match in [DURATION]
    --- exit 0
    ");
    assert_eq!(env.read("work/data/a.txt"), "hello\n");
}

#[test]
fn a_dry_run_changes_nothing() {
    let env = TestEnv::with_snapshot();
    assert_snapshot!(env.run(["restore", "first", "--target", "out", "--dry-run"]), @"
    --- stdout
    files (files) would go to [DIR]/work/out/files, 10 B
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    nothing was changed
    --- exit 0
    ");
    assert!(!env.path("work/out").exists());
}

#[test]
fn parts_come_back_alone() {
    let env = TestEnv::with_snapshot();
    let place = format!("first:files/tree/{}", env.in_tree("data/sub"));
    assert_snapshot!(env.run(["restore", &place, "--target", "out"]), @"
    --- stdout
    files (files): unproven, 4 B to [DIR]/work/out/files
      unproven: a part of a snapshot has no facts of its own; every file was read back and is as stored
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    unproven in [DURATION]
    --- exit 0
    ");
    assert!(env.path(format!("work/out/files/{}", env.in_tree("data/sub/b.bin"))).exists());
    assert!(!env.path(format!("work/out/files/{}", env.in_tree("data/a.txt"))).exists());

    assert_snapshot!(env.run(["restore", "first", "--include", "*.txt", "--target", "two"]), @"
    --- stdout
    files (files): unproven, 6 B to [DIR]/work/two/files
      unproven: a part of a snapshot has no facts of its own; every file was read back and is as stored
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    unproven in [DURATION]
    --- exit 0
    ");
    assert!(env.path(format!("work/two/files/{}", env.in_tree("data/a.txt"))).exists());
    assert!(!env.path(format!("work/two/files/{}", env.in_tree("data/sub/b.bin"))).exists());
}

#[test]
fn what_matches_nothing_is_an_error() {
    let env = TestEnv::with_repository();
    env.sample();
    env.database("work/app.db", 3);
    assert!(env.run(["create", "-q", "app.db", "data", "--name", "x"]).is_success());
    let place = format!("x:files/{}", env.in_tree("data/sub"));
    let globs = ["--include", "*.none", "--include", "sub/b.bin", "--target", "out"];
    assert_snapshot!(env.run(["restore", "x"].iter().chain(&globs)), @r#"
    --- stderr
    snapshot [SNAPSHOT] of app.db+data-[HEX]@box, [TIME]
    left out: app/app.db, as --include speaks of trees
    error: nothing in the snapshot matches --include "*.none" or --include "sub/b.bin"
    hint: a glob without a slash is a whole name; one with a slash is a whole path, as `snapkit ls -R` shows it
    --- exit 1
    "#);
    let restored = env.run(["restore", "x:app", "--include", "app.db", "--target", "out"]);
    assert_snapshot!(restored, @r#"
    --- stderr
    snapshot [SNAPSHOT] of app.db+data-[HEX]@box, [TIME]
    left out: app/app.db, as --include speaks of trees
    error: nothing in the snapshot matches --include "app.db"
    hint: a glob without a slash is a whole name; one with a slash is a whole path, as `snapkit ls -R` shows it
    --- exit 1
    "#);
    let restored = env.run(["restore", &place, "--include", "*.txt", "--target", "out"]);
    assert_snapshot!(restored, @r#"
    --- stderr
    snapshot [SNAPSHOT] of app.db+data-[HEX]@box, [TIME]
    error: nothing in the snapshot matches --include "*.txt"
    hint: a glob without a slash is a whole name; one with a slash is a whole path, as `snapkit ls -R` shows it
    --- exit 1
    "#);
    assert!(!env.path("work/out").exists());
    assert_snapshot!(env.run(["restore", "x", "--include", "*.txt", "--target", "out"]), @"
    --- stdout
    files (files): unproven, 6 B to [DIR]/work/out/files
      unproven: a part of a snapshot has no facts of its own; every file was read back and is as stored
    --- stderr
    snapshot [SNAPSHOT] of app.db+data-[HEX]@box, [TIME]
    left out: app/app.db, as --include speaks of trees
    unproven in [DURATION]
    --- exit 0
    ");
    assert!(!env.path("work/out/app").exists());
    // What is named is meant.
    let args = ["restore", "x:app/app.db", "--include", "*.txt", "--target", "two"];
    assert!(env.run(args).is_success());
    assert!(env.path("work/two/app/app.db").exists());
}

#[test]
fn a_database_that_is_named_is_proven() {
    let env = TestEnv::with_repository();
    env.database("work/app.db", 3);
    assert!(env.run(["create", "-q", "app.db", "--name", "x"]).is_success());
    assert_snapshot!(env.run(["restore", "x:app/app.db", "--target", "out"]), @"
    --- stdout
    app (sqlite): match, 8 facts hold, 8.0 KiB to [DIR]/work/out/app
    --- stderr
    snapshot [SNAPSHOT] of app.db-[HEX]@box, [TIME]
    match in [DURATION]
    --- exit 0
    ");
}

#[test]
fn a_dry_run_sees_what_is_in_the_way() {
    let env = TestEnv::with_snapshot();
    env.database("work/app.db", 3);
    assert!(env.run(["create", "-q", "app.db", "--name", "base"]).is_success());
    assert_snapshot!(env.run(["restore", "first", "--dry-run"]), @"
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: there is something where the restore goes (path=[DIR]/work/data, source=files)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    ");
    assert_snapshot!(env.run(["restore", "base", "--dry-run"]), @"
    --- stderr
    snapshot [SNAPSHOT] of app.db-[HEX]@box, [TIME]
    error: there is a file already (path=[DIR]/work/app.db, source=app)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    ");
    env.write("work/out/files/x", "in the way");
    assert_snapshot!(env.run(["restore", "first", "--target", "out", "--dry-run"]), @"
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: there is something where the restore goes (path=[DIR]/work/out/files, source=files)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    ");
    env.write("work/file", "");
    assert_snapshot!(env.run(["restore", "first", "--target", "file/x", "--dry-run"]), @"
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: the target cannot be made (path=[DIR]/work/file/x/files, source=files)
      caused by: Not a directory (os error 20)
    --- exit 1
    ");
    // What would succeed says so, with the places, and leaves them as they were.
    let before = fs::read_dir(env.path("work")).unwrap().count();
    assert_snapshot!(env.run(["restore", "first", "--overwrite", "--dry-run"]), @"
    --- stdout
    files (files) would go to [DIR]/work/data, 10 B
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    nothing was changed
    --- exit 0
    ");
    let place = format!("first:files/tree/{}", env.in_tree("data/sub"));
    assert_snapshot!(env.run(["restore", &place, "--overwrite", "--dry-run"]), @"
    --- stdout
    files (files) would go to [DIR]/work/data/sub, 4 B
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    nothing was changed
    --- exit 0
    ");
    assert_eq!(fs::read_dir(env.path("work")).unwrap().count(), before);
}

#[test]
fn databases_come_back() {
    let env = TestEnv::with_repository();
    env.database("work/app.db", 3);
    assert!(env.run(["create", "-q", "app.db", "--name", "x"]).is_success());
    assert_snapshot!(env.run(["restore", "x", "--target", "out"]), @"
    --- stdout
    app (sqlite): match, 8 facts hold, 8.0 KiB to [DIR]/work/out/app
    --- stderr
    snapshot [SNAPSHOT] of app.db-[HEX]@box, [TIME]
    match in [DURATION]
    --- exit 0
    ");
    let copy = rusqlite::Connection::open(env.path("work/out/app/app.db")).unwrap();
    let rows: u32 = copy.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap();
    assert_eq!(rows, 3);
}

#[test]
fn nothing_is_proven_without_reading_back() {
    let env = TestEnv::with_snapshot();
    assert_snapshot!(env.run(["restore", "first", "--target", "out", "--no-verify"]), @"
    --- stdout
    files (files): unproven, 10 B to [DIR]/work/out/files
      unproven: --no-verify was given, so nothing was read back
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    unproven in [DURATION]
    --- exit 0
    ");
}

#[test]
fn damage_is_refused_unless_it_may_be_left_out() {
    let env = TestEnv::with_large_file();
    crate::verify::damage_content(&env);
    let refused = env.run(["restore", "first", "--target", "out"]);
    assert_snapshot!(refused, @"
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: sealed content is damaged or not where it belongs (object=packs/[XX]/[HEX]) (path=[DIR-IN-TREE]/work/data/sub/b.bin, artifact=tree, source=files)
    hint: `snapkit verify --read-data` lists all damage
    --- exit 4
    ");
    assert_snapshot!(env.run(["restore", "first", "--target", "two", "--allow-damage"]), @"
    --- stdout
    files (files): differs, 0 facts hold, 6 B to [DIR]/work/two/files
      differs: tree.attributes was [HEX], is [HEX]
      differs: tree.bytes was 800006, is 6
      differs: tree.entries was 5, is 4
      differs: tree.files was 2, is 1
      differs: tree.owners was [HEX], is [HEX]
      differs: tree.structure was [HEX], is [HEX]
      damaged, left out: [DIR-IN-TREE]/work/data/sub/b.bin: sealed content is damaged or not where it belongs (object=packs/[XX]/[HEX])
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    differs in [DURATION]
    --- exit 4
    ");
    assert_eq!(env.read(&format!("work/two/files/{}", env.in_tree("data/a.txt"))), "hello\n");
    assert!(!env.path(format!("work/two/files/{}", env.in_tree("data/sub/b.bin"))).exists());
}

#[test]
fn what_does_not_exist_cannot_be_restored() {
    let env = TestEnv::with_snapshot();
    assert_snapshot!(env.run(["restore", "none", "--target", "out"]), @r#"
    --- stderr
    error: there is no snapshot "none"
    hint: `snapkit list` shows the snapshots there are
    --- exit 1
    "#);
    assert_snapshot!(env.run(["restore", "first:none", "--target", "out"]), @"
    --- stderr
    error: the snapshot has no source none; it has: files (snapshot=[SNAPSHOT])
    --- exit 1
    ");
    assert_snapshot!(env.run(["restore", "first:files/none", "--target", "out"]), @r#"
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: there is no "none" in files/tree
    hint: paths are whole, from the root directory on: `snapkit ls -R` shows them
    --- exit 1
    "#);
    assert_snapshot!(env.run(["restore", "first:files/tree/none", "--target", "out"]), @r#"
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: there is no "none" in files/tree
    hint: paths are whole, from the root directory on: `snapkit ls -R` shows them
    --- exit 1
    "#);
    assert_snapshot!(env.run(["restore", "first", "--include", "[", "--target", "out"]), @r#"
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: not a glob: "["
      caused by: error parsing glob '**/[': unclosed character class; missing ']'
    --- exit 2
    "#);
}
