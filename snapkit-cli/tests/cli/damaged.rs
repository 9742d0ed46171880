//! What is stored is not what it was: what each command says of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use insta::assert_snapshot;

use crate::support::{TestEnv, said};

/// The largest object of a kind.
fn object(env: &TestEnv, kind: &str) -> PathBuf {
    let found = env.files(&format!("repo/{kind}"), "");
    found.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success());
}

/// A repository with one snapshot, and a copy of it.
fn kept() -> TestEnv {
    let env = TestEnv::with_snapshot();
    copy(&env.path("repo"), &env.path("kept"));
    env
}

/// A way in which a file can be another one: what it is called, and how it is done.
type Way = (&'static str, fn(&Path));

/// Ways in which a file can be another one.
fn ways() -> [Way; 7] {
    [
        ("gone", |path| fs::remove_file(path).unwrap()),
        ("empty", |path| fs::write(path, "").unwrap()),
        ("cut short", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..20]).unwrap();
        }),
        ("a bit flipped", |path| {
            let mut bytes = fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            fs::write(path, bytes).unwrap();
        }),
        ("of another program", |path| {
            fs::write(path, "# not what you think\n".repeat(20)).unwrap();
        }),
        ("a link", |path| {
            let elsewhere = path.with_file_name("elsewhere");
            fs::rename(path, &elsewhere).unwrap();
            symlink(elsewhere, path).unwrap();
        }),
        ("a directory", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
    ]
}

/// What is said of each way in which a file of the repository, unharmed before, is another one.
fn told(env: &TestEnv, file: impl Fn() -> PathBuf, ways: &[Way], commands: &[&str]) -> String {
    let mut all: Vec<(String, String)> = Vec::new();
    for (way, damage) in ways {
        fs::remove_dir_all(env.path("repo")).unwrap();
        copy(&env.path("kept"), &env.path("repo"));
        damage(&file());
        let said = said(env, commands);
        // How long it takes makes no difference, nor how short a file is.
        let words = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
        match all.last_mut().filter(|(_, last)| words(last) == words(&said)) {
            Some((ways, _)) => *ways += &format!(", {way}"),
            None => all.push(((*way).to_owned(), said)),
        }
    }
    all.into_iter().map(|(ways, said)| format!("=== {ways}\n{said}")).collect()
}

/// What is said of the largest object of a kind.
fn of_objects(env: &TestEnv, kind: &str, commands: &[&str]) -> String {
    told(env, || object(env, kind), &ways(), commands)
}

