//! Authenticates each call from its request headers and its connection, before any of its body is
//! read. The tenant found goes along with the request, as one of its extensions.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::refusal_log::RefusalLog;
use crate::api::listen::{Peer, UnauthenticatedCall};
use crate::api::methods::{Audience, Contract};
use crate::auth::{Authenticator, Credentials};
use crate::metrics::{Count, MetricSource, MetricWriter};
use crate::model::refusal::{Reason, Refusal, quote};
use crate::run::{Runner, Tenant};

/// The layer that authenticates every call. Clones share their settings and their log.
#[derive(Clone)]
pub struct Authentication(Arc<Inner>);

struct Inner {
    authenticator: Arc<Authenticator>,
    runner: Arc<Runner>,
    /// Whether anybody may ask for health, without a credential.
    open_health: bool,
    /// The hosts that requests may be addressed to. If there are none, any host is allowed.
    authorities: Vec<String>,
    /// Whether callers over TCP have to present a certificate, which the handshakes of the admin
    /// listener do not ask for.
    requires_certificate: bool,
    refusals: RefusalLog,
    /// Calls that were refused, by what the caller presented.
    failures: [Count; PresentedCredential::ALL.len()],
}

/// What a caller presented to be authenticated by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PresentedCredential {
    None,
    Token,
    Certificate,
    User,
}

impl PresentedCredential {
    const ALL: [Self; 4] = [Self::None, Self::Token, Self::Certificate, Self::User];

    /// Returns the credential of a call, of several the first in the order of [`Self::ALL`] after
    /// `None`.
    fn of(head: &http::request::Parts, peer: Option<&Peer>) -> Self {
        if head.headers.contains_key(AUTHORIZATION) {
            Self::Token
        } else if peer.is_some_and(Peer::has_certificate) {
            Self::Certificate
        } else if peer.is_some_and(|peer| peer.uid().is_some()) {
            Self::User
        } else {
            Self::None
        }
    }

    /// Returns its name in metrics.
    const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::User => "user",
        }
    }
}

/// A call that was let in. Dropping it ends the protection from eviction that the call may have
/// given its connection.
pub(in crate::api) struct AuthenticatedCall {
    /// The tenant whose call it is; `None` for a health call that needs no credential.
    pub(in crate::api) tenant: Option<Arc<Tenant>>,
    /// May protect the connection from eviction until the call is answered; `None` if a call has
    /// authenticated on the connection already, or if it has no slot.
    _unauthenticated: Option<UnauthenticatedCall>,
}

impl Authentication {
    /// Creates the layer. It lets in callers that `authenticator` knows as a tenant of `runner`,
    /// and everybody who asks for health if `open_health` is set. Requests have to be addressed to
    /// one of `authorities`, or to any host if there are none. With `requires_certificate`, callers
    /// over TCP have to present one.
    pub fn new(
        authenticator: Arc<Authenticator>,
        runner: Arc<Runner>,
        open_health: bool,
        authorities: Vec<String>,
        requires_certificate: bool,
    ) -> Self {
        Self(Arc::new(Inner {
            authenticator,
            runner,
            open_health,
            authorities: authorities.iter().map(|it| bare(it).to_owned()).collect(),
            requires_certificate,
            refusals: RefusalLog::default(),
            failures: Default::default(),
        }))
    }

    /// Returns the log of the calls that this layer refuses.
    pub fn refusals(&self) -> RefusalLog {
        self.0.refusals.clone()
    }

    /// Authenticates a call from its headers and its connection, and records on the connection that
    /// a call has authenticated.
    ///
    /// # Errors
    /// The status for the caller, whose refusal has been logged already.
    pub(in crate::api) async fn authenticate_call(
        &self,
        head: &http::request::Parts,
        peer: Option<&Peer>,
    ) -> Result<AuthenticatedCall, Status> {
        let call = peer.and_then(Peer::begin_call);
        match self.0.tenant(head, peer).await {
            Ok(tenant) => {
                if tenant.is_some() {
                    // The gate lets nothing but gRPC calls come this far.
                    peer.map(Peer::mark_authenticated);
                }
                Ok(AuthenticatedCall {
                    tenant,
                    _unauthenticated: call,
                })
            }
            Err(refusal) => {
                self.count_refused(head, peer, &refusal);
                Err(Status::from(&refusal))
            }
        }
    }

