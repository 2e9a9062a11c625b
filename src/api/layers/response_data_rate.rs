//! Checks that an answer is taken at a minimum rate, with a token bucket of time.
//!
//! A caller has a grace period. Time in which bytes were ready and not taken uses it up, and each
//! byte that is taken gives back the time that it may take at the minimum rate, up to the whole
//! grace period. Time in which nothing was ready does not count. The caller of each function passes
//! the time in, so this is a pure state machine.

use std::time::{Duration, Instant};

/// The minimum rate at which a caller has to take an answer.
#[derive(Clone, Copy, Debug)]
pub struct MinResponseDataRate {
    /// How long a caller may take nothing, which is also how far it may fall behind the rate.
    pub grace: Duration,
    /// The minimum rate, in bytes per second.
    pub min_rate: u64,
}

/// The token bucket of one answer.
#[derive(Debug)]
pub(in crate::api) struct DataRateMonitor {
    pace: MinResponseDataRate,
    /// What is left of the grace period, as of `ready_since`.
    left: Duration,
    /// Since when bytes have been ready, or when `left` was last brought up to date; `None` if none
    /// are ready.
    ready_since: Option<Instant>,
}

impl DataRateMonitor {
    /// Creates the monitor of an answer of which nothing is ready.
    pub(in crate::api) fn new(pace: MinResponseDataRate) -> Self {
        Self {
            pace,
            left: pace.grace,
            ready_since: None,
        }
    }

    /// Records that bytes are ready.
    pub(in crate::api) fn ready(&mut self, now: Instant) {
        self.ready_since.get_or_insert(now);
    }

    /// Records that `bytes` of those that were ready were taken, and that others are left.
    pub(in crate::api) fn took(&mut self, bytes: usize, now: Instant) {
        let earned = Duration::try_from_secs_f64(bytes_per(bytes, self.pace.min_rate));
        let earned = earned.unwrap_or(self.pace.grace);
        self.left = self.left(now).saturating_add(earned).min(self.pace.grace);
        if let Some(since) = &mut self.ready_since {
            *since = now;
        }
    }

    /// Records that all that was ready was taken: what comes next has the whole grace period.
    pub(in crate::api) fn took_all(&mut self) {
        self.left = self.pace.grace;
        self.ready_since = None;
    }

    /// Reports whether the answer is taken too slowly.
    pub(in crate::api) fn is_overdue(&self, now: Instant) -> bool {
        self.ready_since.is_some() && self.left(now).is_zero()
    }

    /// Returns what is left of the grace period at `now`.
    fn left(&self, now: Instant) -> Duration {
        let waited = self
            .ready_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.left.saturating_sub(waited)
    }
}

/// Returns how many seconds `bytes` may take at `rate` bytes per second.
#[expect(
    clippy::cast_precision_loss,
    reason = "a number of bytes that is off by one in 2^53 makes no difference"
)]
fn bytes_per(bytes: usize, rate: u64) -> f64 {
    bytes as f64 / rate as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRACE: Duration = Duration::from_secs(30);
    const RATE: u64 = 1000;
    const NANO: Duration = Duration::from_nanos(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn clock() -> (DataRateMonitor, Instant) {
        let pace = MinResponseDataRate {
            grace: GRACE,
            min_rate: RATE,
        };
        (DataRateMonitor::new(pace), Instant::now())
    }

    #[test]
    fn an_answer_that_is_not_taken_has_the_grace_and_no_more() {
        let (mut clock, start) = clock();
        clock.ready(start);
        assert!(!clock.is_overdue(start + GRACE - NANO));
        assert!(clock.is_overdue(start + GRACE));
        assert!(clock.is_overdue(start + GRACE + NANO));
    }

    #[test]
    fn time_in_which_nothing_is_ready_counts_for_nothing() {
        let (mut clock, start) = clock();
        let later = start + 1000 * GRACE;
        assert!(!clock.is_overdue(later));
        clock.ready(later);
        clock.took_all();
        assert!(!clock.is_overdue(later + 1000 * GRACE));
        // The grace period begins anew with what is ready next.
        let again = later + 2000 * GRACE;
        clock.ready(again);
        assert!(!clock.is_overdue(again + GRACE - NANO));
        assert!(clock.is_overdue(again + GRACE));
    }

    #[test]
    fn what_is_ready_already_does_not_begin_anew_when_more_is() {
        let (mut clock, start) = clock();
        clock.ready(start);
        clock.ready(start + GRACE - NANO);
        assert!(clock.is_overdue(start + GRACE));
    }

    /// Takes `bytes` each second for ten times the grace period, and reports whether that is fast
    /// enough.
    fn holds(bytes: usize) -> bool {
        let (mut clock, mut now) = clock();
        clock.ready(now);
        for _ in 0..10 * GRACE.as_secs() {
            now += SECOND;
            if clock.is_overdue(now) {
                return false;
            }
            clock.took(bytes, now);
        }
        true
    }

    #[test]
    fn an_average_at_the_rate_or_above_it_holds_and_one_below_does_not() {
        assert!(holds(1001));
        assert!(holds(1000));
        // A tenth of each second is lost: the grace lasts 300 of them.
        assert!(!holds(899));
        assert!(!holds(1));
    }

    #[test]
    fn the_grace_is_used_up_by_what_the_rate_is_missed_by() {
        let (mut clock, start) = clock();
        clock.ready(start);
        // After 20 s, ten seconds of the grace period are left, and 5,000 bytes earn five more.
        clock.took(5000, start + 20 * SECOND);
        let end = start + 35 * SECOND;
        assert!(!clock.is_overdue(end - NANO));
        assert!(clock.is_overdue(end));
    }

    #[test]
    fn no_haste_before_earns_more_than_the_grace() {
        let (mut clock, start) = clock();
        clock.ready(start);
        clock.took(usize::MAX, start);
        assert!(!clock.is_overdue(start + GRACE - NANO));
        assert!(clock.is_overdue(start + GRACE));
    }

    proptest! {
        /// Takes bytes at any times, in one piece and in several, and computes in whole nanoseconds
        /// when the answer is overdue.
        #[test]
        fn it_is_known_to_the_nanosecond_when_an_answer_is_overdue(
            takes in prop::collection::vec((0_u64..40_000_000_000, 0_usize..20_000, 1_usize..5), 0..30),
        ) {
            let (mut whole, mut now) = clock();
            let (mut pieces, _) = clock();
            whole.ready(now);
            pieces.ready(now);
            let mut left = GRACE;
            for (wait, bytes, count) in takes {
                let wait = Duration::from_nanos(wait);
                // To look changes nothing, and to be ready again does not either.
                prop_assert_eq!(whole.is_overdue(now + wait), wait >= left);
                pieces.ready(now + wait);
                now += wait;
                whole.took(bytes, now);
                for _ in 0..count {
                    pieces.took(bytes / count, now);
                }
                pieces.took(bytes % count, now);
                // At a thousand bytes a second, each byte earns a millisecond.
                let earned = Duration::from_millis(bytes as u64);
                left = (left.saturating_sub(wait) + earned).min(GRACE);
                for clock in [&whole, &pieces] {
                    prop_assert_eq!(clock.is_overdue(now + left), true);
                    prop_assert_eq!(clock.is_overdue(now), left.is_zero());
                    if !left.is_zero() {
                        prop_assert_eq!(clock.is_overdue(now + left - NANO), false);
                    }
                }
            }
        }
    }
}
