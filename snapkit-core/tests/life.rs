//! Create, list, restore and verify, on a sink in memory, with scripted sources.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod lab;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use lab::{Lab, files_of, noise, same};
use snapkit_core::artifact::{Chunking, SourceName};
use snapkit_core::context::Context;
use snapkit_core::credential::{Unlock, generate_key_file};
use snapkit_core::engine::{CreateOptions, Repository, Scope, Selection, StackSource};
use snapkit_core::error::Reason;
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::key::Key;
use snapkit_core::manifest::CaptureVerdict;
use snapkit_core::pack::pack_key;
use snapkit_core::seal::ObjectType;
use snapkit_core::secret::Secret;
use snapkit_core::sink::Sink;
use snapkit_core::tree::{EntryKind, EntryPath, TreeEntry};
use snapkit_testkit::double::{
    RecordingProgress, RecordingSink, ScriptedArtifact, ScriptedFile, ScriptedSource, SlowSink,
    Stage, Trouble, Verb,
};

fn files(n: u64) -> Vec<ScriptedFile> {
    let mut files: Vec<_> = (0..n)
        .map(|i| {
            let len = usize::try_from(i * 37 % 5000).unwrap();
            ScriptedFile::file(&format!("dir{}/file{i}", i % 7), noise(len, i))
        })
        .collect();
    let link = EntryKind::Symlink { target: b"../elsewhere".to_vec() };
    files.push(ScriptedFile::special(TreeEntry::new(
        EntryPath::new(&b"caf\xe9"[..]).unwrap(),
        link,
    )));
    let hard = EntryKind::HardLink { target: EntryPath::new("dir0/file0").unwrap() };
    files.push(ScriptedFile::special(TreeEntry::new(EntryPath::new("dir1/again").unwrap(), hard)));
    files
}

fn sources() -> [ScriptedSource; 2] {
    let text = b"all work and no play makes jack a dull boy\n".repeat(100_000);
    let mut tree = files(1500);
    tree.push(ScriptedFile::file("big/one", noise(9_000_000, 77)));
    tree.push(ScriptedFile::file("big/text", text.clone()));
    [
        ScriptedSource::new("a").with(ScriptedArtifact::tree("tree", tree)),
        ScriptedSource::new("b")
            .with(ScriptedArtifact::bytes("empty", ""))
            .with(ScriptedArtifact::bytes("text", text))
            .with(ScriptedArtifact::bytes("noise", noise(5_000_000, 1)).fingerprinted())
            .with(
                ScriptedArtifact::bytes("pages", noise(3_000_000, 2))
                    .chunking(Chunking::Pages { page_size: 4096 }),
            )
            .with(
                // Its list is longer than a record may hold.
                ScriptedArtifact::bytes("long", noise(4_000_000, 3))
                    .chunking(Chunking::Pages { page_size: 4096 })
                    .fingerprinted(),
            ),
    ]
}

#[tokio::test]
async fn what_was_captured_comes_back_and_is_proven() {
    let lab = Lab::new(sources()).await;
    let report = lab.create().await.unwrap();
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    assert_eq!(report.snapshot.verdict, CaptureVerdict::Complete);
    let summary = lab.restore(&report.snapshot).await.unwrap();
    assert_eq!(summary.verdict, RestoreVerdict::Match, "{:#?}", summary.sources);
    for source in 0..2 {
        assert_eq!(
            lab.restored(source).keys().collect::<Vec<_>>(),
            lab.live(source).keys().collect::<Vec<_>>()
        );
        for (name, content) in lab.restored(source) {
            assert!(same(&content, &lab.live(source)[&name]), "{name}");
        }
    }
    lab.assert_sound().await;
    // The same text in both sources, and within itself, is stored once and compressed.
    let stored: u64 = lab.memory.contents().values().map(|o| o.len() as u64).sum();
    let incompressible = 9_000_000 + 5_000_000 + 3_000_000 + 3_750_000 + 4_000_000;
    assert!(stored < incompressible + incompressible / 20, "{stored}");
}

