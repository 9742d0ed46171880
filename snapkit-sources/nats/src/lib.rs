//! snapkit source: streams, buckets and consumers of NATS JetStream, by the server's own snapshots, message by message.
//!
//! Servers from 2.9 to 2.15 give their streams in two forms, which are read into one: [`Nats`].

mod archive;
mod capture;
mod config;
mod consumer;
mod document;
mod look;
mod message;
mod restore;
mod server;
mod source;
mod spool;
mod tally;
mod transfer;

pub use config::{NatsConfig, add_secrets};
pub use source::{Nats, register};
