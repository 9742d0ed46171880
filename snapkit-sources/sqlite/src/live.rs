//! Overwriting a database that other programs may have open: through SQLite's own locks and journal,
//! in one transaction, so that they see the old state or the new one and nothing else.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use snapkit_core::{Error, Reason, Result};

use crate::aside::{Recovery, hidden_in};
use crate::client::{Access, Client, Job, WRITE, copied, copy_step, is_emptied};
use crate::error::{NOT_ONE, busy, emptied, shown};
use crate::pin::Pin;
use crate::scratch::Draft;

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
        /// The new content, if it is to be read back.
        seen: Option<Result<Seen>>,
    },
    /// What is there cannot be read as a database, and nothing was done.
    Unreadable(Error),
}

/// The new content, held still.
#[derive(Debug)]
pub(crate) struct Seen {
    /// A moment after it was written.
    pub(crate) pin: Arc<Pin>,
    /// Whether somebody else may have committed between the two. In rollback mode nobody can have.
    pub(crate) raced: bool,
}

impl Seen {
    /// Hold still what a client has just written. `before` is the version that it had seen last; without
    /// one nobody else could write.
    pub(crate) fn take(client: Client, before: Option<i64>, job: &Job) -> Result<Self> {
        let pin = Pin::take(client, job)?;
        let raced = before.is_some_and(|before| before != pin.version());
        Ok(Self { pin: Arc::new(pin), raced })
    }
}

/// How a target is overwritten.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// How long to wait for a lock.
    pub(crate) patience: Duration,
    /// Whether the new content is wanted for reading back.
    pub(crate) read_back: bool,
}

/// Overwrite `target` with the checked database in `staged`, and keep the old content. The journal
/// mode stays what it is in the target. On any error the target is unchanged.
///
/// A WAL target may have readers; they keep what they see until their transaction ends. An open write
/// transaction, or in rollback mode any open transaction, is `busy` once the patience is used up.
pub(crate) fn replace(
    staged: &Path,
    target: &Path,
    how: How,
    recovery: &mut Recovery,
    job: &Job,
) -> Result<Outcome> {
    if is_emptied(target) {
        return Ok(Outcome::Unreadable(emptied(target)));
    }
    if !Client::is_database(target, job) {
        return Ok(Outcome::Unreadable(Error::invalid(NOT_ONE).with("path", shown(target))));
    }
    let client = Client::open(target, Access::Target, how.patience, job)?;
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
    let (kept, problems, seen) = if wal && other == page_size {
        let (kept, seen) = under_readers(staged, client, how, recovery, job)?;
        (kept, Vec::new(), seen)
    } else {
        drop(client);
        alone(staged, target, wal, how, recovery, job)?
    };
    Ok(Outcome::Replaced { kept, page_size_changed_in_wal, problems, seen })
}

/// In WAL mode: the write lock keeps writers out, from before the old content is copied until the new
/// one is committed.
fn under_readers(
    staged: &Path,
    mut target: Client,
    how: How,
    recovery: &mut Recovery,
    job: &Job,
) -> Result<(PathBuf, Option<Result<Seen>>)> {
    target.run("PRAGMA synchronous = FULL", WRITE)?;
    let before = target.version()?;
    let path = target.path().to_owned();
    let staged = Client::open(staged, Access::Immutable, Duration::ZERO, job)?;
    let step = copy_step(staged.page_size()?);
    let backup = Backup::new(staged.connection(), target.connection_mut())
        .map_err(|e| staged.fail(e, WRITE))?;
    copied(&backup, 0, job, &path)?;
    let kept = {
        let old = Client::open(&path, Access::Source, how.patience, job)?;
        keep(&old, recovery, job)?
    };
    while copied(&backup, step, job, &path)? != StepResult::Done {}
    drop(backup);
    let place = kept.path().to_owned();
    kept.keep();
    // The next transaction of this connection tells whether it is the next of all. Whatever else there
    // is to do comes after it.
    if how.read_back {
        return Ok((place, Some(Seen::take(target, Some(before), job))));
    }
    fold(&target);
    Ok((place, None))
}

/// Fold the log into the database, only so that it does not stay as long as the database. Readers may
/// prevent it.
pub(crate) fn fold(target: &Client) {
    if let Err(e) = target.run("PRAGMA wal_checkpoint(PASSIVE)", WRITE) {
        tracing::debug!(path = %shown(target.path()), error = %e, "the log was not folded into the database");
    }
}

/// With nobody else using the database: in rollback mode, and where the page size changes.
fn alone(
    staged: &Path,
    target: &Path,
    wal: bool,
    how: How,
    recovery: &mut Recovery,
    job: &Job,
) -> Result<(PathBuf, Vec<String>, Option<Result<Seen>>)> {
    let patience = how.patience;
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
    // With the lock still there, which goes with the client.
    let seen = if how.read_back {
        Some(Seen::take(client, None, job))
    } else {
        drop(client);
        None
    };
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
    Ok((place, problems, seen))
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

/// Copy the old content to where it is kept, as a single file that needs no log. It has a name of its own until
/// it is whole: half a copy, left there by a restore that was killed, would be taken for the old state.
fn keep(old: &Client, recovery: &mut Recovery, job: &Job) -> Result<Draft> {
    let (dir, place) = recovery.name_for_copy(job.cx())?;
    let (draft, file) = Draft::create(hidden_in(&dir, old.path(), "snapkit", job.cx())?)?;
    drop(file);
    let mut copy = Client::open(draft.path(), Access::Kept, Duration::ZERO, job)?;
    old.begin_read()?;
    let copied = old.copy_to(&mut copy, job);
    old.rollback();
    copied?;
    copy.text("PRAGMA journal_mode = DELETE")?;
    drop(copy);
    draft.publish(place)
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
