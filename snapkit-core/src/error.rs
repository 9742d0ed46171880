//! One public error: a few prescriptive kinds, and beside the kind a stable reason code.
//!
//! [`ErrorKind`] says what a caller can do; [`Reason`] says what happened, in a word that scripts
//! may rely on. One table ([`Reason::row`]) maps every reason to its kind, the CLI's exit code, the
//! Python class and a hint. `Display` prints its own line only; whoever reports walks
//! [`std::error::Error::source`].

use std::fmt;

/// The result of everything fallible in snapkit.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error. The discriminants are the codes of the C ABI.
#[repr(u32)]
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The caller must change the request or the configuration.
    Invalid = 1,
    /// The named thing does not exist.
    NotFound = 2,
    /// Something else is there, or got there first.
    Conflict = 3,
    /// Credentials or rights are missing or insufficient.
    Denied = 4,
    /// Temporary or environmental; trying again may help.
    Unavailable = 5,
    /// This system, version or format cannot do it.
    Unsupported = 6,
    /// Stored or received data is not what was written.
    Corrupt = 7,
    /// The caller asked to stop, or a deadline passed.
    Cancelled = 8,
    /// A defect in snapkit or a plugin, including a panic caught at a boundary.
    Internal = 9,
}

/// One line of the error table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonRow {
    /// The stable code, for `--json` and scripts.
    pub code: &'static str,
    /// The kind that this reason belongs to.
    pub kind: ErrorKind,
    /// The exit code of the command line.
    pub exit: u8,
    /// The class that the Python package raises.
    pub class: &'static str,
    /// What to do about it, or empty.
    pub hint: &'static str,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident: $code:literal, $kind:ident, exit $exit:literal, $class:literal, $hint:literal;)*) => {
        /// What happened, in a stable word. See [`Reason::row`].
        #[non_exhaustive]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason there is, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The table: kind, exit code, Python class and hint of this reason.
            #[must_use]
            pub const fn row(self) -> ReasonRow {
                match self {
                    $(Self::$name => ReasonRow {
                        code: $code, kind: ErrorKind::$kind, exit: $exit, class: $class, hint: $hint,
                    },)*
                }
            }
        }
    };
}

