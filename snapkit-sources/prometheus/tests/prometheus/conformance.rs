//! The suite that every source passes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use snapkit_core::Result;
use snapkit_core::context::Context;
use snapkit_core::source::{Source, Target};
use snapkit_source_prometheus::PrometheusConfig;
use snapkit_testkit::server::PrometheusServer;
use snapkit_testkit::source::{self, Harness, State};
use tempfile::TempDir;

use crate::{ADMIN, NOWHERE, add_blocks, blocks, left_in, prometheus};

struct Servers;

/// A server that runs, or the data directory of one that does not.
enum System {
    Running(PrometheusServer),
    Stopped(TempDir),
}

impl System {
    fn data(&self) -> PathBuf {
        match self {
            Self::Running(server) => server.data(),
            Self::Stopped(dir) => dir.path().to_owned(),
        }
    }

    fn config(&self) -> PrometheusConfig {
        let url = match self {
            Self::Running(server) => server.url(),
            Self::Stopped(_) => NOWHERE.to_owned(),
        };
        PrometheusConfig::new(url, self.data())
    }
}

fn add_files(state: &mut State, base: &Path, at: &Path) {
    for entry in std::fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(base).unwrap().display().to_string();
        // Blocks begin with the time in base 32, which begins with a zero for some thousand years.
        if path.is_dir() && name.starts_with('0') {
            add_files(state, base, &path);
        } else if name.starts_with('0') {
            state.insert(name, format!("{:?}", std::fs::read(&path).unwrap()));
        }
    }
}

#[async_trait]
impl Harness for Servers {
    type System = System;

    async fn populated(&self, _: &Context) -> Result<System> {
        let many: Vec<_> = (0..3000)
            .map(|n| ("requests{path=\"/é\"}", f64::from(n), 1_795_600_000 + i64::from(n) * 10))
            .collect();
        let data = blocks(&many);
        Ok(System::Running(PrometheusServer::start(Some(data.path()), &[ADMIN]).unwrap()))
    }

    async fn empty(&self, _: &Context) -> Result<System> {
        Ok(System::Stopped(tempfile::tempdir().unwrap()))
    }

    async fn mutate(&self, _: &Context, system: &System) -> Result<()> {
        add_blocks(&system.data(), &[("another", 5.0, 1_795_700_000)]);
        Ok(())
    }

    async fn state(&self, _: &Context, system: &System) -> Result<State> {
        let mut state = State::new();
        add_files(&mut state, &system.data(), &system.data());
        Ok(state)
    }

    async fn held(&self, _: &Context, system: &System) -> Result<Vec<String>> {
        Ok(left_in(&system.data()))
    }

    fn source(&self, system: &System) -> Arc<dyn Source> {
        Arc::new(prometheus(system.config()))
    }

    fn restorer(&self, _: &System, target: &System) -> (Arc<dyn Source>, Target) {
        (Arc::new(prometheus(target.config())), Target::Original)
    }

    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract() {
    if PrometheusServer::start(None, &[]).is_none() {
        return;
    }
    source::all(&Context::system(), &Servers).await;
}
