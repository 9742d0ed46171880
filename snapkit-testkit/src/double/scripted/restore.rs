//! The restore of a scripted source.

use std::sync::Arc;

use async_trait::async_trait;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Result};
use snapkit_core::facts::Standing;
use snapkit_core::source::{Restore, RestoreReport, RestoreRequest, Target};

use super::{Inner, ScriptedArtifact, ScriptedContent, Stage, facts_of, place};

#[derive(Debug)]
pub(super) struct ScriptedRestore {
    inner: Arc<Inner>,
    session: u64,
    target: Target,
    partial: bool,
    read_back: bool,
    /// Invisible until the end.
    staged: Vec<ScriptedArtifact>,
    failed: bool,
    ended: bool,
}

impl ScriptedRestore {
    pub(super) fn new(inner: Arc<Inner>, session: u64, request: &RestoreRequest) -> Self {
        Self {
            inner,
            session,
            target: request.target.clone(),
            partial: request.partial,
            read_back: request.read_back,
            staged: Vec::new(),
            failed: false,
            ended: false,
        }
    }

    async fn call(&self, cx: &Context, stage: Stage, name: Option<&ArtifactName>) -> Result<()> {
        self.inner.call(cx, self.session, stage, name).await
    }
}

impl Drop for ScriptedRestore {
    fn drop(&mut self) {
        if !self.ended {
            let at = std::time::Duration::ZERO;
            self.inner.log.push(&self.inner.name, self.session, Stage::RestoreDropped, None, at);
        }
    }
}

#[async_trait]
impl Restore for ScriptedRestore {
    async fn put(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()> {
        if self.failed {
            return Err(Error::internal("put after a put that failed"));
        }
        // Unless it comes to its end.
        self.failed = true;
        self.call(cx, Stage::Put, Some(&meta.name)).await?;
        if self.staged.iter().any(|a| a.name == meta.name) {
            return Err(Error::internal("put the same artifact twice").with("artifact", &meta.name));
        }
        if body.shape() != meta.shape {
            return Err(Error::internal("a body of another shape than its artifact")
                .with("artifact", &meta.name));
        }
        let content = ScriptedContent::collect(cx, body).await?;
        self.staged.push(ScriptedArtifact::new(meta.name.clone(), content));
        self.failed = false;
        Ok(())
    }

    async fn finish(mut self: Box<Self>, cx: &Context) -> Result<RestoreReport> {
        self.ended = true;
        self.call(cx, Stage::RestoreFinish, None).await?;
        if self.failed {
            return Err(Error::internal("finished after a put that failed"));
        }
        let staged = std::mem::take(&mut self.staged);
        let mut state = self.inner.state();
        let found = match place(&self.target) {
            None => &mut state.live,
            Some(place) => state.elsewhere.entry(place).or_default(),
        };
        if self.partial {
            found.retain(|old| staged.iter().all(|new| new.name != old.name));
            found.extend(staged);
        } else {
            *found = staged;
        }
        let mut report = RestoreReport::default();
        if self.read_back {
            report.facts = facts_of(found, Standing::Observed);
        }
        Ok(report)
    }

    async fn abort(mut self: Box<Self>, cx: &Context) -> Result<()> {
        self.ended = true;
        self.call(cx, Stage::RestoreAbort, None).await
    }
}
