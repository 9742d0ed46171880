//! What a local sink says of each thing that a disk can refuse: every sentence once, so that each has been
//! read.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fmt::Write as _;
use std::io;
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use insta::assert_snapshot;
use rustix::io::Errno;
use snapkit_core::Context;
use snapkit_core::error::Error;
use snapkit_core::key::Key;
use snapkit_core::sink::{MAX_OBJECT, PutMode, Sink};
use snapkit_sinks::{Disk, DiskEntries, DiskEntry, DiskStat, LocalSink, RealDisk};

/// A disk on which one step fails.
#[derive(Debug)]
struct Failing {
    disk: RealDisk,
    step: &'static str,
    errno: Errno,
    /// How often it goes well before.
    spared: AtomicU32,
}

impl Failing {
    fn new(dir: &Path, step: &'static str, errno: Errno, spared: u32) -> Self {
        Self { disk: RealDisk::open(dir).unwrap(), step, errno, spared: AtomicU32::new(spared) }
    }

    fn check(&self, step: &str) -> io::Result<()> {
        let spare = |n: u32| n.checked_sub(1);
        let fails = step == self.step
            && self.spared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spare).is_err();
        if fails { Err(self.errno.into()) } else { Ok(()) }
    }
}

impl Disk for Failing {
    type File = <RealDisk as Disk>::File;

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.check("create_dir")?;
        self.disk.create_dir(path)
    }

    fn create_file(&self, path: &Path, data: &[u8]) -> io::Result<Self::File> {
        self.check("create_file")?;
        self.disk.create_file(path, data)
    }

    fn fsync_file(&self, file: &Self::File) -> io::Result<()> {
        self.check("fsync_file")?;
        self.disk.fsync_file(file)
    }

    fn fsync_dir(&self, path: &Path) -> io::Result<()> {
        self.check("fsync_dir")?;
        self.disk.fsync_dir(path)
    }

    fn publish(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        self.check("publish")?;
        self.disk.publish(from, to, replace)
    }

    fn open(&self, path: &Path) -> io::Result<(Self::File, DiskStat)> {
        self.check("open")?;
        self.disk.open(path)
    }

    fn read(&self, file: &Self::File, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.check("read")?;
        if self.step == "read short" {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.disk.read(file, range)
    }

    fn stat(&self, path: &Path) -> io::Result<DiskStat> {
        self.check("stat")?;
        self.disk.stat(path)
    }

    fn list(&self, path: &Path) -> io::Result<DiskEntries> {
        self.check("list")?;
        let failure = |e| -> io::Result<DiskEntry> { Err(e) };
        match self.check("list entry") {
            Ok(()) => self.disk.list(path),
            Err(e) => Ok(Box::new(std::iter::once(failure(e)))),
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.check("remove_file")?;
        self.disk.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.check("remove_dir")?;
        self.disk.remove_dir(path)
    }
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// All that a person would see of an error, and how a program would end with it.
fn told(error: &Error, dir: &Path) -> String {
    let exit = error.reason().row().exit;
    format!("{} ({}, {exit})", error.chain(), error.reason())
        .replace(dir.to_str().unwrap(), "[DIR]")
}

/// Names that a put makes up.
fn without_random(text: &str) -> String {
    let mut out = String::new();
    for (n, part) in text.split(".tmp-").enumerate() {
        if n > 0 {
            out.push_str(".tmp-[RANDOM]");
        }
        out.push_str(if n > 0 { &part[32..] } else { part });
    }
    out
}

async fn put<D: Disk>(sink: &LocalSink<D>, cx: &Context) -> Result<(), Error> {
    sink.put(cx, &key("packs/aa/one"), Bytes::from_static(b"x"), PutMode::Create).await.map(drop)
}

#[tokio::test]
async fn of_disks_that_fail() {
    let cx = Context::system();
    let mut all = String::new();
    for (step, errno) in [
        ("create_dir", Errno::IO),
        ("create_file", Errno::NOSPC),
        ("create_file", Errno::NOENT),
        ("create_file", Errno::ROFS),
        ("create_file", Errno::DQUOT),
        ("fsync_file", Errno::IO),
        ("fsync_dir", Errno::IO),
        ("publish", Errno::OPNOTSUPP),
        ("publish", Errno::ISDIR),
        ("stat", Errno::ACCESS),
        ("stat", Errno::STALE),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let disk = Failing::new(dir.path(), step, errno, 0);
        let sink = LocalSink::with_disk(&cx, disk, dir.path()).await.unwrap();
        let said = told(&put(&sink, &cx).await.unwrap_err(), dir.path());
        writeln!(all, "put, {step}: {}", without_random(&said)).unwrap();
    }
    for (step, errno) in [
        ("open", Errno::IO),
        ("open", Errno::MFILE),
        ("open", Errno::STALE),
        ("read", Errno::IO),
        ("read short", Errno::IO),
        ("list", Errno::IO),
        ("list entry", Errno::IO),
        ("stat", Errno::IO),
        ("remove_file", Errno::PERM),
        ("fsync_dir", Errno::IO),
    ] {
        let dir = tempfile::tempdir().unwrap();
        put(&LocalSink::open(&cx, dir.path()).await.unwrap(), &cx).await.unwrap();
        // Looking for what writers left behind, when it is opened, must not fail.
        let sink = LocalSink::with_disk(&cx, RealDisk::open(dir.path()).unwrap(), dir.path()).await;
        drop(sink.unwrap());
        let disk = Failing::new(dir.path(), step, errno, u32::from(step.starts_with("list")) * 3);
        let sink = LocalSink::with_disk(&cx, disk, dir.path()).await.unwrap();
        let one = key("packs/aa/one");
        let failed = [
            ("get", sink.get(&cx, &one, None).await.err()),
            ("list", sink.list(&cx, None).try_collect::<Vec<_>>().await.err()),
            ("delete", sink.delete(&cx, &one).await.err()),
        ];
        for (what, error) in failed {
            if let Some(error) = error {
                writeln!(all, "{what}, {step}: {}", told(&error, dir.path())).unwrap();
            }
        }
    }
    assert_snapshot!(all, @"
    put, create_dir: cannot create the directory (path=[DIR]/packs): Input/output error (os error 5) (io, 1)
    put, create_file: cannot write a new file (path=[DIR]/packs/aa/.tmp-[RANDOM]): No space left on device (os error 28) (no-space, 1)
    put, create_file: cannot store the object: its directory keeps vanishing (path=[DIR]/packs/aa) (unavailable, 75)
    put, create_file: cannot write a new file (path=[DIR]/packs/aa/.tmp-[RANDOM]): Read-only file system (os error 30) (permission-denied, 1)
    put, create_file: cannot write a new file (path=[DIR]/packs/aa/.tmp-[RANDOM]): Disk quota exceeded (os error 122) (no-space, 1)
    put, fsync_file: cannot flush the new file (path=[DIR]/packs/aa/.tmp-[RANDOM]): Input/output error (os error 5) (io, 1)
    put, fsync_dir: cannot flush the directory (path=[DIR]/packs/aa): Input/output error (os error 5) (io, 1)
    put, publish: cannot give the new file its name (path=[DIR]/packs/aa/one): Operation not supported (os error 95) (unsupported, 1)
    put, publish: cannot store the object: its directory keeps vanishing (path=[DIR]/packs/aa) (unavailable, 75)
    put, stat: cannot examine the object (path=[DIR]/packs/aa/one): Permission denied (os error 13) (permission-denied, 1)
    put, stat: the directory of the repository is gone (path=[DIR]): Stale file handle (os error 116) (unavailable, 75)
    get, open: cannot open the object (path=[DIR]/packs/aa/one): Input/output error (os error 5) (io, 1)
    get, open: cannot open the object (path=[DIR]/packs/aa/one): Too many open files (os error 24) (unavailable, 75)
    get, open: the directory of the repository is gone (path=[DIR]): Stale file handle (os error 116) (unavailable, 75)
    get, read: cannot read the object (path=[DIR]/packs/aa/one): Input/output error (os error 5) (io, 1)
    get, read short: the object was cut short while it was read (path=[DIR]/packs/aa/one, range=0..1) (corrupt, 4)
    list, list: cannot list the directory (path=[DIR]/): Input/output error (os error 5) (io, 1)
    list, list entry: cannot list the directory (path=[DIR]/): Input/output error (os error 5) (io, 1)
    list, stat: cannot examine the object (path=[DIR]/packs/aa/one): Input/output error (os error 5) (io, 1)
    delete, remove_file: cannot delete the object (path=[DIR]/packs/aa/one): Operation not permitted (os error 1) (permission-denied, 1)
    delete, fsync_dir: cannot flush the directory (path=[DIR]/packs/aa): Input/output error (os error 5) (io, 1)
    ");
}

#[tokio::test]
async fn of_what_stands_where_objects_stand() {
    let cx = Context::system();
    let dir = tempfile::tempdir().unwrap();
    let sink = LocalSink::open(&cx, dir.path()).await.unwrap();
    put(&sink, &cx).await.unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("packs/aa/dir")).unwrap();
    symlink("one", at("packs/aa/link")).unwrap();
    std::os::unix::net::UnixListener::bind(at("packs/aa/socket")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("packs/aa/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    std::fs::File::create(at("packs/aa/large")).unwrap().set_len(MAX_OBJECT + 1).unwrap();
    let mut all = String::new();
    for name in ["none", "dir", "link", "socket", "pipe", "large", "one/below"] {
        let key = key(&format!("packs/aa/{name}"));
        let content = Bytes::from_static(b"x");
        let failed = [
            ("get", sink.get(&cx, &key, None).await.err()),
            ("create", sink.put(&cx, &key, content.clone(), PutMode::Create).await.err()),
            ("overwrite", sink.put(&cx, &key, content, PutMode::Overwrite).await.err()),
            ("delete", sink.delete(&cx, &key).await.err()),
        ];
        for (what, error) in failed {
            if let Some(error) = error {
                writeln!(all, "{what} {name}: {}", told(&error, dir.path())).unwrap();
            }
        }
        // What a put made must not be what is met next.
        drop(std::fs::remove_file(at("packs/aa/none")));
    }
    std::fs::File::create(at("packs/aa/large")).unwrap().set_len(MAX_OBJECT + 2).unwrap();
    for (name, from, to) in [("one", 3, 2), ("one", 0, 2), ("large", 0, MAX_OBJECT + 1)] {
        let (key, range) = (key(&format!("packs/aa/{name}")), from..to);
        let e = sink.get(&cx, &key, Some(range.clone())).await.unwrap_err();
        writeln!(all, "get {name} {range:?}: {}", told(&e, dir.path())).unwrap();
    }
    let length = usize::try_from(MAX_OBJECT).unwrap() + 1;
    let e = sink.put(&cx, &key("x"), vec![0; length].into(), PutMode::Create).await.unwrap_err();
    writeln!(all, "put too much: {}", told(&e, dir.path())).unwrap();
    assert_snapshot!(all, @"
    get none: there is no such object (path=[DIR]/packs/aa/none) (not-found, 1)
    get dir: there is no such object, but a directory (path=[DIR]/packs/aa/dir) (not-found, 1)
    create dir: something that is no object is in the way (path=[DIR]/packs/aa/dir) (already-exists, 11)
    overwrite dir: something that is no object is in the way (path=[DIR]/packs/aa/dir) (already-exists, 11)
    get link: a symbolic link stands in its place, and none is followed here (path=[DIR]/packs/aa/link) (corrupt, 4)
    create link: a symbolic link is in the way, and none is followed inside a repository; move the files in its place, or mount them there (path=[DIR]/packs/aa/link) (unsupported, 1)
    get socket: cannot open the object (path=[DIR]/packs/aa/socket): No such device or address (os error 6) (io, 1)
    create socket: something that is no object is in the way (path=[DIR]/packs/aa/socket) (already-exists, 11)
    get pipe: something that is no object stands in its place (path=[DIR]/packs/aa/pipe) (corrupt, 4)
    create pipe: something that is no object is in the way (path=[DIR]/packs/aa/pipe) (already-exists, 11)
    get large: the object is larger than any that is written (path=[DIR]/packs/aa/large, range=0..67108865) (corrupt, 4)
    get one/below: there is no such object (path=[DIR]/packs/aa/one/below) (not-found, 1)
    create one/below: something that is no object is in the way (path=[DIR]/packs/aa/one) (already-exists, 11)
    overwrite one/below: something that is no object is in the way (path=[DIR]/packs/aa/one) (already-exists, 11)
    get one 3..2: the range ends before it begins (path=[DIR]/packs/aa/one, range=3..2) (invalid-argument, 2)
    get one 0..2: the object has only 1 bytes (path=[DIR]/packs/aa/one, range=0..2) (corrupt, 4)
    get large 0..67108865: at most 67108864 bytes are read at once (path=[DIR]/packs/aa/large, range=0..67108865) (limit-exceeded, 1)
    put too much: an object has at most 67108864 bytes, not 67108865 (key=x) (limit-exceeded, 1)
    ");
}

#[tokio::test]
async fn of_places_that_are_none() {
    let cx = Context::system();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let mut all = String::new();
    for path in ["none", "none/below", "file", "file/below", ""] {
        let place = if path.is_empty() { "".into() } else { dir.path().join(path) };
        let opened = LocalSink::open(&cx, &place).await.map(drop);
        let created =
            (path != "none/below" && path != "none").then(|| LocalSink::create(&cx, place));
        if let Err(e) = opened {
            writeln!(all, "open {path}: {}", told(&e, dir.path())).unwrap();
        }
        if let Some(created) = created
            && let Err(e) = created.await
        {
            writeln!(all, "create {path}: {}", told(&e, dir.path())).unwrap();
        }
    }
    assert_snapshot!(all, @"
    open none: there is no such directory (path=[DIR]/none): No such file or directory (os error 2) (no-repository, 10)
    open none/below: there is no such directory (missing=[DIR]/none, path=[DIR]/none/below): No such file or directory (os error 2) (no-repository, 10)
    open file: this is not a directory (path=[DIR]/file): Not a directory (os error 20) (invalid-argument, 2)
    create file: this is not a directory (path=[DIR]/file): Not a directory (os error 20) (invalid-argument, 2)
    open file/below: this is not a directory (path=[DIR]/file/below): Not a directory (os error 20) (invalid-argument, 2)
    create file/below: this is not a directory (path=[DIR]/file/below): Not a directory (os error 20) (invalid-argument, 2)
    open : not a path (path=): cannot make an empty path absolute (invalid-argument, 2)
    create : not a path (path=): cannot make an empty path absolute (invalid-argument, 2)
    ");
}
