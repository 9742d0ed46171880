//! A restore: blocks are written beside the data, examined, and moved into their places one by one, each in one step. A
//! server that runs takes up what appears there within a minute; one that is stopped when it starts.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use snapkit_core::artifact::{ArtifactMeta, Body};
use snapkit_core::context::{Context, Timestamp};
use snapkit_core::error::IoContext as _;
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::shell;
use snapkit_core::source::{Restore, RestoreReport, RestoreRequest, Target};
use snapkit_core::{Error, Reason, Result};

use crate::block::{self, Block, BlockFile, BlockMeta};
use crate::capture::{answers, open_all};
use crate::config::PrometheusConfig;
use crate::examine::Examiner;
use crate::retention;
use crate::server::Server;
use crate::tally::{self, ANSWER};

/// What a server keeps in its data directory beside blocks, and what belongs to no other data.
const BESIDE: [&str; 4] = ["wal", "wbl", "chunks_head", "queries.active"];

/// How often a server is asked whether it has taken up what is new; it looks itself once a minute.
const LOOK: Duration = Duration::from_secs(2);

/// How long it may take for that.
const TAKEN_UP: Duration = Duration::from_secs(180);

/// Bytes that are read back at once.
const READ: usize = 1 << 20;

/// Blocks on their way into a data directory.
pub(crate) struct PrometheusRestore {
    config: Arc<PrometheusConfig>,
    place: Place,
    staging: Staging,
    /// What is known of what was captured.
    captured: Facts,
    cut: Option<Timestamp>,
    allow_damage: bool,
    is_partial: bool,
    read_back: bool,
    put: BTreeSet<BlockFile>,
    problems: Vec<String>,
}

/// A directory that is removed when it is dropped.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Where blocks go, and what is there.
#[derive(Clone)]
struct Place {
    directory: PathBuf,
    /// The blocks that are there.
    blocks: Vec<String>,
    /// A server that works there.
    server: Option<Server>,
    /// Where what is replaced goes.
    aside: Option<PathBuf>,
    mode: u32,
    owner: (u32, u32),
}

impl Place {
    fn look(directory: &Path) -> Result<Self> {
        let what = || format!("cannot examine {}", directory.display());
        let found = fs::metadata(directory).doing(what)?;
        if !found.is_dir() {
            let e = Error::new(
                Reason::AlreadyExists,
                "a file stands where the data directory has to be",
            );
            return Err(e.with("path", directory.display()));
        }
        Ok(Self {
            directory: directory.to_owned(),
            blocks: block::names(directory)?,
            server: None,
            aside: None,
            mode: found.permissions().mode() & 0o777,
            owner: (found.uid(), found.gid()),
        })
    }

    /// What of a server's data is there besides blocks.
    fn beside(&self) -> Vec<&'static str> {
        let is_there = |name: &&str| fs::symlink_metadata(self.directory.join(name)).is_ok();
        BESIDE.into_iter().filter(is_there).collect()
    }
}

/// Whether a process has something open below a directory, as far as the kernel tells us.
fn is_in_use(directory: &Path) -> bool {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = processes.filter(|process| process.file_name().to_str() != Some(&own));
    let mut open = others.flat_map(|process| fs::read_dir(process.path().join("fd"))).flatten();
    open.any(|entry| {
        let target = entry.and_then(|entry| fs::read_link(entry.path()));
        target.is_ok_and(|target| target.starts_with(directory))
    })
}

