//! Restore: put together beside the place, made durable, moved in, read back.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use snapkit_core::artifact::{ArtifactMeta, Body};
use snapkit_core::context::Context;
use snapkit_core::error::{Error, Reason, Result};
use snapkit_core::facts::FactValue;
use snapkit_core::progress::Phase;
use snapkit_core::source::{Restore, RestoreReport, RestoreRequest, Target};
use snapkit_core::tree::EntryPath;
use tokio::sync::Semaphore;

mod apply;
mod hindrance;
mod ledger;
mod left;
mod merge;
mod mover;
mod place;
mod put;
mod script;
mod shell;
mod swap;
mod told;
mod write;

use crate::capture::ARTIFACT;
use crate::config;
use crate::dirs::{self, Dirs};
use crate::error;
use crate::facts;
use crate::pattern::Filter;
use crate::plan::Plan;
use crate::roots::Roots;
use apply::Rights;
use ledger::Ledger;
use mover::{Mover, Recovery};
use place::{Layout, occupied};
use put::{Put, Taken};
use swap::Swapped;
use told::Told;
use write::Writer;

/// One restore of a tree.
#[derive(Debug)]
pub(crate) struct TreeRestore {
    request: RestoreRequest,
    roots: Roots,
    writer: Arc<Writer>,
    /// Held by everything that writes; whoever has all of it knows that nothing writes any more.
    workers: Arc<Semaphore>,
    capacity: u32,
    taken: Taken,
    complete: bool,
}

impl TreeRestore {
    /// Examine the target and make room beside it.
    pub(crate) async fn begin(
        cx: &Context,
        roots: Roots,
        filter: Filter,
        request: RestoreRequest,
    ) -> Result<Self> {
        let base = match &request.target {
            Target::Original => PathBuf::from("/"),
            Target::Directory(dir) => config::absolute(dir)?,
            Target::Url(url) => {
                let what = "files are restored to a directory or to where they were, not to a URL";
                return Err(Error::invalid(what).with("target", url));
            }
        };
        let tag: String = cx.random::<8>()?.iter().map(|b| format!("{b:02x}")).collect();
        let (work_cx, asked, wanted) = (cx.clone(), request.clone(), roots.clone());
        let writer = cx.blocking(move || {
            examine(&work_cx, &base, &wanted, &asked)?;
            let layout = Layout::new(&work_cx, base, &wanted, tag, asked.partial)?;
            let ledger = if asked.read_back { Some(Ledger::new()?) } else { None };
            let rights = Rights::new(asked.trusted);
            let (overwrite, allow_damage) = (asked.overwrite, asked.allow_damage);
            Ok(Writer {
                layout,
                told: Told::default(),
                rights,
                overwrite,
                allow_damage,
                ledger,
                filter,
            })
        });
        let writer = Arc::new(writer.await?);
        let capacity = u32::try_from(cx.parallelism().saturating_mul(2)).unwrap_or(16).clamp(4, 16);
        Ok(Self {
            request,
            roots,
            writer,
            workers: Arc::new(Semaphore::new(capacity as usize)),
            capacity,
            taken: Taken::default(),
            complete: false,
        })
    }

    /// Wait until nothing writes below the stages.
    async fn settle(&self, cx: &Context) -> Result<()> {
        let all = self.workers.acquire_many(self.capacity);
        let all = cx.run(async { Ok(all.await) }).await?;
        all.map(drop).map_err(|_| Error::internal("the writers of a restore are gone"))
    }

    /// Move everything into place.
    async fn swap(&mut self, cx: &Context) -> Result<Swapped> {
        let (work_cx, writer) = (cx.clone(), Arc::clone(&self.writer));
        let (partial, recovery) = (self.request.partial, self.request.recovery.clone());
        let taken = std::mem::take(&mut self.taken);
        let work = move || {
            let recovery = recovery.map(Recovery::open).transpose()?;
            let mut mover = Mover::new(&work_cx, &writer, recovery.as_ref());
            let swapped = if partial {
                merge::into_place(&mut mover, &taken)
            } else {
                swap::into_place(&mut mover, &taken)
            };
            Ok((swapped, taken))
        };
        let (swapped, taken) = cx.blocking(work).await?;
        self.taken = taken;
        swapped
    }

    /// Whether all files that were captured are damaged, so that directories without any would replace the old state.
    fn would_empty(&self) -> bool {
        let fact = self.request.record.facts.0.get(&format!("{ARTIFACT}.files"));
        let had_files = fact.is_some_and(|fact| fact.value != FactValue::Number(0));
        let is_whole = !self.request.partial && self.request.overwrite;
        self.request.allow_damage && is_whole && had_files && self.taken.files == 0
    }

    /// Leave the target as it was found.
    async fn clear(&self, cx: &Context) -> Result<()> {
        let (work_cx, writer) = (cx.clone(), Arc::clone(&self.writer));
        cx.blocking(move || {
            writer.layout.remove_stages(&work_cx)?;
            writer.layout.restore_times(|_| true);
            Ok(())
        })
        .await
    }

