//! The admission control of one listener's connections, with eviction in the order of arrival. It
//! is pure bookkeeping, without sockets or clocks.
//!
//! The slots are bounded in total, per peer and, for IPv6, per site. An eighth of them is reserved
//! for peers and sites that hold none. When a bound is reached, the oldest connection on which no
//! call has authenticated is evicted (first in, first out); the new one is refused only if there is
//! no such connection. So connections that never authenticate keep nobody out, however many they
//! are, and a newcomer has as long for its first call as it takes to replace all others.

use std::collections::{BTreeSet, HashMap};

use super::origin::{ConnectionOrigin, Ipv6Site};

/// The fraction of the slots that is reserved for peers and sites that hold none: one in this many.
const RESERVED_SHARE: u32 = 8;
/// How many times the connections of a peer a site may hold, up to three quarters of all.
const SITE_FACTOR: u32 = 4;
/// The most connections that are protected from eviction while their first call is judged; of few
/// slots it is a quarter. Judging can be made to take long, for example by naming a key that has to
/// be fetched, so not every connection may have that protection.
const MAX_PROTECTED: u32 = 64;

/// The limits on the connections of one listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableLimits {
    /// The most connections that are open at once.
    pub(super) connections: u32,
    /// The most connections of one peer.
    pub(super) per_peer: u32,
}

impl TableLimits {
    /// Returns how many slots are reserved for peers and sites without a connection.
    fn reserved(self) -> usize {
        (self.connections / RESERVED_SHARE) as usize
    }

    /// Returns the most connections of one IPv6 site, which is never less than that of one peer.
    fn per_site(self) -> u32 {
        let most = (u64::from(self.connections) * 3 / 4).try_into();
        let allowed = self.per_peer.saturating_mul(SITE_FACTOR);
        allowed.min(most.unwrap_or(u32::MAX)).max(self.per_peer)
    }

    /// Returns how many connections may be protected from eviction at once.
    fn protected(self) -> usize {
        (self.connections / 4).clamp(1, MAX_PROTECTED) as usize
    }
}

/// The identity of a connection. Ids order connections by their arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ConnectionId(u64);

/// The decision about a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionAdmission {
    /// The connection has a slot: a free one, or that of `evicted`, which has lost it.
    Admitted {
        id: ConnectionId,
        evicted: Option<(ConnectionId, ConnectionOrigin)>,
    },
    Refused(ConnectionLimit),
}

/// The limit that kept a new connection out when nobody could be evicted for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionLimit {
    /// The peer holds as many connections as it may.
    Peer,
    /// The peer's IPv6 site holds as many connections as it may.
    Site,
    /// The slots that are left are reserved for peers and sites that hold none.
    Reserve,
    /// All slots of the listener are taken.
    Listener,
}

impl ConnectionLimit {
    /// Describes the limit by the configuration key that sets it, for the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "its peer holds server.max_connections_per_peer",
            Self::Site => {
                "its /48 holds four times server.max_connections_per_peer, or three quarters of all"
            }
            Self::Reserve => {
                "the last eighth of server.max_connections is for peers without a connection"
            }
            Self::Listener => "this listener's share of server.max_connections is open",
        }
    }
}

/// A group of connections that a limit counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum LimitGroup {
    Peer(ConnectionOrigin),
    Site(Ipv6Site),
}

/// The connections of one group: how many there are, and which of them may be evicted.
#[derive(Debug, Default)]
struct GroupMembers {
    connections: u32,
    unauthenticated: BTreeSet<ConnectionId>,
}

/// A connection in the table.
#[derive(Debug)]
struct TableEntry {
    origin: ConnectionOrigin,
    /// Whether a call was ever judged on it: only the first one may protect it.
    called: bool,
}

/// The table of one listener's connections: who holds a slot, and who may be evicted.
#[derive(Debug)]
pub(super) struct ConnectionTable {
    limits: TableLimits,
    /// The id of the next connection.
    next: ConnectionId,
    entries: HashMap<ConnectionId, TableEntry>,
    groups: HashMap<LimitGroup, GroupMembers>,
    unauthenticated: BTreeSet<ConnectionId>,
    /// The unauthenticated connections whose first call is being judged: they are evicted last.
    protected: BTreeSet<ConnectionId>,
}

impl ConnectionTable {
    /// Creates an empty table with these limits.
    pub(super) fn new(limits: TableLimits) -> Self {
        Self {
            limits,
            next: ConnectionId(0),
            entries: HashMap::new(),
            groups: HashMap::new(),
            unauthenticated: BTreeSet::new(),
            protected: BTreeSet::new(),
        }
    }

