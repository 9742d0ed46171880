//! Trees of files: one sorted sequence of entries, each with what is needed to make it again.

use std::cmp::Ordering;
use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use crate::artifact::ByteStream;
use crate::context::{Context, Timestamp};
use crate::error::{Error, Reason, Result};
use crate::facts::{Fact, FactValue, Facts, Standing};

/// Content up to this size (512 KiB) is small: it may travel inline and is one chunk.
pub const SMALL_FILE: u64 = 512 << 10;

/// A path inside a tree: bytes, relative, components joined by `/`.
///
/// Components are not empty, not `.` or `..`, hold no NUL, and are at most 255 bytes; a path has at
/// most 4096 bytes and 1024 components. Ordered depth first: a directory comes before what is in it,
/// and that before the directory's next sibling.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EntryPath(Vec<u8>);

impl EntryPath {
    /// Longest path in bytes.
    pub const MAX_LEN: usize = 4096;

    /// Check a path.
    pub fn new(path: impl Into<Vec<u8>>) -> Result<Self> {
        let path = path.into();
        let component =
            |c: &[u8]| (1..=255).contains(&c.len()) && c != b"." && c != b".." && !c.contains(&0);
        let ok = path.len() <= Self::MAX_LEN
            && path.split(|b| *b == b'/').all(component)
            && path.iter().filter(|b| **b == b'/').count() < 1024;
        if ok {
            Ok(Self(path))
        } else {
            Err(Error::new(
                Reason::InvalidName,
                format!("not a path inside a tree: {:?}", String::from_utf8_lossy(&path)),
            ))
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The components.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/')
    }

    /// The last component.
    #[must_use]
    pub fn file_name(&self) -> &[u8] {
        self.0.rsplit(|b| *b == b'/').next().unwrap_or(&self.0)
    }

    /// What contains it; `None` at the top.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let slash = self.0.iter().rposition(|b| *b == b'/')?;
        Some(Self(self.0[..slash].to_vec()))
    }

    /// Whether this is `ancestor` or lies in it.
    #[must_use]
    pub fn starts_with(&self, ancestor: &Self) -> bool {
        self.0
            .strip_prefix(ancestor.0.as_slice())
            .is_some_and(|rest| rest.first().is_none_or(|b| *b == b'/'))
    }

    /// For people: invalid UTF-8 and control characters are shown as `\xNN`.
    #[must_use]
    pub fn display(&self) -> String {
        escape(&self.0)
    }
}

/// Bytes as text for people: what is not printable UTF-8 becomes `\xNN`, a backslash `\\`.
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() => {
                    for b in c.encode_utf8(&mut [0; 4]).bytes() {
                        let _ = write!(out, "\\x{b:02x}");
                    }
                }
                c => out.push(c),
            }
        }
        for b in part.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
    }
    out
}

/// What [`escape`] wrote, as bytes again. `None` where a backslash is followed by something else than a
/// backslash or `x` and two hexadecimal digits.
#[must_use]
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match (first, tail) {
            (b'\\', [b'\\', tail @ ..]) => (b'\\', tail),
            (b'\\', [b'x', high, low, tail @ ..]) => ((digit(*high)? << 4) | digit(*low)?, tail),
            (b'\\', _) => return None,
            (byte, tail) => (*byte, tail),
        };
        out.push(byte);
        rest = tail;
    }
    Some(out)
}

impl Ord for EntryPath {
    fn cmp(&self, other: &Self) -> Ordering {
        // `/` sorts below every other byte: a component that ends here comes first.
        let rank = |b: &u8| if *b == b'/' { 0u16 } else { u16::from(*b) + 1 };
        self.0.iter().map(rank).cmp(other.0.iter().map(rank))
    }
}

impl PartialOrd for EntryPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display())
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.display())
    }
}

/// A stretch of a sparse file that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub offset: u64,
    /// How long it is. Never zero.
    pub len: u64,
}

/// What an entry is.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its length in bytes.
        size: u64,
        /// For a sparse file where its data is, in order, at most [`EntryKind::MAX_EXTENTS`]; then
        /// its content is these stretches, one after the other. `None`: no holes.
        extents: Option<Vec<Extent>>,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points; any bytes but NUL, 1 to 4096 of them.
        target: Vec<u8>,
    },
    /// Another name of a file that came earlier in the tree.
    HardLink {
        /// The earlier name.
        target: EntryPath,
    },
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

impl EntryKind {
    /// The most data stretches that a sparse file may have; neighbours are joined to stay below.
    pub const MAX_EXTENTS: usize = 4096;

    /// One letter, as in `ls -l`.
    #[must_use]
    pub const fn letter(&self) -> char {
        match self {
            Self::Directory => 'd',
            Self::File { .. } => '-',
            Self::Symlink { .. } => 'l',
            Self::HardLink { .. } => 'h',
            Self::Fifo => 'p',
            Self::Socket => 's',
            Self::CharDevice { .. } => 'c',
            Self::BlockDevice { .. } => 'b',
        }
    }

