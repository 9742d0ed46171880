//! The default manifest: the ledger kept in the sink itself.
//!
//! `snapshots/<id>` is a snapshot or a marker, created once. A snapshot is a long header,
//! `frame_count:u32`, for each frame `stored:u32 raw:u32`, the sealed frames (JSON, compressed) and a
//! signature block; a marker is a short header, one frame sealed under the index key, and a signature
//! block. `sessions/<id>/<n>` is like a marker; `n` is 0 at the start and counts heartbeats.
//! `notes/<id>/<time>-<random>` is a long header, one sealed frame (JSON) and a signature block.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Serialize, de::DeserializeOwned};

use crate::codec::{Reader, WriteExt, len32};
use crate::context::Context;
use crate::credential::Credential;
use crate::error::{Error, Reason, Result};
use crate::frame::{DEFAULT_LEVEL, Effort, FrameCodec, MAX_STORED_FRAME};
use crate::id::{SnapshotId, to_hex};
use crate::key::Key;
use crate::manifest::{
    End, Line, LineState, LineStream, Manifest, Marker, MarkerState, Note, NoteStream, Outcome,
    Session, Snapshot,
};
use crate::seal::{Header, ObjectType, TAG_LEN};
use crate::sign::check_signed;
use crate::sink::{ObjectEntry, Put, PutMode, Sink};

/// The longest snapshot document, before compression: 16 MiB.
pub const MAX_SNAPSHOT: usize = 16 << 20;

/// The longest object of a line: what compression cannot shorten, and what is around it.
const MAX_LINE: u64 = MAX_SNAPSHOT as u64 + AROUND;

/// What is around a document in its object is shorter than this.
pub(crate) const AROUND: u64 = 64 << 10;

/// Lines that are longer than this are read one at a time.
const LONG_LINE: u64 = 1 << 20;

/// The most values in one: what is read takes many times the memory of its text if that is `[0,0,0,…`.
pub const MAX_SNAPSHOT_VALUES: usize = 1 << 20;

/// Whether a document has more values than it may.
fn has_too_many_values(json: &[u8]) -> bool {
    let (mut values, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b',' | b'[' | b'{' if !in_text => values += 1,
            _ => {}
        }
    }
    values > MAX_SNAPSHOT_VALUES
}

/// The longest note: 64 KiB.
pub const MAX_NOTE: usize = 64 << 10;

/// Where notes are kept.
const NOTES: &str = "notes";

/// Raw length of the document's frames.
const DOCUMENT_FRAME: usize = 4 << 20;

/// The key of a line.
pub fn line_key(id: &SnapshotId) -> Result<Key> {
    Key::new(format!("snapshots/{id}"))
}

/// The key of a session's start (0) or of a heartbeat.
pub fn session_key(id: &SnapshotId, beat: u64) -> Result<Key> {
    Key::new(format!("sessions/{id}/{beat}"))
}

/// The ledger in the sink.
#[derive(Clone, Debug)]
pub struct StoredManifest {
    sink: Arc<dyn Sink>,
    credential: Arc<Credential>,
    certifier: [u8; 32],
    codec: Arc<FrameCodec>,
}

impl StoredManifest {
    /// The ledger of a repository, seen with a credential. `certifier` is the config's.
    #[must_use]
    pub fn new(sink: Arc<dyn Sink>, credential: Arc<Credential>, certifier: [u8; 32]) -> Self {
        Self { sink, credential, certifier, codec: Arc::new(FrameCodec::new(true)) }
    }

    fn encode_snapshot(&self, cx: &Context, snapshot: &Snapshot) -> Result<Bytes> {
        let key = line_key(&snapshot.id)?;
        let json = to_json(snapshot)?;
        if has_too_many_values(&json) {
            let what =
                format!("the snapshot's document has more than {MAX_SNAPSHOT_VALUES} values");
            return Err(Error::new(Reason::LimitExceeded, what));
        }
        if json.len() > MAX_SNAPSHOT {
            return Err(Error::new(
                Reason::LimitExceeded,
                format!(
                    "the snapshot's document has {} bytes, the limit is {MAX_SNAPSHOT}",
                    json.len()
                ),
            ));
        }
        let (header, sealer) =
            self.credential.writer.begin(cx, ObjectType::Snapshot, key.as_str())?;
        let mut table = Vec::new();
        let mut frames = Vec::new();
        for (number, raw) in json.chunks(DOCUMENT_FRAME).enumerate() {
            let mut frame = self.codec.encode(raw, Effort::Level(DEFAULT_LEVEL))?;
            sealer.seal(number as u64, &mut frame)?;
            table.put_u32(len32(frame.len())?);
            table.put_u32(len32(raw.len())?);
            frames.extend_from_slice(&frame);
        }
        let mut object = header.encode();
        object.put_u32(len32(table.len() / 8)?);
        object.extend_from_slice(&table);
        object.extend_from_slice(&frames);
        self.credential.signer.sign(key.as_str(), &mut object);
        Ok(object.into())
    }