    /// Authenticates a request of the admin listener from its headers and its connection. Which
    /// host it is addressed to has been checked already.
    ///
    /// # Errors
    /// `CREDENTIALS_INVALID`, `FORBIDDEN` and `RUNTIME_UNAVAILABLE`. The refusal has been logged.
    pub async fn authenticate_http(
        &self,
        head: &http::request::Parts,
    ) -> Result<Arc<Tenant>, Refusal> {
        let peer = head.extensions.get::<Peer>();
        let call = peer.and_then(Peer::begin_call);
        let tenant = self.0.authenticate(head, peer).await;
        match &tenant {
            Ok(_) => {
                peer.map(Peer::mark_authenticated);
            }
            Err(refusal) => self.count_refused(head, peer, refusal),
        }
        drop(call);
        tenant
    }

    /// Logs and counts a request that is refused because of who made it.
    fn count_refused(&self, head: &http::request::Parts, peer: Option<&Peer>, refusal: &Refusal) {
        self.0.refusals.refused(peer, refusal);
        let presented = PresentedCredential::of(head, peer);
        self.0.failures[presented as usize].increment();
    }
}

impl MetricSource for Authentication {
    fn write_metrics(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        let failures = PresentedCredential::ALL.into_iter().zip(&self.0.failures);
        to.counters(
            "authentication_failures",
            "Calls that were refused because of who made them, by what the caller presented.",
            None,
            failures.map(|(presented, count)| ([("presented", presented.as_str())], count.get())),
        )
    }
}

/// A request extension by which a web server says that it has checked the host that the request is
/// addressed to.
#[derive(Clone, Copy, Debug)]
pub(in crate::api) struct HostChecked;

impl Inner {
    /// Returns the tenant of a request, or `None` for a health call that needs no credential.
    async fn tenant(
        &self,
        head: &http::request::Parts,
        peer: Option<&Peer>,
    ) -> Result<Option<Arc<Tenant>>, Refusal> {
        if head.extensions.get::<HostChecked>().is_none() {
            self.check_authority(&head.uri, peer)?;
        }
        let is_health = Contract::at(head.uri.path()).audience == Audience::Probe;
        if self.open_health && is_health {
            return Ok(None);
        }
        let tenant = self.authenticate(head, peer).await;
        // The daemon's own user could look into its memory anyway, so a probe that runs as this
        // user needs no credential.
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
        if self.requires_certificate
            && peer.is_some_and(|peer| peer.uid().is_none() && !peer.has_certificate())
        {
            return Err(Refusal::new(
                Reason::CredentialsInvalid,
                "the caller has to present a client certificate (tls.client_auth)",
            ));
        }
        let evidence = Credentials {
            authorization: authorization.map(http::HeaderValue::as_bytes),
            certificate: peer.map(Peer::certificate).transpose()?.flatten(),
            uid: peer.and_then(Peer::uid),
        };
        let name = self.authenticator.authenticate(evidence).await?;
        let tenant = self.runner.tenant(&name);
        let tenant = tenant.ok_or_else(|| Refusal::internal("a credential of no tenant"))?;
        Ok(Arc::clone(tenant))
    }

    /// Refuses a request that is addressed to a host that is not allowed. Over a unix socket there
    /// is nothing to check: nobody is tricked into connecting to one, and the authority given there
    /// is made up.
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

/// Removes the brackets around a host that is an IPv6 address.
fn bare(host: &str) -> &str {
    host.trim_matches(['[', ']'])
}

/// Returns the tenant that the authentication layer found for a request.
///
/// # Errors
/// `INTERNAL` if there is none. For any call that needs a credential, that is a failure of the
/// daemon.
pub(in crate::api) fn tenant_of<T>(request: &tonic::Request<T>) -> Result<Arc<Tenant>, Refusal> {
    let tenant = request.extensions().get::<Arc<Tenant>>();
    tenant
        .map(Arc::clone)
        .ok_or_else(|| Refusal::internal("a request without a tenant"))
}

impl<S> Layer<S> for Authentication {
    type Service = AuthenticationService<S>;

    fn layer(&self, inner: S) -> AuthenticationService<S> {
        AuthenticationService {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service that authenticates each call before it hands the call to the inner service.
#[derive(Clone)]
pub struct AuthenticationService<S> {
    inner: S,
    layer: Authentication,
}

impl<S> Service<http::Request<Body>> for AuthenticationService<S>
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
        // Only the service that was polled is ready, so that one is called and the clone takes its
        // place.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let layer = self.layer.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let peer = head.extensions.get::<Peer>().cloned();
            match layer.authenticate_call(&head, peer.as_ref()).await {
                Ok(admitted) => {
                    if let Some(tenant) = &admitted.tenant {
                        head.extensions.insert(Arc::clone(tenant));
                    }
                    let answer = inner.call(http::Request::from_parts(head, body)).await;
                    // A health call without a tenant keeps its protection until it is answered.
                    drop(admitted);
                    answer
                }
                // The body is dropped unread.
                Err(refused) => Ok(refused.into_http()),
            }
        })
    }
}
