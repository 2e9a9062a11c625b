//! The queue of audit lines on their way to the thread that writes them: bounded, with
//! backpressure.
//!
//! Whoever writes a line appends it to one buffer. The thread takes all that is there, writes it,
//! and looks again, so that lines are written at once while they are few and in batches while they
//! are many. If too much is waiting, whoever would add a line waits too: no line is dropped.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::audit_writer::AuditWriter;
use crate::sync::lock;

/// The most lines in the queue, including those that are being written. Whoever adds one more
/// waits.
const MAX_LINES: usize = 65_536;
/// The most bytes in the queue, a limit for lines that are few but long.
const MAX_BYTES: usize = 64 << 20;
/// Bytes of a buffer's capacity that are kept for the next lines.
const KEPT: usize = 64 << 10;
/// How long the end of the daemon waits for the remaining lines to be written.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The sending side of the audit queue.
#[derive(Clone)]
pub(super) struct AuditQueue(Arc<AuditBacklog>);

/// Waits, when it is dropped, for up to a second until all remaining lines are written. The queue
/// takes no line once the thread has ended.
pub(super) struct AuditQueueGuard(Arc<AuditBacklog>);

/// What the threads that log share with the thread that writes.
#[derive(Default)]
struct AuditBacklog {
    waiting: Mutex<WaitingLines>,
    /// Wakes the thread that writes: there is something to write, or the end has come.
    work: Condvar,
    /// Wakes those that wait: there is room, or at the end all is written.
    room: Condvar,
}

/// The lines that are not written yet.
#[derive(Default)]
struct WaitingLines {
    gathered: Vec<u8>,
    /// The number of lines that are not written, whether they are still in `gathered` or not.
    lines: usize,
    /// The number of bytes of those lines.
    bytes: usize,
    /// Whether the thread that writes is waiting for work.
    idle: bool,
    /// Whether somebody is waiting for room.
    crowded: bool,
    ending: bool,
    ended: bool,
}

impl WaitingLines {
    /// Reports whether a line of `more` bytes has to wait.
    fn is_full(&self, more: usize) -> bool {
        // A line is taken whatever its length if no other is waiting.
        self.lines >= MAX_LINES || self.lines > 0 && self.bytes + more > MAX_BYTES
    }
}

impl AuditQueue {
    /// Starts the thread that writes lines with `writer`.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub(super) fn start(writer: AuditWriter) -> io::Result<(Self, AuditQueueGuard)> {
        let backlog = Arc::<AuditBacklog>::default();
        let writes = Arc::clone(&backlog);
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writes.write_by(writer))?;
        Ok((Self(Arc::clone(&backlog)), AuditQueueGuard(backlog)))
    }

    /// Adds a whole line, and waits first until there is room for it.
    pub(super) fn take(&self, line: &[u8]) {
        let backlog = &self.0;
        let waiting = backlog.room.wait_while(backlog.lock(), |it| {
            let waits = it.is_full(line.len()) && !it.ended;
            it.crowded |= waits;
            waits
        });
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        if waiting.ended {
            return;
        }
        waiting.gathered.extend_from_slice(line);
        waiting.lines += 1;
        waiting.bytes += line.len();
        let wake = std::mem::take(&mut waiting.idle);
        drop(waiting);
        if wake {
            backlog.work.notify_one();
        }
    }
}

impl AuditBacklog {
    /// Writes lines in batches until the end has come and all are written.
    fn write_by(&self, mut writer: AuditWriter) {
        let mut batch = Vec::new();
        loop {
            let waiting = self.work.wait_while(self.lock(), |it| {
                it.idle = it.gathered.is_empty() && !it.ending;
                it.idle
            });
            let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
            if waiting.gathered.is_empty() {
                // This thread logs nothing after that.
                writer.tell_rest();
                waiting.ended = true;
                drop(waiting);
                self.room.notify_all();
                return;
            }
            std::mem::swap(&mut waiting.gathered, &mut batch);
            drop(waiting);
            writer.write_lines(&batch, |lines, bytes| self.written(lines, bytes));
            batch.clear();
            // Memory that a burst needed is not held for ever.
            batch.shrink_to(KEPT);
        }
    }

