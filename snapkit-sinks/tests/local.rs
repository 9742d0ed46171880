//! What a local sink does with the things that a directory can hold, and what it says.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use snapkit_core::Context;
use snapkit_core::error::Reason;
use snapkit_core::key::Key;
use snapkit_core::sink::{Put, PutMode, Sink};
use snapkit_sinks::LocalSink;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

async fn put(cx: &Context, sink: &LocalSink, name: &str) -> snapkit_core::Result<Put> {
    sink.put(cx, &key(name), Bytes::from_static(b"content"), PutMode::Create).await
}

async fn listed(cx: &Context, sink: &LocalSink) -> Vec<String> {
    let mut names: Vec<_> =
        sink.list(cx, None).map_ok(|o| o.key.to_string()).try_collect().await.unwrap();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn directories_and_files_are_private() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("a/b/repo");
    let sink = LocalSink::create(&cx, &root).await.unwrap();
    put(&cx, &sink, "packs/aa/one").await.unwrap();
    for dir in ["a", "a/b", "a/b/repo", "a/b/repo/packs", "a/b/repo/packs/aa"] {
        assert_eq!(mode(&scratch.path().join(dir)), 0o700, "{dir}");
    }
    assert_eq!(mode(&root.join("packs/aa/one")), 0o600);
    assert_eq!(sink.info().location, root.display().to_string());

    fs::set_permissions(&root, fs::Permissions::from_mode(0o750)).unwrap();
    LocalSink::create(&cx, &root).await.unwrap();
    assert_eq!(mode(&root), 0o750, "a directory that exists is left as it is");
}

#[tokio::test]
async fn what_is_no_object_is_not_listed() {
    let cx = Context::system();
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::open(&cx, dir.path()).await.unwrap();
    put(&cx, &sink, "packs/aa/one").await.unwrap();
    for name in [".hidden", "packs/.tmp-x", "with space", "lost+found", "packs/ä", "packs/aa/no~"]
    {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    fs::create_dir_all(dir.path().join(".git/objects")).unwrap();
    fs::write(dir.path().join(".git/objects/valid-name"), "x").unwrap();
    fs::create_dir_all(dir.path().join("empty/dirs")).unwrap();
    assert_eq!(listed(&cx, &sink).await, ["packs/aa/one"]);
}

#[tokio::test]
async fn stale_temporary_files_are_removed_and_others_are_not() {
    let cx = Context::system();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("packs/aa")).unwrap();
    fs::create_dir_all(dir.path().join(".other")).unwrap();
    let hex = "0123456789abcdef0123456789abcdef";
    let now = UNIX_EPOCH + Duration::from_nanos(cx.now().0.try_into().unwrap());
    let make = |name: &str, hours: u64| {
        let path = dir.path().join(name);
        File::create(&path).unwrap().set_modified(now - Duration::from_secs(hours * 3600)).unwrap();
        path
    };
    let stale = [make(&format!(".tmp-{hex}"), 25), make(&format!("packs/aa/.tmp-{hex}"), 1000)];
    let kept = [
        make(&format!("packs/.tmp-{hex}"), 23),
        make("packs/aa/.tmp-short", 1000),
        make(&format!("packs/aa/.tmp-{hex}x"), 1000),
        make(&format!("packs/aa/x.tmp-{hex}"), 1000),
        make(&format!(".other/.tmp-{hex}"), 1000),
        make("packs/aa/object", 1000),
    ];
    symlink("nowhere", dir.path().join("packs/bb")).unwrap();
    LocalSink::open(&cx, dir.path()).await.unwrap();
    assert!(stale.iter().all(|p| !p.exists()));
    assert!(kept.iter().all(|p| p.exists()));
}

#[tokio::test]
async fn deleting_leaves_no_empty_directories() {
    let cx = Context::system();
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::open(&cx, dir.path()).await.unwrap();
    put(&cx, &sink, "sessions/a/1").await.unwrap();
    put(&cx, &sink, "sessions/b/1").await.unwrap();
    sink.delete(&cx, &key("sessions/a/1")).await.unwrap();
    assert!(!dir.path().join("sessions/a").exists() && dir.path().join("sessions/b").exists());
    sink.delete(&cx, &key("sessions/b/1")).await.unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    put(&cx, &sink, "sessions/a/1").await.unwrap();
}

