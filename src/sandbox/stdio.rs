//! What a guest writes, on its way to whoever reads it: bounded, ordered, never lost.
//!
//! [`Output`] has one writing side, the guest's two streams, and one reading side. Captured output waits in memory up
//! to the run's output limit; streamed output goes through a queue of [`QUEUE_BYTES`] that makes the guest wait when
//! its reader does.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio::sync::Notify;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::stop::{Stop, StopReason};
use crate::limits::{Delivery, OutputPolicy};
use crate::outcome::{CancelCause, Ended, Stream, Written};
use crate::refusal::Refusal;

/// The most bytes of one chunk: what one stream event may carry.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;
/// The most bytes that wait for a reader, each chunk counted with [`CHUNK_OVERHEAD`].
const QUEUE_BYTES: usize = 256 * 1024;
/// What a chunk costs besides its bytes, so that a million one-byte chunks are not free.
const CHUNK_OVERHEAD: usize = 256;

/// A run's output.
#[derive(Debug)]
pub struct Output {
    limit: Option<u64>,
    policy: OutputPolicy,
    delivery: Delivery,
    inner: Mutex<Inner>,
    /// Told each time that the reader takes something.
    space: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<Chunk>,
    queued: usize,
    captured: [BytesMut; 2],
    written: [Written; 2],
    reader: Option<Waker>,
    end: Option<Result<Ended, Refusal>>,
    reader_gone: bool,
    /// Since when a guest has found no room, and its reader has taken nothing.
    full_since: Option<Instant>,
}

/// Bytes that a guest wrote to one stream.
#[derive(Debug)]
pub struct Chunk {
    /// Which.
    pub stream: Stream,
    /// When the first of them was written.
    pub at: SystemTime,
    /// At most 64 KiB.
    pub bytes: BytesMut,
}

/// What a reader gets next.
#[derive(Debug)]
pub enum Item {
    /// Output, in the order it was written.
    Chunk(Chunk),
    /// The end, once, after all output.
    End(Box<Result<Ended, Refusal>>),
}

/// The error that ends a guest which went over its output limit.
#[derive(Debug)]
pub struct OutputExceeded;

impl fmt::Display for OutputExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("more output than the output limit")
    }
}

impl std::error::Error for OutputExceeded {}

impl Output {
    /// Of at most `limit` bytes a stream.
    pub fn new(limit: Option<u64>, policy: OutputPolicy, delivery: Delivery) -> Self {
        Self {
            limit,
            policy,
            delivery,
            inner: Mutex::default(),
            space: Notify::new(),
        }
    }

    /// What became of each stream so far.
    pub fn written(&self) -> [Written; 2] {
        self.lock().written
    }

    /// The next thing to read; `None` after the end.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let mut inner = self.lock();
        if let Some(chunk) = inner.queue.pop_front() {
            inner.queued -= chunk.bytes.len() + CHUNK_OVERHEAD;
            inner.full_since = None;
            drop(inner);
            self.space.notify_one();
            return Poll::Ready(Some(Item::Chunk(chunk)));
        }
        if inner.reader_gone {
            return Poll::Ready(None);
        }
        if let Some(end) = inner.end.take() {
            inner.reader_gone = true;
            return Poll::Ready(Some(Item::End(Box::new(end))));
        }
        inner.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes what was captured.
    pub fn captured(&self) -> [Bytes; 2] {
        std::mem::take(&mut self.lock().captured).map(BytesMut::freeze)
    }

