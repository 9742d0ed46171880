//! Where snapkit repositories live.
//!
//! [`open`] and [`create`] take what a person writes: a path or a URL. [`LocalSink`] is a directory
//! as a flat store of objects; the file-system steps that it takes are a [`Disk`], so that a test can
//! put a disk under it that forgets what was not flushed.

mod disk;
mod local;
mod location;
mod real;
mod walk;

pub use disk::{Disk, DiskEntries, DiskEntry, DiskKind, DiskStat};
pub use local::LocalSink;
pub use location::{create, directory, open};
pub use real::RealDisk;
