//! Sessions: interpreters that a tenant keeps between the programs that they execute.
//!
//! A session has a name among those of its tenant, and executes one program at a time. It holds
//! the memory that its interpreter may have until it is closed, has not been used for
//! `sessions.idle_timeout`, or its interpreter is stopped in the middle of a program. Nothing of it
//! outlasts the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::admission::Permit;
use super::record::Run;
use crate::model::limits::{StackClass, WASM_PAGE_BYTES, share_of};
use crate::model::outcome::{CancelCause, SessionReport};
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::{Digest, RunId, SessionName, SessionSpec};
use crate::sandbox::{HOST_STACK_BYTES, SessionSlot, StopReason};
use crate::sync::lock;

/// When a caller whose session is busy may try again.
const RETRY_BUSY: Duration = Duration::from_millis(100);
/// When a caller that finds no room for a session may try again: one may be ending.
const RETRY_LIMIT: Duration = Duration::from_secs(1);
/// The limits, by their names in the configuration.
const TENANT_LIMIT: &str = "policy.max_sessions";
const DAEMON_LIMIT: &str = "sessions.max";
const MEMORY_LIMIT: &str = "sessions.memory_share";

/// The limits on the sessions of all tenants together.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// The most sessions at once.
    pub max: u32,
    /// The most bytes of memory that they may hold.
    pub memory: u64,
    /// How long a session may be unused.
    pub idle_timeout: Duration,
}

/// What all sessions of the daemon hold together.
#[derive(Debug)]
pub(super) struct SessionTotals {
    limits: SessionLimits,
    /// Whether several tenants share them, and so leave part of them to each other.
    is_shared: bool,
    held: Mutex<HeldBySessions>,
}

/// How many sessions there are, and the bytes that they hold.
#[derive(Clone, Copy, Debug, Default)]
struct HeldBySessions {
    sessions: u32,
    bytes: u64,
}

/// A place among the sessions of the daemon, which is free again when this is dropped.
struct SessionPlace {
    totals: Arc<SessionTotals>,
    /// What the sessions of the same tenant hold.
    own: Arc<Mutex<HeldBySessions>>,
    bytes: u64,
}

/// The sessions of one tenant.
pub(super) struct Sessions {
    most: u32,
    totals: Arc<SessionTotals>,
    held: Arc<Mutex<HeldBySessions>>,
    by_name: Mutex<BTreeMap<SessionName, Arc<Session>>>,
}

/// What an interpreter is started with, and cannot change from program to program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SessionTerms {
    pub(super) module: Digest,
    pub(super) memory_pages: u32,
    pub(super) stack: StackClass,
    pub(super) metered: bool,
    pub(super) clock: bool,
    pub(super) network: bool,
    pub(super) host_functions: BTreeSet<String>,
}

/// One session of a tenant.
struct Session {
    name: SessionName,
    language: String,
    terms: SessionTerms,
    slot: Arc<SessionSlot>,
    begun: SystemTime,
    state: Mutex<SessionState>,
    _place: SessionPlace,
}

struct SessionState {
    executions: u64,
    /// When its last program ended, or the session began.
    used: (Instant, SystemTime),
    /// The run that executes a program in it.
    busy: Option<Arc<Run>>,
    /// What it holds of the memory for runs; `None` until its first program has ended.
    memory: Option<Permit>,
    /// Whether it is to end with the program that it executes.
    is_closed: bool,
}

/// What a listing tells of a session.
#[derive(Clone, Debug)]
pub struct SessionRecord {
    /// The name of the session.
    pub name: SessionName,
    /// The name of its language.
    pub language: String,
    /// The digest of its interpreter.
    pub module: Digest,
    /// When its first program came.
    pub begun: SystemTime,
    /// When its last program ended, or the session began.
    pub used: SystemTime,
    /// How many programs it has executed.
    pub executions: u64,
    /// The run that executes a program in it now.
    pub busy: Option<RunId>,
    /// The bytes of memory that it holds.
    pub memory: u64,
    /// When it ends if it is not used.
    pub expires: Option<SystemTime>,
}

