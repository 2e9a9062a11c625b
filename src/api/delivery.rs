//! Answers on their way out: charged until their last byte is written, and let go where they are
//! taken too slowly.
//!
//! HTTP/2 asks for the next piece of an answer as it has sent, or has queued, the one before. What it
//! was handed is out of reach here, so pieces are small, few are handed on at once, and each tells
//! when it is dropped: until then it is not taken, and charged.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes};
use http_body::{Body as _, Frame};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use slab::Slab;
use tonic::Status;
use tonic::body::Body;

use super::answer::{AnswerBudget, AnswerCharge, AnswerKind, BudgetedBytes, Enclosed};
use super::taking::{TakingClock, TakingPace};
use super::{proto, status};
use crate::log::Captured;
use crate::refusal::{Reason, Refusal};
use crate::run::{AnswerReservation, STREAMED_FRAMES, Tenant, Untold};

/// Bytes of a frame that is handed on as it is: an event and what is around it.
const LARGE: usize = 128 << 10;
/// Bytes of what a larger one is cut into. HTTP/2 gets the next piece when it holds less than that:
/// where it waits for that, and not for its caller to make room, its stream can still be reset.
const PIECE: usize = 64 << 10;
/// Bytes of a frame of a stream that need not be taken before the next one is made.
const SMALL: usize = 16 << 10;
/// How often answers are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes of the prefix of a gRPC message: a flag and a length.
const PREFIX: usize = 5;
/// The fields of a `RunResponse` that its output is in.
const STDOUT: u32 = 2;
const STDERR: u32 = 3;

/// All answers on their way out.
#[derive(Clone, Debug)]
pub struct Deliveries(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pace: TakingPace,
    budget: Arc<AnswerBudget>,
    /// Those whose bodies HTTP/2 has not dropped.
    answers: Mutex<Slab<Arc<Answer>>>,
}

#[derive(Debug)]
struct Answer(Mutex<State>);

#[derive(Debug)]
struct State {
    kind: AnswerKind,
    /// What makes the rest of it; `None` once it was let go.
    rest: Option<Rest>,
    /// What is to be handed on.
    queue: VecDeque<Bytes>,
    /// Bytes that were handed on and are not written yet.
    untaken: usize,
    /// Bytes of the last frame that the body made.
    last_frame: usize,
    clock: TakingClock,
    charge: Option<AnswerCharge>,
    /// Who waits until less is untaken.
    waker: Option<Waker>,
}

/// What makes the rest of an answer.
#[derive(Debug)]
enum Rest {
    /// The body that a service made.
    Body(Body),
    /// The trailers that say that all went well.
    Trailers,
    /// Nothing: all of it was made.
    Nothing,
}

/// An answer's body.
pub(super) struct Delivery {
    answers: Deliveries,
    /// Where it stands among them.
    key: usize,
    answer: Arc<Answer>,
    /// A drain waits for it.
    _untold: Option<Untold>,
}

