//! `snapkit ls` and `snapkit dump`: what is in a snapshot.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use insta::assert_snapshot;

use crate::support::TestEnv;

#[test]
fn each_level_is_listed() {
    let env = TestEnv::with_snapshot();
    let place = |path: &str| format!("first:files/tree/{}", env.in_tree(path));
    assert_snapshot!(env.run(["ls", "first"]), @"
    --- stdout
    files
    --- exit 0
    ");
    assert_snapshot!(env.run(["ls", "-l", "first"]), @"
    --- stdout
    source files               10  files
    --- exit 0
    ");
    assert_snapshot!(env.run(["ls", "first:files"]), @"
    --- stdout
    tree
    --- exit 0
    ");
    assert_snapshot!(env.run(["ls", &place("data")]), @"
    --- stdout
    a.txt
    link
    sub
    --- exit 0
    ");
    assert_snapshot!(env.run(["ls", "-R", &place("data/")]), @"
    --- stdout
    a.txt
    link
    sub
    sub/b.bin
    --- exit 0
    ");
    assert_snapshot!(env.run(["ls", "-l", &place("data/a.txt")]), @"
    --- stdout
    -rw-r--r-- [UID] [GID]            6 [TIME] a.txt
    --- exit 0
    ");
    assert_snapshot!(env.run(["ls", &place("data/link")]), @"
    --- stdout
    link
    --- exit 0
    ");
}

#[test]
fn long_lines_are_as_usual() {
    let env = TestEnv::with_snapshot();
    let place = format!("first:files/tree/{}", env.in_tree("data"));
    assert_snapshot!(env.run(["ls", "-lR", &place]), @"
    --- stdout
    -rw-r--r-- [UID] [GID]            6 [TIME] a.txt
    lrwxrwxrwx [UID] [GID]            - [TIME] link -> a.txt
    drwxr-xr-x [UID] [GID]            - [TIME] sub
    -rw-r--r-- [UID] [GID]            4 [TIME] sub/b.bin
    --- exit 0
    ");
}

#[test]
fn names_that_are_not_text_are_escaped_both_ways() {
    let env = TestEnv::with_repository();
    let odd = env.path("work").join(OsStr::from_bytes(b"data/x\xff\\\x1b[2J"));
    std::fs::create_dir(env.path("work/data")).unwrap();
    std::fs::write(&odd, "odd\n").unwrap();
    assert!(env.run(["create", "-q", "data", "--name", "x"]).is_success());
    let place = format!("x:files/tree/{}", env.in_tree("data"));
    let listed = env.run(["ls", &place]);
    assert_snapshot!(listed, @r"
    --- stdout
    x\xff\\\x1b[2J
    --- exit 0
    ");
    let name = listed.text();
    assert_snapshot!(env.run(["dump", &format!("{place}/{}", name.trim())]), @"
    --- stdout
    odd
    --- exit 0
    ");
}

#[test]
fn contents_are_dumped_as_they_are() {
    let env = TestEnv::with_snapshot();
    let place = |path: &str| format!("first:files/tree/{}", env.in_tree(path));
    assert_snapshot!(env.run(["dump", &place("data/a.txt")]), @"
    --- stdout
    hello
    --- exit 0
    ");
    let binary = env.run(["dump", &place("data/sub/b.bin")]);
    assert_eq!((binary.stdout.as_slice(), binary.code()), (&[0, 1, 2, 255][..], Some(0)));
}

#[test]
fn databases_are_dumped_whole() {
    let env = TestEnv::with_repository();
    env.database("work/app.db", 3);
    assert!(env.run(["create", "-q", "app.db", "--name", "x"]).is_success());
    assert_snapshot!(env.run(["ls", "-l", "x:app"]), @"
    --- stdout
    bytes                    8192  app.db
    --- exit 0
    ");
    let dumped = env.run(["dump", "x:app/app.db"]);
    env.write("work/copy.db", &dumped.stdout);
    let copy = rusqlite::Connection::open(env.path("work/copy.db")).unwrap();
    let rows: u32 = copy.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap();
    assert_eq!(rows, 3);
}

#[test]
fn places_that_are_not_there_are_said() {
    let env = TestEnv::with_snapshot();
    for command in ["ls", "dump"] {
        insta::allow_duplicates! {
            assert_snapshot!(env.run([command, "first:none/x"]), @"
            --- stderr
            error: the snapshot has no source none; it has: files (snapshot=[SNAPSHOT])
            --- exit 1
            ");
            assert_snapshot!(env.run([command, "first:files/none"]), @r#"
            --- stderr
            error: there is no "none" in files/tree
            hint: paths are whole, from the root directory on: `snapkit ls -R` shows them
            --- exit 1
            "#);
            assert_snapshot!(env.run([command, "first:a b/x"]), @r#"
            --- stderr
            error: not a name for a source: "a b"; it may have letters and digits of ASCII, `.`, `_` and `-`, at most 255
            --- exit 2
            "#);
        }
    }
    assert_snapshot!(env.run(["ls", "first:files/tree/none"]), @r#"
    --- stderr
    error: there is no "none" in files/tree
    hint: paths are whole, from the root directory on: `snapkit ls -R` shows them
    --- exit 1
    "#);
    assert_snapshot!(env.run(["dump", "first:files/tree/none"]), @r#"
    --- stderr
    error: there is no "none" in files/tree
    hint: paths are whole, from the root directory on: `snapkit ls -R` shows them
    --- exit 1
    "#);
    assert_snapshot!(env.run(["dump", "first:files/tree"]), @"
    --- stderr
    error: this is a tree: name a file in it, or use `snapkit restore` (given=first:files/tree)
    --- exit 2
    ");
    assert_snapshot!(env.run(["dump", "first"]), @"
    --- stderr
    error: what to write must be named: SNAPSHOT:SOURCE[/ARTIFACT][/PATH] (given=first)
    --- exit 2
    ");
    assert_snapshot!(env.run(["dump", &format!("first:files/tree/{}", env.in_tree("data"))]), @"
    --- stderr
    error: [DIR-IN-TREE]/work/data is a directory, and only files have content to write
    --- exit 2
    ");
}

/// Where a source has one tree, or one artifact, it need not be named.
#[test]
fn the_only_artifact_may_be_left_out() {
    let env = TestEnv::with_repository();
    env.sample();
    env.database("work/app.db", 3);
    assert!(env.run(["create", "-q", "app.db", "data", "--name", "x"]).is_success());
    let long = |path: &str| format!("x:files/tree/{}", env.in_tree(path));
    let short = |path: &str| format!("x:files/{}", env.in_tree(path));
    for command in ["ls", "dump"] {
        let both =
            [long("data/a.txt"), short("data/a.txt")].map(|place| env.run([command, &place]));
        assert!(both[0].is_success(), "{}", both[0]);
        assert_eq!(both[0].stdout, both[1].stdout);
    }
    assert_eq!(env.run(["dump", "x:app"]).stdout, env.run(["dump", "x:app/app.db"]).stdout);
    assert_snapshot!(env.run(["ls", "x:app/none"]), @"
    --- stderr
    error: the source app has no artifact none; it has: app.db
    --- exit 1
    ");
    assert_snapshot!(env.run(["dump", "x:files"]), @"
    --- stderr
    error: this is a tree: name a file in it, or use `snapkit restore` (given=x:files)
    --- exit 2
    ");
    let restored = env.run(["restore", &short("data/sub"), "--target", "out"]);
    assert!(restored.is_success(), "{restored}");
    assert_eq!(env.files("work/out", "b.bin").len(), 1);
}

#[test]
fn what_is_no_file_is_named() {
    let env = TestEnv::with_snapshot();
    let place = |path: &str| format!("first:files/tree/{}", env.in_tree(path));
    assert_snapshot!(env.run(["dump", &place("data/link")]), @"
    --- stderr
    error: [DIR-IN-TREE]/work/data/link is a symbolic link, and only files have content to write
    --- exit 2
    ");
}
