//! How runs are divided into segments, live and recovered from a file.

use proptest::prelude::*;

use super::super::queue::{ArchivableRun, ArchiveMark, ArchiveQueue, ArchiveState};
use super::super::segment::read_all;
use super::*;

/// 2026-12-01T12:00:00Z, with which an hour begins.
const NOON: u64 = 1_796_126_400_000;
const HOUR: u64 = 3_600_000;
const SECOND: Duration = Duration::from_secs(1);
/// The widest span of a batch of a second.
const WIDEST: u64 = 10_000;

/// Seals a batch with a run of each time after noon, and returns the segments' spans after
/// noon, each with the times of its runs, in order.
fn sealed(times: &[u64], interval: Duration) -> Vec<((u64, u64), Vec<u64>)> {
    let mut batch = Batch::without_spool(interval);
    for (low, after) in (0_u128..).zip(times) {
        let run = EncodedRun {
            number: RunId::first_number_at(NOON + after) | low,
            summary: Vec::new(),
            line: b"{}".to_vec(),
        };
        let ms = NOON + after;
        let key = SegmentKey {
            tenant: "t".into(),
            instance: "i".into(),
            hour: Hour::of(ms),
            is_spooled: false,
        };
        let at = batch.choose(&key, ms);
        batch.push(key, at, run, None).unwrap();
    }
    let sealed = batch.seal();
    assert!(!sealed.is_partial);
    let segment = |sealed: SealedSegment| {
        let name = SegmentName::parse(&sealed.path).unwrap();
        let runs = read_all(&sealed.bytes).unwrap();
        assert_eq!(sealed.runs, runs.len() as u64);
        let times = runs.iter().map(|run| RunId::millis_of(run.number) - NOON);
        let mut times: Vec<u64> = times.collect();
        times.sort_unstable();
        ((name.first - NOON, name.last - NOON), times)
    };
    let mut segments: Vec<_> = sealed.segments.into_iter().map(segment).collect();
    segments.sort();
    segments
}

fn spans(times: &[u64]) -> Vec<(u64, u64)> {
    sealed(times, SECOND)
        .into_iter()
        .map(|(span, _)| span)
        .collect()
}

#[test]
fn a_segment_spans_ten_seconds_and_no_more() {
    assert_eq!(spans(&[5000, 0, 10_000]), [(0, 10_000)]);
    assert_eq!(spans(&[0, 10_001]), [(0, 0), (10_001, 10_001)]);
    // The nearer one is too wide with it already.
    assert_eq!(
        spans(&[0, 9000, 14_000, 11_000]),
        [(0, 9000), (11_000, 14_000)]
    );
    // Of two that it fits into, it joins the nearer.
    assert_eq!(spans(&[0, 12_000, 7000]), [(0, 0), (7000, 12_000)]);
    // Runs that gather for a minute span more.
    let minute = sealed(&[0, 120_000, 120_001], 60 * SECOND);
    assert_eq!(minute.len(), 2);
    assert_eq!(minute[0].0, (0, 120_000));
}

#[test]
fn segments_that_no_more_may_be_opened_beside_take_what_is_nearest() {
    let minutes: Vec<u64> = (0..8).map(|minute| minute * 60_000).collect();
    let before: Vec<(u64, u64)> = minutes.iter().map(|ms| (*ms, *ms)).collect();
    assert_eq!(spans(&minutes), before);
    let mut after = before.clone();
    after[7].1 = 3_000_000;
    after[2].0 = 95_000;
    let more = [&minutes[..], &[3_000_000, 95_000]].concat();
    assert_eq!(spans(&more), after);
    // Runs of other hours have segments of their own.
    let more = [&minutes[..], &[HOUR, HOUR + 20_000]].concat();
    assert_eq!(spans(&more).len(), 10);
}

/// Takes a run on that was asked for so long after noon, and adds it to the batch.
fn added(
    batch: &mut Batch,
    queue: &Arc<ArchiveQueue>,
    (after, low): (u64, u128),
) -> (Arc<ArchiveMark>, bool) {
    let mark = ArchiveMark::queued();
    let number = RunId::first_number_at(NOON + after) | low;
    queue.offer(ArchivableRun {
        tenant: "t".into(),
        number,
        share: Arc::default(),
        cost: 10,
        mark: Arc::clone(&mark),
        encode: Box::new(move || EncodedRun {
            number,
            summary: Vec::new(),
            line: b"{}".to_vec(),
        }),
    });
    let runs = queue.take(Instant::now()).runs;
    (mark, batch.add(&"i".into(), runs).is_ok())
}

