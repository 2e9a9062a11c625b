//! Host calls of components that a guest can make large, or that open and close files, sockets and streams. A list that a
//! guest passes is looked at where it lies in the guest's memory, and moved in pieces (see [`super::pace`]); what a call
//! returns is bounded. A `write` may wait between its pieces: what is written to standard output and error always arrives
//! whole.

use bytes::Bytes;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType, WasmList, WasmStr};
use wasmtime_wasi::filesystem::WasiFilesystemView;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Descriptor, DescriptorStat, ErrorCode, HostDescriptor, MetadataHashValue, NewTimestamp,
    PathFlags,
};
use wasmtime_wasi::p2::bindings::io::poll;
use wasmtime_wasi::p2::bindings::io::streams::{self, HostInputStream, HostOutputStream};
use wasmtime_wasi::p2::bindings::random::{insecure, random};
use wasmtime_wasi::p2::bindings::sockets::network::{
    ErrorCode as SocketErrorCode, IpAddressFamily, Network,
};
use wasmtime_wasi::p2::bindings::sockets::{
    ip_name_lookup, tcp, tcp_create_socket, udp, udp_create_socket,
};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, FsResult, SocketResult, StreamError, StreamResult,
};
use wasmtime_wasi::random::WasiRandomView;
use wasmtime_wasi::sockets::WasiSocketsView;
use wasmtime_wasi::{ResourceTableError, WasiView};

use super::host::State;
use super::pace::{PIECE_BYTES, Pace};
use super::preview1::{MAX_PATH, RANDOM_PIECE};
use super::stdio::ANY_AMOUNT;

/// The most bytes of randomness of one call: a component gets them as one list, which the host has to hold.
const MAX_RANDOM_LIST: u64 = 16 << 20;
/// The most bytes that are handed to a stream which is not standard output or error at once; all of the runtime's offer as
/// much.
const STREAM_PIECE: usize = 64 << 10;

/// Replaces the functions. What is replaced of `open-at` is in [`super::regular`].
pub(super) fn add(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    add_streams(linker)?;
    add_poll(linker)?;
    add_random(linker)?;
    add_files(linker)?;
    add_paths(linker)?;
    add_sockets(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// A store that a call came from.
type Call<'a> = StoreContextMut<'a, State>;
/// What functions of streams return.
type OfStream<T> = wasmtime::Result<(Result<T, streams::StreamError>,)>;
/// What functions of files return.
type OfFile<T> = wasmtime::Result<(Result<T, ErrorCode>,)>;
/// What functions of sockets return.
type OfSocket<T> = wasmtime::Result<(Result<T, SocketErrorCode>,)>;

fn add_streams(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("wasi:io/streams@0.2.12")?;
    interface.func_wrap_async(
        "[method]output-stream.write",
        |mut call: Call<'_>, (to, bytes): (Resource<DynOutputStream>, WasmList<u8>)| {
            Box::new(async move {
                let written = write(&mut call, &to, &bytes).await;
                of_stream(&mut call, written)
            })
        },
    )?;
    interface.func_wrap_async(
        "[method]output-stream.blocking-write-and-flush",
        |mut call: Call<'_>, (to, bytes): (Resource<DynOutputStream>, WasmList<u8>)| {
            Box::new(async move {
                let written = write_and_flush(&mut call, &to, &bytes).await;
                of_stream(&mut call, written)
            })
        },
    )?;
    interface.func_wrap_async(
        "[method]output-stream.write-zeroes",
        |mut call: Call<'_>, (to, len): (Resource<DynOutputStream>, u64)| {
            Box::new(async move {
                let written = write_zeroes(&mut call, &to, len, false).await;
                of_stream(&mut call, written)
            })
        },
    )?;
    interface.func_wrap_async(
        "[method]output-stream.blocking-write-zeroes-and-flush",
        |mut call: Call<'_>, (to, len): (Resource<DynOutputStream>, u64)| {
            Box::new(async move {
                let written = write_zeroes(&mut call, &to, len, true).await;
                of_stream(&mut call, written)
            })
        },
    )?;
    type Splice = (Resource<DynOutputStream>, Resource<DynInputStream>, u64);
    interface.func_wrap_async(
        "[method]output-stream.splice",
        |mut call: Call<'_>, (to, from, len): Splice| {
            Box::new(async move {
                let moved = splice(&mut call, &to, &from, len, false).await;
                of_stream(&mut call, moved)
            })
        },
    )?;
    interface.func_wrap_async(
        "[method]output-stream.blocking-splice",
        |mut call: Call<'_>, (to, from, len): Splice| {
            Box::new(async move {
                let moved = splice(&mut call, &to, &from, len, true).await;
                of_stream(&mut call, moved)
            })
        },
    )?;
    interface.resource_async(
        "input-stream",
        ResourceType::host::<DynInputStream>(),
        |mut call: Call<'_>, rep| {
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
        |mut call: Call<'_>, rep| {
            Box::new(async move {
                let table = call.data_mut().ctx().table;
                HostOutputStream::drop(table, Resource::new_own(rep)).await?;
                call.data_mut().handles.close(rep);
                Ok(())
            })
        },
    )
}

