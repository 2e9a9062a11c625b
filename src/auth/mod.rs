//! Authentication: which tenant a caller's credentials stand for.
//!
//! A caller is identified by its bearer token, its client certificate, or its user on a unix
//! socket. If two of these stand for different tenants, the call is refused. This module knows
//! nothing of the wire protocol.

mod certificate_name;
mod jwt;
mod keys;
mod remote_keys;
mod tokens;
mod watched_files;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::model::refusal::{Reason, Refusal};

pub use self::certificate_name::CertificateName;
pub use self::jwt::{JwksLocation, JwtSettings};
pub use self::remote_keys::{HttpError, RemoteKeysError};
pub use self::tokens::StaticTokens;
pub use self::watched_files::{Parsed, WatchedFiles, WatchedFilesError};

use self::jwt::JwtVerifier;

/// How often the files are checked for changes.
const RELOAD_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The largest bearer token, in bytes.
const MAX_TOKEN: usize = 6 << 10;

/// The settings by which callers are identified.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The file of static tokens, if there is one.
    pub tokens_file: Option<PathBuf>,
    /// How JSON Web Tokens are verified. `None` accepts none.
    pub jwt: Option<JwtSettings>,
    /// The names of all tenants.
    pub tenants: HashSet<String>,
    /// The tenant of each certificate name, spelt as [`CertificateName`] displays it.
    pub certificates: HashMap<String, String>,
    /// The tenant of each user id on unix sockets.
    pub uids: HashMap<u32, String>,
    /// The tenant of all callers when callers are not identified at all. `None` means that they
    /// are.
    pub default_tenant: Option<String>,
}

/// Why callers cannot be identified as the settings say.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The file of tokens or of keys cannot be used.
    #[error(transparent)]
    Files(#[from] WatchedFilesError),
    /// The keys at a URL cannot be asked for.
    #[error(transparent)]
    RemoteKeys(#[from] RemoteKeysError),
    /// A signature algorithm is not known.
    #[error("auth.jwt.algorithms: {name}")]
    UnknownAlgorithm {
        /// The name that is not known.
        name: String,
        /// What the verifier of tokens says.
        source: jsonwebtoken::errors::Error,
    },
    /// No signature algorithm is accepted.
    #[error("auth.jwt.algorithms: none")]
    NoAlgorithm,
}

/// The credentials that a caller presents.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credentials<'a> {
    /// The value of its `authorization` header.
    pub authorization: Option<&'a [u8]>,
    /// The names in its client certificate, which is valid, as [`CertificateName`] spells them.
    pub certificate: Option<&'a [String]>,
    /// Its user id, if it calls through a unix socket.
    pub uid: Option<u32>,
}

/// The authenticator: maps the credentials of a caller to a tenant, and keeps the files behind them
/// up to date.
pub struct Authenticator {
    tokens: Option<WatchedFiles<StaticTokens>>,
    jwt: Option<JwtVerifier>,
    tenants: HashMap<String, Arc<str>>,
    certificates: HashMap<String, Arc<str>>,
    uids: HashMap<u32, Arc<str>>,
    default_tenant: Option<Arc<str>>,
}

impl Authenticator {
    /// Creates an authenticator and reads the files of tokens and keys.
    ///
    /// # Errors
    /// A file cannot be read, or its contents are not valid.
    pub fn new(settings: Settings) -> Result<Self, AuthError> {
        let names = settings.tenants.clone();
        let tokens = settings.tokens_file.map(|path| {
            WatchedFiles::revoke_on_error("auth.tokens_file", vec![path], move |contents| {
                Ok::<_, Infallible>(StaticTokens::parse(&contents[0], &names))
            })
        });
        let named = |name: String| Arc::<str>::from(name);
        Ok(Self {
            tokens: tokens.transpose()?,
            jwt: settings.jwt.as_ref().map(JwtVerifier::new).transpose()?,
            tenants: settings
                .tenants
                .into_iter()
                .map(|name| (name.clone(), named(name)))
                .collect(),
            certificates: settings
                .certificates
                .into_iter()
                .map(|(it, tenant)| (it, named(tenant)))
                .collect(),
            uids: settings
                .uids
                .into_iter()
                .map(|(it, tenant)| (it, named(tenant)))
                .collect(),
            default_tenant: settings.default_tenant.map(named),
        })
    }

