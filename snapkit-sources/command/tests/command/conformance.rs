//! The suite that every source passes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use snapkit_core::Result;
use snapkit_core::context::Context;
use snapkit_core::source::{Source, Target};
use snapkit_testkit::source::{self, Harness, State};
use tempfile::TempDir;

use crate::{TOKEN, command, config, processes_in};

struct Files;

#[async_trait]
impl Harness for Files {
    type System = TempDir;

    async fn populated(&self, _: &Context) -> Result<TempDir> {
        let dir = tempfile::tempdir().unwrap();
        let mut state = b"state of an app\n".to_vec();
        state.extend((0..3_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()));
        std::fs::write(dir.path().join("state"), state).unwrap();
        Ok(dir)
    }

    async fn empty(&self, _: &Context) -> Result<TempDir> {
        Ok(tempfile::tempdir().unwrap())
    }

    async fn mutate(&self, _: &Context, dir: &TempDir) -> Result<()> {
        std::fs::write(dir.path().join("state"), "state of another app\n").unwrap();
        Ok(())
    }

    async fn state(&self, _: &Context, dir: &TempDir) -> Result<State> {
        let mut state = State::new();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let digest = std::fs::read(&path).unwrap();
            state.insert(
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                format!("{digest:?}"),
            );
        }
        Ok(state)
    }

    async fn held(&self, cx: &Context, dir: &TempDir) -> Result<Vec<String>> {
        let mut held = Vec::new();
        // What was killed is gone a little later.
        for _ in 0..100 {
            held = processes_in(dir.path());
            if held.is_empty() {
                break;
            }
            cx.sleep(Duration::from_millis(20)).await?;
        }
        Ok(held)
    }

    fn source(&self, dir: &TempDir) -> Arc<dyn Source> {
        Arc::new(command(config(dir.path())))
    }

    fn restorer(&self, _: &TempDir, target: &TempDir) -> (Arc<dyn Source>, Target) {
        (Arc::new(command(config(target.path()))), Target::Original)
    }

    fn secrets(&self) -> Vec<String> {
        vec![TOKEN.to_owned()]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract() {
    source::all(&Context::system(), &Files).await;
}
