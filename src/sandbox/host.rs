//! What a guest can import: WASI, and the host functions of [`HOST_FUNCTIONS`], the one table of them.

use std::collections::HashSet;
use std::sync::Arc;

use wasmtime::{Caller, Engine, Extern, Linker, Memory, Store};
use wasmtime_wasi::{I32Exit, WasiCtxView, WasiView};

use super::clock::{self, SteppedClock};
use super::directories;
use super::file_times;
use super::files::FileCalls;
use super::handles::{DescriptorBudget, Handles, Moved};
use super::listing::OpenListings;
use super::meter::Meter;
use super::pace::Pace;
use super::preview1;
use super::stdin::Input;
use super::stdio::GuestOutput;
use super::stop::Stop;
use super::turn::Watched;
use super::wasi::GuestWasi;
use super::{preview2, regular};
use crate::guest_limits::LOG_LINE;
use crate::log::{Log, Pool};
use crate::request::Labels;

/// A store's data: all that the host keeps for one run.
pub struct State {
    /// WASI's own.
    pub(super) wasi: GuestWasi,
    /// The clock that answers where the real one is withheld.
    pub stepped: Option<SteppedClock>,
    /// Limits and counts memory.
    pub meter: Meter,
    /// Asks the guest to end.
    pub stop: Arc<Stop>,
    /// What the run reads, where that is anything.
    pub(super) input: Option<Arc<Input>>,
    /// The run's stdout.
    pub stdout: GuestOutput,
    /// The run's stderr, where `ringfence.log` writes too.
    pub stderr: GuestOutput,
    /// Which of a core module's standard descriptors are these no longer.
    pub(super) moved: Moved,
    /// The descriptors that the run holds.
    pub(super) handles: Handles,
    /// What `ringfence.label` reads.
    pub labels: Labels,
    /// The directory listings that the guest has open.
    pub listings: OpenListings,
    /// What file system calls are made by.
    pub(super) files: FileCalls,
    /// The guest's turn, once the store has its limits.
    pub(super) watched: Option<Arc<Watched>>,
}

impl State {
    /// What a call on a descriptor of a core module is made by. A standard stream is no file.
    pub(super) fn file_calls(&self, fd: i32) -> FileCalls {
        match matches!(fd, 0..=2) && !self.moved.contains(fd) {
            true => FileCalls::none(),
            false => self.files.clone(),
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi.get().ctx()
    }
}

/// A function that a module may import when its run asks for it and the operator grants it.
pub(super) struct HostFunction {
    /// "module.name", as in `allowed_host_functions`.
    pub name: &'static str,
    /// Defines it.
    define: fn(&mut Linker<State>) -> wasmtime::Result<()>,
}

/// Every host function beyond WASI. To add one: a row here, and a test.
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

/// The names in `HOST_FUNCTIONS`.
pub const HOST_FUNCTION_NAMES: [&str; HOST_FUNCTIONS.len()] = {
    let mut names = [""; HOST_FUNCTIONS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = HOST_FUNCTIONS[i].name;
        i += 1;
    }
    names
};

/// The modules that make up WASI for core modules.
pub(super) const WASI_MODULES: [&str; 2] = ["wasi_snapshot_preview1", "wasi_unstable"];

/// Which clock a guest's imports read. Two sets of imports, since sleeping is an import too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The real one.
    Real,
    /// The deterministic one.
    Stepped,
}

/// Everything that a core module may import.
pub(super) fn core_linker(engine: &Engine, clock: Clock) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state: &mut State| state.wasi.get())?;
    wasmtime_wasi::p0::add_to_linker_async(&mut linker, |state: &mut State| state.wasi.get())?;
    linker.allow_shadowing(true);
    for module in WASI_MODULES {
        // Upstream turns codes from 126 on into an error; a guest may exit with any.
        linker.func_wrap(module, "proc_exit", |code: i32| -> wasmtime::Result<()> {
            Err(I32Exit(code).into())
        })?;
    }
    preview1::add(&mut linker)?;
    regular::add_core(&mut linker)?;
    directories::add_core(&mut linker)?;
    file_times::add_core(&mut linker, clock)?;
    if clock == Clock::Stepped {
        clock::add_core(&mut linker)?;
    }
    linker.allow_shadowing(false);
    for function in HOST_FUNCTIONS {
        (function.define)(&mut linker)?;
    }
    Ok(linker)
}

