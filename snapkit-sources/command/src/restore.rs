//! A restore: everything is read and checked first, what is there is captured, and only then the program is started that
//! puts the content back. If it fails, the old state is put back by the same program.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use snapkit_core::artifact::{ArtifactMeta, Body, ByteStream};
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::facts::{Fact, Facts, Standing};
use snapkit_core::scratch::{Room, Scratch, ScratchWriter};
use snapkit_core::shell;
use snapkit_core::source::{Restore, RestoreReport, RestoreRequest};
use snapkit_core::{Error, Reason, Result};
use snapkit_source_stream::{FileRestore, Tally, tally};

use crate::capture::{ANSWER, answers, describe};
use crate::config::CommandConfig;
use crate::output::{Examiner, Output, Seen};
use crate::program::{ask, feed};

/// Bytes of the old state that are read at once.
const READ: usize = 256 << 10;

/// Content on its way to a program.
pub(crate) struct CommandRestore {
    config: Arc<CommandConfig>,
    /// The directory that what is there is kept in, if it is.
    keep: Option<PathBuf>,
    /// What was kept: where, and what proves it.
    old: Option<(PathBuf, Facts)>,
    /// What is being kept.
    part: Option<PathBuf>,
    /// Whether there was nothing.
    was_empty: bool,
    read_back: bool,
    /// What is known of what was captured.
    captured: Facts,
    staged: Option<(Scratch, Tally)>,
}

impl CommandRestore {
    pub(crate) async fn prepare(
        cx: &Context,
        config: Arc<CommandConfig>,
        request: &RestoreRequest,
    ) -> Result<Self> {
        if config.restore.is_empty() {
            let what = "`restore` names no program";
            return Err(Error::new(Reason::InvalidConfig, what).with_hint(
                "programs stand in the stack file, and are in no snapshot; or restore to a directory with --target",
            ));
        }
        let is_empty = match config.empty.is_empty() {
            true => false,
            false => is_empty(cx, &config).await?,
        };
        if !is_empty && !request.overwrite {
            let what = match config.empty.is_empty() {
                true => {
                    "nobody says that there is nothing where the content is put back: `empty` names no program"
                }
                false => "`empty` says that there is something where the content is put back",
            };
            return Err(Error::new(Reason::TargetNotEmpty, what));
        }
        let mut keep = None;
        if !is_empty && let Some(recovery) = &request.recovery {
            if config.capture.is_empty() {
                let what = "what is there cannot be kept: `capture` names no program";
                return Err(Error::new(Reason::InvalidConfig, what));
            }
            keep = Some(recovery.clone());
        }
        let (read_back, captured) = (request.read_back, request.record.facts.clone());
        Ok(Self {
            config,
            keep,
            old: None,
            part: None,
            was_empty: is_empty,
            read_back,
            captured,
            staged: None,
        })
    }

    /// Capture what is there. What earlier restores have kept stays.
    async fn keep(&mut self, cx: &Context, directory: &Path) -> Result<()> {
        let name = describe(&self.config)?.name;
        let directory = directory.to_owned();
        let (part, file) = cx
            .blocking({
                let (directory, part) = (directory.clone(), format!("{name}.part"));
                move || create_new(&directory, &part)
            })
            .await?;
        // Also if nobody waits for it any more.
        self.part = Some(part.clone());
        let kept = async {
            let mut facts = proof(cx, &self.config).await?;
            let tally = write_to(cx, &self.config, file, &part).await?;
            if self.config.repeatable {
                facts.0.extend(tally.0);
            }
            let part = part.clone();
            let place = cx.blocking(move || give_name(&part, &directory, name.as_str())).await?;
            Ok((place, facts))
        };
        let kept = kept.await;
        self.part = None;
        match kept {
            Ok(old) => {
                self.old = Some(old);
                Ok(())
            }
            Err(e) => {
                let e: Error = e;
                drop(fs::remove_file(&part));
                let what = "what is there could not be kept, so it was left as it is";
                Err(Error::new(e.reason(), what).caused_by(e).with_hint(
                    "if it is worth nothing, have `empty` end with 0, or give the content to the program yourself: \
                     `snapkit dump SNAPSHOT:SOURCE | PROGRAM`",
                ))
            }
        }
    }

