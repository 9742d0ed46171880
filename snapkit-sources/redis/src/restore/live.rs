//! Into a live server: nothing is changed before all that is needed is known to be possible, and whatever fails then is
//! changed back.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::facts::Standing;
use snapkit_core::sort::Sorted;
use snapkit_core::source::RestoreReport;
use snapkit_core::{Error, Reason, Result};

use super::{Plan, Whole, not_empty};
use crate::config::RedisConfig;
use crate::connection::{Connection, Reply};
use crate::facts::{Expired, count, look};
use crate::files;
use crate::per_key::{Done, Loader, longest_string};
use crate::rdb::Snapshot;
use crate::replica::Pinned;
use crate::server::{About, is_forbidden};
use crate::spool;
use crate::tally::{Part, Tally};

/// How long a server may take to become what it was again, and to save what it was given.
const BRING_BACK: Duration = Duration::from_secs(600);

/// Whether a server is empty; an error if it is one into which nothing can be restored.
pub(super) fn examine(cx: &Context, config: &RedisConfig, needed: Option<u32>) -> Result<bool> {
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
    is_empty(&about, &mut connection)
}

/// Whether a server holds neither keys nor functions.
fn is_empty(about: &About, connection: &mut Connection) -> Result<bool> {
    // One that knows no functions, and one that does not let us see them, cannot lose them to us: they are replaced
    // only where everything is.
    let has_functions = match connection.ask(&[b"FUNCTION", b"LIST"])? {
        Reply::Many(libraries) => !libraries.is_empty(),
        _ => false,
    };
    Ok(about.is_empty() && !has_functions)
}

