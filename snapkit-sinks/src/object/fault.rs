//! What an answer of a store means.
//!
//! Stores answer with an HTTP status and a document that names a code (S3: "Error Responses" in the API
//! reference). The status is mostly told by the kind of error; the code is looked up in the text.

use object_store::client::{HttpError, HttpErrorKind};
use snapkit_core::error::{Error, Reason};

/// The name of a store in an error that says: two puts were in each other's way and neither won.
pub(super) const CONFLICT: &str = "conflict";

/// What an answer means.
#[derive(Debug)]
pub(super) enum Fault {
    /// It may be different next time.
    Passing(Error),
    /// It will be the same next time.
    Final(Error),
    /// There is no such object.
    Missing,
    /// There is an object already.
    Exists,
    /// The object ends before the range begins.
    Short,
}

/// Understand an error of a store.
pub(super) fn fault(e: &object_store::Error) -> Fault {
    use object_store::Error as Of;
    // Of an object that is there nothing else counts, whatever an attempt before has met.
    if matches!(e, Of::AlreadyExists { .. } | Of::Precondition { .. } | Of::NotModified { .. }) {
        return Fault::Exists;
    }
    let text = e.to_string();
    let code = between(&text, "<Code>", "</Code>").unwrap_or("");
    if let Some((reason, what)) = known(code) {
        let e = Error::new(reason, what).caused_by(Answer::new(&text));
        return if reason == Reason::Unavailable { Fault::Passing(e) } else { Fault::Final(e) };
    }
    match e {
        Of::Generic { store, .. } if *store == CONFLICT => {
            let e = Error::new(Reason::Unavailable, "another put was in the way");
            return Fault::Passing(e.caused_by(Answer::new(&text)));
        }
        Of::NotFound { .. } => return Fault::Missing,
        Of::PermissionDenied { .. } | Of::Unauthenticated { .. } => {
            let what = "the store refuses this: check the credentials, and what they allow";
            return Fault::Final(denied(what, &text));
        }
        Of::NotImplemented { .. } | Of::NotSupported { .. } => {
            let e = Error::new(Reason::Unsupported, "the store does not know how to do this");
            return Fault::Final(e.caused_by(Answer::new(&text)));
        }
        _ => {}
    }
    // The request could not even be made.
    if text.contains("builder error") {
        let what = "an address of the store, or of its credentials, cannot be used";
        return Fault::Final(Error::new(Reason::InvalidConfig, what).caused_by(Answer::new(&text)));
    }
    if let Some(kind) = http_error(e) {
        let what = match kind {
            HttpErrorKind::Timeout => "the store did not answer in time",
            HttpErrorKind::Connect => "the store cannot be reached",
            HttpErrorKind::Decode => "the store's answer was cut short",
            _ => "the connection to the store was lost",
        };
        let of_metadata = ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "metadata.google"];
        if of_metadata.iter().any(|host| text.contains(host)) {
            return Fault::Final(denied(NO_CREDENTIALS, &text));
        }
        return Fault::Passing(Error::new(Reason::Unavailable, what).caused_by(Answer::new(&text)));
    }
    let redirected = text.contains("redirect without LOCATION");
    match status(&text) {
        Some(416) => Fault::Short,
        status if redirected || matches!(status, Some(301 | 307 | 308)) => Fault::Final(
            Error::new(Reason::InvalidConfig, WRONG_REGION).caused_by(Answer::new(&text)),
        ),
        Some(501) => Fault::Final(
            Error::new(Reason::Unsupported, "the store does not know how to do this")
                .caused_by(Answer::new(&text)),
        ),
        Some(status) if (400..500).contains(&status) && status != 408 && status != 429 => {
            let e = Error::new(Reason::InvalidConfig, "the store does not accept the request");
            Fault::Final(e.caused_by(Answer::new(&text)))
        }
        Some(429 | 503) => {
            let e = Error::new(Reason::Unavailable, BUSY);
            Fault::Passing(e.caused_by(Answer::new(&text)))
        }
        _ => {
            let e = Error::new(Reason::Unavailable, "the store has failed");
            Fault::Passing(e.caused_by(Answer::new(&text)))
        }
    }
}

const NO_CREDENTIALS: &str = "no credentials for the store were found: set AWS_ACCESS_KEY_ID and \
    AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role gives them";

const BUSY: &str = "the store is too busy";

const WRONG_REGION: &str = "the bucket is in another region: set AWS_REGION to its region";

