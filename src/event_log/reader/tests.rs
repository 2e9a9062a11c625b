//! A property test of event logs: whatever is written, read and evicted in whatever order, it is
//! what a plain list of all events would say.

use proptest::prelude::*;

use super::*;
use crate::event_log::tests::{poll_reader, refused, started};
use crate::event_log::{
    CHUNK_BYTES, CaptureBuffer, CapturedOutput, EventLogBudget, FLOOR, OVERHEAD,
};

fn captured(bytes: usize) -> CapturedOutput {
    let mut buffers = [CaptureBuffer::default(), CaptureBuffer::default()];
    buffers[0].extend(&vec![0; bytes / 2]);
    buffers[1].extend(&vec![0; bytes - bytes / 2]);
    CapturedOutput::new(buffers, Vec::new())
}

/// One run as a test expects it: all that was ever written to its log.
struct Expected {
    log: Arc<EventLog>,
    /// The output by event; the first one has number 1.
    events: Vec<(Stream, Vec<u8>)>,
    /// Whether nobody has read the last event, so that it may grow.
    is_open: bool,
    written: usize,
    has_ended: bool,
    is_evictable: bool,
    /// Whether a caller is owed the output.
    is_owed: bool,
    /// Whether a caller was owed it when it was last written to.
    was_owed: bool,
    /// Whether the first reader is the caller that is or was owed the output.
    has_caller: bool,
    /// The readers, each with whether it has seen the end.
    readers: Vec<(EventReader, bool)>,
}

impl Expected {
    fn new(bytes: usize, pool: &Arc<EventLogBudget>, is_owed: bool) -> Self {
        let log = started(bytes, pool);
        let reader = match is_owed {
            true => log.follow_reliably(),
            false => log.follow(),
        };
        Self {
            log,
            events: Vec::new(),
            is_open: false,
            written: 0,
            has_ended: false,
            is_evictable: false,
            is_owed,
            was_owed: is_owed,
            has_caller: is_owed,
            readers: vec![(reader, false)],
        }
    }

    /// Writes as much of `size` bytes as there is room for.
    fn write(&mut self, stream: Stream, size: usize) {
        let room = self.log.room();
        assert_eq!(room.is_some(), self.is_owed);
        let size = size.min(room.unwrap_or(usize::MAX));
        let bytes: Vec<u8> = (self.written..self.written + size)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        self.log.write(stream, &bytes);
        self.was_owed = self.is_owed || (self.was_owed && bytes.is_empty());
        self.written += size;
        let mut rest = bytes.as_slice();
        if let Some((last, open)) = self.events.last_mut()
            && *last == stream
            && self.is_open
        {
            let fits = rest.len().min(CHUNK_BYTES - open.len());
            open.extend_from_slice(&rest[..fits]);
            rest = &rest[fits..];
        }
        for piece in rest.chunks(CHUNK_BYTES) {
            self.events.push((stream, piece.to_vec()));
            self.is_open = true;
        }
    }

    /// Reads with one reader, and checks what it gets: the very next event, or exactly which ones
    /// are lost.
    fn read(&mut self, which: usize) {
        let count = self.events.len() as u64;
        let first = self.log.lock().first_seq;
        let (reader, has_seen_end) = &mut self.readers[which];
        let wanted = reader.next_seq();
        let is_last_open = self.is_open
            && !self.has_ended
            && wanted == count
            && self
                .events
                .last()
                .is_some_and(|(_, it)| it.len() < CHUNK_BYTES);
        let may_gather = !(self.has_caller && which == 0);
        if is_last_open && wanted >= first && may_gather {
            // A viewer leaves it alone for a while, by the clock.
            return;
        }
        let polled = poll_reader(reader);
        if *has_seen_end {
            assert!(matches!(polled, Poll::Ready(None)));
            return;
        }
        let Poll::Ready(Some(Event { seq, payload, .. })) = polled else {
            assert!(polled.is_pending(), "{polled:?}");
            assert!(wanted > count && !self.has_ended, "{wanted} of {count}");
            return;
        };
        match &payload {
            EventPayload::Started => assert_eq!((seq, wanted), (0, 0)),
            EventPayload::Lost { first_seq, count } => {
                assert_eq!((seq, *first_seq), (wanted - 1, wanted));
                assert_eq!(first_seq + count, first);
                assert!(*count > 0 && !(self.is_owed && which == 0), "it was owed");
            }
            EventPayload::File { .. } => unreachable!("nothing writes files"),
            EventPayload::Output(stream, bytes) => {
                assert!(wanted >= first);
                assert_eq!(seq, wanted);
                let (expected, text) = &self.events[usize::try_from(seq).unwrap() - 1];
                assert_eq!(stream, expected);
                assert!(bytes == text, "other bytes than were written");
                self.is_open &= seq != count;
            }
            EventPayload::End(_) => {
                assert!(self.has_ended && first <= count + 1);
                assert_eq!((seq, wanted), (count + 1, count + 1));
                *has_seen_end = true;
                assert_eq!(reader.next_seq(), wanted);
                return;
            }
        }
        let after = match payload {
            EventPayload::Lost { .. } => first,
            EventPayload::Started
            | EventPayload::Output(..)
            | EventPayload::File { .. }
            | EventPayload::End(_) => wanted + 1,
        };
        assert_eq!(reader.next_seq(), after);
    }

