//! File systems that do not say how long their files are, because these are made when somebody reads them.

use std::os::fd::AsFd;

#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::fs::FsWord;
use snapkit_core::error::{Error, Reason, Result};

use crate::error;

/// Numbers of such file systems: proc, sysfs, debugfs, tracefs, securityfs, configfs, cgroup, cgroup2.
#[cfg(any(target_os = "linux", target_os = "android"))]
const KINDS: [FsWord; 8] = [
    rustix::fs::PROC_SUPER_MAGIC,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x6265_6570,
    0x0027_e0eb,
    0x6367_7270,
];

/// An error if what is open lies on such a file system: its files would be taken for empty ones, or for ones
/// that change while they are read.
pub(super) fn refuse(directory: impl AsFd, path: &[u8]) -> Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if rustix::fs::fstatfs(directory).is_ok_and(|s| KINDS.contains(&s.f_type)) {
        return Err(Error::new(
            Reason::Unsupported,
            "the file system of this does not say how long its files are, and nothing of it is captured; \
             exclude it",
        )
        .with("path", error::show(path)));
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (directory, path);
    Ok(())
}
