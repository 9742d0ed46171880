//! Progress for whoever is there: a bar on a terminal, a line now and then in a log, JSON lines for a
//! program, nothing when it is not wanted.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use snapkit_core::context::{Context, Task};
use snapkit_core::progress::{Counter, Phase, Progress};

use crate::format;
use crate::output::{self, Output};

/// How often a bar is drawn.
const DRAWN_EVERY: Duration = Duration::from_millis(100);
/// How often a program is told.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// How often a log is told.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// How many warnings of a run are kept.
const WARNINGS_KEPT: usize = 20;

/// The counters that are shown, with their names in JSON.
const SHOWN: [(Counter, &str); 11] = [
    (Counter::Entries, "entries"),
    (Counter::FilesRead, "files_read"),
    (Counter::FilesUnchanged, "files_unchanged"),
    (Counter::Bytes, "bytes"),
    (Counter::BytesUnchanged, "bytes_unchanged"),
    (Counter::ChunksNew, "chunks_new"),
    (Counter::ChunksKnown, "chunks_known"),
    (Counter::BytesStored, "bytes_stored"),
    (Counter::ObjectsStored, "objects_stored"),
    (Counter::PacksAdopted, "packs_adopted"),
    (Counter::Problems, "problems"),
];

const PHASES: [Phase; 7] = [
    Phase::Prepare,
    Phase::Freeze,
    Phase::Stream,
    Phase::Index,
    Phase::Commit,
    Phase::Restore,
    Phase::Verify,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Bar,
    Log,
    Json,
    Silent,
}

/// What a run has told so far.
#[derive(Debug)]
pub(crate) struct Meter {
    output: Arc<Output>,
    style: Style,
    phase: AtomicU8,
    counters: [AtomicU64; SHOWN.len()],
    expected: AtomicU64,
    warnings: Mutex<Vec<String>>,
}

impl Meter {
    pub(crate) fn new(output: &Arc<Output>, wanted: bool) -> Arc<Self> {
        let style = match (wanted && !output.is_quiet(), output.is_json()) {
            (false, _) => Style::Silent,
            (true, true) => Style::Json,
            (true, false) if output::stderr_is_terminal() => Style::Bar,
            (true, false) => Style::Log,
        };
        Arc::new(Self {
            output: Arc::clone(output),
            style,
            phase: AtomicU8::new(0),
            counters: Default::default(),
            expected: AtomicU64::new(0),
            warnings: Mutex::default(),
        })
    }

    /// Show it from now on, until the returned task is dropped.
    pub(crate) fn show(self: &Arc<Self>, cx: &Context) -> Option<Task<()>> {
        let every = match self.style {
            Style::Silent => return None,
            Style::Bar => DRAWN_EVERY,
            Style::Json => TOLD_EVERY,
            Style::Log => LOGGED_EVERY,
        };
        let (meter, inner) = (Arc::clone(self), cx.clone());
        Some(cx.spawn(async move {
            let begun = inner.monotonic();
            let bar = (meter.style == Style::Bar).then(|| meter.bar());
            loop {
                inner.sleep(every).await?;
                let elapsed = inner.monotonic().saturating_sub(begun);
                match &bar {
                    Some(bar) => bar.set_message(meter.text(elapsed)),
                    None if meter.style == Style::Json => {
                        meter.output.progress(&meter.json(elapsed));
                    }
                    None => meter.output.progress(&meter.text(elapsed)),
                }
            }
        }))
    }

    /// Say what was warned of, for a run that ends without a report: that would say it too, and better.
    pub(crate) fn tell_warnings(&self) {
        let warnings =
            std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner));
        warnings.iter().for_each(|text| self.output.warn(text));
    }

    fn bar(&self) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(DRAWN_EVERY);
        self.output.show_bar(Some(bar.clone()));
        bar
    }

    fn counter(&self, counter: Counter) -> u64 {
        let place = SHOWN.iter().position(|(shown, _)| *shown == counter);
        place.map_or(0, |i| self.counters[i].load(Ordering::Relaxed))
    }

    fn phase_word(&self) -> &'static str {
        let phase = PHASES.get(usize::from(self.phase.load(Ordering::Relaxed)));
        phase.map_or("work", |phase| phase.as_str())
    }

    /// `stream: 1.2 GiB of 3.4 GiB in 12.0 s, 5017 entries, 80.0 MiB stored`
    fn text(&self, elapsed: Duration) -> String {
        let done =
            self.counter(Counter::Bytes).saturating_add(self.counter(Counter::BytesUnchanged));
        let expected = self.expected.load(Ordering::Relaxed);
        let mut text = format!("{}: {}", self.phase_word(), format::size(done));
        if expected > done {
            text.push_str(&format!(" of {}", format::size(expected)));
        }
        text.push_str(&format!(" in {}", format::seconds(elapsed.as_secs_f64())));
        let entries = self.counter(Counter::Entries);
        if entries > 0 {
            text.push_str(&format!(", {}", format::count(entries, "entry", "entries")));
        }
        let stored = self.counter(Counter::BytesStored);
        if stored > 0 {
            text.push_str(&format!(", {} stored", format::size(stored)));
        }
        let problems = self.counter(Counter::Problems);
        if problems > 0 {
            text.push_str(&format!(", {}", format::count(problems, "problem", "problems")));
        }
        text
    }

    fn json(&self, elapsed: Duration) -> String {
        let mut fields = serde_json::Map::new();
        fields.insert("phase".to_owned(), json!(self.phase_word()));
        fields.insert("seconds".to_owned(), json!(elapsed.as_secs()));
        fields.insert("bytes_expected".to_owned(), json!(self.expected.load(Ordering::Relaxed)));
        for (counter, name) in SHOWN {
            fields.insert(name.to_owned(), json!(self.counter(counter)));
        }
        json!({ "progress": fields }).to_string()
    }
}

impl Progress for Meter {
    fn phase(&self, phase: Phase) {
        let place = PHASES.iter().position(|p| *p == phase).and_then(|i| u8::try_from(i).ok());
        self.phase.store(place.unwrap_or(u8::MAX), Ordering::Relaxed);
    }

    fn add(&self, counter: Counter, n: u64) {
        if let Some(i) = SHOWN.iter().position(|(shown, _)| *shown == counter) {
            self.counters[i].fetch_add(n, Ordering::Relaxed);
        }
    }

    fn expect_bytes(&self, n: u64) {
        self.expected.fetch_add(n, Ordering::Relaxed);
    }

    fn warn(&self, text: &str) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if warnings.len() < WARNINGS_KEPT {
            warnings.push(text.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Manner;

    #[test]
    fn what_is_told_is_shown() {
        let output = Output::new(Manner { json: false, quiet: false });
        let meter = Meter::new(&output, true);
        meter.phase(Phase::Stream);
        meter.expect_bytes(4 << 20);
        meter.add(Counter::Bytes, 1 << 20);
        meter.add(Counter::BytesUnchanged, 1 << 20);
        meter.add(Counter::Entries, 1);
        let text = meter.text(Duration::from_secs(2));
        assert_eq!(text, "stream: 2.0 MiB of 4.0 MiB in 2.0 s, 1 entry");
        let line: serde_json::Value =
            serde_json::from_str(&meter.json(Duration::from_secs(2))).unwrap();
        assert_eq!(line["progress"]["bytes"], 1 << 20);
        assert_eq!(line["progress"]["phase"], "stream");
    }

    #[test]
    fn quiet_is_silent() {
        let output = Output::new(Manner { json: true, quiet: true });
        assert_eq!(Meter::new(&output, true).style, Style::Silent);
    }
}