    fn leave(&mut self, which: usize) {
        if which < self.readers.len() {
            self.readers.remove(which);
            if which == 0 && self.has_caller {
                (self.is_owed, self.has_caller) = (false, false);
            }
        }
    }

    /// Packs the output away, perhaps evicts it, and opens it again, if nobody reads it.
    fn pack(&mut self, evict: bool, pool: &Arc<EventLogBudget>) {
        if !self.is_evictable || !self.readers.is_empty() {
            return;
        }
        let (started, end) = (self.log.started(), self.log.end().unwrap());
        let others = pool.held() - held_by(&self.log);
        let output = self.log.lock().held;
        let mut kept = self.log.pack();
        assert_eq!(pool.held(), others + output);
        assert_eq!(kept.is_held(), output > 0);
        assert_eq!(self.log.next_seq(), self.events.len() as u64 + 2);
        let mut left = output;
        if evict {
            kept.evict(pool);
            assert!(!kept.is_held());
            left = 0;
        }
        assert_eq!(pool.held(), others + left);
        self.log = EventLog::reopen(self.log.bytes, Arc::clone(pool), started, end, kept);
        assert_eq!(pool.held(), others + left);
    }

    /// Checks what the log counts, and its bound.
    fn check(&self) {
        let inner = self.log.lock();
        let costs = || inner.entries.iter().map(|entry| entry.cost);
        assert_eq!(inner.held, costs().sum::<usize>());
        let next = inner.first_seq + inner.entries.len() as u64;
        assert_eq!(next, self.events.len() as u64 + 1, "no number is left out");
        assert_eq!(inner.unacked.is_some(), self.is_owed);
        if let Some(unacked) = &inner.unacked {
            assert!(inner.first_seq <= unacked.next.max(1));
            let read = usize::try_from(unacked.next.max(1) - inner.first_seq).unwrap();
            assert_eq!(unacked.bytes, costs().skip(read).sum::<usize>());
        }
        // Where it is owed, the last event may take twice its bytes, so that it has room to grow,
        // and one write may make several events.
        let most = match self.was_owed {
            true => self.log.bytes + CHUNK_BYTES / 2 + 2 * OVERHEAD,
            false => self.log.bytes,
        };
        assert!(inner.held <= most, "{} of {most}", inner.held);
    }

    /// Checks that there is nothing to evict.
    fn check_that_nothing_is_left_to_evict(&self) {
        let inner = self.log.lock();
        let owed = inner.unacked.map_or(0, |owed| owed.bytes);
        let last = inner.entries.back().map_or(0, |entry| entry.cost);
        let rest = inner.held - owed;
        match self.is_evictable {
            true => assert!(rest == 0 && inner.captured.is_none()),
            false => assert!(
                rest <= last,
                "{rest} bytes, of which {last} are the last event"
            ),
        }
    }
}

/// Returns the bytes that a log's caller has yet to read.
fn owed_by(log: &EventLog) -> usize {
    log.lock().unacked.map_or(0, |owed| owed.bytes)
}

