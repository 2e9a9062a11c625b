//! Replaces the host calls of WASI 0.2 components that a guest can make large, or that open and
//! close files, sockets and streams. A list that a guest passes is read where it lies in the
//! guest's memory, and moved in pieces (see [`super::host_call_pacer`]); what a call returns is
//! bounded. A `write` may wait between its pieces, so whatever is written to stdout and stderr
//! arrives whole.

mod file_streams;
mod files;
pub(in crate::sandbox) mod memory_descriptor;
mod memory_streams;
mod sockets;
mod streams;

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, WasmList};
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;
use wasmtime_wasi::p2::bindings::io::poll;
use wasmtime_wasi::p2::bindings::random::{insecure, random};
use wasmtime_wasi::random::WasiRandomView;
use wasmtime_wasi::{ResourceTableError, WasiView};

use super::guest_state::GuestState;
use super::host_call_pacer::HostCallPacer;
use super::wasi::RANDOM_PIECE;
use crate::model::guest_limits::RANDOM_LIST;

pub(in crate::sandbox) use self::files::bounded_path;

/// Replaces these functions in `linker`. The replacement of `open-at` is in [`super::file_types`].
pub(in crate::sandbox) fn add(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    streams::add(linker)?;
    add_poll(linker)?;
    add_random(linker)?;
    files::add(linker)?;
    memory_descriptor::add(linker)?;
    sockets::add(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// A reference to the store of the guest that makes the call.
type CallStore<'a> = StoreContextMut<'a, GuestState>;

/// Opens something that holds a descriptor, and returns `error` to the guest if the run has no free
/// handle.
fn open_with_handle<T: 'static, E>(
    call: &mut CallStore<'_>,
    error: E,
    open: impl FnOnce(&mut GuestState) -> wasmtime::Result<Result<Resource<T>, E>>,
) -> wasmtime::Result<(Result<Resource<T>, E>,)> {
    let state = call.data_mut();
    if state.handles.reserve().is_err() {
        return Ok((Err(error),));
    }
    let result = open(state)?;
    match &result {
        Ok(resource) => state.handles.bind(resource.rep()),
        Err(_) => state.handles.release_reserved(),
    }
    Ok((result,))
}

/// Opens a stream on a file in memory, as [`open_with_handle`] does for others.
fn open_in_memory<T: Send + 'static>(
    state: &mut GuestState,
    stream: Result<T, ErrorCode>,
) -> wasmtime::Result<(Result<Resource<T>, ErrorCode>,)> {
    let stream = match stream {
        Ok(stream) => stream,
        Err(error) => return Ok((Err(error),)),
    };
    if !state.handles.take_in_memory() {
        return Ok((Err(ErrorCode::InsufficientMemory),));
    }
    match state.ctx().table.push(stream) {
        Ok(resource) => {
            state.handles.bind_in_memory(resource.rep());
            Ok((Ok(resource),))
        }
        Err(error) => {
            state.handles.release_in_memory();
            Err(error.into())
        }
    }
}

fn add_poll(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("wasi:io/poll@0.2.12")?;
    interface.func_wrap_async(
        "poll",
        |mut call: CallStore<'_>, (list,): (WasmList<Resource<DynPollable>>,)| {
            Box::new(async move {
                if list.len() > call.data().handles.table_entries() {
                    return Err(ResourceTableError::Full.into());
                }
                let list = list.iter(&mut call)?.collect::<Result<Vec<_>, _>>()?;
                let ready = poll::Host::poll(call.data_mut().ctx().table, list).await?;
                Ok((ready,))
            })
        },
    )
}

fn add_random(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("wasi:random/random@0.2.12")?;
    interface.func_wrap_async(
        "get-random-bytes",
        |mut call: CallStore<'_>, (len,): (u64,)| {
            Box::new(async move {
                randomness(&mut call, len, |state, piece| {
                    random::Host::get_random_bytes(state.random(), piece)
                })
                .await
            })
        },
    )?;
    let mut interface = linker.instance("wasi:random/insecure@0.2.12")?;
    interface.func_wrap_async(
        "get-insecure-random-bytes",
        |mut call: CallStore<'_>, (len,): (u64,)| {
            Box::new(async move {
                randomness(&mut call, len, |state, piece| {
                    insecure::Host::get_insecure_random_bytes(state.random(), piece)
                })
                .await
            })
        },
    )
}

async fn randomness(
    call: &mut CallStore<'_>,
    len: u64,
    mut piece: impl FnMut(&mut GuestState, u64) -> wasmtime::Result<Vec<u8>> + Send,
) -> wasmtime::Result<(Vec<u8>,)> {
    if len > RANDOM_LIST.number {
        return Err(wasmtime::Error::msg(format!(
            "{len} random bytes were asked for at once; at most {} can be had",
            RANDOM_LIST.number
        )));
    }
    let stop = call.data().stop.clone();
    let mut pace = HostCallPacer::new(&stop);
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
    let mut left = len;
    loop {
        let now = left.min(u64::from(RANDOM_PIECE));
        bytes.extend(piece(call.data_mut(), now)?);
        left -= now;
        if left == 0 {
            return Ok((bytes,));
        }
        pace.checkpoint().await?;
    }
}
