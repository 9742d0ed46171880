//! What a live server holds, as it says itself when it is asked for all of it.

use snapkit_core::Result;
use snapkit_core::context::Context;
use snapkit_core::facts::{Facts, Standing};

use crate::config::RedisConfig;
use crate::connection::{Connection, Reply};
use crate::functions;
use crate::rdb::{Item, Key, Snapshot};
use crate::replica::Pinned;
use crate::server::About;
use crate::tally::{Part, Tally};

/// What was found in a server.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) tally: Tally,
    pub(crate) functions: Facts,
    /// The server's time when all of it was fixed, in milliseconds since 1970. What had expired by then does not
    /// count, whether it was still there or not.
    pub(crate) at: u64,
    pub(crate) about: About,
}

impl Found {
    pub(crate) fn facts(&self) -> Facts {
        let mut facts = self.functions.clone();
        self.tally.write(Standing::Observed, &mut facts);
        self.about.observe(&mut facts);
        facts
    }
}

/// How a key is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// Like any other.
    Counts,
    /// Not at all.
    IsGone,
}

/// Ask a server for all that it holds.
pub(crate) fn look(cx: &Context, config: &RedisConfig, expired: Expired) -> Result<Found> {
    let open = || Connection::open(cx, &config.address(), config.login().as_ref(), config.timeout);
    let (replica, mut asking) = (open()?, open()?);
    let about = About::ask(&mut asking)?;
    about.check(&asking)?;
    let pinned = Pinned::begin(replica)?;
    // When it answers, it has forked.
    let at = time(&mut asking)?;
    let mut snapshot = pinned.snapshot()?;
    let is_there = |expires: Option<u64>| {
        expired == Expired::Counts || expires.is_none_or(|expires| expires > at)
    };
    let (tally, sources) = count(cx, &mut snapshot, |key, _, _| is_there(key.expires))?;
    snapshot.into_inner().finish()?;
    Ok(Found { tally, functions: functions::facts(&sources, Standing::Observed), at, about })
}

/// Count the keys of a snapshot that are to be counted, by what they are and how many bytes their values have, and gather
/// its functions.
pub(crate) fn count(
    cx: &Context,
    snapshot: &mut Snapshot<impl std::io::Read>,
    mut is_counted: impl FnMut(&Key, u64, &Part) -> bool,
) -> Result<(Tally, Vec<Vec<u8>>)> {
    let (mut tally, mut sources) = (Tally::default(), Vec::new());
    loop {
        match snapshot.item()? {
            Item::Aux { .. } => {}
            Item::Function(source) => sources.push(source),
            Item::Key(key) => {
                if tally.keys().is_multiple_of(1024) {
                    cx.check()?;
                }
                let mut len = 0;
                let digest = snapshot.value(|piece| {
                    len += piece.len() as u64;
                    Ok(())
                })?;
                let part = Part::of(&key, &digest);
                if is_counted(&key, len, &part) {
                    tally.add(&part);
                }
            }
            Item::End { .. } => break,
        }
    }
    sources.sort();
    Ok((tally, sources))
}

/// The server's time, in milliseconds since 1970.
fn time(connection: &mut Connection) -> Result<u64> {
    let number = |reply: &Reply| match reply {
        Reply::Text(text) => std::str::from_utf8(text).ok()?.parse::<u64>().ok(),
        _ => None,
    };
    match connection.must(&[b"TIME"])? {
        Reply::Many(parts) if parts.len() == 2 => {
            let (seconds, micros) = (number(&parts[0]), number(&parts[1]));
            let millis =
                seconds.zip(micros).map(|(s, us)| s.saturating_mul(1000).saturating_add(us / 1000));
            millis.ok_or_else(|| connection.strange())
        }
        _ => Err(connection.strange()),
    }
}
