//! A restore: staged beside the target, examined there, and only then made visible.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::Access as May;
use snapkit_core::artifact::{ArtifactMeta, Body};
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::facts::{Difference, Facts, Standing};
use snapkit_core::source::{Restore, RestoreReport, RestoreRequest, Target};
use snapkit_core::{Error, Reason, Result};

use crate::aside::{Recovery, hidden_in, install, put_back};
use crate::client::{Access, Client, Job, work};
use crate::config::SqliteConfig;
use crate::error::{busy, shown};
use crate::facts::gather;
use crate::holders::{beside, holders};
use crate::integrity::{Examination, examine, examine_whole};
use crate::live::{How, Outcome, Seen, fold, replace};
use crate::pin::Pin;
use crate::room::{self, Made};
use crate::scratch::{Draft, require_space};
use crate::staging::{self, Fate};
use crate::undo;

/// A restore of one database.
#[derive(Debug)]
pub(crate) struct SqliteRestore {
    plan: Plan,
    staged: Option<Staged>,
}

/// What was put: examined, and not in its place yet.
#[derive(Debug)]
struct Staged {
    draft: Draft,
    meta: ArtifactMeta,
    /// What is damaged in it.
    damage: Vec<String>,
}

/// What was asked for, resolved.
#[derive(Clone, Debug)]
struct Plan {
    target: PathBuf,
    /// Where it is staged.
    staging: PathBuf,
    /// Whether it goes to where it was, so that directories which lead there are made.
    original: bool,
    patience: Duration,
    overwrite: bool,
    allow_damage: bool,
    recovery: Option<PathBuf>,
    read_back: bool,
    pages: Option<String>,
}

impl SqliteRestore {
    /// Examine the target.
    pub(crate) async fn prepare(
        cx: &Context,
        config: &SqliteConfig,
        request: &RestoreRequest,
    ) -> Result<Self> {
        let name = config.path.file_name().unwrap_or_default();
        let target = match &request.target {
            Target::Original => config.path.clone(),
            Target::Directory(dir) => std::path::absolute(dir)
                .doing(|| format!("not a usable path: {}", shown(dir)))?
                .join(name),
            Target::Url(url) => {
                return Err(Error::invalid(
                    "a SQLite database is restored to a file, not to a URL",
                )
                .with("target", url));
            }
        };
        let size = request.record.artifacts.first().map_or(0, |a| a.content.bytes());
        let pages = request.record.facts.0.get("pages").filter(|f| f.standing == Standing::Pinned);
        let plan = Plan {
            target,
            staging: PathBuf::new(),
            original: request.target == Target::Original,
            patience: config.busy_timeout,
            overwrite: request.overwrite,
            allow_damage: request.allow_damage,
            recovery: request.recovery.clone(),
            read_back: request.read_back,
            pages: pages.map(|f| f.value.to_string()),
        };
        let plan = work(cx, move |_| plan.examined(size)).await?;
        Ok(Self { plan, staged: None })
    }
}

