//! Finding: which snapshot is meant.

use std::collections::BTreeSet;

use futures_util::StreamExt as _;

use crate::context::{Context, Timestamp};
use crate::engine::Repository;
use crate::engine::local::Seen;
use crate::engine::options::Scope;
use crate::engine::report::Ledger;
use crate::error::{Error, Reason, Result};
use crate::manifest::{LineState, Snapshot};

impl Repository {
    /// What the ledger holds. Remembers the snapshots seen, and warns of ones that were seen before and
    /// are gone.
    pub async fn ledger(&self, cx: &Context) -> Result<Ledger> {
        let mut ledger = Ledger::default();
        let mut lines = self.manifest.list(cx).await?;
        while let Some((id, line)) = lines.next().await {
            match line.map(|l| l.state) {
                Ok(LineState::Snapshot(s)) => ledger.snapshots.push(*s),
                Ok(LineState::Sealed) => ledger.sealed.push(id),
                Ok(LineState::Marker(m)) => ledger.markers.push(m),
                Err(e) if e.is_passing() => return Err(e),
                // It was forgotten and its object replaced between listing and reading.
                Err(e) if e.reason() == Reason::NoSnapshot => {}
                Err(e) => ledger.damaged.push((id, e)),
            }
        }
        // Of two that began in one second the ids do not say which was first.
        ledger.snapshots.sort_by(|a, b| (b.started, &b.id).cmp(&(a.started, &a.id)));
        ledger.sealed.sort_by(|a, b| b.cmp(a));
        let ids: BTreeSet<_> = ledger.ids().cloned().collect();
        let seen = self.local.seen(cx).await?;
        ledger.gone =
            seen.snapshots.union(&seen.markers).filter(|s| !ids.contains(s)).cloned().collect();
        let snapshots: BTreeSet<_> =
            ledger.snapshots.iter().map(|s| &s.id).chain(&ledger.sealed).cloned().collect();
        ledger.returned = snapshots.intersection(&seen.markers).cloned().collect();
        let markers = ledger.markers.iter().map(|m| m.id.clone()).collect();
        self.local.remember(cx, Seen { snapshots, markers }).await?;
        Ok(ledger)
    }
}

impl Ledger {
    /// Every id that has a line, whole or damaged.
    pub fn ids(&self) -> impl Iterator<Item = &crate::id::SnapshotId> {
        let snapshots = self.snapshots.iter().map(|s| &s.id);
        let markers = self.markers.iter().map(|m| &m.id);
        let damaged = self.damaged.iter().map(|(id, _)| id);
        snapshots.chain(&self.sealed).chain(markers).chain(damaged)
    }

    /// The snapshot that a text names: an id or a unique prefix of it or of its random part, a name,
    /// `latest`, `latest~N`, or `@TIME` for the newest that is not after. `scope` says what `latest` and
    /// times speak of.
    pub fn resolve(&self, spec: &str, scope: &Scope) -> Result<&Snapshot> {
        let in_scope = |s: &&Snapshot| {
            let fits = |want: &Option<String>, is: &str| want.as_deref().is_none_or(|w| w == is);
            fits(&scope.stack, &s.stack) && fits(&scope.host, &s.host) && fits(&scope.set, &s.set)
        };
        let none = |why: String| Error::new(Reason::NoSnapshot, why);
        let mut scoped = self.snapshots.iter().filter(in_scope);
        if spec == "latest" || spec.starts_with("latest~") {
            let back = spec.strip_prefix("latest~").unwrap_or("0");
            let back: usize = back.parse().map_err(|_| {
                Error::invalid(format!("not a number of snapshots to go back: {back:?}"))
            })?;
            return scoped.nth(back).ok_or_else(|| none(format!("there is no snapshot {spec}")));
        }
        if let Some(time) = spec.strip_prefix('@') {
            let time = parse_time(time)?;
            return scoped
                .filter(|s| s.started <= time)
                .max_by_key(|s| s.started)
                .ok_or_else(|| none(format!("there is no snapshot from before {time}")));
        }
        let mut found = self.snapshots.iter().filter(|s| s.id.has_prefix(spec));
        match (found.next(), found.next()) {
            (Some(one), None) => return Ok(one),
            (Some(a), Some(b)) => {
                return Err(Error::invalid(format!(
                    "{spec:?} is not unique: {} and {} begin so",
                    a.id, b.id
                )));
            }
            _ => {}
        }
        let named = self.snapshots.iter().find(|s| s.name.as_deref() == Some(spec));
        if let Some(s) = named {
            return Ok(s);
        }
        if let Some((id, e)) = self.damaged.iter().find(|(id, _)| id.has_prefix(spec)) {
            return Err(Error::new(e.reason(), format!("snapshot {id} is damaged: {}", e.chain())));
        }
        if let Some(id) = self.sealed.iter().find(|id| id.has_prefix(spec)) {
            return Err(Error::new(
                Reason::KeyCannotRead,
                format!("snapshot {id} is sealed to this credential"),
            ));
        }
        Err(none(format!("there is no snapshot {spec:?}")))
    }
}

/// A time as people write it: RFC 3339, with seconds or a zone left out (then UTC), or a date.
fn parse_time(text: &str) -> Result<Timestamp> {
    let candidates =
        [text.to_owned(), format!("{text}Z"), format!("{text}:00Z"), format!("{text}T00:00:00Z")];
    let short = text.strip_suffix('Z').map(|t| format!("{t}:00Z"));
    candidates
        .iter()
        .chain(&short)
        .find_map(|t| Timestamp::parse(t).ok())
        .ok_or_else(|| Error::invalid(format!("not a time such as 2026-01-15T14:30Z: {text:?}")))
}
