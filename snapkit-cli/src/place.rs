//! What stands where a repository is looked for or is to be made, and is none.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt as _;
use snapkit_core::config::{CONFIG_KEY, MAX_CONFIG, RepositoryConfig};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, IoContext as _, Reason, Result};
use snapkit_core::key::Key;
use snapkit_core::sink::Sink;

use crate::env;
use crate::location::{lexical, resolve};

/// What a repository keeps below its place.
const PARTS: [&str; 4] = ["packs", "snapshots", "index", "keys"];
/// Those of them that nothing could replace.
const CONTENT: [&str; 2] = ["packs", "snapshots"];

/// What an `init` that was interrupted leaves: the next one goes on from there.
const BEGUN: [&str; 2] = ["probe-", ".tmp-"];
/// What a new file system holds.
const LOST_AND_FOUND: &str = "lost+found";

/// Below the directory of local state: which repositories this machine knows where. The second line of each
/// file is a place.
const LOCATIONS: &str = "locations";

/// A directory that holds no config of a repository.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    directory: PathBuf,
    /// The directory of local state, if there is one.
    state: Option<&'a Path>,
}

impl<'a> Place<'a> {
    /// The place that a path or URL names, if it is a directory.
    pub(crate) fn of(url: &str, state: Option<&'a Path>) -> Result<Option<Self>> {
        Ok(snapkit_sinks::directory(url)?.map(|directory| Self { directory, state }))
    }

    /// Whether a new repository may be made here: nothing else is here, and nothing else should be.
    pub(crate) fn check_free(&self, accept_new: bool) -> Result<()> {
        self.check_remains()?;
        if !accept_new {
            self.check_known()?;
        }
        if let Some(outer) = self.directory.ancestors().skip(1).find(|above| is_repository(above)) {
            return Err(Error::new(
                Reason::AlreadyExists,
                "this place is inside of another repository, which would take what is here for its own",
            )
            .with("location", self.directory.display())
            .with("repository", outer.display()));
        }
        match self.stranger()? {
            None => Ok(()),
            Some(name) => Err(Error::new(
                Reason::AlreadyExists,
                "the directory is not empty, and a repository needs one of its own",
            )
            .with("location", self.directory.display())
            .with("holds", name)
            .with_hint("name a directory that is empty or that does not exist yet")),
        }
    }

    /// The error that says why there is no repository here, if more is known than that.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match self.check_remains().and_then(|()| self.check_known()) {
            Err(better) => better,
            Ok(()) => error,
        }
    }

    /// That this is not what is left of a repository.
    fn check_remains(&self) -> Result<()> {
        let is_here = |name: &&str| self.directory.join(name).is_dir();
        let content: Vec<_> =
            CONTENT.into_iter().filter(is_here).map(|name| format!("{name}/")).collect();
        if content.is_empty() || PARTS.iter().filter(|name| is_here(name)).count() < 2 {
            return Ok(());
        }
        Err(remains(&content, self.directory.display()))
    }

    /// That this machine knows of no repository here.
    fn check_known(&self) -> Result<()> {
        let Some(state) = self.state else { return Ok(()) };
        // However it was spelled.
        let here = resolve(&lexical(&self.directory));
        let pins = fs::read_dir(state.join(LOCATIONS)).into_iter().flatten().flatten();
        let known = pins
            .filter_map(|pin| env::read_small(&pin.path(), MAX_CONFIG as u64).ok())
            .any(|pin| {
                let place = pin.lines().nth(1).map(Path::new).filter(|place| place.is_absolute());
                place.is_some_and(|place| resolve(&lexical(place)) == here)
            });
        if !known {
            return Ok(());
        }
        Err(known_and_gone(
            self.directory.display(),
            "is its disk mounted? to make a new one in its place: \
             `snapkit init --accept-new-repository`",
        ))
    }

    /// The first thing in the directory that no `init` has left there.
    fn stranger(&self) -> Result<Option<String>> {
        let what = || format!("cannot read {}", self.directory.display());
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(what(), e)),
        };
        let mut first: Option<String> = None;
        for entry in entries {
            let entry = entry.doing(what)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_ours = BEGUN.iter().any(|begun| name.starts_with(begun))
                || name == LOST_AND_FOUND
                || (name == "keys" && holds_only_keys(&entry.path()));
            if !is_ours && first.as_ref().is_none_or(|first| name < *first) {
                first = Some(name);
            }
        }
        Ok(first)
    }
}

fn remains(content: &[String], location: impl Display) -> Error {
    let are = if content.len() == 1 { "is" } else { "are" };
    let what = format!("{} {are} here, but {CONFIG_KEY} is gone", content.join(" and "));
    Error::new(Reason::ObjectMissing, what).with("location", location).with_hint(
        "put the file config back from a copy; a new repository could not read what is here",
    )
}

fn known_and_gone(location: impl Display, hint: &str) -> Error {
    let what = "the repository that this machine knows at this place is not there";
    Error::new(Reason::NoRepository, what).with("location", location).with_hint(hint)
}

/// Whether a new repository may be made in a store that has none: nothing is left of another, and this machine knows of
/// none there, unless a new one is accepted.
pub(crate) async fn check_store(
    cx: &Context,
    sink: &Arc<dyn Sink>,
    state: Option<&Path>,
    accept_new: bool,
) -> Result<()> {
    let location = &sink.info().location;
    let mut content = Vec::new();
    for name in CONTENT {
        let prefix = Key::new(name)?;
        if cx.run(async { sink.list(cx, Some(&prefix)).next().await.transpose() }).await?.is_some()
        {
            content.push(format!("{name}/"));
        }
    }
    if !content.is_empty() {
        return Err(remains(&content, location));
    }
    let pins = state.map(|state| fs::read_dir(state.join(LOCATIONS)));
    let pins = pins.into_iter().flatten().flatten().flatten();
    let is_known = pins
        .filter_map(|pin| env::read_small(&pin.path(), MAX_CONFIG as u64).ok())
        .any(|pin| pin.lines().nth(1) == Some(location.as_str()));
    if is_known && !accept_new {
        return Err(known_and_gone(
            location,
            "is this the store that it was in? to make a new one in its place: \
             `snapkit init --accept-new-repository`",
        ));
    }
    Ok(())
}

fn holds_only_keys(directory: &Path) -> bool {
    let is_key = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.ends_with(".age") || BEGUN.iter().any(|begun| name.starts_with(begun))
        })
    };
    fs::read_dir(directory).is_ok_and(|mut entries| entries.all(is_key))
}

fn is_repository(directory: &Path) -> bool {
    let config = env::read_small(&directory.join(CONFIG_KEY), MAX_CONFIG as u64);
    config.is_ok_and(|text| match RepositoryConfig::decode(text.as_bytes()) {
        Ok(_) => true,
        Err(e) => e.reason() == Reason::FormatMismatch,
    })
}
