//! What is said when things change between two steps, and when a disk fails in the middle of something: single calls to
//! the system, counted over all threads, fail, or wait until a shell has done something.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use insta::assert_snapshot;

use crate::support::{CommandOutput, TestEnv, is_root};

/// A call, the place that it is about, which of them, and what happens instead or before. A place that begins with `/`
/// is below the test's directory.
struct Scene(&'static str, &'static str, &'static str, &'static str);

/// The program that meddles, if it works here: it is built by the linker that every Rust program needs.
pub(crate) fn meddler() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (to, new) =
            (place.join("meddle"), place.join(format!("meddle-{}", std::process::id())));
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/meddle.c");
        let made = Command::new("cc").args(["-O1", "-o"]).args([&new, &from]).status();
        let works = made.is_ok_and(|status| status.success())
            && is_root()
            // Whoever else tests here just now makes the same.
            && fs::rename(&new, &to).is_ok()
            && Command::new(&to).args(["--", "true"]).status().is_ok_and(|status| status.success());
        assert!(works || std::env::var_os("CI").is_none(), "it must work in CI");
        works.then_some(to)
    });
    built.as_deref()
}

/// A repository, and a tree and a database that are in it.
fn sample() -> TestEnv {
    let mut env = TestEnv::with_repository();
    fs::create_dir(env.path("tmp")).unwrap();
    let scratch = env.path("tmp");
    env.set("TMPDIR", scratch.to_str().unwrap());
    env.sample();
    env.database("work/shop.db", 10);
    let made = env.run(["create", "-q", "data", "shop.db", "--name", "first"]);
    assert!(made.is_success(), "{made}");
    env
}

/// What is said in each scene, each on a stage of its own.
fn told(prepare: impl Fn(&TestEnv), args: &str, scenes: &[&[Scene]]) -> String {
    let Some(meddler) = meddler() else { return String::new() };
    let mut all = String::new();
    for scene in scenes {
        let env = sample();
        prepare(&env);
        let dir = env.path("");
        let dir = dir.to_str().unwrap().trim_end_matches('/');
        let mut rules = Vec::new();
        for Scene(call, place, count, action) in *scene {
            writeln!(all, "=== {count}. {call} of {place}: {action}").unwrap();
            let whole = |place: &str| match place.strip_prefix('/') {
                Some(below) => format!("{dir}/{below}"),
                None => place.to_owned(),
            };
            let place: Vec<_> = place.split(" > ").map(whole).collect();
            rules.extend([
                (*call).to_owned(),
                place.join(" > "),
                (*count).to_owned(),
                (*action).to_owned(),
            ]);
        }
        rules.extend(["--".to_owned(), env!("CARGO_BIN_EXE_snapkit").to_owned()]);
        rules.extend(args.split(' ').map(str::to_owned));
        let output: CommandOutput =
            env.through(meddler.to_str().unwrap(), rules).output().unwrap().into();
        let (short, _) = (dir.trim_start_matches('/'), ());
        for line in output.to_string().lines() {
            writeln!(all, "{}", line.replace(short, "DIR")).unwrap();
        }
    }
    all
}

fn nothing(_: &TestEnv) {}

/// What differs from run to run, with the names of packs and of files of the basis.
fn filters() -> (TestEnv, insta::internals::SettingsBindDropGuard) {
    let env = TestEnv::new();
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"[0-9a-f]{24}\.basis", "[HEX].basis");
    settings.add_filter(r"packs/[0-9a-f]{2}\b", "packs/[XX]");
    (env, settings.bind_to_scope())
}

/// Directories below each other, deeper than the walk keeps them open.
fn deep(env: &TestEnv) {
    let path = (0..40).fold("work/data/sub".to_owned(), |path, n| format!("{path}/{n}"));
    env.write(&format!("{path}/low"), "x");
    env.write("work/data/sub/0/z", "x");
    env.write("work/data/sub/0/zz", "x");
}

fn attributed(env: &TestEnv) {
    let place = env.path("work/data/a.txt");
    let set = Command::new("setfattr").args(["-n", "user.kind", "-v", "odd"]).arg(place).status();
    assert!(set.unwrap().success());
}

