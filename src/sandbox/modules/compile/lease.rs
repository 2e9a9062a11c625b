//! The lease by which admission preempts a compilation: admission asks the compile thread to stop
//! for another tenant's module and later lets it go on, and the thread reports that it has stopped
//! and how much processor time it took.

use crate::sync::lock;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a compilation that has stopped makes admission check whether it may go on.
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The shared state of one compilation, between admission and the compile thread.
pub struct CompileLease {
    state: Mutex<LeaseState>,
    changed: Condvar,
    /// Called by the compile thread to tell admission that it has stopped.
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
    /// Creates a lease. Its compile thread calls `stopped` when it has stopped, and again and again
    /// until it may go on.
    pub fn new(stopped: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            stopped: Box::new(stopped),
        })
    }

    /// Reports whether the compilation would stop soon if it were asked to.
    pub fn is_preemptible(&self) -> bool {
        self.lock().is_preemptible
    }

    /// Asks the compilation to stop; the compile thread notices that later.
    pub fn ask_to_stop(&self) {
        self.lock().is_asked_to_stop = true;
    }

    /// Lets the compilation go on, whether it has stopped already or not.
    pub fn resume(&self) {
        self.lock().is_asked_to_stop = false;
        self.changed.notify_all();
    }

    /// Returns the processor time that the compilation is known to have taken.
    pub fn processor_time(&self) -> Duration {
        self.lock().processor_time
    }

    pub(super) fn set_preemptible(&self, is_preemptible: bool) {
        self.lock().is_preemptible = is_preemptible;
    }

    pub(super) fn is_asked_to_stop(&self) -> bool {
        self.lock().is_asked_to_stop
    }

    /// Reports whether nobody wants the module any more: the permit was dropped before the module
    /// was compiled.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    /// Adds to the processor time that the compilation took.
    pub(super) fn charge(&self, more: Duration) {
        self.lock().processor_time += more;
    }

    /// Reports that the compilation has stopped, and waits until it may go on or nobody wants the
    /// module any more.
    pub(super) fn wait_until_resumed(&self) {
        loop {
            // The callback is not called under the lock: admission has a lock of its own, under
            // which it takes this one.
            (self.stopped)();
            let state = self.lock();
            let stands = |state: &mut LeaseState| state.is_asked_to_stop && !state.has_ended;
            let waited = self
                .changed
                .wait_timeout_while(state, RECHECK_INTERVAL, stands);
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
        lock(&self.state)
    }
}

/// What admission grants for one compilation: a slot, and the account that is charged for it.
/// Dropping it releases the slot and charges the account.
pub trait CompileGrant: Send {
    /// Returns the lease, by which the compile thread hears from admission.
    fn lease(&self) -> &Arc<CompileLease>;
}

/// The permission to compile a module, held for as long as that takes. Dropping it ends the lease,
/// and releases the grant.
pub struct CompilePermit(Box<dyn CompileGrant>);

impl CompilePermit {
    /// Creates a permit from what admission has granted.
    pub fn new(grant: impl CompileGrant + 'static) -> Self {
        Self(Box::new(grant))
    }

    /// Returns the lease, by which the compile thread hears from admission.
    pub(super) fn lease(&self) -> &Arc<CompileLease> {
        self.0.lease()
    }
}

impl Drop for CompilePermit {
    fn drop(&mut self) {
        self.lease().end();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A grant that holds nothing but its lease.
    struct Grant(Arc<CompileLease>);

    impl CompileGrant for Grant {
        fn lease(&self) -> &Arc<CompileLease> {
            &self.0
        }
    }

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
        let permit = CompilePermit::new(Grant(Arc::clone(&lease)));
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