    /// Takes written lines off the counts, and wakes those that wait for room.
    fn written(&self, lines: usize, bytes: usize) {
        let mut waiting = self.lock();
        waiting.lines -= lines;
        waiting.bytes -= bytes;
        let crowded = std::mem::take(&mut waiting.crowded);
        drop(waiting);
        if crowded {
            self.room.notify_all();
        }
    }

    /// Locks the lines that are not written yet.
    fn lock(&self) -> MutexGuard<'_, WaitingLines> {
        lock(&self.waiting)
    }
}

impl Drop for AuditQueueGuard {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.ending = true;
        self.0.work.notify_one();
        // A target that accepts nothing does not keep the daemon from ending.
        let ended = self
            .0
            .room
            .wait_timeout_while(waiting, LAST_WAIT, |it| !it.ended);
        let (waiting, _) = ended.unwrap_or_else(PoisonError::into_inner);
        let (ended, left) = (waiting.ended, waiting.lines);
        drop(waiting);
        if !ended {
            tracing::error!(
                left,
                "the last lines of the audit are not written: nobody takes them"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::super::audit_file::AuditTarget;
    use super::super::audit_writer::StderrMutex;
    use super::*;

    fn started() -> (AuditQueue, AuditQueueGuard, io::PipeReader) {
        let (reads, writes) = io::pipe().unwrap();
        let target = AuditTarget::Stream(File::from(OwnedFd::from(writes)));
        let writer = AuditWriter::open(target, &StderrMutex::default());
        let (queue, end) = AuditQueue::start(writer.unwrap().unwrap()).unwrap();
        (queue, end, reads)
    }

    /// Fills the queue with `fit` lines of `size` bytes, and writes more until a line has to wait.
    fn one_line_too_many(fit: usize, size: usize) {
        let (queue, end, mut reads) = started();
        let mut line = vec![b'x'; size];
        line[size - 1] = b'\n';
        for _ in 0..fit {
            queue.take(&line);
        }
        // What the pipe holds makes room for that many more lines.
        let piped = (64 << 10) / size;
        let waits = queue.clone();
        let more = std::thread::spawn(move || {
            for _ in 0..=piped {
                waits.take(&line);
            }
        });
        while !queue.0.lock().crowded {
            assert!(!more.is_finished(), "nobody waits");
            std::thread::yield_now();
        }
        let waiting = queue.0.lock();
        assert!(waiting.lines <= MAX_LINES && waiting.bytes <= MAX_BYTES);
        drop(waiting);
        let total = (fit + piped + 1) * size;
        let mut taken = vec![0; total];
        reads.read_exact(&mut taken).unwrap();
        more.join().unwrap();
        let lines = taken.chunks_exact(size);
        assert!(
            lines.clone().all(|it| it.ends_with(b"\n")),
            "a line is torn"
        );
        assert_eq!(lines.len(), fit + piped + 1);
        drop(end);
        assert_eq!(queue.0.lock().lines, 0);
    }

    #[test]
    fn whoever_writes_one_more_line_than_may_wait_waits_and_none_is_lost() {
        one_line_too_many(MAX_LINES, 64);
    }

    #[test]
    fn long_lines_wait_by_their_bytes() {
        one_line_too_many(MAX_BYTES / (8 << 20), 8 << 20);
    }

    #[test]
    fn the_end_waits_for_what_is_left_and_takes_nothing_more() {
        let (queue, end, mut reads) = started();
        let reads = std::thread::spawn(move || {
            let mut text = String::new();
            reads.read_to_string(&mut text).unwrap();
            text
        });
        for _ in 0..5000 {
            queue.take(b"a line\n");
        }
        drop(end);
        queue.take(b"too late\n");
        assert_eq!(reads.join().unwrap(), "a line\n".repeat(5000));
    }
}
