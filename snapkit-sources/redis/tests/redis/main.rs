//! Against real servers, which the tests start and end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod conformance;
mod kept;
mod rdb;
mod replica;
mod restore;
mod server;
#[cfg(feature = "tls")]
mod tls;
