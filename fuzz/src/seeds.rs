//! `seeds DIR`: something valid for each target to begin with.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use snapkit_core::context::Timestamp;
use snapkit_core::entries::{StoredEntry, encode_entry};
use snapkit_core::frame::{Effort, FrameCodec};
use snapkit_core::id::ChunkId;
use snapkit_core::manifest::{ChunkList, ChunkRef};
use snapkit_core::records::{StoredRecord, StoredValue, encode_record};
use snapkit_core::tree::{EntryKind, EntryPath, Extent, TreeEntry};
use snapkit_fuzz::CREDENTIAL;

const SNAPSHOT: &str = r#"{"id":"20260115T143000Z-0123456789abcdef","stack":"shop","host":"h","set":"full","tags":{"a":"b"},"started":"2026-01-15T14:30:00Z","finished":"2026-01-15T14:30:01Z","cut_micros":0,"sources":[{"name":"app","kind":"sqlite","settings":{"path":"/a"},"cut":{"begin":"2026-01-15T14:30:00Z","end":"2026-01-15T14:30:00Z","consistency":"point"},"artifacts":[{"meta":{"name":"app.db","shape":"bytes","media_type":"x","chunking":{"kind":"pages","page_size":4096}},"content":{"shape":"bytes","content":{"size":1,"chunks":[{"id":"0000000000000000000000000000000000000000000000000000000000000000","len":1}]}}}],"facts":{"rows":{"standing":"pinned","value":1}},"verdict":"complete","problems":{"count":0,"listed":[]}}],"verdict":"complete","stats":{"entries":0,"files_read":0,"files_unchanged":0,"bytes":1,"bytes_read":1,"chunks_new":1,"bytes_new":1,"bytes_stored":1,"packs_adopted":0},"program":"x"}"#;

