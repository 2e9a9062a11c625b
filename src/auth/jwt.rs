//! JSON Web Tokens (RFC 7519): signed by a key of a set, for this audience, by this issuer, naming a
//! tenant.
//!
//! What is told of a token that is wrong in several ways is the first of: it is no JWT, its header
//! asks for what is not understood, it has expired, it is not valid yet, it is for another audience,
//! it is of another issuer, it lacks one of these claims or has no number for a time, no known key
//! signed it, it names no tenant.
//! What a token says of itself is enough to refuse it, so that no key is looked for in vain.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::invalid;
use super::keys::KeySet;
use super::remote_keys::{Refresh, RemoteKeys};
use super::watched::{Parsed, Watched};
use crate::refusal::{Reason, Refusal};

/// How far clocks may be apart, in seconds.
const LEEWAY: u32 = 30;
/// When a caller is to come again where too many wait for keys already.
const BUSY_RETRY: Duration = Duration::from_secs(2);

const NOT_A_JWT: &str = "the token is not a JWT";
const EXPIRED: &str = "the token has expired";
const NOT_YET: &str = "the token is not valid yet";
const AUDIENCE: &str = "the token is for another audience";
const ISSUER: &str = "the token is of another issuer";
const LACKING: &str = "the token lacks exp, aud or iss";
const NO_TIME: &str = "the token's exp or nbf is not a number";
const UNKNOWN_KEY: &str = "the token was not signed by a key that is known";

/// What tokens must be.
#[derive(Clone, Debug)]
pub struct JwtSettings {
    /// Where the keys are.
    pub keys: Keys,
    /// Who gives them out.
    pub issuer: String,
    /// For whom.
    pub audience: String,
    /// Signed how.
    pub algorithms: Vec<String>,
    /// The claim that names the tenant.
    pub tenant_claim: String,
}

/// Where keys are.
#[derive(Clone, Debug)]
pub enum Keys {
    /// In a file.
    File(PathBuf),
    /// At a URL.
    Url {
        /// Which.
        url: String,
        /// How often it is asked.
        refresh: Duration,
        /// How long keys that came from it stay in force while it does not answer.
        max_stale: Duration,
    },
}

/// Checks tokens.
pub(super) struct Jwt {
    source: Source,
    algorithms: Vec<Algorithm>,
    validation: Validation,
    issuer: String,
    audience: String,
    tenant_claim: String,
}

enum Source {
    File(Watched<KeySet>),
    Url(Box<RemoteKeys>),
}

/// Why a token is refused. Never the token, nor what it says.
type Why = &'static str;

/// What a token says of itself, which nobody has vouched for.
struct Unverified {
    algorithm: Algorithm,
    kid: Option<String>,
    claims: Map<String, Value>,
}

