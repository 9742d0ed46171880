//! What a capture walks, reads and leaves out.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(clippy::cast_possible_truncation, reason = "sizes of tests are small")]

mod support;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use insta::assert_snapshot;
use snapkit_core::artifact::ArtifactName;
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::registry::Registry;
use snapkit_core::source::Source as _;
use snapkit_core::tree::{Content, EntryKind, SMALL_FILE, TreeEntry, TreeItem};
use snapkit_source_files::{DatabaseImage, DatabaseReader, Files, FilesConfig, register};
use support::*;

/// The paths below a directory that a configuration captures, without ancestors.
async fn captured(config: FilesConfig, below: &Path) -> Vec<String> {
    let cx = Context::system();
    let source = Files::new(name(), config).unwrap();
    let prefix = format!("{}/", entry_path(below).display());
    let keep = |item: TreeItem| match item {
        TreeItem::Entry(e, _) if !e.ancestor => {
            let shown = e.path.display();
            Some(shown.strip_prefix(&prefix).map_or(shown.clone(), str::to_owned))
        }
        TreeItem::Entry(..) => None,
        TreeItem::Problem(p, e) => panic!("{p}: {e:?}"),
    };
    items(&cx, &source).await.into_iter().filter_map(keep).collect()
}

fn some_tree(root: &Path) {
    for file in [
        "a.log",
        "a.txt",
        "keep.log",
        "cache/x",
        "src/a.o",
        "src/cache/y",
        "src/deep/b.o",
        "src/deep/keep.o",
        "src/main.rs",
    ] {
        write(&root.join(file), file);
    }
}

#[tokio::test]
async fn exclude_and_include() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    some_tree(&root);
    let with = |exclude: &[&str], include: &[&str]| {
        let mut c = config(&[&root]);
        c.exclude = exclude.iter().map(|s| (*s).to_owned()).collect();
        c.include = include.iter().map(|s| (*s).to_owned()).collect();
        captured(c, scratch.path())
    };
    let found = with(&["*.log", "!keep.log", "cache/", "*.o"], &[]).await;
    assert_eq!(found, ["r", "r/a.txt", "r/keep.log", "r/src", "r/src/deep", "r/src/main.rs"]);
    let found = with(&["src/deep", "/cache", "a.*"], &[]).await;
    assert_eq!(
        found,
        ["r", "r/keep.log", "r/src", "r/src/cache", "r/src/cache/y", "r/src/main.rs"]
    );
    let absolute = root.join("src").display().to_string();
    let found = with(&[&absolute, "cache"], &[]).await;
    assert_eq!(found, ["r", "r/a.log", "r/a.txt", "r/keep.log"]);
    // Only what leads to something asked for is captured.
    let found = with(&["b.o"], &["*.o", "cache"]).await;
    assert_eq!(
        found,
        [
            "r",
            "r/cache",
            "r/cache/x",
            "r/src",
            "r/src/a.o",
            "r/src/cache",
            "r/src/cache/y",
            "r/src/deep",
            "r/src/deep/keep.o"
        ]
    );
    assert_eq!(with(&[], &["nothing"]).await, ["r"]);
}

#[tokio::test]
async fn ignore_files() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    some_tree(&root);
    write(&root.join(".snapkitignore"), "# objects\n*.o\n/cache\n\n!keep.log\n*.log\n");
    write(&root.join("src/deep/.snapkitignore"), "!keep.o\n");
    write(&root.join("src/cache/.snapkitignore"), "*\n");
    let found = captured(config(&[&root]), scratch.path()).await;
    assert_eq!(
        found,
        [
            "r",
            "r/.snapkitignore",
            "r/a.txt",
            "r/src",
            "r/src/cache",
            "r/src/deep",
            "r/src/deep/.snapkitignore",
            "r/src/deep/keep.o",
            "r/src/main.rs"
        ]
    );
    let mut without = config(&[&root]);
    without.ignore_file = false;
    assert_eq!(captured(without, scratch.path()).await.len(), 1 + 3 + 9 + 4);
    // One that is too large is a problem, and hides nothing.
    write(&root.join("src/deep/.snapkitignore"), vec![b'*'; (1 << 20) + 1]);
    let found = items(&Context::system(), &files(&[&root])).await;
    let problems: Vec<_> =
        found.iter().filter(|i| matches!(i, TreeItem::Problem(..))).map(TreeItem::path).collect();
    assert_eq!(problems, [&entry_path(&root.join("src/deep/.snapkitignore"))]);
}