#[tokio::test]
async fn an_unchanged_stack_costs_next_to_nothing() {
    let lab = Lab::new(sources()).await;
    let first = lab.create().await.unwrap();
    let progress = Arc::new(RecordingProgress::new());
    let recording = Arc::new(RecordingSink::new(Arc::clone(&lab.sink)));
    let repository = lab.open_on(Arc::clone(&recording) as _).await.unwrap();
    let cx = lab.cx.with_progress(Arc::clone(&progress) as _);
    let second = repository.create(&cx, &lab.stack(), &CreateOptions::default()).await.unwrap();
    assert_eq!(second.snapshot.stats.chunks_new, 0);
    assert_eq!(second.snapshot.stats.files_read, 0);
    recording.assert_none(Verb::Put, "packs");
    recording.assert_none(Verb::Put, "index");
    assert_eq!(second.snapshot.previous, Some(first.snapshot.id));
    // What has a fingerprint was not even opened, however long its list is.
    assert_eq!(lab.sources[1].log().count("b", Stage::Open), 5 + 3);

    // One changed file stores itself and its part of the tree, and nothing else.
    let mut tree = files(1500);
    tree.push(ScriptedFile::file("big/one", noise(9_000_000, 77)));
    tree.push(ScriptedFile::file(
        "big/text",
        b"all work and no play makes jack a dull boy\n".repeat(100_000),
    ));
    tree[3] = ScriptedFile::file("dir3/file3", noise(100, 9999));
    lab.sources[0].set(ScriptedArtifact::tree("tree", tree));
    let third = lab.create().await.unwrap();
    assert_eq!(third.snapshot.stats.files_read, 1);
    assert!(third.snapshot.stats.chunks_new <= 4, "{:?}", third.snapshot.stats);
    let summary = lab.restore(&third.snapshot).await.unwrap();
    assert_eq!(summary.verdict, RestoreVerdict::Match);
    lab.assert_sound().await;
}

/// The content of a stream that has not changed is taken over only with all that belongs to it.
#[tokio::test]
async fn an_unchanged_stream_is_read_again_if_a_part_of_it_is_gone() {
    for lost in [ObjectType::MetaPack, ObjectType::DataPack] {
        let pages = ScriptedArtifact::bytes("long", noise(4_000_000, 3))
            .chunking(Chunking::Pages { page_size: 4096 })
            .fingerprinted();
        let lab = Lab::new([ScriptedSource::new("b").with(pages)]).await;
        lab.create().await.unwrap();
        let opened = || lab.sources[0].log().count("b", Stage::Open);
        lab.create().await.unwrap();
        assert_eq!(opened(), 1, "it was taken over");
        let writer = lab.open().await.unwrap().credential().writer.clone();
        let packs = lab::packs_in(&lab.memory.contents(), &writer);
        let pack = packs.into_values().find(|pack| pack.header.object == lost).unwrap();
        lab.sink.delete(&lab.cx, &pack_key(pack.id).unwrap()).await.unwrap();
        let third = lab.create().await.unwrap().snapshot;
        assert_eq!(opened(), 2, "{lost:?}");
        let summary = lab.restore(&third).await.unwrap();
        assert_eq!(summary.verdict, RestoreVerdict::Match);
    }
}

/// Local state only helps: whatever stands in its place, a create goes on.
#[cfg(unix)]
#[tokio::test]
async fn pipes_in_place_of_local_state_keep_nobody_waiting() {
    let lab = Lab::new(sources()).await;
    lab.create().await.unwrap();
    let mut dirs = vec![lab.path("state"), lab.path("cache")];
    let mut replaced = 0;
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            // What says which repository this is has to be readable.
            if path.ends_with("locations") {
                continue;
            }
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            std::fs::remove_file(&path).unwrap();
            assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
            replaced += 1;
        }
    }
    assert!(replaced > 4, "{replaced}");
    let second = tokio::time::timeout(Duration::from_secs(60), lab.create()).await;
    let second = second.expect("nothing waits for a pipe").unwrap().snapshot;
    assert_eq!(lab.restore(&second).await.unwrap().verdict, RestoreVerdict::Match);
}

