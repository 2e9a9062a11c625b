//! How much processor time a guest used, mostly without asking the kernel.
//!
//! A thread's processor clock is a system call, the monotonic clock is none. So a slice of a guest
//! that is over soon counts for all of its wall time: a thread never has the processor for longer than
//! that. A longer one, which may have been pre-empted, counts for what its thread used since the
//! thread's anchor, the last moment at which both of its clocks were read, but for no more than its
//! wall time. An anchor is read at the end of each long slice, and at the beginning of a slice where it
//! is too old. So no slice counts for less than it used; what it may count for beyond that, its wall
//! time or the age of the anchor, is its doubt. The doubts of a run add up to [`RESOLUTION`] at the
//! most: once there is no more room for one, both clocks are read for each slice.

use std::cell::Cell;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// How exact the processor time of a run is, for which it pays by readings of the kernel's clock, half
/// a microsecond or so each, if it is longer than this.
const RESOLUTION: Duration = Duration::from_micros(200);

/// A moment at which both clocks of a thread were read.
#[derive(Clone, Copy)]
struct Anchor {
    at: Instant,
    used: Duration,
}

thread_local! {
    static ANCHOR: Cell<Option<Anchor>> = const { Cell::new(None) };
}

/// Measures one slice, on the thread that executes it.
struct SliceTimer {
    start: Instant,
    /// What the thread had used at its anchor.
    used_before: Duration,
    /// How old the anchor was.
    age: Duration,
    /// How much doubt there may be.
    room: Duration,
    /// It is of one thread's clock.
    _on_one_thread: PhantomData<*const ()>,
}

/// What a slice counts for.
struct SliceCount {
    time: Duration,
    /// It may have used so much less.
    doubt: Duration,
}

impl SliceTimer {
    /// Begins with a slice, of which there may be as much doubt as `room`.
    fn start(room: Duration) -> Self {
        let start = Instant::now();
        let age = |anchor: &Anchor| start.saturating_duration_since(anchor.at);
        let is_fresh = |anchor: &Anchor| !room.is_zero() && age(anchor) <= room;
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

    /// Ends with the slice.
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

/// Measures what a thread does, slice by slice. Those that are over soon count for their wall time, and
/// the one with which they exceed [`RESOLUTION`] for the rest of what the thread used meanwhile: all of
/// them together count for that.
pub(super) struct ThreadTimer {
    used: Duration,
    /// What was counted since the clock said so.
    counted: Duration,
}

impl ThreadTimer {
    /// Begins on the thread that it is to measure.
    pub(super) fn start() -> Self {
        Self {
            used: thread_time(),
            counted: Duration::ZERO,
        }
    }

    /// Says what a slice that is over, and took so long, counts for.
    pub(super) fn count(&mut self, took: Duration) -> Duration {
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

/// Reads the other clock of this thread, `at` being what the monotonic one says.
fn drop_anchor(at: Instant) -> Anchor {
    let used = thread_time();
    let anchor = Anchor { at, used };
    ANCHOR.set(Some(anchor));
    anchor
}

/// A future that adds up the processor time of its polls.
pub(super) struct OnCpu<F> {
    inner: F,
    spent: Duration,
    doubt: Duration,
}

impl<F> OnCpu<F> {
    /// Around `inner`.
    pub(super) fn new(inner: F) -> Self {
        Self {
            inner,
            spent: Duration::ZERO,
            doubt: Duration::ZERO,
        }
    }

    /// Processor time of all polls so far.
    pub(super) fn spent(&self) -> Duration {
        self.spent
    }
}

impl<F: Future + Unpin> Future for OnCpu<F> {
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

/// Processor time of this thread, by a system call.
pub(super) fn thread_time() -> Duration {
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

    /// Uses the processor for as long as that, and says for how long it did.
    fn spin(time: Duration) -> Duration {
        let before = thread_time();
        loop {
            let used = thread_time().saturating_sub(before);
            if used >= time {
                return used;
            }
        }
    }

    /// Of `slice`: what it counts for, and what it used by the kernel's clock, which the readings of
    /// the timer are part of.
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
        let mut all = OnCpu::new(std::future::poll_fn(|_| {
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
