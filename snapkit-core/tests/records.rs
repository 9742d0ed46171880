//! Sequences of records, through the engine and back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod lab;

use bytes::Bytes;
use insta::assert_snapshot;
use lab::{Lab, noise};
use snapkit_core::engine::CreateReport;
use snapkit_core::error::Reason;
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::manifest::{ContentRef, Snapshot};
use snapkit_core::record::MAX_POSITION;
use snapkit_testkit::double::{ScriptedArtifact, ScriptedRecord, ScriptedSource, Stage, Trouble};

fn numbered(n: u32, value: &str) -> ScriptedRecord {
    ScriptedRecord::new(format!("key:{n:08}"), format!("{value} {n}: {}", "payload ".repeat(10)))
}

async fn round_trip(artifact: ScriptedArtifact) -> (Lab, Snapshot) {
    let lab = Lab::new([ScriptedSource::new("app").with(artifact)]).await;
    let first = lab.create().await.unwrap().snapshot;
    let restored = lab.restore(&first).await.unwrap();
    assert_eq!(restored.verdict, RestoreVerdict::Match, "{restored:?}");
    assert!(lab.is_restored(0));
    lab.assert_sound().await;
    (lab, first)
}

fn content(snapshot: &Snapshot) -> &ContentRef {
    &snapshot.sources[0].artifacts[0].content
}

