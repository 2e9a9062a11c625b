//! A concurrency limiter for file system calls: decides how many each tenant may make at once, as a
//! state machine without threads.
//!
//! Calls that keep a processor busy (names in the kernel's cache, large reads of what it has in
//! memory) gain nothing from more threads than the guests have, and each further thread takes
//! processor time from other tenants. Calls that wait for a disk do gain. So a tenant's limit is
//! the number of guest threads, multiplied by the ratio of its recent calls' total time to the time
//! for which they needed a processor. It never exceeds the tenant's share of all threads. A call
//! that has taken long waits for something that may never come, such as a file server that is gone.
//! It is not counted, so that the tenant's other calls go on. Of the tenants that wait, the one
//! with the fewest calls in progress by weight goes first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The part of all threads that no single tenant may take: one in this many.
const OTHERS_DIVISOR: usize = 8;
/// Once a tenant's recent call times add up to this, they are halved, so that older ones count
/// less.
const RECENT: Duration = Duration::from_secs(1);

/// A call that has taken this long no longer counts against its tenant's concurrency limit, but
/// still against the tenant's share of all threads.
pub(super) const LONG_CALL: Duration = Duration::from_millis(100);

/// How a call spent the time on its thread.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FileCallTimes {
    /// The time for which the call used a processor, or waited for one.
    pub busy: Duration,
    /// The time for which the call waited for something else.
    pub blocked: Duration,
}

/// The identity of a call in progress: its tenant and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileCallId {
    tenant: usize,
    number: u64,
}

/// The limiter of the calls of all tenants. `W` is what notifies a waiting call that it may start.
pub(super) struct FileCallLimiter<W> {
    threads: usize,
    guest_threads: usize,
    running: usize,
    numbers: u64,
    tenants: Vec<TenantFileCalls<W>>,
}

struct TenantFileCalls<W> {
    weight: u32,
    /// The number and the start time of each call in progress, in the order of their starts.
    running: Vec<(u64, Instant)>,
    waiting: VecDeque<(u64, W)>,
    recent: FileCallTimes,
}

impl<W> FileCallLimiter<W> {
    /// Creates a limiter without tenants, for `threads` threads in total, on a host with
    /// `guest_threads` guest threads.
    pub(super) fn new(threads: usize, guest_threads: usize) -> Self {
        Self {
            threads,
            guest_threads: guest_threads.max(1),
            running: 0,
            numbers: 0,
            tenants: Vec::new(),
        }
    }

    /// Adds a tenant, and returns its index.
    pub(super) fn add_tenant(&mut self, weight: u32) -> usize {
        self.tenants.push(TenantFileCalls {
            weight: weight.max(1),
            running: Vec::new(),
            waiting: VecDeque::new(),
            recent: FileCallTimes::default(),
        });
        self.tenants.len() - 1
    }

    /// Starts a call of the tenant if there is room for it and none of its calls waits; otherwise
    /// returns `None`.
    pub(super) fn start(&mut self, tenant: usize, now: Instant) -> Option<FileCallId> {
        let has_room = self.tenants[tenant].waiting.is_empty() && self.has_room(tenant, now);
        has_room.then(|| self.run(tenant, now))
    }

    /// Queues a call, and returns the ticket by which it can leave the queue.
    pub(super) fn wait(&mut self, tenant: usize, waiter: W) -> u64 {
        self.numbers += 1;
        let place = (self.numbers, waiter);
        self.tenants[tenant].waiting.push_back(place);
        self.numbers
    }

    /// Takes a call out of the queue by its ticket; returns `None` if it has been started.
    pub(super) fn leave(&mut self, tenant: usize, ticket: u64) -> Option<W> {
        let waiting = &mut self.tenants[tenant].waiting;
        // The queue is sorted, since numbers only grow.
        let at = waiting.binary_search_by_key(&ticket, |(it, _)| *it).ok()?;
        waiting.remove(at).map(|(_, waiter)| waiter)
    }

    /// Ends a call, and records how it spent its time.
    pub(super) fn end(&mut self, call: FileCallId, times: FileCallTimes) {
        let tenant = &mut self.tenants[call.tenant];
        let before = tenant.running.len();
        tenant.running.retain(|(number, _)| *number != call.number);
        self.running -= before - tenant.running.len();
        tenant.note(times);
    }

    /// Starts the waiting calls that have room now, and returns them. It must be called after the
    /// end of each call, and, while a call waits, once in [`LONG_CALL`].
    pub(super) fn start_waiting(&mut self, now: Instant) -> Vec<(FileCallId, W)> {
        let mut started = Vec::new();
        while let Some(next) = self.next(now) {
            if let Some((_, waiter)) = self.tenants[next].waiting.pop_front() {
                started.push((self.run(next, now), waiter));
            }
        }
        started
    }

