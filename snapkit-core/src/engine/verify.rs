//! Verifying: what is wrong in a repository, and what is lost by it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use futures_util::future::try_join3;

use crate::context::Context;
use crate::credential::MAX_CREDENTIAL;
use crate::engine::Repository;
use crate::engine::check::{Awaited, ask};
use crate::engine::examine::{Chosen, Examination, Findings};
use crate::engine::options::VerifyOptions;
use crate::engine::packs::read_packs;
use crate::engine::report::{Ledger, VerifyReport, seconds};
use crate::error::{Error, IoContext as _, Reason, Result};
use crate::id::PackId;
use crate::key::Key;
use crate::ledger::{AROUND, line_key};
use crate::manifest::Head;
use crate::own::create_private_dir;
use crate::pack::parse_pack_key;
use crate::progress::Phase;
use crate::registry::Registry;
use crate::sign::check_signed;

impl Repository {
    /// Examine the repository: ledger, index, packs, and that everything that the snapshots name is
    /// there; with [`VerifyOptions::read_data`] every byte of it, and whether sources would take it back.
    pub async fn verify(
        &self,
        cx: &Context,
        registry: &Registry,
        options: &VerifyOptions,
    ) -> Result<VerifyReport> {
        let begun = cx.monotonic();
        cx.progress().phase(Phase::Verify);
        let ledger = self.ledger(cx).await?;
        let mut findings = Findings::default();
        self.examine_ledger(&ledger, &mut findings)?;
        self.examine_keys(cx, &mut findings).await?;
        self.examine_sessions(cx, &mut findings).await?;

        // What is in the local cache proves nothing about what is stored.
        let scratch = if options.read_data { Some(self.scratch_dir(cx).await?) } else { None };
        let dir = scratch.as_ref().map_or_else(|| self.index_dir(), |d| d.path().to_owned());
        let (index, loaded) = self.load_index_in(cx, dir).await?;
        let segments_whole = loaded.damaged.is_empty();
        for (key, e) in loaded.damaged {
            findings.add(key.as_str(), e.chain());
        }
        let mut report = VerifyReport { read_data: options.read_data, ..VerifyReport::default() };
        let (adopted, damaged) = index.adopt(cx, &self.sink).await?;
        if !adopted.is_empty() {
            let packs = match adopted.len() {
                1 => "1 pack is in no index: of an interrupted run, or its segment".to_owned(),
                n => format!("{n} packs are in no index: of interrupted runs, or their segment"),
            };
            report.notes.push(format!("{packs} is damaged or gone"));
        }
        for (key, e) in damaged {
            findings.add(key.as_str(), e.chain());
        }
        let mut examination = Examination {
            cx,
            unlisted: adopted.iter().map(|p| p.id).collect(),
            needed_unlisted: false,
            broken: HashSet::new(),
            stored: self.list_packs(cx).await?,
            reader: Arc::new(self.reader_with(index)?.that_remembers()),
            bad: HashMap::new(),
            opaque: HashMap::new(),
            needed: HashSet::new(),
            read: HashMap::new(),
            findings,
            report,
        };
        examination.packs_in_index()?;

        let is_asked_for =
            |s: &&Head| options.snapshots.is_empty() || options.snapshots.contains(&s.id);
        let heads: Vec<&Head> = ledger.snapshots.iter().filter(is_asked_for).collect();
        for id in &options.snapshots {
            if !heads.iter().any(|s| s.id == *id) {
                return Err(Error::new(Reason::NoSnapshot, format!("there is no snapshot {id}")));
            }
        }
        let chosen = Chosen { repository: self, heads, source: options.source.as_ref() };
        let everything = options.snapshots.is_empty() && options.source.is_none();
        if options.read_data {
            let reader = Arc::clone(&examination.reader);
            let all =
                everything.then(|| examination.stored.iter().map(|(p, n)| (*p, *n)).collect());
            let awaited = Awaited::new();
            let early = async {
                match all {
                    Some(all) => read_packs(cx, &reader, all, &awaited).await,
                    None => Ok(Vec::new()),
                }
            };
            let asked = ask(cx, &reader, registry, &chosen, &awaited);
            // What is stored, whether all is there that is named, and what the sources say of it.
            let (mut packs, (), answers) =
                try_join3(early, examination.snapshots(&chosen, true), asked).await?;
            if !everything {
                let needed = examination.needed.iter();
                let sizes = needed.filter_map(|id| Some((*id, *examination.stored.get(id)?)));
                packs = read_packs(cx, &reader, sizes.collect(), &awaited).await?;
            }
            examination.take_over(packs)?;
            if !examination.bad.is_empty() || !examination.opaque.is_empty() {
                examination.snapshots(&chosen, false).await?;
            }
            examination.hear(answers)?;
        } else {
            examination.snapshots(&chosen, true).await?;
            // What was read and found damaged is not called whole by somebody who reads nothing.
            let known = self.local.damaged_packs(cx).await?.into_iter();
            let concerns = |id: &PackId| everything || examination.needed.contains(id);
            let sizes = known
                .filter(concerns)
                .filter_map(|id| Some((id, *examination.stored.get(&id)?)))
                .collect();
            let reader = Arc::clone(&examination.reader);
            let packs = read_packs(cx, &reader, sizes, &Awaited::new()).await?;
            examination.take_over(packs)?;
            if !examination.bad.is_empty() || !examination.opaque.is_empty() {
                examination.snapshots(&chosen, false).await?;
            }
        }
        if examination.needed_unlisted && segments_whole {
            // What a snapshot needs was listed before it was committed.
            let what = "a segment is gone: packs that snapshots need are in no index; the next create lists them again";
            examination.findings.add("index", what);
        }
        examination.forgive(everything);
        let Examination { findings, mut report, read, .. } = examination;
        let of = |sound: bool| read.iter().filter(move |(_, s)| **s == sound).map(|(id, _)| *id);
        if let Err(e) = self.local.note_packs(cx, of(false), of(true)).await {
            report.notes.push(format!("the next create is not told of this: {}", e.chain()));
        }
        report.snapshots = chosen.heads.len() as u64;
        report.damage = findings.by_object.into_values().collect();
        report.seconds = seconds(cx.monotonic().saturating_sub(begun));
        Ok(report)
    }

