//! What the program that captures writes, and whether that is whole.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use snapkit_core::artifact::ByteStream;
use snapkit_core::context::Context;
use snapkit_core::{Error, Reason, Result};
use snapkit_source_stream::Tally;
use tokio::process::ChildStdout;

use crate::config::{CommandConfig, MAX_END, Whole};
use crate::program::Running;

/// The setting that names the program.
const CAPTURE: &str = "`capture`";

/// How long is waited for whoever reads a program that is to be ended.
const HELD: Duration = Duration::from_secs(5);

/// What was read, once it was read to its end and is whole.
pub(crate) type Seen = Arc<Mutex<Option<Tally>>>;

/// Looks at content piece by piece.
#[derive(Clone, Default)]
pub(crate) struct Examiner {
    tally: Tally,
    /// The last bytes, among which the end is looked for.
    tail: Vec<u8>,
}

impl Examiner {
    pub(crate) fn take_in(&mut self, piece: &[u8]) {
        self.tally.take_in(piece);
        let from = piece.len().saturating_sub(MAX_END);
        self.tail.extend_from_slice(&piece[from..]);
        self.tail.drain(..self.tail.len().saturating_sub(MAX_END));
    }

    /// Why what came is not whole content.
    pub(crate) fn lack(&self, whole: &Whole) -> Option<String> {
        let bytes = self.tally.bytes;
        if bytes == 0 {
            return Some("it is empty".to_owned());
        }
        if bytes < whole.min_size {
            return Some(format!("it has {bytes} bytes, and `min_size` wants {}", whole.min_size));
        }
        let end = whole.end.as_ref()?.as_bytes();
        let is_there = self.tail.windows(end.len()).any(|window| window == end);
        (!is_there).then(|| "the text that `end` wants near its end is not there".to_owned())
    }

    pub(crate) fn into_tally(self) -> Tally {
        self.tally
    }
}

/// A program that writes. Whoever reads it shares it with whoever ends it, so that it can be asked to end when nobody reads
/// it any more.
#[derive(Clone, Default)]
pub(crate) struct Output(Arc<tokio::sync::Mutex<Option<Writing>>>);

struct Writing {
    running: Running,
    pipe: ChildStdout,
    first: Option<Bytes>,
}

impl Output {
    /// Start the program and wait for its first byte. `source-missing` if it ends without one.
    pub(crate) async fn begin(&self, cx: &Context, config: &CommandConfig) -> Result<()> {
        let mut slot = self.0.lock().await;
        let mut running = Running::start(cx, config, (CAPTURE, &config.capture), Stdio::null())?;
        let pipe = running.output()?;
        let writing = slot.insert(Writing { running, pipe, first: None });
        writing.first = writing.running.read(cx, &mut writing.pipe, config.idle).await?;
        if writing.first.is_none() {
            writing.running.succeed(cx).await?;
            return Err(incomplete(Reason::SourceMissing, "it is empty", config));
        }
        Ok(())
    }

    /// The next that it writes.
    async fn next(&self, cx: &Context, config: &CommandConfig) -> Result<Option<Bytes>> {
        let mut slot = self.0.lock().await;
        let Some(writing) = slot.as_mut() else {
            return Err(Error::new(Reason::Cancelled, "the program was ended"));
        };
        if let Some(first) = writing.first.take() {
            return Ok(Some(first));
        }
        match writing.running.read(cx, &mut writing.pipe, config.idle).await? {
            Some(piece) => Ok(Some(piece)),
            None => {
                writing.running.succeed(cx).await?;
                *slot = None;
                Ok(None)
            }
        }
    }

    /// All that it writes. The last item is an error if the program fails, or what it wrote is not whole.
    pub(crate) fn stream(
        &self,
        cx: &Context,
        config: &Arc<CommandConfig>,
        seen: Seen,
    ) -> ByteStream {
        let (output, cx, config) = (self.clone(), cx.clone(), Arc::clone(config));
        Box::pin(stream::try_unfold(Examiner::default(), move |mut examiner| {
            let (output, cx, config) = (output.clone(), cx.clone(), Arc::clone(&config));
            let seen = Arc::clone(&seen);
            async move {
                if let Some(piece) = output.next(&cx, &config).await? {
                    examiner.take_in(&piece);
                    return Ok(Some((piece, examiner)));
                }
                if let Some(lack) = examiner.lack(&config.whole()) {
                    return Err(incomplete(Reason::SourceMissing, &lack, &config));
                }
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(examiner.into_tally());
                Ok(None)
            }
        }))
    }

    /// The program is not wanted any more.
    pub(crate) async fn end(&self, cx: &Context) {
        let mut slot = match self.0.try_lock() {
            Ok(slot) => slot,
            // Somebody holds on to what he reads no more. The program is killed with that.
            Err(_) => match cx.for_cleanup(HELD).run(async { Ok(self.0.lock().await) }).await {
                Ok(slot) => slot,
                Err(_) => return,
            },
        };
        if let Some(mut writing) = slot.take() {
            writing.running.end(cx).await;
        }
    }
}

fn incomplete(reason: Reason, lack: &str, config: &CommandConfig) -> Error {
    let name = config.capture.first().map_or("", String::as_str);
    Error::new(reason, format!("what {CAPTURE} has written is not whole: {lack}"))
        .with("program", name)
}
