//! A capture: the program is started by the freeze, and read when its turn comes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape};
use snapkit_core::context::Context;
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::source::{Capture, CaptureReport, Cut};
use snapkit_core::{Error, Reason, Result};

use snapkit_source_stream::DIGEST;

use crate::config::CommandConfig;
use crate::output::{Output, Seen};
use crate::program::{self, Running};

/// What the answers of programs are called among facts.
pub(crate) const ANSWER: &str = "answer.";

/// What a program writes, on its way into a snapshot.
pub(crate) struct CommandCapture {
    config: Arc<CommandConfig>,
    /// What was answered before the program was started.
    before: Facts,
    output: Output,
    is_opened: AtomicBool,
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
        Running::find(&config, ("`capture`", &config.capture))?;
        for (what, words) in [("`restore`", &config.restore), ("`check`", &config.check)] {
            // They may be elsewhere, where it is restored.
            if let Err(e) = Running::find(&config, (what, words)) {
                tracing::info!("{}", e.chain());
            }
        }
        let before = answers(cx, &config).await?;
        Ok(Self {
            config,
            before,
            output: Output::default(),
            is_opened: AtomicBool::new(false),
            is_named: false,
            seen: Seen::default(),
        })
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
                tracing::info!("{fact}: {}", e.chain());
                facts.unknown(fact, e.chain());
            }
        }
    }
    Ok(facts)
}

/// What was answered the same before and after holds of all that lies between, and so of what was captured. It is a proof
/// where it is said to be one: the version of a server is the same whatever it holds.
fn settled(proof: &[String], before: &Facts, after: Facts) -> Facts {
    let is_proof =
        |name: &str| name.strip_prefix(ANSWER).is_some_and(|name| proof.iter().any(|p| p == name));
    let mut facts = BTreeMap::new();
    for (name, mut fact) in after.0 {
        let is_same = before.0.get(&name).is_some_and(|before| *before == fact);
        if is_same && is_proof(&name) && fact.standing == Standing::Observed {
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
        self.output.begin(cx, &self.config).await?;
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
        let is_ours = self.config.file.as_ref() == Some(name);
        if !is_ours || self.is_opened.swap(true, Ordering::Relaxed) {
            let what = "what a program writes can be read once";
            return Err(Error::new(Reason::NotFound, what).with("artifact", name));
        }
        Ok(Body::Bytes(self.output.stream(cx, &self.config, Arc::clone(&self.seen))))
    }

    async fn finish(self: Box<Self>, cx: &Context) -> Result<CaptureReport> {
        self.output.end(cx).await;
        let mut facts = settled(&self.config.proof, &self.before, answers(cx, &self.config).await?);
        match self.seen.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(tally) => facts.0.extend(tally.facts(Standing::Pinned).0),
            None => facts.unknown(DIGEST, "the content was not read to its end"),
        }
        Ok(facts.into())
    }

    async fn abort(self: Box<Self>, cx: &Context) -> Result<()> {
        self.output.end(cx).await;
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
            facts.iter().for_each(|(name, value)| all.observe(format!("{ANSWER}{name}"), *value));
            all.unknown(format!("{ANSWER}size"), "no answer");
            all
        };
        let before = of(&[("rows", 5), ("views", 7), ("version", 15)]);
        let after = of(&[("rows", 5), ("views", 8), ("new", 1), ("version", 15)]);
        let proof = ["rows", "views", "new", "size"].map(str::to_owned);
        let standing = |name: &str| {
            settled(&proof, &before, after.clone()).0[&format!("{ANSWER}{name}")].standing
        };
        assert_eq!(standing("version"), Standing::Observed);
        assert_eq!(standing("rows"), Standing::Pinned);
        assert_eq!(standing("views"), Standing::Observed);
        assert_eq!(standing("new"), Standing::Observed);
        assert_eq!(standing("size"), Standing::Unknown);
    }
}
