//! From what a person writes to a sink.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::memory::MemorySink;
use snapkit_core::sink::Sink;

use crate::limited::Limited;
use crate::local::{LocalSink, absolute};
use crate::settings::Settings;

/// Open the sink that a path or URL names: a path or `file:///PATH`, which must be a directory,
/// `s3://BUCKET/PREFIX` (feature `s3`), `gs://BUCKET/PREFIX` (`gcs`), `az://CONTAINER/PREFIX` (`azure`), or
/// `memory://`, which is a new one each time. What a store needs to
/// know beside its URL is taken from the variables of this process.
///
/// `invalid-argument` if it makes no sense, `unsupported` for a scheme that is not known,
/// `no-repository` if nothing is there. A store is not asked yet.
pub async fn open(cx: &Context, url: &str) -> Result<Arc<dyn Sink>> {
    open_with(cx, url, &Settings::of_process()).await
}

/// Open the sink that a path or URL names, and make it first if it is missing, with the directories
/// above it. A bucket is never made. Errors as for [`open`], apart from `no-repository`.
pub async fn create(cx: &Context, url: &str) -> Result<Arc<dyn Sink>> {
    create_with(cx, url, &Settings::of_process()).await
}

/// [`open`], with settings of one's own.
pub async fn open_with(cx: &Context, url: &str, settings: &Settings) -> Result<Arc<dyn Sink>> {
    let sink: Arc<dyn Sink> = match Location::parse(url)? {
        Location::Path(path) => Arc::new(LocalSink::open(cx, path).await?),
        Location::Store(kind) => store(cx, kind, url, settings).await?,
        Location::Memory => Arc::new(MemorySink::new()),
    };
    Ok(Limited::wrap(sink, settings.rates()))
}

/// [`create`], with settings of one's own.
pub async fn create_with(cx: &Context, url: &str, settings: &Settings) -> Result<Arc<dyn Sink>> {
    let sink: Arc<dyn Sink> = match Location::parse(url)? {
        Location::Path(path) => Arc::new(LocalSink::create(cx, path).await?),
        Location::Store(kind) => store(cx, kind, url, settings).await?,
        Location::Memory => Arc::new(MemorySink::new()),
    };
    Ok(Limited::wrap(sink, settings.rates()))
}

/// A store that is not of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    S3,
    Gcs,
    Azure,
}

async fn store(cx: &Context, kind: Kind, url: &str, settings: &Settings) -> Result<Arc<dyn Sink>> {
    let (url, settings) = (url.to_owned(), settings.clone());
    // Profiles and keys are files.
    cx.run(cx.blocking(move || open_store(kind, &url, &settings))).await
}

#[cfg_attr(
    not(any(feature = "s3", feature = "gcs", feature = "azure")),
    allow(unused_variables, clippy::unnecessary_wraps, reason = "there is nothing to open")
)]
fn open_store(kind: Kind, url: &str, settings: &Settings) -> Result<Arc<dyn Sink>> {
    match kind {
        #[cfg(feature = "s3")]
        Kind::S3 => Ok(Arc::new(crate::object::ObjectSink::s3(url, settings)?)),
        #[cfg(feature = "gcs")]
        Kind::Gcs => Ok(Arc::new(crate::object::ObjectSink::gcs(url, settings)?)),
        #[cfg(feature = "azure")]
        Kind::Azure => Ok(Arc::new(crate::object::ObjectSink::azure(url, settings)?)),
        #[cfg(not(feature = "s3"))]
        Kind::S3 => Err(not_built("s3")),
        #[cfg(not(feature = "gcs"))]
        Kind::Gcs => Err(not_built("gcs")),
        #[cfg(not(feature = "azure"))]
        Kind::Azure => Err(not_built("azure")),
    }
}

#[cfg(not(all(feature = "s3", feature = "gcs", feature = "azure")))]
fn not_built(feature: &str) -> Error {
    let what = format!("this program was built without such stores: its feature `{feature}`");
    Error::new(Reason::Unsupported, what)
}

