//! How many file system calls each tenant may make at once: a state machine without threads.
//!
//! Calls that keep a processor busy (names in the kernel's cache, large reads of what it has in
//! memory) gain nothing from more threads than the guests have, and each more takes processor time
//! from other tenants. Calls that wait for a disk do gain. So a tenant may make as many at once as
//! there are guest threads, times the part of its calls' time that they did not need a processor
//! for, over recent calls; never more than its share of all threads. A call that has taken long
//! waits for something that may never come, such as a server of files that is gone: it is not
//! counted, so that others of the tenant go on. Among those that wait the tenant goes first that
//! has fewest calls at once, by its weight.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The part of all threads that no single tenant takes: an eighth.
const LEFT_TO_OTHERS: usize = 8;
/// Once a tenant's recent calls add up to this, older ones count half as much.
const RECENT: Duration = Duration::from_secs(1);

/// A call that has taken so long is not counted among those that a tenant makes at once, but for
/// its share of all threads.
pub(super) const LONG: Duration = Duration::from_millis(100);

/// What a call had of its thread.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CallTimes {
    /// Time in which it used a processor, or waited for one.
    pub busy: Duration,
    /// Time in which it waited for something else.
    pub blocked: Duration,
}

/// A call that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallId {
    tenant: usize,
    number: u64,
}

/// The calls of all tenants; `W` is what somebody that waits is told by.
pub(super) struct Shares<W> {
    threads: usize,
    guest_threads: usize,
    running: usize,
    numbers: u64,
    tenants: Vec<TenantCalls<W>>,
}

struct TenantCalls<W> {
    weight: u32,
    /// Those that are being made, with when they began, in that order.
    running: Vec<(u64, Instant)>,
    waiting: VecDeque<(u64, W)>,
    recent: CallTimes,
}

impl<W> Shares<W> {
    /// Creates the calls of no tenant, for so many threads, beside so many that execute guests.
    pub(super) fn new(threads: usize, guest_threads: usize) -> Self {
        Self {
            threads,
            guest_threads: guest_threads.max(1),
            running: 0,
            numbers: 0,
            tenants: Vec::new(),
        }
    }

    /// Adds a tenant, and returns what it is called by.
    pub(super) fn add_tenant(&mut self, weight: u32) -> usize {
        self.tenants.push(TenantCalls {
            weight: weight.max(1),
            running: Vec::new(),
            waiting: VecDeque::new(),
            recent: CallTimes::default(),
        });
        self.tenants.len() - 1
    }

    /// Starts a call where there is room for it.
    pub(super) fn start(&mut self, tenant: usize, now: Instant) -> Option<CallId> {
        let has_room = self.tenants[tenant].waiting.is_empty() && self.has_room(tenant, now);
        has_room.then(|| self.run(tenant, now))
    }

    /// Has a call wait, and returns what it leaves the queue by.
    pub(super) fn wait(&mut self, tenant: usize, waiter: W) -> u64 {
        self.numbers += 1;
        let place = (self.numbers, waiter);
        self.tenants[tenant].waiting.push_back(place);
        self.numbers
    }

    /// Takes a call out of the queue; `None` where it has been started.
    pub(super) fn leave(&mut self, tenant: usize, ticket: u64) -> Option<W> {
        let waiting = &mut self.tenants[tenant].waiting;
        // Numbers only grow.
        let at = waiting.binary_search_by_key(&ticket, |(it, _)| *it).ok()?;
        waiting.remove(at).map(|(_, waiter)| waiter)
    }

    /// Ends a call.
    pub(super) fn end(&mut self, call: CallId, times: CallTimes) {
        let tenant = &mut self.tenants[call.tenant];
        let before = tenant.running.len();
        tenant.running.retain(|(number, _)| *number != call.number);
        self.running -= before - tenant.running.len();
        tenant.note(times);
    }

    /// Starts those that wait and have room now. To be called after the end of each call, and, where
    /// somebody waits, once in [`LONG`].
    pub(super) fn start_waiting(&mut self, now: Instant) -> Vec<(CallId, W)> {
        let mut started = Vec::new();
        while let Some(next) = self.next(now) {
            if let Some((_, waiter)) = self.tenants[next].waiting.pop_front() {
                started.push((self.run(next, now), waiter));
            }
        }
        started
    }

    fn run(&mut self, tenant: usize, now: Instant) -> CallId {
        self.numbers += 1;
        self.running += 1;
        let number = self.numbers;
        self.tenants[tenant].running.push((number, now));
        CallId { tenant, number }
    }

    /// The tenant whose call is next: of those that may have one more, the one that has fewest by
    /// its weight.
    fn next(&self, now: Instant) -> Option<usize> {
        let may = |tenant: &usize| {
            !self.tenants[*tenant].waiting.is_empty() && self.has_room(*tenant, now)
        };
        (0..self.tenants.len()).filter(may).min_by(|a, b| {
            let [a, b] = [a, b].map(|it| &self.tenants[*it]);
            // Compares running / weight without dividing.
            let of = |one: &TenantCalls<W>, other: &TenantCalls<W>| {
                one.running.len() as u64 * u64::from(other.weight)
            };
            of(a, b).cmp(&of(b, a))
        })
    }

    fn has_room(&self, tenant: usize, now: Instant) -> bool {
        let share = self.threads - self.threads.div_ceil(LEFT_TO_OTHERS);
        let calls = &self.tenants[tenant];
        self.running < self.threads
            && calls.running.len() < share
            && calls.counted(now) < self.most(tenant)
    }

    /// How many calls that have not taken long a tenant may make at once.
    fn most(&self, tenant: usize) -> usize {
        let CallTimes { busy, blocked } = self.tenants[tenant].recent;
        let times = 1 + blocked.as_micros() / busy.as_micros().max(1);
        let times = usize::try_from(times).unwrap_or(usize::MAX);
        self.guest_threads.saturating_mul(times)
    }
}

