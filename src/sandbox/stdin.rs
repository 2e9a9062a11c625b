//! What a guest reads: the spec's input, and after that, where its caller still writes, a small
//! pipe that makes the caller wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

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
    /// Bytes that the guest has read.
    read: u64,
    demand: Demand,
    /// Whether the caller asked to be told of it.
    tells: bool,
    /// The task of the caller that is told of the guest's demand.
    caller: Option<Waker>,
}

/// Whether the guest waits for input that has not come. It is told once for each piece that comes: a guest that polls
/// costs its caller nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Demand {
    #[default]
    None,
    /// The guest waits for at most so many bytes.
    Untold(u32),
    Told,
}

/// That a guest waits for input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StdinDemand {
    /// Bytes that it has read so far.
    pub read: u64,
    /// Bytes that it would take now, at least one and at most [`MAX_STDIN_CHUNK`].
    pub wanted: u32,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.rest.is_empty()
    }

    /// Wakes the caller's task where there is something to tell it.
    fn wake_caller(&mut self) {
        if self.tells
            && matches!(self.demand, Demand::Untold(_))
            && let Some(caller) = self.caller.take()
        {
            caller.wake();
        }
    }
}

impl Input {
    /// Creates input of which no more will come than `bytes`.
    pub(super) fn whole(bytes: Bytes) -> Self {
        let inner = Mutex::new(Waiting {
            first: bytes,
            closed: true,
            ..Waiting::default()
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
        let mut waiting = self.lock();
        waiting.rest.extend(bytes);
        waiting.demand = Demand::None;
        drop(waiting);
        self.came.notify_waiters();
    }

    /// Bytes that the guest has read.
    pub(super) fn read_bytes(&self) -> u64 {
        self.lock().read
    }

    /// Has the caller told from now on when the guest waits for input.
    pub fn tell_demand(&self) {
        let mut waiting = self.lock();
        waiting.tells = true;
        waiting.wake_caller();
    }

    /// Whether the guest waits for input and its caller, which asked for it, was not told; if not, the task of `cx` is
    /// woken when it does.
    pub fn demands(&self, cx: &mut Context<'_>) -> bool {
        let mut waiting = self.lock();
        if waiting.tells && matches!(waiting.demand, Demand::Untold(_)) {
            return true;
        }
        if !(waiting.caller.as_ref()).is_some_and(|caller| caller.will_wake(cx.waker())) {
            waiting.caller = Some(cx.waker().clone());
        }
        false
    }

    /// Takes what there is to tell of the guest's demand, so that it is told once.
    pub fn take_demand(&self) -> Option<StdinDemand> {
        let mut waiting = self.lock();
        let Demand::Untold(wanted) = waiting.demand else {
            return None;
        };
        waiting.demand = Demand::Told;
        Some(StdinDemand {
            read: waiting.read,
            wanted,
        })
    }

    /// Notes that the guest asks for at most `size` bytes, where it has to wait for them.
    fn want(&self, size: usize) {
        let mut waiting = self.lock();
        if !waiting.is_empty() || waiting.closed {
            return;
        }
        let size = u32::try_from(size.clamp(1, MAX_STDIN_CHUNK)).unwrap_or(1);
        waiting.demand = match waiting.demand {
            Demand::None => Demand::Untold(size),
            Demand::Untold(wanted) => Demand::Untold(wanted.max(size)),
            Demand::Told => Demand::Told,
        };
        waiting.wake_caller();
    }

    /// Sets what the guest reads before anything else.
    pub(super) fn begin_with(&self, bytes: Bytes) {
        self.lock().first = bytes;
    }

    /// Says that no more will come: the guest sees end of file after what is there.
    pub fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.demand = Demand::None;
        drop(waiting);
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
            self.0.want(1);
            came.await;
        }
    }
}

#[async_trait]
impl InputStream for GuestInput {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let size = size.min(READ_BYTES);
        let mut waiting = self.0.lock();
        if waiting.is_empty() {
            if waiting.closed {
                return Err(StreamError::Closed);
            }
            drop(waiting);
            if size > 0 {
                self.0.want(size);
            }
            return Ok(Bytes::new());
        }
        if !waiting.first.is_empty() {
            let size = size.min(waiting.first.len());
            waiting.read += size as u64;
            return Ok(waiting.first.split_to(size));
        }
        let size = size.min(waiting.rest.len());
        let read: Vec<u8> = waiting.rest.drain(..size).collect();
        waiting.read += size as u64;
        drop(waiting);
        self.0.went.notify_waiters();
        Ok(read.into())
    }

    /// As the provided method, but first of all says how much is wanted.
    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        loop {
            if size > 0 {
                self.0.want(size);
            }
            self.ready().await;
            let read = self.read(size)?;
            if size == 0 || !read.is_empty() {
                return Ok(read);
            }
        }
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

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use bytes::Bytes;
    use tokio::runtime::Builder;
    use wasmtime_wasi::p2::{InputStream, StreamError};

    use super::*;

    fn guest(input: &Arc<Input>) -> GuestInput {
        GuestInput(Arc::clone(input))
    }

    fn demands(input: &Input) -> bool {
        input.demands(&mut Context::from_waker(Waker::noop()))
    }

    fn push(input: &Input, bytes: &[u8]) {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(input.push(bytes));
    }

    #[test]
    fn a_demand_is_told_once_for_each_piece_that_comes() {
        let input = Arc::new(Input::default());
        input.tell_demand();
        assert!(!demands(&input), "nobody has read yet");
        for polls in 0..3 {
            assert!(guest(&input).read(10 + polls).is_ok_and(|it| it.is_empty()));
        }
        assert!(demands(&input));
        let told = StdinDemand {
            read: 0,
            wanted: 12,
        };
        assert_eq!(input.take_demand(), Some(told));
        assert!(guest(&input).read(4096).is_ok_and(|it| it.is_empty()));
        assert!(!demands(&input) && input.take_demand().is_none());
        push(&input, b"abc");
        assert!(!demands(&input), "it need not wait");
        assert!(guest(&input).read(2).is_ok_and(|it| it == "ab"));
        assert!(guest(&input).read(2).is_ok_and(|it| it == "c"));
        assert!(!demands(&input), "it has not asked for more");
        assert!(guest(&input).read(1 << 20).is_ok_and(|it| it.is_empty()));
        let told = StdinDemand {
            read: 3,
            wanted: 65_536,
        };
        assert_eq!(input.take_demand(), Some(told));
        assert_eq!(input.read_bytes(), 3);
    }

    #[test]
    fn what_came_first_and_the_end_of_the_input_are_no_demand() {
        let input = Arc::new(Input::default());
        input.tell_demand();
        input.begin_with(Bytes::from_static(b"xyz"));
        assert!(guest(&input).read(3).is_ok_and(|it| it == "xyz"));
        assert!(!demands(&input));
        assert!(guest(&input).read(3).is_ok_and(|it| it.is_empty()));
        // It has waited, but what it waited for is told by the end.
        input.close();
        assert!(!demands(&input));
        assert!(matches!(guest(&input).read(3), Err(StreamError::Closed)));
        assert!(!demands(&input));
        assert_eq!(input.read_bytes(), 3);
    }

    #[test]
    fn a_caller_that_asks_late_is_told_what_is_so_already() {
        let input = Arc::new(Input::default());
        assert!(guest(&input).read(7).is_ok_and(|it| it.is_empty()));
        assert!(!demands(&input), "it has not asked");
        input.tell_demand();
        assert!(demands(&input));
        assert_eq!(input.take_demand().map(|it| it.wanted), Some(7));
    }
}