impl PrometheusRestore {
    pub(crate) async fn prepare(
        cx: &Context,
        config: Arc<PrometheusConfig>,
        request: &RestoreRequest,
    ) -> Result<Self> {
        let (directory, is_original) = match request.target.clone() {
            Target::Original => (config.data_dir.clone(), true),
            Target::Directory(directory) => (directory, false),
            Target::Url(_) => {
                let what = "a server takes no blocks over the network: restore to its data directory, or to another with --target DIR";
                return Err(Error::new(Reason::Unsupported, what));
            }
        };
        let (mut place, is_in_use) = cx
            .blocking(move || {
                let place = Place::look(&directory)?;
                let is_in_use = is_in_use(&place.directory);
                Ok((place, is_in_use))
            })
            .await?;
        let server = Server::new(&config)?;
        if !is_original && is_in_use {
            let what =
                "a server works in the directory: stop it, or restore to its own data directory";
            return Err(Error::new(Reason::Busy, what).with("path", place.directory.display()));
        }
        if is_original {
            let answers = server.version(cx).await;
            cx.check()?;
            match answers {
                Ok(_) => place.server = Some(server),
                Err(e) if is_in_use => {
                    let what = "a server works in the data directory, and does not answer";
                    return Err(Error::new(Reason::Busy, what)
                        .with("data_dir", place.directory.display())
                        .caused_by(e)
                        .with_hint("stop it, or name its address as `url`"));
                }
                Err(_) => {}
            }
        }
        place.check(cx, request).await?;
        let token = u64::from_le_bytes(cx.random::<8>()?);
        let staging = place.directory.join(format!("snapkit-staged-{token:016x}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&staging)
            .doing(|| format!("cannot write in {}", place.directory.display()))?;
        Ok(Self {
            config,
            place,
            staging: Staging(staging),
            captured: request.record.facts.clone(),
            cut: request.record.cut.as_ref().map(|cut| cut.begin),
            allow_damage: request.allow_damage,
            is_partial: request.partial,
            read_back: request.read_back,
            put: BTreeSet::new(),
            problems: Vec::new(),
        })
    }
}

impl Place {
    /// Whether a restore may go here. What has to be moved aside for it is.
    async fn check(&mut self, cx: &Context, request: &RestoreRequest) -> Result<()> {
        let tell = |e: Error| e.with("data_dir", self.directory.display());
        if self.server.is_some() {
            // What is in its memory stays there, and what comes is older. Blocks are not taken away under it.
            if self.blocks.is_empty() {
                return Ok(());
            }
            let what = "the server has blocks already, and runs: they cannot be replaced under it";
            return Err(tell(Error::new(Reason::TargetNotEmpty, what).with_hint(
                "stop the server and restore with --overwrite (the old state is kept), or restore elsewhere with --target",
            )));
        }
        let beside = self.beside();
        if self.blocks.is_empty() && beside.is_empty() {
            return Ok(());
        }
        if !request.overwrite {
            let what = "there are data of a server already";
            return Err(tell(Error::new(Reason::TargetNotEmpty, what)));
        }
        if request.partial {
            let what = "a part of a snapshot does not replace the data of a server: restore it elsewhere with --target";
            return Err(tell(Error::new(Reason::Unsupported, what)));
        }
        let token = u64::from_le_bytes(cx.random::<8>()?);
        let near = self.directory.join(format!("snapkit-old-{token:016x}"));
        // What is moved must not have to be copied.
        let same = |recovery: &&PathBuf| {
            let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
            device(recovery).ok() == device(&self.directory).ok()
        };
        self.aside = Some(request.recovery.as_ref().filter(same).cloned().unwrap_or(near));
        Ok(())
    }

    /// Make what was staged look like what is around it, and durable.
    fn dress(&self, place: &Path) -> Result<()> {
        let what = || format!("cannot prepare {}", place.display());
        for entry in fs::read_dir(place).doing(what)? {
            let path = entry.doing(what)?.path();
            if fs::symlink_metadata(&path).doing(what)?.is_dir() {
                self.dress(&path)?;
            } else {
                self.dress_one(&path, self.mode & 0o666)?;
            }
        }
        self.dress_one(place, self.mode)
    }

    fn dress_one(&self, path: &Path, mode: u32) -> Result<()> {
        let what = || format!("cannot prepare {}", path.display());
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).doing(what)?;
        let found = fs::metadata(path).doing(what)?;
        if (found.uid(), found.gid()) != self.owner {
            std::os::unix::fs::chown(path, Some(self.owner.0), Some(self.owner.1)).doing(what)?;
        }
        File::open(path).and_then(|file| file.sync_all()).doing(what)
    }

    /// Put staged blocks in their places. If that fails half-way, everything is as it was.
    fn move_in(&self, staging: &Path, blocks: &[String]) -> Result<Vec<(PathBuf, PathBuf)>> {
        let mut moves = Vec::new();
        if let Some(aside) = &self.aside {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(aside)
                .doing(|| format!("cannot create {}", aside.display()))?;
            let names = self.blocks.iter().map(String::as_str).chain(self.beside());
            moves.extend(names.map(|name| (self.directory.join(name), aside.join(name))));
        }
        let come = blocks.iter().map(|name| (staging.join(name), self.directory.join(name)));
        moves.extend(come);
        for (done, (from, to)) in moves.iter().enumerate() {
            let moved = match fs::symlink_metadata(to) {
                Ok(_) => Err(std::io::ErrorKind::AlreadyExists.into()),
                Err(_) => fs::rename(from, to),
            };
            if let Err(e) = moved {
                let what = format!("cannot move {} to {}", from.display(), to.display());
                let back =
                    moves[..done].iter().rev().try_for_each(|(from, to)| fs::rename(to, from));
                let e = Error::io(what, e);
                return Err(match back {
                    Ok(()) => e,
                    Err(back) => e.with("taken_back", format!("not all of it: {back}")),
                });
            }
        }
        let places = [Some(&self.directory), self.aside.as_ref()];
        for place in places.into_iter().flatten() {
            File::open(place)
                .and_then(|dir| dir.sync_all())
                .doing(|| format!("cannot make {} durable", place.display()))?;
        }
        Ok(moves)
    }

    /// What brings the old state back, for a shell, also if it is run again, or was cut off.
    fn undo(&self, moves: &[(PathBuf, PathBuf)]) -> Vec<String> {
        let Some(aside) = &self.aside else { return Vec::new() };
        let undone = aside.join("undone");
        let here = |name: &str| shell::path(&self.directory.join(name));
        let (old, new): (Vec<_>, Vec<_>) = moves.iter().partition(|(_, to)| to.starts_with(aside));
        let (data, room) = (shell::path(&self.directory), shell::path(&undone));
        let mut lines = vec!["# stop the server, then:".to_owned(), format!("mkdir -p {room}")];
        for (_, to) in &new {
            let done = shell::path(&undone.join(to.file_name().unwrap_or_default()));
            let to = shell::path(to);
            lines.push(format!("if [ -e {to} ] && [ ! -e {done} ]; then mv {to} {room}; fi"));
        }
        // What a server has made since beside what it had.
        let is_old = |name: &&str| old.iter().any(|(from, _)| from.ends_with(name));
        if let Some((_, kept)) = old.first() {
            let kept = shell::path(kept);
            lines.extend(BESIDE.into_iter().filter(|name| !is_old(name)).map(|name| {
                let made = here(name);
                format!("if [ -e {kept} ] && [ -e {made} ]; then mv {made} {room}; fi")
            }));
        }
        lines.extend(old.iter().map(|(from, to)| {
            let (from, to) = (shell::path(from), shell::path(to));
            format!(
                "if [ -e {to} ]; then {{ [ ! -e {from} ] || mv {from} {room}; }} && mv {to} {data}; fi"
            )
        }));
        lines
    }
}

/// Read blocks back from where they are now.
fn read_back(cx: &Context, directory: &Path, names: &[String]) -> Result<Facts> {
    let mut blocks = Vec::new();
    for name in names {
        let block = Block::open(directory, name)?;
        let mut files = Vec::new();
        for kind in block.files.keys() {
            let path = BlockFile { block: name.clone(), kind: *kind }.path(directory);
            let what = || format!("cannot read back {}", path.display());
            let mut file = File::open(&path).doing(what)?;
            let (mut examiner, mut buffer) = (Examiner::new(name, *kind), vec![0; READ]);
            loop {
                cx.check()?;
                match file.read(&mut buffer).doing(what)? {
                    0 => break,
                    n => examiner.take_in(&buffer[..n]),
                }
            }
            files.push((*kind, examiner.finish()));
        }
        let digest = tally::digest(files.iter().map(|(kind, examined)| (*kind, examined)));
        blocks.push((block.meta, Some(digest)));
    }
    let blocks = blocks.iter().map(|(meta, digest)| (meta, digest.clone()));
    Ok(tally::facts(blocks, Standing::Observed))
}

impl PrometheusRestore {
    /// Wait until the server has taken up as many blocks as there are.
    async fn taken_up(&self, cx: &Context, server: &Server, blocks: u64) -> Result<()> {
        let patient = cx.within(TAKEN_UP);
        loop {
            match server.blocks_loaded(&patient).await {
                Ok(Some(loaded)) if loaded >= blocks => return Ok(()),
                Ok(_) => {}
                Err(e) => tracing::info!(error = %e.chain(), "the server is asked again"),
            }
            patient.sleep(LOOK).await.map_err(|e| match cx.check() {
                Ok(()) => {
                    Error::new(Reason::TimedOut, "the server has not taken up what was restored")
                }
                Err(_) => e,
            })?;
        }
    }

