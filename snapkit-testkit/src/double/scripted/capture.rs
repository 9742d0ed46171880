//! The capture of a scripted source.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, ByteStream};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::facts::Standing;
use snapkit_core::record::{Record, RecordReader, RecordValue};
use snapkit_core::source::{Capture, CaptureReport, Consistency, Cut};
use snapkit_core::tree::{
    Content, LoadedFile, OpenedFile, SMALL_FILE, TreeEntry, TreeItem, TreeReader,
};

use super::{
    Inner, ScriptedArtifact, ScriptedContent, ScriptedFile, ScriptedRecord, Stage, facts_of,
};

/// Entries in a batch of a tree: few, so that there are several batches.
const BATCH: usize = 16;

#[derive(Debug)]
pub(super) struct ScriptedCapture {
    inner: Arc<Inner>,
    session: u64,
    pinned: Option<Vec<ScriptedArtifact>>,
    named: usize,
    ended: bool,
}

impl ScriptedCapture {
    pub(super) fn new(inner: Arc<Inner>, session: u64) -> Self {
        Self { inner, session, pinned: None, named: 0, ended: false }
    }

    async fn call(&self, cx: &Context, stage: Stage, name: Option<&ArtifactName>) -> Result<()> {
        self.inner.call(cx, self.session, stage, name).await
    }

    fn pinned(&self) -> Result<&[ScriptedArtifact]> {
        self.pinned.as_deref().ok_or_else(|| Error::internal("called before a freeze succeeded"))
    }
}

impl Drop for ScriptedCapture {
    fn drop(&mut self) {
        if !self.ended {
            let at = std::time::Duration::ZERO;
            self.inner.log.push(&self.inner.name, self.session, Stage::Dropped, None, at);
        }
    }
}

#[async_trait]
impl Capture for ScriptedCapture {
    async fn freeze(&mut self, cx: &Context) -> Result<Cut> {
        if self.pinned.is_some() {
            return Err(Error::internal("frozen twice"));
        }
        let begin = cx.now();
        self.call(cx, Stage::Freeze, None).await?;
        let (live, position, consistency) = {
            let state = self.inner.state();
            let consistency = if state.fuzzy { Consistency::Fuzzy } else { Consistency::Point };
            (state.live.clone(), state.position.clone(), consistency)
        };
        self.pinned = Some(live);
        self.inner.log.note(cx, &self.inner.name, self.session, Stage::Frozen, None);
        Ok(Cut { begin, end: cx.now(), consistency, position })
    }

    async fn thaw(&mut self, cx: &Context) -> Result<()> {
        self.call(cx, Stage::Thaw, None).await
    }

    async fn next(&mut self, cx: &Context) -> Result<Option<ArtifactMeta>> {
        let meta = self.pinned()?.get(self.named).map(ScriptedArtifact::meta);
        self.call(cx, Stage::Next, meta.as_ref().map(|m| &m.name)).await?;
        self.named += usize::from(meta.is_some());
        Ok(meta)
    }

    async fn open(&self, cx: &Context, name: &ArtifactName) -> Result<Body> {
        let artifact = self.pinned()?[..self.named].iter().find(|a| a.name == *name);
        let artifact = artifact.cloned().ok_or_else(|| {
            Error::internal("opened an artifact that was not named").with("artifact", name)
        })?;
        self.call(cx, Stage::Open, Some(name)).await?;
        let reading = Reading { inner: Arc::clone(&self.inner), session: self.session, artifact };
        Ok(match reading.artifact.content.clone() {
            ScriptedContent::Bytes(bytes) => Body::Bytes(reading.stream(cx, &bytes)),
            ScriptedContent::Tree(files) => {
                Body::Tree(Box::new(ScriptedTree { reading, files, at: 0 }))
            }
            ScriptedContent::Records(axes, records) => {
                Body::Records(Box::new(ScriptedRecords { reading, axes, records, at: 0 }))
            }
        })
    }

    async fn finish(mut self: Box<Self>, cx: &Context) -> Result<CaptureReport> {
        self.ended = true;
        self.call(cx, Stage::Finish, None).await?;
        Ok(facts_of(self.pinned()?, Standing::Pinned).into())
    }

    async fn abort(mut self: Box<Self>, cx: &Context) -> Result<()> {
        self.ended = true;
        self.call(cx, Stage::Abort, None).await
    }
}

#[derive(Clone, Debug)]
struct Reading {
    inner: Arc<Inner>,
    session: u64,
    artifact: ScriptedArtifact,
}

