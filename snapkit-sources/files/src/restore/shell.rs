//! Words for a POSIX shell.

use std::path::Path;

/// Bytes as one word, whatever they are. What is not UTF-8 is made by `printf`, so that the command
/// can be copied from a report.
pub(super) fn quote(bytes: &[u8]) -> String {
    let mut word = String::new();
    for part in bytes.utf8_chunks() {
        if !part.valid().is_empty() || (bytes.is_empty()) {
            word.push('\'');
            word.push_str(&part.valid().replace('\'', "'\\''"));
            word.push('\'');
        }
        if !part.invalid().is_empty() {
            word.push_str("\"$(printf '");
            for byte in part.invalid() {
                word.push_str(&format!("\\{byte:03o}"));
            }
            word.push_str("')\"");
        }
    }
    if word.is_empty() { "''".to_owned() } else { word }
}

/// A path as one word.
pub(super) fn path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    quote(path.as_os_str().as_bytes())
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        let cases: [&[u8]; 8] = [
            b"",
            b"plain",
            b"it's",
            b"a b\n",
            b"$HOME `x` \"y\" \\",
            b"caf\xe9",
            b"\xff\xfe\n'\xfd",
            b"-rf",
        ];
        for bytes in cases {
            let script = format!("printf '%s' {}", quote(bytes));
            let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(out.stdout, bytes, "{script}");
        }
    }
}
