//! Signals, pipes, environments, and arguments in general.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use insta::assert_snapshot;
use snapkit_core::context::{Environment as _, System};

use crate::support::{CommandOutput, TestEnv};

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let env = TestEnv::new();
    assert_snapshot!(env.run(["crate"]), @"
    --- stderr
    error: unrecognized subcommand 'crate'

      tip: a similar subcommand exists: 'create'

    Usage: snapkit [OPTIONS] <COMMAND>

    For more information, try '--help'.
    --- exit 2
    ");
    assert_snapshot!(env.run(["list", "-q", "-v"]), @"
    --- stderr
    error: the argument '--quiet' cannot be used with '--verbose...'

    Usage: snapkit list --quiet

    For more information, try '--help'.
    --- exit 2
    ");
    assert!(env.run(["--version"]).text().starts_with("snapkit "));
}

/// As under cron: no HOME, no PATH, nothing.
#[test]
fn an_empty_environment_is_enough() {
    let mut env = TestEnv::with_snapshot();
    let key = env.files("home/.config", ".key").remove(0);
    for name in ["HOME", "PATH", "SNAPKIT_HOST", "SNAPKIT_REPO"] {
        env.unset(name);
    }
    let places = ["--cache-dir", "c", "--state-dir", "s", "-r", "../repo", "--key-file"];
    let args = places.iter().copied().chain([key.to_str().unwrap()]);
    assert!(env.run(args.clone().chain(["create", "-q", "data"])).is_success());
    let restored = env.run(args.chain(["restore", "-q", "latest", "--target", "out"]));
    assert!(restored.is_success(), "{restored}");
}

#[test]
fn a_user_without_a_home_is_told_what_to_give() {
    if !crate::support::is_root() {
        return;
    }
    let mut env = TestEnv::with_repository();
    env.unset("HOME");
    // Nobody's home does not exist or is not writable; a number that no user has has none at all.
    let program = env.program();
    open_to_all(&env);
    let who = ["--reuid", "54321", "--regid", "54321", "--clear-groups", "--"];
    let args = who.iter().copied().chain([program.to_str().unwrap(), "list"]);
    let listed: CommandOutput = env.through("setpriv", args).output().unwrap().into();
    assert_snapshot!(listed, @"
    --- stderr
    error: there is no home directory for caches: name a directory with --cache-dir or SNAPKIT_CACHE_DIR
    --- exit 2
    ");
}

fn open_to_all(env: &TestEnv) {
    use std::os::unix::fs::PermissionsExt as _;
    for path in ["", "work"] {
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(env.path(path), mode).unwrap();
    }
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap();
    assert!(sent.success());
}

/// Wait so long for the end, in steps of 10 ms.
fn ends_within(child: &mut Child, limit: Duration) -> Option<i32> {
    for _ in 0..limit.as_millis() / 10 {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    None
}

#[test]
fn a_signal_ends_a_create_and_the_next_one_works() {
    let env = TestEnv::with_repository();
    env.write_much("work/data/big", 512);
    for name in ["INT", "TERM"] {
        let packs = env.files("repo/packs", "").len();
        let mut child = env
            .command(["create", "data"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Under way as soon as content arrives in the repository.
        for _ in 0..1000 {
            if env.files("repo/packs", "").len() > packs || child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be stopped");
        signal(&child, name);
        assert_eq!(ends_within(&mut child, Duration::from_secs(2)), Some(130), "{name}");
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains("error: cancelled"), "{said}");
        let mut printed = String::new();
        child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        assert_eq!(printed, "");
    }
    let created = env.run(["create", "--json", "data", "--name", "x"]);
    assert!(created.is_success(), "{created}");
    assert_eq!(created.json()["snapshot"]["verdict"], "complete");
    for line in created.stderr.lines() {
        let told: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(told["progress"]["bytes"].is_u64(), "{line}");
    }
    let restored = env.run(["restore", "-q", "x", "--target", "out"]);
    assert!(restored.is_success(), "{restored}");
    assert!(env.run(["verify", "-q"]).is_success());
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let env = TestEnv::with_repository();
    for i in 0..3000 {
        env.write(&format!("work/data/a-rather-long-name-for-a-file-{i}"), "x");
    }
    assert!(env.run(["create", "-q", "data", "--name", "x"]).is_success());
    let mut child = env
        .command(["ls", "-R", "x"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(ends_within(&mut child, Duration::from_secs(20)), Some(0));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

/// A full pipe that nobody empties must not keep a signal from being heard.
#[test]
fn a_signal_is_heard_while_nobody_reads() {
    let env = TestEnv::with_repository();
    env.write("work/data/big", vec![b'x'; 4 << 20]);
    assert!(env.run(["create", "-q", "data", "--name", "x"]).is_success());
    let place = format!("x:files/tree/{}", env.in_tree("data/big"));
    let mut child =
        env.command(["dump", &place]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "the pipe should be full");
    signal(&child, "TERM");
    assert_eq!(ends_within(&mut child, Duration::from_secs(2)), Some(130));

    // A list is written while it is made: then the grace runs out.
    for i in 0..3000 {
        env.write(&format!("work/data/a-rather-long-name-for-a-file-{i}"), "x");
    }
    assert!(env.run(["create", "-q", "data", "--name", "y"]).is_success());
    let mut child = env
        .command(["ls", "-R", "y"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "the pipe should be full");
    signal(&child, "INT");
    assert_eq!(ends_within(&mut child, Duration::from_secs(10)), Some(130));
}

/// What hangs while the program ends is left behind by a second signal.
#[test]
fn a_second_signal_ends_at_once() {
    let mut env = TestEnv::with_repository();
    env.set(
        "SNAPKIT_PASSPHRASE_COMMAND",
        "kill -s INT $PPID; sleep 1; kill -s INT $PPID; sleep 20",
    );
    let mut child = env.command(["list"]).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(ends_within(&mut child, Duration::from_secs(10)), Some(130));
}

/// Whoever sends nothing does not keep a run from ending when it is asked to.
#[test]
fn input_that_does_not_come_is_not_waited_for() {
    let env = TestEnv::with_repository();
    for args in [&["create", "--files-from", "-"][..], &["create", "--stdin", "words"]] {
        let mut command = env.command(args);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let clock = System::new();
        while !env.run(["history"]).to_string().contains("running") {
            assert!(clock.monotonic() < Duration::from_secs(20), "the run does not begin");
            std::thread::sleep(Duration::from_millis(20));
        }
        signal(&child, "TERM");
        assert_eq!(ends_within(&mut child, Duration::from_secs(10)), Some(130), "{args:?}");
    }
}

#[test]
fn a_disk_that_is_full_is_a_failure() {
    let env = TestEnv::with_snapshot();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let child = env.command(["list"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_snapshot!(said, @"
    error: cannot write to standard output
      caused by: No space left on device (os error 28)
    ");
    assert_eq!(ended.status.code(), Some(1));
}

/// What was stored is stored, and a script that lost the answer is told which snapshot it is.
#[test]
fn a_snapshot_whose_answer_is_lost_is_named() {
    let env = TestEnv::with_snapshot();
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = CommandOutput::from(
        env.command(["create", "data"]).stdout(full()).stderr(Stdio::piped()).output().unwrap(),
    );
    assert_snapshot!(output, @"
    --- stderr
    complete: 10 B in [DURATION]
      files (files): 1 artifact, 8 entries, 10 B
      read [SIZES]
    error: cannot write to standard output, but the snapshot is stored (snapshot=[SNAPSHOT])
      caused by: No space left on device (os error 28)
    --- exit 1
    ");
    let output = CommandOutput::from(
        env.command(["--help"]).stdout(full()).stderr(Stdio::piped()).output().unwrap(),
    );
    assert_snapshot!(output, @"
    --- stderr
    error: cannot write to standard output
      caused by: No space left on device (os error 28)
    --- exit 1
    ");
}

/// Services often have no HOME, and users that own nothing a home that is not there.
#[test]
fn without_a_home_it_is_said_what_to_name() {
    if !crate::support::is_root() {
        return;
    }
    let mut env = TestEnv::new();
    env.unset("HOME");
    assert_snapshot!(env.run_as_nobody(&["init"]), @"
    --- stderr
    error: cannot write the key file /nonexistent/.config/snapkit/.new-[HEX].key
      caused by: Permission denied (os error 13)
    hint: set HOME to a directory that you may write to, or name directories with --state-dir and --cache-dir, and a key file with --key-file
    --- exit 1
    ");
}

#[test]
fn what_is_done_can_be_logged() {
    let mut env = TestEnv::with_snapshot();
    env.set("SNAPKIT_LOG", "snapkit_core=nonsense");
    let listed = env.run(["list"]);
    assert_eq!(listed.code(), Some(2), "{listed}");
    env.unset("SNAPKIT_LOG");
    assert!(env.run(["list", "-vv"]).is_success());
}

/// The first signal is answered at once.
#[test]
fn a_signal_is_answered() {
    let env = TestEnv::with_repository();
    let mut command = env.command(["create", "--stdin", "dump.sql"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A stream that goes on, but not for ever: it is the signal that ends the run.
    let writer = child.stdin.take();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(60));
        drop(writer);
    });
    // It has begun when its session is there.
    let clock = System::new();
    while env.files("repo/sessions", "").is_empty() {
        assert!(clock.monotonic() < Duration::from_secs(20), "it does not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    signal(&child, "TERM");
    let told = CommandOutput::from(child.wait_with_output().unwrap()).to_string();
    // What it was doing just then is said, too.
    assert_snapshot!(told.replace(" (artifact=dump.sql, source=dump.sql)", ""), @"
    --- stderr
    stopping; a second signal ends at once
    error: cancelled
    --- exit 130
    ");
}

/// Content that is cut is not what was asked for: a pipeline must not take it for that.
#[test]
fn content_that_nobody_reads_to_its_end_is_an_error() {
    let env = TestEnv::with_large_file();
    let place = format!("first:files/tree/{}", env.in_tree("data/sub/b.bin"));
    let mut child = env
        .command(["dump", &place])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 10]).unwrap();
    let told: CommandOutput = child.wait_with_output().unwrap().into();
    assert_snapshot!(told, @"
    --- stderr
    error: standard output was closed before all was written to it
    --- exit 1
    ");
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let told = env.command(["dump", &place]).stdout(full).output().unwrap();
    assert_snapshot!(CommandOutput::from(told), @"
    --- stderr
    error: cannot write to standard output
      caused by: No space left on device (os error 28)
    --- exit 1
    ");
}

/// An error that cannot be told as a document where it belongs is told elsewhere.
#[test]
fn a_document_that_cannot_be_written_is_not_lost() {
    let env = TestEnv::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let told = env.command(["--json", "list"]).stdout(full).output().unwrap();
    assert_snapshot!(CommandOutput::from(told), @r#"
    --- stderr
    {"error":{"causes":["No such file or directory (os error 2)"],"context":{"path":"[DIR]/repo"},"hint":"create one with `snapkit init`, or check the path or URL","kind":"not-found","message":"there is no such directory","reason":"no-repository"}}
    --- exit 10
    "#);
}

/// What somebody has put into a URL by mistake is not kept.
#[test]
fn credentials_in_a_url_are_not_remembered() {
    let env = TestEnv::with_repository();
    env.sample();
    let mut all = String::new();
    for url in
        ["s3://AKIA:hunter2@bucket/x", "file://me:hunter2@host/x", "https://me:hunter2@host/"]
    {
        all += &format!("{}\n", env.run(["create", "-r", url, "data"]));
    }
    all += &env.run(["history", "--all", "--json"]).text();
    assert!(!all.contains("hunter2"), "{all}");
    let text = "[sources.a]\nkind = \"files\"\npaths = [\"data\"]\n[[probe]]\nhttp = \"http://me:hunter2@host/\"\n";
    env.write("work/snapkit.toml", text);
    let shown = env.run(["config", "show"]);
    assert!(
        shown.text().contains("http://…@host/") && !shown.text().contains("hunter2"),
        "{shown}"
    );
    let history = env.read("home/.local/state/snapkit/history");
    assert!(history.contains("s3://…@bucket/x") && !history.contains("hunter2"), "{history}");
}
