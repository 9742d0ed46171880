//! One run of a stack at a time: a second one says so and asks to be tried later.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use snapkit_core::error::{Error, IoContext as _, Reason, Result};

/// Below the directory of local state: a lock for each stack.
const RUNNING: &str = "running";

/// The right to run, held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Running(#[expect(dead_code, reason = "its lock is what counts")] File);

impl Running {
    /// Take the lock of a stack. `busy` if another run has it.
    pub(crate) fn begin(state: &Path, stack: &str, now: &str) -> Result<Self> {
        let directory = state.join(RUNNING);
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
        builder.create(&directory).doing(|| format!("cannot create {}", directory.display()))?;
        // Wherever it goes: what one run has paused is not to be started under the hands of another.
        let name = blake3::hash(stack.as_bytes()).to_hex();
        let path = directory.join(&name[..32]);
        let what = || format!("cannot lock {}", path.display());
        if std::fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
            return Err(Error::io(what(), std::io::Error::other("it is no file")));
        }
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).doing(what)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(e)) => return Err(Error::io(what(), e)),
            Err(TryLockError::WouldBlock) => {
                let mut who = String::new();
                // Whoever has it may not have said yet who it is.
                drop((&mut file).take(200).read_to_string(&mut who));
                let e = Error::new(Reason::Busy, "another run of this stack is under way")
                    .with("stack", stack);
                let e = if who.is_empty() { e } else { e.with("by", who.trim()) };
                return Err(e.with_hint("try again when it has ended"));
            }
        }
        // For people; what counts is the lock.
        let who = format!("process {} since {now}", std::process::id());
        drop(
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| file.write_all(who.as_bytes())),
        );
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let state = tempfile::tempdir().unwrap();
        let begin = |stack| Running::begin(state.path(), stack, "noon");
        let first = begin("shop").unwrap();
        let e = begin("shop").unwrap_err();
        assert_eq!(e.reason(), Reason::Busy);
        assert!(e.to_string().contains("since noon"), "{e}");
        drop(begin("other").unwrap());
        drop(first);
        drop(begin("shop").unwrap());
    }
}
