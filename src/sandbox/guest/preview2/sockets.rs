//! Replaces the socket functions of components: sockets that are open are counted, and names are
//! not resolved.

use wasmtime::component::{Linker, Resource, ResourceType, WasmStr};
use wasmtime_wasi::p2::SocketResult;
use wasmtime_wasi::p2::bindings::sockets::network::{
    ErrorCode as SocketErrorCode, IpAddressFamily, Network,
};
use wasmtime_wasi::p2::bindings::sockets::{
    ip_name_lookup, tcp, tcp_create_socket, udp, udp_create_socket,
};
use wasmtime_wasi::sockets::WasiSocketsView;

use super::{CallStore, open_with_handle};
use crate::sandbox::guest::guest_state::GuestState;

/// The return type of the functions on sockets.
type SocketCallResult<T> = wasmtime::Result<(Result<T, SocketErrorCode>,)>;

fn of_socket<T>(result: SocketResult<T>) -> wasmtime::Result<Result<T, SocketErrorCode>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => Ok(Err(error.downcast()?)),
    }
}

/// Replaces the functions that open and close sockets, and the one that resolves names.
pub(super) fn add(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("wasi:sockets/tcp-create-socket@0.2.12")?;
    interface.func_wrap(
        "create-tcp-socket",
        |mut call: CallStore<'_>, (family,): (IpAddressFamily,)| {
            open_with_handle(&mut call, SocketErrorCode::NewSocketLimit, |state| {
                let mut sockets = state.sockets();
                of_socket(tcp_create_socket::Host::create_tcp_socket(
                    &mut sockets,
                    family,
                ))
            })
        },
    )?;
    let mut interface = linker.instance("wasi:sockets/udp-create-socket@0.2.12")?;
    interface.func_wrap_async(
        "create-udp-socket",
        |mut call: CallStore<'_>, (family,): (IpAddressFamily,)| {
            Box::new(async move { create_udp_socket(&mut call, family).await })
        },
    )?;
    let mut interface = linker.instance("wasi:sockets/tcp@0.2.12")?;
    interface.resource(
        "tcp-socket",
        ResourceType::host::<tcp::TcpSocket>(),
        |mut call: CallStore<'_>, rep| {
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
        |mut call: CallStore<'_>, rep| {
            let state = call.data_mut();
            udp::HostUdpSocket::drop(&mut state.sockets(), Resource::new_own(rep))?;
            state.handles.close(rep);
            Ok(())
        },
    )?;
    // Names are not resolved for guests, so the name is not even copied.
    let mut interface = linker.instance("wasi:sockets/ip-name-lookup@0.2.12")?;
    type AddressStream = Resource<ip_name_lookup::ResolveAddressStream>;
    interface.func_wrap(
        "resolve-addresses",
        |_: CallStore<'_>, _: (Resource<Network>, WasmStr)| -> SocketCallResult<AddressStream> {
            Ok((Err(SocketErrorCode::PermanentResolverFailure),))
        },
    )
}

async fn create_udp_socket(
    call: &mut CallStore<'_>,
    family: IpAddressFamily,
) -> SocketCallResult<Resource<udp::UdpSocket>> {
    let state = call.data_mut();
    if state.handles.reserve().is_err() {
        return Ok((Err(SocketErrorCode::NewSocketLimit),));
    }
    let mut sockets = state.sockets();
    let made = udp_create_socket::Host::create_udp_socket(&mut sockets, family).await;
    let result = of_socket(made)?;
    match &result {
        Ok(socket) => state.handles.bind(socket.rep()),
        Err(_) => state.handles.release_reserved(),
    }
    Ok((result,))
}
