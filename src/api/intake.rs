//! Request bytes on their way in: capped by method, charged to one budget as they arrive, framed as gRPC says.
//!
//! tonic would answer a message over its cap with OUT_OF_RANGE and a body that ends too soon with INTERNAL. This layer
//! sees the five-byte prefixes first and refuses in the API's terms.

use std::any::Any;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body as _, Frame};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::answer::AnswerKind;
use super::delivery::Deliveries;
use super::inflight::{InflightBytes, take};
use super::input_calls::{InputCall, STREAM_WINDOW};
use super::listen::Peer;
use super::message_cap::MessageCap;
use super::taking::TakingPace;
use super::{codec, status};
use crate::limits::share_of;
use crate::refusal::{Reason, Refusal};
use crate::run::Tenant;
use crate::sandbox::MAX_STDIN_CHUNK;

/// Bytes of a message of a service that is not ours, which is reflection.
const MAX_FOREIGN: u64 = 64 << 10;
/// Bytes of a question about health, which may be left to everybody.
const MAX_HEALTH: u64 = 1 << 10;
/// What a message may take besides the module, or the part of it, that it carries.
const LOAD_SLACK: u64 = 64 << 10;
/// Bytes of one chunk of an upload, and of a message with one.
pub(super) const MAX_CHUNK: usize = 1 << 20;
const UPLOAD_MESSAGE: u64 = MAX_CHUNK as u64 + LOAD_SLACK;
/// What an upload holds at the most, however long it is: what has not been read, a message that arrives, one that is looked
/// at, and what is put together in memory.
const UPLOAD_HOLDS: usize = (3 << 20) + STREAM_WINDOW as usize;
/// Bytes of a question about runs: a selector has at most 32 labels of 256 bytes.
const MAX_QUESTION: u64 = 64 << 10;
/// Bytes of the first message of an interaction: a larger module is loaded before.
const INTERACT_START: u64 = 1 << 20;
/// Bytes of a message of an interaction after its first.
const INTERACT_MESSAGE: u64 = MAX_STDIN_CHUNK as u64 + 1024;
/// What an interaction holds at the most after its first message: what has not been read, a message that arrives, one that
/// waits, and what the guest has yet to read.
const INTERACT_HOLDS: usize = 4 * MAX_STDIN_CHUNK + STREAM_WINDOW as usize;
/// Bytes of the prefix of a gRPC message: a flag and a length.
const PREFIX: usize = 5;

/// What requests may hold.
#[derive(Clone, Copy, Debug)]
pub struct IntakeSettings {
    /// Bytes of a message of every method but those that take modules, answer questions about runs, or talk.
    pub max_message: u64,
    /// Bytes of a module.
    pub max_module: u64,
    /// Bytes of all requests at once.
    pub inflight: u64,
    /// How long the next bytes of a message may take.
    pub stall: Duration,
    /// Bytes of all answers at once that no run's reservation holds.
    pub inflight_answers: u64,
    /// How fast an answer must be taken.
    pub pace: TakingPace,
}

/// The layer.
#[derive(Clone, Debug)]
pub struct Intake {
    settings: IntakeSettings,
    held: Arc<AtomicU64>,
    deliveries: Deliveries,
}

/// What a request that came through the layer holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrival {
    /// What it holds of the budget.
    pub(super) charge: Option<Charge>,
}

impl Arrival {
    /// Of a request that came through the layer.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }
}

/// What a request holds of the budget; given back when the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Charge(Arc<Held>);

#[derive(Debug)]
struct Held {
    total: Arc<AtomicU64>,
    tenant: Option<Arc<Tenant>>,
    bytes: AtomicU64,
}

impl Charge {
    /// Holds it for whoever need not know what it is.
    pub(super) fn until_dropped(self) -> Arc<dyn Any + Send + Sync> {
        self.0
    }

