//! What is refused, and in which words: one line per command, then all that the program says of it.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;

use insta::assert_snapshot;

use crate::support::{CommandOutput, TestEnv, said};

#[test]
fn arguments_that_mean_nothing() {
    let env = TestEnv::with_snapshot();
    assert_snapshot!(said(&env, &[
        "find ''",
        "list --last 0",
        "list --verdict odd",
        "list --since yesterday",
        "history --command prune",
        "doctor --max-growth half",
        "doctor --max-age never",
        "verify --requests 0",
        "verify --limit-download 0",
        "verify --limit-upload fast",
        "show first:\\q",
        "show first:\\xff",
        "list --repo s3:///backups",
        "list --repo s3://backups/../a",
        "list --repo s3",
    ]), @r#"
    $ snapkit find ''
    --- stderr
    error: an empty glob would match everything
    --- exit 2
    $ snapkit list --last 0
    --- stderr
    error: --last 0 would take nothing
    --- exit 2
    $ snapkit list --verdict odd
    --- stderr
    error: --verdict is complete or partial, not "odd"
    --- exit 2
    $ snapkit list --since yesterday
    --- stderr
    error: not a time such as 2026-01-15T14:30Z: "yesterday"
    --- exit 2
    $ snapkit history --command prune
    --- stderr
    error: --command is create, restore or verify, not "prune"
    --- exit 2
    $ snapkit doctor --max-growth half
    --- stderr
    error: --max-growth is a number of per cent such as 50%, not "half"
    --- exit 2
    $ snapkit doctor --max-age never
    --- stderr
    error: not a duration such as 10s, 500ms or 2m: "never" (option=--max-age)
    --- exit 2
    $ snapkit verify --requests 0
    --- stderr
    error: --requests 0 would never end
    --- exit 2
    $ snapkit verify --limit-download 0
    --- stderr
    error: --limit-download 0 would never end
    --- exit 2
    $ snapkit verify --limit-upload fast
    --- stderr
    error: not a size such as 256MiB: "fast" (option=--limit-upload)
    --- exit 2
    $ snapkit show first:\q
    --- stderr
    error: a backslash begins \xNN or \\ (given=first:\q)
    --- exit 2
    $ snapkit show first:\xff
    --- stderr
    error: the name of a source is not valid UTF-8 (given=first:\xff)
    --- exit 2
    $ snapkit list --repo s3:///backups
    --- stderr
    error: the URL names no bucket: write s3://BUCKET/PREFIX
    --- exit 2
    $ snapkit list --repo s3://backups/../a
    --- stderr
    error: the URL's path has empty, relative or odd parts: write s3://BUCKET/PREFIX
      caused by: Error parsing Path "../a": Encountered illegal character sequence ".." whilst parsing path segment ".."
    --- exit 2
    $ snapkit list --repo s3
    --- stderr
    error: there is no such directory (path=[DIR]/work/s3)
      caused by: No such file or directory (os error 2)
    hint: create one with `snapkit init`, or check the path or URL
    --- exit 10
    "#);
    assert_snapshot!(said(&env, &[
        "create --stdin dump.sql data",
        "create --exclude *.x data/a.txt/../../app.db",
        "create --name latest data",
        "create --name @noon data",
        "create --name a:b data",
        "create --tag novalue data",
        "create --tag =x data",
        "create --level 30 data",
        "create nothing-here",
        "create --files-from nothing-here",
        "create",
    ]), @r#"
    $ snapkit create --stdin dump.sql data
    --- stderr
    error: --stdin captures standard input, and no paths
    --- exit 2
    $ snapkit create --exclude *.x data/a.txt/../../app.db
    --- stderr
    error: cannot examine a path (path=data/a.txt/../../app.db)
      caused by: Not a directory (os error 20)
    --- exit 1
    $ snapkit create --name latest data
    --- stderr
    error: not a name for a snapshot: "latest"; it may not be `latest`, begin with `@` or hold `:`, `/`, `\` or control characters
    --- exit 2
    $ snapkit create --name @noon data
    --- stderr
    error: not a name for a snapshot: "@noon"; it may not be `latest`, begin with `@` or hold `:`, `/`, `\` or control characters
    --- exit 2
    $ snapkit create --name a:b data
    --- stderr
    error: not a name for a snapshot: "a:b"; it may not be `latest`, begin with `@` or hold `:`, `/`, `\` or control characters
    --- exit 2
    $ snapkit create --tag novalue data
    --- stderr
    error: a tag is KEY=VALUE, not "novalue"
    --- exit 2
    $ snapkit create --tag =x data
    --- stderr
    error: a tag is KEY=VALUE, not "=x"
    --- exit 2
    $ snapkit create --level 30 data
    --- stderr
    error: unexpected argument '--level' found

      tip: to pass '--level' as a value, use '-- --level'

    Usage: snapkit create [OPTIONS] [PATH]...

    For more information, try '--help'.
    --- exit 2
    $ snapkit create nothing-here
    --- stderr
    error: there is nothing at this path (path=nothing-here)
    --- exit 1
    $ snapkit create --files-from nothing-here
    --- stderr
    error: cannot read the list of paths nothing-here
      caused by: No such file or directory (os error 2)
    --- exit 1
    $ snapkit create
    --- stderr
    error: there is nothing to capture: name paths, or a stack file with --stack
    --- exit 2
    "#);
    assert_snapshot!(said(&env, &[
        "restore latest --target out --include ''",
        "restore latest --target out --include '['",
        "restore latest --target data/a.txt",
        "restore latest:files/tree/none --target out",
        "restore latest:none --target out",
        "restore latest~1 --target out",
        "restore @2001-01-01 --target out",
        "restore @noon --target out",
        "restore : --target out",
        "restore latest:files/\\q --target out",
    ]), @r#"
    $ snapkit restore latest --target out --include ''
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: an empty glob would match everything
    --- exit 2
    $ snapkit restore latest --target out --include '['
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: not a glob: "["
      caused by: error parsing glob '**/[': unclosed character class; missing ']'
    --- exit 2
    $ snapkit restore latest --target data/a.txt
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: cannot create the directory [DIR]/work/data/a.txt/files
      caused by: Not a directory (os error 20)
    --- exit 1
    $ snapkit restore latest:files/tree/none --target out
    --- stderr
    snapshot [SNAPSHOT] of data-[HEX]@box, [TIME]
    error: there is no "none" in files/tree
    hint: paths are whole, from the root directory on: `snapkit ls -R` shows them
    --- exit 1
    $ snapkit restore latest:none --target out
    --- stderr
    error: the snapshot has no source none; it has: files (snapshot=[SNAPSHOT])
    --- exit 1
    $ snapkit restore latest~1 --target out
    --- stderr
    error: there is no snapshot latest~1 (among=any stack, host box, set full)
    hint: there is 1 snapshot among these; `snapkit list` shows all
    --- exit 1
    $ snapkit restore @2001-01-01 --target out
    --- stderr
    error: there is no snapshot of 2001-01-01 or before (among=any stack, host box, set full)
    hint: there is 1 snapshot among these; `snapkit list` shows all
    --- exit 1
    $ snapkit restore @noon --target out
    --- stderr
    error: not a time such as 2026-01-15T14:30Z: "noon"
    --- exit 2
    $ snapkit restore : --target out
    --- stderr
    error: a snapshot must be named: SNAPSHOT[:SOURCE[/ARTIFACT[/PATH]]] (given=:)
    --- exit 2
    $ snapkit restore latest:files/\q --target out
    --- stderr
    error: a backslash begins \xNN or \\ (given=latest:files/\q)
    --- exit 2
    "#);
    assert_snapshot!(said(&env, &[
        "show latest:files",
        "show nobody",
        "tag latest:files a=b",
        "tag latest a=b --remove a",
        "tag latest --remove none",
        "diff latest latest:files",
        "diff latest:none",
        "dump latest",
        "dump latest:files",
        "dump latest:files/tree",
        "dump latest:files/none",
        "ls latest:files/none/x",
        "verify latest:files/tree",
        "verify latest:none",
    ]), @r#"
    $ snapkit show latest:files
    --- stderr
    error: a whole snapshot is shown: name it without a source (given=latest:files)
    --- exit 2
    $ snapkit show nobody
    --- stderr
    error: there is no snapshot "nobody"
    hint: `snapkit list` shows the snapshots there are
    --- exit 1
    $ snapkit tag latest:files a=b
    --- stderr
    error: whole snapshots have tags: name it without a source
    --- exit 2
    $ snapkit tag latest a=b --remove a
    --- stderr
    error: the tag a is to be set and removed at once
    --- exit 2
    $ snapkit tag latest --remove none
    --- stderr
    error: the snapshot has no tag none (snapshot=[SNAPSHOT])
    --- exit 2
    $ snapkit diff latest latest:files
    --- stderr
    error: the second snapshot is named without a source (given=latest:files)
    --- exit 2
    $ snapkit diff latest:none
    --- stderr
    error: the snapshot has no source none; it has: files (snapshot=[SNAPSHOT])
    --- exit 1
    $ snapkit dump latest
    --- stderr
    error: what to write must be named: SNAPSHOT:SOURCE[/ARTIFACT][/PATH] (given=latest)
    --- exit 2
    $ snapkit dump latest:files
    --- stderr
    error: this is a tree: name a file in it, or use `snapkit restore` (given=latest:files)
    --- exit 2
    $ snapkit dump latest:files/tree
    --- stderr
    error: this is a tree: name a file in it, or use `snapkit restore` (given=latest:files/tree)
    --- exit 2
    $ snapkit dump latest:files/none
    --- stderr
    error: there is no "none" in files/tree
    hint: paths are whole, from the root directory on: `snapkit ls -R` shows them
    --- exit 1
    $ snapkit ls latest:files/none/x
    --- stderr
    error: there is no "none/x" in files/tree
    hint: paths are whole, from the root directory on: `snapkit ls -R` shows them
    --- exit 1
    $ snapkit verify latest:files/tree
    --- stderr
    error: whole sources are verified: name no artifact (snapshot=latest)
    --- exit 2
    $ snapkit verify latest:none
    --- stderr
    error: the snapshot has no source none; it has: files (snapshot=[SNAPSHOT])
    --- exit 1
    "#);
}

#[test]
fn artifacts_that_are_no_trees() {
    let env = TestEnv::with_repository();
    env.database("work/app.db", 3);
    assert!(env.run(["create", "-q", "app.db"]).is_success());
    assert_snapshot!(said(&env, &[
        "ls latest:app/none/x",
        "ls latest:app/app.db/x",
        "dump latest:app/app.db/x",
        "restore latest:app/app.db/x --target out",
    ]), @"
    $ snapkit ls latest:app/none/x
    --- stderr
    error: the source app has no artifact none; it has: app.db
    --- exit 1
    $ snapkit ls latest:app/app.db/x
    --- stderr
    error: the artifact app.db is no tree, it has nothing inside
    --- exit 1
    $ snapkit dump latest:app/app.db/x
    --- stderr
    error: artifact app.db is no tree
    --- exit 2
    $ snapkit restore latest:app/app.db/x --target out
    --- stdout
    app (sqlite): unproven, 8.0 KiB to [DIR]/work/out/app
      unproven: a part of a snapshot has no facts of its own
    --- stderr
    snapshot [SNAPSHOT] of app.db-[HEX]@box, [TIME]
    unproven in [DURATION]
    --- exit 0
    ");
}

#[test]
fn places_that_are_no_repositories() {
    let mut env = TestEnv::new();
    env.write("work/file", "x");
    fs::create_dir(env.path("work/empty")).unwrap();
    assert_snapshot!(said(&env, &[
        "list -r ''",
        "list -r file://",
        "list -r file://server/backups",
        "list -r file:///a?b",
        "list -r file:///a#b",
        "list -r file:///a%zz",
        "list -r file:///a%00",
        "list -r memory://shop",
        "list -r memory://",
        "list -r ftp://user:secret@host/x",
        "list -r s3://",
        "list -r file",
        "list -r empty",
        "list -r nothing-here",
        "init -r file",
    ]), @"
    $ snapkit list -r ''
    --- stderr
    error: the repository's path or URL is empty
    --- exit 2
    $ snapkit list -r file://
    --- stderr
    error: the file URL has no path: write file:///PATH
    --- exit 2
    $ snapkit list -r file://server/backups
    --- stderr
    error: a file URL names no other host: write file:///PATH with three slashes, or a plain path (host=server)
    --- exit 2
    $ snapkit list -r file:///a?b
    --- stderr
    error: a file URL has no query: write %3F for '?'
    --- exit 2
    $ snapkit list -r file:///a#b
    --- stderr
    error: a file URL has no fragment: write %23 for '#'
    --- exit 2
    $ snapkit list -r file:///a%zz
    --- stderr
    error: two hexadecimal digits follow a % in a URL; write %25 for a % itself (path=/a%zz)
    --- exit 2
    $ snapkit list -r file:///a%00
    --- stderr
    error: a path holds no zero byte
    --- exit 2
    $ snapkit list -r memory://shop
    --- stderr
    error: a repository in memory has no name: write memory://
    --- exit 2
    $ snapkit list -r memory://
    --- stderr
    error: there is no snapkit repository here (location=memory://)
    hint: create one with `snapkit init`, or check the path or URL
    --- exit 10
    $ snapkit list -r ftp://user:secret@host/x
    --- stderr
    error: repositories at ftp:// URLs are not known here; known are a path, file:///PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX and memory://
    --- exit 1
    $ snapkit list -r s3://
    --- stderr
    error: the URL names no bucket: write s3://BUCKET/PREFIX
    --- exit 2
    $ snapkit list -r file
    --- stderr
    error: this is not a directory (path=[DIR]/work/file)
      caused by: Not a directory (os error 20)
    --- exit 2
    $ snapkit list -r empty
    --- stderr
    error: there is no snapkit repository here (location=[DIR]/work/empty)
    hint: create one with `snapkit init`, or check the path or URL
    --- exit 10
    $ snapkit list -r nothing-here
    --- stderr
    error: there is no such directory (path=[DIR]/work/nothing-here)
      caused by: No such file or directory (os error 2)
    hint: create one with `snapkit init`, or check the path or URL
    --- exit 10
    $ snapkit init -r file
    --- stderr
    error: this is not a directory (path=[DIR]/work/file)
      caused by: Not a directory (os error 20)
    --- exit 2
    ");
    env.unset("SNAPKIT_REPO");
    assert_snapshot!(said(&env, &["list", "create file"]), @"
    $ snapkit list
    --- stderr
    error: no repository is named: use --repo, SNAPKIT_REPO, or `[repo] url` in a stack file
    --- exit 2
    $ snapkit create file
    --- stderr
    error: no repository is named: use --repo, SNAPKIT_REPO, or `[repo] url` in a stack file
    --- exit 2
    ");
}

#[test]
fn surroundings_that_are_wrong() {
    let env = TestEnv::with_snapshot();
    env.write("work/words", "FINE=1\nnot an assignment with a secret\n");
    env.write("work/long", "#".repeat(2 << 20));
    assert_snapshot!(said(&env, &[
        "list --env-file nothing-here",
        "list --env-file words",
        "list --env-file long",
        "list -s nothing-here",
        "list --key-file nothing-here",
        "list --key-file words",
    ]), @"
    $ snapkit list --env-file nothing-here
    --- stderr
    error: cannot read nothing-here
      caused by: No such file or directory (os error 2)
    --- exit 1
    $ snapkit list --env-file words
    --- stderr
    error: a line is not NAME=VALUE (file=words:2)
    --- exit 2
    $ snapkit list --env-file long
    --- stderr
    error: the file has more than 1048576 bytes (file=long)
    --- exit 1
    $ snapkit list -s nothing-here
    --- stderr
    error: cannot read [DIR]/work/nothing-here
      caused by: No such file or directory (os error 2)
    --- exit 1
    $ snapkit list --key-file nothing-here
    --- stderr
    error: the key file does not exist (path=[DIR]/work/nothing-here)
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    $ snapkit list --key-file words
    --- stderr
    warning: others may read the key file [DIR]/work/words; `chmod 600` makes it private
    error: a line of the key file is not an age identity (AGE-SECRET-KEY-1…) (tried=key file [DIR]/work/words, key file [DIR]/home/.config/snapkit/[HEX].key)
    hint: give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)
    --- exit 12
    ");
    let mut odd = env.command(["list"]);
    odd.env("SNAPKIT_PASSPHRASE", OsStr::from_bytes(b"\xff secret"));
    fs::rename(env.path("home/.config"), env.path("home/elsewhere")).unwrap();
    let odd = CommandOutput::from(odd.output().unwrap());
    assert_snapshot!(odd, @"
    --- stderr
    error: the variable SNAPKIT_PASSPHRASE is not valid UTF-8
    --- exit 2
    ");
}

#[test]
fn a_repository_with_other_things_in_it() {
    let env = TestEnv::with_snapshot();
    let config = env.path("repo/config");
    let before = fs::read(&config).unwrap();
    fs::remove_file(&config).unwrap();
    symlink("elsewhere", &config).unwrap();
    assert_snapshot!(said(&env, &["list"]), @"
    $ snapkit list
    --- stderr
    error: a symbolic link is in the way, and none is followed inside a repository; move the files in its place, or mount them there (path=[DIR]/repo/config)
    --- exit 1
    ");
    fs::remove_file(&config).unwrap();
    fs::create_dir(&config).unwrap();
    assert_snapshot!(said(&env, &["list"]), @"
    $ snapkit list
    --- stderr
    error: packs/ and snapshots/ are here, but config is gone (location=[DIR]/repo)
    hint: put the file config back from a copy; a new repository could not read what is here
    --- exit 4
    ");
    fs::remove_dir(&config).unwrap();
    fs::write(&config, "{}").unwrap();
    assert_snapshot!(said(&env, &["list"]), @"
    $ snapkit list
    --- stderr
    error: the repository's config is damaged: it does not say what a config says (location=[DIR]/repo)
      caused by: missing field `format` at line 1 column 2
    hint: put the file config back from a copy: without it nothing can be read
    --- exit 4
    ");
    fs::write(&config, &before[..before.len() / 2]).unwrap();
    assert_snapshot!(said(&env, &["list"]), @"
    $ snapkit list
    --- stderr
    error: the repository's config is damaged: it does not say what a config says (location=[DIR]/repo)
      caused by: EOF while parsing a string at line 1 column 224
    hint: put the file config back from a copy: without it nothing can be read
    --- exit 4
    ");
    fs::write(&config, &before).unwrap();
    for key in env.files("repo/keys", ".age") {
        fs::remove_file(key).unwrap();
    }
    assert_snapshot!(said(&env, &["list"]), @"
    $ snapkit list
    --- stderr
    error: the repository has no credential left under keys/ (location=[DIR]/repo)
    hint: put the files of keys/ back from a copy: without one of them nothing can be read
    --- exit 4
    ");
    fs::remove_dir_all(env.path("repo/packs")).unwrap();
    assert_snapshot!(said(&env, &["list"]), @"
    $ snapkit list
    --- stderr
    error: the repository has no credential left under keys/ (location=[DIR]/repo)
    hint: put the files of keys/ back from a copy: without one of them nothing can be read
    --- exit 4
    ");
}

#[test]
fn databases_that_cannot_be_put_there() {
    let env = TestEnv::with_repository();
    env.database("work/app.db", 3);
    assert!(env.run(["create", "-q", "app.db"]).is_success());
    let in_out = "work/out/app/app.db";
    fs::create_dir_all(env.path(in_out)).unwrap();
    assert_snapshot!(said(&env, &[
        "restore latest --target out",
        "restore latest --target out --overwrite",
    ]), @"
    $ snapkit restore latest --target out
    --- stderr
    snapshot [SNAPSHOT] of app.db-[HEX]@box, [TIME]
    error: something that is no file stands where the database has to be (path=[DIR]/work/out/app/app.db, source=app)
    --- exit 11
    $ snapkit restore latest --target out --overwrite
    --- stderr
    snapshot [SNAPSHOT] of app.db-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    error: something that is no file stands where the database has to be (path=[DIR]/work/out/app/app.db, source=app)
    --- exit 11
    ");
    fs::remove_dir(env.path(in_out)).unwrap();
    symlink("../../app.db", env.path(in_out)).unwrap();
    assert_snapshot!(said(&env, &["restore latest --target out --overwrite"]), @"
    $ snapkit restore latest --target out --overwrite
    --- stderr
    snapshot [SNAPSHOT] of app.db-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    error: the target is a symbolic link, which is not followed out of the directory of a restore (path=[DIR]/work/out/app/app.db, source=app)
    --- exit 11
    ");
    fs::remove_file(env.path("work/app.db")).unwrap();
    symlink("nowhere", env.path("work/app.db")).unwrap();
    assert_snapshot!(said(&env, &["restore latest --overwrite"]), @"
    $ snapkit restore latest --overwrite
    --- stderr
    snapshot [SNAPSHOT] of app.db-[HEX]@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    error: the target is a symbolic link that leads nowhere; remove it (path=[DIR]/work/app.db, source=app)
      caused by: No such file or directory (os error 2)
    --- exit 2
    ");
}

#[test]
fn databases_that_cannot_be_captured() {
    let env = TestEnv::with_repository();
    fs::create_dir(env.path("work/dir.db")).unwrap();
    env.write("work/text.db", "this is no database ".repeat(100));
    env.write("work/empty.db", "");
    env.write("work/snapkit.toml", "[sources.app]\nkind = \"sqlite\"\npath = \"dir.db\"\n");
    assert_snapshot!(said(&env, &["create"]), @"
    $ snapkit create
    --- stderr
    error: not a SQLite database: it is not a file (path=[DIR]/work/dir.db, source=app)
    --- exit 2
    ");
    env.write("work/snapkit.toml", "[sources.app]\nkind = \"sqlite\"\npath = \"text.db\"\n");
    assert_snapshot!(said(&env, &["create"]), @"
    $ snapkit create
    --- stderr
    error: not a SQLite database, or an encrypted one (path=[DIR]/work/text.db, source=app)
    --- exit 2
    ");
    env.write("work/snapkit.toml", "[sources.app]\nkind = \"sqlite\"\npath = \"none.db\"\n");
    assert_snapshot!(said(&env, &["create"]), @"
    $ snapkit create
    --- stderr
    error: there is no database; check its path (path=[DIR]/work/none.db, source=app)
    --- exit 1
    ");
    env.write(
        "work/snapkit.toml",
        "[sources.app]\nkind = \"sqlite\"\npath = \"app.db\"\nbusy_timeout = \"2d\"\n",
    );
    assert_snapshot!(said(&env, &["create"]), @r#"
    $ snapkit create
    --- stderr
    error: `busy_timeout`: must be seconds, or text such as "10s", at most a day (source=app, file=[DIR]/work/snapkit.toml:4)
    --- exit 2
    "#);
    let mut text = String::new();
    for path in ["3", "{ escaped = \"\\\\q\" }"] {
        env.write(
            "work/snapkit.toml",
            format!("[sources.app]\nkind = \"sqlite\"\npath = {path}\n"),
        );
        text += &said(&env, &["create"]);
    }
    assert_snapshot!(text, @r#"
    $ snapkit create
    --- stderr
    error: `path` must be text or { escaped = TEXT } (source=app, file=[DIR]/work/snapkit.toml:3)
    --- exit 2
    $ snapkit create
    --- stderr
    error: `path`: not an escaped path: "\\q" (source=app, file=[DIR]/work/snapkit.toml:3)
    --- exit 2
    "#);
    env.database("work/app.db", 3);
    env.write(
        "work/snapkit.toml",
        "[sources.app]\nkind = \"sqlite\"\npath = \"app.db\"\nbusy_timeout = \"100ms\"\n",
    );
    let db = rusqlite::Connection::open(env.path("work/app.db")).unwrap();
    db.execute_batch("BEGIN EXCLUSIVE; INSERT INTO t VALUES (9)").unwrap();
    assert_snapshot!(said(&env, &["create"]), @"
    $ snapkit create
    --- stderr
    error: cannot read the database: another connection holds a lock on the database; stop that program or try again later (path=[DIR]/work/app.db, held_by=[PROGRAM], source=app)
      caused by: database is locked
      caused by: Error code 5: database is locked
    --- exit 75
    ");
}

#[test]
fn files_that_cannot_be_captured() {
    let env = TestEnv::with_repository();
    env.sample();
    let mut text = String::new();
    for settings in [
        "paths = []",
        "paths = [\"data\"]\nexclude = [\"[\"]",
        "paths = [\"none\"]",
        "paths = [3]",
        "paths = [{ escaped = \"\\\\q\" }]",
        "path = \"data\"",
        "",
    ] {
        env.write("work/snapkit.toml", format!("[sources.files]\nkind = \"files\"\n{settings}\n"));
        writeln!(text, "{settings}\n{}", said(&env, &["create"])).unwrap();
    }
    assert_snapshot!(text, @r#"
    paths = []
    $ snapkit create
    --- stderr
    error: `paths` names nothing to capture (source=files, file=[DIR]/work/snapkit.toml:3)
    --- exit 2

    paths = ["data"]
    exclude = ["["]
    $ snapkit create
    --- stderr
    error: `exclude`: not a pattern: "[" (source=files, file=[DIR]/work/snapkit.toml:4)
    --- exit 2

    paths = ["none"]
    $ snapkit create
    --- stderr
    error: what is to be captured does not exist (path=[DIR]/work/none, source=files)
    --- exit 1

    paths = [3]
    $ snapkit create
    --- stderr
    error: `paths`: each path is text, or `{ escaped = "…" }` (source=files, file=[DIR]/work/snapkit.toml:3)
    --- exit 2

    paths = [{ escaped = "\\q" }]
    $ snapkit create
    --- stderr
    error: `paths`: not an escaped path: "\\q" (source=files, file=[DIR]/work/snapkit.toml:3)
    --- exit 2

    path = "data"
    $ snapkit create
    --- stderr
    error: unknown key `path`; did you mean `paths`? (source=files, file=[DIR]/work/snapkit.toml:3)
    --- exit 2


    $ snapkit create
    --- stderr
    error: missing field `paths` (source=files, file=[DIR]/work/snapkit.toml:1)
    --- exit 2
    "#);
}

#[test]
fn streams_that_cannot_be_put_there() {
    let env = TestEnv::with_repository();
    env.write("work/words", "some words\n");
    let mut create = env.command(["create", "-q", "--stdin", "words"]);
    create.stdin(fs::File::open(env.path("work/words")).unwrap());
    assert!(create.status().unwrap().success());
    env.write("work/out/words/words", "others\n");
    assert_snapshot!(said(&env, &["restore latest --target out", "restore latest"]), @"
    $ snapkit restore latest --target out
    --- stderr
    snapshot [SNAPSHOT] of stdin-words@box, [TIME]
    error: something is there already (path=[DIR]/work/out/words/words, source=words)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    $ snapkit restore latest
    --- stderr
    snapshot [SNAPSHOT] of stdin-words@box, [TIME]
    error: a stream has no original place: restore it with --target, or have it with `snapkit dump` (source=words)
    --- exit 1
    ");
    fs::remove_file(env.path("work/out/words/words")).unwrap();
    fs::create_dir(env.path("work/out/words/words")).unwrap();
    assert_snapshot!(said(&env, &["restore latest --target out --overwrite"]), @"
    $ snapkit restore latest --target out --overwrite
    --- stderr
    snapshot [SNAPSHOT] of stdin-words@box, [TIME]
    what is replaced is kept in [DIR]/home/.local/state/snapkit/recovery/before-[HEX]
    error: a directory stands where a file has to be (path=[DIR]/work/out/words/words, source=words)
    --- exit 11
    ");
}

#[test]
fn an_answer_that_nobody_can_take() {
    let env = TestEnv::with_snapshot();
    let file = format!("latest:files/tree/{}", env.in_tree("data/a.txt"));
    for args in [&["list"][..], &["--json", "list"], &["dump", &file]] {
        let mut command = env.command(args);
        command.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

/// What is wrong with one line is said, and the rest goes on.
#[test]
fn lines_of_a_ledger_that_are_not_as_they_were() {
    let env = TestEnv::with_snapshot();
    assert!(env.run(["tag", "latest", "a=b"]).is_success());
    assert!(env.run(["create", "-q", "data", "--name", "second"]).is_success());
    for note in env.files("repo/notes", "") {
        let mut bytes = fs::read(&note).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&note, bytes).unwrap();
    }
    assert_snapshot!(said(&env, &["list"]), @"
    $ snapkit list
    --- stdout
    ID        TIME                  SET   STACK@HOST         NAME    SIZE  VERDICT
    [HEX]  [TIME]  full  data-[HEX]@box  second  10 B  complete
    [HEX]  [TIME]  full  data-[HEX]@box  first   10 B  complete
    --- stderr
    warning: a change of a snapshot's tags is damaged and left out (notes/[SNAPSHOT]/[HEX]-[HEX]): a signature does not hold
    --- exit 4
    ");
    let shown = env.run(["--json", "show", "first"]).json();
    let line = env.path("repo/snapshots").join(shown["id"].as_str().unwrap());
    let first = fs::read(&line).unwrap();
    fs::remove_file(&line).unwrap();
    assert_snapshot!(said(&env, &["list"]), @"
    $ snapkit list
    --- stdout
    ID        TIME                  SET   STACK@HOST         NAME    SIZE  VERDICT
    [HEX]  [TIME]  full  data-[HEX]@box  second  10 B  complete
    --- stderr
    warning: a change of a snapshot's tags is damaged and left out (notes/[SNAPSHOT]/[HEX]-[HEX]): a signature does not hold
    warning: the snapshot [SNAPSHOT] was here and is gone without a trace: an old copy of the repository was put back, it was made in a copy, or somebody removed it
    --- exit 4
    ");
    // Somebody who was never here is told by the snapshot that came after it.
    fs::rename(env.path("home/.local/state"), env.path("home/state")).unwrap();
    assert_snapshot!(said(&env, &["list", "show first", "show latest --host elsewhere", "doctor"]), @r#"
    $ snapkit list
    --- stdout
    ID        TIME                  SET   STACK@HOST         NAME    SIZE  VERDICT
    [HEX]  [TIME]  full  data-[HEX]@box  second  10 B  complete
    --- stderr
    warning: a change of a snapshot's tags is damaged and left out (notes/[SNAPSHOT]/[HEX]-[HEX]): a signature does not hold
    warning: the snapshot [SNAPSHOT] is gone without a trace, and another one came after it: an old copy of the repository was put back, it was made in a copy, or somebody removed it
    --- exit 4
    $ snapkit show first
    --- stderr
    warning: a change of a snapshot's tags is damaged and left out (notes/[SNAPSHOT]/[HEX]-[HEX]): a signature does not hold
    warning: the snapshot [SNAPSHOT] is gone without a trace, and another one came after it: an old copy of the repository was put back, it was made in a copy, or somebody removed it
    error: there is no snapshot "first"
    hint: `snapkit list` shows the snapshots there are
    --- exit 1
    $ snapkit show latest --host elsewhere
    --- stderr
    warning: a change of a snapshot's tags is damaged and left out (notes/[SNAPSHOT]/[HEX]-[HEX]): a signature does not hold
    warning: the snapshot [SNAPSHOT] is gone without a trace, and another one came after it: an old copy of the repository was put back, it was made in a copy, or somebody removed it
    error: snapshot [SNAPSHOT] is gone without a trace, and may be what latest means; name an older one to have it
    hint: once you know why it is gone, `snapkit verify --accept-loss` lets this machine forget it
    --- exit 4
    $ snapkit doctor
    --- stdout
    ok       local state: [DIR]/home/.local/state/snapkit, [SIZE] are free
    ok       cache: [DIR]/home/.cache/snapkit, [SIZE] are free
    ok       repository: [DIR]/repo, [SIZE] are free
    ok       repository: [HEX] at [DIR]/repo
    ok       create-only puts: honoured by the store, which `init` has tried
    ok       credential: full: it can add and read
    ok       ledger: 1 snapshot
    problem  notes/[SNAPSHOT]/[HEX]-[HEX]: a signature does not hold
    problem  snapshot [SNAPSHOT]: it is gone without a trace, and another one came after it
    ok       data-[HEX]@box (full): the newest snapshot is [DURATION] old, of [TIME], complete
    ok       stored data: [N] packs listed, and all of them there; `verify` examines what is in them
    ok       last create: none is remembered here
    ok       last restore: none is remembered here
    ok       last verify: none is remembered here
    --- stderr
    2 problems found
    --- exit 4
    "#);
    fs::write(&line, &first[..10]).unwrap();
    assert_snapshot!(said(&env, &["show first", "doctor -q --no-sources"]), @r#"
    $ snapkit show first
    --- stderr
    warning: the snapshot [SNAPSHOT] is damaged: an object header is malformed: it ends early (key=snapshots/[SNAPSHOT])
    warning: a change of a snapshot's tags is damaged and left out (notes/[SNAPSHOT]/[HEX]-[HEX]): a signature does not hold
    error: there is no snapshot "first"
    hint: `snapkit list` shows the snapshots there are
    --- exit 1
    $ snapkit doctor -q --no-sources
    --- stdout
    problem  snapshot [SNAPSHOT]: an object header is malformed: it ends early (key=snapshots/[SNAPSHOT]); `snapkit verify --read-data` lists all damage
    problem  notes/[SNAPSHOT]/[HEX]-[HEX]: a signature does not hold
    --- exit 4
    "#);
}

#[test]
fn nothing_to_be_found() {
    let mut env = TestEnv::with_snapshot();
    assert_snapshot!(said(&env, &["find none"]), @"
    $ snapkit find none
    --- stderr
    nothing in 1 snapshot matches
    --- exit 1
    ");
    env.unset("SNAPKIT_REPO");
    env.write("work/snapkit.toml", "[sources.files]\nkind = \"files\"\npaths = [\"data\"]\n");
    assert_snapshot!(env.run(["config", "check"]), @"
    --- stdout
    [DIR]/work/snapkit.toml: stack work, 1 source, 0 sets, 0 hooks, 0 probes
    --- stderr
    warning: no repository is named: `[repo] url`, --repo or SNAPKIT_REPO does that
    --- exit 0
    ");
    assert_snapshot!(env.run(["history", "--command", "restore"]), @"
    --- stderr
    no such run is remembered here
    --- exit 0
    ");
}

/// A database that is damaged comes along as far as it can be read, and everybody says so.
#[test]
fn a_damaged_database() {
    let env = TestEnv::with_repository();
    env.database("work/app.db", 3000);
    let path = env.path("work/app.db");
    let mut bytes = fs::read(&path).unwrap();
    for page in [2, 3] {
        bytes[page * 4096..][..200].fill(0xee);
    }
    fs::write(&path, bytes).unwrap();
    assert_snapshot!(said(&env, &["create app.db"]), @"
    $ snapkit create app.db
    --- stdout
    [SNAPSHOT]
    --- stderr
    partial: 36.0 KiB in [DURATION]
      app (sqlite): 1 artifact, 36.0 KiB, partial
      read [SIZES]
    warning: app: app.db: cannot count rows: the database is damaged (path=[DIR]/work/app.db): database disk image is malformed: Error code 11: database disk image is malformed
    warning: 1 thing was not captured; `snapkit show [HEX]` lists it
    --- exit 3
    ");
    assert_snapshot!(said(&env, &[
        "restore latest --target out",
        "restore latest --target out --allow-damage",
    ]), @"
    $ snapkit restore latest --target out
    --- stderr
    snapshot [SNAPSHOT] of app.db-[HEX]@box, [TIME]
    warning: the snapshot is partial: of the source app, 1 thing was not captured
    error: the database was damaged when it was captured; --allow-damage puts it back as it is: Tree 2 page 4: btreeInitPage() returns error code 11 (findings=3, target=[DIR]/work/out/app/app.db, artifact=app.db, source=app)
    --- exit 4
    $ snapkit restore latest --target out --allow-damage
    --- stdout
    app (sqlite): differs, 7 facts hold, 36.0 KiB to [DIR]/work/out/app
      differs: integrity was ok, is Tree 2 page 4: btreeInitPage() returns error code 11
      differs: integrity was ok, is Tree 2 page 3: btreeInitPage() returns error code 11
      differs: integrity was ok, is database disk image is malformed
      note: it was damaged when it was captured, and was put back as it is: Tree 2 page 4: btreeInitPage() returns error code 11 (3 in all)
    --- stderr
    snapshot [SNAPSHOT] of app.db-[HEX]@box, [TIME]
    warning: the snapshot is partial: of the source app, 1 thing was not captured
    differs in [DURATION]
    --- exit 4
    ");
}

/// Where the schema is damaged, nothing of it can be told.
#[test]
fn a_damaged_schema() {
    let env = TestEnv::with_repository();
    env.database("work/app.db", 3000);
    let path = env.path("work/app.db");
    let sound = fs::read(&path).unwrap();
    let mut all = String::new();
    for (what, range) in [("header", 16..60), ("first page", 100..120), ("schema", 4000..4096)] {
        let mut bytes = sound.clone();
        bytes[range].fill(0xee);
        fs::write(&path, bytes).unwrap();
        all += &format!("=== {what}\n{}", said(&env, &["create app.db"]));
    }
    fs::write(&path, &sound[..5000]).unwrap();
    all += &format!("=== cut short\n{}", said(&env, &["create app.db"]));
    assert_snapshot!(all, @"
    === header
    $ snapkit create app.db
    --- stderr
    error: not a SQLite database, or an encrypted one (path=[DIR]/work/app.db, source=app)
    --- exit 2
    === first page
    $ snapkit create app.db
    --- stderr
    error: cannot read the database: the database is damaged (path=[DIR]/work/app.db, source=app)
      caused by: database disk image is malformed
      caused by: Error code 11: database disk image is malformed
    hint: `PRAGMA integrity_check` in sqlite3 tells more; restore the database from a snapshot, or save what can be read with `.recover`
    --- exit 4
    === schema
    $ snapkit create app.db
    --- stderr
    error: cannot read the database: the database is damaged (path=[DIR]/work/app.db, source=app)
      caused by: database disk image is malformed
      caused by: Error code 11: database disk image is malformed
    hint: `PRAGMA integrity_check` in sqlite3 tells more; restore the database from a snapshot, or save what can be read with `.recover`
    --- exit 4
    === cut short
    $ snapkit create app.db
    --- stderr
    error: cannot read the database: the database is damaged (path=[DIR]/work/app.db, source=app)
      caused by: database disk image is malformed
      caused by: Error code 11: database disk image is malformed
    hint: `PRAGMA integrity_check` in sqlite3 tells more; restore the database from a snapshot, or save what can be read with `.recover`
    --- exit 4
    ");
}

/// What stands in the place of a file of ours, such as a pipe, keeps nobody waiting.
#[test]
fn pipes_in_the_place_of_our_files() {
    let env = TestEnv::with_snapshot();
    let state = env.path("home/.local/state/snapkit");
    let locks: Vec<_> = fs::read_dir(state.join("running")).unwrap().collect();
    let lock = locks[0].as_ref().unwrap().path();
    for file in [state.join("history"), lock] {
        fs::remove_file(&file).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(file).status().unwrap().success());
    }
    let program = env!("CARGO_BIN_EXE_snapkit");
    for (args, expected) in [(&["history"][..], 1), (&["create", "-q", "data"], 0)] {
        let limited = ["20", program].into_iter().chain(args.iter().copied());
        let output = CommandOutput::from(env.through("timeout", limited).output().unwrap());
        assert_eq!(output.code(), Some(expected), "{args:?}: {output}");
        assert!(output.stderr.contains("it is no file"), "{args:?}: {output}");
    }
}

/// Files where directories have to be, and what is too much at once.
#[test]
fn things_in_the_way() {
    let env = TestEnv::with_repository();
    env.sample();
    env.database("work/shop.db", 1);
    assert!(env.run(["create", "-q", "data", "shop.db"]).is_success());
    env.write("work/out", "a file");
    env.write("work/half/shop", "a file");
    fs::remove_file(env.path("work/shop.db")).unwrap();
    fs::remove_dir_all(env.path("work/data")).unwrap();
    env.write("work/data", "a file");
    assert_snapshot!(said(&env, &[
        "restore latest --target out",
        "restore latest --target half",
        "restore latest:shop --target half",
        "restore latest:files",
        "restore latest:files --overwrite --dry-run",
        "list --repo gs://backups",
        "list --repo az://backups",
    ]), @"
    $ snapkit restore latest --target out
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    error: cannot create the directory [DIR]/work/out/files
      caused by: Not a directory (os error 20)
    --- exit 1
    $ snapkit restore latest --target half
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    error: this is a file, and has to be a directory (path=[DIR]/work/half/shop)
    --- exit 2
    $ snapkit restore latest:shop --target half
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    error: this is a file, and has to be a directory (path=[DIR]/work/half/shop)
    --- exit 2
    $ snapkit restore latest:files
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    error: there is something where the restore goes (path=[DIR]/work/data, source=files)
    hint: restore elsewhere with --target, or replace it with --overwrite (the old state is kept)
    --- exit 11
    $ snapkit restore latest:files --overwrite --dry-run
    --- stdout
    files (files) would go to [DIR]/work/data, 10 B
    --- stderr
    snapshot [SNAPSHOT] of data+shop.db-[HEX]@box, [TIME]
    nothing was changed
    --- exit 0
    $ snapkit list --repo gs://backups
    --- stderr
    error: this program was built without such stores: its feature `gcs`
    --- exit 1
    $ snapkit list --repo az://backups
    --- stderr
    error: this program was built without such stores: its feature `azure`
    --- exit 1
    ");
}

/// A whole machine is not put back over itself.
#[test]
fn the_root_is_not_replaced() {
    let env = TestEnv::with_repository();
    env.write(
        "work/snapkit.toml",
        "[sources.all]\nkind = \"files\"\npaths = [\"/\"]\nexclude = [\"/*\"]\n",
    );
    assert_snapshot!(said(&env, &["create", "restore latest", "restore latest --overwrite"]), @"
    $ snapkit create
    --- stdout
    [SNAPSHOT]
    --- stderr
    left out: the repository [DIR]/repo
    left out: the local state [DIR]/home/.local/state/snapkit
    left out: the cache [DIR]/home/.cache/snapkit
    complete: 0 B in [DURATION]
      all (files): 1 artifact, 0 B
      read [SIZES]
    --- exit 0
    $ snapkit restore latest
    --- stderr
    snapshot [SNAPSHOT] of work@box, [TIME]
    error: a whole root directory cannot be put back in its place; restore to a directory (source=all)
    --- exit 1
    $ snapkit restore latest --overwrite
    --- stderr
    snapshot [SNAPSHOT] of work@box, [TIME]
    error: the repository lies in what would be replaced, and would be moved away with it (path=/, repository=[DIR]/repo)
    hint: restore with --target, or name a part of the snapshot
    --- exit 11
    ");
}

/// A database whose schema says what cannot be.
#[test]
fn a_database_that_contradicts_itself() {
    let env = TestEnv::with_repository();
    let make = |name: &str, sql: &str| {
        let db = rusqlite::Connection::open(env.path("work").join(name)).unwrap();
        db.execute_batch(sql).unwrap();
    };
    make(
        "keys.db",
        "PRAGMA foreign_keys = 0; CREATE TABLE p (x); CREATE TABLE c (y REFERENCES p (x)); INSERT INTO c VALUES (1)",
    );
    make(
        "schema.db",
        "CREATE TABLE t (x); PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = 'CREATE TABLE'",
    );
    assert_snapshot!(said(&env, &[
        "create keys.db",
        "create schema.db",
        "verify --read-data",
    ]), @"
    $ snapkit create keys.db
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 12.0 KiB in [DURATION]
      keys (sqlite): 1 artifact, 12.0 KiB
      read [SIZES]
    --- exit 0
    $ snapkit create schema.db
    --- stderr
    error: cannot read the database: the database is damaged (path=[DIR]/work/schema.db, source=schema)
      caused by: malformed database schema (t) - incomplete input
      caused by: Error code 11: database disk image is malformed
    hint: `PRAGMA integrity_check` in sqlite3 tells more; restore the database from a snapshot, or save what can be read with `.recover`
    --- exit 4
    $ snapkit verify --read-data
    --- stderr
    examined 1 snapshot, [N] chunks, [N] packs; [SIZE] read in [DURATION]
    no damage: every byte of all snapshots and packs was read and checked
    --- exit 0
    ");
}

/// What is gone is told by whoever saw it, and by what came after it.
#[test]
fn snapshots_that_are_gone() {
    let env = TestEnv::with_snapshot();
    // Which of two that began in one second is newer hangs on their random ids.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    env.write("work/data/more.txt", "more");
    assert!(env.run(["create", "-q", "data"]).is_success());
    let second = env.files("repo/snapshots", "").remove(1);
    fs::remove_file(second).unwrap();
    assert_snapshot!(said(&env, &["create data", "verify"]), @"
    $ snapkit create data
    --- stdout
    [SNAPSHOT]
    --- stderr
    complete: 14 B in [DURATION]
      files (files): 1 artifact, 9 entries, 14 B
      read [SIZES]
    warning: snapshot [SNAPSHOT], which this machine has seen, is gone: somebody may have put an old copy of the repository back
    --- exit 0
    $ snapkit verify
    --- stdout
    damaged: snapshots/[SNAPSHOT]: this machine saw it, and it is gone without a marker: an old repository was put back, or it was removed
      lost: [SNAPSHOT]
    --- stderr
    examined 2 snapshots, [N] chunks; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    ");
    fs::rename(env.path("home/.local/state"), env.path("home/state")).unwrap();
    assert_snapshot!(said(&env, &["verify"]), @"
    $ snapkit verify
    --- stdout
    damaged: snapshots/[SNAPSHOT]: it is gone without a marker: a snapshot names it as the one before
      lost: [SNAPSHOT]
    --- stderr
    examined 2 snapshots, [N] chunks; [SIZE] read in [DURATION]
    1 damaged object found
    a `create` stores again what it still has of that; `restore --allow-damage` leaves out what is damaged
    --- exit 4
    ");
}
