//! The verbs that docs of functions begin with.

/// In alphabetical order; a new one may be added where none of these says it.
pub(crate) const VERBS: &[&str] = &["Creates", "Returns"];