/// The directory that a path or URL names, absolute, if it names one: what a local repository there says
/// of its place. Nothing is looked at.
pub fn directory(url: &str) -> Result<Option<PathBuf>> {
    match Location::parse(url)? {
        Location::Path(path) => absolute(&path).map(Some),
        Location::Store(_) | Location::Memory => Ok(None),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Location {
    Path(PathBuf),
    Store(Kind),
    Memory,
}

impl Location {
    fn parse(url: &str) -> Result<Self> {
        if url.is_empty() {
            return Err(Error::invalid("the repository's path or URL is empty"));
        }
        if url.contains('\0') {
            return Err(Error::invalid("a path holds no zero byte"));
        }
        let Some((scheme, rest)) = split_scheme(url) else { return Ok(Self::Path(url.into())) };
        match scheme.to_ascii_lowercase().as_str() {
            "file" => file_path(rest).map(Self::Path),
            "s3" => Ok(Self::Store(Kind::S3)),
            "gs" => Ok(Self::Store(Kind::Gcs)),
            "az" => Ok(Self::Store(Kind::Azure)),
            "memory" if matches!(rest, "//" | "///") => Ok(Self::Memory),
            "memory" => Err(Error::invalid("a repository in memory has no name: write memory://")),
            // The rest may hold a password: it is not repeated.
            other => Err(Error::new(
                Reason::Unsupported,
                format!(
                    "repositories at {other}:// URLs are not known here; \
                     known are a path, file:///PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, \
                     az://CONTAINER/PREFIX and memory://"
                ),
            )),
        }
    }
}

/// The scheme of a URL and what follows its colon. A path is none, however odd; `file:` alone needs
/// no slashes to be one, as in RFC 8089.
fn split_scheme(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    let is_url =
        rest.starts_with("//") || (scheme.eq_ignore_ascii_case("file") && rest.starts_with('/'));
    (is_scheme && is_url).then_some((scheme, rest))
}

fn file_path(rest: &str) -> Result<PathBuf> {
    let path = match rest.strip_prefix("//") {
        Some(rest) => {
            let slash = rest.find('/').unwrap_or(rest.len());
            let (host, path) = rest.split_at(slash);
            if !host.is_empty() && !host.eq_ignore_ascii_case("localhost") {
                return Err(Error::invalid(
                    "a file URL names no other host: write file:///PATH with three slashes, \
                     or a plain path",
                )
                .with("host", host.rsplit('@').next().unwrap_or(host)));
            }
            path
        }
        None => rest,
    };
    if path.is_empty() {
        return Err(Error::invalid("the file URL has no path: write file:///PATH"));
    }
    if let Some(c) = path.chars().find(|c| matches!(c, '?' | '#')) {
        return Err(Error::invalid(format!(
            "a file URL has no {}: write %{:02X} for {c:?}",
            if c == '?' { "query" } else { "fragment" },
            u32::from(c)
        )));
    }
    decode_percent(path).map(|bytes| OsString::from_vec(bytes).into())
}

fn decode_percent(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = tail;
            continue;
        }
        let digit = |at: usize| {
            tail.get(at)
                .and_then(|b| char::from(*b).to_digit(16))
                .and_then(|d| u8::try_from(d).ok())
        };
        match (digit(0), digit(1)) {
            (Some(0), Some(0)) => return Err(Error::invalid("a path holds no zero byte")),
            (Some(high), Some(low)) => bytes.push((high << 4) | low),
            _ => {
                return Err(Error::invalid(
                    "two hexadecimal digits follow a % in a URL; write %25 for a % itself",
                )
                .with("path", text));
            }
        }
        rest = &tail[2..];
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    fn path(url: &str) -> Vec<u8> {
        let Location::Path(path) = Location::parse(url).unwrap() else {
            panic!("{url} is no path")
        };
        path.as_os_str().as_bytes().to_vec()
    }

    fn refused(url: &str) -> Error {
        Location::parse(url).unwrap_err()
    }

    #[test]
    fn paths_are_taken_as_they_are() {
        for plain in ["/a", "a/b", "./s3://x", "a b%20c", "c:/x", "files:x", "~", "9x://y"] {
            assert_eq!(path(plain), plain.as_bytes());
        }
    }

    #[test]
    fn file_urls_are_decoded_once_and_by_bytes() {
        assert_eq!(path("file:///srv/backups"), b"/srv/backups");
        assert_eq!(path("FILE://localhost/srv/x"), b"/srv/x");
        assert_eq!(path("file:/srv/x"), b"/srv/x");
        assert_eq!(path("file:///a%20b%2525/%C3%A4%ff+c"), b"/a b%25/\xc3\xa4\xff+c");
        assert_eq!(path("file:///%2e%2E/x"), b"/../x");
        assert_eq!(path("file:///ä"), "/ä".as_bytes());
    }

    #[test]
    fn what_is_no_file_url_is_refused() {
        for bad in [
            "",
            "a\0b",
            "file://",
            "file://srv/backups",
            "file:///a%",
            "file:///a%2",
            "file:///a%zz",
            "memory://x",
            "file:///a%00b",
            "file:///a?b",
            "file:///a#b",
            "file:///%é",
        ] {
            assert_eq!(refused(bad).reason(), Reason::InvalidArgument, "{bad:?}");
        }
        assert!(refused("file:///a?b").message().contains("%3F"));
    }

    #[test]
    fn directories_are_told() {
        assert_eq!(directory("file:///srv/a%20b").unwrap(), Some("/srv/a b".into()));
        let here = std::env::current_dir().unwrap();
        assert_eq!(directory("x").unwrap(), Some(here.join("x")));
        assert_eq!(directory("memory://").unwrap(), None);
        assert_eq!(directory("s3://bucket/y").unwrap(), None);
        assert!(directory("ftp://x/y").is_err());
    }

    #[test]
    fn memory_is_known() {
        assert_eq!(Location::parse("memory://").unwrap(), Location::Memory);
    }

    #[test]
    fn other_schemes_are_named_and_their_secrets_are_not() {
        let e = refused("FTP://key:hunter2@bucket/x");
        assert_eq!(e.reason(), Reason::Unsupported);
        assert!(e.message().contains("ftp://") && e.message().contains("file:///PATH"), "{e}");
        assert!(!format!("{e:?}").contains("hunter2"));
    }
}
