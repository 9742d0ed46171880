//! The double answers as the recordings of a real server do: they are asked again, one request after another.
//!
//! What differs from run to run is left out: times, numbers of peers and operations, names and checksums of snapshots, how
//! points are spread over shards, and what a server does to vectors whose distance is the cosine.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use snapkit_testkit::qdrant::QdrantDouble;

const ALONE: &str = include_str!("../data/qdrant-1.18.2.json");
const CLUSTER: &str = include_str!("../data/qdrant-1.18.2-cluster.json");

/// Requests that a source does not make, so that the double need not know them.
const BESIDE: [&str; 7] = [
    ".checksum",
    "/cluster",
    "/snapshots",
    "/telemetry",
    "/partial/create",
    "/snapshots/recover",
    "/collections/ck/shards",
];

/// Fields that are there, and differ.
const VOLATILE: [&str; 14] = [
    "time",
    "version",
    "commit",
    "operation_id",
    "peer_id",
    "creation_time",
    "size",
    "checksum",
    "name",
    "points_count",
    "indexed_vectors_count",
    "segments_count",
    "vector",
    "uuid",
];

fn is_beside(method: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap_or(path);
    let is_of_collection = path.starts_with("/collections/");
    BESIDE.iter().any(|end| match *end {
        "/cluster" | "/snapshots" | "/telemetry" => !is_of_collection && path == *end,
        "/collections/ck/shards" => method == "GET" && path == *end,
        end => path.ends_with(end),
    })
}

/// Where two answers differ.
fn differences(at: &str, recorded: &Value, answered: &Value, found: &mut Vec<String>) {
    match (recorded, answered) {
        (Value::Object(recorded), Value::Object(answered)) => {
            for key in recorded.keys().chain(answered.keys()).collect::<BTreeSet<_>>() {
                let place = format!("{at}.{key}");
                match (recorded.get(key), answered.get(key)) {
                    (Some(_), Some(_)) if VOLATILE.contains(&key.as_str()) => {}
                    (Some(a), Some(b)) => differences(&place, a, b, found),
                    (Some(_), None) => found.push(format!("{place} is missing")),
                    (None, _) => found.push(format!("{place} is made up")),
                }
            }
        }
        (Value::Array(recorded), Value::Array(answered)) if recorded.len() == answered.len() => {
            for (n, (a, b)) in recorded.iter().zip(answered).enumerate() {
                differences(&format!("{at}[{n}]"), a, b, found);
            }
        }
        // What is behind these words is a path, a sum or what a library says.
        (Value::String(recorded), Value::String(answered)) => {
            let told = |text: &str| {
                ["failed to unpack", "Malformed tar", "Checksum mismatch"]
                    .iter()
                    .find_map(|end| Some(text[..text.find(end)?].to_owned() + end))
                    .unwrap_or_else(|| text.to_owned())
            };
            if told(recorded) != told(answered) {
                found.push(format!("{at}: {recorded:?} became {answered:?}"));
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{at}: {a} became {b}")),
    }
}

/// What has other names now.
#[derive(Default)]
struct Known {
    words: Vec<(String, String)>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Known {
    fn now(&self, text: &str) -> String {
        self.words.iter().fold(text.to_owned(), |text, (old, new)| text.replace(old, new))
    }

    /// Remember what a snapshot is called now.
    fn learn(&mut self, recorded: &Value, answered: &Value) {
        for field in ["name", "checksum"] {
            if let (Some(old), Some(new)) = (recorded[field].as_str(), answered[field].as_str()) {
                self.words.push((old.to_owned(), new.to_owned()));
            }
        }
    }

    /// What the upload of these words consists of.
    fn upload(&self, note: &str) -> Vec<u8> {
        let of = |part: &str| {
            let found = self.files.iter().find(|(path, _)| path.contains(part));
            found.map(|(_, bytes)| bytes.clone()).unwrap()
        };
        let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
        match note {
            "truncated upload" => half(of("/docs/snapshots/")),
            "junk upload" => b"junk".to_vec(),
            "half of it uploaded" => half(of("/rep/shards/0/snapshot")),
            "streamed shard snapshot uploaded back into the shard" => of("/rep/shards/0/snapshot"),
            "custom sharding restored into a collection that does not exist" => {
                of("/ck/snapshots/")
            }
            _ => of("/docs/snapshots/"),
        }
    }
}

async fn ask_again(recordings: &str, double: &QdrantDouble) -> Vec<String> {
    let rows: Vec<Value> = serde_json::from_str(recordings).unwrap();
    let (client, mut known, mut found) = (reqwest::Client::new(), Known::default(), Vec::new());
    for (n, row) in rows.iter().enumerate() {
        let (request, response) = (&row["request"], &row["response"]);
        let (method, path) =
            (request["method"].as_str().unwrap(), request["path"].as_str().unwrap());
        if is_beside(method, path) {
            continue;
        }
        let node = usize::from(row["node"] == "b");
        let path = known.now(path);
        let mut asked =
            client.request(method.parse().unwrap(), format!("{}{path}", double.url(node)));
        if let Some(key) = row["api_key"].as_str() {
            asked = asked.header("api-key", key);
        }
        if let Some(json) = request.get("json") {
            asked = asked.header("content-type", "application/json").body(json.to_string());
        } else if request.get("raw_bytes").is_some() {
            let content = known.upload(row["note"].as_str().unwrap());
            let head = b"--x\r\nContent-Disposition: form-data; name=\"snapshot\"\r\n\r\n";
            asked = asked
                .header("content-type", "multipart/form-data; boundary=x")
                .body([&head[..], &content, b"\r\n--x--\r\n"].concat());
        }
        let answer = asked.send().await.unwrap();
        let at = format!("{n} {method} {path}");
        if response["status"] != answer.status().as_u16() {
            found.push(format!("{at}: {} became {}", response["status"], answer.status()));
        }
        let bytes = answer.bytes().await.unwrap().to_vec();
        let recorded = &response["body"];
        if let Some(text) = recorded["text"].as_str() {
            // It says one byte more than there is to read.
            assert_eq!(String::from_utf8_lossy(&bytes).trim_end(), text, "{at}");
        } else if recorded.get("binary_bytes").is_some() {
            known.files.insert(path, bytes);
        } else {
            let answered = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            known.learn(&recorded["result"], &answered["result"]);
            if path.ends_with("/partial/manifest") {
                assert!(answered["result"].is_object(), "{at}: {answered}");
            } else {
                let recorded = serde_json::from_str(&known.now(&recorded.to_string())).unwrap();
                differences(&at, &recorded, &answered, &mut found);
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_as_a_server_did() {
    assert_eq!(ask_again(ALONE, &QdrantDouble::start()).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_as_a_cluster_did() {
    let double = QdrantDouble::cluster(2).with_keys("full", "read-only");
    assert_eq!(ask_again(CLUSTER, &double).await, Vec::<String>::new());
}
