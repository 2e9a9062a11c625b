//! A thread that returns free memory from the allocator to the operating system (`malloc_trim`).
//!
//! By itself, glibc returns pages only from the end of a heap: memory that is freed below a single
//! byte in use stays with the process for good. After 5,000 clients that vanished, each with a
//! stream at full speed, that was 84 of 136 MiB, of which 2 MiB were in use. So a thread checks
//! periodically whether more memory is resident than after the last trim, and trims every whole
//! free page when the process is quiet.
//!
//! Calls pay nothing for this, and nothing is returned that is needed again a moment later. A
//! process that is never quiet is trimmed once a minute. With a C library other than glibc there is
//! nothing to do.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the resident memory is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The most processor time between two checks at which the process counts as quiet.
const QUIET: Duration = Duration::from_millis(50);
/// The least growth of resident memory, in bytes, that is worth a trim.
const MIN_TRIM_BYTES: u64 = 2 << 20;
/// The number of checks after which a process that is never quiet is trimmed all the same: a
/// minute.
const BUSY_LOOKS: u32 = 120;

/// The thread that trims the heap. Dropping this ends the thread and waits for it.
pub(crate) struct HeapTrimmer {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HeapTrimmer {
    /// Starts the thread, which calls `on_thread` first.
    ///
    /// # Errors
    /// The host has no `/proc`, or refuses a thread.
    pub(crate) fn start(on_thread: fn()) -> io::Result<Self> {
        let resident = ResidentMemory::open()?;
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("heap".to_owned())
            .spawn(move || {
                on_thread();
                // If the resident memory can no longer be read, trimming just ends.
                let _ = keep_trimming(&resident, &stopped);
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for HeapTrimmer {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // The thread only returns, so joining it does not fail.
            let _ = thread.join();
        }
    }
}

/// Checks the resident memory periodically, and trims when the policy says so, until the other end
/// of `stopped` is dropped.
fn keep_trimming(resident: &ResidentMemory, stopped: &Receiver<()>) -> io::Result<()> {
    let mut policy = TrimPolicy::new(resident.bytes()?);
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(CHECK_INTERVAL) {
        if policy.should_trim(resident.bytes()?, processor_time()) {
            trim();
            policy.trimmed(resident.bytes()?);
        }
    }
    Ok(())
}

/// The policy that decides when to trim.
struct TrimPolicy {
    /// Bytes that were resident after the last trim, or fewer if that has shrunk since.
    floor: u64,
    /// The process's processor time at the last check.
    spent: Duration,
    /// Checks in a row at which there was enough to trim.
    looks: u32,
}

impl TrimPolicy {
    /// Creates a policy for a process with `resident` bytes of resident memory.
    fn new(resident: u64) -> Self {
        Self {
            floor: resident,
            spent: Duration::ZERO,
            looks: 0,
        }
    }

    /// Decides whether to trim now. `spent` is the process's processor time so far.
    fn should_trim(&mut self, resident: u64, spent: Duration) -> bool {
        let is_quiet = spent.saturating_sub(self.spent) <= QUIET;
        self.spent = spent;
        self.floor = self.floor.min(resident);
        if resident - self.floor < MIN_TRIM_BYTES {
            self.looks = 0;
            return false;
        }
        self.looks += 1;
        is_quiet || self.looks >= BUSY_LOOKS
    }

    /// Records what is resident after a trim: memory that is still in use is no reason to try
    /// again.
    fn trimmed(&mut self, resident: u64) {
        self.floor = resident;
        self.looks = 0;
    }
}

/// A reader of how much of the process's own memory is resident, not counting file mappings.
struct ResidentMemory(File);

impl ResidentMemory {
    /// Opens the kernel's memory statistics of this process.
    fn open() -> io::Result<Self> {
        File::open("/proc/self/statm").map(Self)
    }

    /// Reads the bytes that are resident now.
    fn bytes(&self) -> io::Result<u64> {
        let mut text = [0; 256];
        let length = self.0.read_at(&mut text, 0)?;
        let text = std::str::from_utf8(&text[..length]).unwrap_or_default();
        let mut pages = text.split(' ').skip(1).map(str::parse::<u64>);
        match (pages.next(), pages.next()) {
            (Some(Ok(resident)), Some(Ok(shared))) => {
                Ok(resident.saturating_sub(shared) * rustix::param::page_size() as u64)
            }
            _ => Err(io::Error::other("/proc/self/statm is not as expected")),
        }
    }
}

/// Returns the processor time that the process has used.
fn processor_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(spent).unwrap_or_default()
}

/// Makes the allocator return every whole page that is free, in all of its heaps.
#[cfg(target_env = "gnu")]
fn trim() {
    #[expect(
        unsafe_code,
        reason = "a call into the C library that takes no pointer and that any thread may make; no safe crate has it"
    )]
    // SAFETY: it touches only what the allocator itself holds free, under the allocator's own
    // locks.
    let _ = unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const IDLE: Duration = Duration::ZERO;
    const BUSY: Duration = Duration::from_millis(400);

