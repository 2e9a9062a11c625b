//! Inline execution of first slices: decides whether a guest may begin on the thread that serves
//! its RPC, which saves the switch to a guest thread and back. After a first slice that took long,
//! and so kept everything else on that thread waiting, no guest begins there for a while (a
//! backoff).

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A first slice that took more epochs than this kept its thread from serving. It should have ended
/// or yielded within one epoch and the rest of another.
const LONG_SLICE_EPOCHS: u32 = 2;
/// The backoff after a long first slice, as a multiple of the time that the slice took.
const BACKOFF_FACTOR: u32 = 10;

/// Bytes of linear memory beyond which a guest does not stay on the serving thread that it began
/// on. One instruction may fill all of a memory, and nothing interrupts it: this much takes some
/// milliseconds where none of its pages was touched before.
pub(in crate::sandbox) const MAX_INLINE_MEMORY: u64 = 16 << 20;

thread_local! {
    static THREAD: InlineThread = const { InlineThread {
        inline_allowed: Cell::new(false),
        inline_running: Cell::new(false),
        inline_backoff_until: Cell::new(None),
    } };
}

struct InlineThread {
    inline_allowed: Cell<bool>,
    /// Whether the thread is executing a guest's first slice.
    inline_running: Cell<bool>,
    inline_backoff_until: Cell<Option<Instant>>,
}

/// Allows guests to begin on the calling thread from now on. Threads that serve RPCs call this
/// once.
pub fn allow_inline_guests() {
    THREAD.with(|it| it.inline_allowed.set(true));
}

/// Reports whether a guest may begin on the calling thread now: this is allowed there, and no
/// backoff is in effect.
pub(in crate::sandbox) fn may_run_inline() -> bool {
    THREAD.with(|it| {
        let waits = it.inline_backoff_until.get();
        let waits = waits.filter(|until| Instant::now() < *until);
        it.inline_backoff_until.set(waits);
        it.inline_allowed.get() && waits.is_none()
    })
}

/// Executes a first slice on the calling thread and returns how long that took.
pub(in crate::sandbox) fn run_inline(slice: impl FnOnce()) -> Duration {
    THREAD.with(|it| it.inline_running.set(true));
    // This measures wall time, since learning the processor time costs two system calls. The slice
    // is only a moment.
    let start = Instant::now();
    slice();
    THREAD.with(|it| it.inline_running.set(false));
    start.elapsed()
}

/// Reports whether a guest that now holds `memory` bytes has to leave the calling thread, because
/// it began there inline.
pub(in crate::sandbox) fn must_leave_thread(memory: u64) -> bool {
    memory > MAX_INLINE_MEMORY && THREAD.with(|it| it.inline_running.get())
}

/// Records that a first slice took `time` on the calling thread, where an epoch takes `epoch`, and
/// starts the backoff if that was too long.
pub(in crate::sandbox) fn note_slice(time: Duration, epoch: Duration) {
    if time > epoch * LONG_SLICE_EPOCHS {
        let until = Instant::now().checked_add(time.saturating_mul(BACKOFF_FACTOR));
        THREAD.with(|it| it.inline_backoff_until.set(until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_begin_on_threads_that_serve_only() {
        assert!(!may_run_inline());
        allow_inline_guests();
        assert!(may_run_inline());
        std::thread::spawn(|| assert!(!may_run_inline()))
            .join()
            .unwrap();
    }

    #[test]
    fn a_guest_with_much_memory_leaves_where_it_began_and_no_other_place() {
        assert!(!must_leave_thread(MAX_INLINE_MEMORY + 1));
        run_inline(|| {
            assert!(must_leave_thread(MAX_INLINE_MEMORY + 1));
            assert!(!must_leave_thread(MAX_INLINE_MEMORY));
        });
        assert!(!must_leave_thread(MAX_INLINE_MEMORY + 1));
    }

    #[test]
    fn a_long_first_slice_keeps_others_from_beginning_there() {
        const EPOCH: Duration = Duration::from_secs(10);
        allow_inline_guests();
        note_slice(EPOCH * LONG_SLICE_EPOCHS, EPOCH);
        assert!(may_run_inline());
        note_slice(EPOCH * LONG_SLICE_EPOCHS + Duration::from_nanos(1), EPOCH);
        assert!(!may_run_inline());
    }
}