#[tokio::test]
async fn roots_in_one_another_count_once() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    some_tree(&root);
    let all = captured(config(&[&root]), scratch.path()).await;
    let twice = config(&[&root.join("src"), &root, &root.join("a.txt"), &root, &root.join("src/")]);
    assert_eq!(captured(twice, scratch.path()).await, all);
    // What is named is captured, although a pattern leaves out what it lies in.
    let mut named = config(&[&root, &root.join("src/deep/keep.o")]);
    named.exclude = vec!["src".to_owned(), "*.log".to_owned()];
    assert_eq!(
        captured(named, scratch.path()).await,
        ["r", "r/a.txt", "r/cache", "r/cache/x", "r/src", "r/src/deep", "r/src/deep/keep.o"]
    );
    let file = config(&[&root.join("a.txt")]);
    assert_eq!(captured(file, scratch.path()).await, ["r/a.txt"]);
}

#[tokio::test]
async fn what_is_missing_or_behind_a_link_is_found_before_anything_is_read() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir(scratch.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", scratch.path().join("link")).unwrap();
    let reason = async |path: &str| {
        let source = files(&[&scratch.path().join(path)]);
        source.capture(&cx, None).await.err().map(|e| e.reason())
    };
    assert_eq!(reason("real").await, None);
    assert_eq!(reason("link").await, Some(Reason::InvalidConfig));
    assert_eq!(reason("gone").await, Some(Reason::SourceMissing));
    assert_eq!(reason("gone/deeper").await, Some(Reason::SourceMissing));
    assert_eq!(reason("link/x").await, Some(Reason::InvalidConfig));
    let source = files(&[&scratch.path().join("gone")]);
    assert_eq!(source.facts(&cx).await.unwrap_err().reason(), Reason::SourceMissing);
}

#[test]
fn the_registry_builds_it_from_its_own_settings() {
    use std::os::unix::ffi::OsStringExt as _;
    let odd = PathBuf::from(std::ffi::OsString::from_vec(b"/srv/caf\xe9".to_vec()));
    let source = Files::new(name(), FilesConfig::new(vec![odd, "/etc".into()])).unwrap();
    let mut registry = Registry::new();
    register(&mut registry, None);
    let settings = source.info().settings.clone();
    let text = serde_json::to_string(&settings).unwrap();
    let again = serde_json::from_str(&text).unwrap();
    let built = registry.build("files", name(), again).unwrap();
    assert_eq!(built.info().settings, settings);
    let wrong = serde_json::json!({"paths": ["/x"], "exclud": []});
    let e = registry.build("files", name(), wrong).unwrap_err();
    assert!(e.to_string().contains("did you mean `exclude`"), "{e}");
    let e = registry.build("files", name(), serde_json::json!({"paths": []})).unwrap_err();
    assert_eq!(e.reason(), Reason::InvalidConfig);
}

