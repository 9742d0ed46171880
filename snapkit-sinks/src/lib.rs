//! Where repositories live.
