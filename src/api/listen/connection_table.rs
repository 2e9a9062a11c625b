//! Who may hold a connection at one listener: bookkeeping without sockets and clocks.
//!
//! Admission control with eviction. Places are bounded in all, by peer and, for IPv6, by site. An eighth of them is kept
//! for those that hold none. Where a bound is reached, the connection that has waited longest for a call that
//! authenticates makes way (first in, first out); only where there is none is the new one refused. So connections that
//! never authenticate keep nobody out, however many they are, and a newcomer has as long for its first call as it takes
//! to replace all others.

use std::collections::{BTreeSet, HashMap};

use super::origin::{Origin, Site};

/// The share of the places that is kept for peers, and sites, that hold none.
const RESERVED_SHARE: u32 = 8;
/// How many times as many connections as a peer a site may hold, but not more than three quarters of all.
const SITE_FACTOR: u32 = 4;
/// Connections that keep their place while their first call is judged, at the most, and of a few places a quarter. Judging
/// can be made to take long, as by naming a key that has to be asked for, so that all may not have that.
const MAX_PROTECTED: u32 = 64;

/// The bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableLimits {
    /// Connections at once.
    pub(super) places: u32,
    /// Of those, the most of one peer.
    pub(super) per_peer: u32,
}

impl TableLimits {
    fn reserved(self) -> usize {
        (self.places / RESERVED_SHARE) as usize
    }

    fn per_site(self) -> u32 {
        let most = (u64::from(self.places) * 3 / 4).try_into();
        let allowed = self.per_peer.saturating_mul(SITE_FACTOR);
        allowed.min(most.unwrap_or(u32::MAX)).max(self.per_peer)
    }

    fn protected(self) -> usize {
        (self.places / 4).clamp(1, MAX_PROTECTED) as usize
    }
}

/// A connection, in the order in which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ConnectionId(u64);

/// What comes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entrance {
    /// It has a place, which was free, or that of another, which has lost it.
    Admitted {
        id: ConnectionId,
        evicted: Option<(ConnectionId, Origin)>,
    },
    Refused(BoundReached),
}

/// Why there is no place, and nobody who would make way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BoundReached {
    /// The peer holds as many as it may.
    Peer,
    /// The peer's site does.
    Site,
    /// What is left is for those that hold none.
    Reserve,
    /// All places are taken.
    Listener,
}

impl BoundReached {
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

/// What bounds are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Group {
    Peer(Origin),
    Site(Site),
}

#[derive(Debug, Default)]
struct GroupMembers {
    connections: u32,
    unauthenticated: BTreeSet<ConnectionId>,
}

#[derive(Debug)]
struct TableEntry {
    origin: Origin,
    /// Whether a call was ever judged on it: the first is what may protect it.
    called: bool,
}

/// The connections of one listener.
#[derive(Debug)]
pub(super) struct ConnectionTable {
    limits: TableLimits,
    /// That of the next connection.
    next: ConnectionId,
    entries: HashMap<ConnectionId, TableEntry>,
    groups: HashMap<Group, GroupMembers>,
    unauthenticated: BTreeSet<ConnectionId>,
    /// Of those, the ones whose first call is being judged.
    protected: BTreeSet<ConnectionId>,
}

impl ConnectionTable {
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

    /// Takes in a connection, which has not authenticated, where there is a place or somebody makes way.
    pub(super) fn admit(&mut self, origin: Origin) -> Entrance {
        let evicted = match self.make_room(origin) {
            Ok(evicted) => evicted,
            Err(reached) => return Entrance::Refused(reached),
        };
        let evicted = evicted.and_then(|id| Some((id, self.leave(id)?)));
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
        Entrance::Admitted { id, evicted }
    }

