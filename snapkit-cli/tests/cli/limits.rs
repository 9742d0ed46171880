//! Too much, too many, too long: where each limit is, and what is said there.

use std::fs;

use insta::assert_snapshot;

use crate::support::{TestEnv, said};

#[test]
fn of_arguments() {
    let env = TestEnv::with_snapshot();
    fs::File::create(env.path("work/list")).unwrap().set_len((64 << 20) + 1).unwrap();
    assert!(env.run(["create", "-q", "data"]).is_success());
    env.database("work/app.db", 1);
    let long = "x".repeat(70_000);
    let globs = format!("restore latest --target out --include {}", "?*".repeat(60_000));
    let globs = env.run(globs.split(' '));
    let found = env.run(["find", &"?*".repeat(60_000)]);
    let named = env.run(["create", "data", "--name", &long]);
    let tagged = env.run(["create", "data", "--tag", &format!("k={long}")]);
    let short = |text: String| text.replace(&long, "[LONG]");
    assert_snapshot!(format!("{globs}\n{found}\n{}\n{}", short(named.to_string()), short(tagged.to_string())), @"
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: the globs are too many or too long
      caused by: error building NFA
    --- exit 2
    --- stderr
    error: the globs are too many or too long
      caused by: error building NFA
    --- exit 2
    --- stderr
    error: a snapshot's name has at most 255 bytes, not 70000
    --- exit 2
    --- stderr
    error: the names and tags of a snapshot have 70026 bytes, the limit is 65536
    --- exit 1
    ");
    assert_snapshot!(said(&env, &[
        "create --files-from list",
        "create --exclude x app.db",
        "list --memory 1MiB",
        "show 2",
        "list --memory none",
        "restore latest~x --target out",
        "restore latest~-1 --target out",
        "restore latest~99999999999999999999 --target out",
    ]), @r#"
    $ snapkit create --files-from list
    --- stderr
    error: a list of paths has at most 64 MiB (file=list)
    --- exit 1
    $ snapkit create --exclude x app.db
    --- stderr
    error: --exclude is for directories, and there is none among the paths
    --- exit 2
    $ snapkit list --memory 1MiB
    --- stderr
    error: --memory must be at least 128MiB, not 1MiB
    --- exit 2
    $ snapkit show 2
    --- stderr
    error: "2" is not unique: it may be [SNAPSHOT] or [SNAPSHOT]
    --- exit 2
    $ snapkit list --memory none
    --- stderr
    error: not a size such as 256MiB: "none" (option=--memory)
    --- exit 2
    $ snapkit restore latest~x --target out
    --- stderr
    error: not a number of snapshots to go back: "x"
    --- exit 2
    $ snapkit restore latest~-1 --target out
    --- stderr
    error: not a number of snapshots to go back: "-1"
    --- exit 2
    $ snapkit restore latest~99999999999999999999 --target out
    --- stderr
    error: not a number of snapshots to go back: "99999999999999999999"
    --- exit 2
    "#);
}

#[test]
fn of_a_stack() {
    let env = TestEnv::with_repository();
    env.sample();
    let mut all = String::new();
    for source in [
        "kind = \"files\"\npaths = [\"\"]",
        "kind = \"files\"\npaths = [\"data/../data\"]",
        "kind = \"files\"\npaths = [\"data/a.txt/x\"]",
        "kind = \"files\"\npaths = [\"data/link\"]",
        "kind = \"files\"\npaths = [\"/proc/self/fd\"]",
        "kind = \"sqlite\"\npath = \"app.db\"\nbusy_timeout = \"25h\"",
        "kind = \"sqlite\"\npath = \"/\"",
        "kind = \"sqlite\"\npath = \"data\"",
        "kind = \"sqlite\"\npath = \"a\\u0000b\"",
        "kind = \"stream\"\nfile = \"x\"",
    ] {
        env.write("work/snapkit.toml", format!("name = \"shop\"\n[sources.s]\n{source}\n"));
        all += &format!("=== {source}\n{}\n", env.run(["create"]));
    }
    assert_snapshot!(all, @r#"
    === kind = "files"
    paths = [""]
    --- stderr
    left out: the repository [DIR]/repo
    left out: the local state [DIR]/home/.local/state/snapkit
    left out: the cache [DIR]/home/.cache/snapkit
    error: `paths`: a path is empty (path=, source=s, file=[DIR]/work/snapkit.toml:4)
    --- exit 2
    === kind = "files"
    paths = ["data/../data"]
    --- stderr
    error: `paths`: a path holds `..`; name the place that it leads to (path=data/../data, source=s, file=[DIR]/work/snapkit.toml:4)
    --- exit 2
    === kind = "files"
    paths = ["data/a.txt/x"]
    --- stderr
    error: the path leads through something that is no directory; where that is a symbolic link, name the place that it leads to (path=[DIR]/work/data/a.txt/x, source=s)
    --- exit 2
    === kind = "files"
    paths = ["data/link"]
    --- stderr
    error: [DIR]/work/data/link is a symbolic link to a.txt: name the directory or file itself, or the directory that holds both (path=[DIR]/work/data/link, source=s)
    --- exit 2
    === kind = "files"
    paths = ["/proc/self/fd"]
    --- stderr
    error: the path leads through something that is no directory; where that is a symbolic link, name the place that it leads to (path=/proc/self/fd, source=s)
    --- exit 2
    === kind = "sqlite"
    path = "app.db"
    busy_timeout = "25h"
    --- stderr
    error: `busy_timeout`: must be seconds, or text such as "10s", at most a day (source=s, file=[DIR]/work/snapkit.toml:5)
    --- exit 2
    === kind = "sqlite"
    path = "/"
    --- stderr
    error: `path`: the path does not name a database file (path=/, source=s, file=[DIR]/work/snapkit.toml:4)
    --- exit 2
    === kind = "sqlite"
    path = "data"
    --- stderr
    error: not a SQLite database: it is not a file (path=[DIR]/work/data, source=s)
    --- exit 2
    === kind = "sqlite"
    path = "a\u0000b"
    --- stderr
    error: `path`: the path holds a NUL byte (path=a\x00b, source=s, file=[DIR]/work/snapkit.toml:4)
    --- exit 2
    === kind = "stream"
    file = "x"
    --- stderr
    error: a stream is captured while it is handed over, as `snapkit create --stdin` does: it cannot be opened again (source=s)
    --- exit 1
    "#);
}

/// What an ignore file may have, and how deep and how long paths may be.
#[test]
fn of_a_tree() {
    let env = TestEnv::with_repository();
    env.sample();
    env.write("work/data/.snapkitignore", "x".repeat(2 << 20));
    env.write(
        "work/snapkit.toml",
        "name = \"shop\"\n[sources.s]\nkind = \"files\"\npaths = [\"data\"]\n",
    );
    assert_snapshot!(env.run(["create"]), @"
    --- stdout
    [SNAPSHOT]
    --- stderr
    partial: 10 B in [DURATION]
      s (files): 1 artifact, 8 entries, 10 B, partial
      read [SIZES]
    warning: s: [DIR-IN-TREE]/work/data/.snapkitignore: an ignore file above 1048576 bytes (path=[DIR]/work/data)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    ");
}

#[test]
fn of_credentials() {
    let env = TestEnv::with_snapshot();
    let key = env.files("repo/keys", ".age").remove(0);
    // In which order they are tried is the directory's business.
    fs::remove_file(&key).unwrap();
    for n in 0..1001 {
        let one = key.with_file_name(format!("{n:032x}.age"));
        fs::write(one, "age-encryption.org/v1\n").unwrap();
    }
    assert_snapshot!(said(&env, &["list"]), @"
    $ snapkit list
    --- stderr
    error: none of the first 1000 credentials of the repository fits: remove from `keys` what nobody uses
    --- exit 1
    ");
}

/// Only a newer program collects what nobody needs.
#[test]
fn of_what_this_version_knows() {
    let env = TestEnv::with_snapshot();
    env.write(&format!("repo/tombstones/{}", "a".repeat(32)), "x");
    assert_snapshot!(said(&env, &["create data", "list", "restore latest --target out", "verify"]), @"
    $ snapkit create data
    --- stderr
    error: the repository was collected by a newer program, which this one does not understand (key=tombstones/[HEX])
    hint: use the snapkit version that made this repository, or start a new one
    --- exit 1
    $ snapkit list
    --- stdout
    ID        TIME                  SET   STACK@HOST         NAME   SIZE  VERDICT
    [HEX]  [TIME]  full  data-[HEX]@box  first  10 B  complete
    --- exit 0
    $ snapkit restore latest --target out
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: the repository was collected by a newer program, which this one does not understand (key=tombstones/[HEX])
    hint: use the snapkit version that made this repository, or start a new one
    --- exit 1
    $ snapkit verify
    --- stderr
    error: the repository was collected by a newer program, which this one does not understand (key=tombstones/[HEX])
    hint: use the snapkit version that made this repository, or start a new one
    --- exit 1
    ");
}
