//! Ends the connections on which nobody authenticates in time, and those that have to make way for
//! others. Each connection holds a slot of its listener and is on probation until a call on it has
//! authenticated; who is admitted and who is evicted is decided by [`ConnectionTable`].

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::close_counters::CloseCounters;
use super::close_reason::{CloseReason, ForeignProtocol};
use super::connection_counters::ConnectionCounters;
use super::connection_table::{ConnectionAdmission, ConnectionId, ConnectionTable, TableLimits};
use super::origin::ConnectionOrigin;
use crate::metrics::LevelGuard;
use crate::sync::lock;

/// The pool of connection slots of one listener, shared by its accept loops and its connections.
#[derive(Debug)]
pub(super) struct ConnectionSlots {
    state: Mutex<ConnectionSlotsState>,
    /// How long a connection may take from its acceptance to the first call that authenticates on
    /// it.
    first_call_timeout: Duration,
    closures: CloseCounters,
}

/// What one lock guards: the table, and the way to tell each connection that it was evicted.
#[derive(Debug)]
struct ConnectionSlotsState {
    table: ConnectionTable,
    /// Tells a connection that it was evicted. A connection leaves the map once a call has
    /// authenticated.
    evictions: HashMap<ConnectionId, oneshot::Sender<()>>,
}

impl ConnectionSlots {
    /// Creates the slots of the listener that the log calls `listener`. Its connections count
    /// towards `totals`.
    pub(super) fn new(
        limits: TableLimits,
        first_call_timeout: Duration,
        listener: String,
        totals: Arc<ConnectionCounters>,
    ) -> Self {
        Self {
            state: Mutex::new(ConnectionSlotsState {
                table: ConnectionTable::new(limits),
                evictions: HashMap::new(),
            }),
            first_call_timeout,
            closures: CloseCounters::new(listener, totals),
        }
    }

    /// Returns the counters of the connections that were closed here.
    pub(super) fn closures(&self) -> &CloseCounters {
        &self.closures
    }

    /// Takes a slot for a connection of `origin`, evicting another connection if that is allowed
    /// and necessary. Returns `None`, and counts the refusal, if there is no slot.
    pub(super) fn acquire(self: &Arc<Self>, origin: ConnectionOrigin) -> Option<ConnectionSlot> {
        let mut state = self.lock();
        let (id, evicted) = match state.table.admit(origin) {
            ConnectionAdmission::Admitted { id, evicted } => (id, evicted),
            ConnectionAdmission::Refused(reached) => {
                drop(state);
                self.closures.count(CloseReason::Refused(reached), origin);
                return None;
            }
        };
        let (evict, eviction) = oneshot::channel();
        state.evictions.insert(id, evict);
        let lost = evicted.and_then(|(id, _)| state.evictions.remove(&id));
        drop(state);
        if let Some((_, origin)) = evicted {
            self.closures.count(CloseReason::Evicted, origin);
        }
        if let Some(lost) = lost {
            // A connection that is being closed already does not listen.
            let _ = lost.send(());
        }
        let deadline = Instant::now() + self.first_call_timeout;
        let totals = self.closures.totals();
        totals.accepted.increment();
        Some(ConnectionSlot {
            _open: totals.open.enter(),
            auth_state: Arc::new(ConnectionAuthState {
                slots: Arc::clone(self),
                id,
                origin,
                authenticated: AtomicBool::new(false),
                unauthenticated_calls: AtomicU32::new(0),
            }),
            probation: Some(Probation {
                eviction,
                deadline: Box::pin(tokio::time::sleep_until(deadline)),
                extended: false,
            }),
        })
    }

    /// Locks the table together with the eviction channels.
    fn lock(&self) -> MutexGuard<'_, ConnectionSlotsState> {
        lock(&self.state)
    }
}

/// What the calls of a connection share about it: its origin, and whether any of them has
/// authenticated. The connection's slot watches it.
#[derive(Debug)]
pub(in crate::api) struct ConnectionAuthState {
    slots: Arc<ConnectionSlots>,
    id: ConnectionId,
    origin: ConnectionOrigin,
    authenticated: AtomicBool,
    unauthenticated_calls: AtomicU32,
}

impl ConnectionAuthState {
    /// Returns the origin that the connection is counted under.
    pub(in crate::api) fn origin(&self) -> ConnectionOrigin {
        self.origin
    }

