//! What each decoder says of bytes that are not what was written. Samples are cut at every length and changed at every byte; numbers are left out of what is said.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use insta::assert_snapshot;
use snapkit_core::config::{ManifestPlace, RepositoryConfig};
use snapkit_core::context::{Context, Simulated, Timestamp};
use snapkit_core::credential::Credential;
use snapkit_core::entries::{StoredEntry, decode_entry, decode_node, encode_entry};
use snapkit_core::error::Error;
use snapkit_core::frame::{Effort, FrameCodec};
use snapkit_core::id::{ChunkId, PackId, SnapshotId, to_hex};
use snapkit_core::index::segment::Table;
use snapkit_core::ledger::{StoredManifest, line_key};
use snapkit_core::manifest::{ChunkList, ChunkRef};
use snapkit_core::memory::MemorySink;
use snapkit_core::pack::read_contents;
use snapkit_core::progress::Silent;
use snapkit_core::record::MAX_AXES;
use snapkit_core::records::{
    LONGEST_RECORD_CHUNK, MAX_VALUE_IN_CHUNK, StoredRecord, StoredValue, decode_records,
    encode_record,
};
use snapkit_core::seal::{FORMAT, Header, ObjectType, TRAILER_FRAME};
use snapkit_core::sign::check_signed;
use snapkit_core::tree::{EntryKind, EntryPath, Extent, TreeEntry};

pub(crate) fn context() -> Context {
    Context::new(Arc::new(Simulated::new(1, Timestamp(0))), Arc::new(Silent))
}

/// All that is said of a sample that is cut, changed and made longer.
fn told(sample: &[u8], decode: impl Fn(&[u8]) -> Option<Error>) -> String {
    assert!(decode(sample).is_none(), "the sample itself is refused");
    let mut said = BTreeSet::new();
    let mut hear = |bytes: &[u8]| {
        if let Some(e) = decode(bytes) {
            said.insert(without_numbers(&format!("{}: {}", e.reason(), e)));
        }
    };
    for at in 0..sample.len() {
        hear(&sample[..at]);
        for value in [0, 1, 2, 9, 0x20, 0x2e, 0x2f, 0x7f, 0x80, 0xff, sample[at] ^ 1] {
            let mut changed = sample.to_vec();
            changed[at] = value;
            hear(&changed);
        }
        // Four bytes are often one number.
        if let Some(end) = at.checked_add(4).filter(|end| *end <= sample.len()) {
            let mut changed = sample.to_vec();
            changed[at..end].fill(0xff);
            hear(&changed);
        }
    }
    hear(&[sample, &[0]].concat());
    said.into_iter().collect::<Vec<_>>().join("\n")
}

/// Figures, what stands in hexadecimal and what is quoted differ from sample to sample.
pub(crate) fn without_numbers(text: &str) -> String {
    let parts: Vec<_> = text.split('"').collect();
    let quotes = parts.iter().enumerate().map(|(i, part)| if i % 2 == 1 { "0" } else { part });
    let text = quotes.collect::<Vec<_>>().join("\"");
    let mut out = String::new();
    for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let end = word.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(word.len());
        let is_number = word[..end].bytes().any(|b| b.is_ascii_digit());
        out.push_str(if is_number { "N" } else { &word[..end] });
        out.push_str(&word[end..]);
    }
    out
}

fn entry(path: &str, kind: EntryKind, content: ChunkList) -> Vec<u8> {
    let mut entry = TreeEntry::new(EntryPath::new(path).unwrap(), kind);
    (entry.mode, entry.mtime) = (0o644, Timestamp(1));
    entry.xattrs = vec![(b"user.x".to_vec(), b"y".to_vec())];
    let mut out = Vec::new();
    encode_entry(&StoredEntry { entry, content }, &mut Vec::new(), &mut out);
    out
}

