//! A restore: put together and read as a whole before anything is touched.

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
use crate::connection::{Connection, Reply};
use crate::facts::{Expired, count, look};
use crate::files;
use crate::functions;
use crate::key;
use crate::per_key::{Loader, longest_string};
use crate::rdb::Snapshot;
use crate::replica::Pinned;
use crate::server::About;
use crate::source::gather;
use crate::spool;
use crate::tally::{Part, Tally};

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
                let (inner, asked, overwrite) = (own.clone(), config.clone(), request.overwrite);
                let examined = own.run(own.blocking(move || examine(&inner, &asked, needed)));
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

/// Whether a server is empty; an error if it is one into which nothing can be restored.
fn examine(cx: &Context, config: &RedisConfig, needed: Option<u32>) -> Result<bool> {
    let mut connection =
        Connection::open(cx, &config.address(), config.login().as_ref(), config.timeout)?;
    let about = About::ask(&mut connection)?;
    let at = |e: Error| e.with("server", connection.address());
    about.check(&connection)?;
    let Some(version) = about.version() else {
        let what = "nobody can say what is in the server: allow INFO (`ACL SETUSER NAME +info`)";
        return Err(at(Error::new(Reason::PermissionDenied, what)));
    };
    if about.get("role").is_some_and(|role| role != "master") {
        let what = "the server is a replica, which takes nothing: name its master";
        return Err(at(Error::new(Reason::InvalidConfig, what)));
    }
    if about.get("redis_mode") == Some("cluster") {
        let what =
            "keys of a cluster are not spread over its servers here yet: restore to a directory";
        return Err(at(Error::new(Reason::Unsupported, what)));
    }
    if let (Some(knows), Some(needed)) = (about.format(), needed)
        && knows < needed
    {
        let what = format!(
            "the snapshot has values that {version} does not know: it reads version {knows} of the format, and they need {needed}"
        );
        return Err(at(Error::new(Reason::Unsupported, what)));
    }
    Ok(about.is_empty())
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
}

