//! What all commands share: the context, the settings, the repository.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use snapkit_core::config::RepositoryConfig;
use snapkit_core::context::Context;
use snapkit_core::engine::{
    Hooks, Ledger, MIN_MEMORY, Occasion, OpenOptions, Probe, Repository, Scope, hooks,
};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::manifest::{Head, Snapshot};
use snapkit_core::registry::Registry;
use snapkit_core::sink::Sink;
use snapkit_sinks::{Rates, Settings};

use crate::args::{Common, ScopeArgs};
use crate::env::{self, Env};
use crate::exit::Exit;
use crate::format::{self, parse_size};
use crate::history::{self, Run, UnderWay};
use crate::hooks::{StackHooks, StackProbe, Surroundings};
use crate::key::KeySources;
use crate::location::Places;
use crate::output::Output;
use crate::place::{Place, check_store};
use crate::progress::Meter;
use crate::running::Running;
use crate::scope;
use crate::stack::{FULL, StackFile};

/// By how much clocks of machines may differ before it is spoken of.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// One run of the program.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) cx: Context,
    pub(crate) common: Common,
    pub(crate) env: Arc<Env>,
    pub(crate) output: Arc<Output>,
    pub(crate) places: Places,
    pub(crate) stack: Option<StackFile>,
    meter: Arc<Meter>,
    /// What is to be remembered of this run, if it is one that is remembered.
    run: Mutex<Option<(Run, Option<UnderWay>)>>,
}

impl App {
    pub(crate) fn new(
        cx: Context,
        common: Common,
        env: Arc<Env>,
        output: Arc<Output>,
        meter: Arc<Meter>,
    ) -> Result<Self> {
        let places = Places::find(&env, common.cache_dir.as_deref(), common.state_dir.as_deref())?;
        let stack = StackFile::find(common.stack.as_deref(), &env, &places)?;
        Ok(Self { cx, common, env, output, places, stack, meter, run: Mutex::default() })
    }

    /// The kinds of source that this program knows. What a snapshot does not hold, because it is secret or a program, they take
    /// from the stack file, if it has a source of the same name and kind.
    pub(crate) fn registry(&self) -> Registry {
        self.registry_for(None)
    }

    /// The same, but only for snapshots of the stack that the file declares: of others it may mean something else.
    pub(crate) fn registry_of_stack(&self) -> Result<Registry> {
        let own = self.stack.as_ref().map(|file| file.name(&self.env)).transpose()?;
        Ok(self.registry_for(own.as_deref()))
    }

