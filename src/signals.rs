//! Signal handling: what each signal does to the daemon, from its first instruction to its last,
//! whether or not it is the first process of its PID namespace, and whatever it was started with
//! blocked or ignored.
//!
//! | signal | while it starts | while it serves | while it drains |
//! |---|---|---|---|
//! | TERM, INT | ends, exit 0 | drains | ends at once, exit 143 or 130 |
//! | QUIT | ends at once, exit 131 | the same | the same |
//! | HUP | reads again once it serves | reads again what can be | the same |
//! | TTIN, TTOU | blocked | blocked | blocked |
//! | all others that would end a process | told in the log | the same | the same |
//!
//! Signals that say that the program itself is broken (ABRT, BUS, FPE, ILL, SEGV, SYS, TRAP) end
//! it, as do KILL and the hard limit of processor time. TSTP and STOP stop it until CONT.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts;
use signal_hook::flag::register_conditional_shutdown;
use signal_hook::low_level::{exit, signal_name};
use tokio::sync::{Notify, watch};

use crate::telemetry::LogFlusher;

/// The exit code of a process that a signal ended, by the convention of shells, is this plus the
/// signal's number.
const ENDED_BY_SIGNAL: i32 = 128;
/// A second signal to end that comes within this time of the first is the same request:
/// `timeout(1)` and shells signal both a process and its group.
const DUPLICATE_SIGNAL_WINDOW: Duration = Duration::from_millis(10);
/// How long a daemon that is starting may take to stop in an orderly way: something that blocks it
/// may last.
const STOPPING: Duration = Duration::from_millis(300);
/// How long the immediate end of the daemon waits for the log to be written.
const LAST_LINES: Duration = Duration::from_millis(100);
/// How often, at most, a signal that does nothing is logged.
const TOLD_AGAIN: Duration = Duration::from_secs(10);

/// Signals that would end a process that does not catch them, apart from those that have a meaning
/// here.
const IGNORED_SIGNALS: [i32; 10] = [
    consts::SIGUSR1,
    consts::SIGUSR2,
    consts::SIGALRM,
    consts::SIGVTALRM,
    consts::SIGPROF,
    consts::SIGIO,
    consts::SIGXFSZ,
    consts::SIGXCPU,
    libc::SIGSTKFLT,
    libc::SIGPWR,
];

/// The phase of a daemon that is starting: a signal to end just ends it. Phases are numbers so that
/// they fit into an atomic.
const STARTING: u8 = 0;
/// The phase of a daemon that has begun to serve: a signal to end drains it.
const SERVING: u8 = 1;
/// The phase of a daemon that was told to end before it served.
const STOPPED: u8 = 2;

/// The signals that are caught, and queued until [`Self::watch`] handles them.
pub struct CaughtSignals {
    caught: signal_hook::iterator::Signals,
    /// Whether a signal to end exits the process directly in the signal handler.
    ends_at_once: Arc<AtomicBool>,
}

impl CaughtSignals {
    /// Catches signals from now on. Until [`Self::watch`] is called, a signal to end exits the
    /// process at once, even while it is blocked: nothing has begun that would have to be ended.
    ///
    /// It must be called before any other thread exists, since threads inherit the mask of blocked
    /// signals.
    ///
    /// # Errors
    /// The host refuses a system call, which the error names.
    pub fn catch() -> io::Result<Self> {
        // Whoever started this process may have blocked other signals, so the whole mask is
        // replaced. TTIN and TTOU are blocked so that a background process that uses its terminal
        // is not stopped: its log is worth more.
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGTTIN);
        blocked.add(Signal::SIGTTOU);
        blocked.thread_set_mask().map_err(named("sigprocmask(2)"))?;
        let ends_at_once = Arc::new(AtomicBool::new(true));
        let quit = ENDED_BY_SIGNAL + consts::SIGQUIT;
        for (signal, code) in [
            (consts::SIGTERM, 0),
            (consts::SIGINT, 0),
            (consts::SIGQUIT, quit),
        ] {
            register_conditional_shutdown(signal, code, Arc::clone(&ends_at_once))?;
        }
        // The library makes this call next. It is tried here so that the error can name the call
        // that a host refuses.
        drop(UnixStream::pair().map_err(named("socketpair(2)"))?);
        let meaning = [
            consts::SIGTERM,
            consts::SIGINT,
            consts::SIGQUIT,
            consts::SIGHUP,
            // SIGCHLD is caught for nothing but that it is not ignored: the end of a child could
            // not be noticed then.
            consts::SIGCHLD,
        ];
        let caught =
            signal_hook::iterator::Signals::new(meaning.into_iter().chain(IGNORED_SIGNALS))?;
        for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
            match caught.add_signal(signal) {
                // A program that runs this process may keep the signal for itself, as valgrind does
                // with the last one; then it never comes.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                added => added?,
            }
        }
        Ok(Self {
            caught,
            ends_at_once,
        })
    }

    /// Starts the thread that handles signals. The thread calls `on_thread` first, and has the log
    /// written before it ends the process.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub fn watch(self, log: LogFlusher, on_thread: fn()) -> io::Result<SignalRequests> {
        let Self {
            mut caught,
            ends_at_once,
        } = self;
        let (end, end_asked) = watch::channel(false);
        let requests = SignalRequests {
            phase: Arc::default(),
            end_asked,
            reload: Arc::default(),
        };
        let mut watcher = SignalHandler {
            phase: Arc::clone(&requests.phase),
            reload: Arc::clone(&requests.reload),
            end,
            end_since: None,
            log,
            told: HashMap::new(),
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                on_thread();
                ends_at_once.store(false, Ordering::SeqCst);
                for signal in caught.forever() {
                    watcher.handle(signal);
                }
            })?;
        Ok(requests)
    }
}

