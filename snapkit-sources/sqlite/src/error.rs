//! What SQLite's result codes mean to a caller.

use std::path::Path;

use rusqlite::ErrorCode as Code;
use rustix::fs::Access;
use snapkit_core::{Error, Reason};

use crate::holders::holders;

/// What is said of a file that is no database.
pub(crate) const NOT_ONE: &str = "not a SQLite database, or an encrypted one";

/// Shows a path in an error.
pub(crate) fn shown(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    snapkit_core::tree::escape(path.as_os_str().as_bytes())
}

/// The result code, if the error has one.
pub(crate) fn code(error: &rusqlite::Error) -> Option<Code> {
    error.sqlite_error_code()
}

/// An error of SQLite as one of ours. `what` says what was being done, as "cannot …".
pub(crate) fn translate(error: rusqlite::Error, what: &str, path: &Path) -> Error {
    let told = match code(&error) {
        Some(Code::DatabaseBusy | Code::DatabaseLocked | Code::FileLockingProtocolFailed) => {
            return busy(what, path).caused_by(error);
        }
        Some(Code::NotADatabase) => Error::invalid(NOT_ONE),
        Some(Code::DatabaseCorrupt) => damaged(format!("{what}: the database is damaged")),
        Some(Code::CannotOpen | Code::PermissionDenied | Code::ReadOnly) => refused(what, path),
        Some(Code::DiskFull) => Error::new(Reason::NoSpace, format!("{what}: no space is left")),
        Some(Code::SystemIoFailure) if is_shm_refused(&error) => refused(what, path),
        Some(Code::SystemIoFailure | Code::OutOfMemory | Code::NoLargeFileSupport) => {
            Error::new(Reason::Io, what)
        }
        Some(Code::OperationInterrupted) => {
            Error::new(Reason::Cancelled, format!("{what}: interrupted"))
        }
        // A schema that this SQLite cannot read, or that is damaged.
        Some(Code::Unknown | Code::TooBig | Code::SchemaChanged) => {
            Error::new(Reason::Unsupported, what)
        }
        _ => Error::internal(what),
    };
    told.with("path", shown(path)).caused_by(error)
}

/// The database itself is damaged: nothing in the repository can tell more about it.
pub(crate) fn damaged(what: String) -> Error {
    Error::corrupt(what).with_hint(
        "`PRAGMA integrity_check` in sqlite3 tells more; restore the database from a snapshot, or save \
         what can be read with `.recover`",
    )
}

/// Somebody else holds a lock that is needed.
pub(crate) fn busy(what: &str, path: &Path) -> Error {
    let told = Error::new(
        Reason::Busy,
        format!("{what}: another connection holds a lock on the database; stop that program or try again later"),
    )
    .with("path", shown(path));
    match holders(path) {
        names if names.is_empty() => told,
        names => told.with("held_by", names.join(", ")),
    }
}

/// A database that was emptied, with its log still there: nothing may open it.
pub(crate) fn emptied(path: &Path) -> Error {
    Error::corrupt(
        "the database is empty, but a log with content lies beside it, which SQLite would delete; \
         move the log away, or bring the database back",
    )
    .with("path", shown(path))
    .with_hint("")
}

/// SQLite says only "unable to open": find out what was refused.
fn refused(what: &str, path: &Path) -> Error {
    let may = |path: &Path, access| rustix::fs::access(path, access);
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) => return Error::io(format!("{what}: {e}"), e),
    };
    if meta.is_dir() {
        return Error::invalid(format!("{what}: it is a directory"));
    }
    if may(path, Access::READ_OK).is_err() {
        return Error::new(Reason::PermissionDenied, format!("{what}: the file may not be read"));
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    if may(parent, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        return Error::new(
            Reason::PermissionDenied,
            format!(
                "{what}: SQLite must make or update the files NAME-shm, NAME-wal or NAME-journal beside \
                 the database, and its directory may not be written to; allow that, or copy the \
                 database together with those files to a place that may be written to"
            ),
        );
    }
    Error::new(Reason::PermissionDenied, format!("{what}: the operating system refused"))
}

/// The `-shm` file could not be made or mapped.
fn is_shm_refused(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR_SHMLOCK, SQLITE_IOERR_SHMMAP, SQLITE_IOERR_SHMOPEN};
    error.sqlite_error().is_some_and(|e| {
        matches!(e.extended_code, SQLITE_IOERR_SHMOPEN | SQLITE_IOERR_SHMMAP | SQLITE_IOERR_SHMLOCK)
    })
}
