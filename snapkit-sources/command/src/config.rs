//! Settings of a source, in the stack file and in a snapshot.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use snapkit_core::artifact::{ArtifactName, SourceName};
use snapkit_core::registry::wait;
use snapkit_core::secret::{Secret, SecretString};
use snapkit_core::source::Consistency;
use snapkit_core::{Error, Reason, Result};

use crate::preset::Preset;

/// How long a program may write nothing unless configured: 10 min.
const IDLE: Duration = Duration::from_secs(600);

/// How long a program may take unless configured: 12 h.
const TIMEOUT: Duration = Duration::from_secs(12 * 3600);

/// The end of the content in which `end` is looked for, in bytes.
pub(crate) const MAX_END: usize = 4096;

/// Settings of a source of kind `command`.
///
/// A snapshot holds of them only how its content is known to be whole. Programs and what they are told are in none: what a
/// repository says is never started.
#[non_exhaustive]
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandConfig {
    /// A well-known database, whose programs are filled in where they are not given.
    #[serde(default, skip_serializing)]
    pub preset: Option<Preset>,
    /// The database of the preset.
    #[serde(default, skip_serializing)]
    pub database: Option<String>,
    /// What the content is called in the snapshot, and the file that it is restored to: the name of the source unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<ArtifactName>,
    /// The program that writes the content to its standard output, and its arguments.
    #[serde(default, skip_serializing)]
    pub capture: Vec<String>,
    /// The program that takes the content from its standard input and puts it back.
    #[serde(default, skip_serializing)]
    pub restore: Vec<String>,
    /// A program that takes the content from its standard input, and ends with 0 if it could be put back.
    #[serde(default, skip_serializing)]
    pub check: Vec<String>,
    /// A program that ends with 0 if there is nothing yet where the content is put back. Without one only `--overwrite` does
    /// that.
    #[serde(default, skip_serializing)]
    pub empty: Vec<String>,
    /// Programs whose answer, a short text, is a fact of that name.
    #[serde(default, skip_serializing)]
    pub facts: BTreeMap<String, Vec<String>>,
    /// Variables of these programs, such as `PGPASSWORD`.
    #[serde(default, skip_serializing, deserialize_with = "secrets")]
    pub variables: BTreeMap<String, SecretString>,
    /// Names of variables that are handed on to them, beside `PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`, `LANG`, `LC_ALL`,
    /// `LC_CTYPE`, `TZ` and `TMPDIR`.
    #[serde(default, skip_serializing)]
    pub env: Vec<String>,
    /// The directory that they run in: that of the stack file unless given.
    #[serde(default, skip_serializing)]
    pub directory: Option<PathBuf>,
    /// How long a program may write nothing whose output is waited for: 10 min unless given.
    #[serde(default = "default_idle", skip_serializing, with = "wait")]
    pub idle: Duration,
    /// How long a program may take: 12 h unless given.
    #[serde(default = "default_timeout", skip_serializing, with = "wait")]
    pub timeout: Duration,
    /// The fewest bytes that are whole content: 1 unless given.
    #[serde(default = "default_min_size")]
    pub min_size: u64,
    /// A text that stands near the end of whole content, in its last 4096 bytes, such as `-- Dump completed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// Whether the content is of one moment, which the program has fixed when it writes its first byte: `point`; or `fuzzy`,
    /// unless given.
    #[serde(default = "default_consistency", skip_serializing)]
    pub consistency: Consistency,
    /// Which of `facts` are the proof of a restore: they tell one content from another. The others are only observed.
    #[serde(default, skip_serializing)]
    pub proof: Vec<String>,
    /// Whether the same state always gives the same bytes, so that a restore is proven by capturing again.
    #[serde(default, skip_serializing)]
    pub repeatable: bool,
    /// The most bytes of scratch space that a restore takes; unless given, all that is free.
    #[serde(default, skip_serializing)]
    pub scratch: Option<u64>,
    /// What content of a snapshot is like, where that is not as it is captured now: see [`add_programs`].
    #[serde(default, skip_serializing)]
    pub(crate) stored: Option<Whole>,
}

/// How content is known to be whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Whole {
    /// The fewest bytes.
    #[serde(default = "default_min_size")]
    pub(crate) min_size: u64,
    /// What stands near its end.
    #[serde(default)]
    pub(crate) end: Option<String>,
}

