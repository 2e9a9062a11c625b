//! Defines what a guest can import: WASI, and the host functions listed in [`HOST_FUNCTIONS`],
//! which is the only table of them. It builds the linkers for core modules and for components.

use std::collections::HashSet;
use std::sync::Arc;

use wasmtime::{Caller, Engine, Extern, Linker, Memory, Store};
use wasmtime_wasi::{I32Exit, WasiCtxView, WasiView};

use super::directory_snapshot::OpenListings;
use super::file_threads::FileCalls;
use super::file_times;
use super::handles::{DescriptorBudget, Handles, ReplacedStdio};
use super::host_call_pacer::HostCallPacer;
use super::memory_limiter::MemoryLimiter;
use super::preempt::PreemptionState;
use super::preview1;
use super::readdir;
use super::stdin::Input;
use super::stdio::GuestOutput;
use super::stepped_clock::{self, SteppedClock};
use super::stop::StopSignal;
use super::wasi::GuestWasi;
use super::{file_types, preview2};
use crate::event_log::{EventLog, EventLogBudget};
use crate::guest_limits::LOG_LINE;
use crate::request::Labels;

/// The data of a store: all that the host keeps for one run.
pub struct GuestState {
    /// The run's WASI context.
    pub(super) wasi: GuestWasi,
    /// The deterministic clock, which answers where the real one is withheld; `None` where the
    /// guest has the real one.
    pub stepped_clock: Option<SteppedClock>,
    /// Limits and counts the guest's memory.
    pub meter: MemoryLimiter,
    /// Asks the guest to end.
    pub stop: Arc<StopSignal>,
    /// The run's stdin; `None` if it is empty.
    pub(super) input: Option<Arc<Input>>,
    /// The stdout stream of the run.
    pub stdout: GuestOutput,
    /// The stderr stream of the run, to which `ringfence.log` writes too.
    pub stderr: GuestOutput,
    /// Which of a core module's descriptors 0 to 2 no longer are the standard streams.
    pub(super) replaced_stdio: ReplacedStdio,
    /// The handles and descriptors that the run holds.
    pub(super) handles: Handles,
    /// The run's labels, which `ringfence.label` reads.
    pub labels: Labels,
    /// The directory listings that the guest has open.
    pub listings: OpenListings,
    /// Makes the run's file system calls, on their own threads.
    pub(super) files: FileCalls,
    /// The guest's preemption state; `None` until the store has its limits.
    pub(super) preemption: Option<Arc<PreemptionState>>,
}

impl GuestState {
    /// Returns what makes calls on descriptor `fd` of a core module. A standard stream is not a
    /// file, so calls on one need no thread.
    pub(super) fn file_calls(&self, fd: i32) -> FileCalls {
        match matches!(fd, 0..=2) && !self.replaced_stdio.contains(fd) {
            true => FileCalls::none(),
            false => self.files.clone(),
        }
    }
}

impl WasiView for GuestState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi.get().ctx()
    }
}

/// A function that a module may import when its run asks for it and the operator grants it.
pub(super) struct HostFunction {
    /// The name as "module.name", as in `allowed_host_functions`.
    pub name: &'static str,
    /// Defines the function in a linker.
    define: fn(&mut Linker<GuestState>) -> wasmtime::Result<()>,
}

/// All host functions beyond WASI. To add one, add a row here, and a test.
pub(super) const HOST_FUNCTIONS: [HostFunction; 2] = [
    HostFunction {
        name: "ringfence.log",
        define: define_log,
    },
    HostFunction {
        name: "ringfence.label",
        define: define_label,
    },
];

/// The names of all functions in `HOST_FUNCTIONS`.
pub const HOST_FUNCTION_NAMES: [&str; HOST_FUNCTIONS.len()] = {
    let mut names = [""; HOST_FUNCTIONS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = HOST_FUNCTIONS[i].name;
        i += 1;
    }
    names
};

/// The names of the import modules that make up WASI for core modules.
pub(super) const WASI_MODULES: [&str; 2] = ["wasi_snapshot_preview1", "wasi_unstable"];

/// The clock that a guest's imports read. Each has a set of imports, since sleeping is an import
/// too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockKind {
    /// The host's real clock.
    Real,
    /// A deterministic clock, which only the guest's readings advance.
    Stepped,
}

/// Builds the linker with everything that a core module may import.
pub(super) fn core_linker(
    engine: &Engine,
    clock: ClockKind,
) -> wasmtime::Result<Linker<GuestState>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state: &mut GuestState| state.wasi.get())?;
    wasmtime_wasi::p0::add_to_linker_async(&mut linker, |state: &mut GuestState| state.wasi.get())?;
    linker.allow_shadowing(true);
    for module in WASI_MODULES {
        // Upstream turns exit codes from 126 on into an error, but a guest may exit with any code.
        linker.func_wrap(module, "proc_exit", |code: i32| -> wasmtime::Result<()> {
            Err(I32Exit(code).into())
        })?;
    }
    preview1::add(&mut linker)?;
    file_types::add_core(&mut linker)?;
    readdir::add_core(&mut linker)?;
    file_times::add_core(&mut linker, clock)?;
    if clock == ClockKind::Stepped {
        stepped_clock::add_core(&mut linker)?;
    }
    linker.allow_shadowing(false);
    for function in HOST_FUNCTIONS {
        (function.define)(&mut linker)?;
    }
    Ok(linker)
}

