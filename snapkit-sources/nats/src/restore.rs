//! A restore: everything is read and checked before the first stream is touched; a stream that is replaced is kept as an
//! archive first, and comes back if anything fails.

mod kept;
mod live;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde_json::{Value, json};
use snapkit_core::artifact::{ArtifactMeta, Body};
use snapkit_core::context::Context;
use snapkit_core::error::IoContext as _;
use snapkit_core::facts::{Facts, RestoreVerdict, Standing};
use snapkit_core::scratch::Room;
use snapkit_core::source::{Restore, RestoreReport, RestoreRequest, Target};
use snapkit_core::{Error, Reason, Result};

use crate::archive::{self, Format, compressed, files, list};
use crate::config::NatsConfig;
use crate::document::{SUFFIX, StreamDocument};
use crate::look::{Summary, Taken};
use crate::message::Message;
use crate::server::Server;
use crate::source::gather;
use crate::spool::SpoolWriter;

/// The archive of a stream in a directory, as NATS' own tool names it.
const ARCHIVE: &str = "stream.tar.s2";
/// And what a server has to be told with it.
const BACKUP: &str = "backup.json";

/// Where the streams go.
#[derive(Debug)]
enum Place {
    /// Each into a directory of its own below this one, as an archive that NATS' own tool restores.
    Directory(PathBuf),
    /// Into a server.
    Server(Box<Server>),
}

/// A restore into one account.
#[derive(Debug)]
pub(crate) struct NatsRestore {
    place: Place,
    expected: Option<Facts>,
    overwrite: bool,
    recovery: Option<PathBuf>,
    read_back: bool,
    room: Room,
    documents: BTreeMap<String, StreamDocument>,
    messages: BTreeMap<String, crate::spool::Spool>,
}

fn not_empty(place: impl std::fmt::Display) -> Error {
    Error::new(Reason::TargetNotEmpty, "the target holds data").with("target", place)
}

impl NatsRestore {
    /// Examine the target.
    pub(crate) async fn prepare(
        cx: &Context,
        config: &NatsConfig,
        request: &RestoreRequest,
    ) -> Result<Self> {
        let place = match &request.target {
            Target::Directory(directory) => {
                let looked = directory.clone();
                let entries = cx.blocking(move || {
                    let what = || format!("cannot examine {}", looked.display());
                    Ok(fs::read_dir(&looked).doing(what)?.next().is_some())
                });
                if entries.await? {
                    return Err(not_empty(directory.display()));
                }
                Place::Directory(directory.clone())
            }
            target => {
                let config = match target {
                    Target::Url(url) => config.at(url)?,
                    _ => config.clone(),
                };
                config.check_secrets()?;
                let server = Server::connect(cx, &config).await?;
                let stored = request.record.artifacts.iter();
                let names: Vec<_> =
                    stored.filter_map(|a| a.meta.name.as_str().strip_suffix(SUFFIX)).collect();
                let found = server.streams(cx, |name| names.contains(&name)).await?;
                if let Some(name) = found.keys().next().filter(|_| !request.overwrite) {
                    return Err(not_empty(&server.url).with("stream", name));
                }
                Place::Server(Box::new(server))
            }
        };
        Ok(Self {
            place,
            expected: (!request.partial).then(|| request.record.facts.clone()),
            overwrite: request.overwrite,
            recovery: request.recovery.clone(),
            read_back: request.read_back,
            room: Room::new(config.scratch.unwrap_or(u64::MAX)),
            documents: BTreeMap::new(),
            messages: BTreeMap::new(),
        })
    }

    /// All streams, once it is known that they are what was captured.
    fn checked(&mut self) -> Result<BTreeMap<String, Taken>> {
        let mut messages = std::mem::take(&mut self.messages);
        let mut summary = Summary::new(Standing::Observed);
        let mut all = BTreeMap::new();
        for (name, document) in std::mem::take(&mut self.documents) {
            let what = "a stream came without its messages";
            let messages =
                messages.remove(&name).ok_or_else(|| Error::corrupt(what).with("stream", &name))?;
            if messages.tally.last > document.last_seq {
                let what = "a stream has messages behind its last one";
                return Err(Error::corrupt(what).with("stream", name));
            }
            summary.add(&document, &messages.tally);
            all.insert(name, Taken { document, messages });
        }
        if let Some(name) = messages.keys().next() {
            return Err(Error::corrupt("messages came without their stream").with("stream", name));
        }
        let comparison = self.expected.as_ref().map(|facts| facts.compare(&summary.facts()));
        let differs = |comparison: &&snapkit_core::facts::Comparison| {
            comparison.verdict == RestoreVerdict::Differs
        };
        if let Some(comparison) = comparison.as_ref().filter(differs)
            && let Some(first) = comparison.differences.first()
        {
            let what = "what is stored is not what was captured, so the target was left as it is";
            return Err(Error::corrupt(what)
                .with("fact", &first.fact)
                .with("captured", &first.expected)
                .with("stored", &first.found));
        }
        Ok(all)
    }
}

