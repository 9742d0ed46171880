//! What an operator asks every day: diff, find, stats, tag, history, doctor, config, completions.

use std::process::Stdio;
use std::time::Duration;

use insta::assert_snapshot;
use snapkit_core::context::{Environment as _, System};

use crate::support::TestEnv;

/// A stack of a tree and a database, captured, and changed since.
fn changed() -> TestEnv {
    let env = TestEnv::with_repository();
    env.sample();
    env.write("work/data/same.txt", "same\n");
    env.write("work/data/gone.txt", "gone\n");
    env.database("work/app.db", 2);
    let text = "name = \"shop\"\n[sources.app]\nkind = \"sqlite\"\npath = \"app.db\"\n\
                [sources.files]\nkind = \"files\"\npaths = [\"data\"]\n[sets]\nconfig = [\"files\"]\n";
    env.write("work/snapkit.toml", text);
    let created = env.run(["create", "-q", "--name", "old"]);
    assert!(created.is_success(), "{created}");
    env.write("work/data/a.txt", "other\n");
    env.write("work/data/new.txt", "new\n");
    std::fs::remove_file(env.path("work/data/gone.txt")).unwrap();
    std::fs::remove_file(env.path("work/data/link")).unwrap();
    env.write("work/data/link", "a file now");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(env.path("work/data/same.txt"), mode).unwrap();
    let db = rusqlite::Connection::open(env.path("work/app.db")).unwrap();
    db.execute_batch("INSERT INTO t VALUES (7)").unwrap();
    env
}

