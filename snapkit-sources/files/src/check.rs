//! Check: would this tree restore? Everything that nobody has verified is read to its end, and nothing is
//! written.

use std::collections::HashSet;

use futures_util::StreamExt as _;
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::source::Findings;
use snapkit_core::tree::{
    Content, EntryKind, EntryPath, SMALL_FILE, TreeEntry, TreeItem, TreeReader, escape,
};

/// How many findings are listed.
const LISTED: usize = 1000;

/// How many files are remembered as what hard links may name: 64 MiB and a little. In a larger tree,
/// links to the files beyond are taken on trust here, and looked at when they are restored.
const REMEMBERED: usize = 4 << 20;

/// How many bytes of small files are asked for at once.
const LOAD_BYTES: u64 = 8 << 20;

/// Looks at the entries of a tree, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Order {
    last: Option<EntryPath>,
    /// The last entry that is not a directory.
    leaf: Option<EntryPath>,
}

impl Order {
    /// Take in the next path, which must come after the last one and not lie in a file or a link.
    pub(crate) fn next(&mut self, path: &EntryPath) -> Result<()> {
        if self.last.as_ref().is_some_and(|last| last >= path) {
            return Err(corrupt("an entry is out of order, or there twice", path));
        }
        if self.leaf.as_ref().is_some_and(|leaf| path.starts_with(leaf)) {
            return Err(corrupt("an entry lies in something that is not a directory", path));
        }
        self.last = Some(path.clone());
        Ok(())
    }

    /// What that entry is.
    pub(crate) fn is(&mut self, entry: &TreeEntry) {
        if !matches!(entry.kind, EntryKind::Directory) {
            self.leaf = Some(entry.path.clone());
        }
    }
}

pub(crate) fn corrupt(what: &str, path: &EntryPath) -> Error {
    Error::corrupt(what).with("entry", path)
}

/// What is impossible about one entry, whatever stands before it.
pub(crate) fn impossible(entry: &TreeEntry) -> Result<()> {
    let wrong = |what: &str| Err(corrupt(what, &entry.path));
    match &entry.kind {
        EntryKind::File { size, .. } if i64::try_from(*size).is_err() => {
            return wrong("a file is larger than a file can be");
        }
        EntryKind::File { size, extents: Some(extents) } => {
            if extents.len() > EntryKind::MAX_EXTENTS {
                return wrong("a sparse file has too many stretches");
            }
            let mut end = 0;
            for (i, extent) in extents.iter().enumerate() {
                if extent.len == 0 || (i > 0 && extent.offset < end) {
                    return wrong("the stretches of a sparse file overlap or are empty");
                }
                match extent.offset.checked_add(extent.len).filter(|end| end <= size) {
                    Some(next) => end = next,
                    None => return wrong("a stretch of a sparse file lies behind its end"),
                }
            }
        }
        EntryKind::Symlink { target }
            if target.is_empty() || target.len() > 4096 || target.contains(&0) =>
        {
            return wrong("a symbolic link has an impossible target");
        }
        EntryKind::HardLink { target } if *target >= entry.path => {
            return wrong("a hard link names something that is not earlier");
        }
        _ => {}
    }
    if entry.mode > 0o7777 {
        return wrong("a mode has more than twelve bits");
    }
    let total: usize = entry.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
    if total > TreeEntry::MAX_XATTRS
        || entry.xattrs.iter().any(|(n, _)| n.is_empty() || n.contains(&0))
    {
        return wrong("extended attributes are too large or have impossible names");
    }
    Ok(())
}

