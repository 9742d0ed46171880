//! A capture: the program is started by the freeze, and read when its turn comes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape};
use snapkit_core::context::Context;
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::source::{Capture, CaptureReport, Cut};
use snapkit_core::{Error, Reason, Result};

use snapkit_source_stream::DIGEST;

use crate::config::CommandConfig;
use crate::output::{Output, Seen};
use crate::program;

/// What the answers of programs are called among facts.
pub(crate) const ANSWER: &str = "answer.";

/// What a program writes, on its way into a snapshot.
pub(crate) struct CommandCapture {
    config: Arc<CommandConfig>,
    /// What was answered before the program was started.
    before: Facts,
    output: Mutex<Option<Output>>,
    is_named: bool,
    seen: Seen,
}

impl CommandCapture {
    /// Ask what is to be asked before anything is frozen.
    pub(crate) async fn prepare(cx: &Context, config: Arc<CommandConfig>) -> Result<Self> {
        if config.capture.is_empty() {
            let what = "`capture` names no program";
            return Err(Error::new(Reason::InvalidConfig, what));
        }
        let before = answers(cx, &config).await?;
        Ok(Self {
            config,
            before,
            output: Mutex::default(),
            is_named: false,
            seen: Seen::default(),
        })
    }

    fn take(&self) -> Option<Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What each program of `facts` answers. What cannot be learnt is `unknown`.
pub(crate) async fn answers(cx: &Context, config: &CommandConfig) -> Result<Facts> {
    let mut facts = Facts::new();
    for (name, words) in &config.facts {
        let fact = format!("{ANSWER}{name}");
        match program::answer(cx, config, ("`facts`", words)).await {
            Ok(answer) => match answer.parse::<i64>() {
                Ok(number) => facts.observe(fact, number),
                Err(_) => facts.observe(fact, answer),
            },
            Err(e) => {
                cx.check()?;
                facts.unknown(fact, e.chain());
            }
        }
    }
    Ok(facts)
}

/// What was answered the same before and after holds of all that lies between, and so of what was captured.
fn settled(before: &Facts, after: Facts) -> Facts {
    let mut facts = BTreeMap::new();
    for (name, mut fact) in after.0 {
        let is_same = before.0.get(&name).is_some_and(|before| *before == fact);
        if is_same && fact.standing == Standing::Observed {
            fact.standing = Standing::Pinned;
        }
        facts.insert(name, fact);
    }
    Facts(facts)
}

pub(crate) fn describe(config: &CommandConfig) -> Result<ArtifactMeta> {
    let name = config.file.clone().ok_or_else(|| Error::internal("content has no name"))?;
    // An archive has places where it is cut best.
    let chunking = if name.as_str().ends_with(".tar") { Chunking::Tar } else { Chunking::Content };
    Ok(ArtifactMeta::new(name, Shape::Bytes, "application/octet-stream", chunking))
}

#[async_trait]
impl Capture for CommandCapture {
    async fn freeze(&mut self, cx: &Context) -> Result<Cut> {
        let begin = cx.now();
        let output = Output::begin(cx, &self.config).await?;
        *self.output.lock().unwrap_or_else(PoisonError::into_inner) = Some(output);
        Ok(Cut { begin, end: cx.now(), consistency: self.config.consistency, position: None })
    }

    async fn thaw(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn next(&mut self, _: &Context) -> Result<Option<ArtifactMeta>> {
        if std::mem::replace(&mut self.is_named, true) {
            return Ok(None);
        }
        describe(&self.config).map(Some)
    }

    async fn open(&self, cx: &Context, name: &ArtifactName) -> Result<Body> {
        let output = self.take().filter(|_| self.config.file.as_ref() == Some(name));
        let output = output.ok_or_else(|| {
            Error::new(Reason::NotFound, "what a program writes can be read once")
                .with("artifact", name)
        })?;
        Ok(Body::Bytes(output.stream(cx, &self.config, Arc::clone(&self.seen))))
    }

    async fn finish(self: Box<Self>, cx: &Context) -> Result<CaptureReport> {
        if let Some(output) = self.take() {
            output.end(cx).await;
        }
        let mut facts = settled(&self.before, answers(cx, &self.config).await?);
        match self.seen.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(tally) => facts.0.extend(tally.facts(Standing::Pinned).0),
            None => facts.unknown(DIGEST, "the content was not read to its end"),
        }
        Ok(facts.into())
    }

    async fn abort(self: Box<Self>, cx: &Context) -> Result<()> {
        if let Some(output) = self.take() {
            output.end(cx).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_the_same_is_pinned() {
        let of = |facts: &[(&str, i64)]| {
            let mut all = Facts::new();
            facts.iter().for_each(|(name, value)| all.observe(*name, *value));
            all
        };
        let mut before = of(&[("rows", 5), ("views", 7)]);
        before.unknown("size", "no answer");
        let mut after = of(&[("rows", 5), ("views", 8), ("new", 1)]);
        after.unknown("size", "no answer");
        let standing = |name: &str| settled(&before, after.clone()).0[name].standing;
        assert_eq!(standing("rows"), Standing::Pinned);
        assert_eq!(standing("views"), Standing::Observed);
        assert_eq!(standing("new"), Standing::Observed);
        assert_eq!(standing("size"), Standing::Unknown);
    }
}
