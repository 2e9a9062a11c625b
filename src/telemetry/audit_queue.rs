//! The way of the audit's lines to the thread that writes them: a bounded queue with backpressure.
//!
//! Whoever writes a line appends it to one buffer; the thread takes all that is there, writes it,
//! and looks again, so that lines are written at once while they are few and together while they are
//! many. Where too much waits, whoever would write one more waits too: no line is dropped.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::audit::AuditWriter;

/// Lines that wait, those that are being written included; whoever writes one more waits too.
const MAX_LINES: usize = 65_536;
/// Bytes of them, by which few lines that are long are held up as well.
const MAX_BYTES: usize = 64 << 20;
/// Bytes of a buffer that are kept for the next lines.
const KEPT: usize = 64 << 10;
/// How long the end of the daemon waits for what is left to be written.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Takes lines for the audit.
#[derive(Clone)]
pub(super) struct AuditQueue(Arc<AuditBacklog>);

/// Has what is left written when it is dropped.
pub(super) struct AuditEnd(Arc<AuditBacklog>);

#[derive(Default)]
struct AuditBacklog {
    waiting: Mutex<WaitingLines>,
    /// For the thread: there is something to write, or the end has come.
    work: Condvar,
    /// For those that wait: there is room, or all is written at the end.
    room: Condvar,
}

#[derive(Default)]
struct WaitingLines {
    gathered: Vec<u8>,
    /// Lines and bytes that are not written, whether they are still gathered or not.
    lines: usize,
    bytes: usize,
    /// Whether the thread waits for work.
    idle: bool,
    /// Whether somebody waits for room.
    crowded: bool,
    ending: bool,
    ended: bool,
}

impl WaitingLines {
    fn is_full(&self, more: usize) -> bool {
        // A line alone is taken whatever its length.
        self.lines >= MAX_LINES || self.lines > 0 && self.bytes + more > MAX_BYTES
    }
}

impl AuditQueue {
    /// Starts the thread that writes by `writer`.
    ///
    /// # Errors
    /// Where the host refuses a thread.
    pub(super) fn start(writer: AuditWriter) -> io::Result<(Self, AuditEnd)> {
        let backlog = Arc::<AuditBacklog>::default();
        let writes = Arc::clone(&backlog);
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writes.write_by(writer))?;
        Ok((Self(Arc::clone(&backlog)), AuditEnd(backlog)))
    }

    /// Takes a whole line, as soon as there is room for it.
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
    fn write_by(&self, mut writer: AuditWriter) {
        let mut batch = Vec::new();
        loop {
            let waiting = self.work.wait_while(self.lock(), |it| {
                it.idle = it.gathered.is_empty() && !it.ending;
                it.idle
            });
            let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
            if waiting.gathered.is_empty() {
                // Nobody logs from this thread after that.
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
            // What a burst took is not held for ever.
            batch.shrink_to(KEPT);
        }
    }

    /// Makes room for others.
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

    fn lock(&self) -> MutexGuard<'_, WaitingLines> {
        // Nothing panics while it is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AuditEnd {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.ending = true;
        self.0.work.notify_one();
        // Whatever takes nothing does not keep the daemon from ending.
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

    use super::super::audit::WriteTurn;
    use super::super::audit_file::AuditTarget;
    use super::*;

    fn started() -> (AuditQueue, AuditEnd, io::PipeReader) {
        let (reads, writes) = io::pipe().unwrap();
        let target = AuditTarget::Stream(File::from(OwnedFd::from(writes)));
        let writer = AuditWriter::open(target, &WriteTurn::default());
        let (queue, end) = AuditQueue::start(writer.unwrap().unwrap()).unwrap();
        (queue, end, reads)
    }

    /// Fills the queue with `fit` lines of `size` bytes, and writes one more.
    fn one_line_too_many(fit: usize, size: usize) {
        let (queue, end, mut reads) = started();
        let mut line = vec![b'x'; size];
        line[size - 1] = b'\n';
        for _ in 0..fit {
            queue.take(&line);
        }
        // What the pipe holds makes room for as many more.
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
