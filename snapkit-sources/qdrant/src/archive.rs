//! The archive that a snapshot of a shard is: a tar, in which every segment and the shard's own state have to be.
//!
//! A server that fails while it streams one ends it like a whole one; what it writes last is `replica_state.json`,
//! `shard_config.json` and the end of the archive. A stored one has a tar for each segment in it, which has no end of its own.
//! Seen in Qdrant 1.18.2.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use snapkit_core::artifact::ByteStream;
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::scratch::{Room, Scratch, ScratchWriter};
use snapkit_core::{Error, Reason, Result};

/// Bytes of a file that are read at once.
const READ: usize = 256 << 10;

/// A snapshot of a shard that is here.
#[derive(Clone, Debug)]
pub(crate) struct Archive {
    place: Place,
    /// In bytes.
    pub(crate) len: u64,
    /// In hexadecimal digits.
    pub(crate) sha256: String,
}

#[derive(Clone, Debug)]
enum Place {
    Scratch(Scratch),
    File(PathBuf),
}

impl Archive {
    /// Keep what passes by, and look at it. What is wrong with it, if anything is.
    pub(crate) async fn spool(
        cx: &Context,
        room: &Room,
        mut body: ByteStream,
    ) -> Result<(Self, Option<String>)> {
        let (inner, room) = (cx.clone(), room.clone());
        let mut state = cx
            .blocking(move || {
                Ok((ScratchWriter::begin(&inner, &room)?, Examiner::default(), Sha256::new()))
            })
            .await?;
        while let Some(piece) = cx.run(body.try_next()).await? {
            let (mut writer, mut examiner, mut hasher) = state;
            state = cx
                .blocking(move || {
                    examiner.take_in(&piece);
                    hasher.update(&piece);
                    writer.write(&piece)?;
                    Ok((writer, examiner, hasher))
                })
                .await?;
        }
        let (writer, examiner, hasher) = state;
        let scratch = cx.blocking(move || writer.finish()).await?;
        let this = Self { len: scratch.len(), place: Place::Scratch(scratch), sha256: hex(hasher) };
        Ok((this, examiner.finish()))
    }

    /// Write what passes by to a new file.
    pub(crate) async fn write(cx: &Context, path: PathBuf, mut body: ByteStream) -> Result<Self> {
        use std::io::Write as _;
        let place = path.clone();
        let what = move || format!("cannot write {}", place.display());
        let (place, tell) = (path.clone(), what.clone());
        let file = cx.blocking(move || File::create_new(&place).doing(&tell)).await?;
        let mut state = (file, Sha256::new(), 0_u64);
        while let Some(piece) = cx.run(body.try_next()).await? {
            let ((mut file, mut hasher, len), tell) = (state, what.clone());
            state = cx
                .blocking(move || {
                    file.write_all(&piece).doing(&tell)?;
                    hasher.update(&piece);
                    Ok((file, hasher, len + piece.len() as u64))
                })
                .await?;
        }
        let (file, hasher, len) = state;
        cx.blocking(move || file.sync_all().doing(&what)).await?;
        Ok(Self { place: Place::File(path), len, sha256: hex(hasher) })
    }

    /// Its content, from its beginning.
    pub(crate) fn stream(&self, cx: &Context) -> ByteStream {
        match &self.place {
            Place::Scratch(scratch) => scratch.stream(cx, 0, scratch.len()),
            Place::File(path) => from_file(cx, path.clone()),
        }
    }
}

/// A file, piece by piece.
pub(crate) fn from_file(cx: &Context, path: PathBuf) -> ByteStream {
    let cx = cx.clone();
    Box::pin(stream::try_unfold(None, move |open: Option<File>| {
        let (cx, path) = (cx.clone(), path.clone());
        async move {
            cx.blocking(move || {
                let what = || format!("cannot read {}", path.display());
                let open = open.map_or_else(|| File::open(&path), Ok).doing(what)?;
                let mut bytes = Vec::with_capacity(READ);
                (&open).take(READ as u64).read_to_end(&mut bytes).doing(what)?;
                Ok((!bytes.is_empty()).then(|| (Bytes::from(bytes), Some(open))))
            })
            .await
        }
    }))
}

