//! What admission and a compile thread tell each other while a module is compiled: that it is to stop for another tenant's,
//! that it has stopped, that it may go on, and what it took.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often one that has stopped has admission look whether it may go on.
const LOOK: Duration = Duration::from_millis(100);

/// The place of one compilation, as its two sides see it.
pub struct CompileLease {
    state: Mutex<LeaseState>,
    changed: Condvar,
    /// Tells admission that it has stopped.
    stopped: Box<dyn Fn() + Send + Sync>,
}

#[derive(Debug, Default)]
struct LeaseState {
    is_preemptible: bool,
    is_asked_to_stop: bool,
    has_ended: bool,
    processor_time: Duration,
}

impl fmt::Debug for CompileLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock().fmt(f)
    }
}

impl CompileLease {
    /// Creates a lease whose compile thread calls `stopped` when it has stopped, and again and again until it may go on.
    pub fn new(stopped: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            stopped: Box::new(stopped),
        })
    }

    /// Whether it would stop soon if it were asked to.
    pub fn is_preemptible(&self) -> bool {
        self.lock().is_preemptible
    }

    /// Asks it to stop.
    pub fn ask_to_stop(&self) {
        self.lock().is_asked_to_stop = true;
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.lock().is_asked_to_stop = false;
        self.changed.notify_all();
    }

    /// Processor time that it is known to have taken.
    pub fn processor_time(&self) -> Duration {
        self.lock().processor_time
    }

    pub(super) fn set_preemptible(&self, is_preemptible: bool) {
        self.lock().is_preemptible = is_preemptible;
    }

    pub(super) fn is_asked_to_stop(&self) -> bool {
        self.lock().is_asked_to_stop
    }

    /// Whether nobody wants the module any more: the permit is gone before it was compiled.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    /// Adds to the processor time that it took.
    pub(super) fn charge(&self, more: Duration) {
        self.lock().processor_time += more;
    }

    /// Says that it has stopped, and waits until it may go on, or nobody wants it any more.
    pub(super) fn wait_until_resumed(&self) {
        loop {
            // Not under the lock: admission has a lock of its own, under which it takes this one.
            (self.stopped)();
            let state = self.lock();
            let stands = |state: &mut LeaseState| state.is_asked_to_stop && !state.has_ended;
            let waited = self.changed.wait_timeout_while(state, LOOK, stands);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.has_ended || !state.is_asked_to_stop {
                return;
            }
        }
    }

    fn end(&self) {
        self.lock().has_ended = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, LeaseState> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The permission to compile a module, held for as long as that is done.
pub struct CompilePermit {
    lease: Arc<CompileLease>,
    _held: Box<dyn Any + Send>,
}

impl CompilePermit {
    /// With its lease, and what is to be held.
    pub fn new(lease: Arc<CompileLease>, held: impl Send + 'static) -> Self {
        Self {
            lease,
            _held: Box::new(held),
        }
    }

    /// What the compile thread hears of admission by.
    pub(super) fn lease(&self) -> &Arc<CompileLease> {
        &self.lease
    }
}

impl Drop for CompilePermit {
    fn drop(&mut self) {
        self.lease.end();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn lease() -> (Arc<CompileLease>, Arc<AtomicU32>) {
        let told = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&told);
        let lease = CompileLease::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        (lease, told)
    }

    #[test]
    fn one_that_has_stopped_says_so_until_it_may_go_on() {
        let (lease, told) = lease();
        lease.ask_to_stop();
        let stopped = Arc::clone(&lease);
        let waiting = std::thread::spawn(move || stopped.wait_until_resumed());
        while told.load(Ordering::SeqCst) < 3 {
            std::thread::yield_now();
        }
        assert!(!waiting.is_finished());
        lease.resume();
        waiting.join().unwrap();
        assert!(!lease.has_ended());
    }

    #[test]
    fn one_that_nobody_wants_any_more_does_not_wait() {
        let (lease, told) = lease();
        lease.ask_to_stop();
        let permit = CompilePermit::new(Arc::clone(&lease), ());
        let stopped = Arc::clone(&lease);
        let waiting = std::thread::spawn(move || stopped.wait_until_resumed());
        while told.load(Ordering::SeqCst) < 1 {
            std::thread::yield_now();
        }
        drop(permit);
        waiting.join().unwrap();
        assert!(lease.has_ended());
    }
}
