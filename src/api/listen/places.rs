//! The connections of one listener and what they hold while they have to prove themselves: the table's decisions, carried
//! out on sockets.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::closures::{Closure, Closures, ForeignProtocol};
use super::connection_table::{ConnectionId, ConnectionTable, Entrance, TableLimits};
use super::origin::Origin;

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    state: Mutex<PlacesState>,
    /// From accepting a connection to the first call that authenticates on it.
    first_call_timeout: Duration,
    closures: Closures,
}

#[derive(Debug)]
struct PlacesState {
    table: ConnectionTable,
    /// Tells a connection that it has lost its place.
    evictions: HashMap<ConnectionId, oneshot::Sender<()>>,
}

impl Places {
    pub(super) fn new(limits: TableLimits, first_call_timeout: Duration, listener: String) -> Self {
        Self {
            state: Mutex::new(PlacesState {
                table: ConnectionTable::new(limits),
                evictions: HashMap::new(),
            }),
            first_call_timeout,
            closures: Closures::new(listener),
        }
    }

    /// What was closed here and why.
    pub(super) fn closures(&self) -> &Closures {
        &self.closures
    }

    /// A place for a connection of `origin`, where there is one or another connection makes way.
    pub(super) fn take(self: &Arc<Self>, origin: Origin) -> Option<Place> {
        let mut state = self.lock();
        let (id, evicted) = match state.table.admit(origin) {
            Entrance::Admitted { id, evicted } => (id, evicted),
            Entrance::Refused(reached) => {
                drop(state);
                self.closures.count(Closure::Refused(reached), origin);
                return None;
            }
        };
        let (evict, eviction) = oneshot::channel();
        state.evictions.insert(id, evict);
        let lost = evicted.and_then(|(id, _)| state.evictions.remove(&id));
        drop(state);
        if let Some((_, origin)) = evicted {
            self.closures.count(Closure::Evicted, origin);
        }
        if let Some(lost) = lost {
            // One that is being closed already does not listen.
            let _ = lost.send(());
        }
        let deadline = Instant::now() + self.first_call_timeout;
        Some(Place {
            standing: Arc::new(Standing {
                places: Arc::clone(self),
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

    fn lock(&self) -> MutexGuard<'_, PlacesState> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What calls tell of their connection: who is at its other end, and that somebody authenticated on it.
#[derive(Debug)]
pub(in crate::api) struct Standing {
    places: Arc<Places>,
    id: ConnectionId,
    origin: Origin,
    authenticated: AtomicBool,
    unauthenticated_calls: AtomicU32,
}

impl Standing {
    pub(in crate::api) fn origin(&self) -> Origin {
        self.origin
    }

    fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Acquire)
    }

    /// From now on the connection is neither evicted nor closed for its age.
    pub(in crate::api) fn authenticated(&self) {
        if self.is_authenticated() {
            return;
        }
        let mut state = self.places.lock();
        // One that was evicted a moment ago stays so: its place is another's.
        if state.table.authenticated(self.id) {
            // Before the connection learns that nobody can evict it any more, which it takes for an eviction.
            self.authenticated.store(true, Ordering::Release);
            state.evictions.remove(&self.id);
        }
    }

    /// Takes note of a call of which nobody knows yet whether it authenticates; none where another one did.
    pub(in crate::api) fn begin_call(self: &Arc<Self>) -> Option<UnauthenticatedCall> {
        if self.is_authenticated() {
            return None;
        }
        self.unauthenticated_calls.fetch_add(1, Ordering::AcqRel);
        let protects = self.places.lock().table.call_is_judged(self.id);
        Some(UnauthenticatedCall {
            standing: Arc::clone(self),
            protects,
        })
    }
}

/// A call on a connection on which nobody has authenticated, until it is judged, or answered where it need not be.
#[derive(Debug)]
pub(in crate::api) struct UnauthenticatedCall {
    standing: Arc<Standing>,
    protects: bool,
}

impl Drop for UnauthenticatedCall {
    fn drop(&mut self) {
        let standing = &self.standing;
        standing
            .unauthenticated_calls
            .fetch_sub(1, Ordering::AcqRel);
        if self.protects {
            standing.places.lock().table.call_was_judged(standing.id);
        }
    }
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    standing: Arc<Standing>,
    /// Until somebody has authenticated.
    probation: Option<Probation>,
}

#[derive(Debug)]
struct Probation {
    eviction: oneshot::Receiver<()>,
    deadline: Pin<Box<Sleep>>,
    extended: bool,
}

impl Place {
    pub(super) fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }

    /// Takes note that the connection speaks another protocol than its listener.
    pub(super) fn is_foreign(&self, protocol: ForeignProtocol) {
        let closures = &self.standing.places.closures;
        closures.count(Closure::Foreign(protocol), self.standing.origin);
    }

    /// Says why the connection was closed, where somebody debugs.
    pub(super) fn debug(&self, why: &str) {
        let closures = &self.standing.places.closures;
        closures.debug(self.standing.origin, why);
    }

    /// Ready, once, when the connection has to be closed: its place went to another, or nobody has authenticated in time.
    /// Never after somebody has.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(probation) = &mut self.probation else {
            return Poll::Pending;
        };
        let over = probation.poll_over(&self.standing, cx);
        if self.standing.is_authenticated() {
            self.probation = None;
            return Poll::Pending;
        }
        ready!(over);
        self.probation = None;
        Poll::Ready(())
    }
}

impl Probation {
    /// Ready when it is over, however it ended.
    fn poll_over(&mut self, standing: &Standing, cx: &mut Context<'_>) -> Poll<()> {
        if Pin::new(&mut self.eviction).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        ready!(self.deadline.as_mut().poll(cx));
        let calls = standing.unauthenticated_calls.load(Ordering::Acquire);
        if calls > 0 && !self.extended {
            // A call that is being judged, or a probe that is being answered, gets home: once.
            self.extended = true;
            let deadline = Instant::now() + standing.places.first_call_timeout;
            self.deadline.as_mut().reset(deadline);
            ready!(self.deadline.as_mut().poll(cx));
        }
        if !standing.is_authenticated() {
            let closures = &standing.places.closures;
            closures.count(Closure::Overdue, standing.origin);
        }
        Poll::Ready(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.standing.places.lock();
        state.table.leave(self.standing.id);
        state.evictions.remove(&self.standing.id);
    }
}
