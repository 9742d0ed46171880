//! What a source gives that cannot be put back: it is refused or said, and takes nothing else along.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod lab;

use std::sync::Arc;

use async_trait::async_trait;
use lab::{Lab, files_of, noise};
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, MAX_PIECE, Shape};
use snapkit_core::context::Context;
use snapkit_core::engine::{CreateOptions, Stack};
use snapkit_core::error::{Reason, Result};
use snapkit_core::facts::{Facts, RestoreVerdict};
use snapkit_core::manifest::{CaptureVerdict, SourceRecord};
use snapkit_core::source::{
    Capture, CaptureReport, Cut, Findings, Restore, RestoreRequest, Source, SourceInfo,
};
use snapkit_core::tree::{EntryKind, EntryPath, TreeEntry};
use snapkit_testkit::double::{ScriptedArtifact, ScriptedFile, ScriptedSource};

fn link(path: &str, target: &str) -> ScriptedFile {
    let target = EntryPath::new(target).unwrap();
    ScriptedFile::special(TreeEntry::new(
        EntryPath::new(path).unwrap(),
        EntryKind::HardLink { target },
    ))
}

fn files() -> Vec<ScriptedFile> {
    (0..30).map(|i| ScriptedFile::file(&format!("f{i:02}"), noise(2000, i))).collect()
}

/// Create from a tree with something wrong in it: only `lost` is missing, and is said to be.
async fn assert_partial(tree: ScriptedArtifact, silent: &[&str], lost: &[(&str, Reason)]) {
    let lab = Lab::new([ScriptedSource::new("a").with(tree)]).await;
    let snapshot = lab.create().await.unwrap().snapshot;
    assert_eq!(snapshot.verdict, CaptureVerdict::Partial);
    let problems = &snapshot.sources[0].problems;
    let said: Vec<_> =
        problems.listed.iter().map(|p| (p.place.as_str(), p.reason.as_str())).collect();
    let expected: Vec<_> = lost.iter().map(|(path, reason)| (*path, reason.code())).collect();
    assert_eq!(said, expected, "{:?}", problems.listed);
    // The rest is whole, and proven by the tree's own facts.
    lab.assert_sound().await;
    lab.restore(&snapshot).await.unwrap();
    let mut left = files_of(&lab.live(0)["tree"]);
    for path in silent.iter().copied().chain(lost.iter().map(|(path, _)| *path)) {
        assert!(left.remove(path).is_some(), "{path}");
    }
    assert_eq!(files_of(&lab.restored(0)["tree"]), left);
}

#[tokio::test]
async fn other_names_of_a_file_that_could_not_be_read_are_missed_too() {
    let mut tree = files();
    tree.extend([link("g/again", "f03"), link("g/and-again", "f04"), link("g/well", "f05")]);
    let tree = ScriptedArtifact::tree("tree", tree)
        .unreadable("f03", Reason::NotFound)
        .unreadable("f04", Reason::PermissionDenied);
    // A file that is gone when it is read is no problem. That its other name was still there is one.
    let lost = [
        ("f04", Reason::PermissionDenied),
        ("g/again", Reason::SourceChanged),
        ("g/and-again", Reason::PermissionDenied),
    ];
    assert_partial(tree, &["f03"], &lost).await;
}

#[tokio::test]
async fn an_entry_that_no_reader_would_take_does_not_spoil_its_neighbours() {
    let mut tree = files();
    tree[3].entry.mode = 0o100_644;
    tree[5].entry.xattrs = vec![(Vec::new(), b"value".to_vec())];
    let symlink = EntryKind::Symlink { target: Vec::new() };
    tree.push(ScriptedFile::special(TreeEntry::new(EntryPath::new("nowhere").unwrap(), symlink)));
    let mut leads = TreeEntry::new(EntryPath::new("fifo").unwrap(), EntryKind::Fifo);
    leads.ancestor = true;
    tree.push(ScriptedFile::special(leads));
    let lost = ["f03", "f05", "fifo", "nowhere"].map(|path| (path, Reason::Internal));
    assert_partial(ScriptedArtifact::tree("tree", tree), &[], &lost).await;
}

