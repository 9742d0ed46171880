//! Conformance of manifests: what [`Manifest`] promises, sentence by sentence.
//!
//! Every function takes an empty manifest, and panics when a sentence does not hold. Where a
//! snapshot may be read back, both [`LineState::Snapshot`] and [`LineState::Sealed`] will do: a
//! credential that adds may be unable to read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::StreamExt as _;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Chunking, Shape, SourceName};
use snapkit_core::context::{Context, Timestamp};
use snapkit_core::error::Reason;
use snapkit_core::facts::Facts;
use snapkit_core::id::{ChunkId, SnapshotId};
use snapkit_core::manifest::{
    ArtifactRecord, CaptureStats, CaptureVerdict, ChunkList, ChunkRef, ContentRef, End, Line,
    LineState, Manifest, MarkerState, Note, Outcome, Problems, Session, Snapshot, SourceRecord,
    SourceStats,
};
use snapkit_core::source::{Consistency, Cut};

use crate::random::Seeded;
use crate::verdict::{hold, must, must_fail};

/// Run the whole suite. `make` gives an empty manifest each time, independent of those before.
pub async fn all(cx: &Context, make: impl AsyncFn() -> Arc<dyn Manifest>) {
    a_session_is_no_snapshot(cx, make().await).await;
    a_commit_is_read_back(cx, make().await).await;
    the_same_end_wins_again(cx, make().await).await;
    an_abort_stands(cx, make().await).await;
    a_commit_stands(cx, make().await).await;
    one_of_racing_ends_wins(cx, make().await).await;
    forgetting_leaves_a_marker(cx, make().await).await;
    forgotten_stays_forgotten(cx, make().await).await;
    what_is_missing_is_no_snapshot(cx, make().await).await;
    everything_is_listed(cx, make().await).await;
    notes_are_kept(cx, make().await).await;
}

/// A snapshot with a bit of everything in it, the same for the same `seed`.
#[must_use]
pub fn snapshot(seed: u64) -> Snapshot {
    let mut random = Seeded::new(seed);
    let mut id = [0; 8];
    random.fill(&mut id);
    let at = |s: u64| {
        Timestamp(i64::try_from(1_768_487_400 + seed % 10_000 + s).unwrap_or(0) * 1_000_000_000)
    };
    let mut chunk = [0; 32];
    random.fill(&mut chunk);
    let chunks = vec![ChunkRef { id: ChunkId(chunk), len: 4711 }];
    let mut facts = Facts::new();
    facts.pin("rows", seed);
    facts.observe("version", "7.2");
    let name = must("the suite's own names are names", ArtifactName::new("main.db"));
    let meta = ArtifactMeta::new(name, Shape::Bytes, "application/octet-stream", Chunking::Content);
    let source = SourceRecord {
        name: must("the suite's own names are names", SourceName::new("app")),
        kind: "sqlite".to_owned(),
        settings: serde_json::json!({ "path": "/var/lib/app.db" }),
        cut: Some(Cut {
            begin: at(1),
            end: at(2),
            consistency: Consistency::Point,
            position: Some("42".to_owned()),
        }),
        artifacts: vec![ArtifactRecord::new(
            meta.size(4711).fingerprint("f").attribute("page_size", "4096"),
            ContentRef::Bytes { content: ChunkList { size: 4711, depth: 0, chunks } },
        )],
        facts,
        verdict: CaptureVerdict::Complete,
        problems: Problems::default(),
        stats: SourceStats { bytes_read: 4711, bytes_new: 4711, bytes_stored: 815 },
    };
    Snapshot {
        id: must("the suite's own ids are ids", SnapshotId::new(at(0), id)),
        previous: None,
        stack: "shop".to_owned(),
        host: "host".to_owned(),
        set: "full".to_owned(),
        name: (seed.is_multiple_of(2)).then(|| format!("named {seed}")),
        tags: BTreeMap::from([("reason".to_owned(), "test".to_owned())]),
        started: at(0),
        finished: at(3),
        cut_micros: 1_000_000,
        sources: vec![source],
        verdict: CaptureVerdict::Complete,
        stats: CaptureStats { bytes: 4711, ..CaptureStats::default() },
        program: "snapkit-testkit".to_owned(),
    }
}

