//! What any program writes, such as a dump of a database: captured with its exit status and its end examined, and put back
//! by a program that takes it.
//!
//! ```toml
//! [sources.crm]
//! kind = "command"
//! capture = ["ldapsearch", "-x", "-LLL", "-b", "dc=shop"]
//! restore = ["slapadd-and-restart"]
//! variables = { LDAP_TOKEN = { file = "/etc/shop/ldap" } }
//!
//! [sources.books]
//! kind = "command"
//! preset = "postgresql"
//! database = "books"
//! ```
//!
//! The program is started when all sources freeze, and its first byte is the end of its cut: by then a dump has fixed the
//! moment that it is of. It is given few variables, and its whole group of processes ends with it, or when it takes too long.
//! What is empty, too short, or lacks the text that stands at its end is refused, as is what a program wrote that then failed.
//!
//! Programs come from the stack file only: a snapshot names none, so that whoever can write to a repository cannot have
//! something started where it is restored.

mod capture;
mod config;
mod output;
mod preset;
mod program;
mod restore;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _};
use snapkit_core::artifact::{ArtifactMeta, Body, SourceName};
use snapkit_core::context::Context;
use snapkit_core::facts::Facts;
use snapkit_core::manifest::SourceRecord;
use snapkit_core::registry::{self, Registry};
use snapkit_core::source::{
    Capture, Findings, FreezeSpeed, Restore, RestoreRequest, Source, SourceInfo, Target,
};
use snapkit_core::{Error, Reason, Result};
use snapkit_source_stream::FileRestore;

use crate::capture::{CommandCapture, describe};
pub use crate::config::{CommandConfig, add_programs};
use crate::output::Examiner;
pub use crate::preset::Preset;
use crate::restore::{CommandRestore, DirectoryRestore};

/// What sources of this kind are called.
pub const KIND: &str = "command";

/// A program whose output is captured.
pub struct Command {
    info: SourceInfo,
    config: Arc<CommandConfig>,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Command {
    /// A source of this name. `invalid-config` if its settings make no sense.
    pub fn new(name: SourceName, config: CommandConfig) -> Result<Self> {
        let config = config.named(&name).map_err(|e| e.with("source", &name))?;
        let settings = serde_json::to_value(&config)
            .map_err(|e| Error::internal("settings cannot be written").caused_by(e))?;
        let info = SourceInfo {
            name,
            kind: KIND.to_owned(),
            settings,
            concurrency: 1,
            // A dump reads the schema before it writes anything.
            freeze: FreezeSpeed::Slow,
        };
        Ok(Self { info, config: Arc::new(config) })
    }
}

/// Teach a registry this kind.
pub fn register(registry: &mut Registry) {
    registry.register(KIND, |name, settings| {
        let config = registry::settings(&name, settings)?;
        Ok(Arc::new(Command::new(name, config)?))
    });
    // Without the stack file there are no programs.
    registry.register_captured(KIND, |_, record| {
        let mut settings = record.settings.clone();
        config::leave_stored(&mut settings);
        let config = registry::settings(&record.name, settings)?;
        Ok(Arc::new(Command::new(record.name.clone(), config)?))
    });
}

#[async_trait]
impl Source for Command {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    async fn capture(&self, cx: &Context, _: Option<&SourceRecord>) -> Result<Box<dyn Capture>> {
        Ok(Box::new(CommandCapture::prepare(cx, Arc::clone(&self.config)).await?))
    }

    async fn restore(&self, cx: &Context, request: &RestoreRequest) -> Result<Box<dyn Restore>> {
        match request.target.clone() {
            Target::Original => {
                let config = Arc::clone(&self.config);
                Ok(Box::new(CommandRestore::prepare(cx, config, request).await?))
            }
            Target::Directory(directory) => {
                let file = describe(&self.config)?.name;
                let inner = FileRestore::prepare(cx, &file, directory, request).await?;
                Ok(Box::new(DirectoryRestore { inner, captured: request.record.facts.clone() }))
            }
            Target::Url(_) => {
                let what =
                    "a program has no address: it puts things where it is told in the stack file";
                Err(Error::new(Reason::Unsupported, what).with_hint(
                    "another place is told to it in a copy of the stack file (--stack); or restore to a directory with --target DIR",
                ))
            }
        }
    }

    async fn facts(&self, cx: &Context) -> Result<Facts> {
        restore::facts(cx, &self.config).await
    }

    async fn check(&self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<Findings> {
        let mut findings = Findings::default();
        let body = body.into_bytes()?;
        let examiner = Arc::new(std::sync::Mutex::new(Examiner::default()));
        let inner = Arc::clone(&examiner);
        let seen = move |piece: &bytes::Bytes| {
            inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take_in(piece);
        };
        let mut body = body.inspect_ok(seen).boxed();
        if self.config.check.is_empty() {
            while cx.run(body.try_next()).await?.is_some() {}
        } else {
            let check = ("`check`", &self.config.check[..]);
            match program::feed(cx, &self.config, check, body).await {
                Err(e) if e.reason() == Reason::ProgramFailed => {
                    findings.add(meta.name.as_str(), e.chain());
                }
                Err(e) if e.is_damage() || cx.check().is_err() => return Err(e),
                // That there is no such program says nothing about what is stored.
                Err(e) => {
                    let what = "it could not be checked";
                    return Err(Error::new(Reason::Unsupported, what).caused_by(e));
                }
                Ok(_) => {}
            }
        }
        let examiner = examiner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(lack) = examiner.lack(&self.config.whole_stored()) {
            findings.add(meta.name.as_str(), lack);
        }
        Ok(findings)
    }
}
