//! `--json`: one document on standard output.

use insta::assert_snapshot;

use crate::support::TestEnv;

#[test]
fn each_command_gives_one_document() {
    let env = TestEnv::new();
    assert_snapshot!(env.run(["init", "--json"]), @r#"
    --- stdout
    {
      "create_only": true,
      "created": true,
      "fingerprint": "[HEX]",
      "key_file": "[DIR]/home/.config/snapkit/[HEX].key",
      "location": "[DIR]/repo",
      "repository": "[HEX]"
    }
    --- exit 0
    "#);
    env.sample();
    let created = env.run(["create", "data", "--name", "first", "--json"]);
    assert_snapshot!(created, @r#"
    --- stdout
    {
      "snapshot": {
        "id": "[SNAPSHOT]",
        "previous": null,
        "stack": "data-[HEX]",
        "host": "box",
        "set": "full",
        "name": "first",
        "tags": {},
        "started": "[TIME]",
        "finished": "[TIME]",
        "cut_micros": [N],
        "verdict": "complete",
        "stats": {
          "entries": 8,
          "files_read": 2,
          "files_unchanged": 0,
          "bytes": 10,
          "bytes_read": 10,
          "chunks_new": 3,
          "bytes_new": [N],
          "bytes_stored": [N],
          "packs_adopted": 0
        },
        "program": "snapkit 0.1.0",
        "sources": [
          {
            "name": "files",
            "kind": "files",
            "verdict": "complete",
            "settings": {
              "paths": [
                "[DIR]/work/data"
              ]
            },
            "cut": {
              "begin": "[TIME]",
              "end": "[TIME]",
              "consistency": "fuzzy"
            },
            "facts": {
              "tree.attributes": {
                "standing": "pinned",
                "value": "[HEX]"
              },
              "tree.bytes": {
                "standing": "pinned",
                "value": 10
              },
              "tree.entries": {
                "standing": "pinned",
                "value": 5
              },
              "tree.files": {
                "standing": "pinned",
                "value": 2
              },
              "tree.owners": {
                "standing": "pinned",
                "value": "[HEX]"
              },
              "tree.structure": {
                "standing": "pinned",
                "value": "[HEX]"
              }
            },
            "problems": {
              "count": 0,
              "listed": []
            },
            "stats": {
              "bytes_read": 10,
              "bytes_new": [N],
              "bytes_stored": [N]
            },
            "artifacts": [
              {
                "name": "tree",
                "shape": "tree",
                "media_type": "application/vnd.snapkit.tree",
                "bytes": 10,
                "entries": 8,
                "attributes": {}
              }
            ]
          }
        ]
      },
      "seconds": [DURATION],
      "warnings": [],
      "hooks_failed": [],
      "dry_run": false
    }
    --- exit 0
    "#);
    let id = created.json()["snapshot"]["id"].as_str().unwrap().to_owned();
    assert_snapshot!(env.run(["list", "--json"]), @r#"
    --- stdout
    {
      "damaged": [],
      "damaged_notes": [],
      "gone": [],
      "missing": [],
      "returned": [],
      "sealed": [],
      "snapshots": [
        {
          "bytes": 10,
          "finished": "[TIME]",
          "host": "box",
          "id": "[SNAPSHOT]",
          "name": "first",
          "problems": 0,
          "set": "full",
          "sources": [
            "files"
          ],
          "stack": "data-[HEX]",
          "started": "[TIME]",
          "tags": {},
          "verdict": "complete"
        }
      ]
    }
    --- exit 0
    "#);
    assert_eq!(env.run(["show", &id, "--json"]).json()["id"], id);
    let place = format!("first:files/tree/{}", env.in_tree("data"));
    assert_snapshot!(env.run(["ls", "-R", &place, "--json"]), @r#"
    --- stdout
    [
      {"path":"files/tree[DIR]/work/data/a.txt","kind":"file","bytes":6,"entry":{"mode":420,"uid":[ID],"gid":[ID],"mtime":"[TIME]"}},
      {"path":"files/tree[DIR]/work/data/link","kind":"symlink","entry":{"mode":511,"uid":[ID],"gid":[ID],"mtime":"[TIME]","target":"a.txt"}},
      {"path":"files/tree[DIR]/work/data/sub","kind":"directory","entry":{"mode":493,"uid":[ID],"gid":[ID],"mtime":"[TIME]"}},
      {"path":"files/tree[DIR]/work/data/sub/b.bin","kind":"file","bytes":4,"entry":{"mode":420,"uid":[ID],"gid":[ID],"mtime":"[TIME]"}}
    ]
    --- exit 0
    "#);
    assert_snapshot!(env.run(["ls", "first", "--json"]), @r#"
    --- stdout
    [
      {"path":"files","kind":"source","bytes":10}
    ]
    --- exit 0
    "#);
    assert_snapshot!(env.run(["restore", "first", "--target", "out", "--json"]), @r#"
    --- stdout
    {
      "snapshot": "[SNAPSHOT]",
      "captured": "complete",
      "sources": [
        {
          "source": "files",
          "kind": "files",
          "target": "[DIR]/work/out/files",
          "verdict": "match",
          "comparison": {
            "verdict": "match",
            "proven": 6,
            "differences": [],
            "unproven": []
          },
          "problems": [],
          "problem_count": 0,
          "notes": [],
          "damaged": [],
          "undo": [],
          "bytes": 10
        }
      ],
      "verdict": "match",
      "damaged": false,
      "failed": null,
      "probes": [],
      "hooks_failed": [],
      "dry_run": false,
      "seconds": [DURATION]
    }
    --- exit 0
    "#);
    assert_snapshot!(env.run(["verify", "--json"]), @r#"
    --- stdout
    {
      "damage": [],
      "notes": [],
      "snapshots": 1,
      "chunks": 3,
      "packs": 0,
      "bytes_read": 0,
      "read_data": false,
      "seconds": [DURATION]
    }
    --- exit 0
    "#);
}

#[test]
fn errors_are_documents_too() {
    let env = TestEnv::new();
    assert_snapshot!(env.run(["list", "--json"]), @r#"
    --- stdout
    {
      "error": {
        "causes": [
          "No such file or directory (os error 2)"
        ],
        "context": {
          "path": "[DIR]/repo"
        },
        "hint": "create one with `snapkit init`, or check the path or URL",
        "kind": "not-found",
        "message": "there is no such directory",
        "reason": "no-repository"
      }
    }
    --- exit 10
    "#);
    let usage = env.run(["list", "--json", "--nonsense"]);
    assert_eq!(usage.code(), Some(2));
    assert_eq!(usage.json()["error"]["reason"], "invalid-argument");
    assert!(usage.stderr.is_empty());
}
