//! Snapshots as documents for `--json`: what a snapshot says, without the lists of its chunks.

use std::collections::BTreeMap;

use serde::Serialize;
use snapkit_core::artifact::{Shape, SourceName};
use snapkit_core::context::Timestamp;
use snapkit_core::facts::Facts;
use snapkit_core::id::SnapshotId;
use snapkit_core::manifest::{
    ArtifactRecord, CaptureStats, CaptureVerdict, ContentRef, Head, Problems, Snapshot,
    SourceRecord, SourceStats,
};
use snapkit_core::source::Cut;

/// A snapshot in a list.
#[derive(Debug, Serialize)]
pub(crate) struct Row<'a> {
    pub(crate) id: &'a str,
    pub(crate) stack: &'a str,
    pub(crate) host: &'a str,
    pub(crate) set: &'a str,
    pub(crate) name: Option<&'a str>,
    pub(crate) tags: &'a BTreeMap<String, String>,
    pub(crate) started: Timestamp,
    pub(crate) finished: Timestamp,
    pub(crate) verdict: CaptureVerdict,
    pub(crate) bytes: u64,
    pub(crate) problems: u64,
    pub(crate) sources: Vec<&'a str>,
}

impl<'a> From<&'a Head> for Row<'a> {
    fn from(s: &'a Head) -> Self {
        Self {
            id: s.id.as_str(),
            stack: &s.stack,
            host: &s.host,
            set: &s.set,
            name: s.name.as_deref(),
            tags: &s.tags,
            started: s.started,
            finished: s.finished,
            verdict: s.verdict,
            bytes: s.bytes,
            problems: s.problems,
            sources: s.sources.iter().map(SourceName::as_str).collect(),
        }
    }
}

/// A snapshot with all that it says.
#[derive(Debug, Serialize)]
pub(crate) struct Full<'a> {
    pub(crate) id: &'a str,
    pub(crate) previous: Option<&'a str>,
    pub(crate) stack: &'a str,
    pub(crate) host: &'a str,
    pub(crate) set: &'a str,
    pub(crate) name: Option<&'a str>,
    pub(crate) tags: &'a BTreeMap<String, String>,
    pub(crate) started: Timestamp,
    pub(crate) finished: Timestamp,
    pub(crate) cut_micros: u64,
    pub(crate) verdict: CaptureVerdict,
    pub(crate) stats: CaptureStats,
    pub(crate) program: &'a str,
    pub(crate) sources: Vec<Source<'a>>,
}

impl<'a> From<&'a Snapshot> for Full<'a> {
    fn from(s: &'a Snapshot) -> Self {
        Self {
            id: s.id.as_str(),
            previous: s.previous.as_ref().map(SnapshotId::as_str),
            stack: &s.stack,
            host: &s.host,
            set: &s.set,
            name: s.name.as_deref(),
            tags: &s.tags,
            started: s.started,
            finished: s.finished,
            cut_micros: s.cut_micros,
            verdict: s.verdict,
            stats: s.stats,
            program: &s.program,
            sources: s.sources.iter().map(Source::from).collect(),
        }
    }
}

/// A source in a snapshot.
#[derive(Debug, Serialize)]
pub(crate) struct Source<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) verdict: CaptureVerdict,
    pub(crate) settings: &'a serde_json::Value,
    pub(crate) cut: Option<&'a Cut>,
    pub(crate) facts: &'a Facts,
    pub(crate) problems: &'a Problems,
    pub(crate) stats: SourceStats,
    pub(crate) artifacts: Vec<Artifact<'a>>,
}

impl<'a> From<&'a SourceRecord> for Source<'a> {
    fn from(s: &'a SourceRecord) -> Self {
        Self {
            name: s.name.as_str(),
            kind: &s.kind,
            verdict: s.verdict,
            settings: &s.settings,
            cut: s.cut.as_ref(),
            facts: &s.facts,
            problems: &s.problems,
            stats: s.stats,
            artifacts: s.artifacts.iter().map(Artifact::from).collect(),
        }
    }
}

/// An artifact in a snapshot.
#[derive(Debug, Serialize)]
pub(crate) struct Artifact<'a> {
    pub(crate) name: &'a str,
    pub(crate) shape: Shape,
    pub(crate) media_type: &'a str,
    pub(crate) bytes: u64,
    /// Entries of a tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) entries: Option<u64>,
    /// SHA-256 of a byte stream, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<&'a str>,
    pub(crate) attributes: &'a BTreeMap<String, String>,
}

impl<'a> From<&'a ArtifactRecord> for Artifact<'a> {
    fn from(a: &'a ArtifactRecord) -> Self {
        Self {
            name: a.meta.name.as_str(),
            shape: a.meta.shape,
            media_type: &a.meta.media_type,
            bytes: a.content.bytes(),
            entries: match &a.content {
                ContentRef::Tree { count, .. } | ContentRef::Records { count, .. } => Some(*count),
                _ => None,
            },
            sha256: a.sha256.as_deref(),
            attributes: &a.meta.attributes,
        }
    }
}

/// `stack@host`, as in a list.
pub(crate) fn origin(stack: &str, host: &str) -> String {
    format!("{stack}@{host}")
}