#[tokio::test]
async fn the_walk_opens_no_file() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    some_tree(&root);
    // The kernel would tell: a FIFO with nobody at the other end would block an open.
    let source = files(&[&root]);
    let mut tree = live(&cx, &source).await.unwrap();
    let found = walk(&cx, &mut *tree).await;
    assert_eq!(source.files_opened(), 0);
    let entries: Vec<TreeEntry> = found
        .into_iter()
        .filter_map(|i| match i {
            TreeItem::Entry(e, Content::Deferred) => Some(e),
            _ => None,
        })
        .collect();
    assert_eq!(entries.len(), 9);
    let loaded = tree.load(&cx, &entries).await;
    assert!(loaded.iter().zip(&entries).all(|(l, e)| l.as_ref().unwrap().entry == *e));
    assert_eq!(source.files_opened(), 9);
    // Unchanged is told by what the walk alone says.
    let mut again = live(&cx, &source).await.unwrap();
    let unchanged = walk(&cx, &mut *again).await;
    let same = unchanged.iter().filter(|i| match i {
        TreeItem::Entry(e, Content::Deferred) => entries.contains(e),
        _ => false,
    });
    assert_eq!(same.count(), 9);
    assert_eq!(source.files_opened(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_while_it_is_read_is_told() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    write(&root.join("large"), bytes(1, 20 << 20));
    write(&root.join("small"), bytes(2, 300_000));
    let source = files(&[&root]);
    let mut tree = live(&cx, &source).await.unwrap();
    let found = walk(&cx, &mut *tree).await;
    let entry = |name: &str| {
        let path = entry_path(&root.join(name));
        found
            .iter()
            .find_map(|i| match i {
                TreeItem::Entry(e, _) if e.path == path => Some(e.clone()),
                _ => None,
            })
            .unwrap()
    };

    // Changed after it was opened: the last item of the stream says so.
    let mut opened = tree.open(&cx, &entry("large")).await.unwrap();
    opened.body.next().await.unwrap().unwrap();
    let file = fs::OpenOptions::new().write(true).open(root.join("large")).unwrap();
    file.write_all_at(b"changed", 19 << 20).unwrap();
    let rest: Vec<Result<Bytes>> = opened.body.collect().await;
    assert_eq!(rest.last().unwrap().as_ref().unwrap_err().reason(), Reason::SourceChanged);

    // Shortened: the same.
    let mut opened = tree.open(&cx, &entry("large")).await.unwrap();
    opened.body.next().await.unwrap().unwrap();
    file.set_len(5 << 20).unwrap();
    let rest: Vec<Result<Bytes>> = opened.body.collect().await;
    assert_eq!(rest.last().unwrap().as_ref().unwrap_err().reason(), Reason::SourceChanged);

    // Changed before it was opened: its entry is that of what was read.
    write(&root.join("small"), b"other");
    let (fresh, content) = read(&cx, &*tree, &entry("small")).await.unwrap();
    assert_eq!((&content[..], fresh.kind.content_len()), (&b"other"[..], 5));
    assert_ne!(fresh.ctime, entry("small").ctime);

    // Grown beyond what is small, gone, or something else now.
    write(&root.join("small"), vec![7; SMALL_FILE as usize + 1]);
    let reason = async || read(&cx, &*tree, &entry("small")).await.unwrap_err().reason();
    assert_eq!(reason().await, Reason::LimitExceeded);
    fs::remove_file(root.join("small")).unwrap();
    assert_eq!(reason().await, Reason::NotFound);
    std::os::unix::fs::symlink("large", root.join("small")).unwrap();
    assert_eq!(reason().await, Reason::SourceChanged);
    fs::remove_file(root.join("small")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, root.join("small"), kind, mode, 0).unwrap();
    assert_eq!(reason().await, Reason::SourceChanged);
}

/// A writer changes the same small file all the time: what is read is never a mixture.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_is_read_whole_or_not_at_all() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    let path = root.join("f");
    write(&path, vec![0; 400_000]);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, path) = (Arc::clone(&stop), path.clone());
        move || {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            let mut byte = 0u8;
            while !stop.load(Ordering::Relaxed) {
                byte = byte.wrapping_add(1);
                for part in 0..4 {
                    file.write_all_at(&[byte; 100_000], part * 100_000).unwrap();
                }
                if byte.is_multiple_of(16) {
                    std::thread::sleep(std::time::Duration::from_millis(30));
                }
            }
        }
    });
    let source = files(&[&path]);
    let mut tree = live(&cx, &source).await.unwrap();
    let found = walk(&cx, &mut *tree).await;
    let Some(TreeItem::Entry(entry, _)) = found.last() else { panic!() };
    let (mut whole, mut refused) = (0, 0);
    for _ in 0..60 {
        match read(&cx, &*tree, entry).await {
            Ok((_, bytes)) => {
                assert!(bytes.iter().all(|b| *b == bytes[0]), "a mixture was called right");
                whole += 1;
            }
            Err(e) => {
                assert_eq!(e.reason(), Reason::SourceChanged);
                refused += 1;
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    println!("{whole} whole, {refused} refused");
}

#[tokio::test]
async fn a_replaced_file_is_read_as_it_is_unless_it_has_other_names() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    write(&root.join("alone"), "old");
    write(&root.join("linked"), "old");
    fs::hard_link(root.join("linked"), root.join("second")).unwrap();
    let source = files(&[&root]);
    let mut tree = live(&cx, &source).await.unwrap();
    let found = walk(&cx, &mut *tree).await;
    for file in ["alone", "linked"] {
        write(&root.join("new"), "new");
        fs::rename(root.join("new"), root.join(file)).unwrap();
    }
    let mut answers = Vec::new();
    for item in &found {
        if let TreeItem::Entry(entry, Content::Deferred) = item {
            answers.push(read(&cx, &*tree, entry).await.map(|(_, b)| b).map_err(|e| e.reason()));
        }
    }
    assert_eq!(answers, [Ok(Bytes::from_static(b"new")), Err(Reason::SourceChanged)]);
    // Nor may it vanish as if it were nobody's.
    for file in ["alone", "linked"] {
        fs::remove_file(root.join(file)).unwrap();
    }
    let mut answers = Vec::new();
    for item in &found {
        if let TreeItem::Entry(entry, Content::Deferred) = item {
            let e = read(&cx, &*tree, entry).await.unwrap_err();
            let text = e.chain().replace(scratch.path().to_str().unwrap(), "[DIR]");
            answers.push(format!("{text} ({})", e.reason()));
        }
    }
    assert_snapshot!(answers.join("\n"), @"
    the file vanished (path=[DIR]/r/alone) (not-found)
    the file changed while it was read; run it again when it is quiet (path=[DIR]/r/linked) (source-changed)
    ");
}

#[tokio::test]
async fn a_directory_swapped_for_a_link_leads_nowhere() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    write(&root.join("d/f"), "mine");
    write(&scratch.path().join("secret/f"), "not mine");
    let source = files(&[&root]);
    let mut tree = live(&cx, &source).await.unwrap();
    let found = walk(&cx, &mut *tree).await;
    fs::rename(root.join("d"), scratch.path().join("moved")).unwrap();
    std::os::unix::fs::symlink(scratch.path().join("secret"), root.join("d")).unwrap();
    let Some(TreeItem::Entry(entry, _)) = found.last() else { panic!() };
    // Another tree, which has no directory open from before.
    let other = live(&cx, &source).await.unwrap();
    let e = read(&cx, &*other, entry).await.unwrap_err();
    assert_eq!(e.reason(), Reason::SourceChanged);
}

#[tokio::test]
async fn deep_and_wide_trees_need_few_descriptors() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    let mut deep = root.clone();
    for _ in 0..300 {
        write(&deep.join("f"), "x");
        write(&deep.join("y/g"), "x");
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    for i in 0..5000 {
        fs::write(root.join(format!("w{i:04}")), "").unwrap();
    }
    let source = files(&[&root]);
    let mut tree = live(&cx, &source).await.unwrap();
    let mut count = 0;
    let mut most = 0;
    while let Some(batch) = tree.next_batch(&cx).await.unwrap() {
        assert!(batch.len() <= 1100);
        count += batch.iter().filter(|i| matches!(i, TreeItem::Entry(e, _) if !e.ancestor)).count();
        most = most.max(fs::read_dir("/proc/self/fd").unwrap().count());
    }
    assert_eq!(count, 1 + 300 * 4 + 5000);
    assert!(most < 400, "{most} descriptors for a depth of 300");
}

#[tokio::test]
async fn paths_that_do_not_fit_are_a_problem() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    fs::create_dir(&root).unwrap();
    write(&root.join("after"), "x");
    // Deeper than a path can name: made step by step.
    let mut dir = rustix::fs::openat(
        rustix::fs::CWD,
        &root,
        rustix::fs::OFlags::DIRECTORY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let name = "a".repeat(250);
    for _ in 0..20 {
        rustix::fs::mkdirat(&dir, &name, rustix::fs::Mode::RWXU).unwrap();
        dir = rustix::fs::openat(
            &dir,
            &name,
            rustix::fs::OFlags::DIRECTORY,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
    }
    let stored = Stored::capture(&cx, &files(&[&root])).await;
    let reasons: Vec<_> = stored.problems.iter().map(|(_, r)| r.as_str()).collect();
    assert_eq!(reasons, ["limit-exceeded"]);
    assert!(stored.paths().last().unwrap().ends_with("/after"));
    // The scratch directory's own removal copes with such depth.
    drop(dir);
}

#[tokio::test]
async fn other_file_systems_are_left_alone_if_asked() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    write(&root.join("a/f"), "x");
    let mount = root.join("b/mount");
    fs::create_dir_all(&mount).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "snapkit-test"])
        .arg(&mount)
        .status()
        .is_ok_and(|s| s.success());
    if !mounted {
        assert!(std::env::var_os("CI").is_none(), "mounting a tmpfs is not permitted");
        return;
    }
    let result = async {
        write(&mount.join("in/f"), "elsewhere");
        let mut one = config(&[&root]);
        one.one_file_system = true;
        let inside = captured(one.clone(), &root).await;
        let all = captured(config(&[&root]), &root).await;
        one.paths.push(mount.clone());
        let named = captured(one, &root).await;
        let _ = &cx;
        (inside, all, named)
    }
    .await;
    assert!(Command::new("umount").arg(&mount).status().unwrap().success());
    let (inside, all, named) = result;
    assert_eq!(inside[1..], ["a", "a/f", "b", "b/mount"]);
    assert_eq!(all[1..], ["a", "a/f", "b", "b/mount", "b/mount/in", "b/mount/in/f"]);
    assert_eq!(named, all);
}

