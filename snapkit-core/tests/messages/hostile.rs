//! What is said of snapshots whose writer had the key and meant harm: all seals hold, and what they say is
//! impossible.

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use insta::assert_snapshot;
use snapkit_core::artifact::{Body, Shape};
use snapkit_core::entries::{StoredEntry, encode_entry};
use snapkit_core::error::Error;
use snapkit_core::id::ChunkId;
use snapkit_core::manifest::{ArtifactRecord, ChunkList, ChunkRef, ContentRef, Snapshot};
use snapkit_core::tree::{EntryKind, EntryPath, TreeEntry};
use snapkit_testkit::double::{ScriptedArtifact, ScriptedSource};

use crate::decoders::without_numbers;
use crate::lab::{self, Lab};

/// What is said of an error, and with what a program ends.
fn line(e: &Error) -> String {
    format!("{} ({}, exit {})", without_numbers(&e.chain()), e.reason(), e.reason().row().exit)
}

/// A snapshot of a source whose artifact is what somebody says it is.
struct Lie {
    lab: Lab,
    snapshot: Snapshot,
}

impl Lie {
    /// With these pieces of content in the repository, each a chunk.
    async fn with(pieces: &[Bytes]) -> (Self, Vec<ChunkRef>) {
        let source =
            pieces.iter().enumerate().fold(ScriptedSource::new("app"), |source, (n, piece)| {
                source.with(ScriptedArtifact::bytes(&format!("piece-{n}"), piece.clone()))
            });
        let lab = Lab::new([source]).await;
        let snapshot = lab.create().await.unwrap().snapshot;
        let chunks = snapshot.sources[0].artifacts.iter().map(|artifact| {
            let ContentRef::Bytes { content } = &artifact.content else { panic!("{artifact:?}") };
            assert_eq!((content.depth, content.chunks.len()), (0, 1));
            content.chunks[0]
        });
        let chunks = chunks.collect();
        (Self { lab, snapshot }, chunks)
    }

    /// Say that an artifact has this content, and hear what each use of it says.
    async fn told(&mut self, what: &str, content: ContentRef) -> String {
        let mut artifact = self.snapshot.sources[0].artifacts[0].clone();
        if matches!(content, ContentRef::Tree { .. }) {
            artifact.meta.shape = Shape::Tree;
        }
        artifact.content = content;
        self.snapshot.sources[0].artifacts = vec![artifact.clone()];
        let document = serde_json::to_vec(&self.snapshot).unwrap();
        self.lab.commit(&self.snapshot, &document).await;
        let mut said = format!("=== {what}\n");
        let mut hear = |by: &str, text: String| {
            said += &format!("{by}: {text}\n");
        };
        let repository = self.lab.open().await.unwrap();
        let ledger = repository.ledger(&self.lab.cx).await.unwrap();
        if let Some((_, e)) = ledger.damaged.first() {
            hear("list", line(e));
            return said;
        }
        let read = self.read(&artifact).await;
        hear("read", read.err().map_or("nothing".to_owned(), |e| line(&e)));
        let restored =
            self.lab.restore_with(&self.snapshot, |options| options.overwrite = true).await;
        hear("restore", restored.err().map_or("nothing".to_owned(), |e| line(&e)));
        let report = self.lab.verify(true).await.unwrap();
        let damage: Vec<_> = report
            .damage
            .iter()
            .map(|d| without_numbers(&format!("{}: {}", d.object, d.what)))
            .collect();
        hear("verify", damage.join("; "));
        said
    }

    async fn read(&self, artifact: &ArtifactRecord) -> Result<(), Error> {
        let repository = self.lab.open().await?;
        match repository.open_artifact(&self.lab.cx, artifact).await? {
            Body::Bytes(bytes) => bytes.try_collect::<Vec<_>>().await.map(drop),
            _ => repository
                .entries(&self.lab.cx, artifact)
                .await?
                .try_collect::<Vec<_>>()
                .await
                .map(drop),
        }
    }
}

fn bytes(size: u64, depth: u8, chunks: Vec<ChunkRef>) -> ContentRef {
    ContentRef::Bytes { content: ChunkList { size, depth, chunks } }
}