    /// Bytes of content that a file has to be read for: its size, without holes. Zero for others.
    #[must_use]
    pub fn content_len(&self) -> u64 {
        match self {
            Self::File { size, extents: None } => *size,
            Self::File { extents: Some(extents), .. } => {
                extents.iter().fold(0, |sum, e| sum.saturating_add(e.len))
            }
            _ => 0,
        }
    }
}

/// One entry of a tree, without its content.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// Where it is.
    pub path: EntryPath,
    /// What it is.
    pub kind: EntryKind,
    /// The twelve permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification, to the nanosecond.
    pub mtime: Timestamp,
    /// Last change of content or metadata; says only "unchanged" or not, and is not restored.
    pub ctime: Timestamp,
    /// Inode; says only "unchanged" or not, and is not restored.
    pub inode: u64,
    /// Extended attributes, POSIX ACLs among them, sorted by name; names and values together at most
    /// [`TreeEntry::MAX_XATTRS`] bytes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether this directory only leads to what was asked for. When put back it is created if it is
    /// missing, and left as it is otherwise.
    pub ancestor: bool,
}

impl TreeEntry {
    /// The most bytes of extended attributes that an entry may carry: 1 MiB.
    pub const MAX_XATTRS: usize = 1 << 20;

    /// An entry of a kind, with mode 0600 (0700 for directories) and everything else zero.
    #[must_use]
    pub fn new(path: EntryPath, kind: EntryKind) -> Self {
        let mode = if matches!(kind, EntryKind::Directory) { 0o700 } else { 0o600 };
        Self {
            path,
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: Timestamp(0),
            ctime: Timestamp(0),
            inode: 0,
            xattrs: Vec::new(),
            ancestor: false,
        }
    }
}

/// How the content of an entry is to be had.
pub enum Content {
    /// It has none, or none was asked for.
    None,
    /// Here it is: at most [`SMALL_FILE`] bytes.
    Inline(Bytes),
    /// By [`TreeReader::load`] if it is small, else by [`TreeReader::open`].
    Deferred,
    /// Whoever gives the tree has read it, and found it whole and as long as the entry says. It is not given
    /// again. Only a [check](crate::source::Source::check) meets this.
    Verified,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Inline(b) => write!(f, "Inline({} bytes)", b.len()),
            Self::Deferred => f.write_str("Deferred"),
            Self::Verified => f.write_str("Verified"),
        }
    }
}

/// One step of a walk through a tree.
#[derive(Debug)]
pub enum TreeItem {
    /// An entry.
    Entry(TreeEntry, Content),
    /// Something that could not be examined. The walk goes on; the capture is partial.
    Problem(EntryPath, Error),
}

impl TreeItem {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &EntryPath {
        match self {
            Self::Entry(entry, _) => &entry.path,
            Self::Problem(path, _) => path,
        }
    }
}

/// An opened file: the entry as it was when opened, and its content.
pub struct OpenedFile {
    /// Metadata that belongs to the content.
    pub entry: TreeEntry,
    /// The content (the data stretches only, if the file is sparse). If the file changes while it is
    /// read, the last item is a `source-changed` error.
    pub body: ByteStream,
}

impl fmt::Debug for OpenedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenedFile({:?})", self.entry.path)
    }
}

/// A small file: the entry as it was when read, and its content.
#[derive(Debug)]
pub struct LoadedFile {
    /// Metadata that belongs to the content.
    pub entry: TreeEntry,
    /// The content (the data stretches only, if the file is sparse).
    pub bytes: Bytes,
}

/// A pull reader of a tree.
#[async_trait]
pub trait TreeReader: Send + Sync {
    /// The next items, sorted by path over the whole walk, or `None` at the end. A batch is not
    /// empty and holds at most 4096 items and 1 MiB of inline content. No file is opened for it.
    async fn next_batch(&mut self, cx: &Context) -> Result<Option<Vec<TreeItem>>>;

    /// Open one file for reading. Several may be open at once, and while the walk goes on.
    async fn open(&self, cx: &Context, entry: &TreeEntry) -> Result<OpenedFile>;

    /// Read several small files at once; answers in the same order, one per entry. Files that have
    /// grown beyond [`SMALL_FILE`] answer `limit-exceeded`, and are then opened instead.
    async fn load(&self, cx: &Context, entries: &[TreeEntry]) -> Vec<Result<LoadedFile>>;
}

/// Facts of a tree, gathered entry by entry in order: the same for what was captured and for what is
/// found in a target. Entries that only lead there do not count.
#[derive(Debug)]
pub struct TreeDigest {
    entries: u64,
    files: u64,
    bytes: u64,
    structure: blake3::Hasher,
    attributes: blake3::Hasher,
    owners: blake3::Hasher,
}