fn of_stream<T>(call: &mut Call<'_>, result: StreamResult<T>) -> OfStream<T> {
    Ok((match result {
        Ok(value) => Ok(value),
        Err(error) => Err(streams::Host::convert_stream_error(
            call.data_mut().ctx().table,
            error,
        )?),
    },))
}

/// The stream that `to` names.
fn stream<'a>(
    call: &'a mut Call<'_>,
    to: &Resource<DynOutputStream>,
) -> StreamResult<&'a mut DynOutputStream> {
    Ok(call.data_mut().ctx().table.get_mut(to)?)
}

/// How much `to` takes at once, when it takes anything.
async fn ready(
    call: &mut Call<'_>,
    to: &Resource<DynOutputStream>,
    pace: &mut Pace<'_>,
) -> StreamResult<usize> {
    loop {
        let stream = stream(call, to)?;
        match stream.check_write()? {
            0 => stream.ready().await,
            most => return Ok(most),
        }
        between(pace).await?;
    }
}

async fn between(pace: &mut Pace<'_>) -> StreamResult<()> {
    let paced = pace.between().await;
    paced.map_err(|stopped| StreamError::Trap(stopped.into()))
}

/// Hands a piece to `to`, which takes `most` at once.
async fn hand(
    call: &mut Call<'_>,
    to: &Resource<DynOutputStream>,
    piece: Bytes,
    most: usize,
) -> StreamResult<()> {
    let stream = stream(call, to)?;
    if most == ANY_AMOUNT {
        // Standard output or error: waits for the reader, and is never short.
        stream.blocking_write_and_flush(piece).await
    } else {
        stream.write(piece)
    }
}

/// Writes all of `bytes`. A guest that asked what may be written finds what it was told; one that writes more waits.
async fn write(
    call: &mut Call<'_>,
    to: &Resource<DynOutputStream>,
    bytes: &WasmList<u8>,
) -> StreamResult<()> {
    if bytes.len() == 0 {
        return stream(call, to)?.write(Bytes::new());
    }
    let stop = call.data().stop.clone();
    let mut pace = Pace::new(&stop);
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
        between(&mut pace).await?;
    }
}

async fn write_and_flush(
    call: &mut Call<'_>,
    to: &Resource<DynOutputStream>,
    bytes: &WasmList<u8>,
) -> StreamResult<()> {
    let stop = call.data().stop.clone();
    let mut pace = Pace::new(&stop);
    let mut done = 0;
    loop {
        let end = bytes.len().min(done + STREAM_PIECE);
        let piece = Bytes::copy_from_slice(&bytes.as_le_slice(&*call)[done..end]);
        stream(call, to)?.blocking_write_and_flush(piece).await?;
        done = end;
        if done == bytes.len() {
            return Ok(());
        }
        between(&mut pace).await?;
    }
}

async fn write_zeroes(
    call: &mut Call<'_>,
    to: &Resource<DynOutputStream>,
    len: u64,
    flush: bool,
) -> StreamResult<()> {
    static ZEROES: [u8; STREAM_PIECE] = [0; STREAM_PIECE];
    let stop = call.data().stop.clone();
    let mut pace = Pace::new(&stop);
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
        between(&mut pace).await?;
    }
}

