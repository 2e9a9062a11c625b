//! The session of a run, as its caller names it.

use std::fmt;
use std::sync::Arc;

use crate::model::refusal::{Refusal, quote};

/// The most bytes of the name of a session.
pub const MAX_SESSION_NAME: usize = 128;

/// Which session a program belongs to.
#[derive(Clone, Debug)]
pub struct SessionSpec {
    /// The name of the session among those of its tenant.
    pub name: SessionName,
    /// The name of the language of its interpreter.
    pub language: String,
    /// Whether the session has to be there already.
    pub must_exist: bool,
}

/// The name of a session: letters, digits, and "-", "_", ".", ":" and "/".
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionName(Arc<str>);

impl SessionName {
    /// Parses a name.
    ///
    /// # Errors
    /// `SPEC_INVALID` where it is empty or has another character; `LIMIT_ABOVE_MAXIMUM` where it is
    /// too long.
    pub fn parse(field: &str, name: &str) -> Result<Self, Refusal> {
        if name.is_empty() {
            return Err(Refusal::invalid(field, "is empty"));
        }
        if name.len() > MAX_SESSION_NAME {
            return Err(Refusal::above(field, name.len(), MAX_SESSION_NAME));
        }
        let is_allowed = |it: char| it.is_ascii_alphanumeric() || "-_.:/".contains(it);
        if !name.chars().all(is_allowed) {
            let message = format!(
                "\"{}\" is not a name; allowed are ASCII letters, digits, and \"-_.:/\"",
                quote(name)
            );
            return Err(Refusal::invalid(field, message));
        }
        Ok(Self(name.into()))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::refusal::Reason;

    #[test]
    fn names_are_short_and_plain() {
        let longest = "n".repeat(MAX_SESSION_NAME);
        for name in ["a", "user:42/notebook_1.b-c", &longest] {
            let parsed = SessionName::parse("f", name).map(|it| it.as_str().to_owned());
            assert_eq!(parsed.ok().as_deref(), Some(name));
        }
        for (name, reason) in [
            ("", Reason::SpecInvalid),
            ("a b", Reason::SpecInvalid),
            ("\u{e9}", Reason::SpecInvalid),
            ("a\n", Reason::SpecInvalid),
            (&format!("{longest}n"), Reason::LimitAboveMaximum),
        ] {
            let refused = SessionName::parse("f", name).err();
            assert_eq!(refused.map(|it| it.reason()), Some(reason), "{name:?}");
        }
    }
}
