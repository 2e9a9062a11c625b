//! Measures how much processor time a guest used, mostly without asking the kernel.
//!
//! Reading a thread's processor clock is a system call, and reading the monotonic clock is not. So
//! a short slice of a guest counts for all of its wall time: a thread never has the processor for
//! longer than that. A longer slice, which may have been preempted, counts for what its thread used
//! since the thread's anchor, the last moment at which both of its clocks were read, but for no
//! more than its wall time. An anchor is read at the end of each long slice, and at the beginning
//! of a slice whose anchor is too old. So no slice counts for less than it used. By how much it may
//! count for more, its wall time or the age of the anchor, is its doubt. The doubts of a run add up
//! to at most [`RESOLUTION`]: once there is no room for more, both clocks are read for each slice.

use std::cell::Cell;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// How far a run's processor time may be off. A run that is longer than this pays for it by
/// readings of the kernel's clock, which take about half a microsecond each.
const RESOLUTION: Duration = Duration::from_micros(200);

/// A moment at which both clocks of a thread were read.
#[derive(Clone, Copy)]
struct ClockAnchor {
    /// What the monotonic clock said.
    at: Instant,
    used: Duration,
}

thread_local! {
    static ANCHOR: Cell<Option<ClockAnchor>> = const { Cell::new(None) };
}

/// A timer that measures one slice, on the thread that executes it.
struct SliceTimer {
    start: Instant,
    /// Processor time that the thread had used at its anchor.
    used_before: Duration,
    /// Age of the anchor when the slice began.
    age: Duration,
    /// How much doubt there may be about the slice.
    room: Duration,
    /// The timer reads the clock of one thread, so it must not be sent to another.
    _on_one_thread: PhantomData<*const ()>,
}

/// What a slice counts for, and how much less it may have used.
struct SliceCount {
    time: Duration,
    /// The slice may have used as much less as this.
    doubt: Duration,
}

impl SliceTimer {
    /// Starts the timer at the beginning of a slice about which there may be as much doubt as
    /// `room`.
    fn start(room: Duration) -> Self {
        let start = Instant::now();
        let age = |anchor: &ClockAnchor| start.saturating_duration_since(anchor.at);
        let is_fresh = |anchor: &ClockAnchor| !room.is_zero() && age(anchor) <= room;
        let anchor = ANCHOR.get().filter(is_fresh);
        let anchor = anchor.unwrap_or_else(|| drop_anchor(start));
        Self {
            start,
            used_before: anchor.used,
            age: age(&anchor),
            room,
            _on_one_thread: PhantomData,
        }
    }

    /// Stops the timer at the end of the slice, and returns what it counts for.
    fn stop(self) -> SliceCount {
        let end = Instant::now();
        let took = end.saturating_duration_since(self.start);
        if took <= self.room {
            return SliceCount {
                time: took,
                doubt: took,
            };
        }
        let used = drop_anchor(end).used.saturating_sub(self.used_before);
        SliceCount {
            time: used.min(took),
            doubt: self.age,
        }
    }
}

/// A timer that measures what a thread does, slice by slice. Short slices count for their wall
/// time, until one exceeds [`RESOLUTION`] together with those before it. That one counts for the
/// rest of what the thread used meanwhile, so that all of them together count for what was used.
pub(in crate::sandbox) struct ThreadTimer {
    used: Duration,
    /// What was counted since the thread's clock was last read.
    counted: Duration,
}

impl ThreadTimer {
    /// Starts the timer on the thread that it is to measure.
    pub(in crate::sandbox) fn start() -> Self {
        Self {
            used: thread_time(),
            counted: Duration::ZERO,
        }
    }

    /// Returns what a slice counts for that is over and took `took` of wall time.
    pub(in crate::sandbox) fn count(&mut self, took: Duration) -> Duration {
        if self.counted + took <= RESOLUTION {
            self.counted += took;
            return took;
        }
        let used = thread_time();
        let since = used.saturating_sub(self.used);
        let rest = since.saturating_sub(self.counted);
        // What was counted too much is taken off what comes.
        (self.used, self.counted) = (used, self.counted.saturating_sub(since));
        rest
    }
}

/// Reads the processor clock of this thread, and makes an anchor of it with `at`, the time of the
/// monotonic clock.
fn drop_anchor(at: Instant) -> ClockAnchor {
    let used = thread_time();
    let anchor = ClockAnchor { at, used };
    ANCHOR.set(Some(anchor));
    anchor
}

/// A future that adds up the processor time of its polls.
pub(in crate::sandbox) struct CpuTimed<F> {
    inner: F,
    spent: Duration,
    doubt: Duration,
}

impl<F> CpuTimed<F> {
    /// Wraps `inner`, of which nothing has been counted yet.
    pub(in crate::sandbox) fn new(inner: F) -> Self {
        Self {
            inner,
            spent: Duration::ZERO,
            doubt: Duration::ZERO,
        }
    }

