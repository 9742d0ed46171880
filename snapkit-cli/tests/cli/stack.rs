//! The stack file.

use std::fs;

use insta::assert_snapshot;

use crate::support::{CommandOutput, TestEnv, said};

const STACK: &str = r#"
[repo]
url = "../repo"
key = { file = "shop.key" }

[sources.configs]
kind = "files"
paths = ["data"]
exclude = ["*.bin"]

[sources.app]
kind = "sqlite"
path = { env = "APP_DB", default = "app.db" }
busy_timeout = "2s"

[sets]
config = ["configs"]

[consistency]
mode = "barrier"
window = "10s"
"#;

/// A stack in a directory of its own, `shop`, with its repository beside it.
fn shop() -> TestEnv {
    let mut env = TestEnv::new();
    env.unset("SNAPKIT_REPO");
    env.sample();
    fs::create_dir(env.path("shop")).unwrap();
    fs::rename(env.path("work/data"), env.path("shop/data")).unwrap();
    env.database("shop/app.db", 3);
    env.write("shop/snapkit.toml", STACK);
    env.set("SNAPKIT_STACK", "../shop/snapkit.toml");
    let made = env.run(["init", "-q"]);
    assert!(made.is_success(), "{made}");
    env
}

/// What a create says of another stack file.
fn with(env: &TestEnv, text: &str) -> CommandOutput {
    env.write("work/snapkit.toml", text);
    env.run(["create"])
}

