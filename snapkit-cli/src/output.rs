//! The only writer to standard output and standard error. (The progress bar draws itself; it is
//! hidden while anything is written.)
//!
//! Results go to standard output, everything else to standard error. With `--json` there is one
//! document on standard output, and lines of JSON on standard error.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::json;
use snapkit_core::error::{Error, Result};

use crate::exit;

/// How a run speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Manner {
    /// In JSON instead of text.
    pub(crate) json: bool,
    /// Only results that were asked for, and what is wrong.
    pub(crate) quiet: bool,
}

/// Writes what a run has to say.
#[derive(Debug)]
pub(crate) struct Output {
    manner: Manner,
    stdout: Mutex<BufWriter<Stdout>>,
    /// Nobody reads standard output any more. That is the reader's decision, not a failure.
    closed: AtomicBool,
    /// A list has begun and not ended.
    in_list: AtomicBool,
    /// Content that is no document was written.
    has_content: AtomicBool,
    failure: Mutex<Option<io::Error>>,
    stands: Mutex<Option<String>>,
    warned: Mutex<BTreeSet<String>>,
    bar: Mutex<Option<ProgressBar>>,
}

impl Output {
    pub(crate) fn new(manner: Manner) -> Arc<Self> {
        Arc::new(Self {
            manner,
            stdout: Mutex::new(BufWriter::new(io::stdout())),
            closed: AtomicBool::new(false),
            in_list: AtomicBool::new(false),
            has_content: AtomicBool::new(false),
            failure: Mutex::default(),
            stands: Mutex::default(),
            warned: Mutex::default(),
            bar: Mutex::default(),
        })
    }

    pub(crate) fn is_json(&self) -> bool {
        self.manner.json
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.manner.quiet
    }

    /// Whether writing on is of no use.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Whether nobody reads on, which is told by nothing else.
    pub(crate) fn has_lost_its_reader(&self) -> bool {
        self.is_closed() && lock(&self.failure).is_none()
    }

    /// A line of the result.
    pub(crate) fn line(&self, text: impl Display) {
        if !self.manner.json {
            let mut line = printable(&text.to_string(), false);
            line.push('\n');
            self.to_stdout(line.as_bytes());
        }
    }

    /// A step that somebody may give to a shell, in which a name may hold a line feed.
    pub(crate) fn step(&self, text: &str) {
        if !self.manner.json {
            let mut line = printable(text, true);
            line.push('\n');
            self.to_stdout(line.as_bytes());
        }
    }

    /// The result as a document, with `--json`.
    pub(crate) fn document(&self, document: &impl Serialize) -> Result<()> {
        if self.manner.json {
            let mut text = serde_json::to_vec_pretty(document)
                .map_err(|e| Error::internal("cannot encode the result").caused_by(e))?;
            text.push(b'\n');
            self.to_stdout(&text);
        }
        Ok(())
    }

    /// One item of a result that is a list, with `--json`. A list may be too long to be held.
    pub(crate) fn item(&self, item: &impl Serialize) -> Result<()> {
        if self.manner.json {
            let is_first = !self.in_list.swap(true, Ordering::Relaxed);
            let mut text = if is_first { b"[\n  ".to_vec() } else { b",\n  ".to_vec() };
            serde_json::to_writer(&mut text, item)
                .map_err(|e| Error::internal("cannot encode the result").caused_by(e))?;
            self.to_stdout(&text);
        }
        Ok(())
    }

    /// The end of a result that is a list, with `--json`.
    pub(crate) fn end_list(&self) {
        if self.manner.json {
            let has_items = self.in_list.swap(false, Ordering::Relaxed);
            self.to_stdout(if has_items { b"\n]\n" } else { b"[]\n" });
        }
    }

    /// The snapshot that was committed. It stands, whether standard output can be written or not.
    pub(crate) fn stands(&self, snapshot: impl Display) {
        *lock(&self.stands) = Some(snapshot.to_string());
    }

