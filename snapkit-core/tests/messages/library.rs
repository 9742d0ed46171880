//! What a program hears that embeds the engine, and uses it in a way in which it cannot be used.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use insta::assert_snapshot;
use snapkit_core::config::{ManifestPlace, RepositoryConfig};
use snapkit_core::context::{Context, Simulated, System, Timestamp};
use snapkit_core::credential::{Credential, Unlock, generate_key_file};
use snapkit_core::engine::{
    CreateOptions, Gate, MIN_MEMORY, OpenOptions, Repository, Scope, Stack, VerifyOptions,
};
use snapkit_core::error::{Error, Reason};
use snapkit_core::id::{RepositoryFingerprint, SnapshotId, to_hex};
use snapkit_core::key::Key;
use snapkit_core::ledger::line_key;
use snapkit_core::manifest::{End, Session};
use snapkit_core::memory::MemorySink;
use snapkit_core::progress::Silent;
use snapkit_core::seal::{FORMAT, ObjectType};
use snapkit_core::secret::Secret;
use snapkit_core::sign::Role;
use snapkit_core::sink::{MAX_OBJECT, PutMode, Sink};
use snapkit_core::tree::EntryPath;
use snapkit_testkit::double::{
    RecordingProgress, ScriptedArtifact, ScriptedSource, Stage, Trouble,
};

use crate::decoders::{context, without_numbers};
use crate::lab::Lab;

fn line<T>(result: Result<T, Error>) -> String {
    let e = result.err().unwrap();
    format!("{} ({}, exit {})\n", e.chain(), e.reason(), e.reason().row().exit)
}

