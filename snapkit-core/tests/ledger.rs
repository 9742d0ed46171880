//! The ledger in a sink passes the suite that every manifest passes, seen with each sort of credential.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use snapkit_core::context::Context;
use snapkit_core::credential::Credential;
use snapkit_core::ledger::StoredManifest;
use snapkit_core::manifest::Manifest;
use snapkit_core::memory::MemorySink;
use snapkit_core::sign::Role;
use snapkit_testkit::manifest;

fn ledger(credential: &Credential, certifier: [u8; 32]) -> Arc<dyn Manifest> {
    let credential = Arc::new(credential.clone());
    Arc::new(StoredManifest::new(Arc::new(MemorySink::new()), credential, certifier))
}

#[tokio::test]
async fn the_ledger_passes_the_suite() {
    let cx = Context::system();
    let full = Credential::create(&cx).unwrap();
    let certifier = full.certifier().unwrap().verifying_key().to_bytes();
    manifest::all(&cx, async || ledger(&full, certifier)).await;
    let writer = full.derive(&cx, Role::Writer).unwrap();
    manifest::all(&cx, async || ledger(&writer, certifier)).await;
}
