//! Redis, and what speaks its language.
//!
//! [`rdb`] reads the format of its snapshots: each key with the bytes of its value as the server wrote them, and a
//! digest of what they mean. [`replica`] has a server give one over a [`connection`], of one moment, without a file.

pub mod connection;
pub mod rdb;
pub mod replica;
