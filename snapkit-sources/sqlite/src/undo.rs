//! The commands that bring an old state back.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use snapkit_core::shell;

/// What to do before any of them.
const FIRST: &str = "# to bring the old state back, stop the programs that use the database, then:";

/// What is put behind the name of an old state that was brought back, and of what made room for it.
const UNDONE: &str = ".undone";

/// The old state was copied, and the database overwritten in place. If the page size changed in WAL
/// mode, the mode has to be left for a moment.
///
/// The copy is renamed when it has been brought back, so that a second run does not overwrite what was
/// written since then.
pub(crate) fn by_copy(target: &Path, kept: &Path, page_size_changed_in_wal: bool) -> Vec<String> {
    let database = shell::path(target);
    let restore = format!(".restore \"{}\"", dot_quoted(kept.as_os_str().as_bytes()));
    let mut steps = Vec::new();
    if page_size_changed_in_wal {
        steps.push(format!("sqlite3 {database} 'PRAGMA journal_mode = DELETE' >/dev/null"));
    }
    steps.push(format!("sqlite3 {database} {}", shell::quote(restore.as_bytes())));
    let (copy, done) = (shell::path(kept), shell::path(&crate::holders::beside(kept, UNDONE)));
    steps.push(format!("mv -- {copy} {done}"));
    let mut lines = vec![FIRST.to_owned()];
    lines.push(format!("if [ -e {copy} ]; then {}; fi", steps.join(" && ")));
    if page_size_changed_in_wal {
        lines.push(format!("sqlite3 {database} 'PRAGMA journal_mode = WAL'"));
    }
    lines
}

/// Files were moved away from around the target, and a new database was put there.
///
/// What is there now is complete in a directory of its own before the first old file comes back, and
/// nothing comes back twice.
pub(crate) fn by_moving(target: &Path, moved: &[(PathBuf, PathBuf)]) -> Vec<String> {
    let Some((from, to)) = moved.first() else { return Vec::new() };
    // Beside what is kept, under the name that the database would have there.
    let suffix = from.as_os_str().len().saturating_sub(target.as_os_str().len());
    let base = to.as_os_str().as_bytes();
    let base = &base[..base.len().saturating_sub(suffix)];
    let base = Path::new(std::ffi::OsStr::from_bytes(base));
    let aside = shell::path(&crate::holders::beside(base, UNDONE));
    let part = shell::path(&crate::holders::beside(base, ".part"));
    let mut steps = vec![format!("mkdir -p -- {part}")];
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let ours = shell::path(&crate::holders::beside(target, suffix));
        steps.push(format!("{{ [ ! -e {ours} ] || mv -- {ours} {part}/; }}"));
    }
    steps.push(format!("mv -- {part} {aside}"));
    let mut lines = vec![FIRST.to_owned()];
    lines.push(format!("if [ ! -d {aside} ]; then {}; fi", steps.join(" && ")));
    lines.extend(moved.iter().map(|(from, to)| {
        let (from, to) = (shell::path(from), shell::path(to));
        format!("if [ -d {aside} ] && [ -e {to} ]; then mv -- {to} {from}; fi")
    }));
    lines
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
