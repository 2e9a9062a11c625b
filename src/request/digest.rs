//! The digest that names a module.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::hex;
use crate::refusal::{Refusal, quote};

/// What stands before the digits of a digest.
const PREFIX: &str = "sha256:";
/// Bytes of a digest as text.
const TEXT: usize = PREFIX.len() + 64;

/// The SHA-256 of a module's bytes as received.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Reads "sha256:" and 64 hexadecimal digits.
    ///
    /// # Errors
    /// `SPEC_INVALID` for anything else.
    pub fn parse(field: &str, text: &str) -> Result<Self, Refusal> {
        let digits = text.strip_prefix(PREFIX);
        digits.and_then(Self::from_hex).ok_or_else(|| {
            let message = format!(
                "\"{}\" is not \"sha256:\" and 64 hexadecimal digits",
                quote(text)
            );
            Refusal::invalid(field, message)
        })
    }

    /// Reads 64 hexadecimal digits.
    pub fn from_hex(digits: &str) -> Option<Self> {
        hex::decode(digits.as_bytes()).map(Self)
    }

    /// Another, which stands for this one where it belongs to `owner` alone.
    pub fn apart(&self, owner: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(owner);
        hash.into()
    }

    /// Its 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        self.with_text(|text| text[PREFIX.len()..].to_owned())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Hands its text to `take`, whole and on the stack.
    pub fn with_text<T>(&self, take: impl FnOnce(&str) -> T) -> T {
        let mut text = [0; TEXT];
        let (prefix, digits) = text.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX.as_bytes());
        hex::encode(&self.0, digits);
        // It is ASCII.
        take(str::from_utf8(&text).unwrap_or_default())
    }
}

impl From<Sha256> for Digest {
    fn from(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // At once: told several times for each run, and a `String` is then made in one piece.
        self.with_text(|text| f.write_str(text))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