#[test]
fn of_names_and_times() {
    let mut all = String::new();
    for name in ["", "/a", "a//b", ".hidden", "a b", &"x".repeat(300)] {
        all += &line(Key::new(name));
    }
    for path in ["", "/a", "a/../b", "a//b"] {
        all += &line(EntryPath::new(path));
    }
    all += &line("20260115".parse::<SnapshotId>());
    all += &line("xyz".parse::<RepositoryFingerprint>());
    all += &line(Timestamp::parse("yesterday"));
    all += &line(SnapshotId::new(Timestamp(-1), [0; 8]));
    assert_snapshot!(all.replace(&"x".repeat(300), "[LONG]"), @r#"
    not an object name: "" (invalid-name, exit 2)
    not an object name: "/a" (invalid-name, exit 2)
    not an object name: "a//b" (invalid-name, exit 2)
    not an object name: ".hidden" (invalid-name, exit 2)
    not an object name: "a b" (invalid-name, exit 2)
    not an object name: "[LONG]" (invalid-name, exit 2)
    not a path inside a tree: "" (invalid-name, exit 2)
    not a path inside a tree: "/a" (invalid-name, exit 2)
    not a path inside a tree: "a/../b" (invalid-name, exit 2)
    not a path inside a tree: "a//b" (invalid-name, exit 2)
    not a snapshot id: "20260115" (invalid-name, exit 2)
    not 32 bytes of lower-case hexadecimal: "xyz" (invalid-name, exit 2)
    not a time such as 2026-01-15T14:30:00Z: "yesterday" (invalid-argument, exit 2)
    the clock is not between the years 1970 and 9999 (invalid-argument, exit 2)
    "#);
}

/// A credential that adds snapshots, and one that others wrote.
#[test]
fn of_credentials() {
    let cx = context();
    let full = Credential::create(&cx).unwrap();
    let writer = full.derive(&cx, Role::Writer).unwrap();
    let mut all = line(writer.derive(&cx, Role::Full));
    all += &line(writer.certifier());
    all += &line(writer.reader());
    all += &line(full.encode(&Unlock::KeyFile(Secret::new("# nothing\n".to_owned()))));
    all += &line(full.encode(&Unlock::KeyFile(Secret::new("nonsense\n".to_owned()))));
    assert_snapshot!(all, @"
    a writer credential cannot make others (key-cannot-read, exit 12)
    a writer credential cannot do this (key-cannot-read, exit 12)
    this credential can add snapshots but not read them (key-cannot-read, exit 12)
    the key file holds no age identity (no-key, exit 12)
    a line of the key file is not an age identity (AGE-SECRET-KEY-1…) (no-key, exit 12)
    ");

    let config = RepositoryConfig {
        format: FORMAT.to_owned(),
        repository: full.writer.repository,
        public_key: to_hex(&full.writer.public),
        certifier: to_hex(&full.certifier().unwrap().verifying_key().to_bytes()),
        created: Timestamp(0),
        create_only: true,
        manifest: ManifestPlace::Stored,
    };
    let unlock = Unlock::KeyFile(generate_key_file());
    let Unlock::KeyFile(text) = &unlock else { unreachable!() };
    let secret = text.expose().lines().find(|l| l.starts_with("AGE-SECRET-KEY")).unwrap();
    let identity: age::x25519::Identity = secret.parse().unwrap();
    let plain = age::decrypt(&identity, &full.encode(&unlock).unwrap()).unwrap();
    // One field after the other is another one.
    let document: serde_json::Value = serde_json::from_slice(&plain).unwrap();
    let mut said = BTreeSet::new();
    let mut hear = |plain: &[u8]| {
        let file = age::encrypt(&identity.to_public(), plain).unwrap();
        let e = Credential::decode(full.id, &file, &unlock, &config).err().unwrap();
        said.insert(without_numbers(&format!(
            "{e} ({}, exit {})",
            e.reason(),
            e.reason().row().exit
        )));
    };
    hear(b"[]");
    for (field, value) in document.as_object().unwrap() {
        for other in [serde_json::json!("00"), serde_json::json!(null)] {
            let mut changed = document.clone();
            changed[field] = other;
            hear(changed.to_string().as_bytes());
        }
        let mut changed = document.clone();
        changed[field] = value.as_str().unwrap().replace(|c: char| c.is_ascii_digit(), "f").into();
        if changed[field] != *value && !field.ends_with("_key") || field == "signing_key" {
            hear(changed.to_string().as_bytes());
        }
    }
    assert_snapshot!(said.into_iter().collect::<Vec<_>>().join("\n"), @r#"
    a credential file stands under another's name (corrupt, exit N)
    a credential has format "N", this program knows "N" (format-mismatch, exit N)
    a credential holds something else than keys (corrupt, exit N)
    a credential is malformed (corrupt, exit N)
    a signature does not hold (credential=N) (bad-signature, exit N)
    the credential belongs to another repository than the config beside it (repository-replaced, exit N)
    "#);
    let file = full.encode(&unlock).unwrap();
    let mut said = BTreeSet::new();
    for len in 0..file.len() {
        if let Err(e) = Credential::decode(full.id, &file[..len], &unlock, &config) {
            said.insert(without_numbers(&e.chain()));
        }
    }
    assert_snapshot!(said.into_iter().collect::<Vec<_>>().join("\n"), @"
    a credential file is damaged: Incomplete header
    a credential file is damaged: age file is truncated
    a credential file is damaged: decryption error
    a credential file is damaged: failed to fill whole buffer
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_stacks() {
    let tree = || ScriptedArtifact::bytes("data", "x");
    let lab = Lab::new([ScriptedSource::new("app").with(tree())]).await;
    let repository = lab.open().await.unwrap();
    let create = async |sources: Vec<Arc<ScriptedSource>>| {
        let sources = sources.into_iter().map(|s| s as _).collect();
        let stack = Stack::new("test", "host", sources);
        line(repository.create(&lab.cx, &stack, &CreateOptions::default()).await)
    };
    let mut all = create(Vec::new()).await;
    let twin = || Arc::new(ScriptedSource::new("app").with(tree()));
    all += &create(vec![twin(), twin()]).await;
    let slow = ScriptedSource::new("app").with(tree()).delay(Stage::Freeze, Duration::from_secs(2));
    let mut stack = Stack::new("test", "host", vec![Arc::new(slow) as _]);
    stack.window = Duration::from_millis(100);
    all += &line(repository.create(&lab.cx, &stack, &CreateOptions::default()).await);
    assert_snapshot!(all, @"
    there is nothing to capture: the set has no sources (invalid-argument, exit 2)
    two sources have the name app (invalid-argument, exit 2)
    the window of 100ms in which all are to be frozen has passed (source=app): the time limit has passed (timed-out, exit 75)
    ");
}

/// A target that cannot be left as it was is told, beside why nothing came to it.
#[tokio::test(flavor = "multi_thread")]
async fn of_targets() {
    let progress = Arc::new(RecordingProgress::new());
    let cx = Context::new(Arc::new(System::new()), Arc::clone(&progress) as _);
    let source = ScriptedSource::new("app").with(ScriptedArtifact::bytes("data", "x"));
    let lab = Lab::with(cx, [source]).await;
    let first = lab.create().await.unwrap().snapshot;
    for stage in [Stage::Put, Stage::RestoreAbort] {
        lab.sources[0].make_trouble(stage, None, Trouble::Fail(Reason::NoSpace));
        let artifact = first.sources[0].artifacts[0].meta.name.clone();
        lab.sources[0].make_trouble(stage, Some(artifact), Trouble::Fail(Reason::NoSpace));
    }
    let mut all = line(lab.restore(&first).await);
    all += &progress.warnings().join("\n");
    assert_snapshot!(all, @"
    scripted failure (source=app, stage=Put, artifact=data, source=app) (no-space, exit 1)
    app: the target could not be left as it was: scripted failure (source=app, stage=RestoreAbort)
    ");
}

/// What is taken out of a ledger, or put into it under another's name.
#[tokio::test(flavor = "multi_thread")]
async fn of_ledgers() {
    let source = ScriptedSource::new("app").with(ScriptedArtifact::bytes("data", "x"));
    let lab = Lab::new([source]).await;
    let first = lab.create().await.unwrap().snapshot;
    let repository = lab.open().await.unwrap();
    let manifest = repository.manifest();
    let session = Session { id: first.id.clone(), started: first.started, host: "host".to_owned() };
    let mut all =
        line(manifest.begin(&lab.cx, &session).await.and(manifest.begin(&lab.cx, &session).await));
    // The seals of a marker and of a note hold only where they were made for.
    let second = lab.create().await.unwrap().snapshot;
    manifest.forget(&lab.cx, &second.id, "not needed").await.unwrap();
    let copy = async |from: Key, to: Key| {
        let object = lab.sink.get(&lab.cx, &from, None).await.unwrap();
        lab.sink.put(&lab.cx, &to, object, PutMode::Overwrite).await.unwrap();
    };
    copy(line_key(&second.id).unwrap(), line_key(&first.id).unwrap()).await;
    let third = lab.create().await.unwrap().snapshot;
    let fourth = lab.create().await.unwrap().snapshot;
    // Whoever has a key can seal anything anew.
    let credential = repository.credential();
    let put = async |object: ObjectType, key: Key, document: serde_json::Value| {
        let (header, sealer) = match object {
            ObjectType::Marker => {
                credential.writer.begin_shared(&lab.cx, object, key.as_str()).unwrap()
            }
            _ => credential.writer.begin(&lab.cx, object, key.as_str()).unwrap(),
        };
        let mut frame = serde_json::to_vec(&document).unwrap();
        sealer.seal(0, &mut frame).unwrap();
        let mut object = header.encode();
        object.extend_from_slice(&frame);
        credential.signer.sign(key.as_str(), &mut object);
        lab.sink.put(&lab.cx, &key, object.into(), PutMode::Overwrite).await.unwrap();
    };
    let marker = |id: &SnapshotId, reason: &str| serde_json::json!({ "id": id, "state": "forgotten", "at": third.started, "reason": reason });
    put(ObjectType::Marker, line_key(&third.id).unwrap(), marker(&second.id, "x")).await;
    put(
        ObjectType::Marker,
        line_key(&fourth.id).unwrap(),
        marker(&fourth.id, &"x".repeat(64 << 10)),
    )
    .await;
    let fifth = lab.create().await.unwrap().snapshot;
    let note = |id: &SnapshotId, tag: &str| serde_json::json!({ "at": third.started, "id": id, "set": { "tag": tag } });
    let note_key = |name: &str| Key::new(format!("notes/{}/{name}", fifth.id)).unwrap();
    put(ObjectType::Note, note_key("a"), note(&second.id, "x")).await;
    put(ObjectType::Note, note_key("b"), note(&fifth.id, &"x".repeat(70 << 10))).await;
    let ledger = lab.open().await.unwrap().ledger(&lab.cx).await.unwrap();
    for (id, e) in &ledger.damaged {
        assert_ne!(*id, fifth.id);
        all += &format!("{}\n", e.chain());
    }
    for (_, e) in &ledger.damaged_notes {
        all += &format!("{}\n", e.chain());
    }
    all += &line(ledger.resolve(first.id.as_str(), &Scope::default()));
    // In which order they are told hangs on their random ids.
    let said: BTreeSet<_> = all.lines().map(without_numbers).collect();
    assert_snapshot!(said.into_iter().collect::<Vec<_>>().join("\n"), @"
    a marker is too long (key=snapshots/N-N)
    a marker stands under another's name (key=snapshots/N-N)
    a note is too long
    a note stands under another snapshot's name
    a session of this id exists (key=sessions/N-N/N) (already-exists, exit N)
    a signature does not hold (key=snapshots/N-N)
    snapshot N-N is damaged: a signature does not hold (key=snapshots/N-N) (bad-signature, exit N)
    ");
}

/// More than a line of the ledger may say.
#[tokio::test(flavor = "multi_thread")]
async fn of_documents_that_are_too_long() {
    let source = ScriptedSource::new("app").with(ScriptedArtifact::bytes("data", "x"));
    let lab = Lab::new([source]).await;
    let made = lab.create().await.unwrap().snapshot;
    let repository = lab.open().await.unwrap();
    let manifest = repository.manifest();
    let mut all = String::new();
    for settings in [serde_json::json!(vec![0; 1 << 20]), "x".repeat(16 << 20).into()] {
        let mut snapshot = made.clone();
        snapshot.id = SnapshotId::new(made.started, [7; 8]).unwrap();
        snapshot.sources[0].settings = settings;
        let session =
            Session { id: snapshot.id.clone(), started: snapshot.started, host: "host".to_owned() };
        drop(manifest.begin(&lab.cx, &session).await);
        all += &line(manifest.end(&lab.cx, &snapshot.id, End::Commit(&snapshot)).await);
    }
    all += &line(manifest.forget(&lab.cx, &made.id, &"x".repeat(64 << 10)).await);
    assert_snapshot!(without_numbers(&all), @"
    the snapshot's document has more than N values (limit-exceeded, exit N)
    the snapshot's document has N bytes, the limit is N (limit-exceeded, exit N)
    what a marker says has N bytes, the limit is N (limit-exceeded, exit N)
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_opening() {
    let lab =
        Lab::new([ScriptedSource::new("app").with(ScriptedArtifact::bytes("data", "x"))]).await;
    let open = async |unlock: &[Unlock], change: fn(&mut OpenOptions)| {
        let mut options = lab.options();
        change(&mut options);
        line(Repository::open(&lab.cx, Arc::clone(&lab.sink), unlock, options).await)
    };
    let unlock = std::slice::from_ref(&lab.unlock);
    let mut all = open(&[], |_| {}).await;
    all += &open(&[Unlock::KeyFile(generate_key_file())], |_| {}).await;
    all += &open(&[Unlock::KeyFile(Secret::new("nonsense".to_owned()))], |_| {}).await;
    all += &open(&[Unlock::Passphrase(Secret::new("hunter2".to_owned()))], |_| {}).await;
    all += &open(unlock, |o| o.memory = MIN_MEMORY - 1).await;
    all += &open(unlock, |o| o.fingerprint = Some(RepositoryFingerprint([7; 32]))).await;
    let empty: Arc<dyn Sink> = Arc::new(MemorySink::new());
    all += &line(Repository::open(&lab.cx, Arc::clone(&empty), unlock, lab.options()).await);
    all += &line(Repository::init(&lab.cx, &lab.sink, &lab.unlock).await);
    assert!(!all.contains("hunter2"));
    let all = without_numbers(&all);
    assert_snapshot!(all, @"
    no key file and no passphrase was given (location=memory://) (no-key, exit N)
    no key that was given opens this repository (location=memory://, repository=N) (wrong-key, exit N)
    a line of the key file is not an age identity (AGE-SECRET-KEY-N…) (no-key, exit N)
    no key that was given opens this repository (location=memory://, repository=N) (wrong-key, exit N)
    the memory budget must be at least N bytes (invalid-argument, exit N)
    this is not the repository that was expected (location=memory://, expected=N, found=N) (repository-replaced, exit N)
    there is no snapkit repository here (location=memory://) (no-repository, exit N)
    there is a repository already (location=memory://) (repository-exists, exit N)
    ");
}

#[tokio::test]
async fn of_a_sink_in_memory() {
    let cx = context();
    let sink = MemorySink::new();
    let key = Key::new("packs/one").unwrap();
    let get = async |range| line(sink.get(&cx, &key, range).await);
    let mut all = get(None).await;
    sink.put(&cx, &key, Bytes::from_static(b"123"), PutMode::Create).await.unwrap();
    all += &get(Some(1..4)).await;
    #[expect(clippy::reversed_empty_ranges, reason = "that is the mistake")]
    let reversed = 2..1;
    all += &get(Some(reversed)).await;
    let long = Bytes::from(vec![0; usize::try_from(MAX_OBJECT).unwrap() + 1]);
    all += &line(sink.put(&cx, &key, long, PutMode::Overwrite).await);
    assert_snapshot!(all, @"
    there is no such object (key=packs/one) (not-found, exit 1)
    an object is shorter than it should be (key=packs/one, length=3, wanted=1..4) (corrupt, exit 4)
    an object is shorter than it should be (key=packs/one, length=3, wanted=2..1) (corrupt, exit 4)
    an object exceeds 67108864 bytes (key=packs/one, length=67108865) (limit-exceeded, exit 1)
    ");
}

/// A clock that stands before the time in which ids have their place.
#[tokio::test]
async fn of_clocks() {
    let cx = Context::new(
        Arc::new(Simulated::new(1, Timestamp(-1_000_000_000_000_000))),
        Arc::new(Silent),
    );
    let source = ScriptedSource::new("app").with(ScriptedArtifact::bytes("data", "x"));
    let lab = Lab::with(cx, [source]).await;
    assert_snapshot!(line(lab.create().await), @"the clock is not between the years 1970 and 9999 (invalid-argument, exit 2)");
    let late = lab.cx.within(Duration::ZERO);
    assert_snapshot!(line(late.check()), @"the time limit has passed (timed-out, exit 75)");
    let cancelled = lab.cx.within(Duration::from_secs(9));
    cancelled.cancel();
    assert_snapshot!(line(cancelled.check()), @"cancelled (cancelled, exit 130)");
}

/// A session that somebody else has ended while it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_session_that_was_ended() {
    let source = ScriptedSource::new("app").with(ScriptedArtifact::bytes("data", "x"));
    let lab = Lab::new([source]).await;
    let gate = Ending { repository: lab.open().await.unwrap(), memory: Arc::clone(&lab.memory) };
    let mut stack = lab.stack();
    stack.gate = Some(Arc::new(gate));
    let repository = lab.open().await.unwrap();
    let made = repository.create(&lab.cx, &stack, &CreateOptions::default()).await;
    assert_snapshot!(without_numbers(&line(made)), @"the session was ended by somebody else (session=N-N) (session-lost, exit N)");
    assert!(lab.snapshots().await.is_empty());
}

/// Ends the session that it is called by.
struct Ending {
    repository: Repository,
    memory: Arc<MemorySink>,
}

impl std::fmt::Debug for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ending")
    }
}

#[async_trait::async_trait]
impl Gate for Ending {
    async fn close(&self, cx: &Context) -> Result<(), Error> {
        let keys = self.memory.contents();
        let session = keys.keys().find_map(|key| key.as_str().strip_prefix("sessions/"));
        let id: SnapshotId = session.and_then(|s| s.split('/').next()).unwrap().parse()?;
        self.repository.manifest().end(cx, &id, End::Abort("it took too long")).await.map(drop)
    }

    async fn open(&self, _: &Context) -> Result<(), Error> {
        Ok(())
    }
}

/// Who can only add sees that there are snapshots.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_repository_that_cannot_be_read() {
    let source = ScriptedSource::new("app").with(ScriptedArtifact::bytes("data", "x"));
    let lab = Lab::new([source]).await;
    let first = lab.create().await.unwrap().snapshot;
    let full = lab.open().await.unwrap();
    let writer = full.credential().derive(&lab.cx, Role::Writer).unwrap();
    let unlock = Unlock::KeyFile(generate_key_file());
    let file = writer.encode(&unlock).unwrap();
    lab.sink.put(&lab.cx, &writer.key().unwrap(), file.into(), PutMode::Create).await.unwrap();
    let lab = Lab { unlock, ..lab };
    let repository = lab.open().await.unwrap();
    let ledger = repository.ledger(&lab.cx).await.unwrap();
    assert_eq!(ledger.sealed.len(), 1);
    let mut all = line(ledger.resolve(first.id.as_str(), &Scope::default()));
    all += &line(lab.restore(&first).await);
    let read_data = VerifyOptions { read_data: true, ..VerifyOptions::default() };
    all += &line(repository.verify(&lab.cx, &lab.registry(), &read_data).await);
    assert_snapshot!(without_numbers(&all), @"
    snapshot N-N is sealed to this credential (key-cannot-read, exit N)
    this credential can add snapshots but not read them (key-cannot-read, exit N)
    this credential can add snapshots but not read them (key-cannot-read, exit N)
    ");
    // It adds all the same.
    lab.create().await.unwrap();
}

/// Between listing and reading, somebody forgets.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_snapshot_that_goes_meanwhile() {
    let source = ScriptedSource::new("app").with(ScriptedArtifact::bytes("data", "x"));
    let lab = Lab::new([source]).await;
    lab.create().await.unwrap();
    let repository = lab.open().await.unwrap();
    let ledger = repository.ledger(&lab.cx).await.unwrap();
    let head = &ledger.snapshots[0];
    repository.manifest().forget(&lab.cx, &head.id, "it was too old").await.unwrap();
    let said = line(repository.snapshot(&lab.cx, head).await);
    assert_snapshot!(said.replace(head.id.as_str(), "ID"), @"
    the snapshot ID is gone meanwhile: it was too old (no-snapshot, exit 1)
    ");
}
