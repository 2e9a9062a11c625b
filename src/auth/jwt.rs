//! Verification of JSON Web Tokens (RFC 7519). A token must be signed by a key of the configured
//! set, be meant for our audience, come from our issuer, and name a tenant.
//!
//! If a token is wrong in several ways, the caller is told the first of these: it is no JWT, its
//! header asks for what is not understood, it has expired, it is not valid yet, it is for another
//! audience, it is of another issuer, it lacks one of these claims or has no number for a time, no
//! known key signed it, it names no tenant. The claims are checked before the signature: what a
//! token says of itself can suffice to refuse it, so that no key is fetched in vain.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::keys::{KeySet, NotAKeySet};
use super::remote_keys::{RefreshOutcome, RemoteKeys};
use super::watched_files::{Parsed, WatchedFiles};
use super::{AuthError, invalid};
use crate::model::refusal::{Reason, Refusal};

/// How far the clocks of issuer and daemon may differ, in seconds.
const LEEWAY: u32 = 30;
/// After what time a caller should retry when too many others already wait for keys.
const BUSY_RETRY: Duration = Duration::from_secs(2);

const NOT_A_JWT: &str = "the token is not a JWT";
const EXPIRED: &str = "the token has expired";
const NOT_YET: &str = "the token is not valid yet";
const AUDIENCE: &str = "the token is for another audience";
const ISSUER: &str = "the token is of another issuer";
const LACKING: &str = "the token lacks exp, aud or iss";
const NO_TIME: &str = "the token's exp or nbf is not a number";
const UNKNOWN_KEY: &str = "the token was not signed by a key that is known";

/// The settings by which tokens are verified.
#[derive(Clone, Debug)]
pub struct JwtSettings {
    /// Where the public keys of the issuer are.
    pub keys: JwksLocation,
    /// The issuer, which the claim `iss` must equal.
    pub issuer: String,
    /// The audience, which the claim `aud` must contain.
    pub audience: String,
    /// The signature algorithms that are accepted, by their JWA names such as "ES256".
    pub algorithms: Vec<String>,
    /// The claim that names the tenant.
    pub tenant_claim: String,
}

/// The location of a JSON Web Key set.
#[derive(Clone, Debug)]
pub enum JwksLocation {
    /// In a file, which is read again when it changes.
    File(PathBuf),
    /// At a URL, which is fetched periodically and when a token may be signed by a newer key.
    Url {
        /// The URL, with scheme http or https.
        url: String,
        /// How often the keys are fetched.
        refresh: Duration,
        /// How long the keys that were fetched stay in force while the URL does not answer.
        max_stale: Duration,
    },
}

/// The verifier of JSON Web Tokens, with the source of its keys.
pub(super) struct JwtVerifier {
    source: JwksSource,
    algorithms: Vec<Algorithm>,
    validation: Validation,
    issuer: String,
    audience: String,
    tenant_claim: String,
}

/// The key set that is in force, and what keeps it up to date.
enum JwksSource {
    File(WatchedFiles<KeySet>),
    Url(Box<RemoteKeys>),
}

/// Why a token is refused. It never contains the token, or what the token says.
type Why = &'static str;

/// The header and claims of a token whose signature has not been checked.
struct Unverified {
    algorithm: Algorithm,
    kid: Option<String>,
    claims: Map<String, Value>,
}

