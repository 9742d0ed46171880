//! Object stores: one object per key below a prefix of a bucket.
//!
//! The store's own client signs and sends; this sink decides what an answer means, what is tried again,
//! and when it is enough. A create-only put is `If-None-Match: *`: of two writers one gets the key, and a
//! writer that lost the answer to its own put finds its own bytes there.

#[cfg(feature = "azure")]
mod azure;
mod fault;
#[cfg(feature = "gcs")]
mod gcs;
#[cfg(feature = "s3")]
mod profile;
#[cfg(feature = "s3")]
mod s3;
mod url;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutOptions,
    PutPayload,
};
use snapkit_core::context::{Context, Timestamp};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::key::Key;
use snapkit_core::sink::{MAX_OBJECT, ObjectEntry, ObjectStream, Put, PutMode, Sink, SinkInfo};
use tokio::sync::Semaphore;

use crate::settings::Settings;
use fault::{Fault, fault};

/// How often a request is tried, the first time included.
const ATTEMPTS: u32 = 10;

/// No request is tried again so long after its first attempt.
const PATIENCE: Duration = Duration::from_secs(180);

/// The first pause before another attempt; each is at most twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// How long a store may be silent while it is read from.
const SILENCE: Duration = Duration::from_secs(60);

/// A part of a bucket as a sink.
pub struct ObjectSink {
    store: Arc<dyn ObjectStore>,
    /// What keys are put below; empty for the whole bucket.
    prefix: Path,
    info: SinkInfo,
    /// One permit per request.
    requests: Semaphore,
}

impl ObjectSink {
    /// A bucket of Google Cloud Storage, named by a URL `gs://BUCKET/PREFIX`. Errors as for S3.
    #[cfg(feature = "gcs")]
    pub fn gcs(url: &str, settings: &Settings) -> Result<Self> {
        gcs::open(url, settings)
    }

    /// A container of Azure Blob Storage, named by a URL `az://CONTAINER/PREFIX`; the account is a setting.
    /// Errors as for S3.
    #[cfg(feature = "azure")]
    pub fn azure(url: &str, settings: &Settings) -> Result<Self> {
        azure::open(url, settings)
    }

    /// A bucket of S3, or of a store that speaks its language, named by a URL `s3://BUCKET/PREFIX`. Nothing
    /// is asked of the store yet.
    ///
    /// # Errors
    ///
    /// `invalid-argument` and `invalid-config` for what makes no sense, `unsupported` for ways to a
    /// credential that are not known, with the way round.
    #[cfg(feature = "s3")]
    pub fn s3(url: &str, settings: &Settings) -> Result<Self> {
        s3::open(url, settings)
    }

    /// Any store of the `object_store` crate. `location` says for people where it is, without secrets.
    #[must_use]
    pub fn new(
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        location: String,
        concurrency: usize,
    ) -> Self {
        let concurrency = concurrency.max(1);
        let info = SinkInfo { location, concurrency };
        Self { store, prefix, info, requests: Semaphore::new(concurrency) }
    }

    fn path(&self, key: &Key) -> Result<Path> {
        let path = if self.prefix.as_ref().is_empty() {
            Path::parse(key.as_str())
        } else {
            Path::parse(format!("{}/{key}", self.prefix))
        };
        path.map_err(|e| Error::internal("a key is no path").caused_by(e).with("key", key))
    }

    /// Do a request until there is an answer, and say how often that was tried before. `what` says what
    /// cannot be done without.
    async fn ask<T, F>(
        &self,
        cx: &Context,
        what: &str,
        key: &Key,
        request: impl Fn() -> F + Send + Sync,
    ) -> Result<(std::result::Result<T, Fault>, u32)>
    where
        F: Future<Output = object_store::Result<T>> + Send,
    {
        // Waiting for a turn is no attempt.
        let mut begun = None;
        for attempt in 0.. {
            let answer = cx
                .run(async {
                    let permit = self.requests.acquire().await;
                    begun.get_or_insert_with(|| cx.monotonic());
                    let answer = request().await;
                    drop(permit);
                    Ok(answer)
                })
                .await?;
            let fault = match answer {
                Ok(answer) => return Ok((Ok(answer), attempt)),
                Err(e) => fault(&e),
            };
            let since = begun.unwrap_or_else(|| cx.monotonic());
            let last = attempt + 1 >= ATTEMPTS || cx.monotonic().saturating_sub(since) > PATIENCE;
            match fault {
                Fault::Passing(e) if !last => {
                    tracing::info!(attempt, error = %e.chain(), "cannot {what}; trying again");
                    cx.sleep(pause(attempt, cx.random::<4>()?)).await?;
                }
                Fault::Passing(e) => {
                    let tried = format!("cannot {what}, tried {} times", attempt + 1);
                    return Err(self.tell(Error::new(e.reason(), tried).caused_by(e), Some(key)));
                }
                Fault::Final(e) => {
                    let e = Error::new(e.reason(), format!("cannot {what}")).caused_by(e);
                    return Err(self.tell(e, Some(key)));
                }
                other => return Ok((Err(other), attempt)),
            }
        }
        Err(Error::internal("a request was never tried"))
    }

