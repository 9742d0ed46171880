//! What the tests of this crate share.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![allow(clippy::cast_possible_truncation, reason = "sizes of tests are small")]

use std::collections::VecDeque;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape, SourceName};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Result};
use snapkit_core::facts::{Facts, RestoreVerdict, Standing};
use snapkit_core::manifest::SourceRecord;
use snapkit_core::source::{RestoreReport, RestoreRequest, Source, Target};
use snapkit_core::tree::{
    Content, EntryPath, LoadedFile, OpenedFile, SMALL_FILE, TreeDigest, TreeEntry, TreeItem,
    TreeReader,
};
use snapkit_source_files::{Files, FilesConfig};

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn name() -> SourceName {
    SourceName::new("files").unwrap()
}

pub(crate) fn config(paths: &[&Path]) -> FilesConfig {
    FilesConfig::new(paths.iter().map(|p| p.to_path_buf()).collect())
}

pub(crate) fn files(paths: &[&Path]) -> Files {
    Files::new(name(), config(paths)).unwrap()
}

pub(crate) fn meta() -> ArtifactMeta {
    let name = ArtifactName::new("tree").unwrap();
    ArtifactMeta::new(name, Shape::Tree, "application/vnd.snapkit.tree", Chunking::Content)
}

/// The tree of a capture.
pub(crate) async fn live(cx: &Context, source: &dyn Source) -> Result<Box<dyn TreeReader>> {
    let mut capture = source.capture(cx, None).await?;
    capture.freeze(cx).await?;
    capture.thaw(cx).await?;
    let meta = capture.next(cx).await?.unwrap();
    assert_eq!((meta.name.as_str(), meta.shape), ("tree", Shape::Tree));
    let body = capture.open(cx, &meta.name).await?;
    assert!(capture.next(cx).await?.is_none());
    capture.finish(cx).await?;
    body.into_tree()
}

/// Walk to the end; the order is checked on the way.
pub(crate) async fn walk(cx: &Context, tree: &mut dyn TreeReader) -> Vec<TreeItem> {
    let mut items: Vec<TreeItem> = Vec::new();
    while let Some(batch) = tree.next_batch(cx).await.unwrap() {
        assert!(!batch.is_empty());
        items.extend(batch);
    }
    for pair in items.windows(2) {
        assert!(pair[0].path() < pair[1].path(), "{:?} {:?}", pair[0].path(), pair[1].path());
    }
    items
}

pub(crate) async fn items(cx: &Context, source: &Files) -> Vec<TreeItem> {
    walk(cx, &mut *live(cx, source).await.unwrap()).await
}

/// A captured tree as a snapshot would hold it: every content read, problems skipped.
#[derive(Debug, Default, Clone)]
pub(crate) struct Stored {
    pub(crate) entries: Vec<(TreeEntry, Option<Bytes>)>,
    pub(crate) problems: Vec<(EntryPath, String)>,
}

impl Stored {
    pub(crate) async fn capture(cx: &Context, source: &Files) -> Self {
        let mut tree = live(cx, source).await.unwrap();
        let mut stored = Self::default();
        for item in walk(cx, &mut *tree).await {
            match item {
                TreeItem::Entry(entry, Content::None) => stored.entries.push((entry, None)),
                TreeItem::Entry(_, Content::Inline(_) | Content::Verified) => {
                    panic!("captures read nothing early")
                }
                TreeItem::Entry(entry, Content::Deferred) => match read(cx, &*tree, &entry).await {
                    Ok((entry, bytes)) => stored.entries.push((entry, Some(bytes))),
                    Err(e) => stored.problems.push((entry.path, e.reason().code().to_owned())),
                },
                TreeItem::Problem(path, e) => {
                    stored.problems.push((path, e.reason().code().to_owned()));
                }
            }
        }
        stored
    }

    pub(crate) fn facts(&self) -> Facts {
        let mut digest = TreeDigest::default();
        self.entries.iter().for_each(|(entry, _)| digest.add(entry));
        let mut facts = Facts::new();
        digest.write("tree", Standing::Pinned, &mut facts);
        facts
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.entries.iter().map(|(e, _)| e.path.display()).collect()
    }

