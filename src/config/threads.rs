//! The numbers of threads that a configuration asks for, where 0 stands for one thread per core.

use std::num::NonZeroUsize;

use super::Config;

impl Config {
    /// Returns the number of threads that serve connections.
    pub fn serving_threads(&self) -> usize {
        or_cores(self.server.threads)
    }

    /// Returns the number of threads that execute guests.
    pub fn guest_threads(&self) -> usize {
        or_cores(self.engine.guest_threads)
    }

    /// Returns the number of instances that a pool holds: those of runs, and those that sessions
    /// keep.
    pub fn pool_slots(&self) -> u32 {
        let runs = match self.engine.pool_slots {
            0 => self.admission.slots,
            slots => slots,
        };
        runs.saturating_add(self.sessions.max)
    }
}

fn or_cores(threads: u32) -> usize {
    match threads {
        0 => cores(),
        threads => threads as usize,
    }
}

/// Returns the number of cores that this process may use, which is at least 1.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}
