//! A restore: put together and read as a whole before anything is touched.

mod live;

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use snapkit_core::artifact::{ArtifactMeta, Body};
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::scratch::{Room, Scratch};
use snapkit_core::sort::{Sorted, Sorter};
use snapkit_core::source::{Restore, RestoreReport, RestoreRequest, Target};
use snapkit_core::{Error, Reason, Result};

use crate::assemble::{Assembled, Assembly};
use crate::capture::{FUNCTIONS, KEYS, RAW, VERSION};
use crate::config::RedisConfig;
use crate::facts::count;
use crate::files;
use crate::functions;
use crate::key;
use crate::rdb::Snapshot;
use crate::source::gather;
use crate::tally::Tally;

/// Where a restore goes.
#[derive(Clone, Debug)]
enum Place {
    /// A live server, and whether it holds anything.
    Server { config: Box<RedisConfig>, is_empty: bool },
    /// A directory, for a server that is stopped.
    Directory(PathBuf),
}

/// What was asked for.
#[derive(Clone, Debug)]
struct Plan {
    place: Place,
    /// What was captured.
    expected: Facts,
    allow_damage: bool,
    recovery: Option<PathBuf>,
    read_back: bool,
    room: Room,
}

/// A restore of one server.
#[derive(Debug)]
pub(crate) struct RedisRestore {
    /// Of all that this restore does: cancelled when it ends.
    own: Context,
    plan: Plan,
    keys: Option<Assembly>,
    functions: Vec<Vec<u8>>,
    raw: Option<Scratch>,
    /// What belongs to a server and is in no snapshot of it.
    texts: Vec<(String, Vec<u8>)>,
}

impl RedisRestore {
    /// Examine the target.
    pub(crate) async fn prepare(
        cx: &Context,
        config: &RedisConfig,
        request: &RestoreRequest,
    ) -> Result<Self> {
        let own = cx.child();
        let config = match &request.target {
            Target::Url(url) => config.at(url)?,
            _ => config.clone(),
        };
        let artifact =
            |name: &str| request.record.artifacts.iter().find(|a| a.meta.name.as_str() == name);
        let needed = artifact(KEYS).and_then(|a| a.meta.attributes.get(VERSION)?.parse().ok());
        let room = Room::new(config.scratch.unwrap_or(u64::MAX));
        let place = match &request.target {
            Target::Directory(directory) => {
                let directory = directory.clone();
                let (looked, overwrite) = (directory.clone(), request.overwrite);
                own.blocking(move || match files::in_the_way(&looked)?.first() {
                    Some(path) if !overwrite => Err(not_empty(path.display())),
                    _ => Ok(()),
                })
                .await?;
                Place::Directory(directory)
            }
            _ if artifact(RAW).is_some() => {
                return Err(Error::new(
                    Reason::Unsupported,
                    "what was kept as one piece can only be put into the files of a server that is stopped: restore it to a directory",
                ));
            }
            _ => {
                config.check_password()?;
                let (inner, asked, overwrite) = (own.clone(), config.clone(), request.overwrite);
                let examined = own.run(own.blocking(move || live::examine(&inner, &asked, needed)));
                let is_empty = examined.await?;
                if !is_empty && !overwrite {
                    return Err(not_empty(config.address()));
                }
                Place::Server { config: Box::new(config), is_empty }
            }
        };
        let plan = Plan {
            place,
            expected: request.record.facts.clone(),
            allow_damage: request.allow_damage,
            recovery: request.recovery.clone(),
            read_back: request.read_back,
            room,
        };
        Ok(Self { own, plan, keys: None, functions: Vec::new(), raw: None, texts: Vec::new() })
    }
}

fn not_empty(place: impl std::fmt::Display) -> Error {
    Error::new(Reason::TargetNotEmpty, "the target holds data").with("target", place)
}