/// What a server has to be told of a stream before its archive comes.
fn told(taken: &Taken, config: &Value) -> Value {
    let Taken { document, messages } = taken;
    json!({
        "config": config,
        "state": {
            "messages": messages.tally.messages,
            "bytes": 0,
            "first_seq": document.first_seq,
            "last_seq": document.last_seq,
            "consumer_count": document.consumers.len(),
        },
    })
}

/// Write the archive of a stream with such a configuration.
fn write(
    cx: &Context,
    taken: &Taken,
    config: &Value,
    format: Format,
    output: &mut dyn std::io::Write,
) -> Result<()> {
    let Taken { document, messages } = taken;
    let compressed = compressed(output);
    let created = match document.created.as_str() {
        "" => "1970-01-01T00:00:00Z",
        created => created,
    };
    let checked = |message: Result<Message>| {
        cx.check()?;
        message
    };
    let mut compressed = match format {
        Format::Files => {
            let name = document.name();
            let mut writer = files::Writer::begin(compressed, name, config, created)?;
            for message in messages.read()? {
                writer.add(&checked(message)?)?;
            }
            writer.finish(document.last_seq, &document.consumers, created)?
        }
        Format::List => {
            let range = (document.first_seq, document.last_seq);
            let count = messages.tally.messages;
            let now = cx.now().0;
            let mut writer =
                list::Writer::begin(compressed, range, count, &document.consumers, now)?;
            for message in messages.read()? {
                writer.add(&checked(message)?)?;
            }
            writer.finish()?
        }
    };
    compressed.flush().map_err(list::unwritable)
}

/// Write streams as archives into a directory, and read them back.
fn put_files(
    cx: &Context,
    directory: &Path,
    streams: &BTreeMap<String, Taken>,
    room: &Room,
    read_back: bool,
) -> Result<RestoreReport> {
    let mut report = RestoreReport::default();
    let mut summary = Summary::new(Standing::Observed);
    for (name, taken) in streams {
        let place = directory.join(name);
        let what = || format!("cannot write in {}", place.display());
        fs::create_dir(&place).doing(what)?;
        let format = match taken.document.is_in_memory() {
            true => Format::List,
            false => Format::Files,
        };
        let path = place.join(ARCHIVE);
        let mut file = fs::File::create_new(&path).doing(what)?;
        let config = &taken.document.config;
        write(cx, taken, config, format, &mut file).map_err(|e| e.with("path", path.display()))?;
        file.sync_all().doing(what)?;
        let told = told(taken, config).to_string();
        fs::write(place.join(BACKUP), told).doing(what)?;
        if read_back {
            let mut spool = SpoolWriter::begin(cx, room)?;
            let file = fs::File::open(&path).doing(|| format!("cannot read {}", path.display()))?;
            let contents = archive::read(cx, name, file, &mut spool)?;
            let mut document = taken.document.clone();
            document.consumers = contents.consumers;
            let spool = spool.finish(document.first_seq, document.last_seq)?;
            summary.add(&document, &spool.tally);
        }
    }
    if read_back {
        report.facts = summary.facts();
    }
    report
        .notes
        .push("each stream is a directory here, which `nats stream restore` takes".to_owned());
    Ok(report)
}

#[async_trait]
impl Restore for NatsRestore {
    async fn put(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()> {
        let name = meta.name.as_str();
        match (name.strip_suffix(SUFFIX), body) {
            (Some(stream), Body::Bytes(bytes)) => {
                let document = StreamDocument::decode(stream, &gather(bytes).await?)?;
                self.documents.insert(stream.to_owned(), document);
            }
            (None, Body::Records(mut records)) => {
                let mut spool = SpoolWriter::begin(cx, &self.room)?;
                while let Some(batch) = records.next_batch(cx).await? {
                    let mut messages = Vec::with_capacity(batch.len());
                    for record in batch {
                        messages.push(Message::from_record(record).await?);
                    }
                    spool = cx
                        .blocking(move || {
                            messages.iter().try_for_each(|message| spool.add(message))?;
                            Ok(spool)
                        })
                        .await
                        .map_err(|e| e.with("stream", name))?;
                }
                let spool = cx.blocking(move || spool.finish(1, u64::MAX)).await?;
                self.messages.insert(name.to_owned(), spool);
            }
            _ => {
                let what = "an artifact has an unknown form";
                return Err(Error::corrupt(what).with("artifact", name));
            }
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>, cx: &Context) -> Result<RestoreReport> {
        let streams = self.checked()?;
        match self.place {
            Place::Directory(directory) => {
                let (inner, room, read_back) = (cx.clone(), self.room, self.read_back);
                cx.blocking(move || put_files(&inner, &directory, &streams, &room, read_back)).await
            }
            Place::Server(server) => {
                let plan = live::Plan {
                    server: *server,
                    overwrite: self.overwrite,
                    recovery: self.recovery,
                    read_back: self.read_back,
                    room: self.room,
                };
                plan.put(cx, streams).await
            }
        }
    }

    async fn abort(self: Box<Self>, _: &Context) -> Result<()> {
        Ok(())
    }
}
