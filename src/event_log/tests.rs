//! Tests of the event log: its bounds, what its readers see, and whom its writer waits for.

use std::task::{Context, Poll};

use super::*;
use crate::model::refusal::Reason;

/// Builds a log of the smallest capacity that a log may have: a first write of `first` bytes,
/// and then writes of `size` bytes.
fn written(first: usize, size: usize) -> (Inner, usize) {
    let mut inner = Inner::default();
    let mut written = 0;
    for size in std::iter::once(first).chain(std::iter::repeat_n(size, 1 << 20 >> 10)) {
        inner.append(Stream::Stdout, &vec![0; size]);
        inner.trim(inner.held.saturating_sub(FLOOR));
        written += size;
    }
    (inner, written)
}

/// Covers many sizes of the first event, because that decides how the events behind it grow.
#[test]
fn no_event_takes_more_than_it_may_have_and_half_an_event_is_always_kept() {
    for first in [1, 7, 1000, 5000, 8191, 8192, 8193, 40_000, CHUNK_BYTES] {
        for size in [1, 100, 1024, 5000, 8192, 10_000] {
            let (inner, written) = written(first, size);
            let costs: Vec<usize> = inner.entries.iter().map(|entry| entry.cost).collect();
            assert!(
                costs.iter().all(|&cost| cost <= CHUNK_BYTES + OVERHEAD),
                "{costs:?}"
            );
            assert!(inner.held <= FLOOR);
            let kept: usize = inner
                .entries
                .iter()
                .map(|entry| match &entry.bytes {
                    OutputBytes::Open(bytes) => bytes.len(),
                    OutputBytes::Sealed(bytes) => bytes.len(),
                })
                .sum();
            assert!(kept >= written.min(31 << 10), "{first}, {size}: {kept}");
        }
    }
}

/// Longer than any test takes.
const PATIENCE: Duration = Duration::from_secs(600);

pub(super) fn refused() -> Arc<RunEnd> {
    Arc::new(Err(Refusal::new(Reason::QueueFull, "of a test")))
}

pub(super) fn started(bytes: usize, pool: &Arc<EventLogBudget>) -> Arc<EventLog> {
    let log = EventLog::new(bytes, Arc::clone(pool));
    log.start(SystemTime::now());
    log
}

pub(super) fn poll_reader(reader: &mut EventReader) -> Poll<Option<Event>> {
    reader.poll_next(&mut Context::from_waker(Waker::noop()))
}

/// Reads the next event, which is there.
fn next(reader: &mut EventReader) -> Event {
    match poll_reader(reader) {
        Poll::Ready(Some(event)) => event,
        other @ (Poll::Ready(_) | Poll::Pending) => panic!("{other:?}"),
    }
}

#[test]
fn a_run_that_is_refused_has_its_end_alone() {
    let pool = EventLogBudget::new(0);
    let log = EventLog::new(0, pool);
    let mut readers = [log.follow(), log.follow_reliably(), log.view(0).unwrap()];
    assert_eq!(log.view(1).unwrap_err(), 0);
    for reader in &mut readers {
        assert!(poll_reader(reader).is_pending());
    }
    log.finish(SystemTime::now(), refused());
    for reader in &mut readers {
        let event = next(reader);
        assert!(matches!(event.payload, EventPayload::End(_)));
        assert_eq!(event.seq, 0);
        assert!(matches!(poll_reader(reader), Poll::Ready(None)));
    }
    assert_eq!(log.next_seq(), 1);
}

/// Writes an event of 1000 bytes: each to another stream than the one before it.
fn write_one(log: &EventLog, number: usize) {
    let stream = match number % 2 {
        0 => Stream::Stdout,
        _ => Stream::Stderr,
    };
    log.write(stream, &[0; 1000]);
}

/// How many of a log's events are lost.
fn lost(log: &EventLog) -> u64 {
    log.lock().first_seq - 1
}

