//! Hooks and probes of a stack file: programs around a run, and what examines a restored system.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use snapkit_core::context::Context;
use snapkit_core::engine::{Hooks, Moment, Occasion, Probe};
use snapkit_core::error::{Error, Reason, Result};

use crate::env::Env;
use crate::output::Output;
use crate::program::{Ended, Program};

/// How long a hook may take unless it says so: five minutes.
const HOOK_TIMEOUT: Duration = Duration::from_secs(300);

/// How long one attempt of a probe may take unless it says so.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a probe is tried again unless it says so: services take a moment to start.
const PROBE_PATIENCE: Duration = Duration::from_secs(30);

/// Between two attempts of a probe.
const PAUSE: Duration = Duration::from_millis(500);

/// The status by which a program says: not now, try again later (`EX_TEMPFAIL` of sysexits.h).
const NOT_NOW: i32 = 75;

/// A `[[hook]]`.
#[derive(Clone, Debug)]
pub(crate) struct Hook {
    pub(crate) on: Vec<Moment>,
    pub(crate) run: Vec<String>,
    pub(crate) timeout: Duration,
}

/// A `[[probe]]`.
#[derive(Clone, Debug)]
pub(crate) struct ProbeConfig {
    pub(crate) name: String,
    pub(crate) ask: Ask,
    pub(crate) timeout: Duration,
    pub(crate) within: Duration,
}

/// What a probe asks.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// A program that must end with 0.
    Run(Vec<String>),
    /// An address that must answer so.
    Http { url: String, status: Option<u16>, contains: Option<String> },
}

/// A hook as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HookSection {
    on: OneOrMore,
    run: Vec<String>,
    timeout: Option<String>,
}

/// A probe as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProbeSection {
    name: Option<String>,
    run: Option<Vec<String>>,
    http: Option<String>,
    status: Option<u16>,
    contains: Option<String>,
    timeout: Option<String>,
    within: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(Reason::InvalidConfig, what)
}

fn duration(text: Option<&String>, key: &str, usual: Duration) -> Result<Duration> {
    let Some(text) = text else { return Ok(usual) };
    crate::format::parse_duration(text).map_err(|e| invalid(format!("`{key}`: {}", e.message())))
}

fn timeout(text: Option<&String>, usual: Duration) -> Result<Duration> {
    match duration(text, "timeout", usual)? {
        Duration::ZERO => Err(invalid("`timeout` must not be nothing: no program ends at once")),
        timeout => Ok(timeout),
    }
}

impl HookSection {
    pub(crate) fn check(self) -> Result<Hook> {
        let words = match self.on {
            OneOrMore::One(word) => vec![word],
            OneOrMore::More(words) => words,
        };
        let moment = |word: &String| {
            Moment::ALL.into_iter().find(|moment| moment.as_str() == word).ok_or_else(|| {
                let known: Vec<_> = Moment::ALL.map(|m| format!("\"{}\"", m.as_str())).into();
                invalid(format!(
                    "`on`: there is no moment \"{word}\"; moments are {}",
                    known.join(", ")
                ))
            })
        };
        let on = words.iter().map(moment).collect::<Result<Vec<_>>>()?;
        if on.is_empty() {
            return Err(invalid("`on` names no moment"));
        }
        if self.run.first().is_none_or(String::is_empty) {
            return Err(invalid("`run` names no program"));
        }
        let timeout = timeout(self.timeout.as_ref(), HOOK_TIMEOUT)?;
        Ok(Hook { on, run: self.run, timeout })
    }
}

impl ProbeSection {
    pub(crate) fn check(self) -> Result<ProbeConfig> {
        let of_http = self.status.is_some() || self.contains.is_some();
        let ask = match (self.run, self.http) {
            (Some(run), None) if of_http => {
                return Err(invalid(format!(
                    "`status` and `contains` are for `http`, and this probe runs {:?}",
                    run.first().map_or("", String::as_str)
                )));
            }
            (Some(run), None) if run.first().is_some_and(|name| !name.is_empty()) => Ask::Run(run),
            (Some(_), None) => return Err(invalid("`run` names no program")),
            (None, Some(url)) => {
                crate::http::check(&url)?;
                Ask::Http { url, status: self.status, contains: self.contains }
            }
            _ => return Err(invalid("a probe has either `run` or `http`")),
        };
        let name = self.name.unwrap_or_else(|| match &ask {
            Ask::Run(words) => words[0].clone(),
            Ask::Http { url, .. } => crate::http::shown(url),
        });
        Ok(ProbeConfig {
            name,
            ask,
            timeout: timeout(self.timeout.as_ref(), PROBE_TIMEOUT)?,
            within: duration(self.within.as_ref(), "within", PROBE_PATIENCE)?,
        })
    }
}

/// What all programs of a stack file have in common.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) env: Arc<Env>,
    pub(crate) output: Arc<Output>,
    /// Where the stack file is.
    pub(crate) directory: std::path::PathBuf,
}

/// The hooks of a stack file.
#[derive(Debug)]
pub(crate) struct StackHooks {
    pub(crate) hooks: Vec<Hook>,
    pub(crate) around: Surroundings,
}