    /// Look at what now lives in the target.
    async fn read_back(
        &self,
        cx: &Context,
        swapped: &Swapped,
        report: &mut RestoreReport,
    ) -> Result<()> {
        cx.progress().phase(Phase::Verify);
        let writer = &self.writer;
        writer.layout.base.forget();
        let different =
            ledger::prove(cx, writer, self.taken.ledger, &mut report.differences).await?;
        if different > report.differences.len() as u64 {
            let listed = report.differences.len();
            report.notes.push(format!("{different} files differ; {listed} of them are listed"));
        }
        if self.request.partial {
            return Ok(());
        }
        let base = dirs::begin(&writer.layout.base_path)
            .map_err(|e| error::at("open the target", b"", e))?;
        // What the snapshot has nothing of was left alone, and says nothing about it.
        let put = |root: &EntryPath| {
            writer.layout.find(root).is_some_and(|place| self.taken.places.contains(&place))
        };
        let mut plan = Plan::plain(Dirs::new(base), self.roots.only(put));
        plan.hidden = swapped.hidden.iter().cloned().collect();
        report.facts = facts::examine(cx, Arc::new(plan)).await?;
        Ok(())
    }
}

/// Refuse a target that holds something, unless it may be replaced.
fn examine(
    cx: &Context,
    base: &std::path::Path,
    roots: &Roots,
    request: &RestoreRequest,
) -> Result<()> {
    let original = request.target == Target::Original;
    if original && roots.everything() {
        let what = "a whole root directory cannot be put back in its place; restore to a directory";
        return Err(Error::new(Reason::Unsupported, what));
    }
    if let Some(recovery) = &request.recovery
        && request.overwrite
    {
        Recovery::open(recovery.clone())?;
    }
    if request.overwrite {
        if request.partial {
            return Ok(());
        }
        if roots.everything() {
            // With a slash at its end it is what a link leads to.
            return hindrance::refuse(&base.join(""), request.recovery.as_deref());
        }
        let path = |root: &EntryPath| base.join(OsStr::from_bytes(root.as_bytes()));
        let roots = roots.outermost();
        return roots
            .iter()
            .try_for_each(|root| hindrance::refuse(&path(root), request.recovery.as_deref()));
    }
    if !original {
        return match place::holds_anything(cx, base)? {
            true => Err(occupied(base)),
            false => Ok(()),
        };
    }
    // What a part has to replace is known when its entries come.
    if request.partial {
        return Ok(());
    }
    let dirs = Dirs::new(dirs::begin(base).map_err(|e| error::at("open", b"", e))?);
    for root in roots.outermost() {
        if let Some(path) = place::in_the_way(cx, &dirs, root.as_bytes())? {
            return Err(occupied(&base.join(OsStr::from_bytes(&path))));
        }
    }
    Ok(())
}

#[async_trait]
impl Restore for TreeRestore {
    async fn put(&mut self, cx: &Context, meta: &ArtifactMeta, body: Body) -> Result<()> {
        if meta.name.as_str() != ARTIFACT {
            let what = format!("a source of files has no artifact {}", meta.name);
            return Err(Error::invalid(what));
        }
        if self.complete {
            return Err(Error::invalid("the tree was put before"));
        }
        let mut tree = body.into_tree()?;
        let put = Put::new(cx, &self.writer, &self.workers, &mut self.taken, self.request.partial);
        let result = put.run(&mut *tree).await;
        if result.is_err() {
            self.settle(cx).await?;
        }
        self.complete = result.is_ok();
        result
    }

    async fn finish(mut self: Box<Self>, cx: &Context) -> Result<RestoreReport> {
        if !self.complete {
            let e = Error::invalid("nothing was put, so nothing can be finished");
            self.abort(cx).await?;
            return Err(e);
        }
        self.settle(cx).await?;
        if self.would_empty() {
            self.clear(cx).await?;
            let what = "no file of the snapshot is whole: the old state stays where it is";
            return Err(Error::corrupt(what).with_hint(
                "an older snapshot may have them; --target DIR shows what is left of this one",
            ));
        }
        let swapped = match self.swap(cx).await {
            Ok(swapped) => swapped,
            Err(e) => {
                // What was moved is back; what was put together is of no use any more.
                self.clear(cx).await.unwrap_or_default();
                return Err(e);
            }
        };
        let mut report = RestoreReport::default();
        // Everything is in its place now: what fails from here on is told, and does not hide that.
        let writer = Arc::clone(&self.writer);
        if let Err(e) = cx.blocking(move || writer.layout.sync()).await {
            self.writer.told.trouble("perhaps not durable", &e);
        }
        if self.request.read_back
            && let Err(e) = self.read_back(cx, &swapped, &mut report).await
        {
            report.facts.unknown(format!("{ARTIFACT}.structure"), e.chain());
            self.writer.told.trouble("not read back", &e);
        }
        self.writer.told.write(&mut report);
        report.undo = swapped.undo;
        Ok(report)
    }

    async fn abort(self: Box<Self>, cx: &Context) -> Result<()> {
        self.settle(cx).await?;
        self.clear(cx).await
    }
}
