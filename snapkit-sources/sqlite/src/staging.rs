//! Writing what a repository gives to a file of our own, with its digest on the way.

use std::fs::File;

use bytes::Bytes;
use futures_util::StreamExt as _;
use snapkit_core::artifact::ByteStream;
use snapkit_core::context::Context;
use snapkit_core::{Error, Result};

use crate::client::work;
use crate::pages::{HEADER, PageDigest, page_size_of};

/// How much is gathered before it is written.
const WRITE_SIZE: usize = 1 << 20;

/// A file on its way.
struct Staging {
    file: File,
    digest: Digesting,
    len: u64,
}

/// The digest needs the page size, which the header tells.
enum Digesting {
    Header(Vec<u8>),
    Pages(Box<PageDigest>),
    NoDatabase,
}

impl Staging {
    fn write(&mut self, pieces: &[Bytes]) -> std::io::Result<()> {
        use std::io::Write as _;
        for piece in pieces {
            self.file.write_all(piece)?;
            self.len += piece.len() as u64;
            self.digest.take_in(piece);
        }
        Ok(())
    }
}

impl Digesting {
    fn take_in(&mut self, piece: &[u8]) {
        match self {
            Self::Pages(digest) => digest.update(piece),
            Self::NoDatabase => {}
            Self::Header(start) => {
                start.extend_from_slice(piece);
                if start.len() < HEADER {
                    return;
                }
                *self = page_size_of(start).map_or(Self::NoDatabase, |page_size| {
                    let mut digest = Box::new(PageDigest::new(page_size));
                    digest.update(start);
                    Self::Pages(digest)
                });
            }
        }
    }

    fn finish(&self) -> Option<String> {
        match self {
            Self::Pages(digest) => Some(digest.finish()),
            Self::Header(_) | Self::NoDatabase => None,
        }
    }
}

/// What becomes of a file that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is put in somebody's place: it is durable first.
    Kept,
    /// It is looked at and thrown away.
    Scratch,
}

/// Write a body to a new file of our own: its length, and its page digest if it begins like a database.
/// `cannot` says what it means that the file cannot be written.
pub(crate) async fn write(
    cx: &Context,
    file: File,
    fate: Fate,
    cannot: fn(std::io::Error) -> Error,
    mut body: ByteStream,
) -> Result<(u64, Option<String>)> {
    let mut staging = Staging { file, digest: Digesting::Header(Vec::new()), len: 0 };
    let mut ended = false;
    while !ended {
        let mut pieces = Vec::new();
        let mut gathered = 0;
        while gathered < WRITE_SIZE && !ended {
            match cx.run(async { body.next().await.transpose() }).await? {
                Some(piece) => {
                    gathered += piece.len();
                    pieces.push(piece);
                }
                None => ended = true,
            }
        }
        staging =
            work(cx, move |_| staging.write(&pieces).map(|()| staging).map_err(cannot)).await?;
    }
    work(cx, move |_| {
        if fate == Fate::Kept {
            staging.file.sync_all().map_err(cannot)?;
        }
        Ok((staging.len, staging.digest.finish()))
    })
    .await
}