#[tokio::test]
async fn without_local_state_the_basis_is_rebuilt_from_the_repository() {
    let lab = Lab::new(sources()).await;
    lab.create().await.unwrap();
    std::fs::remove_dir_all(lab.path("state")).unwrap();
    std::fs::remove_dir_all(lab.path("cache")).unwrap();
    let second = lab.create().await.unwrap();
    assert_eq!((second.snapshot.stats.files_read, second.snapshot.stats.chunks_new), (0, 0));
    assert_eq!(lab.sources[1].log().count("b", Stage::Open), 5 + 3);
    // A damaged basis file costs reading, not truth.
    for entry in walk(&lab.path("state")) {
        if entry.extension().is_some_and(|e| e == "basis") {
            let mut bytes = std::fs::read(&entry).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&entry, bytes).unwrap();
        }
    }
    let third = lab.create().await.unwrap();
    assert!(third.snapshot.stats.files_read > 1000);
    assert_eq!(lab.sources[1].log().count("b", Stage::Open), 5 + 3 + 4);
    assert_eq!(third.snapshot.stats.chunks_new, 0);
    assert_eq!(lab.restore(&third.snapshot).await.unwrap().verdict, RestoreVerdict::Match);
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test]
async fn a_file_that_cannot_be_read_makes_the_snapshot_partial() {
    let tree = ScriptedArtifact::tree("tree", files(20))
        .unreadable("dir1/file1", Reason::PermissionDenied)
        .hidden("dir2/file2", Reason::PermissionDenied);
    let lab = Lab::new([ScriptedSource::new("a").with(tree)]).await;
    let report = lab.create().await.unwrap();
    assert_eq!(report.snapshot.verdict, CaptureVerdict::Partial);
    let problems = &report.snapshot.sources[0].problems;
    assert_eq!(problems.count, 2);
    assert!(
        problems.listed.iter().any(|p| p.place == "dir1/file1" && p.reason == "permission-denied")
    );
    lab.assert_sound().await;
    lab.restore(&report.snapshot).await.unwrap();
    let mut expected = files_of(&lab.live(0)["tree"]);
    expected.remove("dir1/file1").unwrap();
    expected.remove("dir2/file2").unwrap();
    assert_eq!(files_of(&lab.restored(0)["tree"]), expected);
}

#[tokio::test]
async fn a_failing_source_ends_the_run_unless_it_may_fail() {
    let broken = || {
        ScriptedSource::new("bad")
            .with(ScriptedArtifact::bytes("x", noise(100, 1)))
            .trouble(Stage::Open, Trouble::Fail(Reason::Unavailable))
    };
    let good = || ScriptedSource::new("good").with(ScriptedArtifact::bytes("y", noise(100, 2)));
    let lab = Lab::new([good(), broken()]).await;
    let e = lab.create().await.unwrap_err();
    assert_eq!(e.reason(), Reason::Unavailable);
    assert!(e.to_string().contains("source=bad"), "{e}");
    assert!(lab.open().await.unwrap().ledger(&lab.cx).await.unwrap().snapshots.is_empty());
    for source in &lab.sources {
        source.log().assert_released();
    }
    let mut stack = lab.stack();
    stack.sources[1] = StackSource { may_fail: true, ..stack.sources[1].clone() };
    let repository = lab.open().await.unwrap();
    let report = repository.create(&lab.cx, &stack, &CreateOptions::default()).await.unwrap();
    assert_eq!(report.snapshot.verdict, CaptureVerdict::Partial);
    assert_eq!(report.snapshot.sources[1].verdict, CaptureVerdict::Failed);
    assert_eq!(lab.restore(&report.snapshot).await.unwrap().sources.len(), 1);
}

