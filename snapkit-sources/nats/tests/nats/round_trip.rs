//! From each version of the server into each other.

use std::collections::BTreeMap;

use serde_json::Value;
use snapkit_core::source::Target;
use snapkit_testkit::server::NatsServer;

use crate::client::{Client, carry, proven, source};

const STREAMS: [&str; 5] = ["EMPTIED", "EVENTS", "KV_users", "NEW", "ORDERS"];

/// What a program sees of a server: each message by its number, and how far each stream is.
async fn seen(client: &Client) -> BTreeMap<String, Value> {
    let mut seen = BTreeMap::new();
    for stream in STREAMS {
        let state = client.state(stream).await;
        for part in ["messages", "last_seq", "consumer_count"] {
            seen.insert(format!("{stream} {part}"), state[part].clone());
        }
        // A stream that never had a message begins at 0 or at 1, as each version likes.
        let first = state["first_seq"].as_u64().unwrap().max(1);
        seen.insert(format!("{stream} first_seq"), first.into());
        for sequence in 1..=state["last_seq"].as_u64().unwrap() {
            if let Some(message) = client.get(stream, sequence).await {
                seen.insert(format!("{stream} {sequence:04}"), message);
            }
        }
    }
    seen
}

fn assert_same(found: &BTreeMap<String, Value>, expected: &BTreeMap<String, Value>, what: &str) {
    for name in found.keys().chain(expected.keys()) {
        assert_eq!(found.get(name), expected.get(name), "{what}: {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_versions_give_and_take_the_same() {
    let programs = NatsServer::programs();
    for from in &programs {
        let server = NatsServer::start(from, "");
        let client = Client::of(&server).await;
        client.fill().await;
        let expected = seen(&client).await;
        assert_eq!(expected["ORDERS messages"], 294);
        assert_eq!(expected["KV_users messages"], 60);
        for to in &programs {
            let target = NatsServer::start(to, "");
            let (capture, report) =
                carry(&source(&server), Target::Url(target.url()), |_| ()).await.unwrap();
            assert!(capture.problems.is_empty(), "{:?}", capture.problems);
            let what = format!("{} to {}", from.display(), to.display());
            println!("{what}");
            proven(&capture.facts, &report);
            let there = Client::of(&target).await;
            assert_same(&seen(&there).await, &expected, &what);
            // The next message has the next number.
            assert_eq!(there.publish("orders.1", b"next").await, 301, "{what}");
            assert_eq!(there.publish("emptied.1", b"next").await, 10, "{what}");
            // What was acknowledged stays so; what was not comes again, and then the new ones.
            let came = there.fetch("ORDERS.idlers", 400, &[]).await;
            assert_eq!((came.len(), came[0], came[294]), (295, 3, 301), "{what}");
            let came = there.fetch("ORDERS.workers", 400, &[]).await;
            assert_eq!((came.len(), came[0]), (275, 23), "{what}");
        }
        // The server that was captured is as it was.
        assert_same(&seen(&client).await, &expected, "afterwards");
    }
}