/// Returns the bytes that a log is charged for.
fn held_by(log: &EventLog) -> usize {
    let inner = log.lock();
    inner.held + inner.captured.as_ref().map_or(0, CapturedOutput::bytes)
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, bool, usize),
    Read(usize, usize, usize),
    View(usize, u64),
    Leave(usize, usize),
    Release(usize),
    End(usize, usize),
    Evictable(usize, bool),
    Pack(usize, bool),
    Replace(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let run = 0..3_usize;
    let size = prop_oneof![1..300_usize, 1..20_000_usize, 1..100_000_usize];
    let captured = prop_oneof![Just(0_usize), 1..50_000_usize];
    prop_oneof![
        8 => (run.clone(), any::<bool>(), size).prop_map(|(run, err, size)| Step::Write(run, err, size)),
        8 => (run.clone(), 0..3_usize, 1..5_usize).prop_map(|(run, at, times)| Step::Read(run, at, times)),
        2 => (run.clone(), 0..20_u64).prop_map(|(run, from)| Step::View(run, from)),
        3 => (run.clone(), 0..3_usize).prop_map(|(run, at)| Step::Leave(run, at)),
        1 => run.clone().prop_map(Step::Release),
        1 => (run.clone(), captured).prop_map(|(run, captured)| Step::End(run, captured)),
        2 => (run.clone(), any::<bool>()).prop_map(|(run, keep)| Step::Evictable(run, keep)),
        2 => (run.clone(), any::<bool>()).prop_map(|(run, evict)| Step::Pack(run, evict)),
        1 => (run, any::<bool>()).prop_map(|(run, is_owed)| Step::Replace(run, is_owed)),
    ]
}

/// Takes one step of a run; returns whether room was made for it if there was any to make.
fn take(step: &Step, run: &mut Expected, bytes: usize, pool: &Arc<EventLogBudget>) -> bool {
    match *step {
        Step::Write(_, err, size) if !run.has_ended => {
            let stream = if err { Stream::Stderr } else { Stream::Stdout };
            let before = run.written;
            run.write(stream, size);
            return run.written > before;
        }
        Step::Read(_, at, times) if at < run.readers.len() => {
            for _ in 0..times {
                run.read(at);
            }
        }
        Step::View(_, from) => {
            let highest = run.events.len() as u64 + 1;
            match run.log.view(from) {
                Ok(reader) if run.readers.len() < 3 => run.readers.push((reader, false)),
                Ok(_) => {}
                Err(told) => assert_eq!(told, highest),
            }
            assert_eq!(run.log.view(from).is_err(), from > highest);
        }
        Step::Leave(_, at) => run.leave(at),
        Step::Release(_) if run.is_owed => {
            run.log.release_backpressure();
            run.is_owed = false;
        }
        Step::End(_, bytes) if !run.has_ended => {
            if bytes > 0 {
                run.log.keep_captured(captured(bytes));
            }
            run.log.finish(SystemTime::now(), refused());
            run.has_ended = true;
        }
        Step::Evictable(_, keep) if run.has_ended && !run.is_owed => {
            run.log.mark_evictable(keep);
            run.is_evictable = true;
            return true;
        }
        Step::Pack(_, evict) => run.pack(evict, pool),
        Step::Replace(_, is_owed) if run.has_ended => *run = Expected::new(bytes, pool, is_owed),
        Step::Write(..)
        | Step::Read(..)
        | Step::Release(_)
        | Step::End(..)
        | Step::Evictable(..)
        | Step::Replace(..) => {}
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn readers_see_each_event_once_or_are_told_which_are_lost_in_bounded_memory(
        budget in 0..5 * FLOOR,
        bytes in 0..3 * FLOOR,
        owed in any::<[bool; 3]>(),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let pool = EventLogBudget::new(budget);
        let mut runs = owed.map(|is_owed| Expected::new(bytes, &pool, is_owed));
        for step in &steps {
            let at = match *step {
                Step::Write(at, ..) | Step::Read(at, ..) | Step::View(at, _)
                | Step::Leave(at, _) | Step::Release(at) | Step::End(at, _)
                | Step::Evictable(at, _) | Step::Pack(at, _) | Step::Replace(at, _) => at,
            };
            let made_room = take(step, &mut runs[at], bytes, &pool);
            runs.iter().for_each(Expected::check);
            let held: usize = runs.iter().map(|run| held_by(&run.log)).sum();
            prop_assert_eq!(pool.held(), held);
            let owed: usize = runs.iter().map(|run| owed_by(&run.log)).sum();
            prop_assert_eq!(pool.owed(), owed);
            if made_room && held > budget {
                runs.iter().for_each(Expected::check_that_nothing_is_left_to_evict);
            }
        }
        // At the end, each reader comes to the end of its run.
        for run in &mut runs {
            if !run.has_ended {
                run.log.finish(SystemTime::now(), refused());
                run.has_ended = true;
            }
            for at in 0..run.readers.len() {
                while !run.readers[at].1 {
                    run.read(at);
                }
                run.read(at);
            }
        }
        drop(runs);
        prop_assert_eq!((pool.held(), pool.owed()), (0, 0));
    }
}
