//! The writer of the audit's lines, by which none is lost: it waits for whoever takes them, and
//! follows a file that is renamed or removed.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::audit_file::{AuditTarget, append_to, told};

/// How often it is looked at whether the file is still the one of that name.
const LOOK: Duration = Duration::from_secs(1);
/// How soon a stream that somebody made non-blocking is tried again while it takes nothing.
const AGAIN: Duration = Duration::from_millis(10);

/// Held while lines are written to standard error, and by an audit that goes to the same place: neither is written into
/// the middle of the other's lines.
pub(super) type WriteTurn = Arc<Mutex<()>>;

/// Where lines go.
pub(super) struct AuditWriter {
    file: File,
    /// What it is called, and when that was looked at; of a stream nothing.
    named: Option<(PathBuf, Instant)>,
    turn: WriteTurn,
    /// Whether the last line may be there in part.
    torn: bool,
    /// Lines that could not be written; when that was said last, and of how many.
    lost: u64,
    complained: Option<Instant>,
    told: u64,
}

impl AuditWriter {
    /// Opens what is not open yet; none where there is no audit. `turn` is that of standard error.
    pub(super) fn open(target: AuditTarget, turn: &WriteTurn) -> Result<Option<Self>, String> {
        let (file, named) = match target {
            AuditTarget::None => return Ok(None),
            AuditTarget::File(path) => {
                let file = append_to(&path).map_err(|error| told(&path, &error))?;
                (file, Some((path, Instant::now())))
            }
            AuditTarget::Stream(file) => (file, None),
        };
        let shared = is_standard_error(&file);
        Ok(Some(Self {
            file,
            named,
            turn: match shared {
                true => Arc::clone(turn),
                false => WriteTurn::default(),
            },
            torn: false,
            lost: 0,
            complained: None,
            told: 0,
        }))
    }

    /// Follows the name where it leads to another file, or none, by now. Where that cannot be opened the old one goes on.
    fn follow(&mut self) {
        let Some((path, looked)) = &mut self.named else {
            return;
        };
        if looked.elapsed() < LOOK {
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

    /// Writes whole lines, and calls `written` with how many lines and bytes are done with. Where
    /// one cannot be written it is counted, and the next is tried.
    pub(super) fn write_lines(&mut self, mut left: &[u8], written: impl Fn(usize, usize)) {
        while !left.is_empty() {
            self.follow();
            // A file takes all at once. Of a stream somebody else may write to, whole are only
            // writes that are short.
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

    /// Writes `piece` on a line of its own; or says why not, and how much of it is there.
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

    /// Writes all of it, however long nobody takes it; or says why not, and how much was written.
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), (io::Error, usize)> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Says in the log, now and then, that lines are lost: the thread that writes has nobody else to
    /// tell.
    fn tell_lost(&mut self, error: &io::Error) {
        self.lost += 1;
        if self.complained.is_none_or(|at| at.elapsed() >= LOOK) {
            self.complained = Some(Instant::now());
            self.told = self.lost;
            tracing::error!(%error, lost = self.lost, "lines of the audit are lost");
        }
    }

    /// Says at the end what has not been said yet.
    pub(super) fn tell_rest(&self) {
        if self.lost > self.told {
            tracing::error!(lost = self.lost, "lines of the audit are lost");
        }
    }

    fn tell_regained(&mut self) {
        if self.lost > 0 {
            tracing::error!(lost = self.lost, "lines of the audit were lost; it goes on");
            (self.lost, self.told) = (0, 0);
        }
    }
}

/// Where the first line of `lines` ends.
fn line_end(lines: &[u8]) -> usize {
    let end = lines.iter().position(|byte| *byte == b'\n');
    end.map_or(lines.len(), |at| at + 1)
}

fn identity(of: io::Result<std::fs::Metadata>) -> Option<(u64, u64)> {
    of.ok().map(|it| (it.dev(), it.ino()))
}

/// Whether `file` is what standard error is too.
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
        let mut writer = AuditWriter::open(target, &WriteTurn::default())
            .unwrap()
            .unwrap();
        let done = Cell::new((0, 0));
        let count = |lines, bytes| {
            let (before, size) = done.get();
            done.set((before + lines, size + bytes));
        };
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("audit");
        // Nobody looks whether it is still the file of that name.
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
        let mut writer = AuditWriter::open(target, &WriteTurn::default())
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
