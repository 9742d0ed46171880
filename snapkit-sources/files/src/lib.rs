//! Directories of files: captured by a walk that disturbs nothing, restored beside their place and
//! moved into it.
//!
//! A capture is one tree. It holds what the file system knows of directories, files, symbolic and
//! hard links, pipes, sockets and devices: owner, mode, times to the nanosecond, extended attributes
//! with the POSIX ACLs among them, and where a sparse file has holes. The walk opens no file; a file
//! is opened when its content is asked for, and whoever compares the walk with the last one need not
//! ask for what is unchanged. Not captured are file attributes such as `chattr` sets, and access
//! times.
//!
//! Databases are known by their names and read by a [`DatabaseReader`], never as plain files.
//!
//! A restore writes below a directory of its own on the file system of the target, makes that
//! durable, and renames it into place. What was there is kept, and the report says how to bring it
//! back. Nothing that a tree holds can lead a restore out of its target.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use snapkit_core::artifact::{ArtifactMeta, Body, SourceName};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::facts::Facts;
use snapkit_core::manifest::SourceRecord;
use snapkit_core::registry::{self, Registry};
use snapkit_core::source::{
    Capture, Findings, FreezeSpeed, Restore, RestoreRequest, Source, SourceInfo,
};

mod attributes;
mod capture;
mod check;
mod config;
mod content;
mod database;
mod dirs;
mod error;
mod facts;
mod ignore;
mod names;
mod pattern;
mod plan;
mod restore;
mod roots;
mod sparse;
mod walk;
mod walked;

pub use config::FilesConfig;
pub use database::{DatabaseImage, DatabaseReader};

use content::Contents;
use dirs::Dirs;
use pattern::Filter;
use plan::{Databases, Plan};
use roots::Roots;

/// The kind under which [`register`] makes this source known.
pub const KIND: &str = "files";

/// Directories of files.
#[derive(Debug)]
pub struct Files {
    info: SourceInfo,
    config: FilesConfig,
    filter: Filter,
    roots: Roots,
    reader: Option<Arc<dyn DatabaseReader>>,
    opened: Arc<AtomicU64>,
}

impl Files {
    /// A source of files. No I/O but the current directory, from which relative paths are taken.
    ///
    /// # Errors
    ///
    /// `invalid-config` without paths, for paths that hold `..` and for what is no pattern;
    /// `invalid-name` for paths that are too long.
    pub fn new(name: SourceName, mut config: FilesConfig) -> Result<Self> {
        let about = |e: Error| e.with("source", &name);
        if config.paths.is_empty() {
            let e = Error::new(Reason::InvalidConfig, "`paths` names nothing to capture");
            return Err(about(e));
        }
        let paths: Result<_> = config.paths.iter().map(|p| config::absolute(p)).collect();
        config.paths = paths.map_err(about)?;
        let roots = Roots::new(&config.paths).map_err(about)?;
        let filter = Filter::new(&config).map_err(about)?;
        let settings = serde_json::to_value(&config).map_err(|e| {
            about(Error::internal("the settings cannot be written down").caused_by(e))
        })?;
        let info = SourceInfo {
            name,
            kind: KIND.to_owned(),
            settings,
            concurrency: 1,
            freeze: FreezeSpeed::Instant,
        };
        Ok(Self { info, config, filter, roots, reader: None, opened: Arc::default() })
    }

    /// The same, with somebody who reads the databases among the files. Without one, every file
    /// whose name is that of a database is reported as a problem.
    #[must_use]
    pub fn with_database_reader(mut self, reader: Arc<dyn DatabaseReader>) -> Self {
        self.reader = Some(reader);
        self
    }

    /// How many files this source has opened to read their content, databases included. A capture of
    /// a tree in which nothing changed since the last one opens none.
    #[must_use]
    pub fn files_opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    fn plan(&self) -> Result<Plan> {
        let base = dirs::begin(Path::new("/")).map_err(|e| error::at("open", b"", e))?;
        let databases = match &self.reader {
            Some(_) => Databases::Routed,
            None => Databases::Refused,
        };
        let mut plan = Plan::plain(Dirs::new(base), self.roots.clone());
        plan.filter = self.filter.clone();
        plan.one_file_system = self.config.one_file_system;
        plan.databases = databases;
        plan.capturing = true;
        Ok(plan)
    }
}

#[async_trait]
impl Source for Files {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    async fn capture(&self, cx: &Context, _: Option<&SourceRecord>) -> Result<Box<dyn Capture>> {
        let plan = Arc::new(self.plan()?);
        let checked = Arc::clone(&plan);
        cx.blocking(move || capture::check_roots(&checked)).await?;
        let reader = self.reader.as_ref().map(Arc::clone);
        let contents = Contents { plan, reader, opened: Arc::clone(&self.opened) };
        Ok(Box::new(capture::FilesCapture::new(contents)?))
    }

    async fn restore(&self, cx: &Context, request: &RestoreRequest) -> Result<Box<dyn Restore>> {
        // The snapshot knows best what its roots were.
        let roots = match &request.record.settings {
            serde_json::Value::Null => self.roots.clone(),
            settings => {
                let config: FilesConfig = registry::settings(&self.info.name, settings.clone())?;
                Self::new(self.info.name.clone(), config)?.roots
            }
        };
        let restore =
            restore::TreeRestore::begin(cx, roots, self.filter.clone(), request.clone()).await?;
        Ok(Box::new(restore))
    }

    async fn facts(&self, cx: &Context) -> Result<Facts> {
        let plan = Arc::new(self.plan()?);
        let checked = Arc::clone(&plan);
        cx.blocking(move || capture::check_roots(&checked)).await?;
        facts::examine(cx, plan).await
    }

    async fn check(&self, cx: &Context, _: &ArtifactMeta, body: Body) -> Result<Findings> {
        check::check(cx, body.into_tree()?).await
    }
}

/// Teach a registry the kind `files`.
pub fn register(registry: &mut Registry, reader: Option<Arc<dyn DatabaseReader>>) {
    registry.register(KIND, move |name, settings| {
        let config = registry::settings(&name, settings)?;
        let files = Files::new(name, config)?;
        Ok(Arc::new(match &reader {
            Some(reader) => files.with_database_reader(Arc::clone(reader)),
            None => files,
        }))
    });
}
