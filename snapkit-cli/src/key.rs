//! Where keys come from. None stands on the command line; all that are given are tried.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use snapkit_core::context::Context;
use snapkit_core::credential::{Unlock, generate_key_file};
use snapkit_core::error::{Error, IoContext as _, Reason, Result};
use snapkit_core::id::{RepositoryId, to_hex};
use snapkit_core::secret::{Secret, SecretString};
use tokio::io::AsyncReadExt as _;

use crate::env::{self, Env};
use crate::location::Places;
use crate::output::Output;
use crate::prompt;
use crate::stack::KeyPlace;

/// How long a command may take to say a passphrase.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// The largest file of a key or a passphrase, and the most that a command may say: 64 KiB.
const MAX_SECRET: u64 = 64 << 10;

/// What the key file of a repository is called until the repository has its identity.
const UNNAMED: &str = ".new-";

/// What was given to open a repository with.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// The keys.
    pub(crate) unlocks: Vec<Unlock>,
    /// Where they came from, for people.
    pub(crate) origins: Vec<String>,
}

impl Keys {
    fn add(&mut self, origin: impl Into<String>, unlock: Unlock) {
        self.origins.push(origin.into());
        self.unlocks.push(unlock);
    }
}

/// Where the key of a run may be.
#[derive(Debug)]
pub(crate) struct KeySources<'a> {
    pub(crate) env: &'a Env,
    pub(crate) places: &'a Places,
    pub(crate) output: &'a Output,
    /// `--key-file`.
    pub(crate) key_file: Option<&'a Path>,
    /// What the stack file says.
    pub(crate) stack: Option<KeyPlace>,
}

impl KeySources<'_> {
    /// Everything that may open a repository. Asks a person if there is nothing and somebody to ask.
    pub(crate) async fn collect(&self, cx: &Context, repository: RepositoryId) -> Result<Keys> {
        let mut keys = Keys::default();
        for path in self.named_files() {
            keys.add(format!("key file {}", path.display()), self.read_key_file(&path)?);
        }
        if let Some(KeyPlace::Text(text)) = &self.stack {
            keys.add("the stack file's key", Unlock::KeyFile(text.clone()));
        }
        for path in self.usual_files(repository) {
            match self.read_key_file(&path) {
                Ok(unlock) => keys.add(format!("key file {}", path.display()), unlock),
                Err(e) if keys.unlocks.is_empty() => return Err(e),
                Err(e) => self.output.warn(e.chain()),
            }
        }
        for (origin, passphrase) in passphrases(cx, self.env, self.places).await? {
            keys.add(origin, Unlock::Passphrase(passphrase));
        }
        if keys.unlocks.is_empty() && prompt::is_possible() {
            let passphrase = prompt::passphrase(cx, "passphrase of the repository: ").await?;
            keys.add("the passphrase typed in", Unlock::Passphrase(passphrase));
        }
        if keys.unlocks.is_empty() {
            let e = Error::new(Reason::NoKey, "no key file and no passphrase was given");
            return Err(match self.usual_file(repository) {
                Some(path) => e.with("looked_for", path.display()),
                None => e,
            });
        }
        Ok(keys)
    }

    /// The key files that were named, the most explicit first.
    pub(crate) fn named_files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = Vec::new();
        let stack = match &self.stack {
            Some(KeyPlace::File(path)) => Some(path.clone()),
            _ => None,
        };
        let named = [self.key_file.map(Path::to_owned), self.env.path(env::KEY_FILE), stack];
        for path in named.into_iter().flatten().map(|path| self.places.absolute(&path)) {
            if !files.contains(&path) {
                files.push(path);
            }
        }
        files
    }

    /// Where the key file of a repository is unless another is named.
    pub(crate) fn usual_file(&self, repository: RepositoryId) -> Option<PathBuf> {
        self.places.keys().map(|dir| dir.join(format!("{repository}.key")))
    }

    /// The key file in the usual place; else those of repositories whose making was interrupted
    /// between the repository and the name of its key.
    fn usual_files(&self, repository: RepositoryId) -> Vec<PathBuf> {
        match self.usual_file(repository) {
            Some(path) if path.exists() => vec![path],
            _ => {
                let entries = self.places.keys().and_then(|dir| fs::read_dir(dir).ok());
                let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
                let is_unnamed = |path: &PathBuf| {
                    let name = path.file_name().and_then(|name| name.to_str());
                    name.is_some_and(|name| name.starts_with(UNNAMED) && name.ends_with(".key"))
                };
                paths.filter(is_unnamed).take(16).collect()
            }
        }
    }

    /// A key file, with a warning if it is not as private as it should be.
    pub(crate) fn read_key_file(&self, path: &Path) -> Result<Unlock> {
        let text = read_secret(path, "key file")?;
        let mode =
            fs::metadata(path).doing(|| format!("cannot examine {}", path.display()))?.mode();
        if mode & 0o077 != 0 {
            self.output.warn(format!(
                "others may read the key file {}; `chmod 600` makes it private",
                path.display()
            ));
        }
        Ok(Unlock::KeyFile(text))
    }
}

/// The passphrases that the environment gives, with where each came from.
pub(crate) async fn passphrases(
    cx: &Context,
    env: &Env,
    places: &Places,
) -> Result<Vec<(&'static str, SecretString)>> {
    let mut found = Vec::new();
    if let Some(text) = env.text(env::PASSPHRASE)? {
        found.push((env::PASSPHRASE, Secret::new(text)));
    }
    if let Some(path) = env.path(env::PASSPHRASE_FILE) {
        let text = read_secret(&places.absolute(&path), "passphrase file")?;
        found.push((env::PASSPHRASE_FILE, first_line(&text, env::PASSPHRASE_FILE)?));
    }
    if let Some(command) = env.raw(env::PASSPHRASE_COMMAND) {
        let text = run_command(cx, env, places, &command).await?;
        found.push((env::PASSPHRASE_COMMAND, first_line(&text, env::PASSPHRASE_COMMAND)?));
    }
    Ok(found)
}