#[async_trait]
impl Hooks for StackHooks {
    async fn run(&self, cx: &Context, occasion: &Occasion) -> Result<()> {
        let moment = occasion.moment;
        let may_refuse = matches!(moment, Moment::BeforeFreeze | Moment::BeforeRestore);
        let mut first = None;
        for hook in self.hooks.iter().filter(|hook| hook.on.contains(&moment)) {
            let program = Program {
                what: match moment {
                    // It would read as if the hook had failed.
                    Moment::Failed => "hook `failed`".to_owned(),
                    moment => format!("hook {}", moment.as_str()),
                },
                words: &hook.run,
                directory: self.around.directory.clone(),
                timeout: hook.timeout,
                variables: variables(occasion),
            };
            let ended = match program.run(cx, &self.around.env, &self.around.output).await {
                Ok(ended) => judge(&program, &ended, may_refuse),
                Err(e) if cx.check().is_err() => Err(e),
                // A program that does not start, or does not end, is no reason to try again later.
                Err(e) => Err(Error::new(Reason::HookFailed, e.chain())),
            };
            let Err(e) = ended else { continue };
            if may_refuse {
                return Err(e);
            }
            // Whatever is to be done afterwards is done, all of it.
            first = first.or(Some(e));
        }
        first.map_or(Ok(()), Err)
    }
}

fn judge(program: &Program<'_>, ended: &Ended, may_refuse: bool) -> Result<()> {
    let name = program.words.first().map_or("", String::as_str);
    match ended.status.code() {
        Some(0) => return Ok(()),
        Some(NOT_NOW) if may_refuse => {
            let what = format!("{} asks to try again later", program.what);
            return Err(said(Error::new(Reason::NotNow, what).with("program", name), ended));
        }
        _ => {}
    }
    let what = format!("{} failed: {}", program.what, ended.status);
    Err(said(Error::new(Reason::HookFailed, what).with("program", name), ended))
}

fn said(error: Error, ended: &Ended) -> Error {
    if ended.last.is_empty() { error } else { error.with("said", &ended.last) }
}

/// What a hook finds in its environment.
fn variables(occasion: &Occasion) -> Vec<(String, String)> {
    let mut all = vec![
        ("SNAPKIT_MOMENT".to_owned(), occasion.moment.as_str().to_owned()),
        ("SNAPKIT_OPERATION".to_owned(), occasion.operation.as_str().to_owned()),
        ("SNAPKIT_STACK_NAME".to_owned(), occasion.stack.clone()),
        ("SNAPKIT_SET".to_owned(), occasion.set.clone()),
    ];
    if let Some(snapshot) = &occasion.snapshot {
        all.push(("SNAPKIT_SNAPSHOT".to_owned(), snapshot.to_string()));
    }
    if let Some(verdict) = occasion.verdict {
        all.push(("SNAPKIT_VERDICT".to_owned(), verdict.to_owned()));
    }
    if let Some((reason, error)) = &occasion.failure {
        all.push(("SNAPKIT_REASON".to_owned(), reason.code().to_owned()));
        all.push(("SNAPKIT_ERROR".to_owned(), error.clone()));
    }
    for (source, position) in &occasion.positions {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let name: String = source.chars().map(plain).collect();
        all.push((format!("SNAPKIT_POSITION_{name}"), position.clone()));
    }
    all
}

/// A probe of a stack file.
#[derive(Debug)]
pub(crate) struct StackProbe {
    pub(crate) config: ProbeConfig,
    pub(crate) around: Surroundings,
}

#[async_trait]
impl Probe for StackProbe {
    fn name(&self) -> &str {
        &self.config.name
    }

    /// Tried until it succeeds or its time is over: the last failure counts.
    async fn probe(&self, cx: &Context) -> Result<()> {
        let end = cx.monotonic() + self.config.within;
        loop {
            let failure = match self.once(cx).await {
                Ok(()) => return Ok(()),
                Err(e) if cx.check().is_err() => return Err(e),
                Err(e) => e,
            };
            if cx.monotonic() + PAUSE >= end {
                return Err(failure);
            }
            cx.sleep(PAUSE).await?;
        }
    }
}

impl StackProbe {
    async fn once(&self, cx: &Context) -> Result<()> {
        let ProbeConfig { name, ask, timeout, .. } = &self.config;
        match ask {
            Ask::Run(words) => {
                let program = Program {
                    what: format!("probe {name}"),
                    words,
                    directory: self.around.directory.clone(),
                    timeout: *timeout,
                    variables: Vec::new(),
                };
                let ended = program.run(cx, &self.around.env, &self.around.output).await?;
                if ended.status.success() {
                    return Ok(());
                }
                let e = Error::new(Reason::Unavailable, ended.status.to_string());
                Err(said(e, &ended))
            }
            Ask::Http { url, status, contains } => {
                let limited = cx.within(*timeout);
                let asked =
                    limited.run(crate::http::get(url)).await.map_err(|e| match e.reason() {
                        Reason::TimedOut if cx.check().is_ok() => {
                            Error::new(Reason::TimedOut, format!("no answer within {timeout:?}"))
                        }
                        _ => e,
                    });
                let answer = asked?;
                let fits = match status {
                    Some(status) => answer.status == *status,
                    None => (200..300).contains(&answer.status),
                };
                if !fits {
                    let what = format!("the answer has status {}", answer.status);
                    return Err(Error::new(Reason::Unavailable, what));
                }
                match contains {
                    Some(text) if !answer.body.contains(text.as_str()) => Err(Error::new(
                        Reason::Unavailable,
                        format!("the answer does not contain {text:?}"),
                    )),
                    _ => Ok(()),
                }
            }
        }
    }
}
