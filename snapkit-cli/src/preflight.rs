//! What a restore would find in its way, without the restore.

use std::path::Path;

use rustix::fs::Access;
use snapkit_core::context::Context;
use snapkit_core::engine::RestoreOptions;
use snapkit_core::error::{Error, Result};
use snapkit_core::manifest::{CaptureVerdict, Snapshot};
use snapkit_core::registry::Registry;
use snapkit_core::source::{RestoreRequest, Target};

/// Let every source examine its target as the real run would, and leave it as it was found.
pub(crate) async fn examine(
    cx: &Context,
    registry: &Registry,
    snapshot: &Snapshot,
    options: &RestoreOptions,
) -> Result<()> {
    for record in &snapshot.sources {
        let is_other = options.selection.source.as_ref().is_some_and(|name| *name != record.name);
        if is_other || record.verdict == CaptureVerdict::Failed {
            continue;
        }
        let target = options.target(&record.name);
        let at_source = |e: Error| e.with("source", &record.name);
        if let Target::Directory(dir) = &target
            && !dir.exists()
        {
            can_be_made(dir).map_err(at_source)?;
            continue;
        }
        let mut request = RestoreRequest::new(target, record.clone());
        request.overwrite = options.overwrite;
        request.trusted = options.trusted;
        request.partial = options.selection.is_partial();
        request.read_back = options.read_back;
        let source = registry.build_captured(&snapshot.stack, record)?;
        let session = cx.run(source.restore(cx, &request)).await.map_err(at_source)?;
        session.abort(cx).await.map_err(at_source)?;
    }
    Ok(())
}

/// That a directory that does not exist could be made.
fn can_be_made(dir: &Path) -> Result<()> {
    let above = dir.ancestors().skip(1).find(|above| std::fs::symlink_metadata(above).is_ok());
    let above = above.unwrap_or(Path::new("/"));
    let refused = |e: rustix::io::Errno| {
        Error::io("the target cannot be made", e.into()).with("path", dir.display())
    };
    if !above.is_dir() {
        return Err(refused(rustix::io::Errno::NOTDIR));
    }
    rustix::fs::access(above, Access::WRITE_OK | Access::EXEC_OK).map_err(refused)
}
