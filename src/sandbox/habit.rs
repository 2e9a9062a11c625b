//! Whether runs of a module tend to be over in a moment. One that is likely to be may execute on the thread that serves
//! its caller, which saves the way to a guest thread and back.
//!
//! Two saturating counters, as a processor's branch predictor has them: one of each module, and one of each tenant for the
//! first runs of modules of which nothing is known yet.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// Processor time of a run that is short.
const SHORT: Duration = Duration::from_millis(1);
/// Short runs in a row after which the next one is expected to be short.
const EXPECTED: i32 = 2;
/// Where counting begins again after one that was not. Zero is left out, since it says that nothing is known.
const DISAPPOINTED: i32 = -5;

/// What is known of runs that have something in common: their module, or their tenant and that they are the first of their
/// module.
#[derive(Debug, Default)]
pub(super) struct Habit(AtomicI32);

impl Habit {
    /// Whether the next run is expected to be short; `None` where nothing is known.
    pub(super) fn is_short(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            count => Some(count >= EXPECTED),
        }
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
        if spent > SHORT {
            return;
        }
        // Runs that end at once may both count, or one of them: it is a guess either way.
        let count = self.0.load(Ordering::Relaxed);
        if count < EXPECTED {
            let next = if count == -1 { 1 } else { count + 1 };
            self.0.store(next, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_micros(50);
    const LONG: Duration = Duration::from_millis(2);

    #[test]
    fn two_short_runs_are_a_habit_and_a_long_one_ends_it_for_six() {
        let habit = Habit::default();
        assert_eq!(habit.is_short(), None);
        habit.ended(MOMENT);
        assert_eq!(habit.is_short(), Some(false));
        habit.ended(MOMENT);
        assert_eq!(habit.is_short(), Some(true));
        habit.note(LONG);
        for _ in 0..6 {
            // That something is known is never forgotten.
            assert_eq!(habit.is_short(), Some(false));
            habit.ended(MOMENT);
        }
        assert_eq!(habit.is_short(), Some(true));
    }

    #[test]
    fn a_short_slice_says_nothing_of_the_run() {
        let habit = Habit::default();
        for _ in 0..10 {
            habit.note(MOMENT);
        }
        assert_eq!(habit.is_short(), None);
        habit.ended(LONG);
        assert_eq!(habit.is_short(), Some(false));
    }
}
