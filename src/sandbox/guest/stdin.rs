//! A run's stdin: the guest reads the spec's input and then, if the caller still writes, a small
//! pipe with backpressure on the caller. It also tells the caller when the guest waits for input
//! (demand).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

use super::host_call_pacer::PIECE_BYTES;
use crate::sync::lock;

/// The maximum size, in bytes, of one piece of live input.
pub const MAX_STDIN_CHUNK: usize = 64 << 10;
/// The maximum number of bytes that one read of the host returns to the guest: the answer is a
/// copy.
const READ_BYTES: usize = PIECE_BYTES;
/// While this many bytes wait for the guest, no more are taken from the caller.
const HIGH_WATER_MARK: usize = 64 << 10;

/// The stdin of a run, shared by the guest, which reads it, and the caller, which writes it.
#[derive(Debug, Default)]
pub struct Input {
    inner: Mutex<InputBuffer>,
    /// Notified when there is something to read, or no more will come.
    readable: Notify,
    /// Notified when the guest has read something.
    drained: Notify,
}

#[derive(Debug, Default)]
struct InputBuffer {
    /// The spec's input, which the guest reads first.
    initial: Bytes,
    /// The bytes that the caller has sent. They are copies, since a piece as it arrived is a slice
    /// of a message that may be far larger.
    live: VecDeque<u8>,
    closed: bool,
    /// The number of bytes that the guest has read.
    read: u64,
    demand: DemandState,
    /// Whether the caller asked to be told of the demand.
    tells: bool,
    /// The task of the caller that is told of the guest's demand.
    caller: Option<Waker>,
}

/// Whether the guest waits for input that has not come. The caller is told once for each piece that
/// it sends, so a guest that polls costs the caller nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum DemandState {
    #[default]
    None,
    /// The guest waits for at most this many bytes, and the caller was not told yet.
    Untold(u32),
    Told,
}

/// A message to the caller that the guest waits for input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StdinDemand {
    /// The number of bytes that the guest has read so far.
    pub read: u64,
    /// The number of bytes that the guest would read now, from 1 to [`MAX_STDIN_CHUNK`].
    pub wanted: u32,
}

impl InputBuffer {
    fn is_empty(&self) -> bool {
        self.initial.is_empty() && self.live.is_empty()
    }

    /// Wakes the caller's task if there is a demand to tell it of.
    fn wake_caller(&mut self) {
        if self.tells
            && matches!(self.demand, DemandState::Untold(_))
            && let Some(caller) = self.caller.take()
        {
            caller.wake();
        }
    }
}

impl Input {
    /// Creates an input that is complete: `bytes` and then end of file.
    pub(in crate::sandbox) fn whole(bytes: Bytes) -> Self {
        let inner = Mutex::new(InputBuffer {
            initial: bytes,
            closed: true,
            ..InputBuffer::default()
        });
        Self {
            inner,
            readable: Notify::new(),
            drained: Notify::new(),
        }
    }

    /// Reports whether a read would return without waiting, at end of file too.
    pub(in crate::sandbox) fn is_ready(&self) -> bool {
        let waiting = self.lock();
        !waiting.is_empty() || waiting.closed
    }

    /// Appends `bytes` to the input, once the guest has read enough of what waits there. This is
    /// the backpressure on the caller.
    pub async fn push(&self, bytes: &[u8]) {
        loop {
            let mut went = std::pin::pin!(self.drained.notified());
            went.as_mut().enable();
            let waiting = self.lock().live.len();
            if waiting < HIGH_WATER_MARK {
                break;
            }
            went.await;
        }
        let mut waiting = self.lock();
        waiting.live.extend(bytes);
        waiting.demand = DemandState::None;
        drop(waiting);
        self.readable.notify_waiters();
    }

    /// Returns the number of bytes that the guest has read.
    pub(in crate::sandbox) fn read_bytes(&self) -> u64 {
        self.lock().read
    }

    /// Lets the caller be told from now on when the guest waits for input.
    pub fn tell_demand(&self) {
        let mut waiting = self.lock();
        waiting.tells = true;
        waiting.wake_caller();
    }

    /// Reports whether the guest waits for input and the caller, which asked for that, was not told
    /// yet. If not, the task of `cx` is woken when it is so.
    pub fn poll_demand(&self, cx: &mut Context<'_>) -> bool {
        let mut waiting = self.lock();
        if waiting.tells && matches!(waiting.demand, DemandState::Untold(_)) {
            return true;
        }
        if !(waiting.caller.as_ref()).is_some_and(|caller| caller.will_wake(cx.waker())) {
            waiting.caller = Some(cx.waker().clone());
        }
        false
    }

    /// Takes the guest's demand that the caller was not told of, so that it is told once.
    pub fn take_demand(&self) -> Option<StdinDemand> {
        let mut waiting = self.lock();
        let DemandState::Untold(wanted) = waiting.demand else {
            return None;
        };
        waiting.demand = DemandState::Told;
        Some(StdinDemand {
            read: waiting.read,
            wanted,
        })
    }

    /// Records that the guest asks for at most `size` bytes, if it has to wait for them.
    fn want(&self, size: usize) {
        let mut waiting = self.lock();
        if !waiting.is_empty() || waiting.closed {
            return;
        }
        let size = u32::try_from(size.clamp(1, MAX_STDIN_CHUNK)).unwrap_or(1);
        waiting.demand = match waiting.demand {
            DemandState::None => DemandState::Untold(size),
            DemandState::Untold(wanted) => DemandState::Untold(wanted.max(size)),
            DemandState::Told => DemandState::Told,
        };
        waiting.wake_caller();
    }

    /// Sets the spec's input, which the guest reads before anything else.
    pub(in crate::sandbox) fn begin_with(&self, bytes: Bytes) {
        self.lock().initial = bytes;
    }

    /// Ends the input: the guest sees end of file after what is there.
    pub fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.demand = DemandState::None;
        drop(waiting);
        self.readable.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, InputBuffer> {
        lock(&self.inner)
    }
}

/// The guest's side of the input, as WASI's standard input stream.
pub(in crate::sandbox) struct GuestInput(pub(in crate::sandbox) Arc<Input>);

impl IsTerminal for GuestInput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for GuestInput {
    /// Returns a reader that fails. Only WASI 0.3 asks for one, and that is off.
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(UnsupportedReader)
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}

#[async_trait]
impl Pollable for GuestInput {
    async fn ready(&mut self) {
        loop {
            let mut came = std::pin::pin!(self.0.readable.notified());
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
        if !waiting.initial.is_empty() {
            let size = size.min(waiting.initial.len());
            waiting.read += size as u64;
            return Ok(waiting.initial.split_to(size));
        }
        let size = size.min(waiting.live.len());
        let read: Vec<u8> = waiting.live.drain(..size).collect();
        waiting.read += size as u64;
        drop(waiting);
        self.0.drained.notify_waiters();
        Ok(read.into())
    }

    /// Reads as the trait's provided method does, but first records how much the guest asks for.
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

/// A reader that fails every read. A guest that takes this route, which nobody feeds, does not see
/// a false end of file.
struct UnsupportedReader;

impl AsyncRead for UnsupportedReader {
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
        input.poll_demand(&mut Context::from_waker(Waker::noop()))
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
        // The guest has waited, but the end of the input answers that.
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