impl Plan {
    pub(super) fn put_live(
        &self,
        cx: &Context,
        config: &RedisConfig,
        is_empty: bool,
        whole: Whole,
    ) -> Result<RestoreReport> {
        let open = |cx: &Context, patience| {
            Connection::open(cx, &config.address(), config.login().as_ref(), patience)
        };
        let mut connection = open(cx, config.timeout)?;
        let takes = longest_string(&mut connection)?;
        check_lengths(&whole.longest, takes)?;
        let about = About::ask(&mut connection)?;
        if is_empty && !self::is_empty(&about, &mut connection)? {
            return Err(not_empty(config.address()));
        }
        let able = Able::ask(&mut connection, &whole, is_empty)?;
        let client = match connection.ask(&[b"CLIENT", b"ID"])? {
            Reply::Number(id) => Some(id),
            _ => None,
        };
        let mut report = RestoreReport::default();
        let mut kept = None;
        if !is_empty {
            kept = self.keep_old(cx, open(cx, config.timeout)?)?;
            if let Some(kept) = &kept {
                check_old(cx, kept, takes)?;
            }
        }
        // From here on nothing may end this without the old state being brought back.
        let mut done = Done::default();
        let loaded = match (!is_empty).then(|| connection.ask(&[b"FLUSHALL"])) {
            None => Ok(()),
            Some(Ok(Reply::Refused(why))) => return Err(connection.refused(b"FLUSHALL", &why)),
            Some(flushed) => flushed.and_then(|_| able.flush_functions(&mut connection)),
        };
        let loaded = loaded.and_then(|()| {
            let mut loader = Loader::new(cx, &self.room, &mut connection, !is_empty);
            let loaded = whole.reader().and_then(|mut snapshot| loader.load(&mut snapshot));
            done = loader.settle();
            loaded
        });
        if let Err(e) = loaded {
            let tried =
                Tried { whole: &whole, done, kept: kept.as_deref(), is_empty, client, able };
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
                Err(e) if cx.check().is_err() => {
                    return Err(e.with("target", "restored, and not proven"));
                }
                Err(e) => {
                    report
                        .notes
                        .push(format!("what was restored could not be read back: {}", e.chain()));
                }
            }
        }
        if let Err(e) = save(cx, &mut connection, &about) {
            if cx.check().is_err() {
                return Err(e.with("target", "restored, and not known to be on the server's disk"));
            }
            report.notes.push(format!(
                "it is in the server's memory, and not known to be on its disk: {}",
                e.chain()
            ));
        }
        Ok(report)
    }

    /// Keep what a server holds, as a file.
    fn keep_old(&self, cx: &Context, connection: Connection) -> Result<Option<PathBuf>> {
        let Some(recovery) = &self.recovery else { return Ok(None) };
        let cannot = |e: Error| {
            let what = "what the server holds could not be kept, so it was left as it is";
            Error::new(e.reason(), what).caused_by(e)
        };
        let pinned = Pinned::begin(connection).map_err(cannot)?;
        if !pinned.is_alone {
            let what = "a server before Redis 7.0 does not say where its snapshot ends: empty it first, or restore to a directory";
            return Err(cannot(Error::new(Reason::Unsupported, what)));
        }
        let mut transfer = pinned.transfer().map_err(cannot)?.until_closed();
        let kept = spool::keep(cx, &self.room, &mut transfer).map_err(cannot)?;
        transfer.finish().map_err(cannot)?;
        let (mut file, path) = create(recovery)?;
        let what = || format!("cannot write {}", path.display());
        std::io::copy(&mut kept.reader(0, u64::MAX), &mut file)
            .and_then(|_| file.sync_all())
            .doing(what)?;
        // The file is only as safe as its name.
        File::open(recovery).and_then(|directory| directory.sync_all()).doing(what)?;
        Ok(Some(path))
    }

    /// Bring back what was there, as far as that can be done.
    fn put_back(
        &self,
        cx: &Context,
        open: impl Fn(&Context, Duration) -> Result<Connection>,
        tried: &Tried<'_>,
        e: Error,
    ) -> Error {
        // The restore may have been cancelled, and the server may be busy with what it was told before.
        let cx = cx.for_cleanup(BRING_BACK);
        let Tried { whole, done, kept, is_empty, client, able } = tried;
        let back = || -> Result<()> {
            let mut connection = open(&cx, BRING_BACK)?;
            if let Some(client) = client {
                // What it was sent, and has not done yet, it is not to do afterwards.
                let id = client.to_string();
                connection.ask(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()])?;
            }
            if *is_empty {
                // Somebody else may use the server by now: only what came from here is taken out.
                return Loader::unload(&cx, &mut connection, &mut whole.reader()?, done);
            }
            let Some(kept) = kept else {
                return Err(Error::new(Reason::NotFound, "the old state was not to be kept"));
            };
            let file = File::open(kept).doing(|| format!("cannot read {}", kept.display()))?;
            let mut snapshot = Snapshot::begin(BufReader::with_capacity(256 << 10, file))?;
            connection.must(&[b"FLUSHALL"])?;
            able.flush_functions(&mut connection)?;
            Loader::new(&cx, &self.room, &mut connection, true).load(&mut snapshot)
        };
        match back() {
            Ok(()) => e.with("target", "as it was"),
            Err(failed) => {
                let e = e.with("target", "half restored").with("not_put_back", failed.chain());
                match kept {
                    None => e,
                    Some(kept) => e.with("old_state", kept.display()).with_hint(
                        "what the server held is in the file `old_state`: stop the server, put it in the place of its dump.rdb, take its append-only files away, and start it",
                    ),
                }
            }
        }
    }
}

/// How far a restore into a live server came.
struct Tried<'a> {
    whole: &'a Whole,
    done: Done,
    /// Where its old state is.
    kept: Option<&'a Path>,
    /// Whether it was empty before.
    is_empty: bool,
    /// By which number the server knows the connection.
    client: Option<i64>,
    able: Able,
}

/// That what a restore needs is possible and allowed, asked with commands that change nothing.
#[derive(Clone, Copy, Debug)]
struct Able {
    /// Whether the server knows functions.
    functions: bool,
}

