//! `snapkit init`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use insta::assert_snapshot;

use crate::support::TestEnv;

#[test]
fn a_repository_and_its_key_are_made() {
    let env = TestEnv::new();
    assert_snapshot!(env.run(["init"]), @"
    --- stderr
    made repository [HEX] in [DIR]/repo
    its key is the file [DIR]/home/.config/snapkit/[HEX].key
    without this file nobody can read the repository: keep a copy of it in another place
    --- exit 0
    ");
    let keys = env.files("home/.config", ".key");
    assert_eq!(keys.len(), 1);
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&keys[0]), 0o600);
    assert_eq!(mode(keys[0].parent().unwrap()), 0o700);
    assert_eq!(mode(&env.path("repo")), 0o700);
    assert!(env.run(["list"]).is_success());
}

#[test]
fn an_existing_repository_is_left_alone() {
    let env = TestEnv::with_repository();
    let before = env.read("repo/config");
    let key = env.files("home/.config", ".key");
    assert_snapshot!(env.run(["init"]), @"
    --- stderr
    error: there is a repository already (location=[DIR]/repo)
    hint: to leave it as it is and go on: `snapkit init --if-missing`
    --- exit 11
    ");
    assert_snapshot!(env.run(["init", "--if-missing"]), @"--- exit 0");
    assert_snapshot!(env.run(["init", "--if-missing", "--json"]), @r#"
    --- stdout
    {
      "created": false,
      "fingerprint": "[HEX]",
      "repository": "[HEX]"
    }
    --- exit 0
    "#);
    assert_eq!(env.read("repo/config"), before);
    assert_eq!(env.files("home/.config", ".key"), key);
}

#[test]
fn a_key_file_can_be_chosen() {
    let env = TestEnv::new();
    assert_snapshot!(env.run(["init", "--key-file", "my.key"]), @"
    --- stderr
    made repository [HEX] in [DIR]/repo
    its key is the file [DIR]/work/my.key
    without this file nobody can read the repository: keep a copy of it in another place
    --- exit 0
    ");
    assert!(env.files("home/.config", ".key").is_empty());
    let key = env.read("work/my.key");
    assert!(env.run(["list", "--key-file", "my.key"]).is_success());

    // One that exists opens another repository too, and is not touched.
    assert_snapshot!(env.run(["init", "-r", "second", "--key-file", "my.key"]), @"
    --- stderr
    made repository [HEX] in [DIR]/work/second
    it is opened by the key file [DIR]/work/my.key
    --- exit 0
    ");
    assert_eq!(env.read("work/my.key"), key);
    assert!(env.run(["list", "-r", "second", "--key-file", "my.key"]).is_success());
}

#[test]
fn a_passphrase_can_open_it() {
    let mut env = TestEnv::new();
    env.set("SNAPKIT_PASSPHRASE", "correct horse");
    assert_snapshot!(env.run(["init", "--passphrase"]), @"
    --- stderr
    made repository [HEX] in [DIR]/repo
    without its passphrase nobody can read the repository: keep it in another place too
    --- exit 0
    ");
    assert!(env.run(["list"]).is_success());
    assert!(env.files("home", ".key").is_empty());
}

#[test]
fn a_passphrase_that_is_not_used_is_spoken_of() {
    let mut env = TestEnv::new();
    env.set("SNAPKIT_PASSPHRASE", "correct horse");
    assert_snapshot!(env.run(["init"]), @"
    --- stderr
    warning: SNAPKIT_PASSPHRASE is set, but a key file will open the repository: --passphrase was not given
    made repository [HEX] in [DIR]/repo
    its key is the file [DIR]/home/.config/snapkit/[HEX].key
    without this file nobody can read the repository: keep a copy of it in another place
    --- exit 0
    ");
}

#[test]
fn a_passphrase_must_come_from_somewhere() {
    let mut env = TestEnv::new();
    assert_snapshot!(env.run(["init", "--passphrase"]), @"
    --- stderr
    error: --passphrase was given, but no passphrase and no terminal to ask for one
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    ");
    env.set("SNAPKIT_PASSPHRASE", "one");
    env.set("SNAPKIT_PASSPHRASE_COMMAND", "echo two");
    assert_snapshot!(env.run(["init", "--passphrase"]), @"
    --- stderr
    error: SNAPKIT_PASSPHRASE and SNAPKIT_PASSPHRASE_COMMAND are both set: which of them shall open the repository?
    --- exit 2
    ");
    assert!(!env.path("repo").exists());
}

#[test]
fn a_place_that_cannot_hold_one_is_refused() {
    let env = TestEnv::new();
    env.write("repo", "a file");
    assert_snapshot!(env.run(["init"]), @"
    --- stderr
    error: this is not a directory (path=[DIR]/repo)
      caused by: Not a directory (os error 20)
    --- exit 2
    ");
    assert!(env.files("home", ".key").is_empty());
    assert_snapshot!(env.run(["init", "-r", "ftp://host/x"]), @"
    --- stderr
    error: repositories at ftp:// URLs are not known here; known are a path, file:///PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX and memory://
    --- exit 1
    ");
    assert_snapshot!(env.run(["init", "-r", ""]), @"
    --- stderr
    error: the repository's path or URL is empty
    --- exit 2
    ");
}

/// A disk that is not mounted must not be answered with another repository.
#[test]
fn where_a_repository_was_no_other_is_made() {
    let env = TestEnv::with_repository();
    fs::rename(env.path("repo"), env.path("unmounted")).unwrap();
    assert_snapshot!(env.run(["init"]), @"
    --- stderr
    error: the repository that this machine knows at this place is not there (location=[DIR]/repo)
    hint: is its disk mounted? to make a new one in its place: `snapkit init --accept-new-repository`
    --- exit 10
    ");
    assert_snapshot!(env.run(["init", "--if-missing"]), @"
    --- stderr
    error: the repository that this machine knows at this place is not there (location=[DIR]/repo)
    hint: is its disk mounted? to make a new one in its place: `snapkit init --accept-new-repository`
    --- exit 10
    ");
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    error: the repository that this machine knows at this place is not there (location=[DIR]/repo)
    hint: is its disk mounted? to make a new one in its place: `snapkit init --accept-new-repository`
    --- exit 10
    ");
    // However it is spelled, and if an empty directory stands for it.
    assert_eq!(env.run(["init", "-r", "../home/../repo"]).code(), Some(10));
    fs::create_dir(env.path("repo")).unwrap();
    assert_snapshot!(env.run(["init"]), @"
    --- stderr
    error: the repository that this machine knows at this place is not there (location=[DIR]/repo)
    hint: is its disk mounted? to make a new one in its place: `snapkit init --accept-new-repository`
    --- exit 10
    ");
    fs::remove_dir(env.path("repo")).unwrap();
    fs::rename(env.path("unmounted"), env.path("repo")).unwrap();
    assert!(env.run(["list"]).is_success());

    fs::remove_dir_all(env.path("repo")).unwrap();
    assert!(env.run(["init", "-q", "--accept-new-repository"]).is_success());
    assert!(env.run(["list"]).is_success());
}

#[test]
fn a_repository_has_a_directory_of_its_own() {
    let env = TestEnv::with_repository();
    env.sample();
    assert_snapshot!(env.run(["init", "-r", "data"]), @"
    --- stderr
    error: the directory is not empty, and a repository needs one of its own (location=[DIR]/work/data, holds=a.txt)
    hint: name a directory that is empty or that does not exist yet
    --- exit 11
    ");
    assert_snapshot!(env.run(["init", "-r", "../repo/packs"]), @"
    --- stderr
    error: this place is inside of another repository, which would take what is here for its own (location=[DIR]/work/../repo/packs, repository=[DIR]/work/../repo)
    --- exit 11
    ");
    assert!(!env.path("repo/packs").exists());
    // A new file system is empty, and so is what an interrupted attempt has left.
    env.write("disk/lost+found/x", "");
    env.write("disk/keys/0123.age", "x");
    env.write("disk/probe-0123", "x");
    assert!(env.run(["init", "-q", "-r", "../disk"]).is_success());
}

#[test]
fn what_is_left_of_a_repository_is_not_built_upon() {
    let env = TestEnv::with_snapshot();
    fs::rename(env.path("repo/config"), env.path("config")).unwrap();
    assert_snapshot!(env.run(["init"]), @"
    --- stderr
    error: packs/ and snapshots/ are here, but config is gone (location=[DIR]/repo)
    hint: put the file config back from a copy; a new repository could not read what is here
    --- exit 4
    ");
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    error: packs/ and snapshots/ are here, but config is gone (location=[DIR]/repo)
    hint: put the file config back from a copy; a new repository could not read what is here
    --- exit 4
    ");
    assert!(!env.path("repo/config").exists());
    fs::rename(env.path("config"), env.path("repo/config")).unwrap();
    assert!(env.run(["list"]).is_success());
}