impl Default for TreeDigest {
    fn default() -> Self {
        Self {
            entries: 0,
            files: 0,
            bytes: 0,
            structure: blake3::Hasher::new_derive_key("snapkit 1-draft tree structure"),
            attributes: blake3::Hasher::new_derive_key("snapkit 1-draft tree attributes"),
            owners: blake3::Hasher::new_derive_key("snapkit 1-draft tree owners"),
        }
    }
}

impl TreeDigest {
    /// Take in the next entry.
    pub fn add(&mut self, entry: &TreeEntry) {
        if entry.ancestor {
            return;
        }
        self.entries += 1;
        let field = |h: &mut blake3::Hasher, bytes: &[u8]| {
            h.update(&(bytes.len() as u64).to_le_bytes());
            h.update(bytes);
        };
        let h = &mut self.structure;
        field(h, entry.path.as_bytes());
        h.update(&[entry.kind.letter() as u8]);
        match &entry.kind {
            EntryKind::File { size, .. } => {
                self.files += 1;
                self.bytes += size;
                h.update(&size.to_le_bytes());
            }
            EntryKind::Symlink { target } => field(h, target),
            EntryKind::HardLink { target } => field(h, target.as_bytes()),
            EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
                h.update(&major.to_le_bytes());
                h.update(&minor.to_le_bytes());
            }
            EntryKind::Directory | EntryKind::Fifo | EntryKind::Socket => {}
        }
        // A hard link has the attributes of the file that it names again.
        if !matches!(entry.kind, EntryKind::HardLink { .. }) {
            let h = &mut self.attributes;
            if !matches!(entry.kind, EntryKind::Symlink { .. }) {
                h.update(&entry.mode.to_le_bytes());
            }
            h.update(&entry.mtime.0.to_le_bytes());
            for (name, value) in &entry.xattrs {
                field(h, name);
                field(h, value);
            }
            self.owners.update(&entry.uid.to_le_bytes());
            self.owners.update(&entry.gid.to_le_bytes());
        }
    }

    /// The facts, each named `ARTIFACT.…`: pinned if they are of what was captured, else observed.
    pub fn write(&self, artifact: &str, standing: Standing, facts: &mut Facts) {
        let mut put = |name: &str, value: FactValue| {
            facts.0.insert(format!("{artifact}.{name}"), Fact { standing, value });
        };
        put("entries", self.entries.into());
        put("files", self.files.into());
        put("bytes", self.bytes.into());
        put("structure", self.structure.finalize().to_hex().as_str().into());
        put("attributes", self.attributes.finalize().to_hex().as_str().into());
        put("owners", self.owners.finalize().to_hex().as_str().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> EntryPath {
        EntryPath::new(s.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_escaped_reads_back() {
        let bytes: Vec<u8> = (0..=255).chain("ä\u{9b}\n".bytes()).collect();
        assert_eq!(unescape(&escape(&bytes)).unwrap(), bytes);
        assert!(!escape(&bytes).contains(char::is_control));
        for broken in ["\\", "\\n", "\\x1", "\\xg0"] {
            assert_eq!(unescape(broken), None, "{broken}");
        }
    }

    #[test]
    fn order_is_depth_first() {
        let mut paths = [p("a.txt"), p("a/b"), p("a"), p("a-"), p("b"), p("a/b/c"), p("a/b.c")];
        paths.sort();
        let sorted: Vec<_> = paths.iter().map(EntryPath::display).collect();
        assert_eq!(sorted, ["a", "a/b", "a/b/c", "a/b.c", "a-", "a.txt", "b"]);
    }

    #[test]
    fn hostile_paths_are_refused() {
        for bad in [&b""[..], b"/", b"/etc", b"a/", b"a//b", b"..", b"a/../b", b"./a", b"a\0b"] {
            assert!(EntryPath::new(bad).is_err(), "{bad:?}");
        }
        assert!(EntryPath::new(vec![b'x'; 256]).is_err());
        assert!(EntryPath::new(b"x/".repeat(1024)).is_err());
        assert!(EntryPath::new(&b"caf\xe9 \xff"[..]).is_ok());
        assert_eq!(EntryPath::new(&b"a\xff\n"[..]).unwrap().display(), "a\\xff\\x0a");
    }

    #[test]
    fn ancestors() {
        assert!(p("a/b").starts_with(&p("a")) && p("a").starts_with(&p("a")));
        assert!(!p("ab").starts_with(&p("a")));
        assert_eq!(p("a/b").parent(), Some(p("a")));
        assert_eq!(p("a").parent(), None);
        assert_eq!(p("a/b").file_name(), b"b");
    }
}
