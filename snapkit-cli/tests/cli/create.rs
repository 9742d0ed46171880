//! `snapkit create`.

use insta::assert_snapshot;

use crate::support::TestEnv;

#[test]
fn paths_are_captured_and_the_id_is_printed() {
    let env = TestEnv::with_repository();
    env.sample();
    let created = env.run(["create", "data", "--name", "first", "--tag", "why=test"]);
    assert_snapshot!(created, @"
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 10 B in [DURATION]
      files (files): 1 artifact, 8 entries, 10 B
      read [SIZES]
    --- exit 0
    ");
    let id = created.text();
    assert_eq!(id.lines().count(), 1);
    assert!(env.run(["show", id.trim()]).is_success());
}

#[test]
fn quiet_says_nothing() {
    let env = TestEnv::with_repository();
    env.sample();
    assert_snapshot!(env.run(["create", "-q", "data"]), @"--- exit 0");
}

#[test]
fn databases_are_captured_as_databases() {
    let env = TestEnv::with_repository();
    env.sample();
    env.database("work/app.db", 3);
    env.database("work/other/app.db", 4);
    let created = env.run(["create", "app.db", "other/app.db", "data", "--stack-name", "shop"]);
    assert_snapshot!(created, @"
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 16.0 KiB in [DURATION]
      files (files): 1 artifact, 8 entries, 10 B
      app (sqlite): 1 artifact, 8.0 KiB
      app-2 (sqlite): 1 artifact, 8.0 KiB
      read [SIZES]
      the cut is [DURATION] wide
    --- exit 0
    ");
    assert_snapshot!(env.run(["ls", "latest", "--stack-name", "shop"]), @"
    --- stdout
    files
    app
    app-2
    --- exit 0
    ");
}

#[test]
fn what_is_excluded_is_left_out() {
    let env = TestEnv::with_repository();
    env.sample();
    assert!(env.run(["create", "-q", "data", "--exclude", "*.bin", "--name", "x"]).is_success());
    let place = format!("x:files/tree/{}", env.in_tree("data"));
    assert_snapshot!(env.run(["ls", "-R", &place]), @"
    --- stdout
    a.txt
    link
    sub
    --- exit 0
    ");
}

#[test]
fn what_cannot_be_read_makes_it_partial() {
    use std::os::unix::fs::PermissionsExt as _;
    let env = TestEnv::with_repository();
    env.sample();
    let closed = env.path("work/data/sub/b.bin");
    std::fs::set_permissions(closed, std::fs::Permissions::from_mode(0o000)).unwrap();
    assert_snapshot!(env.run_as_nobody(&["create", "data", "--name", "x"]), @"
    --- stdout
    [SNAPSHOT]
    --- stderr
    partial: 6 B in [DURATION]
      files (files): 1 artifact, 7 entries, 6 B, partial
      read [SIZES]
    warning: files: [DIR-IN-TREE]/work/data/sub/b.bin: cannot open (path=[DIR]/work/data/sub/b.bin): Permission denied (os error 13)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    ");
    assert_snapshot!(env.run_as_nobody(&["create", "data", "-q"]), @"
    --- stderr
    warning: files: [DIR-IN-TREE]/work/data/sub/b.bin: cannot open (path=[DIR]/work/data/sub/b.bin): Permission denied (os error 13)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    ");
    assert_snapshot!(env.run_as_nobody(&["restore", "x", "--target", "out"]), @"
    --- stdout
    files (files): match, 6 facts hold, 6 B to [DIR]/work/out/files
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    warning: the snapshot is partial: of the source files, 1 thing was not captured
    match in [DURATION]
    --- exit 0
    ");
}

#[test]
fn what_is_not_there_is_an_error() {
    let env = TestEnv::with_repository();
    assert_snapshot!(env.run(["create", "none"]), @"
    --- stderr
    error: there is nothing at this path (path=none)
    --- exit 1
    ");
    assert_snapshot!(env.run(["create"]), @"
    --- stderr
    error: there is nothing to capture: name paths, or a stack file with --stack
    --- exit 2
    ");
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    there are no snapshots
    --- exit 0
    ");
}

#[test]
fn odd_arguments_are_refused() {
    let env = TestEnv::with_repository();
    env.sample();
    assert_snapshot!(env.run(["create", "data", "--name", "latest"]), @r#"
    --- stderr
    error: not a name for a snapshot: "latest"; it may not be `latest`, begin with `@` or hold `:`, `/`, `\` or control characters
    --- exit 2
    "#);
    assert_snapshot!(env.run(["create", "data", "--tag", "novalue"]), @r#"
    --- stderr
    error: a tag is KEY=VALUE, not "novalue"
    --- exit 2
    "#);
    assert_snapshot!(env.run(["create", "data", "--memory", "lots"]), @r#"
    --- stderr
    error: not a size such as 256MiB: "lots" (option=--memory)
    --- exit 2
    "#);
    assert_snapshot!(env.run(["create", "data", "--memory", "1MiB"]), @"
    --- stderr
    error: --memory must be at least 128MiB, not 1MiB
    --- exit 2
    ");
    assert_snapshot!(env.run(["create", "data", "--set", "x"]), @"
    --- stderr
    error: the argument '[PATH]...' cannot be used with '--set <NAME>'

    Usage: snapkit create <PATH>...

    For more information, try '--help'.
    --- exit 2
    ");
}

#[test]
fn without_a_repository_nothing_happens() {
    let mut env = TestEnv::new();
    env.sample();
    assert_snapshot!(env.run(["create", "data"]), @"
    --- stderr
    error: there is no such directory (path=[DIR]/repo)
      caused by: No such file or directory (os error 2)
    hint: create one with `snapkit init`, or check the path or URL
    --- exit 10
    ");
    env.write("repo/stray", "x");
    assert_snapshot!(env.run(["create", "data"]), @"
    --- stderr
    error: there is no snapkit repository here (location=[DIR]/repo)
    hint: create one with `snapkit init`, or check the path or URL
    --- exit 10
    ");
    env.unset("SNAPKIT_REPO");
    assert_snapshot!(env.run(["create", "data"]), @"
    --- stderr
    error: no repository is named: use --repo, SNAPKIT_REPO, or `[repo] url` in a stack file
    --- exit 2
    ");
}
