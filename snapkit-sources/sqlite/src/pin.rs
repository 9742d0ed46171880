//! A database held still: one moment of it, readable as often and as slowly as one likes.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::stream::try_unfold;
use snapkit_core::artifact::{ByteStream, MAX_PIECE};
use snapkit_core::context::{Context, Timestamp};
use snapkit_core::error::IoContext as _;
use snapkit_core::{Error, Result};

use crate::client::{Access, Client, Job, work};
use crate::pages::{PageDigest, VERSIONS, lock_page};
use crate::scratch::{Scratch, create_private};

/// What is known of a pinned database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct About {
    /// Bytes in a page.
    pub(crate) page_size: u32,
    /// Pages in it.
    pub(crate) page_count: u32,
    /// Whether its header says that it is in WAL mode.
    pub(crate) wal: bool,
    /// SQLite's word for the journal mode.
    pub(crate) journal_mode: String,
    /// A number that belongs to the application.
    pub(crate) user_version: i64,
    /// Another one.
    pub(crate) application_id: i64,
}

impl About {
    fn read(client: &Client) -> Result<Self> {
        let journal_mode = client.text("PRAGMA journal_mode")?;
        Ok(Self {
            page_size: client.page_size()?,
            page_count: client.page_count()?,
            wal: journal_mode == "wal",
            journal_mode,
            user_version: client.number("PRAGMA user_version")?,
            application_id: client.number("PRAGMA application_id")?,
        })
    }

    /// Its length in bytes.
    pub(crate) fn size(&self) -> u64 {
        u64::from(self.page_size) * u64::from(self.page_count)
    }
}

/// What holds it still.
#[derive(Debug)]
struct Held {
    /// A read transaction on the live database, or on the private copy.
    client: Client,
    /// The private copy, if there is one. It has no name any more.
    copy: Option<File>,
}

/// A pinned database. Released by [`Pin::release`], or when the last user drops it.
#[derive(Debug)]
pub(crate) struct Pin {
    about: About,
    moment: (Timestamp, Timestamp),
    /// See [`Client::version`].
    version: i64,
    held: Mutex<Option<Held>>,
    pages: Mutex<Option<String>>,
}

impl Pin {
    /// Pin what is committed now. A WAL database is held by a read transaction, where pages can be
    /// read through one; any other is copied before this returns, with its writers stopped.
    pub(crate) fn take(live: Client, job: &Job) -> Result<Self> {
        live.attend(job);
        let moment = live.begin_read()?;
        let about = About::read(&live)?;
        let version = live.version()?;
        let mut pin = if about.wal && has_page_table(&live)? {
            Self::new(about, moment, Held { client: live, copy: None })
        } else {
            Self::copy(&live, about, moment, job)?
        };
        pin.version = version;
        Ok(pin)
    }

    /// Pin by a copy, whatever the journal mode. A read transaction must be open.
    fn copy(
        live: &Client,
        about: About,
        moment: (Timestamp, Timestamp),
        job: &Job,
    ) -> Result<Self> {
        let scratch = Scratch::new(job.cx())?;
        let path = scratch.file();
        let file = create_private(&path)?;
        let mut writer = Client::open(&path, Access::Scratch, std::time::Duration::ZERO, job)?;
        let reader = Client::open(&path, Access::Source, std::time::Duration::ZERO, job)?;
        let reader = reader.in_name_of(live.path());
        // All three have it open: from here on nothing is left behind, however this ends.
        drop(scratch);
        live.copy_to(&mut writer, job)?;
        live.rollback();
        drop(writer);
        if about.wal {
            // The copy has no log. Its reader must not look for one; `read` puts the mark back.
            file.write_all_at(&[1, 1], VERSIONS.start as u64)
                .doing(|| "cannot write the scratch copy".to_owned())?;
        }
        reader.begin_read()?;
        // A database without any page becomes one with an empty first page.
        let copied = About::read(&reader)?;
        let about = About { page_size: copied.page_size, page_count: copied.page_count, ..about };
        Ok(Self::new(about, moment, Held { client: reader, copy: Some(file) }))
    }

