//! First slices on the threads that serve: whether a guest may begin on the thread that its call came by, which saves the
//! way to a guest thread and back. A guest that took long when it began so kept everything else on that thread waiting:
//! nothing begins there for a while.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A first slice that took more than so many epochs kept its thread from serving: it should have been over, or have given
/// way, in one and what was left of another.
const LONG: u32 = 2;
/// So many times as long nothing begins on the thread after that.
const BACKOFF: u32 = 10;

/// Bytes of linear memory beyond which a guest does not stay on the thread that it began on. One instruction may fill all
/// of a memory, and nothing interrupts it: this much takes some milliseconds where no page of it was touched before.
pub(super) const MEMORY: u64 = 16 << 20;

thread_local! {
    static THREAD: ThisThread = const { ThisThread {
        serves: Cell::new(false),
        executes: Cell::new(false),
        backoff_until: Cell::new(None),
    } };
}

struct ThisThread {
    serves: Cell<bool>,
    /// A guest's first slice.
    executes: Cell<bool>,
    backoff_until: Cell<Option<Instant>>,
}

/// Lets guests begin on this thread.
pub fn begin_guests_here() {
    THREAD.with(|it| it.serves.set(true));
}

/// Whether a guest may begin on this thread now.
pub(super) fn may_begin() -> bool {
    THREAD.with(|it| {
        let waits = it.backoff_until.get();
        let waits = waits.filter(|until| Instant::now() < *until);
        it.backoff_until.set(waits);
        it.serves.get() && waits.is_none()
    })
}

/// Executes a first slice, and says how long that took.
pub(super) fn execute(slice: impl FnOnce()) -> Duration {
    THREAD.with(|it| it.executes.set(true));
    // Not the processor's time, which costs two system calls to learn: it is a moment.
    let start = Instant::now();
    slice();
    THREAD.with(|it| it.executes.set(false));
    start.elapsed()
}

/// Whether a guest that holds `memory` bytes now has to leave this thread.
pub(super) fn has_to_leave(memory: u64) -> bool {
    memory > MEMORY && THREAD.with(|it| it.executes.get())
}

/// Takes note of how long a first slice took on this thread, where an epoch takes `epoch`.
pub(super) fn took(time: Duration, epoch: Duration) {
    if time > epoch * LONG {
        let until = Instant::now().checked_add(time.saturating_mul(BACKOFF));
        THREAD.with(|it| it.backoff_until.set(until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_begin_on_threads_that_serve_only() {
        assert!(!may_begin());
        begin_guests_here();
        assert!(may_begin());
        std::thread::spawn(|| assert!(!may_begin())).join().unwrap();
    }

    #[test]
    fn a_guest_with_much_memory_leaves_where_it_began_and_no_other_place() {
        assert!(!has_to_leave(MEMORY + 1));
        execute(|| {
            assert!(has_to_leave(MEMORY + 1));
            assert!(!has_to_leave(MEMORY));
        });
        assert!(!has_to_leave(MEMORY + 1));
    }

    #[test]
    fn a_long_first_slice_keeps_others_from_beginning_there() {
        const EPOCH: Duration = Duration::from_secs(10);
        begin_guests_here();
        took(EPOCH * LONG, EPOCH);
        assert!(may_begin());
        took(EPOCH * LONG + Duration::from_nanos(1), EPOCH);
        assert!(!may_begin());
    }
}
