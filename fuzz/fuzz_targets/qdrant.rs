//! What a snapshot holds of a Qdrant: read to its end, whatever is in it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape, SourceName};
use snapkit_core::context::Context;
use snapkit_core::source::Source as _;
use snapkit_source_qdrant::{Qdrant, QdrantConfig};
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));

fuzz_target!(|input: (bool, bool, u16, &[u8])| {
    let (is_document, is_signed, piece, bytes) = input;
    let mut bytes = bytes.to_vec();
    if is_signed {
        // Nobody guesses sums: each block of the archive that can be a header is given its own.
        for header in bytes.chunks_exact_mut(512) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let name = if is_document { "a.collection.json" } else { "a.shard-0.snapshot" };
    let name = ArtifactName::new(name).expect("a name");
    let meta = ArtifactMeta::new(name, Shape::Bytes, "application/octet-stream", Chunking::Whole);
    let config = QdrantConfig::new("http://127.0.0.1:6333");
    let source = Qdrant::new(SourceName::new("a").expect("a name"), config).expect("a source");
    let pieces: Vec<_> =
        bytes.chunks(usize::from(piece) + 1).map(|piece| Ok(piece.to_vec().into())).collect();
    let body = Body::Bytes(Box::pin(futures_util::stream::iter(pieces)));
    RUNTIME
        .block_on(source.check(&Context::system(), &meta, body))
        .expect("nothing of it is an error");
});
