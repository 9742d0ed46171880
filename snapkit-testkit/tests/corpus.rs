//! The corpus is what it says it is.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use snapkit_testkit::corpus::{MEAN_TEXT, Spec, make_removable, odd, tree};

fn digests(dir: &Path) -> BTreeMap<PathBuf, (blake3::Hash, i64, i64)> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                open.push(path);
            } else {
                let hash = blake3::hash(&fs::read(&path).unwrap());
                let name = path.strip_prefix(dir).unwrap().to_owned();
                found.insert(name, (hash, meta.mtime(), meta.mtime_nsec()));
            }
        }
    }
    found
}

#[test]
fn a_tree_follows_from_its_seed() {
    let make = |seed| {
        let dir = tempfile::tempdir().unwrap();
        let made = tree(dir.path(), &Spec::small(seed)).unwrap();
        let found = digests(dir.path());
        assert_eq!(made.files, found.len() as u64);
        (made, found)
    };
    let (first, again, other) = (make(1), make(1), make(2));
    assert_eq!(first, again);
    let equal = first.1.iter().filter(|(name, d)| other.1.get(*name) == Some(d)).count();
    assert!(equal * 20 < first.1.len(), "{equal} files are the same under another seed");
}

#[test]
fn texts_have_the_lengths_that_were_asked_for_and_logs_too() {
    let dir = tempfile::tempdir().unwrap();
    let spec =
        Spec { texts: 3000, random: 1, random_len: 100_001, logs: 1, log_len: 50_000, seed: 3 };
    let made = tree(dir.path(), &spec).unwrap();
    let mean = (made.bytes - 150_001) / 3000;
    assert!((MEAN_TEXT * 8 / 10..MEAN_TEXT * 12 / 10).contains(&mean), "{mean}");
    assert_eq!(fs::metadata(dir.path().join("models/shard-0000.bin")).unwrap().len(), 100_001);
    let log = fs::read_to_string(dir.path().join("logs/app-0.log")).unwrap();
    assert!(log.len() >= 50_000 && log.ends_with('\n'));
}

#[test]
fn odd_entries_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let made = odd(dir.path()).unwrap();
    let stat = |name: &str| fs::symlink_metadata(dir.path().join(name)).unwrap();
    assert!(stat("pipe").file_type().is_fifo());
    assert!(stat("socket").file_type().is_socket());
    assert_eq!(stat("linked").nlink(), 3);
    assert_eq!(stat("linked").ino(), stat("links/again").ino());
    assert_eq!(
        (stat("time-before-1970").mtime(), stat("time-before-1970").mtime_nsec()),
        (-1, 999_999_999)
    );
    assert_eq!(stat("links/dangling").mtime_nsec(), 987_654_321);
    assert_eq!(stat("setuid").mode() & 0o7777, 0o4755);
    assert!(stat("sparse-huge").len() == 1 << 36 && stat("sparse-huge").blocks() < 1000);
    assert!(stat("zeros").blocks() * 512 >= 300_000, "written zeros are no hole");
    assert!(made.made.len() > 45, "{made:?}");
    if rustix::process::geteuid().is_root() {
        assert!(stat("char-device").file_type().is_char_device(), "{made:?}");
    }
    make_removable(dir.path()).unwrap();
    dir.close().unwrap();
}
