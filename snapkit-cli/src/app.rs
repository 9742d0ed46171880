//! What all commands share: the context, the settings, the repository.

use std::sync::Arc;

use snapkit_core::context::Context;
use snapkit_core::engine::{Ledger, OpenOptions, Repository, Scope};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::manifest::Snapshot;
use snapkit_core::registry::Registry;
use snapkit_core::sink::Sink;

use crate::args::{Common, ScopeArgs};
use crate::env::{self, Env};
use crate::format::parse_size;
use crate::key::KeySources;
use crate::location::Places;
use crate::output::Output;
use crate::progress::Meter;
use crate::stack::{FULL, StackFile};

/// One run of the program.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) cx: Context,
    pub(crate) common: Common,
    pub(crate) env: Env,
    pub(crate) output: Arc<Output>,
    pub(crate) places: Places,
    pub(crate) stack: Option<StackFile>,
    meter: Arc<Meter>,
}

impl App {
    pub(crate) fn new(
        cx: Context,
        common: Common,
        env: Env,
        output: Arc<Output>,
        meter: Arc<Meter>,
    ) -> Result<Self> {
        let places = Places::find(&env, common.cache_dir.as_deref(), common.state_dir.as_deref())?;
        let stack = StackFile::find(common.stack.as_deref(), &env, &places)?;
        Ok(Self { cx, common, env, output, places, stack, meter })
    }

    /// The kinds of source that this program knows.
    pub(crate) fn registry(&self) -> Registry {
        let mut registry = Registry::new();
        snapkit_sources::register_all(&mut registry);
        registry
    }

    /// The name of this host, as it stands in snapshots.
    pub(crate) fn host(&self) -> Result<String> {
        let system = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(self.env.text(env::HOST)?.unwrap_or_else(system))
    }

    /// Where the repository is: the command line, then the environment, then the stack file.
    pub(crate) fn repository_url(&self) -> Result<String> {
        let given = match &self.common.repo {
            Some(url) => Some(url.clone()),
            None => self.env.text(env::REPO)?,
        };
        let given = match (given, &self.stack) {
            (None, Some(stack)) => stack.repository(&self.env)?,
            (given, _) => given,
        };
        given.map(|url| self.places.repository(&url)).ok_or_else(|| {
            Error::invalid(format!(
                "no repository is named: use --repo, {}, or `[repo] url` in a stack file",
                env::REPO
            ))
        })
    }

    /// Where keys come from.
    pub(crate) fn keys(&self) -> Result<KeySources<'_>> {
        let stack = match &self.stack {
            Some(stack) => stack.key(&self.env)?,
            None => None,
        };
        Ok(KeySources {
            env: &self.env,
            places: &self.places,
            output: &self.output,
            key_file: self.common.key_file.as_deref(),
            stack,
        })
    }

    /// Open the repository with whatever key there is.
    pub(crate) async fn open_repository(&self) -> Result<Repository> {
        let cx = &self.cx;
        let mut options = OpenOptions::new(self.places.cache()?, self.places.state()?);
        options.accept_new_repository = self.common.accept_new_repository;
        if let Some(text) = &self.common.memory {
            options.memory = parse_size(text)?;
        }
        let url = self.repository_url()?;
        let sink: Arc<dyn Sink> = snapkit_sinks::open(cx, &url).await?;
        let config = Repository::peek(cx, &sink).await?;
        let keys = self.keys()?.collect(cx, config.repository).await?;
        let opened = Repository::open(cx, sink, &keys.unlocks, options).await;
        let repository = opened.map_err(|e| match e.reason() {
            Reason::WrongKey | Reason::NoKey => e.with("tried", keys.origins.join(", ")),
            _ => e,
        })?;
        for warning in repository.warnings() {
            self.output.warn(warning);
        }
        Ok(repository)
    }

    /// The ledger, with a warning for each line that is damaged or gone.
    pub(crate) async fn ledger(&self, repository: &Repository) -> Result<Ledger> {
        let mut ledger = repository.ledger(&self.cx).await?;
        // Within one second the order of ids says nothing.
        ledger.snapshots.sort_by(|a, b| (b.started, &b.id).cmp(&(a.started, &a.id)));
        for (id, error) in &ledger.damaged {
            self.output.warn(format!("the snapshot {id} is damaged: {}", error.chain()));
        }
        for id in &ledger.gone {
            self.output.warn(format!(
                "the snapshot {id} was here and is gone without a trace: an old copy of the repository \
                 was put back, or somebody removed it"
            ));
        }
        Ok(ledger)
    }

    /// Which snapshots `latest` speaks of: by default those of this stack, this host and the full set.
    pub(crate) fn scope(&self, given: &ScopeArgs) -> Result<Scope> {
        let stack = match (&given.stack_name, &self.stack) {
            (Some(name), _) => Some(name.clone()),
            (None, Some(file)) => Some(file.name(&self.env)?),
            (None, None) => None,
        };
        let host = match (&given.host, given.any_host) {
            (_, true) => None,
            (Some(host), _) => Some(host.clone()),
            (None, _) => Some(self.host()?),
        };
        let set = Some(given.set.clone().unwrap_or_else(|| FULL.to_owned()));
        Ok(Scope { stack, host, set })
    }

    /// The snapshot that a word stands for.
    pub(crate) fn resolve<'l>(
        &self,
        ledger: &'l Ledger,
        word: &str,
        scope: &Scope,
    ) -> Result<&'l Snapshot> {
        ledger.resolve(word, scope).map_err(|e| {
            // Where the word depends on it, say what was looked among.
            let scoped = e.reason() == Reason::NoSnapshot
                && (word.starts_with("latest") || word.starts_with('@'));
            if scoped { e.with("among", describe(scope)) } else { e }
        })
    }

    /// Do something, and show its progress meanwhile.
    pub(crate) async fn with_progress<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let showing = self.meter.show(&self.cx);
        let result = work.await;
        drop(showing);
        self.output.show_bar(None);
        if result.is_err() {
            // There is no report that would say it.
            self.meter.tell_warnings();
        }
        result
    }
}

fn describe(scope: &Scope) -> String {
    let part = |what: &str, value: &Option<String>| match value {
        Some(value) => format!("{what} {value}"),
        None => format!("any {what}"),
    };
    [part("stack", &scope.stack), part("host", &scope.host), part("set", &scope.set)].join(", ")
}
