//! A run's output streams: what a guest writes, up to its output limit, goes to the run's event
//! log, with backpressure from the reader. A caller that reads nothing for too long ends the run,
//! unless the run is detached.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::host_call_pacer::HostCallPacer;
use super::stop_signal::{StopReason, StopSignal};
use crate::event_log::{CHUNK_BYTES, CaptureBuffer, CapturedOutput, EventLog};
use crate::model::collected::CollectedFile;
use crate::model::limits::{OutputMode, OutputPolicy};
use crate::model::outcome::{CancelCause, LiveUsage, Stream, Written};
use crate::otlp::OutputExport;
use crate::sync::lock;

/// How many bytes a guest is told that it may write in one call whenever there is any room. It is
/// more than a 32-bit memory can hold in one piece, and the most that `write` of Linux transfers.
/// Some guests ignore that a write was short (CPython's unbuffered output does), so no write ever
/// is: a call writes everything, and waits for the reader between its pieces.
pub(in crate::sandbox) const ANY_AMOUNT: usize = 0x7fff_f000;

/// The maximum number of bytes that go to the log at once, however much a guest writes. The first
/// piece is what an eager reader takes, and what its connection then holds for a caller that takes
/// nothing more.
const OUTPUT_PIECE: usize = 16 << 10;

/// The output of a run: counts both streams against the output limit and writes them to the event
/// log. Captured output is also kept in memory for the caller, up to the output limit.
#[derive(Debug)]
pub struct Output {
    limit: Option<u64>,
    policy: OutputPolicy,
    log: Arc<EventLog>,
    usage: Arc<LiveUsage>,
    /// The export to a log backend; `None` where the output is not exported.
    export: Option<Box<OutputExport>>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    written: [Written; 2],
    captured: Option<[CaptureBuffer; 2]>,
    /// The files that the run returns, where its output is captured.
    files: Vec<CollectedFile>,
}

/// The error that ends a guest which exceeded its output limit.
#[derive(Debug)]
pub(in crate::sandbox) struct OutputExceeded;

impl fmt::Display for OutputExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("more output than the output limit")
    }
}

impl std::error::Error for OutputExceeded {}

impl Output {
    /// Creates the output of a run. Each stream may take `limit` bytes (`None` means no limit), and
    /// both go to `log` and, if there is one, to `export`.
    pub fn new(
        limit: Option<u64>,
        policy: OutputPolicy,
        delivery: OutputMode,
        log: Arc<EventLog>,
        usage: Arc<LiveUsage>,
        export: Option<OutputExport>,
    ) -> Self {
        Self {
            limit,
            policy,
            log,
            usage,
            export: export.map(Box::new),
            inner: Mutex::new(Inner {
                written: Default::default(),
                captured: (delivery == OutputMode::Captured).then(Default::default),
                files: Vec::new(),
            }),
        }
    }

    /// Returns how much was written to each stream so far, and whether it was truncated.
    pub fn written(&self) -> [Written; 2] {
        self.lock().written
    }

    /// Exports what is left to be exported of the output, if it is exported at all.
    pub fn finish_export(&self) {
        if let Some(export) = &self.export {
            export.finish();
        }
    }

    /// Returns how many bytes may be written in one piece now; 0 means that the guest has to wait
    /// for the reader.
    fn writable_bytes(&self) -> usize {
        let room = self.log.room();
        room.map_or(OUTPUT_PIECE, |room| room.min(OUTPUT_PIECE))
    }

    /// Takes the captured output, or returns `None` if the run's output is not captured or was
    /// taken before.
    pub fn take_captured(&self) -> Option<CapturedOutput> {
        let mut inner = self.lock();
        let captured = inner.captured.take()?;
        let files = std::mem::take(&mut inner.files);
        drop(inner);
        Some(CapturedOutput::new(captured, files))
    }

    /// Delivers the files that the run returns, after all of its output: to the log, and where the
    /// output is captured, with that.
    pub(in crate::sandbox) fn deliver(&self, files: Vec<CollectedFile>) {
        for file in &files {
            self.log.write_file(file);
        }
        let mut inner = self.lock();
        if inner.captured.is_some() {
            inner.files = files;
        }
    }

    /// Hands the captured output over to the run's log, and returns how many bytes that is; `None`
    /// if the run's output is not captured.
    pub fn keep_captured(&self) -> Option<usize> {
        let captured = self.take_captured()?;
        let bytes = captured.bytes();
        self.log.keep_captured(captured);
        Some(bytes)
    }

