//! Replaces the functions of components' output streams, so that a write of any size arrives whole.

use bytes::Bytes;
use wasmtime::component::{Linker, Resource, ResourceType, WasmList};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::p2::bindings::io::streams::{self, HostInputStream, HostOutputStream};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, StreamError, StreamResult};

use super::CallStore;
use super::file_streams::ANY_AMOUNT_OF_FILE;
use crate::sandbox::guest::guest_state::GuestState;
use crate::sandbox::guest::host_call_pacer::HostCallPacer;
use crate::sandbox::guest::stdio::ANY_AMOUNT;

/// The maximum number of bytes that are passed to a stream at once. All of the runtime's own
/// streams accept as many.
const STREAM_PIECE: usize = 64 << 10;

/// The interface whose functions are replaced, in the version that the runtime offers.
const INTERFACE: &str = "wasi:io/streams@0.2.12";

/// The return type of the functions on streams.
type StreamCallResult<T> = wasmtime::Result<(Result<T, streams::StreamError>,)>;

/// Replaces the functions that write to a stream, and those that drop one.
pub(super) fn add(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(INTERFACE)?;
    interface.func_wrap_async(
        "[method]output-stream.write",
        |mut call: CallStore<'_>, (to, bytes): (Resource<DynOutputStream>, WasmList<u8>)| {
            Box::new(async move {
                let written = write(&mut call, &to, &bytes).await;
                of_stream(&mut call, written)
            })
        },
    )?;
    interface.func_wrap_async(
        "[method]output-stream.blocking-write-and-flush",
        |mut call: CallStore<'_>, (to, bytes): (Resource<DynOutputStream>, WasmList<u8>)| {
            Box::new(async move {
                let written = write_and_flush(&mut call, &to, &bytes).await;
                of_stream(&mut call, written)
            })
        },
    )?;
    interface.func_wrap_async(
        "[method]output-stream.write-zeroes",
        |mut call: CallStore<'_>, (to, len): (Resource<DynOutputStream>, u64)| {
            Box::new(async move {
                let written = write_zeroes(&mut call, &to, len, false).await;
                of_stream(&mut call, written)
            })
        },
    )?;
    interface.func_wrap_async(
        "[method]output-stream.blocking-write-zeroes-and-flush",
        |mut call: CallStore<'_>, (to, len): (Resource<DynOutputStream>, u64)| {
            Box::new(async move {
                let written = write_zeroes(&mut call, &to, len, true).await;
                of_stream(&mut call, written)
            })
        },
    )?;
    type Splice = (Resource<DynOutputStream>, Resource<DynInputStream>, u64);
    interface.func_wrap_async(
        "[method]output-stream.splice",
        |mut call: CallStore<'_>, (to, from, len): Splice| {
            Box::new(async move {
                let moved = splice(&mut call, &to, &from, len, false).await;
                of_stream(&mut call, moved)
            })
        },
    )?;
    interface.func_wrap_async(
        "[method]output-stream.blocking-splice",
        |mut call: CallStore<'_>, (to, from, len): Splice| {
            Box::new(async move {
                let moved = splice(&mut call, &to, &from, len, true).await;
                of_stream(&mut call, moved)
            })
        },
    )?;
    add_drops(linker)
}

/// Replaces the destructors of streams: a stream of a file counts as a handle until it is dropped.
fn add_drops(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(INTERFACE)?;
    interface.resource_async(
        "input-stream",
        ResourceType::host::<DynInputStream>(),
        |mut call: CallStore<'_>, rep| {
            Box::new(async move {
                let table = call.data_mut().ctx().table;
                HostInputStream::drop(table, Resource::new_own(rep)).await?;
                call.data_mut().handles.close(rep);
                Ok(())
            })
        },
    )?;
    interface.resource_async(
        "output-stream",
        ResourceType::host::<DynOutputStream>(),
        |mut call: CallStore<'_>, rep| {
            Box::new(async move {
                let table = call.data_mut().ctx().table;
                HostOutputStream::drop(table, Resource::new_own(rep)).await?;
                call.data_mut().handles.close(rep);
                Ok(())
            })
        },
    )
}

fn of_stream<T>(call: &mut CallStore<'_>, result: StreamResult<T>) -> StreamCallResult<T> {
    Ok((match result {
        Ok(value) => Ok(value),
        Err(error) => Err(streams::Host::convert_stream_error(
            call.data_mut().ctx().table,
            error,
        )?),
    },))
}

/// Returns the stream to which the handle `to` refers.
fn stream<'a>(
    call: &'a mut CallStore<'_>,
    to: &Resource<DynOutputStream>,
) -> StreamResult<&'a mut DynOutputStream> {
    Ok(call.data_mut().ctx().table.get_mut(to)?)
}

