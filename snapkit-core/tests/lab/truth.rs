//! What is in a repository, read straight from its objects: to compare with what the engine says.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use snapkit_core::credential::Credential;
use snapkit_core::entries::{decode_entry, decode_node};
use snapkit_core::frame::FrameCodec;
use snapkit_core::id::{ChunkId, PackId};
use snapkit_core::manifest::{ChunkList, ContentRef, Snapshot};
use snapkit_core::pack::PackContents;
use snapkit_core::records::{StoredValue, decode_records};
use snapkit_core::tree::EntryKind;

use super::{Objects, packs_in};

/// Every chunk and every pack.
pub(crate) struct Truth {
    pub(crate) packs: BTreeMap<PackId, PackContents>,
    chunks: BTreeMap<ChunkId, Bytes>,
}

impl Truth {
    pub(crate) fn of(objects: &Objects, credential: &Credential) -> Self {
        let packs = packs_in(objects, &credential.writer);
        let (reader, codec) = (credential.reader().unwrap(), FrameCodec::new(false));
        let mut chunks = BTreeMap::new();
        for (id, pack) in &packs {
            let key = snapkit_core::pack::pack_key(*id).unwrap();
            let sealer = reader.open(&pack.header, "").unwrap();
            for (number, frame) in pack.frames.iter().enumerate() {
                let at = frame.offset as usize;
                let mut plain = objects[&key][at..at + frame.stored as usize].to_vec();
                sealer.open(number as u64, &mut plain).unwrap();
                let mut raw =
                    Bytes::from(codec.decode(&plain, frame.raw as usize).unwrap().into_owned());
                for chunk in &frame.chunks {
                    chunks.insert(chunk.id, raw.split_to(chunk.len as usize));
                }
            }
        }
        Self { packs, chunks }
    }

    /// The chunks that are in these packs and frames and nowhere else.
    pub(crate) fn only_in(&self, hit: impl Fn(PackId, u32, u32) -> bool) -> BTreeSet<ChunkId> {
        let (mut bad, mut good) = (BTreeSet::new(), BTreeSet::new());
        for (id, pack) in &self.packs {
            for frame in &pack.frames {
                let end = frame.offset + frame.stored;
                let set = if hit(*id, frame.offset, end) { &mut bad } else { &mut good };
                set.extend(frame.chunks.iter().map(|c| c.id));
            }
        }
        bad.difference(&good).copied().collect()
    }

    fn is_hit(&self, list: &ChunkList, bad: &BTreeSet<ChunkId>) -> bool {
        let mut level = list.chunks.clone();
        for depth in (0..=list.depth).rev() {
            if level.iter().any(|c| bad.contains(&c.id)) {
                return true;
            }
            if depth > 0 {
                level =
                    level.iter().flat_map(|c| decode_node(&self.chunks[&c.id]).unwrap()).collect();
            }
        }
        false
    }

    /// What a snapshot loses with these chunks: `source/artifact`, and in trees `source/artifact/path`.
    pub(crate) fn lost(&self, snapshot: &Snapshot, bad: &BTreeSet<ChunkId>) -> BTreeSet<String> {
        let mut lost = BTreeSet::new();
        for source in &snapshot.sources {
            for artifact in &source.artifacts {
                let place = format!("{}/{}", source.name, artifact.meta.name);
                match &artifact.content {
                    ContentRef::Bytes { content } => {
                        lost.extend(self.is_hit(content, bad).then_some(place));
                    }
                    ContentRef::Tree { entries, .. } => {
                        assert_eq!(entries.depth, 0, "a small tree");
                        // Files without their content: their other names are of no use either.
                        let mut empty = BTreeSet::new();
                        for chunk in &entries.chunks {
                            let mut rest = &self.chunks[&chunk.id][..];
                            while !rest.is_empty() {
                                let (entry, after) = decode_entry(rest).unwrap();
                                rest = after;
                                let path = entry.entry.path.display();
                                let unnamed = bad.contains(&chunk.id);
                                let linked = matches!(&entry.entry.kind,
                                    EntryKind::HardLink { target } if empty.contains(&target.display()));
                                if !unnamed && (linked || self.is_hit(&entry.content, bad)) {
                                    empty.insert(path.clone());
                                }
                                if unnamed || empty.contains(&path) {
                                    lost.insert(format!("{place}/{path}"));
                                }
                            }
                        }
                    }
                    ContentRef::Records { records, axes, .. } => {
                        assert_eq!(records.depth, 0, "few records");
                        let is_content_hit = records.chunks.iter().any(|chunk| {
                            let records = decode_records(&self.chunks[&chunk.id], axes.len());
                            records.unwrap().iter().any(|record| match &record.value {
                                StoredValue::Content(list) => self.is_hit(list, bad),
                                StoredValue::Inline(_) => false,
                            })
                        });
                        let is_hit = is_content_hit || self.is_hit(records, bad);
                        lost.extend(is_hit.then_some(place));
                    }
                    _ => unreachable!("nothing else is stored here"),
                }
            }
        }
        lost
    }
}
