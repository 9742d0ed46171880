//! The suite that every source passes, on trees with everything odd in them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use snapkit_core::context::Context;
use snapkit_core::error::Result;
use snapkit_core::source::{Source, Target};
use snapkit_testkit::source::{self, Harness, State};
use support::{below, bytes, files, odd_tree, set_mode, write};
use tempfile::TempDir;

/// The root that is captured has this name, and nothing above it does.
const ROOT: &str = "captured-root";

struct Trees;

fn root(system: &TempDir) -> PathBuf {
    system.path().join(ROOT)
}

/// Every path below `dir`, with what is there.
fn look(dir: &Path, see: &mut impl FnMut(&Path, &fs::Metadata)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        see(&path, &meta);
        if meta.is_dir() {
            look(&path, see);
        }
    }
}

/// What this process has open below `dir`.
fn open_below(dir: &Path) -> Vec<String> {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    links
        .filter_map(|link| fs::read_link(link.path()).ok())
        .filter(|open| open.starts_with(dir))
        .map(|open| format!("{open:?} is open"))
        .collect()
}

#[async_trait]
impl Harness for Trees {
    type System = TempDir;

    async fn populated(&self, _: &Context) -> Result<TempDir> {
        let system = tempfile::tempdir().unwrap();
        odd_tree(&root(&system));
        Ok(system)
    }

    async fn empty(&self, _: &Context) -> Result<TempDir> {
        Ok(tempfile::tempdir().unwrap())
    }

    async fn mutate(&self, _: &Context, system: &TempDir) -> Result<()> {
        let root = root(system);
        write(&root.join("plain.txt"), "something else");
        write(&root.join("large"), bytes(44, 5_300_001));
        write(&root.join("new"), "new");
        fs::remove_file(root.join("many/007")).unwrap();
        set_mode(&root.join("small"), 0o600);
        Ok(())
    }

    async fn state(&self, _: &Context, system: &TempDir) -> Result<State> {
        let mut state = State::new();
        look(system.path(), &mut |path, meta| {
            let mut names = path.components().skip_while(|c| c.as_os_str() != ROOT);
            if names.next().is_none() {
                return;
            }
            let kind = meta.file_type();
            let content = if kind.is_symlink() {
                format!("{:?}", fs::read_link(path).unwrap())
            } else if kind.is_file() {
                let digest = blake3::hash(&fs::read(path).unwrap());
                format!("{} {digest} {}", meta.size(), meta.nlink())
            } else if kind.is_char_device() || kind.is_block_device() {
                meta.rdev().to_string()
            } else {
                String::new()
            };
            let (mode, owner, group) = (meta.mode(), meta.uid(), meta.gid());
            let (seconds, nanos) = (meta.mtime(), meta.mtime_nsec());
            let text = format!("{mode:o} {owner}:{group} {seconds}.{nanos:09} {content}");
            state.insert(format!("{:?}", names.collect::<PathBuf>()), text);
        });
        Ok(state)
    }

    async fn held(&self, cx: &Context, system: &TempDir) -> Result<Vec<String>> {
        let mut held = Vec::new();
        look(system.path(), &mut |path, _| {
            if path.file_name().unwrap().to_string_lossy().contains("snapkit") {
                held.push(format!("{path:?}"));
            }
        });
        // A body that is dropped stops its walk; what the walk was just looking at is closed soon.
        for _ in 0..100 {
            if open_below(system.path()).is_empty() {
                break;
            }
            cx.sleep(Duration::from_millis(10)).await?;
        }
        held.extend(open_below(system.path()));
        Ok(held)
    }

    fn source(&self, system: &TempDir) -> Arc<dyn Source> {
        Arc::new(files(&[&root(system)]))
    }

    fn restorer(&self, origin: &TempDir, target: &TempDir) -> (Arc<dyn Source>, Target) {
        // What a target holds stands where a restore would put it.
        if root(target).exists() {
            let place = below(target.path(), &root(origin));
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::rename(root(target), place).unwrap();
        }
        (self.source(origin), Target::Directory(target.path().to_owned()))
    }

    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }
}

#[tokio::test]
async fn the_source_passes_the_suite() {
    source::all(&Context::system(), &Trees).await;
}