/// Moves a piece of at most `len` bytes, waiting for both streams or for neither.
async fn splice(
    call: &mut Call<'_>,
    to: &Resource<DynOutputStream>,
    from: &Resource<DynInputStream>,
    len: u64,
    blocking: bool,
) -> StreamResult<u64> {
    let stop = call.data().stop.clone();
    let mut pace = Pace::new(&stop);
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

fn add_poll(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("wasi:io/poll@0.2.12")?;
    interface.func_wrap_async(
        "poll",
        |mut call: Call<'_>, (list,): (WasmList<Resource<DynPollable>>,)| {
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

fn add_random(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("wasi:random/random@0.2.12")?;
    interface.func_wrap_async(
        "get-random-bytes",
        |mut call: Call<'_>, (len,): (u64,)| {
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
        |mut call: Call<'_>, (len,): (u64,)| {
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
    call: &mut Call<'_>,
    len: u64,
    mut piece: impl FnMut(&mut State, u64) -> wasmtime::Result<Vec<u8>> + Send,
) -> wasmtime::Result<(Vec<u8>,)> {
    if len > MAX_RANDOM_LIST {
        return Err(wasmtime::Error::msg(format!(
            "{len} random bytes were asked for at once; at most {MAX_RANDOM_LIST} can be had"
        )));
    }
    let stop = call.data().stop.clone();
    let mut pace = Pace::new(&stop);
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
    let mut left = len;
    loop {
        let now = left.min(u64::from(RANDOM_PIECE));
        bytes.extend(piece(call.data_mut(), now)?);
        left -= now;
        if left == 0 {
            return Ok((bytes,));
        }
        pace.between().await?;
    }
}

fn of_file<T>(result: FsResult<T>) -> OfFile<T> {
    Ok((match result {
        Ok(value) => Ok(value),
        Err(error) => Err(error.downcast()?),
    },))
}

/// Opens something that holds a descriptor: `error` where there is no place for one.
fn opened<T: 'static, E>(
    call: &mut Call<'_>,
    error: E,
    open: impl FnOnce(&mut State) -> wasmtime::Result<Result<Resource<T>, E>>,
) -> wasmtime::Result<(Result<Resource<T>, E>,)> {
    let state = call.data_mut();
    if state.handles.reserve().is_err() {
        return Ok((Err(error),));
    }
    let result = open(state)?;
    match &result {
        Ok(resource) => state.handles.keep(resource.rep()),
        Err(_) => state.handles.put_back(),
    }
    Ok((result,))
}

fn add_files(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("wasi:filesystem/types@0.2.12")?;
    interface.func_wrap_async(
        "[method]descriptor.write",
        |mut call: Call<'_>, (to, bytes, offset): (Resource<Descriptor>, WasmList<u8>, u64)| {
            Box::new(async move { write_at(&mut call, &to, &bytes, offset).await })
        },
    )?;
    // A stream holds its file, whatever becomes of the descriptor that it was made of.
    interface.func_wrap(
        "[method]descriptor.read-via-stream",
        |mut call: Call<'_>, (file, offset): (Resource<Descriptor>, u64)| {
            opened(&mut call, ErrorCode::InsufficientMemory, |state| {
                let made = state.filesystem().read_via_stream(file, offset);
                of_file(made).map(|(result,)| result)
            })
        },
    )?;
    interface.func_wrap(
        "[method]descriptor.write-via-stream",
        |mut call: Call<'_>, (file, offset): (Resource<Descriptor>, u64)| {
            opened(&mut call, ErrorCode::InsufficientMemory, |state| {
                let made = state.filesystem().write_via_stream(file, offset);
                of_file(made).map(|(result,)| result)
            })
        },
    )?;
    interface.func_wrap(
        "[method]descriptor.append-via-stream",
        |mut call: Call<'_>, (file,): (Resource<Descriptor>,)| {
            opened(&mut call, ErrorCode::InsufficientMemory, |state| {
                let made = state.filesystem().append_via_stream(file);
                of_file(made).map(|(result,)| result)
            })
        },
    )?;
    interface.resource(
        "descriptor",
        ResourceType::host::<Descriptor>(),
        |mut call: Call<'_>, rep| {
            let state = call.data_mut();
            HostDescriptor::drop(&mut state.filesystem(), Resource::new_own(rep))?;
            state.handles.close(rep);
            Ok(())
        },
    )
}