impl Whole {
    fn read(cx: &Context, plan: &Plan, assembled: Assembled) -> Result<Self> {
        let mut expiring = Sorter::new(cx, &plan.room);
        let mut failed = None;
        let mut snapshot =
            Snapshot::begin(BufReader::with_capacity(256 << 10, assembled.reader()))?;
        let mut longest = (0, Vec::new());
        let counted = count(cx, &mut snapshot, |key, len, part| {
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
        let this = Self { assembled, tally, functions, expiring: expiring.finish()?, longest };
        let comparison = plan.expected.compare(&this.facts(&this.tally));
        match comparison.differences.first() {
            Some(difference) if !plan.allow_damage => {
                let what = "what is stored is not what was captured, so nothing was changed";
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
                files::write(
                    cx,
                    directory,
                    self.recovery.as_deref(),
                    whole.assembled.reader(),
                    texts,
                )?;
                let mut report = RestoreReport::default();
                if self.read_back {
                    report.facts = self.read_files(cx, directory)?;
                }
                report.undo = self.undo_files(directory);
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
        files::write(cx, directory, self.recovery.as_deref(), raw.reader(0, u64::MAX), texts)?;
        let mut report = RestoreReport::default();
        report.notes.push(
            "this program cannot read what was restored, so that only the server can prove it"
                .to_owned(),
        );
        report.undo = self.undo_files(directory);
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

    fn undo_files(&self, directory: &Path) -> Vec<String> {
        let Some(recovery) = &self.recovery else { return Vec::new() };
        let quote =
            |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
        vec![
            "# stop the server, then:".to_owned(),
            format!(
                "for name in dump.rdb appendonlydir; do if [ -e {0}/$name ]; then rm -r {1}/$name && mv {0}/$name {1}/; fi; done",
                quote(recovery),
                quote(directory)
            ),
        ]
    }

    fn put_live(
        &self,
        cx: &Context,
        config: &RedisConfig,
        is_empty: bool,
        whole: Whole,
    ) -> Result<RestoreReport> {
        let open = |cx: &Context| {
            Connection::open(cx, &config.address(), config.login().as_ref(), config.timeout)
        };
        let mut connection = open(cx)?;
        let longest = longest_string(&mut connection)?;
        Self::check_lengths(&whole, longest)?;
        let mut report = RestoreReport::default();
        let mut kept = None;
        if !is_empty {
            kept = self.keep_old(cx, open(cx)?)?;
            connection.must(&[b"FLUSHALL"])?;
            connection.must(&[b"FUNCTION", b"FLUSH"])?;
        }
        let client = match connection.ask(&[b"CLIENT", b"ID"])? {
            Reply::Number(id) => Some(id),
            _ => None,
        };
        let mut loader = Loader::new(cx, &self.room, &mut connection);
        let loaded = whole.reader().and_then(|mut snapshot| loader.load(&mut snapshot));
        if let Err(e) = loaded {
            loader.settle();
            let taken = loader.keys;
            let tried = Tried { whole: &whole, taken, kept: kept.as_deref(), is_empty, client };
            return Err(self.put_back(cx, open, &tried, e));
        }
        if let Some(kept) = &kept {
            report.notes.push(format!("what the server held before is in {}", kept.display()));
            report.undo = vec![
                "# stop the server, put this file in the place of its dump.rdb, take its append-only files away, and start it:".to_owned(),
                format!("# {}", kept.display()),
            ];
        }
        if self.read_back {
            match look(cx, config, Expired::IsGone) {
                Ok(found) => {
                    let mut tally = found.tally.clone();
                    let gone = add_expired(&mut tally, whole.expiring, found.at)?;
                    if gone > 0 {
                        report.notes.push(format!(
                            "{gone} keys have expired since they were captured, and are not there"
                        ));
                    }
                    report.facts = found.functions.clone();
                    tally.write(Standing::Observed, &mut report.facts);
                }
                Err(e) if e.is_cancelled() => return Err(e),
                Err(e) => {
                    report
                        .notes
                        .push(format!("what was restored could not be read back: {}", e.chain()));
                }
            }
        }
        Ok(report)
    }

    /// That no value is longer than the server takes.
    fn check_lengths(whole: &Whole, takes: u64) -> Result<()> {
        let (len, name) = &whole.longest;
        // With its encoding, and what stands behind it.
        let len = len + 11;
        if len <= takes {
            return Ok(());
        }
        let what = format!(
            "a value has {len} bytes, and the server takes {takes} at once (`proto-max-bulk-len`); restore to a directory, or raise that"
        );
        let name = snapkit_core::tree::escape(&name[..name.len().min(100)]);
        Err(Error::new(Reason::LimitExceeded, what).with("key", name))
    }

    /// Keep what a server holds, as a file.
    fn keep_old(&self, cx: &Context, connection: Connection) -> Result<Option<PathBuf>> {
        let Some(recovery) = &self.recovery else { return Ok(None) };
        let path = recovery.join(files::DUMP);
        let what = || format!("cannot write {}", path.display());
        let cannot = |e: Error| {
            let what = "what the server holds could not be kept, so nothing was changed";
            Error::new(e.reason(), what).caused_by(e)
        };
        let pinned = Pinned::begin(connection).map_err(cannot)?;
        let mut transfer = pinned.transfer().map_err(cannot)?.until_closed();
        let kept = spool::keep(cx, &self.room, &mut transfer).map_err(cannot)?;
        transfer.finish().map_err(cannot)?;
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
        let mut file = options.open(&path).doing(what)?;
        std::io::copy(&mut kept.reader(0, u64::MAX), &mut file)
            .and_then(|_| file.sync_all())
            .doing(what)?;
        Ok(Some(path))
    }

    /// Bring back what was there, as far as that can be done.
    fn put_back(
        &self,
        cx: &Context,
        open: impl Fn(&Context) -> Result<Connection>,
        tried: &Tried<'_>,
        e: Error,
    ) -> Error {
        // The restore may have been cancelled.
        let cx = cx.for_cleanup(std::time::Duration::from_secs(600));
        let Tried { whole, taken, kept, is_empty, client } = *tried;
        let back = || -> Result<()> {
            let mut connection = open(&cx)?;
            if let Some(client) = client {
                // What it was sent, and has not done yet, it is not to do afterwards.
                let id = client.to_string();
                connection.ask(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()])?;
            }
            if is_empty {
                // Somebody else may use the server by now: only what came from here is taken out.
                let mut snapshot = whole.reader()?;
                return Loader::unload(
                    &cx,
                    &mut connection,
                    &mut snapshot,
                    taken.saturating_add(1000),
                );
            }
            let Some(kept) = kept else {
                return Err(Error::new(Reason::NotFound, "the old state was not to be kept"));
            };
            let file = File::open(kept).doing(|| format!("cannot read {}", kept.display()))?;
            let mut snapshot = Snapshot::begin(BufReader::with_capacity(256 << 10, file))?;
            connection.must(&[b"FLUSHALL"])?;
            connection.must(&[b"FUNCTION", b"FLUSH"])?;
            Loader::new(&cx, &self.room, &mut connection).load(&mut snapshot)
        };
        match back() {
            Ok(()) => e.with("target", "as it was"),
            Err(failed) => {
                let place = kept.map_or("nowhere".to_owned(), |kept| kept.display().to_string());
                e.with("target", "half restored")
                    .with("old_state", place)
                    .with("not_put_back", failed.chain())
            }
        }
    }
}

/// How far a restore into a live server came.
#[derive(Clone, Copy)]
struct Tried<'a> {
    whole: &'a Whole,
    /// Keys that the server has taken.
    taken: u64,
    /// Where its old state is.
    kept: Option<&'a Path>,
    /// Whether it was empty before.
    is_empty: bool,
    /// By which number the server knows the connection.
    client: Option<i64>,
}

/// Add what has expired by some time, which nobody can find any more. How many there are.
fn add_expired(tally: &mut Tally, expiring: Sorted, at: u64) -> Result<u64> {
    let mut gone = 0;
    for entry in expiring {
        let (place, part) = entry?;
        let expires = place.first_chunk().map_or(u64::MAX, |bytes| u64::from_be_bytes(*bytes));
        if expires > at {
            break;
        }
        let part = Part::from_bytes(&part).ok_or_else(|| Error::internal("a part was lost"))?;
        tally.add(&part);
        gone += 1;
    }
    Ok(gone)
}