    /// Adds `bytes`, of a budget of `budget` for all requests.
    fn add(&self, bytes: usize, budget: u64) -> Result<(), Refusal> {
        let bytes = bytes as u64;
        let Held {
            total,
            tenant,
            bytes: mine,
        } = &*self.0;
        if let Some(tenant) = tenant {
            let share = share_of(budget, tenant.shares);
            take(&tenant.request_bytes, bytes, share, REQUESTS)?;
        }
        if let Err(refusal) = take(total, bytes, budget, REQUESTS) {
            if let Some(tenant) = tenant {
                tenant.request_bytes.fetch_sub(bytes, Ordering::AcqRel);
            }
            return Err(refusal);
        }
        mine.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }
}

const REQUESTS: InflightBytes = InflightBytes {
    of: "requests in flight",
    setting: "server.inflight_request_bytes",
};

tokio::task_local! {
    /// The charge of the request that is being decoded.
    static CURRENT: Option<(Charge, u64)>;
}

/// Charges the request that is being decoded for what its entries take beyond their bytes.
pub(super) fn charge_decoding(bytes: usize) -> Result<(), Refusal> {
    let charged = CURRENT.try_with(|current| match current {
        Some((charge, budget)) => charge.add(bytes, *budget),
        None => Ok(()),
    });
    // Outside a request there is nobody to charge: a client decodes answers.
    charged.unwrap_or(Ok(()))
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        self.total.fetch_sub(bytes, Ordering::AcqRel);
        if let Some(tenant) = &self.tenant {
            tenant.request_bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
    }
}

impl Intake {
    /// With a budget of its own.
    pub fn new(settings: IntakeSettings) -> Self {
        Self {
            settings,
            held: Arc::default(),
            deliveries: Deliveries::new(settings.inflight_answers, settings.pace),
        }
    }

    /// The answers on their way out.
    pub fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    /// A charge of `tenant`, of nothing yet.
    fn charge(&self, tenant: Option<Arc<Tenant>>) -> Charge {
        Charge(Arc::new(Held {
            total: Arc::clone(&self.held),
            tenant,
            bytes: AtomicU64::new(0),
        }))
    }

    /// A body that is capped, charged and checked as it is read.
    fn counted<B>(
        &self,
        body: B,
        kind: Kind,
        cap: MessageCap,
        charge: Charge,
        input: Option<InputCall>,
    ) -> Counted<B> {
        Counted {
            body,
            charge,
            cap,
            budget: self.settings.inflight,
            state: Framing::Prefix([0; PREFIX], 0),
            kind,
            charged: false,
            messages: 0,
            failed: false,
            stall: self.settings.stall,
            silent: None,
            _input: input,
        }
    }

    /// Takes in the one message of a call of `tenant` to the unary method at `path`, and decodes it.
    ///
    /// # Errors
    /// What its caller is told.
    pub(super) async fn unary<M, B>(
        &self,
        path: &str,
        tenant: Arc<Tenant>,
        body: B,
    ) -> Result<(M, Charge), Status>
    where
        M: prost::Message + Default + 'static,
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let charge = self.charge(Some(tenant));
        let (kind, cap) = self.kind(path);
        let body = self.counted(body, kind, cap, charge.clone(), None);
        let message = only_message(body).await?;
        let entries = |bytes| charge.add(bytes, self.settings.inflight);
        let message = codec::decoded_charged(message, entries);
        Ok((message.map_err(status::refused)?, charge))
    }

    /// What requests of a method are, and what their messages may be.
    fn kind(&self, path: &str) -> (Kind, MessageCap) {
        let (fixed, set) = (MessageCap::fixed, MessageCap::set);
        match path {
            "/ringfence.v1.SandboxService/LoadModule" => {
                let cap = self.settings.max_module.saturating_add(LOAD_SLACK);
                let hint = "compile.max_module and 64 KiB for the rest";
                (Kind::Unary, set(cap, "compile.max_module", hint))
            }
            "/ringfence.v1.ModuleService/UploadModule" => {
                (Kind::Upload, fixed(UPLOAD_MESSAGE, "a chunk has 1 MiB"))
            }
            "/ringfence.v1.RunService/Interact" => {
                let hint = "a larger module is loaded before, and run by its digest";
                (Kind::Interact, fixed(INTERACT_START, hint))
            }
            "/ringfence.v1.SandboxService/Health" => (Kind::Health, fixed(MAX_HEALTH, "")),
            path if path.starts_with("/grpc.health.v1.Health/") => {
                (Kind::Health, fixed(MAX_HEALTH, ""))
            }
            path if path.starts_with("/ringfence.v1.RunService/") => {
                (Kind::Unary, fixed(MAX_QUESTION, ""))
            }
            path if path.starts_with("/ringfence.v1.") => {
                let hint =
                    "server.max_message; a larger module is loaded before, and run by its digest";
                let cap = self.settings.max_message;
                (Kind::Unary, set(cap, "server.max_message", hint))
            }
            _ => (Kind::Foreign, fixed(MAX_FOREIGN, "")),
        }
    }
}

