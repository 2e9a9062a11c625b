//! What the runs of a tenant came to in a span of time, and its compact form.

use std::time::Duration;

use super::latency::SNAPSHOT_NUMBERS;
use super::{LatencySnapshot, RunSample};
use crate::model::outcome::Outcome;

/// The number of outcomes, whose counts come first.
const OUTCOMES: usize = Outcome::NAMES.len();
/// The place of the count of refusals.
const REFUSED: usize = OUTCOMES;
/// The place of the nanoseconds of processor time.
const CPU_NS: usize = REFUSED + 1;
/// The place of the first of the four latencies.
const LATENCIES: usize = CPU_NS + 1;
/// How many numbers there are in all.
const NUMBERS: usize = LATENCIES + 4 * SNAPSHOT_NUMBERS;

/// A latency of runs, in the order in which a tally has them.
#[derive(Clone, Copy, Debug)]
enum RunPhase {
    Wait,
    Compile,
    Instantiate,
    Run,
}

/// What the runs of a tenant came to, since the start or between two moments. It is one flat array,
/// so that sums, differences and the compact form treat all of it alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunTally([u64; NUMBERS]);

impl Default for RunTally {
    fn default() -> Self {
        Self([0; NUMBERS])
    }
}

impl From<&RunSample> for RunTally {
    fn from(sample: &RunSample) -> Self {
        let mut tally = Self::default();
        tally.0[..OUTCOMES].copy_from_slice(&sample.ended);
        tally.0[REFUSED] = sample.refused.iter().sum();
        tally.0[CPU_NS] = sample.cpu_ns;
        let latencies = [
            &sample.wait,
            &sample.compile,
            &sample.instantiate,
            &sample.run,
        ];
        let (places, _) = tally.0[LATENCIES..].as_chunks_mut();
        for (place, latency) in places.iter_mut().zip(latencies) {
            latency.copy_numbers(place);
        }
        tally
    }
}

impl RunTally {
    /// Returns the runs that ended, by outcome in the order of [`Outcome::NAMES`].
    pub fn ended(&self) -> [u64; OUTCOMES] {
        std::array::from_fn(|outcome| self.0[outcome])
    }

    /// Returns how many runs were refused, for whatever reason.
    pub fn refused(&self) -> u64 {
        self.0[REFUSED]
    }

    /// Returns the processor time of the runs that ended.
    pub fn cpu_time(&self) -> Duration {
        Duration::from_nanos(self.0[CPU_NS])
    }

    /// Returns how long runs waited for a slot.
    pub fn wait(&self) -> LatencySnapshot {
        self.latency(RunPhase::Wait)
    }

    /// Returns how long modules took to be compiled.
    pub fn compile(&self) -> LatencySnapshot {
        self.latency(RunPhase::Compile)
    }

    /// Returns how long modules took to be instantiated.
    pub fn instantiate(&self) -> LatencySnapshot {
        self.latency(RunPhase::Instantiate)
    }

    /// Returns how long guests took, from instantiation to their end.
    pub fn run(&self) -> LatencySnapshot {
        self.latency(RunPhase::Run)
    }

    fn latency(&self, phase: RunPhase) -> LatencySnapshot {
        let (latencies, _) = self.0[LATENCIES..].as_chunks();
        latencies
            .get(phase as usize)
            .map(LatencySnapshot::of_numbers)
            .unwrap_or_default()
    }

    /// Adds what another tally has.
    pub fn merge(&mut self, other: &Self) {
        for (number, more) in self.0.iter_mut().zip(&other.0) {
            *number = number.saturating_add(*more);
        }
    }

    /// Returns what was added since `earlier`, a tally of the same tenant.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut added = *self;
        for (number, before) in added.0.iter_mut().zip(&earlier.0) {
            *number = number.saturating_sub(*before);
        }
        added
    }

    /// Reports whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|number| *number == 0)
    }

    /// Appends the compact form to `to`: each number that is not zero, after its distance from the
    /// one before it. Most numbers are zero, so it is some 40 bytes for an ordinary interval.
    pub(super) fn pack(&self, to: &mut Vec<u8>) {
        let mut next = 0_usize;
        for (place, number) in self.0.iter().enumerate() {
            if *number > 0 {
                pack_number(to, (place - next) as u64);
                pack_number(to, *number);
                next = place + 1;
            }
        }
    }

    /// Reads the compact form from all of `from`.
    pub(super) fn unpack(from: &mut impl Iterator<Item = u8>) -> Self {
        let (mut tally, mut next) = (Self::default(), 0_usize);
        while let Some(distance) = unpack_number(from) {
            let place = usize::try_from(distance).map_or(NUMBERS, |it| next.saturating_add(it));
            let number = unpack_number(from).unwrap_or_default();
            if let Some(it) = tally.0.get_mut(place) {
                *it = number;
            }
            next = place.saturating_add(1);
        }
        tally
    }
}

/// Appends a number, seven bits to a byte and the low ones first. All bytes but the last have the
/// high bit set.
pub(super) fn pack_number(to: &mut Vec<u8>, mut number: u64) {
    const LOW: u64 = 0x7f;
    while number > LOW {
        to.push(u8::try_from(number & LOW).unwrap_or_default() | 0x80);
        number >>= 7;
    }
    to.push(u8::try_from(number).unwrap_or_default());
}

/// Reads a number that [`pack_number`] wrote; `None` where nothing is left.
pub(super) fn unpack_number(from: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = from.next()?;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tallies() -> impl Strategy<Value = RunTally> {
        let numbers = prop_oneof![3 => Just(0), 1 => 0..1_000_u64, 1 => any::<u64>()];
        prop::collection::vec(numbers, NUMBERS).prop_map(|numbers| {
            let mut tally = RunTally::default();
            tally.0.copy_from_slice(&numbers);
            tally
        })
    }

    proptest! {
        #[test]
        fn the_compact_form_is_exact(tally in tallies()) {
            let mut packed = Vec::new();
            tally.pack(&mut packed);
            prop_assert_eq!(RunTally::unpack(&mut packed.into_iter()), tally);
        }
    }

    #[test]
    fn a_tally_has_what_the_sample_has() {
        let histogram = crate::metrics::LatencyHistogram::default();
        let snapshots = [1, 2, 3, 4].map(|ms| {
            histogram.observe(Duration::from_millis(ms));
            histogram.snapshot()
        });
        let [wait, compile, instantiate, run] = snapshots;
        let sample = RunSample {
            ended: [1, 2, 3, 4, 5, 6, 7, 8],
            refused: vec![1, 0, 2],
            wait,
            compile,
            instantiate,
            run,
            cpu_ns: 9,
            ..RunSample::default()
        };
        let tally = RunTally::from(&sample);
        assert_eq!(tally.ended(), sample.ended);
        assert_eq!(tally.refused(), 3);
        assert_eq!(tally.cpu_time(), Duration::from_nanos(9));
        let latencies = [
            tally.wait(),
            tally.compile(),
            tally.instantiate(),
            tally.run(),
        ];
        assert_eq!(latencies, snapshots);
        assert!(!tally.is_empty() && tally.since(&tally).is_empty());
    }

    #[test]
    fn a_tally_of_nothing_takes_no_room() {
        let mut packed = Vec::new();
        RunTally::default().pack(&mut packed);
        assert!(packed.is_empty());
    }
}
