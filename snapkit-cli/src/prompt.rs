//! Asking a person for a passphrase, on a terminal that does not show it.

use std::io::{self, IsTerminal as _};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::secret::{Secret, SecretString};

use crate::output;

/// The longest line that is read.
/// A terminal hands over lines of up to 4095 bytes, and cuts longer ones off without a word.
const MAX_LINE: usize = 1024;

/// Whether there is a person to ask.
pub(crate) fn is_possible() -> bool {
    io::stdin().is_terminal() && output::stderr_is_terminal()
}

/// Ask for a passphrase.
pub(crate) async fn passphrase(cx: &Context, question: &str) -> Result<SecretString> {
    let _hidden = Hidden::begin()?;
    output::ask(question);
    let line = cx.run(cx.blocking(read_line)).await;
    output::ask("\n");
    line
}

/// Ask for a new passphrase, twice.
pub(crate) async fn new_passphrase(cx: &Context) -> Result<SecretString> {
    let first = passphrase(cx, "new passphrase: ").await?;
    let second = passphrase(cx, "once more: ").await?;
    if first.expose() == second.expose() {
        Ok(first)
    } else {
        Err(Error::invalid("the two passphrases differ"))
    }
}

/// A terminal without echo, until this is dropped.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> Result<Self> {
        let failed = |e: rustix::io::Errno| Error::io("cannot hide what is typed", e.into());
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        // What was typed before the question was not meant for it.
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // What is left of a line that was too long must not be read by whoever comes next. Nothing else could be
        // done about a terminal that is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

/// One line, byte by byte: a buffered reader would keep a copy of it.
fn read_line() -> Result<SecretString> {
    let mut line = Vec::with_capacity(MAX_LINE);
    let mut byte = [0];
    let failed = |e: rustix::io::Errno| Error::io("cannot read from the terminal", e.into());
    while rustix::io::read(io::stdin(), &mut byte).map_err(failed)? == 1 && byte[0] != b'\n' {
        if line.len() == MAX_LINE {
            return Err(Error::invalid("a typed passphrase has at most 1024 bytes"));
        }
        line.push(byte[0]);
    }
    match String::from_utf8(line) {
        Ok(text) if !text.is_empty() => Ok(Secret::new(text)),
        Ok(_) => Err(Error::new(Reason::NoKey, "the passphrase is empty")),
        Err(_) => Err(Error::invalid("the passphrase is not valid UTF-8")),
    }
}
