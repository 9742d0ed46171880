//! Libraries of functions, since Redis 7.0: source texts, each with its name in its first line.

use snapkit_core::facts::{Fact, Facts, Standing};
use snapkit_core::{Error, Result};

/// The media type of [`join`].
pub(crate) const MEDIA_TYPE: &str = "application/vnd.snapkit.redis-functions";

/// One text of all: the length of each in 8 bytes, little-endian, and then it.
pub(crate) fn join(sources: &[Vec<u8>]) -> Vec<u8> {
    let mut all = Vec::new();
    for source in sources {
        all.extend_from_slice(&(source.len() as u64).to_le_bytes());
        all.extend_from_slice(source);
    }
    all
}

/// The texts apart again.
pub(crate) fn split(mut all: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut sources = Vec::new();
    while let Some((len, rest)) = all.split_first_chunk::<8>() {
        let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
        let source = rest.get(..len).ok_or_else(cut_short)?;
        sources.push(source.to_vec());
        all = &rest[len..];
    }
    if all.is_empty() { Ok(sources) } else { Err(cut_short()) }
}

fn cut_short() -> Error {
    Error::corrupt("the functions are cut short")
}

/// The name of a library, in its first line: `#!lua name=NAME`.
pub(crate) fn name(source: &[u8]) -> Option<&[u8]> {
    let line = source.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(u8::is_ascii_whitespace);
    words.find_map(|word| word.strip_prefix(b"name="))
}

/// How many there are, and a digest of all.
pub(crate) fn facts(sources: &[Vec<u8>], standing: Standing) -> Facts {
    let mut facts = Facts::new();
    let mut put = |name: &str, value| {
        facts.0.insert(name.to_owned(), Fact { standing, value });
    };
    put("functions", (sources.len() as u64).into());
    let digest = blake3::hash(&join(sources));
    put("functions.digest", digest.to_hex().as_str().into());
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_apart_again() {
        for sources in
            [vec![], vec![vec![]], vec![b"#!lua name=a\n".to_vec(), vec![0; 300], vec![]]]
        {
            let all = join(&sources);
            assert_eq!(split(&all).unwrap(), sources);
            for cut in 1..all.len().min(12) {
                let part = split(&all[..all.len() - cut]);
                assert!(part.is_err() || part.unwrap().len() < sources.len(), "{cut}");
            }
        }
        let e = split(&u64::MAX.to_le_bytes()).unwrap_err();
        assert_eq!(e.message(), "the functions are cut short");
        assert_eq!(name(b"#!lua name=lib\nname=other"), Some(&b"lib"[..]));
        assert_eq!(name(b"#!lua\nname=other"), None);
    }
}
