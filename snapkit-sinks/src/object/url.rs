//! URLs of stores: `SCHEME://BUCKET/PREFIX`, and how patiently all of them are spoken to.

use std::time::Duration;

use object_store::path::Path;
use object_store::{ClientOptions, RetryConfig};
use snapkit_core::error::{Error, Reason, Result};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How long one request may take: 64 MiB at 1 Mbit/s. Its silence is limited where answers are read: the client's own
/// limit would count the time in which we send.
const REQUEST: Duration = Duration::from_secs(600);

/// The bucket and what is below it.
pub(super) fn parts<'u>(url: &'u str, scheme: &str) -> Result<(&'u str, Path)> {
    let bad = |why: &str| Error::invalid(format!("{why}: write {scheme}://BUCKET/PREFIX"));
    let rest = url
        .split_once("://")
        .filter(|(given, _)| given.eq_ignore_ascii_case(scheme))
        .map(|(_, rest)| rest)
        .ok_or_else(|| bad("this is no URL of such a store"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') {
        // The rest may hold a secret: it is not repeated.
        return Err(bad("credentials do not belong into a URL"));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if bucket.len() < 3 || bucket.len() > 255 || !bucket.chars().all(fits) {
        return Err(bad("the URL names no bucket"));
    }
    if url.contains(['?', '#']) {
        return Err(bad("a repository's URL has no query and no fragment"));
    }
    let prefix = Path::parse(prefix.trim_end_matches('/'))
        .map_err(|e| bad("the URL's path has empty, relative or odd parts").caused_by(e))?;
    Ok((bucket, prefix))
}

/// The place, for people.
pub(super) fn location(scheme: &str, bucket: &str, prefix: &Path) -> String {
    let mut location = format!("{scheme}://{bucket}");
    if !prefix.as_ref().is_empty() {
        location.push('/');
        location.push_str(prefix.as_ref());
    }
    location
}

/// Time limits of a client.
pub(super) fn client() -> ClientOptions {
    ClientOptions::new().with_connect_timeout(CONNECT).with_timeout(REQUEST)
}

/// Attempts are counted where they can be cancelled.
pub(super) fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// What a builder complains about.
pub(super) fn unusable(location: &str, e: object_store::Error) -> Error {
    let told = Error::new(Reason::InvalidConfig, "the store cannot be used like this");
    told.with("location", location).caused_by(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let (bucket, prefix) = parts("s3://acme-backups/shop/a b/", "s3").unwrap();
        assert_eq!((bucket, prefix.as_ref()), ("acme-backups", "shop/a b"));
        assert_eq!(parts("GS://acme", "gs").unwrap().1.as_ref(), "");
        for bad in [
            "s3://",
            "s3:///x",
            "s3://ab",
            "s3://a b/",
            "s3://acme/../x",
            "s3://acme/a//b",
            "s3://acme?x",
            "gs://acme",
            "é",
        ] {
            assert_eq!(parts(bad, "s3").unwrap_err().reason(), Reason::InvalidArgument, "{bad}");
        }
        let e = parts("s3://key:hunter2@acme/x", "s3").unwrap_err();
        assert!(!format!("{e:?}").contains("hunter2"));
    }
}