    fn registry_for(&self, own: Option<&str>) -> Registry {
        let mut known = Registry::new();
        snapkit_sources::register_all(&mut known);
        let Some(file) = self.stack.clone() else { return known };
        let (known, file) = (Arc::new(known), Arc::new(file));
        let mut registry = Registry::new();
        for kind in known.kinds() {
            let (known, file, env) = (Arc::clone(&known), Arc::clone(&file), Arc::clone(&self.env));
            let kind = kind.to_owned();
            registry.register(&kind.clone(), {
                let (known, kind) = (Arc::clone(&known), kind.clone());
                move |name, settings| known.build(&kind, name, settings)
            });
            let own = own.map(str::to_owned);
            registry.register_captured(&kind.clone(), move |stack, record| {
                if snapkit_sources::holds_back(&kind)
                    && own.as_deref().is_none_or(|own| own == stack)
                    && let Some(declared) = file.declared(&env, &record.name, &kind)?
                {
                    let mut settings = record.settings.clone();
                    let place = file.directory();
                    snapkit_sources::add_held_back(&kind, &mut settings, &declared, place);
                    return known.build(&kind, record.name.clone(), settings);
                }
                known.build_captured(stack, record)
            });
        }
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
            options.memory = parse_size(text).map_err(|e| e.with("option", "--memory"))?;
            if options.memory < MIN_MEMORY {
                return Err(Error::invalid(format!(
                    "--memory must be at least {}MiB, not {text}",
                    MIN_MEMORY >> 20
                )));
            }
        }
        let url = self.repository_url()?;
        let (sink, config) = self.find_repository(&url).await?;
        let keys = self.keys()?.collect(cx, config.repository).await?;
        let opened = Repository::open(cx, sink, &keys.unlocks, options).await;
        let repository = opened.map_err(|e| match e.reason() {
            Reason::WrongKey | Reason::NoKey => e.with("tried", keys.origins.join(", ")),
            // As `init` names it.
            Reason::RepositoryReplaced => e.with("repository", config.repository),
            _ => e,
        })?;
        for warning in repository.warnings() {
            self.output.warn(warning);
        }
        self.meter.tell_warnings();
        Ok(repository)
    }

    /// How stores are spoken to.
    pub(crate) fn stores(&self) -> Result<Settings> {
        let rate = |option: &str, text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => {
                match NonZeroU64::new(parse_size(text).map_err(|e| e.with("option", option))?) {
                    Some(rate) => Ok(Some(rate)),
                    None => Err(Error::invalid(format!("{option} 0 would never end"))),
                }
            }
        };
        let rates = Rates {
            upload: rate("--limit-upload", &self.common.limit_upload)?,
            download: rate("--limit-download", &self.common.limit_download)?,
        };
        let settings = self.env.of_stores().with_rates(rates);
        Ok(match self.common.requests {
            Some(0) => return Err(Error::invalid("--requests 0 would never end")),
            Some(requests) => settings.with_requests(requests),
            None => settings,
        })
    }

    /// Where the repository is, and what it is.
    async fn find_repository(&self, url: &str) -> Result<(Arc<dyn Sink>, RepositoryConfig)> {
        let state = self.places.state().ok();
        let found = match snapkit_sinks::open_with(&self.cx, url, &self.stores()?).await {
            Ok(sink) => match Repository::peek(&self.cx, &sink).await {
                Ok(config) => return Ok((sink, config)),
                Err(e) => (Some(sink), e),
            },
            Err(e) => (None, e),
        };
        Err(match (found, Place::of(url, state.as_deref())) {
            ((_, e), _) if e.reason() != Reason::NoRepository => e,
            ((_, e), Ok(Some(place))) => place.explain(e),
            ((Some(sink), e), Ok(None)) => {
                match check_store(&self.cx, &sink, state.as_deref(), false).await {
                    Err(better)
                        if matches!(
                            better.reason(),
                            Reason::ObjectMissing | Reason::NoRepository
                        ) =>
                    {
                        better
                    }
                    // That a store does not say more is no better reason.
                    _ => e,
                }
            }
            ((_, e), _) => e,
        })
    }

    /// The ledger, with a warning for each line that is damaged or gone.
    pub(crate) async fn ledger(&self, repository: &Repository) -> Result<Ledger> {
        let ledger = self.ledger_unsaid(repository).await?;
        for (id, error) in &ledger.damaged {
            let what = match error.reason() {
                Reason::PermissionDenied => "cannot be read by this user",
                _ => "is damaged",
            };
            self.output.warn(format!("the snapshot {id} {what}: {}", error.chain()));
        }
        for (key, error) in &ledger.damaged_notes {
            self.output.warn(format!(
                "a change of a snapshot's tags is damaged and left out ({key}): {}",
                error.chain()
            ));
        }
        for id in &ledger.gone {
            self.output.warn(format!(
                "the snapshot {id} was here and is gone without a trace: an old copy of the repository \
                 was put back, it was made in a copy, or somebody removed it"
            ));
        }
        for id in &ledger.missing {
            self.output.warn(format!(
                "the snapshot {id} is gone without a trace, and another one came after it: an old copy of \
                 the repository was put back, it was made in a copy, or somebody removed it"
            ));
        }
        for id in &ledger.returned {
            self.output.warn(format!(
                "the snapshot {id} stands where there was none any more: an old version was put back"
            ));
        }
        Ok(ledger)
    }

    /// The ledger, for a command that says itself what is wrong with it.
    pub(crate) async fn ledger_unsaid(&self, repository: &Repository) -> Result<Ledger> {
        let mut ledger = repository.ledger(&self.cx).await?;
        self.meter.tell_warnings();
        // Within one second the order of ids says nothing.
        ledger.snapshots.sort_by(|a, b| (b.started, &b.id).cmp(&(a.started, &a.id)));
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

    /// All of the snapshot that a word stands for.
    pub(crate) async fn snapshot(
        &self,
        repository: &Repository,
        ledger: &Ledger,
        word: &str,
        scope: &Scope,
    ) -> Result<Snapshot> {
        repository.snapshot(&self.cx, self.resolve(ledger, word, scope)?).await
    }

    /// The snapshot that a word stands for.
    pub(crate) fn resolve<'l>(
        &self,
        ledger: &'l Ledger,
        word: &str,
        scope: &Scope,
    ) -> Result<&'l Head> {
        // Only these depend on the scope.
        if word != "latest" && !word.starts_with("latest~") && !word.starts_with('@') {
            return ledger.resolve(word, scope);
        }
        let found = ledger.resolve(word, scope).map_err(|e| match e.reason() {
            Reason::NoSnapshot => {
                e.with("among", scope::describe(scope)).with_hint(scope::elsewhere(ledger, scope))
            }
            _ => e,
        })?;
        match scope::rivals(ledger, scope) {
            // A guess may restore the wrong one.
            Some(rivals) => Err(Error::invalid(format!(
                "{word} is not unique: there are snapshots of {rivals}"
            ))
            .with_hint("say which with --stack-name, or give an id; `snapkit list` shows them")),
            None => {
                if word.starts_with("latest") {
                    self.doubt(ledger, found);
                }
                Ok(found)
            }
        }
    }

    /// Say why the newest snapshot may not be the one that is meant.
    fn doubt(&self, ledger: &Ledger, found: &Head) {
        let id = &found.id;
        if found.started.since(self.cx.now()) > CLOCKS_DIFFER {
            self.output.warn(format!(
                "snapshot {id} is of {}, which is yet to come: is a clock wrong? Until then `latest` means it, \
                 whatever is captured later",
                format::time(found.started)
            ));
        }
        let is_newer = |head: &&Head| {
            head.stack == found.stack
                && head.host == found.host
                && head.set != found.set
                && head.started > found.started
        };
        if let Some(newer) = ledger.snapshots.iter().find(is_newer) {
            self.output.note(format!(
                "there is a newer snapshot of set {}: {}; `latest` is of set {} unless --set says otherwise",
                newer.set, newer.id, found.set
            ));
        }
    }

    /// Tell the hooks of a run that could not even begin that it has failed.
    pub(crate) async fn give_up(
        &self,
        hooks: Option<Arc<dyn Hooks>>,
        occasion: Occasion,
        failure: &Error,
    ) {
        let Some(hooks) = hooks else { return };
        for e in hooks::give_up(&self.cx, hooks, occasion, failure).await {
            self.output.warn(e.chain());
        }
    }

    /// The hooks of the stack file, if it has any.
    pub(crate) fn hooks(&self) -> Result<Option<Arc<dyn Hooks>>> {
        let Some(file) = &self.stack else { return Ok(None) };
        let hooks = file.hooks(&self.env)?;
        if hooks.is_empty() {
            return Ok(None);
        }
        Ok(Some(Arc::new(StackHooks { hooks, around: self.surroundings(file) })))
    }

    /// The probes of the stack file.
    pub(crate) fn probes(&self) -> Result<Vec<Arc<dyn Probe>>> {
        let Some(file) = &self.stack else { return Ok(Vec::new()) };
        let probe = |config| -> Arc<dyn Probe> {
            Arc::new(StackProbe { config, around: self.surroundings(file) })
        };
        Ok(file.probes(&self.env)?.into_iter().map(probe).collect())
    }

    fn surroundings(&self, file: &StackFile) -> Surroundings {
        Surroundings {
            env: Arc::clone(&self.env),
            output: Arc::clone(&self.output),
            directory: file.directory().to_owned(),
        }
    }

    /// The right to be the only run of a stack. Without local state there is no such right, and no obstacle.
    pub(crate) fn only_run_of(&self, stack: &str) -> Result<Option<Running>> {
        let begun = self
            .places
            .state()
            .and_then(|state| Running::begin(&state, stack, &format::time(self.cx.now())));
        match begun {
            Ok(running) => Ok(Some(running)),
            Err(e) if e.reason() == Reason::Busy => Err(e),
            Err(e) => {
                self.output
                    .warn(format!("another run of this stack is not noticed: {}", e.chain()));
                Ok(None)
            }
        }
    }

    /// This run is to be remembered.
    pub(crate) fn begin_run(&self, command: &str) {
        let repository = self.repository_url().unwrap_or_default();
        let run = Run::begun(self.cx.now(), command, &repository);
        let begun = self.places.state().and_then(|state| {
            history::bury(&state)?;
            UnderWay::begin(&state, &run)
        });
        if let Err(e) = &begun {
            tracing::warn!(error = %e.chain(), "if this run is killed, that will not be remembered");
        }
        *self.run() = Some((run, begun.ok()));
    }

    /// Take note of something about this run, if it is remembered.
    pub(crate) fn note_run(&self, note: impl FnOnce(&mut Run)) {
        if let Some((run, under_way)) = &mut *self.run() {
            note(run);
            if let Some(under_way) = under_way {
                under_way.tell(run);
            }
        }
    }

    /// Remember how this run ended.
    pub(crate) fn end_run(&self, ended: &Result<Exit>) {
        let Some((mut run, under_way)) = self.run().take() else { return };
        run.seconds = self.cx.now().since(run.started).as_secs_f64();
        match ended {
            Ok(exit) => run.exit = exit.code(),
            Err(e) => run.fail(e),
        }
        let noted = self.places.state().and_then(|state| history::note(&state, &run));
        if let Err(e) = noted {
            tracing::warn!(error = %e.chain(), "the run is not remembered");
        }
        if let Some(under_way) = under_way {
            under_way.end();
        }
    }

    fn run(&self) -> MutexGuard<'_, Option<(Run, Option<UnderWay>)>> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
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
