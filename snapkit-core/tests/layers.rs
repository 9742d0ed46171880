//! The layers of this crate: modules point only down the list in `lib.rs`, and nothing here opens a
//! socket.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up. A module may use its own layer and those below. The registry is plain wiring of
/// contracts; the engine takes it as an argument, so it lies below.
const LAYERS: [(&str, &[&str]); 6] = [
    ("vocabulary", &["error", "context", "progress", "id", "key", "secret", "codec", "own"]),
    ("contracts", &["artifact", "tree", "globs", "record", "facts", "source", "sink", "manifest"]),
    (
        "stages",
        &[
            "sign",
            "config",
            "credential",
            "chunk",
            "frame",
            "seal",
            "entries",
            "records",
            "process",
            "scratch",
            "shell",
            "sort",
            "pack",
            "index",
            "ledger",
        ],
    ),
    ("registry", &["registry"]),
    ("engine", &["engine"]),
    ("wiring", &["memory"]),
];

const FORBIDDEN: [&str; 4] = ["std::net", "tokio::net", "UdpSocket", "TcpStream"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// The text without comments and without the tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().map(|l| l.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Every module of this crate that a text names, at its top level: `crate::x`, and `crate::{x, y::z}`.
fn named(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let is_word =
            code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
        // `$crate::` in a macro is this crate too.
        if is_word {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let word = |s: &str| {
            s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
        };
        if let Some(list) = rest.strip_prefix('{') {
            let (mut depth, mut item) = (0, String::new());
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 && c == ',' {
                    found.push(word(item.trim()));
                    item.clear();
                } else {
                    item.push(c);
                }
            }
            found.push(word(item.trim()));
        } else {
            found.push(word(rest));
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, modules)| modules.contains(&module))
}

fn module_of(root: &Path, file: &Path) -> String {
    let first = file.strip_prefix(root).unwrap().iter().next().unwrap().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn modules_point_only_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 30, "{files:?}");
    let mut uses: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for file in &files {
        let module = module_of(&root, file);
        if module == "lib" {
            continue;
        }
        let own = layer_of(&module).unwrap_or_else(|| panic!("module {module} is in no layer"));
        let text = fs::read_to_string(file).unwrap();
        for used in named(&code(&text)) {
            // `Error` and the like, which the crate's root names again.
            let Some(layer) = layer_of(&used) else {
                assert!(
                    used.starts_with(char::is_uppercase),
                    "{}: {used} is in no layer",
                    file.display()
                );
                continue;
            };
            *uses.entry(used.clone()).or_default() += 1;
            if layer > own {
                let (own, layer) = (LAYERS[own].0, LAYERS[layer].0);
                wrong.push(format!("{}: {own} uses {used}, which is {layer}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The reading of `use` lines works: the vocabulary is used everywhere.
    assert!(uses["error"] > 25 && uses["context"] > 15 && uses["index"] > 3, "{uses:?}");
}

#[test]
fn the_core_opens_no_socket() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for word in FORBIDDEN {
            assert!(!code(&text).contains(word), "{} names {word}", file.display());
        }
    }
}

#[test]
fn what_a_use_line_names_is_found() {
    let text = "use crate::error::Error;\nuse crate::{sink::{Put, Sink}, key::Key, engine};\n\
                let x = crate::index::Place; // crate::wrong\nuse other_crate::nothing;\n";
    assert_eq!(named(&code(text)), ["error", "sink", "key", "engine", "index"]);
}
