//! Real databases: PostgreSQL and MariaDB, with their own programs and whatever these do.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use snapkit_core::artifact::{ArtifactMeta, Body};
use snapkit_core::context::Context;
use snapkit_core::facts::{Facts, RestoreVerdict};
use snapkit_core::manifest::SourceRecord;
use snapkit_core::secret::Secret;
use snapkit_core::source::{Consistency, RestoreReport, RestoreRequest, Source as _, Target};
use snapkit_core::{Reason, Result};
use snapkit_source_command::{CommandConfig, Preset};
use tempfile::TempDir;

use crate::command;

/// A server of its own in a scratch directory, reached by a socket there.
struct Server {
    dir: TempDir,
    child: Child,
    /// Variables by which its programs find it.
    variables: Vec<(&'static str, String)>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The user that a server runs as: neither of them wants to be root.
fn as_somebody(command: &mut Command, dir: &Path, user: &str) {
    let is_root =
        fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    if is_root {
        let id = |flag| {
            let out = Command::new("id").args([flag, user]).output().unwrap();
            String::from_utf8(out.stdout).unwrap().trim().parse::<u32>().unwrap()
        };
        let (uid, gid) = (id("-u"), id("-g"));
        std::os::unix::fs::chown(dir, Some(uid), Some(gid)).unwrap();
        command.uid(uid).gid(gid);
    }
}

fn skipped(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what} must not be missing in CI");
}

impl Server {
    fn postgresql() -> Option<Self> {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let Some(bin) = versions.map(|v| v.path().join("bin")).find(|b| b.join("initdb").exists())
        else {
            skipped("PostgreSQL");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let mut init = Command::new(bin.join("initdb"));
        init.args(["-U", "shop", "-A", "trust", "--no-sync", "-D"]).arg(&data);
        as_somebody(&mut init, dir.path(), "postgres");
        assert!(init.current_dir(dir.path()).stdout(Stdio::null()).status().unwrap().success());
        let mut server = Command::new(bin.join("postgres"));
        server.arg("-D").arg(&data).args(["-c", "listen_addresses=", "-c", "fsync=off", "-k"]);
        server.arg(dir.path());
        as_somebody(&mut server, dir.path(), "postgres");
        let host = dir.path().to_str().unwrap().to_owned();
        let variables = vec![("PGHOST", host), ("PGUSER", "shop".to_owned())];
        let server = Self::start(server, dir, variables);
        server.wait_for(&["psql", "-d", "postgres", "-c", "select 1"]);
        Some(server)
    }

    fn mariadb() -> Option<Self> {
        let program = PathBuf::from("/usr/sbin/mariadbd");
        if !program.exists() {
            skipped("MariaDB");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (data, socket) = (dir.path().join("data"), dir.path().join("socket"));
        let mut init = Command::new("mariadb-install-db");
        init.args(["--no-defaults", "--auth-root-authentication-method=normal"]);
        init.args(["--skip-test-db", &format!("--datadir={}", data.display())]);
        as_somebody(&mut init, dir.path(), "mysql");
        assert!(init.current_dir(dir.path()).stdout(Stdio::null()).status().unwrap().success());
        let mut server = Command::new(program);
        server.args(["--no-defaults", "--skip-networking", "--datadir"]).arg(&data);
        server.arg("--socket").arg(&socket).arg("--pid-file").arg(dir.path().join("pid"));
        as_somebody(&mut server, dir.path(), "mysql");
        let home = dir.path().to_str().unwrap().to_owned();
        fs::write(
            dir.path().join(".my.cnf"),
            format!("[client]\nuser = root\nsocket = {}\n", socket.display()),
        )
        .unwrap();
        let server = Self::start(server, dir, vec![("HOME", home)]);
        server.wait_for(&["mariadb", "-e", "select 1"]);
        Some(server)
    }

    fn start(mut command: Command, dir: TempDir, variables: Vec<(&'static str, String)>) -> Self {
        let log = fs::File::create(dir.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.current_dir(dir.path()).spawn().unwrap();
        Self { dir, child, variables }
    }

    fn program(&self, words: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).envs(self.variables.iter().map(|(k, v)| (k, v)));
        command
    }

    fn wait_for(&self, words: &[&str]) {
        for _ in 0..1200 {
            if self.program(words).output().unwrap().status.success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{}", fs::read_to_string(self.dir.path().join("log")).unwrap());
    }

    /// Have a client do something, and what it answers.
    fn run(&self, words: &[&str], input: &str) -> String {
        let mut command = self.program(words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn config(&self, preset: Preset) -> CommandConfig {
        let mut config = CommandConfig::preset(preset, "shop");
        for (name, value) in &self.variables {
            config.variables.insert((*name).to_owned(), Secret::new(value.clone()));
        }
        config
    }
}

/// What was captured.
struct Taken {
    meta: ArtifactMeta,
    content: Vec<bytes::Bytes>,
    facts: Facts,
    consistency: Consistency,
}

async fn capture(config: &CommandConfig, between: impl FnOnce()) -> Result<Taken> {
    let (cx, source) = (Context::system(), command(config.clone()));
    let mut capture = source.capture(&cx, None).await?;
    let frozen = capture.freeze(&cx).await;
    let cut = match frozen {
        Ok(cut) => cut,
        Err(e) => return capture.abort(&cx).await.and(Err(e)),
    };
    between();
    let meta = capture.next(&cx).await?.unwrap();
    let body = capture.open(&cx, &meta.name).await?.into_bytes()?;
    let content = body.try_collect().await?;
    let facts = capture.finish(&cx).await?.facts;
    Ok(Taken { meta, content, facts, consistency: cut.consistency })
}

async fn restore(
    config: &CommandConfig,
    taken: &Taken,
    recovery: Option<&Path>,
) -> Result<RestoreReport> {
    let (cx, source) = (Context::system(), command(config.clone()));
    let mut request = RestoreRequest::new(Target::Original, SourceRecord::new(source.info()));
    request.overwrite = recovery.is_some();
    request.recovery = recovery.map(Path::to_owned);
    let mut session = source.restore(&cx, &request).await?;
    let content: Vec<_> = taken.content.iter().cloned().map(Ok).collect();
    let body = Body::Bytes(Box::pin(futures_util::stream::iter(content)));
    session.put(&cx, &taken.meta, body).await?;
    session.finish(&cx).await
}

const SHOP: &str = "create table orders (id int primary key, total numeric, note text);
    insert into orders select n, n * 1.5, repeat('order ', n % 50) from generate_series(1, 5000) n;
    create table stock (item text, amount int); insert into stock values ('é\\n', 5), (null, 7);
    create index on orders (total); create view large as select * from orders where total > 100;
    create sequence numbers start 7; select nextval('numbers');
    create function twice(int) returns int language sql as 'select $1 * 2';";

#[tokio::test(flavor = "multi_thread")]
async fn postgresql() {
    let Some(server) = Server::postgresql() else { return };
    let sql =
        |text: &str| server.run(&["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "shop"], text);
    server.run(&["psql", "-q", "-d", "postgres"], "create database shop");
    let config = server.config(Preset::Postgresql);
    sql(SHOP);
    // What is committed after the freeze is not in it.
    let taken = capture(&config, || drop(sql("insert into orders values (9999, 1, 'late')"))).await;
    let taken = taken.unwrap();
    assert_eq!(taken.consistency, Consistency::Point);
    sql("delete from orders where id = 9999");
    let quiet = capture(&config, || ()).await.unwrap();
    let again = capture(&config, || ()).await.unwrap();
    assert_eq!(quiet.facts.0["answer.rows"].value, 5002_i64.into());
    // Whoever restores over something keeps it.
    let refused = restore(&config, &quiet, None).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::TargetNotEmpty);
    sql("update orders set total = 0; drop table stock; create table newer (x int)");
    let recovery = tempfile::tempdir().unwrap();
    let report = restore(&config, &taken, Some(recovery.path())).await.unwrap();
    assert_eq!(sql("select count(*), max(id) from orders"), "5000|5000\n");
    let comparison = quiet.facts.compare(&report.facts);
    assert!(comparison.differences.is_empty() && comparison.proven == 2, "{comparison:?}");
    assert_eq!(sql("select twice(4), nextval('numbers')"), "8|8\n");
    // Into an empty one.
    server.run(&["psql", "-q", "-d", "postgres"], "drop database shop; create database shop");
    let report = restore(&config, &again, None).await.unwrap();
    assert_eq!(quiet.facts.compare(&report.facts).proven, 2, "{report:?}");
    // A change of one letter is seen.
    sql("update orders set note = note || 'x' where id = 17");
    let changed = command(config.clone()).facts(&Context::system()).await.unwrap();
    assert_eq!(quiet.facts.compare(&changed).verdict, RestoreVerdict::Differs);
    // Also where a column has the name that a table has in the question.
    sql("create table tricky (t int, other text); insert into tricky values (1, 'a')");
    let before = command(config.clone()).facts(&Context::system()).await.unwrap();
    sql("update tricky set other = 'b'");
    let after = command(config.clone()).facts(&Context::system()).await.unwrap();
    assert_ne!(before.0["answer.content"], after.0["answer.content"]);
    // However the database writes its times.
    sql("create table times (at timestamptz); insert into times values ('2026-01-01 12:00+00')");
    let before = command(config.clone()).facts(&Context::system()).await.unwrap();
    sql(
        "alter database shop set timezone = 'Asia/Tokyo'; alter database shop set datestyle = 'German'",
    );
    assert_eq!(before, command(config.clone()).facts(&Context::system()).await.unwrap());
    // What is kept is put back with the steps that are told, and a dump that is damaged changes nothing.
    let before = sql("select sum(hashtext(o::text)) from orders o");
    let mut damaged = Taken { content: again.content.clone(), ..again };
    let last = damaged.content.pop().unwrap();
    damaged.content.push(last.slice(..last.len() / 2));
    let damaged_kept = tempfile::tempdir().unwrap();
    let refused = restore(&config, &damaged, Some(damaged_kept.path())).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::ProgramFailed, "{}", refused.chain());
    assert_eq!(sql("select sum(hashtext(o::text)) from orders o"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_that_cannot_be_captured() {
    let Some(server) = Server::postgresql() else { return };
    let config = server.config(Preset::Postgresql);
    let mut all = String::new();
    let mut hear = async |config: &CommandConfig| {
        let e = capture(config, || ()).await.err().unwrap();
        let text = e.chain().replace(server.dir.path().to_str().unwrap(), "DIR");
        all += &format!("{text} ({})\n", e.reason());
    };
    hear(&config).await;
    let mut nowhere = config.clone();
    nowhere.variables.insert("PGHOST".to_owned(), Secret::new("/nowhere".to_owned()));
    hear(&nowhere).await;
    // Killed in the middle of a dump.
    server.run(&["psql", "-q", "-d", "postgres"], "create database shop");
    let sql = |text: &str| server.run(&["psql", "-XAtq", "-d", "shop"], text);
    sql("create table t as select repeat(md5(n::text), 100) from generate_series(1, 20000) n");
    let kill = || {
        let end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pg_dump'";
        assert!(sql(end).contains('t'));
    };
    let e = capture(&config, kill).await.err().unwrap();
    assert_eq!(e.reason(), Reason::ProgramFailed, "{}", e.chain());
    insta::assert_snapshot!(all, @r#"
    `capture` failed: exit status: 1 (program=pg_dump, said=pg_dump: error: connection to server on socket "DIR/.s.PGSQL.5432" failed: FATAL:  database "shop" does not exist) (program-failed)
    `capture` failed: exit status: 1 (program=pg_dump, said=pg_dump: error: connection to server on socket "/nowhere/.s.PGSQL.5432" failed: No such file or directory |  Is the server running locally and accepting connections on that socket?) (program-failed)
    "#);
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb() {
    let Some(server) = Server::mariadb() else { return };
    let sql = |text: &str| server.run(&["mariadb", "-N", "-B"], text);
    sql("create database shop; use shop;
        create table orders (id int primary key auto_increment, total decimal(10, 2), note blob);
        insert into orders (total, note) select seq * 1.5, unhex(md5(seq)) from seq_1_to_5000;
        create procedure twice(x int) select x * 2;
        create trigger t before insert on orders for each row set new.total = new.total + 0;");
    let config = server.config(Preset::Mariadb);
    let taken = capture(&config, || drop(sql("insert into shop.orders (total) values (1)"))).await;
    let taken = taken.unwrap();
    let refused = restore(&config, &taken, None).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::TargetNotEmpty);
    sql("update shop.orders set total = 0; create table shop.newer (x int)");
    let recovery = tempfile::tempdir().unwrap();
    let report = restore(&config, &taken, Some(recovery.path())).await.unwrap();
    assert_eq!(sql("select count(*), sum(total) from shop.orders"), "5000\t18753750.00\n");
    assert_eq!(
        sql("select count(*) from information_schema.tables where table_schema = 'shop'"),
        "1\n"
    );
    assert_eq!(sql("call shop.twice(4)"), "8\n");
    // The same state gives the same bytes.
    let comparison = taken.facts.compare(&report.facts);
    assert_eq!(comparison.verdict, RestoreVerdict::Match, "{comparison:?}");
    sql("drop database shop");
    let report = restore(&config, &taken, None).await.unwrap();
    assert_eq!(taken.facts.compare(&report.facts).verdict, RestoreVerdict::Match);
    // A drill beside it: it goes where it is told, and nowhere else.
    sql("update shop.orders set total = 0; create database drill character set latin1");
    let mut drill = server.config(Preset::Mariadb);
    drill.database = Some("drill".to_owned());
    let report = restore(&drill, &taken, None).await.unwrap();
    assert_eq!(taken.facts.compare(&report.facts).verdict, RestoreVerdict::Match);
    assert_eq!(sql("select sum(total) from shop.orders"), "0.00\n");
    assert_eq!(
        sql(
            "select default_character_set_name from information_schema.schemata where schema_name = 'drill'"
        ),
        "latin1\n"
    );
    // Procedures alone are something, too.
    sql("drop table drill.orders");
    let refused = restore(&drill, &taken, None).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::TargetNotEmpty);
    sql("drop database shop");
    let e = capture(&config, || ()).await.err().unwrap();
    assert_eq!(e.reason(), Reason::ProgramFailed, "{}", e.chain());
}
