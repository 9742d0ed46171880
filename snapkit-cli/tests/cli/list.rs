//! `snapkit list` and `snapkit show`, and how snapshots are named.

use insta::assert_snapshot;

use crate::support::TestEnv;

fn with_three() -> TestEnv {
    let mut env = TestEnv::with_snapshot();
    let create = |env: &TestEnv, args: &[&str]| {
        let made = env.run(["create", "-q", "data"].iter().chain(args));
        assert!(made.is_success(), "{made}");
    };
    create(&env, &["--stack-name", "shop", "--tag", "tier=gold"]);
    env.set("SNAPKIT_HOST", "other");
    create(&env, &["--tag", "tier=tin", "--name", "elsewhere"]);
    env.set("SNAPKIT_HOST", "box");
    env
}

#[test]
fn the_newest_comes_first() {
    let env = with_three();
    assert_snapshot!(env.run(["list"]), @"
    --- stdout
    ID        TIME                  SET   STACK@HOST           NAME       SIZE  VERDICT
    [HEX]  [TIME]  full  data-[HEX]@other  elsewhere  10 B  complete
    [HEX]  [TIME]  full  shop@box                        10 B  complete
    [HEX]  [TIME]  full  data-[HEX]@box    first      10 B  complete
    --- exit 0
    ");
    assert_snapshot!(env.run(["list", "--last", "1"]), @"
    --- stdout
    ID        TIME                  SET   STACK@HOST           NAME       SIZE  VERDICT
    [HEX]  [TIME]  full  data-[HEX]@other  elsewhere  10 B  complete
    --- exit 0
    ");
    assert_snapshot!(env.run(["list", "--host", "box"]), @"
    --- stdout
    ID        TIME                  SET   STACK@HOST         NAME   SIZE  VERDICT
    [HEX]  [TIME]  full  shop@box                  10 B  complete
    [HEX]  [TIME]  full  data-[HEX]@box  first  10 B  complete
    --- exit 0
    ");
    assert_snapshot!(env.run(["list", "--stack-name", "shop"]), @"
    --- stdout
    ID        TIME                  SET   STACK@HOST  NAME  SIZE  VERDICT
    [HEX]  [TIME]  full  shop@box          10 B  complete
    --- exit 0
    ");
    assert_snapshot!(env.run(["list", "--tag", "tier=tin"]), @"
    --- stdout
    ID        TIME                  SET   STACK@HOST           NAME       SIZE  VERDICT
    [HEX]  [TIME]  full  data-[HEX]@other  elsewhere  10 B  complete
    --- exit 0
    ");
    assert_snapshot!(env.run(["list", "--tag", "tier", "--set", "none"]), @"
    --- stderr
    none of the snapshots fits
    --- exit 0
    ");
    assert_snapshot!(env.run(["list", "--last", "0"]), @"
    --- stderr
    error: --last 0 would take nothing
    --- exit 2
    ");
}

#[test]
fn an_empty_repository_lists_nothing() {
    let env = TestEnv::with_repository();
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    there are no snapshots
    --- exit 0
    ");
    assert_snapshot!(env.run(["list", "-q"]), @"--- exit 0");
}

#[test]
fn a_snapshot_is_shown_whole() {
    let env = TestEnv::with_snapshot();
    assert_snapshot!(env.run(["show", "first"]), @"
    --- stdout
    snapshot [SNAPSHOT]
    name     first
    stack    data-[HEX]@box
    set      full
    started  [TIME]
    finished [TIME]
    verdict  complete
    cut      [DURATION] wide
    size     10 B (10 bytes)
    new      [SIZE], [SIZE] stored
    program  snapkit 0.1.0

    source files (files): complete
      cut [TIME] to [TIME]: each part whole, of different moments
      artifact tree: 10 B, 8 entries, application/vnd.snapkit.tree
      read [SIZES]
      fact tree.attributes = [HEX]
      fact tree.bytes = 10
      fact tree.entries = 5
      fact tree.files = 2
      fact tree.owners = [HEX]
      fact tree.structure = [HEX]
    --- exit 0
    ");
}

#[test]
fn snapshots_have_several_names() {
    let env = with_three();
    let listed = env.run(["list", "--json"]).json();
    let ids: Vec<String> = listed["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["id"].as_str().unwrap().to_owned())
        .collect();
    let [elsewhere, shop, first] = ids.as_slice() else { panic!("{listed}") };
    let resolves = |args: &[&str]| {
        let shown = env.run(["show", "--json"].iter().chain(args));
        assert!(shown.is_success(), "{args:?}: {shown}");
        shown.json()["id"].as_str().unwrap().to_owned()
    };
    assert_eq!(resolves(&[first]), *first);
    assert_eq!(resolves(&[&first[17..25]]), *first);
    assert_eq!(resolves(&["first"]), *first);
    // Of this host only, unless said otherwise.
    assert_eq!(resolves(&["latest", "--stack-name", "shop"]), *shop);
    assert_eq!(resolves(&["@2100-01-01T00:00Z", "--stack-name", "shop"]), *shop);
    assert_eq!(resolves(&["latest", "--host", "other"]), *elsewhere);
    let name = listed["snapshots"][2]["stack"].as_str().unwrap();
    assert_eq!(resolves(&["latest", "--stack-name", name]), *first);
    assert_eq!(resolves(&["latest", "--stack-name", name, "--any-host"]), *elsewhere);
    assert_eq!(resolves(&["latest~1", "--stack-name", name, "--any-host"]), *first);
}

/// `latest` of other paths may be put back over these.
#[test]
fn what_may_mean_two_stacks_is_refused() {
    let env = TestEnv::with_snapshot();
    env.write("work/other/x", "y");
    // Of the same paths there is one stack, however they are spelled.
    let again = env.run(["create", "-q", "./data/"]);
    assert!(again.is_success(), "{again}");
    assert!(env.run(["show", "latest"]).is_success());
    assert!(env.run(["create", "-q", "other", "--name", "second"]).is_success());
    assert_snapshot!(env.run(["restore", "latest", "--overwrite"]), @"
    --- stderr
    error: latest is not unique: there are snapshots of data-[HEX], other-[HEX]
    hint: say which with --stack-name, or give an id; `snapkit list` shows them
    --- exit 2
    ");
    assert_snapshot!(env.run(["ls", "@2100-01-01"]), @"
    --- stderr
    error: @2100-01-01 is not unique: there are snapshots of data-[HEX], other-[HEX]
    hint: say which with --stack-name, or give an id; `snapkit list` shows them
    --- exit 2
    ");
    assert!(env.run(["ls", "second"]).is_success());
}

#[test]
fn where_snapshots_are_is_said() {
    let mut env = TestEnv::with_repository();
    assert_snapshot!(env.run(["show", "latest"]), @"
    --- stderr
    error: there is no snapshot latest (among=any stack, host box, set full)
    hint: there are no snapshots yet: `snapkit create` makes one
    --- exit 1
    ");
    env.sample();
    assert!(env.run(["create", "-q", "data", "--stack-name", "shop"]).is_success());
    env.set("SNAPKIT_HOST", "new");
    assert_snapshot!(env.run(["restore", "latest"]), @"
    --- stderr
    error: there is no snapshot latest (among=any stack, host new, set full)
    hint: there are snapshots of shop@box (set full); choose with --stack-name, --host, --any-host and --set
    --- exit 1
    ");
    assert!(env.run(["show", "latest", "--any-host"]).is_success());
    env.write("work/snapkit.toml", "name = 'web'\n[sources.a]\nkind = 'files'\npaths = ['x']\n");
    assert_snapshot!(env.run(["show", "latest", "--any-host"]), @"
    --- stderr
    error: there is no snapshot latest (among=stack web, any host, set full)
    hint: there are snapshots of shop@box (set full); choose with --stack-name, --host, --any-host and --set
    --- exit 1
    ");
}

#[test]
fn what_names_no_snapshot_is_said() {
    let env = with_three();
    assert_snapshot!(env.run(["show", "none"]), @r#"
    --- stderr
    error: there is no snapshot "none"
    hint: `snapkit list` shows the snapshots there are
    --- exit 1
    "#);
    assert_snapshot!(env.run(["show", "latest~9"]), @"
    --- stderr
    error: there is no snapshot latest~9 (among=any stack, host box, set full)
    hint: there are 2 snapshots among these; `snapkit list` shows all
    --- exit 1
    ");
    assert_snapshot!(env.run(["show", "latest", "--set", "data"]), @"
    --- stderr
    error: there is no snapshot latest (among=any stack, host box, set data)
    hint: there are snapshots of data-[HEX]@box (set full), data-[HEX]@other (set full), shop@box (set full); choose with --stack-name, --host, --any-host and --set
    --- exit 1
    ");
    assert_snapshot!(env.run(["show", "@1999-01-01"]), @"
    --- stderr
    error: there is no snapshot of 1999-01-01 or before (among=any stack, host box, set full)
    hint: there are 2 snapshots among these; `snapkit list` shows all
    --- exit 1
    ");
    assert_snapshot!(env.run(["show", "@yesterday"]), @r#"
    --- stderr
    error: not a time such as 2026-01-15T14:30Z: "yesterday"
    --- exit 2
    "#);
    assert_snapshot!(env.run(["show", "@2026-11-21 06:48"]), @"
    --- stderr
    error: there is no snapshot of 2026-11-21 06:48 or before (among=any stack, host box, set full)
    hint: there are 2 snapshots among these; `snapkit list` shows all
    --- exit 1
    ");
    assert_snapshot!(env.run(["show", "first:files"]), @"
    --- stderr
    error: a whole snapshot is shown: name it without a source (given=first:files)
    --- exit 2
    ");
    assert_snapshot!(env.run(["show", ""]), @"
    --- stderr
    error: a snapshot must be named: SNAPSHOT[:SOURCE[/ARTIFACT[/PATH]]] (given=)
    --- exit 2
    ");
    let ambiguous = env.run(["show", "20"]);
    assert_eq!(ambiguous.code(), Some(2), "{ambiguous}");
    assert!(ambiguous.stderr.contains("is not unique"), "{ambiguous}");
}