/// Says of files that begin with `DB` that they are databases, and gives an image of its own.
#[derive(Debug, Default)]
struct Fake {
    asked: Mutex<Vec<PathBuf>>,
    extra: AtomicU64,
}

#[async_trait]
impl DatabaseReader for Fake {
    async fn read(&self, _: &Context, path: &Path) -> Result<Option<DatabaseImage>> {
        self.asked.lock().unwrap().push(path.to_owned());
        let content = fs::read(path).map_err(|e| Error::io("cannot read", e))?;
        if !content.starts_with(b"DB") {
            return Ok(None);
        }
        let image = [&b"image of "[..], &content].concat();
        Ok(Some(DatabaseImage {
            size: image.len() as u64 + self.extra.load(Ordering::Relaxed),
            body: Box::pin(futures_util::stream::iter([Ok(Bytes::from(image))])),
        }))
    }
}

#[tokio::test]
async fn databases_go_to_their_reader() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    for (file, content) in [
        ("app.db", "DB 1"),
        ("app.db-wal", "log"),
        ("app.db-shm", "locks"),
        ("app.db-journal", ""),
        ("app.db-other", "plain"),
        ("gone.db-wal", "an ordinary file"),
        ("not.sqlite", "text"),
        ("dir.db/x", "x"),
        ("dir.db-wal", "an ordinary file"),
        ("plain", "DB in name only"),
    ] {
        write(&root.join(file), content);
    }
    write(&root.join("big.db3"), [b"DB", &vec![1; 600_000][..]].concat());
    let fake = Arc::new(Fake::default());
    let source = files(&[&root]).with_database_reader(Arc::clone(&fake) as _);
    let stored = Stored::capture(&cx, &source).await;
    assert_eq!(stored.problems, []);
    let names: Vec<_> = stored
        .paths()
        .iter()
        .filter_map(|p| {
            p.strip_prefix(&format!("{}/", entry_path(&root).display())).map(str::to_owned)
        })
        .collect();
    assert_eq!(
        names,
        [
            "app.db",
            "app.db-other",
            "big.db3",
            "dir.db",
            "dir.db/x",
            "dir.db-wal",
            "gone.db-wal",
            "not.sqlite",
            "plain"
        ]
    );
    let (entry, content) = stored.get(&root.join("app.db"));
    assert_eq!(content.as_deref(), Some(&b"image of DB 1"[..]));
    assert_eq!(entry.kind, EntryKind::File { size: 13, extents: None });
    let (entry, content) = stored.get(&root.join("big.db3"));
    assert_eq!(entry.kind.content_len(), 600_011);
    assert_eq!(content.as_ref().unwrap().len(), 600_011);
    assert_eq!(stored.get(&root.join("not.sqlite")).1.as_deref(), Some(&b"text"[..]));
    let mut asked = fake.asked.lock().unwrap().clone();
    asked.sort();
    assert_eq!(asked, ["app.db", "big.db3", "not.sqlite"].map(|n| root.join(n)));

    // New content in the log alone makes the database a changed one.
    let ctime = async || {
        let found = items(&cx, &source).await;
        let path = entry_path(&root.join("app.db"));
        found
            .iter()
            .find_map(|i| match i {
                TreeItem::Entry(e, _) if e.path == path => Some(e.ctime),
                _ => None,
            })
            .unwrap()
    };
    let before = ctime().await;
    assert_eq!(before, stored.get(&root.join("app.db")).0.ctime);
    assert_eq!(before, ctime().await);
    write(&root.join("app.db-wal"), "log and more");
    assert_ne!(before, ctime().await);

    // A reader that gives another length than it says is not believed.
    fake.extra.store(1, Ordering::Relaxed);
    let stored = Stored::capture(&cx, &source).await;
    assert_eq!(stored.problems.len(), 2);
    // Parts of what is no database would be missing without a word.
    fake.extra.store(0, Ordering::Relaxed);
    write(&root.join("not.sqlite-wal"), "mine");
    let stored = Stored::capture(&cx, &source).await;
    assert_eq!(stored.problems, [(entry_path(&root.join("not.sqlite")), "unsupported".to_owned())]);
    fs::remove_file(root.join("not.sqlite-wal")).unwrap();
    // An empty database is not read, and its log would be missing without a word.
    write(&root.join("z.db"), "");
    let stored = Stored::capture(&cx, &source).await;
    assert_eq!((stored.problems.len(), stored.get(&root.join("z.db")).1.as_ref()), (0, None));
    write(&root.join("z.db-wal"), "a log");
    let found = items(&cx, &source).await;
    let told = found.iter().find_map(|i| match i {
        TreeItem::Problem(path, e) => Some((path.clone(), e.to_string())),
        TreeItem::Entry(..) => None,
    });
    let (path, why) = told.unwrap();
    assert_eq!(path, entry_path(&root.join("z.db")));
    assert!(why.contains("the database is empty, but `z.db-wal` with content"), "{why}");
    fs::remove_file(root.join("z.db")).unwrap();
    fs::remove_file(root.join("z.db-wal")).unwrap();
    write(&root.join("not.sqlite-wal"), "mine");
    // Without a reader they are problems, and nothing opens them.
    let source = files(&[&root]);
    let stored = Stored::capture(&cx, &source).await;
    assert_eq!(stored.problems.len(), 3);
    assert_eq!(source.files_opened(), 5);
    let mut none = config(&[&root]);
    none.databases = vec![];
    let source = Files::new(name(), none).unwrap();
    let stored = Stored::capture(&cx, &source).await;
    assert_eq!(
        (stored.problems.len(), stored.entries.iter().filter(|(e, _)| !e.ancestor).count()),
        (0, 14)
    );
}

