//! SQLite databases, live or not.
//!
//! A capture is one consistent read of the database, whatever its journal mode and whoever writes to
//! it meanwhile. In WAL mode pages are read from a read transaction, which stops no writer; in
//! rollback mode, which cannot be read without stopping writers, they are first copied to a private
//! scratch file. A restore is staged beside its target and checked there; a missing target is
//! renamed into place, and a live one is overwritten through SQLite's own locks and journal.
//!
//! This process never opens a database, or a file beside it, other than through SQLite: closing any
//! descriptor of a file drops all POSIX locks that the process holds on it. SQLite knows of its own
//! connections only, so an embedding program that uses the same database in the same process must
//! use the same copy of the SQLite library.
//!
//! ```text
//!   capture ─▶ Client ─▶ Pin ─┬─▶ pages ─▶ Body                 restore ─▶ staging ─▶ integrity
//!                             └─▶ facts                            missing target ─▶ rename
//!                                                                  live target ────▶ live
//! ```

mod aside;
mod capture;
mod client;
mod config;
mod error;
mod facts;
mod fingerprint;
mod holders;
mod image;
mod integrity;
mod live;
mod pages;
mod pin;
mod restore;
mod room;
mod scratch;
mod source;
mod staging;
mod undo;

pub use config::SqliteConfig;
pub use image::{Image, ImageReader};
pub use source::{Sqlite, register};
