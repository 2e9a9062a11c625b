//! Watches over answers on their way out: charges each until its last byte is written, and drops
//! those that are taken too slowly.
//!
//! HTTP/2 asks for the next piece of an answer when it has sent or queued the one before. What it
//! was handed is out of reach here. So pieces are small, few are handed over at once, and each
//! reports when it is dropped. Until then a piece counts as not taken, and is charged.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use slab::Slab;
use tonic::Status;
use tonic::body::Body;

use super::response_budget::{
    BudgetedBytes, ReservationExtension, ResponseBudget, ResponseCharge, ResponseKind,
};
use super::response_data_rate::{DataRateMonitor, MinResponseDataRate};
use super::run_response::with_output;
use crate::api::status;
use crate::event_log::CapturedOutput;
use crate::metrics::{MetricSource, MetricWriter, Unit};
use crate::model::refusal::{Reason, Refusal};
use crate::run::{PendingResponse, ResponseReservation, STREAMED_FRAMES, Tenant};
use crate::sync::lock;

/// The most bytes of a frame that is handed over in one piece: an event and what is around it.
const MAX_WHOLE_FRAME: usize = 128 << 10;
/// The bytes of the pieces that a larger frame is cut into. HTTP/2 gets the next piece when it
/// holds less than that. While it waits for the next piece, and not for its caller to make room,
/// its stream can still be reset.
const PIECE: usize = 64 << 10;
/// The most bytes of a stream's frame that need not be written before the next one is made.
const MAX_UNWRITTEN_FRAME: usize = 16 << 10;
/// How often all answers are checked for being taken too slowly.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The watchdog over all answers on their way out. Clones share its state.
#[derive(Clone, Debug)]
pub struct ResponseWatchdog(Arc<WatchdogShared>);

#[derive(Debug)]
struct WatchdogShared {
    pace: MinResponseDataRate,
    budget: Arc<ResponseBudget>,
    /// The answers whose bodies HTTP/2 has not dropped.
    responses: Mutex<Slab<Arc<WatchedResponse>>>,
}

/// An answer on its way out, which its body and its unwritten pieces share with the watchdog.
#[derive(Debug)]
struct WatchedResponse(Mutex<State>);

#[derive(Debug)]
struct State {
    kind: ResponseKind,
    /// What makes the rest of the answer; `None` once the answer was given up.
    remaining: Option<RemainingBody>,
    /// The pieces that are to be handed over next.
    queue: VecDeque<Bytes>,
    /// The bytes that were handed over and are not written yet.
    unwritten_bytes: usize,
    /// The bytes of the last frame that the body made.
    last_frame: usize,
    data_rate: DataRateMonitor,
    charge: Option<ResponseCharge>,
    /// The task that waits until fewer bytes are unwritten.
    waker: Option<Waker>,
}

/// The source of the rest of an answer.
#[derive(Debug)]
enum RemainingBody {
    /// The body that a service made.
    Body(Body),
    /// The trailers that report success.
    Trailers,
    /// Nothing, because all of the answer was made.
    Nothing,
}

/// The body of an answer as HTTP/2 polls it. Dropping it ends the watch, and releases all that is
/// charged for bytes that HTTP/2 does not hold.
pub(in crate::api) struct WatchedBody {
    watchdog: ResponseWatchdog,
    /// The key of the answer among those that are watched.
    key: usize,
    answer: Arc<WatchedResponse>,
    /// Makes a drain wait until this body is dropped.
    _pending_response: Option<PendingResponse>,
}

/// A piece that was handed over. HTTP/2 drops it when it has written it; that counts its bytes as
/// taken, and wakes the task that waits for room.
struct UnwrittenPiece {
    bytes: Bytes,
    answer: Arc<WatchedResponse>,
}

