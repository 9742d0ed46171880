//! What is said when a call to the system fails that never does: each row lets one kind of call about one place fail, as
//! a dying disk would, or a file system that is full.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use insta::assert_snapshot;

use crate::support::{CommandOutput, TestEnv};

/// A call, the place whose calls fail, and how. Several calls and errors are joined by `+`.
struct Fault(&'static str, &'static str, &'static str);

/// Whether calls can be made to fail here.
fn can_fail() -> bool {
    let can = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    let can = can.is_ok_and(|status| status.success());
    assert!(can || std::env::var_os("CI").is_none(), "strace must not be missing in CI");
    can
}

/// A repository, and a tree and a database that are in it.
fn sample() -> TestEnv {
    let mut env = TestEnv::with_repository();
    env.write("tmp/x", "");
    let scratch = env.path("tmp");
    env.set("TMPDIR", scratch.to_str().unwrap());
    env.sample();
    fs::hard_link(env.path("work/data/a.txt"), env.path("work/data/second")).unwrap();
    env.write("work/data/holes", "");
    fs::File::options()
        .write(true)
        .open(env.path("work/data/holes"))
        .and_then(|file| file.set_len(1 << 20))
        .unwrap();
    let fifo = env.path("work/data/fifo");
    assert!(Command::new("mkfifo").arg(fifo).status().unwrap().success());
    symlink("a.txt", env.path("work/data/sub/link")).unwrap();
    env.write("work/data/.snapkitignore", "*.tmp\n");
    env.database("work/shop.db", 10);
    let made = env.run(["create", "-q", "data", "shop.db", "--name", "first"]);
    assert!(made.is_success(), "{made}");
    env
}

/// A place below the test's directory, in which `*` stands for the only name that there is, and `ID` for the first
/// letters of the snapshot's identity.
fn find(env: &TestEnv, place: &str) -> PathBuf {
    let only = |path| fs::read_dir(path).unwrap().next().unwrap().unwrap().path();
    let snapshot = only(env.path("repo/snapshots"));
    let id = snapshot.to_str().unwrap().rsplit('-').next().unwrap();
    place.split('/').fold(env.path(""), |path, name| match name {
        "*" => only(path),
        name => path.join(name.replace("ID", &id[..8])),
    })
}

fn run(env: &TestEnv, Fault(call, place, error): &Fault, args: &str) -> CommandOutput {
    let injected: Vec<_> = call
        .split('+')
        .zip(error.split('+'))
        .map(|(call, error)| format!("inject={call}:error={error}"))
        .collect();
    let mut trace = vec!["-f", "-qq", "-o", "/dev/null"];
    trace.extend(injected.iter().flat_map(|inject| ["-e", inject]));
    let found = place
        .strip_prefix('/')
        .filter(|place| !place.starts_with("proc"))
        .map(|place| find(env, place));
    match (&found, *place) {
        (Some(found), _) => trace.extend(["-P", found.to_str().unwrap()]),
        (None, "anything") => {}
        (None, name) => trace.extend(["-P", name]),
    }
    let all = trace.into_iter().chain([env!("CARGO_BIN_EXE_snapkit")]).chain(args.split(' '));
    env.through("strace", all).output().unwrap().into()
}

/// What is said of each, in surroundings of its own.
fn told(args: &str, faults: &[Fault]) -> String {
    told_with(|_| (), args, faults)
}

/// With more than the sample.
fn told_with(more: impl Fn(&TestEnv), args: &str, faults: &[Fault]) -> String {
    let mut all = String::new();
    for fault in faults {
        let env = sample();
        more(&env);
        let output = run(&env, fault, args).to_string();
        let dir = env.path("");
        let dir = dir.to_str().unwrap().trim_matches('/');
        let lines = output.lines().filter(|line| !line.starts_with("strace: "));
        let Fault(call, place, error) = fault;
        writeln!(all, "=== {call} of {place}: {error}").unwrap();
        for line in lines {
            writeln!(all, "{}", line.replace(dir, "DIR")).unwrap();
        }
    }
    all
}

#[test]
fn of_a_tree_that_is_captured() {
    if !can_fail() {
        return;
    }
    let _filters = TestEnv::new();
    assert_snapshot!(told("create -q data", &[
        Fault("newfstatat", "a.txt", "EIO"),
        Fault("pread64", "/work/data/a.txt", "EIO"),
        Fault("lseek", "/work/data/holes", "EIO"),
        Fault("readlinkat", "link", "EIO"),
        Fault("openat", "sub", "EIO"),
        Fault("getdents64", "/work/data/sub", "EIO"),
        Fault("flistxattr", "/work/data/sub", "EIO"),
        Fault("openat", "work", "EIO"),
        Fault("llistxattr", "anything", "ENOTDIR"),
        Fault("llistxattr", "anything", "ENOENT"),
        Fault("openat", ".snapkitignore", "EIO"),
        Fault("read", "/work/data/.snapkitignore", "EIO"),
    ]), @"
    === newfstatat of a.txt: EIO
    --- stderr
    warning: files: DIR/work/data/a.txt: cannot examine (path=/DIR/work/data/a.txt): Input/output error (os error 5)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === pread64 of /work/data/a.txt: EIO
    --- stderr
    warning: files: DIR/work/data/a.txt: cannot read (path=/DIR/work/data/a.txt): Input/output error (os error 5)
    warning: files: DIR/work/data/second: the file that this is another name of could not be read (file=DIR/work/data/a.txt)
    warning: 2 things were not captured; `snapkit show [HEX]` lists them
    --- exit 3
    === lseek of /work/data/holes: EIO
    --- stderr
    warning: files: DIR/work/data/holes: cannot find the holes (path=/DIR/work/data/holes): Input/output error (os error 5)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === readlinkat of link: EIO
    --- stderr
    warning: files: DIR/work/data/link: cannot read the symbolic link (path=/DIR/work/data/link): Input/output error (os error 5)
    warning: files: DIR/work/data/sub/link: cannot read the symbolic link (path=/DIR/work/data/sub/link): Input/output error (os error 5)
    warning: 2 things were not captured; `snapkit show [HEX]` lists them
    --- exit 3
    === openat of sub: EIO
    --- stderr
    warning: files: DIR/work/data/sub: cannot open the directory (path=/DIR/work/data/sub): Input/output error (os error 5)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === getdents64 of /work/data/sub: EIO
    --- stderr
    warning: files: DIR/work/data/sub: cannot list the directory (path=/DIR/work/data/sub): Input/output error (os error 5)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === flistxattr of /work/data/sub: EIO
    --- stderr
    warning: files: DIR/work/data/sub: cannot list the extended attributes (path=/DIR/work/data/sub): Input/output error (os error 5)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === openat of work: EIO
    --- stderr
    error: cannot examine (path=/DIR/work/data, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === llistxattr of anything: ENOTDIR
    --- stderr
    warning: files: DIR/work/data/.snapkitignore: it is there, and the system says that it is not (path=/DIR/work/data/.snapkitignore): cannot list the extended attributes (path=/DIR/work/data/.snapkitignore): Not a directory (os error 20)
    warning: files: DIR/work/data/a.txt: it is there, and the system says that it is not (path=/DIR/work/data/a.txt): cannot list the extended attributes (path=/DIR/work/data/a.txt): Not a directory (os error 20)
    warning: files: DIR/work/data/fifo: it is there, and the system says that it is not (path=/DIR/work/data/fifo): cannot list the extended attributes (path=/DIR/work/data/fifo): Not a directory (os error 20)
    warning: files: DIR/work/data/holes: it is there, and the system says that it is not (path=/DIR/work/data/holes): cannot list the extended attributes (path=/DIR/work/data/holes): Not a directory (os error 20)
    warning: files: DIR/work/data/link: it is there, and the system says that it is not (path=/DIR/work/data/link): cannot list the extended attributes (path=/DIR/work/data/link): Not a directory (os error 20)
    warning: files: DIR/work/data/second: it is there, and the system says that it is not (path=/DIR/work/data/second): cannot list the extended attributes (path=/DIR/work/data/second): Not a directory (os error 20)
    warning: files: DIR/work/data/sub/b.bin: it is there, and the system says that it is not (path=/DIR/work/data/sub/b.bin): cannot list the extended attributes (path=/DIR/work/data/sub/b.bin): Not a directory (os error 20)
    warning: files: DIR/work/data/sub/link: it is there, and the system says that it is not (path=/DIR/work/data/sub/link): cannot list the extended attributes (path=/DIR/work/data/sub/link): Not a directory (os error 20)
    warning: 8 things were not captured; `snapkit show [HEX]` lists them
    --- exit 3
    === llistxattr of anything: ENOENT
    --- stderr
    warning: files: DIR/work/data/.snapkitignore: it is there, and the system says that it is not (path=/DIR/work/data/.snapkitignore): the file vanished (path=/DIR/work/data/.snapkitignore)
    warning: files: DIR/work/data/a.txt: it is there, and the system says that it is not (path=/DIR/work/data/a.txt): the file vanished (path=/DIR/work/data/a.txt)
    warning: files: DIR/work/data/fifo: it is there, and the system says that it is not (path=/DIR/work/data/fifo): the file vanished (path=/DIR/work/data/fifo)
    warning: files: DIR/work/data/holes: it is there, and the system says that it is not (path=/DIR/work/data/holes): the file vanished (path=/DIR/work/data/holes)
    warning: files: DIR/work/data/link: it is there, and the system says that it is not (path=/DIR/work/data/link): the file vanished (path=/DIR/work/data/link)
    warning: files: DIR/work/data/second: it is there, and the system says that it is not (path=/DIR/work/data/second): the file vanished (path=/DIR/work/data/second)
    warning: files: DIR/work/data/sub/b.bin: it is there, and the system says that it is not (path=/DIR/work/data/sub/b.bin): the file vanished (path=/DIR/work/data/sub/b.bin)
    warning: files: DIR/work/data/sub/link: it is there, and the system says that it is not (path=/DIR/work/data/sub/link): the file vanished (path=/DIR/work/data/sub/link)
    warning: 8 things were not captured; `snapkit show [HEX]` lists them
    --- exit 3
    === openat of .snapkitignore: EIO
    --- stderr
    warning: files: DIR/work/data/.snapkitignore: cannot read the ignore file (path=/DIR/work/data): Input/output error (os error 5)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    === read of /work/data/.snapkitignore: EIO
    --- stderr
    warning: files: DIR/work/data/.snapkitignore: cannot read the ignore file (path=/DIR/work/data): Input/output error (os error 5)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    ");
}

#[test]
fn of_a_tree_that_is_restored() {
    if !can_fail() {
        return;
    }
    let _filters = TestEnv::new();
    assert_snapshot!(told("restore -q latest:files --target out", &[
        Fault("openat", "a.txt", "EIO"),
        Fault("newfstatat", "a.txt", "EIO"),
        Fault("linkat", "second", "EMLINK"),
        Fault("linkat+openat", "second", "EMLINK+EIO"),
        Fault("linkat", "a.txt", "EIO"),
        Fault("mkdirat", "sub", "ENOSPC"),
        Fault("openat", "sub", "EIO"),
        Fault("mknodat", "fifo", "EIO"),
        Fault("symlinkat", "link", "EIO"),
        Fault("renameat2", "data", "EIO"),
        Fault("utimensat", "link", "EIO"),
        Fault("openat", "/work/out/files", "EIO"),
        Fault("openat", ".", "EIO"),
        Fault("openat", "/tmp", "EIO"),
        Fault("ftruncate", "anything", "EIO"),
        Fault("pwrite64", "anything", "ENOSPC"),
        Fault("fchown", "anything", "EPERM"),
        Fault("fchmod", "anything", "EIO"),
        Fault("fsync", "anything", "EIO"),
        Fault("syncfs", "anything", "EIO"),
    ]), @"
    === openat of a.txt: EIO
    --- stderr
    error: cannot make the file (path=DIR/work/data/a.txt, artifact=tree, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === newfstatat of a.txt: EIO
    --- stderr
    error: cannot find the file that has this other name (path=DIR/work/data/a.txt, artifact=tree, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === linkat of second: EMLINK
    --- stdout
    files (files): differs, 1 fact holds, 16 B to /DIR/work/out/files
      differs: tree.attributes was [HEX], is [HEX]
      differs: tree.bytes was 1048592, is 1048598
      differs: tree.files was 4, is 5
      differs: tree.owners was [HEX], is [HEX]
      differs: tree.structure was [HEX], is [HEX]
      problem: DIR/work/data/second: cannot make a second name, so it is a copy (path=DIR/work/data/a.txt): Too many links (os error 31)
    --- exit 4
    === linkat+openat of second: EMLINK+EIO
    --- stderr
    error: cannot make the file (path=DIR/work/data/second, artifact=tree, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === linkat of a.txt: EIO
    --- stderr
    error: cannot make a second name (path=DIR/work/data/second, artifact=tree, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === mkdirat of sub: ENOSPC
    --- stderr
    error: cannot make the directory (path=DIR/work/data/sub, artifact=tree, source=files)
      caused by: No space left on device (os error 28)
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    === openat of sub: EIO
    --- stderr
    warning: files: the target could not be left as it was: cannot remove (directory=/DIR/work/out/files/.snapkit-restore-[HEX]): Input/output error (os error 5)
    error: cannot open the directory above (path=DIR/work/data/sub/b.bin, artifact=tree, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === mknodat of fifo: EIO
    --- stderr
    error: cannot make the special file (path=DIR/work/data/fifo, artifact=tree, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === symlinkat of link: EIO
    --- stderr
    error: cannot make the symbolic link (path=DIR/work/data/link, artifact=tree, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === renameat2 of data: EIO
    --- stderr
    error: cannot move into its place (path=/DIR/work/out/files/DIR/work/data, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === utimensat of link: EIO
    --- stdout
    files (files): differs, 5 facts hold, 16 B to /DIR/work/out/files
      differs: tree.attributes was [HEX], is [HEX]
      problem: DIR/work/data/link: cannot set the time: Input/output error (os error 5)
      problem: DIR/work/data/sub/link: cannot set the time: Input/output error (os error 5)
    --- exit 4
    === openat of /work/out/files: EIO
    --- stderr
    error: cannot open the target (path=/DIR/work/out/files, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === openat of .: EIO
    --- stderr
    error: cannot list the directory (path=/DIR/work/out/files, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === openat of /tmp: EIO
    --- stderr
    error: cannot make a scratch file (source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === ftruncate of anything: EIO
    --- stderr
    error: cannot set the length (path=DIR/work/data/holes, artifact=tree, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === pwrite64 of anything: ENOSPC
    --- stderr
    error: cannot write to a scratch file (artifact=tree, source=files)
      caused by: No space left on device (os error 28)
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    === fchown of anything: EPERM
    --- stdout
    files (files): match, 6 facts hold, 16 B to /DIR/work/out/files
      problem: DIR/work/data/.snapkitignore: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: DIR/work/data/a.txt: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: DIR/work/data/holes: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: DIR/work/data/sub/b.bin: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: DIR/work/data/sub: cannot set the owner 0:0: Operation not permitted (os error 1)
      problem: DIR/work/data: cannot set the owner 0:0: Operation not permitted (os error 1)
    --- exit 0
    === fchmod of anything: EIO
    --- stderr
    error: cannot make a directory to restore in (path=/, target=/DIR/work/out/files, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === fsync of anything: EIO
    --- exit 0
    === syncfs of anything: EIO
    --- stderr
    error: cannot make durable what was restored (path=/DIR/work/out/files/, artifact=tree, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    ");
    assert_snapshot!(told("restore -q latest:files --overwrite", &[
        Fault("mkdir", "/home/.local/state/snapkit/recovery", "EIO"),
        Fault("openat", "/home/.local/state/snapkit/recovery/before-ID/files", "EIO"),
        Fault("openat", "/proc/self/mountinfo", "EIO"),
        Fault("renameat2", "data", "EIO"),
    ]), @"
    === mkdir of /home/.local/state/snapkit/recovery: EIO
    --- stderr
    error: cannot create the directory /DIR/home/.local/state/snapkit/recovery/before-[HEX]/files
      caused by: Input/output error (os error 5)
    --- exit 1
    === openat of /home/.local/state/snapkit/recovery/before-ID/files: EIO
    --- stderr
    error: cannot open the recovery directory (path=/DIR/home/.local/state/snapkit/recovery/before-[HEX]/files, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === openat of /proc/self/mountinfo: EIO
    --- stderr
    error: cannot read what is mounted (path=/proc/self/mountinfo, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === renameat2 of data: EIO
    --- stderr
    error: cannot move into its place (path=/DIR/work/data, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    ");
}

/// A part goes back among what is there.
#[test]
fn of_a_part_of_a_tree() {
    if !can_fail() {
        return;
    }
    let _filters = TestEnv::new();
    assert_snapshot!(told("restore -q latest:files --include sub --overwrite", &[
        Fault("renameat2", "b.bin", "EIO"),
        Fault("openat", "undo.sh", "EIO"),
        Fault("mkdirat", "anything", "EIO"),
        Fault("unlinkat", "anything", "EIO"),
        Fault("openat", "/home/.local/state/snapkit/recovery/before-ID/files", "EIO"),
    ]), @"
    === renameat2 of b.bin: EIO
    --- stdout
    to bring back what files held before:
        [STEPS]
    --- exit 0
    === openat of undo.sh: EIO
    --- stderr
    error: cannot make the script that undoes (source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    === mkdirat of anything: EIO
    --- stderr
    error: cannot make a directory to restore in (path=/DIR/work, target=/): Input/output error (os error 5) (artifact=tree, source=files)
    --- exit 1
    === unlinkat of anything: EIO
    --- stdout
    files (files): unproven, 4 B to /DIR/work/data
      unproven: a part of a snapshot has no facts of its own
      problem: not tidied up: cannot remove (directory=/DIR/work/.snapkit-restore-[HEX]): Input/output error (os error 5)
    to bring back what files held before:
        [STEPS]
    --- exit 4
    === openat of /home/.local/state/snapkit/recovery/before-ID/files: EIO
    --- stderr
    error: cannot open the recovery directory (path=/DIR/home/.local/state/snapkit/recovery/before-[HEX]/files, source=files)
      caused by: Input/output error (os error 5)
    --- exit 1
    ");
}

/// What is kept for a stack file.
#[test]
fn of_a_stack() {
    if !can_fail() {
        return;
    }
    let _filters = TestEnv::new();
    let stack = |env: &TestEnv| {
        env.write("work/snapkit.toml", "[sources.data]\nkind = \"files\"\npaths = [\"data\"]\n");
    };
    let mut all = String::new();
    for (args, fault) in [
        ("create -q", Fault("chdir", "anything", "EACCES")),
        ("doctor -q", Fault("chdir", "anything", "EACCES")),
        ("create -q", Fault("getcwd", "anything", "ENOENT")),
    ] {
        all += &told_with(stack, args, &[fault]);
    }
    assert_snapshot!(all, @"
    === chdir of anything: EACCES
    --- stderr
    error: cannot enter the stack file's directory /DIR/work
      caused by: Permission denied (os error 13)
    --- exit 1
    === chdir of anything: EACCES
    --- stdout
    warning  work@box (full): there is no snapshot yet
    problem  stack file: cannot enter the stack file's directory: Permission denied (os error 13)
    --- exit 4
    === getcwd of anything: ENOENT
    --- stderr
    error: cannot tell the working directory
      caused by: No such file or directory (os error 2)
    --- exit 1
    ");
    let written = |env: &TestEnv| {
        let mut create = env.command(["create", "-q", "--stdin", "a.sql"]);
        let file = fs::File::open(env.path("work/data/a.txt")).unwrap();
        assert!(create.stdin(file).status().unwrap().success());
    };
    assert_snapshot!(told_with(written, "restore -q latest --stack-name stdin-a.sql --target out", &[
        Fault("openat", "/work/out/a.sql", "ENOSPC"),
    ]), @"
    === openat of /work/out/a.sql: ENOSPC
    --- stderr
    error: cannot put /DIR/work/out/a.sql/a.sql in its place (source=a.sql)
      caused by: No space left on device (os error 28)
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    ");
}

/// Nothing is left of a repository that could not be made.
#[test]
fn of_a_key_file() {
    if !can_fail() {
        return;
    }
    let _filters = TestEnv::new();
    assert_snapshot!(told("init -q --repo other", &[
        Fault("rename", "anything", "EIO"),
        Fault("fsync", "/home/.config/snapkit", "EIO"),
        Fault("renameat2", "anything", "EPERM"),
        Fault("renameat2+linkat", "anything", "EINVAL+EPERM"),
    ]), @"
    === rename of anything: EIO
    --- stderr
    error: cannot rename the key file /DIR/home/.config/snapkit/.new-[HEX].key
      caused by: Input/output error (os error 5)
    hint: the repository is there: name it /DIR/home/.config/snapkit/[HEX].key yourself
    --- exit 1
    === fsync of /home/.config/snapkit: EIO
    --- stderr
    error: cannot write the key file /DIR/home/.config/snapkit/.new-[HEX].key
      caused by: Input/output error (os error 5)
    --- exit 1
    === renameat2 of anything: EPERM
    --- stderr
    error: cannot give the new file its name (path=/DIR/work/other/probe-[HEX])
      caused by: Operation not permitted (os error 1)
    --- exit 1
    === renameat2+linkat of anything: EINVAL+EPERM
    --- stderr
    error: cannot give the new file its name (path=/DIR/work/other/probe-[HEX])
      caused by: this file system can neither rename without replacing nor make hard links
    --- exit 1
    ");
}

#[test]
fn of_a_database() {
    if !can_fail() {
        return;
    }
    let _filters = TestEnv::new();
    assert_snapshot!(told("create -q shop.db", &[
        Fault("pread64", "/work/shop.db", "EIO"),
        Fault("openat", "/work/shop.db", "EIO"),
        Fault("statx", "/work/shop.db", "EIO"),
        Fault("fcntl", "/work/shop.db", "EIO"),
        Fault("pwrite64", "anything", "ENOSPC"),
        Fault("mkdir", "anything", "ENOSPC"),
        Fault("ftruncate", "anything", "EIO"),
    ]), @r#"
    === pread64 of /work/shop.db: EIO
    --- stderr
    error: cannot open the database (path=/DIR/work/shop.db, source=shop)
      caused by: disk I/O error
      caused by: Error code 8458: disk I/O error
    --- exit 1
    === openat of /work/shop.db: EIO
    --- stderr
    error: cannot open the database: the operating system refused (path=/DIR/work/shop.db, source=shop)
      caused by: unable to open database file: /DIR/work/shop.db
      caused by: Error code 14: unable to open database file
    --- exit 1
    === statx of /work/shop.db: EIO
    --- stderr
    error: cannot examine the database (path=/DIR/work/shop.db, source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === fcntl of /work/shop.db: EIO
    --- stderr
    error: cannot read the database (path=/DIR/work/shop.db, source=shop)
      caused by: disk I/O error
      caused by: Error code 3850: disk I/O error
    --- exit 1
    === pwrite64 of anything: ENOSPC
    --- stderr
    error: cannot write a new file (path=/DIR/repo/sessions/[SNAPSHOT]/.tmp-[HEX])
      caused by: No space left on device (os error 28)
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    === mkdir of anything: ENOSPC
    --- stderr
    warning: another run of this stack is not noticed: cannot create /DIR/home/.local/state/snapkit/running: No space left on device (os error 28)
    error: cannot make a temporary directory
      caused by: No space left on device (os error 28) at path "/DIR/tmp/[RANDOM]"
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    === ftruncate of anything: EIO
    --- exit 0
    "#);
    assert_snapshot!(told("restore -q latest:shop --target out", &[
        Fault("fsync", "/work/out/shop", "EIO"),
        Fault("statx", "/work/out/shop/shop.db", "EIO"),
        Fault("mkdir", "/work/out/shop", "EIO"),
        Fault("statx", "/work/out/shop", "EIO"),
        Fault("openat", "/work/out/shop", "EIO"),
        Fault("openat", "/work/out/shop/shop.db", "EIO"),
        Fault("rename+renameat+renameat2+link+linkat", "anything", "EIO+EIO+EIO+EIO+EIO"),
        Fault("statfs", "/work/out/shop", "EIO"),
        Fault("chmod+fchmodat", "anything", "EIO+EIO"),
    ]), @"
    === fsync of /work/out/shop: EIO
    --- stderr
    error: cannot make a directory durable: /DIR/work/out/shop (source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === statx of /work/out/shop/shop.db: EIO
    --- stderr
    error: cannot examine the target (path=/DIR/work/out/shop/shop.db, source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === mkdir of /work/out/shop: EIO
    --- stderr
    error: cannot create the directory /DIR/work/out/shop
      caused by: Input/output error (os error 5)
    --- exit 1
    === statx of /work/out/shop: EIO
    --- stderr
    error: cannot examine the directory of the target (path=/DIR/work/out/shop, source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === openat of /work/out/shop: EIO
    --- stderr
    error: cannot make a directory durable: /DIR/work/out/shop (source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === openat of /work/out/shop/shop.db: EIO
    --- stdout
    shop (sqlite): unproven, 0 facts hold, 8.0 KiB to /DIR/work/out/shop
      unproven: application_id, page_count, page_size, pages, rows.t, schema, tables, user_version
      problem: it could not be read back: cannot open the database: the operating system refused (path=/DIR/work/out/shop/shop.db): unable to open database file: /DIR/work/out/shop/shop.db: Error code 14: unable to open database file
    --- exit 4
    === rename+renameat+renameat2+link+linkat of anything: EIO+EIO+EIO+EIO+EIO
    --- stderr
    error: cannot put the database into place (path=/DIR/work/out/shop/shop.db, source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === statfs of /work/out/shop: EIO
    --- stderr
    error: cannot examine the file system: /DIR/work/out/shop (source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === chmod+fchmodat of anything: EIO+EIO
    --- stdout
    shop (sqlite): match, 8 facts hold, 8.0 KiB to /DIR/work/out/shop
      problem: the permissions could not be set: Input/output error (os error 5)
    --- exit 0
    ");
    assert_snapshot!(told("restore -q latest:shop --overwrite", &[
        Fault("access", "/work", "EACCES"),
        Fault("mkdir", "/home/.local/state/snapkit/recovery/before-ID/shop", "EIO"),
        Fault("statx", "/work/shop.db", "EIO"),
        Fault("rename+renameat+renameat2", "anything", "EIO+EIO+EIO"),
        Fault("pwrite64", "/work/shop.db", "ENOSPC"),
        Fault("pwrite64", "/work/shop.db", "EIO"),
    ]), @"
    === access of /work: EACCES
    --- stderr
    error: the directory of the target may not be written to (path=/DIR/work, source=shop)
      caused by: Permission denied (os error 13)
    --- exit 1
    === mkdir of /home/.local/state/snapkit/recovery/before-ID/shop: EIO
    --- stderr
    error: cannot create the directory /DIR/home/.local/state/snapkit/recovery/before-[HEX]/shop
      caused by: Input/output error (os error 5)
    --- exit 1
    === statx of /work/shop.db: EIO
    --- stderr
    error: cannot examine the target (path=/DIR/work/shop.db, source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === rename+renameat+renameat2 of anything: EIO+EIO+EIO
    --- stderr
    error: cannot keep what was written: /DIR/home/.local/state/snapkit/recovery/before-[HEX]/shop/shop.db (source=shop)
      caused by: Input/output error (os error 5)
    --- exit 1
    === pwrite64 of /work/shop.db: ENOSPC
    --- stderr
    error: cannot copy the database: no space is left (path=/DIR/work/shop.db, source=shop)
      caused by: database or disk is full
      caused by: Error code 13: database or disk is full
    hint: free some space and run it again; a create goes on from what it has stored
    --- exit 1
    === pwrite64 of /work/shop.db: EIO
    --- stderr
    error: cannot copy the database (path=/DIR/work/shop.db, source=shop)
      caused by: disk I/O error
      caused by: Error code 778: disk I/O error
    --- exit 1
    ");
}

/// What cannot be made to last is not called stored.
#[test]
fn of_a_repository() {
    if !can_fail() {
        return;
    }
    let _filters = TestEnv::new();
    let more = |env: &TestEnv| env.write("work/data/new.txt", "something that is to be stored");
    assert_snapshot!(told_with(more, "create -q data", &[
        Fault("fsync", "/repo/snapshots", "EIO"),
        Fault("fsync", "/repo/packs", "EIO"),
        Fault("fsync", "/repo/index", "EIO"),
        Fault("mkdirat", "sessions", "EIO"),
        Fault("getdents64", "/repo/index", "EIO"),
        Fault("openat", "config", "EIO"),
        Fault("pread64", "/repo/config", "EIO"),
        Fault("openat", "/repo", "EIO"),
    ]), @"
    === fsync of /repo/snapshots: EIO
    --- stderr
    error: cannot flush the directory (path=/DIR/repo/snapshots)
      caused by: Input/output error (os error 5)
    --- exit 1
    === fsync of /repo/packs: EIO
    --- stderr
    error: cannot flush the directory (path=/DIR/repo/packs)
      caused by: Input/output error (os error 5)
    --- exit 1
    === fsync of /repo/index: EIO
    --- stderr
    error: cannot flush the directory (path=/DIR/repo/index)
      caused by: Input/output error (os error 5)
    --- exit 1
    === mkdirat of sessions: EIO
    --- stderr
    error: cannot create the directory (path=/DIR/repo/sessions)
      caused by: Input/output error (os error 5)
    --- exit 1
    === getdents64 of /repo/index: EIO
    --- stderr
    error: cannot list the directory (path=/DIR/repo/index)
      caused by: Input/output error (os error 5)
    --- exit 1
    === openat of config: EIO
    --- stderr
    error: cannot open the object (path=/DIR/repo/config)
      caused by: Input/output error (os error 5)
    --- exit 1
    === pread64 of /repo/config: EIO
    --- stderr
    error: cannot read the object (path=/DIR/repo/config)
      caused by: Input/output error (os error 5)
    --- exit 1
    === openat of /repo: EIO
    --- stderr
    error: cannot read the directory (path=/DIR/repo)
      caused by: Input/output error (os error 5)
    --- exit 1
    ");
}

#[test]
fn of_local_state() {
    if !can_fail() {
        return;
    }
    let _filters = TestEnv::new();
    assert_snapshot!(told("create -q data", &[
        Fault("getdents64", "/home/.cache/snapkit/*/index", "EIO"),
        Fault("pread64", "/home/.cache/snapkit/*/index/*", "EIO"),
        Fault("openat", "/home/.cache/snapkit/*/index/*", "EIO"),
        Fault("openat", "/home/.cache/snapkit/*/index/*", "EMFILE"),
        Fault("mkdir", "/home/.local/state/snapkit/running", "EIO"),
        Fault("read", "/home/.local/state/snapkit/locations/*", "EIO"),
        Fault("read", "/home/.config/snapkit/*", "EIO"),
        Fault("openat", "/home/.local/state/snapkit/history", "EIO"),
        Fault("flock", "anything", "EIO"),
    ]), @"
    === getdents64 of /home/.cache/snapkit/*/index: EIO
    --- stderr
    error: cannot read the index cache /DIR/home/.cache/snapkit/[HEX]/index
      caused by: Input/output error (os error 5)
    --- exit 1
    === pread64 of /home/.cache/snapkit/*/index/*: EIO
    --- exit 0
    === openat of /home/.cache/snapkit/*/index/*: EIO
    --- exit 0
    === openat of /home/.cache/snapkit/*/index/*: EMFILE
    --- exit 0
    === mkdir of /home/.local/state/snapkit/running: EIO
    --- stderr
    warning: another run of this stack is not noticed: cannot create /DIR/home/.local/state/snapkit/running: Input/output error (os error 5)
    --- exit 0
    === read of /home/.local/state/snapkit/locations/*: EIO
    --- stderr
    warning: which repository this is is not remembered: cannot read /DIR/home/.local/state/snapkit/locations/[HEX]: Input/output error (os error 5)
    --- exit 0
    === read of /home/.config/snapkit/*: EIO
    --- stderr
    error: cannot read /DIR/home/.config/snapkit/[HEX].key
      caused by: Input/output error (os error 5)
    --- exit 1
    === openat of /home/.local/state/snapkit/history: EIO
    --- exit 0
    === flock of anything: EIO
    --- stderr
    warning: another run of this stack is not noticed: cannot lock /DIR/home/.local/state/snapkit/running/[HEX]: Input/output error (os error 5)
    --- exit 0
    ");
    assert_snapshot!(told("list -q", &[
        Fault("getdents64", "/repo/snapshots", "EIO"),
        Fault("pread64", "/repo/snapshots/*", "EIO"),
    ]), @"
    === getdents64 of /repo/snapshots: EIO
    --- stderr
    error: cannot list the directory (path=/DIR/repo/snapshots)
      caused by: Input/output error (os error 5)
    --- exit 1
    === pread64 of /repo/snapshots/*: EIO
    --- stderr
    warning: the snapshot [SNAPSHOT] is damaged: cannot read the object (path=/DIR/repo/snapshots/[SNAPSHOT]): Input/output error (os error 5)
    --- exit 4
    ");
}

/// The program itself, before and around its work.
#[test]
fn of_the_process() {
    if !can_fail() {
        return;
    }
    let _filters = TestEnv::new();
    let command = |env: &TestEnv| {
        env.write("work/snapkit.toml", "[sources.data]\nkind = 'files'\npaths = ['data']\n[[hook]]\non = 'before:freeze'\nrun = ['true']\n");
    };
    assert_snapshot!(told_with(command, "create -q", &[
        Fault("waitid+wait4", "anything", "EIO+EIO"),
        Fault("pidfd_open", "anything", "EMFILE"),
        Fault("getcwd", "anything", "EIO"),
        Fault("getrandom", "anything", "ENOSYS"),
    ]), @"
    === waitid+wait4 of anything: EIO+EIO
    --- stderr
    error: cannot wait for hook before:freeze: Input/output error (os error 5)
    --- exit 1
    === pidfd_open of anything: EMFILE
    --- exit 0
    === getcwd of anything: EIO
    --- stderr
    error: cannot tell the working directory
      caused by: Input/output error (os error 5)
    --- exit 1
    === getrandom of anything: ENOSYS
    --- exit 0
    ");
}
