//! What the targets share: one repository's keys, the same in every run, so that hostile content gets through
//! the encryption as it does when whoever writes it has a key.

use std::sync::{Arc, LazyLock};

use snapkit_core::context::{Context, Simulated, Timestamp};
use snapkit_core::credential::Credential;
use snapkit_core::progress::Silent;

/// A context that repeats.
pub static CX: LazyLock<Context> =
    LazyLock::new(|| Context::new(Arc::new(Simulated::new(1, Timestamp(0))), Arc::new(Silent)));

/// A full credential.
pub static CREDENTIAL: LazyLock<Arc<Credential>> =
    LazyLock::new(|| Arc::new(Credential::create(&CX).expect("keys are made of anything")));

/// A single-threaded runtime.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime without drivers needs nothing");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}
