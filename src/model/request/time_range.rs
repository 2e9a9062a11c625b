//! The range of time by which runs are selected, and what it is for their ids.

use std::time::{SystemTime, UNIX_EPOCH};

use super::RunId;

/// A range of the times at which runs were asked for: from its start on, and before its end. Both
/// are in whole milliseconds since 1970, which is what the id of a run has of its time, so that a
/// range of time is exactly a range of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange {
    /// The first millisecond.
    pub since: u64,
    /// The first millisecond after it; `u64::MAX`, which no id can have, stands for no end.
    pub until: u64,
}

impl Default for TimeRange {
    fn default() -> Self {
        Self::ALL
    }
}

/// Converts a time to milliseconds since 1970; earlier times are 0.
pub fn millis_since_epoch(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl TimeRange {
    /// All times.
    pub const ALL: Self = Self {
        since: 0,
        until: u64::MAX,
    };

    /// Creates the range from `since` on and before `until`, in milliseconds since 1970; `None`
    /// stands for no bound.
    pub fn new(since: Option<u64>, until: Option<u64>) -> Self {
        Self {
            since: since.unwrap_or(0),
            until: until.unwrap_or(u64::MAX),
        }
    }

    /// Creates the range of one millisecond.
    pub fn at(millis: u64) -> Self {
        Self {
            since: millis,
            until: millis.saturating_add(1),
        }
    }

    /// Leaves out what was asked for after that millisecond.
    #[must_use]
    pub fn up_to(self, millis: u64) -> Self {
        Self {
            until: self.until.min(millis.saturating_add(1)),
            ..self
        }
    }

    /// Reports whether the range has that millisecond.
    pub fn has(&self, millis: u64) -> bool {
        (self.since..self.until).contains(&millis)
    }

    /// Reports whether the range has any millisecond from `first` to `last`.
    pub fn overlaps(&self, first: u64, last: u64) -> bool {
        first < self.until && last >= self.since
    }

    /// Returns the first millisecond after the range; `None` where the range has no end.
    pub fn end(&self) -> Option<u64> {
        (self.until != u64::MAX).then_some(self.until)
    }

    /// Returns the smallest number that the id of a run in the range may have.
    pub fn first_number(&self) -> u128 {
        RunId::first_number_at(self.since)
    }

    /// Returns the number that the ids of all runs in the range are smaller than; `None` where the
    /// range has no end.
    pub fn end_number(&self) -> Option<u128> {
        self.end().map(RunId::first_number_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_time_is_a_range_of_ids() {
        let id = |millis: u128, rest: u128| RunId::of(millis << 80 | rest, "test").number();
        let last = (1 << 80) - 1;
        let range = TimeRange::new(Some(1000), Some(1002));
        let is_in = |number: u128| {
            number >= range.first_number() && range.end_number().is_none_or(|end| number < end)
        };
        for (number, expected) in [
            (id(999, last), false),
            (id(1000, 0), true),
            (id(1001, last), true),
            (id(1002, 0), false),
        ] {
            assert_eq!(is_in(number), expected, "{number:x}");
        }
        let all = TimeRange::default();
        assert_eq!((all.first_number(), all.end_number()), (0, None));
    }
    #[test]
    fn ranges_have_their_first_millisecond_and_not_the_one_after_their_last() {
        let range = TimeRange::new(Some(1000), None).up_to(1001);
        for (millis, expected) in [(999, false), (1000, true), (1001, true), (1002, false)] {
            assert_eq!(range.has(millis), expected, "{millis}");
            assert_eq!(range.overlaps(millis, millis), expected, "{millis}");
        }
        assert!(range.overlaps(0, 9999));
        assert_eq!(TimeRange::at(7), TimeRange::new(Some(7), Some(8)));
        assert!(TimeRange::ALL.has(u64::MAX - 1));
    }

    #[test]
    fn times_before_1970_are_its_beginning() {
        let before = UNIX_EPOCH - std::time::Duration::from_secs(1);
        assert_eq!(millis_since_epoch(before), 0);
    }
}
