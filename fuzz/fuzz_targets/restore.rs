//! Restores of hostile trees: whatever entries come in whatever order, nothing outside of the target changes.
#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use arbitrary::Arbitrary;
use async_trait::async_trait;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape, SourceName};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Result};
use snapkit_core::manifest::SourceRecord;
use snapkit_core::source::{RestoreRequest, Source as _, Target};
use snapkit_core::tree::{
    Content, EntryKind, EntryPath, Extent, LoadedFile, OpenedFile, TreeEntry, TreeItem, TreeReader,
};
use snapkit_fuzz::{CX, block_on};
use snapkit_source_files::{Files, FilesConfig};

#[derive(Arbitrary, Debug)]
struct Input {
    entries: Vec<Entry>,
    sorted: bool,
    overwrite: bool,
    trusted: bool,
    partial: bool,
    file_as_root: bool,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    path: Vec<Part>,
    kind: Kind,
    mode: u16,
    ancestor: bool,
    xattr: Option<(u8, u8)>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Part {
    Root,
    A,
    B,
    C,
    Outside,
    Odd(u8),
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Directory,
    File(u8),
    Sparse(u8, u8, u8),
    Symlink(Way),
    HardLink(Vec<Part>),
    Fifo,
    Socket,
    Device(u8),
}

#[derive(Arbitrary, Debug)]
enum Way {
    Out,
    Up(u8),
    Absolute,
    Down(Part),
}

fn part(part: Part) -> Vec<u8> {
    match part {
        Part::Root => b"r".to_vec(),
        Part::A => b"a".to_vec(),
        Part::B => b"b".to_vec(),
        Part::C => b"c".to_vec(),
        Part::Outside => b"outside".to_vec(),
        Part::Odd(byte) => vec![byte.max(1)],
    }
}

fn path(parts: &[Part]) -> Option<EntryPath> {
    let joined = parts.iter().take(6).map(|p| part(*p)).collect::<Vec<_>>().join(&b'/');
    EntryPath::new(joined).ok()
}

/// A tree as a repository would give it.
struct Given(Option<Vec<TreeItem>>);

#[async_trait]
impl TreeReader for Given {
    async fn next_batch(&mut self, _: &Context) -> Result<Option<Vec<TreeItem>>> {
        Ok(self.0.take().filter(|items| !items.is_empty()))
    }

    async fn open(&self, _: &Context, _: &TreeEntry) -> Result<OpenedFile> {
        Err(Error::internal("everything is inline"))
    }

    async fn load(&self, _: &Context, entries: &[TreeEntry]) -> Vec<Result<LoadedFile>> {
        entries.iter().map(|_| Err(Error::internal("everything is inline"))).collect()
    }
}

fn items(input: &Input, outside: &Path) -> Vec<TreeItem> {
    let mut items = Vec::new();
    for entry in input.entries.iter().take(24) {
        let Some(path) = path(&entry.path) else { continue };
        let mut content = Content::None;
        let kind = match &entry.kind {
            Kind::Directory => EntryKind::Directory,
            Kind::File(len) => {
                content = Content::Inline(Bytes::from(vec![7; usize::from(*len)]));
                EntryKind::File { size: u64::from(*len), extents: None }
            }
            Kind::Sparse(size, offset, len) => {
                content = Content::Inline(Bytes::from(vec![7; usize::from(*len)]));
                let extents = vec![Extent { offset: u64::from(*offset), len: u64::from(*len) }];
                EntryKind::File { size: u64::from(*size), extents: Some(extents) }
            }
            Kind::Symlink(way) => EntryKind::Symlink {
                target: match way {
                    Way::Out => b"../outside".to_vec(),
                    Way::Up(n) => b"../".repeat(usize::from(n % 8) + 1),
                    Way::Absolute => outside.as_os_str().as_encoded_bytes().to_vec(),
                    Way::Down(to) => part(*to),
                },
            },
            Kind::HardLink(to) => match crate::path(to) {
                Some(target) => EntryKind::HardLink { target },
                None => continue,
            },
            Kind::Fifo => EntryKind::Fifo,
            Kind::Socket => EntryKind::Socket,
            Kind::Device(minor) => EntryKind::CharDevice { major: 1, minor: u32::from(*minor) },
        };
        let mut made = TreeEntry::new(path, kind);
        made.mode = u32::from(entry.mode);
        made.ancestor = entry.ancestor;
        if let Some((name, value)) = entry.xattr {
            made.xattrs.push((vec![b'u', b's', b'e', b'r', b'.', name.max(1)], vec![value]));
        }
        items.push(TreeItem::Entry(made, content));
    }
    if input.sorted {
        items.sort_by(|a, b| a.path().cmp(b.path()));
        items.dedup_by(|a, b| a.path() == b.path());
    }
    items
}

/// All that can be told of what is in a directory, without following links.
fn look(dir: &Path, seen: &mut BTreeMap<String, (u32, u64, i64, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let about = (meta.mode(), meta.nlink(), meta.mtime_nsec(), content);
        seen.insert(path.display().to_string(), about);
        if meta.is_dir() {
            look(&path, seen);
        }
    }
}

fuzz_target!(|input: Input| {
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let (outside, target) = (scratch.path().join("outside"), scratch.path().join("target"));
    fs::create_dir_all(outside.join("a")).unwrap();
    fs::write(outside.join("a/b"), "untouched").unwrap();
    fs::create_dir(&target).unwrap();
    let mut before = BTreeMap::new();
    look(&outside, &mut before);

    let root = if input.file_as_root { "/r/a" } else { "/r" };
    let source =
        Files::new(SourceName::new("x").unwrap(), FilesConfig::new(vec![root.into()])).unwrap();
    let mut request =
        RestoreRequest::new(Target::Directory(target.clone()), SourceRecord::new(source.info()));
    request.overwrite = input.overwrite;
    request.trusted = input.trusted;
    request.partial = input.partial;
    if input.overwrite {
        // What was there and would be replaced.
        fs::create_dir_all(target.join("r")).unwrap();
        std::os::unix::fs::symlink(&outside, target.join("r/b")).unwrap();
        let recovery = scratch.path().join("recovery");
        fs::create_dir(&recovery).unwrap();
        request.recovery = Some(recovery);
    }
    let meta = ArtifactMeta::new(
        ArtifactName::new("tree").unwrap(),
        Shape::Tree,
        "application/x",
        Chunking::Whole,
    );
    let tree = Given(Some(items(&input, &outside)));
    block_on(async {
        let Ok(mut restore) = source.restore(&CX, &request).await else { return };
        match restore.put(&CX, &meta, Body::Tree(Box::new(tree))).await {
            Ok(()) => drop(restore.finish(&CX).await),
            Err(_) => drop(restore.abort(&CX).await),
        }
    });
    let mut after = BTreeMap::new();
    look(&outside, &mut after);
    assert_eq!(before, after, "something outside of the target changed");
});
