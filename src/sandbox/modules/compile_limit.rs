//! The refusal of a module that takes more than a limit allows while it is inspected or compiled.

use crate::model::refusal::{Reason, Refusal};

/// Builds the refusal for a module whose compilation takes more than `limit` allows.
pub(in crate::sandbox) fn compile_limit(
    limit: &str,
    message: String,
    allowed: impl std::fmt::Display,
) -> Refusal {
    Refusal::new(
        Reason::CompileLimitExceeded,
        format!("{message}; allowed is {allowed} ({limit})"),
    )
    .at_field("module")
    .with("limit", limit)
    .with("allowed", allowed)
}