/// A session that began and lives has no line yet.
pub async fn a_session_is_no_snapshot(cx: &Context, manifest: Arc<dyn Manifest>) {
    let snapshot = begin(cx, &*manifest, 1).await;
    for beat in 1..=3 {
        must("a heartbeat succeeds", manifest.heartbeat(cx, &snapshot.id, beat).await);
    }
    let got = manifest.get(cx, &snapshot.id).await;
    must_fail("a session that runs is no snapshot", Reason::NoSnapshot, got);
    hold!(lines(cx, &*manifest).await.is_empty(), "a session that runs has no line");
}

/// A committed snapshot is read back as it was, at once, by `get` and by `list`.
pub async fn a_commit_is_read_back(cx: &Context, manifest: Arc<dyn Manifest>) {
    let snapshot = begin(cx, &*manifest, 2).await;
    ends(cx, &*manifest, &snapshot.id, End::Commit(&snapshot), Outcome::Won).await;
    stands(cx, &*manifest, &snapshot).await;
}

/// A repeated call of the same end says `Won` too.
pub async fn the_same_end_wins_again(cx: &Context, manifest: Arc<dyn Manifest>) {
    let snapshot = begin(cx, &*manifest, 3).await;
    for _ in 0..3 {
        ends(cx, &*manifest, &snapshot.id, End::Commit(&snapshot), Outcome::Won).await;
        stands(cx, &*manifest, &snapshot).await;
    }
    let aborted = begin(cx, &*manifest, 4).await;
    for _ in 0..3 {
        ends(cx, &*manifest, &aborted.id, End::Abort("a reason"), Outcome::Won).await;
        is_marker(cx, &*manifest, &aborted.id, MarkerState::Aborted).await;
    }
}

/// Once aborted, a session never becomes a snapshot.
pub async fn an_abort_stands(cx: &Context, manifest: Arc<dyn Manifest>) {
    let snapshot = begin(cx, &*manifest, 5).await;
    ends(cx, &*manifest, &snapshot.id, End::Abort("no heartbeat"), Outcome::Won).await;
    for _ in 0..2 {
        ends(cx, &*manifest, &snapshot.id, End::Commit(&snapshot), Outcome::Lost).await;
        is_marker(cx, &*manifest, &snapshot.id, MarkerState::Aborted).await;
    }
}

/// Once committed, a session cannot be aborted, nor, where its snapshot can be read, committed with
/// other content.
pub async fn a_commit_stands(cx: &Context, manifest: Arc<dyn Manifest>) {
    let snapshot = begin(cx, &*manifest, 6).await;
    ends(cx, &*manifest, &snapshot.id, End::Commit(&snapshot), Outcome::Won).await;
    ends(cx, &*manifest, &snapshot.id, End::Abort("too late"), Outcome::Lost).await;
    stands(cx, &*manifest, &snapshot).await;
    let line = must("a snapshot is read", manifest.get(cx, &snapshot.id).await);
    if matches!(line.state, LineState::Sealed) {
        return;
    }
    let other = Snapshot { host: "another".to_owned(), ..snapshot.clone() };
    ends(cx, &*manifest, &snapshot.id, End::Commit(&other), Outcome::Lost).await;
    stands(cx, &*manifest, &snapshot).await;
}

