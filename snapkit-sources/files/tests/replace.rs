//! Replacing a directory as a whole: what must not be moved away, two at once, and a restore that is cut
//! off.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use snapkit_core::artifact::Body;
use snapkit_core::context::Context;
use snapkit_core::error::Reason;
use snapkit_core::facts::Facts;
use snapkit_core::source::{RestoreRequest, Source as _, Target};
use snapkit_source_files::Files;
use support::*;

/// A root that was captured, and has another content now.
struct Replaced {
    scratch: tempfile::TempDir,
    root: PathBuf,
    source: Files,
    stored: Stored,
}

impl Replaced {
    async fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap().join("it's live");
        write(&root.join("d/a"), "first");
        write(&root.join("first"), "");
        let source = files(&[&root]);
        let stored = Stored::capture(&Context::system(), &source).await;
        write(&root.join("d/a"), "second");
        write(&root.join("second"), "");
        fs::remove_file(root.join("first")).unwrap();
        fs::create_dir(scratch.path().join("recovery")).unwrap();
        Self { scratch, root, source, stored }
    }

    fn recovery(&self) -> PathBuf {
        self.scratch.path().join("recovery")
    }

    fn request(&self) -> RestoreRequest {
        let record = record(&self.source, Facts::new());
        let mut request = RestoreRequest::new(Target::Original, record);
        request.overwrite = true;
        request.recovery = Some(self.recovery());
        request
    }

    fn assert(&self, which: &str) {
        let other = if which == "first" { "second" } else { "first" };
        assert_eq!(fs::read_to_string(self.root.join("d/a")).unwrap(), which);
        assert!(self.root.join(which).exists() && !self.root.join(other).exists(), "{which}");
    }
}

/// Mount a file system of its own. `None` if that is not permitted.
fn mount(at: &Path) -> Option<Mounted> {
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "snapkit-test"])
        .arg(at)
        .status()
        .is_ok_and(|s| s.success());
    assert!(mounted || std::env::var_os("CI").is_none(), "mounting a tmpfs is not permitted");
    mounted.then(|| Mounted(at.to_owned()))
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).status();
        assert!(std::thread::panicking() || done.unwrap().success());
    }
}

fn sh_file(script: &Path) {
    let out = Command::new("sh").arg(script).output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
}

fn names(dir: &Path) -> Vec<String> {
    let name = |i: std::io::Result<fs::DirEntry>| i.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(name).collect();
    names.sort();
    names
}

