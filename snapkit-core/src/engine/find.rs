//! Finding: which snapshot is meant.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};

use crate::context::{Context, Timestamp};
use crate::engine::Repository;
use crate::engine::local::Seen;
use crate::engine::options::Scope;
use crate::engine::report::Ledger;
use crate::error::{Error, Reason, Result};
use crate::id::SnapshotId;
use crate::manifest::{Head, LineState, Note, Snapshot};

/// The most memory that a ledger may take: 64 MiB, or a hundred thousand usual snapshots. Whoever shows it may hold
/// as much again.
pub const MAX_LEDGER: usize = 64 << 20;

/// What a line takes in memory beyond its texts.
const LINE: usize = 384;

/// What a tag or the name of a source takes beyond its letters.
const TEXT: usize = 96;

/// What is said of a line that is damaged.
const DAMAGE: usize = 1536;

fn what_is_wrong(e: &Error) -> &'static str {
    match e.reason() {
        Reason::PermissionDenied => "cannot be read by this user",
        _ => "is damaged",
    }
}

/// Snapshots that are read at once: each may be large.
const SNAPSHOTS_AT_ONCE: usize = 2;

/// Nanoseconds of a second.
const NANOS: i64 = 1_000_000_000;

impl Repository {
    /// What the ledger holds. Remembers the snapshots seen, and warns of ones that were seen before and
    /// are gone. `limit-exceeded` if it would take more than [`MAX_LEDGER`] bytes of memory.
    pub async fn ledger(&self, cx: &Context) -> Result<Ledger> {
        let mut ledger = Ledger::default();
        let mut held = Held::default();
        // Before the lines: what another run commits and remembers meanwhile is not gone.
        let seen = self.local.seen(cx).await?;
        let mut lines = self.manifest.list(cx).await?;
        while let Some((id, line)) = lines.next().await {
            held.add(LINE)?;
            match line.map(|l| l.state) {
                Ok(LineState::Snapshot(s)) => {
                    let head = Head::from(&*s);
                    if let Err(e) = check_text(head.text_len()) {
                        held.add(DAMAGE)?;
                        ledger.damaged.push((id, e));
                        continue;
                    }
                    held.add(head.text_len() + (head.sources.len() + head.tags.len()) * TEXT)?;
                    ledger.snapshots.push(head);
                }
                Ok(LineState::Sealed) => ledger.sealed.push(id),
                Ok(LineState::Marker(m)) => {
                    held.add(m.reason.len())?;
                    ledger.markers.push(m);
                }
                // One that this user may not read, as another has stored it, does not hide the others.
                Err(e) if e.is_passing() && e.reason() != Reason::PermissionDenied => {
                    return Err(e);
                }
                // It was forgotten and its object replaced between listing and reading.
                Err(e) if e.reason() == Reason::NoSnapshot => {}
                Err(e) => {
                    held.add(DAMAGE)?;
                    ledger.damaged.push((id, e));
                }
            }
        }
        self.read_notes(cx, &mut ledger, &mut held).await?;
        // Of two that began in one second the ids do not say which was first.
        ledger.snapshots.sort_by(|a, b| (b.started, &b.id).cmp(&(a.started, &a.id)));
        ledger.sealed.sort_by(|a, b| b.cmp(a));
        let ids: BTreeSet<_> = ledger.ids().cloned().collect();
        let is_news = |id: &&SnapshotId| !seen.accepted.contains(*id);
        let known = seen.snapshots.union(&seen.markers);
        ledger.gone = known.filter(|s| !ids.contains(s)).filter(is_news).cloned().collect();
        let snapshots: BTreeSet<_> =
            ledger.snapshots.iter().map(|s| &s.id).chain(&ledger.sealed).cloned().collect();
        ledger.returned = snapshots.intersection(&seen.markers).filter(is_news).cloned().collect();
        // Lines are never removed: who names a line that is not there shows that somebody did.
        let named = ledger.snapshots.iter().filter_map(|s| s.previous.as_ref());
        let missing = named.filter(|p| !ids.contains(p) && !ledger.gone.contains(p));
        let missing: BTreeSet<_> = missing.filter(is_news).cloned().collect();
        ledger.missing = missing.into_iter().collect();
        let markers = ledger.markers.iter().map(|m| m.id.clone()).collect();
        let lines = Seen { snapshots, markers, ..Seen::default() };
        if let Err(e) = self.local.remember(cx, lines).await {
            cx.progress().warn(&format!("what was seen here is not remembered: {}", e.chain()));
        }
        Ok(ledger)
    }

