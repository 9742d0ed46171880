//! Against a real Prometheus, with blocks that `promtool` makes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod behaviour;
mod conformance;
mod remote_write;
mod traps;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use futures_util::TryStreamExt as _;
use snapkit_core::artifact::{ArtifactMeta, Body, SourceName};
use snapkit_core::context::Context;
use snapkit_core::facts::Facts;
use snapkit_core::manifest::SourceRecord;
use snapkit_core::source::{Cut, RestoreReport, RestoreRequest, Source as _, Target};
use snapkit_core::{Error, Result};
use snapkit_source_prometheus::{Prometheus, PrometheusConfig};
use snapkit_testkit::server::PrometheusServer;
use tempfile::TempDir;

/// What a server is started with, so that it makes snapshots.
const ADMIN: &str = "--web.enable-admin-api";

/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:1";

/// A directory of blocks, of such samples: a name, a value, and seconds since 1970.
fn blocks(samples: &[(&str, f64, i64)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    add_blocks(dir.path(), samples);
    dir
}

/// Add such blocks to a directory.
fn add_blocks(directory: &Path, samples: &[(&str, f64, i64)]) {
    let lines: String =
        samples.iter().map(|(name, value, at)| format!("{name} {value} {at}\n")).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{lines}# EOF\n")).unwrap();
    let mut tool = Command::new("promtool");
    tool.args(["tsdb", "create-blocks-from", "openmetrics"]).arg(file.path()).arg(directory);
    let made = tool.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn prometheus(config: PrometheusConfig) -> Prometheus {
    Prometheus::new(SourceName::new("metrics").unwrap(), config).unwrap()
}

fn config(server: &PrometheusServer) -> PrometheusConfig {
    PrometheusConfig::new(server.url(), server.data())
}

/// What was captured.
struct Taken {
    record: SourceRecord,
    content: BTreeMap<String, (ArtifactMeta, Vec<bytes::Bytes>)>,
    problems: Vec<(String, Error)>,
    cut: Cut,
}

async fn capture(cx: &Context, source: &Prometheus) -> Result<Taken> {
    let mut capture = source.capture(cx, None).await?;
    let cut = match capture.freeze(cx).await {
        Ok(cut) => cut,
        Err(e) => return capture.abort(cx).await.and(Err(e)),
    };
    capture.thaw(cx).await?;
    let mut content = BTreeMap::new();
    while let Some(meta) = capture.next(cx).await? {
        let body = capture.open(cx, &meta.name).await?.into_bytes()?;
        let pieces: Vec<_> = body.try_collect().await?;
        content.insert(meta.name.to_string(), (meta, pieces));
    }
    let report = capture.finish(cx).await?;
    let mut record = SourceRecord::new(source.info());
    (record.facts, record.cut) = (report.facts, Some(cut.clone()));
    Ok(Taken { record, content, problems: report.problems, cut })
}

async fn restore(
    cx: &Context,
    source: &Prometheus,
    taken: &Taken,
    change: impl FnOnce(&mut RestoreRequest),
) -> Result<RestoreReport> {
    let mut request = RestoreRequest::new(Target::Original, taken.record.clone());
    change(&mut request);
    let mut session = source.restore(cx, &request).await?;
    for (meta, pieces) in taken.content.values() {
        let pieces: Vec<_> = pieces.iter().cloned().map(Ok).collect();
        let body = Body::Bytes(Box::pin(futures_util::stream::iter(pieces)));
        if let Err(e) = session.put(cx, meta, body).await {
            return session.abort(cx).await.and(Err(e));
        }
    }
    session.finish(cx).await
}

/// What a server answers to a query at a moment.
fn ask(server: &PrometheusServer, query: &str, at: i64) -> String {
    let mut tool = Command::new("promtool");
    tool.args(["query", "instant", &format!("--time={at}"), &server.url(), query]);
    let answer = tool.output().unwrap();
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    String::from_utf8(answer.stdout).unwrap()
}

/// What lies in a directory that is not there for long: snapshots of the server, and what is being restored.
fn left_in(data: &Path) -> Vec<String> {
    let names = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    let staged = names(data).into_iter().filter(|name| name.starts_with("snapkit"));
    names(&data.join("snapshots")).into_iter().chain(staged).collect()
}

fn pinned(facts: &Facts, name: &str) -> String {
    facts.0.get(name).map(|fact| fact.value.to_string()).unwrap_or_default()
}
