//! How many threads a configuration asks for, where zero stands for one a core.

use std::num::NonZeroUsize;

use super::Config;

impl Config {
    /// Threads that serve connections.
    pub fn serving_threads(&self) -> usize {
        or_cores(self.server.threads)
    }

    /// Threads that execute guests.
    pub fn guest_threads(&self) -> usize {
        or_cores(self.engine.guest_threads)
    }
}

fn or_cores(threads: u32) -> usize {
    match threads {
        0 => cores(),
        threads => threads as usize,
    }
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}
