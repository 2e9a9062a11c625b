//! Binding of TCP listeners: one for each address that a name resolves to, as far as this host has
//! that address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_send_buffer_size};
use tokio::net::{TcpListener, TcpSocket};

use crate::config::socket_addresses;

/// Connections that may wait in the kernel until they are accepted.
const BACKLOG: u32 = 1024;
/// How many times a port is sought that is free at all addresses of a name, before each address
/// gets a port of its own.
const TRIES: u32 = 16;
/// The send buffer of a connection that may speak HTTP/1.1, in bytes; the kernel doubles it.
const SEND_BUFFER: usize = 128 << 10;

/// Binds a listener to every address that `address` resolves to.
///
/// An address that this host does not have, for lack of its address family, is left out if another
/// can be bound. "[::]" accepts connections of both families, unless `apart` is set: another
/// listener then accepts those of IPv4. If the kernel has no IPv6, "[::]" becomes "0.0.0.0". With
/// port 0, all listeners have the same port if one is free at each address.
///
/// # Errors
/// The name does not resolve, an address is taken, or this host has none of the addresses.
pub(super) async fn bind(address: &str, apart: bool) -> io::Result<Vec<TcpListener>> {
    let owned = address.to_owned();
    let addresses = tokio::task::spawn_blocking(move || socket_addresses(&owned)).await;
    let addresses = addresses.map_err(io::Error::other)??;
    if let [any] = addresses[..]
        && any.ip() == Ipv6Addr::UNSPECIFIED
    {
        return bind_any(any, apart);
    }
    for _ in 0..TRIES {
        match bind_all(&addresses, true) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_any_port(&addresses) => {}
            bound => return bound,
        }
    }
    bind_all(&addresses, false)
}

/// Gives the connections of a listener a send buffer of fixed size, which suits HTTP/1.1.
///
/// HTTP/1.1 has no flow control of its own, so the send buffer is how far the daemon is ahead of
/// its client. The kernel lets it grow to 4 MiB, and tells that there is room again when a third of
/// it is free. To the daemon, a client that takes 50 KiB a second would then take nothing for half
/// a minute, and be ended as one that has stalled.
///
/// # Errors
/// Those of the kernel.
pub(super) fn fix_send_buffer(listener: &TcpListener) -> io::Result<()> {
    // Connections inherit it.
    Ok(set_socket_send_buffer_size(listener, SEND_BUFFER)?)
}

/// Reports whether a listener at "[::]" must leave IPv4 to another entry of `listen`, because that
/// one is "0.0.0.0" with the same port.
pub(super) fn is_apart(address: &str, listen: &[String]) -> bool {
    let any = |ip: IpAddr| move |it: &SocketAddr| it.ip() == ip && it.port() != 0;
    let own = address.parse::<SocketAddr>();
    let own = own.ok().filter(any(Ipv6Addr::UNSPECIFIED.into()));
    own.is_some_and(|own| {
        let others = listen.iter().filter_map(|it| it.parse::<SocketAddr>().ok());
        let mut others = others.filter(any(Ipv4Addr::UNSPECIFIED.into()));
        others.any(|other| other.port() == own.port())
    })
}

/// Reports whether there are several addresses and the kernel is to choose the port of each.
fn is_any_port(addresses: &[SocketAddr]) -> bool {
    addresses.len() > 1 && addresses.iter().all(|it| it.port() == 0)
}

/// Binds a listener to "[::]", or to "0.0.0.0" if the kernel has no IPv6.
fn bind_any(any: SocketAddr, apart: bool) -> io::Result<Vec<TcpListener>> {
    match listen(any, apart) {
        Err(error) if is(&error, Errno::AFNOSUPPORT) => {
            tracing::warn!(address = %any, "this host has no IPv6: only IPv4 is listened on");
            let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), any.port());
            match apart {
                // Another entry of the configuration listens on it already.
                true => Ok(Vec::new()),
                false => listen(any, false).map(|it| vec![it]),
            }
        }
        listener => listener.map(|it| vec![it]),
    }
}

/// Binds a listener to each address that this host has. With `same_port`, all of them use the port
/// of the first one.
fn bind_all(addresses: &[SocketAddr], same_port: bool) -> io::Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    let mut absent = Vec::new();
    for address in addresses {
        let mut address = *address;
        if let (Some(first), 0, true) = (listeners.first(), address.port(), same_port) {
            address.set_port(first.local_addr()?.port());
        }
        match listen(address, false) {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_absent(&error) => absent.push((address, error)),
            Err(error) => return Err(named(address, addresses, error)),
        }
    }
    if listeners.is_empty()
        && let Some((address, error)) = absent.first()
    {
        let hint = match address.ip().is_loopback() {
            true => "; \"localhost\" stands for whichever loopback address there is",
            false => "",
        };
        let told = format!("{error}: this host has no such address{hint}");
        return Err(named(
            *address,
            addresses,
            io::Error::new(error.kind(), told),
        ));
    }
    for (address, error) in absent {
        tracing::info!(%address, %error, "an address of a name is not one of this host");
    }
    Ok(listeners)
}

/// Adds to an error which address it concerns, if the name has several.
fn named(address: SocketAddr, all: &[SocketAddr], error: io::Error) -> io::Error {
    match all {
        [_] => error,
        _ => io::Error::new(error.kind(), format!("{address}: {error}")),
    }
}

/// Binds a listening socket; `apart` limits one for IPv6 to IPv6 alone.
fn listen(address: SocketAddr, apart: bool) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            // This is set whatever net.ipv6.bindv6only says.
            set_ipv6_v6only(&socket, apart)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Reports whether an error says that this host lacks the address or its whole address family.
fn is_absent(error: &io::Error) -> bool {
    is(error, Errno::ADDRNOTAVAIL) || is(error, Errno::AFNOSUPPORT)
}

/// Reports whether an error is this errno.
fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}
