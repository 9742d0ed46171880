//! Restores to where things were: what is in the way, what comes with a part, what is set aside, and
//! that the way back may be taken twice.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use snapkit_core::context::Context;
use snapkit_core::error::Reason;
use snapkit_core::facts::Facts;
use snapkit_core::source::{RestoreReport, RestoreRequest, Target};
use snapkit_core::tree::{Content, EntryKind, EntryPath, TreeEntry, TreeItem};
use snapkit_source_files::Files;
use support::*;

fn original(source: &Files) -> RestoreRequest {
    RestoreRequest::new(Target::Original, record(source, Facts::new()))
}

/// What the engine hands on of a tree if only some paths are asked for: those, and what leads there.
fn part_of(stored: &Stored, wanted: &[&Path]) -> Stored {
    let wanted: Vec<EntryPath> = wanted.iter().map(|p| entry_path(p)).collect();
    let mut part = stored.clone();
    part.entries.retain_mut(|(entry, _)| {
        let chosen = wanted.iter().any(|w| entry.path.starts_with(w));
        entry.ancestor |= !chosen;
        chosen || wanted.iter().any(|w| w.starts_with(&entry.path))
    });
    part
}

/// Mode and modification time.
fn attributes(path: &Path) -> (u32, i64, i64) {
    let meta = fs::metadata(path).unwrap();
    (meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec())
}

/// A root that was captured, and is something else now.
struct Replaced {
    scratch: tempfile::TempDir,
    root: PathBuf,
    source: Files,
    stored: Stored,
}

impl Replaced {
    async fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("live");
        write(&root.join("d/a"), "first a");
        write(&root.join("d/gone"), "first gone");
        write(&root.join("f"), "first f");
        let source = files(&[&root]);
        let stored = Stored::capture(&Context::system(), &source).await;
        write(&root.join("d/a"), "second a");
        fs::remove_file(root.join("d/gone")).unwrap();
        write(&root.join("d/new"), "second new");
        fs::create_dir(scratch.path().join("recovery")).unwrap();
        Self { scratch, root, source, stored }
    }

    /// Restore all of it, or the directory and the file in it.
    async fn overwrite(&self, partial: bool, recovery: bool) -> RestoreReport {
        let mut asked = original(&self.source);
        asked.overwrite = true;
        asked.partial = partial;
        asked.recovery = recovery.then(|| self.scratch.path().join("recovery"));
        let (d, f) = (self.root.join("d"), self.root.join("f"));
        let tree = if partial { part_of(&self.stored, &[&d, &f]) } else { self.stored.clone() };
        restore(&Context::system(), &self.source, &asked, tree.tree()).await.unwrap()
    }

    fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.root.join(name)).ok()
    }

    fn assert_second(&self, what: &str) {
        assert_eq!(self.text("d/a").as_deref(), Some("second a"), "{what}");
        assert_eq!(self.text("d/gone"), None, "{what}");
        assert_eq!(self.text("d/new").as_deref(), Some("second new"), "{what}");
        assert_eq!(self.text("f").as_deref(), Some("first f"), "{what}");
    }
}