#[async_trait]
impl Restore for RedisRestore {
    async fn put(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()> {
        match (meta.name.as_str(), body) {
            (KEYS, Body::Records(mut records)) => {
                let mut keys = Assembly::begin(cx, &self.plan.room)?;
                let now = u64::try_from(cx.now().0 / 1_000_000_000).unwrap_or(0);
                while let Some(batch) = records.next_batch(cx).await? {
                    for record in batch {
                        keys.add(key::read(record, now).await?).await?;
                    }
                }
                self.keys = Some(keys);
            }
            (FUNCTIONS, Body::Bytes(bytes)) => {
                self.functions = functions::split(&gather(bytes).await?)?;
            }
            (RAW, Body::Bytes(mut bytes)) => {
                use futures_util::TryStreamExt as _;
                let mut writer = snapkit_core::scratch::ScratchWriter::begin(cx, &self.plan.room)?;
                while let Some(piece) = bytes.try_next().await? {
                    writer.write(&piece)?;
                }
                self.raw = Some(writer.finish()?);
            }
            (name, Body::Bytes(bytes)) => {
                let text = gather(bytes).await?;
                self.texts.push((format!("{name}.txt"), text));
            }
            (name, _) => {
                return Err(
                    Error::corrupt("an artifact has an unknown form").with("artifact", name)
                );
            }
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>, cx: &Context) -> Result<RestoreReport> {
        let own = self.own.clone();
        let (inner, plan) = (own.clone(), self.plan.clone());
        let (keys, functions) = (self.keys.take(), std::mem::take(&mut self.functions));
        let (raw, texts) = (self.raw.take(), std::mem::take(&mut self.texts));
        let work = own.blocking(move || {
            let Some(keys) = keys else {
                let raw = raw
                    .ok_or_else(|| Error::corrupt("neither keys nor a whole snapshot were put"))?;
                return plan.put_raw(&inner, &raw, &texts);
            };
            let whole = Whole::read(&inner, &plan, keys.finish(&functions)?)?;
            plan.put(&inner, whole, &texts)
        });
        // It is not given up half-way: what was changed is changed back first.
        let stop = cx.cancellation().clone();
        let watch = own.clone();
        let mut work = std::pin::pin!(work);
        while_watching(&mut work, async move {
            stop.cancelled().await;
            watch.cancel();
        })
        .await
    }

    async fn abort(self: Box<Self>, _: &Context) -> Result<()> {
        self.own.cancel();
        Ok(())
    }
}

/// Wait for work to end, and let something else happen meanwhile.
async fn while_watching<T>(
    work: &mut (impl Future<Output = T> + Unpin),
    beside: impl Future<Output = ()>,
) -> T {
    use futures_util::future::{Either, select};
    match select(work, std::pin::pin!(beside)).await {
        Either::Left((done, _)) => done,
        Either::Right(((), work)) => work.await,
    }
}

/// A snapshot that was put together, and has been read to its end.
struct Whole {
    assembled: Assembled,
    tally: Tally,
    functions: Facts,
    /// What each key that expires adds, by when it does.
    expiring: Sorted,
    /// The longest value, and its key.
    longest: (u64, Vec<u8>),
    /// The highest number of a database.
    last_database: Option<u64>,
    has_functions: bool,
}

impl Whole {
    fn read(cx: &Context, plan: &Plan, assembled: Assembled) -> Result<Self> {
        let mut expiring = Sorter::new(cx, &plan.room);
        let mut failed = None;
        let mut snapshot =
            Snapshot::begin(BufReader::with_capacity(256 << 10, assembled.reader()))?;
        let (mut longest, mut last_database) = ((0, Vec::new()), None);
        let counted = count(cx, &mut snapshot, |key, len, part| {
            last_database = last_database.max(Some(key.database));
            if len > longest.0 {
                longest = (len, key.name.clone());
            }
            if let (Some(expires), None) = (key.expires, &failed) {
                failed = expiring.add(expires.to_be_bytes().to_vec(), part.to_bytes()).err();
            }
            true
        });
        if let Some(e) = failed {
            return Err(e);
        }
        let (tally, sources) = counted?;
        let functions = functions::facts(&sources, Standing::Observed);
        let has_functions = !sources.is_empty();
        let expiring = expiring.finish()?;
        let this =
            Self { assembled, tally, functions, expiring, longest, last_database, has_functions };
        let comparison = plan.expected.compare(&this.facts(&this.tally));
        match comparison.differences.first() {
            Some(difference) if !plan.allow_damage => {
                let what =
                    "what is stored is not what was captured, so the target was left as it is";
                Err(Error::corrupt(what)
                    .with("fact", &difference.fact)
                    .with("captured", &difference.expected)
                    .with("stored", &difference.found))
            }
            _ => Ok(this),
        }
    }

    fn reader(&self) -> Result<Snapshot<impl Read + use<>>> {
        Snapshot::begin(BufReader::with_capacity(256 << 10, self.assembled.reader()))
    }

    fn facts(&self, tally: &Tally) -> Facts {
        let mut facts = self.functions.clone();
        tally.write(Standing::Observed, &mut facts);
        facts
    }
}

impl Plan {
    fn put(
        &self,
        cx: &Context,
        whole: Whole,
        texts: &[(String, Vec<u8>)],
    ) -> Result<RestoreReport> {
        match &self.place {
            Place::Directory(directory) => {
                let recovery = self.recovery.as_deref();
                let kept = files::write(cx, directory, recovery, whole.assembled.reader(), texts)?;
                let mut report = RestoreReport::default();
                if self.read_back {
                    report.facts = self.read_files(cx, directory)?;
                }
                report.undo = files::undo(directory, kept.as_deref());
                Ok(report)
            }
            Place::Server { config, is_empty } => self.put_live(cx, config, *is_empty, whole),
        }
    }

    fn put_raw(
        &self,
        cx: &Context,
        raw: &Scratch,
        texts: &[(String, Vec<u8>)],
    ) -> Result<RestoreReport> {
        let Place::Directory(directory) = &self.place else {
            return Err(Error::internal("what was kept as one piece goes to a directory"));
        };
        let recovery = self.recovery.as_deref();
        let kept = files::write(cx, directory, recovery, raw.reader(0, u64::MAX), texts)?;
        let mut report = RestoreReport::default();
        report.notes.push(
            "this program cannot read what was restored, so that only the server can prove it"
                .to_owned(),
        );
        report.undo = files::undo(directory, kept.as_deref());
        Ok(report)
    }

    fn read_files(&self, cx: &Context, directory: &Path) -> Result<Facts> {
        let path = directory.join(files::DUMP);
        let file = File::open(&path).doing(|| format!("cannot read {}", path.display()))?;
        let mut snapshot = Snapshot::begin(BufReader::with_capacity(256 << 10, file))?;
        let (tally, sources) = count(cx, &mut snapshot, |_, _, _| true)?;
        let mut facts = functions::facts(&sources, Standing::Observed);
        tally.write(Standing::Observed, &mut facts);
        Ok(facts)
    }
}
