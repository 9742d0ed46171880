//! Cutting: the chunks are the content, whatever it is and however it arrives.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use snapkit_core::artifact::Chunking;
use snapkit_core::chunk::{ChunkKey, Cutter, MAX_CHUNK};
use snapkit_fuzz::CREDENTIAL;

static KEY: LazyLock<ChunkKey> = LazyLock::new(|| ChunkKey::new(&CREDENTIAL.writer.id_key));

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    kind: u8,
    page: u8,
    size: Option<u64>,
    /// Zeros that follow each piece, so that chunks become long.
    gaps: [u16; 4],
    pieces: [&'a [u8]; 4],
}

fn cut(chunking: Chunking, size: Option<u64>, pieces: &[&[u8]]) -> Vec<bytes::Bytes> {
    let mut cutter = Cutter::new(KEY.clone(), chunking, size);
    let mut out = Vec::new();
    pieces.iter().for_each(|piece| cutter.push(piece, &mut out));
    cutter.finish(&mut out);
    out
}

fuzz_target!(|input: Input<'_>| {
    let chunking = match input.kind % 5 {
        0 => Chunking::Content,
        1 => Chunking::Pages { page_size: 1 << (9 + input.page % 8) },
        2 => Chunking::Whole,
        3 => Chunking::Records,
        _ => Chunking::Tar,
    };
    let mut whole = Vec::new();
    let mut ends = vec![0];
    for (piece, gap) in input.pieces.iter().zip(input.gaps) {
        whole.extend_from_slice(piece);
        whole.resize(whole.len() + usize::from(gap) * 16, 0);
        ends.push(whole.len());
    }
    let pieces: Vec<&[u8]> = ends.windows(2).map(|w| &whole[w[0]..w[1]]).collect();
    let chunks = cut(chunking, input.size, &pieces);
    assert_eq!(chunks.concat(), whole);
    assert!(chunks.iter().all(|c| !c.is_empty() && c.len() <= MAX_CHUNK));
    assert_eq!(chunks, cut(chunking, input.size, &[&whole]), "cuts depend on how it arrives");
});
