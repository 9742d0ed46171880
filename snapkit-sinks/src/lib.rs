//! Where snapkit repositories live.
//!
//! [`open`] and [`create`] take what a person writes: a path or a URL, of S3 too with the feature `s3`.
//! [`LocalSink`] is a directory
//! as a flat store of objects; the file-system steps that it takes are a [`Disk`], so that a test can
//! put a disk under it that forgets what was not flushed.

mod disk;
mod local;
mod location;
#[cfg(feature = "s3")]
mod object;
mod real;
mod settings;
mod walk;

pub use disk::{Disk, DiskEntries, DiskEntry, DiskKind, DiskStat};
pub use local::LocalSink;
pub use location::{create, create_with, directory, open, open_with};
#[cfg(feature = "s3")]
pub use object::ObjectSink;
pub use real::RealDisk;
pub use settings::Settings;