    fn encode_shared(
        &self,
        cx: &Context,
        object: ObjectType,
        key: &Key,
        document: &impl Serialize,
    ) -> Result<Bytes> {
        let (header, sealer) = self.credential.writer.begin_shared(cx, object, key.as_str())?;
        let mut frame = to_json(document)?;
        // Nobody would read it again.
        if (frame.len() + TAG_LEN) as u64 > AROUND {
            let what =
                format!("what a marker says has {} bytes, the limit is {AROUND}", frame.len());
            return Err(Error::new(Reason::LimitExceeded, what));
        }
        sealer.seal(0, &mut frame)?;
        let mut object = header.encode();
        object.extend_from_slice(&frame);
        self.credential.signer.sign(key.as_str(), &mut object);
        Ok(object.into())
    }

    fn open_shared<T: DeserializeOwned>(
        &self,
        header: &Header,
        key: &Key,
        sealed: &[u8],
    ) -> Result<T> {
        let mut frame = sealed.to_vec();
        self.credential.writer.shared(header, key.as_str()).open(0, &mut frame)?;
        from_json(&frame)
    }

    /// Read a line's object.
    pub fn decode(&self, id: &SnapshotId, object: &[u8]) -> Result<Line> {
        let key = line_key(id)?;
        self.decode_line(id, &key, object).map_err(|e| e.with("key", &key))
    }

    fn decode_line(&self, id: &SnapshotId, key: &Key, object: &[u8]) -> Result<Line> {
        let repository = self.credential.writer.repository;
        // The header first: it tells another format from damage.
        let expected = [ObjectType::Snapshot, ObjectType::Marker];
        Header::decode(object, &expected, repository)?;
        let (body, signer, _) = check_signed(&self.certifier, repository, key.as_str(), object)?;
        let (header, rest) = Header::decode(body, &expected, repository)?;
        let state = if header.object == ObjectType::Marker {
            if rest.len() as u64 > AROUND {
                return Err(Error::corrupt("a marker is too long"));
            }
            let marker: Marker = self.open_shared(&header, key, rest)?;
            if marker.id != *id {
                return Err(Error::corrupt("a marker stands under another's name"));
            }
            LineState::Marker(marker)
        } else if let Some(reader) = &self.credential.reader {
            let opener = reader.open(&header, key.as_str())?;
            let mut json = Vec::new();
            let mut r = Reader::new(rest, "a snapshot");
            let count = r.u32()? as usize;
            let mut table = Reader::new(r.take(count.saturating_mul(8))?, "a snapshot");
            for number in 0..count as u64 {
                let (stored, raw) = (table.u32()? as usize, table.u32()? as usize);
                if stored > MAX_STORED_FRAME || json.len() + raw > MAX_SNAPSHOT {
                    return Err(r.broken("it is too long"));
                }
                let mut frame = r.take(stored)?.to_vec();
                opener.open(number, &mut frame)?;
                json.extend_from_slice(&self.codec.decode(&frame, raw)?);
            }
            r.end()?;
            if has_too_many_values(&json) {
                return Err(Error::corrupt("a snapshot has more in it than a snapshot may"));
            }
            let snapshot: Snapshot = from_json(&json)?;
            if snapshot.id != *id {
                return Err(Error::corrupt("a snapshot stands under another's name"));
            }
            LineState::Snapshot(Box::new(snapshot))
        } else {
            LineState::Sealed
        };
        Ok(Line { id: id.clone(), signer: Some(signer), state })
    }