    pub(crate) fn get(&self, path: &Path) -> &(TreeEntry, Option<Bytes>) {
        let path = entry_path(path);
        self.entries.iter().find(|(e, _)| e.path == path).unwrap()
    }

    pub(crate) fn tree(&self) -> Box<dyn TreeReader> {
        let item = |(entry, bytes): &(TreeEntry, Option<Bytes>)| {
            let content = match bytes {
                None => Content::None,
                Some(b) if b.len() < 1000 => Content::Inline(b.clone()),
                Some(_) => Content::Deferred,
            };
            TreeItem::Entry(entry.clone(), content)
        };
        let mut tree = Scripted::new(self.entries.iter().map(item).collect());
        tree.contents =
            self.entries.iter().filter_map(|(e, b)| Some((e.clone(), b.clone()?))).collect();
        Box::new(tree)
    }
}

pub(crate) async fn read(
    cx: &Context,
    tree: &dyn TreeReader,
    entry: &TreeEntry,
) -> Result<(TreeEntry, Bytes)> {
    if entry.kind.content_len() <= SMALL_FILE {
        let loaded = tree.load(cx, std::slice::from_ref(entry)).await.pop().unwrap()?;
        return Ok((loaded.entry, loaded.bytes));
    }
    let mut opened = tree.open(cx, entry).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = opened.body.next().await {
        let piece = piece?;
        assert!(piece.len() <= snapkit_core::artifact::MAX_PIECE);
        bytes.extend_from_slice(&piece);
    }
    Ok((opened.entry, bytes.into()))
}

/// A tree that says what it is told to.
pub(crate) struct Scripted {
    batches: VecDeque<Vec<TreeItem>>,
    pub(crate) contents: Vec<(TreeEntry, Bytes)>,
    /// After which byte of a deferred content an error comes.
    pub(crate) damage: Option<usize>,
    /// Whether the first content is given for every file.
    pub(crate) answers_anything: bool,
}

impl Scripted {
    pub(crate) fn new(items: Vec<TreeItem>) -> Self {
        let mut batches = VecDeque::new();
        let mut batch = Vec::new();
        for item in items {
            batch.push(item);
            if batch.len() == 7 {
                batches.push_back(std::mem::take(&mut batch));
            }
        }
        if !batch.is_empty() {
            batches.push_back(batch);
        }
        Self { batches, contents: Vec::new(), damage: None, answers_anything: false }
    }

    fn content_of(&self, entry: &TreeEntry) -> &(TreeEntry, Bytes) {
        let fits = |(e, _): &&(TreeEntry, Bytes)| self.answers_anything || e.path == entry.path;
        self.contents.iter().find(fits).unwrap()
    }
}

#[async_trait]
impl TreeReader for Scripted {
    async fn next_batch(&mut self, _: &Context) -> Result<Option<Vec<TreeItem>>> {
        Ok(self.batches.pop_front())
    }

    async fn open(&self, _: &Context, entry: &TreeEntry) -> Result<OpenedFile> {
        let (entry, bytes) = self.content_of(entry);
        let mut pieces: Vec<Result<Bytes>> = Vec::new();
        let whole = self.damage.unwrap_or(bytes.len());
        for piece in bytes[..whole].chunks(100_000) {
            pieces.push(Ok(Bytes::copy_from_slice(piece)));
        }
        if self.damage.is_some() {
            pieces.push(Err(Error::corrupt("a chunk is damaged")));
        }
        Ok(OpenedFile { entry: entry.clone(), body: Box::pin(futures_util::stream::iter(pieces)) })
    }

    async fn load(&self, _: &Context, entries: &[TreeEntry]) -> Vec<Result<LoadedFile>> {
        let load = |entry: &TreeEntry| {
            if self.damage.is_some() {
                return Err(Error::corrupt("a chunk is damaged"));
            }
            let (entry, bytes) = self.content_of(entry);
            Ok(LoadedFile { entry: entry.clone(), bytes: bytes.clone() })
        };
        entries.iter().map(load).collect()
    }
}

