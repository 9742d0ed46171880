//! A target that takes what it can get: entries that are left out are noted, the rest is kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use snapkit_core::artifact::{ArtifactMeta, Body, SourceName};
use snapkit_core::context::{Context, Timestamp};
use snapkit_core::error::{Error, Result};
use snapkit_core::facts::Facts;
use snapkit_core::manifest::SourceRecord;
use snapkit_core::record::{Record, RecordValue};
use snapkit_core::registry::Registry;
use snapkit_core::source::{
    Capture, Findings, FreezeSpeed, Restore, RestoreReport, RestoreRequest, Source, SourceInfo,
};
use snapkit_core::tree::{Content, TreeItem};
use snapkit_testkit::double::{ScriptedContent, ScriptedFile, ScriptedRecord, ScriptedSource};

/// What was kept, by source and artifact.
pub(crate) type Kept = BTreeMap<String, BTreeMap<String, ScriptedContent>>;

type Shared = Arc<Mutex<Kept>>;

#[derive(Debug)]
struct Keeper {
    info: SourceInfo,
    kept: Shared,
}

/// A registry whose sources keep what they are given, and where it is kept.
pub(crate) fn keepers() -> (Registry, Shared) {
    let kept = Shared::default();
    let mut registry = Registry::new();
    let shared = Arc::clone(&kept);
    registry.register(ScriptedSource::KIND, move |name: SourceName, settings| {
        let info = SourceInfo {
            name,
            kind: ScriptedSource::KIND.to_owned(),
            settings,
            concurrency: 1,
            freeze: FreezeSpeed::Instant,
        };
        Ok(Arc::new(Keeper { info, kept: Arc::clone(&shared) }) as _)
    });
    (registry, kept)
}

#[async_trait]
impl Source for Keeper {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    async fn capture(&self, _: &Context, _: Option<&SourceRecord>) -> Result<Box<dyn Capture>> {
        Err(Error::internal("a keeper captures nothing"))
    }

    async fn restore(&self, _: &Context, _: &RestoreRequest) -> Result<Box<dyn Restore>> {
        let (name, kept) = (self.info.name.to_string(), Arc::clone(&self.kept));
        Ok(Box::new(Keeping { name, kept, staged: BTreeMap::new() }))
    }

    async fn facts(&self, _: &Context) -> Result<Facts> {
        Ok(Facts::new())
    }

    async fn check(&self, _: &Context, _: &ArtifactMeta, _: Body) -> Result<Findings> {
        Ok(Findings::default())
    }
}

struct Keeping {
    name: String,
    kept: Shared,
    staged: BTreeMap<String, ScriptedContent>,
}

#[async_trait]
impl Restore for Keeping {
    async fn put(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()> {
        let content = match body {
            Body::Bytes(stream) => {
                let pieces: Vec<_> = stream.try_collect().await?;
                ScriptedContent::Bytes(pieces.concat().into())
            }
            Body::Tree(mut tree) => {
                let mut files = Vec::new();
                while let Some(items) = tree.next_batch(cx).await? {
                    for item in items {
                        let TreeItem::Entry(entry, content) = item else { continue };
                        let content = match content {
                            Content::None | Content::Verified => Vec::new(),
                            Content::Inline(bytes) => bytes.to_vec(),
                            Content::Deferred => {
                                let opened = tree.open(cx, &entry).await?;
                                opened.body.try_collect::<Vec<_>>().await?.concat()
                            }
                        };
                        let mut file = ScriptedFile { entry, content: content.into() };
                        (file.entry.ctime, file.entry.inode) = (Timestamp(0), 0);
                        files.push(file);
                    }
                }
                ScriptedContent::Tree(files)
            }
            Body::Records(mut reader) => {
                let mut records = Vec::new();
                while let Some(batch) = reader.next_batch(cx).await? {
                    for Record { positions, value } in batch {
                        let value = match value {
                            RecordValue::Inline(value) => value,
                            RecordValue::Parts(parts) => {
                                parts.try_collect::<Vec<_>>().await?.concat().into()
                            }
                        };
                        records.push(ScriptedRecord { positions, value });
                    }
                }
                ScriptedContent::Records(reader.axes().to_vec(), records)
            }
        };
        self.staged.insert(meta.name.to_string(), content);
        Ok(())
    }

    async fn finish(self: Box<Self>, _: &Context) -> Result<RestoreReport> {
        self.kept.lock().unwrap().insert(self.name, self.staged);
        Ok(RestoreReport::default())
    }

    async fn abort(self: Box<Self>, _: &Context) -> Result<()> {
        Ok(())
    }
}
