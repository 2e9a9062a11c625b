//! The counters that the daemon keeps of its own work, and the format in which they are exposed.
//!
//! Each room counts in types of this module where something happens, with one atomic addition and
//! no lock. A room that has metrics implements [`MetricSource`], which writes them when somebody
//! asks. [`MetricRegistry`] gathers the sources of a daemon and encodes them as OpenMetrics text.
//! Labels are names of closed enums and of configured tenants, never anything that a caller sends.

mod latency;
mod registry;
mod run_counters;
mod run_history;
mod run_tally;
mod tick_log;

pub use self::latency::{LatencyHistogram, LatencySnapshot};
pub use self::registry::{CONTENT_TYPE, MetricRegistry, MetricSource, MetricWriter, Unit};
pub use self::run_counters::{RunCounters, RunSample};
pub use self::run_history::{RunHistory, RunInterval};
pub use self::run_tally::RunTally;
pub use self::tick_log::{Tick, TickLog};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A count that only grows, from zero at the daemon's start.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Creates a count of nothing yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one to the count.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `n` to the count.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Returns the count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The number of things of one kind that there are now. Clones share the number.
#[derive(Clone, Debug, Default)]
pub struct Level(Arc<AtomicU64>);

/// A thing that counts towards a [`Level`] until this is dropped.
#[derive(Debug)]
pub struct LevelGuard(Level);

impl Level {
    /// Counts one thing until the guard that is returned is dropped.
    pub fn enter(&self) -> LevelGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        LevelGuard(self.clone())
    }

    /// Returns how many there are now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for LevelGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