/// Run commands, the n-th `mv` of which never comes to run. Whether they came to their end.
fn run_until(commands: &[String], scratch: &Path, stop: u32) -> bool {
    let bin = scratch.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let count = scratch.join("count");
    fs::write(&count, "0").unwrap();
    let mv = bin.join("mv");
    fs::write(
        &mv,
        format!(
            "#!/bin/sh\nn=$(cat '{0}')\necho $((n + 1)) > '{0}'\n[ $n -lt {stop} ] || exit 1\nexec /bin/mv \"$@\"\n",
            count.display()
        ),
    )
    .unwrap();
    set_mode(&mv, 0o755);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let script = commands.join("\n");
    Command::new("sh").args(["-c", &script]).env("PATH", path).output().unwrap();
    fs::read_to_string(&count).unwrap().trim().parse::<u32>().unwrap() <= stop
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_may_be_taken_twice_and_again_when_it_was_cut_off() {
    for (partial, recovery) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut stop = 0;
        loop {
            let what = format!("partial {partial}, recovery {recovery}, cut off after {stop}");
            let r = Replaced::new().await;
            let report = r.overwrite(partial, recovery).await;
            assert_eq!(r.text("d/gone").as_deref(), Some("first gone"), "{what}");
            let ended = run_until(&report.undo, r.scratch.path(), stop);
            assert!(sh(&report.undo.join("\n")).status.success(), "{what} {report:?}");
            r.assert_second(&what);
            // Life goes on, and somebody runs it again.
            write(&r.root.join("d/a"), "third a");
            write(&r.root.join("d/gone"), "third gone");
            sh(&report.undo.join("\n"));
            assert_eq!(r.text("d/a").as_deref(), Some("third a"), "{what}");
            assert_eq!(r.text("d/gone").as_deref(), Some("third gone"), "{what}");
            if ended {
                assert!(stop > 0, "{what}");
                break;
            }
            stop += 1;
        }
    }
    // The naive way.
    let r = Replaced::new().await;
    r.overwrite(false, false).await;
    let mut beside = fs::read_dir(r.scratch.path()).unwrap().map(|e| e.unwrap().path());
    let kept = beside.find(|p| p.display().to_string().contains("snapkit-old")).unwrap();
    let (kept, live) = (kept.display(), r.root.display());
    for _ in 0..2 {
        sh(&format!("rm -rf -- {live}; mv -- {kept} {live}"));
    }
    assert!(!r.root.exists(), "the second run is expected to destroy what is there");
}

/// The same where the directory stays and what is in it is moved.
#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_of_a_directory_that_stays_may_be_taken_twice() {
    let cx = Context::system();
    let source = files(&[Path::new("/")]);
    for recovery in [false, true] {
        let mut stop = 0;
        loop {
            let what = format!("recovery {recovery}, cut off after {stop}");
            let scratch = tempfile::tempdir().unwrap();
            let target = scratch.path().join("target");
            let text = |name: &str| fs::read_to_string(target.join(name)).ok();
            write(&target.join("a"), "second a");
            write(&target.join("d/b"), "second b");
            let entry = |name: &str| {
                let kind = EntryKind::File { size: 7, extents: None };
                let content = Content::Inline(bytes::Bytes::from_static(b"first x"));
                TreeItem::Entry(TreeEntry::new(EntryPath::new(name).unwrap(), kind), content)
            };
            let tree = Box::new(Scripted::new(vec![entry("a"), entry("c")]));
            let mut asked = request(&target, &source);
            asked.overwrite = true;
            asked.recovery = recovery.then(|| scratch.path().join("recovery"));
            asked.recovery.iter().for_each(|dir| fs::create_dir(dir).unwrap());
            let report = restore(&cx, &source, &asked, tree).await.unwrap();
            assert_eq!(text("a").as_deref(), Some("first x"), "{what}");
            let ended = run_until(&report.undo, scratch.path(), stop);
            assert!(sh(&report.undo.join("\n")).status.success(), "{what} {report:?}");
            assert_eq!(text("a").as_deref(), Some("second a"), "{what}");
            assert_eq!(text("d/b").as_deref(), Some("second b"), "{what}");
            assert_eq!(text("c"), None, "{what}");
            write(&target.join("a"), "third a");
            write(&target.join("c"), "third c");
            sh(&report.undo.join("\n"));
            assert_eq!(text("a").as_deref(), Some("third a"), "{what}");
            assert_eq!(text("c").as_deref(), Some("third c"), "{what}");
            if ended {
                assert!(stop > 1, "{what}");
                break;
            }
            stop += 1;
        }
    }
}

