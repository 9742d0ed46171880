//! Reading ahead: who may hold how much of it in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The bytes that all that is read ahead may take together.
#[derive(Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        let permits = usize::try_from(bytes).unwrap_or(usize::MAX);
        Self(Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))))
    }

    /// A share; none for what somebody waits for, if none is left.
    pub(crate) async fn share(
        &self,
        bytes: u32,
        turn: Option<&Turn>,
    ) -> Option<OwnedSemaphorePermit> {
        let budget = Arc::clone(&self.0);
        let Some(turn) = turn else { return budget.try_acquire_many_owned(bytes).ok() };
        tokio::select! {
            biased;
            permit = budget.acquire_many_owned(bytes) => permit.ok(),
            () = turn.comes() => None,
        }
    }
}

/// How far a stream has come. Reading ahead waits for its share of the budget; what the consumer waits
/// for does not, or streams that wait for each other's shares would wait for ever.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    taken: AtomicU64,
    moved: Notify,
}

/// The place of a read in its stream.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    number: u64,
}

impl Turns {
    /// The consumer took what was next.
    pub(crate) fn advance(&self) {
        self.taken.fetch_add(1, Ordering::AcqRel);
        self.moved.notify_waiters();
    }
}

impl Turn {
    pub(crate) fn new(turns: &Arc<Turns>, number: u64) -> Self {
        Self { turns: Arc::clone(turns), number }
    }

    /// All before it were taken.
    async fn comes(&self) {
        loop {
            let mut moved = std::pin::pin!(self.turns.moved.notified());
            moved.as_mut().enable();
            if self.turns.taken.load(Ordering::Acquire) >= self.number {
                return;
            }
            moved.await;
        }
    }
}
