//! Databases, and the source without an engine around it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rusqlite::Connection;
use snapkit_core::artifact::{ArtifactMeta, Body, MAX_PIECE, SourceName};
use snapkit_core::context::Context;
use snapkit_core::facts::{Facts, RestoreVerdict};
use snapkit_core::manifest::{ArtifactRecord, ChunkList, ContentRef, SourceRecord};
use snapkit_core::source::{Cut, RestoreReport, RestoreRequest, Source as _, Target};
use snapkit_core::{Result, tree};
use snapkit_source_sqlite::{Sqlite, SqliteConfig};

/// How many accounts a bank has.
pub const ACCOUNTS: i64 = 2000;

/// Whether the long versions are to run.
pub fn long() -> bool {
    std::env::var_os("SNAPKIT_TEST_LONG").is_some()
}

/// A database of accounts whose sum never changes.
pub fn bank(path: &Path, mode: &str) -> Connection {
    let db = Connection::open(path).unwrap();
    db.execute_batch(&format!(
        "PRAGMA journal_mode = {mode};
         CREATE TABLE accounts (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL);
         CREATE INDEX by_amount ON accounts (amount);
         CREATE TABLE transfers (n INTEGER NOT NULL);
         INSERT INTO transfers VALUES (0);
         WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < {ACCOUNTS})
         INSERT INTO accounts SELECT x, 1000 FROM i;
         PRAGMA user_version = 7; PRAGMA application_id = 1234"
    ))
    .unwrap();
    db
}

pub fn number(db: &Connection, sql: &str) -> i64 {
    db.query_row(sql, [], |row| row.get(0)).unwrap()
}

pub fn text(db: &Connection, sql: &str) -> String {
    db.query_row(sql, [], |row| row.get(0)).unwrap()
}

pub fn sum(db: &Connection) -> i64 {
    number(db, "SELECT sum(amount) FROM accounts")
}

pub fn count(db: &Connection) -> i64 {
    number(db, "SELECT count(*) FROM accounts")
}

/// Assert that a database is sound, and what its accounts hold.
pub fn assert_bank(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    assert_eq!(text(&db, "PRAGMA integrity_check"), "ok");
    assert_eq!(sum(&db), ACCOUNTS * 1000);
    db
}

/// A program, which must succeed. Files of a database are touched only by other processes.
pub fn run(program: &str, args: &[&Path]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}");
}

/// What a capture gave.
#[derive(Clone)]
pub struct Captured {
    pub meta: ArtifactMeta,
    pub bytes: Vec<u8>,
    pub facts: Facts,
    pub cut: Cut,
}

pub fn source(path: &Path) -> Sqlite {
    patient(path, Duration::from_secs(10))
}

pub fn patient(path: &Path, patience: Duration) -> Sqlite {
    let mut config = SqliteConfig::new(path);
    config.busy_timeout = patience;
    Sqlite::new(SourceName::new("db").unwrap(), config).unwrap()
}

pub async fn capture_with(cx: &Context, source: &Sqlite) -> Result<Captured> {
    let mut capture = source.capture(cx, None).await?;
    let frozen = capture.freeze(cx).await;
    capture.thaw(cx).await?;
    let cut = frozen?;
    let meta = capture.next(cx).await?.unwrap();
    assert!(capture.next(cx).await?.is_none());
    let body = capture.open(cx, &meta.name).await?.into_bytes()?;
    let pieces: Vec<_> = body.try_collect().await?;
    assert!(pieces.iter().all(|p| !p.is_empty() && p.len() <= MAX_PIECE));
    let bytes = pieces.concat();
    assert_eq!(meta.size_hint, Some(bytes.len() as u64));
    capture.thaw(cx).await?;
    let facts = capture.finish(cx).await?.facts;
    Ok(Captured { meta, bytes, facts, cut })
}

pub async fn capture(path: &Path) -> Result<Captured> {
    capture_with(&Context::system(), &source(path)).await
}

impl Captured {
    pub fn body(&self) -> Body {
        let pieces: Vec<_> =
            self.bytes.chunks(100_001).map(|p| Ok(bytes::Bytes::copy_from_slice(p))).collect();
        Body::Bytes(stream::iter(pieces).boxed())
    }

    /// As a file of its own.
    pub fn write_to(&self, path: &Path) {
        std::fs::write(path, &self.bytes).unwrap();
    }

    pub fn record(&self, source: &Sqlite) -> SourceRecord {
        let content = ChunkList { size: self.bytes.len() as u64, depth: 0, chunks: Vec::new() };
        SourceRecord {
            cut: Some(self.cut.clone()),
            artifacts: vec![ArtifactRecord::new(self.meta.clone(), ContentRef::Bytes { content })],
            facts: self.facts.clone(),
            ..SourceRecord::new(source.info())
        }
    }
}

pub async fn restore_with(
    source: &Sqlite,
    captured: &Captured,
    request: RestoreRequest,
) -> Result<RestoreReport> {
    let cx = Context::system();
    let mut restore = source.restore(&cx, &request).await?;
    if let Err(e) = restore.put(&cx, &captured.meta, captured.body()).await {
        restore.abort(&cx).await?;
        return Err(e);
    }
    restore.finish(&cx).await
}

/// Restore over what is there.
pub async fn overwrite(
    source: &Sqlite,
    captured: &Captured,
    recovery: &Path,
) -> Result<RestoreReport> {
    let mut request = RestoreRequest::new(Target::Original, captured.record(source));
    request.overwrite = true;
    request.recovery = Some(recovery.to_owned());
    restore_with(source, captured, request).await
}

/// Assert that a restore was read back and proven.
pub fn assert_match(captured: &Captured, report: &RestoreReport) {
    let compared = captured.facts.compare(&report.facts);
    assert_eq!(compared.verdict, RestoreVerdict::Match, "{compared:?} {report:?}");
    assert!(compared.proven >= 9, "{compared:?}");
    assert!(report.differences.is_empty() && report.problems.is_empty(), "{report:?}");
}

/// Run the commands that bring an old state back.
pub fn undo(report: &RestoreReport) {
    assert!(!report.undo.is_empty(), "{report:?}");
    let script = format!("set -e\n{}", report.undo.join("\n"));
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{script}\n{output:?}");
}

/// The names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .map(|n| tree::escape(std::os::unix::ffi::OsStrExt::as_bytes(n.as_os_str())))
        .collect();
    names.sort();
    names
}

/// A scratch directory with a place for old states in it.
pub fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (path, recovery) = (dir.path().join("app.db"), dir.path().join("recovery"));
    std::fs::create_dir(&recovery).unwrap();
    (dir, path, recovery)
}
