//! Request bytes on their way in: capped by method, charged to one budget as they arrive, framed as gRPC says.
//!
//! tonic would answer a message over its cap with OUT_OF_RANGE and a body that ends too soon with INTERNAL. This layer
//! sees the five-byte prefixes first and refuses in the API's terms.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::status;
use crate::refusal::{Reason, Refusal};

/// Bytes of a message of a service that is not ours: health and reflection.
const MAX_FOREIGN: u64 = 64 << 10;
/// What a LoadModule request may take besides its module.
const LOAD_SLACK: u64 = 64 << 10;
/// Bytes of the prefix of a gRPC message: a flag and a length.
const PREFIX: usize = 5;
/// What a refused caller is told to wait.
const RETRY: Duration = Duration::from_millis(500);

/// What requests may hold.
#[derive(Clone, Copy, Debug)]
pub struct IntakeSettings {
    /// Bytes of a message of every method but LoadModule.
    pub max_message: u64,
    /// Bytes of a module.
    pub max_module: u64,
    /// Bytes of all requests at once.
    pub inflight: u64,
}

/// The layer.
#[derive(Clone, Debug)]
pub struct Intake {
    settings: IntakeSettings,
    held: Arc<AtomicU64>,
}

/// What a request holds of the budget; given back when the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Charge(Arc<Held>);

#[derive(Debug)]
struct Held {
    total: Arc<AtomicU64>,
    bytes: AtomicU64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        self.total.fetch_sub(bytes, Ordering::AcqRel);
    }
}

impl Intake {
    /// With a budget of its own.
    pub fn new(settings: IntakeSettings) -> Self {
        Self {
            settings,
            held: Arc::default(),
        }
    }

    fn cap(&self, path: &str) -> u64 {
        if path == "/ringfence.v1.SandboxService/LoadModule" {
            self.settings.max_module.saturating_add(LOAD_SLACK)
        } else if path.starts_with("/ringfence.v1.") {
            self.settings.max_message
        } else {
            MAX_FOREIGN
        }
    }
}

impl<S> Layer<S> for Intake {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            inner,
            intake: self.clone(),
        }
    }
}

/// A service behind the layer.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    intake: Intake,
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> S::Future {
        let charge = Charge(Arc::new(Held {
            total: Arc::clone(&self.intake.held),
            bytes: AtomicU64::new(0),
        }));
        request.extensions_mut().insert(charge.clone());
        let path = request.uri().path();
        let ours = path.starts_with("/ringfence.v1.");
        let cap = self.intake.cap(path);
        let budget = self.intake.settings.inflight;
        let request = request.map(|body| {
            Body::new(Counted {
                body,
                charge,
                cap,
                budget,
                state: Framing::Prefix([0; PREFIX], 0),
                expects_message: ours,
                failed: false,
            })
        });
        self.inner.call(request)
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

/// A body that is capped, charged and checked as it is read.
struct Counted {
    body: Body,
    charge: Charge,
    cap: u64,
    budget: u64,
    state: Framing,
    /// No whole message has come, and one must.
    expects_message: bool,
    failed: bool,
}

impl Counted {
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
        if length > self.cap {
            return Err(Refusal::new(
                Reason::MessageTooLarge,
                format!(
                    "the message of {length} bytes is above the maximum of {} for this method",
                    self.cap
                ),
            )
            .with("asked", length)
            .with("allowed", self.cap));
        }
        self.expects_message = false;
        self.state = if length == 0 {
            Framing::Prefix([0; PREFIX], 0)
        } else {
            Framing::Message(length)
        };
        Ok(())
    }

    fn charge(&self, bytes: usize) -> Result<(), Refusal> {
        let bytes = bytes as u64;
        let Held { total, bytes: mine } = &*self.charge.0;
        let fits = total.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
            held.checked_add(bytes).filter(|held| *held <= self.budget)
        });
        match fits {
            Ok(_) => {
                mine.fetch_add(bytes, Ordering::AcqRel);
                Ok(())
            }
            Err(_) => Err(Refusal::new(
                Reason::QueueFull,
                format!(
                    "requests in flight hold {} bytes already (server.inflight_request_bytes)",
                    self.budget
                ),
            )
            .retry_after(RETRY)),
        }
    }

    fn check_end(&self) -> Result<(), Refusal> {
        match self.state {
            Framing::Prefix(_, 0) if !self.expects_message => Ok(()),
            Framing::Prefix(_, 0) => Err(malformed("there is no message")),
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

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(status)) => return Poll::Ready(Some(Err(status))),
            None => {
                return match self.check_end() {
                    Ok(()) => Poll::Ready(None),
                    Err(refusal) => self.fail(&refusal),
                };
            }
        };
        if let Some(data) = frame.data_ref() {
            // The framing first: a message that is too large is refused for what it is.
            let checked = self.follow(data).and_then(|()| self.charge(data.len()));
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
