//! A run's stdin: the guest reads the spec's input and then, if somebody still writes, a small
//! pipe with backpressure on the writers. A caller that interacts waits for room, and a call of
//! SendInput is told how much fitted; both append through one [`InputBuffer`]. The input also tells
//! the caller when the guest waits for input (demand).

use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

use super::host_call_pacer::PIECE_BYTES;
use super::input_buffer::{AcceptedInput, InputBuffer, InputRejection};
use crate::model::guest_limits::{INPUT_HELD, INPUT_PIECE};
use crate::sync::lock;

/// The maximum size, in bytes, of one piece of live input.
pub const MAX_STDIN_CHUNK: usize = INPUT_PIECE.size();
/// The most bytes that a run holds of its live input.
pub const MAX_LIVE_INPUT: u64 = INPUT_HELD.number;
/// The maximum number of bytes that one read of the host returns to the guest: the answer is a
/// copy.
const READ_BYTES: usize = PIECE_BYTES;

/// The stdin of a run, shared by the guest, which reads it, and those who write it.
#[derive(Debug, Default)]
pub struct Input {
    inner: Mutex<Inner>,
    /// Notified when there is something to read, or no more will come.
    readable: Notify,
    /// Notified when the guest has read something, or no more may be written.
    drained: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    buffer: InputBuffer,
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

impl Inner {
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
        let inner = Mutex::new(Inner {
            buffer: InputBuffer::whole(bytes),
            ..Inner::default()
        });
        Self {
            inner,
            readable: Notify::new(),
            drained: Notify::new(),
        }
    }

    /// Reports whether a read would return without waiting, at end of file too.
    pub(in crate::sandbox) fn is_ready(&self) -> bool {
        let Inner { buffer, .. } = &*self.lock();
        !buffer.is_empty() || buffer.is_closed()
    }

    /// Appends `bytes` to the input, once the guest has read enough of what waits there. This is
    /// the backpressure on a caller that interacts.
    ///
    /// # Errors
    /// [`InputRejection::Closed`] where the input was closed before that.
    pub async fn push(&self, bytes: &[u8]) -> Result<(), InputRejection> {
        loop {
            let mut drained = std::pin::pin!(self.drained.notified());
            drained.as_mut().enable();
            if self.write(|buffer| buffer.push(bytes))? {
                return Ok(());
            }
            drained.await;
        }
    }

    /// Takes at once what fits of `data`, which a writer sends for the place `offset`. Bytes that
    /// were sent before are skipped. If all of `data` was taken, `eof` closes the input.
    ///
    /// # Errors
    /// Why nothing was taken; the input is then as it was.
    pub fn send(
        &self,
        offset: u64,
        data: &[u8],
        eof: bool,
    ) -> Result<AcceptedInput, InputRejection> {
        self.write(|buffer| buffer.accept(offset, data, eof))
    }

    /// Ends the input: the guest sees end of file after what is there.
    pub fn close(&self) {
        self.write(InputBuffer::close);
    }

    /// Changes what the guest has to read, and wakes those who wait for that.
    fn write<T>(&self, change: impl FnOnce(&mut InputBuffer) -> T) -> T {
        let mut inner = self.lock();
        let changed = change(&mut inner.buffer);
        let is_closed = inner.buffer.is_closed();
        let is_ready = is_closed || !inner.buffer.is_empty();
        if is_ready {
            inner.demand = DemandState::None;
        }
        drop(inner);
        if is_ready {
            self.readable.notify_waiters();
        }
        if is_closed {
            // Whoever waits for room need not wait any longer.
            self.drained.notify_waiters();
        }
        changed
    }

    /// Counts as read only what the guest reads after the first `preface` bytes.
    pub(in crate::sandbox) fn begin_count_after(&self, preface: usize) {
        self.lock().buffer.begin_count_after(preface);
    }

    /// Returns the number of bytes that the guest has read and that count.
    pub(in crate::sandbox) fn read_bytes(&self) -> u64 {
        self.lock().buffer.read_bytes()
    }

    /// Lets the caller be told from now on when the guest waits for input.
    pub fn tell_demand(&self) {
        let mut inner = self.lock();
        inner.tells = true;
        inner.wake_caller();
    }