reasons! {
    /// An argument makes no sense.
    InvalidArgument: "invalid-argument", Invalid, exit 2, "InvalidError", "";
    /// A configuration value is missing, unknown or makes no sense.
    InvalidConfig: "invalid-config", Invalid, exit 2, "InvalidError", "";
    /// A name breaks the rules for names.
    InvalidName: "invalid-name", Invalid, exit 2, "InvalidError", "";
    /// A limit of the format or of the configuration would be exceeded.
    LimitExceeded: "limit-exceeded", Invalid, exit 1, "InvalidError", "";
    /// The thing asked for does not exist.
    NotFound: "not-found", NotFound, exit 1, "NotFoundError", "";
    /// There is no snapkit repository at this place.
    NoRepository: "no-repository", NotFound, exit 10, "NoRepositoryError",
        "create one with `snapkit init`, or check the path or URL";
    /// No snapshot answers to this name.
    NoSnapshot: "no-snapshot", NotFound, exit 1, "NotFoundError", "`snapkit list` shows the snapshots there are";
    /// What was to be captured does not exist.
    SourceMissing: "source-missing", NotFound, exit 1, "NotFoundError", "";
    /// Something is in the way.
    AlreadyExists: "already-exists", Conflict, exit 11, "ConflictError", "";
    /// A repository is already there.
    RepositoryExists: "repository-exists", Conflict, exit 11, "ConflictError", "";
    /// The target of a restore holds something.
    TargetNotEmpty: "target-not-empty", Conflict, exit 11, "ConflictError",
        "restore elsewhere with --target, or replace it with --overwrite (the old state is kept)";
    /// The session was fenced: a collector or another writer ended it first.
    SessionLost: "session-lost", Conflict, exit 75, "ConflictError", "run it again; what was uploaded is reused";
    /// No credential that opens this repository was given.
    NoKey: "no-key", Denied, exit 12, "WrongKeyError",
        "give a key file (--key-file, SNAPKIT_KEY_FILE) or a passphrase (SNAPKIT_PASSPHRASE, _FILE or _COMMAND)";
    /// The credential given does not open this repository.
    WrongKey: "wrong-key", Denied, exit 12, "WrongKeyError", "check that the key or passphrase belongs to this repository";
    /// The credential may add but not read.
    KeyCannotRead: "key-cannot-read", Denied, exit 12, "WrongKeyError", "use a full credential";
    /// The operating system or the server refused.
    PermissionDenied: "permission-denied", Denied, exit 1, "PermissionError", "";
    /// Something needed does not answer now.
    Unavailable: "unavailable", Unavailable, exit 75, "UnavailableError", "";
    /// Something is held by another program.
    Busy: "busy", Unavailable, exit 75, "UnavailableError", "";
    /// A hook, or a program of a source, asked to try again later.
    NotNow: "not-now", Unavailable, exit 75, "UnavailableError", "";
    /// A hook failed.
    HookFailed: "hook-failed", Unavailable, exit 1, "UnavailableError", "";
    /// A program of a source failed.
    ProgramFailed: "program-failed", Unavailable, exit 1, "UnavailableError", "";
    /// Content kept changing while it was read.
    SourceChanged: "source-changed", Unavailable, exit 75, "UnavailableError", "";
    /// No space is left.
    NoSpace: "no-space", Unavailable, exit 1, "UnavailableError", "free some space and run it again; a create goes on from what it has stored";
    /// An input or output operation failed.
    Io: "io", Unavailable, exit 1, "UnavailableError", "";
    /// The system or its version cannot do this.
    Unsupported: "unsupported", Unsupported, exit 1, "UnsupportedError", "";
    /// The repository has a format that this program does not write or read.
    FormatMismatch: "format-mismatch", Unsupported, exit 1, "UnsupportedError",
        "use the snapkit version that made this repository, or start a new one";
    /// Stored or received bytes are not what was written.
    Corrupt: "corrupt", Corrupt, exit 4, "CorruptError", "`snapkit verify --read-data` lists all damage";
    /// An object that the repository needs is gone.
    ObjectMissing: "object-missing", Corrupt, exit 4, "CorruptError", "`snapkit verify --read-data` lists all damage";
    /// A signature does not hold.
    BadSignature: "bad-signature", Corrupt, exit 4, "CorruptError", "";
    /// The repository is older than it was when this machine last saw it.
    RolledBack: "rolled-back", Corrupt, exit 4, "CorruptError", "somebody may have put an old copy of the repository back";
    /// Another repository stands where this one was.
    RepositoryReplaced: "repository-replaced", Corrupt, exit 4, "CorruptError",
        "if you made a new repository there, tell snapkit with --accept-new-repository";
    /// The caller asked to stop.
    Cancelled: "cancelled", Cancelled, exit 130, "CancelledError", "";
    /// A deadline passed.
    TimedOut: "timed-out", Cancelled, exit 75, "TimeoutError", "";
    /// A defect of snapkit.
    Internal: "internal", Internal, exit 1, "InternalError", "this is a defect of snapkit; please report it";
    /// A panic was caught at a boundary.
    Panicked: "panicked", Internal, exit 1, "InternalError", "this is a defect of snapkit; please report it";
}

