//! The origin of a connection: the unit by which connections, and the log lines they cause, are
//! counted and limited.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::net::UnixStream;

/// Length in bits of the IPv6 prefix that identifies a link: within one, a host may use any number
/// of addresses.
const LINK_BITS: u32 = 64;
/// Length in bits of the IPv6 prefix that identifies a site: what a provider assigns to one
/// customer, who has 65,536 links in it.
const SITE_BITS: u32 = 48;

/// One peer, as far as the address or user of its connection distinguishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::api) enum ConnectionOrigin {
    /// An IPv4 address, including one that arrived as an IPv4-mapped IPv6 address.
    Ipv4(Ipv4Addr),
    /// The /64 network of an IPv6 address; the other bits are zero.
    Link(Ipv6Addr),
    /// The user id of a process at the other end of a unix socket.
    User(u32),
    /// A peer that the kernel does not name, for example because its process has already ended.
    Unknown,
}

/// The IPv6 network, a /48, that a provider assigns to one customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ipv6Site(Ipv6Addr);

impl ConnectionOrigin {
    /// Returns the origin of a TCP connection from `address`.
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::Ipv4(address),
            IpAddr::V6(address) => Self::Link(network(address, LINK_BITS)),
        }
    }

    /// Returns the origin of a unix socket connection: the user at its other end.
    pub(super) fn of_unix(stream: &UnixStream) -> Self {
        let peer = stream.peer_cred();
        peer.map_or(Self::Unknown, |peer| Self::User(peer.uid()))
    }

    /// Returns the site that an IPv6 link belongs to; `None` for any other origin.
    pub(super) fn site(self) -> Option<Ipv6Site> {
        match self {
            Self::Link(link) => Some(Ipv6Site(network(link, SITE_BITS))),
            Self::Ipv4(_) | Self::User(_) | Self::Unknown => None,
        }
    }
}

/// Clears all but the first `bits` bits of the address; `bits` is at least 1.
fn network(address: Ipv6Addr, bits: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (u128::BITS - bits)))
}

impl fmt::Display for ConnectionOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4(address) => address.fmt(f),
            Self::Link(link) => write!(f, "{link}/{LINK_BITS}"),
            Self::User(uid) => write!(f, "unix:uid={uid}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(address: &str) -> ConnectionOrigin {
        ConnectionOrigin::of(address.parse().unwrap())
    }

    #[test]
    fn an_address_of_ipv4_is_one_peer_however_it_is_written() {
        assert_eq!(origin("192.0.2.1"), origin("::ffff:192.0.2.1"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
        assert_eq!(origin("192.0.2.1").site(), None);
        assert_eq!(origin("::ffff:192.0.2.1").to_string(), "192.0.2.1");
    }

    #[test]
    fn addresses_of_ipv6_are_one_peer_by_their_link_and_one_site_by_their_customer() {
        let first = origin("2001:db8:1:2::1");
        assert_eq!(first, origin("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_eq!(first.to_string(), "2001:db8:1:2::/64");
        let beside = origin("2001:db8:1:ffff::1");
        assert_ne!(first, beside);
        assert_eq!(first.site(), beside.site());
        assert_ne!(first.site(), origin("2001:db8:2:2::1").site());
    }
}
