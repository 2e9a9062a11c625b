//! A compile child as the daemon sees it: started before it is needed, used once, killed when it is over its budget.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::artifact::Artifact;
use super::lanes::CompileLane;
use super::wire::{self, Failure, Hello, Order, Setup};
use super::{Budget, Failed, compile_limit, crashed};
use crate::refusal::{Refusal, printable};
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
    pub(super) fn inspect(&mut self, wasm: &[u8]) -> Result<Inspection, Failed> {
        let inspected = self.within_budget(|socket| {
            wire::send_module(socket, wasm)?;
            wire::receive::<wire::Inspected>(socket)
        })?;
        inspected.map_err(|why| why.failed(self.lane))
    }

    /// Has it compile what it inspected.
    pub(super) fn compile(mut self, order: &Order) -> Result<Artifact, Failed> {
        let compiled = self.within_budget(|socket| {
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
            .map_err(|error| {
                Failed::this_time(Refusal::internal(format_args!(
                    "taking an artefact: {error}"
                )))
            })
    }

    /// Talks to it for as long as its time lasts.
    fn within_budget<T>(
        &mut self,
        talk: impl FnOnce(&mut Timed<'_>) -> io::Result<T>,
    ) -> Result<T, Failed> {
        let start = Instant::now();
        let until = start + self.patience().saturating_sub(self.spent);
        let mut socket = Timed {
            socket: &self.socket,
            until,
        };
        let said = talk(&mut socket);
        self.spent += start.elapsed();
        said.map_err(|error| {
            if error.kind() == io::ErrorKind::TimedOut {
                self.too_slow()
            } else {
                self.failed(&error)
            }
        })
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

/// A socket that is given up at a moment.
struct Timed<'a> {
    socket: &'a UnixStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
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
        self.socket.set_read_timeout(self.left()?)?;
        self.socket.read(buf).map_err(timed)
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