#[test]
fn a_run_that_the_file_could_not_take_is_lost_when_it_is_given_up_and_the_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let queue = ArchiveQueue::new(1 << 20, 1 << 20);
    let mut batch = Batch::new(Some(folder.path()), SECOND).unwrap();
    let (kept, is_spooled) = added(&mut batch, &queue, (0, 1));
    assert!(is_spooled);
    batch.spool.as_mut().unwrap().refuse_more();
    let (lost, is_spooled) = added(&mut batch, &queue, (0, 2));
    assert!(!is_spooled);
    let sealed = batch.seal();
    let runs: u64 = sealed.segments.iter().map(|segment| segment.runs).sum();
    assert_eq!(runs, 2, "they can be written while the daemon is there");
    sealed.segments.into_iter().for_each(SealedSegment::give_up);
    assert_eq!(kept.state(), ArchiveState::Queued);
    assert_eq!(lost.state(), ArchiveState::Dropped);
    let dropped = &queue.counters.dropped_failed;
    assert_eq!(dropped.load(std::sync::atomic::Ordering::Relaxed), 1);
    drop(sealed.spool);
    let (_, records) = super::super::spool::adopt(folder.path()).unwrap().unwrap();
    assert_eq!(records.len(), 1);
}

#[test]
fn whoever_recovers_a_file_makes_the_same_segments_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let queue = ArchiveQueue::new(1 << 20, 1 << 20);
    let mut batch = Batch::new(Some(folder.path()), SECOND).unwrap();
    // Several hours and moments, in no order, and more moments than there may be segments.
    let moments = [0, 2, 1].map(|hour| [50, 0, 9, 2, 30, 45, 1, 20, 12, 40].map(|it| (hour, it)));
    for (low, (hour, minute)) in (0_u32..).zip(moments.concat()) {
        let after = hour * HOUR + minute * 60_000 + u64::from(low) * 7;
        let (_, is_spooled) = added(&mut batch, &queue, (after, low.into()));
        assert!(is_spooled);
    }
    batch.spool.as_mut().unwrap().refuse_more();
    let (_, is_spooled) = added(&mut batch, &queue, (HOUR + 7, 1000));
    assert!(!is_spooled);
    let told = |sealed: &SealedBatch| {
        let segments = sealed.segments.iter();
        let told = segments.map(|it| (it.path.to_string(), read_all(&it.bytes).unwrap()));
        told.collect::<std::collections::BTreeMap<_, _>>()
    };
    let sealed = batch.seal();
    let mut before = told(&sealed);
    drop(sealed);
    // What the file could not take is in a segment of its own.
    let all = before.len();
    before.retain(|_, runs| runs.len() != 1 || runs[0].number & 0xffff != 1000);
    assert_eq!(before.len(), all - 1);
    let (file, records) = super::super::spool::adopt(folder.path()).unwrap().unwrap();
    // With another interval, it would choose other segments.
    let recovered = Batch::recovered(file, records, 600 * SECOND)
        .unwrap()
        .seal();
    assert!(before.len() > MOST_OPEN);
    assert_eq!(told(&recovered), before);
}

proptest! {
    #[test]
    fn runs_of_a_few_moments_are_divided_by_them_in_any_order(
        times in Just(
            (0..8)
                .flat_map(|moment| (0..5).map(move |run| moment * 400_000 + run * 2500))
                .collect::<Vec<u64>>()
        )
        .prop_shuffle()
    ) {
        let moments: Vec<(u64, u64)> =
            (0..8).map(|moment| (moment * 400_000, moment * 400_000 + 10_000)).collect();
        prop_assert_eq!(spans(&times), moments);
    }

    #[test]
    fn segments_are_few_and_narrow_unless_there_may_be_no_more(
        times in prop::collection::vec(0..HOUR, 1..60),
        within in prop::sample::select(vec![5000, 40_000, HOUR]),
    ) {
        let mut times: Vec<u64> = times.into_iter().map(|ms| ms % within).collect();
        let segments = sealed(&times, SECOND);
        prop_assert!(segments.len() <= MOST_OPEN);
        for ((first, last), runs) in &segments {
            prop_assert_eq!((Some(first), Some(last)), (runs.first(), runs.last()));
            prop_assert!(last - first <= WIDEST || segments.len() == MOST_OPEN);
        }
        // Two that are next to each other would not fit into one.
        for pair in segments.windows(2) {
            prop_assert!(pair[1].0.1 - pair[0].0.0 > WIDEST);
        }
        let mut all: Vec<u64> = segments.into_iter().flat_map(|(_, runs)| runs).collect();
        all.sort_unstable();
        times.sort_unstable();
        prop_assert_eq!(all, times);
    }
}
