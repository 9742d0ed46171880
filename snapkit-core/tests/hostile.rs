//! Repositories whose writer means harm: everything decrypts, every signature holds, and what they say is a
//! lie, or far too much.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod lab;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lab::Lab;
use snapkit_core::engine::{CreateOptions, Scope, VerifyOptions};
use snapkit_core::error::Reason;
use snapkit_core::frame::{Effort, FrameCodec};
use snapkit_core::id::{SegmentId, SnapshotId};
use snapkit_core::index::segment::TableBuilder;
use snapkit_core::index::segment_key;
use snapkit_core::key::Key;
use snapkit_core::ledger::{MAX_SNAPSHOT_VALUES, line_key};
use snapkit_core::manifest::{ChunkRef, Snapshot};
use snapkit_core::pack::{PackBuilder, PackContents, PackedFrame, pack_key};
use snapkit_core::seal::ObjectType;
use snapkit_core::sink::PutMode;
use snapkit_testkit::double::{
    RecordingSink, ScriptedArtifact, ScriptedFile, ScriptedSource, Verb,
};

fn source(seed: u64) -> ScriptedSource {
    ScriptedSource::new("app")
        .with(ScriptedArtifact::tree("data", [ScriptedFile::file("a", lab::noise(100_000, seed))]))
}

async fn put(lab: &Lab, key: &Key, object: impl Into<Bytes>) {
    lab.sink.put(&lab.cx, key, object.into(), PutMode::Overwrite).await.unwrap();
}

