//! A receiver of progress that keeps what it was told.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use snapkit_core::progress::{Counter, Phase, Progress};

/// Keeps everything that it is told.
#[derive(Debug, Default)]
pub struct RecordingProgress(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    phases: Vec<Phase>,
    counters: BTreeMap<Counter, u64>,
    expected: u64,
    warnings: Vec<String>,
}

impl RecordingProgress {
    /// One that was told nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The phases, in the order in which they began.
    #[must_use]
    pub fn phases(&self) -> Vec<Phase> {
        self.told().phases.clone()
    }

    /// The sum of a counter.
    #[must_use]
    pub fn count(&self, counter: Counter) -> u64 {
        self.told().counters.get(&counter).copied().unwrap_or(0)
    }

    /// How many bytes were expected in all.
    #[must_use]
    pub fn expected_bytes(&self) -> u64 {
        self.told().expected
    }

    /// The warnings, in order.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.told().warnings.clone()
    }
}

impl Progress for RecordingProgress {
    fn phase(&self, phase: Phase) {
        self.told().phases.push(phase);
    }

    fn add(&self, counter: Counter, n: u64) {
        *self.told().counters.entry(counter).or_default() += n;
    }

    fn expect_bytes(&self, n: u64) {
        self.told().expected += n;
    }

    fn warn(&self, text: &str) {
        self.told().warnings.push(text.to_owned());
    }
}