impl JwtVerifier {
    /// Creates a verifier, and reads the keys if they are in a file.
    pub(super) fn new(settings: &JwtSettings) -> Result<Self, AuthError> {
        let algorithms: Vec<Algorithm> = settings
            .algorithms
            .iter()
            .map(|name| {
                name.parse().map_err(|source| AuthError::UnknownAlgorithm {
                    name: name.clone(),
                    source,
                })
            })
            .collect::<Result<_, _>>()?;
        let first = algorithms.first().copied();
        let mut validation = Validation::new(first.ok_or(AuthError::NoAlgorithm)?);
        validation.set_audience(&[&settings.audience]);
        validation.set_issuer(&[&settings.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        validation.validate_nbf = true;
        validation.leeway = u64::from(LEEWAY);
        let source = match &settings.keys {
            JwksLocation::File(path) => JwksSource::File(WatchedFiles::revoke_on_error(
                "auth.jwt.jwks",
                vec![path.clone()],
                |contents| keys_of_file(&contents[0]),
            )?),
            JwksLocation::Url {
                url,
                refresh,
                max_stale,
            } => JwksSource::Url(Box::new(RemoteKeys::new(url, *refresh, *max_stale)?)),
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

    /// Reads a key file again now; for a URL it requests a fetch, at most one in ten seconds.
    pub(super) fn reload_if_changed(&self) {
        match &self.source {
            JwksSource::File(file) => {
                file.reload_if_changed();
            }
            JwksSource::Url(remote) => remote.want(),
        }
    }

    /// Keeps the keys up to date for as long as it is polled; a file is checked every `look`.
    pub(super) async fn watch(&self, look: Duration) {
        match &self.source {
            JwksSource::File(file) => loop {
                file.reload_if_changed();
                tokio::time::sleep(look).await;
            },
            JwksSource::Url(remote) => remote.watch().await,
        }
    }

    /// Verifies a token and returns the tenant that it names.
    ///
    /// # Errors
    /// `CREDENTIALS_INVALID` if the token is not valid; `RUNTIME_UNAVAILABLE` if that cannot be
    /// decided, because the keys cannot be fetched.
    pub(super) async fn verified_tenant(&self, token: &str) -> Result<Arc<str>, Refusal> {
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
            JwksSource::File(file) => file.get(),
            JwksSource::Url(remote) => remote.current(),
        };
        if let Some(verified) = self.verify(&keys, token, &shown) {
            return verified.map_err(invalid);
        }
        let JwksSource::Url(remote) = &self.source else {
            return Err(invalid(match keys.is_empty() {
                true => "there is no key to check the token with",
                false => UNKNOWN_KEY,
            }));
        };
        // The signing key may be newer than those that are known, under a key id of its own or of
        // another.
        let refresh = remote.refresh_and_wait().await;
        let fresh = remote.current();
        if !Arc::ptr_eq(&keys, &fresh)
            && let Some(verified) = self.verify(&fresh, token, &shown)
        {
            return verified.map_err(invalid);
        }
        Err(unverified(refresh, fresh.names(shown.kid.as_deref())))
    }

    /// Verifies a token with each key that may have signed it; `None` if none of them did.
    fn verify(
        &self,
        keys: &KeySet,
        token: &str,
        shown: &Unverified,
    ) -> Option<Result<Arc<str>, Why>> {
        let mut validation = self.validation.clone();
        // Only the algorithm that the keys were chosen for is allowed: a token must not choose how
        // its signature is checked.
        validation.algorithms = vec![shown.algorithm];
        let mut candidates = keys.candidates(shown.algorithm, shown.kid.as_deref());
        candidates.find_map(|key| self.verify_by(key, token, &validation))
    }

    /// Verifies a token with one key; `None` if that key did not sign it.
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

    /// Finds what is wrong with the claims, whether or not they are signed. The library that checks
    /// signatures checks them too; this decides which of several faults the caller is told.
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
    /// Decodes a token without checking its signature.
    fn parse(token: &str) -> Result<Self, Why> {
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NOT_A_JWT);
        };
        let named = object(header).ok_or(NOT_A_JWT)?;
        // `crit` lists extensions that must be understood, and none is (RFC 7515, section 4.1.11).
        // A malformed list is refused as well.
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

/// Decodes a part of a token that is a JSON object.
fn object(part: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Parses a key file, and logs how many keys in it are skipped.
fn keys_of_file(contents: &[u8]) -> Result<Parsed<KeySet>, NotAKeySet> {
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

/// Returns the refusal for a token that no key from the URL has signed; `refresh` is what came of
/// fetching the keys again.
fn unverified(refresh: RefreshOutcome, names_key: bool) -> Refusal {
    let unavailable = |why: &str, retry: Duration| {
        Refusal::new(Reason::RuntimeUnavailable, why).retry_after(retry)
    };
    match refresh {
        RefreshOutcome::Done => invalid(UNKNOWN_KEY),
        RefreshOutcome::TooSoon(left) => invalid(UNKNOWN_KEY).retry_after(left),
        // The key that the token names is known and did not sign it: that is more likely a forgery
        // than a key that changed.
        RefreshOutcome::Failed(_) if names_key => invalid(UNKNOWN_KEY),
        RefreshOutcome::Failed(left) => unavailable(
            "the token cannot be checked now: the keys (auth.jwt.jwks) cannot be had",
            left,
        ),
        RefreshOutcome::Busy => unavailable(
            "the token cannot be checked now: too many callers wait for the keys (auth.jwt.jwks)",
            BUSY_RETRY,
        ),
    }
}

/// Translates the library's error about claims; `None` if the key did not sign the token.
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