#[test]
fn the_longest_ended_is_evicted_first_and_what_goes_on_last() {
    const COST: usize = 1000 + OVERHEAD;
    const EVENTS: usize = 4;
    let pool = EventLogBudget::new(5 * EVENTS * COST);
    let logs: Vec<_> = (0..5).map(|_| started(FLOOR, &pool)).collect();
    let [packed, going, also_going, ended, also_ended] = &logs[..] else {
        panic!("there are five");
    };
    for log in &logs {
        (0..EVENTS).for_each(|number| write_one(log, number));
    }
    for log in [packed, ended, also_ended] {
        log.finish(SystemTime::now(), refused());
        log.mark_evictable(false);
    }
    let kept = Arc::new(Mutex::new(packed.pack()));
    let (weak, history) = (Arc::downgrade(&pool), Arc::clone(&kept));
    pool.set_history(move || {
        let mut kept = history.lock().unwrap();
        let is_held = kept.is_held();
        kept.evict(&weak.upgrade().unwrap());
        is_held
    });
    assert_eq!(pool.held(), 5 * EVENTS * COST);
    // The budget is used up exactly, so that nothing is evicted.
    pool.make_room();
    assert!(kept.lock().unwrap().is_held());
    let writer = started(FLOOR, &pool);
    let mut seen = Vec::new();
    for number in 0..4 * EVENTS - 1 {
        write_one(&writer, number);
        assert!(pool.held() <= 5 * EVENTS * COST);
        let is_lost = u64::from(!kept.lock().unwrap().is_held());
        let logs = [ended, also_ended, going, also_going, &writer];
        let lost = logs.map(|log| lost(log));
        let now = [is_lost, lost[0], lost[1], lost[2], lost[3], lost[4]];
        if seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    let all = EVENTS as u64;
    let expected = [
        [1, 0, 0, 0, 0, 0],
        [1, all, 0, 0, 0, 0],
        [1, all, all, 0, 0, 0],
        // Of a run that goes on, the last event is kept.
        [1, all, all, all - 1, 0, 0],
    ];
    assert_eq!(seen, expected);
    let before = pool.held();
    write_one(&writer, 4 * EVENTS - 1);
    assert!(pool.held() < before);
    assert_eq!(lost(also_going), all - 1);
}

#[test]
fn what_is_owed_is_never_evicted_and_the_rest_of_it_is() {
    let pool = EventLogBudget::new(0);
    let log = started(FLOOR, &pool);
    let mut caller = log.follow_reliably();
    let mut viewer = log.follow();
    (0..8).for_each(|number| write_one(&log, number));
    assert_eq!(lost(&log), 0);
    assert_eq!(pool.owed(), pool.held());
    for seq in 0..=3 {
        assert_eq!(next(&mut caller).seq, seq);
    }
    // What was read goes as soon as room is made.
    write_one(&log, 8);
    assert_eq!(lost(&log), 3);
    assert_eq!(next(&mut viewer).seq, 0);
    let event = next(&mut viewer);
    let EventPayload::Lost { first_seq, count } = event.payload else {
        panic!("{event:?}");
    };
    assert_eq!((event.seq, first_seq, count), (0, 1, 3));
    assert_eq!(pool.lost(), 3);
    assert_eq!(viewer.next_seq(), 4);
    // Without a caller, all but the last event is evicted.
    drop(caller);
    assert_eq!(pool.owed(), 0);
    write_one(&log, 9);
    assert_eq!(lost(&log), 9);
}

#[test]
fn room_is_what_the_caller_may_still_be_owed_to_the_byte() {
    let pool = EventLogBudget::new(usize::MAX);
    for (short, room) in [(0, 0), (1, 1), (2, 2)] {
        let log = started(FLOOR, &pool);
        assert_eq!(log.room(), None);
        let caller = log.follow_reliably();
        assert_eq!(log.room(), Some(FLOOR - OVERHEAD));
        log.write(Stream::Stdout, &[0; CHUNK_BYTES]);
        let left = FLOOR - CHUNK_BYTES - 2 * OVERHEAD;
        assert_eq!(log.room(), Some(left));
        log.write(Stream::Stdout, &vec![0; left - OVERHEAD - short]);
        assert_eq!(log.room(), Some(room));
        drop(caller);
        assert_eq!(log.room(), None);
    }
    // While all logs together hold too much, less of the log may be owed.
    let pool = EventLogBudget::new(0);
    let log = started(4 * FLOOR, &pool);
    let _caller = log.follow_reliably();
    assert_eq!(log.room(), Some(4 * FLOOR - OVERHEAD));
    log.write(Stream::Stdout, &[0; 1000]);
    assert_eq!(log.room(), Some(FLOOR - 1000 - 2 * OVERHEAD));
}

/// Fills a log with what its caller has to read first.
fn fill(log: &EventLog) {
    while let Some(room @ 1..) = log.room() {
        log.write(Stream::Stdout, &vec![0; room]);
    }
}

#[test]
fn a_writer_waits_for_the_caller_that_is_owed_and_for_no_viewer() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.unwrap();
    let _within = runtime.enter();
    let mut context = Context::from_waker(Waker::noop());
    let pool = EventLogBudget::new(usize::MAX);
    let log = started(FLOOR, &pool);
    let mut viewer = log.follow();
    (0..1000).for_each(|number| write_one(&log, number));
    let mut waits = std::pin::pin!(log.wait_for_room(PATIENCE));
    assert_eq!(waits.as_mut().poll(&mut context), Poll::Ready(true));
    assert_eq!(next(&mut viewer).seq, 0);

    let log = started(FLOOR, &pool);
    let (mut caller, mut viewer) = (log.follow_reliably(), log.follow());
    fill(&log);
    let mut waits = std::pin::pin!(log.wait_for_room(PATIENCE));
    assert_eq!(waits.as_mut().poll(&mut context), Poll::Pending);
    let since = log.lock().full_since;
    assert!(since.is_some());
    // A viewer that reads makes no room.
    assert_eq!(next(&mut viewer).seq, 0);
    assert_eq!(next(&mut viewer).seq, 1);
    assert_eq!(waits.as_mut().poll(&mut context), Poll::Pending);
    // A wait that is given up and begun again counts from when the log was full.
    let mut again = Box::pin(log.wait_for_room(PATIENCE));
    assert_eq!(again.as_mut().poll(&mut context), Poll::Pending);
    drop(again);
    assert_eq!(log.lock().full_since, since);
    assert_eq!(next(&mut caller).seq, 0);
    assert_eq!(log.lock().full_since, None);
    assert_eq!(waits.as_mut().poll(&mut context), Poll::Pending);
    assert_eq!(next(&mut caller).seq, 1);
    assert_eq!(waits.as_mut().poll(&mut context), Poll::Ready(true));
}

