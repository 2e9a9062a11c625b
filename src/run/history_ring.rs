//! A ring buffer that bounds the history of runs by count, bytes and age: a new entry takes the
//! place of the oldest. Entries are numbered without gaps, in the order in which they came. A
//! number never comes back, so whoever kept one finds its entry, or learns that it is gone, without
//! a search.
//!
//! The memory grows in steps up to what the bounds allow, is touched only as it is filled, and is
//! then used again.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

/// The memory grows by at least this many entries, where the bounds leave room for them.
const STEP: usize = 64;

/// How much a ring may hold. The oldest entry goes when any of these is exceeded.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingBounds {
    /// The most entries at once.
    pub(super) places: usize,
    /// The most bytes that the weights of all entries may add up to.
    pub(super) bytes: usize,
    /// How long an entry may stay.
    pub(super) age: Duration,
}

/// A ring of numbered entries, each with its weight in bytes and the time at which it came.
#[derive(Debug)]
pub(super) struct HistoryRing<T> {
    /// The entries, the oldest first.
    places: VecDeque<RingEntry<T>>,
    /// The number of the oldest entry.
    first: u64,
    bytes: usize,
}

#[derive(Debug)]
struct RingEntry<T> {
    value: T,
    at: Instant,
    weight: usize,
}

impl<T> Default for HistoryRing<T> {
    fn default() -> Self {
        Self {
            places: VecDeque::new(),
            first: 0,
            bytes: 0,
        }
    }
}

impl<T> HistoryRing<T> {
    /// Appends an entry, and returns its number. `most` is the bound on the number of entries.
    /// Whatever is then beyond the bounds stays until [`Self::pop_beyond`] takes it.
    pub(super) fn push(&mut self, value: T, at: Instant, weight: usize, most: usize) -> u64 {
        let length = self.places.len();
        if length == self.places.capacity() {
            // The memory is doubled, but never to more than can be filled: one entry beyond the
            // bound, before the oldest goes.
            let room = most.saturating_add(1).saturating_sub(length);
            self.places.reserve_exact(length.max(STEP).min(room).max(1));
        }
        self.places.push_back(RingEntry { value, at, weight });
        self.bytes += weight;
        self.first + length as u64
    }

    /// Returns an entry and its weight; `None` where it is gone or has not come yet.
    pub(super) fn get(&self, number: u64) -> Option<(&T, usize)> {
        let entry = self.places.get(self.position(number)?)?;
        Some((&entry.value, entry.weight))
    }

