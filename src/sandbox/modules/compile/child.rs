//! Drives one compile child: a process that is started before it is needed, used once, stopped by
//! SIGSTOP while another tenant's module is compiled, and killed when it goes over its budget.

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
use super::wire::{self, ChildCompileError, ChildHello, ChildSetup, CompileCommand};
use super::{CompileBudget, CompileError, crashed};
use crate::metrics::{Level, LevelGuard};
use crate::model::refusal::{Reason, Refusal, printable};
use crate::sandbox::modules::compile_limit::compile_limit;
use crate::sandbox::modules::inspection::Inspection;
use crate::store::{SealedFile, create_sealable};

/// The subcommand that makes a process a compile child.
pub const SUBCOMMAND: &str = "compile-child";
/// How long a child may take until it is ready.
const START: Duration = Duration::from_secs(30);
/// Bytes from the end of a child's standard error that go to the log.
const STDERR_TAIL_BYTES: u64 = 2 << 10;
/// What the standard library says before it ends a process that asked for memory in vain, and what
/// other allocators panic with.
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
/// Wall time that a child of the large lane gets, as a multiple of its processor time. A child that
/// is given the processor thus meets the limit on processor time first. That one says something
/// about the module, and the one on wall time about the machine.
const PATIENCE: u32 = 2;
/// How often the daemon checks whether a child that works has to stop for another.
const PREEMPTION_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// The unit in which the kernel counts processor time in `/proc/PID/stat`: a hundredth of a second,
/// on every architecture.
const TICK: Duration = Duration::from_millis(10);

/// A process that compiles one module. Dropping it kills the process and waits for it.
pub(super) struct CompileChild {
    process: std::process::Child,
    socket: UnixStream,
    artifact: File,
    stderr: File,
    budget: CompileBudget,
    lane: CompileLane,
    hello: Option<ChildHello>,
    /// Wall time that the child has worked so far, without the time for which it was stopped.
    spent: Duration,
    /// Processor time that was charged to leases so far.
    charged: Duration,
    /// Counts the child among those that there are.
    _alive: LevelGuard,
}

