//! Blocks: what a data directory consists of
//! (<https://github.com/prometheus/prometheus/blob/main/tsdb/docs/format/README.md>).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use snapkit_core::artifact::ArtifactName;
use snapkit_core::context::Timestamp;
use snapkit_core::error::IoContext as _;
use snapkit_core::{Error, Reason, Result};

/// The directory of a block's samples.
const CHUNKS: &str = "chunks";

/// What a block is described by.
pub(crate) const META: &str = "meta.json";

/// The longest description, in bytes: a compacted block names the hundreds of those that it came from.
const MAX_META: u64 = 4 << 20;

/// The only version of descriptions that there is.
const META_VERSION: u64 = 1;

/// The most blocks of a snapshot.
const MAX_BLOCKS: usize = 10_000;

/// The most files of samples in one block; each has up to 512 MiB.
const MAX_SEGMENTS: usize = 10_000;

/// A file of a block: its block, and where it is in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockFile {
    /// The block's ULID, which is the name of its directory.
    pub(crate) block: String,
    pub(crate) kind: FileKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FileKind {
    Meta,
    Index,
    Tombstones,
    /// A file of samples, by its number.
    Chunks(u32),
}

impl BlockFile {
    /// What it is called in a snapshot: `ULID.index`, `ULID.chunks.000001`.
    pub(crate) fn artifact(&self) -> Result<ArtifactName> {
        ArtifactName::new(format!("{}.{}", self.block, self.kind.path().replace('/', ".")))
    }

    /// The file that is called so. `corrupt` if there can be none.
    pub(crate) fn parse(name: &ArtifactName) -> Result<Self> {
        let found = name.as_str().split_once('.').and_then(|(block, file)| {
            let kind = match file.strip_prefix("chunks.") {
                Some(number) => FileKind::of(&format!("{CHUNKS}/{number}"))?,
                None => FileKind::of(file).filter(|kind| !matches!(kind, FileKind::Chunks(_)))?,
            };
            is_ulid(block).then(|| Self { block: block.to_owned(), kind })
        });
        found.ok_or_else(|| Error::corrupt("no block has such a file").with("artifact", name))
    }

    /// Where it is, from where its block is.
    pub(crate) fn path(&self, directory: &Path) -> PathBuf {
        directory.join(&self.block).join(self.kind.path())
    }
}

impl FileKind {
    /// Where it is in its block.
    pub(crate) fn path(self) -> String {
        match self {
            Self::Meta => META.to_owned(),
            Self::Index => "index".to_owned(),
            Self::Tombstones => "tombstones".to_owned(),
            Self::Chunks(number) => format!("{CHUNKS}/{number:06}"),
        }
    }

    fn of(path: &str) -> Option<Self> {
        let number = |text: &str| {
            let is_number = text.len() == 6 && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|number| is_number && *number > 0)
        };
        match path.split_once('/') {
            None if path == META => Some(Self::Meta),
            None if path == "index" => Some(Self::Index),
            None if path == "tombstones" => Some(Self::Tombstones),
            Some((CHUNKS, name)) => number(name).map(Self::Chunks),
            _ => None,
        }
    }
}

/// Whether a name is that of a block: 26 digits and letters of Crockford's base 32
/// (<https://github.com/ulid/spec>).
pub(crate) fn is_ulid(name: &str) -> bool {
    let fits = |b: u8| b"0123456789ABCDEFGHJKMNPQRSTVWXYZ".contains(&b);
    name.len() == 26 && name.bytes().all(fits)
}

/// What a block says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BlockMeta {
    pub(crate) ulid: String,
    /// Of the first sample, in milliseconds since 1970.
    pub(crate) min_time: i64,
    /// Behind the last sample.
    pub(crate) max_time: i64,
    #[serde(default)]
    pub(crate) stats: BlockStats,
    pub(crate) version: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BlockStats {
    pub(crate) num_samples: u64,
    pub(crate) num_series: u64,
    pub(crate) num_chunks: u64,
}

