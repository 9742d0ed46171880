//! A consistent image of a database that lies among other files.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use snapkit_core::Result;
use snapkit_core::artifact::ByteStream;
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;

use crate::client::{Access, Client, Job, work};
use crate::config::SqliteConfig;
use crate::error::shown;
use crate::pin::Pin;

/// A whole database at one moment, as the bytes of a file.
pub struct Image {
    /// Its length in bytes.
    pub size: u64,
    /// Its bytes, in pieces of at most 1 MiB, read as they are asked for. The database is held until
    /// this is dropped: in WAL mode by a read transaction, else by a scratch copy without a name.
    pub body: ByteStream,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} bytes)", self.size)
    }
}

/// Reads databases that lie among other files, in the way in which the source reads its own.
#[derive(Clone, Debug)]
pub struct ImageReader {
    busy_timeout: Duration,
}

impl ImageReader {
    /// One that waits up to `busy_timeout` for a lock.
    #[must_use]
    pub fn new(busy_timeout: Duration) -> Self {
        Self { busy_timeout }
    }

    /// An image of what is committed now. `None` if the file is empty or no SQLite database (an
    /// encrypted one looks like that too): it can then be read like any other file.
    ///
    /// # Errors
    ///
    /// `not-found`, `permission-denied`, `busy` if a lock is held for longer than the timeout,
    /// `no-space` if a scratch copy is needed and has no room.
    pub async fn image(&self, cx: &Context, path: &Path) -> Result<Option<Image>> {
        let (path, patience) = (path.to_owned(), self.busy_timeout);
        let pin = work(cx, move |job| pin(&path, patience, job)).await?;
        Ok(pin.map(|pin| Image { size: pin.about().size(), body: pin.stream(cx) }))
    }
}

impl Default for ImageReader {
    fn default() -> Self {
        Self::new(SqliteConfig::new("").busy_timeout)
    }
}

fn pin(path: &Path, patience: Duration, job: &Job) -> Result<Option<Arc<Pin>>> {
    let path = std::path::absolute(path).doing(|| format!("not a usable path: {}", shown(path)))?;
    let meta =
        std::fs::metadata(&path).doing(|| format!("cannot examine the file: {}", shown(&path)))?;
    if !meta.is_file() || meta.len() == 0 {
        return Ok(None);
    }
    if !Client::is_database(&path, job) {
        return Ok(None);
    }
    let client = Client::open(&path, Access::Source, patience, job)?;
    if !is_database(&client)? {
        return Ok(None);
    }
    Pin::take(client, job).map(|pin| Some(Arc::new(pin)))
}

/// Whether SQLite takes it for a database.
fn is_database(client: &Client) -> Result<bool> {
    let sql = "SELECT count(*) FROM sqlite_schema";
    match client.connection().query_row(sql, [], |row| row.get::<_, i64>(0)) {
        Ok(_) => Ok(true),
        Err(e) if crate::error::code(&e) == Some(rusqlite::ErrorCode::NotADatabase) => Ok(false),
        Err(e) => Err(client.fail(e, "cannot read the database")),
    }
}
