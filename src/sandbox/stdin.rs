//! What a guest reads while its caller still writes it: a small pipe that makes the caller wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

/// The most bytes of one piece of live input.
pub const MAX_STDIN_CHUNK: usize = 64 << 10;
/// While so many bytes wait for the guest, no more are taken.
const ENOUGH: usize = 64 << 10;

/// A run's live input.
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
    pieces: VecDeque<Bytes>,
    bytes: usize,
    closed: bool,
}

impl Input {
    /// Adds to what the guest reads, when it has read enough of what is there.
    pub async fn push(&self, bytes: Bytes) {
        loop {
            let mut went = std::pin::pin!(self.went.notified());
            went.as_mut().enable();
            let waiting = self.lock().bytes;
            if waiting < ENOUGH {
                break;
            }
            went.await;
        }
        self.push_now(bytes);
    }

    /// Adds to what the guest reads, however much is there.
    pub fn push_now(&self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let mut waiting = self.lock();
        waiting.bytes += bytes.len();
        waiting.pieces.push_back(bytes);
        drop(waiting);
        self.came.notify_waiters();
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
            {
                let waiting = self.0.lock();
                if waiting.bytes > 0 || waiting.closed {
                    return;
                }
            }
            came.await;
        }
    }
}

impl InputStream for GuestInput {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let mut waiting = self.0.lock();
        let Some(first) = waiting.pieces.front_mut() else {
            return if waiting.closed {
                Err(StreamError::Closed)
            } else {
                Ok(Bytes::new())
            };
        };
        let read = first.split_to(size.min(first.len()));
        if first.is_empty() {
            waiting.pieces.pop_front();
        }
        waiting.bytes -= read.len();
        drop(waiting);
        self.0.went.notify_waiters();
        Ok(read)
    }
}

/// Fails every read, so that a guest which took a way that nobody feeds does not see an end that is none.
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
