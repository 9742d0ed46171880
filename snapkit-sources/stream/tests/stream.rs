//! A stream goes in once, and comes back as a file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, ByteStream, Chunking, SourceName};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::facts::{Facts, RestoreVerdict};
use snapkit_core::manifest::SourceRecord;
use snapkit_core::source::{RestoreReport, RestoreRequest, Source as _, Target};
use snapkit_source_stream::{Stream, StreamConfig};

fn bytes(pieces: &[&'static str]) -> ByteStream {
    let pieces: Vec<_> = pieces.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect();
    stream::iter(pieces).boxed()
}

fn config(file: &str) -> StreamConfig {
    StreamConfig { file: ArtifactName::new(file).unwrap() }
}

fn source(file: &str, input: ByteStream) -> Stream {
    Stream::new(SourceName::new("dump").unwrap(), config(file), input).unwrap()
}

async fn capture(source: &Stream) -> Result<(ArtifactMeta, Vec<u8>, Facts)> {
    let cx = Context::system();
    let mut capture = source.capture(&cx, None).await?;
    capture.freeze(&cx).await?;
    capture.thaw(&cx).await?;
    let meta = capture.next(&cx).await?.unwrap();
    assert!(capture.next(&cx).await?.is_none());
    let body = capture.open(&cx, &meta.name).await?.into_bytes()?;
    let content = body.try_collect::<Vec<_>>().await?.concat();
    Ok((meta, content, capture.finish(&cx).await?.facts))
}

async fn restore(
    directory: &Path,
    overwrite: Option<&Path>,
    content: ByteStream,
) -> Result<RestoreReport> {
    let cx = Context::system();
    let source = Stream::captured(SourceName::new("dump").unwrap(), config("dump.sql")).unwrap();
    let record = SourceRecord::new(source.info());
    let mut request = RestoreRequest::new(Target::Directory(directory.to_owned()), record);
    request.overwrite = overwrite.is_some();
    request.recovery = overwrite.map(Path::to_owned);
    let mut session = source.restore(&cx, &request).await?;
    let name = ArtifactName::new("dump.sql").unwrap();
    let shape = snapkit_core::artifact::Shape::Bytes;
    let meta = ArtifactMeta::new(name, shape, "x", Chunking::Content);
    match session.put(&cx, &meta, Body::Bytes(content)).await {
        Ok(()) => session.finish(&cx).await,
        Err(e) => session.abort(&cx).await.and(Err(e)),
    }
}

#[tokio::test]
async fn what_goes_in_comes_back() {
    let (meta, content, facts) =
        capture(&source("dump.sql", bytes(&["SELECT ", "1;"]))).await.unwrap();
    assert_eq!((meta.name.as_str(), content.as_slice()), ("dump.sql", &b"SELECT 1;"[..]));
    let dir = tempfile::tempdir().unwrap();
    let report = restore(dir.path(), None, bytes(&["SELECT 1;"])).await.unwrap();
    assert_eq!(facts.compare(&report.facts).verdict, RestoreVerdict::Match);
    assert_eq!(std::fs::read(dir.path().join("dump.sql")).unwrap(), b"SELECT 1;");
    let other = tempfile::tempdir().unwrap();
    let report = restore(other.path(), None, bytes(&["SELECT 2;"])).await.unwrap();
    assert_eq!(facts.compare(&report.facts).verdict, RestoreVerdict::Differs);
}

#[tokio::test]
async fn nothing_is_no_capture() {
    for pieces in [&[][..], &[""]] {
        let e = capture(&source("dump.sql", bytes(pieces))).await.unwrap_err();
        assert_eq!(e.reason(), Reason::SourceMissing);
    }
    let failing =
        stream::iter([Ok(Bytes::from_static(b"half")), Err(Error::new(Reason::Io, "it broke"))]);
    let e = capture(&source("dump.sql", failing.boxed())).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Io);
}

#[tokio::test]
async fn a_stream_is_there_once() {
    let source = source("dump.tar", bytes(&["x"]));
    let (meta, ..) = capture(&source).await.unwrap();
    assert_eq!(meta.chunking, Chunking::Tar);
    assert_eq!(capture(&source).await.unwrap_err().reason(), Reason::Unsupported);
    assert_eq!(source.facts(&Context::system()).await.unwrap_err().reason(), Reason::Unsupported);
}

#[tokio::test]
async fn what_is_there_is_kept() {
    let (dir, recovery) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = dir.path().join("dump.sql");
    std::fs::write(&place, "old").unwrap();
    let e = restore(dir.path(), None, bytes(&["new"])).await.unwrap_err();
    assert_eq!(e.reason(), Reason::TargetNotEmpty);
    // What breaks on its way changes nothing and leaves nothing.
    let broken = stream::iter([Ok(Bytes::from_static(b"ha")), Err(Error::corrupt("damaged"))]);
    let e = restore(dir.path(), Some(recovery.path()), broken.boxed()).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Corrupt);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read(&place).unwrap(), b"old");

    let report = restore(dir.path(), Some(recovery.path()), bytes(&["new"])).await.unwrap();
    assert_eq!(std::fs::read(&place).unwrap(), b"new");
    let undo = report.undo.join("\n");
    assert!(std::process::Command::new("sh").args(["-ec", &undo]).status().unwrap().success());
    assert_eq!(std::fs::read(&place).unwrap(), b"old");
}
