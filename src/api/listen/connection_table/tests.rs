//! Tests of the bookkeeping of a listener's connections.

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
