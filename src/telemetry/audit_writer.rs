//! The writer of audit lines. It waits for as long as the target accepts nothing, follows a file
//! that is renamed or removed, and counts the lines that cannot be written at all.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::audit_file::{AuditFileError, AuditTarget, append_to};
use crate::metrics::Count;
use crate::sync::lock;

/// How often it is checked whether the open file is still the one with that name, and how often
/// lost lines are logged at most.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How soon a write is tried again on a stream that somebody made non-blocking and that accepts
/// nothing.
const AGAIN: Duration = Duration::from_millis(10);

/// The lock that is held while lines are written to standard error, by the log and by an audit log
/// that goes to the same place. Neither is then written into the middle of the other's lines.
pub(super) type StderrMutex = Arc<Mutex<()>>;

/// Lines that this process could not write, since its start.
pub(super) static LOST: Count = Count::new();

/// The writer of audit lines to one target.
pub(super) struct AuditWriter {
    file: File,
    /// The path of the file, and when it was last checked; `None` for a stream.
    named: Option<(PathBuf, Instant)>,
    stderr_mutex: StderrMutex,
    /// Whether the last line may have been written only in part.
    torn: bool,
    /// Lines that could not be written since the last success.
    lost: u64,
    /// When lost lines were last logged; `None` if they never were.
    last_reported: Option<Instant>,
    /// The number of lost lines that was logged then.
    reported: u64,
}

impl AuditWriter {
    /// Opens the target if it is not open yet; `None` if there is no audit log. `turn` is the lock
    /// of standard error.
    pub(super) fn open(
        target: AuditTarget,
        turn: &StderrMutex,
    ) -> Result<Option<Self>, AuditFileError> {
        let (file, named) = match target {
            AuditTarget::None => return Ok(None),
            AuditTarget::File(path) => {
                let file = append_to(&path);
                let file = file.map_err(|source| AuditFileError::new(&path, source))?;
                (file, Some((path, Instant::now())))
            }
            AuditTarget::Stream(file) => (file, None),
        };
        let shared = is_standard_error(&file);
        Ok(Some(Self {
            file,
            named,
            stderr_mutex: match shared {
                true => Arc::clone(turn),
                false => StderrMutex::default(),
            },
            torn: false,
            lost: 0,
            last_reported: None,
            reported: 0,
        }))
    }

    /// Opens the file again if its name leads to another file, or to none, by now. If that fails,
    /// writing continues to the old one.
    fn reopen_if_replaced(&mut self) {
        let Some((path, looked)) = &mut self.named else {
            return;
        };
        if looked.elapsed() < CHECK_INTERVAL {
            return;
        }
        *looked = Instant::now();
        if identity(std::fs::metadata(&*path)) == identity(self.file.metadata()) {
            return;
        }
        match append_to(path) {
            Ok(file) => {
                self.file = file;
                self.torn = false;
            }
            Err(error) => tracing::error!(%error, "telemetry.audit_file cannot be opened again"),
        }
    }

    /// Writes whole lines, and calls `written` with the number of lines and bytes that are done
    /// with. A line that cannot be written is counted, and the next one is tried.
    pub(super) fn write_lines(&mut self, mut left: &[u8], written: impl Fn(usize, usize)) {
        while !left.is_empty() {
            self.reopen_if_replaced();
            // A file takes everything at once. If others write to the same stream too, only short
            // writes stay whole, so a stream is written line by line.
            let piece = match self.named {
                Some(_) => left,
                None => &left[..line_end(left)],
            };
            let done = match self.write_piece(piece) {
                Ok(()) => {
                    self.tell_regained();
                    piece.len()
                }
                Err((error, at)) => {
                    self.tell_lost(&error);
                    at + line_end(&left[at..])
                }
            };
            let lines = left[..done].iter().filter(|byte| **byte == b'\n').count();
            written(lines, done);
            left = &left[done..];
        }
    }

    /// Writes `piece` on a line of its own. The error says how much of it was written.
    fn write_piece(&mut self, piece: &[u8]) -> Result<(), (io::Error, usize)> {
        if self.torn {
            self.write_all(b"\n").map_err(|(error, _)| (error, 0))?;
            self.torn = false;
        }
        let result = self.write_all(piece);
        if let Err((_, at)) = &result {
            self.torn = *at > 0 && piece[at - 1] != b'\n';
        }
        result
    }

