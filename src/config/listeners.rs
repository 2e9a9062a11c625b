//! Resolution of the addresses to listen on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use super::schema::Config;

/// Resolves "host:port" to all its addresses, in the resolver's order. "localhost" is the loopback
/// of both families, whatever a hosts file says, because programs differ in which of them they try.
///
/// # Errors
/// Fails where the text is no address, or where its name does not resolve.
pub fn socket_addresses(address: &str) -> io::Result<Vec<SocketAddr>> {
    let resolved = address.to_socket_addrs();
    let local = local_port(address).map(|port| {
        let loopback = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ];
        loopback.map(|ip| SocketAddr::new(ip, port))
    });
    let all: Vec<SocketAddr> = match (resolved, local) {
        (Ok(resolved), local) => resolved.chain(local.into_iter().flatten()).collect(),
        (Err(_), Some(local)) => local.to_vec(),
        (Err(error), None) => return Err(error),
    };
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in all {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(io::Error::other("the name has no address"));
    }
    Ok(addresses)
}

fn local_port(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_suffix('.').unwrap_or(host);
    let port = host.eq_ignore_ascii_case("localhost").then_some(port)?;
    port.parse().ok()
}

/// Reports whether an address to listen on is a host name with port 0, which stands for any free
/// port.
pub(crate) fn listens_by_name(address: &str) -> bool {
    !address.starts_with("unix:")
        && address.ends_with(":0")
        && address.parse::<SocketAddr>().is_err()
}

impl Config {
    /// Returns the addresses of all listeners, for gRPC and for the admin listener.
    pub(crate) fn all_listeners(&self) -> impl Iterator<Item = &str> {
        let all = self.listen.iter().chain(&self.admin.listen);
        all.map(String::as_str)
    }
}
