//! What needs another user, another umask or a file system of its own.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use snapkit_core::Context;
use snapkit_core::error::Reason;
use snapkit_core::key::Key;
use snapkit_core::sink::{PutMode, Sink};
use snapkit_sinks::LocalSink;

/// Set in a copy of this program that was started to run one test in other circumstances.
const CHILD: &str = "SNAPKIT_TEST_CHILD";

/// In continuous integration nothing may be skipped.
fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "cannot be skipped here: {why}");
    eprintln!("skipped: {why}");
}

/// Run one test of this program in a process of its own, in a scratch directory of its own.
fn run_again(test: &str, child: &str, as_nobody: bool) {
    let scratch = tempfile::tempdir().unwrap();
    // Somewhere that another user can reach, wherever the program was built.
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).unwrap();
    let program = scratch.path().join("test");
    // By another process: a program that is open for writing, here or in a child, cannot be run.
    let own = std::env::current_exe().unwrap();
    assert!(Command::new("cp").arg(own).arg(&program).status().unwrap().success());
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let work = scratch.path().join("work");
    fs::create_dir(&work).unwrap();
    fs::set_permissions(&work, Permissions::from_mode(0o777)).unwrap();

    let mut command = if as_nobody {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
            .arg(&program);
        command
    } else {
        Command::new(&program)
    };
    let output = command
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, child)
        .env("TMPDIR", &work)
        .current_dir(&work)
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(e) if as_nobody => return skip(&format!("cannot start setpriv: {e}")),
        Err(e) => panic!("{e}"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

async fn modes_under_umask(umask: u32) {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
    let root = scratch.path().join("new/repo");
    let sink = LocalSink::create(&cx, &root).await.unwrap();
    sink.put(&cx, &key("packs/aa/one"), Bytes::from_static(b"x"), PutMode::Create).await.unwrap();
    sink.put(&cx, &key("config"), Bytes::from_static(b"x"), PutMode::Overwrite).await.unwrap();
    rustix::process::umask(before);
    for dir in ["new", "new/repo", "new/repo/packs", "new/repo/packs/aa"] {
        assert_eq!(mode(&scratch.path().join(dir)), 0o700, "{dir} under umask {umask:03o}");
    }
    for file in ["packs/aa/one", "config"] {
        assert_eq!(mode(&root.join(file)), 0o600, "{file} under umask {umask:03o}");
    }
}

#[tokio::test]
async fn modes_are_private_under_every_umask() {
    if std::env::var_os(CHILD).is_some() {
        for umask in [0, 0o022, 0o077, 0o777] {
            modes_under_umask(umask).await;
        }
        return;
    }
    // The umask belongs to the process: not to be changed beside other tests.
    run_again("modes_are_private_under_every_umask", "yes", false);
    if rustix::process::geteuid().is_root() {
        run_again("modes_are_private_under_every_umask", "yes", true);
    }
}

#[tokio::test]
async fn missing_rights_name_the_place_and_what_was_tried() {
    if std::env::var_os(CHILD).is_none() && rustix::process::geteuid().is_root() {
        return run_again("missing_rights_name_the_place_and_what_was_tried", "yes", true);
    }
    assert!(!rustix::process::geteuid().is_root());
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("repo");
    let sink = LocalSink::create(&cx, &root).await.unwrap();
    let one = key("packs/aa/one");
    sink.put(&cx, &one, Bytes::from_static(b"x"), PutMode::Create).await.unwrap();
    let set = |path: &str, mode| {
        fs::set_permissions(root.join(path), Permissions::from_mode(mode)).unwrap();
    };
    let denied = |what: &str, at: &Path, e: snapkit_core::Error| {
        assert_eq!(e.reason(), Reason::PermissionDenied, "{e:?}");
        let text = e.to_string();
        assert!(text.contains(what) && text.contains(&at.display().to_string()), "{what}: {text}");
    };
    let put = async |name: &str, mode| {
        sink.put(&cx, &key(name), Bytes::from_static(b"x"), mode).await.unwrap_err()
    };

    set("packs/aa/one", 0o000);
    let e = sink.get(&cx, &one, None).await.unwrap_err();
    denied("cannot open the object", &root.join("packs/aa/one"), e);
    set("packs/aa/one", 0o600);

    set("packs/aa", 0o500);
    let e = put("packs/aa/two", PutMode::Create).await;
    denied("cannot write a new file", &root.join("packs/aa"), e);
    denied(
        "cannot delete the object",
        &root.join("packs/aa/one"),
        sink.delete(&cx, &one).await.unwrap_err(),
    );
    let e = put("packs/aa/one", PutMode::Overwrite).await;
    denied("cannot write a new file", &root.join("packs/aa"), e);
    assert_eq!(sink.get(&cx, &one, None).await.unwrap(), &b"x"[..], "reading goes on");

    set("packs/aa", 0o000);
    let e = sink.list(&cx, None).try_collect::<Vec<_>>().await.unwrap_err();
    denied("cannot list the directory", &root.join("packs/aa"), e);
    let e = sink.get(&cx, &one, None).await.unwrap_err();
    denied("cannot open the object", &root.join("packs/aa/one"), e);
    set("packs/aa", 0o700);

    set("packs", 0o500);
    let e = put("packs/bb/two", PutMode::Create).await;
    denied("cannot create the directory", &root.join("packs/bb"), e);
    set("packs", 0o700);

    set("", 0o000);
    let e = LocalSink::open(&cx, &root).await.map(drop).unwrap_err();
    denied("cannot read the directory", &root, e);
    set("", 0o500);
    let e = LocalSink::create(&cx, root.join("inner/one")).await.map(drop).unwrap_err();
    denied("cannot create the directory", &root.join("inner"), e);
    set("", 0o700);
}

/// A small file system, gone with the value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(dir: &Path, size: &str) -> Result<Self, String> {
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir)
            .output()
            .map_err(|e| e.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(Self(dir.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

fn hidden_files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.filter(|e| e.file_name().to_string_lossy().starts_with('.')).count()
}

#[tokio::test]
async fn a_full_disk_is_no_space_and_nothing_incomplete() {
    let scratch = tempfile::tempdir().unwrap();
    let _mounted = match Tmpfs::mount(scratch.path(), "1m") {
        Ok(mounted) => mounted,
        Err(e) => return skip(&format!("cannot mount a tmpfs: {e}")),
    };
    let cx = Context::system();
    let sink = LocalSink::create(&cx, scratch.path().join("repo")).await.unwrap();
    let data = Bytes::from(vec![7; 300_000]);
    let name = |i| key(&format!("packs/aa/{i}"));
    let mut stored = 0;
    let e = loop {
        match sink.put(&cx, &name(stored), data.clone(), PutMode::Create).await {
            Ok(_) => stored += 1,
            Err(e) => break e,
        }
        assert!(stored < 10);
    };
    assert_eq!((stored, e.reason()), (3, Reason::NoSpace), "{e:?}");
    let place = scratch.path().join("repo/packs/aa");
    assert!(e.to_string().contains(&place.display().to_string()), "{e}");
    assert!(!e.hint().is_empty());
    let e = sink.put(&cx, &name(0), data.clone(), PutMode::Overwrite).await.unwrap_err();
    assert_eq!(e.reason(), Reason::NoSpace);
    assert_eq!(hidden_files(&place), 0);
    for i in 0..stored {
        assert_eq!(sink.get(&cx, &name(i), None).await.unwrap(), data);
    }
    sink.delete(&cx, &name(0)).await.unwrap();
    sink.put(&cx, &name(9), data, PutMode::Create).await.unwrap();
}
