//! A gate: so many places and so many bytes, for which tenants take turns.
//!
//! Each tenant has a line, first come first served. The line whose tenant has been let through least, by its weight, is
//! served first; one whose head does not fit is passed by, but not for ever. Where there are several tenants, none holds
//! the last eighth, so that whoever comes next finds room. A queue that is full makes room for a tenant that has fewer
//! in it than another.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::amount::Amount;

/// What one turn moves a line on, for a weight of one.
const TURN: u64 = 1 << 20;
/// How often others may go ahead of the head of a line that does not fit, before they wait until it does.
const PASSES: u32 = 64;
/// And how many times that those may who hold little.
const PASSES_OF_LITTLE: u32 = 8;
/// How much one more place that comes free says about how long they are held: one part in so many.
const PACE: u32 = 8;
/// What a caller that is refused is told to wait, at the least and at the most.
const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(30);

/// The gate.
#[derive(Debug)]
pub(super) struct Gate {
    capacity: Amount,
    /// What one tenant may hold.
    share: Amount,
    /// What it may hold while another is owed room.
    little: Amount,
    /// How many may wait.
    queue: u32,
    /// Whether nobody is let through any more; set under the lock.
    closed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: Amount,
    waiting: u32,
    /// Where the line that was served last stood.
    now: u64,
    lines: Vec<Line>,
    tickets: u64,
    /// How long a place is held, about.
    pace: Duration,
}

/// One tenant's.
#[derive(Debug)]
struct Line {
    weight: u32,
    held: Amount,
    /// How far it was let through.
    at: u64,
    waiting: VecDeque<Waiter>,
    /// How often others went ahead of its head, which did not fit.
    passed: u32,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    ask: Amount,
    told: Told,
}

/// Somebody that was let through, until this is dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    line: usize,
    held: Amount,
    since: Instant,
}

/// Why somebody was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turned {
    /// It can never fit: this is the most.
    TooMuch(Amount),
    /// Too many wait.
    Full,
    /// The time to wait is over.
    Expired,
    /// Nobody is let through any more.
    Closed,
}

/// What a gate holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Places that are held.
    pub held: u32,
    /// Places in all.
    pub places: u32,
    /// Those that wait.
    pub waiting: u32,
    /// Bytes that are held.
    pub bytes: u64,
    /// Bytes in all.
    pub capacity: u64,
}

impl Load {
    /// What two gates hold together, for the second of which nobody waits who does not wait for the first as well.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            held: self.held + other.held,
            places: self.places + other.places,
            waiting: self.waiting.max(other.waiting),
            bytes: self.bytes.saturating_add(other.bytes),
            capacity: self.capacity.saturating_add(other.capacity),
        }
    }
}

/// What is to be told, or dropped, when the lock is free again: both may take it.
#[derive(Default)]
struct Later(Vec<(Told, Result<Pass, Turned>)>);

/// Where somebody that waits learns what becomes of it.
type Told = oneshot::Sender<Result<Pass, Turned>>;

impl Later {
    fn tell(self) {
        for (told, what) in self.0 {
            // One that has left gives back what it got, by the drop.
            let _ = told.send(what);
        }
    }
}

impl Gate {
    /// Of `capacity`, with a queue of `queue`, for tenants of `weights`.
    pub(super) fn new(capacity: Amount, queue: u32, weights: &[u32]) -> Arc<Self> {
        let line = |weight: &u32| Line {
            weight: (*weight).max(1),
            held: Amount::default(),
            at: 0,
            waiting: VecDeque::new(),
            passed: 0,
        };
        // The last line is the daemon's own.
        let several = weights.len() > 2;
        Arc::new(Self {
            capacity,
            share: if several { capacity.share() } else { capacity },
            little: capacity.eighth(),
            queue,
            closed: AtomicBool::new(false),
            state: Mutex::new(State {
                lines: weights.iter().map(line).collect(),
                ..State::default()
            }),
        })
    }

    /// Lets `ask` of the tenant `line` through, at once or after it waited, no longer than `patience`, in its line;
    /// `waits` is told where it does.
    ///
    /// # Errors
    /// Why it is turned away.
    pub(super) async fn enter(
        self: &Arc<Self>,
        line: usize,
        ask: Amount,
        patience: Duration,
        waits: impl FnOnce(),
    ) -> Result<Pass, Turned> {
        let (ticket, mut told) = match self.arrive(line, ask)? {
            Arrived::Through(pass) => return Ok(pass),
            Arrived::InLine(ticket, told) => (ticket, told),
        };
        if let Ok(what) = told.try_recv() {
            return what;
        }
        let _place = Place {
            gate: self,
            line,
            ticket,
        };
        waits();
        match tokio::time::timeout(patience, &mut told).await {
            Ok(Ok(what)) => what,
            Ok(Err(_gone)) => Err(Turned::Closed),
            // It may have been let through at that moment.
            Err(_elapsed) => told.try_recv().unwrap_or(Err(Turned::Expired)),
        }
    }

