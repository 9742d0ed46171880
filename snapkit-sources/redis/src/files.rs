//! Files for a server that is stopped.
//!
//! A server with an append-only file does not look at `dump.rdb`, and writes an empty one over it; one without does not
//! look at the other. So both are there, and are one file with two names (`src/aof.c` of Redis 7.0).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::shell;
use snapkit_core::{Error, Reason, Result};

use crate::assemble::unreadable;

/// The snapshot, for servers without an append-only file.
pub(crate) const DUMP: &str = "dump.rdb";
/// The directory of the append-only files, since Redis 7.0.
const APPEND_ONLY: &str = "appendonlydir";
const BASE: &str = "appendonly.aof.1.base.rdb";
const INCREMENT: &str = "appendonly.aof.1.incr.aof";
const MANIFEST: &str = "appendonly.aof.manifest";
const MANIFEST_TEXT: &str =
    "file appendonly.aof.1.base.rdb seq 1 type b\nfile appendonly.aof.1.incr.aof seq 1 type i\n";

/// What is in the way in a directory.
pub(crate) fn in_the_way(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for name in [DUMP, APPEND_ONLY] {
        let path = directory.join(name);
        match fs::symlink_metadata(&path) {
            Ok(_) => found.push(path),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => {
                return Err(Error::io("cannot examine the target", e).with("path", path.display()));
            }
        }
    }
    Ok(found)
}

/// A directory in which the files are made before they get their places. It goes when it is dropped.
struct Stage(PathBuf);

impl Drop for Stage {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A directory for what is replaced: in `recovery`, where what other restores have kept stays as it is, and beside the
/// target if that is in another file system.
fn room(cx: &Context, directory: &Path, recovery: &Path) -> Result<PathBuf> {
    let device = |path: &Path| {
        let what = || format!("cannot examine {}", path.display());
        fs::metadata(path).map(|meta| std::os::unix::fs::MetadataExt::dev(&meta)).doing(what)
    };
    let token: String = cx.random::<8>()?.iter().map(|byte| format!("{byte:02x}")).collect();
    let room = match device(directory)? == device(recovery)? {
        true => recovery.join(format!("files-{token}")),
        false => directory.join(format!(".snapkit-before-{token}")),
    };
    DirBuilder::new()
        .mode(0o700)
        .create(&room)
        .doing(|| format!("cannot write {}", room.display()))?;
    Ok(room)
}

/// Write the files. Where what was there has been moved to, if anything was and it is to be kept: into `recovery`.
pub(crate) fn write(
    cx: &Context,
    directory: &Path,
    recovery: Option<&Path>,
    mut snapshot: impl Read,
    texts: &[(String, Vec<u8>)],
) -> Result<Option<PathBuf>> {
    let token: String = cx.random::<8>()?.iter().map(|byte| format!("{byte:02x}")).collect();
    let stage = Stage(directory.join(format!(".snapkit-restore-{token}")));
    let what = |path: &Path| format!("cannot write {}", path.display());
    let make = |path: &Path| DirBuilder::new().mode(0o700).create(path).doing(|| what(path));
    make(&stage.0)?;
    let create = |path: &Path| -> Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).doing(|| what(path))
    };
    let dump = stage.0.join(DUMP);
    let mut file = create(&dump)?;
    let mut piece = vec![0; 256 << 10];
    loop {
        cx.check()?;
        let n = snapshot.read(&mut piece).map_err(unreadable)?;
        if n == 0 {
            break;
        }
        file.write_all(&piece[..n]).doing(|| what(&dump))?;
    }
    file.sync_all().doing(|| what(&dump))?;
    let append_only = stage.0.join(APPEND_ONLY);
    make(&append_only)?;
    fs::hard_link(&dump, append_only.join(BASE))
        .or_else(|_| fs::copy(&dump, append_only.join(BASE)).map(drop))
        .doing(|| what(&append_only.join(BASE)))?;
    let small = [
        (append_only.join(INCREMENT), &b""[..]),
        (append_only.join(MANIFEST), MANIFEST_TEXT.as_bytes()),
    ];
    let texts = texts.iter().map(|(name, text)| (stage.0.join(name), &text[..]));
    for (path, text) in small.into_iter().chain(texts.clone()) {
        let mut file = create(&path)?;
        file.write_all(text).and_then(|()| file.sync_all()).doing(|| what(&path))?;
    }
    sync(&append_only)?;
    let names: Vec<_> =
        texts.map(|(path, _)| path).chain([append_only.clone(), dump.clone()]).collect();
    let is_there = |from: &PathBuf| {
        fs::symlink_metadata(directory.join(from.file_name().unwrap_or_default())).is_ok()
    };
    let recovery = match recovery.filter(|_| names.iter().any(is_there)) {
        Some(recovery) => Some(room(cx, directory, recovery)?),
        None => None,
    };
    let mut moved = Vec::new();
    let placed = names.into_iter().try_for_each(|from| {
        let name = from.file_name().unwrap_or_default().to_owned();
        let to = directory.join(&name);
        if fs::symlink_metadata(&to).is_ok() {
            let kept = match &recovery {
                Some(recovery) => recovery.join(&name),
                // Nobody asked for it to be kept.
                None => stage.0.join(format!("old-{}", name.display())),
            };
            fs::rename(&to, &kept)
                .doing(|| format!("cannot move {} aside to {}", to.display(), kept.display()))?;
            moved.push((kept, to.clone()));
        }
        fs::rename(&from, &to).doing(|| what(&to))?;
        moved.push((to, from));
        Ok(())
    });
    if let Err(e) = placed {
        // The other way round, as far as it came.
        for (to, from) in moved.into_iter().rev() {
            if let Err(back) = fs::rename(&to, &from) {
                let text = format!(
                    "{} could not be moved back to {}: {back}",
                    to.display(),
                    from.display()
                );
                return Err(Error::new(Reason::Io, text).caused_by(e));
            }
        }
        if let Some(room) = recovery {
            drop(fs::remove_dir(room));
        }
        return Err(e);
    }
    for directory in recovery.as_deref().into_iter().chain([directory]) {
        sync(directory)?;
    }
    Ok(recovery)
}

/// How to bring back what was kept.
pub(crate) fn undo(directory: &Path, kept: Option<&Path>) -> Vec<String> {
    let Some(kept) = kept else { return Vec::new() };
    let (kept, directory) = (shell::path(kept), shell::path(directory));
    vec![
        "# stop the server, then:".to_owned(),
        format!(
            "for name in {DUMP} {APPEND_ONLY}; do if [ -e {kept}/$name ]; then rm -r {directory}/$name && mv {kept}/$name {directory}/; fi; done"
        ),
    ]
}

fn sync(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .doing(|| format!("cannot make the directory {} durable", directory.display()))
}
