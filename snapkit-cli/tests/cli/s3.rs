//! A repository on S3: everything that is done with a local one.

use std::fmt::Write as _;
use std::time::Duration;

use snapkit_testkit::s3::{BUCKET, S3Request, S3Server, S3Trouble};
use tokio::runtime::Runtime;

use crate::support::TestEnv;

/// A store, surroundings that know it, and an empty repository.
struct Scene {
    // Dropped before what it runs in.
    server: S3Server,
    _runtime: Runtime,
    env: TestEnv,
}

impl Scene {
    fn without_repository() -> Self {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(S3Server::start()).unwrap();
        let mut env = TestEnv::new();
        for (name, value) in server.variables() {
            env.set(&name, &value);
        }
        env.set("SNAPKIT_REPO", &format!("s3://{BUCKET}/shop"));
        Self { server, _runtime: runtime, env }
    }

    fn new() -> Self {
        let scene = Self::without_repository();
        scene.ok(&["init", "-q"]);
        scene.env.sample();
        scene.env.write_much("work/data/much", 40);
        scene.env.database("work/app.db", 1000);
        scene
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.env.run(args);
        assert!(output.is_success(), "{args:?} {output} {:#?}", self.server.seen());
        output.text()
    }

    fn create(&self) {
        self.ok(&["create", "-q", "data", "app.db"]);
    }

    /// Restore the newest snapshot and compare.
    fn assert_comes_back(&self) {
        self.ok(&["restore", "-q", "latest", "--target", "out"]);
        let restored = self.env.path("work/out/files").join(self.env.in_tree("data"));
        let mut diff = std::process::Command::new("diff");
        let output = diff.arg("-r").arg(self.env.path("work/data")).arg(restored).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let sum = |path: &str| -> i64 {
            let db = rusqlite::Connection::open(self.env.path(path)).unwrap();
            db.query_row("SELECT sum(x) FROM t", [], |row| row.get(0)).unwrap()
        };
        assert_eq!(sum("work/out/app/app.db"), sum("work/app.db"));
        std::fs::remove_dir_all(self.env.path("work/out")).unwrap();
    }
}

fn is_change(request: &S3Request) -> bool {
    match request.method.as_str() {
        "GET" | "HEAD" => false,
        "PUT" => !request.create_only,
        _ => true,
    }
}

#[test]
fn a_repository_on_s3_does_what_a_local_one_does() {
    let scene = Scene::new();
    scene.create();
    scene.assert_comes_back();
    scene.ok(&["verify", "-q", "--read-data"]);
    assert!(scene.ok(&["list"]).contains("@box"));
    assert_eq!(
        scene.ok(&[
            "dump",
            "-q",
            &format!("latest:files/tree/{}", scene.env.in_tree("data/a.txt"))
        ]),
        "hello\n"
    );
    // What is unchanged is not stored again.
    let before = scene.server.keys();
    scene.create();
    let added = scene.server.keys().difference(&before).cloned().collect::<Vec<_>>();
    let size = |key: &String| std::fs::metadata(scene.server.directory().join(key)).unwrap().len();
    assert!(added.iter().map(size).sum::<u64>() < 100_000, "{added:?}");
    // A machine that knows nothing but the key.
    for name in [".cache", ".local"] {
        std::fs::remove_dir_all(scene.env.path("home").join(name)).unwrap();
    }
    scene.assert_comes_back();
    // Two at once.
    let run = |name| {
        let args = ["create", "-q", "data", "app.db", "--stack-name", name];
        scene.env.command(args).spawn().unwrap()
    };
    let mut both = [run("one"), run("two")];
    assert!(both.iter_mut().all(|child| child.wait().unwrap().success()));
    scene.ok(&["verify", "-q", "--read-data"]);
    // No secret is in what is stored, and none in what is remembered.
    for file in scene.env.files("home", "") {
        let bytes = std::fs::read(&file).unwrap();
        let secret = snapkit_testkit::s3::SECRET_KEY.as_bytes();
        assert!(!bytes.windows(secret.len()).any(|w| w == secret), "{}", file.display());
    }
}

