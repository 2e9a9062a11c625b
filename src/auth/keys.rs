//! Sets of public keys, as RFC 7517 has them.

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize as _;
use serde_json::Value;

/// Public keys that signatures are checked with.
#[derive(Default)]
pub(super) struct KeySet {
    keys: Vec<PublicKey>,
    /// How many keys of the set are of a kind that is not taken.
    skipped: usize,
}

struct PublicKey {
    /// Its `kid`.
    id: Option<String>,
    /// Its `alg`: a key that names one is used for no other.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

impl KeySet {
    /// Reads a set. Keys in it that are of an unknown kind, for another use, or malformed are passed
    /// over (RFC 7517, section 5), and a set may have none.
    ///
    /// # Errors
    /// Where it is no JWK set.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        // What some editors put before all text.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let set: Value = serde_json::from_slice(bytes).map_err(|_| "is not a JWK set")?;
        let Some(Value::Array(keys)) = set.get("keys") else {
            return Err("is not a JWK set".to_owned());
        };
        let all = keys.len();
        let keys: Vec<PublicKey> = keys.iter().filter_map(PublicKey::parse).collect();
        Ok(Self {
            skipped: all - keys.len(),
            keys,
        })
    }

    /// Whether it has no key that can be used.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many keys of the set were passed over.
    pub(super) fn skipped(&self) -> usize {
        self.skipped
    }

    /// The keys that a token with that algorithm and key id may have been signed with. A key without
    /// an id may be any token's, and a token without one may be any key's.
    pub(super) fn candidates(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
    ) -> impl Iterator<Item = &DecodingKey> {
        let may_be = move |key: &&PublicKey| {
            key.algorithm.is_none_or(|it| it == algorithm)
                && (kid.is_none() || key.id.is_none() || key.id.as_deref() == kid)
        };
        self.keys.iter().filter(may_be).map(|it| &it.key)
    }

    /// Whether one of its keys has that id.
    pub(super) fn names(&self, kid: Option<&str>) -> bool {
        kid.is_some() && self.keys.iter().any(|key| key.id.as_deref() == kid)
    }
}

impl PublicKey {
    fn parse(key: &Value) -> Option<Self> {
        let key = Jwk::deserialize(key).ok()?;
        let algorithm = match key.common.key_algorithm {
            Some(it) => Some(Algorithm::try_from(it).ok()?),
            None => None,
        };
        // What a key says it is for is what it is used for.
        let for_signatures = !matches!(
            key.common.public_key_use,
            Some(PublicKeyUse::Encryption | PublicKeyUse::Other(_))
        );
        let verifies = key
            .common
            .key_operations
            .as_ref()
            .is_none_or(|it| it.contains(&KeyOperations::Verify));
        // A secret that both sides have is no public key.
        let public = !matches!(key.algorithm, AlgorithmParameters::OctetKey(_));
        if !(for_signatures && verifies && public) {
            return None;
        }
        Some(Self {
            algorithm,
            key: DecodingKey::from_jwk(&key).ok()?,
            id: key.common.key_id,
        })
    }
}