/// Codes of S3 that say more than a status.
fn known(code: &str) -> Option<(Reason, &'static str)> {
    Some(match code {
        "NoSuchBucket" | "ContainerNotFound" => {
            (Reason::InvalidConfig, "there is no such bucket: create it first, or check its name")
        }
        "ExpiredToken" | "TokenRefreshRequired" | "ExpiredTokenException" => {
            (Reason::PermissionDenied, "the credentials have expired: get new ones")
        }
        "RequestTimeTooSkewed" | "RequestExpired" => (
            Reason::PermissionDenied,
            "the store does not believe this machine's clock: set the clock",
        ),
        "InvalidAccessKeyId" | "InvalidToken" => {
            (Reason::PermissionDenied, "the store does not know this access key")
        }
        "SignatureDoesNotMatch" => {
            (Reason::PermissionDenied, "the secret key does not belong to this access key")
        }
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => {
            (Reason::PermissionDenied, "the store does not allow this with these credentials")
        }
        "AuthorizationHeaderMalformed"
        | "PermanentRedirect"
        | "IllegalLocationConstraintException" => (Reason::InvalidConfig, WRONG_REGION),
        "SlowDown"
        | "ServiceUnavailable"
        | "InternalError"
        | "RequestTimeout"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded" => (Reason::Unavailable, BUSY),
        "QuotaExceeded" | "StorageFull" | "XMinioStorageFull" => {
            (Reason::NoSpace, "the store has no space left")
        }
        "NotImplemented" => (Reason::Unsupported, "the store does not know how to do this"),
        _ => return None,
    })
}

fn denied(what: &str, text: &str) -> Error {
    Error::new(Reason::PermissionDenied, what).caused_by(Answer::new(text))
}

/// What went wrong with the connection, if that is it.
fn http_error(e: &object_store::Error) -> Option<HttpErrorKind> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(e) = cause {
        if let Some(http) = e.downcast_ref::<HttpError>() {
            return Some(http.kind());
        }
        cause = e.source();
    }
    None
}

/// The status in a text such as `status code: 503 Service Unavailable`.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(open)?;
    rest.split_once(close).map(|(inside, _)| inside)
}

/// What a store said, in its words: one line of bounded length, without the parameters of URLs, which
/// may be signatures.
#[derive(Debug)]
struct Answer(String);

impl Answer {
    const LONGEST: usize = 500;

    fn new(text: &str) -> Self {
        // Of a document the code and the message are enough.
        let text = match text.split_once("<?xml").or_else(|| text.split_once("<Error>")) {
            Some((before, document)) => {
                let part = |name: &str| {
                    between(document, &format!("<{name}>"), &format!("</{name}>")).unwrap_or("")
                };
                format!("{before}{} {}", part("Code"), part("Message"))
            }
            None => text.to_owned(),
        };
        let mut told = String::new();
        for word in text.split_whitespace() {
            let word = match word.split_once('?') {
                Some((place, _)) if word.contains("://") => place,
                _ => word,
            };
            if told.len() + word.len() > Self::LONGEST {
                told.push_str(" …");
                break;
            }
            if !told.is_empty() {
                told.push(' ');
            }
            told.push_str(word);
        }
        Self(told)
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Answer {}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    /// What is said of a request that went wrong before there was a status.
    fn told(kind: HttpErrorKind, text: &'static str) -> String {
        told_of(HttpError::new(kind, std::io::Error::other(text)).into())
    }

    fn told_of(source: Box<dyn std::error::Error + Send + Sync>) -> String {
        match fault(&object_store::Error::Generic { store: "S3", source }) {
            Fault::Passing(e) => format!("for now: {} ({})\n", e.chain(), e.reason()),
            Fault::Final(e) => format!("{} ({})\n", e.chain(), e.reason()),
            other => format!("{other:?}\n"),
        }
    }

    #[test]
    fn of_requests_without_an_answer() {
        let kinds = [
            HttpErrorKind::Timeout,
            HttpErrorKind::Connect,
            HttpErrorKind::Decode,
            HttpErrorKind::Interrupted,
            HttpErrorKind::Unknown,
        ];
        let mut all: String = kinds.into_iter().map(|kind| told(kind, "in the net")).collect();
        all += &told(HttpErrorKind::Request, "builder error");
        all += &told(
            HttpErrorKind::Connect,
            "error sending request for url (http://169.254.169.254/)",
        );
        all += &told_of("redirect without LOCATION".into());
        assert_snapshot!(all, @"
        for now: the store did not answer in time: Generic S3 error: HTTP error: in the net (unavailable)
        for now: the store cannot be reached: Generic S3 error: HTTP error: in the net (unavailable)
        for now: the store's answer was cut short: Generic S3 error: HTTP error: in the net (unavailable)
        for now: the connection to the store was lost: Generic S3 error: HTTP error: in the net (unavailable)
        for now: the connection to the store was lost: Generic S3 error: HTTP error: in the net (unavailable)
        an address of the store, or of its credentials, cannot be used: Generic S3 error: HTTP error: builder error (invalid-config)
        no credentials for the store were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role gives them: Generic S3 error: HTTP error: error sending request for url (http://169.254.169.254/) (permission-denied)
        the bucket is in another region: set AWS_REGION to its region: Generic S3 error: redirect without LOCATION (invalid-config)
        ");
    }
}
