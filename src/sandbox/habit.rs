//! Whether runs of a module tend to be over in a moment. One that is likely to be may execute on the thread that serves
//! its caller, which saves the way to a guest thread and back.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// Processor time of a run that is short.
const SHORT: Duration = Duration::from_millis(1);
/// Short runs in a row after which the next one is expected to be short.
const EXPECTED: i32 = 2;
/// Where counting begins again after one that was not.
const DISAPPOINTED: i32 = -4;

/// What is known of a module's runs.
#[derive(Debug, Default)]
pub(super) struct Habit(AtomicI32);

impl Habit {
    /// Whether the next run is expected to be short.
    pub(super) fn is_short(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= EXPECTED
    }

    /// Notes the processor time of a run, or of a slice of one.
    pub(super) fn note(&self, spent: Duration) {
        if spent > SHORT {
            self.0.store(DISAPPOINTED, Ordering::Relaxed);
        }
    }

    /// Notes the processor time of a whole run.
    pub(super) fn ended(&self, spent: Duration) {
        self.note(spent);
        if spent <= SHORT && !self.is_short() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}
