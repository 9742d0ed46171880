//! Where keys come from.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use insta::assert_snapshot;

use crate::support::TestEnv;

fn locked_by_passphrase() -> TestEnv {
    let mut env = TestEnv::new();
    env.set("SNAPKIT_PASSPHRASE", "correct horse");
    assert!(env.run(["init", "-q", "--passphrase"]).is_success());
    env.unset("SNAPKIT_PASSPHRASE");
    env
}

#[test]
fn without_a_key_nothing_opens() {
    let env = TestEnv::with_repository();
    fs::remove_file(&env.files("home/.config", ".key")[0]).unwrap();
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    error: no key file and no passphrase was given (looked_for=[DIR]/home/.config/snapkit/[HEX].key)
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    ");
}

#[test]
fn a_wrong_key_does_not_open() {
    let env = TestEnv::with_repository();
    assert!(env.run(["init", "-q", "-r", "other", "--key-file", "other.key"]).is_success());
    // The right one is tried as well.
    assert!(env.run(["list", "--key-file", "other.key"]).is_success());
    fs::remove_file(&env.files("home/.config", ".key")[0]).unwrap();
    assert_snapshot!(env.run(["list", "--key-file", "other.key"]), @"
    --- stderr
    error: no key that was given opens this repository (location=[DIR]/repo, repository=[HEX], tried=key file [DIR]/work/other.key)
    hint: check that the key or passphrase belongs to this repository
    --- exit 12
    ");
}

#[test]
fn a_key_file_that_is_named_must_be_there() {
    let env = TestEnv::with_repository();
    assert_snapshot!(env.run(["list", "--key-file", "none.key"]), @"
    --- stderr
    error: the key file does not exist (path=[DIR]/work/none.key)
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    ");
    env.write("work/odd.key", "not a key\n");
    fs::set_permissions(env.path("work/odd.key"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_snapshot!(env.run(["list", "--key-file", "odd.key"]), @"
    --- stderr
    error: a line of the key file is not an age identity (AGE-SECRET-KEY-1…) (tried=key file [DIR]/work/odd.key, key file [DIR]/home/.config/snapkit/[HEX].key)
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    ");
}

#[test]
fn a_key_file_that_others_may_read_is_warned_of() {
    let env = TestEnv::with_repository();
    let key = &env.files("home/.config", ".key")[0];
    fs::set_permissions(key, fs::Permissions::from_mode(0o644)).unwrap();
    assert_snapshot!(env.run(["list", "-q"]), @"
    --- stderr
    warning: others may read the key file [DIR]/home/.config/snapkit/[HEX].key; `chmod 600` makes it private
    --- exit 0
    ");
}

#[test]
fn a_key_left_behind_by_an_interrupted_init_is_found() {
    let env = TestEnv::with_repository();
    let key = &env.files("home/.config", ".key")[0];
    fs::rename(key, key.with_file_name(".new-0123456789abcdef.key")).unwrap();
    assert!(env.run(["list"]).is_success());
}

#[test]
fn passphrases_come_from_three_places() {
    let mut env = locked_by_passphrase();
    env.write("work/pass", "correct horse\nand a second line\n");
    for (variable, value) in [
        ("SNAPKIT_PASSPHRASE", "correct horse"),
        ("SNAPKIT_PASSPHRASE_FILE", "pass"),
        ("SNAPKIT_PASSPHRASE_COMMAND", "head -n 1 pass"),
    ] {
        env.set(variable, value);
        let listed = env.run(["list"]);
        assert!(listed.is_success(), "{variable}: {listed}");
        env.unset(variable);
    }
}

#[test]
fn a_wrong_passphrase_does_not_open() {
    let mut env = locked_by_passphrase();
    env.set("SNAPKIT_PASSPHRASE", "battery staple");
    let listed = env.run(["list"]);
    assert_snapshot!(listed, @"
    --- stderr
    error: no key that was given opens this repository (location=[DIR]/repo, repository=[HEX], tried=SNAPKIT_PASSPHRASE)
    hint: check that the key or passphrase belongs to this repository
    --- exit 12
    ");
    assert!(!listed.stderr.contains("staple"));
}

#[test]
fn a_passphrase_command_that_fails_is_named() {
    let mut env = locked_by_passphrase();
    env.set("SNAPKIT_PASSPHRASE_COMMAND", "echo no such secret >&2; exit 3");
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    no such secret
    error: SNAPKIT_PASSPHRASE_COMMAND failed with exit status: 3
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    ");
    env.set("SNAPKIT_PASSPHRASE_COMMAND", "true");
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    error: SNAPKIT_PASSPHRASE_COMMAND gives an empty passphrase
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    ");
    env.set("SNAPKIT_PASSPHRASE_COMMAND", "printf '\\377'");
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    error: SNAPKIT_PASSPHRASE_COMMAND says something that is not valid UTF-8
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    ");
    env.unset("SNAPKIT_PASSPHRASE_COMMAND");
    env.set("SNAPKIT_PASSPHRASE_FILE", "/none");
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    error: the passphrase file does not exist (path=/none)
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    ");
}

#[test]
fn variables_may_stand_in_a_file() {
    let mut env = locked_by_passphrase();
    env.write("work/vars", "# of the backup\nSNAPKIT_PASSPHRASE='correct horse'\n");
    assert!(env.run(["list", "--env-file", "vars"]).is_success());
    // The environment counts more.
    env.set("SNAPKIT_PASSPHRASE", "wrong");
    assert_eq!(env.run(["list", "--env-file", "vars"]).code(), Some(12));
    env.write("work/vars", "hunter2\n");
    let listed = env.run(["list", "--env-file", "vars"]);
    assert_snapshot!(listed, @"
    --- stderr
    error: a line is not NAME=VALUE (file=vars:1)
    --- exit 2
    ");
}