/// The directory that nothing was in before goes too, once.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_there_before_goes_once() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("x/y/b"));
    write(&a.join("f"), "first");
    write(&b.join("f"), "first");
    let source = files(&[&a, &b]);
    let stored = Stored::capture(&cx, &source).await;
    write(&a.join("f"), "second");
    fs::remove_dir_all(scratch.path().join("x")).unwrap();
    let mut asked = original(&source);
    asked.overwrite = true;
    let report = restore(&cx, &source, &asked, stored.tree()).await.unwrap();
    assert!(b.join("f").exists());
    assert!(sh(&report.undo.join("\n")).status.success(), "{report:?}");
    assert_eq!(fs::read_to_string(a.join("f")).unwrap(), "second");
    assert!(!scratch.path().join("x").exists());
    write(&b.join("f"), "third");
    sh(&report.undo.join("\n"));
    assert_eq!(fs::read_to_string(b.join("f")).unwrap(), "third");
}

/// What the snapshot never had is set aside with the rest, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_aside_and_does_not_come_back_is_told() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    for name in ["f", "d/g", "d/x.tmp", "cache/1", "cache/2", "y.tmp"] {
        write(&root.join(name), "content");
    }
    let mut settings = config(&[&root]);
    settings.exclude = vec!["*.tmp".to_owned(), "cache".to_owned()];
    let source = Files::new(name(), settings).unwrap();
    let stored = Stored::capture(&cx, &source).await;
    let mut asked = original(&source);
    asked.overwrite = true;
    let report = restore(&cx, &source, &asked, stored.tree()).await.unwrap();
    assert_match(&stored.facts(), &report);
    assert_eq!(report.notes.len(), 1, "{report:?}");
    let (note, r) = (&report.notes[0], root.display());
    assert!(note.starts_with("3 entries that the snapshot does not have went away"), "{note}");
    assert!(note.ends_with(&format!("{r}/cache, {r}/y.tmp, {r}/d/x.tmp")), "{note}");
    assert!(note.contains(".r.snapkit-old-"), "{note}");
    // When nothing is missed, nothing is said.
    let report = restore(&cx, &source, &asked, stored.tree()).await.unwrap();
    assert_eq!(report.notes, Vec::<String>::new());
}

/// Somebody may have made the directories already, such as another source that lies in them.
#[tokio::test(flavor = "multi_thread")]
async fn directories_alone_are_in_nobodys_way() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    write(&root.join("data/f"), "content");
    set_mode(&root.join("data"), 0o750);
    let source = files(&[&root]);
    let stored = Stored::capture(&cx, &source).await;
    fs::remove_dir_all(&root).unwrap();
    fs::create_dir_all(root.join("data/deep")).unwrap();
    fs::create_dir_all(root.join("other")).unwrap();
    let report = restore(&cx, &source, &original(&source), stored.tree()).await.unwrap();
    assert_match(&stored.facts(), &report);
    assert_eq!((report.problems, report.undo), (vec![], vec![]));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);

    // A file anywhere is, whenever it comes.
    for late in [false, true] {
        fs::remove_dir_all(&root).unwrap();
        fs::create_dir_all(root.join("other/deep")).unwrap();
        fs::create_dir_all(root.join("more")).unwrap();
        set_mode(&root.join("other"), 0o711);
        let mine = root.join("other/deep/mine");
        if !late {
            write(&mine, "mine");
        }
        let e = match source.restore_late(&cx, &original(&source), &stored, &mine).await {
            Ok(report) => panic!("{report:?}"),
            Err(e) => e,
        };
        assert_eq!(e.reason(), Reason::TargetNotEmpty);
        assert!(e.context().iter().any(|(_, v)| v.starts_with(&*root.to_string_lossy())), "{e:?}");
        assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
        assert!(root.join("more").exists());
        assert_eq!(attributes(&root.join("other")).0, 0o711);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }
}

/// A restore, and somebody who writes a file before it ends.
trait RestoreLate {
    async fn restore_late(
        &self,
        cx: &Context,
        asked: &RestoreRequest,
        stored: &Stored,
        file: &Path,
    ) -> snapkit_core::Result<RestoreReport>;
}

