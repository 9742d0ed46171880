//! S3 against a real server: the contract of sinks, and whatever a store does that it should not.
#![cfg(feature = "s3")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use insta::assert_snapshot;
use snapkit_core::Context;
use snapkit_core::error::{ErrorKind, Reason, Result};
use snapkit_core::key::Key;
use snapkit_core::sink::{Put, PutMode, Sink};
use snapkit_sinks::{ObjectSink, Settings};
use snapkit_testkit::s3::{ACCESS_KEY, BUCKET, S3Request, S3Server, S3Trouble, SECRET_KEY};
use snapkit_testkit::sink;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn open(server: &S3Server, prefix: &str) -> ObjectSink {
    let settings = Settings::new(server.variables(), None);
    ObjectSink::s3(&format!("s3://{BUCKET}/{prefix}"), &settings).unwrap()
}

fn with(server: &S3Server, name: &str, value: &str) -> ObjectSink {
    let mut variables = server.variables();
    variables.retain(|(n, _)| n != name);
    variables.push((name.to_owned(), value.to_owned()));
    ObjectSink::s3(&format!("s3://{BUCKET}/x"), &Settings::new(variables, None)).unwrap()
}

async fn put(cx: &Context, sink: &ObjectSink, name: &str, mode: PutMode) -> Result<Put> {
    sink.put(cx, &key(name), Bytes::from_static(b"content"), mode).await
}

async fn listed(cx: &Context, sink: &ObjectSink) -> Vec<String> {
    let entries: Vec<_> = sink.list(cx, None).try_collect().await.unwrap();
    let mut keys: Vec<_> = entries.into_iter().map(|e| e.key.to_string()).collect();
    keys.sort();
    keys
}

