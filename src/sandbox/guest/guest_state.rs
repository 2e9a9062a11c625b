//! What the host keeps for one run in its store.

use std::sync::Arc;
use std::time::Instant;

use wasmtime::{Caller, Extern, Memory};
use wasmtime_wasi::{WasiCtxView, WasiView};

use super::directory_snapshot::OpenListings;
use super::handles::{DescriptorBudget, Handles, ReplacedStdio};
use super::memory_files::{MemoryFiles, Route};
use super::memory_limiter::MemoryLimiter;
use super::preempt::PreemptionState;
use super::stdin::Input;
use super::stdio::GuestOutput;
use super::stepped_clock::SteppedClock;
use super::stop_signal::StopSignal;
use super::wasi::GuestWasi;
use crate::event_log::{EventLog, EventLogBudget};
use crate::model::request::Labels;
use crate::sandbox::schedule::file_threads::FileCalls;

/// The data of a store: all that the host keeps for one run.
pub struct GuestState {
    /// The run's WASI context.
    pub(in crate::sandbox) wasi: GuestWasi,
    /// The deterministic clock, which answers where the real one is withheld; `None` where the
    /// guest has the real one.
    pub stepped_clock: Option<SteppedClock>,
    /// Limits and counts the guest's memory.
    pub memory_limiter: MemoryLimiter,
    /// Asks the guest to end.
    pub stop: Arc<StopSignal>,
    /// The run's stdin; `None` if it is empty.
    pub(in crate::sandbox) input: Option<Arc<Input>>,
    /// The stdout stream of the run.
    pub stdout: GuestOutput,
    /// The stderr stream of the run, to which `ringfence.log` writes too.
    pub stderr: GuestOutput,
    /// Which of a core module's descriptors 0 to 2 no longer are the standard streams.
    pub(in crate::sandbox) replaced_stdio: ReplacedStdio,
    /// The handles and descriptors that the run holds.
    pub(in crate::sandbox) handles: Handles,
    /// The run's labels, which `ringfence.label` reads.
    pub labels: Labels,
    /// The directory listings that the guest has open.
    pub listings: OpenListings,
    /// The run's memory file system; `None` where it has none.
    pub(in crate::sandbox) memory_files: Option<Box<MemoryFiles>>,
    /// Makes the run's file system calls, on their own threads.
    pub(in crate::sandbox) files: FileCalls,
    /// The guest's preemption state; `None` until the store has its limits.
    pub(in crate::sandbox) preemption: Option<Arc<PreemptionState>>,
    /// When the module was instantiated; `None` until it is.
    pub(in crate::sandbox) instantiated: Option<Instant>,
}

impl GuestState {
    /// Returns what makes calls on descriptor `fd` of a core module. A standard stream is not a
    /// file, so calls on one need no thread.
    pub(in crate::sandbox) fn file_calls(&self, fd: i32) -> FileCalls {
        match matches!(fd, 0..=2) && !self.replaced_stdio.contains(fd) {
            true => FileCalls::none(),
            false => self.files.clone(),
        }
    }
}

impl GuestState {
    /// Decides where a call of a core module on the descriptors `fds` goes.
    #[inline]
    pub(in crate::sandbox) fn route<const N: usize>(&self, fds: [i32; N]) -> Route<N> {
        match &self.memory_files {
            None => Route::Runtime(fds),
            Some(files) => files.descriptors.route(fds),
        }
    }
}

impl WasiView for GuestState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi.get().ctx()
    }
}

impl GuestState {
    /// Creates the state of a store that runs nothing.
    pub(in crate::sandbox) fn placeholder() -> Self {
        use super::stdio::Output;
        use crate::model::limits::{OutputMode, OutputPolicy};
        let stop = Arc::new(StopSignal::default());
        let output = Output::new(
            Some(0),
            OutputPolicy::Stop,
            OutputMode::Captured,
            EventLog::new(0, EventLogBudget::new(0)),
            Arc::default(),
            None,
        );
        let output = Arc::new(output);
        let stream = |stream| GuestOutput {
            detached: false,
            output: Arc::clone(&output),
            stream,
            stop: Arc::clone(&stop),
            stall_timeout: std::time::Duration::ZERO,
        };
        Self {
            wasi: GuestWasi::none(),
            stepped_clock: None,
            memory_limiter: MemoryLimiter::new(0, Arc::default()),
            stop: Arc::clone(&stop),
            input: None,
            stdout: stream(crate::model::outcome::Stream::Stdout),
            stderr: stream(crate::model::outcome::Stream::Stderr),
            replaced_stdio: ReplacedStdio::default(),
            handles: Handles::new(0, DescriptorBudget::of_process(0).account(false)),
            labels: Labels::default(),
            listings: OpenListings::default(),
            memory_files: None,
            files: FileCalls::none(),
            preemption: None,
            instantiated: None,
        }
    }
}

pub(in crate::sandbox) fn memory(caller: &mut Caller<'_, GuestState>) -> wasmtime::Result<Memory> {
    caller
        .get_export("memory")
        .and_then(Extern::into_memory)
        .ok_or_else(|| wasmtime::Error::msg("missing required memory export"))
}
