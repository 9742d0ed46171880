//! Hooks, probes, and runs that meet.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use insta::assert_snapshot;
use snapkit_core::context::{Environment as _, System};

use crate::support::TestEnv;

/// A stack of one tree whose hooks write down when they ran, and with what.
fn stack(more: &str) -> TestEnv {
    let env = TestEnv::with_repository();
    env.sample();
    script(
        &env,
        "note",
        r#"echo "$SNAPKIT_MOMENT $SNAPKIT_OPERATION of $SNAPKIT_STACK_NAME ($SNAPKIT_SET)${SNAPKIT_VERDICT:+, $SNAPKIT_VERDICT}${SNAPKIT_REASON:+, $SNAPKIT_REASON}" >> log"#,
    );
    let text = format!(
        r#"
        name = "shop"
        [sources.files]
        kind = "files"
        paths = ["data"]
        [[hook]]
        on = ["before:freeze", "after:thaw", "before:restore", "after:restore", "failed", "finally"]
        run = ["./note"]
        {more}
        "#
    );
    env.write("work/snapkit.toml", text);
    env
}

fn script(env: &TestEnv, name: &str, text: &str) {
    let path = format!("work/{name}");
    env.write(&path, format!("#!/bin/sh\n{text}\n"));
    std::fs::set_permissions(env.path(path), std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn log(env: &TestEnv) -> String {
    let text = env.read("work/log");
    std::fs::remove_file(env.path("work/log")).unwrap();
    text
}

#[test]
fn hooks_run_around_a_create_and_a_restore() {
    let env = stack("");
    let created = env.run(["create", "-q"]);
    assert_snapshot!(created, @"--- exit 0");
    assert_snapshot!(log(&env), @"
    before:freeze create of shop (full)
    after:thaw create of shop (full)
    finally create of shop (full), complete
    ");
    std::fs::remove_dir_all(env.path("work/data")).unwrap();
    assert!(env.run(["restore", "latest", "-q"]).is_success());
    assert_snapshot!(log(&env), @"
    before:restore restore of shop (full)
    after:restore restore of shop (full), match
    finally restore of shop (full), match
    ");
    // Elsewhere nothing is to be stopped, and nothing is done in a dry run.
    assert!(env.run(["restore", "latest", "--target", "out"]).is_success());
    assert!(env.run(["create", "--dry-run"]).is_success());
    std::fs::remove_dir_all(env.path("work/data")).unwrap();
    assert!(env.run(["restore", "latest", "--no-hooks"]).is_success());
    assert!(!env.path("work/log").exists());
    assert!(env.run(["restore", "latest", "--target", "out2", "--hooks"]).is_success());
    assert_snapshot!(log(&env), @"
    before:restore restore of shop (full)
    after:restore restore of shop (full), match
    finally restore of shop (full), match
    ");
}

#[test]
fn what_a_hook_refuses_is_not_done() {
    let env = stack("[[hook]]\non = [\"before:freeze\", \"before:restore\"]\nrun = [\"./refuse\"]");
    script(&env, "refuse", "echo the application is busy >&2; exit 3");
    assert_snapshot!(env.run(["create"]), @"
    --- stderr
    hook before:freeze: the application is busy
    error: hook before:freeze failed: exit status: 3 (program=./refuse, said=the application is busy)
    --- exit 1
    ");
    assert_snapshot!(log(&env), @"
    before:freeze create of shop (full)
    after:thaw create of shop (full), hook-failed
    failed create of shop (full), hook-failed
    finally create of shop (full), hook-failed
    ");
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    there are no snapshots
    --- exit 0
    ");
    script(&env, "refuse", "echo come back later; exit 75");
    assert_snapshot!(env.run(["create", "-q"]), @"
    --- stderr
    error: hook before:freeze asks to try again later (program=./refuse, said=come back later)
    --- exit 75
    ");
    // That is no failure.
    assert_snapshot!(log(&env), @"
    before:freeze create of shop (full)
    after:thaw create of shop (full), not-now
    finally create of shop (full), not-now
    ");
    script(&env, "refuse", "true");
    assert!(env.run(["create"]).is_success());
    script(&env, "refuse", "exit 1");
    env.write("work/data/a.txt", "newer\n");
    assert_snapshot!(env.run(["restore", "latest", "--overwrite"]), @"
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    error: hook before:restore failed: exit status: 1 (program=./refuse)
    --- exit 1
    ");
    assert_eq!(env.read("work/data/a.txt"), "newer\n");
}

#[test]
fn a_hook_that_fails_afterwards_is_told_and_the_snapshot_stands() {
    let env = stack("[[hook]]\non = \"after:thaw\"\nrun = [\"./refuse\"]");
    script(&env, "refuse", "echo still in maintenance; exit 1");
    assert_snapshot!(env.run(["create"]), @"
    --- stdout
    [SNAPSHOT]
    --- stderr
    hook after:thaw: still in maintenance
    complete: 10 B in [DURATION]
      files (files): 1 artifact, 8 entries, 10 B
      read [SIZES]
    error: hook after:thaw failed: exit status: 1 (program=./refuse, said=still in maintenance)
    --- exit 1
    ");
    assert!(env.run(["show", "latest"]).is_success());
    // Nothing is to be tried later any more.
    script(&env, "refuse", "exit 75");
    assert_eq!(env.run(["create", "-q"]).code(), Some(1));
}

#[test]
fn a_hook_that_hangs_is_ended_with_all_that_it_started() {
    let env = stack("[[hook]]\non = \"before:freeze\"\nrun = [\"./hang\"]\ntimeout = \"1s\"");
    script(&env, "hang", "sleep 1234 &\necho $! > child\nwait");
    let clock = System::new();
    assert_snapshot!(env.run(["create", "-q"]), @"
    --- stderr
    error: hook before:freeze did not end within 1s and was ended (program=./hang)
    --- exit 1
    ");
    assert!(clock.monotonic() < Duration::from_secs(8));
    let child = env.read("work/child");
    let alive = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
    assert!(alive.is_err() || alive.is_ok_and(|stat| stat.contains(") Z ")), "{child}");
    assert!(log(&env).contains("failed create"));
}

#[test]
fn a_service_that_a_hook_starts_lives_on() {
    let env = stack("[[hook]]\non = \"after:thaw\"\nrun = [\"./start\"]");
    script(&env, "start", "sleep 30 &\necho $! > child\necho started");
    let clock = System::new();
    assert!(env.run(["create", "-q"]).is_success());
    assert!(clock.monotonic() < Duration::from_secs(10));
    let child = env.read("work/child");
    assert!(std::path::Path::new("/proc").join(child.trim()).exists());
    let kill = std::process::Command::new("kill").arg(child.trim()).status();
    assert!(kill.unwrap().success());
}

#[test]
fn hooks_get_no_passphrase() {
    let mut env = stack("[[hook]]\non = \"finally\"\nrun = [\"./env\"]");
    script(&env, "env", "env > seen");
    env.set("SNAPKIT_PASSPHRASE", "hunter2");
    env.write("work/vars", "OF_FILE=yes\n");
    assert!(env.run(["create", "-q", "--env-file", "vars"]).is_success());
    let seen = env.read("work/seen");
    assert!(!seen.contains("hunter2") && !seen.contains("MALLOC_ARENA_MAX"), "{seen}");
    assert!(seen.contains("OF_FILE=yes") && seen.contains("SNAPKIT_SNAPSHOT=2"), "{seen}");
}

#[test]
fn probes_count_in_the_verdict() {
    let env = stack(
        "[[probe]]\nname = \"there\"\nrun = [\"test\", \"-f\", \"data/a.txt\"]\n\
         [[probe]]\nrun = [\"./works\"]\nwithin = \"1s\"",
    );
    script(&env, "works", "echo no such table; exit 1");
    assert!(env.run(["create", "-q"]).is_success());
    std::fs::remove_dir_all(env.path("work/data")).unwrap();
    assert_snapshot!(env.run(["restore", "latest"]), @"
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/data
    probe there: passed
    probe ./works: failed: exit status: 1 (said=no such table)
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    probe ./works: no such table
    probe ./works: no such table
    differs in [DURATION]
    --- exit 4
    ");
    script(&env, "works", "true");
    std::fs::remove_dir_all(env.path("work/data")).unwrap();
    assert_snapshot!(env.run(["restore", "latest", "-q"]), @"--- exit 0");
}

/// What keeps a restore from beginning is told while there is time to mend it, and what differed is remembered.
#[test]
fn probes_are_looked_at_early_and_remembered() {
    let env = stack("[[probe]]\nname = \"works\"\nrun = [\"false\"]\nwithin = \"0s\"");
    assert!(env.run(["create", "-q"]).is_success());
    std::fs::remove_dir_all(env.path("work/data")).unwrap();
    assert_eq!(env.run(["restore", "-q", "latest"]).code(), Some(4));
    let history = env.run(["history", "--command", "restore"]).text();
    assert!(history.contains("probe works failed: exit status: 1"), "{history}");
    let text = env.read("work/snapkit.toml").replace("run = [\"false\"]", "");
    env.write("work/snapkit.toml", text);
    assert_snapshot!(env.run(["create", "-q"]), @"
    --- stderr
    warning: a restore would be refused because of the stack file: a probe has either `run` or `http` (file=[DIR]/work/snapkit.toml:9)
    --- exit 0
    ");
}

#[cfg(feature = "http")]
#[test]
fn probes_ask_addresses() {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        // The service is starting when it is asked first.
        for answer in ["HTTP/1.1 503 Wait\r\n", "HTTP/1.1 200 Fine\r\n", "HTTP/1.1 200 Fine\r\n"] {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1000]).unwrap();
            let text = format!("{answer}content-length: 2\r\nconnection: close\r\n\r\nok");
            stream.write_all(text.as_bytes()).unwrap();
        }
    });
    let env = stack(&format!(
        "[[probe]]\nname = \"health\"\nhttp = \"http://{address}/health?key=hunter2\"\ncontains = \"ok\"\n"
    ));
    assert!(env.run(["create", "-q"]).is_success());
    std::fs::remove_dir_all(env.path("work/data")).unwrap();
    assert_snapshot!(env.run(["restore", "latest"]), @"
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/data
    probe health: passed
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    match in [DURATION]
    --- exit 0
    ");
    let text =
        env.read("work/snapkit.toml").replace("contains = \"ok\"", "status = 204\nwithin = \"0s\"");
    env.write("work/snapkit.toml", text);
    std::fs::remove_dir_all(env.path("work/data")).unwrap();
    let differs = env.run(["restore", "latest"]);
    assert_snapshot!(differs, @"
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/data
    probe health: failed: the answer has status 200
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    differs in [DURATION]
    --- exit 4
    ");
    serving.join().unwrap();
    std::fs::remove_dir_all(env.path("work/data")).unwrap();
    let gone =
        env.run(["restore", "latest"]).to_string().replace(&address.to_string(), "[ADDRESS]");
    assert_snapshot!(gone, @"
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/data
    probe health: failed: the address does not answer: error sending request: client error (Connect): tcp connect error: Connection refused (os error 111)
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    differs in [DURATION]
    --- exit 4
    ");
    assert!(!format!("{differs}{gone}").contains("hunter2"));
}

#[cfg(feature = "http")]
#[test]
fn what_an_address_answers_is_looked_at() {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let mut slow = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1000];
            let len = stream.read(&mut request).unwrap();
            let asked = String::from_utf8_lossy(&request[..len]).into_owned();
            match asked.split(' ').nth(1) {
                Some("/slow") => slow.push(stream),
                Some("/stop") => break,
                _ => stream
                    .write_all(
                        b"HTTP/1.1 200 Fine\r\ncontent-length: 4\r\nconnection: close\r\n\r\nmeow",
                    )
                    .unwrap(),
            }
        }
    });
    let env = stack(&format!(
        "[[probe]]\nname = \"says\"\nhttp = \"http://{address}/\"\ncontains = \"woof\"\nwithin = \"0s\"\n\
         [[probe]]\nname = \"slow\"\nhttp = \"http://{address}/slow\"\ntimeout = \"200ms\"\nwithin = \"0s\"\n"
    ));
    assert!(env.run(["create", "-q"]).is_success());
    std::fs::remove_dir_all(env.path("work/data")).unwrap();
    assert_snapshot!(env.run(["restore", "latest"]), @r#"
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/data
    probe says: failed: the answer does not contain "woof"
    probe slow: failed: no answer within 200ms
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    differs in [DURATION]
    --- exit 4
    "#);
    let mut last = std::net::TcpStream::connect(address).unwrap();
    last.write_all(b"GET /stop HTTP/1.1\r\n\r\n").unwrap();
    serving.join().unwrap();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let env = stack("");
    let first = env.read("work/snapkit.toml");
    let mut all = String::new();
    for more in [
        "[[hook]]\non = \"before\"\nrun = [\"x\"]",
        "[[hook]]\non = \"failed\"",
        "[[hook]]\non = \"failed\"\nrun = []",
        "[[hook]]\non = []\nrun = [\"x\"]",
        "[[hook]]\non = \"failed\"\nrun = [\"x\"]\ntimeout = \"soon\"",
        "[[hook]]\non = \"failed\"\nrun = [\"x\"]\ntimeout = \"0s\"",
        "[[hook]]\non = \"failed\"\nruns = [\"x\"]",
        "[[probe]]\nname = \"x\"",
        "[[probe]]\nrun = [\"x\"]\nstatus = 200",
        "[[probe]]\nrun = []",
        "[[probe]]\nhttp = \"ftp://x\"",
        "[[probe]]\nhttp = \"http:///x\"",
        "[[probe]]\nhttp = \"http://me:hunter2@host/\"",
        "[probe]\nhttp = \"http://x\"",
    ] {
        env.write("work/snapkit.toml", format!("{first}{more}"));
        let checked = env.run(["config", "check"]);
        assert!(!checked.stderr.contains("hunter2"), "{checked}");
        all += &format!("=== {}\n{checked}\n", more.replace("hunter2", "[SECRET]"));
    }
    assert_snapshot!(all, @r#"
    === [[hook]]
    on = "before"
    run = ["x"]
    --- stderr
    error: `on`: there is no moment "before"; moments are "before:freeze", "after:thaw", "before:restore", "after:restore", "failed", "finally" (file=[DIR]/work/snapkit.toml:11)
    --- exit 2
    === [[hook]]
    on = "failed"
    --- stderr
    error: `on`: missing field `run` (file=[DIR]/work/snapkit.toml:11)
    --- exit 2
    === [[hook]]
    on = "failed"
    run = []
    --- stderr
    error: `run` names no program (file=[DIR]/work/snapkit.toml:12)
    --- exit 2
    === [[hook]]
    on = []
    run = ["x"]
    --- stderr
    error: `on` names no moment (file=[DIR]/work/snapkit.toml:11)
    --- exit 2
    === [[hook]]
    on = "failed"
    run = ["x"]
    timeout = "soon"
    --- stderr
    error: `timeout`: not a duration such as 10s, 500ms or 2m: "soon" (file=[DIR]/work/snapkit.toml:13)
    --- exit 2
    === [[hook]]
    on = "failed"
    run = ["x"]
    timeout = "0s"
    --- stderr
    error: `timeout` must not be nothing: no program ends at once (file=[DIR]/work/snapkit.toml:13)
    --- exit 2
    === [[hook]]
    on = "failed"
    runs = ["x"]
    --- stderr
    error: unknown key `runs`; did you mean `run`? (file=[DIR]/work/snapkit.toml:12)
    --- exit 2
    === [[probe]]
    name = "x"
    --- stderr
    error: a probe has either `run` or `http` (file=[DIR]/work/snapkit.toml:10)
    --- exit 2
    === [[probe]]
    run = ["x"]
    status = 200
    --- stderr
    error: `status` and `contains` are for `http`, and this probe runs "x" (file=[DIR]/work/snapkit.toml:12)
    --- exit 2
    === [[probe]]
    run = []
    --- stderr
    error: `run` names no program (file=[DIR]/work/snapkit.toml:11)
    --- exit 2
    === [[probe]]
    http = "ftp://x"
    --- stderr
    error: `http`: write a URL such as http://127.0.0.1:8000/health (file=[DIR]/work/snapkit.toml:11)
    --- exit 2
    === [[probe]]
    http = "http:///x"
    --- stderr
    error: `http`: the URL names no host, or holds credentials (file=[DIR]/work/snapkit.toml:11)
    --- exit 2
    === [[probe]]
    http = "http://me:[SECRET]@host/"
    --- stderr
    error: `http`: the URL names no host, or holds credentials (file=[DIR]/work/snapkit.toml:11)
    --- exit 2
    === [probe]
    http = "http://x"
    --- stderr
    error: `probe` must be tables `[[probe]]` (file=[DIR]/work/snapkit.toml:10)
    --- exit 2
    "#);
}

/// Whoever wants to be told of a failure is told when there is no repository, no key, or no such snapshot.
#[test]
fn a_run_that_cannot_begin_is_told() {
    let mut env = stack("[[hook]]\non = \"failed\"\nrun = [\"./why\"]");
    script(&env, "why", "echo \"$SNAPKIT_ERROR ${SNAPKIT_SNAPSHOT:-without a snapshot}\" >> log");
    assert!(env.run(["create", "-q"]).is_success());
    std::fs::remove_file(env.path("work/log")).unwrap();
    std::fs::rename(env.path("repo"), env.path("away")).unwrap();
    assert_snapshot!(env.run(["create", "-q"]), @"
    --- stderr
    error: the repository that this machine knows at this place is not there (location=[DIR]/repo)
    hint: is its disk mounted? to make a new one in its place: `snapkit init --accept-new-repository`
    --- exit 10
    ");
    assert_snapshot!(log(&env), @"
    failed create of shop (full), no-repository
    the repository that this machine knows at this place is not there (location=[DIR]/repo) without a snapshot
    finally create of shop (full), no-repository
    ");
    assert!(!env.run(["create", "-q", "--dry-run"]).is_success());
    assert!(!env.run(["create", "-q", "data"]).is_success());
    assert!(!env.path("work/log").exists());
    std::fs::rename(env.path("away"), env.path("repo")).unwrap();
    assert_snapshot!(env.run(["restore", "nobody", "--overwrite"]), @r#"
    --- stderr
    error: there is no snapshot "nobody"
    hint: `snapkit list` shows the snapshots there are
    --- exit 1
    "#);
    assert_snapshot!(log(&env), @r#"
    failed restore of shop (full), no-snapshot
    there is no snapshot "nobody" without a snapshot
    finally restore of shop (full), no-snapshot
    "#);
    env.set("SNAPKIT_KEY_FILE", "/none");
    assert_snapshot!(env.run(["create", "-q"]), @"
    --- stderr
    error: the key file does not exist (path=/none)
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    ");
    assert_snapshot!(log(&env), @"
    failed create of shop (full), no-key
    the key file does not exist (path=/none) without a snapshot
    finally create of shop (full), no-key
    ");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let env = stack("[[hook]]\non = \"before:freeze\"\nrun = [\"./none\"]");
    env.write("work/plain", "x");
    assert_snapshot!(env.run(["create"]), @"
    --- stderr
    error: hook before:freeze cannot be started (program=./none): No such file or directory (os error 2)
    --- exit 1
    ");
    let text = env.read("work/snapkit.toml").replace("./none", "./plain");
    env.write("work/snapkit.toml", text);
    assert_snapshot!(env.run(["create"]), @"
    --- stderr
    error: hook before:freeze cannot be started (program=./plain): Permission denied (os error 13)
    --- exit 1
    ");
}

#[test]
fn two_runs_of_one_stack_do_not_meet() {
    let env = stack("[[hook]]\non = \"before:freeze\"\nrun = [\"./wait\"]\ntimeout = \"20s\"");
    script(&env, "wait", "touch waiting; while [ ! -e go ]; do sleep 0.05; done");
    assert!(env.run(["create", "-q", "data", "--stack-name", "shop"]).is_success());
    let mut first = env.command(["create", "-q"]).spawn().unwrap();
    let clock = System::new();
    while !env.path("work/waiting").exists() {
        assert!(clock.monotonic() < Duration::from_secs(20), "the first run does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = env.run(["create"]);
    // Wherever it goes.
    assert!(env.run(["init", "-q", "--repo", "other", "--key-file", "other.key"]).is_success());
    let third = env.run(["create", "--repo", "other", "--key-file", "other.key"]);
    assert_eq!(third.code(), Some(75), "{third}");
    // Nor is what is being read replaced.
    let restore = env.run(["restore", "latest", "--overwrite"]);
    assert_eq!(restore.code(), Some(75), "{restore}");
    let elsewhere = env.run(["restore", "-q", "latest", "--target", "out"]);
    assert!(elsewhere.is_success(), "{elsewhere}");
    env.write("work/go", "");
    assert!(first.wait().unwrap().success());
    let second = second.to_string().replace(&first.id().to_string(), "[PID]");
    assert_snapshot!(second, @"
    --- stderr
    error: another run of this stack is under way (stack=shop, by=process [PID] since [TIME])
    hint: try again when it has ended
    --- exit 75
    ");
    // Another stack may run beside it, and this one may run again.
    assert!(env.run(["create", "-q", "data"]).is_success());
    assert!(env.run(["create", "-q"]).is_success());
}

/// `timeout` sends its signal to the program and to its group: two that come together are one wish, and what is due is
/// done. A later one ends the program.
#[test]
fn two_signals_at_once_are_one() {
    for (pause, ends_well) in [(50, true), (700, false)] {
        let env = stack(
            "[[hook]]\non = \"before:freeze\"\nrun = [\"./wait\"]\n[[hook]]\non = \"finally\"\nrun = [\"./tidy\"]",
        );
        script(&env, "wait", "touch waiting; sleep 30");
        script(&env, "tidy", "touch tidying; sleep 1.2; touch tidied");
        let mut child =
            env.command(["create", "-q"]).stderr(std::process::Stdio::null()).spawn().unwrap();
        let clock = System::new();
        let wait = |name: &str| {
            while !env.path("work").join(name).exists() {
                assert!(clock.monotonic() < Duration::from_secs(20), "{name}");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        let signal = || {
            let id = child.id().to_string();
            assert!(
                std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success()
            );
        };
        wait("waiting");
        signal();
        std::thread::sleep(Duration::from_millis(pause));
        signal();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(env.path("work/tidied").exists(), ends_well, "{pause}");
    }
}