    /// Writes all bytes, however long the target accepts nothing. The error says how many were
    /// written.
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), (io::Error, usize)> {
        let _turn = lock(&self.stderr_mutex);
        let mut at = 0;
        while at < bytes.len() {
            match (&self.file).write(&bytes[at..]) {
                Ok(0) => return Err((io::ErrorKind::WriteZero.into(), at)),
                Ok(n) => at += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(AGAIN);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((error, at)),
            }
        }
        Ok(())
    }

    /// Counts a lost line, and logs the count at most once a second: the thread that writes can
    /// tell nobody else.
    fn tell_lost(&mut self, error: &io::Error) {
        self.lost += 1;
        LOST.increment();
        if self
            .last_reported
            .is_none_or(|at| at.elapsed() >= CHECK_INTERVAL)
        {
            self.last_reported = Some(Instant::now());
            self.reported = self.lost;
            tracing::error!(%error, lost = self.lost, "lines of the audit are lost");
        }
    }

    /// Logs at the end the losses that were not logged yet.
    pub(super) fn tell_rest(&self) {
        if self.lost > self.reported {
            tracing::error!(lost = self.lost, "lines of the audit are lost");
        }
    }

    /// Logs that writing works again, and how many lines were lost until then.
    fn tell_regained(&mut self) {
        if self.lost > 0 {
            tracing::error!(lost = self.lost, "lines of the audit were lost; it goes on");
            (self.lost, self.reported) = (0, 0);
        }
    }
}

/// Returns where the first line of `lines` ends.
fn line_end(lines: &[u8]) -> usize {
    let end = lines.iter().position(|byte| *byte == b'\n');
    end.map_or(lines.len(), |at| at + 1)
}

/// Returns the device and inode of a file, by which it is recognised.
fn identity(of: io::Result<std::fs::Metadata>) -> Option<(u64, u64)> {
    of.ok().map(|it| (it.dev(), it.ino()))
}

/// Reports whether `file` is the same file as standard error.
fn is_standard_error(file: &File) -> bool {
    let stderr = rustix::fs::fstat(io::stderr()).ok();
    let stderr = stderr.map(|it| (it.st_dev, it.st_ino));
    stderr.is_some() && stderr == identity(file.metadata())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Read;

    use super::*;

    fn full() -> File {
        File::options().write(true).open("/dev/full").unwrap()
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_later_ones_are_whole() {
        let target = AuditTarget::Stream(full());
        let mut writer = AuditWriter::open(target, &StderrMutex::default())
            .unwrap()
            .unwrap();
        let done = Cell::new((0, 0));
        let count = |lines, bytes| {
            let (before, size) = done.get();
            done.set((before + lines, size + bytes));
        };
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("audit");
        // With this time in the future, nobody checks whether it is still the file of that name.
        let later = Instant::now() + Duration::from_secs(3600);
        // A stream is written to line by line, a file as much as there is at once.
        for named in [None, Some((path.clone(), later))] {
            done.set((0, 0));
            (writer.file, writer.named) = (full(), named);
            writer.write_lines(b"first\nsecond\nthird\n", count);
            assert_eq!((done.get(), writer.lost), ((3, 19), 3));
            writer.file = append_to(&path).unwrap();
            writer.write_lines(b"fourth\nfifth\n", count);
            assert_eq!((done.get(), writer.lost), ((5, 32), 0));
        }
        let mut text = String::new();
        File::open(path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "fourth\nfifth\n".repeat(2));
    }

    #[test]
    fn a_line_that_is_there_in_part_is_ended_before_the_next() {
        let (mut reads, writes) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writes));
        let target = AuditTarget::Stream(file);
        let mut writer = AuditWriter::open(target, &StderrMutex::default())
            .unwrap()
            .unwrap();
        writer.write_all(b"half").unwrap();
        writer.torn = true;
        writer.write_lines(b"one\ntwo\n", |_, _| {});
        drop(writer);
        let mut text = String::new();
        reads.read_to_string(&mut text).unwrap();
        assert_eq!(text, "half\none\ntwo\n");
    }
}