    fn tell(&self, e: Error, key: Option<&Key>) -> Error {
        let e = e.with("location", &self.info.location);
        match key {
            Some(key) => e.with("key", key),
            None => e,
        }
    }

    fn not_found(&self, key: &Key) -> Error {
        self.tell(Error::new(Reason::NotFound, "there is no such object"), Some(key))
    }
}

/// An answer that only a create-only put may have.
fn misunderstood(what: &str) -> Error {
    let what = format!("the store answers {what} as if it were a put under a condition");
    Error::new(Reason::Unsupported, what)
        .with_hint("is there something between here and the store? it does not speak S3, GCS or Azure as it should")
}

/// Somewhere between nothing and all of the pause that is due, so that many do not come back at once.
fn pause(attempt: u32, random: [u8; 4]) -> Duration {
    let due = FIRST_PAUSE.saturating_mul(1 << attempt.min(16)).min(LONGEST_PAUSE);
    due.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX))
}

impl fmt::Debug for ObjectSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ObjectSink").field(&self.info.location).finish()
    }
}

#[async_trait]
impl Sink for ObjectSink {
    fn info(&self) -> &SinkInfo {
        &self.info
    }

    async fn put(&self, cx: &Context, key: &Key, data: Bytes, mode: PutMode) -> Result<Put> {
        if data.len() as u64 > MAX_OBJECT {
            return Err(Error::new(
                Reason::LimitExceeded,
                format!("an object has at most {MAX_OBJECT} bytes, not {}", data.len()),
            )
            .with("key", key));
        }
        let path = self.path(key)?;
        let mode = match mode {
            PutMode::Create => object_store::PutMode::Create,
            PutMode::Overwrite => object_store::PutMode::Overwrite,
        };
        // Whether an attempt may have stored it without our knowing.
        let doubt = Arc::new(AtomicBool::new(false));
        let create = mode == object_store::PutMode::Create;
        let request = || {
            let doubt = Arc::clone(&doubt);
            let (store, path) = (Arc::clone(&self.store), path.clone());
            let (payload, options) =
                (PutPayload::from_bytes(data.clone()), PutOptions::from(mode.clone()));
            async move {
                match store.put_opts(&path, payload, options).await {
                    // Two at once may both be told that they were in each other's way.
                    Err(object_store::Error::AlreadyExists { path: at, source }) => {
                        match store.head(&path).await {
                            Err(object_store::Error::NotFound { .. }) => {
                                Err(object_store::Error::Generic { store: fault::CONFLICT, source })
                            }
                            Err(e) => Err(e),
                            Ok(_) => Err(object_store::Error::AlreadyExists { path: at, source }),
                        }
                    }
                    // A store that says early that the object is there closes the connection on the rest
                    // of it, and the answer may be lost again and again.
                    Err(e) if create && matches!(fault(&e), Fault::Passing(_)) => {
                        doubt.store(true, Ordering::Relaxed);
                        match store.head(&path).await {
                            Ok(_) => Err(object_store::Error::AlreadyExists {
                                path: path.to_string(),
                                source: Box::new(e),
                            }),
                            Err(_) => Err(e),
                        }
                    }
                    other => other,
                }
            }
        };
        let (answer, _) = self.ask(cx, "store the object", key, request).await?;
        match answer {
            Ok(_) => Ok(Put::Stored),
            Err(Fault::Exists) => {
                // The answer to an earlier attempt may have been lost, and the object be our own.
                let ours = doubt.load(Ordering::Relaxed) && self.get(cx, key, None).await? == data;
                Ok(if ours { Put::Stored } else { Put::AlreadyThere })
            }
            Err(_) => Err(self.not_found(key)),
        }
    }