/// A source that may fail, and whose own time is up, is left out; one that was late for the cut has spoilt it for all.
#[tokio::test]
async fn a_late_source_is_left_out_unless_it_holds_up_the_cut() {
    for (stage, expected) in [(Stage::Capture, true), (Stage::Open, true), (Stage::Freeze, false)] {
        let late = ScriptedSource::new("late")
            .with(ScriptedArtifact::bytes("x", noise(100, 1)))
            .trouble(stage, Trouble::Fail(Reason::TimedOut));
        let good = ScriptedSource::new("good").with(ScriptedArtifact::bytes("y", noise(100, 2)));
        let lab = Lab::new([good, late]).await;
        let mut stack = lab.stack();
        stack.sources[1] = StackSource { may_fail: true, ..stack.sources[1].clone() };
        let repository = lab.open().await.unwrap();
        let made = repository.create(&lab.cx, &stack, &CreateOptions::default()).await;
        match made {
            Ok(report) => {
                assert!(expected, "{stage:?}");
                assert_eq!(report.snapshot.verdict, CaptureVerdict::Partial, "{stage:?}");
            }
            Err(e) => assert!(!expected && e.reason() == Reason::TimedOut, "{stage:?}: {e}"),
        }
        for source in &lab.sources {
            source.log().assert_released();
        }
    }
}

#[tokio::test]
async fn keys_formats_and_places_are_told_apart() {
    let lab = Lab::new(sources()).await;
    let open = |unlock: Vec<Unlock>, sink: Arc<dyn Sink>| {
        let (cx, options) = (lab.cx.clone(), lab.options());
        async move { Repository::open(&cx, sink, &unlock, options).await.unwrap_err() }
    };
    let sink = || Arc::clone(&lab.sink);
    assert_eq!(open(vec![], sink()).await.reason(), Reason::NoKey);
    let wrong = Unlock::KeyFile(generate_key_file());
    assert_eq!(open(vec![wrong], sink()).await.reason(), Reason::WrongKey);
    let word = Unlock::Passphrase(Secret::new("wrong".to_owned()));
    assert_eq!(open(vec![word], sink()).await.reason(), Reason::WrongKey);
    let empty = Arc::new(snapkit_core::memory::MemorySink::new());
    assert_eq!(open(vec![lab.unlock.clone()], empty).await.reason(), Reason::NoRepository);
    let again = Repository::init(&lab.cx, &lab.sink, &lab.unlock).await.unwrap_err();
    assert_eq!(again.reason(), Reason::RepositoryExists);

    let mut other = lab.options();
    other.fingerprint = Some("00".repeat(32).parse().unwrap());
    let e = Repository::open(&lab.cx, sink(), std::slice::from_ref(&lab.unlock), other)
        .await
        .unwrap_err();
    assert_eq!(e.reason(), Reason::RepositoryReplaced);

    let config = Key::new("config").unwrap();
    let text = lab.sink.get(&lab.cx, &config, None).await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap().replace("1-draft", "2");
    lab.sink
        .put(&lab.cx, &config, text.into(), snapkit_core::sink::PutMode::Overwrite)
        .await
        .unwrap();
    assert_eq!(open(vec![lab.unlock.clone()], sink()).await.reason(), Reason::FormatMismatch);
}

#[tokio::test]
async fn a_passphrase_opens_too() {
    let cx = Context::system();
    let sink: Arc<dyn Sink> = Arc::new(snapkit_core::memory::MemorySink::new());
    let word = Unlock::Passphrase(Secret::new("correct horse".to_owned()));
    Repository::init(&cx, &sink, &word).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options =
        snapkit_core::engine::OpenOptions::new(dir.path().join("c"), dir.path().join("s"));
    let unlock = [Unlock::KeyFile(generate_key_file()), word];
    Repository::open(&cx, sink, &unlock, options).await.unwrap();
}

