//! Packs: as bytes, and with a trailer that somebody who has a key has sealed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapkit_core::id::PackId;
use snapkit_core::key::Key;
use snapkit_core::pack::{FOOTER_LEN, PackContents, parse_pack_key, read_contents};
use snapkit_core::seal::{Header, ObjectType, TRAILER_FRAME};
use snapkit_fuzz::{CREDENTIAL, CX};

fn inside(contents: &PackContents, len: usize) {
    let mut end = Header::LONG;
    for frame in &contents.frames {
        assert_eq!(frame.offset as usize, end);
        end += frame.stored as usize;
        assert!(end <= len - FOOTER_LEN);
        let raw: u64 = frame.chunks.iter().map(|c| u64::from(c.len)).sum();
        assert_eq!(raw, u64::from(frame.raw));
    }
}

fuzz_target!(|input: (u16, &[u8])| {
    let (room, bytes) = input;
    let keys = &CREDENTIAL.writer;
    let id = PackId([0; 32]);
    if let Ok(contents) = read_contents(id, bytes, keys) {
        inside(&contents, bytes.len());
    }
    let (header, _) = keys.begin(&CX, ObjectType::DataPack, "").unwrap();
    let mut trailer = bytes.to_vec();
    keys.shared(&header, "").seal(TRAILER_FRAME, &mut trailer).unwrap();
    let mut pack = header.encode();
    pack.resize(pack.len() + room as usize, 0);
    pack.extend_from_slice(&trailer);
    pack.extend_from_slice(&(trailer.len() as u32).to_le_bytes());
    pack.extend_from_slice(b"snapend\0");
    if let Ok(contents) = read_contents(id, &pack, keys) {
        inside(&contents, pack.len());
    }
    if let Ok(key) = Key::new(String::from_utf8_lossy(bytes)) {
        std::hint::black_box(parse_pack_key(&key));
    }
});
