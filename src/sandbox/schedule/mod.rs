//! Which guest runs when and where: the guest threads, their queues, and the threads for file
//! system calls.

pub(super) mod cpu_time;
pub(super) mod file_threads;
pub(super) mod guest_thread;
pub(super) mod inline;
pub(super) mod scheduler;
pub(super) mod short_run_predictor;
pub(super) mod tenant_queue;