    async fn get(&self, cx: &Context, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        let path = self.path(key)?;
        if range.as_ref().is_some_and(|r| r.start > r.end) {
            return Err(Error::invalid("the range ends before it begins").with("key", key));
        }
        let fits = |r: &Range<u64>| r.start < r.end && r.end - r.start <= MAX_OBJECT;
        let wanted = range.clone().filter(fits);
        // Of nothing, or of too much, only the length is asked for.
        let only_length = range.is_some() && wanted.is_none();
        let request = || {
            let options = GetOptions {
                range: wanted.clone().map(GetRange::Bounded),
                head: only_length,
                ..GetOptions::default()
            };
            let (store, path) = (Arc::clone(&self.store), path.clone());
            let whole = wanted.is_none();
            async move {
                let got = in_time(store.get_opts(&path, options)).await?;
                let size = got.meta.size;
                if only_length || (whole && size > MAX_OBJECT) {
                    return Ok((size, Bytes::new()));
                }
                Ok((size, body(got, &path).await?))
            }
        };
        let (answer, _) = self.ask(cx, "read the object", key, request).await?;
        let (size, bytes) = match answer {
            Ok(got) => got,
            Err(Fault::Missing) => return Err(self.not_found(key)),
            Err(Fault::Short) => {
                let e = Error::corrupt("the object is shorter than what is asked of it");
                return Err(self.tell(e, Some(key)));
            }
            Err(Fault::Exists | Fault::Passing(_) | Fault::Final(_)) => {
                return Err(self.tell(misunderstood("a read"), Some(key)));
            }
        };
        let (end, len) = match &range {
            Some(range) => (range.end, range.end - range.start),
            None if size > MAX_OBJECT => {
                let e = Error::corrupt("the object is larger than any that is written");
                return Err(self.tell(e, Some(key)));
            }
            None => (size, size),
        };
        if end <= size && len > MAX_OBJECT {
            let what = format!("at most {MAX_OBJECT} bytes are read at once");
            return Err(self.tell(Error::new(Reason::LimitExceeded, what), Some(key)));
        }
        if end > size || bytes.len() as u64 != len {
            let e = Error::corrupt(format!("the object has only {size} bytes"));
            return Err(self.tell(e, Some(key)));
        }
        Ok(bytes)
    }

    fn list(&self, cx: &Context, prefix: Option<&Key>) -> ObjectStream {
        let below = match prefix.map(|p| self.path(p)).transpose() {
            Ok(Some(path)) => path,
            Ok(None) => self.prefix.clone(),
            Err(e) => return futures_util::stream::once(async { Err(e) }).boxed(),
        };
        let (store, cx, root) = (Arc::clone(&self.store), cx.clone(), self.prefix.clone());
        let location = self.info.location.clone();
        let listing = Listing {
            begin: Box::new(move |after: Option<&Path>| {
                let below = (!below.as_ref().is_empty()).then_some(&below);
                match after {
                    None => store.list(below),
                    Some(after) => store.list_with_offset(below, after),
                }
            }),
            open: None,
            after: None,
            failures: 0,
        };
        futures_util::stream::try_unfold(listing, move |mut listing| {
            let cx = cx.clone();
            let location = location.clone();
            async move {
                let next = listing.next(&cx).await.map_err(|e| e.with("location", &location))?;
                Ok(next.map(|meta| (meta, listing)))
            }
        })
        .try_filter_map(move |meta| {
            let entry = entry(&root, &meta);
            async move { Ok(entry) }
        })
        .boxed()
    }

    async fn delete(&self, cx: &Context, key: &Key) -> Result<()> {
        let path = self.path(key)?;
        let request = || {
            let (store, path) = (Arc::clone(&self.store), path.clone());
            async move { store.delete(&path).await }
        };
        match self.ask(cx, "delete the object", key, request).await?.0 {
            Ok(()) | Err(Fault::Missing) => Ok(()),
            Err(_) => Err(self.tell(misunderstood("a delete"), Some(key))),
        }
    }
}

/// What a store is waited for, so long as it says nothing at all.
async fn in_time<T>(
    answer: impl Future<Output = object_store::Result<T>>,
) -> object_store::Result<T> {
    tokio::time::timeout(SILENCE, answer).await.unwrap_or_else(|_| {
        let source = format!("the store said nothing for {} seconds", SILENCE.as_secs()).into();
        Err(object_store::Error::Generic { store: "store", source })
    })
}