#[test]
fn a_stack_is_captured_together() {
    let env = shop();
    assert!(env.path("shop/shop.key").exists());
    assert_snapshot!(env.run(["create"]), @"
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 8.0 KiB in [DURATION]
      app (sqlite): 1 artifact, 8.0 KiB
      configs (files): 1 artifact, 7 entries, 6 B
      read [SIZES]
      the cut is [DURATION] wide
    --- exit 0
    ");
    assert_snapshot!(env.run(["create", "--set", "config"]), @"
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 6 B in [DURATION]
      configs (files): 1 artifact, 7 entries, 6 B
      read [SIZES]
    --- exit 0
    ");
    assert_snapshot!(env.run(["list"]), @"
    --- stdout
    ID        TIME                  SET     STACK@HOST  NAME  SIZE     VERDICT
    [HEX]  [TIME]  config  shop@box          6 B      complete
    [HEX]  [TIME]  full    shop@box          8.0 KiB  complete
    --- exit 0
    ");
    // `latest` is of the full set, unless another is named.
    assert_snapshot!(env.run(["ls", "latest"]), @"
    --- stdout
    app
    configs
    --- stderr
    there is a newer snapshot of set config: [SNAPSHOT]; `latest` is of set full unless --set says otherwise
    --- exit 0
    ");
    assert_snapshot!(env.run(["ls", "latest", "--set", "config"]), @"
    --- stdout
    configs
    --- exit 0
    ");
    assert_snapshot!(env.run(["restore", "latest", "--target", "out"]), @"
    --- stdout
    configs (files): match, 6 facts hold, 6 B to [DIR]/work/out/configs
    app (sqlite): match, 8 facts hold, 8.0 KiB to [DIR]/work/out/app
    --- stderr
    there is a newer snapshot of set config: [SNAPSHOT]; `latest` is of set full unless --set says otherwise
    snapshot [SNAPSHOT] of shop@box, [TIME]
    match in [DURATION]
    --- exit 0
    ");
}

#[test]
fn a_key_may_stand_in_the_environment() {
    let mut env = shop();
    env.set("SHOP_KEY", &env.read("shop/shop.key"));
    fs::remove_file(env.path("shop/shop.key")).unwrap();
    assert_eq!(env.run(["list"]).code(), Some(12));
    env.write("shop/snapkit.toml", STACK.replace("file = \"shop.key\"", "env = \"SHOP_KEY\""));
    assert!(env.run(["list"]).is_success());
}

#[test]
fn paths_on_the_command_line_replace_the_sources() {
    let env = shop();
    env.write("work/other/x", "y");
    assert_snapshot!(env.run(["create", "other"]), @"
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 1 B in [DURATION]
      files (files): 1 artifact, 5 entries, 1 B
      read [SIZES]
    --- exit 0
    ");
}

#[test]
fn a_source_that_may_fail_is_left_out() {
    let env = shop();
    let text = STACK.replace("busy_timeout = \"2s\"", "on_failure = \"partial\"");
    env.write("shop/snapkit.toml", text);
    fs::remove_file(env.path("shop/app.db")).unwrap();
    assert_snapshot!(env.run(["create"]), @"
    --- stdout
    [SNAPSHOT]
    --- stderr
    partial: 6 B in [DURATION]
      app (sqlite): 0 artifacts, 0 B, failed
      configs (files): 1 artifact, 7 entries, 6 B
      read [SIZES]
      the cut is [DURATION] wide
    warning: app: there is no database; check its path (path=[DIR]/shop/app.db, source=app)
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    ");

    assert_snapshot!(said(&env, &["restore latest:app --target out", "dump latest:app", "ls latest:app", "diff latest:app", "restore latest --target redis://127.0.0.1:1"]), @"
    $ snapkit restore latest:app --target out
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    warning: the snapshot is partial: of the source app, 1 thing was not captured
    error: the capture of this source had failed: there is nothing to restore
    --- exit 1
    $ snapkit dump latest:app
    --- stderr
    error: the source app has nothing in this snapshot
    --- exit 1
    $ snapkit ls latest:app
    --- exit 0
    $ snapkit diff latest:app
    --- stderr
    error: the snapshot holds nothing that could be compared (snapshot=[SNAPSHOT])
    --- exit 1
    $ snapkit restore latest --target redis://127.0.0.1:1
    --- stderr
    error: --target is a server, and there are several sources: use --map SOURCE=URL, with one of: app, configs
    --- exit 2
    ");
    assert_snapshot!(env.run(["create", "--stack-name", "other"]), @"
    --- stderr
    error: --stack-name is for paths: a stack file names its stack with `name`
    --- exit 2
    ");
    env.write("shop/snapkit.toml", STACK);
    assert_snapshot!(env.run(["create"]), @"
    --- stderr
    error: there is no database; check its path (path=[DIR]/shop/app.db, source=app)
    --- exit 1
    ");
}

#[test]
fn a_set_must_be_known() {
    let env = shop();
    assert_snapshot!(env.run(["create", "--set", "confg"]), @"
    --- stderr
    error: there is no set `confg`; sets are: config, full (file=[DIR]/shop/snapkit.toml)
    --- exit 2
    ");
}

#[test]
fn a_stack_file_that_is_named_must_be_there() {
    let env = TestEnv::with_repository();
    assert_snapshot!(env.run(["create", "-s", "none.toml"]), @"
    --- stderr
    error: cannot read [DIR]/work/none.toml
      caused by: No such file or directory (os error 2)
    --- exit 1
    ");
}

#[test]
fn unknown_keys_name_the_nearest() {
    let env = TestEnv::with_repository();
    assert_snapshot!(with(&env, "[source.a]\nkind = 'files'\n"), @"
    --- stderr
    error: unknown key `source`; did you mean `sources`? (file=[DIR]/work/snapkit.toml:1)
    --- exit 2
    ");
    assert_snapshot!(with(&env, "# later\n[retention]\ndaily = 1\n"), @"
    --- stderr
    error: unknown key `retention`; known are: name, repo, sources, sets, consistency, hook, probe (file=[DIR]/work/snapkit.toml:2)
    --- exit 2
    ");
    assert_snapshot!(with(&env, "[[hook]]\non = 'before:freeze'\n"), @"
    --- stderr
    error: the stack file declares no sources (file=[DIR]/work/snapkit.toml)
    --- exit 2
    ");
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'files'\npaths = ['x']\n\nexlude = ['y']\n"), @"
    --- stderr
    error: unknown key `exlude`; did you mean `exclude`? (source=a, file=[DIR]/work/snapkit.toml:5)
    --- exit 2
    ");
    assert_snapshot!(with(&env, "[consistency]\nwindov = '1s'\n[sources.a]\nkind = 'files'\npaths = ['x']\n"), @"
    --- stderr
    error: unknown key `windov`; did you mean `window`? (file=[DIR]/work/snapkit.toml:2)
    --- exit 2
    ");
}

#[test]
fn unknown_keys_of_the_repository_are_named() {
    let mut env = TestEnv::new();
    env.unset("SNAPKIT_REPO");
    env.write("work/snapkit.toml", "[repo]\nurll = 'x'\n");
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    error: unknown key `urll`; did you mean `url`? (file=[DIR]/work/snapkit.toml:2)
    --- exit 2
    ");
    env.write("work/snapkit.toml", "[repo]\nurl = 'x'\nkey = 'AGE-SECRET-KEY-1'\n");
    assert_eq!(env.run(["list", "-r", "../repo"]).code(), Some(2));
    let listed = env.run(["init"]);
    assert_snapshot!(listed, @r#"
    --- stderr
    error: a key does not stand in the stack file: write `key = { file = "…" }` (file=[DIR]/work/snapkit.toml:3)
    --- exit 2
    "#);
    assert!(!listed.stderr.contains("AGE-SECRET"));
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let env = TestEnv::with_repository();
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'redsi'\n"), @r#"
    --- stderr
    error: unknown kind of source "redsi"; known are: command, files, nats, prometheus, qdrant, redis, sqlite, stream (source=a, file=[DIR]/work/snapkit.toml:1)
    --- exit 2
    "#);
    assert_snapshot!(with(&env, "[sources.a]\npaths = ['x']\n"), @"
    --- stderr
    error: the source `a` has no `kind` (file=[DIR]/work/snapkit.toml:1)
    --- exit 2
    ");
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'files'\npaths = 7\n"), @r#"
    --- stderr
    error: `paths`: invalid type: integer `7`, expected a list such as ["…"] (source=a, file=[DIR]/work/snapkit.toml:3)
    --- exit 2
    "#);
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'files'\npaths = ['x']\non_failure = 'ignore'\n"), @r#"
    --- stderr
    error: `on_failure` must be "abort" or "partial" (file=[DIR]/work/snapkit.toml:4)
    --- exit 2
    "#);
    assert_snapshot!(with(&env, "[sources.'a b']\nkind = 'files'\n"), @r#"
    --- stderr
    error: not a name for a source: "a b"; it may have letters and digits of ASCII, `.`, `_` and `-`, at most 255 (file=[DIR]/work/snapkit.toml:1)
    --- exit 2
    "#);
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'files'\npaths = ['x']\n[sets]\nb = ['c']\n"), @"
    --- stderr
    error: the set `b` names `c`, which is no source; sources are: a (file=[DIR]/work/snapkit.toml:4)
    --- exit 2
    ");
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'files'\npaths = ['x']\n[sets]\nfull = ['a']\n"), @"
    --- stderr
    error: the set `full` is always all sources: name yours otherwise (file=[DIR]/work/snapkit.toml:4)
    --- exit 2
    ");
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'files'\npaths = ['x']\n[consistency]\nmode = 'stop'\n"), @r#"
    --- stderr
    error: `mode` must be "barrier" or "none" (file=[DIR]/work/snapkit.toml:5)
    --- exit 2
    "#);
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'files'\npaths = ['x']\n[consistency]\nwindow = 'soon'\n"), @r#"
    --- stderr
    error: not a duration such as 10s, 500ms or 2m: "soon" (file=[DIR]/work/snapkit.toml:5)
    --- exit 2
    "#);
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'files'\npaths = ['x']\n[consistency]\nmode = 'none'\nwindow = '1s'\n"), @r#"
    --- stderr
    error: a `window` needs `mode = "barrier"` (file=[DIR]/work/snapkit.toml:6)
    --- exit 2
    "#);
    assert_snapshot!(with(&env, "sources = 1\n"), @"
    --- stderr
    error: `sources` must be tables `[sources.NAME]` (file=[DIR]/work/snapkit.toml:1)
    --- exit 2
    ");
    assert_snapshot!(with(&env, "name = 'no/name'\n[sources.a]\nkind = 'files'\npaths = ['x']\n"), @"
    --- stderr
    error: the stack's `name` must be text of letters, digits, `.`, `_` and `-` (file=[DIR]/work/snapkit.toml:1)
    --- exit 2
    ");
    assert_snapshot!(with(&env, ""), @"
    --- stderr
    error: the stack file declares no sources (file=[DIR]/work/snapkit.toml)
    --- exit 2
    ");
    assert_snapshot!(with(&env, "[sources.a\n"), @"
    --- stderr
    error: the stack file is not TOML: unclosed table, expected `]` (file=[DIR]/work/snapkit.toml:1)
    --- exit 2
    ");
}

#[test]
fn values_of_another_type_are_named_with_their_line() {
    let env = TestEnv::with_repository();
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'files'\npaths = ['x']\nexclude = '*.tmp'\n"), @r#"
    --- stderr
    error: `exclude`: invalid type: a text, expected a list such as ["…"] (source=a, file=[DIR]/work/snapkit.toml:4)
    --- exit 2
    "#);
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'files'\npaths = ['x']\n[sets]\nb = ['a']\nc = 'a'\n"), @r#"
    --- stderr
    error: `c`: invalid type: string "a", expected a list such as ["…"] (file=[DIR]/work/snapkit.toml:6)
    --- exit 2
    "#);
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'files'\npaths = ['x']\n[consistency]\nwindow = 10\n"), @"
    --- stderr
    error: `window`: invalid type: integer `10`, expected a string (file=[DIR]/work/snapkit.toml:5)
    --- exit 2
    ");
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'files'\npaths = ['x']\n[sets]\nb = []\n"), @"
    --- stderr
    error: the set `b` has no sources (file=[DIR]/work/snapkit.toml:5)
    --- exit 2
    ");
}

/// However the file is spelled.
#[test]
fn the_directory_is_the_name_of_the_stack() {
    let env = TestEnv::with_repository();
    env.sample();
    fs::create_dir(env.path("work/sub")).unwrap();
    env.write("work/snapkit.toml", "[sources.a]\nkind = 'files'\npaths = ['data']\n");
    for (dir, file) in [
        ("work", "snapkit.toml"),
        ("work/sub", "../snapkit.toml"),
        ("home", "../work/snapkit.toml"),
    ] {
        let made = env.command(["create", "-q", "-s", file]).current_dir(env.path(dir)).output();
        assert!(made.unwrap().status.success(), "{file}");
    }
    let listed = env.run(["list", "--json"]).json();
    let stacks: Vec<_> =
        listed["snapshots"].as_array().unwrap().iter().map(|s| &s["stack"]).collect();
    assert_eq!(stacks, ["work", "work", "work"]);
}

#[test]
fn values_that_stand_elsewhere_must_be_there() {
    let env = TestEnv::with_repository();
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'sqlite'\npath = { env = 'APP_DB' }\n"), @"
    --- stderr
    error: the environment variable APP_DB is not set, and there is no default (file=[DIR]/work/snapkit.toml:3)
    --- exit 2
    ");
    assert_snapshot!(with(&env, "[sources.a]\nkind = 'sqlite'\npath = { file = 'none' }\n"), @"
    --- stderr
    error: a value cannot be read from its file (file=[DIR]/work/snapkit.toml:3)
      caused by: cannot read [DIR]/work/none
      caused by: No such file or directory (os error 2)
    --- exit 2
    ");
}

/// What a source needs is looked up only where sources are.
#[test]
fn other_commands_do_without_the_values_of_sources() {
    let env = TestEnv::with_repository();
    env.write("work/snapkit.toml", "[sources.a]\nkind = 'sqlite'\npath = { env = 'APP_DB' }\n");
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    there are no snapshots
    --- exit 0
    ");
}
