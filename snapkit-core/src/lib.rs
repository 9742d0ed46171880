//! Contracts and engine of snapkit.
//!
//! ```text
//!   Source ──capture──▶ Body ──▶ chunk ─▶ frame ─▶ seal ─▶ pack ──▶ Sink
//!                                  │                          │
//!                                  └──── index (id → place) ◀─┘        Manifest: the commit point
//!   Target ◀──restore── Body ◀── chunk ◀─ frame ◀─ open ◀─ pack ◀── Sink
//! ```
//!
//! Modules point only down this list: vocabulary ([`error`], [`context`], [`progress`], [`id`],
//! [`key`], [`secret`]), contracts ([`artifact`], [`tree`], [`record`], [`facts`], [`source`],
//! [`sink`], [`manifest`]), stages ([`seal`], [`credential`], [`config`], [`chunk`], [`frame`],
//! [`pack`], [`index`], [`ledger`], [`entries`]), what sources share ([`scratch`], [`sort`], [`shell`], and `process` with the
//! feature of that name), [`engine`], and wiring ([`registry`], [`memory`]).
//!
//! This crate opens no socket and knows no server.

pub mod context;
pub mod error;
pub mod id;
pub mod key;
pub mod progress;
pub mod secret;

pub mod artifact;
pub mod facts;
pub mod globs;
pub mod manifest;
pub mod record;
pub mod sink;
pub mod source;
pub mod tree;

mod codec;
mod own;

pub mod chunk;
pub mod config;
pub mod credential;
pub mod entries;
pub mod frame;
pub mod index;
pub mod ledger;
pub mod pack;
pub mod records;
pub mod seal;
pub mod sign;

#[cfg(feature = "process")]
pub mod process;
pub mod scratch;
pub mod shell;
pub mod sort;

pub mod engine;

pub mod memory;
pub mod registry;

pub use context::Context;
pub use error::{Error, ErrorKind, Reason, Result};
