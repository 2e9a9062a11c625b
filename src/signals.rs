//! Signals: what each does to the daemon, from its first instruction to its last, whether or not it is
//! the first process of its namespace, and whatever it was started with blocked or ignored.
//!
//! | signal | while it starts | while it serves | while it drains |
//! |---|---|---|---|
//! | TERM, INT | ends, exit 0 | drains | ends at once, exit 143 or 130 |
//! | QUIT | ends at once, exit 131 | the same | the same |
//! | HUP | reads again once it serves | reads again what can be | the same |
//! | TTIN, TTOU | blocked | blocked | blocked |
//! | all others that would end a process | told in the log | the same | the same |
//!
//! Those that say that the program itself is broken (ABRT, BUS, FPE, ILL, SEGV, SYS, TRAP) end it, as do
//! KILL and a hard limit of processor time. TSTP and STOP stop it until CONT.

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

use crate::telemetry::LogFlush;

/// What a shell says of a process that a signal ended is this and the signal's number.
const ENDED_BY_SIGNAL: i32 = 128;
/// A signal to end that comes so soon after the first is the same request: `timeout(1)` and shells tell a process and its
/// group.
const SAME_REQUEST: Duration = Duration::from_millis(10);
/// How long a daemon that is starting may take to stop in an orderly way: what blocks it may last.
const STOPPING: Duration = Duration::from_millis(300);
/// How long an end at once waits for the log to be written.
const LAST_LINES: Duration = Duration::from_millis(100);
/// How often a signal that does nothing is told again.
const TOLD_AGAIN: Duration = Duration::from_secs(10);

/// Signals that would end a process that does not catch them, beside those that mean something here.
const MEANINGLESS: [i32; 10] = [
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

/// The phases that a signal tells apart.
const STARTING: u8 = 0;
const SERVING: u8 = 1;
const STOPPED: u8 = 2;

/// Signals that are caught, and kept until somebody watches for them.
pub struct CaughtSignals {
    caught: signal_hook::iterator::Signals,
    /// Whether a signal to end ends the process right in its handler.
    ends_at_once: Arc<AtomicBool>,
}

impl CaughtSignals {
    /// Catches them from now on. As long as nobody watches, one that asks for the end gets it in the
    /// same moment, also while the process is blocked: nothing has begun that would have to be ended.
    ///
    /// To be called before any other thread is there: what is blocked is inherited by threads.
    ///
    /// # Errors
    /// Where the host refuses what it takes, which the error names.
    pub fn catch() -> io::Result<Self> {
        // Whoever started this process may have had others blocked. A reader or writer of a terminal
        // in the background is not stopped: its log is worth more.
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
        // What the library does next, by the name of the call that a host may refuse.
        drop(UnixStream::pair().map_err(named("socketpair(2)"))?);
        let meaning = [
            consts::SIGTERM,
            consts::SIGINT,
            consts::SIGQUIT,
            consts::SIGHUP,
            // For nothing, but that it is not ignored: the end of a child could not be told then.
            consts::SIGCHLD,
        ];
        let caught = signal_hook::iterator::Signals::new(meaning.into_iter().chain(MEANINGLESS))?;
        for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
            match caught.add_signal(signal) {
                // What runs this process keeps it for itself, as valgrind does the last: it never comes.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                added => added?,
            }
        }
        Ok(Self {
            caught,
            ends_at_once,
        })
    }

    /// Starts the thread that does what signals ask for; it begins with `on_thread`, and has the log
    /// written before it ends the process.
    ///
    /// # Errors
    /// Where the host refuses a thread.
    pub fn watch(self, log: LogFlush, on_thread: fn()) -> io::Result<SignalRequests> {
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
        let mut watcher = Watcher {
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
                    watcher.take(signal);
                }
            })?;
        Ok(requests)
    }
}

fn named<E: Into<io::Error>>(call: &'static str) -> impl Fn(E) -> io::Error {
    move |error| {
        let error = error.into();
        io::Error::new(
            error.kind(),
            format!("this host does not allow {call}: {error}"),
        )
    }
}

/// What signals ask of the daemon.
#[derive(Clone)]
pub struct SignalRequests {
    phase: Arc<AtomicU8>,
    end_asked: watch::Receiver<bool>,
    reload: Arc<Notify>,
}

impl SignalRequests {
    /// Resolves when the daemon is to end before it has ever served.
    pub async fn stopped_while_starting(&self) {
        self.end_asked().await;
        if self.phase.load(Ordering::SeqCst) != STOPPED {
            std::future::pending().await
        }
    }

    /// Says that the daemon serves from now on, and resolves when it is to drain.
    pub async fn drain(&self) {
        let served =
            self.phase
                .compare_exchange(STARTING, SERVING, Ordering::SeqCst, Ordering::SeqCst);
        if served.is_err() {
            // Whoever waits for that ends it.
            return std::future::pending().await;
        }
        self.end_asked().await;
    }

    /// Resolves when files are to be read again, once for any number of signals since it did last.
    pub async fn reload(&self) {
        self.reload.notified().await;
    }

    async fn end_asked(&self) {
        let mut asked = self.end_asked.clone();
        if asked.wait_for(|asked| *asked).await.is_err() {
            // The thread that would say so is gone.
            std::future::pending().await
        }
    }
}

/// Does what signals ask for, on a thread of its own, so that nothing that blocks the daemon keeps them
/// from it.
struct Watcher {
    phase: Arc<AtomicU8>,
    reload: Arc<Notify>,
    end: watch::Sender<bool>,
    /// When that was asked for first.
    end_since: Option<Instant>,
    log: LogFlush,
    /// When each that does nothing was told last.
    told: HashMap<i32, Instant>,
}

impl Watcher {
    fn take(&mut self, signal: i32) {
        match signal {
            consts::SIGTERM | consts::SIGINT => self.end(signal),
            consts::SIGQUIT => self.end_at_once(signal),
            consts::SIGHUP => self.reload.notify_one(),
            consts::SIGCHLD => {}
            _ => self.ignore(signal),
        }
    }

    fn end(&mut self, signal: i32) {
        if let Some(since) = self.end_since {
            if since.elapsed() < SAME_REQUEST {
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

    fn end_at_once(&self, signal: i32) -> ! {
        tracing::warn!(signal = name(signal), "ending at once");
        self.exit(ENDED_BY_SIGNAL + signal)
    }

    fn exit(&self, code: i32) -> ! {
        self.log.flush(LAST_LINES);
        // Without the destructors of libraries, which others may be using.
        exit(code)
    }

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