    /// Admits a connection, which has not authenticated yet, if a slot is free or another
    /// connection can be evicted for it.
    pub(super) fn admit(&mut self, origin: ConnectionOrigin) -> ConnectionAdmission {
        let evicted = match self.make_room(origin) {
            Ok(evicted) => evicted,
            Err(reached) => return ConnectionAdmission::Refused(reached),
        };
        let evicted = evicted.and_then(|id| Some((id, self.remove(id)?)));
        let id = self.next;
        self.next.0 += 1;
        let called = false;
        self.entries.insert(id, TableEntry { origin, called });
        self.unauthenticated.insert(id);
        for group in groups(origin) {
            let members = self.groups.entry(group).or_default();
            members.connections += 1;
            members.unauthenticated.insert(id);
        }
        ConnectionAdmission::Admitted { id, evicted }
    }

    /// Chooses the connection to evict for one of `origin`; `None` if a slot is free. The error is
    /// the limit that was reached if there is no one to evict.
    fn make_room(&self, origin: ConnectionOrigin) -> Result<Option<ConnectionId>, ConnectionLimit> {
        for group in groups(origin) {
            let (most, reached) = match group {
                LimitGroup::Peer(_) => (self.limits.per_peer, ConnectionLimit::Peer),
                LimitGroup::Site(_) => (self.limits.per_site(), ConnectionLimit::Site),
            };
            // An eviction within the group makes room in all groups that it is part of.
            if let Some(members) = self.groups.get(&group)
                && members.connections >= most
            {
                let oldest = self.oldest(&members.unauthenticated);
                return oldest.map(Some).ok_or(reached);
            }
        }
        let free = (self.limits.connections as usize).saturating_sub(self.entries.len());
        // A site counts as one newcomer, not each of its links.
        let holds_some = groups(origin).any(|group| self.groups.contains_key(&group));
        let reserved = if holds_some {
            self.limits.reserved()
        } else {
            0
        };
        if free > reserved {
            return Ok(None);
        }
        let reached = match free {
            0 => ConnectionLimit::Listener,
            _ => ConnectionLimit::Reserve,
        };
        let oldest = self.oldest(&self.unauthenticated);
        oldest.map(Some).ok_or(reached)
    }

    /// Returns the oldest of `candidates`, and a protected one only if there is no other.
    fn oldest(&self, candidates: &BTreeSet<ConnectionId>) -> Option<ConnectionId> {
        let mut unprotected = candidates.iter().filter(|id| !self.protected.contains(id));
        unprotected.next().or_else(|| candidates.first()).copied()
    }

    /// Records that a call of the connection is being judged. The first call may protect the
    /// connection from eviction until [`Self::end_authentication`]; the result says whether it
    /// does.
    pub(super) fn begin_authentication(&mut self, id: ConnectionId) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        let first = !std::mem::replace(&mut entry.called, true);
        let protects = first
            && self.unauthenticated.contains(&id)
            && self.protected.len() < self.limits.protected();
        if protects {
            self.protected.insert(id);
        }
        protects
    }

    /// Ends the protection from eviction that a call gave its connection.
    pub(super) fn end_authentication(&mut self, id: ConnectionId) {
        self.protected.remove(&id);
    }

    /// Records that a call authenticated: the connection can no longer be evicted. Returns false if
    /// it has lost its slot already.
    pub(super) fn mark_authenticated(&mut self, id: ConnectionId) -> bool {
        let Some(entry) = self.entries.get(&id) else {
            return false;
        };
        self.forget_unauthenticated(id, entry.origin);
        true
    }

    /// Frees a connection's slot. Returns its origin, or `None` if it no longer had a slot.
    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<ConnectionOrigin> {
        let origin = self.entries.remove(&id)?.origin;
        self.forget_unauthenticated(id, origin);
        for group in groups(origin) {
            if let Some(members) = self.groups.get_mut(&group) {
                members.connections -= 1;
                if members.connections == 0 {
                    self.groups.remove(&group);
                }
            }
        }
        Some(origin)
    }

    /// Removes the connection from those that may be evicted.
    fn forget_unauthenticated(&mut self, id: ConnectionId, origin: ConnectionOrigin) {
        self.unauthenticated.remove(&id);
        self.protected.remove(&id);
        for group in groups(origin) {
            if let Some(members) = self.groups.get_mut(&group) {
                members.unauthenticated.remove(&id);
            }
        }
    }
}

/// Lists the groups that a connection of `origin` is counted in.
fn groups(origin: ConnectionOrigin) -> impl Iterator<Item = LimitGroup> {
    let site = origin.site().map(LimitGroup::Site);
    std::iter::once(LimitGroup::Peer(origin)).chain(site)
}

#[cfg(test)]
mod tests;
