//! A Redis server, captured and restored from the command line.

use std::process::Command;

use insta::assert_snapshot;
use snapkit_testkit::server::RedisServer;

use crate::support::{TestEnv, said};

const PASSWORD: &str = "a-secret-of-the-server";

fn start(arguments: &[&str]) -> Option<RedisServer> {
    RedisServer::start(&[&["--repl-diskless-sync-delay", "0"], arguments].concat())
}

/// What the server's own program says.
fn ask(server: &RedisServer, password: &str, words: &[&str]) -> String {
    let mut client = Command::new("redis-cli");
    client.env("REDISCLI_AUTH", password).arg("-s").arg(server.socket()).args(words);
    let output = client.output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// A stack of one server, whose password is in a variable.
fn stack(env: &mut TestEnv, server: &RedisServer) {
    env.set("CACHE_PASSWORD", PASSWORD);
    env.write(
        "work/snapkit.toml",
        format!(
            "name = \"shop\"\n[sources.cache]\nkind = \"redis\"\nurl = \"{}\"\npassword = {{ env = \"CACHE_PASSWORD\" }}\n",
            server.url()
        ),
    );
}

fn fill(server: &RedisServer) {
    for words in [
        &["SET", "text", "hello"][..],
        &["HSET", "cart:1", "apples", "3"],
        &["XADD", "events", "1-1", "kind", "begun"],
        &["XGROUP", "CREATE", "events", "workers", "0"],
        &["SET", "session", "x", "PX", "100000000"],
    ] {
        ask(server, PASSWORD, words);
    }
}

fn without_places(text: String, servers: &[&RedisServer]) -> String {
    servers.iter().zip('A'..).fold(text, |text, (server, letter)| {
        let socket = server.socket().display().to_string();
        text.replace(&socket, &format!("/[SOCKET {letter}]"))
    })
}

#[test]
fn a_server_is_captured_and_comes_back() {
    let Some(from) = start(&["--requirepass", PASSWORD]) else { return };
    let to = start(&["--requirepass", PASSWORD]).unwrap();
    let mut env = TestEnv::with_repository();
    stack(&mut env, &from);
    fill(&from);
    let target = format!("restore latest --target {}", to.url());
    let mapped = format!("restore latest --overwrite --map cache={}", to.url());
    let mut all = said(&env, &["create", "ls -R latest:cache", "doctor", "diff latest", &target]);
    assert_eq!(ask(&to, PASSWORD, &["GET", "text"]), "hello");
    ask(&to, PASSWORD, &["SET", "other", "1"]);
    all += &said(
        &env,
        &[
            &target,
            &mapped,
            "restore latest --map other=redis://127.0.0.1:1",
            "restore latest --map cache",
            "restore latest --target out",
            "dump latest:cache",
            "dump latest:cache/keys",
            "verify --read-data",
        ],
    );
    assert_eq!(ask(&to, PASSWORD, &["GET", "other"]), "");
    ask(&from, PASSWORD, &["SET", "text", "changed"]);
    ask(&from, PASSWORD, &["DEL", "cart:1"]);
    ask(&from, PASSWORD, &["HSET", "cart:2", "pears", "1"]);
    all += &said(&env, &["diff latest"]);
    assert_snapshot!(without_places(all, &[&from, &to]), @"
    $ snapkit create
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 5.0 KiB in [DURATION]
      cache (redis): 4 artifacts, 4 entries, 5.0 KiB
      read [SIZES]
    --- exit 0
    $ snapkit ls -R latest:cache
    --- stdout
    keys
    info
    acl
    config
    --- exit 0
    $ snapkit doctor
    --- stdout
    ok       local state: [DIR]/home/.local/state/snapkit, [SIZE] are free
    ok       cache: [DIR]/home/.cache/snapkit, [SIZE] are free
    ok       repository: [DIR]/repo, [SIZE] are free
    ok       repository: [HEX] at [DIR]/repo
    ok       create-only puts: honoured by the store, which `init` has tried
    ok       credential: full: it can add and read
    ok       ledger: 1 snapshot
    ok       shop@box (full): the newest snapshot is [DURATION] old, of [TIME], complete
    ok       stored data: [N] packs listed, and all of them there; `verify` examines what is in them
    ok       source cache: redis, ready to be captured
    ok       last create: [TIME], complete
    ok       last restore: none is remembered here
    ok       last verify: none is remembered here
    --- stderr
    nothing is wrong
    --- exit 0
    $ snapkit diff latest
    --- stderr
    cache: 4 artifacts are the same
    nothing differs
    --- exit 0
    $ snapkit restore latest --target unix:///[SOCKET B]
    --- stdout
    cache (redis): match, 9 facts hold, 5.0 KiB to unix:///[SOCKET B]
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    match in [DURATION]
    --- exit 0
    $ snapkit restore latest --target unix:///[SOCKET B]
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    error: the target holds data (target=/[SOCKET B], source=cache)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    $ snapkit restore latest --overwrite --map cache=unix:///[SOCKET B]
    --- stdout
    cache (redis): match, 9 facts hold, 5.0 KiB to unix:///[SOCKET B]
      note: what the server held before is in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]/cache/dump.rdb
    to bring back what cache held before:
        [STEPS]
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    match in [DURATION]
    --- exit 0
    $ snapkit restore latest --map other=redis://127.0.0.1:1
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    error: the snapshot has no source other, which was to go to another server
    --- exit 1
    $ snapkit restore latest --map cache
    --- stderr
    error: --map is SOURCE=URL, such as cache=redis://127.0.0.1:6379
    --- exit 2
    $ snapkit restore latest --target out
    --- stdout
    cache (redis): match, 9 facts hold, 5.0 KiB to [DIR]/work/out/cache
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    match in [DURATION]
    --- exit 0
    $ snapkit dump latest:cache
    --- stderr
    error: the source cache has several artifacts, one must be named: keys, info, acl, config
    --- exit 2
    $ snapkit dump latest:cache/keys
    --- stderr
    error: this is a sequence of records: use `snapkit restore` (given=latest:cache/keys)
    --- exit 2
    $ snapkit verify --read-data
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    no damage: every byte of all snapshots and packs was read and checked
    --- exit 0
    $ snapkit diff latest
    --- stdout
    - cache/00000:cart:1
    + cache/00000:cart:2
    M cache/00000:text
    cache/keys: 1 new, 1 gone, 1 changed
    --- exit 0
    ");
    // Nobody finds the password anywhere.
    let found = Command::new("grep").args(["-r", PASSWORD]).arg(env.path("")).output().unwrap();
    assert!(found.stdout.is_empty(), "{found:?}");
}

/// A server keeps large sets and hashes in an order of its own, which is not a change.
#[test]
fn another_order_of_elements_is_no_change() {
    let Some(from) = start(&["--requirepass", PASSWORD]) else { return };
    let to = start(&["--requirepass", PASSWORD]).unwrap();
    let mut env = TestEnv::with_repository();
    stack(&mut env, &from);
    let members: Vec<_> = (0..2000).map(|n| format!("member {n}")).collect();
    let members: Vec<_> = members.iter().map(String::as_str).collect();
    ask(&from, PASSWORD, &[&["SADD", "set"], &members[..]].concat());
    ask(&from, PASSWORD, &[&["HSET", "hash"], &members[..]].concat());
    let create =
        |env: &TestEnv| String::from_utf8(env.run(["create"]).stdout).unwrap().trim().to_owned();
    let first = create(&env);
    assert!(env.run(["restore", "latest", "-q", "--target", &to.url()]).is_success());
    let elements = |server| ask(server, PASSWORD, &["SMEMBERS", "set"]);
    assert_ne!(elements(&from), elements(&to), "nothing is shown");
    stack(&mut env, &to);
    let before = create(&env);
    assert_snapshot!(env.run(["diff", &first, &before]), @"
    --- stdout
    M cache/config: was 4.4 KiB, is 4.4 KiB, 4.4 KiB of it new
    --- exit 0
    ");
    ask(&to, PASSWORD, &["SREM", "set", "member 7"]);
    ask(&to, PASSWORD, &["HSET", "hash", "member 8", "another"]);
    let after = create(&env);
    assert_snapshot!(env.run(["diff", &before, &after]), @"
    --- stdout
    M cache/00000:hash
    M cache/00000:set
    cache/keys: 0 new, 0 gone, 2 changed
    --- exit 0
    ");
}

/// A password goes to the server in the stack file and to one that is named, and not to whatever a snapshot speaks of.
#[test]
fn a_password_goes_to_no_server_of_a_snapshot() {
    use std::io::Read as _;
    let Some(server) = start(&["--requirepass", PASSWORD]) else { return };
    let mut env = TestEnv::with_repository();
    env.set("CACHE_PASSWORD", PASSWORD);
    // A snapshot whose server turns out to be a listener that wants to hear it.
    let stack_of = |url: &str| {
        format!(
            "name = \"shop\"\n[sources.cache]\nkind = \"redis\"\nurl = \"{url}\"\npassword = {{ env = \"CACHE_PASSWORD\" }}\n"
        )
    };
    let thief_at = env.path("thief");
    std::os::unix::fs::symlink(server.socket(), &thief_at).unwrap();
    env.write("work/snapkit.toml", stack_of(&format!("unix://{}", thief_at.display())));
    assert!(env.run(["create", "-q"]).is_success());
    std::fs::remove_file(&thief_at).unwrap();
    let thief = std::os::unix::net::UnixListener::bind(&thief_at).unwrap();
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = thief.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    });
    env.write("work/snapkit.toml", stack_of(&server.url()));
    let told = said(&env, &["restore latest --overwrite", "diff latest"]);
    assert_snapshot!(without_places(told, &[&server]), @"
    $ snapkit restore latest --overwrite
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    error: the password in the stack file is for another server than the snapshot is of: name one with --target URL or --map SOURCE=URL (snapshot_of=unix://[DIR]/thief, stack_file=unix:///[SOCKET A], source=cache)
    --- exit 2
    $ snapkit diff latest
    --- stderr
    error: the password in the stack file is for another server than the snapshot is of: name one with --target URL or --map SOURCE=URL (snapshot_of=unix://[DIR]/thief, stack_file=unix:///[SOCKET A], source=cache)
    --- exit 2
    ");
    // Nobody has come.
    drop(std::os::unix::net::UnixStream::connect(&thief_at).unwrap());
    assert!(heard.join().unwrap().is_empty());
    // Whoever names a server means it.
    let named = format!("restore latest -q --overwrite --map cache={}", server.url());
    assert!(env.run(named.split(' ')).is_success());
}

#[test]
fn what_a_server_refuses_is_told() {
    let Some(server) = start(&["--requirepass", PASSWORD]) else { return };
    let mut env = TestEnv::with_repository();
    stack(&mut env, &server);
    env.set("CACHE_PASSWORD", "wrong");
    let mut all = said(&env, &["create", "doctor"]);
    env.set("CACHE_PASSWORD", PASSWORD);
    ask(&server, PASSWORD, &["ACL", "SETUSER", "few", "on", ">few", "+ping"]);
    ask(
        &server,
        PASSWORD,
        &["ACL", "SETUSER", "least", "on", ">least", "+ping", "+psync", "+replconf"],
    );
    for user in ["few", "least"] {
        let text = format!(
            "[sources.cache]\nkind = \"redis\"\nurl = \"{}\"\nuser = \"{user}\"\npassword = \"{user}\"\n",
            server.url()
        );
        env.write("work/snapkit.toml", text);
        all += &said(&env, &["create"]);
    }
    for (url, more) in [
        ("redis://127.0.0.1:1", ""),
        ("redis://nowhere.invalid", ""),
        ("unix:///nowhere", ""),
        ("rediss://127.0.0.1:1", "ca = \"none\"\n"),
        ("http://127.0.0.1", ""),
        ("redis://127.0.0.1", "pasword = \"x\"\n"),
    ] {
        let text = format!("[sources.cache]\nkind = \"redis\"\nurl = \"{url}\"\n{more}");
        env.write("work/snapkit.toml", text);
        all += &said(&env, &["create"]);
    }
    // A restore without the stack file has no password.
    stack(&mut env, &server);
    fill(&server);
    assert!(env.run(["create", "-q"]).is_success());
    std::fs::remove_file(env.path("work/snapkit.toml")).unwrap();
    all += &said(&env, &["restore latest --stack-name shop --overwrite"]);
    assert_snapshot!(without_places(all, &[&server]), @"
    $ snapkit create
    --- stderr
    error: the user or the password is wrong (server=/[SOCKET A], source=cache)
    --- exit 1
    $ snapkit doctor
    --- stdout
    ok       local state: [DIR]/home/.local/state/snapkit, [SIZE] are free
    ok       cache: [DIR]/home/.cache/snapkit, [SIZE] are free
    ok       repository: [DIR]/repo, [SIZE] are free
    ok       repository: [HEX] at [DIR]/repo
    ok       create-only puts: honoured by the store, which `init` has tried
    ok       credential: full: it can add and read
    ok       ledger: 0 snapshots
    warning  shop@box (full): there is no snapshot yet
    ok       stored data: 0 packs listed, and all of them there; `verify` examines what is in them
    problem  source cache: the user or the password is wrong (server=/[SOCKET A])
    warning  last create: [TIME], failed: the user or the password is wrong (server=/[SOCKET A], source=cache)
    ok       last restore: none is remembered here
    ok       last verify: none is remembered here
    --- stderr
    1 problem found
    --- exit 4
    $ snapkit create
    --- stderr
    error: this user may not use REPLCONF: `ACL SETUSER NAME +replconf` allows it (server=/[SOCKET A], source=cache)
      caused by: NOPERM this user has no permissions to run the 'replconf' command
    --- exit 1
    $ snapkit create
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 0 B in [DURATION]
      cache (redis): 1 artifact, 0 B
      read [SIZES]
    --- exit 0
    $ snapkit create
    --- stderr
    error: the server cannot be reached (server=127.0.0.1:1, source=cache)
      caused by: Connection refused (os error 111)
    --- exit 75
    $ snapkit create
    --- stderr
    error: the server cannot be reached (server=nowhere.invalid:6379, source=cache)
      caused by: failed to lookup address information: Name or service not known
    --- exit 75
    $ snapkit create
    --- stderr
    error: the server cannot be reached (server=/nowhere, source=cache)
      caused by: No such file or directory (os error 2)
    --- exit 75
    $ snapkit create
    --- stderr
    error: a file of certificates or keys cannot be used: it must be PEM (path=[DIR]/work/none, source=cache)
      caused by: I/O error: No such file or directory (os error 2)
    --- exit 2
    $ snapkit create
    --- stderr
    error: `url`: write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH (source=cache, file=[DIR]/work/snapkit.toml:3)
    --- exit 2
    $ snapkit create
    --- stderr
    error: unknown key `pasword`; did you mean `password`? (source=cache, file=[DIR]/work/snapkit.toml:4)
    --- exit 2
    $ snapkit restore latest --stack-name shop --overwrite
    --- stderr
    snapshot [SNAPSHOT] of shop@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    error: the server asks for a password (server=/[SOCKET A], source=cache)
      caused by: NOAUTH Authentication required.
    hint: snapshots hold no passwords: give it as `password` of the source of this name in the stack file
    --- exit 1
    ");
}
