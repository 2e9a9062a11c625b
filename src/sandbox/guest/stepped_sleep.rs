//! Sleeps of a run with the deterministic clock: each returns at once.

use wasmtime::component::{HasData, Resource};
use wasmtime::{Caller, Extern, Linker};
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::{HostMonotonicClock, WasiView, async_trait};

use super::guest_state::GuestState;
use super::preview1::may_poll;
use super::stepped_clock::SteppedClock;

/// Replaces the sleeps of WASI 0.2: a clock that a guest subscribes to is ready at once.
pub(in crate::sandbox) fn add_component(
    linker: &mut wasmtime::component::Linker<GuestState>,
) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    monotonic_clock::add_to_linker::<GuestState, HasSteppedHost>(linker, |state| {
        SteppedHost(state)
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Replaces `poll_oneoff` of preview 1 and of `wasi_unstable`: every subscription is answered at
/// once.
pub(in crate::sandbox) fn add_core(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.func_wrap(
        "wasi_snapshot_preview1",
        "poll_oneoff",
        |caller: Caller<'_, GuestState>, subs: i32, events: i32, n: i32, out: i32| {
            poll_oneoff(caller, 48, [subs, events, n, out])
        },
    )?;
    linker.func_wrap(
        "wasi_unstable",
        "poll_oneoff",
        |caller: Caller<'_, GuestState>, subs: i32, events: i32, n: i32, out: i32| {
            poll_oneoff(caller, 56, [subs, events, n, out])
        },
    )?;
    Ok(())
}

struct HasSteppedHost;

impl HasData for HasSteppedHost {
    type Data<'a> = SteppedHost<'a>;
}

struct SteppedHost<'a>(&'a mut GuestState);

impl SteppedHost<'_> {
    fn clock(&self) -> wasmtime::Result<&SteppedClock> {
        let clock = self.0.stepped_clock.as_ref();
        // Only runs that have the clock get these imports.
        clock.ok_or_else(|| wasmtime::Error::msg("the clock is the real one"))
    }
}

impl monotonic_clock::Host for SteppedHost<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(HostMonotonicClock::now(self.clock()?))
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        Ok(HostMonotonicClock::resolution(self.clock()?))
    }

    fn subscribe_instant(&mut self, _when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.subscribe_duration(0)
    }

    fn subscribe_duration(&mut self, _duration: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let table = self.0.ctx().table;
        let now = table.push(AlwaysReady)?;
        subscribe(table, now)
    }
}

/// A pollable that is ready at once.
struct AlwaysReady;

#[async_trait]
impl Pollable for AlwaysReady {
    async fn ready(&mut self) {}
}

const ERRNO_SUCCESS: i32 = 0;
const ERRNO_INVAL: i32 = 28;
/// The highest tag of a subscription; the tags are clock, reading and writing.
const LAST_TAG: u8 = 2;
/// The size of an event in bytes, in both versions of the interface.
const EVENT: usize = 32;

/// Answers each subscription with its event. `size` is that of a subscription, which differs
/// between the two versions; the user data and the tag are at the same offsets in both.
fn poll_oneoff(
    mut caller: Caller<'_, GuestState>,
    size: usize,
    [subs, events, n, out]: [i32; 4],
) -> wasmtime::Result<i32> {
    if n == 0 || !may_poll(caller.data(), n) {
        return Ok(ERRNO_INVAL);
    }
    let memory = caller
        .get_export("memory")
        .and_then(Extern::into_memory)
        .ok_or_else(|| wasmtime::Error::msg("missing required memory export"))?;
    let bytes = memory.data_mut(&mut caller);
    let out_of_bounds = || wasmtime::Error::from(wasmtime::Trap::MemoryOutOfBounds);
    let at = |base: i32, i: usize, size: usize, bytes: &[u8]| {
        let start = i
            .checked_mul(size)?
            .checked_add(base.cast_unsigned() as usize)?;
        let end = start.checked_add(size)?;
        (end <= bytes.len()).then_some(start..end)
    };
    let count = n.cast_unsigned();
    for i in 0..count as usize {
        let sub = at(subs, i, size, bytes).ok_or_else(out_of_bounds)?;
        let mut event = [0; EVENT];
        event[..8].copy_from_slice(&bytes[sub.start..sub.start + 8]);
        event[10] = bytes[sub.start + 8];
        if event[10] > LAST_TAG {
            return Ok(ERRNO_INVAL);
        }
        if event[10] != 0 {
            // A descriptor is reported ready for at least one byte.
            event[16] = 1;
        }
        let slot = at(events, i, EVENT, bytes).ok_or_else(out_of_bounds)?;
        bytes[slot].copy_from_slice(&event);
    }
    let slot = at(out, 0, 4, bytes).ok_or_else(out_of_bounds)?;
    bytes[slot].copy_from_slice(&count.to_le_bytes());
    Ok(ERRNO_SUCCESS)
}