    /// Returns the processor time of all polls so far.
    pub(in crate::sandbox) fn spent(&self) -> Duration {
        self.spent
    }
}

impl<F: Future + Unpin> Future for CpuTimed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let timer = SliceTimer::start(RESOLUTION.saturating_sub(self.doubt));
        let polled = Pin::new(&mut self.inner).poll(cx);
        let SliceCount { time, doubt } = timer.stop();
        self.spent += time;
        self.doubt += doubt;
        polled
    }
}

/// Reads the processor time of this thread, by a system call.
pub(in crate::sandbox) fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // The clock counts up from the thread's start: neither part is ever negative.
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spins until the thread has used `time` of the processor, and returns how much it used.
    fn spin(time: Duration) -> Duration {
        let before = thread_time();
        loop {
            let used = thread_time().saturating_sub(before);
            if used >= time {
                return used;
            }
        }
    }

    /// Executes `slice`, and returns what it counts for and what it used by the kernel's clock,
    /// including the timer's own readings.
    fn measured(slice: impl FnOnce()) -> (Duration, Duration) {
        let before = thread_time();
        let timer = SliceTimer::start(RESOLUTION);
        slice();
        let counted = timer.stop().time;
        (counted, thread_time().saturating_sub(before))
    }

    #[test]
    fn no_slice_counts_for_less_than_it_used_or_for_much_more() {
        for micros in [10, 150, 1000, 5000] {
            let mut used = Duration::ZERO;
            let start = Instant::now();
            let (counted, all) = measured(|| used = spin(Duration::from_micros(micros)));
            let took = start.elapsed();
            assert!(counted >= used, "{counted:?} of {used:?}");
            assert!(counted <= took, "{counted:?} in {took:?}");
            assert!(counted <= all + RESOLUTION, "{counted:?} of {all:?}");
        }
    }

    #[test]
    fn one_that_loses_the_processor_does_not_count_for_that() {
        for millis in [1, 5, 20] {
            let (counted, used) = measured(|| std::thread::sleep(Duration::from_millis(millis)));
            assert!(counted <= used + RESOLUTION, "{counted:?} of {used:?}");
            assert!(counted < Duration::from_millis(millis));
        }
    }

    #[test]
    fn many_slices_that_lose_the_processor_are_as_exact_as_one() {
        let mut polls = 0;
        let mut all = CpuTimed::new(std::future::poll_fn(|_| {
            polls += 1;
            std::thread::sleep(Duration::from_micros(10));
            Poll::<()>::Pending
        }));
        let before = thread_time();
        for _ in 0..100 {
            let mut context = Context::from_waker(std::task::Waker::noop());
            assert!(Pin::new(&mut all).poll(&mut context).is_pending());
        }
        let used = thread_time().saturating_sub(before);
        let counted = all.spent();
        assert!(counted <= used + RESOLUTION, "{counted:?} of {used:?}");
        assert_eq!(polls, 100);
    }

    #[test]
    fn what_a_thread_counts_for_is_what_it_used() {
        let before = thread_time();
        let mut timer = ThreadTimer::start();
        let mut counted = Duration::ZERO;
        for i in 0..200 {
            let start = Instant::now();
            match i % 4 {
                0 => std::thread::sleep(Duration::from_micros(20)),
                _ => {
                    spin(Duration::from_micros(i));
                }
            }
            counted += timer.count(start.elapsed());
        }
        let used = thread_time().saturating_sub(before);
        assert!(counted <= used + RESOLUTION, "{counted:?} of {used:?}");
        assert!(counted * 2 > used, "{counted:?} of {used:?}");
    }

    #[test]
    fn what_its_thread_did_before_is_not_counted() {
        let (first, _) = measured(|| {
            spin(Duration::from_millis(1));
        });
        assert!(first >= Duration::from_millis(1));
        spin(Duration::from_millis(20));
        let (counted, used) = measured(|| std::thread::sleep(Duration::from_millis(10)));
        assert!(counted <= used + RESOLUTION, "{counted:?} of {used:?}");
    }

    #[test]
    fn a_slice_within_another_is_measured_on_its_own() {
        let (mut inner, mut inner_used) = (Duration::ZERO, Duration::ZERO);
        let (outer, used) = measured(|| {
            spin(Duration::from_millis(2));
            (inner, inner_used) = measured(|| {
                spin(Duration::from_millis(2));
            });
            spin(Duration::from_millis(2));
        });
        assert!(inner <= inner_used + RESOLUTION, "{inner:?}");
        assert!(outer >= Duration::from_millis(6), "{outer:?} of {used:?}");
        assert!(outer <= used + RESOLUTION, "{outer:?} of {used:?}");
    }
}
