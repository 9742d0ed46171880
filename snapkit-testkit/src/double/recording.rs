//! A sink that keeps what was asked of it, so that a test can assert how much a task costs without a
//! timer.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::key::Key;
use snapkit_core::sink::{ObjectStream, Put, PutMode, Sink, SinkInfo};

/// What can be asked of a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// Store an object.
    Put,
    /// Read an object or a range of it.
    Get,
    /// List objects.
    List,
    /// Delete an object.
    Delete,
}

/// One thing that was asked of a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What was asked.
    pub verb: Verb,
    /// Of which object; of a listing the prefix, which may be none.
    pub key: Option<Key>,
    /// For a put, what it does to an object that exists.
    pub mode: Option<PutMode>,
    /// Bytes that were to be put, or were read; the objects that a listing yielded.
    pub size: u64,
    /// What a put did.
    pub put: Option<Put>,
    /// Why it failed, if it did. While it is under way, `cancelled`.
    pub error: Option<Reason>,
}

impl Operation {
    /// Whether it is of this verb and its key begins with `prefix`, which is any text: `""` matches
    /// all, `"packs/"` all packs.
    #[must_use]
    pub fn matches(&self, verb: Verb, prefix: &str) -> bool {
        self.verb == verb && self.key.as_ref().map_or("", Key::as_str).starts_with(prefix)
    }
}

type Operations = Arc<Mutex<Vec<Operation>>>;

/// Passes everything on, and keeps it.
#[derive(Debug)]
pub struct RecordingSink {
    inner: Arc<dyn Sink>,
    operations: Operations,
}

impl RecordingSink {
    /// Record what is asked of a sink.
    #[must_use]
    pub fn new(inner: Arc<dyn Sink>) -> Self {
        Self { inner, operations: Operations::default() }
    }

    fn lock(operations: &Operations) -> MutexGuard<'_, Vec<Operation>> {
        operations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything since the beginning or the last [`RecordingSink::clear`], in the order in which it
    /// was asked.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        Self::lock(&self.operations).clone()
    }

    /// Forget what was recorded. Nothing may be under way.
    pub fn clear(&self) {
        Self::lock(&self.operations).clear();
    }

    /// How many operations match, failed ones included; see [`Operation::matches`].
    #[must_use]
    pub fn count(&self, verb: Verb, prefix: &str) -> usize {
        Self::lock(&self.operations).iter().filter(|o| o.matches(verb, prefix)).count()
    }

    /// The bytes of all that match.
    #[must_use]
    pub fn bytes(&self, verb: Verb, prefix: &str) -> u64 {
        let operations = Self::lock(&self.operations);
        operations.iter().filter(|o| o.matches(verb, prefix)).map(|o| o.size).sum()
    }

    /// Panics, and shows them, unless exactly so many operations match.
    #[track_caller]
    pub fn assert_count(&self, verb: Verb, prefix: &str, expected: usize) {
        self.assert(verb, prefix, &format!("exactly {expected}"), |n| n == expected);
    }

    /// Panics, and shows them, if more operations match.
    #[track_caller]
    pub fn assert_at_most(&self, verb: Verb, prefix: &str, limit: usize) {
        self.assert(verb, prefix, &format!("at most {limit}"), |n| n <= limit);
    }

    /// Panics, and shows them, if any operation matches.
    #[track_caller]
    pub fn assert_none(&self, verb: Verb, prefix: &str) {
        self.assert_count(verb, prefix, 0);
    }

    #[track_caller]
    fn assert(&self, verb: Verb, prefix: &str, wanted: &str, holds: impl Fn(usize) -> bool) {
        let all = self.operations();
        let found: Vec<_> = all.iter().filter(|o| o.matches(verb, prefix)).collect();
        assert!(
            holds(found.len()),
            "expected {wanted} {verb:?} of {prefix:?}, found {}: {found:#?}",
            found.len()
        );
    }

    fn begin(&self, verb: Verb, key: Option<&Key>, size: usize, mode: Option<PutMode>) -> usize {
        let mut operations = Self::lock(&self.operations);
        operations.push(Operation {
            verb,
            key: key.cloned(),
            mode,
            size: size as u64,
            put: None,
            error: Some(Reason::Cancelled),
        });
        operations.len() - 1
    }

    fn end<T>(
        operations: &Operations,
        at: usize,
        result: &Result<T>,
        note: impl FnOnce(&mut Operation, &T),
    ) {
        if let Some(operation) = Self::lock(operations).get_mut(at) {
            operation.error = result.as_ref().err().map(Error::reason);
            if let Ok(value) = result {
                note(operation, value);
            }
        }
    }
}

#[async_trait]
impl Sink for RecordingSink {
    fn info(&self) -> &SinkInfo {
        self.inner.info()
    }

    async fn put(&self, cx: &Context, key: &Key, data: Bytes, mode: PutMode) -> Result<Put> {
        let at = self.begin(Verb::Put, Some(key), data.len(), Some(mode));
        let result = self.inner.put(cx, key, data, mode).await;
        Self::end(&self.operations, at, &result, |o, put| o.put = Some(*put));
        result
    }

    async fn get(&self, cx: &Context, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        let at = self.begin(Verb::Get, Some(key), 0, None);
        let result = self.inner.get(cx, key, range).await;
        Self::end(&self.operations, at, &result, |o, data| o.size = data.len() as u64);
        result
    }

    fn list(&self, cx: &Context, prefix: Option<&Key>) -> ObjectStream {
        let at = self.begin(Verb::List, prefix, 0, None);
        let operations = Arc::clone(&self.operations);
        // Listings are lazy: as recorded, one succeeds until an item is an error.
        Self::end(&operations, at, &Ok(()), |_, ()| {});
        self.inner
            .list(cx, prefix)
            .inspect(move |item| match item {
                Ok(_) => Self::end(&operations, at, item, |o, _| o.size += 1),
                Err(_) => Self::end(&operations, at, item, |_, _| {}),
            })
            .boxed()
    }

    async fn delete(&self, cx: &Context, key: &Key) -> Result<()> {
        let at = self.begin(Verb::Delete, Some(key), 0, None);
        let result = self.inner.delete(cx, key).await;
        Self::end(&self.operations, at, &result, |_, ()| {});
        result
    }
}