impl Reason {
    /// The stable code, such as `wrong-key`.
    #[must_use]
    pub const fn code(self) -> &'static str {
        self.row().code
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// An error of any kind, with what, where and why.
///
/// It is one pointer wide. `Display` prints one line, `message (key=value, …)`, never its cause.
pub struct Error(Box<Inner>);

struct Inner {
    reason: Reason,
    message: String,
    context: Vec<(&'static str, String)>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// `ENFILE` and `EMFILE`, which have these numbers on every Unix.
const TOO_MANY_FILES: [i32; 2] = [23, 24];

impl Error {
    /// An error with a reason and one line of text: lower case, no full stop.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            reason,
            message: message.into(),
            context: Vec::new(),
            hint: None,
            source: None,
        }))
    }

    /// Add where or with what it happened; shown behind the message. A name may hold anything: control
    /// characters are kept as `\xNN`.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        let mut value = value.to_string();
        while let Some(at) = value.find(char::is_control) {
            let odd = value.remove(at);
            value.insert_str(at, &format!("\\x{:02x}", u32::from(odd)));
        }
        self.0.context.push((key, value));
        self
    }

    /// Add the error that caused this one.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// An error of the operating system, with the reason that its code stands for.
    pub fn io(message: impl Into<String>, error: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let reason = match error.kind() {
            // What is wanted may be well, and there is nothing wrong with it.
            K::OutOfMemory => Reason::Unavailable,
            _ if error.raw_os_error().is_some_and(|code| TOO_MANY_FILES.contains(&code)) => {
                Reason::Unavailable
            }
            K::NotFound | K::NotADirectory => Reason::NotFound,
            K::PermissionDenied | K::ReadOnlyFilesystem => Reason::PermissionDenied,
            K::AlreadyExists | K::DirectoryNotEmpty => Reason::AlreadyExists,
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => Reason::NoSpace,
            K::TimedOut => Reason::TimedOut,
            K::ResourceBusy | K::WouldBlock => Reason::Busy,
            K::Unsupported => Reason::Unsupported,
            K::InvalidFilename => Reason::InvalidName,
            _ => Reason::Io,
        };
        let told = Self::new(reason, message);
        let told = match error.kind() {
            K::FileTooLarge => told.with_hint(
                "a limit on the length of files stands in the way (`ulimit -f`, a quota, the file system's own)",
            ),
            _ => told,
        };
        told.caused_by(error)
    }

    /// Shorthand for [`Reason::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Reason::Corrupt, message)
    }

    /// Shorthand for [`Reason::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Reason::Internal, message)
    }

    /// Shorthand for [`Reason::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Reason::InvalidArgument, message)
    }

    /// The error that stands for a caught panic, with its text where it has one.
    #[must_use]
    pub fn panicked(payload: &(dyn std::any::Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Self::new(Reason::Panicked, format!("a task panicked: {text}"))
    }

    /// What happened.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    /// What a caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.reason.row().kind
    }

    /// The message without context.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The context, in the order in which it was added.
    #[must_use]
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }

    /// Say what to do about it, instead of what its reason says in general. Empty if there is nothing to be said.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// What to do about it, or empty.
    #[must_use]
    pub fn hint(&self) -> &str {
        self.0.hint.as_deref().unwrap_or(self.0.reason.row().hint)
    }

    /// Whether it has a hint that is not that of its reason.
    #[must_use]
    pub fn has_own_hint(&self) -> bool {
        self.0.hint.is_some()
    }

    /// Whether the caller stopped the work or its deadline passed.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.kind() == ErrorKind::Cancelled
    }

    /// Whether stored bytes cannot be had as they were written, however often one asks: they are
    /// damaged or gone, or their medium does not give them back.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        self.kind() == ErrorKind::Corrupt || self.reason() == Reason::Io
    }

    /// Whether it says nothing about what is stored, only that it could not be reached now.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        let unreachable = matches!(self.kind(), ErrorKind::Unavailable | ErrorKind::Cancelled)
            || self.reason() == Reason::PermissionDenied;
        unreachable && !self.is_damage()
    }

    /// This error and its causes in one line, for lists of problems.
    #[must_use]
    pub fn chain(&self) -> String {
        self.causes().fold(self.to_string(), |text, cause| format!("{text}: {cause}"))
    }

    /// The texts of the causes, from the nearest to the first. Some libraries repeat a cause at the end of the text
    /// of what it has caused; it is told once.
    pub fn causes(&self) -> impl Iterator<Item = String> {
        let mut last = self.message().to_owned();
        let first = std::error::Error::source(self);
        let causes = std::iter::successors(first, |cause| cause.source());
        causes.filter_map(move |cause| {
            let text = cause.to_string();
            let is_news = !last.ends_with(&text);
            last.clone_from(&text);
            is_news.then_some(text)
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        for (i, (key, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{key}={value}", if i == 0 { " (" } else { ", " })?;
        }
        if self.0.context.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.reason(), self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

/// Adds a sentence to an error of the operating system.
pub trait IoContext<T> {
    /// Name what was being done, lazily.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::io(what(), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_kebab() {
        let mut codes: Vec<_> = Reason::ALL.iter().map(|r| r.code()).collect();
        assert!(codes.iter().all(|c| c.chars().all(|c| c.is_ascii_lowercase() || c == '-')));
        codes.sort_unstable();
        let n = codes.len();
        codes.dedup();
        assert_eq!(n, codes.len());
    }

    #[test]
    fn display_is_one_line_without_the_cause() {
        let e = Error::io("cannot read the pack", std::io::Error::from_raw_os_error(28))
            .with("key", "packs/aa/1");
        assert_eq!(e.to_string(), "cannot read the pack (key=packs/aa/1)");
        assert_eq!(e.reason(), Reason::NoSpace);
        assert!(e.chain().contains("No space left"));
    }

    #[test]
    fn a_panic_keeps_its_text() {
        let said = |panic: fn()| {
            let payload = std::panic::catch_unwind(panic).unwrap_err();
            Error::panicked(&*payload).to_string()
        };
        assert_eq!(said(|| panic!("no {}", 1)), "a task panicked: no 1");
        assert_eq!(said(|| std::panic::panic_any(7)), "a task panicked: no message");
    }

    #[test]
    fn a_hint_of_its_own_replaces_the_usual_one() {
        let full = || Error::new(Reason::NoSpace, "full").with("path", "/x");
        assert!(full().hint().starts_with("free some space"));
        assert_eq!(full().with_hint("sweep").hint(), "sweep");
        assert_eq!(full().with_hint("sweep").with_hint("").hint(), "");
        assert_eq!(full().with_hint("sweep").chain(), full().chain());
    }
}