impl RestoreLate for Files {
    async fn restore_late(
        &self,
        cx: &Context,
        asked: &RestoreRequest,
        stored: &Stored,
        file: &Path,
    ) -> snapkit_core::Result<RestoreReport> {
        use snapkit_core::artifact::Body;
        use snapkit_core::source::Source as _;
        let mut restore = self.restore(cx, asked).await?;
        if let Err(e) = restore.put(cx, &meta(), Body::Tree(stored.tree())).await {
            restore.abort(cx).await?;
            return Err(e);
        }
        write(file, "mine");
        restore.finish(cx).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_comes_back_among_those_that_are_there() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let (root, other) = (scratch.path().join("up/loads"), scratch.path().join("etc/shop"));
    write(&root.join("d/f"), "first f");
    write(&root.join("d/g"), "first g");
    write(&other.join("conf"), "first");
    set_mode(&root.join("d"), 0o751);
    let source = files(&[&root, &other]);
    let stored = Stored::capture(&cx, &source).await;
    fs::remove_file(root.join("d/f")).unwrap();
    write(&root.join("d/g"), "second g");
    set_mode(&root.join("d"), 0o700);
    set_time(&root.join("d"), 1_600_000_000, 5);
    set_time(&scratch.path().join("etc"), 1_600_000_001, 6);
    let before = attributes(&root.join("d"));
    let mut asked = original(&source);
    asked.partial = true;
    let f = root.join("d/f");
    let report = restore(&cx, &source, &asked, part_of(&stored, &[&f]).tree()).await.unwrap();
    assert_eq!((report.problems, report.notes, report.undo), (vec![], vec![], vec![]));
    assert_eq!(fs::read_to_string(&f).unwrap(), "first f");
    assert_eq!(fs::read_to_string(root.join("d/g")).unwrap(), "second g");
    assert_eq!(attributes(&root.join("d")), before);
    // Not even the time of a directory that it has nothing to do with is new.
    assert_eq!(attributes(&scratch.path().join("etc")).1, 1_600_000_001);
    assert_eq!(fs::read_dir(scratch.path().join("up")).unwrap().count(), 1);

    // What is there is in the way of itself only, and found before anything is written.
    let e = restore(&cx, &source, &asked, part_of(&stored, &[&f]).tree()).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TargetNotEmpty);
    assert!(e.context().iter().any(|(_, v)| v.ends_with("up/loads/d/f")), "{e:?}");
    fs::remove_file(&f).unwrap();
    let d = root.join("d");
    let e = restore(&cx, &source, &asked, part_of(&stored, &[&d]).tree()).await.unwrap_err();
    assert!(e.context().iter().any(|(_, v)| v.ends_with("up/loads/d/g")), "{e:?}");
    assert!(!f.exists());
    // It may also come later.
    let part = part_of(&stored, &[&f]);
    let e = source.restore_late(&cx, &asked, &part, &f).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TargetNotEmpty);
    assert_eq!(fs::read_to_string(&f).unwrap(), "mine");

    // A directory that was asked for and is there keeps what it has, which is said.
    fs::remove_file(&f).unwrap();
    fs::remove_file(root.join("d/g")).unwrap();
    let report = restore(&cx, &source, &asked, part_of(&stored, &[&d]).tree()).await.unwrap();
    assert!(report.notes[0].contains("keep their attributes: 1"), "{report:?}");
    assert_eq!(attributes(&d).0, 0o700);
    assert_eq!(fs::read_to_string(root.join("d/g")).unwrap(), "first g");
    // Something else where a directory has to be.
    fs::remove_dir_all(&d).unwrap();
    std::os::unix::fs::symlink("elsewhere", &d).unwrap();
    let e = restore(&cx, &source, &asked, part.tree()).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TargetNotEmpty);
    assert!(d.is_symlink());
}

