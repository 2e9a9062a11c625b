//! Whom connections are counted by, and log lines too.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::net::UnixStream;

/// Bits of an IPv6 address that say which link it is on: within one, a host has all addresses that it likes.
const LINK_BITS: u32 = 64;
/// Bits of an IPv6 address that say whose site it is in: what a provider gives to one customer, who has 65,536 links
/// in it.
const SITE_BITS: u32 = 48;

/// One peer, as far as a connection can tell one from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::api) enum Origin {
    /// An address of IPv4, also where it came as one of IPv6.
    Ipv4(Ipv4Addr),
    /// The link of an address of IPv6, its other bits being zero.
    Link(Ipv6Addr),
    /// A user on a unix socket.
    User(u32),
    /// A peer that the kernel does not name, as where its process ended already.
    Unknown,
}

/// The network of IPv6 that a customer of a provider has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Site(Ipv6Addr);

impl Origin {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::Ipv4(address),
            IpAddr::V6(address) => Self::Link(network(address, LINK_BITS)),
        }
    }

    pub(super) fn of_unix(stream: &UnixStream) -> Self {
        let peer = stream.peer_cred();
        peer.map_or(Self::Unknown, |peer| Self::User(peer.uid()))
    }

    /// The site that a link is in; nothing else has one.
    pub(super) fn site(self) -> Option<Site> {
        match self {
            Self::Link(link) => Some(Site(network(link, SITE_BITS))),
            Self::Ipv4(_) | Self::User(_) | Self::Unknown => None,
        }
    }
}

/// The address without its bits after the first `bits`, of which there are some.
fn network(address: Ipv6Addr, bits: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (u128::BITS - bits)))
}

impl fmt::Display for Origin {
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

    fn origin(address: &str) -> Origin {
        Origin::of(address.parse().unwrap())
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
