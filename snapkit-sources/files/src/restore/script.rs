//! The way back on disk, before anything is moved: a restore that is cut off says nothing any more.

use std::fs::File;
use std::io::Write as _;

use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;
use snapkit_core::error::{Error, Result};

use super::mover::Recovery;

/// How it begins. A line that finds nothing of what it brings back does nothing.
const BEGIN: &str = r#"# Brings back what a restore replaced, also one that was cut off. It deletes nothing, and can be run again.
# Whether number $2 is at $1.
is() { [ "$(ls -di -- "$1" 2>/dev/null | awk '{ print $1; exit }')" = "$2" ]; }
"#;

/// A script in the recovery directory, durable line by line.
pub(super) struct Script<'a> {
    recovery: &'a Recovery,
    name: String,
    file: File,
}

impl<'a> Script<'a> {
    pub(super) fn begin(recovery: &'a Recovery, tag: &str) -> Result<Self> {
        let name = format!("undo-{tag}.sh");
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = recovery.dirs.base();
        let file = rustix::fs::openat(&**dir, name.as_str(), flags, Mode::RUSR | Mode::WUSR);
        let file = file.map_err(cannot)?;
        let mut script = Self { recovery, name, file: File::from(file) };
        script.write(BEGIN)?;
        rustix::fs::fsync(&**dir).map_err(cannot)?;
        Ok(script)
    }

    /// Write a command down, before what it takes back is done.
    pub(super) fn say(&mut self, command: &str) -> Result<()> {
        self.write(&format!("{command}\n"))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|e| cannot(Errno::from_io_error(&e).unwrap_or(Errno::IO)))
    }

    /// There is nothing to bring back.
    pub(super) fn remove(self) {
        // One that stays does nothing.
        let dir = self.recovery.dirs.base();
        let _ = rustix::fs::unlinkat(&**dir, self.name.as_str(), AtFlags::empty());
    }
}

fn cannot(errno: Errno) -> Error {
    Error::io("cannot write down how to bring the old state back", errno.into())
}

/// A command that is only for when something else than before is at a place.
pub(super) fn unless_back(live: &str, before: &Stat, command: &str) -> String {
    format!("is {live} {} || {{ {command}; }}", before.st_ino)
}
