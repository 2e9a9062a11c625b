//! A tenant's queue of guest slices that are ready to run.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::short_run_predictor::ShortRunPredictor;

/// How many new runs of a tenant may go ahead before one of its waiting preempted runs is served.
const MAX_NEW_STREAK: u32 = 4;

/// One slice of a guest: a task that runs until the guest yields.
pub(in crate::sandbox) type Slice = async_task::Runnable;

/// A tenant's queue of guest slices that are ready to run, with the tenant's weight and processor
/// time.
#[derive(Debug)]
pub struct TenantQueue {
    pub(in crate::sandbox) weight: u32,
    /// Nanoseconds that the tenant's guests have used: processor time on guest threads and for file
    /// system calls, wall time for inline slices.
    pub(in crate::sandbox) cpu_nanos: AtomicU64,
    /// The tenant's virtual time when it last became inactive, that is, had nothing waiting or
    /// executing.
    pub(in crate::sandbox) idle_virtual_time: AtomicU64,
    /// Virtual time for work that was done for the tenant's guests on other threads. It is added to
    /// the tenant's virtual time when its next slice is queued.
    pub(in crate::sandbox) pending_virtual_time: AtomicU64,
    /// Predicts how long runs of the tenant take whose module has no history yet.
    pub(in crate::sandbox) new_module_predictor: ShortRunPredictor,
    pub(in crate::sandbox) queue: Mutex<ReadySlices>,
}

#[derive(Debug, Default)]
pub(in crate::sandbox) struct ReadySlices {
    pub(in crate::sandbox) new: VecDeque<Slice>,
    pub(in crate::sandbox) resumed: VecDeque<Slice>,
    /// How many new runs went ahead since a preempted one was last served.
    new_streak: u32,
}

impl TenantQueue {
    /// Creates an empty queue for a tenant of weight `weight`; 0 counts as 1.
    pub fn new(weight: u32) -> Arc<Self> {
        Arc::new(Self {
            weight: weight.max(1),
            cpu_nanos: AtomicU64::new(0),
            idle_virtual_time: AtomicU64::new(0),
            pending_virtual_time: AtomicU64::new(0),
            new_module_predictor: ShortRunPredictor::default(),
            queue: Mutex::default(),
        })
    }

    /// Returns the tenant's weight in the fair share of processor time.
    pub(in crate::sandbox) fn weight(&self) -> u32 {
        self.weight
    }

    /// Charges the tenant for processor time, in nanoseconds, that was spent for its guests on
    /// other threads than the guest threads.
    pub(crate) fn charge_off_thread(&self, nanos: u64) {
        self.cpu_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.pending_virtual_time
            .fetch_add(nanos / u64::from(self.weight), Ordering::Relaxed);
    }

    /// Returns the time for which the tenant's guests have executed in total.
    pub fn cpu_time(&self) -> Duration {
        Duration::from_nanos(self.cpu_nanos.load(Ordering::Relaxed))
    }
}

impl ReadySlices {
    pub(in crate::sandbox) fn pop(&mut self) -> Option<Slice> {
        let may_go_ahead = self.new_streak < MAX_NEW_STREAK || self.resumed.is_empty();
        if may_go_ahead && let Some(slice) = self.new.pop_front() {
            let passes_others = !self.resumed.is_empty();
            self.new_streak = if passes_others {
                self.new_streak + 1
            } else {
                0
            };
            return Some(slice);
        }
        self.new_streak = 0;
        self.resumed.pop_front()
    }
}

#[cfg(test)]
mod tests;