    /// Take in what was added to snapshots since they were committed.
    async fn read_notes(&self, cx: &Context, ledger: &mut Ledger, held: &mut Held) -> Result<()> {
        let mut heads: HashMap<SnapshotId, &mut Head> =
            ledger.snapshots.iter_mut().map(|head| (head.id.clone(), head)).collect();
        let mut notes = Vec::new();
        let mut stream = self.manifest.notes(cx).await?;
        while let Some((name, note)) = stream.next().await {
            match note {
                Ok(note) if !heads.contains_key(&note.id) => {}
                Ok(note) => {
                    let set = note.set.iter().map(|(key, value)| key.len() + value.len() + TEXT);
                    let unset = note.unset.iter().map(|key| key.len() + TEXT);
                    held.add(set.chain(unset).sum::<usize>() + LINE)?;
                    notes.push(note);
                }
                Err(e) if e.is_passing() => return Err(e),
                // Removed with its snapshot between listing and reading.
                Err(e) if e.reason() == Reason::NotFound => {}
                Err(e) => {
                    held.add(DAMAGE)?;
                    ledger.damaged_notes.push((name, e));
                }
            }
        }
        notes.sort();
        for note in notes {
            if let Some(head) = heads.get_mut(&note.id) {
                note.apply(&mut head.tags);
            }
        }
        Ok(())
    }

    /// All that a snapshot says about itself, with the tags that it has now.
    pub async fn snapshot(&self, cx: &Context, head: &Head) -> Result<Snapshot> {
        match self.manifest.get(cx, &head.id).await?.state {
            LineState::Snapshot(snapshot) => Ok(Snapshot { tags: head.tags.clone(), ..*snapshot }),
            LineState::Sealed => Err(sealed(&head.id)),
            LineState::Marker(marker) => {
                let what = format!("the snapshot {} is gone meanwhile: {}", head.id, marker.reason);
                Err(Error::new(Reason::NoSnapshot, what))
            }
        }
    }

    /// The same for several, in their order. No more than two are in memory at once.
    pub fn snapshots<'h>(
        &'h self,
        cx: &'h Context,
        heads: &'h [&'h Head],
    ) -> BoxStream<'h, (&'h Head, Result<Snapshot>)> {
        stream::iter(heads)
            .map(move |head| async move { (*head, self.snapshot(cx, head).await) })
            .buffered(SNAPSHOTS_AT_ONCE)
            .boxed()
    }

    /// Set tags of a snapshot, and take others away. The snapshot itself stays as it is.
    pub async fn tag(
        &self,
        cx: &Context,
        id: &SnapshotId,
        set: BTreeMap<String, String>,
        unset: BTreeSet<String>,
    ) -> Result<()> {
        self.manifest.note(cx, &Note { at: cx.now(), id: id.clone(), set, unset }).await
    }

    /// Take note that what is gone from the ledger, or came back to it, is as it is: it is not reported on
    /// this machine any more. Gives what was reported until now.
    pub async fn accept_loss(&self, cx: &Context) -> Result<Vec<SnapshotId>> {
        let Ledger { gone, returned, missing, .. } = self.ledger(cx).await?;
        let accepted: BTreeSet<_> = gone.into_iter().chain(returned).chain(missing).collect();
        self.local.remember(cx, Seen { accepted: accepted.clone(), ..Seen::default() }).await?;
        Ok(accepted.into_iter().collect())
    }
}

impl Ledger {
    /// Every id that has a line, whole or damaged.
    pub fn ids(&self) -> impl Iterator<Item = &SnapshotId> {
        let snapshots = self.snapshots.iter().map(|s| &s.id);
        let markers = self.markers.iter().map(|m| &m.id);
        let damaged = self.damaged.iter().map(|(id, _)| id);
        snapshots.chain(&self.sealed).chain(markers).chain(damaged)
    }