impl CompileChild {
    /// Starts a child, which makes itself ready without being asked. It counts towards `alive`.
    pub(super) fn spawn(
        program: &Path,
        setup: &ChildSetup,
        budget: CompileBudget,
        lane: CompileLane,
        alive: &Level,
    ) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let artifact = create_sealable("ringfence-artifact")?;
        let stderr = create_sealable("ringfence-complaints")?;
        let process = Command::new(program)
            .arg0("ringfence")
            .arg(SUBCOMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(artifact.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()?;
        let mut child = Self {
            process,
            socket,
            artifact,
            stderr,
            budget,
            lane,
            hello: None,
            spent: Duration::ZERO,
            charged: Duration::ZERO,
            _alive: alive.enter(),
        };
        wire::send(&mut child.socket, setup)?;
        Ok(child)
    }

    /// Waits until the child is ready, which it says once.
    pub(super) fn wait_until_ready(&mut self) -> Result<&ChildHello, String> {
        if self.hello.is_none() {
            let hello = self
                .socket
                .set_read_timeout(Some(START))
                .and_then(|()| wire::receive(&mut self.socket));
            match hello {
                Ok(hello) => self.hello = Some(hello),
                Err(error) => {
                    let (end, words) = (self.end(), self.stderr_tail());
                    return Err(format!(
                        "a compile child did not start: {error}; it {end}: {words}"
                    ));
                }
            }
        }
        // What a child said when it was ready can still be read when it is gone.
        if let Ok(Some(status)) = self.process.try_wait() {
            return Err(format!("a compile child ended while it waited: {status}"));
        }
        self.hello.as_ref().ok_or_else(String::new)
    }

    /// Reports whether somebody else killed the child, as the kernel does when memory runs out.
    pub(super) fn was_killed(&mut self) -> bool {
        let status = self.process.try_wait().ok().flatten();
        status.is_some_and(|status| status.signal() == Some(libc::SIGKILL))
    }

    /// Has the child inspect `wasm`, and waits for the result.
    pub(super) fn inspect(
        &mut self,
        wasm: &[u8],
        lease: &CompileLease,
    ) -> Result<Inspection, CompileError> {
        let inspected = self.within_budget(lease, |socket| {
            wire::send_module(socket, wasm)?;
            wire::receive::<wire::InspectReply>(socket)
        })?;
        inspected.map_err(|why| why.into_compile_error(self.lane))
    }

    /// Has the child compile what it inspected, and takes over the artefact that it wrote.
    pub(super) fn compile(
        mut self,
        order: &CompileCommand,
        lease: &CompileLease,
    ) -> Result<Artifact, CompileError> {
        let compiled = self.within_budget(lease, |socket| {
            wire::send(socket, order)?;
            wire::receive::<wire::CompileReply>(socket)
        })?;
        let took = match compiled {
            Ok(took) => took,
            Err(ChildCompileError::Refused(refusal)) => {
                return Err(CompileError::permanent(refusal));
            }
            Err(ChildCompileError::Panicked(words)) => return Err(self.crashed(&words)),
        };
        // Nobody has the file open for writing once the child is gone: sealing it proves that.
        let _ = self.end();
        let sealed = self.artifact.try_clone().and_then(SealedFile::seal);
        sealed
            .and_then(|sealed| Artifact::from_sealed(sealed, took))
            .map_err(|error| {
                CompileError::transient(Refusal::of_host("taking an artefact", &error))
            })
    }

    /// Talks to the child for as long as its time lasts. That time does not pass while the child is
    /// stopped for another.
    fn within_budget<T>(
        &mut self,
        lease: &CompileLease,
        talk: impl FnOnce(&mut PreemptibleSocket<'_>) -> io::Result<T>,
    ) -> Result<T, CompileError> {
        let start = Instant::now();
        let mut socket = PreemptibleSocket {
            socket: &self.socket,
            deadline: start + self.wall_time_limit().saturating_sub(self.spent),
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
                // This is refused as when the daemon shuts down. The child is killed when it is
                // dropped.
                let message = "nobody waits for the module any more";
                CompileError::transient(Refusal::new(Reason::ShuttingDown, message))
            } else if error.kind() == io::ErrorKind::TimedOut {
                self.too_slow()
            } else {
                self.failed(&error)
            }
        })
    }

    /// Charges the processor time that the child has taken since the last charge, its start
    /// included, because nobody else uses it. If the host does not tell, the wall time for which it
    /// `worked` is charged.
    fn charge(&mut self, lease: &CompileLease, worked: Duration) {
        let taken = processor_time(self.process.id()).unwrap_or(self.charged + worked);
        lease.charge(taken.saturating_sub(self.charged));
        self.charged = self.charged.max(taken);
    }

    /// Returns how much wall time the child may take, whatever share of the processor it gets.
    fn wall_time_limit(&self) -> Duration {
        match self.lane {
            // Other modules wait, and this one can start again in the large lane.
            CompileLane::Small => self.budget.timeout,
            CompileLane::Large => self.budget.timeout * PATIENCE,
        }
    }

    /// Kills the child at the end of its wall time, and builds the error for that.
    fn too_slow(&mut self) -> CompileError {
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
        CompileError::transient(over).over_budget_of(self.lane)
    }

    fn over_time(&self, message: &str) -> Refusal {
        let allowed = humantime::format_duration(self.budget.timeout);
        compile_limit("compile.timeout", message.to_owned(), allowed)
    }

    /// Builds the error for a child that ended in the middle of a conversation.
    fn failed(&mut self, error: &io::Error) -> CompileError {
        // Whatever is wrong with the conversation, a child that is still there is of no use.
        let status = self.wait();
        let words = self.stderr_tail();
        if status.is_some_and(|status| status.signal() == Some(libc::SIGXCPU)) {
            let message = "compiling the module took too much processor time";
            return CompileError::permanent(self.over_time(message)).over_budget_of(self.lane);
        }
        let signal = status.and_then(|status| status.signal());
        let ended_itself = signal.is_some_and(|signal| OF_ITS_OWN_DOING.contains(&signal));
        if ended_itself || OUT_OF_MEMORY.iter().any(|said| words.contains(said)) {
            return self.crashed(&words);
        }
        if signal == Some(libc::SIGKILL) {
            // Nobody here killed the child: the kernel did, which kills compile children first when
            // a host runs out of memory.
            let message = "the host ran out of memory while the module was compiled".to_owned();
            return CompileError::transient(self.over_memory(message));
        }
        let end = described(status);
        CompileError::transient(Refusal::internal(format_args!(
            "a compile child {end} ({error}); it said: {words}"
        )))
    }

