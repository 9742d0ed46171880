//! Local state: what this machine remembers of repositories.
//!
//! Below the state directory, private to its owner: `locations/<hash>` pins what was found at a place,
//! and `<repository>/seen` lists the snapshots that were seen, and the markers (`<id> marker`), so that a
//! repository, or a snapshot, that somebody put back is noticed; `<id> accepted` ends the noticing. `<repository>/damaged` lists the packs
//! that were found damaged, so that the next create stores again what it needs of them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::context::Context;
use crate::error::{Error, IoContext as _, Reason, Result};
use crate::id::{PackId, RepositoryFingerprint, RepositoryId, SnapshotId};
use crate::own::{append_file, create_private_dir, read_file, write_file};

/// No file of local state is longer: lines for a million snapshots.
const LONGEST: u64 = 64 << 20;

/// The lines of the ledger that this machine has seen. A snapshot that was replaced by a marker is in both.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) snapshots: BTreeSet<SnapshotId>,
    pub(crate) markers: BTreeSet<SnapshotId>,
    /// Of which somebody said that they need not be reported any more.
    pub(crate) accepted: BTreeSet<SnapshotId>,
}

impl Seen {
    fn parse(text: &str) -> Self {
        let mut seen = Self::default();
        for line in text.lines().filter_map(unsealed) {
            let (id, set) = match line.split_once(' ') {
                Some((id, MARKER)) => (id, &mut seen.markers),
                Some((id, ACCEPTED)) => (id, &mut seen.accepted),
                _ => (line, &mut seen.snapshots),
            };
            set.extend(id.parse());
        }
        seen
    }

    /// The newest that was there when it was last looked at.
    pub(crate) fn newest(&self) -> Option<SnapshotId> {
        self.snapshots.iter().rev().find(|id| !self.markers.contains(id)).cloned()
    }
}

/// A line with a short hash of it: whatever a disk does to it, an id that nobody has seen is not taken for
/// one that is gone.
fn sealed(line: &str) -> String {
    format!("{line} {}\n", &blake3::hash(line.as_bytes()).to_hex()[..8])
}

/// The line, if its hash fits.
fn unsealed(line: &str) -> Option<&str> {
    let (text, _) = line.rsplit_once(' ')?;
    (sealed(text).trim_end() == line).then_some(text)
}

const MARKER: &str = "marker";
const ACCEPTED: &str = "accepted";

fn short_hash(location: &str) -> String {
    blake3::hash(location.as_bytes()).to_hex()[..32].to_owned()
}

/// The local state of one repository.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    state: PathBuf,
    repository: RepositoryId,
    /// What stands for where it is: a copy has the same identity, and may have other damage.
    place: String,
}

impl Local {
    pub(crate) fn new(state: PathBuf, repository: RepositoryId, location: &str) -> Self {
        Self { state, repository, place: short_hash(location) }
    }

    /// The directory of this repository's state.
    pub(crate) fn dir(&self) -> PathBuf {
        self.state.join(self.repository.to_string())
    }

    fn location_file(&self, location: &str) -> PathBuf {
        self.state.join("locations").join(short_hash(location))
    }

    fn damaged_file(&self) -> String {
        format!("damaged-{}", self.place)
    }

    /// Compare a place with what was there before.
    pub(crate) async fn check_known(
        &self,
        cx: &Context,
        location: &str,
        fingerprint: RepositoryFingerprint,
    ) -> Result<()> {
        let file = self.location_file(location);
        let pinned = cx.blocking(move || Ok(read_file(&file, LONGEST).ok())).await?;
        match pinned.and_then(|text| pinned_in(&text)) {
            Some(known) if known != fingerprint => Err(replaced(location, known, fingerprint)),
            _ => Ok(()),
        }
    }