/// Waits until `to` takes anything, and returns how many bytes it takes at once.
async fn ready(
    call: &mut CallStore<'_>,
    to: &Resource<DynOutputStream>,
    pace: &mut HostCallPacer<'_>,
) -> StreamResult<usize> {
    loop {
        let stream = stream(call, to)?;
        match stream.check_write()? {
            0 => stream.ready().await,
            most => return Ok(most),
        }
        checkpoint(pace).await?;
    }
}

async fn checkpoint(pace: &mut HostCallPacer<'_>) -> StreamResult<()> {
    let paced = pace.checkpoint().await;
    paced.map_err(|stopped| StreamError::Trap(stopped.into()))
}

/// Passes a piece to `to`, which takes `most` bytes at once.
async fn hand(
    call: &mut CallStore<'_>,
    to: &Resource<DynOutputStream>,
    piece: Bytes,
    most: usize,
) -> StreamResult<()> {
    let stream = stream(call, to)?;
    if matches!(most, ANY_AMOUNT | ANY_AMOUNT_OF_FILE) {
        // Stdout and stderr wait for the reader, and are never short. What a file takes is in the
        // file when the guest goes on, which may not ask this stream anything again.
        stream.blocking_write_and_flush(piece).await
    } else {
        stream.write(piece)
    }
}

/// Writes all of `bytes`. A guest that asked how much it may write can write that much without
/// waiting; one that writes more waits.
async fn write(
    call: &mut CallStore<'_>,
    to: &Resource<DynOutputStream>,
    bytes: &WasmList<u8>,
) -> StreamResult<()> {
    if bytes.len() == 0 {
        return stream(call, to)?.write(Bytes::new());
    }
    let stop = call.data().stop.clone();
    let mut pace = HostCallPacer::new(&stop);
    let mut done = 0;
    loop {
        let most = ready(call, to, &mut pace).await?;
        let end = bytes.len().min(done + most.min(STREAM_PIECE));
        let piece = Bytes::copy_from_slice(&bytes.as_le_slice(&*call)[done..end]);
        hand(call, to, piece, most).await?;
        done = end;
        if done == bytes.len() {
            return Ok(());
        }
        checkpoint(&mut pace).await?;
    }
}

async fn write_and_flush(
    call: &mut CallStore<'_>,
    to: &Resource<DynOutputStream>,
    bytes: &WasmList<u8>,
) -> StreamResult<()> {
    let stop = call.data().stop.clone();
    let mut pace = HostCallPacer::new(&stop);
    let mut done = 0;
    loop {
        let end = bytes.len().min(done + STREAM_PIECE);
        let piece = Bytes::copy_from_slice(&bytes.as_le_slice(&*call)[done..end]);
        stream(call, to)?.blocking_write_and_flush(piece).await?;
        done = end;
        if done == bytes.len() {
            return Ok(());
        }
        checkpoint(&mut pace).await?;
    }
}

async fn write_zeroes(
    call: &mut CallStore<'_>,
    to: &Resource<DynOutputStream>,
    len: u64,
    flush: bool,
) -> StreamResult<()> {
    static ZEROES: [u8; STREAM_PIECE] = [0; STREAM_PIECE];
    let stop = call.data().stop.clone();
    let mut pace = HostCallPacer::new(&stop);
    let mut left = len;
    loop {
        let most = ready(call, to, &mut pace).await?;
        let most_now = most.min(STREAM_PIECE);
        let now = usize::try_from(left).map_or(most_now, |left| left.min(most_now));
        let piece = Bytes::from_static(&ZEROES[..now]);
        match flush {
            true => stream(call, to)?.blocking_write_and_flush(piece).await?,
            false => hand(call, to, piece, most).await?,
        }
        left -= now as u64;
        if left == 0 {
            return Ok(());
        }
        checkpoint(&mut pace).await?;
    }
}

/// Moves a piece of at most `len` bytes. It waits for both streams if `blocking`, and for neither
/// otherwise.
async fn splice(
    call: &mut CallStore<'_>,
    to: &Resource<DynOutputStream>,
    from: &Resource<DynInputStream>,
    len: u64,
    blocking: bool,
) -> StreamResult<u64> {
    let stop = call.data().stop.clone();
    let mut pace = HostCallPacer::new(&stop);
    let most = match blocking {
        true => ready(call, to, &mut pace).await?,
        false => stream(call, to)?.check_write()?,
    };
    let piece = most.min(STREAM_PIECE);
    let want = usize::try_from(len).map_or(piece, |len| len.min(piece));
    if want == 0 {
        return Ok(0);
    }
    let source = call.data_mut().ctx().table.get_mut(from)?;
    let bytes = match blocking {
        true => source.blocking_read(want).await?,
        false => source.read(want)?,
    };
    let moved = bytes.len() as u64;
    if moved > 0 {
        match blocking {
            true => stream(call, to)?.blocking_write_and_flush(bytes).await?,
            false => hand(call, to, bytes, most).await?,
        }
    }
    Ok(moved)
}