#[test]
fn packs() {
    let env = kept();
    // How long a pack is hangs on the path of the scratch directory.
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"\d+ bytes", "[N] bytes");
    settings.add_filter(r"instead of \d+", "instead of [N]");
    settings.add_filter(r"range=\d+\.\.\d+", "range=[RANGE]");
    let _lengths = settings.bind_to_scope();
    assert_snapshot!(of_objects(&env, "packs", &["verify --read-data", "restore -q latest --target out"]), @"
    === gone
    $ snapkit verify --read-data
    --- stdout
    damaged: packs/[XX]/[HEX]: it is gone
      lost: [SNAPSHOT]:files/tree
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    $ snapkit restore -q latest --target out
    --- stderr
    error: a pack is gone (object=packs/[XX]/[HEX]) (artifact=tree, source=files)
    hint: `snapkit verify --read-data` lists all damage
    --- exit 4
    === empty, cut short
    $ snapkit verify --read-data
    --- stdout
    damaged: packs/[XX]/[HEX]: it has [N] bytes instead of [N]
      lost: [SNAPSHOT]:files/tree
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    $ snapkit restore -q latest --target out
    --- stderr
    error: the object has only [N] bytes (path=[DIR]/repo/packs/[XX]/[HEX], range=[RANGE], object=packs/[XX]/[HEX]) (artifact=tree, source=files)
    hint: `snapkit verify --read-data` lists all damage
    --- exit 4
    === a bit flipped
    $ snapkit verify --read-data
    --- stdout
    damaged: packs/[XX]/[HEX]: sealed content is damaged or not where it belongs
      lost: [SNAPSHOT]:files/tree
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    $ snapkit restore -q latest --target out
    --- stderr
    error: sealed content is damaged or not where it belongs (object=packs/[XX]/[HEX]) (artifact=tree, source=files)
    hint: `snapkit verify --read-data` lists all damage
    --- exit 4
    === of another program
    $ snapkit verify --read-data
    --- stdout
    damaged: packs/[XX]/[HEX]: it has [N] bytes instead of [N]
      lost: [SNAPSHOT]:files/tree
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    $ snapkit restore -q latest --target out
    --- stderr
    error: the object has only [N] bytes (path=[DIR]/repo/packs/[XX]/[HEX], range=[RANGE], object=packs/[XX]/[HEX]) (artifact=tree, source=files)
    hint: `snapkit verify --read-data` lists all damage
    --- exit 4
    === a link
    $ snapkit verify --read-data
    --- stdout
    damaged: packs/[XX]/[HEX]: it has [N] bytes instead of [N]
      lost: [SNAPSHOT]:files/tree
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    $ snapkit restore -q latest --target out
    --- stderr
    error: a symbolic link stands in its place, and none is followed here (path=[DIR]/repo/packs/[XX]/[HEX], object=packs/[XX]/[HEX]) (artifact=tree, source=files)
    hint: `snapkit verify --read-data` lists all damage
    --- exit 4
    === a directory
    $ snapkit verify --read-data
    --- stdout
    damaged: packs/[XX]/[HEX]: it is gone
      lost: [SNAPSHOT]:files/tree
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    $ snapkit restore -q latest --target out
    --- stderr
    error: a pack is gone (object=packs/[XX]/[HEX]) (artifact=tree, source=files)
    hint: `snapkit verify --read-data` lists all damage
    --- exit 4
    ");
}