impl HeldBySessions {
    /// Reports whether one more session of `bytes` would be within `sessions` and `memory`, and
    /// which of the two limits is in its way if not.
    fn room_for(self, bytes: u64, sessions: u32, memory: u64) -> Result<(), &'static str> {
        if self.sessions >= sessions {
            return Err(DAEMON_LIMIT);
        }
        match self.bytes.saturating_add(bytes) <= memory {
            true => Ok(()),
            false => Err(MEMORY_LIMIT),
        }
    }

    fn add(&mut self, bytes: u64) {
        self.sessions += 1;
        self.bytes += bytes;
    }

    fn sub(&mut self, bytes: u64) {
        self.sessions -= 1;
        self.bytes -= bytes;
    }
}

impl SessionTotals {
    pub(super) fn new(limits: SessionLimits, is_shared: bool) -> Arc<Self> {
        Arc::new(Self {
            limits,
            is_shared,
            held: Mutex::default(),
        })
    }

    /// Takes a place for a session of `bytes`, of a tenant whose sessions hold `own`. One of
    /// several tenants leaves an eighth to the others.
    fn take(
        self: &Arc<Self>,
        own: &Arc<Mutex<HeldBySessions>>,
        bytes: u64,
    ) -> Result<SessionPlace, Refusal> {
        let SessionLimits { max, memory, .. } = self.limits;
        let own_memory = share_of(memory, self.is_shared);
        let own_max = share_of(max.into(), self.is_shared);
        let own_max = u32::try_from(own_max).unwrap_or(max);
        let mut all = lock(&self.held);
        let mut held = lock(own);
        let fits = held.room_for(bytes, own_max, own_memory);
        let fits = fits.and_then(|()| all.room_for(bytes, max, memory));
        if let Err(limit) = fits {
            let left = match limit {
                MEMORY_LIMIT => (memory - all.bytes).min(own_memory.saturating_sub(held.bytes)),
                _ => own_max.into(),
            };
            return Err(no_room(limit, bytes, left));
        }
        all.add(bytes);
        held.add(bytes);
        drop(held);
        Ok(SessionPlace {
            totals: Arc::clone(self),
            own: Arc::clone(own),
            bytes,
        })
    }
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        let mut all = lock(&self.totals.held);
        all.sub(self.bytes);
        lock(&self.own).sub(self.bytes);
    }
}

impl SessionTerms {
    /// Returns the bytes of memory that a session of these terms holds. The stack of its last
    /// program stays with its store.
    fn bytes(&self) -> u64 {
        let stack = u64::from(self.stack.bytes()) + HOST_STACK_BYTES as u64;
        u64::from(self.memory_pages) * WASM_PAGE_BYTES + stack
    }

    /// Refuses other terms than those that a session began with.
    fn check(&self, asked: &Self) -> Result<(), Refusal> {
        let differs = |what: &str, began: String, asked: String| {
            let message = format!(
                "began with {what} {began}, and this program asks for {asked}: what an interpreter is started with \
                 cannot change"
            );
            Err(Refusal::invalid("spec.session", message))
        };
        let flag = |it: bool| (if it { "granted" } else { "withheld" }).to_owned();
        if self.module != asked.module {
            let (began, asked) = (self.module.to_string(), asked.module.to_string());
            return differs("the interpreter", began, asked);
        }
        if self.memory_pages != asked.memory_pages {
            let (began, asked) = (self.memory_pages, asked.memory_pages);
            return differs(
                "resources.memory_pages",
                began.to_string(),
                asked.to_string(),
            );
        }
        if self.stack != asked.stack {
            let (began, asked) = (self.stack.bytes(), asked.stack.bytes());
            return differs("resources.stack_size", began.to_string(), asked.to_string());
        }
        if self.metered != asked.metered {
            let fuel = |it: bool| (if it { "a limit" } else { "none" }).to_owned();
            return differs(
                "resources.fuel_limit",
                fuel(self.metered),
                fuel(asked.metered),
            );
        }
        if self.clock != asked.clock {
            return differs("the real clock", flag(self.clock), flag(asked.clock));
        }
        if self.network != asked.network {
            return differs("the network", flag(self.network), flag(asked.network));
        }
        if self.host_functions != asked.host_functions {
            let names = |it: &BTreeSet<String>| format!("{it:?}");
            let (began, asked) = (names(&self.host_functions), names(&asked.host_functions));
            return differs("the host functions", began, asked);
        }
        Ok(())
    }
}