/// A segment that says that a chunk is where it is not: the next create would take it for known.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lies_is_not_believed() {
    let lab = Lab::new([source(1)]).await;
    let first = lab.create().await.unwrap().snapshot;
    lab.assert_sound().await;
    let credential = lab.open().await.unwrap();
    let writer = credential.credential().writer.clone();
    let packs = lab::packs_in(&lab.memory.contents(), &writer);
    let pack = packs.values().max_by_key(|pack| pack.size).unwrap();
    // What the next snapshot will need.
    let lab = Lab { sources: vec![Arc::new(source(2))], ..lab };
    let fork = lab.fork().await;
    let coming = fork.create().await.unwrap().snapshot;
    let chunks: Vec<ChunkRef> = lab::packs_in(&fork.memory.contents(), &writer)
        .into_iter()
        .filter(|(id, pack)| !packs.contains_key(id) && pack.header.object == ObjectType::DataPack)
        .flat_map(|(_, pack)| pack.frames)
        .flat_map(|frame| frame.chunks)
        .collect();
    let frame = &pack.frames[0];
    let fits = |chunk: &ChunkRef| chunk.len <= frame.raw;
    let lies: Vec<_> = chunks.into_iter().filter(fits).collect();
    assert!(!lies.is_empty(), "{coming:?}");
    let mut table = TableBuilder::default();
    for chunk in lies {
        let rest = ChunkRef { id: frame.chunks[0].id, len: frame.raw - chunk.len };
        let mut claimed = vec![chunk];
        claimed.extend((rest.len > 0).then_some(rest));
        let frames = vec![PackedFrame { chunks: claimed, ..frame.clone() }];
        table.add(&PackContents { frames, ..pack.clone() }).unwrap();
    }
    let (id, object) = table.finish().seal(&lab.cx, &writer).unwrap();
    put(&lab, &Key::new(format!("index/{id}")).unwrap(), object).await;
    // Nothing is lost of what was there.
    lab.assert_sound().await;
    lab.restore(&first).await.unwrap();
    // A create cannot know; a verify that reads finds it out.
    let second = lab.create().await.unwrap().snapshot;
    let report = lab.verify(true).await.unwrap();
    assert!(!report.is_sound());
    let lost: Vec<_> = report.damage.iter().flat_map(|d| &d.lost).collect();
    assert!(lost.iter().all(|l| l.contains(second.id.as_str())), "{lost:?}");
    let said = report.damage.iter().map(|d| d.what.as_str()).collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!(said, @"
    the index says that it holds what it does not hold
    ");
    let said = lab.restore_with(&second, |o| o.overwrite = true).await.unwrap_err().to_string();
    insta::assert_snapshot!(said.split(" (").next().unwrap(), @"
    content does not fit its name
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_there_twice_is_refused() {
    let lab = Lab::new([source(1)]).await;
    let mut snapshot = lab.create().await.unwrap().snapshot;
    let twin = snapshot.sources[0].clone();
    snapshot.sources.push(twin);
    let source = lab.restore(&snapshot).await.unwrap_err();
    let artifact = snapshot.sources[0].artifacts[0].clone();
    snapshot.sources.pop();
    snapshot.sources[0].artifacts.push(artifact);
    let artifact = lab.restore(&snapshot).await.unwrap_err();
    assert_eq!((source.reason(), artifact.reason()), (Reason::Corrupt, Reason::Corrupt));
    let said = [source, artifact].map(|e| e.chain()).join("\n");
    insta::assert_snapshot!(said, @"
    the snapshot holds a source, or an artifact of one, twice (source=app)
    the snapshot holds a source, or an artifact of one, twice (source=app)
    ");
    assert!(!lab.target().join("app").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_deeper_is_no_line() {
    let lab = Lab::new([source(1)]).await;
    let first = lab.create().await.unwrap().snapshot;
    let key = Key::new(format!("snapshots/x/{}", first.id)).unwrap();
    put(&lab, &key, "").await;
    let ledger = lab.open().await.unwrap().ledger(&lab.cx).await.unwrap();
    assert_eq!((ledger.snapshots.len(), ledger.damaged.len()), (1, 0));
    assert!(ledger.resolve("latest~1", &Scope::default()).is_err());
}

/// A document that is small and would be a thousand times that in memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_has_limits() {
    let lab = Lab::new([source(1)]).await;
    let first = lab.create().await.unwrap().snapshot;
    let mut hostile = first.clone();
    hostile.sources[0].settings = serde_json::json!(vec![0; MAX_SNAPSHOT_VALUES]);
    lab.commit(&hostile, &serde_json::to_vec(&hostile).unwrap()).await;
    let ledger = lab.open().await.unwrap().ledger(&lab.cx).await.unwrap();
    assert_eq!(ledger.damaged.len(), 1, "{ledger:?}");
    let said = ledger.damaged[0].1.chain().replace(first.id.as_str(), "ID");
    insta::assert_snapshot!(said, @"
    a snapshot has more in it than a snapshot may (key=snapshots/ID)
    ");
    // So it is with depth, and with length.
    let deep = "[".repeat(500_000);
    lab.commit(&first, deep.as_bytes()).await;
    let long = format!("{{\"x\":\"{}\"}}", "y".repeat(17 << 20));
    let ledger = lab.open().await.unwrap().ledger(&lab.cx).await.unwrap();
    assert_eq!(ledger.damaged.len(), 1);
    lab.commit(&first, long.as_bytes()).await;
    let ledger = lab.open().await.unwrap().ledger(&lab.cx).await.unwrap();
    assert!(ledger.damaged[0].1.to_string().contains("too long"), "{:?}", ledger.damaged);
    lab.commit(&first, &serde_json::to_vec(&first).unwrap()).await;
    lab.restore(&first).await.unwrap();
}

/// A list shows names and tags of every snapshot: they have an end.
#[tokio::test(flavor = "multi_thread")]
async fn names_and_tags_have_limits() {
    let lab = Lab::new([source(1)]).await;
    let first = lab.create().await.unwrap().snapshot;
    let long = |len: usize| BTreeMap::from([("tag".to_owned(), "x".repeat(len))]);
    for (len, fits) in [(60 << 10, true), (64 << 10, false)] {
        let hostile = Snapshot { tags: long(len), ..first.clone() };
        lab.commit(&hostile, &serde_json::to_vec(&hostile).unwrap()).await;
        let ledger = lab.open().await.unwrap().ledger(&lab.cx).await.unwrap();
        assert_eq!((ledger.snapshots.len(), ledger.damaged.len()), (fits.into(), (!fits).into()));
        // Nobody makes one that nobody can list.
        let options = CreateOptions { tags: long(len), dry_run: true, ..CreateOptions::default() };
        let made = lab.open().await.unwrap().create(&lab.cx, &lab.stack(), &options).await;
        assert_eq!(made.err().map(|e| e.reason()), (!fits).then_some(Reason::LimitExceeded));
    }
}

/// Whoever can write to the place can put objects there that fill the memory of who reads them.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_longer_than_its_kind_may_be_is_not_read() {
    let lab = Lab::new([source(1)]).await;
    let first = lab.create().await.unwrap().snapshot;
    let forged: SnapshotId = "20260101T000000Z-0000000000000000".parse().unwrap();
    let long = [
        (line_key(&forged).unwrap(), 17 << 20),
        (Key::new(format!("sessions/{forged}/0")).unwrap(), 1 << 20),
        (Key::new(format!("notes/{}/junk", first.id)).unwrap(), 1 << 20),
        (Key::new(format!("keys/{}.age", "0".repeat(32))).unwrap(), 1 << 20),
        (segment_key(SegmentId([0; 32])).unwrap(), 33 << 20),
    ];
    for (key, len) in &long {
        put(&lab, key, vec![0; *len]).await;
    }
    let recording = Arc::new(RecordingSink::new(Arc::clone(&lab.sink)));
    let repository = lab.open_on(Arc::clone(&recording) as _).await.unwrap();
    let options = VerifyOptions { read_data: true, ..VerifyOptions::default() };
    let report = repository.verify(&lab.cx, &lab.registry(), &options).await.unwrap();
    for (key, _) in &long {
        recording.assert_none(Verb::Get, key.as_str());
        let said = report.damage.iter().find(|d| d.object == key.as_str());
        assert!(said.is_some_and(|d| d.what.contains("too long")), "{key}: {:#?}", report.damage);
    }
    assert_eq!(report.damage.len(), long.len(), "{:#?}", report.damage);
}

/// A pack whose name, trailer and seals are right, and whose content is not what its chunks are named after:
/// whether or not the check of a source reads it first, a verify finds it out.
#[tokio::test(flavor = "multi_thread")]
async fn a_pack_with_other_content_is_not_believed() {
    let content = || lab::noise(300_000, 1);
    let artifacts = [
        ScriptedArtifact::tree("data", [ScriptedFile::file("a", content())]),
        ScriptedArtifact::bytes("data", content()),
    ];
    for artifact in artifacts {
        let lab = Lab::new([ScriptedSource::new("app").with(artifact)]).await;
        let first = lab.create().await.unwrap().snapshot;
        let writer = lab.open().await.unwrap().credential().writer.clone();
        let packs = lab::packs_in(&lab.memory.contents(), &writer);
        let mut table = TableBuilder::default();
        for pack in packs.values() {
            if pack.header.object != ObjectType::DataPack {
                table.add(pack).unwrap();
                continue;
            }
            let mut forged = PackBuilder::new(&lab.cx, &writer, ObjectType::DataPack, 0).unwrap();
            for frame in &pack.frames {
                let other = lab::noise(frame.raw as usize, 2);
                let plain = FrameCodec::new(false).encode(&other, Effort::Level(3)).unwrap();
                forged.append(plain, frame.chunks.clone()).unwrap();
            }
            let (object, contents) = forged.finish().unwrap();
            put(&lab, &pack_key(contents.id).unwrap(), object).await;
            lab.sink.delete(&lab.cx, &pack_key(pack.id).unwrap()).await.unwrap();
            table.add(&contents).unwrap();
        }
        for key in lab.memory.contents().into_keys().filter(|k| k.as_str().starts_with("index/")) {
            lab.sink.delete(&lab.cx, &key).await.unwrap();
        }
        let (id, object) = table.finish().seal(&lab.cx, &writer).unwrap();
        put(&lab, &segment_key(id).unwrap(), object).await;
        lab.forget_local();
        // All is there that has to be there, and decrypts.
        assert!(lab.verify(false).await.unwrap().is_sound());
        let report = lab.verify(true).await.unwrap();
        let lost: Vec<_> = report.damage.iter().flat_map(|d| &d.lost).collect();
        assert!(lost.iter().any(|l| l.contains(first.id.as_str())), "{report:#?}");
        assert!(lab.restore(&first).await.is_err());
    }
}

/// Junk in the place of lines is told one by one, up to an end.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_of_junk_has_an_end() {
    let lab = Lab::new([source(1)]).await;
    lab.create().await.unwrap();
    for (from, to, fits) in [(0, 1000, true), (1000, 45_000, false)] {
        for n in from..to {
            put(&lab, &Key::new(format!("snapshots/20260101T000000Z-{n:016x}")).unwrap(), "").await;
        }
        let ledger = lab.open().await.unwrap().ledger(&lab.cx).await;
        let told = ledger.map(|l| l.damaged.len()).map_err(|e| e.reason());
        assert_eq!(told, if fits { Ok(to) } else { Err(Reason::LimitExceeded) });
    }
}

/// What nobody would read is not written: forgetting must not leave a damaged line.
#[tokio::test(flavor = "multi_thread")]
async fn a_marker_says_no_more_than_can_be_read() {
    let lab = Lab::new([source(1)]).await;
    let first = lab.create().await.unwrap().snapshot;
    let repository = lab.open().await.unwrap();
    let forget = |len: usize| {
        let (repository, cx, id) = (&repository, &lab.cx, &first.id);
        async move { repository.manifest().forget(cx, id, &"x".repeat(len)).await }
    };
    assert_eq!(forget(64 << 10).await.unwrap_err().reason(), Reason::LimitExceeded);
    lab.restore(&first).await.unwrap();
    forget(60 << 10).await.unwrap();
    let ledger = repository.ledger(&lab.cx).await.unwrap();
    assert_eq!((ledger.markers.len(), ledger.damaged.len()), (1, 0));
    // Whoever has a key can write it all the same, and fill memory with it.
    let (credential, key) = (repository.credential(), line_key(&first.id).unwrap());
    let shared = credential.writer.begin_shared(&lab.cx, ObjectType::Marker, key.as_str());
    let (header, sealer) = shared.unwrap();
    let marker = serde_json::json!({
        "id": first.id, "state": "forgotten", "at": first.started, "reason": "x".repeat(64 << 10),
    });
    let mut frame = serde_json::to_vec(&marker).unwrap();
    sealer.seal(0, &mut frame).unwrap();
    let mut object = header.encode();
    object.extend_from_slice(&frame);
    credential.signer.sign(key.as_str(), &mut object);
    put(&lab, &key, object).await;
    let ledger = repository.ledger(&lab.cx).await.unwrap();
    assert!(ledger.damaged[0].1.to_string().contains("too long"), "{:?}", ledger.damaged);
}