#[tokio::test]
async fn parts_are_restored_alone() {
    let lab = Lab::new(sources()).await;
    let snapshot = lab.create().await.unwrap().snapshot;
    let selection = Selection {
        source: Some(SourceName::new("a").unwrap()),
        path: Some(EntryPath::new("dir1").unwrap()),
        ..Selection::default()
    };
    lab.restore_with(&snapshot, |o| o.selection = selection).await.unwrap();
    let restored = lab.restored(0);
    let tree = files_of(&restored["tree"]);
    let paths: Vec<_> = tree.keys().collect();
    assert!(paths.len() > 200 && paths.iter().all(|p| p.starts_with("dir1")), "{paths:?}");
    // The hard link's other name was not asked for: it came as the file itself.
    let again = &tree["dir1/again"];
    assert!(matches!(again.entry.kind, EntryKind::File { .. }));

    let selection = Selection { include: vec!["file7*".to_owned()], ..Selection::default() };
    let e = lab.restore_with(&snapshot, |o| o.selection = selection.clone()).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TargetNotEmpty);
    lab.restore_with(&snapshot, |o| (o.selection, o.overwrite) = (selection, true)).await.unwrap();
    let restored = lab.restored(0);
    let names: Vec<_> = files_of(&restored["tree"]).into_keys().collect();
    assert!(
        names.iter().any(|p| p == "dir0/file7") && !names.iter().any(|p| p.ends_with("file8")),
        "{names:?}"
    );
    let nowhere = EntryPath::new("dir1/nothing").unwrap();
    let e = lab
        .restore_with(&snapshot, |o| {
            (o.selection.path, o.overwrite) = (Some(nowhere), true);
        })
        .await
        .unwrap_err();
    assert_eq!(e.reason(), Reason::NotFound);
    let e = lab
        .restore_with(&snapshot, |o| o.selection.source = Some(SourceName::new("zzz").unwrap()))
        .await
        .unwrap_err();
    assert!(e.to_string().contains("it has: a, b"), "{e}");
}

#[tokio::test]
async fn files_are_read_alone_with_holes_and_links() {
    let lab = Lab::new(sources()).await;
    let snapshot = lab.create().await.unwrap().snapshot;
    let repository = lab.open().await.unwrap();
    let artifact = &snapshot.sources[0].artifacts[0];
    for (path, expected) in [
        ("big/one", noise(9_000_000, 77)),
        ("dir1/again", noise(0, 0)),
        ("dir3/file3", noise(111, 3)),
    ] {
        let path = EntryPath::new(path).unwrap();
        let body = repository.open_file(&lab.cx, artifact, &path).await.unwrap();
        let bytes: Vec<_> = body.try_collect().await.unwrap();
        assert!(bytes.concat() == expected, "{path}");
    }
    for (path, reason) in [("dir1", Reason::InvalidArgument), ("nothing", Reason::NotFound)] {
        let path = EntryPath::new(path).unwrap();
        let e = repository.open_file(&lab.cx, artifact, &path).await.err().unwrap();
        assert_eq!(e.reason(), reason);
    }
}

#[tokio::test]
async fn snapshots_are_found_by_what_people_type() {
    let lab = Lab::new(sources()).await;
    let repository = lab.open().await.unwrap();
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let options = CreateOptions { name: Some(name.to_owned()), ..CreateOptions::default() };
        let report = repository.create(&lab.cx, &lab.stack(), &options).await.unwrap();
        ids.push(report.snapshot);
        lab.cx.sleep(Duration::from_millis(1100)).await.unwrap();
    }
    let ledger = repository.ledger(&lab.cx).await.unwrap();
    let scope = Scope { stack: Some("test".to_owned()), ..Scope::default() };
    let find = |spec: &str| ledger.resolve(spec, &scope).map(|s| s.name.clone().unwrap());
    assert_eq!(find("latest").unwrap(), "two");
    assert_eq!(find("latest~1").unwrap(), "one");
    assert_eq!(find("one").unwrap(), "one");
    assert_eq!(find(ids[0].id.as_str()).unwrap(), "one");
    assert_eq!(find(ids[1].id.short()).unwrap(), "two");
    assert_eq!(find(&format!("@{}", ids[0].started)).unwrap(), "one");
    let shown = ids[1].started.to_string();
    let second = format!("@{}Z", shown.split(['.', 'Z']).next().unwrap());
    assert_eq!(find(&second).unwrap(), "two", "a time as it is listed");
    assert_eq!(find("@2200-01-01").unwrap(), "two");
    assert!(find("@2001-01-01").is_err() && find("latest~2").is_err() && find("nope").is_err());
    assert_eq!(find("20").unwrap_err().reason(), Reason::InvalidArgument);
    // A name that another has too, or that is also the beginning of an id, may mean either.
    for name in ["two", ids[0].id.short()] {
        let options = CreateOptions { name: Some(name.to_owned()), ..CreateOptions::default() };
        repository.create(&lab.cx, &lab.stack(), &options).await.unwrap();
    }
    let again = repository.ledger(&lab.cx).await.unwrap();
    for spec in ["two", ids[0].id.short()] {
        let e = again.resolve(spec, &scope).unwrap_err();
        assert_eq!(e.reason(), Reason::InvalidArgument, "{e}");
    }
    assert_eq!(again.resolve(ids[0].id.as_str(), &scope).unwrap().id, ids[0].id);
    let elsewhere = Scope { host: Some("other".to_owned()), ..Scope::default() };
    assert!(ledger.resolve("latest", &elsewhere).is_err());
}

