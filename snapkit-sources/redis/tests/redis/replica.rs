//! A server gives all that it holds at one moment.

use std::time::Duration;

use insta::assert_snapshot;
use snapkit_core::Reason;
use snapkit_core::context::{Context, Environment as _, System};
use snapkit_core::secret::Secret;
use snapkit_source_redis::connection::{Address, Connection, Login, Reply};
use snapkit_source_redis::replica::{Pinned, drain};

use crate::rdb::{Read, fill, read, rest};
use crate::server::Server;

fn login(user: &str, password: &str) -> Login {
    let user = (!user.is_empty()).then(|| user.to_owned());
    Login { user, password: Secret::new(password.to_owned()) }
}

fn whole(pinned: Pinned) -> Read {
    let mut snapshot = pinned.snapshot().unwrap();
    let read = rest(&mut snapshot).unwrap();
    snapshot.into_inner().finish().unwrap();
    read
}

fn assert_same(a: &Read, b: &Read) {
    assert_eq!(a.functions, b.functions);
    assert_eq!(a.keys.len(), b.keys.len());
    for (name, (key, raw, digest)) in &a.keys {
        let (other, other_raw, same) = &b.keys[name];
        assert_eq!((key, raw, digest), (other, other_raw, same));
    }
}

/// In both frames, and as of the moment at which it forked.
#[test]
fn it_gives_what_it_holds() {
    for diskless in ["yes", "no"] {
        let settings = ["--repl-diskless-sync", diskless, "--repl-diskless-sync-delay", "0"];
        let Some(server) = Server::start(&settings) else { return };
        let mut client = server.client();
        fill(&mut client);
        let expected = read(&server.saved()).unwrap();
        let pinned = Pinned::begin(server.connect(None).unwrap()).unwrap();
        assert!(pinned.is_alone);
        assert_eq!(pinned.position.history.len(), 40);
        // What is written now is too late.
        client.say("SET late 1");
        client.say("DEL text");
        let told = whole(pinned);
        assert!(told.checked);
        assert_same(&expected, &told);
        // The server has forgotten us.
        let Reply::Text(info) = client.say("INFO replication") else { panic!() };
        let info = String::from_utf8(info).unwrap();
        assert!(info.contains("connected_slaves:0"), "{info}");
    }
}

/// Nothing is written to the server's disk where it can be avoided.
#[test]
fn its_files_stay_as_they_are() {
    let Some(server) = Server::start(&["--repl-diskless-sync-delay", "0"]) else { return };
    server.client().say("SET a 1");
    drain(Pinned::begin(server.connect(None).unwrap()).unwrap().snapshot().unwrap()).unwrap();
    assert!(!server.path("dump.rdb").exists());
}

/// The mark behind a snapshot is the same each time: it may stand in the data, whole and in parts, and a search for it
/// would end there.
#[test]
fn the_mark_may_stand_in_the_data() {
    let Some(server) =
        Server::start(&["--repl-diskless-sync-delay", "0", "--rdbcompression", "no"])
    else {
        return;
    };
    let mut client = server.client();
    // What the server says before a snapshot.
    let mark = || {
        use std::io::{Read as _, Write as _};
        let mut stream = std::os::unix::net::UnixStream::connect(server.path("socket")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // One after the other: it refuses while an answer is still to be fetched.
        for command in ["REPLCONF capa eof", "REPLCONF rdb-only 1"] {
            stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"+OK\r\n");
        }
        stream.write_all(b"PSYNC ? -1\r\n").unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let at = all.windows(5).position(|text| text == b"$EOF:").unwrap() + 5;
        (all[at..at + 40].to_vec(), all)
    };
    let (first, _) = mark();
    for (name, value) in [
        ("whole", first.clone()),
        ("half", first[..20].to_vec()),
        ("twice", [&first[..], &first].concat()),
        ("in more", [b"before", &first[..], b"behind"].concat()),
    ] {
        client.ask(&[b"SET", name.as_bytes(), &value]);
    }
    let (second, all) = mark();
    assert_eq!(first, second, "this server makes a new mark each time, and shows nothing");
    // The naive way: up to the mark that comes first.
    let begin = all.windows(5).position(|text| text == b"REDIS").unwrap();
    let end = all[begin..].windows(40).position(|text| text == first).unwrap();
    assert!(read(&all[begin..begin + end]).is_err(), "the naive way is expected to lose data");
    let told = whole(Pinned::begin(server.connect(None).unwrap()).unwrap());
    assert_eq!(told.keys.len(), 4);
    assert_same(&read(&server.saved()).unwrap(), &told);
}

