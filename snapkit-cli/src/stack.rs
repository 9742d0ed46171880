//! The stack file: which repository, which sources, and what is captured together.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use snapkit_core::artifact::SourceName;
use snapkit_core::engine::{Stack, StackSource};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::registry::{Registry, explain_unknown_key};
use snapkit_core::secret::{Secret, SecretString};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::env::{self, Env};
use crate::format::parse_duration;
use crate::hooks::{Hook, HookSection, ProbeConfig, ProbeSection};
use crate::location::{Places, resolve};
use crate::spec::source_name;
use crate::values::Values;

/// The stack file that is used if it is there and none is named.
pub(crate) const DEFAULT_FILE: &str = "snapkit.toml";

/// The set of all sources.
pub(crate) const FULL: &str = "full";

/// The largest stack file: 1 MiB.
const MAX_FILE: u64 = 1 << 20;

/// What may stand at the top of a stack file.
const SECTIONS: [&str; 7] = ["name", "repo", "sources", "sets", "consistency", "hook", "probe"];

/// Without a common moment, sources are waited for so long: a day.
const UNHURRIED: Duration = Duration::from_secs(24 * 3600);

/// A stack file that was read. What its values stand for is looked up when it is needed.
#[derive(Clone)]
pub(crate) struct StackFile {
    path: PathBuf,
    text: String,
}

impl fmt::Debug for StackFile {
    /// The text may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StackFile({})", self.path.display())
    }
}

/// What may stand in `[repo]`.
const REPO_KEYS: [&str; 2] = ["url", "key"];

