//! What each thread does first that does guests' work.

/// A function that each new thread for guests' work calls first.
pub type ThreadInit = fn();

/// The nice value of guest threads: they get about a tenth of the weight of the threads that serve
/// RPCs.
const GUEST_NICE: i32 = 10;

/// Initializes a thread that works for guests: lowers its priority and calls `on_thread`.
pub(in crate::sandbox) fn init_guest_thread(on_thread: ThreadInit) {
    // A thread may always raise its own nice value. If it could not, serving would merely be less
    // smooth.
    let _ = rustix::process::setpriority_process(None, GUEST_NICE);
    on_thread();
}
