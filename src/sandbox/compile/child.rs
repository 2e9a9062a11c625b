//! A compile child as the daemon sees it: started before it is needed, used once, killed when it is over its budget.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::artifact::Artifact;
use super::lanes::CompileLane;
use super::lease::CompileLease;
use super::wire::{self, Failure, Hello, Order, Setup};
use super::{Budget, Failed, compile_limit, crashed};
use crate::refusal::{Reason, Refusal, printable};
use crate::sandbox::inspection::Inspection;
use crate::store::{Sealed, unsealed};

/// The subcommand that makes a process a compile child.
pub const SUBCOMMAND: &str = "compile-child";
/// How long a child may take until it is ready.
const START: Duration = Duration::from_secs(30);
/// Bytes of what a child said last that go to the log.
const LAST_WORDS: u64 = 2 << 10;
/// What the standard library says before it ends a process that asked for memory in vain, and what allocators of
/// others panic with.
const OUT_OF_MEMORY: [&str; 2] = ["memory allocation of ", "out of memory"];
/// Signals that end a process for what it did itself: it called abort, overflowed its stack, or was
/// denied a system call that no compiler makes.
const OF_ITS_OWN_DOING: [i32; 6] = [
    libc::SIGABRT,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
];
/// How many times its processor time a child of the large lane gets in wall time, so that one that is given the processor
/// meets that limit first: it says something about the module, and this one about the machine.
const PATIENCE: u32 = 2;
/// How often a child that works is looked after: whether it has to stop for another.
const LOOK: Duration = Duration::from_millis(50);
/// What the kernel counts processor time in, in `/proc/PID/stat`: a hundredth of a second, on every architecture.
const TICK: Duration = Duration::from_millis(10);

/// A process that compiles one module.
pub(super) struct Child {
    process: std::process::Child,
    socket: UnixStream,
    artifact: File,
    complaints: File,
    budget: Budget,
    lane: CompileLane,
    hello: Option<Hello>,
    /// What it took of its time.
    spent: Duration,
    /// Processor time that it was charged for.
    charged: Duration,
}

impl Child {
    /// Starts one. It makes itself ready by itself.
    pub(super) fn spawn(
        program: &Path,
        setup: &Setup,
        budget: Budget,
        lane: CompileLane,
    ) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let artifact = unsealed("ringfence-artifact")?;
        let complaints = unsealed("ringfence-complaints")?;
        let process = Command::new(program)
            .arg0("ringfence")
            .arg(SUBCOMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(artifact.try_clone()?)
            .stderr(complaints.try_clone()?)
            .spawn()?;
        let mut child = Self {
            process,
            socket,
            artifact,
            complaints,
            budget,
            lane,
            hello: None,
            spent: Duration::ZERO,
            charged: Duration::ZERO,
        };
        wire::send(&mut child.socket, setup)?;
        Ok(child)
    }

    /// Waits for it to be ready, which it says once.
    pub(super) fn ready(&mut self) -> Result<&Hello, String> {
        if self.hello.is_none() {
            let hello = self
                .socket
                .set_read_timeout(Some(START))
                .and_then(|()| wire::receive(&mut self.socket));
            match hello {
                Ok(hello) => self.hello = Some(hello),
                Err(error) => {
                    let (end, words) = (self.end(), self.last_words());
                    return Err(format!(
                        "a compile child did not start: {error}; it {end}: {words}"
                    ));
                }
            }
        }
        // What it said when it was ready can still be read when it is gone.
        if let Ok(Some(status)) = self.process.try_wait() {
            return Err(format!("a compile child ended while it waited: {status}"));
        }
        self.hello.as_ref().ok_or_else(String::new)
    }

    /// Whether somebody else killed it, as the kernel does when memory runs out.
    pub(super) fn was_killed(&mut self) -> bool {
        let status = self.process.try_wait().ok().flatten();
        status.is_some_and(|status| status.signal() == Some(libc::SIGKILL))
    }

    /// Has it inspect `wasm`.
    pub(super) fn inspect(
        &mut self,
        wasm: &[u8],
        lease: &CompileLease,
    ) -> Result<Inspection, Failed> {
        let inspected = self.within_budget(lease, |socket| {
            wire::send_module(socket, wasm)?;
            wire::receive::<wire::Inspected>(socket)
        })?;
        inspected.map_err(|why| why.failed(self.lane))
    }

