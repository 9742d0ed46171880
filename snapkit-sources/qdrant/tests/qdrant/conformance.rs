//! The suite that every source passes.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use snapkit_core::Result;
use snapkit_core::context::Context;
use snapkit_core::source::{Source, Target};
use snapkit_source_qdrant::{Method, QdrantConfig};
use snapkit_testkit::qdrant::QdrantDouble;
use snapkit_testkit::source::{self, Harness, State};

use crate::stage::{Server, qdrant};

const KEY: &str = "a-secret-of-the-server";

struct Doubles(Method);

impl Doubles {
    fn start() -> Server {
        let mut server = Server::of(QdrantDouble::start().with_keys(KEY, "only-reads"));
        server.key = Some(KEY.to_owned());
        server
    }

    fn config(&self, server: &Server) -> QdrantConfig {
        server.with(|config| config.method = self.0)
    }
}

#[async_trait]
impl Harness for Doubles {
    type System = Server;

    async fn populated(&self, _: &Context) -> Result<Server> {
        let server = Self::start();
        server.fill("docs", 300).await;
        server.fill("images", 40).await;
        Ok(server)
    }

    async fn empty(&self, _: &Context) -> Result<Server> {
        Ok(Self::start())
    }

    async fn mutate(&self, _: &Context, server: &Server) -> Result<()> {
        server.put("docs", 250..320).await;
        Ok(())
    }

    async fn state(&self, _: &Context, server: &Server) -> Result<State> {
        let mut state = State::new();
        let all = server.must("GET", "/collections", Value::Null).await;
        for name in all["collections"].as_array().into_iter().flatten() {
            let name = name["name"].as_str().unwrap();
            let about = server.must("GET", &format!("/collections/{name}"), Value::Null).await;
            state.insert(format!("{name} config"), about["config"].to_string());
            state.insert(format!("{name} schema"), about["payload_schema"].to_string());
            for point in server.points(name).await {
                state.insert(format!("{name} {}", point["id"]), point.to_string());
            }
        }
        let aliases = server.must("GET", "/aliases", json!(null)).await;
        state.insert("aliases".to_owned(), aliases.to_string());
        Ok(state)
    }

    async fn held(&self, _: &Context, server: &Server) -> Result<Vec<String>> {
        Ok(server.double.as_ref().map(QdrantDouble::left_behind).unwrap_or_default())
    }

    fn source(&self, server: &Server) -> Arc<dyn Source> {
        Arc::new(qdrant(self.config(server)))
    }

    fn restorer(&self, origin: &Server, target: &Server) -> (Arc<dyn Source>, Target) {
        (Arc::new(qdrant(self.config(origin))), Target::Url(target.url.clone()))
    }

    fn secrets(&self) -> Vec<String> {
        vec![KEY.to_owned()]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract() {
    for method in [Method::Stored, Method::Streamed] {
        source::all(&Context::system(), &Doubles(method)).await;
    }
}
