//! Words for a POSIX shell: what sources print as the way back holds paths, which hold anything.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Bytes as one word, whatever they are. What a terminal would not show as it is, is made by `printf`, so that the command
/// can be copied from a report.
#[must_use]
pub fn quote(bytes: &[u8]) -> String {
    let mut word = String::new();
    let mut odd = Vec::new();
    let mut plain = String::new();
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            // A line break at the end of what a command prints is taken off by the shell.
            if c.is_control() && c != '\n' {
                end_plain(&mut plain, &mut word);
                odd.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                end_odd(&mut odd, &mut word);
                plain.push(c);
            }
        }
        if !part.invalid().is_empty() {
            end_plain(&mut plain, &mut word);
            odd.extend_from_slice(part.invalid());
        }
    }
    end_odd(&mut odd, &mut word);
    end_plain(&mut plain, &mut word);
    if word.is_empty() { "''".to_owned() } else { word }
}

/// A path as one word.
#[must_use]
pub fn path(path: &Path) -> String {
    quote(path.as_os_str().as_bytes())
}

fn end_plain(plain: &mut String, word: &mut String) {
    if !plain.is_empty() {
        word.push_str(&format!("'{}'", plain.replace('\'', "'\\''")));
        plain.clear();
    }
}

fn end_odd(odd: &mut Vec<u8>, word: &mut String) {
    if !odd.is_empty() {
        let octal: String = odd.iter().map(|byte| format!("\\{byte:03o}")).collect();
        word.push_str(&format!("\"$(printf '{octal}')\""));
        odd.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        let cases: [&[u8]; 10] = [
            b"",
            b"plain",
            b"it's",
            b"a b\n",
            b"$HOME `x` \"y\" \\",
            b"caf\xe9",
            b"\xff\xfe\n'\xfd",
            b"-rf",
            b"\x1b[31m\t\x7f\r\n",
            "\u{85}é".as_bytes(),
        ];
        for bytes in cases {
            let word = quote(bytes);
            let script = format!("printf '%s' {word}");
            let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(out.stdout, bytes, "{script}");
            assert!(!word.chars().any(|c| c.is_control() && c != '\n'), "{word:?}");
        }
    }
}
