//! What a server held is there after a restore that fails, or is never touched.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use insta::assert_snapshot;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::source::{RestoreReport, RestoreRequest, Target};
use snapkit_source_redis::connection::Reply;

use crate::conformance::state_of;
use crate::restore::{AT_ONCE, carry, proven, source, without_places};
use crate::server::{Client, Server};

fn library(client: &mut Client, name: &str) {
    let source =
        format!("#!lua name={name}\nredis.register_function('{name}', function() return 1 end)");
    assert!(matches!(client.ask(&[b"FUNCTION", b"LOAD", source.as_bytes()]), Reply::Text(_)));
}

fn start(more: &[&str]) -> Server {
    Server::start(&[&AT_ONCE, more].concat()).unwrap()
}

/// Restore over what is there.
async fn over(from: &Server, to: &Server, recovery: &Path) -> Result<RestoreReport> {
    let ask = |request: &mut RestoreRequest| {
        (request.overwrite, request.recovery) = (true, Some(recovery.to_owned()));
    };
    let (facts, report) = carry(&source(from), Target::Url(to.url()), ask).await?;
    proven(&facts, &report);
    Ok(report)
}

/// Rights that are missing, and what a server does not know or cannot hold, are found before anything is changed.
#[tokio::test(flavor = "multi_thread")]
async fn what_would_fail_half_way_is_refused() {
    let Some(from) = Server::start(&AT_ONCE) else { return };
    let mut fifth = from.client();
    fifth.say("SELECT 5");
    fifth.say("SET new 5");
    let recovery = tempfile::tempdir().unwrap();
    let mut all = String::new();
    for (case, settings, acl) in [
        ("RESTORE", &[][..], "-restore"),
        ("FLUSHALL", &[], "-flushall"),
        ("FUNCTION LOAD", &[], "-function|load"),
        ("FUNCTION FLUSH", &[], "-function|flush"),
        ("SELECT", &[], "-select"),
        ("keys", &[], "resetkeys ~k*"),
        ("databases", &["--databases", "2"], ""),
        ("long values", &["--proto-max-bulk-len", "1mb"], ""),
    ] {
        let to = start(settings);
        let mut client = to.client();
        library(&mut client, "old");
        client.say("SET kept 1");
        client.say("CONFIG SET rdbcompression no");
        client.say("CONFIG SET list-max-listpack-size 1000000");
        for _ in 0..3 {
            client.ask(&[b"RPUSH", b"long", &vec![b'x'; 600_000]]);
        }
        let before = state_of(&to);
        if !acl.is_empty() {
            client.say(&format!("ACL SETUSER default {acl}"));
        }
        let e = over(&from, &to, recovery.path()).await.map(drop).unwrap_err();
        client.say("ACL SETUSER default +@all ~*");
        assert_eq!(state_of(&to), before, "{case}");
        let text = e.chain().replace(recovery.path().to_str().unwrap(), "RECOVERY");
        all += &format!(
            "{case}: {} ({})\n",
            without_places(&Error::new(e.reason(), text), &to),
            e.reason()
        );
    }
    assert_snapshot!(all, @"
    RESTORE: this user may not use RESTORE: `ACL SETUSER NAME +restore` allows it (server=DIR/socket): NOPERM this user has no permissions to run the 'restore' command (permission-denied)
    FLUSHALL: this user may not use FLUSHALL: `ACL SETUSER NAME +flushall` allows it (server=DIR/socket): NOPERM this user has no permissions to run the 'flushall' command (permission-denied)
    FUNCTION LOAD: this user may not use FUNCTION|LOAD: `ACL SETUSER NAME +function|load` allows it (server=DIR/socket): NOPERM this user has no permissions to run the 'function|load' command (permission-denied)
    FUNCTION FLUSH: this user may not use FUNCTION: `ACL SETUSER NAME +function` allows it (server=DIR/socket): NOPERM this user has no permissions to run the 'function|flush' command (permission-denied)
    SELECT: this user may not use SELECT: `ACL SETUSER NAME +select` allows it (server=DIR/socket): NOPERM this user has no permissions to run the 'select' command (permission-denied)
    keys: this user may not use all keys: `ACL SETUSER NAME ~*` allows it (server=DIR/socket): NOPERM this user has no permissions to access one of the keys used as arguments (permission-denied)
    databases: the server has too few databases: raise `databases` in its configuration (server=DIR/socket): ERR DB index is out of range (invalid-config)
    long values: what the server holds could not be brought back if the restore failed, so it was left as it is (kept=RECOVERY/dump.rdb): a value has 1800075 bytes, and the server takes 1048576 at once (`proto-max-bulk-len`); restore to a directory, or raise that (key=long) (limit-exceeded)
    ");
}

/// A server that hides functions, or is older than they are, has none that could be in the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_functions_is_replaced() {
    let Some(from) = Server::start(&AT_ONCE) else { return };
    from.client().say("SET new 1");
    let to = start(&["--rename-command", "FUNCTION", ""]);
    to.client().say("SET old 1");
    let recovery = tempfile::tempdir().unwrap();
    over(&from, &to, recovery.path()).await.unwrap();
    assert_eq!(state_of(&to), state_of(&from));
    // Again: what was kept before stays.
    let first = std::fs::read(recovery.path().join("dump.rdb")).unwrap();
    over(&from, &to, recovery.path()).await.unwrap();
    assert_eq!(std::fs::read(recovery.path().join("dump.rdb")).unwrap(), first);
    assert!(recovery.path().join("dump-2.rdb").exists());
}

