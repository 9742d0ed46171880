//! Making and opening repositories.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;

use crate::chunk::ChunkKey;
use crate::config::{CONFIG_KEY, ManifestPlace, RepositoryConfig};
use crate::context::Context;
use crate::credential::{Credential, MAX_CREDENTIAL, Unlock};
use crate::engine::Repository;
use crate::engine::local::Local;
use crate::engine::options::{OpenOptions, check_memory};
use crate::engine::report::InitReport;
use crate::error::{Error, IoContext as _, Reason, Result};
use crate::id::{CredentialId, to_hex};
use crate::key::Key;
use crate::ledger::StoredManifest;
use crate::own::create_private_dir;
use crate::seal::FORMAT;
use crate::sink::{Put, PutMode, Sink};

/// The most credentials that a repository may have.
const MAX_CREDENTIALS: usize = 1000;

/// The most time that is spent on trying a passphrase on them.
const MAX_TRYING: Duration = Duration::from_secs(20);

impl Repository {
    /// Make a repository in a sink that holds none. `unlock` will open its first, full credential.
    ///
    /// The config is put last: an interrupted `init` leaves no repository.
    pub async fn init(cx: &Context, sink: &Arc<dyn Sink>, unlock: &Unlock) -> Result<InitReport> {
        let location = sink.info().location.clone();
        let config_key = Key::new(CONFIG_KEY)?;
        let exists = || {
            Error::new(Reason::RepositoryExists, "there is a repository already")
                .with("location", &location)
        };
        match cx.run(sink.get(cx, &config_key, None)).await {
            Ok(_) => return Err(exists()),
            Err(e) if e.reason() == Reason::NotFound => {}
            Err(e) => return Err(e),
        }
        let create_only = probe_create_only(cx, sink).await?;
        let credential = Credential::create(cx)?;
        let file = {
            let (credential, unlock) = (credential.clone(), unlock.clone());
            cx.compute(move || credential.encode(&unlock)).await?
        };
        cx.run(sink.put(cx, &credential.key()?, file.into(), PutMode::Create)).await?;
        let certifier = credential.certifier()?;
        let config = RepositoryConfig {
            format: FORMAT.to_owned(),
            repository: credential.writer.repository,
            public_key: to_hex(&credential.writer.public),
            certifier: to_hex(&certifier.verifying_key().to_bytes()),
            created: cx.now(),
            create_only,
            manifest: ManifestPlace::Stored,
        };
        let bytes = Bytes::from(config.encode(certifier)?);
        match cx.run(sink.put(cx, &config_key, bytes, PutMode::Create)).await? {
            Put::Stored => Ok(InitReport {
                location: location.clone(),
                repository: config.repository,
                fingerprint: config.fingerprint(),
                create_only,
            }),
            Put::AlreadyThere => Err(exists()),
        }
    }

    /// Remember in the local state what was made where, so that another repository in its place is
    /// noticed; what was there before does not count any more.
    pub async fn pin(cx: &Context, made: &InitReport, state: PathBuf) -> Result<()> {
        if in_memory(&made.location) {
            return Ok(());
        }
        let local = Local::new(state, made.repository, &made.location);
        local.pin(cx, &made.location, made.fingerprint, true).await
    }

    /// The config of a repository, without a key. `no-repository` if there is none.
    pub async fn peek(cx: &Context, sink: &Arc<dyn Sink>) -> Result<RepositoryConfig> {
        let location = &sink.info().location;
        let bytes = cx.run(sink.get(cx, &Key::new(CONFIG_KEY)?, None)).await.map_err(|e| {
            if e.reason() == Reason::NotFound {
                Error::new(Reason::NoRepository, "there is no snapkit repository here")
                    .with("location", location)
            } else {
                e
            }
        })?;
        RepositoryConfig::decode(&bytes).map_err(|e| e.with("location", location))
    }

    /// That no other repository stands in a place than the one that was there before, as far as local state in
    /// `state` tells. Needs no key.
    ///
    /// # Errors
    ///
    /// `repository-replaced` if there is another one.
    pub async fn check_known(cx: &Context, sink: &Arc<dyn Sink>, state: PathBuf) -> Result<()> {
        let config = Self::peek(cx, sink).await?;
        let location = &sink.info().location;
        let local = Local::new(state, config.repository, location);
        local.check_known(cx, location, config.fingerprint()).await
    }