fn main() -> std::io::Result<()> {
    let dir = std::env::args().nth(1).expect("a directory");
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let dir = Path::new(&dir).join(target);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(name), bytes)
    };

    let mut tree = Vec::new();
    let chunks = vec![ChunkRef { id: ChunkId([3; 32]), len: 9 }];
    let list = ChunkList { size: 9, depth: 0, chunks };
    let extents = Some(vec![Extent { offset: 4096, len: 9 }]);
    for (path, kind, content) in [
        ("etc", EntryKind::Directory, ChunkList::default()),
        ("etc/a", EntryKind::File { size: 9, extents: None }, list.clone()),
        ("etc/b", EntryKind::File { size: 9000, extents }, list.clone()),
        ("etc/c", EntryKind::Symlink { target: b"a".to_vec() }, ChunkList::default()),
        (
            "etc/d",
            EntryKind::HardLink { target: EntryPath::new("etc/a").unwrap() },
            ChunkList::default(),
        ),
        ("etc/e", EntryKind::CharDevice { major: 1, minor: 3 }, ChunkList::default()),
    ] {
        let mut entry = TreeEntry::new(EntryPath::new(path).unwrap(), kind);
        (entry.mode, entry.mtime) = (0o644, Timestamp(1));
        entry.xattrs = vec![(b"user.x".to_vec(), b"y".to_vec())];
        encode_entry(&StoredEntry { entry, content }, &mut Vec::new(), &mut tree);
    }
    put("entries", "tree", &tree)?;

    let mut records = vec![1];
    for (place, value) in [
        ("a", StoredValue::Inline(Bytes::from_static(b"value"))),
        ("b", StoredValue::Content(list)),
    ] {
        let positions = vec![Bytes::from(place), Bytes::from_static(&[0, 0, 0, 1])];
        encode_record(&StoredRecord { positions, value }, &mut Vec::new(), &mut records);
    }
    put("records", "two", &records)?;

    // Functions, a database, a key that expires, and values: plain, a number, compressed, packed, a stream.
    let rdb: [&[u8]; 9] = [
        b"REDIS0010\xfa\x03key\x05value\xf5\x04code\xfe\x00\xfb\x05\x01",
        b"\xfc\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01a\x05hello",
        b"\x00\x01b\xc1\x39\x30",
        b"\x00\x01c\xc3\x06\x40\x64\x01xx\xe0\x59\x00",
        b"\x10\x01d\x0b\x0b\x00\x00\x00\x02\x00\x81f\x02\x01\x01\xff",
        b"\x12\x01e\x01\x02\x09\x09\x00\x00\x00\x01\x00\x07\x01\xff",
        b"\x0b\x01f\x0a\x02\0\0\0\x01\0\0\0\x05\x00",
        b"\x0a\x01g\x0f\x0f\0\0\0\x0c\0\0\0\x02\0\x00\xf3\x02\xf6\xff",
        b"\x13\x01h\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\0\0\0\0\0\0\0\0",
    ];
    put("rdb", "some", &rdb.concat())?;

    let codec = FrameCodec::new(true);
    let text = b"all work and no play ".repeat(50);
    put("frame", "text", &codec.encode(&text, Effort::Level(3)).unwrap())?;
    put("frame", "raw", &codec.encode(&[1, 2, 3], Effort::Level(3)).unwrap())?;

    // A trailer of one frame with one chunk, and of none.
    let mut trailer = Vec::new();
    for n in [1u32, 144, 20, 9, 1] {
        trailer.extend_from_slice(&n.to_le_bytes());
    }
    trailer.extend_from_slice(&[3; 32]);
    trailer.extend_from_slice(&9u32.to_le_bytes());
    put("pack", "trailer", &trailer)?;
    put("pack", "empty", &[0; 4])?;

    // A table of one pack, one frame, two entries.
    let mut table = Vec::new();
    for n in [1u32, 1, 2] {
        table.extend_from_slice(&n.to_le_bytes());
    }
    table.extend_from_slice(&[1; 32]);
    table.extend_from_slice(&1000u32.to_le_bytes());
    table.extend_from_slice(&[1, 0, 0, 0]);
    table.extend_from_slice(&[2; 32 + 32 + 48]);
    for n in [0u32, 0, 144, 100, 200] {
        table.extend_from_slice(&n.to_le_bytes());
    }
    for start in [0u32, 100] {
        table.extend_from_slice(&[start as u8; 32]);
        for n in [0, start, 100] {
            table.extend_from_slice(&n.to_le_bytes());
        }
    }
    put("segment", "table", &table)?;

    put("ledger", "snapshot", SNAPSHOT.as_bytes())?;
    let marker = r#"{"id":"20260115T143000Z-0123456789abcdef","state":"aborted","at":"2026-01-15T14:30:00Z","reason":"x"}"#;
    put("ledger", "marker", marker.as_bytes())?;

    let header =
        CREDENTIAL.writer.begin(&snapkit_fuzz::CX, snapkit_core::seal::ObjectType::DataPack, "");
    put("documents", "header", &header.unwrap().0.encode())?;
    put("documents", "age", b"age-encryption.org/v1\n-> X25519 x\ny\n--- z\n")?;
    put("documents", "config", b"{\"format\":\"1-draft\"}\nsignature 00\n")?;

    for text in [
        "20260115T143000Z-0123456789abcdef",
        "latest~1",
        "@2026-01-15T14:30Z",
        "packs/00/ff",
        "a\\xff",
    ] {
        put("names", &text.replace(['/', '\\'], "_"), text.as_bytes())?;
    }

    let mut archive = vec![0, 1, 255, 1];
    for (name, kind) in [
        ("segments/a/files/segment.json", b'0'),
        ("segments/a/files/version.info", b'0'),
        ("segments/b.tar", b'0'),
        ("wal/open-1", b'S'),
        ("replica_state.json", b'0'),
        ("shard_config.json", b'0'),
    ] {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..136].copy_from_slice(b"00000001000\0");
        header[156] = kind;
        archive.extend(header);
        archive.extend([0; 512]);
    }
    archive.extend([0; 1024]);
    put("qdrant", "archive", &archive)?;
    let document = r#"{"name":"a","version":"1.18.2","config":{"params":{}},"payload_schema":{"a":{"data_type":"keyword"}},"shards":[{"id":0,"key":"x"}],"aliases":["b"]}"#;
    put("qdrant", "document", &[&[1, 0, 255, 1], document.as_bytes()].concat())?;

    put("chunking", "some", &[4; 400])?;
    put("restore", "some", &(0..=255).collect::<Vec<u8>>())
}
