//! Defines what a guest can import: WASI, and the host functions listed in [`HOST_FUNCTIONS`],
//! which is the only table of them. It builds the linkers for core modules and for components.

use std::collections::HashSet;

use wasmtime::{Caller, Engine, Linker, Store};
use wasmtime_wasi::I32Exit;

use super::file_times;
use super::guest_state::{GuestState, memory};
use super::host_call_pacer::HostCallPacer;
use super::preview1;
use super::readdir;
use super::stepped_clock::ClockKind;
use super::stepped_sleep;
use super::wasi::WASI_MODULES;
use super::{file_types, preview2};
use crate::model::guest_limits::LOG_LINE;

/// A function that a module may import when its run asks for it and the operator grants it.
pub(in crate::sandbox) struct HostFunction {
    /// The name as "module.name", as in `allowed_host_functions`.
    pub name: &'static str,
    /// Defines the function in a linker.
    define: fn(&mut Linker<GuestState>) -> wasmtime::Result<()>,
}

/// All host functions beyond WASI. To add one, add a row here, and a test.
pub(in crate::sandbox) const HOST_FUNCTIONS: [HostFunction; 2] = [
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

/// Builds the linker with everything that a core module may import.
pub(in crate::sandbox) fn core_linker(
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
        stepped_sleep::add_core(&mut linker)?;
    }
    linker.allow_shadowing(false);
    for function in HOST_FUNCTIONS {
        (function.define)(&mut linker)?;
    }
    Ok(linker)
}

/// Builds the linker with everything that a component may import.
pub(in crate::sandbox) fn component_linker(
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
        stepped_sleep::add_component(&mut linker)?;
    }
    Ok(linker)
}

/// Returns the functions that a core module may import, as (module, name).
pub(in crate::sandbox) fn core_import_names(
    engine: &Engine,
) -> wasmtime::Result<HashSet<(String, String)>> {
    let linker = core_linker(engine, ClockKind::Real)?;
    let mut store = Store::new(engine, GuestState::placeholder());
    Ok(linker
        .iter(&mut store)
        .map(|(module, name, _)| (module.to_owned(), name.to_owned()))
        .collect())
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