    /// Bytes of the result, as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) {
        self.has_content.store(true, Ordering::Relaxed);
        self.to_stdout(bytes);
    }

    /// Something to know about the run. Not said with `-q` and `--json`.
    pub(crate) fn note(&self, text: impl Display) {
        if !self.manner.quiet && !self.manner.json {
            self.flush();
            self.to_stderr(&printable(&text.to_string(), false));
        }
    }

    /// Something that is not as it should be. Each is said once.
    pub(crate) fn warn(&self, text: impl Display) {
        let text = text.to_string();
        if !lock(&self.warned).insert(text.clone()) {
            return;
        }
        self.flush();
        if self.manner.json {
            self.to_stderr(&json!({ "warning": text }).to_string());
        } else {
            self.to_stderr(&format!("warning: {}", printable(&text, false)));
        }
    }

    /// A finished line of progress or of the log.
    pub(crate) fn progress(&self, line: &str) {
        self.to_stderr(line);
    }

    /// Why the command failed: the error, its causes, and what to do.
    pub(crate) fn failure(&self, error: &Error) {
        if self.manner.json {
            self.failure_in_json(error);
            return;
        }
        self.flush();
        self.to_stderr(&format!("error: {}", sentence(error)));
        for cause in error.causes() {
            self.to_stderr(&format!("  caused by: {cause}"));
        }
        let hint = error.hint();
        if !hint.is_empty() {
            self.to_stderr(&format!("hint: {hint}"));
        }
    }

    /// Why a command did not do all, beside what it did.
    pub(crate) fn failure_after(&self, error: &Error) {
        if self.manner.json {
            self.flush();
            self.to_stderr(&failure_document(error).to_string());
        } else {
            self.failure(error);
        }
    }

    fn failure_in_json(&self, error: &Error) {
        let document = failure_document(error);
        if self.in_list.load(Ordering::Relaxed) {
            // Standard output holds a part of a list, which stays readable.
            self.end_list();
            self.to_stderr(&document.to_string());
        } else if self.has_content.load(Ordering::Relaxed) || self.is_closed() {
            self.to_stderr(&document.to_string());
        } else {
            // Nothing is left to be done if even this cannot be encoded.
            drop(self.document(&document));
            self.flush();
            if self.is_closed() {
                self.to_stderr(&document.to_string());
            }
        }
    }

    /// Show a progress bar below everything else, or no longer.
    pub(crate) fn show_bar(&self, bar: Option<ProgressBar>) {
        if let Some(old) = std::mem::replace(&mut *lock(&self.bar), bar) {
            old.finish_and_clear();
        }
    }

    /// Hand on what is still buffered. An error if standard output could not be written.
    pub(crate) fn finish(&self) -> Result<()> {
        self.show_bar(None);
        self.flush();
        match lock(&self.failure).take() {
            Some(error) => {
                let what = "cannot write to standard output";
                Err(match &*lock(&self.stands) {
                    Some(id) => Error::io(format!("{what}, but the snapshot is stored"), error)
                        .with("snapshot", id),
                    None => Error::io(what, error),
                }
                // What to do about it is for whoever sent the output there to know.
                .with_hint(""))
            }
            None => Ok(()),
        }
    }

    fn to_stdout(&self, bytes: &[u8]) {
        if !self.is_closed() {
            let written = lock(&self.stdout).write_all(bytes);
            self.note_result(written);
        }
    }

    /// Lines of both kinds are seen in the order in which they were said.
    fn flush(&self) {
        // A writer that was left behind in a full pipe holds the lock for ever.
        let flushed = match self.stdout.try_lock() {
            Ok(mut stdout) => stdout.flush(),
            Err(_) => Ok(()),
        };
        self.note_result(flushed);
    }

    fn note_result(&self, result: io::Result<()>) {
        if let Err(error) = result {
            self.closed.store(true, Ordering::Relaxed);
            if error.kind() != io::ErrorKind::BrokenPipe {
                lock(&self.failure).get_or_insert(error);
            }
        }
    }

    fn to_stderr(&self, text: &str) {
        let mut line = printable(text, true);
        line.push('\n');
        // Without standard error there is nobody left to tell.
        let write = || drop(io::stderr().lock().write_all(line.as_bytes()));
        match &*lock(&self.bar) {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

/// Lines of the log, from `tracing`.
#[derive(Clone, Debug)]
pub(crate) struct LogWriter(pub(crate) Arc<Output>);

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.progress(String::from_utf8_lossy(line).trim_end());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether standard input is a person.
pub(crate) fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Whether a person sees standard output as it is.
pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether a person sees standard error as it is.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Ask for something on the terminal.
pub(crate) fn ask(question: &str) {
    let mut stderr = io::stderr().lock();
    drop(stderr.write_all(printable(question, true).as_bytes()).and_then(|()| stderr.flush()));
}

/// Arguments that make no sense, or a question for help or for the version.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") {
        let text = error.render().to_string();
        let text = text.trim().trim_start_matches("error: ").to_owned();
        let output = Output::new(Manner { json: true, quiet: false });
        output.failure(&Error::invalid(text));
        drop(output.finish());
    } else if let Err(e) = error.print()
        && !error.use_stderr()
        && e.kind() != io::ErrorKind::BrokenPipe
    {
        let e = Error::io("cannot write to standard output", e).with_hint("");
        Output::new(Manner { json: false, quiet: false }).failure(&e);
        return exit::failed(&e);
    }
    u8::try_from(error.exit_code()).unwrap_or(1).into()
}