impl Sessions {
    /// Creates the sessions of a tenant, which may have `most`.
    pub(super) fn new(most: u32, totals: Arc<SessionTotals>) -> Arc<Self> {
        Arc::new(Self {
            most,
            totals,
            held: Arc::default(),
            by_name: Mutex::new(BTreeMap::new()),
        })
    }

    /// Claims a session for a program that `run` executes, and begins one where there is none.
    ///
    /// # Errors
    /// `SESSION_BUSY`; `SESSION_NOT_FOUND` where it has to be there and is not; `SESSION_LIMIT`;
    /// `SPEC_INVALID` where it began with other terms.
    pub(super) async fn claim(
        self: &Arc<Self>,
        asked: &SessionSpec,
        terms: SessionTerms,
        run: &Arc<Run>,
    ) -> Result<SessionClaim, Refusal> {
        match self.try_claim(asked, terms.clone(), run) {
            // Sessions that have expired are counted until they are looked for.
            Err(refusal) if refusal.reason() == Reason::SessionLimit => {
                match self.end_expired().await? {
                    true => self.try_claim(asked, terms, run),
                    false => Err(refusal),
                }
            }
            claimed => claimed,
        }
    }

    /// Claims a session as [`Self::claim`] does, with what room there is now.
    fn try_claim(
        self: &Arc<Self>,
        asked: &SessionSpec,
        terms: SessionTerms,
        run: &Arc<Run>,
    ) -> Result<SessionClaim, Refusal> {
        let mut by_name = lock(&self.by_name);
        if let Some(session) = by_name.get(&asked.name) {
            let mut state = lock(&session.state);
            if !state.is_over(self.totals.limits.idle_timeout) {
                session.terms.check(&terms)?;
                if let Some(other) = &state.busy {
                    return Err(busy(&session.name, &other.id));
                }
                state.busy = Some(Arc::clone(run));
                drop(state);
                return Ok(SessionClaim::new(self, Arc::clone(session)));
            }
        }
        // One that has expired is replaced, if another may begin.
        let is_replaced = by_name.contains_key(&asked.name);
        if asked.must_exist {
            if let Some(expired) = by_name.remove(&asked.name) {
                drop_later(&expired);
            }
            return Err(not_found(&asked.name));
        }
        if by_name.len() - usize::from(is_replaced) >= self.most as usize {
            return Err(no_room(TENANT_LIMIT, 0, self.most.into()));
        }
        let place = self.totals.take(&self.held, terms.bytes())?;
        let session = Arc::new(Session {
            name: asked.name.clone(),
            language: asked.language.clone(),
            terms,
            slot: Arc::default(),
            begun: SystemTime::now(),
            state: Mutex::new(SessionState {
                executions: 0,
                used: (Instant::now(), SystemTime::now()),
                busy: Some(Arc::clone(run)),
                memory: None,
                is_closed: false,
            }),
            _place: place,
        });
        if let Some(expired) = by_name.insert(asked.name.clone(), Arc::clone(&session)) {
            drop_later(&expired);
        }
        Ok(SessionClaim::new(self, session))
    }