    /// Reports whether a call has authenticated on the connection.
    fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Acquire)
    }

    /// Records that a call authenticated: from now on the connection is neither evicted nor closed
    /// for its age.
    pub(in crate::api) fn mark_authenticated(&self) {
        if self.is_authenticated() {
            return;
        }
        let mut state = self.slots.lock();
        // A connection that was evicted a moment ago stays evicted: its slot belongs to another.
        if state.table.mark_authenticated(self.id) {
            // This has to come first: removing the sender closes the channel, which the connection
            // would take for an eviction.
            self.authenticated.store(true, Ordering::Release);
            state.evictions.remove(&self.id);
        }
    }

    /// Registers a call of which it is not known yet whether it authenticates. Returns `None` if
    /// another call has authenticated already.
    pub(in crate::api) fn begin_call(self: &Arc<Self>) -> Option<UnauthenticatedCall> {
        if self.is_authenticated() {
            return None;
        }
        self.unauthenticated_calls.fetch_add(1, Ordering::AcqRel);
        let protects = self.slots.lock().table.begin_authentication(self.id);
        Some(UnauthenticatedCall {
            auth_state: Arc::clone(self),
            protects,
        })
    }
}

/// A call on a connection on which nobody has authenticated yet. It lives until the call is judged,
/// or answered if it needs no credential. Dropping it ends the protection from eviction that it may
/// have given the connection.
#[derive(Debug)]
pub(in crate::api) struct UnauthenticatedCall {
    auth_state: Arc<ConnectionAuthState>,
    protects: bool,
}

impl Drop for UnauthenticatedCall {
    fn drop(&mut self) {
        let standing = &self.auth_state;
        standing
            .unauthenticated_calls
            .fetch_sub(1, Ordering::AcqRel);
        if self.protects {
            standing.slots.lock().table.end_authentication(standing.id);
        }
    }
}

/// A connection's slot at its listener. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    /// Counts the connection among those that are open.
    _open: LevelGuard,
    auth_state: Arc<ConnectionAuthState>,
    /// `None` once a call has authenticated, or once the connection has been revoked.
    probation: Option<Probation>,
}

/// The time in which a connection has to prove itself: it ends with an eviction, or at a deadline,
/// which is extended once while a call is being judged.
#[derive(Debug)]
struct Probation {
    eviction: oneshot::Receiver<()>,
    deadline: Pin<Box<Sleep>>,
    extended: bool,
}

impl ConnectionSlot {
    /// Returns the state that the calls of this connection share.
    pub(super) fn auth_state(&self) -> &Arc<ConnectionAuthState> {
        &self.auth_state
    }

    /// Returns the totals that the connection counts towards.
    pub(super) fn totals(&self) -> &Arc<ConnectionCounters> {
        self.auth_state.slots.closures.totals()
    }

    /// Counts the connection as one that speaks another protocol than its listener.
    pub(super) fn count_foreign_protocol(&self, protocol: ForeignProtocol) {
        let closures = &self.auth_state.slots.closures;
        closures.count(CloseReason::Foreign(protocol), self.auth_state.origin);
    }

    /// Logs at debug level why the connection was closed.
    pub(super) fn log_closure(&self, why: &str) {
        let closures = &self.auth_state.slots.closures;
        closures.debug(self.auth_state.origin, why);
    }

    /// Completes, once, when the connection must be closed: it was evicted, or nobody authenticated
    /// in time. It never completes after somebody has authenticated.
    pub(super) fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(probation) = &mut self.probation else {
            return Poll::Pending;
        };
        let over = probation.poll_over(&self.auth_state, cx);
        if self.auth_state.is_authenticated() {
            self.probation = None;
            return Poll::Pending;
        }
        ready!(over);
        self.probation = None;
        Poll::Ready(())
    }
}

impl Probation {
    /// Completes when the probation is over, however it ended, and counts a connection that is
    /// overdue.
    fn poll_over(&mut self, standing: &ConnectionAuthState, cx: &mut Context<'_>) -> Poll<()> {
        if Pin::new(&mut self.eviction).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        ready!(self.deadline.as_mut().poll(cx));
        let calls = standing.unauthenticated_calls.load(Ordering::Acquire);
        if calls > 0 && !self.extended {
            // A call that is being judged, or a probe that is being answered, may finish: the
            // deadline is extended, but only once.
            self.extended = true;
            let deadline = Instant::now() + standing.slots.first_call_timeout;
            self.deadline.as_mut().reset(deadline);
            ready!(self.deadline.as_mut().poll(cx));
        }
        if !standing.is_authenticated() {
            let closures = &standing.slots.closures;
            closures.count(CloseReason::Overdue, standing.origin);
        }
        Poll::Ready(())
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut state = self.auth_state.slots.lock();
        state.table.remove(self.auth_state.id);
        state.evictions.remove(&self.auth_state.id);
    }
}
