//! A bounded history: a ring of places that are numbered without gaps, in the order in which they were filled.
//!
//! The memory grows by steps up to what the bounds let it hold, is touched as it is filled, and is then used again: what
//! comes takes the place of the oldest. The number of a place is a counter that never comes back, so whoever kept one finds
//! what it filled there, or learns that it is gone, without a search.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Places that the ring grows by at the least.
const STEP: usize = 64;

/// How much a ring may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Places.
    pub(super) places: usize,
    /// The weights of all together.
    pub(super) bytes: usize,
    /// How long each stays.
    pub(super) age: Duration,
}

/// The ring.
#[derive(Debug)]
pub(super) struct Ring<T> {
    /// The oldest first.
    places: VecDeque<Entry<T>>,
    /// The number of the oldest.
    first: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry<T> {
    value: T,
    at: Instant,
    weight: usize,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self {
            places: VecDeque::new(),
            first: 0,
            bytes: 0,
        }
    }
}

impl<T> Ring<T> {
    /// Fills the next place, and returns its number. Whatever is then beyond the bounds, of which `most` is that of the
    /// places, is for [`Self::pop_beyond`] to take.
    pub(super) fn push(&mut self, value: T, at: Instant, weight: usize, most: usize) -> u64 {
        let length = self.places.len();
        if length == self.places.capacity() {
            // Doubled, but never to more than can be filled: one beyond the bound, before the oldest goes.
            let room = most.saturating_add(1).saturating_sub(length);
            self.places.reserve_exact(length.max(STEP).min(room).max(1));
        }
        self.places.push_back(Entry { value, at, weight });
        self.bytes += weight;
        self.first + length as u64
    }

    /// What is at a place, with its weight.
    pub(super) fn get(&self, number: u64) -> Option<(&T, usize)> {
        let entry = self.places.get(self.position(number)?)?;
        Some((&entry.value, entry.weight))
    }

    /// What is at a place, to be changed.
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let position = self.position(number)?;
        let entry = self.places.get_mut(position)?;
        Some(&mut entry.value)
    }

    /// Takes the oldest where there is more than `bounds` let it hold `now`.
    pub(super) fn pop_beyond(&mut self, bounds: Bounds, now: Instant) -> Option<T> {
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

    /// Gives the memory back of a ring that is empty.
    pub(super) fn shrink(&mut self) {
        if self.places.is_empty() {
            self.places = VecDeque::new();
        }
    }

    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Their weights together.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The numbers of the places, the oldest first.
    pub(super) fn numbers(&self) -> Range<u64> {
        self.first..self.first + self.places.len() as u64
    }

    /// What is there with the numbers of the places, the oldest first, without those at the start that are `before`: where
    /// one is, so are all that are older.
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
            let bounds = Bounds { places, bytes, age: AGE };
            let mut ring = Ring::default();
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
        let bounds = Bounds {
            places: 100,
            bytes: usize::MAX,
            age: AGE,
        };
        let mut ring = Ring::default();
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
        let mut ring: Ring<u64> = Ring::default();
        assert_eq!(ring.places.capacity(), 0);
        let now = Instant::now();
        ring.push(1, now, 1, 10_000_000);
        assert!(ring.places.capacity() <= STEP);
        ring.shrink();
        assert_eq!(ring.len(), 1);
        let nothing = Bounds {
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