/// What the requests of a method are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
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

impl Kind {
    /// Whether its messages are read as something comes of those before them, and lie in the connection until then.
    fn takes_input(self) -> bool {
        match self {
            Self::Upload | Self::Interact | Self::Foreign => true,
            Self::Unary | Self::Health => false,
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
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let tenant = request.extensions().get::<Arc<Tenant>>().cloned();
        let deliveries = self.intake.deliveries.clone();
        let answers = AnswerKind::of(request.uri().path());
        let budgeted = match deliveries.enter(answers, tenant.clone()) {
            Ok(budgeted) => budgeted,
            Err(refusal) => {
                // Before anything is done for it, and unread.
                let refused = status::from(&refusal).into_http();
                return Box::pin(async move { Ok(refused) });
            }
        };
        let charge = self.intake.charge(tenant);
        let (kind, cap) = self.intake.kind(request.uri().path());
        let peer = request.extensions().get::<Peer>();
        let peer = peer.filter(|_| kind.takes_input());
        let input = match peer.map(|it| it.input_calls().begin()).transpose() {
            Ok(input) => input,
            // Its body is dropped unread.
            Err(refusal) => {
                return Box::pin(async move { Ok(status::from(&refusal).into_http()) });
            }
        };
        let charge_of_decoding = Some((charge.clone(), self.intake.settings.inflight));
        request.extensions_mut().insert(Arrival {
            charge: Some(charge.clone()),
        });
        let request =
            request.map(|body| Body::new(self.intake.counted(body, kind, cap, charge, input)));
        let answer = self.inner.call(request);
        Box::pin(CURRENT.scope(charge_of_decoding, async move {
            let answer = answer.await?;
            Ok(deliveries.send(answers, budgeted, answer).await)
        }))
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
async fn only_message<B>(mut body: Counted<B>) -> Result<Bytes, Status>
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

/// A body that is capped, charged and checked as it is read.
struct Counted<B> {
    body: B,
    charge: Charge,
    cap: MessageCap,
    budget: u64,
    state: Framing,
    kind: Kind,
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

impl<B> Counted<B> {
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
        if matches!(self.kind, Kind::Unary | Kind::Health) && self.messages > 1 {
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
        if self.kind != Kind::Interact || self.messages > 1 {
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
            Kind::Unary => bytes,
            Kind::Upload if !self.charged => UPLOAD_HOLDS,
            Kind::Interact if first => bytes,
            Kind::Interact | Kind::Upload | Kind::Foreign | Kind::Health => return Ok(()),
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
            Kind::Foreign | Kind::Interact => {
                self.messages > 0 && matches!(self.state, Framing::Prefix(_, 0))
            }
            Kind::Unary | Kind::Upload | Kind::Health => false,
        }
    }

    fn check_end(&self) -> Result<(), Refusal> {
        match self.state {
            Framing::Prefix(_, 0) if self.kind != Kind::Foreign && self.messages == 0 => {
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

impl<B> http_body::Body for Counted<B>
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
        if self.kind != Kind::Health {
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
