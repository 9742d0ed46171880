//! A source that follows a script, keeps a log of how it is called, and complains about a caller that
//! breaks the order of calls.

mod capture;
mod content;
mod log;
mod restore;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, SourceName};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, ErrorKind, Reason, Result};
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::manifest::SourceRecord;
use snapkit_core::source::{
    Capture, Findings, FreezeSpeed, Restore, RestoreRequest, Source, SourceInfo, Target,
};

pub use content::{ScriptedArtifact, ScriptedContent, ScriptedFile, ScriptedRecord};
pub use log::{Call, CallLog, Stage};

use capture::ScriptedCapture;
use restore::ScriptedRestore;

/// What goes wrong at a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It fails with this reason.
    Fail(Reason),
    /// It panics.
    Panic,
    /// It never answers, unless its context ends.
    Hang,
}

/// A source from a script. Configure it, then share it: the system that it stands for is a set of
/// artifacts in memory, which can be changed at any time and be restored into.
///
/// What is pinned at the freeze is what is read later, whatever changes meanwhile. Restores to
/// [`Target::Original`] replace the live artifacts, those to a directory or URL are kept under its
/// name; see [`ScriptedSource::contents`]. Facts are sizes and digests of every artifact.
#[derive(Debug)]
pub struct ScriptedSource {
    info: SourceInfo,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: SourceName,
    log: CallLog,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    live: Vec<ScriptedArtifact>,
    elsewhere: BTreeMap<String, Vec<ScriptedArtifact>>,
    troubles: Vec<(Stage, Option<ArtifactName>, Trouble)>,
    delays: BTreeMap<Stage, Duration>,
    position: Option<String>,
    fuzzy: bool,
    sessions: u64,
}

impl ScriptedSource {
    /// The kind that it says it is of.
    pub const KIND: &'static str = "scripted";

    /// A source with no artifacts, and a log of its own. Panics if `name` is not a source's name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::logged(name, CallLog::default())
    }

    /// A source with no artifacts that writes into a log which may be shared, so that the order of
    /// calls to several sources is seen. Panics if `name` is not a source's name.
    #[must_use]
    pub fn logged(name: &str, log: CallLog) -> Self {
        let name = match SourceName::new(name) {
            Ok(name) => name,
            Err(e) => panic!("{e}"),
        };
        let info = SourceInfo {
            name: name.clone(),
            kind: Self::KIND.to_owned(),
            settings: serde_json::json!({}),
            concurrency: 2,
            freeze: FreezeSpeed::Instant,
        };
        Self { info, inner: Arc::new(Inner { name, log, state: Mutex::default() }) }
    }

    /// Add an artifact; one of the same name is replaced in its place.
    #[must_use]
    pub fn with(self, artifact: ScriptedArtifact) -> Self {
        self.set(artifact);
        self
    }

    /// How long it says a freeze takes.
    #[must_use]
    pub fn speed(mut self, speed: FreezeSpeed) -> Self {
        self.info.freeze = speed;
        self
    }

    /// How many bodies it lets be read at once.
    #[must_use]
    pub fn concurrency(mut self, bodies: usize) -> Self {
        self.info.concurrency = bodies;
        self
    }

    /// The settings that it says it has.
    #[must_use]
    pub fn settings(mut self, settings: serde_json::Value) -> Self {
        self.info.settings = settings;
        self
    }

    /// Take so long at a stage.
    #[must_use]
    pub fn delay(self, stage: Stage, time: Duration) -> Self {
        self.inner.state().delays.insert(stage, time);
        self
    }

    /// Say that nothing is pinned, although it is.
    #[must_use]
    pub fn fuzzy(self) -> Self {
        self.inner.state().fuzzy = true;
        self
    }

    /// The position that the cut states.
    #[must_use]
    pub fn position(self, position: impl Into<String>) -> Self {
        self.inner.state().position = Some(position.into());
        self
    }

    /// Let a stage go wrong, every time from now on.
    #[must_use]
    pub fn trouble(self, stage: Stage, trouble: Trouble) -> Self {
        self.make_trouble(stage, None, trouble);
        self
    }

    /// Let a stage go wrong, for one artifact or for all, every time from now on.
    pub fn make_trouble(&self, stage: Stage, artifact: Option<ArtifactName>, trouble: Trouble) {
        self.inner.state().troubles.push((stage, artifact, trouble));
    }

    /// Let nothing go wrong any more.
    pub fn heal(&self) {
        self.inner.state().troubles.clear();
    }

    /// Change the live system: add or replace an artifact.
    pub fn set(&self, artifact: ScriptedArtifact) {
        let mut state = self.inner.state();
        match state.live.iter_mut().find(|a| a.name == artifact.name) {
            Some(place) => *place = artifact,
            None => state.live.push(artifact),
        }
    }

    /// Change the live system: remove an artifact.
    pub fn remove(&self, name: &str) {
        self.inner.state().live.retain(|a| a.name.as_str() != name);
    }

    /// What is in a target now: the live system, or what was restored elsewhere.
    #[must_use]
    pub fn contents(&self, target: &Target) -> BTreeMap<ArtifactName, ScriptedContent> {
        let artifacts = self.inner.state().at(target);
        artifacts.into_iter().map(|a| (a.name, a.content)).collect()
    }

    /// The log of calls.
    #[must_use]
    pub fn log(&self) -> &CallLog {
        &self.inner.log
    }
}

