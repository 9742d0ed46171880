//! A connection to a database that can be told to stop, and that waits for locks no longer than it
//! was told to.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use snapkit_core::context::{Context, Timestamp};
use snapkit_core::{Error, Reason, Result};

use crate::error::{NOT_ONE, busy, code, damaged, shown, translate};
use crate::holders::beside;

/// How many steps of SQLite's virtual machine pass between two looks at whether to stop.
const STEPS_BETWEEN_LOOKS: i32 = 4000;

/// The longest pause between two attempts to get a lock.
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// How much is copied between two looks at whether to stop, in bytes.
const COPY_STEP: u32 = 1 << 20;

/// One piece of blocking work: it should stop when its context ends, or when nobody waits for it
/// any more.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    cx: Context,
    abandoned: Arc<AtomicBool>,
}

impl Job {
    /// The context that it runs under.
    pub(crate) fn cx(&self) -> &Context {
        &self.cx
    }

    /// An error if it should stop.
    pub(crate) fn check(&self) -> Result<()> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(Error::new(Reason::Cancelled, "cancelled"));
        }
        self.cx.check()
    }
}

/// Do blocking work on another thread. When the returned future is dropped, the work stops soon.
pub(crate) async fn work<T: Send + 'static>(
    cx: &Context,
    f: impl FnOnce(&Job) -> Result<T> + Send + 'static,
) -> Result<T> {
    struct Abandon(Arc<AtomicBool>);
    impl Drop for Abandon {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let abandoned = Arc::new(AtomicBool::new(false));
    let _abandon = Abandon(Arc::clone(&abandoned));
    let job = Job { cx: cx.clone(), abandoned };
    cx.blocking(move || {
        job.check()?;
        f(&job)
    })
    .await
}

/// How a database is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Somebody's database, to be read. Opened for writing where that is allowed, because readers
    /// of a WAL database share its `-shm`; nothing is written, and what was there stays.
    Source,
    /// Somebody's database, to be overwritten.
    Target,
    /// The same for a WAL database that nobody else uses: from the first lock to closing, no lock is
    /// given back.
    TargetAlone,
    /// A file of our own, to be filled; a crash may lose it.
    Scratch,
    /// A file of our own, to be filled and kept.
    Kept,
    /// A file of our own, complete, that nobody writes to: no locks, no files beside it.
    Immutable,
}

/// What the callbacks of a connection look at.
#[derive(Debug)]
struct Watch {
    job: Job,
    until: Option<Duration>,
    waited: Duration,
    attempt: Timestamp,
}

/// An open database.
#[derive(Debug)]
pub(crate) struct Client {
    connection: Connection,
    watch: Arc<Mutex<Watch>>,
    path: PathBuf,
    access: Access,
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error if what SQLite is going to open beside a database is no file: it would wait at a pipe for ever.
fn refuse_odd_sidecars(path: &Path) -> Result<()> {
    for suffix in ["-journal", "-wal", "-shm"] {
        let mut sidecar = path.as_os_str().to_owned();
        sidecar.push(suffix);
        let sidecar = Path::new(&sidecar);
        if std::fs::symlink_metadata(sidecar).is_ok_and(|meta| !meta.is_file()) {
            let what = "what stands where the database keeps its log is no file: move it away";
            return Err(Error::invalid(what)
                .with("path", shown(path))
                .with("in_the_way", shown(sidecar)));
        }
    }
    Ok(())
}

impl Client {
    /// Open a database that exists, waiting up to `patience` whenever a lock is needed. SQLite reads
    /// nothing yet: what is not a database shows at the first question.
    pub(crate) fn open(path: &Path, access: Access, patience: Duration, job: &Job) -> Result<Self> {
        if access == Access::Source && !Self::is_database(path, job) {
            return Err(Error::invalid(NOT_ONE).with("path", shown(path)));
        }
        Self::open_unseen(path, access, patience, job)
    }

    /// Whether SQLite takes a file for a database. SQLite takes what lies beside a file for its journal, and
    /// plays it back or deletes it, before it looks whether the file is a database at all. So it is asked
    /// in the one way that looks at nothing else, takes no lock and changes nothing. An encrypted database is
    /// none. What cannot be said now, the one who opens it will hear.
    pub(crate) fn is_database(path: &Path, job: &Job) -> bool {
        let Ok(client) = Self::open_unseen(path, Access::Immutable, Duration::ZERO, job) else {
            return true;
        };
        let answer = client
            .connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
        !answer.is_err_and(|e| code(&e) == Some(rusqlite::ErrorCode::NotADatabase))
    }

