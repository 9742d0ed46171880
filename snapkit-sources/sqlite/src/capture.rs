//! A capture: pin, hand out the pages, say what they are.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Fingerprint, Shape};
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::manifest::{ArtifactRecord, CaptureVerdict, SourceRecord};
use snapkit_core::source::{Capture, CaptureReport, Consistency, Cut};
use snapkit_core::tree::escape;
use snapkit_core::{Error, Reason, Result};

use crate::client::{Access, Client, Job, is_emptied, work};
use crate::config::SqliteConfig;
use crate::error::{emptied, shown};
use crate::facts::{COUNTING, gather};
use crate::fingerprint::Before;
use crate::pin::{Pin, needs_copy};
use crate::scratch::{place, require_space};

/// The media type of a database.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.sqlite3";

/// How far a capture has come.
#[derive(Debug)]
enum Stage {
    /// Only a connection's own thread may look at it; the lock is never waited for.
    Ready(Mutex<Client>),
    Pinned(Arc<Pin>),
    Nothing,
}

/// A capture of one database.
#[derive(Debug)]
pub(crate) struct SqliteCapture {
    path: PathBuf,
    stage: Stage,
    meta: Option<ArtifactMeta>,
    named: bool,
    /// The files before they were opened, if the next capture may know them again.
    before: Option<Before>,
    /// What the last capture left, if nothing was wrong with it.
    was: Option<SourceRecord>,
}

impl SqliteCapture {
    /// Open the database and see whether it can be captured.
    pub(crate) async fn prepare(
        cx: &Context,
        config: &SqliteConfig,
        basis: Option<&SourceRecord>,
    ) -> Result<Self> {
        let config = config.clone();
        // What was damaged is read again each time, so that each snapshot says so.
        let spoiled = basis.is_some_and(|b| b.verdict != CaptureVerdict::Complete);
        let was = basis.filter(|_| !spoiled).cloned();
        work(cx, move |job| {
            let now = job.cx().now();
            let (client, before) =
                Before::and_open(&config.path, now, || open_source(&config, job))?;
            let before = before.filter(|_| !spoiled);
            client.number("SELECT count(*) FROM sqlite_schema")?;
            if needs_copy(&client)? {
                let size = u64::from(client.page_size()?) * u64::from(client.page_count()?);
                require_space(&place(), size, "a scratch copy of the database")?;
            }
            Ok(Self {
                path: config.path,
                stage: Stage::Ready(Mutex::new(client)),
                meta: None,
                named: false,
                before,
                was,
            })
        })
        .await
    }

    /// The facts of the last capture, if it was of the same content and this one has not been read.
    fn known_facts(&self, pin: &Pin) -> Option<Facts> {
        let (meta, was) = (self.meta.as_ref()?, self.was.as_ref()?);
        let same = |a: &&ArtifactRecord| a.meta.name == meta.name;
        let is = meta.fingerprint.as_ref()?;
        let known = was.artifacts.iter().find(same)?.meta.fingerprint.as_ref()? == is;
        (known && pin.pages().is_none()).then(|| was.facts.clone())
    }

    /// A problem if the database has several names. SQLite keeps beside the name by which it opened one what it has not
    /// written into it yet.
    fn several_names(&self) -> Option<Error> {
        let names = std::fs::metadata(&self.path).ok()?.nlink();
        let what = format!(
            "the database has {names} names (hard links): what a program has written by another one may be missing; give \
             it one name"
        );
        (names > 1).then(|| Error::new(Reason::Unsupported, what).with("path", shown(&self.path)))
    }

    fn pin(&self) -> Result<&Arc<Pin>> {
        match &self.stage {
            Stage::Pinned(pin) => Ok(pin),
            _ => Err(Error::invalid("the capture has not been frozen")),
        }
    }

    async fn release(&mut self, cx: &Context) -> Result<()> {
        match std::mem::replace(&mut self.stage, Stage::Nothing) {
            Stage::Ready(client) => close(cx, move || drop(client)).await,
            Stage::Pinned(pin) => close(cx, move || pin.release()).await,
            Stage::Nothing => Ok(()),
        }
    }
}

/// Closing waits for files. It is done even where the context has ended.
async fn close(cx: &Context, f: impl FnOnce() + Send + 'static) -> Result<()> {
    cx.blocking(move || {
        f();
        Ok(())
    })
    .await
}

/// Open a database that is to be read; `source-missing` if there is none.
pub(crate) fn open_source(config: &SqliteConfig, job: &Job) -> Result<Client> {
    let path = &config.path;
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::new(Reason::SourceMissing, "there is no database; check its path")
                .with("path", shown(path)));
        }
        Err(e) => return Err(Error::io("cannot examine the database", e).with("path", shown(path))),
    };
    if !meta.is_file() {
        return Err(
            Error::invalid("not a SQLite database: it is not a file").with("path", shown(path))
        );
    }
    if is_emptied(path) {
        return Err(emptied(path));
    }
    Client::open(path, Access::Source, config.busy_timeout, job)
}