fn secrets<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, SecretString>, D::Error> {
    let texts = BTreeMap::<String, String>::deserialize(d)?;
    Ok(texts.into_iter().map(|(name, text)| (name, Secret::new(text))).collect())
}

fn default_idle() -> Duration {
    IDLE
}

fn default_timeout() -> Duration {
    TIMEOUT
}

fn default_min_size() -> u64 {
    1
}

fn default_consistency() -> Consistency {
    Consistency::Fuzzy
}

impl CommandConfig {
    /// A database, with everything else as usual.
    pub fn preset(preset: Preset, database: impl Into<String>) -> Self {
        let nothing: [String; 0] = [];
        let (preset, database) = (Some(preset), Some(database.into()));
        Self { preset, database, ..Self::new(nothing) }
    }

    /// What a program writes, with everything else as usual.
    pub fn new(capture: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            preset: None,
            database: None,
            file: None,
            capture: capture.into_iter().map(Into::into).collect(),
            restore: Vec::new(),
            check: Vec::new(),
            empty: Vec::new(),
            facts: BTreeMap::new(),
            variables: BTreeMap::new(),
            env: Vec::new(),
            directory: None,
            idle: IDLE,
            timeout: TIMEOUT,
            min_size: default_min_size(),
            end: None,
            consistency: default_consistency(),
            proof: Vec::new(),
            repeatable: false,
            scratch: None,
            stored: None,
        }
    }

    /// The same for a source of this name, or `invalid-config`.
    pub(crate) fn named(mut self, name: &SourceName) -> Result<Self> {
        let bad = |what: String| Err(Error::new(Reason::InvalidConfig, what));
        match self.preset {
            Some(preset) => preset.apply(&mut self)?,
            None if self.database.is_some() => {
                return bad("a `database` needs a `preset`".to_owned());
            }
            None => {}
        }
        if self.file.is_none() {
            self.file = Some(ArtifactName::new(name.as_str())?);
        }
        if self.end.as_ref().is_some_and(|end| end.is_empty() || end.len() > MAX_END) {
            return bad(format!("`end` must be a text of 1 to {MAX_END} bytes"));
        }
        let variables = self.variables.keys().chain(&self.env);
        for variable in variables {
            if variable.is_empty() || variable.contains(['=', '\0']) {
                return bad(format!("there can be no variable of this name: {variable:?}"));
            }
        }
        let programs = [&self.capture, &self.restore, &self.check, &self.empty];
        for words in programs.into_iter().chain(self.facts.values()) {
            if words.first().is_some_and(String::is_empty)
                || words.iter().any(|word| word.contains('\0'))
            {
                return bad("a program has no name, or a NUL byte in its words".to_owned());
            }
        }
        if let Some(name) = self.proof.iter().find(|name| !self.facts.contains_key(*name)) {
            return bad(format!("`proof`: {name} is none of `facts`"));
        }
        if let Some((name, _)) = self.facts.iter().find(|(_, words)| words.is_empty()) {
            return bad(format!("`facts`: {name} names no program"));
        }
        Ok(self)
    }

    /// How what is captured now is known to be whole.
    pub(crate) fn whole(&self) -> Whole {
        Whole { min_size: self.min_size, end: self.end.clone() }
    }

    /// How what a snapshot holds is known to be whole.
    pub(crate) fn whole_stored(&self) -> Whole {
        self.stored.clone().unwrap_or_else(|| self.whole())
    }
}

/// What of settings a snapshot may say.
const STORED: [&str; 3] = ["file", "min_size", "end"];

/// Leave of settings that come from a snapshot what a snapshot may say: whoever can write to a repository can have written
/// there what they would like to be started.
pub(crate) fn leave_stored(settings: &mut Value) {
    if let Some(settings) = settings.as_object_mut() {
        settings.retain(|name, _| STORED.contains(&name.as_str()));
    }
}