#[test]
fn what_differs_is_told() {
    let env = changed();
    let live = env.run(["diff", "old"]);
    assert_snapshot!(live, @"
    --- stdout
    M app/app.db: was 8.0 KiB, is 8.0 KiB, 8.0 KiB of it new
      pages was [HEX], is [HEX]
      rows.t was 2, is 3
    M files[DIR]/work/data/a.txt
    - files[DIR]/work/data/gone.txt
    T files[DIR]/work/data/link
    + files[DIR]/work/data/new.txt
    U files[DIR]/work/data/same.txt
    files/tree: 1 new, 1 gone, 3 changed
    --- exit 0
    ");
    // The live system has been read, and nothing was kept.
    assert_eq!(env.run(["list", "--json"]).json()["snapshots"].as_array().unwrap().len(), 1);
    assert!(env.run(["create", "-q", "--name", "new"]).is_success());
    let stored = env.run(["diff", "old", "new"]);
    assert_eq!(live.text(), stored.text());
    assert_snapshot!(env.run(["diff", "new"]), @"
    --- stderr
    app: 1 artifact is the same
    files: 1 artifact is the same
    nothing differs
    --- exit 0
    ");
    assert_eq!(env.run(["diff", "old", "new", "--exit-code"]).code(), Some(4));
    assert_eq!(env.run(["diff", "new", "--exit-code"]).code(), Some(0));
    assert_snapshot!(env.run(["diff", "old:files", "new", "--summary"]), @"
    --- stdout
    files/tree: 1 new, 1 gone, 3 changed
    --- exit 0
    ");
    let sub = format!("old:files/{}", env.in_tree("data/sub"));
    assert_snapshot!(env.run(["diff", &sub, "new"]), @"
    --- stderr
    files: 1 artifact is the same
    nothing differs
    --- exit 0
    ");
    let nowhere = format!("old:files/{}", env.in_tree("data/nowhere"));
    for args in [&["diff", &nowhere, "new"][..], &["diff", &nowhere]] {
        let missing = env.run(args);
        assert_eq!(missing.code(), Some(1), "{missing}");
        assert!(missing.stderr.contains("on either side"), "{missing}");
    }
    let json = env.run(["diff", "old:files", "new", "--json"]).json();
    assert_eq!(json[0]["change"], "content", "{json}");
    assert_eq!(json[5]["summary"][0]["artifacts"][0]["added"], 1, "{json}");
    // A file that looks unchanged but was touched is read, and is the same.
    let touched = std::fs::File::options().append(true).open(env.path("work/data/sub/b.bin"));
    touched.unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let attributes = env.run(["diff", "new:files"]);
    assert!(attributes.text().starts_with("U files/"), "{attributes}");
}

#[test]
fn sets_that_hold_other_sources_differ_by_them() {
    let env = changed();
    assert!(env.run(["create", "-q", "--set", "config", "--name", "conf"]).is_success());
    let differs = env.run(["diff", "old", "conf", "--summary"]);
    assert_snapshot!(differs, @"
    --- stdout
    - app (the whole source)
    files/tree: 1 new, 1 gone, 3 changed
    --- exit 0
    ");
}

#[test]
fn versions_are_found() {
    let env = changed();
    for name in ["second", "third"] {
        assert!(env.run(["create", "-q", "--name", name]).is_success());
    }
    assert_snapshot!(env.run(["find", "*.txt"]), @"
    --- stdout
    [HEX] … [HEX] (2)        6 B  [TIME]  files/tree[DIR]/work/data/a.txt
    [HEX]        6 B  [TIME]  files/tree[DIR]/work/data/a.txt
    [HEX]        5 B  [TIME]  files/tree[DIR]/work/data/gone.txt
    [HEX] … [HEX] (2)        4 B  [TIME]  files/tree[DIR]/work/data/new.txt
    [HEX] … [HEX] (2)        5 B  [TIME]  files/tree[DIR]/work/data/same.txt
    [HEX]        5 B  [TIME]  files/tree[DIR]/work/data/same.txt
    --- exit 0
    ");
    assert_snapshot!(env.run(["find", "APP.*", "-I"]), @"
    --- stdout
    [HEX] … [HEX] (2)    8.0 KiB                        app/app.db
    [HEX]    8.0 KiB                        app/app.db
    --- exit 0
    ");
    assert_snapshot!(env.run(["find", "nothing-*"]), @"
    --- stderr
    nothing in 3 snapshots matches
    --- exit 1
    ");
    let one = env.run(["find", "*/data/a.txt", "--last", "1"]);
    assert_eq!(one.code(), Some(1), "a glob with a slash is a whole path: {one}");
    let place = format!("/{}", env.in_tree("data/a.txt"));
    assert_eq!(env.run(["find", &place, "--json"]).json().as_array().unwrap().len(), 2);
    assert_eq!(env.run(["find", "["]).code(), Some(2));
}

#[test]
fn what_it_costs_is_told_by_source() {
    let env = changed();
    env.write_much("work/data/noise", 2);
    assert!(env.run(["create", "-q"]).is_success());
    let stats = env.run(["stats", "--json"]).json();
    let sources = stats["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 2);
    let files = &sources[1];
    assert_eq!((&files["source"], &files["snapshots"]), (&"files".into(), &2.into()));
    let of = |key: &str| files[key].as_u64().unwrap();
    assert!(of("new") > 2 << 20 && of("stored") > 2 << 20 && of("growth") > 2 << 20, "{files}");
    assert!(of("read") >= of("raw"), "{files}");
    assert!(stats["repository"]["packs"]["bytes"].as_u64().unwrap() > 2 << 20, "{stats}");
    let text = env.run(["stats"]);
    assert!(text.is_success() && text.text().contains("shop@box:files  2"), "{text}");
}

#[test]
fn tags_are_changed_beside_the_snapshot() {
    let env = TestEnv::with_snapshot();
    assert_snapshot!(env.run(["tag", "first", "ticket=17", "keep=yes"]), @"
    --- stdout
    keep=yes
    ticket=17
    --- exit 0
    ");
    assert_snapshot!(env.run(["tag", "first", "keep=no", "--remove", "ticket"]), @"
    --- stdout
    keep=no
    --- exit 0
    ");
    assert_snapshot!(env.run(["tag", "first"]), @"
    --- stdout
    keep=no
    --- exit 0
    ");
    let list = |tag: &str| env.run(["list", "--json", "--tag", tag]).json();
    assert_eq!(list("keep=no")["snapshots"].as_array().unwrap().len(), 1);
    assert_eq!(list("keep=yes")["snapshots"].as_array().unwrap().len(), 0);
    assert!(env.run(["show", "first"]).text().contains("tag      keep=no"));
    assert_snapshot!(env.run(["tag", "first", "--remove", "ticket"]), @"
    --- stderr
    error: the snapshot has no tag ticket (snapshot=[SNAPSHOT])
    --- exit 2
    ");
    assert_snapshot!(env.run(["tag", "first", "novalue"]), @r#"
    --- stderr
    error: a tag is KEY=VALUE, not "novalue"
    --- exit 2
    "#);
    assert_snapshot!(env.run(["tag", "first", "a=b", "--remove", "a"]), @"
    --- stderr
    error: the tag a is to be set and removed at once
    --- exit 2
    ");
    assert!(env.run(["verify", "--read-data"]).is_success());
    // A note that is damaged is named, and costs nothing else.
    let notes = env.files("repo/notes", "");
    assert_eq!(notes.len(), 2);
    let mut bytes = std::fs::read(&notes[1]).unwrap();
    bytes[150] ^= 1;
    std::fs::write(&notes[1], bytes).unwrap();
    let listed = env.run(["list"]);
    assert_eq!(listed.code(), Some(4), "{listed}");
    assert!(listed.stderr.contains("a change of a snapshot's tags is damaged"), "{listed}");
    let verified = env.run(["verify"]);
    assert_eq!(verified.code(), Some(4));
    assert!(verified.text().contains("damaged: notes/"), "{verified}");
    assert!(env.run(["restore", "first", "--target", "out"]).is_success());
}

#[test]
fn snapshots_are_filtered() {
    let env = changed();
    assert!(env.run(["create", "-q", "--set", "config", "--tag", "a=b"]).is_success());
    let count = |args: &[&str]| {
        let all = ["list", "--json"].into_iter().chain(args.iter().copied());
        env.run(all).json()["snapshots"].as_array().unwrap().len()
    };
    assert_eq!(count(&[]), 2);
    assert_eq!(count(&["--set", "config"]), 1);
    assert_eq!(count(&["--source", "app"]), 1);
    assert_eq!(count(&["--tag", "a"]), 1);
    assert_eq!(count(&["--verdict", "partial"]), 0);
    assert_eq!(count(&["--since", "2026-01-01"]), 2);
    assert_eq!(count(&["--until", "2026-01-01T12:00Z"]), 0);
    assert_eq!(count(&["--last", "1"]), 1);
    assert_eq!(env.run(["list", "--verdict", "good"]).code(), Some(2));
    assert_eq!(env.run(["list", "--since", "yesterday"]).code(), Some(2));
}

#[test]
fn runs_are_remembered() {
    let env = changed();
    assert_eq!(env.run(["restore", "old"]).code(), Some(11));
    assert!(env.run(["restore", "old", "--target", "out"]).is_success());
    std::fs::remove_file(env.path("work/app.db")).unwrap();
    assert_eq!(env.run(["create"]).code(), Some(1));
    let runs = env.run(["history", "--json"]).json();
    let told: Vec<_> = runs
        .as_array()
        .unwrap()
        .iter()
        .map(|r| format!("{} {} {} {}", r["command"], r["outcome"], r["exit"], r["reason"]))
        .collect();
    assert_snapshot!(told.join("\n"), @r#"
    "create" "failed" 1 "source-missing"
    "restore" "match" 0 null
    "restore" "failed" 11 "target-not-empty"
    "create" "complete" 0 null
    "#);
    let failed = env.run(["history", "--failed", "--command", "create"]);
    assert_eq!(failed.text().lines().count(), 2, "{failed}");
    assert_eq!(env.run(["history", "--command", "list"]).code(), Some(2));
}

/// A run that cannot say how it ended is remembered too.
#[test]
fn runs_that_were_killed_are_remembered() {
    let env = TestEnv::with_repository();
    let mut command = env.command(["create", "--stdin", "words"]);
    let mut run = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let clock = System::new();
    let told = loop {
        let told = env.run(["history"]);
        if told.to_string().contains("running") && told.to_string().contains("stdin-words") {
            break told;
        }
        assert!(clock.monotonic() < Duration::from_secs(20), "the run does not begin: {told}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_snapshot!(told, @"
    --- stdout
    TIME                  COMMAND  STACK        SNAPSHOT  OUTCOME  EXIT  TOOK  WHY
    [TIME]  create   stdin-words            running
    --- exit 0
    ");
    run.kill().unwrap();
    run.wait().unwrap();
    assert_snapshot!(env.run(["history", "--failed"]), @"
    --- stdout
    TIME                  COMMAND  STACK        SNAPSHOT  OUTCOME  EXIT  TOOK  WHY
    [TIME]  create   stdin-words            killed   137         it did not live to its end: killed, or the machine stopped
    --- exit 0
    ");
    // Once.
    assert_eq!(env.run(["history", "--failed"]).text().lines().count(), 2);
    // What has ended is told even if it cannot be told what goes on.
    let runs = env.path("home/.local/state/snapkit/runs");
    std::fs::remove_dir(&runs).unwrap();
    std::fs::write(&runs, "").unwrap();
    let told = env.run(["history", "--failed"]);
    assert!(told.is_success() && told.text().lines().count() == 2, "{told}");
    assert!(told.stderr.contains("warning: runs that go on"), "{told}");
}

#[test]
fn a_doctor_names_what_is_wrong() {
    let env = changed();
    let well = env.run(["doctor", "--max-age", "1h", "--max-growth", "10%"]);
    assert_snapshot!(well, @"
    --- stdout
    ok       local state: [DIR]/home/.local/state/snapkit, [SIZE] are free
    ok       cache: [DIR]/home/.cache/snapkit, [SIZE] are free
    ok       repository: [DIR]/repo, [SIZE] are free
    ok       repository: [HEX] at [DIR]/repo
    ok       create-only puts: honoured by the store, which `init` has tried
    ok       credential: full: it can add and read
    ok       ledger: 1 snapshot
    ok       shop@box (full): the newest snapshot is [DURATION] old, of [TIME], complete
    ok       stored data: [N] packs listed, and all of them there; `verify` examines what is in them
    ok       source app: sqlite, ready to be captured
    ok       source files: files, ready to be captured
    ok       last create: [TIME], complete
    ok       last restore: none is remembered here
    ok       last verify: none is remembered here
    --- stderr
    nothing is wrong
    --- exit 0
    ");
    assert_snapshot!(env.run(["doctor", "-q"]), @"--- exit 0");
    std::fs::remove_file(env.path("work/app.db")).unwrap();
    std::fs::remove_dir_all(env.path("work/data/sub")).unwrap();
    let text =
        env.read("work/snapkit.toml") + "[[hook]]\non = \"failed\"\nrun = [\"no-such-program\"]\n";
    env.write("work/snapkit.toml", text);
    assert_snapshot!(env.run(["doctor", "-q", "--max-age", "0s"]), @"
    --- stdout
    problem  shop@box (full): the newest snapshot is [DURATION] old, of [TIME], complete; it must not be older than [DURATION]
    problem  program: no-such-program is not found
    problem  source app: there is no database; check its path (path=[DIR]/work/app.db)
    --- exit 4
    ");
    let json = env.run(["doctor", "--json", "--no-sources"]).json();
    assert!(
        json.as_array().unwrap().iter().all(|f| f["state"] != "problem" || f["what"] == "program")
    );
    // Half of it is gone: somebody should look.
    let env = TestEnv::with_large_file();
    std::fs::remove_file(env.path("work/data/sub/b.bin")).unwrap();
    assert!(env.run(["create", "-q", "data"]).is_success());
    let shrunk = env.run(["doctor", "--max-growth", "50%"]);
    assert_snapshot!(shrunk, @"
    --- stdout
    ok       local state: /tmp/[RANDOM]/home/.local/state/snapkit, [SIZE] are free
    ok       cache: /tmp/[RANDOM]/home/.cache/snapkit, [SIZE] are free
    ok       repository: /tmp/[RANDOM]/repo, [SIZE] are free
    ok       repository: [HEX] at /tmp/[RANDOM]/repo
    ok       create-only puts: honoured by the store, which `init` has tried
    ok       credential: full: it can add and read
    ok       ledger: 3 snapshots
    ok       data-[HEX]@box (full): the newest snapshot is [DURATION] old, of [TIME], complete
    problem  data-[HEX]@box (full): it holds 6 B, the one before it 781.3 KiB: -99 %
    ok       stored data: [N] packs listed, and all of them there; `verify` examines what is in them
    ok       last create: [TIME], complete
    ok       last restore: none is remembered here
    ok       last verify: none is remembered here
    --- stderr
    1 problem found
    --- exit 4
    ");
    assert_eq!(env.run(["doctor", "--max-growth", "much"]).code(), Some(2));
    std::fs::remove_dir_all(env.path("repo")).unwrap();
    let lost = env.run(["doctor"]);
    assert_snapshot!(lost, @"
    --- stdout
    ok       local state: /tmp/[RANDOM]/home/.local/state/snapkit, [SIZE] are free
    ok       cache: /tmp/[RANDOM]/home/.cache/snapkit, [SIZE] are free
    problem  repository: the repository that this machine knows at this place is not there (location=/tmp/[RANDOM]/repo); is its disk mounted? to make a new one in its place: `snapkit init --accept-new-repository`
    ok       last create: [TIME], complete
    ok       last restore: none is remembered here
    ok       last verify: none is remembered here
    --- stderr
    1 problem found
    --- exit 4
    ");
}

/// A restore that was refused did nothing, a set has its own schedule, and a warning is no all-clear.
#[test]
fn a_doctor_judges_what_counts() {
    let env = changed();
    assert_eq!(env.run(["restore", "latest"]).code(), Some(11));
    assert_snapshot!(env.run(["doctor", "-q"]), @"--- exit 0");
    let made = env.run(["create", "-q", "--set", "config"]);
    assert!(made.is_success(), "{made}");
    for (set, expected) in [("full", 0), ("config", 0), ("other", 4)] {
        let doctor = env.run(["doctor", "-q", "--max-age", "1h", "--set", set]);
        assert_eq!(doctor.code(), Some(expected), "{doctor}");
    }
    std::fs::remove_file(env.path("work/app.db")).unwrap();
    assert!(!env.run(["create"]).is_success());
    let told = env.run(["doctor", "--no-sources"]).stderr;
    assert_eq!(told, "no problems, but 1 warning should be looked at\n");
    // A create that asks for another time has not been one.
    let text = env.read("work/snapkit.toml");
    let hook = "[[hook]]\non = \"before:freeze\"\nrun = [\"sh\", \"-c\", \"exit 75\"]\n";
    env.write("work/snapkit.toml", text + hook);
    env.database("work/app.db", 2);
    assert_eq!(env.run(["create"]).code(), Some(75));
    let told = env.run(["doctor", "--no-sources"]).text();
    assert!(told.contains("warning  last create") && told.contains("try again later"), "{told}");
}

#[test]
fn a_stack_file_is_checked_and_shown() {
    let mut env = changed();
    assert_snapshot!(env.run(["config", "check"]), @"
    --- stdout
    [DIR]/work/snapkit.toml: stack shop, 2 sources, 1 set, 0 hooks, 0 probes
    --- exit 0
    ");
    let text = env.read("work/snapkit.toml")
        + "[repo]\nurl = { env = \"PLACE\", default = \"/x\" }\nkey = { file = \"no.key\" }\n";
    env.write("work/snapkit.toml", text);
    env.set("PLACE", "hunter2");
    let shown = env.run(["config", "show"]);
    assert_snapshot!(shown, @r#"
    --- stdout
    name = "shop"
    repo.key = from file [DIR]/work/no.key (not there)
    repo.url = from variable PLACE (set)
    sets.config = ["files"]
    sources.app.kind = "sqlite"
    sources.app.path = "app.db"
    sources.files.kind = "files"
    sources.files.paths = ["data"]
    --- exit 0
    "#);
    assert_eq!(env.run(["config", "show", "--json"]).json()["repo"]["url"]["state"], "set");
    env.write(
        "work/snapkit.toml",
        "[sources.x]\nkind = \"files\"\npaths = [{ env = \"NOT_THERE\" }]\n",
    );
    assert_snapshot!(env.run(["config", "check"]), @"
    --- stderr
    error: the environment variable NOT_THERE is not set, and there is no default (file=[DIR]/work/snapkit.toml:3)
    --- exit 2
    ");
    std::fs::remove_file(env.path("work/snapkit.toml")).unwrap();
    assert_snapshot!(env.run(["config", "check"]), @"
    --- stderr
    error: there is no stack file: name one with --stack, or make a snapkit.toml here
    --- exit 2
    ");
}

#[test]
fn shells_and_man_learn_the_arguments() {
    let env = TestEnv::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = env.run(["completions", shell]);
        assert!(script.is_success() && script.text().contains("restore"), "{script}");
    }
    let pages = env.path("pages");
    std::fs::create_dir(&pages).unwrap();
    let made = env.run(["man", pages.to_str().unwrap()]);
    assert_snapshot!(made, @"
    --- stderr
    19 pages in [DIR]/pages
    --- exit 0
    ");
    let page = env.read("pages/snapkit-restore.1");
    assert!(page.contains(".TH") && page.contains("overwrite"), "{page}");
    assert!(page.contains("key\\-file"), "what all commands have is there: {page}");
    assert_snapshot!(env.run(["man", "nowhere"]), @"
    --- stderr
    error: cannot write nowhere/snapkit.1
      caused by: No such file or directory (os error 2)
    --- exit 1
    ");
}

#[test]
fn paths_come_from_a_list() {
    let env = TestEnv::with_repository();
    env.sample();
    env.write("work/list", "data/a.txt\n\ndata/sub\n");
    assert!(env.run(["create", "-q", "--files-from", "list", "--name", "x"]).is_success());
    let listed = env.run(["ls", "-R", "x"]).text();
    assert!(
        listed.contains("a.txt") && listed.contains("b.bin") && !listed.contains("link"),
        "{listed}"
    );
    env.write("work/list", b"data/a.txt\0data/sub\0");
    let mut command = env.command(["create", "-q", "--files-from", "-", "--name", "y"]);
    let list = std::fs::File::open(env.path("work/list")).unwrap();
    assert!(command.stdin(list).status().unwrap().success());
    assert!(env.run(["ls", "-R", "y"]).text().contains("b.bin"));
    env.write("work/list", "\n");
    assert_snapshot!(env.run(["create", "--files-from", "list"]), @"
    --- stderr
    error: the list names no paths (file=list)
    --- exit 2
    ");
    // What `find` lists: a link beside what it leads to, and a text that is called like a database.
    env.write("work/mixed/text.db", "no database");
    env.write("work/mixed/file", "x");
    std::os::unix::fs::symlink("file", env.path("work/mixed/link")).unwrap();
    let list =
        std::process::Command::new("find").arg("mixed").current_dir(env.path("work")).output();
    env.write("work/found", list.unwrap().stdout);
    assert!(env.run(["create", "-q", "--files-from", "found", "--name", "mixed"]).is_success());
    let place = format!("mixed:files/tree/{}", env.in_tree("mixed"));
    assert_eq!(env.run(["ls", &place]).text(), "file\nlink\ntext.db\n");
    assert_eq!(env.run(["create", "--files-from", "gone"]).code(), Some(1));
    // What has gone since the list was made is not there to be captured; the rest is.
    env.write("work/list", "data/a.txt\ndata/gone\ndata/gone.db\n");
    assert_snapshot!(env.run(["create", "-q", "--files-from", "list"]), @"
    --- stderr
    warning: files: [DIR-IN-TREE]/work/data/gone: what is to be captured does not exist (path=[DIR]/work/data/gone)
    warning: files: [DIR-IN-TREE]/work/data/gone.db: what is to be captured does not exist (path=[DIR]/work/data/gone.db)
    warning: 2 things were not captured; `snapkit show [HEX]` lists them
    --- exit 3
    ");
    assert_snapshot!(env.run(["create", "-q", "data/a.txt", "data/gone"]), @"
    --- stderr
    error: there is nothing at this path (path=data/gone)
    --- exit 1
    ");
}

#[test]
fn standard_input_is_captured() {
    let env = TestEnv::with_repository();
    env.write("work/dump", "SELECT 1;\n");
    let pipe = |name: &str, file: &str| {
        let mut command = env.command(["create", "--stdin", name]);
        let input = std::fs::File::open(env.path(file)).unwrap();
        crate::support::CommandOutput::from(command.stdin(input).output().unwrap())
    };
    assert_snapshot!(pipe("shop.sql", "work/dump"), @"
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 10 B in [DURATION]
      shop.sql (stream): 1 artifact, 10 B
      read [SIZES]
    --- exit 0
    ");
    assert_eq!(env.run(["dump", "latest:shop.sql"]).text(), "SELECT 1;\n");
    assert_snapshot!(env.run(["restore", "latest", "--target", "out"]), @"
    --- stdout
    shop.sql (stream): match, 2 facts hold, 10 B to [DIR]/work/out/shop.sql
    --- stderr
    snapshot [SNAPSHOT] of stdin-shop.sql@box, [TIME]
    match in [DURATION]
    --- exit 0
    ");
    assert_eq!(env.read("work/out/shop.sql/shop.sql"), "SELECT 1;\n");
    assert_snapshot!(env.run(["restore", "latest"]), @"
    --- stderr
    snapshot [SNAPSHOT] of stdin-shop.sql@box, [TIME]
    error: a stream has no original place: restore it with --target, or have it with `snapkit dump` (source=shop.sql)
    --- exit 1
    ");
    assert!(env.run(["verify", "--read-data"]).is_success());
    env.write("work/empty", "");
    assert_snapshot!(pipe("shop.sql", "work/empty"), @"
    --- stderr
    error: the stream is empty: whatever should have written it has written nothing (artifact=shop.sql, source=shop.sql)
    --- exit 1
    ");
    assert_eq!(pipe("a/b", "work/dump").code(), Some(2));
    let both = env.run(["create", "--stdin", "x", "data"]);
    assert_eq!(both.code(), Some(2), "{both}");
}

#[test]
fn a_dry_run_keeps_nothing() {
    let env = changed();
    let before = env.files("repo", "").len();
    let state = env.files("home/.local/state", "");
    let dry = env.run(["create", "--dry-run"]);
    assert_snapshot!(dry, @"
    --- stderr
    it would be complete: 8.0 KiB in [DURATION]
      app (sqlite): 1 artifact, 8.0 KiB
      files (files): 1 artifact, 10 entries, 29 B
      read [SIZES]
      the cut is [DURATION] wide
    nothing was kept
    --- exit 0
    ");
    assert_eq!(env.files("repo", "").len(), before);
    assert_eq!(env.files("home/.local/state", ""), state);
    assert_eq!(env.run(["create", "--dry-run", "--json"]).json()["dry_run"], true);
}

#[test]
fn digests_are_those_of_sha256sum() {
    let env = TestEnv::with_repository();
    env.database("work/app.db", 5);
    assert!(env.run(["create", "-q", "--sha256", "app.db"]).is_success());
    env.write("work/dumped", env.run(["dump", "latest:app"]).stdout);
    let sum = env.through("sha256sum", ["dumped"]).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    let digest = sum.split(' ').next().unwrap();
    let shown = env.run(["show", "latest"]).text();
    assert!(shown.contains(&format!("sha256 app.db = {digest}")), "{shown}");
    // What is read again without being asked for one has none.
    assert!(env.run(["create", "-q", "--read-all", "app.db"]).is_success());
    assert!(!env.run(["show", "latest"]).text().contains("sha256"));
}

/// A variable that is not set must not leave out everything.
#[test]
fn an_empty_pattern_matches_nothing() {
    let env = TestEnv::with_repository();
    env.sample();
    for pattern in ["", "/", "!"] {
        assert!(env.run(["create", "-q", "data", "--exclude", pattern]).is_success());
        assert!(env.run(["ls", "-R", "latest"]).text().contains("b.bin"), "{pattern:?}");
    }
    assert_eq!(env.run(["find", ""]).code(), Some(2));
    assert_eq!(env.run(["restore", "latest", "--target", "out", "--include", ""]).code(), Some(2));
}

#[test]
fn what_cannot_be_looked_into_is_not_gone() {
    use std::os::unix::fs::PermissionsExt as _;
    let env = TestEnv::with_repository();
    env.sample();
    assert!(env.run_as_nobody(&["create", "-q", "data", "--name", "x"]).is_success());
    let closed = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(env.path("work/data/sub"), closed).unwrap();
    let live = env.run_as_nobody(&["diff", "x"]);
    assert_eq!(live.code(), Some(3), "{live}");
    assert!(!live.text().contains("- files/") && live.stderr.contains("sub"), "{live}");
    assert_eq!(env.run_as_nobody(&["create", "-q", "data", "--name", "y"]).code(), Some(3));
    let stored = env.run_as_nobody(&["diff", "x", "y"]);
    assert!(stored.stderr.contains("is partial"), "{stored}");
}

/// As cron starts it: with next to nothing in its environment, and from another directory.
#[test]
fn it_runs_from_cron() {
    let env = changed();
    let (home, stack) = (env.path("home"), env.path("work/snapkit.toml"));
    let run = |args: &str| {
        let program = env!("CARGO_BIN_EXE_snapkit");
        let line =
            format!("{program} -s {} -r {} {args}", stack.display(), env.path("repo").display());
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", &line]).env_clear().current_dir("/").stdin(Stdio::null());
        command.env("HOME", &home).env("SHELL", "/bin/sh").env("PATH", "/usr/bin:/bin");
        command.env("LOGNAME", "root").env("SNAPKIT_HOST", "box");
        crate::support::CommandOutput::from(command.output().unwrap())
    };
    assert_snapshot!(run("create -q"), @"--- exit 0");
    assert_snapshot!(run("verify -q"), @"--- exit 0");
    assert_snapshot!(run("doctor -q --max-age 26h"), @"--- exit 0");
    assert_snapshot!(run("create -q --set nothing"), @"
    --- stderr
    error: there is no set `nothing`; sets are: config, full (file=[DIR]/work/snapkit.toml)
    --- exit 2
    ");
    std::fs::remove_file(env.path("work/app.db")).unwrap();
    assert_snapshot!(run("create -q"), @"
    --- stderr
    error: there is no database; check its path (path=[DIR]/work/app.db, source=app)
    --- exit 1
    ");
}