/// Values of every length that matters: none, in the chunk, beside it, in parts.
#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_length_come_back() {
    let lens = [0, 1, 5000, 16 << 10, (16 << 10) + 1, 300_000, (1 << 20) + 1, 9 << 20];
    let records: Vec<_> = lens
        .into_iter()
        .zip(0u64..)
        .map(|(len, n)| ScriptedRecord::new(format!("{n}"), noise(len, n)))
        .collect();
    let bytes: u64 = records.iter().map(|record| record.value.len() as u64).sum();
    let artifact = ScriptedArtifact::records("keys", records).piece(1 << 20);
    let (_, first) = round_trip(artifact).await;
    let ContentRef::Records { count, bytes: stored, axes, .. } = content(&first) else { panic!() };
    assert_eq!(
        (*count, *stored, axes.as_slice()),
        (lens.len() as u64, bytes, &["key".to_owned()][..])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sequences_of_every_kind_come_back() {
    round_trip(ScriptedArtifact::records("none", [])).await;
    let same = |value: &'static str| ScriptedRecord::new("same place", value);
    round_trip(ScriptedArtifact::sequence("twice", &["key"], vec![same("b"), same("a")])).await;
    let message = |n: u64| ScriptedRecord {
        positions: vec![
            Bytes::copy_from_slice(&n.to_be_bytes()),
            // Times may go back.
            Bytes::copy_from_slice(&(1000 - n).to_be_bytes()),
            Bytes::new(),
            Bytes::from(vec![0xff; MAX_POSITION]),
        ],
        value: noise(100, n),
    };
    let messages = (0..300).map(message).collect();
    let axes = ["sequence", "time", "nothing", "long"];
    let (_, first) = round_trip(ScriptedArtifact::sequence("stream", &axes, messages)).await;
    let ContentRef::Records { records, .. } = content(&first) else { panic!() };
    assert!(records.size > 300 * MAX_POSITION as u64);
}

/// Many of them: the list has depth, and what changes costs a chunk.
#[tokio::test(flavor = "multi_thread")]
async fn what_changes_costs_its_chunk() {
    let all = |changed: &[u32]| {
        let value = |n: &u32| if changed.contains(n) { "changed" } else { "first" };
        let records: Vec<_> = (0..40_000).map(|n| numbered(n, value(&n))).collect();
        ScriptedArtifact::records("keys", records)
    };
    let (lab, first) = round_trip(all(&[])).await;
    let ContentRef::Records { records, .. } = content(&first) else { panic!() };
    assert!(records.depth > 0, "{} chunks", records.chunks.len());
    let create = async |artifact| {
        lab.sources[0].set(artifact);
        let CreateReport { snapshot, .. } = lab.create().await.unwrap();
        (snapshot.stats.bytes_new, snapshot)
    };
    let (same, _) = create(all(&[])).await;
    assert_eq!(same, 0);
    let (few, second) = create(all(&[7, 20_000, 39_999])).await;
    assert!(few < 3 * 64 * 1024 + 40 * 8192, "{few}");
    let repository = lab.open().await.unwrap();
    let (before, after) = (&first.sources[0], &second.sources[0]);
    let diff = repository.diff(&lab.cx, before, after, None, &mut |_, _| Ok(())).await.unwrap();
    assert!(diff.artifacts[0].differs);
    assert!((1..=few).contains(&diff.artifacts[0].bytes_new.unwrap()), "{diff:?}");
    lab.restore_with(&second, |options| options.overwrite = true).await.unwrap();
    assert!(lab.is_restored(0));
    lab.restore_with(&first, |options| options.overwrite = true).await.unwrap();
    assert!(!lab.is_restored(0));
}

/// Between two snapshots, and between one and the live system, the same is told, record by record.
#[tokio::test(flavor = "multi_thread")]
async fn differences_are_told_record_by_record() {
    let long = |seed| ScriptedRecord::new("long", noise(700_000, seed));
    let first: Vec<_> = (0..2000).map(|n| numbered(n, "first")).chain([long(1)]).collect();
    let mut second = first.clone();
    second.remove(1234);
    second[17] = numbered(17, "second");
    let last = second.len() - 1;
    second[last] = long(2);
    second.push(ScriptedRecord::new("added", "x"));
    second.push(ScriptedRecord::new("zzz", noise(100_000, 3)));
    // The same long value in pieces of another size.
    let artifact = |records: &[ScriptedRecord], piece| {
        ScriptedArtifact::records("keys", records.to_vec()).piece(piece)
    };
    let (lab, before) = round_trip(artifact(&first, 1 << 20)).await;
    lab.sources[0].set(artifact(&second, 30_000));
    let repository = lab.open().await.unwrap();
    let told = std::sync::Mutex::new(Vec::new());
    let mut note = |_: &_, change: &snapkit_core::engine::EntryChange| {
        told.lock().unwrap().push(format!("{:?} {}", change.change, change.path));
        Ok(())
    };
    let source: std::sync::Arc<dyn snapkit_core::source::Source> =
        std::sync::Arc::clone(&lab.sources[0]) as _;
    let record = &before.sources[0];
    let live = repository.diff_live(&lab.cx, record, &source, None, &mut note).await.unwrap();
    let of_live = std::mem::take(&mut *told.lock().unwrap());
    let after = lab.create().await.unwrap().snapshot;
    let stored = lab.open().await.unwrap();
    let mut again = |_: &_, change: &snapkit_core::engine::EntryChange| {
        told.lock().unwrap().push(format!("{:?} {}", change.change, change.path));
        Ok(())
    };
    let stored = stored.diff(&lab.cx, record, &after.sources[0], None, &mut again).await.unwrap();
    assert_eq!(of_live, *told.lock().unwrap());
    let counts = |diff: &snapkit_core::engine::SourceDiff| {
        let keys = &diff.artifacts[0];
        (keys.added, keys.removed, keys.changed, keys.differs)
    };
    assert_eq!((counts(&live), counts(&stored)), ((2, 1, 2, true), (2, 1, 2, true)));
    assert!(live.problems.is_empty());
    assert_snapshot!(of_live.join("\n"), @"
    Added added
    Content key:00000017
    Removed key:00001234
    Content long
    Added zzz
    ");
    // And nothing where nothing differs.
    let source: std::sync::Arc<dyn snapkit_core::source::Source> =
        std::sync::Arc::clone(&lab.sources[0]) as _;
    let mut none = |_: &_, change: &_| panic!("{change:?}");
    let same = lab.open().await.unwrap();
    let same = same.diff_live(&lab.cx, &after.sources[0], &source, None, &mut none).await.unwrap();
    assert!(!same.differs(), "{same:?}");
}

/// A source that fails in the middle leaves nothing, and the next run goes on as if nothing had been.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_fails_in_the_middle_is_told() {
    let records: Vec<_> = (0..1000).map(|n| numbered(n, "first")).collect();
    let source = ScriptedSource::new("app")
        .with(ScriptedArtifact::records("keys", records))
        .trouble(Stage::Read, Trouble::Fail(Reason::Io));
    let lab = Lab::new([source]).await;
    assert_eq!(lab.create().await.unwrap_err().reason(), Reason::Io);
    lab.sources[0].heal();
    let first = lab.create().await.unwrap().snapshot;
    lab.restore(&first).await.unwrap();
    assert!(lab.is_restored(0));
}

/// Whoever has the key can say something else about a sequence than what it is.
#[tokio::test(flavor = "multi_thread")]
async fn sequences_that_lie_are_not_believed() {
    let records: Vec<_> = (0..500).map(|n| numbered(n, "first")).collect();
    let artifacts = [
        ScriptedArtifact::records("keys", records),
        ScriptedArtifact::bytes("noise", noise(5000, 1)),
    ];
    let source = artifacts.into_iter().fold(ScriptedSource::new("app"), ScriptedSource::with);
    let lab = Lab::new([source]).await;
    let first = lab.create().await.unwrap().snapshot;
    let ContentRef::Records { records, axes, count, bytes } = content(&first).clone() else {
        panic!()
    };
    let ContentRef::Bytes { content: noise } = first.sources[0].artifacts[1].content.clone() else {
        panic!()
    };
    let with = |change: &dyn Fn(&mut ContentRef)| {
        let mut snapshot = first.clone();
        change(&mut snapshot.sources[0].artifacts[0].content);
        snapshot
    };
    let lie = |records: &snapkit_core::manifest::ChunkList, axes: &[String], count| {
        let (records, axes) = (records.clone(), axes.to_vec());
        with(&|content| {
            *content =
                ContentRef::Records { records: records.clone(), axes: axes.clone(), count, bytes };
        })
    };
    let mut reversed = records.clone();
    reversed.chunks.reverse();
    let mut said = String::new();
    for (what, snapshot) in [
        ("too few", lie(&records, &axes, count - 1)),
        ("too many", lie(&records, &axes, count + 1)),
        ("no axes", lie(&records, &[], count)),
        ("another axis", lie(&records, &["a".to_owned(), "b".to_owned()], count)),
        ("many axes", lie(&records, &vec!["a".to_owned(); 100_000], count)),
        ("out of order", lie(&reversed, &axes, count)),
        ("no records", lie(&noise, &axes, count)),
    ] {
        lab.commit(&snapshot, &serde_json::to_vec(&snapshot).unwrap()).await;
        let e = lab.restore_with(&snapshot, |options| options.overwrite = true).await.unwrap_err();
        assert_eq!(e.reason(), Reason::Corrupt, "{what}: {e}");
        let report = lab.verify(true).await.unwrap();
        assert!(!report.is_sound(), "{what}");
        said += &format!("{what}: {e}\n");
        said.extend(report.damage.iter().map(|d| format!("  {}\n", d.what)));
        // What is left of the snapshot is restored when that is asked for.
        let summary = lab
            .restore_with(&snapshot, |options| {
                (options.overwrite, options.allow_damage) = (true, true);
            })
            .await
            .unwrap();
        assert!(summary.damaged, "{what}");
        assert_eq!(lab.restored(0).len(), 1, "{what}");
    }
    assert_snapshot!(said, @"
    too few: a sequence of records is longer than it should be (artifact=keys, source=app)
      there are not as many records as there should be
    too many: a sequence of records is shorter than it should be (artifact=keys, source=app)
      there are not as many records as there should be
    no axes: a sequence of records has impossible axes (artifact=keys, source=app)
      a sequence of records has impossible axes
    another axis: a record is malformed: its value is of an unknown kind (artifact=keys, source=app)
      a record is malformed: its value is of an unknown kind
    many axes: a sequence of records has impossible axes (artifact=keys, source=app)
      a sequence of records has impossible axes
    out of order: records are out of order (artifact=keys, source=app)
      the source says that it would not restore as it was
    no records: a record is malformed: its value is of an unknown kind (artifact=keys, source=app)
      a record is malformed: its value is of an unknown kind
    ");
    lab.commit(&first, &serde_json::to_vec(&first).unwrap()).await;
    lab.assert_sound().await;
}