    /// Returns an entry for change; `None` where it is gone or has not come yet.
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let position = self.position(number)?;
        let entry = self.places.get_mut(position)?;
        Some(&mut entry.value)
    }

    /// Removes and returns the oldest entry where the ring holds more at `now` than `bounds` allow;
    /// `None` where everything fits.
    pub(super) fn pop_beyond(&mut self, bounds: RingBounds, now: Instant) -> Option<T> {
        let oldest = self.places.front()?;
        let fits = self.places.len() <= bounds.places
            && self.bytes <= bounds.bytes
            && now.saturating_duration_since(oldest.at) <= bounds.age;
        if fits {
            return None;
        }
        let entry = self.places.pop_front()?;
        self.first += 1;
        self.bytes -= entry.weight;
        Some(entry.value)
    }

    /// Frees the memory of a ring that is empty.
    pub(super) fn shrink(&mut self) {
        if self.places.is_empty() {
            self.places = VecDeque::new();
        }
    }

    /// Returns how many entries the ring holds.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Returns the sum of all entries' weights in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the numbers of the entries, the oldest first.
    pub(super) fn numbers(&self) -> Range<u64> {
        self.first..self.first + self.places.len() as u64
    }

    /// Iterates over entries and their numbers, the oldest first, without those at the start that
    /// are `before`. Where one entry is `before`, so must be all older ones, because a binary
    /// search finds the start.
    pub(super) fn after(&self, before: impl Fn(&T) -> bool) -> impl Iterator<Item = (u64, &T)> {
        let start = self.places.partition_point(|entry| before(&entry.value));
        let values = self.places.range(start..).map(|entry| &entry.value);
        (self.first + start as u64..).zip(values)
    }

    fn position(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const AGE: Duration = Duration::from_secs(10);

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..50_usize).prop_map(Step::Push),
            1 => (0..8_u64).prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn it_holds_the_newest_within_its_bounds(
            steps in steps(), places in 0..20_usize, bytes in 0..400_usize,
        ) {
            let bounds = RingBounds { places, bytes, age: AGE };
            let mut ring = HistoryRing::default();
            let mut model: BTreeMap<u64, (Instant, usize)> = BTreeMap::new();
            let (mut now, mut next, mut most_capacity) = (Instant::now(), 0, 0);
            for step in steps {
                match step {
                    Step::Push(weight) => {
                        prop_assert_eq!(ring.push(next, now, weight, places), next);
                        model.insert(next, (now, weight));
                        next += 1;
                    }
                    Step::Wait(seconds) => now += Duration::from_secs(seconds),
                }
                while let Some(gone) = ring.pop_beyond(bounds, now) {
                    let (oldest, _) = model.pop_first().unwrap();
                    prop_assert_eq!(gone, oldest);
                }
                most_capacity = most_capacity.max(ring.places.capacity());
                let weights: usize = model.values().map(|(_, weight)| weight).sum();
                prop_assert_eq!((ring.len(), ring.bytes()), (model.len(), weights));
                prop_assert!(ring.len() <= places && weights <= bytes);
                let held: Vec<u64> = ring.numbers().collect();
                prop_assert_eq!(&held, &model.keys().copied().collect::<Vec<_>>());
                let mut all = model.iter();
                let kept = all.all(|(it, (at, weight))| {
                    ring.get(*it) == Some((it, *weight)) && now - *at <= AGE
                });
                prop_assert!(kept);
                let middle = next / 2;
                let later: Vec<u64> = ring.after(|it| *it < middle).map(|(_, it)| *it).collect();
                let expected: Vec<u64> = held.iter().copied().filter(|it| *it >= middle).collect();
                prop_assert_eq!(later, expected);
                prop_assert_eq!(ring.get(next), None);
            }
            prop_assert!(most_capacity <= places + 1, "{most_capacity}");
        }
    }

    #[test]
    fn what_comes_takes_the_place_of_the_oldest() {
        let bounds = RingBounds {
            places: 100,
            bytes: usize::MAX,
            age: AGE,
        };
        let mut ring = HistoryRing::default();
        let now = Instant::now();
        let mut addresses = std::collections::BTreeSet::new();
        for value in 0..1000_u64 {
            let number = ring.push(value, now, 1, bounds.places);
            while ring.pop_beyond(bounds, now).is_some() {}
            assert!(ring.places.capacity() <= 101);
            if value >= 200 {
                addresses.insert(std::ptr::from_ref(ring.get(number).unwrap().0).addr());
            }
        }
        assert_eq!(addresses.len(), 101, "the memory is used again");
    }

    #[test]
    fn a_ring_that_is_not_used_holds_no_memory() {
        let mut ring: HistoryRing<u64> = HistoryRing::default();
        assert_eq!(ring.places.capacity(), 0);
        let now = Instant::now();
        ring.push(1, now, 1, 10_000_000);
        assert!(ring.places.capacity() <= STEP);
        ring.shrink();
        assert_eq!(ring.len(), 1);
        let nothing = RingBounds {
            places: 0,
            bytes: 0,
            age: AGE,
        };
        assert_eq!(ring.pop_beyond(nothing, now), Some(1));
        ring.shrink();
        assert_eq!(ring.places.capacity(), 0);
        assert_eq!(ring.push(2, now, 1, 1), 1, "numbers go on");
    }
}
