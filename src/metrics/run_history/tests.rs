use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::metrics::latency::SNAPSHOT_NUMBERS;
use crate::metrics::{LatencyHistogram, LatencySnapshot, RunSample};

/// What `runs` runs come to, each of which took a millisecond and a slot at once.
fn total(runs: u64) -> RunTally {
    let histogram = LatencyHistogram::default();
    for _ in 0..runs {
        histogram.observe(Duration::from_millis(1));
    }
    RunTally::from(&RunSample {
        ended: [runs, 0, 0, 0, 0, 0, 0, 0],
        run: histogram.snapshot(),
        cpu_ns: runs * 1_000_000,
        ..RunSample::default()
    })
}

fn ticks(history: &RunHistory) -> Vec<u64> {
    history.intervals(0).map(|it| it.tick).collect()
}

/// The runs of all intervals from `from` on.
fn runs(history: &RunHistory, from: u64) -> u64 {
    let each = |it: RunInterval| it.tally.ended().iter().sum::<u64>();
    history.intervals(from).map(each).sum()
}

#[test]
fn intervals_are_in_order_and_have_what_was_counted_in_them() {
    let mut history = RunHistory::one_of(1);
    assert_eq!(history.intervals(0).count(), 0);
    assert_eq!(history.known_from(0), 1);
    for tick in 1..=5 {
        history.record(tick, &total(tick * tick), 2, 1);
    }
    let mut before = 0;
    for (interval, tick) in history.intervals(0).zip(1..=5) {
        let added = total(tick * tick).since(&total(before));
        before = tick * tick;
        let expected = RunInterval {
            tick,
            in_flight: 2,
            queued: 1,
            tally: added,
        };
        assert_eq!(interval, expected);
    }
    assert_eq!(runs(&history, 0), 25);
    assert_eq!(ticks(&history), [1, 2, 3, 4, 5]);
    let from: Vec<u64> = history.intervals(4).map(|it| it.tick).collect();
    assert_eq!(from, [4, 5]);
    assert_eq!(history.since_last_tick(&total(25)), RunTally::default());
    assert_eq!(history.since_last_tick(&total(27)).run().count(), 2);
}

#[test]
fn idle_intervals_take_no_room_and_are_known_all_the_same() {
    let mut history = RunHistory::one_of(1);
    for tick in 1..=100 {
        history.record(tick, &RunTally::default(), 0, 0);
    }
    assert_eq!(history.heap_bytes(), 0);
    history.record(101, &total(3), 0, 0);
    for tick in 102..=200 {
        history.record(tick, &total(3), 0, 0);
    }
    // A run that goes on is no idleness.
    history.record(201, &total(3), 1, 0);
    history.record(202, &total(4), 0, 0);
    assert_eq!(ticks(&history), [101, 201, 202]);
    assert_eq!(runs(&history, 0), 4);
    assert_eq!(history.known_from(202), 1);
}

#[test]
fn an_hour_is_remembered_and_no_more() {
    let mut history = RunHistory::one_of(1);
    for tick in 1..=360 {
        history.record(tick, &total(tick), 0, 0);
    }
    assert_eq!((ticks(&history).len(), history.known_from(360)), (360, 1));
    history.record(361, &total(361), 0, 0);
    assert_eq!((ticks(&history).len(), history.known_from(361)), (360, 2));
    for tick in 362..=1_000 {
        history.record(tick, &total(tick), 0, 0);
    }
    assert_eq!(ticks(&history), (641..=1_000).collect::<Vec<u64>>());
    assert_eq!(runs(&history, 0), 360);
    // Long after, nothing of it is told, whether or not anything came after it.
    assert_eq!(history.known_from(2_000), 1_641);
    assert_eq!(history.intervals(history.known_from(2_000)).count(), 0);
    history.record(2_000, &total(1_001), 0, 0);
    assert_eq!(ticks(&history), [2_000]);
}

#[test]
fn where_room_is_short_the_oldest_is_forgotten_and_told_as_such() {
    let mut history = RunHistory::one_of(1_000);
    for tick in 1..=100 {
        history.record(tick, &total(tick * 100), 1, 0);
    }
    let kept = ticks(&history);
    assert!(kept.len() >= 8, "{kept:?}");
    let first = kept[0];
    assert!(first > 1);
    assert_eq!(kept, (first..=100).collect::<Vec<u64>>());
    assert_eq!(history.known_from(100), first);
    assert_eq!(runs(&history, 0), (101 - first) * 100);
}

/// A total in which every number is `n` or more.
fn fullest(n: u64) -> RunTally {
    let histogram = LatencyHistogram::default();
    // Each of these is in another bucket than the one before, or in the same.
    for doubling in 0..30 {
        histogram.observe(Duration::from_micros(40 << doubling));
    }
    let mut numbers = [0; SNAPSHOT_NUMBERS];
    histogram.snapshot().copy_numbers(&mut numbers);
    let latency = LatencySnapshot::of_numbers(&numbers.map(|number| number * n));
    RunTally::from(&RunSample {
        ended: [n; 8],
        refused: vec![n; 33],
        wait: latency,
        compile: latency,
        instantiate: latency,
        run: latency,
        cpu_ns: n * 1_000_000_000,
        ..RunSample::default()
    })
}

#[test]
fn one_tenant_keeps_an_hour_of_the_fullest_intervals() {
    let mut history = RunHistory::one_of(1);
    for tick in 1..=720 {
        // A thousand runs a second in each bucket.
        history.record(tick, &fullest(tick * 10_000), 10_000, 10_000);
    }
    assert_eq!(ticks(&history).len(), 360);
    assert!(
        history.heap_bytes() <= 162 << 10,
        "{}",
        history.heap_bytes()
    );
}

#[test]
fn a_thousand_tenants_take_less_than_a_mebibyte() {
    const TENANTS: usize = 1_000;
    let mut histories: Vec<_> = (0..TENANTS).map(|_| RunHistory::one_of(TENANTS)).collect();
    for history in &mut histories {
        for tick in 1..=20 {
            history.record(tick, &fullest(tick * 1_000_000), 10_000, 10_000);
        }
    }
    let bytes: usize = histories
        .iter()
        .map(|it| size_of_val(it) + it.heap_bytes())
        .sum();
    assert!(bytes < 1 << 20, "{bytes}");
}

proptest! {
    #[test]
    fn the_samples_add_up_to_what_was_counted(
        added in prop::collection::vec((0_u64..50, 0_u32..3, 1_u64..40), 1..200),
        tenants in prop_oneof![Just(1_usize), Just(1_000)],
    ) {
        let mut history = RunHistory::one_of(tenants);
        let (mut tick, mut sum) = (0, 0);
        // What had been counted up to each tick.
        let mut counted = vec![(0, 0)];
        for (runs, in_flight, after) in added {
            tick += after;
            sum += runs;
            history.record(tick, &total(sum), in_flight, 0);
            counted.push((tick, sum));
        }
        let known = history.known_from(tick);
        let before = counted.iter().rfind(|(at, _)| *at < known).unwrap().1;
        prop_assert_eq!(runs(&history, known), sum - before);
        let ticks: Vec<u64> = history.intervals(known).map(|it| it.tick).collect();
        prop_assert!(ticks.is_sorted());
        prop_assert!(history.heap_bytes() <= (160 << 10) + 1_024);
        let more = history.since_last_tick(&total(sum + 7));
        prop_assert_eq!(more.ended().iter().sum::<u64>(), 7);
    }
}