/// The trap itself: closing any descriptor of a file drops the locks of the process on it.
#[tokio::test]
async fn the_locks_of_this_process_survive_a_capture() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    write(&root.join("app.db"), "DB");
    let held = fs::OpenOptions::new().read(true).write(true).open(root.join("app.db")).unwrap();
    let lock = || {
        rustix::fs::fcntl_lock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .unwrap();
    };
    let others_can_lock = || {
        let script = format!(
            "import fcntl,sys\nf=open({:?},'r+b')\ntry: fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB)\nexcept OSError: sys.exit(3)",
            root.join("app.db").display().to_string()
        );
        let status = Command::new("python3").args(["-c", &script]).status().unwrap();
        status.success()
    };
    lock();
    assert!(!others_can_lock());
    // An image made elsewhere, as a real reader's would be.
    #[derive(Debug)]
    struct Elsewhere;
    #[async_trait]
    impl DatabaseReader for Elsewhere {
        async fn read(&self, _: &Context, _: &Path) -> Result<Option<DatabaseImage>> {
            let body = futures_util::stream::iter([Ok(Bytes::from_static(b"DB"))]);
            Ok(Some(DatabaseImage { size: 2, body: Box::pin(body) }))
        }
    }
    let source = files(&[&root]).with_database_reader(Arc::new(Elsewhere));
    Stored::capture(&cx, &source).await;
    source.facts(&cx).await.unwrap();
    assert!(!others_can_lock());
    // The naive way loses the lock.
    let mut none = config(&[&root]);
    none.databases = vec![];
    Stored::capture(&cx, &Files::new(name(), none).unwrap()).await;
    assert!(others_can_lock());
}