#[test]
fn of_a_tree_that_changes_while_it_is_captured() {
    if meddler().is_none() {
        return;
    }
    let (_env, _names) = filters();
    let deepest = "/work/data/sub/0/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18/19/20/21/22/23/24/25/26/27/28/29/30/31/32/33/34/35/36/37/38/39/low";
    let mut all = told(
        nothing,
        "create -q data",
        &[
            &[Scene(
                "newfstatat",
                "/work/data/sub/b.bin",
                "1",
                "run=rm data/sub/b.bin; mv data/sub data/moved; mkdir data/sub",
            )],
            &[Scene("newfstatat", "/work/data/a.txt", "1", "kind=170000")],
            &[Scene("getcwd", "", "1+", "error=2")],
            // The first twelve are those of the language's runtime.
            &[Scene("rt_sigaction", "", "13+", "error=22")],
            &[Scene("write", "*.basis", "1", "error=28")],
            &[Scene("openat", "*.basis", "1", "error=5")],
        ],
    );
    // Between the walk and the reading: moved, replaced, removed; away for a while; replaced for a while.
    let moved = "run=mv data/sub data/moved";
    all += &told(
        nothing,
        "create -q data --read-all",
        &[
            &[Scene("openat", "/work/data/sub", "2", moved)],
            &[Scene(
                "openat",
                "/work/data/sub",
                "2",
                "run=mv data/sub data/moved; mkdir data/sub; echo > data/sub/b.bin; echo > data/sub/c",
            )],
            &[Scene("openat", "/work/data/sub", "2", "run=rm -r data/sub")],
            &[
                Scene("openat", "/work/data/sub", "1", moved),
                Scene("openat", "/work/data/a.txt", "1", "run=mv data/moved data/sub"),
            ],
            &[
                Scene(
                    "openat",
                    "/work/data/sub",
                    "1",
                    "run=mv data/sub data/moved; mkdir data/other",
                ),
                Scene("newfstatat", "/work/data/sub", "2", "run=mv data/other data/sub"),
            ],
            &[
                Scene("openat", "/work/data/sub", "2", moved),
                Scene("openat", "/work/data/sub", "3", "run=mv data/moved data/sub"),
            ],
            &[
                Scene("openat", "/work/data/a.txt", "1", "run=mv data/a.txt data/away"),
                Scene("openat", "/work/data/sub/b.bin", "1", "run=mv data/away data/a.txt"),
            ],
            &[Scene("openat", "/work/data/a.txt", "1", "run=rm data/a.txt")],
        ],
    );
    all += &told(
        nothing,
        "create -q data/sub/b.bin",
        &[
            &[Scene("openat", "/work/data/sub", "1", "run=mv data moved; echo > data")],
            &[Scene("openat", "/work/data/sub", "1", "error=5")],
            &[Scene("openat", "/work/data/sub", "2", "error=5")],
        ],
    );
    all += &told(
        deep,
        "create -q data",
        &[&[Scene("newfstatat", deepest, "1", "run=mv data/sub/0 data/1")]],
    );
    all += &told(
        attributed,
        "create -q data",
        &[
            &[Scene("lgetxattr", "*", "1", "error=5")],
            &[Scene("lgetxattr", "*", "1+", "error=7")],
            &[Scene("lgetxattr", "*", "1+", "error=61")],
        ],
    );
    let with_database = |env: &TestEnv| env.database("work/data/x.db", 3);
    all += &told(
        with_database,
        "create -q data",
        &[
            &[Scene("statx", "/work/data/x.db", "1+", "error=5")],
            &[Scene("openat", "/work/data/x.db", "1+", "error=5")],
        ],
    );
    assert_snapshot!(all, @"
    === 1. newfstatat of /work/data/sub/b.bin: run=rm data/sub/b.bin; mv data/sub data/moved; mkdir data/sub
    --- stderr
    warning: files: DIR/work/data/sub: the directory was replaced while it was walked; what is in it now may be missing (path=/DIR/work/data/sub)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === 1. newfstatat of /work/data/a.txt: kind=170000
    --- stderr
    warning: files: DIR/work/data/a.txt: an unknown kind of file (path=/DIR/work/data/a.txt)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === 1+. getcwd of : error=2
    --- stderr
    error: cannot tell the working directory
      caused by: No such file or directory (os error 2)
    --- exit 1
    === 13+. rt_sigaction of : error=22
    --- stderr
    error: cannot listen for signals
      caused by: Invalid argument (os error 22)
    --- exit 1
    === 1. write of *.basis: error=28
    --- stderr
    warning: local state was not saved, so the next run reads more: cannot write the basis /DIR/home/.local/state/snapkit/[HEX]/basis/[HEX]/files/[HEX].basis: No space left on device (os error 28)
    --- exit 0
    === 1. openat of *.basis: error=5
    --- stderr
    warning: local state was not saved, so the next run reads more: cannot write the basis /DIR/home/.local/state/snapkit/[HEX]/basis/[HEX]/files/[HEX].basis: Input/output error (os error 5)
    --- exit 0
    === 2. openat of /work/data/sub: run=mv data/sub data/moved
    --- stderr
    warning: files: DIR/work/data/sub/b.bin: the file changed while it was read; run it again when it is quiet (path=/DIR/work/data/sub/b.bin)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === 2. openat of /work/data/sub: run=mv data/sub data/moved; mkdir data/sub; echo > data/sub/b.bin; echo > data/sub/c
    --- stderr
    warning: files: DIR/work/data/sub/b.bin: the file changed while it was read; run it again when it is quiet (path=/DIR/work/data/sub/b.bin)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === 2. openat of /work/data/sub: run=rm -r data/sub
    --- exit 0
    === 1. openat of /work/data/sub: run=mv data/sub data/moved
    === 1. openat of /work/data/a.txt: run=mv data/moved data/sub
    --- stderr
    warning: files: DIR/work/data/sub: it was away while it was to be read, and is missing although it is there (path=/DIR/work/data/sub)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === 1. openat of /work/data/sub: run=mv data/sub data/moved; mkdir data/other
    === 2. newfstatat of /work/data/sub: run=mv data/other data/sub
    --- stderr
    warning: files: DIR/work/data/sub: the file changed while it was read; run it again when it is quiet (path=/DIR/work/data/sub)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === 2. openat of /work/data/sub: run=mv data/sub data/moved
    === 3. openat of /work/data/sub: run=mv data/moved data/sub
    --- exit 0
    === 1. openat of /work/data/a.txt: run=mv data/a.txt data/away
    === 1. openat of /work/data/sub/b.bin: run=mv data/away data/a.txt
    --- stderr
    warning: files: DIR/work/data/a.txt: it was away while it was to be read, and is missing although it is there (path=/DIR/work/data/a.txt)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === 1. openat of /work/data/a.txt: run=rm data/a.txt
    --- exit 0
    === 1. openat of /work/data/sub: run=mv data moved; echo > data
    --- stderr
    warning: files: DIR/work/data: what leads to this is not a directory
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === 1. openat of /work/data/sub: error=5
    --- stderr
    error: cannot examine (path=/DIR/work/data/sub/b.bin, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 2. openat of /work/data/sub: error=5
    --- stderr
    warning: files: DIR/work/data/sub: cannot enter the directory (path=/DIR/work/data/sub): Input/output error (os error 5)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === 1. newfstatat of /work/data/sub/0/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18/19/20/21/22/23/24/25/26/27/28/29/30/31/32/33/34/35/36/37/38/39/low: run=mv data/sub/0 data/1
    --- stderr
    warning: files: DIR/work/data/sub/0/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18/19/20/21/22/23/24/25/26/27/28/29/30/31/32/33/34/35/36/37/38/39/low: the file changed while it was read; run it again when it is quiet (path=/DIR/work/data/sub/0/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18/19/20/21/22/23/24/25/26/27/28/29/30/31/32/33/34/35/36/37/38/39/low)
    warning: files: DIR/work/data/sub/0/z: the directory was moved while it was walked; this and what follows in it is missing (path=/DIR/work/data/sub/0/z)
    warning: 2 things were not captured; `snapkit show [HEX]` lists them
    --- exit 3
    === 1. lgetxattr of *: error=5
    --- stderr
    warning: files: DIR/work/data/a.txt: cannot read the extended attributes (path=/DIR/work/data/a.txt): Input/output error (os error 5)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === 1+. lgetxattr of *: error=7
    --- stderr
    warning: files: DIR/work/data/a.txt: extended attributes of more than 1048576 bytes (path=/DIR/work/data/a.txt)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === 1+. lgetxattr of *: error=61
    --- stderr
    warning: files: DIR/work/data/a.txt: cannot read the extended attributes (path=/DIR/work/data/a.txt): No data available (os error 61)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === 1+. statx of /work/data/x.db: error=5
    --- stderr
    warning: files: DIR/work/data/x.db: cannot examine the file: /DIR/work/data/x.db: Input/output error (os error 5)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === 1+. openat of /work/data/x.db: error=5
    --- stderr
    warning: files: DIR/work/data/x.db: cannot open the database: the operating system refused (path=/DIR/work/data/x.db): unable to open database file: /DIR/work/data/x.db: Error code 14: unable to open database file
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    ");
}

fn changed(env: &TestEnv) {
    env.write("work/data/a.txt", "another\n");
    env.write("work/data/sub/b.bin", "another");
    env.write("work/data/sub/own", "mine");
}

#[test]
fn of_a_tree_that_is_put_back_on_a_dying_disk() {
    if meddler().is_none() {
        return;
    }
    let (_env, _names) = filters();
    assert_snapshot!(told(changed, "restore --overwrite first:files", &[
        &[Scene("fsync", "*", "1", "error=5")],
        &[Scene("syncfs", "*", "1+", "error=5")],
        &[Scene("renameat2", "*", "2+", "error=5")],
        &[Scene("openat", "*/data.snapkit-old-*", "1+", "error=5")],
        &[Scene("getdents64", "*/data.snapkit-old-*", "1", "error=5")],
        &[Scene("pread64", "*(deleted)", "1", "error=5")],
        &[Scene("pread64", "/work/data/a.txt", "1", "error=5")],
        &[Scene("pread64", "/work/data/a.txt", "1", "run=truncate -s 0 data/a.txt")],
        &[Scene("openat", "/work/data/a.txt", "1", "error=5")],
        &[Scene("openat", "*.sh", "1", "error=5")],
    ]), @"
    === 1. fsync of *: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    error: cannot write down how to bring the old state back (source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1+. syncfs of *: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    error: cannot make durable what was restored (path=/DIR/work, artifact=tree, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 2+. renameat2 of *: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    warning: taking the restore back failed (Input/output error (os error 5)); '/DIR/work/.snapkit-restore-[HEX]/data' is now at '/DIR/home/.local/state/snapkit/recovery/before-[HEX]/files/data.snapkit-old-[HEX]'
    error: cannot move into its place (path=/DIR/work/data, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1+. openat of */data.snapkit-old-*: error=5
    --- stdout
    files (files): match, 6 facts hold, 10 B to /DIR/work/data
      note: what the old state of /DIR/work/data has besides could not all be told: cannot open the directory (path=/DIR/home/.local/state/snapkit/recovery/before-[HEX]/files/data.snapkit-old-[HEX]): Input/output error (os error 5)
    to bring back what files held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    === 1. getdents64 of */data.snapkit-old-*: error=5
    --- stdout
    files (files): match, 6 facts hold, 10 B to /DIR/work/data
      note: what the old state of /DIR/work/data has besides could not all be told: cannot list the directory (path=/DIR/work/data): Input/output error (os error 5)
    to bring back what files held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    === 1. pread64 of *(deleted): error=5
    --- stdout
    files (files): unproven, 0 facts hold, 10 B to /DIR/work/data
      unproven: tree.attributes, tree.bytes, tree.entries, tree.files, tree.owners, tree.structure
      problem: not read back: cannot read a scratch file: Input/output error (os error 5)
      note: 1 entry that the snapshot does not have went away with the old state, to '/DIR/home/.local/state/snapkit/recovery/before-[HEX]/files/data.snapkit-old-[HEX]': /DIR/work/data/sub/own
    to bring back what files held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    unproven in [DURATION]
    --- exit 4
    === 1. pread64 of /work/data/a.txt: error=5
    --- stdout
    files (files): differs, 6 facts hold, 10 B to /DIR/work/data
      differs: tree.content DIR/work/data/a.txt was [HEX], is unknown (cannot read (path=/DIR/work/data/a.txt): Input/output error (os error 5))
      note: 1 entry that the snapshot does not have went away with the old state, to '/DIR/home/.local/state/snapkit/recovery/before-[HEX]/files/data.snapkit-old-[HEX]': /DIR/work/data/sub/own
    to bring back what files held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    differs in [DURATION]
    --- exit 4
    === 1. pread64 of /work/data/a.txt: run=truncate -s 0 data/a.txt
    --- stdout
    files (files): differs, 3 facts hold, 10 B to /DIR/work/data
      differs: tree.attributes was [HEX], is [HEX]
      differs: tree.bytes was 10, is 4
      differs: tree.structure was [HEX], is [HEX]
      differs: tree.content DIR/work/data/a.txt was [HEX], is unknown (it is shorter than it was a moment ago)
      note: 1 entry that the snapshot does not have went away with the old state, to '/DIR/home/.local/state/snapkit/recovery/before-[HEX]/files/data.snapkit-old-[HEX]': /DIR/work/data/sub/own
    to bring back what files held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    differs in [DURATION]
    --- exit 4
    === 1. openat of /work/data/a.txt: error=5
    --- stdout
    files (files): differs, 6 facts hold, 10 B to /DIR/work/data
      differs: tree.content DIR/work/data/a.txt was [HEX], is unknown (cannot read it back: Input/output error (os error 5))
      note: 1 entry that the snapshot does not have went away with the old state, to '/DIR/home/.local/state/snapkit/recovery/before-[HEX]/files/data.snapkit-old-[HEX]': /DIR/work/data/sub/own
    to bring back what files held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    differs in [DURATION]
    --- exit 4
    === 1. openat of *.sh: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    error: cannot write down how to bring the old state back (source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    ");
}

/// Many files, all of which change before they are read back.
fn many(env: &TestEnv) {
    for n in 0..1200 {
        env.write(&format!("work/data/many/{n:04}"), n.to_string());
    }
    assert!(env.run(["create", "-q", "data", "--name", "second"]).is_success());
}

/// A file of two names, which is not there any more.
fn linked(env: &TestEnv) {
    fs::hard_link(env.path("work/data/a.txt"), env.path("work/data/z")).unwrap();
    assert!(env.run(["create", "-q", "data", "--name", "second"]).is_success());
}

#[test]
fn of_a_tree_that_is_put_elsewhere() {
    if meddler().is_none() {
        return;
    }
    let (_env, _names) = filters();
    let mut all = told(
        nothing,
        "restore -q --target out first:files",
        &[
            &[Scene("fchmod", "/work/out/*", "1+", "error=1")],
            &[Scene("fchown", "/work/out/*", "1+", "error=1")],
        ],
    );
    let few = told(
        many,
        "restore -q --target out second:files",
        &[&[Scene("syncfs", "*", "1", "run=find out -type f -exec sh -c 'echo x >> $1' x {} ';'")]],
    );
    all += &few
        .lines()
        .filter(|line| !line.contains("tree.content"))
        .fold(String::new(), |all, line| all + line + "\n");
    all += &told(
        linked,
        "restore -q --target out second:files",
        &[
            &[Scene("linkat", "*", "1+", "error=1")],
            &[
                Scene("linkat", "*", "1+", "error=1"),
                Scene("copy_file_range", "*", "1+", "error=5"),
            ],
        ],
    );
    assert_snapshot!(all, @"
    === 1+. fchmod of /work/out/*: error=1
    --- stderr
    error: cannot make a directory to restore in (path=/, target=/DIR/work/out/files, source=files)
      caused by: Operation not permitted (os error 1)
    --- exit 1
    === 1+. fchown of /work/out/*: error=1
    --- stdout
    files (files): match, 6 facts hold, 10 B to /DIR/work/out/files
      problem: DIR/work/data/a.txt: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: DIR/work/data/sub/b.bin: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: DIR/work/data/sub: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: DIR/work/data: cannot set the owner 0:0: Operation not permitted (os error 1)
    --- exit 0
    === 1. syncfs of *: run=find out -type f -exec sh -c 'echo x >> $1' x {} ';'
    --- stdout
    files (files): differs, 3 facts hold, 3.6 KiB to /DIR/work/out/files
      differs: tree.attributes was [HEX], is [HEX]
      differs: tree.bytes was 3700, is 6104
      differs: tree.structure was [HEX], is [HEX]
      note: 1202 files differ; 100 of them are listed
    --- exit 4
    === 1+. linkat of *: error=1
    --- stdout
    files (files): differs, 1 fact holds, 10 B to /DIR/work/out/files
      differs: tree.attributes was [HEX], is [HEX]
      differs: tree.bytes was 10, is 16
      differs: tree.files was 2, is 3
      differs: tree.owners was [HEX], is [HEX]
      differs: tree.structure was [HEX], is [HEX]
      problem: DIR/work/data/z: cannot make a second name, so it is a copy (path=DIR/work/data/a.txt): Operation not permitted (os error 1)
    --- exit 4
    === 1+. linkat of *: error=1
    === 1+. copy_file_range of *: error=5
    --- stderr
    error: cannot copy a file (path=DIR/work/data/z, artifact=tree, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    ");
}

/// A database in the tree, whose log of today stands beside it.
fn with_log(env: &TestEnv) {
    env.database("work/data/x.db", 3);
    assert!(env.run(["create", "-q", "data", "--name", "second"]).is_success());
    env.write("work/data/x.db-wal", "of today");
}

#[test]
fn of_a_part_of_a_tree_on_a_dying_disk() {
    if meddler().is_none() {
        return;
    }
    let (_env, _names) = filters();
    let mut all = told(
        changed,
        "restore -q --overwrite first:files --include **/sub",
        &[
            &[Scene("newfstatat", "/work/data/sub", "1", "error=5")],
            &[Scene("mkdirat", "*/old-*", "1", "error=5")],
            &[Scene("mkdirat", "*-0/tree", "1", "error=5")],
            &[Scene("openat", "*/undo.sh", "1", "error=5")],
            &[Scene("write", "*/undo.sh", "1", "error=28")],
            &[Scene("write", "*/undo.sh", "4", "error=28")],
            &[Scene("renameat", "*", "1", "error=5")],
            &[Scene("mkdirat", "*", "1", "error=5")],
            &[Scene("mkdirat", "*", "2", "error=5")],
        ],
    );
    let gone = |env: &TestEnv| fs::remove_file(env.path("work/data/sub/b.bin")).unwrap();
    all += &told(
        gone,
        "restore first:files --include **/b.bin",
        &[
            &[Scene("unlinkat", "*/undo.sh", "1", "error=5")],
            &[Scene("newfstatat", "*/data/sub/b.bin", "1", "error=5")],
            &[Scene("newfstatat", "*/data/sub/b.bin", "2", "error=5")],
        ],
    );
    all += &told(
        with_log,
        "restore -q second:files --overwrite --include **/x.db",
        &[&[Scene("renameat2", "*x.db-wal > *", "1+", "error=5")]],
    );
    all += &told(with_log, "restore -q second:files --include **/x.db", &[&[]]);
    let modes = |env: &TestEnv| {
        env.permit("work/data/sub", 0o700);
        fs::remove_file(env.path("work/data/sub/b.bin")).unwrap();
    };
    all += &told(modes, "restore first:files --include **/b.bin --include **/sub", &[&[]]);
    assert_snapshot!(all, @"
    === 1. newfstatat of /work/data/sub: error=5
    --- stderr
    error: cannot put into its place (path=/DIR/work/data/sub, undo=sh '/DIR/home/.local/state/snapkit/recovery/before-[HEX]/files/data.snapkit-old-[HEX]-0/undo.sh', source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. mkdirat of */old-*: error=5
    --- stderr
    error: cannot make a directory for the old state (path=/DIR/work, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. mkdirat of *-0/tree: error=5
    --- stderr
    error: cannot make a directory for the old state (path=/DIR/work/data/sub, undo=sh '/DIR/home/.local/state/snapkit/recovery/before-[HEX]/files/data.snapkit-old-[HEX]-0/undo.sh', source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. openat of */undo.sh: error=5
    --- stderr
    error: cannot make the script that undoes (source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. write of */undo.sh: error=28
    --- stderr
    error: cannot write the script that undoes (source=files)
      caused by: No space left on device (os error 28)
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    === 4. write of */undo.sh: error=28
    --- stderr
    error: cannot write the script that undoes (source=files)
      caused by: No space left on device (os error 28)
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    === 1. renameat of *: error=5
    --- stderr
    error: cannot put into its place (path=/DIR/work/data/sub/b.bin, undo=sh '/DIR/home/.local/state/snapkit/recovery/before-[HEX]/files/data.snapkit-old-[HEX]-0/undo.sh', source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. mkdirat of *: error=5
    --- stderr
    error: cannot make a directory to restore in (path=/DIR/work, target=/): Input/output error (os error 5) (artifact=tree, source=files)
    --- exit 1
    === 2. mkdirat of *: error=5
    --- stderr
    error: cannot make the directory (path=DIR/work/data, artifact=tree, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. unlinkat of */undo.sh: error=5
    --- stdout
    files (files): unproven, 4 B to /DIR/work/data
      unproven: a part of a snapshot has no facts of its own; every file was read back and is as stored
      note: an empty directory was left: '/DIR/work/.data.snapkit-old-[HEX]-0' (Input/output error (os error 5))
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    unproven in [DURATION]
    --- exit 0
    === 1. newfstatat of */data/sub/b.bin: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    error: cannot examine what is at (path=DIR/work/data/sub/b.bin, artifact=tree, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 2. newfstatat of */data/sub/b.bin: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    error: cannot put into its place (path=/DIR/work/data/sub/b.bin, undo=sh '/DIR/work/.data.snapkit-old-[HEX]-0/undo.sh', source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1+. renameat2 of *x.db-wal > *: error=5
    --- stderr
    error: cannot move aside what lies beside (path=/DIR/work/data/x.db, undo=sh '/DIR/home/.local/state/snapkit/recovery/before-[HEX]/files/data.snapkit-old-[HEX]-0/undo.sh', source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    --- stderr
    error: there is something where the restore goes (path=/DIR/work/data/x.db, artifact=tree, source=files)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    --- stdout
    files (files): unproven, 4 B to /DIR/work/data
      unproven: a part of a snapshot has no facts of its own; every file was read back and is as stored
      note: directories that were there keep their attributes: 1; with overwriting they get those of the snapshot
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    unproven in [DURATION]
    --- exit 0
    ");
}

/// A database with a log, and more than fits into a page.
fn logged(env: &TestEnv) {
    let place = env.path("work/shop.db");
    fs::remove_file(&place).unwrap();
    let db = rusqlite::Connection::open(place).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = WAL; CREATE TABLE t (x INTEGER, y BLOB); CREATE TABLE u (x)",
    )
    .unwrap();
    for n in 0..40 {
        db.execute("INSERT INTO t VALUES (?1, randomblob(3000))", [n]).unwrap();
    }
}

/// A database with a log, and other pages than the one that was captured.
fn paged(env: &TestEnv) {
    let place = env.path("work/shop.db");
    fs::remove_file(&place).unwrap();
    let db = rusqlite::Connection::open(place).unwrap();
    db.execute_batch("PRAGMA page_size = 8192; PRAGMA journal_mode = WAL; CREATE TABLE t (x)")
        .unwrap();
}

#[test]
fn of_a_database_that_is_captured() {
    if meddler().is_none() {
        return;
    }
    let (_env, _names) = filters();
    let mut all = told(
        nothing,
        "create -q shop.db",
        &[
            &[Scene("pread64", "*/shop.db", "3", "error=5")],
            &[Scene("pread64", "*/shop.db", "4", "error=5")],
            &[Scene("pread64", "*/shop.db", "5", "error=5")],
            &[Scene("statx", "*/shop.db", "1", "error=5")],
            &[Scene("statx", "*/shop.db", "3", "error=5")],
            &[Scene("openat", "*/shop.db", "1", "run=rm shop.db; mkdir shop.db")],
            &[Scene("openat", "/tmp/*/copy.db", "1", "error=28")],
            &[Scene("pwrite64", "/tmp/*", "1", "error=28")],
            &[Scene("pread64", "/tmp/*", "1", "error=5")],
            &[Scene("pread64", "/tmp/*", "5", "error=5")],
            &[Scene("pread64", "/tmp/*", "7", "error=5")],
        ],
    );
    all += &told(
        logged,
        "create -q shop.db",
        &[
            &[Scene("pread64", "/work/shop.db", "20", "error=5")],
            &[Scene("pread64", "/work/shop.db", "20", "value=100")],
        ],
    );
    assert_snapshot!(all, @"
    === 3. pread64 of */shop.db: error=5
    --- stderr
    error: cannot open the database (path=/DIR/work/shop.db, source=shop)
      caused by: disk I/O error
      caused by: Error code 8458: disk I/O error
    --- exit 1
    === 4. pread64 of */shop.db: error=5
    --- stderr
    error: cannot read the database (path=/DIR/work/shop.db, source=shop)
      caused by: disk I/O error
      caused by: Error code 8458: disk I/O error
    --- exit 1
    === 5. pread64 of */shop.db: error=5
    --- stderr
    error: cannot read the database: the database is damaged (path=/DIR/work/shop.db, source=shop)
      caused by: database disk image is malformed
      caused by: Error code 11: database disk image is malformed
    hint: `PRAGMA integrity_check` in sqlite3 tells more; restore the database from a snapshot, or save what can be read with `.recover`
    --- exit 4
    === 1. statx of */shop.db: error=5
    --- stderr
    error: cannot examine a path (path=shop.db)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 3. statx of */shop.db: error=5
    --- stderr
    error: cannot examine the database (path=/DIR/work/shop.db, source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. openat of */shop.db: run=rm shop.db; mkdir shop.db
    --- stderr
    error: cannot open the database: it is a directory (path=/DIR/work/shop.db, source=shop)
      caused by: unable to open database file: /DIR/work/shop.db
      caused by: Error code 14: unable to open database file
    --- exit 2
    === 1. openat of /tmp/*/copy.db: error=28
    --- stderr
    error: cannot make a file: /DIR/tmp/snapkit-[HEX]/copy.db (source=shop)
      caused by: No space left on device (os error 28)
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    === 1. pwrite64 of /tmp/*: error=28
    --- stderr
    error: cannot copy the database: no space is left (path=/DIR/tmp/snapkit-[HEX]/copy.db, source=shop)
      caused by: database or disk is full
      caused by: Error code 13: database or disk is full
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    === 1. pread64 of /tmp/*: error=5
    --- stderr
    error: cannot open the database (path=/DIR/tmp/snapkit-[HEX]/copy.db, source=shop)
      caused by: disk I/O error
      caused by: Error code 8458: disk I/O error
    --- exit 1
    === 5. pread64 of /tmp/*: error=5
    --- stderr
    error: cannot read the database (path=/DIR/work/shop.db, source=shop)
      caused by: disk I/O error
      caused by: Error code 8458: disk I/O error
    --- exit 1
    === 7. pread64 of /tmp/*: error=5
    --- stderr
    error: cannot read the scratch copy (artifact=shop.db, source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 20. pread64 of /work/shop.db: error=5
    --- stderr
    error: cannot read the database: the database is damaged (path=/DIR/work/shop.db, artifact=shop.db, source=shop)
      caused by: database disk image is malformed
      caused by: Error code 11: database disk image is malformed
    hint: `PRAGMA integrity_check` in sqlite3 tells more; restore the database from a snapshot, or save what can be read with `.recover`
    --- exit 4
    === 20. pread64 of /work/shop.db: value=100
    --- stderr
    warning: shop: shop.db: cannot count rows: the database is damaged (path=/DIR/work/shop.db): database disk image is malformed: Error code 11: database disk image is malformed
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    ");
}

#[test]
fn of_a_database_that_is_put_back() {
    if meddler().is_none() {
        return;
    }
    let (_env, _names) = filters();
    let other = |env: &TestEnv| env.write("work/shop.db", "other");
    let mut all = told(
        other,
        "restore --overwrite first:shop",
        &[
            &[],
            &[Scene("statx", "*/shop.db", "2", "error=5")],
            &[Scene("rename", "/work/shop.db", "1", "error=5")],
            &[
                Scene("rename", "/work/shop.db", "1", "error=18"),
                Scene("mkdir", "*snapkit-old*", "1", "error=5"),
            ],
            &[Scene("renameat2", "*", "1", "error=5")],
            &[Scene("renameat2", "*", "1", "run=echo x > shop.db")],
            &[Scene("fsync", "*", "1", "error=5")],
        ],
    );
    let fewer = |env: &TestEnv| {
        let db = rusqlite::Connection::open(env.path("work/shop.db")).unwrap();
        db.execute_batch("DELETE FROM t WHERE x > 4").unwrap();
    };
    all += &told(
        fewer,
        "restore --overwrite first:shop",
        &[
            &[],
            &[Scene("pwrite64", "/work/shop.db", "1", "error=5")],
            &[Scene("fsync", "/work/shop.db", "1", "error=5")],
            &[Scene("pread64", "/work/shop.db", "5", "error=5")],
        ],
    );
    let gone = |env: &TestEnv| fs::remove_file(env.path("work/shop.db")).unwrap();
    all += &told(
        gone,
        "restore first:shop",
        &[
            &[Scene("renameat2", "*", "1", "run=echo x > shop.db")],
            &[Scene("renameat2", "*", "1", "error=5")],
        ],
    );
    all += &told(logged, "restore --overwrite first:shop", &[&[]]);
    // After the lock is gone, because pages of another size cannot be written under a log.
    all += &told(
        paged,
        "restore --overwrite first:shop",
        &[
            &[Scene("openat", "/work/shop.db", "2", "run=sqlite3 shop.db 'create table w (x)'")],
            &[Scene("openat", "/work/shop.db", "4", "run=sqlite3 shop.db 'create table w (x)'")],
            &[Scene(
                "openat",
                "/work/shop.db-*",
                "3",
                "run=sqlite3 shop.db 'create table w (x)' 2>/dev/null || true",
            )],
            &[Scene("openat", "/work/shop.db", "4", "error=5")],
            &[Scene("pwrite64", "/work/shop.db", "2", "error=5")],
        ],
    );
    // Between the commit and the look at what is there, and after that.
    let w = "run=sqlite3 shop.db 'create table w (x)'";
    all += &told(
        logged,
        "restore --overwrite first:shop",
        &[
            &[Scene("fcntl", "/work/shop.db-shm", "33", w)],
            &[Scene("fcntl", "/work/shop.db-shm", "36", w)],
        ],
    );
    let away = |env: &TestEnv| {
        env.database("work/deep/er/x.db", 3);
        assert!(env.run(["create", "-q", "deep/er/x.db", "--name", "second"]).is_success());
        fs::remove_dir_all(env.path("work/deep")).unwrap();
    };
    all += &told(away, "restore second", &[&[], &[Scene("mkdir", "/work/deep", "1", "error=13")]]);
    assert_snapshot!(all, @"
    --- stdout
    shop (sqlite): match, 8 facts hold, 8.0 KiB to /DIR/work/shop.db
      note: what was there cannot be read: not a SQLite database, or an encrypted one (path=/DIR/work/shop.db)
      note: /DIR/work/shop.db was moved to /DIR/home/.local/state/snapkit/recovery/before-[HEX]/shop/shop.db
    to bring back what shop held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    === 2. statx of */shop.db: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    error: cannot examine the target (path=/DIR/work/shop.db, source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. rename of /work/shop.db: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    error: cannot move the old files away: /DIR/work/shop.db (source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. rename of /work/shop.db: error=18
    === 1. mkdir of *snapkit-old*: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    error: cannot make a directory for the old state: /DIR/work/.shop.db.snapkit-old-[HEX] (source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. renameat2 of *: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    error: cannot put the database into place (path=/DIR/work/shop.db, source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. renameat2 of *: run=echo x > shop.db
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    error: a database has appeared while it was being restored (path=/DIR/work/shop.db, source=shop)
      caused by: File exists (os error 17)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    === 1. fsync of *: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    error: cannot write the database beside its place (artifact=shop.db, source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    --- stdout
    shop (sqlite): match, 8 facts hold, 8.0 KiB to /DIR/work/shop.db
      note: the old content was copied to /DIR/home/.local/state/snapkit/recovery/before-[HEX]/shop/shop.db
    to bring back what shop held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    === 1. pwrite64 of /work/shop.db: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    error: cannot copy the database (path=/DIR/work/shop.db, source=shop)
      caused by: disk I/O error
      caused by: Error code 778: disk I/O error
    --- exit 1
    === 1. fsync of /work/shop.db: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    error: cannot copy the database (path=/DIR/work/shop.db, source=shop)
      caused by: disk I/O error
      caused by: Error code 1034: disk I/O error
    --- exit 1
    === 5. pread64 of /work/shop.db: error=5
    --- stdout
    shop (sqlite): match, 8 facts hold, 8.0 KiB to /DIR/work/shop.db
      note: what was there cannot be read: cannot read the database: the database is damaged (path=/DIR/work/shop.db): database disk image is malformed: Error code 11: database disk image is malformed
      note: /DIR/work/shop.db was moved to /DIR/home/.local/state/snapkit/recovery/before-[HEX]/shop/shop.db
    to bring back what shop held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    === 1. renameat2 of *: run=echo x > shop.db
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    error: a database has appeared while it was being restored (path=/DIR/work/shop.db, source=shop)
      caused by: File exists (os error 17)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    === 1. renameat2 of *: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    error: cannot put the database into place (path=/DIR/work/shop.db, source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    --- stdout
    shop (sqlite): match, 8 facts hold, 8.0 KiB to /DIR/work/shop.db
      note: the old content was copied to /DIR/home/.local/state/snapkit/recovery/before-[HEX]/shop/shop.db
    to bring back what shop held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    === 2. openat of /work/shop.db: run=sqlite3 shop.db 'create table w (x)'
    --- stdout
    shop (sqlite): match, 8 facts hold, 8.0 KiB to /DIR/work/shop.db
      note: the old content was copied to /DIR/home/.local/state/snapkit/recovery/before-[HEX]/shop/shop.db
    to bring back what shop held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    === 4. openat of /work/shop.db: run=sqlite3 shop.db 'create table w (x)'
    --- stdout
    shop (sqlite): match, 8 facts hold, 8.0 KiB to /DIR/work/shop.db
      note: the old content was copied to /DIR/home/.local/state/snapkit/recovery/before-[HEX]/shop/shop.db
    to bring back what shop held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    === 3. openat of /work/shop.db-*: run=sqlite3 shop.db 'create table w (x)' 2>/dev/null || true
    --- stdout
    shop (sqlite): match, 8 facts hold, 8.0 KiB to /DIR/work/shop.db
      note: the old content was copied to /DIR/home/.local/state/snapkit/recovery/before-[HEX]/shop/shop.db
    to bring back what shop held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    === 4. openat of /work/shop.db: error=5
    --- stdout
    shop (sqlite): match, 8 facts hold, 8.0 KiB to /DIR/work/shop.db
      problem: the journal mode may not be wal as it was: cannot read the database: the operating system refused (path=/DIR/work/shop.db): attempt to write a readonly database: Error code 8: attempt to write a readonly database
      note: the old content was copied to /DIR/home/.local/state/snapkit/recovery/before-[HEX]/shop/shop.db
    to bring back what shop held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    === 2. pwrite64 of /work/shop.db: error=5
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    error: cannot copy the database (path=/DIR/work/shop.db, source=shop)
      caused by: disk I/O error
      caused by: Error code 778: disk I/O error
    --- exit 1
    === 33. fcntl of /work/shop.db-shm: run=sqlite3 shop.db 'create table w (x)'
    --- stdout
    shop (sqlite): unproven, 0 facts hold, 8.0 KiB to /DIR/work/shop.db
      unproven: application_id, page_count, page_size, pages, rows.t, schema, tables, user_version
      note: the old content was copied to /DIR/home/.local/state/snapkit/recovery/before-[HEX]/shop/shop.db
      note: the database was written to before it could be read back: what was put was checked before, and is not proven after
    to bring back what shop held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    unproven in [DURATION]
    --- exit 4
    === 36. fcntl of /work/shop.db-shm: run=sqlite3 shop.db 'create table w (x)'
    --- stdout
    shop (sqlite): match, 8 facts hold, 8.0 KiB to /DIR/work/shop.db
      note: the old content was copied to /DIR/home/.local/state/snapkit/recovery/before-[HEX]/shop/shop.db
      note: the database was written to since; what was read back is what was there before that
    to bring back what shop held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    what is replaced is kept in /DIR/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    --- stdout
    x (sqlite): match, 8 facts hold, 8.0 KiB to /DIR/work/deep/er/x.db
      note: the directory /DIR/work/deep/er and 1 above it were made, for their owner only
    --- stderr
    snapshot [SNAPSHOT] of x.db-[HEX]@box, [TIME]
    match in [DURATION]
    --- exit 0
    === 1. mkdir of /work/deep: error=13
    --- stderr
    snapshot [SNAPSHOT] of x.db-[HEX]@box, [TIME]
    error: cannot make the directory of the target (path=/DIR/work/deep, source=x)
      caused by: Permission denied (os error 13)
    --- exit 1
    ");
}

#[test]
fn of_a_database_that_is_checked() {
    if meddler().is_none() {
        return;
    }
    let (_env, _names) = filters();
    assert_snapshot!(told(nothing, "verify --read-data", &[
        &[Scene("openat", "/tmp/*", "1", "error=28")],
        &[Scene("write", "/tmp/*", "1", "error=28")],
        &[Scene("write", "/tmp/*", "1", "error=5")],
    ]), @"
    === 1. openat of /tmp/*: error=28
    --- stderr
    note: [SNAPSHOT]:shop/shop.db was not checked by its source: cannot make a file: /DIR/tmp/snapkit-[HEX]/copy.db: No space left on device (os error 28)
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    no damage: every byte of all snapshots and packs was read and checked
    --- exit 0
    === 1. write of /tmp/*: error=28
    --- stderr
    note: [SNAPSHOT]:shop/shop.db was not checked by its source: could not be checked: a copy of it cannot be written to /DIR/tmp: No space left on device (os error 28)
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    no damage: every byte of all snapshots and packs was read and checked
    --- exit 0
    === 1. write of /tmp/*: error=5
    --- stderr
    error: could not be checked: there is no copy of it in /DIR/tmp
      caused by: could not be checked: a copy of it cannot be written to /DIR/tmp
      caused by: Input/output error (os error 5)
    --- exit 75
    ");
}

#[test]
fn of_what_is_kept_here() {
    if meddler().is_none() {
        return;
    }
    let (_env, _names) = filters();
    let mut all = told(
        nothing,
        "create -q data",
        &[
            &[Scene("mkdir", "*/running", "1", "error=5")],
            &[Scene("flock", "*/running/*", "1", "error=5")],
            &[Scene("openat", "/home/.cache/*", "1", "error=5")],
        ],
    );
    let forgotten = |env: &TestEnv| fs::remove_dir_all(env.path("home/.local")).unwrap();
    all += &told(
        forgotten,
        "create -q data",
        &[
            &[Scene("openat", "/repo/snapshots/*", "1", "error=5")],
            &[Scene("openat", "/repo/packs/*", "3+", "error=5")],
        ],
    );
    let damaged = |env: &TestEnv| {
        let pack = &env.files("repo/packs", "")[0];
        let mut bytes = fs::read(pack).unwrap();
        bytes[0] ^= 1;
        fs::write(pack, bytes).unwrap();
    };
    let gone = told(
        damaged,
        "verify --read-data",
        &[
            &[Scene("mkdir", "/home/.cache/snapkit/*/index", "1", "error=5")],
            &[Scene("mkdir", "/home/.cache/snapkit/*/index/*", "1", "error=5")],
            &[Scene("openat", "/home/.local/state/snapkit/*/*", "1+", "error=5")],
        ],
    );
    // Of two packs either may be the first, and what is in it differs.
    let of_both = |line: &&str| !line.starts_with("  lost: ");
    all += &gone.lines().filter(of_both).fold(String::new(), |all, line| all + line + "\n");
    all += &told(
        nothing,
        "show first",
        &[
            &[Scene("openat", "/repo/snapshots/*", "2", "error=5")],
            &[Scene("openat", "/repo/snapshots/*", "2", "error=2")],
        ],
    );
    all += &told(nothing, "create -q data shop.db", &[&[Scene("read", "*.basis", "1", "error=5")]]);
    all += &told(
        forgotten,
        "create -q data shop.db",
        &[
            &[Scene("openat", "/repo/packs/??/[0-9a-f]*", "1+", "error=5")],
            &[Scene("pread64", "/repo/packs/??/[0-9a-f]*", "1+", "error=5")],
        ],
    );
    assert_snapshot!(all, @r#"
    === 1. mkdir of */running: error=5
    --- stderr
    warning: another run of this stack is not noticed: cannot create /DIR/home/.local/state/snapkit/running: Input/output error (os error 5)
    --- exit 0
    === 1. flock of */running/*: error=5
    --- stderr
    warning: another run of this stack is not noticed: cannot lock /DIR/home/.local/state/snapkit/running/[HEX]: Input/output error (os error 5)
    --- exit 0
    === 1. openat of /home/.cache/*: error=5
    --- stderr
    warning: /DIR/home/.cache/snapkit cannot be written to, so the index is fetched again each time: cannot write a file in /DIR/home/.cache/snapkit: Input/output error (os error 5) at path "/DIR/home/.cache/snapkit/[RANDOM]"
    --- exit 0
    === 1. openat of /repo/snapshots/*: error=5
    --- stderr
    warning: snapshot [SNAPSHOT] cannot be read: cannot open the object (path=/DIR/repo/snapshots/[SNAPSHOT]): Input/output error (os error 5)
    --- exit 0
    === 3+. openat of /repo/packs/*: error=5
    --- stderr
    error: cannot list the directory (path=/DIR/repo/packs/[XX])
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. mkdir of /home/.cache/snapkit/*/index: error=5
    --- stderr
    error: cannot create the directory /DIR/home/.cache/snapkit/[HEX]/index
      caused by: Input/output error (os error 5)
    --- exit 1
    === 1. mkdir of /home/.cache/snapkit/*/index/*: error=5
    --- stderr
    error: cannot make a directory in /DIR/home/.cache/snapkit/[HEX]/index
      caused by: Input/output error (os error 5) at path "/DIR/home/.cache/snapkit/[HEX]/index/[RANDOM]"
    --- exit 1
    === 1+. openat of /home/.local/state/snapkit/*/*: error=5
    --- stdout
    damaged: packs/[XX]/[HEX]: a pack's content does not fit its name
    --- stderr
    warning: /DIR/home/.local/state/snapkit/[HEX] cannot be written to, so what is unchanged is not remembered, and all of it read each time: cannot write a file in /DIR/home/.local/state/snapkit/[HEX]: Input/output error (os error 5) at path "/DIR/home/.local/state/snapkit/[HEX]/[RANDOM]"
    warning: which repository this is is not remembered: cannot read /DIR/home/.local/state/snapkit/locations/[HEX]: Input/output error (os error 5)
    note: the next create is not told of this: cannot write /DIR/home/.local/state/snapkit/[HEX]/damaged-[HEX]: Input/output error (os error 5) at path "/DIR/home/.local/state/snapkit/[HEX]/[RANDOM]"
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    === 2. openat of /repo/snapshots/*: error=5
    --- stderr
    error: cannot open the object (path=/DIR/repo/snapshots/[SNAPSHOT])
      caused by: Input/output error (os error 5)
    --- exit 1
    === 2. openat of /repo/snapshots/*: error=2
    --- stderr
    error: there is no snapshot [SNAPSHOT]
    hint: `snapkit list` shows the snapshots there are
    --- exit 1
    === 1. read of *.basis: error=5
    --- exit 0
    === 1+. openat of /repo/packs/??/[0-9a-f]*: error=5
    --- stderr
    warning: what was captured of files before could not be read, so all of it is: cannot open the object (path=/DIR/repo/packs/[XX]/[HEX], object=packs/[XX]/[HEX]): Input/output error (os error 5)
    --- exit 0
    === 1+. pread64 of /repo/packs/??/[0-9a-f]*: error=5
    --- stderr
    warning: what was captured of files before could not be read, so all of it is: cannot read the object (path=/DIR/repo/packs/[XX]/[HEX], object=packs/[XX]/[HEX]): Input/output error (os error 5)
    --- exit 0
    "#);
}

/// A files source whose only path is a database.
#[test]
fn of_what_lies_beside_a_database() {
    if meddler().is_none() {
        return;
    }
    let (_env, _names) = filters();
    let beside = |env: &TestEnv| {
        env.write(
            "work/snapkit.toml",
            "name = \"beside\"\n[sources.all]\nkind = \"files\"\npaths = [\"shop.db\"]\n",
        );
        let made = env.run(["create", "-q", "--name", "second"]);
        assert!(made.is_success(), "{made}");
        env.write("work/shop.db-wal", "of today");
    };
    assert_snapshot!(told(beside, "restore -q --overwrite second", &[
        &[Scene("renameat2", "*/shop.db-wal > *", "1+", "error=5")],
    ]), @"
    === 1+. renameat2 of */shop.db-wal > *: error=5
    --- stderr
    error: cannot move aside what lies beside the database (path=/DIR/work/shop.db, source=all)
      caused by: Input/output error (os error 5)
    --- exit 1
    ");
}

/// Credentials that cannot be tried in the time that there is.
#[test]
fn of_credentials_on_a_slow_disk() {
    if meddler().is_none() {
        return;
    }
    let (_env, _names) = filters();
    let two = |env: &TestEnv| {
        let key = &env.files("repo/keys", "")[0];
        let name = key.file_name().unwrap().to_str().unwrap();
        let other = format!("{}{}", if name.starts_with('0') { '1' } else { '0' }, &name[1..]);
        fs::copy(key, key.with_file_name(other)).unwrap();
        let made = env.run(["init", "--repo", "elsewhere", "--key-file", "third.key"]);
        assert!(made.is_success(), "{made}");
        fs::remove_dir_all(env.path("home/.config")).unwrap();
    };
    assert_snapshot!(told(two, "list --key-file third.key", &[
        &[Scene("openat", "/repo/keys/*", "1", "run=sleep 21")],
    ]), @"
    === 1. openat of /repo/keys/*: run=sleep 21
    --- stderr
    error: to try 1 of the credentials took too long; a key file is quicker
    --- exit 1
    ");
}
