//! A weighted fair queue by virtual time (start-time fair queueing) in front of a bounded resource:
//! permits and bytes. What is shared fairly is grants: each costs its tenant one unit divided by
//! the tenant's weight, whatever its bytes, which only have to fit.
//!
//! Each tenant has a line of waiters, served first come, first served. The line with the lowest
//! virtual time, which is the one whose tenant has been granted least for its weight, is served
//! first. A line whose head does not fit is overtaken, but not for ever. Where there are several
//! tenants, none may hold the last eighth, so that whoever arrives next finds room. A full queue
//! evicts a waiter of the tenant with the longest line to make room for a tenant with a shorter
//! one.
//!
//! Lines are kept in two ordered sets, by virtual time and by length, so that granting a request or
//! finding the longest line costs the logarithm of the number of tenants that wait, and idle
//! tenants cost nothing. Each line is sorted by ticket, so that a waiter that leaves is found by
//! binary search.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::load::{MAX_RETRY, MIN_RETRY, QueueLoad};
use super::permits_and_bytes::PermitsAndBytes;
use crate::model::tenant_id::{ByTenant, TenantId};
use crate::store::UploadSlot;
use crate::sync::lock;

/// Virtual time that one grant adds to a line of weight one.
const GRANT_COST: u64 = 1 << 20;
/// How often the head of a line that does not fit may be overtaken before tenants that hold more
/// than an eighth have to wait for it.
const STARVATION_LIMIT: u32 = 64;
/// After this many times [`STARVATION_LIMIT`], tenants that hold little may not overtake the head
/// either.
const STARVATION_HARD_FACTOR: u32 = 8;
/// Smoothing of the moving average of hold time: each release of a permit contributes one eighth.
const HOLD_EWMA: u32 = 8;
/// Number of waiters for which an empty line keeps its memory allocated.
const KEPT_WAITERS: usize = 32;

/// A weighted fair queue in front of permits and bytes that all tenants share.
#[derive(Debug)]
pub(super) struct FairQueue {
    capacity: PermitsAndBytes,
    /// The most that one tenant may hold; also the largest request that can ever be granted.
    share: PermitsAndBytes,
    /// The most that a tenant may hold to overtake a head that has been overtaken too often.
    small_tenant_cap: PermitsAndBytes,
    /// The most requests that may wait at once, over all tenants.
    max_waiting: u32,
    /// Whether the queue is closed and grants nothing any more. It is set under the lock.
    closed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    held: PermitsAndBytes,
    waiting: u32,
    /// The virtual time of the queue: the highest at which a line has been served so far.
    virtual_now: u64,
    tenants: ByTenant<TenantWaiters>,
    /// Lines whose head fits into the share of its own tenant, by virtual time. They are served in
    /// this order.
    eligible: BTreeSet<(u64, TenantId)>,
    /// Lines that are not empty, by length divided by weight. When the queue is full, the last of
    /// them gives way.
    by_length: BTreeSet<(u64, TenantId)>,
    tickets: u64,
    /// A moving average of how long a permit is held.
    mean_hold: Duration,
}

/// One tenant's line of waiters, and what the tenant holds.
#[derive(Debug)]
struct TenantWaiters {
    weight: u32,
    held: PermitsAndBytes,
    /// The most that the tenant may hold.
    limit: PermitsAndBytes,
    /// Virtual time of the line: it grows with each grant, by less the greater the weight.
    virtual_time: u64,
    /// The waiters, in the order of their tickets.
    waiting: VecDeque<Waiter>,
    /// How often other lines overtook its head, which did not fit.
    overtaken: u32,
    /// Its key in [`State::eligible`]; `None` where it is not in that set.
    eligible_key: Option<u64>,
    /// Its key in [`State::by_length`]; `None` where it is not in that set.
    length_key: Option<u64>,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    ask: PermitsAndBytes,
    told: GrantSender,
}

/// What a `FairQueue` has granted: permits and bytes, which are released when this is dropped.
#[derive(Debug)]
pub struct Permit {
    queue: Arc<FairQueue>,
    tenant: TenantId,
    held: PermitsAndBytes,
    since: Instant,
}