impl Plan {
    /// See whether the target can take a database of `size` bytes, and follow it if it is a link.
    fn examined(mut self, size: u64) -> Result<Self> {
        let found = std::fs::symlink_metadata(&self.target);
        if found.as_ref().is_ok_and(|m| m.file_type().is_symlink()) {
            // Below a directory that a restore was given, a link may have come out of a repository.
            if !self.original {
                return Err(Error::new(
                    Reason::AlreadyExists,
                    "the target is a symbolic link, which is not followed out of the directory of a restore",
                )
                .with("path", shown(&self.target)));
            }
            self.target = std::fs::canonicalize(&self.target).map_err(|e| {
                Error::invalid("the target is a symbolic link that leads nowhere; remove it")
                    .with("path", shown(&self.target))
                    .caused_by(e)
            })?;
        }
        let parent = self.target.parent().unwrap_or(Path::new("/")).to_owned();
        let there = room::nearest(&parent)?;
        let dir = if self.original { there } else { parent.as_path() };
        may(
            dir,
            May::WRITE_OK | May::EXEC_OK,
            "the directory of the target may not be written to",
        )?;
        // Other sources may have to move what is around the target.
        self.staging = match &self.recovery {
            Some(recovery) if self.overwrite => recovery.clone(),
            _ if self.original => room::staging(dir),
            _ => dir.to_owned(),
        };
        let old = match std::fs::metadata(&self.target) {
            Ok(meta) => Some(meta),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => {
                return Err(
                    Error::io("cannot examine the target", e).with("path", shown(&self.target))
                );
            }
        };
        let Some(old) = old else {
            require_space(dir, size, "the restored database")?;
            if self.staging != dir {
                require_space(&self.staging, size, "the restored database")?;
            }
            return Ok(self);
        };
        if !old.is_file() {
            let what = "something that is no file stands where the database has to be";
            return Err(Error::new(Reason::AlreadyExists, what).with("path", shown(&self.target)));
        }
        if !self.overwrite {
            return Err(self.not_empty());
        }
        may(&self.target, May::READ_OK | May::WRITE_OK, "the target may not be written to")?;
        // Staging, the journal or log of the replacement, its growth, and the copy of the old state.
        let log = std::fs::metadata(beside(&self.target, "-wal")).map_or(0, |m| m.len());
        let old = old.len().saturating_add(log);
        let recovery = self.recovery.as_deref().unwrap_or(dir);
        let mut kept = old;
        let mut need = size.max(old).saturating_add(size.saturating_sub(old));
        let staged = if self.staging == recovery { &mut kept } else { &mut need };
        *staged = staged.saturating_add(size);
        require_space(recovery, kept, "a copy of the old state")?;
        require_space(dir, need, "replacing the database")?;
        Ok(self)
    }

    fn not_empty(&self) -> Error {
        Error::new(Reason::TargetNotEmpty, "there is a file already")
            .with("path", shown(&self.target))
    }

    /// Make the staged database visible.
    fn place(
        &self,
        staged: Draft,
        meta: &ArtifactMeta,
        job: &Job,
    ) -> Result<(RestoreReport, Option<Result<Seen>>)> {
        let mut report = RestoreReport::default();
        let parent = self.target.parent().unwrap_or(Path::new("/"));
        let made = if self.original { Made::make(parent)? } else { Made::default() };
        let mut recovery = Recovery::new(self.recovery.clone(), self.target.clone());
        if std::fs::symlink_metadata(&self.target).is_ok() {
            if !self.overwrite {
                return Err(self.not_empty());
            }
            let how = How { patience: self.patience, read_back: self.read_back };
            match replace(staged.path(), &self.target, how, &mut recovery, job)? {
                Outcome::Replaced { kept, page_size_changed_in_wal, problems, seen } => {
                    report.problems = problems;
                    report.notes.push(format!("the old content was copied to {}", shown(&kept)));
                    report.undo = undo::by_copy(&self.target, &kept, page_size_changed_in_wal);
                    return Ok((report, seen));
                }
                Outcome::Unreadable(why) => {
                    if !holders(&self.target).is_empty() {
                        return Err(busy("cannot replace the file", &self.target));
                    }
                    report.notes.push(format!("what was there cannot be read: {}", why.chain()));
                }
            }
        }
        job.check()?;
        // What lies beside a missing database would be replayed into the restored one.
        let moved = recovery.take(job.cx())?;
        match install(staged, &self.target, meta, job.cx()) {
            Ok(problems) => report.problems = problems,
            Err(e) => {
                put_back(&moved);
                return Err(e);
            }
        }
        if !moved.is_empty() {
            let moves = moved
                .iter()
                .map(|(from, to)| format!("{} was moved to {}", shown(from), shown(to)));
            report.notes.extend(moves);
            report.undo = undo::by_moving(&self.target, &moved);
        }
        report.notes.extend(made.keep());
        Ok((report, None))
    }
}

fn may(path: &Path, access: May, what: &str) -> Result<()> {
    rustix::fs::access(path, access)
        .map_err(|e| Error::io(what, std::io::Error::from(e)).with("path", shown(path)))
}

