//! Where a restore goes, what it refuses, and how it is undone.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(clippy::cast_possible_truncation, reason = "sizes of tests are small")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use insta::assert_snapshot;
use snapkit_core::artifact::{ArtifactName, Body};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason};
use snapkit_core::facts::Facts;
use snapkit_core::source::{RestoreRequest, Source as _, Target};
use snapkit_core::tree::{Content, EntryKind, EntryPath, Extent, TreeEntry, TreeItem, TreeReader};
use snapkit_source_files::Files;
use support::*;

/// A captured tree and a changed one in its place.
struct Changed {
    scratch: tempfile::TempDir,
    root: PathBuf,
    source: Files,
    stored: Stored,
}

impl Changed {
    async fn new() -> Self {
        let cx = Context::system();
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("it's app");
        write(&root.join("conf/a"), "first a");
        write(&root.join("conf/b"), "first b");
        write(&root.join("data/f"), bytes(1, 700_000));
        symlink("conf/a", root.join("link")).unwrap();
        set_mode(&root.join("conf"), 0o750);
        set_time(&root.join("conf"), 1_500_000_000, 7);
        set_time(&root, 1_500_000_001, 8);
        let source = files(&[&root]);
        let stored = Stored::capture(&cx, &source).await;
        let changed = Self { scratch, root, source, stored };
        copy_tree(&changed.root, &changed.path("first"));
        write(&changed.root.join("conf/a"), "second a");
        fs::remove_file(changed.root.join("conf/b")).unwrap();
        write(&changed.root.join("conf/new"), "second new");
        set_mode(&changed.root.join("conf"), 0o700);
        copy_tree(&changed.root, &changed.path("second"));
        changed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn request(&self) -> RestoreRequest {
        RestoreRequest::new(Target::Original, record(&self.source, Facts::new()))
    }

    /// What lies beside the root.
    fn beside(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.scratch.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn assert_first(&self) {
        assert_eq!(rsync_differences(&self.path("first"), &self.root), "");
    }

    fn assert_second(&self) {
        assert_eq!(rsync_differences(&self.path("second"), &self.root), "");
    }

    fn undo(&self, commands: &[String]) {
        let out = sh(&commands.join("\n"));
        assert!(out.status.success(), "{commands:?} {}", String::from_utf8_lossy(&out.stderr));
    }
}

fn copy_tree(from: &Path, to: &Path) {
    run("cp", &["-a".as_ref(), "--".as_ref(), from.as_os_str(), to.as_os_str()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_not_replaced_unasked() {
    let cx = Context::system();
    let c = Changed::new().await;
    let e = c.source.restore(&cx, &c.request()).await.err().unwrap();
    assert_eq!(e.reason(), Reason::TargetNotEmpty);
    assert!(e.to_string().contains("it's app"), "{e}");
    c.assert_second();
    assert_eq!(c.beside(), ["first", "it's app", "second"]);

    let target = c.path("target");
    write(&target.join("something"), "");
    let e = c.source.restore(&cx, &request(&target, &c.source)).await.err().unwrap();
    assert_eq!(e.reason(), Reason::TargetNotEmpty);
    let e = c.source.restore(&cx, &request(&c.path("gone"), &c.source)).await.err().unwrap();
    assert_eq!(e.reason(), Reason::NotFound);

    // An empty directory is nothing, and leaves nothing behind.
    fs::remove_dir_all(&c.root).unwrap();
    fs::create_dir(&c.root).unwrap();
    let before = c.beside();
    let report = restore(&cx, &c.source, &c.request(), c.stored.tree()).await.unwrap();
    assert_match(&c.stored.facts(), &report);
    assert_eq!((c.beside(), report.undo.len()), (before, 0));
    c.assert_first();
    fs::remove_dir_all(&c.root).unwrap();
    let report = restore(&cx, &c.source, &c.request(), c.stored.tree()).await.unwrap();
    assert_match(&c.stored.facts(), &report);
    assert!(report.undo.is_empty());
    c.assert_first();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_replaced_is_kept_and_comes_back() {
    let cx = Context::system();
    for recovery in [true, false] {
        let c = Changed::new().await;
        let mut asked = c.request();
        asked.overwrite = true;
        if recovery {
            fs::create_dir(c.path("recovery")).unwrap();
            asked.recovery = Some(c.path("recovery"));
        }
        let report = restore(&cx, &c.source, &asked, c.stored.tree()).await.unwrap();
        assert_match(&c.stored.facts(), &report);
        assert_eq!(report.problems, Vec::<String>::new());
        c.assert_first();
        // The old state, and the script that would bring it back if this had been cut off.
        let kept = if recovery { fs::read_dir(c.path("recovery")).unwrap().count() } else { 2 };
        assert_eq!(kept, 2);
        assert_eq!(c.beside().len(), 4);
        assert!(!report.undo.is_empty());
        c.undo(&report.undo);
        c.assert_second();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_replaces_only_itself() {
    let cx = Context::system();
    for recovery in [true, false] {
        let c = Changed::new().await;
        write(&c.root.join("data/later"), "stays");
        copy_tree(&c.root.join("data"), &c.path("data-second"));
        let mut part = c.stored.clone();
        let wanted: Vec<EntryPath> =
            ["conf", "conf/a", "conf/b", "link"].map(|n| entry_path(&c.root.join(n))).to_vec();
        let root = entry_path(&c.root);
        part.entries.retain(|(e, _)| wanted.contains(&e.path) || root.starts_with(&e.path));
        for (entry, _) in &mut part.entries {
            entry.ancestor = root.starts_with(&entry.path);
        }
        // A directory where the link was.
        fs::remove_file(c.root.join("link")).unwrap();
        write(&c.root.join("link/in the way"), "x");
        let before = fs::metadata(&c.root).unwrap().mode();
        copy_tree(&c.root, &c.path("third"));

        let mut asked = c.request();
        asked.partial = true;
        let e = restore(&cx, &c.source, &asked, part.tree()).await.unwrap_err();
        assert_eq!(e.reason(), Reason::TargetNotEmpty);
        assert_eq!(rsync_differences(&c.path("third"), &c.root), "");
        asked.overwrite = true;
        if recovery {
            fs::create_dir(c.path("recovery")).unwrap();
            asked.recovery = Some(c.path("recovery"));
        }
        let report = restore(&cx, &c.source, &asked, part.tree()).await.unwrap();
        assert_eq!((report.problems, report.differences), (vec![], vec![]));
        assert_eq!(report.facts, Facts::new());
        let text = |name: &str| fs::read_to_string(c.root.join(name)).unwrap();
        assert_eq!((text("conf/a"), text("conf/b")), ("first a".into(), "first b".into()));
        assert_eq!(text("conf/new"), "second new");
        assert_eq!(fs::read_link(c.root.join("link")).unwrap(), Path::new("conf/a"));
        assert_eq!(fs::metadata(c.root.join("conf")).unwrap().mode() & 0o7777, 0o750);
        assert_eq!(fs::metadata(&c.root).unwrap().mode(), before);
        assert_eq!(rsync_differences(&c.path("data-second"), &c.root.join("data")), "");

        c.undo(&report.undo);
        let changed = rsync_differences(&c.path("third"), &c.root);
        // Only the time of the root, which was not asked for, is new.
        assert!(changed.lines().all(|l| l == ".d..t...... ./"), "{changed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_goes_into_an_empty_place() {
    let cx = Context::system();
    let c = Changed::new().await;
    let target = c.path("target");
    fs::create_dir(&target).unwrap();
    let mut part = c.stored.clone();
    let wanted = entry_path(&c.root.join("data/f"));
    part.entries.retain(|(e, _)| e.path == wanted);
    let mut asked = request(&target, &c.source);
    asked.partial = true;
    let report = restore(&cx, &c.source, &asked, part.tree()).await.unwrap();
    assert_eq!((report.problems, report.undo), (vec![], vec![]));
    let found = fs::read(below(&target, &c.root.join("data/f"))).unwrap();
    assert_eq!(found, bytes(1, 700_000));
}

/// A mounted directory cannot be renamed: what is in it is moved.
#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_root_stays_and_is_filled() {
    let cx = Context::system();
    let c = Changed::new().await;
    fs::remove_dir_all(&c.root).unwrap();
    fs::create_dir(&c.root).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "snapkit-test"])
        .arg(&c.root)
        .status()
        .is_ok_and(|s| s.success());
    if !mounted {
        assert!(std::env::var_os("CI").is_none(), "mounting a tmpfs is not permitted");
        return;
    }
    let root = c.root.clone();
    let outcome = Context::system()
        .spawn(async move {
            fs::create_dir(c.path("recovery")).unwrap();
            let mut asked = c.request();
            asked.recovery = Some(c.path("recovery"));
            let report = restore(&cx, &c.source, &asked, c.stored.tree()).await.unwrap();
            assert_match(&c.stored.facts(), &report);
            c.assert_first();
            assert!(report.undo.is_empty());

            // With something in it: kept on the same file system, within.
            fs::remove_file(c.root.join("conf/a")).unwrap();
            write(&c.root.join("*new*"), "second");
            set_mode(&c.root, 0o711);
            let second = c.path("mounted-second");
            copy_tree(&c.root, &second);
            asked.overwrite = true;
            let report = restore(&cx, &c.source, &asked, c.stored.tree()).await.unwrap();
            assert_match(&c.stored.facts(), &report);
            assert_eq!(fs::read_to_string(c.root.join("conf/a")).unwrap(), "first a");
            c.undo(&report.undo);
            // What was restored stays within, too: elsewhere is another file system.
            let aside = find_in(&c.root, "-undone");
            assert_eq!(fs::read_to_string(aside.join("conf/a")).unwrap(), "first a");
            fs::remove_dir_all(aside).unwrap();
            set_time(
                &c.root,
                fs::metadata(&second).unwrap().mtime(),
                fs::metadata(&second).unwrap().mtime_nsec(),
            );
            assert_eq!(rsync_differences(&second, &c.root), "");
            Ok(c)
        })
        .await;
    assert!(Command::new("umount").arg(root).status().unwrap().success());
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_and_abort_leave_the_target_as_it_was() {
    let cx = Context::system();
    let c = Changed::new().await;
    let mut asked = c.request();
    asked.overwrite = true;
    for (inline, damage) in [(true, 300_000), (false, 100)] {
        let mut items = Vec::new();
        let mut contents = Vec::new();
        for (entry, bytes) in &c.stored.entries {
            let content = match bytes {
                Some(b) if inline && b.len() < 1000 => Content::Inline(b.clone()),
                Some(b) => {
                    contents.push((entry.clone(), b.clone()));
                    Content::Deferred
                }
                None => Content::None,
            };
            items.push(TreeItem::Entry(entry.clone(), content));
        }
        let mut tree = Scripted::new(items);
        tree.contents = contents;
        tree.damage = Some(damage);
        let mut restore = c.source.restore(&cx, &asked).await.unwrap();
        let e = restore.put(&cx, &meta(), Body::Tree(Box::new(tree))).await.unwrap_err();
        assert_eq!(e.reason(), Reason::Corrupt);
        // The damaged file is not there, not even in part.
        let staging = c.beside().into_iter().find(|n| n.starts_with(".snapkit-restore-")).unwrap();
        let part = c.path(&staging).join("it's app/data/f");
        assert!(!part.exists());
        restore.abort(&cx).await.unwrap();
        c.assert_second();
        assert_eq!(c.beside(), ["first", "it's app", "second"]);
    }
    // What the engine skips is a problem, and the rest is there.
    let skipped = entry_path(&c.root.join("conf/a"));
    let items = c.stored.entries.iter().map(|(entry, bytes)| {
        if entry.path == skipped {
            return TreeItem::Problem(skipped.clone(), Error::corrupt("a chunk is damaged"));
        }
        let content = bytes.clone().map_or(Content::None, Content::Inline);
        TreeItem::Entry(entry.clone(), content)
    });
    let report =
        restore(&cx, &c.source, &asked, Box::new(Scripted::new(items.collect()))).await.unwrap();
    assert_eq!(report.problem_count, 1);
    assert!(report.problems[0].contains("conf/a: a chunk is damaged"), "{report:?}");
    assert!(!c.root.join("conf/a").exists() && c.root.join("conf/b").exists());
    let verdict = c.stored.facts().compare(&report.facts).verdict;
    assert_eq!(verdict, snapkit_core::facts::RestoreVerdict::Differs);
    // Nothing put is nothing restored.
    let restore = c.source.restore(&cx, &asked).await.unwrap();
    assert_eq!(restore.finish(&cx).await.unwrap_err().reason(), Reason::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_did_not_come_is_left_alone() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    write(&a.join("f"), "first");
    write(&b.join("f"), "first");
    let source = files(&[&a, &b]);
    let mut stored = Stored::capture(&cx, &source).await;
    stored.entries.retain(|(e, _)| !e.path.starts_with(&entry_path(&b)));
    write(&a.join("f"), "second");
    write(&b.join("f"), "second");
    let mut asked = RestoreRequest::new(Target::Original, record(&source, Facts::new()));
    asked.overwrite = true;
    let report = restore(&cx, &source, &asked, stored.tree()).await.unwrap();
    assert_eq!(fs::read_to_string(a.join("f")).unwrap(), "first");
    assert_eq!(fs::read_to_string(b.join("f")).unwrap(), "second");
    assert!(report.notes.iter().any(|n| n.contains("left alone")), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_to_no_url() {
    let scratch = tempfile::tempdir().unwrap();
    let source = files(&[&scratch.path().join("a")]);
    let target = Target::Url("redis://127.0.0.1".to_owned());
    let asked = RestoreRequest::new(target, record(&source, Facts::new()));
    let refused = source.restore(&Context::system(), &asked).await.map(drop).unwrap_err();
    insta::assert_snapshot!(refused, @"files are restored to a directory or to where they were, not to a URL (target=redis://127.0.0.1)");
}

/// A failure half-way takes back what was moved before.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_swap_is_taken_back() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let (a, b) = (scratch.path().join("x/a"), scratch.path().join("y/b"));
    write(&a.join("f"), "first");
    write(&b.join("f"), "first");
    let source = files(&[&a, &b]);
    let stored = Stored::capture(&cx, &source).await;
    write(&a.join("f"), "second");
    write(&b.join("f"), "second");
    let mut asked = RestoreRequest::new(Target::Original, record(&source, Facts::new()));
    asked.overwrite = true;
    let recovery = scratch.path().join("recovery");
    fs::create_dir(&recovery).unwrap();
    asked.recovery = Some(recovery.clone());
    let mut restore = source.restore(&cx, &asked).await.unwrap();
    restore.put(&cx, &meta(), Body::Tree(stored.tree())).await.unwrap();
    // Somebody puts something else where the second place is.
    fs::rename(scratch.path().join("y"), scratch.path().join("moved")).unwrap();
    write(&scratch.path().join("y"), "in the way");
    restore.finish(&cx).await.unwrap_err();
    assert_eq!(fs::read_to_string(a.join("f")).unwrap(), "second");
    assert_eq!(fs::read_dir(scratch.path().join("x")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(recovery).unwrap().count(), 0, "nothing is left to be brought back");
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_back_sees_what_is_not_what_was_put() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    write(&root.join("f"), "content");
    write(&root.join("g"), bytes(1, 2_000_000));
    let source = files(&[&root]);
    let stored = Stored::capture(&cx, &source).await;
    let target = scratch.path().join("target");
    fs::create_dir(&target).unwrap();
    let mut restore = source.restore(&cx, &request(&target, &source)).await.unwrap();
    restore.put(&cx, &meta(), Body::Tree(stored.tree())).await.unwrap();
    // Same size, same time, other bytes: only reading it tells.
    let staging = fs::read_dir(&target).unwrap().next().unwrap().unwrap().path();
    let file = below(&staging, &root.join("g"));
    let mut content = fs::read(&file).unwrap();
    content[1_500_000] ^= 1;
    fs::write(&file, content).unwrap();
    let time = stored.get(&root.join("g")).0.mtime.0;
    set_time(&file, time / 1_000_000_000, time % 1_000_000_000);
    let report = restore.finish(&cx).await.unwrap();
    assert_eq!(report.differences.len(), 1, "{report:?}");
    assert!(report.differences[0].fact.ends_with("/g"));
}

fn path(s: &str) -> EntryPath {
    EntryPath::new(s).unwrap()
}

fn dir(p: &str) -> TreeItem {
    TreeItem::Entry(TreeEntry::new(path(p), EntryKind::Directory), Content::None)
}

fn file(p: &str, content: &'static str) -> TreeItem {
    let kind = EntryKind::File { size: content.len() as u64, extents: None };
    TreeItem::Entry(
        TreeEntry::new(path(p), kind),
        Content::Inline(Bytes::from_static(content.as_bytes())),
    )
}

fn link(p: &str, target: &str) -> TreeItem {
    let kind = EntryKind::Symlink { target: target.into() };
    TreeItem::Entry(TreeEntry::new(path(p), kind), Content::None)
}

fn hard(p: &str, target: &str) -> TreeItem {
    let kind = EntryKind::HardLink { target: path(target) };
    TreeItem::Entry(TreeEntry::new(path(p), kind), Content::None)
}

fn sparse(p: &str, size: u64, extents: &[(u64, u64)], content: &'static str) -> TreeItem {
    let extents = extents.iter().map(|(offset, len)| Extent { offset: *offset, len: *len });
    let kind = EntryKind::File { size, extents: Some(extents.collect()) };
    TreeItem::Entry(
        TreeEntry::new(path(p), kind),
        Content::Inline(Bytes::from_static(content.as_bytes())),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tree_leads_out_of_the_target() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let victim = scratch.path().join("victim");
    write(&victim.join("passwd"), "untouched");
    set_mode(&victim, 0o711);
    let out = victim.display().to_string();
    let source = files(&[Path::new("/r")]);
    let hostile: Vec<(&str, Vec<TreeItem>)> = vec![
        ("through a link", vec![dir("r"), link("r/a", &out), file("r/a/passwd", "x")]),
        ("a directory over a link", vec![dir("r"), link("r/a", &out), dir("r/a")]),
        ("a link as the root", vec![link("r", &out), file("r/passwd", "x")]),
        ("in a file", vec![dir("r"), file("r/a", "x"), file("r/a/b", "x")]),
        ("twice", vec![dir("r"), file("r/a", "x"), file("r/a", "y")]),
        ("out of order", vec![dir("r"), file("r/b", "x"), file("r/a", "y")]),
        ("outside of the roots", vec![dir("r"), file("s", "x")]),
        ("an ancestor that is a link", vec![link("q", &out)]),
        ("a hard link out", vec![dir("r"), hard("r/a", "etc/passwd")]),
        ("a hard link to a later file", vec![dir("r"), hard("r/a", "r/b"), file("r/b", "x")]),
        ("a hard link to a link", vec![dir("r"), link("r/a", &out), hard("r/b", "r/a")]),
        (
            "a hard link through a link",
            vec![dir("r"), link("r/a", &out), hard("r/b", "r/a/passwd")],
        ),
        ("a hard link to a directory", vec![dir("r"), dir("r/a"), hard("r/b", "r/a")]),
        ("stretches behind the end", vec![dir("r"), sparse("r/a", 10, &[(8, 4)], "1234")]),
        (
            "stretches that overlap",
            vec![dir("r"), sparse("r/a", 10, &[(0, 4), (2, 4)], "12345678")],
        ),
        (
            "stretches without end",
            vec![dir("r"), sparse("r/a", u64::MAX, &[(u64::MAX - 1, 3)], "123")],
        ),
        ("too little content", vec![dir("r"), sparse("r/a", 10, &[(0, 4)], "123")]),
        ("too much content", vec![dir("r"), sparse("r/a", 10, &[(0, 2)], "123")]),
        ("an impossible link", vec![dir("r"), link("r/a", "a\0b")]),
        (
            "no content",
            vec![dir("r"), {
                let kind = EntryKind::File { size: 5, extents: None };
                TreeItem::Entry(TreeEntry::new(path("r/a"), kind), Content::None)
            }],
        ),
    ];
    let mut said = String::new();
    for (what, items) in hostile {
        let target = scratch.path().join("target");
        fs::create_dir(&target).unwrap();
        let check = source
            .check(&cx, &meta(), Body::Tree(Box::new(Scripted::new(clone(&items)))))
            .await
            .unwrap();
        let result =
            restore(&cx, &source, &request(&target, &source), Box::new(Scripted::new(items))).await;
        let e = result.expect_err(what);
        assert_eq!(e.reason(), Reason::Corrupt, "{what}: {e:?}");
        let seen: Vec<_> = check.0.iter().map(|found| found.what.as_str()).collect();
        said += &format!("{what}: {}\n  check: {}\n", e.chain(), seen.join("; "));
        let outside = matches!(what, "outside of the roots" | "an ancestor that is a link");
        assert!(outside || !check.0.is_empty(), "a check does not see: {what}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{what}");
        fs::remove_dir(&target).unwrap();
        assert_eq!(fs::read_to_string(victim.join("passwd")).unwrap(), "untouched", "{what}");
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 1, "{what}");
        assert_eq!(fs::metadata(&victim).unwrap().permissions().mode() & 0o7777, 0o711, "{what}");
    }
    let said = said.replace(scratch.path().to_str().unwrap(), "[DIR]");
    assert_snapshot!(said, @"
    through a link: an entry lies in something that is not a directory (entry=r/a/passwd)
      check: an entry lies in something that is not a directory (entry=r/a/passwd)
    a directory over a link: an entry is out of order, or there twice (entry=r/a)
      check: an entry is out of order, or there twice (entry=r/a)
    a link as the root: an entry lies in something that is not a directory (entry=r/passwd)
      check: an entry lies in something that is not a directory (entry=r/passwd)
    in a file: an entry lies in something that is not a directory (entry=r/a/b)
      check: an entry lies in something that is not a directory (entry=r/a/b)
    twice: an entry is out of order, or there twice (entry=r/a)
      check: an entry is out of order, or there twice (entry=r/a)
    out of order: an entry is out of order, or there twice (entry=r/a)
      check: an entry is out of order, or there twice (entry=r/a)
    outside of the roots: an entry lies outside of the roots (entry=s)
      check: 
    an ancestor that is a link: an entry lies outside of the roots (entry=q)
      check: 
    a hard link out: an entry lies outside of the roots (entry=etc/passwd)
      check: a hard link names no earlier file (entry=etc/passwd)
    a hard link to a later file: a hard link names something that is not earlier (entry=r/a)
      check: a hard link names something that is not earlier (entry=r/a); a hard link names no earlier file (entry=r/b)
    a hard link to a link: a hard link names something that is not a file (entry=r/b)
      check: a hard link names no earlier file (entry=r/a)
    a hard link through a link: an entry lies in something that is not a directory (entry=r/a/passwd)
      check: a hard link names no earlier file (entry=r/a/passwd)
    a hard link to a directory: a hard link names something that is not a file (entry=r/b)
      check: a hard link names no earlier file (entry=r/a)
    stretches behind the end: a stretch of a sparse file lies behind its end (entry=r/a)
      check: a stretch of a sparse file lies behind its end (entry=r/a)
    stretches that overlap: the stretches of a sparse file overlap or are empty (entry=r/a)
      check: the stretches of a sparse file overlap or are empty (entry=r/a)
    stretches without end: a file is larger than a file can be (entry=r/a)
      check: a file is larger than a file can be (entry=r/a)
    too little content: content is 3 bytes long instead of 4 (entry=r/a)
      check: content is 3 bytes long instead of 4 (entry=r/a)
    too much content: content is 3 bytes long instead of 2 (entry=r/a)
      check: content is 3 bytes long instead of 2 (entry=r/a)
    an impossible link: a symbolic link has an impossible target (entry=r/a)
      check: a symbolic link has an impossible target (entry=r/a)
    no content: a file comes without content (entry=r/a)
      check: a file comes without content (entry=r/a)
    ");
}

/// Trees that lack something, and targets that are none.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_told() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let source = files(&[Path::new("/r"), Path::new("/s")]);
    let target = scratch.path().join("target");
    let mut said = String::new();
    fs::create_dir(&target).unwrap();
    let tree = Scripted::new(vec![file("r/a/b/c", "x")]);
    let report = restore(&cx, &source, &request(&target, &source), Box::new(tree)).await.unwrap();
    for line in report.problems.iter().chain(&report.notes) {
        said += &format!("no directories: {line}\n");
    }
    assert_eq!(fs::read_to_string(target.join("r/a/b/c")).unwrap(), "x");
    // The content of another file is given for one.
    let mut tree = Scripted::new(vec![dir("r"), {
        let kind = EntryKind::File { size: 5000, extents: None };
        TreeItem::Entry(TreeEntry::new(path("r/a"), kind), Content::Deferred)
    }]);
    let kind = EntryKind::File { size: 5000, extents: None };
    tree.contents = vec![(TreeEntry::new(path("r/b"), kind), vec![0; 5000].into())];
    tree.answers_anything = true;
    let other = scratch.path().join("other");
    fs::create_dir(&other).unwrap();
    let e = restore(&cx, &source, &request(&other, &source), Box::new(tree)).await.unwrap_err();
    said += &format!("another file: {} ({})\n", e.chain(), e.reason());
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
    let plain = scratch.path().join("plain");
    write(&plain, "a file");
    for target in [plain.clone(), plain.join("below"), scratch.path().join("none")] {
        let e = source.restore(&cx, &request(&target, &source)).await.err().unwrap();
        said += &format!("{} ({})\n", e.chain(), e.reason());
    }
    assert_snapshot!(said.replace(scratch.path().to_str().unwrap(), "[DIR]"), @"
    no directories: r: the directory did not come; it is made for its owner only (entry=r)
    no directories: r/a: the directory did not come; it is made for its owner only (entry=r/a)
    no directories: r/a/b: the directory did not come; it is made for its owner only (entry=r/a/b)
    no directories: the snapshot holds nothing of [DIR]/target/s; it is left alone
    another file: the content of another file was given for (entry=r/a) (corrupt)
    the target is a file, and has to be a directory (path=[DIR]/plain) (invalid-argument)
    the target is a file, and has to be a directory (path=[DIR]/plain/below) (invalid-argument)
    cannot open the target (path=[DIR]/none): No such file or directory (os error 2) (not-found)
    ");
}

/// What a program hears that uses a restore in a way in which it cannot be used.
#[tokio::test(flavor = "multi_thread")]
async fn calls_in_another_order_are_refused() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let source = files(&[Path::new("/r")]);
    let tree = || Body::Tree(Box::new(Scripted::new(vec![dir("r"), file("r/a", "x")])));
    let begin = async || source.restore(&cx, &request(scratch.path(), &source)).await.unwrap();
    let mut said = String::new();
    let mut hear = |e: Error| said += &format!("{} ({})\n", e.chain(), e.reason());
    hear(begin().await.finish(&cx).await.err().unwrap());
    let mut session = begin().await;
    let mut other = meta();
    other.name = ArtifactName::new("other").unwrap();
    hear(session.put(&cx, &other, tree()).await.err().unwrap());
    session.put(&cx, &meta(), tree()).await.unwrap();
    hear(session.put(&cx, &meta(), tree()).await.err().unwrap());
    session.abort(&cx).await.unwrap();
    let mut session = begin().await;
    let bytes = Body::Bytes(Box::pin(futures_util::stream::empty()));
    hear(session.put(&cx, &meta(), bytes).await.err().unwrap());
    session.abort(&cx).await.unwrap();
    let capture = source.capture(&cx, None).await;
    hear(capture.err().unwrap());
    assert_snapshot!(said, @"
    nothing was put, so nothing can be finished (invalid-argument)
    a source of files has no artifact other (invalid-argument)
    the tree was put before (invalid-argument)
    expected an artifact of shape Tree, got Bytes (invalid-argument)
    what is to be captured does not exist (path=/r) (source-missing)
    ");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

fn clone(items: &[TreeItem]) -> Vec<TreeItem> {
    let copy = |item: &TreeItem| match item {
        TreeItem::Entry(entry, Content::Inline(b)) => {
            TreeItem::Entry(entry.clone(), Content::Inline(b.clone()))
        }
        TreeItem::Entry(entry, _) => TreeItem::Entry(entry.clone(), Content::None),
        TreeItem::Problem(path, e) => TreeItem::Problem(path.clone(), Error::corrupt(e.chain())),
    };
    items.iter().map(copy).collect()
}

/// Everything from the root directory on, below a directory.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_system_goes_below_a_directory() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let source = files(&[Path::new("/"), Path::new("/etc")]);
    let items = vec![dir("etc"), file("etc/passwd", "x"), link("lib", "usr/lib"), file("z", "z")];
    let target = scratch.path().join("target");
    fs::create_dir(&target).unwrap();
    let mut asked = request(&target, &source);
    let tree = Box::new(Scripted::new(clone(&items)));
    let report = restore(&cx, &source, &asked, tree).await.unwrap();
    assert_eq!(report.facts.0["tree.entries"].value, 4u64.into());
    assert_eq!(fs::read_dir(&target).unwrap().count(), 3);
    write(&target.join("later"), "x");
    write(&target.join("z"), "second");
    copy_tree(&target, &scratch.path().join("second"));
    asked.overwrite = true;
    let report = restore(&cx, &source, &asked, Box::new(Scripted::new(items))).await.unwrap();
    assert_eq!(report.facts.0["tree.entries"].value, 4u64.into());
    assert_eq!(fs::read_to_string(target.join("z")).unwrap(), "z");
    assert!(sh(&report.undo.join("\n")).status.success());
    fs::remove_dir_all(find_in(&target, "-undone")).unwrap();
    let meta = fs::metadata(scratch.path().join("second")).unwrap();
    set_time(&target, meta.mtime(), meta.mtime_nsec());
    assert_eq!(rsync_differences(&scratch.path().join("second"), &target), "");
    // Never in place of the running system.
    asked.target = Target::Original;
    let e = source.restore(&cx, &asked).await.err().unwrap();
    assert_eq!(e.reason(), Reason::Unsupported);
}

/// What stands in the target already cannot lead out of it either.
#[tokio::test(flavor = "multi_thread")]
async fn links_in_the_target_are_not_followed() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let victim = scratch.path().join("victim");
    fs::create_dir(&victim).unwrap();
    let target = scratch.path().join("target");
    fs::create_dir(&target).unwrap();
    symlink(&victim, target.join("srv")).unwrap();
    let source = files(&[Path::new("/srv/app")]);
    let mut asked = request(&target, &source);
    asked.overwrite = true;
    let e = source.restore(&cx, &asked).await.err().unwrap();
    assert_eq!(e.reason(), Reason::AlreadyExists);
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    // A root that is a link is replaced, and what it led to is not.
    let source = files(&[Path::new("/srv")]);
    let mut asked = request(&target, &source);
    asked.overwrite = true;
    let items = vec![dir("srv"), file("srv/f", "x")];
    let report = restore(&cx, &source, &asked, Box::new(Scripted::new(items))).await.unwrap();
    assert_eq!(fs::read_to_string(target.join("srv/f")).unwrap(), "x");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    sh(&report.undo.join("\n"));
    assert_eq!(fs::read_link(target.join("srv")).unwrap(), victim);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_down_by_the_target_is_kept_out() {
    let cx = Context::system();
    let c = Changed::new().await;
    let target = c.path("target");
    fs::create_dir(&target).unwrap();
    let os = std::ffi::OsStr::new;
    run("setfacl", &[os("-d"), os("-m"), os("u:4242:rwx"), target.as_os_str()]);
    set_mode(&target, 0o2777);
    let report =
        restore(&cx, &c.source, &request(&target, &c.source), c.stored.tree()).await.unwrap();
    assert_match(&c.stored.facts(), &report);
    assert_eq!(rsync_differences(&c.path("first"), &below(&target, &c.root)), "");
}

/// The whole of a restore stays within its memory: many directories, many links, many files.
#[tokio::test(flavor = "multi_thread")]
async fn many_small_things() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    for d in 0..4500 {
        fs::create_dir_all(root.join(format!("{:02}/{d}", d % 100))).unwrap();
    }
    for f in 0..1500 {
        fs::write(root.join(format!("{:02}/f{f}", f % 100)), bytes(f, f as usize % 2000)).unwrap();
    }
    for l in 0..1500 {
        let from = root.join(format!("{:02}/f{l}", l % 100));
        fs::hard_link(from, root.join(format!("{:02}/l{l}", (l * 7) % 100))).unwrap();
    }
    let source = files(&[&root]);
    let target = scratch.path().join("target");
    fs::create_dir(&target).unwrap();
    let tree: Box<dyn TreeReader> = live(&cx, &source).await.unwrap();
    let report = restore(&cx, &source, &request(&target, &source), tree).await.unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!(rsync_differences(&root, &below(&target, &root)), "");
}