    fn new(about: About, moment: (Timestamp, Timestamp), held: Held) -> Self {
        Self { about, moment, version: 0, held: Mutex::new(Some(held)), pages: Mutex::new(None) }
    }

    /// What is known of it.
    pub(crate) fn about(&self) -> &About {
        &self.about
    }

    /// When it was so: not before the first, not after the second.
    pub(crate) fn moment(&self) -> (Timestamp, Timestamp) {
        self.moment
    }

    /// The live database's [`Client::version`] at that moment.
    pub(crate) fn version(&self) -> i64 {
        self.version
    }

    /// Let go of the moment, and do something more with the live database, if it is held.
    pub(crate) fn end<T>(&self, job: &Job, f: impl FnOnce(&Client) -> T) -> Option<T> {
        let held = self.lock().take()?;
        if held.copy.is_some() {
            return None;
        }
        held.client.attend(job);
        held.client.rollback();
        Some(f(&held.client))
    }

    /// The digest of its pages, once a reader has come to the end.
    pub(crate) fn pages(&self) -> Option<String> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Let go of the database. Readers that are not at the end get an error.
    pub(crate) fn release(&self) {
        drop(self.lock().take());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ask the pinned database something.
    pub(crate) fn ask<T>(&self, job: &Job, f: impl FnOnce(&Client) -> Result<T>) -> Result<T> {
        let held = self.lock();
        let held = held.as_ref().ok_or_else(released)?;
        held.client.attend(job);
        f(&held.client)
    }

    /// Read so many pages, the first page being 1.
    pub(crate) fn read(&self, job: &Job, first: u32, count: u32) -> Result<Vec<u8>> {
        let held = self.lock();
        let held = held.as_ref().ok_or_else(released)?;
        held.client.attend(job);
        let mut out = vec![0; count as usize * self.about.page_size as usize];
        match &held.copy {
            Some(file) => self.read_copy(file, first, &mut out)?,
            None => self.read_live(&held.client, first, &mut out)?,
        }
        Ok(out)
    }

    fn read_copy(&self, file: &File, first: u32, out: &mut [u8]) -> Result<()> {
        let start = u64::from(first - 1) * u64::from(self.about.page_size);
        let lock = lock_page(self.about.page_size);
        for (page, at) in out.chunks_mut(self.about.page_size as usize).zip(0u64..) {
            let at = start + at * u64::from(self.about.page_size);
            if !lock.contains(&at) {
                file.read_exact_at(page, at).doing(|| "cannot read the scratch copy".to_owned())?;
            }
        }
        if self.about.wal && first == 1 {
            out[VERSIONS].copy_from_slice(&[2, 2]);
        }
        Ok(())
    }

    fn read_live(&self, client: &Client, first: u32, out: &mut [u8]) -> Result<()> {
        let fail = |e| client.fail(e, "cannot read the database");
        let mut query = client
            .connection()
            .prepare("SELECT data FROM sqlite_dbpage WHERE pgno = ?1")
            .map_err(fail)?;
        for (page, number) in out.chunks_mut(self.about.page_size as usize).zip(first..) {
            let whole = query
                .query_row([number], |row| {
                    let data = row.get_ref(0)?.as_blob()?;
                    let whole = data.len() == page.len();
                    if whole {
                        page.copy_from_slice(data);
                    }
                    Ok(whole)
                })
                .map_err(fail)?;
            if !whole {
                return Err(Error::corrupt(format!("page {number} of the database is not whole")));
            }
        }
        Ok(())
    }

    /// Read all of it here and now, for its digest.
    pub(crate) fn digest(self: &Arc<Self>, job: &Job) -> Result<()> {
        let mut reading = Reading::new(Arc::clone(self));
        while reading.piece(job)?.is_some() {
            job.check()?;
        }
        Ok(())
    }

    /// Its pages, read as they are asked for.
    pub(crate) fn stream(self: &Arc<Self>, cx: &Context) -> ByteStream {
        let cx = cx.clone();
        Box::pin(try_unfold(Reading::new(Arc::clone(self)), move |mut reading| {
            let cx = cx.clone();
            async move {
                work(&cx, move |job| Ok(reading.piece(job)?.map(|piece| (piece, reading)))).await
            }
        }))
    }
}

fn released() -> Error {
    Error::invalid("the capture has ended, and its content can no longer be read")
}

/// A reader of a pinned database on its way.
#[derive(Debug)]
struct Reading {
    pin: Arc<Pin>,
    next: u32,
    digest: PageDigest,
}

impl Reading {
    fn new(pin: Arc<Pin>) -> Self {
        let digest = PageDigest::new(pin.about.page_size);
        Self { pin, next: 1, digest }
    }

