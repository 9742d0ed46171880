//! The suite that every source passes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use snapkit_core::Result;
use snapkit_core::artifact::SourceName;
use snapkit_core::context::Context;
use snapkit_core::source::{Source, Target};
use snapkit_core::tree::escape;
use snapkit_source_redis::connection::Reply;
use snapkit_source_redis::{Redis, RedisConfig};
use snapkit_testkit::source::{self, Harness, State};

use crate::rdb::{fill, read};
use crate::server::Server;

const PASSWORD: &str = "a secret of the server";

struct Servers;

/// The server, with a password that nobody may see.
fn start() -> Server {
    let settings = ["--repl-diskless-sync-delay", "0"];
    let server = Server::start(&settings).unwrap();
    server.client().ask(&[b"CONFIG", b"SET", b"requirepass", PASSWORD.as_bytes()]);
    server
}

pub(crate) fn redis(server: &Server) -> Redis {
    let json = serde_json::json!({ "url": server.url(), "password": PASSWORD });
    let config: RedisConfig = serde_json::from_value(json).unwrap();
    Redis::new(SourceName::new("cache").unwrap(), config).unwrap()
}

/// A client of a server with the password, or without one.
fn client(server: &Server) -> crate::server::Client {
    let mut client = server.client();
    client.ask(&[b"AUTH", PASSWORD.as_bytes()]);
    client
}

/// All keys and functions, by what they mean.
pub(crate) fn state_of(server: &Server) -> State {
    let mut client = client(server);
    while client.ask(&[b"SAVE"])
        == Reply::Refused("ERR Background save already in progress".to_owned())
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    let all = read(&std::fs::read(server.path("dump.rdb")).unwrap()).unwrap();
    let mut state: State = all
        .keys
        .values()
        .map(|(key, _, digest)| {
            let name = format!("{} {}", key.database, escape(&key.name));
            (name, format!("{:?} {digest:?}", key.expires))
        })
        .collect();
    for (n, source) in all.functions.iter().enumerate() {
        state.insert(format!("function {n}"), escape(source));
    }
    state
}

#[async_trait]
impl Harness for Servers {
    type System = Server;

    async fn populated(&self, _: &Context) -> Result<Server> {
        let server = start();
        let mut client = client(&server);
        fill(&mut client);
        Ok(server)
    }

    async fn empty(&self, _: &Context) -> Result<Server> {
        Ok(start())
    }

    async fn mutate(&self, _: &Context, server: &Server) -> Result<()> {
        let mut client = client(server);
        for command in ["SET text changed", "DEL list", "SADD words delta", "XADD stream 11-0 a b"]
        {
            client.say(command);
        }
        Ok(())
    }

    async fn state(&self, _: &Context, server: &Server) -> Result<State> {
        Ok(state_of(server))
    }

    async fn held(&self, cx: &Context, server: &Server) -> Result<Vec<String>> {
        let mut held = Vec::new();
        // What reads ends within a moment.
        for _ in 0..100 {
            held.clear();
            let mut client = client(server);
            let Reply::Text(clients) = client.say("CLIENT LIST") else { panic!() };
            let clients = String::from_utf8(clients).unwrap();
            held.extend(
                clients.lines().filter(|line| !line.contains("cmd=client")).map(str::to_owned),
            );
            if held.is_empty() {
                break;
            }
            cx.sleep(Duration::from_millis(20)).await?;
        }
        Ok(held)
    }

    fn source(&self, server: &Server) -> Arc<dyn Source> {
        Arc::new(redis(server))
    }

    fn restorer(&self, origin: &Server, target: &Server) -> (Arc<dyn Source>, Target) {
        (Arc::new(redis(origin)), Target::Url(target.url()))
    }

    fn secrets(&self) -> Vec<String> {
        vec![PASSWORD.to_owned()]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract() {
    if Server::start(&[]).is_none() {
        return;
    }
    source::all(&Context::system(), &Servers).await;
}