/// A link alone would look like a complete capture of what it leads to.
#[tokio::test]
async fn a_root_that_is_a_link_is_refused() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    write(&scratch.path().join("releases/42/app"), "code");
    std::os::unix::fs::symlink("releases/42", scratch.path().join("current")).unwrap();
    std::os::unix::fs::symlink("releases/42/app", scratch.path().join("file")).unwrap();
    std::os::unix::fs::symlink("nowhere", scratch.path().join("broken")).unwrap();
    let other = scratch.path().join("releases");
    for (name, target) in
        [("current", "releases/42"), ("file", "releases/42/app"), ("broken", "nowhere")]
    {
        let source = files(&[&other, &scratch.path().join(name)]);
        let e = source.capture(&cx, None).await.err().unwrap();
        assert_eq!(e.reason(), Reason::InvalidConfig, "{name}");
        let said = format!("{name} is a symbolic link to {target}: name the directory");
        assert!(e.to_string().contains(&said), "{e}");
        assert_eq!(source.facts(&cx).await.unwrap_err().reason(), Reason::InvalidConfig);
    }
    // It becomes one between the examination and the walk.
    let root = scratch.path().join("later");
    fs::create_dir(&root).unwrap();
    let source = files(&[&other, &root]);
    let mut capture = source.capture(&cx, None).await.unwrap();
    fs::remove_dir(&root).unwrap();
    std::os::unix::fs::symlink("releases/42", &root).unwrap();
    capture.freeze(&cx).await.unwrap();
    capture.thaw(&cx).await.unwrap();
    let meta = capture.next(&cx).await.unwrap().unwrap();
    let mut tree = capture.open(&cx, &meta.name).await.unwrap().into_tree().unwrap();
    let found = walk(&cx, &mut *tree).await;
    let problems: Vec<_> = found.iter().filter(|i| matches!(i, TreeItem::Problem(..))).collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(*problems[0].path(), entry_path(&root));
    // A link below a root is an entry like others.
    let found = captured(config(&[scratch.path()]), scratch.path()).await;
    assert!(found.iter().any(|p| p.ends_with("current")), "{found:?}");
}