    /// Has it compile what it inspected.
    pub(super) fn compile(
        mut self,
        order: &Order,
        lease: &CompileLease,
    ) -> Result<Artifact, Failed> {
        let compiled = self.within_budget(lease, |socket| {
            wire::send(socket, order)?;
            wire::receive::<wire::Compiled>(socket)
        })?;
        let took = match compiled {
            Ok(took) => took,
            Err(Failure::Refused(refusal)) => return Err(Failed::for_good(refusal)),
            Err(Failure::Panicked(words)) => return Err(self.crashed(&words)),
        };
        // Nobody has it open to write once the child is gone: sealing it proves that.
        let _ = self.end();
        let sealed = self.artifact.try_clone().and_then(Sealed::seal);
        sealed
            .and_then(|sealed| Artifact::sealed(sealed, took))
            .map_err(|error| Failed::this_time(Refusal::of_host("taking an artefact", &error)))
    }

    /// Talks to it for as long as its time lasts, which does not pass while it is stopped for another.
    fn within_budget<T>(
        &mut self,
        lease: &CompileLease,
        talk: impl FnOnce(&mut Timed<'_>) -> io::Result<T>,
    ) -> Result<T, Failed> {
        let start = Instant::now();
        let mut socket = Timed {
            socket: &self.socket,
            deadline: start + self.patience().saturating_sub(self.spent),
            pid: Pid::from_child(&self.process),
            lease,
            stopped: Duration::ZERO,
        };
        lease.set_preemptible(self.lane == CompileLane::Large);
        let said = talk(&mut socket);
        lease.set_preemptible(false);
        let worked = start.elapsed().saturating_sub(socket.stopped);
        self.spent += worked;
        self.charge(lease, worked);
        said.map_err(|error| {
            if lease.has_ended() {
                // As when the daemon ends. The child is killed where it is dropped.
                let message = "nobody waits for the module any more";
                Failed::this_time(Refusal::new(Reason::ShuttingDown, message))
            } else if error.kind() == io::ErrorKind::TimedOut {
                self.too_slow()
            } else {
                self.failed(&error)
            }
        })
    }

    /// Charges what it took of the processor since it was charged last, its start included: nobody else uses it. Where
    /// the host does not say, that is for how long it `worked`.
    fn charge(&mut self, lease: &CompileLease, worked: Duration) {
        let taken = processor_time(self.process.id()).unwrap_or(self.charged + worked);
        lease.charge(taken.saturating_sub(self.charged));
        self.charged = self.charged.max(taken);
    }

    /// How long it may take, whatever it gets of the processor.
    fn patience(&self) -> Duration {
        match self.lane {
            // Others wait, and it can start again in the large lane.
            CompileLane::Small => self.budget.timeout,
            CompileLane::Large => self.budget.timeout * PATIENCE,
        }
    }

    /// Kills it at the end of its time.
    fn too_slow(&mut self) -> Failed {
        // What it has done so far says nothing about the module: it did not get the processor.
        let end = self.end();
        match self.lane {
            CompileLane::Small => tracing::debug!("a module has outgrown the small compile lane"),
            CompileLane::Large => tracing::warn!(
                %end,
                "a compile child did not get its processor time within twice compile.timeout"
            ),
        }
        let message = "compiling the module did not get its processor time in twice as long";
        let over = self.over_time(message);
        Failed::this_time(over).over_budget_of(self.lane)
    }

    fn over_time(&self, message: &str) -> Refusal {
        let allowed = humantime::format_duration(self.budget.timeout);
        compile_limit("compile.timeout", message.to_owned(), allowed)
    }

    /// Tells why a child ended in the middle of a conversation.
    fn failed(&mut self, error: &io::Error) -> Failed {
        // Whatever is wrong with the conversation, a child that is still there is of no use.
        let status = self.wait();
        let words = self.last_words();
        if status.is_some_and(|status| status.signal() == Some(libc::SIGXCPU)) {
            let message = "compiling the module took too much processor time";
            return Failed::for_good(self.over_time(message)).over_budget_of(self.lane);
        }
        let signal = status.and_then(|status| status.signal());
        let ended_itself = signal.is_some_and(|signal| OF_ITS_OWN_DOING.contains(&signal));
        if ended_itself || OUT_OF_MEMORY.iter().any(|said| words.contains(said)) {
            return self.crashed(&words);
        }
        if signal == Some(libc::SIGKILL) {
            // Nobody here killed it: the kernel did, as it does first with these when a host runs out of memory.
            let message = "the host ran out of memory while the module was compiled".to_owned();
            return Failed::this_time(self.over_memory(message));
        }
        let end = described(status);
        Failed::this_time(Refusal::internal(format_args!(
            "a compile child {end} ({error}); it said: {words}"
        )))
    }

    /// Tells what a compiler died of that panicked, or ended its process by a signal of its own doing.
    fn crashed(&self, words: &str) -> Failed {
        if OUT_OF_MEMORY.iter().any(|said| words.contains(said)) {
            let message = "compiling the module took too much memory".to_owned();
            return Failed::for_good(self.over_memory(message)).over_budget_of(self.lane);
        }
        Failed::for_good(crashed(words))
    }

    fn over_memory(&self, message: String) -> Refusal {
        let allowed = bytesize::ByteSize(self.budget.memory).display().iec();
        compile_limit("compile.memory", message, allowed)
    }

    /// Kills it if it is still there, and tells how it ended.
    fn end(&mut self) -> String {
        // One that has ended cannot be killed, and need not.
        let _ = self.process.kill();
        described(self.wait())
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        // It speaks no more: either it is ending by itself or it hangs. A moment, so that its own end is what is seen.
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = self.process.kill();
        self.process.wait().ok()
    }

    fn last_words(&mut self) -> String {
        let mut words = Vec::new();
        let read = self.complaints.metadata().and_then(|metadata| {
            let from = metadata.len().saturating_sub(LAST_WORDS);
            self.complaints.seek(SeekFrom::Start(from))?;
            (&self.complaints).take(LAST_WORDS).read_to_end(&mut words)
        });
        match read {
            Ok(_) => printable(String::from_utf8_lossy(&words).trim()),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // A child is never used again; one that has ended is only waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn described(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "is gone".to_owned(), |status| format!("ended: {status}"))
}

/// The processor time of a process that has not been waited for, threads that have ended included. The kernel tells whole
/// ticks: what is less counts as one, so that many small modules are not free.
fn processor_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name may hold anything, and stands in parentheses.
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    let whole = ticks()?.saturating_add(ticks()?);
    Some(TICK * whole.saturating_add(1))
}

/// A socket that is given up at a moment. While it is waited for, the child stops for another where it has to.
struct Timed<'a> {
    socket: &'a UnixStream,
    deadline: Instant,
    pid: Pid,
    lease: &'a CompileLease,
    /// For how long it was stopped.
    stopped: Duration,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }

    /// Stops the child where it is to stop for another, and lets it go on when it may.
    fn give_way(&mut self) -> io::Result<()> {
        if self.lease.is_asked_to_stop() {
            let start = Instant::now();
            kill_process(self.pid, Signal::STOP)?;
            self.lease.wait_until_resumed();
            kill_process(self.pid, Signal::CONT)?;
            let stopped = start.elapsed();
            self.stopped += stopped;
            self.deadline += stopped;
        }
        if self.lease.has_ended() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

/// A socket's own timeout says that it would block.
fn timed(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock {
        io::ErrorKind::TimedOut.into()
    } else {
        error
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let look = self.left()?.map(|left| left.min(LOOK));
            self.socket.set_read_timeout(look)?;
            match self.socket.read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.give_way()?,
                read => return read,
            }
        }
    }
}

impl io::Write for Timed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        self.socket.write(buf).map_err(timed)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What the kernel says a process does: "S" where it waits, "T" where it is stopped.
    fn state(pid: u32) -> String {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, after_name) = stat.rsplit_once(") ").unwrap();
        after_name[..1].to_owned()
    }

    #[test]
    fn a_child_that_is_stopped_for_another_has_as_much_time_left_when_it_goes_on() {
        const LEFT: Duration = Duration::from_secs(2);
        let mut process = Command::new("sleep").arg("600").spawn().unwrap();
        let id = process.id();
        let (socket, mut theirs) = UnixStream::pair().unwrap();
        let states = Arc::new(Mutex::new(Vec::new()));
        let (seen, stops) = (Arc::clone(&states), AtomicU32::new(0));
        let lease = CompileLease::new(move || {
            if stops.fetch_add(1, Ordering::SeqCst) == 0 {
                return;
            }
            seen.lock().unwrap().push(state(id));
        });
        lease.ask_to_stop();
        let start = Instant::now();
        let mut socket = Timed {
            socket: &socket,
            deadline: start + LEFT,
            pid: Pid::from_child(&process),
            lease: &lease,
            stopped: Duration::ZERO,
        };
        let resumed = Arc::clone(&lease);
        let writes = std::thread::spawn(move || {
            while start.elapsed() < LEFT + Duration::from_millis(200) {
                std::thread::sleep(Duration::from_millis(10));
            }
            resumed.resume();
            theirs.write_all(b"x").unwrap();
        });
        let mut byte = [0];
        let read = socket.read(&mut byte);
        assert_eq!(read.unwrap(), 1, "its time was not over");
        assert!(socket.stopped >= LEFT);
        writes.join().unwrap();
        let states = states.lock().unwrap();
        assert!(
            !states.is_empty() && states.iter().all(|it| it == "T"),
            "{states:?}"
        );
        assert_ne!(state(id), "T", "it goes on");
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