    /// Put back what was kept, whoever does not want to wait for it any more.
    async fn take_back(
        &self,
        cx: &Context,
        (kept, old): &(PathBuf, Facts),
        failure: Error,
    ) -> Error {
        let patient = cx.unhurried();
        let content = read_from(&patient, kept.clone());
        let put = feed(&patient, &self.config, ("`restore`", &self.config.restore), content).await;
        // It may not have done what it says.
        let is_there = |now: Facts| old.0.iter().all(|(name, fact)| now.0.get(name) == Some(fact));
        let put = match put {
            Ok(true) if !old.0.is_empty() => facts(&patient, &self.config).await.map(is_there),
            put => put,
        };
        let state = match put {
            Ok(true) if old.0.is_empty() => {
                "the old state was given back to it, which ended well; nothing proves that it is there"
            }
            Ok(true) => "the old state was put back",
            Ok(false) | Err(_) => "the old state could not be put back",
        };
        let told = Error::new(failure.reason(), format!("{}; {state}", failure.message()))
            .with("old_state", kept.display());
        let told = match put {
            Ok(true) => told,
            Ok(false) => told.with_hint(self.undo(kept).join("; ")),
            Err(e) => told.with("putting_back", e.chain()).with_hint(self.undo(kept).join("; ")),
        };
        told.caused_by(failure)
    }

    fn undo(&self, kept: &Path) -> Vec<String> {
        let words: Vec<_> = self.config.restore.iter().map(|word| word_of(word)).collect();
        let mut lines = Vec::new();
        if !self.config.variables.is_empty() {
            let names: Vec<_> = self.config.variables.keys().map(String::as_str).collect();
            lines
                .push(format!("# with these variables as in the stack file: {}", names.join(", ")));
        }
        // Where it runs.
        let here = std::env::current_dir().unwrap_or_default();
        let directory = here.join(self.config.directory.as_deref().unwrap_or(Path::new("")));
        lines.push(format!("cd {}", shell::path(&directory)));
        lines.push(format!("{} < {}", words.join(" "), shell::path(kept)));
        lines
    }
}

/// A word of a command, as people write it.
fn word_of(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => shell::quote(word.as_bytes()),
    }
}

async fn is_empty(cx: &Context, config: &CommandConfig) -> Result<bool> {
    let answer = ask(cx, config, ("`empty`", &config.empty)).await?;
    match answer.status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(answer.failure("`empty`", "; it ends with 0 or 1")),
    }
}

/// Facts of what the programs answer and write now.
pub(crate) async fn facts(cx: &Context, config: &Arc<CommandConfig>) -> Result<Facts> {
    let mut facts = answers(cx, config).await?;
    if config.repeatable && !config.capture.is_empty() {
        let output = Output::default();
        let read = async {
            output.begin(cx, config).await?;
            tally(cx, output.stream(cx, config, Seen::default())).await
        };
        let read = read.await;
        output.end(cx).await;
        facts.0.extend(read?.facts(Standing::Observed).0);
    }
    Ok(facts)
}

/// The answers that are a proof.
async fn proof(cx: &Context, config: &CommandConfig) -> Result<Facts> {
    let mut answers = answers(cx, config).await?;
    let is_proof =
        |name: &str| name.strip_prefix(ANSWER).is_some_and(|n| config.proof.iter().any(|p| p == n));
    answers.0.retain(|name, fact| is_proof(name) && fact.standing == Standing::Observed);
    Ok(answers)
}

