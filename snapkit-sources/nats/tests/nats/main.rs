//! Streams of real servers, captured and restored.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::disallowed_methods, reason = "tests watch a real server by the real clock")]

mod client;
mod conformance;
mod restore;
mod round_trip;