#[tokio::test]
async fn symbolic_links_are_not_followed_and_not_passed_over() {
    let cx = Context::system();
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(outside.path().join("aa")).unwrap();
    fs::write(outside.path().join("aa/one"), "secret").unwrap();
    let sink = LocalSink::open(&cx, dir.path()).await.unwrap();
    symlink(outside.path(), dir.path().join("packs")).unwrap();
    symlink(outside.path().join("aa/one"), dir.path().join("config")).unwrap();

    for name in ["packs/aa/one", "config"] {
        let e = sink.get(&cx, &key(name), None).await.unwrap_err();
        assert_eq!(e.reason(), Reason::Unsupported, "{e:?}");
        assert!(e.to_string().contains("symbolic link"), "{e}");
        let e = put(&cx, &sink, name).await.unwrap_err();
        assert_eq!(e.reason(), Reason::Unsupported, "{e:?}");
    }
    let e = put(&cx, &sink, "packs/aa/two").await.unwrap_err();
    assert_eq!(e.reason(), Reason::Unsupported, "{e:?}");
    let e = sink.delete(&cx, &key("packs/aa/one")).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Unsupported, "{e:?}");
    for prefix in [None, Some(key("packs"))] {
        let e = sink.list(&cx, prefix.as_ref()).try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(e.reason(), Reason::Unsupported, "a listing does not hide what it cannot see");
    }
    assert_eq!(
        fs::read_dir(outside.path().join("aa")).unwrap().count(),
        1,
        "nothing outside changed"
    );

    // The directory itself may be reached through a link, and stays the same one.
    let link = dir.path().join("link");
    fs::create_dir(dir.path().join("real")).unwrap();
    symlink("real", &link).unwrap();
    let sink = LocalSink::open(&cx, &link).await.unwrap();
    fs::remove_file(&link).unwrap();
    symlink(outside.path(), &link).unwrap();
    put(&cx, &sink, "config").await.unwrap();
    assert!(dir.path().join("real/config").exists());
}

#[tokio::test]
async fn what_is_in_the_way_is_said() {
    let cx = Context::system();
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::open(&cx, dir.path()).await.unwrap();
    put(&cx, &sink, "a").await.unwrap();
    put(&cx, &sink, "d/x").await.unwrap();
    for mode in [PutMode::Create, PutMode::Overwrite] {
        for name in ["a/b", "a/b/c", "d"] {
            let e = sink.put(&cx, &key(name), Bytes::from_static(b"x"), mode).await.unwrap_err();
            assert_eq!(e.reason(), Reason::AlreadyExists, "{name}: {e:?}");
            assert!(e.to_string().contains(&dir.path().display().to_string()), "{e}");
        }
    }
    assert_eq!(listed(&cx, &sink).await, ["a", "d/x"]);
    assert_eq!(fs::read_dir(dir.path().join("d")).unwrap().count(), 1, "no temporary file is left");
    assert_eq!(sink.get(&cx, &key("d/x"), None).await.unwrap(), &b"content"[..]);

    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let e = sink.get(&cx, &key("pipe"), None).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Corrupt, "and a pipe is not waited for: {e:?}");
    symlink("x", dir.path().join("d/link")).unwrap();
    let e = sink.get(&cx, &key("d/link"), None).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Corrupt, "no link is followed: {e:?}");
    assert_eq!(
        listed(&cx, &sink).await,
        ["a", "d/link", "d/x", "pipe"],
        "and nobody takes it for something that is not there"
    );
}