    /// The next whole pages, or `None` at the end.
    fn piece(&mut self, job: &Job) -> Result<Option<Bytes>> {
        let about = &self.pin.about;
        let left = about.page_count.saturating_sub(self.next - 1);
        let most = u32::try_from(MAX_PIECE).unwrap_or(u32::MAX) / about.page_size;
        let count = left.min(most);
        let piece = if count == 0 { None } else { Some(self.pin.read(job, self.next, count)?) };
        if let Some(piece) = &piece {
            self.digest.update(piece);
            self.next += count;
        }
        if count == left {
            *self.pin.pages.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(self.digest.finish());
        }
        Ok(piece.map(Bytes::from))
    }
}

/// Whether this SQLite can hand out pages through a table.
fn has_page_table(client: &Client) -> Result<bool> {
    client
        .number("SELECT count(*) FROM pragma_module_list WHERE name = 'sqlite_dbpage'")
        .map(|n| n > 0)
}

/// Whether a database of this size must be copied to be pinned.
pub(crate) fn needs_copy(client: &Client) -> Result<bool> {
    Ok(!client.is_wal()? || !has_page_table(client)?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use futures_util::TryStreamExt as _;
    use rusqlite::Connection;

    use super::*;

    async fn image(pin: &Arc<Pin>, cx: &Context) -> Vec<u8> {
        pin.stream(cx).try_collect::<Vec<_>>().await.unwrap().concat()
    }

    async fn take(cx: &Context, path: &Path, copy: bool) -> Arc<Pin> {
        let path = path.to_owned();
        let pin = work(cx, move |job| {
            let live = Client::open(&path, Access::Source, Duration::ZERO, job)?;
            if !copy {
                return Pin::take(live, job);
            }
            let moment = live.begin_read()?;
            let about = About::read(&live)?;
            Pin::copy(&live, about, moment, job)
        });
        Arc::new(pin.await.unwrap())
    }

    /// Where pages cannot be read through a table, a copy says the same, WAL mode included.
    #[tokio::test]
    async fn a_copy_is_as_good_as_a_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(
            "PRAGMA journal_mode = WAL; CREATE TABLE t (x);
             WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < 5000)
             INSERT INTO t SELECT randomblob(500) FROM i",
        )
        .unwrap();
        let cx = Context::system();
        let live = take(&cx, &path, false).await;
        let copy = take(&cx, &path, true).await;
        db.execute_batch("DELETE FROM t").unwrap();
        let (a, b) = (image(&live, &cx).await, image(&copy, &cx).await);
        assert_eq!((live.about(), live.pages()), (copy.about(), copy.pages()));
        assert!(live.pages().is_some() && copy.about().wal && b[VERSIONS] == [2, 2]);
        let other: Vec<_> = (0..a.len()).filter(|i| a[*i] != b[*i]).collect();
        assert!(other.iter().all(|i| *i < 100), "{other:?}");
        copy.release();
        assert!(copy.stream(&cx).try_collect::<Vec<_>>().await.is_err());
    }
}
