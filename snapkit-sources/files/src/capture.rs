//! Capture: check the roots, then hand out one tree that is walked while it is read.

use std::sync::Arc;

use async_trait::async_trait;
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use snapkit_core::artifact::{ArtifactMeta, ArtifactName, Body, Chunking, Shape};
use snapkit_core::context::{Context, Task};
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::source::{Capture, CaptureReport, Consistency, Cut};
use snapkit_core::tree::{EntryPath, LoadedFile, OpenedFile, TreeEntry, TreeItem, TreeReader};

use crate::attributes::{self, DESCRIPTORS};
use crate::content::Contents;
use crate::plan::Plan;
use crate::walk::Walker;
use crate::{dirs, error};

/// The one artifact of a source of files.
pub(crate) const ARTIFACT: &str = "tree";

/// Its media type.
const MEDIA_TYPE: &str = "application/vnd.snapkit.tree";

/// One capture. The files are read after the freeze, each whole but not all at one moment.
#[derive(Debug)]
pub(crate) struct FilesCapture {
    contents: Arc<Contents>,
    meta: ArtifactMeta,
    given: bool,
}

impl FilesCapture {
    pub(crate) fn new(contents: Contents) -> Result<Self> {
        let name = ArtifactName::new(ARTIFACT)?;
        let meta = ArtifactMeta::new(name, Shape::Tree, MEDIA_TYPE, Chunking::Content);
        Ok(Self { contents: Arc::new(contents), meta, given: false })
    }
}

/// Make sure that there is something to capture. Paths that cannot be taken as they are meant are
/// refused; one that is not there now is a problem of its own, which the walk tells of, as long as
/// another one is there.
pub(crate) fn check_roots(plan: &Plan) -> Result<()> {
    // What is mounted there may be something else.
    let base = plan.dirs.base();
    let seen = rustix::fs::stat(attributes::through(base, b".")).and_then(|seen| {
        Ok(attributes::identity(&seen) == attributes::identity(&rustix::fs::fstat(base)?))
    });
    if seen != Ok(true) {
        let what = format!("{DESCRIPTORS} does not work; extended attributes are read through it");
        return Err(Error::new(Reason::Unsupported, what));
    }
    let mut any = plan.roots.everything();
    let mut missing = None;
    for root in plan.roots.iter() {
        match check_root(plan, root) {
            Ok(()) => any = true,
            Err(e) if e.reason() == Reason::InvalidConfig => return Err(e),
            Err(e) => missing = missing.or(Some(e)),
        }
    }
    match missing {
        Some(e) if !any => Err(e),
        _ => Ok(()),
    }
}

fn check_root(plan: &Plan, root: &EntryPath) -> Result<()> {
    let place = root.as_bytes();
    let (parent, name) = dirs::split(place);
    let found = plan.dirs.open(parent).and_then(|parent| {
        let stat = rustix::fs::statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((parent, stat))
    });
    match found {
        Ok((parent, stat)) if attributes::file_type(&stat) == FileType::Symlink => {
            Err(error::link(&parent, place))
        }
        Ok(_) => Ok(()),
        Err(Errno::NOENT) => Err(error::missing(place)),
        Err(Errno::NOTDIR) => Err(Error::new(
            Reason::InvalidConfig,
            "the path leads through something that is no directory; where that is a symbolic \
             link, name the place that it leads to",
        )
        .with("path", error::show(place))),
        Err(e) => Err(error::at("examine", place, e)),
    }
}

#[async_trait]
impl Capture for FilesCapture {
    async fn freeze(&mut self, cx: &Context) -> Result<Cut> {
        let begin = cx.now();
        Ok(Cut { begin, end: cx.now(), consistency: Consistency::Fuzzy, position: None })
    }

    async fn thaw(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn next(&mut self, _: &Context) -> Result<Option<ArtifactMeta>> {
        let first = !std::mem::replace(&mut self.given, true);
        Ok(first.then(|| self.meta.clone()))
    }

    async fn open(&self, cx: &Context, name: &ArtifactName) -> Result<Body> {
        if *name != self.meta.name {
            return Err(Error::new(Reason::NotFound, format!("there is no artifact {name}")));
        }
        let tree = LiveTree::begin(cx, Arc::clone(&self.contents)).await?;
        Ok(Body::Tree(Box::new(tree)))
    }

    async fn finish(self: Box<Self>, cx: &Context) -> Result<CaptureReport> {
        // What was captured is known to whoever read the tree, file by file.
        let mut report = CaptureReport::default();
        let contents = Arc::clone(&self.contents);
        report.problems = cx.blocking(move || Ok(contents.about_the_whole())).await?;
        Ok(report)
    }

    async fn abort(self: Box<Self>, _: &Context) -> Result<()> {
        Ok(())
    }
}

/// The next batch of a walk, being gathered.
type Ahead = Task<(Box<Walker>, Vec<TreeItem>)>;

/// A live tree: one batch of the walk is gathered while the one before is used.
pub(crate) struct LiveTree {
    contents: Arc<Contents>,
    ahead: Option<Ahead>,
}

impl LiveTree {
    pub(crate) async fn begin(cx: &Context, contents: Arc<Contents>) -> Result<Self> {
        let (plan, work_cx) = (Arc::clone(&contents.plan), cx.clone());
        let walker = cx.blocking(move || Walker::new(&work_cx, plan)).await?;
        Ok(Self { contents, ahead: Some(gather(cx, Box::new(walker))) })
    }
}

fn gather(cx: &Context, mut walker: Box<Walker>) -> Ahead {
    let task_cx = cx.clone();
    cx.spawn(async move {
        let work_cx = task_cx.clone();
        task_cx
            .blocking(move || {
                work_cx.check()?;
                let batch = walker.batch(&work_cx)?;
                Ok((walker, batch))
            })
            .await
    })
}

#[async_trait]
impl TreeReader for LiveTree {
    async fn next_batch(&mut self, cx: &Context) -> Result<Option<Vec<TreeItem>>> {
        let Some(ahead) = self.ahead.as_mut() else { return Ok(None) };
        // Awaited in place: if this future is dropped, the batch is still there for the next call.
        let result = ahead.await;
        self.ahead = None;
        let (walker, batch) = result?;
        if batch.is_empty() {
            return Ok(None);
        }
        self.ahead = Some(gather(cx, walker));
        Ok(Some(batch))
    }

    async fn open(&self, cx: &Context, entry: &TreeEntry) -> Result<OpenedFile> {
        self.contents.open(cx, entry).await
    }

    async fn load(&self, cx: &Context, entries: &[TreeEntry]) -> Vec<Result<LoadedFile>> {
        self.contents.load(cx, entries).await
    }
}