    fn open_unseen(path: &Path, access: Access, patience: Duration, job: &Job) -> Result<Self> {
        if access != Access::Immutable {
            refuse_odd_sidecars(path)?;
        }
        let shared = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_PRIVATE_CACHE;
        let opened = if access == Access::Immutable {
            let flags = shared | OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            Connection::open_with_flags(immutable_uri(path), flags)
        } else {
            Connection::open_with_flags(path, shared | OpenFlags::SQLITE_OPEN_READ_WRITE)
        };
        let fail = |e| translate(e, "cannot open the database", path);
        let mut connection = opened.map_err(fail)?;
        let watch = Arc::new(Mutex::new(Watch {
            job: job.clone(),
            until: None,
            waited: Duration::ZERO,
            attempt: Timestamp::default(),
        }));
        watched(&mut connection, &watch, patience).map_err(fail)?;
        configure(&connection, path, access).map_err(fail)?;
        Ok(Self { connection, watch, path: path.to_owned(), access })
    }

    /// Have errors name another file: what is wrong with a copy is wrong with what it is a copy of.
    pub(crate) fn in_name_of(self, path: &Path) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// SQLite's own handle.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// SQLite's own handle, for what needs it alone.
    pub(crate) fn connection_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Work for this job from now on.
    pub(crate) fn attend(&self, job: &Job) {
        let mut watch = lock(&self.watch);
        watch.job = job.clone();
        watch.until = None;
    }

    /// Interrupt what takes longer than `budget` from now; `None` for no limit.
    pub(crate) fn limit(&self, budget: Option<Duration>) {
        let mut watch = lock(&self.watch);
        watch.until = budget.map(|b| watch.job.cx.monotonic().saturating_add(b));
    }

    /// Whether the limit has passed.
    pub(crate) fn is_over_limit(&self) -> bool {
        let watch = lock(&self.watch);
        watch.until.is_some_and(|until| watch.job.cx.monotonic() >= until)
    }

    /// An error of SQLite as one of ours; if the job was told to stop, that is the error.
    pub(crate) fn fail(&self, error: rusqlite::Error, what: &str) -> Error {
        let go_on = lock(&self.watch).job.check();
        match go_on {
            Err(stopped) => stopped,
            Ok(()) => translate(error, what, &self.path),
        }
    }

    /// Run statements that answer nothing, or whose answer does not matter.
    pub(crate) fn run(&self, sql: &str, what: &str) -> Result<()> {
        self.connection.execute_batch(sql).map_err(|e| self.fail(e, what))
    }

    /// The number that a query answers.
    pub(crate) fn number(&self, sql: &str) -> Result<i64> {
        self.connection.query_row(sql, [], |row| row.get(0)).map_err(|e| self.unanswered(e))
    }

    /// The text that a query answers.
    pub(crate) fn text(&self, sql: &str) -> Result<String> {
        self.connection.query_row(sql, [], |row| row.get(0)).map_err(|e| self.unanswered(e))
    }

    /// A question was not answered. Where the answer is wanted for writing, a lock is in the way of that.
    fn unanswered(&self, error: rusqlite::Error) -> Error {
        let locked = matches!(
            code(&error),
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
        );
        let writing = matches!(self.access, Access::Target | Access::TargetAlone);
        self.fail(error, if locked && writing { WRITE } else { READ })
    }

    /// A number that is another one whenever somebody else has committed since it was last asked for.
    pub(crate) fn version(&self) -> Result<i64> {
        self.number("PRAGMA data_version")
    }

    /// Whether it is in WAL mode.
    pub(crate) fn is_wal(&self) -> Result<bool> {
        Ok(self.text("PRAGMA journal_mode")? == "wal")
    }

    /// Its page size in bytes.
    pub(crate) fn page_size(&self) -> Result<u32> {
        let size = self.number("PRAGMA page_size")?;
        u32::try_from(size)
            .ok()
            .filter(|s| s.is_power_of_two() && (512..=65_536).contains(s))
            .ok_or_else(|| damaged(format!("the database has pages of {size} bytes")))
    }

    /// Fold the log into the database when it is closed, as any other program would.
    pub(crate) fn tidy_on_close(&self) -> Result<()> {
        self.connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
            .map(drop)
            .map_err(|e| self.fail(e, READ))
    }

    /// Its length in pages.
    pub(crate) fn page_count(&self) -> Result<u32> {
        let count = self.number("PRAGMA page_count")?;
        u32::try_from(count).map_err(|_| damaged(format!("the database has {count} pages")))
    }

    /// Pin what is committed now: begin a read transaction and read. Answers the moment, as an
    /// interval.
    pub(crate) fn begin_read(&self) -> Result<(Timestamp, Timestamp)> {
        let now = || lock(&self.watch).job.cx.now();
        lock(&self.watch).attempt = Timestamp::default();
        let begin = now();
        self.run("BEGIN", READ)?;
        if let Err(e) = self.number("SELECT count(*) FROM sqlite_schema") {
            self.rollback();
            return Err(e);
        }
        let attempt = lock(&self.watch).attempt;
        Ok((begin.max(attempt), now()))
    }