    /// Read the note that stands under a key.
    pub fn decode_note(&self, key: &Key, object: &[u8]) -> Result<Note> {
        let repository = self.credential.writer.repository;
        Header::decode(object, &[ObjectType::Note], repository)?;
        let (body, ..) = check_signed(&self.certifier, repository, key.as_str(), object)?;
        let (header, sealed) = Header::decode(body, &[ObjectType::Note], repository)?;
        if sealed.len() > MAX_NOTE + TAG_LEN {
            return Err(Error::corrupt("a note is too long"));
        }
        let mut frame = sealed.to_vec();
        self.credential.reader()?.open(&header, key.as_str())?.open(0, &mut frame)?;
        let note: Note = from_json(&frame)?;
        let of = key.as_str().split('/').nth(1);
        if of != Some(note.id.as_str()) {
            return Err(Error::corrupt("a note stands under another snapshot's name"));
        }
        Ok(note)
    }

    /// Whether an end that could not be put, or met another, was put by an earlier attempt of ours.
    async fn was_ours(&self, cx: &Context, id: &SnapshotId, end: End<'_>) -> Result<Option<bool>> {
        let line = match self.get(cx, id).await {
            Ok(line) => line,
            Err(e) if e.reason() == Reason::NoSnapshot => return Ok(None),
            Err(e) => return Err(e),
        };
        // Session ids are random: nobody else signs a snapshot under ours with our credential.
        let ours = line.signer == Some(self.credential.id)
            && match (&line.state, end) {
                (LineState::Snapshot(there), End::Commit(snapshot)) => **there == *snapshot,
                (LineState::Sealed, End::Commit(_)) => true,
                (LineState::Marker(m), End::Abort(_)) => m.state == MarkerState::Aborted,
                _ => false,
            };
        Ok(Some(ours))
    }
}

fn to_json(document: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document)
        .map_err(|e| Error::internal("cannot encode a document").caused_by(e))
}

fn from_json<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|e| Error::corrupt("a document is malformed").caused_by(e))
}

/// A line that is not there is a snapshot that is not there.
fn no_line(id: &SnapshotId, e: Error) -> Error {
    match e.reason() {
        Reason::NotFound => Error::new(Reason::NoSnapshot, format!("there is no snapshot {id}")),
        _ => e,
    }
}

#[async_trait]
impl Manifest for StoredManifest {
    async fn begin(&self, cx: &Context, session: &Session) -> Result<()> {
        let key = session_key(&session.id, 0)?;
        let object = self.encode_shared(cx, ObjectType::Session, &key, session)?;
        match cx.run(self.sink.put(cx, &key, object, PutMode::Create)).await? {
            Put::Stored => Ok(()),
            Put::AlreadyThere => {
                Err(Error::new(Reason::AlreadyExists, "a session of this id exists")
                    .with("key", key))
            }
        }
    }

    async fn heartbeat(&self, cx: &Context, session: &SnapshotId, beat: u64) -> Result<()> {
        let key = session_key(session, beat)?;
        let object = self.encode_shared(cx, ObjectType::Session, &key, &beat)?;
        cx.run(self.sink.put(cx, &key, object, PutMode::Create)).await?;
        Ok(())
    }

    async fn end(&self, cx: &Context, session: &SnapshotId, end: End<'_>) -> Result<Outcome> {
        let key = line_key(session)?;
        let object = match end {
            End::Commit(snapshot) => {
                if snapshot.id != *session {
                    return Err(Error::internal(
                        "a snapshot was to be committed under another's id",
                    ));
                }
                self.encode_snapshot(cx, snapshot)?
            }
            End::Abort(reason) => {
                let marker = Marker {
                    id: session.clone(),
                    state: MarkerState::Aborted,
                    at: cx.now(),
                    reason: reason.to_owned(),
                };
                self.encode_shared(cx, ObjectType::Marker, &key, &marker)?
            }
        };
        let put = || cx.run(self.sink.put(cx, &key, object.clone(), PutMode::Create));
        match put().await {
            Ok(Put::Stored) => Ok(Outcome::Won),
            Ok(Put::AlreadyThere) => match self.was_ours(cx, session, end).await? {
                Some(true) => Ok(Outcome::Won),
                _ => Ok(Outcome::Lost),
            },
            // The request may have been carried out although its answer was lost.
            Err(e) => match self.was_ours(cx, session, end).await {
                // That it can be read does not say that it lasts; that it is there already, does.
                Ok(Some(true)) => match put().await {
                    Ok(_) => Ok(Outcome::Won),
                    Err(_) => Err(e),
                },
                Ok(Some(false)) => Ok(Outcome::Lost),
                _ => Err(e),
            },
        }
    }

