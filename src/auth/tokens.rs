//! Static bearer tokens, from a file of their SHA-256 hashes.
//!
//! A call's token is looked up in a hash table, so that a call costs the same however many tokens
//! there are. The time of the look-up reveals nothing that helps to find a token: the table is
//! keyed by the tokens' SHA-256, placed in it by a hash function whose key is random in this
//! process, and an entry is compared in constant time.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use subtle::ConstantTimeEq;

use super::watched_files::Parsed;
use crate::model::request::Digest;

/// The static tokens, as hashes, each with its tenant.
#[derive(Debug, Default)]
pub struct StaticTokens(HashMap<TokenHash, Arc<str>>);

/// The SHA-256 of a token. Its equality takes constant time.
#[derive(Clone, Copy, Debug, Eq)]
struct TokenHash(Digest);

impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Hash for TokenHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl StaticTokens {
    /// Parses lines of "TENANT sha256:HEX". Empty lines, and what follows a "#", are ignored. A
    /// tenant that is not among `tenants` is a fault.
    ///
    /// Each line stands for itself: a faulty one takes nothing from the others, and is reported by
    /// its number only, since it may hold a secret. A token that is listed for two tenants belongs
    /// to neither.
    pub fn parse(text: &[u8], tenants: &HashSet<String>) -> Parsed<Self> {
        let mut faults = Vec::new();
        let mut tokens = HashMap::new();
        let mut owners: HashMap<Digest, (usize, Arc<str>)> = HashMap::new();
        let mut disputed = HashSet::new();
        // Some editors put a byte order mark before all text.
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
                tokens.insert(TokenHash(digest), tenant);
            } else {
                disputed.insert(digest);
                let other = owner.0;
                faults.push(format!(
                    "line {line}: the token of line {other}, of another tenant: it is neither's"
                ));
            }
        }
        tokens.retain(|hash, _| !disputed.contains(&hash.0));
        Parsed {
            value: Self(tokens),
            faults,
        }
    }

    /// Returns the tenant of a token; `None` if the token is unknown.
    pub fn tenant(&self, token: &str) -> Option<Arc<str>> {
        let hash = TokenHash(Digest::of(token.as_bytes()));
        self.0.get(&hash).map(Arc::clone)
    }
}

/// Parses one line; `None` if it holds no token.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(count: usize) -> HashSet<String> {
        (0..count).map(|i| format!("t{i}")).collect()
    }

    fn line(tenant: usize, token: &str) -> String {
        format!("t{tenant} {}\n", Digest::of(token.as_bytes()))
    }

    #[test]
    fn each_of_many_tokens_is_its_tenants_and_no_other_is_anybodys() {
        const TENANTS: usize = 1000;
        let text: String = (0..TENANTS)
            .map(|i| line(i, &format!("first of {i}")) + &line(i, &format!("second of {i}")))
            .collect();
        let parsed = StaticTokens::parse(text.as_bytes(), &tenants(TENANTS));
        assert!(parsed.faults.is_empty(), "{:?}", parsed.faults);
        for i in 0..TENANTS {
            for which in ["first", "second"] {
                let tenant = parsed.value.tenant(&format!("{which} of {i}"));
                assert_eq!(tenant.as_deref(), Some(format!("t{i}").as_str()));
            }
            assert_eq!(parsed.value.tenant(&format!("third of {i}")), None);
        }
        assert_eq!(parsed.value.tenant(""), None);
    }

    #[test]
    fn a_token_that_is_twice_one_tenants_is_its_own_and_one_of_two_tenants_is_neithers() {
        let text = [line(0, "a"), line(0, "a"), line(0, "b"), line(1, "b")].concat();
        let parsed = StaticTokens::parse(text.as_bytes(), &tenants(2));
        assert_eq!(parsed.faults.len(), 1);
        assert_eq!(parsed.value.tenant("a").as_deref(), Some("t0"));
        assert_eq!(parsed.value.tenant("b"), None);
    }

    #[test]
    fn hashes_differ_where_any_byte_does() {
        let hash =
            |digits: &str| TokenHash(Digest::parse("", &format!("sha256:{digits}")).unwrap());
        let same = "ab".repeat(32);
        assert_eq!(hash(&same), hash(&same));
        for at in 0..32 {
            let other = "ab".repeat(at) + "aa" + &"ab".repeat(31 - at);
            assert_ne!(hash(&same), hash(&other), "{at}");
        }
    }
}
