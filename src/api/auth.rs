//! Who calls: settled from a request's headers and its connection, before any of its body is read.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::listen::{Peer, UnauthenticatedCall};
use super::refusal_log::RefusalLog;
use super::status;
use crate::auth::{Evidence, Gatekeeper};
use crate::refusal::{Reason, Refusal, quote};
use crate::run::{Runner, Tenant};

/// Where health is asked for.
const HEALTH: [&str; 2] = [
    "/ringfence.v1.SandboxService/Health",
    "/grpc.health.v1.Health/",
];

/// The layer.
#[derive(Clone)]
pub struct Authentication(Arc<Inner>);

struct Inner {
    gatekeeper: Arc<Gatekeeper>,
    runner: Arc<Runner>,
    /// Health is for everybody.
    open_health: bool,
    /// Hosts that requests may be addressed to; none: any.
    authorities: Vec<String>,
    refusals: RefusalLog,
}

/// A caller that was let in.
pub(super) struct Admitted {
    /// Whose call it is; none where it may go without one.
    pub(super) tenant: Option<Arc<Tenant>>,
    /// Of a call on a connection on which nobody has authenticated, which protects that until it is answered.
    _unauthenticated: Option<UnauthenticatedCall>,
}

impl Authentication {
    /// Of callers that `gatekeeper` tells apart.
    pub fn new(
        gatekeeper: Arc<Gatekeeper>,
        runner: Arc<Runner>,
        open_health: bool,
        authorities: Vec<String>,
    ) -> Self {
        Self(Arc::new(Inner {
            gatekeeper,
            runner,
            open_health,
            authorities: authorities.iter().map(|it| bare(it).to_owned()).collect(),
            refusals: RefusalLog::default(),
        }))
    }

    /// The log of calls that it refuses.
    pub fn refusals(&self) -> RefusalLog {
        self.0.refusals.clone()
    }

    /// Settles who makes a call, from its headers and its connection.
    ///
    /// # Errors
    /// What its caller is told, which is in the log already.
    pub(super) async fn admit(
        &self,
        head: &http::request::Parts,
        peer: Option<&Peer>,
    ) -> Result<Admitted, Status> {
        let call = peer.and_then(Peer::begin_call);
        match self.0.tenant(head, peer).await {
            Ok(tenant) => {
                if tenant.is_some() {
                    // It is a call of gRPC, or it would not have come through the gate.
                    peer.map(Peer::authenticated);
                }
                Ok(Admitted {
                    tenant,
                    _unauthenticated: call,
                })
            }
            Err(refusal) => {
                self.0.refusals.refused(peer, &refusal);
                Err(status::from(&refusal))
            }
        }
    }
}

impl Inner {
    /// The tenant of a request; none where it may go without one.
    async fn tenant(
        &self,
        head: &http::request::Parts,
        peer: Option<&Peer>,
    ) -> Result<Option<Arc<Tenant>>, Refusal> {
        self.check_authority(&head.uri, peer)?;
        let path = head.uri.path();
        let is_health = HEALTH.iter().any(|it| path.starts_with(it));
        if self.open_health && is_health {
            return Ok(None);
        }
        let tenant = self.authenticate(head, peer).await;
        // Whoever is the daemon's own user could look into its memory: a probe beside it needs no credential.
        let shows_nothing = !head.headers.contains_key(AUTHORIZATION);
        if tenant.is_err() && is_health && shows_nothing && peer.is_some_and(Peer::is_own_user) {
            return Ok(None);
        }
        tenant.map(Some)
    }

    async fn authenticate(
        &self,
        head: &http::request::Parts,
        peer: Option<&Peer>,
    ) -> Result<Arc<Tenant>, Refusal> {
        let mut headers = head.headers.get_all(AUTHORIZATION).iter();
        let authorization = headers.next();
        if headers.next().is_some() {
            return Err(Refusal::new(
                Reason::CredentialsInvalid,
                "there is more than one authorization header",
            ));
        }
        let evidence = Evidence {
            authorization: authorization.map(http::HeaderValue::as_bytes),
            certificate: peer.map(Peer::certificate).transpose()?.flatten(),
            uid: peer.and_then(Peer::uid),
        };
        let name = self.gatekeeper.tenant(evidence).await?;
        let tenant = self.runner.tenant(&name);
        let tenant = tenant.ok_or_else(|| Refusal::internal("a credential of no tenant"))?;
        Ok(Arc::clone(tenant))
    }

    /// Over a unix socket there is nothing to check: nobody is tricked into one, and what stands there is made up.
    fn check_authority(&self, uri: &http::Uri, peer: Option<&Peer>) -> Result<(), Refusal> {
        if self.authorities.is_empty() || peer.is_some_and(|it| it.uid().is_some()) {
            return Ok(());
        }
        let host = bare(uri.host().unwrap_or_default());
        if self
            .authorities
            .iter()
            .any(|it| it.eq_ignore_ascii_case(host))
        {
            return Ok(());
        }
        let message = format!(
            "requests may not be addressed to \"{}\" (server.allowed_authorities)",
            quote(host)
        );
        Err(Refusal::new(Reason::Forbidden, message))
    }
}

/// A host, without the brackets around an address of IPv6.
fn bare(host: &str) -> &str {
    host.trim_matches(['[', ']'])
}

/// The tenant that calls.
///
/// # Errors
/// Where nobody settled it, which is a failure of the daemon.
pub(super) fn tenant_of<T>(request: &tonic::Request<T>) -> Result<Arc<Tenant>, Refusal> {
    let tenant = request.extensions().get::<Arc<Tenant>>();
    tenant
        .map(Arc::clone)
        .ok_or_else(|| Refusal::internal("a request without a tenant"))
}

impl<S> Layer<S> for Authentication {
    type Service = Authenticated<S>;

    fn layer(&self, inner: S) -> Authenticated<S> {
        Authenticated {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service behind the layer.
#[derive(Clone)]
pub struct Authenticated<S> {
    inner: S,
    layer: Authentication,
}

impl<S> Service<http::Request<Body>> for Authenticated<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // The one that is ready is the one that is called.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let layer = self.layer.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let peer = head.extensions.get::<Peer>().cloned();
            match layer.admit(&head, peer.as_ref()).await {
                Ok(admitted) => {
                    if let Some(tenant) = &admitted.tenant {
                        head.extensions.insert(Arc::clone(tenant));
                    }
                    let answer = inner.call(http::Request::from_parts(head, body)).await;
                    // One that nobody authenticates for, which is Health, is over when it is answered.
                    drop(admitted);
                    answer
                }
                // Its body is of no use.
                Err(refused) => Ok(refused.into_http()),
            }
        })
    }
}
