//! A histogram of durations with fixed buckets, which is written without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of the buckets, in microseconds. A last bucket without a bound follows. Each
/// bound is two to two and a half times the one before, from what a warm run takes to the longest
/// that a run may take by default.
const BOUNDS_US: [u64; 20] = [
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];
/// The number of buckets.
const BUCKETS: usize = BOUNDS_US.len() + 1;
/// The numbers that a snapshot consists of: its buckets and its sum.
pub(super) const SNAPSHOT_NUMBERS: usize = BUCKETS + 1;

/// A histogram of durations. Several threads add to it at once.
#[derive(Debug, Default)]
pub struct LatencyHistogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl LatencyHistogram {
    /// Adds one duration to its bucket and to the sum.
    pub fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| bound * 1_000 < nanos);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Returns what was added so far. A duration that is added at the same moment may be missing
    /// from the sum.
    pub fn snapshot(&self) -> LatencySnapshot {
        let mut snapshot = LatencySnapshot::default();
        for (count, bucket) in snapshot.buckets.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Ordering::Relaxed);
        }
        snapshot.sum_ns = self.sum_ns.load(Ordering::Relaxed);
        snapshot
    }
}

/// The durations that a histogram held at one moment, or that were added between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencySnapshot {
    buckets: [u64; BUCKETS],
    sum_ns: u64,
}

impl LatencySnapshot {
    /// Returns how many durations there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Returns the sum of the durations, to the nanosecond.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// Returns the sum of the durations, in seconds.
    #[expect(
        clippy::cast_precision_loss,
        reason = "the sum is exact to 2^53 nanoseconds, which is a hundred days"
    )]
    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// Copies the numbers of the snapshot to `to`: the buckets, then the sum.
    pub(super) fn copy_numbers(&self, to: &mut [u64; SNAPSHOT_NUMBERS]) {
        to[..BUCKETS].copy_from_slice(&self.buckets);
        to[BUCKETS] = self.sum_ns;
    }

    /// Creates the snapshot that consists of `numbers`, in the order of [`Self::copy_numbers`].
    pub(super) fn of_numbers(numbers: &[u64; SNAPSHOT_NUMBERS]) -> Self {
        let mut snapshot = Self::default();
        snapshot.buckets.copy_from_slice(&numbers[..BUCKETS]);
        snapshot.sum_ns = numbers[BUCKETS];
        snapshot
    }

    /// Adds the durations of another snapshot.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *count = count.saturating_add(*more);
        }
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }

    /// Returns the durations that were added since `earlier`, a snapshot of the same histogram.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut added = *self;
        for (count, before) in added.buckets.iter_mut().zip(&earlier.buckets) {
            *count = count.saturating_sub(*before);
        }
        added.sum_ns = added.sum_ns.saturating_sub(earlier.sum_ns);
        added
    }

    /// Estimates the duration below which the part `quantile` of all durations is, from 0 to 1, by
    /// linear interpolation within a bucket. Returns `None` where there are no durations. What is
    /// above the highest bound is estimated as that bound.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate, of a number that is not negative and below the highest bound"
    )]
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (quantile * count as f64).clamp(0.0, count as f64);
        let (mut below, mut lower) = (0.0, 0);
        for (bucket, upper) in self.buckets.iter().zip(BOUNDS_US) {
            let within = *bucket as f64;
            if *bucket > 0 && below + within >= rank {
                let part = ((rank - below) / within).clamp(0.0, 1.0);
                let micros = lower as f64 + (upper - lower) as f64 * part;
                return Some(Duration::from_nanos((micros * 1_000.0) as u64));
            }
            below += within;
            lower = upper;
        }
        Some(Duration::from_micros(lower))
    }

    /// Returns each bucket's upper bound in seconds, the last being infinite, with its own count.
    #[expect(
        clippy::cast_precision_loss,
        reason = "the bounds are far below 2^53 microseconds"
    )]
    pub(super) fn buckets(&self) -> [(f64, u64); BUCKETS] {
        std::array::from_fn(|i| {
            let bound = BOUNDS_US.get(i).map(|bound| *bound as f64 / 1e6);
            (bound.unwrap_or(f64::INFINITY), self.buckets[i])
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(micros: &[u64]) -> LatencySnapshot {
        let histogram = LatencyHistogram::default();
        for micros in micros {
            histogram.observe(Duration::from_micros(*micros));
        }
        histogram.snapshot()
    }

    #[test]
    fn a_duration_at_a_bound_is_in_the_bucket_below_it() {
        let at = |snapshot: LatencySnapshot| {
            let buckets = snapshot.buckets();
            buckets.iter().position(|(_, count)| *count == 1)
        };
        assert_eq!(at(of(&[0])), Some(0));
        assert_eq!(at(of(&[50])), Some(0));
        assert_eq!(at(of(&[51])), Some(1));
        assert_eq!(at(of(&[300_000_000])), Some(BUCKETS - 2));
        assert_eq!(at(of(&[300_000_001])), Some(BUCKETS - 1));
        let longest = LatencyHistogram::default();
        longest.observe(Duration::MAX);
        assert_eq!(longest.snapshot().count(), 1);
    }

    #[test]
    fn quantiles_are_interpolated_within_their_bucket() {
        assert_eq!(of(&[]).quantile(0.5), None);
        // Ten durations between 500 and 1,000 microseconds.
        let same = of(&[700; 10]);
        assert_eq!(same.quantile(0.5), Some(Duration::from_micros(750)));
        assert_eq!(same.quantile(1.0), Some(Duration::from_micros(1_000)));
        assert_eq!(same.quantile(0.0), Some(Duration::from_micros(500)));
        let beyond = of(&[400_000_000]);
        assert_eq!(beyond.quantile(0.5), Some(Duration::from_secs(300)));
    }

    proptest! {
        #[test]
        fn quantiles_never_fall_and_are_near_the_true_ones(
            mut micros in prop::collection::vec(1_u64..400_000_000, 1..200),
            quantile in 0.01_f64..1.0,
        ) {
            let snapshot = of(&micros);
            micros.sort_unstable();
            prop_assert_eq!(snapshot.count(), micros.len() as u64);
            let sum: u64 = micros.iter().sum();
            prop_assert!((snapshot.sum_seconds() - sum as f64 / 1e6).abs() < 1e-3);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a part of a small count"
            )]
            let rank = (quantile * micros.len() as f64).ceil() as usize;
            let exact = micros[rank.max(1) - 1].min(300_000_000);
            let estimate = snapshot.quantile(quantile).unwrap().as_micros();
            let estimate = u64::try_from(estimate).unwrap();
            // Both are in the same bucket.
            let bucket = |micros: u64| BOUNDS_US.partition_point(|bound| *bound < micros);
            prop_assert!(bucket(exact).abs_diff(bucket(estimate)) <= 1, "{exact} {estimate}");
            prop_assert!(snapshot.quantile(quantile / 2.0).unwrap() <= snapshot.quantile(quantile).unwrap());
        }

        #[test]
        fn what_was_added_between_two_snapshots_is_their_difference(
            before in prop::collection::vec(0_u64..400_000_000, 0..50),
            after in prop::collection::vec(0_u64..400_000_000, 0..50),
        ) {
            let both: Vec<u64> = before.iter().chain(&after).copied().collect();
            prop_assert_eq!(of(&both).since(&of(&before)), of(&after));
            let mut merged = of(&before);
            merged.merge(&of(&after));
            prop_assert_eq!(merged, of(&both));
        }
    }
}
