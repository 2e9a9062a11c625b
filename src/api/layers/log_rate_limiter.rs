//! Limits the log lines that peers without a credential can cause, by counting in fixed windows: a
//! few lines each second for one peer, and a few for all peers together. Lines beyond that are only
//! counted. This is bookkeeping without a clock, and its size is fixed however many addresses an
//! attacker has.

use crate::api::listen::ConnectionOrigin;

/// The most lines about one peer in a period.
const PEER_LINES: u32 = 5;
/// The most lines about all peers together in a period.
const ALL_LINES: u32 = 20;
/// The most peers that are told apart in a period. There are more of them than lines, so any
/// further peer could not have a line anyway.
const MAX_PEERS: usize = 64;
/// The most peers whose suppressed lines are reported by peer: those with the most of them.
const TOLD_PEERS: usize = 4;

/// The rate limiter, with the counts of the present period.
#[derive(Debug, Default)]
pub(in crate::api) struct LogRateLimiter {
    written: u32,
    peers: Vec<PeerLines>,
    /// Suppressed lines about peers that are not told apart.
    others_left_out: u64,
}

/// The lines about one peer in the present period.
#[derive(Debug)]
struct PeerLines {
    peer: ConnectionOrigin,
    written: u32,
    left_out: u64,
}

/// The lines that were suppressed in a period.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::api) struct SuppressedLines {
    /// The peers with the most suppressed lines, each with their number.
    pub(in crate::api) peers: Vec<(ConnectionOrigin, u64)>,
    /// The number of suppressed lines about all other peers together.
    pub(in crate::api) others: u64,
}

impl LogRateLimiter {
    /// Reports whether a line about `peer` may be written. If not, the line is counted.
    pub(in crate::api) fn admit(&mut self, peer: ConnectionOrigin) -> bool {
        let known = self.peers.iter().position(|it| it.peer == peer);
        let lines = match known {
            Some(at) => self.peers.get_mut(at),
            None if self.peers.len() < MAX_PEERS => {
                self.peers.push(PeerLines {
                    peer,
                    written: 0,
                    left_out: 0,
                });
                self.peers.last_mut()
            }
            None => None,
        };
        let Some(lines) = lines else {
            self.others_left_out += 1;
            return false;
        };
        if lines.written >= PEER_LINES || self.written >= ALL_LINES {
            lines.left_out += 1;
            return false;
        }
        lines.written += 1;
        self.written += 1;
        true
    }

    /// Starts the next period, and returns what was suppressed in this one.
    pub(in crate::api) fn roll(&mut self) -> SuppressedLines {
        let Self {
            peers,
            others_left_out,
            ..
        } = std::mem::take(self);
        let left_out = peers.into_iter().map(|it| (it.peer, it.left_out));
        let mut peers: Vec<_> = left_out.filter(|(_, lines)| *lines > 0).collect();
        peers.sort_by_key(|(peer, lines)| (std::cmp::Reverse(*lines), *peer));
        let rest = peers.split_off(peers.len().min(TOLD_PEERS));
        let others = rest.iter().map(|(_, lines)| lines).sum::<u64>() + others_left_out;
        SuppressedLines { peers, others }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn peer(n: u32) -> ConnectionOrigin {
        ConnectionOrigin::Ipv4(Ipv4Addr::from_bits(0x0a00_0000 + n))
    }

    fn admitted(budget: &mut LogRateLimiter, n: u32, times: u32) -> u32 {
        let admitted = (0..times).filter(|_| budget.admit(peer(n))).count();
        u32::try_from(admitted).unwrap_or(u32::MAX)
    }

    #[test]
    fn a_peer_has_its_few_lines_and_the_rest_is_counted() {
        let mut budget = LogRateLimiter::default();
        assert_eq!(admitted(&mut budget, 1, PEER_LINES - 1), PEER_LINES - 1);
        assert_eq!(budget.roll(), SuppressedLines::default(), "one below");
        assert_eq!(admitted(&mut budget, 1, PEER_LINES), PEER_LINES);
        assert_eq!(budget.roll(), SuppressedLines::default(), "at the limit");
        assert_eq!(admitted(&mut budget, 1, PEER_LINES + 1), PEER_LINES);
        assert_eq!(budget.roll().peers, [(peer(1), 1)], "one above");
        assert_eq!(admitted(&mut budget, 1, 1), 1, "the next period is new");
    }

    #[test]
    fn another_peer_still_has_its_lines() {
        let mut budget = LogRateLimiter::default();
        assert_eq!(admitted(&mut budget, 1, 10_000), PEER_LINES);
        assert_eq!(admitted(&mut budget, 2, 2), 2);
    }

    #[test]
    fn all_peers_together_have_theirs_and_nothing_is_lost_from_the_count() {
        const PEERS: u32 = 100_000;
        let mut budget = LogRateLimiter::default();
        let admitted: u32 = (0..PEERS).map(|n| admitted(&mut budget, n, 2)).sum();
        assert_eq!(admitted, ALL_LINES);
        assert_eq!(budget.peers.len(), MAX_PEERS, "its size is fixed");
        let SuppressedLines { peers, others } = budget.roll();
        assert_eq!(peers.len(), TOLD_PEERS);
        let told: u64 = peers.iter().map(|(_, lines)| lines).sum();
        assert_eq!(told + others + u64::from(admitted), u64::from(2 * PEERS));
    }

    #[test]
    fn those_who_cause_most_are_told_by_name() {
        let mut budget = LogRateLimiter::default();
        for n in 1..=10 {
            admitted(&mut budget, n, 100 * n);
        }
        let SuppressedLines { peers, others } = budget.roll();
        let named: Vec<_> = peers.iter().map(|(peer, _)| *peer).collect();
        assert_eq!(named, [peer(10), peer(9), peer(8), peer(7)]);
        let all: u64 = peers.iter().map(|(_, lines)| lines).sum::<u64>() + others;
        assert_eq!(all, 5500 - u64::from(ALL_LINES));
    }
}