/// An archive that is looked at while it passes by: what is not whole is no archive.
pub(crate) fn examined(body: ByteStream) -> ByteStream {
    Box::pin(stream::try_unfold(
        (body, Examiner::default()),
        |(mut body, mut examiner)| async move {
            match body.try_next().await? {
                Some(piece) => {
                    examiner.take_in(&piece);
                    Ok(Some((piece, (body, examiner))))
                }
                None => match examiner.finish() {
                    None => Ok(None),
                    Some(what) => Err(Error::new(Reason::SourceChanged, what)),
                },
            }
        },
    ))
}

/// In hexadecimal digits.
pub(crate) fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A block of a tar, in bytes.
const BLOCK: usize = 512;

/// The longest name that is taken from a header of its own, in bytes.
const MAX_NAME: u64 = 64 << 10;

/// More segments than that have a shard's files in no server, and longer names than that has none: they are UUIDs.
const MAX_SEGMENTS: usize = 100_000;
const MAX_ID: usize = 64;

/// Looks at an archive as it passes by, piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Examiner {
    outer: Tar,
    inner: Option<(String, Tar)>,
    segments: BTreeMap<String, Segment>,
    replica: bool,
    shard: bool,
    wrong: Option<String>,
}

#[derive(Debug, Default)]
struct Segment {
    state: bool,
    version: bool,
    has_files: bool,
}

/// What is said of names such as `../x`.
const OUT: &str = "a name in it leads out of it";

fn leads_out(name: &str) -> bool {
    name.starts_with('/') || name.split('/').any(|part| part == "..")
}

/// What comes out of a tar.
enum Event<'a> {
    /// An entry of this name begins.
    Entry(String),
    /// A part of its content.
    Content(&'a [u8]),
    /// It is over.
    End,
}

/// A tar, block by block: POSIX.1-1988 with GNU's long names and sparse files.
#[derive(Debug, Default)]
struct Tar {
    /// A header that has not come whole.
    header: Vec<u8>,
    /// What is left of the content of an entry, and of what fills its last block.
    content: u64,
    padding: u64,
    /// More headers of a sparse file follow before its content.
    sparse: bool,
    /// The content is the name of the next entry.
    naming: Option<Vec<u8>>,
    name: Option<String>,
    zeros: u32,
    wrong: Option<&'static str>,
}

fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        let tail = field.get(field.len().checked_sub(8)?..)?;
        return Some(u64::from_be_bytes(tail.try_into().ok()?) & (u64::MAX >> 1));
    }
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches(|c: char| c == '\0' || c == ' ');
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

impl Tar {
    fn is_over(&self) -> bool {
        self.zeros >= 2
    }

    /// Whether nothing is missing.
    fn is_whole(&self) -> bool {
        self.is_over() && self.wrong.is_none()
    }

    /// Whether it ends with an entry, or is over: the archive of a segment has no end of its own.
    fn is_between_entries(&self) -> bool {
        let rest = self.content + self.padding + self.header.len() as u64;
        self.is_whole()
            || (rest == 0 && !self.sparse && self.name.is_none() && self.wrong.is_none())
    }