/// Where a stack file says that the repository's key is.
#[derive(Debug)]
pub(crate) enum KeyPlace {
    /// In this file.
    File(PathBuf),
    /// Here is its text.
    Text(SecretString),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsistencySection {
    mode: Option<String>,
    window: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnFailure {
    #[default]
    Abort,
    Partial,
}

/// A source as it stands in the file.
struct Declared {
    name: SourceName,
    kind: String,
    on_failure: OnFailure,
    settings: Value,
    span: Range<usize>,
}

impl StackFile {
    /// The stack file that is named, or the one in the working directory if there is one.
    pub(crate) fn find(given: Option<&Path>, env: &Env, places: &Places) -> Result<Option<Self>> {
        let named = given.map(Path::to_owned).or_else(|| env.path(env::STACK));
        let path = match named {
            Some(path) => places.absolute(&path),
            None => {
                let usual = places.absolute(Path::new(DEFAULT_FILE));
                if !usual.exists() {
                    return Ok(None);
                }
                usual
            }
        };
        let text = env::read_small(&path, MAX_FILE)?;
        // However it is spelled: its directory is its name, and where relative paths begin. The file itself may
        // be a link to a place that changes.
        let path = match (path.parent(), path.file_name()) {
            (Some(directory), Some(name)) => resolve(directory).join(name),
            _ => path,
        };
        let file = Self { path, text };
        file.check(env)?;
        Ok(Some(file))
    }

    /// The directory from which its relative paths are taken.
    pub(crate) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// The stack's name: what the file says, else the name of its directory.
    pub(crate) fn name(&self, env: &Env) -> Result<String> {
        let values = self.values(env);
        let document = self.parse()?;
        let Some(named) = get(document.get_ref(), "name") else {
            let directory = self.directory().file_name().and_then(|n| n.to_str());
            return Ok(directory
                .filter(|n| SourceName::new(*n).is_ok())
                .unwrap_or("default")
                .to_owned());
        };
        let name = values.resolve(named)?;
        match name.as_str().map(SourceName::new) {
            Some(Ok(name)) => Ok(name.into()),
            _ => Err(values.error(
                &named.span(),
                "the stack's `name` must be text of letters, digits, `.`, `_` and `-`",
            )),
        }
    }

    /// Where the repository is.
    pub(crate) fn repository(&self, env: &Env) -> Result<Option<String>> {
        let values = self.values(env);
        let document = self.parse()?;
        let Some(url) = repo_value(values, document.get_ref(), "url")? else { return Ok(None) };
        match values.resolve(url)? {
            // A relative path is relative to the file, like every other one in it.
            Value::String(path) if is_relative_path(&path) => {
                Ok(Some(self.directory().join(path).to_string_lossy().into_owned()))
            }
            Value::String(url) => Ok(Some(url)),
            _ => Err(values.error(&url.span(), "`url` must be text")),
        }
    }

    /// Where the repository's key is, if the file says so.
    pub(crate) fn key(&self, env: &Env) -> Result<Option<KeyPlace>> {
        let values = self.values(env);
        let document = self.parse()?;
        let Some(key) = repo_value(values, document.get_ref(), "key")? else { return Ok(None) };
        let table = key_table(values, key)?;
        // The file itself may still have to be made.
        let file = get(table, "file").filter(|_| table.len() == 1);
        if let Some(file) = file.and_then(|file| file.get_ref().as_str()) {
            return Ok(Some(KeyPlace::File(self.directory().join(file))));
        }
        match values.resolve(key)? {
            Value::String(text) => Ok(Some(KeyPlace::Text(Secret::new(text)))),
            _ => {
                Err(values
                    .error(&key.span(), "`key` must be `{ file = \"…\" }` or `{ env = \"…\" }`"))
            }
        }
    }

    /// The stack with the sources of a set. `amend` may change the settings of a source of a kind.
    pub(crate) fn build(
        &self,
        registry: &Registry,
        env: &Env,
        set: &str,
        host: String,
        mut amend: impl FnMut(&str, &mut Value) -> Result<()>,
    ) -> Result<Stack> {
        let values = self.values(env);
        let document = self.parse()?;
        let document = document.get_ref();
        let names = source_names(document, values)?;
        let members = self.members(document, values, &names, set)?;
        let mut sources = Vec::new();
        for (name, value) in
            sources_of(document).filter(|(name, _)| members.contains(&name.get_ref().to_string()))
        {
            let mut declared = declare(values, name.get_ref(), value)?;
            amend(&declared.kind, &mut declared.settings)
                .map_err(|e| e.with("file", values.place(&declared.span)))?;
            let build = |settings| registry.build(&declared.kind, declared.name.clone(), settings);
            let source = build(declared.settings.clone()).map_err(|e| {
                let e = match quoted_key(value, e.message()) {
                    Some(_) => e,
                    None => name_culprit(e, &declared.settings, |s| build(s).err()),
                };
                let span = quoted_key(value, e.message());
                e.with("file", values.place(span.as_ref().unwrap_or(&declared.span)))
            })?;
            sources.push(StackSource {
                source,
                may_fail: matches!(declared.on_failure, OnFailure::Partial),
            });
        }
        let mut stack = Stack::new(self.name(env)?, host, Vec::new());
        set.clone_into(&mut stack.set);
        stack.sources = sources;
        stack.window = window(document, values)?.unwrap_or(stack.window);
        Ok(stack)
    }

    /// The settings of a source, if there is one of this name and kind.
    pub(crate) fn declared(
        &self,
        env: &Env,
        name: &SourceName,
        kind: &str,
    ) -> Result<Option<Value>> {
        let values = self.values(env);
        let document = self.parse()?;
        let mut sources = sources_of(document.get_ref());
        let Some((key, value)) = sources.find(|(key, _)| key.get_ref() == name.as_str()) else {
            return Ok(None);
        };
        let declared = declare(values, key.get_ref(), value)?;
        Ok((declared.kind == kind).then_some(declared.settings))
    }

    /// The file itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the sets, but for the full one.
    pub(crate) fn set_names(&self, env: &Env) -> Result<Vec<String>> {
        let document = self.parse()?;
        match get(document.get_ref(), "sets") {
            Some(sets) => {
                let sets: BTreeMap<String, Vec<String>> = section(self.values(env), sets)?;
                Ok(sets.into_keys().collect())
            }
            None => Ok(Vec::new()),
        }
    }

    /// All that the file says, with what comes from elsewhere left there.
    pub(crate) fn describe(&self, env: &Env) -> Result<Value> {
        let document = self.parse()?;
        Ok(self.values(env).describe_table(document.get_ref()))
    }

    /// The hooks, in their order.
    pub(crate) fn hooks(&self, env: &Env) -> Result<Vec<Hook>> {
        self.list(env, "hook", HookSection::check)
    }

    /// The probes, in their order.
    pub(crate) fn probes(&self, env: &Env) -> Result<Vec<ProbeConfig>> {
        self.list(env, "probe", ProbeSection::check)
    }

    /// The tables `[[NAME]]`, each read and checked.
    fn list<T: DeserializeOwned, U>(
        &self,
        env: &Env,
        name: &str,
        check: impl Fn(T) -> Result<U>,
    ) -> Result<Vec<U>> {
        let values = self.values(env);
        let document = self.parse()?;
        let Some(list) = get(document.get_ref(), name) else { return Ok(Vec::new()) };
        let Some(tables) = list.get_ref().as_array() else {
            let what = format!("`{name}` must be tables `[[{name}]]`");
            return Err(values.error(&list.span(), what));
        };
        let read = |table: &Spanned<DeValue<'_>>| {
            check(section(values, table)?).map_err(|e| {
                let span = quoted_key(table, e.message()).unwrap_or_else(|| table.span());
                values.error(&span, e.message())
            })
        };
        tables.iter().map(read).collect()
    }

    /// The names of the sources of a set.
    fn members(
        &self,
        document: &DeTable<'_>,
        values: Values<'_>,
        names: &[String],
        set: &str,
    ) -> Result<Vec<String>> {
        if names.is_empty() {
            return Err(Error::new(Reason::InvalidConfig, "the stack file declares no sources")
                .with("file", self.path.display()));
        }
        let sets: BTreeMap<String, Vec<String>> = match get(document, "sets") {
            Some(sets) => section(values, sets)?,
            None => BTreeMap::new(),
        };
        let span = get(document, "sets").map_or(0..0, Spanned::span);
        if sets.contains_key(FULL) {
            return Err(
                values.error(&span, "the set `full` is always all sources: name yours otherwise")
            );
        }
        for (name, members) in &sets {
            source_name(name).map_err(|e| e.with("file", values.place(&span)))?;
            if let Some(stranger) = members.iter().find(|m| !names.contains(m)) {
                return Err(values.error(
                    &span,
                    format!(
                        "the set `{name}` names `{stranger}`, which is no source; sources are: {}",
                        names.join(", ")
                    ),
                ));
            }
        }
        match (set, sets.get(set)) {
            (FULL, _) => Ok(names.to_vec()),
            (_, Some(members)) => Ok(members.clone()),
            (_, None) => {
                let known: Vec<&str> = sets.keys().map(String::as_str).chain([FULL]).collect();
                Err(Error::invalid(format!(
                    "there is no set `{set}`; sets are: {}",
                    known.join(", ")
                ))
                .with("file", self.path.display()))
            }
        }
    }

    /// That it is TOML, has no section that is not known, no key as text and no set of nothing.
    fn check(&self, env: &Env) -> Result<()> {
        let values = self.values(env);
        let document = self.parse()?;
        let document = document.get_ref();
        for key in document.keys() {
            if !SECTIONS.contains(&key.get_ref().as_ref()) {
                return Err(unknown_key(values, key, &SECTIONS));
            }
        }
        if let Some(key) = repo_value(values, document, "key")? {
            key_table(values, key)?;
        }
        let sets = get(document, "sets").and_then(|sets| sets.get_ref().as_table());
        for (name, members) in sets.into_iter().flat_map(DeTable::iter) {
            if members.get_ref().as_array().is_some_and(|members| members.is_empty()) {
                let what = format!("the set `{}` has no sources", name.get_ref());
                return Err(values.error(&members.span(), what));
            }
        }
        Ok(())
    }

    fn parse(&self) -> Result<Spanned<DeTable<'_>>> {
        DeTable::parse(&self.text).map_err(|e| {
            let before = e.span().and_then(|span| self.text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            Error::new(
                Reason::InvalidConfig,
                format!("the stack file is not TOML: {}", e.message()),
            )
            .with("file", format!("{}:{line}", self.path.display()))
        })
    }

    fn values<'a>(&'a self, env: &'a Env) -> Values<'a> {
        Values { path: &self.path, text: &self.text, base: self.directory(), env }
    }
}

fn get<'t, 'i>(table: &'t DeTable<'i>, key: &str) -> Option<&'t Spanned<DeValue<'i>>> {
    table.iter().find(|(k, _)| k.get_ref() == key).map(|(_, value)| value)
}

fn unknown_key(values: Values<'_>, key: &Spanned<impl AsRef<str>>, known: &[&str]) -> Error {
    // The words of serde, so that all unknown keys are explained alike.
    let known: Vec<String> = known.iter().map(|k| format!("`{k}`")).collect();
    let text =
        format!("unknown field `{}`, expected one of {}", key.get_ref().as_ref(), known.join(", "));
    values.error(&key.span(), explain_unknown_key(&text))
}

/// A value of `[repo]`.
fn repo_value<'t, 'i>(
    values: Values<'_>,
    document: &'t DeTable<'i>,
    key: &str,
) -> Result<Option<&'t Spanned<DeValue<'i>>>> {
    let Some(repo) = get(document, "repo") else { return Ok(None) };
    let Some(table) = repo.get_ref().as_table() else {
        return Err(values.error(&repo.span(), "`repo` must be a table `[repo]`"));
    };
    match table.keys().find(|key| !REPO_KEYS.contains(&key.get_ref().as_ref())) {
        Some(stranger) => Err(unknown_key(values, stranger, &REPO_KEYS)),
        None => Ok(get(table, key)),
    }
}

/// The table that says where the key is.
fn key_table<'t, 'i>(values: Values<'_>, key: &'t Spanned<DeValue<'i>>) -> Result<&'t DeTable<'i>> {
    key.get_ref().as_table().ok_or_else(|| {
        values.error(
            &key.span(),
            "a key does not stand in the stack file: write `key = { file = \"…\" }`",
        )
    })
}

fn is_relative_path(url: &str) -> bool {
    !url.contains(':') && !url.starts_with("~/") && Path::new(url).is_relative()
}

/// A section as a document of its own.
fn section<T: DeserializeOwned>(values: Values<'_>, section: &Spanned<DeValue<'_>>) -> Result<T> {
    let document = values.resolve(section)?;
    let parse = |document| {
        serde_json::from_value::<T>(document)
            .map_err(|e| Error::new(Reason::InvalidConfig, explain_unknown_key(&e.to_string())))
    };
    parse(document.clone()).map_err(|e| {
        let e = match quoted_key(section, e.message()) {
            Some(_) => e,
            None => name_culprit(e, &document, |document| parse(document).err()),
        };
        let span = quoted_key(section, e.message()).unwrap_or_else(|| section.span());
        values.error(&span, e.message())
    })
}

/// A complaint about a document, with the key that it is about in front: without that there is another
/// complaint, or none.
fn name_culprit(
    error: Error,
    document: &Value,
    complain: impl Fn(Value) -> Option<Error>,
) -> Error {
    let Some(document) = document.as_object() else { return error };
    let culprit = document.keys().find(|key| {
        let mut without = document.clone();
        without.remove(*key);
        complain(Value::Object(without)).is_none_or(|e| e.message() != error.message())
    });
    let Some(key) = culprit else { return error };
    let text = error.message().replace("a sequence", "a list such as [\"…\"]");
    let named = Error::new(error.reason(), format!("`{key}`: {text}"));
    error.context().iter().fold(named, |named, (key, value)| named.with(key, value))
}

/// The place of the key that a message names in backticks.
fn quoted_key(section: &Spanned<DeValue<'_>>, message: &str) -> Option<Range<usize>> {
    let name = message.split('`').nth(1)?;
    let table = section.get_ref().as_table()?;
    table.keys().find(|key| key.get_ref() == name).map(Spanned::span)
}

type Entry<'t, 'i> = (&'t Spanned<std::borrow::Cow<'i, str>>, &'t Spanned<DeValue<'i>>);

fn sources_of<'t, 'i>(document: &'t DeTable<'i>) -> impl Iterator<Item = Entry<'t, 'i>> {
    let sources = get(document, "sources").and_then(|sources| sources.get_ref().as_table());
    sources.into_iter().flat_map(DeTable::iter)
}

fn source_names(document: &DeTable<'_>, values: Values<'_>) -> Result<Vec<String>> {
    if let Some(sources) = get(document, "sources").filter(|s| s.get_ref().as_table().is_none()) {
        return Err(values.error(&sources.span(), "`sources` must be tables `[sources.NAME]`"));
    }
    Ok(sources_of(document).map(|(name, _)| name.get_ref().to_string()).collect())
}

/// A source with what its values stand for.
fn declare(values: Values<'_>, name: &str, value: &Spanned<DeValue<'_>>) -> Result<Declared> {
    let span = value.span();
    let Some(table) = value.get_ref().as_table() else {
        return Err(
            values.error(&span, format!("the source `{name}` must be a table `[sources.{name}]`"))
        );
    };
    let name = source_name(name).map_err(|e| e.with("file", values.place(&span)))?;
    let mut settings = values.resolve_table(table)?;
    let place = |key: &str| get(table, key).map_or(span.clone(), Spanned::span);
    let kind = match settings.remove("kind") {
        Some(Value::String(kind)) => kind,
        Some(_) => return Err(values.error(&place("kind"), "`kind` must be text")),
        None => {
            return Err(values.error(&span, format!("the source `{name}` has no `kind`")));
        }
    };
    let on_failure = match settings.remove("on_failure") {
        None => OnFailure::default(),
        Some(word) => serde_json::from_value(word).map_err(|_| {
            values.error(&place("on_failure"), "`on_failure` must be \"abort\" or \"partial\"")
        })?,
    };
    Ok(Declared { name, kind, on_failure, settings: Value::Object(settings), span })
}

/// How long sources may take to pin one moment; `None` is as long as usual.
fn window(document: &DeTable<'_>, values: Values<'_>) -> Result<Option<Duration>> {
    let Some(value) = get(document, "consistency") else { return Ok(None) };
    let consistency: ConsistencySection = section(values, value)?;
    let error = |key: &str, what: &str| {
        let span = quoted_key(value, key).unwrap_or_else(|| value.span());
        Err(values.error(&span, what))
    };
    match (consistency.mode.as_deref().unwrap_or("barrier"), consistency.window) {
        ("barrier", None) => Ok(None),
        ("barrier", Some(text)) => match parse_duration(&text) {
            Ok(window) => Ok(Some(window)),
            Err(e) => error("`window`", e.message()),
        },
        ("none", None) => Ok(Some(UNHURRIED)),
        ("none", Some(_)) => error("`window`", "a `window` needs `mode = \"barrier\"`"),
        _ => error("`mode`", "`mode` must be \"barrier\" or \"none\""),
    }
}
