//! The source of collections, against a server that answers as Qdrant 1.18.2 was seen to, or against a real one:
//! `SNAPKIT_TEST_QDRANT_URL` and `SNAPKIT_TEST_QDRANT_API_KEY` say which. A real one is emptied of the collections that
//! the tests make, and tests that need two servers at once restore into the same.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod behaviour;
mod conformance;
mod recorded;
mod stage;
mod traps;