/// Give a whole file its name, or one that follows it. Nothing else ever has such a name.
fn give_name(part: &Path, directory: &Path, name: &str) -> Result<PathBuf> {
    for place in places(directory, name) {
        let what = || format!("cannot write {}", place.display());
        match fs::hard_link(part, &place) {
            Ok(()) => drop(fs::remove_file(part)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
            // Where there are no second names.
            Err(_) if !place.exists() => fs::rename(part, &place).doing(what)?,
            Err(_) => continue,
        }
        File::open(directory).and_then(|directory| directory.sync_all()).doing(what)?;
        return Ok(place);
    }
    Err(Error::internal("there are too many old states"))
}

/// A file that was not there, of this name or of one that follows it.
fn create_new(directory: &Path, name: &str) -> Result<(PathBuf, File)> {
    for place in places(directory, name) {
        let mut options = fs::OpenOptions::new();
        match options.write(true).create_new(true).mode(0o600).open(&place) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => {
                let file = made.doing(|| format!("cannot write {}", place.display()))?;
                return Ok((place, file));
            }
        }
    }
    Err(Error::internal("there are too many old states"))
}

/// `NAME`, `NAME.1`, `NAME.2`, …
fn places(directory: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    let first = directory.join(name);
    let further = (1_u32..).map({
        let (directory, name) = (directory.to_owned(), name.to_owned());
        move |number| directory.join(format!("{name}.{number}"))
    });
    std::iter::once(first).chain(further)
}

/// Capture to a file of our own. What it is then, as facts.
async fn write_to(
    cx: &Context,
    config: &Arc<CommandConfig>,
    mut file: File,
    path: &Path,
) -> Result<Facts> {
    let what = format!("cannot write {}", path.display());
    let output = Output::default();
    let written = async {
        output.begin(cx, config).await?;
        let mut content = output.stream(cx, config, Seen::default());
        let mut tally = Tally::default();
        while let Some(piece) = cx.run(content.try_next()).await? {
            tally.take_in(&piece);
            let what = what.clone();
            file =
                cx.blocking(move || file.write_all(&piece).doing(|| what).map(|()| file)).await?;
        }
        Ok((tally, file))
    };
    let written = written.await;
    output.end(cx).await;
    let (tally, file) = written?;
    cx.blocking(move || file.sync_all().doing(|| what)).await?;
    Ok(tally.facts(Standing::Observed))
}

fn read_from(cx: &Context, path: PathBuf) -> ByteStream {
    let cx = cx.clone();
    Box::pin(stream::try_unfold(None, move |file: Option<File>| {
        let (cx, path) = (cx.clone(), path.clone());
        async move {
            cx.blocking(move || {
                let what = || format!("cannot read {}", path.display());
                let mut file = file.map_or_else(|| File::open(&path), Ok).doing(what)?;
                let mut bytes = Vec::new();
                (&mut file).take(READ as u64).read_to_end(&mut bytes).doing(what)?;
                Ok((!bytes.is_empty()).then(|| (Bytes::from(bytes), Some(file))))
            })
            .await
        }
    }))
}

/// The answers that hold of what was captured.
fn answers_of(captured: &Facts) -> impl Iterator<Item = (&String, &Fact)> {
    let is_answer = |name: &str| name.starts_with(ANSWER);
    captured.0.iter().filter(move |(name, f)| is_answer(name) && f.standing == Standing::Pinned)
}

/// Content on its way into a file.
pub(crate) struct DirectoryRestore {
    pub(crate) inner: FileRestore,
    /// What is known of what was captured.
    pub(crate) captured: Facts,
}