    /// The snapshot that a text names: an id or a prefix of it or of its random part, a name, `latest`,
    /// `latest~N`, or `@TIME` for the newest that is not after (a time without a fraction means all of its
    /// second). What may mean two is refused. `scope` says what `latest` and
    /// times speak of.
    pub fn resolve(&self, spec: &str, scope: &Scope) -> Result<&Head> {
        let none = |why: String| Error::new(Reason::NoSnapshot, why);
        let mut scoped = self.snapshots.iter().filter(|s| scope.holds(s));
        if spec == "latest" || spec.starts_with("latest~") {
            let back = spec.strip_prefix("latest~").unwrap_or("0");
            let back: usize = back.parse().map_err(|_| {
                Error::invalid(format!("not a number of snapshots to go back: {back:?}"))
            })?;
            let found = scoped.nth(back);
            self.check_newest(spec, found)?;
            return found.ok_or_else(|| none(format!("there is no snapshot {spec}")));
        }
        if let Some(time) = spec.strip_prefix('@') {
            let (text, mut time) = (time, parse_time(time)?);
            // Times are shown to the second: such a one means all of its second, and a day all of the day.
            if !text.contains(['T', 't', ':']) {
                time.0 = time.0.saturating_add(24 * 3600 * NANOS - 1);
            } else if time.0.rem_euclid(NANOS) == 0 {
                time.0 = time.0.saturating_add(NANOS - 1);
            }
            let found = scoped.filter(|s| s.started <= time).max_by_key(|s| s.started);
            self.check_newest(spec, found)?;
            return found.ok_or_else(|| none(format!("there is no snapshot of {text} or before")));
        }
        if let Some(s) = self.snapshots.iter().find(|s| s.id.to_string() == spec) {
            return Ok(s);
        }
        let is_named = |s: &&Head| s.name.as_deref() == Some(spec);
        let mut found =
            self.snapshots.iter().filter(|s| is_named(s) || s.id.has_prefix(spec)).peekable();
        if let Some(one) = found.next() {
            // A guess may restore the wrong one.
            return match found.next() {
                None => Ok(one),
                Some(other) => Err(Error::invalid(format!(
                    "{spec:?} is not unique: it may be {} or {}",
                    one.id, other.id
                ))),
            };
        }
        if let Some((id, e)) = self.damaged.iter().find(|(id, _)| id.has_prefix(spec)) {
            return Err(Error::new(
                e.reason(),
                format!("snapshot {id} {}: {}", what_is_wrong(e), e.chain()),
            ));
        }
        if let Some(id) = self.sealed.iter().find(|id| id.has_prefix(spec)) {
            return Err(sealed(id));
        }
        Err(none(format!("there is no snapshot {spec:?}")))
    }

    /// Nobody can say what a damaged line is of: it may be the one that is meant.
    fn check_newest(&self, spec: &str, found: Option<&Head>) -> Result<()> {
        // Of two of one second nobody can say which is newer.
        let newer = |id: &SnapshotId| found.is_none_or(|s| id.second() >= s.id.second());
        // Nor of what one is that was here, or that others name, and is not there any more.
        if let Some(id) = self.gone.iter().chain(&self.missing).find(|id| newer(id)) {
            let what = format!(
                "snapshot {id} is gone without a trace, and may be what {spec} means; name an older one to have it"
            );
            return Err(Error::new(Reason::ObjectMissing, what).with_hint(
                "once you know why it is gone, `snapkit verify --accept-loss` lets this machine forget it",
            ));
        }
        match self.damaged.iter().find(|(id, _)| newer(id)) {
            None => Ok(()),
            Some((id, e)) => Err(Error::new(
                e.reason(),
                format!(
                    "snapshot {id} {}, and may be what {spec} means: {}; name an older one to have it",
                    what_is_wrong(e),
                    e.chain()
                ),
            )),
        }
    }
}

fn sealed(id: &SnapshotId) -> Error {
    Error::new(Reason::KeyCannotRead, format!("snapshot {id} is sealed to this credential"))
}

/// An error if a snapshot's names and tags are too long to be listed.
pub(crate) fn check_text(len: usize) -> Result<()> {
    let most = Head::MAX_TEXT;
    if len <= most {
        return Ok(());
    }
    let what = format!("the names and tags of a snapshot have {len} bytes, the limit is {most}");
    Err(Error::new(Reason::LimitExceeded, what))
}

/// Bytes that a ledger holds in memory.
#[derive(Default)]
struct Held(usize);

impl Held {
    fn add(&mut self, bytes: usize) -> Result<()> {
        self.0 = self.0.saturating_add(bytes);
        if self.0 <= MAX_LEDGER {
            return Ok(());
        }
        let what = format!(
            "the ledger is longer than the {MAX_LEDGER} bytes that a program may hold of it"
        );
        Err(Error::new(Reason::LimitExceeded, what))
    }
}

/// A time as people write it: RFC 3339, with seconds or a zone left out (then UTC), or a date.
pub fn parse_time(text: &str) -> Result<Timestamp> {
    let candidates =
        [text.to_owned(), format!("{text}Z"), format!("{text}:00Z"), format!("{text}T00:00:00Z")];
    let short = text.strip_suffix('Z').map(|t| format!("{t}:00Z"));
    candidates
        .iter()
        .chain(&short)
        .find_map(|t| Timestamp::parse(t).ok())
        .ok_or_else(|| Error::invalid(format!("not a time such as 2026-01-15T14:30Z: {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_has_an_end() {
        let mut held = Held::default();
        held.add(MAX_LEDGER - 1).unwrap();
        held.add(1).unwrap();
        let e = held.add(1).unwrap_err();
        assert_eq!(e.reason(), Reason::LimitExceeded);
        insta::assert_snapshot!(e, @"the ledger is longer than the 67108864 bytes that a program may hold of it");
        assert!(held.add(usize::MAX).is_err());
        assert!(check_text(Head::MAX_TEXT).is_ok() && check_text(Head::MAX_TEXT + 1).is_err());
    }
}