    fn take_in(&mut self, mut bytes: &[u8], event: &mut dyn FnMut(Event<'_>)) {
        while !bytes.is_empty() && self.wrong.is_none() && !self.is_over() {
            let taken = |len: u64| usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
            if self.content > 0 && !self.sparse {
                let (part, rest) = bytes.split_at(taken(self.content));
                self.content -= part.len() as u64;
                match &mut self.naming {
                    Some(name) => name.extend_from_slice(part),
                    None => event(Event::Content(part)),
                }
                bytes = rest;
                self.end_of_content(event);
            } else if self.padding > 0 && !self.sparse {
                let (part, rest) = bytes.split_at(taken(self.padding));
                self.padding -= part.len() as u64;
                bytes = rest;
            } else {
                let missing = BLOCK - self.header.len();
                let (part, rest) = bytes.split_at(missing.min(bytes.len()));
                self.header.extend_from_slice(part);
                bytes = rest;
                if self.header.len() == BLOCK {
                    let header = std::mem::take(&mut self.header);
                    self.read_header(&header, event);
                }
            }
        }
    }

    fn end_of_content(&mut self, event: &mut dyn FnMut(Event<'_>)) {
        if self.content > 0 {
            return;
        }
        match self.naming.take() {
            Some(name) => self.name = Some(text(&name)),
            None => event(Event::End),
        }
    }

    fn read_header(&mut self, header: &[u8], event: &mut dyn FnMut(Event<'_>)) {
        if self.sparse {
            self.sparse = header[504] != 0;
            if !self.sparse && self.content == 0 {
                event(Event::End);
            }
            return;
        }
        if header.iter().all(|byte| *byte == 0) {
            self.zeros += 1;
            return;
        }
        if self.zeros > 0 {
            self.wrong = Some("something stands where it should end");
            return;
        }
        let sum: u64 = header
            .iter()
            .enumerate()
            .map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
            .sum();
        let (Some(stated), Some(size)) = (number(&header[148..156]), number(&header[124..136]))
        else {
            self.wrong = Some("a header is malformed");
            return;
        };
        if stated != sum || size > 1 << 60 {
            self.wrong = Some("a header is damaged");
            return;
        }
        self.content = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let kind = header[156];
        if matches!(kind, b'L' | b'K' | b'x' | b'g') {
            if size > MAX_NAME {
                self.wrong = Some("a name is too long");
                return;
            }
            // Only that of the entry itself is of interest; Qdrant writes no names in another form.
            self.naming = (kind == b'L').then(Vec::new);
            if self.naming.is_none() && size > 0 {
                self.padding += std::mem::take(&mut self.content);
            }
            return;
        }
        self.sparse = kind == b'S' && header[482] != 0;
        let name = self.name.take().unwrap_or_else(|| {
            let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
            let is_posix = &header[257..263] == b"ustar\0";
            if is_posix && !prefix.is_empty() { format!("{prefix}/{name}") } else { name }
        });
        event(Event::Entry(name));
        if size == 0 && !self.sparse {
            event(Event::End);
        }
    }
}

impl Examiner {
    /// Look at what comes next.
    pub(crate) fn take_in(&mut self, bytes: &[u8]) {
        let Self { outer, inner, segments, replica, shard, wrong } = self;
        outer.take_in(bytes, &mut |event| match event {
            Event::Entry(name) => {
                let name = name.trim_start_matches("./").to_owned();
                if leads_out(&name) {
                    wrong.get_or_insert_with(|| OUT.to_owned());
                }
                *replica |= name == "replica_state.json";
                *shard |= name == "shard_config.json";
                let Some(rest) = name.strip_prefix("segments/") else { return };
                let id = rest.split('/').next().unwrap_or(rest);
                if segments.len() > MAX_SEGMENTS || id.len() > MAX_ID {
                    let what = "it has too many segments, or one with too long a name";
                    wrong.get_or_insert_with(|| what.to_owned());
                    return;
                }
                match rest.split_once('/') {
                    Some((id, file)) => {
                        let segment = segments.entry(id.to_owned()).or_default();
                        segment.has_files = true;
                        segment.note(file.strip_prefix("files/").unwrap_or(file));
                    }
                    None => {
                        if let Some(id) = rest.strip_suffix(".tar") {
                            segments.entry(id.to_owned()).or_default();
                            *inner = Some((id.to_owned(), Tar::default()));
                        }
                    }
                }
            }
            Event::Content(bytes) => {
                let Some((id, tar)) = inner else { return };
                let segment = segments.entry(id.clone()).or_default();
                tar.take_in(bytes, &mut |event| {
                    if let Event::Entry(name) = event {
                        if leads_out(&name) {
                            wrong.get_or_insert_with(|| OUT.to_owned());
                        }
                        segment.has_files = true;
                        segment.note(name.strip_prefix("snapshot/files/").unwrap_or(&name));
                    }
                });
            }
            Event::End => {
                if let Some((id, tar)) = inner.take()
                    && !tar.is_between_entries()
                {
                    let what = tar.wrong.unwrap_or("it ends within a file");
                    wrong.get_or_insert_with(|| format!("segment {id}: {what}"));
                }
            }
        });
    }

    /// What is wrong with the archive, if anything is.
    pub(crate) fn finish(self) -> Option<String> {
        let lack = |what: &str| Some(format!("the snapshot of a shard is not whole: {what}"));
        if let Some(what) = self.outer.wrong {
            return lack(what);
        }
        if !self.outer.is_whole() {
            return lack("its end is missing");
        }
        if let Some(what) = &self.wrong {
            return lack(what);
        }
        if !self.replica || !self.shard {
            return lack(
                "it has no replica_state.json or no shard_config.json, which are written last",
            );
        }
        if self.segments.is_empty() {
            return lack("it has no segment");
        }
        if let Some((id, _)) = self.segments.iter().find(|(_, segment)| !segment.has_files) {
            return lack(&format!("segment {id} has no files"));
        }
        // Servers whose segments have other files than these are believed: the end of each archive has been seen.
        let is_known = |segment: &Segment| segment.state && segment.version;
        let lays_out_so = self.segments.values().any(is_known);
        match self.segments.iter().find(|(_, segment)| lays_out_so && !is_known(segment)) {
            Some((id, _)) => lack(&format!("segment {id} has no segment.json or no version.info")),
            None => None,
        }
    }
}

impl Segment {
    fn note(&mut self, file: &str) {
        self.state |= file == "segment.json";
        self.version |= file == "version.info";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAMED: &[u8] = include_bytes!("../tests/data/rep-shard-0.stream.tar");

    fn examined(bytes: &[u8], step: usize) -> Option<String> {
        let mut examiner = Examiner::default();
        bytes.chunks(step).for_each(|piece| examiner.take_in(piece));
        examiner.finish()
    }

    #[test]
    fn what_a_server_gave_is_whole() {
        for step in [1, 511, 512, 4096, STREAMED.len()] {
            assert_eq!(examined(STREAMED, step), None, "{step}");
        }
    }

    /// Wherever it is cut, what is left is not taken for all of it: but for zeros that stand behind the end.
    #[test]
    fn a_part_is_not_whole() {
        let zeros = STREAMED.iter().rev().take_while(|byte| **byte == 0).count();
        let end = STREAMED.len() - zeros;
        let whole = end.next_multiple_of(BLOCK) + 2 * BLOCK;
        for len in (0..whole).step_by(64).chain([whole - 1]) {
            assert!(examined(&STREAMED[..len], 4096).is_some(), "{len}");
        }
        assert_eq!(examined(&STREAMED[..whole], 4096), None);
    }

    /// Give a header the sum that belongs to it.
    fn sign(header: &mut [u8]) {
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    /// What a server stores of a shard: an archive in the archive for each segment. Made from a snapshot of a collection, in
    /// which every shard has a directory of its own.
    fn stored() -> Vec<u8> {
        let (mut whole, mut stored) =
            (&include_bytes!("../tests/data/docs.snapshot")[..], Vec::new());
        while whole[0] != 0 {
            let size = usize::try_from(number(&whole[124..136]).unwrap()).unwrap();
            let (mut header, mut len) =
                (whole[..BLOCK].to_vec(), BLOCK + size.next_multiple_of(BLOCK));
            if header[156] == b'S' && header[482] != 0 {
                len += BLOCK;
            }
            if header.starts_with(b"0/") {
                header.copy_within(2..100, 0);
                sign(&mut header);
                stored.extend(header);
                stored.extend(&whole[BLOCK..len]);
            }
            whole = &whole[len..];
        }
        stored.extend([0; 2 * BLOCK]);
        stored
    }

    /// The places of the parts of a sparse file stand before its content, however many blocks they take.
    #[test]
    fn files_with_many_holes() {
        let entry = |name: &str, kind: u8, size: usize, rest: &[u8]| {
            let mut header = vec![0; BLOCK];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
            header[156] = kind;
            header[482] = u8::from(kind == b'S');
            sign(&mut header);
            header.extend(rest);
            header
        };
        for size in [0, 1, 2 * BLOCK] {
            let mut extended = [[1; BLOCK], [2; BLOCK], [0; BLOCK]].concat();
            extended.resize(3 * BLOCK + size.next_multiple_of(BLOCK), 9);
            let mut archive = entry("segments/a/files/page_0.dat", b'S', size, &extended);
            for name in ["segments/a/files/segment.json", "segments/a/files/version.info"] {
                archive.extend(entry(name, b'0', 0, &[]));
            }
            for name in ["replica_state.json", "shard_config.json"] {
                archive.extend(entry(name, b'0', 2, &[b'x'; BLOCK]));
            }
            archive.extend([0; 2 * BLOCK]);
            for step in [1, 700, archive.len()] {
                assert_eq!(examined(&archive, step), None, "{size} {step}");
            }
            for len in (0..archive.len()).step_by(BLOCK) {
                assert!(examined(&archive[..len], 4096).is_some(), "{size} {len}");
            }
        }
    }

    #[test]
    fn a_segment_that_is_not_whole_is_seen_within_an_archive_that_is() {
        let stored = stored();
        for step in [1, 513, stored.len()] {
            assert_eq!(examined(&stored, step), None, "{step}");
        }
        for len in (0..stored.len() - BLOCK).step_by(BLOCK) {
            assert!(examined(&stored[..len], 4096).is_some(), "{len}");
        }
        // In the place of its last file the first segment has the beginning of another.
        let first = usize::try_from(number(&stored[124..136]).unwrap()).unwrap();
        let last = BLOCK + first - 2 * BLOCK;
        let mut endless = stored.clone();
        endless[last + 124..last + 136].copy_from_slice(b"00000001005\0");
        sign(&mut endless[last..last + BLOCK]);
        // And the description of what is in it is gone from the second.
        let at = BLOCK + first;
        let second = usize::try_from(number(&stored[at + 124..at + 136]).unwrap()).unwrap();
        let mut bare = stored.clone();
        let inner = &mut bare[at + BLOCK..at + BLOCK + second];
        let name = b"snapshot/files/segment.json";
        let named = inner.windows(name.len()).position(|window| window == name).unwrap();
        inner[named + name.len() - 1] = b'm';
        sign(&mut inner[named..named + BLOCK]);
        let all = [endless, bare].map(|bytes| examined(&bytes, 1000).unwrap_or_default());
        insta::assert_snapshot!(all.join("\n"), @"
        the snapshot of a shard is not whole: segment eeae13e1-8741-4688-b8f1-117a5b8f2d12: it ends within a file
        the snapshot of a shard is not whole: segment 186ca2b2-7fe6-4b32-8eed-009ceed79478 has no segment.json or no version.info
        ");
    }

    #[test]
    fn what_is_said() {
        let half = &STREAMED[..STREAMED.len() / 2];
        let mut damaged = STREAMED.to_vec();
        damaged[10] ^= 1;
        let mut ended = half[..half.len() / BLOCK * BLOCK].to_vec();
        ended.extend([0; 2 * BLOCK]);
        let all = [&b""[..], half, &damaged, &[0; 1024], b"no tar at all, and long enough"]
            .map(|bytes| examined(bytes, 1000).unwrap_or_default());
        insta::assert_snapshot!(all.join("\n"), @"
        the snapshot of a shard is not whole: its end is missing
        the snapshot of a shard is not whole: its end is missing
        the snapshot of a shard is not whole: a header is damaged
        the snapshot of a shard is not whole: it has no replica_state.json or no shard_config.json, which are written last
        the snapshot of a shard is not whole: its end is missing
        ");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000), step in 1_usize..700) {
            examined(&bytes, step);
        }

        #[test]
        fn damage_does_not_make_it_panic(at in 0..STREAMED.len(), byte in any::<u8>(), step in 1_usize..5000) {
            let mut bytes = STREAMED.to_vec();
            bytes[at] = byte;
            examined(&bytes, step);
        }
    }
}