/// Fails so many requests that fit, each in its way, and none after them.
fn first(
    server: &S3Server,
    times: u32,
    trouble: S3Trouble,
    fits: impl Fn(&S3Request) -> bool + Send + Sync + 'static,
) -> Arc<AtomicU32> {
    let met = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&met);
    server.trouble(move |request| {
        let hit = fits(request) && counter.fetch_add(1, Ordering::Relaxed) < times;
        hit.then(|| trouble.clone())
    });
    met
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract_of_sinks() {
    let server = S3Server::start().await.unwrap();
    let number = AtomicU32::new(0);
    let cx = Context::system();
    sink::all(&cx, async || {
        let prefix = format!("deep/{}", number.fetch_add(1, Ordering::Relaxed));
        Arc::new(open(&server, &prefix)) as Arc<dyn Sink>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_racing_creates_one_wins() {
    let server = S3Server::start().await.unwrap();
    let cx = Context::system();
    // Two programs, each with its own connections.
    let (a, b) = (Arc::new(open(&server, "race")), Arc::new(open(&server, "race")));
    let mut wins = [0, 0];
    for round in 0..1000 {
        let key = key(&format!("snapshots/{round:04}"));
        let race = |sink: &Arc<ObjectSink>, text: &'static [u8]| {
            let (sink, cx, key) = (Arc::clone(sink), cx.clone(), key.clone());
            async move { sink.put(&cx, &key, Bytes::from_static(text), PutMode::Create).await }
        };
        let (one, two) = (cx.spawn(race(&a, b"a")), cx.spawn(race(&b, b"b")));
        let (one, two) = (one.await.unwrap(), two.await.unwrap());
        assert_ne!(one, two, "round {round}");
        let winner = usize::from(two == Put::Stored);
        wins[winner] += 1;
        let there = a.get(&cx, &key, None).await.unwrap();
        assert_eq!(there, [&b"a"[..], b"b"][winner], "round {round}");
    }
    assert!(wins[0] > 0 && wins[1] > 0, "{wins:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_is_tried_again() {
    let server = S3Server::start().await.unwrap();
    let cx = Context::system();
    let sink = open(&server, "x");
    let troubles = [
        S3Trouble::Answer(503, "SlowDown"),
        S3Trouble::Answer(500, "InternalError"),
        S3Trouble::Answer(429, "TooManyRequests"),
        S3Trouble::Answer(502, ""),
        S3Trouble::Drop,
        S3Trouble::Delay(Duration::from_millis(200)),
    ];
    for (i, trouble) in troubles.into_iter().enumerate() {
        let name = format!("packs/{i}");
        let met = first(&server, 3, trouble.clone(), |_| true);
        assert_eq!(
            put(&cx, &sink, &name, PutMode::Create).await.unwrap(),
            Put::Stored,
            "{trouble:?}"
        );
        first(&server, 3, trouble.clone(), |_| true);
        assert_eq!(sink.get(&cx, &key(&name), None).await.unwrap(), &b"content"[..]);
        first(&server, 3, trouble.clone(), |_| true);
        assert_eq!(sink.get(&cx, &key(&name), Some(3..5)).await.unwrap(), &b"te"[..]);
        first(&server, 3, trouble.clone(), |_| true);
        assert_eq!(listed(&cx, &sink).await, [name.as_str()]);
        first(&server, 3, trouble, |_| true);
        sink.delete(&cx, &key(&name)).await.unwrap();
        server.heal();
        assert_eq!(listed(&cx, &sink).await, [""; 0]);
        assert!(met.load(Ordering::Relaxed) > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_whose_answer_is_lost_has_won() {
    let server = S3Server::start().await.unwrap();
    let cx = Context::system();
    let sink = open(&server, "x");
    first(&server, 1, S3Trouble::DropAnswer, |r| r.create_only);
    assert_eq!(put(&cx, &sink, "sessions/a/0", PutMode::Create).await.unwrap(), Put::Stored);
    // And what another put there meanwhile has not.
    server.heal();
    sink.put(&cx, &key("b"), Bytes::from_static(b"another"), PutMode::Create).await.unwrap();
    first(&server, 1, S3Trouble::Drop, |r| r.create_only);
    assert_eq!(put(&cx, &sink, "b", PutMode::Create).await.unwrap(), Put::AlreadyThere);
    // Two that were in each other's way, and neither won.
    first(&server, 2, S3Trouble::Answer(409, "ConditionalRequestConflict"), |r| r.create_only);
    assert_eq!(put(&cx, &sink, "c", PutMode::Create).await.unwrap(), Put::Stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_pass_is_said_at_once() {
    let server = S3Server::start().await.unwrap();
    let cx = Context::system();
    let sink = open(&server, "x");
    for (status, code, reason, what) in [
        (403, "AccessDenied", Reason::PermissionDenied, "does not allow"),
        (400, "ExpiredToken", Reason::PermissionDenied, "expired"),
        (403, "RequestTimeTooSkewed", Reason::PermissionDenied, "clock"),
        (403, "SignatureDoesNotMatch", Reason::PermissionDenied, "secret key"),
        (404, "NoSuchBucket", Reason::InvalidConfig, "bucket"),
        (301, "PermanentRedirect", Reason::InvalidConfig, "region"),
        (501, "NotImplemented", Reason::Unsupported, "does not know"),
        (400, "Whatever", Reason::InvalidConfig, "does not accept"),
        (507, "QuotaExceeded", Reason::NoSpace, "space"),
    ] {
        let met = first(&server, 1000, S3Trouble::Answer(status, code), |_| true);
        let put = put(&cx, &sink, "a", PutMode::Create).await.unwrap_err();
        let list = sink.list(&cx, None).try_collect::<Vec<_>>().await.unwrap_err();
        for e in [put, list] {
            let text = e.chain();
            assert_eq!(e.reason(), reason, "{code}: {text}");
            assert!(text.contains(what) && text.contains("s3://backups/x at 127.0.0.1"), "{text}");
            assert!(!text.contains('\n') && text.len() < 1000, "{text}");
        }
        assert!(met.load(Ordering::Relaxed) <= 3, "{code} was asked {met:?} times");
    }
    server.heal();
    // And by the real server.
    let e = put(&cx, &with(&server, "AWS_SECRET_ACCESS_KEY", "wrong"), "a", PutMode::Create).await;
    let e = e.unwrap_err();
    assert_eq!(e.reason(), Reason::PermissionDenied, "{}", e.chain());
    assert!(!format!("{e:?} {}", e.chain()).contains("wrong"));
    let e = put(&cx, &with(&server, "AWS_ACCESS_KEY_ID", "nobody"), "a", PutMode::Create).await;
    assert_eq!(e.unwrap_err().reason(), Reason::PermissionDenied);
    let settings = Settings::new(server.variables(), None);
    let nowhere = ObjectSink::s3("s3://no-such-bucket/x", &settings).unwrap();
    let e = put(&cx, &nowhere, "a", PutMode::Create).await.unwrap_err();
    assert_eq!(e.reason(), Reason::InvalidConfig, "{}", e.chain());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_down_or_silent_is_given_up() {
    let server = S3Server::start().await.unwrap();
    let cx = Context::system();
    let sink = open(&server, "x");
    let met = first(&server, 1000, S3Trouble::Answer(503, "SlowDown"), |_| true);
    let e = sink.get(&cx, &key("a"), None).await.unwrap_err();
    assert_eq!((e.reason(), e.kind()), (Reason::Unavailable, ErrorKind::Unavailable));
    let mut told = without_numbers(&e.chain());
    assert!(e.chain().contains("tried 10 times"), "{}", e.chain());
    assert_eq!(met.load(Ordering::Relaxed), 10);
    // A deadline and a cancellation end what hangs.
    first(&server, 1000, S3Trouble::Hang, |_| true);
    let soon = cx.within(Duration::from_millis(300));
    let e = sink.get(&soon, &key("a"), None).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TimedOut);
    let child = cx.child();
    let stop = async {
        cx.sleep(Duration::from_millis(100)).await.unwrap();
        child.cancel();
    };
    let (e, ()) = tokio::join!(put(&child, &sink, "a", PutMode::Create), stop);
    assert_eq!(e.unwrap_err().reason(), Reason::Cancelled);
    // Nobody listens there any more.
    drop(server);
    let e = sink.get(&cx.within(Duration::from_secs(300)), &key("a"), None).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{}", e.chain());
    told += &format!("\n{}", without_numbers(&e.chain()));
    insta::assert_snapshot!(told, @"
    cannot read the object, tried N times (location=sN://backups/x at N:N, key=a): the store is too busy: Generic SN error: Error performing GET http://N:N/backups/x/a in [TIME] - Server returned non-Nxx status code: N Service Unavailable: SlowDown because the test says so
    cannot read the object, tried N times (location=sN://backups/x at N:N, key=a): the store cannot be reached: Generic SN error: Error performing GET http://N:N/backups/x/a in [TIME] - HTTP error: error sending request
    ");
}

/// Ports and times differ from run to run.
fn without_numbers(text: &str) -> String {
    let mut told = String::new();
    for c in text.chars() {
        match c.is_ascii_digit() || c == '.' && told.ends_with('N') {
            true if told.ends_with('N') => {}
            true => told.push('N'),
            false => told.push(c),
        }
    }
    told.replace("Nµs", "[TIME]").replace("Nms", "[TIME]").replace("Ns ", "[TIME] ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_of_many_goes_on_where_it_was_interrupted() {
    let server = S3Server::start().await.unwrap();
    let cx = Context::system();
    let sink = open(&server, "x");
    let expected: Vec<_> = (0..2500).map(|i| format!("packs/{i:05}")).collect();
    std::fs::create_dir_all(server.directory().join("x/packs")).unwrap();
    for name in &expected {
        std::fs::write(server.directory().join("x").join(name), "1").unwrap();
    }
    let pages = AtomicU32::new(0);
    server.trouble(move |_| {
        (pages.fetch_add(1, Ordering::Relaxed) % 2 == 1)
            .then_some(S3Trouble::Answer(503, "SlowDown"))
    });
    assert_eq!(listed(&cx, &sink).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_is_neither_cut_nor_endless() {
    let server = S3Server::start().await.unwrap();
    let cx = Context::system();
    let sink = open(&server, "x");
    put(&cx, &sink, "a", PutMode::Create).await.unwrap();
    for range in [5..9, 7..8, 100..101, 8..8] {
        let e = sink.get(&cx, &key("a"), Some(range.clone())).await.unwrap_err();
        assert_eq!(e.reason(), Reason::Corrupt, "{range:?}: {}", e.chain());
    }
    assert_eq!(sink.get(&cx, &key("a"), Some(7..7)).await.unwrap(), &b""[..]);
    let huge = std::fs::File::create(server.directory().join("x/huge")).unwrap();
    huge.set_len((64 << 20) + 1).unwrap();
    let e = sink.get(&cx, &key("huge"), None).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Corrupt, "{}", e.chain());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encryption_by_the_store_is_asked_for() {
    let server = S3Server::start().await.unwrap();
    let cx = Context::system();
    let sink = with(&server, "AWS_SERVER_SIDE_ENCRYPTION", "AES256");
    assert_eq!(put(&cx, &sink, "a", PutMode::Create).await.unwrap(), Put::Stored);
    let asked: Vec<_> = server.seen().into_iter().filter_map(|r| r.encryption).collect();
    assert_eq!(asked, ["AES256"]);
}

/// Where a role is to be had: answers each path with a text, a few times.
fn roles(answers: &'static [(&'static str, String)]) -> (String, Arc<AtomicU64>) {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = vec![0; 8192];
            let n = stream.read(&mut request).unwrap_or(0);
            counted.fetch_add(1, Ordering::Relaxed);
            let line = String::from_utf8_lossy(&request[..n]).into_owned();
            let path = line.split(' ').nth(1).unwrap_or_default();
            let answer = answers.iter().find(|(start, _)| path.starts_with(start));
            let status = if answer.is_some() { "200 OK" } else { "404 Not Found" };
            let body = answer.map_or("", |(_, body)| body.as_str());
            let len = body.len();
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {len}\r\nconnection: close");
            drop(stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()));
        }
    });
    (address, asked)
}

fn without_keys(server: &S3Server, more: &[(&str, String)]) -> ObjectSink {
    let mut variables = server.variables();
    variables.retain(|(name, _)| !name.contains("ACCESS_KEY"));
    variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    ObjectSink::s3(&format!("s3://{BUCKET}/x"), &Settings::new(variables, None)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_role_of_the_instance_is_used() {
    let server = S3Server::start().await.unwrap();
    let cx = Context::system();
    let credentials = format!(
        r#"{{"Code":"Success","LastUpdated":"2026-01-01T00:00:00Z","Type":"AWS-HMAC","AccessKeyId":"{ACCESS_KEY}","SecretAccessKey":"{SECRET_KEY}","Token":"t","Expiration":"2099-01-01T00:00:00Z"}}"#
    );
    let answers: &'static [_] = Box::leak(Box::new([
        ("/latest/api/token", "a-token".to_owned()),
        ("/latest/meta-data/iam/security-credentials/backup", credentials),
        ("/latest/meta-data/iam/security-credentials/", "backup".to_owned()),
    ]));
    let (address, asked) = roles(answers);
    let sink = without_keys(&server, &[("AWS_METADATA_ENDPOINT", address)]);
    assert_eq!(put(&cx, &sink, "a", PutMode::Create).await.unwrap(), Put::Stored);
    assert_eq!(put(&cx, &sink, "b", PutMode::Create).await.unwrap(), Put::Stored);
    assert_eq!(asked.load(Ordering::Relaxed), 3, "what was learnt is kept");
}

/// A token is a secret: it is not sent without TLS, and that is said at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_identity_is_not_sent_in_the_clear() {
    let server = S3Server::start().await.unwrap();
    let cx = Context::system();
    let (address, asked) = roles(&[]);
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "hunter2").unwrap();
    let sink = without_keys(
        &server,
        &[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.path().display().to_string()),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/backup".to_owned()),
            ("AWS_ENDPOINT_URL_STS", address),
        ],
    );
    let e = put(&cx, &sink, "a", PutMode::Create).await.unwrap_err();
    assert_eq!(e.reason(), Reason::InvalidConfig, "{}", e.chain());
    assert!(!format!("{e:?}").contains("hunter2"));
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

/// What does not pass in the end, after all attempts: some twenty seconds, all at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_pass_is_told() {
    let server = S3Server::start().await.unwrap();
    let cx = Context::system();
    let sink = open(&server, "x");
    for name in ["short", "there"] {
        put(&cx, &sink, name, PutMode::Create).await.unwrap();
    }
    server.trouble(|request| {
        let is = |name: &str| request.target.contains(&format!("/x/{name}"));
        let listing = request.target.contains("list-type=2");
        Some(match () {
            () if listing => S3Trouble::Answer(502, "BadGateway"),
            () if is("busy") => S3Trouble::Answer(503, "SlowDown"),
            () if is("failed") => S3Trouble::Answer(500, "Mystery"),
            () if is("throttled") => S3Trouble::Answer(429, "TooManyRequests"),
            () if is("lost") => S3Trouble::Drop,
            () if is("conflict") && request.method == "PUT" => {
                S3Trouble::Answer(409, "ConditionalRequestConflict")
            }
            () => return None,
        })
    });
    let told = |what: &str, e: snapkit_core::Error| {
        let host = server.variables().into_iter().find(|(n, _)| n == "AWS_ENDPOINT_URL").unwrap().1;
        let host = host.trim_start_matches("http://").to_owned();
        // How long an attempt takes makes no difference.
        let chain = e.chain().replace(&host, "[HOST]");
        let words = chain.split(' ').map(|word| {
            let number = word.trim_end_matches("ms").trim_end_matches("µs").trim_end_matches('s');
            if word.ends_with('s') && number.parse::<f64>().is_ok() { "[DURATION]" } else { word }
        });
        let text = words.collect::<Vec<_>>().join(" ");
        format!("{what}: {text} ({}, exit {})\n", e.reason(), e.reason().row().exit)
    };
    let puts = ["busy", "failed", "throttled", "lost", "conflict"].map(|name| {
        let put = put(&cx, &sink, name, PutMode::Create);
        async move { (format!("put {name}"), put.await.unwrap_err()) }
    });
    let busy = key("busy");
    let get = async { ("get busy".to_owned(), sink.get(&cx, &busy, None).await.unwrap_err()) };
    let listing = sink.list(&cx, None).try_collect::<Vec<_>>();
    let list = async { ("list".to_owned(), listing.await.unwrap_err()) };
    let delete = async { ("delete busy".to_owned(), sink.delete(&cx, &busy).await.unwrap_err()) };
    let (puts, get, list, delete) =
        tokio::join!(futures_util::future::join_all(puts), get, list, delete);
    let failed = puts.into_iter().chain([get, list, delete]);
    let mut all: String = failed.map(|(what, e)| told(&what, e)).collect();
    for range in [0..8, 9..12, 0..snapkit_core::sink::MAX_OBJECT + 1] {
        let e = sink.get(&cx, &key("short"), Some(range.clone())).await.unwrap_err();
        all += &told(&format!("get {range:?} of 7 bytes"), e);
    }
    all += &told("get none", sink.get(&cx, &key("none"), None).await.unwrap_err());
    assert_snapshot!(all, @"
    put busy: cannot store the object, tried 10 times (location=s3://backups/x at [HOST], key=busy): the store is too busy: Generic S3 error: Error performing PUT http://[HOST]/backups/x/busy in [DURATION] - Server returned non-2xx status code: 503 Service Unavailable: SlowDown because the test says so (unavailable, exit 75)
    put failed: cannot store the object, tried 10 times (location=s3://backups/x at [HOST], key=failed): the store has failed: Generic S3 error: Error performing PUT http://[HOST]/backups/x/failed in [DURATION] - Server returned non-2xx status code: 500 Internal Server Error: Mystery because the test says so (unavailable, exit 75)
    put throttled: cannot store the object, tried 10 times (location=s3://backups/x at [HOST], key=throttled): the store is too busy: Generic S3 error: Error performing PUT http://[HOST]/backups/x/throttled in [DURATION] - Server returned non-2xx status code: 429 Too Many Requests: TooManyRequests because the test says so (unavailable, exit 75)
    put lost: cannot store the object, tried 10 times (location=s3://backups/x at [HOST], key=lost): the connection to the store was lost: Generic S3 error: Error performing PUT http://[HOST]/backups/x/lost in [DURATION] - HTTP error: error sending request (unavailable, exit 75)
    put conflict: cannot store the object, tried 10 times (location=s3://backups/x at [HOST], key=conflict): another put was in the way: Generic conflict error: Error performing PUT http://[HOST]/backups/x/conflict in [DURATION] - Server returned non-2xx status code: 409 Conflict: ConditionalRequestConflict because the test says so (unavailable, exit 75)
    get busy: cannot read the object, tried 10 times (location=s3://backups/x at [HOST], key=busy): the store is too busy: Generic S3 error: Error performing GET http://[HOST]/backups/x/busy in [DURATION] - Server returned non-2xx status code: 503 Service Unavailable: SlowDown because the test says so (unavailable, exit 75)
    list: cannot list the objects (location=s3://backups/x at [HOST]): the store has failed: Generic S3 error: Error performing list request: Error performing GET http://[HOST]/backups in [DURATION] - Server returned non-2xx status code: 502 Bad Gateway: BadGateway because the test says so (unavailable, exit 75)
    delete busy: cannot delete the object, tried 10 times (location=s3://backups/x at [HOST], key=busy): the store is too busy: Generic S3 error: Error performing DELETE http://[HOST]/backups/x/busy in [DURATION] - Server returned non-2xx status code: 503 Service Unavailable: SlowDown because the test says so (unavailable, exit 75)
    get 0..8 of 7 bytes: the object has only 7 bytes (location=s3://backups/x at [HOST], key=short) (corrupt, exit 4)
    get 9..12 of 7 bytes: the object is shorter than what is asked of it (location=s3://backups/x at [HOST], key=short) (corrupt, exit 4)
    get 0..67108865 of 7 bytes: the object has only 7 bytes (location=s3://backups/x at [HOST], key=short) (corrupt, exit 4)
    get none: there is no such object (location=s3://backups/x at [HOST], key=none) (not-found, exit 1)
    ");
}
