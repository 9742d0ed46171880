//! Programs as sources: what they are told, what is said of them, and what a snapshot does not hold.

use std::fs;

use insta::assert_snapshot;

use crate::support::{CommandOutput, TestEnv, said};

const STACK: &str = r#"
name = "shop"
[sources.crm]
kind = "command"
file = "crm.sql"
capture = ["sh", "-c", "test \"$TOKEN\" && cat crm"]
restore = ["sh", "-c", "cat > new && mv new crm"]
empty = ["sh", "-c", "test ! -e crm"]
facts = { rows = ["sh", "-c", "wc -l < crm"] }
variables = { TOKEN = "hunter2-of-the-crm", MODE = { env = "MODE", default = "x" } }
proof = ["rows"]
end = "-- done"
repeatable = true
"#;

fn shop() -> TestEnv {
    let env = TestEnv::with_repository();
    env.write("work/snapkit.toml", STACK);
    env.write("work/crm", "insert 1\ninsert 2\n-- done\n");
    env
}

#[test]
fn they_are_captured_and_put_back() {
    let env = shop();
    let mut all = said(&env, &["config show", "create --name first", "show first"]);
    env.write("work/crm", "insert 3\n-- done\n");
    all += &said(&env, &["diff first", "restore first"]);
    let put = env.run(["restore", "first", "--overwrite"]);
    all += &format!("$ snapkit restore first --overwrite\n{put}\n");
    assert_eq!(env.read("work/crm"), "insert 1\ninsert 2\n-- done\n");
    fs::remove_file(env.path("work/crm")).unwrap();
    all += &said(
        &env,
        &["restore first", "verify --read-data", "dump first:crm/crm.sql", "doctor -q"],
    );
    assert!(!all.contains("hunter2"), "{all}");
    assert_snapshot!(all, @r#"
    $ snapkit config show
    --- stdout
    name = "shop"
    sources.crm.capture = ["sh","-c","test \"$TOKEN\" && cat crm"]
    sources.crm.empty = ["sh","-c","test ! -e crm"]
    sources.crm.end = "-- done"
    sources.crm.facts.rows = ["sh","-c","wc -l < crm"]
    sources.crm.file = "crm.sql"
    sources.crm.kind = "command"
    sources.crm.proof = ["rows"]
    sources.crm.repeatable = true
    sources.crm.restore = ["sh","-c","cat > new && mv new crm"]
    sources.crm.variables.MODE = from variable MODE (not set, there is a default)
    sources.crm.variables.TOKEN = "(hidden)"
    --- exit 0
    $ snapkit create --name first
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 26 B in [DURATION]
      crm (command): 1 artifact, 26 B
      read [SIZES]
    --- exit 0
    $ snapkit show first
    --- stdout
    snapshot [SNAPSHOT]
    name     first
    stack    shop@box
    set      full
    started  [TIME]
    finished [TIME]
    verdict  complete
    cut      [DURATION] wide
    size     26 B (26 bytes)
    new      [SIZE], [SIZE] stored
    program  snapkit 0.1.0

    source crm (command): complete
      cut [TIME] to [TIME]: each part whole, of different moments
      artifact crm.sql: 26 B, application/octet-stream
      read [SIZES]
      fact answer.rows = 3
      fact bytes = 26
      fact digest = [HEX]
    --- exit 0
    $ snapkit diff first
    --- stdout
    M crm/crm.sql: was 26 B, is 17 B, 17 B of it new
      answer.rows was 3, is 2
      bytes was 26, is 17
      digest was [HEX], is [HEX]
    --- exit 0
    $ snapkit restore first
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    error: `empty` says that there is something where the content is put back (source=crm)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    $ snapkit restore first --overwrite
    --- stdout
    crm (command): match, 3 facts hold, 26 B to its original place
    to bring back what crm held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    $ snapkit restore first
    --- stdout
    crm (command): match, 3 facts hold, 26 B to its original place
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    match in [DURATION]
    --- exit 0
    $ snapkit verify --read-data
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    no damage: every byte of all snapshots and packs was read and checked
    --- exit 0
    $ snapkit dump first:crm/crm.sql
    --- stdout
    insert 1
    insert 2
    -- done
    --- exit 0
    $ snapkit doctor -q
    --- exit 0
    "#);
}

/// Whoever presses Ctrl-C in the middle of a restore has what was there before.
#[test]
fn a_restore_that_is_interrupted_puts_back() {
    let env = shop();
    let slow = r#"restore = ["sh", "-c", "cat > new; if grep -q 'insert 1' new; then echo half > crm; sleep 60; fi; mv new crm"]"#;
    let stack: Vec<_> =
        STACK.lines().map(|l| if l.starts_with("restore") { slow } else { l }).collect();
    env.write("work/snapkit.toml", stack.join("\n"));
    assert!(env.run(["create", "-q", "--name", "first"]).is_success());
    env.write("work/crm", "insert 3\n-- done\n");
    let program = env!("CARGO_BIN_EXE_snapkit");
    let limited =
        ["--preserve-status", "--signal=INT", "2", program, "restore", "first", "--overwrite"];
    let output = CommandOutput::from(env.through("timeout", limited).output().unwrap());
    assert_eq!(env.read("work/crm"), "insert 3\n-- done\n");
    assert_snapshot!(output, @"
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    stopping; a second signal ends at once
    error: cancelled; the old state was put back (old_state=[DIR]/home/.local/state/snapkit/recovery/before-[HEX]/crm/crm.sql, source=crm)
      caused by: cancelled
    --- exit 130
    ");
}

/// What stands in a repository is never started.
#[test]
fn without_the_stack_file_there_is_no_program() {
    let env = shop();
    assert!(env.run(["create", "-q", "--name", "first"]).is_success());
    fs::remove_file(env.path("work/snapkit.toml")).unwrap();
    fs::remove_file(env.path("work/crm")).unwrap();
    assert_snapshot!(said(&env, &["restore first", "restore first --target out"]), @"
    $ snapkit restore first
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    error: `restore` names no program (source=crm)
    hint: programs stand in the stack file, and are in no snapshot; or restore to a directory with --target
    --- exit 2
    $ snapkit restore first --target out
    --- stdout
    crm (command): match, 2 facts hold, 26 B to [DIR]/work/out/crm
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    match in [DURATION]
    --- exit 0
    ");
    assert_eq!(env.read("work/out/crm/crm.sql"), "insert 1\ninsert 2\n-- done\n");
}

/// Wherever somebody stands who restores.
#[test]
fn they_run_beside_the_stack_file() {
    let env = shop();
    assert!(env.run(["create", "-q", "--name", "first"]).is_success());
    fs::remove_file(env.path("work/crm")).unwrap();
    let mut restore = env.command(["restore", "-q", "-s", "../work/snapkit.toml", "first"]);
    let restored = CommandOutput::from(restore.current_dir(env.path("home")).output().unwrap());
    assert!(restored.is_success(), "{restored}");
    assert_eq!(env.read("work/crm"), "insert 1\ninsert 2\n-- done\n");
    assert!(!env.path("home/crm").exists());
}

/// A program says something only of what its own stack has captured, and of its own kind of source.
#[test]
fn other_stacks_are_not_checked_by_it() {
    let env = shop();
    assert!(env.run(["create", "-q", "--name", "first"]).is_success());
    let check = "check = ['sh', '-c', 'touch checked; exit 1']\n";
    env.write("work/snapkit.toml", format!("{STACK}{check}").replace("\"shop\"", "\"other\""));
    let mut all = said(&env, &["verify --read-data"]);
    assert!(!env.path("work/checked").exists());
    env.write("work/snapkit.toml", format!("{STACK}{check}"));
    all += &said(&env, &["verify --read-data"]);
    assert!(env.path("work/checked").exists());
    env.write(
        "work/snapkit.toml",
        "name = 'shop'\n[sources.crm]\nkind = 'files'\npaths = ['crm']\n",
    );
    all += &said(&env, &["verify --read-data", "restore first --overwrite"]);
    assert_snapshot!(all, @"
    $ snapkit verify --read-data
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    no damage: every byte of all snapshots and packs was read and checked
    --- exit 0
    $ snapkit verify --read-data
    --- stdout
    damaged: [SNAPSHOT]:crm/crm.sql: the source says that it would not restore as it was
      lost: crm.sql: `check` failed: exit status: 1 (program=sh)
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    $ snapkit verify --read-data
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    no damage: every byte of all snapshots and packs was read and checked
    --- exit 0
    $ snapkit restore first --overwrite
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    error: `restore` names no program (source=crm)
    hint: programs stand in the stack file, and are in no snapshot; or restore to a directory with --target
    --- exit 2
    ");
}

#[test]
fn a_program_that_fails_makes_no_snapshot() {
    let env = shop();
    let mut all = String::new();
    for (content, more) in [
        ("insert 1\n", ""),
        ("", ""),
        (
            "insert 1\n-- done\n",
            "on_failure = 'partial'\ncapture = ['sh', '-c', 'echo $TOKEN is no good >&2; exit 3']\n",
        ),
        ("insert 1\n-- done\n", "capture = ['sh', '-c', 'exit 75']\n"),
        ("insert 1\n-- done\n", "preset = 'oracle'\n"),
        ("insert 1\n-- done\n", "preset = 'postgresql'\n"),
    ] {
        env.write("work/crm", content);
        let stack = match more.contains("capture") {
            true => {
                STACK.lines().filter(|l| !l.starts_with("capture")).collect::<Vec<_>>().join("\n")
            }
            false => STACK.to_owned(),
        };
        env.write("work/snapkit.toml", format!("{stack}\n{more}"));
        all += &format!("{more}{}", said(&env, &["create"]));
    }
    all += &said(&env, &["list"]);
    assert!(!all.contains("hunter2"), "{all}");
    assert_snapshot!(all, @"
    $ snapkit create
    --- stderr
    error: what `capture` has written is not whole: the text that `end` wants near its end is not there (program=sh, artifact=crm.sql, source=crm)
    --- exit 1
    $ snapkit create
    --- stderr
    error: what `capture` has written is not whole: it is empty (program=sh, source=crm)
    --- exit 1
    on_failure = 'partial'
    capture = ['sh', '-c', 'echo $TOKEN is no good >&2; exit 3']
    $ snapkit create
    --- stdout
    [SNAPSHOT]
    --- stderr
    partial: 0 B in [DURATION]
      crm (command): 0 artifacts, 0 B, failed
      read [SIZES]
    warning: crm: `capture` failed: exit status: 3 (program=sh, said=… is no good, source=crm)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    capture = ['sh', '-c', 'exit 75']
    $ snapkit create
    --- stderr
    error: `capture` asks to be tried later (program=sh, source=crm)
    --- exit 75
    preset = 'oracle'
    $ snapkit create
    --- stderr
    error: `preset`: unknown variant `oracle`, expected `postgresql` or `mariadb` (source=crm, file=[DIR]/work/snapkit.toml:15)
    --- exit 2
    preset = 'postgresql'
    $ snapkit create
    --- stderr
    error: a `preset` needs the name of its `database` (source=crm, file=[DIR]/work/snapkit.toml:15)
    --- exit 2
    $ snapkit list
    --- stdout
    ID        TIME                  SET   STACK@HOST  NAME  SIZE  VERDICT
    [HEX]  [TIME]  full  shop@box          0 B   partial
    --- exit 0
    ");
}
