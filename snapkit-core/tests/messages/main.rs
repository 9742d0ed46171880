//! What this crate says when something is wrong: every sentence once, so that each has been read.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../lab/mod.rs"]
mod lab;

mod contract;
mod decoders;
mod hostile;
mod library;