/// Why a request was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    /// The request can never fit; the value is the most that can be granted.
    TooMuch(PermitsAndBytes),
    /// Too many requests wait already.
    Full,
    /// The longest permitted wait is over.
    Expired,
    /// The queue is closed.
    Closed,
}

/// Results that are sent to their waiters, or dropped, once the lock is free: either may take the
/// lock.
#[derive(Default)]
struct Wakeups(Vec<(GrantSender, Result<Permit, Rejected>)>);

/// The channel on which a waiter receives its permit or its rejection.
type GrantSender = oneshot::Sender<Result<Permit, Rejected>>;

impl Wakeups {
    fn tell(self) {
        for (told, what) in self.0 {
            // Where the waiter has left, the drop of what was sent releases the permit.
            let _ = told.send(what);
        }
    }
}

impl FairQueue {
    /// Creates a queue in front of `capacity` in which at most `max_waiting` requests wait. There
    /// is one line for each of `weights`, and for the daemon itself.
    pub(super) fn new(capacity: PermitsAndBytes, max_waiting: u32, weights: &[u32]) -> Arc<Self> {
        let share = match weights.len() > 1 {
            true => capacity.share(),
            false => capacity,
        };
        let tenant = |tenant, weight: u32| TenantWaiters {
            weight: weight.max(1),
            held: PermitsAndBytes::default(),
            limit: match tenant {
                TenantId::Named(_) => share,
                TenantId::Own => capacity,
            },
            virtual_time: 0,
            waiting: VecDeque::new(),
            overtaken: 0,
            eligible_key: None,
            length_key: None,
        };
        Arc::new(Self {
            capacity,
            share,
            small_tenant_cap: capacity.eighth(),
            max_waiting,
            closed: AtomicBool::new(false),
            state: Mutex::new(State {
                held: PermitsAndBytes::default(),
                waiting: 0,
                virtual_now: 0,
                tenants: ByTenant::new(weights, tenant),
                eligible: BTreeSet::new(),
                by_length: BTreeSet::new(),
                tickets: 0,
                mean_hold: Duration::ZERO,
            }),
        })
    }