/// Read a tree to its end.
pub(crate) async fn check(cx: &Context, mut tree: Box<dyn TreeReader>) -> Result<Findings> {
    let mut found = Found::default();
    let mut order = Order::default();
    let mut files = HashSet::new();
    while let Some(batch) = cx.run(tree.next_batch(cx)).await? {
        let mut small = Vec::new();
        let mut small_bytes = 0;
        for item in batch {
            let (entry, content) = match item {
                TreeItem::Problem(path, e) => {
                    found.add(&path, &e);
                    continue;
                }
                TreeItem::Entry(entry, content) => (entry, content),
            };
            if let Err(e) = order.next(&entry.path).and_then(|()| impossible(&entry)) {
                found.add(&entry.path, &e);
            }
            order.is(&entry);
            match &entry.kind {
                EntryKind::File { .. } if files.len() < REMEMBERED => {
                    files.insert(short_hash(&entry.path));
                }
                EntryKind::HardLink { target }
                    if files.len() < REMEMBERED && !files.contains(&short_hash(target)) =>
                {
                    found.add(&entry.path, &corrupt("a hard link names no earlier file", target));
                }
                _ => {}
            }
            let expected = entry.kind.content_len();
            match content {
                Content::None if expected > 0 => {
                    found.add(&entry.path, &corrupt("a file comes without content", &entry.path));
                }
                Content::None | Content::Verified => {}
                Content::Inline(bytes) => {
                    if let Err(e) = length(&entry, bytes.len() as u64) {
                        found.add(&entry.path, &e);
                    }
                }
                Content::Deferred if expected <= SMALL_FILE => {
                    small_bytes += expected;
                    small.push(entry);
                    if small_bytes >= LOAD_BYTES {
                        load(cx, &*tree, &std::mem::take(&mut small), &mut found).await?;
                        small_bytes = 0;
                    }
                }
                Content::Deferred => {
                    if let Err(e) = read(cx, &*tree, &entry).await {
                        found.add_unless_cancelled(&entry.path, e)?;
                    }
                }
            }
        }
        load(cx, &*tree, &small, &mut found).await?;
    }
    Ok(found.finish())
}

#[derive(Debug, Default)]
struct Found {
    findings: Findings,
    more: u64,
}

impl Found {
    fn add(&mut self, path: &EntryPath, error: &Error) {
        if self.findings.0.len() < LISTED {
            self.findings.add(path.display(), error.chain());
        } else {
            self.more += 1;
        }
    }

    fn add_unless_cancelled(&mut self, path: &EntryPath, error: Error) -> Result<()> {
        if error.is_cancelled() {
            return Err(error);
        }
        self.add(path, &error);
        Ok(())
    }

    fn finish(mut self) -> Findings {
        if self.more > 0 {
            self.findings.add("", format!("{} more findings are not listed", self.more));
        }
        self.findings
    }
}

