//! Tree entries and chunk lists as bytes.
//!
//! A tree is a sequence of encoded entries in order, cut into chunks between entries: at least
//! [`MIN_TREE_CHUNK`] bytes, then after an entry whose path's keyed hash ends in eight zero bits, and
//! at most 1 MiB or one entry. An entry is a varint length and that many bytes, see [`encode_entry`]. A chunk list is stored as nodes of 36-byte
//! references, cut where a reference's id begins with ten zero bits.

use crate::chunk::{ChunkKey, MAX_CHUNK};
use crate::codec::{Reader, WriteExt};
use crate::context::Timestamp;
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::manifest::{ChunkList, ChunkRef};
use crate::tree::{EntryKind, EntryPath, Extent, TreeEntry};

/// Chunks of a tree are not shorter, but for the last: 32 KiB.
pub const MIN_TREE_CHUNK: usize = 32 << 10;

/// Chunks of a tree are not longer, but for a single entry: 1 MiB.
pub const MAX_TREE_CHUNK: usize = 1 << 20;

/// The most references of a list that stand in a record; a longer list goes one level deeper.
pub const INLINE_REFS: usize = 128;

/// Bytes of a reference in a list node.
pub const REF_LEN: usize = 36;

/// List nodes have at least and at most so many references, but for the last.
const NODE_REFS: (usize, usize) = (256, 8192);

/// The deepest list.
pub const MAX_DEPTH: u8 = 8;

/// An entry with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// The entry.
    pub entry: TreeEntry,
    /// Its content; empty for what has none.
    pub content: ChunkList,
}

const FLAG_ANCESTOR: u64 = 1;
const FLAG_EXTENTS: u64 = 2;

fn kind_number(kind: &EntryKind) -> u64 {
    match kind {
        EntryKind::Directory => 1,
        EntryKind::File { .. } => 2,
        EntryKind::Symlink { .. } => 3,
        EntryKind::HardLink { .. } => 4,
        EntryKind::Fifo => 5,
        EntryKind::Socket => 6,
        EntryKind::CharDevice { .. } => 7,
        EntryKind::BlockDevice { .. } => 8,
    }
}

/// Append an entry: a varint length, then `kind flags path mode uid gid mtime ctime inode xattrs`, then
/// what the kind has (file: size, extents, content; link: target; device: numbers). Numbers are varints,
/// times zigzag nanoseconds, byte strings have a varint length.
pub fn encode_entry(stored: &StoredEntry, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    let (e, b) = (&stored.entry, scratch);
    b.clear();
    let extents = match &e.kind {
        EntryKind::File { extents, .. } => extents.as_deref(),
        _ => None,
    };
    let mut flags = 0;
    if e.ancestor {
        flags |= FLAG_ANCESTOR;
    }
    if extents.is_some() {
        flags |= FLAG_EXTENTS;
    }
    b.put_varint(kind_number(&e.kind));
    b.put_varint(flags);
    b.put_bytes(e.path.as_bytes());
    b.put_varint(u64::from(e.mode));
    b.put_varint(u64::from(e.uid));
    b.put_varint(u64::from(e.gid));
    b.put_signed(e.mtime.0);
    b.put_signed(e.ctime.0);
    b.put_varint(e.inode);
    b.put_varint(e.xattrs.len() as u64);
    for (name, value) in &e.xattrs {
        b.put_bytes(name);
        b.put_bytes(value);
    }
    match &e.kind {
        EntryKind::File { size, .. } => {
            b.put_varint(*size);
            if let Some(extents) = extents {
                b.put_varint(extents.len() as u64);
                for x in extents {
                    b.put_varint(x.offset);
                    b.put_varint(x.len);
                }
            }
            encode_list(&stored.content, b);
        }
        EntryKind::Symlink { target } => b.put_bytes(target),
        EntryKind::HardLink { target } => b.put_bytes(target.as_bytes()),
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            b.put_varint(u64::from(*major));
            b.put_varint(u64::from(*minor));
        }
        EntryKind::Directory | EntryKind::Fifo | EntryKind::Socket => {}
    }
    out.put_bytes(b);
}

