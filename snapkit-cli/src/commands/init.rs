//! `snapkit init`: a repository, and the key that opens it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use snapkit_core::credential::Unlock;
use snapkit_core::engine::{InitReport, Repository};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::sink::Sink;

use crate::app::App;
use crate::env;
use crate::exit::Exit;
use crate::key::{self, NewKeyFile};
use crate::place::{Place, check_store};
use crate::prompt;

/// How long it may take to find out whether a failed attempt has left a repository.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Make a repository, and the key that opens it
///
/// Without --passphrase the repository is opened by a key file: the one that --key-file,
/// SNAPKIT_KEY_FILE or the stack file names, which is made if it does not exist, or a new one in the usual
/// place. Whoever has lost the key has lost the repository: keep a copy in another place.
///
/// The place must be an empty directory, or one that is made. Where this machine knows a repository that is not
/// there, as on a disk that is not mounted, a new one is made only with --accept-new-repository.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Let a passphrase open the repository: of SNAPKIT_PASSPHRASE, SNAPKIT_PASSPHRASE_FILE or
    /// SNAPKIT_PASSPHRASE_COMMAND, or typed in on a terminal
    #[arg(long)]
    passphrase: bool,
    /// Succeed if there is a repository already
    #[arg(long)]
    if_missing: bool,
}

/// What is to open the new repository.
enum Lock {
    /// A passphrase, or a key file that exists.
    Known(Unlock, Option<PathBuf>),
    /// A key file that was made for it.
    New(NewKeyFile, Unlock),
}

pub(crate) async fn run(app: &App, args: InitArgs) -> Result<Exit> {
    let url = app.repository_url()?;
    if let Some(exists) = existing(app, &url).await? {
        if !args.if_missing {
            return Err(exists);
        }
        let sink = snapkit_sinks::open_with(&app.cx, &url, &app.stores()?).await?;
        if let Some(state) = app.places.state().ok().filter(|_| !app.common.accept_new_repository) {
            Repository::check_known(&app.cx, &sink, state).await?;
        }
        let config = Repository::peek(&app.cx, &sink).await?;
        app.output.document(&json!({
            "created": false, "repository": config.repository, "fingerprint": config.fingerprint(),
        }))?;
        return Ok(Exit::Done);
    }
    let state = app.places.state().ok();
    let accept_new = app.common.accept_new_repository;
    match Place::of(&url, state.as_deref())? {
        Some(place) => place.check_free(accept_new)?,
        None => {
            let sink = snapkit_sinks::open_with(&app.cx, &url, &app.stores()?).await?;
            check_store(&app.cx, &sink, state.as_deref(), accept_new).await?;
        }
    }
    let lock = if args.passphrase { by_passphrase(app).await? } else { by_key_file(app).await? };
    let sink = snapkit_sinks::create_with(&app.cx, &url, &app.stores()?).await;
    let (report, key_file, is_new) = match lock {
        Lock::Known(unlock, file) => {
            (Repository::init(&app.cx, &sink?, &unlock).await?, file, false)
        }
        Lock::New(file, unlock) => {
            let (report, file) = with_new_key(app, sink, file, &unlock).await?;
            (report, Some(file), true)
        }
    };
    if let Some(state) = state {
        Repository::pin(&app.cx, &report, state).await?;
    }
    tell(app, &report, key_file.as_deref(), is_new)?;
    Ok(Exit::Done)
}

/// The error that says that a repository is there already, if one is.
async fn existing(app: &App, url: &str) -> Result<Option<Error>> {
    let peeked = match snapkit_sinks::open_with(&app.cx, url, &app.stores()?).await {
        Ok(sink) => Repository::peek(&app.cx, &sink).await.map(|_| sink.info().location.clone()),
        Err(e) => Err(e),
    };
    match peeked {
        Ok(location) => {
            let e = Error::new(Reason::RepositoryExists, "there is a repository already");
            let hint = "to leave it as it is and go on: `snapkit init --if-missing`";
            Ok(Some(e.with("location", location).with_hint(hint)))
        }
        Err(e) if e.reason() == Reason::NoRepository => Ok(None),
        Err(e) => Err(e),
    }
}

async fn by_passphrase(app: &App) -> Result<Lock> {
    let mut given = key::passphrases(&app.cx, &app.env, &app.places).await?;
    let passphrase = match (given.pop(), given.pop()) {
        (Some((first, _)), Some((second, _))) => {
            return Err(Error::invalid(format!(
                "{second} and {first} are both set: which of them shall open the repository?"
            )));
        }
        (Some((_, passphrase)), None) => passphrase,
        _ if prompt::is_possible() => prompt::new_passphrase(&app.cx).await?,
        _ => {
            return Err(Error::new(
                Reason::NoKey,
                "--passphrase was given, but no passphrase and no terminal to ask for one",
            ));
        }
    };
    Ok(Lock::Known(Unlock::Passphrase(passphrase), None))
}

async fn by_key_file(app: &App) -> Result<Lock> {
    for variable in [env::PASSPHRASE, env::PASSPHRASE_FILE, env::PASSPHRASE_COMMAND] {
        if app.env.raw(variable).is_some() {
            app.output.warn(format!(
                "{variable} is set, but a key file will open the repository: --passphrase was not given"
            ));
        }
    }
    let keys = app.keys()?;
    let named = keys.named_files().into_iter().next();
    match named {
        Some(path) if path.exists() => Ok(Lock::Known(keys.read_key_file(&path)?, Some(path))),
        named => {
            let (file, unlock) = NewKeyFile::make(&app.cx, named.as_deref(), &app.places)?;
            Ok(Lock::New(file, unlock))
        }
    }
}

/// Make the repository, and leave no key file behind if that fails.
async fn with_new_key(
    app: &App,
    sink: Result<Arc<dyn Sink>>,
    file: NewKeyFile,
    unlock: &Unlock,
) -> Result<(InitReport, PathBuf)> {
    let sink = match sink {
        Ok(sink) => sink,
        Err(e) => {
            file.discard();
            return Err(e);
        }
    };
    match Repository::init(&app.cx, &sink, unlock).await {
        Ok(report) => {
            let path = file.keep(report.repository)?;
            Ok((report, path))
        }
        Err(e) => {
            // An error does not say that nothing was stored, and then this is the only key.
            let cx = app.cx.for_cleanup(LOOK_AGAIN);
            let lost = e.reason() == Reason::RepositoryExists;
            match Repository::peek(&cx, &sink).await {
                Err(found) if found.reason() == Reason::NoRepository => file.discard(),
                _ if lost => file.discard(),
                _ => return Err(e.with("key_file", file.path().display())),
            }
            Err(e)
        }
    }
}

fn tell(app: &App, report: &InitReport, key_file: Option<&Path>, is_new: bool) -> Result<()> {
    let output = &app.output;
    output.note(format!("made repository {} in {}", report.repository, report.location));
    match key_file {
        Some(path) if is_new => {
            output.note(format!("its key is the file {}", path.display()));
            output.note(
                "without this file nobody can read the repository: keep a copy of it in another place",
            );
        }
        Some(path) => output.note(format!("it is opened by the key file {}", path.display())),
        None => output.note(
            "without its passphrase nobody can read the repository: keep it in another place too",
        ),
    }
    if !report.create_only {
        output.warn("the store does not honour create-only puts: commits rely on time windows");
    }
    output.document(&json!({
        "created": true,
        "location": report.location,
        "repository": report.repository,
        "fingerprint": report.fingerprint,
        "create_only": report.create_only,
        "key_file": key_file.map(|path| path.display().to_string()),
    }))
}
