//! Predicts whether the next run of a module is short. A run that is likely to be short may execute
//! on the thread that serves its caller, which saves the way to a guest thread and back.
//!
//! The predictor is a saturating counter, like a processor's branch predictor. There is one for
//! each module, and one for each tenant that predicts the first runs of modules about which nothing
//! is known yet.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// The most processor time that a short run uses.
const SHORT_RUN: Duration = Duration::from_millis(1);
/// Number of short runs in a row after which the next run is expected to be short.
const PREDICT_SHORT_FROM: i32 = 2;
/// Where counting begins again after a run that was not short. Counting skips zero, which means
/// that nothing is known.
const MISS_PENALTY: i32 = -5;

/// A saturating counter of short runs that have something in common: their module, or their tenant
/// and that they are the first runs of their modules.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct ShortRunPredictor(AtomicI32);

impl ShortRunPredictor {
    /// Reports whether the next run is expected to be short; `None` where nothing is known.
    pub(in crate::sandbox) fn predicts_short(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            count => Some(count >= PREDICT_SHORT_FROM),
        }
    }

    /// Notes the processor time of a run or of a slice of one. A long slice means a long run, and a
    /// short slice says nothing.
    pub(in crate::sandbox) fn observe_slice(&self, spent: Duration) {
        if spent > SHORT_RUN {
            self.0.store(MISS_PENALTY, Ordering::Relaxed);
        }
    }

    /// Notes the processor time of a whole run.
    pub(in crate::sandbox) fn observe_run(&self, spent: Duration) {
        self.observe_slice(spent);
        if spent > SHORT_RUN {
            return;
        }
        // If two runs end at once, both may count or only one: it is a guess either way.
        let count = self.0.load(Ordering::Relaxed);
        if count < PREDICT_SHORT_FROM {
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
        let habit = ShortRunPredictor::default();
        assert_eq!(habit.predicts_short(), None);
        habit.observe_run(MOMENT);
        assert_eq!(habit.predicts_short(), Some(false));
        habit.observe_run(MOMENT);
        assert_eq!(habit.predicts_short(), Some(true));
        habit.observe_slice(LONG);
        for _ in 0..6 {
            // Once something is known, that is never forgotten.
            assert_eq!(habit.predicts_short(), Some(false));
            habit.observe_run(MOMENT);
        }
        assert_eq!(habit.predicts_short(), Some(true));
    }

    #[test]
    fn a_short_slice_says_nothing_of_the_run() {
        let habit = ShortRunPredictor::default();
        for _ in 0..10 {
            habit.observe_slice(MOMENT);
        }
        assert_eq!(habit.predicts_short(), None);
        habit.observe_run(LONG);
        assert_eq!(habit.predicts_short(), Some(false));
    }
}