/// Everything that a component may import.
pub(super) fn component_linker(
    engine: &Engine,
    clock: Clock,
) -> wasmtime::Result<wasmtime::component::Linker<State>> {
    let mut linker = wasmtime::component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    preview2::add(&mut linker)?;
    regular::add_component(&mut linker)?;
    directories::add_component(&mut linker)?;
    file_times::add_component(&mut linker, clock)?;
    if clock == Clock::Stepped {
        clock::add_component(&mut linker)?;
    }
    Ok(linker)
}

/// The functions that a core module may import, as (module, name).
pub(super) fn offered(engine: &Engine) -> wasmtime::Result<HashSet<(String, String)>> {
    let linker = core_linker(engine, Clock::Real)?;
    let mut store = Store::new(engine, State::idle());
    Ok(linker
        .iter(&mut store)
        .map(|(module, name, _)| (module.to_owned(), name.to_owned()))
        .collect())
}

impl State {
    /// For a store that runs nothing.
    fn idle() -> Self {
        use super::stdio::Output;
        use crate::limits::{Delivery, OutputPolicy};
        let stop = Arc::new(Stop::default());
        let output = Output::new(
            Some(0),
            OutputPolicy::Stop,
            Delivery::Captured,
            Log::new(0, Pool::new(0)),
            Arc::default(),
        );
        let output = Arc::new(output);
        let stream = |stream| GuestOutput {
            detached: false,
            output: Arc::clone(&output),
            stream,
            stop: Arc::clone(&stop),
            stall: std::time::Duration::ZERO,
        };
        Self {
            wasi: GuestWasi::none(),
            stepped: None,
            meter: Meter::new(0, Arc::default()),
            stop: Arc::clone(&stop),
            input: None,
            stdout: stream(crate::outcome::Stream::Stdout),
            stderr: stream(crate::outcome::Stream::Stderr),
            moved: Moved::default(),
            handles: Handles::new(0, DescriptorBudget::of_process(0).account(false)),
            labels: Labels::default(),
            listings: OpenListings::default(),
            files: FileCalls::none(),
            watched: None,
        }
    }
}

const LEVELS: [&str; 5] = ["trace", "debug", "info", "warn", "error"];

/// `ringfence.log(level, ptr, len)`: writes "[level] text" and a newline to the run's stderr. Levels are 0 (trace) to
/// 4 (error); another one traps, as does a text over 64 KiB.
fn define_log(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap_async(
        "ringfence",
        "log",
        |mut caller: Caller<'_, State>, (level, ptr, len): (i32, i32, i32)| {
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
                // In one piece, so that nothing stands between a line and its level.
                let line = [b"[", level.as_bytes(), b"] ", text, b"\n"].concat();
                let stderr = caller.data().stderr.clone();
                let mut pace = Pace::new(&stderr.stop);
                stderr.write_all(&line, &mut pace).await?;
                Ok(())
            })
        },
    )?;
    Ok(())
}

/// `ringfence.label(key_ptr, key_len, buf_ptr, buf_len) -> i32`: copies as much of a label's value as the buffer
/// holds, and returns the value's whole length; -1 when the run has no such label.
fn define_label(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap(
        "ringfence",
        "label",
        |mut caller: Caller<'_, State>,
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

pub(super) fn memory(caller: &mut Caller<'_, State>) -> wasmtime::Result<Memory> {
    caller
        .get_export("memory")
        .and_then(Extern::into_memory)
        .ok_or_else(|| wasmtime::Error::msg("missing required memory export"))
}

fn slice(bytes: &[u8], ptr: i32, len: i32) -> wasmtime::Result<&[u8]> {
    Ok(&bytes[range(bytes, ptr, len)?])
}

fn range(bytes: &[u8], ptr: i32, len: i32) -> wasmtime::Result<std::ops::Range<usize>> {
    // Both are unsigned in the guest: their sum fits 33 bits.
    let start = ptr.cast_unsigned() as usize;
    let end = start + len.cast_unsigned() as usize;
    if end > bytes.len() {
        return Err(wasmtime::Trap::MemoryOutOfBounds.into());
    }
    Ok(start..end)
}
