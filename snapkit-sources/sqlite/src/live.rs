//! Overwriting a database that other programs may have open: through SQLite's own locks and journal,
//! in one transaction, so that they see the old state or the new one and nothing else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use snapkit_core::{Error, Reason, Result};

use crate::aside::Recovery;
use crate::client::{Access, Client, Job, copied, copy_step, is_emptied};
use crate::error::{busy, emptied, shown};
use crate::scratch::{Draft, sync_directory};

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The target has the new content.
    Replaced {
        /// The copy of its old content.
        kept: PathBuf,
        /// Whether it is in WAL mode and its page size changed.
        page_size_changed_in_wal: bool,
        /// What did not work, without harm to the content.
        problems: Vec<String>,
    },
    /// What is there cannot be read as a database, and nothing was done.
    Unreadable(Error),
}

/// Overwrite `target` with the checked database in `staged`, and keep the old content. The journal
/// mode stays what it is in the target. On any error the target is unchanged.
///
/// A WAL target may have readers; they keep what they see until their transaction ends. An open write
/// transaction, or in rollback mode any open transaction, is `busy` once `patience` is used up.
pub(crate) fn replace(
    staged: &Path,
    target: &Path,
    patience: Duration,
    recovery: &mut Recovery,
    job: &Job,
) -> Result<Outcome> {
    if is_emptied(target) {
        return Ok(Outcome::Unreadable(emptied(target)));
    }
    let client = Client::open(target, Access::Target, patience, job)?;
    let (wal, page_size) = match (client.is_wal(), client.page_size(), client.page_count()) {
        (Ok(wal), Ok(page_size), Ok(_)) => (wal, page_size),
        (Err(e), _, _) | (_, Err(e), _) | (_, _, Err(e)) => {
            return match e.reason() {
                Reason::InvalidArgument | Reason::Corrupt => Ok(Outcome::Unreadable(e)),
                _ => Err(e),
            };
        }
    };
    client.tidy_on_close()?;
    let other = Client::open(staged, Access::Immutable, Duration::ZERO, job)?.page_size()?;
    let page_size_changed_in_wal = wal && other != page_size;
    let (kept, problems) = if wal && other == page_size {
        (under_readers(staged, client, patience, recovery, job)?, Vec::new())
    } else {
        drop(client);
        alone(staged, target, wal, patience, recovery, job)?
    };
    Ok(Outcome::Replaced { kept, page_size_changed_in_wal, problems })
}

/// In WAL mode: the write lock keeps writers out, from before the old content is copied until the new
/// one is committed.
fn under_readers(
    staged: &Path,
    mut target: Client,
    patience: Duration,
    recovery: &mut Recovery,
    job: &Job,
) -> Result<PathBuf> {
    target.run("PRAGMA synchronous = FULL", WRITE)?;
    let path = target.path().to_owned();
    let staged = Client::open(staged, Access::Immutable, Duration::ZERO, job)?;
    let step = copy_step(staged.page_size()?);
    let backup = Backup::new(staged.connection(), target.connection_mut())
        .map_err(|e| staged.fail(e, WRITE))?;
    copied(&backup, 0, job, &path)?;
    let kept = {
        let old = Client::open(&path, Access::Source, patience, job)?;
        keep(&old, recovery, job)?
    };
    while copied(&backup, step, job, &path)? != StepResult::Done {}
    drop(backup);
    // Only so that the log does not stay as long as the database; readers may prevent it.
    if let Err(e) = target.run("PRAGMA wal_checkpoint(PASSIVE)", WRITE) {
        tracing::debug!(path = %shown(&path), error = %e, "the log was not folded into the database");
    }
    let place = kept.path().to_owned();
    kept.keep();
    Ok(place)
}

/// With nobody else using the database: in rollback mode, and where the page size changes.
fn alone(
    staged: &Path,
    target: &Path,
    wal: bool,
    patience: Duration,
    recovery: &mut Recovery,
    job: &Job,
) -> Result<(PathBuf, Vec<String>)> {
    without_log(staged, job)?;
    let mut client = if wal {
        let client = Client::open(target, Access::TargetAlone, patience, job)?;
        client.run("BEGIN EXCLUSIVE", WRITE)?;
        client.run("COMMIT", WRITE)?;
        if client.text("PRAGMA journal_mode = DELETE")? != "delete" {
            return Err(busy("cannot change the page size", target));
        }
        client
    } else {
        let client = Client::open(target, Access::Target, patience, job)?;
        client.run("BEGIN EXCLUSIVE", WRITE)?;
        // Not before the lock is there: a connection that keeps its locks would keep the first of
        // them while it waits for the next, and a writer would wait for it in turn.
        client.run("PRAGMA locking_mode = EXCLUSIVE", WRITE)?;
        client.run("COMMIT", WRITE)?;
        client
    };
    if client.is_wal()? {
        return Err(busy("the journal mode has just been changed", target));
    }
    let kept = match overwrite(staged, &mut client, recovery, job) {
        Ok(kept) => kept,
        Err(e) => {
            if wal && let Err(e) = client.text("PRAGMA journal_mode = WAL") {
                tracing::warn!(path = %shown(target), error = %e, "the database has left WAL mode");
            }
            return Err(e);
        }
    };
    drop(client);
    let mut problems = Vec::new();
    if wal {
        let back = Client::open(target, Access::Target, patience, job)
            .and_then(|client| client.text("PRAGMA journal_mode = WAL"));
        match back {
            Ok(mode) if mode == "wal" => {}
            Ok(mode) => problems.push(format!("the journal mode is now {mode}, and was wal")),
            Err(e) => {
                problems.push(format!("the journal mode may not be wal as it was: {}", e.chain()));
            }
        }
    }
    let place = kept.path().to_owned();
    kept.keep();
    Ok((place, problems))
}

fn overwrite(
    staged: &Path,
    target: &mut Client,
    recovery: &mut Recovery,
    job: &Job,
) -> Result<Draft> {
    target.run("PRAGMA synchronous = FULL", WRITE)?;
    let kept = keep(target, recovery, job)?;
    let staged = Client::open(staged, Access::Immutable, Duration::ZERO, job)?;
    staged.copy_to(target, job)?;
    Ok(kept)
}

/// Copy the old content to where it is kept, as a single file that needs no log.
fn keep(old: &Client, recovery: &mut Recovery, job: &Job) -> Result<Draft> {
    let path = recovery.name_for_copy(job.cx())?;
    let (draft, file) = Draft::create(path)?;
    drop(file);
    let mut copy = Client::open(draft.path(), Access::Kept, Duration::ZERO, job)?;
    old.begin_read()?;
    let copied = old.copy_to(&mut copy, job);
    old.rollback();
    copied?;
    copy.text("PRAGMA journal_mode = DELETE")?;
    drop(copy);
    sync_directory(draft.path().parent().unwrap_or(Path::new("/")))?;
    Ok(draft)
}

/// Mark a staged database as one with a rollback journal: its target is not in WAL mode now, and is
/// given this mark with the first page.
fn without_log(staged: &Path, job: &Job) -> Result<()> {
    let client = Client::open(staged, Access::Kept, Duration::ZERO, job)?;
    if client.is_wal()? && client.text("PRAGMA journal_mode = DELETE")? != "delete" {
        return Err(Error::internal("a staged database keeps its log").with("path", shown(staged)));
    }
    Ok(())
}

const WRITE: &str = "cannot write the database";