#[tokio::test]
async fn a_missing_root_is_a_problem_of_its_own() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    write(&at("etc/f"), "content");
    let (b, c, d) = (at("gone/deep/b"), at("gone/deep/c"), at("etc/d"));
    let source = files(&[&at("etc"), &b, &c, &d]);
    // Every time, not only when it goes missing.
    for _ in 0..2 {
        let stored = Stored::capture(&cx, &source).await;
        let missing = |p: &Path| (entry_path(p), "source-missing".to_owned());
        assert_eq!(stored.problems, [missing(&d), missing(&b), missing(&c)]);
        assert_eq!(stored.get(&at("etc/f")).1.as_deref(), Some(&b"content"[..]));
    }
    // If nothing of all that was asked for is there, something else is wrong.
    let e = files(&[&b, &c]).capture(&cx, None).await.err().unwrap();
    assert_eq!(e.reason(), Reason::SourceMissing);
    assert!(e.context().iter().any(|(_, v)| v.ends_with("gone/deep/b")), "{e:?}");
}

#[tokio::test]
async fn what_restores_left_behind_is_not_captured() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    for file in [
        ".snapkit-restore-0123456789abcdef/f",
        "d/.app.db.snapkit-0123456789abcdef",
        ".r.snapkit-old-0123456789abcdef/f",
        ".snapkit-restore-notes",
    ] {
        write(&root.join(file), "x");
    }
    let found = captured(config(&[&root]), scratch.path()).await;
    assert_eq!(
        found,
        [
            "r",
            "r/.r.snapkit-old-0123456789abcdef",
            "r/.r.snapkit-old-0123456789abcdef/f",
            "r/.snapkit-restore-notes",
            "r/d"
        ]
    );
    // Who asks for one gets it.
    let asked = root.join(".snapkit-restore-0123456789abcdef");
    assert_eq!(captured(config(&[&asked]), &asked).await.len(), 2);
}