    /// Builds the error for a compiler that panicked, or that ended its process by a signal of its
    /// own doing. `words` is what it said last.
    fn crashed(&self, words: &str) -> CompileError {
        if OUT_OF_MEMORY.iter().any(|said| words.contains(said)) {
            let message = "compiling the module took too much memory".to_owned();
            return CompileError::permanent(self.over_memory(message)).over_budget_of(self.lane);
        }
        CompileError::permanent(crashed(words))
    }

    fn over_memory(&self, message: String) -> Refusal {
        let allowed = bytesize::ByteSize(self.budget.memory).display().iec();
        compile_limit("compile.memory", message, allowed)
    }

    /// Kills the child if it is still there, and says how it ended.
    fn end(&mut self) -> String {
        // A child that has ended cannot be killed, and need not be.
        let _ = self.process.kill();
        described(self.wait())
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        // The child says no more: either it is ending by itself or it hangs. It gets a moment, so
        // that its own end is what is seen.
        let deadline = Instant::now() + Duration::from_millis(500);
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = self.process.kill();
        self.process.wait().ok()
    }

    fn stderr_tail(&mut self) -> String {
        let mut words = Vec::new();
        let read = self.stderr.metadata().and_then(|metadata| {
            let from = metadata.len().saturating_sub(STDERR_TAIL_BYTES);
            self.stderr.seek(SeekFrom::Start(from))?;
            (&self.stderr)
                .take(STDERR_TAIL_BYTES)
                .read_to_end(&mut words)
        });
        match read {
            Ok(_) => printable(String::from_utf8_lossy(&words).trim()),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for CompileChild {
    fn drop(&mut self) {
        // A child is never used again. One that has ended is only waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn described(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "is gone".to_owned(), |status| format!("ended: {status}"))
}

/// Returns the processor time of a process that has not been waited for, including threads that
/// have ended. The kernel tells whole ticks: a part of a tick counts as one, so that many small
/// modules are not free.
fn processor_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The process's name may contain anything, and stands in parentheses.
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    let whole = ticks()?.saturating_add(ticks()?);
    Some(TICK * whole.saturating_add(1))
}

/// A socket to a child that gives up at a deadline. While it waits to read, it stops the child for
/// another compilation when it has to, and moves the deadline by as much.
struct PreemptibleSocket<'a> {
    socket: &'a UnixStream,
    deadline: Instant,
    pid: Pid,
    lease: &'a CompileLease,
    /// How long the child was stopped.
    stopped: Duration,
}

impl PreemptibleSocket<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }

    /// Stops the child if it is to stop for another, and lets it go on when it may.
    ///
    /// # Errors
    /// `ConnectionAborted` where nobody wants the module any more, and those of the signals.
    fn stop_if_preempted(&mut self) -> io::Result<()> {
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

/// Converts the error of a socket's own timeout, which says that it would block.
fn timed(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock {
        io::ErrorKind::TimedOut.into()
    } else {
        error
    }
}

impl Read for PreemptibleSocket<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let look = self.left()?.map(|left| left.min(PREEMPTION_CHECK_INTERVAL));
            self.socket.set_read_timeout(look)?;
            match self.socket.read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stop_if_preempted()?
                }
                read => return read,
            }
        }
    }
}

impl io::Write for PreemptibleSocket<'_> {
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

    /// Returns what the kernel says that a process does: "S" where it waits, "T" where it is
    /// stopped.
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
        let mut socket = PreemptibleSocket {
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
