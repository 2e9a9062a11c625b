//! A gate: so many places and so many bytes, for which tenants take turns.
//!
//! This is weighted fair queueing by virtual time. Each tenant has a line, first come first served. The line whose tenant
//! has been let through least, by its weight, is served first; one whose head does not fit is passed by, but not for ever.
//! Where there are several tenants, none holds the last eighth, so that whoever comes next finds room. A queue that is
//! full makes room for a tenant that has fewer in it than another.
//!
//! Lines stand in two ordered sets, by virtual time and by length, so that letting one through, and finding the longest
//! line, costs the logarithm of the number of tenants that wait, and nothing for those that do not. Whoever leaves is
//! found by its ticket, of which each line is sorted.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::amount::Amount;
use super::load::Load;

/// What one turn moves a line on, for a weight of one.
const TURN: u64 = 1 << 20;
/// How often others may go ahead of the head of a line that does not fit, before they wait until it does.
const PASSES: u32 = 64;
/// And how many times that those may who hold little.
const PASSES_OF_LITTLE: u32 = 8;
/// How much one more place that comes free says about how long they are held: one part in so many.
const PACE: u32 = 8;
/// Waiters for whom an empty line keeps its memory.
const KEPT_WAITERS: usize = 32;
/// What a caller that is refused is told to wait, at the least and at the most.
const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(30);

/// The gate.
#[derive(Debug)]
pub(super) struct Gate {
    capacity: Amount,
    /// What one tenant may hold.
    share: Amount,
    /// What one tenant may hold while another is owed room.
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
    /// Lines whose head its own tenant's share has room for, by how far each was let through: served in this order.
    next: BTreeSet<(u64, usize)>,
    /// Lines in which somebody waits, by their length and weight: the last gives way where the queue is full.
    longest: BTreeSet<(u64, usize)>,
    tickets: u64,
    /// How long a place is held, about.
    pace: Duration,
}

