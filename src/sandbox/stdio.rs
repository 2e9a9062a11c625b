//! What a guest writes, up to its output limit, on its way to the run's log.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::pace::Pace;
use super::stop::{Stop, StopReason};
use crate::limits::{Delivery, OutputPolicy};
use crate::log::{CHUNK_BYTES, CaptureBuffer, Captured, Log};
use crate::outcome::{CancelCause, Stream, Usage, Written};

/// What a guest is told that it may write in one call where there is room at all: more than any
/// memory of 32 bits can hold in one piece, and what `write` of Linux transfers at the most. Some
/// guests ignore that a write was short (CPython's unbuffered output does), so none ever is: a call
/// writes all, and waits for the reader between its pieces.
pub(super) const ANY_AMOUNT: usize = 0x7fff_f000;

/// The most bytes that go to the log at once, however much a guest writes. The first piece is what an
/// eager reader takes, and what its connection then holds for a caller that takes nothing more.
const OUTPUT_PIECE: usize = 16 << 10;

/// A run's output. Captured output also waits in memory for its caller, up to the output limit.
#[derive(Debug)]
pub struct Output {
    limit: Option<u64>,
    policy: OutputPolicy,
    log: Arc<Log>,
    usage: Arc<Usage>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    written: [Written; 2],
    captured: Option<[CaptureBuffer; 2]>,
}

/// The error that ends a guest which went over its output limit.
#[derive(Debug)]
pub(super) struct OutputExceeded;

impl fmt::Display for OutputExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("more output than the output limit")
    }
}

impl std::error::Error for OutputExceeded {}

impl Output {
    /// Of at most `limit` bytes a stream, to `log`.
    pub fn new(
        limit: Option<u64>,
        policy: OutputPolicy,
        delivery: Delivery,
        log: Arc<Log>,
        usage: Arc<Usage>,
    ) -> Self {
        Self {
            limit,
            policy,
            log,
            usage,
            inner: Mutex::new(Inner {
                written: Default::default(),
                captured: (delivery == Delivery::Captured).then(Default::default),
            }),
        }
    }

    /// What became of each stream so far.
    pub fn written(&self) -> [Written; 2] {
        self.lock().written
    }

    /// How many bytes may be written in one piece now.
    fn space(&self) -> usize {
        let room = self.log.room();
        room.map_or(OUTPUT_PIECE, |room| room.min(OUTPUT_PIECE))
    }

    /// Takes what was captured, of a run whose output is.
    pub fn take_captured(&self) -> Option<Captured> {
        let captured = self.lock().captured.take();
        captured.map(Captured::new)
    }

    /// Writes as far as the limit goes.
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
        if over && self.policy == OutputPolicy::Stop {
            return Err(OutputExceeded);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held; were it to, the bytes are still whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn clamp(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// One of a guest's output streams.
#[derive(Clone)]
pub struct GuestOutput {
    /// Where it goes.
    pub output: Arc<Output>,
    /// Which it is.
    pub stream: Stream,
    /// Ends the run when its reader stalls.
    pub stop: Arc<Stop>,
    /// How long a caller may take nothing while the guest waits.
    pub stall: Duration,
    /// Whether the run goes on without its caller.
    pub detached: bool,
}

impl GuestOutput {
    /// Resolves when something may be written. A caller that takes nothing for too long ends the
    /// run, or, where that goes on without it, is not waited for any more.
    async fn wait_for_space(&self) {
        if self.output.log.wait_for_room(self.stall).await {
            return;
        }
        if self.detached {
            self.output.log.owe_nothing();
            return;
        }
        self.stop
            .request(StopReason::Cancelled(CancelCause::ReaderStalled));
        std::future::pending::<()>().await;
    }

    /// Writes all of `bytes`, in pieces, waiting for the reader as it goes.
    ///
    /// # Errors
    /// [`OutputExceeded`] where they go over the output limit and the run is to stop there;
    /// [`Stopped`](super::stop::Stopped) where it has to end for another reason.
    pub(super) async fn write_all(
        &self,
        mut bytes: &[u8],
        pace: &mut Pace<'_>,
    ) -> wasmtime::Result<()> {
        while !bytes.is_empty() {
            let space = self.output.space();
            if space == 0 {
                self.wait_for_space().await;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(space));
            self.output.write(self.stream, now)?;
            bytes = later;
            if !bytes.is_empty() {
                pace.between().await?;
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
    /// Only WASI 0.3 asks for this one, and it is off.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(NoStream)
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for GuestOutput {
    async fn ready(&mut self) {
        self.wait_for_space().await;
    }
}

#[async_trait]
impl OutputStream for GuestOutput {
    /// No guest's write comes here: those go by [`Self::blocking_write_and_flush`], which can wait.
    /// The bound on the log does not rest on that.
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
        Ok(match self.output.space() {
            0 => 0,
            _ => ANY_AMOUNT,
        })
    }

    async fn write_ready(&mut self) -> StreamResult<usize> {
        loop {
            self.wait_for_space().await;
            // Other runs may have filled what all logs may hold meanwhile.
            match self.check_write()? {
                0 => {}
                most => return Ok(most),
            }
        }
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut pace = Pace::new(&self.stop);
        let written = self.write_all(&bytes, &mut pace).await;
        written.map_err(StreamError::Trap)
    }
}

/// Refuses every write, so that bytes which took a way that nobody reads cannot vanish unnoticed.
struct NoStream;

impl AsyncWrite for NoStream {
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