    /// Who has to make way for a connection of `origin`, if anybody.
    fn make_room(&self, origin: Origin) -> Result<Option<ConnectionId>, BoundReached> {
        for group in groups(origin) {
            let (most, reached) = match group {
                Group::Peer(_) => (self.limits.per_peer, BoundReached::Peer),
                Group::Site(_) => (self.limits.per_site(), BoundReached::Site),
            };
            // Whoever makes way in the group makes way in all that it is part of.
            if let Some(members) = self.groups.get(&group)
                && members.connections >= most
            {
                let oldest = self.oldest(&members.unauthenticated);
                return oldest.map(Some).ok_or(reached);
            }
        }
        let free = (self.limits.places as usize).saturating_sub(self.entries.len());
        // A site is one newcomer, not each of its links.
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
            0 => BoundReached::Listener,
            _ => BoundReached::Reserve,
        };
        let oldest = self.oldest(&self.unauthenticated);
        oldest.map(Some).ok_or(reached)
    }

    /// The one of `candidates` that came first, those under protection last.
    fn oldest(&self, candidates: &BTreeSet<ConnectionId>) -> Option<ConnectionId> {
        let mut unprotected = candidates.iter().filter(|id| !self.protected.contains(id));
        unprotected.next().or_else(|| candidates.first()).copied()
    }

    /// Takes note that a call of a connection is being judged; where it is the first one, it may protect the connection
    /// until [`Self::call_was_judged`]. True where it does.
    pub(super) fn call_is_judged(&mut self, id: ConnectionId) -> bool {
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

    /// Ends the protection that a call gave.
    pub(super) fn call_was_judged(&mut self, id: ConnectionId) {
        self.protected.remove(&id);
    }

    /// Takes note that somebody authenticated on a connection: it does not make way any more. False where it has lost its
    /// place already.
    pub(super) fn authenticated(&mut self, id: ConnectionId) -> bool {
        let Some(entry) = self.entries.get(&id) else {
            return false;
        };
        self.forget_unauthenticated(id, entry.origin);
        true
    }

    /// Gives a connection's place back, where it has one still.
    pub(super) fn leave(&mut self, id: ConnectionId) -> Option<Origin> {
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

    fn forget_unauthenticated(&mut self, id: ConnectionId, origin: Origin) {
        self.unauthenticated.remove(&id);
        self.protected.remove(&id);
        for group in groups(origin) {
            if let Some(members) = self.groups.get_mut(&group) {
                members.unauthenticated.remove(&id);
            }
        }
    }
}

/// What a connection of `origin` is counted in.
fn groups(origin: Origin) -> impl Iterator<Item = Group> {
    let site = origin.site().map(Group::Site);
    std::iter::once(Group::Peer(origin)).chain(site)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn table(places: u32, per_peer: u32) -> ConnectionTable {
        ConnectionTable::new(TableLimits { places, per_peer })
    }

    fn peer(n: u32) -> Origin {
        Origin::Ipv4(Ipv4Addr::from_bits(n))
    }

    /// A link of a site.
    fn link(site: u16, link: u16) -> Origin {
        Origin::of(Ipv6Addr::new(0x2001, 0xdb8, site, link, 0, 0, 0, 1).into())
    }

    /// Admits one for whom nobody makes way.
    fn admit(table: &mut ConnectionTable, origin: Origin) -> ConnectionId {
        match table.admit(origin) {
            Entrance::Admitted { id, evicted: None } => id,
            other @ (Entrance::Admitted { .. } | Entrance::Refused(_)) => panic!("{other:?}"),
        }
    }

    /// Admits one for whom another makes way, and says which.
    fn evicts(table: &mut ConnectionTable, origin: Origin) -> ConnectionId {
        match table.admit(origin) {
            Entrance::Admitted {
                evicted: Some((id, _)),
                ..
            } => id,
            other @ (Entrance::Admitted { .. } | Entrance::Refused(_)) => panic!("{other:?}"),
        }
    }

    fn refused(table: &mut ConnectionTable, origin: Origin) -> BoundReached {
        match table.admit(origin) {
            Entrance::Refused(reached) => reached,
            other @ Entrance::Admitted { .. } => panic!("{other:?}"),
        }
    }

    /// Admits one and authenticates it.
    fn authenticated(table: &mut ConnectionTable, origin: Origin) -> ConnectionId {
        let id = admit(table, origin);
        assert!(table.authenticated(id));
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
        assert_eq!(refused(&mut table, peer(9)), BoundReached::Listener);
        assert_eq!(table.leave(all[1]), Some(peer(1)));
        assert_eq!(table.leave(all[1]), None, "once");
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
        assert!(table.authenticated(third));
        assert_eq!(evicts(&mut table, peer(1)).0, third.0 + 1);
        assert!(table.authenticated(ConnectionId(third.0 + 2)));
        assert_eq!(refused(&mut table, peer(1)), BoundReached::Peer);
        assert!(!table.authenticated(second), "it has lost its place");
        assert!(table.entries.contains_key(&other) && table.entries.contains_key(&first));
    }

    #[test]
    fn the_last_eighth_is_for_those_who_have_none() {
        let mut table = table(16, 16);
        for _ in 0..14 {
            authenticated(&mut table, peer(1));
        }
        assert_eq!(refused(&mut table, peer(1)), BoundReached::Reserve);
        authenticated(&mut table, peer(2));
        assert_eq!(refused(&mut table, peer(2)), BoundReached::Reserve);
        authenticated(&mut table, peer(3));
        assert_eq!(refused(&mut table, peer(4)), BoundReached::Listener);
    }

    #[test]
    fn a_site_is_bounded_however_many_links_it_has() {
        // Four times two, not three quarters of all.
        let mut table = table(64, 2);
        for n in 0..8 {
            authenticated(&mut table, link(1, n));
        }
        assert_eq!(refused(&mut table, link(1, 99)), BoundReached::Site);
        let silent = admit(&mut table, link(2, 1));
        authenticated(&mut table, link(2, 1));
        assert_eq!(refused(&mut table, link(1, 99)), BoundReached::Site);
        assert_eq!(evicts(&mut table, link(2, 1)), silent);
    }

    #[test]
    fn a_site_that_has_connections_is_no_newcomer_by_another_link() {
        let mut table = table(16, 8);
        for n in 0..12 {
            authenticated(&mut table, link(1, n));
        }
        assert_eq!(refused(&mut table, link(1, 99)), BoundReached::Site);
        for n in 0..2 {
            authenticated(&mut table, link(2, n));
        }
        assert_eq!(refused(&mut table, link(2, 99)), BoundReached::Reserve);
        authenticated(&mut table, link(3, 1));
    }

    #[test]
    fn the_allowance_of_a_site_lies_between_a_peers_and_three_quarters() {
        let per_site = |places, per_peer| TableLimits { places, per_peer }.per_site();
        assert_eq!(per_site(1024, 512), 768);
        assert_eq!(per_site(1024, 64), 256);
        assert_eq!(per_site(1024, 1000), 1000);
        assert_eq!(per_site(1, 1), 1);
    }

    #[test]
    fn whose_first_call_is_judged_makes_way_last() {
        let mut table = table(4, 4);
        let ids: Vec<_> = (0..4).map(|n| admit(&mut table, peer(n))).collect();
        assert!(table.call_is_judged(ids[0]));
        assert!(!table.call_is_judged(ids[1]), "of four, one is protected");
        assert!(
            !table.call_is_judged(ids[0]),
            "a second call protects nobody"
        );
        assert_eq!(evicts(&mut table, peer(10)), ids[1]);
        table.call_was_judged(ids[0]);
        assert_eq!(evicts(&mut table, peer(11)), ids[0]);
        assert!(!table.call_is_judged(ids[1]), "it is gone");
    }

    #[test]
    fn where_nobody_else_is_left_the_protected_make_way_too() {
        let mut table = table(2, 2);
        let id = admit(&mut table, peer(0));
        assert!(table.call_is_judged(id));
        authenticated(&mut table, peer(1));
        assert_eq!(evicts(&mut table, peer(2)), id);
    }

    /// What may happen to a table; numbers choose a peer, or a connection among all that ever were.
    #[derive(Clone, Debug)]
    enum Step {
        Come(u16, u16),
        Judge(u64),
        Judged(u64),
        Authenticate(u64),
        Leave(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u16..4, 0u16..4).prop_map(|(site, link)| Step::Come(site, link)),
            1 => (0u64..64).prop_map(Step::Judge),
            1 => (0u64..64).prop_map(Step::Judged),
            1 => (0u64..64).prop_map(Step::Authenticate),
            1 => (0u64..64).prop_map(Step::Leave),
        ]
    }

    /// What is counted is what there is, and no bound is passed.
    fn check(table: &ConnectionTable) {
        let limits = table.limits;
        assert!(table.entries.len() <= limits.places as usize);
        assert!(table.protected.len() <= limits.protected());
        assert!(table.protected.is_subset(&table.unauthenticated));
        let all = table.groups.iter();
        for (group, members) in all {
            let most = match group {
                Group::Peer(_) => limits.per_peer,
                Group::Site(_) => limits.per_site(),
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
                    Step::Come(site, at) => {
                        let origin = if site == 0 { peer(at.into()) } else { link(site, at) };
                        let newcomer = !groups(origin).any(|it| table.groups.contains_key(&it));
                        let before: BTreeSet<_> = table.unauthenticated.clone();
                        let count = table.entries.len();
                        let free = places as usize - count;
                        match table.admit(origin) {
                            Entrance::Admitted { id, evicted } => {
                                prop_assert!(table.unauthenticated.contains(&id));
                                let grows = usize::from(evicted.is_none());
                                prop_assert_eq!(table.entries.len(), count + grows);
                                prop_assert!(evicted.is_none_or(|(id, _)| before.contains(&id)));
                                let reserved = table.limits.reserved();
                                prop_assert!(newcomer || evicted.is_some() || free > reserved);
                            }
                            Entrance::Refused(reached) => {
                                prop_assert_eq!(table.entries.len(), count);
                                let of_all = matches!(
                                    reached,
                                    BoundReached::Listener | BoundReached::Reserve
                                );
                                prop_assert!(!of_all || before.is_empty());
                            }
                        }
                    }
                    Step::Judge(id) => {
                        table.call_is_judged(ConnectionId(id));
                    }
                    Step::Judged(id) => table.call_was_judged(ConnectionId(id)),
                    Step::Authenticate(id) => {
                        table.authenticated(ConnectionId(id));
                    }
                    Step::Leave(id) => {
                        table.leave(ConnectionId(id));
                    }
                }
                check(&table);
            }
            for id in 0..table.next.0 {
                table.leave(ConnectionId(id));
            }
            prop_assert!(table.entries.is_empty() && table.groups.is_empty());
            prop_assert!(table.unauthenticated.is_empty() && table.protected.is_empty());
        }
    }
}