    /// Says that nobody reads any more; what is queued is let go.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.reader_gone = true;
        inner.queue.clear();
        inner.queued = 0;
        drop(inner);
        self.space.notify_one();
    }

    /// Says how the run ended; nothing is written after it.
    pub fn finish(&self, end: Result<Ended, Refusal>) {
        let mut inner = self.lock();
        inner.end = Some(end);
        wake(inner);
    }

    /// Writes as far as the limit goes.
    fn write(&self, stream: Stream, mut bytes: &[u8]) -> Result<(), OutputExceeded> {
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
        bytes = &bytes[..bytes.len().min(left)];
        inner.keep(stream, self.delivery, bytes);
        wake(inner);
        if over && self.policy == OutputPolicy::Stop {
            return Err(OutputExceeded);
        }
        Ok(())
    }

    /// How many bytes may be written now.
    fn space(&self) -> usize {
        match self.delivery {
            Delivery::Captured => CHUNK_BYTES,
            Delivery::Streamed => QUEUE_BYTES
                .saturating_sub(self.lock().queued + CHUNK_OVERHEAD)
                .min(CHUNK_BYTES),
        }
    }

    /// Resolves when something may be written. A reader that takes nothing for `stall` ends the run.
    async fn wait_for_space(&self, stop: &Stop, stall: Duration) {
        while self.space() == 0 {
            let since = *self.lock().full_since.get_or_insert_with(Instant::now);
            let patience = stall.saturating_sub(since.elapsed());
            let waited = tokio::time::timeout(patience, self.space.notified()).await;
            if waited.is_err() && self.space() == 0 {
                stop.request(StopReason::Cancelled(CancelCause::ReaderStalled));
                std::future::pending::<()>().await;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held; were it to, the bytes are still whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn keep(&mut self, stream: Stream, delivery: Delivery, mut bytes: &[u8]) {
        if self.reader_gone || bytes.is_empty() {
            return;
        }
        if delivery == Delivery::Captured {
            self.captured[stream as usize].extend_from_slice(bytes);
            return;
        }
        if let Some(last) = self.queue.back_mut()
            && last.stream == stream
        {
            let fits = bytes.len().min(CHUNK_BYTES - last.bytes.len());
            last.bytes.extend_from_slice(&bytes[..fits]);
            self.queued += fits;
            bytes = &bytes[fits..];
        }
        for piece in bytes.chunks(CHUNK_BYTES) {
            self.queued += piece.len() + CHUNK_OVERHEAD;
            self.queue.push_back(Chunk {
                stream,
                at: SystemTime::now(),
                bytes: BytesMut::from(piece),
            });
        }
    }
}

/// Wakes the reader, after the lock is let go.
fn wake(mut inner: MutexGuard<'_, Inner>) {
    let waker = inner.reader.take();
    drop(inner);
    if let Some(waker) = waker {
        waker.wake();
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
    /// How long a reader may take nothing while the guest waits.
    pub stall: Duration,
    /// What the guest was last told that it may write, and has not used.
    pub permit: usize,
}

impl GuestOutput {
    /// Writes all of `bytes`, waiting for the reader as it goes.
    ///
    /// # Errors
    /// Where they go over the output limit and the run is to stop there.
    pub async fn write_all(&self, mut bytes: &[u8]) -> Result<(), OutputExceeded> {
        while !bytes.is_empty() {
            self.output.wait_for_space(&self.stop, self.stall).await;
            let (now, later) = bytes.split_at(bytes.len().min(self.output.space()));
            self.output.write(self.stream, now)?;
            bytes = later;
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
        self.output.wait_for_space(&self.stop, self.stall).await;
    }
}

#[async_trait]
impl OutputStream for GuestOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        // A guest may call this without asking first: the bound on the queue must not rest on its manners.
        // The other stream may have taken the room since: a permit that was given holds.
        let permitted = self.output.space().max(std::mem::take(&mut self.permit));
        if bytes.len() > permitted {
            return Err(StreamError::trap("wrote more than check-write permits"));
        }
        self.output
            .write(self.stream, &bytes)
            .map_err(|over| StreamError::Trap(over.into()))
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.permit = self.output.space();
        Ok(self.permit)
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.write_all(&bytes)
            .await
            .map_err(|over| StreamError::Trap(over.into()))
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