    /// What is to be said of the time after.
    async fn of_retention(&self, cx: &Context, blocks: &[BlockMeta]) -> Option<String> {
        let Some(server) = &self.place.server else {
            return Some(
                "a server deletes blocks that end longer ago, seen from its newest block, than its --storage.tsdb.retention.time (15d unless given): give it a longer one before it starts if what was restored is older"
                    .to_owned(),
            );
        };
        let text = server.retention(cx).await.ok()?;
        retention::warning(blocks, &text, cx.now())
    }

    /// What was answered when it was captured.
    fn answers(&self) -> impl Iterator<Item = String> {
        let names = self.captured.0.keys();
        names.filter(|name| name.starts_with(ANSWER)).cloned()
    }
}

#[async_trait]
impl Restore for PrometheusRestore {
    async fn put(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()> {
        let file = BlockFile::parse(&meta.name)?;
        if !self.put.insert(file.clone()) {
            return Err(Error::corrupt("a file of a block came twice").with("artifact", &meta.name));
        }
        let mut body = body.into_bytes()?;
        let path = file.path(&self.staging.0);
        let what = format!("cannot write {}", path.display());
        let (place, doing) = (path.clone(), what.clone());
        let mut open = cx
            .blocking(move || {
                let parent = place.parent().unwrap_or(&place);
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(parent)
                    .doing(|| doing.clone())?;
                let mut options = File::options();
                options.write(true).create_new(true).mode(0o600).open(&place).doing(|| doing)
            })
            .await?;
        let mut examiner = Examiner::new(&file.block, file.kind);
        while let Some(piece) = cx.run(body.try_next()).await? {
            examiner.take_in(&piece);
            let what = what.clone();
            open =
                cx.blocking(move || open.write_all(&piece).doing(|| what).map(|()| open)).await?;
        }
        if let Some(wrong) = examiner.finish().wrong {
            if !self.allow_damage {
                return Err(Error::corrupt(wrong).with("artifact", &meta.name).with_hint(
                    "it was damaged when it was captured: --allow-damage puts it back as it is",
                ));
            }
            self.problems.push(format!("{}: {wrong}", meta.name));
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>, cx: &Context) -> Result<RestoreReport> {
        let mut report = RestoreReport::default();
        let (place, staging) = (self.place.clone(), self.staging.0.clone());
        let is_partial = self.is_partial;
        let (moves, metas) = cx
            .blocking(move || {
                let names = block::names(&staging)?;
                // A part of a block is none, and helps whoever wants to look at it.
                let metas = match open_all(&staging) {
                    Ok(blocks) => blocks.into_iter().map(|block| block.meta).collect(),
                    Err(e) if is_partial && place.server.is_none() && e.is_damage() => Vec::new(),
                    Err(e)
                        if is_partial
                            && place.server.is_none()
                            && e.reason() == Reason::NotFound =>
                    {
                        Vec::new()
                    }
                    Err(e) => return Err(e),
                };
                for name in &names {
                    place.dress(&staging.join(name))?;
                }
                Ok((place.move_in(&staging, &names)?, metas))
            })
            .await?;
        let metas: Vec<BlockMeta> = metas;
        report.undo = self.place.undo(&moves);
        report.notes.extend(self.of_retention(cx, &metas).await);
        report.problems = std::mem::take(&mut self.problems);
        if self.read_back && !self.is_partial {
            let names: Vec<_> = metas.iter().map(|meta| meta.ulid.clone()).collect();
            let (directory, inner) = (self.place.directory.clone(), cx.clone());
            let found = cx.blocking(move || read_back(&inner, &directory, &names)).await;
            // The restore is done, and how to undo it must be told.
            match found {
                Ok(facts) => report.facts = facts,
                Err(e) => report.problems.push(format!("it could not be read back: {}", e.chain())),
            }
            match (&self.place.server, self.cut) {
                (Some(server), Some(cut)) => {
                    match self.taken_up(cx, server, metas.len() as u64).await {
                        Ok(()) => match answers(cx, &self.config, server, cut).await {
                            Ok(answers) => report.facts.0.extend(answers.0),
                            Err(e) => report.problems.push(e.chain()),
                        },
                        Err(e) => report.problems.push(e.chain()),
                    }
                }
                // Nobody can be asked.
                _ => report.beside.extend(self.answers()),
            }
        }
        report.problem_count = report.problems.len() as u64;
        Ok(report)
    }

    async fn abort(self: Box<Self>, cx: &Context) -> Result<()> {
        cx.blocking(move || {
            drop(self.staging);
            Ok(())
        })
        .await
    }
}