#[tokio::test]
async fn places_that_cannot_be_opened_say_why() {
    let cx = Context::system();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let open = async |path: &Path| LocalSink::open(&cx, path).await.map(drop).unwrap_err();
    let create = async |path: &Path| LocalSink::create(&cx, path).await.map(drop).unwrap_err();

    let missing = dir.path().join("not/there/at-all");
    let e = open(&missing).await;
    assert_eq!(e.reason(), Reason::NoRepository);
    let first = format!("missing={}", dir.path().join("not").display());
    assert!(e.to_string().contains(&first) && e.to_string().contains("at-all"), "{e}");
    let e = open(&dir.path().join("not")).await;
    assert!(!e.to_string().contains("missing="), "{e}");

    for path in [&file, &file.join("below")] {
        for e in [open(path).await, create(path).await] {
            assert_eq!(e.reason(), Reason::InvalidArgument, "{e:?}");
            assert!(e.to_string().contains("not a directory"), "{e}");
        }
    }
}

#[tokio::test]
async fn a_directory_that_is_gone_is_not_an_empty_one() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("repo");
    let sink = LocalSink::create(&cx, &root).await.unwrap();
    fs::remove_dir(&root).unwrap();
    let gone = |e: snapkit_core::Error| {
        assert_eq!(e.reason(), Reason::Unavailable, "{e:?}");
        assert!(e.to_string().contains("gone"), "{e}");
    };
    gone(sink.get(&cx, &key("packs/aa/one"), None).await.unwrap_err());
    gone(sink.get(&cx, &key("config"), None).await.unwrap_err());
    gone(sink.list(&cx, None).try_collect::<Vec<_>>().await.unwrap_err());
    gone(put(&cx, &sink, "packs/aa/one").await.unwrap_err());
}

#[tokio::test]
async fn objects_above_the_limit_are_not_read_whole() {
    let cx = Context::system();
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::open(&cx, dir.path()).await.unwrap();
    File::create(dir.path().join("huge")).unwrap().set_len(1 << 40).unwrap();
    let get = async |range| sink.get(&cx, &key("huge"), range).await;
    assert_eq!(get(None).await.unwrap_err().reason(), Reason::Corrupt, "no object is so large");
    assert_eq!(get(Some(0..1 << 39)).await.unwrap_err().reason(), Reason::LimitExceeded);
    assert_eq!(get(Some((1 << 39)..(1 << 39) + 5)).await.unwrap(), &[0; 5][..]);
    let backwards = std::ops::Range { start: 5, end: 4 };
    assert_eq!(get(Some(backwards)).await.unwrap_err().reason(), Reason::InvalidArgument);
}

#[tokio::test]
async fn urls_lead_to_sinks() {
    let cx = Context::system();
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/with%20space", dir.path().display());
    let e = snapkit_sinks::open(&cx, &url).await.unwrap_err();
    assert_eq!(e.reason(), Reason::NoRepository);
    let sink = snapkit_sinks::create(&cx, &url).await.unwrap();
    sink.put(&cx, &key("config"), Bytes::new(), PutMode::Create).await.unwrap();
    assert!(dir.path().join("with space/config").exists());
    let again =
        snapkit_sinks::open(&cx, &dir.path().join("with space").display().to_string()).await;
    again.unwrap().get(&cx, &key("config"), None).await.unwrap();
    let memory = snapkit_sinks::open(&cx, "memory://").await.unwrap();
    assert_eq!(memory.info().location, "memory://");
}

#[tokio::test]
async fn a_cancelled_context_stops_everything() {
    let cx = Context::system();
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::open(&cx, dir.path()).await.unwrap();
    put(&cx, &sink, "one").await.unwrap();
    let stopped = cx.child();
    stopped.cancel();
    let cancelled = |e: snapkit_core::Error| assert_eq!(e.reason(), Reason::Cancelled, "{e:?}");
    cancelled(put(&stopped, &sink, "two").await.unwrap_err());
    cancelled(sink.get(&stopped, &key("one"), None).await.unwrap_err());
    cancelled(sink.delete(&stopped, &key("one")).await.unwrap_err());
    cancelled(sink.list(&stopped, None).try_collect::<Vec<_>>().await.unwrap_err());
    cancelled(LocalSink::open(&stopped, dir.path()).await.map(drop).unwrap_err());
    assert_eq!(listed(&cx, &sink).await, ["one"]);
}