fn first_line(text: &SecretString, origin: &str) -> Result<SecretString> {
    match text.expose().lines().next() {
        Some(line) if !line.is_empty() => Ok(Secret::new(line.to_owned())),
        _ => Err(Error::new(Reason::NoKey, format!("{origin} gives an empty passphrase"))),
    }
}

fn read_secret(path: &Path, what: &str) -> Result<SecretString> {
    match env::read_small(path, MAX_SECRET) {
        Ok(text) => Ok(Secret::new(text)),
        // Whoever took a variable for the secret itself finds it in no message.
        Err(e) if is_secret_itself(path) => {
            let what = format!(
                "what was given is no {what}, but looks like the secret itself: name a file"
            );
            Err(Error::new(if e.is_cancelled() { e.reason() } else { Reason::NoKey }, what))
        }
        Err(e) if e.reason() == Reason::NotFound => {
            Err(Error::new(Reason::NoKey, format!("the {what} does not exist"))
                .with("path", path.display()))
        }
        Err(e) => Err(e),
    }
}

/// Whether a path has the form of a key, or is no path at all.
fn is_secret_itself(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.to_ascii_uppercase().contains("AGE-SECRET-KEY-") || text.contains('\n')
}

/// What a shell command says. Its questions and complaints go where ours do.
async fn run_command(
    cx: &Context,
    env: &Env,
    places: &Places,
    command: &std::ffi::OsStr,
) -> Result<SecretString> {
    let failed =
        |why: String| Error::new(Reason::NoKey, format!("{} {why}", env::PASSPHRASE_COMMAND));
    let mut child = tokio::process::Command::new("sh")
        .arg("-c")
        .arg(command)
        .envs(env.of_file())
        .current_dir(places.absolute(Path::new("")))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed("cannot be started".to_owned()).caused_by(e))?;
    let limited = cx.within(COMMAND_LIMIT);
    let run = limited.run(async {
        let mut said = Vec::with_capacity(4096);
        if let Some(stdout) = child.stdout.take() {
            let read = stdout.take(MAX_SECRET).read_to_end(&mut said).await;
            read.doing(|| format!("cannot read what {} says", env::PASSPHRASE_COMMAND))?;
        }
        let status =
            child.wait().await.doing(|| format!("cannot wait for {}", env::PASSPHRASE_COMMAND))?;
        Ok((status, said))
    });
    let (status, said) = run.await.map_err(|e| match e.reason() {
        Reason::TimedOut => {
            failed(format!("did not end within {} seconds", COMMAND_LIMIT.as_secs()))
        }
        _ => e,
    })?;
    let said = String::from_utf8(said).map(Secret::new);
    if !status.success() {
        return Err(failed(format!("failed with {status}")));
    }
    said.map_err(|_| failed("says something that is not valid UTF-8".to_owned()))
}

/// A key file that was just made, for a repository that is yet to be made.
#[derive(Debug)]
pub(crate) struct NewKeyFile {
    path: PathBuf,
    /// Whether it gets its name from the repository.
    unnamed: bool,
}

impl NewKeyFile {
    /// Make a key file where one is named, or in the usual place. It is durable when this returns.
    pub(crate) fn make(
        cx: &Context,
        named: Option<&Path>,
        places: &Places,
    ) -> Result<(Self, Unlock)> {
        let path = match (named, places.keys()) {
            (Some(path), _) => path.to_owned(),
            (None, Some(dir)) => dir.join(format!("{UNNAMED}{}.key", to_hex(&cx.random::<8>()?))),
            (None, None) => {
                return Err(Error::invalid(
                    "there is no home directory for the key file: name a place with --key-file or SNAPKIT_KEY_FILE",
                ));
            }
        };
        let text = generate_key_file();
        let what = || format!("cannot write the key file {}", path.display());
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).doing(what)?;
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .doing(what)?;
        let written = file.write_all(text.expose().as_bytes()).and_then(|()| file.sync_all());
        if let Err(e) = written.and_then(|()| sync_directory(&path)) {
            // A part of a key is worth nothing.
            drop(fs::remove_file(&path));
            return Err(Error::io(what(), e));
        }
        Ok((Self { path, unnamed: named.is_none() }, Unlock::KeyFile(text)))
    }

    /// Its place.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Give it the name that it is looked for under, now that the repository exists.
    pub(crate) fn keep(self, repository: RepositoryId) -> Result<PathBuf> {
        if !self.unnamed {
            return Ok(self.path);
        }
        let named = self.path.with_file_name(format!("{repository}.key"));
        // The name is as random as the repository's identity: nothing else has it.
        fs::rename(&self.path, &named)
            .and_then(|()| sync_directory(&named))
            .doing(|| format!("cannot rename the key file {}", self.path.display()))
            .map_err(|e| {
                e.with_hint(format!(
                    "the repository is there: name it {} yourself",
                    named.display()
                ))
            })?;
        Ok(named)
    }

    /// Remove it: there is no repository that it could open.
    pub(crate) fn discard(self) {
        // A key that opens nothing does no harm.
        drop(fs::remove_file(&self.path));
    }
}

fn sync_directory(file: &Path) -> std::io::Result<()> {
    match file.parent() {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
