//! What a guest reads: the spec's input, and after that, where its caller still writes, a small
//! pipe that makes the caller wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

use super::pace::PIECE_BYTES;

/// The most bytes of one piece of live input.
pub const MAX_STDIN_CHUNK: usize = 64 << 10;
/// The most bytes that the guest gets by one read of the host's: its answer is a copy.
const READ_BYTES: usize = PIECE_BYTES;
/// While so many bytes wait for the guest, no more are taken.
const ENOUGH: usize = 64 << 10;

/// A run's input.
#[derive(Debug, Default)]
pub struct Input {
    inner: Mutex<Waiting>,
    /// Told when there is something to read, or no more will come.
    came: Notify,
    /// Told when the guest has read something.
    went: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// What the guest reads before anything else.
    first: Bytes,
    /// Copies: a piece as it arrived is a slice of a message that may be far larger.
    rest: VecDeque<u8>,
    closed: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.rest.is_empty()
    }
}

impl Input {
    /// Creates input of which no more will come than `bytes`.
    pub(super) fn whole(bytes: Bytes) -> Self {
        let inner = Mutex::new(Waiting {
            first: bytes,
            rest: VecDeque::new(),
            closed: true,
        });
        Self {
            inner,
            came: Notify::new(),
            went: Notify::new(),
        }
    }

    /// Whether a read would not wait.
    pub(super) fn is_ready(&self) -> bool {
        let waiting = self.lock();
        !waiting.is_empty() || waiting.closed
    }

    /// Adds to what the guest reads, when it has read enough of what is there.
    pub async fn push(&self, bytes: &[u8]) {
        loop {
            let mut went = std::pin::pin!(self.went.notified());
            went.as_mut().enable();
            let waiting = self.lock().rest.len();
            if waiting < ENOUGH {
                break;
            }
            went.await;
        }
        self.lock().rest.extend(bytes);
        self.came.notify_waiters();
    }

    /// Sets what the guest reads before anything else.
    pub(super) fn begin_with(&self, bytes: Bytes) {
        self.lock().first = bytes;
    }

    /// Says that no more will come: the guest sees end of file after what is there.
    pub fn close(&self) {
        self.lock().closed = true;
        self.came.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The guest's side of it.
pub(super) struct GuestInput(pub(super) Arc<Input>);

impl IsTerminal for GuestInput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for GuestInput {
    /// Only WASI 0.3 asks for this one, and it is off.
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(NoStream)
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}

#[async_trait]
impl Pollable for GuestInput {
    async fn ready(&mut self) {
        loop {
            let mut came = std::pin::pin!(self.0.came.notified());
            came.as_mut().enable();
            if self.0.is_ready() {
                return;
            }
            came.await;
        }
    }
}

impl InputStream for GuestInput {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let size = size.min(READ_BYTES);
        let mut waiting = self.0.lock();
        if waiting.is_empty() {
            return if waiting.closed {
                Err(StreamError::Closed)
            } else {
                Ok(Bytes::new())
            };
        }
        if !waiting.first.is_empty() {
            let size = size.min(waiting.first.len());
            return Ok(waiting.first.split_to(size));
        }
        let size = size.min(waiting.rest.len());
        let read: Vec<u8> = waiting.rest.drain(..size).collect();
        drop(waiting);
        self.0.went.notify_waiters();
        Ok(read.into())
    }
}

/// Fails every read, so that a guest which took a way that nobody feeds does not see an end that is
/// none.
struct NoStream;

impl AsyncRead for NoStream {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Err(std::io::ErrorKind::Unsupported.into()))
    }
}