    /// Open a repository with the first of `unlock` that fits.
    pub async fn open(
        cx: &Context,
        sink: Arc<dyn Sink>,
        unlock: &[Unlock],
        mut options: OpenOptions,
    ) -> Result<Self> {
        check_memory(options.memory)?;
        let config = Self::peek(cx, &sink).await?;
        let location = sink.info().location.clone();
        let fingerprint = config.fingerprint();
        if let Some(expected) = options.fingerprint
            && expected != fingerprint
        {
            return Err(Error::new(
                Reason::RepositoryReplaced,
                "this is not the repository that was expected",
            )
            .with("location", location)
            .with("expected", expected)
            .with("found", fingerprint));
        }
        let local = Local::new(options.state.clone(), config.repository, &location);
        if !in_memory(&location) && !options.accept_new_repository {
            // Before its key is asked for, which may be one that nobody here has.
            local.check_known(cx, &location, fingerprint).await?;
        }
        let credential = Arc::new(open_credential(cx, &sink, unlock, &config).await?);
        if !in_memory(&location) {
            local.pin(cx, &location, fingerprint, options.accept_new_repository).await?;
        }
        let mut warnings = Vec::new();
        let mut basis = local.dir();
        let mut spare = Vec::new();
        for (dir, loss) in [
            (&mut options.cache, "the index is fetched again each time"),
            (&mut basis, "what is unchanged is not remembered, and all of it read each time"),
        ] {
            if let Some((instead, why)) = spare_for(cx, dir.clone()).await? {
                warnings.push(format!(
                    "{} cannot be written to, so {loss}: {}",
                    dir.display(),
                    why.chain()
                ));
                *dir = instead.path().to_owned();
                spare.push(Arc::new(instead));
            }
        }
        if !config.create_only {
            warnings.push(
                "the store does not honour create-only puts: commits rely on time windows"
                    .to_owned(),
            );
        }
        let manifest = Arc::new(StoredManifest::new(
            Arc::clone(&sink),
            Arc::clone(&credential),
            config.certifier()?,
        ));
        let chunk_key = ChunkKey::new(&credential.writer.id_key);
        Ok(Self {
            sink,
            config,
            credential,
            manifest,
            chunk_key,
            options,
            local,
            basis,
            spare,
            warnings,
        })
    }
}

/// A directory in the place of one that cannot be written to, gone with the value, and why.
async fn spare_for(cx: &Context, dir: PathBuf) -> Result<Option<(tempfile::TempDir, Error)>> {
    cx.blocking(move || {
        let attempt = || {
            create_private_dir(&dir)?;
            let what = || format!("cannot write a file in {}", dir.display());
            let mut probe = tempfile::NamedTempFile::new_in(&dir).doing(what)?;
            std::io::Write::write_all(&mut probe, &[0; 4096]).doing(what)
        };
        match attempt() {
            Ok(()) => Ok(None),
            Err(e) => {
                let spare = tempfile::TempDir::with_prefix("snapkit-");
                spare.doing(|| "cannot make a temporary directory".to_owned()).map(|s| Some((s, e)))
            }
        }
    })
    .await
}

/// A place in memory is another one each time.
fn in_memory(location: &str) -> bool {
    location.starts_with("memory:")
}

/// Whether a second create-only put of an object is refused and the first one stands.
async fn probe_create_only(cx: &Context, sink: &Arc<dyn Sink>) -> Result<bool> {
    let key = Key::new(format!("probe-{}", to_hex(&cx.random::<8>()?)))?;
    let put = async |text: &'static [u8]| {
        cx.run(sink.put(cx, &key, Bytes::from_static(text), PutMode::Create)).await
    };
    let first = put(b"first").await?;
    let second = put(b"second").await?;
    let stands = cx.run(sink.get(cx, &key, None)).await?;
    cx.run(sink.delete(cx, &key)).await?;
    Ok(first == Put::Stored && second == Put::AlreadyThere && stands == b"first"[..])
}

async fn open_credential(
    cx: &Context,
    sink: &Arc<dyn Sink>,
    unlock: &[Unlock],
    config: &RepositoryConfig,
) -> Result<Credential> {
    let location = &sink.info().location;
    if unlock.is_empty() {
        return Err(Error::new(Reason::NoKey, "no key file and no passphrase was given")
            .with("location", location));
    }
    let mut listing = sink.list(cx, Some(&Key::new("keys")?));
    let begun = cx.monotonic();
    let mut damage = None;
    let mut count = 0;
    while let Some(entry) = cx.run(listing.try_next()).await? {
        let id = entry
            .key
            .last_segment()
            .strip_suffix(".age")
            .and_then(|t| t.parse::<CredentialId>().ok());
        let Some(id) = id else { continue };
        count += 1;
        if count > MAX_CREDENTIALS {
            return Err(Error::new(
                Reason::LimitExceeded,
                format!(
                    "none of the first {MAX_CREDENTIALS} credentials of the repository fits: remove from \
                     `keys` what nobody uses"
                ),
            ));
        }
        let file = match entry.get(cx, &**sink, MAX_CREDENTIAL as u64).await {
            Ok(file) => file,
            Err(e) if e.is_damage() => {
                damage = Some(e.with("key", entry.key));
                continue;
            }
            Err(e) => return Err(e),
        };
        if cx.monotonic().saturating_sub(begun) > MAX_TRYING {
            return Err(Error::new(
                Reason::LimitExceeded,
                format!("to try {count} of the credentials took too long; a key file is quicker"),
            ));
        }
        for unlock in unlock {
            let (file, unlock, config) = (file.clone(), unlock.clone(), config.clone());
            match cx.compute(move || Credential::decode(id, &file, &unlock, &config)).await {
                Ok(Some(credential)) => return Ok(credential),
                Ok(None) => {}
                Err(e) if e.reason() == Reason::NoKey => return Err(e),
                Err(e) => damage = Some(e.with("key", &entry.key)),
            }
        }
    }
    if let Some(e) = damage {
        return Err(e);
    }
    if count == 0 {
        return Err(Error::new(
            Reason::ObjectMissing,
            "the repository has no credential left under keys/",
        )
        .with("location", location)
        .with_hint(
            "put the files of keys/ back from a copy: without one of them nothing can be read",
        ));
    }
    Err(Error::new(Reason::WrongKey, "no key that was given opens this repository")
        .with("location", location)
        .with("repository", config.repository))
}
