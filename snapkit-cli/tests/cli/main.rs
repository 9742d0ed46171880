//! The built program, run as a user runs it: each test has its own home, and sees standard output,
//! standard error and the exit code together.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod beside;
mod create;
mod cut;
mod damaged;
mod databases;
mod everyday;
mod example;
mod faults;
mod hooks;
mod init;
mod inside;
mod inspect;
mod json;
mod keys;
mod library;
mod limits;
mod list;
mod machine;
mod own;
mod process;
mod programs;
mod prometheus;
mod qdrant;
mod rare;
mod redis;
mod refused;
mod restore;
mod s3;
mod scenes;
mod stack;
mod support;
mod terminal;
mod trees;
mod verify;
