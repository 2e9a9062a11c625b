//! Memory that the allocator holds free goes back to the system.
//!
//! glibc gives pages back by itself only from the end of a heap: what is freed below a single byte
//! that is in use stays with the process for good. After 5,000 clients that vanished, each with a
//! stream in full flow, that was 84 of 136 MiB, of which 2 MiB were in use. So a thread looks now and
//! then whether more is resident than the last time that it gave memory back, and when the process is
//! quiet it has the allocator return every whole page that is free. Calls cost nothing for it, and
//! nothing is returned that the next moment needs again; a process that is never quiet does it once a
//! minute. Where the C library is another than glibc there is nothing to do.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(500);
/// Processor time between two looks up to which the process is quiet.
const QUIET: Duration = Duration::from_millis(50);
/// Growth that is worth giving back.
const WORTH: u64 = 2 << 20;
/// Looks after which a process that is never quiet gives back all the same: a minute.
const BUSY_LOOKS: u32 = 120;

/// The thread that gives memory back, until this is dropped.
pub(crate) struct HeapTrimmer {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HeapTrimmer {
    /// Starts the thread, which begins with `on_thread`.
    ///
    /// # Errors
    /// Where the host has no `/proc`, or refuses a thread.
    pub(crate) fn start(on_thread: fn()) -> io::Result<Self> {
        let resident = ResidentMemory::open()?;
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("heap".to_owned())
            .spawn(move || {
                on_thread();
                // What cannot be read any more leaves memory where it is.
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
            // It only returns.
            let _ = thread.join();
        }
    }
}

fn keep_trimming(resident: &ResidentMemory, stopped: &Receiver<()>) -> io::Result<()> {
    let mut policy = TrimPolicy::new(resident.bytes()?);
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(LOOK) {
        if policy.look(resident.bytes()?, processor_time()) {
            trim();
            policy.trimmed(resident.bytes()?);
        }
    }
    Ok(())
}

/// When to give memory back.
struct TrimPolicy {
    /// What was resident after the last time, or less.
    floor: u64,
    /// The process's processor time at the last look.
    spent: Duration,
    /// Looks since there has been something worth giving back.
    looks: u32,
}

impl TrimPolicy {
    fn new(resident: u64) -> Self {
        Self {
            floor: resident,
            spent: Duration::ZERO,
            looks: 0,
        }
    }

    /// Whether to give back now.
    fn look(&mut self, resident: u64, spent: Duration) -> bool {
        let is_quiet = spent.saturating_sub(self.spent) <= QUIET;
        self.spent = spent;
        self.floor = self.floor.min(resident);
        if resident - self.floor < WORTH {
            self.looks = 0;
            return false;
        }
        self.looks += 1;
        is_quiet || self.looks >= BUSY_LOOKS
    }

    /// Notes what is resident after memory was given back: what is in use is no reason to try again.
    fn trimmed(&mut self, resident: u64) {
        self.floor = resident;
        self.looks = 0;
    }
}

/// The process's own memory that is resident, without that of files.
struct ResidentMemory(File);

impl ResidentMemory {
    fn open() -> io::Result<Self> {
        File::open("/proc/self/statm").map(Self)
    }

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

fn processor_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(spent).unwrap_or_default()
}

/// Has the allocator give back every whole page that is free, in all of its heaps.
#[cfg(target_env = "gnu")]
fn trim() {
    #[expect(
        unsafe_code,
        reason = "a call into the C library that takes no pointer and that any thread may make; no safe crate has it"
    )]
    // SAFETY: it touches only what the allocator itself holds free, under the allocator's own locks.
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

    /// A policy, and the processor time that its process has used.
    struct Looked(TrimPolicy, Duration);

    impl Looked {
        fn of(resident: u64) -> Self {
            Self(TrimPolicy::new(resident), Duration::ZERO)
        }

        fn look(&mut self, resident: u64, spent: Duration) -> bool {
            self.1 += spent;
            self.0.look(resident, self.1)
        }
    }

    #[test]
    fn growth_is_given_back_once_the_process_is_quiet() {
        let mut it = Looked::of(40 * MIB);
        assert!(!it.look(40 * MIB, IDLE));
        assert!(!it.look(130 * MIB, BUSY));
        assert!(!it.look(120 * MIB, BUSY));
        assert!(it.look(120 * MIB, IDLE));
        it.0.trimmed(45 * MIB);
        assert!(!it.look(45 * MIB, IDLE));
    }

    #[test]
    fn what_is_in_use_is_not_tried_again() {
        let mut it = Looked::of(40 * MIB);
        assert!(it.look(90 * MIB, IDLE));
        it.0.trimmed(90 * MIB);
        assert!((0..10 * BUSY_LOOKS).all(|_| !it.look(91 * MIB, IDLE)));
        // Until it is freed, and more comes.
        assert!(!it.look(50 * MIB, IDLE));
        assert!(it.look(55 * MIB, IDLE));
    }

    #[test]
    fn little_is_not_worth_it() {
        let mut it = Looked::of(40 * MIB);
        assert!((0..10 * BUSY_LOOKS).all(|_| !it.look(40 * MIB + WORTH - 1, BUSY)));
        assert!(!it.look(40 * MIB + WORTH - 1, IDLE));
        assert!(it.look(40 * MIB + WORTH, IDLE));
    }

    #[test]
    fn a_process_that_is_never_quiet_gives_back_once_a_minute() {
        let mut it = Looked::of(40 * MIB);
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
        // Other tests free meanwhile.
        assert!(after > before + (32 << 20), "{before} {after}");
        assert!(held.iter().all(|byte| *byte == 1));
    }

    #[test]
    fn the_thread_ends_when_it_is_dropped() {
        let trimmer = HeapTrimmer::start(|| ()).unwrap();
        drop(trimmer);
    }
}