#[test]
fn what_is_refused_is_understood() {
    let Some(server) =
        Server::start(&["--requirepass", "hunter2", "--repl-diskless-sync-delay", "0"])
    else {
        return;
    };
    let admin = || server.connect(Some(&login("", "hunter2"))).unwrap();
    let mut all = String::new();
    let mut told = |what: &str, result: snapkit_core::Result<()>| {
        let e = result.unwrap_err();
        let text = e.chain().replace(server.path("socket").to_str().unwrap(), "[SOCKET]");
        assert!(!format!("{text} {e:?}").contains("hunter"), "{e:?}");
        all += &format!("{what}: {text} ({}, exit {})\n", e.reason(), e.reason().row().exit);
    };
    for command in [
        "ACL SETUSER snap on >pw +ping +psync +replconf",
        "ACL SETUSER poor on >pw +ping +replconf",
        "ACL SETUSER poorer on >pw +ping",
    ] {
        let words: Vec<_> = command.split(' ').map(str::as_bytes).collect();
        assert_eq!(admin().ask(&words).unwrap(), Reply::Text(b"OK".to_vec()));
    }
    let begin =
        |login: Option<Login>| server.connect(login.as_ref()).and_then(Pinned::begin).map(drop);
    told("no password", begin(None));
    told("a wrong one", begin(Some(login("", "hunter3"))));
    told("nobody", begin(Some(login("nobody", "hunter2"))));
    told("without PSYNC", begin(Some(login("poor", "pw"))));
    told("without REPLCONF", begin(Some(login("poorer", "pw"))));
    // What the documentation says is enough.
    begin(Some(login("snap", "pw"))).unwrap();
    // A replica that has no master any more.
    admin().must(&[b"REPLICAOF", b"127.0.0.1", b"1"]).unwrap();
    told("a replica alone", begin(Some(login("", "hunter2"))));
    let cx = Context::system();
    let open =
        |address: Address| Connection::open(&cx, &address, None, Duration::from_secs(2)).map(drop);
    told("no socket", open(Address::Unix("/nowhere/socket".into())));
    told("nobody listens", open(Address::Tcp("127.0.0.1:1".to_owned())));
    told("no port", open(Address::Tcp("127.0.0.1".to_owned())));
    let open_server = Server::start(&[]).unwrap();
    let e = open_server.connect(Some(&login("", "hunter2"))).map(drop).unwrap_err();
    assert_snapshot!(e.message(), @"the password is wrong, or the server has none");
    assert_snapshot!(all, @"
    no password: the server asks for a password (server=[SOCKET]): NOAUTH Authentication required. (permission-denied, exit 1)
    a wrong one: the user or the password is wrong (server=[SOCKET]) (permission-denied, exit 1)
    nobody: the user or the password is wrong (server=[SOCKET]) (permission-denied, exit 1)
    without PSYNC: this user may not use PSYNC: `ACL SETUSER NAME +psync` allows it (server=[SOCKET]): NOPERM this user has no permissions to run the 'psync' command (permission-denied, exit 1)
    without REPLCONF: this user may not use REPLCONF: `ACL SETUSER NAME +replconf` allows it (server=[SOCKET]): NOPERM this user has no permissions to run the 'replconf' command (permission-denied, exit 1)
    a replica alone: this is a replica that has lost its master, and what it has may be old: ask another one, or wait (server=[SOCKET]): NOMASTERLINK Can't SYNC while not connected with my master (unavailable, exit 75)
    no socket: the server cannot be reached (server=/nowhere/socket): No such file or directory (os error 2) (unavailable, exit 75)
    nobody listens: the server cannot be reached (server=127.0.0.1:1): Connection refused (os error 111) (unavailable, exit 75)
    no port: the server cannot be reached (server=127.0.0.1): invalid socket address (invalid-config, exit 2)
    ");
}

/// Something else answers.
#[test]
fn what_is_no_server_is_named() {
    use std::io::Write as _;
    let mut all = String::new();
    for answer in [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "",
        "+PONG\r\n+OK\r\n+OK\r\n+NONSENSE\r\n",
        "+PONG\r\n+OK\r\n+OK\r\n+FULLRESYNC x 1\r\n$EOF:short\r\n",
        "*99999999\r\n",
        "$99999999999\r\n",
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            // What was asked is read, so that the connection is closed and not reset.
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            while matches!(std::io::Read::read(&mut stream, &mut [0; 1000]), Ok(1..)) {}
        });
        let cx = Context::system();
        let opened =
            Connection::open(&cx, &Address::Tcp(address.clone()), None, Duration::from_secs(5));
        let e = opened
            .and_then(Pinned::begin)
            .and_then(|pinned| pinned.snapshot().map(drop))
            .unwrap_err();
        all +=
            &format!("{answer:?}: {} ({})\n", e.chain().replace(&address, "[ADDRESS]"), e.reason());
        serving.join().unwrap();
    }
    assert_snapshot!(all, @r#"
    "HTTP/1.1 400 Bad Request\r\n\r\n": what answers there does not speak as Redis does: check the address (server=[ADDRESS]) (invalid-config)
    "": the server has closed the connection (server=[ADDRESS]): unexpected end of file (unavailable)
    "+PONG\r\n+OK\r\n+OK\r\n+NONSENSE\r\n": what answers there does not speak as Redis does: check the address (server=[ADDRESS]) (invalid-config)
    "+PONG\r\n+OK\r\n+OK\r\n+FULLRESYNC x 1\r\n$EOF:short\r\n": what answers there does not speak as Redis does: check the address (server=[ADDRESS]) (invalid-config)
    "*99999999\r\n": the server has closed the connection (server=[ADDRESS]): unexpected end of file (unavailable)
    "$99999999999\r\n": what answers there does not speak as Redis does: check the address (server=[ADDRESS]) (invalid-config)
    "#);
}

