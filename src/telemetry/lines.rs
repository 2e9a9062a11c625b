//! The way of the log's lines to standard error: gathered, and written by a thread of their own, so that nobody who logs
//! waits, and a busy daemon wakes that thread forty times a second rather than once a line.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use super::audit::WriteTurn;

/// How long lines are gathered: what a reader of the log does not notice.
const GATHER: Duration = Duration::from_millis(25);
/// Bytes that wait for a slow reader of standard error; lines beyond are dropped and counted.
const BUFFER: usize = 4 << 20;
/// Bytes of a buffer that are kept for the next lines.
const KEPT: usize = 64 << 10;
/// How long the end of the daemon waits for a reader.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Where lines go.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// For the thread: there is something, or the end has come. For the end: all is written.
    changed: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    gathered: Vec<u8>,
    /// Whether lines that were gathered are being written.
    writing: bool,
    ending: bool,
    ended: bool,
}

/// Writes what is left when it is dropped.
pub(super) struct Last(Arc<Shared>);

/// Has the log written before somebody ends the process without dropping anything.
#[derive(Clone)]
pub struct LogFlush(Arc<Shared>);

impl LogFlush {
    /// Waits until all that was logged is written, at most for `patience`.
    pub fn flush(&self, patience: Duration) {
        let state = self.0.lock();
        let flushed = self
            .0
            .changed
            .wait_timeout_while(state, patience, |it| it.writing || !it.gathered.is_empty());
        drop(flushed);
    }
}

impl Lines {
    /// To `out`, by `turn` with whoever else writes there.
    ///
    /// # Errors
    /// Where the host refuses a thread.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        turn: WriteTurn,
    ) -> io::Result<(Self, Last)> {
        let shared = Arc::<Shared>::default();
        let writes = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writes.write_to(out, &turn))?;
        Ok((Self(Arc::clone(&shared)), Last(shared)))
    }

    /// What has them written.
    pub(super) fn flush_handle(&self) -> LogFlush {
        LogFlush(Arc::clone(&self.0))
    }

    /// Takes a whole line, or counts it where there is no room.
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

    /// Lines that were dropped since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn write_to(&self, mut out: impl Write, turn: &WriteTurn) {
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
            let own = turn.lock().unwrap_or_else(PoisonError::into_inner);
            self.write_out(&mut out, &writing);
            drop(own);
            writing.clear();
            // What a burst took is not held for ever.
            writing.shrink_to(KEPT);
            self.lock().writing = false;
            self.changed.notify_all();
        }
    }

    /// Writes all of it. Where standard error fails there is nobody to tell but the count.
    fn write_out(&self, out: &mut impl Write, mut left: &[u8]) {
        while !left.is_empty() {
            match out.write(left) {
                Ok(n) if n > 0 => left = &left[n..],
                // Whoever shares it made it non-blocking.
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

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ending = true;
        self.0.changed.notify_all();
        // A reader that takes nothing does not keep the daemon from ending.
        let ended = self
            .0
            .changed
            .wait_timeout_while(state, LAST_WAIT, |it| !it.ended);
        drop(ended);
    }
}

/// Takes a line as a whole.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.take(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
