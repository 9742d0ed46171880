//! What live systems hold, without a repository.

use insta::assert_snapshot;

use crate::support::{TestEnv, said};

#[test]
fn sources_of_a_stack() {
    let mut env = TestEnv::new();
    env.unset("SNAPKIT_REPO");
    env.sample();
    env.database("work/app.db", 3);
    env.write(
        "work/snapkit.toml",
        "[sources.uploads]\nkind = 'files'\npaths = ['data']\n\
         [sources.app]\nkind = 'sqlite'\npath = 'app.db'\n\
         [sources.crm]\nkind = 'command'\ncapture = ['true']\nfacts = { version = ['echo', '15'], broken = ['false'] }\n\
         [sources.gone]\nkind = 'sqlite'\npath = 'gone.db'\n\
         [sets]\ndata = ['app']\n",
    );
    assert_snapshot!(said(&env, &[
        "inspect",
        "inspect --set data",
        "inspect app crm",
        "inspect nothing",
        "inspect gone --json",
        "inspect crm --json",
    ]), @r#"
    $ snapkit inspect
    --- stdout
    source app (sqlite)
      fact application_id = 0 (observed)
      fact page_count = 2 (observed)
      fact page_size = 4096 (observed)
      fact pages = [HEX] (observed)
      fact rows.t = 3 (observed)
      fact schema = [HEX] (observed)
      fact tables = 1 (observed)
      fact user_version = 0 (observed)
    source crm (command)
      fact answer.broken = `facts` failed: exit status: 1 (program=false) (unknown)
      fact answer.version = 15 (observed)
    source uploads (files)
      fact tree.attributes = [HEX] (observed)
      fact tree.bytes = 10 (observed)
      fact tree.entries = 5 (observed)
      fact tree.files = 2 (observed)
      fact tree.owners = [HEX] (observed)
      fact tree.structure = [HEX] (observed)
    --- stderr
    error: there is no database; check its path (path=[DIR]/work/gone.db, source=gone)
    --- exit 1
    $ snapkit inspect --set data
    --- stdout
    source app (sqlite)
      fact application_id = 0 (observed)
      fact page_count = 2 (observed)
      fact page_size = 4096 (observed)
      fact pages = [HEX] (observed)
      fact rows.t = 3 (observed)
      fact schema = [HEX] (observed)
      fact tables = 1 (observed)
      fact user_version = 0 (observed)
    --- exit 0
    $ snapkit inspect app crm
    --- stdout
    source app (sqlite)
      fact application_id = 0 (observed)
      fact page_count = 2 (observed)
      fact page_size = 4096 (observed)
      fact pages = [HEX] (observed)
      fact rows.t = 3 (observed)
      fact schema = [HEX] (observed)
      fact tables = 1 (observed)
      fact user_version = 0 (observed)
    source crm (command)
      fact answer.broken = `facts` failed: exit status: 1 (program=false) (unknown)
      fact answer.version = 15 (observed)
    --- exit 0
    $ snapkit inspect nothing
    --- stderr
    error: there is no source nothing; sources are: app, crm, gone, uploads
    --- exit 2
    $ snapkit inspect gone --json
    --- stdout
    [
      {
        "error": "there is no database; check its path (path=[DIR]/work/gone.db, source=gone)",
        "kind": "sqlite",
        "source": "gone"
      }
    ]
    --- stderr
    {"error":{"causes":[],"context":{"path":"[DIR]/work/gone.db","source":"gone"},"hint":"","kind":"not-found","message":"there is no database; check its path","reason":"source-missing"}}
    --- exit 1
    $ snapkit inspect crm --json
    --- stdout
    [
      {
        "facts": {
          "answer.broken": {
            "standing": "unknown",
            "value": "`facts` failed: exit status: 1 (program=false)"
          },
          "answer.version": {
            "standing": "observed",
            "value": 15
          }
        },
        "kind": "command",
        "source": "crm"
      }
    ]
    --- exit 0
    "#);
    std::fs::remove_file(env.path("work/snapkit.toml")).unwrap();
    assert_snapshot!(said(&env, &["inspect"]), @"
    $ snapkit inspect
    --- stderr
    error: there is nothing to inspect: name a stack file with --stack
    --- exit 2
    ");
}