fn not_a_database() -> Error {
    Error::corrupt("what is to be restored is not a SQLite database")
}

#[async_trait]
impl Restore for SqliteRestore {
    async fn put(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()> {
        if self.staged.is_some() {
            return Err(
                Error::invalid("a SQLite source has one artifact").with("artifact", &meta.name)
            );
        }
        let body = body.into_bytes()?;
        let path = hidden_in(&self.plan.staging, &self.plan.target, "snapkit", cx)?;
        let (draft, file) = work(cx, move |_| Draft::create(path)).await?;
        let (len, pages) = staging::write(cx, file, Fate::Kept, cannot_stage, body).await?;
        let (expected, allow_damage) = (self.plan.pages.clone(), self.plan.allow_damage);
        let (draft, damage) = work(cx, move |job| {
            let Some(pages) = pages else { return Err(not_a_database()) };
            if expected.is_some_and(|expected| expected != pages) {
                return Err(Error::corrupt("what is to be restored is not what was captured"));
            }
            let client = Client::open(draft.path(), Access::Immutable, Duration::ZERO, job)?;
            let found = examine_whole(&client, len, job)?;
            match found.damage.first() {
                Some(line) if !allow_damage => {
                    let what = format!(
                        "the database was damaged when it was captured; --allow-damage puts it back as it \
                         is: {line}"
                    );
                    Err(Error::corrupt(what).with("findings", found.damage.len()).with_hint(""))
                }
                _ => Ok((draft, found.damage)),
            }
        })
        .await
        .map_err(|e| e.with("target", shown(&self.plan.target)))?;
        self.staged = Some(Staged { draft, meta: meta.clone(), damage });
        Ok(())
    }

    async fn finish(mut self: Box<Self>, cx: &Context) -> Result<RestoreReport> {
        let Staged { draft, meta, damage } =
            self.staged.take().ok_or_else(|| Error::invalid("nothing was put to be restored"))?;
        let plan = self.plan.clone();
        let (mut report, seen) = work(cx, move |job| plan.place(draft, &meta, job)).await?;
        if self.plan.read_back {
            let plan = self.plan.clone();
            match work(cx, move |job| plan.look_at(seen, job)).await {
                Ok(looked) => {
                    report.facts = looked.facts;
                    report.differences = looked.found.damage.into_iter().map(difference).collect();
                    report.notes.extend(looked.found.remarks);
                    report.notes.extend(looked.note);
                }
                // The restore is done, and how to undo it must be told.
                Err(e) => report.problems.push(format!("it could not be read back: {}", e.chain())),
            }
        }
        if let Some(line) = damage.first() {
            let lines = damage.len();
            report.notes.push(format!(
                "it was damaged when it was captured, and was put back as it is: {line} ({lines} in all)"
            ));
        }
        // What is known to be damaged is no match, whether or not it was looked at once more.
        if report.differences.is_empty() {
            report.differences = damage.into_iter().map(difference).collect();
        }
        report.problem_count = report.problems.len() as u64;
        Ok(report)
    }

    async fn abort(mut self: Box<Self>, cx: &Context) -> Result<()> {
        let staged = self.staged.take();
        cx.blocking(move || {
            drop(staged);
            Ok(())
        })
        .await
    }
}

fn cannot_stage(error: std::io::Error) -> Error {
    Error::io("cannot write the database beside its place", error)
}

fn difference(line: String) -> Difference {
    Difference { fact: "integrity".to_owned(), expected: "ok".to_owned(), found: line }
}

/// What reading back found.
struct Looked {
    facts: Facts,
    found: Examination,
    note: Option<String>,
}

impl Plan {
    /// Look at all of what is now in the target: at what was held still when it was written, so that
    /// what others write from then on does not count, or else at what is found.
    fn look_at(&self, seen: Option<Result<Seen>>, job: &Job) -> Result<Looked> {
        let Some(seen) = seen.transpose()? else {
            let client = Client::open(&self.target, Access::Source, self.patience, job)?;
            let pin = Arc::new(Pin::take(client, job)?);
            let (facts, found) = examine_pinned(&pin, job)?;
            pin.release();
            return Ok(Looked { facts, found, note: None });
        };
        let pin = seen.pin;
        let looked = examine_pinned(&pin, job);
        let version = pin.version();
        let later = pin.end(job, |client| {
            let later = client.version().is_ok_and(|now| now != version);
            fold(client);
            later
        });
        let (mut facts, found) = looked?;
        let mut note = None;
        let same = pin.pages().is_some() && pin.pages() == self.pages;
        if seen.raced && !same {
            // What was put is not to be seen any more. That is no proof of anything.
            let why = "the database was written to before it could be read back";
            let names: Vec<String> = facts.0.keys().cloned().collect();
            names.into_iter().for_each(|name| facts.unknown(name, why));
            note = Some(format!("{why}: what was put was checked before, and is not proven after"));
        } else if later == Some(true) {
            note = Some(
                "the database was written to since; what was read back is what was there before that"
                    .to_owned(),
            );
        }
        Ok(Looked { facts, found, note })
    }
}

fn examine_pinned(pin: &Arc<Pin>, job: &Job) -> Result<(Facts, Examination)> {
    let facts = observe(pin, job)?;
    let found = pin.ask(job, |client| examine(client, job))?;
    Ok((facts, found))
}

/// Facts of a pinned live database, its pages included.
pub(crate) fn observe(pin: &Arc<Pin>, job: &Job) -> Result<Facts> {
    pin.digest(job)?;
    gather(pin, job, Standing::Observed, None).map(|(facts, _)| facts)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    /// What another connection does while a new content is held still, or before that.
    async fn looked(before: &str, after: &str) -> (Looked, Option<String>) {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("app.db");
        let other = Connection::open(&target).unwrap();
        other
            .execute_batch(
                "PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)",
            )
            .unwrap();
        let mut plan = Plan {
            target,
            staging: PathBuf::new(),
            original: true,
            patience: Duration::ZERO,
            overwrite: true,
            allow_damage: false,
            recovery: None,
            read_back: true,
            pages: None,
        };
        let (before, after) = (before.to_owned(), after.to_owned());
        let cx = Context::system();
        let looked = work(&cx, move |job| {
            let client = Client::open(&plan.target, Access::Target, plan.patience, job)?;
            let pin = Arc::new(Pin::take(client, job)?);
            pin.digest(job)?;
            plan.pages = pin.pages();
            drop(pin);
            let client = Client::open(&plan.target, Access::Target, plan.patience, job)?;
            // As a replacement does: its own commit is not one of somebody else.
            let version = client.version()?;
            client.run("UPDATE t SET x = 1", "")?;
            other.execute_batch(&before).unwrap();
            let seen = Seen::take(client, Some(version), job)?;
            other.execute_batch(&after).unwrap();
            Ok((plan.look_at(Some(Ok(seen)), job)?, plan.pages))
        });
        looked.await.unwrap()
    }

    #[tokio::test]
    async fn what_others_write_later_does_not_count() {
        let (looked, pages) = looked("", "INSERT INTO t VALUES (2)").await;
        assert_eq!(looked.facts.0["rows.t"].value, 1i64.into());
        assert!(looked.facts.0["pages"].value.to_string() == pages.unwrap());
        assert!(looked.note.unwrap().contains("written to since"));
    }

    #[tokio::test]
    async fn what_was_written_over_at_once_is_neither_proven_nor_wrong() {
        let (first, _) = looked("INSERT INTO t VALUES (2)", "").await;
        let unknown = |f: &snapkit_core::facts::Fact| f.standing == Standing::Unknown;
        assert!(
            first.facts.0.len() > 5 && first.facts.0.values().all(unknown),
            "{:?}",
            first.facts
        );
        assert!(first.note.unwrap().contains("before it could be read back"));
        // With nobody else there is nothing to say.
        let (quiet, pages) = looked("", "").await;
        assert_eq!(quiet.note, None);
        assert_eq!(quiet.facts.0["pages"].value.to_string(), pages.unwrap());
    }
}