    fn run(&mut self, tenant: usize, now: Instant) -> FileCallId {
        self.numbers += 1;
        self.running += 1;
        let number = self.numbers;
        self.tenants[tenant].running.push((number, now));
        FileCallId { tenant, number }
    }

    /// Returns the tenant whose call is next: of those with a waiting call and room for it, the one
    /// with the fewest calls in progress by weight.
    fn next(&self, now: Instant) -> Option<usize> {
        let may = |tenant: &usize| {
            !self.tenants[*tenant].waiting.is_empty() && self.has_room(*tenant, now)
        };
        (0..self.tenants.len()).filter(may).min_by(|a, b| {
            let [a, b] = [a, b].map(|it| &self.tenants[*it]);
            // Compares running / weight without dividing.
            let of = |one: &TenantFileCalls<W>, other: &TenantFileCalls<W>| {
                one.running.len() as u64 * u64::from(other.weight)
            };
            of(a, b).cmp(&of(b, a))
        })
    }

    fn has_room(&self, tenant: usize, now: Instant) -> bool {
        let share = self.threads - self.threads.div_ceil(OTHERS_DIVISOR);
        let calls = &self.tenants[tenant];
        self.running < self.threads
            && calls.running.len() < share
            && calls.counted(now) < self.concurrency_limit(tenant)
    }

    /// Returns how many calls that have not taken long the tenant may make at once.
    fn concurrency_limit(&self, tenant: usize) -> usize {
        let FileCallTimes { busy, blocked } = self.tenants[tenant].recent;
        let times = 1 + blocked.as_micros() / busy.as_micros().max(1);
        let times = usize::try_from(times).unwrap_or(usize::MAX);
        self.guest_threads.saturating_mul(times)
    }
}

impl<W> TenantFileCalls<W> {
    /// Returns how many calls in progress have not taken long.
    fn counted(&self, now: Instant) -> usize {
        let is_long = |(_, start): &(u64, Instant)| now.duration_since(*start) >= LONG_CALL;
        self.running.len() - self.running.partition_point(is_long)
    }

    fn note(&mut self, times: FileCallTimes) {
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

    const BUSY: FileCallTimes = FileCallTimes {
        busy: Duration::from_millis(1),
        blocked: Duration::ZERO,
    };
    const BLOCKED: FileCallTimes = FileCallTimes {
        busy: Duration::from_micros(10),
        blocked: Duration::from_millis(10),
    };

    /// Creates a limiter of 16 threads, on a host with two guest threads.
    fn shares(tenants: usize) -> FileCallLimiter<usize> {
        let mut shares = FileCallLimiter::new(16, 2);
        for _ in 0..tenants {
            shares.add_tenant(1);
        }
        shares
    }

    /// Starts calls until one has to wait.
    fn fill(shares: &mut FileCallLimiter<usize>, tenant: usize, now: Instant) -> Vec<FileCallId> {
        std::iter::from_fn(|| shares.start(tenant, now)).collect()
    }

    /// Ends a call, and returns the waiting calls that this starts.
    fn end(shares: &mut FileCallLimiter<usize>, call: FileCallId, now: Instant) -> Vec<usize> {
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
            let just_not = now + LONG_CALL - Duration::from_nanos(1);
            shares.wait(0, stuck);
            assert!(shares.start_waiting(just_not).is_empty());
            now += LONG_CALL;
            stuck += shares.start_waiting(now).len();
        }
        // The share of all threads holds for these too.
        now += LONG_CALL;
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
                assert_eq!(shares.concurrency_limit(0), most);
            } else {
                assert!(shares.concurrency_limit(0) > most);
            }
        }
    }

    #[test]
    fn the_tenant_with_fewest_calls_by_weight_is_next() {
        let (mut shares, now) = (FileCallLimiter::new(4, 4), Instant::now());
        for weight in [1, 3] {
            shares.add_tenant(weight);
        }
        // The first tenant has as many as one tenant may have, and the second has the rest.
        let mut calls = fill(&mut shares, 0, now);
        calls.extend(fill(&mut shares, 1, now));
        assert_eq!(shares.tenants[0].running.len(), 3);
        for tenant in [0, 1, 0, 1, 1, 1] {
            shares.wait(tenant, tenant);
        }
        let ended = calls.into_iter();
        let started: Vec<_> = ended.flat_map(|call| end(&mut shares, call, now)).collect();
        // Three of four calls are the second tenant's, whose weight is three times the first's.
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
        // The second call has been started already, so it cannot leave.
        assert_eq!(shares.leave(0, tickets[1]), None);
        // A new call does not go ahead of one that waits.
        assert_eq!(shares.start(0, now), None);
        assert_eq!(end(&mut shares, calls[1], now), [2]);
        // Ending a call twice ends no other.
        shares.end(calls[1], BUSY);
        assert_eq!(shares.running, 2);
    }
}