    /// Lets `ask` through where there is room now.
    ///
    /// # Errors
    /// Why it is turned away.
    pub(super) fn try_enter(self: &Arc<Self>, line: usize, ask: Amount) -> Result<Pass, Turned> {
        let mut state = self.lock();
        self.check(ask)?;
        if state.waiting > 0 || !self.fits(&state, line, ask) {
            return Err(Turned::Full);
        }
        Ok(self.let_through(&mut state, line, ask))
    }

    /// Lets nobody through any more; those that wait are turned away.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        self.closed.store(true, Ordering::SeqCst);
        let mut later = Later::default();
        for line in &mut state.lines {
            let waiting = line.waiting.drain(..);
            later
                .0
                .extend(waiting.map(|waiter| (waiter.told, Err(Turned::Closed))));
        }
        state.waiting = 0;
        drop(state);
        later.tell();
    }

    /// Whether nobody is let through any more.
    pub(super) fn is_closed(&self) -> bool {
        // Without the lock, which all runs want: whoever closes looks for those that came before, and whoever comes leaves
        // what it looks for before it asks.
        self.closed.load(Ordering::SeqCst)
    }

    /// How many may wait.
    pub(super) fn queue(&self) -> u32 {
        self.queue
    }

    /// What it holds.
    pub(super) fn load(&self) -> Load {
        let state = self.lock();
        Load {
            held: state.held.places,
            places: self.capacity.places,
            waiting: state.waiting,
            bytes: state.held.bytes,
            capacity: self.capacity.bytes,
        }
    }

    /// When somebody that comes now may be let through, about: all that wait are before it, and as many go at once as
    /// there are places.
    pub(super) fn retry_after(&self) -> Duration {
        let state = self.lock();
        let before = f64::from(state.waiting + 1) / f64::from(self.capacity.places.max(1));
        state.pace.mul_f64(before).clamp(SOON, LATE)
    }

    fn arrive(self: &Arc<Self>, line: usize, ask: Amount) -> Result<Arrived, Turned> {
        let mut state = self.lock();
        self.check(ask)?;
        if state.waiting == 0 && self.fits(&state, line, ask) {
            return Ok(Arrived::Through(self.let_through(&mut state, line, ask)));
        }
        let mut later = Later::default();
        let (told, answer) = oneshot::channel();
        state.tickets += 1;
        let ticket = state.tickets;
        state.line_up(line, Waiter { ticket, ask, told });
        self.serve(&mut state, &mut later);
        if state.waiting > self.queue {
            // One too many: of the longest line, or this one.
            match state.makes_way_for(line) {
                Some(longest) => {
                    later.0.extend(state.evict(longest));
                    // Others may have waited for that one.
                    self.serve(&mut state, &mut later);
                }
                None => {
                    state.leave(line, ticket);
                    drop(state);
                    later.tell();
                    return Err(Turned::Full);
                }
            }
        }
        drop(state);
        later.tell();
        Ok(Arrived::InLine(ticket, answer))
    }

    /// Under the lock.
    fn check(&self, ask: Amount) -> Result<(), Turned> {
        if self.is_closed() {
            return Err(Turned::Closed);
        }
        if !Amount::default().has_room(ask, self.share) {
            return Err(Turned::TooMuch(self.share));
        }
        Ok(())
    }

    fn fits(&self, state: &State, line: usize, ask: Amount) -> bool {
        state.held.has_room(ask, self.capacity)
            && state.lines[line]
                .held
                .has_room(ask, self.limit(line, state))
    }

    /// What the tenant of a line may hold. The daemon's own work is no tenant.
    fn limit(&self, line: usize, state: &State) -> Amount {
        if line + 1 == state.lines.len() {
            return self.capacity;
        }
        self.share
    }

    fn let_through(self: &Arc<Self>, state: &mut State, line: usize, ask: Amount) -> Pass {
        state.held.add(ask);
        let it = &mut state.lines[line];
        it.held.add(ask);
        it.passed = 0;
        if it.waiting.is_empty() {
            // What it did not use while nobody of it waited is not its to catch up on.
            it.at = it.at.max(state.now);
        }
        state.now = state.now.max(it.at);
        it.at += TURN / u64::from(it.weight);
        Pass {
            gate: Arc::clone(self),
            line,
            held: ask,
            since: Instant::now(),
        }
    }

    /// Lets all through that fit, in turn.
    fn serve(self: &Arc<Self>, state: &mut State, later: &mut Later) {
        while state.waiting > 0 {
            let mut order: Vec<usize> = (0..state.lines.len())
                .filter(|line| !state.lines[*line].waiting.is_empty())
                .collect();
            order.sort_unstable_by_key(|line| state.lines[*line].at);
            let mut passed = Vec::new();
            let mut next = None;
            let mut owed = false;
            for line in order {
                let Some(head) = state.lines[line].waiting.front() else {
                    continue;
                };
                let ask = head.ask;
                let held = state.lines[line].held;
                // Where room is owed to one that was passed by too often, only those go ahead who hold little.
                if (!owed || held.has_room(ask, self.little)) && self.fits(state, line, ask) {
                    next = Some((line, ask));
                    break;
                }
                if !held.has_room(ask, self.limit(line, state)) {
                    // Only its own tenant can make room for it; what others have meanwhile is not its to catch up on.
                    let now = state.now;
                    let it = &mut state.lines[line];
                    it.at = it.at.max(now);
                    continue;
                }
                let by = state.lines[line].passed;
                if by >= PASSES * PASSES_OF_LITTLE {
                    // Many that hold little hold much together.
                    break;
                }
                owed |= by >= PASSES;
                passed.push(line);
            }
            let Some((line, ask)) = next else {
                return;
            };
            for line in passed {
                state.lines[line].passed += 1;
            }
            state.waiting -= 1;
            let Some(waiter) = state.lines[line].waiting.pop_front() else {
                return;
            };
            let pass = self.let_through(state, line, ask);
            later.0.push((waiter.told, Ok(pass)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// What others waited for is not there any more: who made them wait has had a turn.
    fn lost_its_head(&mut self) {
        if self.passed >= PASSES {
            self.at += TURN / u64::from(self.weight);
        }
        self.passed = 0;
    }
}

impl State {
    fn line_up(&mut self, line: usize, waiter: Waiter) {
        let it = &mut self.lines[line];
        if it.waiting.is_empty() {
            it.at = it.at.max(self.now);
        }
        it.waiting.push_back(waiter);
        self.waiting += 1;
    }

    /// Takes one out of its line; false where it is there no more.
    fn leave(&mut self, line: usize, ticket: u64) -> bool {
        let it = &mut self.lines[line];
        let found = it.waiting.iter().position(|waiter| waiter.ticket == ticket);
        let Some(at) = found else {
            return false;
        };
        it.waiting.remove(at);
        if at == 0 {
            it.lost_its_head();
        }
        self.waiting -= 1;
        true
    }

    /// Turns away the newest of a line.
    fn evict(&mut self, line: usize) -> Option<(Told, Result<Pass, Turned>)> {
        let it = &mut self.lines[line];
        let newest = it.waiting.pop_back()?;
        if it.waiting.is_empty() {
            it.lost_its_head();
        }
        self.waiting -= 1;
        Some((newest.told, Err(Turned::Full)))
    }

    /// The line whose newest gives its place in the queue to the newest of `line`: the longest by weight, where that is
    /// longer.
    fn makes_way_for(&self, line: usize) -> Option<usize> {
        let length = |it: usize| {
            let it = &self.lines[it];
            it.waiting.len() as u64 * TURN / u64::from(it.weight)
        };
        let longest = (0..self.lines.len()).max_by_key(|it| length(*it))?;
        (longest != line && length(longest) > length(line)).then_some(longest)
    }
}

enum Arrived {
    Through(Pass),
    InLine(u64, oneshot::Receiver<Result<Pass, Turned>>),
}

/// One that waits, until this is dropped.
struct Place<'a> {
    gate: &'a Arc<Gate>,
    line: usize,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        let mut later = Later::default();
        if state.leave(self.line, self.ticket) {
            // Those behind it may fit where it did not.
            self.gate.serve(&mut state, &mut later);
        }
        drop(state);
        later.tell();
    }
}

impl Pass {
    /// Splits off a pass of no place and `bytes`, or as many as there are, which is held on its own.
    pub(in crate::run) fn split(&mut self, bytes: u64) -> Self {
        let part = Amount {
            places: 0,
            bytes: bytes.min(self.held.bytes),
        };
        // What the gate holds stays the same.
        self.held.sub(part);
        Self {
            gate: Arc::clone(&self.gate),
            line: self.line,
            held: part,
            since: self.since,
        }
    }

    /// Bytes that it holds.
    pub(in crate::run) fn bytes(&self) -> u64 {
        self.held.bytes
    }

    /// Gives back `bytes`, or as many as there are, before the rest: those that wait are served.
    pub(in crate::run) fn release(&mut self, bytes: u64) {
        drop(self.split(bytes));
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.held == Amount::default() {
            return;
        }
        let mut state = self.gate.lock();
        state.held.sub(self.held);
        state.lines[self.line].held.sub(self.held);
        if self.held.places > 0 {
            let held = self.since.elapsed();
            state.pace = (state.pace * (PACE - 1) + held) / PACE;
        }
        let mut later = Later::default();
        self.gate.serve(&mut state, &mut later);
        drop(state);
        later.tell();
    }
}