/// One tenant's.
#[derive(Debug)]
struct Line {
    weight: u32,
    held: Amount,
    /// What its tenant may hold.
    limit: Amount,
    /// How far it was let through.
    at: u64,
    /// In the order of their tickets.
    waiting: VecDeque<Waiter>,
    /// How often others went ahead of its head, which did not fit.
    passed: u32,
    /// What it stands under in [`State::next`], where it does.
    in_next: Option<u64>,
    /// What it stands under in [`State::longest`], where it does.
    in_longest: Option<u64>,
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
        // The last line is the daemon's own, whose work is no tenant.
        let own = weights.len().saturating_sub(1);
        let several = own > 1;
        let share = if several { capacity.share() } else { capacity };
        let line = |(line, weight): (usize, &u32)| Line {
            weight: (*weight).max(1),
            held: Amount::default(),
            limit: if line == own { capacity } else { share },
            at: 0,
            waiting: VecDeque::new(),
            passed: 0,
            in_next: None,
            in_longest: None,
        };
        Arc::new(Self {
            capacity,
            share,
            little: capacity.eighth(),
            queue,
            closed: AtomicBool::new(false),
            state: Mutex::new(State {
                lines: weights.iter().enumerate().map(line).collect(),
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
        let mut place = Place {
            gate: self,
            line,
            ticket,
            is_told: false,
        };
        waits();
        match tokio::time::timeout(patience, &mut told).await {
            Ok(Ok(what)) => {
                place.is_told = true;
                what
            }
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
        for line in 0..state.lines.len() {
            let waiting = std::mem::take(&mut state.lines[line].waiting);
            let waiting = waiting.into_iter();
            later
                .0
                .extend(waiting.map(|waiter| (waiter.told, Err(Turned::Closed))));
            state.reorder(line);
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
        let it = &state.lines[line];
        state.held.has_room(ask, self.capacity) && it.held.has_room(ask, it.limit)
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
        state.reorder(line);
        Pass {
            gate: Arc::clone(self),
            line,
            held: ask,
            since: Instant::now(),
        }
    }

    /// Lets all through that fit, in turn.
    fn serve(self: &Arc<Self>, state: &mut State, later: &mut Later) {
        while let Some((line, passed)) = self.next(state) {
            let State { next, lines, .. } = state;
            for (_, line) in next.iter().take(passed) {
                lines[*line].passed += 1;
            }
            let Some(waiter) = lines[line].waiting.pop_front() else {
                return;
            };
            state.waiting -= 1;
            let pass = self.let_through(state, line, waiter.ask);
            later.0.push((waiter.told, Ok(pass)));
        }
    }

    /// The line whose head is let through now, where there is one, and how many before it are passed by.
    fn next(&self, state: &State) -> Option<(usize, usize)> {
        if state.held.places >= self.capacity.places {
            // Whoever waits waits for a place.
            return None;
        }
        let mut owed = false;
        for (passed, &(_, line)) in state.next.iter().enumerate() {
            let it = &state.lines[line];
            let ask = it.waiting.front()?.ask;
            // Where room is owed to one that was passed by too often, only those go ahead who hold little.
            let may_go = !owed || it.held.has_room(ask, self.little);
            if may_go && state.held.has_room(ask, self.capacity) {
                return Some((line, passed));
            }
            if it.passed >= PASSES * PASSES_OF_LITTLE {
                // Many that hold little hold much together.
                return None;
            }
            owed |= it.passed >= PASSES;
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// How many wait, by its weight.
    fn length(&self) -> u64 {
        self.waiting.len() as u64 * TURN / u64::from(self.weight)
    }

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
        self.lines[line].waiting.push_back(waiter);
        self.waiting += 1;
        self.reorder(line);
    }

    /// Puts a line where it belongs among the others, after anything of it has changed.
    fn reorder(&mut self, line: usize) {
        let it = &mut self.lines[line];
        let head = it.waiting.front();
        // While only its own tenant can make room for its head it is not among those to be served.
        let is_next = head.is_some_and(|head| it.held.has_room(head.ask, it.limit));
        if is_next && it.in_next.is_none() {
            // What others had meanwhile is not its to catch up on.
            it.at = it.at.max(self.now);
        }
        let at = is_next.then_some(it.at);
        move_to(&mut self.next, line, &mut it.in_next, at);
        let length = (!it.waiting.is_empty()).then(|| it.length());
        move_to(&mut self.longest, line, &mut it.in_longest, length);
        if it.waiting.is_empty() && it.waiting.capacity() > KEPT_WAITERS {
            it.waiting = VecDeque::new();
        }
    }

    /// Takes one out of its line; false where it is there no more.
    fn leave(&mut self, line: usize, ticket: u64) -> bool {
        let it = &mut self.lines[line];
        let found = it.waiting.binary_search_by_key(&ticket, |it| it.ticket);
        let Ok(at) = found else {
            return false;
        };
        it.waiting.remove(at);
        if at == 0 {
            it.lost_its_head();
        }
        self.waiting -= 1;
        self.reorder(line);
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
        self.reorder(line);
        Some((newest.told, Err(Turned::Full)))
    }

    /// The line whose newest gives its place in the queue to the newest of `line`: the longest by weight, where that is
    /// longer.
    fn makes_way_for(&self, line: usize) -> Option<usize> {
        let &(length, longest) = self.longest.last()?;
        (longest != line && length > self.lines[line].length()).then_some(longest)
    }
}

/// Has `line` stand under `to` in a set, where it stood under `from`.
fn move_to(set: &mut BTreeSet<(u64, usize)>, line: usize, from: &mut Option<u64>, to: Option<u64>) {
    if *from == to {
        return;
    }
    if let Some(key) = *from {
        set.remove(&(key, line));
    }
    if let Some(key) = to {
        set.insert((key, line));
    }
    *from = to;
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
    /// Whether it waits no more.
    is_told: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
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
        state.reorder(self.line);
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

#[cfg(test)]
mod tests;
