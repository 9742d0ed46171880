//! What is kept of a stream besides its messages.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use snapkit_core::{Error, Reason, Result};

use crate::archive::Format;
use crate::config::is_token;
use crate::consumer::Consumer;
use crate::server::Version;

/// What stands behind the name of a stream in that of its artifact.
pub(crate) const SUFFIX: &str = ".json";

/// The version of this document.
const FORMAT: u32 = 1;

/// A stream without its messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StreamDocument {
    format: u32,
    /// Its configuration, as the server says it.
    pub(crate) config: Value,
    /// When it was made, RFC 3339.
    pub(crate) created: String,
    /// The number of the first message, or of the next one if there is none.
    pub(crate) first_seq: u64,
    /// The number of the last message, whether it is still there or not.
    pub(crate) last_seq: u64,
    /// Its consumers that have a name of their own.
    pub(crate) consumers: Vec<Consumer>,
}

impl StreamDocument {
    pub(crate) fn new(
        config: Value,
        created: String,
        (first_seq, last_seq): (u64, u64),
        consumers: Vec<Consumer>,
    ) -> Self {
        Self { format: FORMAT, config, created, first_seq, last_seq, consumers }
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::internal("cannot encode a stream").caused_by(e))
    }

    /// Read the one of a stream.
    pub(crate) fn decode(name: &str, json: &[u8]) -> Result<Self> {
        let broken = |why: &str| {
            Error::corrupt(format!("the document of a stream is malformed: {why}"))
                .with("stream", name)
        };
        let document: Self =
            serde_json::from_slice(json).map_err(|e| broken("it is another").caused_by(e))?;
        if document.format != FORMAT {
            let what = format!(
                "the document of a stream has format {}, this program knows {FORMAT}",
                document.format
            );
            return Err(Error::new(Reason::Unsupported, what).with("stream", name));
        }
        if document.name() != name || !is_token(name) {
            return Err(broken("it is of another stream"));
        }
        if document.consumers.iter().any(|consumer| !is_token(&consumer.name)) {
            return Err(broken("a consumer has an impossible name"));
        }
        Ok(document)
    }

    pub(crate) fn name(&self) -> &str {
        self.config["name"].as_str().unwrap_or_default()
    }

    /// Whether it is kept in memory by its server.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.config["storage"] == "memory"
    }

    /// In which form a server takes it.
    pub(crate) fn format_for(&self, version: Version) -> Result<Format> {
        match version.has_lists() {
            true => Ok(Format::List),
            false if self.is_in_memory() => Err(Error::new(
                Reason::Unsupported,
                "a server before NATS 2.15 takes no archive of a stream in memory",
            )
            .with("stream", self.name())),
            false => Ok(Format::Files),
        }
    }

    /// Subjects that its messages come from; none for a mirror.
    pub(crate) fn subjects(&self) -> impl Iterator<Item = &str> {
        self.config["subjects"].as_array().into_iter().flatten().filter_map(Value::as_str)
    }
}

/// Whether a subject can fit two patterns, in which `*` stands for one part and `>` for all that follow.
pub(crate) fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(x), Some(y)) if x == y || x == "*" || y == "*" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_overlap() {
        for (a, b, expected) in [
            ("a.b", "a.b", true),
            ("a.*", "*.b", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("a.b", "a.b.c", false),
            ("a.*", "b.*", false),
            (">", "a", true),
        ] {
            assert_eq!((overlap(a, b), overlap(b, a)), (expected, expected), "{a} {b}");
        }
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let config = serde_json::json!({ "name": "ORDERS" });
        let mut document = StreamDocument::new(config, String::new(), (1, 5), Vec::new());
        let told = |name: &str, json: &[u8]| {
            let e = StreamDocument::decode(name, json).unwrap_err();
            format!("{e} ({})", e.reason())
        };
        let json = document.encode().unwrap();
        StreamDocument::decode("ORDERS", &json).unwrap();
        let mut all = vec![told("ORDERS", b"{}"), told("OTHER", &json)];
        document.format = 2;
        all.push(told("ORDERS", &document.encode().unwrap()));
        document.format = 1;
        let consumer =
            Consumer { name: "../x".to_owned(), config: Value::Null, state: Default::default() };
        document.consumers.push(consumer);
        all.push(told("ORDERS", &document.encode().unwrap()));
        insta::assert_snapshot!(all.join("\n"), @"
        the document of a stream is malformed: it is another (stream=ORDERS) (corrupt)
        the document of a stream is malformed: it is of another stream (stream=OTHER) (corrupt)
        the document of a stream has format 2, this program knows 1 (stream=ORDERS) (unsupported)
        the document of a stream is malformed: a consumer has an impossible name (stream=ORDERS) (corrupt)
        ");
    }
}
