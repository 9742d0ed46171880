//! The contract of a sink: a flat store of immutable objects.

use std::fmt::Debug;
use std::ops::Range;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::Stream;

use crate::context::{Context, Timestamp};
use crate::error::{Error, Result};
use crate::key::Key;

/// The largest object: 64 MiB. A sink refuses a larger one with `limit-exceeded`.
pub const MAX_OBJECT: u64 = 64 << 20;

/// Identity and limits of a sink. Free to ask for, no I/O.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkInfo {
    /// Where it is, for people, without secrets: a path or a URL.
    pub location: String,
    /// How many requests it takes at once. At least 1.
    pub concurrency: usize,
}

/// What a put does to an object that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PutMode {
    /// Leave it alone and report [`Put::AlreadyThere`]. Of several such puts exactly one wins.
    Create,
    /// Replace it in one step.
    Overwrite,
}

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Put {
    /// The object is stored and durable.
    Stored,
    /// An object was there already and is untouched.
    AlreadyThere,
}

/// One object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Its name.
    pub key: Key,
    /// Its length in bytes.
    pub size: u64,
    /// When the store says it was written, if it says so. By the store's clock.
    pub modified: Option<Timestamp>,
}

impl ObjectEntry {
    /// Read the object, unless it is longer than its kind may be: that is `corrupt`, and is not read.
    pub(crate) async fn get(&self, cx: &Context, sink: &dyn Sink, most: u64) -> Result<Bytes> {
        if self.size > most {
            let what = format!("it is too long: {} bytes, at most {most} are allowed", self.size);
            return Err(Error::corrupt(what).with("key", &self.key));
        }
        cx.run(sink.get(cx, &self.key, None)).await
    }
}

/// A listing on its way.
pub type ObjectStream = Pin<Box<dyn Stream<Item = Result<ObjectEntry>> + Send + 'static>>;

/// A flat store of immutable objects of bounded size.
#[async_trait]
pub trait Sink: Debug + Send + Sync + 'static {
    /// Identity and limits. No I/O.
    fn info(&self) -> &SinkInfo;

    /// Store an object under a key: all of it or nothing, readable and durable when this returns.
    /// After an error the object may or may not be there, but never a part of it.
    async fn put(&self, cx: &Context, key: &Key, data: Bytes, mode: PutMode) -> Result<Put>;

    /// Read an object, or a range of it. A missing object is `not-found`; a range that goes beyond the
    /// object's end is `corrupt`.
    async fn get(&self, cx: &Context, key: &Key, range: Option<Range<u64>>) -> Result<Bytes>;

    /// The objects whose keys begin with `prefix` and a `/` (all objects, if it is `None`), each
    /// once, in any order. An object put before the call is listed.
    fn list(&self, cx: &Context, prefix: Option<&Key>) -> ObjectStream;

    /// Delete an object. Deleting what is not there succeeds.
    async fn delete(&self, cx: &Context, key: &Key) -> Result<()>;
}