    fn examine_ledger(&self, ledger: &Ledger, findings: &mut Findings) -> Result<()> {
        for (id, e) in &ledger.damaged {
            findings.lose(line_key(id)?.as_str(), &e.chain(), id.to_string());
        }
        for (key, e) in &ledger.damaged_notes {
            findings.lose(key, &e.chain(), "a change of a snapshot's tags".to_owned());
        }
        for id in &ledger.gone {
            let what = "this machine saw it, and it is gone without a marker: an old repository was put back, or it was removed";
            findings.lose(line_key(id)?.as_str(), what, id.to_string());
        }
        for id in &ledger.returned {
            let what = "this machine saw a marker in its place: an old version was put back";
            findings.add(line_key(id)?.as_str(), what);
        }
        for id in &ledger.missing {
            let what = "it is gone without a marker: a snapshot names it as the one before";
            findings.lose(line_key(id)?.as_str(), what, id.to_string());
        }
        Ok(())
    }

    async fn examine_keys(&self, cx: &Context, findings: &mut Findings) -> Result<()> {
        let mut listing = self.sink.list(cx, Some(&Key::new("keys")?));
        while let Some(entry) = cx.run(listing.try_next()).await? {
            let what = match entry.get(cx, &*self.sink, MAX_CREDENTIAL as u64).await {
                Ok(file) if file.starts_with(b"age-encryption.org/v1\n") => continue,
                Ok(_) => "it is no age file".to_owned(),
                Err(e) if e.is_passing() => return Err(e),
                Err(e) => e.chain(),
            };
            findings.lose(
                entry.key.as_str(),
                &what,
                "whoever opens the repository with it".to_owned(),
            );
        }
        Ok(())
    }

    /// Signatures of session objects: damage there loses nothing that is committed.
    async fn examine_sessions(&self, cx: &Context, findings: &mut Findings) -> Result<()> {
        let certifier = self.config.certifier()?;
        let mut listing = self.sink.list(cx, Some(&Key::new("sessions")?));
        while let Some(entry) = cx.run(listing.try_next()).await? {
            let checked = match entry.get(cx, &*self.sink, AROUND).await {
                Ok(object) => {
                    check_signed(&certifier, self.config.repository, entry.key.as_str(), &object)
                        .map(drop)
                }
                Err(e) if e.is_passing() => return Err(e),
                // A collector removed it meanwhile.
                Err(e) if e.reason() == Reason::NotFound => Ok(()),
                Err(e) => Err(e),
            };
            if let Err(e) = checked {
                findings.add(entry.key.as_str(), e.chain());
            }
        }
        Ok(())
    }

    /// An empty directory of its own, removed when it is dropped.
    async fn scratch_dir(&self, cx: &Context) -> Result<tempfile::TempDir> {
        let dir = self.index_dir();
        cx.blocking(move || {
            create_private_dir(&dir)?;
            let what = || format!("cannot make a directory in {}", dir.display());
            tempfile::TempDir::new_in(&dir).doing(what)
        })
        .await
    }

    async fn list_packs(&self, cx: &Context) -> Result<HashMap<PackId, u64>> {
        let listing = self.sink.list(cx, Some(&Key::new("packs")?));
        let packs =
            listing.try_filter_map(async |e| Ok(parse_pack_key(&e.key).map(|id| (id, e.size))));
        cx.run(packs.try_collect()).await
    }
}
