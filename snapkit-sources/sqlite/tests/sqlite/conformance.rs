//! The suite that every source passes, on a database of each kind of journal.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use async_trait::async_trait;
use snapkit_core::Result;
use snapkit_core::context::Context;
use snapkit_core::source::{Source, Target};
use snapkit_testkit::source::{self, Harness, State};
use tempfile::TempDir;

use crate::support::{bank, names, source as sqlite};

struct Databases(&'static str);

fn path(system: &TempDir) -> PathBuf {
    system.path().join("app.db")
}

/// What the reference program says; it is another process, so that no lock of this one is lost.
fn shell(system: &TempDir, sql: &str) -> String {
    let output = Command::new("sqlite3").arg("-bail").arg(path(system)).arg(sql).output().unwrap();
    assert!(output.status.success(), "{sql}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[async_trait]
impl Harness for Databases {
    type System = TempDir;

    async fn populated(&self, _: &Context) -> Result<TempDir> {
        let system = tempfile::tempdir().unwrap();
        drop(bank(&path(&system), self.0));
        shell(
            &system,
            "CREATE TABLE things (name BLOB, value); CREATE VIEW few AS SELECT * FROM things LIMIT 3;
             INSERT INTO things VALUES (x'00ff', randomblob(70000)), (NULL, 1.5), ('\u{e4}', zeroblob(9));",
        );
        Ok(system)
    }

    async fn empty(&self, _: &Context) -> Result<TempDir> {
        Ok(tempfile::tempdir().unwrap())
    }

    async fn mutate(&self, _: &Context, system: &TempDir) -> Result<()> {
        shell(system, "UPDATE accounts SET amount = 5 WHERE id % 100 = 1; DROP VIEW few;");
        Ok(())
    }

    async fn state(&self, _: &Context, system: &TempDir) -> Result<State> {
        if !path(system).exists() {
            return Ok(State::new());
        }
        let dump = shell(system, ".dump");
        let mut state: State =
            dump.lines().enumerate().map(|(n, l)| (format!("{n:06}"), l.to_owned())).collect();
        for pragma in ["user_version", "application_id", "journal_mode", "page_size", "encoding"] {
            state.insert(pragma.to_owned(), shell(system, &format!("PRAGMA {pragma}")));
        }
        Ok(state)
    }

    async fn held(&self, _: &Context, system: &TempDir) -> Result<Vec<String>> {
        let own = ["app.db", "app.db-wal", "app.db-shm"];
        let mut held = names(system.path());
        held.retain(|n| !own.contains(&n.as_str()));
        if path(system).exists() {
            // Nobody else may write now, so this fails if anybody holds a lock.
            shell(system, "PRAGMA busy_timeout = 0; BEGIN EXCLUSIVE; ROLLBACK");
        }
        for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
            let open = std::fs::read_link(entry.path()).unwrap_or_default();
            if open.starts_with(system.path()) {
                held.push(format!("{open:?} is open"));
            }
        }
        Ok(held)
    }

    fn source(&self, system: &TempDir) -> Arc<dyn Source> {
        Arc::new(sqlite(&path(system)))
    }

    fn restorer(&self, _: &TempDir, target: &TempDir) -> (Arc<dyn Source>, Target) {
        (self.source(target), Target::Original)
    }

    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }
}

#[tokio::test]
async fn a_database_with_a_write_ahead_log_passes_the_suite() {
    source::all(&Context::system(), &Databases("WAL")).await;
}

#[tokio::test]
async fn a_database_with_a_rollback_journal_passes_the_suite() {
    source::all(&Context::system(), &Databases("DELETE")).await;
}
