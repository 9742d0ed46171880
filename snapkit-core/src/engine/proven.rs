//! Frames that a verify has read whole on behalf of a source's check: their packs need not be decoded twice.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::id::PackId;
use crate::index::Place;
use crate::manifest::ChunkRef;
use crate::pack::PackContents;
use crate::seal::Header;

/// Frames that are remembered: of 32 GiB, in 7 MiB.
const MOST: usize = 1 << 16;

/// Frames of which every chunk was compared with its name.
#[derive(Debug, Default)]
pub(crate) struct Proven(Mutex<HashMap<(PackId, u32), [u8; 32]>>);

impl Proven {
    fn lock(&self) -> MutexGuard<'_, HashMap<(PackId, u32), [u8; 32]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These chunks, each with where it begins, were read from what is stored there. They count if each begins
    /// where the one before it ends; that they are all of the frame is for [`Proven::has`] to see.
    pub(crate) fn add(&self, at: &Place, chunks: &[(ChunkRef, u32)]) {
        let mut end = 0_u32;
        for (chunk, start) in chunks {
            if *start != end {
                return;
            }
            end = end.saturating_add(chunk.len);
        }
        let place = (at.offset, at.stored, at.raw);
        let digest = digest(&at.header, place, chunks.iter().map(|(chunk, _)| chunk));
        let mut frames = self.lock();
        if frames.len() < MOST {
            frames.insert((at.pack, at.frame), digest);
        }
    }

    /// Whether a frame was read that is as the trailer of its pack says. Where the pack's own hash is right, its
    /// bytes are those that were read.
    pub(crate) fn has(&self, pack: &PackContents, number: u32) -> bool {
        let Some(frame) = pack.frames.get(number as usize) else { return false };
        let known = self.lock().get(&(pack.id, number)).copied();
        known.is_some_and(|known| {
            let place = (frame.offset, frame.stored, frame.raw);
            known == digest(&pack.header, place, frame.chunks.iter())
        })
    }
}

/// Of what a frame is: how it is opened, where it lies, and what is in it.
fn digest<'c>(
    header: &Header,
    (offset, stored, raw): (u32, u32, u32),
    chunks: impl Iterator<Item = &'c ChunkRef>,
) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header.encode());
    for number in [offset, stored, raw] {
        hasher.update(&number.to_le_bytes());
    }
    for chunk in chunks {
        hasher.update(&chunk.id.0).update(&chunk.len.to_le_bytes());
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ChunkId, RepositoryId};
    use crate::pack::PackedFrame;
    use crate::seal::ObjectType;

    #[test]
    fn a_frame_counts_if_all_of_it_was_read_where_its_pack_says_that_it_is() {
        let header = Header {
            object: ObjectType::Marker,
            epoch: 0,
            repository: RepositoryId([0; 16]),
            salt: [0; 32],
            sealed_key: None,
        };
        let chunk = |name, len| ChunkRef { id: ChunkId([name; 32]), len };
        let chunks = vec![chunk(1, 10), chunk(2, 20)];
        let frame = PackedFrame { offset: 100, stored: 40, raw: 30, chunks };
        let id = PackId([7; 32]);
        let pack = PackContents { id, size: 200, header: header.clone(), frames: vec![frame] };
        let at = |offset| Place {
            pack: id,
            header: header.clone(),
            frame: 0,
            offset,
            stored: 40,
            raw: 30,
            start: 0,
            len: 10,
        };
        let whole = [(chunk(1, 10), 0), (chunk(2, 20), 10)];
        for (place, chunks, counts) in [
            (at(100), &whole[..1], false),
            (at(100), &whole[1..], false),
            (at(100), &[(chunk(1, 10), 0), (chunk(1, 10), 0), (chunk(2, 10), 20)], false),
            (at(100), &[(chunk(1, 10), 0), (chunk(3, 20), 10)], false),
            (at(100), &[(chunk(1, 10), 0), (chunk(2, 20), 5)], false),
            (at(100), &[(chunk(1, 10), 1), (chunk(2, 20), 11)], false),
            (at(101), &whole, false),
            (at(100), &whole, true),
        ] {
            let proven = Proven::default();
            proven.add(&place, chunks);
            assert_eq!(proven.has(&pack, 0), counts, "{place:?} {chunks:?}");
            assert!(!proven.has(&pack, 1));
        }
        let proven = Proven::default();
        proven.add(&at(100), &whole);
        let other = Header { salt: [1; 32], ..header };
        assert!(!proven.has(&PackContents { header: other, ..pack }, 0));
    }
}
