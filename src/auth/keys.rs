//! JSON Web Key sets (RFC 7517): the public keys that token signatures are verified with.

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize as _;
use serde_json::Value;

/// The usable public keys of a JSON Web Key set.
#[derive(Default)]
pub(super) struct KeySet {
    keys: Vec<PublicKey>,
    /// How many keys of the set were skipped as unusable.
    skipped: usize,
}

/// The error of a text that is no JWK set. It says nothing of the text, which may hold a secret.
#[derive(Debug, thiserror::Error)]
#[error("is not a JWK set")]
pub(super) struct NotAKeySet;

/// A public key that verifies signatures.
struct PublicKey {
    /// Its key id (`kid`), if it has one.
    id: Option<String>,
    /// Its algorithm (`alg`). A key that names one is used for no other.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

impl KeySet {
    /// Parses a key set. Keys of an unknown kind, keys for another use and malformed keys are
    /// skipped (RFC 7517, section 5), and a set may be empty.
    ///
    /// # Errors
    /// The text is not a JWK set.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, NotAKeySet> {
        // Some editors put a byte order mark before all text.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let set: Value = serde_json::from_slice(bytes).map_err(|_| NotAKeySet)?;
        let Some(Value::Array(keys)) = set.get("keys") else {
            return Err(NotAKeySet);
        };
        let all = keys.len();
        let keys: Vec<PublicKey> = keys.iter().filter_map(PublicKey::parse).collect();
        Ok(Self {
            skipped: all - keys.len(),
            keys,
        })
    }

    /// Reports whether the set has no usable key.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns how many keys of the set were skipped.
    pub(super) fn skipped(&self) -> usize {
        self.skipped
    }

    /// Lists the keys that may have signed a token with this algorithm and key id. A key without an
    /// id may have signed any token, and a token without one may be signed by any key.
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

    /// Reports whether one of the keys has this id.
    pub(super) fn names(&self, kid: Option<&str>) -> bool {
        kid.is_some() && self.keys.iter().any(|key| key.id.as_deref() == kid)
    }
}

impl PublicKey {
    /// Parses one key; `None` if it is to be skipped.
    fn parse(key: &Value) -> Option<Self> {
        let key = Jwk::deserialize(key).ok()?;
        let algorithm = match key.common.key_algorithm {
            Some(it) => Some(Algorithm::try_from(it).ok()?),
            None => None,
        };
        // A key is used only for what it says it is for.
        let for_signatures = !matches!(
            key.common.public_key_use,
            Some(PublicKeyUse::Encryption | PublicKeyUse::Other(_))
        );
        let verifies = key
            .common
            .key_operations
            .as_ref()
            .is_none_or(|it| it.contains(&KeyOperations::Verify));
        // A secret that both sides share is not a public key.
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