pub(crate) fn encode_list(list: &ChunkList, out: &mut Vec<u8>) {
    out.put_varint(list.size);
    out.put_varint(u64::from(list.depth));
    out.put_varint(list.chunks.len() as u64);
    for chunk in &list.chunks {
        out.extend_from_slice(&chunk.id.0);
        out.put_varint(u64::from(chunk.len));
    }
}

pub(crate) fn decode_list(r: &mut Reader<'_>) -> Result<ChunkList> {
    let size = r.varint()?;
    let depth = r.bounded(u64::from(MAX_DEPTH), "a list's depth")?;
    let count = r.bounded(2 * INLINE_REFS as u64, "a list's length")?;
    let mut chunks = Vec::with_capacity(count);
    for _ in 0..count {
        chunks.push(ChunkRef { id: ChunkId(r.array()?), len: r.varint_u32()? });
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most 8")]
    let list = ChunkList { size, depth: depth as u8, chunks };
    check_list(&list).map_err(|why| r.broken(why))?;
    Ok(list)
}

/// What is impossible about a list, if anything.
pub fn check_list(list: &ChunkList) -> std::result::Result<(), &'static str> {
    if list.depth > MAX_DEPTH {
        return Err("a list is too deep");
    }
    if list.chunks.iter().any(|c| c.len == 0 || c.len as usize > MAX_CHUNK) {
        return Err("a chunk's length is impossible");
    }
    let sum: u64 = list.chunks.iter().map(|c| u64::from(c.len)).sum();
    if list.depth == 0 && sum != list.size {
        return Err("chunks do not add up to the content's length");
    }
    if (list.depth > 0 || list.size > 0) && list.chunks.is_empty() {
        return Err("a list is empty");
    }
    Ok(())
}

/// The most extended attributes of an entry.
const MAX_XATTR_COUNT: u64 = 8192;

/// No tree chunk is longer: one entry may be, which is more than [`MAX_TREE_CHUNK`].
pub const LONGEST_TREE_CHUNK: usize = 2 << 20;

/// Read one entry from the front of a tree chunk; what follows it.
pub fn decode_entry(bytes: &[u8]) -> Result<(StoredEntry, &[u8])> {
    let mut outer = Reader::new(bytes, "a tree entry");
    let body = outer.bytes(MAX_CHUNK, "an entry's length")?;
    let mut r = Reader::new(body, "a tree entry");
    let kind = r.varint()?;
    let flags = r.varint()?;
    if flags & !(FLAG_ANCESTOR | FLAG_EXTENTS) != 0 {
        return Err(r.broken("unknown flags"));
    }
    let path = path(&mut r)?;
    let mode = r.varint_u32()?;
    if mode > 0o7777 {
        return Err(r.broken("its mode has unknown bits"));
    }
    let (uid, gid) = (r.varint_u32()?, r.varint_u32()?);
    let (mtime, ctime) = (Timestamp(r.signed()?), Timestamp(r.signed()?));
    let inode = r.varint()?;
    let xattr_count = r.bounded(MAX_XATTR_COUNT, "the number of attributes")?;
    let mut xattrs = Vec::with_capacity(xattr_count.min(64));
    let mut xattr_bytes = 0;
    for _ in 0..xattr_count {
        let name = r.bytes(TreeEntry::MAX_XATTRS, "an attribute's name")?.to_vec();
        let value = r.bytes(TreeEntry::MAX_XATTRS, "an attribute")?.to_vec();
        xattr_bytes += name.len() + value.len();
        if name.is_empty() || name.contains(&0) || xattr_bytes > TreeEntry::MAX_XATTRS {
            return Err(r.broken("its attributes are impossible"));
        }
        xattrs.push((name, value));
    }
    let mut content = ChunkList::default();
    let kind = match kind {
        1 => EntryKind::Directory,
        2 => {
            let size = r.varint()?;
            let extents =
                if flags & FLAG_EXTENTS != 0 { Some(extents(&mut r, size)?) } else { None };
            content = decode_list(&mut r)?;
            let kind = EntryKind::File { size, extents };
            if content.size != kind.content_len() {
                return Err(r.broken("its content has another length than the file"));
            }
            kind
        }
        3 => {
            let target = r.bytes(4096, "a link's target")?.to_vec();
            if target.is_empty() || target.contains(&0) {
                return Err(r.broken("a link's target is impossible"));
            }
            EntryKind::Symlink { target }
        }
        4 => EntryKind::HardLink { target: self::path(&mut r)? },
        5 => EntryKind::Fifo,
        6 => EntryKind::Socket,
        7 => EntryKind::CharDevice { major: r.varint_u32()?, minor: r.varint_u32()? },
        8 => EntryKind::BlockDevice { major: r.varint_u32()?, minor: r.varint_u32()? },
        _ => return Err(r.broken("unknown kind")),
    };
    if flags & FLAG_EXTENTS != 0 && !matches!(kind, EntryKind::File { .. }) {
        return Err(r.broken("only files are sparse"));
    }
    let ancestor = flags & FLAG_ANCESTOR != 0;
    if ancestor && kind != EntryKind::Directory {
        return Err(r.broken("only directories lead to others"));
    }
    r.end()?;
    let mut entry = TreeEntry::new(path, kind);
    entry.mode = mode;
    (entry.uid, entry.gid, entry.mtime, entry.ctime) = (uid, gid, mtime, ctime);
    (entry.inode, entry.xattrs, entry.ancestor) = (inode, xattrs, ancestor);
    Ok((StoredEntry { entry, content }, outer.rest()))
}