    /// Acquires `ask` for `tenant`, at once or after it has waited in its line for at
    /// most `patience`. Where it has to wait, `waits` is called first.
    ///
    /// # Errors
    /// Returns why the request is rejected.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        tenant: TenantId,
        ask: PermitsAndBytes,
        patience: Duration,
        waits: impl FnOnce(),
    ) -> Result<Permit, Rejected> {
        let (ticket, mut told) = match self.arrive(tenant, ask)? {
            AcquireStep::Through(permit) => return Ok(permit),
            AcquireStep::InLine(ticket, told) => (ticket, told),
        };
        if let Ok(what) = told.try_recv() {
            return what;
        }
        let mut waiter_guard = WaiterGuard {
            queue: self,
            tenant,
            ticket,
            is_told: false,
        };
        waits();
        match tokio::time::timeout(patience, &mut told).await {
            Ok(Ok(what)) => {
                waiter_guard.is_told = true;
                what
            }
            Ok(Err(_gone)) => Err(Rejected::Closed),
            // The permit may have been granted at that very moment.
            Err(_elapsed) => told.try_recv().unwrap_or(Err(Rejected::Expired)),
        }
    }

    /// Acquires `ask` where nobody waits and it fits now, and never waits itself.
    ///
    /// # Errors
    /// Returns why the request is rejected; `Full` where it would have to wait.
    pub(super) fn try_acquire(
        self: &Arc<Self>,
        tenant: TenantId,
        ask: PermitsAndBytes,
    ) -> Result<Permit, Rejected> {
        let mut state = self.lock();
        self.check(ask)?;
        if state.waiting > 0 || !self.fits(&state, tenant, ask) {
            return Err(Rejected::Full);
        }
        Ok(self.grant(&mut state, tenant, ask))
    }

    /// Closes the queue: all that wait, and all that arrive later, are rejected as `Closed`.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        self.closed.store(true, Ordering::SeqCst);
        let mut later = Wakeups::default();
        for tenant in state.tenants.ids() {
            let waiting = std::mem::take(&mut state.tenants[tenant].waiting);
            let waiting = waiting.into_iter();
            later
                .0
                .extend(waiting.map(|waiter| (waiter.told, Err(Rejected::Closed))));
            state.reorder(tenant);
        }
        state.waiting = 0;
        drop(state);
        later.tell();
    }

    /// Reports whether the queue is closed.
    pub(super) fn is_closed(&self) -> bool {
        // This does not take the lock, for which all runs contend. No run is missed: whoever closes
        // the queue looks for the runs that came before, and each run registers itself before it
        // asks here.
        self.closed.load(Ordering::SeqCst)
    }

    /// Returns the most requests that may wait at once.
    pub(super) fn max_waiting(&self) -> u32 {
        self.max_waiting
    }

    /// Returns what is held and how many wait now.
    pub(super) fn load(&self) -> QueueLoad {
        let state = self.lock();
        QueueLoad {
            held: state.held.permits,
            permits: self.capacity.permits,
            waiting: state.waiting,
            bytes: state.held.bytes,
            capacity: self.capacity.bytes,
        }
    }

    /// Estimates when a request that arrives now would be granted: all that wait go before it, and
    /// as many are granted at once as there are permits. The result is from 100 ms to 30 s.
    pub(super) fn retry_after(&self) -> Duration {
        let state = self.lock();
        let before = f64::from(state.waiting + 1) / f64::from(self.capacity.permits.max(1));
        state.mean_hold.mul_f64(before).clamp(MIN_RETRY, MAX_RETRY)
    }

    fn arrive(
        self: &Arc<Self>,
        tenant: TenantId,
        ask: PermitsAndBytes,
    ) -> Result<AcquireStep, Rejected> {
        let mut state = self.lock();
        self.check(ask)?;
        if state.waiting == 0 && self.fits(&state, tenant, ask) {
            return Ok(AcquireStep::Through(self.grant(&mut state, tenant, ask)));
        }
        let mut later = Wakeups::default();
        let (told, answer) = oneshot::channel();
        state.tickets += 1;
        let ticket = state.tickets;
        state.line_up(tenant, Waiter { ticket, ask, told });
        self.grant_waiters(&mut state, &mut later);
        if state.waiting > self.max_waiting {
            // One too many waits: the newest of the longest line goes, or this one.
            match state.tenant_to_evict_from(tenant) {
                Some(longest) => {
                    later.0.extend(state.evict(longest));
                    // Others may have been waiting behind that one.
                    self.grant_waiters(&mut state, &mut later);
                }
                None => {
                    state.leave(tenant, ticket);
                    drop(state);
                    later.tell();
                    return Err(Rejected::Full);
                }
            }
        }
        drop(state);
        later.tell();
        Ok(AcquireStep::InLine(ticket, answer))
    }

    /// Checks that the queue is open and that `ask` can ever fit. The caller holds the lock.
    fn check(&self, ask: PermitsAndBytes) -> Result<(), Rejected> {
        if self.is_closed() {
            return Err(Rejected::Closed);
        }
        if !PermitsAndBytes::default().has_room(ask, self.share) {
            return Err(Rejected::TooMuch(self.share));
        }
        Ok(())
    }

    fn fits(&self, state: &State, tenant: TenantId, ask: PermitsAndBytes) -> bool {
        let it = &state.tenants[tenant];
        state.held.has_room(ask, self.capacity) && it.held.has_room(ask, it.limit)
    }

    fn grant(
        self: &Arc<Self>,
        state: &mut State,
        tenant: TenantId,
        ask: PermitsAndBytes,
    ) -> Permit {
        state.held.add(ask);
        let it = &mut state.tenants[tenant];
        it.held.add(ask);
        it.overtaken = 0;
        if it.waiting.is_empty() {
            // A tenant cannot save up what it did not use while it had nobody waiting.
            it.virtual_time = it.virtual_time.max(state.virtual_now);
        }
        state.virtual_now = state.virtual_now.max(it.virtual_time);
        it.virtual_time += GRANT_COST / u64::from(it.weight);
        state.reorder(tenant);
        Permit {
            queue: Arc::clone(self),
            tenant,
            held: ask,
            since: Instant::now(),
        }
    }

    /// Grants all waiters that fit, in the order of virtual time.
    fn grant_waiters(self: &Arc<Self>, state: &mut State, later: &mut Wakeups) {
        while let Some((tenant, passed)) = self.next_eligible(state) {
            let State {
                eligible: next,
                tenants,
                ..
            } = state;
            for (_, tenant) in next.iter().take(passed) {
                tenants[*tenant].overtaken += 1;
            }
            let Some(waiter) = tenants[tenant].waiting.pop_front() else {
                return;
            };
            state.waiting -= 1;
            let permit = self.grant(state, tenant, waiter.ask);
            later.0.push((waiter.told, Ok(permit)));
        }
    }

    /// Returns the line whose head is granted next, and how many lines it overtakes; `None` where
    /// no head may go now.
    fn next_eligible(&self, state: &State) -> Option<(TenantId, usize)> {
        if state.held.permits >= self.capacity.permits {
            // Every waiter needs a permit.
            return None;
        }
        let mut owed = false;
        for (passed, &(_, tenant)) in state.eligible.iter().enumerate() {
            let it = &state.tenants[tenant];
            let ask = it.waiting.front()?.ask;
            // Where one has been overtaken too often, only tenants that hold little may still go
            // ahead of it.
            let may_go = !owed || it.held.has_room(ask, self.small_tenant_cap);
            if may_go && state.held.has_room(ask, self.capacity) {
                return Some((tenant, passed));
            }
            if it.overtaken >= STARVATION_LIMIT * STARVATION_HARD_FACTOR {
                // Many tenants that hold little may hold much together.
                return None;
            }
            owed |= it.overtaken >= STARVATION_LIMIT;
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl TenantWaiters {
    /// Returns the number of its waiters divided by its weight, in units of [`GRANT_COST`].
    fn length(&self) -> u64 {
        self.waiting.len() as u64 * GRANT_COST / u64::from(self.weight)
    }

    /// Resets the overtaken count after the head has left without a grant. Where others had to wait
    /// for that head, the tenant is charged one turn for it.
    fn head_left_ungranted(&mut self) {
        if self.overtaken >= STARVATION_LIMIT {
            self.virtual_time += GRANT_COST / u64::from(self.weight);
        }
        self.overtaken = 0;
    }
}

impl State {
    fn line_up(&mut self, tenant: TenantId, waiter: Waiter) {
        self.tenants[tenant].waiting.push_back(waiter);
        self.waiting += 1;
        self.reorder(tenant);
    }

    /// Moves a line to its position in both sets, after anything in it has changed.
    fn reorder(&mut self, tenant: TenantId) {
        let it = &mut self.tenants[tenant];
        let head = it.waiting.front();
        // A line is not eligible while only its own tenant can make room for its head.
        let is_next = head.is_some_and(|head| it.held.has_room(head.ask, it.limit));
        if is_next && it.eligible_key.is_none() {
            // It cannot catch up on what others were granted meanwhile.
            it.virtual_time = it.virtual_time.max(self.virtual_now);
        }
        let at = is_next.then_some(it.virtual_time);
        move_to(&mut self.eligible, tenant, &mut it.eligible_key, at);
        let length = (!it.waiting.is_empty()).then(|| it.length());
        move_to(&mut self.by_length, tenant, &mut it.length_key, length);
        if it.waiting.is_empty() && it.waiting.capacity() > KEPT_WAITERS {
            it.waiting = VecDeque::new();
        }
    }

    /// Removes a waiter from its line; returns false where it is not there any more.
    fn leave(&mut self, tenant: TenantId, ticket: u64) -> bool {
        let it = &mut self.tenants[tenant];
        let found = it.waiting.binary_search_by_key(&ticket, |it| it.ticket);
        let Ok(at) = found else {
            return false;
        };
        it.waiting.remove(at);
        if at == 0 {
            it.head_left_ungranted();
        }
        self.waiting -= 1;
        self.reorder(tenant);
        true
    }

    /// Removes the newest waiter of a line, and returns its channel with the rejection to send.
    fn evict(&mut self, tenant: TenantId) -> Option<(GrantSender, Result<Permit, Rejected>)> {
        let it = &mut self.tenants[tenant];
        let newest = it.waiting.pop_back()?;
        if it.waiting.is_empty() {
            it.head_left_ungranted();
        }
        self.waiting -= 1;
        self.reorder(tenant);
        Some((newest.told, Err(Rejected::Full)))
    }

    /// Returns the tenant whose line loses its newest waiter to the newest one of `tenant`: the
    /// longest by weight, if it is longer than that of `tenant`.
    fn tenant_to_evict_from(&self, tenant: TenantId) -> Option<TenantId> {
        let &(length, longest) = self.by_length.last()?;
        (longest != tenant && length > self.tenants[tenant].length()).then_some(longest)
    }
}

/// Moves `tenant` from the key `from` to the key `to` in a set; `None` means that it is not in the
/// set.
fn move_to(
    set: &mut BTreeSet<(u64, TenantId)>,
    tenant: TenantId,
    from: &mut Option<u64>,
    to: Option<u64>,
) {
    if *from == to {
        return;
    }
    if let Some(key) = *from {
        set.remove(&(key, tenant));
    }
    if let Some(key) = to {
        set.insert((key, tenant));
    }
    *from = to;
}

enum AcquireStep {
    Through(Permit),
    InLine(u64, oneshot::Receiver<Result<Permit, Rejected>>),
}

/// A waiter's position in its line. When this is dropped before an answer has come, the waiter
/// leaves the line.
struct WaiterGuard<'a> {
    queue: &'a Arc<FairQueue>,
    tenant: TenantId,
    ticket: u64,
    /// Whether it has been answered, and is in the line no more.
    is_told: bool,
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        let mut state = self.queue.lock();
        let mut later = Wakeups::default();
        if state.leave(self.tenant, self.ticket) {
            // Those behind it may fit where it did not fit.
            self.queue.grant_waiters(&mut state, &mut later);
        }
        drop(state);
        later.tell();
    }
}

