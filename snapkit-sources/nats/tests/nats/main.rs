//! Streams of real servers, captured and restored.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod client;
mod conformance;
mod restore;
mod round_trip;
