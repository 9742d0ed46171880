//! `snapkit verify`, and repositories that are not what they should be.

use std::fs;

use insta::assert_snapshot;

use crate::support::TestEnv;

/// Change one byte in the middle of the largest pack: there is the content of the largest file.
pub(crate) fn damage_content(env: &TestEnv) {
    let mut packs = env.files("repo/packs", "");
    packs.sort_by_key(|path| fs::metadata(path).unwrap().len());
    let pack = packs.last().unwrap();
    let mut bytes = fs::read(pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(pack, bytes).unwrap();
}

#[test]
fn a_sound_repository_is_called_so() {
    let env = TestEnv::with_snapshot();
    assert_snapshot!(env.run(["verify"]), @"
    --- stderr
    examined 1 snapshot, [N] chunks; [SIZE] read in [DURATION]
    no damage; contents were not read, `--read-data` does that
    --- exit 0
    ");
    assert_snapshot!(env.run(["verify", "--read-data"]), @"
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    no damage: every byte of all snapshots and packs was read and checked
    --- exit 0
    ");
    assert_snapshot!(env.run(["verify", "first:files", "latest:files"]), @"
    --- stderr
    examined 1 snapshot, [N] chunks; [SIZE] read in [DURATION]
    no damage; contents were not read, `--read-data` does that
    --- exit 0
    ");
    assert_snapshot!(env.run(["verify", "-q"]), @"--- exit 0");
    assert_snapshot!(env.run(["verify", "latest:files", "--read-data"]), @"
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    no damage: every byte of the source files in 1 snapshot was read and checked
    --- exit 0
    ");
    assert_snapshot!(env.run(["verify", "latest", "--read-data"]), @"
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    no damage: every byte of 1 snapshot was read and checked
    --- exit 0
    ");
}

#[test]
fn damage_is_named_with_what_it_costs() {
    let env = TestEnv::with_large_file();
    damage_content(&env);
    assert_snapshot!(env.run(["verify", "--read-data"]), @"
    --- stdout
    damaged: packs/[XX]/[HEX]: a pack's content does not fit its name
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
    --- stderr
    examined 2 snapshots, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    ");
    assert_snapshot!(env.run(["verify", "--read-data", "-q"]), @"
    --- stdout
    damaged: packs/[XX]/[HEX]: a pack's content does not fit its name
      lost: [SNAPSHOT]:files/tree[DIR]/work/data/sub/b.bin
    --- exit 4
    ");
}

#[test]
fn a_pack_that_is_gone_is_noticed_without_reading() {
    let env = TestEnv::with_snapshot();
    for pack in env.files("repo/packs", "") {
        fs::remove_file(pack).unwrap();
    }
    let verified = env.run(["verify"]);
    assert_eq!(verified.code(), Some(4), "{verified}");
    assert!(verified.text().contains("damaged: packs/"), "{verified}");
}

#[test]
fn a_damaged_snapshot_is_noticed_by_list() {
    let env = TestEnv::with_snapshot();
    let line = &env.files("repo/snapshots", "")[0];
    let mut bytes = fs::read(line).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(line, bytes).unwrap();
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    warning: the snapshot [SNAPSHOT] is damaged: a signature does not hold (key=snapshots/[SNAPSHOT])
    there are no snapshots
    --- exit 4
    ");
}

#[test]
fn a_snapshot_that_was_removed_is_noticed() {
    let env = TestEnv::with_snapshot();
    fs::remove_file(&env.files("repo/snapshots", "")[0]).unwrap();
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    warning: the snapshot [SNAPSHOT] was here and is gone without a trace: an old copy of the repository was put back, it was made in a copy, or somebody removed it
    there are no snapshots
    --- exit 4
    ");
    assert_eq!(env.run(["verify"]).code(), Some(4));
}

#[test]
fn a_loss_can_be_accepted() {
    let env = TestEnv::with_snapshot();
    assert!(env.run(["create", "-q", "data", "--name", "second"]).is_success());
    fs::remove_file(&env.files("repo/snapshots", "")[0]).unwrap();
    assert_eq!(env.run(["list", "-q"]).code(), Some(4));
    assert_snapshot!(env.run(["verify", "--accept-loss"]), @"
    --- stdout
    damaged: snapshots/[SNAPSHOT]: this machine saw it, and it is gone without a marker: an old repository was put back, or it was removed
      lost: [SNAPSHOT]
    --- stderr
    examined 1 snapshot, [N] chunks; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    [SNAPSHOT] is not reported any more
    --- exit 4
    ");
    assert!(env.run(["list", "-q"]).is_success());
    assert!(env.run(["verify", "-q"]).is_success());
}

#[test]
fn each_damage_is_said_once() {
    let env = TestEnv::with_snapshot();
    assert!(env.run(["create", "-q", "data", "--name", "second"]).is_success());
    assert!(env.run(["create", "-q", "data", "--name", "third"]).is_success());
    let ids: Vec<_> = env.files("repo/snapshots", "");
    fs::remove_file(&ids[0]).unwrap();
    let mut bytes = fs::read(&ids[1]).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&ids[1], bytes).unwrap();
    let rest =
        env.run(["list", "--json"]).json()["snapshots"][0]["id"].as_str().unwrap().to_owned();
    assert!(env.run(["verify"]).stderr.contains("\n2 damaged objects found\n"));
    let verified = env.run(["verify", "-q", &rest]);
    let said = verified.text() + &verified.stderr;
    for id in ids[..2].iter().map(|path| path.file_name().unwrap().to_str().unwrap()) {
        assert_eq!(said.matches(&format!("damaged: snapshots/{id}")).count(), 1, "{said}");
        assert!(!said.contains("warning") && !said.contains("key="), "{said}");
    }
}

#[test]
fn another_format_is_refused() {
    let env = TestEnv::with_repository();
    let config = env.read("repo/config").replace("1-draft", "9");
    env.write("repo/config", config);
    assert_snapshot!(env.run(["list"]), @r#"
    --- stderr
    error: the repository has format "9", this program knows "1-draft" (location=[DIR]/repo)
    hint: use the snapkit version that made this repository, or start a new one
    --- exit 1
    "#);
    assert_snapshot!(env.run(["init", "--if-missing"]), @r#"
    --- stderr
    error: the repository has format "9", this program knows "1-draft" (location=[DIR]/repo)
    hint: use the snapkit version that made this repository, or start a new one
    --- exit 1
    "#);
}

#[test]
fn another_repository_in_the_same_place_is_noticed() {
    let env = TestEnv::with_repository();
    assert!(env.run(["list"]).is_success());
    fs::remove_dir_all(env.path("repo")).unwrap();
    // Made by somebody else: this machine's local state does not know of it.
    assert!(env.run(["init", "-q", "--state-dir", "elsewhere"]).is_success());
    assert_snapshot!(env.run(["list"]), @"
    --- stderr
    error: another repository stands where this machine knew one (location=[DIR]/repo, known=[HEX], found=[HEX], repository=[HEX])
    hint: if you made a new repository there, tell snapkit with --accept-new-repository
    --- exit 4
    ");
    assert!(env.run(["list", "--accept-new-repository"]).is_success());
    assert!(env.run(["list"]).is_success());

    // Made by ourselves, because we said so: nothing to ask later.
    fs::remove_dir_all(env.path("repo")).unwrap();
    assert!(env.run(["init", "-q", "--accept-new-repository"]).is_success());
    assert!(env.run(["list"]).is_success());
}

#[test]
fn places_must_make_sense() {
    let env = TestEnv::with_snapshot();
    assert_snapshot!(env.run(["verify", "first:files/tree"]), @"
    --- stderr
    error: whole sources are verified: name no artifact (snapshot=first)
    --- exit 2
    ");
    assert_snapshot!(env.run(["verify", "first:files", "first"]), @"
    --- stderr
    error: in one run either one and the same source is verified, or all of them
    --- exit 2
    ");
    assert_snapshot!(env.run(["verify", "first:none"]), @"
    --- stderr
    error: the snapshot has no source none; it has: files (snapshot=[SNAPSHOT])
    --- exit 1
    ");
    assert_snapshot!(env.run(["verify", "none"]), @r#"
    --- stderr
    error: there is no snapshot "none"
    hint: `snapkit list` shows the snapshots there are
    --- exit 1
    "#);
}
