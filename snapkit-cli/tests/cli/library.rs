//! What is said of a repository in which a program that embeds the library did what this one does not: a credential
//! that cannot read, and a snapshot that was ended.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use insta::assert_snapshot;
use snapkit_core::context::{Context, Timestamp};
use snapkit_core::credential::{Credential, Unlock};
use snapkit_core::engine::Repository;
use snapkit_core::id::{SnapshotId, from_hex};
use snapkit_core::ledger::StoredManifest;
use snapkit_core::manifest::{End, LineState, Manifest as _, Outcome, Session};
use snapkit_core::secret::Secret;
use snapkit_core::sign::Role;

use crate::support::{TestEnv, said};

/// The only name in a directory.
fn only(path: &Path) -> std::path::PathBuf {
    fs::read_dir(path).unwrap().next().unwrap().unwrap().path()
}

/// What opens the repository of a test.
struct Inside {
    cx: Context,
    unlock: Unlock,
    credential: Credential,
    manifest: StoredManifest,
}

async fn inside(env: &TestEnv) -> Inside {
    let cx = Context::system();
    let sink = snapkit_sinks::open(&cx, env.path("repo").to_str().unwrap()).await.unwrap();
    let config = Repository::peek(&cx, &sink).await.unwrap();
    let file = env.path("home/.config/snapkit").join(format!("{}.key", config.repository));
    let unlock = Unlock::KeyFile(Secret::new(fs::read_to_string(file).unwrap()));
    let stored = only(&env.path("repo/keys"));
    let id = stored.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let credential = Credential::decode(id, &fs::read(stored).unwrap(), &unlock, &config);
    let credential = credential.unwrap().unwrap();
    let certifier = from_hex(&config.certifier).unwrap().try_into().unwrap();
    let manifest = StoredManifest::new(sink, Arc::new(credential.clone()), certifier);
    Inside { cx, unlock, credential, manifest }
}

