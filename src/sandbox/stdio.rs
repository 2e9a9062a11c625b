//! What a guest writes, up to its output limit, on its way to the run's log.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::stop::{Stop, StopReason};
use crate::limits::{Delivery, OutputPolicy};
use crate::log::{CHUNK_BYTES, Log};
use crate::outcome::{CancelCause, Stream, Usage, Written};

/// A run's output. Captured output also waits in memory for its caller, up to the output limit.
#[derive(Debug)]
pub struct Output {
    limit: Option<u64>,
    policy: OutputPolicy,
    log: Arc<Log>,
    usage: Arc<Usage>,
    /// Bytes that handles were told they may write, and have not.
    promised: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    written: [Written; 2],
    captured: Option<[BytesMut; 2]>,
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
            promised: AtomicUsize::new(0),
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

    /// How many bytes may be written in one piece, beside what was promised, of which `own` bytes count as free.
    fn space(&self, own: usize) -> usize {
        let others = self.promised_beside(own);
        let room = self.log.room();
        room.map_or(CHUNK_BYTES, |room| room.saturating_sub(others))
            .min(CHUNK_BYTES)
    }

    fn promised_beside(&self, own: usize) -> usize {
        self.promised.load(Ordering::Relaxed).saturating_sub(own)
    }

    /// Takes what was captured, of a run whose output is.
    pub fn take_captured(&self) -> Option<[Bytes; 2]> {
        let captured = self.lock().captured.take();
        captured.map(|captured| captured.map(BytesMut::freeze))
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
            captured[stream as usize].extend_from_slice(bytes);
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
    /// What the guest was last told that it may write.
    pub permit: Permit,
}

/// What a handle was told that it may write, and has not used: kept for it until then, or until it is gone.
#[derive(Debug, Default)]
pub struct Permit(Option<(Arc<Output>, usize)>);

impl Permit {
    fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |(_, bytes)| *bytes)
    }

    /// Promises as much as there is room for beside what others were promised.
    fn renew(&mut self, output: &Arc<Output>) -> usize {
        self.give_back();
        let bytes = output.space(0);
        if output.log.room().is_none() {
            return bytes;
        }
        output.promised.fetch_add(bytes, Ordering::Relaxed);
        self.0 = Some((Arc::clone(output), bytes));
        bytes
    }

    /// Gives back what was promised, and says how much.
    fn give_back(&mut self) -> usize {
        let Some((output, bytes)) = self.0.take() else {
            return 0;
        };
        output.promised.fetch_sub(bytes, Ordering::Relaxed);
        bytes
    }
}

impl Clone for Permit {
    /// Another handle was told nothing.
    fn clone(&self) -> Self {
        Self(None)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl GuestOutput {
    fn space(&self) -> usize {
        self.output.space(self.permit.bytes())
    }

    /// Resolves when something may be written. A caller that takes nothing for too long ends the run, or, where that
    /// goes on without it, is not waited for any more.
    async fn wait_for_space(&self) {
        let beside = self.output.promised_beside(self.permit.bytes());
        if self.output.log.wait_for_room(beside, self.stall).await {
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

    /// Writes all of `bytes`, waiting for the reader as it goes.
    ///
    /// # Errors
    /// Where they go over the output limit and the run is to stop there.
    pub async fn write_all(&self, mut bytes: &[u8]) -> Result<(), OutputExceeded> {
        while !bytes.is_empty() {
            self.wait_for_space().await;
            let (now, later) = bytes.split_at(bytes.len().min(self.space()));
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
        self.wait_for_space().await;
    }
}

#[async_trait]
impl OutputStream for GuestOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        // A guest may call this without asking first: the bound on the queue must not rest on its manners.
        // The other stream may have taken the room since: a permit that was given holds.
        let permitted = self.permit.give_back().max(self.space());
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
        Ok(self.permit.renew(&self.output))
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.permit.give_back();
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