    /// A policy under test, with the processor time that its process has used.
    struct TrimPolicyDriver(TrimPolicy, Duration);

    impl TrimPolicyDriver {
        fn of(resident: u64) -> Self {
            Self(TrimPolicy::new(resident), Duration::ZERO)
        }

        fn look(&mut self, resident: u64, spent: Duration) -> bool {
            self.1 += spent;
            self.0.should_trim(resident, self.1)
        }
    }

    #[test]
    fn growth_is_given_back_once_the_process_is_quiet() {
        let mut it = TrimPolicyDriver::of(40 * MIB);
        assert!(!it.look(40 * MIB, IDLE));
        assert!(!it.look(130 * MIB, BUSY));
        assert!(!it.look(120 * MIB, BUSY));
        assert!(it.look(120 * MIB, IDLE));
        it.0.trimmed(45 * MIB);
        assert!(!it.look(45 * MIB, IDLE));
    }

    #[test]
    fn what_is_in_use_is_not_tried_again() {
        let mut it = TrimPolicyDriver::of(40 * MIB);
        assert!(it.look(90 * MIB, IDLE));
        it.0.trimmed(90 * MIB);
        assert!((0..10 * BUSY_LOOKS).all(|_| !it.look(91 * MIB, IDLE)));
        // That changes once the memory is freed and more is used again.
        assert!(!it.look(50 * MIB, IDLE));
        assert!(it.look(55 * MIB, IDLE));
    }

    #[test]
    fn little_is_not_worth_it() {
        let mut it = TrimPolicyDriver::of(40 * MIB);
        assert!((0..10 * BUSY_LOOKS).all(|_| !it.look(40 * MIB + MIN_TRIM_BYTES - 1, BUSY)));
        assert!(!it.look(40 * MIB + MIN_TRIM_BYTES - 1, IDLE));
        assert!(it.look(40 * MIB + MIN_TRIM_BYTES, IDLE));
    }

    #[test]
    fn a_process_that_is_never_quiet_gives_back_once_a_minute() {
        let mut it = TrimPolicyDriver::of(40 * MIB);
        for _ in 0..3 {
            let looks = (0..).find(|_| it.look(130 * MIB, BUSY));
            assert_eq!(looks, Some(BUSY_LOOKS - 1));
            it.0.trimmed(60 * MIB);
        }
    }

    #[test]
    fn what_is_resident_is_read_and_grows_with_what_is_touched() {
        let resident = ResidentMemory::open().unwrap();
        let before = resident.bytes().unwrap();
        let held = vec![1_u8; 64 << 20];
        let after = resident.bytes().unwrap();
        // Other tests may free memory meanwhile.
        assert!(after > before + (32 << 20), "{before} {after}");
        assert!(held.iter().all(|byte| *byte == 1));
    }

    #[test]
    fn the_thread_ends_when_it_is_dropped() {
        let trimmer = HeapTrimmer::start(|| ()).unwrap();
        drop(trimmer);
    }
}
