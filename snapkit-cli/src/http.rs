//! Asking an address over HTTP, for probes. Without the feature `http` there is none, and it is said so.

use snapkit_core::error::{Error, Reason, Result};

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Its first mebibyte, as text.
    pub(crate) body: String,
}

/// A URL without what may be secret in it.
pub(crate) fn shown(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    url[..end].to_owned()
}

/// That a URL can be asked.
pub(crate) fn check(url: &str) -> Result<()> {
    let bad = |why: &str| Err(Error::new(Reason::InvalidConfig, format!("`http`: {why}")));
    let Some(rest) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else {
        return bad("write a URL such as http://127.0.0.1:8000/health");
    };
    if rest.split('/').next().is_some_and(|host| host.is_empty() || host.contains('@')) {
        return bad("the URL names no host, or holds credentials");
    }
    if cfg!(not(feature = "http")) {
        return bad("this program was built without HTTP: use `run` with a program such as curl");
    }
    Ok(())
}

#[cfg(not(feature = "http"))]
pub(crate) async fn get(url: &str) -> Result<Answer> {
    check(url)?;
    Ok(Answer { status: 0, body: String::new() })
}

#[cfg(feature = "http")]
pub(crate) async fn get(url: &str) -> Result<Answer> {
    use futures_util::StreamExt as _;

    const MAX_BODY: usize = 1 << 20;
    let failed = |e: reqwest::Error| {
        Error::new(Reason::Unavailable, "the address does not answer").caused_by(e.without_url())
    };
    // Where it leads to is another address, which nobody has named.
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    let answer = client.build().map_err(failed)?.get(url).send().await.map_err(failed)?;
    let status = answer.status().as_u16();
    let mut body = Vec::new();
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(failed)?;
        let room = MAX_BODY - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if body.len() == MAX_BODY {
            break;
        }
    }
    Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
}