impl Reading {
    /// The bytes in pieces, with the trouble of [`Stage::Read`] in their middle.
    fn stream(&self, cx: &Context, bytes: &Bytes) -> ByteStream {
        let (reading, cx) = (self.clone(), cx.clone());
        let middle = bytes.len() / 2;
        let first = pieces(bytes.slice(..middle), self.artifact.piece);
        let second = pieces(bytes.slice(middle..), self.artifact.piece);
        let trouble = stream::once(async move { reading.middle(&cx).await })
            .filter_map(|result| async { result.err().map(Err) });
        // After an error a stream ends.
        let all = first.chain(trouble).chain(second);
        all.scan(false, |failed, item| {
            let item = (!*failed).then_some(item);
            *failed = matches!(item, Some(Err(_)));
            async { item }
        })
        .boxed()
    }

    async fn middle(&self, cx: &Context) -> Result<()> {
        self.inner.call(cx, self.session, Stage::Read, Some(&self.artifact.name)).await
    }
}

fn pieces(bytes: Bytes, size: usize) -> impl stream::Stream<Item = Result<Bytes>> + Send {
    let count = bytes.len().div_ceil(size);
    stream::iter(
        (0..count).map(move |i| Ok(bytes.slice(i * size..bytes.len().min((i + 1) * size)))),
    )
}

#[derive(Debug)]
struct ScriptedTree {
    reading: Reading,
    files: Vec<ScriptedFile>,
    at: usize,
}

impl ScriptedTree {
    fn find(&self, entry: &TreeEntry) -> Result<&ScriptedFile> {
        let unreadable = self.reading.artifact.unreadable.get(&entry.path);
        if let Some(reason) = unreadable {
            return Err(Error::new(*reason, "scripted failure").with("path", &entry.path));
        }
        self.files
            .iter()
            .find(|f| f.entry.path == entry.path)
            .ok_or_else(|| Error::internal("asked for a file that is not in the tree"))
    }
}

#[async_trait]
impl TreeReader for ScriptedTree {
    async fn next_batch(&mut self, cx: &Context) -> Result<Option<Vec<TreeItem>>> {
        cx.check()?;
        let middle = self.files.len() / 2;
        let end = (self.at + BATCH).min(self.files.len());
        if (self.at..end).contains(&middle) {
            self.reading.middle(cx).await?;
        }
        let hidden = &self.reading.artifact.hidden;
        let item = |file: &ScriptedFile| match hidden.get(&file.entry.path) {
            Some(reason) => {
                let error = Error::new(*reason, "scripted failure").with("path", &file.entry.path);
                TreeItem::Problem(file.entry.path.clone(), error)
            }
            None if file.entry.kind.content_len() == 0 => {
                TreeItem::Entry(file.entry.clone(), Content::None)
            }
            None => TreeItem::Entry(file.entry.clone(), Content::Deferred),
        };
        let items: Vec<_> = self.files[self.at..end].iter().map(item).collect();
        self.at = end;
        Ok((!items.is_empty()).then_some(items))
    }

    async fn open(&self, cx: &Context, entry: &TreeEntry) -> Result<OpenedFile> {
        cx.check()?;
        let file = self.find(entry)?;
        let body = pieces(file.content.clone(), self.reading.artifact.piece).boxed();
        Ok(OpenedFile { entry: file.entry.clone(), body })
    }

    async fn load(&self, cx: &Context, entries: &[TreeEntry]) -> Vec<Result<LoadedFile>> {
        let load = |entry: &TreeEntry| {
            cx.check()?;
            let file = self.find(entry)?;
            if file.content.len() as u64 > SMALL_FILE {
                return Err(Error::new(Reason::LimitExceeded, "the file is not small")
                    .with("path", &entry.path));
            }
            Ok(LoadedFile { entry: file.entry.clone(), bytes: file.content.clone() })
        };
        entries.iter().map(load).collect()
    }
}

/// Records in batches of some; a value that is longer than a piece comes in parts.
#[derive(Debug)]
struct ScriptedRecords {
    reading: Reading,
    axes: Vec<String>,
    records: Vec<ScriptedRecord>,
    at: usize,
}

#[async_trait]
impl RecordReader for ScriptedRecords {
    fn axes(&self) -> &[String] {
        &self.axes
    }

    async fn next_batch(&mut self, cx: &Context) -> Result<Option<Vec<Record>>> {
        cx.check()?;
        let middle = self.records.len() / 2;
        let mut end = (self.at + BATCH).min(self.records.len());
        let piece = self.reading.artifact.piece;
        let is_long = |record: &ScriptedRecord| record.value.len() > piece;
        // What comes in parts comes alone.
        if let Some(long) = self.records[self.at..end].iter().position(is_long) {
            end = self.at + long.max(1);
        }
        if (self.at..end).contains(&middle) {
            self.reading.middle(cx).await?;
        }
        let record = |record: &ScriptedRecord| Record {
            positions: record.positions.clone(),
            value: match is_long(record) {
                false => RecordValue::Inline(record.value.clone()),
                true => RecordValue::Parts(pieces(record.value.clone(), piece).boxed()),
            },
        };
        let records: Vec<_> = self.records[self.at..end].iter().map(record).collect();
        self.at = end;
        Ok((!records.is_empty()).then_some(records))
    }
}
