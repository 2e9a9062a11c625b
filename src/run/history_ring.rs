//! A ring buffer that bounds the history of runs by count, bytes and age: a new entry takes the
//! place of the oldest. Entries are numbered in the order in which they came. A number never comes
//! back, so whoever kept one finds its entry, or learns that it is gone: at once while nothing was
//! removed from the middle, and by a binary search otherwise.
//!
//! The memory grows in steps up to what the bounds allow, is touched only as it is filled, and is
//! then used again. An entry that is removed from the middle leaves an empty place behind. Once
//! empty places are the majority, the others move together into smaller memory. So they cost at
//! most as much memory as the entries do, and a removal costs little on average.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The memory grows by at least this many entries, where the bounds leave room for them. As many
/// empty places are always tolerated.
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
    /// The entries and the empty places between them, the oldest first. Neither the first nor the
    /// last place is empty.
    places: VecDeque<RingEntry<T>>,
    /// The number that the next entry gets.
    next: u64,
    /// How many of the places are empty.
    empty: usize,
    bytes: usize,
}

#[derive(Debug)]
struct RingEntry<T> {
    number: u64,
    /// The order that was given with the entry, which is larger than that of the entry before.
    order: u64,
    /// `None` where the entry was removed.
    value: Option<T>,
    at: Instant,
    weight: usize,
}

impl<T> Default for HistoryRing<T> {
    fn default() -> Self {
        Self {
            places: VecDeque::new(),
            next: 0,
            empty: 0,
            bytes: 0,
        }
    }
}

impl<T> HistoryRing<T> {
    /// Appends an entry, and returns its number. `order` is larger than that of any entry before,
    /// and `most` is the bound on the number of entries. Whatever is then beyond the bounds stays
    /// until [`Self::pop_beyond`] takes it.
    pub(super) fn push(
        &mut self,
        value: T,
        order: u64,
        (at, weight): (Instant, usize),
        most: usize,
    ) -> u64 {
        let length = self.places.len();
        if length == self.places.capacity() {
            // The memory is doubled, but never to more than can be filled: one entry beyond the
            // bound, before the oldest goes.
            let room = most.saturating_add(1).saturating_sub(self.len());
            self.places.reserve_exact(length.max(STEP).min(room).max(1));
        }
        let number = self.next;
        self.places.push_back(RingEntry {
            number,
            order,
            value: Some(value),
            at,
            weight,
        });
        self.next += 1;
        self.bytes += weight;
        number
    }

    /// Returns an entry and its weight; `None` where it is gone or has not come yet.
    pub(super) fn get(&self, number: u64) -> Option<(&T, usize)> {
        let entry = self.places.get(self.position(number)?)?;
        Some((entry.value.as_ref()?, entry.weight))
    }