/// Of a commit and an abort at once exactly one wins, and the ledger says which.
pub async fn one_of_racing_ends_wins(cx: &Context, manifest: Arc<dyn Manifest>) {
    let mut races = Vec::new();
    for seed in 100..132 {
        let snapshot = begin(cx, &*manifest, seed).await;
        let task = |commit: bool| {
            let (manifest, cx, snapshot) = (Arc::clone(&manifest), cx.clone(), snapshot.clone());
            async move {
                let end = if commit { End::Commit(&snapshot) } else { End::Abort("fenced") };
                manifest.end(&cx, &snapshot.id, end).await
            }
        };
        let commit_first = seed % 2 == 0;
        // Begun in turns, so that neither is always first.
        let (first, second) = (cx.spawn(task(commit_first)), cx.spawn(task(!commit_first)));
        races.push((snapshot, commit_first, first, second));
    }
    for (snapshot, commit_first, first, second) in races {
        let first = must("an end that races succeeds", first.await);
        let second = must("an end that races succeeds", second.await);
        hold!(first != second, "exactly one of two ends wins: {first:?} and {second:?}");
        if (first == Outcome::Won) == commit_first {
            stands(cx, &*manifest, &snapshot).await;
        } else {
            is_marker(cx, &*manifest, &snapshot.id, MarkerState::Aborted).await;
        }
    }
}

/// Forgetting replaces a snapshot by a marker; forgetting it again succeeds.
pub async fn forgetting_leaves_a_marker(cx: &Context, manifest: Arc<dyn Manifest>) {
    let (gone, stays) = (begin(cx, &*manifest, 7).await, begin(cx, &*manifest, 8).await);
    for snapshot in [&gone, &stays] {
        ends(cx, &*manifest, &snapshot.id, End::Commit(snapshot), Outcome::Won).await;
    }
    for _ in 0..2 {
        must("forgetting succeeds", manifest.forget(cx, &gone.id, "retention").await);
        is_marker(cx, &*manifest, &gone.id, MarkerState::Forgotten).await;
        stands(cx, &*manifest, &stays).await;
    }
}

/// What was forgotten cannot be brought back by a late or repeated end.
pub async fn forgotten_stays_forgotten(cx: &Context, manifest: Arc<dyn Manifest>) {
    let snapshot = begin(cx, &*manifest, 9).await;
    ends(cx, &*manifest, &snapshot.id, End::Commit(&snapshot), Outcome::Won).await;
    must("forgetting succeeds", manifest.forget(cx, &snapshot.id, "retention").await);
    for end in [End::Commit(&snapshot), End::Abort("late")] {
        ends(cx, &*manifest, &snapshot.id, end, Outcome::Lost).await;
        is_marker(cx, &*manifest, &snapshot.id, MarkerState::Forgotten).await;
    }
}

/// An id without a line is `no-snapshot`.
pub async fn what_is_missing_is_no_snapshot(cx: &Context, manifest: Arc<dyn Manifest>) {
    let there = begin(cx, &*manifest, 10).await;
    ends(cx, &*manifest, &there.id, End::Commit(&there), Outcome::Won).await;
    let got = manifest.get(cx, &snapshot(11).id).await;
    must_fail("an unknown id has no line", Reason::NoSnapshot, got);
}

/// A listing has every line, each once.
pub async fn everything_is_listed(cx: &Context, manifest: Arc<dyn Manifest>) {
    let mut expected = BTreeMap::new();
    for seed in 200..240 {
        let snapshot = begin(cx, &*manifest, seed).await;
        let state = match seed % 3 {
            0 => {
                ends(cx, &*manifest, &snapshot.id, End::Commit(&snapshot), Outcome::Won).await;
                None
            }
            1 => {
                ends(cx, &*manifest, &snapshot.id, End::Abort("test"), Outcome::Won).await;
                Some(MarkerState::Aborted)
            }
            _ => {
                ends(cx, &*manifest, &snapshot.id, End::Commit(&snapshot), Outcome::Won).await;
                must("forgetting succeeds", manifest.forget(cx, &snapshot.id, "test").await);
                Some(MarkerState::Forgotten)
            }
        };
        expected.insert(snapshot.id, state);
    }
    let listed: BTreeMap<_, _> = lines(cx, &*manifest)
        .await
        .into_iter()
        .map(|(id, line)| (id, marker_state(&line)))
        .collect();
    hold!(listed == expected, "the listing has every line as it is: {listed:?}");
}

