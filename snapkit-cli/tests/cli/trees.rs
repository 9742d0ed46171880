//! Trees that cannot be captured or put back as they are, and what is said of each.

use std::fs;
use std::process::{Command, Stdio};

use insta::assert_snapshot;
use rustix::fs::{Mode, OFlags};

use crate::support::{CommandOutput, TestEnv, said};

fn stack(env: &TestEnv, more: &str) {
    let text = format!("name = \"shop\"\n[sources.s]\nkind = \"files\"\n{more}\n");
    env.write("work/snapkit.toml", text);
}

#[test]
fn that_have_no_end() {
    let env = TestEnv::with_repository();
    env.sample();
    // A path that is longer than any system call takes.
    let name = "d".repeat(200);
    let mut at = rustix::fs::open(env.path("work/data"), OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..25 {
        rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    // How deep it gets hangs on the path of the scratch directory.
    let mut told = env.run(["create", "-q", "data"]).to_string().replace(&format!("/{name}"), "/d");
    while told.contains("/d/d") {
        told = told.replace("/d/d", "/d");
    }
    assert_snapshot!(told, @"
    --- stderr
    warning: files: [DIR-IN-TREE]/work/data/d: a path in this directory is too long (path=[DIR]/work/data/d)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    ");
    let removed = Command::new("rm").arg("-rf").arg(env.path("work/data")).status();
    assert!(removed.unwrap().success());
    assert_snapshot!(said(&env, &["create -q /proc/sys/vm"]), @"
    $ snapkit create -q /proc/sys/vm
    --- stderr
    warning: files: proc/sys/vm: the file system of this does not say how long its files are, and nothing of it is captured; exclude it (path=/proc/sys/vm)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    ");
    env.sample();
    let exclude = "?*".repeat(60_000);
    let told = env.run(["create", "data", "--exclude", &exclude]).to_string();
    assert_snapshot!(told.replace(&exclude, "[GLOB]"), @"
    --- stderr
    error: a pattern is too long, or has too many choices in braces (source=files)
    --- exit 2
    ");
    stack(&env, "paths = [\"data\"]\nexclude = [\"[\"]");
    assert_snapshot!(said(&env, &["create"]), @r#"
    $ snapkit create
    --- stderr
    error: `exclude`: not a pattern: "[" (source=s, file=[DIR]/work/snapkit.toml:5)
    --- exit 2
    "#);
}

#[test]
fn that_are_put_where_something_is() {
    let env = TestEnv::with_snapshot();
    env.write("work/data/newer", "x");
    assert_snapshot!(said(&env, &["restore latest --overwrite"]), @"
    $ snapkit restore latest --overwrite
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/data
      note: 1 entry that the snapshot does not have went away with the old state, to '[DIR]/home/.local/state/snapkit/recovery/before-[HEX]/files/data.snapkit-old-[HEX]': [DIR]/work/data/newer
    to bring back what files held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    ");
    env.write("work/data/newer", "x");
    env.write("work/data/sub/newest", "x");
    assert_snapshot!(said(&env, &["restore latest --overwrite"]), @"
    $ snapkit restore latest --overwrite
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/data
      note: 2 entries that the snapshot does not have went away with the old state, to '[DIR]/home/.local/state/snapkit/recovery/before-[HEX]/files/data.snapkit-old-[HEX]': [DIR]/work/data/newer, [DIR]/work/data/sub/newest
    to bring back what files held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    ");
    env.write("work/data/a.txt", "changed");
    let part = format!("latest:files/tree/{}", env.in_tree("data/a.txt"));
    assert_snapshot!(said(&env, &[&format!("restore {part}"), &format!("restore {part} --overwrite")]), @"
    $ snapkit restore latest:files/tree[DIR]/work/data/a.txt
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: there is something where the restore goes (path=[DIR]/work/data, artifact=tree, source=files)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    $ snapkit restore latest:files/tree[DIR]/work/data/a.txt --overwrite
    --- stdout
    files (files): unproven, 6 B to [DIR]/work/data/a.txt
      unproven: a part of a snapshot has no facts of its own; every file was read back and is as stored
    to bring back what files held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    unproven in [DURATION]
    --- exit 0
    ");
    fs::remove_dir_all(env.path("work/data")).unwrap();
    env.write("work/data", "a file");
    assert_snapshot!(said(&env, &["restore latest", "restore latest --overwrite"]), @"
    $ snapkit restore latest
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: there is something where the restore goes (path=[DIR]/work/data, source=files)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    $ snapkit restore latest --overwrite
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
    env.write("work/file", "x");
    assert_snapshot!(said(&env, &["restore latest --target file", "restore latest --target file/below"]), @"
    $ snapkit restore latest --target file
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: cannot create the directory [DIR]/work/file/files
      caused by: Not a directory (os error 20)
    --- exit 1
    $ snapkit restore latest --target file/below
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: cannot create the directory [DIR]/work/file/below/files
      caused by: Not a directory (os error 20)
    --- exit 1
    ");
}

/// A snapshot that lacks a root leaves what stands there alone.
#[test]
fn that_lack_a_root() {
    let env = TestEnv::with_repository();
    env.sample();
    env.write("work/more/x", "x");
    stack(&env, "paths = [\"data\", \"more\"]");
    assert!(env.run(["create", "-q"]).is_success());
    fs::remove_dir_all(env.path("work/more")).unwrap();
    assert_snapshot!(said(&env, &["create", "restore latest --target out"]), @"
    $ snapkit create
    --- stdout
    [SNAPSHOT]
    --- stderr
    partial: 10 B in [DURATION]
      s (files): 1 artifact, 8 entries, 10 B, partial
      read [SIZES]
    warning: s: [DIR-IN-TREE]/work/more: what is to be captured does not exist (path=[DIR]/work/more)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    $ snapkit restore latest --target out
    --- stdout
    s (files): match, 6 facts hold, 10 B to [DIR]/work/out/s
      note: the snapshot holds nothing of [DIR]/work/out/s[DIR]/work/more; it is left alone
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    warning: the snapshot is partial: of the source s, 1 thing was not captured
    match in [DURATION]
    --- exit 0
    ");
    env.write("work/more/x", "newer");
    assert_snapshot!(said(&env, &["restore latest~1 --overwrite --include a.txt"]), @"
    $ snapkit restore latest~1 --overwrite --include a.txt
    --- stdout
    s (files): unproven, 6 B to [DIR]/work/data, [DIR]/work/more
      unproven: a part of a snapshot has no facts of its own; every file was read back and is as stored
    to bring back what s held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    unproven in [DURATION]
    --- exit 0
    ");
    assert_eq!(env.read("work/more/x"), "newer");
}

#[test]
fn of_another_working_directory() {
    let env = TestEnv::with_repository();
    env.write("elsewhere/data/x", "x");
    assert_snapshot!(said(&env, &[
        "create -q ../elsewhere/data",
        "restore -q latest --target ../elsewhere/out",
        "restore -q latest --target none/../out",
        "create -q data/../../elsewhere/data",
    ]), @"
    $ snapkit create -q ../elsewhere/data
    --- exit 0
    $ snapkit restore -q latest --target ../elsewhere/out
    --- exit 0
    $ snapkit restore -q latest --target none/../out
    --- stderr
    error: a path holds `..`; name the place that it leads to (path=[DIR]/work/none/../out/files, source=files)
    --- exit 2
    $ snapkit create -q data/../../elsewhere/data
    --- stderr
    error: there is nothing at this path (path=data/../../elsewhere/data)
    --- exit 1
    ");
    let x = env.path("elsewhere/data/x");
    let below = x.strip_prefix("/").unwrap();
    assert!(env.path("elsewhere/out/files").join(below).exists());
    // A shell that goes somewhere and removes it.
    fs::create_dir(env.path("gone")).unwrap();
    let script = "cd \"$1\"; rmdir \"$1\"; shift; exec \"$@\"";
    let mut there = env.through("sh", ["-c", script, "sh"]);
    there.arg(env.path("gone")).arg(env!("CARGO_BIN_EXE_snapkit")).arg("list");
    let told: CommandOutput = there.output().unwrap().into();
    assert_snapshot!(told, @"
    --- stderr
    error: cannot tell the working directory
      caused by: No such file or directory (os error 2)
    --- exit 1
    ");
}

#[test]
fn a_stream_that_cannot_be_read() {
    let env = TestEnv::with_repository();
    let mut command = env.command(["create", "--stdin", "x"]);
    command.stdin(Stdio::from(fs::File::open("/").unwrap()));
    let told: CommandOutput = command.output().unwrap().into();
    assert_snapshot!(told, @"
    --- stderr
    error: cannot read standard input (artifact=x, source=x)
      caused by: Is a directory (os error 21)
    --- exit 1
    ");
}
