//! `poll_oneoff` of core modules.
//!
//! The runtime polls the descriptors that it has. In a run with a memory file system, a poll is
//! made on a copy of the guest's subscriptions in which the descriptors have the runtime's numbers,
//! and in which a file in memory, which is always ready, is a timer that is over at once.

use wasmtime::Caller;
use wasmtime_wasi::p0::wasi_unstable;
use wasmtime_wasi::p1::types::Errno;
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self, WasiSnapshotPreview1};
use wiggle::{GuestMemory, GuestPtr};

use super::{SUCCESS, WasiVersion, errno_code, may_poll};
use crate::sandbox::guest::guest_state::{GuestState, memory};
use crate::sandbox::guest::memory_files::{MemoryFiles, Route};
use crate::sync::lock;

/// How many bytes the runtime may copy for each subscription and event of a poll.
const POLL_BYTES: usize = 256;
/// The size of an event in bytes, in both versions of the interface.
const EVENT_BYTES: usize = 32;
/// The places in a subscription: the tag after the user data, and the descriptor, or the clock.
const TAG: usize = 8;
const DESCRIPTOR: usize = 16;
/// The tags of a subscription, which are the types of its event too.
const CLOCK: u8 = 0;
const FD_READ: u8 = 1;
const FD_WRITE: u8 = 2;
/// The number of the clock that a timer of a file in memory runs by.
const MONOTONIC: u8 = 1;
/// The flag of an event for a file that is read to its end.
const HANGUP: u8 = 1;

pub(super) async fn poll_oneoff(
    mut caller: Caller<'_, GuestState>,
    (subs, events, count, out): (i32, i32, i32, i32),
    version: WasiVersion,
) -> wasmtime::Result<i32> {
    if caller.data().memory_files.is_some() {
        return Box::pin(poll_beside_memory(
            caller,
            (subs, events, count, out),
            version,
        ))
        .await;
    }
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    if !may_poll(state, count) {
        return Ok(errno_code(Errno::Inval));
    }
    let mut memory = GuestMemory::Unshared(bytes);
    let wasi = state.wasi.get();
    WasiSnapshotPreview1::set_hostcall_fuel(wasi, count.cast_unsigned() as usize * POLL_BYTES);
    runtime!(
        version,
        poll_oneoff(wasi, &mut memory, subs, events, count, out)
    )
}

/// A poll as the runtime makes it: its memory has the subscriptions, then the events, then their
/// number.
struct TranslatedPoll {
    bytes: Vec<u8>,
    /// The size of a subscription.
    size: usize,
    /// Of each subscription: the guest's user data, its tag, and for a file in memory whether it is
    /// read to its end.
    originals: Vec<([u8; 8], u8, Option<bool>)>,
}

impl TranslatedPoll {
    /// Copies the guest's subscriptions, with the runtime's numbers for descriptors.
    fn new(
        guest: &GuestMemory<'_>,
        files: &mut MemoryFiles,
        (subs, count): (i32, i32),
        version: WasiVersion,
    ) -> wasmtime::Result<Result<Self, Errno>> {
        let size = match version {
            WasiVersion::Preview1 => 48,
            WasiVersion::Unstable => 56,
        };
        let number = count.cast_unsigned();
        let length = number.saturating_mul(u32::try_from(size).unwrap_or(u32::MAX));
        let given = GuestPtr::<[u8]>::new((subs.cast_unsigned(), length));
        let mut bytes = guest.as_cow(given)?.into_owned();
        let mut originals = Vec::with_capacity(number as usize);
        for (i, sub) in (0_u64..).zip(bytes.chunks_exact_mut(size)) {
            let mut user_data = [0; 8];
            user_data.copy_from_slice(&sub[..8]);
            sub[..8].copy_from_slice(&i.to_le_bytes());
            let tag = sub[TAG];
            let mut at_end = None;
            if matches!(tag, FD_READ | FD_WRITE) {
                let mut fd = [0; 4];
                fd.copy_from_slice(&sub[DESCRIPTOR..DESCRIPTOR + 4]);
                let fd = i32::from_le_bytes(fd);
                match files.descriptors.route([fd]) {
                    Route::Runtime([fd]) => {
                        sub[DESCRIPTOR..DESCRIPTOR + 4].copy_from_slice(&fd.to_le_bytes());
                    }
                    Route::Memory => {
                        match is_at_end(files, fd) {
                            Ok(ended) => at_end = Some(ended && tag == FD_READ),
                            Err(errno) => return Ok(Err(errno)),
                        }
                        sub[TAG..].fill(0);
                        sub[TAG] = CLOCK;
                        let clock = if size == 48 {
                            DESCRIPTOR
                        } else {
                            DESCRIPTOR + 8
                        };
                        sub[clock] = MONOTONIC;
                    }
                    Route::Refused(errno) => return Ok(Err(errno)),
                }
            }
            originals.push((user_data, tag, at_end));
        }
        bytes.resize(bytes.len() + number as usize * EVENT_BYTES + 4, 0);
        Ok(Ok(Self {
            bytes,
            size,
            originals,
        }))
    }