/// A server that hangs when it has been told to forget everything gets it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_half_way_gets_all_back() {
    let Some(from) = Server::start(&AT_ONCE) else { return };
    from.client().say("SET new 1");
    let to = start(&["--enable-debug-command", "yes"]);
    to.client().say("DEBUG POPULATE 1000000 old 8");
    library(&mut to.client(), "old");
    let before = to.client().say("DEBUG DIGEST");
    let recovery = tempfile::tempdir().unwrap();
    let (kept, mut hanging) = (recovery.path().join("dump.rdb"), to.client());
    let hang = std::thread::spawn(move || {
        while !kept.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        hanging.say("DEBUG SLEEP 5");
    });
    let mut config = snapkit_source_redis::RedisConfig::new(from.url());
    config.timeout = Duration::from_secs(1);
    let impatient = snapkit_source_redis::Redis::new(
        snapkit_core::artifact::SourceName::new("cache").unwrap(),
        config,
    )
    .unwrap();
    let ask = |request: &mut RestoreRequest| {
        (request.overwrite, request.recovery) = (true, Some(recovery.path().to_owned()));
    };
    let e = carry(&impatient, Target::Url(to.url()), ask).await.map(drop).unwrap_err();
    hang.join().unwrap();
    assert_snapshot!(without_places(&e, &to), @"the server has said nothing for 1 seconds (server=DIR/socket, target=as it was)");
    assert_eq!(to.client().say("DEBUG DIGEST"), before);
    assert!(matches!(to.client().say("FUNCTION LIST"), Reply::Many(all) if all.len() == 1));
}

/// A server that dies half-way cannot get it back, and it is said where it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_half_way_has_its_state_in_a_file() {
    let Some(from) = Server::start(&AT_ONCE) else { return };
    for n in 0..2000 {
        from.client().say(&format!("SET new:{n} 1"));
    }
    let mut to = start(&["--enable-debug-command", "yes"]);
    to.client().say("DEBUG POPULATE 300000 old 8");
    let before = state_of(&to);
    let recovery = tempfile::tempdir().unwrap();
    let kept = recovery.path().join("dump.rdb");
    let process = to.process.id().to_string();
    let kill = std::thread::spawn(move || {
        while !kept.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // It is frozen before it can do anything that it is told now, and dies when it has been told.
        let signal = |name: &str| Command::new("kill").args([name, &process]).status().unwrap();
        assert!(signal("-STOP").success());
        std::thread::sleep(Duration::from_secs(4));
        assert!(signal("-KILL").success());
    });
    let e = over(&from, &to, recovery.path()).await.map(drop).unwrap_err();
    kill.join().unwrap();
    to.process.wait().unwrap();
    // What the system says of the connection depends on how far it came.
    let text = e.chain().replace(recovery.path().to_str().unwrap(), "RECOVERY");
    for part in ["target=half restored", "not_put_back=", "old_state=RECOVERY/dump.rdb"] {
        assert!(text.contains(part), "{text}");
    }
    assert_snapshot!(e.hint(), @"what the server held is in the file `old_state`: stop the server, put it in the place of its dump.rdb, take its append-only files away, and start it");
    let old = Server::with_files(recovery.path(), &[]).unwrap();
    assert_eq!(state_of(&old), before);
}