#[test]
fn a_writer_waits_no_more_once_nobody_is_owed() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.unwrap();
    let pool = EventLogBudget::new(usize::MAX);
    for is_dropped in [true, false] {
        let log = started(FLOOR, &pool);
        let mut caller = Some(log.follow_reliably());
        fill(&log);
        let mut waits = std::pin::pin!(log.wait_for_room(PATIENCE));
        {
            let _within = runtime.enter();
            let polled = waits.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(polled, Poll::Pending);
        }
        match is_dropped {
            true => caller = None,
            false => log.release_backpressure(),
        }
        assert!(runtime.block_on(waits));
        // The guest writes on, and the caller reads on as a viewer.
        log.write(Stream::Stderr, &[0; CHUNK_BYTES]);
        log.write(Stream::Stdout, &[0; CHUNK_BYTES]);
        if let Some(caller) = &mut caller {
            assert_eq!(next(caller).seq, 0);
            let event = next(caller);
            assert!(matches!(
                event.payload,
                EventPayload::Lost { first_seq: 1, .. }
            ));
        }
    }
    // A caller that reads nothing in the time that it has is told apart.
    let log = started(FLOOR, &pool);
    let _caller = log.follow_reliably();
    fill(&log);
    assert!(!runtime.block_on(log.wait_for_room(Duration::ZERO)));
}
