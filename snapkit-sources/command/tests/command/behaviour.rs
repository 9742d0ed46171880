//! Programs that fail, in each way in which one can, and what is said of it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use insta::assert_snapshot;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, ByteStream, Chunking, Shape};
use snapkit_core::context::Context;
use snapkit_core::facts::{Facts, RestoreVerdict, Standing};
use snapkit_core::manifest::SourceRecord;
use snapkit_core::registry::Registry;
use snapkit_core::secret::Secret;
use snapkit_core::source::{RestoreReport, RestoreRequest, Source as _, Target};
use snapkit_core::{Error, Reason, Result};
use snapkit_source_command::{Command, CommandConfig};
use tempfile::TempDir;

use crate::{TOKEN, command, config, processes_in, shell};

async fn capture(cx: &Context, source: &Command) -> Result<(Vec<u8>, Facts)> {
    let mut capture = source.capture(cx, None).await?;
    if let Err(e) = capture.freeze(cx).await {
        capture.abort(cx).await.unwrap();
        return Err(e);
    }
    capture.thaw(cx).await?;
    let meta = capture.next(cx).await?.unwrap();
    let body = capture.open(cx, &meta.name).await?.into_bytes()?;
    match cx.run(body.try_collect::<Vec<_>>()).await {
        Ok(content) => Ok((content.concat(), capture.finish(cx).await?.facts)),
        Err(e) => {
            capture.abort(cx).await.unwrap();
            Err(e)
        }
    }
}

fn body(content: &[u8]) -> ByteStream {
    let pieces: Vec<_> = content.chunks(100_000).map(|p| Ok(Bytes::copy_from_slice(p))).collect();
    stream::iter(pieces).boxed()
}

async fn restore(
    cx: &Context,
    source: &Command,
    overwrite: Option<&Path>,
    content: &[u8],
) -> Result<RestoreReport> {
    let record = SourceRecord::new(source.info());
    let mut request = RestoreRequest::new(Target::Original, record);
    request.overwrite = overwrite.is_some();
    request.recovery = overwrite.map(Path::to_owned);
    let mut session = source.restore(cx, &request).await?;
    let name = ArtifactName::new("app").unwrap();
    let meta = ArtifactMeta::new(name, Shape::Bytes, "x", Chunking::Content);
    match session.put(cx, &meta, Body::Bytes(body(content))).await {
        Ok(()) => session.finish(cx).await,
        Err(e) => session.abort(cx).await.and(Err(e)),
    }
}

/// A directory with a state, and a source of it.
fn system(change: impl FnOnce(&mut CommandConfig)) -> (TempDir, Command) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("state"), "state of now\n").unwrap();
    let mut config = config(dir.path());
    change(&mut config);
    (dir, command(config))
}