impl State {
    fn at(&self, target: &Target) -> Vec<ScriptedArtifact> {
        match place(target) {
            None => self.live.clone(),
            Some(place) => self.elsewhere.get(&place).cloned().unwrap_or_default(),
        }
    }
}

fn place(target: &Target) -> Option<String> {
    match target {
        Target::Original => None,
        Target::Directory(path) => Some(path.display().to_string()),
        Target::Url(url) => Some(url.clone()),
    }
}

fn facts_of(artifacts: &[ScriptedArtifact], standing: Standing) -> Facts {
    let mut facts = Facts::new();
    artifacts.iter().for_each(|a| a.content.facts(a.name.as_str(), standing, &mut facts));
    facts
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_session(&self) -> u64 {
        let mut state = self.state();
        state.sessions += 1;
        state.sessions
    }

    /// Note a call, take the time and make the trouble that the script has for it.
    async fn call(
        &self,
        cx: &Context,
        session: u64,
        stage: Stage,
        artifact: Option<&ArtifactName>,
    ) -> Result<()> {
        self.log.note(cx, &self.name, session, stage, artifact);
        let delay = self.state().delays.get(&stage).copied();
        if let Some(delay) = delay {
            cx.sleep(delay).await?;
        }
        cx.check()?;
        match self.trouble(stage, artifact) {
            None => Ok(()),
            Some(trouble) => self.suffer(cx, stage, trouble).await,
        }
    }

    fn trouble(&self, stage: Stage, artifact: Option<&ArtifactName>) -> Option<Trouble> {
        let state = self.state();
        let strikes = |(at, only, _): &&(Stage, Option<ArtifactName>, Trouble)| {
            *at == stage && (only.is_none() || only.as_ref() == artifact)
        };
        state.troubles.iter().find(strikes).map(|(_, _, trouble)| *trouble)
    }

    async fn suffer(&self, cx: &Context, stage: Stage, trouble: Trouble) -> Result<()> {
        match trouble {
            Trouble::Fail(reason) => Err(Error::new(reason, "scripted failure")
                .with("source", &self.name)
                .with("stage", format_args!("{stage:?}"))),
            Trouble::Panic => panic!("scripted panic of {} at {stage:?}", self.name),
            Trouble::Hang => cx.run(std::future::pending()).await,
        }
    }
}

#[async_trait]
impl Source for ScriptedSource {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    async fn capture(&self, cx: &Context, _: Option<&SourceRecord>) -> Result<Box<dyn Capture>> {
        let session = self.inner.begin_session();
        self.inner.call(cx, session, Stage::Capture, None).await?;
        Ok(Box::new(ScriptedCapture::new(Arc::clone(&self.inner), session)))
    }

    async fn restore(&self, cx: &Context, request: &RestoreRequest) -> Result<Box<dyn Restore>> {
        let session = self.inner.begin_session();
        self.inner.call(cx, session, Stage::Restore, None).await?;
        if !request.overwrite && !self.inner.state().at(&request.target).is_empty() {
            return Err(Error::new(Reason::TargetNotEmpty, "the target holds artifacts")
                .with("source", &self.inner.name));
        }
        // Only now: a restore that was refused needs no end.
        self.inner.log.note(cx, &self.inner.name, session, Stage::RestoreOpened, None);
        Ok(Box::new(ScriptedRestore::new(Arc::clone(&self.inner), session, request)))
    }

    async fn facts(&self, cx: &Context) -> Result<Facts> {
        self.inner.call(cx, 0, Stage::Facts, None).await?;
        Ok(facts_of(&self.inner.state().live, Standing::Observed))
    }

    async fn check(&self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<Findings> {
        self.inner.call(cx, 0, Stage::Check, Some(&meta.name)).await?;
        let mut findings = Findings::default();
        match ScriptedContent::collect(cx, body).await {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Corrupt => findings.add(meta.name.as_str(), e.chain()),
            Err(e) => return Err(e),
        }
        Ok(findings)
    }
}
