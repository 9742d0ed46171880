//! The ignore file of a directory.

use std::io::Read as _;
use std::os::fd::OwnedFd;

use rustix::fs::FileType;
use rustix::io::Errno;
use snapkit_core::error::{Error, Reason, Result};

use crate::pattern::Rules;
use crate::{attributes, dirs, error};

/// Its name.
pub(crate) const NAME: &[u8] = b".snapkitignore";

/// How large it may be, in bytes.
const MAX: u64 = 1 << 20;

/// The rules in the ignore file of a directory, if it has one.
pub(crate) fn read(dir: &OwnedFd, path: &[u8]) -> Result<Option<Rules>> {
    let cannot = |e| error::at("read the ignore file", path, e);
    let file = match dirs::read(dir, NAME) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(e) => return Err(cannot(e)),
    };
    let stat = rustix::fs::fstat(&file).map_err(cannot)?;
    if attributes::file_type(&stat) != FileType::RegularFile {
        return Ok(None);
    }
    if attributes::size(&stat) > MAX {
        let e = Error::new(Reason::LimitExceeded, format!("an ignore file above {MAX} bytes"));
        return Err(e.with("path", error::show(path)));
    }
    let mut text = Vec::new();
    std::fs::File::from(file)
        .take(MAX)
        .read_to_end(&mut text)
        .map_err(|e| Error::io("cannot read the ignore file", e).with("path", error::show(path)))?;
    Rules::from_lines(&text).map(Some)
}