/// Creates a function that adds to an error which system call the host does not allow.
fn named<E: Into<io::Error>>(call: &'static str) -> impl Fn(E) -> io::Error {
    move |error| {
        let error = error.into();
        io::Error::new(
            error.kind(),
            format!("this host does not allow {call}: {error}"),
        )
    }
}

/// The requests that signals make of the daemon, as futures.
#[derive(Clone)]
pub struct SignalRequests {
    phase: Arc<AtomicU8>,
    end_asked: watch::Receiver<bool>,
    reload: Arc<Notify>,
}

impl SignalRequests {
    /// Waits until the daemon is to end before it has ever served.
    pub async fn stopped_while_starting(&self) {
        self.end_asked().await;
        if self.phase.load(Ordering::SeqCst) != STOPPED {
            std::future::pending().await
        }
    }

    /// Records that the daemon serves from now on, and waits until it is to drain.
    pub async fn drain(&self) {
        let served =
            self.phase
                .compare_exchange(STARTING, SERVING, Ordering::SeqCst, Ordering::SeqCst);
        if served.is_err() {
            // The daemon was told to end while it started; [`Self::stopped_while_starting`] ends
            // it.
            return std::future::pending().await;
        }
        self.end_asked().await;
    }

    /// Waits until files are to be read again. Any number of signals since the last time count as
    /// one.
    pub async fn reload(&self) {
        self.reload.notified().await;
    }

    /// Waits until a signal to end has come.
    async fn end_asked(&self) {
        let mut asked = self.end_asked.clone();
        if asked.wait_for(|asked| *asked).await.is_err() {
            // The thread that would say so has ended.
            std::future::pending().await
        }
    }
}

/// The handler of signals, on a thread of its own so that nothing that blocks the daemon delays it.
struct SignalHandler {
    phase: Arc<AtomicU8>,
    reload: Arc<Notify>,
    end: watch::Sender<bool>,
    /// When the first signal to end came; `None` if none has.
    end_since: Option<Instant>,
    log: LogFlusher,
    /// When each signal that does nothing was last logged.
    told: HashMap<i32, Instant>,
}

impl SignalHandler {
    /// Does what one signal asks for.
    fn handle(&mut self, signal: i32) {
        match signal {
            consts::SIGTERM | consts::SIGINT => self.end(signal),
            consts::SIGQUIT => self.end_at_once(signal),
            consts::SIGHUP => self.reload.notify_one(),
            consts::SIGCHLD => {}
            _ => self.ignore(signal),
        }
    }

    /// Ends a daemon that is starting, and drains one that serves. A second signal ends it at once.
    fn end(&mut self, signal: i32) {
        if let Some(since) = self.end_since {
            if since.elapsed() < DUPLICATE_SIGNAL_WINDOW {
                return;
            }
            self.end_at_once(signal);
        }
        self.end_since = Some(Instant::now());
        let signal = name(signal);
        let stopped =
            self.phase
                .compare_exchange(STARTING, STOPPED, Ordering::SeqCst, Ordering::SeqCst);
        if stopped.is_err() {
            tracing::info!(signal, "draining; a second signal ends the daemon at once");
            self.end.send_replace(true);
            return;
        }
        tracing::info!(
            signal,
            "ending: the daemon was starting, and has run nothing"
        );
        self.end.send_replace(true);
        std::thread::sleep(STOPPING);
        self.exit(0);
    }

    /// Ends the process without draining, with the exit code of this signal.
    fn end_at_once(&self, signal: i32) -> ! {
        tracing::warn!(signal = name(signal), "ending at once");
        self.exit(ENDED_BY_SIGNAL + signal)
    }

    /// Exits the process after giving the log a moment to be written.
    fn exit(&self, code: i32) -> ! {
        self.log.flush(LAST_LINES);
        // The destructors of libraries do not run, since other threads may be using the libraries.
        exit(code)
    }

    /// Logs a signal that has no effect, at most once in [`TOLD_AGAIN`].
    fn ignore(&mut self, signal: i32) {
        let now = Instant::now();
        let told = self.told.get(&signal);
        if told.is_some_and(|at| now.duration_since(*at) < TOLD_AGAIN) {
            return;
        }
        self.told.insert(signal, now);
        let name = name(signal);
        match signal {
            consts::SIGXFSZ => tracing::warn!(
                signal = name,
                "a file may grow no further (RLIMIT_FSIZE, ulimit -f): what was to be written to it failed"
            ),
            consts::SIGXCPU => tracing::warn!(
                signal = name,
                "the daemon has used the processor time that it may have (RLIMIT_CPU, ulimit -t): the kernel kills it at the hard limit"
            ),
            _ => tracing::info!(
                signal = name,
                "a signal that means nothing here; it goes on"
            ),
        }
    }
}

/// Returns the name of a signal as `kill` takes it.
fn name(signal: i32) -> String {
    match signal_name(signal) {
        Some(name) => name.to_owned(),
        None if signal == libc::SIGSTKFLT => "SIGSTKFLT".to_owned(),
        None if signal == libc::SIGPWR => "SIGPWR".to_owned(),
        None if signal >= libc::SIGRTMIN() => format!("SIGRTMIN+{}", signal - libc::SIGRTMIN()),
        None => format!("signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_names_that_kill_takes() {
        assert_eq!(name(consts::SIGTERM), "SIGTERM");
        assert_eq!(name(libc::SIGRTMIN() + 3), "SIGRTMIN+3");
        assert_eq!(name(libc::SIGSTKFLT), "SIGSTKFLT");
    }
}
