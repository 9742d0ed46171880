use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::segment::{EntryRow, Table, TableBuilder, open};
use std::path::Path;

use super::*;
use crate::id::RepositoryId;
use crate::manifest::ChunkRef;
use crate::memory::MemorySink;
use crate::pack::PackedFrame;
use crate::seal::{ObjectType, SealedKey};
use crate::secret::Secret;
use crate::sink::PutMode;

fn keys() -> WriterKeys {
    WriterKeys {
        repository: RepositoryId([1; 16]),
        public: [9; 32],
        id_key: Secret::new([2; 32]),
        index_key: Secret::new([3; 32]),
    }
}

fn chunk(n: u64) -> ChunkRef {
    ChunkRef { id: ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes()), len: 100 }
}

fn pack(n: u8, chunks: std::ops::Range<u64>) -> PackContents {
    let sealed_key = Some(SealedKey { encapsulated: [n; 32], ciphertext: [n; 48] });
    let repository = RepositoryId([1; 16]);
    let header =
        Header { object: ObjectType::DataPack, epoch: 0, repository, salt: [n; 32], sealed_key };
    let frames = chunks
        .map(|c| PackedFrame {
            offset: 144,
            stored: 60,
            raw: 200,
            chunks: vec![chunk(c), chunk(c + 1_000_000)],
        })
        .collect();
    PackContents { id: PackId([n; 32]), size: 5000, header, frames }
}

fn table(packs: &[PackContents]) -> Table {
    let mut b = TableBuilder::default();
    packs.iter().for_each(|p| b.add(p).unwrap());
    b.finish()
}

async fn store(cx: &Context, sink: &Arc<dyn Sink>, packs: &[PackContents]) -> SegmentId {
    let (id, bytes) = table(packs).seal(cx, &keys()).unwrap();
    sink.put(cx, &segment_key(id).unwrap(), bytes, PutMode::Create).await.unwrap();
    id
}

async fn load(cx: &Context, sink: &Arc<dyn Sink>, dir: &Path) -> (Index, LoadReport) {
    Index::load(cx, sink, dir.to_owned(), keys(), HashSet::new()).await.unwrap()
}

#[tokio::test]
async fn segments_are_cached_merged_and_looked_up() {
    let cx = Context::system();
    let sink: Arc<dyn Sink> = Arc::new(MemorySink::new());
    let dir = tempfile::tempdir().unwrap();
    for n in 0..20u8 {
        store(&cx, &sink, &[pack(n, u64::from(n) * 1000..u64::from(n) * 1000 + 1000)]).await;
    }
    // A second home.
    store(&cx, &sink, &[pack(99, 5..6)]).await;
    for round in 0..2 {
        let (index, report) = load(&cx, &sink, dir.path()).await;
        assert!(report.damaged.is_empty());
        assert_eq!((index.len(), index.packs().len()), (40_002, 21), "round {round}");
        assert!(std::fs::read_dir(dir.path()).unwrap().count() <= MAX_RUNS + 1);
        for n in (0..20_000).step_by(37) {
            let homes = index.homes(&chunk(n).id).unwrap();
            assert_eq!(homes[0].pack, PackId([u8::try_from(n / 1000).unwrap(); 32]));
            let second = &index.homes(&chunk(n + 1_000_000).id).unwrap()[0];
            assert_eq!(
                (second.start, second.len, second.frame),
                (100, 100, u32::try_from(n % 1000).unwrap())
            );
            assert!(index.contains(&chunk(n).id, 100).unwrap());
            assert!(!index.contains(&chunk(n).id, 101).unwrap());
        }
        assert!(!index.contains(&chunk(20_000).id, 100).unwrap());
        assert_eq!(index.homes(&chunk(5).id).unwrap().len(), 2);
    }
    // A run that covers a segment that is gone is not used.
    let gone = store(&cx, &sink, &[pack(50, 50_000..50_001)]).await;
    assert!(load(&cx, &sink, dir.path()).await.0.contains(&chunk(50_000).id, 100).unwrap());
    sink.delete(&cx, &segment_key(gone).unwrap()).await.unwrap();
    let (index, _) = load(&cx, &sink, dir.path()).await;
    assert!(!index.contains(&chunk(50_000).id, 100).unwrap() && index.len() == 40_002);
}

#[tokio::test]
async fn doomed_packs_are_no_homes() {
    let cx = Context::system();
    let sink: Arc<dyn Sink> = Arc::new(MemorySink::new());
    let dir = tempfile::tempdir().unwrap();
    store(&cx, &sink, &[pack(1, 0..2), pack(2, 1..3)]).await;
    let doomed = HashSet::from([PackId([1; 32])]);
    let (index, _) = Index::load(&cx, &sink, dir.path().to_owned(), keys(), doomed).await.unwrap();
    let has = |n| index.contains(&chunk(n).id, 100).unwrap();
    assert_eq!([has(0), has(1), has(2)], [false, true, true]);
}

#[tokio::test]
async fn damage_in_sink_or_cache_is_found() {
    let cx = Context::system();
    let sink: Arc<dyn Sink> = Arc::new(MemorySink::new());
    let dir = tempfile::tempdir().unwrap();
    let id = store(&cx, &sink, &[pack(1, 0..300)]).await;
    drop(load(&cx, &sink, dir.path()).await);
    let file = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let good = std::fs::read(&file).unwrap();
    for i in (0..good.len()).step_by(61) {
        let mut bad = good.clone();
        bad[i] ^= 1;
        std::fs::write(&file, bad).unwrap();
        let (index, _) = load(&cx, &sink, dir.path()).await;
        assert_eq!(index.homes(&chunk(7).id).unwrap()[0].frame, 7, "byte {i}");
        for leftover in std::fs::read_dir(dir.path()).unwrap() {
            std::fs::remove_file(leftover.unwrap().path()).unwrap();
        }
    }
    let key = segment_key(id).unwrap();
    let object = sink.get(&cx, &key, None).await.unwrap();
    for i in (0..object.len()).step_by(97) {
        let mut bad = object.to_vec();
        bad[i] ^= 1;
        assert!(open(id, &bad, &keys()).is_err(), "byte {i}");
    }
    sink.put(&cx, &key, object.slice(..50), PutMode::Overwrite).await.unwrap();
    let (index, report) = load(&cx, &sink, dir.path()).await;
    assert!(index.is_empty() && report.damaged[0].0 == key);
}

proptest! {
    #[test]
    fn arbitrary_tables_are_refused_or_whole(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(t) = Table::decode(&bytes, RepositoryId([1; 16])) {
            prop_assert!(t.entries.is_sorted_by_key(|e: &EntryRow| e.id));
        }
    }
}