    /// Lists the sessions by their names.
    pub(super) fn list(&self) -> Vec<SessionRecord> {
        let idle_timeout = self.totals.limits.idle_timeout;
        let by_name = lock(&self.by_name);
        let there = by_name.values();
        let there = there.filter(|it| !lock(&it.state).is_over(idle_timeout));
        there.map(|it| it.record(idle_timeout)).collect()
    }

    /// Returns how many sessions there are, and the bytes of memory that they hold.
    pub(super) fn usage(&self) -> (u64, u64) {
        let HeldBySessions { sessions, bytes } = *lock(&self.held);
        (sessions.into(), bytes)
    }

    /// Ends a session, and the program that it executes. Returns what it was, once what it kept is
    /// gone.
    ///
    /// # Errors
    /// `SESSION_NOT_FOUND`.
    pub(super) async fn close(&self, name: &SessionName) -> Result<SessionRecord, Refusal> {
        let session = self.take_closed(name)?;
        let record = session.record(self.totals.limits.idle_timeout);
        let cleared = tokio::task::spawn_blocking(move || session.slot.clear());
        cleared.await.map_err(Refusal::internal)?;
        Ok(record)
    }

    /// Takes a session out, which is to end with the program that it executes, if it does.
    fn take_closed(&self, name: &SessionName) -> Result<Arc<Session>, Refusal> {
        let mut by_name = lock(&self.by_name);
        let session = by_name.remove(name);
        let session = session.ok_or_else(|| not_found(name))?;
        let mut state = lock(&session.state);
        let was_over = state.is_over(self.totals.limits.idle_timeout);
        state.is_closed = true;
        if let Some(run) = &state.busy {
            run.stop
                .request(StopReason::Cancelled(CancelCause::CancelRpc));
        }
        drop(state);
        if was_over {
            // Not here, where others wait for the lock.
            drop_later(&session);
            return Err(not_found(name));
        }
        Ok(session)
    }

    /// Ends the sessions that have not been used for too long.
    pub(super) fn age(&self) {
        for session in self.take_expired() {
            drop_later(&session);
        }
    }

    /// Ends the sessions that have not been used for too long, and waits until what they held is
    /// free. Reports whether there were any.
    async fn end_expired(&self) -> Result<bool, Refusal> {
        let expired = self.take_expired();
        if expired.is_empty() {
            return Ok(false);
        }
        let clear = move || expired.iter().for_each(|it| it.slot.clear());
        let cleared = tokio::task::spawn_blocking(clear).await;
        cleared.map(|()| true).map_err(Refusal::internal)
    }

    /// Takes out the sessions that have not been used for too long.
    fn take_expired(&self) -> Vec<Arc<Session>> {
        let idle_timeout = self.totals.limits.idle_timeout;
        let mut expired = Vec::new();
        lock(&self.by_name).retain(|_, session| {
            let is_over = lock(&session.state).is_over(idle_timeout);
            if is_over {
                expired.push(Arc::clone(session));
            }
            !is_over
        });
        for session in &expired {
            tracing::debug!(session = %session.name, "a session has ended unused");
        }
        expired
    }

    /// Removes a session if it is still the one of its name.
    fn remove(&self, session: &Arc<Session>) {
        let mut by_name = lock(&self.by_name);
        let there = by_name.get(&session.name);
        if there.is_some_and(|there| Arc::ptr_eq(there, session)) {
            by_name.remove(&session.name);
        }
    }
}

impl SessionState {
    /// Reports whether no program can be executed in the session any more, because it has ended or
    /// was unused for too long.
    fn is_over(&self, idle_timeout: Duration) -> bool {
        self.is_closed || (self.busy.is_none() && self.used.0.elapsed() >= idle_timeout)
    }
}

impl Session {
    fn record(&self, idle_timeout: Duration) -> SessionRecord {
        let state = lock(&self.state);
        let used = state.used.1;
        SessionRecord {
            name: self.name.clone(),
            language: self.language.clone(),
            module: self.terms.module,
            begun: self.begun,
            used,
            executions: state.executions,
            busy: state.busy.as_ref().map(|run| run.id),
            memory: self.terms.bytes(),
            expires: match state.busy {
                Some(_) => None,
                None => used.checked_add(idle_timeout),
            },
        }
    }
}

