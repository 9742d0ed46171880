//! The suite for manifests accepts one that is right, and refuses each that is wrong in one way.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use snapkit_core::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::id::SnapshotId;
use snapkit_core::manifest::{
    End, Line, LineState, LineStream, Manifest, Marker, MarkerState, Note, NoteStream, Outcome,
    Session,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    SessionsAreListed,
    RepeatedCommitLoses,
    AbortIsReplaced,
    CommitIsReplaced,
    OtherCommitWins,
    EverybodyWins,
    ForgettingRemoves,
    ForgettingTwiceFails,
    ForgottenComesBack,
    MissingIsNotFound,
    ListingForgetsOne,
    ListingShowsNoMarkers,
    NotesReplaceEachOther,
}

#[derive(Debug)]
struct Ledger {
    defect: Defect,
    lines: Mutex<BTreeMap<SnapshotId, LineState>>,
    notes: Mutex<Vec<Note>>,
}

impl Ledger {
    fn marker(id: &SnapshotId, state: MarkerState, reason: &str) -> LineState {
        LineState::Marker(Marker {
            id: id.clone(),
            state,
            at: Default::default(),
            reason: reason.to_owned(),
        })
    }
}

#[async_trait]
impl Manifest for Ledger {
    async fn begin(&self, _: &Context, session: &Session) -> Result<()> {
        if self.defect == Defect::SessionsAreListed {
            let line = Self::marker(&session.id, MarkerState::Aborted, "");
            self.lines.lock().unwrap().insert(session.id.clone(), line);
        }
        Ok(())
    }

    async fn heartbeat(&self, _: &Context, _: &SnapshotId, _: u64) -> Result<()> {
        Ok(())
    }

    async fn end(&self, _: &Context, session: &SnapshotId, end: End<'_>) -> Result<Outcome> {
        let mut lines = self.lines.lock().unwrap();
        let new = match end {
            End::Commit(snapshot) => LineState::Snapshot(Box::new(snapshot.clone())),
            End::Abort(reason) => Self::marker(session, MarkerState::Aborted, reason),
        };
        let there = lines.get(session).cloned();
        let outcome = match (&there, &new) {
            (None, _) => Outcome::Won,
            (Some(LineState::Snapshot(old)), LineState::Snapshot(new)) if old == new => {
                Outcome::Won
            }
            (Some(LineState::Marker(old)), LineState::Marker(new))
                if old.state == MarkerState::Aborted && old.state == new.state =>
            {
                Outcome::Won
            }
            _ => Outcome::Lost,
        };
        let replace = match (&there, self.defect) {
            (None, _) => true,
            (Some(LineState::Marker(m)), Defect::AbortIsReplaced) => {
                m.state == MarkerState::Aborted
            }
            (Some(LineState::Marker(m)), Defect::ForgottenComesBack) => {
                m.state == MarkerState::Forgotten
            }
            (Some(LineState::Snapshot(_)), Defect::CommitIsReplaced) => true,
            _ => false,
        };
        if replace {
            lines.insert(session.clone(), new.clone());
        }
        Ok(match (self.defect, &there, &new) {
            (Defect::RepeatedCommitLoses, Some(_), LineState::Snapshot(_)) => Outcome::Lost,
            (Defect::OtherCommitWins, Some(LineState::Snapshot(_)), LineState::Snapshot(_))
            | (Defect::EverybodyWins, ..) => Outcome::Won,
            _ => outcome,
        })
    }

    async fn get(&self, _: &Context, id: &SnapshotId) -> Result<Line> {
        let reason = if self.defect == Defect::MissingIsNotFound {
            Reason::NotFound
        } else {
            Reason::NoSnapshot
        };
        let state = self.lines.lock().unwrap().get(id).cloned();
        let state = state.ok_or_else(|| Error::new(reason, "there is no such snapshot"))?;
        Ok(Line { id: id.clone(), signer: None, state })
    }

    async fn list(&self, _: &Context) -> Result<LineStream> {
        let lines = self.lines.lock().unwrap().clone();
        let skip = usize::from(self.defect == Defect::ListingForgetsOne && lines.len() > 30);
        let markers = self.defect != Defect::ListingShowsNoMarkers;
        let lines: Vec<_> = lines
            .into_iter()
            .filter(|(_, state)| markers || !matches!(state, LineState::Marker(_)))
            .map(|(id, state)| (id.clone(), Ok(Line { id, signer: None, state })))
            .skip(skip)
            .collect();
        Ok(stream::iter(lines).boxed())
    }

    async fn note(&self, _: &Context, note: &Note) -> Result<()> {
        let mut notes = self.notes.lock().unwrap();
        if self.defect == Defect::NotesReplaceEachOther {
            notes.clear();
        }
        notes.push(note.clone());
        Ok(())
    }

    async fn notes(&self, _: &Context) -> Result<NoteStream> {
        let notes = self.notes.lock().unwrap().clone();
        Ok(stream::iter(notes).map(|note| (note.id.to_string(), Ok(note))).boxed())
    }

    async fn forget(&self, _: &Context, id: &SnapshotId, reason: &str) -> Result<()> {
        let mut lines = self.lines.lock().unwrap();
        let forgotten = !matches!(lines.get(id), Some(LineState::Snapshot(_)));
        match self.defect {
            Defect::ForgettingRemoves => drop(lines.remove(id)),
            Defect::ForgettingTwiceFails if forgotten => {
                return Err(Error::new(Reason::NoSnapshot, "forgotten"));
            }
            _ => {
                lines.insert(id.clone(), Self::marker(id, MarkerState::Forgotten, reason));
            }
        }
        Ok(())
    }
}

async fn run(defect: Defect) -> std::thread::Result<()> {
    let cx = Context::system();
    let make = async || {
        Arc::new(Ledger { defect, lines: Mutex::default(), notes: Mutex::default() })
            as Arc<dyn Manifest>
    };
    AssertUnwindSafe(snapkit_testkit::manifest::all(&cx, make)).catch_unwind().await
}

#[tokio::test]
async fn a_right_manifest_passes() {
    assert!(run(Defect::None).await.is_ok());
}

#[tokio::test]
async fn every_defect_is_seen() {
    use Defect::*;
    for defect in [
        SessionsAreListed,
        RepeatedCommitLoses,
        AbortIsReplaced,
        CommitIsReplaced,
        OtherCommitWins,
        EverybodyWins,
        ForgettingRemoves,
        ForgettingTwiceFails,
        ForgottenComesBack,
        MissingIsNotFound,
        ListingForgetsOne,
        ListingShowsNoMarkers,
        NotesReplaceEachOther,
    ] {
        assert!(run(defect).await.is_err(), "{defect:?} passes the suite");
    }
}
