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
    probe ./works: failed: it failed: exit status: 1 (said=no such table)
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
    assert_eq!(differs.code(), Some(4), "{differs}");
    assert!(
        differs.text().contains("probe health: failed: the answer has status 200"),
        "{differs}"
    );
    serving.join().unwrap();
    std::fs::remove_dir_all(env.path("work/data")).unwrap();
    let gone = env.run(["restore", "latest"]);
    assert!(gone.text().contains("the address does not answer"), "{gone}");
    assert!(!format!("{differs}{gone}").contains("hunter2"));
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (more, expected) in [
        ("[[hook]]\non = \"before\"\nrun = [\"x\"]", "there is no moment \"before\""),
        ("[[hook]]\non = \"failed\"", "missing field `run`"),
        ("[[hook]]\non = \"failed\"\nrun = []", "`run` names no program"),
        ("[[hook]]\non = []\nrun = [\"x\"]", "`on` names no moment"),
        ("[[hook]]\non = \"failed\"\nrun = [\"x\"]\ntimeout = \"soon\"", "`timeout`"),
        ("[[hook]]\non = \"failed\"\nrun = [\"x\"]\ntimeout = \"0s\"", "must not be nothing"),
        ("[[hook]]\non = \"failed\"\nruns = [\"x\"]", "runs"),
        ("[[probe]]\nname = \"x\"", "either `run` or `http`"),
        ("[[probe]]\nrun = [\"x\"]\nstatus = 200", "for `http`"),
        ("[[probe]]\nhttp = \"ftp://x\"", "write a URL such as"),
        ("[[probe]]\nhttp = \"http://me:hunter2@host/\"", "credentials"),
        ("[probe]\nhttp = \"http://x\"", "must be tables `[[probe]]`"),
    ] {
        let env = stack(more);
        let checked = env.run(["config", "check"]);
        assert_eq!(checked.code(), Some(2), "{more}: {checked}");
        assert!(checked.stderr.contains(expected), "{more}: {checked}");
        assert!(checked.stderr.contains("snapkit.toml:"), "{more}: {checked}");
        assert!(!checked.stderr.contains("hunter2"), "{checked}");
    }
}

#[test]
fn two_runs_of_one_stack_do_not_meet() {
    let env = stack("[[hook]]\non = \"before:freeze\"\nrun = [\"./wait\"]");
    script(&env, "wait", "touch waiting; while [ ! -e go ]; do sleep 0.05; done");
    assert!(env.run(["create", "-q", "data", "--stack-name", "shop"]).is_success());
    let mut first = env.command(["create", "-q"]).spawn().unwrap();
    let clock = System::new();
    while !env.path("work/waiting").exists() {
        assert!(clock.monotonic() < Duration::from_secs(20), "the first run does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = env.run(["create"]);
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