    /// Returns the places of the events and of their number in the memory of the poll.
    fn places(&self) -> (usize, usize) {
        let events = self.originals.len() * self.size;
        (events, events + self.originals.len() * EVENT_BYTES)
    }

    /// Returns the events that the runtime reported, as the guest is to see them.
    fn into_events(mut self) -> Vec<u8> {
        let (events, count_at) = self.places();
        let mut count = [0; 4];
        count.copy_from_slice(&self.bytes[count_at..count_at + 4]);
        let length = u32::from_le_bytes(count) as usize * EVENT_BYTES;
        let reported = &mut self.bytes[events..events + length];
        for event in reported.chunks_exact_mut(EVENT_BYTES) {
            let mut index = [0; 8];
            index.copy_from_slice(&event[..8]);
            let index = usize::try_from(u64::from_le_bytes(index)).unwrap_or(usize::MAX);
            let Some((user_data, tag, at_end)) = self.originals.get(index) else {
                continue;
            };
            event[..8].copy_from_slice(user_data);
            if let Some(at_end) = at_end {
                event[8..].fill(0);
                event[10] = *tag;
                event[16] = 1;
                event[24] = if *at_end { HANGUP } else { 0 };
            }
        }
        reported.to_vec()
    }
}

/// Reports whether the position of an open file is at its end.
fn is_at_end(files: &mut MemoryFiles, fd: i32) -> Result<bool, Errno> {
    let descriptor = files.descriptors.memory(fd)?;
    if descriptor.is_directory {
        return Err(Errno::Badf);
    }
    let size = lock(&files.fs).stat(descriptor.node)?.size;
    Ok(descriptor.position >= size)
}

async fn poll_beside_memory(
    mut caller: Caller<'_, GuestState>,
    (subs, events, count, out): (i32, i32, i32, i32),
    version: WasiVersion,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    if count == 0 || !may_poll(state, count) {
        return Ok(errno_code(Errno::Inval));
    }
    let mut guest = GuestMemory::Unshared(bytes);
    let Some(files) = &mut state.memory_files else {
        return Ok(errno_code(Errno::Badf));
    };
    let mut poll = match TranslatedPoll::new(&guest, files, (subs, count), version)? {
        Ok(poll) => poll,
        Err(errno) => return Ok(errno_code(errno)),
    };
    let (events_at, count_at) = poll.places();
    // A poll has at most as many subscriptions as a run has handles, so that the places fit.
    let place = |at: usize| i32::try_from(at).unwrap_or(i32::MAX);
    let (events_at, count_at) = (place(events_at), place(count_at));
    let wasi = state.wasi.get();
    WasiSnapshotPreview1::set_hostcall_fuel(wasi, count.cast_unsigned() as usize * POLL_BYTES);
    let mut host = GuestMemory::Unshared(&mut poll.bytes);
    let errno = runtime!(
        version,
        poll_oneoff(wasi, &mut host, 0, events_at, count, count_at)
    )?;
    if errno != SUCCESS {
        return Ok(errno);
    }
    let reported = poll.into_events();
    let length = u32::try_from(reported.len()).unwrap_or_default();
    guest.copy_from_slice(&reported, GuestPtr::new((events.cast_unsigned(), length)))?;
    let number = length / u32::try_from(EVENT_BYTES).unwrap_or(1);
    guest.write(GuestPtr::<u32>::new(out.cast_unsigned()), number)?;
    Ok(SUCCESS)
}
