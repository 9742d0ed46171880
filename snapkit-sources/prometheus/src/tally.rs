//! What is known of a set of blocks, as facts.

use snapkit_core::facts::{Facts, Standing};

use crate::block::{BlockMeta, FileKind};
use crate::examine::Examined;

/// What the digest of a block is called among facts: this and its ULID.
pub(crate) const BLOCK: &str = "block.";

/// What the answers to queries are called among facts.
pub(crate) const ANSWER: &str = "answer.";

/// The digest of all blocks.
const DIGEST: &str = "digest";

/// The most blocks of which each has a fact of its own. The others are in the sums and the digest of all.
const TOLD: usize = 1000;

/// The digest of a block, from those of its files in their order.
pub(crate) fn digest<'a>(files: impl IntoIterator<Item = (FileKind, &'a Examined)>) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("snapkit prometheus files");
    for (kind, examined) in files {
        let path = kind.path();
        hasher.update(&(path.len() as u64).to_le_bytes());
        hasher.update(path.as_bytes());
        hasher.update(&examined.bytes.to_le_bytes());
        hasher.update(examined.digest.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// Facts of blocks, each with its digest if that is known.
pub(crate) fn facts<'a>(
    blocks: impl IntoIterator<Item = (&'a BlockMeta, Option<String>)>,
    standing: Standing,
) -> Facts {
    let mut facts = Facts::new();
    let mut hasher = blake3::Hasher::new_derive_key("snapkit prometheus blocks");
    let mut all_known = true;
    let (mut count, mut samples, mut series, mut chunks) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut range: Option<(&BlockMeta, &BlockMeta)> = None;
    let mut told = Facts::new();
    for (meta, digest) in blocks {
        count += 1;
        samples = samples.saturating_add(meta.stats.num_samples);
        series = series.saturating_add(meta.stats.num_series);
        chunks = chunks.saturating_add(meta.stats.num_chunks);
        let (first, last) = range.unwrap_or((meta, meta));
        range = Some((
            if meta.min_time < first.min_time { meta } else { first },
            if meta.max_time > last.max_time { meta } else { last },
        ));
        hasher.update(meta.ulid.as_bytes());
        hasher.update(digest.as_deref().unwrap_or_default().as_bytes());
        all_known &= digest.is_some();
        let name = format!("{BLOCK}{}", meta.ulid);
        match digest {
            _ if told.0.len() == TOLD => {}
            Some(digest) => told.pin(name, digest),
            None => told.unknown(name, "its content was not read"),
        }
    }
    facts.pin("blocks", count);
    facts.pin("samples", samples);
    facts.pin("series", series);
    facts.pin("chunks", chunks);
    if let Some((first, last)) = range {
        facts.pin("from", first.begin().to_string());
        facts.pin("until", last.end().to_string());
    }
    match all_known {
        true => facts.pin(DIGEST, hasher.finalize().to_hex().to_string()),
        false => facts.unknown(DIGEST, "not all of the content was read"),
    }
    facts.0.extend(told.0);
    if standing != Standing::Pinned {
        let pinned = facts.0.values_mut().filter(|fact| fact.standing == Standing::Pinned);
        pinned.for_each(|fact| fact.standing = standing);
    }
    facts
}