/// Writes all of `bytes` where the file takes it, and says how much it took.
async fn write_at(
    call: &mut Call<'_>,
    to: &Resource<Descriptor>,
    bytes: &WasmList<u8>,
    offset: u64,
) -> OfFile<u64> {
    let stop = call.data().stop.clone();
    let mut pace = Pace::new(&stop);
    let mut done = 0;
    loop {
        let end = bytes.len().min(done + PIECE_BYTES);
        let piece = bytes.as_le_slice(&*call)[done..end].to_vec();
        let at = offset.saturating_add(done as u64);
        let again = Resource::new_borrow(to.rep());
        let mut files = call.data_mut().filesystem();
        let written = HostDescriptor::write(&mut files, again, piece, at).await;
        let written = match of_file(written)? {
            (Ok(written),) => written,
            // What was written counts: the guest meets the error when it writes on.
            (Err(_),) if done > 0 => 0,
            (Err(error),) => return Ok((Err(error),)),
        };
        done += usize::try_from(written).unwrap_or_default();
        if written == 0 || done >= bytes.len() {
            return Ok((Ok(done as u64),));
        }
        pace.between().await?;
    }
}

/// A path that a guest gave; none where it is too long to be looked at.
pub(super) fn path(call: &Call<'_>, path: &WasmStr) -> wasmtime::Result<Option<String>> {
    let path = path.to_str(call)?;
    Ok((path.len() <= MAX_PATH as usize).then(|| path.into_owned()))
}

/// Defines a function that takes one path, with what comes before and after it.
macro_rules! define_path {
    ($interface:expr, $name:literal, $method:ident, ($($before:ident: $b:ty),*), ($($after:ident: $a:ty),*) -> $result:ty) => {
        $interface.func_wrap_async(
            $name,
            |mut call: Call<'_>,
             (dir, $($before,)* given, $($after,)*): (
                Resource<Descriptor>, $($b,)* WasmStr, $($a,)*
            )| {
                Box::new(async move {
                    let Some(given) = path(&call, &given)? else {
                        return Ok((Err(ErrorCode::NameTooLong),));
                    };
                    let mut files = call.data_mut().filesystem();
                    let result: FsResult<$result> =
                        HostDescriptor::$method(&mut files, dir, $($before,)* given, $($after,)*).await;
                    of_file(result)
                })
            },
        )?
    };
}

fn add_paths(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("wasi:filesystem/types@0.2.12")?;
    define_path!(interface, "[method]descriptor.create-directory-at", create_directory_at, (), () -> ());
    define_path!(interface, "[method]descriptor.stat-at", stat_at, (flags: PathFlags), () -> DescriptorStat);
    define_path!(
        interface, "[method]descriptor.set-times-at", set_times_at,
        (flags: PathFlags), (accessed: NewTimestamp, modified: NewTimestamp) -> ()
    );
    define_path!(interface, "[method]descriptor.readlink-at", readlink_at, (), () -> String);
    define_path!(interface, "[method]descriptor.remove-directory-at", remove_directory_at, (), () -> ());
    define_path!(interface, "[method]descriptor.unlink-file-at", unlink_file_at, (), () -> ());
    define_path!(
        interface, "[method]descriptor.metadata-hash-at", metadata_hash_at,
        (flags: PathFlags), () -> MetadataHashValue
    );
    type Link = (Resource<Descriptor>, PathFlags, WasmStr, Resource<Descriptor>, WasmStr);
    interface.func_wrap_async(
        "[method]descriptor.link-at",
        |mut call: Call<'_>, (dir, flags, from, to_dir, to): Link| {
            Box::new(async move {
                let (Some(from), Some(to)) = (path(&call, &from)?, path(&call, &to)?) else {
                    return Ok((Err(ErrorCode::NameTooLong),));
                };
                let mut files = call.data_mut().filesystem();
                of_file(HostDescriptor::link_at(&mut files, dir, flags, from, to_dir, to).await)
            })
        },
    )?;
    type Rename = (Resource<Descriptor>, WasmStr, Resource<Descriptor>, WasmStr);
    interface.func_wrap_async(
        "[method]descriptor.rename-at",
        |mut call: Call<'_>, (dir, from, to_dir, to): Rename| {
            Box::new(async move {
                let (Some(from), Some(to)) = (path(&call, &from)?, path(&call, &to)?) else {
                    return Ok((Err(ErrorCode::NameTooLong),));
                };
                let mut files = call.data_mut().filesystem();
                of_file(HostDescriptor::rename_at(&mut files, dir, from, to_dir, to).await)
            })
        },
    )?;
    interface.func_wrap_async(
        "[method]descriptor.symlink-at",
        |mut call: Call<'_>, (dir, from, to): (Resource<Descriptor>, WasmStr, WasmStr)| {
            Box::new(async move {
                let (Some(from), Some(to)) = (path(&call, &from)?, path(&call, &to)?) else {
                    return Ok((Err(ErrorCode::NameTooLong),));
                };
                let mut files = call.data_mut().filesystem();
                of_file(HostDescriptor::symlink_at(&mut files, dir, from, to).await)
            })
        },
    )
}

