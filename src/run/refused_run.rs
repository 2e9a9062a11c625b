//! A run that did not start.

use crate::model::refusal::{Reason, Refusal};
use crate::model::request::RunId;

/// A run that did not start, and why.
#[derive(Debug)]
pub struct RefusedRun {
    /// The id of the run.
    pub id: RunId,
    /// Why the run did not start.
    pub refusal: Refusal,
}

impl RefusedRun {
    /// Reports whether the run was left by its callers before it started.
    pub(super) fn was_left(&self) -> bool {
        self.refusal.reason() == Reason::RunCancelled
    }
}
