//! Commands for a POSIX shell.
//!
//! Whoever needs an old state back is in a hurry: the commands may be run twice, and again after they
//! were cut off. None of them deletes, and none moves anything away unless what belongs there is at
//! hand.

use std::path::{Path, PathBuf};

pub(super) use snapkit_core::shell::{path, quote};

/// A name as a pattern of `find -name` that matches only it, as one word.
pub(super) fn exact_pattern(name: &[u8]) -> String {
    let mut pattern = Vec::with_capacity(name.len());
    for byte in name {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\') {
            pattern.push(b'\\');
        }
        pattern.push(*byte);
    }
    quote(&pattern)
}

/// Whether anything is at a path, be it a link that leads nowhere.
fn there(path: &str) -> String {
    format!("[ -e {path} ] || [ -L {path} ]")
}

/// Move what is at `live` to `aside`, once.
pub(super) fn away(live: &str, aside: &str) -> String {
    format!("if {{ {}; }} && ! {{ {}; }}; then mv -- {live} {aside}; fi", there(live), there(aside))
}

/// Bring what is kept at `old` back to `live`, and move what is there to `aside`. `locked` is the mode
/// of an old directory that its owner cannot move as it is.
pub(super) fn back(
    live: &str,
    old: &str,
    aside: &str,
    locked: Option<u32>,
    ordinary: bool,
) -> String {
    let mut clear = format!("mv -- {live} {aside}");
    if ordinary {
        clear = format!("{{ [ -L {live} ] || chmod u+w -- {live}; }} && {clear}");
    }
    let mut bring = format!("mv -- {old} {live}");
    if let Some(mode) = locked {
        bring = format!("chmod u+w -- {old} && {bring} && chmod {mode:04o} -- {live}");
    }
    format!("if {}; then if {}; then {clear}; fi && {bring}; fi", there(old), there(live))
}

/// What is put behind the name of a directory that is not full yet.
pub(super) const PART: &str = "-part";

/// Moves all of its arguments into the directory that is its name.
const MOVE_INTO: &str = r#"-exec sh -c 'mv -- "$@" "$0"'"#;

/// What was in a directory that stays.
pub(super) struct Content {
    /// The directory, as a word.
    pub(super) live: String,
    /// Where what was in it is kept, as a word.
    pub(super) old: String,
    /// Where what is in it now goes.
    pub(super) aside: PathBuf,
    /// Names in it that are not touched.
    pub(super) spare: Vec<Vec<u8>>,
    /// What has to be done before old directories can be moved.
    pub(super) unlock: Vec<String>,
    /// What has to be done after that.
    pub(super) lock: Vec<String>,
    /// Whether this is an ordinary user, who cannot move a directory that he may not write to.
    pub(super) ordinary: bool,
}

impl Content {
    /// Bring it back, and then set the attributes of the directory. What is in it now is complete in
    /// its own place before the first old thing comes back, so that the two are never mixed.
    pub(super) fn back(&self, attributes: &[String]) -> String {
        let Self { live, old, .. } = self;
        let aside = path(&self.aside);
        let mut part = self.aside.clone().into_os_string();
        part.push(PART);
        let part = path(Path::new(&part));
        let spare: String =
            self.spare.iter().map(|name| format!(" ! -name {}", exact_pattern(name))).collect();
        let mut clear = vec![format!("mkdir -p -- {part}")];
        let all = format!("find {live} -mindepth 1 -maxdepth 1{spare}");
        if self.ordinary {
            clear.push(format!("{all} -type d ! -perm -u+w -exec chmod u+w -- {{}} +"));
        }
        clear.push(format!("{all} {MOVE_INTO} {part}/ {{}} +"));
        clear.push(format!("mv -- {part} {aside}"));
        let mut bring = self.unlock.clone();
        bring.push(format!("find {old} -mindepth 1 -maxdepth 1 {MOVE_INTO} {live}/ {{}} +"));
        bring.extend(self.lock.iter().cloned());
        bring.push(format!("rmdir -- {old}"));
        bring.push(format!("{{ {}; }}", attributes.join("; ")));
        format!(
            "if [ -d {old} ]; then if [ ! -d {aside} ]; then {}; fi && {}; fi",
            clear.join(" && "),
            bring.join(" && ")
        )
    }
}
