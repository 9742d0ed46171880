//! Conformance suites and doubles, for snapkit itself and for authors of sources, sinks and
//! manifests.
//!
//! * [`sink::all`], [`source::all`] and [`manifest::all`] check every sentence of a contract. They
//!   fail by panicking, with the sentence that does not hold, and are called from an ordinary test.
//! * [`double`] holds stand-ins: sinks that record, fail or are slow, a disk that forgets what was
//!   not flushed, a source that follows a script.
//! * With the feature `s3` there is a store that speaks S3 and goes wrong as it is told.
//! * With the feature `qdrant` there is what a Qdrant was seen to answer.
//! * With the feature `servers` real servers are started, each in a scratch directory.
//! * [`corpus`] makes the same files from the same seed, ordinary and odd ones.
//!
//! ```
//! use std::sync::Arc;
//! use snapkit_core::{Context, sink::Sink};
//! use snapkit_sinks::LocalSink;
//!
//! # #[tokio::main] async fn main() {
//! let cx = Context::system();
//! let scratch = tempfile::tempdir().unwrap();
//! let sink: Arc<dyn Sink> = Arc::new(LocalSink::create(&cx, scratch.path()).await.unwrap());
//! snapkit_testkit::sink::get_returns_what_was_put(&cx, sink).await;
//! # }
//! ```

pub mod corpus;
pub mod double;
pub mod manifest;
#[cfg(feature = "qdrant")]
pub mod qdrant;
pub mod random;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(feature = "servers")]
pub mod server;
pub mod sink;
pub mod source;

mod verdict;
