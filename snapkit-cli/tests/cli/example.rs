//! The example of a whole stack works.

use std::path::Path;
use std::process::Command;

/// The programs that it needs.
const NEEDED: [&str; 5] = ["redis-server", "redis-cli", "nats-server", "prometheus", "sqlite3"];

#[test]
fn a_whole_stack_is_lost_and_comes_back() {
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap());
    let is_there = |name: &&str| std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    if let Some(missing) = NEEDED.iter().find(|name| !is_there(name)) {
        assert!(std::env::var_os("CI").is_none(), "{missing} must not be missing in CI");
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/stack/run");
    let mut run = Command::new(script);
    run.env_clear().env("PATH", path).env("SNAPKIT", env!("CARGO_BIN_EXE_snapkit"));
    let output = run.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let told = format!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    for source in ["app", "bus", "cache", "metrics", "uploads"] {
        let line = text.lines().find(|line| line.starts_with(&format!("{source} (")));
        assert!(line.is_some_and(|line| line.contains("): match, ")), "{source}: {told}");
    }
    for line in
        ["keys:   10000", "rows:   10000|350035000", "files:  a file that somebody has sent"]
    {
        assert!(text.contains(line), "{line}: {told}");
    }
}
