//! A stream goes in once, and comes back as a file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use insta::assert_snapshot;
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

/// Who stops a pipeline stops the program that writes into it, too.
#[tokio::test]
async fn a_stream_that_ends_with_the_run_is_not_whole() {
    let cx = Context::system();
    for pieces in [&["half of"][..], &[]] {
        let cx = cx.child();
        let source = source("a.sql", bytes(pieces));
        let capture = source.capture(&cx, None).await.unwrap();
        let name = ArtifactName::new("a.sql").unwrap();
        let body = capture.open(&cx, &name).await.unwrap().into_bytes().unwrap();
        cx.cancel();
        let e = body.try_collect::<Vec<_>>().await.unwrap_err();
        assert!(e.is_cancelled(), "{}", e.chain());
    }
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

/// What a program hears that uses a session in a way in which it cannot be used.
#[tokio::test]
async fn calls_in_another_order_are_refused() {
    let cx = Context::system();
    let (dir, recovery) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut said = String::new();
    let mut hear = |e: Error| {
        let text = e.chain().replace(dir.path().to_str().unwrap(), "[DIR]");
        let text = text.replace(recovery.path().to_str().unwrap(), "[RECOVERY]");
        said += &format!("{text} ({}, exit {})\n", e.reason(), e.reason().row().exit);
    };
    let source = source("dump.sql", bytes(&["x"]));
    let session = source.capture(&cx, None).await.unwrap();
    hear(source.capture(&cx, None).await.err().unwrap());
    hear(session.open(&cx, &ArtifactName::new("other").unwrap()).await.err().unwrap());
    hear(session.finish(&cx).await.err().unwrap());
    hear(source.facts(&cx).await.err().unwrap());

    let again = Stream::captured(SourceName::new("dump").unwrap(), config("dump.sql")).unwrap();
    let request = |target| RestoreRequest::new(target, SourceRecord::new(again.info()));
    hear(again.restore(&cx, &request(Target::Original)).await.err().unwrap());
    let to = Target::Directory(dir.path().join("none"));
    hear(again.restore(&cx, &request(to)).await.err().unwrap());
    let to = || Target::Directory(dir.path().to_owned());
    hear(again.restore(&cx, &request(to())).await.unwrap().finish(&cx).await.err().unwrap());
    let meta = ArtifactMeta::new(
        ArtifactName::new("dump.sql").unwrap(),
        snapkit_core::artifact::Shape::Bytes,
        "x",
        Chunking::Content,
    );
    let mut session = again.restore(&cx, &request(to())).await.unwrap();
    session.put(&cx, &meta, Body::Bytes(bytes(&["x"]))).await.unwrap();
    hear(session.put(&cx, &meta, Body::Bytes(bytes(&["x"]))).await.err().unwrap());
    session.abort(&cx).await.unwrap();
    std::fs::write(dir.path().join("dump.sql"), "old").unwrap();
    std::fs::write(recovery.path().join("dump.sql"), "older").unwrap();
    hear(restore(dir.path(), None, bytes(&["x"])).await.err().unwrap());
    hear(restore(dir.path(), Some(recovery.path()), bytes(&["x"])).await.err().unwrap());
    std::fs::remove_file(dir.path().join("dump.sql")).unwrap();
    std::fs::create_dir(dir.path().join("dump.sql")).unwrap();
    hear(restore(dir.path(), Some(recovery.path()), bytes(&["x"])).await.err().unwrap());
    assert_snapshot!(said, @"
    a stream is captured while it is handed over, as `snapkit create --stdin` does: it cannot be opened again (unsupported, exit 1)
    a stream can be read once (artifact=other) (not-found, exit 1)
    the stream was not read to its end (internal, exit 1)
    a stream is gone once it was read: there is nothing to examine (source=dump) (unsupported, exit 1)
    a stream has no original place: restore it with --target, or have it with `snapkit dump` (unsupported, exit 1)
    cannot examine [DIR]/none: No such file or directory (os error 2) (not-found, exit 1)
    nothing was put to be restored (invalid-argument, exit 2)
    a stream is one artifact (artifact=dump.sql) (invalid-argument, exit 2)
    something is there already (path=[DIR]/dump.sql) (target-not-empty, exit 11)
    an old state is kept there already (path=[RECOVERY]/dump.sql) (already-exists, exit 11)
    a directory stands where a file has to be (path=[DIR]/dump.sql) (already-exists, exit 11)
    ");
}