#[test]
fn index_segments() {
    let env = kept();
    assert_snapshot!(of_objects(&env, "index", &["verify"]), @"
    === gone
    $ snapkit verify
    --- stdout
    damaged: index: a segment is gone: packs that snapshots need are in no index; the next create lists them again
    --- stderr
    note: 2 packs are in no index: of interrupted runs, or their segment is damaged or gone
    examined 1 snapshot, [N] chunks; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    === empty, cut short, a bit flipped, of another program
    $ snapkit verify
    --- stdout
    damaged: index/[HEX]: an index segment's content does not fit its name
    --- stderr
    note: 2 packs are in no index: of interrupted runs, or their segment is damaged or gone
    examined 1 snapshot, [N] chunks; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    === a link
    $ snapkit verify
    --- stdout
    damaged: index/[HEX]: a symbolic link stands in its place, and none is followed here (path=[DIR]/repo/index/[HEX])
    --- stderr
    note: 2 packs are in no index: of interrupted runs, or their segment is damaged or gone
    examined 1 snapshot, [N] chunks; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    === a directory
    $ snapkit verify
    --- stdout
    damaged: index: a segment is gone: packs that snapshots need are in no index; the next create lists them again
    --- stderr
    note: 2 packs are in no index: of interrupted runs, or their segment is damaged or gone
    examined 1 snapshot, [N] chunks; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    ");
}

#[test]
fn snapshots() {
    let env = kept();
    assert_snapshot!(of_objects(&env, "snapshots", &["show latest"]), @"
    === gone
    $ snapkit show latest
    --- stderr
    warning: the snapshot [SNAPSHOT] was here and is gone without a trace: an old copy of the repository was put back, it was made in a copy, or somebody removed it
    error: snapshot [SNAPSHOT] is gone without a trace, and may be what latest means; name an older one to have it
    hint: once you know why it is gone, `snapkit verify --accept-loss` lets this machine forget it
    --- exit 4
    === empty, cut short
    $ snapkit show latest
    --- stderr
    warning: the snapshot [SNAPSHOT] is damaged: an object header is malformed: it ends early (key=snapshots/[SNAPSHOT])
    error: snapshot [SNAPSHOT] is damaged, and may be what latest means: an object header is malformed: it ends early (key=snapshots/[SNAPSHOT]); name an older one to have it
    hint: `snapkit verify --read-data` lists all damage
    --- exit 4
    === a bit flipped
    $ snapkit show latest
    --- stderr
    warning: the snapshot [SNAPSHOT] is damaged: a signature does not hold (key=snapshots/[SNAPSHOT])
    error: snapshot [SNAPSHOT] is damaged, and may be what latest means: a signature does not hold (key=snapshots/[SNAPSHOT]); name an older one to have it
    --- exit 4
    === of another program
    $ snapkit show latest
    --- stderr
    warning: the snapshot [SNAPSHOT] is damaged: this is not an object of snapkit (key=snapshots/[SNAPSHOT])
    error: snapshot [SNAPSHOT] is damaged, and may be what latest means: this is not an object of snapkit (key=snapshots/[SNAPSHOT]); name an older one to have it
    hint: `snapkit verify --read-data` lists all damage
    --- exit 4
    === a link
    $ snapkit show latest
    --- stderr
    warning: the snapshot [SNAPSHOT] is damaged: a symbolic link stands in its place, and none is followed here (path=[DIR]/repo/snapshots/[SNAPSHOT])
    error: snapshot [SNAPSHOT] is damaged, and may be what latest means: a symbolic link stands in its place, and none is followed here (path=[DIR]/repo/snapshots/[SNAPSHOT]); name an older one to have it
    hint: `snapkit verify --read-data` lists all damage
    --- exit 4
    === a directory
    $ snapkit show latest
    --- stderr
    warning: the snapshot [SNAPSHOT] was here and is gone without a trace: an old copy of the repository was put back, it was made in a copy, or somebody removed it
    error: snapshot [SNAPSHOT] is gone without a trace, and may be what latest means; name an older one to have it
    hint: once you know why it is gone, `snapkit verify --accept-loss` lets this machine forget it
    --- exit 4
    ");
}

#[test]
fn keys() {
    let env = kept();
    assert_snapshot!(of_objects(&env, "keys", &["list"]), @"
    === gone
    $ snapkit list
    --- stderr
    error: the repository has no credential left under keys/ (location=[DIR]/repo)
    hint: put the files of keys/ back from a copy: without one of them nothing can be read
    --- exit 4
    === empty, cut short
    $ snapkit list
    --- stderr
    error: a credential file is damaged (key=keys/[HEX].age)
      caused by: Incomplete header
    hint: put the file back from a copy of the repository, or use another key if there is one
    --- exit 4
    === a bit flipped
    $ snapkit list
    --- stderr
    error: a credential file is damaged (key=keys/[HEX].age)
      caused by: decryption error
    hint: put the file back from a copy of the repository, or use another key if there is one
    --- exit 4
    === of another program
    $ snapkit list
    --- stderr
    error: a credential file is damaged (key=keys/[HEX].age)
      caused by: Header is invalid
    hint: put the file back from a copy of the repository, or use another key if there is one
    --- exit 4
    === a link
    $ snapkit list
    --- stderr
    error: a symbolic link stands in its place, and none is followed here (path=[DIR]/repo/keys/[HEX].age, key=keys/[HEX].age)
    hint: `snapkit verify --read-data` lists all damage
    --- exit 4
    === a directory
    $ snapkit list
    --- stderr
    error: the repository has no credential left under keys/ (location=[DIR]/repo)
    hint: put the files of keys/ back from a copy: without one of them nothing can be read
    --- exit 4
    ");
}

/// The config is one file beside the others.
#[test]
fn configs() {
    let env = kept();
    // Which bit it is decides what is said: each is tried where configs are decoded.
    let ways: Vec<Way> = ways().into_iter().filter(|(way, _)| *way != "a bit flipped").collect();
    let told = told(&env, || env.path("repo/config"), &ways, &["list"]);
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"column \d+", "column [N]");
    let _columns = settings.bind_to_scope();
    assert_snapshot!(told, @"
    === gone
    $ snapkit list
    --- stderr
    error: packs/ and snapshots/ are here, but config is gone (location=[DIR]/repo)
    hint: put the file config back from a copy; a new repository could not read what is here
    --- exit 4
    === empty, cut short
    $ snapkit list
    --- stderr
    error: the repository's config is damaged: it does not say what a config says (location=[DIR]/repo)
      caused by: EOF while parsing a value at line 1 column [N]
    hint: put the file config back from a copy: without it nothing can be read
    --- exit 4
    === of another program
    $ snapkit list
    --- stderr
    error: the repository's config is damaged: it does not say what a config says (location=[DIR]/repo)
      caused by: expected value at line 1 column [N]
    hint: put the file config back from a copy: without it nothing can be read
    --- exit 4
    === a link
    $ snapkit list
    --- stderr
    error: a symbolic link is in the way, and none is followed inside a repository; move the files in its place, or mount them there (path=[DIR]/repo/config)
    --- exit 1
    === a directory
    $ snapkit list
    --- stderr
    error: packs/ and snapshots/ are here, but config is gone (location=[DIR]/repo)
    hint: put the file config back from a copy; a new repository could not read what is here
    --- exit 4
    ");
}

/// A snapshot that this machine has seen, and that somebody took away, may be the one that is meant.
#[test]
fn the_newest_snapshot_is_gone() {
    let env = TestEnv::with_snapshot();
    env.write("work/data/a.txt", "newer\n");
    assert!(env.run(["create", "-q", "data", "--name", "second"]).is_success());
    let second =
        env.run(["list", "--json"]).json()["snapshots"][0]["id"].as_str().unwrap().to_owned();
    fs::remove_file(env.path("repo/snapshots").join(&second)).unwrap();
    assert_snapshot!(said(&env, &[
        "restore latest --overwrite",
        "restore @2100-01-01 --overwrite",
        "dump latest:files",
        "restore first --target out",
        "verify -q --accept-loss",
        "restore latest --target out2",
    ]), @"
    $ snapkit restore latest --overwrite
    --- stderr
    warning: the snapshot [SNAPSHOT] was here and is gone without a trace: an old copy of the repository was put back, it was made in a copy, or somebody removed it
    error: snapshot [SNAPSHOT] is gone without a trace, and may be what latest means; name an older one to have it
    hint: once you know why it is gone, `snapkit verify --accept-loss` lets this machine forget it
    --- exit 4
    $ snapkit restore @2100-01-01 --overwrite
    --- stderr
    warning: the snapshot [SNAPSHOT] was here and is gone without a trace: an old copy of the repository was put back, it was made in a copy, or somebody removed it
    error: snapshot [SNAPSHOT] is gone without a trace, and may be what @2100-01-01 means; name an older one to have it
    hint: once you know why it is gone, `snapkit verify --accept-loss` lets this machine forget it
    --- exit 4
    $ snapkit dump latest:files
    --- stderr
    warning: the snapshot [SNAPSHOT] was here and is gone without a trace: an old copy of the repository was put back, it was made in a copy, or somebody removed it
    error: snapshot [SNAPSHOT] is gone without a trace, and may be what latest means; name an older one to have it
    hint: once you know why it is gone, `snapkit verify --accept-loss` lets this machine forget it
    --- exit 4
    $ snapkit restore first --target out
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/out/files
    --- stderr
    warning: the snapshot [SNAPSHOT] was here and is gone without a trace: an old copy of the repository was put back, it was made in a copy, or somebody removed it
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    match in [DURATION]
    --- exit 0
    $ snapkit verify -q --accept-loss
    --- stdout
    damaged: snapshots/[SNAPSHOT]: this machine saw it, and it is gone without a marker: an old repository was put back, or it was removed
      lost: [SNAPSHOT]
    --- exit 4
    $ snapkit restore latest --target out2
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/out2/files
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    match in [DURATION]
    --- exit 0
    ");
    assert_eq!(env.read("work/data/a.txt"), "newer\n");
}

/// A copy of a repository has its own damage.
#[test]
fn damage_of_a_copy_is_not_that_of_the_original() {
    let env = kept();
    let pack = object(&env, "packs");
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&pack, bytes).unwrap();
    let copy = env.path("kept");
    assert_eq!(env.run(["verify", "-q", "--read-data"]).code(), Some(4));
    let repo = ["-r", copy.to_str().unwrap()];
    let created = env.run(["create", "-q", "data"].into_iter().chain(repo));
    assert_snapshot!(created, @"--- exit 0");
    let told = env.run(["create", "data"]);
    assert!(told.stderr.contains("was found damaged by a verify"), "{told}");
}

/// What is found while the index is read is passed over, and said.
#[test]
fn an_index_and_a_pack_that_are_damaged() {
    let env = kept();
    for path in [env.files("repo/index", "")[0].clone(), object(&env, "packs")] {
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    fs::remove_dir_all(env.path("home/.cache")).unwrap();
    assert_snapshot!(said(&env, &["create data", "verify"]), @"
    $ snapkit create data
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 10 B in [DURATION]
      files (files): 1 artifact, 8 entries, 10 B
      read [SIZES]
    warning: index segment index/[HEX] is damaged and was left out: an index segment's content does not fit its name
    warning: pack packs/[XX]/[HEX] belongs to no index and is damaged: a pack's footer is malformed: its last bytes are not a pack's
    --- exit 0
    $ snapkit verify
    --- stdout
    damaged: index: no index segment and no pack knows it
      lost: [SNAPSHOT]:files/tree
    damaged: index/[HEX]: an index segment's content does not fit its name
    damaged: packs/[XX]/[HEX]: a pack's footer is malformed: its last bytes are not a pack's
    --- stderr
    examined 2 snapshots, [N] chunks; [SIZE] read in [DURATION]
    3 damaged objects found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    ");
}

/// Directories without a file in them do not replace those that have some.
#[test]
fn what_has_nothing_whole_replaces_nothing() {
    let env = TestEnv::with_repository();
    let content = |seed: u8| {
        let mut bytes = vec![0; 20_000];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    };
    env.write("work/data/a", content(1));
    env.write("work/data/deep/b", content(2));
    env.run(["create", "data"]);
    for pack in env.files("repo/packs", "") {
        let mut bytes = fs::read(&pack).unwrap();
        if let Some(end) = bytes.len().checked_sub(600).filter(|end| *end > 9000) {
            bytes[200..end].iter_mut().for_each(|byte| *byte ^= 1);
            fs::write(&pack, bytes).unwrap();
        }
    }
    let restore = "restore latest --overwrite --allow-damage";
    let mut all = said(&env, &[restore]);
    assert_eq!(fs::read(env.path("work/data/deep/b")).unwrap(), content(2));
    assert_eq!(env.files("work", "").len(), 2, "nothing is left of it");
    // With one more that is whole, what is not goes away with the old state.
    env.write("work/data/c", content(3));
    env.run(["create", "data"]);
    all += &said(&env, &[restore]);
    assert_eq!(env.files("work", "").len(), 1);
    assert_snapshot!(all, @"
    $ snapkit restore latest --overwrite --allow-damage
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    error: no file of the snapshot is whole: the old state stays where it is (source=files)
    hint: an older snapshot may have them; --target DIR shows what is left of this one
    --- exit 4
    $ snapkit restore latest --overwrite --allow-damage
    --- stdout
    files (files): differs, 0 facts hold, 19.5 KiB to [DIR]/work/data
      differs: tree.attributes was [HEX], is [HEX]
      differs: tree.bytes was 60000, is 20000
      differs: tree.entries was 5, is 3
      differs: tree.files was 3, is 1
      differs: tree.owners was [HEX], is [HEX]
      differs: tree.structure was [HEX], is [HEX]
      damaged, left out: [DIR-IN-TREE]/work/data/a: sealed content is damaged or not where it belongs (object=packs/[XX]/[HEX])
      damaged, left out: [DIR-IN-TREE]/work/data/deep/b: sealed content is damaged or not where it belongs (object=packs/[XX]/[HEX])
      note: 2 entries that the snapshot does not have, or not whole, went away with the old state, to '[DIR]/home/.local/state/snapkit/recovery/before-[HEX]/files/data.snapkit-old-[HEX]': [DIR]/work/data/a, [DIR]/work/data/deep/b
    to bring back what files held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    differs in [DURATION]
    --- exit 4
    ");
}