/// A piece that was handed on, until HTTP/2 has written it.
struct Piece {
    bytes: Bytes,
    answer: Arc<Answer>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut state = lock(&self.answer.0);
        let waker = state.took(self.bytes.len());
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Deliveries {
    /// Creates the answers of a daemon, with a budget of `bytes` for those that no run's reservation
    /// holds, to be taken at `pace`.
    pub(super) fn new(bytes: u64, pace: TakingPace) -> Self {
        Self(Arc::new(Shared {
            pace,
            budget: AnswerBudget::new(bytes),
            answers: Mutex::default(),
        }))
    }

    /// Charges `tenant` for an answer of `kind` before there is one.
    ///
    /// # Errors
    /// `QUEUE_FULL`.
    pub(super) fn enter(
        &self,
        kind: AnswerKind,
        tenant: Option<Arc<Tenant>>,
    ) -> Result<BudgetedBytes, Refusal> {
        self.0.budget.enter(kind, tenant)
    }

    /// Charges an answer for what it holds, and watches over it. One that there is no room for becomes
    /// a refusal.
    pub(super) async fn send(
        &self,
        kind: AnswerKind,
        budgeted: BudgetedBytes,
        answer: http::Response<Body>,
    ) -> http::Response<Body> {
        let (mut head, mut body) = answer.into_parts();
        let untold = head.extensions.remove::<Untold>();
        let enclosed = head.extensions.remove::<Enclosed>();
        if body.is_end_stream() {
            // A refusal, which is in its headers.
            return http::Response::from_parts(head, body);
        }
        let reservation = enclosed.and_then(|it| it.take());
        let queue = match kind.is_whole() {
            true => match whole(&mut body).await {
                Ok(queue) => queue,
                Err(status) => return status.into_http(),
            },
            false => VecDeque::new(),
        };
        match charged(kind, &queue, reservation, || Ok(budgeted)) {
            Ok(charge) => {
                let delivery = self.watch(kind, Rest::Body(body), queue, charge, untold);
                http::Response::from_parts(head, Body::new(delivery))
            }
            Err(refusal) => {
                let mut refused = status::from(&refusal).into_http();
                let run_id = head.headers.remove(status::RUN_ID);
                let run_id = run_id.map(|id| (status::RUN_ID, id));
                refused.headers_mut().extend(run_id);
                refused
            }
        }
    }

    /// The answer to a `Run` of `tenant`, with `output` in its message, charged and watched over in the same way.
    ///
    /// # Errors
    /// Where there is no room for it.
    pub(super) fn send_run(
        &self,
        tenant: &Arc<Tenant>,
        message: &proto::RunResponse,
        output: Captured,
        reservation: Option<AnswerReservation>,
        untold: Option<Untold>,
    ) -> Result<Delivery, Refusal> {
        const KIND: AnswerKind = AnswerKind::Run;
        let queue = with_output(message, output)?;
        let budgeted = || self.enter(KIND, Some(Arc::clone(tenant)));
        let charge = charged(KIND, &queue, reservation, budgeted)?;
        Ok(self.watch(KIND, Rest::Trailers, queue, charge, untold))
    }

    fn watch(
        &self,
        kind: AnswerKind,
        rest: Rest,
        queue: VecDeque<Bytes>,
        charge: AnswerCharge,
        untold: Option<Untold>,
    ) -> Delivery {
        let mut clock = TakingClock::new(self.0.pace);
        if !queue.is_empty() {
            clock.ready(Instant::now());
        }
        let answer = Arc::new(Answer(Mutex::new(State {
            kind,
            rest: Some(rest),
            queue,
            untaken: 0,
            last_frame: 0,
            clock,
            charge: Some(charge),
            waker: None,
        })));
        let key = lock(&self.0.answers).insert(Arc::clone(&answer));
        Delivery {
            answers: self.clone(),
            key,
            answer,
            _untold: untold,
        }
    }

    /// Lets answers go that are taken too slowly, for as long as it is polled.
    pub async fn let_go(&self) {
        loop {
            tokio::time::sleep(LOOK.min(self.0.pace.grace)).await;
            let now = Instant::now();
            let mut gone = Vec::new();
            for (_, answer) in lock(&self.0.answers).iter() {
                let mut state = lock(&answer.0);
                if state.clock.is_overdue(now) {
                    gone.push(state.give_up());
                    // Nothing of it is ready any more.
                    state.clock.took_all();
                }
            }
            if !gone.is_empty() {
                tracing::warn!(
                    answers = gone.len(),
                    "answers were dropped: they were taken too slowly"
                );
            }
            // Outside the locks: a body ends its run, and HTTP/2 resets the stream.
            for (rest, waker) in gone {
                drop(rest);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }
}

/// What is charged for an answer of `kind` with `queue` in it: a part of the run's reservation where there is one of so
/// many bytes, else of the budget.
fn charged(
    kind: AnswerKind,
    queue: &VecDeque<Bytes>,
    reservation: Option<AnswerReservation>,
    budgeted: impl FnOnce() -> Result<BudgetedBytes, Refusal>,
) -> Result<AnswerCharge, Refusal> {
    let bytes = match kind {
        AnswerKind::Run | AnswerKind::Whole => queue.iter().map(Bytes::len).sum::<usize>() as u64,
        AnswerKind::RunStream | AnswerKind::Stream => STREAMED_FRAMES,
        AnswerKind::Health => 0,
    };
    let mut charge = match reservation.filter(|it| it.bytes() >= bytes) {
        Some(reservation) => AnswerCharge::Reserved(reservation),
        None => {
            let mut budgeted = budgeted()?;
            budgeted.grow_to(bytes)?;
            AnswerCharge::Budgeted(budgeted)
        }
    };
    if kind.is_whole() {
        charge.shrink_to(bytes);
    }
    Ok(charge)
}

/// The one message that `body` makes, in pieces.
async fn whole(body: &mut Body) -> Result<VecDeque<Bytes>, Status> {
    let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
    let data = match frame.transpose()?.map(Frame::into_data) {
        Some(Ok(data)) => data,
        // It has a message: refusals do not come here.
        Some(Err(_)) | None => return Err(status::from(&Refusal::internal("an answer is empty"))),
    };
    if data.len() <= LARGE {
        return Ok([data].into());
    }
    // Copies: a slice would keep the whole of it for as long as it is queued.
    Ok(data.chunks(PIECE).map(Bytes::copy_from_slice).collect())
}

/// `message` in its frame, with `output` after its other fields, in the pieces that it was captured in.
fn with_output(message: &proto::RunResponse, output: Captured) -> Result<VecDeque<Bytes>, Refusal> {
    const UNCOMPRESSED: u8 = 0;
    let fields = [(STDOUT, output.stdout), (STDERR, output.stderr)].map(|(field, pieces)| {
        let bytes = pieces.iter().map(Bytes::len).sum::<usize>();
        (field, pieces, bytes)
    });
    let (mut length, mut room) = (message.encoded_len(), PREFIX);
    room += length;
    for (field, pieces, bytes) in &fields {
        if *bytes > 0 {
            let head = key_len(*field) + encoded_len_varint(*bytes as u64);
            length += head + bytes;
            room += head + if is_short(pieces) { *bytes } else { 0 };
        }
    }
    let length =
        u32::try_from(length).map_err(|_| Refusal::internal("an answer is above 4 GiB"))?;
    let mut queue = VecDeque::new();
    // prost writes most bytes one by one, which is a call each into `BytesMut`.
    let mut piece = Vec::with_capacity(room);
    piece.put_u8(UNCOMPRESSED);
    piece.put_u32(length);
    message.encode_raw(&mut piece);
    for (field, pieces, bytes) in fields {
        if bytes == 0 {
            continue;
        }
        encode_key(field, WireType::LengthDelimited, &mut piece);
        encode_varint(bytes as u64, &mut piece);
        if is_short(&pieces) {
            pieces.iter().for_each(|only| piece.put_slice(only));
        } else {
            queue.push_back(Bytes::from(std::mem::take(&mut piece)));
            queue.extend(pieces);
        }
    }
    if !piece.is_empty() {
        queue.push_back(Bytes::from(piece));
    }
    Ok(queue)
}

/// Whether output is so little that it is copied into the piece with the message.
fn is_short(output: &[Bytes]) -> bool {
    matches!(output, [only] if only.len() <= SMALL)
}

impl Rest {
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
    /// Takes note that HTTP/2 has written `bytes`; returns who waited for that.
    fn took(&mut self, bytes: usize) -> Option<Waker> {
        self.untaken -= bytes;
        if self.untaken == 0 && self.queue.is_empty() {
            self.clock.took_all();
        } else {
            self.clock.took(bytes, Instant::now());
        }
        if self.kind.is_whole()
            && let Some(charge) = &mut self.charge
        {
            charge.release(bytes as u64);
        }
        self.waker.take()
    }

    /// Drops what is still here, and all that was charged for it; returns what is to be dropped and
    /// woken when the lock is free.
    fn give_up(&mut self) -> (Option<Rest>, Option<Waker>) {
        self.queue.clear();
        if let Some(charge) = &mut self.charge {
            charge.handed_on();
            charge.shrink_to(self.untaken as u64);
        }
        (self.rest.take(), self.waker.take())
    }

    /// Whether HTTP/2 still holds too much to be given more.
    fn has_to_wait(&self) -> bool {
        match self.queue.front() {
            Some(next) => self.untaken > 0 && self.untaken + next.len() > PIECE + SMALL,
            // The body makes the next frame, or the end.
            None if self.kind.is_whole() => self.untaken > SMALL,
            None => self.untaken > 0 && self.untaken.max(self.last_frame) > SMALL,
        }
    }

    /// The next piece, where there is one.
    fn next_piece(&mut self, answer: &Arc<Answer>) -> Option<Bytes> {
        let bytes = self.queue.pop_front()?;
        self.untaken += bytes.len();
        self.clock.ready(Instant::now());
        if self.kind.is_whole()
            && self.queue.is_empty()
            && let Some(charge) = &mut self.charge
        {
            charge.handed_on();
        }
        let answer = Arc::clone(answer);
        Some(Bytes::from_owner(Piece { bytes, answer }))
    }
}

impl http_body::Body for Delivery {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut state = lock(&self.answer.0);
        if state.rest.is_none() {
            // Never read: HTTP/2 resets the stream. That it was dropped was told to the log.
            let why = "an answer was dropped: it was taken too slowly";
            let refusal = Refusal::new(Reason::Internal, why);
            return Poll::Ready(Some(Err(status::from(&refusal))));
        }
        if state.has_to_wait() {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if let Some(piece) = state.next_piece(&self.answer) {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(rest) = &mut state.rest else {
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
        if data.len() > LARGE {
            // Copies, as above.
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
        let rest = state.rest.as_ref();
        state.queue.is_empty() && rest.is_some_and(Rest::is_end_stream)
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        lock(&self.answers.0.answers).remove(self.key);
        // Its pieces may be on their way for long.
        let mut state = lock(&self.answer.0);
        let gone = state.give_up();
        // Nobody can be told any more that they are taken too slowly.
        state.clock.took_all();
        drop(state);
        drop(gone);
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A body that panicked is not polled again by HTTP/2; it may still be dropped.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