#[tokio::test]
async fn two_creates_at_once_both_commit() {
    let lab = Lab::new(sources()).await;
    let stack = lab.stack();
    let (a, b) = (lab.open().await.unwrap(), lab.open().await.unwrap());
    let options = CreateOptions::default();
    let (a, b) =
        tokio::join!(a.create(&lab.cx, &stack, &options), b.create(&lab.cx, &stack, &options));
    assert_ne!(a.unwrap().snapshot.id, b.unwrap().snapshot.id);
    lab.assert_sound().await;
    assert_eq!(lab.open().await.unwrap().ledger(&lab.cx).await.unwrap().snapshots.len(), 2);
}

#[tokio::test]
async fn a_machine_that_can_keep_nothing_can_do_everything() {
    let lab = Lab::new(sources()).await;
    let first = lab.create().await.unwrap();
    for name in ["cache", "state"] {
        let path = lab.path(name);
        std::fs::remove_dir_all(&path).unwrap();
        // Nobody, not even root, can make a directory below a file.
        std::fs::write(&path, "in the way").unwrap();
    }
    let second = lab.create().await.unwrap();
    assert!(second.warnings.iter().filter(|w| w.contains("cannot be written to")).count() == 2);
    let summary = lab.restore(&first.snapshot).await.unwrap();
    assert_eq!(summary.verdict, RestoreVerdict::Match);
    lab.assert_sound().await;
    assert!(lab.path("state").is_file() && lab.path("cache").is_file());
}

#[tokio::test]
async fn a_disk_that_changes_what_was_seen_makes_no_snapshot_up() {
    let lab = Lab::new(sources()).await;
    let snapshot = lab.create().await.unwrap().snapshot;
    let files = walk(&lab.path("state"));
    let seen = files.iter().find(|p| p.ends_with("seen")).unwrap();
    let text = std::fs::read_to_string(seen).unwrap();
    assert_eq!(text.lines().count(), 1);
    let another = text.replace(&snapshot.id.as_str()[..8], "20300101");
    assert_ne!(another, text);
    for damaged in [another.as_bytes(), b"\xff\n", &text.as_bytes()[..20]] {
        std::fs::write(seen, damaged).unwrap();
        assert!(lab.open().await.unwrap().ledger(&lab.cx).await.unwrap().gone.is_empty());
        lab.assert_sound().await;
        let next = lab.create().await.unwrap();
        assert!(next.warnings.is_empty(), "{:?}", next.warnings);
    }
}

/// What another run on this machine commits while the lines are being read is not gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_comes_meanwhile_is_not_missed() {
    let lab = Lab::new(sources()).await;
    lab.create().await.unwrap();
    let slow = SlowSink::new(Arc::clone(&lab.sink), Duration::from_millis(700));
    let repository = lab.open_on(Arc::new(slow)).await.unwrap();
    let create = async {
        lab.cx.sleep(Duration::from_millis(50)).await.unwrap();
        lab.create().await.unwrap()
    };
    let (ledger, _) = tokio::join!(repository.ledger(&lab.cx), create);
    assert_eq!(ledger.unwrap().gone, []);
    assert_eq!(lab.snapshots().await.len(), 2);
}
