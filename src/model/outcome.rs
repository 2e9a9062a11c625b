//! What a guest did from its first instruction on, and what it used: data, never an error.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::collected::UncollectedFiles;

/// How the guest of a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It returned, or called `proc_exit`; with its exit code.
    Exited(u32),
    /// It trapped, or made a host call that no guest may make.
    Trapped,
    /// A growth was denied and the run then trapped (`None`), or exited with the code given.
    MemoryExceeded(Option<u32>),
    /// It ran out of fuel.
    FuelExhausted,
    /// Its call stack outgrew the stack's class.
    StackOverflow,
    /// It reached the limit of its wall time.
    TimedOut,
    /// A stream went over the output limit.
    OutputExceeded,
    /// It was ended from outside.
    Cancelled(CancelCause),
}

impl CancelCause {
    /// Returns the name of the cause in the log and in the audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CancelRpc => "cancel_rpc",
            Self::CallerGone => "caller_gone",
            Self::ReaderStalled => "reader_stalled",
            Self::Draining => "draining",
        }
    }
}

impl Outcome {
    /// The names of all outcomes in the log, in the audit and in metrics.
    pub const NAMES: [&'static str; 8] = [
        "exited",
        "trapped",
        "memory_exceeded",
        "fuel_exhausted",
        "stack_overflow",
        "timed_out",
        "output_exceeded",
        "cancelled",
    ];

    /// Returns the position of the outcome's name in [`Self::NAMES`].
    pub const fn index(self) -> usize {
        match self {
            Self::Exited(_) => 0,
            Self::Trapped => 1,
            Self::MemoryExceeded(_) => 2,
            Self::FuelExhausted => 3,
            Self::StackOverflow => 4,
            Self::TimedOut => 5,
            Self::OutputExceeded => 6,
            Self::Cancelled(_) => 7,
        }
    }

    /// Returns the name of the outcome in the log and in the audit.
    pub const fn as_str(self) -> &'static str {
        Self::NAMES[self.index()]
    }

    /// Returns why the run was cancelled; `None` where it was not.
    pub const fn cause(self) -> Option<CancelCause> {
        match self {
            Self::Cancelled(cause) => Some(cause),
            Self::Exited(_)
            | Self::Trapped
            | Self::MemoryExceeded(_)
            | Self::FuelExhausted
            | Self::StackOverflow
            | Self::TimedOut
            | Self::OutputExceeded => None,
        }
    }

    /// Returns the code that the guest ended with; `None` where it did not end by itself.
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

/// Who ended a run from outside, or why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelCause {
    /// A `CancelRun` or `CancelRuns` call, or a `cancel` of Interact.
    CancelRpc,
    /// Its caller went away.
    CallerGone,
    /// Its caller stopped reading while the guest had output for it.
    ReaderStalled,
    /// The daemon is ending.
    Draining,
}

/// What went wrong in a guest.
#[derive(Clone, Debug)]
pub struct Trap {
    /// One code of the closed list that the API documents.
    pub code: &'static str,
    /// A description for people, printable.
    pub message: String,
    /// The calls on the guest's stack, the innermost first.
    pub backtrace: Vec<Frame>,
}

/// One call on a guest's stack.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Index of the function in its module.
    pub func_index: u32,
    /// Name of the function, printable; empty where the module gives none.
    pub func_name: String,
    /// Name of the module, printable; empty where it gives none.
    pub module_name: String,
    /// Byte offset in the module; `None` where it is not known.
    pub module_offset: Option<u64>,
}

/// One result of an entry point, or one of its parameters.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// A 32-bit integer, `i32`.
    I32(i32),
    /// A 64-bit integer, `i64`.
    I64(i64),
    /// A 32-bit float, `f32`.
    F32(f32),
    /// A 64-bit float, `f64`.
    F64(f64),
}

/// One of the two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The standard output stream.
    Stdout,
    /// The standard error stream.
    Stderr,
}

/// How much went to one output stream, and whether all of it was delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes that the guest wrote, dropped ones included.
    pub bytes: u64,
    /// Whether some bytes went over the limit and were not delivered.
    pub truncated: bool,
}

/// Counters of what a run has used so far, for whoever looks at it from outside.
#[derive(Debug, Default)]
pub struct LiveUsage {
    fuel: AtomicU64,
    memory: AtomicU64,
    written: [AtomicU64; 2],
}

impl LiveUsage {
    /// Returns the fuel that was used so far.
    pub fn fuel(&self) -> u64 {
        self.fuel.load(Ordering::Relaxed)
    }

    /// Returns the most bytes held at once, of linear memory, of directory listings and of files in
    /// memory.
    pub fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// Returns the bytes that were written to a stream so far.
    pub fn written(&self, stream: Stream) -> u64 {
        self.written[stream as usize].load(Ordering::Relaxed)
    }

    /// Notes how much fuel was used so far.
    pub fn set_fuel(&self, fuel: u64) {
        self.fuel.store(fuel, Ordering::Relaxed);
    }

    /// Notes how many bytes are held now; only the maximum is kept.
    pub fn set_memory(&self, bytes: u64) {
        self.memory.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Notes how many bytes were written to a stream so far.
    pub fn set_written(&self, stream: Stream, bytes: u64) {
        self.written[stream as usize].store(bytes, Ordering::Relaxed);
    }
}

/// How a run ended and what it used.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// How the guest ended.
    pub outcome: Outcome,
    /// What went wrong; `None` where nothing did.
    pub trap: Option<Trap>,
    /// Wall time from instantiation.
    pub duration: Duration,
    /// The part of `duration` that instantiating the module took; `None` where that did not end, or
    /// for a run that comes from the history.
    pub instantiation: Option<Duration>,
    /// Processor time of the guest, to within 0.2 ms, and of the threads that made its file system
    /// calls.
    pub cpu_time: Duration,
    /// Fuel that was used; `None` where the run was not metered.
    pub fuel_consumed: Option<u64>,
    /// The most bytes held at once, of linear memory, of directory listings and of files in memory.
    pub memory_used: u64,
    /// Whether a growth, a directory listing or a file in memory was denied.
    pub memory_denied: bool,
    /// The values that the entry point returned.
    pub values: Vec<Value>,
    /// Bytes of standard input that the guest read.
    pub stdin_read: u64,
    /// What became of standard output.
    pub stdout: Written,
    /// What became of standard error.
    pub stderr: Written,
    /// The files that were asked for and are not returned; `None` where there are none.
    pub uncollected: Option<Box<UncollectedFiles>>,
    /// What became of the session that the run belongs to; `None` where it belongs to none.
    pub session: Option<SessionReport>,
}

/// What a run tells of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionReport {
    /// How many programs the session has executed, this one included.
    pub executions: u64,
    /// Whether the session has ended with this run, and its state is lost.
    pub ended: bool,
}