/// A failure, for `--json`.
fn failure_document(error: &Error) -> serde_json::Value {
    let context: serde_json::Map<_, _> =
        context(error).map(|(key, value)| (key.to_owned(), json!(value))).collect();
    json!({
        "error": {
            "reason": error.reason().code(),
            "kind": exit::kind(error),
            "message": error.message(),
            "context": context,
            "causes": error.causes().collect::<Vec<_>>(),
            "hint": error.hint(),
        }
    })
}

/// What an error says about itself, without its hint.
fn sentence(error: &Error) -> String {
    let context: Vec<_> = context(error).map(|(key, value)| format!("{key}={value}")).collect();
    if context.is_empty() {
        error.message().to_owned()
    } else {
        format!("{} ({})", error.message(), context.join(", "))
    }
}

fn context(error: &Error) -> impl Iterator<Item = (&str, &str)> {
    error.context().iter().map(|(key, value)| (*key, value.as_str()))
}

/// Text that a terminal shows and does not obey: names in a snapshot are what its writer chose. Nor do
/// they look like other lines, or run backwards.
fn printable(text: &str, line_feeds: bool) -> String {
    let is_odd = |c: char| (c.is_control() && !(line_feeds && c == '\n')) || turns_around(c);
    if !text.contains(is_odd) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_odd(c) {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                out.push_str(&format!("\\x{byte:02x}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Whether a character changes the direction of what stands around it.
fn turns_around(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use snapkit_core::error::Reason;

    #[test]
    fn terminals_are_not_given_orders() {
        let odd = "a\x1b[2Jb\u{9b}c\u{202e}\n";
        assert_eq!(printable(odd, true), "a\\x1b[2Jb\\xc2\\x9bc\\xe2\\x80\\xae\n");
        assert_eq!(printable("a\nb", false), "a\\x0ab");
    }

    #[test]
    fn failures_as_documents_are_complete() {
        let error = Error::new(Reason::WrongKey, "no key fits")
            .with("location", "/x")
            .caused_by(io::Error::other("deep"));
        let expected = json!({ "error": {
            "reason": "wrong-key",
            "kind": "denied",
            "message": "no key fits",
            "context": { "location": "/x" },
            "causes": ["deep"],
            "hint": "check that the key or passphrase belongs to this repository",
        }});
        assert_eq!(failure_document(&error), expected);
    }
}