impl Jwt {
    pub(super) fn new(settings: &JwtSettings) -> Result<Self, String> {
        let algorithms: Vec<Algorithm> = settings
            .algorithms
            .iter()
            .map(|name| {
                name.parse()
                    .map_err(|_| format!("auth.jwt.algorithms: {name}"))
            })
            .collect::<Result<_, _>>()?;
        let first = algorithms.first().copied();
        let mut validation = Validation::new(first.ok_or("auth.jwt.algorithms: none")?);
        validation.set_audience(&[&settings.audience]);
        validation.set_issuer(&[&settings.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        validation.validate_nbf = true;
        validation.leeway = u64::from(LEEWAY);
        let source = match &settings.keys {
            Keys::File(path) => Source::File(Watched::revoking(
                "auth.jwt.jwks",
                vec![path.clone()],
                |contents| keys_of_file(&contents[0]),
            )?),
            Keys::Url {
                url,
                refresh,
                max_stale,
            } => Source::Url(Box::new(RemoteKeys::new(url, *refresh, *max_stale)?)),
        };
        Ok(Self {
            source,
            algorithms,
            validation,
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            tenant_claim: settings.tenant_claim.clone(),
        })
    }

    /// Reads the keys again now, where they are in a file; has a URL asked for them, at most once in ten
    /// seconds.
    pub(super) fn look(&self) {
        match &self.source {
            Source::File(file) => {
                file.look();
            }
            Source::Url(remote) => remote.want(),
        }
    }

    /// Reads the keys again when it is time, for as long as it is polled.
    pub(super) async fn watch(&self, look: Duration) {
        match &self.source {
            Source::File(file) => loop {
                file.look();
                tokio::time::sleep(look).await;
            },
            Source::Url(remote) => remote.watch().await,
        }
    }

    /// Which tenant a token names.
    ///
    /// # Errors
    /// `CREDENTIALS_INVALID` where it is not valid; `RUNTIME_UNAVAILABLE` where it cannot be said,
    /// since the keys cannot be had.
    pub(super) async fn tenant(&self, token: &str) -> Result<Arc<str>, Refusal> {
        let shown = Unverified::parse(token).map_err(invalid)?;
        if !self.algorithms.contains(&shown.algorithm) {
            return Err(invalid(
                "the token's signature is of a kind that is not taken",
            ));
        }
        if let Some(why) = self.fault(&shown.claims) {
            return Err(invalid(why));
        }
        let keys = match &self.source {
            Source::File(file) => file.get(),
            Source::Url(remote) => remote.current(),
        };
        if let Some(verified) = self.verify(&keys, token, &shown) {
            return verified.map_err(invalid);
        }
        let Source::Url(remote) = &self.source else {
            return Err(invalid(match keys.is_empty() {
                true => "there is no key to check the token with",
                false => UNKNOWN_KEY,
            }));
        };
        // The key may be newer than those that are known, under an id of its own or of another.
        let refresh = remote.refreshed().await;
        let fresh = remote.current();
        if !Arc::ptr_eq(&keys, &fresh)
            && let Some(verified) = self.verify(&fresh, token, &shown)
        {
            return verified.map_err(invalid);
        }
        Err(unverified(refresh, fresh.names(shown.kid.as_deref())))
    }

    /// What a key of the set that signed a token vouches for; `None` where none of them did.
    fn verify(
        &self,
        keys: &KeySet,
        token: &str,
        shown: &Unverified,
    ) -> Option<Result<Arc<str>, Why>> {
        let mut validation = self.validation.clone();
        // Of a key, only what it can sign: a token must not choose what its signature is checked as.
        validation.algorithms = vec![shown.algorithm];
        let mut candidates = keys.candidates(shown.algorithm, shown.kid.as_deref());
        candidates.find_map(|key| self.verify_by(key, token, &validation))
    }

    fn verify_by(
        &self,
        key: &DecodingKey,
        token: &str,
        validation: &Validation,
    ) -> Option<Result<Arc<str>, Why>> {
        match decode::<Map<String, Value>>(token, key, validation) {
            Ok(decoded) => {
                let named = decoded.claims.get(&self.tenant_claim);
                let named = named.and_then(Value::as_str);
                Some(named.map(Arc::from).ok_or("the token names no tenant"))
            }
            Err(error) => claims_fault(&error).map(Err),
        }
    }

    /// What is wrong with claims, signed or not. The library that checks signatures checks them
    /// too; this says which of several faults is told.
    fn fault(&self, claims: &Map<String, Value>) -> Option<Why> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs_f64();
        let time = |claim: &str| claims.get(claim).and_then(Value::as_f64);
        let leeway = f64::from(LEEWAY);
        let is = |value: &Value, expected: &str| value.as_str() == Some(expected);
        let for_us = |value: &Value| {
            let mut several = value.as_array().into_iter().flatten();
            is(value, &self.audience) || several.any(|one| is(one, &self.audience))
        };
        let (audience, issuer) = (claims.get("aud"), claims.get("iss"));
        if time("exp").is_some_and(|at| at < now - leeway) {
            return Some(EXPIRED);
        }
        if time("nbf").is_some_and(|at| at > now + leeway) {
            return Some(NOT_YET);
        }
        if audience.is_some_and(|it| !for_us(it)) {
            return Some(AUDIENCE);
        }
        if issuer.is_some_and(|it| !is(it, &self.issuer)) {
            return Some(ISSUER);
        }
        let is_time = |claim: &str| claims.get(claim).is_none_or(Value::is_number);
        if !is_time("exp") || !is_time("nbf") {
            return Some(NO_TIME);
        }
        let complete = time("exp").is_some() && audience.is_some() && issuer.is_some();
        (!complete).then_some(LACKING)
    }
}

impl Unverified {
    fn parse(token: &str) -> Result<Self, Why> {
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NOT_A_JWT);
        };
        let named = object(header).ok_or(NOT_A_JWT)?;
        // Extensions that must be understood: none is (RFC 7515, section 4.1.11). Nor is a list of
        // them that is malformed.
        if named.contains_key("crit") {
            return Err("the token's header has crit: no extension is understood");
        }
        if named.get("b64").is_some_and(|it| *it != Value::Bool(true)) {
            return Err("the token's header has b64: only an encoded payload is understood");
        }
        let header = decode_header(token).map_err(|_| NOT_A_JWT)?;
        Ok(Self {
            algorithm: header.alg,
            kid: header.kid,
            claims: object(claims).ok_or(NOT_A_JWT)?,
        })
    }
}

