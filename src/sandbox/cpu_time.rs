//! How much processor time a slice of a guest used, mostly without asking the kernel.
//!
//! A thread's processor clock is a system call, the monotonic clock is none. So a slice that is over
//! within [`RESOLUTION`] counts for all of its wall time: a thread never has the processor for longer
//! than that. A longer one, which may have been pre-empted, counts for what its thread used since the
//! thread's anchor, the last moment at which both of its clocks were read, but for no more than its
//! wall time. An anchor is read at the end of each long slice, and at the beginning of a slice where
//! it is older than [`RESOLUTION`]. So no slice counts for less than it used, and none for more than
//! that and [`RESOLUTION`]: in a long one, what its thread did between the anchor and its beginning.

use std::cell::Cell;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// How exact the time of one slice is. A reading of the thread's clock takes half a microsecond or so,
/// which is nothing to a slice that is longer than this; and the kernel hardly takes a processor from
/// a thread for less.
pub(super) const RESOLUTION: Duration = Duration::from_micros(200);

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
pub(super) struct SliceTimer {
    start: Instant,
    /// What the thread had used at its anchor.
    used_before: Duration,
    /// It is of one thread's clock.
    _on_one_thread: PhantomData<*const ()>,
}

impl SliceTimer {
    /// Begins with a slice.
    pub(super) fn start() -> Self {
        let start = Instant::now();
        let is_fresh = |anchor: &Anchor| start.saturating_duration_since(anchor.at) <= RESOLUTION;
        let anchor = ANCHOR.get().filter(is_fresh);
        let anchor = anchor.unwrap_or_else(|| drop_anchor(start));
        Self {
            start,
            used_before: anchor.used,
            _on_one_thread: PhantomData,
        }
    }

    /// Ends with the slice, and says how much processor time that counts for.
    pub(super) fn stop(self) -> Duration {
        let end = Instant::now();
        let took = end.saturating_duration_since(self.start);
        if took <= RESOLUTION {
            return took;
        }
        let used = drop_anchor(end).used.saturating_sub(self.used_before);
        used.min(took)
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
}

impl<F> OnCpu<F> {
    /// Around `inner`.
    pub(super) fn new(inner: F) -> Self {
        Self {
            inner,
            spent: Duration::ZERO,
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
        let timer = SliceTimer::start();
        let polled = Pin::new(&mut self.inner).poll(cx);
        self.spent += timer.stop();
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
        let timer = SliceTimer::start();
        slice();
        let counted = timer.stop();
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
