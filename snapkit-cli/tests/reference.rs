//! The page `docs/cli.md` is the help of the commands, as they print it.
//!
//! `UPDATE_REFERENCE=1 cargo test -p snapkit-cli --test reference` writes it anew.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// What the program says of itself, or of a command.
fn help(command: Option<&str>) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_snapkit"))
        .args(command)
        .arg("--help")
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

/// The commands, as the help lists them.
fn commands(help: &str) -> Vec<String> {
    let listed =
        help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    let names = listed.filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    names
        .filter_map(|l| l.split_whitespace().next())
        .filter(|n| *n != "help")
        .map(str::to_owned)
        .collect()
}

/// The common options are the same everywhere: they are told once.
fn without_common(help: &str) -> &str {
    help.split("\n\nCommon options:").next().unwrap()
}

fn reference() -> String {
    let whole = help(None);
    let mut page = String::from(
        "# The command line\n\nThis page is what `snapkit --help` and `snapkit COMMAND --help` print; \
         a test compares them.\n\n",
    );
    write!(page, "## snapkit\n\n```text\n{whole}\n```\n").unwrap();
    let names = commands(&whole);
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        let text = help(Some(&name));
        write!(page, "\n## snapkit {name}\n\n```text\n{}\n```\n", without_common(&text)).unwrap();
    }
    let variables = variables();
    assert!(variables.lines().count() >= 10, "{variables}");
    write!(page, "\n## Environment\n\n| variable | meaning |\n|---|---|\n{variables}").unwrap();
    page
}

/// The variables, as the program declares them.
fn variables() -> String {
    let mut page = String::new();
    let mut told = Vec::new();
    for line in include_str!("../src/env.rs").lines() {
        let name = line.strip_prefix("pub(crate) const ").and_then(|l| l.split('"').nth(1));
        if let Some(line) = line.strip_prefix("/// ") {
            told.push(line);
        } else if let (Some(name), false) = (name, told.is_empty()) {
            writeln!(page, "| `{name}` | {} |", told.join(" ")).unwrap();
            told.clear();
        } else {
            told.clear();
        }
    }
    page
}

#[test]
fn the_reference_is_what_the_program_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let page = reference();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/cli.md is old: run this test with UPDATE_REFERENCE=1");
}
