//! What is said when the machine refuses something: places that cannot be written, limits, rights.

use std::fs;
use std::os::unix::fs::symlink;

use insta::assert_snapshot;

use crate::support::{CommandOutput, NOBODY, TestEnv, is_root, said};

fn limit(env: &TestEnv, limits: &[&str], args: &[&str]) -> CommandOutput {
    let program = [env!("CARGO_BIN_EXE_snapkit")];
    let all = limits.iter().chain(&program).chain(args);
    env.through("prlimit", all).output().unwrap().into()
}

/// What a directory of its own is for is done without it where that loses nothing.
#[test]
fn local_state_that_cannot_be_had() {
    let env = TestEnv::with_snapshot();
    assert_snapshot!(said(&env, &[
        "create --state-dir data/a.txt data",
        "list --state-dir data/a.txt",
        "history --state-dir data/a.txt",
        "tag latest a=b --state-dir data/a.txt",
        "restore latest --target out --state-dir data/a.txt",
        "restore latest --overwrite --state-dir data/a.txt",
        "create --cache-dir data/a.txt data",
        "verify --cache-dir data/a.txt",
        "doctor --cache-dir data/a.txt --state-dir data/a.txt --no-sources",
    ]), @"
    $ snapkit create --state-dir data/a.txt data
    --- stdout
    [SNAPSHOT]
    --- stderr
    left out: the local state [DIR]/work/data/a.txt
    warning: another run of this stack is not noticed: cannot create [DIR]/work/data/a.txt/running: Not a directory (os error 20)
    warning: [DIR]/work/data/a.txt/[HEX] cannot be written to, so what is unchanged is not remembered, and all of it read each time: cannot create the directory [DIR]/work/data/a.txt/[HEX]: Not a directory (os error 20)
    warning: which repository this is is not remembered: cannot read [DIR]/work/data/a.txt/locations/[HEX]: Not a directory (os error 20)
    complete: 4 B in [DURATION]
      files (files): 1 artifact, 7 entries, 4 B
      read [SIZES]
    warning: local state was not saved, so the next run reads more: cannot create the directory [DIR]/work/data/a.txt/[HEX]: Not a directory (os error 20)
    --- exit 0
    $ snapkit list --state-dir data/a.txt
    --- stdout
    ID        TIME                  SET   STACK@HOST         NAME   SIZE  VERDICT
    [HEX]  [TIME]  full  data-[HEX]@box         4 B   complete
    [HEX]  [TIME]  full  data-[HEX]@box  first  10 B  complete
    --- stderr
    warning: [DIR]/work/data/a.txt/[HEX] cannot be written to, so what is unchanged is not remembered, and all of it read each time: cannot create the directory [DIR]/work/data/a.txt/[HEX]: Not a directory (os error 20)
    warning: which repository this is is not remembered: cannot read [DIR]/work/data/a.txt/locations/[HEX]: Not a directory (os error 20)
    warning: what was seen here is not known: cannot read [DIR]/work/data/a.txt/[HEX]/seen: Not a directory (os error 20)
    warning: what was seen here is not remembered: cannot create the directory [DIR]/work/data/a.txt/[HEX]: Not a directory (os error 20)
    --- exit 0
    $ snapkit history --state-dir data/a.txt
    --- stderr
    warning: runs that go on or were killed are not told: cannot read [DIR]/work/data/a.txt/runs: Not a directory (os error 20)
    error: cannot read [DIR]/work/data/a.txt/history
      caused by: Not a directory (os error 20)
    hint: set HOME to a directory that you may write to, or name directories with --state-dir and --cache-dir, and a key file with --key-file
    --- exit 1
    $ snapkit tag latest a=b --state-dir data/a.txt
    --- stdout
    a=b
    --- stderr
    warning: [DIR]/work/data/a.txt/[HEX] cannot be written to, so what is unchanged is not remembered, and all of it read each time: cannot create the directory [DIR]/work/data/a.txt/[HEX]: Not a directory (os error 20)
    warning: which repository this is is not remembered: cannot read [DIR]/work/data/a.txt/locations/[HEX]: Not a directory (os error 20)
    warning: what was seen here is not known: cannot read [DIR]/work/data/a.txt/[HEX]/seen: Not a directory (os error 20)
    warning: what was seen here is not remembered: cannot create the directory [DIR]/work/data/a.txt/[HEX]: Not a directory (os error 20)
    --- exit 0
    $ snapkit restore latest --target out --state-dir data/a.txt
    --- stdout
    files (files): match, 6 facts hold, 4 B to [DIR]/work/out/files
    --- stderr
    warning: [DIR]/work/data/a.txt/[HEX] cannot be written to, so what is unchanged is not remembered, and all of it read each time: cannot create the directory [DIR]/work/data/a.txt/[HEX]: Not a directory (os error 20)
    warning: which repository this is is not remembered: cannot read [DIR]/work/data/a.txt/locations/[HEX]: Not a directory (os error 20)
    warning: what was seen here is not known: cannot read [DIR]/work/data/a.txt/[HEX]/seen: Not a directory (os error 20)
    warning: what was seen here is not remembered: cannot create the directory [DIR]/work/data/a.txt/[HEX]: Not a directory (os error 20)
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    match in [DURATION]
    --- exit 0
    $ snapkit restore latest --overwrite --state-dir data/a.txt
    --- stderr
    warning: [DIR]/work/data/a.txt/[HEX] cannot be written to, so what is unchanged is not remembered, and all of it read each time: cannot create the directory [DIR]/work/data/a.txt/[HEX]: Not a directory (os error 20)
    warning: which repository this is is not remembered: cannot read [DIR]/work/data/a.txt/locations/[HEX]: Not a directory (os error 20)
    warning: what was seen here is not known: cannot read [DIR]/work/data/a.txt/[HEX]/seen: Not a directory (os error 20)
    warning: what was seen here is not remembered: cannot create the directory [DIR]/work/data/a.txt/[HEX]: Not a directory (os error 20)
    warning: another run of this stack is not noticed: cannot create [DIR]/work/data/a.txt/running: Not a directory (os error 20)
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/work/data/a.txt/recovery/before-[HEX]
    error: cannot create the directory [DIR]/work/data/a.txt/recovery/before-[HEX]/files
      caused by: Not a directory (os error 20)
    hint: set HOME to a directory that you may write to, or name directories with --state-dir and --cache-dir, and a key file with --key-file
    --- exit 1
    $ snapkit create --cache-dir data/a.txt data
    --- stdout
    [SNAPSHOT]
    --- stderr
    left out: the cache [DIR]/work/data/a.txt
    warning: [DIR]/work/data/a.txt cannot be written to, so the index is fetched again each time: cannot create the directory [DIR]/work/data/a.txt: File exists (os error 17)
    complete: 4 B in [DURATION]
      files (files): 1 artifact, 7 entries, 4 B
      read [SIZES]
    --- exit 0
    $ snapkit verify --cache-dir data/a.txt
    --- stderr
    warning: [DIR]/work/data/a.txt cannot be written to, so the index is fetched again each time: cannot create the directory [DIR]/work/data/a.txt: File exists (os error 17)
    examined 3 snapshots, [N] chunks; [SIZE] read in [DURATION]
    no damage; contents were not read, `--read-data` does that
    --- exit 0
    $ snapkit doctor --cache-dir data/a.txt --state-dir data/a.txt --no-sources
    --- stdout
    problem  local state: a file stands where a directory has to be (path=[DIR]/work/data/a.txt)
    problem  cache: a file stands where a directory has to be (path=[DIR]/work/data/a.txt)
    ok       repository: [DIR]/repo, [SIZE] are free
    ok       repository: [HEX] at [DIR]/repo
    ok       create-only puts: honoured by the store, which `init` has tried
    ok       credential: full: it can add and read
    warning  repository: [DIR]/work/data/a.txt cannot be written to, so the index is fetched again each time: cannot create the directory [DIR]/work/data/a.txt: File exists (os error 17)
    warning  repository: [DIR]/work/data/a.txt/[HEX] cannot be written to, so what is unchanged is not remembered, and all of it read each time: cannot create the directory [DIR]/work/data/a.txt/[HEX]: Not a directory (os error 20)
    ok       ledger: 3 snapshots
    ok       data-[HEX]@box (full): the newest snapshot is [DURATION] old, of [TIME], complete
    ok       stored data: [N] packs listed, and all of them there; `verify` examines what is in them
    --- stderr
    warning: [DIR]/work/data/a.txt cannot be written to, so the index is fetched again each time: cannot create the directory [DIR]/work/data/a.txt: File exists (os error 17)
    warning: [DIR]/work/data/a.txt/[HEX] cannot be written to, so what is unchanged is not remembered, and all of it read each time: cannot create the directory [DIR]/work/data/a.txt/[HEX]: Not a directory (os error 20)
    warning: which repository this is is not remembered: cannot read [DIR]/work/data/a.txt/locations/[HEX]: Not a directory (os error 20)
    warning: what was seen here is not known: cannot read [DIR]/work/data/a.txt/[HEX]/seen: Not a directory (os error 20)
    warning: what was seen here is not remembered: cannot create the directory [DIR]/work/data/a.txt/[HEX]: Not a directory (os error 20)
    2 problems found
    --- exit 4
    ");
}

#[test]
fn local_state_that_is_something_else() {
    let env = TestEnv::with_snapshot();
    let state = env.files("home/.local/state/snapkit", "/seen").remove(0);
    fs::remove_file(&state).unwrap();
    fs::create_dir(&state).unwrap();
    assert_snapshot!(said(&env, &["list", "create data"]), @"
    $ snapkit list
    --- stdout
    ID        TIME                  SET   STACK@HOST         NAME   SIZE  VERDICT
    [HEX]  [TIME]  full  data-[HEX]@box  first  10 B  complete
    --- stderr
    warning: what was seen here is not known: cannot read [DIR]/home/.local/state/snapkit/[HEX]/seen: it is no file
    warning: what was seen here is not remembered: cannot write [DIR]/home/.local/state/snapkit/[HEX]/seen: it is no file
    --- exit 0
    $ snapkit create data
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 10 B in [DURATION]
      files (files): 1 artifact, 8 entries, 10 B
      read [SIZES]
    warning: local state was not saved, so the next run reads more: cannot write [DIR]/home/.local/state/snapkit/[HEX]/seen: it is no file
    --- exit 0
    ");
    fs::remove_dir(&state).unwrap();
    fs::File::create(&state).unwrap().set_len(1 << 40).unwrap();
    assert_snapshot!(said(&env, &["list"]), @"
    $ snapkit list
    --- stdout
    ID        TIME                  SET   STACK@HOST         NAME   SIZE  VERDICT
    [HEX]  [TIME]  full  data-[HEX]@box         10 B  complete
    [HEX]  [TIME]  full  data-[HEX]@box  first  10 B  complete
    --- stderr
    warning: what was seen here is not known: cannot read [DIR]/home/.local/state/snapkit/[HEX]/seen: it is far too long
    --- exit 0
    ");
    let runs = env.path("home/.local/state/snapkit/runs");
    fs::remove_dir_all(&runs).unwrap();
    symlink("/tmp", &runs).unwrap();
    assert_snapshot!(said(&env, &["history", "create data"]), @"
    $ snapkit history
    --- stdout
    TIME                  COMMAND  STACK          SNAPSHOT  OUTCOME   EXIT  TOOK   WHY
    [TIME]  create   data-[HEX]  [HEX]  complete  0     [DURATION]
    [TIME]  create   data-[HEX]  [HEX]  complete  0     [DURATION]
    --- stderr
    warning: runs that go on or were killed are not told: cannot read [DIR]/home/.local/state/snapkit/runs: it is a symbolic link
    --- exit 0
    $ snapkit create data
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 10 B in [DURATION]
      files (files): 1 artifact, 8 entries, 10 B
      read [SIZES]
    --- exit 0
    ");
    assert!(fs::symlink_metadata(runs).unwrap().is_symlink());
}

/// Temporary files are needed for the index where there is no cache, for copies of databases, and for dry
/// runs.
#[test]
fn no_place_for_temporary_files() {
    let mut env = TestEnv::with_snapshot();
    env.database("work/app.db", 10);
    assert!(env.run(["create", "-q", "app.db"]).is_success());
    env.set("TMPDIR", env.path("none").to_str().unwrap());
    assert_snapshot!(said(&env, &[
        "create --dry-run data",
        "list --cache-dir data/a.txt",
        "create data --cache-dir data/a.txt",
        "create app.db",
        "verify --read-data",
    ]), @r#"
    $ snapkit create --dry-run data
    --- stderr
    error: cannot make a directory for a dry run
      caused by: No such file or directory (os error 2) at path "[DIR]/none/[RANDOM]"
    --- exit 1
    $ snapkit list --cache-dir data/a.txt
    --- stderr
    error: cannot make a temporary directory
      caused by: No such file or directory (os error 2) at path "[DIR]/none/[RANDOM]"
    --- exit 1
    $ snapkit create data --cache-dir data/a.txt
    --- stderr
    left out: the cache [DIR]/work/data/a.txt
    error: cannot make a temporary directory
      caused by: No such file or directory (os error 2) at path "[DIR]/none/[RANDOM]"
    --- exit 1
    $ snapkit create app.db
    --- stderr
    error: cannot examine the file system: [DIR]/none (source=app)
      caused by: No such file or directory (os error 2)
    --- exit 1
    $ snapkit verify --read-data
    --- stderr
    error: could not be checked: there is no copy of it in [DIR]/none
      caused by: cannot make a scratch directory: [DIR]/none/snapkit-[HEX]
      caused by: No such file or directory (os error 2)
    --- exit 75
    "#);
}

/// As on a full disk, but for the reason: a file may not grow.
#[test]
fn files_that_may_not_grow() {
    let env = TestEnv::with_snapshot();
    env.database("work/app.db", 4000);
    assert!(env.run(["create", "-q", "app.db", "--name", "base"]).is_success());
    env.write_much("work/more/big", 4);
    let mut all = String::new();
    for args in [
        &["create", "more"][..],
        &["restore", "base:app", "--target", "out"],
        &["restore", "first", "--target", "out2"],
        &["create", "--dry-run", "more"],
    ] {
        let said = limit(&env, &["--fsize=16384", "--"], args);
        all += &format!("$ snapkit {}\n{said}\n", args.join(" "));
    }
    assert_snapshot!(all, @"
    $ snapkit create more
    --- stderr
    error: cannot write a new file (path=[DIR]/repo/packs/[XX]/.tmp-[HEX])
      caused by: File too large (os error 27)
    hint: a limit on the length of files stands in the way (`ulimit -f`, a quota, the file system's own)
    --- exit 1
    $ snapkit restore base:app --target out
    --- stderr
    snapshot [SNAPSHOT] of app.db-[HEX]@box, [TIME]
    error: cannot write the database beside its place (artifact=app.db, source=app)
      caused by: File too large (os error 27)
    hint: a limit on the length of files stands in the way (`ulimit -f`, a quota, the file system's own)
    --- exit 1
    $ snapkit restore first --target out2
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/out2/files
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    match in [DURATION]
    --- exit 0
    $ snapkit create --dry-run more
    --- stderr
    it would be complete: 4.0 MiB in [DURATION]
      files (files): 1 artifact, 5 entries, 4.0 MiB
      read [SIZES]
    nothing was kept
    --- exit 0
    ");
    // Nor may the files grow in which is remembered what is known of the repository and of the tree.
    for n in 0..300 {
        env.write(&format!("work/many/{n}"), format!("{n}").repeat(n + 1));
    }
    assert!(env.run(["create", "-q", "many"]).is_success());
    fs::write(env.path("work/many/0"), "changed").unwrap();
    let verified = limit(&env, &["--fsize=5000", "--"], &["verify", "--cache-dir", "new"]);
    let created = limit(&env, &["--fsize=5000", "--"], &["create", "many"]);
    assert_snapshot!(format!("{verified}\n{created}"), @"
    --- stderr
    error: cannot write the index cache [DIR]/work/new/[HEX]/index/[HEX].run
      caused by: File too large (os error 27)
    hint: a limit on the length of files stands in the way (`ulimit -f`, a quota, the file system's own)
    --- exit 1
    --- stderr
    error: cannot write the index cache [DIR]/home/.cache/snapkit/[HEX]/index/[HEX].run
      caused by: File too large (os error 27)
    hint: a limit on the length of files stands in the way (`ulimit -f`, a quota, the file system's own)
    --- exit 1
    ");
    // And all is as before.
    assert!(env.run(["verify", "-q", "--read-data"]).is_success());
}

#[test]
fn too_few_files_may_be_open() {
    let env = TestEnv::with_snapshot();
    env.database("work/app.db", 10);
    let mut all = String::new();
    for args in [&["create", "data", "app.db"][..], &["restore", "latest", "--target", "out"]] {
        let said = limit(&env, &["--nofile=8", "--"], args);
        all += &format!("$ snapkit {}\n{said}\n", args.join(" "));
    }
    assert_snapshot!(all, @"
    $ snapkit create data app.db
    --- stderr
    error: cannot start the threads of this program
      caused by: Too many open files (os error 24)
    --- exit 75
    $ snapkit restore latest --target out
    --- stderr
    error: cannot start the threads of this program
      caused by: Too many open files (os error 24)
    --- exit 75
    ");
}

/// What is not captured for want of file descriptors is no gap of the source: nothing is committed.
#[test]
fn a_capture_that_runs_out_of_files() {
    let env = TestEnv::with_repository();
    for n in 0..60 {
        env.write(&format!("work/many/{}/{n}", n % 12), format!("{n}").repeat(200));
    }
    let mut ends = std::collections::BTreeSet::new();
    for files in (16..64).step_by(4) {
        let limit_to = format!("--nofile={files}");
        let created = limit(&env, &[&limit_to, "--"], &["create", "-q", "many", "--read-all"]);
        assert!(matches!(created.code(), Some(0 | 1 | 75)), "{files}: {created}");
        ends.insert(created.code());
    }
    assert!(ends.contains(&Some(0)) && ends.len() > 1, "{ends:?}");
    assert!(!env.run(["list"]).text().contains("partial"));
}

/// A cache is only that: what cannot be read of it is read again.
#[test]
fn a_cache_that_was_changed() {
    let env = TestEnv::with_snapshot();
    let runs = env.files("home/.cache/snapkit", ".run");
    assert!(!runs.is_empty());
    for run in runs {
        let mut bytes = fs::read(&run).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&run, bytes).unwrap();
    }
    assert_snapshot!(said(&env, &["verify"]), @"
    $ snapkit verify
    --- stderr
    examined 1 snapshot, [N] chunks; [SIZE] read in [DURATION]
    no damage; contents were not read, `--read-data` does that
    --- exit 0
    ");
}

/// As somebody who may not read or write all of it.
#[test]
fn rights_that_are_missing() {
    if !is_root() {
        return;
    }
    let env = TestEnv::with_snapshot();
    env.write("work/data/secret", "x");
    env.write("work/data/secret2", "x");
    env.permit("work/data/secret", 0);
    env.permit("work/data/secret2", 0);
    let run =
        |args: &[&str]| format!("$ snapkit {}\n{}\n", args.join(" "), env.run_as_nobody(args));
    let mut all = run(&["create", "data", "--name", "gaps"]);
    all += &run(&["restore", "gaps", "--target", "out"]);
    all += &run(&["diff", "gaps", "gaps"]);
    for place in ["repo", "repo/packs", "repo/index", "repo/snapshots", "repo/sessions"] {
        env.permit(place, 0o500);
    }
    env.permit("home/.local/state/snapkit", 0o500);
    all += &run(&["doctor", "--no-sources"]);
    all += &run(&["create", "data"]);
    env.permit("repo", 0);
    all += &run(&["list"]);
    assert_snapshot!(all, @"
    $ snapkit create data --name gaps
    --- stdout
    [SNAPSHOT]
    --- stderr
    partial: 10 B in [DURATION]
      files (files): 1 artifact, 8 entries, 10 B, partial
      read [SIZES]
    warning: files: [DIR-IN-TREE]/work/data/secret: cannot open (path=[DIR]/work/data/secret): Permission denied (os error 13)
    warning: files: [DIR-IN-TREE]/work/data/secret2: cannot open (path=[DIR]/work/data/secret2): Permission denied (os error 13)
    warning: 2 things were not captured; `snapkit show [HEX]` lists them
    --- exit 3
    $ snapkit restore gaps --target out
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/out/files
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    warning: the snapshot is partial: of the source files, 2 things were not captured
    match in [DURATION]
    --- exit 0
    $ snapkit diff gaps gaps
    --- stderr
    warning: the snapshot [HEX] is partial: what it lacks is told as gone; `snapkit show` lists it
    files: 1 artifact is the same
    nothing differs
    --- exit 0
    $ snapkit doctor --no-sources
    --- stdout
    problem  local state: it cannot be written to (path=[DIR]/home/.local/state/snapkit): Permission denied (os error 13)
    ok       cache: [DIR]/home/.cache/snapkit, [SIZE] are free
    problem  repository: it cannot be written to (path=[DIR]/repo): Permission denied (os error 13)
    ok       repository: [HEX] at [DIR]/repo
    ok       create-only puts: honoured by the store, which `init` has tried
    ok       credential: full: it can add and read
    ok       ledger: 2 snapshots
    warning  data-[HEX]@box (full): the newest snapshot is [DURATION] old, of [TIME], partial
    ok       stored data: [N] packs listed, and all of them there; `verify` examines what is in them
    warning  last create: [TIME], partial
    ok       last restore: [TIME], match
    ok       last verify: none is remembered here
    --- stderr
    2 problems found
    --- exit 4
    $ snapkit create data
    --- stderr
    error: cannot create the directory (path=[DIR]/repo/sessions/[SNAPSHOT])
      caused by: Permission denied (os error 13)
    --- exit 1
    $ snapkit list
    --- stderr
    error: cannot read the directory (path=[DIR]/repo)
      caused by: Permission denied (os error 13)
    --- exit 1
    ");
    env.permit("repo", 0o700);
}

/// A user without a home is told what to name.
#[test]
fn no_place_for_a_key() {
    if !is_root() {
        return;
    }
    let mut env = TestEnv::new();
    env.unset("HOME");
    let program = env.program();
    for path in ["", "work"] {
        env.permit(path, 0o755);
    }
    let program = program.to_str().unwrap().to_owned();
    let who = ["--reuid", "54321", "--regid", "54321", "--clear-groups", "--", &program];
    let places = ["init", "--cache-dir", "/tmp/c", "--state-dir", "/tmp/s"];
    let made: CommandOutput =
        env.through("setpriv", who.iter().chain(&places)).output().unwrap().into();
    assert_snapshot!(made, @"
    --- stderr
    error: there is no home directory for the key file: name a place with --key-file or SNAPKIT_KEY_FILE
    --- exit 2
    ");
}

/// Without its threads the program says so, and does not wait for them.
#[test]
fn threads_that_cannot_be_had() {
    if !is_root() {
        return;
    }
    let env = TestEnv::new();
    let program = env.program();
    let id = NOBODY.to_string();
    let who = ["--reuid", &id, "--regid", &id, "--clear-groups", "--"];
    let limit = ["prlimit", "--nproc=1", program.to_str().unwrap(), "list"];
    env.permit("", 0o755);
    let told: CommandOutput =
        env.through("setpriv", who.into_iter().chain(limit)).output().unwrap().into();
    assert_snapshot!(told, @"
    --- stderr
    error: cannot start the threads of this program
      caused by: Resource temporarily unavailable (os error 11)
    hint: a limit on processes stands in the way (`ulimit -u`, TasksMax= of systemd, a container's)
    --- exit 75
    ");
}