#[test]
fn a_create_needs_to_add_and_to_read_only() {
    let scene = Scene::new();
    scene.server.trouble(|r| is_change(r).then_some(S3Trouble::Answer(403, "AccessDenied")));
    scene.create();
    scene.env.write("work/data/a.txt", "changed\n");
    scene.create();
    let after_init = scene.server.seen();
    let probes = after_init.iter().filter(|r| is_change(r)).count();
    assert_eq!(probes, 1, "the probe of `init`, and nothing since");
    scene.assert_comes_back();
}

#[test]
fn a_store_that_fails_at_any_request_loses_nothing() {
    let scene = Scene::new();
    scene.create();
    let (mut failed, mut round) = (0, 0);
    loop {
        round += 1;
        scene.env.write("work/data/a.txt", format!("round {round}\n"));
        let begun = scene.server.seen().len() as u64;
        let limit = begun + round;
        scene.server.trouble(move |r| {
            (r.number >= limit).then_some(S3Trouble::Answer(403, "ExpiredToken"))
        });
        let output = scene.env.run(["create", "-q", "data", "app.db"]);
        scene.server.heal();
        if output.is_success() {
            break;
        }
        assert_eq!(output.code(), Some(1), "{output}");
        assert!(output.stderr.contains("the credentials have expired"), "{output}");
        failed += 1;
        if round % 6 == 0 {
            scene.ok(&["verify", "-q", "--read-data"]);
        }
        assert!(round < 200, "it never succeeds");
    }
    assert!(failed > 8, "{failed}");
    scene.ok(&["verify", "-q", "--read-data"]);
    scene.assert_comes_back();
}

#[test]
fn a_store_that_is_slow_and_busy_is_waited_for() {
    let scene = Scene::new();
    // Three of eight requests go wrong, as if at random.
    scene.server.trouble(|r| match (r.number.wrapping_mul(2_654_435_761) >> 9) % 8 {
        1 => Some(S3Trouble::Answer(503, "SlowDown")),
        3 => Some(S3Trouble::DropAnswer),
        5 => Some(S3Trouble::Answer(500, "InternalError")),
        6 => Some(S3Trouble::Delay(Duration::from_millis(50))),
        _ => None,
    });
    scene.create();
    scene.assert_comes_back();
    scene.ok(&["verify", "-q", "--read-data"]);
}