/// Builds the linker with everything that a component may import.
pub(super) fn component_linker(
    engine: &Engine,
    clock: ClockKind,
) -> wasmtime::Result<wasmtime::component::Linker<GuestState>> {
    let mut linker = wasmtime::component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    preview2::add(&mut linker)?;
    file_types::add_component(&mut linker)?;
    readdir::add_component(&mut linker)?;
    file_times::add_component(&mut linker, clock)?;
    if clock == ClockKind::Stepped {
        stepped_clock::add_component(&mut linker)?;
    }
    Ok(linker)
}

/// Returns the functions that a core module may import, as (module, name).
pub(super) fn core_import_names(engine: &Engine) -> wasmtime::Result<HashSet<(String, String)>> {
    let linker = core_linker(engine, ClockKind::Real)?;
    let mut store = Store::new(engine, GuestState::placeholder());
    Ok(linker
        .iter(&mut store)
        .map(|(module, name, _)| (module.to_owned(), name.to_owned()))
        .collect())
}

impl GuestState {
    /// Creates the state of a store that runs nothing.
    fn placeholder() -> Self {
        use super::stdio::Output;
        use crate::limits::{OutputMode, OutputPolicy};
        let stop = Arc::new(StopSignal::default());
        let output = Output::new(
            Some(0),
            OutputPolicy::Stop,
            OutputMode::Captured,
            EventLog::new(0, EventLogBudget::new(0)),
            Arc::default(),
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
            meter: MemoryLimiter::new(0, Arc::default()),
            stop: Arc::clone(&stop),
            input: None,
            stdout: stream(crate::outcome::Stream::Stdout),
            stderr: stream(crate::outcome::Stream::Stderr),
            replaced_stdio: ReplacedStdio::default(),
            handles: Handles::new(0, DescriptorBudget::of_process(0).account(false)),
            labels: Labels::default(),
            listings: OpenListings::default(),
            files: FileCalls::none(),
            preemption: None,
        }
    }
}

const LEVELS: [&str; 5] = ["trace", "debug", "info", "warn", "error"];

/// Defines `ringfence.log(level, ptr, len)`, which writes "[level] text" and a newline to the run's
/// stderr. Levels are 0 (trace) to 4 (error). Another level traps, as does a text over 64 KiB.
fn define_log(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.func_wrap_async(
        "ringfence",
        "log",
        |mut caller: Caller<'_, GuestState>, (level, ptr, len): (i32, i32, i32)| {
            Box::new(async move {
                let Some(level) = usize::try_from(level).ok().and_then(|i| LEVELS.get(i)) else {
                    return Err(wasmtime::Error::msg(format!(
                        "ringfence.log: level {level} is not 0 to 4"
                    )));
                };
                let memory = memory(&mut caller)?;
                let text = slice(memory.data(&caller), ptr, len)?;
                if text.len() > LOG_LINE.size() {
                    return Err(wasmtime::Error::msg(format!(
                        "ringfence.log: {} bytes are more than {}",
                        text.len(),
                        LOG_LINE.size()
                    )));
                }
                // The line is written in one piece, so that nothing comes between it and its level.
                let line = [b"[", level.as_bytes(), b"] ", text, b"\n"].concat();
                let stderr = caller.data().stderr.clone();
                let mut pace = HostCallPacer::new(&stderr.stop);
                stderr.write_all(&line, &mut pace).await?;
                Ok(())
            })
        },
    )?;
    Ok(())
}

/// Defines `ringfence.label(key_ptr, key_len, buf_ptr, buf_len) -> i32`, which copies as much of a
/// label's value as the buffer holds, and returns the value's whole length, or -1 when the run has
/// no such label.
fn define_label(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.func_wrap(
        "ringfence",
        "label",
        |mut caller: Caller<'_, GuestState>,
         key_ptr: i32,
         key_len: i32,
         buf_ptr: i32,
         buf_len: i32|
         -> wasmtime::Result<i32> {
            let memory = memory(&mut caller)?;
            let (bytes, state) = memory.data_and_store_mut(&mut caller);
            let key = std::str::from_utf8(slice(bytes, key_ptr, key_len)?).ok();
            let Some(value) = key.and_then(|key| state.labels.get(key)) else {
                return Ok(-1);
            };
            let range = range(bytes, buf_ptr, buf_len)?;
            let copied = value.len().min(range.len());
            bytes[range][..copied].copy_from_slice(&value.as_bytes()[..copied]);
            // A label's value is at most 128 bytes.
            Ok(i32::try_from(value.len()).unwrap_or(i32::MAX))
        },
    )?;
    Ok(())
}

pub(super) fn memory(caller: &mut Caller<'_, GuestState>) -> wasmtime::Result<Memory> {
    caller
        .get_export("memory")
        .and_then(Extern::into_memory)
        .ok_or_else(|| wasmtime::Error::msg("missing required memory export"))
}

fn slice(bytes: &[u8], ptr: i32, len: i32) -> wasmtime::Result<&[u8]> {
    Ok(&bytes[range(bytes, ptr, len)?])
}

fn range(bytes: &[u8], ptr: i32, len: i32) -> wasmtime::Result<std::ops::Range<usize>> {
    // Both numbers are unsigned in the guest, so their sum fits in 33 bits.
    let start = ptr.cast_unsigned() as usize;
    let end = start + len.cast_unsigned() as usize;
    if end > bytes.len() {
        return Err(wasmtime::Trap::MemoryOutOfBounds.into());
    }
    Ok(start..end)
}
