//! Static tokens: a file of their hashes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::watched::Parsed;
use crate::request::Digest;

/// The tokens that there are, as hashes, with whose they are.
#[derive(Debug, Default)]
pub struct Tokens(Vec<(Digest, Arc<str>)>);

impl Tokens {
    /// Reads lines of "TENANT sha256:HEX"; empty ones, and what follows a "#", are passed over.
    /// `tenants` are those that there are.
    ///
    /// Each line stands for itself: one that is something else takes nothing from the others, and is
    /// told by its number, since it may hold a secret. A token that stands for two tenants stands for
    /// neither.
    pub fn parse(text: &[u8], tenants: &HashSet<String>) -> Parsed<Self> {
        let mut faults = Vec::new();
        let mut tokens = Vec::new();
        let mut owners: HashMap<Digest, (usize, Arc<str>)> = HashMap::new();
        let mut disputed = HashSet::new();
        // What some editors put before all text.
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        for (line, text) in (1_usize..).zip(text.split(|byte| *byte == b'\n')) {
            let (digest, tenant) = match token(text, tenants) {
                Ok(None) => continue,
                Ok(Some(token)) => token,
                Err(why) => {
                    faults.push(format!("line {line}: {why}"));
                    continue;
                }
            };
            let owner = owners
                .entry(digest)
                .or_insert_with(|| (line, Arc::clone(&tenant)));
            if owner.1 == tenant {
                tokens.push((digest, tenant));
            } else {
                disputed.insert(digest);
                let other = owner.0;
                faults.push(format!(
                    "line {line}: the token of line {other}, of another tenant: it is neither's"
                ));
            }
        }
        tokens.retain(|(digest, _)| !disputed.contains(digest));
        Parsed {
            value: Self(tokens),
            faults,
        }
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

/// The token of one line; `None` where it has none.
fn token(
    line: &[u8],
    tenants: &HashSet<String>,
) -> Result<Option<(Digest, Arc<str>)>, &'static str> {
    let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| "is not text")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        [] => Ok(None),
        [tenant, _] if !tenants.contains(tenant) => Err("there is no tenant of that name"),
        [tenant, hash] => {
            let digest =
                Digest::parse("", hash).map_err(|_| "the hash is not \"sha256:\" and 64 digits")?;
            Ok(Some((digest, Arc::from(tenant))))
        }
        _ => Err("allowed is: TENANT sha256:HEX"),
    }
}
