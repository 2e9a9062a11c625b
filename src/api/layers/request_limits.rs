//! The layer that limits requests on their way in. Their bytes are capped by method, charged to one
//! budget as they arrive, and framed as gRPC says.
//!
//! [`super::metered_body`] checks the rules that a body has to keep to.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::metered_body::{BodyRules, MeteredBody, only_message};
use super::response_data_rate::MinResponseDataRate;
use super::response_watchdog::ResponseWatchdog;
use crate::api::codec;
use crate::api::listen::Peer;
use crate::api::methods::{ApiMessage, ApiMethod, ConfiguredCaps, Contract};
use crate::run::{RequestCharge, Tenant};

/// The settings of the layer.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimitSettings {
    /// The most bytes of a message of any method, except those that take modules, answer questions
    /// about runs or health, or interact.
    pub max_message: u64,
    /// The most bytes of a module.
    pub max_module: u64,
    /// The most bytes that all requests together may hold.
    pub inflight_request_bytes: u64,
    /// How long the next bytes of a message may take to arrive.
    pub stall_timeout: Duration,
    /// The most bytes that all responses together may hold outside of their runs' reservations.
    pub inflight_response_bytes: u64,
    /// The rate at which a caller has to take an answer.
    pub min_response_rate: MinResponseDataRate,
}

/// The layer that limits requests, and watches over their responses. Clones share the budgets.
#[derive(Clone, Debug)]
pub struct RequestLimits {
    settings: RequestLimitSettings,
    inflight_bytes: Arc<AtomicU64>,
    response_watchdog: ResponseWatchdog,
}

/// A request extension that gives handlers the charge of their request.
#[derive(Clone, Debug, Default)]
pub(in crate::api) struct ChargeExtension {
    /// What the request holds of the budget; `None` if it did not come through the layer.
    pub(in crate::api) charge: Option<RequestCharge>,
}

impl ChargeExtension {
    /// Returns a copy of the extension of `request`, or an empty one if it has none.
    pub(in crate::api) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }
}

impl RequestLimits {
    /// Creates a layer with budgets of its own.
    pub fn new(settings: RequestLimitSettings) -> Self {
        Self {
            settings,
            inflight_bytes: Arc::default(),
            response_watchdog: ResponseWatchdog::new(
                settings.inflight_response_bytes,
                settings.min_response_rate,
            ),
        }
    }

    /// Returns the watchdog over this layer's responses.
    pub fn response_watchdog(&self) -> &ResponseWatchdog {
        &self.response_watchdog
    }

    /// Creates a charge of `tenant` that holds nothing yet.
    fn new_charge(&self, tenant: Option<Arc<Tenant>>) -> RequestCharge {
        RequestCharge::new(
            Arc::clone(&self.inflight_bytes),
            self.settings.inflight_request_bytes,
            tenant,
        )
    }

    /// Returns the rules that the body of a request has to keep to.
    fn rules(&self, contract: &Contract) -> BodyRules {
        let caps = ConfiguredCaps {
            message: self.settings.max_message,
            module: self.settings.max_module,
        };
        BodyRules {
            kind: contract.request,
            cap: contract.cap.resolve(caps),
            stall: self.settings.stall_timeout,
        }
    }

    /// Reads and decodes the one message of a call of `tenant` to a unary method. The charge that
    /// is returned beside it holds what the message takes of the budget.
    ///
    /// # Errors
    /// The status for the caller.
    pub(in crate::api) async fn read_unary<M, B>(
        &self,
        method: ApiMethod,
        tenant: Arc<Tenant>,
        body: B,
    ) -> Result<(M, RequestCharge), Status>
    where
        M: ApiMessage,
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let charge = self.new_charge(Some(tenant));
        let rules = self.rules(&method.contract());
        let body = MeteredBody::new(body, rules, charge.clone(), None);
        let message = only_message(body).await?;
        let entries = |bytes| charge.add(bytes);
        let message = codec::decoded_charged(message, entries);
        Ok((message?, charge))
    }
}

impl<S> Layer<S> for RequestLimits {
    type Service = RequestLimitsService<S>;

    fn layer(&self, inner: S) -> RequestLimitsService<S> {
        RequestLimitsService {
            inner,
            limits: self.clone(),
        }
    }
}

/// A service whose requests and responses the layer limits.
#[derive(Clone, Debug)]
pub struct RequestLimitsService<S> {
    inner: S,
    limits: RequestLimits,
}

impl<S> Service<http::Request<Body>> for RequestLimitsService<S>
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
        let watchdog = self.limits.response_watchdog.clone();
        let contract = Contract::at(request.uri().path());
        let response = contract.response;
        let budgeted = match watchdog.reserve(response, tenant.clone()) {
            Ok(budgeted) => budgeted,
            Err(refusal) => {
                // Refused before anything is done for the request, which stays unread.
                let refused = Status::from(&refusal).into_http();
                return Box::pin(async move { Ok(refused) });
            }
        };
        let charge = self.limits.new_charge(tenant);
        let rules = self.limits.rules(&contract);
        let peer = request.extensions().get::<Peer>();
        let peer = peer.filter(|_| rules.kind.is_client_streaming());
        let input = match peer
            .map(|it| it.client_streaming_calls().begin())
            .transpose()
        {
            Ok(input) => input,
            // The body is dropped unread.
            Err(refusal) => {
                return Box::pin(async move { Ok(Status::from(&refusal).into_http()) });
            }
        };
        let charge_of_decoding = Some(charge.clone());
        request.extensions_mut().insert(ChargeExtension {
            charge: Some(charge.clone()),
        });
        let request = request.map(|body| Body::new(MeteredBody::new(body, rules, charge, input)));
        let answer = self.inner.call(request);
        Box::pin(
            codec::DECODING_CHARGE.scope(charge_of_decoding, async move {
                let answer = answer.await?;
                Ok(watchdog.watch_response(response, budgeted, answer).await)
            }),
        )
    }
}