/// The bytes of an answer: never more than an object has, whatever the store says about its length.
async fn body(got: GetResult, path: &Path) -> object_store::Result<Bytes> {
    let expected = got.range.end.saturating_sub(got.range.start).min(MAX_OBJECT);
    let mut pieces = got.into_stream();
    let mut bytes = BytesMut::with_capacity(usize::try_from(expected).unwrap_or(0));
    while let Some(piece) = in_time(pieces.next().map(Option::transpose)).await? {
        if bytes.len() as u64 + piece.len() as u64 > expected {
            let source = format!("the answer for {path} is longer than the store says").into();
            return Err(object_store::Error::Generic { store: "store", source });
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

type Pages = futures_util::stream::BoxStream<'static, object_store::Result<ObjectMeta>>;

/// Begins a listing behind an object, or from the first.
type Begin = Box<dyn Fn(Option<&Path>) -> Pages + Send>;

/// A listing that goes on where it was interrupted.
struct Listing {
    begin: Begin,
    open: Option<Pages>,
    after: Option<Path>,
    failures: u32,
}

impl Listing {
    async fn next(&mut self, cx: &Context) -> Result<Option<ObjectMeta>> {
        loop {
            let pages = match &mut self.open {
                Some(pages) => pages,
                None => self.open.insert((self.begin)(self.after.as_ref())),
            };
            let next = in_time(pages.next().map(Option::transpose));
            match cx.run(async { Ok(next.await.transpose()) }).await? {
                None => return Ok(None),
                Some(Ok(meta)) => {
                    self.after = Some(meta.location.clone());
                    self.failures = 0;
                    return Ok(Some(meta));
                }
                Some(Err(e)) => {
                    self.open = None;
                    let e = match fault(&e) {
                        Fault::Passing(e) if self.failures + 1 < ATTEMPTS => {
                            tracing::info!(error = %e.chain(), "cannot list; trying again");
                            cx.sleep(pause(self.failures, cx.random::<4>()?)).await?;
                            self.failures += 1;
                            continue;
                        }
                        Fault::Passing(e) | Fault::Final(e) => e,
                        Fault::Missing => {
                            Error::new(Reason::InvalidConfig, "there is no such bucket")
                        }
                        Fault::Exists | Fault::Short => misunderstood("a listing"),
                    };
                    return Err(Error::new(e.reason(), "cannot list the objects").caused_by(e));
                }
            }
        }
    }
}

/// What a listed object is, if it is below the prefix and its name is a key.
fn entry(root: &Path, meta: &ObjectMeta) -> Option<ObjectEntry> {
    let name = meta.location.as_ref();
    let name = match root.as_ref() {
        "" => name,
        root => name.strip_prefix(root)?.strip_prefix('/')?,
    };
    let modified = meta.last_modified.timestamp_nanos_opt().map(Timestamp);
    Some(ObjectEntry { key: Key::new(name).ok()?, size: meta.size, modified })
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;
    use object_store::{Attributes, GetResultPayload};

    fn told(e: &object_store::Error) -> String {
        match fault(e) {
            Fault::Passing(e) => format!("for now: {} ({})", e.chain(), e.reason()),
            Fault::Final(e) => format!("{} ({})", e.chain(), e.reason()),
            Fault::Missing => "missing".to_owned(),
            other => format!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_store_that_says_nothing() {
        let e = in_time(std::future::pending::<object_store::Result<()>>()).await.unwrap_err();
        assert_snapshot!(told(&e), @"
        for now: the store has failed: Generic store error: the store said nothing for 60 seconds (unavailable)
        ");
    }

    #[tokio::test]
    async fn of_an_answer_that_does_not_end() {
        let location = Path::from("shop/config");
        let pieces = [Ok(Bytes::from_static(b"four")), Ok(Bytes::from_static(b"and more"))];
        let meta = ObjectMeta {
            location: location.clone(),
            last_modified: "2026-01-15T14:30:00Z".parse().unwrap(),
            size: 4,
            e_tag: None,
            version: None,
        };
        let payload = GetResultPayload::Stream(futures_util::stream::iter(pieces).boxed());
        let got = GetResult {
            payload,
            meta,
            range: 0..4,
            attributes: Attributes::new(),
            extensions: Default::default(),
        };
        let e = body(got, &location).await.unwrap_err();
        assert_snapshot!(told(&e), @"
        for now: the store has failed: Generic store error: the answer for shop/config is longer than the store says (unavailable)
        ");
    }
}