impl Permit {
    /// Splits off a permit for `bytes`, or for as many as there are, and no slot. The two are
    /// released independently.
    pub(in crate::run) fn split(&mut self, bytes: u64) -> Self {
        let part = PermitsAndBytes {
            permits: 0,
            bytes: bytes.min(self.held.bytes),
        };
        // The total that the queue counts as held stays the same.
        self.held.sub(part);
        Self {
            queue: Arc::clone(&self.queue),
            tenant: self.tenant,
            held: part,
            since: self.since,
        }
    }

    /// Returns the bytes that it holds.
    pub(in crate::run) fn bytes(&self) -> u64 {
        self.held.bytes
    }

    /// Releases `bytes`, or as many as there are, ahead of the rest, and grants waiters that now
    /// fit.
    pub(in crate::run) fn release(&mut self, bytes: u64) {
        drop(self.split(bytes));
    }
}

impl UploadSlot for Permit {}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.held == PermitsAndBytes::default() {
            return;
        }
        let mut state = self.queue.lock();
        state.held.sub(self.held);
        state.tenants[self.tenant].held.sub(self.held);
        state.reorder(self.tenant);
        if self.held.permits > 0 {
            let held = self.since.elapsed();
            state.mean_hold = (state.mean_hold * (HOLD_EWMA - 1) + held) / HOLD_EWMA;
        }
        let mut later = Wakeups::default();
        self.queue.grant_waiters(&mut state, &mut later);
        drop(state);
        later.tell();
    }
}

#[cfg(test)]
mod tests;
