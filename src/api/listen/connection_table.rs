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
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn table(places: u32, per_peer: u32) -> ConnectionTable {
        ConnectionTable::new(TableLimits {
            connections: places,
            per_peer,
        })
    }

    fn peer(n: u32) -> ConnectionOrigin {
        ConnectionOrigin::Ipv4(Ipv4Addr::from_bits(n))
    }

    /// Returns the origin of a link within a site.
    fn link(site: u16, link: u16) -> ConnectionOrigin {
        ConnectionOrigin::of(Ipv6Addr::new(0x2001, 0xdb8, site, link, 0, 0, 0, 1).into())
    }

    /// Admits a connection for which nobody is evicted.
    fn admit(table: &mut ConnectionTable, origin: ConnectionOrigin) -> ConnectionId {
        match table.admit(origin) {
            ConnectionAdmission::Admitted { id, evicted: None } => id,
            other @ (ConnectionAdmission::Admitted { .. } | ConnectionAdmission::Refused(_)) => {
                panic!("{other:?}")
            }
        }
    }

    /// Admits a connection for which another is evicted, and returns that one.
    fn evicts(table: &mut ConnectionTable, origin: ConnectionOrigin) -> ConnectionId {
        match table.admit(origin) {
            ConnectionAdmission::Admitted {
                evicted: Some((id, _)),
                ..
            } => id,
            other @ (ConnectionAdmission::Admitted { .. } | ConnectionAdmission::Refused(_)) => {
                panic!("{other:?}")
            }
        }
    }

    fn refused(table: &mut ConnectionTable, origin: ConnectionOrigin) -> ConnectionLimit {
        match table.admit(origin) {
            ConnectionAdmission::Refused(reached) => reached,
            other @ ConnectionAdmission::Admitted { .. } => panic!("{other:?}"),
        }
    }

    /// Admits a connection and authenticates it.
    fn authenticated(table: &mut ConnectionTable, origin: ConnectionOrigin) -> ConnectionId {
        let id = admit(table, origin);
        assert!(table.mark_authenticated(id));
        id
    }

    #[test]
    fn when_all_places_are_taken_the_oldest_without_a_credential_makes_way() {
        let mut table = table(7, 7);
        let kept = authenticated(&mut table, peer(0));
        let silent: Vec<_> = (1..7).map(|n| admit(&mut table, peer(n))).collect();
        assert_eq!(table.entries.len(), 7, "the last place is no different");
        for (n, oldest) in silent.iter().enumerate() {
            let newcomer = peer(100 + u32::try_from(n).unwrap_or(0));
            assert_eq!(evicts(&mut table, newcomer), *oldest);
        }
        assert!(table.entries.contains_key(&kept));
        assert_eq!(table.entries.len(), 7);
    }

    #[test]
    fn when_all_have_authenticated_a_newcomer_is_refused_until_one_leaves() {
        let mut table = table(3, 3);
        let all: Vec<_> = (0..3).map(|n| authenticated(&mut table, peer(n))).collect();
        assert_eq!(refused(&mut table, peer(9)), ConnectionLimit::Listener);
        assert_eq!(table.remove(all[1]), Some(peer(1)));
        assert_eq!(table.remove(all[1]), None, "once");
        admit(&mut table, peer(9));
    }

    #[test]
    fn a_peer_has_so_many_and_its_own_make_way() {
        let mut table = table(100, 3);
        let other = admit(&mut table, peer(2));
        let first = authenticated(&mut table, peer(1));
        let second = admit(&mut table, peer(1));
        let third = admit(&mut table, peer(1));
        assert_eq!(evicts(&mut table, peer(1)), second, "not what others have");
        assert!(table.mark_authenticated(third));
        assert_eq!(evicts(&mut table, peer(1)).0, third.0 + 1);
        assert!(table.mark_authenticated(ConnectionId(third.0 + 2)));
        assert_eq!(refused(&mut table, peer(1)), ConnectionLimit::Peer);
        assert!(!table.mark_authenticated(second), "it has lost its place");
        assert!(table.entries.contains_key(&other) && table.entries.contains_key(&first));
    }

    #[test]
    fn the_last_eighth_is_for_those_who_have_none() {
        let mut table = table(16, 16);
        for _ in 0..14 {
            authenticated(&mut table, peer(1));
        }
        assert_eq!(refused(&mut table, peer(1)), ConnectionLimit::Reserve);
        authenticated(&mut table, peer(2));
        assert_eq!(refused(&mut table, peer(2)), ConnectionLimit::Reserve);
        authenticated(&mut table, peer(3));
        assert_eq!(refused(&mut table, peer(4)), ConnectionLimit::Listener);
    }

    #[test]
    fn a_site_is_bounded_however_many_links_it_has() {
        // The limit of a site is four times two here, not three quarters of all.
        let mut table = table(64, 2);
        for n in 0..8 {
            authenticated(&mut table, link(1, n));
        }
        assert_eq!(refused(&mut table, link(1, 99)), ConnectionLimit::Site);
        let silent = admit(&mut table, link(2, 1));
        authenticated(&mut table, link(2, 1));
        assert_eq!(refused(&mut table, link(1, 99)), ConnectionLimit::Site);
        assert_eq!(evicts(&mut table, link(2, 1)), silent);
    }

    #[test]
    fn a_site_that_has_connections_is_no_newcomer_by_another_link() {
        let mut table = table(16, 8);
        for n in 0..12 {
            authenticated(&mut table, link(1, n));
        }
        assert_eq!(refused(&mut table, link(1, 99)), ConnectionLimit::Site);
        for n in 0..2 {
            authenticated(&mut table, link(2, n));
        }
        assert_eq!(refused(&mut table, link(2, 99)), ConnectionLimit::Reserve);
        authenticated(&mut table, link(3, 1));
    }

    #[test]
    fn the_allowance_of_a_site_lies_between_a_peers_and_three_quarters() {
        let per_site = |places, per_peer| {
            TableLimits {
                connections: places,
                per_peer,
            }
            .per_site()
        };
        assert_eq!(per_site(1024, 512), 768);
        assert_eq!(per_site(1024, 64), 256);
        assert_eq!(per_site(1024, 1000), 1000);
        assert_eq!(per_site(1, 1), 1);
    }

    #[test]
    fn whose_first_call_is_judged_makes_way_last() {
        let mut table = table(4, 4);
        let ids: Vec<_> = (0..4).map(|n| admit(&mut table, peer(n))).collect();
        assert!(table.begin_authentication(ids[0]));
        assert!(
            !table.begin_authentication(ids[1]),
            "of four, one is protected"
        );
        assert!(
            !table.begin_authentication(ids[0]),
            "a second call protects nobody"
        );
        assert_eq!(evicts(&mut table, peer(10)), ids[1]);
        table.end_authentication(ids[0]);
        assert_eq!(evicts(&mut table, peer(11)), ids[0]);
        assert!(!table.begin_authentication(ids[1]), "it is gone");
    }

    #[test]
    fn where_nobody_else_is_left_the_protected_make_way_too() {
        let mut table = table(2, 2);
        let id = admit(&mut table, peer(0));
        assert!(table.begin_authentication(id));
        authenticated(&mut table, peer(1));
        assert_eq!(evicts(&mut table, peer(2)), id);
    }

    /// An operation on the table. The numbers choose a peer, or one of all connections that ever
    /// were.
    #[derive(Clone, Debug)]
    enum TableStep {
        Come(u16, u16),
        Judge(u64),
        Judged(u64),
        Authenticate(u64),
        Leave(u64),
    }

    fn step() -> impl Strategy<Value = TableStep> {
        prop_oneof![
            4 => (0u16..4, 0u16..4).prop_map(|(site, link)| TableStep::Come(site, link)),
            1 => (0u64..64).prop_map(TableStep::Judge),
            1 => (0u64..64).prop_map(TableStep::Judged),
            1 => (0u64..64).prop_map(TableStep::Authenticate),
            1 => (0u64..64).prop_map(TableStep::Leave),
        ]
    }

    /// Asserts that the counts match the entries, and that no limit is exceeded.
    fn check(table: &ConnectionTable) {
        let limits = table.limits;
        assert!(table.entries.len() <= limits.connections as usize);
        assert!(table.protected.len() <= limits.protected());
        assert!(table.protected.is_subset(&table.unauthenticated));
        let all = table.groups.iter();
        for (group, members) in all {
            let most = match group {
                LimitGroup::Peer(_) => limits.per_peer,
                LimitGroup::Site(_) => limits.per_site(),
            };
            assert!(0 < members.connections && members.connections <= most);
            let of_it = |origin| groups(origin).any(|it| it == *group);
            let there = table.entries.iter().filter(|(_, it)| of_it(it.origin));
            let waiting: BTreeSet<_> = there
                .clone()
                .map(|(id, _)| *id)
                .filter(|id| table.unauthenticated.contains(id))
                .collect();
            assert_eq!(there.count(), members.connections as usize);
            assert_eq!(waiting, members.unauthenticated);
        }
    }

    proptest! {
        #[test]
        fn no_bound_is_passed_and_nobody_who_authenticated_makes_way(
            places in 1u32..24,
            per_peer in 1u32..12,
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut table = table(places, per_peer);
            for step in steps {
                match step {
                    TableStep::Come(site, at) => {
                        let origin = if site == 0 { peer(at.into()) } else { link(site, at) };
                        let newcomer = !groups(origin).any(|it| table.groups.contains_key(&it));
                        let before: BTreeSet<_> = table.unauthenticated.clone();
                        let count = table.entries.len();
                        let free = places as usize - count;
                        match table.admit(origin) {
                            ConnectionAdmission::Admitted { id, evicted } => {
                                prop_assert!(table.unauthenticated.contains(&id));
                                let grows = usize::from(evicted.is_none());
                                prop_assert_eq!(table.entries.len(), count + grows);
                                prop_assert!(evicted.is_none_or(|(id, _)| before.contains(&id)));
                                let reserved = table.limits.reserved();
                                prop_assert!(newcomer || evicted.is_some() || free > reserved);
                            }
                            ConnectionAdmission::Refused(reached) => {
                                prop_assert_eq!(table.entries.len(), count);
                                let of_all = matches!(
                                    reached,
                                    ConnectionLimit::Listener | ConnectionLimit::Reserve
                                );
                                prop_assert!(!of_all || before.is_empty());
                            }
                        }
                    }
                    TableStep::Judge(id) => {
                        table.begin_authentication(ConnectionId(id));
                    }
                    TableStep::Judged(id) => table.end_authentication(ConnectionId(id)),
                    TableStep::Authenticate(id) => {
                        table.mark_authenticated(ConnectionId(id));
                    }
                    TableStep::Leave(id) => {
                        table.remove(ConnectionId(id));
                    }
                }
                check(&table);
            }
            for id in 0..table.next.0 {
                table.remove(ConnectionId(id));
            }
            prop_assert!(table.entries.is_empty() && table.groups.is_empty());
            prop_assert!(table.unauthenticated.is_empty() && table.protected.is_empty());
        }
    }
}
