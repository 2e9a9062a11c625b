//! JSON Web Tokens: signed by a key of a set, for this audience, by this issuer, naming a tenant.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};

use super::watched::Watched;

/// How old keys from a URL may grow.
const AGE: Duration = Duration::from_secs(300);
/// How soon they are asked for again where a token names one that is not known.
const AGAIN: Duration = Duration::from_secs(10);
/// How long the answer may take, and how long it may be.
const PATIENCE: Duration = Duration::from_secs(5);
const MOST: usize = 1 << 20;
/// How much longer than that callers wait for it.
const LONGER: Duration = Duration::from_secs(1);
/// How far clocks may be apart.
const LEEWAY: u64 = 30;

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
    Url(String),
}

/// Checks tokens.
pub(super) struct Jwt {
    source: Source,
    algorithms: Vec<Algorithm>,
    validation: Validation,
    claim: String,
}

enum Source {
    File(Watched<Set>),
    Url(Box<Remote>),
}

/// Keys that signatures are checked with.
#[derive(Default)]
struct Set(Vec<Jwk>);

struct Remote {
    url: String,
    client: reqwest::Client,
    set: arc_swap::ArcSwap<Set>,
    /// Asks for the keys before it is time.
    wanted: Notify,
    /// How often they were asked for, and when last; what callers do or leave has no part in it.
    asked: watch::Sender<(u64, Option<Instant>)>,
}

/// Why a token is refused. Never the token, nor what it says.
pub(super) type Why = &'static str;

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
        validation.leeway = LEEWAY;
        let source = match &settings.keys {
            Keys::File(path) => Source::File(Watched::open(
                "auth.jwt.jwks",
                vec![path.clone()],
                |contents| Set::parse(&contents[0]),
            )?),
            Keys::Url(url) => Source::Url(Box::new(Remote::new(url)?)),
        };
        Ok(Self {
            source,
            algorithms,
            validation,
            claim: settings.tenant_claim.clone(),
        })
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
    pub(super) async fn tenant(&self, token: &str) -> Result<Arc<str>, Why> {
        let header = decode_header(token).map_err(|_| "the token is not a JWT")?;
        if !self.algorithms.contains(&header.alg) {
            return Err("the token's signature is of a kind that is not taken");
        }
        let kid = header.kid.as_deref();
        let set = match &self.source {
            Source::File(file) => file.get(),
            Source::Url(remote) => remote.set(header.alg, kid).await,
        };
        let mut why = "the token was not signed by a key that is known";
        for key in set
            .0
            .iter()
            .filter(|key| may_have_signed(key, header.alg, kid))
        {
            let Ok(public) = DecodingKey::from_jwk(key) else {
                continue;
            };
            let mut validation = self.validation.clone();
            // Of a key, only what it can sign: a token must not choose what its signature is checked as.
            validation.algorithms = vec![header.alg];
            match decode::<Map<String, Value>>(token, &public, &validation) {
                Ok(decoded) => {
                    let named = decoded.claims.get(&self.claim).and_then(Value::as_str);
                    return named.map(Arc::from).ok_or("the token names no tenant");
                }
                Err(error) => why = reason(&error),
            }
        }
        Err(why)
    }
}

/// Whether a token with that algorithm and key id may be of this key.
fn may_have_signed(key: &Jwk, alg: Algorithm, kid: Option<&str>) -> bool {
    let known = key.common.key_id.as_deref();
    // What a key says it is for is what it is used for.
    let algorithm = key.common.key_algorithm.map(|it| it.to_string());
    if algorithm.is_some_and(|it| it != format!("{alg:?}")) {
        return false;
    }
    let for_signing = !matches!(
        key.common.public_key_use,
        Some(PublicKeyUse::Encryption | PublicKeyUse::Other(_))
    );
    let symmetric = matches!(
        key.algorithm,
        jsonwebtoken::jwk::AlgorithmParameters::OctetKey(_)
    );
    for_signing && !symmetric && (kid.is_none() || known == kid)
}

fn reason(error: &jsonwebtoken::errors::Error) -> Why {
    use jsonwebtoken::errors::ErrorKind;
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the rest is all of one kind to a caller, and the list is open"
    )]
    match error.kind() {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidAudience => "the token is for another audience",
        ErrorKind::InvalidIssuer => "the token is of another issuer",
        ErrorKind::MissingRequiredClaim(_) => "the token lacks exp, aud or iss",
        _ => "the token was not signed by a key that is known",
    }
}

impl Set {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let set: JwkSet =
            serde_json::from_slice(bytes).map_err(|_| "is not a JWK set".to_owned())?;
        if set.keys.is_empty() {
            return Err("has no keys".to_owned());
        }
        Ok(Self(set.keys))
    }

    fn has(&self, alg: Algorithm, kid: Option<&str>) -> bool {
        self.0.iter().any(|key| may_have_signed(key, alg, kid))
    }
}

impl Remote {
    fn new(url: &str) -> Result<Self, String> {
        let client = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| format!("auth.jwt.jwks: {error}"))?;
        Ok(Self {
            url: url.to_owned(),
            client,
            set: arc_swap::ArcSwap::from_pointee(Set::default()),
            wanted: Notify::new(),
            asked: watch::Sender::new((0, None)),
        })
    }

    /// The keys, asked for again where none of them can be the one. A caller whose key is known waits for nobody.
    async fn set(&self, alg: Algorithm, kid: Option<&str>) -> Arc<Set> {
        let mut asked = self.asked.subscribe();
        let recently = asked.borrow().1.is_some_and(|at| at.elapsed() < AGAIN);
        // After that: what came is what is looked at.
        let set = self.set.load_full();
        if recently || set.has(alg, kid) {
            return set;
        }
        // It is asked beside the callers: none of them can keep the others from the answer by leaving.
        self.wanted.notify_one();
        let _ = tokio::time::timeout(PATIENCE + LONGER, asked.changed()).await;
        self.set.load_full()
    }

    /// Asks now and then, and where somebody wants it.
    async fn watch(&self) -> ! {
        loop {
            let rest = match self.fetch().await {
                Ok(fresh) => {
                    self.set.store(Arc::new(fresh));
                    AGE
                }
                Err(error) => {
                    tracing::error!(
                        error,
                        "auth.jwt.jwks cannot be read; the keys that are known stay in force"
                    );
                    AGAIN
                }
            };
            self.asked
                .send_modify(|asked| *asked = (asked.0 + 1, Some(Instant::now())));
            let again = tokio::time::sleep(AGAIN);
            let wanted = async {
                self.wanted.notified().await;
                // Not sooner than that, however much it is wanted.
                again.await;
            };
            let _ = tokio::time::timeout(rest, wanted).await;
        }
    }

    async fn fetch(&self) -> Result<Set, String> {
        let told = |error: reqwest::Error| error.without_url().to_string();
        let mut answer = self.client.get(&self.url).send().await.map_err(told)?;
        if !answer.status().is_success() {
            return Err(format!("the answer is {}", answer.status()));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(told)? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MOST {
                return Err("the answer is too long".to_owned());
            }
        }
        Set::parse(&bytes)
    }
}
