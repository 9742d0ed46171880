//! A sink in memory, for tests, examples and `memory://`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::context::{Context, Timestamp};
use crate::error::{Error, Reason, Result};
use crate::key::Key;
use crate::sink::{MAX_OBJECT, ObjectEntry, ObjectStream, Put, PutMode, Sink, SinkInfo};

/// Objects in memory, gone with the value.
#[derive(Debug)]
pub struct MemorySink {
    info: SinkInfo,
    objects: Mutex<BTreeMap<Key, (Bytes, Timestamp)>>,
}

impl Default for MemorySink {
    fn default() -> Self {
        Self::new()
    }
}

impl MemorySink {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        let info = SinkInfo { location: "memory://".to_owned(), concurrency: 4 };
        Self { info, objects: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, (Bytes, Timestamp)>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything in it, for comparing.
    #[must_use]
    pub fn contents(&self) -> BTreeMap<Key, Bytes> {
        self.lock().iter().map(|(k, (b, _))| (k.clone(), b.clone())).collect()
    }
}

/// The part of an object that a range names; shared by sinks that hold whole objects.
pub fn slice(key: &Key, data: &Bytes, range: Option<Range<u64>>) -> Result<Bytes> {
    let Some(range) = range else { return Ok(data.clone()) };
    let bounds = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
    match bounds {
        Some((start, end)) if start <= end && end <= data.len() => Ok(data.slice(start..end)),
        _ => Err(beyond_end(key, &range, data.len() as u64)),
    }
}

/// The error for a range that an object does not have.
pub fn beyond_end(key: &Key, range: &Range<u64>, len: u64) -> Error {
    Error::corrupt("an object is shorter than it should be")
        .with("key", key)
        .with("length", len)
        .with("wanted", format!("{}..{}", range.start, range.end))
}

/// The error for an object above [`MAX_OBJECT`].
pub fn too_large(key: &Key, len: u64) -> Error {
    Error::new(Reason::LimitExceeded, format!("an object exceeds {MAX_OBJECT} bytes"))
        .with("key", key)
        .with("length", len)
}

#[async_trait]
impl Sink for MemorySink {
    fn info(&self) -> &SinkInfo {
        &self.info
    }

    async fn put(&self, cx: &Context, key: &Key, data: Bytes, mode: PutMode) -> Result<Put> {
        cx.check()?;
        if data.len() as u64 > MAX_OBJECT {
            return Err(too_large(key, data.len() as u64));
        }
        let mut objects = self.lock();
        if mode == PutMode::Create && objects.contains_key(key) {
            return Ok(Put::AlreadyThere);
        }
        objects.insert(key.clone(), (data, cx.now()));
        Ok(Put::Stored)
    }

    async fn get(&self, cx: &Context, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        cx.check()?;
        let data = self.lock().get(key).map(|(data, _)| data.clone());
        let data = data.ok_or_else(|| {
            Error::new(Reason::NotFound, "there is no such object").with("key", key)
        })?;
        slice(key, &data, range)
    }

    fn list(&self, _: &Context, prefix: Option<&Key>) -> ObjectStream {
        let inside = |key: &Key| {
            prefix.is_none_or(|p| {
                key.as_str().strip_prefix(p.as_str()).is_some_and(|rest| rest.starts_with('/'))
            })
        };
        let entries: Vec<_> = self
            .lock()
            .iter()
            .filter(|(key, _)| inside(key))
            .map(|(key, (data, at))| {
                Ok(ObjectEntry { key: key.clone(), size: data.len() as u64, modified: Some(*at) })
            })
            .collect();
        Box::pin(futures_util::stream::iter(entries))
    }

    async fn delete(&self, cx: &Context, key: &Key) -> Result<()> {
        cx.check()?;
        self.lock().remove(key);
        Ok(())
    }
}
