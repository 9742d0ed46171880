//! Which snapshots of the ledger a command speaks of.

use clap::Args;
use snapkit_core::context::Timestamp;
use snapkit_core::engine::{Ledger, parse_time};
use snapkit_core::error::{Error, Result};
use snapkit_core::manifest::{CaptureVerdict, Head};

/// Filters of snapshots: all that are given must fit.
#[derive(Debug, Default, Args)]
pub(crate) struct FilterArgs {
    /// Only snapshots of this stack
    #[arg(long, value_name = "NAME")]
    stack_name: Option<String>,
    /// Only those of this host
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Only those of this set
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
    /// Only those that hold this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only those that have this tag, or this value of it; may be given several times
    #[arg(long = "tag", value_name = "KEY[=VALUE]")]
    tags: Vec<String>,
    /// Only those of this verdict: complete or partial
    #[arg(long, value_name = "VERDICT")]
    verdict: Option<String>,
    /// Only those not before this time, such as 2026-01-15T14:30Z; without a zone it is UTC
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only those not after this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only the newest so many
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

impl FilterArgs {
    /// The snapshots that fit, the newest first.
    pub(crate) fn choose<'l>(&self, ledger: &'l Ledger) -> Result<Vec<&'l Head>> {
        if self.last == Some(0) {
            return Err(Error::invalid("--last 0 would take nothing"));
        }
        let verdict = match self.verdict.as_deref() {
            None => None,
            Some("complete") => Some(CaptureVerdict::Complete),
            Some("partial") => Some(CaptureVerdict::Partial),
            Some(other) => {
                let what = format!("--verdict is complete or partial, not {other:?}");
                return Err(Error::invalid(what));
            }
        };
        let time = |text: &Option<String>| text.as_deref().map(parse_time).transpose();
        let (since, until) = (time(&self.since)?, time(&self.until)?);
        let fits = |s: &&Head| {
            self.wants(s)
                && verdict.is_none_or(|verdict| verdict == s.verdict)
                && since.is_none_or(|since| s.started >= since)
                && until.is_none_or(|until| s.started <= end_of(until))
        };
        let all = ledger.snapshots.iter().filter(fits);
        Ok(all.take(self.last.unwrap_or(usize::MAX)).collect())
    }

    fn wants(&self, s: &Head) -> bool {
        let fits = |want: &Option<String>, is: &str| want.as_deref().is_none_or(|w| w == is);
        let has = |tag: &String| match tag.split_once('=') {
            Some((key, value)) => s.tags.get(key).is_some_and(|v| v == value),
            None => s.tags.contains_key(tag),
        };
        fits(&self.stack_name, &s.stack)
            && fits(&self.host, &s.host)
            && fits(&self.set, &s.set)
            && self
                .source
                .as_deref()
                .is_none_or(|name| s.sources.iter().any(|s| s.as_str() == name))
            && self.tags.iter().all(has)
    }
}

/// Times are shown to the second: such a one means all of its second.
fn end_of(time: Timestamp) -> Timestamp {
    if time.0.rem_euclid(1_000_000_000) == 0 {
        Timestamp(time.0.saturating_add(999_999_999))
    } else {
        time
    }
}