/// Files of such file systems have no length and content all the same.
#[tokio::test]
async fn what_has_no_length_is_not_stored_as_empty() {
    let cx = Context::system();
    let version = Path::new("/proc/version");
    assert_eq!(fs::metadata(version).unwrap().len(), 0);
    assert!(!fs::read(version).unwrap().is_empty(), "what the length says is not what is there");
    let scratch = tempfile::tempdir().unwrap();
    write(&scratch.path().join("f"), "x");
    let told = |items: &[TreeItem]| -> Vec<(String, String)> {
        let problem = |i: &TreeItem| match i {
            TreeItem::Problem(path, e) => Some((path.display(), e.to_string())),
            TreeItem::Entry(..) => None,
        };
        items.iter().filter_map(problem).collect()
    };
    let roots = [scratch.path(), version, Path::new("/proc/sys/kernel")];
    let found = told(&items(&cx, &files(&roots)).await);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((found[0].0.as_str(), found[1].0.as_str()), ("proc/sys/kernel", "proc/version"));
    assert!(found.iter().all(|(_, e)| e.contains("does not say how long its files are")));
    // Where one is mounted below a root that is one problem, not one for each file.
    let at = scratch.path().join("jail/proc");
    fs::create_dir_all(&at).unwrap();
    let mounted = Command::new("mount").args(["-t", "proc", "proc"]).arg(&at).status();
    if !mounted.is_ok_and(|s| s.success()) {
        return;
    }
    let all = items(&cx, &files(&[scratch.path()])).await;
    let mut without = config(&[scratch.path()]);
    without.exclude = vec!["jail/proc".to_owned()];
    let excluded = items(&cx, &Files::new(name(), without.clone()).unwrap()).await;
    without.exclude.clear();
    without.one_file_system = true;
    let one = items(&cx, &Files::new(name(), without).unwrap()).await;
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
    let found = told(&all);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, entry_path(&at).display());
    assert_eq!((told(&excluded), told(&one)), (vec![], vec![]));
}

/// A source that nobody has given what reads databases says so, and what to do.
#[tokio::test]
async fn without_what_reads_databases() {
    let cx = Context::system();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("r");
    write(&root.join("app.db"), "SQLite format 3\0");
    let source = files(&[&root]);
    let mut said = String::new();
    for item in items(&cx, &source).await {
        if let TreeItem::Problem(path, e) = item {
            said += &format!("{}: {} ({})\n", path.display(), e.message(), e.reason());
        }
    }
    let capture = source.capture(&cx, None).await.unwrap();
    let e = capture.open(&cx, &ArtifactName::new("other").unwrap()).await.err().unwrap();
    said += &format!("{} ({})\n", e.chain(), e.reason());
    capture.abort(&cx).await.unwrap();
    let said = said.replace(scratch.path().to_str().unwrap().trim_start_matches('/'), "[DIR]");
    assert_snapshot!(said, @"
    [DIR]/r/app.db: by its name this is a database, and nothing that reads databases is at hand; exclude it, or change `databases` (unsupported)
    there is no artifact other (not-found)
    ");
}