    async fn get(&self, cx: &Context, id: &SnapshotId) -> Result<Line> {
        let key = line_key(id)?;
        let object = cx.run(self.sink.get(cx, &key, None)).await.map_err(|e| no_line(id, e))?;
        self.decode(id, &object)
    }

    async fn list(&self, cx: &Context) -> Result<LineStream> {
        let prefix = Key::new("snapshots")?;
        let concurrency = self.sink.info().concurrency;
        let listing = self.sink.list(cx, Some(&prefix)).try_filter_map(async |entry| {
            let id = entry.key.last_segment().parse::<SnapshotId>().ok();
            // What lies deeper is no line, whatever its name is.
            let id = id.filter(|id| line_key(id).is_ok_and(|key| key == entry.key));
            Ok(id.map(|id| (id, entry)))
        });
        let lines: Vec<(SnapshotId, ObjectEntry)> = cx.run(listing.try_collect()).await?;
        let (short, long): (Vec<_>, Vec<_>) =
            lines.into_iter().partition(|(_, entry)| entry.size <= LONG_LINE);
        let (this, decoder, cx) = (self.clone(), self.clone(), cx.clone());
        let read = move |(id, entry): (SnapshotId, ObjectEntry)| {
            let (this, cx) = (this.clone(), cx.clone());
            async move {
                let object = entry.get(&cx, &*this.sink, MAX_LINE).await;
                (id, object)
            }
        };
        let short = stream::iter(short).map(read.clone()).buffered(concurrency.max(1));
        let objects = short.chain(stream::iter(long).then(read));
        // One after the other: what is short may become long.
        let lines = objects.map(move |(id, object)| {
            let line = object.map_err(|e| no_line(&id, e));
            let line = line.and_then(|object| decoder.decode(&id, &object));
            (id, line)
        });
        Ok(lines.boxed())
    }

    async fn note(&self, cx: &Context, note: &Note) -> Result<()> {
        let (at, random) = (note.at.0.max(0), to_hex(&cx.random::<8>()?));
        let key = Key::new(format!("{NOTES}/{}/{at:016x}-{random}", note.id))?;
        let (header, sealer) = self.credential.writer.begin(cx, ObjectType::Note, key.as_str())?;
        let mut frame = to_json(note)?;
        if frame.len() > MAX_NOTE {
            let what = format!("a note has {} bytes, the limit is {MAX_NOTE}", frame.len());
            return Err(Error::new(Reason::LimitExceeded, what));
        }
        sealer.seal(0, &mut frame)?;
        let mut object = header.encode();
        object.extend_from_slice(&frame);
        self.credential.signer.sign(key.as_str(), &mut object);
        cx.run(self.sink.put(cx, &key, object.into(), PutMode::Create)).await?;
        Ok(())
    }

    async fn notes(&self, cx: &Context) -> Result<NoteStream> {
        if self.credential.reader.is_none() {
            return Ok(Box::pin(stream::empty()));
        }
        let concurrency = self.sink.info().concurrency;
        let listing = self.sink.list(cx, Some(&Key::new(NOTES)?));
        let entries: Vec<ObjectEntry> = cx.run(listing.try_collect()).await?;
        let (this, cx) = (self.clone(), cx.clone());
        let notes = stream::iter(entries)
            .map(move |entry| {
                let (this, cx) = (this.clone(), cx.clone());
                async move {
                    let read = async {
                        let object = entry.get(&cx, &*this.sink, MAX_NOTE as u64 + AROUND).await?;
                        this.decode_note(&entry.key, &object)
                    };
                    (entry.key.to_string(), read.await)
                }
            })
            .buffered(concurrency.max(1));
        Ok(Box::pin(notes))
    }

    async fn forget(&self, cx: &Context, id: &SnapshotId, reason: &str) -> Result<()> {
        let key = line_key(id)?;
        match self.get(cx, id).await {
            Ok(Line { state: LineState::Marker(_), .. }) => return Ok(()),
            Ok(_) => {}
            // A damaged snapshot can be forgotten too.
            Err(e) if e.kind() == crate::error::ErrorKind::Corrupt => {}
            Err(e) => return Err(e),
        }
        let marker = Marker {
            id: id.clone(),
            state: MarkerState::Forgotten,
            at: cx.now(),
            reason: reason.to_owned(),
        };
        let object = self.encode_shared(cx, ObjectType::Marker, &key, &marker)?;
        cx.run(self.sink.put(cx, &key, object, PutMode::Overwrite)).await?;
        Ok(())
    }
}
