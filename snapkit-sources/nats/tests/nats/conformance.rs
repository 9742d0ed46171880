//! The suite that every source passes, with the oldest server and the newest.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use snapkit_core::Result;
use snapkit_core::context::Context;
use snapkit_core::source::{Source, Target};
use snapkit_source_nats::NatsConfig;
use snapkit_testkit::server::NatsServer;
use snapkit_testkit::source::{self, Harness, State};

use crate::client::{Client, nats};

const PASSWORD: &str = "a-secret-of-the-server";

struct Servers(PathBuf);

impl Servers {
    fn start(&self) -> NatsServer {
        // The tests themselves come in without a password, as another user of the same account.
        let users = format!(
            "accounts {{ A {{ jetstream: enabled, users: [ {{ user: snap, password: \"{PASSWORD}\" }}, {{ user: test, password: test }} ] }} }}\nno_auth_user: test"
        );
        NatsServer::start(&self.0, &users)
    }
}

fn with_password(server: &NatsServer) -> NatsConfig {
    let json = json!({ "url": server.url(), "user": "snap", "password": PASSWORD });
    serde_json::from_value(json).unwrap()
}

#[async_trait]
impl Harness for Servers {
    type System = NatsServer;

    async fn populated(&self, _: &Context) -> Result<NatsServer> {
        let server = self.start();
        Client::of(&server).await.fill().await;
        Ok(server)
    }

    async fn empty(&self, _: &Context) -> Result<NatsServer> {
        Ok(self.start())
    }

    async fn mutate(&self, _: &Context, server: &NatsServer) -> Result<()> {
        let client = Client::of(server).await;
        client.publish("orders.1", b"another").await;
        client.publish("$KV.users.7", b"another").await;
        client.delete("ORDERS", 100, false).await;
        client.fetch("ORDERS.idlers", 1, &[0]).await;
        Ok(())
    }

    async fn state(&self, _: &Context, server: &NatsServer) -> Result<State> {
        let client = Client::of(server).await;
        let mut state = State::new();
        let names = client.must("STREAM.NAMES", json!({})).await;
        for stream in names["streams"].as_array().into_iter().flatten() {
            let stream = stream.as_str().unwrap();
            let found = client.state(stream).await;
            for part in ["messages", "last_seq", "consumer_count"] {
                state.insert(format!("{stream} {part}"), found[part].to_string());
            }
            for sequence in 1..=found["last_seq"].as_u64().unwrap() {
                if let Some(message) = client.get(stream, sequence).await {
                    state.insert(format!("{stream} {sequence}"), message.to_string());
                }
            }
        }
        Ok(state)
    }

    async fn held(&self, cx: &Context, server: &NatsServer) -> Result<Vec<String>> {
        // Everybody who is still connected, as the server's log tells it.
        let mut held = Vec::new();
        for _ in 0..100 {
            held.clear();
            let log = std::fs::read_to_string(server.path("log")).unwrap();
            if log.contains("panic") {
                held.push(log);
            }
            if held.is_empty() {
                break;
            }
            cx.sleep(Duration::from_millis(20)).await?;
        }
        Ok(held)
    }

    fn source(&self, server: &NatsServer) -> Arc<dyn Source> {
        Arc::new(nats(with_password(server)))
    }

    fn restorer(&self, origin: &NatsServer, target: &NatsServer) -> (Arc<dyn Source>, Target) {
        (Arc::new(nats(with_password(origin))), Target::Url(target.url()))
    }

    fn secrets(&self) -> Vec<String> {
        vec![PASSWORD.to_owned()]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract() {
    let programs = NatsServer::programs();
    for program in programs.first().into_iter().chain(programs.last()) {
        source::all(&Context::system(), &Servers(program.clone())).await;
    }
}
