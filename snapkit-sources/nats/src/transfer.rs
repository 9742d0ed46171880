//! Archives on their way: from a server in pieces that are acknowledged, and to it in pieces that it answers
//! (`server/jetstream_api.go`, `jsStreamSnapshotRequest` and `processStreamRestore`).

use std::io::{self, Read, Write};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use snapkit_core::context::Context;
use snapkit_core::{Error, Reason, Result};
use tokio::sync::mpsc;

use crate::server::{Server, StreamInfo, StreamState};

/// How large the pieces are that a server is asked for.
const PIECE: usize = 64 << 10;

/// And those that it is given, unless it takes only smaller ones.
const PIECE_UP: usize = 128 << 10;

/// Pieces that are on their way to or from the thread that reads or writes them.
const UNDER_WAY: usize = 64;

/// How long a server may take to make a stream of what it was given.
const MAKING: Duration = Duration::from_secs(3600);

/// What a server says of an archive before it comes.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Told {
    pub(crate) config: Value,
    pub(crate) state: StreamState,
}

/// Take the archive of a stream, and let a thread of its own read it.
pub(crate) async fn download<T: Send + 'static>(
    cx: &Context,
    server: &Server,
    stream: &str,
    read: impl FnOnce(&mut Pieces) -> Result<T> + Send + 'static,
) -> Result<(Told, T)> {
    let (sender, receiver) = mpsc::channel(UNDER_WAY);
    let reading = cx.blocking(move || {
        let mut pieces = Pieces { receiver, piece: Bytes::new() };
        read(&mut pieces)
    });
    let (told, read) = futures_util::future::join(fetch(cx, server, stream, sender), reading).await;
    match (told, read) {
        // What was not read to its end stopped the way there, too.
        (Err(e), Err(_)) | (Err(e), Ok(_))
            if e.reason() != Reason::Cancelled || cx.check().is_err() =>
        {
            Err(e.with("stream", stream))
        }
        (_, Err(e)) => Err(e.with("stream", stream)),
        (Err(e), _) => Err(e.with("stream", stream)),
        (Ok(told), Ok(read)) => Ok((told, read)),
    }
}

async fn fetch(
    cx: &Context,
    server: &Server,
    stream: &str,
    sender: mpsc::Sender<Bytes>,
) -> Result<Told> {
    let lost =
        |what: &str| Error::new(Reason::Unavailable, what.to_owned()).with("server", &server.url);
    let inbox = server.client.new_inbox();
    // Before the question: a server waits two seconds for somebody to listen.
    let mut pieces = server
        .client
        .subscribe(inbox.clone())
        .await
        .map_err(|e| lost("the server cannot be asked").caused_by(e))?;
    let question = json!({ "deliver_subject": inbox, "chunk_size": PIECE });
    let told: Told = server.ask(cx, &format!("STREAM.SNAPSHOT.{stream}"), &question).await?;
    let mut last = None;
    loop {
        let limited = cx.within(server.timeout());
        let piece =
            limited.run(async { Ok(pieces.next().await) }).await.map_err(|e| match e.reason() {
                Reason::TimedOut if cx.check().is_ok() => {
                    lost("the server does not go on with the archive of a stream")
                }
                _ => e,
            })?;
        let piece = piece.ok_or_else(|| lost("the connection to the server is lost"))?;
        let status = piece.status.map(|status| status.as_u16());
        if !matches!(status, None | Some(204)) {
            let what = match status {
                Some(408) => {
                    "the server gave up on the archive of a stream: nobody acknowledged its pieces, for which this user needs to publish to $JS.SNAPSHOT.ACK.>"
                }
                _ => "the server could not read all of the stream",
            };
            let why = piece.description.unwrap_or_default();
            return Err(lost(what).with("server_says", format!("{} {why}", status.unwrap_or(0))));
        }
        if piece.payload.is_empty() {
            return Ok(told);
        }
        // What overtakes us is dropped without a word.
        if let Some(reply) = &piece.reply {
            let number = reply.rsplit('.').next().and_then(|number| number.parse::<u64>().ok());
            if last.is_some() && number != last.map(|last: u64| last + 1) {
                return Err(lost("a piece of the archive of a stream was lost on the way"));
            }
            last = number;
        }
        if sender.send(piece.payload).await.is_err() {
            return Err(Error::new(Reason::Cancelled, "nobody reads the archive any more"));
        }
        if let Some(reply) = piece.reply {
            let sent = server.client.publish(reply, Bytes::new()).await;
            sent.map_err(|e| lost("the server cannot be answered").caused_by(e))?;
        }
    }
}

/// An archive as it comes.
pub(crate) struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let Some(piece) = self.receiver.blocking_recv() else { return Ok(0) };
            self.piece = piece;
        }
        let n = self.piece.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.piece[..n]);
        self.piece.advance(n);
        Ok(n)
    }
}

/// Give a server the archive that a thread of its own writes, to make a stream of it. When this fails, a part of the stream may
/// be there.
pub(crate) async fn upload(
    cx: &Context,
    server: &Server,
    stream: &str,
    told: &Value,
    write: impl FnOnce(&mut Output) -> Result<()> + Send + 'static,
) -> Result<StreamInfo> {
    #[derive(Deserialize)]
    struct Begun {
        deliver_subject: String,
    }
    let question = format!("STREAM.RESTORE.{stream}");
    let begun: Begun = server.ask(cx, &question, told).await?;
    let (sender, mut receiver) = mpsc::channel(UNDER_WAY);
    let size = server.client.max_payload().clamp(1024, PIECE_UP);
    let writing = cx.blocking(move || {
        let mut output = Output { sender, piece: Vec::with_capacity(size), size };
        write(&mut output)?;
        output.flush().map_err(crate::archive::list::unwritable)
    });
    let sending = async move {
        while let Some(piece) = receiver.recv().await {
            let subject = begun.deliver_subject.clone();
            let answer = server.request(cx, subject, piece, server.timeout()).await?;
            if !answer.is_empty() {
                server.understood::<Value>(&question, &answer)?;
            }
        }
        // With the receiver ends whoever still writes.
        Ok((question, begun.deliver_subject))
    };
    let (sent, written) = futures_util::future::join(sending, writing).await;
    let sent: Result<_> = sent;
    let (question, subject) = sent?;
    written?;
    let answer = server.request(cx, subject, Bytes::new(), MAKING).await?;
    server.understood(&question, &answer)
}

/// Where an archive is written to on its way to a server.
pub(crate) struct Output {
    sender: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
    size: usize,
}

impl Write for Output {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = buffer.len().min(self.size - self.piece.len());
        self.piece.extend_from_slice(&buffer[..n]);
        if self.piece.len() == self.size {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(self.size));
        self.sender.blocking_send(piece.into()).map_err(|_| {
            io::Error::other(Error::new(Reason::Cancelled, "nobody takes the archive any more"))
        })
    }
}
