//! What a stream holds, as its server gives it when it is asked for all of it, and what is said of that.

use std::time::Duration;

use snapkit_core::context::Context;
use snapkit_core::facts::{Fact, FactValue, Facts, Standing};
use snapkit_core::scratch::Room;
use snapkit_core::{Error, Reason, Result};

use crate::archive;
use crate::document::StreamDocument;
use crate::server::{Server, StreamState};
use crate::spool::{Spool, SpoolWriter};
use crate::tally::Tally;
use crate::transfer::download;

/// Streams that have facts of their own; of the others there is only a sum.
const NAMED: usize = 64;

/// A stream that was taken.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) document: StreamDocument,
    pub(crate) messages: Spool,
}

/// What lies between attempts to have a server give a stream.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

/// Whether a server looked for a file that it has just removed, or not yet made, as 2.9.10 does under load.
fn was_elsewhere(e: &Error) -> bool {
    e.reason() == Reason::Corrupt && e.to_string().contains("no such file or directory")
}

/// Take a stream up to where it was, or as it is now.
///
/// `corrupt` if the server gives another number of messages than it says that it has, and none were removed meanwhile.
pub(crate) async fn take(
    cx: &Context,
    server: &Server,
    stream: &str,
    room: &Room,
    frozen: Option<StreamState>,
) -> Result<Taken> {
    let mut pauses = PAUSES.iter();
    let (told, (contents, spool)) = loop {
        let (inner, room, name) = (cx.clone(), room.clone(), stream.to_owned());
        let downloaded = download(cx, server, stream, move |pieces| {
            let mut spool = SpoolWriter::begin(&inner, &room)?;
            let contents = archive::read(&inner, &name, pieces, &mut spool)?;
            Ok((contents, spool))
        });
        match (downloaded.await, pauses.next()) {
            (Err(e), Some(pause)) if was_elsewhere(&e) => cx.sleep(*pause).await?,
            (other, _) => break other?,
        }
    };
    let state = frozen.unwrap_or(told.state);
    let range = (state.first_seq, state.last_seq);
    let spool = cx.blocking(move || spool.finish(range.0, range.1)).await?;
    let info = server.stream(cx, stream).await?;
    let is_quiet = (info.state.first_seq, info.state.messages)
        == (
            state.first_seq,
            state.messages + (info.state.last_seq - range.1.min(info.state.last_seq)),
        );
    if is_quiet && spool.tally.messages != state.messages {
        let what = "the server gave another number of messages than the stream has";
        return Err(Error::corrupt(what)
            .with("stream", stream)
            .with("messages", state.messages)
            .with("given", spool.tally.messages));
    }
    let mut consumers = contents.consumers;
    // The others go when whoever uses them goes.
    consumers.retain(|consumer| {
        consumer.config["durable_name"].as_str().is_some_and(|name| !name.is_empty())
    });
    consumers.sort_by(|a, b| a.name.cmp(&b.name));
    consumers.iter_mut().for_each(|consumer| consumer.clamp(range.1));
    let document = StreamDocument::new(told.config, info.created, range, consumers);
    Ok(Taken { document, messages: spool })
}

/// What is said of several streams.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    streams: u64,
    messages: u64,
    consumers: u64,
    hasher: Option<blake3::Hasher>,
    named: Facts,
    standing: Option<Standing>,
}

impl Summary {
    pub(crate) fn new(standing: Standing) -> Self {
        let hasher = blake3::Hasher::new_derive_key("snapkit 1-draft nats streams");
        Self { hasher: Some(hasher), standing: Some(standing), ..Self::default() }
    }

    /// Add a stream; they come in the order of their names.
    pub(crate) fn add(&mut self, document: &StreamDocument, tally: &Tally) {
        let standing = self.standing.unwrap_or(Standing::Observed);
        let name = document.name();
        let mut hasher = blake3::Hasher::new_derive_key("snapkit 1-draft nats consumers");
        let first = document.first_seq;
        document.consumers.iter().for_each(|consumer| consumer.digest(first, &mut hasher));
        let consumers = hasher.finalize().to_hex().to_string();
        let digest = tally.digest();
        if let Some(hasher) = &mut self.hasher {
            for text in [name, &digest, &consumers] {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
            hasher.update(&document.last_seq.to_le_bytes());
        }
        self.streams += 1;
        self.messages += tally.messages;
        self.consumers += document.consumers.len() as u64;
        if self.streams > NAMED as u64 {
            return;
        }
        let mut put = |what: &str, value: FactValue| {
            self.named.0.insert(format!("{name}.{what}"), Fact { standing, value });
        };
        put("messages", tally.messages.into());
        put("first_seq", tally.first.into());
        put("last_seq", document.last_seq.into());
        put("digest", digest.into());
        put("consumers", (document.consumers.len() as u64).into());
        put("consumers.digest", consumers.into());
        for consumer in document.consumers.iter().take(NAMED) {
            let (own, [delivered, floor]) = (&consumer.name, consumer.floors(first));
            put(&format!("{own}.delivered"), delivered.into());
            put(&format!("{own}.ack_floor"), floor.into());
            put(&format!("{own}.pending"), (consumer.state.pending.len() as u64).into());
        }
        for consumer in document.consumers.iter().take(NAMED) {
            let [_, floor] = consumer.floors(first);
            let behind = document.last_seq.saturating_sub(floor);
            self.named.observe(format!("{name}.{}.behind", consumer.name), behind);
        }
    }

    pub(crate) fn facts(&self) -> Facts {
        let standing = self.standing.unwrap_or(Standing::Observed);
        let mut facts = self.named.clone();
        let mut put = |name: &str, value: FactValue| {
            facts.0.insert(name.to_owned(), Fact { standing, value });
        };
        put("streams", self.streams.into());
        put("messages", self.messages.into());
        put("consumers", self.consumers.into());
        let digest = self.hasher.as_ref().map(|hasher| hasher.finalize().to_hex().to_string());
        put("digest", digest.unwrap_or_default().into());
        facts
    }
}
