//! The body of a request, which is capped, charged and checked against gRPC's framing as it is
//! read.
//!
//! tonic would answer a message over its cap with `OUT_OF_RANGE`, and a body that ends too soon
//! with `INTERNAL`. This body sees the five-byte prefixes first, and refuses in the terms of the
//! API.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body as _, Frame};
use tokio::time::Sleep;
use tonic::Status;

use super::message_cap::MessageCap;
use crate::api::client_streaming_calls::{ClientStreamingCallGuard, STREAM_WINDOW};
use crate::model::refusal::{Reason, Refusal};
use crate::run::RequestCharge;
use crate::sandbox::MAX_STDIN_CHUNK;

/// The most bytes that an upload holds at once, however long it is: what has not been read, a
/// message that is arriving, one that is being handled, and what is put together in memory.
const UPLOAD_HOLDS: usize = (3 << 20) + STREAM_WINDOW as usize;
/// The most bytes of a message that has a piece of input: of an interaction after its first one,
/// and of a call that sends input.
pub(in crate::api) const INPUT_MESSAGE: u64 = MAX_STDIN_CHUNK as u64 + 1024;
/// The most bytes that an interaction holds at once after its first message: what has not been
/// read, a message that is arriving, one that waits, and what the guest has yet to read.
const INTERACT_HOLDS: usize = 4 * MAX_STDIN_CHUNK + STREAM_WINDOW as usize;
/// The bytes of a gRPC message's prefix: a flag and a length.
const PREFIX: usize = 5;

/// How the request messages of a method arrive, and what they are charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum RequestKind {
    /// Exactly one message, which is charged for as long as any of it is held.
    Unary,
    /// Messages that are used up as they arrive, and charged together for the most that an upload
    /// holds at once.
    Upload,
    /// One message, then small ones that may be far apart. The first is charged for as long as the
    /// others come, since the memory that it arrived in is used for them too. The others are
    /// charged together for the most that they hold at once.
    Interact,
    /// One message, so small that it is not charged. The whole of it has to arrive in the time that
    /// other requests have for their next bytes.
    Health,
    /// Messages of a service that is not ours. They are small, short-lived and not charged.
    Foreign,
}

impl RequestKind {
    /// Reports whether each message is read only once something has come of those before it. Until
    /// then it stays in the connection.
    pub(in crate::api) fn is_client_streaming(self) -> bool {
        match self {
            Self::Upload | Self::Interact | Self::Foreign => true,
            Self::Unary | Self::Health => false,
        }
    }
}

/// The position of the next byte in the stream of messages.
#[derive(Debug)]
enum Framing {
    /// In a prefix, of which this many bytes are there.
    Prefix([u8; PREFIX], usize),
    /// In a message, of which this many bytes are missing.
    Message(u64),
}

/// Reads a body to its end and returns its one message, of which the body checks that there is
/// exactly one. The message is not copied if it arrived in one piece.
pub(in crate::api) async fn only_message<B>(mut body: MeteredBody<B>) -> Result<Bytes, Status>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame?.into_data() else {
            // Trailers carry nothing that matters here.
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

/// The rules that the body of a request has to keep to.
#[derive(Clone, Copy, Debug)]
pub(in crate::api) struct BodyRules {
    pub(in crate::api) kind: RequestKind,
    /// The cap on each message.
    pub(in crate::api) cap: MessageCap,
    /// How long the next bytes of a message may take to arrive.
    pub(in crate::api) stall: Duration,
}

/// A request body that is capped, charged and checked as it is read.
pub(in crate::api) struct MeteredBody<B> {
    body: B,
    charge: RequestCharge,
    cap: MessageCap,
    state: Framing,
    kind: RequestKind,
    /// Whether anything has been charged yet.
    charged: bool,
    messages: u64,
    failed: bool,
    stall: Duration,
    /// Runs while the next bytes are awaited, and for a health request until all of it is there;
    /// `None` otherwise.
    stall_timer: Option<Pin<Box<Sleep>>>,
    /// Keeps the call counted for as long as unread input may lie in the connection; `None` for a
    /// method that reads everything.
    _input: Option<ClientStreamingCallGuard>,
}

impl<B> MeteredBody<B> {
    /// Wraps `body` and charges it to `charge`. The call that `input` stands for stays counted for
    /// as long as the body is read.
    pub(in crate::api) fn new(
        body: B,
        rules: BodyRules,
        charge: RequestCharge,
        input: Option<ClientStreamingCallGuard>,
    ) -> Self {
        let BodyRules { kind, cap, stall } = rules;
        Self {
            body,
            charge,
            cap,
            state: Framing::Prefix([0; PREFIX], 0),
            kind,
            charged: false,
            messages: 0,
            failed: false,
            stall,
            stall_timer: None,
            _input: input,
        }
    }

    /// Advances the framing over `data`, and checks every message that begins or ends in it.
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
                    // This is at most `remaining`, which is a `usize`.
                    data.advance(usize::try_from(n).unwrap_or(usize::MAX));
                }
            }
        }
        Ok(())
    }

    /// Checks the prefix of a message, which announces `length` bytes.
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

    /// Handles a message that is there as a whole. After the first message of an interaction, the
    /// rules for the others apply.
    fn complete(&mut self) -> Result<(), Refusal> {
        if self.kind != RequestKind::Interact || self.messages > 1 {
            return Ok(());
        }
        // What the later messages may hold is charged now, before the run starts.
        let hint = "a piece of standard input has 64 KiB";
        self.cap = MessageCap::fixed(INPUT_MESSAGE, hint);
        self.charge.add(INTERACT_HOLDS)
    }

    /// Charges `bytes` that arrived, of the `first` message or of others. For an upload, what all
    /// of it may hold is charged at once.
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
        self.charge.add(holds)
    }

    /// Reports whether the first message is not there as a whole.
    fn is_first(&self) -> bool {
        match self.state {
            Framing::Prefix(..) => self.messages == 0,
            Framing::Message(_) => self.messages == 1,
        }
    }

    /// Reports whether the caller may be silent for now, since no message is under way.
    fn rests(&self) -> bool {
        match self.kind {
            RequestKind::Foreign | RequestKind::Interact => {
                self.messages > 0 && matches!(self.state, Framing::Prefix(_, 0))
            }
            RequestKind::Unary | RequestKind::Upload | RequestKind::Health => false,
        }
    }

    /// Checks that the body may end here: not inside a message, and not before the first one
    /// either, unless the service is not ours.
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

    /// Ends the body with a refusal; later polls return nothing.
    fn fail(&mut self, refusal: &Refusal) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.failed = true;
        Poll::Ready(Some(Err(Status::from(refusal))))
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
            // The rest of the message has to arrive: a caller that never sends it would hold its
            // charge for ever.
            let stall = self.stall;
            let silent = self
                .stall_timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
            ready!(silent.as_mut().poll(cx));
            let message = format!(
                "the rest of the message did not come within {} (server.request_stall)",
                humantime::format_duration(stall)
            );
            return self.fail(&malformed(&message));
        }
        if self.kind != RequestKind::Health {
            self.stall_timer = None;
        }
        let frame = match ready!(polled) {
            Some(Ok(frame)) => frame,
            // The transport may also report a reset as an end without an error, after half of a
            // message or half of an upload.
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
            // Nothing follows trailers, and nobody else checks that everything is there.
            return self.fail(&refusal);
        }
        if let Some(data) = frame.data_ref() {
            // The framing is checked first, so that a message that is too large is refused as such.
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

#[cfg(test)]
mod tests;