impl BlockMeta {
    /// Read one. `corrupt` if it is none, and `unsupported` if it is of a version that is not known here.
    pub(crate) fn parse(bytes: &[u8], block: &str) -> Result<Self> {
        let tell = |e: Error| e.with("block", block);
        let meta: Self = serde_json::from_slice(bytes)
            .map_err(|e| tell(Error::corrupt("a block's description is malformed").caused_by(e)))?;
        if meta.version != META_VERSION {
            let what =
                format!("a block has version {}, and only {META_VERSION} is known", meta.version);
            return Err(tell(Error::new(Reason::Unsupported, what)));
        }
        if meta.ulid != block {
            return Err(tell(Error::corrupt("a block stands under another's name")));
        }
        if meta.min_time > meta.max_time {
            return Err(tell(Error::corrupt("a block ends before it begins")));
        }
        Ok(meta)
    }

    /// When its last sample was, about.
    pub(crate) fn end(&self) -> Timestamp {
        time(self.max_time)
    }

    pub(crate) fn begin(&self) -> Timestamp {
        time(self.min_time)
    }
}

/// A moment of the server's: milliseconds since 1970.
pub(crate) fn time(millis: i64) -> Timestamp {
    Timestamp(millis.saturating_mul(1_000_000))
}

/// A block in a directory.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) meta: BlockMeta,
    /// Its files and their lengths, in their order.
    pub(crate) files: BTreeMap<FileKind, u64>,
    /// What says that it is as it was: of every file length, time and inode. A snapshot's files are those of the server
    /// under another name, and never change in their place.
    pub(crate) fingerprint: String,
}

impl Block {
    /// Examine one. `corrupt` if something that every block has is not there.
    pub(crate) fn open(directory: &Path, name: &str) -> Result<Self> {
        let place = directory.join(name);
        let meta = read_meta(&place, name)?;
        let mut files = BTreeMap::new();
        let mut hasher = blake3::Hasher::new_derive_key("snapkit prometheus block");
        for kind in kinds(&place)? {
            let path = place.join(kind.path());
            let found = fs::symlink_metadata(&path)
                .doing(|| format!("cannot examine {}", path.display()))?;
            if !found.is_file() {
                return Err(
                    Error::corrupt("a part of a block is no file").with("path", path.display())
                );
            }
            hasher.update(kind.path().as_bytes());
            for number in [found.len(), found.ino(), found.mtime().cast_unsigned()] {
                hasher.update(&number.to_le_bytes());
            }
            hasher.update(&found.mtime_nsec().to_le_bytes());
            files.insert(kind, found.len());
        }
        let has_samples = files.keys().any(|kind| matches!(kind, FileKind::Chunks(_)));
        let lack = match () {
            () if !files.contains_key(&FileKind::Index) => Some("index"),
            () if meta.stats.num_chunks > 0 && !has_samples => Some(CHUNKS),
            () => None,
        };
        if let Some(lack) = lack {
            let what = format!("a block is not whole: it has no {lack}");
            return Err(Error::corrupt(what).with("path", place.display()));
        }
        Ok(Self { meta, files, fingerprint: hasher.finalize().to_hex().to_string() })
    }
}

/// Read the description of the block that a directory is.
pub(crate) fn read_meta(place: &Path, name: &str) -> Result<BlockMeta> {
    use std::io::Read as _;
    let path = place.join(META);
    let what = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    fs::File::open(&path).doing(what)?.take(MAX_META + 1).read_to_end(&mut bytes).doing(what)?;
    if bytes.len() as u64 > MAX_META {
        return Err(
            Error::corrupt("a block's description is too long").with("path", path.display())
        );
    }
    BlockMeta::parse(&bytes, name)
}