#[async_trait]
impl Restore for DirectoryRestore {
    async fn put(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()> {
        self.inner.put(cx, meta, body).await
    }

    async fn finish(self: Box<Self>, cx: &Context) -> Result<RestoreReport> {
        let Self { inner, captured } = *self;
        let mut report = Box::new(inner).finish(cx).await?;
        // They are of a live system, which a file is not.
        report.beside.extend(answers_of(&captured).map(|(name, _)| name.clone()));
        Ok(report)
    }

    async fn abort(self: Box<Self>, cx: &Context) -> Result<()> {
        Box::new(self.inner).abort(cx).await
    }
}

#[async_trait]
impl Restore for CommandRestore {
    async fn put(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()> {
        if self.staged.is_some() {
            return Err(
                Error::invalid("what a program takes is one artifact").with("artifact", &meta.name)
            );
        }
        let mut body = body.into_bytes()?;
        let room = Room::new(self.config.scratch.unwrap_or(u64::MAX));
        let inner = cx.clone();
        let mut staged = cx.blocking(move || ScratchWriter::begin(&inner, &room)).await?;
        let mut examiner = Examiner::default();
        while let Some(piece) = cx.run(body.try_next()).await? {
            examiner.take_in(&piece);
            staged = cx.blocking(move || staged.write(&piece).map(|()| staged)).await?;
        }
        if let Some(lack) = examiner.lack(&self.config.whole_stored()) {
            return Err(Error::corrupt(format!("the content is not whole: {lack}")));
        }
        let staged = cx.blocking(move || staged.finish()).await?;
        let content = staged.stream(cx, 0, staged.len());
        self.staged = Some((staged, examiner.into_tally()));
        // All that can fail does so before anything is changed anywhere.
        if !self.config.check.is_empty() {
            let check = ("`check`", &self.config.check[..]);
            feed(cx, &self.config, check, content).await.map_err(|e| {
                Error::new(e.reason(), "the content does not pass `check`").caused_by(e)
            })?;
        }
        match self.keep.clone() {
            Some(directory) => self.keep(cx, &directory).await,
            None => Ok(()),
        }
    }

    async fn finish(mut self: Box<Self>, cx: &Context) -> Result<RestoreReport> {
        let (staged, taken) =
            self.staged.take().ok_or_else(|| Error::invalid("nothing was put to be restored"))?;
        let mut report = RestoreReport::default();
        let content = staged.stream(cx, 0, staged.len());
        // Hours may lie between.
        if self.was_empty && !is_empty(cx, &self.config).await? {
            let what =
                "`empty` says that there is something meanwhile where the content is put back";
            return Err(Error::new(Reason::TargetNotEmpty, what));
        }
        let put = feed(cx, &self.config, ("`restore`", &self.config.restore), content).await;
        let failure = match put {
            Ok(true) => None,
            Ok(false) => Some(Error::new(
                Reason::ProgramFailed,
                "`restore` ended before it had taken all of the content",
            )),
            Err(e) => Some(e),
        };
        if let Some(failure) = failure {
            return Err(match &self.old {
                Some(old) => self.take_back(cx, old, failure).await,
                None => failure.with_hint("what is there now may be a part of the content"),
            });
        }
        report.undo = self.old.iter().flat_map(|(kept, _)| self.undo(kept)).collect();
        if !self.read_back {
            return Ok(report);
        }
        match facts(cx, &self.config).await {
            Ok(facts) => report.facts = facts,
            // The restore is done, and how to undo it must be told.
            Err(e) => report.problems.push(format!("it could not be read back: {}", e.chain())),
        }
        // Where answers are the proof of the system, its content is not what is compared.
        if !self.config.repeatable {
            match answers_of(&self.captured).next() {
                Some(_) => report.beside.extend(taken.facts(Standing::Observed).0.into_keys()),
                None => report.notes.push(
                    "nothing proves it: name `facts`, or say `repeatable = true` if the same state always gives the same bytes"
                        .to_owned(),
                ),
            }
        }
        report.problem_count = report.problems.len() as u64;
        Ok(report)
    }

    async fn abort(self: Box<Self>, _: &Context) -> Result<()> {
        // What was kept is not needed, for nothing was changed.
        for file in self.old.map(|(kept, _)| kept).into_iter().chain(self.part) {
            drop(fs::remove_file(file));
        }
        Ok(())
    }
}
