//! The source.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use snapkit_core::artifact::{ArtifactMeta, Body, SourceName};
use snapkit_core::context::Context;
use snapkit_core::facts::Facts;
use snapkit_core::manifest::SourceRecord;
use snapkit_core::registry::{Registry, settings};
use snapkit_core::source::{
    Capture, Findings, FreezeSpeed, Restore, RestoreRequest, Source, SourceInfo,
};
use snapkit_core::{Error, Reason, Result};

use crate::capture::{SqliteCapture, open_source};
use crate::client::{Access, Client, Job, work};
use crate::config::SqliteConfig;
use crate::error::shown;
use crate::integrity::{examine_whole, orphans};
use crate::pages::{HEADER, VERSIONS};
use crate::pin::Pin;
use crate::restore::{SqliteRestore, observe};
use crate::scratch::{Scratch, create_private, place};
use crate::staging::{self, Fate};

/// The word for this kind of source in a stack file.
const KIND: &str = "sqlite";

/// Teach a registry the kind `sqlite`.
pub fn register(registry: &mut Registry) {
    registry.register(KIND, |name, value| {
        let config = settings(&name, value)?;
        Ok(Arc::new(Sqlite::new(name, config)?))
    });
}

/// One SQLite database.
///
/// A capture has one artifact, named like the file: the image of the database at one moment. In WAL
/// mode it is read from a read transaction that stays open until the capture ends; the log cannot be
/// reset meanwhile and grows with what is written. In rollback mode, or where the SQLite library
/// cannot hand out pages, it is first copied to a nameless scratch file in `TMPDIR` with writers
/// stopped, which takes as much room there as the database has.
///
/// Facts: `page_size`, `page_count`, `user_version`, `application_id`, `schema` (a digest), `tables`,
/// `rows.TABLE` for up to 256 tables, and `pages`, a digest of the image without those parts of its
/// header that change although the content does not. At capture rows are counted for up to 5 s.
#[derive(Debug)]
pub struct Sqlite {
    info: SourceInfo,
    config: SqliteConfig,
}

impl Sqlite {
    /// A source for a database. No I/O.
    ///
    /// # Errors
    ///
    /// `invalid-config` if the path names no file or the timeout is too long.
    pub fn new(name: SourceName, config: SqliteConfig) -> Result<Self> {
        let config = config.absolute().map_err(|e| e.with("source", &name))?;
        let settings = serde_json::to_value(&config)
            .map_err(|e| Error::internal("settings cannot be written").caused_by(e))?;
        let info = SourceInfo {
            name,
            kind: KIND.to_owned(),
            settings,
            concurrency: 1,
            freeze: FreezeSpeed::Instant,
        };
        Ok(Self { info, config })
    }
}

#[async_trait]
impl Source for Sqlite {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    async fn capture(
        &self,
        cx: &Context,
        basis: Option<&SourceRecord>,
    ) -> Result<Box<dyn Capture>> {
        Ok(Box::new(SqliteCapture::prepare(cx, &self.config, basis).await?))
    }

    async fn restore(&self, cx: &Context, request: &RestoreRequest) -> Result<Box<dyn Restore>> {
        Ok(Box::new(SqliteRestore::prepare(cx, &self.config, request).await?))
    }

    async fn facts(&self, cx: &Context) -> Result<Facts> {
        let config = self.config.clone();
        work(cx, move |job| {
            let pin = Arc::new(Pin::take(open_source(&config, job)?, job)?);
            let facts = observe(&pin, job)?;
            pin.release();
            Ok(facts)
        })
        .await
    }

    async fn check(&self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<Findings> {
        let place = meta.name.to_string();
        let body = body.into_bytes()?;
        let inner = cx.clone();
        let begun = work(cx, move |job| NamelessCopy::begin(&inner, job)).await;
        let (scratch, client) = begun.map_err(not_about_content)?;
        let (len, _) =
            staging::write(cx, scratch.file()?, Fate::Scratch, cannot_check, body).await?;
        work(cx, move |job| {
            let mut findings = Findings::default();
            client.attend(job);
            scratch.without_log(len)?;
            let found = examine_whole(&client, len, job)?;
            let sound = found.damage.is_empty();
            found.damage.into_iter().for_each(|line| findings.add(place.as_str(), line));
            if sound {
                orphans(&client)?.into_iter().for_each(|line| findings.add(place.as_str(), line));
            }
            Ok(findings)
        })
        .await
    }
}

/// A copy to examine, with a connection to it. It has no name any more before anything is in it, so that
/// nothing of it stays behind, however this ends.
#[derive(Debug)]
struct NamelessCopy(File);

impl NamelessCopy {
    fn begin(cx: &Context, job: &Job) -> Result<(Self, Client)> {
        let scratch = Scratch::new(cx)?;
        let path = scratch.file();
        let file = create_private(&path)?;
        let client = Client::open(&path, Access::Source, Duration::ZERO, job)?;
        drop(scratch);
        Ok((Self(file), client))
    }

    /// The file, to be written.
    fn file(&self) -> Result<File> {
        self.0.try_clone().map_err(cannot_check)
    }

    /// A connection would look for the log of what says that it has one.
    fn without_log(&self, len: u64) -> Result<()> {
        let mut mark = [0; 2];
        let at = VERSIONS.start as u64;
        if len < HEADER as u64 {
            return Ok(());
        }
        self.0.read_exact_at(&mut mark, at).map_err(cannot_check)?;
        if mark == [2, 2] {
            self.0.write_all_at(&[1, 1], at).map_err(cannot_check)?;
        }
        Ok(())
    }
}

/// That there is no room for the copy, or that its disk is broken, says nothing about what is stored.
fn cannot_check(error: std::io::Error) -> Error {
    let what =
        format!("could not be checked: a copy of it cannot be written to {}", shown(&place()));
    not_about_content(Error::io(what, error))
}

/// An error of the place for copies: it says nothing about what is stored.
fn not_about_content(error: Error) -> Error {
    match error.reason() {
        Reason::NoSpace | Reason::Unavailable | Reason::Cancelled | Reason::TimedOut => error,
        _ => {
            let what =
                format!("could not be checked: there is no copy of it in {}", shown(&place()));
            Error::new(Reason::Unavailable, what).caused_by(error)
        }
    }
}