/// The artifact: the database under its own name.
fn describe(path: &Path, pin: &Pin) -> Result<ArtifactMeta> {
    let about = pin.about();
    let owner = std::fs::metadata(path)
        .doing(|| format!("cannot examine the database: {}", shown(path)))?;
    let chunking = Chunking::Pages { page_size: about.page_size };
    Ok(ArtifactMeta::new(artifact_name(path)?, Shape::Bytes, MEDIA_TYPE, chunking)
        .size(about.size())
        .attribute("page_size", about.page_size.to_string())
        .attribute("journal_mode", about.journal_mode.as_str())
        .attribute("user_version", about.user_version.to_string())
        .attribute("application_id", about.application_id.to_string())
        .attribute("mode", format!("{:04o}", owner.mode() & 0o7777))
        .attribute("uid", owner.uid().to_string())
        .attribute("gid", owner.gid().to_string()))
}

/// The file's name where that is text; escaped where it is not, and cut where that is too long.
fn artifact_name(path: &Path) -> Result<ArtifactName> {
    let name = path.file_name().unwrap_or(path.as_os_str()).as_bytes();
    if let Some(name) = std::str::from_utf8(name).ok().and_then(|n| ArtifactName::new(n).ok()) {
        return Ok(name);
    }
    let mut escaped = escape(name);
    if escaped.len() > 255 {
        let digest = blake3::hash(name).to_hex();
        let cut = (0..=200).rev().find(|i| escaped.is_char_boundary(*i)).unwrap_or(0);
        escaped.truncate(cut);
        escaped.push('-');
        escaped.push_str(&digest[..16]);
    }
    ArtifactName::new(escaped)
}

#[async_trait]
impl Capture for SqliteCapture {
    async fn freeze(&mut self, cx: &Context) -> Result<Cut> {
        let Stage::Ready(client) = std::mem::replace(&mut self.stage, Stage::Nothing) else {
            return Err(Error::invalid("the capture has been frozen already"));
        };
        let path = self.path.clone();
        let (pin, meta) = work(cx, move |job| {
            let client = client.into_inner().unwrap_or_else(PoisonError::into_inner);
            let pin = Pin::take(client, job)?;
            let meta = describe(&path, &pin)?;
            Ok((pin, meta))
        })
        .await?;
        let (begin, end) = pin.moment();
        self.stage = Stage::Pinned(Arc::new(pin));
        self.meta = Some(meta);
        Ok(Cut { begin, end, consistency: Consistency::Point, position: None })
    }

    /// Writers go on already: a read transaction does not stop them, and a copy is complete.
    async fn thaw(&mut self, _cx: &Context) -> Result<()> {
        Ok(())
    }

    async fn next(&mut self, cx: &Context) -> Result<Option<ArtifactMeta>> {
        let pin = Arc::clone(self.pin()?);
        if std::mem::replace(&mut self.named, true) {
            return Ok(None);
        }
        if let Some(before) = self.before.take()
            && let Some(meta) = &mut self.meta
        {
            let fingerprint = work(cx, move |job| before.fingerprint(&pin, job)).await?;
            meta.fingerprint = fingerprint.map(Fingerprint);
        }
        Ok(self.meta.clone())
    }

    async fn open(&self, cx: &Context, name: &ArtifactName) -> Result<Body> {
        let pin = self.pin()?;
        match &self.meta {
            Some(meta) if meta.name == *name => Ok(Body::Bytes(pin.stream(cx))),
            _ => Err(Error::new(Reason::NotFound, "no such artifact").with("artifact", name)),
        }
    }

    async fn finish(mut self: Box<Self>, cx: &Context) -> Result<CaptureReport> {
        let pin = Arc::clone(self.pin()?);
        if let Some(facts) = self.known_facts(&pin) {
            self.release(cx).await?;
            let mut report = CaptureReport::from(facts);
            let place = self.meta.as_ref().map(|m| m.name.to_string()).unwrap_or_default();
            report.problems.extend(self.several_names().map(|e| (place, e)));
            return Ok(report);
        }
        let gathered =
            work(cx, move |job| gather(&pin, job, Standing::Pinned, Some(COUNTING))).await;
        self.release(cx).await?;
        let (facts, damage) = gathered?;
        let mut report = CaptureReport::from(facts);
        let place = self.meta.as_ref().map(|m| m.name.to_string()).unwrap_or_default();
        report.problems.extend(damage.map(|e| (place.clone(), e)));
        report.problems.extend(self.several_names().map(|e| (place, e)));
        Ok(report)
    }

    async fn abort(mut self: Box<Self>, cx: &Context) -> Result<()> {
        self.release(cx).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn names_are_text_and_not_too_long() {
        let name =
            |bytes: &[u8]| artifact_name(Path::new(OsStr::from_bytes(bytes))).unwrap().to_string();
        assert_eq!(name(b"/x/app.db"), "app.db");
        assert_eq!(name(b"/x/a\\b"), "a\\b");
        assert_eq!(name(b"/x/caf\xe9"), "caf\\xe9");
        assert_eq!(name(b"/x/a\nb"), "a\\x0ab");
        let long = name(&[b"/x/".as_slice(), &[0xff; 255]].concat());
        assert!(long.len() <= 255 && long != name(&[b"/x/".as_slice(), &[0xff; 254]].concat()));
    }
}