impl<W> TenantCalls<W> {
    /// How many have not taken long.
    fn counted(&self, now: Instant) -> usize {
        let is_long = |(_, start): &(u64, Instant)| now.duration_since(*start) >= LONG;
        self.running.len() - self.running.partition_point(is_long)
    }

    fn note(&mut self, times: CallTimes) {
        let recent = &mut self.recent;
        recent.busy += times.busy;
        recent.blocked += times.blocked;
        if recent.busy + recent.blocked > RECENT {
            recent.busy /= 2;
            recent.blocked /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: CallTimes = CallTimes {
        busy: Duration::from_millis(1),
        blocked: Duration::ZERO,
    };
    const BLOCKED: CallTimes = CallTimes {
        busy: Duration::from_micros(10),
        blocked: Duration::from_millis(10),
    };

    /// Of 16 threads, beside two that execute guests.
    fn shares(tenants: usize) -> Shares<usize> {
        let mut shares = Shares::new(16, 2);
        for _ in 0..tenants {
            shares.add_tenant(1);
        }
        shares
    }

    /// Starts calls until one has to wait.
    fn fill(shares: &mut Shares<usize>, tenant: usize, now: Instant) -> Vec<CallId> {
        std::iter::from_fn(|| shares.start(tenant, now)).collect()
    }

    /// Ends a call, and returns who is started.
    fn end(shares: &mut Shares<usize>, call: CallId, now: Instant) -> Vec<usize> {
        shares.end(call, BUSY);
        let started = shares.start_waiting(now);
        started.into_iter().map(|(_, waiter)| waiter).collect()
    }

    #[test]
    fn calls_that_keep_a_processor_busy_are_as_many_at_once_as_guest_threads() {
        let (mut shares, now) = (shares(1), Instant::now());
        let mut calls = fill(&mut shares, 0, now);
        assert_eq!(calls.len(), 2);
        for _ in 0..100 {
            shares.end(calls.remove(0), BUSY);
            calls.extend(shares.start(0, now));
            assert_eq!(calls.len(), 2);
            assert_eq!(shares.start(0, now), None);
        }
    }

    #[test]
    fn calls_that_wait_for_a_disk_are_more_but_leave_an_eighth_to_others() {
        let (mut shares, now) = (shares(2), Instant::now());
        let call = shares.start(0, now).unwrap();
        shares.end(call, BLOCKED);
        assert_eq!(fill(&mut shares, 0, now).len(), 14);
        assert_eq!(fill(&mut shares, 1, now).len(), 2);
        // All threads are taken now.
        shares.tenants[1].recent = BLOCKED;
        assert_eq!(shares.start(1, now), None);
    }

    #[test]
    fn a_call_that_never_ends_keeps_no_other_from_being_made() {
        let (mut shares, mut now) = (shares(1), Instant::now());
        let mut stuck = 0;
        while stuck < 14 {
            stuck += fill(&mut shares, 0, now).len();
            let just_not = now + LONG - Duration::from_nanos(1);
            shares.wait(0, stuck);
            assert!(shares.start_waiting(just_not).is_empty());
            now += LONG;
            stuck += shares.start_waiting(now).len();
        }
        // The share of all threads holds for these too.
        now += LONG;
        assert_eq!(shares.start(0, now), None);
    }

    #[test]
    fn what_a_tenants_calls_did_long_ago_is_forgotten() {
        let (mut shares, now) = (shares(1), Instant::now());
        for (times, most) in [(BLOCKED, 100), (BUSY, 2)] {
            for _ in 0..10_000 {
                let call = shares.start(0, now).unwrap();
                shares.end(call, times);
            }
            if most == 2 {
                assert_eq!(shares.most(0), most);
            } else {
                assert!(shares.most(0) > most);
            }
        }
    }

    #[test]
    fn the_tenant_with_fewest_calls_by_weight_is_next() {
        let (mut shares, now) = (Shares::new(4, 4), Instant::now());
        for weight in [1, 3] {
            shares.add_tenant(weight);
        }
        // The first tenant has all that one may have, and the rest is the second's.
        let mut calls = fill(&mut shares, 0, now);
        calls.extend(fill(&mut shares, 1, now));
        assert_eq!(shares.tenants[0].running.len(), 3);
        for tenant in [0, 1, 0, 1, 1, 1] {
            shares.wait(tenant, tenant);
        }
        let ended = calls.into_iter();
        let started: Vec<_> = ended.flat_map(|call| end(&mut shares, call, now)).collect();
        // Three of four are the second's, whose weight is three times the first's.
        assert_eq!(
            started.iter().filter(|it| **it == 1).count(),
            3,
            "{started:?}"
        );
        assert_eq!(shares.running, 4);
    }

    #[test]
    fn whoever_leaves_is_not_started() {
        let (mut shares, now) = (shares(1), Instant::now());
        let calls = fill(&mut shares, 0, now);
        let tickets: Vec<_> = (0..3).map(|it| shares.wait(0, it)).collect();
        assert_eq!(shares.leave(0, tickets[0]), Some(0));
        assert_eq!(shares.leave(0, tickets[0]), None);
        assert_eq!(end(&mut shares, calls[0], now), [1]);
        // It has been started.
        assert_eq!(shares.leave(0, tickets[1]), None);
        // Nobody goes ahead of one that waits.
        assert_eq!(shares.start(0, now), None);
        assert_eq!(end(&mut shares, calls[1], now), [2]);
        // Ending a call twice ends no other.
        shares.end(calls[1], BUSY);
        assert_eq!(shares.running, 2);
    }
}