/// Says that its artifacts have another shape than they have.
#[derive(Debug)]
struct Liar(Arc<ScriptedSource>);

struct Lying(Box<dyn Capture>);

#[async_trait]
impl Source for Liar {
    fn info(&self) -> &SourceInfo {
        self.0.info()
    }

    async fn capture(
        &self,
        cx: &Context,
        basis: Option<&SourceRecord>,
    ) -> Result<Box<dyn Capture>> {
        Ok(Box::new(Lying(self.0.capture(cx, basis).await?)))
    }

    async fn restore(&self, cx: &Context, request: &RestoreRequest) -> Result<Box<dyn Restore>> {
        self.0.restore(cx, request).await
    }

    async fn facts(&self, cx: &Context) -> Result<Facts> {
        self.0.facts(cx).await
    }

    async fn check(&self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<Findings> {
        self.0.check(cx, meta, body).await
    }
}

#[async_trait]
impl Capture for Lying {
    async fn freeze(&mut self, cx: &Context) -> Result<Cut> {
        self.0.freeze(cx).await
    }

    async fn thaw(&mut self, cx: &Context) -> Result<()> {
        self.0.thaw(cx).await
    }

    async fn next(&mut self, cx: &Context) -> Result<Option<ArtifactMeta>> {
        let meta = self.0.next(cx).await?;
        Ok(meta
            .map(|meta| ArtifactMeta::new(meta.name, Shape::Tree, meta.media_type, meta.chunking)))
    }

    async fn open(&self, cx: &Context, name: &ArtifactName) -> Result<Body> {
        self.0.open(cx, name).await
    }

    async fn finish(self: Box<Self>, cx: &Context) -> Result<CaptureReport> {
        self.0.finish(cx).await
    }

    async fn abort(self: Box<Self>, cx: &Context) -> Result<()> {
        self.0.abort(cx).await
    }
}

#[tokio::test]
async fn a_source_that_breaks_its_word_commits_nothing() {
    let bytes = |piece| ScriptedArtifact::bytes("x", noise(3 * MAX_PIECE, 1)).piece(piece);
    let honest = Arc::new(ScriptedSource::new("a").with(bytes(MAX_PIECE)));
    let greedy = Arc::new(ScriptedSource::new("a").with(bytes(MAX_PIECE + 1)));
    let twice = vec![Arc::clone(&honest) as Arc<dyn Source>, Arc::clone(&honest) as _];
    type Case = (Vec<Arc<dyn Source>>, Reason, &'static str);
    let cases: [Case; 3] = [
        (vec![Arc::new(Liar(Arc::clone(&honest)))], Reason::Internal, "another shape"),
        (vec![Arc::clone(&greedy) as _], Reason::Internal, "the limit is"),
        (twice, Reason::InvalidArgument, "two sources have the name a"),
    ];
    let lab = Lab::new([]).await;
    let repository = lab.open().await.unwrap();
    let options = CreateOptions::default();
    for (sources, reason, why) in cases {
        let stack = Stack::new("test", "host", sources);
        let e = repository.create(&lab.cx, &stack, &options).await.unwrap_err();
        assert_eq!(e.reason(), reason, "{e:?}");
        assert!(e.to_string().contains(why), "{e}");
    }
    honest.log().assert_released();
    greedy.log().assert_released();
    assert!(repository.ledger(&lab.cx).await.unwrap().snapshots.is_empty());
    let stack = Stack::new("test", "host", vec![Arc::clone(&honest) as _]);
    let snapshot = repository.create(&lab.cx, &stack, &options).await.unwrap().snapshot;
    let lab = Lab { sources: vec![honest], ..lab };
    assert_eq!(lab.restore(&snapshot).await.unwrap().verdict, RestoreVerdict::Match);
}
