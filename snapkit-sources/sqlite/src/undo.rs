//! The commands that bring an old state back.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// What to do before any of them.
const FIRST: &str = "# to bring the old state back, stop the programs that use the database, then:";

/// The old state was copied, and the database overwritten in place. If the page size changed in WAL
/// mode, the mode has to be left for a moment.
pub(crate) fn by_copy(target: &Path, kept: &Path, page_size_changed_in_wal: bool) -> Vec<String> {
    let database = quote(target.as_os_str().as_bytes());
    let restore = format!(".restore \"{}\"", dot_quoted(kept.as_os_str().as_bytes()));
    let mut lines = vec![FIRST.to_owned()];
    if page_size_changed_in_wal {
        lines.push(format!("sqlite3 {database} 'PRAGMA journal_mode = DELETE'"));
    }
    lines.push(format!("sqlite3 {database} {}", quote(restore.as_bytes())));
    if page_size_changed_in_wal {
        lines.push(format!("sqlite3 {database} 'PRAGMA journal_mode = WAL'"));
    }
    lines
}

/// Files were moved away from around the target, and a new database was put there.
pub(crate) fn by_moving(target: &Path, moved: &[(PathBuf, PathBuf)]) -> Vec<String> {
    let quoted = |path: &Path| quote(path.as_os_str().as_bytes());
    let ours: Vec<String> = ["", "-wal", "-shm", "-journal"]
        .iter()
        .map(|suffix| quoted(&crate::holders::beside(target, suffix)))
        .collect();
    let mut lines = vec![FIRST.to_owned(), format!("rm -f -- {}", ours.join(" "))];
    lines.extend(moved.iter().map(|(from, to)| format!("mv -- {} {}", quoted(to), quoted(from))));
    lines
}

/// A word of a shell's command line.
fn quote(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.chars().any(char::is_control)
    {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let mut word = String::from("$'");
    for byte in bytes {
        match byte {
            b'\'' | b'\\' => {
                word.push('\\');
                word.push(char::from(*byte));
            }
            0x20..=0x7e => word.push(char::from(*byte)),
            _ => {
                let _ = write!(word, "\\x{byte:02x}");
            }
        }
    }
    word.push('\'');
    word
}

/// What stands between double quotes in a command of SQLite's shell.
fn dot_quoted(bytes: &[u8]) -> String {
    let mut word = String::new();
    for byte in bytes {
        match byte {
            b'"' | b'\\' => {
                word.push('\\');
                word.push(char::from(*byte));
            }
            0x20..=0x7e => word.push(char::from(*byte)),
            _ => {
                let _ = write!(word, "\\{byte:03o}");
            }
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        for bytes in [&b"/a b/c'd\"e\\f.db"[..], b"/caf\xc3\xa9", b"/\xff\n'$HOME\\", b"`x`;!"] {
            let out = std::process::Command::new("bash")
                .args(["-c", &format!("printf %s {}", quote(bytes))])
                .output()
                .unwrap();
            assert_eq!(out.stdout, bytes, "{}", quote(bytes));
        }
    }
}
