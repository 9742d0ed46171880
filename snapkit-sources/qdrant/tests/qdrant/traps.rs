//! Two ways to have a backup of a Qdrant that is none, each shown with the naive way first.

use serde_json::{Value, json};
use snapkit_core::source::Target;
use snapkit_source_qdrant::Method;
use snapkit_testkit::qdrant::{QdrantDouble, QdrantTrouble};

use crate::stage::{Server, carry, proven, qdrant, said};

/// A shard that is streamed by a server that fails ends like a whole one: success, and no length to compare with. So does a
/// snapshot that is asked for without waiting for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_early_is_no_snapshot() {
    let server = Server::of(QdrantDouble::start());
    server.fill("docs", 2000).await;
    let double = server.double.as_ref().unwrap();
    // The naive way: download, look at the status, done.
    let whole =
        reqwest::get(format!("{}/collections/docs/shards/0/snapshot", server.url)).await.unwrap();
    let whole = whole.bytes().await.unwrap().len();
    let streamed = server.with(|config| config.method = Method::Streamed);
    for len in (0..whole).step_by(64 << 10).chain([whole - 512]) {
        double.trouble(move |_, path| {
            path.ends_with("/snapshot").then_some(QdrantTrouble::EndEarly(len))
        });
        let naive = reqwest::get(format!("{}/collections/docs/shards/0/snapshot", server.url))
            .await
            .unwrap();
        assert_eq!(naive.status().as_u16(), 200);
        assert_eq!(naive.bytes().await.unwrap().len(), len, "and nobody notices");
        let source = qdrant(streamed.clone());
        let e = carry(&source, &source, Target::Original, |_| ()).await.map(drop).unwrap_err();
        let said = said(&e, &[&server]);
        assert!(said.contains("is not whole"), "{len}: {said}");
    }
    double.heal();
    let (status, answer) =
        server.ask("POST", "/collections/docs/snapshots?wait=false", Value::Null).await;
    assert_eq!(
        (status, answer["status"].as_str()),
        (202, Some("accepted")),
        "whatever comes of it"
    );
    // Stored ones have a length and a checksum.
    for (trouble, why) in [
        (QdrantTrouble::EndEarly(1000), "bytes=1000, expected="),
        (QdrantTrouble::Cut(1000), "the server does not answer"),
        (QdrantTrouble::Flip(1100), "another snapshot than it had made"),
    ] {
        double.trouble(move |method, path| {
            let is_download = method == "GET" && path.contains("/snapshots/");
            is_download.then(|| trouble.clone())
        });
        let source = qdrant(server.config());
        let e = carry(&source, &source, Target::Original, |_| ()).await.map(drop).unwrap_err();
        assert!(said(&e, &[&server]).contains(why), "{why}: {e}");
    }
}

/// Where sharding is up to the user, a snapshot that is put into a collection that is not there succeeds with nothing.
#[tokio::test(flavor = "multi_thread")]
async fn success_is_not_all_of_it() {
    let (from, to) = (Server::of(QdrantDouble::start()), Server::of(QdrantDouble::start()));
    let settings =
        json!({ "vectors": { "size": 4, "distance": "Dot" }, "sharding_method": "custom" });
    from.must("PUT", "/collections/ck", settings).await;
    for (key, first) in [("eu", 0), ("us", 1000)] {
        from.must("PUT", "/collections/ck/shards", json!({ "shard_key": key })).await;
        let points: Vec<_> = (first..first + 50)
            .map(|n| json!({ "id": n, "vector": [n, 0, 0, 1], "payload": {} }))
            .collect();
        let points = json!({ "points": points, "shard_key": key });
        from.must("PUT", "/collections/ck/points?wait=true", points).await;
    }
    from.must(
        "PUT",
        "/collections/ck/index?wait=true",
        json!({ "field_name": "r", "field_schema": "keyword" }),
    )
    .await;
    let alias = json!({ "actions": [{ "create_alias": { "collection_name": "ck", "alias_name": "live" } }] });
    from.must("POST", "/collections/aliases", alias).await;
    // The naive way: a snapshot of the collection, uploaded elsewhere.
    let made = from.must("POST", "/collections/ck/snapshots?wait=true", Value::Null).await;
    let file = made["name"].as_str().unwrap();
    let bytes =
        reqwest::get(format!("{}/collections/ck/snapshots/{file}", from.url)).await.unwrap();
    let bytes = bytes.bytes().await.unwrap();
    let body = [
        b"--x\r\nContent-Disposition: form-data; name=\"snapshot\"\r\n\r\n",
        &bytes[..],
        b"\r\n--x--\r\n",
    ]
    .concat();
    let answer = reqwest::Client::new()
        .post(format!("{}/collections/ck/snapshots/upload?priority=snapshot", to.url))
        .header("content-type", "multipart/form-data; boundary=x")
        .body(body)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status().as_u16(), 200, "it succeeds");
    assert_eq!(to.count("ck").await, 0, "and there is nothing");
    assert_eq!(to.must("GET", "/aliases", Value::Null).await["aliases"], json!([]));
    to.must("DELETE", "/collections/ck", Value::Null).await;
    // Shard by shard it comes back, with its index and its alias.
    let source = qdrant(from.config());
    let (capture, report) =
        carry(&source, &source, Target::Url(to.url.clone()), |_| ()).await.unwrap();
    proven(&capture, &report);
    assert_eq!(to.count("ck").await, 100);
    assert_eq!(to.points("ck").await, from.points("ck").await);
    assert_eq!(to.count("live").await, 100, "an alias leads there");
    // And a server that says yes and does nothing is not believed.
    to.must("DELETE", "/collections/ck", Value::Null).await;
    to.double
        .as_ref()
        .unwrap()
        .trouble(|_, path| path.ends_with("/upload").then_some(QdrantTrouble::Pretend));
    let e =
        carry(&source, &source, Target::Url(to.url.clone()), |_| ()).await.map(drop).unwrap_err();
    assert!(
        said(&e, &[&to])
            .starts_with("the server has taken everything, and does not have all points"),
        "{e}"
    );
    assert_eq!(
        to.must("GET", "/collections", Value::Null).await["collections"],
        json!([]),
        "and what was made is gone"
    );
}
