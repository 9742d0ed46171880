//! Facts: what a source can say about a state, and how two sets of them compare.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a fact is a fact of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Of exactly what was captured.
    Pinned,
    /// Of the live system at about that time.
    Observed,
    /// It could not be learnt. Its value says why.
    Unknown,
}

/// The value of a fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FactValue {
    /// A count, a position, a size.
    Number(i64),
    /// A digest, a version, a name.
    Text(String),
}

impl fmt::Display for FactValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) => write!(f, "{n}"),
            Self::Text(t) => f.write_str(t),
        }
    }
}

macro_rules! from_number {
    ($($t:ty)*) => {$(
        impl From<$t> for FactValue {
            fn from(n: $t) -> Self {
                Self::Number(i64::from(n))
            }
        }
    )*};
}
from_number!(u8 u16 u32 i8 i16 i32 i64);

impl From<u64> for FactValue {
    /// Numbers beyond 2^63 become text.
    fn from(n: u64) -> Self {
        i64::try_from(n).map_or_else(|_| Self::Text(n.to_string()), Self::Number)
    }
}

impl From<String> for FactValue {
    fn from(t: String) -> Self {
        Self::Text(t)
    }
}

impl From<&str> for FactValue {
    fn from(t: &str) -> Self {
        Self::Text(t.to_owned())
    }
}

/// One thing known about a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it is a fact of.
    pub standing: Standing,
    /// What is known.
    pub value: FactValue,
}

/// What a source says about a state: named counts, positions, digests and versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Facts(pub BTreeMap<String, Fact>);

impl Facts {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Add a fact of exactly what was captured.
    pub fn pin(&mut self, name: impl Into<String>, value: impl Into<FactValue>) {
        self.put(name, Standing::Pinned, value);
    }

    /// Add a fact of the live system.
    pub fn observe(&mut self, name: impl Into<String>, value: impl Into<FactValue>) {
        self.put(name, Standing::Observed, value);
    }

    /// Say that something could not be learnt, and why.
    pub fn unknown(&mut self, name: impl Into<String>, why: impl Into<FactValue>) {
        self.put(name, Standing::Unknown, why);
    }

    fn put(&mut self, name: impl Into<String>, standing: Standing, value: impl Into<FactValue>) {
        self.0.insert(name.into(), Fact { standing, value: value.into() });
    }

    /// Compare what was captured with what is found in a target. Only facts that were pinned count:
    /// each must be known of the target and equal. Without any pinned fact nothing is proven.
    #[must_use]
    pub fn compare(&self, found: &Self) -> Comparison {
        let mut differences = Vec::new();
        let mut unproven = Vec::new();
        let mut proven = 0;
        for (name, fact) in self.0.iter().filter(|(_, f)| f.standing == Standing::Pinned) {
            match found.0.get(name).filter(|f| f.standing != Standing::Unknown) {
                Some(f) if f.value == fact.value => proven += 1,
                Some(f) => differences.push(Difference {
                    fact: name.clone(),
                    expected: fact.value.to_string(),
                    found: f.value.to_string(),
                }),
                None => unproven.push(name.clone()),
            }
        }
        let verdict = if !differences.is_empty() {
            RestoreVerdict::Differs
        } else if proven == 0 || !unproven.is_empty() {
            RestoreVerdict::Unproven
        } else {
            RestoreVerdict::Match
        };
        Comparison { verdict, proven, differences, unproven }
    }
}

/// What a restore amounts to.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreVerdict {
    /// The target was read back and every pinned fact holds.
    Match,
    /// The target is not what was captured.
    Differs,
    /// Nothing contradicts, but it could not all be proven.
    Unproven,
}

impl RestoreVerdict {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::Differs => "differs",
            Self::Unproven => "unproven",
        }
    }

    /// The worse of two: differs, then unproven, then match.
    #[must_use]
    pub fn worst(self, other: Self) -> Self {
        match (self, other) {
            (Self::Differs, _) | (_, Self::Differs) => Self::Differs,
            (Self::Unproven, _) | (_, Self::Unproven) => Self::Unproven,
            _ => Self::Match,
        }
    }
}

/// A fact that does not hold in a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Its name.
    pub fact: String,
    /// What was captured.
    pub expected: String,
    /// What was found.
    pub found: String,
}

/// The result of comparing two sets of facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// What it amounts to.
    pub verdict: RestoreVerdict,
    /// How many pinned facts hold.
    pub proven: u32,
    /// Which do not.
    pub differences: Vec<Difference>,
    /// Which could not be examined.
    pub unproven: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pinned_facts_prove() {
        let mut was = Facts::new();
        was.observe("version", "7");
        let mut is = Facts::new();
        is.observe("version", "7");
        assert_eq!(was.compare(&is).verdict, RestoreVerdict::Unproven);
        was.pin("rows", 3u64);
        assert_eq!(was.compare(&is).verdict, RestoreVerdict::Unproven);
        is.observe("rows", 3u64);
        assert_eq!(was.compare(&is).verdict, RestoreVerdict::Match);
        is.observe("rows", 4u64);
        let c = was.compare(&is);
        assert_eq!((c.verdict, c.differences[0].found.as_str()), (RestoreVerdict::Differs, "4"));
        is.unknown("rows", "no rights");
        assert_eq!(was.compare(&is).verdict, RestoreVerdict::Unproven);
    }
}
