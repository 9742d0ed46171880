//! Facts: the digest of a tree as it lives.

use std::sync::Arc;

use snapkit_core::context::Context;
use snapkit_core::error::Result;
use snapkit_core::facts::{Facts, Standing};
use snapkit_core::tree::{TreeDigest, TreeItem};

use crate::capture::ARTIFACT;
use crate::plan::Plan;
use crate::walk::Walker;

/// Walk a tree and say what it is. No file is opened.
pub(crate) async fn examine(cx: &Context, plan: Arc<Plan>) -> Result<Facts> {
    let work_cx = cx.clone();
    cx.blocking(move || {
        let mut walker = Walker::new(&work_cx, plan)?;
        let mut digest = TreeDigest::default();
        let mut problems = 0u64;
        loop {
            work_cx.check()?;
            let batch = walker.batch(&work_cx)?;
            if batch.is_empty() {
                break;
            }
            for item in &batch {
                match item {
                    TreeItem::Entry(entry, _) => digest.add(entry),
                    TreeItem::Problem(..) => problems += 1,
                }
            }
        }
        let mut facts = Facts::new();
        digest.write(ARTIFACT, Standing::Observed, &mut facts);
        if problems > 0 {
            facts.observe(format!("{ARTIFACT}.problems"), problems);
        }
        Ok(facts)
    })
    .await
}
