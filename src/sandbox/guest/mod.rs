//! One guest: its store, what it can import, its limits, and how it is stopped.

pub(super) mod classify_end;
pub(super) mod directory_snapshot;
pub(super) mod entry;
pub(super) mod execute;
pub(super) mod file_times;
pub(super) mod file_types;
pub(super) mod guest_state;
pub(super) mod handles;
pub(super) mod host_call_pacer;
pub(super) mod imports;
pub(super) mod input_buffer;
pub(super) mod memory_limiter;
pub(super) mod mounts;
pub(super) mod preempt;
pub(super) mod preempt_hook;
pub(super) mod preview1;
pub(super) mod preview2;
pub(super) mod readdir;
pub(super) mod stdin;
pub(super) mod stdio;
pub(super) mod stepped_clock;
pub(super) mod stepped_sleep;
pub(super) mod stop_signal;
pub(super) mod wasi;
pub(super) mod working_dir;