    /// Writes `bytes` to the log and the captured output, up to the limit. Bytes over the limit are
    /// dropped, and are an error if the policy is to stop.
    fn write(&self, stream: Stream, bytes: &[u8]) -> Result<(), OutputExceeded> {
        let mut inner = self.lock();
        let written = &mut inner.written[stream as usize];
        let left = self.limit.map_or(usize::MAX, |limit| {
            clamp(limit.saturating_sub(written.bytes))
        });
        let over = bytes.len() > left;
        if over {
            written.truncated = true;
        }
        match (over, self.policy) {
            (true, OutputPolicy::Stop) => written.bytes += left as u64,
            (true, OutputPolicy::Truncate) | (false, _) => written.bytes += bytes.len() as u64,
        }
        self.usage.set_written(stream, written.bytes);
        let bytes = &bytes[..bytes.len().min(left)];
        if let Some(captured) = &mut inner.captured {
            captured[stream as usize].extend(bytes);
        }
        drop(inner);
        self.log.write(stream, bytes);
        if let Some(export) = &self.export {
            export.write(stream, bytes);
        }
        if over && self.policy == OutputPolicy::Stop {
            return Err(OutputExceeded);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

fn clamp(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// One of a guest's two output streams, which waits for the reader when the log is full.
#[derive(Clone)]
pub struct GuestOutput {
    /// The output of the run, shared by both streams.
    pub output: Arc<Output>,
    /// Which of the two streams this is.
    pub stream: Stream,
    /// Ends the run when its reader stalls.
    pub stop: Arc<StopSignal>,
    /// How long a caller may read nothing while the guest waits to write.
    pub stall_timeout: Duration,
    /// Whether the run goes on without its caller.
    pub detached: bool,
}

impl GuestOutput {
    /// Waits until something may be written. A caller that reads nothing for too long ends the run,
    /// or, if the run is detached, is not waited for any more.
    async fn wait_until_writable(&self) {
        if self.output.log.wait_for_room(self.stall_timeout).await {
            return;
        }
        if self.detached {
            self.output.log.release_backpressure();
            return;
        }
        self.stop
            .request(StopReason::Cancelled(CancelCause::ReaderStalled));
        std::future::pending::<()>().await;
    }

    /// Writes all of `bytes`, in pieces, and waits for the reader between them.
    ///
    /// # Errors
    /// Returns [`OutputExceeded`] where the bytes exceed the output limit and the run is to stop
    /// there, and [`Stopped`](super::stop_signal::Stopped) where the run has to end for another
    /// reason.
    pub(in crate::sandbox) async fn write_all(
        &self,
        mut bytes: &[u8],
        pace: &mut HostCallPacer<'_>,
    ) -> wasmtime::Result<()> {
        while !bytes.is_empty() {
            let space = self.output.writable_bytes();
            if space == 0 {
                self.wait_until_writable().await;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(space));
            self.output.write(self.stream, now)?;
            bytes = later;
            if !bytes.is_empty() {
                pace.checkpoint().await?;
            }
        }
        Ok(())
    }
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    /// Returns a writer that fails. Only WASI 0.3 asks for one, and that is off.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(UnsupportedWriter)
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for GuestOutput {
    async fn ready(&mut self) {
        self.wait_until_writable().await;
    }
}

#[async_trait]
impl OutputStream for GuestOutput {
    /// Writes without waiting. No guest's write comes here: those use
    /// [`Self::blocking_write_and_flush`], which can wait. The bound on the log does not rely on
    /// that.
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > CHUNK_BYTES {
            return Err(StreamError::trap("wrote more than there is room for"));
        }
        self.output
            .write(self.stream, &bytes)
            .map_err(|over| StreamError::Trap(over.into()))
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(match self.output.writable_bytes() {
            0 => 0,
            _ => ANY_AMOUNT,
        })
    }

    async fn write_ready(&mut self) -> StreamResult<usize> {
        loop {
            self.wait_until_writable().await;
            // Other runs may have used up the shared room of all logs meanwhile.
            match self.check_write()? {
                0 => {}
                most => return Ok(most),
            }
        }
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut pace = HostCallPacer::new(&self.stop);
        let written = self.write_all(&bytes, &mut pace).await;
        written.map_err(StreamError::Trap)
    }
}

/// A writer that refuses every write. Bytes that take this route, which nobody reads, cannot vanish
/// unnoticed.
struct UnsupportedWriter;

impl AsyncWrite for UnsupportedWriter {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Err(std::io::ErrorKind::Unsupported.into()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
