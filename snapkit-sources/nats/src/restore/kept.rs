//! What a stream held before it was replaced: an archive in a directory, as the server gave it.

use std::fs;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use snapkit_core::Result;
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::scratch::Room;

use super::{ARCHIVE, BACKUP};
use crate::archive;
use crate::server::{Server, StreamInfo};
use crate::spool::SpoolWriter;
use crate::transfer::{download, upload};

/// The old state of a stream.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) directory: PathBuf,
    told: Value,
}

/// Writes down what is read.
struct Tee<R> {
    input: R,
    file: fs::File,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.file.write_all(&buffer[..n])?;
        Ok(n)
    }
}

/// A new directory for a stream: what was kept before stays.
fn room_for(recovery: &Path, name: &str) -> Result<PathBuf> {
    let mut directory = recovery.join(name);
    for number in 2.. {
        match fs::create_dir(&directory) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => {
                made.doing(|| format!("cannot create the directory {}", directory.display()))?;
                break;
            }
        }
        directory = recovery.join(format!("{name}.{number}"));
    }
    Ok(directory)
}

/// Keep a stream, and make sure that what was kept is all of it.
pub(super) async fn keep(
    cx: &Context,
    server: &Server,
    stream: &StreamInfo,
    recovery: PathBuf,
    room: &Room,
) -> Result<Kept> {
    let name = stream.name().to_owned();
    let own = name.clone();
    let directory = cx.blocking(move || room_for(&recovery, &own)).await?;
    let (inner, room, place) = (cx.clone(), room.clone(), directory.clone());
    let (told, spool) = download(cx, server, &name.clone(), move |pieces| {
        let what = || format!("cannot write in {}", place.display());
        let file = fs::File::create_new(place.join(ARCHIVE)).doing(what)?;
        let mut tee = Tee { input: pieces, file };
        let mut spool = SpoolWriter::begin(&inner, &room)?;
        archive::read(&inner, &name, &mut tee, &mut spool)?;
        io::copy(&mut tee, &mut io::sink()).map_err(archive::unreadable)?;
        tee.file.sync_all().doing(what)?;
        Ok(spool)
    })
    .await?;
    drop(spool);
    let told = json!({
        "config": told.config,
        "state": {
            "messages": told.state.messages,
            "bytes": told.state.bytes,
            "first_seq": told.state.first_seq,
            "last_seq": told.state.last_seq,
            "consumer_count": told.state.consumer_count,
        },
    });
    let (text, path) = (told.to_string(), directory.join(BACKUP));
    cx.blocking(move || {
        fs::write(&path, text).doing(|| format!("cannot write {}", path.display()))
    })
    .await?;
    Ok(Kept { directory, told })
}

impl Kept {
    /// Make the stream again.
    pub(super) async fn put_back(&self, cx: &Context, server: &Server, name: &str) -> Result<()> {
        let path = self.directory.join(ARCHIVE);
        upload(cx, server, name, &self.told, move |output| {
            let what = || format!("cannot read {}", path.display());
            let mut file = fs::File::open(&path).doing(what)?;
            io::copy(&mut file, output).map(drop).map_err(archive::list::unwritable)
        })
        .await
        .map(drop)
    }
}
