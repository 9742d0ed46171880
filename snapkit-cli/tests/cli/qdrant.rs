//! A Qdrant in a stack.

use insta::assert_snapshot;
use snapkit_testkit::qdrant::QdrantDouble;

use crate::support::{TestEnv, said};

/// Ask a server for something, as curl would.
fn ask(url: &str, method: &str, path: &str, body: &str) -> String {
    let curl = ["-fsS", "-H", "api-key: hunter2", "-H", "content-type: application/json", "-X"];
    let done = std::process::Command::new("curl")
        .args(curl)
        .args([method, &format!("{url}{path}"), "-d", body])
        .output()
        .unwrap();
    assert!(done.status.success(), "{method} {path}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn points(numbers: std::ops::Range<u32>) -> String {
    let all: Vec<_> = numbers
        .map(|n| format!("{{\"id\":{n},\"vector\":[{n},1],\"payload\":{{\"n\":{n}}}}}"))
        .collect();
    format!("{{\"points\":[{}]}}", all.join(","))
}

#[test]
fn it_is_captured_and_comes_back() {
    let mut env = TestEnv::with_repository();
    // Nobody listens there: a proxy is told no key.
    env.set("http_proxy", "http://127.0.0.1:9");
    let server = QdrantDouble::start().with_keys("hunter2", "reads");
    let other = QdrantDouble::start().with_keys("hunter2", "reads");
    let url = server.url(0).to_owned();
    ask(
        &url,
        "PUT",
        "/collections/docs",
        "{\"vectors\":{\"size\":2,\"distance\":\"Dot\"},\"shard_number\":2}",
    );
    ask(&url, "PUT", "/collections/docs/points?wait=true", &points(0..500));
    ask(
        &url,
        "PUT",
        "/collections/docs/index?wait=true",
        "{\"field_name\":\"n\",\"field_schema\":\"integer\"}",
    );
    let alias =
        "{\"actions\":[{\"create_alias\":{\"collection_name\":\"docs\",\"alias_name\":\"live\"}}]}";
    ask(&url, "POST", "/collections/aliases", alias);
    let mut settings = insta::Settings::clone_current();
    for (pattern, word) in
        [(url.as_str(), "[URL]"), (other.url(0), "[OTHER]"), (r"\d+(\.\d+)? KiB", "[SIZE]")]
    {
        settings.add_filter(pattern, word);
    }
    let _filters = settings.bind_to_scope();
    env.write(
        "work/snapkit.toml",
        format!("name = \"shop\"\n[sources.vectors]\nkind = \"qdrant\"\nurl = \"{url}\"\napi_key = \"hunter2\"\n"),
    );
    let mut all = said(
        &env,
        &["create --name first", "show first", "diff first", "verify --read-data", "restore first"],
    );
    // One changed, two more: only that is stored, and it goes away again.
    ask(&url, "PUT", "/collections/docs/points?wait=true", &points(499..502));
    all += &said(&env, &["diff first", "restore first --overwrite", "diff first", "inspect"]);
    all += &said(&env, &["restore first --target out"]);
    let map = format!("restore first --map vectors={}", other.url(0));
    all += &said(&env, &[&map]);
    assert!(!all.contains("hunter2"), "{all}");
    assert_snapshot!(all, @r#"
    $ snapkit create --name first
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: [SIZE] in [DURATION]
      vectors (qdrant): 3 artifacts, [SIZE]
      read [SIZES]
    --- exit 0
    $ snapkit show first
    --- stdout
    snapshot [SNAPSHOT]
    name     first
    stack    shop@box
    set      full
    started  [TIME]
    finished [TIME]
    verdict  complete
    cut      [DURATION] wide
    size     [SIZE] (56407 bytes)
    new      [SIZE], [SIZE] stored
    program  snapkit 0.1.0

    source vectors (qdrant): complete
      cut [TIME] to [TIME]: each part whole, of different moments
      artifact docs.collection.json: [SIZE], application/json
      artifact docs.shard-0.snapshot: [SIZE], application/vnd.qdrant.snapshot
      artifact docs.shard-1.snapshot: [SIZE], application/vnd.qdrant.snapshot
      read [SIZES]
      fact docs.aliases = live
      fact docs.config = [HEX]
      fact docs.digest = [HEX]
      fact docs.indexes = n "integer"
      fact docs.points = 500
      fact server.version = 1.18.2 (observed)
    --- exit 0
    $ snapkit diff first
    --- stderr
    vectors: 3 artifacts are the same
    nothing differs
    --- exit 0
    $ snapkit verify --read-data
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    no damage: every byte of all snapshots and packs was read and checked
    --- exit 0
    $ snapkit restore first
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    error: the target holds data (target=[URL], collection=docs, source=vectors)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    $ snapkit diff first
    --- stdout
    M vectors/docs.shard-0.snapshot: was [SIZE], is [SIZE], [SIZE] of it new
    M vectors/docs.shard-1.snapshot: was [SIZE], is [SIZE], [SIZE] of it new
      docs.digest was [HEX], is [HEX]
      docs.points was 500, is 502
    --- exit 0
    $ snapkit restore first --overwrite
    --- stdout
    vectors (qdrant): match, 5 facts hold, [SIZE] to its original place
    to bring back what vectors held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    $ snapkit diff first
    --- stderr
    vectors: 3 artifacts are the same
    nothing differs
    --- exit 0
    $ snapkit inspect
    --- stdout
    source vectors (qdrant)
      fact docs.aliases = live (observed)
      fact docs.config = [HEX] (observed)
      fact docs.digest = [HEX] (observed)
      fact docs.indexes = n "integer" (observed)
      fact docs.points = 500 (observed)
      fact server.version = 1.18.2 (observed)
    --- exit 0
    $ snapkit restore first --target out
    --- stdout
    vectors (qdrant): match, 3 facts hold, [SIZE] to [DIR]/work/out/vectors
      note: each file is what `POST /collections/NAME/shards/ID/snapshots/upload` takes, once the collection is there
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    match in [DURATION]
    --- exit 0
    $ snapkit restore first --map vectors=[OTHER]
    --- stdout
    vectors (qdrant): match, 5 facts hold, [SIZE] to [OTHER]
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    match in [DURATION]
    --- exit 0
    "#);
    for server in [&server, &other] {
        assert_eq!(server.unknown(), Vec::<String>::new());
        assert_eq!(server.left_behind(), Vec::<String>::new());
    }
    assert!(
        ask(other.url(0), "POST", "/collections/live/points/count", "{}").contains("\"count\":500")
    );
}