    /// Reports whether the guest waits for input and the caller, which asked for that, was not told
    /// yet. If not, the task of `cx` is woken when it is so.
    pub fn poll_demand(&self, cx: &mut Context<'_>) -> bool {
        let mut inner = self.lock();
        if inner.tells && matches!(inner.demand, DemandState::Untold(_)) {
            return true;
        }
        if !(inner.caller.as_ref()).is_some_and(|caller| caller.will_wake(cx.waker())) {
            inner.caller = Some(cx.waker().clone());
        }
        false
    }

    /// Takes the guest's demand that the caller was not told of, so that it is told once.
    pub fn take_demand(&self) -> Option<StdinDemand> {
        let mut inner = self.lock();
        let DemandState::Untold(wanted) = inner.demand else {
            return None;
        };
        inner.demand = DemandState::Told;
        Some(StdinDemand {
            read: inner.buffer.read_bytes(),
            wanted,
        })
    }

    /// Records that the guest asks for at most `size` bytes, if it has to wait for them.
    fn want(&self, size: usize) {
        let mut inner = self.lock();
        if !inner.buffer.is_empty() || inner.buffer.is_closed() {
            return;
        }
        let size = u32::try_from(size.clamp(1, MAX_STDIN_CHUNK)).unwrap_or(1);
        inner.demand = match inner.demand {
            DemandState::None => DemandState::Untold(size),
            DemandState::Untold(wanted) => DemandState::Untold(wanted.max(size)),
            DemandState::Told => DemandState::Told,
        };
        inner.wake_caller();
    }

    /// Sets the spec's input, which the guest reads before anything else, once the run has its
    /// slot.
    pub(in crate::sandbox) fn begin_with(&self, bytes: Bytes) {
        self.lock().buffer.begin_with(bytes);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
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
        let mut inner = self.0.lock();
        if inner.buffer.is_empty() {
            if inner.buffer.is_closed() {
                return Err(StreamError::Closed);
            }
            drop(inner);
            if size > 0 {
                self.0.want(size);
            }
            return Ok(Bytes::new());
        }
        let read = inner.buffer.take(size);
        drop(inner);
        self.0.drained.notify_waiters();
        Ok(read)
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
        assert_eq!(runtime.block_on(input.push(bytes)), Ok(()));
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
    fn input_that_is_sent_meets_a_demand_as_input_of_an_interaction_does() {
        let input = Arc::new(Input::default());
        input.tell_demand();
        input.begin_with(Bytes::new());
        assert!(guest(&input).read(3).is_ok_and(|it| it.is_empty()));
        assert!(demands(&input));
        // A question changes nothing.
        let asked = input.send(0, b"", false);
        assert_eq!(asked.map(|it| it.next_offset), Ok(0));
        assert!(demands(&input));
        assert_eq!(input.send(0, b"ab", false).map(|it| it.accepted), Ok(2));
        assert!(!demands(&input));
        push(&input, b"c");
        assert!(guest(&input).read(3).is_ok_and(|it| it == "abc"));
        assert_eq!(input.send(3, b"", true).map(|it| it.closed), Ok(true));
        assert!(matches!(guest(&input).read(3), Err(StreamError::Closed)));
        assert!(!demands(&input));
    }

    #[test]
    fn a_guest_that_waits_is_woken_and_so_is_a_caller_that_waits_for_room() {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let input = Arc::new(Input::default());
            input.begin_with(Bytes::new());
            let mut reads = guest(&input);
            let (read, sent) = tokio::join!(reads.blocking_read(9), async {
                input.send(0, b"abc", false)
            });
            assert!(read.is_ok_and(|it| it == "abc"));
            assert_eq!(sent.map(|it| it.accepted), Ok(3));
            let full = vec![0; MAX_STDIN_CHUNK];
            assert_eq!(input.push(&full).await, Ok(()));
            // Another writer closes the input while this one waits for room.
            let (pushed, closed) = tokio::join!(biased; input.push(b"more"), async {
                let end = MAX_STDIN_CHUNK as u64 + 3;
                input.send(end, b"", true)
            });
            assert_eq!(
                pushed,
                Err(InputRejection::Closed(
                    closed.map_or(0, |it| it.next_offset)
                ))
            );
            assert_eq!(closed.map(|it| it.closed), Ok(true));
        });
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