/// Functions are data, too.
#[tokio::test(flavor = "multi_thread")]
async fn functions_are_not_replaced_unasked() {
    let Some(from) = Server::start(&AT_ONCE) else { return };
    library(&mut from.client(), "lib");
    let to = start(&[]);
    library(&mut to.client(), "other");
    let e = carry(&source(&from), Target::Url(to.url()), |_| ()).await.map(drop).unwrap_err();
    assert_eq!(e.reason(), Reason::TargetNotEmpty);
    // And what was loaded is taken out of a server that turns out to be too small.
    for n in 0..3000_u32 {
        let noise: Vec<u8> =
            (0..1000_u32).flat_map(|i| (i.wrapping_mul(n + 7) >> 3).to_le_bytes()).collect();
        from.client().ask(&[b"SET", format!("key:{n}").as_bytes(), &noise]);
    }
    let small = start(&["--maxmemory", "6mb"]);
    let e = carry(&source(&from), Target::Url(small.url()), |_| ()).await.map(drop).unwrap_err();
    assert_eq!(e.reason(), Reason::NoSpace);
    assert!(e.chain().contains("target=as it was"), "{}", e.chain());
    assert_eq!(small.client().say("FUNCTION LIST"), Reply::Many(Vec::new()));
    assert_eq!(small.client().say("DBSIZE"), Reply::Number(0));
}

/// Whoever writes into a server that was empty keeps what he wrote.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_meanwhile_stays() {
    let Some(from) = Server::start(&AT_ONCE) else { return };
    for n in 0..20_000 {
        from.client().say(&format!("SET key:{n} captured"));
    }
    let to = start(&[]);
    let mut other = to.client();
    // As soon as something is there, one of the last keys is written.
    let writing = std::thread::spawn(move || {
        while other.say("DBSIZE") == Reply::Number(0) {}
        other.say("SET key:9999 mine");
    });
    let e = carry(&source(&from), Target::Url(to.url()), |_| ()).await.map(drop).unwrap_err();
    writing.join().unwrap();
    assert_snapshot!(without_places(&e, &to), @"somebody else writes to the server, which was empty before: stop them (key=key:, target=as it was): BUSYKEY Target key name already exists.");
    assert_eq!(to.client().say("GET key:9999"), Reply::Text(b"mine".to_vec()));
    assert_eq!(to.client().say("DBSIZE"), Reply::Number(1));
}

/// A crash after a restore does not bring back the nothing that was on the server's disk while it was emptied.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_restored_is_on_the_servers_disk() {
    let Some(from) = Server::start(&AT_ONCE) else { return };
    from.client().say("SET new 1");
    let mut to = start(&["--save", "3600 1"]);
    to.client().say("SET old 1");
    let recovery = tempfile::tempdir().unwrap();
    let report = over(&from, &to, recovery.path()).await.unwrap();
    assert_eq!(report.notes.len(), 1, "{report:?}");
    to.process.kill().unwrap();
    to.process.wait().unwrap();
    let again = Server::with_files(&to.path(""), &[]).unwrap();
    assert_eq!(state_of(&again), state_of(&from));
    // One that cannot write says so.
    let full = start(&["--save", "3600 1"]);
    // When it answers, it has looked for one.
    full.client().say("PING");
    std::fs::create_dir(full.path("dump.rdb")).unwrap();
    let (_, report) = carry(&source(&from), Target::Url(full.url()), |_| ()).await.unwrap();
    assert_snapshot!(report.notes.join("\n"), @"it is in the server's memory, and not known to be on its disk: the server could not save its data: its log says why");
}