/// Add to settings that come from a snapshot what is in none, from those that were declared: the programs, and what they are
/// told. What content is called and how it is known to be whole is as it was when it was captured. Programs run in `base`, unless a directory is declared, which
/// is taken from there.
pub fn add_programs(settings: &mut Value, declared: &Value, base: &Path) {
    leave_stored(settings);
    let (Some(stored), Some(declared)) = (settings.as_object(), declared.as_object()) else {
        return;
    };
    let mut all = declared.clone();
    all.remove("stored");
    let mut whole = stored.clone();
    if let Some(file) = whole.remove("file") {
        all.insert("file".to_owned(), file);
    }
    all.insert("stored".to_owned(), Value::Object(whole));
    let directory = all.get("directory").and_then(Value::as_str).unwrap_or_default();
    let directory = base.join(directory).to_string_lossy().into_owned();
    all.insert("directory".to_owned(), directory.into());
    *settings = Value::Object(all);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused() {
        let told = |change: fn(&mut CommandConfig)| {
            let mut config = CommandConfig::new(["pg_dump", "shop"]);
            change(&mut config);
            match config.named(&SourceName::new("shop").unwrap()) {
                Ok(config) => format!("fine: {}", config.file.unwrap()),
                Err(e) => e.message().to_owned(),
            }
        };
        let all = [
            told(|_| ()),
            told(|config| config.end = Some(String::new())),
            told(|config| {
                drop(config.variables.insert("A=B".to_owned(), Secret::new("x".to_owned())));
            }),
            told(|config| config.env.push(String::new())),
            told(|config| config.restore = vec![String::new()]),
            told(|config| config.check = vec!["a\0".to_owned()]),
            told(|config| config.proof.push("rows".to_owned())),
            told(|config| config.database = Some("shop".to_owned())),
            told(|config| config.preset = Some(Preset::Mariadb)),
            told(|config| {
                (config.preset, config.database) = (Some(Preset::Mariadb), Some("a'b".to_owned()));
            }),
            // A shell would make another name of it.
            told(|config| {
                (config.preset, config.database) = (Some(Preset::Mariadb), Some("a$b".to_owned()));
            }),
            told(|config| drop(config.facts.insert("rows".to_owned(), Vec::new()))),
        ];
        insta::assert_snapshot!(all.join("\n"), @r#"
        fine: shop
        `end` must be a text of 1 to 4096 bytes
        there can be no variable of this name: "A=B"
        there can be no variable of this name: ""
        a program has no name, or a NUL byte in its words
        a program has no name, or a NUL byte in its words
        `proof`: rows is none of `facts`
        a `database` needs a `preset`
        a `preset` needs the name of its `database`
        `database`: only names of letters, digits, `_`, `-` and `.` are known to a `preset`
        `database`: only names of letters, digits, `_`, `-` and `.` are known to a `preset`
        `facts`: rows names no program
        "#);
    }

    /// Nothing that is started, and nothing secret, comes from a snapshot or goes there.
    #[test]
    fn programs_are_in_no_snapshot() {
        let declared = serde_json::json!({
            "file": "shop.sql",
            "capture": ["pg_dump", "shop"],
            "restore": ["psql", "shop"],
            "variables": { "PGPASSWORD": "hush" },
            "min_size": 100,
        });
        let config: CommandConfig = serde_json::from_value(declared.clone()).unwrap();
        assert!(!format!("{config:?}").contains("hush"));
        let mut written = serde_json::to_value(&config).unwrap();
        assert_eq!(written, serde_json::json!({ "file": "shop.sql", "min_size": 100 }));
        // Somebody has written more there.
        for name in ["restore", "check", "empty", "capture"] {
            written[name] = serde_json::json!(["evil"]);
        }
        written["facts"] = serde_json::json!({ "x": ["evil"] });
        written["env"] = serde_json::json!(["SECRET"]);
        written["stored"] = serde_json::json!({ "min_size": 1 });
        let mut alone = written.clone();
        leave_stored(&mut alone);
        assert_eq!(alone, serde_json::json!({ "file": "shop.sql", "min_size": 100 }));
        let declared =
            serde_json::json!({ "file": "x", "restore": ["psql", "other"], "end": "now" });
        add_programs(&mut written, &declared, Path::new("/etc/shop"));
        assert!(!written.to_string().contains("evil"), "{written}");
        let known: CommandConfig = serde_json::from_value(written).unwrap();
        assert_eq!(known.directory.as_deref(), Some(Path::new("/etc/shop/")));
        assert_eq!(known.whole_stored(), Whole { min_size: 100, end: None });
        assert_eq!(known.whole(), Whole { min_size: 1, end: Some("now".to_owned()) });
        assert_eq!(
            (known.file.unwrap().as_str(), known.restore[1].as_str()),
            ("shop.sql", "other")
        );
    }
}
