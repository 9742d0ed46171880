//! Where snapkit repositories live.
//!
//! [`open`] and [`create`] take what a person writes: a path or a URL, of S3, Google Cloud Storage and Azure too with the
//! features `s3`, `gcs` and `azure`.
//! [`LocalSink`] is a directory
//! as a flat store of objects; the file-system steps that it takes are a [`Disk`], so that a test can
//! put a disk under it that forgets what was not flushed.

mod disk;
mod limited;
mod local;
mod location;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
mod object;
mod real;
mod settings;
mod walk;

pub use disk::{Disk, DiskEntries, DiskEntry, DiskKind, DiskStat};
pub use local::LocalSink;
pub use location::{create, create_with, directory, open, open_with};
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
pub use object::ObjectSink;
pub use real::RealDisk;
pub use settings::{Rates, Settings};
