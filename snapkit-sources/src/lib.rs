//! The sources of snapkit.
