//! Who may run now: a fixed number of slots, a bounded queue before them, a longest wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::refusal::{Reason, Refusal};

/// What a refused caller is told to wait at the least.
const RETRY: Duration = Duration::from_millis(500);

/// The slots and the queue.
#[derive(Debug)]
pub(super) struct Admission {
    slots: Arc<Semaphore>,
    capacity: u32,
    queue: u32,
    queued: AtomicU32,
    max_wait: Duration,
}

/// A slot, held until this is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    _slot: OwnedSemaphorePermit,
}

/// One that waits, counted until it is dropped.
struct Queued<'a>(&'a AtomicU32);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    /// Of `capacity` slots, with room for `queue` that wait no longer than `max_wait`.
    pub(super) fn new(capacity: u32, queue: u32, max_wait: Duration) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(capacity as usize)),
            capacity,
            queue,
            queued: AtomicU32::new(0),
            max_wait,
        }
    }

    /// A slot, at once or after waiting in line, of which `waits` is told; the caller has until `until`.
    ///
    /// # Errors
    /// `QUEUE_FULL`, `WAIT_EXPIRED`, `NOT_STARTED`, `SHUTTING_DOWN`.
    pub(super) async fn admit(
        &self,
        until: Option<Instant>,
        waits: impl FnOnce(),
    ) -> Result<Permit, Refusal> {
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(Permit { _slot: slot });
        }
        let _queued = self.enqueue()?;
        waits();
        let patience = until.map(|until| until.saturating_duration_since(Instant::now()));
        let wait = patience.map_or(self.max_wait, |patience| patience.min(self.max_wait));
        match tokio::time::timeout(wait, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(Ok(slot)) => Ok(Permit { _slot: slot }),
            Ok(Err(_closed)) => Err(shutting_down()),
            Err(_elapsed) if patience.is_some_and(|patience| patience <= self.max_wait) => {
                Err(not_started())
            }
            Err(_elapsed) => Err(Refusal::new(
                Reason::WaitExpired,
                format!(
                    "no slot came free within {} (admission.max_wait)",
                    humantime::format_duration(self.max_wait)
                ),
            )
            .retry_after(RETRY)),
        }
    }

    /// Admits nobody any more; those that wait are refused at once.
    pub(super) fn close(&self) {
        self.slots.close();
    }

    /// Whether nobody is admitted any more.
    pub(super) fn is_closed(&self) -> bool {
        self.slots.is_closed()
    }

    /// All slots.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// How many wait.
    pub(super) fn queued(&self) -> u32 {
        self.queued.load(Ordering::Relaxed)
    }

    fn enqueue(&self) -> Result<Queued<'_>, Refusal> {
        if self.slots.is_closed() {
            return Err(shutting_down());
        }
        let before = self.queued.fetch_add(1, Ordering::Relaxed);
        let queued = Queued(&self.queued);
        if before >= self.queue {
            return Err(Refusal::new(
                Reason::QueueFull,
                format!(
                    "all {} slots are taken and {} runs wait already (admission.queue)",
                    self.capacity, self.queue
                ),
            )
            .retry_after(RETRY));
        }
        Ok(queued)
    }
}

/// The caller's deadline passed before its run could start.
pub(super) fn not_started() -> Refusal {
    Refusal::new(
        Reason::NotStarted,
        "the caller's deadline passed before what it asked for could be done",
    )
}

/// The daemon is ending.
pub fn shutting_down() -> Refusal {
    Refusal::new(Reason::ShuttingDown, "the daemon is shutting down")
        .retry_after(Duration::from_secs(1))
}
