//! Static tokens: a file of their hashes.

use std::collections::HashSet;
use std::sync::Arc;

use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::request::Digest;

/// The tokens that there are, as hashes, with whose they are.
#[derive(Debug, Default)]
pub struct Tokens(Vec<(Digest, Arc<str>)>);

impl Tokens {
    /// Reads lines of "TENANT sha256:HEX"; empty ones, and what follows a "#", are passed over. `tenants` are those that
    /// there are.
    ///
    /// # Errors
    /// The first line that is something else, by its number: it may hold a secret.
    pub fn parse(text: &[u8], tenants: &HashSet<String>) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "is not text".to_owned())?;
        let mut tokens = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            let failed = |why: &str| format!("line {}: {why}", i + 1);
            match words[..] {
                [] => {}
                [tenant, _] if !tenants.contains(tenant) => {
                    return Err(failed("there is no tenant of that name"));
                }
                [tenant, hash] => {
                    let digest = Digest::parse("", hash)
                        .map_err(|_| failed("the hash is not \"sha256:\" and 64 digits"))?;
                    tokens.push((digest, Arc::from(tenant)));
                }
                _ => return Err(failed("allowed is: TENANT sha256:HEX")),
            }
        }
        Ok(Self(tokens))
    }

    /// Whose token it is. Every entry is looked at, each in the same time.
    pub fn tenant(&self, token: &str) -> Option<Arc<str>> {
        let hash = Digest::of(token.as_bytes());
        let mut found = u64::MAX;
        for (i, (digest, _)) in self.0.iter().enumerate() {
            let same = digest.as_bytes().ct_eq(hash.as_bytes());
            found = u64::conditional_select(&found, &(i as u64), same);
        }
        let found = usize::try_from(found).ok()?;
        self.0.get(found).map(|(_, tenant)| Arc::clone(tenant))
    }
}
