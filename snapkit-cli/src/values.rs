//! Values of a stack file: what TOML can say, or `{ env = "X", default = … }` or `{ file = "…" }`
//! for what shall stand elsewhere.

use std::ops::Range;
use std::path::Path;

use serde_json::Value;
use snapkit_core::error::{Error, Reason, Result};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::env::{self, Env};

/// The largest file that is taken as a value: 1 MiB.
const MAX_FILE: u64 = 1 << 20;

/// A stack file as text, and where its values come from.
#[derive(Clone, Copy)]
pub(crate) struct Values<'a> {
    /// The stack file, for errors.
    pub(crate) path: &'a Path,
    /// Its text, for line numbers.
    pub(crate) text: &'a str,
    /// From where relative paths are taken.
    pub(crate) base: &'a Path,
    /// The variables.
    pub(crate) env: &'a Env,
}

impl Values<'_> {
    /// The value with everything in it that stands elsewhere.
    pub(crate) fn resolve(&self, value: &Spanned<DeValue<'_>>) -> Result<Value> {
        let bad = |what: String| Err(self.error(&value.span(), what));
        Ok(match value.get_ref() {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Boolean(yes) => Value::Bool(*yes),
            DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
                Ok(n) => n.into(),
                Err(_) => return bad(format!("the number {n} is too large")),
            },
            DeValue::Float(x) => {
                match x.as_str().parse().ok().and_then(serde_json::Number::from_f64) {
                    Some(number) => Value::Number(number),
                    None => return bad(format!("{} is not a number here", x.as_str())),
                }
            }
            DeValue::Datetime(time) => Value::String(time.to_string()),
            DeValue::Array(items) => {
                Value::Array(items.iter().map(|item| self.resolve(item)).collect::<Result<_>>()?)
            }
            DeValue::Table(table) => match Elsewhere::parse(table) {
                Some(elsewhere) => self.fetch(&elsewhere, &value.span())?,
                None => Value::Object(self.resolve_table(table)?),
            },
        })
    }

    /// A table, value by value.
    pub(crate) fn resolve_table(
        &self,
        table: &DeTable<'_>,
    ) -> Result<serde_json::Map<String, Value>> {
        let resolved = |(key, value): (&Spanned<_>, _)| {
            Ok((ToString::to_string(key.get_ref()), self.resolve(value)?))
        };
        table.iter().map(resolved).collect()
    }

    /// The value with what stands elsewhere left there: `from` says where, `state` whether it is there.
    pub(crate) fn describe(&self, value: &Spanned<DeValue<'_>>) -> Value {
        match value.get_ref() {
            DeValue::Array(items) => {
                Value::Array(items.iter().map(|item| self.describe(item)).collect())
            }
            DeValue::Table(table) => match Elsewhere::parse(table) {
                Some(Elsewhere::Env { name, default }) => {
                    let state = match (self.env.raw(name), default) {
                        (Some(_), _) => "set",
                        (None, Some(_)) => "not set, there is a default",
                        (None, None) => "not set",
                    };
                    serde_json::json!({ "from": format!("variable {name}"), "state": state })
                }
                Some(Elsewhere::File(path)) => {
                    let path = self.base.join(path);
                    let state = if path.is_file() { "there" } else { "not there" };
                    serde_json::json!({ "from": format!("file {}", path.display()), "state": state })
                }
                None => self.describe_table(table),
            },
            // What stands here needs nothing from elsewhere, and is checked where it is used.
            _ => self.resolve(value).unwrap_or(Value::Null),
        }
    }

    /// A table, value by value.
    pub(crate) fn describe_table(&self, table: &DeTable<'_>) -> Value {
        let described = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            let key = ToString::to_string(key.get_ref());
            // Somebody may have written it here all the same.
            let is_secret = value.get_ref().as_str().is_some()
                && ["password", "passphrase", "secret", "token"].iter().any(|w| key.contains(w));
            let hidden = || Value::from("(hidden)");
            let shown = match self.describe(value) {
                _ if is_secret => hidden(),
                // Programs are told secrets by variables of any name.
                Value::Object(mut inner) if key == "variables" => {
                    let texts = inner.values_mut().filter(|value| !value.is_object());
                    texts.for_each(|text| *text = hidden());
                    Value::Object(inner)
                }
                Value::String(text) => Value::from(without_query(text)),
                shown => shown,
            };
            (key, shown)
        };
        Value::Object(table.iter().map(described).collect())
    }

    fn fetch(&self, elsewhere: &Elsewhere<'_, '_>, span: &Range<usize>) -> Result<Value> {
        match elsewhere {
            Elsewhere::Env { name, default } => match (self.env.text(name)?, default) {
                (Some(value), _) => Ok(Value::String(value)),
                (None, Some(default)) => self.resolve(default),
                (None, None) => Err(self.error(
                    span,
                    format!("the environment variable {name} is not set, and there is no default"),
                )),
            },
            Elsewhere::File(path) => {
                let path = self.base.join(path);
                let text = env::read_small(&path, MAX_FILE).map_err(|e| {
                    self.error(span, "a value cannot be read from its file").caused_by(e)
                })?;
                Ok(Value::String(text.strip_suffix('\n').unwrap_or(&text).to_owned()))
            }
        }
    }

    /// An error at a place in the stack file.
    pub(crate) fn error(&self, span: &Range<usize>, what: impl Into<String>) -> Error {
        Error::new(Reason::InvalidConfig, what).with("file", self.place(span))
    }

    /// A place in the stack file, for people.
    pub(crate) fn place(&self, span: &Range<usize>) -> String {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        format!("{}:{}", self.path.display(), before.matches('\n').count() + 1)
    }
}

