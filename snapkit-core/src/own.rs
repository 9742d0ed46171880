//! Files of our own, outside of every repository: local state and caches, private to their owner.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use crate::error::{Error, IoContext as _, Result};

/// Make a directory that only its owner can enter.
pub(crate) fn create_private_dir(dir: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).doing(|| format!("cannot create the directory {}", dir.display()))
}

/// How a file is made that only its owner can read.
pub(crate) fn private_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Replace a small private file in one step, with its directory.
pub(crate) fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    let what = || format!("cannot write {}", path.display());
    let dir = path.parent().unwrap_or(Path::new("."));
    create_private_dir(dir)?;
    let mut temporary = tempfile::NamedTempFile::new_in(dir).doing(what)?;
    temporary.write_all(content).doing(what)?;
    temporary.as_file().sync_all().doing(what)?;
    temporary.persist(path).map_err(|e| Error::io(what(), e.error))?;
    Ok(())
}

/// Open a file to read it. Whatever else stands there, such as a pipe, would keep us waiting.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    if fs::metadata(path)?.is_file() { File::open(path) } else { Err(no_file()) }
}

fn no_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is no file")
}

/// Add to the end of a private file, which is made if it is not there.
pub(crate) fn append_file(path: &Path, content: &[u8]) -> io::Result<()> {
    // Nor is a link followed: in a directory of several users it may be somebody else's.
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => Err(no_file()),
        // One short append is one step on every local file system.
        _ => private_options().append(true).create(true).open(path)?.write_all(content),
    }
}

/// The content of a file, unless it has more than `most` bytes.
pub(crate) fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_file(path)?.take(most.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is far too long"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_or_too_long_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        write_file(&path, b"12345").unwrap();
        assert_eq!(read_file(&path, 5).unwrap(), b"12345");
        assert_eq!(read_file(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        append_file(&path, b"67").unwrap();
        append_file(&dir.path().join("d"), b"8").unwrap();
        assert_eq!(read_file(&path, 9).unwrap(), b"1234567");
        assert_eq!(read_file(&dir.path().join("d"), 9).unwrap(), b"8");
        assert!(append_file(Path::new("/dev/null"), b"9").is_err());
        assert!(open_file(dir.path()).is_err());
        assert!(read_file(Path::new("/dev/zero"), 5).is_err());
        let missing = read_file(&dir.path().join("c"), 5).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
