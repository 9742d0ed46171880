//! The source against real databases, real writers in other processes, and the naive way beside it.
#![expect(unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod capture;
mod child;
mod conformance;
mod fingerprint;
mod image;
mod in_place;
mod replace;
mod restore;
mod rights;
mod support;