fn path(r: &mut Reader<'_>) -> Result<EntryPath> {
    let bytes = r.bytes(EntryPath::MAX_LEN, "a path's length")?;
    EntryPath::new(bytes).map_err(|e| r.broken("a path is impossible").caused_by(e))
}

fn extents(r: &mut Reader<'_>, size: u64) -> Result<Vec<Extent>> {
    let count = r.bounded(EntryKind::MAX_EXTENTS as u64, "the number of data stretches")?;
    let mut extents = Vec::with_capacity(count);
    let mut end = 0u64;
    for _ in 0..count {
        let x = Extent { offset: r.varint()?, len: r.varint()? };
        let stop =
            x.offset.checked_add(x.len).filter(|s| *s <= size && x.len > 0 && x.offset >= end);
        end = stop.ok_or_else(|| r.broken("its data stretches are impossible"))?;
        extents.push(x);
    }
    Ok(extents)
}

/// Gathers encoded entries into tree chunks.
#[derive(Debug, Default)]
pub struct TreeChunker {
    buffer: Vec<u8>,
    scratch: Vec<u8>,
}

impl TreeChunker {
    /// Whether a reader would take an entry as it is. One that it would refuse must not be added: it
    /// would take its neighbours along.
    pub fn check(&mut self, stored: &StoredEntry) -> Result<()> {
        let mut bytes = Vec::new();
        encode_entry(stored, &mut self.scratch, &mut bytes);
        let refused = |e| {
            Error::internal("the source gave an entry that cannot be stored")
                .with("path", &stored.entry.path)
                .caused_by(e)
        };
        match decode_entry(&bytes).map_err(refused)? {
            (read, []) if read == *stored => Ok(()),
            _ => Err(refused(Error::internal("it reads back as another"))),
        }
    }

    /// Add an entry; a finished chunk, if it closes one.
    pub fn add(&mut self, key: &ChunkKey, stored: &StoredEntry) -> Option<Vec<u8>> {
        let before = self.buffer.len();
        encode_entry(stored, &mut self.scratch, &mut self.buffer);
        if before > 0 && self.buffer.len() > MAX_TREE_CHUNK {
            let rest = self.buffer.split_off(before);
            return Some(std::mem::replace(&mut self.buffer, rest));
        }
        let boundary = self.buffer.len() >= MIN_TREE_CHUNK
            && key.boundary_hash(stored.entry.path.as_bytes()) & 0xff == 0;
        boundary.then(|| std::mem::take(&mut self.buffer))
    }

    /// The last chunk, if there is one.
    pub fn finish(self) -> Option<Vec<u8>> {
        (!self.buffer.is_empty()).then_some(self.buffer)
    }
}

