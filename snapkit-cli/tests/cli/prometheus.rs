//! A Prometheus server in a stack.

use std::fs;

use insta::assert_snapshot;
use snapkit_testkit::server::PrometheusServer;

use crate::support::{TestEnv, said};

#[test]
fn it_is_captured_and_comes_back() {
    let mut env = TestEnv::with_repository();
    // Nobody listens there: a proxy is told no password.
    env.set("http_proxy", "http://127.0.0.1:9");
    let samples: String = (0..2000)
        .map(|n| format!("orders{{shop=\"a\"}} {n} {}\n", 1_795_600_000 + n * 15))
        .collect();
    env.write("samples", format!("{samples}# EOF\n"));
    let mut tool = std::process::Command::new("promtool");
    tool.args(["tsdb", "create-blocks-from", "openmetrics"]);
    let Ok(made) = tool.arg(env.path("samples")).arg(env.path("blocks")).output() else {
        assert!(std::env::var_os("CI").is_none(), "promtool must not be missing in CI");
        return;
    };
    assert!(made.status.success());
    let admin = ["--web.enable-admin-api"];
    let server = PrometheusServer::start(Some(&env.path("blocks")), &admin).unwrap();
    let mut settings = insta::Settings::clone_current();
    for (pattern, word) in [
        (server.url(), "[URL]"),
        (server.data().display().to_string(), "[DATA]"),
        (r"\b0[0-9A-HJKMNP-TV-Z]{25}\b".to_owned(), "[ULID]"),
        (r"\d+(\.\d+)? KiB".to_owned(), "[SIZE]"),
    ] {
        settings.add_filter(&pattern, word);
    }
    let _filters = settings.bind_to_scope();
    env.write(
        "work/snapkit.toml",
        format!(
            "name = \"shop\"\n[sources.metrics]\nkind = \"prometheus\"\nurl = \"{}\"\ndata_dir = \"{}\"\ntoken = \"hunter2\"\nqueries = {{ orders = \"count_over_time(orders[9000d])\" }}\n",
            server.url(),
            server.data().display()
        ),
    );
    let mut all = said(&env, &["create --name first"]);
    // Of what did not change nothing is read.
    let again: serde_json::Value = env.run(["create", "--json"]).json();
    assert_eq!(again["snapshot"]["stats"]["bytes_read"], 0, "{again}");
    // And it is proven all the same.
    assert_eq!(again["snapshot"]["sources"][0]["facts"]["digest"]["standing"], "pinned", "{again}");
    all += &said(
        &env,
        &["show first", "diff first", "verify --read-data", "doctor -q", "restore first"],
    );
    all += &said(&env, &["restore first --target out"]);
    assert!(!all.contains("hunter2"), "{all}");
    assert_snapshot!(all, @r#"
    $ snapkit create --name first
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: [SIZE] in [DURATION]
      metrics (prometheus): 24 artifacts, [SIZE]
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
    size     [SIZE] (6547 bytes)
    new      [SIZE], [SIZE] stored
    program  snapkit 0.1.0

    source metrics (prometheus): complete
      cut [TIME] to [TIME]: one moment
      position until [TIME]
      artifact [ULID].meta.json: 267 B, application/vnd.prometheus.block
      artifact [ULID].index: 287 B, application/vnd.prometheus.block
      artifact [ULID].tombstones: 9 B, application/vnd.prometheus.block
      artifact [ULID].chunks.000001: 105 B, application/vnd.prometheus.block
      artifact [ULID].meta.json: 268 B, application/vnd.prometheus.block
      artifact [ULID].index: 308 B, application/vnd.prometheus.block
      artifact [ULID].tombstones: 9 B, application/vnd.prometheus.block
      artifact [ULID].chunks.000001: 695 B, application/vnd.prometheus.block
      artifact [ULID].meta.json: 268 B, application/vnd.prometheus.block
      artifact [ULID].index: 308 B, application/vnd.prometheus.block
      artifact [ULID].tombstones: 9 B, application/vnd.prometheus.block
      artifact [ULID].chunks.000001: 717 B, application/vnd.prometheus.block
      artifact [ULID].meta.json: 268 B, application/vnd.prometheus.block
      artifact [ULID].index: 308 B, application/vnd.prometheus.block
      artifact [ULID].tombstones: 9 B, application/vnd.prometheus.block
      artifact [ULID].chunks.000001: 742 B, application/vnd.prometheus.block
      artifact [ULID].meta.json: 268 B, application/vnd.prometheus.block
      artifact [ULID].index: 308 B, application/vnd.prometheus.block
      artifact [ULID].tombstones: 9 B, application/vnd.prometheus.block
      artifact [ULID].chunks.000001: 758 B, application/vnd.prometheus.block
      artifact [ULID].meta.json: 267 B, application/vnd.prometheus.block
      artifact [ULID].index: 287 B, application/vnd.prometheus.block
      artifact [ULID].tombstones: 9 B, application/vnd.prometheus.block
      artifact [ULID].chunks.000001: 64 B, application/vnd.prometheus.block
      read [SIZES]
      fact answer.orders = {"shop":"a"} "2000"
      fact block.[ULID] = [HEX]
      fact block.[ULID] = [HEX]
      fact block.[ULID] = [HEX]
      fact block.[ULID] = [HEX]
      fact block.[ULID] = [HEX]
      fact block.[ULID] = [HEX]
      fact blocks = 6
      fact chunks = 18
      fact digest = [HEX]
      fact from = [TIME]
      fact samples = 2000
      fact series = 6
      fact until = [TIME]
    --- exit 0
    $ snapkit diff first
    --- stderr
    metrics: 24 artifacts are the same
    nothing differs
    --- exit 0
    $ snapkit verify --read-data
    --- stderr
    examined 2 snapshots, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    no damage: every byte of all snapshots and packs was read and checked
    --- exit 0
    $ snapkit doctor -q
    --- exit 0
    $ snapkit restore first
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    error: the server has blocks already, and runs: they cannot be replaced under it (data_dir=/tmp/[RANDOM]/data, source=metrics)
    hint: stop the server and restore with --overwrite (the old state is kept), or restore elsewhere with --target
    --- exit 11
    $ snapkit restore first --target out
    --- stdout
    metrics (prometheus): match, 13 facts hold, [SIZE] to [DIR]/work/out/metrics
      note: a server deletes blocks that end longer ago, seen from its newest block, than its --storage.tsdb.retention.time (15d unless given): give it a longer one before it starts if what was restored is older
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    match in [DURATION]
    --- exit 0
    "#);
    let listed = std::process::Command::new("promtool")
        .args(["tsdb", "list"])
        .arg(env.path("work/out/metrics"))
        .output()
        .unwrap();
    let blocks = fs::read_dir(env.path("blocks")).unwrap().count();
    assert_eq!(String::from_utf8(listed.stdout).unwrap().lines().count(), blocks + 1);
    assert!(fs::read_dir(server.data().join("snapshots")).unwrap().next().is_none());
}
