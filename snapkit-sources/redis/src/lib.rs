//! Redis, and what speaks its language.
//!
//! A capture asks for everything as a replica does: the server forks, and what it held then comes over the connection. It
//! is taken apart key by key on the way, at the server's pace, into encrypted scratch space, and sorted there; so that
//! what has not changed is where it was, whatever order the server keeps. A restore puts a snapshot together again and
//! reads all of it before anything is touched.
//!
//! ```text
//!   capture ─▶ replica ─▶ rdb ─▶ spool ─▶ keys, sorted           restore ─▶ assemble ─▶ rdb ─▶ tally
//!                          └─▶ tally ─▶ facts                      live server ─▶ per_key
//!                                                                  directory ───▶ files
//! ```

mod assemble;
mod capture;
mod config;
pub mod connection;
mod facts;
mod files;
mod functions;
mod key;
mod per_key;
pub mod rdb;
pub mod replica;
mod restore;
mod server;
mod source;
mod spool;
mod tally;
#[cfg(feature = "tls")]
mod tls;

pub use config::{RedisConfig, add_secrets};
pub use source::{Redis, register};
