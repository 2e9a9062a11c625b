//! Request bytes on their way in: capped by method, charged to one budget as they arrive, framed as gRPC says.
//!
//! What a body has to keep to is checked by [`super::metered_body`].

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::answer::AnswerKind;
use super::delivery::Deliveries;
use super::inflight::{InflightBytes, take};
use super::listen::Peer;
use super::message_cap::MessageCap;
use super::metered_body::{BodyRules, MeteredBody, RequestKind, only_message};
use super::taking::TakingPace;
use super::{codec, status};
use crate::limits::share_of;
use crate::refusal::Refusal;
use crate::run::Tenant;

/// Bytes of a message of a service that is not ours, which is reflection.
const MAX_FOREIGN: u64 = 64 << 10;
/// Bytes of a question about health, which may be left to everybody.
const MAX_HEALTH: u64 = 1 << 10;
/// What a message may take besides the module, or the part of it, that it carries.
const LOAD_SLACK: u64 = 64 << 10;
/// Bytes of one chunk of an upload, and of a message with one.
pub(super) const MAX_CHUNK: usize = 1 << 20;
const UPLOAD_MESSAGE: u64 = MAX_CHUNK as u64 + LOAD_SLACK;
/// Bytes of a question about runs: a selector has at most 32 labels of 256 bytes.
const MAX_QUESTION: u64 = 64 << 10;
/// Bytes of the first message of an interaction: a larger module is loaded before.
const INTERACT_START: u64 = 1 << 20;

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
    pub(super) fn add(&self, bytes: usize, budget: u64) -> Result<(), Refusal> {
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

    /// What a request of a method has to keep to.
    fn rules(&self, path: &str) -> BodyRules {
        let (kind, cap) = self.kind(path);
        BodyRules {
            kind,
            cap,
            budget: self.settings.inflight,
            stall: self.settings.stall,
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
        let body = MeteredBody::new(body, self.rules(path), charge.clone(), None);
        let message = only_message(body).await?;
        let entries = |bytes| charge.add(bytes, self.settings.inflight);
        let message = codec::decoded_charged(message, entries);
        Ok((message.map_err(status::refused)?, charge))
    }

    /// What requests of a method are, and what their messages may be.
    fn kind(&self, path: &str) -> (RequestKind, MessageCap) {
        let (fixed, set) = (MessageCap::fixed, MessageCap::set);
        match path {
            "/ringfence.v1.SandboxService/LoadModule" => {
                let cap = self.settings.max_module.saturating_add(LOAD_SLACK);
                let hint = "compile.max_module and 64 KiB for the rest";
                (RequestKind::Unary, set(cap, "compile.max_module", hint))
            }
            "/ringfence.v1.ModuleService/UploadModule" => (
                RequestKind::Upload,
                fixed(UPLOAD_MESSAGE, "a chunk has 1 MiB"),
            ),
            "/ringfence.v1.RunService/Interact" => {
                let hint = "a larger module is loaded before, and run by its digest";
                (RequestKind::Interact, fixed(INTERACT_START, hint))
            }
            "/ringfence.v1.SandboxService/Health" => (RequestKind::Health, fixed(MAX_HEALTH, "")),
            path if path.starts_with("/grpc.health.v1.Health/") => {
                (RequestKind::Health, fixed(MAX_HEALTH, ""))
            }
            path if path.starts_with("/ringfence.v1.RunService/") => {
                (RequestKind::Unary, fixed(MAX_QUESTION, ""))
            }
            path if path.starts_with("/ringfence.v1.") => {
                let hint =
                    "server.max_message; a larger module is loaded before, and run by its digest";
                let cap = self.settings.max_message;
                (RequestKind::Unary, set(cap, "server.max_message", hint))
            }
            _ => (RequestKind::Foreign, fixed(MAX_FOREIGN, "")),
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
        let rules = self.intake.rules(request.uri().path());
        let peer = request.extensions().get::<Peer>();
        let peer = peer.filter(|_| rules.kind.takes_input());
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
        let request = request.map(|body| Body::new(MeteredBody::new(body, rules, charge, input)));
        let answer = self.inner.call(request);
        Box::pin(CURRENT.scope(charge_of_decoding, async move {
            let answer = answer.await?;
            Ok(deliveries.send(answers, budgeted, answer).await)
        }))
    }
}