/// A part has nothing to do with roots that it does not touch.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_needs_only_its_own_root() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("x/b"));
    write(&a.join("f"), "first");
    write(&b.join("f"), "first");
    let source = files(&[&a, &b]);
    let stored = Stored::capture(&cx, &source).await;
    fs::remove_dir_all(&a).unwrap();
    fs::remove_dir_all(scratch.path().join("x")).unwrap();
    write(&scratch.path().join("x"), "no directory");
    let mut asked = original(&source);
    asked.partial = true;
    let part = part_of(&stored, &[&a.join("f")]);
    restore(&cx, &source, &asked, part.tree()).await.unwrap();
    assert_eq!(fs::read_to_string(a.join("f")).unwrap(), "first");
    let part = part_of(&stored, &[&b.join("f")]);
    let e = restore(&cx, &source, &asked, part.tree()).await.unwrap_err();
    assert_eq!(e.reason(), Reason::AlreadyExists, "{e:?}");
    assert_eq!(fs::read_to_string(scratch.path().join("x")).unwrap(), "no directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leads_to_a_part_is_made_as_it_was() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("srv/app");
    write(&root.join("d/e/f"), "content");
    write(&root.join("d/g"), "other");
    let leading = [root.join("d/e"), root.join("d"), root.clone(), scratch.path().join("srv")];
    for (i, dir) in leading.iter().enumerate() {
        set_mode(dir, 0o751 + u32::try_from(i).unwrap());
        set_time(dir, 1_500_000_000 + i64::try_from(i).unwrap(), 42);
    }
    let before: Vec<_> = leading.iter().map(|d| attributes(d)).collect();
    let source = files(&[&root]);
    let stored = Stored::capture(&cx, &source).await;
    let part = part_of(&stored, &[&root.join("d/e/f")]);
    let mut asked = original(&source);
    asked.partial = true;
    for missing in ["srv", "srv/app"] {
        fs::remove_dir_all(scratch.path().join(missing)).unwrap();
        let report = restore(&cx, &source, &asked, part.tree()).await.unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
        let after: Vec<_> = leading.iter().map(|d| attributes(d)).collect();
        assert_eq!(after[..3], before[..3], "{missing}");
        if missing == "srv" {
            assert_eq!(after, before);
        }
        assert!(root.join("d/e/f").exists() && !root.join("d/g").exists());
    }
    // Below a target of its own, too.
    let target = scratch.path().join("target");
    fs::create_dir(&target).unwrap();
    let mut asked = request(&target, &source);
    asked.partial = true;
    restore(&cx, &source, &asked, part.tree()).await.unwrap();
    let after: Vec<_> = leading.iter().map(|d| attributes(&below(&target, d))).collect();
    assert_eq!(after, before);
}

/// A root that was missing when it was captured says nothing about what is there now.
#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_was_missing_then_does_not_count_now() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    write(&a.join("f"), "first");
    let source = files(&[&a, &b]);
    let stored = Stored::capture(&cx, &source).await;
    write(&b.join("f"), "later");
    let mut asked = original(&source);
    asked.overwrite = true;
    let report = restore(&cx, &source, &asked, stored.tree()).await.unwrap();
    assert_match(&stored.facts(), &report);
    assert_eq!(fs::read_to_string(b.join("f")).unwrap(), "later");
}

#[tokio::test]
async fn a_target_that_is_a_file_is_said_to_be_one() {
    use snapkit_core::source::Source as _;
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let (root, target) = (scratch.path().join("r"), scratch.path().join("t"));
    write(&root.join("f"), "content");
    write(&target, "a file");
    let source = files(&[&root]);
    for overwrite in [false, true] {
        let mut asked = request(&target, &source);
        asked.overwrite = overwrite;
        let e = source.restore(&cx, &asked).await.err().unwrap();
        assert_eq!(e.reason(), Reason::InvalidArgument);
        assert!(e.to_string().contains("the target is a file"), "{e}");
    }
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o644);
}