/// With the directory the live mount would go to where old states are, and be emptied with them.
#[tokio::test(flavor = "multi_thread")]
async fn what_holds_a_mount_is_not_moved_away() {
    let cx = Context::system();
    let r = Replaced::new().await;
    let at = r.root.join("d/mounted here");
    fs::create_dir(&at).unwrap();
    // The naive way takes it along.
    let Some(mounted) = mount(&at) else { return };
    write(&at.join("f"), "live");
    let away = r.scratch.path().join("away");
    fs::rename(&r.root, &away).unwrap();
    assert!(away.join("d/mounted here/f").exists());
    fs::rename(&away, &r.root).unwrap();

    let e = restore(&cx, &r.source, &r.request(), r.stored.tree()).await.unwrap_err();
    assert_eq!(e.reason(), Reason::AlreadyExists);
    let told = e.to_string();
    assert!(told.contains("unmount it") && told.contains(&*at.to_string_lossy()), "{told}");
    // Also if it came while things were put together, and where the root itself stays.
    drop(mounted);
    let mut late = r.source.restore(&cx, &r.request()).await.unwrap();
    late.put(&cx, &meta(), Body::Tree(r.stored.tree())).await.unwrap();
    let mounted = mount(&at).unwrap();
    write(&at.join("f"), "live");
    assert_eq!(late.finish(&cx).await.unwrap_err().reason(), Reason::AlreadyExists);
    r.assert("second");
    assert_eq!(fs::read_to_string(at.join("f")).unwrap(), "live");
    assert_eq!(names(&r.recovery()), [""; 0]);
    assert_eq!(names(r.scratch.path()), ["it's live", "recovery"]);
    // A part leaves it alone.
    let mut part = r.request();
    part.partial = true;
    let report = restore(&cx, &r.source, &part, r.stored.tree()).await.unwrap();
    assert_eq!(report.problems, [""; 0]);
    assert_eq!(fs::read_to_string(r.root.join("d/a")).unwrap(), "first");
    assert_eq!(fs::read_to_string(at.join("f")).unwrap(), "live");
    drop(mounted);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_states_do_not_go_into_themselves() {
    let cx = Context::system();
    let r = Replaced::new().await;
    let mut asked = r.request();
    let inside = r.root.join("d/state");
    fs::create_dir(&inside).unwrap();
    for recovery in [&inside, &r.root] {
        asked.recovery = Some(recovery.clone());
        let e = r.source.restore(&cx, &asked).await.err().unwrap();
        assert_eq!(e.reason(), Reason::InvalidArgument);
        let told = e.to_string();
        assert!(told.contains("give another one with --state-dir"), "{told}");
    }
    r.assert("second");
    assert_eq!(names(r.scratch.path()), ["it's live", "recovery"]);
    // Not in it, if it has become a link: that alone is moved.
    let elsewhere = r.scratch.path().join("elsewhere");
    fs::rename(&r.root, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &r.root).unwrap();
    asked.recovery = Some(elsewhere.join("d/state"));
    let report = restore(&cx, &r.source, &asked, r.stored.tree()).await.unwrap();
    assert_match(&r.stored.facts(), &report);
    r.assert("first");
    assert!(sh(&report.undo.join("\n")).status.success());
    assert_eq!(fs::read_link(&r.root).unwrap(), elsewhere);
    fs::remove_file(&r.root).unwrap();
    fs::rename(&elsewhere, &r.root).unwrap();
    // For a part it may lie there.
    asked.recovery = Some(inside);
    asked.partial = true;
    let report = restore(&cx, &r.source, &asked, r.stored.tree()).await.unwrap();
    assert_eq!(fs::read_to_string(r.root.join("d/a")).unwrap(), "first");
    assert!(sh(&report.undo.join("\n")).status.success());
    assert_eq!(fs::read_to_string(r.root.join("d/a")).unwrap(), "second");
}

/// Every moment at which a restore may be cut off, made from what it leaves at its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_cut_off_has_a_way_back() {
    let cx = Context::system();
    for moment in ["end", "without a directory", "new one beside", "nothing done"] {
        let r = Replaced::new().await;
        let number = fs::metadata(&r.root).unwrap().ino();
        let report = restore(&cx, &r.source, &r.request(), r.stored.tree()).await.unwrap();
        assert_match(&r.stored.facts(), &report);
        r.assert("first");
        let found = names(&r.recovery());
        assert_eq!(found.len(), 2, "{found:?}");
        let (kept, script) = (r.recovery().join(&found[0]), r.recovery().join(&found[1]));
        assert!(found[1].starts_with("undo-") && found[1].ends_with(".sh"), "{found:?}");
        let away = r.scratch.path().join("away");
        match moment {
            "without a directory" => fs::rename(&r.root, &away).unwrap(),
            "new one beside" => {
                fs::rename(&r.root, &away).unwrap();
                fs::rename(&kept, &r.root).unwrap();
                fs::rename(&away, &kept).unwrap();
            }
            "nothing done" => {
                fs::rename(&r.root, &away).unwrap();
                fs::rename(&kept, &r.root).unwrap();
            }
            _ => {}
        }
        for _ in 0..2 {
            sh_file(&script);
            r.assert("second");
            assert_eq!(fs::metadata(&r.root).unwrap().ino(), number, "{moment}");
        }
        // What is printed at the end changes nothing any more.
        if moment == "end" {
            assert!(sh(&report.undo.join("\n")).status.success());
            r.assert("second");
        }
    }
}

