//! A restore into a server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use snapkit_core::context::Context;
use snapkit_core::facts::Standing;
use snapkit_core::scratch::Room;
use snapkit_core::shell;
use snapkit_core::source::RestoreReport;
use snapkit_core::{Error, Reason, Result};

use super::kept::{Kept, keep};
use super::{told, write};
use crate::document::overlap;
use crate::look::{Summary, Taken, take};
use crate::server::{Server, StreamInfo};
use crate::transfer::upload;

/// How long it may take to bring the old state back, for each stream.
const BRING_BACK: Duration = Duration::from_secs(600);

/// How many settings that a server does not know are left out.
const UNKNOWN: usize = 32;

/// How long a cluster may take until all of a stream is where it should be.
const READY: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Where streams go, and how.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) server: Server,
    pub(super) overwrite: bool,
    pub(super) recovery: Option<PathBuf>,
    pub(super) read_back: bool,
    pub(super) room: Room,
}

/// What was done to one stream.
#[derive(Debug)]
struct Done {
    name: String,
    kept: Option<Kept>,
}

impl Plan {
    pub(super) async fn put(
        self,
        cx: &Context,
        streams: BTreeMap<String, Taken>,
    ) -> Result<RestoreReport> {
        let found = self.examine(cx, &streams).await?;
        let mut report = RestoreReport::default();
        let mut done = Vec::new();
        let put = self.put_all(cx, streams, &found, &mut done, &mut report).await;
        match put {
            Ok(()) => {
                for done in &done {
                    if let Some(kept) = &done.kept {
                        report.undo.push(format!("nats stream rm -f {}", done.name));
                        report
                            .undo
                            .push(format!("nats stream restore {}", shell::path(&kept.directory)));
                    }
                }
                Ok(report)
            }
            Err(e) => Err(self.take_back(cx, done, e).await),
        }
    }

    /// What is there already, if all can be put.
    async fn examine(
        &self,
        cx: &Context,
        streams: &BTreeMap<String, Taken>,
    ) -> Result<BTreeMap<String, StreamInfo>> {
        let mut found = self.server.streams(cx, |_| true).await?;
        for (name, taken) in streams {
            taken.document.format_for(self.server.version)?;
            if found.contains_key(name) && !self.overwrite {
                let what = "the target holds data";
                return Err(Error::new(Reason::TargetNotEmpty, what).with("stream", name));
            }
            for (other, info) in found.iter().filter(|(other, _)| !streams.contains_key(*other)) {
                let theirs = info.config["subjects"].as_array().into_iter().flatten();
                for theirs in theirs.filter_map(Value::as_str) {
                    if let Some(own) = taken.document.subjects().find(|own| overlap(own, theirs)) {
                        let what = "a subject of a stream belongs to another stream in the target";
                        return Err(Error::new(Reason::InvalidConfig, what)
                            .with("stream", name)
                            .with("subject", own)
                            .with("other", other));
                    }
                }
            }
        }
        found.retain(|name, _| streams.contains_key(name));
        Ok(found)
    }

    async fn put_all(
        &self,
        cx: &Context,
        streams: BTreeMap<String, Taken>,
        found: &BTreeMap<String, StreamInfo>,
        done: &mut Vec<Done>,
        report: &mut RestoreReport,
    ) -> Result<()> {
        let mut summary = Summary::new(Standing::Observed);
        let mut aged = Vec::new();
        for (name, taken) in streams {
            if let Some(info) = found.get(&name) {
                let mut kept = None;
                if let Some(recovery) = self.recovery.clone() {
                    kept = Some(keep(cx, &self.server, info, recovery, &self.room).await?);
                }
                // Whether it is gone or not, when the answer is lost: what was kept brings it back.
                let is_kept = kept.is_some();
                done.extend(kept.map(|kept| Done { name: name.clone(), kept: Some(kept) }));
                self.server.delete(cx, &name).await?;
                if !is_kept {
                    done.push(Done { name: name.clone(), kept: None });
                }
            } else {
                done.push(Done { name: name.clone(), kept: None });
            }
            let made = self.make(cx, &name, &taken, report).await;
            if made.as_ref().is_err_and(|e| e.reason() == Reason::TargetNotEmpty) {
                // Somebody else has made one of this name meanwhile: it is theirs.
                done.pop();
            }
            let info = made?;
            self.wait(cx, &name, &taken).await?;
            if self.read_back {
                let now = take(cx, &self.server, &name, &self.room, None).await?;
                summary.add(&now.document, &now.messages.tally);
            }
            let max_age = taken.document.config["max_age"].as_i64().unwrap_or(0);
            if max_age > 0 {
                aged.push((name, max_age, taken.messages.tally.oldest, info));
            }
        }
        if self.read_back {
            report.facts = summary.facts();
            report.facts.observe("server.version", self.server.version.to_string());
        }
        // Not before all has been read back: what is too old goes at once.
        for (name, max_age, oldest, info) in aged {
            let age = cx.now().0.saturating_sub(oldest);
            if age >= max_age {
                report.notes.push(format!(
                    "{name}: `max_age` is left out, because some messages are older and would be gone at once; \
                     `nats stream edit {name} --max-age=…` sets it"
                ));
                continue;
            }
            let mut config = info.config;
            config["max_age"] = json!(max_age);
            let updated: Result<Value> =
                self.server.ask(cx, &format!("STREAM.UPDATE.{name}"), &config).await;
            if let Err(e) = updated {
                report.problems.push(format!("{name}: `max_age` could not be set: {}", e.chain()));
                report.problem_count += 1;
            }
        }
        Ok(())
    }

