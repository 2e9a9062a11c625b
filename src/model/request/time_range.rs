//! The range of time by which runs are selected, and what it is for their ids.

use super::RunId;

/// A range of the times at which runs were asked for: from its start on, and before its end. Both
/// are in whole milliseconds since 1970, which is what the id of a run has of its time, so that a
/// range of time is exactly a range of ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeRange {
    since: u64,
    /// `None`: the range has no end.
    until: Option<u64>,
}

impl TimeRange {
    /// Creates the range from `since` on and before `until`, in milliseconds since 1970; `None`
    /// stands for no bound.
    pub fn new(since: Option<u64>, until: Option<u64>) -> Self {
        Self {
            since: since.unwrap_or(0),
            until,
        }
    }

    /// Returns the smallest number that the id of a run in the range may have.
    pub fn first_number(&self) -> u128 {
        RunId::first_number_at(self.since)
    }

    /// Returns the number that the ids of all runs in the range are smaller than; `None` where the
    /// range has no end.
    pub fn end_number(&self) -> Option<u128> {
        self.until.map(RunId::first_number_at)
    }

    /// Returns the start and the end in milliseconds since 1970; `None` stands for no end.
    pub fn millis(&self) -> (u64, Option<u64>) {
        (self.since, self.until)
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
}