impl AsRef<[u8]> for UnwrittenPiece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for UnwrittenPiece {
    fn drop(&mut self) {
        let mut state = lock(&self.answer.0);
        let waker = state.took(self.bytes.len());
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl ResponseWatchdog {
    /// Creates the watchdog of a daemon, whose answers have to be taken at `pace`. The budget of
    /// `bytes` is for those that no run's reservation holds.
    pub(in crate::api) fn new(bytes: u64, pace: MinResponseDataRate) -> Self {
        Self(Arc::new(WatchdogShared {
            pace,
            budget: ResponseBudget::new(bytes),
            responses: Mutex::default(),
        }))
    }

    /// Charges `tenant` in advance for an answer of `kind`.
    ///
    /// # Errors
    /// `QUEUE_FULL` if there is no room now; `CAPACITY_EXCEEDED` if there never is.
    pub(in crate::api) fn reserve(
        &self,
        kind: ResponseKind,
        tenant: Option<Arc<Tenant>>,
    ) -> Result<BudgetedBytes, Refusal> {
        self.0.budget.reserve(kind, tenant)
    }

    /// Charges `tenant` for the `bytes` that the replay of an archived run takes besides its
    /// stream.
    ///
    /// # Errors
    /// The errors of [`ResponseBudget::reserve_replay`].
    pub(in crate::api) fn reserve_replay(
        &self,
        tenant: Arc<Tenant>,
        bytes: u64,
    ) -> Result<BudgetedBytes, Refusal> {
        self.0.budget.reserve_replay(tenant, bytes)
    }

    /// Charges an answer for what it holds, and watches over it. If there is no room for an answer,
    /// it becomes a refusal.
    pub(in crate::api) async fn watch_response(
        &self,
        kind: ResponseKind,
        budgeted: BudgetedBytes,
        answer: http::Response<Body>,
    ) -> http::Response<Body> {
        let (mut head, mut body) = answer.into_parts();
        let pending_response = head.extensions.remove::<PendingResponse>();
        let enclosed = head.extensions.remove::<ReservationExtension>();
        if body.is_end_stream() {
            // This is a refusal, all of which is in the headers.
            return http::Response::from_parts(head, body);
        }
        let reservation = enclosed.and_then(|it| it.take());
        let queue = match kind.is_unary() {
            true => match whole(&mut body).await {
                Ok(queue) => queue,
                Err(status) => return status.into_http(),
            },
            false => VecDeque::new(),
        };
        match charged(kind, &queue, reservation, || Ok(budgeted)) {
            Ok(charge) => {
                let delivery = self.watch(
                    kind,
                    RemainingBody::Body(body),
                    queue,
                    charge,
                    pending_response,
                );
                http::Response::from_parts(head, Body::new(delivery))
            }
            Err(refusal) => {
                let mut refused = Status::from(&refusal).into_http();
                let run_id = head.headers.remove(status::RUN_ID);
                let run_id = run_id.map(|id| (status::RUN_ID, id));
                refused.headers_mut().extend(run_id);
                refused
            }
        }
    }

    /// Creates the body of the answer to a `Run` of `tenant`, with `output` in its message. It is
    /// charged and watched over like other answers.
    ///
    /// # Errors
    /// If there is no room for the answer, or if it is above 4 GiB.
    pub(in crate::api) fn watch_run_response(
        &self,
        tenant: &Arc<Tenant>,
        message: &impl prost::Message,
        output: CapturedOutput,
        reservation: Option<ResponseReservation>,
        pending_response: Option<PendingResponse>,
    ) -> Result<WatchedBody, Refusal> {
        const KIND: ResponseKind = ResponseKind::Run;
        let queue = with_output(message, output)?;
        let budgeted = || self.reserve(KIND, Some(Arc::clone(tenant)));
        let charge = charged(KIND, &queue, reservation, budgeted)?;
        Ok(self.watch(
            KIND,
            RemainingBody::Trailers,
            queue,
            charge,
            pending_response,
        ))
    }

    /// Creates the body of an answer that is charged, and watches over it from now on.
    fn watch(
        &self,
        kind: ResponseKind,
        rest: RemainingBody,
        queue: VecDeque<Bytes>,
        charge: ResponseCharge,
        pending_response: Option<PendingResponse>,
    ) -> WatchedBody {
        let mut clock = DataRateMonitor::new(self.0.pace);
        if !queue.is_empty() {
            clock.ready(Instant::now());
        }
        let answer = Arc::new(WatchedResponse(Mutex::new(State {
            kind,
            remaining: Some(rest),
            queue,
            unwritten_bytes: 0,
            last_frame: 0,
            data_rate: clock,
            charge: Some(charge),
            waker: None,
        })));
        let key = lock(&self.0.responses).insert(Arc::clone(&answer));
        WatchedBody {
            watchdog: self.clone(),
            key,
            answer,
            _pending_response: pending_response,
        }
    }

    /// Drops answers that are taken too slowly, for as long as it is polled.
    pub async fn drop_stalled_responses(&self) {
        loop {
            tokio::time::sleep(CHECK_INTERVAL.min(self.0.pace.grace)).await;
            let now = Instant::now();
            let mut gone = Vec::new();
            for (_, answer) in lock(&self.0.responses).iter() {
                let mut state = lock(&answer.0);
                if state.data_rate.is_overdue(now) {
                    gone.push(state.give_up());
                    // Nothing of the answer is ready any more.
                    state.data_rate.took_all();
                }
            }
            if !gone.is_empty() {
                tracing::warn!(
                    answers = gone.len(),
                    "answers were dropped: they were taken too slowly"
                );
            }
            // Done outside the locks, since dropping a body ends its run, and HTTP/2 then resets
            // the stream.
            for (rest, waker) in gone {
                drop(rest);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }
}

impl MetricSource for ResponseWatchdog {
    fn write_metrics(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        let responses = lock(&self.0.responses);
        let unwritten = responses.iter().map(|(_, it)| lock(&it.0).ready_bytes());
        let bytes = unwritten.sum();
        drop(responses);
        to.gauge(
            "answers_unwritten",
            "Bytes of answers, and of the next pieces of streams, that wait for the connections of their callers.",
            Some(&Unit::Bytes),
            bytes,
        )
    }
}

/// Charges an answer of `kind` that has `queue` in it: to the run's reservation if there is one of
/// enough bytes, and to the budget otherwise.
fn charged(
    kind: ResponseKind,
    queue: &VecDeque<Bytes>,
    reservation: Option<ResponseReservation>,
    budgeted: impl FnOnce() -> Result<BudgetedBytes, Refusal>,
) -> Result<ResponseCharge, Refusal> {
    let bytes = match kind {
        ResponseKind::Run | ResponseKind::Unary => {
            queue.iter().map(Bytes::len).sum::<usize>() as u64
        }
        ResponseKind::RunStream | ResponseKind::Streaming => STREAMED_FRAMES,
        ResponseKind::Health => 0,
    };
    let mut charge = match reservation.filter(|it| it.bytes() >= bytes) {
        Some(reservation) => ResponseCharge::Reserved(reservation),
        None => {
            let mut budgeted = budgeted()?;
            budgeted.grow_to(bytes)?;
            ResponseCharge::Budgeted(budgeted)
        }
    };
    if kind.is_unary() {
        charge.shrink_to(bytes);
    }
    Ok(charge)
}

/// Reads the one message that `body` makes, and cuts it into pieces if it is large.
async fn whole(body: &mut Body) -> Result<VecDeque<Bytes>, Status> {
    let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
    let data = match frame.transpose()?.map(Frame::into_data) {
        Some(Ok(data)) => data,
        // An answer has a message, and refusals do not come here.
        Some(Err(_)) | None => {
            return Err(Status::from(&Refusal::internal("an answer is empty")));
        }
    };
    if data.len() <= MAX_WHOLE_FRAME {
        return Ok([data].into());
    }
    // The pieces are copies, since a slice would keep the whole message for as long as it is
    // queued.
    Ok(data.chunks(PIECE).map(Bytes::copy_from_slice).collect())
}

impl RemainingBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self {
            Self::Body(body) => Pin::new(body).poll_frame(cx),
            Self::Trailers => {
                *self = Self::Nothing;
                let mut trailers = http::HeaderMap::with_capacity(1);
                trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from_static("0"));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Self::Nothing => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Body(body) => body.is_end_stream(),
            Self::Trailers => false,
            Self::Nothing => true,
        }
    }
}

impl State {
    /// Returns the bytes that the caller may take now: those that HTTP/2 holds and has not written,
    /// and those that it gets next.
    fn ready_bytes(&self) -> u64 {
        let queued: usize = self.queue.iter().map(Bytes::len).sum();
        (self.unwritten_bytes + queued) as u64
    }

    /// Records that HTTP/2 has written `bytes`, and returns the task that waited for that.
    fn took(&mut self, bytes: usize) -> Option<Waker> {
        self.unwritten_bytes -= bytes;
        if self.unwritten_bytes == 0 && self.queue.is_empty() {
            self.data_rate.took_all();
        } else {
            self.data_rate.took(bytes, Instant::now());
        }
        if self.kind.is_unary()
            && let Some(charge) = &mut self.charge
        {
            charge.release(bytes as u64);
        }
        self.waker.take()
    }

    /// Drops the rest of the answer, and releases its charge but for the bytes that HTTP/2 holds.
    /// Returns what the caller has to drop and wake once the lock is free.
    fn give_up(&mut self) -> (Option<RemainingBody>, Option<Waker>) {
        self.queue.clear();
        if let Some(charge) = &mut self.charge {
            charge.release_run_quota();
            charge.shrink_to(self.unwritten_bytes as u64);
        }
        (self.remaining.take(), self.waker.take())
    }

    /// Reports whether HTTP/2 still holds too much to be given more.
    fn has_to_wait(&self) -> bool {
        match self.queue.front() {
            Some(next) => {
                self.unwritten_bytes > 0
                    && self.unwritten_bytes + next.len() > PIECE + MAX_UNWRITTEN_FRAME
            }
            // The queue is empty, so the body makes the next frame, or the end.
            None if self.kind.is_unary() => self.unwritten_bytes > MAX_UNWRITTEN_FRAME,
            None => {
                self.unwritten_bytes > 0
                    && self.unwritten_bytes.max(self.last_frame) > MAX_UNWRITTEN_FRAME
            }
        }
    }

    /// Takes the next piece from the queue, if there is one, and counts it as unwritten.
    fn next_piece(&mut self, answer: &Arc<WatchedResponse>) -> Option<Bytes> {
        let bytes = self.queue.pop_front()?;
        self.unwritten_bytes += bytes.len();
        self.data_rate.ready(Instant::now());
        if self.kind.is_unary()
            && self.queue.is_empty()
            && let Some(charge) = &mut self.charge
        {
            charge.release_run_quota();
        }
        let answer = Arc::clone(answer);
        Some(Bytes::from_owner(UnwrittenPiece { bytes, answer }))
    }
}

impl http_body::Body for WatchedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut state = lock(&self.answer.0);
        if state.remaining.is_none() {
            // The caller never reads this, since HTTP/2 resets the stream. The log has a line about
            // the drop.
            let why = "an answer was dropped: it was taken too slowly";
            let refusal = Refusal::new(Reason::Internal, why);
            return Poll::Ready(Some(Err(Status::from(&refusal))));
        }
        if state.has_to_wait() {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if let Some(piece) = state.next_piece(&self.answer) {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(rest) = &mut state.remaining else {
            return Poll::Ready(None);
        };
        let polled = rest.poll_frame(cx);
        let Poll::Ready(Some(Ok(frame))) = polled else {
            return polled;
        };
        let data = match frame.into_data() {
            Ok(data) if !data.is_empty() => data,
            Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
            Err(frame) => return Poll::Ready(Some(Ok(frame))),
        };
        state.last_frame = data.len();
        if data.len() > MAX_WHOLE_FRAME {
            // The pieces are copies, as in `whole`.
            let pieces = data.chunks(PIECE).map(Bytes::copy_from_slice);
            state.queue.extend(pieces);
        } else {
            state.queue.push_back(data);
        }
        let piece = state.next_piece(&self.answer);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.answer.0);
        let rest = state.remaining.as_ref();
        state.queue.is_empty() && rest.is_some_and(RemainingBody::is_end_stream)
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        lock(&self.watchdog.0.responses).remove(self.key);
        // The pieces that HTTP/2 holds may stay unwritten for long.
        let mut state = lock(&self.answer.0);
        let gone = state.give_up();
        // From now on nobody can be told that they are taken too slowly.
        state.data_rate.took_all();
        drop(state);
        drop(gone);
    }
}