pub(crate) fn entry_path(path: &Path) -> EntryPath {
    EntryPath::new(path.strip_prefix("/").unwrap().as_os_str().as_bytes()).unwrap()
}

pub(crate) fn record(source: &Files, facts: Facts) -> SourceRecord {
    SourceRecord { facts, ..SourceRecord::new(source.info()) }
}

pub(crate) fn request(target: &Path, source: &Files) -> RestoreRequest {
    RestoreRequest::new(Target::Directory(target.to_owned()), record(source, Facts::new()))
}

pub(crate) async fn restore(
    cx: &Context,
    source: &Files,
    request: &RestoreRequest,
    tree: Box<dyn TreeReader>,
) -> Result<RestoreReport> {
    let mut restore = source.restore(cx, request).await?;
    match restore.put(cx, &meta(), Body::Tree(tree)).await {
        Ok(()) => restore.finish(cx).await,
        Err(e) => {
            restore.abort(cx).await?;
            Err(e)
        }
    }
}

/// The report of a restore that went well and was read back as it should be.
pub(crate) fn assert_match(facts: &Facts, report: &RestoreReport) {
    let comparison = facts.compare(&report.facts);
    assert_eq!(comparison.verdict, RestoreVerdict::Match, "{comparison:?} {report:?}");
    assert!(report.differences.is_empty(), "{report:?}");
}

/// What rsync, which looks at everything but the change time, finds to differ.
pub(crate) fn rsync_differences(a: &Path, b: &Path) -> String {
    let with_slash = |p: &Path| {
        let mut p = p.as_os_str().to_owned();
        p.push("/");
        p
    };
    let flags = ["-aHXn", "--checksum", "--delete", "--modify-window=-1", "--itemize-changes"];
    let mut command = Command::new("rsync");
    command.args(flags);
    if has_acl_support() {
        command.arg("-A");
    }
    let out = command.arg(with_slash(a)).arg(with_slash(b)).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn has_acl_support() -> bool {
    let out = Command::new("rsync").arg("--version").output().unwrap();
    String::from_utf8_lossy(&out.stdout).contains(" ACLs")
}

pub(crate) fn run(program: &str, args: &[&std::ffi::OsStr]) {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}

pub(crate) fn sh(script: &str) -> std::process::Output {
    Command::new("sh").args(["-ec", script]).output().unwrap()
}

pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub(crate) fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
}

