//! The queue of log lines on their way to standard error. Lines are gathered and written by a
//! thread of their own, so that nobody who logs waits, and a busy daemon wakes that thread forty
//! times a second rather than once per line. Lines that find no room are dropped and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use super::audit_writer::StderrMutex;
use crate::sync::lock;

/// How long lines are gathered before they are written: a delay that a reader of the log does not
/// notice.
const GATHER: Duration = Duration::from_millis(25);
/// The most bytes that wait for a slow reader of standard error. Lines beyond that are dropped and
/// counted.
const BUFFER: usize = 4 << 20;
/// Bytes of a buffer's capacity that are kept for the next lines.
const KEPT: usize = 64 << 10;
/// How long the end of the daemon waits for the remaining lines to be read.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The sending side of the log queue.
#[derive(Clone)]
pub(super) struct LogQueue(Arc<LogBacklog>);

/// What the threads that log share with the thread that writes.
#[derive(Default)]
struct LogBacklog {
    state: Mutex<State>,
    /// Wakes the thread that writes: there is something to write, or the end has come. Also wakes
    /// those that wait until all is written.
    changed: Condvar,
    dropped: AtomicU64,
}

/// The lines that are not written yet, and the state of the thread that writes.
#[derive(Default)]
struct State {
    gathered: Vec<u8>,
    /// Whether lines that were taken from `gathered` are being written.
    writing: bool,
    ending: bool,
    ended: bool,
}

/// Waits, when it is dropped, for up to a second until the remaining lines are written.
pub(super) struct LogQueueGuard(Arc<LogBacklog>);

/// A handle that has the log written before somebody ends the process without dropping anything.
#[derive(Clone)]
pub struct LogFlusher(Arc<LogBacklog>);

impl LogFlusher {
    /// Waits until everything that was logged is written, but no longer than `patience`.
    pub fn flush(&self, patience: Duration) {
        let state = self.0.lock();
        let flushed = self
            .0
            .changed
            .wait_timeout_while(state, patience, |it| it.writing || !it.gathered.is_empty());
        drop(flushed);
    }
}

impl LogQueue {
    /// Starts the thread that writes lines to `out`. It holds `turn` while it writes, since others
    /// may write there too.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        turn: StderrMutex,
    ) -> io::Result<(Self, LogQueueGuard)> {
        let shared = Arc::<LogBacklog>::default();
        let writes = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writes.write_to(out, &turn))?;
        Ok((Self(Arc::clone(&shared)), LogQueueGuard(shared)))
    }

    /// Returns a handle that has the lines written.
    pub(super) fn flush_handle(&self) -> LogFlusher {
        LogFlusher(Arc::clone(&self.0))
    }

    /// Adds a whole line, or counts it as dropped if there is no room.
    pub(super) fn take(&self, line: &[u8]) {
        let mut state = self.0.lock();
        if state.gathered.len() + line.len() > BUFFER {
            drop(state);
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_empty = state.gathered.is_empty();
        state.gathered.extend_from_slice(line);
        drop(state);
        if was_empty {
            self.0.changed.notify_all();
        }
    }

    /// Returns how many lines were dropped since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

impl LogBacklog {
    /// Writes gathered lines until the end has come and all are written.
    fn write_to(&self, mut out: impl Write, turn: &StderrMutex) {
        let mut writing = Vec::new();
        loop {
            let state = self.lock();
            let state = self
                .changed
                .wait_while(state, |it| it.gathered.is_empty() && !it.ending);
            let ending = state.unwrap_or_else(PoisonError::into_inner).ending;
            if !ending {
                std::thread::sleep(GATHER);
            }
            let mut state = self.lock();
            std::mem::swap(&mut state.gathered, &mut writing);
            let over = state.ending && writing.is_empty();
            state.ended |= over;
            state.writing = !over;
            drop(state);
            if over {
                self.changed.notify_all();
                return;
            }
            let own = lock(turn);
            self.write_out(&mut out, &writing);
            drop(own);
            writing.clear();
            // Memory that a burst needed is not held for ever.
            writing.shrink_to(KEPT);
            self.lock().writing = false;
            self.changed.notify_all();
        }
    }

    /// Writes all bytes. If standard error fails, the lines are only counted: there is nobody else
    /// to tell.
    fn write_out(&self, out: &mut impl Write, mut left: &[u8]) {
        while !left.is_empty() {
            match out.write(left) {
                Ok(n) if n > 0 => left = &left[n..],
                // Another process that shares standard error made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(GATHER);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    let lines = left.iter().filter(|byte| **byte == b'\n').count();
                    self.dropped.fetch_add(lines as u64, Ordering::Relaxed);
                    return;
                }
            }
        }
    }

    /// Locks the lines that are not written yet.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for LogQueueGuard {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ending = true;
        self.0.changed.notify_all();
        // A reader that accepts nothing does not keep the daemon from ending.
        let ended = self
            .0
            .changed
            .wait_timeout_while(state, LAST_WAIT, |it| !it.ended);
        drop(ended);
    }
}

/// Adds each write as one whole line, which is how tracing writes.
impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.take(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