/// A session that is claimed for one program. Where the program did not start, dropping this leaves
/// the session as it was.
pub(super) struct SessionClaim {
    sessions: Arc<Sessions>,
    session: Arc<Session>,
    is_over: bool,
}

impl SessionClaim {
    fn new(sessions: &Arc<Sessions>, session: Arc<Session>) -> Self {
        Self {
            sessions: Arc::clone(sessions),
            session,
            is_over: false,
        }
    }

    /// Returns where the session keeps its interpreter.
    pub(super) fn slot(&self) -> &Arc<SessionSlot> {
        &self.session.slot
    }

    /// Returns the bytes that the session holds, and its run need not reserve.
    pub(super) fn held_bytes(&self) -> u64 {
        let state = lock(&self.session.state);
        state.memory.as_ref().map_or(0, Permit::bytes)
    }

    /// Gives the session back when its program has ended. It takes the memory of its first run over
    /// from `permit`.
    pub(super) fn finish(mut self, permit: &mut Permit) -> SessionReport {
        self.is_over = true;
        let session = &self.session;
        let mut state = lock(&session.state);
        state.executions += 1;
        let executions = state.executions;
        state.used = (Instant::now(), SystemTime::now());
        // Nobody can claim it once it is closed.
        state.is_closed |= !session.slot.is_kept();
        state.busy = None;
        if !state.is_closed {
            let bytes = session.terms.bytes();
            state.memory.get_or_insert_with(|| permit.split(bytes));
            return SessionReport {
                executions,
                ended: false,
            };
        }
        drop(state);
        self.sessions.remove(session);
        drop_later(session);
        SessionReport {
            executions,
            ended: true,
        }
    }
}

impl Drop for SessionClaim {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let session = &self.session;
        let mut state = lock(&session.state);
        state.is_closed |= !session.slot.is_kept();
        state.busy = None;
        let is_closed = state.is_closed;
        drop(state);
        if is_closed {
            self.sessions.remove(session);
            drop_later(session);
        }
    }
}

/// Drops what a session keeps on a thread where that may take a moment. Its memory is given back
/// after that.
fn drop_later(session: &Arc<Session>) {
    if !session.slot.is_kept() {
        return;
    }
    let session = Arc::clone(session);
    let clear = move || {
        session.slot.clear();
        drop(session);
    };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(clear)),
        // A guest thread drops the stores of guests all the time.
        Err(_) => clear(),
    }
}

fn busy(name: &SessionName, run: &RunId) -> Refusal {
    let message = format!("the session \"{name}\" executes another program: run {run}");
    Refusal::new(Reason::SessionBusy, message)
        .at_field("spec.session")
        .with("run_id", run)
        .retry_after(RETRY_BUSY)
}

fn not_found(name: &SessionName) -> Refusal {
    let message = format!(
        "there is no session \"{name}\": it never began, was closed, expired or ended with its program, or the daemon \
         was started again"
    );
    Refusal::new(Reason::SessionNotFound, message).with("session", name)
}

/// Returns the refusal of a session for which there is no room: `left` is what there is of it.
fn no_room(limit: &'static str, bytes: u64, left: u64) -> Refusal {
    let message = match limit {
        MEMORY_LIMIT => format!(
            "the session would hold {bytes} bytes of memory, and there are {left} for another ({limit}); close a \
             session, or ask for less memory"
        ),
        _ => format!("there are as many sessions as may be, which is {left} ({limit}); close one"),
    };
    Refusal::new(Reason::SessionLimit, message)
        .at_field("spec.session")
        .with("allowed", left)
        .with("limit", limit)
        .retry_after(RETRY_LIMIT)
}
