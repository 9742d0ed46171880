//! A tree with everything odd comes back as it was, as root and as an ordinary user.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(clippy::cast_possible_truncation, reason = "sizes of tests are small")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use snapkit_core::artifact::Body;
use snapkit_core::context::Context;
use snapkit_core::source::{Source as _, Target};
use snapkit_core::tree::{EntryKind, TreeItem};
use support::*;

async fn there_and_back(scratch: &Path) {
    let cx = Context::system();
    let root = scratch.join("tree");
    fs::create_dir(&root).unwrap();
    odd_tree(&root);
    let source = files(&[&root]);

    // As a snapshot holds it.
    let stored = Stored::capture(&cx, &source).await;
    assert_eq!(stored.problems, []);
    let target = scratch.join("stored");
    fs::create_dir(&target).unwrap();
    let report = restore(&cx, &source, &request(&target, &source), stored.tree()).await.unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    assert_match(&stored.facts(), &report);
    assert!(report.undo.is_empty());
    assert_eq!(rsync_differences(&root, &below(&target, &root)), "");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1, "no staging is left");

    // Straight from the live system.
    let target = scratch.join("straight");
    fs::create_dir(&target).unwrap();
    let tree = live(&cx, &source).await.unwrap();
    let report = restore(&cx, &source, &request(&target, &source), tree).await.unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    assert_match(&stored.facts(), &report);
    assert_eq!(rsync_differences(&root, &below(&target, &root)), "");
    for name in ["sparse", "all-hole", "sparse-small"] {
        let blocks = |p: &Path| fs::metadata(p.join(name)).unwrap().blocks();
        assert_eq!(blocks(&root), blocks(&below(&target, &root)), "{name}");
    }

    // What lives there says the same of itself, and a check finds nothing.
    let live_facts = source.facts(&cx).await.unwrap();
    assert_eq!(
        stored.facts().compare(&live_facts).verdict,
        snapkit_core::facts::RestoreVerdict::Match
    );
    let found = source.check(&cx, &meta(), Body::Tree(stored.tree())).await.unwrap();
    assert_eq!(found.0, []);
    let tree = live(&cx, &source).await.unwrap();
    let found = source.check(&cx, &meta(), Body::Tree(tree)).await.unwrap();
    assert_eq!(found.0, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back() {
    let scratch = tempfile::tempdir().unwrap();
    there_and_back(scratch.path()).await;
}

/// Runs in a child process, as an ordinary user.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by `an_ordinary_user_gets_everything_back`"]
async fn child_round_trip() {
    let scratch = std::env::var_os("SNAPKIT_TEST_SCRATCH").unwrap();
    assert!(!is_root());
    there_and_back(Path::new(&scratch)).await;
}

#[test]
fn an_ordinary_user_gets_everything_back() {
    as_nobody("child_round_trip");
}

/// Run one test of this file in a child process without rights.
fn as_nobody(test: &str) {
    if !is_root() {
        // Then the other tests of this file are that.
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    set_mode(scratch.path(), 0o755);
    let own = scratch.path().join("own");
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(65534), Some(65534)).unwrap();
    // The test program may lie where others may not look.
    let program = scratch.path().join("program");
    // By another process: a program that is open for writing, here or in a child, cannot be run.
    let this = std::env::current_exe().unwrap();
    assert!(Command::new("cp").arg(this).arg(&program).status().unwrap().success());
    let out = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&program)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("SNAPKIT_TEST_SCRATCH", &own)
        .env("TMPDIR", &own)
        .current_dir("/")
        .output()
        .unwrap();
    let shown =
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && shown.contains("1 passed"), "{shown}");
}