    /// Reads the files again now, and requests a fetch of keys that are at a URL.
    pub fn reload_if_changed(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.reload_if_changed();
        }
        if let Some(jwt) = &self.jwt {
            jwt.reload_if_changed();
        }
    }

    /// Keeps tokens and keys up to date for as long as it is polled.
    pub async fn watch(&self) {
        let tokens = async {
            loop {
                // The file is small: reading it costs less than handing it to another thread.
                if let Some(tokens) = &self.tokens {
                    tokens.reload_if_changed();
                }
                tokio::time::sleep(RELOAD_CHECK_INTERVAL).await;
            }
        };
        let keys = async {
            if let Some(jwt) = &self.jwt {
                jwt.watch(RELOAD_CHECK_INTERVAL).await;
            }
        };
        tokio::join!(tokens, keys);
    }

    /// Returns the tenant of a caller.
    ///
    /// # Errors
    /// `CREDENTIALS_INVALID` if the caller presents no credential, or none that is valid;
    /// `FORBIDDEN` if what it presents is valid but stands for no tenant, or for two;
    /// `RUNTIME_UNAVAILABLE` if it cannot be judged now.
    pub async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Arc<str>, Refusal> {
        if let Some(everyone) = &self.default_tenant {
            return Ok(Arc::clone(everyone));
        }
        let by_token = match credentials.authorization {
            Some(header) => Some(self.by_token(header).await?),
            None => None,
        };
        let by_certificate = self.by_certificate(credentials.certificate)?;
        // A user id that stands for no tenant is not an error.
        let by_user = credentials.uid.and_then(|uid| self.uids.get(&uid));
        let shown = [
            ("the token", by_token),
            ("the client certificate", by_certificate),
            ("the user of the unix socket", by_user.map(Arc::clone)),
        ];
        let mut shown = shown
            .into_iter()
            .filter_map(|(kind, tenant)| Some((kind, tenant?)));
        if let Some((kind, tenant)) = shown.next() {
            return match shown.find(|(_, other)| *other != tenant) {
                Some((other, _)) => Err(forbidden(&format!(
                    "{kind} and {other} stand for different tenants"
                ))),
                None => Ok(tenant),
            };
        }
        if credentials.certificate.is_some() && self.tokens.is_none() && self.jwt.is_none() {
            return Err(forbidden("the client certificate stands for no tenant"));
        }
        Err(invalid(&format!(
            "no credential was given; allowed is {}",
            self.allowed().join(", or ")
        )))
    }

    /// Lists the kinds of credential that can identify a tenant here, for the error message.
    fn allowed(&self) -> Vec<&'static str> {
        let kinds = [
            (
                self.tokens.is_some() || self.jwt.is_some(),
                "a bearer token in the header `authorization`",
            ),
            (
                !self.certificates.is_empty(),
                "a client certificate of a tenant",
            ),
            (
                !self.uids.is_empty(),
                "a unix socket, as the user of a tenant",
            ),
        ];
        let there = kinds.into_iter().filter(|(there, _)| *there);
        there.map(|(_, kind)| kind).collect()
    }

    /// Returns the tenant of the certificate names; `None` if they stand for no tenant.
    fn by_certificate(&self, names: Option<&[String]>) -> Result<Option<Arc<str>>, Refusal> {
        let names = names.unwrap_or_default().iter();
        let mut tenants = names.filter_map(|name| self.certificates.get(name));
        let Some(first) = tenants.next() else {
            return Ok(None);
        };
        if tenants.any(|other| other != first) {
            return Err(forbidden(
                "the client certificate stands for several tenants",
            ));
        }
        Ok(Some(Arc::clone(first)))
    }

    /// Returns the tenant of a bearer token: a static one, or else a JSON Web Token.
    async fn by_token(&self, header: &[u8]) -> Result<Arc<str>, Refusal> {
        let token = bearer(header).ok_or_else(|| {
            invalid("the authorization header is not \"Bearer\" and a token of at most 6 KiB")
        })?;
        if let Some(tokens) = &self.tokens
            && let Some(tenant) = tokens.get().tenant(token)
        {
            return Ok(tenant);
        }
        let Some(jwt) = &self.jwt else {
            return Err(invalid("the token is not known"));
        };
        // The future is boxed: most callers have no such token, and need not carry the room for it.
        let named = Box::pin(jwt.verified_tenant(token)).await?;
        let tenant = self.tenants.get(&*named).map(Arc::clone);
        tenant.ok_or_else(|| forbidden("the token names a tenant that there is not"))
    }
}

/// Extracts the bearer token from an `authorization` header; `None` if the header is malformed or
/// the token is too long.
fn bearer(header: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(header).ok()?;
    let (scheme, token) = text.split_once(' ')?;
    let token = token.trim();
    let well_formed = scheme.eq_ignore_ascii_case("bearer")
        && (1..=MAX_TOKEN).contains(&token.len())
        && token.bytes().all(|b| b.is_ascii_graphic());
    well_formed.then_some(token)
}

/// Creates a refusal for a credential that is not valid.
fn invalid(why: &str) -> Refusal {
    Refusal::new(Reason::CredentialsInvalid, why)
}

/// Creates a refusal for a credential that is valid but does not stand for one tenant.
fn forbidden(why: &str) -> Refusal {
    Refusal::new(Reason::Forbidden, why)
}