/// A tree with everything odd that this user can make.
pub(crate) fn odd_tree(root: &Path) {
    write(&root.join("plain.txt"), "hello");
    write(&root.join("empty"), "");
    write(&root.join("small"), bytes(1, 100_000));
    write(&root.join("exactly-small"), bytes(2, SMALL_FILE as usize));
    write(&root.join("just-large"), bytes(3, SMALL_FILE as usize + 1));
    write(&root.join("large"), bytes(4, 5_300_001));
    for i in 0..40 {
        write(&root.join(format!("many/{i:03}")), bytes(i, i as usize * 37));
    }
    // Names.
    let odd = std::ffi::OsStr::from_bytes(b"caf\xe9 \xff\n'\"$`\\");
    write(&root.join(odd), "odd");
    write(&root.join("x".repeat(255)), "long");
    for name in ["a.txt", "a/b", "a-", "a b", "-rf", ".hidden"] {
        write(&root.join("order").join(name), name);
    }
    let mut deep = root.join("deep");
    for i in 0..120 {
        deep.push(format!("d{i}"));
    }
    write(&deep.join("bottom"), "deep down");
    // Links.
    symlink("plain.txt", root.join("link")).unwrap();
    symlink("/nowhere/\u{e4}", root.join("dangling")).unwrap();
    symlink("..", root.join("order/up")).unwrap();
    set_time(&root.join("link"), 1_000_000_000, 123_456_789);
    fs::create_dir(root.join("z")).unwrap();
    fs::hard_link(root.join("small"), root.join("z/hard-1")).unwrap();
    fs::hard_link(root.join("small"), root.join("order/hard-2")).unwrap();
    fs::hard_link(root.join("large"), root.join("z/hard-large")).unwrap();
    fs::hard_link(root.join("empty"), root.join("z/hard-empty")).unwrap();
    // Special files.
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    let make = |name: &str, kind, device| {
        rustix::fs::mknodat(rustix::fs::CWD, root.join(name), kind, mode, device).unwrap();
    };
    make("pipe", rustix::fs::FileType::Fifo, 0);
    make("socket", rustix::fs::FileType::Socket, 0);
    if is_root() {
        make("null", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        make("block", rustix::fs::FileType::BlockDevice, rustix::fs::makedev(7, 200));
    }
    // Holes.
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(&bytes(5, 70_000), 1 << 20).unwrap();
    sparse.write_all_at(b"end", (64 << 20) - 3).unwrap();
    fs::File::create(root.join("all-hole")).unwrap().set_len(1 << 20).unwrap();
    let small = fs::File::create(root.join("sparse-small")).unwrap();
    small.set_len(200_000).unwrap();
    small.write_all_at(b"middle", 100_000).unwrap();
    // Modes, and what only the owner may do.
    for (name, mode) in [("m000", 0), ("m444", 0o444), ("m755", 0o755), ("m1777", 0o1777)] {
        write(&root.join("modes").join(name), name);
        set_mode(&root.join("modes").join(name), mode);
    }
    if is_root() {
        write(&root.join("setuid"), "root");
        set_mode(&root.join("setuid"), 0o4755);
        write(&root.join("setgid"), "root");
        set_mode(&root.join("setgid"), 0o2755);
        for (name, owner) in [("plain.txt", 12_345), ("link", 777), ("pipe", 5)] {
            let path = root.join(name);
            std::os::unix::fs::lchown(path, Some(owner), Some(owner + 1)).unwrap();
        }
    } else {
        fs::remove_file(root.join("modes/m000")).unwrap();
    }
    // Extended attributes and ACLs.
    let plain = root.join("plain.txt");
    let attr = |path: &Path, name: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(path, name, value, flags)
    };
    attr(&root.join("small"), "user.note", b"\0binary\xff").unwrap();
    attr(&root.join("small"), "user.empty", b"").unwrap();
    attr(&root.join("many"), "user.dir", &bytes(6, 1000)).unwrap();
    if is_root() {
        attr(&root.join("link"), "trusted.link", b"on a link").unwrap();
        // cap_net_bind_service=ep, in the kernel's form.
        let cap = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        attr(&root.join("just-large"), "security.capability", &cap).unwrap();
    }
    let os = std::ffi::OsStr::new;
    run("setfacl", &[os("-m"), os("u:4242:rw-,g:99:r--"), plain.as_os_str()]);
    fs::create_dir(root.join("acl-dir")).unwrap();
    write(&root.join("acl-dir/before"), "made before the default ACL");
    run("setfacl", &[os("-d"), os("-m"), os("u:4242:rwx"), root.join("acl-dir").as_os_str()]);
    write(&root.join("acl-dir/after"), "made after it");
    // Times, on what nothing more is put into.
    set_time(&plain, 1, 1);
    set_time(&root.join("small"), -5, 999_999_999);
    set_time(&root.join("order"), 1_700_000_000, 5);
    for (name, mode) in [("modes", 0o555), ("z", 0o3751), ("deep/d0", 0o500)] {
        set_mode(&root.join(name), mode);
    }
    set_time(&root.join("deep"), 1_234_567_890, 987_654_321);
    set_time(root, 1_600_000_000, 1);
}

/// Where a path is found below a directory target.
pub(crate) fn below(target: &Path, path: &Path) -> PathBuf {
    target.join(path.strip_prefix("/").unwrap())
}

/// The path in a directory whose name ends so.
pub(crate) fn find_in(dir: &Path, end: &str) -> PathBuf {
    let mut names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    names.find(|p| p.as_os_str().as_bytes().ends_with(end.as_bytes())).unwrap()
}
