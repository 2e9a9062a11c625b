//! The body of a request, capped, charged and checked as it is read: framed as gRPC says.
//!
//! tonic would answer a message over its cap with OUT_OF_RANGE and a body that ends too soon with INTERNAL. This body sees
//! the five-byte prefixes first and refuses in the API's terms.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body as _, Frame};
use tokio::time::Sleep;
use tonic::Status;

use super::input_calls::{InputCall, STREAM_WINDOW};
use super::intake::Charge;
use super::message_cap::MessageCap;
use super::status;
use crate::refusal::{Reason, Refusal};
use crate::sandbox::MAX_STDIN_CHUNK;

/// What an upload holds at the most, however long it is: what has not been read, a message that arrives, one that is looked
/// at, and what is put together in memory.
const UPLOAD_HOLDS: usize = (3 << 20) + STREAM_WINDOW as usize;
/// Bytes of a message of an interaction after its first.
const INTERACT_MESSAGE: u64 = MAX_STDIN_CHUNK as u64 + 1024;
/// What an interaction holds at the most after its first message: what has not been read, a message that arrives, one that
/// waits, and what the guest has yet to read.
const INTERACT_HOLDS: usize = 4 * MAX_STDIN_CHUNK + STREAM_WINDOW as usize;
/// Bytes of the prefix of a gRPC message: a flag and a length.
const PREFIX: usize = 5;

/// What the requests of a method are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// Exactly one message, charged for as long as any of it is held.
    Unary,
    /// Messages that are used up as they come: charged for what an upload holds at once.
    Upload,
    /// One message, which is charged for as long as the others come, since what it arrived in is used for them too; then
    /// small ones, as far apart as their caller likes: charged for what they hold at once.
    Interact,
    /// One message, so small that it is not charged, which has to be there as a whole in the time that others have for
    /// their next bytes.
    Health,
    /// Of a service that is not ours: small, short-lived, and not charged.
    Foreign,
}

impl RequestKind {
    /// Whether its messages are read as something comes of those before them, and lie in the connection until then.
    pub(super) fn takes_input(self) -> bool {
        match self {
            Self::Upload | Self::Interact | Self::Foreign => true,
            Self::Unary | Self::Health => false,
        }
    }
}

/// Where in the stream of messages the next byte stands.
#[derive(Debug)]
enum Framing {
    /// So many bytes of a prefix are there.
    Prefix([u8; PREFIX], usize),
    /// So many bytes of a message are missing.
    Message(u64),
}

/// The one message of a body, which is checked to have exactly one, without copying it where it came at once.
pub(super) async fn only_message<B>(mut body: MeteredBody<B>) -> Result<Bytes, Status>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame?.into_data() else {
            // Trailers, which say nothing here.
            continue;
        };
        if first.is_empty() && joined.is_empty() {
            first = data;
            continue;
        }
        joined.extend_from_slice(&std::mem::take(&mut first));
        joined.extend_from_slice(&data);
    }
    let mut message = match joined.is_empty() {
        true => first,
        false => joined.freeze(),
    };
    message.advance(PREFIX.min(message.len()));
    Ok(message)
}

/// What the body of a request has to keep to.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyRules {
    pub(super) kind: RequestKind,
    /// The most bytes of a message.
    pub(super) cap: MessageCap,
    /// The most bytes that all requests may hold.
    pub(super) budget: u64,
    /// How long the next bytes of a message may take.
    pub(super) stall: Duration,
}

/// A body that is capped, charged and checked as it is read.
pub(super) struct MeteredBody<B> {
    body: B,
    charge: Charge,
    cap: MessageCap,
    budget: u64,
    state: Framing,
    kind: RequestKind,
    /// Whether it has been charged at all.
    charged: bool,
    messages: u64,
    failed: bool,
    stall: Duration,
    /// Set while the next bytes are waited for.
    silent: Option<Pin<Box<Sleep>>>,
    /// Counted for as long as what it has not read lies in the connection.
    _input: Option<InputCall>,
}

impl<B> MeteredBody<B> {
    /// Creates one of `body`, which is charged to `charge`. `input` is counted for as long as it is read.
    pub(super) fn new(body: B, rules: BodyRules, charge: Charge, input: Option<InputCall>) -> Self {
        let BodyRules {
            kind,
            cap,
            budget,
            stall,
        } = rules;
        Self {
            body,
            charge,
            cap,
            budget,
            state: Framing::Prefix([0; PREFIX], 0),
            kind,
            charged: false,
            messages: 0,
            failed: false,
            stall,
            silent: None,
            _input: input,
        }
    }