#[tokio::test]
#[ignore = "started by `what_cannot_be_read_is_a_problem`"]
async fn child_unreadable() {
    let cx = Context::system();
    let scratch = std::env::var_os("SNAPKIT_TEST_SCRATCH").unwrap();
    let root = Path::new(&scratch).join("tree");
    write(&root.join("a/readable"), "yes");
    write(&root.join("b/secret"), "no");
    write(&root.join("c/d/in"), "no");
    write(&root.join("e"), "yes");
    set_mode(&root.join("b/secret"), 0);
    set_mode(&root.join("c/d"), 0o300);
    let source = files(&[&root]);
    let stored = Stored::capture(&cx, &source).await;
    let problems: Vec<_> = stored.problems.iter().map(|(p, r)| (p.clone(), r.as_str())).collect();
    assert_eq!(
        problems,
        [
            (entry_path(&root.join("b/secret")), "permission-denied"),
            (entry_path(&root.join("c/d")), "permission-denied")
        ]
    );
    assert_eq!(stored.get(&root.join("e")).1.as_deref(), Some(&b"yes"[..]));
    assert_eq!(stored.get(&root.join("a/readable")).1.as_deref(), Some(&b"yes"[..]));
    // Foreign owners, devices and rights are told and left out.
    let target = Path::new(&scratch).join("target");
    fs::create_dir(&target).unwrap();
    let mut foreign = stored.clone();
    foreign.problems.clear();
    for (entry, _) in &mut foreign.entries {
        if entry.path == entry_path(&root.join("e")) {
            entry.uid = 0;
            entry.mode = 0o6755;
        }
    }
    let mut device = foreign.entries.last().unwrap().0.clone();
    device.path = entry_path(&root.join("null"));
    device.kind = EntryKind::CharDevice { major: 1, minor: 3 };
    device.mode = 0o666;
    foreign.entries.push((device, None));
    let report = restore(&cx, &source, &request(&target, &source), foreign.tree()).await.unwrap();
    assert_eq!(report.problem_count, 1, "{report:?}");
    assert!(report.problems[0].contains("the owner 0:"), "{report:?}");
    assert_eq!(report.notes.len(), 3, "{report:?}");
    assert!(report.notes[0].starts_with("setuid and setgid bits were left out: 1"), "{report:?}");
    assert!(report.notes[1].starts_with("device nodes were left out: 1"), "{report:?}");
    assert_eq!(fs::metadata(below(&target, &root).join("e")).unwrap().mode() & 0o7777, 0o755);
    set_mode(&root.join("c/d"), 0o700);
}

/// A user may own a directory that stands where only root can put one: what is in it is moved.
#[tokio::test]
#[ignore = "started by `a_directory_in_a_foreign_place_is_filled`"]
async fn child_foreign_place() {
    let cx = Context::system();
    let own = PathBuf::from(std::env::var_os("SNAPKIT_TEST_SCRATCH").unwrap());
    // Its parent belongs to root.
    let source = files(&[&own]);
    write(&own.join("a/f"), "first");
    set_mode(&own.join("a"), 0o555);
    let stored = Stored::capture(&cx, &source).await;
    assert_eq!(stored.problems, []);
    set_mode(&own.join("a"), 0o755);
    write(&own.join("a/f"), "second");
    write(&own.join("g"), "second");
    write(&own.join("h/locked"), "second");
    set_mode(&own.join("h"), 0o550);
    let mut asked = request(&own, &source);
    asked.target = Target::Original;
    asked.overwrite = true;
    let report = restore(&cx, &source, &asked, stored.tree()).await.unwrap();
    assert_match(&stored.facts(), &report);
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!(fs::read_to_string(own.join("a/f")).unwrap(), "first");
    assert!(!own.join("g").exists());
    let out = sh(&report.undo.join("\n"));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(fs::read_to_string(own.join("a/f")).unwrap(), "second");
    assert_eq!(fs::read_to_string(own.join("g")).unwrap(), "second");
    assert_eq!(fs::metadata(own.join("h")).unwrap().mode() & 0o7777, 0o550);
    set_mode(&own.join("h"), 0o750);
}

#[test]
fn a_directory_in_a_foreign_place_is_filled() {
    as_nobody("child_foreign_place");
}

#[test]
fn what_cannot_be_read_is_a_problem() {
    as_nobody("child_unreadable");
}

#[tokio::test]
async fn facts_differ_when_anything_does() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("t");
    write(&root.join("f"), "content");
    let source = files(&[&root]);
    let stored = Stored::capture(&cx, &source).await;
    let same = || async {
        let facts = source.facts(&cx).await.unwrap();
        stored.facts().compare(&facts).verdict == snapkit_core::facts::RestoreVerdict::Match
    };
    assert!(same().await);
    let time = stored.get(&root.join("f")).0.mtime.0;
    set_time(&root.join("f"), time / 1_000_000_000, (time % 1_000_000_000) ^ 1);
    assert!(!same().await);
}

#[tokio::test]
async fn attributes_are_captured_exactly() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("t");
    write(&root.join("f"), "x");
    set_time(&root.join("f"), -5, 999_999_999);
    let source = files(&[&root]);
    let found = items(&cx, &source).await;
    let ancestors: Vec<_> = found
        .iter()
        .filter_map(|i| match i {
            TreeItem::Entry(e, _) if e.ancestor => Some(e.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(ancestors.len(), scratch.path().components().count() - 1);
    for entry in ancestors {
        let path = Path::new("/").join(entry.path.display());
        let meta = fs::metadata(path).unwrap();
        assert_eq!((entry.mode, entry.uid), (meta.mode() & 0o7777, meta.uid()));
    }
    let stored = Stored::capture(&cx, &source).await;
    let (entry, _) = stored.get(&root.join("f"));
    let meta = fs::metadata(root.join("f")).unwrap();
    assert_eq!(entry.mtime.0, -4_000_000_001);
    assert_eq!(entry.inode, meta.ino());
    assert_eq!(entry.ctime.0, meta.ctime() * 1_000_000_000 + meta.ctime_nsec());
}