impl Able {
    fn ask(connection: &mut Connection, whole: &Whole, is_empty: bool) -> Result<Self> {
        // No payload has this form, no library, and there is no such way to flush: what is allowed is refused because of
        // that.
        connection.allowed(&[b"RESTORE", b"snapkit:is-it-allowed", b"0", b"x"])?;
        match is_empty {
            true => connection.allowed(&[b"DEL", b"snapkit:is-it-allowed"])?,
            false => connection.allowed(&[b"FLUSHALL", b"no way to do it"])?,
        }
        let functions = match connection.ask(&[b"FUNCTION", b"LOAD", b"no library"])? {
            Reply::Refused(why) if why.contains("unknown command") && !whole.has_functions => false,
            Reply::Refused(why) if is_forbidden(&why) || why.contains("unknown command") => {
                return Err(connection.refused(b"FUNCTION|LOAD", &why));
            }
            _ => {
                connection.allowed(&[b"FUNCTION", b"FLUSH", b"no way to do it"])?;
                true
            }
        };
        if let Some(database) = whole.last_database {
            connection.must(&[b"SELECT", database.to_string().as_bytes()])?;
            connection.must(&[b"SELECT", b"0"])?;
        }
        Ok(Self { functions })
    }

    fn flush_functions(self, connection: &mut Connection) -> Result<()> {
        if self.functions {
            connection.must(&[b"FUNCTION", b"FLUSH"])?;
        }
        Ok(())
    }
}

/// Make a server write to its disk what it has been given, if it does that at all: else a crash would bring back what
/// it had on its disk before, which is nothing.
fn save(cx: &Context, connection: &mut Connection, about: &About) -> Result<()> {
    if about.get("aof_enabled") == Some("1") {
        return Ok(());
    }
    if let Reply::Many(setting) = connection.must(&[b"CONFIG", b"GET", b"save"])?
        && matches!(setting.get(1), Some(Reply::Text(when)) if when.is_empty())
    {
        return Ok(());
    }
    let patient = cx.within(BRING_BACK);
    loop {
        match connection.ask(&[b"BGSAVE"])? {
            Reply::Refused(why) if why.contains("in progress") => {}
            Reply::Refused(why) => return Err(connection.refused(b"BGSAVE", &why)),
            _ => break,
        }
        pause(&patient)?;
    }
    loop {
        let about = About::ask(connection)?;
        match (about.get("rdb_bgsave_in_progress"), about.get("rdb_last_bgsave_status")) {
            (Some("1"), _) => pause(&patient)?,
            (_, Some("ok")) => return Ok(()),
            _ => {
                let what = "the server could not save its data: its log says why";
                return Err(Error::new(Reason::Unavailable, what));
            }
        }
    }
}

/// A moment, on a thread that may wait.
fn pause(cx: &Context) -> Result<()> {
    cx.check()?;
    std::thread::sleep(Duration::from_millis(100));
    Ok(())
}

/// That no value is longer than the server takes.
fn check_lengths((len, name): &(u64, Vec<u8>), takes: u64) -> Result<()> {
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

/// That what the server held could be brought back.
fn check_old(cx: &Context, kept: &Path, takes: u64) -> Result<()> {
    let read = || {
        let file = File::open(kept).doing(|| format!("cannot read {}", kept.display()))?;
        let mut snapshot = Snapshot::begin(BufReader::with_capacity(256 << 10, file))?;
        let mut longest = (0, Vec::new());
        count(cx, &mut snapshot, |key, len, _| {
            if len > longest.0 {
                longest = (len, key.name.clone());
            }
            true
        })?;
        check_lengths(&longest, takes)
    };
    read().map_err(|e| {
        if cx.check().is_err() {
            return e;
        }
        let what = "what the server holds could not be brought back if the restore failed, so it was left as it is";
        Error::new(e.reason(), what).with("kept", kept.display()).caused_by(e)
    })
}

/// A file for what a server held. One that is there is of another restore, and may be the only copy of something.
fn create(recovery: &Path) -> Result<(File, PathBuf)> {
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    let mut n = 1;
    loop {
        let path = match n {
            1 => recovery.join(files::DUMP),
            n => recovery.join(format!("dump-{n}.rdb")),
        };
        match options.open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && n < 1000 => n += 1,
            opened => {
                let file = opened.doing(|| format!("cannot write {}", path.display()))?;
                return Ok((file, path));
            }
        }
    }
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
