//! What the program that captures writes, and whether that is whole.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use snapkit_core::artifact::ByteStream;
use snapkit_core::context::Context;
use snapkit_core::{Error, Reason, Result};
use snapkit_source_stream::Tally;
use tokio::process::ChildStdout;

use crate::config::{CommandConfig, MAX_END};
use crate::program::Running;

/// The setting that names the program.
const CAPTURE: &str = "`capture`";

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
    pub(crate) fn lack(&self, config: &CommandConfig) -> Option<String> {
        let bytes = self.tally.bytes;
        if bytes == 0 {
            return Some("it is empty".to_owned());
        }
        if bytes < config.min_size {
            return Some(format!("it has {bytes} bytes, and `min_size` wants {}", config.min_size));
        }
        let end = config.end.as_ref()?.as_bytes();
        let is_there = self.tail.windows(end.len()).any(|window| window == end);
        (!is_there).then(|| "the text that `end` wants near its end is not there".to_owned())
    }

    pub(crate) fn into_tally(self) -> Tally {
        self.tally
    }
}

/// A program that has begun to write.
pub(crate) struct Output {
    running: Running,
    pipe: ChildStdout,
    first: Option<Bytes>,
}

impl Output {
    /// Start the program and wait for its first byte. `source-missing` if it ends without one.
    pub(crate) async fn begin(cx: &Context, config: &CommandConfig) -> Result<Self> {
        let mut running = Running::start(cx, config, (CAPTURE, &config.capture), Stdio::null())?;
        let mut pipe = running.output()?;
        let first = running.read(cx, &mut pipe, config.idle).await?;
        if first.is_none() {
            running.succeed(cx).await?;
            return Err(incomplete(Reason::SourceMissing, "it is empty", config));
        }
        Ok(Self { running, pipe, first })
    }

    /// All that it writes. The last item is an error if the program fails, or what it wrote is not whole.
    pub(crate) fn stream(
        self,
        cx: &Context,
        config: &Arc<CommandConfig>,
        seen: Seen,
    ) -> ByteStream {
        let (cx, config) = (cx.clone(), Arc::clone(config));
        let begun = (self, Examiner::default());
        Box::pin(stream::try_unfold(begun, move |(mut output, mut examiner)| {
            let (cx, config, seen) = (cx.clone(), Arc::clone(&config), Arc::clone(&seen));
            async move {
                let piece = match output.first.take() {
                    Some(first) => Some(first),
                    None => output.running.read(&cx, &mut output.pipe, config.idle).await?,
                };
                if let Some(piece) = piece {
                    examiner.take_in(&piece);
                    return Ok(Some((piece, (output, examiner))));
                }
                output.running.succeed(&cx).await?;
                if let Some(lack) = examiner.lack(&config) {
                    return Err(incomplete(Reason::SourceMissing, &lack, &config));
                }
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(examiner.into_tally());
                Ok(None)
            }
        }))
    }

    /// The program is not wanted any more.
    pub(crate) async fn end(mut self, cx: &Context) {
        self.running.end(cx).await;
    }
}

fn incomplete(reason: Reason, lack: &str, config: &CommandConfig) -> Error {
    let name = config.capture.first().map_or("", String::as_str);
    Error::new(reason, format!("what {CAPTURE} has written is not whole: {lack}"))
        .with("program", name)
}
