//! What a guest did, from its first instruction on: data, never an error.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It returned, or called `proc_exit`.
    Exited(u32),
    /// It trapped, or made a host call that no guest may make.
    Trapped,
    /// A growth was denied and the run then trapped, or exited with the code given.
    MemoryExceeded(Option<u32>),
    /// Out of fuel.
    FuelExhausted,
    /// The call stack went over its class.
    StackOverflow,
    /// The wall time was reached.
    TimedOut,
    /// A stream went over the output limit.
    OutputExceeded,
    /// It was ended from outside.
    Cancelled(CancelCause),
}

impl Outcome {
    /// The code that the guest ended with, where it ended by itself.
    pub fn exit_code(self) -> Option<u32> {
        match self {
            Self::Exited(code) => Some(code),
            Self::MemoryExceeded(code) => code,
            Self::Trapped
            | Self::FuelExhausted
            | Self::StackOverflow
            | Self::TimedOut
            | Self::OutputExceeded
            | Self::Cancelled(_) => None,
        }
    }
}

/// Who ended a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelCause {
    /// Somebody called for it.
    CancelRpc,
    /// The caller went away.
    CallerGone,
    /// The caller stopped reading.
    ReaderStalled,
    /// The daemon is ending.
    Draining,
}

/// What went wrong in a guest.
#[derive(Clone, Debug)]
pub struct Trap {
    /// From the closed list that the API documents.
    pub code: &'static str,
    /// For people, printable.
    pub message: String,
    /// Innermost first.
    pub backtrace: Vec<Frame>,
}

/// One call on a guest's stack.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Index of the function in its module.
    pub func_index: u32,
    /// Name of the function, printable; empty where the module tells none.
    pub func_name: String,
    /// Name of the module, printable; empty where it tells none.
    pub module_name: String,
    /// Byte offset in the module.
    pub module_offset: Option<u64>,
}

/// One result of an entry point, or one of its parameters.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// An i32.
    I32(i32),
    /// An i64.
    I64(i64),
    /// An f32.
    F32(f32),
    /// An f64.
    F64(f64),
}

/// Which of the two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What became of one output stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes that the guest wrote, dropped ones included.
    pub bytes: u64,
    /// Whether some went over the limit and were not delivered.
    pub truncated: bool,
}

/// What a run that goes on has used so far, for whoever looks at it from outside.
#[derive(Debug, Default)]
pub struct Usage {
    fuel: AtomicU64,
    memory: AtomicU64,
    written: [AtomicU64; 2],
}

impl Usage {
    /// Fuel.
    pub fn fuel(&self) -> u64 {
        self.fuel.load(Ordering::Relaxed)
    }

    /// The most bytes held at once, of linear memory and of directory listings.
    pub fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// Bytes written to a stream.
    pub fn written(&self, stream: Stream) -> u64 {
        self.written[stream as usize].load(Ordering::Relaxed)
    }

    /// Notes fuel.
    pub fn set_fuel(&self, fuel: u64) {
        self.fuel.store(fuel, Ordering::Relaxed);
    }

    /// Notes memory.
    pub fn set_memory(&self, bytes: u64) {
        self.memory.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Notes what was written to a stream.
    pub fn set_written(&self, stream: Stream, bytes: u64) {
        self.written[stream as usize].store(bytes, Ordering::Relaxed);
    }
}

/// How a run ended and what it used.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// What went wrong, where something did.
    pub trap: Option<Trap>,
    /// Wall time from instantiation.
    pub duration: Duration,
    /// Processor time of the guest, to within 0.2 ms, and of the threads that made its file system
    /// calls.
    pub cpu_time: Duration,
    /// Fuel used, where metered.
    pub fuel_consumed: Option<u64>,
    /// The most bytes held at once, of linear memory and of directory listings.
    pub memory_used: u64,
    /// Whether a growth or a directory listing was denied.
    pub memory_denied: bool,
    /// What the entry point returned.
    pub values: Vec<Value>,
    /// Bytes of standard input that the guest read.
    pub stdin_read: u64,
    /// Standard output.
    pub stdout: Written,
    /// Standard error.
    pub stderr: Written,
}
