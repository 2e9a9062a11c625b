//! The deterministic clock of a run: it starts at a fixed time and advances 1 ms with each reading.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wasmtime_wasi::{HostMonotonicClock, HostWallClock};

/// The clock that a guest's imports read. Each has a set of imports, since sleeping is an import
/// too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockKind {
    /// The host's real clock.
    Real,
    /// A deterministic clock, which only the guest's readings advance.
    Stepped,
}

impl ClockKind {
    /// Returns the clock of a guest that has the real one, or not.
    pub(in crate::sandbox) fn of(is_real: bool) -> Self {
        match is_real {
            true => Self::Real,
            false => Self::Stepped,
        }
    }
}

/// The time at which the clock starts, 2022-01-01T00:00:00Z, as the duration since the Unix epoch.
pub(in crate::sandbox) const START: Duration = Duration::from_secs(1_640_995_200);
/// How far one reading advances the clock.
const STEP: Duration = Duration::from_millis(1);

/// A clock that only readings advance. All clocks of a run share one.
#[derive(Clone, Debug, Default)]
pub struct SteppedClock(Arc<AtomicU64>);

impl SteppedClock {
    fn elapsed(&self) -> Duration {
        let readings = self.0.fetch_add(1, Ordering::Relaxed);
        Duration::from_millis(readings)
    }
}

impl HostWallClock for SteppedClock {
    fn resolution(&self) -> Duration {
        STEP
    }

    fn now(&self) -> Duration {
        START + self.elapsed()
    }
}

impl HostMonotonicClock for SteppedClock {
    fn resolution(&self) -> u64 {
        nanos(STEP)
    }

    fn now(&self) -> u64 {
        nanos(self.elapsed())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