#[test]
fn of_entries() {
    let chunks = vec![ChunkRef { id: ChunkId([3; 32]), len: 9 }];
    let list = ChunkList { size: 9, depth: 0, chunks };
    let extents = Some(vec![Extent { offset: 4096, len: 9 }]);
    let samples = [
        entry("etc", EntryKind::Directory, ChunkList::default()),
        entry("etc/b", EntryKind::File { size: 9000, extents }, list),
        entry("etc/c", EntryKind::Symlink { target: b"a".to_vec() }, ChunkList::default()),
        entry(
            "etc/d",
            EntryKind::HardLink { target: EntryPath::new("etc/a").unwrap() },
            ChunkList::default(),
        ),
        entry("etc/e", EntryKind::CharDevice { major: 1, minor: 3 }, ChunkList::default()),
    ];
    let said: BTreeSet<String> = samples
        .iter()
        .flat_map(|sample| {
            let said = told(sample, |bytes| decode_entry(bytes).err());
            said.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    assert_snapshot!(said.into_iter().collect::<Vec<_>>().join("\n"), @"
    corrupt: a tree entry is malformed: a chunk's length is impossible
    corrupt: a tree entry is malformed: a link's target is N, the limit is N
    corrupt: a tree entry is malformed: a link's target is impossible
    corrupt: a tree entry is malformed: a list's depth is N, the limit is N
    corrupt: a tree entry is malformed: a list's length is N, the limit is N
    corrupt: a tree entry is malformed: a number is not in its shortest form
    corrupt: a tree entry is malformed: a path is impossible
    corrupt: a tree entry is malformed: a path's length is N, the limit is N
    corrupt: a tree entry is malformed: an attribute is N, the limit is N
    corrupt: a tree entry is malformed: an attribute's name is N, the limit is N
    corrupt: a tree entry is malformed: an entry's length is N, the limit is N
    corrupt: a tree entry is malformed: chunks do not add up to the content's length
    corrupt: a tree entry is malformed: it ends early
    corrupt: a tree entry is malformed: its attributes are impossible
    corrupt: a tree entry is malformed: its content has another length than the file
    corrupt: a tree entry is malformed: its data stretches are impossible
    corrupt: a tree entry is malformed: its mode has unknown bits
    corrupt: a tree entry is malformed: only directories lead to others
    corrupt: a tree entry is malformed: only files are sparse
    corrupt: a tree entry is malformed: something follows its end
    corrupt: a tree entry is malformed: the number of attributes is N, the limit is N
    corrupt: a tree entry is malformed: the number of data stretches is N, the limit is N
    corrupt: a tree entry is malformed: unknown flags
    corrupt: a tree entry is malformed: unknown kind
    ");
    let node = [[7; 32].as_slice(), &9_u32.to_le_bytes()].concat();
    assert_snapshot!(told(&node, |bytes| decode_node(bytes).err()), @"
    corrupt: a chunk list is malformed: a chunk's length is impossible
    corrupt: a chunk list is malformed: it ends early
    corrupt: a chunk list is malformed: it is empty
    ");
}

#[test]
fn of_records() {
    let list =
        ChunkList { size: 9, depth: 0, chunks: vec![ChunkRef { id: ChunkId([3; 32]), len: 9 }] };
    let mut chunk = Vec::new();
    for value in [StoredValue::Inline(Bytes::from_static(b"value")), StoredValue::Content(list)] {
        let positions = vec![Bytes::from_static(b"key"), Bytes::from_static(&[0, 1])];
        encode_record(&StoredRecord { positions, value }, &mut Vec::new(), &mut chunk);
    }
    let decode = |bytes: &[u8]| decode_records(&Bytes::copy_from_slice(bytes), 2).err();
    let mut said: BTreeSet<String> = told(&chunk, decode).lines().map(str::to_owned).collect();
    let long = StoredValue::Inline(vec![0; MAX_VALUE_IN_CHUNK + 1].into());
    let positions = vec![Bytes::new(), Bytes::new()];
    let mut chunk = Vec::new();
    encode_record(&StoredRecord { positions, value: long }, &mut Vec::new(), &mut chunk);
    said.extend(decode(&chunk).map(|e| without_numbers(&format!("{}: {e}", e.reason()))));
    for len in [0, LONGEST_RECORD_CHUNK + 1] {
        let e = decode(&vec![0; len]).unwrap();
        said.insert(without_numbers(&format!("{}: {e}", e.reason())));
    }
    for axes in [0, MAX_AXES + 1] {
        let e = decode_records(&Bytes::from_static(b"x"), axes).unwrap_err();
        said.insert(format!("{}: {e}", e.reason()));
    }
    assert_snapshot!(said.into_iter().collect::<Vec<_>>().join("\n"), @"
    corrupt: a chunk of records is empty
    corrupt: a record is malformed: a chunk's length is impossible
    corrupt: a record is malformed: a list's depth is N, the limit is N
    corrupt: a record is malformed: a list's length is N, the limit is N
    corrupt: a record is malformed: a number is not in its shortest form
    corrupt: a record is malformed: a place is N, the limit is N
    corrupt: a record is malformed: chunks do not add up to the content's length
    corrupt: a record is malformed: it ends early
    corrupt: a record is malformed: its chunk is too long
    corrupt: a record is malformed: its length is N, the limit is N
    corrupt: a record is malformed: its value is of an unknown kind
    corrupt: a record is malformed: its value is too long
    corrupt: a sequence of records has impossible axes
    ");
}

#[test]
fn of_frames() {
    let codec = FrameCodec::new(true);
    let text = b"all work and no play ".repeat(5);
    let frame = codec.encode(&text, Effort::Level(3)).unwrap();
    assert_snapshot!(told(&frame, |bytes| codec.decode(bytes, text.len()).err()), @"
    corrupt: a frame does not decompress
    corrupt: a frame is malformed: it ends early
    corrupt: a frame is malformed: its content is too short
    corrupt: a frame is malformed: its length is not what the index says
    corrupt: a frame is malformed: unknown compression method
    ");
    let frame = codec.encode(&[1, 2, 3], Effort::Level(3)).unwrap();
    assert_snapshot!(told(&frame, |bytes| codec.decode(bytes, 3).err()), @"
    corrupt: a frame does not decompress
    corrupt: a frame is malformed: it ends early
    corrupt: a frame is malformed: its content is too short
    corrupt: a frame is malformed: its length is not what the index says
    corrupt: a frame is malformed: unknown compression method
    ");
}

#[test]
fn of_packs() {
    let cx = context();
    let credential = Credential::create(&cx).unwrap();
    let keys = &credential.writer;
    let (header, _) = keys.begin(&cx, ObjectType::DataPack, "").unwrap();
    let pack = |trailer: &[u8]| {
        let mut trailer = trailer.to_vec();
        keys.shared(&header, "").seal(TRAILER_FRAME, &mut trailer).unwrap();
        let mut pack = header.encode();
        pack.resize(pack.len() + 20, 0);
        pack.extend_from_slice(&trailer);
        pack.extend_from_slice(&u32::try_from(trailer.len()).unwrap().to_le_bytes());
        pack.extend_from_slice(b"snapend\0");
        pack
    };
    let mut trailer = Vec::new();
    for n in [1u32, 144, 20, 9, 1] {
        trailer.extend_from_slice(&n.to_le_bytes());
    }
    trailer.extend_from_slice(&[3; 32]);
    trailer.extend_from_slice(&9u32.to_le_bytes());
    let read = |pack: &[u8]| read_contents(PackId([0; 32]), pack, keys).err();
    assert_snapshot!(told(&trailer, |bytes| read(&pack(bytes))), @"
    corrupt: a pack's trailer is malformed: a chunk's length is impossible
    corrupt: a pack's trailer is malformed: a frame is out of place
    corrupt: a pack's trailer is malformed: a frame's chunks do not fill it
    corrupt: a pack's trailer is malformed: frames or chunks exceed the pack
    corrupt: a pack's trailer is malformed: it ends early
    corrupt: a pack's trailer is malformed: something follows its end
    ");
    assert_snapshot!(told(&pack(&trailer), read), @"
    corrupt: a pack is too short
    corrupt: a pack's footer is malformed: its last bytes are not a pack's
    corrupt: a pack's footer is malformed: the trailer's length is impossible
    corrupt: an object header is malformed: a reserved byte is not zero
    corrupt: an object names unknown key epoch N
    corrupt: an object of another repository stands here (its_repository=N)
    corrupt: an object of another type stands here
    corrupt: sealed content is damaged or not where it belongs
    corrupt: this is not an object of snapkit
    format-mismatch: an object has format N, this program knows N (N-draft)
    ");
}

#[test]
fn of_index_segments() {
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
    for start in [0u8, 100] {
        table.extend_from_slice(&[start; 32]);
        for n in [0, start.into(), 100u32] {
            table.extend_from_slice(&n.to_le_bytes());
        }
    }
    let repository = Credential::create(&context()).unwrap().writer.repository;
    assert_snapshot!(told(&table, |bytes| Table::decode(bytes, repository).err()), @"
    corrupt: an index segment is malformed: a frame is impossible
    corrupt: an index segment is malformed: a pack is impossible
    corrupt: an index segment is malformed: an entry is impossible or out of order
    corrupt: an index segment is malformed: it ends early
    corrupt: an index segment is malformed: its counts do not fit its length
    corrupt: an index segment is malformed: unknown type of pack
    ");
}

#[test]
fn of_headers_and_signatures() {
    let cx = context();
    let credential = Credential::create(&cx).unwrap();
    let repository = credential.writer.repository;
    let (header, _) = credential.writer.begin(&cx, ObjectType::DataPack, "").unwrap();
    let accepted = [ObjectType::DataPack];
    let said = told(&header.encode(), |bytes| Header::decode(bytes, &accepted, repository).err());
    assert_snapshot!(said, @"
    corrupt: an object header is malformed: a reserved byte is not zero
    corrupt: an object header is malformed: it ends early
    corrupt: an object names unknown key epoch N
    corrupt: an object of another repository stands here (its_repository=N)
    corrupt: an object of another type stands here
    corrupt: this is not an object of snapkit
    format-mismatch: an object has format N, this program knows N (N-draft)
    ");
    let reader = credential.reader().unwrap();
    let open = |bytes: &[u8]| {
        let (header, _) = Header::decode(bytes, &accepted, repository).ok()?;
        reader.open(&header, "").err()
    };
    assert_snapshot!(told(&header.encode(), open), @"corrupt: an object key cannot be opened: the header is damaged");
    let certifier = credential.certifier().unwrap().verifying_key().to_bytes();
    let mut signed = b"what was said".to_vec();
    credential.signer.sign("sessions/x/0", &mut signed);
    let said =
        told(&signed, |bytes| check_signed(&certifier, repository, "sessions/x/0", bytes).err());
    assert_snapshot!(said, @"
    bad-signature: a signature does not hold
    bad-signature: a signature does not hold (credential=N)
    corrupt: a signature block is malformed: unknown role
    corrupt: a signed object is too short
    ");
}

/// The line of a snapshot, of which only who has a key can say something odd.
#[test]
fn of_snapshots() {
    let cx = context();
    let credential = Arc::new(Credential::create(&cx).unwrap());
    let certifier = credential.certifier().unwrap().verifying_key().to_bytes();
    let manifest =
        StoredManifest::new(Arc::new(MemorySink::new()), Arc::clone(&credential), certifier);
    let id: SnapshotId = "20260115T143000Z-0123456789abcdef".parse().unwrap();
    let key = line_key(&id).unwrap();
    let line = |plain: &[u8]| {
        let (header, sealer) =
            credential.writer.begin(&cx, ObjectType::Snapshot, key.as_str()).unwrap();
        let mut object = header.encode();
        let mut frame = FrameCodec::new(false).encode(plain, Effort::Level(1)).unwrap();
        object.extend_from_slice(&1u32.to_le_bytes());
        sealer.seal(0, &mut frame).unwrap();
        object.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_le_bytes());
        object.extend_from_slice(&u32::try_from(plain.len()).unwrap().to_le_bytes());
        object.extend_from_slice(&frame);
        credential.signer.sign(key.as_str(), &mut object);
        object
    };
    let text = r#"{"id":"20260115T143000Z-0123456789abcdef","stack":"s","host":"h","set":"full","tags":{},"started":"2026-01-15T14:30:00Z","finished":"2026-01-15T14:30:01Z","cut_micros":0,"sources":[],"verdict":"complete","stats":{"entries":0,"files_read":0,"files_unchanged":0,"bytes":1,"bytes_read":1,"chunks_new":1,"bytes_new":1,"bytes_stored":1,"packs_adopted":0},"program":"x"}"#;
    let decode = |object: &[u8]| manifest.decode(&id, object).err();
    assert!(decode(&line(text.as_bytes())).is_none());
    let mut said = BTreeSet::new();
    for (was, is) in [
        ("20260115T143000Z-0123456789abcdef", "20260115T143000Z-0123456789abcdee"),
        ("\"complete\"", "\"perfect\""),
        ("\"sources\":[]", "\"sources\":{}"),
        ("2026-01-15T14:30:00Z", "yesterday"),
        ("\"host\":\"h\",", ""),
        ("\"program\":\"x\"}", ""),
    ] {
        let e = decode(&line(text.replace(was, is).as_bytes()));
        let e = e.unwrap_or_else(|| panic!("{is} is accepted"));
        said.insert(without_numbers(&format!("{}: {}", e.reason(), e)));
    }
    assert_snapshot!(said.into_iter().collect::<Vec<_>>().join("\n"), @"
    corrupt: a document is malformed (key=snapshots/N-N)
    corrupt: a snapshot stands under another's name (key=snapshots/N-N)
    ");
    assert_snapshot!(told(&line(text.as_bytes()), decode), @"
    bad-signature: a signature does not hold (credential=N, key=snapshots/N-N)
    bad-signature: a signature does not hold (key=snapshots/N-N)
    corrupt: a signature block is malformed: unknown role (key=snapshots/N-N)
    corrupt: a signed object is too short (key=snapshots/N-N)
    corrupt: an object header is malformed: a reserved byte is not zero (key=snapshots/N-N)
    corrupt: an object header is malformed: it ends early (key=snapshots/N-N)
    corrupt: an object names unknown key epoch N (key=snapshots/N-N)
    corrupt: an object of another repository stands here (its_repository=N, key=snapshots/N-N)
    corrupt: an object of another type stands here (key=snapshots/N-N)
    corrupt: this is not an object of snapkit (key=snapshots/N-N)
    format-mismatch: an object has format N, this program knows N (N-draft) (key=snapshots/N-N)
    ");
}

#[test]
fn of_configs() {
    let cx = context();
    let credential = Credential::create(&cx).unwrap();
    let config = RepositoryConfig {
        format: FORMAT.to_owned(),
        repository: credential.writer.repository,
        public_key: to_hex(&credential.writer.public),
        certifier: to_hex(&credential.certifier().unwrap().verifying_key().to_bytes()),
        created: Timestamp(0),
        create_only: true,
        manifest: ManifestPlace::Stored,
    };
    let bytes = config.encode(credential.certifier().unwrap()).unwrap();
    assert_snapshot!(told(&bytes, |bytes| RepositoryConfig::decode(bytes).err()), @r#"
    corrupt: the repository's config holds no valid certifier key
    corrupt: the repository's config is damaged: a field is missing or malformed
    corrupt: the repository's config is damaged: it does not say what a config says
    corrupt: the repository's config is damaged: it has no signature
    corrupt: the repository's config is damaged: its signature does not hold
    format-mismatch: the repository has format "N", this program knows "N"
    "#);
    let long = RepositoryConfig::decode(&vec![b'x'; 1 << 20]).unwrap_err();
    assert_snapshot!(long, @"the repository's config is damaged: it is too long");
}
