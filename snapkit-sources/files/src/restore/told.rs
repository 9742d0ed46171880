//! What a restore has to tell: problems, and rights that it gave or left out.

use std::sync::{Mutex, PoisonError};

use snapkit_core::error::Error;
use snapkit_core::source::RestoreReport;
use snapkit_core::tree::EntryPath;

/// How many problems are listed.
const LISTED: usize = 1000;

/// How many places a note names.
const NAMED: usize = 10;

/// A right that lets others act as somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// A setuid or setgid bit of a file.
    Setuid,
    /// An extended attribute `security.*`, file capabilities among them.
    Security,
    /// A device node.
    Device,
}

/// Gathers from several threads.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    problems: Vec<String>,
    count: u64,
    lesser: u64,
    rights: Vec<Noted>,
    notes: Vec<String>,
}

#[derive(Debug)]
struct Noted {
    right: Right,
    given: bool,
    count: u64,
    places: Vec<String>,
}

impl Told {
    fn with<T>(&self, tell: impl FnOnce(&mut Inner) -> T) -> T {
        tell(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Something could not be put or set.
    pub(super) fn problem(&self, path: &EntryPath, error: &Error) {
        self.with(|inner| {
            inner.count += 1;
            if inner.problems.len() < LISTED {
                inner.problems.push(format!("{path}: {}", error.chain()));
            }
        });
    }

    /// Something went wrong that belongs to no entry.
    pub(super) fn trouble(&self, what: &str, error: &Error) {
        self.with(|inner| {
            inner.count += 1;
            inner.problems.push(format!("{what}: {}", error.chain()));
        });
    }

    /// A directory that only leads to what was asked for is not as it was.
    pub(super) fn lesser(&self) {
        self.with(|inner| inner.lesser += 1);
    }

    /// A right was given, or left out.
    pub(super) fn right(&self, right: Right, given: bool, path: &EntryPath) {
        self.with(|inner| {
            let same = |n: &&mut Noted| n.right == right && n.given == given;
            let noted = match inner.rights.iter_mut().find(same) {
                Some(noted) => noted,
                None => {
                    inner.rights.push(Noted { right, given, count: 0, places: Vec::new() });
                    let Some(noted) = inner.rights.last_mut() else { return };
                    noted
                }
            };
            noted.count += 1;
            if noted.places.len() < NAMED {
                noted.places.push(path.display());
            }
        });
    }

    pub(super) fn note(&self, note: String) {
        self.with(|inner| inner.notes.push(note));
    }

    /// Write it all into a report.
    pub(super) fn write(&self, report: &mut RestoreReport) {
        self.with(|inner| {
            report.problem_count += inner.count;
            report.problems.append(&mut inner.problems);
            report.notes.extend(inner.rights.drain(..).map(Noted::sentence));
            report.notes.append(&mut inner.notes);
            if inner.lesser > 0 {
                report.notes.push(format!(
                    "directories that only lead to what was restored lack {} of their attributes",
                    inner.lesser
                ));
            }
        });
    }
}

impl Noted {
    fn sentence(mut self) -> String {
        self.places.sort();
        let what = match self.right {
            Right::Setuid => "setuid and setgid bits",
            Right::Security => "security attributes, such as file capabilities",
            Right::Device => "device nodes",
        };
        let done = if self.given { "were set" } else { "were left out" };
        let more = if self.count > self.places.len() as u64 { ", …" } else { "" };
        let why = if self.given {
            ""
        } else {
            "; restore as root, or trust the repository, to have them"
        };
        format!("{what} {done}: {} ({}{more}){why}", self.count, self.places.join(", "))
    }
}