fn of_socket<T>(result: SocketResult<T>) -> wasmtime::Result<Result<T, SocketErrorCode>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => Ok(Err(error.downcast()?)),
    }
}

fn add_sockets(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("wasi:sockets/tcp-create-socket@0.2.12")?;
    interface.func_wrap(
        "create-tcp-socket",
        |mut call: Call<'_>, (family,): (IpAddressFamily,)| {
            opened(&mut call, SocketErrorCode::NewSocketLimit, |state| {
                let mut sockets = state.sockets();
                of_socket(tcp_create_socket::Host::create_tcp_socket(&mut sockets, family))
            })
        },
    )?;
    let mut interface = linker.instance("wasi:sockets/udp-create-socket@0.2.12")?;
    interface.func_wrap_async(
        "create-udp-socket",
        |mut call: Call<'_>, (family,): (IpAddressFamily,)| {
            Box::new(async move { create_udp_socket(&mut call, family).await })
        },
    )?;
    let mut interface = linker.instance("wasi:sockets/tcp@0.2.12")?;
    interface.resource(
        "tcp-socket",
        ResourceType::host::<tcp::TcpSocket>(),
        |mut call: Call<'_>, rep| {
            let state = call.data_mut();
            tcp::HostTcpSocket::drop(&mut state.sockets(), Resource::new_own(rep))?;
            state.handles.close(rep);
            Ok(())
        },
    )?;
    let mut interface = linker.instance("wasi:sockets/udp@0.2.12")?;
    interface.resource(
        "udp-socket",
        ResourceType::host::<udp::UdpSocket>(),
        |mut call: Call<'_>, rep| {
            let state = call.data_mut();
            udp::HostUdpSocket::drop(&mut state.sockets(), Resource::new_own(rep))?;
            state.handles.close(rep);
            Ok(())
        },
    )?;
    // Names are not resolved for guests, so that one is not even copied.
    let mut interface = linker.instance("wasi:sockets/ip-name-lookup@0.2.12")?;
    type Lookup = Resource<ip_name_lookup::ResolveAddressStream>;
    interface.func_wrap(
        "resolve-addresses",
        |_: Call<'_>, _: (Resource<Network>, WasmStr)| -> OfSocket<Lookup> {
            Ok((Err(SocketErrorCode::PermanentResolverFailure),))
        },
    )
}

async fn create_udp_socket(
    call: &mut Call<'_>,
    family: IpAddressFamily,
) -> OfSocket<Resource<udp::UdpSocket>> {
    let state = call.data_mut();
    if state.handles.reserve().is_err() {
        return Ok((Err(SocketErrorCode::NewSocketLimit),));
    }
    let mut sockets = state.sockets();
    let made = udp_create_socket::Host::create_udp_socket(&mut sockets, family).await;
    let result = of_socket(made)?;
    match &result {
        Ok(socket) => state.handles.keep(socket.rep()),
        Err(_) => state.handles.put_back(),
    }
    Ok((result,))
}