/// Every note is read back as it was written, also two of one moment, and a snapshot stays as it is.
pub async fn notes_are_kept(cx: &Context, manifest: Arc<dyn Manifest>) {
    let there = begin(cx, &*manifest, 12).await;
    ends(cx, &*manifest, &there.id, End::Commit(&there), Outcome::Won).await;
    let note = |key: &str| Note {
        at: there.finished,
        id: there.id.clone(),
        set: BTreeMap::from([(key.to_owned(), "ä=b".to_owned())]),
        unset: BTreeSet::from(["reason".to_owned()]),
    };
    for key in ["a", "b"] {
        must("a note is added", manifest.note(cx, &note(key)).await);
    }
    let mut read = Vec::new();
    let mut notes = must("notes are listed", manifest.notes(cx).await);
    while let Some((_, note)) = notes.next().await {
        read.push(must("a note is read", note));
    }
    read.sort();
    // Who may not read snapshots may not read what is added to them.
    let line = must("a snapshot is listed", manifest.get(cx, &there.id).await);
    let expected = match line.state {
        LineState::Sealed => Vec::new(),
        _ => vec![note("a"), note("b")],
    };
    hold!(read == expected, "all notes are there: {read:?}");
    stands(cx, &*manifest, &there).await;
}

async fn begin(cx: &Context, manifest: &dyn Manifest, seed: u64) -> Snapshot {
    let snapshot = snapshot(seed);
    let session =
        Session { id: snapshot.id.clone(), started: snapshot.started, host: snapshot.host.clone() };
    must("a session begins", manifest.begin(cx, &session).await);
    snapshot
}

async fn ends(
    cx: &Context,
    manifest: &dyn Manifest,
    id: &SnapshotId,
    end: End<'_>,
    expected: Outcome,
) {
    let what = match end {
        End::Commit(_) => "commit",
        End::Abort(_) => "abort",
    };
    let outcome = must("an end succeeds", manifest.end(cx, id, end).await);
    hold!(outcome == expected, "this {what} has {expected:?}, not {outcome:?}");
}

async fn stands(cx: &Context, manifest: &dyn Manifest, snapshot: &Snapshot) {
    let got = must("a snapshot is read", manifest.get(cx, &snapshot.id).await);
    let listed = lines(cx, manifest).await.remove(&snapshot.id);
    for (how, line) in [("get", Some(got)), ("list", listed)] {
        let Some(line) = line else { panic!("contract broken: {how} shows a snapshot") };
        hold!(line.id == snapshot.id, "{how} gives the line that was asked for");
        match line.state {
            LineState::Snapshot(found) => {
                hold!(
                    *found == *snapshot,
                    "{how} gives the snapshot as it was committed: {found:?}"
                );
            }
            LineState::Sealed => {}
            LineState::Marker(m) => panic!("contract broken: {how} shows a snapshot, not {m:?}"),
        }
    }
}

async fn is_marker(cx: &Context, manifest: &dyn Manifest, id: &SnapshotId, state: MarkerState) {
    let got = must("a marker is read", manifest.get(cx, id).await);
    let listed = lines(cx, manifest).await.remove(id);
    for (how, line) in [("get", Some(got)), ("list", listed)] {
        let found = line.as_ref().and_then(marker_state);
        hold!(found == Some(state), "{how} shows a marker {state:?}, not {line:?}");
    }
}

fn marker_state(line: &Line) -> Option<MarkerState> {
    match &line.state {
        LineState::Marker(marker) if marker.id == line.id => Some(marker.state),
        _ => None,
    }
}

async fn lines(cx: &Context, manifest: &dyn Manifest) -> BTreeMap<SnapshotId, Line> {
    let mut stream = must("a listing begins", manifest.list(cx).await);
    let mut lines = BTreeMap::new();
    while let Some((id, line)) = stream.next().await {
        let line = must("an undamaged line is listed", line);
        hold!(line.id == id, "a line is listed beside its own id");
        hold!(lines.insert(id, line).is_none(), "a line is listed once");
    }
    lines
}