#[tokio::test]
async fn a_credential_that_cannot_read() {
    let env = TestEnv::with_snapshot();
    let Inside { cx, unlock, credential, .. } = inside(&env).await;
    let writer = credential.derive(&cx, Role::Writer).unwrap();
    fs::remove_file(only(&env.path("repo/keys"))).unwrap();
    let key = env.path("repo").join(writer.key().unwrap().as_str());
    fs::write(key, writer.encode(&unlock).unwrap()).unwrap();
    env.write("work/data/more.txt", "more\n");
    assert_snapshot!(said(&env, &[
        "create data --name second",
        "list",
        "show latest",
        "restore latest --target out",
        "verify",
        "doctor",
    ]), @"
    $ snapkit create data --name second
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 15 B in [DURATION]
      files (files): 1 artifact, 9 entries, 15 B
      read [SIZES]
    --- exit 0
    $ snapkit list
    --- stderr
    2 snapshots cannot be read with this credential
    --- exit 0
    $ snapkit show latest
    --- stderr
    error: there is no snapshot latest (among=any stack, host box, set full)
    hint: 2 snapshots are there that this credential cannot read: use a full one
    --- exit 1
    $ snapkit restore latest --target out
    --- stderr
    error: there is no snapshot latest (among=any stack, host box, set full)
    hint: 2 snapshots are there that this credential cannot read: use a full one
    --- exit 1
    $ snapkit verify
    --- stderr
    error: this credential can add snapshots but not read them
    hint: use a full credential
    --- exit 12
    $ snapkit doctor
    --- stdout
    ok       local state: [DIR]/home/.local/state/snapkit, [SIZE] are free
    ok       cache: [DIR]/home/.cache/snapkit, [SIZE] are free
    ok       repository: [DIR]/repo, [SIZE] are free
    ok       repository: [HEX] at [DIR]/repo
    ok       create-only puts: honoured by the store, which `init` has tried
    ok       credential: writer: it can add, and cannot read
    ok       ledger: 2 snapshots
    ok       stored data: [N] packs listed, and all of them there; `verify` examines what is in them
    ok       last create: [TIME], complete
    warning  last restore: [TIME], failed: there is no snapshot latest (among=any stack, host box, set full)
    warning  last verify: [TIME], failed: this credential can add snapshots but not read them
    --- stderr
    no problems, but 2 warnings should be looked at
    --- exit 0
    ");
}

#[tokio::test]
async fn a_snapshot_that_had_been_ended() {
    let env = TestEnv::with_snapshot();
    let Inside { cx, manifest, .. } = inside(&env).await;
    let line = only(&env.path("repo/snapshots"));
    let object = fs::read(&line).unwrap();
    let id = line.file_name().unwrap().to_str().unwrap().parse().unwrap();
    fs::remove_file(&line).unwrap();
    assert_eq!(manifest.end(&cx, &id, End::Abort("cancelled")).await.unwrap(), Outcome::Won);
    assert_snapshot!(said(&env, &["list", "show latest"]), @"
    $ snapkit list
    --- stderr
    there are no snapshots
    --- exit 0
    $ snapkit show latest
    --- stderr
    error: there is no snapshot latest (among=any stack, host box, set full)
    hint: there are no snapshots yet: `snapkit create` makes one
    --- exit 1
    ");
    fs::write(&line, object).unwrap();
    assert_snapshot!(said(&env, &["list", "show latest", "verify", "doctor"]), @"
    $ snapkit list
    --- stdout
    ID        TIME                  SET   STACK@HOST         NAME   SIZE  VERDICT
    [HEX]  [TIME]  full  data-[HEX]@box  first  10 B  complete
    --- stderr
    warning: the snapshot [SNAPSHOT] stands where there was none any more: an old version was put back
    --- exit 4
    $ snapkit show latest
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
    --- stderr
    warning: the snapshot [SNAPSHOT] stands where there was none any more: an old version was put back
    --- exit 0
    $ snapkit verify
    --- stdout
    damaged: snapshots/[SNAPSHOT]: this machine saw a marker in its place: an old version was put back
    --- stderr
    examined 1 snapshot, [N] chunks; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    $ snapkit doctor
    --- stdout
    ok       local state: [DIR]/home/.local/state/snapkit, [SIZE] are free
    ok       cache: [DIR]/home/.cache/snapkit, [SIZE] are free
    ok       repository: [DIR]/repo, [SIZE] are free
    ok       repository: [HEX] at [DIR]/repo
    ok       create-only puts: honoured by the store, which `init` has tried
    ok       credential: full: it can add and read
    ok       ledger: 1 snapshot
    problem  snapshot [SNAPSHOT]: it stands where there was none any more: an old version was put back
    ok       data-[HEX]@box (full): the newest snapshot is [DURATION] old, of [TIME], complete
    ok       stored data: [N] packs listed, and all of them there; `verify` examines what is in them
    ok       last create: [TIME], complete
    ok       last restore: none is remembered here
    problem  last verify: [TIME], damage
    --- stderr
    2 problems found
    --- exit 4
    ");
}

/// Somebody's clock is ahead of ours.
#[tokio::test]
async fn a_snapshot_of_the_future() {
    let env = TestEnv::with_snapshot();
    let Inside { cx, manifest, .. } = inside(&env).await;
    let line = only(&env.path("repo/snapshots"));
    let id = line.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let LineState::Snapshot(mut snapshot) = manifest.get(&cx, &id).await.unwrap().state else {
        panic!()
    };
    snapshot.started = Timestamp::parse("2199-01-01T00:00:00Z").unwrap();
    snapshot.id = SnapshotId::new(snapshot.started, [7; 8]).unwrap();
    let session =
        Session { id: snapshot.id.clone(), started: snapshot.started, host: snapshot.host.clone() };
    manifest.begin(&cx, &session).await.unwrap();
    let committed = manifest.end(&cx, &snapshot.id, End::Commit(&snapshot)).await;
    assert_eq!(committed.unwrap(), Outcome::Won);
    // Whatever is captured later, `latest` means it: that is said.
    assert_snapshot!(said(&env, &["show latest --quiet", "restore latest --target out"]), @"
    $ snapkit show latest --quiet
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
    --- stderr
    warning: snapshot [SNAPSHOT] is of [TIME], which is yet to come: is a clock wrong? Until then `latest` means it, whatever is captured later
    --- exit 0
    $ snapkit restore latest --target out
    --- stdout
    files (files): match, 6 facts hold, 10 B to [DIR]/work/out/files
    --- stderr
    warning: snapshot [SNAPSHOT] is of [TIME], which is yet to come: is a clock wrong? Until then `latest` means it, whatever is captured later
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    match in [DURATION]
    --- exit 0
    ");
    assert_snapshot!(said(&env, &["doctor --no-sources", "create data"]), @"
    $ snapkit doctor --no-sources
    --- stdout
    ok       local state: [DIR]/home/.local/state/snapkit, [SIZE] are free
    ok       cache: [DIR]/home/.cache/snapkit, [SIZE] are free
    ok       repository: [DIR]/repo, [SIZE] are free
    ok       repository: [HEX] at [DIR]/repo
    ok       create-only puts: honoured by the store, which `init` has tried
    ok       credential: full: it can add and read
    ok       ledger: 2 snapshots
    problem  clock: the newest snapshot is of [TIME], which is yet to come: is a clock wrong?
    ok       data-[HEX]@box (full): the newest snapshot is [DURATION] old, of [TIME], complete
    ok       stored data: [N] packs listed, and all of them there; `verify` examines what is in them
    ok       last create: [TIME], complete
    ok       last restore: [TIME], match
    ok       last verify: none is remembered here
    --- stderr
    1 problem found
    --- exit 4
    $ snapkit create data
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 10 B in [DURATION]
      files (files): 1 artifact, 8 entries, 10 B
      read [SIZES]
    --- exit 0
    ");
}
