//! Who holds a lock on a database, as far as the kernel tells.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A file beside a database, such as `app.db-wal`.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The processes, other than this one, that hold a lock on the database or on its `-shm`, each as
/// `name (process N)`. This process itself if it is the only one. Empty where `/proc/locks` is not.
///
/// No file is opened: the kernel's list names inodes.
pub(crate) fn holders(path: &Path) -> Vec<String> {
    let Ok(locks) = std::fs::read_to_string("/proc/locks") else { return Vec::new() };
    let inodes: Vec<(u64, u64)> = [path.to_owned(), beside(path, "-shm")]
        .iter()
        .filter_map(|p| std::fs::metadata(p).ok())
        .map(|m| (m.dev(), m.ino()))
        .collect();
    let mut pids: Vec<u32> = locks
        .lines()
        .filter_map(parse)
        .filter(|l| inodes.contains(&l.inode))
        .map(|l| l.pid)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    let own = std::process::id();
    if pids.iter().any(|p| *p != own) {
        pids.retain(|p| *p != own);
    }
    pids.into_iter().map(|pid| describe(pid, own)).collect()
}

fn describe(pid: u32, own: u32) -> String {
    if pid == own {
        return format!("this process ({pid})");
    }
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{} (process {pid})", name.trim().escape_debug()),
        Err(_) => format!("process {pid}"),
    }
}

struct Lock {
    pid: u32,
    inode: (u64, u64),
}

/// One line, such as `1: POSIX  ADVISORY  WRITE 3568 fd:00:2531452 0 EOF`. Waiting ones, marked with
/// `->`, hold nothing; those of unknown processes have no positive number.
fn parse(line: &str) -> Option<Lock> {
    let mut words = line.split_whitespace().skip(1);
    if words.next()? == "->" {
        return None;
    }
    let mut words = words.skip(2);
    let pid = words.next()?.parse().ok().filter(|p| *p != 0)?;
    let mut place = words.next()?.split(':');
    let major = u32::from_str_radix(place.next()?, 16).ok()?;
    let minor = u32::from_str_radix(place.next()?, 16).ok()?;
    let inode = place.next()?.parse().ok()?;
    Some(Lock { pid, inode: (rustix::fs::makedev(major, minor), inode) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let lock = parse("12: POSIX  ADVISORY  WRITE 3568 fd:00:2531452 0 EOF").unwrap();
        assert_eq!((lock.pid, lock.inode), (3568, (rustix::fs::makedev(0xfd, 0), 2_531_452)));
        for held_by_none in [
            "12: -> POSIX  ADVISORY  WRITE 3568 fd:00:2531452 0 EOF",
            "1: OFDLCK ADVISORY  READ -1 00:06:1028 0 EOF",
            "",
            "1:",
            "x y z w v u",
        ] {
            assert!(parse(held_by_none).is_none(), "{held_by_none:?}");
        }
    }
}
