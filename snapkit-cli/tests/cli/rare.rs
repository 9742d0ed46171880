//! What is rarely said: of packs that are gone and stored again, of what is no key, of clocks, and of values in the
//! stack file that nobody writes on purpose.

use std::fs;
use std::path::{Path, PathBuf};

use insta::assert_snapshot;
use rusqlite::Connection;

use crate::support::{TestEnv, is_root, said};

fn packs(env: &TestEnv) -> Vec<PathBuf> {
    env.files("repo/packs", "")
}

/// Every byte that follows from a random key differs from run to run, and so do lengths.
fn lengths() -> insta::internals::SettingsBindDropGuard {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"\d+ bytes", "[N] bytes");
    settings.add_filter(r"instead of \d+", "instead of [N]");
    settings.bind_to_scope()
}

/// More packs than are named one by one.
fn many_packs() -> TestEnv {
    let env = TestEnv::with_repository();
    for round in 0..7 {
        env.write(&format!("work/data/{round}/file"), format!("content {round}\n").repeat(1000));
        let made = env.run(["create", "-q", "data"]);
        assert!(made.is_success(), "{made}");
    }
    env
}

#[test]
fn packs_that_are_gone() {
    let env = many_packs();
    let gone = packs(&env);
    assert_eq!(gone.len(), 14);
    for pack in &gone {
        fs::remove_file(pack).unwrap();
    }
    assert_snapshot!(said(&env, &["doctor --no-sources", "create data"]), @"
    $ snapkit doctor --no-sources
    --- stdout
    ok       local state: [DIR]/home/.local/state/snapkit, [SIZE] are free
    ok       cache: [DIR]/home/.cache/snapkit, [SIZE] are free
    ok       repository: [DIR]/repo, [SIZE] are free
    ok       repository: [HEX] at [DIR]/repo
    ok       create-only puts: honoured by the store, which `init` has tried
    ok       credential: full: it can add and read
    ok       ledger: 7 snapshots
    ok       data-[HEX]@box (full): the newest snapshot is [DURATION] old, of [TIME], complete
    problem  packs/[XX]/[HEX]: it is gone or cut short; `snapkit verify` says what is lost by it
    problem  packs/[XX]/[HEX]: it is gone or cut short; `snapkit verify` says what is lost by it
    problem  packs/[XX]/[HEX]: it is gone or cut short; `snapkit verify` says what is lost by it
    problem  packs/[XX]/[HEX]: it is gone or cut short; `snapkit verify` says what is lost by it
    problem  packs/[XX]/[HEX]: it is gone or cut short; `snapkit verify` says what is lost by it
    problem  packs/[XX]/[HEX]: it is gone or cut short; `snapkit verify` says what is lost by it
    problem  packs/[XX]/[HEX]: it is gone or cut short; `snapkit verify` says what is lost by it
    problem  packs/[XX]/[HEX]: it is gone or cut short; `snapkit verify` says what is lost by it
    problem  packs/[XX]/[HEX]: it is gone or cut short; `snapkit verify` says what is lost by it
    problem  packs/[XX]/[HEX]: it is gone or cut short; `snapkit verify` says what is lost by it
    problem  stored data: and 4 more packs are gone
    ok       last create: [TIME], complete
    ok       last restore: none is remembered here
    ok       last verify: none is remembered here
    --- stderr
    11 problems found
    --- exit 4
    $ snapkit create data
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 68.4 KiB in [DURATION]
      files (files): 1 artifact, 18 entries, 68.4 KiB
      read [SIZES]
    warning: pack packs/[XX]/[HEX] is gone or cut short: what this run needs of it is stored again
    warning: pack packs/[XX]/[HEX] is gone or cut short: what this run needs of it is stored again
    warning: pack packs/[XX]/[HEX] is gone or cut short: what this run needs of it is stored again
    warning: pack packs/[XX]/[HEX] is gone or cut short: what this run needs of it is stored again
    warning: pack packs/[XX]/[HEX] is gone or cut short: what this run needs of it is stored again
    warning: pack packs/[XX]/[HEX] is gone or cut short: what this run needs of it is stored again
    warning: pack packs/[XX]/[HEX] is gone or cut short: what this run needs of it is stored again
    warning: pack packs/[XX]/[HEX] is gone or cut short: what this run needs of it is stored again
    warning: pack packs/[XX]/[HEX] is gone or cut short: what this run needs of it is stored again
    warning: pack packs/[XX]/[HEX] is gone or cut short: what this run needs of it is stored again
    warning: the same is true of 4 more packs
    --- exit 0
    ");
}

/// What is lost by one object is named up to a limit; what was seen here and is gone is told by `doctor`.
#[test]
fn more_is_lost_than_is_named() {
    let env = TestEnv::with_large_file();
    for _ in 0..12 {
        assert!(env.run(["create", "-q", "data"]).is_success());
    }
    let largest = packs(&env).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len());
    fs::remove_file(largest.unwrap()).unwrap();
    let mut all = said(&env, &["verify"]);
    fs::remove_file(&env.files("repo/snapshots", "")[3]).unwrap();
    all += &said(&env, &["doctor -q --no-sources"]);
    assert_snapshot!(all, @"
    $ snapkit verify
    --- stdout
    damaged: packs/[XX]/[HEX]: it is gone
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
      and 3 more
    --- stderr
    examined 14 snapshots, [N] chunks; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    $ snapkit doctor -q --no-sources
    --- stdout
    problem  snapshot [SNAPSHOT]: it was here and is gone without a trace
    problem  packs/[XX]/[HEX]: it is gone or cut short; `snapkit verify` says what is lost by it
    problem  last verify: [TIME], damage
    --- exit 4
    ");
}

/// What the index lists and nobody needs any more.
#[test]
fn a_pack_that_nothing_needs_is_gone() {
    let env = TestEnv::with_snapshot();
    let before = packs(&env);
    for pack in &before {
        fs::remove_file(pack).unwrap();
    }
    assert!(env.run(["create", "-q", "data"]).is_success());
    assert_snapshot!(said(&env, &["verify", "verify latest"]), @"
    $ snapkit verify
    --- stderr
    note: pack packs/[XX]/[HEX] is gone, and nothing is missing by it
    note: pack packs/[XX]/[HEX] is gone, and nothing is missing by it
    examined 2 snapshots, [N] chunks; [SIZE] read in [DURATION]
    no damage; contents were not read, `--read-data` does that
    --- exit 0
    $ snapkit verify latest
    --- stderr
    note: pack packs/[XX]/[HEX] is gone, and nothing of what was examined is missing by it
    note: pack packs/[XX]/[HEX] is gone, and nothing of what was examined is missing by it
    examined 1 snapshot, [N] chunks; [SIZE] read in [DURATION]
    no damage; contents were not read, `--read-data` does that
    --- exit 0
    ");
}

#[test]
fn packs_and_an_index_of_an_interrupted_run() {
    let env = TestEnv::with_snapshot();
    let data = packs(&env).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len());
    for segment in env.files("repo/index", "") {
        fs::remove_file(segment).unwrap();
    }
    fs::remove_file(data.unwrap()).unwrap();
    fs::remove_dir_all(env.path("home/.cache")).unwrap();
    assert_snapshot!(said(&env, &["verify"]), @"
    $ snapkit verify
    --- stdout
    damaged: index: no index segment and no pack knows it
      lost: [SNAPSHOT]:files/tree
    --- stderr
    note: 1 pack is in no index: of an interrupted run, or its segment is damaged or gone
    examined 1 snapshot, [N] chunks; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    ");
}

/// Longer than anything that is written.
#[test]
fn objects_that_are_too_long() {
    let env = TestEnv::with_snapshot();
    let _lengths = lengths();
    let grow =
        |path: &Path| fs::File::options().write(true).open(path).unwrap().set_len(1 << 30).unwrap();
    packs(&env).iter().for_each(|pack| grow(pack));
    assert_snapshot!(said(&env, &["verify --read-data"]), @"
    $ snapkit verify --read-data
    --- stdout
    damaged: packs/[XX]/[HEX]: it has [N] bytes instead of [N]
    damaged: packs/[XX]/[HEX]: it has [N] bytes instead of [N]
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    2 damaged objects found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    ");
    env.files("repo/snapshots", "").iter().for_each(|line| grow(line));
    env.files("repo/index", "").iter().for_each(|segment| grow(segment));
    env.write("repo/keys/0123456789abcdef.age", "no key");
    fs::remove_dir_all(env.path("home/.cache")).unwrap();
    assert_snapshot!(said(&env, &["verify", "create data"]), @"
    $ snapkit verify
    --- stdout
    damaged: index/[HEX]: it is too long: [N] bytes, at most [HEX] are allowed
    damaged: keys/[HEX].age: it is no age file
      lost: whoever opens the repository with it
    damaged: packs/[XX]/[HEX]: a pack's footer is malformed: its last bytes are not a pack's
    damaged: packs/[XX]/[HEX]: a pack's footer is malformed: its last bytes are not a pack's
    damaged: snapshots/[SNAPSHOT]: it is too long: [N] bytes, at most [HEX] are allowed
      lost: [SNAPSHOT]
    --- stderr
    examined 0 snapshots, 0 chunks; [SIZE] read in [DURATION]
    5 damaged objects found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    $ snapkit create data
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 10 B in [DURATION]
      files (files): 1 artifact, 8 entries, 10 B
      read [SIZES]
    warning: index segment index/[HEX] is damaged and was left out: it is too long: [N] bytes, at most [HEX] are allowed (key=index/[HEX])
    warning: pack packs/[XX]/[HEX] belongs to no index and is damaged: a pack's footer is malformed: its last bytes are not a pack's
    warning: pack packs/[XX]/[HEX] belongs to no index and is damaged: a pack's footer is malformed: its last bytes are not a pack's
    --- exit 0
    ");
}

#[test]
fn another_name_of_a_file_that_is_damaged() {
    let env = TestEnv::with_large_file();
    fs::hard_link(env.path("work/data/sub/b.bin"), env.path("work/data/sub/c.bin")).unwrap();
    assert!(env.run(["create", "-q", "data"]).is_success());
    let largest = packs(&env).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len());
    fs::remove_file(largest.unwrap()).unwrap();
    assert_snapshot!(said(&env, &["restore latest --target out --allow-damage"]), @"
    $ snapkit restore latest --target out --allow-damage
    --- stdout
    files (files): differs, 0 facts hold, 6 B to [DIR]/work/out/files
      differs: tree.attributes was [HEX], is [HEX]
      differs: tree.bytes was 800006, is 6
      differs: tree.entries was 6, is 4
      differs: tree.files was 2, is 1
      differs: tree.owners was [HEX], is [HEX]
      differs: tree.structure was [HEX], is [HEX]
      damaged, left out: [DIR-IN-TREE]/work/data/sub/b.bin: a pack is gone (object=packs/[XX]/[HEX])
      damaged, left out: [DIR-IN-TREE]/work/data/sub/c.bin: the file that this is another name of is damaged (file=[DIR-IN-TREE]/work/data/sub/b.bin)
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    differs in [DURATION]
    --- exit 4
    ");
}

/// A run goes on where another one of this machine left off; both that and what is remembered of it can be in the way.
#[test]
fn local_state_that_cannot_be_used() {
    let env = TestEnv::with_snapshot();
    let state = env.path("home/.local/state/snapkit");
    let lock = fs::read_dir(state.join("running")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    let runs = state.join("runs");
    fs::remove_dir_all(&runs).unwrap();
    fs::write(&runs, "").unwrap();
    assert_snapshot!(said(&env, &["create data"]), @"
    $ snapkit create data
    --- stdout
    [SNAPSHOT]
    --- stderr
    warning: another run of this stack is not noticed: cannot lock [DIR]/home/.local/state/snapkit/running/[HEX]: it is no file
    complete: 10 B in [DURATION]
      files (files): 1 artifact, 8 entries, 10 B
      read [SIZES]
    --- exit 0
    ");
}

#[test]
fn a_secret_in_the_place_of_its_file() {
    let mut env = TestEnv::with_snapshot();
    let secret = env.files("home/.config/snapkit", ".key").remove(0);
    let secret = fs::read_to_string(secret).unwrap();
    let secret = secret.lines().find(|line| line.starts_with("AGE-")).unwrap();
    env.set("SNAPKIT_KEY_FILE", secret);
    let first = said(&env, &["list"]);
    env.unset("SNAPKIT_KEY_FILE");
    env.set("SNAPKIT_PASSPHRASE_FILE", "hunter2\nhunter2");
    let second = said(&env, &["list"]);
    env.unset("SNAPKIT_PASSPHRASE_FILE");
    env.set("SNAPKIT_LOG", "=[");
    let third = said(&env, &["list"]);
    assert_snapshot!(format!("{first}{second}{third}"), @r#"
    $ snapkit list
    --- stderr
    error: what was given is no key file, but looks like the secret itself: name a file
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    $ snapkit list
    --- stderr
    error: what was given is no passphrase file, but looks like the secret itself: name a file
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    $ snapkit list
    --- stderr
    error: SNAPKIT_LOG says "=["
      caused by: invalid filter directive
    --- exit 2
    "#);
}

#[test]
fn values_that_nobody_writes_on_purpose() {
    let mut env = TestEnv::new();
    env.unset("SNAPKIT_REPO");
    let mut all = String::new();
    for text in [
        "[sources.a]\nkind = 'files'\npaths = ['x']\n[repo]\nurl = 5\n",
        "[repo]\nurl = '../repo'\nkey = 5\n",
        "repo = 5\n",
        "[sources]\na = 5\n",
        "[sources.a]\nkind = 5\n",
        "[sources.a]\npaths = ['x']\n",
        "[sources.a]\nkind = 'files'\npaths = [nan]\n",
        "other = 5\n",
        "[repo]\nurl = '../repo'\nother = 5\n",
        "[sources.a]\nkind = 'sqlite'\npath = 'x'\nbusy_timeout = '2d'\n",
    ] {
        env.write("work/snapkit.toml", text);
        all += &format!("{text}{}", said(&env, &["config check"]));
    }
    for text in [
        "[repo]\nurl = { env = 'NONE', default = 5 }\n[sources.a]\nkind = 'files'\npaths = ['x']\n",
        "[repo]\nurl = '../repo'\nkey = { env = 'NONE', default = 5 }\n[sources.a]\nkind = 'files'\npaths = ['x']\n",
    ] {
        env.write("work/snapkit.toml", text);
        all += &format!("{text}{}", said(&env, &["list"]));
    }
    assert_snapshot!(all, @r#"
    [sources.a]
    kind = 'files'
    paths = ['x']
    [repo]
    url = 5
    $ snapkit config check
    --- stdout
    [DIR]/work/snapkit.toml: stack work, 1 source, 0 sets, 0 hooks, 0 probes
    --- stderr
    warning: no repository is named: `[repo] url`, --repo or SNAPKIT_REPO does that
    --- exit 0
    [repo]
    url = '../repo'
    key = 5
    $ snapkit config check
    --- stderr
    error: a key does not stand in the stack file: write `key = { file = "…" }` (file=[DIR]/work/snapkit.toml:3)
    --- exit 2
    repo = 5
    $ snapkit config check
    --- stderr
    error: `repo` must be a table `[repo]` (file=[DIR]/work/snapkit.toml:1)
    --- exit 2
    [sources]
    a = 5
    $ snapkit config check
    --- stderr
    error: the source `a` must be a table `[sources.a]` (file=[DIR]/work/snapkit.toml:2)
    --- exit 2
    [sources.a]
    kind = 5
    $ snapkit config check
    --- stderr
    error: `kind` must be text (file=[DIR]/work/snapkit.toml:2)
    --- exit 2
    [sources.a]
    paths = ['x']
    $ snapkit config check
    --- stderr
    error: the source `a` has no `kind` (file=[DIR]/work/snapkit.toml:1)
    --- exit 2
    [sources.a]
    kind = 'files'
    paths = [nan]
    $ snapkit config check
    --- stderr
    error: nan is not a number here (file=[DIR]/work/snapkit.toml:3)
    --- exit 2
    other = 5
    $ snapkit config check
    --- stderr
    error: unknown key `other`; known are: name, repo, sources, sets, consistency, hook, probe (file=[DIR]/work/snapkit.toml:1)
    --- exit 2
    [repo]
    url = '../repo'
    other = 5
    $ snapkit config check
    --- stderr
    error: unknown key `other`; known are: url, key (file=[DIR]/work/snapkit.toml:3)
    --- exit 2
    [sources.a]
    kind = 'sqlite'
    path = 'x'
    busy_timeout = '2d'
    $ snapkit config check
    --- stderr
    error: `busy_timeout`: must be seconds, or text such as "10s", at most a day (source=a, file=[DIR]/work/snapkit.toml:4)
    --- exit 2
    [repo]
    url = { env = 'NONE', default = 5 }
    [sources.a]
    kind = 'files'
    paths = ['x']
    $ snapkit list
    --- stderr
    error: `url` must be text (file=[DIR]/work/snapkit.toml:2)
    --- exit 2
    [repo]
    url = '../repo'
    key = { env = 'NONE', default = 5 }
    [sources.a]
    kind = 'files'
    paths = ['x']
    $ snapkit list
    --- stderr
    error: there is no such directory (path=[DIR]/work/../repo)
      caused by: No such file or directory (os error 2)
    hint: create one with `snapkit init`, or check the path or URL
    --- exit 10
    "#);
}

/// Of tables that were not counted, and whose content cannot be.
#[test]
fn a_database_of_many_tables() {
    let env = TestEnv::with_repository();
    let db = Connection::open(env.path("work/many.db")).unwrap();
    let tables: String = (0..257).map(|n| format!("CREATE TABLE t{n:03} (x);")).collect();
    db.execute_batch(&tables).unwrap();
    drop(db);
    assert!(env.run(["create", "-q", "many.db"]).is_success());
    let shown = env.run(["show", "latest"]).text();
    let last: String = shown.lines().filter(|l| l.contains("t255") || l.contains("t256")).collect();
    assert_snapshot!(last, @"  fact rows.t255 = 0  fact rows.t256 = only 256 tables are counted (unknown)");
}

#[test]
fn a_directory_is_no_database() {
    let env = TestEnv::with_repository();
    fs::create_dir(env.path("work/dir.db")).unwrap();
    env.write("work/snapkit.toml", "[sources.a]\nkind = 'sqlite'\npath = 'dir.db'\n");
    assert_snapshot!(said(&env, &["create"]), @"
    $ snapkit create
    --- stderr
    error: not a SQLite database: it is not a file (path=[DIR]/work/dir.db, source=a)
    --- exit 2
    ");
}

/// Of a restore to places that are not as they were.
#[test]
fn what_stands_in_the_way_of_a_restore() {
    let env = TestEnv::with_repository();
    env.write("work/other/deep/thing", "x");
    env.database("work/other/deep/shop.db", 3);
    let made =
        env.run(["create", "-q", "other/deep/thing", "other/deep/shop.db", "--name", "first"]);
    assert!(made.is_success(), "{made}");
    fs::remove_dir_all(env.path("work/other")).unwrap();
    let mut all = said(&env, &["restore first"]);
    fs::remove_dir_all(env.path("work/other/deep")).unwrap();
    all += &said(&env, &["restore first:shop"]);
    fs::remove_dir_all(env.path("work/other")).unwrap();
    env.write("work/other", "a file");
    all += &said(&env, &["restore first:files", "restore first:shop"]);
    fs::remove_file(env.path("work/other")).unwrap();
    if is_root() {
        fs::create_dir_all(env.path("work/other/deep/thing")).unwrap();
        env.permit("work/other/deep", 0o555);
        let output = env.run_as_nobody(&["restore", "--overwrite", "first:files"]);
        all += &format!("as nobody\n{output}");
        env.permit("work/other/deep", 0o755);
    }
    assert_snapshot!(all, @"
    $ snapkit restore first
    --- stdout
    files (files): match, 6 facts hold, 1 B to [DIR]/work/other/deep/thing
    shop (sqlite): match, 8 facts hold, 8.0 KiB to [DIR]/work/other/deep/shop.db
    --- stderr
    snapshot [SNAPSHOT] of shop.db+thing-[HEX]@box, [TIME]
    match in [DURATION]
    --- exit 0
    $ snapkit restore first:shop
    --- stdout
    shop (sqlite): match, 8 facts hold, 8.0 KiB to [DIR]/work/other/deep/shop.db
      note: the directory [DIR]/work/other/deep was made, for its owner only
    --- stderr
    snapshot [SNAPSHOT] of shop.db+thing-[HEX]@box, [TIME]
    match in [DURATION]
    --- exit 0
    $ snapkit restore first:files
    --- stderr
    snapshot [SNAPSHOT] of shop.db+thing-[HEX]@box, [TIME]
    error: a symbolic link or a file stands where a directory has to be (path=[DIR]/work/other/deep, source=files)
    --- exit 11
    $ snapkit restore first:shop
    --- stderr
    snapshot [SNAPSHOT] of shop.db+thing-[HEX]@box, [TIME]
    error: a file stands where the directory of the target has to be (path=[DIR]/work/other, source=shop)
    --- exit 2
    as nobody
    --- stderr
    snapshot [SNAPSHOT] of shop.db+thing-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    error: a directory that cannot be replaced stands where something else has to be (path=[DIR]/work/other/deep/thing, artifact=tree, source=files)
    --- exit 11
    ");
}

/// What a restore that is not trusted, or not root's, leaves out.
#[test]
fn attributes_that_are_left_out() {
    if !is_root() {
        return;
    }
    let env = TestEnv::with_repository();
    env.write("work/data/sub/program", "x");
    let capability = "0x0100000200040000000000000000000000000000";
    let set = std::process::Command::new("setfattr")
        .args(["-n", "security.capability", "-v", capability])
        .arg(env.path("work/data/sub/program"))
        .status();
    assert!(set.unwrap().success());
    assert!(env.run(["create", "-q", "data", "--name", "first"]).is_success());
    let mut all = said(&env, &["restore first --target out"]);
    fs::create_dir(env.path("work/other")).unwrap();
    env.permit("work/other", 0o777);
    let output = env.run_as_nobody(&["restore", "first", "--target", "other"]);
    all += &format!("as nobody\n{output}");
    let output = env.run_as_nobody(&[
        "restore",
        "first",
        "--target",
        "other/part",
        "--include",
        "**/program",
    ]);
    all += &format!("as nobody\n{output}");
    assert_snapshot!(all, @"
    $ snapkit restore first --target out
    --- stdout
    files (files): match, 6 facts hold, 1 B to [DIR]/work/out/files
      note: security attributes, such as file capabilities were set: 1 ([DIR-IN-TREE]/work/data/sub/program)
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    match in [DURATION]
    --- exit 0
    as nobody
    --- stdout
    files (files): differs, 4 facts hold, 1 B to [DIR]/work/other/files
      differs: tree.attributes was [HEX], is [HEX]
      differs: tree.owners was [HEX], is [HEX]
      problem: [DIR-IN-TREE]/work/data/sub/program: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: [DIR-IN-TREE]/work/data/sub: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: [DIR-IN-TREE]/work/data: cannot set the owner 0:0: Operation not permitted (os error 1)
      note: security attributes, such as file capabilities were left out: 1 ([DIR-IN-TREE]/work/data/sub/program); restore as root, or trust the repository, to have them
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    differs in [DURATION]
    --- exit 4as nobody
    --- stdout
    files (files): unproven, 1 B to [DIR]/work/other/part/files
      unproven: a part of a snapshot has no facts of its own
      problem: [DIR-IN-TREE]/work/data/sub/program: cannot set the owner 0:0: Operation not permitted (os error 1)
      note: security attributes, such as file capabilities were left out: 1 ([DIR-IN-TREE]/work/data/sub/program); restore as root, or trust the repository, to have them
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    unproven in [DURATION]
    --- exit 4
    ");
}

#[test]
fn packs_of_another_length() {
    let env = TestEnv::with_large_file();
    let _numbers = lengths();
    let largest =
        packs(&env).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let file = fs::File::options().write(true).open(largest).unwrap();
    file.set_len(fs::metadata(env.path("repo/config")).unwrap().len()).unwrap();
    let mut all = said(&env, &["verify -q"]);
    file.set_len(40 << 20).unwrap();
    all += &said(&env, &["verify -q", "verify -q --read-data"]);
    assert_snapshot!(all, @"
    $ snapkit verify -q
    --- stdout
    damaged: packs/[XX]/[HEX]: it has [N] bytes instead of [N]
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
    --- exit 4
    $ snapkit verify -q
    --- stdout
    damaged: packs/[XX]/[HEX]: it has [HEX] bytes instead of [N]
    --- exit 4
    $ snapkit verify -q --read-data
    --- stdout
    damaged: packs/[XX]/[HEX]: it has [HEX] bytes instead of [N]
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
    --- exit 4
    ");
}

#[test]
fn a_log_that_nobody_means() {
    let mut env = TestEnv::with_repository();
    env.set("SNAPKIT_LOG", "snapkit_core=nonsense");
    assert_snapshot!(env.run(["list"]), @r#"
    --- stderr
    error: SNAPKIT_LOG says "snapkit_core=nonsense"
      caused by: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5
    --- exit 2
    "#);
}

/// Who reads nothing does not call whole what somebody has read and found damaged.
#[test]
fn damage_that_was_found_is_not_forgotten() {
    let env = TestEnv::with_repository();
    let _numbers = lengths();
    env.write_much("work/data/big", 1);
    assert!(env.run(["create", "-q", "data", "--name", "first"]).is_success());
    let largest = packs(&env).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len());
    let largest = largest.unwrap();
    let whole = fs::read(&largest).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&largest, bytes).unwrap();
    let mut all = said(&env, &["verify -q", "doctor -q --no-sources"]);
    assert_eq!(env.run(["verify", "-q", "--read-data"]).code(), Some(4));
    all += &said(&env, &["verify", "doctor -q --no-sources"]);
    fs::write(&largest, whole).unwrap();
    all += &said(&env, &["verify -q", "doctor -q --no-sources"]);
    assert_snapshot!(all, @"
    $ snapkit verify -q
    --- exit 0
    $ snapkit doctor -q --no-sources
    --- exit 0
    $ snapkit verify
    --- stdout
    damaged: packs/[XX]/[HEX]: a pack's content does not fit its name
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/big
    --- stderr
    examined 1 snapshot, [N] chunks; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    $ snapkit doctor -q --no-sources
    --- stdout
    problem  packs/[XX]/[HEX]: a verify has found it damaged; `snapkit verify` says what is lost by it
    problem  last verify: [TIME], damage
    --- exit 4
    $ snapkit verify -q
    --- exit 0
    $ snapkit doctor -q --no-sources
    --- exit 0
    ");
}

/// A backup that does not exist is not fresh.
#[test]
fn nothing_is_not_young() {
    let env = TestEnv::with_repository();
    let mut all = said(
        &env,
        &["doctor -q --max-age 1h", "doctor -q --max-age 1h --set nightly", "doctor -q"],
    );
    env.write("work/data/x", "x");
    assert!(env.run(["create", "-q", "data"]).is_success());
    all += &said(&env, &["doctor -q --max-age 1h", "doctor -q --max-age 1h --set nightly"]);
    assert_snapshot!(all, @"
    $ snapkit doctor -q --max-age 1h
    --- stdout
    problem  snapshots: there is no snapshot yet
    --- exit 4
    $ snapkit doctor -q --max-age 1h --set nightly
    --- stdout
    problem  snapshots: there is no snapshot of set nightly yet
    --- exit 4
    $ snapkit doctor -q
    --- exit 0
    $ snapkit doctor -q --max-age 1h
    --- exit 0
    $ snapkit doctor -q --max-age 1h --set nightly
    --- stdout
    problem  snapshots: there is no snapshot of set nightly yet
    --- exit 4
    ");
}

/// What another user has stored and this one may not read does not hide the rest.
#[test]
fn an_object_of_somebody_else() {
    if !is_root() {
        return;
    }
    let env = TestEnv::with_snapshot();
    let second = env.run(["create", "data", "--name", "second"]).text();
    // Everything is given to the user that owns nothing, and then one snapshot is taken away.
    assert!(env.run_as_nobody(&["list"]).is_success());
    let newest = env.path("repo/snapshots").join(second.trim());
    std::os::unix::fs::chown(&newest, Some(0), Some(0)).unwrap();
    fs::set_permissions(&newest, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut all = String::new();
    let program = env.program();
    for args in
        ["list", "restore first --target out", "restore latest --target out2", "create data -q"]
    {
        let id = crate::support::NOBODY.to_string();
        let who =
            ["--reuid", &id, "--regid", &id, "--clear-groups", "--", program.to_str().unwrap()];
        let output =
            env.through("setpriv", who.into_iter().chain(args.split(' '))).output().unwrap();
        all += &format!("=== {args}\n{}\n", crate::support::CommandOutput::from(output));
    }
    assert_snapshot!(all, @"
    === list
    --- stdout
    ID        TIME                  SET   STACK@HOST         NAME   SIZE  VERDICT
    [HEX]  [TIME]  full  data-[HEX]@box  first  10 B  complete
    --- stderr
    warning: the snapshot [SNAPSHOT] cannot be read by this user: cannot open the object (path=[DIR]/repo/snapshots/[SNAPSHOT]): Permission denied (os error 13)
    --- exit 4
    === restore first --target out
    --- stdout
    files (files): differs, 5 facts hold, 10 B to [DIR]/work/out/files
      differs: tree.owners was [HEX], is [HEX]
      problem: [DIR-IN-TREE]/work/data/a.txt: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: [DIR-IN-TREE]/work/data/link: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: [DIR-IN-TREE]/work/data/sub/b.bin: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: [DIR-IN-TREE]/work/data/sub: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: [DIR-IN-TREE]/work/data: cannot set the owner 0:0: Operation not permitted (os error 1)
    --- stderr
    warning: the snapshot [SNAPSHOT] cannot be read by this user: cannot open the object (path=[DIR]/repo/snapshots/[SNAPSHOT]): Permission denied (os error 13)
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    differs in [DURATION]
    --- exit 4
    === restore latest --target out2
    --- stderr
    warning: the snapshot [SNAPSHOT] cannot be read by this user: cannot open the object (path=[DIR]/repo/snapshots/[SNAPSHOT]): Permission denied (os error 13)
    error: snapshot [SNAPSHOT] cannot be read by this user, and may be what latest means: cannot open the object (path=[DIR]/repo/snapshots/[SNAPSHOT]): Permission denied (os error 13); name an older one to have it
    --- exit 1
    === create data -q
    --- exit 0
    ");
}

/// A source that somebody took out of the stack file is missed by somebody.
#[test]
fn a_source_that_is_not_captured_any_more() {
    let env = TestEnv::with_repository();
    env.write("work/a/x", "x");
    env.write("work/b/x", "x");
    let both = "name = 'shop'\n[sources.a]\nkind = 'files'\npaths = ['a']\n[sources.b]\nkind = 'files'\npaths = ['b']\n";
    env.write("work/snapkit.toml", both);
    assert!(env.run(["create", "-q"]).is_success());
    env.write("work/snapkit.toml", &both[..both.find("[sources.b]").unwrap()]);
    assert!(env.run(["create", "-q"]).is_success());
    assert_snapshot!(env.run(["doctor", "-q"]), @"
    --- stdout
    warning  shop@box (full): source b was in the snapshot before the newest, and is not in that
    --- exit 0
    ");
}

/// That one set goes well says nothing of another.
#[test]
fn a_set_that_fails_each_time_is_told() {
    let env = TestEnv::with_repository();
    env.write("work/a/x", "x");
    env.write("work/snapkit.toml", "name = 'shop'\n[sources.a]\nkind = 'files'\npaths = ['a']\n[sources.b]\nkind = 'command'\ncapture = ['false']\n[sets]\ndata = ['a']\n");
    assert_eq!(env.run(["create", "-q"]).code(), Some(1));
    assert!(env.run(["create", "-q", "--set", "data"]).is_success());
    assert_snapshot!(env.run(["doctor", "-q", "--no-sources"]), @"
    --- stdout
    warning  last create: [TIME], failed: `capture` failed: exit status: 1 (program=false, source=b)
    --- exit 0
    ");
}

/// Damage of one snapshot is none of another, and the same place may be spelled in another way.
#[test]
fn what_is_damaged_is_told_to_whom_it_concerns() {
    let env = TestEnv::with_repository();
    env.write("work/data/first", "the first\n");
    assert!(env.run(["create", "-q", "data", "--name", "first"]).is_success());
    let old = packs(&env);
    env.write("work/other/second", "the second\n");
    assert!(env.run(["create", "-q", "other", "--name", "second"]).is_success());
    for pack in old {
        let mut bytes = fs::read(&pack).unwrap();
        bytes[0] ^= 1;
        fs::write(pack, bytes).unwrap();
    }
    let with_slash = format!("{}/", env.path("repo").display());
    assert_eq!(env.run(["verify", "-q", "--read-data", "--repo", &with_slash]).code(), Some(4));
    assert_eq!(env.run(["verify", "-q", "first"]).code(), Some(4));
    assert_eq!(env.run(["verify", "-q", "second"]).code(), Some(0));
    assert_eq!(env.run(["verify", "-q"]).code(), Some(4));
    let doctor = env.run(["doctor", "-q", "--no-sources"]);
    assert!(doctor.text().contains("a verify has found it damaged"), "{doctor}");
}