fn tree(chunk: &ChunkRef) -> ContentRef {
    let entries = ChunkList { size: chunk.len.into(), depth: 0, chunks: vec![*chunk] };
    ContentRef::Tree { entries, count: 2, files: 2, bytes: 0 }
}

fn entries(entries: impl IntoIterator<Item = (&'static str, EntryKind)>) -> Bytes {
    let (mut scratch, mut out) = (Vec::new(), Vec::new());
    for (path, kind) in entries {
        let entry = TreeEntry::new(EntryPath::new(path).unwrap(), kind);
        encode_entry(&StoredEntry { entry, content: ChunkList::default() }, &mut scratch, &mut out);
    }
    out.into()
}

fn node(chunks: &[ChunkRef]) -> Vec<u8> {
    chunks.iter().flat_map(|c| [c.id.0.as_slice(), &c.len.to_le_bytes()].concat()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_lists() {
    let content = lab::noise(1000, 1);
    let (lie, chunks) = Lie::with(std::slice::from_ref(&content)).await;
    let chunk = chunks[0];
    drop(lie);
    // The same content has another name in another repository: the list must be made for it.
    let source =
        ScriptedSource::new("app").with(ScriptedArtifact::bytes("piece-0", content.clone()));
    let lab = Lab::new([source]).await;
    let first = lab.create().await.unwrap().snapshot;
    let ContentRef::Bytes { content: list } = &first.sources[0].artifacts[0].content else {
        panic!()
    };
    assert_ne!(chunk.id, list.chunks[0].id);
    let inner = node(&list.chunks);
    lab.sources[0].set(ScriptedArtifact::bytes("piece-0", inner));
    let snapshot = lab.create().await.unwrap().snapshot;
    let ContentRef::Bytes { content: outer } = &snapshot.sources[0].artifacts[0].content else {
        panic!()
    };
    let outer = outer.chunks.clone();
    let mut lie = Lie { lab, snapshot };
    let unknown = ChunkRef { id: ChunkId([7; 32]), len: 1000 };
    let mut all = String::new();
    for (what, content) in [
        ("shorter than it says", bytes(2000, 1, outer.clone())),
        ("longer than it says", bytes(500, 1, outer.clone())),
        ("its parts do not add up", bytes(999, 0, list.chunks.clone())),
        ("of no parts", bytes(1000, 1, vec![])),
        ("too deep", bytes(1000, 9, outer.clone())),
        ("deeper than it is", bytes(1000, 2, outer)),
        ("of something that is not there", bytes(1000, 0, vec![unknown])),
        ("deep, of something that is not there", bytes(1000, 3, vec![unknown])),
    ] {
        all += &lie.told(what, content).await;
    }
    assert_snapshot!(all, @"
    === shorter than it says
    read: a chunk list is shorter than its content (corrupt, exit 4)
    restore: a chunk list is shorter than its content (artifact=piece-N, source=app) (corrupt, exit 4)
    verify: index: a chunk list is shorter than its content
    === longer than it says
    read: a chunk list is longer than its content (corrupt, exit 4)
    restore: a chunk list is longer than its content (artifact=piece-N, source=app) (corrupt, exit 4)
    verify: index: a chunk list is longer than its content
    === its parts do not add up
    read: a chunk list is malformed: chunks do not add up to the content's length (corrupt, exit 4)
    restore: a chunk list is malformed: chunks do not add up to the content's length (artifact=piece-N, source=app) (corrupt, exit 4)
    verify: index: a chunk list is malformed: chunks do not add up to the content's length
    === of no parts
    read: a chunk list is malformed: a list is empty (corrupt, exit 4)
    restore: a chunk list is malformed: a list is empty (artifact=piece-N, source=app) (corrupt, exit 4)
    verify: index: a chunk list is malformed: a list is empty
    === too deep
    read: a chunk list is malformed: a list is too deep (corrupt, exit 4)
    restore: a chunk list is malformed: a list is too deep (artifact=piece-N, source=app) (corrupt, exit 4)
    verify: index: a chunk list is malformed: a list is too deep
    === deeper than it is
    read: a chunk list is malformed: a chunk's length is impossible (corrupt, exit 4)
    restore: a chunk list is malformed: a chunk's length is impossible (artifact=piece-N, source=app) (corrupt, exit 4)
    verify: index: a chunk list is malformed: a chunk's length is impossible
    === of something that is not there
    read: no pack holds this content any more (chunk=N) (object-missing, exit 4)
    restore: no pack holds this content any more (chunk=N) (artifact=piece-N, source=app) (object-missing, exit 4)
    verify: index: no index segment and no pack knows it
    === deep, of something that is not there
    read: no pack holds this content any more (chunk=N) (object-missing, exit 4)
    restore: no pack holds this content any more (chunk=N, artifact=piece-N, source=app) (object-missing, exit 4)
    verify: index: no pack holds this content any more (chunk=N)
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_trees() {
    let link = |target: &str| EntryKind::HardLink { target: EntryPath::new(target).unwrap() };
    let pieces = [
        entries([("b", EntryKind::Fifo), ("a", EntryKind::Fifo)]),
        entries([("a", EntryKind::Fifo), ("a", EntryKind::Fifo)]),
        entries([("a", EntryKind::Fifo), ("a/b", EntryKind::Fifo)]),
        entries([("a", link("b")), ("b", link("a"))]),
        Bytes::from_static(b"no entries at all"),
        // Where nothing changes there is nowhere to cut.
        vec![0; (2 << 20) + 1].into(),
    ];
    let (mut lie, chunks) = Lie::with(&pieces).await;
    let whats = ["out of order", "twice", "in a pipe", "in circles", "none", "too long"];
    let mut all = String::new();
    for (what, chunk) in whats.into_iter().zip(&chunks) {
        all += &lie.told(what, tree(chunk)).await;
    }
    let open = async |content, path: &str| {
        let mut artifact = lie.snapshot.sources[0].artifacts[0].clone();
        artifact.content = content;
        let repository = lie.lab.open().await.unwrap();
        let opened =
            repository.open_file(&lie.lab.cx, &artifact, &EntryPath::new(path).unwrap()).await;
        line(&opened.map(drop).unwrap_err())
    };
    for (chunk, path) in
        [(&chunks[3], "a"), (&chunks[2], "a"), (&chunks[2], "c"), (&chunks[4], "a")]
    {
        all += &format!("file {path}: {}\n", open(tree(chunk), path).await);
    }
    all += &format!("file of bytes: {}\n", open(bytes(17, 0, vec![chunks[4]]), "a").await);
    assert_snapshot!(all, @"
    === out of order
    read: a tree's entries are out of order (path=a) (corrupt, exit 4)
    restore: a tree's entries are out of order (path=a, artifact=piece-N, source=app) (corrupt, exit 4)
    verify: N-N:app/piece-N: the source says that it would not restore as it was
    === twice
    read: a tree's entries are out of order (path=a) (corrupt, exit 4)
    restore: a tree's entries are out of order (path=a, artifact=piece-N, source=app) (corrupt, exit 4)
    verify: N-N:app/piece-N: the source says that it would not restore as it was
    === in a pipe
    read: nothing
    restore: nothing
    verify: 
    === in circles
    read: nothing
    restore: nothing
    verify: 
    === none
    read: a tree entry is malformed: it ends early (corrupt, exit 4)
    restore: a tree entry is malformed: it ends early (artifact=piece-N, source=app) (corrupt, exit 4)
    verify: index: a tree entry is malformed: it ends early
    === too long
    read: a piece of a tree is too long (corrupt, exit 4)
    restore: a piece of a tree is too long (artifact=piece-N, source=app) (corrupt, exit 4)
    verify: index: a tree entry is malformed: it ends early
    file a: a is a link to a link (corrupt, exit 4)
    file a: a is no file (kind=p) (invalid-argument, exit 2)
    file c: there is no c in this artifact (not-found, exit 1)
    file a: a tree entry is malformed: it ends early (corrupt, exit 4)
    file of bytes: artifact piece-N is no tree (invalid-argument, exit 2)
    ");
}