#[test]
fn what_is_wrong_with_a_store_is_said() {
    use insta::assert_snapshot;
    insta::with_settings!({ filters => vec![
        (r"127\.0\.0\.1:\d+", "[HOST]"),
        (r"in \d+(\.\d+)?(µs|ms|s)", "in [DURATION]"),
    ] }, {
        let mut scene = Scene::without_repository();
        assert_snapshot!(scene.env.run(["list"]), @r#"
        --- stderr
        error: there is no snapkit repository here (location=s3://backups/shop at [HOST])
        hint: create one with `snapkit init`, or check the path or URL
        --- exit 10
        "#);
        let repository = format!("s3://{BUCKET}/shop");
        scene.env.set("SNAPKIT_REPO", "s3://no-such-bucket/shop");
        assert_snapshot!(scene.env.run(["init"]), @r#"
        --- stderr
        error: cannot read the object (location=s3://no-such-bucket/shop at [HOST], key=config)
          caused by: there is no such bucket: create it first, or check its name
          caused by: Object at location shop/config not found: Error performing GET http://[HOST]/no-such-bucket/shop/config in [DURATION] - Server returned non-2xx status code: 404 Not Found: NoSuchBucket because the test says so
        --- exit 2
        "#);
        scene.env.set("SNAPKIT_REPO", &repository);
        scene.env.set("AWS_SECRET_ACCESS_KEY", "hunter2");
        assert_snapshot!(scene.env.run(["init"]), @r#"
        --- stderr
        error: cannot read the object (location=s3://backups/shop at [HOST], key=config)
          caused by: the secret key does not belong to this access key
          caused by: The operation lacked the necessary privileges to complete for path shop/config: Error performing GET http://[HOST]/backups/shop/config in [DURATION] - Server returned non-2xx status code: 403 Forbidden: SignatureDoesNotMatch
        --- exit 1
        "#);
        scene.env.set("AWS_PROFILE", "shop");
        assert_snapshot!(scene.env.run(["init"]), @r#"
        --- stderr
        error: there is no profile "shop": check AWS_PROFILE (credentials=[DIR]/home/.aws/credentials, config=[DIR]/home/.aws/config)
        --- exit 2
        "#);
        scene.env.unset("AWS_PROFILE");
        scene.env.set("AWS_ENDPOINT_URL", "localhost:1");
        assert_snapshot!(scene.env.run(["init"]), @r#"
        --- stderr
        error: AWS_ENDPOINT_URL is no URL: write https://HOST:PORT
        --- exit 2
        "#);
        scene.env.set("SNAPKIT_REPO", "s3://key:hunter2@bucket/shop");
        assert_snapshot!(scene.env.run(["init"]), @r#"
        --- stderr
        error: credentials do not belong into a URL: write s3://BUCKET/PREFIX
        --- exit 2
        "#);
    });
}

/// Every refusal that a store has a word for, and how it is told.
#[test]
fn each_refusal_of_a_store_is_understood() {
    let scene = Scene::without_repository();
    let answers = [
        (400, "ExpiredToken"),
        (400, "AuthorizationHeaderMalformed"),
        (400, "InvalidToken"),
        (400, "InvalidRequest"),
        (400, "IllegalLocationConstraintException"),
        (401, "Unauthorized"),
        (403, "AccessDenied"),
        (403, "RequestTimeTooSkewed"),
        (403, "InvalidAccessKeyId"),
        (403, "SomethingElse"),
        (405, "MethodNotAllowed"),
        (403, "QuotaExceeded"),
        (500, "XMinioStorageFull"),
        (501, "NotImplemented"),
        (501, "SomethingElse"),
    ];
    let mut told = String::new();
    for (status, code) in answers {
        scene.server.trouble(move |_| Some(S3Trouble::Answer(status, code)));
        let output = scene.env.run(["list"]);
        assert!(output.text().is_empty(), "{output}");
        assert!(output.stderr.contains("caused by"), "{code}: {output}");
        let mut causes =
            output.stderr.lines().filter_map(|line| line.strip_prefix("  caused by: "));
        let exit = output.code().unwrap();
        writeln!(told, "{status} {code}: {} ({exit})", causes.clone().next().unwrap()).unwrap();
        assert!(causes.next_back().unwrap().contains(code), "{output}");
    }
    insta::assert_snapshot!(told, @"
    400 ExpiredToken: the credentials have expired: get new ones (1)
    400 AuthorizationHeaderMalformed: the bucket is in another region: set AWS_REGION to its region (2)
    400 InvalidToken: the store does not know this access key (1)
    400 InvalidRequest: the store does not accept the request (2)
    400 IllegalLocationConstraintException: the bucket is in another region: set AWS_REGION to its region (2)
    401 Unauthorized: the store refuses this: check the credentials, and what they allow (1)
    403 AccessDenied: the store does not allow this with these credentials (1)
    403 RequestTimeTooSkewed: the store does not believe this machine's clock: set the clock (1)
    403 InvalidAccessKeyId: the store does not know this access key (1)
    403 SomethingElse: the store refuses this: check the credentials, and what they allow (1)
    405 MethodNotAllowed: the store does not accept the request (2)
    403 QuotaExceeded: the store has no space left (1)
    500 XMinioStorageFull: the store has no space left (1)
    501 NotImplemented: the store does not know how to do this (1)
    501 SomethingElse: the store does not know how to do this (1)
    ");
    scene.server.trouble(|_| Some(S3Trouble::Answer(412, "PreconditionFailed")));
    let output = scene.env.run(["list"]).to_string();
    insta::with_settings!({ filters => vec![(r"127\.0\.0\.1:\d+", "[HOST]")] }, {
        insta::assert_snapshot!(output, @"
        --- stderr
        error: the store answers a read as if it were a put under a condition (location=s3://backups/shop at [HOST], key=config)
        hint: is there something between here and the store? it does not speak S3, GCS or Azure as it should
        --- exit 1
        ");
    });
}

/// Stores differ: where a put under a condition is any put, that is told, and the repository still works.
#[test]
fn a_store_without_conditions_is_warned_of() {
    let scene = Scene::without_repository();
    scene.server.trouble(|r| r.create_only.then_some(S3Trouble::Unconditional));
    scene.env.sample();
    scene.env.database("work/app.db", 10);
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"127\.0\.0\.1:\d+", "[HOST]");
    let _host = settings.bind_to_scope();
    insta::assert_snapshot!(scene.env.run(["init"]), @"
    --- stderr
    made repository [HEX] in s3://backups/shop at [HOST]
    its key is the file [DIR]/home/.config/snapkit/[HEX].key
    without this file nobody can read the repository: keep a copy of it in another place
    warning: the store does not honour create-only puts: commits rely on time windows
    --- exit 0
    ");
    scene.create();
    insta::assert_snapshot!(scene.env.run(["list", "-q"]), @"
    --- stdout
    ID        TIME                  SET   STACK@HOST                NAME  SIZE     VERDICT
    [HEX]  [TIME]  full  app.db+data-[HEX]@box        8.0 KiB  complete
    --- stderr
    warning: the store does not honour create-only puts: commits rely on time windows
    --- exit 0
    ");
    scene.assert_comes_back();
}

/// Profiles that cannot be used, and settings that the client refuses.
#[test]
fn settings_that_cannot_be_used() {
    let mut scene = Scene::without_repository();
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"127\.0\.0\.1:\d+", "[HOST]");
    let _host = settings.bind_to_scope();
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        scene.env.unset(name);
    }
    scene.env.set("AWS_PROFILE", "shop");
    let mut all = String::new();
    for (what, text) in [
        ("another process", "[profile shop]\ncredential_process = /bin/true\n"),
        ("single sign-on", "[profile shop]\nsso_session = main\n"),
        ("a role", "[profile shop]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = default\n"),
        ("half a key", "[profile shop]\naws_access_key_id = AKID\n"),
    ] {
        scene.env.write("home/.aws/config", text);
        writeln!(all, "=== {what}\n{}", scene.env.run(["list"])).unwrap();
    }
    scene.env.write("home/.aws/config", "");
    let config = std::fs::File::options().write(true).open(scene.env.path("home/.aws/config"));
    config.unwrap().set_len(1 << 30).unwrap();
    writeln!(all, "=== a gibibyte\n{}", scene.env.run(["list"])).unwrap();
    std::fs::remove_file(scene.env.path("home/.aws/config")).unwrap();
    scene.env.unset("AWS_PROFILE");
    for (name, value) in scene.server.variables() {
        scene.env.set(&name, &value);
    }
    for (name, value) in [
        ("AWS_SERVER_SIDE_ENCRYPTION", "rot13"),
        ("AWS_ALLOW_HTTP", "perhaps"),
        ("AWS_CONDITIONAL_PUT", "odd"),
        ("AWS_CA_BUNDLE", "/none"),
        ("AWS_SSE_KMS_KEY_ID", "alias/backups"),
        ("AWS_ENDPOINT_URL", "http://me:secret@127.0.0.1:1"),
        ("AWS_ENDPOINT_URL", "http://["),
    ] {
        scene.env.set(name, value);
        writeln!(all, "=== {name}={value}\n{}", scene.env.run(["list"])).unwrap();
        scene.env.unset(name);
        for (name, value) in scene.server.variables() {
            scene.env.set(&name, &value);
        }
    }
    insta::assert_snapshot!(all, @r#"
    === another process
    --- stderr
    error: the profile shop gets its credentials by `credential_process`, which is not known here; run `eval "$(aws configure export-credentials --profile shop --format env)"` first, and unset AWS_PROFILE
    --- exit 1
    === single sign-on
    --- stderr
    error: the profile shop gets its credentials by `sso_session`, which is not known here; run `eval "$(aws configure export-credentials --profile shop --format env)"` first, and unset AWS_PROFILE
    --- exit 1
    === a role
    --- stderr
    error: the profile shop gets its credentials by `role_arn`, which is not known here; run `eval "$(aws configure export-credentials --profile shop --format env)"` first, and unset AWS_PROFILE
    --- exit 1
    === half a key
    --- stderr
    error: the store cannot be used like this (location=s3://backups/shop at [HOST])
      caused by: Generic S3 error: Missing SecretAccessKey
    --- exit 2
    === a gibibyte
    --- stderr
    error: the file is too large (path=[DIR]/home/.aws/config)
    --- exit 2
    === AWS_SERVER_SIDE_ENCRYPTION=rot13
    --- stderr
    error: the store cannot be used like this (location=s3://backups/shop at [HOST])
      caused by: Generic S3 error: Invalid encryption type: rot13. Valid values are "AES256", "sse:kms", "sse:kms:dsse" and "sse-c".
    --- exit 2
    === AWS_ALLOW_HTTP=perhaps
    --- stderr
    error: there is no snapkit repository here (location=s3://backups/shop at [HOST])
    hint: create one with `snapkit init`, or check the path or URL
    --- exit 10
    === AWS_CONDITIONAL_PUT=odd
    --- stderr
    error: there is no snapkit repository here (location=s3://backups/shop at [HOST])
    hint: create one with `snapkit init`, or check the path or URL
    --- exit 10
    === AWS_CA_BUNDLE=/none
    --- stderr
    error: AWS_CA_BUNDLE is not known here: add the certificate to those that the system trusts, and unset it
    --- exit 1
    === AWS_SSE_KMS_KEY_ID=alias/backups
    --- stderr
    error: AWS_SSE_KMS_KEY_ID needs AWS_SERVER_SIDE_ENCRYPTION=aws:kms
    --- exit 2
    === AWS_ENDPOINT_URL=http://me:secret@[HOST]
    --- stderr
    error: credentials do not belong into AWS_ENDPOINT_URL
    --- exit 2
    === AWS_ENDPOINT_URL=http://[
    --- stderr
    error: AWS_ENDPOINT_URL is no address: write https://HOST:PORT
      caused by: invalid authority
    --- exit 2
    "#);
}

/// A repository that this machine knows, and of which nothing or all but one file is left.
#[test]
fn a_repository_that_is_gone_is_not_made_anew_by_itself() {
    use insta::assert_snapshot;
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"127\.0\.0\.1:\d+", "[HOST]");
    let _host = settings.bind_to_scope();
    let scene = Scene::new();
    scene.create();
    let mut all = String::new();
    let place = |name: &str| scene.server.directory().join("shop").join(name);
    std::fs::rename(place("config"), scene.env.path("config")).unwrap();
    for args in [&["create", "data"][..], &["init"]] {
        writeln!(all, "=== config is gone: {args:?}\n{}", scene.env.run(args)).unwrap();
    }
    for name in ["packs", "index", "snapshots", "sessions", "keys"] {
        std::fs::remove_dir_all(place(name)).unwrap_or_default();
    }
    for args in [
        &["create", "data"][..],
        &["init"],
        &["init", "-q", "--accept-new-repository"],
        &["create", "-q", "data"],
    ] {
        writeln!(all, "=== all is gone: {args:?}\n{}", scene.env.run(args)).unwrap();
    }
    assert_snapshot!(all, @r#"
    === config is gone: ["create", "data"]
    --- stderr
    error: packs/ and snapshots/ are here, but config is gone (location=s3://backups/shop at [HOST])
    hint: put the file config back from a copy; a new repository could not read what is here
    --- exit 4
    === config is gone: ["init"]
    --- stderr
    error: packs/ and snapshots/ are here, but config is gone (location=s3://backups/shop at [HOST])
    hint: put the file config back from a copy; a new repository could not read what is here
    --- exit 4
    === all is gone: ["create", "data"]
    --- stderr
    error: the repository that this machine knows at this place is not there (location=s3://backups/shop at [HOST])
    hint: is this the store that it was in? to make a new one in its place: `snapkit init --accept-new-repository`
    --- exit 10
    === all is gone: ["init"]
    --- stderr
    error: the repository that this machine knows at this place is not there (location=s3://backups/shop at [HOST])
    hint: is this the store that it was in? to make a new one in its place: `snapkit init --accept-new-repository`
    --- exit 10
    === all is gone: ["init", "-q", "--accept-new-repository"]
    --- exit 0
    === all is gone: ["create", "-q", "data"]
    --- exit 0
    "#);
}