fn short_hash(path: &EntryPath) -> u64 {
    let mut short = [0; 8];
    short.copy_from_slice(&blake3::hash(path.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(short)
}

/// Compare the length of content with what its entry says.
pub(crate) fn length(entry: &TreeEntry, found: u64) -> Result<()> {
    let expected = entry.kind.content_len();
    if found == expected {
        return Ok(());
    }
    Err(Error::corrupt(format!("content is {found} bytes long instead of {expected}"))
        .with("entry", escape(entry.path.as_bytes())))
}

async fn load(
    cx: &Context,
    tree: &dyn TreeReader,
    entries: &[TreeEntry],
    found: &mut Found,
) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    cx.check()?;
    for (entry, answer) in entries.iter().zip(tree.load(cx, entries).await) {
        let result = match answer {
            Ok(loaded) => impossible(&loaded.entry)
                .and_then(|()| length(&loaded.entry, loaded.bytes.len() as u64)),
            Err(e) if e.reason() == Reason::LimitExceeded => read(cx, tree, entry).await,
            Err(e) => Err(e),
        };
        if let Err(e) = result {
            found.add_unless_cancelled(&entry.path, e)?;
        }
    }
    Ok(())
}

async fn read(cx: &Context, tree: &dyn TreeReader, entry: &TreeEntry) -> Result<()> {
    let mut opened = cx.run(tree.open(cx, entry)).await?;
    impossible(&opened.entry)?;
    let mut total = 0u64;
    loop {
        let piece = cx.run(async { opened.body.next().await.transpose() }).await?;
        let Some(piece) = piece else { break };
        total += piece.len() as u64;
    }
    length(&opened.entry, total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;
    use snapkit_core::tree::Extent;

    fn path(s: &str) -> EntryPath {
        EntryPath::new(s).unwrap()
    }

    /// What is said of each, or that nothing is.
    fn said(results: impl IntoIterator<Item = Result<()>>) -> String {
        let words = |result: Result<()>| result.map_or_else(|e| e.chain(), |()| "fine".to_owned());
        results.into_iter().map(words).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn order_and_what_is_above() {
        let mut order = Order::default();
        for (p, kind) in [
            ("a", EntryKind::Directory),
            ("a/b", EntryKind::File { size: 0, extents: None }),
            ("a/c", EntryKind::Symlink { target: b"/etc".into() }),
        ] {
            order.next(&path(p)).unwrap();
            order.is(&TreeEntry::new(path(p), kind));
        }
        let next = ["a/c/passwd", "a/c", "a/b", "b/c"].map(|p| order.next(&path(p)));
        assert_snapshot!(said(next), @"
        an entry lies in something that is not a directory (entry=a/c/passwd)
        an entry is out of order, or there twice (entry=a/c)
        an entry is out of order, or there twice (entry=a/b)
        fine
        ");
    }

    #[test]
    fn impossible_entries() {
        let file = |size, extents: &[(u64, u64)]| {
            let extents = extents.iter().map(|(offset, len)| Extent { offset: *offset, len: *len });
            EntryKind::File { size, extents: Some(extents.collect()) }
        };
        let link = |target: &str| EntryKind::HardLink { target: path(target) };
        let symlink = |target: &[u8]| EntryKind::Symlink { target: target.to_vec() };
        let many: Vec<_> = (0..=EntryKind::MAX_EXTENTS as u64).map(|n| (2 * n, 1)).collect();
        let kinds = [
            file(10, &[]),
            file(10, &[(0, 2), (2, 2), (8, 2)]),
            file(10, &[(0, 4), (3, 2)]),
            file(10, &[(0, 0)]),
            file(10, &[(8, 3)]),
            file(10, &[(u64::MAX, 2)]),
            file(u64::MAX, &[]),
            file(1 << 40, &many),
            link("e"),
            link("f"),
            link("g"),
            symlink(b"a"),
            symlink(b"a\0b"),
            symlink(b""),
            symlink(&[b'x'; 4097]),
        ];
        let entries = kinds.map(|kind| TreeEntry::new(path("f"), kind));
        let odd = |change: fn(&mut TreeEntry)| {
            let mut entry = TreeEntry::new(path("f"), EntryKind::Fifo);
            change(&mut entry);
            entry
        };
        let attributes = [
            odd(|e| e.mode = 0o10_000),
            odd(|e| e.xattrs = vec![(b"user.a\0b".to_vec(), Vec::new())]),
            odd(|e| e.xattrs = vec![(b"user.a".to_vec(), vec![0; TreeEntry::MAX_XATTRS])]),
        ];
        let all = entries.iter().chain(&attributes).map(impossible);
        assert_snapshot!(said(all), @"
        fine
        fine
        the stretches of a sparse file overlap or are empty (entry=f)
        the stretches of a sparse file overlap or are empty (entry=f)
        a stretch of a sparse file lies behind its end (entry=f)
        a stretch of a sparse file lies behind its end (entry=f)
        a file is larger than a file can be (entry=f)
        a sparse file has too many stretches (entry=f)
        fine
        a hard link names something that is not earlier (entry=f)
        a hard link names something that is not earlier (entry=f)
        fine
        a symbolic link has an impossible target (entry=f)
        a symbolic link has an impossible target (entry=f)
        a symbolic link has an impossible target (entry=f)
        a mode has more than twelve bits (entry=f)
        extended attributes are too large or have impossible names (entry=f)
        extended attributes are too large or have impossible names (entry=f)
        ");
    }

    #[test]
    fn findings_without_end() {
        let mut found = Found::default();
        for _ in 0..LISTED + 5 {
            found.add(&path("f"), &Error::corrupt("it is damaged"));
        }
        let findings = found.finish().0;
        assert_eq!(findings.len(), LISTED + 1);
        assert_snapshot!(format!("{:?}", findings.last().unwrap()), @r#"Finding { place: "", what: "5 more findings are not listed" }"#);
    }
}