    /// Compare a place with what was there before, and remember it.
    pub(crate) async fn pin(
        &self,
        cx: &Context,
        location: &str,
        fingerprint: RepositoryFingerprint,
        accept_new: bool,
    ) -> Result<()> {
        let file = self.location_file(location);
        let location = location.to_owned();
        let written = cx.blocking(move || {
            let pinned = match read_file(&file, LONGEST) {
                Ok(text) => pinned_in(&text),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                Err(e) => return Ok(Err(Error::io(format!("cannot read {}", file.display()), e))),
            };
            match pinned {
                Some(p) if p == fingerprint => Ok(Ok(())),
                Some(p) if !accept_new => Err(replaced(&location, p, fingerprint)),
                _ => Ok(write_file(&file, format!("{fingerprint}\n{location}\n").as_bytes())),
            }
        });
        if let Err(e) = written.await? {
            cx.progress()
                .warn(&format!("which repository this is is not remembered: {}", e.chain()));
        }
        Ok(())
    }

    /// What this machine has seen of the ledger.
    pub(crate) async fn seen(&self, cx: &Context) -> Result<Seen> {
        Ok(Seen::parse(&self.read(cx, "seen").await?))
    }

    /// The packs that were found damaged.
    pub(crate) async fn damaged_packs(&self, cx: &Context) -> Result<BTreeSet<PackId>> {
        let text = self.read(cx, &self.damaged_file()).await?;
        Ok(text.lines().filter_map(|l| l.parse().ok()).collect())
    }

    /// A file of this repository's state. One that cannot be read is like one that is not there: it only
    /// helps.
    async fn read(&self, cx: &Context, name: &str) -> Result<String> {
        let file = self.dir().join(name);
        let what = format!("cannot read {}", file.display());
        match cx.blocking(move || Ok(read_file(&file, LONGEST))).await? {
            Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(e) => {
                let e = Error::io(what, e);
                cx.progress().warn(&format!("what was seen here is not known: {}", e.chain()));
                Ok(String::new())
            }
        }
    }

    /// Remember which packs were read and found damaged, and which sound.
    pub(crate) async fn note_packs(
        &self,
        cx: &Context,
        damaged: impl IntoIterator<Item = PackId>,
        sound: impl IntoIterator<Item = PackId>,
    ) -> Result<()> {
        let before = self.damaged_packs(cx).await?;
        let mut now = before.clone();
        now.extend(damaged);
        for id in sound {
            now.remove(&id);
        }
        if now == before {
            return Ok(());
        }
        let text: String = now.iter().map(|id| format!("{id}\n")).collect();
        let file = self.dir().join(self.damaged_file());
        cx.blocking(move || write_file(&file, text.as_bytes())).await
    }

    /// Remember lines.
    pub(crate) async fn remember(&self, cx: &Context, lines: Seen) -> Result<()> {
        let known = self.seen(cx).await?;
        let snapshots = lines.snapshots.difference(&known.snapshots).map(|id| sealed(id.as_str()));
        let markers =
            lines.markers.difference(&known.markers).map(|id| sealed(&format!("{id} {MARKER}")));
        let accepted = lines.accepted.difference(&known.accepted);
        let accepted = accepted.map(|id| sealed(&format!("{id} {ACCEPTED}")));
        let fresh: String = snapshots.chain(markers).chain(accepted).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let dir = self.dir();
        cx.blocking(move || {
            create_private_dir(&dir)?;
            let file = dir.join("seen");
            let what = || format!("cannot write {}", file.display());
            // A torn last line is ignored.
            append_file(&file, fresh.as_bytes()).doing(what)
        })
        .await
    }
}
/// The fingerprint that a file of a place holds.
fn pinned_in(text: &[u8]) -> Option<RepositoryFingerprint> {
    String::from_utf8_lossy(text).lines().next()?.parse().ok()
}

fn replaced(location: &str, known: RepositoryFingerprint, found: RepositoryFingerprint) -> Error {
    Error::new(Reason::RepositoryReplaced, "another repository stands where this machine knew one")
        .with("location", location)
        .with("known", known)
        .with("found", found)
}
