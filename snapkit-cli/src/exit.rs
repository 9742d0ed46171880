//! How a run ends: one number for scripts.

use std::process::ExitCode;

use snapkit_core::error::{Error, ErrorKind, Reason};
use snapkit_core::facts::RestoreVerdict;
use snapkit_core::manifest::CaptureVerdict;

/// The end of a command that did its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All is well.
    Done,
    /// What was looked for is not there.
    Nothing,
    /// A snapshot was committed and lacks something.
    Partial,
    /// Damage or a difference was found.
    Damage,
    /// A part was done, and why not all was said.
    Unfinished(Reason),
}

impl Exit {
    /// The exit code.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Nothing => 1,
            Self::Partial => 3,
            Self::Damage => 4,
            Self::Unfinished(reason) => reason.row().exit,
        }
    }
}

impl From<CaptureVerdict> for Exit {
    fn from(verdict: CaptureVerdict) -> Self {
        match verdict {
            CaptureVerdict::Complete => Self::Done,
            CaptureVerdict::Partial | CaptureVerdict::Failed => Self::Partial,
        }
    }
}

impl From<RestoreVerdict> for Exit {
    fn from(verdict: RestoreVerdict) -> Self {
        if verdict == RestoreVerdict::Differs { Self::Damage } else { Self::Done }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// The exit code of a command that failed.
pub(crate) fn failed(error: &Error) -> ExitCode {
    error.reason().row().exit.into()
}

/// The word for a kind of error, as in `--json`.
pub(crate) fn kind(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::Invalid => "invalid",
        ErrorKind::NotFound => "not-found",
        ErrorKind::Conflict => "conflict",
        ErrorKind::Denied => "denied",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Cancelled => "cancelled",
        _ => "internal",
    }
}