    /// Make one stream.
    async fn make(
        &self,
        cx: &Context,
        name: &str,
        taken: &Taken,
        report: &mut RestoreReport,
    ) -> Result<StreamInfo> {
        let mut config = taken.document.config.clone();
        if config["max_age"].as_i64().unwrap_or(0) > 0 {
            config["max_age"] = json!(0);
        }
        if self.server.client.server_info().cluster.is_none() {
            if config["num_replicas"].as_u64().unwrap_or(1) > 1 {
                config["num_replicas"] = json!(1);
                report.notes.push(format!("{name}: one replica, because the target is no cluster"));
            }
            if let Some(config) = config.as_object_mut() {
                config.remove("placement");
            }
        }
        let format = taken.document.format_for(self.server.version)?;
        for _ in 0..UNKNOWN {
            let (inner, part, own) = (cx.clone(), taken.clone(), config.clone());
            let told = told(taken, &config);
            let made = upload(cx, &self.server, name, &told, move |output| {
                write(&inner, &part, &own, format, output)
            });
            match made.await {
                Ok(info) => {
                    let dropped = dropped(&config, &info.config);
                    report.notes.extend(dropped.map(|field| left_out(name, field)));
                    return Ok(info);
                }
                Err(e) => match unknown_field(&e).filter(|field| remove(&mut config, field)) {
                    Some(field) => report.notes.push(left_out(name, &field)),
                    None => return Err(e.with("stream", name)),
                },
            }
        }
        let what = "the target does not know too many of the settings of a stream";
        Err(Error::new(Reason::Unsupported, what).with("stream", name))
    }

    /// Until consumers and replicas are there.
    async fn wait(&self, cx: &Context, name: &str, taken: &Taken) -> Result<()> {
        let limit = cx.within(READY);
        loop {
            let info = self.server.stream(cx, name).await?;
            let replicas = info.cluster.as_ref().and_then(|cluster| cluster["replicas"].as_array());
            let is_current = replicas
                .is_none_or(|replicas| replicas.iter().all(|replica| replica["current"] == true));
            if is_current && info.state.consumer_count >= taken.document.consumers.len() as u64 {
                return Ok(());
            }
            if limit.sleep(LOOK_AGAIN).await.is_err() {
                cx.check()?;
                // What is missing is told by what is read back.
                return Ok(());
            }
        }
    }

    /// Bring back what was there, as far as possible. The error that led here, and what has become of the target.
    async fn take_back(&self, cx: &Context, done: Vec<Done>, e: Error) -> Error {
        let mut e = e;
        let mut is_whole = true;
        for done in done.into_iter().rev() {
            // The restore may have been cancelled.
            let cx = cx.for_cleanup(BRING_BACK);
            let taken_back = async {
                match self.server.delete(&cx, &done.name).await {
                    Err(e) if e.reason() != Reason::NotFound => return Err(e),
                    _ => {}
                }
                match &done.kept {
                    Some(kept) => kept.put_back(&cx, &self.server, &done.name).await,
                    None => Ok(()),
                }
            };
            if let Err(failed) = taken_back.await {
                is_whole = false;
                e = e.with("not_taken_back", format!("{}: {}", done.name, failed.chain()));
                if let Some(kept) = &done.kept {
                    e = e.with("old_state", kept.directory.display()).with_hint(
                        "`nats stream restore` makes the old stream again from the directory `old_state`",
                    );
                }
            }
        }
        if is_whole { e.with("target", "as it was") } else { e }
    }
}

fn left_out(stream: &str, field: &str) -> String {
    format!("{stream}: `{field}` is left out, because the target does not know it")
}

/// Settings that say something, and of which the server says nothing: one that is not strict takes what it does not know
/// without a word.
fn dropped<'a>(sent: &'a Value, taken: &'a Value) -> impl Iterator<Item = &'a str> {
    let says_something = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(map) => !map.is_empty(),
    };
    let sent = sent.as_object().into_iter().flatten();
    let dropped =
        sent.filter(move |(name, value)| says_something(value) && taken.get(name).is_none());
    dropped.map(|(name, _)| name.as_str())
}

/// The name of a setting that the server does not know, if that is what it says.
fn unknown_field(e: &Error) -> Option<String> {
    let said = e.chain();
    let name = said.split("unknown field ").nth(1)?.split('"').nth(1)?;
    Some(name.to_owned())
}

/// Take a setting out, wherever it is.
fn remove(config: &mut Value, field: &str) -> bool {
    match config {
        Value::Object(map) => {
            map.remove(field).is_some() | map.values_mut().any(|value| remove(value, field))
        }
        Value::Array(values) => values.iter_mut().any(|value| remove(value, field)),
        _ => false,
    }
}