    /// End a transaction, if there is one.
    pub(crate) fn rollback(&self) {
        if !self.connection.is_autocommit()
            && let Err(e) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::debug!(path = %shown(&self.path), error = %e, "a transaction did not end");
        }
    }

    /// Copy all of this database into another through SQLite's backup API. A read transaction that
    /// is open here holds still what is copied.
    pub(crate) fn copy_to(&self, other: &mut Self, job: &Job) -> Result<()> {
        let step = copy_step(self.page_size()?);
        let place = other.path.clone();
        let backup = Backup::new(&self.connection, other.connection_mut())
            .map_err(|e| self.fail(e, "cannot copy the database"))?;
        while copied(&backup, step, job, &place)? != StepResult::Done {}
        Ok(())
    }
}

const READ: &str = "cannot read the database";

/// What is being done where a database is overwritten.
pub(crate) const WRITE: &str = "cannot write the database";

/// How many pages to copy between two looks at whether to stop.
pub(crate) fn copy_step(page_size: u32) -> i32 {
    i32::try_from(COPY_STEP / page_size.max(512)).unwrap_or(16).max(16)
}

/// One step of a copy: `More` or `Done`.
pub(crate) fn copied(
    backup: &Backup<'_, '_>,
    pages: i32,
    job: &Job,
    place: &Path,
) -> Result<StepResult> {
    job.check()?;
    match backup.step(pages) {
        Ok(done @ (StepResult::Done | StepResult::More)) => Ok(done),
        Ok(_) => {
            job.check()?;
            Err(busy(WRITE, place))
        }
        Err(e) => {
            job.check()?;
            Err(translate(e, "cannot copy the database", place))
        }
    }
}

/// Let the connection look at its job while it computes and while it waits.
fn watched(
    connection: &mut Connection,
    watch: &Arc<Mutex<Watch>>,
    patience: Duration,
) -> rusqlite::Result<()> {
    let computing = Arc::clone(watch);
    connection.progress_handler(
        STEPS_BETWEEN_LOOKS,
        Some(move || {
            let watch = lock(&computing);
            watch.job.check().is_err()
                || watch.until.is_some_and(|until| watch.job.cx.monotonic() >= until)
        }),
    )?;
    let waiting = Arc::clone(watch);
    connection.busy_handler(Some(move |attempt: i32| {
        let pause = {
            let mut watch = lock(&waiting);
            if attempt == 0 {
                watch.waited = Duration::ZERO;
            }
            // Counted, not read from a clock: a simulated one stands still.
            if watch.job.check().is_err() || watch.waited >= patience {
                return false;
            }
            let pause =
                Duration::from_millis(1 + u64::try_from(attempt).unwrap_or(0)).min(LONGEST_PAUSE);
            watch.waited += pause;
            pause
        };
        std::thread::sleep(pause);
        let mut watch = lock(&waiting);
        watch.attempt = watch.job.cx.now();
        true
    }))
}

/// Settings for databases that somebody else may have made to do harm.
fn configure(connection: &Connection, path: &Path, access: Access) -> rusqlite::Result<()> {
    // A defensive connection keeps its journal; a scratch copy needs none.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, access != Access::Scratch)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.execute_batch("PRAGMA mmap_size = 0; PRAGMA cell_size_check = ON")?;
    if matches!(access, Access::Source | Access::Target) && log_len(path).is_some() {
        // Closing the last connection folds the log into the database and deletes it, even if the
        // database cannot be read, for example because it is encrypted. What we found we leave;
        // what came into being because we opened the database goes again.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    }
    match access {
        Access::Source => connection.execute_batch("PRAGMA query_only = ON"),
        Access::Target => Ok(()),
        Access::Kept => Ok(()),
        // Before anything is read: the database is then used without its `-shm`.
        Access::TargetAlone => connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE"),
        Access::Scratch => {
            connection.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
        }
        Access::Immutable => connection.execute_batch("PRAGMA query_only = ON"),
    }
}

/// The length of a database's write-ahead log, if there is one.
fn log_len(path: &Path) -> Option<u64> {
    let real = std::fs::canonicalize(path);
    std::fs::metadata(beside(real.as_deref().unwrap_or(path), "-wal")).ok().map(|m| m.len())
}

/// Whether there is a log with content beside an empty database: SQLite would delete it.
pub(crate) fn is_emptied(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.len() == 0) && log_len(path).is_some_and(|len| len > 0)
}

/// `file:/path?immutable=1`, whatever bytes the path has.
fn immutable_uri(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri.push_str("?immutable=1");
    uri
}

/// Whether a query failed because SQLite lacks something, such as a collation that the program
/// which made the database brings along.
pub(crate) fn is_lacking(error: &rusqlite::Error) -> bool {
    matches!(code(error), Some(rusqlite::ErrorCode::Unknown))
}
