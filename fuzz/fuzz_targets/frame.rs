//! Frames: whatever they claim, no more comes out of them than the index says, and not more than a chunk.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use snapkit_core::chunk::MAX_CHUNK;
use snapkit_core::frame::{Effort, FrameCodec};

static CODEC: LazyLock<FrameCodec> = LazyLock::new(|| FrameCodec::new(true));

fuzz_target!(|input: (u32, &[u8])| {
    let (len, plain) = input;
    for len in [
        len as usize,
        plain.get(1..5).map_or(0, |b| u32::from_le_bytes(b.try_into().unwrap()) as usize),
    ] {
        if let Ok(raw) = CODEC.decode(plain, len) {
            assert!(raw.len() == len && len <= MAX_CHUNK);
        }
    }
    if !plain.is_empty() {
        for effort in [Effort::Level(3), Effort::Pages] {
            let encoded = CODEC.encode(plain, effort).unwrap();
            assert_eq!(CODEC.decode(&encoded, plain.len()).unwrap(), plain);
        }
    }
});