/// A root that stays is emptied and filled name by name.
#[tokio::test(flavor = "multi_thread")]
async fn filling_a_root_that_was_cut_off_has_a_way_back() {
    let cx = Context::system();
    for moment in 0..4 {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap().join("root");
        fs::create_dir(&root).unwrap();
        let Some(mounted) = mount(&root) else { return };
        write(&root.join("a"), "first");
        write(&root.join("b"), "first");
        let source = files(&[&root]);
        let stored = Stored::capture(&cx, &source).await;
        write(&root.join("a"), "second");
        fs::remove_file(root.join("b")).unwrap();
        write(&root.join("c"), "second");
        let recovery = scratch.path().join("recovery");
        fs::create_dir(&recovery).unwrap();
        let mut asked = RestoreRequest::new(Target::Original, record(&source, Facts::new()));
        asked.overwrite = true;
        asked.recovery = Some(recovery.clone());
        let report = restore(&cx, &source, &asked, stored.tree()).await.unwrap();
        assert_match(&stored.facts(), &report);
        let kept = find_in(&root, "-0");
        // Backwards from the end: new ones not there yet, then old ones still there.
        if moment > 0 {
            fs::remove_file(root.join("b")).unwrap();
        }
        if moment > 1 {
            fs::remove_file(root.join("a")).unwrap();
        }
        if moment > 2 {
            fs::rename(kept.join("c"), root.join("c")).unwrap();
        }
        for _ in 0..2 {
            sh_file(&find_in(&recovery, ".sh"));
            assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "second", "{moment}");
            assert_eq!(fs::read_to_string(root.join("c")).unwrap(), "second", "{moment}");
            assert!(!root.join("b").exists() && !kept.exists(), "{moment}");
        }
        drop(mounted);
    }
}

/// Neither may replace anything, so the later one is refused and the result of the first stays.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_at_once_one_is_refused() {
    let cx = Context::system();
    let r = Replaced::new().await;
    let target = r.scratch.path().join("target");
    fs::create_dir(&target).unwrap();
    let asked = request(&target, &r.source);
    let mut first = r.source.restore(&cx, &asked).await.unwrap();
    // Who looks now is refused. The second one looked when the stage of the first was not there yet.
    let e = r.source.restore(&cx, &asked).await.err().unwrap();
    assert_eq!(e.reason(), Reason::TargetNotEmpty);
    let stage = target.join(&names(&target)[0]);
    let away = r.scratch.path().join("away");
    fs::rename(&stage, &away).unwrap();
    let mut second = r.source.restore(&cx, &asked).await.unwrap();
    fs::rename(&away, &stage).unwrap();
    for one in [&mut first, &mut second] {
        one.put(&cx, &meta(), Body::Tree(r.stored.tree())).await.unwrap();
    }
    let first = first.finish(&cx).await.unwrap();
    assert_match(&r.stored.facts(), &first);
    let e = second.finish(&cx).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TargetNotEmpty, "{e}");
    let place = below(&target, &r.root);
    assert_eq!(fs::read_to_string(place.join("d/a")).unwrap(), "first");
}

/// Both at the same moment, many times: exactly one of them is done.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_finish_together_one_is_done() {
    let cx = Context::system();
    let r = Replaced::new().await;
    fs::remove_dir_all(&r.root).unwrap();
    let mut asked = r.request();
    (asked.overwrite, asked.recovery) = (false, None);
    for _ in 0..20 {
        let mut both = Vec::new();
        for _ in 0..2 {
            let mut one = r.source.restore(&cx, &asked).await.unwrap();
            one.put(&cx, &meta(), Body::Tree(r.stored.tree())).await.unwrap();
            both.push(one);
        }
        let (b, a) = (both.pop().unwrap(), both.pop().unwrap());
        let (a, b) = futures_util::future::join(a.finish(&cx), b.finish(&cx)).await;
        let refused: Vec<_> = [a.err(), b.err()].into_iter().flatten().collect();
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(refused[0].reason(), Reason::TargetNotEmpty, "{refused:?}");
        r.assert("first");
        fs::remove_dir_all(&r.root).unwrap();
        assert_eq!(names(r.scratch.path()), ["recovery"]);
    }
}
