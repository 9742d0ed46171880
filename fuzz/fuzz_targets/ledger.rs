//! Lines of the ledger: as bytes, and as whoever has a key would seal and sign them.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use snapkit_core::frame::{Effort, FrameCodec};
use snapkit_core::ledger::{StoredManifest, line_key};
use snapkit_core::manifest::LineState;
use snapkit_core::memory::MemorySink;
use snapkit_core::seal::ObjectType;
use snapkit_fuzz::{CREDENTIAL, CX};

fuzz_target!(|bytes: &[u8]| {
    let certifier = CREDENTIAL.certifier().unwrap().verifying_key().to_bytes();
    let manifest =
        StoredManifest::new(Arc::new(MemorySink::new()), Arc::clone(&CREDENTIAL), certifier);
    let id = "20260115T143000Z-0123456789abcdef".parse().unwrap();
    drop(manifest.decode(&id, bytes));

    let key = line_key(&id).unwrap();
    let (header, sealer) =
        CREDENTIAL.writer.begin(&CX, ObjectType::Snapshot, key.as_str()).unwrap();
    let mut object = header.encode();
    if bytes.is_empty() {
        return;
    }
    let mut frame = FrameCodec::new(false).encode(bytes, Effort::Level(1)).unwrap();
    sealer.seal(0, &mut frame).unwrap();
    object.extend_from_slice(&1u32.to_le_bytes());
    object.extend_from_slice(&(frame.len() as u32).to_le_bytes());
    object.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    object.extend_from_slice(&frame);
    CREDENTIAL.signer.sign(key.as_str(), &mut object);
    if let Ok(line) = manifest.decode(&id, &object) {
        let LineState::Snapshot(snapshot) = line.state else { panic!("it is no snapshot") };
        assert_eq!(snapshot.id, id);
        // What was read can be written and read again.
        let text = serde_json::to_vec(&snapshot).unwrap();
        let again: snapkit_core::manifest::Snapshot = serde_json::from_slice(&text).unwrap();
        assert_eq!(again, *snapshot);
    }

    let (header, sealer) =
        CREDENTIAL.writer.begin_shared(&CX, ObjectType::Marker, key.as_str()).unwrap();
    let mut marker = bytes.to_vec();
    sealer.seal(0, &mut marker).unwrap();
    let mut object = header.encode();
    object.extend_from_slice(&marker);
    CREDENTIAL.signer.sign(key.as_str(), &mut object);
    drop(manifest.decode(&id, &object));
});
