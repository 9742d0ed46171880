//! Every odd kind of entry that a file system can hold.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};

use super::set_mtime;

/// What [`odd`] made, and what it could not make here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Odd {
    /// What there is, in words.
    pub made: Vec<&'static str>,
    /// What this file system, this user or this machine does not allow, and the error.
    pub skipped: Vec<(&'static str, String)>,
}

impl Odd {
    fn add(&mut self, what: &'static str, made: io::Result<()>) -> io::Result<()> {
        use io::ErrorKind::{NotFound, PermissionDenied, Unsupported};
        match made {
            Ok(()) => self.made.push(what),
            Err(e) if matches!(e.kind(), PermissionDenied | Unsupported | NotFound) => {
                self.skipped.push((what, e.to_string()));
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// Make every odd kind of entry in a directory that exists and is empty: the same each time, where
/// the file system and the rights of the user allow it. Devices need root, and are of the null and a
/// loop device. Use [`make_removable`] before removing the directory as another user than root.
pub fn odd(dir: &Path) -> io::Result<Odd> {
    let mut odd = Odd::default();
    odd.add("empty file", File::create_new(dir.join("empty")).map(drop))?;
    odd.add("empty directory", fs::create_dir(dir.join("empty-dir")))?;
    links(dir, &mut odd)?;
    sparse(dir, &mut odd)?;
    special(dir, &mut odd)?;
    names(dir, &mut odd)?;
    attributes(dir, &mut odd)?;
    modes(dir, &mut odd)?;
    // Last: whatever is made in a directory changes its time.
    times(dir, &mut odd)?;
    Ok(odd)
}

fn links(dir: &Path, odd: &mut Odd) -> io::Result<()> {
    fs::write(dir.join("linked"), "three names")?;
    fs::create_dir(dir.join("links"))?;
    odd.add("hard link", fs::hard_link(dir.join("linked"), dir.join("links/again")))?;
    odd.add("hard link", fs::hard_link(dir.join("linked"), dir.join("a-third")))?;
    odd.add("symlink to a file", symlink("../linked", dir.join("links/to-file")))?;
    odd.add("symlink to a directory", symlink("../empty-dir", dir.join("links/to-dir")))?;
    odd.add("dangling symlink", symlink("no/such/thing", dir.join("links/dangling")))?;
    odd.add("absolute symlink", symlink("/etc/passwd", dir.join("links/absolute")))?;
    odd.add("symlink out of the tree", symlink("../../../../..", dir.join("links/out")))?;
    odd.add("symlink to itself", symlink("itself", dir.join("links/itself")))?;
    let odd_target = OsStr::from_bytes(b"not utf-8 \xff\n");
    odd.add("symlink to no UTF-8", symlink(odd_target, dir.join("links/bytes")))?;
    odd.add("long symlink", symlink("x".repeat(4000), dir.join("links/long")))
}

fn sparse(dir: &Path, odd: &mut Odd) -> io::Result<()> {
    const MIB: u64 = 1 << 20;
    let make = |name: &str, len: u64, data: &[(u64, &[u8])]| -> io::Result<()> {
        let file = File::create_new(dir.join(name))?;
        file.set_len(len)?;
        data.iter().try_for_each(|(at, bytes)| file.write_all_at(bytes, *at))
    };
    let block = [0x5a; 8192];
    odd.add(
        "hole at the beginning",
        make("sparse-begin", 2 * MIB + 5, &[(2 * MIB - 3, &block[..8])]),
    )?;
    odd.add(
        "hole in the middle",
        make("sparse-middle", 4 * MIB, &[(0, &block), (4 * MIB - 8192, &block)]),
    )?;
    odd.add("hole at the end", make("sparse-end", 3 * MIB, &[(0, &block)]))?;
    odd.add("nothing but a hole", make("sparse-all", MIB + 1, &[]))?;
    odd.add("huge hole", make("sparse-huge", 1 << 36, &[(1 << 35, &block)]))?;
    let many: Vec<(u64, &[u8])> = (0..64).map(|i| (i * 2 * 65536, &block[..4096])).collect();
    odd.add("many holes", make("sparse-many", 64 * 2 * 65536, &many))?;
    // Zeros that are data, not a hole.
    odd.add("written zeros", fs::write(dir.join("zeros"), vec![0; 300_000]))
}

fn special(dir: &Path, odd: &mut Odd) -> io::Result<()> {
    let make = |name: &str, kind, major, minor| -> io::Result<()> {
        Ok(mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o640), makedev(major, minor))?)
    };
    odd.add("named pipe", make("pipe", FileType::Fifo, 0, 0))?;
    odd.add("socket", make("socket", FileType::Socket, 0, 0))?;
    odd.add("character device", make("char-device", FileType::CharacterDevice, 1, 3))?;
    odd.add("block device", make("block-device", FileType::BlockDevice, 7, 0))
}

fn names(dir: &Path, odd: &mut Odd) -> io::Result<()> {
    let dir = dir.join("names");
    fs::create_dir(&dir)?;
    let cases: [(&'static str, &[u8]); 14] = [
        ("name with a newline", b"two\nlines"),
        ("name that is no UTF-8", b"caf\xe9 \xff\xfe"),
        ("name with spaces", b" leading and trailing "),
        ("name with a leading dash", b"-rf"),
        ("name with a backslash", b"back\\slash\\n"),
        ("name with wildcards", b"*?[a]{b}$HOME`id`"),
        ("name with quotes", b"it's \"quoted\""),
        ("name with an escape sequence", b"\x1b[31mred\x1b[0m"),
        ("hidden name", b".hidden"),
        ("name of dots", b"..."),
        ("composed name", "\u{e9}".as_bytes()),
        ("decomposed name", "e\u{301}".as_bytes()),
        ("name of 255 bytes", &[b'n'; 255]),
        ("name with a colon", b"c:\\con.txt"),
    ];
    for (what, name) in cases {
        odd.add(what, fs::write(dir.join(OsStr::from_bytes(name)), name))?;
    }
    // A sibling that sorts between a directory and what is in it, byte for byte.
    fs::create_dir(dir.join("order"))?;
    fs::write(dir.join("order/inside"), "x")?;
    odd.add("name that sorts before a slash", fs::write(dir.join("order-"), "x"))?;
    let mut deep = dir.join("deep");
    (0..64).for_each(|level| deep.push(format!("level-{level:02}")));
    odd.add(
        "deep nesting",
        fs::create_dir_all(&deep).and_then(|()| fs::write(deep.join("end"), "x")),
    )
}

fn attributes(dir: &Path, odd: &mut Odd) -> io::Result<()> {
    let path = dir.join("attributes");
    fs::write(&path, "has attributes")?;
    let set = |path: &Path, name: &str, value: &[u8]| -> io::Result<()> {
        Ok(setxattr(path, name, value, XattrFlags::empty())?)
    };
    odd.add("extended attribute", set(&path, "user.comment", b"plain"))?;
    odd.add("binary extended attribute", set(&path, "user.binary", b"\0\xff\n"))?;
    odd.add("empty extended attribute", set(&path, "user.empty", b""))?;
    odd.add("large extended attribute", set(&path, "user.large", &[b'v'; 1500]))?;
    fs::create_dir(dir.join("attributes-dir"))?;
    odd.add(
        "extended attribute of a directory",
        set(&dir.join("attributes-dir"), "user.dir", b"d"),
    )?;
    let acl = |path: &Path, rule: &str| -> io::Result<()> {
        let set =
            Command::new("setfacl").args(["-m", rule]).arg(path).stderr(Stdio::null()).status()?;
        // The program fails where the file system has no lists.
        if set.success() { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    };
    fs::write(dir.join("acl"), "has an access control list")?;
    odd.add("access control list", acl(&dir.join("acl"), "u:12345:r--,g:54321:rw-"))?;
    fs::create_dir(dir.join("acl-dir"))?;
    odd.add("default access control list", acl(&dir.join("acl-dir"), "d:u:12345:rwx"))
}

fn modes(dir: &Path, odd: &mut Odd) -> io::Result<()> {
    let cases = [
        ("read-only file", "read-only", 0o444),
        ("file without any rights", "no-rights", 0o000),
        ("setuid file", "setuid", 0o4755),
        ("setgid file", "setgid", 0o2755),
        ("world-writable file", "world-writable", 0o666),
    ];
    for (what, name, mode) in cases {
        let path = dir.join(name);
        fs::write(&path, name)?;
        odd.add(what, fs::set_permissions(&path, Permissions::from_mode(mode)))?;
    }
    for (what, name, mode) in [
        ("read-only directory", "read-only-dir", 0o555),
        ("sticky directory", "sticky-dir", 0o1777),
    ] {
        let path = dir.join(name);
        fs::create_dir(&path)?;
        fs::write(path.join("inside"), name)?;
        odd.add(what, fs::set_permissions(&path, Permissions::from_mode(mode)))?;
    }
    Ok(())
}

fn times(dir: &Path, odd: &mut Odd) -> io::Result<()> {
    let cases = [
        ("time to the nanosecond", "time-nanos", 1_700_000_000, 123_456_789),
        ("time just before 1970", "time-before-1970", -1, 999_999_999),
        ("time long before 1970", "time-long-ago", -1_000_000_000, 1),
        ("time of zero", "time-zero", 0, 0),
        ("time after 2038", "time-future", 4_000_000_000, 500_000_000),
    ];
    for (what, name, seconds, nanos) in cases {
        let path = dir.join(name);
        fs::write(&path, name)?;
        odd.add(what, set_mtime(&path, seconds, nanos))?;
    }
    odd.add(
        "time of a symlink",
        set_mtime(&dir.join("links/dangling"), 1_600_000_000, 987_654_321),
    )?;
    odd.add("time of a directory", set_mtime(&dir.join("names"), 1_500_000_000, 1))
}

/// Give back the rights that removing a tree needs. Symbolic links are not followed.
pub fn make_removable(dir: &Path) -> io::Result<()> {
    let mode = fs::symlink_metadata(dir)?.permissions().mode();
    if mode & 0o700 != 0o700 {
        fs::set_permissions(dir, Permissions::from_mode(mode | 0o700))?;
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_removable(&entry.path())?;
        }
    }
    Ok(())
}