/// A value that stands elsewhere.
enum Elsewhere<'t, 'i> {
    Env { name: &'t str, default: Option<&'t Spanned<DeValue<'i>>> },
    File(&'t str),
}

impl<'t, 'i> Elsewhere<'t, 'i> {
    fn parse(table: &'t DeTable<'i>) -> Option<Self> {
        let get = |key: &str| table.iter().find(|(k, _)| k.get_ref() == key).map(|(_, v)| v);
        let (env, file, default) = (get("env"), get("file"), get("default"));
        let text = |value: &'t Spanned<DeValue<'i>>| value.get_ref().as_str();
        match (env, file, default, table.len()) {
            (Some(env), None, None, 1) | (Some(env), None, Some(_), 2) => {
                Some(Self::Env { name: text(env)?, default })
            }
            (None, Some(file), None, 1) => Some(Self::File(text(file)?)),
            _ => None,
        }
    }
}

/// A URL without what stands behind `?`, where tokens often are.
fn without_query(text: String) -> String {
    match text.split_once('?') {
        Some((url, _)) if url.contains("://") => format!("{url}?(hidden)"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Value> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "hunter2\n").unwrap();
        std::fs::write(dir.path().join("vars"), "SNAPKIT_TEST_VALUE=from the file\n").unwrap();
        let env = Env::load(Some(&dir.path().join("vars"))).unwrap();
        let values = Values { path: Path::new("s.toml"), text, base: dir.path(), env: &env };
        let table = DeTable::parse(text).unwrap();
        values.resolve_table(table.get_ref()).map(Value::Object)
    }

    #[test]
    fn values_come_from_where_they_stand() {
        let text = r#"
            a = [1, 0x10, 2.5, true, "x", 2026-01-15]
            b = { env = "SNAPKIT_TEST_VALUE" }
            c = { env = "SNAPKIT_TEST_UNSET", default = 7 }
            d = { file = "secret" }
            e = { inner = { env = "SNAPKIT_TEST_VALUE", default = "no" }, escaped = "\\xff" }
        "#;
        let expected = serde_json::json!({
            "a": [1, 16, 2.5, true, "x", "2026-01-15"],
            "b": "from the file",
            "c": 7,
            "d": "hunter2",
            "e": { "inner": "from the file", "escaped": "\\xff" },
        });
        assert_eq!(resolve(text).unwrap(), expected);
    }

    #[test]
    fn what_is_missing_is_named_with_its_line() {
        let e = resolve("a = 1\nb = { env = \"SNAPKIT_TEST_UNSET\" }").unwrap_err();
        assert_eq!(e.context(), [("file", "s.toml:2".to_owned())]);
        assert!(e.message().contains("SNAPKIT_TEST_UNSET"), "{e}");
        let e = resolve("a = { file = \"none\" }").unwrap_err();
        assert!(e.chain().contains("none"), "{}", e.chain());
        for bad in ["a = 99999999999999999999", "a = nan"] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }
}