    /// Returns an entry for change; `None` where it is gone or has not come yet.
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let position = self.position(number)?;
        self.places.get_mut(position)?.value.as_mut()
    }

    /// Returns the oldest entry whose number is `from` or larger, with its number, for change.
    pub(super) fn first_mut(&mut self, from: u64) -> Option<(u64, &mut T)> {
        let start = self.lower_bound(from);
        let mut rest = self.places.range_mut(start..);
        rest.find_map(|entry| Some((entry.number, entry.value.as_mut()?)))
    }

    /// Removes an entry and returns it; `None` where it is gone or has not come yet. Its weight is
    /// given back at once.
    pub(super) fn remove(&mut self, number: u64) -> Option<T> {
        let position = self.position(number)?;
        let entry = self.places.get_mut(position)?;
        let value = entry.value.take()?;
        self.bytes -= std::mem::take(&mut entry.weight);
        self.empty += 1;
        self.trim_ends();
        if self.empty > STEP && self.empty > self.places.len() / 2 {
            let mut entries = VecDeque::with_capacity(self.len() + STEP);
            let places = std::mem::take(&mut self.places);
            entries.extend(places.into_iter().filter(|entry| entry.value.is_some()));
            self.places = entries;
            self.empty = 0;
        }
        Some(value)
    }

    /// Removes and returns the oldest entry where the ring holds more at `now` than `bounds` allow;
    /// `None` where everything fits.
    pub(super) fn pop_beyond(&mut self, bounds: RingBounds, now: Instant) -> Option<T> {
        let oldest = self.places.front()?;
        let fits = self.len() <= bounds.places
            && self.bytes <= bounds.bytes
            && now.saturating_duration_since(oldest.at) <= bounds.age;
        if fits {
            return None;
        }
        let entry = self.places.pop_front()?;
        self.bytes -= entry.weight;
        self.trim_ends();
        entry.value
    }

    /// Frees the memory of a ring that is empty.
    pub(super) fn shrink(&mut self) {
        if self.places.is_empty() {
            self.places = VecDeque::new();
        }
    }

    /// Returns how many entries the ring holds.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.empty
    }

    /// Returns the sum of all entries' weights in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Iterates over entries with their numbers and orders, the oldest first, from the order `from`
    /// on. A binary search finds the start.
    pub(super) fn after(&self, from: u64) -> impl Iterator<Item = (u64, u64, &T)> {
        let start = self.places.partition_point(|entry| entry.order < from);
        let rest = self.places.range(start..);
        rest.filter_map(|entry| Some((entry.number, entry.order, entry.value.as_ref()?)))
    }

    /// Drops the empty places at both ends.
    fn trim_ends(&mut self) {
        while self
            .places
            .pop_front_if(|entry| entry.value.is_none())
            .or_else(|| self.places.pop_back_if(|entry| entry.value.is_none()))
            .is_some()
        {
            self.empty -= 1;
        }
    }

    /// Returns the position of the place with this number; `None` where there is none.
    fn position(&self, number: u64) -> Option<usize> {
        let position = self.lower_bound(number);
        let entry = self.places.get(position)?;
        (entry.number == number).then_some(position)
    }

    /// Returns the position of the first place whose number is `from` or larger.
    fn lower_bound(&self, from: u64) -> usize {
        let Some(first) = self.places.front() else {
            return 0;
        };
        // This is the position where no place was given up between here and the oldest entry.
        let guess = usize::try_from(from.saturating_sub(first.number)).unwrap_or(usize::MAX);
        match self.places.get(guess) {
            Some(entry) if entry.number == from => guess,
            Some(_) | None => self.places.partition_point(|entry| entry.number < from),
        }
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
        /// Removes the entry of a number, which may be gone.
        Remove(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..50_usize).prop_map(Step::Push),
            1 => (0..8_u64).prop_map(Step::Wait),
            3 => (0..400_u64).prop_map(Step::Remove),
        ];
        prop::collection::vec(step, 0..400)
    }

    /// An order that has gaps, as that of changes has.
    fn order(number: u64) -> u64 {
        2 * number + 1
    }

    /// Checks that the ring holds what the model does, and finds all of it.
    fn check(ring: &HistoryRing<u64>, model: &BTreeMap<u64, (Instant, usize)>, next: u64) {
        let weights: usize = model.values().map(|(_, weight)| weight).sum();
        assert_eq!((ring.len(), ring.bytes()), (model.len(), weights));
        assert!(ring.empty <= STEP.max(ring.places.len() / 2));
        for it in 0..=next {
            let weight = model.get(&it).map(|(_, weight)| *weight);
            assert_eq!(ring.get(it).map(|(_, weight)| weight), weight, "{it}");
        }
        for from in [0, next / 2, next] {
            let later: Vec<(u64, u64, u64)> = ring
                .after(order(from))
                .map(|(number, order, it)| (number, order, *it))
                .collect();
            let expected = model.range(from..).map(|(it, _)| (*it, order(*it), *it));
            assert_eq!(later, expected.collect::<Vec<_>>());
        }
    }

    proptest! {
        #[test]
        fn it_holds_the_newest_within_its_bounds(
            steps in steps(), places in 0..20_usize, bytes in 0..400_usize,
        ) {
            let bounds = RingBounds { places, bytes, age: AGE };
            let mut ring = HistoryRing::default();
            let mut model: BTreeMap<u64, (Instant, usize)> = BTreeMap::new();
            let (mut now, mut next, mut removed) = (Instant::now(), 0, 0);
            for step in steps {
                match step {
                    Step::Push(weight) => {
                        let number = ring.push(next, order(next), (now, weight), places);
                        prop_assert_eq!(number, next);
                        model.insert(next, (now, weight));
                        next += 1;
                    }
                    Step::Wait(seconds) => now += Duration::from_secs(seconds),
                    Step::Remove(number) => {
                        let expected = model.remove(&number).map(|_| number);
                        prop_assert_eq!(ring.remove(number), expected);
                        removed += usize::from(expected.is_some());
                    }
                }
                while let Some(gone) = ring.pop_beyond(bounds, now) {
                    let (oldest, _) = model.pop_first().unwrap();
                    prop_assert_eq!(gone, oldest);
                }
                let fit = model.values().all(|(at, _)| now - *at <= AGE);
                prop_assert!(fit && ring.len() <= places && ring.bytes() <= bytes);
                check(&ring, &model, next);
                let first = model.range(next / 2..).next().map(|(it, _)| (*it, *it));
                let found = ring.first_mut(next / 2).map(|(number, it)| (number, *it));
                prop_assert_eq!(found, first);
            }
            let most = places + 1 + removed.min(STEP);
            prop_assert!(ring.places.capacity() <= most, "{}", ring.places.capacity());
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
            let number = ring.push(value, value, (now, 1), bounds.places);
            while ring.pop_beyond(bounds, now).is_some() {}
            assert!(ring.places.capacity() <= 101);
            if value >= 200 {
                addresses.insert(std::ptr::from_ref(ring.get(number).unwrap().0).addr());
            }
        }
        assert_eq!(addresses.len(), 101, "the memory is used again");
    }

    /// The oldest entry stays, and what comes behind it is removed once more has come: no empty
    /// place may be left for each of them.
    #[test]
    fn what_comes_and_is_removed_leaves_no_memory_behind() {
        const MOST: usize = 1000;
        const LAST: u64 = 100_000;
        let now = Instant::now();
        let mut ring = HistoryRing::default();
        ring.push(0, 0, (now, 7), MOST);
        let mut kept = vec![0];
        for value in 1..=LAST {
            ring.push(value, value, (now, 1), MOST);
            let before = value - 1;
            if !before.is_multiple_of(1000) {
                assert_eq!(ring.remove(before), Some(before));
            } else if before > 0 {
                kept.push(before);
            }
            assert!(ring.places.len() <= 2 * (kept.len() + 1) + STEP + 1);
            assert!(ring.places.capacity() <= MOST + 1 + STEP);
        }
        assert_eq!(ring.remove(LAST), Some(LAST));
        assert_eq!((ring.len(), ring.bytes()), (kept.len(), kept.len() + 6));
        // What is removed from the middle, in an order of its own.
        for number in kept.iter().rev().step_by(2) {
            assert_eq!(ring.remove(*number), Some(*number));
            assert_eq!(ring.remove(*number), None, "only once");
        }
        let left: Vec<u64> = ring.after(0).map(|(number, _, _)| number).collect();
        assert_eq!(left.len(), kept.len() / 2);
        for number in left {
            assert_eq!(ring.remove(number), Some(number));
        }
        assert_eq!((ring.len(), ring.bytes(), ring.empty), (0, 0, 0));
        assert!(ring.places.is_empty());
    }

    #[test]
    fn many_removals_give_memory_back() {
        let now = Instant::now();
        let mut ring = HistoryRing::default();
        for value in 0..10_000_u64 {
            ring.push(value, value, (now, 1), 10_000);
        }
        assert!(ring.places.capacity() >= 10_000);
        for value in (1..10_000_u64).filter(|it| !it.is_multiple_of(100)) {
            assert_eq!(ring.remove(value), Some(value));
        }
        assert_eq!(ring.len(), 100);
        assert!(ring.places.capacity() <= 1000, "{}", ring.places.capacity());
    }

    #[test]
    fn a_ring_that_is_not_used_holds_no_memory() {
        let mut ring: HistoryRing<u64> = HistoryRing::default();
        assert_eq!(ring.places.capacity(), 0);
        let now = Instant::now();
        ring.push(1, 1, (now, 1), 10_000_000);
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
        assert_eq!(ring.push(2, 2, (now, 1), 1), 1, "numbers go on");
    }
}
