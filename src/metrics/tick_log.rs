//! The ticks of the last hour, at which all tenants' histories end an interval.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use super::run_history::oldest_tick;

/// One tick, and what the daemon had reserved then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// The number of the tick, from 1 on.
    pub number: u64,
    /// When it was, for people.
    pub time: SystemTime,
    /// The time since the tick before, or since the start.
    pub span: Duration,
    /// Bytes that runs and their answers reserved then.
    pub memory_reserved: u64,
}

/// The ticks of the last hour.
#[derive(Clone, Debug)]
pub struct TickLog {
    /// The ticks that are remembered, the oldest first.
    ticks: VecDeque<Tick>,
    last: u64,
    /// When the last tick was; before the first, the daemon's start.
    last_at: Instant,
}

impl TickLog {
    /// Creates the log of a daemon that starts at `started`.
    pub fn new(started: Instant) -> Self {
        Self {
            ticks: VecDeque::new(),
            last: 0,
            last_at: started,
        }
    }

    /// Returns the number of the last tick; 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Adds the next tick, which is at `now` and `time`.
    pub fn add(&mut self, now: Instant, time: SystemTime, memory_reserved: u64) {
        self.last += 1;
        self.ticks.push_back(Tick {
            number: self.last,
            time,
            span: now.saturating_duration_since(self.last_at),
            memory_reserved,
        });
        self.last_at = now;
        let oldest = oldest_tick(self.last);
        while self.ticks.front().is_some_and(|it| it.number < oldest) {
            self.ticks.pop_front();
        }
    }

    /// Returns the ticks from the number `from` on, the oldest first.
    pub fn ticks_from(&self, from: u64) -> impl Iterator<Item = &Tick> {
        self.ticks.iter().filter(move |it| it.number >= from)
    }

    /// Returns the time from the beginning of the interval that the tick `from` ended until `now`.
    pub fn span(&self, from: u64, now: Instant) -> Duration {
        let ended: Duration = self.ticks_from(from).map(|it| it.span).sum();
        ended + now.saturating_duration_since(self.last_at)
    }

    /// Returns the number of the first tick whose interval lies in the last `span`, in part at
    /// least, or in all of it that is remembered.
    pub fn first_within(&self, span: Duration, now: Instant) -> u64 {
        let mut covered = now.saturating_duration_since(self.last_at);
        let mut first = self.last + 1;
        for tick in self.ticks.iter().rev() {
            if covered >= span {
                break;
            }
            covered += tick.span;
            first = tick.number;
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A log of `n` ticks, each ten seconds after the one before, with the moment of the last.
    fn log(n: u32) -> (TickLog, Instant) {
        let started = Instant::now();
        let mut log = TickLog::new(started);
        for i in 1..=n {
            let after = SECOND * 10 * i;
            log.add(started + after, SystemTime::UNIX_EPOCH + after, i.into());
        }
        (log, started + SECOND * 10 * n)
    }

    #[test]
    fn a_log_without_ticks_spans_the_time_since_the_start() {
        let (log, now) = log(0);
        assert_eq!(log.last(), 0);
        assert_eq!(log.first_within(SECOND * 60, now + SECOND), 1);
        assert_eq!(log.span(1, now + SECOND), SECOND);
    }

    #[test]
    fn a_window_begins_where_a_sample_does_and_is_no_shorter_than_asked() {
        let (log, now) = log(100);
        for (late, asked, first, span) in [
            (0, 60, 95, 60),
            (3, 60, 95, 63),
            (9, 60, 95, 69),
            (3, 10, 100, 13),
            (3, 3, 101, 3),
            (0, 0, 101, 0),
            (0, 61, 94, 70),
        ] {
            let now = now + SECOND * late;
            assert_eq!(
                log.first_within(SECOND * asked, now),
                first,
                "{late} {asked}"
            );
            assert_eq!(log.span(first, now), SECOND * span, "{late} {asked}");
        }
        // More than there was is all that there was.
        assert_eq!(log.first_within(SECOND * 10_000, now), 1);
        assert_eq!(log.span(1, now), SECOND * 1_000);
    }

    #[test]
    fn an_hour_is_remembered_in_order() {
        for n in [359, 360, 361, 1_000] {
            let (log, now) = log(n);
            let numbers: Vec<u64> = log.ticks_from(0).map(|it| it.number).collect();
            let last = u64::from(n);
            let expected: Vec<u64> = (last.saturating_sub(359).max(1)..=last).collect();
            assert_eq!(numbers, expected);
            assert_eq!(log.last(), last);
            assert!(log.ticks_from(0).all(|it| it.span == SECOND * 10));
            assert!(log.ticks_from(0).all(|it| it.memory_reserved == it.number));
            assert_eq!(log.first_within(SECOND * 3_600, now), expected[0]);
        }
    }

    #[test]
    fn a_tick_that_came_late_has_a_longer_span() {
        let (mut log, now) = log(1);
        log.add(now + SECOND * 25, SystemTime::UNIX_EPOCH, 0);
        let spans: Vec<Duration> = log.ticks_from(1).map(|it| it.span).collect();
        assert_eq!(spans, [SECOND * 10, SECOND * 25]);
        // A clock that goes back is no negative span.
        log.add(now, SystemTime::UNIX_EPOCH, 0);
        assert_eq!(
            log.ticks_from(3).map(|it| it.span).sum::<Duration>(),
            Duration::ZERO
        );
    }
}
