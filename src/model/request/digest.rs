//! The digest that names a module, and its text form.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::hex;
use crate::model::refusal::{Refusal, quote};

/// The prefix that stands before the hexadecimal digits of a digest.
const PREFIX: &str = "sha256:";
/// Length of a digest as text, in bytes.
const TEXT: usize = PREFIX.len() + 64;

/// A SHA-256 digest, mostly that of a module's bytes as received.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Computes the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Parses "sha256:" and 64 hexadecimal digits.
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

    /// Parses 64 hexadecimal digits; `None` for anything else.
    pub fn from_hex(digits: &str) -> Option<Self> {
        hex::decode(digits.as_bytes()).map(Self)
    }

    /// Derives another digest, which stands for this one where it belongs to `owner` alone.
    pub fn scoped_to(&self, owner: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(owner);
        hash.into()
    }

    /// Returns the 64 hexadecimal digits, without the prefix.
    pub fn hex(&self) -> String {
        self.with_text(|text| text[PREFIX.len()..].to_owned())
    }

    /// Returns the 32 bytes of the digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Passes the digest's text to `take`, prefix included. The text is on the stack, so nothing is
    /// allocated.
    pub fn with_text<T>(&self, take: impl FnOnce(&str) -> T) -> T {
        let mut text = [0; TEXT];
        let (prefix, digits) = text.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX.as_bytes());
        hex::encode(&self.0, digits);
        // The text is ASCII, so it is always valid.
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
        // Written at once: a digest is printed several times for each run, and a `String` of it is
        // then made in one piece.
        self.with_text(|text| f.write_str(text))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