fn told(dir: &TempDir, e: &Error) -> String {
    let text = e.chain().replace(dir.path().to_str().unwrap(), "DIR");
    format!("{text} ({}, exit {})\n", e.reason(), e.reason().row().exit)
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_that_are_none() {
    let cx = Context::system();
    let mut all = String::new();
    let scripts = [
        "echo half; echo it broke >&2; exit 3",
        "echo no such database >&2; exit 1",
        "kill -9 $$",
        "echo busy >&2; exit 75",
        ":",
        "echo short",
        "echo long enough, but without its end",
        "echo begun; exec sleep 60",
        "exec sleep 60",
        "while :; do echo more; sleep 0.1; done",
        "echo the token is $TOKEN >&2; exit 1",
    ];
    for script in scripts {
        let (dir, source) = system(|config| {
            config.capture = shell(script);
            config.min_size = 10;
            config.end = Some("-- done".to_owned());
            config.idle = Duration::from_millis(400);
            config.timeout = Duration::from_millis(1500);
        });
        let begun = cx.monotonic();
        all += &format!("{script}\n    {}", told(&dir, &capture(&cx, &source).await.unwrap_err()));
        assert!(cx.monotonic() - begun < Duration::from_secs(10), "{script}");
        assert_eq!(processes_in(dir.path()), [""; 0], "{script}");
    }
    for words in [vec![], vec!["no-such-program-here".to_owned()], vec!["/etc/passwd".to_owned()]] {
        let (dir, source) = system(|config| config.capture = words);
        all += &told(&dir, &capture(&cx, &source).await.unwrap_err());
    }
    assert!(!all.contains(TOKEN), "{all}");
    assert_snapshot!(all, @"
    echo half; echo it broke >&2; exit 3
        `capture` failed: exit status: 3 (program=sh, said=it broke) (program-failed, exit 1)
    echo no such database >&2; exit 1
        `capture` failed: exit status: 1 (program=sh, said=no such database) (program-failed, exit 1)
    kill -9 $$
        `capture` failed: signal: 9 (SIGKILL) (program=sh) (program-failed, exit 1)
    echo busy >&2; exit 75
        `capture` asks to be tried later (program=sh, said=busy) (not-now, exit 75)
    :
        what `capture` has written is not whole: it is empty (program=sh) (source-missing, exit 1)
    echo short
        what `capture` has written is not whole: it has 6 bytes, and `min_size` wants 10 (program=sh) (source-missing, exit 1)
    echo long enough, but without its end
        what `capture` has written is not whole: the text that `end` wants near its end is not there (program=sh) (source-missing, exit 1)
    echo begun; exec sleep 60
        `capture` has written nothing for 400ms and was ended (program=sh) (unavailable, exit 75)
    exec sleep 60
        `capture` has written nothing for 400ms and was ended (program=sh) (unavailable, exit 75)
    while :; do echo more; sleep 0.1; done
        `capture` did not end within 1.5s and was ended (program=sh) (unavailable, exit 75)
    echo the token is $TOKEN >&2; exit 1
        `capture` failed: exit status: 1 (program=sh, said=the token is …) (program-failed, exit 1)
    `capture` names no program (invalid-config, exit 2)
    `capture`: there is no such program (program=no-such-program-here) (not-found, exit 1)
    `capture`: there is no such program (program=/etc/passwd) (not-found, exit 1)
    ");
}

/// Whoever does not want it any more ends it, with all that it has started.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_capture_leaves_no_process() {
    let (dir, source) = system(|config| {
        config.capture = shell("trap '' TERM; sleep 60 & while :; do echo more; sleep 0.1; done");
    });
    let cx = Context::system();
    let limited = cx.within(Duration::from_millis(500));
    let e = capture(&limited, &source).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TimedOut);
    for _ in 0..100 {
        if processes_in(dir.path()).is_empty() {
            return;
        }
        cx.sleep(Duration::from_millis(100)).await.unwrap();
    }
    panic!("{:?}", processes_in(dir.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn restores_that_are_none() {
    let cx = Context::system();
    let kept = tempfile::tempdir().unwrap();
    let good = b"state of then\n";
    let large = [&good[..], &vec![b'x'; 1 << 20][..]].concat();
    let mut all = String::new();
    let mut try_it =
        async |what: &str, content: &[u8], overwrite: bool, change: fn(&mut CommandConfig)| {
            let (dir, source) = system(change);
            let recovery = kept.path().join(what.replace(' ', "-"));
            fs::create_dir(&recovery).unwrap();
            let e =
                restore(&cx, &source, overwrite.then_some(&recovery), content).await.unwrap_err();
            let shown = |text: &str| {
                let text = text.replace(recovery.to_str().unwrap(), "RECOVERY");
                text.replace(dir.path().to_str().unwrap(), "DIR")
            };
            let text = shown(&told(&dir, &e));
            let hint = match e.hint() {
                "" => String::new(),
                hint => format!("    hint: {}\n", shown(hint)),
            };
            let state = fs::read_to_string(dir.path().join("state")).unwrap_or_default();
            all += &format!("{what}\n    {text}{hint}    now: {}\n", state.trim_end());
        };
    try_it("something is there", good, false, |_| ()).await;
    try_it("nobody says", good, false, |config| config.empty.clear()).await;
    try_it("nobody knows", good, false, |config| config.empty = shell("exit 2")).await;
    try_it("no program", good, true, |config| config.restore.clear()).await;
    try_it("nothing to keep it with", good, true, |config| config.capture.clear()).await;
    try_it("it cannot be kept", good, true, |config| config.capture = shell("exit 1")).await;
    try_it("does not pass", b"something else\n", true, |_| ()).await;
    try_it("too short", b"", true, |_| ()).await;
    try_it("no end", good, true, |config| config.end = Some("-- done".to_owned())).await;
    try_it("half way", good, true, |config| {
        config.restore =
            shell("cat > state; grep -q now state || { echo not this one >&2; exit 4; }");
    })
    .await;
    try_it("always", good, true, |config| config.restore = shell("cat > state; exit 4")).await;
    try_it("takes a part", &large, true, |config| {
        config.restore = shell("head -c 10 > new; mv new state");
    })
    .await;
    // Less than a pipe holds.
    try_it("reads nothing", good, true, |config| config.restore = shell("sleep 0.1")).await;
    try_it("lies, and nothing proves it", good, true, |config| {
        config.repeatable = false;
        config.restore = shell("cat > state; grep -q then state && exit 4; echo other > state");
    })
    .await;
    try_it("lies", good, true, |config| {
        config.restore = shell("cat > state; grep -q then state && exit 4; echo other > state");
    })
    .await;
    try_it("never ends", good, true, |config| {
        config.restore = shell("cat > state; grep -q now state || exec sleep 60");
        config.timeout = Duration::from_secs(1);
    })
    .await;
    try_it("takes nothing", &large, true, |config| {
        config.restore = shell("exec sleep 60");
        config.timeout = Duration::from_secs(1);
    })
    .await;
    assert!(!all.contains(TOKEN), "{all}");
    assert_snapshot!(all, @"
    something is there
        `empty` says that there is something where the content is put back (target-not-empty, exit 11)
        hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
        now: state of now
    nobody says
        nobody says that there is nothing where the content is put back: `empty` names no program (target-not-empty, exit 11)
        hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
        now: state of now
    nobody knows
        `empty` failed: exit status: 2; it ends with 0 or 1 (program=sh) (program-failed, exit 1)
        now: state of now
    no program
        `restore` names no program (invalid-config, exit 2)
        hint: programs stand in the stack file, and are in no snapshot; or restore to a directory with --target
        now: state of now
    nothing to keep it with
        what is there cannot be kept: `capture` names no program (invalid-config, exit 2)
        now: state of now
    it cannot be kept
        what is there could not be kept, so it was left as it is: `capture` failed: exit status: 1 (program=sh) (program-failed, exit 1)
        hint: if it is worth nothing, have `empty` end with 0, or give the content to the program yourself: `snapkit dump SNAPSHOT:SOURCE | PROGRAM`
        now: state of now
    does not pass
        the content does not pass `check`: `check` failed: exit status: 1 (program=sh) (program-failed, exit 1)
        now: state of now
    too short
        the content is not whole: it is empty (corrupt, exit 4)
        hint: `snapkit verify --read-data` lists all damage
        now: state of now
    no end
        the content is not whole: the text that `end` wants near its end is not there (corrupt, exit 4)
        hint: `snapkit verify --read-data` lists all damage
        now: state of now
    half way
        `restore` failed: exit status: 4; the old state was put back (old_state=RECOVERY/app): `restore` failed: exit status: 4 (program=sh, said=not this one) (program-failed, exit 1)
        now: state of now
    always
        `restore` failed: exit status: 4; the old state could not be put back (old_state=RECOVERY/app, putting_back=`restore` failed: exit status: 4 (program=sh)): `restore` failed: exit status: 4 (program=sh) (program-failed, exit 1)
        hint: # with these variables as in the stack file: TOKEN; cd 'DIR'; sh -c 'cat > state; exit 4' < 'RECOVERY/app'
        now: state of now
    takes a part
        `restore` ended before it had taken all of the content; the old state could not be put back (old_state=RECOVERY/app): `restore` ended before it had taken all of the content (program-failed, exit 1)
        hint: # with these variables as in the stack file: TOKEN; cd 'DIR'; sh -c 'head -c 10 > new; mv new state' < 'RECOVERY/app'
        now: state of n
    reads nothing
        `restore` ended before it had taken all of the content; the old state could not be put back (old_state=RECOVERY/app): `restore` ended before it had taken all of the content (program-failed, exit 1)
        hint: # with these variables as in the stack file: TOKEN; cd 'DIR'; sh -c 'sleep 0.1' < 'RECOVERY/app'
        now: state of now
    lies, and nothing proves it
        `restore` failed: exit status: 4; the old state was given back to it, which ended well; nothing proves that it is there (old_state=RECOVERY/app): `restore` failed: exit status: 4 (program=sh) (program-failed, exit 1)
        now: other
    lies
        `restore` failed: exit status: 4; the old state could not be put back (old_state=RECOVERY/app): `restore` failed: exit status: 4 (program=sh) (program-failed, exit 1)
        hint: # with these variables as in the stack file: TOKEN; cd 'DIR'; sh -c 'cat > state; grep -q then state && exit 4; echo other > state' < 'RECOVERY/app'
        now: other
    never ends
        `restore` did not end within 1s and was ended; the old state was put back (old_state=RECOVERY/app): `restore` did not end within 1s and was ended (program=sh) (unavailable, exit 75)
        now: state of now
    takes nothing
        `restore` did not end within 1s and was ended; the old state could not be put back (old_state=RECOVERY/app, putting_back=`restore` did not end within 1s and was ended (program=sh)): `restore` did not end within 1s and was ended (program=sh) (unavailable, exit 75)
        hint: # with these variables as in the stack file: TOKEN; cd 'DIR'; sh -c 'exec sleep 60' < 'RECOVERY/app'
        now: state of now
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_is_kept() {
    let cx = Context::system();
    let (dir, source) = system(|_| ());
    let recovery = tempfile::tempdir().unwrap();
    let report = restore(&cx, &source, Some(recovery.path()), b"state of then\n").await.unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("state")).unwrap(), "state of then\n");
    assert_eq!(fs::read_to_string(recovery.path().join("app")).unwrap(), "state of now\n");
    let undo = report.undo.join("\n");
    let shown = undo
        .replace(recovery.path().to_str().unwrap(), "RECOVERY")
        .replace(dir.path().to_str().unwrap(), "DIR");
    assert_snapshot!(shown, @r#"
    # with these variables as in the stack file: TOKEN
    cd 'DIR'
    sh -c 'test "$TOKEN" && cat > new && mv new state' < 'RECOVERY/app'
    "#);
    let mut steps = std::process::Command::new("sh");
    assert!(steps.args(["-c", &undo]).env("TOKEN", "x").status().unwrap().success());
    assert_eq!(fs::read_to_string(dir.path().join("state")).unwrap(), "state of now\n");
}

/// A restore of what these are facts of.
async fn restore_of(
    cx: &Context,
    source: &Command,
    facts: &Facts,
    content: &[u8],
) -> RestoreReport {
    let mut record = SourceRecord::new(source.info());
    record.facts = facts.clone();
    let mut request = RestoreRequest::new(Target::Original, record);
    request.overwrite = true;
    let mut session = source.restore(cx, &request).await.unwrap();
    let name = ArtifactName::new("app").unwrap();
    let meta = ArtifactMeta::new(name, Shape::Bytes, "x", Chunking::Content);
    session.put(cx, &meta, Body::Bytes(body(content))).await.unwrap();
    session.finish(cx).await.unwrap()
}

/// What is answered the same before and after a capture is proven by a restore, and nothing else is.
#[tokio::test(flavor = "multi_thread")]
async fn answers_are_facts() {
    let cx = Context::system();
    let (dir, source) = system(|config| {
        config.repeatable = false;
        config.facts.insert("lines".to_owned(), shell("wc -l < state"));
        config.facts.insert("calls".to_owned(), shell("echo x >> calls; wc -l < calls"));
        config.facts.insert("word".to_owned(), shell("head -c 5 state"));
        config.facts.insert("broken".to_owned(), shell("exit 1"));
        config.facts.insert("endless".to_owned(), shell("yes"));
        config.facts.insert("version".to_owned(), shell("echo $TOKEN 15"));
        config.proof = ["lines", "calls", "word", "broken"].map(str::to_owned).to_vec();
    });
    let (content, facts) = capture(&cx, &source).await.unwrap();
    let shown: Vec<_> = facts
        .0
        .iter()
        .map(|(name, fact)| format!("{name} = {} ({:?})", fact.value, fact.standing))
        .collect();
    assert_snapshot!(shown.join("\n"), @"
    answer.broken = `facts` failed: exit status: 1 (program=sh) (Unknown)
    answer.calls = 2 (Observed)
    answer.endless = an answer has more than 4096 bytes (program=sh) (Unknown)
    answer.lines = 1 (Pinned)
    answer.version = … 15 (Observed)
    answer.word = state (Pinned)
    bytes = 13 (Pinned)
    digest = 44b10a407fd3d8fdc3bb69bb0a635c5dc7c0fc91549d03d5610e15e2d21f7049 (Pinned)
    ");
    let recovery = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("state"), "1\n2\n3\n").unwrap();
    let report = restore(&cx, &source, Some(recovery.path()), &content).await.unwrap();
    assert!(report.beside.is_empty() && !report.notes.is_empty(), "nothing is known: {report:?}");
    let report = restore_of(&cx, &source, &facts, &content).await;
    let mut of_content = facts.clone();
    of_content.0.retain(|name, _| !report.beside.contains(name));
    let comparison = of_content.compare(&report.facts);
    assert_eq!((comparison.verdict, comparison.proven), (RestoreVerdict::Match, 2));
    fs::write(dir.path().join("state"), "1\n2\n3\n").unwrap();
    let comparison = facts.compare(&source.facts(&cx).await.unwrap());
    assert_eq!(comparison.verdict, RestoreVerdict::Differs);
    assert_eq!(facts.0["answer.calls"].standing, Standing::Observed);
    let live = source.facts(&cx).await.unwrap();
    assert!(live.0.contains_key("answer.lines") && !live.0.contains_key("digest"));
}

/// Only what was promised is handed on.
#[tokio::test(flavor = "multi_thread")]
async fn surroundings_are_few() {
    let (_dir, source) = system(|config| {
        config.capture = shell("env | cut -d = -f 1 | sort");
        config.env.push("CARGO".to_owned());
    });
    let (content, _) = capture(&Context::system(), &source).await.unwrap();
    let known = "CARGO HOME LANG LC_ALL LC_CTYPE LOGNAME PATH PWD SHELL SHLVL OLDPWD TMPDIR TOKEN TZ USER _";
    let names = String::from_utf8(content).unwrap();
    assert!(names.lines().all(|name| known.split(' ').any(|k| k == name)), "{names}");
    assert!(names.contains("CARGO\n") && names.contains("TOKEN\n") && names.contains("PATH\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_place_is_a_directory() {
    let cx = Context::system();
    let (_dir, source) = system(|_| ());
    let record = SourceRecord::new(source.info());
    let url = Target::Url("postgres://elsewhere".to_owned());
    let refused = source.restore(&cx, &RestoreRequest::new(url, record.clone())).await;
    assert_eq!(refused.err().unwrap().reason(), Reason::Unsupported);
    // What a snapshot says is enough for it.
    let from_snapshot = serde_json::from_value(record.settings.clone()).unwrap();
    let other = command(from_snapshot);
    let place = tempfile::tempdir().unwrap();
    let target = Target::Directory(place.path().to_owned());
    let mut session = other.restore(&cx, &RestoreRequest::new(target, record)).await.unwrap();
    let name = ArtifactName::new("app").unwrap();
    let meta = ArtifactMeta::new(name, Shape::Bytes, "x", Chunking::Content);
    session.put(&cx, &meta, Body::Bytes(body(b"state of then\n"))).await.unwrap();
    session.finish(&cx).await.unwrap();
    assert_eq!(fs::read(place.path().join("app")).unwrap(), b"state of then\n");
}

/// Whatever a snapshot says is started, is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_names_no_program() {
    let cx = Context::system();
    let (dir, source) = system(|_| ());
    let mut settings = source.info().settings.clone();
    let evil = serde_json::json!(["sh", "-c", format!("touch {}/evil", dir.path().display())]);
    for name in ["capture", "restore", "check", "empty"] {
        settings[name] = evil.clone();
    }
    settings["facts"] = serde_json::json!({ "x": evil });
    settings["variables"] = serde_json::json!({ "PATH": "/evil" });
    let mut registry = Registry::new();
    snapkit_source_command::register(&mut registry);
    let mut record = SourceRecord::new(source.info());
    record.settings = settings;
    let built = registry.build_captured("shop", &record).unwrap();
    assert!(built.capture(&cx, None).await.is_err());
    assert!(built.restore(&cx, &RestoreRequest::new(Target::Original, record)).await.is_err());
    assert!(built.facts(&cx).await.unwrap().0.is_empty());
    let meta =
        ArtifactMeta::new(ArtifactName::new("app").unwrap(), Shape::Bytes, "x", Chunking::Content);
    let checked = built.check(&cx, &meta, Body::Bytes(body(b"content"))).await.unwrap();
    assert!(checked.0.is_empty());
    assert!(!dir.path().join("evil").exists());
}

/// Each restore keeps what it replaces, and nothing of what another has kept is touched.
#[tokio::test(flavor = "multi_thread")]
async fn old_states_are_kept_side_by_side() {
    let cx = Context::system();
    let (dir, source) = system(|_| ());
    let recovery = tempfile::tempdir().unwrap();
    let kept = || {
        let mut names: Vec<_> = fs::read_dir(recovery.path()).unwrap().flatten().collect();
        names.sort_by_key(fs::DirEntry::file_name);
        let line = |e: &fs::DirEntry| {
            let state = fs::read_to_string(e.path()).unwrap();
            format!("{}: {}", e.file_name().display(), state.trim_end())
        };
        names.iter().map(line).collect::<Vec<_>>()
    };
    for content in ["state of one\n", "state of two\n"] {
        restore(&cx, &source, Some(recovery.path()), content.as_bytes()).await.unwrap();
    }
    let both = ["app: state of now", "app.1: state of one"];
    assert_eq!(kept(), both);
    // One that fails before anything was changed keeps nothing, and one that fails later what it must.
    fs::remove_file(dir.path().join("state")).unwrap();
    restore(&cx, &source, Some(recovery.path()), b"something else\n").await.unwrap_err();
    assert_eq!(kept(), both);
}

/// A restore that is given up puts back what it had begun to replace.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_restore_puts_back() {
    let cx = Context::system();
    let (dir, source) = system(|config| {
        config.restore = shell(
            "head -c 3 > state; grep -q sta state; cat > rest; if grep -q then rest; then sleep 60; fi; cat rest >> state; rm rest",
        );
    });
    let recovery = tempfile::tempdir().unwrap();
    let limited = cx.within(Duration::from_millis(700));
    let e =
        restore(&limited, &source, Some(recovery.path()), b"state of then\n").await.unwrap_err();
    assert!(e.message().contains("the old state was put back"), "{}", e.chain());
    assert_eq!(e.reason(), Reason::TimedOut);
    assert_eq!(fs::read_to_string(dir.path().join("state")).unwrap(), "state of now\n");
}

/// A secret in any form that a program says it in.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_taken_out() {
    let (dir, source) = system(|config| {
        let secrets = [
            ("A_SHORT", "hunter2"),
            ("LONG", "hunter2-longer-part"),
            ("SPACE", "trailing-space "),
            ("KEY", "-----BEGIN-----\nline-of-a-key"),
        ];
        for (name, value) in secrets {
            config.variables.insert(name.to_owned(), Secret::new(value.to_owned()));
        }
        // Five lines, as many as are remembered.
        let say = shell("printf '%s\\n' \"$LONG\" \"$SPACE\" \"$KEY\" \"$A_SHORT\" >&2; exit 1");
        config.facts.insert("who".to_owned(), shell("echo pw=$A_SHORT"));
        config.restore = say.clone();
    });
    let cx = Context::system();
    let facts = source.facts(&cx).await.unwrap();
    assert_eq!(facts.0["answer.who"].value.to_string(), "pw=…");
    let recovery = tempfile::tempdir().unwrap();
    let e = restore(&cx, &source, Some(recovery.path()), b"state of then\n").await.unwrap_err();
    let text = told(&dir, &e);
    assert!(text.contains("… | … | … | … | …"), "{text}");
    for part in ["hunter2", "longer", "trailing", "line-of", "BEGIN"] {
        assert!(!text.contains(part), "{text}");
    }
}

/// What comes where there was nothing, while the content is on its way, is not overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn what_appears_meanwhile_stays() {
    let cx = Context::system();
    let (dir, source) = system(|_| ());
    fs::remove_file(dir.path().join("state")).unwrap();
    let request = RestoreRequest::new(Target::Original, SourceRecord::new(source.info()));
    let mut session = source.restore(&cx, &request).await.unwrap();
    let name = ArtifactName::new("app").unwrap();
    let meta = ArtifactMeta::new(name, Shape::Bytes, "x", Chunking::Content);
    session.put(&cx, &meta, Body::Bytes(body(b"state of then\n"))).await.unwrap();
    fs::write(dir.path().join("state"), "state of somebody\n").unwrap();
    let e = session.finish(&cx).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TargetNotEmpty);
    assert_eq!(fs::read_to_string(dir.path().join("state")).unwrap(), "state of somebody\n");
}