/// The files that there are. What else lies there belongs to nothing.
fn kinds(place: &Path) -> Result<Vec<FileKind>> {
    let mut kinds = Vec::new();
    for (directory, prefix) in [(place.to_owned(), ""), (place.join(CHUNKS), "chunks/")] {
        let what = || format!("cannot read the directory {}", directory.display());
        let entries = match fs::read_dir(&directory) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !prefix.is_empty() => continue,
            entries => entries.doing(what)?,
        };
        for entry in entries {
            let name = entry.doing(what)?.file_name();
            kinds.extend(name.to_str().and_then(|name| FileKind::of(&format!("{prefix}{name}"))));
            if kinds.len() > MAX_SEGMENTS {
                let what = "a block has too many files";
                return Err(Error::new(Reason::LimitExceeded, what).with("path", place.display()));
            }
        }
    }
    Ok(kinds)
}

/// The names of the blocks in a directory, in their order, which is about that of time.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>> {
    let what = || format!("cannot read the directory {}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).doing(what)? {
        let name = entry.doing(what)?.file_name();
        names.extend(name.to_str().filter(|name| is_ulid(name)).map(str::to_owned));
        if names.len() > MAX_BLOCKS {
            let what = format!("there are more than {MAX_BLOCKS} blocks");
            return Err(Error::new(Reason::LimitExceeded, what).with("path", directory.display()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_blocks_have_names_of_their_own() {
        let block = "01M8FGWPSDKKYRP24FTK5H3F6M";
        for kind in [FileKind::Meta, FileKind::Index, FileKind::Tombstones, FileKind::Chunks(17)] {
            let file = BlockFile { block: block.to_owned(), kind };
            assert_eq!(BlockFile::parse(&file.artifact().unwrap()).unwrap(), file);
        }
        for bad in [
            "meta.json",
            "01M8FGWPSDKKYRP24FTK5H3F6M",
            "01M8FGWPSDKKYRP24FTK5H3F6M.wal",
            "01M8FGWPSDKKYRP24FTK5H3F6M.chunks.1",
            "01M8FGWPSDKKYRP24FTK5H3F6M.chunks.000000",
            "01M8FGWPSDKKYRP24FTK5H3F6M.chunks.0000001",
            "01M8FGWPSDKKYRP24FTK5H3F6M.chunks.+00001",
            "01M8FGWPSDKKYRP24FTK5H3F6M.chunks/000001",
            "01M8FGWPSDKKYRP24FTK5H3F6m.index",
            "...index",
        ] {
            let Ok(name) = ArtifactName::new(bad) else { continue };
            assert!(BlockFile::parse(&name).is_err(), "{bad}");
        }
    }

    #[test]
    fn descriptions() {
        let name = "01M8FGWPSDKKYRP24FTK5H3F6M";
        let good = serde_json::json!({
            "ulid": name, "minTime": 1, "maxTime": 5, "stats": { "numSamples": 7 }, "version": 1,
            "compaction": { "level": 1, "sources": [name] },
        });
        let told = |change: fn(&mut serde_json::Value)| {
            let mut document = good.clone();
            change(&mut document);
            match BlockMeta::parse(document.to_string().as_bytes(), name) {
                Ok(meta) => format!("{} samples", meta.stats.num_samples),
                Err(e) => e.chain(),
            }
        };
        let all = [
            told(|_| ()),
            told(|d| d["version"] = 2.into()),
            told(|d| d["ulid"] = "01M8FGWPSDKKYRP24FTK5H3F6N".into()),
            told(|d| d["minTime"] = 6.into()),
            told(|d| d["minTime"] = "x".into()),
            told(|d| *d = serde_json::json!([])),
        ];
        insta::assert_snapshot!(all.join("\n"), @r#"
        7 samples
        a block has version 2, and only 1 is known (block=01M8FGWPSDKKYRP24FTK5H3F6M)
        a block stands under another's name (block=01M8FGWPSDKKYRP24FTK5H3F6M)
        a block ends before it begins (block=01M8FGWPSDKKYRP24FTK5H3F6M)
        a block's description is malformed (block=01M8FGWPSDKKYRP24FTK5H3F6M): invalid type: string "x", expected i64 at line 1 column 92
        a block's description is malformed (block=01M8FGWPSDKKYRP24FTK5H3F6M): invalid length 0, expected struct BlockMeta with 5 elements at line 1 column 2
        "#);
    }
}
