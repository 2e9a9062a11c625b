//! Who calls: credentials, and the tenant that each stands for.
//!
//! A caller is one tenant, by its bearer token, its client certificate, or its user on a unix socket.
//! Where two of these stand for different tenants, the call is refused. Nothing here knows the wire.

mod certificate_name;
mod jwt;
mod keys;
mod remote_keys;
mod tokens;
mod watched;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::refusal::{Reason, Refusal};

pub use self::certificate_name::CertificateName;
pub use self::jwt::{JwtSettings, Keys};
pub use self::tokens::Tokens;
pub use self::watched::{Parsed, Watched};

use self::jwt::Jwt;

/// How often files are read again.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of a bearer token at the most.
const MAX_TOKEN: usize = 6 << 10;

/// How callers are told apart.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// A file of static tokens.
    pub tokens_file: Option<PathBuf>,
    /// JSON Web Tokens.
    pub jwt: Option<JwtSettings>,
    /// The tenants that there are.
    pub tenants: HashSet<String>,
    /// Names in client certificates, as [`CertificateName`] spells them, and whose they are.
    pub certificates: HashMap<String, String>,
    /// Users on unix sockets, and whose they are.
    pub uids: HashMap<u32, String>,
    /// The tenant that all callers are where nothing tells them apart.
    pub everyone: Option<String>,
}

/// What a caller shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evidence<'a> {
    /// What stands in its `authorization` header.
    pub authorization: Option<&'a [u8]>,
    /// The names in its client certificate, which is valid, as [`CertificateName`] spells them.
    pub certificate: Option<&'a [String]>,
    /// Its user, at the other end of a unix socket.
    pub uid: Option<u32>,
}

/// Tells callers apart.
pub struct Gatekeeper {
    tokens: Option<Watched<Tokens>>,
    jwt: Option<Jwt>,
    tenants: HashMap<String, Arc<str>>,
    certificates: HashMap<String, Arc<str>>,
    uids: HashMap<u32, Arc<str>>,
    everyone: Option<Arc<str>>,
}

impl Gatekeeper {
    /// Reads what there is to read.
    ///
    /// # Errors
    /// Files that cannot be read, or do not say what they must.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let names = settings.tenants.clone();
        let tokens = settings.tokens_file.map(|path| {
            Watched::revoking("auth.tokens_file", vec![path], move |contents| {
                Ok(Tokens::parse(&contents[0], &names))
            })
        });
        let named = |name: String| Arc::<str>::from(name);
        Ok(Self {
            tokens: tokens.transpose()?,
            jwt: settings.jwt.as_ref().map(Jwt::new).transpose()?,
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
            everyone: settings.everyone.map(named),
        })
    }

    /// Reads files again now, and has keys of a URL asked for.
    pub fn look(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.look();
        }
        if let Some(jwt) = &self.jwt {
            jwt.look();
        }
    }

    /// Reads files again that change, for as long as it is polled.
    pub async fn watch(&self) {
        let tokens = async {
            loop {
                // A small file: what it takes is less than handing it to another thread.
                if let Some(tokens) = &self.tokens {
                    tokens.look();
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let keys = async {
            if let Some(jwt) = &self.jwt {
                jwt.watch(LOOK).await;
            }
        };
        tokio::join!(tokens, keys);
    }

    /// The tenant of a caller.
    ///
    /// # Errors
    /// `CREDENTIALS_INVALID` where it shows nothing, or nothing that is valid; `FORBIDDEN` where what
    /// it shows is valid and stands for no tenant, or for two; `RUNTIME_UNAVAILABLE` where it cannot
    /// be judged now.
    pub async fn tenant(&self, evidence: Evidence<'_>) -> Result<Arc<str>, Refusal> {
        if let Some(everyone) = &self.everyone {
            return Ok(Arc::clone(everyone));
        }
        let by_token = match evidence.authorization {
            Some(header) => Some(self.by_token(header).await?),
            None => None,
        };
        let by_certificate = self.by_certificate(evidence.certificate)?;
        // A user that stands for nobody says nothing.
        let by_user = evidence.uid.and_then(|uid| self.uids.get(&uid));
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
        if evidence.certificate.is_some() && self.tokens.is_none() && self.jwt.is_none() {
            return Err(forbidden("the client certificate stands for no tenant"));
        }
        Err(invalid(&format!(
            "no credential was given; allowed is {}",
            self.allowed().join(", or ")
        )))
    }

    /// The kinds of credential that stand for anybody here.
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
        // In a box of its own: most callers have no such token, and need not carry the room for it.
        let named = Box::pin(jwt.tenant(token)).await?;
        let tenant = self.tenants.get(&*named).map(Arc::clone);
        tenant.ok_or_else(|| forbidden("the token names a tenant that there is not"))
    }
}

/// The token of a header.
fn bearer(header: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(header).ok()?;
    let (scheme, token) = text.split_once(' ')?;
    let token = token.trim();
    let well_formed = scheme.eq_ignore_ascii_case("bearer")
        && (1..=MAX_TOKEN).contains(&token.len())
        && token.bytes().all(|b| b.is_ascii_graphic());
    well_formed.then_some(token)
}

fn invalid(why: &str) -> Refusal {
    Refusal::new(Reason::CredentialsInvalid, why)
}

fn forbidden(why: &str) -> Refusal {
    Refusal::new(Reason::Forbidden, why)
}
