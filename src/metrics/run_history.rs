//! The last hour of a tenant's runs, in samples of which idle ones take no room.

use std::collections::VecDeque;

use super::RunTally;
use super::run_tally::{pack_number, unpack_number};

/// The ticks that a history covers: an hour, with one every ten seconds.
const MAX_TICKS: u64 = 360;
/// The bytes that the histories of all tenants may have for their intervals together.
const ALL_BYTES: usize = 320 << 10;
/// The most bytes that one history may have for its intervals, which is enough for an hour of the
/// fullest ones.
const MAX_BYTES: usize = 160 << 10;
/// The bytes by which the buffer grows, so that it is never much larger than what it holds.
const GROWTH: usize = 128;

/// What the runs of a tenant came to in one interval, and what there was at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunInterval {
    /// The number of the tick that ended the interval.
    pub tick: u64,
    /// Runs that had not ended at its end.
    pub in_flight: u32,
    /// Those of them that waited for a slot.
    pub queued: u32,
    /// What was counted in it.
    pub tally: RunTally,
}

/// The intervals of a tenant, each ended by a tick that all tenants share. An interval in which
/// nothing was counted, and at whose end there was no run, is not stored.
#[derive(Debug)]
pub struct RunHistory {
    /// What had been counted at the last tick, in its compact form.
    base: Box<[u8]>,
    /// The intervals in their compact form, the oldest first, each after its length.
    packed: VecDeque<u8>,
    /// The most bytes of `packed`.
    max_bytes: usize,
    /// The last tick whose interval is not known any more; 0 where all since the start are.
    forgotten: u64,
}

impl RunHistory {
    /// Creates the history of one of so many tenants. Its intervals take at most 160 KiB, or its
    /// equal share of 320 KiB if that is less. An ordinary busy interval takes some 40 bytes, so
    /// twenty such tenants have their whole hour, and each of a thousand the last minute and more.
    pub fn one_of(tenants: usize) -> Self {
        Self {
            base: Box::default(),
            packed: VecDeque::new(),
            max_bytes: MAX_BYTES.min(ALL_BYTES / tenants.max(1)),
            forgotten: 0,
        }
    }

    /// Ends the interval of `tick`, which is a later one than any before. `total` is what has been
    /// counted since the start.
    pub fn record(&mut self, tick: u64, total: &RunTally, in_flight: u32, queued: u32) {
        let oldest = oldest_tick(tick);
        while self.first().is_some_and(|(_, tick)| tick < oldest) {
            self.pop();
        }
        let tally = self.since_last_tick(total);
        if tally.is_empty() && in_flight == 0 {
            return;
        }
        let mut base = Vec::new();
        total.pack(&mut base);
        self.base = base.into();
        let mut packed = Vec::new();
        for number in [tick, in_flight.into(), queued.into()] {
            pack_number(&mut packed, number);
        }
        tally.pack(&mut packed);
        let mut length = Vec::new();
        pack_number(&mut length, packed.len() as u64);
        let bytes = length.len() + packed.len();
        while self.packed.len() + bytes > self.max_bytes {
            match self.pop() {
                Some(tick) => self.forgotten = tick,
                // Not even this one alone fits.
                None => {
                    self.forgotten = tick;
                    return;
                }
            }
        }
        if self.packed.len() + bytes > self.packed.capacity() {
            let room = self.max_bytes - self.packed.len();
            self.packed.reserve_exact(bytes.max(GROWTH).min(room));
        }
        self.packed.extend(length);
        self.packed.extend(packed);
    }

    /// Returns what was counted since the last tick, where `total` is what has been counted since
    /// the start.
    pub fn since_last_tick(&self, total: &RunTally) -> RunTally {
        total.since(&RunTally::unpack(&mut self.base.iter().copied()))
    }

    /// Returns the first tick from which on every interval is known, were `now` the last tick.
    pub fn known_from(&self, now: u64) -> u64 {
        oldest_tick(now).max(self.forgotten + 1)
    }

    /// Returns the intervals from the tick `from` on, the oldest first. Those that are not among
    /// them, and not older than [`Self::known_from`], were idle.
    pub fn intervals(&self, from: u64) -> impl Iterator<Item = RunInterval> {
        let mut bytes = self.packed.iter().copied();
        let all = std::iter::from_fn(move || {
            let length = unpack_number(&mut bytes)?;
            let mut one = bytes.by_ref().take(usize::try_from(length).ok()?);
            let mut number = || unpack_number(&mut one);
            let [tick, in_flight, queued] = [number()?, number()?, number()?];
            Some(RunInterval {
                tick,
                in_flight: u32::try_from(in_flight).unwrap_or(u32::MAX),
                queued: u32::try_from(queued).unwrap_or(u32::MAX),
                tally: RunTally::unpack(&mut one),
            })
        });
        all.skip_while(move |it| it.tick < from)
    }

    /// Returns the bytes that the history takes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.base.len() + self.packed.capacity()
    }

    /// Returns the bytes and the tick of the oldest interval; `None` where there is none.
    fn first(&self) -> Option<(usize, u64)> {
        let mut bytes = self.packed.iter().copied();
        let length = usize::try_from(unpack_number(&mut bytes)?).ok()?;
        let prefix = self.packed.len() - bytes.len();
        Some((prefix + length, unpack_number(&mut bytes)?))
    }

    /// Removes the oldest interval, and returns its tick.
    fn pop(&mut self) -> Option<u64> {
        let (bytes, tick) = self.first()?;
        self.packed.drain(..bytes.min(self.packed.len()));
        Some(tick)
    }
}

/// Returns the oldest tick that is remembered when `now` is the last.
pub(super) fn oldest_tick(now: u64) -> u64 {
    (now + 1).saturating_sub(MAX_TICKS).max(1)
}

#[cfg(test)]
mod tests;