/// A server that dies is no server that has said all.
#[test]
fn a_server_that_is_killed_in_the_middle() {
    let Some(mut server) =
        Server::start(&["--repl-diskless-sync-delay", "0", "--rdbcompression", "no"])
    else {
        return;
    };
    let mut client = server.client();
    let value: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    for n in 0..20_u32 {
        client.ask(&[b"SET", &n.to_le_bytes(), &value]);
    }
    let pinned = Pinned::begin(server.connect(None).unwrap()).unwrap();
    let mut snapshot = pinned.snapshot().unwrap();
    // Some of it has come; the rest is in nobody's hands.
    snapshot.item().unwrap();
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    let e = drain(snapshot).unwrap_err();
    assert_eq!(e.reason(), Reason::Unavailable, "{e}");
}

/// Nobody waits for a server that has stopped, nor when the run has ended.
#[test]
fn a_server_that_says_nothing_is_not_waited_for() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap().to_string());
    let (cx, clock) = (Context::system(), System::new());
    let open = |patience| Connection::open(&cx, &address, None, patience).and_then(Pinned::begin);
    let e = open(Duration::from_secs(1)).unwrap_err();
    assert_eq!(e.reason(), Reason::TimedOut, "{e}");
    assert!(clock.monotonic() < Duration::from_secs(4));
    let other = cx.clone();
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        other.cancel();
    });
    let e = open(Duration::from_secs(60)).unwrap_err();
    assert_eq!(e.reason(), Reason::Cancelled, "{e}");
    ending.join().unwrap();
    assert!(clock.monotonic() < Duration::from_secs(8));
}

/// An answer without end is given up before it has filled the memory.
#[test]
fn an_answer_without_end_is_given_up() {
    use std::io::Write as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"*9223372036854775807\r\n").unwrap();
        let part = b":1\r\n".repeat(10_000);
        let mut sent = 0_u64;
        while sent < 1 << 30 && stream.write_all(&part).is_ok() {
            sent += part.len() as u64;
        }
        sent
    });
    let cx = Context::system();
    let address = Address::Tcp(address);
    let mut connection = Connection::open(&cx, &address, None, Duration::from_secs(5)).unwrap();
    let e = connection.ask(&[b"ACL", b"LIST"]).unwrap_err();
    assert_eq!(e.reason(), Reason::InvalidConfig, "{}", e.chain());
    drop(connection);
    assert!(serving.join().unwrap() < 100 << 20);
}

/// A server that says without end that it is at work is not heard for longer than there is time.
#[test]
fn being_at_work_has_an_end() {
    use std::io::Write as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap().to_string());
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"+PONG\r\n+OK\r\n+OK\r\n").unwrap();
        let patient = Context::system().within(Duration::from_secs(20));
        while patient.check().is_ok() && stream.write_all(b"\n\n\n\n").is_ok() {}
        patient.check()
    });
    let cx = Context::system().within(Duration::from_millis(500));
    let connection = Connection::open(&cx, &address, None, Duration::from_secs(5)).unwrap();
    let e = Pinned::begin(connection).unwrap_err();
    assert_eq!(e.reason(), Reason::TimedOut, "{}", e.chain());
    serving.join().unwrap().unwrap();
}