/// Builds a chunk list of any length in bounded memory: nodes are handed out to be stored, and their
/// names handed back.
#[derive(Debug, Default)]
pub struct ListBuilder {
    size: u64,
    levels: Vec<Vec<ChunkRef>>,
}

/// A node that must be stored as a chunk before the list can go on.
#[derive(Debug)]
pub struct Node {
    level: usize,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl ListBuilder {
    /// The next chunk of the content. A node to be stored, if one is full.
    pub fn push(&mut self, chunk: ChunkRef) -> Option<Node> {
        self.size += u64::from(chunk.len);
        self.add(0, chunk)
    }

    /// A node was stored under this name.
    pub fn stored(&mut self, node: &Node, id: ChunkId) -> Option<Node> {
        #[expect(clippy::cast_possible_truncation, reason = "a node has at most 8192 references")]
        let len = node.bytes.len() as u32;
        self.add(node.level + 1, ChunkRef { id, len })
    }

    fn add(&mut self, level: usize, chunk: ChunkRef) -> Option<Node> {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        let refs = &mut self.levels[level];
        refs.push(chunk);
        let boundary = chunk.id.0[0] == 0 && chunk.id.0[1] & 0xc0 == 0;
        let full = refs.len() >= NODE_REFS.1 || (refs.len() >= NODE_REFS.0 && boundary);
        full.then(|| Self::node(level, std::mem::take(refs)))
    }

    fn node(level: usize, refs: Vec<ChunkRef>) -> Node {
        let mut bytes = Vec::with_capacity(refs.len() * REF_LEN);
        for chunk in refs {
            bytes.extend_from_slice(&chunk.id.0);
            bytes.put_u32(chunk.len);
        }
        Node { level, bytes }
    }

    /// The content has ended: nodes to be stored until the list fits into a record.
    pub fn close(&mut self) -> Option<Node> {
        let top = self.levels.iter().rposition(|l| !l.is_empty())?;
        let lowest = self.levels.iter().position(|l| !l.is_empty())?;
        if lowest < top || self.levels[top].len() > INLINE_REFS {
            return Some(Self::node(lowest, std::mem::take(&mut self.levels[lowest])));
        }
        None
    }

    /// The list, once [`ListBuilder::close`] gives no more nodes.
    #[must_use]
    pub fn finish(mut self) -> ChunkList {
        let depth = self.levels.iter().rposition(|l| !l.is_empty()).unwrap_or(0);
        let chunks = self.levels.get_mut(depth).map(std::mem::take).unwrap_or_default();
        #[expect(clippy::cast_possible_truncation, reason = "each level is 256 times as long")]
        ChunkList { size: self.size, depth: depth as u8, chunks }
    }
}

/// The references in a stored list node.
pub fn decode_node(bytes: &[u8]) -> Result<Vec<ChunkRef>> {
    let mut r = Reader::new(bytes, "a chunk list");
    if bytes.len() > NODE_REFS.1 * REF_LEN {
        return Err(r.broken("it is too long"));
    }
    let mut refs = Vec::with_capacity(bytes.len() / REF_LEN);
    while !r.is_empty() {
        let chunk = ChunkRef { id: ChunkId(r.array()?), len: r.u32()? };
        if chunk.len == 0 || chunk.len as usize > MAX_CHUNK {
            return Err(r.broken("a chunk's length is impossible"));
        }
        refs.push(chunk);
    }
    if refs.is_empty() {
        return Err(r.broken("it is empty"));
    }
    Ok(refs)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn any_kind() -> impl Strategy<Value = (EntryKind, ChunkList)> {
        let list = |size: u64| {
            let len = u32::try_from(size.min(MAX_CHUNK as u64)).unwrap();
            let mut chunks = Vec::new();
            let mut left = size;
            while left > 0 {
                let n = u64::from(len).min(left);
                chunks.push(ChunkRef { id: ChunkId([7; 32]), len: u32::try_from(n).unwrap() });
                left -= n;
            }
            ChunkList { size, depth: 0, chunks }
        };
        prop_oneof![
            Just((EntryKind::Directory, ChunkList::default())),
            Just((EntryKind::Socket, ChunkList::default())),
            (0u64..100_000_000)
                .prop_map(move |s| (EntryKind::File { size: s, extents: None }, list(s))),
            (0u64..1000).prop_map(move |s| {
                let extents = Some(vec![Extent { offset: 10, len: s + 1 }]);
                (EntryKind::File { size: s + 5000, extents }, list(s + 1))
            }),
            proptest::collection::vec(1u8.., 1..50)
                .prop_map(|target| (EntryKind::Symlink { target }, ChunkList::default())),
            any::<(u32, u32)>().prop_map(|(major, minor)| (
                EntryKind::CharDevice { major, minor },
                ChunkList::default()
            )),
        ]
    }

    proptest! {
        #[test]
        fn entries_read_back(
            (kind, content) in any_kind(),
            name in "[a-z\u{e4}]{1,20}(/[a-z]{1,9}){0,3}",
            mode in 0u32..0o10000, ids: (u32, u32), times: (i64, i64), inode: u64,
            xattrs in proptest::collection::vec(
                (proptest::collection::vec(1u8.., 1..9), proptest::collection::vec(any::<u8>(), 0..30)), 0..4),
        ) {
            let mut entry = TreeEntry::new(EntryPath::new(name.into_bytes()).unwrap(), kind);
            entry.mode = mode;
            (entry.uid, entry.gid) = ids;
            (entry.mtime, entry.ctime) = (Timestamp(times.0), Timestamp(times.1));
            (entry.inode, entry.xattrs) = (inode, xattrs);
            let stored = StoredEntry { entry, content };
            let mut bytes = Vec::new();
            encode_entry(&stored, &mut Vec::new(), &mut bytes);
            bytes.push(42);
            let (back, rest) = decode_entry(&bytes).unwrap();
            prop_assert_eq!(back, stored);
            prop_assert_eq!(rest, &[42]);
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_have_one_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((stored, rest)) = decode_entry(&bytes) {
                let mut again = Vec::new();
                encode_entry(&stored, &mut Vec::new(), &mut again);
                prop_assert_eq!(&bytes[..bytes.len() - rest.len()], &again[..]);
            }
            drop(decode_node(&bytes));
        }
    }

    fn expand(list: &ChunkList, store: &HashMap<ChunkId, Vec<u8>>) -> Vec<ChunkRef> {
        let mut refs = list.chunks.clone();
        for _ in 0..list.depth {
            refs = refs.iter().flat_map(|r| decode_node(&store[&r.id]).unwrap()).collect();
        }
        refs
    }

    #[test]
    fn long_lists_nest_and_change_locally() {
        let mut store = HashMap::new();
        let mut build = |refs: &[ChunkRef]| {
            let before = store.len();
            let mut b = ListBuilder::default();
            for r in refs {
                let mut node = b.push(*r);
                while let Some(n) = node {
                    let id = ChunkId(*blake3::hash(&n.bytes).as_bytes());
                    store.insert(id, n.bytes.clone());
                    node = b.stored(&n, id);
                }
            }
            while let Some(n) = b.close() {
                let id = ChunkId(*blake3::hash(&n.bytes).as_bytes());
                store.insert(id, n.bytes.clone());
                assert!(b.stored(&n, id).is_none());
            }
            let list = b.finish();
            assert!(check_list(&list).is_ok() && list.chunks.len() <= INLINE_REFS);
            assert_eq!(expand(&list, &store), refs);
            (list, store.len() - before)
        };
        let make = |n: u32| {
            let id = ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes());
            ChunkRef { id, len: 8192 }
        };
        assert_eq!(build(&[]).0.size, 0);
        for n in [1, 128, 129, 500, 9000] {
            build(&(0..n).map(make).collect::<Vec<_>>());
        }
        let mut refs: Vec<_> = (0..300_000).map(make).collect();
        let (list, nodes) = build(&refs);
        assert_eq!((list.depth > 0, list.size), (true, 300_000 * 8192));
        refs[150_000] = make(u32::MAX);
        let (_, fresh) = build(&refs);
        assert!(nodes > 100 && fresh <= 4, "{nodes} nodes, {fresh} fresh");
    }
}
