//! How far apart the sources of a snapshot are, measured from outside: one writer puts a counter to all of them in turn, and
//! others move money about meanwhile. `SNAPKIT_CUT_RUNS` says how many snapshots are taken each way; `scripts/show cut`
//! takes a hundred.

#![allow(clippy::print_stdout, reason = "what was measured is for whoever asks")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use snapkit_testkit::server::{NatsServer, RedisServer};

use crate::support::TestEnv;

/// What all accounts of a system have together.
const MONEY: i64 = 10_000;

/// A client of Redis: a command, and its answer to the end of the first line.
struct Redis(BufReader<UnixStream>);

impl Redis {
    fn to(server: &RedisServer) -> Self {
        let stream = UnixStream::connect(server.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(BufReader::new(stream))
    }

    fn ask(&mut self, words: &[&str]) -> String {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_mut().write_all(command.as_bytes()).unwrap();
        let line = self.line();
        assert!(!line.starts_with('-'), "{words:?}: {line}");
        line
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The text of an answer that is one.
    fn text(&mut self, words: &[&str]) -> String {
        self.ask(words);
        self.line()
    }
}

/// A client of NATS.
struct Nats {
    stream: BufReader<TcpStream>,
    inbox: String,
    asked: u64,
}

impl Nats {
    fn to(server: &NatsServer) -> Self {
        let url = server.url();
        let stream = TcpStream::connect(url.strip_prefix("nats://").unwrap()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // No other client hears what this one is answered.
        let inbox = format!("_INBOX.cut.{}", stream.local_addr().unwrap().port());
        let begin = format!("CONNECT {{\"verbose\":false}}\r\nSUB {inbox}.* 1\r\n");
        let mut this = Self { stream: BufReader::new(stream), inbox, asked: 0 };
        this.send(begin.as_bytes());
        this
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// Ask for something, and wait for the answer.
    fn request(&mut self, subject: &str, payload: &str) -> Value {
        self.asked += 1;
        let len = payload.len();
        let asked = format!("PUB {subject} {}.{} {len}\r\n{payload}\r\n", self.inbox, self.asked);
        self.send(asked.as_bytes());
        loop {
            let mut line = String::new();
            assert!(self.stream.read_line(&mut line).unwrap() > 0, "the server is gone");
            if line.starts_with("PING") {
                self.send(b"PONG\r\n");
            }
            if let Some(rest) = line.strip_prefix("MSG ") {
                let len: usize = rest.split_whitespace().last().unwrap().parse().unwrap();
                let mut body = vec![0; len + 2];
                self.stream.read_exact(&mut body).unwrap();
                let answer: Value = serde_json::from_slice(&body).unwrap();
                assert!(answer.get("error").is_none(), "{subject}: {answer}");
                return answer;
            }
        }
    }

    fn make_stream(&mut self, name: &str, subject: &str) {
        let config = json!({ "name": name, "subjects": [subject], "storage": "file", "num_replicas": 1, "max_msgs": 20_000 });
        self.request(&format!("$JS.API.STREAM.CREATE.{name}"), &config.to_string());
    }

    fn state(&mut self, stream: &str) -> Value {
        self.request(&format!("$JS.API.STREAM.INFO.{stream}"), "")["state"].clone()
    }
}

/// Seconds of the day, which two clocks of one machine agree on.
#[expect(clippy::disallowed_methods, reason = "it is compared with the clock of another program")]
fn time_of_day() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    since.as_secs_f64() % 86_400.0
}

/// The same of a time in a manifest.
fn read_time(text: &Value) -> f64 {
    let time = text.as_str().unwrap().split('T').nth(1).unwrap().trim_end_matches('Z');
    time.split(':')
        .map(|part| part.parse::<f64>().unwrap())
        .fold(0.0, |sum, part| sum * 60.0 + part)
}

/// How long after another one a time is, not more than half a day.
fn since(time: f64, origin: f64) -> f64 {
    (time - origin + 43_200.0).rem_euclid(86_400.0) - 43_200.0
}

/// Those who write, until it is over.
struct Load {
    is_over: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    /// When each number of the counter was begun.
    begun: Arc<Mutex<Vec<f64>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(work: &Path, redis: &RedisServer, nats: &NatsServer) -> Self {
        let mut load = Self {
            is_over: Arc::default(),
            writes: Arc::default(),
            begun: Arc::default(),
            threads: Vec::new(),
        };
        let (mut cache, mut bus) = (Redis::to(redis), Nats::to(nats));
        let db = rusqlite::Connection::open(work.join("app.db")).unwrap();
        db.busy_timeout(Duration::from_secs(10)).unwrap();
        let (begun, work) = (Arc::clone(&load.begun), work.to_owned());
        load.work(move |n| {
            // An application that is asked to pause does so between two numbers.
            while work.join("pausing").exists() {
                std::fs::write(work.join("paused"), "").unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
            begun.lock().unwrap().push(time_of_day());
            cache.ask(&["SET", "counter", &n.to_string()]);
            bus.request("counter", &n.to_string());
            let change = format!(
                "BEGIN IMMEDIATE; UPDATE counter SET n = {n}; UPDATE account SET money = money - 7 WHERE id = {};
                 UPDATE account SET money = money + 7 WHERE id = {}; COMMIT",
                n % 10,
                (n * 7 + 3) % 10
            );
            db.execute_batch(&change).unwrap();
            5
        });
        let mut cache = Redis::to(redis);
        load.work(move |n| {
            let script = "redis.call('HINCRBY', 'money', ARGV[1], -5); redis.call('HINCRBY', 'money', ARGV[2], 5)";
            let (from, to) = ((n % 10).to_string(), ((n * 3 + 1) % 10).to_string());
            cache.ask(&["EVAL", script, "0", &from, &to]);
            if n % 8 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            2
        });
        let mut bus = Nats::to(nats);
        load.work(move |n| {
            bus.request("money", &format!("{} {} 5", n % 10, (n * 3 + 1) % 10));
            std::thread::sleep(Duration::from_millis(4));
            1
        });
        load
    }

    /// Do something again and again; it says how many writes it was.
    fn work(&mut self, mut turn: impl FnMut(u64) -> u64 + Send + 'static) {
        let (is_over, writes) = (Arc::clone(&self.is_over), Arc::clone(&self.writes));
        self.threads.push(std::thread::spawn(move || {
            for n in 1.. {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                writes.fetch_add(turn(n), Ordering::Relaxed);
            }
        }));
    }

    fn stop(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// One snapshot under load: how wide its cut is in seconds, how far apart the counters are, and how far they may be.
struct Run {
    width: f64,
    spread: u64,
    allowed: u64,
}

/// Take one, bring it back to other servers, and look.
fn take(env: &TestEnv, begun: &Mutex<Vec<f64>>, redis: &RedisServer, nats: &NatsServer) -> Run {
    let created = env.run(["create", "--json"]).json();
    assert_eq!(created["snapshot"]["verdict"], "complete", "{created}");
    for (mapped, url) in [("cache", redis.url()), ("bus", nats.url())] {
        let (part, to) = (format!("latest:{mapped}"), format!("{mapped}={url}"));
        let restored = env.run(["restore", &part, "--map", &to]);
        assert!(restored.is_success(), "{restored}");
    }
    let restored = env.run(["restore", "latest:app", "--target", "out"]);
    assert!(restored.is_success(), "{restored}");

    let mut cache = Redis::to(redis);
    let sum =
        "local s = 0; for _, v in ipairs(redis.call('HVALS', 'money')) do s = s + v end; return s";
    assert_eq!(cache.ask(&["EVAL", sum, "0"]), format!(":{MONEY}"), "money in Redis");
    let in_redis: u64 = cache.text(&["GET", "counter"]).parse().unwrap();
    cache.ask(&["FLUSHALL"]);

    let mut bus = Nats::to(nats);
    let money = bus.state("MONEY");
    let number = |name: &str| money[name].as_u64().unwrap();
    assert_eq!(
        number("last_seq") - number("first_seq") + 1,
        number("messages"),
        "no message is missing"
    );
    // Each number is a message.
    let in_nats = bus.state("COUNTER")["last_seq"].as_u64().unwrap();
    for stream in ["MONEY", "COUNTER"] {
        bus.request(&format!("$JS.API.STREAM.DELETE.{stream}"), "");
    }

    let db = rusqlite::Connection::open(env.path("work/out/app/app.db")).unwrap();
    let ask = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(ask("SELECT sum(money) FROM account"), MONEY, "money in SQLite");
    let in_sqlite = u64::try_from(ask("SELECT n FROM counter")).unwrap();
    drop(db);
    std::fs::remove_dir_all(env.path("work/out")).unwrap();

    let (now, begun) = (time_of_day(), begun.lock().unwrap());
    // How many numbers were begun by then: all before the last of them are everywhere, and none after it is anywhere.
    let begun_by =
        |edge: f64| begun.iter().filter(|time| since(**time, now) <= edge).count() as u64;
    let (mut begin, mut end) = (f64::MAX, f64::MIN);
    for (source, found) in [("cache", in_redis), ("bus", in_nats), ("app", in_sqlite)] {
        let all = created["snapshot"]["sources"].as_array().unwrap();
        let cut = &all.iter().find(|record| record["name"] == source).unwrap()["cut"];
        let edge = |name: &str| since(read_time(&cut[name]), now);
        // Each source is of a moment within the time that it says.
        let may_be = begun_by(edge("begin")).saturating_sub(1)..=begun_by(edge("end"));
        assert!(may_be.contains(&found), "{source}: {found} is not in {may_be:?}: {cut}");
        (begin, end) = (begin.min(edge("begin")), end.max(edge("end")));
    }
    let all = [in_redis, in_nats, in_sqlite];
    Run {
        width: end - begin,
        spread: all.iter().max().unwrap() - all.iter().min().unwrap(),
        allowed: begun_by(end) - begun_by(begin) + 1,
    }
}

fn told(what: &str, runs: &[Run]) {
    let mut widths: Vec<_> = runs.iter().map(|run| run.width * 1000.0).collect();
    widths.sort_by(f64::total_cmp);
    let most = runs.iter().map(|run| run.spread).max().unwrap();
    println!(
        "| {what} | {} | {:.0} ms | {:.0} ms | {most} | {} |",
        runs.len(),
        widths[widths.len() / 2],
        widths[widths.len() - 1],
        runs.iter().map(|run| run.allowed).max().unwrap()
    );
}

#[test]
fn sources_are_no_further_apart_than_the_cut_is_wide() {
    let runs: u32 = std::env::var("SNAPKIT_CUT_RUNS").map_or(3, |runs| runs.parse().unwrap());
    let at_once = ["--repl-diskless-sync-delay", "0"];
    let (Some(redis), Some(other_redis)) =
        (RedisServer::start(&at_once), RedisServer::start(&at_once))
    else {
        return;
    };
    let Some(program) = NatsServer::programs().pop() else { return };
    let (nats, other_nats) = (NatsServer::start(&program, ""), NatsServer::start(&program, ""));
    let env = TestEnv::with_repository();
    let hooks = "[[hook]]\non = \"before:freeze\"\nrun = [\"./pause\"]\ntimeout = \"20s\"\n[[hook]]\non = \"after:thaw\"\nrun = [\"rm\", \"pausing\"]\n";
    let stack = format!(
        "name = \"shop\"\n[sources.cache]\nkind = \"redis\"\nurl = \"{}\"\n[sources.bus]\nkind = \"nats\"\nurl = \"{}\"\n\
         [sources.app]\nkind = \"sqlite\"\npath = \"app.db\"\n",
        redis.url(),
        nats.url()
    );
    env.write("work/snapkit.toml", &stack);
    let pause =
        "#!/bin/sh\nrm -f paused; touch pausing\nuntil [ -e paused ]; do sleep 0.01; done\n";
    env.write("work/pause", pause);
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(env.path("work/pause"), executable).unwrap();

    let mut cache = Redis::to(&redis);
    let mut bus = Nats::to(&nats);
    bus.make_stream("COUNTER", "counter");
    bus.make_stream("MONEY", "money");
    let db = rusqlite::Connection::open(env.path("work/app.db")).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = WAL; CREATE TABLE counter (n); INSERT INTO counter VALUES (0);
         CREATE TABLE account (id INTEGER PRIMARY KEY, money)",
    )
    .unwrap();
    for account in 0..10 {
        db.execute("INSERT INTO account VALUES (?1, ?2)", [account, MONEY / 10]).unwrap();
        cache.ask(&["HSET", "money", &account.to_string(), &(MONEY / 10).to_string()]);
    }
    drop(db);

    let (begin, load) = (time_of_day(), Load::start(&env.path("work"), &redis, &nats));
    while load.begun.lock().unwrap().len() < 10 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let take = || take(&env, &load.begun, &other_redis, &other_nats);
    let free: Vec<_> = (0..runs).map(|_| take()).collect();
    env.write("work/snapkit.toml", format!("{stack}{hooks}"));
    let paused: Vec<_> = (0..runs).map(|_| take()).collect();
    // As Redis comes: it waits for other replicas before it forks.
    env.write("work/snapkit.toml", &stack);
    cache.ask(&["CONFIG", "SET", "repl-diskless-sync-delay", "5"]);
    let delayed: Vec<_> = (0..runs.div_ceil(10)).map(|_| take()).collect();
    let rate = load.writes.load(Ordering::Relaxed) as f64 / since(time_of_day(), begin);
    load.stop();
    println!("{rate:.0} writes a second.\n");
    println!(
        "| snapshots of Redis, NATS and SQLite | runs | cut, median | cut, widest | counters apart, most | what the cut allows, most |\n|---|---|---|---|---|---|"
    );
    told("while all are written to", &free);
    told("while the application pauses", &paused);
    told("with Redis' usual delay of 5 s", &delayed);
    for run in free.iter().chain(&delayed) {
        assert!(
            run.spread <= run.allowed,
            "{} apart, {} allowed in {} s",
            run.spread,
            run.allowed,
            run.width
        );
    }
    assert!(paused.iter().all(|run| run.spread == 0), "nothing comes between");
}