    /// Follows the framing over `data`.
    fn follow(&mut self, mut data: &[u8]) -> Result<(), Refusal> {
        while data.has_remaining() {
            match &mut self.state {
                Framing::Prefix(prefix, have) => {
                    let n = data.remaining().min(PREFIX - *have);
                    data.copy_to_slice(&mut prefix[*have..*have + n]);
                    *have += n;
                    if *have == PREFIX {
                        let [flag, length @ ..] = *prefix;
                        let length = u64::from(u32::from_be_bytes(length));
                        self.begin(flag, length)?;
                    }
                }
                Framing::Message(left) => {
                    let n = (data.remaining() as u64).min(*left);
                    *left -= n;
                    if *left == 0 {
                        self.state = Framing::Prefix([0; PREFIX], 0);
                        self.complete()?;
                    }
                    // At most `remaining`, which is a usize.
                    data.advance(usize::try_from(n).unwrap_or(usize::MAX));
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, flag: u8, length: u64) -> Result<(), Refusal> {
        if flag != 0 {
            return Err(malformed("the message is compressed, which is not offered"));
        }
        self.messages += 1;
        if matches!(self.kind, RequestKind::Unary | RequestKind::Health) && self.messages > 1 {
            return Err(malformed("there is more than one message"));
        }
        if length > self.cap.bytes() {
            return Err(self.cap.refuse(length));
        }
        if length == 0 {
            self.state = Framing::Prefix([0; PREFIX], 0);
            return self.complete();
        }
        self.state = Framing::Message(length);
        Ok(())
    }

    /// Takes note that a message is there as a whole.
    fn complete(&mut self) -> Result<(), Refusal> {
        if self.kind != RequestKind::Interact || self.messages > 1 {
            return Ok(());
        }
        // What those after it hold, before the run starts.
        let hint = "a piece of standard input has 64 KiB";
        self.cap = MessageCap::fixed(INTERACT_MESSAGE, hint);
        self.charge.add(INTERACT_HOLDS, self.budget)
    }

    /// Charges what came, of the `first` message or of others; or what all of them may hold.
    fn charge(&mut self, first: bool, bytes: usize) -> Result<(), Refusal> {
        let holds = match self.kind {
            RequestKind::Unary => bytes,
            RequestKind::Upload if !self.charged => UPLOAD_HOLDS,
            RequestKind::Interact if first => bytes,
            RequestKind::Interact
            | RequestKind::Upload
            | RequestKind::Foreign
            | RequestKind::Health => return Ok(()),
        };
        self.charged = true;
        self.charge.add(holds, self.budget)
    }

    /// Whether the first message is not there as a whole.
    fn is_first(&self) -> bool {
        match self.state {
            Framing::Prefix(..) => self.messages == 0,
            Framing::Message(_) => self.messages == 1,
        }
    }

    /// Whether nothing need come for now.
    fn rests(&self) -> bool {
        match self.kind {
            RequestKind::Foreign | RequestKind::Interact => {
                self.messages > 0 && matches!(self.state, Framing::Prefix(_, 0))
            }
            RequestKind::Unary | RequestKind::Upload | RequestKind::Health => false,
        }
    }

    fn check_end(&self) -> Result<(), Refusal> {
        match self.state {
            Framing::Prefix(_, 0) if self.kind != RequestKind::Foreign && self.messages == 0 => {
                Err(malformed("there is no message"))
            }
            Framing::Prefix(_, 0) => Ok(()),
            Framing::Prefix(..) | Framing::Message(_) => {
                Err(malformed("the request ends in the middle of a message"))
            }
        }
    }

    fn fail(&mut self, refusal: &Refusal) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.failed = true;
        Poll::Ready(Some(Err(status::from(refusal))))
    }
}

fn malformed(message: &str) -> Refusal {
    Refusal::new(Reason::MalformedRequest, message)
}

impl<B> http_body::Body for MeteredBody<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_pending() && !self.rests() {
            // The rest of a message must come; a caller that never sends it would hold its charge for ever.
            let stall = self.stall;
            let silent = self
                .silent
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
            ready!(silent.as_mut().poll(cx));
            let message = format!(
                "the rest of the message did not come within {} (server.request_stall)",
                humantime::format_duration(stall)
            );
            return self.fail(&malformed(&message));
        }
        if self.kind != RequestKind::Health {
            self.silent = None;
        }
        let frame = match ready!(polled) {
            Some(Ok(frame)) => frame,
            // The transport tells a reset as an end without an error: half of a message, or half of an upload.
            Some(Err(_)) => return self.fail(&malformed("the request was broken off")),
            None if !self.body.is_end_stream() => {
                return self.fail(&malformed("the request was broken off"));
            }
            None => {
                return match self.check_end() {
                    Ok(()) => Poll::Ready(None),
                    Err(refusal) => self.fail(&refusal),
                };
            }
        };
        if frame.is_trailers()
            && let Err(refusal) = self.check_end()
        {
            // Nothing comes after them, and nobody looks whether all was there.
            return self.fail(&refusal);
        }
        if let Some(data) = frame.data_ref() {
            // The framing first: a message that is too large is refused for what it is.
            let first = self.is_first();
            let checked = self
                .follow(data)
                .and_then(|()| self.charge(first, data.len()));
            if let Err(refusal) = checked {
                return self.fail(&refusal);
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
