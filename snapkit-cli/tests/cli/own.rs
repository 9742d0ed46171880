//! What snapkit keeps itself is not captured, and nothing is restored over it.

use std::fs;

use insta::assert_snapshot;

use crate::support::TestEnv;

/// With the repository and the home directory in what is captured.
fn all_in_one() -> TestEnv {
    let mut env = TestEnv::new();
    let repo = env.path("work/repo");
    env.set("SNAPKIT_REPO", repo.to_str().unwrap());
    let home = env.path("work/home");
    fs::create_dir(&home).unwrap();
    env.set("HOME", home.to_str().unwrap());
    env.sample();
    assert!(env.run(["init", "-q"]).is_success());
    env
}

#[test]
fn it_is_left_out() {
    let env = all_in_one();
    let created = env.run(["create", ".", "--name", "x"]);
    assert_snapshot!(created, @"
    --- stdout
    [SNAPSHOT]
    --- stderr
    left out: the repository [DIR]/work/repo
    left out: the local state [DIR]/work/home/.local/state/snapkit
    left out: the cache [DIR]/work/home/.cache/snapkit
    complete: 277 B in [DURATION]
      files (files): 1 artifact, 15 entries, 277 B
      read [SIZES]
    --- exit 0
    ");
    let place = format!("x:files/{}", env.in_tree(""));
    assert_snapshot!(env.run(["ls", "-R", &place]), @"
    --- stdout
    data
    data/a.txt
    data/link
    data/sub
    data/sub/b.bin
    home
    home/.cache
    home/.config
    home/.config/snapkit
    home/.config/snapkit/[HEX].key
    home/.local
    home/.local/state
    --- exit 0
    ");
    assert_snapshot!(env.run(["create", "repo/keys"]), @"
    --- stderr
    error: this path lies in the repository, which is not captured into itself (path=[DIR]/work/repo/keys, repository=[DIR]/work/repo)
    --- exit 2
    ");

    env.write(
        "work/snapkit.toml",
        "[sources.all]\nkind = 'files'\npaths = ['.']\nexclude = ['sub']\n",
    );
    let created = env.run(["create"]);
    assert!(created.is_success(), "{created}");
    assert!(created.stderr.contains("left out: the repository"), "{created}");
    let place = format!("latest:all/{}", env.in_tree(""));
    assert_snapshot!(env.run(["ls", &place]), @"
    --- stdout
    data
    home
    snapkit.toml
    --- exit 0
    ");
}

#[test]
fn it_is_not_replaced() {
    let env = all_in_one();
    assert!(env.run(["create", "-q", ".", "--name", "x"]).is_success());
    assert_snapshot!(env.run(["restore", "x", "--overwrite"]), @"
    --- stderr
    snapshot [SNAPSHOT] of work-[HEX]@box, [TIME]
    error: the repository lies in what would be replaced, and would be moved away with it (path=[DIR]/work, repository=[DIR]/work/repo)
    hint: restore with --target, or name a part of the snapshot
    --- exit 11
    ");
    assert_snapshot!(env.run(["restore", "x", "--target", "repo/packs/new"]), @"
    --- stderr
    error: the target lies in the repository: restore elsewhere (target=[DIR]/work/repo/packs/new, repository=[DIR]/work/repo)
    --- exit 2
    ");
    assert!(env.run(["list"]).is_success());
    fs::remove_dir_all(env.path("work/data")).unwrap();
    let part = format!("x:files/{}", env.in_tree("data"));
    assert!(env.run(["restore", "-q", &part, "--overwrite"]).is_success());
    assert_eq!(env.read("work/data/a.txt"), "hello\n");
}