/// A part of a token that is a JSON object.
fn object(part: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn keys_of_file(contents: &[u8]) -> Result<Parsed<KeySet>, String> {
    let keys = KeySet::parse(contents)?;
    if keys.skipped() > 0 {
        tracing::warn!(
            skipped = keys.skipped(),
            "keys of auth.jwt.jwks are passed over: of an unknown kind, for another use, or malformed"
        );
    }
    let faults = match keys.is_empty() {
        true => vec!["has no key that can be used: no JWT is valid".to_owned()],
        false => Vec::new(),
    };
    Ok(Parsed {
        value: keys,
        faults,
    })
}

/// What a caller is told whose token no key at the URL has signed.
fn unverified(refresh: Refresh, names_key: bool) -> Refusal {
    let unavailable = |why: &str, retry: Duration| {
        Refusal::new(Reason::RuntimeUnavailable, why).retry_after(retry)
    };
    match refresh {
        Refresh::Done => invalid(UNKNOWN_KEY),
        Refresh::TooSoon(left) => invalid(UNKNOWN_KEY).retry_after(left),
        // A key that is known did not sign it: that is a forgery before it is a key that changed.
        Refresh::Failed(_) if names_key => invalid(UNKNOWN_KEY),
        Refresh::Failed(left) => unavailable(
            "the token cannot be checked now: the keys (auth.jwt.jwks) cannot be had",
            left,
        ),
        Refresh::Busy => unavailable(
            "the token cannot be checked now: too many callers wait for the keys (auth.jwt.jwks)",
            BUSY_RETRY,
        ),
    }
}

/// What is wrong with the claims of a token that a key did sign; `None` where it did not.
fn claims_fault(error: &jsonwebtoken::errors::Error) -> Option<Why> {
    use jsonwebtoken::errors::ErrorKind;
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the rest is all of one kind to a caller, and the list is open"
    )]
    match error.kind() {
        ErrorKind::ExpiredSignature => Some(EXPIRED),
        ErrorKind::ImmatureSignature => Some(NOT_YET),
        ErrorKind::InvalidAudience => Some(AUDIENCE),
        ErrorKind::InvalidIssuer => Some(ISSUER),
        ErrorKind::MissingRequiredClaim(_) => Some(LACKING),
        ErrorKind::InvalidClaimFormat(_) => Some(NO_TIME),
        _ => None,
    }
}
